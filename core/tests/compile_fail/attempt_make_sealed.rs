//! E0451: only a mechanism makes a sealed update.
use falaj_core::update::{Encoding, SealedUpdate};

fn forge(payload: Vec<u8>, encoding: Encoding) -> SealedUpdate {
    let mechanism = "dp_sgd";
    SealedUpdate { payload, encoding, params: 1, saturated: 0, mechanism, reservation: 1, cohort: None }
}

fn main() {
    let _ = forge;
}
