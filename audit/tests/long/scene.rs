//! A made-up log of any length, as the bundle that a coordinator would export; and what memory its verification takes.

use falaj_certs::{history::History, trust::spki_sha256};
use falaj_core::{
    audit::{
        Actor, Draft, Entry, Kind, bundle,
        person::{Disclosure, Person},
        policy_set,
    },
    canon::Canon,
    evidence::Evidence,
    id::Digest,
    merkle::{self, Frontier, TILE_WIDTH},
    note::{Checkpoint, NoteSigner},
    report::Sections,
    roles::Roles,
    time::Timestamp,
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ED25519, SanType,
};
use std::{
    error::Error,
    fs,
    io::{self, Write},
    process::{Command, Stdio},
};

pub(crate) type Done<T> = Result<T, Box<dyn Error>>;

const WHO: &str = "spiffe://t/ae-on/ae-az/operator/sara";

/// Who may read what in the made-up log, and whom it trusts.
pub(crate) struct Scene {
    signer: NoteSigner,
    issuer: Vec<u8>,
    /// The digest of its key.
    spki: Digest,
    trust: Vec<u8>,
    cert: Vec<u8>,
    policies: Vec<(String, Vec<u8>)>,
    /// Whether each second entry is of a person, whose identity is disclosed beside it.
    pub(crate) people: bool,
}

impl Scene {
    pub(crate) fn new() -> Done<Self> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let der = params.self_signed(&key)?.der().clone();
        let spki = spki_sha256(&der)?;
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(WHO.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &issuer)?.der().to_vec();
        let trust = format!(
            "trust_domain = \"t\"\n[[issuer]]\ncert = \"i\"\nspki_sha256 = \"{spki}\"\nplaces = [\"ae-on/ae-az\"]\n"
        );
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        Ok(Self {
            signer: NoteSigner::new("t/log", ed25519_dalek::SigningKey::from_bytes(&[5; 32]))?,
            issuer: der.to_vec(),
            spki,
            trust: trust.into_bytes(),
            cert,
            policies: vec![
                file("coordinator.cedar", include_str!("../../../policies/coordinator.cedar")),
                file(
                    "coordinator.cedarschema",
                    include_str!("../../../policies/coordinator.cedarschema"),
                ),
            ],
            people: false,
        })
    }

    /// The entry at an index: an operator who reads, with all that a coordinator says about it; and what is disclosed of them.
    pub(crate) fn entry(&self, index: u64) -> (Vec<u8>, Option<Disclosure>) {
        let actor = Actor {
            id: WHO.parse().ok(),
            cert: Some(Digest::of(&self.cert)),
            address: Some("192.0.2.7:50123".into()),
            person: (self.people && index.is_multiple_of(2)).then_some(Person([7; 16])),
            roles: Roles::ALL,
        };
        let set = policy_set(&self.policies);
        let draft = match index {
            0 => Draft::new(Kind::CoordinatorStarted)
                .text("coordinator", "spiffe://t/ae-on/ae-az/coordinator/main")
                .digest("trust_sha256", &Digest::of(&self.trust))
                .digest("policy_set_sha256", &set),
            1..=2 => Draft::new(Kind::ConnectionAdmitted)
                .actor(&actor)
                .text("action", "connect")
                .evidence(&Evidence { issuer: Some(self.spki), ..Evidence::default() }),
            _ => Draft::new(Kind::AdminRead).actor(&actor).text("action", "status.read"),
        };
        let mut draft = match index {
            0 => draft,
            1..=2 => draft.decided(true, &["ACC-200".into()], &set),
            _ => draft.decided(true, &["ACC-205".into()], &set),
        };
        let at = 1_772_323_200_000 + i64::try_from(index).unwrap_or_default();
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&index.to_le_bytes());
        let disclosed = draft.commit_to_person(index, [9; 32]).map(|(_, disclosure)| disclosure);
        (draft.finish(index, Timestamp::from_millis(at), nonce), disclosed)
    }

    /// Writes a bundle of so many entries as it goes; `tick` is called for each tile.
    pub(crate) fn bundle(&self, size: u64, out: impl Write, mut tick: impl FnMut()) -> Done<()> {
        let mut frontier = Frontier::new();
        for index in 0..size {
            frontier.push(merkle::leaf_hash(&self.entry(index).0));
        }
        let root = frontier.root();
        let key = self.signer.verifier();
        let head = Checkpoint { origin: key.name().to_owned(), tree_size: size, root_hash: root };
        let about = Canon::map([
            ("v", bundle::VERSION.into()),
            ("origin", key.name().into()),
            ("tree_size", Canon::Int(i64::try_from(size)?)),
            ("log_verifier_key", key.to_string().into()),
        ]);
        let (mut report, mut history) = (Sections::default(), History::default());
        history.take_issuer(self.issuer.clone())?;
        history.take_trust("trust", &self.trust)?;
        let (cert, set) = (Digest::of(&self.cert), policy_set(&self.policies));
        let holder = history.take_certificate(cert, self.cert.clone());
        report.certificate(cert, holder.ok_or("nobody vouches for the operator")?);
        let mut tar = tar::Builder::new(out);
        put(&mut tar, bundle::ABOUT, &about.to_bytes())?;
        put(&mut tar, bundle::CHECKPOINT, self.signer.sign(&head.body())?.as_bytes())?;
        put(&mut tar, &bundle::issuer(&Digest::of(&self.issuer)), &self.issuer)?;
        put(&mut tar, &bundle::trust(&Digest::of(&self.trust)), &self.trust)?;
        put(&mut tar, &bundle::certificate(&cert), &self.cert)?;
        for (name, bytes) in &self.policies {
            put(&mut tar, &bundle::policy(&set, name), bytes)?;
            report.policy(set, name, bytes);
        }
        for n in 0..size.div_ceil(TILE_WIDTH) {
            let width = TILE_WIDTH.min(size - n * TILE_WIDTH);
            let (mut tile, mut entries, mut personal) = (Vec::new(), Vec::new(), Vec::new());
            for index in n * TILE_WIDTH..n * TILE_WIDTH + width {
                let (bytes, disclosed) = self.entry(index);
                tile.extend_from_slice(&merkle::leaf_hash(&bytes).0);
                merkle::put_entry(&bytes, &mut entries);
                let mut entry = Entry::parse(&bytes)?;
                if let Some(disclosed) = disclosed {
                    entry = entry.disclosed(&disclosed)?;
                    personal.extend(disclosed.to_bytes());
                    personal.push(b'\n');
                }
                report.take(&entry);
            }
            put(&mut tar, &merkle::tile_path(0, n, width), &tile)?;
            if !personal.is_empty() {
                put(&mut tar, &bundle::personal(n), &personal)?;
            }
            put(&mut tar, &merkle::entries_path(n, width), &entries)?;
            tick();
        }
        let report = report.finish(key.name(), size, &root);
        put(&mut tar, bundle::REPORT, &report.to_bytes())?;
        tar.into_inner()?.flush()?;
        Ok(())
    }
}

fn put<W: Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    tar.append_data(&mut header, path, bytes)
}

/// The most memory that the program itself takes for so many entries, read from a pipe.
pub(crate) fn peak_kib(scene: &Scene, size: u64) -> Done<u64> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_falaj-verify"))
        .args(["/dev/stdin", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let pipe = child.stdin.take().ok_or("no pipe")?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let written = scene.bundle(size, io::BufWriter::with_capacity(1 << 20, pipe), || {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(kib.unwrap_or(0));
    });
    let ended = child.wait()?;
    written?;
    if !ended.success() {
        return Err("the program did not verify the long log".into());
    }
    Ok(peak)
}
