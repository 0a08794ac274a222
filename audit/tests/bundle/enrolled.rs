//! Sites that enrol by tokens, and what becomes of whoever was revoked.

use super::{
    Parts,
    fixture::{Cast, SITE, by_minutes, minute},
};
use falaj_core::audit::{Actor, Draft, Kind};

const TOKEN: &str = "0a1b";

/// A token for a site, until a minute, and what comes after it.
fn enrolled(site: &str, until: usize, more: impl FnOnce(&Cast) -> Vec<Draft>) -> Parts {
    by_minutes(|drafts, cast| {
        drafts.push(offered(cast, site, until));
        drafts.extend(more(cast));
    })
}

fn offered(cast: &Cast, site: &str, until: usize) -> Draft {
    about(cast, Kind::EnrolmentOffered, site).text("until", &minute(until).to_string())
}

/// What the operator does about a token.
fn about(cast: &Cast, kind: Kind, site: &str) -> Draft {
    let draft = cast.may(kind, &cast.operator, "site.enroll", &["ACC-204"]);
    draft.text("token", TOKEN).text("identity", site)
}

/// The site is given the certificate by which somebody acts.
fn given(holder: &Actor) -> Draft {
    let cert = holder.cert.expect("a certificate");
    let draft = Draft::new(Kind::SiteEnrolled).text("token", TOKEN).text("identity", SITE);
    draft.digest("cert_sha256", &cert)
}

#[test]
fn a_site_that_enrolled_by_a_token_that_was_not_for_it_is_named() {
    enrolled(SITE, 9, |cast| vec![given(&cast.site)]).verify().expect("verified");
    let other = "spiffe://t/ae-on/ae-az/site/h-2";
    let back = |cast: &Cast| vec![about(cast, Kind::EnrolmentWithdrawn, SITE), given(&cast.site)];
    for (bundle, at, says) in [
        (enrolled(SITE, 9, back), 7, "had been taken back"),
        (enrolled(other, 9, |cast| vec![given(&cast.site)]), 6, "is another site's"),
        (enrolled(SITE, 9, |cast| vec![offered(cast, SITE, 9)]), 6, "made before"),
    ] {
        let (index, what) = bundle.wrong();
        assert!(index == at && what.contains(says), "{index}: {what}");
    }
}

#[test]
fn a_token_is_for_one_key_and_for_a_while() {
    // The same certificate again, and another about the same key, whenever that is.
    enrolled(SITE, 7, |cast| [&cast.site, &cast.site, &cast.renewed].map(given).into())
        .verify()
        .expect("verified");
    let twice = enrolled(SITE, 9, |cast| [&cast.site, &cast.rekeyed].map(given).into());
    let (index, what) = twice.wrong();
    assert!(index == 7 && what.contains("another key by the same token"), "{index}: {what}");
    // The first entry after the token is made in minute 6; whoever comes late comes within ten minutes.
    let waiting = |minutes: usize| {
        enrolled(SITE, 6, |cast| {
            let looks = cast.may(Kind::AdminRead, &cast.operator, "status.read", &["ACC-205"]);
            [vec![looks; minutes], vec![given(&cast.site)]].concat()
        })
    };
    waiting(10).verify().expect("verified");
    let (index, what) = waiting(11).wrong();
    assert!(index == 17 && what.contains("could be used until 2023-"), "{index}: {what}");
}

/// Only a shard before this one can have made a token of which this one says nothing.
#[test]
fn a_token_that_nobody_made_is_missed_where_the_log_begins() {
    let (index, what) = by_minutes(|drafts, cast| drafts.push(given(&cast.site))).wrong();
    assert!(index == 5 && what.contains("no entry before it makes the token"), "{index}: {what}");
    let (statements, opened, rotated) = super::continued();
    let goes_on = |more: fn(&Cast) -> Vec<Draft>| {
        let bundle = by_minutes(|drafts, cast| {
            drafts.insert(0, opened.clone());
            drafts.insert(2, rotated.clone());
            drafts.extend(more(cast));
        });
        bundle.saying(&statements)
    };
    goes_on(|cast| [&cast.site, &cast.renewed].map(given).into()).verify().expect("verified");
    let (_, what) = goes_on(|cast| [&cast.site, &cast.rekeyed].map(given).into()).wrong();
    assert!(what.contains("another key by the same token"), "{what}");
    let back = |cast: &Cast| vec![about(cast, Kind::EnrolmentWithdrawn, SITE), given(&cast.site)];
    assert!(goes_on(back).wrong().1.contains("had been taken back"));
}

/// TLS-02, ADR 10: whoever holds a log sees that a key that was revoked was out, whatever its certificate.
#[test]
fn whoever_is_served_by_another_certificate_about_a_revoked_key_is_named() {
    let then = |comes: fn(&Cast) -> &Actor| {
        by_minutes(|drafts, cast| {
            let cert = cast.site.cert.expect("a certificate");
            let by = &cast.operator;
            let revokes = cast.may(Kind::CertificateRevoked, by, "site.revoke", &["ACC-204"]);
            drafts.push(revokes.digest("cert_sha256", &cert));
            drafts.push(cast.may(Kind::ConnectionAdmitted, comes(cast), "connect", &["ACC-100"]));
        })
    };
    then(|cast| &cast.rekeyed).verify().expect("verified");
    let (index, what) = then(|cast| &cast.renewed).wrong();
    assert!(index == 6 && what.contains("was revoked by entry 5"), "{index}: {what}");
}
