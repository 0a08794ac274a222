//! The secret by which this site holds records out of training.
//!
//! It is made once and stays: with another one, records that models were trained on would be evaluated on. It belongs into the
//! backup of the state folder.

use crate::train::Chance;
use falaj_core::evaluation::holdout::Key;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Its name in the state folder.
const FILE: &str = "holdout.key";

/// The secret in a state folder, made if there is none.
///
/// # Errors
/// When it cannot be read or made, or is not one: then records are neither trained nor evaluated on.
pub fn key(state: &Path) -> io::Result<Key> {
    let path = state.join(FILE);
    if let Some(key) = read(&path)? {
        return Ok(key);
    }
    let fresh = Chance::fresh().key();
    let partial = state.join(format!("{FILE}.{}.partial", std::process::id()));
    let written = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(&*fresh)?;
        file.sync_all()?;
        // Whoever was first is right.
        match fs::hard_link(&partial, &path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    };
    let done = written();
    fs::remove_file(&partial).ok();
    done?;
    fs::File::open(state)?.sync_all()?;
    read(&path)?.ok_or_else(|| io::Error::other("it was made and is not there"))
}

fn read(path: &Path) -> io::Result<Option<Key>> {
    match fs::read(path) {
        Ok(bytes) => {
            let key = <[u8; 32]>::try_from(&*bytes).map_err(|_| {
                let what = format!(
                    "{} has {} bytes and should have 32: restore it from a backup",
                    path.display(),
                    bytes.len()
                );
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?;
            Ok(Some(Key(key)))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_secret_is_made_once_and_nobody_else_may_read_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = key(dir.path()).expect("a key");
        assert_eq!(key(dir.path()).expect("a key").0, first.0);
        let mode = fs::metadata(dir.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let files = fs::read_dir(dir.path()).expect("a folder").count();
        assert_eq!(files, 1);
        let other = tempfile::tempdir().expect("a folder");
        assert_ne!(key(other.path()).expect("a key").0, first.0);
        fs::write(dir.path().join(FILE), b"short").expect("written");
        let broken = key(dir.path()).expect_err("refused").to_string();
        assert!(broken.contains("holdout.key has 5 bytes and should have 32"), "{broken}");
    }
}
