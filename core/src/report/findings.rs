//! Findings: events in the log that somebody should look at.

use super::{About, Seen, count_of, parts::ROWS_MAX};
use crate::{
    audit::{Kind, person::Person},
    canon::Canon,
    id::{Digest, RoundId, SiteId, StudyId},
    study::Mechanism,
};
use std::collections::BTreeSet;

/// What can be found, and the section to which each belongs.
pub const FINDINGS: [(&str, &str); 7] = [
    ("out_of_region_join", "E1"),
    ("export_without_approval", "E2"),
    ("read_without_grant", "E4"),
    ("epsilon_overrun", "E6"),
    ("epsilon_understated", "E6"),
    ("missing_dpia", "E10"),
    ("expired_consent", "E12"),
];

/// What was found, and what must be remembered to find it.
#[derive(Default)]
pub(super) struct Findings {
    found: Vec<Canon>,
    more: u64,
    /// Certificates by which somebody was let in.
    admitted: BTreeSet<Digest>,
    /// People who were let in.
    people: BTreeSet<Person>,
    /// Seats in rounds that are open.
    seats: BTreeSet<(RoundId, SiteId)>,
    /// Said once for each study, or each study and site.
    said: BTreeSet<(&'static str, StudyId, String)>,
}

impl Findings {
    pub(super) fn take(&mut self, seen: &Seen<'_>, about: &About) {
        self.follow(seen);
        if !seen.counts {
            return;
        }
        self.region(seen, about);
        self.grants(seen);
        self.agreements(seen, about);
    }

    /// Remembers what later entries are held against, in range or not.
    fn follow(&mut self, seen: &Seen<'_>) {
        match (seen.kind(), &seen.round, &seen.site) {
            (Kind::ConnectionAdmitted, ..) => match seen.person {
                Some(person) => {
                    self.people.insert(person);
                }
                None => self.admitted.extend(seen.cert),
            },
            // Whoever comes again has another pseudonym.
            (Kind::ErasurePerformed, ..) => {
                if let Some(person) = seen.entry.person() {
                    self.people.remove(&person);
                }
            }
            (Kind::SiteJoined, Some(round), Some(site)) => {
                self.seats.insert((round.clone(), site.clone()));
            }
            (Kind::ModelPublished | Kind::ModelRejected | Kind::RoundFailed, Some(round), _) => {
                self.seats.retain(|(r, _)| r != round);
            }
            _ => {}
        }
    }

    fn region(&mut self, seen: &Seen<'_>, about: &About) {
        if seen.kind() != Kind::SiteJoined && !seen.takes_out() {
            return;
        }
        let Some(place) = seen.place() else { return };
        let abroad = about.is_abroad(&place);
        match seen.kind() {
            Kind::SiteJoined => {
                let study = seen.study.as_ref().and_then(|s| about.study(s));
                let agreed =
                    study.zip(seen.site.as_ref()).is_none_or(|(s, site)| s.cohort.admits(site));
                if abroad || !agreed {
                    self.add("out_of_region_join", seen, &place.to_string());
                }
            }
            // It may be taken elsewhere than where who asked for it is.
            _ if !seen.is_approved() => {
                let to = seen.entry.destination().filter(|place| about.is_abroad(place));
                if let Some(place) = to.or(Some(place).filter(|_| abroad)) {
                    self.add("export_without_approval", seen, &place.to_string());
                }
            }
            _ => {}
        }
    }

    /// Whatever was served was allowed before: to somebody who was let in, by a policy, and in a round by a seat.
    fn grants(&mut self, seen: &Seen<'_>) {
        let known = || match seen.person {
            Some(person) => self.people.contains(&person),
            None => seen.cert.is_none_or(|cert| self.admitted.contains(&cert)),
        };
        let seated = || match (&seen.round, &seen.site) {
            (Some(round), Some(site)) => self.seats.contains(&(round.clone(), site.clone())),
            _ => true,
        };
        let wrong = match seen.kind() {
            Kind::ModelRead | Kind::AdminRead | Kind::LogExported => {
                let ruled = seen.policies().any(|policy| !policy.is_empty());
                (!known() || seen.decision != "allow" || !ruled).then(|| seen.text("action"))
            }
            Kind::TaskSent | Kind::UpdateAccepted => (!known() || !seated()).then_some("round"),
            _ => None,
        };
        if let Some(what) = wrong {
            self.add("read_without_grant", seen, what);
        }
    }

    /// What a study says of itself.
    fn agreements(&mut self, seen: &Seen<'_>, about: &About) {
        let Some((id, study)) = seen.study.as_ref().and_then(|s| Some((s, about.study(s)?))) else {
            return;
        };
        if seen.kind() == Kind::RoundOpened {
            if study.governance.dpia.is_none() {
                self.once("missing_dpia", id, String::new(), seen, "");
            }
            if let Some(consent) = &study.governance.consent
                && consent.is_over(&seen.entry.ts)
            {
                let detail = format!("{}, {}", consent.reference, consent.expires);
                self.add("expired_consent", seen, &detail);
            }
        }
        if seen.kind() == Kind::UpdateAccepted && study.privacy.mechanism != Mechanism::None {
            let stated = seen.text("epsilon");
            let limit = study.privacy.epsilon_limit;
            if stated.parse::<f64>().is_ok_and(|e| e > limit) {
                let detail = format!("{stated} > {limit:.4}");
                self.once("epsilon_overrun", id, seen.who(), seen, &detail);
            }
        }
    }

    /// An epsilon that is below what the study's own mechanism comes to; found when all was read.
    pub(super) fn understated(
        &mut self,
        study: &StudyId,
        site: &str,
        last: (u64, &str),
        detail: &str,
    ) {
        let (index, ts) = last;
        self.push("epsilon_understated", index, ts, site, study.as_str(), detail);
    }

    fn once(
        &mut self,
        finding: &'static str,
        study: &StudyId,
        who: String,
        seen: &Seen<'_>,
        detail: &str,
    ) {
        if self.said.insert((finding, study.clone(), who)) {
            self.add(finding, seen, detail);
        }
    }

    fn add(&mut self, finding: &'static str, seen: &Seen<'_>, detail: &str) {
        self.push(finding, seen.index(), &seen.entry.ts, &seen.name, seen.study(), detail);
    }

    fn push(
        &mut self,
        finding: &'static str,
        index: u64,
        ts: &str,
        who: &str,
        study: &str,
        detail: &str,
    ) {
        if self.found.len() >= ROWS_MAX {
            self.more += 1;
            return;
        }
        let section = FINDINGS.iter().find(|(f, _)| *f == finding).map_or("", |(_, s)| *s);
        self.found.push(Canon::map([
            ("finding", finding.into()),
            ("section", section.into()),
            ("index", count_of(index)),
            ("ts", ts.into()),
            ("who", who.into()),
            ("study", study.into()),
            ("detail", detail.into()),
        ]));
    }

    pub(super) fn count(&self) -> u64 {
        self.found.len() as u64 + self.more
    }

    /// The findings, and how many more there are.
    pub(super) fn write(self) -> (Canon, u64) {
        (Canon::List(self.found), self.more)
    }
}
