//! A receipt: the coordinator's signed promise that an update is durable and in the log.

use crate::{
    canon::{self, Canon, CanonError},
    id::{Digest, RoundId, SiteId},
    time::Timestamp,
};

/// The context under which receipts are signed.
pub const CONTEXT: &str = "falaj/receipt/v1";

/// What is promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Which round counts the update.
    pub round: RoundId,
    /// Whose update it is.
    pub site: SiteId,
    /// SHA-256 of the update's payload.
    pub payload: Digest,
    /// SHA-256 of the update's signed header.
    pub header: Digest,
    /// Index of the update's entry in the log.
    pub log_index: u64,
    /// Leaf hash of that entry.
    pub leaf_hash: Digest,
    /// When the entry was committed.
    pub committed: Timestamp,
}

impl Receipt {
    /// The canonical bytes, as signed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        Canon::map([
            ("committed_ms", Canon::Int(self.committed.as_millis())),
            ("header_sha256", self.header.to_string().into()),
            ("leaf_hash", self.leaf_hash.to_string().into()),
            ("log_index", Canon::Int(i64::try_from(self.log_index).unwrap_or(i64::MAX))),
            ("payload_sha256", self.payload.to_string().into()),
            ("round", self.round.number.into()),
            ("site", self.site.to_string().into()),
            ("study", self.round.study.to_string().into()),
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
        Ok(Self {
            round: RoundId { study: c.parsed("study")?, number: c.int("round")? },
            site: c.parsed("site")?,
            payload: c.parsed("payload_sha256")?,
            header: c.parsed("header_sha256")?,
            log_index: c.int("log_index")?,
            leaf_hash: c.parsed("leaf_hash")?,
            committed: Timestamp::from_millis(c.int("committed_ms")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_round_trips_through_its_signed_bytes() {
        let receipt = Receipt {
            round: RoundId { study: "s".parse().expect("valid"), number: 3 },
            site: "spiffe://t/ae-on/ae-az/site/h-1".parse().expect("valid"),
            payload: Digest::of(b"payload"),
            header: Digest::of(b"header"),
            log_index: 7,
            leaf_hash: Digest::of(b"leaf"),
            committed: Timestamp::from_millis(5),
        };
        assert_eq!(Receipt::parse(&receipt.to_bytes()), Ok(receipt));
    }
}
