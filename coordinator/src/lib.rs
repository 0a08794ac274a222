//! The coordinator: runs rounds over mutual TLS, enforces policy, keeps the log, serves operators.
//!
//! It links no machine-learning library: an update is integers to it. The way in is [`app`]; rounds are
//! driven by [`engine`], and everything durable goes through [`store`].

pub mod accept;
pub mod app;
pub mod approvals;
pub mod blob;
pub mod checkpointer;
pub mod clock;
pub mod config;
mod daily;
pub mod endpoints;
pub mod engine;
pub mod enrolment;
pub mod erased;
pub mod erasure;
pub mod evidence;
pub mod export;
pub mod fsck;
mod knock;
pub mod memory;
pub mod metrics;
pub mod oidc;
pub mod once;
pub mod outcomes;
pub mod persons;
pub mod policy;
pub mod proofs;
pub mod pruning;
pub mod refusals;
pub mod reports;
pub mod rest;
pub mod revocations;
pub mod rpc;
pub mod shards;
pub mod store;
pub mod tiles;
pub mod timestamps;
pub mod tracking;
pub mod trusted;
pub mod versions;
pub mod witnesses;
