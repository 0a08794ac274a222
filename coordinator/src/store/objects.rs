//! Which entries touch what: the index behind "who accessed this?", and the queries over it.
//!
//! What an entry touches is decided in `falaj_core::audit::objects`. The writer puts entries and their index into one
//! transaction; in a SQLite file, entries from before there was an index are put there when the coordinator starts.

use super::{Pool, Store, StoreError, ask, bound, postgres, row, sqlite};
use falaj_core::{
    audit::{
        Entry, Kind,
        objects::{Object, is_prefix, terms},
    },
    id::Digest,
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

/// Entries that one query looks at, at most, before it gives the place to go on from.
const LOOKED_AT_MAX: u64 = 100_000;

/// Entries that are read at once where one is looked for.
const PAGE: u32 = 50;

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

/// Which of these entries, by where they are stored, touch each object, in order.
pub(super) fn touched<'a>(
    entries: impl IntoIterator<Item = (i64, &'a [u8])>,
) -> BTreeMap<String, Vec<i64>> {
    let mut touched: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (seq, bytes) in entries {
        // Bytes that are no entry touch nothing; the writer makes none.
        for term in Entry::parse(bytes).map(|e| terms(&e)).unwrap_or_default() {
            touched.entry(term).or_default().push(seq);
        }
    }
    touched
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
        let mut digests = ask!(self, digests, text).into_iter();
        Ok(match (digests.next(), digests.next(), object) {
            (Some(one), None, _) => Named::Object(Object::Digest(row::parsed(&one)?)),
            (Some(one), Some(other), _) => Named::Several(one, other),
            (None, _, Some(study)) => Named::Object(study),
            (None, _, None) => Named::Nothing,
        })
    }

    pub(super) async fn term(&self, name: &str) -> Result<Option<i64>, StoreError> {
        Ok(ask!(self, term, name))
    }

    /// Entries that are wanted, at most `limit` of them, and where to go on. Looks at a bounded number of entries, so a
    /// page can be empty and yet not the last.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Pruned`] where contents were deleted.
    pub async fn find(&self, wanted: &Wanted, limit: u32) -> Result<Found, StoreError> {
        self.check_whole().await?;
        self.find_left(wanted, limit).await
    }

    /// As [`Self::find`], also in a shard whose contents are being deleted: among those that are still there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find_left(&self, wanted: &Wanted, limit: u32) -> Result<Found, StoreError> {
        let (from, mut below) = (self.shard.place(wanted.from), self.shard.place(wanted.below));
        let mut objects = Vec::new();
        for name in &wanted.terms {
            let Some(id) = self.term(name).await? else { return Ok(Found::default()) };
            // How often it is touched, and where the bound is reached.
            let end = ask!(self, touch, id, from, below, LOOKED_AT_MAX.cast_signed());
            objects.push((end, id));
        }
        // The rarest one leads: the one whose bound is reached last, or never.
        objects.sort_by_key(|(end, _)| std::cmp::Reverse(end.unwrap_or(i64::MAX)));
        let stopped = objects.first().and_then(|(end, _)| *end);
        below = stopped.unwrap_or(below);
        let objects: Vec<i64> = objects.into_iter().map(|(_, id)| id).collect();
        let kind = wanted.kind.map(Kind::as_str);
        let entries = self.indexed(ask!(self, find, &objects, kind, from, below, limit));
        let next = match entries.last() {
            Some((last, ..)) if entries.len() == limit as usize => Some(last + 1),
            _ => stopped.map(|at| self.shard.index(at)),
        };
        Ok(Found { entries, next })
    }

    /// One entry, of a kind if one is named, that touches an object: the first that `is` the one, in the newest shard that has one.
    /// Shards whose contents were deleted have none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find_one(
        &self,
        object: &Object,
        kind: Option<Kind>,
        is: impl Fn(&Entry) -> bool + Send,
    ) -> Result<Option<Entry>, StoreError> {
        for store in self.shards().await?.iter().rev() {
            if store.pruned().await? {
                continue;
            }
            let terms = [object.to_string()].into();
            let mut wanted = Wanted { terms, kind, from: 0, below: u64::MAX };
            loop {
                let found = store.find(&wanted, PAGE).await?;
                for (index, bytes, _) in &found.entries {
                    let entry = Entry::parse(bytes)
                        .map_err(|e| StoreError::Corrupt(format!("log entry {index} ({e})")))?;
                    if is(&entry) {
                        return Ok(Some(entry));
                    }
                }
                let Some(next) = found.next else { break };
                wanted.from = next;
            }
        }
        Ok(None)
    }

    /// Index of the first entry, of the first `size`, that is not earlier than `time`: entries are in the order of time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn first_at(&self, time: Timestamp, size: u64) -> Result<u64, StoreError> {
        self.check_whole().await?;
        let time = time.to_string();
        let (mut low, mut high) = (0, size);
        while low < high {
            let middle = low + (high - low) / 2;
            let stored = self.raw_entries(middle, 1).await?.into_iter().next();
            let bytes = stored.filter(|(seq, ..)| *seq == bound(middle)).map(|(_, bytes, _)| bytes);
            let entry = bytes.as_deref().and_then(|bytes| Entry::parse(bytes).ok());
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
}
