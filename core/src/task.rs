//! A task: one round of training, asked of one site, signed by the coordinator.

use crate::{
    canon::{self, Canon, CanonError},
    id::{Digest, RoundId, SiteId},
    time::Timestamp,
};

/// The context under which tasks are signed.
pub const CONTEXT: &str = "falaj/task/v1";

/// What a task says. The study and the base model travel beside it, bound by their digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskHeader {
    /// Which round.
    pub round: RoundId,
    /// How many rounds the study plans.
    pub rounds: u32,
    /// Who is asked.
    pub site: SiteId,
    /// SHA-256 of the study file.
    pub study_sha256: Digest,
    /// SHA-256 of the base model's parameters.
    pub base: Digest,
    /// SHA-256 of the manifest.
    pub manifest: Digest,
    /// Updates that arrive later may be refused.
    pub deadline: Timestamp,
    /// The try of the round and the cohort, where updates travel masked.
    pub masked: Option<(u32, Digest)>,
    /// The try of the round, where the base is its candidate, and is not to be trained but evaluated on what the site holds out.
    pub evaluates: Option<u32>,
}

impl TaskHeader {
    /// The canonical bytes, as signed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let masked = self.masked.map(|(attempt, cohort)| {
            [("attempt", attempt.into()), ("cohort_sha256", cohort.to_string().into())]
        });
        let members = [
            ("base_sha256", self.base.to_string().into()),
            ("deadline_ms", Canon::Int(self.deadline.as_millis())),
            ("manifest_sha256", self.manifest.to_string().into()),
            ("round", self.round.number.into()),
            ("rounds", self.rounds.into()),
            ("site", self.site.to_string().into()),
            ("study", self.round.study.to_string().into()),
            ("study_sha256", self.study_sha256.to_string().into()),
            ("v", Canon::Int(1)),
        ];
        let evaluates = self.evaluates.map(|attempt| ("evaluates", attempt.into()));
        let members = members.into_iter().chain(masked.into_iter().flatten());
        Canon::map(members.chain(evaluates)).to_bytes()
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`CanonError`] when the bytes are not canonical or a member is missing or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, CanonError> {
        let c = canon::parse(bytes)?;
        Ok(Self {
            round: RoundId { study: c.parsed("study")?, number: c.int("round")? },
            rounds: c.int("rounds")?,
            site: c.parsed("site")?,
            study_sha256: c.parsed("study_sha256")?,
            base: c.parsed("base_sha256")?,
            manifest: c.parsed("manifest_sha256")?,
            deadline: Timestamp::from_millis(c.int("deadline_ms")?),
            masked: match c.member("cohort_sha256") {
                Some(_) => Some((c.int("attempt")?, c.parsed("cohort_sha256")?)),
                None => None,
            },
            evaluates: match c.member("evaluates") {
                Some(_) => Some(c.int("evaluates")?),
                None => None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_round_trips_through_its_signed_bytes() {
        let task = TaskHeader {
            round: RoundId { study: "s".parse().expect("valid"), number: 3 },
            rounds: 20,
            site: "spiffe://t/ae-on/ae-az/site/h-1".parse().expect("valid"),
            study_sha256: Digest::of(b"study"),
            base: Digest::of(b"base"),
            manifest: Digest::of(b"manifest"),
            deadline: Timestamp::from_millis(5),
            masked: None,
            evaluates: None,
        };
        let evaluated = TaskHeader { evaluates: Some(1), ..task.clone() };
        let masked = TaskHeader { masked: Some((2, Digest::of(b"cohort"))), ..task.clone() };
        assert_eq!(TaskHeader::parse(&task.to_bytes()), Ok(task));
        assert_eq!(TaskHeader::parse(&masked.to_bytes()), Ok(masked));
        assert_eq!(TaskHeader::parse(&evaluated.to_bytes()), Ok(evaluated));
    }
}
