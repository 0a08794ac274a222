//! The witness's configuration and its key.

use anyhow::{Context as _, Result, ensure};
use ed25519_dalek::SigningKey;
use falaj_core::{note::VerifierKey, witness::WitnessKey};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Connections at once unless the configuration says otherwise.
const CONNECTIONS_MAX: usize = 256;
/// Seconds that a client has unless the configuration says otherwise.
const TIMEOUT_S: u64 = 10;
/// Seconds that it can be given.
const TIMEOUT_S_MAX: u64 = 60;

/// Everything that can be configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The witness's name in its cosignatures, for example `witness.regulator.example/1`. It never changes under one key.
    pub name: String,
    /// Its Ed25519 key, mode 0600, that `falaj-witness keygen` has made.
    pub key: PathBuf,
    /// The folder in which it keeps what it has seen. It must be there: a disk that is missing must not look like a first
    /// start.
    pub state: PathBuf,
    /// Where it listens. Keep plain HTTP on loopback, behind a reverse proxy, or give a certificate. Port 0 lets the system
    /// choose; see `--ready-file`.
    pub listen: SocketAddr,
    /// A certificate for HTTPS; plain HTTP when absent.
    pub tls: Option<Tls>,
    /// Connections at once.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// Seconds that a client has for TLS, for the head of a request, and for its body, each: 1 to 60.
    #[serde(default = "timeout_s")]
    pub timeout_s: u64,
    /// The logs that it watches.
    #[serde(rename = "log")]
    pub logs: Vec<LogEntry>,
}

const fn connections_max() -> usize {
    CONNECTIONS_MAX
}

const fn timeout_s() -> u64 {
    TIMEOUT_S
}

/// A certificate for HTTPS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The chain, PEM.
    pub cert: PathBuf,
    /// Its key, PEM, mode 0600.
    pub key: PathBuf,
}

/// One log.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// A verifier key of it, `<origin>+<8 hex digits>+<base64>`; an entry for each key that may sign for the origin.
    pub key: String,
}

impl Config {
    /// Reads a configuration; paths in it are relative to the file.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let mut this: Self =
            toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        ensure!(!this.logs.is_empty(), "{}: no [[log]] to watch", path.display());
        ensure!(
            (1..=TIMEOUT_S_MAX).contains(&this.timeout_s),
            "{}: `timeout_s` is from 1 to {TIMEOUT_S_MAX}",
            path.display()
        );
        let base = path.parent().unwrap_or(Path::new("."));
        let tls = this.tls.iter_mut().flat_map(|tls| [&mut tls.cert, &mut tls.key]);
        for p in [&mut this.key, &mut this.state].into_iter().chain(tls) {
            *p = base.join(&*p);
        }
        Ok(this)
    }

    /// The keys of each log by its origin.
    ///
    /// # Errors
    /// Which key is none.
    pub fn keys(&self) -> Result<BTreeMap<String, Vec<VerifierKey>>> {
        let mut keys: BTreeMap<String, Vec<VerifierKey>> = BTreeMap::new();
        for log in &self.logs {
            let key: VerifierKey =
                log.key.parse().with_context(|| format!("[[log]] key = \"{}\"", log.key))?;
            keys.entry(key.name().to_owned()).or_default().push(key);
        }
        Ok(keys)
    }

    /// The witness's own key.
    ///
    /// # Errors
    /// When it is not there, is none, or can be read by others.
    pub fn signer(&self) -> Result<SigningKey> {
        read_key(&self.key)
    }

    /// The public half, under the witness's name: what logs and auditors are given.
    ///
    /// # Errors
    /// As [`Self::signer`], and when the name is not one.
    pub fn verifier(&self) -> Result<WitnessKey> {
        WitnessKey::new(&self.name, self.signer()?.verifying_key())
            .with_context(|| format!("`{}` cannot be a witness's name", self.name))
    }
}

/// Makes a key in a file of its own, mode 0600, and gives the public half under this name.
///
/// # Errors
/// When the name is none, or the file is there already or cannot be written.
pub fn make_key(path: &Path, name: &str) -> Result<WitnessKey> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    let key = SigningKey::from_bytes(&secret);
    let verifier = WitnessKey::new(name, key.verifying_key())
        .with_context(|| format!("`{name}` cannot be a witness's name"))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    file.write_all(hex::encode(secret).as_bytes())?;
    file.sync_all()?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()?;
    Ok(verifier)
}

fn read_key(path: &Path) -> Result<SigningKey> {
    let at = || format!("{}: make a key with `falaj-witness keygen`", path.display());
    let mode = fs::metadata(path).with_context(at)?.permissions().mode() & 0o777;
    ensure!(
        mode & 0o077 == 0,
        "{0} can be read by others (mode {mode:o}): run `chmod 600 {0}`",
        path.display()
    );
    let mut secret = [0; 32];
    hex::decode_to_slice(fs::read_to_string(path).with_context(at)?.trim(), &mut secret)
        .with_context(|| format!("{} is no witness's key: restore it", path.display()))?;
    Ok(SigningKey::from_bytes(&secret))
}
