//! Checks a coordinator's log at rest: every entry, hash and checkpoint in the database, what lies beside them, and the
//! checkpoint that is kept elsewhere. Changes nothing, and needs no key but the log's public one; by the keys of people it
//! opens what is sealed of them.

mod beside;

use crate::{checkpointer::high_water, persons::Persons, store::Store};
use anyhow::Result;
use beside::Beside;
use falaj_core::{
    audit::Entry,
    id::Digest,
    merkle::{Frontier, TILE_HEIGHT, leaf_hash},
    ml_dsa::MlDsaKey,
    note::{Checkpoint, VerifierKey},
    succession::LogKeys,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
};

/// Faults of one kind that are listed; a log with more of them is beyond repair by hand.
const FAULTS_MAX: usize = 100;
/// Entries or checkpoints that are read at once.
const PAGE: u32 = 1_024;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The entry that it is about, if it is about one.
    pub index: Option<u64>,
    /// What is wrong, what was expected, what was found.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// Of which shard.
    pub origin: String,
    /// Its entries in the database.
    pub entries: u64,
    /// Their root.
    pub root_hash: String,
    /// Checkpoints in the database, each held against the tree of its size.
    pub checkpoints: u64,
    /// Entries whose contents were deleted, as the log says that they may be.
    pub pruned: u64,
    /// Rows of the index of what its entries touch, each held against its entry.
    pub touches: u64,
    /// Time-stamps, likewise.
    pub timestamps: u64,
    /// What is sealed of people, likewise.
    pub personal: u64,
    /// What is wrong; nothing when the log is whole. At most 100 about the log itself, and as many about each kind of row
    /// beside it.
    pub faults: Vec<Fault>,
}

impl Findings {
    fn fault(&mut self, index: Option<u64>, what: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(Fault { index, what });
        }
    }

    /// Holds a signed checkpoint against the tree of its size.
    fn hold(&mut self, head: &Checkpoint, tree: &Frontier) {
        if head.root_hash != tree.root() {
            let (size, signed, found) = (head.tree_size, head.root_hash, tree.root());
            let what = format!(
                "the first {size} entries have root {found}, and root {signed} was signed: an entry before that was changed with its hash, or the log was rewritten"
            );
            self.fault(None, what);
        }
    }

    /// Holds what speaks of more entries than there are against their number: checkpoints, and the first tile that is left.
    fn hold_end<'a>(
        &mut self,
        size: u64,
        signed: impl Iterator<Item = &'a Checkpoint>,
        tile: Option<(i64, i64)>,
    ) {
        for head in signed.filter(|head| head.tree_size > size) {
            let what = format!(
                "a checkpoint of {} entries was signed, and there are {size}: an older database was restored, or entries are gone",
                head.tree_size
            );
            self.fault(None, what);
        }
        if let Some((level, n)) = tile {
            let what = format!("tile {n} of level {level} stands for entries that are not there");
            self.fault(None, what);
        }
    }
}

/// Checks one shard of the log in a database against the key that signs now, for it or for a later shard, and against the second
/// key, if it has one. What is sealed of `persons` is opened; of others nothing can be said, for they may have been erased.
/// `progress` hears of entries done.
///
/// # Errors
/// When the database cannot be read at all; what is wrong inside it is in the findings.
pub async fn check(
    store: &Store,
    (key, ml_dsa): (&VerifierKey, Option<&MlDsaKey>),
    persons: &Persons,
    kept_elsewhere: Option<&Path>,
    mut progress: impl FnMut(u64),
) -> Result<Findings> {
    let origin = store.shard().origin.as_deref().unwrap_or(key.name()).to_owned();
    let ml_dsa = ml_dsa.map(|second| second.renamed(&origin)).transpose()?;
    let keys = LogKeys::of(&origin, key, &store.successions(None).await?)?.beside(ml_dsa);
    let mut found = Findings {
        origin,
        entries: 0,
        root_hash: String::new(),
        checkpoints: 0,
        pruned: 0,
        touches: 0,
        timestamps: 0,
        personal: 0,
        faults: Vec::new(),
    };
    let elsewhere = match kept_elsewhere.map(high_water).transpose()?.flatten() {
        Some(note) => match keys.open(&note) {
            Ok(head) => Some(head),
            Err(e) => {
                found.fault(None, format!("the checkpoint in `log.high_water` is wrong: {e}"));
                None
            }
        },
        None => None,
    };
    // Beside a coordinator that runs, tiles of entries that come from now on are not all in what is read next.
    let size_before = store.size().await?;
    let tiles = store.tiles().await?.into_iter();
    let mut tiles: BTreeMap<(i64, i64), Vec<u8>> =
        tiles.map(|(level, n, hash)| ((level, n), hash)).collect();
    let mut signed = Signed { store, page: VecDeque::new(), last: 0 };
    let mut next = signed.next(&keys, &mut found).await?;
    let pruned = store.pruned().await?;
    let mut beside = Beside::begin(store, persons, pruned).await?;
    let mut tree = Frontier::new();
    let mut page = VecDeque::new();
    loop {
        if page.is_empty() {
            beside.compare(tree.size()).await?;
            page = store.raw_entries(tree.size(), PAGE).await?.into();
        }
        let Some((seq, bytes, stored)) = page.pop_front() else { break };
        let index = tree.size();
        if seq.cast_unsigned() != index {
            found.fault(Some(index), format!("it is missing; entry {seq} comes next"));
            break;
        }
        let stored = <[u8; 32]>::try_from(stored).ok().map(Digest);
        let deleted = bytes.is_empty() && pruned;
        found.pruned += u64::from(deleted);
        // Of what was deleted under a policy the hash speaks, which checkpoints are held against.
        let leaf = stored.filter(|_| deleted).unwrap_or_else(|| leaf_hash(&bytes));
        if stored != Some(leaf) {
            let shown = stored.map_or_else(|| "no hash".to_owned(), |s| s.to_string());
            found.fault(Some(index), format!("its bytes hash to {leaf}, and {shown} is stored"));
        }
        let entry = match Entry::parse(&bytes) {
            Ok(entry) => {
                if entry.seq != index {
                    found.fault(Some(index), format!("it calls itself entry {}", entry.seq));
                }
                Some(entry)
            }
            Err(_) if deleted => None,
            Err(e) => {
                found.fault(Some(index), format!("it cannot be read: {e}"));
                None
            }
        };
        beside.take(index, entry, deleted).await?;
        // What was hashed when it was written: a changed entry is named alone, and not everything after it.
        let hashed = stored.unwrap_or(leaf);
        tree.push_telling(hashed, |height, n, hash| {
            if height.is_multiple_of(TILE_HEIGHT) {
                let level = height / TILE_HEIGHT;
                match tiles.remove(&(i64::from(level), n.cast_signed())) {
                    Some(stored) if stored == hash.0 => {}
                    None if index >= size_before => {}
                    _ => found.fault(None, format!("tile {n} of level {level} does not hold {hash}; the next start makes it anew")),
                }
            }
        });
        while let Some(head) = next.take_if(|head| head.tree_size == tree.size()) {
            found.hold(&head, &tree);
            next = signed.next(&keys, &mut found).await?;
        }
        if let Some(head) = elsewhere.iter().find(|head| head.tree_size == tree.size()) {
            found.hold(head, &tree);
        }
        if tree.size().is_multiple_of(1 << 10) {
            progress(tree.size());
        }
    }
    let size = tree.size();
    let signed = next.iter().chain(&elsewhere);
    found.hold_end(size, signed, tiles.first_key_value().map(|(place, _)| *place));
    beside.finish(size, &mut found).await?;
    found.entries = size;
    found.root_hash = tree.root().to_string();
    Ok(found)
}

/// Checkpoints in the database, from the smallest.
struct Signed<'a> {
    store: &'a Store,
    page: VecDeque<(u64, String)>,
    last: u64,
}

impl Signed<'_> {
    /// The next checkpoint; none at the end, and none of a row that is wrong, after which no other is looked at.
    async fn next(&mut self, keys: &LogKeys, found: &mut Findings) -> Result<Option<Checkpoint>> {
        if self.page.is_empty() {
            self.page = self.store.checkpoints(self.last, PAGE).await?.into();
        }
        let Some((size, note)) = self.page.pop_front() else { return Ok(None) };
        self.last = size;
        found.checkpoints += 1;
        match keys.open(&note) {
            Ok(head) if head.tree_size == size => return Ok(Some(head)),
            Ok(head) => {
                let what =
                    format!("the checkpoint under {size} entries speaks of {}", head.tree_size);
                found.fault(None, what);
            }
            Err(e) => {
                found.fault(None, format!("the checkpoint of {size} entries is wrong: {e}"));
            }
        }
        Ok(None)
    }
}
