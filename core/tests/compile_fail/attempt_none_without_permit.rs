//! E0308: mechanism `none` takes a policy's permit.
use falaj_core::dp::Mechanism;

fn none() -> Mechanism {
    Mechanism::None
}

fn main() {
    let _ = none;
}
