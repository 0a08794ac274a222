//! Points in time and spans, as whole milliseconds. Nothing here reads a clock.

use std::fmt;

/// A point in time: milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Reads what [`Display`](fmt::Display) writes; none for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let part = |at: std::ops::Range<usize>| -> Option<i64> {
            let digits = text.get(at).filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?;
            digits.parse().ok()
        };
        let (year, month, day) = (part(0..4)?, part(5..7)?, part(8..10)?);
        // Civil-to-days conversion: H. Hinnant, as below.
        let y = year - i64::from(month <= 2);
        let (era, yoe) = (y.div_euclid(400), y.rem_euclid(400));
        let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
        let days = era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468;
        let (hour, minute, second) = (part(11..13)?, part(14..16)?, part(17..19)?);
        let ms = ((days * 24 + hour) * 60 + minute) * 60_000 + second * 1_000 + part(20..23)?;
        let read = Self(ms);
        // Whatever is no such text, or no such day, is written otherwise.
        (read.to_string() == text).then_some(read)
    }

    /// This point moved later by `span_ms` milliseconds; saturates at the end of time.
    #[must_use]
    pub const fn plus_ms(self, span_ms: u64) -> Self {
        let span = if span_ms > i64::MAX as u64 { i64::MAX } else { span_ms.cast_signed() };
        Self(self.0.saturating_add(span))
    }

    /// Milliseconds from `earlier` to this point; zero when `earlier` is not earlier.
    #[must_use]
    pub const fn since_ms(self, earlier: Self) -> u64 {
        let span = self.0.saturating_sub(earlier.0);
        if span < 0 { 0 } else { span.cast_unsigned() }
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds, for example `2026-11-23T09:30:00.125Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days-to-civil conversion: H. Hinnant, "chrono-compatible low-level date algorithms".
        let (days, ms) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        let z = days + 719_468;
        let era = z.div_euclid(146_097);
        let doe = z.rem_euclid(146_097);
        let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = doy - (153 * mp + 2) / 5 + 1;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = yoe + era * 400 + i64::from(month <= 2);
        let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
        let (second, milli) = (ms / 1_000 % 60, ms % 1_000);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_prints_as_rfc_3339() {
        assert_eq!(Timestamp::from_millis(0).to_string(), "1970-01-01T00:00:00.000Z");
        // `date -u -d 2024-02-29T23:59:59.999 +%s%3N`
        assert_eq!(
            Timestamp::from_millis(1_709_251_199_999).to_string(),
            "2024-02-29T23:59:59.999Z"
        );
        assert_eq!(Timestamp::from_millis(-1).to_string(), "1969-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_timestamp_reads_back_and_nothing_else_is_read() {
        for ms in [0, -1, 1_709_251_199_999, 951_782_400_000, 4_102_444_799_999, -2_208_988_800_000]
        {
            let time = Timestamp::from_millis(ms);
            assert_eq!(Timestamp::parse(&time.to_string()), Some(time));
        }
        for text in [
            "",
            "2026-02-29T00:00:00.000Z",
            "2026-01-01T24:00:00.000Z",
            "2026-01-01T00:00:00Z",
            "+026-01-01T00:00:00.000Z",
            "2026-13-01T00:00:00.000Z",
            "٢٠٢٦",
        ] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }

    #[test]
    fn spans_saturate_instead_of_wrapping() {
        let t = Timestamp::from_millis(5);
        assert_eq!(t.plus_ms(u64::MAX).as_millis(), i64::MAX);
        assert_eq!(t.since_ms(Timestamp::from_millis(9)), 0);
    }
}
