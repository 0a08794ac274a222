//! E0599: an update with one site's share of the noise is masked before it is signed.
use ed25519_dalek::SigningKey;
use falaj_core::update::{About, PartialUpdate, SignedUpdate, Unsigned};

fn leak(partial: PartialUpdate, about: About, key: &SigningKey) -> Result<SignedUpdate, Unsigned> {
    partial.sign(about, key)
}

fn main() {
    let _ = leak;
}
