//! Durable state: SQLite in WAL mode with every commit synced, one writer, readers beside it.
//!
//! What changes together commits together: a round's new state, the rows that belong to it, and the log
//! entries that say so are one transaction. The writer is [`writer`]; rows are spelled in [`row`].

pub mod objects;
pub mod row;
pub mod writer;

use falaj_core::{
    id::{Digest, RoundId, SiteId, StudyId},
    round::AnyRound,
};
use row::{ExchangeRow, ModelRow, StudyRow, UpdateRow};
use sqlx::{
    Row as _, SqlitePool,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};
use std::{path::Path, time::Duration};

/// Readers at once, beside the writer.
const READERS: u32 = 4;
/// Cosignatures that are shown with a checkpoint: those who read notes take so many.
const COSIGNATURES_MAX: u32 = 60;
/// How long a reader waits for a lock.
const BUSY: Duration = Duration::from_secs(5);
/// How long the writer waits for a lock that somebody else holds before it says so to those whose commits wait: less than
/// they are ready to wait.
const WRITER_BUSY: Duration = Duration::from_secs(1);

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("the disk is full")]
    Full(#[source] sqlx::Error),
    /// Anything else that SQLite says.
    #[error("the database failed")]
    Sql(#[source] sqlx::Error),
    /// What lies in the database is not what was written there.
    #[error("the database holds {0}, which cannot be read: restore it from a backup")]
    Corrupt(String),
    /// Migrations failed.
    #[error("the database's schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

impl From<sqlx::Error> for StoreError {
    fn from(e: sqlx::Error) -> Self {
        // 13 is SQLITE_FULL; the extended codes of SQLITE_IOERR that a full disk gives end in 10.
        let code = e
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code)
            .and_then(|c| c.parse::<i32>().ok());
        match code {
            Some(code) if code & 0xff == 13 || code & 0xff == 10 => Self::Full(e),
            _ => Self::Sql(e),
        }
    }
}

/// Reads what the writer has committed.
#[derive(Clone)]
pub struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Opens the database, creating it if there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(path: &Path) -> Result<(Self, SqlitePool), StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(BUSY)
            .connect_with(options.clone().busy_timeout(WRITER_BUSY))
            .await?;
        sqlx::migrate!("./migrations").run(&writer).await?;
        let pool = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.read_only(true))
            .await?;
        Ok((Self { pool }, writer))
    }

    /// Every study, in the order of submission.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn studies(&self) -> Result<Vec<StudyRow>, StoreError> {
        let rows = sqlx::query("SELECT id, sha256, yaml, state, reason, submitted_ms, submitted_by FROM studies ORDER BY submitted_ms, id")
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(StudyRow::read).collect()
    }

    /// One study.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn study(&self, id: &StudyId) -> Result<Option<StudyRow>, StoreError> {
        let row = sqlx::query("SELECT id, sha256, yaml, state, reason, submitted_ms, submitted_by FROM studies WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(StudyRow::read).transpose()
    }

    /// The study's newest round with its version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest_round(
        &self,
        study: &StudyId,
    ) -> Result<Option<(AnyRound, u64)>, StoreError> {
        let row = sqlx::query("SELECT number, version, state FROM rounds WHERE study = ? ORDER BY number DESC, attempt DESC LIMIT 1")
            .bind(study.as_str())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|r| {
            let id = RoundId { study: study.clone(), number: r.get("number") };
            let version: i64 = r.get("version");
            Ok((row::read_round(id, r.get("state"))?, version.cast_unsigned()))
        })
        .transpose()
    }

    /// Every round of a study, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rounds(&self, study: &StudyId) -> Result<Vec<AnyRound>, StoreError> {
        let rows = sqlx::query(
            "SELECT number, state FROM rounds WHERE study = ? ORDER BY number, attempt",
        )
        .bind(study.as_str())
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|r| {
                let id = RoundId { study: study.clone(), number: r.get("number") };
                row::read_round(id, r.get("state"))
            })
            .collect()
    }

    /// Every counted update of a study, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn updates(&self, study: &StudyId) -> Result<Vec<UpdateRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM updates WHERE study = ? ORDER BY log_index")
            .bind(study.as_str())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(UpdateRow::read).collect()
    }

    /// The newest update of `site` that was counted, in any study.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest_update(&self, site: &SiteId) -> Result<Option<UpdateRow>, StoreError> {
        let row =
            sqlx::query("SELECT * FROM updates WHERE site = ? ORDER BY log_index DESC LIMIT 1")
                .bind(site.to_string())
                .fetch_optional(&self.pool)
                .await?;
        row.as_ref().map(UpdateRow::read).transpose()
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
        let row = sqlx::query("SELECT * FROM updates WHERE study = ? AND number = ? AND site = ? AND payload = ? ORDER BY attempt DESC LIMIT 1")
            .bind(round.study.as_str())
            .bind(round.number)
            .bind(site)
            .bind(payload.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(UpdateRow::read).transpose()
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
        let rows = sqlx::query(
            "SELECT * FROM exchanges WHERE study = ? AND number = ? AND attempt = ? ORDER BY rowid",
        )
        .bind(round.study.as_str())
        .bind(round.number)
        .bind(attempt)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(ExchangeRow::read).collect()
    }

    /// Every model of a study, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn models(&self, study: &StudyId) -> Result<Vec<ModelRow>, StoreError> {
        let rows = sqlx::query("SELECT study, number, sha256, published_ms FROM models WHERE study = ? ORDER BY number")
            .bind(study.as_str())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(ModelRow::read).collect()
    }

    /// Entries from index `from` on, at most `limit`, below `below`, of one kind if asked: index, bytes and
    /// leaf hash.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn entries(
        &self,
        from: u64,
        below: u64,
        limit: u32,
        kind: Option<&str>,
    ) -> Result<Vec<(u64, Vec<u8>, Digest)>, StoreError> {
        let rows = sqlx::query("SELECT seq, bytes, leaf FROM log_entries WHERE seq >= ? AND seq < ? AND (?3 IS NULL OR kind = ?3) ORDER BY seq LIMIT ?4")
            .bind(from.cast_signed())
            .bind(i64::try_from(below).unwrap_or(i64::MAX))
            .bind(kind)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|r| {
                let seq: i64 = r.get("seq");
                Ok((seq.cast_unsigned(), r.get("bytes"), row::digest_of(r.get("leaf"))?))
            })
            .collect()
    }

    /// The newest signed checkpoint: its size and note.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest_checkpoint(&self) -> Result<Option<(u64, String)>, StoreError> {
        let row = sqlx::query(
            "SELECT tree_size, note FROM log_checkpoints ORDER BY tree_size DESC LIMIT 1",
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|r| (r.get::<i64, _>("tree_size").cast_unsigned(), r.get("note"))))
    }

    /// The signed checkpoint of this size, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn checkpoint(&self, tree_size: u64) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT note FROM log_checkpoints WHERE tree_size = ?")
            .bind(tree_size.cast_signed())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|r| r.get("note")))
    }

    /// The cosignatures of the checkpoint of this size, one line each.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cosignatures(&self, tree_size: u64) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query(
            "SELECT line FROM log_cosignatures WHERE tree_size = ? ORDER BY witness LIMIT ?",
        )
        .bind(tree_size.cast_signed())
        .bind(COSIGNATURES_MAX)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.iter().map(|r| r.get("line")).collect())
    }

    /// Every witness, and entries in the newest checkpoint that it has cosigned.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn witnesses(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let rows = sqlx::query("SELECT witness, max(tree_size) AS newest FROM log_cosignatures GROUP BY witness ORDER BY witness")
            .fetch_all(&self.pool)
            .await?;
        let row = |r: &SqliteRow| (r.get("witness"), r.get::<i64, _>("newest").cast_unsigned());
        Ok(rows.iter().map(row).collect())
    }

    /// The sizes of the newest checkpoints that each witness has cosigned, up to `below`, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn witnessed(&self, below: u64) -> Result<Vec<u64>, StoreError> {
        let rows = sqlx::query("SELECT DISTINCT newest FROM (SELECT max(tree_size) AS newest FROM log_cosignatures WHERE tree_size <= ? GROUP BY witness) ORDER BY newest")
            .bind(below.cast_signed())
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.iter().map(|r| r.get::<i64, _>("newest").cast_unsigned()).collect())
    }

    /// Every certificate that an entry may name: digest and DER.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn certificates(&self) -> Result<Vec<(Digest, Vec<u8>)>, StoreError> {
        let rows = sqlx::query("SELECT sha256, der FROM certificates ORDER BY sha256")
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|r| Ok((row::parsed(r.get("sha256"))?, r.get("der")))).collect()
    }

    /// Every policy file that was ever in force: set, name and bytes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn policies(&self) -> Result<Vec<(Digest, String, Vec<u8>)>, StoreError> {
        let rows =
            sqlx::query("SELECT set_sha256, file, bytes FROM policies ORDER BY set_sha256, file")
                .fetch_all(&self.pool)
                .await?;
        rows.iter()
            .map(|r| Ok((row::parsed(r.get("set_sha256"))?, r.get("file"), r.get("bytes"))))
            .collect()
    }
}
