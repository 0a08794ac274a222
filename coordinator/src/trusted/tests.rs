//! Which files are taken, and which leave what was before in force.

use super::*;
use crate::config::NetworksConfig;
use falaj_certs::{
    ca::{Authority, CRL_DAYS, Request, first_certificate},
    keys::KeyAt,
    revocation::CRL_BYTES_MAX,
};
use falaj_core::id::{Place, Role};
use tempfile::TempDir;

const SITE: &str = "spiffe://falaj.test/ae-on/ae-az/site/hospital-1";
const OTHER: &str = "spiffe://falaj.test/ae-on/ae-az/site/hospital-2";

/// A coordinator's files in a folder of their own.
struct Home {
    dir: TempDir,
    authority: Authority,
    identity: IdentityConfig,
    revocation: RevocationConfig,
    evidence: EvidenceConfig,
}

fn place() -> Place {
    "ae-on/ae-az".parse().expect("a place")
}

fn home() -> Home {
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::init(dir.path(), "falaj.test").expect("an authority");
    authority.add_issuer(&place()).expect("an issuer");
    let (role, name) = (Role::Coordinator, "main".into());
    let request = Request { role, name, place: place(), days: 1, dns: Vec::new() };
    let own = authority.issue(&request).expect("a certificate");
    let (cert, key) = (own.join("cert.pem"), own.join("key.pem"));
    let identity = IdentityConfig { cert, key: KeyAt::File(key), trust: authority.trust_path() };
    let (revocation, evidence) = (RevocationConfig::default(), EvidenceConfig::default());
    Home { dir, authority, identity, revocation, evidence }
}

impl Home {
    fn deny_file(mut self, text: &str) -> Self {
        self.revocation.deny = Some(self.dir.path().join("denied"));
        self.write(text);
        self
    }

    fn write(&self, text: &str) {
        fs::write(self.dir.path().join("denied"), text).expect("written");
    }

    fn open(&self) -> Result<Trusted> {
        Trusted::open(&self.identity, &self.revocation, &self.evidence)
    }

    fn refusal(&self) -> String {
        format!("{:#}", self.open().expect_err("it is not taken"))
    }
}

/// Looks once, takes what is found: what somebody is told.
fn look(trusted: &Trusted) -> Vec<(&'static str, String)> {
    let found = trusted.look();
    if let Some(fresh) = found.fresh {
        trusted.0.now.store(Arc::new(fresh));
    }
    found.alerts
}

fn denies(trusted: &Trusted, whom: &str) -> bool {
    trusted.is_denied(&trusted.now(), &whom.parse().expect("a subject"))
}

/// Shows TLS-02: a deny file that is empty, cut short, gone or about another federation lets nobody back in.
#[test]
fn a_deny_file_that_is_not_whole_lets_nobody_back_in() {
    let home = home().deny_file(&format!("{SITE}\n{OTHER}\n"));
    let trusted = home.open().expect("opened");
    assert!(denies(&trusted, SITE) && denies(&trusted, OTHER));
    let cut = format!("{SITE}\n{}", &OTHER[..OTHER.len() - 1]);
    let stranger = SITE.replace("falaj.test", "falaj.tset") + "\n";
    for (text, told) in [
        (Some(""), "is empty"),
        (Some(&cut[..]), "has no end"),
        (Some(&stranger[..]), "this federation is `falaj.test`"),
        (Some("\u{0}\n"), "line 1"),
        (None, "reading"),
    ] {
        match text {
            Some(text) => home.write(text),
            None => fs::remove_file(home.dir.path().join("denied")).expect("removed"),
        }
        // It may only be half written, so nobody hears of it at once.
        assert_eq!(look(&trusted), []);
        let alerts = look(&trusted);
        assert_eq!(alerts.len(), 1, "{alerts:?}");
        let (alert, detail) = &alerts[0];
        assert_eq!(*alert, "deny_list_not_taken");
        assert!(detail.contains(told), "{detail}");
        assert!(look(&trusted).is_empty(), "it was told of twice");
        assert!(denies(&trusted, SITE) && denies(&trusted, OTHER), "{told}");
        // Neither does a coordinator start with it.
        assert!(home.refusal().contains(told), "{}", home.refusal());
    }
}

#[test]
fn whoever_is_denied_is_so_at_once_and_whoever_is_not_any_more_when_that_is_seen_twice() {
    let home = home().deny_file("# nobody\n");
    let trusted = home.open().expect("opened");
    home.write(&format!("{SITE}\n{OTHER}\n"));
    assert_eq!(look(&trusted), []);
    assert!(denies(&trusted, SITE) && denies(&trusted, OTHER));
    // Of a list that is written anew, the first lines.
    home.write(&format!("{OTHER}\n"));
    assert_eq!(look(&trusted), []);
    assert!(denies(&trusted, SITE));
    home.write(&format!("{OTHER}\n{SITE}\n"));
    assert_eq!(look(&trusted), []);
    assert!(denies(&trusted, SITE));
    home.write("# nobody\n");
    assert_eq!(look(&trusted), []);
    assert!(denies(&trusted, SITE));
    assert_eq!(look(&trusted), []);
    assert!(!denies(&trusted, SITE) && !denies(&trusted, OTHER));
}

/// An identity has one spelling, and a digest is the same in either case.
#[test]
fn whom_to_deny_is_spelled_in_one_way() {
    for wrong in [
        SITE.to_uppercase(),
        SITE.replace("hospital", "Hospital"),
        SITE.replace("spiffe", "SPIFFE"),
        SITE.replace('-', "%2d"),
        format!("{SITE}/"),
        SITE.replace("/site", "//site"),
        SITE.replace("/site", "/x/../site"),
    ] {
        let home = home().deny_file(&format!("{wrong}\n"));
        assert!(home.refusal().contains("line 1"), "{wrong}: {}", home.refusal());
    }
    let digest = Digest::of(b"a certificate").to_string();
    let home = home().deny_file(&format!("  {digest}\t# lost\r\n"));
    assert!(denies(&home.open().expect("opened"), &digest));
}

/// Shows TLS-02: a list whose check would keep the coordinator busy is not taken.
#[test]
fn a_revocation_list_that_is_too_long_is_not_taken() {
    let mut home = home();
    let list = home.authority.crl(&place(), CRL_DAYS).expect("a list");
    home.revocation.crls = vec![list.clone()];
    let trusted = home.open().expect("opened");
    let before = trusted.now().crls.digests();
    let long = vec![b'x'; usize::try_from(CRL_BYTES_MAX).expect("small") + 1];
    fs::write(&list, long).expect("written");
    assert_eq!(look(&trusted), []);
    let alerts = look(&trusted);
    assert!(alerts[0].0 == "revocation_list_not_taken", "{alerts:?}");
    assert!(alerts[0].1.contains("longer than"), "{alerts:?}");
    assert_eq!(trusted.now().crls.digests(), before);
    assert!(home.refusal().contains("longer than"));
}

/// Shows TLS-02: whom one issuer revokes is out, whatever became of the list of another, of which it is told once.
#[test]
fn the_broken_list_of_one_issuer_keeps_no_certificate_of_another_in_force() {
    let mut home = home();
    let there: Place = "ae-on/ae-du".parse().expect("a place");
    home.authority.add_issuer(&there).expect("an issuer");
    let (role, name) = (Role::Site, "stolen".into());
    let request = Request { role, name, place: there.clone(), days: 1, dns: Vec::new() };
    let stolen = home.authority.issue(&request).expect("a certificate").join("cert.pem");
    let stolen = first_certificate(&stolen).expect("a certificate");
    let list = |place: &Place| home.authority.crl(place, CRL_DAYS).expect("a list");
    let (broken, other) = (list(&place()), list(&there));
    home.revocation.crls = vec![broken.clone(), other];
    let trusted = home.open().expect("opened");
    let said = || trusted.now().check(std::slice::from_ref(&stolen), now_unix());
    assert!(said().is_ok());
    let first = trusted.now().crls.digests();
    fs::remove_file(&broken).expect("removed");
    assert_eq!(look(&trusted), []);
    let alerts = look(&trusted);
    assert!(alerts.len() == 1 && alerts[0].0 == "revocation_list_not_taken", "{alerts:?}");
    assert!(alerts[0].1.contains(&broken.display().to_string()), "{alerts:?}");
    home.authority.revoke(&stolen, CRL_DAYS).expect("revoked");
    // The new list is taken at the first look, and nobody hears of the broken one again.
    let found = trusted.look();
    assert_eq!((found.changed, found.alerts), (vec!["revocation lists"], Vec::new()));
    trusted.0.now.store(Arc::new(found.fresh.expect("a new list")));
    assert_eq!(said().expect_err("revoked").reason, "revoked");
    let now = trusted.now().crls.digests();
    assert_eq!(now.iter().filter(|list| first.contains(list)).count(), 1, "the one before stays");
    assert!(trusted.look().fresh.is_none(), "nothing has changed since");
    // It is whole again, and broken once more: that is news.
    fs::write(&broken, "cut short").expect("written");
    assert_eq!(look(&trusted), []);
    assert_eq!(look(&trusted).len(), 1);
    home.authority.crl(&place(), CRL_DAYS).expect("a list");
    assert_eq!(look(&trusted), []);
    assert_ne!(trusted.now().crls.digests(), now);
    assert!(!trusted.look().changed.contains(&"revocation lists"));
}

/// Shows RES-01: lists that cannot be used, or are being written, change nothing; whole ones are taken when they are seen twice.
#[test]
fn lists_of_networks_are_taken_whole_or_not_at_all() {
    let mut home = home();
    let path = home.dir.path().join("networks.csv");
    home.evidence.networks = vec![NetworksConfig { file: path.clone(), jurisdiction: None }];
    assert!(home.refusal().contains("networks.csv"), "{}", home.refusal());
    fs::write(&path, "192.0.2.0/24,ae-on/ae-az\n").expect("written");
    let trusted = home.open().expect("opened");
    let inside = |address: &str| {
        let address = format!("{address}:1").parse().ok();
        let found = trusted.now().located(Evidence::default(), &place(), address);
        assert!(found.address_known);
        found.address_in_place
    };
    assert!(inside("192.0.2.1") && inside("[::ffff:192.0.2.1]") && !inside("198.51.100.1"));
    for broken in
        ["", "192.0.2.0/24,ae-on/ae-a", "192.0.2.0/24,ae-on/ae-az\n192.0.2.9,ae-on/ae-du\n"]
    {
        fs::write(&path, broken).expect("written");
        assert_eq!(look(&trusted), [], "{broken:?}");
        let alerts = look(&trusted);
        assert!(alerts.len() == 1 && alerts[0].0 == "networks_not_taken", "{alerts:?}");
        assert!(alerts[0].1.contains("networks.csv, line "), "{alerts:?}");
        assert!(inside("192.0.2.1"));
    }
    fs::write(&path, "198.51.100.0/24,ae-on/ae-az\n").expect("written");
    assert_eq!(look(&trusted), []);
    assert!(inside("192.0.2.1"), "it was seen once");
    assert_eq!(look(&trusted), []);
    assert!(!inside("192.0.2.1") && inside("198.51.100.1"));
}

#[test]
fn without_lists_no_address_is_known() {
    let trusted = home().open().expect("opened");
    let found = trusted.now().located(Evidence::default(), &place(), "192.0.2.1:1".parse().ok());
    assert_eq!(found, Evidence::default());
}

/// The public part of an attestation key on P-256, from a TPM in software.
const ATTESTATION_KEY: &str = "00580023000b00050072000000100018000b000300100020\
    95341eb53c06008044bcfeb23c691ea500e1bba3a2b270992da585d338b15046\
    00206b549c2ce0075f07642fad219fd032672951f97e76d51bff5aacf2d3e1a43942";

/// TPMs that cannot be declared so stop the start with what is wrong; while the coordinator runs they change nothing, nor does a
/// file that is half written and would declare none.
#[test]
fn declared_tpms_are_taken_whole_or_not_at_all() {
    let mut home = home();
    let path = home.dir.path().join("tpms.toml");
    home.evidence.tpms = Some(path.clone());
    assert!(home.refusal().contains("tpms.toml"), "{}", home.refusal());
    let site = |key: &str, pcrs: &str| {
        format!("[[site]]\nid = \"{SITE}\"\nkey = \"{key}\"\npcrs = {{ {pcrs} }}\n")
    };
    let zero = format!("0 = \"{}\"", "0".repeat(64));
    let good = site(ATTESTATION_KEY, &zero);
    fs::write(&path, &good).expect("written");
    let trusted = home.open().expect("opened");
    let is_declared = || trusted.now().is_tpm_declared(&SITE.parse().expect("a site"));
    assert!(is_declared());
    // RSA with 1024 bits: RSASSA with SHA-256, a modulus of 128 bytes.
    let short = format!(
        "00980001000b0005007200000010\
         0014000b0400000000000080{}",
        "ff".repeat(128)
    );
    let free = ATTESTATION_KEY.replacen("00050072", "00040072", 1);
    let beside = format!("{}{}", &ATTESTATION_KEY[..ATTESTATION_KEY.len() - 2], "43");
    let twice = good.clone() + &good;
    for (text, told) in [
        ("", "has no end"),
        (&good[..good.len() - 1], "has no end"),
        ("[[site]]\n", "missing field"),
        (&site("", &zero), "no public part"),
        (&site("zz", &zero), "`key`"),
        (&site(&ATTESTATION_KEY[2..], &zero), "no public part"),
        (&site(&short, &zero), "RSA with 1024 bits"),
        (&site(&free, &zero), "not `restricted`"),
        (&site(&beside, &zero), "no point on P-256"),
        (&site(ATTESTATION_KEY, ""), "names no register"),
        (&site(ATTESTATION_KEY, &zero.replacen('0', "24", 1)), "the last one is 23"),
        (&site(ATTESTATION_KEY, "0 = \"00\""), "register `0`"),
        (&twice, "is there twice"),
        (&good.replace("falaj.test", "falaj.tset"), "this federation is `falaj.test`"),
        (&good.replace("/site/", "/operator/"), "operator"),
    ] {
        fs::write(&path, text).expect("written");
        assert_eq!(look(&trusted), [], "{text}");
        let alerts = look(&trusted);
        assert!(alerts.len() == 1 && alerts[0].0 == "tpms_not_taken", "{text}: {alerts:?}");
        assert!(alerts[0].1.contains(told), "{told}: {alerts:?}");
        assert!(home.refusal().contains(told), "{told}: {}", home.refusal());
        assert!(is_declared());
    }
    fs::write(&path, "# none\n").expect("written");
    assert_eq!(look(&trusted), []);
    assert!(is_declared(), "it was seen once");
    assert_eq!(look(&trusted), []);
    assert!(!is_declared());
}
