//! E0451: only a mechanism makes a sealed update.
use falaj_core::update::{Encoding, SealedUpdate};

fn forge(payload: Vec<u8>, encoding: Encoding) -> SealedUpdate {
    SealedUpdate { payload, encoding, params: 1, saturated: 0, mechanism: "dp_sgd", reservation: 1 }
}

fn main() {
    let _ = forge;
}
