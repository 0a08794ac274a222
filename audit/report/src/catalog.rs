//! Clause catalogues: duties from law and guidance, each with the facts of the report that speak to it. The files
//! are counsel's ([policies/clauses](../../../../policies/clauses/README.md)); this reads them and joins them with
//! a report's facts. It shows evidence and knows no verdict.
//!
//! # How strong the evidence for a clause is
//! Each fact that a clause names is shown with its own level. The clause's assurance is the **lowest** level among
//! those of its facts that are there, and the facts that are not there are listed as its gaps. Only where no fact
//! is there, or none is named, is the clause itself a gap: one missing fact does not hide that others speak to the
//! duty, and one strong fact does not lend its strength to a weak one.

use crate::source::{Level, is_fact};
use falaj_core::{canon::Canon, id::Digest};
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use std::{collections::BTreeMap, fs, io, path::Path};

/// A catalogue of more bytes than this is not read.
const CATALOGUE_BYTES_MAX: u64 = 1 << 20;
/// A folder of more catalogues than this is not read.
const CATALOGUES_MAX: usize = 100;

/// The catalogues that the program carries: those of the repository when it was built.
const EMBEDDED: [(&str, &str); 12] = [
    ("adgm-dpr.yaml", include_str!("../../../policies/clauses/adgm-dpr.yaml")),
    ("cbuae-ai-guidance.yaml", include_str!("../../../policies/clauses/cbuae-ai-guidance.yaml")),
    ("cbuae-c-14-2021.yaml", include_str!("../../../policies/clauses/cbuae-c-14-2021.yaml")),
    ("cbuae-n-1158-2021.yaml", include_str!("../../../policies/clauses/cbuae-n-1158-2021.yaml")),
    ("dha-nabidh.yaml", include_str!("../../../policies/clauses/dha-nabidh.yaml")),
    ("difc-dpl.yaml", include_str!("../../../policies/clauses/difc-dpl.yaml")),
    ("difc-regulation-10.yaml", include_str!("../../../policies/clauses/difc-regulation-10.yaml")),
    ("doh-adhics.yaml", include_str!("../../../policies/clauses/doh-adhics.yaml")),
    ("mohap-51-2021.yaml", include_str!("../../../policies/clauses/mohap-51-2021.yaml")),
    ("uae-ia.yaml", include_str!("../../../policies/clauses/uae-ia.yaml")),
    ("uae-ict-health-law.yaml", include_str!("../../../policies/clauses/uae-ict-health-law.yaml")),
    ("uae-pdpl.yaml", include_str!("../../../policies/clauses/uae-pdpl.yaml")),
];

/// A text in both languages.
#[derive(Clone, Debug, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Both {
    /// English.
    pub en: String,
    /// Arabic.
    pub ar: String,
}

impl Both {
    fn canon(&self) -> Canon {
        // Folded YAML ends in a line break, which says nothing.
        Canon::map([("en", self.en.trim().into()), ("ar", self.ar.trim().into())])
    }

    fn is_empty(&self) -> bool {
        self.en.trim().is_empty() || self.ar.trim().is_empty()
    }
}

/// How well a reference was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Verified {
    /// The official text was read.
    V,
    /// A law firm or an unofficial copy names it.
    L,
    /// A secondary source confirms the duty.
    S,
    /// From memory.
    M,
}

impl Verified {
    /// Every mark, the best first.
    pub const ALL: [Self; 4] = [Self::V, Self::L, Self::S, Self::M];

    /// Its letter.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V => "V",
            Self::L => "L",
            Self::S => "S",
            Self::M => "M",
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Maps {
    #[serde(rename = "iso-27001")]
    iso_27001: Vec<String>,
    #[serde(rename = "iso-42001")]
    iso_42001: Vec<String>,
    #[serde(rename = "nist-800-53")]
    nist_800_53: Vec<String>,
    #[serde(rename = "eu-ai-act")]
    eu_ai_act: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClauseYaml {
    id: Spanned<String>,
    article: Both,
    duty: Both,
    verified: Verified,
    note: Option<Both>,
    evidence: Vec<Spanned<String>>,
    maps: Maps,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Yaml {
    instrument: Spanned<String>,
    title: Both,
    issuer: Both,
    cite: String,
    in_force: Option<String>,
    scope: Both,
    maps_verified: Verified,
    clauses: Vec<ClauseYaml>,
}

/// One catalogue, as it lies in its file.
#[derive(Clone, Debug)]
pub struct File {
    name: String,
    digest: Digest,
    yaml: Yaml,
}

/// Why a catalogue cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The folder or a file in it cannot be read.
    #[error("{path}: the clause catalogue cannot be read")]
    Read {
        /// Which.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// There is none, or too many.
    #[error("{path}: {what}")]
    Folder {
        /// Which.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// A line is wrong.
    #[error("{file}, line {line}, column {column}: {what}")]
    Line {
        /// The file's name.
        file: String,
        /// From 1.
        line: u64,
        /// From 1.
        column: u64,
        /// What is wrong, and what to do.
        what: String,
    },
}

impl File {
    /// Reads one catalogue.
    ///
    /// # Errors
    /// [`CatalogError::Line`]: the first thing that is wrong with it, and where.
    pub fn parse(name: &str, text: &str) -> Result<Self, CatalogError> {
        let at = |location: Location, what: String| CatalogError::Line {
            file: name.to_owned(),
            line: location.line(),
            column: location.column(),
            what,
        };
        let yaml: Yaml = serde_saphyr::from_str(text).map_err(|e| {
            let message = e.without_snippet().to_string();
            let what = message.lines().next().unwrap_or_default();
            // Where it is stands in front already.
            let what = what.split(" at line ").next().unwrap_or_default().to_owned();
            at(e.location().unwrap_or(Location::UNKNOWN), what)
        })?;
        let instrument = &yaml.instrument.value;
        if name.strip_suffix(".yaml") != Some(instrument.as_str()) {
            let what = format!("the instrument is `{instrument}`: name it as the file is named");
            return Err(at(yaml.instrument.referenced, what));
        }
        let mut ids = BTreeMap::new();
        for clause in &yaml.clauses {
            let (id, here) = (clause.id.value.as_str(), clause.id.referenced);
            if !id.strip_prefix(instrument.as_str()).is_some_and(|rest| rest.starts_with('-')) {
                return Err(at(here, format!("`{id}` does not begin with `{instrument}-`")));
            }
            if let Some(line) = ids.insert(id, here.line()) {
                return Err(at(here, format!("`{id}` is already on line {line}")));
            }
            if clause.article.is_empty() || clause.duty.is_empty() {
                return Err(at(here, format!("`{id}` lacks its article or duty in one language")));
            }
            if clause.evidence.is_empty() && clause.note.as_ref().is_none_or(Both::is_empty) {
                let what = format!("`{id}` has no evidence: a note must say what is needed");
                return Err(at(here, what));
            }
            if let Some(fact) = clause.evidence.iter().find(|fact| !is_fact(&fact.value)) {
                let what = format!("`{}` is no fact of the report", fact.value);
                return Err(at(fact.referenced, what));
            }
        }
        Ok(Self { name: name.to_owned(), digest: Digest::of(text.as_bytes()), yaml })
    }
}

/// The catalogues that the program carries.
///
/// # Errors
/// [`CatalogError::Line`], should one not be well formed; a test shows that all are.
pub fn embedded() -> Result<Vec<File>, CatalogError> {
    EMBEDDED.iter().map(|(name, text)| File::parse(name, text)).collect()
}

/// The names of the catalogues that the program carries.
pub fn embedded_names() -> impl Iterator<Item = &'static str> {
    EMBEDDED.iter().map(|(name, _)| *name)
}

/// Every `*.yaml` of a folder, in the order of their names.
///
/// # Errors
/// [`CatalogError`] when one cannot be read or is wrong, or when there is none.
pub fn read(folder: &Path) -> Result<Vec<File>, CatalogError> {
    let failed =
        |path: &Path, cause| CatalogError::Read { path: path.display().to_string(), cause };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| failed(folder, e))? {
        let path = entry.map_err(|e| failed(folder, e))?.path();
        if path.extension().is_some_and(|e| e == "yaml") {
            paths.push(path);
        }
    }
    paths.sort();
    let wrong = |what: String| CatalogError::Folder { path: folder.display().to_string(), what };
    if paths.is_empty() {
        return Err(wrong("it holds no clause catalogue (*.yaml)".into()));
    }
    if paths.len() > CATALOGUES_MAX {
        return Err(wrong(format!("it holds more than {CATALOGUES_MAX} catalogues")));
    }
    let mut files = Vec::new();
    for path in paths {
        let bytes = fs::metadata(&path).map_err(|e| failed(&path, e))?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if bytes > CATALOGUE_BYTES_MAX {
            return Err(wrong(format!("{name} has more than {CATALOGUE_BYTES_MAX} bytes")));
        }
        let text = fs::read_to_string(&path).map_err(|e| failed(&path, e))?;
        files.push(File::parse(&name, &text)?);
    }
    Ok(files)
}

/// The catalogues as the source names them.
pub(crate) fn heads(files: &[File]) -> Canon {
    let head = |file: &File| {
        let yaml = &file.yaml;
        Canon::map([
            ("file", file.name.as_str().into()),
            ("sha256", file.digest.to_string().into()),
            ("instrument", yaml.instrument.value.as_str().into()),
            ("title", yaml.title.canon()),
            ("issuer", yaml.issuer.canon()),
            ("cite", yaml.cite.as_str().into()),
            ("in_force", yaml.in_force.clone().unwrap_or_default().into()),
            ("scope", yaml.scope.canon()),
            ("maps_verified", yaml.maps_verified.as_str().into()),
        ])
    };
    Canon::List(files.iter().map(head).collect())
}

/// Every clause, joined with the levels of the facts that it names.
pub(crate) fn clauses(files: &[File], level: impl Fn(&str) -> Level) -> Canon {
    let list = |items: &[String]| Canon::List(items.iter().map(|i| i.as_str().into()).collect());
    let row = |file: &File, clause: &ClauseYaml| {
        let facts: Vec<_> =
            clause.evidence.iter().map(|f| (f.value.as_str(), level(&f.value))).collect();
        let evidence = facts.iter().map(|(fact, level)| {
            Canon::map([("fact", (*fact).into()), ("level", level.as_str().into())])
        });
        let gaps = facts.iter().filter(|(_, level)| *level == Level::Gap);
        Canon::map([
            ("catalogue", file.yaml.instrument.value.as_str().into()),
            ("id", clause.id.value.as_str().into()),
            ("article", clause.article.canon()),
            ("duty", clause.duty.canon()),
            ("verified", clause.verified.as_str().into()),
            ("note", clause.note.clone().unwrap_or_default().canon()),
            ("evidence", Canon::List(evidence.collect())),
            ("assurance", assurance(facts.iter().map(|(_, level)| *level)).as_str().into()),
            ("gaps", Canon::List(gaps.map(|(fact, _)| (*fact).into()).collect())),
            (
                "maps",
                Canon::map([
                    ("iso-27001", list(&clause.maps.iso_27001)),
                    ("iso-42001", list(&clause.maps.iso_42001)),
                    ("nist-800-53", list(&clause.maps.nist_800_53)),
                    ("eu-ai-act", list(&clause.maps.eu_ai_act)),
                ]),
            ),
        ])
    };
    let rows = files.iter().flat_map(|file| file.yaml.clauses.iter().map(move |c| row(file, c)));
    Canon::List(rows.collect())
}

/// The lowest level among facts that are there; a gap when none is.
pub(crate) fn assurance(levels: impl Iterator<Item = Level>) -> Level {
    levels.filter(|level| *level != Level::Gap).min().unwrap_or_default()
}

/// A catalogue, as the source has it.
#[derive(Clone, Debug, Deserialize)]
pub struct Catalogue {
    /// The file's name.
    pub file: String,
    /// The file's SHA-256.
    pub sha256: String,
    /// The instrument's id.
    pub instrument: String,
    /// Its title.
    pub title: Both,
    /// Who issued it.
    pub issuer: Both,
    /// How it is cited.
    pub cite: String,
    /// Since when it is in force, `2022-01-02`; empty if that was not verified.
    pub in_force: String,
    /// Whom it addresses.
    pub scope: Both,
    /// How well the mappings to other standards were verified.
    pub maps_verified: Verified,
}

/// A fact that speaks to a clause.
#[derive(Clone, Debug, Deserialize)]
pub struct Evidence {
    /// Its name.
    pub fact: String,
    /// Its level in this report.
    pub level: Level,
}

/// A clause, as the source has it.
#[derive(Clone, Debug, Deserialize)]
pub struct Clause {
    /// The instrument's id.
    pub catalogue: String,
    /// The clause's id.
    pub id: String,
    /// The article.
    pub article: Both,
    /// The duty.
    pub duty: Both,
    /// How well the reference was verified.
    pub verified: Verified,
    /// Doubts, and what the report cannot show; both texts empty if there are none.
    pub note: Both,
    /// The facts that speak to it.
    pub evidence: Vec<Evidence>,
    /// The lowest level among those that are there.
    pub assurance: Level,
    /// Those that are not.
    pub gaps: Vec<String>,
    /// Related controls of other standards, by the standard's name.
    pub maps: BTreeMap<String, Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = include_str!("../../../policies/clauses/uae-ia.yaml");

    #[test]
    fn a_clause_is_as_strong_as_the_weakest_fact_that_is_there() {
        use Level::{Attested, CaAttested, Gap, Proven, Recorded, Witnessed};
        for (levels, want) in [
            (vec![], Gap),
            (vec![Gap, Gap], Gap),
            (vec![Gap, Proven], Proven),
            (vec![Recorded, Proven, Attested], Recorded),
            (vec![CaAttested, Witnessed], CaAttested),
        ] {
            assert_eq!(assurance(levels.iter().copied()), want, "{levels:?}");
        }
    }

    #[test]
    fn an_error_names_file_and_line() {
        for (from, to, want) in [
            (
                "instrument: uae-ia",
                "instrument: uae-ib",
                "uae-ia.yaml, line 9, column 13: the instrument is `uae-ib`",
            ),
            (
                "evidence: [E4.accesses,",
                "evidence: [E4.successes,",
                "`E4.successes` is no fact of the report",
            ),
            ("  verified: M", "  verified: X", "line 31, column 15: unknown variant `X`"),
            ("cite:", "sight:", "unknown field"),
            ("uae-ia-t3.6-protection", "uae-ia-t3.6-logging", "is already on line"),
            ("- id: uae-ia-t3", "- id: nesa-t3", "does not begin with `uae-ia-`"),
        ] {
            let text = TEXT.replacen(from, to, 1);
            assert_ne!(text, TEXT, "{from}");
            let message = File::parse("uae-ia.yaml", &text).expect_err(to).to_string();
            assert!(message.contains(want), "{message}");
            assert!(message.starts_with("uae-ia.yaml, line "), "{message}");
        }
    }
}
