//! What a view is made of: data for a layout, without a choice that is still to be made.

use crate::text::visible;
use serde::Serialize;

/// Text that others wrote is cut to this many characters; the JSON and the exported tables have the rest.
pub(crate) const TEXT_CHARS_MAX: usize = 400;

/// How a cell is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Look {
    /// Running text, in whatever script.
    Text,
    /// An identity, a name of a file or another text that is Latin in both languages.
    Id,
    /// A digest.
    Hash,
    /// A number.
    Number,
    /// A date, and the time of day on the second line.
    Time,
    /// A word of ours, and on the second line the code that it stands for.
    Word,
}

/// A cell, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// How it is set.
    pub look: Look,
    /// What it says.
    pub text: String,
    /// A second line; empty if there is none.
    pub second: String,
    /// The direction of the text where that is not the page's: that of its first letter. Empty otherwise.
    pub dir: &'static str,
}

impl Shown {
    pub(super) fn new(look: Look, text: impl Into<String>) -> Self {
        Self::with(look, text, "")
    }

    pub(super) fn with(look: Look, text: impl Into<String>, second: impl Into<String>) -> Self {
        Self { look, text: text.into(), second: second.into(), dir: "" }
    }

    /// Text that others wrote, cut to a bound.
    pub(super) fn foreign(look: Look, text: &str) -> Self {
        let text = visible(text);
        let dir = direction(&text);
        Self { look, text: cut(&text, TEXT_CHARS_MAX), second: String::new(), dir }
    }
}

/// A line of a list of things and what they are.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The thing.
    pub name: String,
    /// What it is.
    pub value: Shown,
}

/// A table, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Grid {
    /// Its title; empty if it needs none.
    pub title: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows.
    pub rows: Vec<Vec<Shown>>,
    /// What is not shown, as a sentence; empty if everything is.
    pub more: String,
}

/// A column of a table.
#[derive(Clone, Debug, Serialize)]
pub struct Column {
    /// Its heading.
    pub name: String,
    /// How most of its cells are set.
    pub look: Look,
    /// Its share of the width, against the others of its table.
    pub width: usize,
}

/// Findings of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// What was found.
    pub title: String,
    /// What that means.
    pub about: String,
    /// Where.
    pub grid: Grid,
}

/// One series of a chart.
#[derive(Clone, Debug, Serialize)]
pub struct Bars {
    /// Its name.
    pub name: String,
    /// Its values, for drawing only.
    pub values: Vec<f64>,
    /// Its values, as they are written.
    pub texts: Vec<String>,
}

/// A mark on a chart's axis.
#[derive(Clone, Debug, Serialize)]
pub struct Tick {
    /// Where.
    pub at: f64,
    /// What it says.
    pub text: String,
}

/// A chart, as it is drawn.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Its name in the JSON.
    pub id: String,
    /// Its title.
    pub title: String,
    /// What its labels are.
    pub unit: String,
    /// Whether bars lie, with a name each, or stand along time.
    pub lying: bool,
    /// A label for each bar.
    pub labels: Vec<String>,
    /// The bars, one series upon the other.
    pub series: Vec<Bars>,
    /// A limit for each bar, drawn as a line across it.
    pub limit: Option<Bars>,
    /// The end of the axis.
    pub top: f64,
    /// The axis.
    pub ticks: Vec<Tick>,
    /// The chart in words, for whoever does not see it.
    pub alt: String,
    /// What is not shown; empty if everything is.
    pub more: String,
}

/// A fact, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct FactLine {
    /// Its name in the JSON.
    pub id: String,
    /// Its name in words.
    pub name: String,
    /// How strong the evidence is: the level's name in the JSON.
    pub level: &'static str,
    /// The same in a word.
    pub level_text: String,
    /// How many entries, and which, in a sentence.
    pub entries: String,
}

/// A section, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// Its id.
    pub id: String,
    /// Its title.
    pub title: String,
    /// What it is about.
    pub about: String,
    /// Its facts.
    pub facts: Vec<FactLine>,
    /// Its tables.
    pub grids: Vec<Grid>,
    /// Its tables that are empty, and that everything was read.
    pub none: Vec<[String; 2]>,
}

/// A clause, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// The article.
    pub article: String,
    /// How well the reference was verified: a letter.
    pub verified: &'static str,
    /// The duty.
    pub duty: String,
    /// Doubts.
    pub note: String,
    /// Related controls: the standard, and its controls.
    pub maps: Vec<[String; 2]>,
    /// The evidence.
    pub evidence: Vec<FactLine>,
    /// The level of the whole.
    pub level: &'static str,
    /// The same in a word.
    pub level_text: String,
    /// What to say of gaps; empty if there are none.
    pub gap: String,
}

/// A catalogue, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Instrument {
    /// Its id.
    pub id: String,
    /// Its title.
    pub title: String,
    /// Who issued it, how it is cited, since when it is in force.
    pub lines: Vec<Line>,
    /// Whom it addresses.
    pub scope: String,
    /// Its clauses.
    pub rows: Vec<Row>,
}

/// Every fixed word that a layout needs.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "each is the word of its name")]
pub struct Labels {
    pub contents: String,
    pub summary: String,
    pub findings: String,
    pub timeline: String,
    pub charts: String,
    pub clauses: String,
    pub article: String,
    pub duty: String,
    pub evidence: String,
    pub assurance: String,
    pub fact: String,
    pub entries: String,
    pub page: String,
    pub of: String,
    pub how_to_check: String,
    pub how_to_read: String,
    pub levels: String,
    pub verified: String,
    pub source: String,
    pub sections: String,
    pub skip: String,
    pub note: String,
    pub maps: String,
}

/// The view.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// The language's tag.
    pub lang: &'static str,
    /// Its direction.
    pub dir: &'static str,
    /// Digits of page numbers: a pattern of Typst's.
    pub page_digits: &'static str,
    /// The title.
    pub title: String,
    /// The log's origin.
    pub origin: String,
    /// The period, in a line.
    pub period: String,
    /// The time zone, in a line.
    pub zone: String,
    /// The first of its words for the running head.
    pub zone_short: String,
    /// Fixed words.
    pub labels: Labels,
    /// What the report was made from.
    pub made_from: Vec<Line>,
    /// Counts: what, and how many.
    pub summary: Vec<[String; 2]>,
    /// How many findings there are.
    pub findings_count: i64,
    /// What findings are.
    pub findings_about: String,
    /// Said where there is none.
    pub no_findings: String,
    /// Findings by kind.
    pub findings: Vec<Group>,
    /// Findings that are not here; empty if all are.
    pub findings_more: String,
    /// The timeline.
    pub timeline: Grid,
    /// Charts.
    pub charts: Vec<Figure>,
    /// Sections.
    pub sections: Vec<Part>,
    /// What the clause table is, and what it is not.
    pub clauses_about: String,
    /// How a clause's level follows from its facts.
    pub clauses_rule: String,
    /// Instruments.
    pub instruments: Vec<Instrument>,
    /// Levels: name in the JSON, word, meaning.
    pub levels: Vec<[String; 3]>,
    /// Verification letters: letter, meaning.
    pub verified: Vec<[String; 2]>,
    /// How hashes, times and foreign text are shown.
    pub reading: Vec<String>,
    /// How to check the report.
    pub checking: String,
    /// Evidence and no verdict.
    pub disclaimer: String,
    /// What the digest is of.
    pub digest_about: String,
    /// The digest.
    pub digest: String,
}

/// The text, or its first characters and a mark that there were more.
pub(crate) fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The direction of a text, as that of its first letter.
fn direction(text: &str) -> &'static str {
    let rtl = |c: char| matches!(c as u32, 0x0590..=0x08FF | 0xFB1D..=0xFDFF | 0xFE70..=0xFEFC);
    match text.chars().find(|c| c.is_alphabetic()) {
        Some(c) if rtl(c) => "rtl",
        _ => "ltr",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_runs_as_its_first_letter_does() {
        assert_eq!(direction("5.61 spent"), "ltr");
        assert_eq!(direction("5.61 أُنفق"), "rtl");
        assert_eq!(direction("12:30"), "ltr");
    }

    #[test]
    fn long_texts_of_others_are_cut_and_short_ones_are_not() {
        let long = Shown::foreign(Look::Text, &"x".repeat(TEXT_CHARS_MAX + 1)).text;
        assert_eq!(long.chars().count(), TEXT_CHARS_MAX + 1);
        assert!(long.ends_with('…'));
        let whole = "x".repeat(TEXT_CHARS_MAX);
        assert_eq!(Shown::foreign(Look::Text, &whole).text, whole);
    }
}
