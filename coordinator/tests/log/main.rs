//! The log, asked over the real router and the real RPC service, with real certificates and a real database.

mod asking;
mod closed;
mod following;
mod reads;
mod world;
