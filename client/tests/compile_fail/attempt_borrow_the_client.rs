//! E0616: the client that can send is the wire's own.
use falaj_agent::wire::Wire;

fn borrow(wire: Wire) {
    let _ = wire.client;
}

fn main() {
    let _ = borrow;
}
