//! AUD-01: our tree, roots and proofs beside two implementations by others, `ct-merkle` and `tlog_tiles`: equal in every
//! byte for every tree of up to 330 entries, and of one mind about proofs that were tampered with.

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use falaj_core::{
    id::Digest,
    merkle::{
        Frontier, Hashes, consistency_proof, inclusion_proof, leaf_hash, verify_consistency,
        verify_inclusion,
    },
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use sha2::Sha256;
use std::{collections::BTreeMap, convert::Infallible};
use tlog_tiles::tlog::{
    Hash, HashReader, check_record, check_tree, prove_record, prove_tree, stored_hashes, tree_hash,
};

/// Over 10^5 proofs: one of each kind for each pair of a size and a place in it.
const SIZES: u64 = 330;
/// Proofs that are tampered with.
const TAMPERED: usize = 12_000;

/// Every complete node of our tree.
#[derive(Default)]
struct Nodes {
    frontier: Frontier,
    known: BTreeMap<(u32, u64), Digest>,
}

impl Nodes {
    fn push(&mut self, leaf: Digest) {
        let known = &mut self.known;
        known.insert((0, self.frontier.size()), leaf);
        self.frontier.push_telling(leaf, |height, n, hash| {
            known.insert((height, n), hash);
        });
    }
}

impl Hashes for Nodes {
    type Error = Infallible;
    fn subtree(&self, level: u32, index: u64) -> Result<Digest, Infallible> {
        Ok(self.known[&(level, index)])
    }
}

/// What `tlog_tiles` stores.
#[derive(Default)]
struct Stored(Vec<Hash>);

impl HashReader for Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        Ok(indexes.iter().map(|i| self.0[at(*i)]).collect())
    }
}

fn at(i: u64) -> usize {
    usize::try_from(i).expect("small")
}

fn entry(i: u64) -> Vec<u8> {
    format!("entry {i}").into_bytes()
}

fn bytes(proof: &[Digest]) -> Vec<u8> {
    proof.iter().flat_map(|d| d.0).collect()
}

fn theirs(proof: &[Hash]) -> Vec<u8> {
    proof.iter().flat_map(|h| h.0).collect()
}

#[test]
fn roots_and_proofs_are_those_of_two_other_implementations() {
    let (mut ours, mut stored) = (Nodes::default(), Stored::default());
    let mut merkle = MemoryBackedTree::<Sha256, Vec<u8>>::new();
    let (mut roots, mut cases) = (vec![Frontier::new().root()], 0);
    for size in 1..=SIZES {
        let new = entry(size - 1);
        ours.push(leaf_hash(&new));
        let hashes = stored_hashes(size - 1, &new, &stored).expect("hashes");
        stored.0.extend(hashes);
        merkle.push(new);
        let root = ours.frontier.root();
        roots.push(root);
        assert_eq!(root.0, merkle.root().as_bytes()[..], "{size}");
        assert_eq!(root.0, tree_hash(size, &stored).expect("a root").0, "{size}");
        for place in 0..size {
            let Ok(proof) = inclusion_proof(&ours, place, size);
            assert_eq!(bytes(&proof), merkle.prove_inclusion(at(place)).as_bytes(), "{place}");
            let record = prove_record(size, place, &stored).expect("a proof");
            assert_eq!(bytes(&proof), theirs(&record), "{place} in {size}");
            let leaf = leaf_hash(&entry(place));
            assert_eq!(verify_inclusion(&leaf, place, size, &proof, &root), Ok(()));
            let old = place + 1;
            let Ok(proof) = consistency_proof(&ours, old, size);
            let tree = prove_tree(size, old, &stored).expect("a proof");
            assert_eq!(bytes(&proof), theirs(&tree), "{old} to {size}");
            if old < size {
                let other = merkle.prove_consistency(at(size - old));
                assert_eq!(bytes(&proof), other.as_bytes(), "{old} to {size}");
            }
            assert_eq!(verify_consistency(old, size, &proof, &roots[at(old)], &root), Ok(()));
            cases += 2;
        }
    }
    assert!(cases > 100_000, "{cases}");
}

/// Changes a proof, or what it is about, in one of the ways that come to mind.
fn tamper(rng: &mut ChaCha20Rng, proof: &mut Vec<Digest>, numbers: &mut [u64; 2]) {
    let mut below = |n: usize| at(rng.next_u64() % n as u64);
    let (way, length) = (below(6), proof.len());
    match way {
        0 if length > 0 => {
            proof.remove(below(length));
        }
        1 if length > 0 => {
            let again = proof[below(length)];
            proof.insert(below(length + 1), again);
        }
        2 if length > 1 => {
            let i = below(length - 1);
            proof.swap(i, i + 1);
        }
        3 => proof.push(Digest([7; 32])),
        4 => numbers[0] = numbers[0].wrapping_add(1 + below(3) as u64),
        _ if length > 0 => {
            let (i, bit) = (below(length), below(256));
            proof[i].0[bit / 8] ^= 1 << (bit % 8);
        }
        _ => numbers[1] = numbers[1].wrapping_mul(3),
    }
}

#[test]
fn tampered_proofs_are_refused_here_and_there() {
    let (mut ours, mut stored) = (Nodes::default(), Stored::default());
    let mut roots = vec![Frontier::new().root()];
    for i in 0..SIZES {
        ours.push(leaf_hash(&entry(i)));
        stored.0.extend(stored_hashes(i, &entry(i), &stored).expect("hashes"));
        roots.push(ours.frontier.root());
    }
    let mut rng = ChaCha20Rng::from_seed([3; 32]);
    let other = |d: &Digest| Hash(d.0);
    let all = |proof: &[Digest]| proof.iter().map(other).collect::<Vec<_>>();
    let mut refused = 0;
    while refused < TAMPERED {
        let size = 1 + rng.next_u64() % SIZES;
        let place = rng.next_u64() % size;
        let (leaf, root) = (leaf_hash(&entry(place)), roots[at(size)]);
        let Ok(good) = inclusion_proof(&ours, place, size);
        let (mut proof, mut about) = (good.clone(), [place, size]);
        tamper(&mut rng, &mut proof, &mut about);
        if (&proof, about) != (&good, [place, size]) {
            let [place, size] = about;
            let ok = verify_inclusion(&leaf, place, size, &proof, &root).is_ok();
            let theirs = check_record(&all(&proof), size, other(&root), place, other(&leaf));
            assert!(!ok && theirs.is_err(), "{place} of {size}: {proof:?}");
            refused += 1;
        }
        let old = place + 1;
        let Ok(good) = consistency_proof(&ours, old, size);
        let (mut proof, mut about) = (good.clone(), [old, size]);
        tamper(&mut rng, &mut proof, &mut about);
        if (&proof, about) != (&good, [old, size]) {
            let [now, new] = about;
            let from = roots[at(old)];
            let ok = verify_consistency(now, new, &proof, &from, &root).is_ok();
            let theirs = check_tree(&all(&proof), new, other(&root), now, other(&from));
            assert!(!ok && theirs.is_err(), "{now} to {new}: {proof:?}");
            refused += 1;
        }
    }
}
