//! Whom operators have revoked, as the log goes on: none of them is let in or served afterwards.
//!
//! Lists of issuers and the coordinator's deny file are not in a log, and what they say is not known here.

use falaj_core::{
    audit::{Entry, Kind},
    time::Timestamp,
};
use std::collections::BTreeMap;

/// What was let in before a revocation has its entry so long after it, at most, in milliseconds.
const UNDER_WAY_MS: u64 = 5_000;

/// Identities, people and certificates that are revoked: the entry that says so, and from when on nobody of that name may
/// be served.
#[derive(Default)]
pub(crate) struct Revoked(BTreeMap<String, (u64, Timestamp)>);

impl Revoked {
    /// The next entry of the log.
    pub(crate) fn take(&mut self, entry: &Entry) -> Result<(), String> {
        match entry.kind {
            Kind::CertificateRevoked => {
                let at = Timestamp::parse(&entry.ts);
                let at = at.ok_or_else(|| format!("`{}` is no time", entry.ts))?;
                let whom = subject(entry)?;
                // Revoked again is revoked since the first time.
                self.0.entry(whom).or_insert((entry.seq, at.plus_ms(UNDER_WAY_MS)));
            }
            Kind::CertificateReinstated => {
                // The revocation may stand in an earlier shard.
                self.0.remove(&subject(entry)?);
            }
            Kind::ConnectionAdmitted
            | Kind::StudySubmitted
            | Kind::UpdateAccepted
            | Kind::ExchangeAnswered
            | Kind::CertificateRenewed
            | Kind::ModelRead
            | Kind::AdminRead
            | Kind::LogExported => self.check(entry)?,
            _ => {}
        }
        Ok(())
    }

    fn check(&self, entry: &Entry) -> Result<(), String> {
        if self.0.is_empty() {
            return Ok(());
        }
        let names = [
            entry.actor_id().map(ToString::to_string),
            entry.actor_person().map(|person| person.to_string()),
            entry.actor_cert().map(|cert| cert.to_string()),
        ];
        for name in names.into_iter().flatten() {
            if let Some((by, until)) = self.0.get(&name)
                && Timestamp::parse(&entry.ts).is_none_or(|ts| ts > *until)
            {
                return Err(format!(
                    "{name} was revoked by entry {by}, and is served all the same"
                ));
            }
        }
        Ok(())
    }
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

    /// Takes entries, each with its time in seconds: what is wrong with the first that is not taken.
    fn taken(drafts: Vec<(u32, Draft)>) -> Result<(), String> {
        let mut revoked = Revoked::default();
        for (seq, (at, draft)) in (0..).zip(drafts) {
            let at = Timestamp::from_millis(i64::from(at) * 1_000);
            let entry = Entry::parse(&draft.finish(seq, at, [0; 16])).expect("an entry");
            revoked.take(&entry).map_err(|what| format!("{seq}: {what}"))?;
        }
        Ok(())
    }

    fn by(id: &str) -> Actor {
        let cert = Some(Digest::of(id.as_bytes()));
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
        let lost = Draft::new(Kind::CertificateRevoked)
            .digest("cert_sha256", &Digest::of(SITE.as_bytes()));
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
}
