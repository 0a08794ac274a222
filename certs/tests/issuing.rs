//! What is asked for, what is granted, and that the two are kept apart.

use ed25519_dalek::VerifyingKey;
use falaj_certs::{
    ca::{Authority, first_certificate},
    identity::Identity,
    issue::{Grant, IssueError, Issuer, Outside, Regional, granted},
    request::{REQUEST_BYTES_MAX, RequestError, SigningRequest, request},
    trust::{TrustStore, spki_sha256},
};
use falaj_core::{
    id::Place,
    sign::{SignError, SignKey},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType, SigningKey as _,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::{fs, io::Write as _, path::Path, process::Command, time::Duration};
use tempfile::TempDir;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

const SITE: &str = "spiffe://falaj.test/ae-on/ae-az/site/hospital-1";

fn place(text: &str) -> Place {
    text.parse().expect("a place")
}

fn authority() -> (TempDir, Authority) {
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::init(dir.path(), "falaj.test").expect("an authority");
    authority.add_issuer(&place("ae-on/ae-az")).expect("an issuer");
    (dir, authority)
}

fn grant(lifetime_s: u64) -> Grant {
    let spiffe = SITE.parse().expect("an id");
    Grant { spiffe, lifetime: Duration::from_secs(lifetime_s), group: None }
}

fn trust(authority: &Authority) -> TrustStore {
    TrustStore::load(&authority.trust_path()).expect("a trust configuration")
}

fn asked(key: &KeyPair) -> SigningRequest {
    let der = request(&Split { public: key, private: key }).expect("a request");
    SigningRequest::parse(&der).expect("a good request")
}

/// A key that signs with the private half of another, perhaps.
struct Split<'a> {
    public: &'a KeyPair,
    private: &'a KeyPair,
}

impl SignKey for Split<'_> {
    fn verifying_key(&self) -> VerifyingKey {
        let public = self.public.public_key_raw().try_into().expect("32 bytes");
        VerifyingKey::from_bytes(&public).expect("a key")
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        let signature = self.private.sign(message).expect("a signature");
        Ok(signature.try_into().expect("64 bytes"))
    }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).expect("a key")
}

#[test]
fn what_is_granted_is_in_the_certificate_and_nothing_that_was_asked_for() {
    let (_dir, authority) = authority();
    let key = key();
    let mut params = CertificateParams::new(vec!["coordinator.example".to_owned()]).expect("names");
    params.subject_alt_names.push(SanType::URI(
        "spiffe://falaj.test/ae-on/ae-az/coordinator/main".try_into().expect("ASCII"),
    ));
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let der = params.serialize_request(&key).expect("a request");
    let wanted = SigningRequest::parse(der.der()).expect("its key is a good one");
    let regional = Regional(authority.clone());
    let done = granted(&regional, &wanted, &grant(60), &trust(&authority), UnixTime::now)
        .expect("granted");
    assert_eq!(done.identity.spiffe.to_string(), SITE);
    assert_eq!(done.identity.public_key[..], *key.public_key_raw());
    let (_, x509) = X509Certificate::from_der(&done.chain[0]).expect("a certificate");
    assert!(!x509.is_ca());
    let text = format!("{:?}", x509.extensions());
    assert!(!text.contains("coordinator"), "{text}");
    let names = x509.subject_alternative_name().expect("reads").expect("one");
    assert_eq!(names.value.general_names.len(), 1);
    assert_eq!(x509.subject().to_string(), "CN=hospital-1");
    let life = done.identity.not_after - done.identity.not_before;
    assert!((60..=70).contains(&life), "{life}");
    // The same key has many certificates, and each has a number of its own.
    let again = granted(&regional, &wanted, &grant(60), &trust(&authority), UnixTime::now)
        .expect("granted");
    assert_ne!(again.identity.cert_sha256, done.identity.cert_sha256);
}

#[test]
fn a_request_that_is_none_is_refused_by_its_own_word() {
    let good = {
        let key = key();
        request(&Split { public: &key, private: &key }).expect("a request")
    };
    let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let p256 = CertificateParams::default().serialize_request(&p256).expect("a request");
    let (stranger, owner) = (key(), key());
    let stolen = request(&Split { public: &owner, private: &stranger });
    let mut tailed = good.clone();
    tailed.push(0);
    for (der, reason, says) in [
        (good[..good.len() - 3].to_vec(), "unreadable_request", "cannot be read"),
        (tailed, "unreadable_request", "bytes follow"),
        (Vec::new(), "unreadable_request", "cannot be read"),
        (vec![0x30; REQUEST_BYTES_MAX + 1], "request_too_long", "8193 bytes"),
        (p256.der().to_vec(), "key_kind", "the curve P-256"),
        (stolen.expect("a request"), "no_proof_of_possession", "not signed by the key"),
    ] {
        let error = SigningRequest::parse(&der).expect_err(reason);
        assert_eq!(error.reason(), reason);
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// A request by OpenSSL for a kind of key that our library does not make.
fn by_openssl(dir: &Path, algorithm: &[&str]) -> Option<Vec<u8>> {
    let openssl = |args: &[&str]| {
        Command::new("openssl")
            .args(args)
            .current_dir(dir)
            .output()
            .ok()
            .filter(|o| o.status.success())
    };
    let generated = [&["genpkey", "-out", "key.pem"], algorithm].concat();
    openssl(&generated)?;
    openssl(&["req", "-new", "-key", "key.pem", "-subj", "/CN=x", "-outform", "DER", "-out", "x"])?;
    fs::read(dir.join("x")).ok()
}

#[test]
fn weak_keys_are_refused_and_named() {
    let dir = tempfile::tempdir().expect("a folder");
    if Command::new("openssl").arg("version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: OpenSSL is not installed");
        return;
    }
    for (algorithm, says) in [
        (&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"][..], "RSA key of 1024 bits"),
        (&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"], "RSA key of 3072 bits"),
        (&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-224"], "the curve P-224"),
        (&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"], "the curve secp256k1"),
        (&["-algorithm", "ED448"], "a key of kind 1.3.101.113"),
    ] {
        let der = by_openssl(dir.path(), algorithm).expect("OpenSSL makes it");
        let error = SigningRequest::parse(&der).expect_err(says);
        assert_eq!(error.reason(), "key_kind");
        assert!(error.to_string().contains(says), "{error}");
    }
    let der = by_openssl(dir.path(), &["-algorithm", "ED25519"]).expect("OpenSSL makes it");
    SigningRequest::parse(&der).expect("a good key, whoever made it");
}

/// A new issuer signs once everybody has had a certificate's life to hear of it.
#[test]
fn a_new_issuer_waits_until_it_is_heard_of_and_an_old_one_signs_as_long_as_it_is_trusted() {
    let (_dir, authority) = authority();
    let wanted = asked(&key());
    let before = trust(&authority).issuers()[0].1.spki_sha256.clone();
    authority.next_issuer(&place("ae-on/ae-az")).expect("another");
    let by = |lifetime_s| {
        let regional = Regional(authority.clone());
        let done =
            granted(&regional, &wanted, &grant(lifetime_s), &trust(&authority), UnixTime::now);
        done.expect("granted").issuer.to_string()
    };
    assert_eq!(by(3_600), before);
    authority.retire_issuers(&place("ae-on/ae-az")).expect("retired");
    assert_ne!(by(3_600), before);
}

/// Gives what it is told to.
struct Fixed(Vec<CertificateDer<'static>>);

impl Issuer for Fixed {
    fn issue(
        &self,
        _: &SigningRequest,
        _: &Grant,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        Ok(self.0.clone())
    }
}

#[test]
fn what_an_authority_gives_is_looked_at() {
    let (_dir, authority) = authority();
    let regional = Regional(authority.clone());
    let wanted = asked(&key());
    let trust = trust(&authority);
    let chain =
        |request: &SigningRequest, grant: &Grant| regional.issue(request, grant).expect("signed");
    let mut other_name = grant(60);
    other_name.spiffe = SITE.replace("hospital-1", "hospital-2").parse().expect("an id");
    let (_other_dir, stranger) = self::authority();
    let foreign = Regional(stranger).issue(&wanted, &grant(60)).expect("signed");
    for (given, says) in [
        (Vec::new(), "0 certificates"),
        (chain(&asked(&key()), &grant(60)), "another key"),
        (chain(&wanted, &other_name), "instead of"),
        (chain(&wanted, &grant(3_600)), "longer than the 60 seconds"),
        (foreign, "no issuer bound to that place signed it"),
        ((0..3).flat_map(|_| chain(&wanted, &grant(60))).collect(), "6 certificates"),
    ] {
        let error =
            granted(&Fixed(given), &wanted, &grant(60), &trust, UnixTime::now).expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
    }
    let more = {
        let dir = authority.trust_path();
        let dir = dir.parent().expect("a folder").join("issuers/ae-on_ae-az");
        let read = |name: &str| fs::read_to_string(dir.join(name)).expect("reads");
        let key = KeyPair::from_pem(&read("key.pem")).expect("a key");
        let issuer = rcgen::Issuer::from_ca_cert_pem(&read("cert.pem"), key).expect("an issuer");
        let pem = wanted.pem();
        let mut params = CertificateSigningRequestParams::from_pem(&pem).expect("a request").params;
        params.subject_alt_names = vec![
            SanType::URI(SITE.try_into().expect("ASCII")),
            SanType::DnsName("coordinator.example".try_into().expect("ASCII")),
        ];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let from = std::time::SystemTime::now();
        (params.not_before, params.not_after) =
            ((from - Duration::from_secs(5)).into(), (from + Duration::from_secs(50)).into());
        let asked = CertificateSigningRequestParams::from_pem(&pem).expect("a request");
        let given = params.signed_by(&asked.public_key, &issuer).expect("signed");
        vec![given.der().clone()]
    };
    let error = granted(&Fixed(more), &wanted, &grant(60), &trust, UnixTime::now)
        .expect_err("too many names");
    assert!(error.to_string().contains("2 names"), "{error}");
}

/// An authority that is not ours behind a program, as a site's PKI would be.
#[test]
fn a_program_that_asks_somebody_elses_authority_gives_certificates() {
    let dir = tempfile::tempdir().expect("a folder");
    if Command::new("openssl").arg("version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: OpenSSL is not installed");
        return;
    }
    // The certificate's content comes from what is granted, as it does with `vault write pki/sign`.
    let script = dir.path().join("sign.sh");
    fs::write(
        &script,
        "set -e\ncd \"$1\"\ncat > asked.pem\n\
         printf 'subjectAltName=URI:%s\\nextendedKeyUsage=clientAuth\\nkeyUsage=digitalSignature\\n' \"$2\" > ext\n\
         now=$(date -u +%Y%m%d%H%M%SZ)\nend=$(date -u -d \"+$3 seconds\" +%Y%m%d%H%M%SZ)\n\
         openssl ca -batch -notext -config conf -cert ca.pem -keyfile ca.key -in asked.pem -subj /CN=site -extfile ext -startdate $now -enddate $end 2>/dev/null\n\
         cat ca.pem\n",
    )
    .expect("writes");
    let setup = "set -e\n: > index.txt; echo 01 > serial\n\
         printf '[ca]\\ndefault_ca=d\\n[d]\\ndatabase=index.txt\\nserial=serial\\nnew_certs_dir=.\\ndefault_md=default\\npolicy=p\\nunique_subject=no\\n[p]\\ncommonName=optional\\n' > conf\n\
         openssl genpkey -algorithm ED25519 -out ca.key\n\
         openssl req -x509 -new -key ca.key -subj /CN=site-pki -days 10 -out ca.pem\n";
    let made = Command::new("sh").args(["-c", setup]).current_dir(dir.path()).output();
    assert!(made.as_ref().is_ok_and(|out| out.status.success()), "{made:?}");
    let issuer = first_certificate(&dir.path().join("ca.pem")).expect("a certificate");
    let spki = spki_sha256(&issuer).expect("a key");
    let text = format!(
        "trust_domain = \"falaj.test\"\n[[issuer]]\ncert = \"ca.pem\"\nspki_sha256 = \"{spki}\"\nplaces = [\"ae-on/ae-az\"]\n"
    );
    fs::write(dir.path().join("trust.toml"), text).expect("writes");
    let trust = TrustStore::load(&dir.path().join("trust.toml")).expect("a trust configuration");
    let command = |last: &str| {
        let (script, dir) = (script.to_str().expect("UTF-8"), dir.path().to_str().expect("UTF-8"));
        Outside { command: ["sh", script, dir, "{spiffe}", last].map(str::to_owned).to_vec() }
    };
    let wanted = asked(&key());
    let done = granted(&command("{lifetime_s}"), &wanted, &grant(60), &trust, UnixTime::now)
        .expect("granted");
    assert_eq!((done.identity.spiffe.to_string(), done.chain.len()), (SITE.into(), 2));
    let long = granted(&command("7200"), &wanted, &grant(60), &trust, UnixTime::now)
        .expect_err("too long");
    assert!(long.to_string().contains("longer than"), "{long}");
    for (words, says) in [
        (&["/nowhere/step"][..], "cannot be run"),
        (&["sh", "-c", "exit 7"], "exit status: 7"),
        (&["sh", "-c", "cat /dev/zero"], "more than 65536 bytes"),
        (&["echo", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"], "else than PEM"),
        (&["true"], "0 certificates"),
    ] {
        let outside = Outside { command: words.iter().map(|w| (*w).to_owned()).collect() };
        let error = granted(&outside, &wanted, &grant(60), &trust, UnixTime::now).expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_request_that_was_made_here_holds_no_name() {
    let pem = asked(&key()).pem();
    let read = CertificateSigningRequestParams::from_pem(&pem).expect("others read it, too");
    assert!(read.params.subject_alt_names.is_empty());
    assert!(matches!(RequestError::Possession.reason(), "no_proof_of_possession"));
    assert!(Identity::parse(&CertificateDer::from(pem.into_bytes())).is_err());
}

/// Who may be followed where: only those whom the root has signed, and only to places that are known.
#[test]
fn issuers_are_followed_that_the_root_has_signed_for_places_that_are_known() {
    let (_dir, authority) = authority();
    let root = authority.root().expect("reads").expect("it lies here");
    let before = trust(&authority);
    let certificates = |trust: &TrustStore| -> Vec<CertificateDer<'static>> {
        trust.issuers().iter().map(|(der, _)| der.clone()).collect()
    };
    let followed = |after: &TrustStore, root: &CertificateDer<'_>| {
        before.followed_by(&after.file(), &certificates(after), root)
    };
    assert!(followed(&before, &root).expect("nothing changes").is_none());
    authority.next_issuer(&place("ae-on/ae-az")).expect("another");
    let both = trust(&authority);
    let taken = followed(&both, &root).expect("the root signed it").expect("it is new");
    assert_eq!(taken.issuers().len(), 2);
    authority.retire_issuers(&place("ae-on/ae-az")).expect("retired");
    let later = trust(&authority);
    assert_eq!(followed(&later, &root).expect("fewer").expect("it changes").issuers().len(), 1);
    // A stranger's root, and a place of which nobody has heard.
    let (_other_dir, other) = self::authority();
    let theirs = other.root().expect("reads").expect("it lies here");
    assert!(followed(&both, &theirs).expect_err("another root").contains("did not sign"));
    let foreign = trust(&other);
    assert!(followed(&foreign, &root).expect_err("another issuer").contains("did not sign"));
    authority.add_issuer(&place("gb/gb-lnd")).expect("an issuer");
    let london = trust(&authority);
    assert!(followed(&london, &root).expect_err("a new place").contains("to gb/gb-lnd"));
    let mut wider = both.file();
    wider.issuers[0].places.push("gb/gb-lnd".into());
    let refused = before.followed_by(&wider, &certificates(&both), &root);
    assert!(refused.expect_err("a wider binding").contains("to gb/gb-lnd"));
    let mut elsewhere = both.file();
    elsewhere.trust_domain = "other.test".into();
    let refused = before.followed_by(&elsewhere, &certificates(&both), &root);
    assert!(refused.expect_err("another federation").contains("other.test"));
}
