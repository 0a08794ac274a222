//! The one writer: commits what callers hand in, in groups, each group one durable transaction.
//!
//! It gives log entries their places, hashes them, and keeps the tree's frontier. A caller is answered
//! only after its commit is durable; if anything fails, nothing has happened, in memory either.

use super::{
    StoreError, objects,
    row::{ExchangeRow, ModelRow, StudyRow, UpdateRow, write_round},
};
use crate::{clock, metrics::Metrics};
use anyhow::Context as _;
use falaj_core::{
    audit::{Draft, Entry},
    id::{Digest, StudyId},
    merkle::{Frontier, TILE_HEIGHT, leaf_hash},
    note::{Checkpoint, NoteSigner},
    round::AnyRound,
    time::Timestamp,
};
use sqlx::{Connection as _, QueryBuilder, Row as _, Sqlite, SqliteConnection, SqlitePool};
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
/// Rows of one `INSERT`, well below SQLite's bound on bound values.
pub(super) const ROWS_PER_INSERT: usize = 1_024;

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
    /// A certificate that entries name.
    Certificate(Digest, Vec<u8>),
    /// A policy file that is in force.
    Policy(Digest, String, Vec<u8>),
    /// A signed checkpoint.
    Checkpoint(u64, String),
    /// A witness's cosignature of a checkpoint: the tree's size, who, and the line.
    Cosignature(u64, String, String),
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
    /// Somebody else changed the round first.
    #[error("the round was changed by somebody else")]
    Conflict,
    /// It took too long. What was still waiting is not begun any more; what was under way may yet become durable, so an
    /// entry can be there of what was then refused, and never the other way round.
    #[error("it was not durable within {} seconds", COMMIT_WAIT.as_secs())]
    Slow,
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The database failed.
    #[error("the database failed: {0}")]
    Failed(String),
}

impl From<StoreError> for CommitError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Full(_) => Self::Full,
            other => Self::Failed(format!("{:#}", anyhow::Error::from(other))),
        }
    }
}

/// A tree head: size and root.
pub type Head = (u64, Digest);

/// What one transaction gives: each commit's result, and the frontier and the latest time after them.
type Group = (Vec<Result<Committed, CommitError>>, Frontier, Timestamp);

/// A commit, until when it may begin, and who waits for it.
type Waiting = (Commit, Instant, oneshot::Sender<Result<Committed, CommitError>>);

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
        let (reply, answer) = oneshot::channel();
        let until = Instant::now() + COMMIT_WAIT;
        self.queue.try_send((commit, until, reply)).map_err(|_| CommitError::Busy)?;
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

    /// Tells of every new durable tree head.
    #[must_use]
    pub fn heads(&self) -> watch::Receiver<Head> {
        self.head.clone()
    }
}

/// The writer itself; run it as a task.
pub struct Service {
    pool: SqlitePool,
    queue: mpsc::Receiver<Waiting>,
    frontier: Frontier,
    /// When the newest entry was committed: none may be earlier, whatever the clock does.
    latest: Timestamp,
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
    pool: SqlitePool,
    signer: &NoteSigner,
    elsewhere: Option<&str>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<(Writer, Service)> {
    use futures_util::TryStreamExt as _;
    let stored: Option<String> =
        sqlx::query("SELECT note FROM log_checkpoints ORDER BY tree_size DESC LIMIT 1")
            .fetch_optional(&pool)
            .await?
            .map(|r| r.get("note"));
    let signed = stored.iter().map(String::as_str).chain(elsewhere);
    let signed: Vec<Checkpoint> = signed
        .map(|note| Checkpoint::open(note, signer.verifier()))
        .collect::<Result<_, _>>()
        .context("a checkpoint of this log cannot be read")?;
    let mut frontier = Frontier::new();
    let mut tiles = Tiles::default();
    let mut newest = Vec::new();
    {
        let mut rows =
            sqlx::query("SELECT seq, bytes, leaf FROM log_entries ORDER BY seq").fetch(&pool);
        while let Some(row) = rows.try_next().await? {
            let seq = row.get::<i64, _>("seq").cast_unsigned();
            let leaf = leaf_hash(row.get("bytes"));
            anyhow::ensure!(
                seq == frontier.size() && leaf.0 == row.get::<&[u8], _>("leaf"),
                "log entry {} is missing or was changed: restore the database from a backup",
                frontier.size()
            );
            frontier.push_telling(leaf, |height, n, hash| tiles.take(height, n, hash));
            newest.clear();
            newest.extend_from_slice(row.get("bytes"));
            for signed in signed.iter().filter(|s| s.tree_size == frontier.size()) {
                anyhow::ensure!(
                    signed.root_hash == frontier.root(),
                    "the log's first {} entries have root {}, but root {} was signed: the log was rewritten",
                    signed.tree_size,
                    frontier.root(),
                    signed.root_hash
                );
            }
        }
    }
    for signed in signed {
        anyhow::ensure!(
            frontier.size() >= signed.tree_size,
            "the log has {} entries, but a checkpoint of {} was signed: an older database was restored",
            frontier.size(),
            signed.tree_size
        );
    }
    tiles.mend(&pool).await?;
    objects::mend(&pool).await?;
    let latest = if newest.is_empty() { Timestamp::from_millis(0) } else { committed_at(&newest)? };
    let (queue, waiting) = mpsc::channel(QUEUE);
    let (head, heads) = watch::channel((frontier.size(), frontier.root()));
    let writer = Writer { queue, head: heads, metrics: metrics.clone() };
    Ok((writer, Service { pool, queue: waiting, frontier, latest, head, metrics }))
}

/// When an entry was committed.
fn committed_at(bytes: &[u8]) -> anyhow::Result<Timestamp> {
    let entry = Entry::parse(bytes).context("the newest log entry cannot be read")?;
    let ts: jiff::Timestamp = entry.ts.parse().context("the newest log entry has no time")?;
    Ok(Timestamp::from_millis(ts.as_millisecond()))
}

impl Service {
    /// Commits until every handle is gone.
    pub async fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP);
        while self.queue.recv_many(&mut group, GROUP).await > 0 {
            let started = Instant::now();
            let (commits, replies): (Vec<_>, Vec<_>) =
                group.drain(..).map(|(commit, until, reply)| ((commit, until), reply)).unzip();
            let size = commits.len();
            match self.write(commits).await {
                Ok((results, frontier, latest)) => {
                    self.frontier = frontier;
                    self.latest = latest;
                    self.head.send_replace((self.frontier.size(), self.frontier.root()));
                    for (reply, result) in replies.into_iter().zip(results) {
                        // A caller that has gone away does not undo what is durable.
                        let _ = reply.send(result);
                    }
                }
                Err(e) => {
                    let e = CommitError::from(e);
                    tracing::error!(error = %e, commits = size, "nothing was committed");
                    for reply in replies {
                        let _ = reply.send(Err(e.clone()));
                    }
                }
            }
            self.metrics.committed(size, started.elapsed());
        }
    }

    /// One transaction. Gives each commit's result and the frontier after them.
    async fn write(&self, commits: Vec<(Commit, Instant)>) -> Result<Group, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let done = self.write_on(&mut connection, commits).await;
        if done.is_err() {
            // A commit that fails for want of room leaves the connection in doubt about its
            // transaction; a fresh one has none.
            connection.close_on_drop();
        }
        done
    }

    async fn write_on(
        &self,
        connection: &mut SqliteConnection,
        commits: Vec<(Commit, Instant)>,
    ) -> Result<Group, StoreError> {
        let mut frontier = self.frontier.clone();
        let mut latest = self.latest;
        let mut tiles = Tiles::default();
        let mut entries = Vec::new();
        let mut results = Vec::with_capacity(commits.len());
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        for (commit, until) in commits {
            if Instant::now() >= until {
                results.push(Err(CommitError::Slow));
                continue;
            }
            if let Some((round, version)) = &commit.round
                && !put_round(&mut tx, round, *version).await?
            {
                results.push(Err(CommitError::Conflict));
                continue;
            }
            let first = frontier.size();
            latest = latest.max(clock::now());
            let at = latest;
            let mut leaves = Vec::with_capacity(commit.entries.len());
            for draft in commit.entries {
                let kind = draft.kind();
                let bytes = draft.finish(frontier.size(), at, clock::nonce());
                let leaf = leaf_hash(&bytes);
                entries.push((frontier.size(), kind, bytes, leaf));
                leaves.push(leaf);
                frontier.push_telling(leaf, |height, n, hash| tiles.take(height, n, hash));
            }
            let committed = Committed { first, leaves, at };
            for change in commit.rows {
                put(&mut tx, change, &committed).await?;
            }
            results.push(Ok(committed));
        }
        for rows in entries.chunks(ROWS_PER_INSERT) {
            let mut insert: QueryBuilder<Sqlite> =
                QueryBuilder::new("INSERT INTO log_entries (seq, kind, bytes, leaf) ");
            insert.push_values(rows, |mut row, (seq, kind, bytes, leaf)| {
                row.push_bind(seq.cast_signed())
                    .push_bind(kind.as_str())
                    .push_bind(&bytes[..])
                    .push_bind(&leaf.0[..]);
            });
            insert.build().execute(&mut *tx).await?;
        }
        objects::put(&mut tx, entries.iter().map(|(seq, _, bytes, _)| (*seq, &bytes[..]))).await?;
        tiles.put(&mut tx).await?;
        tx.commit().await?;
        Ok((results, frontier, latest))
    }
}

/// Hashes of whole tiles: a level, a number in it, and the hash.
#[derive(Default)]
struct Tiles(Vec<(i64, i64, Digest)>);

impl Tiles {
    /// Keeps a completed node if it is the root of a tile.
    fn take(&mut self, height: u32, n: u64, hash: Digest) {
        if height.is_multiple_of(TILE_HEIGHT) {
            self.0.push((i64::from(height / TILE_HEIGHT), n.cast_signed(), hash));
        }
    }

    async fn put(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        for rows in self.0.chunks(ROWS_PER_INSERT) {
            let mut insert: QueryBuilder<Sqlite> =
                QueryBuilder::new("INSERT INTO log_tiles (level, n, hash) ");
            insert.push_values(rows, |mut row, (level, n, hash)| {
                row.push_bind(*level).push_bind(*n).push_bind(&hash.0[..]);
            });
            insert.build().execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Makes the stored hashes those that were just computed from the entries: they are a copy that only saves time.
    async fn mend(&self, pool: &SqlitePool) -> Result<(), sqlx::Error> {
        let rows = sqlx::query("SELECT level, n, hash FROM log_tiles").fetch_all(pool).await?;
        let stored: BTreeMap<(i64, i64), Vec<u8>> =
            rows.iter().map(|r| ((r.get("level"), r.get("n")), r.get("hash"))).collect();
        let same = |(level, n, hash): &(i64, i64, Digest)| {
            stored.get(&(*level, *n)).is_some_and(|found| found[..] == hash.0)
        };
        if stored.len() != self.0.len() || !self.0.iter().all(same) {
            let mut tx = pool.begin().await?;
            sqlx::query("DELETE FROM log_tiles").execute(&mut *tx).await?;
            self.put(&mut tx).await?;
            tx.commit().await?;
        }
        Ok(())
    }
}

/// Whether the round was still at `version`; it is one further then.
async fn put_round(
    tx: &mut SqliteConnection,
    round: &AnyRound,
    version: u64,
) -> Result<bool, StoreError> {
    let id = round.id();
    let state = write_round(round);
    let done = if version == 0 {
        sqlx::query("INSERT INTO rounds (study, number, attempt, version, state) VALUES (?, ?, ?, 1, ?) ON CONFLICT DO NOTHING")
            .bind(id.study.as_str())
            .bind(id.number)
            .bind(round.spec().attempt)
            .bind(state)
            .execute(tx)
            .await?
    } else {
        sqlx::query("UPDATE rounds SET state = ?, version = version + 1 WHERE study = ? AND number = ? AND attempt = ? AND version = ?")
            .bind(state)
            .bind(id.study.as_str())
            .bind(id.number)
            .bind(round.spec().attempt)
            .bind(version.cast_signed())
            .execute(tx)
            .await?
    };
    Ok(done.rows_affected() == 1)
}

async fn put(
    tx: &mut SqliteConnection,
    change: Change,
    committed: &Committed,
) -> Result<(), StoreError> {
    match change {
        Change::Study(s) => {
            sqlx::query("INSERT INTO studies (id, sha256, yaml, state, submitted_ms, submitted_by) VALUES (?, ?, ?, ?, ?, ?)")
                .bind(s.id.as_str())
                .bind(s.sha256.to_string())
                .bind(s.yaml)
                .bind(s.state)
                .bind(committed.at.as_millis())
                .bind(s.submitted_by)
                .execute(tx)
                .await?
        }
        Change::StudyState(id, state, reason) => {
            sqlx::query("UPDATE studies SET state = ?, reason = ? WHERE id = ?")
                .bind(state)
                .bind(reason)
                .bind(id.as_str())
                .execute(tx)
                .await?
        }
        Change::Update(u, entry) => {
            sqlx::query("INSERT INTO updates (study, number, attempt, site, header, signature, payload, bytes, epsilon, log_index, leaf, committed_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
                .bind(u.round.study.as_str())
                .bind(u.round.number)
                .bind(u.attempt)
                .bind(u.site.to_string())
                .bind(u.header)
                .bind(u.signature)
                .bind(u.payload.to_string())
                .bind(u.bytes.cast_signed())
                .bind(u.epsilon)
                .bind((committed.first + entry as u64).cast_signed())
                .bind(committed.leaves[entry].0.to_vec())
                .bind(committed.at.as_millis())
                .execute(tx)
                .await?
        }
        Change::Exchange(e) => {
            sqlx::query("INSERT INTO exchanges (study, number, attempt, phase, site, messages) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET messages = excluded.messages")
                .bind(e.round.study.as_str())
                .bind(e.round.number)
                .bind(e.attempt)
                .bind(e.phase)
                .bind(e.site.to_string())
                .bind(e.messages)
                .execute(tx)
                .await?
        }
        Change::Model(m) => {
            sqlx::query("INSERT INTO models (study, number, sha256, published_ms) VALUES (?, ?, ?, ?)")
                .bind(m.study.as_str())
                .bind(m.number)
                .bind(m.sha256.to_string())
                .bind(committed.at.as_millis())
                .execute(tx)
                .await?
        }
        Change::Certificate(digest, der) => {
            sqlx::query("INSERT INTO certificates (sha256, der) VALUES (?, ?) ON CONFLICT DO NOTHING")
                .bind(digest.to_string())
                .bind(der)
                .execute(tx)
                .await?
        }
        Change::Policy(set, file, bytes) => {
            sqlx::query("INSERT INTO policies (set_sha256, file, bytes) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(set.to_string())
                .bind(file)
                .bind(bytes)
                .execute(tx)
                .await?
        }
        Change::Checkpoint(size, note) => {
            sqlx::query("INSERT INTO log_checkpoints (tree_size, note) VALUES (?, ?) ON CONFLICT DO NOTHING")
                .bind(size.cast_signed())
                .bind(note)
                .execute(tx)
                .await?
        }
        Change::Cosignature(size, witness, line) => {
            sqlx::query("INSERT INTO log_cosignatures (tree_size, witness, line) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(size.cast_signed())
                .bind(witness)
                .bind(line)
                .execute(tx)
                .await?
        }
    };
    Ok(())
}
