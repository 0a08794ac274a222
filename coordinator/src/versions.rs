//! Versions of studies' models: made, promoted, rejected, revoked, rolled back, and what is signed of each.
//!
//! How versions may move is `falaj_core::registry::version`'s to say, and who may move them the policies'. A move and the entry
//! that says so are one transaction, over the change that the move was computed from: of two that race one wins.

mod signed;
pub(crate) use signed::before_pruning;

use crate::{
    approvals::{Approvals, Taken},
    blob::Blobs,
    checkpointer::Checkpointer,
    engine::{
        Engine, Handle, Meta, Parts,
        evaluation::{self, Asked},
        unreadable,
    },
    erasure::Asker,
    once::{self, Once},
    policy::{Action, Resource},
    store::{
        Store, StoreError,
        objects::Wanted,
        row::RegistryRow,
        writer::{Change, Committed},
    },
};
use anyhow::Context as _;
use falaj_core::{
    audit::{Draft, Entry, Kind, approvals::Promotion},
    gate::{Declared, Judged, When},
    id::{Digest, Place, RoundId, StudyId},
    registry::{
        lineage::{Ancestry, Lineage, WAS},
        safetensors,
        version::{self, Alias, Event, Refusal, Registry, Stage, Version, step},
    },
    round::AnyRound,
};
use falaj_proto::problem::{Code, Problem};
use sha2::{Digest as _, Sha256};
use std::{io, io::Read as _};

/// Bytes of a model that are read at once.
const BLOCK_BYTES: usize = 1 << 20;
/// Entries that are read at once.
const PAGE: u32 = 1_000;
/// The longest reason.
pub const REASON_CHARS_MAX: usize = 1_000;

/// What somebody wants done with a version.
#[derive(Clone, Debug)]
pub enum Act {
    /// A round's model becomes a version.
    Make {
        /// The round.
        round: u32,
    },
    /// A version goes on to a stage, to serve in a place.
    Promote {
        /// Which version.
        number: u32,
        /// Where to.
        stage: Stage,
        /// Where it is to serve; where whoever asks is when absent.
        place: Option<Place>,
    },
    /// A version is not good enough.
    Reject {
        /// Which version.
        number: u32,
        /// Why.
        reason: String,
    },
    /// A version must not be used any more.
    Revoke {
        /// Which version.
        number: u32,
        /// Why.
        reason: String,
    },
    /// The version that was in production before serves again.
    RollBack {
        /// Why.
        reason: String,
    },
    /// An alias is given to a version, or taken away.
    Alias {
        /// Which alias.
        alias: Alias,
        /// To whom.
        number: Option<u32>,
    },
}

impl Act {
    const fn action(&self) -> Action {
        match self {
            Self::Make { .. } => Action::VersionMake,
            Self::Promote { .. } => Action::VersionPromote,
            Self::Reject { .. } => Action::VersionReject,
            Self::Revoke { .. } => Action::VersionRevoke,
            Self::RollBack { .. } => Action::VersionRollBack,
            Self::Alias { .. } => Action::VersionAlias,
        }
    }

    const fn kind(&self) -> Kind {
        match self {
            Self::Make { .. } => Kind::VersionMade,
            Self::Promote { .. } => Kind::VersionPromoted,
            Self::Reject { .. } => Kind::VersionRejected,
            Self::Revoke { .. } => Kind::VersionRevoked,
            Self::RollBack { .. } => Kind::VersionRolledBack,
            Self::Alias { .. } => Kind::VersionAliased,
        }
    }

    const fn promotion(&self) -> Option<Promotion> {
        match self {
            Self::Promote { number, stage, .. } => {
                Some(Promotion { version: *number, stage: *stage })
            }
            _ => None,
        }
    }

    /// What an entry says of it that policies speak of, whether or not it is done.
    fn asked(&self, draft: Draft) -> Draft {
        let draft = self.promotion().iter().fold(draft, |draft, promotion| promotion.tell(draft));
        match self {
            Self::Promote { place: Some(place), .. } => {
                draft.asked([("place", place.to_string().as_str())])
            }
            _ => draft,
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Reject { reason, .. }
            | Self::Revoke { reason, .. }
            | Self::RollBack { reason } => Some(reason),
            _ => None,
        }
    }
}

/// Why a round's model does not become a version.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// It cannot, by the versions that there are.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not every gate of its study was asked about it.
    #[error(
        "round {round} was not judged by the study's gate on `{gate}`: no model is a version that it did not let pass"
    )]
    Unjudged {
        /// The round.
        round: u32,
        /// What the gate looks at.
        gate: String,
    },
    /// Its bytes are not those that were published.
    #[error("the stored model has SHA-256 {found}, and {wanted} was published")]
    Damaged {
        /// As published.
        wanted: Digest,
        /// Of what is stored.
        found: Digest,
    },
    /// Its bytes cannot be read.
    #[error("the stored model cannot be read")]
    Unreadable(#[from] io::Error),
    /// The versions that there are cannot be read.
    #[error("the study's versions cannot be read")]
    Store(#[from] StoreError),
}

/// A version that is to be made: what becomes durable together.
pub(crate) struct Making {
    /// The row.
    pub(crate) row: Change,
    /// The entry.
    pub(crate) draft: Draft,
    /// The registry as it will be.
    pub(crate) change: version::Change,
}

/// Makes ready that a round's model becomes a version: its bytes are looked at, every one.
pub(crate) async fn making(
    parts: &Parts,
    meta: &Meta,
    round: u32,
    model: Digest,
) -> Result<Making, MakeError> {
    let study = &meta.study.id;
    let RegistryRow { registry, version } = read(&parts.store, study).await?;
    judged(parts, meta, round).await?;
    let file = file_digest(&parts.models, meta, round, model).await?;
    let manifest = meta.manifest.digest();
    let change = step(&registry, &Event::Make { round, model, manifest, file })?;
    let draft = Draft::new(Kind::VersionMade)
        .round(&RoundId { study: study.clone(), number: round })
        .count("version", change.version.into())
        .digest("model_sha256", &model)
        .digest("manifest_sha256", &manifest)
        .digest("safetensors_sha256", &file);
    let row = Change::Registry(change.next.clone(), version);
    Ok(Making { row, draft, change })
}

/// That every gate of the study which rounds are asked was asked about the model of a round.
async fn judged(parts: &Parts, meta: &Meta, round: u32) -> Result<(), MakeError> {
    let study = &meta.study;
    let rounds = parts.store.rounds(&study.id).await?;
    let gave = |r: &&AnyRound| r.id().number == round && matches!(r, AnyRound::Promoted(_));
    let evaluated = rounds.iter().find(gave).is_some_and(|r| r.spec().evaluates);
    let asked = |gate: &&Declared| gate.is_asked(round == study.rounds.count, evaluated);
    let mut of_rounds = study.gates.iter().filter(|gate| gate.when != When::Promotion);
    match of_rounds.find(|gate| !asked(gate)) {
        Some(gate) => {
            let gate = gate.figure.name(study.evaluation.as_ref());
            Err(MakeError::Unjudged { round, gate })
        }
        None => Ok(()),
    }
}

/// The versions of a study, which may have none.
async fn read(store: &Store, study: &StudyId) -> Result<RegistryRow, StoreError> {
    let empty = || RegistryRow { registry: Registry::new(study.clone()), version: 0 };
    Ok(store.registry(study).await?.unwrap_or_else(empty))
}

/// That a study has a version.
///
/// # Errors
/// [`Code::UnknownModel`].
pub(crate) async fn check_made(store: &Store, study: &StudyId, number: u32) -> Result<(), Problem> {
    let RegistryRow { registry, .. } = read(store, study).await.map_err(unreadable)?;
    registry.version(number).map(drop).map_err(|refusal| problem_of_refusal(&refusal))
}

/// That a model may be used: no version of it was revoked.
///
/// # Errors
/// [`Code::WrongStage`].
pub(crate) async fn check_usable(
    store: &Store,
    study: &StudyId,
    model: &Digest,
) -> Result<(), Problem> {
    let RegistryRow { registry, .. } = read(store, study).await.map_err(unreadable)?;
    let of_model = |v: &&Version| v.model == *model && v.stage == Stage::Revoked;
    match registry.versions.values().find(of_model) {
        Some(Version { number, .. }) => {
            let what = format!(
                "version {number} of study `{study}` was revoked: it must not be used any more"
            );
            Err(Code::WrongStage.because(what))
        }
        None => Ok(()),
    }
}

/// Counts the versions that there are, for who watches; from then on the writer counts.
pub(crate) async fn count(parts: &Parts) -> Result<(), StoreError> {
    let mut after = String::new();
    loop {
        let rows = parts.store.registries(&after, PAGE).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        last.registry.study.as_str().clone_into(&mut after);
        for row in &rows {
            parts.metrics.versions(&row.registry);
        }
    }
}

/// SHA-256 of the `safetensors` file of a model, whose own digest is checked on the way.
async fn file_digest(
    models: &Blobs,
    meta: &Meta,
    round: u32,
    model: Digest,
) -> Result<Digest, MakeError> {
    let head = safetensors::head(&meta.study.id, &meta.digest, round, &model, &meta.manifest);
    let models = models.clone();
    let hashed = tokio::task::spawn_blocking(move || -> io::Result<(Digest, Digest)> {
        let mut stored = models.reader(&model)?;
        let (mut of_model, mut of_file) = (Sha256::new(), Sha256::new());
        of_file.update(&head);
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let n = stored.read(&mut block)?;
            if n == 0 {
                break;
            }
            of_model.update(&block[..n]);
            of_file.update(&block[..n]);
        }
        Ok((Digest(of_model.finalize().into()), Digest(of_file.finalize().into())))
    });
    let (found, file) = hashed.await.map_err(io::Error::other)??;
    if found == model { Ok(file) } else { Err(MakeError::Damaged { wanted: model, found }) }
}

fn problem_of_making(error: &MakeError) -> Problem {
    match error {
        MakeError::Refused(refusal) => problem_of_refusal(refusal),
        MakeError::Unjudged { .. } => Code::WrongStage.because(error),
        MakeError::Damaged { .. } => {
            tracing::error!(%error, "a model is damaged");
            Code::ModelDamaged.because(
                "what is stored is not the model that was published: restore it from a backup",
            )
        }
        MakeError::Unreadable(_) | MakeError::Store(_) => {
            tracing::error!(%error, "a model cannot be read");
            Code::Internal.because("the coordinator cannot read this model")
        }
    }
}

fn problem_of_refusal(refusal: &Refusal) -> Problem {
    let code = match refusal {
        Refusal::Unknown { .. } => Code::UnknownModel,
        Refusal::Full(_) => Code::Busy,
        Refusal::Made { .. }
        | Refusal::Stage { .. }
        | Refusal::Over { .. }
        | Refusal::NothingBefore(_)
        | Refusal::Alias { .. }
        | Refusal::Same(_) => Code::WrongStage,
    };
    code.because(refusal)
}

/// Why a version stays where it stands: each gate that it fails, with its figure, interval and bound.
fn failed_gates(number: u32, to: Stage, reasons: &[String]) -> Problem {
    Code::GateFailed.because(format!(
        "version {number} does not go on to `{to}`: it fails {} of its study's gates that are asked then: {}",
        reasons.len(),
        reasons.join("; ")
    ))
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Done {
    /// The versions as they are now.
    pub registry: Registry,
    /// How often they were changed.
    pub revision: u64,
    /// Which version it was done with.
    pub number: u32,
    /// The entry that says so.
    pub index: u64,
    /// Whether it had been done before: the request came again.
    pub again: bool,
}

/// What is to be made durable.
struct Ready {
    change: version::Change,
    /// Over which change.
    over: u64,
    draft: Draft,
    /// What each gate that was asked looks at, and whether it passed.
    asked: Vec<(&'static str, bool)>,
}

/// Why there is nothing to be made durable.
struct Unready {
    problem: Problem,
    /// What the entry says beside what was asked, such as what gates said.
    draft: Draft,
    /// What each gate that was asked looks at, and whether it passed.
    asked: Vec<(&'static str, bool)>,
}

impl From<Problem> for Unready {
    fn from(problem: Problem) -> Self {
        Self { problem, draft: Draft::new(Kind::AdminRead), asked: Vec::new() }
    }
}

/// Nobody has a model read through who may not do what is asked. Policies deny it, and should they have come to allow it meanwhile,
/// it was not looked at.
fn not_looked_at(draft: Draft, asked: Vec<(&'static str, bool)>) -> Unready {
    let why = "policies or approvals changed while this was looked at: ask again";
    let draft = draft.into_kind(Kind::AdminRead);
    Unready { problem: Code::Conflict.because(why), draft, asked }
}

/// What an entry says of gates.
fn told(draft: Draft, said: Vec<(&'static str, Vec<String>)>) -> Draft {
    said.into_iter().fold(draft, |draft, (name, lines)| draft.texts(name, lines))
}

/// Moves versions, and signs what there is to say of them. A cheap handle.
#[derive(Clone)]
pub struct Versions {
    engine: Engine,
    approvals: Approvals,
    checkpointer: Checkpointer,
}

impl Versions {
    /// Over these.
    #[must_use]
    pub const fn new(engine: Engine, approvals: Approvals, checkpointer: Checkpointer) -> Self {
        Self { engine, approvals, checkpointer }
    }

    /// The versions of a study, and how often they were changed.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub async fn of(&self, study: &StudyId) -> Result<(Registry, u64), Problem> {
        let RegistryRow { registry, version } =
            read(&self.engine.parts().store, study).await.map_err(unreadable)?;
        Ok((registry, version))
    }

    /// The versions of studies whose names come after this one, of so many studies at most.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub async fn after(&self, study: &str, limit: u32) -> Result<Vec<RegistryRow>, Problem> {
        self.engine.parts().store.registries(study, limit).await.map_err(unreadable)
    }

    /// That a model may be used: no version of it was revoked.
    ///
    /// # Errors
    /// [`Code::WrongStage`].
    pub async fn check_usable(&self, study: &StudyId, model: &Digest) -> Result<(), Problem> {
        check_usable(&self.engine.parts().store, study, model).await
    }

    /// Does something with a version; `expected` is how often the study's versions were changed when whoever asks looked. This must
    /// be run to its end.
    ///
    /// # Errors
    /// [`Code::UnknownModel`], [`Code::WrongStage`], [`Code::ModelDamaged`], [`Code::Denied`], [`Code::Conflict`], or why the log
    /// cannot take the entry.
    pub async fn act(
        &self,
        asker: Asker<'_>,
        handle: &Handle,
        act: &Act,
        expected: Option<u64>,
    ) -> Result<Done, Problem> {
        let study = &handle.meta.study.id;
        let mut ready = self.ready(asker, handle, act, expected).await;
        // Looked up after the versions were read: what is done from then on changes them, and this is refused.
        match self.done_before(asker.once, study).await {
            Ok(None) => {}
            Ok(Some(done)) => return Ok(done),
            Err(problem) => ready = Err(problem.into()),
        }
        match ready {
            Ok(Ready { change, over, draft, asked }) => {
                let draft = asker.once.iter().fold(draft, |draft, once| once.tell(draft));
                let row = Change::Registry(change.next.clone(), over);
                let draft = act.asked(draft).study(study).actor(asker.actor);
                let draft = act.reason().iter().fold(draft, |draft, why| draft.text("reason", why));
                let committed = match self.grant(asker, handle, act, draft, vec![row]).await {
                    Ok(committed) => committed,
                    // The same request may have been quicker.
                    Err(problem) => {
                        return self.done_before(asker.once, study).await?.ok_or(problem);
                    }
                };
                self.count(&asked);
                let (number, index) = (change.version, committed.first);
                let (registry, revision) = (change.next, over + 1);
                Ok(Done { registry, revision, number, index, again: false })
            }
            Err(Unready { problem, draft, asked }) => {
                // Why it cannot be done is told to those only who might do it.
                let draft = act.asked(draft.study(study).actor(asker.actor));
                self.grant(asker, handle, act, draft, Vec::new()).await?;
                self.count(&asked);
                Err(problem)
            }
        }
    }

    /// Counts gates that were asked, for who watches.
    fn count(&self, asked: &[(&'static str, bool)]) {
        for (metric, pass) in asked {
            self.engine.parts().metrics.gate(metric, *pass);
        }
    }

    /// What gates say of a version as it stands, were it to go on to where it leads; nothing where none is asked.
    ///
    /// # Errors
    /// [`Code::UnknownModel`], or why it cannot be read.
    pub async fn gates(
        &self,
        handle: &Handle,
        registry: &Registry,
        number: u32,
    ) -> Result<Vec<Judged>, Problem> {
        let Version { round, stage, .. } =
            *registry.version(number).map_err(|refusal| problem_of_refusal(&refusal))?;
        if !stage.is_in() {
            return Ok(Vec::new());
        }
        let store = &self.engine.parts().store;
        // Whichever it goes on to, it is asked the same.
        let asked = evaluation::promotion(store, &handle.meta, round, Stage::Production).await?;
        Ok(asked.verdict.judged)
    }

    async fn ready(
        &self,
        asker: Asker<'_>,
        handle: &Handle,
        act: &Act,
        expected: Option<u64>,
    ) -> Result<Ready, Unready> {
        let (parts, meta) = (self.engine.parts(), &handle.meta);
        let (registry, over) = self.of(&meta.study.id).await?;
        if expected.is_some_and(|expected| expected != over) {
            let why = "the study's versions were changed since you looked: look, and try again";
            return Err(Code::Conflict.because(why).into());
        }
        act.reason().map_or(Ok(()), checked)?;
        let event = match act {
            Act::Make { round } => {
                let models = parts.store.models(&meta.study.id).await.map_err(unreadable)?;
                // A round after which a study was rolled back gave none: the model is an earlier one's.
                let model = models.iter().find(|model| model.number == *round && *round > 0);
                let first = |sha256| models.iter().find(|m| m.sha256 == sha256).map(|m| m.number);
                let model = model.filter(|model| first(model.sha256) == Some(*round));
                let none = || {
                    let study = &meta.study.id;
                    Code::UnknownModel
                        .because(format!("round {round} of study `{study}` gave no model"))
                };
                let model = model.ok_or_else(none)?.sha256;
                if !self.would(asker, handle, act).await? {
                    return Err(not_looked_at(Draft::new(act.kind()), Vec::new()));
                }
                self.check_told(&meta.study.id).await?;
                let made = making(parts, meta, *round, model).await;
                let Making { draft, change, .. } = made.map_err(|e| problem_of_making(&e))?;
                return Ok(Ready { change, over, draft, asked: Vec::new() });
            }
            Act::Promote { number, stage, .. } => Event::Promote { number: *number, to: *stage },
            Act::Reject { number, .. } => Event::Reject(*number),
            Act::Revoke { number, .. } => Event::Revoke(*number),
            Act::RollBack { .. } => Event::RollBack,
            Act::Alias { alias, number } => Event::Alias { alias: *alias, number: *number },
        };
        let change = step(&registry, &event).map_err(|refusal| problem_of_refusal(&refusal))?;
        let mut draft = Draft::new(act.kind());
        if let Act::Alias { alias, .. } = act {
            draft = draft.text("alias", alias.as_str());
        }
        // An alias that is taken away is nobody's from here on.
        if matches!(act, Act::Alias { number: None, .. }) {
            draft = draft.count(WAS, change.version.into());
        } else {
            let version = change.next.version(change.version);
            let version = version.map_err(|refusal| problem_of_refusal(&refusal))?;
            draft = draft.count("version", version.number.into());
            draft = draft.digest("model_sha256", &version.model);
        }
        if let Some(replaced) = change.replaced {
            draft = draft.count("replaces", replaced.into());
        }
        let mut asked = Vec::new();
        if let Act::Promote { number, stage, .. } = act
            && *stage != Stage::Archived
        {
            let Version { round, model, .. } =
                *registry.version(*number).map_err(|r| problem_of_refusal(&r))?;
            // Gates are asked whether or not whoever asks may promote: by then somebody may have approved it.
            let of_gates = evaluation::promotion(&parts.store, meta, round, *stage).await?;
            let Asked { verdict, said } = of_gates;
            if !verdict.pass {
                let problem = failed_gates(*number, *stage, &verdict.reasons);
                let draft = told(Draft::new(Kind::AdminRead), said);
                return Err(Unready { problem, draft, asked: verdict.asked });
            }
            draft = told(draft, said);
            asked = verdict.asked;
            if !self.would(asker, handle, act).await? {
                return Err(not_looked_at(draft, asked));
            }
            let whole = file_digest(&parts.models, meta, round, model).await;
            whole.map_err(|e| problem_of_making(&e))?;
            let envelope = self.provenance(handle, *number).await?;
            draft = draft.digest("provenance_sha256", &Digest::of(&envelope));
        }
        if matches!(act, Act::RollBack { .. }) {
            if !self.would(asker, handle, act).await? {
                return Err(not_looked_at(draft, asked));
            }
            let Version { round, model, .. } =
                *change.next.version(change.version).map_err(|r| problem_of_refusal(&r))?;
            let whole = file_digest(&parts.models, meta, round, model).await;
            whole.map_err(|e| problem_of_making(&e))?;
        }
        Ok(Ready { change, over, draft, asked })
    }

    /// That the shard which is written tells of a study: of a version of another nothing could be signed.
    async fn check_told(&self, study: &StudyId) -> Result<(), Problem> {
        let (store, _) = self.engine.parts().shards.newest();
        let terms = [study.as_str().to_owned()].into();
        let kind = Some(Kind::StudySubmitted);
        let wanted = Wanted { terms, kind, from: 0, below: u64::MAX };
        if store.find(&wanted, 1).await.map_err(unreadable)?.entries.is_empty() {
            return Err(Code::WrongStage.because(format!(
                "study `{study}` was submitted in an earlier shard of the log: what another version of it came from could not be signed"
            )));
        }
        Ok(())
    }

    /// What was done when a request came before.
    async fn done_before(
        &self,
        once: Option<Once>,
        study: &StudyId,
    ) -> Result<Option<Done>, Problem> {
        let before = once::before(self.engine.parts(), once).await?;
        let Some(entry) = before else { return Ok(None) };
        let (body, index) = (entry.body(), entry.seq);
        // An older entry of an alias that was taken away has neither.
        let number = body.int("version").or_else(|_| body.int(WAS)).map_err(|_| {
            let why = format!(
                "this was done before, as entry {index} of the log says: look how the study's versions stand"
            );
            Code::Conflict.because(why)
        })?;
        let (registry, revision) = self.of(study).await?;
        Ok(Some(Done { registry, revision, number, index, again: true }))
    }

    /// Whether it would be allowed as things stand, so that nobody has models read through who may not have it done.
    async fn would(&self, asker: Asker<'_>, handle: &Handle, act: &Act) -> Result<bool, Problem> {
        let study = &handle.meta.study;
        let resource = Resource::Study(&study.id, study.privacy.mechanism.as_str());
        let (action, promotion) = (act.action(), act.promotion());
        let (Some(person), Act::Promote { place, .. }) = (asker.actor.person, act) else {
            let policy = &self.engine.parts().policy;
            return Ok(policy.decide(asker.party(), action, &resource).allow);
        };
        let to = place.as_ref().unwrap_or(asker.id.place());
        let taken = Taken { action, resource: &resource, to, promotion };
        self.approvals.would_grant((asker.party(), person), &taken).await
    }

    /// Asks the policies, and records what they say together with the rows.
    async fn grant(
        &self,
        asker: Asker<'_>,
        handle: &Handle,
        act: &Act,
        draft: Draft,
        rows: Vec<Change>,
    ) -> Result<Committed, Problem> {
        let study = &handle.meta.study;
        let resource = Resource::Study(&study.id, study.privacy.mechanism.as_str());
        let (who, action) = (asker.party(), act.action());
        if let (Some(person), Act::Promote { place, .. }) = (asker.actor.person, act) {
            let to = place.as_ref().unwrap_or(asker.id.place());
            let taken = Taken { action, resource: &resource, to, promotion: act.promotion() };
            return self.approvals.grant((who, person), &taken, draft, rows).await;
        }
        let decision = self.engine.parts().policy.decide(who, action, &resource);
        Ok(self.engine.record_with(action, decision, draft, rows).await?.1)
    }

    /// What is signed of a version, as a DSSE envelope: signed now unless it was before, and the same bytes from then on.
    ///
    /// # Errors
    /// Why it cannot be read or signed.
    pub async fn provenance(&self, handle: &Handle, number: u32) -> Result<Vec<u8>, Problem> {
        signed::provenance(&self.engine, &self.checkpointer, handle, number).await
    }

    /// Everything that made a version, and what became of it.
    ///
    /// # Errors
    /// [`Code::UnknownModel`]; [`Code::Pruned`]; why the log cannot be read.
    pub async fn ancestry(&self, study: &StudyId, number: u32) -> Result<Ancestry, Problem> {
        let (registry, _) = self.of(study).await?;
        registry.version(number).map_err(|refusal| problem_of_refusal(&refusal))?;
        let mut lineage = Lineage::new(true);
        for store in self.engine.parts().store.shards().await.map_err(unreadable)? {
            if !store.pruned().await.map_err(unreadable)? {
                fold(&store, study, &mut lineage).await.map_err(|e| untold(&e))?;
            }
        }
        lineage.ancestry(study, number).ok_or_else(|| {
            Code::Pruned.because(format!(
                "the entries that tell what version {number} of study `{study}` came from were deleted"
            ))
        })
    }

    /// What the whole log tells of versions, and the shards of it whose contents were deleted.
    ///
    /// # Errors
    /// Why the log cannot be read.
    pub async fn lineage(&self) -> Result<(Lineage, Vec<String>), Problem> {
        let (mut lineage, mut deleted) = (Lineage::new(true), Vec::new());
        for store in self.engine.parts().store.shards().await.map_err(unreadable)? {
            if store.pruned().await.map_err(unreadable)? {
                deleted.extend(store.shard().origin.clone());
                continue;
            }
            let mut from = 0;
            loop {
                let rows = store.entries(from, u64::MAX, PAGE, None).await.map_err(unreadable)?;
                let Some((last, ..)) = rows.last() else { break };
                from = last + 1;
                take(&mut lineage, rows.iter().map(|(_, bytes, _)| &bytes[..]))
                    .map_err(|e| untold(&e))?;
            }
        }
        Ok((lineage, deleted))
    }
}

fn untold(error: &anyhow::Error) -> Problem {
    tracing::error!(error = %format!("{error:#}"), "the log tells of versions what cannot be");
    Code::Internal.because("the coordinator cannot read what its log tells of versions")
}

fn take<'a>(lineage: &mut Lineage, rows: impl Iterator<Item = &'a [u8]>) -> anyhow::Result<()> {
    for bytes in rows {
        let entry = Entry::parse(bytes)?;
        lineage.take(&entry).with_context(|| format!("log entry {}", entry.seq))?;
    }
    Ok(())
}

/// Takes what a shard tells of one study, and which coordinator ran then.
async fn fold(store: &Store, study: &StudyId, lineage: &mut Lineage) -> anyhow::Result<()> {
    let mut starts = Vec::new();
    let mut from = 0;
    loop {
        let kind = Some(Kind::CoordinatorStarted.as_str());
        let rows = store.entries(from, u64::MAX, PAGE, kind).await?;
        let Some((last, ..)) = rows.last() else { break };
        from = last + 1;
        starts.extend(rows);
    }
    let mut starts = starts.into_iter().peekable();
    let terms = [study.as_str().to_owned()].into();
    let mut wanted = Wanted { terms, below: u64::MAX, ..Wanted::default() };
    loop {
        let found = store.find(&wanted, PAGE).await?;
        for (index, bytes, _) in &found.entries {
            while let Some((_, start, _)) = starts.next_if(|(at, ..)| at < index) {
                take(lineage, [&start[..]].into_iter())?;
            }
            take(lineage, [&bytes[..]].into_iter())?;
        }
        match found.next {
            Some(next) => wanted.from = next,
            None => return Ok(()),
        }
    }
}

/// A reason, as it goes into the log.
pub(crate) fn checked(reason: &str) -> Result<(), Problem> {
    let chars = reason.chars().count();
    let fits = (1..=REASON_CHARS_MAX).contains(&chars) && !reason.chars().any(char::is_control);
    if fits {
        return Ok(());
    }
    Err(Code::Malformed
        .because(format!("`reason` has 1 to {REASON_CHARS_MAX} characters and one line")))
}
