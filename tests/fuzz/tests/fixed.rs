//! Each target over its seeds, over what was ever found, and over changes that are the same in every run.

use falaj_fuzz::{TARGETS, target};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::{error::Error, fs, path::Path};

/// Changed inputs for each target.
const RUNS: u32 = 3_000;
/// No input is longer.
const BYTES_MAX: usize = 1 << 15;

/// A number below `n`, which is not 0.
fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    usize::try_from(rng.next_u32()).unwrap_or_default() % n
}

/// Changes bytes as a fuzzer does: bits, bytes, words that parsers know, pieces left out, doubled and moved in from elsewhere.
fn change(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    const WORDS: [&[u8]; 10] = [
        b"\n",
        b"\"",
        b"\\u0000",
        b"{}",
        b"0",
        b"-9223372036854775808",
        b"\0",
        b"..",
        b"\xff",
        b"=",
    ];
    for _ in 0..=below(rng, 4) {
        let at = below(rng, bytes.len() + 1);
        let to = (at + below(rng, 32)).min(bytes.len());
        match below(rng, 6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << below(rng, 8),
            1 if at < bytes.len() => bytes[at] = u8::try_from(below(rng, 256)).unwrap_or_default(),
            2 => drop(bytes.splice(at..to, WORDS[below(rng, WORDS.len())].iter().copied())),
            3 => drop(bytes.drain(at..to)),
            4 => {
                let piece = bytes[at..to].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            _ => {
                let from = below(rng, other.len() + 1);
                let piece = &other[from..(from + 32).min(other.len())];
                drop(bytes.splice(at..at, piece.iter().copied()));
            }
        }
    }
    bytes.truncate(BYTES_MAX);
}

#[test]
fn every_parser_holds_to_its_properties_whatever_the_bytes_are() {
    for (target, number) in TARGETS.iter().zip(1..) {
        let seeds = (target.seeds)();
        seeds.iter().for_each(|seed| (target.run)(seed));
        let mut rng = ChaCha8Rng::seed_from_u64(number);
        for _ in 0..RUNS {
            let mut bytes = seeds[below(&mut rng, seeds.len())].clone();
            let other = &seeds[below(&mut rng, seeds.len())];
            change(&mut rng, &mut bytes, other);
            (target.run)(&bytes);
        }
    }
}

#[test]
fn what_was_found_once_is_not_found_again() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        let name = path.file_stem().and_then(|n| n.to_str()).ok_or("a name")?;
        // `TARGET.WHAT`, and bytes as they are.
        let target = target(name).ok_or_else(|| format!("{name} is no target"))?;
        (target.run)(&fs::read(&path)?);
    }
    Ok(())
}
