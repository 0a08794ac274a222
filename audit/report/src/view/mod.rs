//! One language's view of a source: every word chosen, every number and time written as the language writes it,
//! every text from elsewhere made harmless. The HTML page and the PDF only lay it out, so that they cannot differ.

mod chart;
mod grid;
mod sections;
mod shown;

use crate::{
    catalog::{Both, Verified},
    source::{Level, Report, Source},
    text::visible,
    when::Local,
    words::{Lang, Words},
};
pub use shown::{
    Bars, Column, FactLine, Figure, Grid, Group, Instrument, Labels, Line, Look, Part, Row, Shown,
    Tick, View,
};
pub(crate) use shown::{TEXT_CHARS_MAX, cut};
use std::collections::BTreeSet;

/// The log's name is cut to this many characters in titles and running heads.
const ORIGIN_CHARS_MAX: usize = 60;

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
}
