//! One pass of the protocol, as a pure state machine.
//!
//! `Planned → Enrolling → Collecting → Aggregating → Gated → Promoted | Rejected`, and `Failed` from any
//! open stage. A round whose candidate is evaluated has a stage more: `Aggregating → Evaluating → Gated`. One whose failing gates
//! all ask waits for people: `Gated → Held → Promoted | Rejected`. A masked round (`crate::secagg`) has four exchanges of messages in between:
//! `Enrolling → keys → shares → Collecting → lists → reveals → Aggregating`. [`step`] is total over stage and event: it returns what comes next, or a [`Refusal`], which
//! is data and leaves the round as it was. A round holds digests and counts, never a tensor.

use crate::{
    audit::person::Person,
    gate::{
        OnFailure, Verdict,
        patience::{Progress, Weighed},
    },
    id::{Digest, RoundId, SiteId},
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

/// What stays the same through all stages of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundSpec {
    /// The model that the sites start from.
    pub base: Digest,
    /// Updates without which the round fails.
    pub min_sites: u32,
    /// The most sites that it takes in.
    pub max_sites: u32,
    /// Sites that are expected; once all are in, nobody is waited for. 0 when it is not known.
    pub expected_sites: u32,
    /// How long enrolling and collecting may each take.
    pub deadline_ms: u64,
    /// How long a quorum waits for the rest.
    pub grace_ms: u64,
    /// 0 for the first try of this round number.
    pub attempt: u32,
    /// Whether updates travel masked.
    pub masked: bool,
    /// The members of a masked round, once enrolment is over.
    pub members: Vec<SiteId>,
    /// Whether its candidate is evaluated on records that the sites hold out.
    pub evaluates: bool,
    /// The last model that passed every gate after it had been evaluated; the study's first before there is one.
    pub good: Digest,
    /// How far the study had come before it.
    pub progress: Progress,
}

/// What one stage knows, plus what every stage shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round<S> {
    /// Which round.
    pub id: RoundId,
    /// What was planned.
    pub spec: RoundSpec,
    /// What this stage knows.
    pub stage: S,
}

impl<S> Round<S> {
    fn into_stage<T>(self, stage: T) -> Round<T> {
        Round { id: self.id, spec: self.spec, stage }
    }
}

/// Nothing has happened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned;

/// Sites are joining.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolling {
    /// Sites that will get a task, and those that declined.
    pub sites: BTreeMap<SiteId, Seat>,
    /// The round fails if it has no quorum by then.
    pub deadline: Timestamp,
    /// With quorum: when the wait for the rest ends.
    pub closes: Option<Timestamp>,
}

/// What the sites of a round are asked for, beside their updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Each site's keys for the round.
    Keys,
    /// Shares of each site's secrets, for its neighbours.
    Shares,
    /// Each site's signature on the list of those whose updates arrived.
    Lists,
    /// The shares that unmask the sum.
    Reveals,
    /// What each site counts over the records that it holds out. Not of masked rounds alone.
    Evaluation,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 5] =
        [Self::Keys, Self::Shares, Self::Lists, Self::Reveals, Self::Evaluation];

    /// Its name, as messages and the log spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Shares => "shares",
            Self::Lists => "lists",
            Self::Reveals => "reveals",
            Self::Evaluation => "evaluation",
        }
    }

    /// The phase of that name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.as_str() == name)
    }
}

/// Where one site stands in an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is owed or has been sent the question.
    Asked,
    /// Its answer is durable: SHA-256 of its bytes.
    Answered(Digest),
    /// It will not answer, and said why.
    Gone(String),
}

/// The sites of a masked round exchange messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchanging {
    /// What they are asked for.
    pub phase: Phase,
    /// Those who are still with it.
    pub sites: BTreeMap<SiteId, Turn>,
    /// The masked updates, once they are fixed.
    pub updates: BTreeMap<SiteId, UpdateRef>,
    /// The round fails if it has no quorum by then.
    pub deadline: Timestamp,
    /// With quorum: when the wait for the rest ends.
    pub closes: Option<Timestamp>,
}

/// Sites are training and sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collecting {
    /// Every site of the cohort.
    pub sites: BTreeMap<SiteId, Seat>,
    /// The round fails if it has no quorum by then.
    pub deadline: Timestamp,
    /// With quorum: when the wait for the rest ends.
    pub closes: Option<Timestamp>,
}

/// The updates are fixed; the mean is being computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aggregating {
    /// What goes into the mean, by site.
    pub updates: BTreeMap<SiteId, UpdateRef>,
}

/// A candidate exists, and sites count what it says of the records that they hold out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluating {
    /// What went into it.
    pub updates: BTreeMap<SiteId, UpdateRef>,
    /// The candidate model.
    pub candidate: Digest,
    /// Those whose updates are in it.
    pub sites: BTreeMap<SiteId, Turn>,
    /// It is judged by what is there by then.
    pub deadline: Timestamp,
    /// With quorum: when the wait for the rest ends.
    pub closes: Option<Timestamp>,
}

/// A candidate exists and is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gated {
    /// What went into it.
    pub updates: BTreeMap<SiteId, UpdateRef>,
    /// The candidate model.
    pub candidate: Digest,
}

/// Gates that ask keep the candidate out, and people decide over it. Nothing becomes of it by silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What went into it.
    pub updates: BTreeMap<SiteId, UpdateRef>,
    /// The candidate model.
    pub candidate: Digest,
    /// Which gates, and why.
    pub reasons: Vec<String>,
    /// The witnesses that stood behind it when it was judged, as the log names them.
    pub witnesses: Vec<String>,
    /// It is rejected unless enough people have approved it by then. A restart does not move it.
    pub until: Timestamp,
    /// Who has.
    pub approved: BTreeSet<Person>,
    /// How far the study comes with it, if they let it through.
    pub progress: Progress,
}

/// People who have to approve a candidate that gates ask about: different ones, and none of them whoever submitted the study.
pub const APPROVERS: usize = 2;
/// How long it waits for them: a week.
pub const HELD_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// The candidate became the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// What went into it.
    pub updates: BTreeMap<SiteId, UpdateRef>,
    /// The new model.
    pub model: Digest,
    /// How far the study has come with it.
    pub progress: Progress,
}

/// A gate kept the candidate out; the base model stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The candidate that failed.
    pub candidate: Digest,
    /// Which gates, and why.
    pub reasons: Vec<String>,
    /// What becomes of the study.
    pub on_failure: OnFailure,
}

/// The round ended without a candidate; the base model stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Why.
    pub reason: FailReason,
}

/// Why a round failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailReason {
    /// Too few sites or updates before the deadline.
    NoQuorum {
        /// How many there were.
        had: u32,
        /// How many were needed.
        needed: u32,
    },
    /// An operator stopped the study.
    Stopped,
    /// Aggregation gave numbers that are not a model.
    Aggregation(String),
    /// The certificate of a site was revoked whose update was counted, and its updates are not kept.
    Revoked(SiteId),
}

impl std::fmt::Display for FailReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoQuorum { had, needed } => write!(f, "no quorum: {had} of {needed} sites"),
            Self::Stopped => f.write_str("stopped by an operator"),
            Self::Aggregation(why) => write!(f, "aggregation failed: {why}"),
            Self::Revoked(site) => {
                write!(f, "an update of {site} was counted, whose certificate was revoked")
            }
        }
    }
}

/// Where one site stands in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seat {
    /// It joined, and is owed or has been sent its task.
    Joined,
    /// Its update is durable and counted.
    Updated(UpdateRef),
    /// It will not take part, and said why.
    Declined(String),
}

/// A durable update, by its digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateRef {
    /// SHA-256 of the payload.
    pub payload: Digest,
    /// SHA-256 of the signed header.
    pub header: Digest,
    /// Examples behind it.
    pub weight: u32,
}

/// A round in any stage: what storage and the wire see.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is documented at its stage")]
pub enum AnyRound {
    Planned(Round<Planned>),
    Enrolling(Round<Enrolling>),
    Exchanging(Round<Exchanging>),
    Collecting(Round<Collecting>),
    Aggregating(Round<Aggregating>),
    Evaluating(Round<Evaluating>),
    Gated(Round<Gated>),
    Held(Round<Held>),
    Promoted(Round<Promoted>),
    Rejected(Round<Rejected>),
    Failed(Round<Failed>),
}

/// What can happen to a round.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The engine starts the round.
    Open,
    /// A site's agent is connected and policy admits it.
    Joined(SiteId),
    /// A site will not take part in this round.
    Declined(SiteId, String),
    /// An update passed admission and lies durable under its digest.
    Update(SiteId, UpdateRef),
    /// A message of the exchange passed its checks: its digest.
    Answered(SiteId, Phase, Digest),
    /// The mean was computed.
    Aggregated(Digest),
    /// The mean could not be computed, or its updates not be compared for a gate.
    AggregationFailed(String),
    /// The gates have spoken.
    Judged(Verdict),
    /// They have, and ask people.
    Asked {
        /// Which gates, and why.
        reasons: Vec<String>,
        /// The witnesses that stand behind the round, as the log names them.
        witnesses: Vec<String>,
        /// How the candidate compares with the best before it, where the study has patience.
        weighed: Option<Weighed>,
    },
    /// Somebody approves the candidate.
    Approved {
        /// Who.
        by: Person,
        /// Those who approved it and are not heard any more.
        gone: BTreeSet<Person>,
    },
    /// Somebody refuses the candidate, and says why.
    Refused(String),
    /// Time has passed.
    Tick,
    /// The coordinator has restarted: the time it was away does not count against the sites.
    Resumed,
    /// A site may take part no longer. What is counted of it stays, or ends this try of the round.
    Revoked {
        /// Which.
        site: SiteId,
        /// Whether what is counted of it stays.
        keep: bool,
    },
    /// An operator stops the study.
    Stop,
}

/// What stands in the place of a reason when a site has lost its certificate.
const LOST: &str = "its certificate was revoked";

/// What to do once a step is durable. Each is idempotent under the round's version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Push the round's task to this site.
    SendTask(SiteId),
    /// Push to this site what the round wants of it in this stage.
    Ask(SiteId),
    /// Fold the updates into a candidate.
    Aggregate,
    /// Judge the candidate by the study's gates.
    Judge(Digest),
    /// The round is over: open the next one, retry, or finish the study.
    Advance,
}

/// What a step leaves in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The round opened.
    Opened,
    /// A site joined.
    Joined(SiteId),
    /// A site declined, in its own words.
    Declined(SiteId, String),
    /// An update is durable and counted.
    Accepted(SiteId, UpdateRef),
    /// A message of the exchange is durable.
    Answered(SiteId, Phase, Digest),
    /// No further update is taken.
    Closed(Vec<Digest>),
    /// A candidate became the model.
    Published(Digest),
    /// A candidate was kept out.
    Rejected(Digest, Vec<String>),
    /// A candidate waits for people, until then.
    Held(Digest, Vec<String>, Timestamp),
    /// Somebody approved it.
    Approved(Digest),
    /// Somebody refused it.
    Refused(Digest),
    /// The round failed.
    Failed(FailReason),
}

/// What follows from an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The round afterwards.
    pub next: AnyRound,
    /// What the log gets, in the same transaction.
    pub records: Vec<Record>,
    /// What to do once that is durable.
    pub effects: Vec<Effect>,
}

/// Why an event was not taken. The round is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The same update is already counted: acknowledge it again, count it once.
    #[error("this very update is already counted in round {0}")]
    AlreadyCounted(RoundId),
    /// Another update of this site is already counted.
    #[error("site {site} has already sent a different update for round {round}")]
    Duplicate {
        /// The round.
        round: RoundId,
        /// The site.
        site: SiteId,
    },
    /// The site is not in the cohort.
    #[error("site {site} is not in the cohort of round {round}; wait for a task before sending")]
    NotEnrolled {
        /// The round.
        round: RoundId,
        /// The site.
        site: SiteId,
    },
    /// The site said that it would not take part.
    #[error("site {site} declined round {round}")]
    HasDeclined {
        /// The round.
        round: RoundId,
        /// The site.
        site: SiteId,
    },
    /// The round takes no more updates.
    #[error("round {round} takes no updates any more (it is {stage})")]
    Late {
        /// The round.
        round: RoundId,
        /// The stage that it is in.
        stage: &'static str,
    },
    /// Whoever approves has done so.
    #[error("you have approved the candidate of round {0} already: another person has to")]
    AlreadyApproved(RoundId),
    /// The cohort is full.
    #[error("round {0} has as many sites as it takes")]
    Full(RoundId),
    /// The event means nothing in this stage.
    #[error("round {round} is {stage}: {event} means nothing there")]
    OutOfPlace {
        /// The round.
        round: RoundId,
        /// The stage that it is in.
        stage: &'static str,
        /// The event.
        event: &'static str,
    },
}

impl Event {
    const fn name(&self) -> &'static str {
        match self {
            Self::Open => "opening",
            Self::Joined(_) => "joining",
            Self::Declined(..) => "declining",
            Self::Update(..) => "an update",
            Self::Answered(..) => "an answer",
            Self::Aggregated(_) | Self::AggregationFailed(_) => "an aggregate",
            Self::Judged(_) | Self::Asked { .. } => "a verdict",
            Self::Approved { .. } => "an approval",
            Self::Refused(_) => "a refusal",
            Self::Revoked { .. } => "a revocation",
            Self::Tick => "a tick",
            Self::Resumed => "resuming",
            Self::Stop => "stopping",
        }
    }
}

impl AnyRound {
    /// A round that nobody has started.
    #[must_use]
    pub const fn planned(id: RoundId, spec: RoundSpec) -> Self {
        Self::Planned(Round { id, spec, stage: Planned })
    }

    /// Which round.
    #[must_use]
    pub const fn id(&self) -> &RoundId {
        match self {
            Self::Planned(r) => &r.id,
            Self::Enrolling(r) => &r.id,
            Self::Exchanging(r) => &r.id,
            Self::Collecting(r) => &r.id,
            Self::Aggregating(r) => &r.id,
            Self::Evaluating(r) => &r.id,
            Self::Gated(r) => &r.id,
            Self::Held(r) => &r.id,
            Self::Promoted(r) => &r.id,
            Self::Rejected(r) => &r.id,
            Self::Failed(r) => &r.id,
        }
    }

    /// What was planned.
    #[must_use]
    pub const fn spec(&self) -> &RoundSpec {
        match self {
            Self::Planned(r) => &r.spec,
            Self::Enrolling(r) => &r.spec,
            Self::Exchanging(r) => &r.spec,
            Self::Collecting(r) => &r.spec,
            Self::Aggregating(r) => &r.spec,
            Self::Evaluating(r) => &r.spec,
            Self::Gated(r) => &r.spec,
            Self::Held(r) => &r.spec,
            Self::Promoted(r) => &r.spec,
            Self::Rejected(r) => &r.spec,
            Self::Failed(r) => &r.spec,
        }
    }

    /// How far the study has come, this round included once it has given a model.
    #[must_use]
    pub const fn progress(&self) -> &Progress {
        match self {
            Self::Promoted(r) => &r.stage.progress,
            _ => &self.spec().progress,
        }
    }

    /// The stage's name, as people and metrics see it.
    #[must_use]
    pub const fn stage(&self) -> &'static str {
        match self {
            Self::Planned(_) => "planned",
            Self::Enrolling(_) => "enrolling",
            Self::Exchanging(r) => match r.stage.phase {
                Phase::Keys => "exchanging keys",
                Phase::Shares => "exchanging shares",
                Phase::Lists => "confirming",
                Phase::Reveals => "unmasking",
                Phase::Evaluation => "evaluating",
            },
            Self::Collecting(_) => "collecting",
            Self::Aggregating(_) => "aggregating",
            Self::Evaluating(_) => "evaluating",
            Self::Gated(_) => "gated",
            Self::Held(_) => "held",
            Self::Promoted(_) => "promoted",
            Self::Rejected(_) => "rejected",
            Self::Failed(_) => "failed",
        }
    }

    /// Whether nothing further can happen.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self, Self::Promoted(_) | Self::Rejected(_) | Self::Failed(_))
    }

    /// When [`Event::Tick`] is due, if time alone can move this round.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Timestamp> {
        let (deadline, closes) = match self {
            Self::Enrolling(r) => (r.stage.deadline, r.stage.closes),
            Self::Exchanging(r) => (r.stage.deadline, r.stage.closes),
            Self::Collecting(r) => (r.stage.deadline, r.stage.closes),
            Self::Evaluating(r) => (r.stage.deadline, r.stage.closes),
            Self::Held(r) => (r.stage.until, None),
            _ => return None,
        };
        Some(closes.map_or(deadline, |c| c.min(deadline)))
    }

    /// Where each site stands, in a word, while the round waits for sites: joined, updated, answered, or
    /// declined and why.
    #[must_use]
    pub fn standing(&self) -> Vec<(&SiteId, String)> {
        let declined = |why: &str| format!("declined: {why}");
        let seat = |seat: &Seat| match seat {
            Seat::Joined => "joined".to_owned(),
            Seat::Updated(_) => "updated".to_owned(),
            Seat::Declined(why) => declined(why),
        };
        let turn = |turn: &Turn| match turn {
            Turn::Asked => "joined".to_owned(),
            Turn::Answered(_) => "answered".to_owned(),
            Turn::Gone(why) => declined(why),
        };
        match self {
            Self::Enrolling(r) => r.stage.sites.iter().map(|(s, v)| (s, seat(v))).collect(),
            Self::Collecting(r) => r.stage.sites.iter().map(|(s, v)| (s, seat(v))).collect(),
            Self::Exchanging(r) => r.stage.sites.iter().map(|(s, v)| (s, turn(v))).collect(),
            Self::Evaluating(r) => r.stage.sites.iter().map(|(s, v)| (s, turn(v))).collect(),
            _ => Vec::new(),
        }
    }

    /// How many sites are with it.
    #[must_use]
    pub fn present(&self) -> usize {
        let gone = |word: &str| word.starts_with("declined");
        let there = self.standing().iter().filter(|(_, word)| !gone(word)).count();
        there.max(self.updates().len())
    }

    /// The updates that are counted so far.
    #[must_use]
    pub fn updates(&self) -> BTreeMap<SiteId, UpdateRef> {
        match self {
            Self::Collecting(r) => counted(&r.stage.sites),
            Self::Exchanging(r) => r.stage.updates.clone(),
            Self::Aggregating(r) => r.stage.updates.clone(),
            Self::Evaluating(r) => r.stage.updates.clone(),
            Self::Gated(r) => r.stage.updates.clone(),
            Self::Held(r) => r.stage.updates.clone(),
            Self::Promoted(r) => r.stage.updates.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// What the engine owes this round after a restart: the effects of the stage it is in.
    #[must_use]
    pub fn owed(&self) -> Vec<Effect> {
        match self {
            Self::Aggregating(_) => vec![Effect::Aggregate],
            Self::Gated(r) => vec![Effect::Judge(r.stage.candidate)],
            Self::Promoted(_) | Self::Rejected(_) | Self::Failed(_) => vec![Effect::Advance],
            Self::Planned(_)
            | Self::Enrolling(_)
            | Self::Exchanging(_)
            | Self::Collecting(_)
            | Self::Evaluating(_)
            | Self::Held(_) => Vec::new(),
        }
    }
}

fn counted(sites: &BTreeMap<SiteId, Seat>) -> BTreeMap<SiteId, UpdateRef> {
    sites
        .iter()
        .filter_map(|(site, seat)| match seat {
            Seat::Updated(u) => Some((site.clone(), u.clone())),
            _ => None,
        })
        .collect()
}

fn count(sites: &BTreeMap<SiteId, Seat>, is: impl Fn(&Seat) -> bool) -> u32 {
    u32::try_from(sites.values().filter(|s| is(s)).count()).unwrap_or(u32::MAX)
}

const fn is_joined(seat: &Seat) -> bool {
    matches!(seat, Seat::Joined)
}

const fn is_updated(seat: &Seat) -> bool {
    matches!(seat, Seat::Updated(_))
}

/// What `event` makes of `round` at `now`.
///
/// # Errors
/// A [`Refusal`] says why the event was not taken; the round stays as it is.
pub fn step(round: &AnyRound, event: Event, now: Timestamp) -> Result<Step, Refusal> {
    if round.is_over() {
        return Err(match event {
            Event::Update(site, update) => late_or_counted(round, &site, &update),
            other => out_of_place(round, &other),
        });
    }
    match (round.clone(), event) {
        (round, Event::Revoked { site, keep }) => revoked(&round, site, keep, now),
        (AnyRound::Planned(r), Event::Stop) => Ok(fail(r, FailReason::Stopped)),
        (AnyRound::Enrolling(r), Event::Stop) => Ok(fail(r, FailReason::Stopped)),
        (AnyRound::Exchanging(r), Event::Stop) => Ok(fail(r, FailReason::Stopped)),
        (AnyRound::Collecting(r), Event::Stop) => Ok(fail(r, FailReason::Stopped)),
        (AnyRound::Aggregating(r), Event::Stop) => Ok(fail(r, FailReason::Stopped)),
        (AnyRound::Evaluating(r), Event::Stop) => Ok(fail(r, FailReason::Stopped)),
        (AnyRound::Gated(r), Event::Stop) => Ok(fail(r, FailReason::Stopped)),
        (AnyRound::Held(r), Event::Stop) => Ok(fail(r, FailReason::Stopped)),

        (AnyRound::Planned(r), Event::Open) => {
            let stage = Enrolling {
                sites: BTreeMap::new(),
                deadline: now.plus_ms(r.spec.deadline_ms),
                closes: None,
            };
            Ok(quiet(AnyRound::Enrolling(r.into_stage(stage)), vec![Record::Opened]))
        }
        (AnyRound::Enrolling(r), event) => r.on(event, now),
        (AnyRound::Exchanging(r), event) => r.on(event, now),
        (AnyRound::Collecting(r), event) => r.on(event, now),
        (AnyRound::Evaluating(r), event) => r.on(event, now),
        (AnyRound::Aggregating(r), Event::Aggregated(candidate)) if r.spec.evaluates => {
            Ok(r.evaluate(candidate, now))
        }
        (AnyRound::Aggregating(r), Event::Aggregated(candidate)) => {
            let stage = Gated { updates: r.stage.updates.clone(), candidate };
            Ok(Step {
                next: AnyRound::Gated(r.into_stage(stage)),
                records: Vec::new(),
                effects: vec![Effect::Judge(candidate)],
            })
        }
        (AnyRound::Aggregating(r), Event::AggregationFailed(why)) => {
            Ok(fail(r, FailReason::Aggregation(why)))
        }
        (AnyRound::Gated(r), Event::AggregationFailed(why)) => {
            Ok(fail(r, FailReason::Aggregation(why)))
        }
        (AnyRound::Gated(r), Event::Judged(verdict)) => Ok(r.judged(verdict)),
        (AnyRound::Gated(r), Event::Asked { reasons, witnesses, weighed }) => {
            Ok(r.hold((reasons, witnesses), weighed, now))
        }
        (AnyRound::Held(r), event) => r.on(event, now),
        (round, Event::Update(site, update)) => Err(late_or_counted(&round, &site, &update)),
        (round, event) => Err(out_of_place(&round, &event)),
    }
}

/// A site may take part no longer: it declines what it has not done yet, and what it has done ends the round unless that is
/// kept.
fn revoked(round: &AnyRound, site: SiteId, keep: bool, now: Timestamp) -> Result<Step, Refusal> {
    if !keep && round.updates().contains_key(&site) {
        let reason = FailReason::Revoked(site);
        return Ok(match round.clone() {
            AnyRound::Exchanging(r) => fail(r, reason),
            AnyRound::Collecting(r) => fail(r, reason),
            AnyRound::Aggregating(r) => fail(r, reason),
            AnyRound::Evaluating(r) => fail(r, reason),
            AnyRound::Gated(r) => fail(r, reason),
            AnyRound::Held(r) => fail(r, reason),
            // In no other stage is anything counted that could still be dropped.
            other => quiet(other, Vec::new()),
        });
    }
    if round.standing().iter().any(|(seated, word)| **seated == site && word == "joined") {
        return step(round, Event::Declined(site, LOST.into()), now);
    }
    Ok(quiet(round.clone(), Vec::new()))
}

fn out_of_place(round: &AnyRound, event: &Event) -> Refusal {
    Refusal::OutOfPlace { round: round.id().clone(), stage: round.stage(), event: event.name() }
}

/// A closed round refuses updates, but still knows the ones that it counted.
fn late_or_counted(round: &AnyRound, site: &SiteId, update: &UpdateRef) -> Refusal {
    match round.updates().get(site) {
        Some(u) if u.payload == update.payload => Refusal::AlreadyCounted(round.id().clone()),
        Some(_) => Refusal::Duplicate { round: round.id().clone(), site: site.clone() },
        None => Refusal::Late { round: round.id().clone(), stage: round.stage() },
    }
}

const fn quiet(next: AnyRound, records: Vec<Record>) -> Step {
    Step { next, records, effects: Vec::new() }
}

fn fail<S>(round: Round<S>, reason: FailReason) -> Step {
    Step {
        next: AnyRound::Failed(round.into_stage(Failed { reason: reason.clone() })),
        records: vec![Record::Failed(reason)],
        effects: vec![Effect::Advance],
    }
}

impl Round<Enrolling> {
    fn on(mut self, event: Event, now: Timestamp) -> Result<Step, Refusal> {
        let mut records = Vec::new();
        match event {
            Event::Joined(site) => {
                if !self.stage.sites.contains_key(&site) {
                    if self.stage.sites.len() >= self.spec.max_sites as usize {
                        return Err(Refusal::Full(self.id));
                    }
                    self.stage.sites.insert(site.clone(), Seat::Joined);
                    records.push(Record::Joined(site));
                }
            }
            Event::Declined(site, why) => {
                self.stage.sites.insert(site.clone(), Seat::Declined(why.clone()));
                records.push(Record::Declined(site, why));
            }
            Event::Resumed => {
                self.stage.deadline = now.plus_ms(self.spec.deadline_ms);
                self.stage.closes = self.stage.closes.map(|_| now.plus_ms(self.spec.grace_ms));
            }
            Event::Tick => {}
            Event::Update(site, _) => {
                return Err(Refusal::NotEnrolled { round: self.id, site });
            }
            other => return Err(out_of_place(&AnyRound::Enrolling(self), &other)),
        }
        Ok(self.settle(records, now))
    }

    /// Starts collecting when everyone is here or the wait is over; fails without a quorum.
    fn settle(mut self, records: Vec<Record>, now: Timestamp) -> Step {
        let joined = count(&self.stage.sites, is_joined);
        let seated = u32::try_from(self.stage.sites.len()).unwrap_or(u32::MAX);
        let quorum = joined >= self.spec.min_sites;
        if quorum && self.stage.closes.is_none() {
            self.stage.closes = Some(now.plus_ms(self.spec.grace_ms));
        }
        let everyone = self.spec.expected_sites > 0 && seated >= self.spec.expected_sites;
        let waited = self.stage.closes.is_some_and(|c| now >= c);
        let overdue = now >= self.stage.deadline;
        if quorum && (everyone || waited || overdue) {
            return self.collect(records, now);
        }
        if !quorum && (overdue || everyone) {
            let needed = self.spec.min_sites;
            let mut step = fail(self, FailReason::NoQuorum { had: joined, needed });
            step.records = records.into_iter().chain(step.records).collect();
            return step;
        }
        quiet(AnyRound::Enrolling(self), records)
    }

    fn collect(mut self, records: Vec<Record>, now: Timestamp) -> Step {
        if self.spec.masked {
            let joined = self.stage.sites.iter().filter(|(_, seat)| is_joined(seat));
            let members: Vec<SiteId> = joined.map(|(site, _)| site.clone()).collect();
            self.spec.members.clone_from(&members);
            let effects = members.iter().cloned().map(Effect::SendTask).collect();
            return self.ask(Phase::Keys, members, BTreeMap::new(), (records, effects, now));
        }
        let effects = self
            .stage
            .sites
            .iter()
            .filter(|(_, seat)| is_joined(seat))
            .map(|(site, _)| Effect::SendTask(site.clone()))
            .collect();
        let stage = Collecting {
            sites: self.stage.sites.clone(),
            deadline: now.plus_ms(self.spec.deadline_ms),
            closes: None,
        };
        Step { next: AnyRound::Collecting(self.into_stage(stage)), records, effects }
    }
}

impl<S> Round<S> {
    /// Begins an exchange among `sites`.
    fn ask(
        self,
        phase: Phase,
        sites: Vec<SiteId>,
        updates: BTreeMap<SiteId, UpdateRef>,
        (records, effects, now): (Vec<Record>, Vec<Effect>, Timestamp),
    ) -> Step {
        let stage = Exchanging {
            phase,
            sites: sites.into_iter().map(|site| (site, Turn::Asked)).collect(),
            updates,
            deadline: now.plus_ms(self.spec.deadline_ms),
            closes: None,
        };
        Step { next: AnyRound::Exchanging(self.into_stage(stage)), records, effects }
    }
}

impl Round<Exchanging> {
    fn on(mut self, event: Event, now: Timestamp) -> Result<Step, Refusal> {
        let (mut records, mut effects) = (Vec::new(), Vec::new());
        let not_enrolled =
            |id: &RoundId, site: SiteId| Err(Refusal::NotEnrolled { round: id.clone(), site });
        match event {
            Event::Joined(site) => match (self.stage.sites.get(&site), self.stage.phase) {
                // It is back: it may not know what it is asked for.
                (Some(Turn::Asked), Phase::Keys) => effects.push(Effect::SendTask(site)),
                (Some(Turn::Asked), _) => effects.push(Effect::Ask(site)),
                (Some(Turn::Answered(_) | Turn::Gone(_)), _) => {}
                // Members are fixed when enrolment is over.
                (None, _) => return not_enrolled(&self.id, site),
            },
            Event::Answered(site, phase, digest) => {
                if phase != self.stage.phase {
                    let stage = AnyRound::Exchanging(self.clone()).stage();
                    return Err(Refusal::Late { round: self.id, stage });
                }
                match self.stage.sites.get(&site) {
                    Some(Turn::Asked) => {}
                    Some(Turn::Answered(before)) if *before == digest => {
                        return Err(Refusal::AlreadyCounted(self.id));
                    }
                    Some(Turn::Answered(_)) => {
                        return Err(Refusal::Duplicate { round: self.id, site });
                    }
                    Some(Turn::Gone(_)) => {
                        return Err(Refusal::HasDeclined { round: self.id, site });
                    }
                    None => return not_enrolled(&self.id, site),
                }
                self.stage.sites.insert(site.clone(), Turn::Answered(digest));
                records.push(Record::Answered(site, phase, digest));
            }
            Event::Declined(site, why) => match self.stage.sites.get(&site) {
                Some(Turn::Asked) => {
                    self.stage.sites.insert(site.clone(), Turn::Gone(why.clone()));
                    records.push(Record::Declined(site, why));
                }
                Some(Turn::Gone(_)) => {}
                // What it answered stays answered.
                Some(Turn::Answered(_)) => {
                    return Err(Refusal::Duplicate { round: self.id, site });
                }
                None => return not_enrolled(&self.id, site),
            },
            Event::Update(site, update) => {
                return Err(late_or_counted(&AnyRound::Exchanging(self), &site, &update));
            }
            Event::Resumed => {
                self.stage.deadline = now.plus_ms(self.spec.deadline_ms);
                self.stage.closes = self.stage.closes.map(|_| now.plus_ms(self.spec.grace_ms));
            }
            Event::Tick => {}
            Event::AggregationFailed(why) => {
                return Ok(fail(self, FailReason::Aggregation(why)));
            }
            other => return Err(out_of_place(&AnyRound::Exchanging(self), &other)),
        }
        Ok(self.settle(records, effects, now))
    }

    /// Goes on when everyone has answered, the grace is over, or the deadline has come.
    fn settle(mut self, records: Vec<Record>, effects: Vec<Effect>, now: Timestamp) -> Step {
        let sites = &self.stage.sites;
        let answered = sites.values().filter(|t| matches!(t, Turn::Answered(_))).count();
        let waiting = sites.values().any(|t| *t == Turn::Asked);
        let answered = u32::try_from(answered).unwrap_or(u32::MAX);
        let quorum = answered >= self.spec.min_sites;
        if quorum && self.stage.closes.is_none() {
            self.stage.closes = Some(now.plus_ms(self.spec.grace_ms));
        }
        let overdue = now >= self.stage.deadline;
        let grace_over = self.stage.closes.is_some_and(|c| now >= c);
        if quorum && (!waiting || grace_over || overdue) {
            return self.go_on(records, now);
        }
        if !quorum && (overdue || !waiting) {
            let needed = self.spec.min_sites;
            let mut step = fail(self, FailReason::NoQuorum { had: answered, needed });
            step.records = records.into_iter().chain(step.records).collect();
            return step;
        }
        Step { next: AnyRound::Exchanging(self), records, effects }
    }

    /// What follows an exchange, among those who took part in it to the end.
    fn go_on(self, records: Vec<Record>, now: Timestamp) -> Step {
        let still = self.stage.sites.iter().filter(|(_, t)| matches!(t, Turn::Answered(_)));
        let still: Vec<SiteId> = still.map(|(site, _)| site.clone()).collect();
        let asks: Vec<Effect> = still.iter().cloned().map(Effect::Ask).collect();
        let updates = self.stage.updates.clone();
        match self.stage.phase {
            Phase::Keys => self.ask(Phase::Shares, still, updates, (records, asks, now)),
            Phase::Shares => {
                let stage = Collecting {
                    sites: still.into_iter().map(|site| (site, Seat::Joined)).collect(),
                    deadline: now.plus_ms(self.spec.deadline_ms),
                    closes: None,
                };
                let next = AnyRound::Collecting(self.into_stage(stage));
                Step { next, records, effects: asks }
            }
            Phase::Lists => self.ask(Phase::Reveals, still, updates, (records, asks, now)),
            Phase::Reveals => Step {
                next: AnyRound::Aggregating(self.into_stage(Aggregating { updates })),
                records,
                effects: vec![Effect::Aggregate],
            },
            // No stage exchanges these: a round that is evaluated has a stage of its own for them.
            Phase::Evaluation => quiet(AnyRound::Exchanging(self), records),
        }
    }
}

impl Round<Aggregating> {
    /// Asks those whose updates are in the candidate what it says of the records that they hold out.
    fn evaluate(self, candidate: Digest, now: Timestamp) -> Step {
        let updates = self.stage.updates.clone();
        let sites: BTreeMap<SiteId, Turn> =
            updates.keys().map(|site| (site.clone(), Turn::Asked)).collect();
        let effects = sites.keys().cloned().map(Effect::Ask).collect();
        let deadline = now.plus_ms(self.spec.deadline_ms);
        let stage = Evaluating { updates, candidate, sites, deadline, closes: None };
        let next = AnyRound::Evaluating(self.into_stage(stage));
        Step { next, records: Vec::new(), effects }
    }
}

impl Round<Evaluating> {
    fn on(mut self, event: Event, now: Timestamp) -> Result<Step, Refusal> {
        let (mut records, mut effects) = (Vec::new(), Vec::new());
        match event {
            Event::Joined(site) => match self.stage.sites.get(&site) {
                // It is back: it may not know what it is asked for.
                Some(Turn::Asked) => effects.push(Effect::Ask(site)),
                Some(Turn::Answered(_) | Turn::Gone(_)) => {}
                None => return Err(Refusal::NotEnrolled { round: self.id, site }),
            },
            Event::Answered(site, phase, digest) => {
                if phase != Phase::Evaluation {
                    return Err(Refusal::Late { round: self.id, stage: "evaluating" });
                }
                match self.stage.sites.get(&site) {
                    Some(Turn::Asked) => {}
                    Some(Turn::Answered(before)) if *before == digest => {
                        return Err(Refusal::AlreadyCounted(self.id));
                    }
                    Some(Turn::Answered(_)) => {
                        return Err(Refusal::Duplicate { round: self.id, site });
                    }
                    Some(Turn::Gone(_)) => {
                        return Err(Refusal::HasDeclined { round: self.id, site });
                    }
                    None => return Err(Refusal::NotEnrolled { round: self.id, site }),
                }
                self.stage.sites.insert(site.clone(), Turn::Answered(digest));
                records.push(Record::Answered(site, phase, digest));
            }
            Event::Declined(site, why) => match self.stage.sites.get(&site) {
                Some(Turn::Asked) => {
                    self.stage.sites.insert(site.clone(), Turn::Gone(why.clone()));
                    records.push(Record::Declined(site, why));
                }
                Some(Turn::Gone(_)) => {}
                // What it answered stays answered.
                Some(Turn::Answered(_)) => {
                    return Err(Refusal::Duplicate { round: self.id, site });
                }
                None => return Err(Refusal::NotEnrolled { round: self.id, site }),
            },
            Event::Update(site, update) => {
                return Err(late_or_counted(&AnyRound::Evaluating(self), &site, &update));
            }
            Event::Resumed => {
                self.stage.deadline = now.plus_ms(self.spec.deadline_ms);
                self.stage.closes = self.stage.closes.map(|_| now.plus_ms(self.spec.grace_ms));
            }
            Event::Tick => {}
            other => return Err(out_of_place(&AnyRound::Evaluating(self), &other)),
        }
        Ok(self.settle(records, effects, now))
    }

    /// Judges when everyone has answered, the grace is over, or the deadline has come. Whether enough have answered is for the
    /// gates to say.
    fn settle(mut self, records: Vec<Record>, mut effects: Vec<Effect>, now: Timestamp) -> Step {
        let sites = &self.stage.sites;
        let answered = sites.values().filter(|t| matches!(t, Turn::Answered(_))).count();
        let waiting = sites.values().any(|t| *t == Turn::Asked);
        if answered >= self.spec.min_sites as usize && self.stage.closes.is_none() {
            self.stage.closes = Some(now.plus_ms(self.spec.grace_ms));
        }
        let grace_over = self.stage.closes.is_some_and(|c| now >= c);
        if waiting && !grace_over && now < self.stage.deadline {
            return Step { next: AnyRound::Evaluating(self), records, effects };
        }
        let candidate = self.stage.candidate;
        let stage = Gated { updates: self.stage.updates.clone(), candidate };
        effects.push(Effect::Judge(candidate));
        Step { next: AnyRound::Gated(self.into_stage(stage)), records, effects }
    }
}

impl Round<Collecting> {
    /// Counts a durable update.
    ///
    /// # Errors
    /// [`Refusal::AlreadyCounted`], [`Refusal::Duplicate`], [`Refusal::NotEnrolled`] or
    /// [`Refusal::HasDeclined`]. On refusal the round is unchanged.
    pub fn accept(&mut self, site: &SiteId, update: &UpdateRef) -> Result<(), Refusal> {
        let round = || self.id.clone();
        match self.stage.sites.get(site) {
            Some(Seat::Joined) => {}
            Some(Seat::Updated(u)) if u.payload == update.payload => {
                return Err(Refusal::AlreadyCounted(round()));
            }
            Some(Seat::Updated(_)) => {
                return Err(Refusal::Duplicate { round: round(), site: site.clone() });
            }
            Some(Seat::Declined(_)) => {
                return Err(Refusal::HasDeclined { round: round(), site: site.clone() });
            }
            None => return Err(Refusal::NotEnrolled { round: round(), site: site.clone() }),
        }
        self.stage.sites.insert(site.clone(), Seat::Updated(update.clone()));
        Ok(())
    }

    fn on(mut self, event: Event, now: Timestamp) -> Result<Step, Refusal> {
        let mut records = Vec::new();
        let mut effects = Vec::new();
        match event {
            Event::Joined(site) => match self.stage.sites.get(&site) {
                // It is back: it may not know its task.
                Some(Seat::Joined) if self.spec.masked => effects.push(Effect::Ask(site)),
                Some(Seat::Joined) => effects.push(Effect::SendTask(site)),
                Some(Seat::Updated(_) | Seat::Declined(_)) => {}
                // Members of a masked round are fixed when enrolment is over.
                None if self.spec.masked => {
                    return Err(Refusal::NotEnrolled { round: self.id, site });
                }
                None if self.stage.sites.len() >= self.spec.max_sites as usize => {
                    return Err(Refusal::Full(self.id));
                }
                None => {
                    self.stage.sites.insert(site.clone(), Seat::Joined);
                    records.push(Record::Joined(site.clone()));
                    effects.push(Effect::SendTask(site));
                }
            },
            Event::Declined(site, why) => match self.stage.sites.get(&site) {
                // What is counted stays counted.
                Some(Seat::Updated(_)) => {
                    return Err(Refusal::Duplicate { round: self.id, site });
                }
                Some(Seat::Declined(_)) => {}
                Some(Seat::Joined) => {
                    self.stage.sites.insert(site.clone(), Seat::Declined(why.clone()));
                    records.push(Record::Declined(site, why));
                }
                None => return Err(Refusal::NotEnrolled { round: self.id, site }),
            },
            Event::Update(site, update) => {
                self.accept(&site, &update)?;
                records.push(Record::Accepted(site, update));
            }
            Event::Resumed => {
                self.stage.deadline = now.plus_ms(self.spec.deadline_ms);
                self.stage.closes = self.stage.closes.map(|_| now.plus_ms(self.spec.grace_ms));
            }
            Event::Tick => {}
            other => return Err(out_of_place(&AnyRound::Collecting(self), &other)),
        }
        Ok(self.settle(records, effects, now))
    }

    /// Closes when everyone has answered, the grace is over, or the deadline has come.
    fn settle(mut self, mut records: Vec<Record>, effects: Vec<Effect>, now: Timestamp) -> Step {
        let updated = count(&self.stage.sites, is_updated);
        let waiting = count(&self.stage.sites, is_joined);
        let quorum = updated >= self.spec.min_sites;
        if quorum && self.stage.closes.is_none() {
            self.stage.closes = Some(now.plus_ms(self.spec.grace_ms));
        }
        let overdue = now >= self.stage.deadline;
        let grace_over = self.stage.closes.is_some_and(|c| now >= c);
        let hopeless = waiting == 0
            && !quorum
            && (self.spec.masked
                || self.spec.expected_sites > 0
                    && u32::try_from(self.stage.sites.len()).unwrap_or(u32::MAX)
                        >= self.spec.expected_sites);
        if quorum && (waiting == 0 || grace_over || overdue) {
            let updates = counted(&self.stage.sites);
            let mut digests: Vec<Digest> = updates.values().map(|u| u.payload).collect();
            digests.sort_unstable();
            records.push(Record::Closed(digests));
            if self.spec.masked {
                let sites: Vec<SiteId> = updates.keys().cloned().collect();
                let asks = sites.iter().cloned().map(Effect::Ask).collect();
                return self.ask(Phase::Lists, sites, updates, (records, asks, now));
            }
            return Step {
                next: AnyRound::Aggregating(self.into_stage(Aggregating { updates })),
                records,
                effects: vec![Effect::Aggregate],
            };
        }
        if !quorum && (overdue || hopeless) {
            let needed = self.spec.min_sites;
            let mut step = fail(self, FailReason::NoQuorum { had: updated, needed });
            step.records = records.into_iter().chain(step.records).collect();
            return step;
        }
        Step { next: AnyRound::Collecting(self), records, effects }
    }
}

impl Round<Gated> {
    fn hold(
        self,
        (reasons, witnesses): (Vec<String>, Vec<String>),
        weighed: Option<Weighed>,
        now: Timestamp,
    ) -> Step {
        let progress = self.progress(weighed);
        let (candidate, until) = (self.stage.candidate, now.plus_ms(HELD_MS));
        let record = Record::Held(candidate, reasons.clone(), until);
        let (updates, approved) = (self.stage.updates.clone(), BTreeSet::new());
        let stage = Held { updates, candidate, reasons, witnesses, until, approved, progress };
        quiet(AnyRound::Held(self.into_stage(stage)), vec![record])
    }

    /// How far the study comes with the candidate, which is as far as before where it was not weighed.
    fn progress(&self, weighed: Option<Weighed>) -> Progress {
        weighed.map_or_else(|| self.spec.progress.clone(), |weighed| weighed.progress)
    }

    fn judged(self, verdict: Verdict) -> Step {
        let candidate = self.stage.candidate;
        if verdict.pass {
            let progress = self.progress(verdict.weighed);
            let updates = self.stage.updates.clone();
            let stage = Promoted { updates, model: candidate, progress };
            Step {
                next: AnyRound::Promoted(self.into_stage(stage)),
                records: vec![Record::Published(candidate)],
                effects: vec![Effect::Advance],
            }
        } else {
            let Verdict { reasons, on_failure, .. } = verdict;
            let stage = Rejected { candidate, reasons: reasons.clone(), on_failure };
            Step {
                next: AnyRound::Rejected(self.into_stage(stage)),
                records: vec![Record::Rejected(candidate, reasons)],
                effects: vec![Effect::Advance],
            }
        }
    }
}

impl Round<Held> {
    fn on(mut self, event: Event, now: Timestamp) -> Result<Step, Refusal> {
        let over = now >= self.stage.until;
        match event {
            Event::Tick if over => {
                let why = format!("until {} too few people approved it", self.stage.until);
                Ok(self.reject(why, Vec::new()))
            }
            Event::Tick | Event::Resumed => Ok(quiet(AnyRound::Held(self), Vec::new())),
            // What comes too late is as if it had not come.
            Event::Approved { .. } | Event::Refused(_) if over => {
                Err(Refusal::Late { round: self.id, stage: "held" })
            }
            Event::Approved { by, gone } => {
                self.stage.approved.retain(|person| !gone.contains(person));
                if !self.stage.approved.insert(by) {
                    return Err(Refusal::AlreadyApproved(self.id));
                }
                let candidate = self.stage.candidate;
                let approved = Record::Approved(candidate);
                if self.stage.approved.len() < APPROVERS {
                    return Ok(quiet(AnyRound::Held(self), vec![approved]));
                }
                let (updates, progress) = (self.stage.updates.clone(), self.stage.progress.clone());
                let stage = Promoted { updates, model: candidate, progress };
                Ok(Step {
                    next: AnyRound::Promoted(self.into_stage(stage)),
                    records: vec![approved, Record::Published(candidate)],
                    effects: vec![Effect::Advance],
                })
            }
            Event::Refused(why) => {
                let refused = vec![Record::Refused(self.stage.candidate)];
                Ok(self.reject(format!("it was refused: {why}"), refused))
            }
            Event::Update(site, update) => {
                Err(late_or_counted(&AnyRound::Held(self), &site, &update))
            }
            other => Err(out_of_place(&AnyRound::Held(self), &other)),
        }
    }

    /// It stays out, and the round may be tried again, as if its gates had not asked.
    fn reject(self, why: String, mut records: Vec<Record>) -> Step {
        let candidate = self.stage.candidate;
        let reasons: Vec<String> = self.stage.reasons.iter().cloned().chain([why]).collect();
        records.push(Record::Rejected(candidate, reasons.clone()));
        let stage = Rejected { candidate, reasons, on_failure: OnFailure::Reject };
        let next = AnyRound::Rejected(self.into_stage(stage));
        Step { next, records, effects: vec![Effect::Advance] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(n: u8) -> SiteId {
        format!("spiffe://t/ae-on/ae-az/site/h-{n}").parse().expect("valid")
    }
    fn update(n: u8) -> UpdateRef {
        UpdateRef { payload: Digest::of(&[n]), header: Digest::of(&[n, 0]), weight: 10 }
    }
    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }
    fn spec() -> RoundSpec {
        RoundSpec {
            base: Digest::of(b"base"),
            min_sites: 2,
            max_sites: 4,
            expected_sites: 3,
            deadline_ms: 1_000,
            grace_ms: 100,
            attempt: 0,
            masked: false,
            members: Vec::new(),
            evaluates: false,
            good: Digest::of(b"base"),
            progress: Progress::default(),
        }
    }
    fn round() -> AnyRound {
        let id = RoundId { study: "s".parse().expect("valid"), number: 1 };
        AnyRound::planned(id, spec())
    }
    fn run(mut round: AnyRound, events: Vec<(i64, Event)>) -> AnyRound {
        for (t, e) in events {
            round = step(&round, e, at(t)).expect("taken").next;
        }
        round
    }
    fn collecting() -> AnyRound {
        let joins = [1, 2, 3].map(|n| (0, Event::Joined(site(n))));
        run(round(), [(0, Event::Open)].into_iter().chain(joins).collect())
    }

    #[test]
    fn everyone_in_starts_collecting_at_once() {
        let r = collecting();
        assert_eq!(r.stage(), "collecting");
        assert_eq!(r.wakes_at(), Some(at(1_000)));
    }

    #[test]
    fn quorum_waits_for_the_grace_period_and_no_longer() {
        let r = run(
            collecting(),
            vec![(10, Event::Update(site(1), update(1))), (20, Event::Update(site(2), update(2)))],
        );
        assert_eq!((r.stage(), r.wakes_at()), ("collecting", Some(at(120))));
        assert_eq!(run(r.clone(), vec![(119, Event::Tick)]).stage(), "collecting");
        let closed = step(&r, Event::Tick, at(120)).expect("taken");
        assert_eq!(closed.next.stage(), "aggregating");
        assert_eq!(closed.effects, vec![Effect::Aggregate]);
        assert_eq!(closed.next.updates().len(), 2);
    }

    #[test]
    fn the_deadline_without_quorum_fails_the_round() {
        let r = run(collecting(), vec![(10, Event::Update(site(1), update(1)))]);
        let failed = step(&r, Event::Tick, at(1_000)).expect("taken");
        assert_eq!(
            failed.records,
            vec![Record::Failed(FailReason::NoQuorum { had: 1, needed: 2 })]
        );
        assert_eq!(failed.effects, vec![Effect::Advance]);
    }

    #[test]
    fn a_site_that_declines_is_not_waited_for() {
        let r = run(
            collecting(),
            vec![
                (1, Event::Update(site(1), update(1))),
                (2, Event::Declined(site(3), "budget spent".into())),
                (3, Event::Update(site(2), update(2))),
            ],
        );
        assert_eq!(r.stage(), "aggregating");
    }

    #[test]
    fn the_same_update_again_is_told_apart_from_a_different_one() {
        let r = run(collecting(), vec![(1, Event::Update(site(1), update(1)))]);
        let again = step(&r, Event::Update(site(1), update(1)), at(2)).expect_err("refused");
        assert!(matches!(again, Refusal::AlreadyCounted(_)));
        let other = step(&r, Event::Update(site(1), update(9)), at(2)).expect_err("refused");
        assert!(matches!(other, Refusal::Duplicate { .. }));
        let stranger = step(&r, Event::Update(site(8), update(8)), at(2)).expect_err("refused");
        assert!(matches!(stranger, Refusal::NotEnrolled { .. }));
    }

    #[test]
    fn a_site_that_was_revoked_is_not_waited_for_and_what_it_sent_stays_or_ends_the_round() {
        let revoked = |n, keep| Event::Revoked { site: site(n), keep };
        for keep in [true, false] {
            let r = run(collecting(), vec![(1, revoked(3, keep))]);
            assert!(
                r.standing().iter().any(|(s, word)| **s == site(3) && word.contains("revoked"))
            );
            let late = step(&r, Event::Update(site(3), update(3)), at(2)).expect_err("gone");
            assert!(matches!(late, Refusal::HasDeclined { .. }), "{late}");
            let two = [1, 2].map(|n| (2, Event::Update(site(n), update(n))));
            assert_eq!(run(r, two.into()).stage(), "aggregating");
        }
        let sent = run(collecting(), vec![(1, Event::Update(site(1), update(1)))]);
        let kept = run(sent.clone(), vec![(2, revoked(1, true))]);
        assert_eq!(kept, sent);
        let dropped = step(&sent, revoked(1, false), at(2)).expect("taken");
        assert_eq!(dropped.records, [Record::Failed(FailReason::Revoked(site(1)))]);
        assert_eq!(dropped.effects, [Effect::Advance]);
        let all = [1, 2, 3].map(|n| (2, Event::Update(site(n), update(n))));
        let closed = run(collecting(), all.into());
        assert_eq!(run(closed, vec![(3, revoked(1, false))]).stage(), "failed");
        let stranger = run(collecting(), vec![(1, revoked(9, false))]);
        assert_eq!(stranger, collecting());
    }

    #[test]
    fn a_closed_round_still_knows_what_it_counted() {
        let r = run(
            collecting(),
            [1, 2, 3].map(|n| (1, Event::Update(site(n), update(n)))).into_iter().collect(),
        );
        assert_eq!(r.stage(), "aggregating");
        let again = step(&r, Event::Update(site(1), update(1)), at(2)).expect_err("refused");
        assert!(matches!(again, Refusal::AlreadyCounted(_)));
        let late = step(&r, Event::Update(site(4), update(4)), at(2)).expect_err("refused");
        assert!(matches!(late, Refusal::Late { stage: "aggregating", .. }));
    }

    #[test]
    fn a_restart_gives_the_sites_their_time_back() {
        let r = run(collecting(), vec![(900, Event::Resumed)]);
        assert_eq!(r.wakes_at(), Some(at(1_900)));
    }

    #[test]
    fn a_verdict_promotes_or_rejects() {
        let gated = run(
            collecting(),
            [1, 2, 3]
                .map(|n| (1, Event::Update(site(n), update(n))))
                .into_iter()
                .chain([(2, Event::Aggregated(Digest::of(b"new")))])
                .collect(),
        );
        let pass = Verdict::of(vec![]);
        assert_eq!(run(gated.clone(), vec![(3, Event::Judged(pass))]).stage(), "promoted");
        let fail = Verdict::of(vec!["why".into()]);
        assert_eq!(run(gated.clone(), vec![(3, Event::Judged(fail))]).stage(), "rejected");
        // How far the study has come is known with the model, and not before.
        let progress = Progress { best: None, without: 1 };
        let weighed = Some(Weighed { progress: progress.clone(), line: "no better".into() });
        let judged = Event::Judged(Verdict { weighed, ..Verdict::of(vec![]) });
        assert_eq!(*gated.progress(), Progress::default());
        assert_eq!(*run(gated, vec![(3, judged)]).progress(), progress);
    }

    fn weighed() -> Progress {
        Progress { best: None, without: 1 }
    }

    /// A round whose candidate waits for people since 3.
    fn held() -> AnyRound {
        let updates = [1, 2, 3].map(|n| (1, Event::Update(site(n), update(n))));
        let candidate = (2, Event::Aggregated(Digest::of(b"new")));
        let (reasons, witnesses) = (vec!["recall is low".to_owned()], Vec::new());
        let weighed = Some(Weighed { progress: weighed(), line: "no better".into() });
        let asked = (3, Event::Asked { reasons, witnesses, weighed });
        run(collecting(), updates.into_iter().chain([candidate, asked]).collect())
    }

    fn approved(n: u8, gone: &[u8]) -> Event {
        let person = |n: u8| Person([n; 16]);
        Event::Approved { by: person(n), gone: gone.iter().map(|n| person(*n)).collect() }
    }

    const OVER: i64 = 3 + 7 * 24 * 3_600 * 1_000;

    #[test]
    fn a_candidate_that_gates_ask_about_becomes_the_model_by_two_people_and_by_no_silence() {
        let r = held();
        assert_eq!((r.stage(), r.wakes_at()), ("held", Some(at(OVER))));
        assert!(r.owed().is_empty() && !r.is_over() && r.updates().len() == 3);
        // Neither time nor a restart lets it through, and neither moves the end.
        let waited = run(r.clone(), vec![(OVER - 2, Event::Tick), (OVER - 1, Event::Resumed)]);
        assert_eq!(waited, r);
        let one = run(r.clone(), vec![(4, approved(1, &[]))]);
        assert_eq!(one.stage(), "held");
        let twice = step(&one, approved(1, &[]), at(5)).expect_err("the same person");
        assert!(matches!(twice, Refusal::AlreadyApproved(_)), "{twice}");
        let both = step(&one, approved(2, &[]), at(5)).expect("taken");
        let candidate = Digest::of(b"new");
        assert_eq!(both.next.stage(), "promoted");
        assert_eq!(both.records, [Record::Approved(candidate), Record::Published(candidate)]);
        assert_eq!(both.effects, [Effect::Advance]);
        // It is weighed once it is the model.
        assert_eq!((one.progress(), both.next.progress()), (&Progress::default(), &weighed()));
        // Whoever is not heard any more does not count, and another does.
        let gone = run(one.clone(), vec![(5, approved(2, &[1]))]);
        assert_eq!(gone.stage(), "held");
        assert_eq!(run(gone, vec![(6, approved(3, &[1]))]).stage(), "promoted");
    }

    #[test]
    fn a_candidate_that_is_refused_or_forgotten_stays_out() {
        let one = run(held(), vec![(4, approved(1, &[]))]);
        let refused = step(&one, Event::Refused("too few women".into()), at(5)).expect("taken");
        let candidate = Digest::of(b"new");
        assert_eq!(refused.records[0], Record::Refused(candidate));
        let AnyRound::Rejected(r) = &refused.next else { panic!("{refused:?}") };
        assert_eq!(r.stage.reasons, ["recall is low", "it was refused: too few women"]);
        assert_eq!(r.stage.on_failure, OnFailure::Reject);
        let late = step(&one, approved(2, &[]), at(OVER)).expect_err("too late");
        assert!(matches!(late, Refusal::Late { .. }), "{late}");
        let forgotten = step(&one, Event::Tick, at(OVER)).expect("taken");
        assert_eq!((forgotten.next.stage(), forgotten.records.len()), ("rejected", 1));
        assert_eq!(forgotten.effects, [Effect::Advance]);
        // Whose updates do not count any more ends it, and so does a stop.
        let revoked = Event::Revoked { site: site(1), keep: false };
        assert_eq!(run(held(), vec![(4, revoked)]).stage(), "failed");
        assert_eq!(run(held(), vec![(4, Event::Stop)]).stage(), "failed");
        // Gates are not asked twice, and a verdict that asks, as any other, is none to publish by.
        assert!(step(&held(), Event::Judged(Verdict::of(Vec::new())), at(4)).is_err());
    }

    #[test]
    fn every_open_stage_can_be_stopped_and_no_closed_one() {
        let stopped = step(&collecting(), Event::Stop, at(1)).expect("taken").next;
        assert_eq!(stopped.stage(), "failed");
        assert!(step(&stopped, Event::Stop, at(2)).is_err());
    }

    /// A round whose candidate of sites 1 and 2 is being evaluated.
    fn evaluating() -> AnyRound {
        let id = RoundId { study: "s".parse().expect("valid"), number: 1 };
        let round = AnyRound::planned(id, RoundSpec { evaluates: true, ..spec() });
        let joins = [1, 2, 3].map(|n| (0, Event::Joined(site(n))));
        let updates = [1, 2].map(|n| (1, Event::Update(site(n), update(n))));
        let gone = (2, Event::Declined(site(3), "busy".into()));
        let candidate = (3, Event::Aggregated(Digest::of(b"new")));
        let events = [(0, Event::Open)].into_iter().chain(joins).chain(updates);
        run(round, events.chain([gone, candidate]).collect())
    }

    #[test]
    fn a_candidate_is_evaluated_by_those_who_made_it_before_it_is_judged() {
        let r = evaluating();
        assert_eq!(
            (r.stage(), r.updates().len(), r.wakes_at()),
            ("evaluating", 2, Some(at(1_003)))
        );
        let back = step(&r, Event::Joined(site(1)), at(4)).expect("taken");
        assert_eq!(back.effects, vec![Effect::Ask(site(1))]);
        let stranger = step(&r, Event::Joined(site(3)), at(4)).expect_err("refused");
        assert!(matches!(stranger, Refusal::NotEnrolled { .. }));
        let r = run(r, answers(Phase::Evaluation, &[1], 5));
        let again = step(&r, answers(Phase::Evaluation, &[1], 5).remove(0).1, at(6));
        assert!(matches!(again, Err(Refusal::AlreadyCounted(_))));
        let other = Event::Answered(site(1), Phase::Evaluation, Digest::of(b"other"));
        assert!(matches!(step(&r, other, at(6)), Err(Refusal::Duplicate { .. })));
        let wrong = Event::Answered(site(2), Phase::Keys, Digest::of(b"keys"));
        assert!(matches!(step(&r, wrong, at(6)), Err(Refusal::Late { .. })));
        let judged = step(&r, answers(Phase::Evaluation, &[2], 7).remove(0).1, at(7));
        let judged = judged.expect("taken");
        assert_eq!(judged.effects, vec![Effect::Judge(Digest::of(b"new"))]);
        assert_eq!(judged.records.len(), 1);
        assert_eq!(judged.next.owed(), judged.effects);
        let late = step(&judged.next, answers(Phase::Evaluation, &[2], 8).remove(0).1, at(8));
        assert!(late.is_err());
    }

    #[test]
    fn a_candidate_is_judged_by_what_is_there_when_the_wait_is_over() {
        // Nobody answers: the gates will miss their figures.
        let none = step(&evaluating(), Event::Tick, at(1_003)).expect("taken").next;
        assert_eq!(none.stage(), "gated");
        let declined = [1, 2].map(|n| (5, Event::Declined(site(n), "no budget".into())));
        assert_eq!(run(evaluating(), declined.into()).stage(), "gated");
        // After a restart the time begins anew.
        let resumed = step(&evaluating(), Event::Resumed, at(2_000)).expect("taken").next;
        assert_eq!((resumed.stage(), resumed.wakes_at()), ("evaluating", Some(at(3_000))));
        // Whose update is in the candidate and may not be there ends the round.
        let revoked = Event::Revoked { site: site(1), keep: false };
        assert_eq!(step(&evaluating(), revoked, at(5)).expect("taken").next.stage(), "failed");
        let kept = Event::Revoked { site: site(1), keep: true };
        let kept = step(&evaluating(), kept, at(5)).expect("taken").next;
        assert_eq!(
            (kept.stage(), kept.standing()[0].1.starts_with("declined")),
            ("evaluating", true)
        );
    }

    fn masked() -> AnyRound {
        let id = RoundId { study: "s".parse().expect("valid"), number: 1 };
        let round = AnyRound::planned(id, RoundSpec { masked: true, ..spec() });
        let joins = [1, 2, 3].map(|n| (0, Event::Joined(site(n))));
        run(round, [(0, Event::Open)].into_iter().chain(joins).collect())
    }
    fn answers(phase: Phase, sites: &[u8], t: i64) -> Vec<(i64, Event)> {
        sites.iter().map(|n| (t, Event::Answered(site(*n), phase, Digest::of(&[*n])))).collect()
    }

    #[test]
    fn a_masked_round_walks_through_its_exchanges_with_those_who_stay() {
        let r = masked();
        assert_eq!(r.stage(), "exchanging keys");
        assert_eq!(r.spec().members, [1, 2, 3].map(site));
        let r = run(r, answers(Phase::Keys, &[1, 2, 3], 1));
        assert_eq!(r.stage(), "exchanging shares");
        // Site 3 drops out: the other two are waited for, then the grace.
        let r = run(r, answers(Phase::Shares, &[1, 2], 10));
        assert_eq!((r.stage(), r.wakes_at()), ("exchanging shares", Some(at(110))));
        let closed = step(&r, Event::Tick, at(110)).expect("taken");
        assert_eq!(closed.effects, [1, 2].map(|n| Effect::Ask(site(n))));
        let r = closed.next;
        assert_eq!(r.stage(), "collecting");
        // Nobody joins a masked round on the way, and who is back is asked again.
        for n in [3, 4] {
            let late = step(&r, Event::Joined(site(n)), at(111)).expect_err("refused");
            assert!(matches!(late, Refusal::NotEnrolled { .. }));
        }
        let back = step(&r, Event::Joined(site(1)), at(111)).expect("taken");
        assert_eq!(back.effects, vec![Effect::Ask(site(1))]);
        let r = run(r, [1, 2].map(|n| (120, Event::Update(site(n), update(n)))).into());
        assert_eq!((r.stage(), r.updates().len()), ("confirming", 2));
        let again = step(&r, Event::Update(site(1), update(1)), at(121)).expect_err("refused");
        assert!(matches!(again, Refusal::AlreadyCounted(_)));
        let r = run(r, answers(Phase::Lists, &[1, 2], 130));
        assert_eq!(r.stage(), "unmasking");
        let r = run(r, answers(Phase::Reveals, &[1, 2], 140));
        assert_eq!((r.stage(), r.updates().len()), ("aggregating", 2));
        assert_eq!(r.owed(), vec![Effect::Aggregate]);
    }

    #[test]
    fn an_answer_counts_once_in_its_phase_and_from_a_member() {
        let r = run(masked(), answers(Phase::Keys, &[1], 1));
        let refused = |event| step(&r, event, at(2)).expect_err("refused");
        let answer = |n: u8, phase, of: u8| Event::Answered(site(n), phase, Digest::of(&[of]));
        assert!(matches!(refused(answer(1, Phase::Keys, 1)), Refusal::AlreadyCounted(_)));
        assert!(matches!(refused(answer(1, Phase::Keys, 9)), Refusal::Duplicate { .. }));
        assert!(matches!(refused(answer(2, Phase::Shares, 2)), Refusal::Late { .. }));
        assert!(matches!(refused(answer(8, Phase::Keys, 8)), Refusal::NotEnrolled { .. }));
        let early = refused(Event::Update(site(1), update(1)));
        assert!(matches!(early, Refusal::Late { stage: "exchanging keys", .. }), "{early}");
    }

    #[test]
    fn too_few_answers_fail_a_masked_round_at_once_or_at_the_deadline() {
        let gone = |n| (1, Event::Declined(site(n), "restarted".into()));
        let r = run(masked(), vec![gone(1), gone(2)]);
        assert_eq!(r.stage(), "exchanging keys");
        let failed = run(r, answers(Phase::Keys, &[3], 2));
        assert_eq!(failed.stage(), "failed");
        let r = run(masked(), answers(Phase::Keys, &[1], 5));
        let failed = step(&r, Event::Tick, at(1_000)).expect("taken");
        assert_eq!(
            failed.records,
            vec![Record::Failed(FailReason::NoQuorum { had: 1, needed: 2 })]
        );
    }
}
