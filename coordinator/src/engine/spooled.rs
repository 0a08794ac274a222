//! A counted update as it is read again. It was checked when it came; what lies on the disk since then is held against
//! what was signed once more, whenever it goes into a model.

use crate::blob::Blobs;
use falaj_core::{id::Digest, round::UpdateRef};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::PathBuf,
};

/// Bytes read from the spool at once: whole values in every width.
pub(super) const BLOCK_BYTES: usize = 3 << 18;

/// Why a counted update never becomes part of a model, however often it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damaged {
    #[error("the stored update {0} is gone")]
    Gone(Digest),
    #[error("the stored update {0} ends too early")]
    Short(Digest),
    #[error("the stored update {signed} has SHA-256 {found}, which no site signed")]
    Other { signed: Digest, found: Digest },
}

/// A counted update on the disk.
#[derive(Clone, Debug)]
pub(super) struct Spooled {
    path: PathBuf,
    payload: Digest,
}

impl Spooled {
    pub(super) fn of(spool: &Blobs, update: &UpdateRef) -> Self {
        Self { path: spool.path(&update.payload), payload: update.payload }
    }

    /// # Errors
    /// [`Damaged`] when it is not there, or why it cannot be opened now.
    pub(super) fn open(&self) -> anyhow::Result<File> {
        File::open(&self.path).map_err(|e| self.failed(e))
    }

    /// What a failed reading means: some of it will fail for ever.
    pub(super) fn failed(&self, e: io::Error) -> anyhow::Error {
        match e.kind() {
            io::ErrorKind::NotFound => Damaged::Gone(self.payload).into(),
            io::ErrorKind::UnexpectedEof => Damaged::Short(self.payload).into(),
            _ => e.into(),
        }
    }

    /// Its `length` bytes in blocks, and the open file. They are what was signed when this succeeds, not before.
    ///
    /// # Errors
    /// [`Damaged`], why it cannot be read now, or what `take` gives.
    pub(super) fn each_block(
        &self,
        length: usize,
        mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<File> {
        let mut file = self.open()?;
        let mut hash = Sha256::new();
        let mut block = vec![0; BLOCK_BYTES.min(length)];
        let mut left = length;
        while left > 0 {
            let bytes = block.len().min(left);
            file.read_exact(&mut block[..bytes]).map_err(|e| self.failed(e))?;
            hash.update(&block[..bytes]);
            take(&block[..bytes])?;
            left -= bytes;
        }
        self.held_against(Digest(hash.finalize().into()))?;
        Ok(file)
    }

    /// All of it at once.
    ///
    /// # Errors
    /// [`Damaged`], or why it cannot be read now.
    pub(super) fn whole(&self) -> anyhow::Result<Vec<u8>> {
        let bytes = fs::read(&self.path).map_err(|e| self.failed(e))?;
        self.held_against(Digest::of(&bytes))?;
        Ok(bytes)
    }

    fn held_against(&self, found: Digest) -> Result<(), Damaged> {
        let signed = self.payload;
        if found == signed { Ok(()) } else { Err(Damaged::Other { signed, found }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(found: anyhow::Result<impl Sized>) -> Option<Damaged> {
        found.err().and_then(|e| e.downcast_ref().copied())
    }

    /// More than one block of it.
    #[tokio::test]
    async fn what_lies_on_the_disk_is_what_was_signed_or_is_not_taken() {
        let dir = tempfile::tempdir().expect("a folder");
        let spool = Blobs::open(dir.path()).expect("opens");
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(BLOCK_BYTES + 5).collect();
        let payload = Digest::of(&bytes);
        spool.put(payload, bytes.clone()).await.expect("writes");
        let update = Spooled::of(&spool, &UpdateRef { payload, header: payload, weight: 1 });
        let read = || {
            let mut found = Vec::new();
            update.each_block(bytes.len(), |block| {
                found.extend_from_slice(block);
                Ok(())
            })?;
            anyhow::Ok(found)
        };
        assert_eq!(read().expect("reads"), bytes);
        assert_eq!(update.whole().expect("reads"), bytes);
        let mut other = bytes.clone();
        other[BLOCK_BYTES] ^= 1;
        let changed = Some(Damaged::Other { signed: payload, found: Digest::of(&other) });
        fs::write(&update.path, &other).expect("writes");
        assert_eq!((damage(read()), damage(update.whole())), (changed, changed));
        fs::write(&update.path, &bytes[..BLOCK_BYTES]).expect("writes");
        assert_eq!(damage(read()), Some(Damaged::Short(payload)));
        assert!(damage(update.whole()).is_some());
        fs::remove_file(&update.path).expect("is there");
        let gone = Some(Damaged::Gone(payload));
        assert_eq!((damage(read()), damage(update.whole())), (gone, gone));
        // What cannot be read now may be later.
        fs::create_dir(&update.path).expect("a folder in its place");
        let failed = read().expect_err("a folder is no file");
        assert!(failed.is::<io::Error>() && !failed.is::<Damaged>(), "{failed:#}");
    }
}
