//! A bundle of one round that holds, in parts.

use ed25519_dalek::{SigningKey, pkcs8::DecodePrivateKey as _};
use falaj_certs::{history::History, trust::spki_sha256};
use falaj_core::{
    audit::{Actor, Draft, Kind, bundle, policy_set},
    canon::Canon,
    evidence::Evidence,
    id::{Digest, RoundId},
    merkle::{self, Frontier},
    note::{self, Checkpoint, NoteSigner, VerifierKey},
    report::Sections,
    roles::Roles,
    time::Timestamp,
    update::{CONTEXT, Encoding, UpdateHeader},
};
use falaj_proto::study;
use falaj_verify::{Options, Report, Wrong, verify};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ED25519, SanType,
};

pub(crate) const STUDY: &str = "study: s
purpose: To be checked.
data:
  dataset: d
  label: { column: y, classes: [a, b] }
  features: [{ name: x, min: 0.0, max: 1.0 }]
model: { kind: logistic }
training: { local_steps: 1, sample_rate: 0.1, learning_rate: 0.5 }
privacy: { mechanism: dp_sgd, noise_multiplier: 4.0, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 8.0 }
cohort: { places: [\"ae-on/*\"], min_sites: 1 }
rounds: { count: 1 }
";
pub(crate) const SITE: &str = "spiffe://t/ae-on/ae-az/site/h-1";
const COORDINATOR: &str = "spiffe://t/ae-on/ae-az/coordinator/main";
/// An operator, whom entries name as they name sites: people and what is disclosed of them are in tests of their own.
const OPERATOR: &str = "spiffe://t/ae-on/ae-az/operator/layla";

/// A bundle in parts, so that a test can change one and put it together again.
pub(crate) struct Parts {
    pub(crate) files: Vec<(String, Vec<u8>)>,
    pub(crate) key: VerifierKey,
    /// The site's key, and the root of each size from 1.
    pub(crate) site: SigningKey,
    pub(crate) roots: Vec<Digest>,
    /// The issuer's key.
    pub(crate) spki: Digest,
}

pub(crate) fn signer() -> NoteSigner {
    NoteSigner::new("t/log", SigningKey::from_bytes(&[5; 32])).expect("a signer")
}

/// An issuer: its certificate, the digest of its key, and what signs with it.
fn issuer() -> (Vec<u8>, Digest, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let cert = params.self_signed(&key).expect("a certificate").der().clone();
    let spki = spki_sha256(&cert).expect("a key");
    (cert.to_vec(), spki, Issuer::new(params, key))
}

/// A certificate of this number about a key.
fn certificate(issuer: &Issuer<'_, KeyPair>, key: &KeyPair, id: &str, number: u64) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(number.into());
    params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.signed_by(key, issuer).expect("a certificate").der().to_vec()
}

/// Who acts in a bundle.
pub(crate) struct Cast {
    pub(crate) site: Actor,
    /// The site by another certificate about its key, and by one about another key.
    pub(crate) renewed: Actor,
    pub(crate) rekeyed: Actor,
    pub(crate) operator: Actor,
    pub(crate) coordinator: Actor,
    /// The key of whoever vouches for them.
    pub(crate) issuer: Digest,
}

impl Cast {
    /// Who acts, the key of the site, and every certificate.
    fn new(issuer: &Issuer<'_, KeyPair>, spki: Digest) -> (Self, SigningKey, [Vec<u8>; 5]) {
        let [key, other, operators, own] =
            [(); 4].map(|()| KeyPair::generate_for(&PKCS_ED25519).expect("a key"));
        let certs = [
            (&key, SITE, 1),
            (&key, SITE, 2),
            (&other, SITE, 3),
            (&operators, OPERATOR, 4),
            (&own, COORDINATOR, 5),
        ]
        .map(|(key, id, number)| certificate(issuer, key, id, number));
        let actor = |at: usize, id: &str, roles: Roles| Actor {
            id: Some(id.parse().expect("an identity")),
            cert: Some(Digest::of(&certs[at])),
            address: Some("127.0.0.1:9".into()),
            roles,
            ..Actor::default()
        };
        let cast = Self {
            site: actor(0, SITE, Roles::NONE),
            renewed: actor(1, SITE, Roles::NONE),
            rekeyed: actor(2, SITE, Roles::NONE),
            operator: actor(3, OPERATOR, Roles::ALL),
            coordinator: actor(4, COORDINATOR, Roles::NONE),
            issuer: spki,
        };
        let key = SigningKey::from_pkcs8_der(&key.serialize_der()).expect("the same key");
        (cast, key, certs)
    }

    /// An entry of what the shipped policies let somebody do, by these rules.
    pub(crate) fn may(&self, kind: Kind, who: &Actor, action: &str, rules: &[&str]) -> Draft {
        let draft = Draft::new(kind).actor(who).text("action", action);
        match action {
            "connect" => permitted(draft.evidence(&self.evidence()), rules),
            _ => permitted(draft, rules),
        }
    }

    /// What is known of a connection when nothing was looked at.
    pub(crate) fn evidence(&self) -> Evidence {
        Evidence { issuer: Some(self.issuer), ..Evidence::default() }
    }

    /// The site reads a model.
    pub(crate) fn reads(&self) -> Draft {
        let study = "s".parse().expect("a study");
        self.may(Kind::ModelRead, &self.site, "model.read", &["ACC-101"]).study(&study)
    }
}

/// The same entry, which these rules of the shipped policies permit.
pub(crate) fn permitted(draft: Draft, rules: &[&str]) -> Draft {
    let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
    draft.decided(true, &rules, &policy_set(&policies()))
}

/// A trust configuration that binds one issuer to one place.
pub(crate) fn trust(spki: &Digest, place: &str) -> String {
    format!(
        "trust_domain = \"t\"\n[[issuer]]\ncert = \"i.pem\"\nspki_sha256 = \"{spki}\"\nplaces = [\"{place}\"]\n"
    )
}

/// The policies that the project ships.
pub(crate) fn policies() -> Vec<(String, Vec<u8>)> {
    let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
    vec![
        file("coordinator.cedar", include_str!("../../../policies/coordinator.cedar")),
        file("coordinator.cedarschema", include_str!("../../../policies/coordinator.cedarschema")),
    ]
}

pub(crate) fn pinned(key: &VerifierKey) -> Options<'_> {
    Options { log_key: Some(key), ..Options::default() }
}

/// Entries as they come, over one round; `change` may alter them before they are hashed.
pub(crate) fn parts(change: impl FnOnce(&mut Vec<Draft>)) -> Parts {
    parts_of(STUDY, change)
}

/// As [`parts`], of this study.
pub(crate) fn parts_of(study: &str, change: impl FnOnce(&mut Vec<Draft>)) -> Parts {
    // Entries are of 1970, and each is a millisecond after the one before.
    acted(study, |i| i64::try_from(i).expect("small"), |drafts, _| change(drafts))
}

/// As [`parts`], where each entry is a minute after the one before, and `change` hears who acts.
pub(crate) fn by_minutes(change: impl FnOnce(&mut Vec<Draft>, &Cast)) -> Parts {
    by_minutes_of(STUDY, change)
}

/// As [`by_minutes`], of this study.
pub(crate) fn by_minutes_of(study: &str, change: impl FnOnce(&mut Vec<Draft>, &Cast)) -> Parts {
    acted(study, |i| minute(i).as_millis(), change)
}

/// When an entry is made, by minutes.
pub(crate) fn minute(i: usize) -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000 + 60_000 * i64::try_from(i).expect("small"))
}

/// The site's update for a round, and what the site has signed of it.
fn update(key: &SigningKey, round: &RoundId, base: Digest) -> (UpdateHeader, Vec<u8>) {
    let header = UpdateHeader {
        round: round.clone(),
        site: SITE.parse().expect("a site"),
        base,
        manifest: Digest::of(b"manifest"),
        encoding: Encoding::new(16, 0.5).expect("a grid"),
        params: 4,
        payload_bytes: 8,
        payload: Digest::of(b"payload"),
        weight: 10,
        mechanism: "dp_sgd".into(),
        epsilon: "1.0000".into(),
        cohort: None,
        ledger: Digest::of(b"ledger"),
    };
    let signature = note::sign_context(key, CONTEXT, &header.to_bytes()).expect("signs");
    (header, signature.to_vec())
}

/// Entries with their hashes: the tile, the bundle of entries, and the root of each size from 1.
fn laid(drafts: Vec<Draft>, at: impl Fn(usize) -> i64) -> (Vec<u8>, Vec<u8>, Vec<Digest>) {
    let mut roots = Vec::new();
    let (mut frontier, mut tile, mut entries) = (Frontier::new(), Vec::new(), Vec::new());
    for (i, draft) in drafts.into_iter().enumerate() {
        let ts = Timestamp::from_millis(at(i));
        let bytes = draft.finish(i as u64, ts, [i.to_le_bytes()[0]; 16]);
        let leaf = merkle::leaf_hash(&bytes);
        tile.extend_from_slice(&leaf.0);
        merkle::put_entry(&bytes, &mut entries);
        frontier.push(leaf);
        roots.push(frontier.root());
    }
    (tile, entries, roots)
}

/// As [`parts`], of this study and with entries of these milliseconds; `change` hears who acts.
fn acted(
    study: &str,
    at: impl Fn(usize) -> i64,
    change: impl FnOnce(&mut Vec<Draft>, &Cast),
) -> Parts {
    let (issuer_cert, spki, issuer) = issuer();
    let (cast, key, certs) = Cast::new(&issuer, spki);
    let trust = trust(&spki, "ae-on/ae-az").into_bytes();
    let study = study.as_bytes().to_vec();
    let policies = policies();
    let set = policy_set(&policies);
    let round = RoundId { study: "s".parse().expect("a study"), number: 1 };
    let (base, model) = (Digest::of(b"base"), Digest::of(b"model"));
    let (header, signature) = update(&key, &round, base);
    let (payload, header) = (header.payload, header.to_bytes());
    let digest = Digest::of(&header);
    let mut drafts = vec![
        Draft::new(Kind::CoordinatorStarted)
            .text("coordinator", COORDINATOR)
            .digest("trust_sha256", &Digest::of(&trust))
            .digest("policy_set_sha256", &set),
        cast.may(Kind::StudySubmitted, &cast.operator, "study.submit", &["ACC-201"])
            .study(&round.study)
            .digest("study_sha256", &Digest::of(&study))
            .digest("model_sha256", &base),
        Draft::new(Kind::RoundOpened).round(&round).digest("base_sha256", &base),
        cast.may(Kind::UpdateAccepted, &cast.site, "update.send", &["ACC-101"])
            .round(&round)
            .text("site", SITE)
            .digest("payload_sha256", &payload)
            .digest("header_sha256", &digest)
            .text("epsilon", "1.0000"),
        Draft::new(Kind::ModelPublished)
            .round(&round)
            .digest("base_sha256", &base)
            .digest("model_sha256", &model)
            .digests("updates", &[payload]),
    ];
    change(&mut drafts, &cast);
    let (tile, entries, roots) = laid(drafts, at);
    let (size, root) = (roots.len() as u64, *roots.last().expect("entries"));
    let signer = signer();
    let head = Checkpoint { origin: "t/log".into(), tree_size: size, root_hash: root };
    let about = Canon::map([
        ("v", bundle::VERSION.into()),
        ("origin", "t/log".into()),
        ("tree_size", Canon::Int(i64::try_from(size).expect("small"))),
        ("log_verifier_key", signer.verifier().to_string().into()),
    ]);
    let mut files = vec![
        (bundle::ABOUT.to_owned(), about.to_bytes()),
        (bundle::CHECKPOINT.to_owned(), signer.sign(&head.body()).expect("signs").into_bytes()),
        (bundle::issuer(&Digest::of(&issuer_cert)), issuer_cert),
        (bundle::trust(&Digest::of(&trust)), trust),
    ];
    files.extend(certs.map(|cert| (bundle::certificate(&Digest::of(&cert)), cert)));
    files.extend(of_set(&policies));
    files.extend([
        (bundle::study(&Digest::of(&study)), study),
        (bundle::header(&digest), header),
        (bundle::signature(&digest), signature),
        (merkle::tile_path(0, 0, size), tile),
        (merkle::entries_path(0, size), entries),
    ]);
    files.push((bundle::REPORT.to_owned(), report(&files, root, None)));
    Parts { files, key: signer.verifier().clone(), site: key, roots, spki }
}

/// The files of a policy set, as a bundle has them.
fn of_set(policies: &[(String, Vec<u8>)]) -> impl Iterator<Item = (String, Vec<u8>)> {
    let set = policy_set(policies);
    policies.iter().map(move |(name, bytes)| (bundle::policy(&set, name), bytes.clone()))
}

/// The report that follows from these files, one witness having seen so many entries.
pub(crate) fn report(files: &[(String, Vec<u8>)], root: Digest, witnessed: Option<u64>) -> Vec<u8> {
    let (mut report, mut history, mut size) = (Sections::default(), History::default(), 0);
    for (path, bytes) in files {
        let folder = path.split('/').next().unwrap_or_default();
        match folder {
            "issuers" => history.take_issuer(bytes.clone()).expect("an issuer"),
            "trust" => history.take_trust(path, bytes).expect("trust"),
            "certificates" => {
                let digest = Digest::of(bytes);
                let holder = history.take_certificate(digest, bytes.clone());
                report.certificate(digest, holder.expect("vouched for"));
            }
            "policies" => {
                let set = path.split('/').nth(1).and_then(|set| set.parse().ok());
                let (_, name) = path.rsplit_once('/').expect("a set and a file");
                report.policy(set.expect("a digest"), name, bytes);
            }
            "studies" => {
                let text = str::from_utf8(bytes).expect("text");
                report.study(Digest::of(bytes), study::parse(text, "s").expect("a study"));
            }
            "tile" if path.starts_with(bundle::ENTRIES) => {
                if let Some(size) = witnessed {
                    report.witness(SITE, size, "2023-11-14T22:13:20.000Z");
                }
                for entry in super::people::entries(files, bytes) {
                    report.take(&entry);
                    size += 1;
                }
            }
            _ => {}
        }
    }
    report.finish("t/log", size, &root).to_bytes()
}

impl Parts {
    /// The same bundle, which has the files of further policy sets.
    pub(crate) fn with_sets<const N: usize>(mut self, sets: [&[(String, Vec<u8>)]; N]) -> Self {
        let at = self.files.iter().position(|(path, _)| path.starts_with("studies/"));
        let at = at.expect("a study");
        self.files.splice(at..at, sets.into_iter().flat_map(of_set));
        let root = *self.roots.last().expect("entries");
        *self.file(bundle::REPORT) = report(&self.files, root, None);
        self
    }

    /// What is wrong with it, and with which entry.
    pub(crate) fn wrong(&self) -> (u64, String) {
        match self.verify().expect_err("it is wrong") {
            Wrong::Content { index, what } => (index, what),
            other => panic!("{other}"),
        }
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, bytes) in &self.files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, path, &bytes[..]).expect("in memory");
        }
        tar.into_inner().expect("in memory")
    }

    pub(crate) fn verify(&self) -> Result<Report, Wrong> {
        verify(&self.tar()[..], pinned(&self.key), |_, _| {})
    }

    pub(crate) fn file(&mut self, beginning: &str) -> &mut Vec<u8> {
        let found = self.files.iter_mut().find(|(path, _)| path.starts_with(beginning));
        &mut found.expect("a file").1
    }
}
