//! Which entries touch what: the index behind "who accessed this?", and the queries over it.
//!
//! What an entry touches is decided in `falaj_core::audit::objects`. The writer puts entries and their index into one
//! transaction; entries from before there was an index are put there when the coordinator starts.

use super::{Store, StoreError, row, writer::ROWS_PER_INSERT};
use falaj_core::{
    audit::{
        Entry, Kind,
        objects::{Object, is_prefix, terms},
    },
    id::Digest,
    merkle::TILE_WIDTH,
    time::Timestamp,
};
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, SqlitePool};
use std::collections::{BTreeMap, BTreeSet};

/// Entries that one query looks at, at most, before it gives the place to go on from.
const LOOKED_AT_MAX: u64 = 100_000;
/// Entries that are put into the index together when it is made anew.
const MENDED_TOGETHER: i64 = 1_000;

/// Which entries are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// All of these, as `falaj_core::audit::objects` spells them.
    pub terms: BTreeSet<String>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// From this index on.
    pub from: u64,
    /// Below this index.
    pub below: u64,
}

/// An entry as it is stored: index, bytes and leaf hash.
pub type Stored = (u64, Vec<u8>, Digest);

/// What was found, in order.
#[derive(Debug, Default)]
pub struct Found {
    /// The entries.
    pub entries: Vec<Stored>,
    /// Where to go on; none when nothing can come any more.
    pub next: Option<u64>,
}

/// What a text names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// This object, whether or not anything has touched it.
    Object(Object),
    /// No object, and no digest that begins with it.
    Nothing,
    /// Several digests that begin with it: two of them.
    Several(String, String),
}

/// Puts entries into the index, in the transaction that makes them durable.
pub(super) async fn put<'a>(
    tx: &mut SqliteConnection,
    entries: impl IntoIterator<Item = (u64, &'a [u8])>,
) -> Result<(), sqlx::Error> {
    let mut touched: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (seq, bytes) in entries {
        // Bytes that are no entry touch nothing; the writer makes none.
        for term in Entry::parse(bytes).map(|e| terms(&e)).unwrap_or_default() {
            touched.entry(term).or_default().push(seq.cast_signed());
        }
    }
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

/// Puts entries into the index that were written before there was one; it goes on where it was interrupted.
pub(super) async fn mend(pool: &SqlitePool) -> Result<(), StoreError> {
    let lack = "SELECT first, below FROM log_objects_lack";
    while let Some(row) = sqlx::query(lack).fetch_optional(pool).await? {
        let (first, below): (i64, i64) = (row.get("first"), row.get("below"));
        let next = below.min(first.saturating_add(MENDED_TOGETHER));
        let rows = sqlx::query("SELECT seq, bytes FROM log_entries WHERE seq >= ? AND seq < ?")
            .bind(first)
            .bind(next)
            .fetch_all(pool)
            .await?;
        let entries = rows
            .iter()
            .map(|r| (r.get::<i64, _>("seq").cast_unsigned(), r.get::<&[u8], _>("bytes")));
        let mut tx = pool.begin().await?;
        put(&mut tx, entries).await?;
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

impl Store {
    /// What a text names: an object, or the one digest that begins with it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn named(&self, text: &str) -> Result<Named, StoreError> {
        let object = text.parse::<Object>().ok();
        if let Some(object) = &object
            && (!is_prefix(text) || self.term(text).await?.is_some())
        {
            return Ok(Named::Object(object.clone()));
        }
        if !is_prefix(text) {
            return Ok(Named::Nothing);
        }
        // `g` comes after every digit.
        let rows = sqlx::query("SELECT name FROM log_object_names WHERE name >= ?1 AND name < ?1 || 'g' AND length(name) = 64 ORDER BY name LIMIT 2")
            .bind(text)
            .fetch_all(&self.pool)
            .await?;
        let mut digests = rows.iter().map(|r| r.get::<String, _>("name"));
        Ok(match (digests.next(), digests.next(), object) {
            (Some(one), None, _) => Named::Object(Object::Digest(row::parsed(&one)?)),
            (Some(one), Some(other), _) => Named::Several(one, other),
            (None, _, Some(study)) => Named::Object(study),
            (None, _, None) => Named::Nothing,
        })
    }

    async fn term(&self, name: &str) -> Result<Option<i64>, StoreError> {
        let row = sqlx::query("SELECT id FROM log_object_names WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|r| r.get("id")))
    }

    /// Entries that are wanted, at most `limit` of them, and where to go on. Looks at a bounded number of entries, so a
    /// page can be empty and yet not the last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find(&self, wanted: &Wanted, limit: u32) -> Result<Found, StoreError> {
        let from = wanted.from.cast_signed();
        let mut below = i64::try_from(wanted.below).unwrap_or(i64::MAX);
        let mut objects = Vec::new();
        for name in &wanted.terms {
            let Some(id) = self.term(name).await? else { return Ok(Found::default()) };
            // How often it is touched, and where the bound is reached.
            let end = sqlx::query("SELECT seq FROM log_objects WHERE object = ? AND seq >= ? AND seq < ? ORDER BY seq LIMIT 1 OFFSET ?")
                .bind(id)
                .bind(from)
                .bind(below)
                .bind(LOOKED_AT_MAX.cast_signed())
                .fetch_optional(&self.pool)
                .await?;
            objects.push((end.map(|r| r.get::<i64, _>("seq")), id));
        }
        // The rarest one leads: the one whose bound is reached last, or never.
        objects.sort_by_key(|(end, _)| std::cmp::Reverse(end.unwrap_or(i64::MAX)));
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new("SELECT e.seq, e.bytes, e.leaf ");
        let mut stopped = None;
        if let Some(((end, leader), others)) = objects.split_first() {
            stopped = *end;
            below = end.unwrap_or(below);
            query.push(
                "FROM log_objects o CROSS JOIN log_entries e ON e.seq = o.seq WHERE o.object = ",
            );
            query.push_bind(*leader).push(" AND o.seq >= ").push_bind(from);
            query.push(" AND o.seq < ").push_bind(below);
            for (_, other) in others {
                query.push(" AND EXISTS (SELECT 1 FROM log_objects x WHERE x.object = ");
                query.push_bind(*other).push(" AND x.seq = o.seq)");
            }
        } else {
            query.push("FROM log_entries e WHERE e.seq >= ").push_bind(from);
            query.push(" AND e.seq < ").push_bind(below);
        }
        if let Some(kind) = wanted.kind {
            query.push(" AND e.kind = ").push_bind(kind.as_str());
        }
        query.push(" ORDER BY e.seq LIMIT ").push_bind(limit);
        let rows = query.build().fetch_all(&self.pool).await?;
        let entries = rows
            .iter()
            .map(|r| {
                let seq: i64 = r.get("seq");
                Ok((seq.cast_unsigned(), r.get("bytes"), row::digest_of(r.get("leaf"))?))
            })
            .collect::<Result<Vec<Stored>, StoreError>>()?;
        let next = match entries.last() {
            Some((last, ..)) if entries.len() == limit as usize => Some(last + 1),
            _ => stopped.map(i64::cast_unsigned),
        };
        Ok(Found { entries, next })
    }

    /// Index of the first entry, of the first `size`, that is not earlier than `time`: entries are in the order of time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn first_at(&self, time: Timestamp, size: u64) -> Result<u64, StoreError> {
        let time = time.to_string();
        let (mut low, mut high) = (0, size);
        while low < high {
            let middle = low + (high - low) / 2;
            let row = sqlx::query("SELECT bytes FROM log_entries WHERE seq = ?")
                .bind(middle.cast_signed())
                .fetch_optional(&self.pool)
                .await?;
            let entry = row.as_ref().and_then(|r| Entry::parse(r.get("bytes")).ok());
            let entry =
                entry.ok_or_else(|| StoreError::Corrupt(format!("no log entry {middle}")))?;
            if entry.ts < time {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// The hashes of tile `n` of a level of tiles, as many as there are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tile(&self, level: u32, n: u64) -> Result<Vec<Digest>, StoreError> {
        let query = if level == 0 {
            "SELECT leaf AS hash FROM log_entries WHERE seq >= ?2 AND seq < ?3 AND ?1 = 0 ORDER BY seq"
        } else {
            "SELECT hash FROM log_tiles WHERE level = ?1 AND n >= ?2 AND n < ?3 ORDER BY n"
        };
        let first = (n * TILE_WIDTH).cast_signed();
        let rows = sqlx::query(query)
            .bind(level)
            .bind(first)
            .bind(first + TILE_WIDTH.cast_signed())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|r| row::digest_of(r.get("hash"))).collect()
    }
}
