//! The agent itself: connects, takes tasks as they are pushed, trains, seals, sends.

use crate::{
    clock,
    config::Config,
    egress::Egress,
    evaluation::{self, Candidate},
    guard::ResidencyGuard,
    identity::{Identities, Now},
    journal::{Journal, JournalError},
    ledger::Ledger,
    local::{self, LocalError, Paid, Site},
    masked::{self, MaskedError, MaskedRound},
    noise::{NoiseSource, OpenDp},
    policy::{Asked, PolicyFile, PolicyRefusal, Sources},
    streams,
    tpm::{Given, Tpm},
    train::{self, Chance, Outcome},
    transport::{Coordinator, TransportError},
    watch::{self, Watch, WatchError},
};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use falaj_core::{
    dp::{DistributedError, Mechanism, Permit, SealError},
    evaluation::answer::{EvaluationHeader, SignedCounts},
    evidence,
    id::{Digest, Place, RoundId, SiteId, StudyId},
    note::{self, Checkpoint, VerifierKey},
    round::Phase,
    sign::SignError,
    study::{Mechanism as Declared, Study},
    succession,
    task::{self, TaskHeader},
    tpm::{CONTEXT as QUOTE, answer_bytes, qualifying},
    update::{self, About, RawUpdate, SealedUpdate, SignedUpdate, Unsigned, UpdateHeader},
};
use falaj_proto::{
    problem::Code,
    v1::{AnswerRequest, Exchange, Probe, ProbeAnswer, Push, Task, Welcome, push},
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

/// The first pause before connecting again; it doubles up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest pause before connecting again.
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// The pause before another connection is tried again, while there is one.
const PAUSE_OTHER: Duration = Duration::from_secs(1);
/// Tasks that wait while one is trained; the coordinator pushes the rest again.
const TASKS: usize = 16;
/// How often the site's key is asked again when it cannot be used.
const KEY_TRIES: u32 = 30;
/// The pause between that.
const KEY_PAUSE: Duration = Duration::from_secs(1);
/// How often one update is offered before the next connection is waited for.
const OFFERS: u32 = 8;
/// How long an update that is sealed gets to leave when the agent is asked to end.
const FAREWELL: Duration = Duration::from_secs(10);

/// How the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// End with [`Ended::Refused`] when the coordinator refuses this site, or this site the coordinator.
    pub exit_on_refusal: bool,
    /// Fixed randomness for tests; release builds have none.
    #[cfg(debug_assertions)]
    pub insecure_seed: Option<u64>,
}

/// How the agent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Asked,
    /// One side refused the other.
    Refused(String),
}

/// An agent that is ready to run.
pub struct Agent {
    config: Arc<Config>,
    /// What was in use when it started: its key stays in use for as long as it runs.
    first: Arc<Now>,
    identities: Identities,
    site: SiteId,
    ledger: Ledger,
    journal: Journal,
    egress: Egress,
    /// Held while this site looks at the log: two looks at once could keep the older of two heads.
    watching: Mutex<()>,
    policy: PolicyFile,
    tpm: Option<Tpm>,
    /// Masked rounds under way, one of a study at most.
    masked: Mutex<BTreeMap<StudyId, MaskedRound>>,
    options: Options,
}

/// Work that the coordinator asks for.
enum Work {
    Task(Task),
    Exchange(Exchange),
}

/// What came of training.
struct Made {
    raw: RawUpdate,
    weight: u32,
    epsilon: String,
}

/// Why a task came to nothing.
#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Masked(#[from] MaskedError),
    #[error(transparent)]
    Distributed(#[from] DistributedError),
    #[error(transparent)]
    Policy(#[from] PolicyRefusal),
    #[error(transparent)]
    Key(#[from] SignError),
    #[error("the task cannot be trusted: {0}")]
    Untrusted(String),
    #[error("the study cannot be read: {0}")]
    Study(String),
}

impl TaskError {
    /// What the coordinator is told, if it has to know that no update will come.
    fn declined(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Local(e) => Some((e.code(), e.disclosed())),
            Self::Policy(e) => Some(("policy", e.disclosed())),
            Self::Seal(_) => Some(("trainer", "the update could not be sealed".into())),
            Self::Study(_) => Some(("study", "this agent cannot read the study".into())),
            Self::Masked(e @ MaskedError::Restarted) => Some(("internal", e.to_string())),
            Self::Masked(e) => Some(("policy", e.to_string())),
            Self::Distributed(e) => Some(("study", e.to_string())),
            Self::Journal(_) | Self::Key(_) => {
                Some(("internal", "the site cannot train at present".into()))
            }
            Self::Transport(_) | Self::Untrusted(_) => None,
        }
    }
}

impl Agent {
    /// Loads everything that a configuration names.
    ///
    /// # Errors
    /// What is missing or wrong, where, and what to do.
    pub async fn open(config: Config, options: Options) -> Result<Self> {
        let config = Arc::new(config);
        let identities = Identities::open(config.clone())?;
        let first = identities.now();
        let site = SiteId::try_from(first.identity.spiffe.clone()).with_context(|| {
            format!("{} is not a site's certificate", config.identity.cert.display())
        })?;
        let policy = PolicyFile::open(&config.site_policy)?;
        let tpm = config.tpm.as_ref().map(Tpm::new);
        let (ledger, journal) = state(&config.state.dir, &site).await?;
        policy.begin(&journal).await?;
        let egress = egress(&config.state.dir, &site).await?;
        Ok(Self {
            config,
            first,
            identities,
            site,
            ledger,
            journal,
            egress,
            watching: Mutex::default(),
            policy,
            tpm,
            masked: Mutex::default(),
            options,
        })
    }

    /// Runs until shutdown, connecting again whenever the connection breaks.
    ///
    /// # Errors
    /// When the site's own state fails.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Ended> {
        tracing::info!(site = %self.site, coordinator = self.config.coordinator.address, "agent started");
        let this = Arc::new(self);
        let mut pause = PAUSE_FIRST;
        loop {
            let connected = tokio::time::Instant::now();
            let ended = this.clone().session(&shutdown).await;
            if shutdown.is_cancelled() {
                return Ok(Ended::Asked);
            }
            match ended {
                Ok(()) => tracing::info!("the coordinator closed the stream; connecting again"),
                Err(e @ (TransportError::Refused(_) | TransportError::Unwanted(_))) => {
                    tracing::error!(error = %e, "refused");
                    if this.options.exit_on_refusal {
                        return Ok(Ended::Refused(e.to_string()));
                    }
                }
                Err(e) => {
                    tracing::warn!(error = %e, pause_ms = pause.as_millis(), "not connected; trying again");
                }
            }
            // A connection that lasted was a good one.
            if connected.elapsed() > PAUSE_LONGEST {
                pause = PAUSE_FIRST;
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(Ended::Asked),
                () = tokio::time::sleep(jittered(pause)) => {}
            }
            pause = (pause * 2).min(PAUSE_LONGEST);
        }
    }

    /// One connection: from the handshake to the end of the stream.
    async fn session(self: Arc<Self>, shutdown: &CancellationToken) -> Result<(), TransportError> {
        let dialer = self.identities.dialer()?;
        let mut changes = self.identities.changes();
        let mut coordinator = dialer.dial(&self.egress).await?;
        let mut pushes = self.open_stream(&mut coordinator).await?;
        let keeping = self.identities.keep(coordinator.clone());
        tokio::pin!(keeping);
        let mut again = None;
        let (tasks, waiting) = mpsc::channel(TASKS);
        let mut worker = None;
        let mut waiting = Some(waiting);
        let mut log = None;
        let result = loop {
            let next = tokio::select! {
                () = shutdown.cancelled() => break Ok(()),
                () = &mut keeping => None,
                _ = changes.changed() => {
                    again = Some(tokio::time::Instant::now());
                    continue;
                }
                () = until(again) => {
                    // With what is in use now, before the old connection ends: what is under way there goes on.
                    again = match self.go_over(&coordinator).await {
                        Ok(fresh) => {
                            pushes = fresh;
                            None
                        }
                        Err(e) => {
                            tracing::warn!(error = %e, "no other connection with what is in use now; trying again");
                            Some(tokio::time::Instant::now() + jittered(PAUSE_OTHER))
                        }
                    };
                    continue;
                }
                next = pushes.next() => next,
            };
            match next {
                None => break Ok(()),
                Some(Err(status)) => break Err(status.into()),
                Some(Ok(push)) => match push.push {
                    Some(push::Push::Welcome(welcome)) => {
                        self.identities.renewed_there(welcome.renews);
                        let key = match self.welcome(&mut coordinator, &welcome).await {
                            Ok(key) => key,
                            Err(e) => break Err(e),
                        };
                        if let Err(e) = self.watch(&mut coordinator, &key).await {
                            break Err(e);
                        }
                        if log.replace(key.clone()).is_some_and(|before| before != key) {
                            // Whoever works at a task knows the key before.
                            break Ok(());
                        }
                        if let Some(waiting) = waiting.take() {
                            let work = self.clone().work(waiting, coordinator.clone(), key);
                            worker = Some(tokio::spawn(work));
                        }
                    }
                    Some(push::Push::Task(task)) => {
                        let waits = tasks.try_send(Work::Task(task)).is_ok();
                        tracing::debug!(waits, "a task came; what cannot wait is pushed again");
                    }
                    Some(push::Push::Exchange(exchange)) => {
                        let waits = tasks.try_send(Work::Exchange(exchange)).is_ok();
                        tracing::debug!(waits, "a masked round goes on");
                    }
                    Some(push::Push::LookAtLog(_)) => {
                        if let Some(key) = &log
                            && let Err(e) = self.watch(&mut coordinator, key).await
                        {
                            if matches!(e, TransportError::Unwanted(_)) {
                                break Err(e);
                            }
                            // The next look is before the next task; what is being trained goes on.
                            tracing::warn!(error = %e, "the log could not be looked at");
                        }
                    }
                    Some(push::Push::Probe(probe)) => {
                        match self.answer_probe(&mut coordinator, &probe).await {
                            Ok(()) => {}
                            Err(e @ TransportError::Status(_)) => {
                                tracing::warn!(error = %e, "a probe could not be answered");
                            }
                            Err(e) => break Err(e),
                        }
                    }
                    Some(push::Push::StudyOver(over)) => {
                        self.forget(&over.study).await;
                        tracing::info!(study = over.study, outcome = over.outcome, "study over");
                    }
                    None => {}
                },
            }
        };
        drop(tasks);
        if let Some(mut worker) = worker {
            // What is sealed should leave; what is not will be asked for again.
            if tokio::time::timeout(FAREWELL, &mut worker).await.is_err() {
                worker.abort();
            }
        }
        result
    }

    /// Opens the stream on which tasks are pushed.
    async fn open_stream(
        &self,
        coordinator: &mut Coordinator,
    ) -> Result<Streaming<Push>, TransportError> {
        let datasets = self.config.datasets.iter().map(|d| d.name.clone()).collect();
        let (declared, gives_quotes) = (&self.config.declared, self.config.tpm.is_some());
        coordinator.open(datasets, train::built(), declared, gives_quotes).await
    }

    /// Connects once more, with what is in use now, and goes over to that connection: the stream of tasks on it.
    async fn go_over(&self, coordinator: &Coordinator) -> Result<Streaming<Push>, TransportError> {
        let mut other = self.identities.dialer()?.dial(&self.egress).await?;
        if other.identity() != coordinator.identity() {
            let what = format!("{} answers now", other.identity());
            return Err(TransportError::Unwanted(what));
        }
        let pushes = self.open_stream(&mut other).await?;
        coordinator.go_over(&other);
        tracing::info!("gone over to another connection");
        Ok(pushes)
    }

    /// Signs what was asked, with the clock of this machine: how far away this site is at most, and whether its clock is right; and
    /// with a quote of its TPM, if one is wanted.
    async fn answer_probe(
        &self,
        coordinator: &mut Coordinator,
        probe: &Probe,
    ) -> Result<(), TransportError> {
        let nonce: [u8; evidence::NONCE_BYTES] = (&*probe.nonce)
            .try_into()
            .map_err(|_| TransportError::Broken("a probe that is none".into()))?;
        let given = if probe.quote { self.quote(coordinator, &nonce).await } else { None };
        let clock_ms = clock::now().as_millis();
        let mut signed = evidence::probe_bytes(&nonce, clock_ms);
        let mut context = evidence::CONTEXT;
        let Given { attest, signature: attest_signature } = given.unwrap_or_default();
        if probe.quote {
            signed = answer_bytes(&signed, &attest, &attest_signature);
            context = QUOTE;
        }
        let key = &**self.first.credentials.signing_key();
        let signature = note::sign_context(key, context, &signed).map_err(TransportError::Key)?;
        let signature = signature.to_vec().into();
        let (attest, attest_signature) = (attest.into(), attest_signature.into());
        coordinator
            .answer_probe(ProbeAnswer { clock_ms, signature, attest, attest_signature })
            .await
    }

    /// What the TPM of this machine signs for this coordinator's nonce. It is said here when there is none: the coordinator
    /// learns no more than that.
    async fn quote(&self, coordinator: &Coordinator, nonce: &[u8; 32]) -> Option<Given> {
        let tpm = self.tpm.as_ref()?;
        let asked = qualifying(nonce, &self.first.identity.public_key, coordinator.identity());
        let given = tpm.quote(&asked).await;
        given
            .inspect_err(|e| tracing::error!(error = %e, "no quote for the coordinator, which may refuse this site for it"))
            .ok()
    }

    /// The log's key: pinned the first time, and followed from there by what both sides have signed.
    async fn welcome(
        &self,
        coordinator: &mut Coordinator,
        welcome: &Welcome,
    ) -> Result<VerifierKey, TransportError> {
        let broken = |what: String| TransportError::Broken(what);
        let place = |text: &str| {
            let place = (!text.is_empty()).then(|| text.parse::<Place>()).transpose();
            place.map_err(|e| {
                broken(format!("the place where it is, `{text}`, which is none ({e})"))
            })
        };
        let (storage, compute) = (place(&welcome.storage)?, place(&welcome.compute)?);
        coordinator.declares(evidence::Declared { storage, compute });
        let key: VerifierKey = welcome
            .log_verifier_key
            .parse()
            .map_err(|e| broken(format!("a log key that is none ({e})")))?;
        let pinned = self
            .journal
            .pin(watch::LOG_KEY, &welcome.log_verifier_key)
            .await
            .map_err(|e| broken(format!("a log key that cannot be kept ({e})")))?;
        let before: VerifierKey = pinned
            .parse()
            .map_err(|e| broken(format!("a log whose pinned key cannot be read ({e})")))?;
        let steps = succession::follow(&before, &key, &welcome.successions).map_err(|why| {
            TransportError::Unwanted(format!(
                "the log's key has changed from `{pinned}` to `{key}` ({why}): ask the coordinator's operator why, and take the new one by `falaj-agent evidence dismiss --log-key` only if you believe the answer"
            ))
        })?;
        for step in &steps {
            let followed = self.as_witness(&step.from).follow(coordinator, step).await;
            followed.map_err(unwatched)?;
        }
        self.check_ledger(welcome).await?;
        if !welcome.checkpoint.is_empty() {
            let head = Checkpoint::open(&welcome.checkpoint, &key)
                .map_err(|e| broken(format!("a checkpoint that its own key did not sign ({e})")))?;
            tracing::info!(tree_size = head.tree_size, root = %head.root_hash, "connected");
        }
        Ok(key)
    }

    /// Whether the ledger still holds what this site's newest counted update was paid from: a whole state folder
    /// that was put back is noticed by what the coordinator remembers, signed by this site itself.
    async fn check_ledger(&self, welcome: &Welcome) -> Result<(), TransportError> {
        let key = self.first.credentials.signing_key().verifying_key();
        let (header, signature) = (&welcome.newest_header, &welcome.newest_signature);
        if !note::verify_context(&key, update::CONTEXT, header, signature) {
            // There is none, or it was signed with a key that this site no longer has.
            return Ok(());
        }
        let broken = |what: String| TransportError::Broken(what);
        let newest =
            UpdateHeader::parse(header).map_err(|e| broken(format!("an old header ({e})")))?;
        let held = self.ledger.holds(&newest.ledger).await;
        if held.map_err(|e| broken(format!("a ledger that fails ({e})")))? {
            return Ok(());
        }
        Err(TransportError::Unwanted(format!(
            "this site's ledger does not hold what its update for round {} was paid from: an older copy of {} was put in place; restore the newest one, or this site would spend twice",
            newest.round,
            self.config.state.dir.display()
        )))
    }

    /// Looks at the coordinator's log as its witness: before the first task, and before each.
    async fn watch(
        &self,
        coordinator: &mut Coordinator,
        log: &VerifierKey,
    ) -> Result<(), TransportError> {
        let _one_at_a_time = self.watching.lock().await;
        let head = self.as_witness(log).look(coordinator).await.map_err(unwatched)?;
        tracing::debug!(tree_size = head.tree_size, "the log goes on from what was seen");
        Ok(())
    }

    fn as_witness<'a>(&'a self, log: &'a VerifierKey) -> Watch<'a> {
        Watch {
            dir: &self.config.state.dir,
            journal: &self.journal,
            site: &self.site,
            signer: &**self.first.credentials.signing_key(),
            log,
        }
    }

    /// Takes tasks one after the other.
    async fn work(
        self: Arc<Self>,
        mut tasks: mpsc::Receiver<Work>,
        mut coordinator: Coordinator,
        key: VerifierKey,
    ) {
        while let Some(work) = tasks.recv().await {
            let task = match work {
                Work::Task(task) => task,
                Work::Exchange(exchange) => {
                    self.exchange(exchange, &mut coordinator, &key).await;
                    continue;
                }
            };
            let header = match TaskHeader::parse(&task.header) {
                Ok(header) => header,
                Err(e) => {
                    tracing::error!(error = %e, "a task that cannot be read");
                    continue;
                }
            };
            let round = header.round.clone();
            match self.task(&task, header, &mut coordinator, &key).await {
                Ok(()) => {}
                Err(e) => {
                    tracing::warn!(%round, error = %e, "no update");
                    decline(&mut coordinator, &round, &e).await;
                }
            }
        }
    }

    async fn task(
        &self,
        task: &Task,
        header: TaskHeader,
        coordinator: &mut Coordinator,
        key: &VerifierKey,
    ) -> Result<(), TaskError> {
        let untrusted = |what: &str| Err(TaskError::Untrusted(what.to_owned()));
        if !note::verify_context(key.key(), task::CONTEXT, &task.header, &task.signature) {
            return untrusted("the log's key did not sign it");
        }
        if header.site != self.site {
            return untrusted("it is for another site");
        }
        if Digest::of(&task.study) != header.study_sha256 {
            return untrusted("the study is not the one that was signed");
        }
        let text = std::str::from_utf8(&task.study).map_err(|e| TaskError::Study(e.to_string()))?;
        let study = falaj_proto::study::parse(text, "study")
            .map_err(|e| TaskError::Study(e.to_string()))?;
        ResidencyGuard::new(&self.config).permits(&study).map_err(LocalError::from)?;
        self.permit(&study, &header, coordinator).await?;
        if study.manifest().map_err(LocalError::from)?.digest() != header.manifest {
            return untrusted("it is about another model");
        }
        self.key_ready().await?;
        self.watch(coordinator, key).await?;
        if let Some(attempt) = header.evaluates {
            return self.evaluate(&study, &header, attempt, coordinator).await;
        }
        if matches!(study.privacy.mechanism, Declared::DistributedGaussian { .. }) {
            return self.begin_masked(study, header, &task.members, coordinator).await;
        }
        let verifying = self.first.credentials.signing_key().verifying_key();
        let kept = self.journal.find(&header.round, &header.base, &verifying).await?;
        let (update, reservation) = match kept {
            Some(kept) => {
                tracing::info!(round = %header.round, "sending the sealed update again");
                kept
            }
            None => self.train(&study, &header, coordinator).await?,
        };
        let base = header.base;
        self.send(&header, &base, &update, reservation, coordinator, key).await
    }

    /// Asks the site's own policy, before anything is read or paid. What is sent again was paid before.
    async fn permit(
        &self,
        study: &Study,
        header: &TaskHeader,
        coordinator: &Coordinator,
    ) -> Result<(), TaskError> {
        let key = self.first.credentials.signing_key().verifying_key();
        let live =
            self.masked.lock().await.get(&study.id).is_some_and(|r| r.header.round == header.round);
        let (round, base) = (&header.round, &header.base);
        let made = match header.evaluates {
            Some(attempt) => self.journal.counted((round, attempt), base).await?.is_some(),
            None => self.journal.find(round, base, &key).await?.is_some(),
        };
        let paid = live || made;
        let sources = Sources {
            config: &self.config,
            ledger: &self.ledger,
            journal: &self.journal,
            site: &self.site,
            key: &key,
        };
        let declared = coordinator.declared();
        let asked = Asked {
            coordinator: coordinator.identity(),
            declared: &declared,
            study,
            study_sha256: header.study_sha256,
            round: header.round.number,
            paid,
            now: clock::now(),
        };
        Ok(sources.permit(&self.policy, asked).await?)
    }

    /// Counts what a candidate says of the records that are held out, with noise, and sends that.
    async fn evaluate(
        &self,
        study: &Study,
        header: &TaskHeader,
        attempt: u32,
        coordinator: &mut Coordinator,
    ) -> Result<(), TaskError> {
        let (round, candidate) = (&header.round, &header.base);
        let kept = self.journal.counted((round, attempt), candidate).await?;
        let (counted, reservation) = if let Some(kept) = kept {
            tracing::info!(%round, "sending the same counts again");
            kept
        } else {
            let counted = self.count(study, header, attempt, coordinator).await?;
            let (counts, reservation) = &counted;
            self.journal.keep_counted((round, attempt), candidate, counts, *reservation).await?;
            counted
        };
        let SignedCounts { header, signature, counts } = counted;
        let answer = AnswerRequest {
            study: round.study.to_string(),
            round: round.number,
            attempt,
            phase: Phase::Evaluation.as_str().to_owned(),
            messages: vec![header.into(), signature.to_vec().into(), counts.into()],
        };
        coordinator.answer(answer).await?;
        self.ledger.commit(reservation).await.map_err(LocalError::from)?;
        tracing::info!(%round, "evaluated");
        Ok(())
    }

    /// Pays for an evaluation and makes it. What is never signed has cost nothing, for it cannot leave.
    async fn count(
        &self,
        study: &Study,
        header: &TaskHeader,
        attempt: u32,
        coordinator: &mut Coordinator,
    ) -> Result<(SignedCounts, u64), TaskError> {
        let round = header.round.number;
        let paid = local::reserve_evaluation(&self.config, &self.ledger, study, round).await?;
        let counts = match self.counts(study, header, coordinator).await {
            Ok(counts) => counts,
            Err(e) => {
                self.ledger.give_back(paid).await.map_err(LocalError::from)?;
                return Err(e);
            }
        };
        let reservation = paid.id();
        let spent = local::epsilon(&self.config, &self.ledger, study).await?;
        let about = EvaluationHeader {
            round: header.round.clone(),
            attempt,
            site: self.site.clone(),
            study_sha256: header.study_sha256,
            candidate: header.base,
            counts: Digest::of(&[]),
            cells: 0,
            noise: study.evaluation.as_ref().map_or("none", |e| e.noise.as_str()).to_owned(),
            epsilon: spent.to_string(),
            ledger: self.ledger.chain().await.map_err(LocalError::from)?.head(),
        };
        // It is paid for: a token that is away for a while must not cost it.
        let mut tries = 1;
        loop {
            let key = &**self.first.credentials.signing_key();
            match SignedCounts::sign(about.clone(), &counts, key) {
                Ok(signed) => return Ok((signed, reservation)),
                Err(why) if tries == KEY_TRIES => {
                    // They are thrown away here and nobody has seen them: nothing is spent.
                    self.ledger.give_back(paid).await.map_err(LocalError::from)?;
                    return Err(why.into());
                }
                Err(why) => {
                    tracing::error!(error = %why, tries, "counts wait for the site's key");
                }
            }
            tries += 1;
            tokio::time::sleep(jittered(KEY_PAUSE)).await;
        }
    }

    /// Counts with noise.
    async fn counts(
        &self,
        study: &Study,
        header: &TaskHeader,
        coordinator: &mut Coordinator,
    ) -> Result<Vec<i64>, TaskError> {
        let e = study.evaluation.clone().ok_or(LocalError::Unevaluated)?;
        let kept = (&self.ledger, &self.journal);
        let held = local::held_out(&self.config, kept, study, self.noise().as_mut()).await?;
        let params = study.manifest().map_err(LocalError::from)?.params();
        let candidate = coordinator.fetch(study.id.as_str(), &header.base, params).await?;
        let (model, layout) = (study.model_spec(), e.layout(study.target()));
        let trainer = train::choose(&self.config.train, &model).map_err(LocalError::from)?;
        let mut chance = self.chance(header);
        let counting = move || {
            let candidate = Candidate { trainer: &*trainer, model: &model, params: &candidate };
            let counts = evaluation::count(&held, (&e, &layout), candidate, &mut chance);
            counts.map(|counts| (counts, layout))
        };
        let counted = tokio::task::spawn_blocking(counting)
            .await
            .map_err(|e| LocalError::from(train::TrainError::Library(e.to_string())))?;
        let (counts, layout) = counted.map_err(LocalError::from)?;
        let mut noise = self.noise();
        let noised = evaluation::with_noise(counts, &layout, noise.as_mut(), &mut OpenDp);
        Ok(noised.map_err(LocalError::from)?)
    }

    /// Takes up a masked round: checks its members, pays, and advertises keys.
    async fn begin_masked(
        &self,
        study: Study,
        header: TaskHeader,
        members: &[Bytes],
        coordinator: &mut Coordinator,
    ) -> Result<(), TaskError> {
        let cohort = masked::cohort(&header, &study, members, &self.identities.now().trust)?;
        let digest = *cohort.digest();
        let mut rounds = self.masked.lock().await;
        let live = rounds.get(&study.id).filter(|r| *r.digest() == digest);
        if let Some(live) = live {
            // Its answer was lost on the way, or it has gone on since.
            let Some(messages) = live.again("keys") else { return Ok(()) };
            let answer = answer_of(&live.header, "keys", messages);
            return Ok(coordinator.answer(answer).await?);
        }
        // Whoever answers twice in one cohort gives its update away: what is lost stays lost.
        let mut rng = self.rng(&header);
        let mut mark = [0; 16];
        rng.fill_bytes(&mut mark);
        let mark = Digest::of(&mark).to_string();
        if self.journal.pin(&format!("cohort {digest}"), &mark).await? != mark {
            return Err(MaskedError::Restarted.into());
        }
        let paid =
            local::reserve_round(&self.config, &self.ledger, &study, header.round.number).await?;
        let (id, signer) = (study.id.clone(), self.first.credentials.signing_key());
        let round = MaskedRound::begin((header, study), cohort, signer, paid, &mut rng)?;
        let messages = round.again("keys").unwrap_or_default();
        let answer = answer_of(&round.header, "keys", messages);
        if let Some(before) = rounds.insert(id, round) {
            self.drop_masked(before).await;
        }
        drop(rounds);
        Ok(coordinator.answer(answer).await?)
    }

    /// Goes on in a masked round.
    async fn exchange(&self, asked: Exchange, coordinator: &mut Coordinator, key: &VerifierKey) {
        let mut rounds = self.masked.lock().await;
        let live = asked.study.parse::<StudyId>().ok().and_then(|study| rounds.get_mut(&study));
        let Some(live) = live.filter(|r| {
            let of = (r.header.round.number, r.header.masked.map(|(attempt, _)| attempt));
            of == (asked.round, Some(asked.attempt))
        }) else {
            tracing::warn!(study = asked.study, round = asked.round, "not in this masked round");
            return;
        };
        let round = live.header.round.clone();
        let done = if asked.phase == "update" {
            self.masked_update(live, &asked.messages, coordinator, key).await
        } else {
            let mut rng = self.rng(&live.header);
            match live.answer(&asked.phase, &asked.messages, &mut rng) {
                Ok(messages) => {
                    let answer = answer_of(&live.header, &asked.phase, messages);
                    coordinator.answer(answer).await.map_err(TaskError::from)
                }
                Err(e) => Err(e.into()),
            }
        };
        if let Err(e) = done {
            tracing::warn!(%round, phase = asked.phase, error = %e, "no answer");
            // What was lost on the way is asked for again.
            if !matches!(e, TaskError::Transport(_) | TaskError::Masked(MaskedError::Turn(_))) {
                if let Some(before) = rounds.remove(&round.study) {
                    self.drop_masked(before).await;
                }
                decline(coordinator, &round, &e).await;
            }
        }
    }

    /// Trains, seals with this site's share of the noise, masks, and sends.
    async fn masked_update(
        &self,
        live: &mut MaskedRound,
        envelopes: &[Bytes],
        coordinator: &mut Coordinator,
        key: &VerifierKey,
    ) -> Result<(), TaskError> {
        let (header, digest) = (live.header.clone(), *live.digest());
        let verifying = self.first.credentials.signing_key().verifying_key();
        if !live.wants_update() {
            let kept = self.journal.find(&header.round, &digest, &verifying).await?;
            let (update, id) = kept.ok_or_else(|| MaskedError::Turn("update".into()))?;
            return self.send(&header, &digest, &update, id, coordinator, key).await;
        }
        let study = live.study.clone();
        let noise = study.distributed().ok_or_else(|| MaskedError::Turn("update".into()))??;
        let members = u32::try_from(live.members()).unwrap_or(u32::MAX);
        let manifest = study.manifest().map_err(LocalError::from)?;
        let (made, paid) = self.make(&study, &header, coordinator, &mut live.paid).await?;
        let grid = (study.encoding(), members);
        let raw = rotated(made.raw, &study, &header);
        let part = noise.seal(raw, paid.spend(), grid, &manifest, &mut OpenDp)?;
        let sealed = live.mask(envelopes, part)?;
        let made = Made { raw: RawUpdate::new(Vec::new()), ..made };
        let (update, id) = self.sign(sealed, &header, made).await?;
        self.journal.keep(&header.round, &digest, &update, id).await?;
        self.send(&header, &digest, &update, id, coordinator, key).await
    }

    /// A masked round is over for this site. What it paid goes back if nothing was made with it.
    async fn drop_masked(&self, round: MaskedRound) {
        if let Some(paid) = round.paid
            && let Err(e) = paid.give_back(&self.ledger).await
        {
            tracing::warn!(round = %round.header.round, error = %e, "a reservation stays spent");
        }
    }

    async fn forget(&self, study: &str) {
        let Ok(study) = study.parse::<StudyId>() else { return };
        if let Some(round) = self.masked.lock().await.remove(&study) {
            self.drop_masked(round).await;
        }
        if let Err(e) = streams::forget(&self.config.state.dir, &study) {
            tracing::warn!(%study, error = %e, "a stream of noise stays in the state folder");
        }
    }

    /// Trains one round and seals what comes of it, durably.
    async fn train(
        &self,
        study: &Study,
        header: &TaskHeader,
        coordinator: &mut Coordinator,
    ) -> Result<(SignedUpdate, u64), TaskError> {
        let manifest = study.manifest().map_err(LocalError::from)?;
        let round = header.round.number;
        let paid = local::reserve_round(&self.config, &self.ledger, study, round).await?;
        let mut paid = Some(paid);
        let made = self.make(study, header, coordinator, &mut paid).await;
        let (mut made, paid) = match made {
            Ok(made) => made,
            Err(e) => {
                if let Some(paid) = paid {
                    paid.give_back(&self.ledger).await.map_err(LocalError::from)?;
                }
                return Err(e);
            }
        };
        let mechanism = match study.privacy.mechanism {
            Declared::DpSgd { .. } => Mechanism::DpSgd,
            Declared::DpFtrl { .. } => Mechanism::DpFtrl,
            Declared::LocalGaussian { noise_multiplier, clip_norm } => {
                Mechanism::LocalGaussian { clip_norm, noise_multiplier }
            }
            Declared::DistributedGaussian { .. } => {
                return Err(TaskError::Untrusted("a masked round without a cohort".into()));
            }
            // The guard has found `none` in the site's policy, by name.
            Declared::None => Mechanism::None(Permit::by_policy("policy.mechanisms")),
        };
        let raw =
            rotated(std::mem::replace(&mut made.raw, RawUpdate::new(Vec::new())), study, header);
        let sealed = mechanism.seal(raw, paid.spend(), study.encoding(), &manifest, &mut OpenDp)?;
        let (update, id) = self.sign(sealed, header, made).await?;
        self.journal.keep(&header.round, &header.base, &update, id).await?;
        Ok((update, id))
    }

    /// Reads the records and trains. `paid` is taken when training begins: what fails before has cost nothing.
    async fn make(
        &self,
        study: &Study,
        header: &TaskHeader,
        coordinator: &mut Coordinator,
        paid: &mut Option<Paid>,
    ) -> Result<(Made, Paid), TaskError> {
        let params = study.manifest().map_err(LocalError::from)?.params();
        let kept = (&self.ledger, &self.journal);
        let site = Site::open(&self.config, kept, study, self.noise().as_mut()).await?;
        let base = coordinator.fetch(study.id.as_str(), &header.base, params).await?;
        let (trainer, plan) = site.plan(header.round.number, paid).await?;
        let (weight, epsilon) = (site.weight(), site.epsilon().await?.to_string());
        let mut chance = self.chance(header);
        let started = std::time::Instant::now();
        let records = site.into_records();
        let name = trainer.name();
        let mut paid =
            paid.take().ok_or_else(|| TaskError::Untrusted("nothing pays for it".into()))?;
        let run = move || (trainer.run(&records, &plan, &base, &mut chance), records);
        let (outcome, records) = tokio::task::spawn_blocking(run)
            .await
            .map_err(|e| LocalError::from(train::TrainError::Library(e.to_string())))?;
        let Outcome { update: raw, clip_norm, stream } = outcome.map_err(LocalError::from)?;
        let left = (&records, clip_norm, stream);
        local::remember(&self.config, &self.ledger, study, &mut paid, left).await?;
        tracing::info!(
            round = %header.round,
            trainer = name,
            took_ms = started.elapsed().as_millis(),
            epsilon,
            clip_norm,
            "trained"
        );
        Ok((Made { raw, weight, epsilon }, paid))
    }

    /// Describes and signs what was sealed.
    async fn sign(
        &self,
        sealed: SealedUpdate,
        header: &TaskHeader,
        made: Made,
    ) -> Result<(SignedUpdate, u64), TaskError> {
        if sealed.saturated() > 0 {
            tracing::warn!(
                values = sealed.saturated(),
                of = sealed.params(),
                "values were cut at the end of the grid; the study's `sealing.range` is small"
            );
        }
        tracing::info!(round = %header.round, bytes = sealed.payload_bytes(), "sealed");
        let about = About {
            round: header.round.clone(),
            site: self.site.clone(),
            base: header.base,
            manifest: header.manifest,
            weight: made.weight,
            epsilon: made.epsilon,
            ledger: self.ledger.chain().await.map_err(LocalError::from)?.head(),
        };
        let id = sealed.reservation();
        // It is paid for: a token that is away for a while must not cost it.
        let (mut sealed, mut tries) = (sealed, 1);
        loop {
            match sealed.sign(about.clone(), &**self.first.credentials.signing_key()) {
                Ok(update) => return Ok((update, id)),
                Err(Unsigned { why, .. }) if tries == KEY_TRIES => return Err(why.into()),
                Err(Unsigned { update, why }) => {
                    tracing::error!(error = %why, tries, "the sealed update waits for the site's key");
                    sealed = *update;
                }
            }
            tries += 1;
            tokio::time::sleep(jittered(KEY_PAUSE)).await;
        }
    }

    /// Waits until the site's key can be used: nothing is paid for what could not be signed.
    async fn key_ready(&self) -> Result<(), SignError> {
        for tries in 1..KEY_TRIES {
            match self.first.credentials.ready() {
                Ok(()) => return Ok(()),
                Err(e) => tracing::error!(error = %e, tries, "a task waits for the site's key"),
            }
            tokio::time::sleep(jittered(KEY_PAUSE)).await;
        }
        self.first.credentials.ready()
    }

    /// Sends until it is acknowledged, refused for good, or the connection is gone.
    async fn send(
        &self,
        header: &TaskHeader,
        kept_under: &Digest,
        update: &SignedUpdate,
        reservation: u64,
        coordinator: &mut Coordinator,
        key: &VerifierKey,
    ) -> Result<(), TaskError> {
        let mut pause = PAUSE_FIRST;
        for offer in 1..=OFFERS {
            let link = coordinator.serial();
            match coordinator.submit(update, key).await {
                Ok(ack) => {
                    self.journal
                        .receipted(&header.round, kept_under, &ack.bytes, &ack.signature)
                        .await?;
                    self.ledger.commit(reservation).await.map_err(LocalError::from)?;
                    tracing::info!(
                        round = %header.round,
                        log_index = ack.receipt.log_index,
                        again = ack.already_counted,
                        "acknowledged"
                    );
                    return Ok(());
                }
                Err(e) => {
                    let code = e.code();
                    let passing = matches!(
                        code,
                        Some(
                            Code::Busy
                                | Code::StorageFull
                                | Code::LogUnavailable
                                | Code::Unavailable
                                | Code::SizeMismatch
                        )
                    );
                    // A connection that was left for another one may end before it is done.
                    let left = code.is_none() && coordinator.serial() != link;
                    if !(passing || left) || offer == OFFERS {
                        return Err(e.into());
                    }
                    tracing::warn!(round = %header.round, code = code.map(Code::as_str), error = %e, "not taken; offering it again");
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(PAUSE_LONGEST);
                }
            }
        }
        Ok(())
    }

    /// Noise on what is disclosed once per study.
    fn noise(&self) -> Box<dyn NoiseSource + Send> {
        #[cfg(debug_assertions)]
        if let Some(seed) = self.options.insecure_seed {
            return Box::new(Chance::insecure(format!("{seed} {}", self.site).as_bytes()));
        }
        Box::new(OpenDp)
    }

    /// Keys and shares of a masked round.
    fn rng(&self, header: &TaskHeader) -> ChaCha20Rng {
        ChaCha20Rng::from_seed(*self.chance(header).key())
    }

    fn chance(&self, header: &TaskHeader) -> Chance {
        #[cfg(debug_assertions)]
        if let Some(seed) = self.options.insecure_seed {
            return Chance::insecure(format!("{seed} {} {}", header.round, header.site).as_bytes());
        }
        let _ = header;
        Chance::fresh()
    }
}

/// An update as the round's rotation, if it has one, makes it.
fn rotated(raw: RawUpdate, study: &Study, header: &TaskHeader) -> RawUpdate {
    match study.rotation(&header.study_sha256, header.round.number) {
        Some(rotation) => raw.rotated(&rotation),
        None => raw,
    }
}

/// An answer to what a masked round asked for.
fn answer_of(header: &TaskHeader, phase: &str, messages: Vec<Bytes>) -> AnswerRequest {
    AnswerRequest {
        study: header.round.study.to_string(),
        round: header.round.number,
        attempt: header.masked.map_or(0, |(attempt, _)| attempt),
        phase: phase.to_owned(),
        messages,
    }
}

/// Tells the coordinator that no update will come, and why, if it has to know.
async fn decline(coordinator: &mut Coordinator, round: &RoundId, error: &TaskError) {
    let Some((code, reason)) = error.declined() else { return };
    let said = coordinator.decline(round.study.as_str(), round.number, code, reason).await;
    if let Err(e) = said {
        tracing::warn!(%round, error = %e, "declining failed");
    }
}

/// Ledger and journal under a state folder.
///
/// # Errors
/// When they cannot be opened.
pub async fn state(dir: &Path, site: &SiteId) -> Result<(Ledger, Journal)> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let ledger = Ledger::open(dir, site)
        .await
        .with_context(|| format!("opening the ledger in {}", dir.display()))?;
    let journal = Journal::open(&dir.join("journal"))
        .await
        .with_context(|| format!("opening the journal in {}", dir.display()))?;
    Ok((ledger, journal))
}

/// The egress journal in a state folder.
///
/// # Errors
/// When it cannot be opened, or is not what it was.
pub async fn egress(dir: &Path, site: &SiteId) -> Result<Egress> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let opened = Egress::open(dir, site).await;
    opened.with_context(|| format!("opening the egress journal in {}", dir.display()))
}

/// Why a site that watched does not go on.
fn unwatched(e: WatchError) -> TransportError {
    match e {
        WatchError::Transport(e) => e,
        WatchError::Key(e) => TransportError::Key(e),
        e => TransportError::Unwanted(e.to_string()),
    }
}

/// Waits until then, for ever if there is no such time.
async fn until(then: Option<tokio::time::Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// Half to the whole of a pause: agents that lost the same coordinator do not come back all at once.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness the whole pause is waited.
    let share = if getrandom::fill(&mut byte).is_ok() { u32::from(byte[0]) } else { 255 };
    pause / 2 + pause * share / 510
}
