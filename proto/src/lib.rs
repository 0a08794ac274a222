//! How the words of Falaj are spelled: on the wire, in study files, in REST, in errors.
//!
//! The words themselves, and every rule about them, live in `falaj-core`; this crate converts.

#[cfg(feature = "onnx")]
pub mod onnx;
#[cfg(feature = "services")]
pub mod problem;
#[cfg(feature = "services")]
pub mod rest;
pub mod study;

/// gRPC messages and services of `falaj.v1`, generated from `proto/falaj/v1/federation.proto`.
#[cfg(feature = "services")]
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("falaj.v1");
}

/// The most payload bytes that one streamed message carries.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
