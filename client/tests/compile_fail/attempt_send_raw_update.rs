//! E0277: an update that was not signed is no message.
use falaj_agent::egress::Egress;
use falaj_core::update::{RawUpdate, SealedUpdate};

async fn leave(egress: &Egress, raw: &RawUpdate, sealed: &SealedUpdate) {
    let _ = egress.note(raw).await;
    let _ = egress.note(sealed).await;
}

fn main() {
    let _ = leave;
}
