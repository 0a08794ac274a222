//! The secret by which this site holds records out of training.
//!
//! It is made once and stays: with another one, records that models were trained on would be evaluated on. It belongs into the
//! backup of the state folder. The journal remembers which secret it was, and of which data set by which columns: where
//! one of them is another, records are neither trained nor evaluated on until somebody has said that it is meant.

use crate::{
    config::DatasetConfig,
    journal::{Journal, JournalError},
    train::Chance,
};
use falaj_core::{evaluation::holdout::Key, id::Digest};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Its name in the state folder.
const FILE: &str = "holdout.key";
/// Before everything that the journal remembers about held-out records.
const PINS: &str = "holdout ";
/// What the secret is pinned under, as a digest.
const KEY_PIN: &str = "holdout key";
/// What a person does who means the change.
const MEANT: &str = "if the change is meant, begin anew the studies whose models were trained here, and say so with `falaj-agent data hold-out-anew`";

/// Why records cannot be held out.
#[derive(Debug, thiserror::Error)]
pub enum HoldoutError {
    /// The secret cannot be read or made.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There was one.
    #[error("{} is gone: restore it from the backup of the state folder; {MEANT}", .0.display())]
    Lost(PathBuf),
    /// It was another one.
    #[error("{} is another one than before: restore it from the backup of the state folder; {MEANT}", .0.display())]
    Other(PathBuf),
    /// It was told by other columns whose a record is.
    #[error(
        "`identity` of the data set `{dataset}` was {before} and is {now}: change it back in agent.toml; {MEANT}"
    )]
    Identity {
        /// The data set.
        dataset: String,
        /// Its columns before.
        before: String,
        /// And now.
        now: String,
    },
    /// The records had another name.
    #[error("{} was the data set `{before}` and is `{now}`, by which others of its records would be held out: change the name back in agent.toml; {MEANT}", .path.display())]
    Name {
        /// Where the records lie.
        path: PathBuf,
        /// The name before.
        before: String,
        /// And now.
        now: String,
    },
    /// The journal fails.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The secret in a state folder, made if there never was one.
///
/// # Errors
/// When it cannot be read or made, is not one, or is not the one that it was: then records are neither trained nor evaluated on.
pub async fn key(state: &Path, journal: &Journal) -> Result<Key, HoldoutError> {
    let path = state.join(FILE);
    let key = match read(&path)? {
        Some(key) => key,
        None if journal.pinned(KEY_PIN).await?.is_some() => return Err(HoldoutError::Lost(path)),
        None => made(state, &path)?,
    };
    let digest = Digest::of(&[&b"falaj/holdout-key/v1\0"[..], &key.0].concat()).to_string();
    if journal.pin(KEY_PIN, &digest).await? != digest {
        return Err(HoldoutError::Other(path));
    }
    Ok(key)
}

/// Remembers by which name and columns a part of a data set is held out.
///
/// # Errors
/// When it was done by others before.
pub async fn remember(journal: &Journal, dataset: &DatasetConfig) -> Result<(), HoldoutError> {
    let (name, now) = (dataset.name.clone(), format!("{:?}", dataset.identity));
    let before = journal.pin(&format!("{PINS}identity {name}"), &now).await?;
    if before != now {
        return Err(HoldoutError::Identity { dataset: name, before, now });
    }
    // Where there is no such path nothing can be read, which is said when it is.
    let Ok(path) = fs::canonicalize(&dataset.path) else { return Ok(()) };
    let before = journal.pin(&format!("{PINS}name {}", path.display()), &name).await?;
    if before != name {
        return Err(HoldoutError::Name { path, before, now: name });
    }
    Ok(())
}

/// Forgets all of that: what is in the state folder and in the configuration counts from the next task on.
///
/// # Errors
/// [`JournalError`].
pub async fn anew(journal: &Journal) -> Result<(), JournalError> {
    journal.unpin(PINS).await
}

fn made(state: &Path, path: &Path) -> io::Result<Key> {
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
        match fs::hard_link(&partial, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    };
    let done = written();
    fs::remove_file(&partial).ok();
    done?;
    fs::File::open(state)?.sync_all()?;
    read(path)?.ok_or_else(|| io::Error::other("it was made and is not there"))
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

    async fn journal(dir: &Path) -> Journal {
        Journal::open(&dir.join("journal")).await.expect("a journal")
    }

    #[tokio::test]
    async fn the_secret_is_made_once_and_nobody_else_may_read_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let kept = journal(dir.path()).await;
        let first = key(dir.path(), &kept).await.expect("a key");
        assert_eq!(key(dir.path(), &kept).await.expect("a key").0, first.0);
        let mode = fs::metadata(dir.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let files = fs::read_dir(dir.path()).expect("a folder").count();
        assert_eq!(files, 2, "the key and the journal");
        let other = tempfile::tempdir().expect("a folder");
        let others = journal(other.path()).await;
        assert_ne!(key(other.path(), &others).await.expect("a key").0, first.0);
        fs::write(dir.path().join(FILE), b"short").expect("written");
        let broken = key(dir.path(), &kept).await.expect_err("refused").to_string();
        assert!(broken.contains("holdout.key has 5 bytes and should have 32"), "{broken}");
    }

    #[tokio::test]
    async fn a_lost_or_another_secret_is_refused_until_somebody_says_that_it_is_meant() {
        let dir = tempfile::tempdir().expect("a folder");
        let (kept, path) = (journal(dir.path()).await, dir.path().join(FILE));
        let first = key(dir.path(), &kept).await.expect("a key");
        fs::remove_file(&path).expect("removed");
        let lost = key(dir.path(), &kept).await.expect_err("refused");
        assert!(matches!(lost, HoldoutError::Lost(_)) && !path.exists(), "{lost}");
        fs::write(&path, [7; 32]).expect("written");
        let other = key(dir.path(), &kept).await.expect_err("refused");
        assert!(matches!(other, HoldoutError::Other(_)), "{other}");
        fs::write(&path, first.0).expect("restored");
        assert_eq!(key(dir.path(), &kept).await.expect("the key").0, first.0);
        fs::remove_file(&path).expect("removed");
        anew(&kept).await.expect("forgotten");
        assert_ne!(key(dir.path(), &kept).await.expect("a key").0, first.0);
    }

    #[tokio::test]
    async fn other_columns_or_another_name_for_the_same_records_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let kept = journal(dir.path()).await;
        let dataset = |name: &str, identity: &[&str]| DatasetConfig {
            name: name.into(),
            path: dir.path().to_owned(),
            epsilon_limit: 1.0,
            delta: 1e-5,
            identity: identity.iter().map(ToString::to_string).collect(),
        };
        let before = dataset("records", &["patient"]);
        for _ in 0..2 {
            remember(&kept, &before).await.expect("the same");
        }
        let columns = remember(&kept, &dataset("records", &[])).await.expect_err("refused");
        assert!(columns.to_string().contains("was [\"patient\"] and is []"), "{columns}");
        let renamed = remember(&kept, &dataset("others", &["patient"])).await.expect_err("refused");
        assert!(renamed.to_string().contains("was the data set `records`"), "{renamed}");
        anew(&kept).await.expect("forgotten");
        remember(&kept, &dataset("records", &[])).await.expect("meant");
    }
}
