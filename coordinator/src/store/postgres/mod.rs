//! The store's SQL on PostgreSQL. Sessions, the writer's lock and the recovery of a broken connection are in [`session`];
//! what an owner sets up beforehand is in [`init`].

pub(super) mod init;
pub(super) mod session;

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
use sqlx::{PgConnection, PgPool, Postgres, QueryBuilder, Row as _, postgres::PgRow};
use std::collections::BTreeMap;

/// Rows of one `INSERT`: what they take stays far below the server's bound of 1 GB on a message.
const ROWS_PER_INSERT: usize = 1_024;

/// Text as PostgreSQL takes it, which has no zero character.
fn text(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

// ---- reading ----

pub(super) async fn studies(pool: &PgPool) -> Result<Vec<StudyColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT id, sha256, yaml, state, reason, submitted_ms, submitted_by FROM studies ORDER BY submitted_ms, id")
        .fetch_all(pool)
        .await?)
}

pub(super) async fn study(pool: &PgPool, id: &StudyId) -> Result<Option<StudyColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT id, sha256, yaml, state, reason, submitted_ms, submitted_by FROM studies WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn newest_round(
    pool: &PgPool,
    study: &StudyId,
) -> Result<Option<(i64, i64, String)>, StoreError> {
    Ok(sqlx::query_as("SELECT number, version, state FROM rounds WHERE study = $1 ORDER BY number DESC, attempt DESC LIMIT 1")
        .bind(study.as_str())
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn rounds(
    pool: &PgPool,
    study: &StudyId,
) -> Result<Vec<(i64, String)>, StoreError> {
    Ok(sqlx::query_as("SELECT number, state FROM rounds WHERE study = $1 ORDER BY number, attempt")
        .bind(study.as_str())
        .fetch_all(pool)
        .await?)
}

pub(super) async fn rounds_after(
    pool: &PgPool,
    study: &StudyId,
    number: i64,
    attempt: i64,
    limit: u32,
) -> Result<Vec<(i64, String)>, StoreError> {
    Ok(sqlx::query_as("SELECT number, state FROM rounds WHERE study = $1 AND (number, attempt) > ($2, $3) ORDER BY number, attempt LIMIT $4")
        .bind(study.as_str())
        .bind(number)
        .bind(attempt)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?)
}

pub(super) async fn rounds_before(
    pool: &PgPool,
    study: &StudyId,
    number: i64,
    attempt: i64,
    limit: u32,
) -> Result<Vec<(i64, String)>, StoreError> {
    Ok(sqlx::query_as("SELECT number, state FROM rounds WHERE study = $1 AND (number, attempt) < ($2, $3) ORDER BY number DESC, attempt DESC LIMIT $4")
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
    pool: &PgPool,
    study: &StudyId,
) -> Result<Vec<UpdateColumns>, StoreError> {
    Ok(sqlx::query_as(updates!("WHERE study = $1 ORDER BY log_index"))
        .bind(study.as_str())
        .fetch_all(pool)
        .await?)
}

pub(super) async fn newest_update(
    pool: &PgPool,
    site: &str,
) -> Result<Option<UpdateColumns>, StoreError> {
    Ok(sqlx::query_as(updates!("WHERE site = $1 ORDER BY log_index DESC LIMIT 1"))
        .bind(site)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn update(
    pool: &PgPool,
    round: &RoundId,
    site: &str,
    payload: &str,
) -> Result<Option<UpdateColumns>, StoreError> {
    Ok(sqlx::query_as(updates!("WHERE study = $1 AND number = $2 AND site = $3 AND payload = $4 ORDER BY attempt DESC LIMIT 1"))
        .bind(round.study.as_str())
        .bind(i64::from(round.number))
        .bind(site)
        .bind(payload)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn counted_sites(
    pool: &PgPool,
    round: &RoundId,
    attempt: u32,
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT site FROM updates WHERE study = $1 AND number = $2 AND attempt = $3",
    )
    .bind(round.study.as_str())
    .bind(i64::from(round.number))
    .bind(i64::from(attempt))
    .fetch_all(pool)
    .await?)
}

pub(super) async fn exchanges(
    pool: &PgPool,
    round: &RoundId,
    attempt: u32,
) -> Result<Vec<ExchangeColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT study, number, attempt, phase, site, messages FROM exchanges WHERE study = $1 AND number = $2 AND attempt = $3 ORDER BY arrival")
        .bind(round.study.as_str())
        .bind(i64::from(round.number))
        .bind(i64::from(attempt))
        .fetch_all(pool)
        .await?)
}

pub(super) async fn evaluations(
    pool: &PgPool,
    study: &StudyId,
) -> Result<Vec<ExchangeColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT study, number, attempt, phase, site, messages FROM exchanges WHERE study = $1 AND phase = 'evaluation' ORDER BY number, attempt, site")
        .bind(study.as_str())
        .fetch_all(pool)
        .await?)
}

pub(super) async fn models(
    pool: &PgPool,
    study: &StudyId,
) -> Result<Vec<ModelColumns>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT study, number, sha256, published_ms FROM models WHERE study = $1 ORDER BY number",
    )
    .bind(study.as_str())
    .fetch_all(pool)
    .await?)
}

pub(super) async fn registry(
    pool: &PgPool,
    study: &StudyId,
) -> Result<Option<RegistryColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT study, version, state FROM registries WHERE study = $1")
        .bind(study.as_str())
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn registries(
    pool: &PgPool,
    after: &str,
    limit: u32,
) -> Result<Vec<RegistryColumns>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT study, version, state FROM registries WHERE study > $1 ORDER BY study LIMIT $2",
    )
    .bind(after)
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?)
}

pub(super) async fn provenance(
    pool: &PgPool,
    study: &StudyId,
    number: u32,
) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar("SELECT envelope FROM provenances WHERE study = $1 AND number = $2")
        .bind(study.as_str())
        .bind(i64::from(number))
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn entries(
    pool: &PgPool,
    from: i64,
    below: i64,
    limit: u32,
    kind: Option<&str>,
) -> Result<Entries, StoreError> {
    // Two statements: a plan that must do for both would read every entry for the few of one kind.
    let rows = if let Some(kind) = kind {
        sqlx::query("SELECT seq, bytes, leaf FROM log_entries WHERE seq >= $1 AND seq < $2 AND kind = $3 AND bytes <> '' ORDER BY seq LIMIT $4")
            .bind(from)
            .bind(below)
            .bind(kind)
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await?
    } else {
        sqlx::query("SELECT seq, bytes, leaf FROM log_entries WHERE seq >= $1 AND seq < $2 ORDER BY seq LIMIT $3")
            .bind(from)
            .bind(below)
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await?
    };
    rows.iter().map(entry).collect()
}

fn entry(r: &PgRow) -> Result<(u64, Vec<u8>, Digest), StoreError> {
    let seq: i64 = r.get("seq");
    Ok((seq.cast_unsigned(), r.get("bytes"), digest_of(r.get("leaf"))?))
}

pub(super) async fn size(pool: &PgPool, below: i64) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(seq) + 1, 0) FROM log_entries WHERE seq < $1")
        .bind(below)
        .fetch_one(pool)
        .await?)
}

pub(super) async fn raw_entries(
    pool: &PgPool,
    from: i64,
    below: i64,
    limit: u32,
) -> Result<RawEntries, StoreError> {
    Ok(sqlx::query_as(
        "SELECT seq, bytes, leaf FROM log_entries WHERE seq >= $1 AND seq < $2 ORDER BY seq LIMIT $3",
    )
    .bind(from)
    .bind(below)
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?)
}

pub(super) async fn newest_checkpoint(
    pool: &PgPool,
    after: i64,
    until: i64,
) -> Result<Option<(i64, String)>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT tree_size, note FROM log_checkpoints WHERE tree_size > $1 AND tree_size <= $2 ORDER BY tree_size DESC LIMIT 1",
    )
    .bind(after)
    .bind(until)
    .fetch_optional(pool)
    .await?)
}

pub(super) async fn checkpoint(
    pool: &PgPool,
    tree_size: i64,
) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar("SELECT note FROM log_checkpoints WHERE tree_size = $1")
        .bind(tree_size)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn checkpoints(
    pool: &PgPool,
    after: i64,
    until: i64,
    limit: u32,
) -> Result<Checkpoints, StoreError> {
    Ok(sqlx::query_as("SELECT tree_size, note FROM log_checkpoints WHERE tree_size > $1 AND tree_size <= $2 ORDER BY tree_size LIMIT $3")
        .bind(after)
        .bind(until)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?)
}

pub(super) async fn cosignatures(pool: &PgPool, tree_size: i64) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT line FROM log_cosignatures WHERE tree_size = $1 ORDER BY witness LIMIT $2",
    )
    .bind(tree_size)
    .bind(i64::from(COSIGNATURES_MAX))
    .fetch_all(pool)
    .await?)
}

pub(super) async fn witnesses(
    pool: &PgPool,
    after: i64,
    until: i64,
) -> Result<Vec<(String, i64)>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT witness, max(tree_size) FROM log_cosignatures WHERE tree_size > $1 AND tree_size <= $2 GROUP BY witness ORDER BY witness",
    )
    .bind(after)
    .bind(until)
    .fetch_all(pool)
    .await?)
}

pub(super) async fn witnessed(
    pool: &PgPool,
    after: i64,
    until: i64,
) -> Result<Vec<i64>, StoreError> {
    Ok(sqlx::query_scalar("SELECT DISTINCT newest FROM (SELECT max(tree_size) AS newest FROM log_cosignatures WHERE tree_size > $1 AND tree_size <= $2 GROUP BY witness) AS newest_of_each ORDER BY newest")
        .bind(after)
        .bind(until)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn timestamps(
    pool: &PgPool,
    what: &str,
    (after, until): (i64, i64),
    (from, below): (i64, i64),
    limit: u32,
) -> Result<Vec<TimestampColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT imprint, tree_size, authority, stamped_ms, answer, log_index, committed_ms FROM log_timestamps WHERE what = $1 AND tree_size > $2 AND tree_size <= $3 AND log_index >= $4 AND log_index < $5 ORDER BY tree_size LIMIT $6")
        .bind(what)
        .bind(after)
        .bind(until)
        .bind(from)
        .bind(below)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?)
}

pub(super) async fn newest_timestamp(
    pool: &PgPool,
    what: &str,
    (after, until): (i64, i64),
) -> Result<Option<TimestampColumns>, StoreError> {
    Ok(sqlx::query_as("SELECT imprint, tree_size, authority, stamped_ms, answer, log_index, committed_ms FROM log_timestamps WHERE what = $1 AND tree_size > $2 AND tree_size <= $3 ORDER BY tree_size DESC LIMIT 1")
        .bind(what)
        .bind(after)
        .bind(until)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn timestamp_of(
    pool: &PgPool,
    what: &str,
    imprint: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar("SELECT answer FROM log_timestamps WHERE what = $1 AND imprint = $2")
        .bind(what)
        .bind(imprint)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn leaves(
    pool: &PgPool,
    from: i64,
    below: i64,
) -> Result<Vec<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar("SELECT leaf FROM log_entries WHERE seq >= $1 AND seq < $2 ORDER BY seq")
        .bind(from)
        .bind(below)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn tile_hashes(
    pool: &PgPool,
    level: u32,
    from: i64,
    below: i64,
) -> Result<Vec<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT hash FROM log_tiles WHERE level = $1 AND n >= $2 AND n < $3 ORDER BY n",
    )
    .bind(i64::from(level))
    .bind(from)
    .bind(below)
    .fetch_all(pool)
    .await?)
}

pub(super) async fn tiles(pool: &PgPool, from: u32, below: u32) -> Result<Tiles, StoreError> {
    Ok(sqlx::query_as("SELECT level, n, hash FROM log_tiles WHERE level >= $1 AND level < $2")
        .bind(i64::from(from))
        .bind(i64::from(below))
        .fetch_all(pool)
        .await?)
}

pub(super) async fn shards(pool: &PgPool) -> Result<Vec<(i64, String, i64)>, StoreError> {
    Ok(sqlx::query_as("SELECT number, origin, first FROM log_shards ORDER BY number")
        .fetch_all(pool)
        .await?)
}

pub(super) async fn pruned(pool: &PgPool, shard: u32) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM log_prunings WHERE shard = $1)")
        .bind(i64::from(shard))
        .fetch_one(pool)
        .await?)
}

pub(super) async fn certificates(pool: &PgPool) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    Ok(sqlx::query_as("SELECT sha256, der FROM certificates ORDER BY sha256")
        .fetch_all(pool)
        .await?)
}

pub(super) async fn certificate(
    pool: &PgPool,
    sha256: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar("SELECT der FROM certificates WHERE sha256 = $1")
        .bind(sha256)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn personal(pool: &PgPool, from: i64, below: i64) -> Result<Personal, StoreError> {
    Ok(sqlx::query_as(
        "SELECT seq, person, sealed FROM log_personal WHERE seq >= $1 AND seq < $2 ORDER BY seq",
    )
    .bind(from)
    .bind(below)
    .fetch_all(pool)
    .await?)
}

pub(super) async fn personal_certificates(
    pool: &PgPool,
) -> Result<Vec<(String, String, Vec<u8>)>, StoreError> {
    Ok(sqlx::query_as("SELECT person, tag, sealed FROM personal_certificates ORDER BY person, tag")
        .fetch_all(pool)
        .await?)
}

pub(super) async fn newest_of(
    pool: &PgPool,
    object: i64,
    from: i64,
    below: i64,
    but: &[&str],
) -> Result<Option<i64>, StoreError> {
    let mut query: QueryBuilder<Postgres> = QueryBuilder::new(
        "SELECT max(o.seq) FROM log_objects o JOIN log_entries e ON e.seq = o.seq WHERE o.object = ",
    );
    query.push_bind(object).push(" AND o.seq >= ").push_bind(from);
    query.push(" AND o.seq < ").push_bind(below);
    for kind in but {
        query.push(" AND e.kind <> ").push_bind((*kind).to_owned());
    }
    Ok(query.build_query_scalar().fetch_one(pool).await?)
}

pub(super) async fn policies(pool: &PgPool) -> Result<Vec<(String, String, Vec<u8>)>, StoreError> {
    Ok(sqlx::query_as("SELECT set_sha256, file, bytes FROM policies ORDER BY set_sha256, file")
        .fetch_all(pool)
        .await?)
}

pub(super) async fn term(pool: &PgPool, name: &str) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar("SELECT id FROM log_object_names WHERE name = $1")
        .bind(name)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn digests(pool: &PgPool, prefix: &str) -> Result<Vec<String>, StoreError> {
    // `g` comes after every digit.
    Ok(sqlx::query_scalar("SELECT name FROM log_object_names WHERE name >= $1 AND name < $1 || 'g' AND length(name) = 64 ORDER BY name LIMIT 2")
        .bind(prefix)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn touch(
    pool: &PgPool,
    object: i64,
    from: i64,
    below: i64,
    after: i64,
) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar("SELECT seq FROM log_objects WHERE object = $1 AND seq >= $2 AND seq < $3 ORDER BY seq LIMIT 1 OFFSET $4")
        .bind(object)
        .bind(from)
        .bind(below)
        .bind(after)
        .fetch_optional(pool)
        .await?)
}

pub(super) async fn find(
    pool: &PgPool,
    objects: &[i64],
    kind: Option<&str>,
    from: i64,
    below: i64,
    limit: u32,
) -> Result<Entries, StoreError> {
    let mut query: QueryBuilder<Postgres> = QueryBuilder::new("SELECT e.seq, e.bytes, e.leaf ");
    if let Some((leader, others)) = objects.split_first() {
        query.push("FROM log_objects o JOIN log_entries e ON e.seq = o.seq WHERE o.object = ");
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
    query.push(" ORDER BY e.seq LIMIT ").push_bind(i64::from(limit));
    query.build().fetch_all(pool).await?.iter().map(entry).collect()
}

pub(super) async fn touches(
    pool: &PgPool,
    names: &[&str],
    from: i64,
    below: i64,
) -> Result<Vec<(String, i64)>, StoreError> {
    Ok(sqlx::query_as("SELECT n.name, o.seq FROM log_object_names n JOIN log_objects o ON o.object = n.id WHERE n.name = ANY($1) AND o.seq >= $2 AND o.seq < $3")
        .bind(names)
        .bind(from)
        .bind(below)
        .fetch_all(pool)
        .await?)
}

pub(super) async fn touches_after(
    pool: &PgPool,
    (object, seq): raw::Place,
    limit: u32,
) -> Result<Vec<raw::Place>, StoreError> {
    Ok(sqlx::query_as("SELECT object, seq FROM log_objects WHERE (object, seq) > ($1, $2) ORDER BY object, seq LIMIT $3")
        .bind(object)
        .bind(seq)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?)
}

pub(super) async fn whole_touches_after(
    pool: &PgPool,
    (object, seq): raw::Place,
    limit: u32,
) -> Result<Vec<raw::Touch>, StoreError> {
    Ok(sqlx::query_as("SELECT o.object, o.seq, n.name, e.bytes FROM log_objects o LEFT JOIN log_object_names n ON n.id = o.object LEFT JOIN log_entries e ON e.seq = o.seq WHERE (o.object, o.seq) > ($1, $2) ORDER BY o.object, o.seq LIMIT $3")
        .bind(object)
        .bind(seq)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?)
}

pub(super) async fn raw_timestamps(
    pool: &PgPool,
    (from, imprint): (i64, &str),
    below: i64,
    limit: u32,
) -> Result<Vec<raw::Stamp>, StoreError> {
    Ok(sqlx::query_as("SELECT imprint, what, tree_size, stamped_ms, answer, log_index FROM log_timestamps WHERE (log_index, imprint) > ($1, $2) AND log_index < $3 ORDER BY log_index, imprint LIMIT $4")
        .bind(from)
        .bind(imprint)
        .bind(below)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?)
}

pub(super) async fn raw_personal(
    pool: &PgPool,
    from: i64,
    below: i64,
    limit: u32,
) -> Result<Personal, StoreError> {
    Ok(sqlx::query_as("SELECT seq, person, sealed FROM log_personal WHERE seq >= $1 AND seq < $2 ORDER BY seq LIMIT $3")
        .bind(from)
        .bind(below)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?)
}

// ---- writing ----

pub(super) async fn put_round(
    tx: &mut PgConnection,
    id: &RoundId,
    attempt: u32,
    state: String,
    version: u64,
) -> Result<bool, StoreError> {
    let done = if version == 0 {
        sqlx::query("INSERT INTO rounds (study, number, attempt, version, state) VALUES ($1, $2, $3, 1, $4) ON CONFLICT DO NOTHING")
            .bind(id.study.as_str())
            .bind(i64::from(id.number))
            .bind(i64::from(attempt))
            .bind(state)
            .execute(tx)
            .await?
    } else {
        sqlx::query("UPDATE rounds SET state = $1, version = version + 1 WHERE study = $2 AND number = $3 AND attempt = $4 AND version = $5")
            .bind(state)
            .bind(id.study.as_str())
            .bind(i64::from(id.number))
            .bind(i64::from(attempt))
            .bind(version.cast_signed())
            .execute(tx)
            .await?
    };
    Ok(done.rows_affected() == 1)
}

pub(super) async fn has_ended(tx: &mut PgConnection, id: &StudyId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM studies WHERE id = $1 AND state <> 'running')",
    )
    .bind(id.as_str())
    .fetch_one(tx)
    .await?)
}

pub(super) async fn put_registry(
    tx: &mut PgConnection,
    study: &StudyId,
    state: &str,
    version: u64,
) -> Result<bool, StoreError> {
    let done = if version == 0 {
        sqlx::query("INSERT INTO registries (study, version, state) VALUES ($1, 1, $2) ON CONFLICT DO NOTHING")
            .bind(study.as_str())
            .bind(state)
            .execute(tx)
            .await?
    } else {
        sqlx::query("UPDATE registries SET state = $1, version = version + 1 WHERE study = $2 AND version = $3")
            .bind(state)
            .bind(study.as_str())
            .bind(version.cast_signed())
            .execute(tx)
            .await?
    };
    Ok(done.rows_affected() == 1)
}

pub(super) async fn put_entries(
    tx: &mut PgConnection,
    shard: &Shard,
    entries: &[Written],
) -> Result<(), StoreError> {
    for rows in entries.chunks(ROWS_PER_INSERT) {
        let seqs: Vec<i64> = rows.iter().map(|r| shard.place(r.seq)).collect();
        let kinds: Vec<&str> = rows.iter().map(|r| r.kind.as_str()).collect();
        let bytes: Vec<&[u8]> = rows.iter().map(|r| &r.bytes[..]).collect();
        let leaves: Vec<&[u8]> = rows.iter().map(|r| &r.leaf.0[..]).collect();
        sqlx::query("INSERT INTO log_entries (seq, kind, bytes, leaf) SELECT * FROM unnest($1::bigint[], $2::text[], $3::bytea[], $4::bytea[])")
            .bind(seqs)
            .bind(kinds)
            .bind(bytes)
            .bind(leaves)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

pub(super) async fn put_personal(
    tx: &mut PgConnection,
    shard: &Shard,
    personal: &[Sealed],
) -> Result<(), StoreError> {
    for rows in personal.chunks(ROWS_PER_INSERT) {
        let mut insert: QueryBuilder<Postgres> =
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
    tx: &mut PgConnection,
    shard: &Shard,
    tiles: &[(u32, u64, [u8; 32])],
) -> Result<(), StoreError> {
    for rows in tiles.chunks(ROWS_PER_INSERT) {
        let level = |level: u32| i64::from(shard.level(level));
        let levels: Vec<i64> = rows.iter().map(|(of, ..)| level(*of)).collect();
        let numbers: Vec<i64> = rows.iter().map(|(_, n, _)| n.cast_signed()).collect();
        let hashes: Vec<&[u8]> = rows.iter().map(|(.., hash)| &hash[..]).collect();
        sqlx::query("INSERT INTO log_tiles (level, n, hash) SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[])")
            .bind(levels)
            .bind(numbers)
            .bind(hashes)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

pub(super) async fn put_objects(
    tx: &mut PgConnection,
    touched: &BTreeMap<String, Vec<i64>>,
) -> Result<(), StoreError> {
    let names: Vec<&str> = touched.keys().map(String::as_str).collect();
    for names in names.chunks(ROWS_PER_INSERT) {
        sqlx::query("INSERT INTO log_object_names (name) SELECT touched.name FROM unnest($1::text[]) AS touched (name) WHERE NOT EXISTS (SELECT FROM log_object_names n WHERE n.name = touched.name COLLATE \"C\")")
            .bind(names)
            .execute(&mut *tx)
            .await?;
    }
    let pairs: Vec<(&str, i64)> = touched
        .iter()
        .flat_map(|(name, seqs)| seqs.iter().map(|seq| (name.as_str(), *seq)))
        .collect();
    for rows in pairs.chunks(ROWS_PER_INSERT) {
        let (names, seqs): (Vec<&str>, Vec<i64>) = rows.iter().copied().unzip();
        sqlx::query("INSERT INTO log_objects (object, seq) SELECT n.id, touched.seq FROM unnest($1::text[], $2::bigint[]) AS touched (name, seq) JOIN log_object_names n ON n.name = touched.name COLLATE \"C\"")
            .bind(names)
            .bind(seqs)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

pub(super) async fn clear_tiles(tx: &mut PgConnection, shard: &Shard) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM log_tiles WHERE level >= $1 AND level < $2")
        .bind(i64::from(shard.level(0)))
        .bind(i64::from(shard.level(LEVELS)))
        .execute(tx)
        .await?;
    Ok(())
}

#[expect(clippy::too_many_lines, reason = "one statement for each kind of row")]
pub(super) async fn put(
    tx: &mut PgConnection,
    shard: &Shard,
    change: Change,
    committed: &Committed,
) -> Result<(), StoreError> {
    match change {
        Change::Study(s) => {
            sqlx::query("INSERT INTO studies (id, sha256, yaml, state, submitted_ms, submitted_by) VALUES ($1, $2, $3, $4, $5, $6)")
                .bind(s.id.as_str())
                .bind(s.sha256.to_string())
                .bind(s.yaml)
                .bind(s.state)
                .bind(committed.at.as_millis())
                .bind(text(s.submitted_by))
                .execute(tx)
                .await?
        }
        Change::StudyState(id, state, reason) => {
            sqlx::query("UPDATE studies SET state = $1, reason = $2 WHERE id = $3")
                .bind(state)
                .bind(reason.map(text))
                .bind(id.as_str())
                .execute(tx)
                .await?
        }
        Change::Update(u, entry) => {
            sqlx::query("INSERT INTO updates (study, number, attempt, site, header, signature, payload, bytes, epsilon, log_index, leaf, committed_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)")
                .bind(u.round.study.as_str())
                .bind(i64::from(u.round.number))
                .bind(i64::from(u.attempt))
                .bind(u.site.to_string())
                .bind(u.header)
                .bind(u.signature)
                .bind(u.payload.to_string())
                .bind(u.bytes.cast_signed())
                .bind(text(u.epsilon))
                .bind((committed.first + entry as u64).cast_signed())
                .bind(committed.leaves[entry].0.to_vec())
                .bind(committed.at.as_millis())
                .execute(tx)
                .await?
        }
        Change::Exchange(e) => {
            sqlx::query("INSERT INTO exchanges (study, number, attempt, phase, site, messages) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (study, number, attempt, phase, site) DO UPDATE SET messages = excluded.messages")
                .bind(e.round.study.as_str())
                .bind(i64::from(e.round.number))
                .bind(i64::from(e.attempt))
                .bind(e.phase)
                .bind(e.site.to_string())
                .bind(e.messages)
                .execute(tx)
                .await?
        }
        Change::Model(m) => {
            sqlx::query("INSERT INTO models (study, number, sha256, published_ms) VALUES ($1, $2, $3, $4)")
                .bind(m.study.as_str())
                .bind(i64::from(m.number))
                .bind(m.sha256.to_string())
                .bind(committed.at.as_millis())
                .execute(tx)
                .await?
        }
        // It was put before anything else of its commit.
        Change::Registry(..) => return Ok(()),
        Change::Provenance(study, number, envelope) => {
            sqlx::query("INSERT INTO provenances (study, number, envelope) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(study.as_str())
                .bind(i64::from(number))
                .bind(envelope)
                .execute(tx)
                .await?
        }
        Change::Certificate(digest, der) => {
            sqlx::query("INSERT INTO certificates (sha256, der) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                .bind(digest.to_string())
                .bind(der)
                .execute(tx)
                .await?
        }
        Change::PersonalCertificate { person, tag, sealed } => {
            sqlx::query("INSERT INTO personal_certificates (person, tag, sealed) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(person.to_string())
                .bind(tag.to_string())
                .bind(sealed)
                .execute(tx)
                .await?
        }
        Change::Policy(set, file, bytes) => {
            sqlx::query("INSERT INTO policies (set_sha256, file, bytes) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(set.to_string())
                .bind(file)
                .bind(bytes)
                .execute(tx)
                .await?
        }
        Change::Checkpoint(size, note) => {
            sqlx::query("INSERT INTO log_checkpoints (tree_size, note) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                .bind(shard.place(size))
                .bind(note)
                .execute(tx)
                .await?
        }
        Change::Cosignature(shard, size, witness, line) => {
            sqlx::query("INSERT INTO log_cosignatures (tree_size, witness, line) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(shard.place(size))
                .bind(witness)
                .bind(line)
                .execute(tx)
                .await?
        }
        Change::Shard(origin) => {
            sqlx::query("INSERT INTO log_shards (number, origin, first) VALUES ($1, $2, $3)")
                .bind(i64::from(shard.number))
                .bind(origin)
                .bind(shard.place(0))
                .execute(tx)
                .await?
        }
        Change::Prune(shard) => {
            sqlx::query("INSERT INTO log_prunings (shard) VALUES ($1) ON CONFLICT DO NOTHING")
                .bind(i64::from(shard.number))
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
async fn empty(tx: &mut PgConnection, from: i64, below: i64) -> Result<(), StoreError> {
    let rows: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT seq, bytes FROM log_entries WHERE seq >= $1 AND seq < $2")
            .bind(from)
            .bind(below)
            .fetch_all(&mut *tx)
            .await?;
    let touched = touched(rows.iter().map(|(seq, bytes)| (*seq, &bytes[..])));
    sqlx::query("SELECT empty_entries($1, $2, $3, $4)")
        .bind(from)
        .bind(below)
        .bind(Kind::KEPT.map(Kind::as_str).to_vec())
        .bind(touched.into_keys().collect::<Vec<_>>())
        .execute(tx)
        .await?;
    Ok(())
}

async fn put_timestamp(
    tx: &mut PgConnection,
    shard: &Shard,
    t: TimestampRow,
    committed: &Committed,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO log_timestamps (imprint, what, tree_size, authority, stamped_ms, answer, log_index, committed_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
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
