//! The agent: runs beside the records, trains on them, and lets only sealed updates out.
//!
//! Connections are outbound only. The road of an update is [`data`] → [`guard`] → [`ledger`] → [`train`] →
//! `falaj_core::dp` → [`journal`] → [`transport`] → [`egress`] → [`wire`]; [`agent`] walks it for each task.

pub mod agent;
pub mod audit;
pub mod budget;
pub mod clock;
pub mod config;
pub mod data;
pub mod egress;
pub mod enrol;
pub mod evaluate;
pub mod evaluation;
pub mod guard;
mod head;
pub mod holdout;
pub mod identity;
pub mod journal;
pub mod ledger;
pub mod local;
pub mod masked;
pub mod model_file;
pub mod noise;
pub mod perturb;
pub mod policy;
pub mod sandbox;
pub mod streams;
pub mod tpm;
pub mod train;
pub mod transport;
pub mod watch;
pub mod wire;
