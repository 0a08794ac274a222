//! What sections are made of: facts, which say how strong the evidence is, and tables.

use super::count_of;
use crate::canon::Canon;
use std::collections::BTreeMap;

/// The most rows that one table shows, and the most findings and events of the timeline.
pub const ROWS_MAX: usize = 1_000;

/// Every fact that the report may establish; clause catalogues name them.
pub const FACTS: [&str; 28] = [
    "E1.places",
    "E1.refusals",
    "E2.transfers",
    "E2.approvals",
    "E2.outcomes",
    "E3.processing",
    "E3.purposes",
    "E3.legal_basis",
    "E4.accesses",
    "E4.refusals",
    "E5.integrity",
    "E5.witnesses",
    "E5.timestamps",
    "E6.epsilon",
    "E6.mechanisms",
    "E7.transport",
    "E7.certificates",
    "E7.revocation",
    "E8.policies",
    "E9.lineage",
    "E10.dpia",
    "E11.incidents",
    "E12.consent",
    "E12.erasures",
    "E13.approvals",
    "E14.retention",
    "E14.holds",
    "E15.third_parties",
];

/// How strong the evidence for a fact is, from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Somebody says so, in a file whose digest is in the log.
    Declared,
    /// An entry of the log says so.
    Recorded,
    /// The party concerned, or who vouches for it, has signed it.
    Attested,
    /// The issuer of a certificate vouches for the place in it.
    CaAttested,
    /// It follows from signatures and hashes that were checked.
    Proven,
}

impl Level {
    /// The word; what is only recorded is witnessed where others have cosigned the log that holds it.
    const fn as_str(self, witnessed: bool) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Recorded if witnessed => "witnessed",
            Self::Recorded => "recorded",
            Self::Attested => "attested",
            Self::CaAttested => "ca_attested",
            Self::Proven => "proven",
        }
    }
}

/// How often something was seen, and where first and last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) count: u64,
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Tally {
    /// In any order.
    pub(super) fn add(&mut self, index: u64) {
        self.first = if self.count == 0 { index } else { self.first.min(index) };
        self.count += 1;
        self.last = self.last.max(index);
    }

    /// Count, first and last as cells.
    pub(super) fn cells(&self) -> [Canon; 3] {
        [self.count, self.first, self.last].map(count_of)
    }
}

/// One section.
#[derive(Default)]
pub(super) struct Section {
    facts: BTreeMap<&'static str, (Level, Tally)>,
    tables: Vec<Canon>,
    none: Vec<&'static str>,
}

impl Section {
    /// A fact, unless nothing in the log backs it.
    pub(super) fn fact(&mut self, fact: &'static str, level: Level, tally: Tally) {
        debug_assert!(FACTS.contains(&fact), "{fact} is not listed");
        if tally.count > 0 {
            self.facts.insert(fact, (level, tally));
        }
    }

    /// A table. One without rows is said to be empty, which is a statement about every entry in range.
    pub(super) fn table(
        &mut self,
        name: &'static str,
        columns: &[&'static str],
        rows: impl IntoIterator<Item = Vec<Canon>>,
    ) {
        let mut rows = rows.into_iter();
        let shown: Vec<_> = rows.by_ref().take(ROWS_MAX).collect();
        let all = (shown.len() + rows.count()) as u64;
        self.first_of(name, columns, shown, all);
    }

    /// As [`Self::table`], of which these are the first rows of so many in all.
    pub(super) fn first_of(
        &mut self,
        name: &'static str,
        columns: &[&'static str],
        rows: Vec<Vec<Canon>>,
        all: u64,
    ) {
        if rows.is_empty() {
            self.none.push(name);
            return;
        }
        self.tables.push(Canon::map([
            ("name", name.into()),
            ("columns", Canon::List(columns.iter().map(|c| (*c).into()).collect())),
            ("more", count_of(all - rows.len() as u64)),
            ("rows", Canon::List(rows.into_iter().map(Canon::List).collect())),
        ]));
    }
}

/// The sections by number, E1 first.
pub(super) type All = [Section; 15];

/// Fifteen empty sections.
pub(super) fn all() -> All {
    Default::default()
}

/// The sections as JSON; `witnessed` entries are vouched for by others.
pub(super) fn write(sections: All, witnessed: u64) -> Canon {
    let section = |(i, s): (usize, Section)| {
        let fact = |(name, (level, tally)): (&'static str, (Level, Tally))| {
            let [count, first, last] = tally.cells();
            Canon::map([
                ("fact", name.into()),
                ("level", level.as_str(tally.last < witnessed).into()),
                ("count", count),
                ("first", first),
                ("last", last),
            ])
        };
        Canon::map([
            ("id", format!("E{}", i + 1).into()),
            ("facts", Canon::List(s.facts.into_iter().map(fact).collect())),
            ("tables", Canon::List(s.tables)),
            ("none", Canon::List(s.none.into_iter().map(Canon::from).collect())),
        ])
    };
    Canon::List(sections.into_iter().enumerate().map(section).collect())
}
