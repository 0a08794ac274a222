//! The agent's configuration: TOML, read once. What it permits is final here; `site.cedar` beside it can narrow that.

use crate::tpm::{Device, Handle};
use falaj_certs::keys::KeyAt;
use falaj_core::{id::Place, tpm::REGISTERS};
use falaj_policies::SITE_POLICIES;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Threads for training unless the configuration says otherwise.
const THREADS: usize = 1;
/// Registers that a quote is over unless the configuration says otherwise: firmware, its extensions, what it started, and the state
/// of secure boot.
const PCRS: [u8; 4] = [0, 2, 4, 7];

/// Everything that can be configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who the site is.
    pub identity: IdentityConfig,
    /// Where the coordinator is.
    pub coordinator: CoordinatorConfig,
    /// What the site permits.
    pub policy: SitePolicy,
    /// Records that the site offers.
    #[serde(rename = "dataset")]
    pub datasets: Vec<DatasetConfig>,
    /// How it trains.
    #[serde(default)]
    pub train: TrainConfig,
    /// Where its state lies.
    pub state: StateConfig,
    /// Where the site says that it keeps and uses records.
    #[serde(default)]
    pub declared: DeclaredConfig,
    /// The TPM that it gives quotes of; none when absent.
    pub tpm: Option<TpmConfig>,
    /// What it takes away from itself.
    #[serde(default)]
    pub sandbox: SandboxConfig,
    /// The site's own policy, beside this file; there need not be one.
    #[serde(skip)]
    pub site_policy: PathBuf,
}

/// Who the site is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Its key, which also signs updates: a PEM file with mode 0600, or `pkcs11:…`.
    pub key: KeyAt,
    /// Whom the federation trusts.
    pub trust: PathBuf,
    /// The certificate of the root that signs issuers, PEM. With it the agent follows the coordinator to new issuers that this
    /// root has signed, for places that `trust` has already; it follows to none when absent.
    pub root: Option<PathBuf>,
    /// Whether the agent has its certificate renewed by the coordinator, if that does so.
    #[serde(default = "yes")]
    pub renew: bool,
}

fn yes() -> bool {
    true
}

/// Where the coordinator is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// `host:port`.
    pub address: String,
}

/// What the site permits; the coordinator can narrow it, never widen it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SitePolicy {
    /// Places in which the coordinator may lie: `jurisdiction/region` or `jurisdiction/*`.
    pub coordinator_places: Vec<String>,
    /// Studies that may use the site's records, by name; `*` for any.
    #[serde(default = "any")]
    pub studies: Vec<String>,
    /// Mechanisms that may seal updates; `none` lets them out without noise.
    #[serde(default = "private")]
    pub mechanisms: Vec<String>,
}

fn any() -> Vec<String> {
    vec!["*".into()]
}

fn private() -> Vec<String> {
    ["dp_sgd", "dp_ftrl", "local_gaussian", "distributed_gaussian"].map(Into::into).to_vec()
}

/// Records that the site offers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// The name by which studies ask for it.
    pub name: String,
    /// A folder of CSV files, or one file.
    pub path: PathBuf,
    /// The most epsilon that all studies together may spend on it.
    pub epsilon_limit: f64,
    /// The delta at which that epsilon is stated.
    pub delta: f64,
    /// Columns that say whose a record is: all records of one identity are held out together, or none of them. Without any, the
    /// whole row is its identity.
    #[serde(default)]
    pub identity: Vec<String>,
}

/// How the site trains.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// `auto`, `cpu`, or `cuda:0`.
    pub device: String,
    /// `auto`, `torch`, or `linear`.
    pub trainer: String,
    /// CPU threads.
    pub threads: usize,
    /// The `lib` folder of a full PyTorch, for training on a GPU.
    pub libtorch_cuda: Option<PathBuf>,
    /// `f32`, or `mixed`: products in bfloat16, norms, clipping and sums in f32.
    pub precision: String,
    /// One record at a time instead of book-keeping: many times slower, to check against.
    pub micro_batches: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            device: "auto".into(),
            trainer: "auto".into(),
            threads: THREADS,
            libtorch_cuda: None,
            precision: "f32".into(),
            micro_batches: false,
        }
    }
}

/// Where the site says that it keeps and uses records. The coordinator is told, and its policies decide over it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeclaredConfig {
    /// Where records are stored: `ae-on/ae-az`.
    #[serde(deserialize_with = "place")]
    pub storage: Option<Place>,
    /// Where it trains.
    #[serde(deserialize_with = "place")]
    pub compute: Option<Place>,
}

fn place<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Place>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// The TPM of the site's machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmConfig {
    /// Where it is: `/dev/tpmrm0`, or `swtpm:path=…` for the socket of one in software.
    #[serde(default)]
    pub device: Device,
    /// The persistent handle of its attestation key: `0x81010002`.
    pub key: Handle,
    /// The registers of its SHA-256 bank that a quote is over.
    #[serde(default = "pcrs")]
    pub pcrs: Vec<u8>,
}

fn pcrs() -> Vec<u8> {
    PCRS.to_vec()
}

/// What the agent takes away from itself before it touches records (Landlock, seccomp).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxConfig {
    /// Whether it does.
    pub mode: SandboxMode,
    /// Folders that the module of a key in a token reads and writes: where its tokens lie, and its configuration.
    pub token_dirs: Vec<PathBuf>,
}

/// Whether the agent restricts itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxMode {
    /// As far as the kernel can; what it lacks is a warning.
    #[default]
    Available,
    /// Wholly, or the agent does not start.
    Required,
    /// Not at all.
    Off,
}

/// Where state lies: ledger, journal, caches.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateConfig {
    /// The folder.
    pub dir: PathBuf,
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
    /// A value is wrong.
    #[error("{file}, `{key}`: {what}; {mend}")]
    Value {
        /// The file.
        file: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong.
        what: String,
        /// What to do.
        mend: &'static str,
    },
}

impl Config {
    /// Reads a configuration; paths in it are relative to the file.
    ///
    /// # Errors
    /// [`ConfigError`], with file, key, what, and how to mend it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|e| ConfigError::Read(path.to_owned(), e))?;
        let mut this: Self =
            toml::from_str(&text).map_err(|e| ConfigError::Toml(path.to_owned(), Box::new(e)))?;
        let base = path.parent().unwrap_or(Path::new("."));
        let id = &mut this.identity;
        for p in [&mut id.cert, &mut id.trust, &mut this.state.dir] {
            *p = base.join(&*p);
        }
        id.key = id.key.clone().below(base);
        for dir in &mut this.sandbox.token_dirs {
            *dir = base.join(&*dir);
        }
        id.root = id.root.as_ref().map(|root| base.join(root));
        this.site_policy = base.join(SITE_POLICIES);
        for d in &mut this.datasets {
            d.path = base.join(&d.path);
        }
        this.check(path)?;
        Ok(this)
    }

    fn check(&self, file: &Path) -> Result<(), ConfigError> {
        let wrong = |key, what: String, mend| {
            Err(ConfigError::Value { file: file.to_owned(), key, what, mend })
        };
        if self.policy.coordinator_places.is_empty() {
            return wrong(
                "policy.coordinator_places",
                "no coordinator would be spoken to".into(),
                "name the places that you permit, for example [\"ae-on/*\"]",
            );
        }
        for place in &self.policy.coordinator_places {
            if place.replace("/*", "/x").parse::<Place>().is_err() {
                return wrong(
                    "policy.coordinator_places",
                    format!("`{place}` is not a place"),
                    "write `<jurisdiction>/<region>` or `<jurisdiction>/*`",
                );
            }
        }
        for d in &self.datasets {
            if d.epsilon_limit.is_nan() || d.epsilon_limit <= 0.0 {
                return wrong(
                    "dataset.epsilon_limit",
                    format!("`{}` may spend {}", d.name, d.epsilon_limit),
                    "give a positive number",
                );
            }
            if !(d.delta > 0.0 && d.delta < 1.0) {
                return wrong(
                    "dataset.delta",
                    format!("`{}` states delta {}", d.name, d.delta),
                    "give a number well below one over the number of records, for example 1e-5",
                );
            }
        }
        let pcrs = self.tpm.as_ref().map_or(&[][..], |tpm| &tpm.pcrs);
        if self.tpm.is_some() && (pcrs.is_empty() || pcrs.iter().any(|n| *n >= REGISTERS)) {
            return wrong(
                "tpm.pcrs",
                format!("{pcrs:?}"),
                "name registers from 0 to 23, those that the coordinator declares",
            );
        }
        let t = &self.train;
        if !["auto", "torch", "linear"].contains(&t.trainer.as_str()) {
            return wrong("train.trainer", format!("`{}`", t.trainer), "use auto, torch or linear");
        }
        if !["f32", "mixed"].contains(&t.precision.as_str()) {
            return wrong("train.precision", format!("`{}`", t.precision), "use f32 or mixed");
        }
        let cuda = t.device.strip_prefix("cuda:").is_some_and(|n| n.parse::<usize>().is_ok());
        if !cuda && !["auto", "cpu"].contains(&t.device.as_str()) {
            return wrong("train.device", format!("`{}`", t.device), "use auto, cpu or cuda:0");
        }
        Ok(())
    }

    /// The records bound to a name.
    #[must_use]
    pub fn dataset(&self, name: &str) -> Option<&DatasetConfig> {
        self.datasets.iter().find(|d| d.name == name)
    }
}
