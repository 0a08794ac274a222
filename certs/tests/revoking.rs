//! Which revocation lists are taken, and what the TLS library makes of them.

use falaj_certs::{
    ca::{Authority, CRL_DAYS, Request, first_certificate},
    revocation::{CrlError, Crls, ListFile},
    tls::{client_verifier, tls_reason},
    trust::TrustStore,
};
use falaj_core::id::{Place, Role};
use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope,
    Issuer, KeyIdMethod, KeyPair, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{CertificateRevocationListDer, UnixTime, pem::PemObject as _};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

fn place(text: &str) -> Place {
    text.parse().expect("a place")
}

/// An authority with one issuer, and a hospital.
fn federation() -> (TempDir, Authority, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::init(dir.path(), "falaj.test").expect("an authority");
    authority.add_issuer(&place("ae-on/ae-az")).expect("an issuer");
    let site = issue(&authority, "hospital-1");
    (dir, authority, site)
}

fn issue(authority: &Authority, name: &str) -> PathBuf {
    issue_in(authority, name, "ae-on/ae-az", 1)
}

fn issue_in(authority: &Authority, name: &str, at: &str, days: u32) -> PathBuf {
    let (role, name, place) = (Role::Site, name.into(), place(at));
    let request = Request { role, name, place, days, dns: Vec::new() };
    authority.issue(&request).expect("a certificate")
}

fn trust(authority: &Authority) -> TrustStore {
    TrustStore::load(&authority.trust_path()).expect("a trust configuration")
}

fn read(authority: &Authority, paths: &[&Path], now: UnixTime) -> Result<Crls, CrlError> {
    let file = |path: &&Path| (path.to_path_buf(), fs::read(path).expect("reads"));
    let files: Vec<_> = paths.iter().map(file).collect();
    Crls::read(&files, &trust(authority), false, now)
}

/// What the TLS library says of a certificate.
fn verdict(authority: &Authority, crls: &Crls, site: &Path, now: UnixTime) -> &'static str {
    let clients = client_verifier(&trust(authority), crls).expect("a verifier");
    let cert = first_certificate(&site.join("cert.pem")).expect("a certificate");
    match clients.verify_client_cert(&cert, &[], now) {
        Ok(_) => "good",
        Err(e) => tls_reason(&e),
    }
}

fn later(days: u64) -> UnixTime {
    let now = UnixTime::now().as_secs();
    UnixTime::since_unix_epoch(Duration::from_secs(now + days * 86_400))
}

#[test]
fn a_certificate_on_the_list_is_revoked_and_its_neighbour_is_not() {
    let (_dir, authority, site) = federation();
    let other = issue(&authority, "hospital-2");
    let cert = first_certificate(&site.join("cert.pem")).expect("a certificate");
    let path = authority.revoke(&cert, CRL_DAYS).expect("revoked");
    let crls = read(&authority, &[&path], UnixTime::now()).expect("taken");
    assert_eq!(verdict(&authority, &crls, &site, UnixTime::now()), "revoked");
    assert_eq!(verdict(&authority, &crls, &other, UnixTime::now()), "good");
    assert_eq!(verdict(&authority, &Crls::default(), &site, UnixTime::now()), "good");
}

/// Shows TLS-02: whoever lets the list expire is told so, and lets nobody in.
#[test]
fn a_list_that_has_expired_is_not_taken_and_the_one_in_force_fails_closed() {
    let (_dir, authority, site) = federation();
    let path = authority.crl(&place("ae-on/ae-az"), 1).expect("a list");
    let crls = read(&authority, &[&path], UnixTime::now()).expect("taken");
    let late = read(&authority, &[&path], later(2)).expect_err("too old").to_string();
    assert!(late.contains("crl.pem") && late.contains("too old"), "{late}");
    // The certificate itself would have another day.
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(later(1).as_secs() + 1));
    let said = verdict(&authority, &crls, &site, soon);
    assert!(["revocation_list_expired", "expired"].contains(&said), "{said}");
    let (_, due) = crls.first_due().expect("one list");
    assert!(due > i64::try_from(UnixTime::now().as_secs()).expect("small"));
}

#[test]
fn a_list_that_nobody_trusted_signed_is_not_taken() {
    let (_dir, authority, _) = federation();
    let (_other_dir, stranger, _) = federation();
    let path = stranger.crl(&place("ae-on/ae-az"), CRL_DAYS).expect("a list");
    let why = read(&authority, &[&path], UnixTime::now()).expect_err("a stranger's").to_string();
    assert!(why.contains("no issuer in the trust configuration signed it"), "{why}");
}

#[test]
fn a_list_in_which_a_byte_was_changed_is_not_taken() {
    let (dir, authority, _) = federation();
    let path = authority.crl(&place("ae-on/ae-az"), CRL_DAYS).expect("a list");
    let pem = fs::read(&path).expect("reads");
    let der = CertificateRevocationListDer::from_pem_slice(&pem).expect("PEM");
    for at in 0..der.len() {
        let mut bytes = der.to_vec();
        bytes[at] ^= 1;
        let path = dir.path().join("changed.crl");
        fs::write(&path, &bytes).expect("writes");
        assert!(read(&authority, &[&path], UnixTime::now()).is_err(), "byte {at}");
    }
    fs::write(dir.path().join("short.crl"), &der[..der.len() - 1]).expect("writes");
    assert!(read(&authority, &[&dir.path().join("short.crl")], UnixTime::now()).is_err());
}

#[test]
fn an_older_list_does_not_take_the_place_of_a_newer_one() {
    let (dir, authority, _) = federation();
    let path = authority.crl(&place("ae-on/ae-az"), CRL_DAYS).expect("a list");
    let old = dir.path().join("old.pem");
    fs::copy(&path, &old).expect("copied");
    // Numbers are milliseconds.
    let newest = loop {
        let path = authority.crl(&place("ae-on/ae-az"), CRL_DAYS).expect("a list");
        let newest = read(&authority, &[&path], UnixTime::now()).expect("taken");
        if fs::read(&path).expect("reads") != fs::read(&old).expect("reads") {
            break newest;
        }
    };
    let older = read(&authority, &[&old], UnixTime::now()).expect("by itself it is good");
    let why = older.follow(&newest).expect_err("older").to_string();
    assert!(why.contains("older than the list in force"), "{why}");
    newest.follow(&older).expect("newer");
    newest.follow(&newest).expect("the same");
}

#[test]
fn an_issuer_without_a_list_stops_the_others_unless_that_is_configured() {
    let (_dir, authority, site) = federation();
    let path = authority.crl(&place("ae-on/ae-az"), CRL_DAYS).expect("a list");
    authority.add_issuer(&place("ae-on/ae-du")).expect("an issuer");
    let why = read(&authority, &[&path], UnixTime::now()).expect_err("one has none").to_string();
    assert!(why.contains("ae-on/ae-du") && why.contains("revocation.unknown"), "{why}");
    let files = [(path.clone(), fs::read(&path).expect("reads"))];
    let crls = Crls::read(&files, &trust(&authority), true, UnixTime::now()).expect("allowed");
    assert_eq!(verdict(&authority, &crls, &site, UnixTime::now()), "good");
}

/// What becomes of the lists in force when these files are there; a file may be gone.
fn renewed(
    authority: &Authority,
    before: &Crls,
    paths: &[&Path],
    now: UnixTime,
) -> (Crls, Vec<String>) {
    let read = |path: &&Path| (path.to_path_buf(), fs::read(path).map_err(|e| e.to_string()));
    let read: Vec<_> = paths.iter().map(read).collect();
    let files: Vec<ListFile<'_>> = read
        .iter()
        .map(|(path, bytes)| (path.as_path(), bytes.as_deref().map_err(Clone::clone)))
        .collect();
    let (crls, wrong) = before.renewed(&files, &trust(authority), now);
    (crls, wrong.iter().map(ToString::to_string).collect())
}

/// Shows TLS-02: an issuer that lets its list expire lets nobody of its own in any more, and what another issuer has to say is
/// taken all the same.
#[test]
fn one_issuers_list_that_is_wrong_does_not_keep_the_new_list_of_another_out() {
    let (_dir, authority, _) = federation();
    authority.add_issuer(&place("ae-on/ae-du")).expect("an issuer");
    let [here, stolen, there] = [
        issue_in(&authority, "here", "ae-on/ae-az", 30),
        issue_in(&authority, "stolen", "ae-on/ae-du", 30),
        issue_in(&authority, "there", "ae-on/ae-du", 30),
    ];
    let lazy = authority.crl(&place("ae-on/ae-az"), 1).expect("a list");
    let other = authority.crl(&place("ae-on/ae-du"), 20).expect("a list");
    let both: [&Path; 2] = [&lazy, &other];
    let before = read(&authority, &both, UnixTime::now()).expect("taken");
    assert_eq!(verdict(&authority, &before, &stolen, later(2)), "good");
    let cert = first_certificate(&stolen.join("cert.pem")).expect("a certificate");
    authority.revoke(&cert, 20).expect("revoked");
    let (after, wrong) = renewed(&authority, &before, &both, later(2));
    assert!(wrong.len() == 1 && wrong[0].contains("too old"), "{wrong:?}");
    assert!(wrong[0].contains(&lazy.display().to_string()), "{wrong:?}");
    assert_eq!(verdict(&authority, &after, &stolen, later(2)), "revoked");
    assert_eq!(verdict(&authority, &after, &there, later(2)), "good");
    assert_eq!(verdict(&authority, &after, &here, later(2)), "revocation_list_expired");
    assert_eq!(after.dues().count(), 2);
    // Neither does a file that is gone, cut short, or of somebody else, and the list before stays in force.
    let own = fs::read(&lazy).expect("reads");
    let (_stranger_dir, stranger, _) = federation();
    let strange = stranger.crl(&place("ae-on/ae-az"), CRL_DAYS).expect("a list");
    let strange = fs::read(strange).expect("reads");
    for bytes in [None, Some(&own[..own.len() / 2]), Some(&strange[..])] {
        match bytes {
            Some(bytes) => fs::write(&lazy, bytes).expect("written"),
            None => fs::remove_file(&lazy).expect("removed"),
        }
        let (after, wrong) = renewed(&authority, &before, &both, UnixTime::now());
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert_eq!(verdict(&authority, &after, &stolen, UnixTime::now()), "revoked");
        assert_eq!(verdict(&authority, &after, &here, UnixTime::now()), "good");
        let digests = (before.digests(), after.digests());
        assert!(digests.1.iter().filter(|list| digests.0.contains(list)).count() == 1);
    }
}

#[test]
fn an_issuer_whose_file_holds_anothers_list_keeps_the_one_before() {
    let (_dir, authority, _) = federation();
    authority.add_issuer(&place("ae-on/ae-du")).expect("an issuer");
    let first = authority.crl(&place("ae-on/ae-az"), CRL_DAYS).expect("a list");
    let second = authority.crl(&place("ae-on/ae-du"), CRL_DAYS).expect("a list");
    let both: [&Path; 2] = [&first, &second];
    let before = read(&authority, &both, UnixTime::now()).expect("taken");
    fs::copy(&second, &first).expect("copied");
    let (after, wrong) = renewed(&authority, &before, &both, UnixTime::now());
    assert_eq!(after.digests(), before.digests());
    assert!(wrong.iter().any(|what| what.contains("same issuer")), "{wrong:?}");
    assert!(wrong.iter().any(|what| what.contains("from before stays in force")), "{wrong:?}");
}

/// Where nothing is asked of lists, all are let in of whom none speaks.
#[test]
fn an_issuer_that_is_retired_takes_its_list_with_it_unless_none_would_be_left() {
    let (_dir, authority, _) = federation();
    let old = authority.crl(&place("ae-on/ae-az"), CRL_DAYS).expect("a list");
    let before = read(&authority, &[&old], UnixTime::now()).expect("taken");
    authority.next_issuer(&place("ae-on/ae-az")).expect("a second issuer");
    let site = issue(&authority, "hospital-2");
    let (after, wrong) = renewed(&authority, &before, &[&old], UnixTime::now());
    assert!(wrong.len() == 1 && wrong[0].contains("revocation.unknown"), "{wrong:?}");
    assert_eq!(verdict(&authority, &after, &site, UnixTime::now()), "revocation_unknown");
    authority.retire_issuers(&place("ae-on/ae-az")).expect("retired");
    let (after, wrong) = renewed(&authority, &after, &[&old], UnixTime::now());
    assert!(wrong.iter().any(|what| what.contains("no issuer in the trust")), "{wrong:?}");
    assert_eq!(verdict(&authority, &after, &site, UnixTime::now()), "revocation_unknown");
    let new = authority.crl(&place("ae-on/ae-az"), CRL_DAYS).expect("a list");
    let (after, _) = renewed(&authority, &after, &[&old, &new], UnixTime::now());
    assert_eq!(after.dues().map(|(path, _)| path).collect::<Vec<_>>(), [new.as_path()]);
    assert_eq!(verdict(&authority, &after, &site, UnixTime::now()), "good");
}

/// Shows TLS-03: two issuers vouch for one place at once, and the old one's certificates go with it.
#[test]
fn two_issuers_of_a_place_overlap_until_the_old_one_is_retired() {
    let (_dir, authority, old) = federation();
    authority.next_issuer(&place("ae-on/ae-az")).expect("a second issuer");
    let new = issue(&authority, "hospital-2");
    let known = |site: &Path| {
        let cert = first_certificate(&site.join("cert.pem")).expect("a certificate");
        trust(&authority).identify(&[cert]).is_ok()
    };
    assert!(known(&old) && known(&new));
    assert_eq!(authority.retire_issuers(&place("ae-on/ae-az")).expect("retired"), 1);
    assert!(!known(&old) && known(&new));
}

/// Only one list of an issuer is ever asked, so an older one must not stand in the way of a newer one.
#[test]
fn a_second_list_of_one_issuer_is_not_taken() {
    let (dir, authority, _) = federation();
    let path = authority.crl(&place("ae-on/ae-az"), CRL_DAYS).expect("a list");
    let old = dir.path().join("old.pem");
    fs::copy(&path, &old).expect("copied");
    let why = read(&authority, &[&old, &path], UnixTime::now()).expect_err("two").to_string();
    assert!(why.contains("old.pem") && why.contains("same issuer"), "{why}");
}

/// Of certificates that a partial list does not speak of, nothing would be known, and `unknown = "allow"` would let them in.
#[test]
fn a_list_that_speaks_of_some_certificates_only_is_not_taken() {
    let (_dir, authority, _) = federation();
    let path = authority.crl(&place("ae-on/ae-az"), CRL_DAYS).expect("a list");
    let home = path.parent().expect("a folder");
    let key = fs::read_to_string(home.join("key.pem")).expect("reads");
    let key = KeyPair::from_pem(&key).expect("a key");
    let cert = fs::read_to_string(home.join("cert.pem")).expect("reads");
    let issuer = Issuer::from_ca_cert_pem(&cert, key).expect("an issuer");
    let uris = vec!["http://lists.test/1.crl".to_owned()];
    let part = |scope| {
        let distribution_point = CrlDistributionPoint { uris: uris.clone() };
        let point = CrlIssuingDistributionPoint { distribution_point, scope };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: Some(point),
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&issuer).expect("signed").pem().expect("PEM")
    };
    for scope in [None, Some(CrlScope::UserCertsOnly), Some(CrlScope::CaCertsOnly)] {
        let files = [(path.clone(), part(scope).into_bytes())];
        let taken = Crls::read(&files, &trust(&authority), true, UnixTime::now());
        let why = taken.expect_err("a part").to_string();
        assert!(why.contains("issuingDistributionPoint"), "{why}");
    }
}
