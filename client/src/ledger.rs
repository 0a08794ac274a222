//! The budget ledger: what has been spent on each data set, over all studies.
//!
//! A reservation is durable before training begins, and is committed when the update is sent; one that a
//! crash leaves behind counts as spent. At a limit the site refuses, whatever the coordinator says, and
//! the refusal costs nothing.

use falaj_core::{
    dp::{
        Reservation,
        rdp::{AccountantError, Epsilon, RdpCurve},
    },
    id::StudyId,
};
use sqlx::{
    Connection as _, Row as _, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{path::Path, time::Duration};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS reservations (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    dataset TEXT NOT NULL,
    study   TEXT NOT NULL,
    purpose TEXT NOT NULL,
    cost    TEXT NOT NULL,
    state   TEXT NOT NULL CHECK (state IN ('reserved', 'committed', 'given back'))
) STRICT;
CREATE TABLE IF NOT EXISTS totals (
    dataset TEXT NOT NULL,
    study   TEXT NOT NULL,
    cost    TEXT NOT NULL,
    PRIMARY KEY (dataset, study)
) STRICT;
CREATE TABLE IF NOT EXISTS releases (
    dataset TEXT NOT NULL,
    study   TEXT NOT NULL,
    name    TEXT NOT NULL,
    value   TEXT NOT NULL,
    PRIMARY KEY (dataset, study, name)
) STRICT;
CREATE TRIGGER IF NOT EXISTS spend_only_grows BEFORE DELETE ON reservations
BEGIN SELECT RAISE(ABORT, 'what is spent stays spent'); END;
";

/// The ledger.
#[derive(Clone)]
pub struct Ledger {
    pool: SqlitePool,
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
    #[error("the ledger failed, so nothing is trained")]
    Sql(#[from] sqlx::Error),
    /// What lies in the ledger is not what was written there.
    #[error("the ledger holds something that cannot be read: restore it from a backup")]
    Corrupt,
}

impl Ledger {
    /// Opens the ledger, creating it if there is none.
    ///
    /// # Errors
    /// When the database cannot be opened.
    pub async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        Ok(Self { pool })
    }

    /// Reserves a cost, durably, if both limits hold afterwards.
    ///
    /// # Errors
    /// [`LedgerError::Spent`] with the figures, or why the ledger cannot say.
    pub async fn reserve(&self, charge: &Charge<'_>) -> Result<Reservation, LedgerError> {
        let mut connection = self.pool.acquire().await?;
        let done = reserve_on(&mut connection, charge).await;
        if matches!(done, Err(LedgerError::Sql(_))) {
            // A commit that fails for want of room leaves the connection in doubt about its
            // transaction; a fresh one has none.
            connection.close_on_drop();
        }
        done
    }

    /// Marks a reservation as used. It counted from the moment it was made.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn commit(&self, reservation: u64) -> Result<(), LedgerError> {
        sqlx::query("UPDATE reservations SET state = 'committed' WHERE id = ?")
            .bind(reservation.cast_signed())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Gives a reservation back that nothing was made with: holding it proves that, because sealing consumes
    /// it. What is left over from a crash has no holder, and stays spent.
    ///
    /// # Errors
    /// When the database fails; it counts as spent then.
    pub async fn give_back(&self, reservation: Reservation) -> Result<(), LedgerError> {
        let mut connection = self.pool.acquire().await?;
        let done = give_back_on(&mut connection, reservation.id()).await;
        if matches!(done, Err(LedgerError::Sql(_))) {
            connection.close_on_drop();
        }
        done
    }

    /// What has been spent on a data set: by one study, or by all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn spent(
        &self,
        dataset: &str,
        study: Option<&StudyId>,
    ) -> Result<RdpCurve, LedgerError> {
        let mut connection = self.pool.acquire().await?;
        total(&mut connection, dataset, study).await
    }

    /// Every data set and study with what was spent.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn all(&self) -> Result<Vec<(String, String, RdpCurve)>, LedgerError> {
        let rows = sqlx::query("SELECT dataset, study, cost FROM totals ORDER BY dataset, study")
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|r| {
                let cost = RdpCurve::parse(r.get("cost")).ok_or(LedgerError::Corrupt)?;
                Ok((r.get("dataset"), r.get("study"), cost))
            })
            .collect()
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

    /// Remembers a released value, which a reservation has paid for.
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
        sqlx::query("INSERT INTO releases (dataset, study, name, value) VALUES (?, ?, ?, ?)")
            .bind(dataset)
            .bind(study.as_str())
            .bind(name)
            .bind(value)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

async fn reserve_on(
    connection: &mut SqliteConnection,
    charge: &Charge<'_>,
) -> Result<Reservation, LedgerError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let by_study = total(&mut tx, charge.dataset, Some(charge.study)).await?;
    let whole = total(&mut tx, charge.dataset, None).await?;
    let checks = [
        (format!("data set `{}`", charge.dataset), &whole, charge.dataset_limit),
        (format!("study `{}`", charge.study), &by_study, charge.study_limit),
    ];
    for (whose, spent, limit) in checks {
        let would_be = spent.compose(charge.cost).epsilon(limit.delta)?;
        if would_be.value() > limit.epsilon {
            let (delta, limit) = (limit.delta, limit.epsilon);
            return Err(LedgerError::Spent { whose, would_be, delta, limit });
        }
    }
    let id = sqlx::query("INSERT INTO reservations (dataset, study, purpose, cost, state) VALUES (?, ?, ?, ?, 'reserved')")
            .bind(charge.dataset)
            .bind(charge.study.as_str())
            .bind(charge.purpose)
            .bind(charge.cost.to_text())
            .execute(&mut *tx)
            .await?
            .last_insert_rowid();
    sqlx::query("INSERT INTO totals (dataset, study, cost) VALUES (?, ?, ?) ON CONFLICT (dataset, study) DO UPDATE SET cost = excluded.cost")
            .bind(charge.dataset)
            .bind(charge.study.as_str())
            .bind(by_study.compose(charge.cost).to_text())
            .execute(&mut *tx)
            .await?;
    tx.commit().await?;
    Ok(Reservation::from_ledger(id.cast_unsigned()))
}

async fn give_back_on(connection: &mut SqliteConnection, id: u64) -> Result<(), LedgerError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let row = sqlx::query("UPDATE reservations SET state = 'given back' WHERE id = ? AND state = 'reserved' RETURNING dataset, study")
        .bind(id.cast_signed())
        .fetch_optional(&mut *tx)
        .await?;
    let Some(row) = row else { return Ok(()) };
    let (dataset, study): (String, String) = (row.get("dataset"), row.get("study"));
    let costs = sqlx::query("SELECT cost FROM reservations WHERE dataset = ? AND study = ? AND state != 'given back' ORDER BY id")
        .bind(&dataset)
        .bind(&study)
        .fetch_all(&mut *tx)
        .await?;
    let mut spent = RdpCurve::zero();
    for row in costs {
        spent = spent.compose(&RdpCurve::parse(row.get("cost")).ok_or(LedgerError::Corrupt)?);
    }
    sqlx::query("UPDATE totals SET cost = ? WHERE dataset = ? AND study = ?")
        .bind(spent.to_text())
        .bind(dataset)
        .bind(study)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

async fn total(
    connection: &mut SqliteConnection,
    dataset: &str,
    study: Option<&StudyId>,
) -> Result<RdpCurve, LedgerError> {
    let rows =
        sqlx::query("SELECT cost FROM totals WHERE dataset = ?1 AND (?2 IS NULL OR study = ?2)")
            .bind(dataset)
            .bind(study.map(StudyId::as_str))
            .fetch_all(connection)
            .await?;
    let mut total = RdpCurve::zero();
    for row in rows {
        let cost = RdpCurve::parse(row.get("cost")).ok_or(LedgerError::Corrupt)?;
        total = total.compose(&cost);
    }
    Ok(total)
}
