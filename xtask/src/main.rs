//! Falaj.
fn main() {}
