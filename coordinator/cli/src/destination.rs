//! Where a mirror of the log lies: a folder, or a bucket of an object store that speaks S3.
//!
//! Both give the same: a file is there whole or not at all, one that is there is not changed, and `checkpoint` alone is
//! replaced, by one mirror at a time.
//!
//! A bucket is spoken to at the addresses that the coordinator is told of, and at no others: its name is looked up once for each
//! run, redirects are not followed, and no proxy is asked.

use anyhow::{Context as _, Result, bail, ensure};
use object_store::{
    ClientConfigKey, ClientOptions, Error as StoreError, ObjectStore as _, ObjectStoreExt as _,
    PutMode, UpdateVersion,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpClient, HttpConnector},
    path::Path as Key,
    signer::Signer as _,
};
use reqwest::{Method, redirect::Policy};
use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use tokio::net::lookup_host;

/// Addresses of a bucket's host that count: what the coordinator takes.
const ADDRESSES_MAX: usize = 32;
/// How long a connection to a bucket may take, and a request.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const REQUEST_MAX: Duration = Duration::from_secs(30);

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
        let at = at.with_bucket_name(name);
        let nowhere = Only::default();
        let store = at.clone().with_http_connector(nowhere).build().with_context(opening)?;
        let name = name.to_owned();
        Ok(Self::Bucket(Box::new(Bucket { at, store, name, prefix, newest: None })))
    }

    /// Looks up where a bucket is; from now on it is spoken to there alone. Nothing for a folder.
    ///
    /// # Errors
    /// When the name leads nowhere.
    pub(crate) async fn look_up(&mut self) -> Result<Option<Only>> {
        match self {
            Self::Folder(_) => Ok(None),
            Self::Bucket(bucket) => Ok(Some(bucket.look_up().await?)),
        }
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

/// A name leads nowhere: it may lead somewhere later.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` leads to no address")]
pub(crate) struct Nowhere(String);

/// The one host that a bucket is spoken to at, and its addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Only {
    pub(crate) host: String,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Only {
    /// Where a store is by its settings, and by what its name leads to now.
    async fn of(at: &AmazonS3Builder) -> Result<Self> {
        // Signed by nobody, and not asked for: this alone says where requests go, however the bucket is addressed.
        let at = at.clone().with_skip_signature(false);
        let at = at.with_access_key_id("nobody").with_secret_access_key("nothing").build()?;
        let url = at.signed_url(Method::GET, &Key::from("nothing"), CONNECT_MAX).await?;
        let host = url.host_str().with_context(|| format!("{url} names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let found = lookup_host((host.as_str(), 0)).await;
        let found = found.with_context(|| Nowhere(host.clone()))?;
        let addresses: BTreeSet<IpAddr> = found.map(|at| at.ip()).take(ADDRESSES_MAX).collect();
        ensure!(!addresses.is_empty(), Nowhere(host));
        Ok(Self { host, addresses: addresses.into_iter().collect() })
    }
}

impl HttpConnector for Only {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp);
        let at: Vec<SocketAddr> = self.addresses.iter().map(|at| (*at, 0).into()).collect();
        let client = reqwest::Client::builder()
            .resolve_to_addrs(&self.host, &at)
            .redirect(Policy::none())
            .no_proxy()
            .https_only(plain.as_deref() != Some("true"))
            .http1_only()
            .connect_timeout(CONNECT_MAX)
            .timeout(REQUEST_MAX)
            .build();
        let failed = |e| StoreError::Generic { store: "S3", source: Box::new(e) };
        Ok(HttpClient::new(client.map_err(failed)?))
    }
}

/// A bucket. What is put there is durable, and the store itself sees to it that nothing is written twice.
pub(crate) struct Bucket {
    /// The settings.
    at: AmazonS3Builder,
    store: AmazonS3,
    name: String,
    prefix: Key,
    /// The checkpoint that was read.
    newest: Option<UpdateVersion>,
}

impl Bucket {
    async fn look_up(&mut self) -> Result<Only> {
        let opening = || format!("s3://{}", self.name);
        let only = Only::of(&self.at).await.with_context(opening)?;
        let store = self.at.clone().with_http_connector(only.clone()).build();
        // Connections of before went to where it was then.
        self.store = store.with_context(opening)?;
        Ok(only)
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinHandle,
    };

    /// Answers one request with these lines, and gives what was asked.
    async fn answering(listener: TcpListener, lines: String) -> String {
        let (mut stream, _) = listener.accept().await.expect("somebody comes");
        let (mut asked, mut block) = (String::new(), [0; 1024]);
        while !asked.contains("\r\n\r\n") {
            let read = stream.read(&mut block).await.expect("read");
            assert!(read > 0, "it ended: {asked}");
            asked += &String::from_utf8_lossy(&block[..read]);
        }
        let answer = format!("HTTP/1.1 {lines}content-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.expect("answered");
        asked
    }

    async fn at(host: &str, lines: &str) -> (AmazonS3Builder, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("it listens");
        let port = listener.local_addr().expect("an address").port();
        let builder = AmazonS3Builder::new()
            .with_endpoint(format!("http://{host}:{port}"))
            .with_allow_http(true)
            .with_region("me-central-1")
            .with_access_key_id("test")
            .with_secret_access_key("test")
            .with_bucket_name("logs");
        (builder, tokio::spawn(answering(listener, lines.to_owned())))
    }

    #[tokio::test]
    async fn a_bucket_is_spoken_to_at_the_addresses_that_were_told_and_at_no_others() {
        let _ = falaj_certs::tls::provider().install_default();
        // No name server knows this name: what is told is where it is.
        let (builder, asked) = at("bucket.invalid", "404 Not Found\r\n").await;
        let only = Only { host: "bucket.invalid".into(), addresses: vec![[127, 0, 0, 1].into()] };
        let told = builder.with_http_connector(only).build().expect("a store");
        let missing = told.get(&Key::from("checkpoint")).await.expect_err("it is not there");
        assert!(matches!(missing, StoreError::NotFound { .. }), "{missing}");
        assert!(asked.await.expect("it was asked").starts_with("GET /logs/checkpoint "));
        // Whoever is there cannot send it elsewhere.
        let elsewhere = TcpListener::bind("127.0.0.1:0").await.expect("it listens");
        let there = elsewhere.local_addr().expect("an address");
        let lines = format!("307 Temporary Redirect\r\nlocation: http://{there}/logs\r\n");
        let (builder, asked) = at("127.0.0.1", &lines).await;
        let place = "logs/2026";
        let mut bucket = Destination::bucket(place, builder).expect("a bucket");
        let only = bucket.look_up().await.expect("found").expect("over the network");
        assert_eq!((&*only.host, &only.addresses[..]), ("127.0.0.1", &[[127, 0, 0, 1].into()][..]));
        bucket.read("checkpoint").await.expect_err("it is sent elsewhere");
        asked.await.expect("it was asked");
        let followed = tokio::select! {
            biased;
            _ = elsewhere.accept() => true,
            () = std::future::ready(()) => false,
        };
        assert!(!followed);
    }

    #[tokio::test]
    async fn where_a_bucket_is_follows_from_its_settings() {
        let _ = falaj_certs::tls::provider().install_default();
        for (endpoint, host) in [("http://[::1]:9000", "::1"), ("https://127.0.0.1", "127.0.0.1")] {
            let at = AmazonS3Builder::new().with_endpoint(endpoint).with_allow_http(true);
            let at = at.with_region("me-central-1").with_bucket_name("logs");
            let only = Only::of(&at.with_skip_signature(true)).await.expect("found");
            assert_eq!(only.host, host);
            assert_eq!(only.addresses, [host.parse::<IpAddr>().expect("an address")]);
        }
        let nowhere = AmazonS3Builder::new().with_endpoint("https://bucket.invalid");
        let nowhere = nowhere.with_region("me-central-1").with_bucket_name("logs");
        let why = Only::of(&nowhere).await.expect_err("nowhere").to_string();
        assert!(why.contains("`bucket.invalid` leads to no address"), "{why}");
    }
}
