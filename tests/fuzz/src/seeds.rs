//! Bytes to begin from: what the programs write themselves, and the public vectors.

use crate::{bundles, key};
use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
use falaj_certs::{
    enrolment::{Secret, Token},
    history::History,
    request,
    trust::spki_sha256,
};
use falaj_core::{
    aggregate::params_to_bytes,
    evaluation::answer::EvaluationHeader,
    id::{Digest, RoundId, SiteId},
    ledger::{Event, HEAD_CONTEXT, Ledger, OtherPeople, head_bytes},
    manifest::{Manifest, TensorSpec},
    merkle,
    note::{NoteSigner, sign_context},
    receipt::Receipt,
    registry::{
        provenance::{About, GateSaid, LogSaid, Provenance, RoundMade, UpdateCounted},
        safetensors,
    },
    task::TaskHeader,
    time::Timestamp,
    update::{Encoding, UpdateHeader},
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls_pki_types::CertificateDer;
use std::sync::LazyLock;

pub(crate) const SITE: &str = "spiffe://t/ae-on/ae-az/site/h-1";
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

static VECTORS: LazyLock<serde_json::Value> = LazyLock::new(|| {
    let text = include_str!("../../../core/testdata/merkle_vectors.json");
    serde_json::from_str(text).expect("JSON")
});

/// A text of the public vectors' checkpoint of 70,000 entries.
pub(crate) fn vector(name: &str) -> &'static str {
    VECTORS["generated_70000"]["checkpoint"][name].as_str().expect("text")
}

fn of_70000(name: &str) -> Vec<u8> {
    VECTORS["generated_70000"][name].as_str().expect("text").as_bytes().to_vec()
}

/// An issuer and a site that it vouches for, DER.
static CERTIFICATES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let pair = |n| {
        let der = key(n).to_pkcs8_der().expect("a key");
        KeyPair::try_from(der.as_bytes()).expect("a key")
    };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca = pair(1);
    let issuer = params.self_signed(&ca).expect("a certificate").der().to_vec();
    let issuer_of = Issuer::new(params, ca);
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(SITE.try_into().expect("ASCII"))];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let site = params.signed_by(&pair(2), &issuer_of).expect("a certificate").der().to_vec();
    [issuer, site]
});

pub(crate) fn certificates() -> Vec<Vec<u8>> {
    CERTIFICATES.to_vec()
}

pub(crate) fn trust_file() -> Vec<u8> {
    let spki = spki_sha256(&CertificateDer::from(&CERTIFICATES[0][..])).expect("a key");
    format!(
        "trust_domain = \"t\"\n[[issuer]]\ncert = \"i.pem\"\nspki_sha256 = \"{spki}\"\nplaces = [\"ae-on/ae-az\"]\n"
    )
    .into_bytes()
}

/// A history that knows the issuer.
pub(crate) fn history() -> History {
    let mut history = History::default();
    history.take_issuer(CERTIFICATES[0].clone()).expect("an issuer");
    history.take_trust("trust", &trust_file()).expect("trust");
    history
}

pub(crate) fn round() -> RoundId {
    RoundId { study: "s".parse().expect("a study"), number: 1 }
}

pub(crate) fn site() -> SiteId {
    SITE.parse().expect("a site")
}

pub(crate) fn header() -> UpdateHeader {
    UpdateHeader {
        round: round(),
        site: site(),
        base: Digest::of(b"base"),
        manifest: Digest::of(b"manifest"),
        encoding: Encoding::new(16, 0.5).expect("a grid"),
        params: 4,
        payload_bytes: 8,
        payload: Digest::of(b"payload"),
        weight: 10,
        mechanism: "dp_sgd".into(),
        epsilon: "1.0000".into(),
        cohort: None,
        ledger: Digest::of(LEDGER.lines().nth(1).unwrap_or_default().as_bytes()),
    }
}

pub(crate) fn canon() -> Vec<Vec<u8>> {
    let mut seeds = entries();
    seeds.extend(signed());
    seeds.push(br#"{"a":["\n\u0001",-3,true,false,[],{}],"b\"":9007199254740991}"#.to_vec());
    seeds
}

pub(crate) fn entries() -> Vec<Vec<u8>> {
    merkle::entries(&bundles::entries()).flatten().map(<[u8]>::to_vec).collect()
}

pub(crate) fn bundles_of_entries() -> Vec<Vec<u8>> {
    vec![bundles::entries()]
}

pub(crate) fn signed() -> Vec<Vec<u8>> {
    let (at, digest) = (Timestamp::from_millis(1_772_323_200_000), Digest::of(b"x"));
    let receipt = Receipt {
        round: round(),
        site: site(),
        payload: digest,
        header: digest,
        log_index: 3,
        leaf_hash: digest,
        committed: at,
    };
    let task = TaskHeader {
        round: round(),
        rounds: 3,
        site: site(),
        study_sha256: digest,
        base: digest,
        manifest: digest,
        deadline: at,
        masked: Some((1, digest)),
        evaluates: None,
    };
    let evaluated = TaskHeader { masked: None, evaluates: Some(1), ..task.clone() };
    let counted = EvaluationHeader {
        round: round(),
        attempt: 1,
        site: site(),
        study_sha256: digest,
        candidate: digest,
        counts: digest,
        cells: 104,
        noise: "laplace".into(),
        epsilon: "1.25".into(),
        ledger: digest,
    };
    let others = OtherPeople {
        site: site(),
        dataset: "d".into(),
        head: digest,
        because: "Others came.".into(),
    };
    let tensor = TensorSpec { name: "w".into(), shape: vec![2, 3] };
    let manifest = Manifest::new(vec![tensor]).expect("a manifest");
    vec![
        header().to_bytes(),
        receipt.to_bytes(),
        task.to_bytes(),
        evaluated.to_bytes(),
        counted.to_bytes(),
        others.to_bytes(),
        manifest.to_bytes(),
    ]
}

pub(crate) fn notes() -> Vec<Vec<u8>> {
    ["checkpoint", "cosigned_checkpoint"].map(|n| vector(n).as_bytes().to_vec()).into()
}

pub(crate) fn keys() -> Vec<Vec<u8>> {
    ["vkey", "witness_vkey"].map(|n| vector(n).as_bytes().to_vec()).into()
}

pub(crate) fn add_checkpoint() -> Vec<Vec<u8>> {
    vec![of_70000("witness_add_checkpoint_body_65537_to_70000")]
}

pub(crate) fn proof() -> Vec<Vec<u8>> {
    vec![of_70000("tlog_proof_index_42")]
}

pub(crate) fn ids() -> Vec<Vec<u8>> {
    let digest = Digest::of(b"x").to_string();
    [SITE, "ae-on/ae-az", "heart/12", "heart", &digest].map(|s| s.as_bytes().to_vec()).into()
}

pub(crate) fn study() -> Vec<Vec<u8>> {
    let demo = include_str!("../../../xtask/demo/study.yaml");
    [STUDY, demo].map(|s| s.as_bytes().to_vec()).into()
}

/// The parameters of [`STUDY`]'s model.
pub(crate) const MODEL: [f32; 4] = [0.5, -0.5, 0.25, -0.25];

pub(crate) fn models() -> Vec<Vec<u8>> {
    let study = falaj_proto::study::parse(STUDY, "study.yaml").expect("a study");
    let (raw, manifest) = (params_to_bytes(&MODEL), study.manifest().expect("a manifest"));
    let sha256 = Digest::of(STUDY.as_bytes());
    let mut file = safetensors::head(&study.id, &sha256, 1, &Digest::of(&raw), &manifest);
    file.extend(raw);
    vec![file]
}

pub(crate) fn trust() -> Vec<Vec<u8>> {
    vec![trust_file()]
}

pub(crate) fn ledger() -> Vec<Vec<u8>> {
    vec![LEDGER.clone().into_bytes()]
}

pub(crate) fn egress() -> Vec<Vec<u8>> {
    use falaj_core::egress::{Chain, Event, Kind, Sent};
    let mut chain = Chain::default();
    let mut lines = Vec::new();
    let sent = |kind: Kind| {
        let header = (kind == Kind::Update).then(|| Digest::of(b"header"));
        let round = (kind != Kind::Hello).then(round);
        Event::Sent(Sent { kind, bytes: 64, sha256: Digest::of(b"sent"), header, round })
    };
    let events = [Event::Opened { site: site() }].into_iter().chain(Kind::ALL.map(sent));
    for event in events.chain([Event::Released { before: 2 }]) {
        let line = chain.entry(&event, Timestamp::from_millis(0));
        chain.take(&line).expect("it goes on");
        lines.push(line);
    }
    vec![lines.join(&b'\n')]
}

/// A ledger as a site exports it: its entries, of which the second pays for its update, and its head, signed.
static LEDGER: LazyLock<String> = LazyLock::new(|| {
    let mut ledger = Ledger::default();
    let mut lines = String::new();
    let cost = Box::new(falaj_core::dp::rdp::RdpCurve::zero());
    let (dataset, study) = ("d".to_owned(), round().study);
    let purpose = "round 1".to_owned();
    for event in [
        Event::Opened { site: site() },
        Event::Reserved { id: 1, dataset, study, purpose, cost },
        Event::Committed { id: 1 },
    ] {
        let line = ledger.entry(&event, Timestamp::from_millis(0), [7; 16]);
        ledger.take(&line).expect("it goes on");
        lines.push_str(str::from_utf8(&line).expect("JSON"));
        lines.push('\n');
    }
    let head = head_bytes(&site(), ledger.entries(), &ledger.head());
    let signature = sign_context(&key(2), HEAD_CONTEXT, &head).expect("signs");
    let last = falaj_core::canon::Canon::map([
        ("head", String::from_utf8(head).expect("JSON").into()),
        ("signature", hex::encode(signature).into()),
    ]);
    lines.push_str(&String::from_utf8(last.to_bytes()).expect("JSON"));
    lines
});

/// An enrolment token.
pub(crate) fn tokens() -> Vec<Vec<u8>> {
    let token = Token {
        address: "c:1".into(),
        coordinator: "spiffe://t/ae-on/ae-az/coordinator/c".parse().expect("an id"),
        issuer_sha256: Digest([1; 32]),
        site: SITE.parse().expect("an id"),
        id: "00112233445566778899aabbccddeeff".into(),
        secret: Secret::new([2; 32]),
        until: Timestamp::from_millis(1_800_000_000_000),
    };
    vec![token.to_string().into_bytes(), format!(" {token}\n").into_bytes()]
}

/// Signing requests: ours, and one that asks for more than is granted.
pub(crate) fn requests() -> Vec<Vec<u8>> {
    let ours = request::request(&key(3)).expect("a request");
    let der = key(4).to_pkcs8_der().expect("a key");
    let pair = KeyPair::try_from(der.as_bytes()).expect("a key");
    let mut params = CertificateParams::new(vec!["a.example".to_owned()]).expect("a name");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let more = params.serialize_request(&pair).expect("a request").der().to_vec();
    vec![ours, more]
}

/// An attestation key of this scheme, a quote by it, and its signature, from a TPM in software.
pub(crate) fn quote(scheme: &str) -> [Vec<u8>; 3] {
    let mut lines = include_str!("../../../certs/testdata/tpm.txt").lines();
    let line = lines.find_map(|line| line.strip_prefix(scheme)).expect("a scheme");
    let parts: Vec<_> =
        line.split_whitespace().map(|part| hex::decode(part).expect("hex")).collect();
    parts.try_into().expect("three parts")
}

pub(crate) fn tpm() -> Vec<Vec<u8>> {
    ["ecdsa", "rsassa", "rsapss"].into_iter().flat_map(quote).collect()
}

/// What could be signed of a version.
fn provenance() -> Provenance {
    let digest = |what: &str| Digest::of(what.as_bytes());
    let site: SiteId = "spiffe://t/ae-on/ae-az/site/h-1".parse().expect("a site");
    let update = UpdateCounted {
        site: site.clone(),
        payload: digest("payload"),
        header: digest("header"),
        weight: 100,
        epsilon: "0.5".into(),
        index: 7,
    };
    let (base, model) = (digest("base"), digest("model"));
    let round = RoundMade { number: 1, base, model, weight: 100, index: 8, updates: vec![update] };
    let gate = GateSaid {
        round: 1,
        name: "auc".into(),
        scope: "all".into(),
        figure: "0.75".into(),
        interval: "0.73..0.77".into(),
        bound: ">= 0.72".into(),
        pass: true,
    };
    Provenance {
        study: "heart".parse().expect("a study"),
        version: 1,
        round: 1,
        model,
        manifest: digest("manifest"),
        file: digest("file"),
        about: About {
            purpose: "a purpose".into(),
            dataset: "records".into(),
            features: vec!["age".into()],
            label: "ill".into(),
            classes: vec!["no".into(), "yes".into()],
            architecture: "logistic".into(),
            mechanism: "dp_sgd".into(),
            delta: "1e-5".into(),
            epsilon_limit: "4".into(),
            places: vec!["ae-on/*".into()],
            legal_basis: String::new(),
            dpia: String::new(),
            consent: String::new(),
        },
        study_sha256: digest("study"),
        base,
        policy_sets: vec![digest("policies")],
        rounds: vec![round],
        epsilon: [(site, "0.5".to_owned())].into(),
        gates: vec![gate],
        coordinator: "spiffe://t/ae-on/ae-az/coordinator/main".into(),
        software: "0.1.0".into(),
        started: "2026-03-01T00:00:00.000Z".into(),
        finished: "2026-03-02T00:00:00.000Z".into(),
        log: LogSaid {
            origin: "falaj.test/log".into(),
            index: 9,
            leaf: digest("leaf"),
            proof: "a proof".into(),
        },
    }
}

pub(crate) fn statements() -> Vec<Vec<u8>> {
    vec![provenance().statement().to_bytes()]
}

pub(crate) fn envelopes() -> Vec<Vec<u8>> {
    let key = SigningKey::from_bytes(&[1; 32]);
    let signer = NoteSigner::new("falaj.test/log", key).expect("a signer");
    vec![provenance().sign(&signer).expect("signed").to_json().into_bytes()]
}
