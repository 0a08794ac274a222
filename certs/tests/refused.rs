//! Certificates that nobody may come with, each with the word by which its refusal stands in the log (TLS-01, TLS-05).

use falaj_certs::{
    ca::{Authority, CRL_DAYS, Request, first_certificate},
    revocation::Crls,
    tls::{client_verifier, tls_reason},
    trust::TrustStore,
};
use falaj_core::id::{Place, Role};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DnType,
    ExtendedKeyUsagePurpose as Purpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::{collections::BTreeSet, fs, net::Ipv4Addr, path::Path};

const NAME: &str = "spiffe://falaj.test/ae-on/ae-az/site/hospital-1";

/// An authority whose issuers vouch for Abu Dhabi and for Dubai.
struct World {
    _dir: tempfile::TempDir,
    authority: Authority,
    abu_dhabi: Issuer<'static, KeyPair>,
    issuers: Vec<CertificateDer<'static>>,
}

fn place(text: &str) -> Place {
    text.parse().expect("a place")
}

fn load(dir: &Path) -> Issuer<'static, KeyPair> {
    let read = |name| fs::read_to_string(dir.join(name)).expect("reads");
    let key = KeyPair::from_pem(&read("key.pem")).expect("a key");
    Issuer::from_ca_cert_pem(&read("cert.pem"), key).expect("an issuer")
}

fn world() -> World {
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::init(dir.path(), "falaj.test").expect("an authority");
    let home = authority.add_issuer(&place("ae-on/ae-az")).expect("an issuer");
    let dubai = authority.add_issuer(&place("ae-on/ae-du")).expect("an issuer");
    let cert = |dir: &Path| first_certificate(&dir.join("cert.pem")).expect("a certificate");
    let (abu_dhabi, issuers) = (load(&home), vec![cert(&home), cert(&dubai)]);
    World { _dir: dir, authority, abu_dhabi, issuers }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).expect("a key")
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

/// What a good certificate would say.
fn good() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![Purpose::ClientAuth];
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
    params.subject_alt_names = vec![uri(NAME)];
    params
}

impl World {
    /// A certificate by the issuer for Abu Dhabi.
    fn by(&self, change: impl FnOnce(&mut CertificateParams)) -> Vec<CertificateDer<'static>> {
        let mut params = good();
        change(&mut params);
        self.signed(&params, &key(), &self.abu_dhabi)
    }

    fn named(&self, names: &[SanType]) -> Vec<CertificateDer<'static>> {
        self.by(|p| p.subject_alt_names = names.to_vec())
    }

    /// A certificate, and the issuers as anybody would send them along.
    fn signed(
        &self,
        params: &CertificateParams,
        key: &KeyPair,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Vec<CertificateDer<'static>> {
        let cert = params.signed_by(key, issuer).expect("signed");
        self.chain(&cert)
    }

    fn chain(&self, cert: &Certificate) -> Vec<CertificateDer<'static>> {
        [cert.der().clone()].into_iter().chain(self.issuers.iter().cloned()).collect()
    }

    fn trust(&self) -> TrustStore {
        TrustStore::load(&self.authority.trust_path()).expect("a trust configuration")
    }

    /// Why whoever comes with this is refused: first by the handshake, then by name.
    fn reason(&self, chain: &[CertificateDer<'_>], crls: &Crls) -> &'static str {
        let trust = self.trust();
        let clients = client_verifier(&trust, crls).expect("a verifier");
        let (leaf, others) = chain.split_first().expect("a certificate");
        match clients.verify_client_cert(leaf, others, UnixTime::now()) {
            Err(e) => tls_reason(&e),
            Ok(_) => trust.identify(chain).map_or_else(|e| e.reason(), |_| "admitted"),
        }
    }
}

/// A certificate authority of this name that signs with a key of its own.
fn stranger(name: &str) -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Issuer::new(params, key())
}

type Row = (&'static str, Vec<CertificateDer<'static>>);

/// Certificates that say the wrong thing.
fn misnamed(world: &World) -> Vec<Row> {
    let dns = |name: &str| SanType::DnsName(name.try_into().expect("ASCII"));
    let one = |name: &str| world.named(&[uri(name)]);
    vec![
        ("no_identity", world.named(&[])),
        ("no_identity", world.named(&[SanType::Rfc822Name("a@b.test".try_into().expect("ASCII"))])),
        ("dns_name_only", world.named(&[dns("hospital-1.falaj.test")])),
        ("wildcard_only", world.named(&[dns("*.falaj.test")])),
        ("ip_address_only", world.named(&[SanType::IpAddress(Ipv4Addr::LOCALHOST.into())])),
        ("many_identities", world.named(&[uri(NAME), uri(NAME)])),
        ("many_identities", world.named(&[uri(NAME), uri("https://falaj.test/")])),
        ("malformed_identity", one("https://falaj.test/ae-on/ae-az/site/hospital-1")),
        ("malformed_identity", one("spiffe://falaj.test/ae-on/ae-az/king/hospital-1")),
        ("malformed_identity", one("spiffe://falaj.test/ae-on/ae-az/site/hospital-1/")),
        ("malformed_identity", one("spiffe://falaj.test/ae-on/ae-az/site")),
        ("malformed_identity", one("spiffe://falaj.test/ae-on/ae-az/site/hospital-1?x=1")),
        ("malformed_identity", one("spiffe://falaj.test:443/ae-on/ae-az/site/hospital-1")),
        ("percent_encoded_identity", one("spiffe://falaj.test/ae-on/ae-az/site/hospital%2d1")),
        ("upper_case_identity", one("spiffe://falaj.test/AE-ON/ae-az/site/hospital-1")),
        ("upper_case_identity", one("SPIFFE://falaj.test/ae-on/ae-az/site/hospital-1")),
        ("other_trust_domain", one("spiffe://falaj.other/ae-on/ae-az/site/hospital-1")),
        ("unknown_place", one("spiffe://falaj.test/ae-difc/ae-du/site/hospital-1")),
        // The case that the TLS library does not know: Abu Dhabi's issuer claims Dubai.
        ("issuer_not_bound", one("spiffe://falaj.test/ae-on/ae-du/site/hospital-1")),
    ]
}

/// Certificates that are wrong in themselves, or signed by the wrong party.
fn unfit(world: &World) -> Vec<Row> {
    let own = key();
    let mut twin = good();
    twin.distinguished_name.push(DnType::CommonName, "hospital-1");
    let twin = twin.self_signed(&own).expect("signed");
    let issuer_name = "falaj.test issuer for ae-on/ae-az";
    let mut below = CertificateParams::default();
    below.distinguished_name.push(DnType::CommonName, "below");
    below.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    below.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let below_key = key();
    let below_cert = below.signed_by(&below_key, &world.abu_dhabi).expect("signed");
    let below = Issuer::new(below, below_key);
    let long = good().signed_by(&key(), &below).expect("signed");
    let mut changed = world.by(|_| {});
    let mut bytes = changed[0].to_vec();
    *bytes.last_mut().expect("bytes") ^= 1;
    changed[0] = bytes.into();
    let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut critical = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999], vec![5, 0]);
    critical.set_criticality(true);
    let purposes = |these: &[Purpose]| world.by(|p| p.extended_key_usages = these.to_vec());
    let long_chain = vec![long.der().clone(), below_cert.der().clone()];
    vec![
        (
            "authority_certificate",
            world.by(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ),
        ("not_yet_valid", world.by(|p| p.not_before = date_time_ymd(2090, 1, 1))),
        ("expired", world.by(|p| p.not_after = date_time_ymd(2025, 2, 1))),
        ("wrong_purpose", purposes(&[Purpose::ServerAuth])),
        ("wrong_purpose", purposes(&[Purpose::CodeSigning])),
        ("unknown_critical_extension", world.by(|p| p.custom_extensions.push(critical))),
        ("key_kind", world.signed(&good(), &other, &world.abu_dhabi)),
        ("unknown_issuer", world.chain(&twin)),
        ("unknown_issuer", world.signed(&good(), &key(), &stranger("somebody else"))),
        ("bad_signature", world.signed(&good(), &key(), &stranger(issuer_name))),
        ("bad_signature", changed),
        ("chain_too_long", long_chain),
        ("unknown_issuer", world.chain(&long)),
        ("bad_certificate", vec![CertificateDer::from(vec![0x30, 0x03, 0x02, 0x01, 0x01])]),
    ]
}

/// Shows TLS-01 and TLS-05.
#[test]
fn every_certificate_that_may_not_come_in_is_refused_by_its_own_word() {
    let world = world();
    assert_eq!(world.reason(&world.by(|_| {}), &Crls::default()), "admitted");
    let rows: Vec<Row> = misnamed(&world).into_iter().chain(unfit(&world)).collect();
    assert!(rows.len() >= 25, "{}", rows.len());
    let mut wrong = Vec::new();
    for (n, (wanted, chain)) in rows.iter().enumerate() {
        let found = world.reason(chain, &Crls::default());
        if found != *wanted {
            wrong.push(format!("row {n}: {wanted} was wanted, it was {found}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let words: BTreeSet<&str> = rows.iter().map(|(wanted, _)| *wanted).collect();
    assert!(words.len() >= 18, "{words:?}");
}

#[test]
fn a_revoked_certificate_and_one_of_an_issuer_without_a_list_are_told_apart() {
    let world = world();
    let request = |name: &str, at: &str| Request {
        role: Role::Site,
        name: name.into(),
        place: place(at),
        days: 1,
        dns: Vec::new(),
    };
    let issue = |name: &str, at: &str| {
        let home = world.authority.issue(&request(name, at)).expect("issued");
        first_certificate(&home.join("cert.pem")).expect("a certificate")
    };
    let (here, there) = (issue("hospital-1", "ae-on/ae-az"), issue("hospital-2", "ae-on/ae-du"));
    let path = world.authority.revoke(&here, CRL_DAYS).expect("revoked");
    let files = [(path.clone(), fs::read(&path).expect("reads"))];
    let crls = Crls::read(&files, &world.trust(), true, UnixTime::now()).expect("taken");
    assert_eq!(world.reason(&[here], &crls), "revoked");
    assert_eq!(world.reason(&[there], &crls), "admitted");
}
