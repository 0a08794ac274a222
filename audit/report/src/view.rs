//! One language's view of a source: every word chosen, every number and time written as the language writes it,
//! every text from elsewhere made harmless. The HTML page and the PDF only lay it out, so that they cannot differ.

use crate::{
    catalog::{Both, Catalogue, Clause, Verified},
    source::{Cell, Chart, Finding, Level, Report, Section, Source, Step, Table},
    text::{is_decimal, visible},
    when::Local,
    words::{Lang, Words},
};
use falaj_core::report::FACTS;
use serde::Serialize;
use std::{collections::BTreeSet, fmt::Write as _};

/// A table of a view has at most this many rows; the rest is in the JSON and the exported tables.
const ROWS_MAX: usize = 500;
/// Text that others wrote is cut to this many characters; the JSON and the exported tables have the rest.
pub(crate) const TEXT_CHARS_MAX: usize = 400;
/// The log's name is cut to this many characters in titles and running heads.
const ORIGIN_CHARS_MAX: usize = 60;
/// Labels in charts are cut to this many characters.
const LABEL_CHARS_MAX: usize = 34;
/// A number of more digits than this is none that a chart can draw.
const CHARTED_DIGITS_MAX: usize = 15;
/// A chart has at most this many bars with names.
const BARS_MAX: usize = 24;
/// A chart has at most this many bars along time.
const COLUMNS_MAX: usize = 366;
/// Columns of numbers that name an entry or a round and do not count anything: their digits are not grouped.
const ORDINALS: [&str; 5] = ["index", "first", "last", "round", "line"];
/// Columns of real quantities, in decimal text.
const QUANTITIES: [&str; 11] = [
    "epsilon",
    "epsilon_recomputed",
    "delta",
    "limit",
    "clip_norm",
    "noise_multiplier",
    "sample_rate",
    "weight",
    "bytes",
    "days",
    "count",
];

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
    fn new(look: Look, text: impl Into<String>) -> Self {
        Self::with(look, text, "")
    }

    fn with(look: Look, text: impl Into<String>, second: impl Into<String>) -> Self {
        Self { look, text: text.into(), second: second.into(), dir: "" }
    }

    /// Text that others wrote, cut to a bound.
    fn foreign(look: Look, text: &str) -> Self {
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

impl View {
    /// The view of a source in the language of these words.
    #[must_use]
    pub fn of(source: &Source, words: &Words) -> Self {
        Writer { words, report: source.report() }.view(&source.digest().to_string())
    }
}

/// Every key of the words files that a report asks for and that they lack. Empty for a report and words of one age.
#[must_use]
pub fn missing_words(report: &Report, words: &Words) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    keys.extend(report.summary.iter().map(|c| c.name.clone()));
    keys.extend(report.charts.iter().map(|c| c.name.clone()));
    keys.extend(report.charts.iter().flat_map(|c| c.series.iter().map(|s| s.name.clone())));
    for finding in &report.findings {
        keys.insert(format!("finding_{}", finding.finding));
        keys.insert(format!("finding_{}_about", finding.finding));
    }
    keys.extend(report.timeline.iter().map(|s| format!("kind_{}", s.kind)));
    for section in &report.sections {
        keys.extend(section.tables.iter().map(|t| t.name.clone()));
        keys.extend(section.none.iter().cloned());
        keys.extend(section.tables.iter().flat_map(|t| t.columns.iter().cloned()));
    }
    keys.retain(|key| words.find(key).is_none() && words.find(&format!("table_{key}")).is_none());
    keys
}

struct Writer<'a> {
    words: &'a Words,
    report: &'a Report,
}

impl Writer<'_> {
    fn say(&self, key: &str) -> String {
        visible(&self.words.say(key))
    }

    fn both(&self, both: &Both) -> String {
        visible(match self.words.lang() {
            Lang::En => &both.en,
            Lang::Ar => &both.ar,
        })
    }

    /// What a table or a column is called.
    fn name(&self, key: &str) -> String {
        let table = format!("table_{key}");
        visible(self.words.find(&table).or_else(|| self.words.find(key)).unwrap_or(key))
    }

    /// A number that names something: its digits are not grouped.
    fn ordinal(&self, n: i64) -> String {
        self.words.digits(&n.to_string())
    }

    fn view(&self, digest: &str) -> View {
        let (report, words) = (self.report, self.words);
        View {
            lang: words.lang().tag(),
            dir: words.lang().dir(),
            page_digits: match words.lang() {
                Lang::En => "1",
                Lang::Ar => "\u{0661}",
            },
            title: self.say("report_title"),
            origin: cut(&visible(&report.origin), ORIGIN_CHARS_MAX),
            period: self.period(),
            zone: self.say("zone"),
            zone_short: self.say("zone_short"),
            labels: self.labels(),
            made_from: self.made_from(),
            summary: report
                .summary
                .iter()
                .map(|c| [self.say(&c.name), words.count(c.count)])
                .collect(),
            findings_count: i64::try_from(report.findings.len())
                .unwrap_or(i64::MAX)
                .saturating_add(report.findings_more),
            findings_about: self.say("findings_about"),
            no_findings: self.say("no_findings"),
            findings: self.findings(),
            findings_more: self.not_listed(report.findings_more),
            timeline: self.timeline(),
            charts: report.charts.iter().map(|c| self.chart(c)).collect(),
            sections: report.sections.iter().map(|s| self.section(s)).collect(),
            clauses_about: self.say("clauses_about"),
            clauses_rule: self.say("clauses_rule"),
            instruments: report.catalogues.iter().map(|c| self.instrument(c)).collect(),
            levels: self.levels(),
            verified: Verified::ALL
                .iter()
                .map(|v| {
                    let key = format!("verified_{}", v.as_str().to_lowercase());
                    [v.as_str().to_owned(), self.say(&key)]
                })
                .collect(),
            reading: ["reading_hashes", "reading_times", "reading_foreign"]
                .map(|key| self.say(key))
                .into(),
            checking: self.say("how_to_check"),
            disclaimer: self.say("disclaimer"),
            digest_about: self.say("source_digest"),
            digest: digest.to_owned(),
        }
    }

    fn labels(&self) -> Labels {
        Labels {
            contents: self.say("contents"),
            summary: self.say("summary"),
            findings: self.say("findings"),
            timeline: self.say("timeline"),
            charts: self.say("charts"),
            clauses: self.say("clauses"),
            article: self.say("article"),
            duty: self.say("duty"),
            evidence: self.say("evidence"),
            assurance: self.say("assurance"),
            fact: self.say("fact"),
            entries: self.say("entries"),
            page: self.say("page"),
            of: self.say("of"),
            how_to_check: self.say("how_to_check_title"),
            how_to_read: self.say("how_to_read_title"),
            levels: self.say("levels"),
            verified: self.say("verified_reference"),
            source: self.say("made_from"),
            sections: self.say("sections"),
            skip: self.say("skip_to_content"),
            note: self.say("note"),
            maps: self.say("maps"),
        }
    }

    /// A level without its explanation: words have it as `word: what it means`.
    fn level(&self, level: Level) -> String {
        let text = self.say(&format!("level_{}", level.as_str()));
        text.split(':').next().unwrap_or_default().trim().to_owned()
    }

    fn levels(&self) -> Vec<[String; 3]> {
        let line = |level: &Level| {
            let text = self.say(&format!("level_{}", level.as_str()));
            let (word, meaning) = text.split_once(':').unwrap_or((&text, ""));
            [level.as_str().to_owned(), word.trim().to_owned(), meaning.trim().to_owned()]
        };
        Level::ALL.iter().map(line).collect()
    }

    fn time(&self, ts: &str) -> Shown {
        Local::from_utc(ts).map_or_else(
            || Shown::new(Look::Text, visible(ts)),
            |at| Shown::with(Look::Time, at.date(self.words), at.time(self.words)),
        )
    }

    fn moment(&self, ts: &str) -> String {
        let comma = match self.words.lang() {
            Lang::En => ", ",
            Lang::Ar => "، ",
        };
        let shown = self.time(ts);
        if shown.second.is_empty() { shown.text } else { shown.text + comma + &shown.second }
    }

    fn period(&self) -> String {
        let range = &self.report.range;
        if range.first_ts.is_empty() {
            return self.say("no_entries");
        }
        let (from, to) = (self.moment(&range.first_ts), self.moment(&range.last_ts));
        self.words.fill("from_to", &[("from", &from), ("to", &to)])
    }

    fn made_from(&self) -> Vec<Line> {
        let report = self.report;
        let line = |key: &str, value| Line { name: self.say(key), value };
        let id = |text: &str| Shown::foreign(Look::Id, text);
        let mut lines = vec![
            line("log", id(&report.origin)),
            line("coordinator", id(&report.coordinator)),
            line("tree_size", Shown::new(Look::Number, self.words.count(report.log.tree_size))),
            line("root_hash", id(&report.log.root_hash)),
        ];
        let (from, to) = (report.range.from, report.range.to);
        let range = if from < to {
            let (from, to) = (self.ordinal(from), self.ordinal(to - 1));
            self.words.fill("from_to", &[("from", &from), ("to", &to)])
        } else {
            self.say("no_entries")
        };
        lines.push(line("entries_read", Shown::new(Look::Text, range)));
        for (key, ts) in [("since", &report.range.since), ("until", &report.range.until)] {
            if !ts.is_empty() {
                lines.push(line(key, Shown::new(Look::Text, self.moment(ts))));
            }
        }
        let scope = &report.scope;
        if scope.study.is_empty() && scope.subject.is_empty() {
            lines.push(line("scope", Shown::new(Look::Text, self.say("scope_all"))));
        }
        for (key, value) in [("study", &scope.study), ("subject", &scope.subject)] {
            if !value.is_empty() {
                lines.push(line(key, id(value)));
            }
        }
        lines
    }

    /// How a cell is shown follows from its column where that says more than the text, and from the text's form
    /// otherwise. A text of somebody else's is never replaced by a word of ours, but for codes that are ours.
    fn cell(&self, column: &str, cell: &Cell) -> Shown {
        let text = match cell {
            Cell::Int(n) if ORDINALS.contains(&column) => {
                return Shown::new(Look::Number, self.ordinal(*n));
            }
            Cell::Int(n) => return Shown::new(Look::Number, self.words.count(*n)),
            Cell::Bool(yes) => {
                return Shown::new(Look::Word, self.say(if *yes { "yes" } else { "no" }));
            }
            Cell::Text(text) => text.as_str(),
        };
        if text.is_empty() {
            return Shown::new(Look::Text, "–");
        }
        if let Some(shown) = self.code(column, text) {
            return shown;
        }
        if Local::from_utc(text).is_some() {
            return self.time(text);
        }
        // A power of ten is not split between two sets of digits.
        if QUANTITIES.contains(&column) && is_decimal(text) && !text.contains(['e', 'E']) {
            return Shown::new(Look::Number, self.words.digits(text));
        }
        let hash = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let look = if hash {
            Look::Hash
        } else if text.is_ascii() && !text.contains(' ') {
            Look::Id
        } else {
            Look::Text
        };
        Shown::foreign(look, text)
    }

    /// A code of ours, in the columns that have codes.
    fn code(&self, column: &str, text: &str) -> Option<Shown> {
        let find = |prefix: &str| self.words.find(&format!("{prefix}_{text}")).map(visible);
        match column {
            "kind" | "finding" | "state" | "kept_by" => {
                find(column).map(|word| Shown::new(Look::Word, word))
            }
            "decision" => {
                let word = self.words.find(text).filter(|_| matches!(text, "allow" | "deny"))?;
                Some(Shown::new(Look::Word, visible(word)))
            }
            "retention_class" => {
                let word = find(column)?;
                Some(Shown::with(Look::Word, self.words.digits(&word), text))
            }
            "place" | "destination" => {
                // A free zone's jurisdiction says where it is, whatever emirate it lies in.
                let jurisdiction = text.split('/').next().unwrap_or_default();
                let word = || self.words.find(&format!("place_{jurisdiction}")).map(visible);
                Some(Shown::with(Look::Word, find("place").or_else(word)?, visible(text)))
            }
            "expires" | "deadline" => self.day(text).map(|day| Shown::new(Look::Word, day)),
            _ => None,
        }
    }

    /// A date without a time: `2026-12-31`.
    fn day(&self, text: &str) -> Option<String> {
        Local::from_utc(&format!("{text}T00:00:00Z")).map(|day| day.date(self.words))
    }

    fn grid(&self, title: String, columns: &[String], rows: &[Vec<Cell>], more: i64) -> Grid {
        let shown: Vec<Vec<Shown>> = rows
            .iter()
            .take(ROWS_MAX)
            .map(|row| row.iter().zip(columns).map(|(c, column)| self.cell(column, c)).collect())
            .collect();
        let look = |i: usize| {
            let mut looks: Vec<Look> =
                shown.iter().filter_map(|r| r.get(i)).map(|c| c.look).collect();
            // A column is set as its cells are if they agree, an empty cell aside.
            looks.retain(|l| *l != Look::Text);
            let agree = looks.windows(2).all(|pair| pair[0] == pair[1]);
            looks.first().copied().filter(|_| agree).unwrap_or(Look::Text)
        };
        let column = |(i, key): (usize, &String)| {
            let (name, look) = (capital(&self.name(key)), look(i));
            let width = width(&name, shown.iter().filter_map(|row| row.get(i)));
            Column { name, look, width }
        };
        let columns = columns.iter().enumerate().map(column).collect();
        let hidden = i64::try_from(rows.len() - shown.len()).unwrap_or(i64::MAX);
        let mut says = Vec::new();
        if hidden > 0 {
            says.push(self.words.fill("not_shown", &[("n", &self.words.count(hidden))]));
        }
        if more > 0 {
            says.push(self.not_listed(more));
        }
        Grid { title, columns, rows: shown, more: says.join(" ") }
    }

    fn not_listed(&self, more: i64) -> String {
        if more == 0 {
            return String::new();
        }
        self.words.fill("not_listed", &[("n", &self.words.count(more))])
    }

    fn findings(&self) -> Vec<Group> {
        let columns = ["time", "index", "section", "who", "study", "detail"].map(str::to_owned);
        let mut kinds: Vec<&str> = Vec::new();
        for finding in &self.report.findings {
            if !kinds.contains(&finding.finding.as_str()) {
                kinds.push(&finding.finding);
            }
        }
        let row = |f: &Finding| {
            vec![
                Cell::Text(f.ts.clone()),
                Cell::Int(f.index),
                Cell::Text(f.section.clone()),
                Cell::Text(f.who.clone()),
                Cell::Text(f.study.clone()),
                Cell::Text(f.detail.clone()),
            ]
        };
        let group = |kind: &&str| {
            let of_kind = self.report.findings.iter().filter(|f| f.finding == *kind);
            let rows: Vec<_> = of_kind.map(row).collect();
            let about = self.words.find(&format!("finding_{kind}_about")).unwrap_or_default();
            Group {
                title: self.say(&format!("finding_{kind}")),
                about: visible(about),
                grid: self.grid(String::new(), &columns, &rows, 0),
            }
        };
        kinds.iter().map(group).collect()
    }

    fn timeline(&self) -> Grid {
        let columns = ["time", "index", "kind", "who", "study", "detail"].map(str::to_owned);
        let row = |s: &Step| {
            vec![
                Cell::Text(s.ts.clone()),
                Cell::Int(s.index),
                Cell::Text(s.kind.clone()),
                Cell::Text(s.who.clone()),
                Cell::Text(s.study.clone()),
                Cell::Text(s.detail.clone()),
            ]
        };
        let rows: Vec<_> = self.report.timeline.iter().map(row).collect();
        self.grid(String::new(), &columns, &rows, self.report.timeline_more)
    }

    fn fact(&self, id: &str, level: Level, entries: String) -> FactLine {
        FactLine {
            id: id.to_owned(),
            name: self.say(&format!("fact_{id}")),
            level: level.as_str(),
            level_text: self.level(level),
            entries,
        }
    }

    fn section(&self, section: &Section) -> Part {
        let report = self.report;
        let prefix = format!("{}.", section.id);
        let facts = FACTS.iter().filter(|f| f.starts_with(&prefix)).map(|id| {
            let fact = section.facts.iter().find(|f| f.fact == *id);
            let entries = match fact {
                Some(f) if f.count > 0 => self.words.fill(
                    "fact_entries",
                    &[
                        ("n", &self.words.count(f.count)),
                        ("first", &self.ordinal(f.first)),
                        ("last", &self.ordinal(f.last)),
                    ],
                ),
                _ => "–".to_owned(),
            };
            self.fact(id, report.level(id), entries)
        });
        let (from, to) = (report.range.from, report.range.to);
        let none = if from < to {
            let (from, to) = (self.ordinal(from), self.ordinal(to - 1));
            self.words.fill("none_in_range", &[("from", &from), ("to", &to)])
        } else {
            self.say("no_entries")
        };
        let key = section.id.to_lowercase();
        Part {
            id: section.id.clone(),
            title: self.say(&format!("{key}_title")),
            about: self.say(&format!("{key}_about")),
            facts: facts.collect(),
            grids: section
                .tables
                .iter()
                .map(|t: &Table| self.grid(self.name(&t.name), &t.columns, &t.rows, t.more))
                .collect(),
            none: section.none.iter().map(|name| [self.name(name), none.clone()]).collect(),
        }
    }

    fn instrument(&self, catalogue: &Catalogue) -> Instrument {
        let line = |key: &str, value| Line { name: self.say(key), value };
        let mut lines = vec![
            line("issued_by", Shown::new(Look::Text, self.both(&catalogue.issuer))),
            line("cited_as", Shown::foreign(Look::Id, &catalogue.cite)),
        ];
        if !catalogue.in_force.is_empty() {
            let date = self.day(&catalogue.in_force);
            let date = date.unwrap_or_else(|| visible(&catalogue.in_force));
            lines.push(line("in_force", Shown::new(Look::Text, date)));
        }
        lines.push(line("file", Shown::foreign(Look::Id, &catalogue.file)));
        lines.push(line("digest", Shown::foreign(Look::Hash, &catalogue.sha256)));
        let ours = |c: &&Clause| c.catalogue == catalogue.instrument;
        Instrument {
            id: visible(&catalogue.instrument),
            title: self.both(&catalogue.title),
            lines,
            scope: self.both(&catalogue.scope),
            rows: self.report.clauses.iter().filter(ours).map(|c| self.clause(c)).collect(),
        }
    }

    fn clause(&self, clause: &Clause) -> Row {
        const STANDARDS: [(&str, &str); 4] = [
            ("iso-27001", "ISO/IEC 27001:2022"),
            ("iso-42001", "ISO/IEC 42001:2023"),
            ("nist-800-53", "NIST SP 800-53"),
            ("eu-ai-act", "EU AI Act"),
        ];
        let maps = STANDARDS.iter().filter_map(|(key, name)| {
            let controls = clause.maps.get(*key).filter(|c| !c.is_empty())?;
            Some([(*name).to_owned(), visible(&controls.join(", "))])
        });
        let gap =
            if clause.assurance == Level::Gap { self.say("gap_about") } else { String::new() };
        let level_text = match clause.assurance {
            Level::Gap => self.say("gap"),
            level => self.level(level),
        };
        let fact = |id: &str, level| self.fact(id, level, String::new());
        Row {
            id: visible(&clause.id),
            article: self.both(&clause.article),
            verified: clause.verified.as_str(),
            duty: self.both(&clause.duty),
            note: self.both(&clause.note),
            maps: maps.collect(),
            evidence: clause.evidence.iter().map(|e| fact(&e.fact, e.level)).collect(),
            level: clause.assurance.as_str(),
            level_text,
            gap,
        }
    }

    fn chart(&self, chart: &Chart) -> Figure {
        let lying = chart.unit == "name";
        let max = if lying { BARS_MAX } else { COLUMNS_MAX };
        let shown = chart.labels.len().min(max);
        let labels: Vec<String> = if lying {
            chart.labels[..shown].iter().map(|l| cut(&visible(l), LABEL_CHARS_MAX)).collect()
        } else {
            chart.labels[..shown].iter().map(|l| self.point(l)).collect()
        };
        let bars = |series: &crate::source::Series| {
            let values = series.values[..shown].iter();
            let drawn = |v: &&String| is_decimal(v) && v.len() <= CHARTED_DIGITS_MAX;
            let value = |v: &String| {
                Some(v).filter(drawn).and_then(|v| v.parse().ok()).map_or(0.0, |n: f64| n.max(0.0))
            };
            let text = |v: &String| {
                if drawn(&v) { self.words.digits(v) } else { cut(&visible(v), LABEL_CHARS_MAX) }
            };
            Bars {
                name: self.series(&series.name),
                values: values.clone().map(value).collect(),
                texts: values.map(text).collect(),
            }
        };
        let is_limit = |s: &&crate::source::Series| s.name == "limit";
        let limit = chart.series.iter().find(is_limit).map(bars);
        let series: Vec<Bars> = chart.series.iter().filter(|s| !is_limit(s)).map(bars).collect();
        let height = |i: usize| {
            let sum: f64 = series.iter().filter_map(|s| s.values.get(i)).sum();
            sum.max(limit.as_ref().and_then(|l| l.values.get(i)).copied().unwrap_or_default())
        };
        let highest = (0..shown).map(height).fold(0.0, f64::max);
        let drawn = || series.iter().chain(&limit);
        let whole = chart.series.iter().flat_map(|s| &s.values).all(|v| !v.contains('.'));
        let (top, ticks) = self.axis(highest, whole);
        let unit = if lying { String::new() } else { self.say(&format!("unit_{}", chart.unit)) };
        let title = self.say(&chart.name);
        let alt = self.alt(&title, &labels, drawn());
        let hidden = i64::try_from(chart.labels.len() - shown).unwrap_or(i64::MAX);
        let more = if hidden > 0 {
            self.words.fill("not_shown", &[("n", &self.words.count(hidden))])
        } else {
            String::new()
        };
        let id = chart.name.clone();
        Figure {
            id: visible(&id),
            title,
            unit,
            lying,
            labels,
            series,
            limit,
            top,
            ticks,
            alt,
            more,
        }
    }

    fn series(&self, name: &str) -> String {
        visible(self.words.find(name).unwrap_or(name))
    }

    /// A point on the axis of time. Hours and minutes are moved to Gulf time; longer spans were counted in UTC.
    fn point(&self, label: &str) -> String {
        Local::from_cut(label).map_or_else(
            || self.words.digits(&visible(label).replace('-', "/")),
            |at| format!("{} {}", at.day_month(self.words), at.minute(self.words)),
        )
    }

    /// Round marks from zero to the first that is not below `highest`.
    fn axis(&self, highest: f64, whole: bool) -> (f64, Vec<Tick>) {
        const TICKS: f64 = 4.0;
        let rough = if highest > 0.0 { highest / TICKS } else { 1.0 / TICKS };
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter();
        let step = step.clone().find(|s| *s >= rough * 0.999_999).unwrap_or(power * 10.0);
        // Counts have no half marks.
        let step = if whole { step.ceil() } else { step };
        let decimals = (0..9).find(|d| {
            let scaled = step * 10_f64.powi(*d);
            (scaled - scaled.round()).abs() < 1e-6
        });
        let decimals = usize::try_from(decimals.unwrap_or(9)).unwrap_or(9);
        let mut ticks = Vec::new();
        let mut at = 0.0;
        loop {
            let text = self.words.digits(&format!("{at:.decimals$}"));
            ticks.push(Tick { at, text });
            if at >= highest * 0.999_999 && at > 0.0 {
                return (at, ticks);
            }
            at += step;
        }
    }

    fn alt<'a>(
        &self,
        title: &str,
        labels: &[String],
        series: impl Iterator<Item = &'a Bars>,
    ) -> String {
        /// What is read out is bounded; the tables have the rest.
        const READ_MAX: usize = 40;
        let comma = match self.words.lang() {
            Lang::En => ", ",
            Lang::Ar => "، ",
        };
        let mut out = format!("{title}.");
        for bars in series {
            let values = labels.iter().zip(&bars.texts).take(READ_MAX);
            let values: Vec<_> = values.map(|(label, text)| format!("{label}: {text}")).collect();
            let _ = write!(out, " {}: {}.", bars.name, values.join(comma));
        }
        out
    }
}

/// The text with a capital letter in front, as a heading has it.
fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().into_iter().flat_map(char::to_uppercase).chain(chars).collect()
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

/// A column's share of its table's width: room for what cannot be broken, and more for longer texts.
fn width<'a>(name: &str, cells: impl Iterator<Item = &'a Shown>) -> usize {
    /// A digest's first digits.
    const HASH: usize = 13;
    /// What has no more characters is best not broken at all.
    const SHORT: usize = 15;
    const LEAST: usize = 6;
    const MOST: usize = 30;
    let longest = |text: &str| {
        let words = text.split(|c: char| c.is_whitespace() || matches!(c, '/' | '-'));
        words.map(|w| w.chars().count()).max().unwrap_or_default().min(24)
    };
    let of = |cell: &Shown| match cell.look {
        Look::Hash => HASH,
        // Dates and numbers are not broken.
        Look::Time | Look::Number => cell.text.chars().count(),
        Look::Id | Look::Text | Look::Word => {
            let room = |t: &String| {
                let all = t.chars().count();
                longest(t).max(all.min(SHORT)).max(all / 2)
            };
            room(&cell.text).max(room(&cell.second))
        }
    };
    cells.map(of).max().unwrap_or_default().max(longest(name)).clamp(LEAST, MOST)
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

    #[test]
    fn an_axis_ends_at_or_above_the_highest_bar_and_counts_have_whole_marks() {
        let words = Words::of(Lang::En).expect("words");
        let source = include_bytes!("../tests/data/report.json");
        let source = Source::join(source, None).expect("the fixture");
        let writer = Writer { words: &words, report: source.report() };
        for (highest, whole, want) in [
            (0.0, true, "0 1"),
            (1.0, true, "0 1"),
            (3.0, true, "0 1 2 3"),
            (210.0, true, "0 100 200 300"),
            (5.61, false, "0 2 4 6"),
            (0.0003, false, "0.0000 0.0001 0.0002 0.0003"),
        ] {
            let (top, ticks) = writer.axis(highest, whole);
            let texts: Vec<_> = ticks.iter().map(|t| t.text.as_str()).collect();
            assert_eq!(texts.join(" "), want, "{highest}");
            assert!(top >= highest * 0.999_999, "{top} is below {highest}");
        }
    }
}
