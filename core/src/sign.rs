//! Ed25519 keys that sign, wherever they lie: in memory, or in a token that never gives them out.
//!
//! What signs in a token is in `falaj_certs`; here is only what the rest of the house asks of a key.

use ed25519_dalek::{SigningKey, VerifyingKey};
use std::sync::Arc;

/// A secret Ed25519 key that can be used, and perhaps not read.
pub trait SignKey: Send + Sync {
    /// The public half.
    fn verifying_key(&self) -> VerifyingKey;

    /// Signs (RFC 8032, pure Ed25519).
    ///
    /// # Errors
    /// [`SignError`] when the key cannot be used now: a token that is away. Asking again later is right.
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError>;
}

/// Why a key does not sign now. Names where the key lies, never anything secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key cannot sign: {0}")]
pub struct SignError(pub String);

impl<K: SignKey + ?Sized> SignKey for Arc<K> {
    fn verifying_key(&self) -> VerifyingKey {
        (**self).verifying_key()
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        (**self).sign(message)
    }
}

impl SignKey for SigningKey {
    fn verifying_key(&self) -> VerifyingKey {
        Self::verifying_key(self)
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        Ok(ed25519_dalek::Signer::sign(self, message).to_bytes())
    }
}
