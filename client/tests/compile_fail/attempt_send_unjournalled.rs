//! E0308: what the journal does not hold cannot be sent.
use falaj_agent::wire::Wire;
use falaj_proto::v1::DeclineRequest;

async fn leave(wire: &mut Wire, decline: DeclineRequest) {
    wire.decline(decline).await.unwrap();
}

fn main() {
    let _ = leave;
}
