//! The journal: what has left the site, and what is about to.
//!
//! An update is durable here, sealed and signed, before its first byte is sent. After a crash the same task
//! makes the agent send the same bytes again: nothing is trained or paid for twice.

use falaj_core::{
    evaluation::answer::SignedCounts,
    id::{Digest, RoundId},
    update::{RestoreError, SignedUpdate},
};
use serde::Serialize;
use sqlx::{
    Row as _, SqlitePool,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS outgoing (
    study       TEXT NOT NULL,
    round       INTEGER NOT NULL,
    base        TEXT NOT NULL,
    header      BLOB NOT NULL,
    signature   BLOB NOT NULL,
    payload     TEXT NOT NULL,
    reservation INTEGER NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('sealed', 'receipted', 'refused')),
    receipt     BLOB,
    receipt_signature BLOB,
    PRIMARY KEY (study, round, base)
) STRICT;
-- What was counted about candidates, with its noise: what is asked again is answered with the same.
CREATE TABLE IF NOT EXISTS counted (
    study       TEXT NOT NULL,
    round       INTEGER NOT NULL,
    candidate   TEXT NOT NULL,
    attempt     INTEGER NOT NULL,
    header      BLOB NOT NULL,
    signature   BLOB NOT NULL,
    counts      BLOB NOT NULL,
    reservation INTEGER NOT NULL,
    PRIMARY KEY (study, round, candidate, attempt)
) STRICT;
CREATE TABLE IF NOT EXISTS pins (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS seen (only INTEGER PRIMARY KEY CHECK (only = 1), note TEXT NOT NULL) STRICT;
-- Receipts that need no proof any more.
CREATE TABLE IF NOT EXISTS proven (study TEXT NOT NULL, round INTEGER NOT NULL, base TEXT NOT NULL, PRIMARY KEY (study, round, base)) STRICT;
-- What stewards said about study files, and what the site's policy refused.
CREATE TABLE IF NOT EXISTS approvals (seq INTEGER PRIMARY KEY, study_sha256 TEXT NOT NULL, body BLOB NOT NULL, signature BLOB NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS approvals_by_study ON approvals (study_sha256, seq);
CREATE TABLE IF NOT EXISTS refusals (seq INTEGER PRIMARY KEY, at TEXT NOT NULL, study TEXT NOT NULL, study_sha256 TEXT NOT NULL, round INTEGER NOT NULL, policy_sha256 TEXT NOT NULL, reason TEXT NOT NULL) STRICT;
";

/// Receipts that are looked at together.
const PROMISES: u32 = 64;

/// Refusals that are kept; older ones make room.
const REFUSALS_MAX: i64 = 10_000;
/// Approvals that are listed, the newest ones.
const APPROVALS_MAX: i64 = 10_000;

/// A study that the site's policy refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// When, in RFC 3339.
    pub at: String,
    /// Its name.
    pub study: String,
    /// SHA-256 of its file.
    pub study_sha256: String,
    /// The round that was refused.
    pub round: u32,
    /// SHA-256 of the policy that refused.
    pub policy_sha256: String,
    /// The rules, and their reasons.
    pub reason: String,
}

/// A receipt: the coordinator's promise that an entry is in its log.
#[derive(Clone, Debug)]
pub struct Promise {
    study: String,
    round: u32,
    base: String,
    /// Its canonical bytes (`falaj_core::receipt`); its signature was checked when it came.
    pub receipt: Vec<u8>,
}

/// The journal.
#[derive(Clone)]
pub struct Journal {
    pool: SqlitePool,
    dir: PathBuf,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database failed; nothing is sent then.
    #[error("the journal failed, so nothing is sent")]
    Sql(#[from] sqlx::Error),
    /// A payload cannot be written or read.
    #[error("a journalled payload cannot be written or read")]
    Io(#[from] std::io::Error),
    /// What is there is not what was sealed.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

impl Journal {
    /// Opens the journal in a folder, creating it if there is none.
    ///
    /// # Errors
    /// When the folder or the database cannot be opened.
    pub async fn open(dir: &Path) -> Result<Self, JournalError> {
        fs::create_dir_all(dir)?;
        let options = SqliteConnectOptions::new()
            .filename(dir.join("journal.sqlite"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        Ok(Self { pool, dir: dir.to_owned() })
    }

    /// Makes a signed update durable.
    ///
    /// # Errors
    /// [`JournalError`]; the update must not be sent then.
    pub async fn keep(
        &self,
        round: &RoundId,
        base: &Digest,
        update: &SignedUpdate,
        reservation: u64,
    ) -> Result<(), JournalError> {
        let digest = Digest::of(update.payload());
        let path = self.dir.join(digest.to_string());
        let partial = path.with_extension("partial");
        let mut file = File::create(&partial)?;
        file.write_all(update.payload())?;
        file.sync_all()?;
        fs::rename(&partial, &path)?;
        File::open(&self.dir)?.sync_all()?;
        sqlx::query("INSERT INTO outgoing (study, round, base, header, signature, payload, reservation, state) VALUES (?, ?, ?, ?, ?, ?, ?, 'sealed')")
            .bind(round.study.as_str())
            .bind(round.number)
            .bind(base.to_string())
            .bind(update.header())
            .bind(&update.signature()[..])
            .bind(digest.to_string())
            .bind(reservation.cast_signed())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The update that was sealed for this very task before, with its reservation.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn find(
        &self,
        round: &RoundId,
        base: &Digest,
        site: &ed25519_dalek::VerifyingKey,
    ) -> Result<Option<(SignedUpdate, u64)>, JournalError> {
        let row = sqlx::query("SELECT header, signature, payload, reservation FROM outgoing WHERE study = ? AND round = ? AND base = ?")
            .bind(round.study.as_str())
            .bind(round.number)
            .bind(base.to_string())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let payload = fs::read(self.dir.join(row.get::<&str, _>("payload")))?;
        let signature: &[u8] = row.get("signature");
        let signature = signature.try_into().map_err(|_| RestoreError::Signature)?;
        let update = SignedUpdate::restore(row.get("header"), signature, payload, site)?;
        Ok(Some((update, row.get::<i64, _>("reservation").cast_unsigned())))
    }

    /// Makes signed counts about a candidate durable.
    ///
    /// # Errors
    /// [`JournalError`]; they must not be sent then.
    pub async fn keep_counted(
        &self,
        (round, attempt): (&RoundId, u32),
        candidate: &Digest,
        counted: &SignedCounts,
        reservation: u64,
    ) -> Result<(), JournalError> {
        sqlx::query("INSERT INTO counted (study, round, candidate, attempt, header, signature, counts, reservation) VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
            .bind(round.study.as_str())
            .bind(round.number)
            .bind(candidate.to_string())
            .bind(attempt)
            .bind(&counted.header)
            .bind(&counted.signature[..])
            .bind(&counted.counts)
            .bind(reservation.cast_signed())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// What was counted about this very candidate before, with its reservation.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn counted(
        &self,
        (round, attempt): (&RoundId, u32),
        candidate: &Digest,
    ) -> Result<Option<(SignedCounts, u64)>, JournalError> {
        let row = sqlx::query("SELECT header, signature, counts, reservation FROM counted WHERE study = ? AND round = ? AND candidate = ? AND attempt = ?")
            .bind(round.study.as_str())
            .bind(round.number)
            .bind(candidate.to_string())
            .bind(attempt)
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let signature: &[u8] = row.get("signature");
        let signature = signature.try_into().map_err(|_| RestoreError::Signature)?;
        let (header, counts) = (row.get("header"), row.get("counts"));
        let counted = SignedCounts { header, signature, counts };
        Ok(Some((counted, row.get::<i64, _>("reservation").cast_unsigned())))
    }

    /// Keeps the coordinator's signed promise.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn receipted(
        &self,
        round: &RoundId,
        base: &Digest,
        receipt: &[u8],
        signature: &[u8],
    ) -> Result<(), JournalError> {
        sqlx::query("UPDATE outgoing SET state = 'receipted', receipt = ?, receipt_signature = ? WHERE study = ? AND round = ? AND base = ?")
            .bind(receipt)
            .bind(signature)
            .bind(round.study.as_str())
            .bind(round.number)
            .bind(base.to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The last checkpoint of the log that this site saw.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn seen(&self) -> Result<Option<String>, JournalError> {
        let row = sqlx::query("SELECT note FROM seen").fetch_optional(&self.pool).await?;
        Ok(row.map(|r| r.get("note")))
    }

    /// Keeps a checkpoint as the last one seen, durably: before it is cosigned.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn see(&self, note: &str) -> Result<(), JournalError> {
        sqlx::query("INSERT INTO seen (only, note) VALUES (1, ?) ON CONFLICT DO UPDATE SET note = excluded.note")
            .bind(note)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Receipts whose entries have not been proven to be in the log, oldest first.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn unproven(&self) -> Result<Vec<Promise>, JournalError> {
        let rows = sqlx::query("SELECT study, round, base, receipt FROM outgoing WHERE state = 'receipted' AND NOT EXISTS (SELECT 1 FROM proven p WHERE p.study = outgoing.study AND p.round = outgoing.round AND p.base = outgoing.base) ORDER BY rowid LIMIT ?")
            .bind(PROMISES)
            .fetch_all(&self.pool)
            .await?;
        let promise = |r: &SqliteRow| Promise {
            study: r.get("study"),
            round: r.get("round"),
            base: r.get("base"),
            receipt: r.get("receipt"),
        };
        Ok(rows.iter().map(promise).collect())
    }

    /// Notes that a receipt's promise was kept.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn proven(&self, kept: &Promise) -> Result<(), JournalError> {
        sqlx::query(
            "INSERT INTO proven (study, round, base) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&kept.study)
        .bind(kept.round)
        .bind(&kept.base)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Begins anew with the log: without what was seen of it, what it had promised, and what was pinned about it.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn forget_log(&self, pins: &[&str]) -> Result<(), JournalError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("DELETE FROM seen").execute(&mut *tx).await?;
        for pin in pins {
            sqlx::query("DELETE FROM pins WHERE name = ?").bind(pin).execute(&mut *tx).await?;
        }
        sqlx::query("INSERT INTO proven (study, round, base) SELECT study, round, base FROM outgoing WHERE state = 'receipted' ON CONFLICT DO NOTHING")
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Forgets every value that is pinned under a name that begins so.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn unpin(&self, prefix: &str) -> Result<(), JournalError> {
        sqlx::query("DELETE FROM pins WHERE substr(name, 1, length(?1)) = ?1")
            .bind(prefix)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Pins another value in place of the one before; what was seen of the log is forgotten with it, if another log goes
    /// on from there.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn repin(
        &self,
        name: &str,
        value: &str,
        forget_seen: bool,
    ) -> Result<(), JournalError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("UPDATE pins SET value = ? WHERE name = ?")
            .bind(value)
            .bind(name)
            .execute(&mut *tx)
            .await?;
        if forget_seen {
            sqlx::query("DELETE FROM seen").execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Keeps a signed word about a study file.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn approve(
        &self,
        study: &Digest,
        body: &[u8],
        signature: &[u8],
    ) -> Result<(), JournalError> {
        sqlx::query("INSERT INTO approvals (study_sha256, body, signature) VALUES (?, ?, ?)")
            .bind(study.to_string())
            .bind(body)
            .bind(signature)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The newest word about a study file, with its signature.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn approval(
        &self,
        study: &Digest,
    ) -> Result<Option<(Vec<u8>, Vec<u8>)>, JournalError> {
        let row = sqlx::query("SELECT body, signature FROM approvals WHERE study_sha256 = ? ORDER BY seq DESC LIMIT 1")
            .bind(study.to_string())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|r| (r.get("body"), r.get("signature"))))
    }

    /// The newest words about study files, oldest first, with their signatures.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn approvals(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>, JournalError> {
        let rows = sqlx::query("SELECT body, signature FROM (SELECT * FROM approvals ORDER BY seq DESC LIMIT ?) ORDER BY seq")
            .bind(APPROVALS_MAX)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.iter().map(|r| (r.get("body"), r.get("signature"))).collect())
    }

    /// Keeps a refusal; the oldest make room.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn refused(&self, refused: &Refused) -> Result<(), JournalError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("INSERT INTO refusals (at, study, study_sha256, round, policy_sha256, reason) VALUES (?, ?, ?, ?, ?, ?)")
            .bind(&refused.at)
            .bind(&refused.study)
            .bind(&refused.study_sha256)
            .bind(refused.round)
            .bind(&refused.policy_sha256)
            .bind(&refused.reason)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM refusals WHERE seq <= (SELECT MAX(seq) FROM refusals) - ?")
            .bind(REFUSALS_MAX)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// The refusals that are kept, oldest first.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn refusals(&self) -> Result<Vec<Refused>, JournalError> {
        let rows = sqlx::query("SELECT * FROM refusals ORDER BY seq").fetch_all(&self.pool).await?;
        let refused = |r: &SqliteRow| Refused {
            at: r.get("at"),
            study: r.get("study"),
            study_sha256: r.get("study_sha256"),
            round: r.get("round"),
            policy_sha256: r.get("policy_sha256"),
            reason: r.get("reason"),
        };
        Ok(rows.iter().map(refused).collect())
    }

    /// The value pinned under a name, if there is one.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn pinned(&self, name: &str) -> Result<Option<String>, JournalError> {
        let row = sqlx::query("SELECT value FROM pins WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|r| r.get("value")))
    }

    /// The value pinned under a name; the first one offered stays.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn pin(&self, name: &str, value: &str) -> Result<String, JournalError> {
        sqlx::query("INSERT INTO pins (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(name)
            .bind(value)
            .execute(&self.pool)
            .await?;
        let row = sqlx::query("SELECT value FROM pins WHERE name = ?")
            .bind(name)
            .fetch_one(&self.pool)
            .await?;
        Ok(row.get("value"))
    }
}
