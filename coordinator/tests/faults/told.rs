//! What a log's writers have told, and whether the log keeps to it.

use crate::child::{Place, signer};
use anyhow::{Context as _, Result, bail, ensure};
use falaj_coordinator::{fsck, persons::Persons, store::Store};
use falaj_core::{id::Digest, merkle::Frontier};
use std::collections::{BTreeMap, btree_map::Entry};

/// Entries that are read at once.
const PAGE: u32 = 1_024;

/// All that was told.
#[derive(Default)]
pub(crate) struct Told {
    /// The log's size when it was opened.
    pub(crate) opened: Option<u64>,
    /// Leaf hashes of acknowledged entries.
    pub(crate) entries: BTreeMap<u64, Digest>,
    /// Roots of checkpoints.
    pub(crate) signed: BTreeMap<u64, Digest>,
    /// Commits that were not acknowledged.
    pub(crate) refused: u64,
    /// Of these, for want of room.
    pub(crate) full: u64,
    /// The writer came to its end.
    pub(crate) done: bool,
}

/// Keeps a promise; there may be no other about the same.
fn keep(promises: &mut BTreeMap<u64, Digest>, n: u64, digest: Digest, what: &str) -> Result<()> {
    match promises.entry(n) {
        Entry::Vacant(free) => {
            free.insert(digest);
        }
        Entry::Occupied(kept) => {
            ensure!(*kept.get() == digest, "{what} {n} is {digest}, and was {} before", kept.get());
        }
    }
    Ok(())
}

impl Told {
    /// Takes a line.
    pub(crate) fn take(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["opened", size] => self.opened = Some(size.parse()?),
            ["acknowledged", index, leaf] => {
                let index = index.parse()?;
                ensure!(!self.entries.contains_key(&index), "entry {index} was acknowledged twice");
                self.entries.insert(index, leaf.parse().map_err(|_| anyhow::anyhow!("{line}"))?);
            }
            ["signed", size, root] => {
                let root = root.parse().map_err(|_| anyhow::anyhow!("{line}"))?;
                keep(&mut self.signed, size.parse()?, root, "the root at")?;
            }
            ["refused", ref why @ ..] => {
                self.refused += 1;
                self.full += u64::from(why.contains(&"full"));
            }
            ["unsigned", ..] => {}
            ["done"] => self.done = true,
            _ => bail!("what is this: {line}"),
        }
        Ok(())
    }

    /// Takes what one writer told, and sees that its entries are there.
    pub(crate) async fn extend(&mut self, heard: Self, place: &Place) -> Result<()> {
        if let (Some((first, _)), Some((last, _))) =
            (heard.entries.first_key_value(), heard.entries.last_key_value())
        {
            let store = Store::read(&place.database()?).await?;
            let mut there = BTreeMap::new();
            let mut from = *first;
            while from <= *last {
                let page = store.entries(from, last + 1, PAGE, None).await?;
                let newest = page.last().with_context(|| format!("no entry from {from} on"))?.0;
                there.extend(page.into_iter().map(|(index, _, leaf)| (index, leaf)));
                from = newest + 1;
            }
            for (index, leaf) in &heard.entries {
                ensure!(there.get(index) == Some(leaf), "entry {index} is not what was told");
            }
        }
        for (index, leaf) in heard.entries {
            keep(&mut self.entries, index, leaf, "entry")?;
        }
        for (size, root) in heard.signed {
            keep(&mut self.signed, size, root, "the root at")?;
        }
        self.refused += heard.refused;
        Ok(())
    }

    /// Holds all of it against the log, which must be whole. Gives its size.
    pub(crate) async fn hold(&self, place: &Place) -> Result<u64> {
        let store = Store::read(&place.database()?).await?;
        let signer = signer();
        // Every stored checkpoint, and the one kept elsewhere, are looked at there.
        let found = fsck::check(
            &store,
            (signer.verifier(), None),
            &Persons::default(),
            Some(&place.high_water),
            |_| {},
        )
        .await?;
        ensure!(found.faults.is_empty(), "{:?}", found.faults);
        let (mut tree, mut there, mut right) = (Frontier::new(), 0, 0);
        loop {
            let page = store.entries(tree.size(), u64::MAX, PAGE, None).await?;
            if page.is_empty() {
                break;
            }
            for (index, _, leaf) in page {
                if let Some(told) = self.entries.get(&index) {
                    ensure!(*told == leaf, "entry {index} is {leaf}, and {told} was acknowledged");
                    there += 1;
                }
                tree.push(leaf);
                if let Some(told) = self.signed.get(&tree.size()) {
                    let (size, root) = (tree.size(), tree.root());
                    ensure!(*told == root, "the root of {size} is {root}, and {told} was signed");
                    right += 1;
                }
            }
        }
        ensure!(there == self.entries.len(), "{there} of {} are there", self.entries.len());
        // A head of nothing needs no entries.
        let signed = self.signed.keys().filter(|size| **size > 0).count();
        ensure!(right == signed, "{right} of {signed} checkpoints are of a tree that is there");
        Ok(tree.size())
    }
}
