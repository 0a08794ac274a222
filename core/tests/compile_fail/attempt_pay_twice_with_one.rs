//! E0382: one reservation pays for one update.
use falaj_core::{
    dp::{Mechanism, Noise, Reservation, SealError},
    manifest::Manifest,
    update::{Encoding, RawUpdate, SealedUpdate},
};

fn twice(
    raw: [RawUpdate; 2],
    paid: Reservation,
    grid: Encoding,
    manifest: &Manifest,
    noise: &mut dyn Noise,
) -> Result<[SealedUpdate; 2], SealError> {
    let [first, second] = raw;
    Ok([
        Mechanism::DpSgd.seal(first, paid, grid, manifest, noise)?,
        Mechanism::DpSgd.seal(second, paid, grid, manifest, noise)?,
    ])
}

fn main() {
    let _ = twice;
}
