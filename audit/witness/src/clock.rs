//! The one place of the witness that reads the clock; everything else takes the time as an argument.

/// Now, in seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default()
}
