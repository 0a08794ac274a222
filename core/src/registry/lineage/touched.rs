//! From a site, a place or an update to every version that it touched, and what a withdrawal of consent makes of each.

use super::{Run, Seen};
use crate::{
    id::{Digest, Place, SiteId, StudyId},
    registry::{
        provenance::UpdateCounted,
        version::{Stage, Version},
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// Where something in a version may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A site.
    Site(SiteId),
    /// Every site in a place.
    Place(Place),
    /// One update, by its payload or its header.
    Update(Digest),
}

/// Which updates are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Whose.
    pub source: Source,
    /// Accepted from this time on, as entries spell times; empty for all.
    pub since: String,
    /// Accepted before this time; empty for all.
    pub until: String,
}

/// A version that learned from what was asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The study.
    pub study: StudyId,
    /// The version, as it stands.
    pub version: Version,
    /// Whose updates they were.
    pub sites: BTreeSet<SiteId>,
    /// How many updates.
    pub updates: u64,
    /// The first and the last round that has one.
    pub rounds: (u32, u32),
    /// The entries of the first and the last of them.
    pub indices: (u64, u64),
    /// What to do with it when the consent for these updates is withdrawn.
    pub remedy: Remedy,
    /// The last round that learned nothing from them; 0 is the first model, untrained.
    pub untouched: u32,
}

/// What a withdrawal of consent makes of a version. What it learned cannot be taken out of it; the noise of the study's
/// mechanism bounds how much that is, and it can be taken out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// It is out already.
    Nothing,
    /// Reject it.
    Reject,
    /// Revoke it: nothing that came before it can serve in its place.
    Revoke,
    /// Roll back to this version, which learned nothing from them, and revoke it.
    RollBack(u32),
}

impl Remedy {
    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Reject => "reject",
            Self::Revoke => "revoke",
            Self::RollBack(_) => "roll_back",
        }
    }
}

impl Asked {
    fn wants(&self, seen: &Seen) -> bool {
        let update = &seen.update;
        let from = match &self.source {
            Source::Site(site) => update.site == *site,
            Source::Place(place) => update.site.spiffe().place() == place,
            Source::Update(digest) => update.payload == *digest || update.header == *digest,
        };
        // Times are spelled in one way, whose order is that of time.
        from && (self.since.is_empty() || seen.ts >= self.since)
            && (self.until.is_empty() || seen.ts < self.until)
    }
}

impl Run {
    /// The versions that learned from what is asked about.
    pub(super) fn touched(&self, study: &StudyId, asked: &Asked) -> Vec<Touched> {
        // What was asked about, by the round into which it went; and the rounds that learned from it, by themselves or by their base.
        let mut found: BTreeMap<u32, Vec<&UpdateCounted>> = BTreeMap::new();
        let mut learned = BTreeSet::new();
        for (number, made) in &self.rounds {
            let wanted = self.gone_into(made).filter(|seen| asked.wants(seen));
            let updates: Vec<&UpdateCounted> = wanted.map(|seen| &seen.update).collect();
            let before = self.before(made).map(|before| before.round.number);
            if !updates.is_empty() || before.is_some_and(|before| learned.contains(&before)) {
                learned.insert(*number);
            }
            if !updates.is_empty() {
                found.insert(*number, updates);
            }
        }
        let clean = self.rounds.keys().filter(|number| !learned.contains(*number));
        let untouched = clean.max().copied().unwrap_or(0);
        let of_version = |version: &Version| {
            let led = self.rounds_to(version.round).into_iter().map(|made| made.round.number);
            let into: Vec<(u32, &Vec<&UpdateCounted>)> =
                led.filter_map(|number| Some((number, found.get(&number)?))).collect();
            let all: Vec<&UpdateCounted> =
                into.iter().flat_map(|(_, updates)| updates.iter().copied()).collect();
            Some(Touched {
                study: study.clone(),
                version: version.clone(),
                sites: all.iter().map(|update| update.site.clone()).collect(),
                updates: all.len() as u64,
                rounds: (into.first()?.0, into.last()?.0),
                indices: (all.first()?.index, all.last()?.index),
                remedy: self.remedy(version, &learned),
                untouched,
            })
        };
        self.registry.versions.values().filter_map(of_version).collect()
    }

    /// What to do with a version that learned from it, as the models of these rounds did.
    fn remedy(&self, version: &Version, learned: &BTreeSet<u32>) -> Remedy {
        match version.stage {
            Stage::Rejected | Stage::Revoked => Remedy::Nothing,
            Stage::Candidate | Stage::Staging => Remedy::Reject,
            Stage::Archived => Remedy::Revoke,
            Stage::Production => match self.registry.before() {
                Some(before) if !learned.contains(&before.round) => Remedy::RollBack(before.number),
                _ => Remedy::Revoke,
            },
        }
    }
}
