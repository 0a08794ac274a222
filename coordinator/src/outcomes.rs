//! What became of what was let out: an access is an entry before it is served (the intent), and what carries models or the
//! log away is one again afterwards, with how many bytes were handed to the connection and whether that was all.
//!
//! An outcome never keeps anybody waiting. One that cannot be recorded, and those of a coordinator that was killed, are found
//! missing at the next start, and recorded as unknown then.

use crate::{
    metrics::Metrics,
    store::{
        Store, StoreError,
        writer::{CommitError, Writer},
    },
};
use bytes::Bytes;
use falaj_core::{
    audit::{Actor, Draft, Entry, Kind},
    id::StudyId,
};
use futures_util::Stream;
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::{mpsc, oneshot};

/// Outcomes that wait to be recorded.
const WAITING: usize = 4_096;
/// Outcomes in one commit.
const GROUP: usize = 256;
/// Entries that are read at once when intents without an outcome are looked for.
const PAGE: u32 = 1_000;
/// Intents without an outcome that are looked for at a start; beyond them it is an error line.
const UNKNOWN_MAX: usize = 100_000;
/// The kinds whose outcome is recorded.
pub const KINDS: [Kind; 2] = [Kind::ModelRead, Kind::LogExported];

/// Takes outcomes. A cheap handle.
#[derive(Clone)]
pub struct Outcomes {
    told: mpsc::Sender<Told>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
enum Told {
    Served(Box<Served>),
    Drain(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Served {
    intent: Intent,
    bytes: u64,
    outcome: &'static str,
}

/// What was let out, and to whom.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The index of the entry that says so.
    pub index: u64,
    /// Its kind.
    pub kind: Kind,
    /// To whom.
    pub actor: Actor,
    /// Of which study, if it is of one.
    pub study: Option<StudyId>,
}

impl Intent {
    fn outcome(&self, outcome: &str) -> Draft {
        let draft = Draft::new(Kind::AccessServed)
            .actor(&self.actor)
            .text("served", self.kind.as_str())
            .count("intent", self.index)
            .text("outcome", outcome);
        match &self.study {
            Some(study) => draft.study(study),
            None => draft,
        }
    }
}

/// What is being served. When it goes, its outcome is told.
pub struct Serving {
    intent: Option<Intent>,
    bytes: u64,
    expected: u64,
    failed: bool,
    outcomes: Outcomes,
}

impl Serving {
    /// So much more was handed to the connection.
    pub fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// It is about to be served, and has so many bytes.
    #[must_use]
    pub const fn of(mut self, bytes: u64) -> Self {
        (self.expected, self.failed) = (bytes, false);
        self
    }

    /// Serves a body of so many bytes.
    #[must_use]
    pub const fn watch<S>(self, bytes: u64, body: S) -> Watched<S> {
        Watched { body, serving: self.of(bytes) }
    }

    /// What is served cannot be read any further.
    pub const fn fail(&mut self) {
        self.failed = true;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let Some(intent) = self.intent.take() else { return };
        let outcome = match (self.failed, self.bytes == self.expected) {
            (true, _) => "failed",
            (false, true) => "complete",
            (false, false) => "broken_off",
        };
        let served = Served { intent, bytes: self.bytes, outcome };
        self.outcomes.metrics.outcome(outcome);
        if let Err(e) = self.outcomes.told.try_send(Told::Served(Box::new(served))) {
            self.outcomes.metrics.outcome("unrecorded");
            tracing::error!(error = %e, "an outcome will be unknown: too many wait to be recorded");
        }
    }
}

/// A body whose outcome is told when it ends or is dropped.
pub struct Watched<S> {
    body: S,
    serving: Serving,
}

impl<S, E> Stream for Watched<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    type Item = Result<Bytes, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.body).poll_next(cx);
        match &next {
            Poll::Ready(Some(Ok(chunk))) => self.serving.add(chunk.len()),
            Poll::Ready(Some(Err(_))) => self.serving.fail(),
            Poll::Ready(None) | Poll::Pending => {}
        }
        next
    }
}

impl Outcomes {
    /// Begins to record outcomes.
    #[must_use]
    pub fn new(writer: Writer, metrics: Arc<Metrics>) -> Self {
        let (told, hears) = mpsc::channel(WAITING);
        tokio::spawn(record(hears, writer, metrics.clone()));
        Self { told, metrics }
    }

    /// Something is to be served by this intent. It has failed if nothing comes of it: what is refused after its intent was not
    /// handed out.
    #[must_use]
    pub fn serving(&self, intent: Intent) -> Serving {
        let outcomes = self.clone();
        Serving { intent: Some(intent), bytes: 0, expected: 0, failed: true, outcomes }
    }

    /// Waits until all that was told is recorded, or cannot be.
    pub async fn drained(&self) {
        let (reply, done) = oneshot::channel();
        if self.told.send(Told::Drain(reply)).await.is_ok() {
            // Whoever records has ended, and nothing waits any more.
            let _ = done.await;
        }
    }
}

async fn record(mut hears: mpsc::Receiver<Told>, writer: Writer, metrics: Arc<Metrics>) {
    let mut group = Vec::with_capacity(GROUP);
    while hears.recv_many(&mut group, GROUP).await > 0 {
        let (mut entries, mut drained) = (Vec::new(), Vec::new());
        for told in group.drain(..) {
            match told {
                Told::Served(served) => {
                    let Served { intent, bytes, outcome } = *served;
                    entries.push(intent.outcome(outcome).count("bytes", bytes));
                }
                Told::Drain(reply) => drained.push(reply),
            }
        }
        let count = entries.len();
        if count > 0
            && let Err(e) = writer.record(entries).await
        {
            (0..count).for_each(|_| metrics.outcome("unrecorded"));
            tracing::error!(error = %e, count, "outcomes will be unknown: they could not be recorded");
        }
        for reply in drained {
            // Who asked has gone.
            let _ = reply.send(());
        }
    }
}

/// Why outcomes could not be looked for.
#[derive(Debug, thiserror::Error)]
pub enum OutcomesError {
    /// The log cannot be read.
    #[error("the log cannot be read")]
    Store(#[from] StoreError),
    /// The log takes no entry.
    #[error("unknown outcomes cannot be recorded")]
    Commit(#[from] CommitError),
}

/// Records as unknown what became of each access that has no outcome: since the newest start, for at each start all that
/// came before is settled before the start itself is an entry. Gives how many there were.
///
/// # Errors
/// [`OutcomesError`].
pub async fn settle(store: &Store, writer: &Writer) -> Result<usize, OutcomesError> {
    let below = writer.head().0;
    let starts = each(store, 0, below, Kind::CoordinatorStarted).await?;
    let since = starts.last().copied().unwrap_or(0);
    let mut open = BTreeMap::new();
    for kind in KINDS {
        let found = each(store, since, below, kind).await?;
        open.extend(found.into_iter().map(|index| (index, kind)));
    }
    let mut from = since;
    while !open.is_empty() {
        let kind = Some(Kind::AccessServed.as_str());
        let page = store.entries(from, below, PAGE, kind).await?;
        let Some((last, ..)) = page.last() else { break };
        from = last + 1;
        for (_, bytes, _) in page {
            let told = Entry::parse(&bytes).ok();
            let intent = told.and_then(|entry| entry.body().int::<u64>("intent").ok());
            if let Some(index) = intent {
                open.remove(&index);
            }
        }
    }
    let count = open.len();
    let mut drafts = open.into_iter().map(|(index, kind)| {
        Intent { index, kind, actor: Actor::default(), study: None }.outcome("unknown")
    });
    loop {
        let group: Vec<Draft> = drafts.by_ref().take(GROUP).collect();
        if group.is_empty() {
            break;
        }
        writer.record(group).await?;
    }
    if count > 0 {
        tracing::warn!(
            count,
            "the coordinator ended while something was served: outcomes are unknown"
        );
    }
    Ok(count)
}

/// The indices of the entries of one kind, the newest [`UNKNOWN_MAX`].
async fn each(
    store: &Store,
    from: u64,
    below: u64,
    kind: Kind,
) -> Result<BTreeSet<u64>, StoreError> {
    let (mut found, mut next, mut left_out) = (BTreeSet::new(), from, false);
    loop {
        let page = store.entries(next, below, PAGE, Some(kind.as_str())).await?;
        let Some((last, ..)) = page.last() else { break };
        next = last + 1;
        found.extend(page.iter().map(|(index, ..)| *index));
        while found.len() > UNKNOWN_MAX {
            found.pop_first();
            left_out = true;
        }
    }
    if left_out {
        tracing::error!(%kind, "more than {UNKNOWN_MAX} accesses may have no outcome: the oldest are not looked at");
    }
    Ok(found)
}
