//! What one study did: what its entries say happened to versions, and what led to a round's model.

use super::{Evaluated, LineageError, Made, Run, Seen, same};
use crate::{
    audit::{Entry, Kind},
    id::Digest,
    registry::{
        provenance::{GateSaid, RoundMade},
        version::Event,
    },
};

impl Run {
    /// Keeps the set of policies by which an entry was decided.
    pub(super) fn decided(&mut self, entry: &Entry) {
        if let Some(set) = entry.body().find("policy_set_sha256") {
            self.sets.entry(set).or_insert(entry.seq);
        }
    }

    /// What an entry says has happened to a version.
    pub(super) fn event(&self, entry: &Entry) -> Result<Event, LineageError> {
        let body = entry.body();
        let number = || body.int("version");
        Ok(match entry.kind {
            Kind::VersionMade => {
                let round: u32 = body.int("round")?;
                let said: Digest = body.parsed("model_sha256")?;
                let gave = self.rounds.get(&round).map(|made| made.round.model);
                let gave = gave.map_or_else(|| "no model".to_owned(), |model| model.to_string());
                same("model_sha256", &said.to_string(), &gave)?;
                let manifest = body.parsed("manifest_sha256")?;
                same("manifest_sha256", &manifest, &self.manifest.unwrap_or(manifest))?;
                let file = body.parsed("safetensors_sha256")?;
                Event::Make { round, model: said, manifest, file }
            }
            Kind::VersionPromoted => {
                Event::Promote { number: number()?, to: body.parsed("stage")? }
            }
            Kind::VersionRejected => Event::Reject(number()?),
            Kind::VersionRevoked => Event::Revoke(number()?),
            Kind::VersionRolledBack => Event::RollBack,
            _ => {
                let number = body.member("version").map(|_| number()).transpose()?;
                Event::Alias { alias: body.parsed("alias")?, number }
            }
        })
    }

    /// The updates that went into a round.
    pub(super) fn gone_into<'a>(&'a self, made: &'a Made) -> impl Iterator<Item = &'a Seen> {
        self.updates.iter().filter(|seen| {
            seen.round == made.round.number
                && seen.attempt == made.attempt
                && seen.update.index < made.round.index
                && made.payloads.as_ref().is_none_or(|all| all.contains(&seen.update.payload))
        })
    }

    /// The round whose model a round began from, if it was not the first.
    pub(super) fn before(&self, made: &Made) -> Option<&Made> {
        let earlier = self.rounds.range(..made.round.number).rev();
        earlier.map(|(_, before)| before).find(|before| before.round.model == made.round.base)
    }

    /// The rounds that led to the model of this one, in their order: a study that was rolled back left others aside.
    pub(super) fn rounds_to(&self, last: u32) -> Vec<&Made> {
        let mut led = Vec::new();
        let mut next = self.rounds.get(&last);
        while let Some(made) = next {
            led.push(made);
            next = self.before(made);
        }
        led.reverse();
        led
    }

    pub(super) fn made_to(&self, last: u32) -> Vec<RoundMade> {
        let whole = |made: &Made| {
            let updates = self.gone_into(made).map(|seen| seen.update.clone()).collect();
            RoundMade { updates, ..made.round.clone() }
        };
        self.rounds_to(last).into_iter().map(whole).collect()
    }

    pub(super) fn evaluations_to(&self, last: u32) -> Vec<Evaluated> {
        let of = |made: &Made| {
            let (number, attempt) = (made.round.number, made.attempt);
            let tried = self.evaluations.iter();
            tried.filter(move |(of, e)| *of == attempt && e.round == number).map(|(_, e)| e.clone())
        };
        self.rounds_to(last).into_iter().flat_map(of).collect()
    }

    pub(super) fn gates_to(&self, last: u32) -> Vec<GateSaid> {
        self.rounds_to(last).into_iter().flat_map(|made| made.gates.clone()).collect()
    }
}
