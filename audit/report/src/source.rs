//! The report's JSON, read and held against its own rules. What is in it was computed elsewhere, from a verified
//! bundle; here nothing is computed from entries.
//!
//! Once the clause catalogues have been joined to it ([`Source::join`]) the JSON is the *source*: both languages
//! are views of its bytes, and print their digest.

use crate::catalog::{self, Catalogue, Clause};
use falaj_core::{
    canon::{self, Canon, CanonError},
    id::Digest,
    report::FACTS,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A report of more bytes than this is not read.
pub const SOURCE_BYTES_MAX: usize = 64 << 20;
/// The sections, in order.
pub const SECTIONS: [&str; 15] = [
    "E1", "E2", "E3", "E4", "E5", "E6", "E7", "E8", "E9", "E10", "E11", "E12", "E13", "E14", "E15",
];
/// What the JSON calls itself.
const KIND: &str = "falaj/report/v1";

/// How strong evidence is, from nothing to proof.
///
/// Levels of places stand between: an issuer's word for a place is an attestation, and what was measured or
/// attested beyond that is more, but none of it is as strong as what others have cosigned.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, Default, Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// There is no evidence.
    #[default]
    Gap,
    /// Somebody says so.
    Declared,
    /// An entry of the log says so.
    Recorded,
    /// Signed by the party concerned.
    Attested,
    /// A place: its certificate's issuer vouches for it.
    CaAttested,
    /// A place: the network address agrees.
    NetworkConsistent,
    /// A place: bounded by measured latency.
    LatencyBounded,
    /// A place: attested by hardware.
    HardwareAttested,
    /// Others have cosigned the log that holds it.
    Witnessed,
    /// It follows from signatures and hashes that were checked.
    Proven,
}

impl Level {
    /// Every level, from nothing to proof.
    pub const ALL: [Self; 10] = [
        Self::Gap,
        Self::Declared,
        Self::Recorded,
        Self::Attested,
        Self::CaAttested,
        Self::NetworkConsistent,
        Self::LatencyBounded,
        Self::HardwareAttested,
        Self::Witnessed,
        Self::Proven,
    ];

    /// Its name in the JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Declared => "declared",
            Self::Recorded => "recorded",
            Self::Attested => "attested",
            Self::CaAttested => "ca_attested",
            Self::NetworkConsistent => "network_consistent",
            Self::LatencyBounded => "latency_bounded",
            Self::HardwareAttested => "hardware_attested",
            Self::Witnessed => "witnessed",
            Self::Proven => "proven",
        }
    }
}

/// Why a report cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Too long.
    #[error(
        "the report has {0} bytes; at most {SOURCE_BYTES_MAX} are read: report a narrower range"
    )]
    TooLong(usize),
    /// Not canonical JSON.
    #[error("the report is not canonical JSON: take the file as it was written, unchanged")]
    Canon(#[source] CanonError),
    /// Canonical JSON of another shape.
    #[error("the report is not of the form `{KIND}`")]
    Shape(#[source] serde_json::Error),
    /// A member says something that it cannot say.
    #[error("the report, {at}: {what}")]
    Member {
        /// Where in it.
        at: String,
        /// What is wrong.
        what: String,
    },
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    /// A whole number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
    /// Text; a real quantity is decimal text.
    Text(String),
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(n) => write!(f, "{n}"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Text(s) => f.write_str(s),
        }
    }
}

/// The log that the report is about, at the size that was verified.
#[derive(Clone, Debug, Deserialize)]
pub struct Log {
    /// How many entries it has.
    pub tree_size: i64,
    /// The root over them.
    pub root_hash: String,
}

/// Which entries were read: indexes in `from..to`.
#[derive(Clone, Debug, Deserialize)]
pub struct Range {
    /// The first.
    pub from: i64,
    /// One past the last.
    pub to: i64,
    /// When the first was committed; empty when there is none.
    pub first_ts: String,
    /// When the last was committed; empty when there is none.
    pub last_ts: String,
    /// What was asked for: not before this; empty for no limit.
    pub since: String,
    /// What was asked for: before this; empty for no limit.
    pub until: String,
}

/// What the report is limited to; empty for everything.
#[derive(Clone, Debug, Deserialize)]
pub struct Scope {
    /// One study.
    pub study: String,
    /// One subject.
    pub subject: String,
}

/// A count of the summary.
#[derive(Clone, Debug, Deserialize)]
pub struct Count {
    /// What is counted: a key of the words files.
    pub name: String,
    /// How many.
    pub count: i64,
}

/// Something in the log that somebody should look at.
#[derive(Clone, Debug, Deserialize)]
pub struct Finding {
    /// Its name.
    pub finding: String,
    /// The section that it belongs to.
    pub section: String,
    /// The entry's index.
    pub index: i64,
    /// The entry's time.
    pub ts: String,
    /// Whom it concerns.
    pub who: String,
    /// The study, if any.
    pub study: String,
    /// More about it.
    pub detail: String,
}

/// A step of the timeline.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// When.
    pub ts: String,
    /// The entry's index.
    pub index: i64,
    /// The entry's kind.
    pub kind: String,
    /// Who.
    pub who: String,
    /// The study, if any.
    pub study: String,
    /// More about it.
    pub detail: String,
}

/// One series of a chart.
#[derive(Clone, Debug, Deserialize)]
pub struct Series {
    /// Its name: a key of the words files, or an id.
    pub name: String,
    /// Decimal text, one for each label. What a site stated can be any text; it is then drawn as nothing.
    pub values: Vec<String>,
}

/// A chart.
#[derive(Clone, Debug, Deserialize)]
pub struct Chart {
    /// Its name: a key of the words files.
    pub name: String,
    /// What its labels are: `minute`, `hour`, `day`, `month`, `year`, or `name`.
    pub unit: String,
    /// Labels.
    pub labels: Vec<String>,
    /// Series.
    pub series: Vec<Series>,
}

/// A fact of a section.
#[derive(Clone, Debug, Deserialize)]
pub struct Fact {
    /// Its name, one of [`FACTS`].
    pub fact: String,
    /// How strong the evidence for it is.
    pub level: Level,
    /// How many entries speak to it.
    pub count: i64,
    /// The first of them.
    pub first: i64,
    /// The last of them.
    pub last: i64,
}

/// A table of a section.
#[derive(Clone, Debug, Deserialize)]
pub struct Table {
    /// Its name: a key of the words files.
    pub name: String,
    /// Its columns: keys of the words files.
    pub columns: Vec<String>,
    /// Its rows; each has as many cells as there are columns.
    pub rows: Vec<Vec<Cell>>,
    /// How many rows are not here.
    pub more: i64,
}

/// A section.
#[derive(Clone, Debug, Deserialize)]
pub struct Section {
    /// Its id, one of [`SECTIONS`].
    pub id: String,
    /// Its facts.
    pub facts: Vec<Fact>,
    /// Its tables.
    pub tables: Vec<Table>,
    /// Tables that are empty in range.
    pub none: Vec<String>,
}

/// The report.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    v: i64,
    #[serde(rename = "report")]
    form: String,
    /// The log's origin.
    pub origin: String,
    /// Who kept the log.
    pub coordinator: String,
    /// The log.
    pub log: Log,
    /// The entries that were read.
    pub range: Range,
    /// What the report is limited to.
    pub scope: Scope,
    /// Counts.
    pub summary: Vec<Count>,
    /// Findings.
    pub findings: Vec<Finding>,
    /// How many findings are not here.
    pub findings_more: i64,
    /// The timeline.
    pub timeline: Vec<Step>,
    /// How many of its steps are not here.
    pub timeline_more: i64,
    /// Charts.
    pub charts: Vec<Chart>,
    /// The sections, E1 to E15.
    pub sections: Vec<Section>,
    /// The catalogues that were joined; none before that.
    #[serde(default)]
    pub catalogues: Vec<Catalogue>,
    /// Their clauses, with the evidence for each; none before that.
    #[serde(default)]
    pub clauses: Vec<Clause>,
}

impl Report {
    /// The level of a fact; a fact that is not there is a gap.
    #[must_use]
    pub fn level(&self, fact: &str) -> Level {
        let facts = self.sections.iter().flat_map(|s| &s.facts);
        facts.filter(|f| f.fact == fact).map(|f| f.level).min().unwrap_or_default()
    }

    fn check(&self) -> Result<(), SourceError> {
        let wrong = |at: String, what: String| Err(SourceError::Member { at, what });
        if self.v != 1 || self.form != KIND {
            let what = format!("`{}` of version {} is not known here", self.form, self.v);
            return wrong("`report`".into(), what);
        }
        if self.sections.iter().map(|s| s.id.as_str()).ne(SECTIONS) {
            let what = "a report has the sections E1 to E15, once each and in order";
            return wrong("`sections`".into(), what.into());
        }
        for section in &self.sections {
            for fact in &section.facts {
                let ours = fact.fact.strip_prefix(&section.id).is_some_and(|f| f.starts_with('.'));
                if !ours || !is_fact(&fact.fact) {
                    return wrong(section.id.clone(), format!("`{}` is no fact of it", fact.fact));
                }
            }
            for table in &section.tables {
                let at = format!("{}, table `{}`", section.id, table.name);
                if !is_name(&table.name) {
                    return wrong(at, "a table's name has a-z, 0-9 and _ only".into());
                }
                if table.columns.is_empty() {
                    return wrong(at, "it has no columns".into());
                }
                for (i, row) in table.rows.iter().enumerate() {
                    if row.len() != table.columns.len() {
                        let (have, want) = (row.len(), table.columns.len());
                        return wrong(at, format!("row {i} has {have} cells for {want} columns"));
                    }
                }
            }
        }
        for clause in &self.clauses {
            let levels = clause.evidence.iter().map(|e| e.level);
            let held = clause.evidence.iter().all(|e| e.level == self.level(&e.fact));
            if !held || clause.assurance != catalog::assurance(levels) {
                let what = "its levels do not follow from the facts: join the catalogues again";
                return wrong(format!("clause `{}`", clause.id), what.into());
            }
        }
        for chart in &self.charts {
            for series in &chart.series {
                let at = format!("chart `{}`, series `{}`", chart.name, series.name);
                if series.values.len() != chart.labels.len() {
                    let (have, want) = (series.values.len(), chart.labels.len());
                    return wrong(at, format!("{have} values for {want} labels"));
                }
            }
        }
        Ok(())
    }
}

/// Whether this is the name of a fact.
#[must_use]
pub fn is_fact(name: &str) -> bool {
    FACTS.contains(&name)
}

fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    !name.is_empty() && name.len() <= 64 && name.bytes().all(plain)
}

/// The source of both views: a report joined with clause catalogues.
#[derive(Clone, Debug)]
pub struct Source {
    bytes: Vec<u8>,
    digest: Digest,
    report: Report,
}

impl Source {
    /// Reads a report and joins catalogues to it, in place of any that it has. Without `files` it keeps those.
    ///
    /// # Errors
    /// [`SourceError`] when the bytes are not such a report.
    pub fn join(bytes: &[u8], files: Option<&[catalog::File]>) -> Result<Self, SourceError> {
        if bytes.len() > SOURCE_BYTES_MAX {
            return Err(SourceError::TooLong(bytes.len()));
        }
        let mut canon = canon::parse(bytes).map_err(SourceError::Canon)?;
        let report: Report = serde_json::from_slice(bytes).map_err(SourceError::Shape)?;
        if let (Some(files), Canon::Map(members)) = (files, &mut canon) {
            members.insert("catalogues".into(), catalog::heads(files));
            members.insert("clauses".into(), catalog::clauses(files, |fact| report.level(fact)));
        }
        // Read back, so that what is shown is what is in the bytes and nothing else.
        let bytes = canon.to_bytes();
        let report: Report = serde_json::from_slice(&bytes).map_err(SourceError::Shape)?;
        report.check()?;
        Ok(Self { digest: Digest::of(&bytes), bytes, report })
    }

    /// The canonical bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Their SHA-256, which both views print.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// What they say.
    #[must_use]
    pub const fn report(&self) -> &Report {
        &self.report
    }
}

/// Whether a report has catalogues joined to it already.
///
/// # Errors
/// [`SourceError::Canon`] when the bytes are not canonical JSON.
pub fn is_joined(bytes: &[u8]) -> Result<bool, SourceError> {
    Ok(canon::parse(bytes).map_err(SourceError::Canon)?.member("clauses").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fact_is_of_a_section() {
        for fact in FACTS {
            let section = fact.split_once('.').map(|(section, _)| section);
            assert!(section.is_some_and(|s| SECTIONS.contains(&s)), "{fact}");
        }
    }

    #[test]
    fn levels_are_in_order() {
        assert!(Level::ALL.is_sorted());
        assert!(Level::CaAttested > Level::Recorded && Level::HardwareAttested < Level::Witnessed);
    }
}
