//! The replay: each model follows from a round, each round from accepted updates, each update from a site's
//! signature under a certificate of that site.

use crate::{
    WitnessReport, Wrong,
    identities::Identities,
    ledger::{self, LedgerReport},
};
use ed25519_dalek::VerifyingKey;
use falaj_certs::trust::TrustFile;
use falaj_core::{
    audit::{Entry, Kind, bundle},
    id::{Digest, Role, RoundId, SiteId, SpiffeId},
    note,
    time::Timestamp,
    update::{CONTEXT, UpdateHeader},
    witness::WitnessKey,
};
use std::collections::{BTreeMap, BTreeSet};

/// What is remembered between entries.
#[derive(Default)]
pub(crate) struct Replay {
    identities: Identities,
    /// Keys by whom they belong to, from certificates for which an issuer vouches.
    keys: BTreeMap<String, Vec<VerifyingKey>>,
    /// The header that waits for its signature.
    unsigned: Option<(Digest, Vec<u8>)>,
    /// Signed headers by digest: what each says about its update.
    headers: BTreeMap<Digest, Claim>,
    studies: BTreeSet<Digest>,
    /// The newest model of each study.
    newest: BTreeMap<String, Digest>,
    /// Rounds that are open, with their base and what was accepted into them.
    open: BTreeMap<RoundId, Open>,
    /// The ledger heads that each site's counted updates were paid from.
    heads: BTreeMap<SiteId, Vec<Digest>>,
    pub(crate) models: u64,
    pub(crate) updates: u64,
    pub(crate) refusals: u64,
}

struct Claim {
    site: SiteId,
    round: RoundId,
    payload: Digest,
    base: Digest,
    cohort: Option<Digest>,
    ledger: Digest,
}

struct Open {
    base: Digest,
    accepted: BTreeMap<SiteId, Digest>,
    /// Whose masks are on them.
    cohorts: BTreeSet<Option<Digest>>,
}

impl Replay {
    /// A replay in which only those count for whom an issuer in `trust` vouches, if it is given.
    pub(crate) fn new(trust: Option<&TrustFile>) -> Self {
        Self { identities: Identities::pinned(trust), ..Self::default() }
    }

    /// A file that entries refer to.
    pub(crate) fn take_file(&mut self, path: &str, bytes: Vec<u8>) -> Result<(), Wrong> {
        let wrong = |what: String| Wrong::File { path: path.to_owned(), what };
        let named = |folder: &str, ending: &str| {
            let name = path.strip_prefix(folder)?.strip_suffix(ending)?;
            name.parse::<Digest>().ok()
        };
        let matches = |digest: Digest| {
            let found = Digest::of(&bytes);
            if found == digest { Ok(()) } else { Err(wrong(format!("its SHA-256 is {found}"))) }
        };
        if let Some(digest) = named("certificates/", ".der") {
            matches(digest)?;
            if let Some((id, key)) = self.identities.take_certificate(digest, bytes) {
                self.keys.entry(id.to_string()).or_default().push(key);
            }
        } else if let Some(digest) = named(bundle::ISSUERS, ".der") {
            matches(digest)?;
            self.identities.take_issuer(bytes).map_err(wrong)?;
        } else if let Some(digest) = named(bundle::TRUST, ".toml") {
            matches(digest)?;
            self.identities.take_trust(path, &bytes).map_err(wrong)?;
        } else if let Some(digest) = named("studies/", ".yaml") {
            matches(digest)?;
            self.studies.insert(digest);
        } else if let Some(digest) = named("updates/", ".header") {
            matches(digest)?;
            self.unsigned = Some((digest, bytes));
        } else if let Some(digest) = named("updates/", ".sig") {
            let header = self.unsigned.take().filter(|(d, _)| *d == digest);
            let (_, header) =
                header.ok_or_else(|| wrong("its header does not stand before it".into()))?;
            let parsed = UpdateHeader::parse(&header).map_err(|e| wrong(e.to_string()))?;
            let site = parsed.site.to_string();
            let keys = self.keys.get(&site).map(Vec::as_slice).unwrap_or_default();
            if !keys.iter().any(|k| note::verify_context(k, CONTEXT, &header, &bytes)) {
                return Err(wrong(format!("it is no signature by a certificate of {site}")));
            }
            self.headers.insert(
                digest,
                Claim {
                    site: parsed.site,
                    round: parsed.round,
                    payload: parsed.payload,
                    base: parsed.base,
                    cohort: parsed.cohort,
                    ledger: parsed.ledger,
                },
            );
        }
        Ok(())
    }

    /// The sites and witnesses that have cosigned a checkpoint of so many entries.
    pub(crate) fn witnesses(
        &self,
        note: &str,
        tree_size: u64,
    ) -> Result<Vec<WitnessReport>, String> {
        let mut found = Vec::new();
        for (id, keys) in &self.keys {
            let Ok(party) = id.parse::<SpiffeId>() else { continue };
            if !matches!(party.role(), Role::Site | Role::Witness) {
                continue;
            }
            let mut latest = None;
            for key in keys {
                let key =
                    WitnessKey::of_party(&party, key.as_bytes()).map_err(|e| e.to_string())?;
                latest = latest.max(key.cosigned(note).map_err(|e| e.to_string())?);
            }
            if let Some(seconds) = latest {
                let time = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000);
                let time = Timestamp::from_millis(time).to_string();
                found.push(WitnessReport { witness: id.clone(), tree_size, time });
            }
        }
        Ok(found)
    }

    /// The next entry of the log.
    pub(crate) fn take_entry(&mut self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        self.check_actor(entry)?;
        let digest = |key: &str| body.parsed::<Digest>(key).map_err(|e| e.to_string());
        let round = || entry.round().map_err(|e| e.to_string());
        match entry.kind {
            Kind::CoordinatorStarted => self.identities.start(digest("trust_sha256")?)?,
            Kind::StudySubmitted => {
                let study = digest("study_sha256")?;
                if !self.studies.contains(&study) {
                    return Err(format!("its study {study} is not in the bundle"));
                }
                let name = body.text("study").map_err(|e| e.to_string())?;
                self.newest.insert(name.to_owned(), digest("model_sha256")?);
            }
            Kind::RoundOpened => {
                let (round, base) = (round()?, digest("base_sha256")?);
                let newest = self.newest.get(round.study.as_str());
                if newest != Some(&base) {
                    return Err(format!(
                        "round {round} opens on {base}, which is not the study's newest model"
                    ));
                }
                self.open.insert(
                    round,
                    Open { base, accepted: BTreeMap::new(), cohorts: BTreeSet::new() },
                );
            }
            Kind::UpdateAccepted => self.accepted(entry)?,
            Kind::ModelPublished => {
                let round = round()?;
                let Some(open) = self.open.remove(&round) else {
                    return Err(format!("round {round} was not open"));
                };
                let base = digest("base_sha256")?;
                if base != open.base {
                    return Err(format!("round {round} opened on {}, not on {base}", open.base));
                }
                if open.cohorts.len() > 1 {
                    return Err(format!(
                        "the updates of round {round} carry the masks of different cohorts"
                    ));
                }
                let mut counted: Vec<Digest> = open.accepted.into_values().collect();
                counted.sort_unstable();
                if entry.digests("updates").map_err(|e| e.to_string())? != counted {
                    return Err(format!(
                        "the model of round {round} does not follow from exactly the {} updates that were accepted into it",
                        counted.len()
                    ));
                }
                self.newest.insert(round.study.to_string(), digest("model_sha256")?);
                self.models += 1;
            }
            Kind::RoundFailed | Kind::ModelRejected => {
                self.open.remove(&round()?);
            }
            Kind::ConnectionRefused | Kind::UpdateRefused | Kind::AccessDenied => {
                self.refusals += 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// Whoever was let in is named by a certificate for which somebody vouches.
    fn check_actor(&self, entry: &Entry) -> Result<(), String> {
        let refused = matches!(
            entry.kind,
            Kind::ConnectionRefused | Kind::UpdateRefused | Kind::AccessDenied
        );
        let Some(who) = entry.actor_id().filter(|_| !refused) else { return Ok(()) };
        let cert = entry.body().member("actor").and_then(|a| a.parsed("cert_sha256").ok());
        let cert = cert.ok_or_else(|| format!("it names no certificate of {who}"))?;
        self.identities.check(&who, &cert)?;
        if entry.kind == Kind::ConnectionAdmitted {
            self.identities.check_valid(&cert, &entry.ts)?;
        }
        Ok(())
    }

    fn accepted(&mut self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        let text = |e: falaj_core::canon::CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        let site: SiteId = body.parsed("site").map_err(text)?;
        let header: Digest = body.parsed("header_sha256").map_err(text)?;
        let payload: Digest = body.parsed("payload_sha256").map_err(text)?;
        if entry.actor_id().as_ref() != Some(site.spiffe()) {
            return Err(format!("it counts an update of {site}, but somebody else sent it"));
        }
        let Some(open) = self.open.get_mut(&round) else {
            return Err(format!("round {round} was not open"));
        };
        let Some(claim) = self.headers.get(&header) else {
            return Err(format!("the signed header {header} is not in the bundle"));
        };
        if claim.site != site
            || claim.round != round
            || claim.payload != payload
            || claim.base != open.base
        {
            return Err(format!("the header that {site} signed speaks of another update"));
        }
        if open.accepted.insert(site.clone(), payload).is_some() {
            return Err(format!("round {round} counts two updates of {site}"));
        }
        open.cohorts.insert(claim.cohort);
        self.heads.entry(site.clone()).or_default().push(claim.ledger);
        self.updates += 1;
        Ok(())
    }

    /// Checks a site's exported ledger against what was replayed.
    pub(crate) fn ledger(&self, text: &str) -> Result<LedgerReport, Wrong> {
        ledger::check(text, &self.keys, &self.heads)
    }

    /// Whether anything is left over.
    pub(crate) fn finish(&self) -> Result<(), Wrong> {
        match &self.unsigned {
            Some((digest, _)) => Err(Wrong::Missing(format!("updates/{digest}.sig"))),
            None => Ok(()),
        }
    }
}
