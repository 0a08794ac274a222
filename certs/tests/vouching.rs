//! Who may be whom: keys, identities, and issuers that vouch for places.

use falaj_certs::{
    ca::{Authority, LEAF_DAYS, Request, first_certificate},
    identity::{Identity, IdentityError},
    keys::SecretError,
    tls::{Credentials, CredentialsError},
    trust::{TrustError, TrustStore},
};
use falaj_core::id::{Place, Role};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

fn place(text: &str) -> Place {
    text.parse().expect("a place")
}

/// An authority with issuers for Abu Dhabi and Dubai, and a hospital in Abu Dhabi.
fn federation() -> (TempDir, Authority, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::init(dir.path(), "falaj.test").expect("an authority");
    authority.add_issuer(&place("ae-on/ae-az")).expect("an issuer");
    authority.add_issuer(&place("ae-on/ae-du")).expect("an issuer");
    let site = issue(&authority, "hospital-1").expect("a certificate");
    (dir, authority, site)
}

fn issue(authority: &Authority, name: &str) -> anyhow::Result<PathBuf> {
    authority.issue(&Request {
        role: Role::Site,
        name: name.into(),
        place: place("ae-on/ae-az"),
        days: LEAF_DAYS,
        dns: Vec::new(),
    })
}

fn credentials(dir: &Path) -> Result<Credentials, CredentialsError> {
    Credentials::load(&dir.join("cert.pem"), &dir.join("key.pem"))
}

fn identify(authority: &Authority, site: &Path) -> Result<Identity, IdentityError> {
    let trust = TrustStore::load(&authority.trust_path()).expect("a trust configuration");
    trust.identify(&[first_certificate(&site.join("cert.pem")).expect("a certificate")])
}

/// Changes the trust configuration's text.
fn rewrite(authority: &Authority, from: &str, to: &str) {
    let text = fs::read_to_string(authority.trust_path()).expect("reads");
    assert!(text.contains(from), "{text}");
    fs::write(authority.trust_path(), text.replace(from, to)).expect("writes");
}

#[test]
fn an_issued_certificate_names_its_site_and_place() {
    let (_dir, authority, site) = federation();
    let identity = identify(&authority, &site).expect("known");
    assert_eq!(identity.spiffe.to_string(), "spiffe://falaj.test/ae-on/ae-az/site/hospital-1");
    let credentials = credentials(&site).expect("usable");
    assert_eq!(credentials.identity().expect("named"), identity);
    assert_eq!(identity.public_key, credentials.signing_key().verifying_key().to_bytes());
}

#[test]
fn keys_are_for_their_owner_only() {
    let (_dir, _, site) = federation();
    let key = site.join("key.pem");
    assert_eq!(fs::metadata(&key).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&site).expect("there").permissions().mode() & 0o777, 0o700);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("loosened");
    assert!(matches!(
        credentials(&site),
        Err(CredentialsError::Secret(SecretError::Exposed { mode: 0o640, .. }))
    ));
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (_dir, authority, site) = federation();
    let other = issue(&authority, "hospital-2").expect("a certificate");
    fs::copy(other.join("cert.pem"), site.join("cert.pem")).expect("swapped");
    assert!(matches!(credentials(&site), Err(CredentialsError::Mismatch { .. })));
}

#[test]
fn the_issuer_and_not_the_holder_vouches_for_the_place() {
    let (_dir, authority, site) = federation();
    // The issuer of Abu Dhabi is bound to Dubai only, and Dubai's to Abu Dhabi.
    rewrite(&authority, "ae-on/ae-az\"", "ae-on/ae-xx\"");
    rewrite(&authority, "ae-on/ae-du\"", "ae-on/ae-az\"");
    let refused = identify(&authority, &site).expect_err("not bound");
    assert_eq!(refused, IdentityError::NotBound(place("ae-on/ae-az")));
}

#[test]
fn nobody_vouches_for_a_place_without_an_issuer() {
    let (_dir, authority, site) = federation();
    rewrite(&authority, "ae-on/ae-az\"", "ae-on/ae-xx\"");
    let refused = identify(&authority, &site).expect_err("unknown");
    assert_eq!(refused, IdentityError::UnknownPlace(place("ae-on/ae-az")));
    let request = Request {
        role: Role::Site,
        name: "clinic".into(),
        place: place("gb/gb-lnd"),
        days: LEAF_DAYS,
        dns: Vec::new(),
    };
    let refused = authority.issue(&request).expect_err("no issuer").to_string();
    assert!(refused.contains("falaj-certs issuer"), "{refused}");
}

#[test]
fn another_federation_is_refused_by_name_and_by_signature() {
    let (_dir, authority, _) = federation();
    let elsewhere = tempfile::tempdir().expect("a folder");
    let stranger = Authority::init(elsewhere.path(), "falaj.other").expect("an authority");
    stranger.add_issuer(&place("ae-on/ae-az")).expect("an issuer");
    let site = issue(&stranger, "hospital-1").expect("a certificate");
    assert!(matches!(identify(&authority, &site), Err(IdentityError::TrustDomain { .. })));
    // The same trust domain in the certificate does not help: its issuer is not ours.
    let third = tempfile::tempdir().expect("a folder");
    let impostor = Authority::init(third.path(), "falaj.test").expect("an authority");
    impostor.add_issuer(&place("ae-on/ae-az")).expect("an issuer");
    let site = issue(&impostor, "hospital-1").expect("a certificate");
    assert!(identify(&authority, &site).is_err());
}

#[test]
fn an_issuer_file_that_was_swapped_is_noticed() {
    let (dir, authority, _) = federation();
    let elsewhere = tempfile::tempdir().expect("a folder");
    let impostor = Authority::init(elsewhere.path(), "falaj.test").expect("an authority");
    let theirs = impostor.add_issuer(&place("ae-on/ae-az")).expect("an issuer");
    fs::copy(theirs.join("cert.pem"), dir.path().join("issuers/ae-on_ae-az/cert.pem"))
        .expect("swapped");
    let refused = TrustStore::load(&authority.trust_path()).expect_err("swapped");
    assert!(matches!(refused, TrustError::Issuer { .. }), "{refused}");
}

#[test]
fn an_end_entity_cannot_be_bound_as_an_issuer() {
    let (dir, authority, site) = federation();
    let trust = fs::read_to_string(authority.trust_path()).expect("reads");
    let leaf = first_certificate(&site.join("cert.pem")).expect("a certificate");
    let spki = falaj_certs::trust::spki_sha256(&leaf).expect("a key");
    let entry = format!(
        "\n[[issuer]]\ncert = \"site/hospital-1/cert.pem\"\nspki_sha256 = \"{spki}\"\nplaces = [\"ae-on/ae-az\"]\n"
    );
    fs::write(dir.path().join("trust.toml"), trust + &entry).expect("writes");
    let refused = TrustStore::load(&authority.trust_path()).expect_err("no authority").to_string();
    assert!(refused.contains("no certificate authority"), "{refused}");
}

#[test]
fn a_federation_that_trusts_nobody_does_not_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::init(dir.path(), "falaj.test").expect("an authority");
    assert!(matches!(TrustStore::load(&authority.trust_path()), Err(TrustError::Empty(_))));
    assert!(Authority::init(dir.path(), "falaj.test").is_err(), "an authority was overwritten");
}

/// A self-signed certificate with these URIs.
fn certificate(uris: &[&str], key: &KeyPair) -> rcgen::Certificate {
    let mut params = CertificateParams::default();
    for uri in uris {
        let uri = (*uri).try_into().expect("text");
        params.subject_alt_names.push(SanType::URI(uri));
    }
    params.self_signed(key).expect("signs")
}

#[test]
fn an_identity_is_exactly_one_well_formed_uri_over_an_ed25519_key() {
    const NAME: &str = "spiffe://falaj.test/ae-on/ae-az/site/hospital-1";
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let parse = |uris: &[&str], key: &KeyPair| Identity::parse(certificate(uris, key).der());
    assert_eq!(parse(&[NAME], &key).expect("well formed").spiffe.to_string(), NAME);
    assert_eq!(parse(&[], &key), Err(IdentityError::NoUri));
    assert_eq!(parse(&[NAME, NAME], &key), Err(IdentityError::ManyUris(2)));
    for malformed in ["https://falaj.test/ae-on/ae-az/site/h", "spiffe://falaj.test/ae-on/site/h"] {
        assert!(matches!(parse(&[malformed], &key), Err(IdentityError::Malformed(_))));
    }
    let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    assert_eq!(parse(&[NAME], &other), Err(IdentityError::Key));
}
