//! Files named by the digest of what is in them: spooled updates and models. Models may be sealed at rest ([`sealed`]).
//!
//! A file appears under its name only when all of it is on the disk: written beside, synced, renamed,
//! and the folder synced.

pub mod sealed;

use bytes::Bytes;
use falaj_core::id::Digest;
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use rustix::fs::{Advice, fadvise};
use sealed::{FileKeys, KeyError, KeyName, KeySource, Reader, Sealer};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read as _, Write as _},
    num::NonZeroU64,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::spawn_blocking;

/// How a file that is still being written ends.
const PARTIAL: &str = ".partial";
/// After so many bytes the system is asked to begin writing them out, so that little is left to wait for
/// at the end.
const WRITE_OUT_BYTES: u64 = 1 << 20;

/// A folder of such files.
#[derive(Clone, Debug)]
pub struct Blobs {
    dir: PathBuf,
    /// What seals them, if anything does.
    keys: Option<Arc<dyn KeySource>>,
}

/// A file that is being written; its methods block. Dropped before [`Writing::finish`], it leaves nothing
/// behind.
pub struct Writing {
    file: File,
    path: PathBuf,
    dir: PathBuf,
    sealer: Option<Sealer>,
    written: u64,
    written_out: u64,
    done: bool,
}

impl Blobs {
    /// Opens the folder and removes what a crash left half written.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        for file in fs::read_dir(dir)? {
            let file = file?;
            if file.file_name().to_string_lossy().ends_with(PARTIAL) {
                fs::remove_file(file.path())?;
            }
        }
        Ok(Self { dir: dir.to_owned(), keys: None })
    }

    /// The same, sealed from now on by the key in this file, which is made if there is none; those that sealed before open what they
    /// sealed. What is there in clear stays so. Without a key nothing may be sealed.
    ///
    /// # Errors
    /// [`KeyError`]: also when something is sealed by a key that is not named.
    pub fn sealed(self, now: Option<&Path>, before: &[PathBuf]) -> Result<Self, KeyError> {
        let found = self.sealed_by().map_err(|e| KeyError::Read(self.dir.clone(), e))?;
        let keys: Option<Arc<dyn KeySource>> = match (now, found.iter().next()) {
            (Some(now), _) => Some(Arc::new(FileKeys::load(now, before, &found)?)),
            (None, Some((name, file))) => return Err(KeyError::missing(file, *name)),
            (None, None) => None,
        };
        Ok(Self { keys, ..self })
    }

    /// The keys by which files are sealed, each with one of them.
    fn sealed_by(&self) -> io::Result<BTreeMap<KeyName, PathBuf>> {
        let mut found = BTreeMap::new();
        for file in fs::read_dir(&self.dir)? {
            let path = file?.path();
            if let Some(name) = sealed::sealed_by(&mut BufReader::new(File::open(&path)?))? {
                found.entry(name).or_insert(path);
            }
        }
        Ok(found)
    }

    /// Reads a file from its beginning. Blocks, as what it gives does.
    ///
    /// # Errors
    /// When it is not there, cannot be read, or is sealed by a key that is not there.
    pub fn reader(&self, digest: &Digest) -> io::Result<Reader> {
        Reader::open(&self.path(digest), self.keys.as_deref())
    }

    /// A file in blocks of so many bytes, and how many bytes there are. Instead of its last block there is an error if it is not
    /// what it is named by: whoever has all blocks has what was stored.
    ///
    /// # Errors
    /// As [`Self::reader`].
    pub async fn blocks(
        &self,
        digest: &Digest,
        bytes: usize,
    ) -> io::Result<(u64, BoxStream<'static, io::Result<Bytes>>)> {
        let (this, digest) = (self.clone(), *digest);
        let reader = spawn_blocking(move || this.reader(&digest)).await??;
        let length = reader.length();
        let begun = (reader, Sha256::new(), length);
        let blocks = stream::try_unfold(begun, move |(mut reader, mut hash, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let read = spawn_blocking(move || {
                let mut block = vec![0; usize::try_from(left).unwrap_or(bytes).min(bytes)];
                reader.read_exact(&mut block)?;
                hash.update(&block);
                let left = left - block.len() as u64;
                if left == 0 {
                    check(&digest, Digest(hash.clone().finalize().into()))?;
                }
                io::Result::Ok((Bytes::from(block), (reader, hash, left)))
            });
            read.await?.map(Some)
        });
        Ok((length, blocks.boxed()))
    }

    /// Where the file with this digest lies.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    /// Begins a file; `tag` keeps files that are written at once apart. Blocks.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn begin(&self, tag: &str) -> io::Result<Writing> {
        let path = self.dir.join(format!("{tag}{PARTIAL}"));
        let mut file = File::create(&path)?;
        let sealer = match &self.keys {
            Some(keys) => {
                let (sealer, head) = Sealer::new(&**keys)?;
                file.write_all(&head)?;
                Some(sealer)
            }
            None => None,
        };
        let dir = self.dir.clone();
        Ok(Writing { file, path, dir, sealer, written: 0, written_out: 0, done: false })
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn put(&self, digest: Digest, bytes: Vec<u8>) -> io::Result<()> {
        let this = self.clone();
        let written = spawn_blocking(move || {
            if fs::exists(this.path(&digest))? {
                return Ok(());
            }
            let mut writing = this.begin(&digest.to_string())?;
            writing.write(&bytes)?;
            writing.finish(&digest)
        });
        written.await?
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub async fn read(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        let (this, digest) = (self.clone(), *digest);
        let read = spawn_blocking(move || {
            let mut bytes = Vec::new();
            this.reader(&digest)?.read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        read.await?
    }
}

impl Writing {
    /// Appends bytes.
    ///
    /// # Errors
    /// When they cannot be written, for example because the disk is full.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.sealer {
            Some(sealer) => {
                let sealed = sealer.take(bytes)?;
                self.put(&sealed)
            }
            None => self.put(bytes),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        let waiting = self.written - self.written_out;
        if waiting >= WRITE_OUT_BYTES {
            // An advice: Linux starts to write these pages out, and does not wait. Nothing depends on it.
            let _ =
                fadvise(&self.file, self.written_out, NonZeroU64::new(waiting), Advice::DontNeed);
            self.written_out = self.written;
        }
        Ok(())
    }

    /// Makes it durable under its digest, which the caller has checked.
    ///
    /// # Errors
    /// When it cannot be synced or renamed.
    pub fn finish(mut self, digest: &Digest) -> io::Result<()> {
        if let Some(mut sealer) = self.sealer.take() {
            self.put(&sealer.finish()?)?;
        }
        self.file.sync_data()?;
        fs::rename(&self.path, self.dir.join(digest.to_string()))?;
        self.done = true;
        File::open(&self.dir)?.sync_all()
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// That what was read is what a file is named by.
///
/// # Errors
/// When it is not: the file was changed, or is another's.
pub fn check(named: &Digest, found: Digest) -> io::Result<()> {
    if found == *named {
        return Ok(());
    }
    let why = format!("the stored file {named} has SHA-256 {found}: restore it from a backup");
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
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
        let blobs = Blobs::open(dir.path()).expect("opens");
        let bytes = vec![7; usize::try_from(WRITE_OUT_BYTES).expect("small") + 1];
        let digest = Digest::of(&bytes);
        let mut dropped = blobs.begin("x").expect("begins");
        dropped.write(b"ab").expect("writes");
        drop(dropped);
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 0);
        blobs.put(digest, bytes.clone()).await.expect("writes");
        assert_eq!(blobs.read(&digest).await.expect("reads"), bytes);
    }

    #[tokio::test]
    async fn a_sealed_file_is_read_as_it_was_written_and_needs_its_key() {
        let dir = tempfile::tempdir().expect("a folder");
        let (key, models) = (dir.path().join("key"), dir.path().join("models"));
        let open = |key: Option<&Path>| Blobs::open(&models).expect("opens").sealed(key, &[]);
        let clear = open(None).expect("nothing is sealed");
        let (old, new) = (vec![1; 100], vec![2; 200_000]);
        clear.put(Digest::of(&old), old.clone()).await.expect("writes");
        let blobs = open(Some(&key)).expect("a key is made");
        blobs.put(Digest::of(&new), new.clone()).await.expect("writes");
        for bytes in [old, new.clone()] {
            assert_eq!(blobs.read(&Digest::of(&bytes)).await.expect("reads"), bytes);
        }
        let on_disk = fs::read(blobs.path(&Digest::of(&new))).expect("reads");
        assert!(on_disk.len() > new.len() && !on_disk.windows(32).any(|w| w == &new[..32]));
        let (length, blocks) = blobs.blocks(&Digest::of(&new), 70_000).await.expect("opens");
        let blocks: Vec<_> =
            futures_util::TryStreamExt::try_collect::<Vec<_>>(blocks).await.expect("reads");
        assert_eq!((length, blocks.len(), blocks.concat()), (200_000, 3, new));
        assert!(matches!(open(None), Err(KeyError::Missing { .. })));
        fs::rename(&key, dir.path().join("lost")).expect("renamed");
        assert!(matches!(open(Some(&key)), Err(KeyError::Missing { .. })));
        assert!(!key.exists(), "no other key is made in its place");
    }

    #[tokio::test]
    async fn the_last_block_of_a_file_that_was_changed_or_is_anothers_is_kept_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let key = dir.path().join("key");
        for (folder, key) in [("clear", None), ("sealed", Some(&*key))] {
            let blobs = Blobs::open(&dir.path().join(folder)).expect("opens");
            let blobs = blobs.sealed(key, &[]).expect("its key");
            let (own, others) = (vec![1; 200_000], vec![2; 200_000]);
            let digest = Digest::of(&own);
            for bytes in [own, others.clone()] {
                blobs.put(Digest::of(&bytes), bytes).await.expect("writes");
            }
            fs::copy(blobs.path(&Digest::of(&others)), blobs.path(&digest)).expect("swapped");
            let (length, mut blocks) = blobs.blocks(&digest, 70_000).await.expect("opens");
            let mut got = 0;
            let why = loop {
                match blocks.next().await {
                    Some(Ok(block)) => got += block.len(),
                    Some(Err(why)) => break why.to_string(),
                    None => panic!("{folder}: all of another's file"),
                }
            };
            assert_eq!((length, got), (200_000, 140_000));
            assert!(why.contains(&digest.to_string()) && why.contains("restore it"), "{why}");
        }
    }

    #[test]
    fn what_a_crash_left_half_written_is_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("x.partial"), b"ab").expect("writes");
        Blobs::open(dir.path()).expect("opens");
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 0);
    }
}
