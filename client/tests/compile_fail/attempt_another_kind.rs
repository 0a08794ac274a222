//! E0277: bytes are no message of the closed set.
use falaj_agent::egress::Egress;

async fn leave(egress: &Egress, record: Vec<u8>) {
    let _ = egress.note(record).await;
}

fn main() {
    let _ = leave;
}
