//! Whom operators have revoked, as the log goes on: none of them is let in or served afterwards, nor is anybody by another
//! certificate about a key that was revoked.
//!
//! Lists of issuers and the coordinator's deny file are not in a log, and what they say is not known here.

use crate::acts::is_let;
use falaj_core::{
    audit::{Entry, Kind},
    id::Digest,
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

/// What was let in before something else came into force has its entry so long after it, at most, in milliseconds.
pub(crate) const UNDER_WAY_MS: u64 = 5_000;

/// Identities, people and certificates that are revoked: the entry that says so, and from when on nobody of that name may
/// be served.
#[derive(Default)]
pub(crate) struct Revoked {
    names: BTreeMap<String, (u64, Timestamp)>,
    /// The keys of certificates among them, and which those are.
    keys: BTreeMap<[u8; 32], BTreeSet<String>>,
}

impl Revoked {
    /// The next entry of the log. `key` finds what a certificate is about.
    pub(crate) fn take(
        &mut self,
        entry: &Entry,
        key: impl Fn(&Digest) -> Option<[u8; 32]>,
    ) -> Result<(), String> {
        // Whoever revokes or reinstates may be revoked as well.
        self.check(entry, &key)?;
        match entry.kind {
            Kind::CertificateRevoked => {
                let at = Timestamp::parse(&entry.ts);
                let at = at.ok_or_else(|| format!("`{}` is no time", entry.ts))?;
                let whom = subject(entry)?;
                if let Some(key) = certificate(entry).and_then(|cert| key(&cert)) {
                    self.keys.entry(key).or_default().insert(whom.clone());
                }
                // Revoked again is revoked since the first time.
                self.names.entry(whom).or_insert((entry.seq, at.plus_ms(UNDER_WAY_MS)));
            }
            Kind::CertificateReinstated => {
                let whom = subject(entry)?;
                if let Some(names) =
                    certificate(entry).and_then(|cert| self.keys.get_mut(&key(&cert)?))
                {
                    names.remove(&whom);
                }
                // The revocation may stand in an earlier shard.
                self.names.remove(&whom);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether nobody of this name may be heard at this time.
    pub(crate) fn is_out(&self, name: &str, at: Timestamp) -> bool {
        self.names.get(name).is_some_and(|(_, until)| at > *until)
    }

    fn check(
        &self,
        entry: &Entry,
        key: impl Fn(&Digest) -> Option<[u8; 32]>,
    ) -> Result<(), String> {
        let given = matches!(entry.kind, Kind::SiteEnrolled | Kind::CertificateRenewed);
        let served = given || entry.kind == Kind::SiteJoined || is_let(entry.kind);
        if self.names.is_empty() || !served {
            return Ok(());
        }
        // Where nobody acts, it is about the site that is named.
        let named =
            if given { entry.body().find_text("identity").map(str::to_owned) } else { None };
        let cert = if given { certificate(entry) } else { None };
        let names = [
            entry.requester().map(|id| id.to_string()),
            entry.actor_person().map(|person| person.to_string()),
            entry.actor_cert().map(|cert| cert.to_string()),
            named,
        ];
        for name in names.into_iter().flatten() {
            if let Some(by) = self.since(&name, entry) {
                return Err(format!(
                    "{name} was revoked by entry {by}, and is served all the same"
                ));
            }
        }
        if self.keys.is_empty() {
            return Ok(());
        }
        for cert in [entry.actor_cert(), cert].into_iter().flatten() {
            let mut names = key(&cert).and_then(|key| self.keys.get(&key)).into_iter().flatten();
            if let Some(by) = names.find_map(|name| self.since(name, entry)) {
                return Err(format!(
                    "the key of the certificate {cert} was revoked by entry {by}, and whoever has it is served all the same"
                ));
            }
        }
        Ok(())
    }

    /// The entry by which a name was revoked, if nobody of that name may be served any more by the time of another.
    fn since(&self, name: &str, entry: &Entry) -> Option<u64> {
        let (by, until) = self.names.get(name)?;
        Timestamp::parse(&entry.ts).is_none_or(|ts| ts > *until).then_some(*by)
    }
}

/// The certificate that an entry is about.
fn certificate(entry: &Entry) -> Option<Digest> {
    entry.body().find("cert_sha256")
}

/// Whom a revocation is about.
fn subject(entry: &Entry) -> Result<String, String> {
    let body = entry.body();
    let named = body.text("identity").or_else(|_| body.text("cert_sha256")).map(str::to_owned);
    let person = entry.person().map(|person| person.to_string());
    named.ok().or(person).ok_or_else(|| "it names nobody who is revoked".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::{
        audit::{Actor, Draft, person::Person},
        id::Digest,
    };

    const SITE: &str = "spiffe://t/ae-on/ae-az/site/hospital-1";
    const RENEWED: &str = "its next certificate";

    /// Takes entries, each with its time in seconds: what is wrong with the first that is not taken.
    fn taken(drafts: Vec<(u32, Draft)>) -> Result<(), String> {
        let mut revoked = Revoked::default();
        // The two certificates of a site are about one key.
        let key = |cert: &Digest| [SITE, RENEWED].iter().any(|c| of(c) == *cert).then_some([9; 32]);
        for (seq, (at, draft)) in (0..).zip(drafts) {
            let at = Timestamp::from_millis(i64::from(at) * 1_000);
            let entry = Entry::parse(&draft.finish(seq, at, [0; 16])).expect("an entry");
            revoked.take(&entry, key).map_err(|what| format!("{seq}: {what}"))?;
        }
        Ok(())
    }

    fn of(cert: &str) -> Digest {
        Digest::of(cert.as_bytes())
    }

    fn by(id: &str) -> Actor {
        let cert = Some(of(id));
        Actor { id: Some(id.parse().expect("valid")), cert, ..Actor::default() }
    }

    fn revoked() -> Draft {
        Draft::new(Kind::CertificateRevoked).text("identity", SITE)
    }

    fn admitted() -> Draft {
        Draft::new(Kind::ConnectionAdmitted).actor(&by(SITE))
    }

    /// Shows TLS-02: whoever verifies a log sees that whom it revokes was out.
    #[test]
    fn whoever_is_served_after_they_were_revoked_is_named() {
        assert_eq!(taken(vec![(0, admitted()), (9, revoked()), (14, admitted())]), Ok(()));
        let late = taken(vec![(0, admitted()), (9, revoked()), (15, admitted())]);
        let late = late.expect_err("it was revoked");
        assert!(
            late.starts_with("2: ") && late.contains(SITE) && late.contains("entry 1"),
            "{late}"
        );
        let lost = Draft::new(Kind::CertificateRevoked).digest("cert_sha256", &of(SITE));
        assert!(taken(vec![(0, lost), (60, admitted())]).is_err());
        let omar = Person([8; 16]);
        let read =
            Draft::new(Kind::AdminRead).actor(&Actor { person: Some(omar), ..Actor::default() });
        let gone = Draft::new(Kind::CertificateRevoked).person(omar);
        assert!(taken(vec![(0, gone), (60, read)]).is_err());
    }

    #[test]
    fn whoever_was_reinstated_is_served_again_and_nobody_else_is_touched() {
        let back = || Draft::new(Kind::CertificateReinstated).text("identity", SITE);
        let all = vec![(0, revoked()), (60, back()), (120, admitted())];
        assert_eq!(taken(all), Ok(()));
        assert_eq!(taken(vec![(0, back()), (60, admitted())]), Ok(()));
        let other = "spiffe://t/ae-on/ae-az/site/hospital-2";
        let theirs = Draft::new(Kind::ConnectionAdmitted).actor(&by(other));
        assert_eq!(taken(vec![(0, revoked()), (60, theirs)]), Ok(()));
    }

    #[test]
    fn nothing_is_done_for_whoever_was_revoked_and_nothing_by_them() {
        let omar = Person([8; 16]);
        let gone = Draft::new(Kind::CertificateRevoked).person(omar);
        let by_omar = Actor { person: Some(omar), ..Actor::default() };
        for kind in [
            Kind::EnrolmentOffered,
            Kind::EnrolmentWithdrawn,
            Kind::HoldPlaced,
            Kind::HoldReleased,
            Kind::ErasureBegun,
            Kind::PruningBegun,
            Kind::StudySubmitted,
            Kind::CertificateRevoked,
            Kind::CertificateReinstated,
        ] {
            let done = || Draft::new(kind).text("identity", SITE).actor(&by_omar);
            assert_eq!(taken(vec![(0, gone.clone()), (5, done())]), Ok(()), "{kind}");
            assert!(taken(vec![(0, gone.clone()), (60, done())]).is_err(), "{kind}");
        }
        // Nor does anybody come back by their own word.
        let back = Draft::new(Kind::CertificateReinstated).person(omar).actor(&by_omar);
        assert!(taken(vec![(0, gone), (60, back)]).is_err());
        let evidence = Draft::new(Kind::EvidenceTaken).actor(&by(SITE));
        let named = |kind| Draft::new(kind).text("site", SITE);
        let enrolled = Draft::new(Kind::SiteEnrolled).text("identity", SITE);
        for done in [evidence, named(Kind::SiteJoined), named(Kind::TaskSent), enrolled] {
            let late = taken(vec![(0, revoked()), (60, done)]).expect_err("it was revoked");
            assert!(late.starts_with("1: ") && late.contains("entry 0"), "{late}");
        }
    }

    /// ADR 10: to revoke a certificate is to revoke its key.
    #[test]
    fn whoever_comes_by_another_certificate_about_a_revoked_key_is_named() {
        let about = |kind, cert| Draft::new(kind).digest("cert_sha256", &of(cert));
        let gone = || about(Kind::CertificateRevoked, SITE);
        let next = || {
            let actor = Actor { cert: Some(of(RENEWED)), ..by(SITE) };
            Draft::new(Kind::ConnectionAdmitted).actor(&actor)
        };
        let late = taken(vec![(0, gone()), (60, next())]).expect_err("its key was revoked");
        assert!(late.contains("the key of the certificate"), "{late}");
        let enrolled = about(Kind::SiteEnrolled, RENEWED);
        assert!(taken(vec![(0, gone()), (60, enrolled)]).is_err());
        let back = |cert| about(Kind::CertificateReinstated, cert);
        assert_eq!(taken(vec![(0, gone()), (60, back(SITE)), (120, next())]), Ok(()));
        let both = vec![
            (0, gone()),
            (1, about(Kind::CertificateRevoked, RENEWED)),
            (60, back(RENEWED)),
            (120, next()),
        ];
        assert!(taken(both).is_err(), "the other one stays revoked, and so does the key");
        // Another key of the same site's goes on.
        let other = Actor { cert: Some(of("of another key")), ..by(SITE) };
        let other = Draft::new(Kind::ConnectionAdmitted).actor(&other);
        assert_eq!(taken(vec![(0, gone()), (60, other)]), Ok(()));
    }
}
