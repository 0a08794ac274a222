//! Every parser that meets foreign bytes, as a target for a fuzzer: what it must hold to whatever the bytes are.
//!
//! `cargo test -p falaj-fuzz` runs each target over its seeds, over what was ever found (`regressions/`), and over changes
//! that are the same in every run. `cargo xtask fuzz` lets libFuzzer look further. A target panics when its property is
//! broken, and only then.

mod bundles;
mod seeds;

use bytes::Bytes;
use ed25519_dalek::{SigningKey, VerifyingKey};
use falaj_certs::{
    enrolment::{TOKEN_BYTES_MAX, Token},
    history::History,
    identity::Identity,
    request::{REQUEST_BYTES_MAX, SigningRequest},
    tpm::verify,
    trust::TrustFile,
};
use falaj_core::{
    audit::{Entry, objects},
    canon::{Canon, Document},
    egress,
    evaluation::answer::EvaluationHeader,
    id::{Digest, Place, SpiffeId},
    ledger::{Ledger, OtherPeople},
    manifest::Manifest,
    merkle,
    note::{self, Checkpoint, VerifierKey},
    receipt::Receipt,
    registry::{
        card,
        dsse::{ENVELOPE_BYTES_MAX, Envelope},
        provenance::Provenance,
    },
    task::TaskHeader,
    tpm::{Attest, AttestationKey, REGISTERS},
    update::UpdateHeader,
    witness::{AddCheckpoint, InclusionProof, WitnessKey},
};
use falaj_proto::{
    onnx::{self, About},
    study,
};
use rustls_pki_types::CertificateDer;
use std::{fmt::Display, path::Path, str::FromStr};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

/// One parser, or a few that read the same bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Holds it to its properties.
    pub run: fn(&[u8]),
    /// Bytes to begin from, which it reads.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "canon", run: canon, seeds: seeds::canon },
    Target { name: "entry", run: entry, seeds: seeds::entries },
    Target { name: "entries", run: entries, seeds: seeds::bundles_of_entries },
    Target { name: "signed", run: signed, seeds: seeds::signed },
    Target { name: "note", run: note, seeds: seeds::notes },
    Target { name: "keys", run: keys, seeds: seeds::keys },
    Target { name: "add-checkpoint", run: add_checkpoint, seeds: seeds::add_checkpoint },
    Target { name: "proof", run: proof, seeds: seeds::proof },
    Target { name: "envelope", run: envelope, seeds: seeds::envelopes },
    Target { name: "statement", run: statement, seeds: seeds::statements },
    Target { name: "ids", run: ids, seeds: seeds::ids },
    Target { name: "study", run: study, seeds: seeds::study },
    Target { name: "trust", run: trust, seeds: seeds::trust },
    Target { name: "ledger", run: ledger, seeds: seeds::ledger },
    Target { name: "egress", run: egress, seeds: seeds::egress },
    Target { name: "certificate", run: certificate, seeds: seeds::certificates },
    Target { name: "token", run: token, seeds: seeds::tokens },
    Target { name: "request", run: request, seeds: seeds::requests },
    Target { name: "tpm", run: tpm, seeds: seeds::tpm },
    Target { name: "tar", run: bundles::raw, seeds: bundles::raw_seeds },
    Target { name: "bundle", run: bundles::edited, seeds: bundles::edits },
    Target { name: "model", run: model, seeds: seeds::models },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|t| t.name == name)
}

/// What was read spells itself as it was read.
fn same(what: &str, read: &[u8], spelled: &[u8]) {
    assert!(
        read == spelled,
        "{what}: {:?} reads as {:?}",
        String::from_utf8_lossy(read),
        String::from_utf8_lossy(spelled)
    );
}

/// Text that is read spells itself as it was.
fn text<T: FromStr + Display>(what: &str, text: &str) {
    if let Ok(read) = text.parse::<T>() {
        same(what, text.as_bytes(), read.to_string().as_bytes());
    }
}

/// A token has one spelling, and its secret does not come out otherwise.
fn token(data: &[u8]) {
    let Ok(given) = str::from_utf8(data) else { return };
    let Ok(token) = given.parse::<Token>() else { return };
    same("token", given.trim().as_bytes(), token.to_string().as_bytes());
    assert!(data.len() <= TOKEN_BYTES_MAX + data.len() - given.trim().len());
}

/// Of a request that is accepted the key can be had, it fits its bound, and others read the same key in it.
fn request(data: &[u8]) {
    let Ok(asked) = SigningRequest::parse(data) else { return };
    assert!(data.len() <= REQUEST_BYTES_MAX);
    let key = VerifyingKey::from_bytes(asked.public_key()).expect("a key");
    assert!(!key.is_weak());
    let (_, other) = X509CertificationRequest::from_der(data).expect("a request");
    let spki = &other.certification_request_info.subject_pki;
    assert_eq!(&spki.subject_public_key.data[..], asked.public_key());
}

/// A key is kept as it was read, a quote ends where its bytes do, and RSA has one signature for one quote: no other verifies.
fn tpm(data: &[u8]) {
    if let Ok(key) = AttestationKey::parse_sized(data) {
        same("attestation key", &data[2..], key.as_bytes());
        assert_eq!(AttestationKey::parse(&data[2..]).as_ref(), Ok(&key));
    }
    if let Ok(attest) = Attest::parse(data) {
        assert!(attest.registers.is_sorted() && attest.registers.iter().all(|n| *n < REGISTERS));
        assert!(Attest::parse(&[data, &[0]].concat()).is_err());
    }
    let [ecdsa, rsa] = ["ecdsa", "rsassa"].map(seeds::quote);
    let key = |bytes: &[u8]| AttestationKey::parse_sized(bytes).expect("a key");
    if let Ok(parts) = key(&ecdsa[0]).signature(data) {
        assert_eq!(parts.len(), 64);
    }
    let [public, attest, signature] = rsa;
    let public = key(&public);
    assert!(data == signature || verify(&public, &attest, data).is_err());
    assert!(data == attest || verify(&public, data, &signature).is_err());
}

/// What is accepted is the one spelling of its value, and a general JSON reader reads the same value.
fn canon(data: &[u8]) {
    let Ok(document) = Document::parse(data) else {
        return;
    };
    let root = document.root();
    same("canon", data, &root.to_bytes());
    same("canon, rewritten", data, &root.to_canon().to_bytes());
    let other: serde_json::Value = serde_json::from_slice(data).expect("canonical JSON is JSON");
    assert!(alike(&root.to_canon(), &other), "{other}");
}

fn alike(ours: &Canon, other: &serde_json::Value) -> bool {
    use serde_json::Value;
    match (ours, other) {
        (Canon::Bool(a), Value::Bool(b)) => a == b,
        (Canon::Int(a), Value::Number(b)) => Some(*a) == b.as_i64(),
        (Canon::Text(a), Value::String(b)) => a == b,
        (Canon::List(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b))
        }
        (Canon::Map(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| alike(a, b)))
        }
        _ => false,
    }
}

/// An entry keeps its bytes, and everything under which it is found stands in it.
fn entry(data: &[u8]) {
    let Ok(entry) = Entry::parse(data) else { return };
    same("entry", data, &entry.body().to_bytes());
    let _ = (entry.round(), entry.digests("updates"));
    for object in objects::objects(&entry) {
        let spelled = object.to_string();
        assert_eq!(spelled.parse::<objects::Object>().ok(), Some(object), "{spelled}");
    }
    let _ = objects::terms(&entry);
}

/// A bundle whose entries are whole is made of them and of nothing else.
fn entries(data: &[u8]) {
    let Some(read) = merkle::entries(data).collect::<Option<Vec<_>>>() else { return };
    let mut again = Vec::new();
    read.iter().for_each(|entry| merkle::put_entry(entry, &mut again));
    same("entries", data, &again);
}

/// Signed words: a header, a receipt, a task, a steward's statement, a manifest.
fn signed(data: &[u8]) {
    // Members that these do not know are kept out by the signature, not by the parser: what they know comes back.
    let again = |what: &str, bytes: Option<Vec<u8>>, read: &dyn Fn(&[u8]) -> Option<Vec<u8>>| {
        let Some(bytes) = bytes else { return };
        let twice = read(&bytes).unwrap_or_else(|| panic!("{what} does not read what it wrote"));
        same(what, &bytes, &twice);
    };
    let header = |b: &[u8]| UpdateHeader::parse(b).ok().map(|h| h.to_bytes());
    again("header", header(data), &header);
    let receipt = |b: &[u8]| Receipt::parse(b).ok().map(|r| r.to_bytes());
    again("receipt", receipt(data), &receipt);
    let task = |b: &[u8]| TaskHeader::parse(b).ok().map(|t| t.to_bytes());
    again("task", task(data), &task);
    let counted = |b: &[u8]| EvaluationHeader::parse(b).ok().map(|h| h.to_bytes());
    again("evaluation", counted(data), &counted);
    let others = |b: &[u8]| OtherPeople::parse(b).ok().map(|o| o.to_bytes());
    again("statement", others(data), &others);
    let manifest = |b: &[u8]| Manifest::parse(b).ok().map(|m| m.to_bytes());
    again("manifest", manifest(data), &manifest);
}

/// Only what a key signed opens under it, and a checkpoint that opens is spelled in one way.
fn note(data: &[u8]) {
    let Ok(data) = str::from_utf8(data) else { return };
    let log: VerifierKey = seeds::vector("vkey").parse().expect("a key");
    let opened = note::open(data, &log).ok();
    if let Some(body) = opened {
        assert!(data.starts_with(body) && body.ends_with('\n'), "{body}");
        assert_eq!(body, seeds::vector("signed_text"), "something that was never signed opens");
    }
    if let Ok(head) = Checkpoint::open(data, &log) {
        assert_eq!(Some(&*head.body()), opened);
    }
    let witness: WitnessKey = seeds::vector("witness_vkey").parse().expect("a key");
    let _ = witness.cosigned(data);
}

/// Keys as text have one spelling, blanks around it aside: they come from files and command lines.
fn keys(data: &[u8]) {
    let Ok(data) = str::from_utf8(data).map(str::trim) else { return };
    text::<VerifierKey>("verifier key", data);
    text::<WitnessKey>("witness key", data);
}

/// A request to a witness has one spelling.
fn add_checkpoint(data: &[u8]) {
    let Ok(data) = str::from_utf8(data) else { return };
    if let Some(read) = AddCheckpoint::parse(data) {
        assert!(read.proof.len() <= 63);
        same("add-checkpoint", data.as_bytes(), read.to_text().as_bytes());
    }
}

/// An envelope that is read fits its bound, and reads as the same when it is written.
fn envelope(data: &[u8]) {
    let Ok(read) = Envelope::parse(data) else { return };
    assert!(data.len() <= ENVELOPE_BYTES_MAX);
    assert_eq!(Envelope::parse(read.to_json().as_bytes()), Ok(read));
}

/// A provenance has one spelling, and nothing of it is a mark in a card.
fn statement(data: &[u8]) {
    let Ok(read) = Provenance::read(data) else { return };
    same("provenance", data, &read.statement().to_bytes());
    let (html, markdown) = (card::html(&read), card::markdown(&read));
    assert!(!html.contains("<script") && !markdown.contains('<'), "{html}");
}

/// A proof has one spelling, and leads nowhere but to the head that was signed.
fn proof(data: &[u8]) {
    let Ok(data) = str::from_utf8(data) else { return };
    let Ok(read) = InclusionProof::parse(data) else { return };
    assert!(read.hashes.len() <= 63);
    same("proof", data.as_bytes(), read.to_text().as_bytes());
    let log: VerifierKey = seeds::vector("vkey").parse().expect("a key");
    let leaf = merkle::leaf_hash(b"leaf-42");
    if read.verify(&leaf, &log).is_ok() {
        assert_eq!(read.index, 42, "a proof of one entry proves another");
    }
}

/// Names have one spelling.
fn ids(data: &[u8]) {
    let Ok(data) = str::from_utf8(data) else { return };
    text::<SpiffeId>("SPIFFE ID", data);
    text::<Place>("place", data);
    text::<Digest>("digest", data);
    text::<objects::Object>("object", data);
}

/// A study file is a study or a list of what is wrong with it, in the file's own lines.
fn study(data: &[u8]) {
    let Ok(data) = str::from_utf8(data) else { return };
    match study::parse(data, "study.yaml") {
        Ok(study) => {
            let _ = (study.cost_of_joining(), study.cost_of_rounds(1));
        }
        Err(wrong) => assert!(!wrong.to_string().is_empty()),
    }
}

/// A file that becomes ONNX has the study's tensors, each parameter a number, and they are there bit by bit.
fn model(data: &[u8]) {
    let study = study::parse(seeds::STUDY, "study.yaml").expect("a study");
    let params = &data[data.len().saturating_sub(seeds::MODEL.len() * 4)..];
    let (study_sha256, model_sha256) = (Digest::of(seeds::STUDY.as_bytes()), Digest::of(params));
    let about = About { study: &study, study_sha256, version: 1, round: 1, model_sha256 };
    let Ok(made) = onnx::export(&Bytes::copy_from_slice(data), &about) else { return };
    let (numbers, _) = params.as_chunks::<4>();
    assert!(numbers.iter().all(|n| f32::from_le_bytes(*n).is_finite()));
    // A weight and a bias, of two numbers each.
    assert!(params.chunks(8).all(|tensor| made.windows(8).any(|bytes| bytes == tensor)));
}

/// A trust configuration that is read reads back as itself; issuers that it names need not exist.
fn trust(data: &[u8]) {
    let Ok(data) = str::from_utf8(data) else { return };
    let Ok(file) = TrustFile::parse(Path::new("trust.toml"), data) else { return };
    let again = toml::to_string(&file).expect("it was TOML");
    let twice = TrustFile::parse(Path::new("trust.toml"), &again).expect("it wrote it itself");
    assert_eq!(format!("{file:?}"), format!("{twice:?}"));
    let _ = History::default().take_trust("trust.toml", data.as_bytes());
}

/// A line that a ledger takes is part of its chain; one that it refuses changes nothing.
fn ledger(data: &[u8]) {
    let mut ledger = Ledger::default();
    if let Ok(text) = str::from_utf8(data) {
        bundles::with_ledger(text);
    }
    for line in data.split(|b| *b == b'\n') {
        let (head, entries) = (ledger.head(), ledger.entries());
        if ledger.take(line).is_ok() {
            assert_eq!(ledger.entries(), entries + 1);
            assert_eq!(ledger.head(), Digest::of(line));
        } else {
            assert_eq!((ledger.head(), ledger.entries()), (head, entries));
        }
    }
}

/// As of a ledger, of an egress journal: and what goes on from any of its lines comes to the same.
fn egress(data: &[u8]) {
    let (mut chain, lines): (_, Vec<&[u8]>) =
        (egress::Chain::default(), data.split(|b| *b == b'\n').collect());
    for (at, line) in lines.iter().enumerate() {
        let before = chain.clone();
        if chain.take(line).is_err() {
            assert_eq!(chain, before);
            continue;
        }
        assert_eq!((chain.entries(), chain.head()), (before.entries() + 1, Digest::of(line)));
        let site = chain.site().expect("it was opened").clone();
        let mut from = egress::Chain::before(lines[at], site).expect("it was taken");
        from.take(line).expect("it was taken");
        assert_eq!(from, chain);
    }
}

/// Whoever a certificate names has one spelling, and nobody vouches for a certificate that was changed.
fn certificate(data: &[u8]) {
    if let Ok(identity) = Identity::parse(&CertificateDer::from(data)) {
        text::<SpiffeId>("identity", &identity.spiffe.to_string());
        let _ = VerifyingKey::from_bytes(&identity.public_key);
    }
    let mut history = seeds::history();
    if history.take_certificate(Digest::of(data), data.to_vec()).is_some() {
        assert!(seeds::certificates().iter().any(|c| c == data), "a forged certificate counts");
    }
    let _ = history.take_issuer(data.to_vec());
}

/// A key that is the same in every run.
fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}
