//! Certificates: a development CA, identities read from certificates, and TLS configurations.
//!
//! An identity is one SPIFFE URI. The place in it is vouched for by the issuing authority, whose key is
//! bound to places in the trust configuration: a holder cannot claim one. Everything is TLS 1.3 with
//! client certificates, resumption off, and a post-quantum hybrid first. `docs/adr/0002` says why.

pub mod ca;
pub mod enrolment;
pub mod history;
pub mod identity;
pub mod issue;
pub mod keys;
pub mod request;
pub mod revocation;
pub mod timestamp;
pub mod tls;
pub mod token;
pub mod tpm;
pub mod trust;
