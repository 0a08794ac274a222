//! What a log tells of versions, both ways: from a version to everything that made it, and from a site, a place or an update to
//! every version that it touched.
//!
//! A fold over entries, one after the other. On the way each move of a version is made again by [`step`]: a log in which a
//! version went where it could not go is refused.

use super::{
    provenance::{About, GateSaid, LogSaid, Provenance, RoundMade, UpdateCounted},
    version::{Alias, Event, Refusal, Registry, Stage, Version, step},
};
use crate::{
    audit::{
        Entry, Kind,
        approvals::{Approval, Promotion},
        person::Person,
    },
    canon::{CanonError, Node},
    id::{Digest, Place, SiteId, StudyId},
    merkle::leaf_hash,
};
use std::collections::{BTreeMap, BTreeSet};

/// What versions came from, as far as the log has been read.
#[derive(Debug, Default)]
pub struct Lineage {
    runs: BTreeMap<StudyId, Run>,
    /// The coordinator and its version, as it started last.
    coordinator: (String, String),
    /// Whether the log goes on from another shard, which may tell of studies that are not submitted here.
    goes_on: bool,
}

/// What a study did.
#[derive(Debug)]
struct Run {
    submitted: u64,
    started: String,
    submitter: Option<Person>,
    study_sha256: Digest,
    base: Digest,
    /// None where an entry from before does not say.
    manifest: Option<Digest>,
    sets: BTreeMap<Digest, u64>,
    updates: Vec<Seen>,
    /// What sites counted about candidates, and the try of each round.
    evaluations: Vec<(u32, Evaluated)>,
    rounds: BTreeMap<u32, Made>,
    registry: Registry,
    versions: BTreeMap<u32, History>,
}

/// An update that was accepted.
#[derive(Debug)]
struct Seen {
    round: u32,
    attempt: u32,
    ts: String,
    update: UpdateCounted,
}

/// A round that gave a model.
#[derive(Debug)]
struct Made {
    round: RoundMade,
    attempt: u32,
    ts: String,
    /// Payloads of the updates in it, where the entry has room for them.
    payloads: Option<BTreeSet<Digest>>,
    gates: Vec<GateSaid>,
}

/// What became of a version.
#[derive(Debug)]
struct History {
    made: u64,
    /// The leaf hash of the entry that made it.
    leaf: Digest,
    coordinator: (String, String),
    moves: Vec<Moved>,
    approvals: Vec<Approving>,
}

/// A move of a version, by an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The entry.
    pub index: u64,
    /// When.
    pub ts: String,
    /// What it tells of.
    pub kind: Kind,
    /// Where the version stands since.
    pub stage: Stage,
    /// Why, if anybody said so.
    pub reason: String,
    /// The approvals that counted, by name.
    pub approvals: Vec<String>,
    /// What was signed of the version, if the entry says so.
    pub provenance: Option<Digest>,
    /// What the gates said that are asked when a version is promoted.
    pub gates: Vec<GateSaid>,
}

/// An approval of a version's promotion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approving {
    /// Its name.
    pub id: String,
    /// The entry.
    pub index: u64,
    /// What was approved.
    pub promotion: Promotion,
    /// Who gave it.
    pub giver: Person,
}

/// Why an entry is not taken: the log says of a version what cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineageError {
    /// It lacks what it must say.
    #[error(transparent)]
    Canon(#[from] CanonError),
    /// The version cannot go there.
    #[error("it says that a version moved, and that could not be: {0}")]
    Refused(#[from] Refusal),
    /// It is about a study that was never submitted.
    #[error("it is about a version of study `{0}`, which was never submitted")]
    Unknown(StudyId),
    /// A field is not what follows from the entries before.
    #[error("its `{field}` is {said}, and what follows is {follows}")]
    Field {
        /// The member.
        field: &'static str,
        /// What it says.
        said: String,
        /// What it should say.
        follows: String,
    },
}

/// Everything that made a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestry {
    /// The version, as it stands.
    pub version: Version,
    /// Its aliases.
    pub aliases: Vec<Alias>,
    /// The entry that made it.
    pub made: u64,
    /// The entry by which its study was submitted.
    pub submitted: u64,
    /// Every round up to its own, with the updates in each.
    pub rounds: Vec<RoundMade>,
    /// What sites counted about the models of these rounds.
    pub evaluations: Vec<Evaluated>,
    /// The gates that were judged on the way.
    pub gates: Vec<GateSaid>,
    /// The sets of policies by which it was decided who may take part, each with the first entry that names it.
    pub policy_sets: Vec<(Digest, u64)>,
    /// Approvals of its promotions.
    pub approvals: Vec<Approving>,
    /// What became of it.
    pub moves: Vec<Moved>,
}

/// That a site counted what a candidate says of the records that it holds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluated {
    /// The candidate's round.
    pub round: u32,
    /// The site.
    pub site: SiteId,
    /// The entry.
    pub index: u64,
}

/// Where something in a version may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A site.
    Site(SiteId),
    /// Every site in a place.
    Place(Place),
    /// One update, by its payload or its header.
    Update(Digest),
}

/// Which updates are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Whose.
    pub source: Source,
    /// Accepted from this time on, as entries spell times; empty for all.
    pub since: String,
    /// Accepted before this time; empty for all.
    pub until: String,
}

/// A version that learned from what was asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The study.
    pub study: StudyId,
    /// The version, as it stands.
    pub version: Version,
    /// Whose updates they were.
    pub sites: BTreeSet<SiteId>,
    /// How many updates.
    pub updates: u64,
    /// The first and the last round that has one.
    pub rounds: (u32, u32),
    /// The entries of the first and the last of them.
    pub indices: (u64, u64),
    /// What to do with it when the consent for these updates is withdrawn.
    pub remedy: Remedy,
    /// The last round that learned nothing from them; 0 is the first model, untrained.
    pub untouched: u32,
}

/// What a withdrawal of consent makes of a version. What it learned cannot be taken out of it; the noise of the study's
/// mechanism bounds how much that is, and it can be taken out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// It is out already.
    Nothing,
    /// Reject it.
    Reject,
    /// Revoke it: nothing that came before it can serve in its place.
    Revoke,
    /// Roll back to this version, which learned nothing from them, and revoke it.
    RollBack(u32),
}

impl Remedy {
    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Reject => "reject",
            Self::Revoke => "revoke",
            Self::RollBack(_) => "roll_back",
        }
    }
}

impl Asked {
    fn wants(&self, seen: &Seen) -> bool {
        let update = &seen.update;
        let from = match &self.source {
            Source::Site(site) => update.site == *site,
            Source::Place(place) => update.site.spiffe().place() == place,
            Source::Update(digest) => update.payload == *digest || update.header == *digest,
        };
        // Times are spelled in one way, whose order is that of time.
        from && (self.since.is_empty() || seen.ts >= self.since)
            && (self.until.is_empty() || seen.ts < self.until)
    }
}

impl Lineage {
    /// Of a log that goes on from another shard, or of one that does not.
    #[must_use]
    pub fn new(goes_on: bool) -> Self {
        Self { goes_on, ..Self::default() }
    }

    /// The next entry.
    ///
    /// # Errors
    /// [`LineageError`] when it says of a version what does not follow from the entries before.
    pub fn take(&mut self, entry: &Entry) -> Result<(), LineageError> {
        let body = entry.body();
        match entry.kind {
            Kind::CoordinatorStarted => {
                let text = |key| body.find_text(key).unwrap_or_default().to_owned();
                self.coordinator = (text("coordinator"), text("version"));
            }
            Kind::StudySubmitted => self.submitted(entry)?,
            Kind::UpdateAccepted => self.accepted(entry)?,
            Kind::ModelPublished => self.published(entry)?,
            Kind::EvaluationAccepted => {
                if let Some(run) = self.run(entry)? {
                    let (round, site) = (body.int("round")?, body.parsed("site")?);
                    let evaluated = Evaluated { round, site, index: entry.seq };
                    run.evaluations.push((body.int("attempt").unwrap_or(0), evaluated));
                }
            }
            Kind::TaskSent => {
                if let Some(run) = self.run(entry)? {
                    run.decided(entry);
                }
            }
            Kind::ApprovalGiven if body.member("version").is_some() => {
                let approval = Approval::read(entry)?;
                if let (Some(promotion), Some(study)) = (approval.of.promotion, &approval.of.study)
                    && let Some(run) = self.runs.get_mut(study)
                    && let Some(history) = run.versions.get_mut(&promotion.version)
                {
                    let Approval { id, giver, index, .. } = approval;
                    history.approvals.push(Approving { id, index, promotion, giver });
                }
            }
            Kind::VersionMade
            | Kind::VersionPromoted
            | Kind::VersionRejected
            | Kind::VersionRevoked
            | Kind::VersionRolledBack
            | Kind::VersionAliased => self.moved(entry)?,
            _ => {}
        }
        Ok(())
    }

    fn run(&mut self, entry: &Entry) -> Result<Option<&mut Run>, CanonError> {
        let study: StudyId = entry.body().parsed("study")?;
        Ok(self.runs.get_mut(&study))
    }

    fn submitted(&mut self, entry: &Entry) -> Result<(), CanonError> {
        let body = entry.body();
        let study: StudyId = body.parsed("study")?;
        let mut run = Run {
            submitted: entry.seq,
            started: entry.ts.clone(),
            submitter: entry.actor_person(),
            study_sha256: body.parsed("study_sha256")?,
            base: body.parsed("model_sha256")?,
            manifest: body.find("manifest_sha256"),
            sets: BTreeMap::new(),
            updates: Vec::new(),
            evaluations: Vec::new(),
            rounds: BTreeMap::new(),
            registry: Registry::new(study.clone()),
            versions: BTreeMap::new(),
        };
        run.decided(entry);
        self.runs.insert(study, run);
        Ok(())
    }

    fn accepted(&mut self, entry: &Entry) -> Result<(), CanonError> {
        let Some(run) = self.run(entry)? else { return Ok(()) };
        run.decided(entry);
        let body = entry.body();
        let update = UpdateCounted {
            site: body.parsed("site")?,
            payload: body.parsed("payload_sha256")?,
            header: body.parsed("header_sha256")?,
            weight: body.int("weight").unwrap_or_default(),
            epsilon: body.find_text("epsilon").unwrap_or_default().to_owned(),
            index: entry.seq,
        };
        let attempt = body.int("attempt").unwrap_or(0);
        run.updates.push(Seen { round: body.int("round")?, attempt, ts: entry.ts.clone(), update });
        Ok(())
    }

    fn published(&mut self, entry: &Entry) -> Result<(), CanonError> {
        let Some(run) = self.run(entry)? else { return Ok(()) };
        let body = entry.body();
        let payloads = body.member("updates").map(|_| entry.digests("updates")).transpose()?;
        let number = body.int("round")?;
        let round = RoundMade {
            number,
            base: body.parsed("base_sha256")?,
            model: body.parsed("model_sha256")?,
            weight: body.int("total_weight").unwrap_or_default(),
            index: entry.seq,
            updates: Vec::new(),
        };
        let witnesses = body.member("witnesses").map(|w| w.items().count());
        let witnessed = witnesses.map(|witnesses| GateSaid {
            round: number,
            name: "witnesses".into(),
            scope: "all".into(),
            figure: witnesses.to_string(),
            interval: String::new(),
            bound: String::new(),
            pass: true,
        });
        let lines = body.member("gates").into_iter().flat_map(Node::items);
        let declared = lines.filter_map(Node::as_text).map(|line| GateSaid::of_line(number, line));
        let gates = declared.chain(witnessed).collect();
        let made = Made {
            round,
            attempt: body.int("attempt").unwrap_or(0),
            ts: entry.ts.clone(),
            payloads: payloads.map(|payloads| payloads.into_iter().collect()),
            gates,
        };
        run.rounds.insert(number, made);
        Ok(())
    }

    fn moved(&mut self, entry: &Entry) -> Result<(), LineageError> {
        let body = entry.body();
        let study: StudyId = body.parsed("study")?;
        let coordinator = self.coordinator.clone();
        let Some(run) = self.runs.get_mut(&study) else {
            return if self.goes_on { Ok(()) } else { Err(LineageError::Unknown(study)) };
        };
        let event = run.event(entry)?;
        let change = step(&run.registry, &event)?;
        // An alias that is taken away names no version.
        if !matches!(event, Event::Alias { number: None, .. }) {
            same("version", &body.int::<u32>("version")?, &change.version)?;
            same(
                "model_sha256",
                &body.parsed::<Digest>("model_sha256")?,
                &change.next.version(change.version)?.model,
            )?;
        }
        let replaced = body.member("replaces").map(|_| body.int::<u32>("replaces")).transpose()?;
        if replaced != change.replaced {
            let none = || "no version".to_owned();
            let of = |number: Option<u32>| number.map_or_else(none, |number| number.to_string());
            let (said, follows) = (of(replaced), of(change.replaced));
            return Err(LineageError::Field { field: "replaces", said, follows });
        }
        if entry.kind == Kind::VersionMade {
            // An entry is canonical: these are its bytes.
            let leaf = leaf_hash(&body.to_canon().to_bytes());
            let (moves, approvals) = (Vec::new(), Vec::new());
            let history = History { made: entry.seq, leaf, coordinator, moves, approvals };
            run.versions.insert(change.version, history);
        }
        for number in [Some(change.version), change.replaced].into_iter().flatten() {
            let moved = Moved {
                index: entry.seq,
                ts: entry.ts.clone(),
                kind: entry.kind,
                stage: change.next.version(number)?.stage,
                reason: body.find_text("reason").unwrap_or_default().to_owned(),
                approvals: entry.approvals()?.into_iter().map(str::to_owned).collect(),
                provenance: body.find("provenance_sha256"),
                // Nothing was asked of the version that left for it.
                gates: if number == change.version {
                    let round = change.next.version(number)?.round;
                    let lines = body.member("gates").into_iter().flat_map(Node::items);
                    let lines = lines.filter_map(Node::as_text);
                    lines.map(|line| GateSaid::of_line(round, line)).collect()
                } else {
                    Vec::new()
                },
            };
            run.versions.get_mut(&number).into_iter().for_each(|h| h.moves.push(moved.clone()));
        }
        run.registry = change.next;
        Ok(())
    }

    /// A study's versions, as they stand; none if the study was not submitted in the entries that were read.
    #[must_use]
    pub fn registry(&self, study: &StudyId) -> Option<&Registry> {
        self.runs.get(study).map(|run| &run.registry)
    }

    /// Who submitted a study, if a person did.
    #[must_use]
    pub fn submitter(&self, study: &StudyId) -> Option<Person> {
        self.runs.get(study)?.submitter
    }

    /// The entry by which a version was made, and its leaf hash.
    #[must_use]
    pub fn made(&self, study: &StudyId, number: u32) -> Option<(u64, Digest)> {
        let history = self.runs.get(study)?.versions.get(&number)?;
        Some((history.made, history.leaf))
    }

    /// SHA-256 of a study's file.
    #[must_use]
    pub fn study_sha256(&self, study: &StudyId) -> Option<Digest> {
        Some(self.runs.get(study)?.study_sha256)
    }

    /// What is to be signed of a version, or was: with what the study's file says, and the proof that the version's entry is in the
    /// log of this origin.
    #[must_use]
    pub fn provenance(
        &self,
        study: &StudyId,
        number: u32,
        about: About,
        origin: &str,
        proof: String,
    ) -> Option<Provenance> {
        let run = self.runs.get(study)?;
        let (version, history) = (run.registry.versions.get(&number)?, run.versions.get(&number)?);
        let made = run.rounds.get(&version.round)?;
        let before = |seen: &&Seen| seen.update.index < made.round.index;
        let mut epsilon = BTreeMap::new();
        for seen in run.updates.iter().filter(before) {
            epsilon.insert(seen.update.site.clone(), seen.update.epsilon.clone());
        }
        let sets = run.sets.iter().filter(|(_, first)| **first < made.round.index);
        let (coordinator, software) = history.coordinator.clone();
        Some(Provenance {
            study: study.clone(),
            version: number,
            round: version.round,
            model: version.model,
            manifest: version.manifest,
            file: version.file,
            about,
            study_sha256: run.study_sha256,
            base: run.base,
            policy_sets: sets.map(|(set, _)| *set).collect(),
            rounds: run.made_to(version.round),
            epsilon,
            gates: run.gates_to(version.round),
            coordinator,
            software,
            started: run.started.clone(),
            finished: made.ts.clone(),
            log: LogSaid {
                origin: origin.to_owned(),
                index: history.made,
                leaf: history.leaf,
                proof,
            },
        })
    }

    /// Everything that made a version, and what became of it.
    #[must_use]
    pub fn ancestry(&self, study: &StudyId, number: u32) -> Option<Ancestry> {
        let run = self.runs.get(study)?;
        let (version, history) = (run.registry.versions.get(&number)?, run.versions.get(&number)?);
        let made = run.rounds.get(&version.round)?;
        let sets = run.sets.iter().filter(|(_, first)| **first < made.round.index);
        Some(Ancestry {
            version: version.clone(),
            aliases: run.registry.aliases_of(number).collect(),
            made: history.made,
            submitted: run.submitted,
            rounds: run.made_to(version.round),
            evaluations: run.evaluations_to(version.round),
            gates: run.gates_to(version.round),
            policy_sets: sets.map(|(set, first)| (*set, *first)).collect(),
            approvals: history.approvals.clone(),
            moves: history.moves.clone(),
        })
    }

    /// Every version that learned from what is asked about, by study and number.
    #[must_use]
    pub fn touched(&self, asked: &Asked) -> Vec<Touched> {
        self.runs.iter().flat_map(|(study, run)| run.touched(study, asked)).collect()
    }
}

impl GateSaid {
    /// A gate as an entry has it: `pass: auc: 0.7512 [0.7312, 0.7721], at least 0.72 needed`. What is spelled otherwise is all name.
    #[must_use]
    pub fn of_line(round: u32, line: &str) -> Self {
        let (verdict, said) = line.split_once(": ").unwrap_or(("", line));
        let (rest, bound) = said
            .strip_suffix(" needed")
            .and_then(|said| said.rsplit_once(", "))
            .unwrap_or((said, ""));
        let (name, found) = rest.split_once(": ").unwrap_or((rest, ""));
        let ranged = found.strip_suffix(']').and_then(|found| found.split_once(" ["));
        let (figure, interval) = ranged.unwrap_or((found, ""));
        Self {
            round,
            name: name.to_owned(),
            scope: String::new(),
            figure: figure.to_owned(),
            interval: interval.to_owned(),
            bound: bound.to_owned(),
            pass: verdict == "pass",
        }
    }
}

/// That a member is what follows.
fn same<T: PartialEq + ToString>(
    field: &'static str,
    said: &T,
    follows: &T,
) -> Result<(), LineageError> {
    if said == follows {
        return Ok(());
    }
    let (said, follows) = (said.to_string(), follows.to_string());
    Err(LineageError::Field { field, said, follows })
}

impl Run {
    /// Keeps the set of policies by which an entry was decided.
    fn decided(&mut self, entry: &Entry) {
        if let Some(set) = entry.body().find("policy_set_sha256") {
            self.sets.entry(set).or_insert(entry.seq);
        }
    }

    /// What an entry says has happened to a version.
    fn event(&self, entry: &Entry) -> Result<Event, LineageError> {
        let body = entry.body();
        let number = || body.int("version");
        Ok(match entry.kind {
            Kind::VersionMade => {
                let round: u32 = body.int("round")?;
                let said: Digest = body.parsed("model_sha256")?;
                let gave = self.rounds.get(&round).map(|made| made.round.model);
                let gave = gave.map_or_else(|| "no model".to_owned(), |model| model.to_string());
                same("model_sha256", &said.to_string(), &gave)?;
                let manifest = body.parsed("manifest_sha256")?;
                same("manifest_sha256", &manifest, &self.manifest.unwrap_or(manifest))?;
                let file = body.parsed("safetensors_sha256")?;
                Event::Make { round, model: said, manifest, file }
            }
            Kind::VersionPromoted => {
                Event::Promote { number: number()?, to: body.parsed("stage")? }
            }
            Kind::VersionRejected => Event::Reject(number()?),
            Kind::VersionRevoked => Event::Revoke(number()?),
            Kind::VersionRolledBack => Event::RollBack,
            _ => {
                let number = body.member("version").map(|_| number()).transpose()?;
                Event::Alias { alias: body.parsed("alias")?, number }
            }
        })
    }

    /// The updates that went into a round.
    fn gone_into<'a>(&'a self, made: &'a Made) -> impl Iterator<Item = &'a Seen> {
        self.updates.iter().filter(|seen| {
            seen.round == made.round.number
                && seen.attempt == made.attempt
                && seen.update.index < made.round.index
                && made.payloads.as_ref().is_none_or(|all| all.contains(&seen.update.payload))
        })
    }

    /// The round whose model a round began from, if it was not the first.
    fn before(&self, made: &Made) -> Option<&Made> {
        let earlier = self.rounds.range(..made.round.number).rev();
        earlier.map(|(_, before)| before).find(|before| before.round.model == made.round.base)
    }

    /// The rounds that led to the model of this one, in their order: a study that was rolled back left others aside.
    fn rounds_to(&self, last: u32) -> Vec<&Made> {
        let mut led = Vec::new();
        let mut next = self.rounds.get(&last);
        while let Some(made) = next {
            led.push(made);
            next = self.before(made);
        }
        led.reverse();
        led
    }

    fn made_to(&self, last: u32) -> Vec<RoundMade> {
        let whole = |made: &Made| {
            let updates = self.gone_into(made).map(|seen| seen.update.clone()).collect();
            RoundMade { updates, ..made.round.clone() }
        };
        self.rounds_to(last).into_iter().map(whole).collect()
    }

    fn evaluations_to(&self, last: u32) -> Vec<Evaluated> {
        let of = |made: &Made| {
            let (number, attempt) = (made.round.number, made.attempt);
            let tried = self.evaluations.iter();
            tried.filter(move |(of, e)| *of == attempt && e.round == number).map(|(_, e)| e.clone())
        };
        self.rounds_to(last).into_iter().flat_map(of).collect()
    }

    fn gates_to(&self, last: u32) -> Vec<GateSaid> {
        self.rounds_to(last).into_iter().flat_map(|made| made.gates.clone()).collect()
    }

    fn touched(&self, study: &StudyId, asked: &Asked) -> Vec<Touched> {
        // What was asked about, by the round into which it went; and the rounds that learned from it, by themselves or by their base.
        let mut found: BTreeMap<u32, Vec<&UpdateCounted>> = BTreeMap::new();
        let mut learned = BTreeSet::new();
        for (number, made) in &self.rounds {
            let wanted = self.gone_into(made).filter(|seen| asked.wants(seen));
            let updates: Vec<&UpdateCounted> = wanted.map(|seen| &seen.update).collect();
            let before = self.before(made).map(|before| before.round.number);
            if !updates.is_empty() || before.is_some_and(|before| learned.contains(&before)) {
                learned.insert(*number);
            }
            if !updates.is_empty() {
                found.insert(*number, updates);
            }
        }
        let clean = self.rounds.keys().filter(|number| !learned.contains(*number));
        let untouched = clean.max().copied().unwrap_or(0);
        let of_version = |version: &Version| {
            let led = self.rounds_to(version.round).into_iter().map(|made| made.round.number);
            let into: Vec<(u32, &Vec<&UpdateCounted>)> =
                led.filter_map(|number| Some((number, found.get(&number)?))).collect();
            let all: Vec<&UpdateCounted> =
                into.iter().flat_map(|(_, updates)| updates.iter().copied()).collect();
            Some(Touched {
                study: study.clone(),
                version: version.clone(),
                sites: all.iter().map(|update| update.site.clone()).collect(),
                updates: all.len() as u64,
                rounds: (into.first()?.0, into.last()?.0),
                indices: (all.first()?.index, all.last()?.index),
                remedy: self.remedy(version, &learned),
                untouched,
            })
        };
        self.registry.versions.values().filter_map(of_version).collect()
    }

    /// What to do with a version that learned from it, as the models of these rounds did.
    fn remedy(&self, version: &Version, learned: &BTreeSet<u32>) -> Remedy {
        match version.stage {
            Stage::Rejected | Stage::Revoked => Remedy::Nothing,
            Stage::Candidate | Stage::Staging => Remedy::Reject,
            Stage::Archived => Remedy::Revoke,
            Stage::Production => match self.registry.before() {
                Some(before) if !learned.contains(&before.round) => Remedy::RollBack(before.number),
                _ => Remedy::Revoke,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::provenance::tests::site, *};
    use crate::{
        audit::{Actor, Draft},
        time::Timestamp,
    };

    fn digest(what: &str) -> Digest {
        Digest::of(what.as_bytes())
    }

    /// A log that grows by a day with each entry.
    struct Log {
        lineage: Lineage,
        seq: u64,
    }

    const DAY_MS: i64 = 86_400_000;

    impl Log {
        fn take(&mut self, draft: Draft) -> Result<u64, LineageError> {
            let at = Timestamp::from_millis(DAY_MS * self.seq.cast_signed());
            let bytes = draft.finish(self.seq, at, [0; 16]);
            self.lineage.take(&Entry::parse(&bytes).expect("an entry"))?;
            self.seq += 1;
            Ok(self.seq - 1)
        }

        fn ok(&mut self, draft: Draft) -> u64 {
            self.take(draft).expect("taken")
        }
    }

    fn heart() -> StudyId {
        "heart".parse().expect("a study")
    }

    fn round(kind: Kind, number: u32) -> Draft {
        let round = crate::id::RoundId { study: heart(), number };
        Draft::new(kind).round(&round).count("attempt", 0)
    }

    fn model(number: u32) -> Digest {
        digest(&format!("model {number}"))
    }

    fn update(number: u32, name: &str) -> Draft {
        round(Kind::UpdateAccepted, number)
            .text("site", &site(name).to_string())
            .digest("payload_sha256", &digest(&format!("payload {number} {name}")))
            .digest("header_sha256", &digest(&format!("header {number} {name}")))
            .count("weight", 100)
            .text("epsilon", &format!("0.{number}"))
            .decided(true, &["ACC-101".into()], &digest("policies"))
    }

    fn published(number: u32, names: &[&str]) -> Draft {
        let payloads = names.iter().map(|name| digest(&format!("payload {number} {name}")));
        round(Kind::ModelPublished, number)
            .digest("base_sha256", &model(number - 1))
            .digest("model_sha256", &model(number))
            .digest("manifest_sha256", &digest("manifest"))
            .digests("updates", &payloads.collect::<Vec<_>>())
            .count("total_weight", 100 * names.len() as u64)
    }

    fn made(version: u64, number: u32) -> Draft {
        round(Kind::VersionMade, number)
            .count("version", version)
            .digest("model_sha256", &model(number))
            .digest("manifest_sha256", &digest("manifest"))
            .digest("safetensors_sha256", &digest("file"))
    }

    fn moved(kind: Kind, version: u64, number: u32) -> Draft {
        let draft = Draft::new(kind).study(&heart());
        draft.count("version", version).digest("model_sha256", &model(number))
    }

    fn promoted(version: u64, number: u32, stage: Stage) -> Draft {
        moved(Kind::VersionPromoted, version, number).text("stage", stage.as_str())
    }

    /// Three rounds: `a` in each, `b` in the second and the third, and `c` in a try that failed.
    fn three_rounds() -> Log {
        let mut log = Log { lineage: Lineage::default(), seq: 0 };
        let started = Draft::new(Kind::CoordinatorStarted)
            .text("coordinator", "spiffe://t/ae-on/ae-az/coordinator/main")
            .text("version", "0.1.0");
        log.ok(started);
        let submitted = Draft::new(Kind::StudySubmitted)
            .study(&heart())
            .digest("study_sha256", &digest("study"))
            .digest("model_sha256", &model(0))
            .digest("manifest_sha256", &digest("manifest"))
            .decided(true, &["ACC-201".into()], &digest("policies"));
        let person = Actor { person: Some(Person([7; 16])), ..Actor::default() };
        log.ok(submitted.actor(&person));
        log.ok(update(1, "a"));
        log.ok(published(1, &["a"]));
        log.ok(update(2, "a"));
        log.ok(update(2, "c").count("attempt", 0));
        log.ok(update(2, "a").count("attempt", 1));
        log.ok(update(2, "b").count("attempt", 1));
        log.ok(published(2, &["a", "b"]).count("attempt", 1));
        log.ok(update(3, "a"));
        log.ok(update(3, "b"));
        log.ok(published(3, &["a", "b"]));
        log
    }

    fn asked(source: Source) -> Asked {
        Asked { source, since: String::new(), until: String::new() }
    }

    fn about() -> About {
        super::super::provenance::tests::example().about
    }

    fn signed(log: &Log, number: u32) -> Option<Provenance> {
        log.lineage.provenance(&heart(), number, about(), "falaj.test/log", "a proof".into())
    }

    #[test]
    fn a_version_leads_to_every_update_that_made_it_and_to_no_other() {
        let mut log = three_rounds();
        let entry = log.ok(made(1, 2));
        let ancestry = log.lineage.ancestry(&heart(), 1).expect("a version");
        let updates: Vec<Vec<&str>> = ancestry
            .rounds
            .iter()
            .map(|round| round.updates.iter().map(|update| update.site.name()).collect())
            .collect();
        assert_eq!(updates, [vec!["a"], vec!["a", "b"]]);
        assert_eq!((ancestry.made, ancestry.submitted), (entry, 1));
        assert_eq!(ancestry.policy_sets, [(digest("policies"), 1)]);
        assert_eq!(log.lineage.submitter(&heart()), Some(Person([7; 16])));
        let provenance = signed(&log, 1).expect("one");
        assert_eq!(log.lineage.made(&heart(), 1), Some((entry, provenance.log.leaf)));
        assert_eq!((provenance.model, provenance.base), (model(2), model(0)));
        // What a site spent in a try that gave nothing is spent.
        let spent: Vec<_> = provenance.epsilon.iter().map(|(s, e)| (s.name(), &e[..])).collect();
        assert_eq!(spent, [("a", "0.2"), ("b", "0.2"), ("c", "0.2")]);
        assert_eq!(provenance.software, "0.1.0");
        let read = Provenance::read(&provenance.statement().to_bytes()).expect("it reads");
        assert_eq!(read, provenance);
        assert_eq!(signed(&log, 2), None);
    }

    #[test]
    fn gates_are_told_as_the_entry_of_the_model_has_them() {
        let mut log = three_rounds();
        let gates = [
            "pass: auc: 0.7512 [0.7312, 0.7721], at least 0.72 needed",
            "fail: sites: 2, at least 3 needed",
            "something else",
        ];
        let told = published(4, &[]).texts("gates", gates.map(str::to_owned));
        log.ok(told.texts("witnesses", ["9 t/w".to_owned()]));
        log.ok(made(1, 4));
        let said = signed(&log, 1).expect("one").gates;
        let texts = said.iter().map(|g| [&g.name[..], &g.figure, &g.interval, &g.bound]);
        let wanted = [
            ["auc", "0.7512", "0.7312, 0.7721", "at least 0.72"],
            ["sites", "2", "", "at least 3"],
            ["something else", "", "", ""],
            ["witnesses", "1", "", ""],
        ];
        assert_eq!(texts.collect::<Vec<_>>(), wanted);
        let pass: Vec<bool> = said.iter().map(|gate| gate.pass).collect();
        assert_eq!(pass, [true, false, false, true]);
    }

    #[test]
    fn a_site_leads_to_every_version_that_learned_from_it() {
        let mut log = three_rounds();
        for (version, number) in [(1, 1), (2, 2), (3, 3)] {
            log.ok(made(version, number));
        }
        let numbers = |asked: &Asked| -> Vec<u32> {
            log.lineage.touched(asked).iter().map(|touched| touched.version.number).collect()
        };
        assert_eq!(numbers(&asked(Source::Site(site("a")))), [1, 2, 3]);
        assert_eq!(numbers(&asked(Source::Site(site("b")))), [2, 3]);
        // It was accepted, and no model follows from it.
        assert_eq!(numbers(&asked(Source::Site(site("c")))), Vec::<u32>::new());
        let place = "ae-on/ae-az".parse().expect("a place");
        assert_eq!(numbers(&asked(Source::Place(place))), [1, 2, 3]);
        let place = "ae-on/ae-du".parse().expect("a place");
        assert_eq!(numbers(&asked(Source::Place(place))), Vec::<u32>::new());
        assert_eq!(numbers(&asked(Source::Update(digest("payload 3 b")))), [3]);
        assert_eq!(numbers(&asked(Source::Update(digest("header 2 b")))), [2, 3]);
        // Between two days, of which the second is not meant any more.
        let between = |since: i64, until: i64| Asked {
            since: Timestamp::from_millis(DAY_MS * since).to_string(),
            until: Timestamp::from_millis(DAY_MS * until).to_string(),
            ..asked(Source::Site(site("b")))
        };
        assert_eq!(numbers(&between(0, 7)), Vec::<u32>::new());
        assert_eq!(numbers(&between(7, 8)), [2, 3]);
        assert_eq!(numbers(&between(8, 100)), [3]);
        let touched = log.lineage.touched(&asked(Source::Site(site("b"))));
        assert_eq!((touched[1].updates, touched[1].rounds, touched[1].untouched), (2, (2, 3), 1));
        assert_eq!(touched[1].indices, (7, 10));
    }

    #[test]
    fn what_a_study_left_aside_when_it_was_rolled_back_is_in_no_later_version() {
        let mut log = three_rounds();
        // The fourth round begins where the first one ended.
        log.ok(update(4, "a"));
        log.ok(published(4, &["a"]).digest("base_sha256", &model(1)));
        log.ok(made(1, 4));
        let rounds: Vec<u32> =
            signed(&log, 1).expect("one").rounds.iter().map(|r| r.number).collect();
        assert_eq!(rounds, [1, 4]);
        let touched = log.lineage.touched(&asked(Source::Site(site("b"))));
        assert_eq!(touched, []);
        log.ok(made(2, 3));
        let touched = log.lineage.touched(&asked(Source::Site(site("b"))));
        assert_eq!((touched.len(), touched[0].version.number, touched[0].untouched), (1, 2, 4));
    }

    #[test]
    fn a_withdrawal_takes_out_of_use_what_learned_from_the_site() {
        let mut log = three_rounds();
        for (version, number) in [(1, 1), (2, 2), (3, 3)] {
            log.ok(made(version, number));
        }
        let remedies = |log: &Log, name: &str| -> Vec<(u32, Remedy)> {
            let touched = log.lineage.touched(&asked(Source::Site(site(name))));
            touched.iter().map(|touched| (touched.version.number, touched.remedy)).collect()
        };
        log.ok(promoted(1, 1, Stage::Staging));
        log.ok(promoted(1, 1, Stage::Production));
        assert_eq!(remedies(&log, "b"), [(2, Remedy::Reject), (3, Remedy::Reject)]);
        log.ok(promoted(2, 2, Stage::Staging));
        log.ok(promoted(2, 2, Stage::Production).count("replaces", 1));
        assert_eq!(remedies(&log, "b"), [(2, Remedy::RollBack(1)), (3, Remedy::Reject)]);
        // The version before learned from this one too.
        let of_a = [(1, Remedy::Revoke), (2, Remedy::Revoke), (3, Remedy::Reject)];
        assert_eq!(remedies(&log, "a"), of_a);
        log.ok(moved(Kind::VersionRolledBack, 1, 1).count("replaces", 2));
        log.ok(moved(Kind::VersionRevoked, 2, 2).text("reason", "consent was withdrawn"));
        assert_eq!(remedies(&log, "b"), [(2, Remedy::Nothing), (3, Remedy::Reject)]);
        let ancestry = log.lineage.ancestry(&heart(), 2).expect("a version");
        let stages: Vec<Stage> = ancestry.moves.iter().map(|moved| moved.stage).collect();
        let wanted = [Stage::Candidate, Stage::Staging, Stage::Production, Stage::Archived];
        assert_eq!(stages, [&wanted[..], &[Stage::Revoked]].concat());
        assert_eq!(ancestry.moves[4].reason, "consent was withdrawn");
        assert_eq!(
            log.lineage.registry(&heart()).and_then(Registry::serving).map(|v| v.number),
            Some(1)
        );
    }

    #[test]
    fn a_log_that_says_what_cannot_be_names_the_field() {
        let mut log = three_rounds();
        let mut wrong = |draft: Draft, why: &str| {
            let said = log.take(draft).expect_err(why).to_string();
            assert!(said.contains(why), "`{why}`, and it says: {said}");
        };
        wrong(made(1, 4), "`model_sha256`");
        wrong(made(2, 2), "its `version` is 2, and what follows is 1");
        wrong(made(1, 2).digest("model_sha256", &model(3)), "its `model_sha256` is");
        wrong(made(1, 2).digest("manifest_sha256", &model(3)), "its `manifest_sha256` is");
        wrong(promoted(1, 2, Stage::Staging), "no version 1");
        let other = moved(Kind::VersionRevoked, 1, 1).study(&"liver".parse().expect("a study"));
        wrong(other, "never submitted");
        log.ok(made(1, 2));
        log.ok(made(2, 3));
        let mut wrong = |draft: Draft, why: &str| {
            let said = log.take(draft).expect_err(why).to_string();
            assert!(said.contains(why), "`{why}`, and it says: {said}");
        };
        wrong(promoted(1, 2, Stage::Production), "which leads to `staging`");
        wrong(promoted(1, 3, Stage::Staging), "its `model_sha256` is");
        wrong(promoted(1, 2, Stage::Staging).count("replaces", 2), "its `replaces` is 2");
        let mut shard = Log { lineage: Lineage::new(true), seq: 0 };
        shard.ok(promoted(1, 2, Stage::Staging));
    }
}
