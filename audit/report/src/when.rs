//! Points in time as people in the Emirates read them: Gulf Standard Time, four hours ahead of UTC all year.
//! Nothing here reads a clock.

use crate::words::Words;
use jiff::{Timestamp, civil::DateTime, tz};

/// Gulf Standard Time is this many hours ahead of UTC. It has no summer time.
const GULF_HOURS: i8 = 4;

/// A point in time, by the clock on a wall in the Emirates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local(DateTime);

impl Local {
    /// From RFC 3339 text in UTC, as the log has it; `None` when it is something else.
    #[must_use]
    pub fn from_utc(text: &str) -> Option<Self> {
        let zulu =
            text.len() >= 20 && text.ends_with('Z') && text.as_bytes().get(10) == Some(&b'T');
        let at: Timestamp = if zulu { text.parse().ok()? } else { return None };
        Some(Self(tz::offset(GULF_HOURS).to_datetime(at)))
    }

    /// From the beginning of RFC 3339 text in UTC, cut after the hour or the minute, as labels of charts are.
    #[must_use]
    pub fn from_cut(label: &str) -> Option<Self> {
        match label.len() {
            13 => Self::from_utc(&format!("{label}:00:00Z")),
            16 => Self::from_utc(&format!("{label}:00Z")),
            _ => None,
        }
    }

    /// The date, for example `25 November 2026`.
    #[must_use]
    pub fn date(self, words: &Words) -> String {
        let month = words.say(&format!("month_{}", self.0.month()));
        let (day, year) = (self.0.day().to_string(), self.0.year().to_string());
        format!("{} {month} {}", words.digits(&day), words.digits(&year))
    }

    /// The time of day to the second, for example `08:00:00`.
    #[must_use]
    pub fn time(self, words: &Words) -> String {
        words.digits(&self.0.strftime("%H:%M:%S").to_string())
    }

    /// The time of day to the minute, for example `08:00`.
    #[must_use]
    pub fn minute(self, words: &Words) -> String {
        words.digits(&self.0.strftime("%H:%M").to_string())
    }

    /// Day and month, for example `25/11`.
    #[must_use]
    pub fn day_month(self, words: &Words) -> String {
        words.digits(&format!("{}/{}", self.0.day(), self.0.month()))
    }

    /// Year, month, day, hour, minute and second in UTC, for a file's metadata.
    #[must_use]
    pub fn utc_parts(text: &str) -> Option<(i32, u8, u8, u8, u8, u8)> {
        Self::from_utc(text)?;
        let at = tz::Offset::UTC.to_datetime(text.parse().ok()?);
        let part = |n: i8| u8::try_from(n).ok();
        Some((
            i32::from(at.year()),
            part(at.month())?,
            part(at.day())?,
            part(at.hour())?,
            part(at.minute())?,
            part(at.second())?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Lang;

    #[test]
    fn times_are_four_hours_ahead_of_utc_in_both_languages() {
        let at = Local::from_utc("2026-12-31T21:30:05.125Z").expect("a time");
        let [en, ar] = Lang::ALL.map(|lang| Words::of(lang).expect("the words"));
        assert_eq!((at.date(&en), at.time(&en)), ("1 January 2027".into(), "01:30:05".into()));
        assert_eq!((at.date(&ar), at.time(&ar)), ("١ يناير ٢٠٢٧".into(), "٠١:٣٠:٠٥".into()));
        assert_eq!(Local::utc_parts("2026-12-31T21:30:05.125Z"), Some((2026, 12, 31, 21, 30, 5)));
    }

    #[test]
    fn a_label_is_cut_after_hour_or_minute() {
        let en = Words::of(Lang::En).expect("the words");
        assert_eq!(Local::from_cut("2026-11-25T04").map(|t| t.minute(&en)), Some("08:00".into()));
        assert_eq!(
            Local::from_cut("2026-11-25T04:59").map(|t| t.minute(&en)),
            Some("08:59".into())
        );
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "2026-11-25",
            "2026-11-25T04:00:00",
            "2026-13-25T04:00:00Z",
            "Z",
            "yesterday, 12:00:00Z",
        ] {
            assert_eq!(Local::from_utc(text), None, "{text}");
        }
        assert_eq!(Local::from_cut("2026-11-25"), None);
    }
}
