//! End to end over real processes, certificates, sockets and records. One binary, many modules.

mod audit;
mod canary;
mod crash;
mod erasure;
mod ftrl;
mod identity;
mod journey;
mod ledger;
mod masked;
mod mirror;
mod outcomes;
mod outside;
mod policy;
mod probing;
mod quorum;
mod report;
mod reports;
mod revocation;
mod shards;
mod siem;
mod site_policy;
mod study_file;
mod timestamps;
mod update;
mod witness;
