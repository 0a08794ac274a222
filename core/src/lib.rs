//! What the words of Falaj mean: pure functions and state machines.
//!
//! Nothing here does I/O: no sockets, files, SQL, clock, environment or operating-system
//! randomness. Time and chance are arguments. Both programs and the auditor link this crate, so
//! that a round, a seal and a proof mean the same to all of them.

pub mod admission;
pub mod aggregate;
pub mod audit;
pub mod canon;
pub mod dp;
pub mod egress;
pub mod evaluation;
pub mod evidence;
pub mod gate;
pub mod id;
pub mod ledger;
pub mod manifest;
pub mod merkle;
pub mod ml_dsa;
pub mod model;
pub mod networks;
pub mod note;
pub mod receipt;
pub mod registry;
pub mod report;
pub mod robust;
pub mod roles;
pub mod round;
pub mod secagg;
pub mod sign;
pub mod study;
pub mod succession;
pub mod task;
pub mod tiles;
pub mod time;
pub mod tpm;
pub mod update;
pub mod witness;
