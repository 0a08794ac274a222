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
