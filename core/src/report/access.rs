//! Residency, transfers and accesses: E1, E2 and E4.

use super::{
    About, Seen,
    parts::{All, Level, ROWS_MAX, Section, Tally},
};
use crate::{
    audit::Kind,
    canon::Canon,
    id::{Digest, Place, Role},
};
use std::collections::BTreeMap;

/// Who was let in, what they did, and who was refused.
#[derive(Default)]
pub(super) struct Access {
    pub(super) accesses: u64,
    pub(super) refusals: u64,
    /// Connections by whom and by which certificate, if that is known.
    admitted: BTreeMap<(String, Option<Digest>), Tally>,
    places: Tally,
    /// Refusals by kind, policies or reason, and place.
    refused: BTreeMap<[String; 4], Tally>,
    refused_in_all: Tally,
    /// Models and exports by destination, who, kind and study; whether that is abroad.
    transfers: BTreeMap<([String; 4], bool), Tally>,
    transferred: Tally,
    approved: Tally,
    /// Approvals by whom, given or withdrawn, of which study's models or of the log, and for which destination.
    approvals: BTreeMap<[String; 4], Tally>,
    approval: Tally,
    /// What became of models and exports that were served: to whom, kind, study and outcome; and how many bytes.
    outcomes: BTreeMap<[String; 4], (Tally, u64)>,
    outcome: Tally,
    /// By whom: served, and refused.
    actors: BTreeMap<String, (Tally, Tally)>,
    kinds: BTreeMap<&'static str, Tally>,
    served: Tally,
}

impl Access {
    pub(super) fn take(&mut self, seen: &Seen<'_>, about: &About) {
        let index = seen.index();
        let place = || seen.place().map(|p| p.to_string()).unwrap_or_default();
        self.kinds.entry(seen.kind().as_str()).or_default().add(index);
        if seen.kind() == Kind::ConnectionAdmitted
            && (seen.person.is_some() || (seen.who.is_some() && seen.cert.is_some()))
        {
            self.admitted.entry((seen.who(), seen.cert)).or_default().add(index);
            if seen.cert.is_some_and(|cert| about.holders.contains_key(&cert)) {
                self.places.add(index);
            }
        }
        if seen.is_refusal() {
            self.refusals += 1;
            self.refused_in_all.add(index);
            let code = || match seen.text("code") {
                "" => seen.text("reason").to_owned(),
                code => code.to_owned(),
            };
            let policies = seen.policies().collect::<Vec<_>>().join(", ");
            let reason = if policies.is_empty() { code() } else { String::new() };
            let key = [seen.kind().as_str().to_owned(), policies, reason, place()];
            // Reasons can be foreign text: beyond a bound they are counted together.
            let full = self.refused.len() >= ROWS_MAX && !self.refused.contains_key(&key);
            let key = if full { Default::default() } else { key };
            self.refused.entry(key).or_default().add(index);
        }
        if seen.takes_out() || seen.kind() == Kind::TaskSent {
            // Where it is taken to, by their word, unless they are abroad themselves.
            let said = seen.entry.destination();
            let is_abroad =
                |place: &Option<Place>| place.as_ref().is_some_and(|p| about.is_abroad(p));
            let to = seen.place().filter(|_| said.is_none() || is_abroad(&seen.place())).or(said);
            let abroad = is_abroad(&to);
            let to = to.map(|place| place.to_string()).unwrap_or_default();
            let key = [to, seen.who(), seen.kind().as_str().to_owned(), seen.study().to_owned()];
            self.transfers.entry((key, abroad)).or_default().add(index);
            self.transferred.add(index);
            if seen.is_approved() {
                self.approved.add(index);
            }
        }
        if matches!(seen.kind(), Kind::ApprovalGiven | Kind::ApprovalWithdrawn) {
            let to = seen.entry.destination().map(|place| place.to_string()).unwrap_or_default();
            let key = [seen.who(), seen.kind().as_str().to_owned(), seen.study().to_owned(), to];
            self.approvals.entry(key).or_default().add(index);
            self.approval.add(index);
        }
        if seen.kind() == Kind::AccessServed {
            let texts = ["served", "outcome"].map(|key| seen.text(key).to_owned());
            let [served, outcome] = texts;
            let key = [seen.who(), served, seen.study().to_owned(), outcome];
            let (tally, bytes) = self.outcomes.entry(key).or_default();
            tally.add(index);
            let handed: u64 = seen.entry.body().int("bytes").unwrap_or_default();
            *bytes = bytes.saturating_add(handed);
            self.outcome.add(index);
        }
        if seen.is_access() {
            self.accesses += 1;
            self.served.add(index);
        }
        if seen.is_access() || seen.is_refusal() {
            // Most are known already, and need no name of their own.
            let (served, refused) = match self.actors.get_mut(&*seen.name) {
                Some(known) => known,
                None => self.actors.entry(seen.who()).or_default(),
            };
            if seen.is_access() { served } else { refused }.add(index);
        }
    }

    /// Sites that were let in.
    pub(super) fn sites(&self) -> u64 {
        let is_site =
            |id: &str| id.parse::<crate::id::SpiffeId>().is_ok_and(|id| id.role() == Role::Site);
        let mut ids: Vec<&String> = self.admitted.keys().map(|(who, _)| who).collect();
        ids.dedup();
        ids.into_iter().filter(|id| is_site(id)).count() as u64
    }

    /// What people approved, in E13, after whatever else they did.
    pub(super) fn write_approvals(&self, sections: &mut All) {
        let [.., e13, _, _] = sections;
        e13.fact("E13.approvals", Level::Recorded, self.approval);
        let columns = ["party", "kind", "study", "destination", "count", "first", "last"];
        let approvals = self.approvals.iter().map(|(key, tally)| {
            let cells = key.iter().map(|c| Canon::Text(c.clone()));
            cells.chain(tally.cells()).collect()
        });
        e13.table("approvals", &columns, approvals);
    }

    pub(super) fn write(&self, sections: &mut All, about: &About) {
        let [e1, e2, _, e4, ..] = sections;
        self.residency(e1, about);
        e2.fact("E2.transfers", Level::Recorded, self.transferred);
        e2.fact("E2.approvals", Level::Recorded, self.approved);
        let columns = ["destination", "party", "kind", "study", "count", "first", "last"];
        let row = |(key, tally): (&[String; 4], &Tally)| {
            let cells = key.iter().map(|c| Canon::Text(c.clone()));
            cells.chain(tally.cells()).collect::<Vec<_>>()
        };
        let of = |wanted: bool| {
            let transfers = self.transfers.iter();
            transfers.filter(move |((_, abroad), _)| *abroad == wanted).map(|((k, _), t)| (k, t))
        };
        e2.table("transfers_abroad", &columns, of(true).map(row));
        e2.table("transfers", &columns, of(false).map(row));
        e2.fact("E2.outcomes", Level::Recorded, self.outcome);
        let columns = ["party", "kind", "study", "outcome", "bytes", "count", "first", "last"];
        let outcomes = self.outcomes.iter().map(|(key, (tally, bytes))| {
            let cells = key.iter().map(|c| Canon::Text(c.clone()));
            cells.chain([super::count_of(*bytes)]).chain(tally.cells()).collect()
        });
        e2.table("outcomes", &columns, outcomes);
        e4.fact("E4.accesses", Level::Recorded, self.served);
        e4.fact("E4.refusals", Level::Recorded, self.refused_in_all);
        let actors = self.actors.iter().map(|(who, (served, refused))| {
            let [allowed, ..] = served.cells();
            let [denied, ..] = refused.cells();
            let first =
                [served, refused].into_iter().filter(|t| t.count > 0).map(|t| t.first).min();
            let last = served.last.max(refused.last);
            let first = super::count_of(first.unwrap_or_default());
            vec![Canon::Text(who.clone()), allowed, denied, first, super::count_of(last)]
        });
        e4.table("accesses", &["party", "allow", "deny", "first", "last"], actors);
        let kinds = self.kinds.iter().map(|(kind, tally)| {
            let [count, first, last] = tally.cells();
            vec![(*kind).into(), count, first, last]
        });
        e4.table("entries", &["kind", "count", "first", "last"], kinds);
    }

    fn residency(&self, e1: &mut Section, about: &About) {
        e1.fact("E1.places", Level::CaAttested, self.places);
        e1.fact("E1.refusals", Level::Recorded, self.refused_in_all);
        let parties = self.admitted.iter().map(|((who, cert), tally)| {
            let holder = cert.and_then(|cert| about.holders.get(&cert));
            let place = holder.map(|h| h.id.place().to_string()).unwrap_or_default();
            let issuer = holder.map(|h| h.issuer.to_string()).unwrap_or_default();
            let [count, first, last] = tally.cells();
            let cert = cert.map(|cert| cert.to_string()).unwrap_or_default();
            let texts = [who.clone(), place, issuer, cert].map(Canon::Text);
            texts.into_iter().chain([count, first, last]).collect()
        });
        e1.table(
            "parties",
            &["party", "place", "issuer", "certificate", "connections", "first", "last"],
            parties,
        );
        let refused = self.refused.iter().map(|(key, tally)| {
            let cells = key.iter().map(|c| Canon::Text(c.clone()));
            cells.chain(tally.cells()).collect()
        });
        e1.table(
            "refusals",
            &["kind", "policy", "reason", "place", "count", "first", "last"],
            refused,
        );
    }
}
