//! The one writer: commits what callers hand in, in groups, each group one durable transaction.
//!
//! It gives log entries their places, hashes them, and keeps the tree's frontier. A caller is answered
//! only after its commit is durable; if anything fails, nothing has happened, in memory either.

use super::{
    Connection, Shard, Store, StoreError, Writing, objects, postgres,
    row::{ExchangeRow, ModelRow, StudyRow, TimestampRow, UpdateRow, write_registry, write_round},
    sqlite,
};
use crate::{clock, metrics::Metrics, persons::Persons};
use anyhow::Context as _;
use falaj_core::{
    audit::{Draft, Entry, Kind, person::Person},
    id::{Digest, StudyId},
    merkle::{Frontier, TILE_HEIGHT, leaf_hash},
    note::{Checkpoint, NoteSigner},
    registry::version::Registry,
    round::AnyRound,
    succession::LogKeys,
    time::Timestamp,
};
use sqlx::{Connection as _, Postgres, Sqlite, SqlitePool, Transaction};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};

/// Commits waiting at most; beyond it callers are told that the log is busy.
const QUEUE: usize = 4_096;
/// How long a caller waits for its commit. After that nothing is served, whatever became of the commit.
pub const COMMIT_WAIT: Duration = Duration::from_secs(2);
/// Commits in one transaction at most.
const GROUP: usize = 1_024;
/// Entries that are read at once when the tree is recomputed.
const PAGE: u32 = 1_024;

/// What must become durable together.
#[derive(Default)]
pub struct Commit {
    /// A round's next state, if it changes, over the version that it was computed from.
    pub round: Option<(AnyRound, u64)>,
    /// Rows that belong to it.
    pub rows: Vec<Change>,
    /// Log entries that say so.
    pub entries: Vec<Draft>,
}

/// One row's change.
pub enum Change {
    /// A new study.
    Study(StudyRow),
    /// A study's new state, and why.
    StudyState(StudyId, &'static str, Option<String>),
    /// A counted update; its place in the log is that of the commit's entry with this number.
    Update(UpdateRow, usize),
    /// A site's part in a masked round.
    Exchange(ExchangeRow),
    /// A model.
    Model(ModelRow),
    /// The versions of a study's model, over the change that they were computed from. A commit has one at most, and no round
    /// beside it.
    Registry(Registry, u64),
    /// What was signed of a version: study, number, and the envelope.
    Provenance(StudyId, u32, Vec<u8>),
    /// A certificate that entries name.
    Certificate(Digest, Vec<u8>),
    /// A person's certificate that entries commit to, as [`crate::persons`] seals it.
    PersonalCertificate {
        /// Whose.
        person: Person,
        /// Which.
        tag: Digest,
        /// It.
        sealed: Vec<u8>,
    },
    /// A policy file that is in force.
    Policy(Digest, String, Vec<u8>),
    /// A signed checkpoint.
    Checkpoint(u64, String),
    /// A witness's cosignature of a checkpoint: of which shard, the tree's size, who, and the line.
    Cosignature(Shard, u64, String, String),
    /// That the shard in which the commit lies has begun, and its origin.
    Shard(String),
    /// That the contents of this shard are deleted from now on.
    Prune(Shard),
    /// The contents of a shard's entries from one index to below another are deleted, but of those that are kept.
    Empty(Shard, u64, u64),
    /// An authority's time-stamp; its entry is the commit's first.
    Timestamp(TimestampRow),
}

/// Where a commit's entries lie.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Index of the first entry.
    pub first: u64,
    /// Leaf hashes of the entries, in order.
    pub leaves: Vec<Digest>,
    /// When.
    pub at: Timestamp,
}

/// Why nothing was committed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// Too many commits are waiting.
    #[error("too many commits are waiting")]
    Busy,
    /// Somebody else changed the round, or the study's versions, first, or the study has ended.
    #[error("it was changed by somebody else")]
    Conflict,
    /// The person who did it has been erased, so nothing of them is written any more.
    #[error("the person who did it has been erased")]
    Erased,
    /// It took too long. What was still waiting is not begun any more; what was under way may yet become durable, so an
    /// entry can be there of what was then refused, and never the other way round.
    #[error("it was not durable within {} seconds", COMMIT_WAIT.as_secs())]
    Slow,
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The database takes no writes for now.
    #[error("the database is read-only")]
    ReadOnly,
    /// The database server is away or too slow; a later commit may find it back.
    #[error("{0}")]
    Unavailable(String),
    /// The database failed.
    #[error("the database failed: {0}")]
    Failed(String),
}

impl CommitError {
    /// Every word that [`Self::outcome`] has.
    pub const OUTCOMES: [&str; 8] =
        ["busy", "conflict", "erased", "slow", "full", "read_only", "unavailable", "failed"];

    /// One word for it, for who counts.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Conflict => "conflict",
            Self::Erased => "erased",
            Self::Slow => "slow",
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Unavailable(_) => "unavailable",
            Self::Failed(_) => "failed",
        }
    }
}

impl From<StoreError> for CommitError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Full(_) => Self::Full,
            StoreError::ReadOnly => Self::ReadOnly,
            e @ (StoreError::Unreachable(_) | StoreError::Slow(_) | StoreError::Held(_)) => {
                Self::Unavailable(format!("{:#}", anyhow::Error::from(e)))
            }
            other => Self::Failed(format!("{:#}", anyhow::Error::from(other))),
        }
    }
}

/// A tree head: size and root.
pub type Head = (u64, Digest);

/// What becomes of each commit of a transaction.
pub(super) type Results = Vec<Result<Committed, CommitError>>;

/// A commit, and until when it may begin.
pub(super) type Due = (Commit, Instant);

type Waiting = (Due, oneshot::Sender<Result<Committed, CommitError>>);

/// A cheap handle to the writer.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Waiting>,
    head: watch::Receiver<Head>,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Makes it all durable, or nothing of it.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn commit(&self, commit: Commit) -> Result<Committed, CommitError> {
        let done = self.wait_for(commit).await;
        self.metrics.commit(done.as_ref().err());
        done
    }

    async fn wait_for(&self, commit: Commit) -> Result<Committed, CommitError> {
        let (reply, answer) = oneshot::channel();
        let until = Instant::now() + COMMIT_WAIT;
        self.queue.try_send(((commit, until), reply)).map_err(|_| CommitError::Busy)?;
        self.metrics.writer_queue.set(i64::try_from(QUEUE - self.queue.capacity()).unwrap_or(0));
        let answered = tokio::time::timeout_at(until.into(), answer).await;
        answered
            .map_err(|_| CommitError::Slow)?
            .map_err(|_| CommitError::Failed("the writer has ended".into()))?
    }

    /// Makes entries durable.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn record(&self, entries: Vec<Draft>) -> Result<Committed, CommitError> {
        self.commit(Commit { entries, ..Commit::default() }).await
    }

    /// The newest durable tree head.
    #[must_use]
    pub fn head(&self) -> Head {
        *self.head.borrow()
    }

    /// Counts what becomes of the log.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Tells of every new durable tree head.
    #[must_use]
    pub fn heads(&self) -> watch::Receiver<Head> {
        self.head.clone()
    }
}

/// Where the log ends.
#[derive(Clone)]
pub(super) struct Tip {
    pub(super) frontier: Frontier,
    /// In which shard.
    shard: Shard,
    /// When the newest entry was committed: none may be earlier, whatever the clock does.
    latest: Timestamp,
}

/// The writer itself; run it as a task.
pub struct Service {
    writing: Writing,
    queue: mpsc::Receiver<Waiting>,
    tip: Tip,
    head: watch::Sender<Head>,
    metrics: Arc<Metrics>,
}

/// Recomputes the tree from the entries' bytes and compares it with the last signed checkpoint, and with the one that was
/// kept elsewhere, if there is one.
///
/// # Errors
/// When an entry's bytes are not those that were hashed, or the log is not the one that was signed: the
/// message names both sizes.
pub async fn open(
    mut writing: Writing,
    signer: &NoteSigner,
    elsewhere: Option<&str>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<(Writer, Service)> {
    let store = &writing.store;
    let statements = store.successions(None).await?;
    let (key, shard) = (signer.verifier(), store.shard().clone());
    let keys = LogKeys::of(key.name(), key, &statements)
        .context("an entry that says which key follows which cannot be read")?
        .beside(signer.ml_dsa().cloned());
    let stored = store.newest_checkpoint().await?.map(|(_, note)| note);
    let signed = stored.as_deref().into_iter().chain(elsewhere);
    let signed: Vec<Checkpoint> = signed
        .map(|note| keys.open(note))
        .collect::<Result<_, _>>()
        .context("a checkpoint of this log cannot be read: if its key was replaced, name the one before in `log.retiring`")?;
    let mut frontier = Frontier::new();
    let mut tiles = Tiles::default();
    let mut newest = Vec::new();
    loop {
        let page = store.raw_entries(frontier.size(), PAGE).await?;
        if page.is_empty() {
            break;
        }
        for (seq, bytes, stored) in page {
            let leaf = leaf_hash(&bytes);
            anyhow::ensure!(
                seq.cast_unsigned() == frontier.size() && leaf.0[..] == stored,
                "log entry {} is missing or was changed: restore the database from a backup",
                frontier.size()
            );
            frontier.push_telling(leaf, |height, n, hash| tiles.take(height, n, hash));
            for signed in signed.iter().filter(|s| s.tree_size == frontier.size()) {
                anyhow::ensure!(
                    signed.root_hash == frontier.root(),
                    "the log's first {} entries have root {}, but root {} was signed: the log was rewritten",
                    signed.tree_size,
                    frontier.root(),
                    signed.root_hash
                );
            }
            newest = bytes;
        }
    }
    metrics.checkpointed(signed.iter().map(|s| s.tree_size).max().unwrap_or(0));
    for signed in signed {
        anyhow::ensure!(
            frontier.size() >= signed.tree_size,
            "the log has {} entries, but a checkpoint of {} was signed: an older database was restored",
            frontier.size(),
            signed.tree_size
        );
    }
    tiles.mend(&mut writing).await?;
    if let Connection::Sqlite(pool) = &writing.connection {
        sqlite::mend_objects(pool).await?;
    }
    if newest.is_empty()
        && let Some(before) = shard_before(&writing.store).await?
    {
        newest = before;
    }
    let latest = if newest.is_empty() { Timestamp::from_millis(0) } else { committed_at(&newest)? };
    let (queue, waiting) = mpsc::channel(QUEUE);
    let (head, heads) = watch::channel((frontier.size(), frontier.root()));
    let writer = Writer { queue, head: heads, metrics: metrics.clone() };
    let tip = Tip { frontier, shard, latest };
    Ok((writer, Service { writing, queue: waiting, tip, head, metrics }))
}

/// How the versions of a study are after a commit that moves them, and which commit of its transaction that is.
fn moved((n, (commit, _)): (usize, &Due)) -> Option<(usize, Registry)> {
    commit.rows.iter().find_map(|row| match row {
        Change::Registry(registry, _) => Some((n, registry.clone())),
        _ => None,
    })
}

/// The last entry of the shard before, if there is one: no entry is earlier.
async fn shard_before(store: &Store) -> Result<Option<Vec<u8>>, StoreError> {
    let before = store.shards().await?.into_iter().rfind(|s| s.shard().first < store.shard().first);
    let Some(before) = before else { return Ok(None) };
    let last = before.size().await?.saturating_sub(1);
    Ok(before.raw_entries(last, 1).await?.pop().map(|(_, bytes, _)| bytes))
}

/// When an entry was committed.
fn committed_at(bytes: &[u8]) -> anyhow::Result<Timestamp> {
    let entry = Entry::parse(bytes).context("the newest log entry cannot be read")?;
    let ts: jiff::Timestamp = entry.ts.parse().context("the newest log entry has no time")?;
    Ok(Timestamp::from_millis(ts.as_millisecond()))
}

impl Service {
    /// Commits until every handle is gone. Gives back what it has written by.
    pub async fn run(mut self) -> Writing {
        let mut group = Vec::with_capacity(GROUP);
        while self.queue.recv_many(&mut group, GROUP).await > 0 {
            let started = Instant::now();
            let (commits, replies): (Vec<Due>, Vec<_>) = group.drain(..).unzip();
            let size = commits.len();
            let registries: Vec<_> = commits.iter().enumerate().filter_map(moved).collect();
            match self.write(commits).await {
                Ok(results) => {
                    for (_, registry) in registries.iter().filter(|(n, _)| results[*n].is_ok()) {
                        self.metrics.versions(registry);
                    }
                    let tree = &self.tip.frontier;
                    self.head.send_replace((tree.size(), tree.root()));
                    for (reply, result) in replies.into_iter().zip(results) {
                        // A caller that has gone away does not undo what is durable.
                        let _ = reply.send(result);
                    }
                }
                Err(e) => {
                    let e = CommitError::from(e);
                    tracing::error!(error = %e, commits = size, "nothing was acknowledged");
                    for reply in replies {
                        let _ = reply.send(Err(e.clone()));
                    }
                }
            }
            self.metrics.committed(size, started.elapsed());
        }
        self.writing
    }

    /// One transaction. The tip counts it in when it is durable.
    async fn write(&mut self, commits: Vec<Due>) -> Result<Results, StoreError> {
        let Writing { store, connection, persons } = &mut self.writing;
        match connection {
            Connection::Sqlite(pool) => write_sqlite(pool, &mut self.tip, persons, commits).await,
            Connection::Postgres(session) => {
                session.write(store, &mut self.tip, persons, commits).await
            }
        }
    }
}

async fn write_sqlite(
    pool: &SqlitePool,
    tip: &mut Tip,
    persons: &Persons,
    commits: Vec<Due>,
) -> Result<Results, StoreError> {
    let mut connection = pool.acquire().await?;
    let done = async {
        let mut tx = Tx::Sqlite(connection.begin_with("BEGIN IMMEDIATE").await?);
        let (results, after) = fill(&mut tx, tip, persons, commits).await?;
        tx.commit().await?;
        *tip = after;
        Ok(results)
    }
    .await;
    if done.is_err() {
        // A commit that fails for want of room leaves the connection in doubt about its
        // transaction; a fresh one has none.
        connection.close_on_drop();
    }
    done
}

/// A transaction that is under way.
pub(super) enum Tx<'c> {
    /// In a SQLite file.
    Sqlite(Transaction<'c, Sqlite>),
    /// In a PostgreSQL database.
    Postgres(Transaction<'c, Postgres>),
}

/// Has the transaction's backend do it.
macro_rules! put {
    ($tx:expr, $name:ident $(, $argument:expr)*) => {
        match $tx {
            Tx::Sqlite(tx) => sqlite::$name(tx $(, $argument)*).await?,
            Tx::Postgres(tx) => postgres::$name(tx $(, $argument)*).await?,
        }
    };
}

impl Tx<'_> {
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }
}

/// An entry that has its place.
pub(super) struct Written {
    pub(super) seq: u64,
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
    pub(super) leaf: Digest,
}

/// What an entry commits to about a person, sealed.
pub(super) struct Sealed {
    pub(super) seq: u64,
    pub(super) person: Person,
    pub(super) bytes: Vec<u8>,
}

/// Whether a draft may be written: not if it commits to a person who is not known any more, but for the one that says so.
fn may_write(draft: &Draft, persons: &Persons) -> bool {
    draft.kind() == Kind::ErasurePerformed
        || draft.uncommitted().is_none_or(|person| persons.identity(person).is_some())
}

/// Puts commits into a transaction that goes on where the log ends. Gives what becomes of each, and where it ends then.
pub(super) async fn fill(
    tx: &mut Tx<'_>,
    tip: &Tip,
    persons: &Persons,
    commits: Vec<Due>,
) -> Result<(Results, Tip), StoreError> {
    let Tip { mut frontier, mut latest, shard } = tip.clone();
    let mut tiles = Tiles::default();
    let (mut entries, mut personal) = (Vec::new(), Vec::new());
    let mut results = Vec::with_capacity(commits.len());
    for (commit, until) in commits {
        if Instant::now() >= until {
            results.push(Err(CommitError::Slow));
            continue;
        }
        if !commit.entries.iter().all(|draft| may_write(draft, persons)) {
            results.push(Err(CommitError::Erased));
            continue;
        }
        if let Some((round, version)) = &commit.round {
            let (state, attempt) = (write_round(round), round.spec().attempt);
            if !put!(tx, put_round, round.id(), attempt, state, *version) {
                results.push(Err(CommitError::Conflict));
                continue;
            }
        }
        if has_ended(tx, &commit).await? || !put_registry(tx, &commit).await? {
            results.push(Err(CommitError::Conflict));
            continue;
        }
        let first = frontier.size();
        latest = latest.max(clock::now());
        let at = latest;
        let mut leaves = Vec::with_capacity(commit.entries.len());
        for mut draft in commit.entries {
            let (seq, kind) = (frontier.size(), draft.kind());
            if let Some((person, disclosure)) = draft.commit_to_person(seq, clock::secret()) {
                // Whoever is being erased leaves a commitment that nobody can open; the entry that says so comes after it.
                let sealed = persons.seal_disclosure(person, &disclosure);
                personal.extend(sealed.map(|bytes| Sealed { seq, person, bytes }));
            }
            let bytes = draft.finish(seq, at, clock::nonce());
            let leaf = leaf_hash(&bytes);
            entries.push(Written { seq, kind, bytes, leaf });
            leaves.push(leaf);
            frontier.push_telling(leaf, |height, n, hash| tiles.take(height, n, hash));
        }
        let committed = Committed { first, leaves, at };
        for change in commit.rows {
            put!(tx, put, &shard, change, &committed);
        }
        results.push(Ok(committed));
    }
    put!(tx, put_entries, &shard, &entries);
    put!(tx, put_personal, &shard, &personal);
    let touched = objects::touched(entries.iter().map(|e| (shard.place(e.seq), &e.bytes[..])));
    put!(tx, put_objects, &touched);
    put!(tx, put_tiles, &shard, &tiles.0);
    Ok((results, Tip { frontier, shard, latest }))
}

/// Whether a study that the commit ends has ended: a study ends once, in one way.
async fn has_ended(tx: &mut Tx<'_>, commit: &Commit) -> Result<bool, StoreError> {
    for change in &commit.rows {
        if let Change::StudyState(id, ..) = change
            && put!(tx, has_ended, id)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Puts the versions of a study, if the commit changes them: whether nobody else did first.
async fn put_registry(tx: &mut Tx<'_>, commit: &Commit) -> Result<bool, StoreError> {
    let of = |change: &&Change| matches!(change, Change::Registry(..));
    let registries = commit.rows.iter().filter(of).count();
    // Whatever comes after a change that was put would stay undone if it were refused.
    debug_assert!(registries == 0 || (registries == 1 && commit.round.is_none()));
    for change in &commit.rows {
        if let Change::Registry(registry, version) = change {
            let state = write_registry(registry);
            return Ok(put!(tx, put_registry, &registry.study, &state, *version));
        }
    }
    Ok(true)
}

/// Hashes of whole tiles: a level, a number in it, and the hash.
#[derive(Default)]
struct Tiles(Vec<(u32, u64, [u8; 32])>);

impl Tiles {
    /// Keeps a completed node if it is the root of a tile.
    fn take(&mut self, height: u32, n: u64, hash: Digest) {
        if height.is_multiple_of(TILE_HEIGHT) {
            self.0.push((height / TILE_HEIGHT, n, hash.0));
        }
    }

    /// Makes the stored hashes those that were just computed from the entries: they are a copy that only saves time.
    async fn mend(&self, writing: &mut Writing) -> Result<(), StoreError> {
        let rows = writing.store.tiles().await?.into_iter();
        let stored: BTreeMap<(i64, i64), Vec<u8>> =
            rows.map(|(level, n, hash)| ((level, n), hash)).collect();
        let same = |(level, n, hash): &(u32, u64, [u8; 32])| {
            let found = stored.get(&(i64::from(*level), n.cast_signed()));
            found.is_some_and(|found| found[..] == hash[..])
        };
        if stored.len() != self.0.len() || !self.0.iter().all(same) {
            let mut tx = match &mut writing.connection {
                Connection::Sqlite(pool) => Tx::Sqlite(pool.begin().await?),
                Connection::Postgres(session) => Tx::Postgres(session.connection()?.begin().await?),
            };
            let shard = writing.store.shard();
            put!(&mut tx, clear_tiles, shard);
            put!(&mut tx, put_tiles, shard, &self.0);
            tx.commit().await?;
        }
        Ok(())
    }
}
