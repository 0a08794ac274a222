//! What sites have counted about a candidate: checked as it comes, made into figures when the candidate is judged.

use super::{Meta, exchange, problem_of, unreadable};
use crate::store::{Store, row::ExchangeRow, writer::CommitError};
use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use falaj_core::{
    audit::{Draft, Kind, objects::Object},
    canon::Node,
    evaluation::{
        Evaluation,
        answer::{AnswerError, EvaluationHeader, SignedCounts},
    },
    gate::{
        self, Declared, Evaluated, Facts, Figure, Judged, OnFailure, Verdict, patience::Weighed,
    },
    id::{Digest, RoundId, SiteId},
    registry::version::Stage,
    robust::Compared,
    round::{AnyRound, Evaluating, Phase, Promoted, Round, RoundSpec},
};
use falaj_proto::problem::{Code, Problem};

/// What a site was asked to count; the counts, what they cost and who pays is the site's to say.
pub(super) fn asked(meta: &Meta, round: &Round<Evaluating>, site: &SiteId) -> EvaluationHeader {
    header(meta, (&round.id, round.spec.attempt), round.stage.candidate, site)
}

fn header(
    meta: &Meta,
    (round, attempt): (&RoundId, u32),
    candidate: Digest,
    site: &SiteId,
) -> EvaluationHeader {
    let noise = meta.study.evaluation.as_ref().map_or("none", |e| e.noise.as_str());
    EvaluationHeader {
        round: round.clone(),
        attempt,
        site: site.clone(),
        study_sha256: meta.digest,
        candidate,
        counts: Digest::of(&[]),
        cells: 0,
        noise: noise.to_owned(),
        epsilon: "0".to_owned(),
        ledger: Digest::of(&[]),
    }
}

/// What a site said with its counts.
pub(super) struct Told {
    pub(super) header: EvaluationHeader,
    header_sha256: Digest,
}

impl Told {
    /// Puts it into the entry.
    pub(super) fn describe(&self, draft: Draft) -> Draft {
        draft
            .digest("candidate_sha256", &self.header.candidate)
            .digest("header_sha256", &self.header_sha256)
            .digest("counts_sha256", &self.header.counts)
            .text("epsilon", &self.header.epsilon)
            .text("noise", &self.header.noise)
    }
}

/// The signed counts of a row, if it has any.
pub(crate) fn stored(row: &ExchangeRow) -> Option<SignedCounts> {
    signed(&exchange::unpack(&row.messages)?).ok()
}

/// The signed counts in an answer's messages.
fn signed(messages: &[Bytes]) -> Result<SignedCounts, AnswerError> {
    let [header, signature, counts] = messages else { return Err(AnswerError::Counts) };
    let signature = (&**signature).try_into().map_err(|_| AnswerError::Signature)?;
    Ok(SignedCounts { header: header.to_vec(), signature, counts: counts.to_vec() })
}

/// Checks what a site has counted.
///
/// # Errors
/// A problem that says what is wrong: a signature that is none, counts about something else, or counts that cannot be.
pub(super) fn check(
    meta: &Meta,
    asked: &EvaluationHeader,
    key: &[u8; 32],
    messages: &[Bytes],
) -> Result<Told, Problem> {
    let key = VerifyingKey::from_bytes(key)
        .map_err(|e| Code::SignatureInvalid.because(format!("the site's key is none: {e}")))?;
    let signed = signed(messages).map_err(|e| problem(&e))?;
    let (header, counts) = signed.check(asked, &key).map_err(|e| problem(&e))?;
    let Some(e) = &meta.study.evaluation else {
        return Err(Code::Malformed.because("the study has no evaluation"));
    };
    e.layout(meta.study.target())
        .check(&counts)
        .map_err(|e| Code::ValueOutOfRange.because(format!("the counts are not taken: {e}")))?;
    Ok(Told { header, header_sha256: Digest::of(&signed.header) })
}

fn problem(e: &AnswerError) -> Problem {
    let code = match e {
        AnswerError::Header(_) => Code::HeaderMalformed,
        AnswerError::Signature => Code::SignatureInvalid,
        AnswerError::Counts => Code::DigestMismatch,
        AnswerError::Other(_) => Code::WrongRound,
    };
    code.because(format!("the answer is not taken: {e}"))
}

/// What is kept of a candidate's evaluation.
pub(crate) struct Kept<'a> {
    pub(crate) evaluated: Evaluated<'a>,
    /// The candidate; none where nobody has counted.
    pub(crate) candidate: Option<Digest>,
    /// The most epsilon that a site has spent on the study, this evaluation included.
    epsilon: Option<f64>,
}

/// What sites have counted about a candidate of this try of a round.
///
/// # Errors
/// When it cannot be read now.
pub(crate) async fn kept<'a>(
    store: &Store,
    meta: &Meta,
    e: &'a Evaluation,
    (round, attempt): (&RoundId, u32),
) -> Result<Kept<'a>, CommitError> {
    let failed =
        |what: String| CommitError::Failed(format!("the evaluation cannot be read: {what}"));
    let (target, min_sites) = (meta.study.target(), meta.study.cohort.min_sites);
    // Those whose updates are in it were asked, whether they have answered or not.
    let asked = store.counted_sites(round, attempt).await.map_err(|e| failed(e.to_string()))?;
    let evaluated = Evaluated::new(e, target, asked, min_sites);
    let mut kept = Kept { evaluated, candidate: None, epsilon: None };
    let rows = store.exchanges(round, attempt).await;
    let mut rows = rows.map_err(|e| failed(e.to_string()))?;
    rows.retain(|r| r.phase == Phase::Evaluation.as_str());
    // In the order of names, so that whoever does it again finds the same.
    rows.sort_by(|a, b| a.site.cmp(&b.site));
    for row in rows {
        let signed = stored(&row);
        let signed = signed.ok_or_else(|| failed(format!("of {}", row.site)))?;
        let header = EvaluationHeader::parse(&signed.header).map_err(|e| failed(e.to_string()))?;
        let counts = falaj_core::evaluation::answer::from_bytes(&signed.counts);
        let counts = counts.ok_or_else(|| failed(format!("of {}", row.site)))?;
        let epsilon = header.epsilon.parse::<f64>().unwrap_or(f64::INFINITY);
        kept.epsilon = Some(kept.epsilon.map_or(epsilon, |most| most.max(epsilon)));
        kept.candidate = Some(header.candidate);
        let added = kept.evaluated.add(row.site, target, &counts);
        added.map_err(|e| failed(e.to_string()))?;
    }
    Ok(kept)
}

/// Adds what was counted about a round's candidate to what is known of it.
///
/// # Errors
/// When it cannot be read now.
pub(super) async fn facts<'a>(
    store: &Store,
    meta: &'a Meta,
    (round, spec): (&RoundId, &RoundSpec),
    facts: Facts<'a>,
) -> Result<Facts<'a>, CommitError> {
    let mut facts = Facts { is_last: round.number == meta.study.rounds.count, ..facts };
    if let Some(e) = meta.study.evaluation.as_ref().filter(|_| spec.evaluates) {
        let kept = kept(store, meta, e, (round, spec.attempt)).await?;
        // What an evaluation says includes what was spent before.
        let spent = facts.epsilon.into_iter().chain(kept.epsilon);
        facts.epsilon = spent.reduce(f64::max);
        facts.evaluated = Some(kept.evaluated);
    }
    Ok(facts)
}

/// What gates say of a version, and what an entry says of that.
pub(crate) struct Asked {
    pub(crate) verdict: Verdict,
    pub(crate) said: Vec<(&'static str, Vec<String>)>,
}

/// Judges the model of a round that is to go on to a stage as a version, by what sites have signed in that round. Nothing that was
/// there then is ever forgotten, so that it is the same each time, and whoever audits it finds the same.
///
/// # Errors
/// When it cannot be read now.
pub(crate) async fn promotion(
    store: &Store,
    meta: &Meta,
    number: u32,
    to: Stage,
) -> Result<Asked, Problem> {
    let study = &meta.study;
    if !study.gates.iter().any(|gate| gate.is_asked_of(to)) {
        return Ok(Asked { verdict: Verdict::of(Vec::new()), said: Vec::new() });
    }
    let rounds = store.rounds(&study.id).await.map_err(unreadable)?;
    let gave = rounds.iter().find_map(|round| match round {
        AnyRound::Promoted(round) if round.id.number == number => Some(round),
        _ => None,
    });
    let round = gave.ok_or_else(|| {
        Code::Internal.because(format!(
            "the coordinator has no round {number} that gave the version's model, and its gates cannot be asked"
        ))
    })?;
    let mut facts = Facts::of(round.stage.updates.values(), true, 0);
    let of_epsilon = |gate: &&Declared| gate.is_asked_of(to) && gate.figure == Figure::Epsilon;
    if study.gates.iter().any(|gate| of_epsilon(&gate)) {
        facts.epsilon = spent_by(store, meta, &rounds, number).await?;
    }
    if let Some(e) = study.evaluation.as_ref().filter(|_| round.spec.evaluates) {
        let kept = kept(store, meta, e, (&round.id, round.spec.attempt)).await;
        let kept = kept.map_err(|e| problem_of(&e))?;
        facts.evaluated = Some(kept.evaluated);
    }
    let asks =
        |gate: &Declared| gate.is_asked_of(to) && matches!(gate.figure, Figure::EachUpdate(_));
    if study.gates.iter().any(asks) {
        facts.compared = compared(store, round).await?;
    }
    let verdict = gate::judge_promotion(&facts, &study.gates, to);
    let said = said(&facts, &verdict);
    Ok(Asked { verdict, said })
}

/// The most epsilon that a site had spent on the study when a round was over, whether its update is in the round's model or not.
async fn spent_by(
    store: &Store,
    meta: &Meta,
    rounds: &[AnyRound],
    number: u32,
) -> Result<Option<f64>, Problem> {
    let updates = store.updates(&meta.study.id).await.map_err(unreadable)?;
    let updates = updates.iter().filter(|row| row.round.number <= number);
    let mut spent: Option<f64> =
        updates.map(|row| row.epsilon.parse().unwrap_or(f64::INFINITY)).reduce(f64::max);
    // One round at a time: counts are larger than what they cost.
    for round in rounds.iter().filter(|r| r.id().number <= number && r.spec().evaluates) {
        let Some(e) = &meta.study.evaluation else { break };
        let kept = kept(store, meta, e, (round.id(), round.spec().attempt)).await;
        let kept = kept.map_err(|e| problem_of(&e))?;
        spent = spent.into_iter().chain(kept.epsilon).reduce(f64::max);
    }
    Ok(spent)
}

/// What the log says of how the updates of a round that gave a model compare with each other: by the same, whoever audits it judges.
/// Nothing where the entry's contents were deleted, and gates that ask for it fail.
async fn compared(store: &Store, round: &Round<Promoted>) -> Result<Option<Compared>, Problem> {
    let of = Object::Round(round.id.clone());
    let entry = store.find_one(&of, Some(Kind::ModelPublished), |_| true).await;
    let Some(entry) = entry.map_err(unreadable)? else { return Ok(None) };
    let Some(list) = entry.body().member("compared") else { return Ok(None) };
    let lines = list.items().filter_map(Node::as_text);
    let sites: Vec<SiteId> = round.stage.updates.keys().cloned().collect();
    Ok(Compared::parse(lines, &sites).ok())
}

/// How a round's candidate compares with the best before it, where the study has patience.
pub(super) fn weighed(
    meta: &Meta,
    spec: &RoundSpec,
    facts: &Facts<'_>,
    candidate: (u32, Digest),
) -> Option<Weighed> {
    meta.study.patience.as_ref()?.weigh(&spec.progress, facts, candidate)
}

/// What becomes of a candidate by a verdict, in one word.
pub(super) const fn word(verdict: &Verdict) -> &'static str {
    match verdict.on_failure {
        _ if verdict.pass => "published",
        OnFailure::Ask => "held",
        OnFailure::Reject => "rejected",
        OnFailure::RollBack => "rolled_back",
        OnFailure::Stop => "stopped",
    }
}

/// What the log says of a verdict, beside what failed: each gate with its figure, how updates compare, and who has counted.
pub(super) fn said(facts: &Facts<'_>, verdict: &Verdict) -> Vec<(&'static str, Vec<String>)> {
    let mut said = Vec::new();
    if !verdict.judged.is_empty() {
        said.push(("gates", verdict.judged.iter().map(Judged::line).collect()));
    }
    if let Some(compared) = &facts.compared {
        said.push(("compared", compared.lines()));
    }
    if let Some(evaluated) = &facts.evaluated {
        let sites = evaluated.by_site.keys().map(ToString::to_string);
        said.push(("evaluated_by", sites.collect()));
    }
    said
}
