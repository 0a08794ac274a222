//! What has been spent and what is left, for people; and the ledger as a file for an auditor.

use crate::{
    config::{Config, DatasetConfig},
    ledger::Ledger,
};
use anyhow::{Context as _, Result, bail, ensure};
use falaj_certs::{keys::KeyAt, tls::Credentials, trust::TrustStore};
use falaj_core::{
    canon::Canon,
    dp::rdp::RdpCurve,
    id::{Digest, Role, SiteId, StudyId},
    ledger::{Ledger as Chain, OTHERS_CONTEXT, OtherPeople, head_bytes},
    note,
    study::{ROUNDS_MAX, Study},
};
use serde::Serialize;
use std::{fmt::Write as _, fs, path::Path};

/// What one data set has spent.
#[derive(Clone, Debug, Serialize)]
pub struct Budget {
    /// The data set.
    pub dataset: String,
    /// Epsilon over all studies, rounded up.
    pub epsilon: String,
    /// The delta at which all figures are stated.
    pub delta: f64,
    /// The most epsilon, over all studies.
    pub limit: f64,
    /// What one more release without amplification may cost, in epsilon at that delta.
    pub left: f64,
    /// How often a steward has stated that the people in it are others.
    pub generation: u32,
    /// By study.
    pub studies: Vec<Spent>,
}

/// What one study has spent on a data set.
#[derive(Clone, Debug, Serialize)]
pub struct Spent {
    /// The study.
    pub study: String,
    /// Epsilon, rounded up. Studies compose: the whole is less than the sum.
    pub epsilon: String,
}

/// What each data set has spent, and what is left.
///
/// # Errors
/// When the ledger cannot be read, or knows a data set that the configuration does not.
pub async fn budgets(config: &Config, ledger: &Ledger) -> Result<Vec<Budget>> {
    let chain = ledger.chain().await?;
    let studies = chain.studies();
    if let Some((lost, _)) = studies.iter().find(|(d, _)| config.dataset(d).is_none()) {
        bail!("the ledger knows data set `{lost}`, the configuration does not: add it back");
    }
    config.datasets.iter().map(|dataset| budget(dataset, &chain, &studies)).collect()
}

fn budget(dataset: &DatasetConfig, chain: &Chain, studies: &[(String, StudyId)]) -> Result<Budget> {
    let (name, delta) = (&dataset.name, dataset.delta);
    let whole = chain.spent(name, None);
    let own = studies.iter().filter(|(d, _)| d == name);
    let studies = own.map(|(_, study)| {
        let epsilon = chain.spent(name, Some(study)).epsilon(delta)?.to_string();
        anyhow::Ok(Spent { study: study.to_string(), epsilon })
    });
    Ok(Budget {
        dataset: name.clone(),
        epsilon: whole.epsilon(delta)?.to_string(),
        delta,
        limit: dataset.epsilon_limit,
        left: left(&whole, dataset)?,
        generation: chain.generation(name),
        studies: studies.collect::<Result<_>>()?,
    })
}

/// The epsilon, on its own at the data set's delta, of the dearest Gaussian release that still fits: found by
/// halving its rho, rounded down.
fn left(spent: &RdpCurve, dataset: &DatasetConfig) -> Result<f64> {
    let fits = |rho: f64| -> Result<bool> {
        let whole = spent.compose(&RdpCurve::zcdp(rho)?);
        Ok(whole.epsilon(dataset.delta)?.value() <= dataset.epsilon_limit)
    };
    let (mut low, mut high) = (1e-12, 1e6);
    if !fits(low)? {
        return Ok(0.0);
    }
    for _ in 0..80 {
        let middle = f64::sqrt(low * high);
        if fits(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    let epsilon = RdpCurve::zcdp(low)?.epsilon(dataset.delta)?.value();
    Ok((epsilon * 1e4).floor() / 1e4)
}

/// How many further rounds of a study the data set and the study's own limit allow.
///
/// # Errors
/// When the ledger cannot be read, or the data set is not here.
pub async fn rounds_left(config: &Config, ledger: &Ledger, study: &Study) -> Result<u32> {
    let name = &study.data.dataset;
    let dataset =
        config.dataset(name).with_context(|| format!("this site offers no data set `{name}`"))?;
    let chain = ledger.chain().await?;
    let (whole, own) = (chain.spent(name, None), chain.spent(name, Some(&study.id)));
    let fits = |rounds: u32| -> Result<bool> {
        let cost = study.cost_of_rounds(rounds)?.compose(&study.cost_of_evaluations(rounds)?);
        let within = |spent: &RdpCurve, delta, limit| -> Result<bool> {
            Ok(spent.compose(&cost).epsilon(delta)?.value() <= limit)
        };
        Ok(within(&whole, dataset.delta, dataset.epsilon_limit)?
            && within(&own, study.privacy.delta, study.privacy.epsilon_limit)?)
    };
    let (mut low, mut high) = (0, ROUNDS_MAX);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle)? {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Ok(low)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// The ledger as a file for an auditor: one entry per line, and a last line with its head, signed by this site.
/// `falaj-verify --ledger` reads it.
///
/// # Errors
/// When the ledger cannot be read, or the site's key cannot be used now.
pub async fn export(ledger: &Ledger, credentials: &Credentials, site: &SiteId) -> Result<String> {
    let chain = ledger.chain().await?;
    let head = head_bytes(site, chain.entries(), &chain.head());
    let key = credentials.signing_key();
    let signature = note::sign_context(&**key, falaj_core::ledger::HEAD_CONTEXT, &head)?;
    let mut out = String::new();
    let entries = ledger.entries().await?;
    let whole = usize::try_from(chain.entries()).unwrap_or(usize::MAX);
    for entry in entries.iter().take(whole) {
        out.push_str(&String::from_utf8_lossy(entry));
        out.push('\n');
    }
    let last = Canon::map([
        ("certificate", hex(credentials.certificate()).into()),
        ("head", String::from_utf8_lossy(&head).into_owned().into()),
        ("signature", hex(&signature).into()),
    ]);
    out.push_str(&String::from_utf8_lossy(&last.to_bytes()));
    out.push('\n');
    Ok(out)
}

/// Writes down, signed by a steward, that the people in a data set are others than before: what was spent so far
/// no longer counts against it.
///
/// # Errors
/// When the steward's certificate is not an operator's of this site's place, or the ledger cannot be written.
pub async fn other_people(
    config: &Config,
    ledger: &Ledger,
    site: &SiteId,
    (cert, key): (&Path, &KeyAt),
    (dataset, because): (&str, &str),
) -> Result<()> {
    ensure!(
        config.dataset(dataset).is_some(),
        "this site offers no data set `{dataset}`; `falaj-agent budget` lists those there are"
    );
    ensure!(because.trim().len() >= 20, "say in a sentence why the people are others: --because");
    let steward = Credentials::load(cert, key)?;
    let trust = TrustStore::load(&config.identity.trust)?;
    let identity = trust.identify(&[steward.certificate().into()])?;
    ensure!(
        identity.spiffe.role() == Role::Operator
            && identity.spiffe.place() == site.spiffe().place(),
        "{} is no operator in {}: only a steward of this site's place may say so",
        identity.spiffe,
        site.spiffe().place()
    );
    let chain = ledger.chain().await?;
    let statement = OtherPeople {
        site: site.clone(),
        dataset: dataset.to_owned(),
        head: chain.head(),
        because: because.trim().to_owned(),
    }
    .to_bytes();
    let signature = note::sign_context(&**steward.signing_key(), OTHERS_CONTEXT, &statement)?;
    let text = String::from_utf8(statement)?;
    ledger.other_people(&text, &signature, Digest::of(steward.certificate())).await?;
    Ok(())
}

/// Writes the export where a person asked for it, or to standard output. A file is on the disk when this returns.
///
/// # Errors
/// When it cannot be written.
pub fn write(out: Option<&Path>, text: &str) -> Result<()> {
    use std::io::Write as _;
    if let Some(path) = out {
        let written = || -> std::io::Result<()> {
            let mut file = fs::File::create(path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        written().with_context(|| format!("writing {}", path.display()))
    } else {
        let mut to = std::io::stdout().lock();
        to.write_all(text.as_bytes()).and_then(|()| to.flush()).context("writing the export")
    }
}
