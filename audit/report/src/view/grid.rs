//! Tables as they are shown: each cell by its column, each column as wide as its texts want. Findings and the timeline are
//! such tables.

use super::{Column, Grid, Group, Look, Shown, Writer};
use crate::{
    source::{Cell, Finding, Step},
    text::{is_decimal, visible},
    when::Local,
};

/// A table of a view has at most this many rows; the rest is in the JSON and the exported tables.
const ROWS_MAX: usize = 500;
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

impl Writer<'_> {
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
    pub(super) fn day(&self, text: &str) -> Option<String> {
        Local::from_utc(&format!("{text}T00:00:00Z")).map(|day| day.date(self.words))
    }

    pub(super) fn grid(
        &self,
        title: String,
        columns: &[String],
        rows: &[Vec<Cell>],
        more: i64,
    ) -> Grid {
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

    pub(super) fn not_listed(&self, more: i64) -> String {
        if more == 0 {
            return String::new();
        }
        self.words.fill("not_listed", &[("n", &self.words.count(more))])
    }

    pub(super) fn findings(&self) -> Vec<Group> {
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

    pub(super) fn timeline(&self) -> Grid {
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
}

/// The text with a capital letter in front, as a heading has it.
fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().into_iter().flat_map(char::to_uppercase).chain(chars).collect()
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
