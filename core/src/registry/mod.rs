//! The model registry: versions of what studies learned, what shows where each came from, and which way each may go.
//!
//! [`version`] is how versions move, [`provenance`] what is signed of one ([`dsse`] is the envelope, [`safetensors`] the file
//! that it speaks of), [`card`] the same for people, [`lineage`] what a log tells of all of them. Who may move a version is
//! policy's to say, and where they are kept the coordinator's.

pub mod card;
pub mod dsse;
pub mod lineage;
pub mod provenance;
pub mod safetensors;
pub mod version;
