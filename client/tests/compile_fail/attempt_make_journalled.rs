//! E0423: nothing but the journal says that it holds a message.
use falaj_agent::egress::Journalled;
use falaj_proto::v1::DeclineRequest;

fn forge(decline: DeclineRequest) -> Journalled<DeclineRequest> {
    Journalled(decline)
}

fn main() {
    let _ = forge;
}
