//! The engine: drives studies through their rounds.
//!
//! One actor per running study (`actor`) does four things in turn: load, step, commit, act. This module is
//! what everybody else holds: submit, stop, look, connect, send.

mod actor;
mod combined;
pub(crate) mod evaluation;
mod exchange;
pub(crate) use actor::{by_name, refusal};
pub use exchange::MESSAGES_MAX;
mod leaving;
pub mod sites;
mod spooled;

use crate::{
    accept::Peer,
    blob::Blobs,
    config::Limits,
    erasure::Asker,
    metrics::Metrics,
    once::{self, Once},
    outcomes::Outcomes,
    persons::Persons,
    policy::{Action, Decision, Party, PolicyEngine, Resource},
    refusals::Refusals,
    shards::Shards,
    store::{
        Store, StoreError,
        row::{ModelRow, StudyRow, UpdateRow},
        writer::{Change, Commit, CommitError, Committed, Writer},
    },
    versions,
    witnesses::Counted,
};
use bytes::Bytes;
use falaj_core::{
    aggregate::params_to_bytes,
    audit::{Actor, Draft, Kind, person::Person},
    evaluation::answer::EvaluationHeader,
    id::{Digest, Place, RoundId, SiteId, StudyId},
    manifest::Manifest,
    note::NoteSigner,
    receipt::{self, Receipt},
    round::{AnyRound, Phase, UpdateRef},
    study::Study,
    time::Timestamp,
    update::UpdateHeader,
};
use falaj_proto::{
    problem::{Code, Problem},
    rest::StudyEvent,
};
use leaving::Leaving;
use sha2::{Digest as _, Sha256};
use sites::Sites;
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, RwLock, Weak},
};
use tokio::{
    sync::{Mutex, broadcast, mpsc, oneshot, watch},
    task::spawn_blocking,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Parameters that are written at once.
const BLOCK_PARAMS: usize = 1 << 16;

/// What an entry names as study and mechanism when a study's file cannot be read.
const UNREAD: &str = "unread";

/// Mail that one study's actor lets wait.
const MAILBOX: usize = 1_024;
/// Events that a slow watcher may fall behind by.
const EVENTS: usize = 1_024;

/// What the engine is made of.
pub struct Parts {
    /// Reads.
    pub store: Store,
    /// Writes.
    pub writer: Writer,
    /// Spooled updates.
    pub updates: Blobs,
    /// Models.
    pub models: Blobs,
    /// The people in the log, and their keys.
    pub persons: Persons,
    /// What became of what was let out.
    pub outcomes: Outcomes,
    /// Handshakes that failed.
    pub refusals: Arc<Refusals>,
    /// Decides.
    pub policy: PolicyEngine,
    /// Who can stand behind a round.
    pub witnesses: Counted,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Signs tasks and receipts.
    pub signer: Arc<NoteSigner>,
    /// The log's shards, and who spoke for them.
    pub shards: Shards,
    /// Bounds.
    pub limits: Limits,
}

/// Drives studies. A cheap handle.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    sites: Sites,
    studies: RwLock<BTreeMap<StudyId, Handle>>,
    submitting: Mutex<()>,
    tasks: TaskTracker,
    /// Done once studies may go on.
    begun: CancellationToken,
    shutdown: CancellationToken,
}

/// What does not change about a study.
pub struct Meta {
    /// The study.
    pub study: Study,
    /// SHA-256 of its file.
    pub digest: Digest,
    /// Its file.
    pub yaml: Bytes,
    /// Its model's tensors.
    pub manifest: Manifest,
    /// When it was submitted.
    pub submitted: Timestamp,
    /// By whom.
    pub submitted_by: String,
}

/// What changes about a study.
#[derive(Clone, Debug)]
pub struct View {
    /// running, finished, stopped or failed.
    pub state: &'static str,
    /// Why it failed.
    pub reason: Option<String>,
    /// The round that runs, or ran last.
    pub round: Option<AnyRound>,
    /// Rounds that gave a model.
    pub promoted: u32,
    /// The newest model.
    pub model: Digest,
    /// The most epsilon that an update of each site, or its counts about a candidate, states.
    pub epsilon: BTreeMap<SiteId, f64>,
    /// Payload bytes by site.
    pub bytes: BTreeMap<SiteId, u64>,
    /// The cohort of a masked round, once its members are fixed.
    pub cohort: Option<Digest>,
}

impl View {
    /// What is stored of a study, and its newest round with its version.
    async fn stored(
        store: &Store,
        row: &StudyRow,
    ) -> Result<(Self, Option<(AnyRound, u64)>), StoreError> {
        let id = &row.id;
        let models = store.models(id).await?;
        let newest = store.newest_round(id).await?;
        let mut view = Self {
            state: state_word(&row.state),
            reason: row.reason.clone(),
            round: newest.as_ref().map(|(round, _)| round.clone()),
            promoted: u32::try_from(models.len().saturating_sub(1)).unwrap_or(u32::MAX),
            model: models
                .last()
                .map(|m| m.sha256)
                .ok_or_else(|| StoreError::Corrupt(format!("study {id} without a model")))?,
            epsilon: BTreeMap::new(),
            bytes: BTreeMap::new(),
            cohort: None,
        };
        // A study that was weighed has ended with its best model, which no row after its last round's names.
        if let Some(AnyRound::Promoted(last)) =
            view.round.as_ref().filter(|_| view.state == "finished")
            && let Some(best) = last.stage.progress.best.as_ref()
        {
            view.model = best.model;
        }
        for update in store.updates(id).await? {
            view.note(&update.site, &update.epsilon, update.bytes);
        }
        for row in store.evaluations(id).await? {
            let signed = evaluation::stored(&row);
            let header = signed.and_then(|s| EvaluationHeader::parse(&s.header).ok());
            let header = header.ok_or_else(|| {
                StoreError::Corrupt(format!("what {} counted in round {}", row.site, row.round))
            })?;
            view.note(&row.site, &header.epsilon, row.messages.len() as u64);
        }
        Ok((view, newest))
    }

    /// Remembers what an update, or counts, say of their site. What has been spent is never less again.
    fn note(&mut self, site: &SiteId, epsilon: &str, bytes: u64) {
        let epsilon = epsilon.parse().unwrap_or(f64::INFINITY);
        let most = self.epsilon.entry(site.clone()).or_insert(epsilon);
        *most = most.max(epsilon);
        *self.bytes.entry(site.clone()).or_default() += bytes;
    }
}

/// A study, seen from outside.
#[derive(Clone)]
pub struct Handle {
    /// What does not change.
    pub meta: Arc<Meta>,
    view: watch::Receiver<View>,
    /// Only whoever runs the study keeps the channel: its buffer is too large to be kept for every study that is over. (The
    /// channel's own weak sender would keep the buffer.)
    events: Weak<broadcast::Sender<StudyEvent>>,
    mailbox: mpsc::Sender<Mail>,
    leaving: Arc<Leaving>,
}

impl Handle {
    /// How it stands now.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// The candidate that this site is asked to evaluate now.
    #[must_use]
    pub fn asks_to_evaluate(&self, site: &SiteId) -> Option<Digest> {
        match &self.view.borrow().round {
            Some(AnyRound::Evaluating(r)) if r.stage.sites.contains_key(site) => {
                Some(r.stage.candidate)
            }
            _ => None,
        }
    }

    /// The model from which the round begins that runs, while the study does.
    #[must_use]
    pub fn base(&self) -> Option<Digest> {
        let view = self.view.borrow();
        let round = view.round.as_ref().filter(|_| view.state == "running");
        round.map(|round| round.spec().base)
    }

    /// What happens to it from now on. It ends with the study.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<StudyEvent> {
        let ended = || broadcast::channel(1).1;
        self.events.upgrade().map_or_else(ended, |events| events.subscribe())
    }

    /// An event that says how it stands now.
    #[must_use]
    pub fn snapshot(&self) -> StudyEvent {
        actor::event(&self.meta, &self.view.borrow(), 0, None, "now".into())
    }
}

/// An update whose payload lies durable in the spool.
pub struct Arrived {
    /// Whose it is.
    pub site: SiteId,
    /// Who sent it.
    pub peer: Arc<Peer>,
    /// Under which policies it was taken.
    pub decision: Decision,
    /// What it says.
    pub header: UpdateHeader,
    /// The header as signed.
    pub header_bytes: Vec<u8>,
    /// The site's signature.
    pub signature: Vec<u8>,
}

/// What a site sent in a phase of a masked round.
pub struct Answer {
    /// Whose it is.
    pub site: SiteId,
    /// Who sent it.
    pub peer: Arc<Peer>,
    /// Under which policies it was taken.
    pub decision: Decision,
    /// The round.
    pub round: RoundId,
    /// The try of the round.
    pub attempt: u32,
    /// What was asked for.
    pub phase: Phase,
    /// What it sent.
    pub messages: Vec<Bytes>,
}

/// What somebody decides over a candidate that waits for people.
pub struct Decided {
    /// Who.
    pub peer: Arc<Peer>,
    /// By which action.
    pub action: Action,
    /// Under which policies it is allowed.
    pub decision: Decision,
    /// The candidate that they have seen.
    pub candidate: Digest,
    /// Who approves it; nobody where it is refused.
    pub approves: Option<Person>,
    /// Why.
    pub reason: String,
    /// How the request is known when it comes again.
    pub once: Option<Once>,
}

/// A signed promise that an update is counted.
#[derive(Clone, Debug)]
pub struct SignedReceipt {
    /// Canonical JSON.
    pub receipt: Vec<u8>,
    /// By the log key.
    pub signature: [u8; 64],
    /// Whether it was counted before.
    pub already_counted: bool,
}

enum Mail {
    Joined(SiteId),
    Declined(SiteId, u32, String, oneshot::Sender<Result<(), Problem>>),
    Update(Box<Arrived>, oneshot::Sender<Result<SignedReceipt, Problem>>),
    Answered(Box<Answer>, oneshot::Sender<Result<(), Problem>>),
    Decided(Box<Decided>, oneshot::Sender<Result<(), Problem>>),
    Stop(Actor, Option<Once>, oneshot::Sender<Result<(), Problem>>),
    /// Somebody is leaving: see [`Leaving`].
    Look,
}

/// What callers are told when nothing could be made durable.
#[must_use]
pub fn problem_of(error: &CommitError) -> Problem {
    match error {
        CommitError::Busy => {
            Code::Busy.because("the log takes no more entries for the moment; try again")
        }
        CommitError::Conflict => {
            Code::Conflict.because("somebody else changed it meanwhile: look, and try again")
        }
        CommitError::Erased => Code::Unidentified.because(
            "whoever this connection belonged to has been erased: connect again",
        ),
        CommitError::Slow => Code::LogUnavailable.because(
            "the audit log has not taken the entry in time, so nothing is served; a change that was asked for may still take effect: look before you ask again",
        ),
        CommitError::Full => Code::StorageFull.because(
            "the coordinator's disk is full: nothing was changed, and nothing acknowledged is lost",
        ),
        CommitError::ReadOnly | CommitError::Unavailable(_) | CommitError::Failed(_) => {
            Code::LogUnavailable.because("the audit log cannot take an entry, so nothing is served")
        }
    }
}

/// What callers are told when state cannot be read.
#[must_use]
pub fn unreadable(error: StoreError) -> Problem {
    if matches!(error, StoreError::Pruned) {
        return Code::Pruned.because(format!(
            "{error}: `falaj log query --kind pruning.performed` says when and why, and which bundle holds it"
        ));
    }
    tracing::error!(error = %format!("{:#}", anyhow::Error::from(error)), "state cannot be read");
    Code::Internal.because("the coordinator cannot read its state")
}

impl Engine {
    /// Takes up every study that was running when the coordinator ended. They wait for [`Self::begin`].
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub async fn open(parts: Parts, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let this = Self {
            inner: Arc::new(Inner {
                parts,
                sites: Sites::default(),
                studies: RwLock::default(),
                submitting: Mutex::default(),
                tasks: TaskTracker::new(),
                begun: CancellationToken::new(),
                shutdown,
            }),
        };
        for row in this.parts().store.studies().await? {
            this.resume(row).await?;
        }
        versions::count(this.parts()).await?;
        Ok(this)
    }

    /// Lets the studies go on: it is known whom they have to do without.
    pub fn begin(&self) {
        self.inner.begun.cancel();
    }

    /// Done when the coordinator ends.
    #[must_use]
    pub fn shutdown(&self) -> &CancellationToken {
        &self.inner.shutdown
    }

    /// What it is made of.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    /// Who is connected.
    #[must_use]
    pub fn sites(&self) -> &Sites {
        &self.inner.sites
    }

    /// Waits until every actor has ended, after the shutdown was asked for.
    pub async fn ended(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Every study, by name.
    ///
    /// # Panics
    /// When a thread has panicked while holding the map.
    #[must_use]
    pub fn studies(&self) -> Vec<Handle> {
        let studies =
            self.inner.studies.read().expect("invariant: the map is never left half changed");
        studies.values().cloned().collect()
    }

    /// One study.
    ///
    /// # Errors
    /// [`Code::UnknownStudy`].
    ///
    /// # Panics
    /// When a thread has panicked while holding the map.
    pub fn study(&self, id: &StudyId) -> Result<Handle, Problem> {
        let studies =
            self.inner.studies.read().expect("invariant: the map is never left half changed");
        studies.get(id).cloned().ok_or_else(|| {
            Code::UnknownStudy.because(format!(
                "there is no study `{id}`; `falaj study list` shows those there are"
            ))
        })
    }

    /// Has every round that is not over do without a site, before anything else becomes of it. What is counted of the site
    /// stays if it is kept, and ends the try otherwise.
    pub fn withdraw(&self, site: &SiteId, keep: bool) {
        for study in self.studies() {
            if study.view.borrow().state == "running" {
                study.leaving.add(site, keep);
                // Whoever has a full mailbox is awake, and looks in any case.
                let _ = study.mailbox.try_send(Mail::Look);
            }
        }
    }

    /// Asks the policies and records the answer together with what is about to happen.
    ///
    /// # Errors
    /// [`Code::Denied`] with the policy's reason, or why the log cannot take the entry; nothing may be
    /// served then.
    pub async fn grant(
        &self,
        who: Party<'_>,
        action: Action,
        resource: &Resource<'_>,
        draft: Draft,
    ) -> Result<(Decision, Committed), Problem> {
        self.grant_to(who, action, resource, who.id.place(), draft).await
    }

    /// As [`Self::grant`], where `who` takes it to a `destination`; the draft says so.
    ///
    /// # Errors
    /// As [`Self::grant`].
    pub async fn grant_to(
        &self,
        who: Party<'_>,
        action: Action,
        resource: &Resource<'_>,
        destination: &Place,
        draft: Draft,
    ) -> Result<(Decision, Committed), Problem> {
        let decision = self.parts().policy.decide_to(who, action, resource, destination);
        self.record(action, decision, draft).await
    }

    /// Records what was decided, before anything comes of it.
    ///
    /// # Errors
    /// [`Code::Denied`], or why the log cannot take the entry.
    pub(crate) async fn record(
        &self,
        action: Action,
        decision: Decision,
        draft: Draft,
    ) -> Result<(Decision, Committed), Problem> {
        self.record_with(action, decision, draft, Vec::new()).await
    }

    /// As [`Self::record`]; `rows` become durable with the entry, if it was allowed.
    ///
    /// # Errors
    /// As [`Self::record`]; [`Code::Conflict`] when somebody changed first what they change.
    pub(crate) async fn record_with(
        &self,
        action: Action,
        decision: Decision,
        draft: Draft,
        rows: Vec<Change>,
    ) -> Result<(Decision, Committed), Problem> {
        let draft = draft.text("action", action.as_str()).decided(
            decision.allow,
            &decision.policies,
            &decision.policy_set,
        );
        let draft = if decision.allow {
            draft
        } else {
            draft.into_kind(Kind::AccessDenied).text("reason", &decision.reason)
        };
        let rows = if decision.allow { rows } else { Vec::new() };
        let commit = Commit { rows, entries: vec![draft], ..Commit::default() };
        let committed = self.parts().writer.commit(commit).await.map_err(|e| problem_of(&e))?;
        if decision.allow {
            Ok((decision, committed))
        } else {
            Err(Code::Denied.because(&decision.reason))
        }
    }

    /// Refuses what no policy can see to be wrong, such as an approval of one's own study, and records that as the denial that it
    /// is. Whoever policies deny it is told so instead.
    pub(crate) async fn deny(
        &self,
        who: Party<'_>,
        action: Action,
        resource: &Resource<'_>,
        draft: Draft,
        problem: Problem,
    ) -> Problem {
        let decision = self.parts().policy.decide(who, action, resource);
        if !decision.allow {
            return self.record(action, decision, draft).await.err().unwrap_or(problem);
        }
        // No policy made this decision, so none is named.
        let denied = draft
            .text("action", action.as_str())
            .text("decision", "deny")
            .text("reason", &problem.detail);
        let recorded = self.parts().writer.record(vec![denied]).await;
        recorded.err().map_or(problem, |e| problem_of(&e))
    }

    /// Starts a study; gives the one that it started when this request came before.
    ///
    /// # Errors
    /// [`Code::StudyInvalid`], [`Code::Denied`], [`Code::StudyExists`], [`Code::Conflict`] when another request came under its key,
    /// or why it cannot be stored.
    pub async fn submit(
        &self,
        yaml: Bytes,
        file: &str,
        asker: Asker<'_>,
    ) -> Result<Handle, Problem> {
        let study = match read_study(&yaml, file) {
            Ok(study) => study,
            Err(problem) => return Err(self.refuse_unread(asker, &yaml, problem).await),
        };
        let _one_at_a_time = self.inner.submitting.lock().await;
        let id = study.id.clone();
        let digest = Digest::of(&yaml);
        let mechanism = study.privacy.mechanism.as_str();
        let (submit, resource) = (Action::StudySubmit, Resource::Study(&id, mechanism));
        let decision = self.parts().policy.decide(asker.party(), submit, &resource);
        let draft = |draft: Draft| {
            draft
                .study(&id)
                .digest("study_sha256", &digest)
                .text("mechanism", mechanism)
                .text("action", submit.as_str())
                .decided(decision.allow, &decision.policies, &decision.policy_set)
        };
        if !decision.allow {
            let denied = draft(Draft::new(Kind::AccessDenied).actor(asker.actor));
            let denied = vec![denied.text("reason", &decision.reason)];
            self.parts().writer.record(denied).await.map_err(|e| problem_of(&e))?;
            return Err(Code::Denied.because(&decision.reason));
        }
        let about = (&id, mechanism, digest);
        let before = match once::before(self.parts(), asker.once).await {
            Ok(before) => before,
            Err(problem) => return Err(self.refuse_submission(asker, about, problem).await),
        };
        if before.is_some() {
            // The same file under the same key: it is this study, and how it stands is an access like any other.
            let again = Draft::new(Kind::AdminRead).actor(asker.actor).study(&id);
            self.grant(asker.party(), submit, &resource, again).await?;
            return self.submitted_before(&id).await;
        }
        let (manifest, params) = match self.begins_with(&study, &digest, file) {
            Ok(begins_with) => begins_with,
            Err(problem) => return Err(self.refuse_submission(asker, about, problem).await),
        };
        let stored = first_model(self.parts().models.clone(), id.to_string(), params).await;
        let model = stored.map_err(|e| {
            if crate::blob::is_full(&e) {
                problem_of(&CommitError::Full)
            } else {
                tracing::error!(error = %e, "the first model cannot be stored");
                Code::Internal.because("the coordinator cannot store the first model")
            }
        })?;
        let row = StudyRow {
            id: id.clone(),
            sha256: digest,
            yaml: yaml.to_vec(),
            state: "running".into(),
            reason: None,
            submitted: crate::clock::now(),
            submitted_by: asker.actor.name(),
        };
        let entry = draft(asker.makes(Kind::StudySubmitted))
            .digest("model_sha256", &model)
            .digest("manifest_sha256", &manifest.digest())
            .count("rounds", u64::from(study.rounds.count));
        let first =
            ModelRow { study: id.clone(), number: 0, sha256: model, published: row.submitted };
        let commit = Commit {
            round: None,
            rows: vec![Change::Study(row.clone()), Change::Model(first)],
            entries: vec![entry],
        };
        self.parts().writer.commit(commit).await.map_err(|e| problem_of(&e))?;
        self.take_up(row).await
    }

    /// The manifest and the first params of a new study.
    fn begins_with(
        &self,
        study: &Study,
        digest: &Digest,
        file: &str,
    ) -> Result<(Manifest, impl Iterator<Item = f32> + Send + use<>), Problem> {
        let id = &study.id;
        if self.study(id).is_ok() {
            return Err(Code::StudyExists
                .because(format!("`{id}` exists; choose another name in `study:`")));
        }
        if let Some(wanted) = study.governance.witnesses
            && let Some(wrong) =
                study.cohort.quorum_beyond_reach(wanted, self.parts().witnesses.outside().len())
        {
            let why = format!("{file}: `{}`: {}; {}", wrong.at, wrong.what, wrong.mend);
            return Err(Code::StudyInvalid.because(why));
        }
        let invalid = |e: falaj_core::manifest::ManifestError| Code::StudyInvalid.because(e);
        let manifest = study.manifest().map_err(invalid)?;
        let params = study.model_spec().first(Study::model_seed(digest)).map_err(invalid)?;
        Ok((manifest, params))
    }

    /// Records that a study was to be submitted whose file, or the request with it, cannot be read: why it is refused. Whether
    /// whoever asks may submit at all is decided over a study [`UNREAD`].
    pub(crate) async fn refuse_unread(
        &self,
        asker: Asker<'_>,
        yaml: &[u8],
        problem: Problem,
    ) -> Problem {
        match UNREAD.parse::<StudyId>() {
            Ok(id) => self.refuse_submission(asker, (&id, UNREAD, Digest::of(yaml)), problem).await,
            Err(e) => Code::Internal.because(e),
        }
    }

    /// Records that a study is not started although policies allow it: why it is refused.
    async fn refuse_submission(
        &self,
        asker: Asker<'_>,
        (id, mechanism, digest): (&StudyId, &str, Digest),
        problem: Problem,
    ) -> Problem {
        let draft = Draft::new(Kind::AdminRead).actor(asker.actor).study(id);
        let draft = draft.digest("study_sha256", &digest).text("mechanism", mechanism);
        let resource = Resource::Study(id, mechanism);
        let granted = self.grant(asker.party(), Action::StudySubmit, &resource, draft);
        granted.await.err().unwrap_or(problem)
    }

    /// A study that was stored before, and is taken up now if the log took its entry too late for that.
    async fn submitted_before(&self, id: &StudyId) -> Result<Handle, Problem> {
        if let Ok(handle) = self.study(id) {
            return Ok(handle);
        }
        let rows = self.parts().store.studies().await.map_err(unreadable)?;
        match rows.into_iter().find(|row| row.id == *id) {
            Some(row) => self.take_up(row).await,
            None => self.study(id),
        }
    }

    /// Takes up a study that has just been stored.
    async fn take_up(&self, row: StudyRow) -> Result<Handle, Problem> {
        let id = row.id.clone();
        self.resume(row).await.map_err(|e| {
            tracing::error!(error = %format!("{e:#}"), study = %id, "a new study cannot be taken up");
            Code::Internal.because("the study was stored and will be taken up on the next start")
        })?;
        self.study(&id)
    }

    /// Stops a study, unless this request stopped it before.
    ///
    /// # Errors
    /// [`Code::UnknownStudy`], [`Code::StudyOver`], [`Code::Conflict`] when another request came under its key, or why it cannot be
    /// stored.
    pub async fn stop(
        &self,
        id: &StudyId,
        actor: &Actor,
        once: Option<Once>,
    ) -> Result<(), Problem> {
        let handle = self.study(id)?;
        let over = || Code::StudyOver.because(format!("study `{id}` is over"));
        let work = async {
            let (reply, answer) = oneshot::channel();
            let mail = Mail::Stop(actor.clone(), once, reply);
            handle.mailbox.send(mail).await.map_err(|_| over())?;
            answer.await.map_err(|_| over())?
        };
        once::once(self.parts(), once, work).await.map(|_| ())
    }

    /// Decides over a candidate that waits for people, unless this request did so before: whether it did. It is durable when this
    /// returns.
    ///
    /// # Errors
    /// [`Code::UnknownStudy`], [`Code::StudyOver`], [`Code::Conflict`] where no such candidate waits, or another request came under
    /// the key, [`Code::Duplicate`] of whoever has approved it, or why it cannot be stored.
    pub async fn decided(&self, study: &StudyId, decided: Decided) -> Result<bool, Problem> {
        let handle = self.study(study)?;
        let over = || Code::StudyOver.because(format!("study `{study}` is over"));
        let once = decided.once;
        let work = async {
            let (reply, answer) = oneshot::channel();
            let mail = Mail::Decided(Box::new(decided), reply);
            handle.mailbox.send(mail).await.map_err(|_| over())?;
            answer.await.map_err(|_| over())?
        };
        once::once(self.parts(), once, work).await
    }

    /// A site's agent has connected: every study that it may join hears of it.
    pub async fn joined(&self, site: &SiteId) {
        for handle in self.studies() {
            // A study that is over has no mailbox any more.
            let _ = handle.mailbox.send(Mail::Joined(site.clone())).await;
        }
    }

    /// A site will not take part in a round.
    ///
    /// # Errors
    /// [`Code::UnknownStudy`], [`Code::StudyOver`], [`Code::WrongRound`], or why it cannot be stored.
    pub async fn decline(&self, site: SiteId, round: &RoundId, why: String) -> Result<(), Problem> {
        let handle = self.study(&round.study)?;
        let (reply, answer) = oneshot::channel();
        let over = || Code::StudyOver.because(format!("study `{}` is over", round.study));
        let mail = Mail::Declined(site, round.number, why, reply);
        handle.mailbox.send(mail).await.map_err(|_| over())?;
        answer.await.map_err(|_| over())?
    }

    /// Counts an update that lies durable in the spool.
    ///
    /// # Errors
    /// Why it is not counted.
    pub async fn count(&self, arrived: Arrived) -> Result<SignedReceipt, Problem> {
        let round = arrived.header.round.clone();
        let handle = self.study(&round.study)?;
        let (reply, answer) = oneshot::channel();
        let over = || Code::StudyOver.because(format!("study `{}` is over", round.study));
        if handle.mailbox.send(Mail::Update(Box::new(arrived), reply)).await.is_err() {
            return Err(over());
        }
        answer.await.map_err(|_| over())?
    }

    /// Takes a site's answer in a masked round; it is durable when this returns.
    ///
    /// # Errors
    /// Why it is not taken.
    pub async fn answered(&self, answer: Answer) -> Result<(), Problem> {
        let study = answer.round.study.clone();
        let handle = self.study(&study)?;
        let (reply, done) = oneshot::channel();
        let over = || Code::StudyOver.because(format!("study `{study}` is over"));
        let mail = Mail::Answered(Box::new(answer), reply);
        handle.mailbox.send(mail).await.map_err(|_| over())?;
        done.await.map_err(|_| over())?
    }

    /// The receipt of an update that was counted before, in this try of the round or an earlier one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn receipt_again(
        &self,
        round: &RoundId,
        site: &SiteId,
        payload: &Digest,
    ) -> Result<Option<SignedReceipt>, Problem> {
        let row = self.parts().store.update(round, &site.to_string(), payload).await;
        row.map_err(unreadable)?.map(|row| self.receipt(&row, true)).transpose()
    }

    /// Receipts are signed deterministically: the same update has the same receipt for ever.
    fn receipt(&self, row: &UpdateRow, already_counted: bool) -> Result<SignedReceipt, Problem> {
        let receipt = Receipt {
            round: row.round.clone(),
            site: row.site.clone(),
            payload: row.payload,
            header: Digest::of(&row.header),
            log_index: row.log_index,
            leaf_hash: row.leaf,
            committed: row.committed,
        }
        .to_bytes();
        let signature =
            self.parts().signer.sign_context(receipt::CONTEXT, &receipt).map_err(|e| {
                tracing::error!(error = %e, "a receipt waits for the log's key");
                Code::Unavailable.because(
                    "the update is counted, and its receipt cannot be signed now: send it again",
                )
            })?;
        Ok(SignedReceipt { receipt, signature, already_counted })
    }

    /// Takes up a study: an actor if it is running, a memory if it is over.
    async fn resume(&self, row: StudyRow) -> anyhow::Result<()> {
        let store = &self.parts().store;
        let text = std::str::from_utf8(&row.yaml)?;
        let study = falaj_proto::study::parse(text, "study")?;
        let id = study.id.clone();
        let manifest = study.manifest()?;
        let (view, newest) = View::stored(store, &row).await?;
        let meta = Arc::new(Meta {
            study,
            digest: row.sha256,
            yaml: row.yaml.into(),
            manifest,
            submitted: row.submitted,
            submitted_by: row.submitted_by,
        });
        let running = view.state == "running";
        let (viewing, watched) = watch::channel(view);
        let events = Arc::new(broadcast::Sender::new(EVENTS));
        let (mailbox, mail) = mpsc::channel(MAILBOX);
        let leaving = Arc::new(Leaving::default());
        let handle = Handle {
            meta: meta.clone(),
            view: watched,
            events: Arc::downgrade(&events),
            mailbox,
            leaving: leaving.clone(),
        };
        self.inner
            .studies
            .write()
            .expect("invariant: the map is never left half changed")
            .insert(id, handle);
        if running {
            let actor = actor::Actor::new(self.clone(), meta, (viewing, events), leaving, newest);
            let (begun, shutdown) = (self.inner.begun.clone(), self.inner.shutdown.clone());
            self.inner.tasks.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = begun.cancelled() => {}
                }
                actor.run(mail, shutdown).await;
            });
        }
        Ok(())
    }
}

fn read_study(yaml: &[u8], file: &str) -> Result<Study, Problem> {
    let text = std::str::from_utf8(yaml)
        .map_err(|e| Code::StudyInvalid.because(format!("{file} is not UTF-8: {e}")))?;
    falaj_proto::study::parse(text, file).map_err(|e| Code::StudyInvalid.because(e))
}

/// Makes a study's first model durable as it is drawn: no more than a block of it is in memory.
async fn first_model(
    models: Blobs,
    study: String,
    mut params: impl Iterator<Item = f32> + Send + 'static,
) -> io::Result<Digest> {
    let write = move || {
        let (mut new, mut hash) = (models.begin(&study)?, Sha256::new());
        let mut block = Vec::with_capacity(BLOCK_PARAMS);
        loop {
            block.clear();
            block.extend(params.by_ref().take(BLOCK_PARAMS));
            if block.is_empty() {
                break;
            }
            let bytes = params_to_bytes(&block);
            hash.update(&bytes);
            new.write(&bytes)?;
        }
        let digest = Digest(hash.finalize().into());
        new.finish(&digest)?;
        Ok(digest)
    };
    spawn_blocking(write).await?
}

fn state_word(state: &str) -> &'static str {
    match state {
        "running" => "running",
        "finished" => "finished",
        "stopped" => "stopped",
        _ => "failed",
    }
}

/// What the round keeps of an update.
#[must_use]
pub fn update_ref(header: &UpdateHeader, header_bytes: &[u8]) -> UpdateRef {
    UpdateRef { payload: header.payload, header: Digest::of(header_bytes), weight: header.weight }
}
