//! E0382: a sealed update is signed once: one payment, one update.
use ed25519_dalek::SigningKey;
use falaj_core::update::{About, SealedUpdate, SignedUpdate, Unsigned};

type Twice = [Result<SignedUpdate, Unsigned>; 2];

fn twice(sealed: SealedUpdate, about: About, key: &SigningKey) -> Twice {
    [sealed.sign(about.clone(), key), sealed.sign(about, key)]
}

fn main() {
    let _ = twice;
}
