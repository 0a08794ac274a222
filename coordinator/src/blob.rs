//! Files named by the digest of what is in them: spooled updates and models.
//!
//! A file appears under its name only when all of it is on the disk: written beside, synced, renamed,
//! and the folder synced.

use falaj_core::id::Digest;
use std::{
    io,
    path::{Path, PathBuf},
};
use tokio::{
    fs::{self, File},
    io::AsyncWriteExt as _,
};

/// How a file that is still being written ends.
const PARTIAL: &str = ".partial";

/// A folder of such files.
#[derive(Clone, Debug)]
pub struct Blobs {
    dir: PathBuf,
}

/// A file that is being written. Dropped before [`Writing::finish`], it leaves nothing behind.
pub struct Writing {
    file: File,
    path: PathBuf,
    dir: PathBuf,
    done: bool,
}

impl Blobs {
    /// Opens the folder and removes what a crash left half written.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub async fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir).await?;
        let mut files = fs::read_dir(dir).await?;
        while let Some(file) = files.next_entry().await? {
            if file.file_name().to_string_lossy().ends_with(PARTIAL) {
                fs::remove_file(file.path()).await?;
            }
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where the file with this digest lies.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    /// Begins a file; `tag` keeps files that are written at once apart.
    ///
    /// # Errors
    /// When it cannot be created.
    pub async fn begin(&self, tag: &str) -> io::Result<Writing> {
        let path = self.dir.join(format!("{tag}{PARTIAL}"));
        let file = File::create(&path).await?;
        Ok(Writing { file, path, dir: self.dir.clone(), done: false })
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn put(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        if fs::try_exists(self.path(digest)).await? {
            return Ok(());
        }
        let mut writing = self.begin(&digest.to_string()).await?;
        writing.write(bytes).await?;
        writing.finish(digest).await
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub async fn read(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        fs::read(self.path(digest)).await
    }
}

impl Writing {
    /// Appends bytes.
    ///
    /// # Errors
    /// When they cannot be written, for example because the disk is full.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).await
    }

    /// Makes it durable under its digest, which the caller has checked.
    ///
    /// # Errors
    /// When it cannot be synced or renamed.
    pub async fn finish(mut self, digest: &Digest) -> io::Result<()> {
        self.file.flush().await?;
        self.file.sync_data().await?;
        fs::rename(&self.path, self.dir.join(digest.to_string())).await?;
        self.done = true;
        File::open(&self.dir).await?.sync_all().await
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether an error says that there is no room.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::open(dir.path()).await.expect("opens");
        let digest = Digest::of(b"abc");
        let mut dropped = blobs.begin("x").await.expect("begins");
        dropped.write(b"ab").await.expect("writes");
        drop(dropped);
        assert_eq!(std::fs::read_dir(dir.path()).expect("reads").count(), 0);
        blobs.put(&digest, b"abc").await.expect("writes");
        assert_eq!(blobs.read(&digest).await.expect("reads"), b"abc");
    }

    #[tokio::test]
    async fn what_a_crash_left_half_written_is_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("x.partial"), b"ab").expect("writes");
        Blobs::open(dir.path()).await.expect("opens");
        assert_eq!(std::fs::read_dir(dir.path()).expect("reads").count(), 0);
    }
}
