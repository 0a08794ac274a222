//! An outside witness: a regulator's or a public one. It keeps the last checkpoint of each log that it watches, asks that
//! the next one goes on from it, and cosigns that, by C2SP tlog-witness v1.0.0 over HTTP.
//!
//! It knows no coordinator, no database and no entries: only checkpoints and proofs come to it. What it has answered was
//! durable before.

pub mod clock;
pub mod config;
pub mod keep;
pub mod serve;
