//! Asks outside witnesses to cosign checkpoints, by C2SP tlog-witness v1.0.0 over HTTP.
//!
//! Each witness is asked by a task of its own, one request at a time. What one of them does or fails to do is a line and a
//! metric; it never stops a round. What it signs is checked under its key before it is kept.

use crate::{
    config::WitnessConfig,
    endpoints::Within,
    metrics::Metrics,
    proofs,
    store::{
        Store, StoreError,
        writer::{Change, Commit, CommitError, Writer},
    },
    trusted::Trusted,
};
use anyhow::{Context as _, Result, ensure};
use falaj_certs::trust::TrustStore;
use falaj_core::{
    id::SiteId,
    study::Cohort,
    witness::{AddCheckpoint, WitnessKey, party_of_name},
};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// A witness is not asked more often than this.
const CADENCE: Duration = Duration::from_secs(3);
/// After failures, one upon the other, it is asked at least this often.
const BACK_OFF_MAX: Duration = Duration::from_mins(5);
/// A witness that has not answered by then is late.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read: a size, or a few lines.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// Requests for one cosignature: a witness that teaches another size each time is not followed further.
const REQUESTS_MAX: u32 = 3;

/// A witness that is asked over HTTP.
#[derive(Debug)]
pub struct Outside {
    url: Url,
    key: WitnessKey,
    http: Client,
}

/// Whose cosignatures stand behind a round for a study that wants that: those that count for a verifier too.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    trust_domain: String,
    outside: BTreeSet<String>,
}

impl Counted {
    /// Sites of the federation, and those of the outside witnesses that its trust configuration names.
    #[must_use]
    pub fn of(outside: &[Outside], trust: &TrustStore) -> Self {
        let asked = outside.iter().map(|outside| &outside.key);
        Self::new(trust.trust_domain(), asked, trust.witnesses())
    }

    fn new<'a>(
        trust_domain: &str,
        asked: impl Iterator<Item = &'a WitnessKey>,
        known: &[WitnessKey],
    ) -> Self {
        let mut outside = BTreeSet::new();
        for key in asked {
            if known.contains(key) {
                outside.insert(key.name().to_owned());
            } else {
                tracing::warn!(
                    witness = key.name(),
                    "`[[log.witnesses]]` has a witness that trust.toml does not name: its cosignatures are kept and count for nobody; add `[[witness]]` with `key = \"{key}\"` to `identity.trust`, and start again"
                );
            }
        }
        Self { trust_domain: trust_domain.to_owned(), outside }
    }

    /// The outside witnesses that count, by name.
    #[must_use]
    pub const fn outside(&self) -> &BTreeSet<String> {
        &self.outside
    }

    /// Whether the one who cosigns under this name counts for a study of this cohort.
    #[must_use]
    pub fn counts(&self, name: &str, cohort: &Cohort) -> bool {
        let site = || SiteId::try_from(party_of_name(name, &self.trust_domain)?).ok();
        self.outside.contains(name) || site().is_some_and(|site| cohort.admits(&site))
    }
}

/// Why there is no cosignature.
#[derive(Debug, thiserror::Error)]
enum NotCosigned {
    #[error("it cannot be reached, or was too slow")]
    Away(#[source] reqwest::Error),
    #[error("it answered {0}: {1}")]
    Refused(StatusCode, String),
    #[error("its answer cannot be read: {0}")]
    Garbled(&'static str),
    #[error("its answer has no cosignature under its key")]
    Unsigned,
    #[error(
        "it has {kept} entries of this log, which has {ours}: this log is an old copy, or another coordinator signs with its key; find out before you go on"
    )]
    Ahead { kept: u64, ours: u64 },
    #[error(
        "it has another history of this log's first {kept} entries: two were signed with its key; find out before you go on"
    )]
    Forked { kept: u64 },
    #[error("what is needed to ask it cannot be read")]
    Store(#[from] StoreError),
    #[error("its cosignature cannot be kept")]
    Commit(#[from] CommitError),
}

impl NotCosigned {
    /// The metric's label.
    const fn outcome(&self) -> &'static str {
        match self {
            Self::Away(_) => "away",
            Self::Refused(..) => "refused",
            Self::Garbled(_) => "garbled",
            Self::Unsigned => "unsigned",
            Self::Ahead { .. } => "ahead",
            Self::Forked { .. } => "forked",
            Self::Store(_) | Self::Commit(_) => "store",
        }
    }
}

/// The witnesses that a configuration names; `trust_domain` is the federation's. With `trusted` none is connected to at an address
/// outside the place in which it is declared.
///
/// # Errors
/// Which entry is wrong, and what to do.
pub fn load(
    configured: &[WitnessConfig],
    trust_domain: &str,
    trusted: Option<&Trusted>,
) -> Result<Vec<Outside>> {
    let mut names = BTreeSet::new();
    let one = |config: &WitnessConfig| {
        let at = || format!("`[[log.witnesses]]` with url `{}`", config.url);
        let key: WitnessKey = config.key.parse().with_context(at)?;
        let name = key.name();
        ensure!(
            !name.starts_with(&format!("{trust_domain}/")),
            "{}: `{name}` is a name in the federation itself, under which sites cosign",
            at()
        );
        ensure!(names.insert(name.to_owned()), "{}: `{name}` is there twice", at());
        let url = format!("{}/add-checkpoint", config.url.trim_end_matches('/'));
        let url: Url = url.parse().with_context(at)?;
        ensure!(["http", "https"].contains(&url.scheme()), "{}: neither http nor https", at());
        let mut roots = rustls::RootCertStore::empty();
        match &config.ca {
            Some(ca) => {
                let certificate = CertificateDer::from_pem_file(ca)
                    .map_err(|e| anyhow::anyhow!("{}: {}: {e}", at(), ca.display()))?;
                roots.add(certificate).with_context(at)?;
            }
            None => ensure!(url.scheme() == "http", "{}: https needs `ca`", at()),
        }
        let provider = Arc::new(falaj_certs::tls::provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = Client::builder();
        if let Some(trusted) = trusted {
            http = http.dns_resolver(Arc::new(Within::new(trusted.clone(), config.place.clone())));
        }
        let http = http
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(PATIENCE)
            .user_agent(concat!("falaj-coordinator/", env!("CARGO_PKG_VERSION")))
            .build()
            .with_context(at)?;
        Ok(Outside { url, key, http })
    };
    configured.iter().map(one).collect()
}

impl Outside {
    /// Has new checkpoints cosigned until shutdown.
    pub async fn run(
        self,
        store: Store,
        writer: Writer,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) {
        let name = self.key.name().to_owned();
        let (mut kept, mut wait, mut failed) = (None, CADENCE, false);
        let mut heads = writer.heads();
        loop {
            // After a failure the same checkpoint is due still; otherwise the log has to grow first.
            if !failed {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    grown = heads.changed() => if grown.is_err() { return },
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let asked = tokio::select! {
                () = shutdown.cancelled() => return,
                asked = self.ask(&store, &writer, &mut kept) => asked,
            };
            match asked {
                Ok(size) => {
                    metrics.witness_asked(&name, "cosigned");
                    metrics.witness_cosigned(&name, size);
                    // What has come since is due without a further entry.
                    failed = size < writer.head().0;
                    wait = CADENCE;
                }
                Err(e) => {
                    metrics.witness_asked(&name, e.outcome());
                    let why = format!("{:#}", anyhow::Error::from(e));
                    tracing::error!(witness = name, why, "an outside witness has not cosigned");
                    failed = true;
                    wait = (wait * 2).min(BACK_OFF_MAX);
                }
            }
        }
    }

    /// Has the newest checkpoint cosigned, and keeps that. `kept` is the size that the witness has, as far as is known.
    async fn ask(
        &self,
        store: &Store,
        writer: &Writer,
        kept: &mut Option<u64>,
    ) -> Result<u64, NotCosigned> {
        let Some((size, note)) = store.newest_checkpoint().await? else { return Ok(0) };
        let mut old = if let Some(old) = *kept {
            old
        } else {
            let all = store.witnesses().await?;
            let ours = all.into_iter().find(|(name, _)| name == self.key.name());
            ours.map_or(0, |(_, newest)| newest)
        };
        for _ in 0..REQUESTS_MAX {
            if old > size {
                return Err(NotCosigned::Ahead { kept: old, ours: size });
            }
            let proof = proofs::consistency(store, old, size).await?;
            let request = AddCheckpoint { old, proof, note: note.clone() };
            let answer = self.http.post(self.url.clone()).body(request.to_text()).send().await;
            let answer = answer.map_err(NotCosigned::Away)?;
            let status = answer.status();
            let text = read(answer).await?;
            match status {
                StatusCode::OK => {
                    let line = self.line(&note, &text).ok_or(NotCosigned::Unsigned)?;
                    let rows = vec![Change::Cosignature(
                        store.shard().clone(),
                        size,
                        self.key.name().to_owned(),
                        line,
                    )];
                    writer.commit(Commit { rows, ..Commit::default() }).await?;
                    *kept = Some(size);
                    return Ok(size);
                }
                StatusCode::CONFLICT => {
                    let garbled = NotCosigned::Garbled("a conflict without a size");
                    let taught = text.trim().parse().map_err(|_| garbled)?;
                    if taught == old {
                        return Err(NotCosigned::Forked { kept: old });
                    }
                    *kept = Some(taught);
                    old = taught;
                }
                StatusCode::UNPROCESSABLE_ENTITY => return Err(NotCosigned::Forked { kept: old }),
                status => {
                    let said = text.chars().filter(|c| !c.is_control()).take(200).collect();
                    return Err(NotCosigned::Refused(status, said));
                }
            }
        }
        Err(NotCosigned::Garbled("it names another size each time"))
    }

    /// The line of an answer that is this witness's cosignature of the note.
    fn line(&self, note: &str, answer: &str) -> Option<String> {
        let lines = answer.lines().map(|line| format!("{line}\n"));
        let signed =
            |line: &String| matches!(self.key.cosigned(&format!("{note}{line}")), Ok(Some(_)));
        lines.into_iter().find(signed)
    }
}

/// The text of an answer, unless it is longer than any should be.
async fn read(mut answer: Response) -> Result<String, NotCosigned> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(NotCosigned::Away)? {
        if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(NotCosigned::Garbled("it is too long"));
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| NotCosigned::Garbled("it is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::study::Weights;

    #[test]
    fn only_sites_of_the_cohort_and_named_outside_witnesses_count() {
        let key = |name: &str, seed: u8| {
            let key = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]).verifying_key();
            WitnessKey::new(name, key).expect("a key")
        };
        let asked = [key("w.test/known", 1), key("w.test/unknown", 2), key("w.test/swapped", 3)];
        let known = [key("w.test/known", 1), key("w.test/swapped", 9), key("w.test/not-asked", 4)];
        let counted = Counted::new("f.test", asked.iter(), &known);
        assert_eq!(counted.outside(), &BTreeSet::from(["w.test/known".to_owned()]));
        let cohort = Cohort {
            places: vec!["ae-on/*".into()],
            sites: vec!["hospital-1".into()],
            min_sites: 1,
            weights: Weights::Uniform,
        };
        assert!(counted.counts("w.test/known", &cohort));
        assert!(counted.counts("f.test/ae-on/ae-az/site/hospital-1", &cohort));
        for name in [
            "w.test/unknown",
            "w.test/swapped",
            "w.test/not-asked",
            "f.test/ae-on/ae-az/site/hospital-2",
            "f.test/gb/gb-lnd/site/hospital-1",
            "f.test/ae-on/ae-az/operator/hospital-1",
            "w.test/ae-on/ae-az/site/hospital-1",
        ] {
            assert!(!counted.counts(name, &cohort), "{name}");
        }
    }
}
