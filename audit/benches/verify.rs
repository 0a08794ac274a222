//! How fast a bundle is verified, beside plain SHA-256 of its entries, and how much memory ten million of them take
//! (AUD-12).
//!
//! `cargo xtask bench audit` runs this among others; `FALAJ_ENTRIES` changes how long the long log is.

#[path = "../tests/long/scene.rs"]
mod scene;

use falaj_core::merkle;
use falaj_verify::{Options, verify};
use scene::{Done, Scene, peak_kib};
use std::{hint::black_box, time::Instant};

/// Entries of the bundle whose verification is timed.
const TIMED: u64 = 300_000;
/// Entries of the long log.
const LONG: u64 = 10_000_000;
/// How often the timed one is verified; the best counts.
const TIMES: usize = 3;
/// What the long one may take.
const MEMORY_MIB: u64 = 64;

fn main() -> Done<()> {
    let mut scene = Scene::new()?;
    time(&scene, "verifying, report included")?;
    scene.people = true;
    time(&scene, "with half of the entries of people who are disclosed")?;
    scene.people = false;
    let long = std::env::var("FALAJ_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(LONG);
    let peak = peak_kib(&scene, long)?.div_ceil(1024);
    let verdict = if peak <= MEMORY_MIB { "pass" } else { "fail" };
    println!(
        "AUD-12, memory of verifying {long} entries: {peak} MiB (aim {MEMORY_MIB} MiB): {verdict}"
    );
    Ok(())
}

/// Verifies a bundle, beside the hashing of its entries.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn time(scene: &Scene, what: &str) -> Done<()> {
    let mut bundle = Vec::new();
    scene.bundle(TIMED, &mut bundle, || ())?;
    let entries: Vec<Vec<u8>> = (0..TIMED).map(|i| scene.entry(i).0).collect();
    let best = |work: &mut dyn FnMut()| {
        let times = (0..TIMES).map(|_| {
            let started = Instant::now();
            work();
            started.elapsed().as_secs_f64()
        });
        times.fold(f64::INFINITY, f64::min)
    };
    let hashing = best(&mut || {
        for entry in &entries {
            black_box(merkle::leaf_hash(black_box(entry)));
        }
    });
    let mut wrong = None;
    let verifying = best(&mut || {
        wrong = verify(&bundle[..], Options::default(), |_, _| {}).err();
    });
    if let Some(wrong) = wrong {
        return Err(wrong.into());
    }
    let bytes: usize = entries.iter().map(Vec::len).sum();
    println!(
        "{what}: {:.0} entries/s on one core, {:.1} times plain SHA-256 of entries of {} bytes (aim 500000/s)",
        TIMED as f64 / verifying,
        verifying / hashing,
        bytes / entries.len(),
    );
    Ok(())
}
