//! The road as it is meant, from which every attempt beside it departs.
use falaj_agent::{egress::Egress, wire::Wire};
use falaj_core::update::SignedUpdate;
use falaj_proto::v1::DeclineRequest;

async fn leave(wire: &mut Wire, egress: &Egress, decline: DeclineRequest, update: &SignedUpdate) {
    let decline = egress.note(decline).await.unwrap();
    wire.decline(decline).await.unwrap();
    let update = egress.note(update).await.unwrap();
    wire.submit(update).await.unwrap();
}

fn main() {
    let _ = leave;
}
