//! How much a verifier needs for a log of any length.

mod scene;

use falaj_core::{
    id::Digest,
    merkle::{Hashes, consistency_proof, inclusion_proof},
};
use scene::{Done, Scene, peak_kib};
use std::convert::Infallible;

/// What a verification may take, and what a log that is longer by far may add to it, in KiB.
const PEAK_KIB: u64 = 64 << 10;
const GROWTH_KIB: u64 = 4 << 10;
/// Hashes that a proof has at most.
const HASHES_MAX: usize = 63;

/// AUD-12: the verifier's memory does not grow with the log, and stays below 64 MiB. The bench runs the same over ten
/// million entries.
#[test]
fn memory_of_a_verification_does_not_grow_with_the_log() -> Done<()> {
    let scene = Scene::new()?;
    let (short, long) = (peak_kib(&scene, 4_096)?, peak_kib(&scene, 65_536)?);
    assert!(long <= PEAK_KIB, "{long} KiB");
    assert!(long <= short + GROWTH_KIB, "{short} KiB for 4,096 entries, {long} KiB for 65,536");
    Ok(())
}

/// A tree of any size, whose hashes are all the same.
struct Any;

impl Hashes for Any {
    type Error = Infallible;
    fn subtree(&self, _: u32, _: u64) -> Result<Digest, Infallible> {
        Ok(Digest([0; 32]))
    }
}

/// AUD-12: whoever follows a log, or checks one entry of it, needs 63 hashes at most, in a log of ten million entries and in
/// the longest that there can be.
#[test]
fn no_proof_has_more_than_63_hashes() {
    for size in [1, 2, 3, 10_000_000, (1 << 53) - 1, 1 << 53] {
        let steps = (0..64).map(|bit| 1_u64 << bit).take_while(|n| *n < size);
        for near in steps.chain([size - 1, size / 2, size / 3]) {
            let Ok(inclusion) = inclusion_proof(&Any, near, size);
            let Ok(consistency) = consistency_proof(&Any, near.max(1), size);
            assert!(inclusion.len() <= HASHES_MAX, "entry {near} of {size}: {}", inclusion.len());
            assert!(consistency.len() <= HASHES_MAX, "{near} to {size}: {}", consistency.len());
        }
    }
}
