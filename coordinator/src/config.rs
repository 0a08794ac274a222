//! The coordinator's configuration: TOML, read once.

use crate::store::{self, Database, UrlError};
use falaj_certs::timestamp::Policy;
use falaj_core::{ml_dsa, time::Timestamp};
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Largest update payload that is taken unless the configuration says otherwise: 2 GiB.
const UPDATE_BYTES_MAX: u64 = 2 << 30;
/// Connections at once unless the configuration says otherwise.
const CONNECTIONS_MAX: usize = 12_000;
/// Uploads at once unless the configuration says otherwise.
const UPLOADS_MAX: usize = 64;

/// Everything that can be configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who the coordinator is.
    pub identity: IdentityConfig,
    /// Where it listens.
    pub listen: ListenConfig,
    /// Where its state lies.
    pub state: StateConfig,
    /// Its audit log.
    pub log: LogConfig,
    /// Its policies.
    pub policy: PolicyConfig,
    /// Who is let in no longer.
    #[serde(default)]
    pub revocation: RevocationConfig,
    /// What it takes at most.
    #[serde(default)]
    pub limits: Limits,
}

/// Who the coordinator is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Its key, PEM, mode 0600.
    pub key: PathBuf,
    /// Whom the federation trusts.
    pub trust: PathBuf,
}

/// Where the coordinator listens. Port 0 lets the system choose; see `--ready-file`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenConfig {
    /// For agents.
    pub grpc: SocketAddr,
    /// For operators.
    pub rest: SocketAddr,
    /// For Prometheus, in plain text: keep it on loopback. Off when absent.
    pub metrics: Option<SocketAddr>,
    /// For whoever reads the log's checkpoints and hash tiles (C2SP tlog-tiles), in plain HTTP: behind a reverse proxy, or on
    /// loopback. Off when absent.
    pub tiles: Option<SocketAddr>,
}

/// Where state lies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateConfig {
    /// The folder: updates and models, and the database unless it is elsewhere.
    pub dir: PathBuf,
    /// A database server for state and log. A SQLite file in the folder when absent.
    pub database: Option<DatabaseConfig>,
}

/// A PostgreSQL database.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// A file with the database's URL, `postgres://falaj_writer@host/falaj`, mode 0600: it may hold a password. Its role is
    /// the writer's that `falaj-coordinator database init` sets up.
    pub url_file: PathBuf,
}

impl StateConfig {
    /// Where state and log lie.
    ///
    /// # Errors
    /// When the file with the database's URL cannot be used.
    pub fn database(&self) -> Result<Database, UrlError> {
        Ok(match &self.database {
            None => Database::Sqlite(self.dir.join("coordinator.sqlite")),
            Some(database) => Database::Postgres(Box::new(store::url(&database.url_file)?)),
        })
    }
}

/// The audit log.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Its name in checkpoints, for example `falaj.demo/audit/2026`. Another name begins the next shard, at the next start at
    /// which no study runs.
    pub origin: String,
    /// Its Ed25519 key; `log.key` in the state folder when absent. Made on the first start.
    pub key: Option<PathBuf>,
    /// A second key, of ML-DSA-44, which signs checkpoints too. Made on the first start; it serves as long as the log does.
    /// None when absent.
    pub ml_dsa_key: Option<PathBuf>,
    /// The key before, while `key` replaces it.
    pub retiring: Option<RetiringConfig>,
    /// A file on another disk than the state folder, where the newest checkpoint is kept a second time: with it an
    /// older copy of the whole state folder is noticed at the start. None when absent.
    pub high_water: Option<PathBuf>,
    /// An authority that stamps the log with the time. None when absent.
    pub timestamps: Option<TimestampConfig>,
    /// A folder into which bundles and reports are written whenever a period is over. None when absent.
    pub reports: Option<ReportsConfig>,
    /// A written policy by which shards that have ended may be pruned. None when absent, and everything is kept.
    pub retention: Option<PathBuf>,
    /// Outside witnesses, which are asked to cosign new checkpoints.
    #[serde(default)]
    pub witnesses: Vec<WitnessConfig>,
}

/// An authority for time-stamps (RFC 3161). It sees digests only.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimestampConfig {
    /// Where it is asked: `http://`, because what it answers is signed.
    pub url: String,
    /// Certificates of those who may have issued the authority's, PEM.
    pub ca: PathBuf,
    /// The policy under which it is to stamp, an object identifier; its own choice when absent.
    pub policy: Option<Policy>,
}

/// Reports that are made without being asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportsConfig {
    /// An existing folder; what is written there is for nobody else to read (mode 0600).
    pub folder: PathBuf,
    /// How long a period is, in UTC.
    pub every: Every,
    /// Studies of which a report of their own is made too.
    #[serde(default)]
    pub studies: Vec<String>,
    /// Parties, by their SPIFFE IDs, of which a report of their own is made too.
    #[serde(default)]
    pub subjects: Vec<String>,
    /// Whether the authority in `log.timestamps` stamps the reports with the time.
    #[serde(default)]
    pub timestamp: bool,
}

/// How long a period is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Every {
    /// From midnight to midnight.
    Day,
    /// From Monday to Sunday (ISO 8601).
    Week,
    /// A month of the calendar.
    Month,
}

/// A witness that is asked over HTTP (C2SP tlog-witness).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessConfig {
    /// Where it is, without `/add-checkpoint`: `http://` or `https://`.
    pub url: String,
    /// Its verifier key, as its operator gave it: `<name>+<8 hex digits>+<base64>`.
    pub key: String,
    /// With `https://`: the certificate of the authority that vouches for it, PEM.
    pub ca: Option<PathBuf>,
}

/// A log key that is replaced.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiringConfig {
    /// Its file.
    pub key: PathBuf,
    /// The last day, in UTC, on which it signs beside the new one; once it is over this section can go.
    #[serde(deserialize_with = "last_day")]
    pub until: Timestamp,
}

/// The end of a day such as `"2027-01-31"`.
fn last_day<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    let end = text
        .parse::<jiff::civil::Date>()
        .and_then(|day| day.tomorrow()?.to_zoned(jiff::tz::TimeZone::UTC));
    let wrong = |_| D::Error::custom(format!("`{text}` is no day such as \"2027-01-31\""));
    Ok(Timestamp::from_millis(end.map_err(wrong)?.timestamp().as_millisecond()))
}

/// Policies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// The folder with `coordinator.cedar` and `coordinator.cedarschema`.
    pub dir: PathBuf,
}

/// Who is let in no longer, besides whom operators revoke. Files are read again when they change.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RevocationConfig {
    /// Issuers' revocation lists (RFC 5280), PEM or DER, one for each issuer. One that is too old lets nobody in.
    pub crls: Vec<PathBuf>,
    /// With lists: what becomes of certificates of whose issuer there is none.
    pub unknown: Unknown,
    /// A file of those denied at once, SPIFFE IDs or SHA-256 digests of certificates, one to a line.
    pub deny: Option<PathBuf>,
    /// What becomes of updates that a site sent before, in rounds that are not over.
    pub pending: Pending,
}

/// What becomes of certificates of whose issuer there is no revocation list.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// They are refused, and a list has to be named for every issuer.
    #[default]
    Deny,
    /// They are let in.
    Allow,
}

impl Unknown {
    /// Whether they are let in.
    #[must_use]
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allow)
    }
}

/// What becomes of a revoked site's updates in rounds that are not over. What is still on its way is refused in any case, and
/// what was sent by a certificate that has merely expired since stays.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pending {
    /// A round that counts one fails, and is tried again without the site: who revokes it rarely knows since when it lied.
    #[default]
    Drop,
    /// They stay: they were signed with a certificate that was good, and a receipt was given.
    Keep,
}

impl Pending {
    /// Whether they stay.
    #[must_use]
    pub const fn is_kept(self) -> bool {
        matches!(self, Self::Keep)
    }
}

/// What the coordinator takes at most.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of one update's payload.
    pub update_bytes_max: u64,
    /// Connections at once, agents and operators each.
    pub connections_max: usize,
    /// Uploads at once.
    pub uploads_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            update_bytes_max: UPDATE_BYTES_MAX,
            connections_max: CONNECTIONS_MAX,
            uploads_max: UPLOADS_MAX,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    /// The TOML is wrong.
    #[error("{0}: {1}")]
    Toml(PathBuf, Box<toml::de::Error>),
    /// A second key for the log, and no code for it.
    #[error(
        "{0}: `log.ml_dsa_key` is set, and this build does not sign with ML-DSA-44: use one that was built with `--features ml-dsa`"
    )]
    MlDsa(PathBuf),
}

impl Config {
    /// Reads a configuration; paths in it are relative to the file.
    ///
    /// # Errors
    /// [`ConfigError`], with file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|e| ConfigError::Read(path.to_owned(), e))?;
        let mut this: Self =
            toml::from_str(&text).map_err(|e| ConfigError::Toml(path.to_owned(), Box::new(e)))?;
        let base = path.parent().unwrap_or(Path::new("."));
        let identity = &mut this.identity;
        for p in [&mut identity.cert, &mut identity.key, &mut identity.trust] {
            *p = base.join(&*p);
        }
        this.state.dir = base.join(&this.state.dir);
        if let Some(database) = &mut this.state.database {
            database.url_file = base.join(&database.url_file);
        }
        let revocation = &mut this.revocation;
        for path in revocation.crls.iter_mut().chain(&mut revocation.deny) {
            *path = base.join(&*path);
        }
        this.policy.dir = base.join(&this.policy.dir);
        this.log.key =
            Some(this.log.key.map_or_else(|| this.state.dir.join("log.key"), |key| base.join(key)));
        this.log.ml_dsa_key = this.log.ml_dsa_key.map(|key| base.join(key));
        if this.log.ml_dsa_key.is_some() && !ml_dsa::BUILT {
            return Err(ConfigError::MlDsa(path.to_owned()));
        }
        if let Some(retiring) = &mut this.log.retiring {
            retiring.key = base.join(&retiring.key);
        }
        this.log.high_water = this.log.high_water.map(|path| base.join(path));
        if let Some(timestamps) = &mut this.log.timestamps {
            timestamps.ca = base.join(&timestamps.ca);
        }
        if let Some(reports) = &mut this.log.reports {
            reports.folder = base.join(&reports.folder);
        }
        this.log.retention = this.log.retention.map(|path| base.join(path));
        for ca in this.log.witnesses.iter_mut().filter_map(|w| w.ca.as_mut()) {
            *ca = base.join(&*ca);
        }
        Ok(this)
    }
}
