//! Time-stamps of others: part of E5, and in E15 who gave them.

use super::{
    Seen, count_of,
    parts::{Level, ROWS_MAX, Section, Tally},
};
use crate::{audit::Kind, canon::Canon, id::Digest};
use std::collections::BTreeMap;

/// What authorities stamped, as the log says. How much more a stamp is worth to somebody who knows the authority's issuer
/// is for whoever verifies to say: the report is the same for everybody.
#[derive(Default)]
pub(super) struct Stamps {
    checkpoints: Tally,
    rows: Vec<Vec<Canon>>,
    /// Every stamp, by the authority and its certificate.
    authorities: BTreeMap<(String, String), Tally>,
    all: Tally,
}

impl Stamps {
    pub(super) fn take(&mut self, seen: &Seen<'_>) {
        if !matches!(seen.kind(), Kind::CheckpointStamped | Kind::ReportStamped) {
            return;
        }
        let (body, index) = (seen.entry.body(), seen.index());
        let authority = seen.text("authority").to_owned();
        let certificate: Option<Digest> = body.parsed("authority_sha256").ok();
        let certificate = certificate.map(|c| c.to_string()).unwrap_or_default();
        self.all.add(index);
        let key = (authority.clone(), certificate.clone());
        // Names are foreign text: beyond a bound they are counted together.
        let full = self.authorities.len() >= ROWS_MAX && !self.authorities.contains_key(&key);
        let key = if full { Default::default() } else { key };
        self.authorities.entry(key).or_default().add(index);
        if seen.kind() == Kind::CheckpointStamped {
            self.checkpoints.add(index);
            if self.rows.len() < ROWS_MAX {
                self.rows.push(vec![
                    count_of(body.int("tree_size").unwrap_or_default()),
                    seen.text("stamped").into(),
                    authority.into(),
                    certificate.into(),
                    count_of(index),
                ]);
            }
        }
    }

    /// Whether somebody else takes part by stamping, and in which entries.
    pub(super) const fn all(&self) -> Tally {
        self.all
    }

    pub(super) fn write(&self, e5: &mut Section, e15: &mut Section) {
        e5.fact("E5.timestamps", Level::Recorded, self.checkpoints);
        let columns = ["tree_size", "time", "authority", "certificate", "index"];
        e5.first_of("timestamps", &columns, self.rows.clone(), self.checkpoints.count);
        let authorities = self.authorities.iter().map(|((authority, certificate), tally)| {
            let [count, first, last] = tally.cells();
            vec![authority.as_str().into(), certificate.as_str().into(), count, first, last]
        });
        e15.table(
            "authorities",
            &["authority", "certificate", "count", "first", "last"],
            authorities,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Draft, Entry},
        report::Sections,
        time::Timestamp,
    };

    /// AUD-13: what was stamped is in E5 and who stamped it in E15; without a stamp neither is, and so the clause is a GAP.
    #[test]
    fn stamps_are_in_the_report_and_their_absence_is_said() {
        let report = |stamps: u64| {
            let mut sections = Sections::default();
            for i in 0..stamps {
                let draft = Draft::new(Kind::CheckpointStamped)
                    .count("tree_size", i)
                    .digest("authority_sha256", &Digest([1; 32]))
                    .text("authority", "CN=Authority")
                    .text("stamped", "2026-03-01T00:00:00.000Z");
                let bytes = draft.finish(i, Timestamp::from_millis(0), [0; 16]);
                sections.take(&Entry::parse(&bytes).expect("an entry"));
            }
            sections.finish("t/log", stamps, &Digest([0; 32]))
        };
        let section =
            |report: &Canon, n: usize| report.list("sections").expect("sections")[n].clone();
        let names = |section: &Canon, list: &str, name: &str| -> Vec<String> {
            let found = section.list(list).expect("a list").iter();
            found.map(|item| item.text(name).expect("a name").to_owned()).collect()
        };
        let with = report(1_200);
        let (e5, e15) = (section(&with, 4), section(&with, 14));
        assert!(names(&e5, "facts", "fact").contains(&"E5.timestamps".to_owned()));
        assert!(names(&e5, "facts", "level").iter().all(|level| level != "attested"));
        assert_eq!(names(&e15, "facts", "fact"), ["E15.third_parties"]);
        assert_eq!(names(&e15, "facts", "level"), ["recorded"]);
        let table = e5.list("tables").expect("tables").iter();
        let table = table.clone().find(|t| t.text("name") == Ok("timestamps")).expect("the stamps");
        assert_eq!(
            (table.list("rows").map(<[_]>::len), table.int("more")),
            (Ok(ROWS_MAX), Ok(200))
        );
        assert!(names(&e15, "tables", "name").contains(&"authorities".to_owned()));
        let without = report(0);
        assert!(
            !names(&section(&without, 4), "facts", "fact").contains(&"E5.timestamps".to_owned())
        );
        assert_eq!(names(&section(&without, 14), "facts", "fact"), [""; 0]);
    }
}
