//! Whether a person may be erased: legal holds come first, then the terms for which studies promise to keep records.
//!
//! Pure: what is asked of the log, and when it is, are arguments. Terms are counted in the calendar, in UTC.

use super::person::Person;
use crate::{id::StudyId, study::Retention, time::Timestamp};
use std::fmt;

/// What a legal hold is placed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeldObject {
    /// A person.
    Person(Person),
    /// Everybody who acted in a study.
    Study(StudyId),
}

impl fmt::Display for HeldObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person(person) => write!(f, "person:{person}"),
            Self::Study(study) => study.fmt(f),
        }
    }
}

/// A legal hold: nothing that it covers is erased while it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Its name: 16 random hexadecimal digits.
    pub id: String,
    /// What it covers.
    pub object: HeldObject,
    /// By which article of law, as whoever placed it said.
    pub article: String,
}

/// A study in which somebody acted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acted {
    /// The study.
    pub study: StudyId,
    /// How long its records are kept, if it says so.
    pub retention: Option<Retention>,
    /// When the log last spoke of it; none while it runs, for its term has not begun then.
    pub last: Option<Timestamp>,
}

/// Why a person is not erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A legal hold stands.
    Hold(Hold),
    /// The records of a study in which they acted are kept for longer.
    Term {
        /// The study.
        study: StudyId,
        /// Its class.
        retention: Retention,
        /// Until when, the first moment at which it may be done; none while the study runs.
        until: Option<String>,
    },
    /// The whole shard is kept for longer.
    Shard {
        /// By which article of law, as the policy of retention says.
        article: String,
        /// Until when.
        until: String,
    },
}

impl Kept {
    /// A word for the reason.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Hold(_) => "legal_hold",
            Self::Term { .. } | Self::Shard { .. } => "retention",
        }
    }

    /// The article of law behind it.
    #[must_use]
    pub fn article(&self) -> &str {
        match self {
            Self::Hold(hold) => &hold.article,
            Self::Term { retention, .. } => article(*retention),
            Self::Shard { article, .. } => article,
        }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hold(hold) => write!(
                f,
                "hold {} on {} stands under {}: release it first, if the law allows",
                hold.id, hold.object, hold.article
            ),
            Self::Term { study, retention, until } => {
                let (class, article) = (retention.as_str(), article(*retention));
                write!(f, "records of study `{study}` are kept for {class} under {article}, ")?;
                match until {
                    Some(until) => write!(f, "until {until}"),
                    None => f.write_str("counted from its end, and it still runs"),
                }
            }
            Self::Shard { article, until } => {
                write!(f, "the shard is kept under {article}, until {until}")
            }
        }
    }
}

/// The law behind a class of retention, as far as it is known here; counsel decides which class a study has.
#[must_use]
pub const fn article(retention: Retention) -> &'static str {
    match retention {
        Retention::Months6 => "Regulation (EU) 2024/1689, Articles 19(1) and 26(6)",
        Retention::Years5 => "CBUAE Consumer Protection Standards (N 1158/2021), record keeping",
        Retention::Years10 => "Regulation (EU) 2024/1689, Article 18",
        Retention::Years25 => "UAE Federal Law 2/2019, Article 20",
    }
}

/// The end of a term of so many months that began at `from`: RFC 3339 in UTC, on the same day of the month, or the last
/// that it has.
#[must_use]
pub fn term_end(from: Timestamp, months: u32) -> String {
    let text = from.to_string();
    let number = |range: std::ops::Range<usize>| {
        text.get(range).and_then(|n| n.parse::<i64>().ok()).unwrap_or_default()
    };
    let all = number(0..4) * 12 + number(5..7) - 1 + i64::from(months);
    let (year, month) = (all.div_euclid(12), all.rem_euclid(12) + 1);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let day = number(8..10).min(days);
    format!("{year:04}-{month:02}-{day:02}{}", text.get(10..).unwrap_or_default())
}

/// What keeps a person from being erased now, if anything does: holds first, then the term that ends last.
#[must_use]
pub fn kept<'a>(
    person: Person,
    now: Timestamp,
    holds: impl IntoIterator<Item = &'a Hold>,
    acted: &[Acted],
) -> Option<Kept> {
    let covers = |hold: &&Hold| match &hold.object {
        HeldObject::Person(held) => *held == person,
        HeldObject::Study(held) => acted.iter().any(|a| a.study == *held),
    };
    if let Some(hold) = holds.into_iter().find(covers) {
        return Some(Kept::Hold(hold.clone()));
    }
    kept_by_term(now, acted)
}

/// Which of these studies' records must be kept now, if any: the one whose term ends last.
#[must_use]
pub fn kept_by_term(now: Timestamp, acted: &[Acted]) -> Option<Kept> {
    let now = now.to_string();
    let term = |acted: &Acted| {
        let retention = acted.retention?;
        let until = acted.last.map(|last| term_end(last, retention.months()));
        let over = until.as_ref().is_some_and(|until| *until <= now);
        (!over).then(|| (until, acted.study.clone(), retention))
    };
    let terms = acted.iter().filter_map(term);
    // A term that has not begun ends after all others; times are in one fixed form, so text order is time order.
    let last = terms.max_by_key(|(until, ..)| (until.is_none(), until.clone()));
    last.map(|(until, study, retention)| Kept::Term { study, retention, until })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SARA: Person = Person([1; 16]);

    fn at(text: &str) -> Timestamp {
        // From 2000 on, day by day, until the text is the same: the calendar is not computed a second time.
        let days = (0..40_000).map(|d| Timestamp::from_millis(946_684_800_000 + d * 86_400_000));
        days.into_iter().find(|t| t.to_string().starts_with(text)).expect("a day")
    }

    fn acted(retention: Option<Retention>, last: Option<&str>) -> Acted {
        Acted { study: "s".parse().expect("a study"), retention, last: last.map(at) }
    }

    fn hold(object: HeldObject) -> Hold {
        Hold { id: "9".into(), object, article: "Article 1".into() }
    }

    /// CMP-04: refused under each class before its term, and allowed from its last moment on.
    #[test]
    fn each_class_keeps_a_person_until_its_term_is_over() {
        for (retention, last, until) in [
            (Retention::Months6, "2026-08-31", "2027-02-28"),
            (Retention::Years5, "2024-02-29", "2029-02-28"),
            (Retention::Years10, "2026-03-01", "2036-03-01"),
            (Retention::Years25, "2026-12-31", "2051-12-31"),
        ] {
            let acted = [acted(Some(retention), Some(last)), acted(None, Some(last))];
            let end = at(until);
            let before = Timestamp::from_millis(end.as_millis() - 1);
            let kept_then = kept(SARA, before, [], &acted).expect("kept");
            let Kept::Term { until: found, retention: class, .. } = &kept_then else {
                panic!("{kept_then:?}")
            };
            assert_eq!((found.as_deref(), *class), (Some(&*end.to_string()), retention));
            assert!(kept_then.to_string().contains(retention.as_str()), "{kept_then}");
            assert_eq!(kept(SARA, end, [], &acted), None, "{until}");
        }
    }

    #[test]
    fn while_a_study_runs_its_term_has_not_begun() {
        let acted = [
            acted(Some(Retention::Years25), Some("2026-01-01")),
            acted(Some(Retention::Months6), None),
        ];
        let found = kept(SARA, at("2099-01-01"), [], &acted).expect("kept");
        assert!(matches!(&found, Kept::Term { until: None, .. }), "{found:?}");
        assert!(found.to_string().contains("still runs"), "{found}");
    }

    /// CMP-04: a hold keeps whoever it covers, whatever terms say, and nobody else.
    #[test]
    fn a_hold_keeps_whoever_it_covers() {
        let now = at("2099-01-01");
        let acted = [acted(None, Some("2026-01-01"))];
        let on = |object| [hold(object)];
        let study = |name: &str| HeldObject::Study(name.parse().expect("a study"));
        for holds in [on(HeldObject::Person(SARA)), on(study("s"))] {
            let found = kept(SARA, now, &holds, &acted).expect("kept");
            assert_eq!((found.reason(), found.article()), ("legal_hold", "Article 1"));
        }
        for holds in [on(HeldObject::Person(Person([2; 16]))), on(study("other"))] {
            assert_eq!(kept(SARA, now, &holds, &acted), None);
        }
    }
}
