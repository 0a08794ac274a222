//! Durable state: one SQLite file, or a PostgreSQL database. One writer, readers beside it, every commit synced.
//!
//! What changes together commits together: a round's new state, the rows that belong to it, and the log
//! entries that say so are one transaction. The writer is [`writer`]; rows are spelled in [`row`]. Each backend has its
//! own SQL and its own migrations; nothing lies between them and [`Store`].

pub mod objects;
mod postgres;
pub mod raw;
pub mod row;
mod sqlite;
pub mod writer;

pub use postgres::{
    init::{Initialised, init},
    session::{UrlError, url},
};

use crate::persons::Persons;
use falaj_core::{
    audit::{Entry, Kind, person::Person},
    id::{Digest, RoundId, SiteId, StudyId},
    merkle::TILE_WIDTH,
    round::AnyRound,
    succession::SUCCESSIONS_MAX,
};
use postgres::session::Session;
use row::{ExchangeRow, ModelRow, RegistryRow, Stamped, StudyRow, TimestampRow, UpdateRow, small};
use sqlx::{
    PgPool, SqlitePool,
    postgres::{PgConnectOptions, PgDatabaseError},
    sqlite::SqliteError,
};
use std::{collections::BTreeMap, path::PathBuf};

/// Cosignatures that are shown with a checkpoint: those who read notes take so many.
const COSIGNATURES_MAX: u32 = 60;

/// Entries: index, bytes and leaf hash.
type Entries = Vec<(u64, Vec<u8>, Digest)>;
/// Entries as they lie there: index, bytes, and what should be the leaf hash.
type RawEntries = Vec<(i64, Vec<u8>, Vec<u8>)>;
/// What is sealed of people: entry, pseudonym, and what was sealed.
type Personal = Vec<(i64, String, Vec<u8>)>;
/// Checkpoints: tree size and note.
type Checkpoints = Vec<(i64, String)>;
/// Hashes of whole tiles as they lie there: level, number, and what should be a hash.
type Tiles = Vec<(i64, i64, Vec<u8>)>;

/// Where state and log lie. Not to be printed: it may hold a password.
#[derive(Clone)]
pub enum Database {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL database, as the writer's role.
    Postgres(Box<PgConnectOptions>),
}

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("the disk is full")]
    Full(#[source] sqlx::Error),
    /// The database takes no writes for now.
    #[error("the database is read-only")]
    ReadOnly,
    /// The database server is away, or ended the session.
    #[error("the database server cannot be reached")]
    Unreachable(#[source] sqlx::Error),
    /// The database did not do it within its time.
    #[error("the database was too slow: {0}")]
    Slow(String),
    /// Another coordinator writes.
    #[error("another coordinator writes to this database ({0}): end it first")]
    Held(String),
    /// The database, or the role that it is used by, does not give what the log needs.
    #[error("{0}")]
    Unfit(String),
    /// What lies in the database is not what this coordinator has in memory.
    #[error("{0}: nothing is written any more; find out why, then start the coordinator again")]
    Lost(String),
    /// Anything else that the database says.
    #[error("the database failed")]
    Sql(#[source] sqlx::Error),
    /// What lies in the database is not what was written there.
    #[error("the database holds {0}, which cannot be read: restore it from a backup")]
    Corrupt(String),
    /// What was there was deleted.
    #[error("the contents of this shard of the log were deleted under the policy of retention")]
    Pruned,
    /// Migrations failed.
    #[error("the database's schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

impl From<sqlx::Error> for StoreError {
    fn from(e: sqlx::Error) -> Self {
        use sqlx::Error as E;
        let said = match &e {
            E::Database(said) => said,
            E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => {
                return Self::Unreachable(e);
            }
            _ => return Self::Sql(e),
        };
        if said.try_downcast_ref::<SqliteError>().is_some() {
            // SQLITE_FULL, and SQLITE_IOERR_SHMSIZE: no room for the WAL's index. Other codes of SQLITE_IOERR are a disk
            // that fails.
            return match said.code().and_then(|c| c.parse::<i32>().ok()) {
                Some(13 | 4874) => Self::Full(e),
                // SQLITE_READONLY.
                Some(code) if code & 0xff == 8 => Self::ReadOnly,
                _ => Self::Sql(e),
            };
        }
        let Some(said) = said.try_downcast_ref::<PgDatabaseError>() else { return Self::Sql(e) };
        match said.code() {
            "53100" => Self::Full(e),
            "25006" => Self::ReadOnly,
            // Cancelled by a timeout, or by an administrator; a lock that was not had in time.
            "57014" | "55P03" => Self::Slow(said.message().to_owned()),
            // The server is starting, stopping or full of sessions, or a session was ended.
            "53300" => Self::Unreachable(e),
            code if code.starts_with("57P") || code.starts_with("08") => Self::Unreachable(e),
            _ => Self::Sql(e),
        }
    }
}

/// Reads what the writer has committed, of one shard of the log: indices and sizes are that shard's.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    shard: Shard,
}

/// Levels of tiles that a tree can have.
const LEVELS: u32 = 8;

/// Which of the stored entries belong to one log. Shards lie one after the other: what is stored under `first` is
/// entry 0 of the shard, and checkpoints and cosignatures lie under the place where they end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// How many came before it.
    pub number: u32,
    /// Its origin, once it has been written down.
    pub origin: Option<String>,
    /// Where it begins.
    pub first: u64,
    /// Where the next one begins, if there is one.
    below: Option<u64>,
}

impl Shard {
    /// The first one, before its origin is written down.
    pub const FIRST: Self = Self { number: 0, origin: None, first: 0, below: None };

    /// The one that comes after this one of so many entries.
    #[must_use]
    pub fn next(&self, size: u64, origin: &str) -> Self {
        let (number, first) = (self.number + 1, self.first + size);
        Self { number, origin: Some(origin.to_owned()), first, below: None }
    }

    /// Where an index or a size of this shard lies, as databases count.
    fn place(&self, n: u64) -> i64 {
        let at = self.first.saturating_add(n).min(self.below.unwrap_or(u64::MAX));
        i64::try_from(at).unwrap_or(i64::MAX)
    }

    /// The index or the size of what lies there.
    fn index(&self, at: i64) -> u64 {
        at.cast_unsigned().wrapping_sub(self.first)
    }

    /// Under which number a level of tiles lies.
    const fn level(&self, level: u32) -> u32 {
        self.number * LEVELS + level
    }
}

#[derive(Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// The one connection that writes; [`writer::open`] takes it.
pub struct Writing {
    store: Store,
    connection: Connection,
    persons: Persons,
}

impl Writing {
    /// Another handle to the writer's connection, where it is to a SQLite file.
    #[must_use]
    pub fn sqlite(&self) -> Option<SqlitePool> {
        match &self.connection {
            Connection::Sqlite(pool) => Some(pool.clone()),
            Connection::Postgres(_) => None,
        }
    }

    /// The same, which seals what entries commit to about these people. Without them the writer refuses entries of people.
    #[must_use]
    pub fn sealing(self, persons: Persons) -> Self {
        Self { persons, ..self }
    }

    /// To read what is written by it.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Goes on in another shard; the writer's first commit there has to write it down ([`writer::Change::Shard`]). Gives
    /// the handle to read it by.
    pub fn enter(&mut self, shard: Shard) -> Store {
        self.store.shard = shard;
        self.store.clone()
    }
}

enum Connection {
    Sqlite(SqlitePool),
    Postgres(Box<Session>),
}

/// Asks the backend that is there.
macro_rules! ask {
    ($store:expr, $name:ident $(, $argument:expr)*) => {
        match &$store.pool {
            Pool::Sqlite(pool) => sqlite::$name(pool $(, $argument)*).await?,
            Pool::Postgres(pool) => {
                postgres::session::reading(postgres::$name(pool $(, $argument)*)).await?
            }
        }
    };
}

use ask;

impl Store {
    /// Opens the database for a coordinator. A SQLite file is made if there is none and its schema brought up to date; in
    /// a PostgreSQL database an owner has done that ([`init`]), and this becomes its one writer.
    ///
    /// # Errors
    /// [`StoreError`]; with PostgreSQL also when it is not fit to hold a log, when the role may do more than it should,
    /// and when another coordinator writes.
    pub async fn open(database: &Database) -> Result<(Self, Writing), StoreError> {
        let (store, connection) = match database {
            Database::Sqlite(path) => {
                let writer = sqlite::writer(path).await?;
                let pool = Pool::Sqlite(sqlite::readers(path).await?);
                (Self { pool, shard: Shard::FIRST }, Connection::Sqlite(writer))
            }
            Database::Postgres(options) => {
                let session = Session::open(options).await?;
                let pool = Pool::Postgres(postgres::session::readers(options).await?);
                (Self { pool, shard: Shard::FIRST }, Connection::Postgres(Box::new(session)))
            }
        };
        let store = store.newest_shard().await?;
        Ok((store.clone(), Writing { store, connection, persons: Persons::default() }))
    }

    /// Opens a database that is there, to read only; its schema must be that of this version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read(database: &Database) -> Result<Self, StoreError> {
        let pool = match database {
            Database::Sqlite(path) => Pool::Sqlite(sqlite::readers(path).await?),
            Database::Postgres(options) => {
                let pool = postgres::session::readers(options).await?;
                postgres::init::check_schema(&mut *pool.acquire().await?).await?;
                Pool::Postgres(pool)
            }
        };
        Self { pool, shard: Shard::FIRST }.newest_shard().await
    }

    /// Which shard this handle speaks of.
    #[must_use]
    pub const fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Whether another shard goes on from this one.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.shard.below.is_some()
    }

    /// Whether the contents of this shard were deleted, or are being so.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pruned(&self) -> Result<bool, StoreError> {
        Ok(self.ended() && ask!(self, pruned, self.shard.number))
    }

    /// That the contents of this shard are there.
    ///
    /// # Errors
    /// [`StoreError::Pruned`], and why that cannot be said.
    pub async fn check_whole(&self) -> Result<(), StoreError> {
        if self.pruned().await? { Err(StoreError::Pruned) } else { Ok(()) }
    }

    /// A handle to each shard, oldest first. There is always one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn shards(&self) -> Result<Vec<Self>, StoreError> {
        let rows = ask!(self, shards);
        let mut shards: Vec<Shard> = Vec::with_capacity(rows.len().max(1));
        for (number, origin, first) in rows {
            let first = first.cast_unsigned();
            if let Some(before) = shards.last_mut() {
                before.below = Some(first);
            }
            let number = small(number)?;
            shards.push(Shard { number, origin: Some(origin), first, below: None });
        }
        if shards.is_empty() {
            shards.push(Shard::FIRST);
        }
        let handle = |shard| Self { pool: self.pool.clone(), shard };
        Ok(shards.into_iter().map(handle).collect())
    }

    async fn newest_shard(&self) -> Result<Self, StoreError> {
        let newest = self.shards().await?.pop();
        newest.ok_or_else(|| StoreError::Corrupt("no shard".into()))
    }

    /// The statements of who speaks for the log after whom (`falaj_core::succession`), over all shards, oldest first; with
    /// `below` as far as they stand before that index of this one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn successions(&self, below: Option<u64>) -> Result<Vec<String>, StoreError> {
        let mut found = BTreeMap::new();
        for kind in [Kind::LogOpened, Kind::KeyRotated] {
            let below = below.map_or(i64::MAX, |below| self.shard.place(below));
            let most = u32::try_from(SUCCESSIONS_MAX).unwrap_or(u32::MAX);
            for (seq, bytes, _) in ask!(self, entries, 0, below, most, Some(kind.as_str())) {
                let entry = Entry::parse(&bytes)
                    .map_err(|e| StoreError::Corrupt(format!("an entry that is none ({e})")))?;
                if let Ok(statement) = entry.body().text("succession") {
                    found.insert(seq, statement.to_owned());
                }
            }
        }
        Ok(found.into_values().collect())
    }

    /// Every study, in the order of submission.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn studies(&self) -> Result<Vec<StudyRow>, StoreError> {
        ask!(self, studies).into_iter().map(StudyRow::try_from).collect()
    }

    /// One study.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn study(&self, id: &StudyId) -> Result<Option<StudyRow>, StoreError> {
        ask!(self, study, id).map(StudyRow::try_from).transpose()
    }

    /// The study's newest round with its version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest_round(
        &self,
        study: &StudyId,
    ) -> Result<Option<(AnyRound, u64)>, StoreError> {
        ask!(self, newest_round, study)
            .map(|(number, version, state)| {
                let id = RoundId { study: study.clone(), number: small(number)? };
                Ok((row::read_round(id, &state)?, version.cast_unsigned()))
            })
            .transpose()
    }

    /// Every round of a study, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rounds(&self, study: &StudyId) -> Result<Vec<AnyRound>, StoreError> {
        read_rounds(study, ask!(self, rounds, study))
    }

    /// Rounds of a study, in order, at most `limit` of them: those after one, by its number and attempt, or from the first on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rounds_after(
        &self,
        study: &StudyId,
        after: Option<(u32, u32)>,
        limit: u32,
    ) -> Result<Vec<AnyRound>, StoreError> {
        let (number, attempt) = after.map_or((-1, -1), |(n, a)| (i64::from(n), i64::from(a)));
        read_rounds(study, ask!(self, rounds_after, study, number, attempt, limit))
    }

    /// Rounds of a study, the newest first, at most `limit` of them: those before one, by its number and attempt, or from the last on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rounds_before(
        &self,
        study: &StudyId,
        before: Option<(u32, u32)>,
        limit: u32,
    ) -> Result<Vec<AnyRound>, StoreError> {
        let last = (i64::MAX, i64::MAX);
        let (number, attempt) = before.map_or(last, |(n, a)| (i64::from(n), i64::from(a)));
        read_rounds(study, ask!(self, rounds_before, study, number, attempt, limit))
    }

    /// Every counted update of a study, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn updates(&self, study: &StudyId) -> Result<Vec<UpdateRow>, StoreError> {
        ask!(self, updates, study).into_iter().map(UpdateRow::try_from).collect()
    }

    /// The newest update of `site` that was counted, in any study.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest_update(&self, site: &SiteId) -> Result<Option<UpdateRow>, StoreError> {
        ask!(self, newest_update, &site.to_string()).map(UpdateRow::try_from).transpose()
    }

    /// The counted update of `site` with this payload in any try of the round.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn update(
        &self,
        round: &RoundId,
        site: &str,
        payload: &Digest,
    ) -> Result<Option<UpdateRow>, StoreError> {
        ask!(self, update, round, site, &payload.to_string()).map(UpdateRow::try_from).transpose()
    }

    /// The sites whose updates were counted in one try of a round.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn counted_sites(
        &self,
        round: &RoundId,
        attempt: u32,
    ) -> Result<Vec<SiteId>, StoreError> {
        let sites = ask!(self, counted_sites, round, attempt);
        sites.iter().map(|site| row::parsed(site)).collect()
    }

    /// What sites sent in one try of a masked round, phase by phase, in the order in which it came.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn exchanges(
        &self,
        round: &RoundId,
        attempt: u32,
    ) -> Result<Vec<ExchangeRow>, StoreError> {
        ask!(self, exchanges, round, attempt).into_iter().map(ExchangeRow::try_from).collect()
    }

    /// What sites counted about a study's candidates, round by round.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn evaluations(&self, study: &StudyId) -> Result<Vec<ExchangeRow>, StoreError> {
        ask!(self, evaluations, study).into_iter().map(ExchangeRow::try_from).collect()
    }

    /// Every model of a study, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn models(&self, study: &StudyId) -> Result<Vec<ModelRow>, StoreError> {
        ask!(self, models, study).into_iter().map(ModelRow::try_from).collect()
    }

    /// The versions of a study's model, if there are any.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn registry(&self, study: &StudyId) -> Result<Option<RegistryRow>, StoreError> {
        ask!(self, registry, study).map(RegistryRow::try_from).transpose()
    }

    /// The versions of studies whose names come after this one, of so many studies at most, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn registries(
        &self,
        after: &str,
        limit: u32,
    ) -> Result<Vec<RegistryRow>, StoreError> {
        ask!(self, registries, after, limit).into_iter().map(RegistryRow::try_from).collect()
    }

    /// What was signed of a version, if it was: a DSSE envelope.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn provenance(
        &self,
        study: &StudyId,
        number: u32,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(ask!(self, provenance, study, number))
    }

    /// Entries from index `from` on, at most `limit`, below `below`, of one kind if asked: index, bytes and
    /// leaf hash. Of a kind, those whose contents were deleted are left out.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Pruned`] when contents of one of any kind were deleted.
    pub async fn entries(
        &self,
        from: u64,
        below: u64,
        limit: u32,
        kind: Option<&str>,
    ) -> Result<Vec<(u64, Vec<u8>, Digest)>, StoreError> {
        let (from, below) = (self.shard.place(from), self.shard.place(below));
        let rows = ask!(self, entries, from, below, limit, kind);
        if rows.iter().any(|(_, bytes, _)| bytes.is_empty()) {
            return Err(StoreError::Pruned);
        }
        Ok(self.indexed(rows))
    }

    /// Entries in the log, if none is missing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn size(&self) -> Result<u64, StoreError> {
        // What lies before this shard begins, when nothing of it is there yet, is not in it.
        let below = self.shard.place(u64::MAX);
        Ok(ask!(self, size, below).max(self.shard.place(0)).cast_unsigned() - self.shard.first)
    }

    /// Entries by their index in this shard.
    fn indexed(&self, rows: Entries) -> Entries {
        let index = |(seq, bytes, leaf): (u64, _, _)| (seq - self.shard.first, bytes, leaf);
        rows.into_iter().map(index).collect()
    }

    /// Entries from index `from` on, at most `limit`, as they lie there, whatever was done to them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn raw_entries(
        &self,
        from: u64,
        limit: u32,
    ) -> Result<Vec<(i64, Vec<u8>, Vec<u8>)>, StoreError> {
        let (from, below) = (self.shard.place(from), self.shard.place(u64::MAX));
        let rows = ask!(self, raw_entries, from, below, limit).into_iter();
        let index = |seq: i64| self.shard.index(seq).cast_signed();
        Ok(rows.map(|(seq, bytes, leaf)| (index(seq), bytes, leaf)).collect())
    }

    /// The newest signed checkpoint: its size and note.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest_checkpoint(&self) -> Result<Option<(u64, String)>, StoreError> {
        let (after, until) = (self.shard.place(0), self.shard.place(u64::MAX));
        let newest = ask!(self, newest_checkpoint, after, until);
        Ok(newest.map(|(size, note)| (self.shard.index(size), note)))
    }

    /// The signed checkpoint of this size, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn checkpoint(&self, tree_size: u64) -> Result<Option<String>, StoreError> {
        if tree_size == 0 {
            // None is signed of nothing, and one of the shard before would lie there.
            return Ok(None);
        }
        Ok(ask!(self, checkpoint, self.shard.place(tree_size)))
    }

    /// Signed checkpoints of sizes after this one, at most `limit`, as they lie there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn checkpoints(
        &self,
        after: u64,
        limit: u32,
    ) -> Result<Vec<(u64, String)>, StoreError> {
        let (after, until) = (self.shard.place(after), self.shard.place(u64::MAX));
        let rows = ask!(self, checkpoints, after, until, limit).into_iter();
        Ok(rows.map(|(size, note)| (self.shard.index(size), note)).collect())
    }

    /// The cosignatures of the checkpoint of this size, one line each.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cosignatures(&self, tree_size: u64) -> Result<Vec<String>, StoreError> {
        Ok(ask!(self, cosignatures, self.shard.place(tree_size)))
    }

    /// Every witness, and entries in the newest checkpoint that it has cosigned.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn witnesses(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let (after, until) = (self.shard.place(0), self.shard.place(u64::MAX));
        let witnesses = ask!(self, witnesses, after, until).into_iter();
        Ok(witnesses.map(|(witness, newest)| (witness, self.shard.index(newest))).collect())
    }

    /// The sizes of the newest checkpoints that each witness has cosigned, up to `below`, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn witnessed(&self, below: u64) -> Result<Vec<u64>, StoreError> {
        let (after, until) = (self.shard.place(0), self.shard.place(below));
        let sizes = ask!(self, witnessed, after, until).into_iter();
        Ok(sizes.map(|size| self.shard.index(size)).collect())
    }

    /// Time-stamps of checkpoints of sizes after this one, whose entries lie below `below`, at most `limit`, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn timestamps(
        &self,
        after: u64,
        below: u64,
        limit: u32,
    ) -> Result<Vec<TimestampRow>, StoreError> {
        let what = Stamped::Checkpoint;
        let shard = &self.shard;
        let sizes = (shard.place(after), shard.place(u64::MAX));
        let indices = (shard.place(0), shard.place(below));
        let rows = ask!(self, timestamps, what.as_str(), sizes, indices, limit);
        rows.into_iter().map(|columns| TimestampRow::read(what, shard, columns)).collect()
    }

    /// The newest time-stamp of a checkpoint.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest_timestamp(&self) -> Result<Option<TimestampRow>, StoreError> {
        let what = Stamped::Checkpoint;
        let sizes = (self.shard.place(0), self.shard.place(u64::MAX));
        let columns = ask!(self, newest_timestamp, what.as_str(), sizes);
        columns.map(|columns| TimestampRow::read(what, &self.shard, columns)).transpose()
    }

    /// The time-stamp of a report with this digest, as the authority answered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn report_timestamp(&self, report: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(ask!(self, timestamp_of, Stamped::Report.as_str(), &report.to_string()))
    }

    /// The hashes of tile `n` of a level of tiles, as many as there are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tile(&self, level: u32, n: u64) -> Result<Vec<Digest>, StoreError> {
        let (from, below) = (n * TILE_WIDTH, (n + 1) * TILE_WIDTH);
        let hashes = if level == 0 {
            ask!(self, leaves, self.shard.place(from), self.shard.place(below))
        } else {
            ask!(self, tile_hashes, self.shard.level(level), bound(from), bound(below))
        };
        hashes.iter().map(|hash| row::digest_of(hash)).collect()
    }

    /// The hashes of whole tiles as they lie there: level, number, hash.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tiles(&self) -> Result<Vec<(i64, i64, Vec<u8>)>, StoreError> {
        let (from, below) = (self.shard.level(0), self.shard.level(LEVELS));
        let rows = ask!(self, tiles, from, below).into_iter();
        let level = |level: i64| level - i64::from(from);
        Ok(rows.map(|(of, n, hash)| (level(of), n, hash)).collect())
    }

    /// Every certificate that an entry may name: digest and DER.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn certificates(&self) -> Result<Vec<(Digest, Vec<u8>)>, StoreError> {
        let certificates = ask!(self, certificates).into_iter();
        certificates.map(|(digest, der)| Ok((row::parsed(&digest)?, der))).collect()
    }

    /// One certificate, DER, if it was seen.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn certificate(&self, sha256: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let sha256 = sha256.to_string();
        Ok(ask!(self, certificate, &sha256))
    }

    /// What entries from one index to below another commit to about people, sealed: entry, person, and what was sealed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn personal(
        &self,
        from: u64,
        below: u64,
    ) -> Result<Vec<(u64, Person, Vec<u8>)>, StoreError> {
        let (from, below) = (self.shard.place(from), self.shard.place(below));
        let rows = ask!(self, personal, from, below).into_iter();
        let index = |seq| self.shard.index(seq);
        rows.map(|(seq, person, sealed)| Ok((index(seq), row::parsed(&person)?, sealed))).collect()
    }

    /// Every certificate of a person that an entry may commit to, sealed: person, tag, and what was sealed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn personal_certificates(
        &self,
    ) -> Result<Vec<(Person, Digest, Vec<u8>)>, StoreError> {
        let rows = ask!(self, personal_certificates).into_iter();
        rows.map(|(person, tag, sealed)| Ok((row::parsed(&person)?, row::parsed(&tag)?, sealed)))
            .collect()
    }

    /// The newest entry that touches this, of any kind but these.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest_of(&self, term: &str, but: &[Kind]) -> Result<Option<u64>, StoreError> {
        let Some(id) = self.term(term).await? else { return Ok(None) };
        let but: Vec<&str> = but.iter().map(|kind| kind.as_str()).collect();
        let (from, below) = (self.shard.place(0), self.shard.place(u64::MAX));
        Ok(ask!(self, newest_of, id, from, below, &but).map(|seq| self.shard.index(seq)))
    }

    /// Every policy file that was ever in force: set, name and bytes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn policies(&self) -> Result<Vec<(Digest, String, Vec<u8>)>, StoreError> {
        let policies = ask!(self, policies).into_iter();
        policies.map(|(set, file, bytes)| Ok((row::parsed(&set)?, file, bytes))).collect()
    }
}

/// Rounds of a study, as they are stored.
fn read_rounds(study: &StudyId, rows: Vec<(i64, String)>) -> Result<Vec<AnyRound>, StoreError> {
    let round = |(number, state): (i64, String)| {
        row::read_round(RoundId { study: study.clone(), number: small(number)? }, &state)
    };
    rows.into_iter().map(round).collect()
}

/// A number as databases count, or a bound beyond what they do.
fn bound(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
