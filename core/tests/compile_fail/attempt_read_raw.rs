//! E0616: what training gave cannot be read, so that nobody encodes it by hand.
use falaj_core::update::RawUpdate;

fn leave(raw: &RawUpdate) -> Vec<u8> {
    raw.0.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn main() {
    let _ = leave;
}
