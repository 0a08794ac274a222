//! Whole bundles: as bytes, and as one that holds and is then edited, so that what is behind the tar is reached too.
//!
//! Nothing but the log that was signed is ever accepted: should a changed bundle verify, its entries are the same bytes.

use crate::{key, seeds};
use falaj_core::{
    audit::{Actor, Draft, Entry, Kind, bundle, policy_set},
    canon::Canon,
    id::Digest,
    merkle::{self, Frontier},
    note::{self, Checkpoint, NoteSigner, VerifierKey},
    report::Sections,
    time::Timestamp,
    update::CONTEXT,
};
use falaj_proto::study;
use falaj_verify::{Options, verify};
use std::{io::Read as _, sync::LazyLock};

/// Policies by which sites do what the bundle tells of.
const POLICY: [(&str, &str); 2] = [
    ("coordinator.cedar", "@id(\"ALL\") permit (principal, action, resource);\n"),
    (
        "coordinator.cedarschema",
        "namespace Falaj {
    entity Site = { name: String, trust_domain: String, jurisdiction: String, region: String };
    entity Study = { mechanism: String, jurisdiction: String };
    action \"study.submit\", \"update.send\" appliesTo { principal: [Site], resource: [Study] };
}
",
    ),
];

/// A bundle that holds.
struct Base {
    files: Vec<(String, Vec<u8>)>,
    key: VerifierKey,
    root: Digest,
    size: u64,
}

static BASE: LazyLock<Base> = LazyLock::new(base);

/// The entries of the bundle that holds.
pub(crate) fn entries() -> Vec<u8> {
    let found = BASE.files.iter().find(|(path, _)| path.starts_with(bundle::ENTRIES));
    found.map(|(_, bytes)| bytes.clone()).unwrap_or_default()
}

fn base() -> Base {
    let [issuer, cert] = &seeds::certificates()[..] else { panic!("two certificates") };
    let (trust, study) = (seeds::trust_file(), seeds::STUDY.as_bytes().to_vec());
    let policies = POLICY.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()));
    let set = policy_set(&policies);
    let (round, site) = (seeds::round(), seeds::site());
    let (base, payload) = (Digest::of(b"base"), Digest::of(b"payload"));
    let header = seeds::header().to_bytes();
    let digest = Digest::of(&header);
    let signature = note::sign_context(&key(2), CONTEXT, &header).expect("signs");
    let actor = Actor {
        id: Some(site.spiffe().clone()),
        cert: Some(Digest::of(cert)),
        address: Some("127.0.0.1:9".into()),
        ..Actor::default()
    };
    let drafts = [
        Draft::new(Kind::CoordinatorStarted)
            .text("coordinator", "spiffe://t/ae-on/ae-az/coordinator/main")
            .digest("trust_sha256", &Digest::of(&trust))
            .digest("policy_set_sha256", &set),
        Draft::new(Kind::StudySubmitted)
            .actor(&actor)
            .text("action", "study.submit")
            .decided(true, &["ALL".into()], &set)
            .study(&round.study)
            .digest("study_sha256", &Digest::of(&study))
            .digest("model_sha256", &base),
        Draft::new(Kind::RoundOpened).round(&round).digest("base_sha256", &base),
        Draft::new(Kind::UpdateAccepted)
            .actor(&actor)
            .round(&round)
            .text("site", seeds::SITE)
            .digest("payload_sha256", &payload)
            .digest("header_sha256", &digest)
            .text("epsilon", "1.0000")
            .text("action", "update.send")
            .decided(true, &["ALL".into()], &set),
        Draft::new(Kind::ModelPublished)
            .round(&round)
            .digest("base_sha256", &base)
            .digest("model_sha256", &Digest::of(b"model"))
            .digests("updates", &[payload]),
    ];
    let (mut report, mut history) = (Sections::default(), seeds::history());
    let holder = history.take_certificate(Digest::of(cert), cert.clone());
    report.certificate(Digest::of(cert), holder.expect("vouched for"));
    policies.iter().for_each(|(name, bytes)| report.policy(set, name, bytes));
    let parsed = study::parse(seeds::STUDY, "study.yaml").expect("a study");
    report.study(Digest::of(&study), parsed);
    let (mut frontier, mut tile, mut entries) = (Frontier::new(), Vec::new(), Vec::new());
    for (seq, draft) in (0_u8..).zip(drafts) {
        let bytes = draft.finish(seq.into(), Timestamp::from_millis(seq.into()), [seq; 16]);
        let leaf = merkle::leaf_hash(&bytes);
        tile.extend_from_slice(&leaf.0);
        merkle::put_entry(&bytes, &mut entries);
        frontier.push(leaf);
        report.take(&Entry::parse(&bytes).expect("an entry"));
    }
    let (size, root) = (frontier.size(), frontier.root());
    let signer = NoteSigner::new("t/log", key(5)).expect("a signer");
    let head = Checkpoint { origin: "t/log".into(), tree_size: size, root_hash: root };
    let about = Canon::map([
        ("v", bundle::VERSION.into()),
        ("origin", "t/log".into()),
        ("tree_size", Canon::Int(i64::try_from(size).expect("small"))),
        ("log_verifier_key", signer.verifier().to_string().into()),
    ]);
    let [rules, schema] = policies;
    let files = vec![
        (bundle::ABOUT.to_owned(), about.to_bytes()),
        (bundle::CHECKPOINT.to_owned(), signer.sign(&head.body()).expect("signs").into_bytes()),
        (bundle::issuer(&Digest::of(issuer)), issuer.clone()),
        (bundle::trust(&Digest::of(&trust)), trust),
        (bundle::certificate(&Digest::of(cert)), cert.clone()),
        (bundle::policy(&set, &rules.0), rules.1),
        (bundle::policy(&set, &schema.0), schema.1),
        (bundle::study(&Digest::of(&study)), study),
        (bundle::header(&digest), header),
        (bundle::signature(&digest), signature.to_vec()),
        (merkle::tile_path(0, 0, size), tile),
        (merkle::entries_path(0, size), entries),
        (bundle::REPORT.to_owned(), report.finish("t/log", size, &root).to_bytes()),
    ];
    Base { files, key: signer.verifier().clone(), root, size }
}

/// Verifies bytes as a bundle under the log's key, which is known from elsewhere.
fn hold(tar: &[u8], ledgers: &[String]) -> bool {
    let options = Options { log_key: Some(&BASE.key), ledgers, ..Options::default() };
    let Ok(report) = verify(tar, options, |_, _| {}) else { return false };
    assert_eq!((report.tree_size, report.root_hash), (BASE.size, BASE.root.to_string()));
    let mut read = Vec::new();
    for file in tar::Archive::new(tar).entries().expect("it was read before") {
        let mut file = file.expect("it was read before");
        if file.path_bytes().starts_with(bundle::ENTRIES.as_bytes()) {
            file.read_to_end(&mut read).expect("in memory");
        }
    }
    assert!(read == entries(), "a bundle with other entries was accepted");
    true
}

/// Bytes, taken for a bundle.
pub(crate) fn raw(data: &[u8]) {
    hold(data, &[]);
}

pub(crate) fn raw_seeds() -> Vec<Vec<u8>> {
    vec![write(&plain())]
}

/// A ledger beside the bundle that holds: only the very lines that the site signed are accepted.
pub(crate) fn with_ledger(text: &str) {
    static TAR: LazyLock<Vec<u8>> = LazyLock::new(|| write(&plain()));
    let whole = seeds::ledger().remove(0);
    let held = hold(&TAR, &[text.to_owned()]);
    assert!(held || text.as_bytes() != whole, "the ledger to begin from does not hold");
    if held {
        let entries = |text: &str| -> Vec<String> {
            let (entries, _) = text.trim_end().rsplit_once('\n').unwrap_or_default();
            entries.lines().map(str::to_owned).collect()
        };
        assert_eq!(entries(text), entries(&String::from_utf8_lossy(&whole)));
    }
}

/// One file of a tar that need not be right.
#[derive(Clone)]
struct File {
    name: Vec<u8>,
    bytes: Vec<u8>,
    kind: u8,
    /// The size field, when it is not the true one.
    size: Option<[u8; 12]>,
    link: Vec<u8>,
    /// Whether the checksum is left wrong.
    unsummed: bool,
}

fn plain() -> Vec<File> {
    let file = |(name, bytes): &(String, Vec<u8>)| File {
        name: name.clone().into_bytes(),
        bytes: bytes.clone(),
        kind: b'0',
        size: None,
        link: Vec::new(),
        unsummed: false,
    };
    BASE.files.iter().map(file).collect()
}

fn write(files: &[File]) -> Vec<u8> {
    let mut out = Vec::new();
    for file in files {
        let mut header = tar::Header::new_ustar();
        let put = |field: &mut [u8], text: &[u8]| {
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text[..length]);
        };
        put(&mut header.as_old_mut().name, &file.name);
        put(&mut header.as_old_mut().linkname, &file.link);
        header.as_old_mut().linkflag = [file.kind];
        header.set_size(file.bytes.len() as u64);
        if let Some(size) = file.size {
            header.as_old_mut().size = size;
        }
        header.set_cksum();
        if file.unsummed {
            header.as_old_mut().cksum[0] ^= 1;
        }
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&file.bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// Names that no bundle has, or that lead out of a folder.
const NAMES: [&[u8]; 8] = [
    b"../../etc/passwd",
    b"/etc/passwd",
    b"tile/entries/../../x",
    b"tile/entries/x001/000",
    b"witnessed/../checkpoint",
    b"./bundle.json",
    b"updates/\xff\xfe.header",
    b"",
];
/// Sizes that are not so: none, huge, negative, no number.
const SIZES: [&[u8; 12]; 6] = [
    b"00000000000\0",
    b"77777777777\0",
    b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"0000000000x\0",
    b"\0\0\0\0\0\0\0\0\0\0\0\0",
];
/// Records before a file that say more about it: extended headers, and the long names of GNU tar.
const RECORDS: [(u8, &[u8]); 6] = [
    (b'x', b"30 path=../../../../tmp/there\n"),
    (b'x', b"18 size=999999999\n"),
    (b'x', b"27 GNU.sparse.realsize=512\n"),
    (b'x', b"99999999999999999999 path=x\n"),
    (b'L', b"tile/entries/000\0"),
    (b'K', b"/etc/passwd\0"),
];

/// The bundle that holds, edited as the bytes say: four bytes to an edit.
pub(crate) fn edited(data: &[u8]) {
    let mut files = plain();
    let (edits, _) = data.as_chunks::<4>();
    let mut cut = None;
    for &[what, which, a, b] in edits.iter().take(64) {
        if files.is_empty() {
            break;
        }
        let at = usize::from(which) % files.len();
        let far = usize::from(u16::from_be_bytes([a, b]));
        let file = &mut files[at];
        match what % 14 {
            0 if !file.bytes.is_empty() => {
                let at = far % file.bytes.len();
                file.bytes[at] ^= 1 << (what / 14 % 8);
            }
            1 => file.name = NAMES[usize::from(a) % NAMES.len()].to_vec(),
            2 => file.name = BASE.files[usize::from(a) % BASE.files.len()].0.clone().into_bytes(),
            3 => file.kind = a,
            4 => file.size = Some(*SIZES[usize::from(a) % SIZES.len()]),
            5 => drop(files.remove(at)),
            6 => {
                let copy = file.clone();
                let to = usize::from(a) % (files.len() + 1);
                files.insert(to, copy);
            }
            7 => {
                let other = usize::from(a) % files.len();
                files.swap(at, other);
            }
            8 => file.bytes.truncate(far),
            9 => file.bytes.extend([a, b]),
            10 => {
                let (kind, bytes) = RECORDS[usize::from(a) % RECORDS.len()];
                let name = b"record".to_vec();
                let record = File { name, bytes: bytes.to_vec(), kind, ..file.clone() };
                files.insert(at, record);
            }
            11 => cut = Some(far),
            12 => file.unsummed = true,
            13 => file.link = NAMES[usize::from(a) % NAMES.len()].to_vec(),
            _ => {}
        }
    }
    let mut tar = write(&files);
    if let Some(cut) = cut {
        tar.truncate(cut);
    }
    let held = hold(&tar, &[]);
    assert!(held || !edits.is_empty(), "the bundle to begin from does not hold");
}

pub(crate) fn edits() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (0..14).map(|what| vec![what, what / 2, 1, what]).collect();
    seeds.push(Vec::new());
    seeds
}
