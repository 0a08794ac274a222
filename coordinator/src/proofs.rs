//! Proofs about the log, from the hashes that lie in the store.

use crate::store::{Store, StoreError};
use falaj_core::{
    id::Digest,
    merkle::{Hashes, consistency_proof, inclusion_proof},
};
use std::{cell::RefCell, collections::BTreeMap, convert::Infallible};

/// The hashes that lead from entry `index` to the root of the first `size` entries.
///
/// # Errors
/// [`StoreError`]; the caller sees to it that `index < size`, and that the log has as many.
pub async fn inclusion(store: &Store, index: u64, size: u64) -> Result<Vec<Digest>, StoreError> {
    let wanted = Wanted::default();
    let Ok(_) = inclusion_proof(&wanted, index, size);
    inclusion_proof(&wanted.found(store).await?, index, size)
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

/// Notes which subtrees a proof asks for.
#[derive(Default)]
struct Wanted(RefCell<Vec<(u32, u64)>>);

impl Hashes for Wanted {
    type Error = Infallible;
    fn subtree(&self, level: u32, index: u64) -> Result<Digest, Infallible> {
        self.0.borrow_mut().push((level, index));
        Ok(Digest([0; 32]))
    }
}

impl Wanted {
    async fn found(self, store: &Store) -> Result<Found, StoreError> {
        let mut found = BTreeMap::new();
        for (level, index) in self.0.into_inner() {
            found.insert((level, index), store.subtree(level, index).await?);
        }
        Ok(Found(found))
    }
}

/// The subtrees that a proof asked for.
struct Found(BTreeMap<(u32, u64), Digest>);

impl Hashes for Found {
    type Error = StoreError;
    fn subtree(&self, level: u32, index: u64) -> Result<Digest, StoreError> {
        let missing = || StoreError::Corrupt(format!("no subtree {index} of height {level}"));
        self.0.get(&(level, index)).copied().ok_or_else(missing)
    }
}
