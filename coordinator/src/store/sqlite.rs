//! The store in one SQLite file: WAL mode, every commit synced. Its SQL, and nothing that it shares with another database.

use super::{
    COSIGNATURES_MAX, Checkpoints, Entries, LEVELS, Personal, RawEntries, Shard, StoreError, Tiles,
    objects::touched,
    raw,
    row::{
        ExchangeColumns, ModelColumns, RegistryColumns, StudyColumns, TimestampColumns,
        TimestampRow, UpdateColumns, digest_of,
    },
    writer::{Change, Committed, Sealed, Written},
};
use falaj_core::{
    audit::Kind,
    id::{Digest, RoundId, StudyId},
};
use sqlx::{
    QueryBuilder, Row as _, Sqlite, SqliteConnection, SqlitePool,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// Readers at once, beside the writer.
const READERS: u32 = 4;
/// What each of them keeps of the file's pages.
const READER_CACHE_KIB: u32 = 512;
/// How long a reader waits for a lock.
const BUSY: Duration = Duration::from_secs(5);
/// How long the writer waits for a lock that somebody else holds before it says so to those whose commits wait: less than
/// they are ready to wait.
const WRITER_BUSY: Duration = Duration::from_secs(1);
/// Rows of one `INSERT`, well below SQLite's bound on bound values.
const ROWS_PER_INSERT: usize = 1_024;
/// Entries that are put together into an index that lacks them.
const MENDED_TOGETHER: i64 = 1_000;

/// The one connection that writes, to a file that is made if there is none, its schema brought up to date.
pub(super) async fn writer(path: &Path) -> Result<SqlitePool, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // What is deleted is overwritten.
        .pragma("secure_delete", "ON")
        .busy_timeout(WRITER_BUSY);
    let writer = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(BUSY)
        .connect_with(options)
        .await?;
    sqlx::migrate!("./migrations/sqlite").run(&writer).await?;
    Ok(writer)
}

/// Puts entries into the index of what they touch that were written before there was one; it goes on where it was interrupted.
pub(super) async fn mend_objects(pool: &SqlitePool) -> Result<(), StoreError> {
    let lack = "SELECT first, below FROM log_objects_lack";
    while let Some((first, below)) =
        sqlx::query_as::<_, (i64, i64)>(lack).fetch_optional(pool).await?
    {
        let next = below.min(first.saturating_add(MENDED_TOGETHER));
        let rows: Vec<(i64, Vec<u8>)> =
            sqlx::query_as("SELECT seq, bytes FROM log_entries WHERE seq >= ? AND seq < ?")
                .bind(first)
                .bind(next)
                .fetch_all(pool)
                .await?;
        let entries = rows.iter().map(|(seq, bytes)| (*seq, &bytes[..]));
        let mut tx = pool.begin().await?;
        put_objects(&mut tx, &touched(entries)).await?;
        let done = if next < below {
            sqlx::query("UPDATE log_objects_lack SET first = ?").bind(next)
        } else {
            sqlx::query("DELETE FROM log_objects_lack")
        };
        done.execute(&mut *tx).await?;
        tx.commit().await?;
        tracing::info!(entries = next, of = below, "older entries are put into the index");
    }
    Ok(())
}

/// Readers of a file that is there. One at least stays for as long as the pool does: if nobody had the file open any more
/// when the writer lets go of a connection that failed, the next one would read the WAL anew, and take a commit from it
/// that was refused because it could not be synced. The writer knows nothing of that, and its next entry's place would be
/// taken.
pub(super) async fn readers(path: &Path) -> Result<SqlitePool, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY)
        .read_only(true)
        // The kernel has the file's pages too. A cache of 2 MB for each reader, which is the default, takes hours to fill, and
        // looks like a leak for as long.
        .pragma("cache_size", format!("-{READER_CACHE_KIB}"));
    Ok(SqlitePoolOptions::new()
        .max_connections(READERS)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await?)
}

// ---- reading ----

pub(super) async fn studies(pool: &SqlitePool) -> Result<Vec<StudyColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT id, sha256, yaml, state, reason, submitted_ms, submitted_by FROM studies ORDER BY submitted_ms, id")
        .fetch_all(pool)
        .await?)
}

pub(super) async fn study(
    pool: &SqlitePool,
    id: &StudyId,
) -> Result<Option<StudyColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT id, sha256, yaml, state, reason, submitted_ms, submitted_by FROM studies WHERE id = ?")
        .bind(id.as_str())
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn newest_round(
    pool: &SqlitePool,
    study: &StudyId,
) -> Result<Option<(i64, i64, String)>, StoreError> {
    Ok(sqlx::query_as("SELECT number, version, state FROM rounds WHERE study = ? ORDER BY number DESC, attempt DESC LIMIT 1")
        .bind(study.as_str())
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn rounds(
    pool: &SqlitePool,
    study: &StudyId,
) -> Result<Vec<(i64, String)>, StoreError> {
    Ok(sqlx::query_as("SELECT number, state FROM rounds WHERE study = ? ORDER BY number, attempt")
        .bind(study.as_str())
        .fetch_all(pool)
        .await?)
}

pub(super) async fn rounds_after(
    pool: &SqlitePool,
    study: &StudyId,
    number: i64,
    attempt: i64,
    limit: u32,
) -> Result<Vec<(i64, String)>, StoreError> {
    Ok(sqlx::query_as("SELECT number, state FROM rounds WHERE study = ? AND (number, attempt) > (?, ?) ORDER BY number, attempt LIMIT ?")
        .bind(study.as_str())
        .bind(number)
        .bind(attempt)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?)
}

pub(super) async fn rounds_before(
    pool: &SqlitePool,
    study: &StudyId,
    number: i64,
    attempt: i64,
    limit: u32,
) -> Result<Vec<(i64, String)>, StoreError> {
    Ok(sqlx::query_as("SELECT number, state FROM rounds WHERE study = ? AND (number, attempt) < (?, ?) ORDER BY number DESC, attempt DESC LIMIT ?")
        .bind(study.as_str())
        .bind(number)
        .bind(attempt)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?)
}

/// Updates, with the columns in the order of [`UpdateColumns`].
macro_rules! updates {
    ($rest:literal) => {
        concat!(
            "SELECT study, number, attempt, site, header, signature, payload, bytes, epsilon, log_index, leaf, committed_ms FROM updates ",
            $rest
        )
    };
}

pub(super) async fn updates(
    pool: &SqlitePool,
    study: &StudyId,
) -> Result<Vec<UpdateColumns>, StoreError> {
    Ok(sqlx::query_as(updates!("WHERE study = ? ORDER BY log_index"))
        .bind(study.as_str())
        .fetch_all(pool)
        .await?)
}

pub(super) async fn newest_update(
    pool: &SqlitePool,
    site: &str,
) -> Result<Option<UpdateColumns>, StoreError> {
    Ok(sqlx::query_as(updates!("WHERE site = ? ORDER BY log_index DESC LIMIT 1"))
        .bind(site)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn update(
    pool: &SqlitePool,
    round: &RoundId,
    site: &str,
    payload: &str,
) -> Result<Option<UpdateColumns>, StoreError> {
    Ok(sqlx::query_as(updates!(
        "WHERE study = ? AND number = ? AND site = ? AND payload = ? ORDER BY attempt DESC LIMIT 1"
    ))
    .bind(round.study.as_str())
    .bind(round.number)
    .bind(site)
    .bind(payload)
    .fetch_optional(pool)
    .await?)
}

pub(super) async fn counted_sites(
    pool: &SqlitePool,
    round: &RoundId,
    attempt: u32,
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT site FROM updates WHERE study = ? AND number = ? AND attempt = ?",
    )
    .bind(round.study.as_str())
    .bind(round.number)
    .bind(attempt)
    .fetch_all(pool)
    .await?)
}

pub(super) async fn exchanges(
    pool: &SqlitePool,
    round: &RoundId,
    attempt: u32,
) -> Result<Vec<ExchangeColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT study, number, attempt, phase, site, messages FROM exchanges WHERE study = ? AND number = ? AND attempt = ? ORDER BY rowid")
        .bind(round.study.as_str())
        .bind(round.number)
        .bind(attempt)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn evaluations(
    pool: &SqlitePool,
    study: &StudyId,
) -> Result<Vec<ExchangeColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT study, number, attempt, phase, site, messages FROM exchanges WHERE study = ? AND phase = 'evaluation' ORDER BY number, attempt, site")
        .bind(study.as_str())
        .fetch_all(pool)
        .await?)
}

pub(super) async fn models(
    pool: &SqlitePool,
    study: &StudyId,
) -> Result<Vec<ModelColumns>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT study, number, sha256, published_ms FROM models WHERE study = ? ORDER BY number",
    )
    .bind(study.as_str())
    .fetch_all(pool)
    .await?)
}

pub(super) async fn registry(
    pool: &SqlitePool,
    study: &StudyId,
) -> Result<Option<RegistryColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT study, version, state FROM registries WHERE study = ?")
        .bind(study.as_str())
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn registries(
    pool: &SqlitePool,
    after: &str,
    limit: u32,
) -> Result<Vec<RegistryColumns>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT study, version, state FROM registries WHERE study > ? ORDER BY study LIMIT ?",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await?)
}

pub(super) async fn provenance(
    pool: &SqlitePool,
    study: &StudyId,
    number: u32,
) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar("SELECT envelope FROM provenances WHERE study = ? AND number = ?")
        .bind(study.as_str())
        .bind(number)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn entries(
    pool: &SqlitePool,
    from: i64,
    below: i64,
    limit: u32,
    kind: Option<&str>,
) -> Result<Entries, StoreError> {
    let rows = sqlx::query("SELECT seq, bytes, leaf FROM log_entries WHERE seq >= ? AND seq < ? AND (?3 IS NULL OR kind = ?3 AND bytes <> x'') ORDER BY seq LIMIT ?4")
        .bind(from)
        .bind(below)
        .bind(kind)
        .bind(limit)
        .fetch_all(pool)
        .await?;
    rows.iter().map(entry).collect()
}

fn entry(r: &SqliteRow) -> Result<(u64, Vec<u8>, Digest), StoreError> {
    let seq: i64 = r.get("seq");
    Ok((seq.cast_unsigned(), r.get("bytes"), digest_of(r.get("leaf"))?))
}

pub(super) async fn size(pool: &SqlitePool, below: i64) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(seq) + 1, 0) FROM log_entries WHERE seq < ?")
        .bind(below)
        .fetch_one(pool)
        .await?)
}

pub(super) async fn raw_entries(
    pool: &SqlitePool,
    from: i64,
    below: i64,
    limit: u32,
) -> Result<RawEntries, StoreError> {
    Ok(sqlx::query_as(
        "SELECT seq, bytes, leaf FROM log_entries WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?",
    )
    .bind(from)
    .bind(below)
    .bind(limit)
    .fetch_all(pool)
    .await?)
}

pub(super) async fn newest_checkpoint(
    pool: &SqlitePool,
    after: i64,
    until: i64,
) -> Result<Option<(i64, String)>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT tree_size, note FROM log_checkpoints WHERE tree_size > ? AND tree_size <= ? ORDER BY tree_size DESC LIMIT 1",
    )
    .bind(after)
    .bind(until)
    .fetch_optional(pool)
    .await?)
}

pub(super) async fn checkpoint(
    pool: &SqlitePool,
    tree_size: i64,
) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar("SELECT note FROM log_checkpoints WHERE tree_size = ?")
        .bind(tree_size)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn checkpoints(
    pool: &SqlitePool,
    after: i64,
    until: i64,
    limit: u32,
) -> Result<Checkpoints, StoreError> {
    Ok(sqlx::query_as("SELECT tree_size, note FROM log_checkpoints WHERE tree_size > ? AND tree_size <= ? ORDER BY tree_size LIMIT ?")
        .bind(after)
        .bind(until)
        .bind(limit)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn cosignatures(
    pool: &SqlitePool,
    tree_size: i64,
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT line FROM log_cosignatures WHERE tree_size = ? ORDER BY witness LIMIT ?",
    )
    .bind(tree_size)
    .bind(COSIGNATURES_MAX)
    .fetch_all(pool)
    .await?)
}

pub(super) async fn witnesses(
    pool: &SqlitePool,
    after: i64,
    until: i64,
) -> Result<Vec<(String, i64)>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT witness, max(tree_size) FROM log_cosignatures WHERE tree_size > ? AND tree_size <= ? GROUP BY witness ORDER BY witness",
    )
    .bind(after)
    .bind(until)
    .fetch_all(pool)
    .await?)
}

pub(super) async fn witnessed(
    pool: &SqlitePool,
    after: i64,
    until: i64,
) -> Result<Vec<i64>, StoreError> {
    Ok(sqlx::query_scalar("SELECT DISTINCT newest FROM (SELECT max(tree_size) AS newest FROM log_cosignatures WHERE tree_size > ? AND tree_size <= ? GROUP BY witness) ORDER BY newest")
        .bind(after)
        .bind(until)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn timestamps(
    pool: &SqlitePool,
    what: &str,
    (after, until): (i64, i64),
    (from, below): (i64, i64),
    limit: u32,
) -> Result<Vec<TimestampColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT imprint, tree_size, authority, stamped_ms, answer, log_index, committed_ms FROM log_timestamps WHERE what = ? AND tree_size > ? AND tree_size <= ? AND log_index >= ? AND log_index < ? ORDER BY tree_size LIMIT ?")
        .bind(what)
        .bind(after)
        .bind(until)
        .bind(from)
        .bind(below)
        .bind(limit)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn newest_timestamp(
    pool: &SqlitePool,
    what: &str,
    (after, until): (i64, i64),
) -> Result<Option<TimestampColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT imprint, tree_size, authority, stamped_ms, answer, log_index, committed_ms FROM log_timestamps WHERE what = ? AND tree_size > ? AND tree_size <= ? ORDER BY tree_size DESC LIMIT 1")
        .bind(what)
        .bind(after)
        .bind(until)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn timestamp_of(
    pool: &SqlitePool,
    what: &str,
    imprint: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar("SELECT answer FROM log_timestamps WHERE what = ? AND imprint = ?")
        .bind(what)
        .bind(imprint)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn leaves(
    pool: &SqlitePool,
    from: i64,
    below: i64,
) -> Result<Vec<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar("SELECT leaf FROM log_entries WHERE seq >= ? AND seq < ? ORDER BY seq")
        .bind(from)
        .bind(below)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn tile_hashes(
    pool: &SqlitePool,
    level: u32,
    from: i64,
    below: i64,
) -> Result<Vec<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT hash FROM log_tiles WHERE level = ? AND n >= ? AND n < ? ORDER BY n",
    )
    .bind(level)
    .bind(from)
    .bind(below)
    .fetch_all(pool)
    .await?)
}

pub(super) async fn tiles(pool: &SqlitePool, from: u32, below: u32) -> Result<Tiles, StoreError> {
    Ok(sqlx::query_as("SELECT level, n, hash FROM log_tiles WHERE level >= ? AND level < ?")
        .bind(from)
        .bind(below)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn shards(pool: &SqlitePool) -> Result<Vec<(i64, String, i64)>, StoreError> {
    Ok(sqlx::query_as("SELECT number, origin, first FROM log_shards ORDER BY number")
        .fetch_all(pool)
        .await?)
}

pub(super) async fn pruned(pool: &SqlitePool, shard: u32) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM log_prunings WHERE shard = ?)")
        .bind(shard)
        .fetch_one(pool)
        .await?)
}

pub(super) async fn certificates(pool: &SqlitePool) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    Ok(sqlx::query_as("SELECT sha256, der FROM certificates ORDER BY sha256")
        .fetch_all(pool)
        .await?)
}

pub(super) async fn certificate(
    pool: &SqlitePool,
    sha256: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar("SELECT der FROM certificates WHERE sha256 = ?")
        .bind(sha256)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn personal(
    pool: &SqlitePool,
    from: i64,
    below: i64,
) -> Result<Personal, StoreError> {
    Ok(sqlx::query_as(
        "SELECT seq, person, sealed FROM log_personal WHERE seq >= ? AND seq < ? ORDER BY seq",
    )
    .bind(from)
    .bind(below)
    .fetch_all(pool)
    .await?)
}

pub(super) async fn personal_certificates(
    pool: &SqlitePool,
) -> Result<Vec<(String, String, Vec<u8>)>, StoreError> {
    Ok(sqlx::query_as("SELECT person, tag, sealed FROM personal_certificates ORDER BY person, tag")
        .fetch_all(pool)
        .await?)
}

pub(super) async fn newest_of(
    pool: &SqlitePool,
    object: i64,
    from: i64,
    below: i64,
    but: &[&str],
) -> Result<Option<i64>, StoreError> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
        "SELECT max(o.seq) FROM log_objects o JOIN log_entries e ON e.seq = o.seq WHERE o.object = ",
    );
    query.push_bind(object).push(" AND o.seq >= ").push_bind(from);
    query.push(" AND o.seq < ").push_bind(below);
    for kind in but {
        query.push(" AND e.kind <> ").push_bind((*kind).to_owned());
    }
    Ok(query.build_query_scalar().fetch_one(pool).await?)
}

pub(super) async fn policies(
    pool: &SqlitePool,
) -> Result<Vec<(String, String, Vec<u8>)>, StoreError> {
    Ok(sqlx::query_as("SELECT set_sha256, file, bytes FROM policies ORDER BY set_sha256, file")
        .fetch_all(pool)
        .await?)
}

pub(super) async fn term(pool: &SqlitePool, name: &str) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar("SELECT id FROM log_object_names WHERE name = ?")
        .bind(name)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn digests(pool: &SqlitePool, prefix: &str) -> Result<Vec<String>, StoreError> {
    // `g` comes after every digit.
    Ok(sqlx::query_scalar("SELECT name FROM log_object_names WHERE name >= ?1 AND name < ?1 || 'g' AND length(name) = 64 ORDER BY name LIMIT 2")
        .bind(prefix)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn touch(
    pool: &SqlitePool,
    object: i64,
    from: i64,
    below: i64,
    after: i64,
) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar("SELECT seq FROM log_objects WHERE object = ? AND seq >= ? AND seq < ? ORDER BY seq LIMIT 1 OFFSET ?")
        .bind(object)
        .bind(from)
        .bind(below)
        .bind(after)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn find(
    pool: &SqlitePool,
    objects: &[i64],
    kind: Option<&str>,
    from: i64,
    below: i64,
    limit: u32,
) -> Result<Entries, StoreError> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new("SELECT e.seq, e.bytes, e.leaf ");
    if let Some((leader, others)) = objects.split_first() {
        query
            .push("FROM log_objects o CROSS JOIN log_entries e ON e.seq = o.seq WHERE o.object = ");
        query.push_bind(*leader).push(" AND o.seq >= ").push_bind(from);
        query.push(" AND o.seq < ").push_bind(below);
        for other in others {
            query.push(" AND EXISTS (SELECT 1 FROM log_objects x WHERE x.object = ");
            query.push_bind(*other).push(" AND x.seq = o.seq)");
        }
    } else {
        query.push("FROM log_entries e WHERE e.seq >= ").push_bind(from);
        query.push(" AND e.seq < ").push_bind(below);
    }
    if let Some(kind) = kind {
        query.push(" AND e.kind = ").push_bind(kind);
    }
    query.push(" ORDER BY e.seq LIMIT ").push_bind(limit);
    query.build().fetch_all(pool).await?.iter().map(entry).collect()
}

/// Names that are looked up at once, below SQLite's bound on bound values.
const NAMES_PER_QUERY: usize = 1_024;

pub(super) async fn touches(
    pool: &SqlitePool,
    names: &[&str],
    from: i64,
    below: i64,
) -> Result<Vec<(String, i64)>, StoreError> {
    let mut found = Vec::new();
    for names in names.chunks(NAMES_PER_QUERY) {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
            "SELECT n.name, o.seq FROM log_object_names n JOIN log_objects o ON o.object = n.id WHERE n.name IN (",
        );
        let mut list = query.separated(", ");
        for name in names {
            list.push_bind(*name);
        }
        query.push(") AND o.seq >= ").push_bind(from).push(" AND o.seq < ").push_bind(below);
        found.extend(query.build_query_as::<(String, i64)>().fetch_all(pool).await?);
    }
    Ok(found)
}

pub(super) async fn touches_after(
    pool: &SqlitePool,
    (object, seq): raw::Place,
    limit: u32,
) -> Result<Vec<raw::Place>, StoreError> {
    Ok(sqlx::query_as("SELECT object, seq FROM log_objects WHERE (object, seq) > (?, ?) ORDER BY object, seq LIMIT ?")
        .bind(object)
        .bind(seq)
        .bind(limit)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn whole_touches_after(
    pool: &SqlitePool,
    (object, seq): raw::Place,
    limit: u32,
) -> Result<Vec<raw::Touch>, StoreError> {
    Ok(sqlx::query_as("SELECT o.object, o.seq, n.name, e.bytes FROM log_objects o LEFT JOIN log_object_names n ON n.id = o.object LEFT JOIN log_entries e ON e.seq = o.seq WHERE (o.object, o.seq) > (?, ?) ORDER BY o.object, o.seq LIMIT ?")
        .bind(object)
        .bind(seq)
        .bind(limit)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn not_indexed(pool: &SqlitePool) -> Result<Option<(i64, i64)>, StoreError> {
    Ok(sqlx::query_as("SELECT first, below FROM log_objects_lack").fetch_optional(pool).await?)
}

pub(super) async fn raw_timestamps(
    pool: &SqlitePool,
    (from, imprint): (i64, &str),
    below: i64,
    limit: u32,
) -> Result<Vec<raw::Stamp>, StoreError> {
    Ok(sqlx::query_as("SELECT imprint, what, tree_size, stamped_ms, answer, log_index FROM log_timestamps WHERE (log_index, imprint) > (?, ?) AND log_index < ? ORDER BY log_index, imprint LIMIT ?")
        .bind(from)
        .bind(imprint)
        .bind(below)
        .bind(limit)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn raw_personal(
    pool: &SqlitePool,
    from: i64,
    below: i64,
    limit: u32,
) -> Result<Personal, StoreError> {
    Ok(sqlx::query_as("SELECT seq, person, sealed FROM log_personal WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?")
        .bind(from)
        .bind(below)
        .bind(limit)
        .fetch_all(pool)
        .await?)
}

// ---- writing ----

pub(super) async fn put_round(
    tx: &mut SqliteConnection,
    id: &RoundId,
    attempt: u32,
    state: String,
    version: u64,
) -> Result<bool, StoreError> {
    let done = if version == 0 {
        sqlx::query("INSERT INTO rounds (study, number, attempt, version, state) VALUES (?, ?, ?, 1, ?) ON CONFLICT DO NOTHING")
            .bind(id.study.as_str())
            .bind(id.number)
            .bind(attempt)
            .bind(state)
            .execute(tx)
            .await?
    } else {
        sqlx::query("UPDATE rounds SET state = ?, version = version + 1 WHERE study = ? AND number = ? AND attempt = ? AND version = ?")
            .bind(state)
            .bind(id.study.as_str())
            .bind(id.number)
            .bind(attempt)
            .bind(version.cast_signed())
            .execute(tx)
            .await?
    };
    Ok(done.rows_affected() == 1)
}

pub(super) async fn has_ended(tx: &mut SqliteConnection, id: &StudyId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM studies WHERE id = ? AND state <> 'running')",
    )
    .bind(id.as_str())
    .fetch_one(tx)
    .await?)
}

pub(super) async fn put_registry(
    tx: &mut SqliteConnection,
    study: &StudyId,
    state: &str,
    version: u64,
) -> Result<bool, StoreError> {
    let done = if version == 0 {
        sqlx::query("INSERT INTO registries (study, version, state) VALUES (?, 1, ?) ON CONFLICT DO NOTHING")
            .bind(study.as_str())
            .bind(state)
            .execute(tx)
            .await?
    } else {
        sqlx::query("UPDATE registries SET state = ?, version = version + 1 WHERE study = ? AND version = ?")
            .bind(state)
            .bind(study.as_str())
            .bind(version.cast_signed())
            .execute(tx)
            .await?
    };
    Ok(done.rows_affected() == 1)
}

pub(super) async fn put_entries(
    tx: &mut SqliteConnection,
    shard: &Shard,
    entries: &[Written],
) -> Result<(), StoreError> {
    for rows in entries.chunks(ROWS_PER_INSERT) {
        let mut insert: QueryBuilder<Sqlite> =
            QueryBuilder::new("INSERT INTO log_entries (seq, kind, bytes, leaf) ");
        insert.push_values(rows, |mut row, entry| {
            row.push_bind(shard.place(entry.seq))
                .push_bind(entry.kind.as_str())
                .push_bind(&entry.bytes[..])
                .push_bind(&entry.leaf.0[..]);
        });
        insert.build().execute(&mut *tx).await?;
    }
    Ok(())
}

pub(super) async fn put_personal(
    tx: &mut SqliteConnection,
    shard: &Shard,
    personal: &[Sealed],
) -> Result<(), StoreError> {
    for rows in personal.chunks(ROWS_PER_INSERT) {
        let mut insert: QueryBuilder<Sqlite> =
            QueryBuilder::new("INSERT INTO log_personal (seq, person, sealed) ");
        insert.push_values(rows, |mut row, personal| {
            row.push_bind(shard.place(personal.seq))
                .push_bind(personal.person.to_string())
                .push_bind(&personal.bytes[..]);
        });
        insert.build().execute(&mut *tx).await?;
    }
    Ok(())
}

pub(super) async fn put_tiles(
    tx: &mut SqliteConnection,
    shard: &Shard,
    tiles: &[(u32, u64, [u8; 32])],
) -> Result<(), StoreError> {
    for rows in tiles.chunks(ROWS_PER_INSERT) {
        let mut insert: QueryBuilder<Sqlite> =
            QueryBuilder::new("INSERT INTO log_tiles (level, n, hash) ");
        insert.push_values(rows, |mut row, (level, n, hash)| {
            row.push_bind(shard.level(*level)).push_bind(n.cast_signed()).push_bind(&hash[..]);
        });
        insert.build().execute(&mut *tx).await?;
    }
    Ok(())
}

pub(super) async fn put_objects(
    tx: &mut SqliteConnection,
    touched: &BTreeMap<String, Vec<i64>>,
) -> Result<(), StoreError> {
    let names: Vec<&String> = touched.keys().collect();
    let mut ids: BTreeMap<String, i64> = BTreeMap::new();
    for names in names.chunks(ROWS_PER_INSERT) {
        let mut known: QueryBuilder<Sqlite> =
            QueryBuilder::new("SELECT id, name FROM log_object_names WHERE name IN (");
        let mut list = known.separated(", ");
        for name in names {
            list.push_bind(name.as_str());
        }
        known.push(")");
        let rows = known.build().fetch_all(&mut *tx).await?;
        ids.extend(rows.iter().map(|r| (r.get("name"), r.get("id"))));
        let unknown: Vec<_> = names.iter().filter(|n| !ids.contains_key(n.as_str())).collect();
        if unknown.is_empty() {
            continue;
        }
        let mut insert: QueryBuilder<Sqlite> =
            QueryBuilder::new("INSERT INTO log_object_names (name) ");
        insert.push_values(unknown, |mut row, name| {
            row.push_bind(name.as_str());
        });
        insert.push(" RETURNING id, name");
        let rows = insert.build().fetch_all(&mut *tx).await?;
        ids.extend(rows.iter().map(|r| (r.get("name"), r.get("id"))));
    }
    let pairs: Vec<(i64, i64)> =
        touched.iter().flat_map(|(name, seqs)| seqs.iter().map(|seq| (ids[name], *seq))).collect();
    for rows in pairs.chunks(ROWS_PER_INSERT) {
        let mut insert: QueryBuilder<Sqlite> =
            QueryBuilder::new("INSERT INTO log_objects (object, seq) ");
        insert.push_values(rows, |mut row, (object, seq)| {
            row.push_bind(*object).push_bind(*seq);
        });
        insert.build().execute(&mut *tx).await?;
    }
    Ok(())
}

pub(super) async fn clear_tiles(
    tx: &mut SqliteConnection,
    shard: &Shard,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM log_tiles WHERE level >= ? AND level < ?")
        .bind(shard.level(0))
        .bind(shard.level(LEVELS))
        .execute(tx)
        .await?;
    Ok(())
}

#[expect(clippy::too_many_lines, reason = "one statement for each kind of row")]
pub(super) async fn put(
    tx: &mut SqliteConnection,
    shard: &Shard,
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
        // It was put before anything else of its commit.
        Change::Registry(..) => return Ok(()),
        Change::Provenance(study, number, envelope) => {
            sqlx::query("INSERT INTO provenances (study, number, envelope) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(study.as_str())
                .bind(number)
                .bind(envelope)
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
        Change::PersonalCertificate { person, tag, sealed } => {
            sqlx::query("INSERT INTO personal_certificates (person, tag, sealed) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(person.to_string())
                .bind(tag.to_string())
                .bind(sealed)
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
                .bind(shard.place(size))
                .bind(note)
                .execute(tx)
                .await?
        }
        Change::Cosignature(shard, size, witness, line) => {
            sqlx::query("INSERT INTO log_cosignatures (tree_size, witness, line) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(shard.place(size))
                .bind(witness)
                .bind(line)
                .execute(tx)
                .await?
        }
        Change::Shard(origin) => {
            sqlx::query("INSERT INTO log_shards (number, origin, first) VALUES (?, ?, ?)")
                .bind(shard.number)
                .bind(origin)
                .bind(shard.place(0))
                .execute(tx)
                .await?
        }
        Change::Prune(shard) => {
            sqlx::query("INSERT INTO log_prunings (shard) VALUES (?) ON CONFLICT DO NOTHING")
                .bind(shard.number)
                .execute(tx)
                .await?
        }
        Change::Empty(shard, from, below) => {
            return empty(tx, shard.place(from), shard.place(below)).await;
        }
        Change::Timestamp(t) => return put_timestamp(tx, shard, t, committed).await,
    };
    Ok(())
}

/// Deletes the contents of entries, but of those that are kept, and what was indexed of all of them.
async fn empty(tx: &mut SqliteConnection, from: i64, below: i64) -> Result<(), StoreError> {
    let rows: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT seq, bytes FROM log_entries WHERE seq >= ? AND seq < ?")
            .bind(from)
            .bind(below)
            .fetch_all(&mut *tx)
            .await?;
    for name in touched(rows.iter().map(|(seq, bytes)| (*seq, &bytes[..]))).into_keys() {
        sqlx::query("DELETE FROM log_objects WHERE object = (SELECT id FROM log_object_names WHERE name = ?) AND seq >= ? AND seq < ?")
            .bind(&name)
            .bind(from)
            .bind(below)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM log_object_names WHERE name = ? AND NOT EXISTS (SELECT 1 FROM log_objects WHERE object = id)")
            .bind(&name)
            .execute(&mut *tx)
            .await?;
    }
    let mut update: QueryBuilder<Sqlite> =
        QueryBuilder::new("UPDATE log_entries SET bytes = x'' WHERE seq >= ");
    update.push_bind(from).push(" AND seq < ").push_bind(below).push(" AND kind NOT IN (");
    let mut kinds = update.separated(", ");
    for kind in Kind::KEPT {
        kinds.push_bind(kind.as_str());
    }
    update.push(")");
    update.build().execute(&mut *tx).await?;
    sqlx::query("DELETE FROM log_personal WHERE seq >= ? AND seq < ?")
        .bind(from)
        .bind(below)
        .execute(tx)
        .await?;
    Ok(())
}

async fn put_timestamp(
    tx: &mut SqliteConnection,
    shard: &Shard,
    t: TimestampRow,
    committed: &Committed,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO log_timestamps (imprint, what, tree_size, authority, stamped_ms, answer, log_index, committed_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(t.imprint.to_string())
        .bind(t.what.as_str())
        .bind(shard.place(t.tree_size))
        .bind(t.authority)
        .bind(t.stamped.as_millis())
        .bind(t.answer)
        .bind(shard.place(committed.first))
        .bind(committed.at.as_millis())
        .execute(tx)
        .await?;
    Ok(())
}
