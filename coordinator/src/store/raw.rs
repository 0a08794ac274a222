//! What lies beside the entries as it lies there, whatever was done to it: for whoever checks a log at rest.
//!
//! Page by page, in an order that an index has.

use super::{Pool, Store, StoreError, ask, postgres, sqlite};

/// Where a page of the index of what entries touch goes on: behind this object and this stored entry.
pub type Place = (i64, i64);
/// Of the index: the object, the stored entry, the object's name if it has one, and the entry's bytes if it is there.
pub(super) type Touch = (i64, i64, Option<String>, Option<Vec<u8>>);
/// imprint, of what, tree size, stamped, answer, index.
pub(super) type Stamp = (String, String, i64, i64, Vec<u8>, i64);

/// A row of the index of what entries touch.
#[derive(Debug)]
pub struct RawTouch {
    /// Where the next page goes on.
    pub place: Place,
    /// The entry, if it is one of this shard.
    pub index: Option<u64>,
    /// The term, if it has a name.
    pub term: Option<String>,
    /// The entry's bytes, if it is there.
    pub bytes: Option<Vec<u8>>,
}

/// A row of time-stamps.
#[derive(Debug)]
pub struct RawStamp {
    /// What should be a SHA-256.
    pub imprint: String,
    /// What should be `checkpoint` or `report`.
    pub what: String,
    /// Entries in the checkpoint.
    pub tree_size: u64,
    /// When, by the authority's clock, in milliseconds since 1970.
    pub stamped_ms: i64,
    /// What the authority answered.
    pub answer: Vec<u8>,
    /// Index of its entry in the log.
    pub log_index: u64,
}

impl Store {
    /// Of these terms, those under which entries from one index to below another are in the index: term and entry.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn touches(
        &self,
        terms: &[&str],
        from: u64,
        below: u64,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let (from, below) = (self.shard.place(from), self.shard.place(below));
        let rows = ask!(self, touches, terms, from, below).into_iter();
        Ok(rows.map(|(term, seq)| (term, self.shard.index(seq))).collect())
    }

    /// Rows of the index behind a place, at most `limit`: where each lies, and its entry if that is one of this shard.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn touches_after(
        &self,
        after: Place,
        limit: u32,
    ) -> Result<Vec<(Place, Option<u64>)>, StoreError> {
        let rows = ask!(self, touches_after, after, limit).into_iter();
        Ok(rows.map(|place| (place, self.own(place.1))).collect())
    }

    /// The same, with the terms and the entries that they are of.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn whole_touches_after(
        &self,
        after: Place,
        limit: u32,
    ) -> Result<Vec<RawTouch>, StoreError> {
        let touch = |(object, seq, term, bytes): Touch| RawTouch {
            place: (object, seq),
            index: self.own(seq),
            term,
            bytes,
        };
        Ok(ask!(self, whole_touches_after, after, limit).into_iter().map(touch).collect())
    }

    /// Entries of this shard that are not in the index yet, because they were written before there was one: from one index
    /// to below another.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn not_indexed(&self) -> Result<Option<(u64, u64)>, StoreError> {
        let lack = match &self.pool {
            Pool::Sqlite(pool) => sqlite::not_indexed(pool).await?,
            // There was an index from the beginning.
            Pool::Postgres(_) => None,
        };
        let (first, end) = (self.shard.place(0), self.shard.place(u64::MAX));
        let own = |at: i64| self.shard.index(at.clamp(first, end));
        Ok(lack.map(|(from, below)| (own(from), own(below))))
    }

    /// Time-stamps whose entries should be in this shard, by the entry and then by the imprint, behind these; at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn raw_timestamps(
        &self,
        after: Option<(u64, &str)>,
        limit: u32,
    ) -> Result<Vec<RawStamp>, StoreError> {
        let (from, imprint) = after.unwrap_or((0, ""));
        let (from, below) = (self.shard.place(from), self.shard.place(u64::MAX));
        let row = |(imprint, what, tree_size, stamped_ms, answer, log_index): Stamp| RawStamp {
            imprint,
            what,
            tree_size: self.shard.index(tree_size),
            stamped_ms,
            answer,
            log_index: self.shard.index(log_index),
        };
        let rows = ask!(self, raw_timestamps, (from, imprint), below, limit);
        Ok(rows.into_iter().map(row).collect())
    }

    /// What is sealed of people in entries from this index on, at most `limit`: entry, what should be a pseudonym, and what
    /// was sealed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn raw_personal(
        &self,
        from: u64,
        limit: u32,
    ) -> Result<Vec<(u64, String, Vec<u8>)>, StoreError> {
        let (from, below) = (self.shard.place(from), self.shard.place(u64::MAX));
        let rows = ask!(self, raw_personal, from, below, limit).into_iter();
        Ok(rows.map(|(seq, person, sealed)| (self.shard.index(seq), person, sealed)).collect())
    }

    /// The index of what lies there, if it is in this shard.
    fn own(&self, seq: i64) -> Option<u64> {
        let own = seq >= self.shard.place(0) && (!self.ended() || seq < self.shard.place(u64::MAX));
        own.then(|| self.shard.index(seq))
    }
}
