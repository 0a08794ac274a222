//! The replay: each model follows from a round, each round from accepted updates, each update from a site's
//! signature under a certificate of that site.

use crate::{
    WitnessReport, Wrong,
    approvals::Approving,
    decisions::{Around, Decisions},
    egress::{self, Counted, EgressReport},
    evaluated::{Counted as Counting, Evaluations, Gating},
    ledger::{self, LedgerReport},
    provenance::{self, VersionReport},
    revoked::Revoked,
    tokens::Tokens,
};
use ed25519_dalek::VerifyingKey;
use falaj_certs::{history::History, tpm, trust::TrustFile};
use falaj_core::{
    audit::{Entry, Kind, bundle, policy_set},
    canon::CanonError,
    id::{Digest, RoundId, SiteId, SpiffeId, StudyId},
    note::{self, VerifierKey},
    registry::{lineage::Lineage, provenance::About},
    report::Sections,
    robust::Rule,
    study::Cohort,
    time::Timestamp,
    update::{CONTEXT, UpdateHeader},
};
use falaj_proto::study;
use std::collections::{BTreeMap, BTreeSet};

/// Accesses without an outcome that are remembered at once.
const INTENTS_MAX: usize = 100_000;

/// What is remembered between entries.
#[derive(Default)]
pub(crate) struct Replay {
    history: History,
    revoked: Revoked,
    tokens: Tokens,
    /// Whether the log goes on from another shard.
    goes_on: bool,
    /// Whose key signed each certificate for which an issuer vouches.
    issuers: BTreeMap<Digest, Digest>,
    approving: Approving,
    /// Whose log it is, as its newest start says.
    coordinator: Option<SpiffeId>,
    /// Keys by whom they belong to, from certificates for which an issuer vouches.
    keys: BTreeMap<String, Vec<VerifyingKey>>,
    /// The header that waits for its signature.
    unsigned: Option<(Digest, Vec<u8>)>,
    /// Signed headers by digest: what each says about its update.
    headers: BTreeMap<Digest, Claim>,
    /// What study files say, by their digest. It holds once one was submitted.
    studies: BTreeMap<Digest, Said>,
    /// Policy files by the digest of their set.
    policies: BTreeMap<Digest, Vec<(String, Vec<u8>)>>,
    pub(crate) decisions: Decisions,
    /// Reports that are made on the way.
    pub(crate) folds: Vec<Sections>,
    /// What versions came from, and how they moved.
    lineage: Lineage,
    /// The newest model of each study.
    newest: BTreeMap<String, Digest>,
    /// Every model that each study has had.
    had: BTreeMap<String, BTreeSet<Digest>>,
    /// How many witnesses each study wants behind a round, and whose sites count.
    quorums: BTreeMap<String, (u32, Cohort)>,
    /// The rule by which each study's updates become one.
    rules: BTreeMap<String, &'static str>,
    /// Accesses whose outcome the log has not told yet, the newest of them.
    intents: BTreeMap<u64, Kind>,
    /// What lies before this may have been an access that is not remembered any more.
    forgotten: u64,
    /// Entries in the newest checkpoint that each witness has cosigned.
    stood: BTreeMap<String, u64>,
    /// Rounds that are open, with their base and what was accepted into them.
    open: BTreeMap<RoundId, Open>,
    /// The ledger heads that each site's counted updates were paid from.
    heads: BTreeMap<SiteId, Vec<Digest>>,
    /// Each site's counted updates.
    counted: BTreeMap<SiteId, Vec<Counted>>,
    /// What sites counted about candidates.
    pub(crate) evaluations: Evaluations,
    /// Payloads that were refused.
    refused: BTreeSet<Digest>,
    pub(crate) models: u64,
    pub(crate) updates: u64,
    pub(crate) refusals: u64,
    /// Quotes of TPMs that were checked again.
    pub(crate) quotes: u64,
}

/// What a study's file says of itself.
struct Said {
    about: About,
    /// The witnesses that it wants behind a round.
    quorum: u32,
    cohort: Cohort,
    mechanism: String,
    gating: Gating,
    /// By which updates become one.
    rule: &'static str,
}

struct Claim {
    site: SiteId,
    round: RoundId,
    payload: Digest,
    base: Digest,
    cohort: Option<Digest>,
    ledger: Digest,
    weight: u32,
    epsilon: f64,
    /// Of header, signature and payload.
    bytes: u64,
}

struct Open {
    /// Since when.
    since: Option<Timestamp>,
    base: Digest,
    accepted: BTreeMap<SiteId, Digest>,
    /// Examples behind them.
    examples: u64,
    /// The index of the last one.
    last: u64,
    /// Whose masks are on them.
    cohorts: BTreeSet<Option<Digest>>,
}

impl Open {
    /// What gates know of its updates.
    fn counted(&self, epsilon: Option<f64>) -> Counting {
        Counting {
            sites: self.accepted.keys().cloned().collect(),
            examples: self.examples,
            epsilon,
        }
    }
}

impl Replay {
    /// A replay, which makes reports on its way, and in which only those count for whom an issuer in `trust` vouches, if it is given.
    pub(crate) fn new(trust: Option<&TrustFile>, folds: Vec<Sections>) -> Self {
        Self { history: History::pinned(trust), folds, ..Self::default() }
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
            if let Some(holder) = self.history.take_certificate(digest, bytes) {
                let id = holder.id.to_string();
                self.issuers.insert(digest, holder.issuer);
                self.keys.entry(id).or_default().extend(self.history.key(&digest));
                self.folds.iter_mut().for_each(|f| f.certificate(digest, holder.clone()));
            }
        } else if let Some(digest) = named(bundle::ISSUERS, ".der") {
            matches(digest)?;
            self.history.take_issuer(bytes).map_err(wrong)?;
        } else if let Some(digest) = named(bundle::TRUST, ".toml") {
            matches(digest)?;
            self.history.take_trust(path, &bytes).map_err(wrong)?;
        } else if let Some(digest) = named("studies/", ".yaml") {
            matches(digest)?;
            let study = str::from_utf8(&bytes).map_err(|e| wrong(e.to_string()))?;
            let study = study::parse(study, path).map_err(|e| wrong(e.to_string()))?;
            let said = Said {
                about: About::of(&study),
                quorum: study.governance.witnesses.map_or(0, |wanted| wanted.quorum),
                cohort: study.cohort.clone(),
                mechanism: study.privacy.mechanism.as_str().to_owned(),
                gating: Gating::of(&study),
                rule: study.aggregation.as_str(),
            };
            self.folds.iter_mut().for_each(|f| f.study(digest, study.clone()));
            self.studies.insert(digest, said);
        } else if let Some((set, file)) = policy_file(path) {
            self.folds.iter_mut().for_each(|f| f.policy(set, file, &bytes));
            self.policies.entry(set).or_default().push((file.to_owned(), bytes));
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
                    weight: parsed.weight,
                    epsilon: parsed.epsilon.parse().unwrap_or(f64::INFINITY),
                    bytes: (header.len() + bytes.len()) as u64 + parsed.payload_bytes,
                },
            );
        } else if let Some(name) = path.strip_prefix(bundle::EVALUATIONS) {
            self.evaluations.take_file(name, bytes, &self.keys).map_err(wrong)?;
        } else {
            return Err(wrong("no bundle has such a file".into()));
        }
        Ok(())
    }

    /// The sites and witnesses that have cosigned a checkpoint of so many entries.
    pub(crate) fn witnesses(
        &mut self,
        note: &str,
        tree_size: u64,
    ) -> Result<Vec<WitnessReport>, String> {
        let mut found = Vec::new();
        for (witness, time) in self.history.cosigned(note)? {
            self.folds.iter_mut().for_each(|f| f.witness(&witness, tree_size, &time));
            // As checkpoints and entries spell it: one witness has one name.
            let name = witness.trim_start_matches("spiffe://").to_owned();
            let newest = self.stood.entry(name).or_default();
            *newest = tree_size.max(*newest);
            found.push(WitnessReport { witness, tree_size, time });
        }
        Ok(found)
    }

    /// A study goes back to a model that it had.
    fn rolled_back(&mut self, round: &RoundId, model: Digest) -> Result<(), String> {
        let had = self.had.get(round.study.as_str());
        if !had.is_some_and(|had| had.contains(&model)) {
            return Err(format!("round {round} goes back to {model}, which the study never had"));
        }
        self.evaluations.rolled_back(round, model)?;
        self.has(round.study.as_str(), model);
        Ok(())
    }

    /// The next entry of the log.
    pub(crate) fn take_entry(&mut self, entry: &Entry) -> Result<(), String> {
        self.folds.iter_mut().for_each(|f| f.take(entry));
        let body = entry.body();
        self.check_actor(entry)?;
        match entry.kind {
            Kind::LogOpened => {
                self.goes_on = body.find_text("succession").is_some();
                self.lineage = Lineage::new(self.goes_on);
            }
            // What is decided over a study goes by its file.
            Kind::StudySubmitted => self.submitted(entry)?,
            _ => {}
        }
        self.check_decision(entry)?;
        self.check_quote(entry)?;
        self.lineage.take(entry).map_err(|e| e.to_string())?;
        let key = |cert: &Digest| self.history.key(cert).map(|key| key.to_bytes());
        self.revoked.take(entry, key)?;
        self.evaluations.hear(entry, &self.revoked)?;
        let digest = |key: &str| body.parsed::<Digest>(key).map_err(|e| e.to_string());
        let round = || entry.round().map_err(|e| e.to_string());
        match entry.kind {
            Kind::CoordinatorStarted => {
                self.history.start(digest("trust_sha256")?)?;
                self.coordinator = Some(body.parsed("coordinator").map_err(|e| e.to_string())?);
                self.check_policies(digest("policy_set_sha256")?)?;
            }
            Kind::TrustLoaded => self.history.go_on(digest("trust_sha256")?, &entry.ts)?,
            Kind::PolicyLoaded | Kind::PolicyRefused => {
                self.check_policies(digest("policy_set_sha256")?)?;
            }
            Kind::RoundOpened => self.opened(entry)?,
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
                self.check_witnesses(entry, &round, open.last)?;
                let counted = open.counted(self.evaluations.most_spent(&round.study));
                self.evaluations.verdict(entry, counted)?;
                self.check_rule(entry, &round)?;
                let mut counted: Vec<Digest> = open.accepted.into_values().collect();
                counted.sort_unstable();
                if entry.digests("updates").map_err(|e| e.to_string())? != counted {
                    return Err(format!(
                        "the model of round {round} does not follow from exactly the {} updates that were accepted into it",
                        counted.len()
                    ));
                }
                self.has(round.study.as_str(), digest("model_sha256")?);
                self.models += 1;
            }
            Kind::ModelRolledBack => self.rolled_back(&round()?, digest("model_sha256")?)?,
            Kind::EvaluationAccepted
            | Kind::CandidateHeld
            | Kind::CandidateApproved
            | Kind::CandidateRefused
            | Kind::VersionMade
            | Kind::ModelRejected
            | Kind::VersionPromoted
            | Kind::StudyFinished
            | Kind::AdminRead => self.evaluated(entry)?,
            Kind::RoundFailed => self.failed(&round()?),
            Kind::EnrolmentOffered => self.tokens.offered(entry)?,
            Kind::EnrolmentWithdrawn => self.tokens.withdrawn(entry)?,
            Kind::SiteEnrolled => self.enrolled(entry, &digest("cert_sha256")?)?,
            Kind::CertificateRenewed => self.renewed(entry, &digest("cert_sha256")?)?,
            Kind::ConnectionRefused
            | Kind::EnrolmentRefused
            | Kind::UpdateRefused
            | Kind::AccessDenied => {
                self.refusals += 1;
                if entry.kind == Kind::UpdateRefused {
                    // What was refused before its header was read names none.
                    self.refused.extend(digest("payload_sha256"));
                }
                if entry.kind == Kind::AccessDenied {
                    self.evaluations.promotion(entry)?;
                }
            }
            Kind::ModelRead | Kind::LogExported => {
                self.intents.insert(entry.seq, entry.kind);
                if self.intents.len() > INTENTS_MAX
                    && let Some((oldest, _)) = self.intents.pop_first()
                {
                    self.forgotten = oldest + 1;
                }
            }
            Kind::AccessServed => self.served(entry)?,
            _ => {}
        }
        Ok(())
    }

    /// What was counted about candidates, what gates said of them, and who decided over them.
    fn evaluated(&mut self, entry: &Entry) -> Result<(), String> {
        let round = || entry.round().map_err(|e| e.to_string());
        match entry.kind {
            Kind::EvaluationAccepted => self.evaluations.accepted(entry),
            Kind::CandidateHeld => {
                let round = round()?;
                let open = self.open.get(&round);
                let open = open.ok_or_else(|| format!("round {round} was not open"))?;
                let counted = open.counted(self.evaluations.most_spent(&round.study));
                self.evaluations.hold(entry, counted)
            }
            Kind::CandidateApproved | Kind::CandidateRefused => {
                let submitter = self.lineage.submitter(&round()?.study);
                self.evaluations.decided(entry, submitter)
            }
            Kind::ModelRejected => {
                let round = round()?;
                let Some(open) = self.open.remove(&round) else { return Ok(()) };
                let counted = open.counted(self.evaluations.most_spent(&round.study));
                self.evaluations.verdict(entry, counted)
            }
            Kind::VersionMade => {
                self.evaluations.every_gate_was_asked(entry)?;
                self.evaluations.made(entry)
            }
            Kind::StudyFinished => {
                self.evaluations.finished(entry)?;
                self.is_newest(entry)
            }
            _ => self.evaluations.promotion(entry),
        }
    }

    /// A round gave nothing.
    fn failed(&mut self, round: &RoundId) {
        self.open.remove(round);
        self.evaluations.failed(round);
    }

    /// A study ends with its newest model.
    fn is_newest(&self, entry: &Entry) -> Result<(), String> {
        let text = |e: CanonError| e.to_string();
        let study = entry.body().text("study").map_err(text)?;
        let model: Digest = entry.body().parsed("model_sha256").map_err(text)?;
        match self.newest.get(study) {
            Some(newest) if *newest != model => Err(format!(
                "study `{study}` finishes with {model}, and its newest model is {newest}"
            )),
            _ => Ok(()),
        }
    }

    /// A round opens on the study's newest model.
    fn opened(&mut self, entry: &Entry) -> Result<(), String> {
        let round = entry.round().map_err(|e| e.to_string())?;
        let base: Digest = entry.body().parsed("base_sha256").map_err(|e| e.to_string())?;
        self.evaluations.opened(&round, base)?;
        let newest = self.newest.get(round.study.as_str());
        if newest != Some(&base) {
            return Err(format!(
                "round {round} opens on {base}, which is not the study's newest model"
            ));
        }
        self.open.insert(
            round,
            Open {
                since: Timestamp::parse(&entry.ts),
                base,
                accepted: BTreeMap::new(),
                examples: 0,
                last: entry.seq,
                cohorts: BTreeSet::new(),
            },
        );
        Ok(())
    }

    /// A study has this model now.
    fn has(&mut self, study: &str, model: Digest) {
        self.newest.insert(study.to_owned(), model);
        self.had.entry(study.to_owned()).or_default().insert(model);
    }

    /// What was signed of a version, held against the entries.
    pub(crate) fn provenance(
        &self,
        json: &str,
        origin: &str,
        keys: &[VerifierKey],
    ) -> Result<VersionReport, Wrong> {
        let about = |study: &Digest| self.studies.get(study).map(|said| said.about.clone());
        provenance::check(json.as_bytes(), origin, keys, &self.lineage, about)
    }

    /// What policy decided fits what was done, and is what the policies in force decide.
    fn check_decision(&mut self, entry: &Entry) -> Result<(), String> {
        // Of what a site sends to a round policy is asked when it begins to come.
        let sent = matches!(
            entry.kind,
            Kind::UpdateAccepted | Kind::ExchangeAnswered | Kind::EvaluationAccepted
        );
        let open = || entry.round().ok().and_then(|round| self.open.get(&round)?.since);
        let around = Around {
            policies: &self.policies,
            issuers: &self.issuers,
            asked: &|| open().filter(|_| sent),
            goes_on: self.goes_on,
        };
        self.decisions.take(entry, entry.requester().as_deref(), &around)?;
        self.approving.take(entry, &self.revoked, &mut self.decisions, &around)
    }

    /// A site is given a certificate for its token.
    fn enrolled(&mut self, entry: &Entry, fresh: &Digest) -> Result<(), String> {
        let site: SiteId = entry.body().parsed("identity").map_err(|e| e.to_string())?;
        self.history.check(site.spiffe(), fresh, &entry.ts)?;
        let key = self.history.key(fresh).ok_or_else(|| format!("{fresh} has no usable key"))?;
        self.tokens.enrolled(entry, key.to_bytes(), self.goes_on)
    }

    /// What an entry says of a TPM is what follows from the quote in it.
    fn check_quote(&mut self, entry: &Entry) -> Result<(), String> {
        let evidence = entry.evidence().map_err(|e| e.to_string())?;
        let Some(said) = evidence.and_then(|evidence| evidence.tpm) else { return Ok(()) };
        let cert = entry.actor_cert().ok_or("it has a TPM, and names no certificate of a site")?;
        let key = self.history.key(&cert);
        let key = key.ok_or_else(|| format!("the certificate {cert} of its site is not known"))?;
        let here = self.coordinator.as_ref().ok_or("no coordinator had started before it")?;
        let found = tpm::judge(&said.declared, said.quote.as_ref(), key.as_bytes(), here);
        if found != said.found {
            return Err(format!(
                "it says {:?} of its site's TPM, and {found:?} follows from the quote in it",
                said.found
            ));
        }
        self.quotes += u64::from(said.quote.is_some());
        Ok(())
    }

    /// A renewed certificate is about the key of the one before it, and names the same site.
    fn renewed(&self, entry: &Entry, fresh: &Digest) -> Result<(), String> {
        let who = entry.actor_id().ok_or("it names nobody whose certificate it is")?;
        self.history.check(who, fresh, &entry.ts)?;
        let before = entry.actor_cert().ok_or("it names no certificate that was renewed")?;
        // Of a certificate for whose holder nobody known vouches there is no key, and `check` has said so.
        if self.history.key(&before) != self.history.key(fresh) {
            return Err(format!(
                "the certificate {fresh} of {who} is about another key than {before}"
            ));
        }
        Ok(())
    }

    /// A study's file is what holds, once it was submitted.
    fn submitted(&mut self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let study: Digest = body.parsed("study_sha256").map_err(text)?;
        let said = self.studies.get(&study);
        let said = said.ok_or_else(|| format!("its study {study} is not in the bundle"))?;
        let name: StudyId = body.parsed("study").map_err(text)?;
        if body.text("mechanism").is_ok_and(|told| told != said.mechanism) {
            return Err(format!("the file of its study has the mechanism `{}`", said.mechanism));
        }
        self.quorums.insert(name.to_string(), (said.quorum, said.cohort.clone()));
        self.rules.insert(name.to_string(), said.rule);
        self.evaluations.submitted(name.as_str(), said.gating.clone());
        let first = body.parsed("model_sha256").map_err(text)?;
        self.decisions.submitted(name.clone(), said.mechanism.clone());
        self.has(name.as_str(), first);
        Ok(())
    }

    /// An outcome is of an access, and the only one.
    fn served(&mut self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let intent: u64 = body.int("intent").map_err(text)?;
        let served = body.text("served").map_err(text)?;
        let told = self.intents.remove(&intent);
        if told.is_none_or(|kind| kind.as_str() != served)
            && (told.is_some() || intent >= self.forgotten)
        {
            return Err(format!(
                "it tells of entry {intent}, which is no {served} without an outcome"
            ));
        }
        Ok(())
    }

    /// As many witnesses as the study wants had cosigned the log with every update of the round in it, as far as `last`, before
    /// its model was published. Each has cosigned at least as much in this bundle.
    fn check_witnesses(&self, entry: &Entry, round: &RoundId, last: u64) -> Result<(), String> {
        let body = entry.body();
        let wanted = self.quorums.get(round.study.as_str());
        // A site that the study does not admit is a witness of the log, and not one behind the study's rounds.
        let counts = |witness: &str| {
            let party = format!("spiffe://{witness}");
            let admitted = |site| wanted.is_none_or(|(_, cohort)| cohort.admits(&site));
            !self.keys.contains_key(&party) || party.parse::<SiteId>().is_ok_and(admitted)
        };
        let mut behind = BTreeSet::new();
        for line in body.list("witnesses").unwrap_or_default() {
            let line = line.as_text().unwrap_or_default();
            let (entries, witness) = line.split_once(' ').unwrap_or_default();
            let entries: u64 = entries.parse().map_err(|_| format!("`{line}` is no witness"))?;
            if self.stood.get(witness).is_none_or(|newest| *newest < entries) {
                return Err(format!(
                    "it says that {witness} has cosigned {entries} entries, and no cosignature in the bundle shows so much"
                ));
            }
            if entries > last && entries <= entry.seq && counts(witness) {
                behind.insert(witness);
            }
        }
        let quorum = wanted.map_or(0, |(quorum, _)| *quorum);
        if behind.len() < quorum as usize {
            return Err(format!(
                "{} witnesses stood behind round {round} when its model was published, and the study wants {quorum}",
                behind.len()
            ));
        }
        Ok(())
    }

    /// A model was made by the rule that its study asks for. Of the mean an entry says nothing.
    fn check_rule(&self, entry: &Entry, round: &RoundId) -> Result<(), String> {
        let body = entry.body();
        let told = body.text("rule").unwrap_or(Rule::Mean.as_str());
        match self.rules.get(round.study.as_str()) {
            Some(&wanted) if wanted != told => Err(format!(
                "the model of round {round} was made by the rule `{told}`, and the file of its study asks for `{wanted}`"
            )),
            _ => Ok(()),
        }
    }

    /// The policies that came into force are in the bundle, as they were.
    fn check_policies(&self, set: Digest) -> Result<(), String> {
        let files = self.policies.get(&set).map(Vec::as_slice).unwrap_or_default();
        let found = policy_set(files);
        if files.is_empty() || found != set {
            return Err(format!("its policies {set} are not in the bundle as they were in force"));
        }
        Ok(())
    }

    /// Whoever was let in is named by a certificate for which somebody vouches.
    fn check_actor(&self, entry: &Entry) -> Result<(), String> {
        let refused = matches!(
            entry.kind,
            Kind::ConnectionRefused
                | Kind::ConnectionEnded
                | Kind::EnrolmentRefused
                | Kind::AlertRaised
                | Kind::UpdateRefused
                | Kind::AccessDenied
        );
        let Some(who) = entry.actor_id().filter(|_| !refused) else { return Ok(()) };
        let cert = entry.actor_cert();
        let cert = cert.ok_or_else(|| format!("it names no certificate of {who}"))?;
        self.history.check(who, &cert, &entry.ts)?;
        if entry.kind == Kind::ConnectionAdmitted {
            self.history.check_valid(&cert, &entry.ts)?;
        }
        Ok(())
    }

    fn accepted(&mut self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        let site: SiteId = body.parsed("site").map_err(text)?;
        let header: Digest = body.parsed("header_sha256").map_err(text)?;
        let payload: Digest = body.parsed("payload_sha256").map_err(text)?;
        if entry.actor_id() != Some(site.spiffe()) {
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
        open.last = entry.seq;
        open.examples += u64::from(claim.weight);
        self.evaluations.spent(&round.study, claim.epsilon);
        open.cohorts.insert(claim.cohort);
        self.heads.entry(site.clone()).or_default().push(claim.ledger);
        let bytes = claim.bytes;
        let counted = Counted { round, header, payload, bytes };
        self.counted.entry(site).or_default().push(counted);
        self.updates += 1;
        Ok(())
    }

    /// Checks a site's exported ledger against what was replayed.
    pub(crate) fn ledger(&self, text: &str) -> Result<LedgerReport, Wrong> {
        ledger::check(text, &self.keys, &self.heads)
    }

    /// Checks sites' exported egress journals against what was replayed.
    pub(crate) fn egress(&self, texts: &[String]) -> Result<Vec<EgressReport>, Wrong> {
        egress::check(texts, &self.keys, &self.counted, &self.refused)
    }

    /// Whether anything is left over.
    pub(crate) fn finish(&self) -> Result<(), Wrong> {
        match (&self.unsigned, self.evaluations.missing()) {
            (Some((digest, _)), _) => Err(Wrong::Missing(format!("updates/{digest}.sig"))),
            (None, Some(path)) => Err(Wrong::Missing(path)),
            (None, None) => Ok(()),
        }
    }
}

/// The set and the name of a policy file.
fn policy_file(path: &str) -> Option<(Digest, &str)> {
    let (set, file) = path.strip_prefix("policies/")?.split_once('/')?;
    Some((set.parse().ok()?, file))
}
