//! One study's actor: load, step, commit, act.
//!
//! It holds the round as it was last committed. Every event goes through `falaj_core::round::step`; what
//! follows is committed, and only then acted upon. After a restart the effects are derived again from the
//! committed stage, so a kill between any two of the verbs loses nothing and counts nothing twice.

use super::{
    Answer, Arrived, Decided, Engine, Mail, Meta, SignedReceipt, View,
    combined::{self, Combined, Unjudged},
    evaluation,
    exchange::{self, Exchange},
    leaving::Leaving,
    problem_of,
    spooled::{BLOCK_BYTES, Damaged, Spooled},
    update_ref,
};
use crate::{
    blob::{self, is_full},
    clock,
    once::Once,
    policy::{Action, Resource},
    store::{
        StoreError,
        row::{ExchangeRow, ModelRow, UpdateRow},
        writer::{Change, Commit, CommitError, Committed},
    },
    trusted::Trusted,
    versions::{self, MakeError, Making},
};
use anyhow::Context as _;
use falaj_core::{
    aggregate::Accumulator,
    audit::{Actor as Who, Draft, Kind, person::Person},
    dp::Rotation,
    gate::{self, Facts, Gate, OnFailure, Verdict, patience::Weighed},
    id::{Digest, RoundId, SiteId},
    robust::Rule,
    round::{
        AnyRound, Effect, Event, FailReason, Phase, Record, Refusal, RoundSpec, UpdateRef, step,
    },
    study::Mechanism,
    task::{self, TaskHeader},
    time::Timestamp,
    witness::name_of_party,
};
use falaj_proto::{
    problem::{Code, Problem},
    rest::StudyEvent,
    v1::{self, LookAtLog, StudyOver, Task, push},
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{self, Read as _},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// How long to wait before trying again what could not be made durable.
const RETRY: Duration = Duration::from_millis(500);

pub(super) struct Actor {
    engine: Engine,
    meta: Arc<Meta>,
    viewing: watch::Sender<View>,
    events: Arc<broadcast::Sender<StudyEvent>>,
    /// The round as committed, and its version; none before the first.
    round: Option<(AnyRound, u64)>,
    /// What is still to be done about it.
    owed: VecDeque<Effect>,
    /// What was folded in already; a cache that can always be made again from the spool.
    folded: Folded,
    /// The masked round's messages; a cache that can always be made again from the store.
    exchange: Option<Exchange>,
    /// What is waited for before the candidate is judged. It begins anew after a restart.
    waiting: Option<Waiting>,
    /// What is not worth another try. It is forgotten by a restart, after which the round is tried again.
    unwitnessed: Option<Unwitnessed>,
    /// Whom the round has to do without.
    leaving: Arc<Leaving>,
    seq: u64,
}

/// Witnesses that are waited for.
#[derive(Clone, Copy)]
struct Waiting {
    /// Number and attempt of the round.
    round: (u32, u32),
    /// A log of so many entries has every entry of the round.
    entries: u64,
    since: Instant,
}

/// A try of a round that had too few witnesses behind it, while too few were there for another one.
#[derive(Clone, Copy)]
struct Unwitnessed {
    /// Number and attempt of the round.
    round: (u32, u32),
    /// Witnesses that were there.
    there: usize,
}

#[derive(Default)]
struct Folded {
    round: Option<(u32, u32)>,
    /// Kept from round to round, for its memory.
    sums: Option<Accumulator>,
    payloads: BTreeMap<SiteId, Digest>,
}

impl Folded {
    /// Begins a round, or the same one again.
    fn begin(&mut self, round: (u32, u32)) {
        self.round = Some(round);
        self.payloads.clear();
    }
}

/// Why an event did not become durable.
enum Failed {
    Refused(Refusal),
    Commit(CommitError),
}

impl From<CommitError> for Failed {
    fn from(e: CommitError) -> Self {
        Self::Commit(e)
    }
}

impl Actor {
    pub(super) fn new(
        engine: Engine,
        meta: Arc<Meta>,
        (viewing, events): (watch::Sender<View>, Arc<broadcast::Sender<StudyEvent>>),
        leaving: Arc<Leaving>,
        round: Option<(AnyRound, u64)>,
    ) -> Self {
        let owed = round.as_ref().map(|(r, _)| r.owed()).unwrap_or_default().into();
        let folded = Folded::default();
        Self {
            engine,
            meta,
            viewing,
            events,
            round,
            owed,
            folded,
            exchange: None,
            waiting: None,
            unwitnessed: None,
            leaving,
            seq: 0,
        }
    }

    pub(super) async fn run(mut self, mut mail: mpsc::Receiver<Mail>, shutdown: CancellationToken) {
        let held = matches!(self.round, Some((AnyRound::Held(_), _)));
        self.engine.parts().metrics.held(&self.meta.study.id, held);
        if let Some((round, _)) = &self.round
            && round.wakes_at().is_some()
            && let Err(Failed::Commit(e)) = self.apply(Event::Resumed).await
        {
            tracing::warn!(study = %self.meta.study.id, error = %e, "resuming must wait");
        }
        if self.round.as_ref().is_some_and(|(r, _)| !r.is_over() && !r.spec().members.is_empty())
            && let Err(Failed::Commit(e)) = self.exchange().await.map(drop)
        {
            tracing::warn!(study = %self.meta.study.id, error = %e, "a masked round must wait");
        }
        self.seat_connected().await;
        loop {
            let stuck = self.act().await.is_err();
            if self.viewing.borrow().state != "running" {
                return;
            }
            let due = self.round.as_ref().and_then(|(r, _)| r.wakes_at());
            let nap = match due {
                _ if stuck => RETRY,
                Some(at) => Duration::from_millis(at.since_ms(clock::now())),
                None => Duration::MAX,
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                mail = mail.recv() => match mail {
                    Some(mail) => self.take(mail).await,
                    None => return,
                },
                () = tokio::time::sleep(nap) => {
                    if !stuck && let Err(Failed::Commit(e)) = self.apply(Event::Tick).await {
                        tracing::warn!(study = %self.meta.study.id, error = %e, "a deadline must wait");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    }

    async fn take(&mut self, mail: Mail) {
        match mail {
            Mail::Joined(site) => self.seat(site).await,
            Mail::Declined(site, number, why, reply) => {
                let answer = self.declined(site, number, why).await;
                let _ = reply.send(answer);
            }
            Mail::Update(arrived, reply) => {
                let (site, update) =
                    (arrived.site.clone(), update_ref(&arrived.header, &arrived.header_bytes));
                let answer = self.count(*arrived).await;
                let counted = answer.as_ref().is_ok_and(|r| !r.already_counted);
                let _ = reply.send(answer);
                if counted && let Err(e) = self.fold(&site, &update).await {
                    // The mean is computed from the spool at the end in any case.
                    tracing::warn!(study = %self.meta.study.id, error = %e, "folding must wait");
                }
            }
            Mail::Answered(answer, reply) => {
                let answer = self.answered(*answer).await;
                let _ = reply.send(answer);
            }
            Mail::Decided(decided, reply) => {
                let answer = self.decided(*decided).await;
                let _ = reply.send(answer);
            }
            // That is done next, before anything else.
            Mail::Look => {}
            Mail::Stop(actor, once, reply) => {
                let answer = self.stop(&actor, once).await;
                let _ = reply.send(answer);
            }
        }
    }

    // ---- load, step, commit ----

    /// Puts an event through the round and makes what follows durable.
    async fn apply(&mut self, event: Event) -> Result<Option<Committed>, Failed> {
        self.apply_with(event, &Who::default(), Vec::new(), |d| d).await
    }

    /// As [`Self::apply`]: `who` stands in the entries, `rows` and `more`, of the first entry, add to the commit.
    async fn apply_with(
        &mut self,
        event: Event,
        who: &Who,
        rows: Vec<Change>,
        more: impl FnOnce(Draft) -> Draft,
    ) -> Result<Option<Committed>, Failed> {
        let first = |entries: Vec<Draft>| {
            let mut entries = entries.into_iter();
            entries.next().map(more).into_iter().chain(entries).collect()
        };
        self.apply_all(event, who, rows, first).await
    }

    /// As [`Self::apply_with`], where `more` adds to any of the entries.
    async fn apply_all(
        &mut self,
        event: Event,
        who: &Who,
        rows: Vec<Change>,
        more: impl FnOnce(Vec<Draft>) -> Vec<Draft>,
    ) -> Result<Option<Committed>, Failed> {
        let Some((round, version)) = self.round.clone() else { return Ok(None) };
        let step = step(&round, event, clock::now()).map_err(Failed::Refused)?;
        if step.next == round && step.records.is_empty() {
            self.owed.extend(step.effects);
            return Ok(None);
        }
        let entries = step.records.iter().map(|r| self.draft(&round, r, who)).collect();
        let entries = more(entries);
        let commit = Commit { round: Some((step.next.clone(), version)), rows, entries };
        let committed = self.commit(commit).await?;
        if step.next.stage() != round.stage() {
            self.engine.parts().metrics.round(step.next.stage());
        }
        let metrics = &self.engine.parts().metrics;
        metrics.held(&self.meta.study.id, matches!(step.next, AnyRound::Held(_)));
        match (&round, &step.next) {
            (AnyRound::Held(_), AnyRound::Promoted(_)) => metrics.verdict("published"),
            (AnyRound::Held(_), AnyRound::Rejected(_)) => metrics.verdict("rejected"),
            _ => {}
        }
        self.round = Some((step.next.clone(), version + 1));
        self.owed.extend(step.effects);
        self.viewing.send_modify(|v| v.round = Some(step.next));
        for record in &step.records {
            self.tell(record);
        }
        Ok(Some(committed))
    }

    /// Opens a round on `base`.
    async fn open(&mut self, number: u32, attempt: u32, base: Digest) -> Result<(), Failed> {
        let study = &self.meta.study;
        // Who is named is waited for; otherwise whoever is here when the round opens, if that is enough.
        let here = self
            .engine
            .sites()
            .taking_part()
            .into_iter()
            .filter(|(site, c)| self.may_sit(site, &c.datasets));
        let named = study.cohort.sites.len();
        let expected = if named > 0 { named } else { here.count() };
        let expected = u32::try_from(expected).unwrap_or(0).min(study.sites_max());
        let evaluation = study.evaluation.as_ref();
        let good = match &self.round {
            // Gates of a study that is never evaluated are asked of every model.
            Some((AnyRound::Promoted(r), _)) if r.spec.evaluates || evaluation.is_none() => {
                r.stage.model
            }
            Some((round, _)) => round.spec().good,
            None => base,
        };
        let before = self.round.as_ref().map(|(round, _)| round.progress().clone());
        let spec = RoundSpec {
            base,
            min_sites: study.cohort.min_sites,
            max_sites: study.sites_max(),
            expected_sites: if expected >= study.cohort.min_sites { expected } else { 0 },
            deadline_ms: u64::from(study.rounds.deadline_s) * 1_000,
            grace_ms: u64::from(study.rounds.grace_s) * 1_000,
            attempt,
            masked: self.is_masked(),
            members: Vec::new(),
            evaluates: evaluation.is_some_and(|e| e.is_due(number, study.rounds.count)),
            good,
            progress: before.unwrap_or_default(),
        };
        let planned = AnyRound::planned(RoundId { study: study.id.clone(), number }, spec);
        let before = self.round.replace((planned, 0));
        if let Err(e) = self.apply(Event::Open).await {
            if self.round.as_ref().is_some_and(|(_, version)| *version == 0) {
                self.round = before;
            }
            return Err(e);
        }
        self.seat_connected().await;
        Ok(())
    }

    /// Makes a change durable. When somebody changed the study first (a write that failed and persisted
    /// all the same looks like that), or nobody knows yet what became of the change, what is stored is believed, and
    /// nothing else.
    async fn commit(&mut self, commit: Commit) -> Result<Committed, Failed> {
        let done = self.engine.parts().writer.commit(commit).await;
        if matches!(done, Err(CommitError::Conflict | CommitError::Slow))
            && let Err(e) = self.read_again().await
        {
            tracing::error!(error = %format!("{:#}", anyhow::Error::from(e)), "the study cannot be read again");
        }
        Ok(done?)
    }

    /// Believes what is stored of the study.
    async fn read_again(&mut self) -> Result<(), StoreError> {
        let (store, id) = (&self.engine.parts().store, &self.meta.study.id);
        let Some(row) = store.study(id).await? else {
            return Err(StoreError::Corrupt(format!("study {id} is not there any more")));
        };
        let (stored, newest) = View::stored(store, &row).await?;
        self.owed = newest.as_ref().map(|(r, _)| r.owed()).unwrap_or_default().into();
        self.round = newest;
        let ended = stored.state != "running" && self.viewing.borrow().state == "running";
        self.viewing.send_modify(|v| *v = View { cohort: v.cohort, ..stored });
        if ended {
            self.tell_that_it_is_over();
        }
        Ok(())
    }

    // ---- act ----

    /// Does what is owed. Stops at what cannot be made durable now; it stays owed.
    async fn act(&mut self) -> Result<(), ()> {
        self.leave_or_wait().await?;
        if self.round.is_none() {
            let base = self.viewing.borrow().model;
            if let Err(Failed::Commit(e)) = self.open(1, 0, base).await {
                tracing::warn!(study = %self.meta.study.id, error = %e, "opening the first round must wait");
                self.round = None;
                return Err(());
            }
        }
        while let Some(effect) = self.owed.front().cloned() {
            // Whoever was revoked while a mean was computed is not in the model that follows.
            self.leave_or_wait().await?;
            let done = match &effect {
                Effect::SendTask(site) => self.send_task(site).await,
                Effect::Ask(site) => self.ask(site).await,
                Effect::Aggregate => self.aggregate().await,
                Effect::Judge(candidate) => match self.witnesses().await {
                    Ok(Some(stood)) => self.judge(*candidate, stood).await,
                    Ok(None) => return Err(()),
                    Err(e) => Err(e.into()),
                },
                Effect::Advance => self.advance().await,
            };
            match done {
                Ok(()) | Err(Failed::Refused(_)) => {
                    self.owed.pop_front();
                }
                Err(Failed::Commit(e)) => {
                    tracing::warn!(study = %self.meta.study.id, ?effect, error = %e, "an effect must wait");
                    return Err(());
                }
            }
        }
        Ok(())
    }

    /// Does without those who are leaving. None of them is forgotten: what cannot be made durable now stays owed, and
    /// nothing else becomes of the round before.
    async fn leave(&mut self) -> Result<(), Failed> {
        while let Some((site, keep)) = self.leaving.first() {
            match self.apply(Event::Revoked { site: site.clone(), keep }).await {
                Ok(_) | Err(Failed::Refused(_)) => self.leaving.done(&site, keep),
                Err(e @ Failed::Commit(_)) => return Err(e),
            }
        }
        Ok(())
    }

    async fn leave_or_wait(&mut self) -> Result<(), ()> {
        self.leave().await.map_err(|failed| {
            if let Failed::Commit(e) = failed {
                tracing::warn!(study = %self.meta.study.id, error = %e, "a withdrawal must wait");
            }
        })
    }

    async fn send_task(&mut self, site: &SiteId) -> Result<(), Failed> {
        let (round, spec, deadline) = match &self.round {
            Some((AnyRound::Collecting(r), _)) => (&r.id, &r.spec, r.stage.deadline),
            Some((AnyRound::Exchanging(r), _)) => (&r.id, &r.spec, r.stage.deadline),
            Some((AnyRound::Evaluating(r), _)) => (&r.id, &r.spec, r.stage.deadline),
            _ => return Ok(()),
        };
        let (round, mut base, attempt) = (round.clone(), spec.base, spec.attempt);
        let (mut masked, mut evaluates, mut members) = (None, None, Vec::new());
        if let Some((AnyRound::Evaluating(r), _)) = &self.round {
            (base, evaluates) = (r.stage.candidate, Some(attempt));
        } else if spec.masked {
            let exchange = self.exchange().await?;
            masked = Some((attempt, exchange.digest()));
            members = exchange.certificates();
        }
        let mechanism = self.meta.study.privacy.mechanism.as_str();
        let study = &self.meta.study.id;
        let mut draft = Draft::new(Kind::TaskSent)
            .round(&round)
            .text("site", &site.to_string())
            .digest("base_sha256", &base);
        if evaluates.is_some() {
            draft = draft.text("asks_for", Phase::Evaluation.as_str());
        }
        let resource = Resource::Study(study, mechanism);
        let granted =
            self.engine.grant(site.spiffe().into(), Action::TaskGet, &resource, draft).await;
        match granted {
            Ok(_) => {}
            Err(p) if p.code == Code::Denied => return Ok(()),
            Err(p) => return Err(CommitError::Failed(p.detail).into()),
        }
        let header = TaskHeader {
            round,
            rounds: self.meta.study.rounds.count,
            site: site.clone(),
            study_sha256: self.meta.digest,
            base,
            manifest: self.meta.manifest.digest(),
            deadline,
            masked,
            evaluates,
        }
        .to_bytes();
        let signature = self
            .engine
            .parts()
            .signer
            .sign_context(task::CONTEXT, &header)
            .map_err(|e| CommitError::Failed(format!("the task cannot be signed: {e}")))?;
        let task = Task {
            header: header.into(),
            signature: signature.to_vec().into(),
            study: self.meta.yaml.clone(),
            members,
        };
        // A site that is not connected gets its task when it comes back.
        self.engine.sites().push(site, push::Push::Task(task));
        Ok(())
    }

    // ---- masked rounds ----

    fn is_masked(&self) -> bool {
        matches!(self.meta.study.privacy.mechanism, Mechanism::DistributedGaussian { .. })
    }

    /// The masked round's messages, with every update that is counted so far in the sum.
    async fn exchange(&mut self) -> Result<&mut Exchange, Failed> {
        let loaded = self.load_exchange().await;
        match loaded {
            Ok(exchange) => {
                let digest = exchange.digest();
                self.viewing.send_modify(|v| v.cohort = Some(digest));
                Ok(self.exchange.insert(exchange))
            }
            Err(e) if e.is::<StoreError>() || e.is::<io::Error>() => {
                Err(CommitError::Failed(format!("the masked round cannot be read: {e:#}")).into())
            }
            // These members can never aggregate together: another try may have others.
            Err(e) => {
                self.gives_no_model(&e).await?;
                let round = self.round.as_ref().map(|(r, _)| r.id().clone());
                let round = round.ok_or_else(|| CommitError::Failed("no round".into()))?;
                Err(Failed::Refused(Refusal::Late { round, stage: "failed" }))
            }
        }
    }

    async fn load_exchange(&mut self) -> anyhow::Result<Exchange> {
        let Some((round, _)) = &self.round else { anyhow::bail!("there is no round") };
        let parts = self.engine.parts();
        let kept = self.exchange.take().filter(|e| e.is_of(round));
        let fresh = kept.is_none();
        let mut exchange = match kept {
            Some(exchange) => exchange,
            None => Exchange::load(&parts.store, &self.meta.study, round).await?,
        };
        for (site, update) in round.updates() {
            if !exchange.has_masked(&site) {
                let update = Spooled::of(&parts.updates, &update);
                exchange = tokio::task::spawn_blocking(move || {
                    exchange.masked(&site, &update.whole()?)?;
                    anyhow::Ok(exchange)
                })
                .await??;
            }
        }
        if fresh {
            exchange.take_rest(&parts.store).await?;
        }
        Ok(exchange)
    }

    /// Pushes what the round wants of a site in this stage.
    async fn ask(&mut self, site: &SiteId) -> Result<(), Failed> {
        let Some((round, _)) = self.round.clone() else { return Ok(()) };
        if matches!(round, AnyRound::Evaluating(_)) {
            return self.send_task(site).await;
        }
        let Some((phase, messages)) = self.exchange().await?.question(&round, site) else {
            return Ok(());
        };
        let ask = v1::Exchange {
            study: round.id().study.to_string(),
            round: round.id().number,
            attempt: round.spec().attempt,
            phase: phase.into(),
            messages,
        };
        // A site that is not connected is asked when it comes back.
        self.engine.sites().push(site, push::Push::Exchange(ask));
        Ok(())
    }

    /// Checks a site's answer, and makes it durable.
    async fn answered(&mut self, answer: Answer) -> Result<(), Problem> {
        let Answer { site, peer, decision, round, attempt, phase, messages } = answer;
        // The mail may have waited, and whoever sent it may have been revoked meanwhile.
        peer.identity()?;
        let packed = exchange::pack(&messages);
        let event = Event::Answered(site.clone(), phase, Digest::of(&packed));
        let Some((open, _)) = &self.round else {
            return Err(Code::NotEnrolled.because("no round is open"));
        };
        let metrics = self.engine.parts().metrics.clone();
        let of = (open.id(), open.spec().attempt);
        if of != (&round, attempt) {
            return Err(Code::WrongRound.because(format!(
                "the answer is for try {attempt} of round {}, try {} of round {} is open",
                round.number, of.1, of.0.number
            )));
        }
        // What the round would say, before a signature is looked at.
        match step(open, event.clone(), clock::now()) {
            Ok(_) => {}
            Err(Refusal::AlreadyCounted(_)) => {
                if phase == Phase::Evaluation {
                    metrics.evaluation("duplicate");
                }
                return Ok(());
            }
            Err(r) => return Err(refusal(&r)),
        }
        let described = |entry: Draft| {
            entry.text("action", Action::UpdateSend.as_str()).decided(
                true,
                &decision.policies,
                &decision.policy_set,
            )
        };
        if let AnyRound::Evaluating(r) = open {
            let asked = evaluation::asked(&self.meta, r, &site);
            let key = peer.identity()?.public_key;
            let told = evaluation::check(&self.meta, &asked, &key, &messages)?;
            let (row_site, bytes) = (site.clone(), packed.len() as u64);
            let row = ExchangeRow {
                round,
                attempt,
                phase: phase.as_str().into(),
                site,
                messages: packed,
            };
            let rows = vec![Change::Exchange(row)];
            let entry = |draft: Draft| described(told.describe(draft));
            let (name, epsilon) = (row_site, told.header.epsilon.clone());
            return match self.apply_with(event, &peer.actor, rows, entry).await {
                Ok(_) => {
                    self.viewing.send_modify(|v| v.note(&name, &epsilon, bytes));
                    metrics.evaluation("accepted");
                    Ok(())
                }
                Err(Failed::Refused(r)) => Err(refusal(&r)),
                Err(Failed::Commit(e)) => Err(problem_of(&e)),
            };
        }
        let taken = match self.exchange().await {
            Ok(exchange) => exchange.take(phase, &site, &messages),
            Err(Failed::Refused(r)) => return Err(refusal(&r)),
            Err(Failed::Commit(e)) => return Err(problem_of(&e)),
        };
        taken.map_err(|e| Code::Malformed.because(format!("the answer is not taken: {e}")))?;
        let row =
            ExchangeRow { round, attempt, phase: phase.as_str().into(), site, messages: packed };
        let rows = vec![Change::Exchange(row)];
        let Err(failed) = self.apply_with(event, &peer.actor, rows, described).await else {
            return Ok(());
        };
        // It was taken in, and is not durable: what is stored is read again.
        self.exchange = None;
        Err(match failed {
            Failed::Refused(r) => refusal(&r),
            Failed::Commit(e) => problem_of(&e),
        })
    }

    /// The base moved by the mean of a masked round.
    async fn masked_mean(&mut self) -> anyhow::Result<Digest> {
        let Ok(_) = self.exchange().await else {
            return Err(io::Error::other("the masked round cannot be read now").into());
        };
        let exchange = self.exchange.take().context("invariant: it was just read")?;
        let meta = self.meta.clone();
        let unmask = move || exchange.unmask(&meta.study);
        let sum = tokio::task::spawn_blocking(unmask).await??;
        let sites = u32::try_from(sum.sites.len())?;
        let sums = Accumulator::of_sum(sum.values, sites, self.meta.study.encoding());
        self.move_base(sums, by_mean).await.map(|(digest, _)| digest)
    }

    /// The base moved by what another rule than the mean makes of the updates, which are read now: before the set of
    /// them is fixed there is nothing to fold.
    async fn combined(&self, updates: &BTreeMap<SiteId, UpdateRef>) -> anyhow::Result<Digest> {
        let (rule, encoding) = (self.meta.study.aggregation, self.meta.study.encoding());
        let params = self.meta.manifest.params();
        // In the order of sites' ids, which is no order of arrival.
        let spool = &self.engine.parts().updates;
        let updates: Vec<_> = updates.values().map(|u| Spooled::of(spool, u)).collect();
        let measure = move || Combined::measure(rule, updates, params, encoding);
        let combined = tokio::task::spawn_blocking(measure).await??;
        self.move_base(combined, Combined::move_base).await.map(|(digest, _)| digest)
    }

    /// Folds in one counted update, in blocks, as long as it is what was signed.
    async fn fold(&mut self, site: &SiteId, update: &UpdateRef) -> anyhow::Result<()> {
        if self.is_masked() {
            return match self.exchange().await {
                Ok(_) => Ok(()),
                Err(Failed::Commit(e)) => Err(e.into()),
                Err(Failed::Refused(r)) => Err(r.into()),
            };
        }
        if self.meta.study.aggregation != Rule::Mean {
            return Ok(());
        }
        let Some((round, _)) = &self.round else { return Ok(()) };
        let key = (round.id().number, round.spec().attempt);
        if self.folded.round != Some(key) {
            self.folded.begin(key);
        }
        let encoding = self.meta.study.encoding();
        let params = self.meta.manifest.params();
        let first = self.folded.payloads.is_empty();
        // Should the update not be readable to its end, the sums are gone, and are made again.
        self.folded.round = None;
        let mut sums =
            self.folded.sums.take().unwrap_or_else(|| Accumulator::new(params, encoding));
        let spooled = Spooled::of(&self.engine.parts().updates, update);
        let weight = update.weight;
        let sums = tokio::task::spawn_blocking(move || -> anyhow::Result<Accumulator> {
            if first {
                sums.reset();
            }
            sums.admit(weight)?;
            let width = encoding.bytes_per_value();
            let mut at = 0;
            spooled.each_block(params * width, |block| {
                sums.fold_values(at, block, weight)?;
                at += block.len() / width;
                Ok(())
            })?;
            Ok(sums)
        })
        .await??;
        self.folded.round = Some(key);
        self.folded.sums = Some(sums);
        self.folded.payloads.insert(site.clone(), update.payload);
        Ok(())
    }

    /// The base moved by the mean of exactly the updates that the round counted, made durable. Block by
    /// block: a model is never in memory as a whole.
    async fn mean(&mut self, updates: &BTreeMap<SiteId, UpdateRef>) -> anyhow::Result<Digest> {
        let key = match &self.round {
            Some((round, _)) => (round.id().number, round.spec().attempt),
            None => anyhow::bail!("there is no round"),
        };
        let surplus = self
            .folded
            .payloads
            .iter()
            .any(|(site, payload)| updates.get(site).is_none_or(|u| u.payload != *payload));
        if self.folded.round != Some(key) || surplus {
            self.folded.begin(key);
        }
        for (site, update) in updates {
            if !self.folded.payloads.contains_key(site) {
                self.fold(site, update).await?;
            }
        }
        let sums =
            self.folded.sums.take().ok_or_else(|| anyhow::anyhow!("nothing was folded in"))?;
        self.folded.round = None;
        let (digest, sums) = self.move_base(sums, by_mean).await?;
        self.folded.sums = Some(sums);
        Ok(digest)
    }

    /// The base moved block by block by what the updates became, made durable. A base that is not the model it is named by moves
    /// nowhere: it is read again until it was restored.
    async fn move_base<T: Send + 'static>(
        &self,
        mut became: T,
        moves: MoveBase<T>,
    ) -> anyhow::Result<(Digest, T)> {
        let base = match &self.round {
            Some((round, _)) => round.spec().base,
            None => anyhow::bail!("there is no round"),
        };
        let rate = self.meta.study.training.server_learning_rate;
        let number = self.round.as_ref().map_or(0, |(round, _)| round.id().number);
        let rotation = self.meta.study.rotation(&self.meta.digest, number);
        let params = self.meta.manifest.params();
        let models = self.engine.parts().models.clone();
        let tag = self.meta.study.id.to_string();
        tokio::task::spawn_blocking(move || {
            let mut file = models.reader(&base)?;
            let mut left = usize::try_from(file.length())?;
            if left != params * 4 {
                let why = format!("the stored model {base} has {left} bytes: restore it");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why).into());
            }
            let mut new = models.begin(&tag)?;
            let (mut of_base, mut hash) = (Sha256::new(), Sha256::new());
            // What was rotated is turned back in whole blocks.
            let bytes = match rotation {
                Some(_) => BLOCK_BYTES.next_multiple_of(4 * Rotation::block(params)),
                None => BLOCK_BYTES,
            };
            let mut block = vec![0; bytes.min(left)];
            let mut at = 0;
            while left > 0 {
                let block = &mut block[..bytes.min(left)];
                file.read_exact(block)?;
                of_base.update(&*block);
                moves(&mut became, at, block, rate, rotation.as_ref())?;
                hash.update(&*block);
                new.write(block)?;
                at += block.len() / 4;
                left -= block.len();
            }
            blob::check(&base, Digest(of_base.finalize().into()))?;
            let digest = Digest(hash.finalize().into());
            new.finish(&digest)?;
            anyhow::Ok((digest, became))
        })
        .await?
    }

    async fn aggregate(&mut self) -> Result<(), Failed> {
        let Some((AnyRound::Aggregating(round), _)) = &self.round else { return Ok(()) };
        let updates = round.stage.updates.clone();
        let candidate = if self.is_masked() {
            self.masked_mean().await
        } else if self.meta.study.aggregation == Rule::Mean {
            self.mean(&updates).await
        } else {
            self.combined(&updates).await
        };
        match candidate {
            Ok(candidate) => self.apply(Event::Aggregated(candidate)).await.map(drop),
            // What cannot be read or written now may be later; numbers that are no model, and damaged updates, never are.
            Err(e) => match e.downcast_ref::<io::Error>() {
                Some(e) if is_full(e) => Err(CommitError::Full.into()),
                Some(_) => Err(CommitError::Failed(format!("{e:#}")).into()),
                None => self.gives_no_model(&e).await,
            },
        }
    }

    /// Ends a round of whose updates nothing will ever become; what is damaged is also an alert.
    async fn gives_no_model(&mut self, why: &anyhow::Error) -> Result<(), Failed> {
        let damaged = why.downcast_ref::<Damaged>();
        let alert = damaged.map(|damaged| {
            Draft::new(Kind::AlertRaised)
                .study(&self.meta.study.id)
                .text("alert", "update_damaged")
                .text("detail", &damaged.to_string())
        });
        let more = |entries: Vec<Draft>| entries.into_iter().chain(alert).collect();
        let event = Event::AggregationFailed(format!("{why:#}"));
        let done = self.apply_all(event, &Who::default(), Vec::new(), more).await?;
        if let (Some(_), Some(damaged)) = (done, damaged) {
            tracing::error!(study = %self.meta.study.id, error = %damaged, "an update is damaged");
            self.engine.parts().metrics.alert("update_damaged");
        }
        Ok(())
    }

    /// `stood` are the witnesses that stand behind the round, and how many entries each has cosigned.
    async fn judge(&mut self, candidate: Digest, stood: Vec<(String, u64)>) -> Result<(), Failed> {
        // While witnesses were waited for somebody may have been revoked.
        self.leave().await?;
        let Some((AnyRound::Gated(round), _)) = &self.round else { return Ok(()) };
        let (round, behind) = (round.clone(), u32::try_from(stood.len()).unwrap_or(u32::MAX));
        let of = (&round.id, &round.spec);
        let judged = self.verdict(of, (candidate, &round.stage.updates), behind).await;
        let (verdict, said) = match judged {
            Ok(judged) => judged,
            Err(Unjudged::NotNow(e)) => return Err(e.into()),
            Err(Unjudged::Never(damaged)) => return self.gives_no_model(&damaged.into()).await,
        };
        let tried = (round.id.number, round.spec.attempt);
        let pass = verdict.pass;
        let (asked, word) = (verdict.asked.clone(), evaluation::word(&verdict));
        let rows = if pass { vec![self.model_row(round.id.number, candidate)] } else { Vec::new() };
        let lines: Vec<String> =
            stood.iter().map(|(witness, entries)| format!("{entries} {witness}")).collect();
        // What people are asked about is weighed once they let it through.
        let weighed = verdict.weighed.clone().filter(|_| pass);
        let event = if verdict.asks() {
            let Verdict { reasons, weighed, .. } = verdict;
            Event::Asked { reasons, witnesses: lines.clone(), weighed }
        } else {
            Event::Judged(verdict)
        };
        let named = |draft| named(draft, lines, said, weighed);
        let committed = self.apply_with(event, &Who::default(), rows, named).await?;
        if let Some(wanted) = self.meta.study.governance.witnesses {
            let (reached, there) = (behind >= wanted.quorum, self.there(&stood));
            let hopeless = !reached && there < wanted.quorum as usize;
            self.unwitnessed = hopeless.then_some(Unwitnessed { round: tried, there });
            if let Some(waiting) = self.waiting.take() {
                self.engine.parts().metrics.witness_quorum(reached, waiting.since.elapsed());
            }
        }
        if committed.is_some() {
            let metrics = &self.engine.parts().metrics;
            for (metric, pass) in asked {
                metrics.gate(metric, pass);
            }
            metrics.verdict(word);
        }
        if committed.is_some() && pass {
            self.published(candidate);
        }
        Ok(())
    }

    /// What gates say of a candidate, and what an entry says of that.
    async fn verdict(
        &self,
        (round, spec): (&RoundId, &RoundSpec),
        (candidate, updates): (Digest, &BTreeMap<SiteId, UpdateRef>),
        behind: u32,
    ) -> Result<(Verdict, Said), Unjudged> {
        let (meta, parts) = (&self.meta, self.engine.parts());
        // Aggregation refuses a candidate with a parameter that is not finite.
        let mut facts = Facts::of(updates.values(), true, behind);
        facts.epsilon = self.viewing.borrow().epsilon.values().copied().reduce(f64::max);
        facts.compared = combined::compared(&parts.updates, meta, (round, spec), updates).await?;
        let facts = evaluation::facts(&parts.store, meta, (round, spec), facts).await?;
        let mut gates = vec![Gate::Participation { min_sites: spec.min_sites }, Gate::Finite];
        gates.extend(meta.study.governance.witnesses.map(Gate::Witnesses));
        gates.extend(meta.study.gates.iter().cloned().map(Gate::Declared));
        let mut verdict = gate::judge(&facts, &gates);
        if verdict.pass || verdict.asks() {
            verdict.weighed = evaluation::weighed(meta, spec, &facts, (round.number, candidate));
        }
        let said = evaluation::said(&facts, &verdict);
        Ok((verdict, said))
    }

    fn model_row(&self, number: u32, sha256: Digest) -> Change {
        let study = self.meta.study.id.clone();
        Change::Model(ModelRow { study, number, sha256, published: clock::now() })
    }

    /// The study has another model.
    fn published(&self, model: Digest) {
        self.viewing.send_modify(|v| {
            v.promoted += 1;
            v.model = model;
        });
    }

    /// Somebody decides over the candidate that waits for people.
    async fn decided(&mut self, decided: Decided) -> Result<(), Problem> {
        // The mail may have waited, and whoever sent it may have been revoked meanwhile.
        decided.peer.identity()?;
        // Nor is it let through with an update that does not count any more.
        if let Err(Failed::Commit(e)) = self.leave().await {
            return Err(problem_of(&e));
        }
        let study = &self.meta.study.id;
        let held = match &self.round {
            Some((AnyRound::Held(r), _)) if r.stage.candidate == decided.candidate => r.clone(),
            _ => {
                return Err(Code::Conflict.because(format!(
                    "no candidate {} of study `{study}` waits for people: look with `falaj study rounds {study}`",
                    decided.candidate
                )));
            }
        };
        let Decided { peer, action, decision, candidate, approves, reason, once } = decided;
        let behind = u32::try_from(held.stage.witnesses.len()).unwrap_or(u32::MAX);
        let of = (&held.id, &held.spec);
        let verdict = self.verdict(of, (candidate, &held.stage.updates), behind).await;
        let (verdict, said) = verdict.map_err(|e| match e {
            Unjudged::NotNow(e) => problem_of(&e),
            Unjudged::Never(damaged) => {
                tracing::error!(study = %study, error = %damaged, "an update is damaged");
                Code::Internal.because("an update of the candidate is damaged: restore it from a backup, or submit the study again")
            }
        })?;
        // Reading took a while: it is decided by who is heard now.
        peer.identity()?;
        let event = match approves {
            Some(by) => {
                Event::Approved { by, gone: self.gone(&held.stage.approved, &peer.trusted) }
            }
            None => Event::Refused(reason.clone()),
        };
        let ahead = step(&AnyRound::Held(held.clone()), event.clone(), clock::now());
        let ahead = ahead.map_err(|r| refusal(&r))?;
        let publishes = matches!(ahead.next, AnyRound::Promoted(_));
        let weighed = verdict.weighed.filter(|_| publishes);
        let rows =
            if publishes { vec![self.model_row(held.id.number, candidate)] } else { Vec::new() };
        let lines = held.stage.witnesses;
        let more = |entries: Vec<Draft>| {
            let mut entries = entries.into_iter();
            let first = entries.next().map(|first| {
                let first = first.text("reason", &reason).text("action", action.as_str());
                let first = once.iter().fold(first, |first, once| once.tell(first));
                first.decided(true, &decision.policies, &decision.policy_set)
            });
            let then = entries.next().map(|then| named(then, lines, said, weighed));
            first.into_iter().chain(then).chain(entries).collect()
        };
        let committed = match self.apply_all(event, &peer.actor, rows, more).await {
            Ok(committed) => committed,
            Err(Failed::Refused(r)) => return Err(refusal(&r)),
            Err(Failed::Commit(e)) => return Err(problem_of(&e)),
        };
        if committed.is_some() && publishes {
            self.published(candidate);
        }
        Ok(())
    }

    /// Whoever of these was erased or revoked, and is not heard any more.
    fn gone(&self, approved: &BTreeSet<Person>, trusted: &Trusted) -> BTreeSet<Person> {
        let persons = &self.engine.parts().persons;
        let is_heard =
            |person: &Person| persons.identity(*person).is_some_and(|id| !trusted.is_revoked(&id));
        approved.iter().copied().filter(|person| !is_heard(person)).collect()
    }

    /// The witnesses that stand behind the round, and how many entries each has cosigned: as soon as there are as many as
    /// the study wants, or when the wait is over. Until then there is no answer.
    async fn witnesses(&mut self) -> Result<Option<Vec<(String, u64)>>, CommitError> {
        let (Some(wanted), Some((round, _))) = (self.meta.study.governance.witnesses, &self.round)
        else {
            return Ok(Some(Vec::new()));
        };
        let round = (round.id().number, round.spec().attempt);
        let waiting = match self.waiting {
            Some(waiting) if waiting.round == round => waiting,
            _ => {
                let entries = self.engine.parts().writer.head().0;
                let since = Instant::now();
                // Whoever is away looks at the log when it comes back.
                for (site, _) in self.engine.sites().taking_part() {
                    self.engine.sites().push(&site, push::Push::LookAtLog(LookAtLog {}));
                }
                self.send_event(None, format!("waiting for {} witnesses", wanted.quorum));
                *self.waiting.insert(Waiting { round, entries, since })
            }
        };
        let all = self.engine.parts().store.witnesses().await;
        let all = all.map_err(|e| CommitError::Failed(format!("witnesses cannot be read: {e}")))?;
        let counted = &self.engine.parts().witnesses;
        let stands = |(name, size): &(String, u64)| {
            *size >= waiting.entries && counted.counts(name, &self.meta.study.cohort)
        };
        let stood: Vec<_> = all.into_iter().filter(stands).collect();
        let within = Duration::from_secs(wanted.within_s.into());
        let over = stood.len() >= wanted.quorum as usize || waiting.since.elapsed() >= within;
        Ok(over.then_some(stood))
    }

    /// How many witnesses another try could have behind it: those that stood behind this one, sites that are connected,
    /// and every outside witness.
    fn there(&self, stood: &[(String, u64)]) -> usize {
        let (cohort, counted) = (&self.meta.study.cohort, &self.engine.parts().witnesses);
        let connected =
            self.engine.sites().taking_part().into_iter().filter(|(site, _)| cohort.admits(site));
        let mut there = counted.outside().clone();
        there.extend(connected.map(|(site, _)| name_of_party(site.spiffe())));
        there.extend(stood.iter().map(|(name, _)| name.clone()));
        there.len()
    }

    /// After a round: the next one, the same one again, or the end.
    async fn advance(&mut self) -> Result<(), Failed> {
        let Some((round, _)) = self.round.clone() else { return Ok(()) };
        let (number, attempt) = (round.id().number, round.spec().attempt);
        let study = self.meta.study.clone();
        let again = |why: String| {
            if attempt < study.rounds.retries {
                None
            } else {
                Some(("failed", Kind::StudyFailed, Some(why)))
            }
        };
        let end = match &round {
            AnyRound::Promoted(r) if study.ends_with(number, &r.stage.progress) => {
                let (patience, evaluation) = (study.patience, study.evaluation.as_ref());
                let why = patience.map(|p| p.reason(&r.stage.progress, evaluation));
                return self.finish(number, why, r.stage.model).await;
            }
            AnyRound::Promoted(r) => {
                let model = r.stage.model;
                return self.open(number + 1, 0, model).await;
            }
            AnyRound::Failed(r) if r.stage.reason == FailReason::Stopped => {
                Some(("stopped", Kind::StudyStopped, None))
            }
            AnyRound::Failed(r) => again(format!("round {number}: {}", r.stage.reason)),
            AnyRound::Rejected(r) if r.stage.on_failure == OnFailure::Stop => {
                let why =
                    format!("a gate ended it in round {number}: {}", r.stage.reasons.join("; "));
                return self.finish(number, Some(why), r.spec.base).await;
            }
            AnyRound::Rejected(r) if r.stage.on_failure == OnFailure::RollBack => {
                let (good, why) = (r.spec.good, r.stage.reasons.join("; "));
                return self.roll_back(number, good, why).await;
            }
            AnyRound::Rejected(r) => {
                let why = format!("round {number}: {}", r.stage.reasons.join("; "));
                match self.unwitnessed.filter(|u| u.round == (number, attempt)) {
                    // Sites would pay for a model that nobody can witness.
                    Some(Unwitnessed { there, .. }) => {
                        let why =
                            format!("{why}; {there} witnesses are there, too few to try again");
                        Some(("failed", Kind::StudyFailed, Some(why)))
                    }
                    None => again(why),
                }
            }
            _ => return Ok(()),
        };
        let Some((state, kind, reason)) = end else {
            return self.open(number, attempt + 1, round.spec().base).await;
        };
        let newest = self.viewing.borrow().model;
        self.end((state, kind), number, reason, newest).await
    }

    /// Ends the study with a model, to which it goes back in the same transaction where it has another.
    async fn end(
        &mut self,
        (state, kind): (&'static str, Kind),
        number: u32,
        reason: Option<String>,
        model: Digest,
    ) -> Result<(), Failed> {
        let study = self.meta.study.clone();
        let mut draft = Draft::new(kind)
            .study(&study.id)
            .count("round", u64::from(number))
            .digest("model_sha256", &model);
        if let Some(reason) = &reason {
            draft = draft.text("reason", reason);
        }
        let mut rows = vec![Change::StudyState(study.id.clone(), state, reason.clone())];
        let mut entries = Vec::new();
        if model != self.viewing.borrow().model {
            let why = reason.as_deref().unwrap_or_default();
            entries.push(self.rolled_back(number, &model, why));
            // A round that gave a model has a row already.
            if !matches!(self.round, Some((AnyRound::Promoted(_), _))) {
                rows.push(self.model_row(number, model));
            }
        }
        entries.push(draft);
        if kind == Kind::StudyFinished {
            self.make_version(model, &mut rows, &mut entries).await?;
        }
        self.commit(Commit { round: None, rows, entries }).await?;
        self.viewing.send_modify(|v| {
            v.state = state;
            v.reason = reason;
            v.model = model;
        });
        self.tell_that_it_is_over();
        Ok(())
    }

    /// Tells sites and watchers how the study ended.
    fn tell_that_it_is_over(&mut self) {
        let study = &self.meta.study;
        let (state, reason) = {
            let view = self.viewing.borrow();
            (view.state, view.reason.clone())
        };
        tracing::info!(study = %study.id, state, reason = reason.as_deref(), "study over");
        for (site, _) in self.engine.sites().taking_part() {
            if study.cohort.admits(&site) {
                let over = StudyOver { study: study.id.to_string(), outcome: state.into() };
                self.engine.sites().push(&site, push::Push::StudyOver(over));
            }
        }
        self.send_event(None, reason.map_or_else(|| state.to_owned(), |r| format!("{state}: {r}")));
    }

    /// Ends the study for what it was to learn: with its best model, or, where none was weighed, with this one.
    async fn finish(
        &mut self,
        number: u32,
        why: Option<String>,
        otherwise: Digest,
    ) -> Result<(), Failed> {
        let best = self.round.as_ref().and_then(|(round, _)| round.progress().best.as_ref());
        let model = best.map_or(otherwise, |best| best.model);
        self.end(("finished", Kind::StudyFinished), number, why, model).await
    }

    /// Goes on from the last model that passed every gate: with the next round, or, after the last one, not at all.
    async fn roll_back(&mut self, number: u32, good: Digest, why: String) -> Result<(), Failed> {
        let study = self.meta.study.clone();
        if number >= study.rounds.count {
            let why = format!("a gate rolled it back in its last round, {number}: {why}");
            return self.finish(number, Some(why), good).await;
        }
        if self.viewing.borrow().model != good {
            let draft = self.rolled_back(number, &good, &why);
            let rows = vec![self.model_row(number, good)];
            self.commit(Commit { round: None, rows, entries: vec![draft] }).await?;
            self.viewing.send_modify(|v| v.model = good);
            self.send_event(None, format!("rolled back to model {good}"));
        }
        self.open(number + 1, 0, good).await
    }

    /// That the study goes back to a model after a round.
    fn rolled_back(&self, number: u32, model: &Digest, why: &str) -> Draft {
        Draft::new(Kind::ModelRolledBack)
            .round(&RoundId { study: self.meta.study.id.clone(), number })
            .digest("from_sha256", &self.viewing.borrow().model)
            .digest("model_sha256", model)
            .text("reason", why)
    }

    /// The model that a study finishes with is a version.
    async fn make_version(
        &self,
        model: Digest,
        rows: &mut Vec<Change>,
        entries: &mut Vec<Draft>,
    ) -> Result<(), Failed> {
        let models = self.engine.parts().store.models(&self.meta.study.id).await;
        let models =
            models.map_err(|e| CommitError::Failed(format!("the models cannot be read: {e}")))?;
        // A study that was rolled back has the model of an earlier round, or the untrained one, which is no version.
        let first = models.iter().find(|m| m.sha256 == model).map(|m| m.number);
        let Some(round) = first.filter(|number| *number > 0) else { return Ok(()) };
        match versions::making(self.engine.parts(), &self.meta, round, model).await {
            Ok(Making { row, draft, .. }) => {
                rows.push(row);
                entries.push(draft);
            }
            // Somebody made it one already, the study can have no more, or a gate was not asked about it.
            Err(why @ (MakeError::Refused(_) | MakeError::Unjudged { .. })) => {
                tracing::info!(study = %self.meta.study.id, %why, "no version is made");
            }
            Err(e @ MakeError::Damaged { .. }) => {
                tracing::error!(study = %self.meta.study.id, error = %e, "no version is made");
                let alert = Draft::new(Kind::AlertRaised).study(&self.meta.study.id);
                let alert = alert.digest("model_sha256", &model).text("alert", "model_damaged");
                entries.push(alert.text("detail", &e.to_string()));
                self.engine.parts().metrics.alert("model_damaged");
            }
            Err(e @ (MakeError::Unreadable(_) | MakeError::Store(_))) => {
                let why = format!("{:#}", anyhow::Error::from(e));
                return Err(CommitError::Failed(why).into());
            }
        }
        Ok(())
    }

    // ---- mail ----

    /// Offers a seat to every connected site that may have one.
    async fn seat_connected(&mut self) {
        for (site, _) in self.engine.sites().taking_part() {
            self.seat(site).await;
        }
    }

    /// Whether the study itself has a seat for a site that offers these data sets.
    fn may_sit(&self, site: &SiteId, datasets: &[String]) -> bool {
        let study = &self.meta.study;
        let has = |name: &str| datasets.iter().any(|d| d == name);
        study.cohort.admits(site) && has(&study.data.dataset) && has(study.evaluated_on())
    }

    async fn seat(&mut self, site: SiteId) {
        let study = &self.meta.study;
        let connected = self.engine.sites().taking_part().into_iter().find(|(id, _)| *id == site);
        if !connected.is_some_and(|(id, c)| self.may_sit(&id, &c.datasets)) {
            return;
        }
        let mechanism = study.privacy.mechanism.as_str();
        let resource = Resource::Study(&study.id, mechanism);
        let decision =
            self.engine.parts().policy.decide(site.spiffe(), Action::StudyJoin, &resource);
        if !decision.allow {
            tracing::info!(study = %study.id, %site, reason = decision.reason, "may not join");
            return;
        }
        let rows = self.membership(&site);
        let joined = self.apply_with(Event::Joined(site), &Who::default(), rows, |d| d).await;
        if let Err(Failed::Commit(e)) = joined {
            tracing::warn!(study = %self.meta.study.id, error = %e, "a seat could not be given");
        }
    }

    /// The certificate by which a site takes part in a masked round.
    fn membership(&self, site: &SiteId) -> Vec<Change> {
        let Some((round, _)) = self.round.as_ref().filter(|(r, _)| r.spec().masked) else {
            return Vec::new();
        };
        let connected = self.engine.sites().taking_part().into_iter().find(|(id, _)| id == site);
        let row = |certificate: &[u8]| ExchangeRow {
            round: round.id().clone(),
            attempt: round.spec().attempt,
            phase: exchange::MEMBER.into(),
            site: site.clone(),
            messages: certificate.to_vec(),
        };
        connected.map(|(_, c)| Change::Exchange(row(&c.certificate))).into_iter().collect()
    }

    async fn declined(&mut self, site: SiteId, number: u32, why: String) -> Result<(), Problem> {
        let open = self.round.as_ref().map_or(0, |(r, _)| r.id().number);
        if open != number {
            return Err(
                Code::WrongRound.because(format!("round {number} is not open; round {open} is"))
            );
        }
        match self.apply(Event::Declined(site, why)).await {
            Ok(_) => Ok(()),
            Err(Failed::Refused(r)) => Err(refusal(&r)),
            Err(Failed::Commit(e)) => Err(problem_of(&e)),
        }
    }

    async fn count(&mut self, arrived: Arrived) -> Result<SignedReceipt, Problem> {
        let Arrived { site, peer, decision, header, header_bytes, signature } = arrived;
        // The mail may have waited, and whoever sent it may have been revoked meanwhile.
        peer.identity()?;
        let update = update_ref(&header, &header_bytes);
        let Some((round, _)) = &self.round else {
            return Err(Code::NotEnrolled.because("no round is open"));
        };
        let mut row = UpdateRow {
            round: header.round.clone(),
            attempt: round.spec().attempt,
            site: site.clone(),
            header: header_bytes,
            signature,
            payload: header.payload,
            bytes: header.payload_bytes,
            epsilon: header.epsilon.clone(),
            log_index: 0,
            leaf: header.payload,
            committed: Timestamp::from_millis(0),
        };
        if header.round != *round.id() {
            let open = round.id().number;
            return Err(Code::WrongRound.because(format!(
                "the update is for round {}, round {open} is open",
                header.round.number
            )));
        }
        let rows = vec![Change::Update(row.clone(), 0)];
        let event = Event::Update(site.clone(), update);
        let described = |entry: Draft| {
            entry
                .digest("base_sha256", &header.base)
                .count("payload_bytes", header.payload_bytes)
                .text("epsilon", &header.epsilon)
                .text("mechanism", &header.mechanism)
                .text("action", Action::UpdateSend.as_str())
                .decided(true, &decision.policies, &decision.policy_set)
        };
        let applied = self.apply_with(event, &peer.actor, rows, described).await;
        match applied {
            Ok(Some(committed)) => {
                row.log_index = committed.first;
                row.leaf = committed.leaves[0];
                row.committed = committed.at;
                self.viewing.send_modify(|v| v.note(&site, &header.epsilon, header.payload_bytes));
                if let Ok(epsilon) = header.epsilon.parse() {
                    self.engine.parts().metrics.epsilon(
                        header.round.study.as_str(),
                        site.name(),
                        epsilon,
                    );
                }
                self.engine.receipt(&row, false)
            }
            Ok(None) => Err(Code::Internal.because("the update changed nothing")),
            Err(Failed::Refused(r)) => Err(refusal(&r)),
            Err(Failed::Commit(e)) => Err(problem_of(&e)),
        }
    }

    async fn stop(&mut self, who: &Who, once: Option<Once>) -> Result<(), Problem> {
        let tell = |draft: Draft| once.iter().fold(draft, |draft, once| once.tell(draft));
        match self.apply_with(Event::Stop, who, Vec::new(), tell).await {
            Ok(_) => Ok(()),
            Err(Failed::Refused(r)) => Err(refusal(&r)),
            Err(Failed::Commit(e)) => Err(problem_of(&e)),
        }
    }

    // ---- words ----

    /// A record of the round as a log entry.
    fn draft(&self, round: &AnyRound, record: &Record, who: &Who) -> Draft {
        let id = round.id();
        let about =
            |kind| Draft::new(kind).round(id).count("attempt", u64::from(round.spec().attempt));
        match record {
            Record::Opened => about(Kind::RoundOpened).digest("base_sha256", &round.spec().base),
            Record::Joined(site) => about(Kind::SiteJoined).text("site", &site.to_string()),
            Record::Declined(site, why) => {
                about(Kind::SiteDeclined).text("site", &site.to_string()).text("reason", why)
            }
            Record::Accepted(site, u) => about(Kind::UpdateAccepted)
                .actor(who)
                .text("site", &site.to_string())
                .digest("payload_sha256", &u.payload)
                .digest("header_sha256", &u.header)
                .count("weight", u64::from(u.weight)),
            Record::Answered(site, Phase::Evaluation, digest) => about(Kind::EvaluationAccepted)
                .actor(who)
                .text("site", &site.to_string())
                .digest("messages_sha256", digest),
            Record::Answered(site, phase, digest) => about(Kind::ExchangeAnswered)
                .actor(who)
                .text("site", &site.to_string())
                .text("phase", phase.as_str())
                .digest("messages_sha256", digest),
            Record::Closed(updates) => about(Kind::RoundClosed).digests("updates", updates),
            Record::Published(model) => {
                let updates = round.updates();
                let mut payloads: Vec<Digest> = updates.values().map(|u| u.payload).collect();
                payloads.sort_unstable();
                let about = match self.meta.study.aggregation {
                    Rule::Mean => about(Kind::ModelPublished),
                    rule => about(Kind::ModelPublished).text("rule", rule.as_str()),
                };
                about
                    .digest("base_sha256", &round.spec().base)
                    .digest("model_sha256", model)
                    .digest("manifest_sha256", &self.meta.manifest.digest())
                    .digests("updates", &payloads)
                    .count("total_weight", updates.values().map(|u| u64::from(u.weight)).sum())
            }
            Record::Held(candidate, reasons, until) => about(Kind::CandidateHeld)
                .digest("model_sha256", candidate)
                .text("reason", &reasons.join("; "))
                .text("until", &until.to_string()),
            Record::Approved(candidate) => {
                about(Kind::CandidateApproved).actor(who).digest("model_sha256", candidate)
            }
            Record::Refused(candidate) => {
                about(Kind::CandidateRefused).actor(who).digest("model_sha256", candidate)
            }
            Record::Rejected(candidate, reasons) => about(Kind::ModelRejected)
                .digest("model_sha256", candidate)
                .text("reason", &reasons.join("; ")),
            Record::Failed(reason) => {
                about(Kind::RoundFailed).actor(who).text("reason", &reason.to_string())
            }
        }
    }

    /// Tells watchers about a record.
    fn tell(&mut self, record: &Record) {
        let (site, message) = match record {
            Record::Opened => (None, "round opened".to_owned()),
            Record::Joined(site) => (Some(site), format!("{} joined", site.name())),
            Record::Declined(site, why) => (Some(site), format!("{} declined: {why}", site.name())),
            Record::Accepted(site, _) => (Some(site), format!("update from {}", site.name())),
            Record::Answered(site, phase, _) => {
                (Some(site), format!("{} from {}", phase.as_str(), site.name()))
            }
            Record::Closed(updates) => (None, format!("closed with {} updates", updates.len())),
            Record::Published(model) => (None, format!("model {model} published")),
            Record::Held(candidate, reasons, until) => {
                let why = reasons.join("; ");
                (None, format!("candidate {candidate} waits for people until {until}: {why}"))
            }
            Record::Approved(candidate) => (None, format!("candidate {candidate} approved")),
            Record::Refused(candidate) => (None, format!("candidate {candidate} refused")),
            Record::Rejected(_, reasons) => (None, format!("rejected: {}", reasons.join("; "))),
            Record::Failed(reason) => (None, format!("failed: {reason}")),
        };
        tracing::info!(study = %self.meta.study.id, round = self.round.as_ref().map(|(r, _)| r.id().number), "{message}");
        if let Record::Published(model) = record {
            self.viewing.send_modify(|v| v.model = *model);
        }
        self.send_event(site, message);
    }

    fn send_event(&mut self, site: Option<&SiteId>, message: String) {
        self.seq += 1;
        let event = event(&self.meta, &self.viewing.borrow(), self.seq, site, message);
        // Without a watcher there is nobody to tell.
        let _ = self.events.send(event);
    }
}

/// What an entry says of gates.
type Said = Vec<(&'static str, Vec<String>)>;

/// Names the witnesses that stand behind a round, if it wants any, how its model compares with the best before it, and what gates
/// said.
fn named(draft: Draft, witnesses: Vec<String>, said: Said, weighed: Option<Weighed>) -> Draft {
    let draft = if witnesses.is_empty() { draft } else { draft.texts("witnesses", witnesses) };
    let draft = weighed.into_iter().fold(draft, |draft, w| draft.text("patience", &w.line));
    said.into_iter().fold(draft, |draft, (name, lines)| draft.texts(name, lines))
}

/// Moves a block of the base, the parameters from a number on, at the server's rate, and turns back what was rotated.
type MoveBase<T> = fn(&mut T, usize, &mut [u8], f64, Option<&Rotation>) -> anyhow::Result<()>;

fn by_mean(
    sums: &mut Accumulator,
    at: usize,
    block: &mut [u8],
    rate: f64,
    rotation: Option<&Rotation>,
) -> anyhow::Result<()> {
    Ok(sums.move_base(at, block, rate, rotation)?)
}

/// How a study stands, as an event.
pub(super) fn event(
    meta: &Meta,
    view: &View,
    seq: u64,
    site: Option<&SiteId>,
    message: String,
) -> StudyEvent {
    let round = view.round.as_ref();
    let published = round.is_some_and(|r| r.stage() == "promoted");
    let updates = round.map(AnyRound::updates).unwrap_or_default();
    let cohort = round.map_or(0, AnyRound::present);
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    StudyEvent {
        seq,
        at: clock::now().to_string(),
        study: meta.study.id.to_string(),
        state: view.state.into(),
        round: round.map_or(0, |r| r.id().number),
        rounds: meta.study.rounds.count,
        stage: round.map_or("planned", AnyRound::stage).into(),
        cohort: small(cohort),
        updates_in: small(updates.len()),
        site: site.map(|s| s.name().to_owned()),
        message,
        epsilon_by_site: by_name(&view.epsilon),
        model_sha256: published.then(|| view.model.to_string()),
    }
}

/// What is known of sites, by what they are called.
pub(crate) fn by_name<T: Copy>(of: &BTreeMap<SiteId, T>) -> BTreeMap<String, T> {
    let mut names = SiteId::told_apart(of.keys());
    of.iter().filter_map(|(site, value)| Some((names.remove(site)?, *value))).collect()
}

/// A refusal of the round as a problem.
pub(crate) fn refusal(refusal: &Refusal) -> Problem {
    let code = match refusal {
        Refusal::AlreadyCounted(_) | Refusal::AlreadyApproved(_) | Refusal::Duplicate { .. } => {
            Code::Duplicate
        }
        Refusal::NotEnrolled { .. } | Refusal::HasDeclined { .. } => Code::NotEnrolled,
        Refusal::Late { .. } => Code::Late,
        Refusal::Full(_) => Code::Busy,
        Refusal::OutOfPlace { .. } => Code::StudyOver,
    };
    code.because(refusal)
}
