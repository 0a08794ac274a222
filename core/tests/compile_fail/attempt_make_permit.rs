//! E0451: a permit names the policy that gave it.
use falaj_core::dp::Permit;

fn forge() -> Permit {
    Permit { policy: String::new() }
}

fn main() {
    let _ = forge;
}
