//! Who stands behind a key: the certificates of a bundle, held against the issuers that the coordinator trusted when an
//! entry was written, and against those that the auditor knows from elsewhere.

use ed25519_dalek::VerifyingKey;
use falaj_certs::{
    identity::Identity,
    trust::{IssuerEntry, TrustFile, TrustStore, spki_sha256},
};
use falaj_core::{
    id::{Digest, SpiffeId},
    time::Timestamp,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// Whom the bundle's certificates name, and who vouches for it.
#[derive(Default)]
pub(crate) struct Identities {
    /// What the auditor trusts; anything goes without it.
    pinned: Option<TrustFile>,
    /// Issuers' certificates by the digest of their key.
    issuers: BTreeMap<Digest, CertificateDer<'static>>,
    /// Trust configurations by digest. What nobody whom the auditor knows vouches for is not in them.
    trusts: BTreeMap<Digest, Option<TrustStore>>,
    certificates: BTreeMap<Digest, Certificate>,
    /// The trust configuration under which the coordinator works.
    in_force: Option<Digest>,
}

/// A certificate, and the trust configurations under which somebody vouches for it.
struct Certificate {
    identity: Identity,
    vouched: Vec<Digest>,
}

impl Identities {
    /// Identities, of which only those count that an issuer in `pinned` vouches for.
    pub(crate) fn pinned(pinned: Option<&TrustFile>) -> Self {
        Self { pinned: pinned.cloned(), ..Self::default() }
    }

    /// An issuer's certificate.
    pub(crate) fn take_issuer(&mut self, der: Vec<u8>) -> Result<(), String> {
        let der = CertificateDer::from(der);
        self.issuers.insert(spki_sha256(&der)?, der);
        Ok(())
    }

    /// A trust configuration; its issuers have come before.
    pub(crate) fn take_trust(&mut self, path: &str, bytes: &[u8]) -> Result<(), String> {
        let text = str::from_utf8(bytes).map_err(|e| e.to_string())?;
        let mut file = TrustFile::parse(Path::new(path), text).map_err(|e| chain(&e))?;
        if let Some(pinned) = &self.pinned {
            if pinned.trust_domain != file.trust_domain {
                file.issuers.clear();
            }
            for IssuerEntry { spki_sha256, places, .. } in &mut file.issuers {
                places.retain(|place| vouches(pinned, spki_sha256, place));
            }
            file.issuers.retain(|issuer| !issuer.places.is_empty());
        }
        let store = if file.issuers.is_empty() {
            None
        } else {
            let issuer = |entry: &IssuerEntry| {
                let spki: Digest =
                    entry.spki_sha256.parse().map_err(|_| "its key is no SHA-256")?;
                let missing = || format!("the issuer with key {spki} does not stand before it");
                self.issuers.get(&spki).cloned().ok_or_else(missing)
            };
            Some(TrustStore::of(Path::new(path), &file, issuer).map_err(|e| chain(&e))?)
        };
        self.trusts.insert(Digest::of(bytes), store);
        Ok(())
    }

    /// A certificate; every trust configuration has come before. Gives the key of the one whom it names, if an issuer
    /// vouches for that; others belong to those who were refused.
    pub(crate) fn take_certificate(
        &mut self,
        digest: Digest,
        der: Vec<u8>,
    ) -> Option<(SpiffeId, VerifyingKey)> {
        let der = CertificateDer::from(der);
        let identity = Identity::parse(&der).ok()?;
        let issued = u64::try_from(identity.not_before).unwrap_or_default();
        let issued = UnixTime::since_unix_epoch(Duration::from_secs(issued));
        let vouches = |store: &Option<TrustStore>| {
            store.as_ref().is_some_and(|s| s.identify_at(&der, issued).is_ok())
        };
        let vouched: Vec<Digest> =
            self.trusts.iter().filter(|(_, s)| vouches(s)).map(|(d, _)| *d).collect();
        let named = (!vouched.is_empty())
            .then(|| VerifyingKey::from_bytes(&identity.public_key).ok())
            .flatten()
            .map(|key| (identity.spiffe.clone(), key));
        self.certificates.insert(digest, Certificate { identity, vouched });
        named
    }

    /// The coordinator begins to work under this trust configuration.
    pub(crate) fn start(&mut self, trust: Digest) -> Result<(), String> {
        if !self.trusts.contains_key(&trust) {
            return Err(format!("its trust configuration {trust} is not in the bundle"));
        }
        self.in_force = Some(trust);
        Ok(())
    }

    /// Whether `who` is named by the certificate with this digest, and somebody who was trusted then vouches for it.
    pub(crate) fn check(&self, who: &SpiffeId, cert: &Digest) -> Result<(), String> {
        let Some(held) = self.certificates.get(cert) else {
            return Err(format!("the certificate {cert} is not in the bundle"));
        };
        if held.identity.spiffe != *who {
            return Err(format!(
                "the certificate {cert} names {}, not {who}",
                held.identity.spiffe
            ));
        }
        if !self.in_force.is_some_and(|trust| held.vouched.contains(&trust)) {
            let also = if self.pinned.is_some() { " and that you know" } else { "" };
            return Err(format!(
                "no issuer that the coordinator trusted then{also} vouches for {who} by the certificate {cert}"
            ));
        }
        Ok(())
    }

    /// Whether the certificate with this digest was valid at `ts`.
    pub(crate) fn check_valid(&self, cert: &Digest, ts: &str) -> Result<(), String> {
        let Some(Certificate { identity, .. }) = self.certificates.get(cert) else { return Ok(()) };
        let time = |s: i64| Timestamp::from_millis(s.saturating_mul(1_000)).to_string();
        let (from, until) = (time(identity.not_before), time(identity.not_after));
        if *ts < *from || *ts > *until {
            return Err(format!(
                "the certificate {cert} is valid from {from} to {until}, not then"
            ));
        }
        Ok(())
    }
}

fn vouches(trust: &TrustFile, spki: &str, place: &str) -> bool {
    trust.issuers.iter().any(|i| i.spki_sha256 == spki && i.places.iter().any(|p| p == place))
}

/// An error with its causes.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}
