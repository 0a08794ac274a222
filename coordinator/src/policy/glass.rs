//! Breaking the glass: for a while rescue policies take the place of those in the folder, when those let nobody in who
//! could put things right.
//!
//! Whoever may write the folder may write its rules as well, so this gives nobody more than they have; it lets them do less
//! than a rule of their own would, for a bounded time, and loudly.

use super::LoadError;
use crate::clock;
use falaj_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fs, io, io::Read as _, io::Write as _, path::Path};

/// The file in the policies' folder that says so.
pub const FILE: &str = "break-glass.toml";
/// It stays broken for at most this long.
pub const MINUTES_MAX: u32 = 240;
/// What is said of it in answer to `why` is at most this long.
const REASON_CHARS_MAX: usize = 200;
/// More than this is no such file.
const BYTES_MAX: u64 = 4 << 10;

/// That the glass is broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Glass {
    /// Why, as whoever did it said.
    pub reason: String,
    /// Until when, RFC 3339 in UTC.
    pub until: String,
}

impl Glass {
    /// When it is mended at the latest; an error when nobody could have said so.
    fn ends(&self, now: Timestamp) -> Result<Timestamp, String> {
        check(&self.reason)?;
        let until = Timestamp::parse(&self.until)
            .ok_or("`until` is no time in UTC such as 2026-01-31T09:30:00.000Z")?;
        if until > now.plus_ms(u64::from(MINUTES_MAX) * 60_000) {
            return Err(format!("`until` is more than {MINUTES_MAX} minutes from now"));
        }
        Ok(until)
    }
}

impl Glass {
    /// Whether its time is over.
    pub(super) fn is_over(&self) -> bool {
        Timestamp::parse(&self.until).is_none_or(|until| until <= clock::now())
    }
}

fn check(reason: &str) -> Result<(), String> {
    let long = reason.chars().count() > REASON_CHARS_MAX;
    if reason.trim().is_empty() || long || reason.chars().any(char::is_control) {
        return Err(format!(
            "a reason of one line and at most {REASON_CHARS_MAX} characters is needed: it stands in the log"
        ));
    }
    Ok(())
}

/// Whether the glass is broken now.
pub(super) fn read(dir: &Path) -> Result<Option<Glass>, LoadError> {
    let path = dir.join(FILE);
    let wrong = |what: String| LoadError::Glass(path.clone(), what);
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LoadError::Read(path, e)),
    };
    let mut text = String::new();
    let read = file.take(BYTES_MAX + 1).read_to_string(&mut text);
    let bytes = read.map_err(|e| LoadError::Read(path.clone(), e))?;
    if bytes as u64 > BYTES_MAX {
        return Err(wrong(format!("it is longer than {BYTES_MAX} bytes")));
    }
    let glass: Glass = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let now = clock::now();
    Ok((glass.ends(now).map_err(wrong)? > now).then_some(glass))
}

/// Breaks the glass of the policies in a folder: a coordinator that runs takes it up within seconds, one that starts at once.
///
/// # Errors
/// When the reason or the time is not one, or the file cannot be written.
pub fn break_it(dir: &Path, reason: &str, minutes: u32) -> anyhow::Result<Glass> {
    let until = clock::now().plus_ms(u64::from(minutes) * 60_000).to_string();
    let glass = Glass { reason: reason.to_owned(), until };
    glass.ends(clock::now()).map_err(anyhow::Error::msg)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(toml::to_string(&glass)?.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(dir.join(FILE))?;
    Ok(glass)
}

/// Mends it. Whether it was broken.
///
/// # Errors
/// When the file cannot be removed.
pub fn mend(dir: &Path) -> io::Result<bool> {
    match fs::remove_file(dir.join(FILE)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_could_have_been_said_breaks_it() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join(FILE);
        assert!(read(dir.path())?.is_none() && !mend(dir.path())?);
        let glass = break_it(dir.path(), "nobody gets in", 5)?;
        assert_eq!(read(dir.path())?, Some(glass));
        assert!(mend(dir.path())? && read(dir.path())?.is_none());
        for (reason, minutes) in [("", 5), ("two\nlines", 5), ("long", MINUTES_MAX + 1)] {
            assert!(break_it(dir.path(), reason, minutes).is_err(), "{reason} {minutes}");
            assert!(!path.exists());
        }
        let far = "reason = \"x\"\nuntil = \"2999-01-01T00:00:00.000Z\"\n";
        let wrong = ["reason = \"x\"\n", "nonsense", far, "reason = \"x\"\nuntil = \"soon\"\n"];
        for text in wrong {
            fs::write(&path, text)?;
            let e = read(dir.path()).expect_err(text).to_string();
            assert!(e.contains(FILE), "{e}");
        }
        fs::write(&path, "reason = \"over\"\nuntil = \"2026-01-01T00:00:00.000Z\"\n")?;
        assert_eq!(read(dir.path())?, None, "its time is over");
        Ok(())
    }
}
