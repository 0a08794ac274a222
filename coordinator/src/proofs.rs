//! Proofs about the log, from the hashes that lie in the store.

use crate::store::{Store, StoreError};
use falaj_core::{
    id::Digest,
    merkle::{Frontier, Hashes, TILE_HEIGHT, consistency_proof, inclusion_proof},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
};

/// The hashes that lead from entry `index` to the root of the first `size` entries.
///
/// # Errors
/// [`StoreError`]; the caller sees to it that `index < size`, and that the log has as many.
pub async fn inclusion(store: &Store, index: u64, size: u64) -> Result<Vec<Digest>, StoreError> {
    Ok(inclusions(store, &[index], size).await?.pop().unwrap_or_default())
}

/// [`inclusion`] for each of several entries. Reads each tile once that a proof needs, so the cost grows with the number
/// of proofs and not with the log.
///
/// # Errors
/// As [`inclusion`].
pub async fn inclusions(
    store: &Store,
    indices: &[u64],
    size: u64,
) -> Result<Vec<Vec<Digest>>, StoreError> {
    let wanted = Wanted::default();
    for &index in indices {
        let Ok(_) = inclusion_proof(&wanted, index, size);
    }
    let found = wanted.found(store).await?;
    indices.iter().map(|&index| inclusion_proof(&found, index, size)).collect()
}

/// The hashes that show the first `old` entries to be a prefix of the first `new`; none when `old` is 0.
///
/// # Errors
/// [`StoreError`]; the caller sees to it that `old <= new`, and that the log has as many.
pub async fn consistency(store: &Store, old: u64, new: u64) -> Result<Vec<Digest>, StoreError> {
    if old == 0 {
        return Ok(Vec::new());
    }
    let wanted = Wanted::default();
    let Ok(_) = consistency_proof(&wanted, old, new);
    consistency_proof(&wanted.found(store).await?, old, new)
}

/// A height and a number on it: a subtree, or with levels for heights a tile.
type Place = (u32, u64);

/// Notes which subtrees proofs ask for, by the tile in which they lie.
#[derive(Default)]
struct Wanted(RefCell<BTreeMap<Place, BTreeSet<Place>>>);

impl Hashes for Wanted {
    type Error = Infallible;
    fn subtree(&self, height: u32, n: u64) -> Result<Digest, Infallible> {
        let tile = (height / TILE_HEIGHT, n >> (TILE_HEIGHT - height % TILE_HEIGHT));
        self.0.borrow_mut().entry(tile).or_default().insert((height, n));
        Ok(Digest([0; 32]))
    }
}

impl Wanted {
    async fn found(self, store: &Store) -> Result<Found, StoreError> {
        let mut found = BTreeMap::new();
        for ((level, tile), subtrees) in self.0.into_inner() {
            let hashes = store.tile(level, tile).await?;
            for (height, n) in subtrees {
                let wide = height % TILE_HEIGHT;
                let missing =
                    || StoreError::Corrupt(format!("no whole subtree {n} of height {height}"));
                let first =
                    usize::try_from((n << wide) - (tile << TILE_HEIGHT)).map_err(|_| missing())?;
                let below = hashes.get(first..first + (1 << wide)).ok_or_else(missing)?;
                let mut frontier = Frontier::new();
                below.iter().for_each(|hash| frontier.push(*hash));
                found.insert((height, n), frontier.root());
            }
        }
        Ok(Found(found))
    }
}

/// The subtrees that proofs asked for.
struct Found(BTreeMap<Place, Digest>);

impl Hashes for Found {
    type Error = StoreError;
    fn subtree(&self, height: u32, n: u64) -> Result<Digest, StoreError> {
        let missing = || StoreError::Corrupt(format!("no subtree {n} of height {height}"));
        self.0.get(&(height, n)).copied().ok_or_else(missing)
    }
}
