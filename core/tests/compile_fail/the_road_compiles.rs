//! The road as it is meant, from which every attempt beside it departs.
use ed25519_dalek::SigningKey;
use falaj_core::{
    dp::{Mechanism, Noise, Permit, Reservation},
    manifest::Manifest,
    update::{About, Encoding, RawUpdate, SignedUpdate},
};

fn leave(
    raw: RawUpdate,
    paid: Reservation,
    grid: Encoding,
    manifest: &Manifest,
    noise: &mut dyn Noise,
    about: About,
    key: &SigningKey,
) -> Result<SignedUpdate, Box<dyn std::error::Error>> {
    let mechanism = Mechanism::None(Permit::by_policy("named"));
    let sealed = mechanism.seal(raw, paid, grid, manifest, noise)?;
    Ok(sealed.sign(about, key)?)
}

fn main() {
    let _ = leave;
}
