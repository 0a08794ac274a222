//! Cohorts of made-up sites, for the benchmarks of privacy and of utility.

use anyhow::Result;
use ed25519_dalek::SigningKey;
use falaj_core::{
    id::{Digest, RoundId},
    secagg::{Cohort, Member},
    update::{About, Encoding, SealedUpdate},
};

fn round() -> RoundId {
    RoundId { study: "bench".parse().expect("valid"), number: 1 }
}

/// A site's key.
pub(crate) fn signer(i: usize) -> SigningKey {
    SigningKey::from_bytes(Digest::of(&(i as u64).to_le_bytes()).as_bytes())
}

/// `n` sites on these terms: the threshold, and how many may collude.
pub(crate) fn cohort(
    n: usize,
    terms: (u32, u32),
    encoding: Encoding,
    params: usize,
) -> Result<Cohort> {
    let member = |i: usize| -> Result<Member> {
        let site = format!("spiffe://t/ae-on/ae-az/site/h{i:03}").parse()?;
        Ok(Member { site, key: signer(i).verifying_key() })
    };
    let members = (0..n).map(member).collect::<Result<Vec<_>>>()?;
    Ok(Cohort::new((round(), 0), members, terms, encoding, params)?)
}

/// What travels of an update.
pub(crate) fn update_bytes(update: SealedUpdate) -> Vec<u8> {
    let about = About {
        round: round(),
        site: "spiffe://t/ae-on/ae-az/site/h".parse().expect("valid"),
        base: Digest::of(b"base"),
        manifest: Digest::of(b"manifest"),
        weight: 1,
        epsilon: "1".into(),
        ledger: Digest::of(b"ledger"),
    };
    update.sign(about, &signer(0)).expect("signs").payload().to_vec()
}
