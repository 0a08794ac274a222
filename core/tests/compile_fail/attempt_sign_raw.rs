//! E0599: what training gave cannot be signed.
use ed25519_dalek::SigningKey;
use falaj_core::update::{About, RawUpdate, SignedUpdate, Unsigned};

fn leave(raw: RawUpdate, about: About, key: &SigningKey) -> Result<SignedUpdate, Unsigned> {
    raw.sign(about, key)
}

fn main() {
    let _ = leave;
}
