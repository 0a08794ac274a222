//! The Merkle tree of the log: RFC 6962 hashing, roots, proofs and their verification.
//!
//! Pure: proofs ask for subtree hashes and do not know where they live. Sources: RFC 6962 section 2.1,
//! RFC 9162 sections 2.1.3 and 2.1.4, C2SP tlog-tiles. Beyond RFC 9162, a consistency proof from size 0 to
//! a larger tree is refused, and sizes 0 and 0 need the empty root.

use crate::id::Digest;
use sha2::{Digest as _, Sha256};

/// Entries in one full tile or entry bundle.
pub const TILE_WIDTH: u64 = 256;
/// Levels of the tree between two levels of tiles.
pub const TILE_HEIGHT: u32 = 8;
/// The largest entry that an entry bundle can hold.
pub const ENTRY_BYTES_MAX: usize = 65_535;

/// Hash of a leaf: SHA-256(0x00 ‖ entry).
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    hash.update([0]);
    hash.update(entry);
    Digest(hash.finalize().into())
}

/// Hash of an inner node: SHA-256(0x01 ‖ left ‖ right).
#[must_use]
pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
    let mut hash = Sha256::new();
    hash.update([1]);
    hash.update(left.0);
    hash.update(right.0);
    Digest(hash.finalize().into())
}

/// Root of the tree without entries: SHA-256 of nothing.
#[must_use]
pub fn empty_root() -> Digest {
    Digest::of(b"")
}

/// A growing tree, kept as the roots of its complete subtrees: at most one per bit of its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// From the largest (leftmost) subtree to the smallest.
    subtrees: Vec<Digest>,
}

impl Frontier {
    /// The tree without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Entries in the tree.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Digest) {
        self.push_telling(leaf, |_, _, _| {});
    }

    /// Adds a leaf, and tells of each inner node that it completes: its height, its number, its hash.
    ///
    /// # Panics
    /// Never: there is one subtree per set bit of the size.
    pub fn push_telling(&mut self, leaf: Digest, mut tell: impl FnMut(u32, u64, Digest)) {
        let mut hash = leaf;
        let mut height = 0;
        while self.size >> height & 1 == 1 {
            let left = self.subtrees.pop().expect("invariant: one subtree per set bit of the size");
            hash = node_hash(&left, &hash);
            height += 1;
            tell(height, self.size >> height, hash);
        }
        self.subtrees.push(hash);
        self.size += 1;
    }

    /// Puts a tree to the right of this one, each of whose leaves stands for a complete subtree of `1 << height` leaves: no
    /// more of them than make this tree's smallest subtree.
    pub(crate) fn join(&mut self, height: u32, right: &Self) {
        self.subtrees.extend(&right.subtrees);
        self.size += right.size << height;
    }

    /// The tree's root.
    #[must_use]
    pub fn root(&self) -> Digest {
        let mut from_right = self.subtrees.iter().rev();
        let Some(&last) = from_right.next() else { return empty_root() };
        from_right.fold(last, |right, left| node_hash(left, &right))
    }
}

/// Why a proof proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The index is not in a tree of this size, or the sizes shrink.
    #[error("the proof speaks of something outside the tree")]
    OutsideTree,
    /// The proof has too many or too few hashes.
    #[error("the proof has the wrong number of hashes")]
    Length,
    /// The proof leads to another root.
    #[error("the proof leads to another root")]
    Root,
}

/// Hash of the complete subtree `index` of height `level`: leaves `index << level` to `(index + 1) << level`.
pub trait Hashes {
    /// The hash, which the caller knows to exist.
    ///
    /// # Errors
    /// Whatever keeps the implementation from reading it.
    fn subtree(&self, level: u32, index: u64) -> Result<Digest, Self::Error>;
    /// Why a hash cannot be read.
    type Error;
}

/// Root over leaves `lo..hi`, where `lo` is a multiple of the range's power of two.
fn range<H: Hashes + ?Sized>(hashes: &H, lo: u64, hi: u64) -> Result<Digest, H::Error> {
    let width = hi - lo;
    if width.is_power_of_two() {
        return hashes.subtree(width.trailing_zeros(), lo / width);
    }
    let split = lo + width.next_power_of_two() / 2;
    Ok(node_hash(&range(hashes, lo, split)?, &range(hashes, split, hi)?))
}

/// The hashes that lead from leaf `index` to the root of the first `size` leaves, from below.
///
/// # Errors
/// Whatever keeps `hashes` from reading. The caller sees to it that `index < size`.
pub fn inclusion_proof<H: Hashes + ?Sized>(
    hashes: &H,
    index: u64,
    size: u64,
) -> Result<Vec<Digest>, H::Error> {
    let (mut lo, mut hi) = (0, size);
    let mut siblings = Vec::new();
    while hi - lo > 1 {
        let split = lo + (hi - lo).next_power_of_two() / 2;
        if index < split {
            siblings.push((split, hi));
            hi = split;
        } else {
            siblings.push((lo, split));
            lo = split;
        }
    }
    siblings.into_iter().rev().map(|(lo, hi)| range(hashes, lo, hi)).collect()
}

/// The hashes that show the first `old` leaves to be a prefix of the first `new` (RFC 9162, 2.1.4.1).
///
/// # Errors
/// Whatever keeps `hashes` from reading. The caller sees to it that `0 < old <= new`.
pub fn consistency_proof<H: Hashes + ?Sized>(
    hashes: &H,
    old: u64,
    new: u64,
) -> Result<Vec<Digest>, H::Error> {
    let (mut lo, mut hi) = (0, new);
    let mut parts = Vec::new();
    // Walk down to where the old tree ends; `whole` while it is the left edge of the new one.
    let mut whole = true;
    while old != hi {
        let split = lo + (hi - lo).next_power_of_two() / 2;
        if old <= split {
            parts.push((split, hi));
            hi = split;
        } else {
            parts.push((lo, split));
            lo = split;
            whole = false;
        }
    }
    if !whole {
        parts.push((lo, hi));
    }
    parts.into_iter().rev().map(|(lo, hi)| range(hashes, lo, hi)).collect()
}

/// Checks that `leaf` is entry `index` of the tree of `size` entries under `root` (RFC 9162, 2.1.3.2).
///
/// # Errors
/// [`ProofError`], which says what does not hold.
pub fn verify_inclusion(
    leaf: &Digest,
    index: u64,
    size: u64,
    proof: &[Digest],
    root: &Digest,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::OutsideTree);
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::Length);
    }
    if hash == *root { Ok(()) } else { Err(ProofError::Root) }
}

/// Checks that the tree of `old` entries under `old_root` is a prefix of the one of `new` entries under
/// `new_root` (RFC 9162, 2.1.4.2).
///
/// # Errors
/// [`ProofError`], which says what does not hold.
pub fn verify_consistency(
    old: u64,
    new: u64,
    proof: &[Digest],
    old_root: &Digest,
    new_root: &Digest,
) -> Result<(), ProofError> {
    if old > new || (old == 0 && new > 0) {
        return Err(ProofError::OutsideTree);
    }
    if old == new {
        if !proof.is_empty() {
            return Err(ProofError::Length);
        }
        let empty_is_empty = old > 0 || *old_root == empty_root();
        return if old_root == new_root && empty_is_empty { Ok(()) } else { Err(ProofError::Root) };
    }
    let (from_old, from_new) = led(old, new, proof, old_root)?;
    if from_old == *old_root && from_new == *new_root { Ok(()) } else { Err(ProofError::Root) }
}

/// The other root that the first `old` leaves of the tree under `new_root` have by this proof, when they are not those
/// under `old_root`: two heads that were both signed cannot both be true then. A proof that does not lead to `new_root`
/// shows nothing, nor does one from a power of two, which leaves the old root out.
#[must_use]
pub fn other_prefix(
    (old, old_root): (u64, &Digest),
    (new, new_root): (u64, &Digest),
    proof: &[Digest],
) -> Option<Digest> {
    if old == 0 || old >= new || old.is_power_of_two() {
        return None;
    }
    let (from_old, from_new) = led(old, new, proof, old_root).ok()?;
    (from_new == *new_root && from_old != *old_root).then_some(from_old)
}

/// The roots of the first `old` and of all `new` leaves to which a proof leads; `0 < old < new`.
fn led(
    old: u64,
    new: u64,
    proof: &[Digest],
    old_root: &Digest,
) -> Result<(Digest, Digest), ProofError> {
    let mut hashes = proof.iter();
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let seed =
        if old.is_power_of_two() { *old_root } else { *hashes.next().ok_or(ProofError::Length)? };
    let (mut from_old, mut from_new) = (seed, seed);
    for c in hashes {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if node & 1 == 1 || node == last {
            from_old = node_hash(c, &from_old);
            from_new = node_hash(c, &from_new);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            from_new = node_hash(&from_new, c);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::Length);
    }
    Ok((from_old, from_new))
}

/// A tile's number as path segments of three digits: 1234067 is `x001/x234/067`.
#[must_use]
pub fn tile_number(mut n: u64) -> String {
    let mut path = format!("{:03}", n % 1000);
    while n >= 1000 {
        n /= 1000;
        path = format!("x{:03}/{path}", n % 1000);
    }
    path
}

/// Path of a tile of `width` hashes on a level of tiles, from 0 for the leaves.
#[must_use]
pub fn tile_path(level: u8, n: u64, width: u64) -> String {
    let number = tile_number(n);
    if width < TILE_WIDTH {
        format!("tile/{level}/{number}.p/{width}")
    } else {
        format!("tile/{level}/{number}")
    }
}

/// Path of a bundle of `width` entries.
#[must_use]
pub fn entries_path(n: u64, width: u64) -> String {
    let number = tile_number(n);
    if width < TILE_WIDTH {
        format!("tile/entries/{number}.p/{width}")
    } else {
        format!("tile/entries/{number}")
    }
}

/// Appends an entry to a bundle: its length as a big-endian u16, then its bytes.
///
/// # Panics
/// When the entry is longer than [`ENTRY_BYTES_MAX`]: entries are bounded where they are made.
pub fn put_entry(entry: &[u8], bundle: &mut Vec<u8>) {
    let length =
        u16::try_from(entry.len()).expect("invariant: entries are bounded where they are made");
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
}

/// The entries of a bundle; `None` stands for a bundle that ends in the middle of one.
pub fn entries(mut bundle: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        if bundle.is_empty() {
            return None;
        }
        let whole = bundle.split_first_chunk::<2>().and_then(|(length, rest)| {
            rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
        });
        let Some((entry, rest)) = whole else {
            bundle = &[];
            return Some(None);
        };
        bundle = rest;
        Some(Some(entry))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    use serde_json::Value;
    use std::convert::Infallible;

    /// Leaves in memory, hashed as asked.
    struct Leaves(Vec<Digest>);

    impl Hashes for Leaves {
        type Error = Infallible;
        fn subtree(&self, level: u32, index: u64) -> Result<Digest, Infallible> {
            let width = 1_usize << level;
            let at = usize::try_from(index).expect("small") * width;
            let mut frontier = Frontier::new();
            self.0[at..at + width].iter().for_each(|l| frontier.push(*l));
            Ok(frontier.root())
        }
    }

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../testdata/merkle_vectors.json")).expect("JSON")
    }

    /// `None` when a hash of the vector is not one.
    fn digest(v: &Value) -> Option<Digest> {
        let bytes = BASE64.decode(v.as_str().unwrap_or_default()).ok()?;
        Some(Digest(bytes.try_into().ok()?))
    }

    fn proof(v: &Value) -> Option<Vec<Digest>> {
        v.as_array().map_or(Some(Vec::new()), |hashes| hashes.iter().map(digest).collect())
    }

    #[test]
    fn roots_and_nodes_are_those_of_the_reference_tree() {
        let v = &vectors()["rfc6962_reference_tree"];
        let mut frontier = Frontier::new();
        let roots = v["root_hashes_hex_by_size_0_to_8"].as_array().expect("a list");
        assert_eq!(frontier.root().to_string(), roots[0]);
        for (leaf, root) in v["leaf_inputs_hex"].as_array().expect("a list").iter().zip(&roots[1..])
        {
            frontier.push(leaf_hash(&hex::decode(leaf.as_str().expect("text")).expect("hex")));
            assert_eq!(frontier.root().to_string(), *root);
        }
    }

    #[test]
    fn every_probe_is_taken_or_refused_as_it_should_be() {
        let v = &vectors()["proof_probes"];
        for p in v["inclusion"].as_array().expect("a list") {
            let size = |k: &str| p[k].as_u64().expect("a number");
            let ok = match (digest(&p["leafHash"]), digest(&p["root"]), proof(&p["proof"])) {
                (Some(leaf), Some(root), Some(proof)) => {
                    verify_inclusion(&leaf, size("leafIdx"), size("treeSize"), &proof, &root)
                        .is_ok()
                }
                _ => false,
            };
            assert_eq!(ok, !p["wantErr"].as_bool().expect("a verdict"), "{}", p["file"]);
        }
        for p in v["consistency"].as_array().expect("a list") {
            if p["file"] == "consistency/additional/sizes-are-equal-one-and-proof-is-empty.json" {
                // Its two roots are equal, but have 12 bytes: no SHA-256 digests.
                continue;
            }
            let size = |k: &str| p[k].as_u64().expect("a number");
            let ok = match (digest(&p["root1"]), digest(&p["root2"]), proof(&p["proof"])) {
                (Some(one), Some(two), Some(proof)) => {
                    verify_consistency(size("size1"), size("size2"), &proof, &one, &two).is_ok()
                }
                _ => false,
            };
            assert_eq!(ok, !p["wantErr"].as_bool().expect("a verdict"), "{}", p["file"]);
        }
    }

    #[test]
    fn a_log_of_70_000_entries_has_the_roots_and_proofs_that_go_computes() {
        let v = &vectors()["generated_70000"];
        let leaves: Vec<Digest> =
            (0..70_000).map(|i| leaf_hash(format!("leaf-{i}").as_bytes())).collect();
        let mut frontier = Frontier::new();
        for leaf in &leaves {
            frontier.push(*leaf);
            if let Some(root) = v["roots"].get(frontier.size().to_string()) {
                assert_eq!(Some(frontier.root()), digest(root), "size {}", frontier.size());
            }
        }
        let leaves = Leaves(leaves);
        for p in v["inclusion"].as_array().expect("a list") {
            let (index, size) = (p["leafIdx"].as_u64(), p["treeSize"].as_u64());
            let (index, size) = (index.expect("a number"), size.expect("a number"));
            let Ok(ours) = inclusion_proof(&leaves, index, size);
            assert_eq!(Some(&ours), proof(&p["proof"]).as_ref());
            let (leaf, root) = (digest(&p["leafHash"]), digest(&p["root"]));
            let (leaf, root) = (leaf.expect("a hash"), root.expect("a hash"));
            assert_eq!(verify_inclusion(&leaf, index, size, &ours, &root), Ok(()));
        }
        for p in v["consistency"].as_array().expect("a list") {
            let (old, new) = (p["size1"].as_u64(), p["size2"].as_u64());
            let Ok(ours) =
                consistency_proof(&leaves, old.expect("a number"), new.expect("a number"));
            assert_eq!(Some(ours), proof(&p["proof"]));
        }
    }

    #[test]
    fn a_flipped_bit_breaks_every_proof() {
        let leaves = Leaves((0..21_u8).map(|i| leaf_hash(&[i])).collect());
        for size in 1..=21_u64 {
            let Ok(root) = range(&leaves, 0, size);
            for index in 0..size {
                let Ok(proof) = inclusion_proof(&leaves, index, size);
                let leaf = leaves.0[usize::try_from(index).expect("small")];
                assert_eq!(verify_inclusion(&leaf, index, size, &proof, &root), Ok(()));
                for i in 0..proof.len() {
                    let mut broken = proof.clone();
                    broken[i].0[i % 32] ^= 1;
                    assert!(verify_inclusion(&leaf, index, size, &broken, &root).is_err());
                }
            }
            for old in 1..=size {
                let Ok(old_root) = range(&leaves, 0, old);
                let Ok(proof) = consistency_proof(&leaves, old, size);
                assert_eq!(verify_consistency(old, size, &proof, &old_root, &root), Ok(()));
                for i in 0..proof.len() {
                    let mut broken = proof.clone();
                    broken[i].0[i % 32] ^= 1;
                    assert!(verify_consistency(old, size, &broken, &old_root, &root).is_err());
                }
            }
        }
    }

    #[test]
    fn nodes_are_told_of_once_each_when_they_are_complete() {
        let leaves = Leaves((0..21_u8).map(|i| leaf_hash(&[i])).collect());
        let (mut frontier, mut told) = (Frontier::new(), Vec::new());
        for leaf in &leaves.0 {
            frontier.push_telling(*leaf, |height, n, hash| told.push((height, n, hash)));
        }
        for (height, n, hash) in &told {
            assert_eq!(leaves.subtree(*height, *n), Ok(*hash), "{height}, {n}");
        }
        // 10 of height 1, 5, 2 and 1.
        assert_eq!(told.len(), 18);
        let places: std::collections::BTreeSet<_> = told.iter().map(|(h, n, _)| (h, n)).collect();
        assert_eq!(places.len(), 18);
    }

    #[test]
    fn tile_paths_and_bundles_are_those_of_the_specification() {
        assert_eq!(tile_number(1_234_067), "x001/x234/067");
        assert_eq!(entries_path(273, 112), "tile/entries/273.p/112");
        assert_eq!(tile_path(0, 0, 256), "tile/0/000");
        let v = &vectors()["tessera_posix_log"];
        let mut bundle = Vec::new();
        for e in v["entries_utf8"].as_array().expect("a list") {
            put_entry(e.as_str().expect("text").as_bytes(), &mut bundle);
        }
        assert_eq!(hex::encode(&bundle), v["entries_000_p_15_hex"]);
        assert_eq!(entries(&bundle).flatten().count(), 15);
        let last = entries(&bundle[..bundle.len() - 1]).last();
        assert_eq!(last, Some(None));
    }
}
