//! What an update's header must say before a byte of its payload is read.

use crate::{
    id::{Digest, RoundId, SiteId},
    note,
    study::{Study, WEIGHT_MAX, Weights},
    update::{CONTEXT, Encoding, UpdateHeader},
};
use ed25519_dalek::VerifyingKey;

/// What the running round expects of every update.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    /// The round that collects.
    pub round: RoundId,
    /// The model that it started from.
    pub base: Digest,
    /// The manifest's digest.
    pub manifest: Digest,
    /// Number of values.
    pub params: u64,
    /// The agreed grid.
    pub encoding: Encoding,
    /// The agreed mechanism.
    pub mechanism: &'static str,
    /// What an update counts for.
    pub weights: Weights,
    /// The cohort whose masks must be on it; none where updates are not masked.
    pub cohort: Option<Digest>,
}

impl Expectation {
    /// What a study expects in `round`, starting from `base`.
    ///
    /// # Errors
    /// [`crate::manifest::ManifestError`] when the study's model cannot exist.
    pub fn of(
        study: &Study,
        round: RoundId,
        base: Digest,
        cohort: Option<Digest>,
    ) -> Result<Self, crate::manifest::ManifestError> {
        let manifest = study.manifest()?;
        Ok(Self {
            round,
            base,
            manifest: manifest.digest(),
            params: manifest.params() as u64,
            encoding: study.encoding(),
            mechanism: study.privacy.mechanism.as_str(),
            weights: study.cohort.weights,
            cohort,
        })
    }
}

/// Why a header is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It speaks for somebody else.
    #[error("the header names site {named}, the certificate {peer}")]
    Site {
        /// In the header.
        named: SiteId,
        /// In the certificate.
        peer: SiteId,
    },
    /// The signature is not the site's.
    #[error("the signature over the header is not by the key of {0}'s certificate")]
    Signature(SiteId),
    /// Another round.
    #[error("the update is for round {named}, the study collects for round {open}")]
    Round {
        /// In the header.
        named: u32,
        /// That collects.
        open: u32,
    },
    /// Another base model.
    #[error("the update starts from model {named}, the round from {base}")]
    Base {
        /// In the header.
        named: Digest,
        /// The round's.
        base: Digest,
    },
    /// Another shape.
    #[error("the update has {what}, the study asks for {asked}")]
    Shape {
        /// What the header says.
        what: String,
        /// What the study says.
        asked: String,
    },
    /// More bytes than the coordinator takes.
    #[error("the update declares {declared} bytes, at most {most} are taken")]
    TooLarge {
        /// In the header.
        declared: u64,
        /// The limit.
        most: u64,
    },
    /// A weight that no site can have.
    #[error("the update declares {0} examples; 1 to {WEIGHT_MAX} are taken")]
    Weight(u32),
}

/// Whether `header` is `peer`'s own, by name and signature.
///
/// # Errors
/// [`HeaderError::Site`] or [`HeaderError::Signature`].
pub fn check_origin(
    header: &UpdateHeader,
    bytes: &[u8],
    signature: &[u8],
    peer: &SiteId,
    key: &VerifyingKey,
) -> Result<(), HeaderError> {
    if header.site != *peer {
        let named = header.site.clone();
        return Err(HeaderError::Site { named, peer: peer.clone() });
    }
    if note::verify_context(key, CONTEXT, bytes, signature) {
        Ok(())
    } else {
        Err(HeaderError::Signature(peer.clone()))
    }
}

/// Whether `header` is what the round expects; at most `bytes_max` bytes are taken.
///
/// # Errors
/// [`HeaderError`]: the first thing that is not as expected.
pub fn check_header(
    header: &UpdateHeader,
    expected: &Expectation,
    bytes_max: u64,
) -> Result<(), HeaderError> {
    if header.payload_bytes > bytes_max {
        return Err(HeaderError::TooLarge { declared: header.payload_bytes, most: bytes_max });
    }
    if header.round != expected.round {
        return Err(HeaderError::Round { named: header.round.number, open: expected.round.number });
    }
    if header.base != expected.base {
        return Err(HeaderError::Base { named: header.base, base: expected.base });
    }
    let shape = |what: String, asked: String| Err(HeaderError::Shape { what, asked });
    if header.manifest != expected.manifest {
        return shape(
            format!("manifest {}", header.manifest),
            format!("manifest {}", expected.manifest),
        );
    }
    if header.params != expected.params {
        return shape(format!("{} values", header.params), expected.params.to_string());
    }
    let grid = |e: &Encoding| format!("{} bits in steps of {:e}", e.bits(), e.step());
    if header.encoding != expected.encoding {
        return shape(grid(&header.encoding), grid(&expected.encoding));
    }
    let bytes = expected.params * expected.encoding.bytes_per_value() as u64;
    if header.payload_bytes != bytes {
        return shape(format!("{} bytes", header.payload_bytes), bytes.to_string());
    }
    if header.mechanism != expected.mechanism {
        return shape(
            format!("mechanism `{}`", header.mechanism),
            format!("`{}`", expected.mechanism),
        );
    }
    if header.cohort != expected.cohort {
        let of =
            |c: &Option<Digest>| c.map_or("no masks".into(), |c| format!("masks of cohort {c}"));
        return shape(of(&header.cohort), of(&expected.cohort));
    }
    let weight_ok = match expected.weights {
        Weights::Examples => (1..=WEIGHT_MAX).contains(&header.weight),
        Weights::Uniform => header.weight == 1,
    };
    if weight_ok { Ok(()) } else { Err(HeaderError::Weight(header.weight)) }
}
