//! What lies beside the entries, held against them: the index of what they touch, time-stamps, and what is sealed of people.
//!
//! None of it is in the tree, so a change there contradicts no checkpoint; but all of it follows from the entries, or is
//! named by them. Rows come in the order of the entries, a page at a time. An entry that cannot be read says nothing.

use super::{FAULTS_MAX, Fault, Findings, PAGE};
use crate::{
    persons::Persons,
    store::{Store, StoreError, raw::RawStamp, row::Stamped},
};
use falaj_core::{
    audit::{Entry, Kind, objects::terms, person::Person},
    canon::CanonError,
    id::Digest,
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Rows that are read at once with what they are of, or with what an authority answered.
const ROWS: u32 = 256;
/// Before every row of the index.
const BEFORE_ALL: (i64, i64) = (i64::MIN, i64::MIN);

/// What lies beside the entries of one shard, as they go by.
pub(super) struct Beside<'a> {
    store: &'a Store,
    persons: &'a Persons,
    /// Contents were deleted here, with the index and what was sealed of people; of entries that are kept, too.
    pruned: bool,
    /// Entries that were written before there was an index, and wait for the next start.
    not_indexed: Option<(u64, u64)>,
    /// Terms of the entries since the index was last compared, and where those begin.
    touched: BTreeMap<String, BTreeSet<u64>>,
    from: u64,
    /// Rows of the index that are right.
    right: u64,
    stamps: Rows<RawStamp>,
    personal: Rows<(u64, String, Vec<u8>)>,
    index: Faults,
    stamped: Faults,
    people: Faults,
}

/// Rows that wait for their entries.
struct Rows<T> {
    page: VecDeque<T>,
    /// Nothing comes behind this page.
    last: bool,
    read: u64,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self { page: VecDeque::new(), last: false, read: 0 }
    }
}

impl<T> Rows<T> {
    fn fill(&mut self, rows: Vec<T>) {
        self.last = rows.len() < ROWS as usize;
        self.read += rows.len() as u64;
        self.page = rows.into();
    }
}

/// What is wrong with one kind of row. Each kind has room of its own, so that none hides what is wrong with the log itself.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn put(&mut self, index: u64, what: impl FnOnce() -> String) {
        if !self.are_full() {
            self.0.push(Fault { index: Some(index), what: what() });
        }
    }

    fn are_full(&self) -> bool {
        self.0.len() >= FAULTS_MAX
    }
}

impl<'a> Beside<'a> {
    pub(super) async fn begin(
        store: &'a Store,
        persons: &'a Persons,
        pruned: bool,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            store,
            persons,
            pruned,
            not_indexed: store.not_indexed().await?,
            touched: BTreeMap::new(),
            from: 0,
            right: 0,
            stamps: Rows::default(),
            personal: Rows::default(),
            index: Faults::default(),
            stamped: Faults::default(),
            people: Faults::default(),
        })
    }

    /// The next entry, if it can be read and was not deleted.
    pub(super) async fn take(
        &mut self,
        index: u64,
        entry: Option<Entry>,
        deleted: bool,
    ) -> Result<(), StoreError> {
        if let Some(entry) = &entry {
            for term in terms(entry) {
                self.touched.entry(term).or_default().insert(index);
            }
        }
        self.take_stamps(index, entry.as_ref()).await?;
        self.take_personal(index, entry, deleted).await
    }

    /// Compares the index with the entries that went by since it was last compared, below this one.
    pub(super) async fn compare(&mut self, below: u64) -> Result<(), StoreError> {
        let mut lacking = std::mem::take(&mut self.touched);
        let from = std::mem::replace(&mut self.from, below);
        let terms: Vec<&str> = lacking.keys().map(String::as_str).collect();
        for (term, index) in self.store.touches(&terms, from, below).await? {
            // What is there and is not right is found at the end, with whatever else is.
            let right = lacking.get_mut(&term).is_some_and(|entries| entries.remove(&index));
            self.right += u64::from(right);
        }
        let waits = |index: u64| {
            self.pruned || self.not_indexed.is_some_and(|(a, b)| (a..b).contains(&index))
        };
        let mut told: Vec<(u64, &String)> = Vec::new();
        for (term, entries) in &lacking {
            told.extend(entries.iter().filter(|i| !waits(**i)).map(|index| (*index, term)));
        }
        told.sort_unstable();
        for (index, term) in told {
            self.index.put(index, || {
                format!("it touches `{term}`, and the index of what entries touch does not say so")
            });
        }
        Ok(())
    }

    /// Everything was taken, `size` entries: what is wrong beside them.
    pub(super) async fn finish(
        mut self,
        size: u64,
        found: &mut Findings,
    ) -> Result<(), StoreError> {
        self.compare(size).await?;
        self.look_at_surplus(size, found).await?;
        // Whatever is left is of entries that are not there, or that have only come meanwhile.
        while let Some(stamp) = self.next_stamp(None).await? {
            if stamp.log_index >= self.store.size().await? {
                self.stamped.put(stamp.log_index, || {
                    format!("it is not there, and the time-stamp of {} names it", stamp.imprint)
                });
            }
        }
        while let Some((index, ..)) = self.next_personal(None).await? {
            if index >= self.store.size().await? {
                self.people.put(index, || {
                    "it is not there, and something personal lies beside the log for it".into()
                });
            }
        }
        found.timestamps = self.stamps.read;
        found.personal = self.personal.read;
        let faults = [self.index, self.stamped, self.people];
        found.faults.extend(faults.into_iter().flat_map(|faults| faults.0));
        Ok(())
    }

    /// Rows of the index that follow from no entry. Counts first: as a rule there are none.
    async fn look_at_surplus(&mut self, size: u64, found: &mut Findings) -> Result<(), StoreError> {
        let mut place = BEFORE_ALL;
        let (mut rows, mut beyond) = (0, false);
        loop {
            let page = self.store.touches_after(place, PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            place = *last;
            let own = page.iter().filter_map(|(_, index)| *index);
            rows += own.clone().filter(|index| *index < size).count() as u64;
            if let Some(most) = own.max().filter(|most| *most >= size) {
                beyond |= most >= self.store.size().await?;
            }
        }
        found.touches = rows;
        place = BEFORE_ALL;
        while (rows > self.right || beyond) && !self.index.are_full() {
            let page = self.store.whole_touches_after(place, ROWS).await?;
            let Some(last) = page.last() else { break };
            place = last.place;
            for touch in page {
                let Some(index) = touch.index else { continue };
                let Some(bytes) = touch.bytes else {
                    let term = touch.term.unwrap_or_default();
                    self.index.put(index, || {
                        format!("it is not there, and the index of what entries touch says that it touches `{term}`")
                    });
                    continue;
                };
                let entry = match Entry::parse(&bytes) {
                    Ok(entry) => entry,
                    Err(_) if self.pruned && bytes.is_empty() => {
                        let term = touch.term.unwrap_or_default();
                        self.index.put(index, || {
                            format!("its contents were deleted, and the index of what entries touch still says that it touches `{term}`")
                        });
                        continue;
                    }
                    Err(_) => continue,
                };
                match touch.term {
                    Some(term) if terms(&entry).contains(&term) => {}
                    Some(term) => self.index.put(index, || {
                        format!("the index of what entries touch says that it touches `{term}`, which it does not")
                    }),
                    None => self.index.put(index, || {
                        format!("the index of what entries touch says that it touches object {}, which has no name", touch.place.0)
                    }),
                }
            }
        }
        Ok(())
    }

    /// The next time-stamp, of this entry or one before it, or of any.
    async fn next_stamp(&mut self, until: Option<u64>) -> Result<Option<RawStamp>, StoreError> {
        if self.stamps.page.is_empty() && !self.stamps.last {
            self.stamps.fill(self.store.raw_timestamps(None, ROWS).await?);
        }
        let due = |row: &mut RawStamp| until.is_none_or(|until| row.log_index <= until);
        let row = self.stamps.page.pop_front_if(due);
        if let Some(row) = row.as_ref().filter(|_| self.stamps.page.is_empty() && !self.stamps.last)
        {
            let after = Some((row.log_index, row.imprint.as_str()));
            self.stamps.fill(self.store.raw_timestamps(after, ROWS).await?);
        }
        Ok(row)
    }

    async fn take_stamps(&mut self, index: u64, entry: Option<&Entry>) -> Result<(), StoreError> {
        let what = entry.and_then(|entry| match entry.kind {
            Kind::CheckpointStamped => Some((Stamped::Checkpoint, "checkpoint_sha256")),
            Kind::ReportStamped => Some((Stamped::Report, "report_sha256")),
            _ => None,
        });
        let mut stamps = 0;
        while let Some(row) = self.next_stamp(Some(index)).await? {
            stamps += 1;
            let Some(entry) = entry else { continue };
            let Some((what, digest)) = what else {
                self.stamped.put(index, || {
                    format!("it tells of no time-stamp, and that of {} names it", row.imprint)
                });
                continue;
            };
            match said(entry, what, digest, &row) {
                Ok(None) => {}
                Ok(Some(wrong)) => self.stamped.put(index, || wrong),
                Err(e) => self.stamped.put(index, || format!("it tells of no time-stamp: {e}")),
            }
        }
        if what.is_some() && stamps != 1 {
            self.stamped.put(index, || {
                format!("it tells of a time-stamp, and {stamps} lie beside the log for it")
            });
        }
        Ok(())
    }

    /// The next row of somebody, of this entry or one before it, or of any.
    async fn next_personal(
        &mut self,
        until: Option<u64>,
    ) -> Result<Option<(u64, String, Vec<u8>)>, StoreError> {
        if self.personal.page.is_empty() && !self.personal.last {
            self.personal.fill(self.store.raw_personal(0, ROWS).await?);
        }
        let due = |row: &mut (u64, String, Vec<u8>)| until.is_none_or(|until| row.0 <= until);
        let row = self.personal.page.pop_front_if(due);
        if let Some((index, ..)) =
            row.as_ref().filter(|_| self.personal.page.is_empty() && !self.personal.last)
        {
            self.personal.fill(self.store.raw_personal(index + 1, ROWS).await?);
        }
        Ok(row)
    }

    async fn take_personal(
        &mut self,
        index: u64,
        entry: Option<Entry>,
        deleted: bool,
    ) -> Result<(), StoreError> {
        let row = self.next_personal(Some(index)).await?;
        let Some(entry) = entry else {
            if deleted && row.is_some() {
                self.people.put(index, || {
                    "its contents were deleted, and something personal still lies beside the log for it".into()
                });
            }
            return Ok(());
        };
        let committed = entry.actor_person().filter(|_| entry.personal_commit().is_some());
        let wrong = match (committed, row) {
            (None, None) => None,
            (None, Some((_, named, _))) => Some(format!(
                "it commits to nobody, and something of person {named} lies beside the log for it"
            )),
            // Whoever was erased, or was being erased then, has nothing that could be opened.
            (Some(person), None) => {
                let known = self.persons.identity(person).filter(|_| !self.pruned);
                known.map(|_| {
                    format!(
                        "it commits to person {person}, and what opens that does not lie beside the log"
                    )
                })
            }
            (Some(person), Some((_, named, sealed))) => self.opens(person, &named, &sealed, entry),
        };
        if let Some(wrong) = wrong {
            self.people.put(index, || wrong);
        }
        Ok(())
    }

    /// Why what is sealed for an entry of this person is not what the entry commits to.
    fn opens(&self, person: Person, named: &str, sealed: &[u8], entry: Entry) -> Option<String> {
        if named.parse() != Ok(person) {
            return Some(format!(
                "it is of person {person}, and what lies beside the log for it is of `{named}`"
            ));
        }
        // Of whoever was erased nothing can be opened any more.
        self.persons.identity(person)?;
        match self.persons.disclosure(person, entry.seq, sealed) {
            None => Some(format!(
                "what lies beside the log for it cannot be opened by the key of person {person}: it was changed"
            )),
            Some(disclosure) => {
                let wrong = entry.disclosed(&disclosure).err()?;
                Some(format!("what lies beside the log for it is not what it commits to: {wrong}"))
            }
        }
    }
}

/// What a time-stamp's row says otherwise than its entry.
fn said(
    entry: &Entry,
    what: Stamped,
    digest: &str,
    row: &RawStamp,
) -> Result<Option<String>, CanonError> {
    let body = entry.body();
    let told = [
        ("of what it is", what.as_str().to_owned(), row.what.clone()),
        ("its digest", body.parsed::<Digest>(digest)?.to_string(), row.imprint.clone()),
        (
            "entries in its checkpoint",
            body.int::<u64>("tree_size")?.to_string(),
            row.tree_size.to_string(),
        ),
        (
            "the SHA-256 of the answer",
            body.parsed::<Digest>("token_sha256")?.to_string(),
            Digest::of(&row.answer).to_string(),
        ),
        (
            "when it was stamped",
            body.text("stamped")?.to_owned(),
            Timestamp::from_millis(row.stamped_ms).to_string(),
        ),
    ];
    let other = told.into_iter().find(|(_, entry, row)| entry != row);
    Ok(other.map(|(name, entry, row)| {
        format!("it tells of a time-stamp, and the one that lies beside the log differs: {name}, {entry} in the entry, is {row}")
    }))
}
