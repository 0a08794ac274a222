//! The log, asked over the real router and the real RPC service, with real certificates and a real database.

mod again;
mod asking;
mod closed;
mod erasing;
mod figures;
mod following;
mod held;
mod mirrored;
mod outcomes;
mod paged;
mod pruning;
mod reads;
mod reporting;
mod revoking;
#[expect(dead_code, reason = "the conformance test of the store needs more of it")]
#[path = "../store/server.rs"]
mod server;
mod sharded;
mod versions;
mod world;
