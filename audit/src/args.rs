//! Words of the command line that the verifier and the report's maker share.

use clap::Args;
use falaj_certs::{timestamp::Issuers, trust::TrustFile};
use falaj_core::{
    id::{SpiffeId, StudyId},
    ml_dsa::MlDsaKey,
    note::VerifierKey,
    report::{Scope, moment},
};
use std::{
    error::Error as _,
    fs,
    path::{Path, PathBuf},
};

/// What the auditor knows from elsewhere.
#[derive(Debug, Args)]
pub struct Pins {
    /// The log's verifier key, as you know it from elsewhere. Without it the key in the bundle is used, which
    /// shows that the bundle is whole, not whose it is.
    #[arg(long)]
    pub log_key: Option<VerifierKey>,
    /// The log's second verifier key, of ML-DSA-44, as you know it from elsewhere: the checkpoint has to be signed by it as
    /// well. Refused by a build without the feature `ml-dsa`.
    #[arg(long, value_name = "KEY")]
    pub ml_dsa_key: Option<MlDsaKey>,
    /// Whom you trust to vouch for sites, witnesses and operators: a `trust.toml`, as you know it from elsewhere.
    /// Without it issuers are those that the coordinator trusted.
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// Who may have issued the certificates of time-stamp authorities: certificates in PEM, as you know them from
    /// elsewhere. Without it a time-stamp is worth what the log says about it.
    #[arg(long, value_name = "FILE")]
    pub tsa_ca: Option<PathBuf>,
}

impl Pins {
    /// The trust configuration, if one was given.
    ///
    /// # Errors
    /// Which file cannot be read, and why.
    pub fn trust(&self) -> Result<Option<TrustFile>, String> {
        self.trust.as_deref().map(read).transpose()
    }

    /// The issuers of time-stamp authorities' certificates, if some were given.
    ///
    /// # Errors
    /// Which file cannot be read, and why.
    pub fn tsa(&self) -> Result<Option<Issuers>, String> {
        self.tsa_ca.as_deref().map(Issuers::load).transpose()
    }
}

fn read(path: &Path) -> Result<TrustFile, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    TrustFile::parse(path, &text)
        .map_err(|e| format!("{e}: {}", e.source().map(ToString::to_string).unwrap_or_default()))
}

fn time(text: &str) -> Result<String, &'static str> {
    moment(text).ok_or("write a time in UTC, such as 2026-03, 2026-03-01 or 2026-03-01T09:30:00Z")
}

/// What a report is about; without any of it, all of the log.
#[derive(Debug, Args)]
pub struct Scoped {
    /// Only what happened from this time on, as `2026-03-01` or RFC 3339 in UTC.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<String>,
    /// Only what happened up to this time, or up to the end of this day, month or year.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub until: Option<String>,
    /// Only this study.
    #[arg(long)]
    pub study: Option<StudyId>,
    /// Only what this party did, or what was done with it: everything that the log holds about it.
    #[arg(long, value_name = "SPIFFE ID")]
    pub subject: Option<SpiffeId>,
}

impl Scoped {
    /// The scope.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope {
            since: self.since.clone().unwrap_or_default(),
            until: self.until.clone().unwrap_or_default(),
            study: self.study.clone(),
            subject: self.subject.clone(),
        }
    }
}
