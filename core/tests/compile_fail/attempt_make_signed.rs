//! E0451: only signing a sealed update, or restoring one that was signed, gives what the wire takes.
use falaj_core::update::SignedUpdate;

fn forge(header: Vec<u8>, payload: Vec<u8>) -> SignedUpdate {
    SignedUpdate { header, signature: [0; 64], payload }
}

fn main() {
    let _ = forge;
}
