//! People: who is behind which pseudonym as far as that is disclosed, erasures, refusals of them, and legal holds; and
//! shards that were pruned. E4, E12 and E14.

use super::{
    Seen, count_of,
    parts::{All, Level, ROWS_MAX, Tally},
};
use crate::{
    audit::{Kind, person::Person},
    canon::Canon,
};
use std::collections::BTreeMap;

/// A person as tables and people write it.
pub(super) fn name(person: Person) -> String {
    format!("person:{person}")
}

/// What the log says of people.
#[derive(Default)]
pub(super) struct People {
    /// Identities by pseudonym, and the entries that disclose them. At most as many as tables show; more are counted.
    met: BTreeMap<(Person, String), Tally>,
    more: u64,
    /// Rows, and all that there are.
    erasures: (Vec<Vec<Canon>>, Tally),
    refusals: (Vec<Vec<Canon>>, Tally),
    /// Holds by name: what, the article, and the entries that placed and released it.
    holds: BTreeMap<String, (String, String, u64, Option<u64>)>,
    held: Tally,
    held_more: u64,
    /// Rows of shards that were pruned, or not, and all that there are.
    pruned: (Vec<Vec<Canon>>, Tally),
    unpruned: (Vec<Vec<Canon>>, Tally),
}

impl People {
    pub(super) fn take(&mut self, seen: &Seen<'_>) {
        let index = seen.index();
        // A hold that was placed before the range may end in it.
        if seen.kind() == Kind::HoldReleased
            && let Some((.., released)) = self.holds.get_mut(seen.text("hold"))
        {
            *released = Some(index);
        }
        if !seen.counts {
            return;
        }
        if let (Some(person), Some(id)) = (seen.person, seen.entry.actor_id()) {
            let key = (person, id.to_string());
            if let Some(known) = self.met.get_mut(&key) {
                known.add(index);
            } else if self.met.len() < ROWS_MAX {
                self.met.entry(key).or_default().add(index);
            } else {
                self.more += 1;
            }
        }
        let about = || seen.entry.person().map(name).unwrap_or_default();
        let object = || match seen.study() {
            "" => about(),
            study => study.to_owned(),
        };
        let article = || seen.text("article").to_owned();
        let by = || seen.who();
        match seen.kind() {
            Kind::ErasurePerformed => {
                let cells = [about(), article(), by(), seen.entry.ts.clone()].map(Canon::Text);
                put(&mut self.erasures, cells.into(), index);
            }
            Kind::ErasureRefused => {
                let (reason, until) =
                    (seen.text("reason").to_owned(), seen.text("until").to_owned());
                let cells = [about(), reason, article(), until, by(), seen.entry.ts.clone()];
                put(&mut self.refusals, cells.map(Canon::Text).into(), index);
            }
            Kind::PruningPerformed => {
                let entries = Canon::Int(seen.entry.body().int("entries").unwrap_or_default());
                let rest =
                    [article(), seen.text("policy_sha256").to_owned(), by(), seen.entry.ts.clone()];
                let cells = [Canon::Text(seen.text("log").to_owned()), entries];
                let cells = cells.into_iter().chain(rest.map(Canon::Text)).collect();
                put(&mut self.pruned, cells, index);
            }
            Kind::PruningRefused => {
                let [log, reason, until] =
                    ["log", "reason", "until"].map(|k| seen.text(k).to_owned());
                let cells = [log, reason, article(), until, by(), seen.entry.ts.clone()];
                put(&mut self.unpruned, cells.map(Canon::Text).into(), index);
            }
            Kind::HoldPlaced => {
                self.held.add(index);
                if self.holds.len() < ROWS_MAX {
                    let hold = (object(), article(), index, None);
                    self.holds.insert(seen.text("hold").to_owned(), hold);
                } else {
                    self.held_more += 1;
                }
            }
            _ => {}
        }
    }

    pub(super) fn write(self, sections: &mut All) {
        let [_, _, _, e4, .., e12, _, e14, _] = sections;
        let people = self.met.iter().map(|((person, id), tally)| {
            let cells = [name(*person), id.clone()].map(Canon::Text);
            cells.into_iter().chain(tally.cells()).collect()
        });
        let columns = ["person", "party", "count", "first", "last"];
        let shown: Vec<_> = people.collect();
        let all = shown.len() as u64 + self.more;
        e4.first_of("people", &columns, shown, all);
        let ((erased, erasures), (refused, refusals)) = (self.erasures, self.refusals);
        e12.fact("E12.erasures", Level::Recorded, erasures);
        e12.first_of(
            "erasures",
            &["person", "article", "asked_by", "time", "index"],
            erased,
            erasures.count,
        );
        let columns = ["person", "kept_by", "article", "kept_until", "asked_by", "time", "index"];
        e12.first_of("erasures_refused", &columns, refused, refusals.count);
        e14.fact("E14.holds", Level::Recorded, self.held);
        let rows = self.holds.into_values().map(|(object, article, index, released)| {
            let released = released.map(|n| n.to_string()).unwrap_or_default();
            let cells = [object, article, released].map(Canon::Text);
            cells.into_iter().chain([count_of(index)]).collect()
        });
        let rows: Vec<_> = rows.collect();
        let all = rows.len() as u64 + self.held_more;
        e14.first_of("holds", &["object", "article", "released", "index"], rows, all);
        let ((pruned, prunings), (unpruned, refusals)) = (self.pruned, self.unpruned);
        let columns = ["log", "entries", "article", "policy_sha256", "asked_by", "time", "index"];
        e14.first_of("prunings", &columns, pruned, prunings.count);
        let columns = ["log", "kept_by", "article", "kept_until", "asked_by", "time", "index"];
        e14.first_of("prunings_refused", &columns, unpruned, refusals.count);
    }
}

/// A row with its index at the end, if there is room for it.
fn put((rows, all): &mut (Vec<Vec<Canon>>, Tally), mut row: Vec<Canon>, index: u64) {
    all.add(index);
    if rows.len() < ROWS_MAX {
        row.push(count_of(index));
        rows.push(row);
    }
}
