//! What sites counted about candidates, and whether verdicts follow from it.
//!
//! The figures of every gate are made again from the signed counts in the bundle, and must be those that the log has: in the
//! verifier as in the coordinator, by `falaj_core::gate`.

use crate::revoked::UNDER_WAY_MS;
use ed25519_dalek::VerifyingKey;
use falaj_core::{
    audit::{Entry, Kind, approvals::Promotion, bundle, person::Person, within_bounds},
    canon::{Canon, CanonError},
    evaluation::{
        Evaluation,
        answer::{CONTEXT, EvaluationHeader, from_bytes},
    },
    gate::{
        Declared, Evaluated, Facts, Gate, Judged, OnFailure, Verdict, When, judge, judge_promotion,
    },
    id::{Digest, RoundId, SiteId},
    note,
    round::APPROVERS,
    study::Study,
    time::Timestamp,
};
use falaj_policies::Action;
use std::collections::{BTreeMap, BTreeSet};

/// How a study's candidates are judged.
#[derive(Clone, Default)]
pub(crate) struct Gating {
    evaluation: Option<Evaluation>,
    gates: Vec<Declared>,
    classes: u32,
    rounds: u32,
}

impl Gating {
    pub(crate) fn of(study: &Study) -> Self {
        Self {
            evaluation: study.evaluation.clone(),
            gates: study.gates.clone(),
            classes: study.classes(),
            rounds: study.rounds.count,
        }
    }
}

/// What is known of a round that was judged.
struct Round {
    counted: Counted,
    /// The candidate that sites were asked about.
    candidate: Digest,
    /// What each of them counted.
    taken: BTreeMap<SiteId, Digest>,
}

/// A candidate that waits for people.
struct Waits {
    round: Round,
    until: Timestamp,
    approved: BTreeSet<Person>,
}

/// What is known of a round's updates.
pub(crate) struct Counted {
    pub(crate) sites: u32,
    pub(crate) examples: u64,
    /// The most epsilon that one of their headers states.
    pub(crate) epsilon: Option<f64>,
}

/// A header that waits for its signature and counts.
struct Waiting {
    digest: Digest,
    bytes: Vec<u8>,
    signed: bool,
}

/// Signed counts, and what was said with them.
struct Signed {
    header: EvaluationHeader,
    counts: Vec<i64>,
}

/// What sites have counted.
#[derive(Default)]
pub(crate) struct Evaluations {
    waiting: Option<Waiting>,
    signed: BTreeMap<Digest, Signed>,
    /// By round and try, what each site counted.
    accepted: BTreeMap<(RoundId, u32), BTreeMap<SiteId, Digest>>,
    gatings: BTreeMap<String, Gating>,
    /// Candidates that wait for people, by round and try.
    held: BTreeMap<(RoundId, u32), Waits>,
    /// Rounds that gave models which gates are asked about when they are promoted.
    gave: BTreeMap<RoundId, Round>,
    /// By study and number, the round whose model a version is.
    versions: BTreeMap<(String, u32), u32>,
    /// Verdicts whose figures were made again.
    pub(crate) judged: u64,
}

impl Evaluations {
    /// A file under `evaluations/`; `keys` are those of a site's certificates.
    pub(crate) fn take_file(
        &mut self,
        name: &str,
        bytes: Vec<u8>,
        keys: &BTreeMap<String, Vec<VerifyingKey>>,
    ) -> Result<(), String> {
        let (digest, ending) = name.split_once('.').ok_or("no bundle has such a file")?;
        let digest: Digest = digest.parse().map_err(|_| "no bundle has such a file")?;
        if ending == "header" {
            let found = Digest::of(&bytes);
            if found != digest {
                return Err(format!("its SHA-256 is {found}"));
            }
            self.waiting = Some(Waiting { digest, bytes, signed: false });
            return Ok(());
        }
        let before = self.waiting.take().filter(|w| w.digest == digest);
        let mut before = before.ok_or("its header does not stand before it")?;
        let header = EvaluationHeader::parse(&before.bytes).map_err(|e| e.to_string())?;
        match (ending, before.signed) {
            ("sig", false) => {
                let site = header.site.to_string();
                let keys = keys.get(&site).map(Vec::as_slice).unwrap_or_default();
                let by = |k: &VerifyingKey| note::verify_context(k, CONTEXT, &before.bytes, &bytes);
                if !keys.iter().any(by) {
                    return Err(format!("it is no signature by a certificate of {site}"));
                }
                before.signed = true;
                self.waiting = Some(before);
            }
            ("counts", true) => {
                let counts = from_bytes(&bytes).filter(|c| c.len() == header.cells as usize);
                let counts = counts.filter(|_| Digest::of(&bytes) == header.counts);
                let counts = counts.ok_or("the counts are not those that the site signed")?;
                self.signed.insert(digest, Signed { header, counts });
            }
            _ => return Err("no bundle has such a file there".into()),
        }
        Ok(())
    }

    /// The path of what is left over, if anything is.
    pub(crate) fn missing(&self) -> Option<String> {
        let missing =
            |w: &Waiting| bundle::evaluation(&w.digest, if w.signed { "counts" } else { "sig" });
        self.waiting.as_ref().map(missing)
    }

    /// A study was submitted.
    pub(crate) fn submitted(&mut self, study: &str, gating: Gating) {
        self.gatings.insert(study.to_owned(), gating);
    }

    /// A site's counts were taken.
    pub(crate) fn accepted(&mut self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        let attempt: u32 = body.int("attempt").map_err(text)?;
        let site: SiteId = body.parsed("site").map_err(text)?;
        let digest: Digest = body.parsed("header_sha256").map_err(text)?;
        if entry.actor_id() != Some(site.spiffe()) {
            return Err(format!("it takes counts of {site}, but somebody else sent them"));
        }
        let Some(Signed { header, .. }) = self.signed.get(&digest) else {
            return Err(format!("the signed header {digest} is not in the bundle"));
        };
        let same = header.site == site
            && header.round == round
            && header.attempt == attempt
            && Ok(header.candidate) == body.parsed("candidate_sha256")
            && Ok(header.counts) == body.parsed("counts_sha256")
            && Ok(header.epsilon.as_str()) == body.text("epsilon")
            && Ok(header.noise.as_str()) == body.text("noise");
        if !same {
            return Err(format!("the header that {site} signed speaks of other counts"));
        }
        let of_round = self.accepted.entry((round.clone(), attempt)).or_default();
        if of_round.insert(site.clone(), digest).is_some() {
            return Err(format!("round {round} takes two counts of {site}"));
        }
        Ok(())
    }

    /// A candidate was judged: the gates' figures follow from what was counted, and a model was published only if all of them
    /// passed.
    pub(crate) fn verdict(&mut self, entry: &Entry, counted: Counted) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        let Some(gating) = self.gatings.get(round.study.as_str()) else { return Ok(()) };
        if gating.evaluation.is_none() && gating.gates.is_empty() {
            return Ok(());
        }
        let attempt: u32 = body.int("attempt").map_err(text)?;
        let candidate: Digest = body.parsed("model_sha256").map_err(text)?;
        let place = (round.clone(), attempt);
        let (judged, approved) = match self.held.remove(&place) {
            Some(Waits { round: judged, .. }) if judged.candidate != candidate => {
                return Err(format!(
                    "{} of round {round} waited for people, and not {candidate}",
                    judged.candidate
                ));
            }
            // It failed gates, and was refused or forgotten.
            Some(_) if entry.kind == Kind::ModelRejected => return Ok(()),
            Some(waited) => (waited.round, waited.approved.len()),
            None => {
                let taken = self.accepted.remove(&place).unwrap_or_default();
                (Round { counted, candidate, taken }, 0)
            }
        };
        let verdict = verdict_on(gating, &self.signed, round.number, &judged)?;
        let let_through = verdict.pass || asks(&verdict) && approved >= APPROVERS;
        if entry.kind == Kind::ModelPublished && !let_through {
            return Err(format!(
                "the model of round {round} fails a gate of its study: {}",
                verdict.reasons.join("; ")
            ));
        }
        let ours: Vec<String> = verdict.judged.iter().map(Judged::line).collect();
        let sites: Vec<String> = judged.taken.keys().map(ToString::to_string).collect();
        same(entry, &format!("round {round}"), &ours, &sites)?;
        let later = gating.gates.iter().any(|gate| gate.when == When::Promotion);
        if entry.kind == Kind::ModelPublished && later {
            self.gave.insert(round, judged);
        }
        self.judged += u64::from(!ours.is_empty());
        Ok(())
    }

    /// A candidate waits for people: gates that ask failed, and no other.
    pub(crate) fn hold(&mut self, entry: &Entry, counted: Counted) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        let Some(gating) = self.gatings.get(round.study.as_str()) else { return Ok(()) };
        let attempt: u32 = body.int("attempt").map_err(text)?;
        let candidate: Digest = body.parsed("model_sha256").map_err(text)?;
        let until = body.text("until").ok().and_then(Timestamp::parse);
        let until = until.ok_or("it does not say until when it waits")?;
        let place = (round.clone(), attempt);
        let taken = self.accepted.remove(&place).unwrap_or_default();
        let judged = Round { counted, candidate, taken };
        let verdict = verdict_on(gating, &self.signed, round.number, &judged)?;
        if verdict.pass || !asks(&verdict) {
            return Err(format!(
                "the candidate of round {round} waits for people, and its study's gates do not ask them"
            ));
        }
        let ours: Vec<String> = verdict.judged.iter().map(Judged::line).collect();
        let sites: Vec<String> = judged.taken.keys().map(ToString::to_string).collect();
        same(entry, &format!("round {round}"), &ours, &sites)?;
        self.judged += 1;
        self.held.insert(place, Waits { round: judged, until, approved: BTreeSet::new() });
        Ok(())
    }

    /// Somebody approves or refuses a candidate that waits; `submitter` is whoever submitted its study.
    pub(crate) fn decided(
        &mut self,
        entry: &Entry,
        submitter: Option<Person>,
    ) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        if !self.gatings.contains_key(round.study.as_str()) {
            return Ok(());
        }
        let attempt: u32 = body.int("attempt").map_err(text)?;
        let candidate: Digest = body.parsed("model_sha256").map_err(text)?;
        let waits = self.held.get_mut(&(round.clone(), attempt));
        let waits = waits
            .filter(|waits| waits.round.candidate == candidate)
            .ok_or_else(|| format!("no candidate {candidate} of round {round} waits for people"))?;
        let at = Timestamp::parse(&entry.ts).ok_or_else(|| format!("`{}` is no time", entry.ts))?;
        if at > waits.until.plus_ms(UNDER_WAY_MS) {
            return Err(format!("the candidate of round {round} waited until {}", waits.until));
        }
        if entry.kind == Kind::CandidateApproved {
            let by = entry.actor_person().ok_or("it names nobody who approves")?;
            if Some(by) == submitter {
                return Err(format!(
                    "whoever submitted the study approves the candidate of round {round}"
                ));
            }
            waits.approved.insert(by);
        }
        Ok(())
    }

    /// A round's model became a version.
    pub(crate) fn made(&mut self, entry: &Entry) -> Result<(), String> {
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        let number = entry.body().int("version").map_err(text)?;
        self.versions.insert((round.study.to_string(), number), round.number);
        Ok(())
    }

    /// A version was promoted, or was kept from it, by gates or by policy: what gates say follows from what was counted in the round
    /// whose model it is, and it went on only if it passed every one of them.
    pub(crate) fn promotion(&mut self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        let promoted = entry.kind == Kind::VersionPromoted;
        let says = |member| body.member(member).is_some();
        let promotes = body.find_text("action") == Some(Action::VersionPromote.as_str());
        if !promoted && !(promotes && (says("gates") || says("gates_sha256"))) {
            return Ok(());
        }
        let text = |e: CanonError| e.to_string();
        let study = body.text("study").map_err(text)?;
        // Of a study in an earlier shard nothing is known here.
        let Some(gating) = self.gatings.get(study) else { return Ok(()) };
        let Promotion { version, stage } =
            Promotion::read(entry).map_err(text)?.ok_or("it names no version")?;
        if promoted && !gating.gates.iter().any(|gate| gate.is_asked_of(stage)) {
            return same(entry, &format!("version {version}"), &[], &[]);
        }
        let number = self.versions.get(&(study.to_owned(), version)).copied();
        let number = number.ok_or_else(|| format!("study `{study}` has no version {version}"))?;
        let id = RoundId { study: body.parsed("study").map_err(text)?, number };
        let round = self.gave.get(&id);
        let round = round.ok_or_else(|| format!("round {id} gave no model"))?;
        let facts = facts(gating, &self.signed, number, round)?;
        let verdict = judge_promotion(&facts, &gating.gates, stage);
        let ours: Vec<String> = verdict.judged.iter().map(Judged::line).collect();
        let sites: Vec<String> = round.taken.keys().map(ToString::to_string).collect();
        match (entry.kind, verdict.pass) {
            (Kind::VersionPromoted, false) => {
                return Err(format!(
                    "version {version} goes on to `{stage}`, and fails a gate of its study that is asked then: {}",
                    verdict.reasons.join("; ")
                ));
            }
            // Who was told why it stays where it stands might have promoted it.
            (Kind::AdminRead, true) => {
                return Err(format!(
                    "it keeps version {version} from `{stage}` by gates of its study, and it passes every one that is asked then"
                ));
            }
            _ => {}
        }
        same(entry, &format!("version {version}"), &ours, &sites)?;
        self.judged += 1;
        Ok(())
    }
}

/// Whether gates that failed ask people, every one.
fn asks(verdict: &Verdict) -> bool {
    verdict.on_failure == OnFailure::Ask
}

/// What a study's gates say of a candidate.
fn verdict_on(
    gating: &Gating,
    signed: &BTreeMap<Digest, Signed>,
    number: u32,
    round: &Round,
) -> Result<Verdict, String> {
    let facts = facts(gating, signed, number, round)?;
    let gates: Vec<Gate> = gating.gates.iter().cloned().map(Gate::Declared).collect();
    Ok(judge(&facts, &gates))
}

/// What gates know of a round's candidate, by what sites have signed.
fn facts<'a>(
    gating: &'a Gating,
    signed: &BTreeMap<Digest, Signed>,
    number: u32,
    Round { counted, candidate, taken }: &Round,
) -> Result<Facts<'a>, String> {
    let due = gating.evaluation.as_ref().filter(|e| e.is_due(number, gating.rounds));
    let mut evaluated = due.map(|e| Evaluated::new(e, gating.classes));
    let mut epsilon = counted.epsilon;
    for (site, digest) in taken {
        let signed = signed.get(digest).ok_or("invariant: it was there")?;
        if signed.header.candidate != *candidate {
            return Err(format!("{site} has counted about another candidate"));
        }
        let spent = signed.header.epsilon.parse::<f64>().map_err(|e| e.to_string())?;
        epsilon = Some(epsilon.map_or(spent, |most| most.max(spent)));
        let all = evaluated.as_mut().ok_or("its study is not evaluated in this round")?;
        let added = all.add(site.clone(), gating.classes, &signed.counts);
        added.map_err(|e| format!("the counts of {site} cannot be: {e}"))?;
    }
    Ok(Facts {
        sites: counted.sites,
        examples: counted.examples,
        finite: true,
        witnesses: 0,
        epsilon,
        is_last: number == gating.rounds,
        evaluated,
    })
}

/// Holds what an entry says of gates, and of who has counted, against ours.
fn same(entry: &Entry, of: &str, gates: &[String], sites: &[String]) -> Result<(), String> {
    for (member, ours) in [("gates", gates), ("evaluated_by", sites)] {
        if let Some((ours, theirs)) = differ(entry, member, ours)? {
            return Err(format!(
                "`{member}` of {of} says `{theirs}`, and by what the sites signed it is `{ours}`"
            ));
        }
    }
    Ok(())
}

/// Where a list in an entry differs from ours, if it does: what is ours, and what is theirs.
fn differ(
    entry: &Entry,
    member: &str,
    ours: &[String],
) -> Result<Option<(String, String)>, String> {
    let ours: Vec<String> = ours.iter().map(|text| within_bounds(text)).collect();
    if let Some(digest) = entry.body().find_text(&format!("{member}_sha256")) {
        // It was too long for an entry.
        let list = Canon::List(ours.iter().map(|text| text.as_str().into()).collect());
        let found = Digest::of(&list.to_bytes()).to_string();
        return Ok((found != digest).then(|| (found, digest.to_owned())));
    }
    let theirs: Vec<String> = match entry.body().member(member) {
        Some(list) => {
            let texts = list.items().map(|item| item.as_text().map(str::to_owned));
            let texts: Option<_> = texts.collect();
            texts.ok_or_else(|| format!("`{member}` is no list of texts"))?
        }
        None => Vec::new(),
    };
    let at = |list: &[String], i: usize| list.get(i).cloned().unwrap_or_else(|| "nothing".into());
    let mut pairs = (0..ours.len().max(theirs.len())).map(|i| (at(&ours, i), at(&theirs, i)));
    Ok(pairs.find(|(a, b)| a != b))
}
