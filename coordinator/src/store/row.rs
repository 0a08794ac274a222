//! How rows are spelled, and how they become core's types again.

use super::{Shard, StoreError};
use falaj_core::{
    gate::{
        OnFailure,
        patience::{Best, Progress},
    },
    id::{Digest, RoundId, SiteId, StudyId},
    registry::version::{Alias, Registry, Version},
    round::{
        Aggregating, AnyRound, Collecting, Enrolling, Evaluating, Exchanging, FailReason, Failed,
        Gated, Held, Phase, Planned, Promoted, Rejected, Round, RoundSpec, Seat, Turn, UpdateRef,
    },
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, str::FromStr};

/// A study as submitted, and how it stands.
#[derive(Clone, Debug)]
pub struct StudyRow {
    /// Its name.
    pub id: StudyId,
    /// SHA-256 of the file.
    pub sha256: Digest,
    /// The file.
    pub yaml: Vec<u8>,
    /// running, finished, stopped or failed.
    pub state: String,
    /// Why it failed.
    pub reason: Option<String>,
    /// When it was submitted.
    pub submitted: Timestamp,
    /// By whom.
    pub submitted_by: String,
}

/// A counted update.
#[derive(Clone, Debug)]
pub struct UpdateRow {
    /// The round.
    pub round: RoundId,
    /// The try of the round.
    pub attempt: u32,
    /// The site.
    pub site: SiteId,
    /// The signed header.
    pub header: Vec<u8>,
    /// The site's signature.
    pub signature: Vec<u8>,
    /// SHA-256 of the payload.
    pub payload: Digest,
    /// Bytes of the payload.
    pub bytes: u64,
    /// Epsilon as the header states it.
    pub epsilon: String,
    /// Index of its entry in the log.
    pub log_index: u64,
    /// Leaf hash of that entry.
    pub leaf: Digest,
    /// When that entry was committed.
    pub committed: Timestamp,
}

/// What a site sent in a masked round, or the certificate that it is a member by.
#[derive(Clone, Debug)]
pub struct ExchangeRow {
    /// The round.
    pub round: RoundId,
    /// The try of the round.
    pub attempt: u32,
    /// The phase, or `member`.
    pub phase: String,
    /// The site.
    pub site: SiteId,
    /// What it sent.
    pub messages: Vec<u8>,
}

/// A model of a study; number 0 is the first, untrained one.
#[derive(Clone, Debug)]
pub struct ModelRow {
    /// The study.
    pub study: StudyId,
    /// The round that gave it.
    pub number: u32,
    /// SHA-256 of its parameters.
    pub sha256: Digest,
    /// When it was published.
    pub published: Timestamp,
}

/// The versions of a study's model, and over which change of them the next one goes.
#[derive(Clone, Debug)]
pub struct RegistryRow {
    /// They.
    pub registry: Registry,
    /// How often they were changed.
    pub version: u64,
}

/// What an authority can have stamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamped {
    /// A signed checkpoint, without cosignatures.
    Checkpoint,
    /// A report over the whole log up to a checkpoint.
    Report,
}

impl Stamped {
    /// As it lies there.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Report => "report",
        }
    }
}

/// An authority's time-stamp.
#[derive(Clone, Debug)]
pub struct TimestampRow {
    /// Of what it is.
    pub what: Stamped,
    /// SHA-256 of that.
    pub imprint: Digest,
    /// Entries in the checkpoint.
    pub tree_size: u64,
    /// The authority, as its certificate names it.
    pub authority: String,
    /// When, by the authority's clock.
    pub stamped: Timestamp,
    /// What it answered.
    pub answer: Vec<u8>,
    /// Index of its entry in the log.
    pub log_index: u64,
    /// When that entry was committed.
    pub committed: Timestamp,
}

/// imprint, tree size, authority, stamped, answer, index, committed.
pub(super) type TimestampColumns = (String, i64, String, i64, Vec<u8>, i64, i64);

impl TimestampRow {
    pub(super) fn read(
        what: Stamped,
        shard: &Shard,
        c: TimestampColumns,
    ) -> Result<Self, StoreError> {
        let (imprint, tree_size, authority, stamped, answer, log_index, committed) = c;
        Ok(Self {
            what,
            imprint: parsed(&imprint)?,
            tree_size: shard.index(tree_size),
            authority,
            stamped: Timestamp::from_millis(stamped),
            answer,
            log_index: shard.index(log_index),
            committed: Timestamp::from_millis(committed),
        })
    }
}

pub(super) fn parsed<T: FromStr>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Corrupt(format!("`{text}`")))
}

pub(super) fn digest_of(bytes: &[u8]) -> Result<Digest, StoreError> {
    let bytes = bytes.try_into().map_err(|_| StoreError::Corrupt("a short digest".into()))?;
    Ok(Digest(bytes))
}

/// A round's number or the number of a try.
pub(super) fn small(number: i64) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(|_| StoreError::Corrupt(format!("the number {number}")))
}

/// id, sha256, yaml, state, reason, submitted, by whom.
pub(super) type StudyColumns = (String, String, Vec<u8>, String, Option<String>, i64, String);

impl TryFrom<StudyColumns> for StudyRow {
    type Error = StoreError;
    fn try_from(c: StudyColumns) -> Result<Self, StoreError> {
        let (id, sha256, yaml, state, reason, submitted, submitted_by) = c;
        Ok(Self {
            id: parsed(&id)?,
            sha256: parsed(&sha256)?,
            yaml,
            state,
            reason,
            submitted: Timestamp::from_millis(submitted),
            submitted_by,
        })
    }
}

/// study, number, attempt, site, header, signature, payload, bytes, epsilon, index and leaf of the entry, committed.
pub(super) type UpdateColumns =
    (String, i64, i64, String, Vec<u8>, Vec<u8>, String, i64, String, i64, Vec<u8>, i64);

impl TryFrom<UpdateColumns> for UpdateRow {
    type Error = StoreError;
    fn try_from(c: UpdateColumns) -> Result<Self, StoreError> {
        let (
            study,
            number,
            attempt,
            site,
            header,
            signature,
            payload,
            bytes,
            epsilon,
            log_index,
            leaf,
            committed,
        ) = c;
        Ok(Self {
            round: RoundId { study: parsed(&study)?, number: small(number)? },
            attempt: small(attempt)?,
            site: parsed(&site)?,
            header,
            signature,
            payload: parsed(&payload)?,
            bytes: bytes.cast_unsigned(),
            epsilon,
            log_index: log_index.cast_unsigned(),
            leaf: digest_of(&leaf)?,
            committed: Timestamp::from_millis(committed),
        })
    }
}

/// study, number, attempt, phase, site, messages.
pub(super) type ExchangeColumns = (String, i64, i64, String, String, Vec<u8>);

impl TryFrom<ExchangeColumns> for ExchangeRow {
    type Error = StoreError;
    fn try_from(c: ExchangeColumns) -> Result<Self, StoreError> {
        let (study, number, attempt, phase, site, messages) = c;
        Ok(Self {
            round: RoundId { study: parsed(&study)?, number: small(number)? },
            attempt: small(attempt)?,
            phase,
            site: parsed(&site)?,
            messages,
        })
    }
}

/// study, number, sha256, published.
pub(super) type ModelColumns = (String, i64, String, i64);

impl TryFrom<ModelColumns> for ModelRow {
    type Error = StoreError;
    fn try_from(c: ModelColumns) -> Result<Self, StoreError> {
        let (study, number, sha256, published) = c;
        Ok(Self {
            study: parsed(&study)?,
            number: small(number)?,
            sha256: parsed(&sha256)?,
            published: Timestamp::from_millis(published),
        })
    }
}

/// study, version, state.
pub(super) type RegistryColumns = (String, i64, String);

impl TryFrom<RegistryColumns> for RegistryRow {
    type Error = StoreError;
    fn try_from((study, version, state): RegistryColumns) -> Result<Self, StoreError> {
        let registry = read_registry(parsed(&study)?, &state)?;
        Ok(Self { registry, version: version.cast_unsigned() })
    }
}

/// The versions of a study as they are stored.
#[derive(Serialize, Deserialize)]
struct RegistryJson {
    versions: Vec<VersionJson>,
    aliases: BTreeMap<String, u32>,
}

#[derive(Serialize, Deserialize)]
struct VersionJson {
    number: u32,
    round: u32,
    model: String,
    manifest: String,
    file: String,
    stage: String,
    served: u32,
}

/// The versions of a study as they are stored.
pub(super) fn write_registry(registry: &Registry) -> String {
    let version = |v: &Version| VersionJson {
        number: v.number,
        round: v.round,
        model: v.model.to_string(),
        manifest: v.manifest.to_string(),
        file: v.file.to_string(),
        stage: v.stage.as_str().to_owned(),
        served: v.served,
    };
    let alias = |(alias, number): (&Alias, &u32)| (alias.as_str().to_owned(), *number);
    let json = RegistryJson {
        versions: registry.versions.values().map(version).collect(),
        aliases: registry.aliases.iter().map(alias).collect(),
    };
    serde_json::to_string(&json).expect("invariant: a registry is JSON")
}

fn read_registry(study: StudyId, text: &str) -> Result<Registry, StoreError> {
    let json: RegistryJson = serde_json::from_str(text)
        .map_err(|e| StoreError::Corrupt(format!("the versions of study {study} ({e})")))?;
    let version = |v: &VersionJson| {
        let version = Version {
            number: v.number,
            round: v.round,
            model: parsed(&v.model)?,
            manifest: parsed(&v.manifest)?,
            file: parsed(&v.file)?,
            stage: parsed(&v.stage)?,
            served: v.served,
        };
        Ok((v.number, version))
    };
    let alias = |(alias, number): (&String, &u32)| Ok((parsed(alias)?, *number));
    Ok(Registry {
        study,
        versions: json.versions.iter().map(version).collect::<Result<_, StoreError>>()?,
        aliases: json.aliases.iter().map(alias).collect::<Result<_, StoreError>>()?,
    })
}

/// A round as it is stored: JSON that no type of core's shapes.
#[derive(Serialize, Deserialize)]
struct RoundJson {
    base: String,
    min_sites: u32,
    max_sites: u32,
    expected_sites: u32,
    deadline_ms: u64,
    grace_ms: u64,
    attempt: u32,
    #[serde(default)]
    masked: bool,
    #[serde(default)]
    members: Vec<String>,
    #[serde(default)]
    evaluates: bool,
    /// Absent in rounds of before there was evaluation: whatever they start from is good.
    good: Option<String>,
    /// Absent where nothing was weighed yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress: Option<ProgressJson>,
    stage: StageJson,
}

#[derive(Serialize, Deserialize)]
struct ProgressJson {
    without: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    best: Option<BestJson>,
}

#[derive(Serialize, Deserialize)]
struct BestJson {
    model: String,
    round: u32,
    /// A text, so that every bit of it comes back.
    end: String,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
enum StageJson {
    Planned,
    Enrolling {
        sites: BTreeMap<String, SeatJson>,
        deadline: i64,
        closes: Option<i64>,
    },
    Exchanging {
        phase: String,
        sites: BTreeMap<String, TurnJson>,
        updates: BTreeMap<String, UpdateJson>,
        deadline: i64,
        closes: Option<i64>,
    },
    Collecting {
        sites: BTreeMap<String, SeatJson>,
        deadline: i64,
        closes: Option<i64>,
    },
    Aggregating {
        updates: BTreeMap<String, UpdateJson>,
    },
    Evaluating {
        updates: BTreeMap<String, UpdateJson>,
        candidate: String,
        sites: BTreeMap<String, TurnJson>,
        deadline: i64,
        closes: Option<i64>,
    },
    Gated {
        updates: BTreeMap<String, UpdateJson>,
        candidate: String,
    },
    Held {
        updates: BTreeMap<String, UpdateJson>,
        candidate: String,
        reasons: Vec<String>,
        witnesses: Vec<String>,
        until: i64,
        approved: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress: Option<ProgressJson>,
    },
    Promoted {
        updates: BTreeMap<String, UpdateJson>,
        model: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress: Option<ProgressJson>,
    },
    Rejected {
        candidate: String,
        reasons: Vec<String>,
        #[serde(default)]
        on_failure: String,
    },
    Failed {
        reason: FailJson,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "seat", rename_all = "snake_case")]
enum SeatJson {
    Joined,
    Updated { update: UpdateJson },
    Declined { why: String },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "turn", rename_all = "snake_case")]
enum TurnJson {
    Asked,
    Answered { sha256: String },
    Gone { why: String },
}

#[derive(Serialize, Deserialize)]
struct UpdateJson {
    payload: String,
    header: String,
    weight: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "fail", rename_all = "snake_case")]
enum FailJson {
    NoQuorum { had: u32, needed: u32 },
    Stopped,
    Aggregation { why: String },
    Revoked { site: String },
}

fn write_update(u: &UpdateRef) -> UpdateJson {
    UpdateJson { payload: u.payload.to_string(), header: u.header.to_string(), weight: u.weight }
}

fn read_update(u: &UpdateJson) -> Result<UpdateRef, StoreError> {
    let (payload, header) = (parsed(&u.payload)?, parsed(&u.header)?);
    Ok(UpdateRef { payload, header, weight: u.weight })
}

fn write_seats(seats: &BTreeMap<SiteId, Seat>) -> BTreeMap<String, SeatJson> {
    let seat = |s: &Seat| match s {
        Seat::Joined => SeatJson::Joined,
        Seat::Updated(u) => SeatJson::Updated { update: write_update(u) },
        Seat::Declined(why) => SeatJson::Declined { why: why.clone() },
    };
    seats.iter().map(|(site, s)| (site.to_string(), seat(s))).collect()
}

fn read_seats(seats: &BTreeMap<String, SeatJson>) -> Result<BTreeMap<SiteId, Seat>, StoreError> {
    seats
        .iter()
        .map(|(site, s)| {
            let seat = match s {
                SeatJson::Joined => Seat::Joined,
                SeatJson::Updated { update } => Seat::Updated(read_update(update)?),
                SeatJson::Declined { why } => Seat::Declined(why.clone()),
            };
            Ok((parsed(site)?, seat))
        })
        .collect()
}

fn write_turns(turns: &BTreeMap<SiteId, Turn>) -> BTreeMap<String, TurnJson> {
    let turn = |t: &Turn| match t {
        Turn::Asked => TurnJson::Asked,
        Turn::Answered(digest) => TurnJson::Answered { sha256: digest.to_string() },
        Turn::Gone(why) => TurnJson::Gone { why: why.clone() },
    };
    turns.iter().map(|(site, t)| (site.to_string(), turn(t))).collect()
}

fn read_turns(turns: &BTreeMap<String, TurnJson>) -> Result<BTreeMap<SiteId, Turn>, StoreError> {
    turns
        .iter()
        .map(|(site, t)| {
            let turn = match t {
                TurnJson::Asked => Turn::Asked,
                TurnJson::Answered { sha256 } => Turn::Answered(parsed(sha256)?),
                TurnJson::Gone { why } => Turn::Gone(why.clone()),
            };
            Ok((parsed(site)?, turn))
        })
        .collect()
}

fn write_updates(updates: &BTreeMap<SiteId, UpdateRef>) -> BTreeMap<String, UpdateJson> {
    updates.iter().map(|(site, u)| (site.to_string(), write_update(u))).collect()
}

fn read_updates(
    updates: &BTreeMap<String, UpdateJson>,
) -> Result<BTreeMap<SiteId, UpdateRef>, StoreError> {
    updates.iter().map(|(site, u)| Ok((parsed(site)?, read_update(u)?))).collect()
}

fn write_progress(progress: &Progress) -> Option<ProgressJson> {
    let best = progress.best.as_ref().map(|best| BestJson {
        model: best.model.to_string(),
        round: best.round,
        end: best.end.to_string(),
    });
    let without = progress.without;
    (*progress != Progress::default()).then_some(ProgressJson { without, best })
}

fn read_progress(json: Option<&ProgressJson>) -> Result<Progress, StoreError> {
    let Some(ProgressJson { without, best }) = json else { return Ok(Progress::default()) };
    let read = |best: &BestJson| {
        Ok::<_, StoreError>(Best {
            model: parsed(&best.model)?,
            round: best.round,
            end: parsed(&best.end)?,
        })
    };
    Ok(Progress { best: best.as_ref().map(read).transpose()?, without: *without })
}

/// A round as it is stored.
pub(super) fn write_round(round: &AnyRound) -> String {
    let stage = match round {
        AnyRound::Planned(_) => StageJson::Planned,
        AnyRound::Enrolling(r) => StageJson::Enrolling {
            sites: write_seats(&r.stage.sites),
            deadline: r.stage.deadline.as_millis(),
            closes: r.stage.closes.map(Timestamp::as_millis),
        },
        AnyRound::Exchanging(r) => StageJson::Exchanging {
            phase: r.stage.phase.as_str().to_owned(),
            sites: write_turns(&r.stage.sites),
            updates: write_updates(&r.stage.updates),
            deadline: r.stage.deadline.as_millis(),
            closes: r.stage.closes.map(Timestamp::as_millis),
        },
        AnyRound::Collecting(r) => StageJson::Collecting {
            sites: write_seats(&r.stage.sites),
            deadline: r.stage.deadline.as_millis(),
            closes: r.stage.closes.map(Timestamp::as_millis),
        },
        AnyRound::Aggregating(r) => {
            StageJson::Aggregating { updates: write_updates(&r.stage.updates) }
        }
        AnyRound::Evaluating(r) => StageJson::Evaluating {
            updates: write_updates(&r.stage.updates),
            candidate: r.stage.candidate.to_string(),
            sites: write_turns(&r.stage.sites),
            deadline: r.stage.deadline.as_millis(),
            closes: r.stage.closes.map(Timestamp::as_millis),
        },
        AnyRound::Gated(r) => StageJson::Gated {
            updates: write_updates(&r.stage.updates),
            candidate: r.stage.candidate.to_string(),
        },
        AnyRound::Held(r) => StageJson::Held {
            updates: write_updates(&r.stage.updates),
            candidate: r.stage.candidate.to_string(),
            reasons: r.stage.reasons.clone(),
            witnesses: r.stage.witnesses.clone(),
            until: r.stage.until.as_millis(),
            approved: r.stage.approved.iter().map(ToString::to_string).collect(),
            progress: write_progress(&r.stage.progress),
        },
        AnyRound::Promoted(r) => StageJson::Promoted {
            updates: write_updates(&r.stage.updates),
            model: r.stage.model.to_string(),
            progress: write_progress(&r.stage.progress),
        },
        AnyRound::Rejected(r) => StageJson::Rejected {
            candidate: r.stage.candidate.to_string(),
            reasons: r.stage.reasons.clone(),
            on_failure: r.stage.on_failure.as_str().to_owned(),
        },
        AnyRound::Failed(r) => StageJson::Failed {
            reason: match &r.stage.reason {
                FailReason::NoQuorum { had, needed } => {
                    FailJson::NoQuorum { had: *had, needed: *needed }
                }
                FailReason::Stopped => FailJson::Stopped,
                FailReason::Aggregation(why) => FailJson::Aggregation { why: why.clone() },
                FailReason::Revoked(site) => FailJson::Revoked { site: site.to_string() },
            },
        },
    };
    let spec = round.spec();
    let json = RoundJson {
        base: spec.base.to_string(),
        min_sites: spec.min_sites,
        max_sites: spec.max_sites,
        expected_sites: spec.expected_sites,
        deadline_ms: spec.deadline_ms,
        grace_ms: spec.grace_ms,
        attempt: spec.attempt,
        masked: spec.masked,
        members: spec.members.iter().map(ToString::to_string).collect(),
        evaluates: spec.evaluates,
        good: Some(spec.good.to_string()),
        progress: write_progress(&spec.progress),
        stage,
    };
    serde_json::to_string(&json).expect("invariant: a round is JSON")
}

/// The round that was stored.
pub(super) fn read_round(id: RoundId, text: &str) -> Result<AnyRound, StoreError> {
    let json: RoundJson =
        serde_json::from_str(text).map_err(|e| StoreError::Corrupt(format!("round {id} ({e})")))?;
    let spec = RoundSpec {
        base: parsed(&json.base)?,
        min_sites: json.min_sites,
        max_sites: json.max_sites,
        expected_sites: json.expected_sites,
        deadline_ms: json.deadline_ms,
        grace_ms: json.grace_ms,
        attempt: json.attempt,
        masked: json.masked,
        members: json.members.iter().map(|m| parsed(m)).collect::<Result<_, _>>()?,
        evaluates: json.evaluates,
        good: parsed(json.good.as_deref().unwrap_or(&json.base))?,
        progress: read_progress(json.progress.as_ref())?,
    };
    read_stage(id, spec, json.stage)
}

fn read_stage(id: RoundId, spec: RoundSpec, stage: StageJson) -> Result<AnyRound, StoreError> {
    let at = Timestamp::from_millis;
    Ok(match stage {
        StageJson::Planned => AnyRound::Planned(Round { id, spec, stage: Planned }),
        StageJson::Enrolling { sites, deadline, closes } => {
            let sites = read_seats(&sites)?;
            let stage = Enrolling { sites, deadline: at(deadline), closes: closes.map(at) };
            AnyRound::Enrolling(Round { id, spec, stage })
        }
        StageJson::Exchanging { phase, sites, updates, deadline, closes } => {
            let phase = Phase::find(&phase)
                .ok_or_else(|| StoreError::Corrupt(format!("a phase `{phase}`")))?;
            let (sites, updates) = (read_turns(&sites)?, read_updates(&updates)?);
            let (deadline, closes) = (at(deadline), closes.map(at));
            let stage = Exchanging { phase, sites, updates, deadline, closes };
            AnyRound::Exchanging(Round { id, spec, stage })
        }
        StageJson::Collecting { sites, deadline, closes } => {
            let sites = read_seats(&sites)?;
            let stage = Collecting { sites, deadline: at(deadline), closes: closes.map(at) };
            AnyRound::Collecting(Round { id, spec, stage })
        }
        StageJson::Aggregating { updates } => {
            let stage = Aggregating { updates: read_updates(&updates)? };
            AnyRound::Aggregating(Round { id, spec, stage })
        }
        StageJson::Evaluating { updates, candidate, sites, deadline, closes } => {
            let (sites, updates) = (read_turns(&sites)?, read_updates(&updates)?);
            let (deadline, closes) = (at(deadline), closes.map(at));
            let candidate = parsed(&candidate)?;
            let stage = Evaluating { updates, candidate, sites, deadline, closes };
            AnyRound::Evaluating(Round { id, spec, stage })
        }
        StageJson::Gated { updates, candidate } => {
            let updates = read_updates(&updates)?;
            let stage = Gated { updates, candidate: parsed(&candidate)? };
            AnyRound::Gated(Round { id, spec, stage })
        }
        StageJson::Held { updates, candidate, reasons, witnesses, until, approved, progress } => {
            let stage = Held {
                updates: read_updates(&updates)?,
                candidate: parsed(&candidate)?,
                reasons,
                witnesses,
                until: at(until),
                approved: approved.iter().map(|p| parsed(p)).collect::<Result<_, _>>()?,
                progress: read_progress(progress.as_ref())?,
            };
            AnyRound::Held(Round { id, spec, stage })
        }
        StageJson::Promoted { updates, model, progress } => {
            let (updates, model) = (read_updates(&updates)?, parsed(&model)?);
            let stage = Promoted { updates, model, progress: read_progress(progress.as_ref())? };
            AnyRound::Promoted(Round { id, spec, stage })
        }
        StageJson::Rejected { candidate, reasons, on_failure } => {
            let on_failure = OnFailure::find(&on_failure).unwrap_or_default();
            let stage = Rejected { candidate: parsed(&candidate)?, reasons, on_failure };
            AnyRound::Rejected(Round { id, spec, stage })
        }
        StageJson::Failed { reason } => {
            let reason = match reason {
                FailJson::NoQuorum { had, needed } => FailReason::NoQuorum { had, needed },
                FailJson::Stopped => FailReason::Stopped,
                FailJson::Aggregation { why } => FailReason::Aggregation(why),
                FailJson::Revoked { site } => FailReason::Revoked(parsed(&site)?),
            };
            AnyRound::Failed(Round { id, spec, stage: Failed { reason } })
        }
    })
}
