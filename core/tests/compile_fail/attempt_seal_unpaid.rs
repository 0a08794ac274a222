//! E0061: sealing takes a reservation.
use falaj_core::{
    dp::{Mechanism, Noise, SealError},
    manifest::Manifest,
    update::{Encoding, RawUpdate, SealedUpdate},
};

fn unpaid(
    raw: RawUpdate,
    grid: Encoding,
    manifest: &Manifest,
    noise: &mut dyn Noise,
) -> Result<SealedUpdate, SealError> {
    Mechanism::DpSgd.seal(raw, grid, manifest, noise)
}

fn main() {
    let _ = unpaid;
}
