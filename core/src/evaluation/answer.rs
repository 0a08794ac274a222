//! What a site says and signs about a candidate: its counts, and what they cost.

use crate::{
    canon::{self, Canon, CanonError},
    evaluation::cells::CELLS_MAX,
    id::{Digest, RoundId, SiteId},
    note,
    sign::{SignError, SignKey},
};
use ed25519_dalek::VerifyingKey;

/// The context under which sites sign what they counted.
pub const CONTEXT: &str = "falaj/evaluation/v1";

/// What the counts are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvaluationHeader {
    /// The round whose candidate was evaluated.
    pub round: RoundId,
    /// Which try of it.
    pub attempt: u32,
    /// Who counted.
    pub site: SiteId,
    /// SHA-256 of the study file.
    pub study_sha256: Digest,
    /// SHA-256 of the candidate's parameters.
    pub candidate: Digest,
    /// SHA-256 of the counts: whole numbers of 64 bits, little-endian.
    pub counts: Digest,
    /// How many counts there are.
    pub cells: u32,
    /// The noise on them, in a word.
    pub noise: String,
    /// Epsilon that the site has spent on the study, this included, rounded up, as a decimal.
    pub epsilon: String,
    /// The head of the site's ledger, which has paid for it.
    pub ledger: Digest,
}

/// Counts with noise, described and signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCounts {
    /// The header's canonical bytes.
    pub header: Vec<u8>,
    /// Ed25519 over them, under [`CONTEXT`], by the key of the site's certificate.
    pub signature: [u8; 64],
    /// The counts' bytes.
    pub counts: Vec<u8>,
}

/// Why counts are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The header cannot be read.
    #[error("the header cannot be read: {0}")]
    Header(#[from] CanonError),
    /// Somebody else's signature, or none.
    #[error("the header is not signed by this site's key")]
    Signature,
    /// The counts are not those that were signed.
    #[error("the counts are not those that the header names")]
    Counts,
    /// It is about something else than was asked.
    #[error("the answer is about another {0}")]
    Other(&'static str),
}

impl EvaluationHeader {
    /// The canonical bytes, as signed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        Canon::map([
            ("attempt", self.attempt.into()),
            ("candidate_sha256", self.candidate.to_string().into()),
            ("cells", self.cells.into()),
            ("counts_sha256", self.counts.to_string().into()),
            ("epsilon", self.epsilon.as_str().into()),
            ("ledger_sha256", self.ledger.to_string().into()),
            ("noise", self.noise.as_str().into()),
            ("round", self.round.number.into()),
            ("site", self.site.to_string().into()),
            ("study", self.round.study.to_string().into()),
            ("study_sha256", self.study_sha256.to_string().into()),
            ("v", Canon::Int(1)),
        ])
        .to_bytes()
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`CanonError`] when the bytes are not canonical or a member is missing or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, CanonError> {
        let c = canon::parse(bytes)?;
        let bad = |what: &str| CanonError::Member(what.to_owned());
        if c.int::<u32>("v")? != 1 {
            return Err(bad("v"));
        }
        let (epsilon, noise) = (c.text("epsilon")?, c.text("noise")?);
        if !crate::update::is_decimal(epsilon) {
            return Err(bad("epsilon"));
        }
        if noise.len() > 64 {
            return Err(bad("noise"));
        }
        let cells: u32 = c.int("cells")?;
        if cells as usize > CELLS_MAX {
            return Err(bad("cells"));
        }
        Ok(Self {
            round: RoundId { study: c.parsed("study")?, number: c.int("round")? },
            attempt: c.int("attempt")?,
            site: c.parsed("site")?,
            study_sha256: c.parsed("study_sha256")?,
            candidate: c.parsed("candidate_sha256")?,
            counts: c.parsed("counts_sha256")?,
            cells,
            noise: noise.to_owned(),
            epsilon: epsilon.to_owned(),
            ledger: c.parsed("ledger_sha256")?,
        })
    }
}

/// The bytes of counts.
#[must_use]
pub fn to_bytes(counts: &[i64]) -> Vec<u8> {
    counts.iter().flat_map(|c| c.to_le_bytes()).collect()
}

/// The counts of bytes; none when there are bytes left over.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> Option<Vec<i64>> {
    let (counts, rest) = bytes.as_chunks::<8>();
    rest.is_empty().then(|| counts.iter().map(|c| i64::from_le_bytes(*c)).collect())
}

impl SignedCounts {
    /// Describes and signs counts that have their noise.
    ///
    /// # Errors
    /// [`SignError`] when the key cannot be used now.
    pub fn sign(
        header: EvaluationHeader,
        counts: &[i64],
        key: &dyn SignKey,
    ) -> Result<Self, SignError> {
        let counts = to_bytes(counts);
        let cells = u32::try_from(counts.len() / 8).unwrap_or(u32::MAX);
        let header = EvaluationHeader { counts: Digest::of(&counts), cells, ..header }.to_bytes();
        let signature = note::sign_context(key, CONTEXT, &header)?;
        Ok(Self { header, signature, counts })
    }

    /// Checks what a site sent, by the key of its certificate, against the header that was asked for; its counts, epsilon and
    /// ledger are the site's to say.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn check(
        &self,
        asked: &EvaluationHeader,
        key: &VerifyingKey,
    ) -> Result<(EvaluationHeader, Vec<i64>), AnswerError> {
        let header = EvaluationHeader::parse(&self.header)?;
        if !note::verify_context(key, CONTEXT, &self.header, &self.signature) {
            return Err(AnswerError::Signature);
        }
        let same = [
            (header.round == asked.round, "round"),
            (header.attempt == asked.attempt, "try of the round"),
            (header.site == asked.site, "site"),
            (header.study_sha256 == asked.study_sha256, "study"),
            (header.candidate == asked.candidate, "candidate"),
            (header.noise == asked.noise, "noise"),
        ];
        if let Some((_, what)) = same.into_iter().find(|(same, _)| !same) {
            return Err(AnswerError::Other(what));
        }
        let counts = from_bytes(&self.counts).ok_or(AnswerError::Counts)?;
        if Digest::of(&self.counts) != header.counts || counts.len() != header.cells as usize {
            return Err(AnswerError::Counts);
        }
        Ok((header, counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;

    fn header() -> EvaluationHeader {
        EvaluationHeader {
            round: RoundId { study: "s".parse().expect("valid"), number: 3 },
            attempt: 1,
            site: "spiffe://t/ae-on/ae-az/site/h-1".parse().expect("valid"),
            study_sha256: Digest::of(b"study"),
            candidate: Digest::of(b"candidate"),
            counts: Digest::of(b""),
            cells: 0,
            noise: "laplace".into(),
            epsilon: "1.5".into(),
            ledger: Digest::of(b"ledger"),
        }
    }

    #[test]
    fn what_was_signed_is_taken_and_nothing_else() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let signed = SignedCounts::sign(header(), &[1, -2, 3], &key).expect("signed");
        let (read, counts) = signed.check(&header(), &key.verifying_key()).expect("taken");
        assert_eq!((counts, read.cells), (vec![1, -2, 3], 3));
        assert_eq!(EvaluationHeader::parse(&signed.header), Ok(read));
        let with = |change: &dyn Fn(&mut EvaluationHeader)| {
            let mut asked = header();
            change(&mut asked);
            signed.check(&asked, &key.verifying_key()).unwrap_err()
        };
        assert_eq!(with(&|h| h.round.number = 2), AnswerError::Other("round"));
        assert_eq!(with(&|h| h.attempt = 0), AnswerError::Other("try of the round"));
        assert_eq!(with(&|h| h.candidate = Digest::of(b"")), AnswerError::Other("candidate"));
        assert_eq!(with(&|h| h.study_sha256 = Digest::of(b"")), AnswerError::Other("study"));
        assert_eq!(with(&|h| h.noise = "none".into()), AnswerError::Other("noise"));
        let other = SigningKey::from_bytes(&[8; 32]).verifying_key();
        assert_eq!(signed.check(&header(), &other), Err(AnswerError::Signature));
        let mut counts = signed.clone();
        counts.counts[0] ^= 1;
        assert_eq!(counts.check(&header(), &key.verifying_key()), Err(AnswerError::Counts));
        let mut longer = signed;
        longer.counts.push(0);
        assert_eq!(longer.check(&header(), &key.verifying_key()), Err(AnswerError::Counts));
    }
}
