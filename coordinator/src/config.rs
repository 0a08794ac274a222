//! The coordinator's configuration: TOML, read once.

use crate::{
    refusals::LOGGED_MAX,
    store::{self, Database, UrlError},
};
use falaj_certs::{
    issue::{LIFETIME_MAX, LIFETIME_MIN},
    keys::KeyAt,
    timestamp::Policy,
};
use falaj_core::{
    evidence::Declared,
    id::Place,
    ml_dsa,
    roles::{OperatorRole, Roles},
    time::Timestamp,
};
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// Largest update payload that is taken unless the configuration says otherwise: 2 GiB.
const UPDATE_BYTES_MAX: u64 = 2 << 30;
/// Connections at once unless the configuration says otherwise.
const CONNECTIONS_MAX: usize = 12_000;
/// Uploads at once unless the configuration says otherwise.
const UPLOADS_MAX: usize = 64;
/// Sites are probed so often unless the configuration says otherwise: every ten minutes.
const PROBE_EVERY_S: u64 = 600;

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
    /// Giving certificates to sites. It gives none when absent.
    pub enrolment: Option<EnrolmentConfig>,
    /// What is asked about connections besides certificates.
    #[serde(default)]
    pub evidence: EvidenceConfig,
    /// Where the operator says that state and log are stored, and that it computes.
    #[serde(default)]
    pub declared: DeclaredConfig,
    /// What operators are there for.
    #[serde(default)]
    pub roles: RolesConfig,
    /// Operators who sign in at an identity provider. Off when absent.
    pub oidc: Option<OidcConfig>,
    /// An MLflow server that is told of studies. None when absent.
    pub tracking: Option<TrackingConfig>,
    /// What it takes at most.
    #[serde(default)]
    pub limits: Limits,
}

/// Where the operator says that state and log are stored, and that it computes. Policy decides over it, and sites are told.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeclaredConfig {
    /// Where state and log are stored, backups among them: `ae-on/ae-az`.
    #[serde(deserialize_with = "perhaps_place")]
    pub storage: Option<Place>,
    /// Where it computes.
    #[serde(deserialize_with = "perhaps_place")]
    pub compute: Option<Place>,
}

impl DeclaredConfig {
    /// The same, as it is told.
    #[must_use]
    pub fn told(&self) -> Declared {
        Declared { storage: self.storage.clone(), compute: self.compute.clone() }
    }
}

/// An MLflow server that is told of studies as they happen.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackingConfig {
    /// Where it is, without `/api`: `https://`, or `http://` at one of this machine's own addresses.
    pub mlflow: String,
    /// With `https://`: certificates of those who may vouch for it, PEM.
    pub ca: Option<PathBuf>,
    /// A file with the token that it wants (`Authorization: Bearer`), mode 0600.
    pub token_file: Option<PathBuf>,
    /// Where it lies: `ae-on/ae-az`. Policy decides over it before it is spoken to.
    #[serde(deserialize_with = "place")]
    pub place: Place,
}

/// Whether a URL names this machine, in an address that leads nowhere else.
#[must_use]
pub fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|at| at.is_loopback())
}

/// Giving certificates to sites: the first for a token, and each further one to whoever comes with the one before it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentConfig {
    /// Where sites come with their tokens, by TLS 1.3 without a certificate. Off when absent, and certificates are renewed all
    /// the same.
    pub address: Option<SocketAddr>,
    /// What tokens say of where that is: `host:port`. `address` when absent.
    pub public: Option<String>,
    /// The folder of an authority that `falaj-certs` made: issuers' keys lie there, the root's need not.
    pub authority: Option<PathBuf>,
    /// Instead of `authority` a program, with its arguments, that has somebody else's authority sign: it reads a signing
    /// request in PEM form and writes certificates. `{spiffe}`, `{place}` and `{lifetime_s}` stand for what is granted.
    pub command: Option<Vec<String>>,
    /// The certificate of the root that signs issuers, PEM: sites keep it, and can follow issuers that it signs. With
    /// `authority` the one in it when absent.
    pub root: Option<PathBuf>,
    /// How long a certificate lives, in seconds.
    #[serde(default = "lifetime_s", deserialize_with = "checked_lifetime_s")]
    pub lifetime_s: u64,
}

impl EnrolmentConfig {
    /// Whether tokens can say where sites enrol.
    fn reachable(&self) -> Result<(), ConfigError> {
        let port = |public: &String| {
            let (host, port) = public.rsplit_once(':')?;
            port.parse::<u16>().ok().filter(|port| *port > 0 && !host.is_empty())
        };
        match (&self.public, self.address) {
            (Some(public), _) if port(public).is_none() => Err(ConfigError::Public(public.clone())),
            (None, Some(address)) if address.ip().is_unspecified() => {
                Err(ConfigError::Unspecified(address))
            }
            _ => Ok(()),
        }
    }
}

/// How long a certificate lives unless the configuration says otherwise: a day.
fn lifetime_s() -> u64 {
    86_400
}

fn checked_lifetime_s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let life = u64::deserialize(deserializer)?;
    let (least, most) = (LIFETIME_MIN.as_secs(), LIFETIME_MAX.as_secs());
    if (least..=most).contains(&life) {
        return Ok(life);
    }
    Err(D::Error::custom(format!("`lifetime_s` is {life}; give {least} to {most}")))
}

/// Whoever signs.
#[derive(Clone, Debug)]
pub enum Authorised {
    /// An authority in this folder.
    Folder(PathBuf),
    /// Somebody else, through this program.
    Command(Vec<String>),
}

impl EnrolmentConfig {
    /// Whoever signs.
    ///
    /// # Errors
    /// [`ConfigError::Authority`] when that is nobody, or two.
    pub fn authorised(&self) -> Result<Authorised, ConfigError> {
        match (&self.authority, &self.command) {
            (Some(dir), None) => Ok(Authorised::Folder(dir.clone())),
            (None, Some(command)) if !command.is_empty() => {
                Ok(Authorised::Command(command.clone()))
            }
            _ => Err(ConfigError::Authority),
        }
    }

    /// How long a certificate lives.
    #[must_use]
    pub const fn lifetime(&self) -> Duration {
        Duration::from_secs(self.lifetime_s)
    }
}

/// Who the coordinator is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Its key: a PEM file with mode 0600, or `pkcs11:…`.
    pub key: KeyAt,
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
    /// The key that models are sealed by at rest (AES-256-GCM, a data key for each): a file with mode 0600, best on another disk,
    /// made if there is none. Models lie there in clear when absent.
    pub model_key: Option<PathBuf>,
    /// Keys that sealed models before: they open what they sealed.
    #[serde(default)]
    pub model_keys_before: Vec<PathBuf>,
}

/// A PostgreSQL database.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// A file with the database's URL, `postgres://falaj_writer@host/falaj`, mode 0600: it may hold a password. Its role is
    /// the writer's that `falaj-coordinator database init` sets up.
    pub url_file: PathBuf,
    /// Where it lies: `ae-on/ae-az`. Policy decides over it before it is spoken to.
    #[serde(deserialize_with = "place")]
    pub place: Place,
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
    /// Its Ed25519 key: a file, `log.key` in the state folder when absent, made on the first start; or `pkcs11:…`, which
    /// has to be there. It signs tasks and receipts too.
    pub key: Option<KeyAt>,
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
    /// Where it lies: `ae-on/ae-az`. Policy decides over it before it is spoken to.
    #[serde(deserialize_with = "place")]
    pub place: Place,
}

/// Reports that are made without being asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportsConfig {
    /// An existing folder; what is written there is for nobody else to read (mode 0600).
    pub folder: PathBuf,
    /// Where that lies, whatever is mounted there: `ae-on/ae-az`. Policy decides over it at the start, and before each report.
    #[serde(deserialize_with = "place")]
    pub place: Place,
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
    /// Where it lies: `ae-on/ae-az`. Policy decides over it before it is spoken to.
    #[serde(deserialize_with = "place")]
    pub place: Place,
}

/// A log key that is replaced.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiringConfig {
    /// Its file, or `pkcs11:…`.
    pub key: KeyAt,
    /// The last day, in UTC, on which it signs beside the new one; once it is over this section can go.
    #[serde(deserialize_with = "last_day")]
    pub until: Timestamp,
}

fn place<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Place, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn perhaps_place<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Place>, D::Error> {
    place(deserializer).map(Some)
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

/// Which roles operators have. What a role may do is in the policies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolesConfig {
    /// Those of whoever's certificate names no group at all. Every one when absent: whoever has issued certificates before
    /// there were roles gives them here, or none.
    #[serde(deserialize_with = "roles")]
    pub default: Roles,
    /// What each group stands for: an organisational unit of a certificate's subject, spelled just so. A group that is not
    /// here stands for the roles that it names, one or several with spaces between them, and for none if any word of it is
    /// another.
    #[serde(deserialize_with = "roles_by_group")]
    pub groups: BTreeMap<String, Roles>,
}

impl Default for RolesConfig {
    fn default() -> Self {
        Self { default: Roles::ALL, groups: BTreeMap::new() }
    }
}

impl RolesConfig {
    /// The roles of whoever is in these groups, by a certificate.
    #[must_use]
    pub fn of<S: AsRef<str>>(&self, groups: &[S]) -> Roles {
        if groups.is_empty() {
            return self.default;
        }
        let of = |group: &S| {
            let group = group.as_ref();
            let named = || -> Option<Roles> {
                group.split(' ').map(|word| word.parse::<OperatorRole>().ok()).collect()
            };
            self.groups.get(group).copied().unwrap_or_else(|| named().unwrap_or_default())
        };
        groups.iter().map(of).fold(Roles::NONE, Roles::and)
    }
}

/// Operators who sign in at an identity provider (OpenID Connect): for a token of it they get a certificate for a short time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// Where they come with tokens, by TLS 1.3 without a certificate. Nothing else is served there.
    pub address: SocketAddr,
    /// A folder with an authority, whose issuers sign the certificates; `trust.toml` has to bind them.
    pub authority: PathBuf,
    /// For how long such a certificate is valid.
    #[serde(default = "session_s")]
    pub session_s: u32,
    /// The providers.
    #[serde(rename = "provider")]
    pub providers: Vec<ProviderConfig>,
}

/// An identity provider.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Its name, as tokens have it in `iss`; what else there is to know of it is asked at
    /// `<issuer>/.well-known/openid-configuration`. `https://`.
    pub issuer: String,
    /// Certificates of those who may vouch for its server, PEM.
    pub ca: PathBuf,
    /// What `falaj login` is called there, a public client; ID tokens are for it.
    pub client_id: String,
    /// Where its people are: `ae-on/ae-az`. It vouches for that as an issuer of certificates does.
    #[serde(deserialize_with = "place")]
    pub place: Place,
    /// Where its server lies; `place` when absent. Policy decides over it before it is spoken to.
    #[serde(default, deserialize_with = "some_place")]
    pub server_place: Option<Place>,
    /// With what the names of its people begin here, lower-case letters and digits. No certificate of another issuer may name
    /// an operator so.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// The claim that names people here. The digest of issuer and subject when absent; give a claim only if the provider never
    /// gives a name to somebody else again, and people cannot choose it.
    pub name_claim: Option<String>,
    /// The claim that has people's groups.
    #[serde(default = "groups_claim")]
    pub groups_claim: String,
    /// Which roles a group stands for, spelled just so. Any other stands for none.
    #[serde(default, deserialize_with = "roles_by_group")]
    pub groups: BTreeMap<String, Roles>,
    /// What is asked for beside `openid`.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Whether people may sign in by a device flow, of which no nonce need be in the token: whoever gets hold of such a token
    /// before its end can use it, once.
    #[serde(default)]
    pub device: bool,
    /// The resource for which pipelines ask access tokens. None are taken when absent.
    pub resource: Option<String>,
    /// Pipelines: clients, and the roles of each.
    #[serde(default, deserialize_with = "roles_by_group")]
    pub clients: BTreeMap<String, Roles>,
}

/// For how long a certificate for a token is valid, unless the configuration says otherwise.
const SESSION_S: u32 = 3_600;
/// The shortest that the configuration can say.
const SESSION_S_MIN: u32 = 60;
/// The longest.
const SESSION_S_MAX: u32 = 12 * 3_600;

const fn session_s() -> u32 {
    SESSION_S
}

fn prefix() -> String {
    "sso".to_owned()
}

fn groups_claim() -> String {
    "groups".to_owned()
}

fn some_place<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Place>, D::Error> {
    place(deserializer).map(Some)
}

impl OidcConfig {
    /// What is wrong in it, if anything is.
    fn wrong(&self) -> Option<String> {
        if !(SESSION_S_MIN..=SESSION_S_MAX).contains(&self.session_s) {
            return Some(format!("`oidc.session_s` is {SESSION_S_MIN} to {SESSION_S_MAX}"));
        }
        if self.providers.is_empty() {
            return Some("`[oidc]` names no provider: add `[[oidc.provider]]`".to_owned());
        }
        for (i, provider) in self.providers.iter().enumerate() {
            let named = |what: &str| Some(format!("`oidc.provider` {}: {what}", provider.issuer));
            if !provider.issuer.starts_with("https://") {
                return named("`issuer` begins with https://");
            }
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            if !(1..=16).contains(&provider.prefix.len()) || !provider.prefix.bytes().all(plain) {
                return named("`prefix` has 1 to 16 lower-case letters and digits");
            }
            let others = &self.providers[..i];
            if others.iter().any(|other| other.prefix == provider.prefix) {
                return named("another provider has its `prefix`: give each one of its own");
            }
            if others.iter().any(|other| other.issuer == provider.issuer) {
                return named("it is there twice");
            }
            if !provider.clients.is_empty() && provider.resource.is_none() {
                return named("`clients` come with access tokens: set `resource`");
            }
            if provider.resource.as_ref() == Some(&provider.client_id) {
                return named(
                    "`resource` is not `client_id`: tokens of people and of pipelines are told apart by it",
                );
            }
        }
        None
    }
}

impl ProviderConfig {
    /// Where its server lies.
    #[must_use]
    pub fn server_place(&self) -> &Place {
        self.server_place.as_ref().unwrap_or(&self.place)
    }
}

/// A list of roles.
fn roles<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Roles, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let read = texts.iter().map(|text| text.parse::<OperatorRole>());
    read.collect::<Result<_, _>>().map_err(D::Error::custom)
}

/// Lists of roles by group.
fn roles_by_group<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Roles>, D::Error> {
    #[derive(Deserialize)]
    struct Listed(#[serde(deserialize_with = "roles")] Roles);
    let groups = BTreeMap::<String, Listed>::deserialize(deserializer)?;
    Ok(groups.into_iter().map(|(group, Listed(roles))| (group, roles)).collect())
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

/// What is asked about connections besides certificates. What becomes of the answers is policy's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvidenceConfig {
    /// Lists of networks and their places. They are read again when they change. Without any, addresses are not judged.
    pub networks: Vec<NetworksConfig>,
    /// Seconds between two probes of a site's round trip and clock, and of its TPM.
    pub probe_every_s: u64,
    /// A file with the sites of which quotes of a TPM are wanted: `[[site]]` with `id`, `key` and `pcrs`. It is read again when it
    /// changes. Nobody is asked for one when absent.
    pub tpms: Option<PathBuf>,
}

impl Default for EvidenceConfig {
    fn default() -> Self {
        Self { networks: Vec::new(), probe_every_s: PROBE_EVERY_S, tpms: None }
    }
}

/// A list of networks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworksConfig {
    /// Lines `network,place`; a provider's (RFC 8805) with `jurisdiction`.
    pub file: PathBuf,
    /// The jurisdiction in which a provider's lines count, `ae-on` for example. It says country and region only.
    pub jurisdiction: Option<String>,
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
    /// Handshakes that fail by one reason and are entries of their own, in a minute.
    pub refusals_logged_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            update_bytes_max: UPDATE_BYTES_MAX,
            connections_max: CONNECTIONS_MAX,
            uploads_max: UPLOADS_MAX,
            refusals_logged_max: LOGGED_MAX,
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
    /// Nobody signs certificates, or two do.
    #[error("`[enrolment]` names who signs: set either `authority` or `command`")]
    Authority,
    /// Tokens could not say where to enrol.
    #[error(
        "`enrolment.public` is `{0}`: write it as `host:port`, where sites reach the coordinator"
    )]
    Public(String),
    /// Neither could these.
    #[error(
        "`enrolment.address` is {0}, every address of this machine: say in `enrolment.public` where sites reach it, as `host:port`"
    )]
    Unspecified(SocketAddr),
    /// Operators cannot sign in so.
    #[error("{0}: {1}")]
    Oidc(PathBuf, String),
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
        for p in [&mut identity.cert, &mut identity.trust] {
            *p = base.join(&*p);
        }
        identity.key = identity.key.clone().below(base);
        this.state.dir = base.join(&this.state.dir);
        this.state.model_key = this.state.model_key.map(|key| base.join(key));
        for key in &mut this.state.model_keys_before {
            *key = base.join(&*key);
        }
        if let Some(database) = &mut this.state.database {
            database.url_file = base.join(&database.url_file);
        }
        let revocation = &mut this.revocation;
        for path in revocation.crls.iter_mut().chain(&mut revocation.deny) {
            *path = base.join(&*path);
        }
        if let Some(enrolment) = &mut this.enrolment {
            for path in enrolment.authority.iter_mut().chain(&mut enrolment.root) {
                *path = base.join(&*path);
            }
            enrolment.authorised()?;
            enrolment.reachable()?;
        }
        for list in &mut this.evidence.networks {
            list.file = base.join(&list.file);
        }
        this.evidence.tpms = this.evidence.tpms.map(|path| base.join(path));
        this.policy.dir = base.join(&this.policy.dir);
        let named = this.log.key.map(|key| key.below(base));
        this.log.key = Some(named.unwrap_or_else(|| KeyAt::File(this.state.dir.join("log.key"))));
        this.log.ml_dsa_key = this.log.ml_dsa_key.map(|key| base.join(key));
        if this.log.ml_dsa_key.is_some() && !ml_dsa::BUILT {
            return Err(ConfigError::MlDsa(path.to_owned()));
        }
        if let Some(retiring) = &mut this.log.retiring {
            retiring.key = retiring.key.clone().below(base);
        }
        this.log.high_water = this.log.high_water.map(|path| base.join(path));
        if let Some(timestamps) = &mut this.log.timestamps {
            timestamps.ca = base.join(&timestamps.ca);
        }
        if let Some(reports) = &mut this.log.reports {
            reports.folder = base.join(&reports.folder);
        }
        this.log.retention = this.log.retention.map(|path| base.join(path));
        if let Some(oidc) = &mut this.oidc {
            if let Some(what) = oidc.wrong() {
                return Err(ConfigError::Oidc(path.to_owned(), what));
            }
            oidc.authority = base.join(&oidc.authority);
            for provider in &mut oidc.providers {
                provider.ca = base.join(&provider.ca);
            }
        }
        if let Some(tracking) = &mut this.tracking {
            for path in tracking.ca.iter_mut().chain(&mut tracking.token_file) {
                *path = base.join(&*path);
            }
        }
        for ca in this.log.witnesses.iter_mut().filter_map(|w| w.ca.as_mut()) {
            *ca = base.join(&*ca);
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_stand_for_what_the_configuration_says_and_nobody_gets_more() {
        let text = "default = [\"approver\"]\ngroups = { \"Audit, Dubai\" = [\"auditor\"], operator = [] }";
        let roles: RolesConfig = toml::from_str(text).expect("roles");
        for (groups, wanted) in [
            (&[][..], "approver"),
            (&["Audit, Dubai"], "auditor"),
            (&["audit, dubai"], "none"),
            (&["site-steward"], "site-steward"),
            (&["approver auditor"], "approver, auditor"),
            (&["approver root"], "none"),
            // Listed, so the name counts no more.
            (&["operator"], "none"),
            (&["visitors"], "none"),
            // An organisational unit that is no text.
            (&[""], "none"),
            (&["Audit, Dubai", "data-scientist", "visitors"], "auditor, data-scientist"),
        ] {
            assert_eq!(roles.of(groups).to_string(), wanted, "{groups:?}");
        }
        assert_eq!(RolesConfig::default().of::<&str>(&[]), Roles::ALL);
        let wrong = toml::from_str::<RolesConfig>("groups = { x = [\"root\"] }");
        assert!(wrong.expect_err("no role").to_string().contains("`root` is no role"));
    }

    #[test]
    fn plain_http_is_for_this_machine_alone() {
        for (url, is_here) in [
            ("http://127.0.0.1:5000", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:5000", true),
            ("http://localhost:5000", true),
            ("http://10.0.0.1:5000", false),
            ("http://localhost.example", false),
            ("http://[::2]", false),
            ("http://mlflow", false),
        ] {
            assert_eq!(is_loopback(&url.parse().expect("a URL")), is_here, "{url}");
        }
    }

    #[test]
    fn what_is_wrong_with_signing_in_is_named() {
        let provider = "[[provider]]\nissuer = \"https://idp.test\"\nca = \"ca.pem\"\nclient_id = \"falaj-cli\"\nplace = \"ae-on/ae-az\"\n";
        let of = |session: &str, providers: &[&str]| {
            let text = format!("address = \"127.0.0.1:0\"\nauthority = \"ca\"\n{session}\n");
            let text = providers.iter().fold(text, |text, more| text + provider + more + "\n");
            toml::from_str::<OidcConfig>(&text).expect("a section").wrong().unwrap_or_default()
        };
        assert_eq!(of("", &[""]), "");
        assert_eq!(
            of("session_s = 43200", &["prefix = \"staff\"", ""]),
            "`oidc.provider` https://idp.test: it is there twice"
        );
        for (session, providers, said) in [
            ("session_s = 59", &[""][..], "60 to 43200"),
            ("session_s = 43201", &[""], "60 to 43200"),
            ("", &["prefix = \"so-so\""], "`prefix`"),
            ("", &["prefix = \"\""], "`prefix`"),
            ("", &["", ""], "another provider has its `prefix`"),
            ("", &["clients = { ci = [\"operator\"] }"], "set `resource`"),
            ("", &["resource = \"falaj-cli\""], "`resource` is not `client_id`"),
        ] {
            let found = of(session, providers);
            assert!(found.contains(said), "{session} {providers:?}: {found}");
        }
    }
}
