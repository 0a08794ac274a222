//! The one place of the agent that reads the clock and draws nonces; everything else takes them as arguments.

use falaj_core::time::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in UTC.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Sixteen bytes that nobody can guess.
///
/// # Panics
/// When the operating system has no randomness to give; nothing can be protected then.
#[must_use]
pub fn nonce() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("invariant: the operating system gives randomness");
    bytes
}
