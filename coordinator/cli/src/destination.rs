//! Where a mirror of the log lies: a folder, or a bucket of an object store that speaks S3.
//!
//! Both give the same: a file is there whole or not at all, one that is there is not changed, and `checkpoint` alone is
//! replaced, by one mirror at a time.

use anyhow::{Context as _, Result, bail, ensure};
use object_store::{
    Error as StoreError, ObjectStore as _, ObjectStoreExt as _, PutMode, UpdateVersion,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as Key,
};
use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// What the newest tree is.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// What keeps two mirrors of one folder apart.
const LOCK: &str = ".lock";

/// A destination.
pub(crate) enum Destination {
    /// A folder.
    Folder(Folder),
    /// A bucket, or what lies below a prefix in one.
    Bucket(Box<Bucket>),
}

impl Destination {
    /// Opens what a text names: a folder, `file:///folder` or `s3://bucket/prefix`.
    ///
    /// # Errors
    /// When it names something else, or another mirror writes to the folder.
    pub(crate) fn open(text: &str) -> Result<Self> {
        match text.split_once("://") {
            None => Ok(Self::Folder(Folder::open(Path::new(text))?)),
            Some(("file", path)) if path.starts_with('/') => {
                Ok(Self::Folder(Folder::open(Path::new(path))?))
            }
            // Credentials, region and endpoint as other tools have them: `AWS_ACCESS_KEY_ID` and so on.
            Some(("s3", place)) => Self::bucket(place, AmazonS3Builder::from_env()),
            Some(_) => bail!(
                "{text}: name a folder (`public/log`, `file:///srv/log`) or a bucket (`s3://bucket/prefix`)"
            ),
        }
    }

    /// Opens `bucket/prefix` at a store.
    ///
    /// # Errors
    /// When the name or the settings are none.
    pub(crate) fn bucket(place: &str, at: AmazonS3Builder) -> Result<Self> {
        let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
        let opening = || format!("s3://{place}");
        let prefix = Key::parse(prefix).with_context(opening)?;
        // The store's client takes the process's cryptography, which may have been set before.
        let _ = falaj_certs::tls::provider().install_default();
        let store = at.with_bucket_name(name).build().with_context(opening)?;
        let name = name.to_owned();
        Ok(Self::Bucket(Box::new(Bucket { store, name, prefix, newest: None })))
    }

    /// What it is called in messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Folder(folder) => folder.root.display().to_string(),
            Self::Bucket(bucket) => format!("s3://{}/{}", bucket.name, bucket.prefix),
        }
    }

    /// A folder for what has come and was not looked at yet: on the same disk, if there is one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn scratch(&self) -> io::Result<TempDir> {
        match self {
            Self::Folder(folder) => {
                tempfile::Builder::new().prefix(".incoming").tempdir_in(&folder.root)
            }
            Self::Bucket(_) => tempfile::tempdir(),
        }
    }

    /// The checkpoint that is there. It is this one that [`Self::publish`] replaces.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) async fn newest(&mut self) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Folder(folder) => folder.read(CHECKPOINT),
            Self::Bucket(bucket) => {
                let there = bucket.read(CHECKPOINT).await?;
                bucket.newest = there.as_ref().map(|(_, version)| version.clone());
                Ok(there.map(|(bytes, _)| bytes))
            }
        }
    }

    /// A file, if it is there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) async fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Folder(folder) => folder.read(path),
            Self::Bucket(bucket) => Ok(bucket.read(path).await?.map(|(bytes, _)| bytes)),
        }
    }

    /// Writes a file that does not change any more. Whether it was not there yet.
    ///
    /// # Errors
    /// When it is there with other bytes, or cannot be written.
    pub(crate) async fn put(&mut self, path: &str, bytes: &[u8]) -> Result<bool> {
        let there = match self {
            Self::Folder(folder) => {
                if let Some(there) = folder.read(path)? {
                    there
                } else {
                    folder.write(path, bytes)?;
                    return Ok(true);
                }
            }
            Self::Bucket(bucket) => {
                if bucket.create(path, bytes).await? {
                    return Ok(true);
                }
                bucket.read(path).await?.map(|(there, _)| there).unwrap_or_default()
            }
        };
        ensure!(
            there == bytes,
            "{}/{path} is there already, with other bytes: what is there is not this log's, or was changed; mirror to a new place",
            self.name()
        );
        Ok(false)
    }

    /// Replaces the checkpoint, once all that was written before is durable.
    ///
    /// # Errors
    /// When it cannot be written, or another mirror was faster.
    pub(crate) async fn publish(&mut self, note: &[u8]) -> Result<()> {
        match self {
            Self::Folder(folder) => {
                folder.settle()?;
                folder.write(CHECKPOINT, note)?;
                folder.settle()
            }
            Self::Bucket(bucket) => bucket.publish(note).await,
        }
    }
}

/// A folder, which one mirror at a time holds.
pub(crate) struct Folder {
    root: PathBuf,
    /// Folders in which something is new, and not durable yet.
    changed: BTreeSet<PathBuf>,
    _lock: File,
}

impl Folder {
    fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("making {}", root.display()))?;
        let path = root.join(LOCK);
        let lock = File::create(&path).with_context(|| format!("writing {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("{}: another `falaj log mirror` writes there", root.display())
            }
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("locking {}", path.display()));
            }
        }
        Ok(Self { root: root.to_owned(), changed: BTreeSet::new(), _lock: lock })
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let path = self.root.join(path);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Writes a file whole or not at all. It is durable once [`Self::settle`] was.
    fn write(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(path);
        let write = || {
            let folder = path.parent().unwrap_or(&self.root);
            fs::create_dir_all(folder)?;
            let partial = path.with_extension("partial");
            let mut file = File::create(&partial)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(partial, &path)?;
            Ok::<_, io::Error>(folder.to_owned())
        };
        let folder = write().with_context(|| format!("writing {}", path.display()))?;
        let above = folder.ancestors().take_while(|above| above.starts_with(&self.root));
        self.changed.extend(above.map(Path::to_owned));
        Ok(())
    }

    /// Makes names durable, too.
    fn settle(&mut self) -> Result<()> {
        for folder in std::mem::take(&mut self.changed) {
            let sync = File::open(&folder).and_then(|folder| folder.sync_all());
            sync.with_context(|| format!("writing {}", folder.display()))?;
        }
        Ok(())
    }
}

/// A bucket. What is put there is durable, and the store itself sees to it that nothing is written twice.
pub(crate) struct Bucket {
    store: AmazonS3,
    name: String,
    prefix: Key,
    /// The checkpoint that was read.
    newest: Option<UpdateVersion>,
}

impl Bucket {
    fn key(&self, path: &str) -> Key {
        path.split('/').fold(self.prefix.clone(), Key::join)
    }

    async fn read(&self, path: &str) -> Result<Option<(Vec<u8>, UpdateVersion)>> {
        let key = self.key(path);
        let reading = || format!("reading s3://{}/{key}", self.name);
        let found = match self.store.get(&key).await {
            Ok(found) => found,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(e).with_context(reading),
        };
        let (e_tag, version) = (found.meta.e_tag.clone(), found.meta.version.clone());
        let bytes = found.bytes().await.with_context(reading)?;
        Ok(Some((bytes.into(), UpdateVersion { e_tag, version })))
    }

    /// Writes an object unless it is there. Whether it was not.
    async fn create(&self, path: &str, bytes: &[u8]) -> Result<bool> {
        let key = self.key(path);
        match self.store.put_opts(&key, bytes.to_vec().into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(StoreError::AlreadyExists { .. }) => Ok(false),
            Err(e) => Err(e).with_context(|| format!("writing s3://{}/{key}", self.name)),
        }
    }

    async fn publish(&mut self, note: &[u8]) -> Result<()> {
        let key = self.key(CHECKPOINT);
        let mode = self.newest.take().map_or(PutMode::Create, PutMode::Update);
        match self.store.put_opts(&key, note.to_vec().into(), mode.into()).await {
            Ok(_) => Ok(()),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => bail!(
                "s3://{}/{key} was replaced meanwhile: another `falaj log mirror` writes there",
                self.name
            ),
            Err(e) => Err(e).with_context(|| format!("writing s3://{}/{key}", self.name)),
        }
    }
}
