//! The budget ledger on disk: what has been spent on each data set, over all studies and coordinators.
//!
//! A reservation is durable before training begins, and is committed when the update is sent; one that a
//! crash leaves behind counts as spent. At a limit the site refuses, whatever the coordinator says, and
//! the refusal costs nothing. The limits are Rényi filters, so studies may follow each other in any order and
//! depend on what came before (Feldman, Zrnic 2021).
//!
//! Entries are the chain of `falaj_core::ledger`. Its head is kept a second time beside the database, and a
//! third time in the updates that coordinators hold, so that an older copy put in its place is noticed.

use crate::{clock, head};
use falaj_core::{
    dp::{
        Reservation,
        rdp::{AccountantError, Epsilon, RdpCurve},
    },
    id::{Digest, SiteId, StudyId},
    ledger::{BrokenChain, Event, Ledger as Chain},
};
use sqlx::{
    Connection as _, Row as _, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Mutex, MutexGuard};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entries (
    seq    INTEGER PRIMARY KEY,
    body   BLOB NOT NULL,
    sha256 TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE IF NOT EXISTS releases (
    dataset TEXT NOT NULL,
    study   TEXT NOT NULL,
    name    TEXT NOT NULL,
    value   TEXT NOT NULL,
    PRIMARY KEY (dataset, study, name)
) STRICT;
CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'what is spent stays spent'); END;
CREATE TRIGGER IF NOT EXISTS entries_stay_as_they_are BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'what is spent stays spent'); END;
";

/// The database's name in the state folder.
const FILE: &str = "ledger.sqlite";
/// The newest head's name in the state folder.
const HEAD: &str = "ledger.head";

/// The ledger.
#[derive(Clone)]
pub struct Ledger {
    pool: SqlitePool,
    chain: Arc<Mutex<Chain>>,
    dir: PathBuf,
}

/// A limit that must hold after a reservation.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The most epsilon.
    pub epsilon: f64,
    /// At this delta.
    pub delta: f64,
}

/// What is charged.
#[derive(Clone, Debug)]
pub struct Charge<'a> {
    /// The data set that pays.
    pub dataset: &'a str,
    /// The study that it pays for.
    pub study: &'a StudyId,
    /// What for, in a word.
    pub purpose: &'a str,
    /// How much.
    pub cost: &'a RdpCurve,
    /// The data set's limit over all studies.
    pub dataset_limit: Limit,
    /// The study's own limit.
    pub study_limit: Limit,
}

/// Why nothing was reserved.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A limit would be passed.
    #[error("epsilon would be {would_be} at delta {delta:e}, the limit of {whose} is {limit}")]
    Spent {
        /// Whose limit.
        whose: String,
        /// What it would come to.
        would_be: Epsilon,
        /// The delta.
        delta: f64,
        /// The limit.
        limit: f64,
    },
    /// The settings have no guarantee.
    #[error(transparent)]
    Accountant(#[from] AccountantError),
    /// The database failed; nothing is trained then.
    #[error("the ledger failed, so nothing is trained: {0}")]
    Sql(#[from] sqlx::Error),
    /// The head beside the database cannot be read or written; nothing is trained then.
    #[error("{HEAD} cannot be read or written, so nothing is trained: {0}")]
    Io(#[from] io::Error),
    /// What lies in the ledger is not what was written there.
    #[error("the ledger was changed or damaged ({0}): restore its newest copy")]
    Broken(#[from] BrokenChain),
    /// There was a ledger, and it is gone.
    #[error(
        "{FILE} is missing in {}, and {HEAD} says that there was one: restore its newest copy; without it this site cannot know what it has spent", .0.display()
    )]
    Missing(PathBuf),
    /// It is another site's.
    #[error("the ledger in {} is {found}'s, this site is {ours}: `state.dir` names another site's folder", .dir.display())]
    OtherSite {
        /// Where.
        dir: PathBuf,
        /// Whose.
        found: Box<SiteId>,
        /// Who asks.
        ours: Box<SiteId>,
    },
    /// An older copy was put in its place.
    #[error(
        "the ledger does not hold entry {0}, which it once did: an older copy was put in its place; restore the newest one"
    )]
    RolledBack(Digest),
}

impl Ledger {
    /// Opens the ledger of `site` in its state folder, creating it if there never was one, and replays it.
    ///
    /// # Errors
    /// [`LedgerError`]: missing, damaged, of another site, or older than it was.
    pub async fn open(dir: &Path, site: &SiteId) -> Result<Self, LedgerError> {
        let path = dir.join(FILE);
        let newest = head::read(dir, HEAD)?;
        if newest.is_some() && !path.try_exists()? {
            return Err(LedgerError::Missing(dir.to_owned()));
        }
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        let this = Self { pool, chain: Arc::default(), dir: dir.to_owned() };
        let mut opened = Vec::new();
        {
            let mut connection = this.pool.acquire().await?;
            let mut chain = this.chain.lock().await;
            catch_up(&mut connection, &mut chain).await?;
            if let Some(found) = chain.site().filter(|found| *found != site) {
                let (found, ours) = (Box::new(found.clone()), Box::new(site.clone()));
                return Err(LedgerError::OtherSite { dir: dir.to_owned(), found, ours });
            }
            if chain.entries() == 0 {
                opened.push(Event::Opened { site: site.clone() });
                opened.extend(from_totals(&mut connection).await?);
            }
        }
        if !opened.is_empty() {
            this.append(move |_| Ok(opened)).await?;
        }
        if let Some(head) = newest
            && !this.holds(&head).await?
        {
            return Err(LedgerError::RolledBack(head));
        }
        Ok(this)
    }

    /// Reserves a cost, durably, if both limits hold afterwards.
    ///
    /// # Errors
    /// [`LedgerError::Spent`] with the figures, or why the ledger cannot say.
    pub async fn reserve(&self, charge: &Charge<'_>) -> Result<Reservation, LedgerError> {
        let chain = self
            .append(|chain| {
                let by_study = chain.spent(charge.dataset, Some(charge.study));
                let whole = chain.spent(charge.dataset, None);
                let checks = [
                    (format!("data set `{}`", charge.dataset), whole, charge.dataset_limit),
                    (format!("study `{}`", charge.study), by_study, charge.study_limit),
                ];
                for (whose, spent, limit) in checks {
                    let would_be = spent.compose(charge.cost).epsilon(limit.delta)?;
                    if would_be.value() > limit.epsilon {
                        let (delta, limit) = (limit.delta, limit.epsilon);
                        return Err(LedgerError::Spent { whose, would_be, delta, limit });
                    }
                }
                Ok(vec![Event::Reserved {
                    id: chain.next_id(),
                    dataset: charge.dataset.to_owned(),
                    study: charge.study.clone(),
                    purpose: charge.purpose.to_owned(),
                    cost: Box::new(charge.cost.clone()),
                }])
            })
            .await?;
        Ok(Reservation::from_ledger(chain.next_id() - 1))
    }

    /// Marks a reservation as used. It counted from the moment it was made.
    ///
    /// # Errors
    /// When the ledger fails; it counts all the same.
    pub async fn commit(&self, id: u64) -> Result<(), LedgerError> {
        self.append(|chain| {
            // What is sent again after a lost answer was committed before.
            Ok(if chain.is_pending(id) { vec![Event::Committed { id }] } else { Vec::new() })
        })
        .await
        .map(drop)
    }

    /// Gives a reservation back that nothing was made with: holding it proves that, because sealing consumes
    /// it. What is left over from a crash has no holder, and stays spent.
    ///
    /// # Errors
    /// When the ledger fails; it counts as spent then.
    pub async fn give_back(&self, reservation: Reservation) -> Result<(), LedgerError> {
        let id = reservation.id();
        self.append(|_| Ok(vec![Event::GivenBack { id }])).await.map(drop)
    }

    /// Writes down that a data set is about other people from now on; whoever calls has checked the steward's
    /// certificate and signature.
    ///
    /// # Errors
    /// When the statement is not about this ledger as it is now, or the ledger fails.
    pub async fn other_people(
        &self,
        statement: &str,
        signature: &[u8],
        steward: Digest,
    ) -> Result<(), LedgerError> {
        let signature = hex::encode(signature);
        let statement = statement.to_owned();
        self.append(move |_| Ok(vec![Event::Others { statement, signature, steward }]))
            .await
            .map(drop)
    }

    /// The chain as it is now, with what other processes of this site have added.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn chain(&self) -> Result<Chain, LedgerError> {
        let mut connection = self.pool.acquire().await?;
        let mut chain = self.chain.lock().await;
        catch_up(&mut connection, &mut chain).await?;
        Ok(chain.clone())
    }

    /// What has been spent on a data set: by one study, or by all.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn spent(
        &self,
        dataset: &str,
        study: Option<&StudyId>,
    ) -> Result<RdpCurve, LedgerError> {
        Ok(self.chain().await?.spent(dataset, study))
    }

    /// Whether an entry with this digest is in the ledger.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn holds(&self, entry: &Digest) -> Result<bool, LedgerError> {
        let row = sqlx::query("SELECT 1 FROM entries WHERE sha256 = ?")
            .bind(entry.to_string())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.is_some())
    }

    /// Every entry's bytes, in order.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn entries(&self) -> Result<Vec<Vec<u8>>, LedgerError> {
        let rows =
            sqlx::query("SELECT body FROM entries ORDER BY seq").fetch_all(&self.pool).await?;
        Ok(rows.iter().map(|r| r.get("body")).collect())
    }

    /// A value that was released before, and may be used again at no cost.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn released(
        &self,
        dataset: &str,
        study: &StudyId,
        name: &str,
    ) -> Result<Option<String>, LedgerError> {
        let row =
            sqlx::query("SELECT value FROM releases WHERE dataset = ? AND study = ? AND name = ?")
                .bind(dataset)
                .bind(study.as_str())
                .bind(name)
                .fetch_optional(&self.pool)
                .await?;
        Ok(row.map(|r| r.get("value")))
    }

    /// Remembers a released value, which a reservation has paid for, in place of an earlier one of the name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn release(
        &self,
        dataset: &str,
        study: &StudyId,
        name: &str,
        value: &str,
    ) -> Result<(), LedgerError> {
        sqlx::query("INSERT INTO releases (dataset, study, name, value) VALUES (?, ?, ?, ?) ON CONFLICT (dataset, study, name) DO UPDATE SET value = excluded.value")
            .bind(dataset)
            .bind(study.as_str())
            .bind(name)
            .bind(value)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Remembers a released value in place of the one that was read before, if that is still there; says whether
    /// it was.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn release_after(
        &self,
        dataset: &str,
        study: &StudyId,
        name: &str,
        (before, value): (Option<&str>, &str),
    ) -> Result<bool, LedgerError> {
        let query = match before {
            Some(_) => {
                "UPDATE releases SET value = ?4 WHERE dataset = ?1 AND study = ?2 AND name = ?3 AND value = ?5"
            }
            None => {
                "INSERT INTO releases (dataset, study, name, value) SELECT ?1, ?2, ?3, ?4 WHERE ?5 IS NULL ON CONFLICT DO NOTHING"
            }
        };
        let done = sqlx::query(query)
            .bind(dataset)
            .bind(study.as_str())
            .bind(name)
            .bind(value)
            .bind(before)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Adds the events that follow from the chain as it is, durably, and gives the chain after them.
    async fn append(
        &self,
        events: impl FnOnce(&Chain) -> Result<Vec<Event>, LedgerError>,
    ) -> Result<Chain, LedgerError> {
        let mut connection = self.pool.acquire().await?;
        let mut chain = self.chain.lock().await;
        let done = self.append_on(&mut connection, &mut chain, events).await;
        if matches!(done, Err(LedgerError::Sql(_))) {
            // A commit that fails for want of room leaves the connection in doubt about its
            // transaction; a fresh one has none.
            connection.close_on_drop();
        }
        done
    }

    async fn append_on(
        &self,
        connection: &mut SqliteConnection,
        chain: &mut MutexGuard<'_, Chain>,
        events: impl FnOnce(&Chain) -> Result<Vec<Event>, LedgerError>,
    ) -> Result<Chain, LedgerError> {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        catch_up(&mut tx, chain).await?;
        let mut next = Chain::clone(chain);
        for event in events(chain)? {
            let body = next.entry(&event, clock::now(), clock::nonce());
            let seq = next.entries();
            next.take(&body)?;
            sqlx::query("INSERT INTO entries (seq, body, sha256) VALUES (?, ?, ?)")
                .bind(seq.cast_signed())
                .bind(body)
                .bind(next.head().to_string())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        if next.head() != chain.head() {
            **chain = next.clone();
            // Should this fail, what was added counts as spent, and nobody gets to use it. An older head than the newest is
            // still an entry of the chain.
            head::write(&self.dir, HEAD, &next.head())?;
        }
        Ok(next)
    }
}

/// Takes in what was added to the database since.
async fn catch_up(connection: &mut SqliteConnection, chain: &mut Chain) -> Result<(), LedgerError> {
    let rows = sqlx::query("SELECT body FROM entries WHERE seq >= ? ORDER BY seq")
        .bind(chain.entries().cast_signed())
        .fetch_all(connection)
        .await?;
    rows.iter().try_for_each(|row| chain.take(row.get("body")))?;
    Ok(())
}

/// What a ledger of the first layout had spent, as entries of this one.
async fn from_totals(connection: &mut SqliteConnection) -> Result<Vec<Event>, LedgerError> {
    let old = sqlx::query("SELECT 1 FROM sqlite_schema WHERE name = 'totals'");
    if old.fetch_optional(&mut *connection).await?.is_none() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query("SELECT dataset, study, cost FROM totals ORDER BY dataset, study")
        .fetch_all(connection)
        .await?;
    let broken = || BrokenChain { seq: 0, what: "an earlier layout's total cannot be read".into() };
    let mut events = Vec::new();
    for (row, id) in rows.iter().zip(1..) {
        let cost = RdpCurve::parse(row.get("cost")).ok_or_else(broken)?;
        let study: &str = row.get("study");
        events.push(Event::Reserved {
            id,
            dataset: row.get("dataset"),
            study: study.parse().map_err(|_| broken())?,
            purpose: "spent before this layout".into(),
            cost: Box::new(cost),
        });
        events.push(Event::Committed { id });
    }
    Ok(events)
}
