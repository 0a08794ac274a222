//! The one place that reads the clock and draws random bytes; everything else takes them as arguments.

use falaj_core::time::Timestamp;

/// Now, in UTC.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}

/// Sixteen bytes that nobody can guess.
///
/// # Panics
/// When the operating system has no randomness to give; nothing can be signed safely then.
#[must_use]
pub fn nonce() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("invariant: the operating system gives randomness");
    bytes
}

/// Thirty-two bytes that nobody can guess, for a key or a salt.
///
/// # Panics
/// As [`nonce`].
#[must_use]
pub fn secret() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("invariant: the operating system gives randomness");
    bytes
}
