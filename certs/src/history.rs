//! Whom a federation trusted over time: certificates that were kept, held against the trust configurations under which the
//! coordinator worked, and against what somebody knows from elsewhere.

use crate::{
    identity::Identity,
    trust::{IssuerEntry, TrustFile, TrustStore, spki_sha256},
};
use ed25519_dalek::VerifyingKey;
use falaj_core::{
    id::{Digest, Role, SpiffeId},
    report::Holder,
    time::Timestamp,
    witness::WitnessKey,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// A request that was let in under a trust configuration has its entry so long after the next one is in force, at most.
const UNDER_WAY: Duration = Duration::from_secs(5);

/// Whom certificates name, and who vouched for it when. Issuers are taken first, then trust configurations, then
/// certificates.
#[derive(Default)]
pub struct History {
    /// What is known from elsewhere; anything goes without it.
    pinned: Option<TrustFile>,
    /// Issuers' certificates by the digest of their key.
    issuers: BTreeMap<Digest, CertificateDer<'static>>,
    /// Trust configurations by digest.
    trusts: BTreeMap<Digest, TrustStore>,
    certificates: BTreeMap<Digest, Certificate>,
    /// Outside witnesses by their keys' text, and whether somebody known names them.
    outside: BTreeMap<String, (WitnessKey, bool)>,
    /// The trust configuration under which the coordinator works.
    in_force: Option<Digest>,
    /// The one before, and until when entries may still rest on it.
    before: Option<(Digest, Timestamp)>,
}

/// A certificate, the trust configurations under which somebody vouches for it, and whether that somebody is known.
struct Certificate {
    identity: Identity,
    vouched: Vec<Digest>,
    known: bool,
}

impl History {
    /// A history in which only those are known for whom an issuer in `pinned` vouches, if it is given.
    #[must_use]
    pub fn pinned(pinned: Option<&TrustFile>) -> Self {
        Self { pinned: pinned.cloned(), ..Self::default() }
    }

    /// An issuer's certificate.
    ///
    /// # Errors
    /// What keeps it from being read.
    pub fn take_issuer(&mut self, der: Vec<u8>) -> Result<(), String> {
        let der = CertificateDer::from(der);
        self.issuers.insert(spki_sha256(&der)?, der);
        Ok(())
    }

    /// A trust configuration, which is called `path` in errors; its issuers have come before.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take_trust(&mut self, path: &str, bytes: &[u8]) -> Result<(), String> {
        let text = str::from_utf8(bytes).map_err(|e| e.to_string())?;
        let file = TrustFile::parse(Path::new(path), text).map_err(|e| chain(&e))?;
        let issuer = |entry: &IssuerEntry| {
            let spki: Digest = entry.spki_sha256.parse().map_err(|_| "its key is no SHA-256")?;
            let missing = || format!("the issuer with key {spki} does not stand before it");
            self.issuers.get(&spki).cloned().ok_or_else(missing)
        };
        for key in file.witness_keys(Path::new(path)).map_err(|e| chain(&e))? {
            let text = key.to_string();
            let known = self.pinned.as_ref().is_none_or(|trust| {
                trust.witnesses.iter().any(|witness| witness.key.trim() == text)
            });
            self.outside.insert(text, (key, known));
        }
        let store = TrustStore::of(Path::new(path), &file, issuer).map_err(|e| chain(&e))?;
        self.trusts.insert(Digest::of(bytes), store);
        Ok(())
    }

    /// A certificate. Gives whom it names if an issuer vouches for that; others belong to those who were refused.
    pub fn take_certificate(&mut self, digest: Digest, der: Vec<u8>) -> Option<Holder> {
        let der = CertificateDer::from(der);
        let identity = Identity::parse(&der).ok()?;
        let issued = u64::try_from(identity.not_before).unwrap_or_default();
        let issued = UnixTime::since_unix_epoch(Duration::from_secs(issued));
        let (mut vouched, mut by) = (Vec::new(), None);
        for (trust, store) in &self.trusts {
            if let Ok((_, issuer)) = store.identify_at(&der, issued) {
                vouched.push(*trust);
                by = Some(issuer);
            }
        }
        let known = |issuer: &Digest| {
            self.pinned.as_ref().is_none_or(|trust| {
                let place = identity.spiffe.place().to_string();
                identity.spiffe.trust_domain() == trust.trust_domain
                    && vouches(trust, &issuer.to_string(), &place)
            })
        };
        let holder = by.map(|issuer| Holder {
            id: identity.spiffe.clone(),
            issuer,
            from: time(identity.not_before),
            until: time(identity.not_after),
        });
        let known = by.as_ref().is_some_and(known);
        self.certificates.insert(digest, Certificate { identity, vouched, known });
        holder
    }

    /// The key of a certificate for whose holder somebody known vouches.
    #[must_use]
    pub fn key(&self, cert: &Digest) -> Option<VerifyingKey> {
        let held = self.certificates.get(cert).filter(|held| held.known)?;
        VerifyingKey::from_bytes(&held.identity.public_key).ok()
    }

    /// Who has cosigned a checkpoint, and when as each says: sites and witnesses for whom somebody vouches,
    /// and outside witnesses by name, in order.
    ///
    /// # Errors
    /// A cosignature under one of their names that does not verify, and one by somebody whom nobody known vouches for.
    pub fn cosigned(&self, note: &str) -> Result<BTreeMap<String, String>, String> {
        let mut found: BTreeMap<String, u64> = BTreeMap::new();
        for held in self.certificates.values().filter(|held| !held.vouched.is_empty()) {
            let party = &held.identity.spiffe;
            if !matches!(party.role(), Role::Site | Role::Witness) {
                continue;
            }
            let key = WitnessKey::of_party(party, &held.identity.public_key)
                .map_err(|e| e.to_string())?;
            let Some(seconds) = key.cosigned(note).map_err(|e| e.to_string())? else { continue };
            if !held.known {
                return Err(format!("no issuer that you trust vouches for its witness {party}"));
            }
            let newest = found.entry(party.to_string()).or_default();
            *newest = seconds.max(*newest);
        }
        for (key, known) in self.outside.values() {
            let Some(seconds) = key.cosigned(note).map_err(|e| e.to_string())? else { continue };
            if !known {
                return Err(format!(
                    "your trust configuration does not name its witness {key}: add it under [[witness]] if you know it"
                ));
            }
            let newest = found.entry(key.name().to_owned()).or_default();
            *newest = seconds.max(*newest);
        }
        let text = |s: u64| time(i64::try_from(s).unwrap_or(i64::MAX)).to_string();
        Ok(found.into_iter().map(|(id, seconds)| (id, text(seconds))).collect())
    }

    /// The coordinator begins to work under this trust configuration.
    ///
    /// # Errors
    /// When it was never taken.
    pub fn start(&mut self, trust: Digest) -> Result<(), String> {
        if !self.trusts.contains_key(&trust) {
            return Err(format!("its trust configuration {trust} is not in the bundle"));
        }
        self.in_force = Some(trust);
        self.before = None;
        Ok(())
    }

    /// The coordinator, which goes on, works under this trust configuration from `ts` on, as entries have it. What was
    /// under way then was let in under the one before, and has its entry at most five seconds later.
    ///
    /// # Errors
    /// When it was never taken.
    pub fn go_on(&mut self, trust: Digest, ts: &str) -> Result<(), String> {
        let before = self.in_force;
        self.start(trust)?;
        let since = Timestamp::parse(ts).ok_or_else(|| format!("`{ts}` is no time"))?;
        let until = since.plus_ms(u64::try_from(UNDER_WAY.as_millis()).unwrap_or(u64::MAX));
        self.before = before.filter(|before| *before != trust).map(|before| (before, until));
        Ok(())
    }

    /// Whether the coordinator trusted whoever vouches for a certificate, at `ts`.
    fn trusted_then(&self, held: &Certificate, ts: &str) -> bool {
        let vouched = |trust: &Digest| held.vouched.contains(trust);
        self.in_force.as_ref().is_some_and(vouched)
            || self.before.as_ref().is_some_and(|(before, until)| {
                vouched(before) && Timestamp::parse(ts).is_some_and(|ts| ts <= *until)
            })
    }

    /// Whether `who` is named by the certificate with this digest, and somebody vouches for it who was trusted at `ts` and
    /// is known.
    ///
    /// # Errors
    /// What speaks against it.
    pub fn check(&self, who: &SpiffeId, cert: &Digest, ts: &str) -> Result<(), String> {
        let Some(held) = self.certificates.get(cert) else {
            return Err(format!("the certificate {cert} is not in the bundle"));
        };
        if held.identity.spiffe != *who {
            return Err(format!(
                "the certificate {cert} names {}, not {who}",
                held.identity.spiffe
            ));
        }
        if !self.trusted_then(held, ts) {
            return Err(format!(
                "no issuer that the coordinator trusted then vouches for {who} by the certificate {cert}"
            ));
        }
        if !held.known {
            return Err(format!(
                "no issuer that you trust vouches for {who} by the certificate {cert}"
            ));
        }
        Ok(())
    }

    /// Whether the certificate with this digest was valid at `ts`, RFC 3339 in UTC.
    ///
    /// # Errors
    /// From when to when it is valid.
    pub fn check_valid(&self, cert: &Digest, ts: &str) -> Result<(), String> {
        let Some(Certificate { identity, .. }) = self.certificates.get(cert) else { return Ok(()) };
        let from = time(identity.not_before).to_string();
        let until = time(identity.not_after).to_string();
        if *ts < *from || *ts > *until {
            return Err(format!(
                "the certificate {cert} is valid from {from} to {until}, not then"
            ));
        }
        Ok(())
    }
}

/// From whole seconds.
const fn time(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds.saturating_mul(1_000))
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
