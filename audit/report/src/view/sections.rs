//! Sections with their facts and tables, and instruments with their clauses.

use super::{FactLine, Instrument, Line, Look, Part, Row, Shown, Writer};
use crate::{
    catalog::{Catalogue, Clause},
    source::{Level, Section, Table},
    text::visible,
};
use falaj_core::report::FACTS;

impl Writer<'_> {
    fn fact(&self, id: &str, level: Level, entries: String) -> FactLine {
        FactLine {
            id: id.to_owned(),
            name: self.say(&format!("fact_{id}")),
            level: level.as_str(),
            level_text: self.level(level),
            entries,
        }
    }

    pub(super) fn section(&self, section: &Section) -> Part {
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

    pub(super) fn instrument(&self, catalogue: &Catalogue) -> Instrument {
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
}
