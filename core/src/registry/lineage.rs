//! What a log tells of versions, both ways: from a version to everything that made it, and from a site, a place or an update to
//! every version that it touched.
//!
//! A fold over entries, one after the other. On the way each move of a version is made again by [`step`]: a log in which a
//! version went where it could not go is refused.

mod run;
mod touched;

pub use touched::{Asked, Remedy, Source, Touched};

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
    id::{Digest, SiteId, StudyId},
    merkle::leaf_hash,
};
use std::collections::{BTreeMap, BTreeSet};

/// Of an alias that is taken away, the version that had it: the name of an entry's member.
pub const WAS: &str = "was";

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
    /// Which entry said it when a site's epsilon changed, in order.
    spent: Vec<(u64, SiteId, String)>,
    /// Rounds and tries whose candidates waited for people: not every gate let them pass.
    held: BTreeSet<(u32, u32)>,
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
    /// Approvals of its promotions, without those that were taken back before they counted.
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
                    let (round, site): (_, SiteId) = (body.int("round")?, body.parsed("site")?);
                    let epsilon = body.find_text("epsilon").map(str::to_owned);
                    run.spent.extend(epsilon.map(|e| (entry.seq, site.clone(), e)));
                    let evaluated = Evaluated { round, site, index: entry.seq };
                    run.evaluations.push((body.int("attempt").unwrap_or(0), evaluated));
                }
            }
            Kind::CandidateHeld => {
                if let Some(run) = self.run(entry)? {
                    run.held.insert((body.int("round")?, body.int("attempt").unwrap_or(0)));
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
            Kind::ApprovalWithdrawn if body.member("version").is_some() => {
                let (study, number): (StudyId, u32) = (body.parsed("study")?, body.int("version")?);
                let id = body.text("approval")?;
                let run = self.runs.get_mut(&study);
                if let Some(history) = run.and_then(|run| run.versions.get_mut(&number)) {
                    let History { moves, approvals, .. } = history;
                    let counted = |m: &Moved| m.approvals.iter().any(|approval| approval == id);
                    approvals.retain(|a| a.id != id || moves.iter().any(counted));
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
            spent: Vec::new(),
            held: BTreeSet::new(),
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
        run.spent.push((entry.seq, update.site.clone(), update.epsilon.clone()));
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
        let attempt = body.int("attempt").unwrap_or(0);
        let pass = !run.held.contains(&(number, attempt));
        let gates = asked(body, number, pass).chain(witnessed).collect();
        let made = Made {
            round,
            attempt,
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
        // An alias that is taken away is no version's, and older entries do not say whose it was.
        if matches!(event, Event::Alias { number: None, .. }) {
            if body.member(WAS).is_some() {
                same(WAS, &body.int::<u32>(WAS)?, &change.version)?;
            }
        } else {
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
                    asked(body, change.next.version(number)?.round, true).collect()
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
        let before = run.spent.iter().filter(|(index, ..)| *index < made.round.index);
        let epsilon = before.map(|(_, site, epsilon)| (site.clone(), epsilon.clone())).collect();
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

/// What an entry says of the gates that were asked about a round's model. Where that was too long for it, it has the list's digest, and
/// `pass` is whether every one of them has passed.
fn asked(body: Node<'_>, round: u32, pass: bool) -> impl Iterator<Item = GateSaid> {
    let lines = body.member("gates").into_iter().flat_map(Node::items);
    let lines = lines.filter_map(Node::as_text).map(move |line| GateSaid::of_line(round, line));
    let digest = body.find_text("gates_sha256");
    let unlisted = digest.map(|digest| GateSaid::too_many(round, digest, pass));
    lines.chain(unlisted)
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

#[cfg(test)]
mod tests;
