//! Witnesses: whoever keeps the last checkpoint of a log, asks that the next one goes on from it, and cosigns it.
//!
//! A log that shows two histories has to keep its witnesses apart for ever, and one that takes an entry back is
//! found out by the first witness that it meets. Every site is one; outside witnesses attach by the same protocol.
//!
//! Sources: C2SP tlog-cosignature v1.0.1 (Ed25519 form), tlog-witness v1.0.0, tlog-proof v1. Pure: what was seen last
//! is kept by the caller, durably, before it says so to anybody.

use crate::{
    id::{Digest, SpiffeId},
    merkle::{ProofError, verify_consistency, verify_inclusion},
    note::{self, Checkpoint, NoteError, VerifierKey, decimal},
    sign::SignKey,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{Signature, VerifyingKey};
use std::{fmt, fmt::Write as _, str::FromStr};

/// The signature type of a cosignature by Ed25519.
const COSIGNATURE: u8 = 0x04;
/// Hashes of one proof at most: a tree has no more levels than that.
const HASHES_MAX: usize = 63;
/// First line of a proof file.
const PROOF_HEAD: &str = "c2sp.org/tlog-proof@v1";

/// A witness's name and public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessKey {
    name: String,
    key: VerifyingKey,
}

impl WitnessKey {
    /// A key under a name.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the name is empty or holds spaces or `+`.
    pub fn new(name: &str, key: VerifyingKey) -> Result<Self, NoteError> {
        if note::is_name(name) {
            Ok(Self { name: name.to_owned(), key })
        } else {
            Err(NoteError::Key)
        }
    }

    /// The key of a party by its certificate: its identity without the scheme is the name.
    ///
    /// # Errors
    /// [`NoteError::Key`] when it has no Ed25519 key.
    pub fn of_party(id: &SpiffeId, public_key: &[u8; 32]) -> Result<Self, NoteError> {
        let key = VerifyingKey::from_bytes(public_key).map_err(|_| NoteError::Key)?;
        Self::new(&name_of_party(id), key)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When this witness cosigned a checkpoint, in seconds since 1970, if it did. Of several times, the latest.
    ///
    /// # Errors
    /// [`NoteError`] when the note is malformed, or a cosignature that claims to be this witness's does not verify.
    pub fn cosigned(&self, note: &str) -> Result<Option<u64>, NoteError> {
        let (body, signatures) = note::split(note)?;
        let id = note::key_id(&self.name, COSIGNATURE, self.key.as_bytes());
        let mut latest = None;
        for (name, bytes) in signatures {
            if name != self.name || bytes[..4] != id {
                continue;
            }
            let bad = || NoteError::BadSignature(name.to_owned());
            let (time, signature) = bytes[4..].split_first_chunk::<8>().ok_or_else(bad)?;
            let time = u64::from_be_bytes(*time);
            let signature = Signature::from_slice(signature).map_err(|_| bad())?;
            let message = message(time, body);
            self.key.verify_strict(message.as_bytes(), &signature).map_err(|_| bad())?;
            latest = latest.max(Some(time));
        }
        Ok(latest)
    }
}

impl fmt::Display for WitnessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&note::key_text(&self.name, COSIGNATURE, self.key.as_bytes()))
    }
}

impl FromStr for WitnessKey {
    type Err = NoteError;
    fn from_str(s: &str) -> Result<Self, NoteError> {
        let (name, key) = note::parse_key(s, COSIGNATURE)?;
        Ok(Self { name, key })
    }
}

/// The name under which a party cosigns.
#[must_use]
pub fn name_of_party(id: &SpiffeId) -> String {
    id.to_string().trim_start_matches("spiffe://").to_owned()
}

/// The party that cosigns under a name, if it is one of this federation's.
#[must_use]
pub fn party_of_name(name: &str, trust_domain: &str) -> Option<SpiffeId> {
    let party: SpiffeId = format!("spiffe://{name}").parse().ok()?;
    (party.trust_domain() == trust_domain).then_some(party)
}

fn message(time: u64, body: &str) -> String {
    format!("cosignature/v1\ntime {time}\n{body}")
}

/// A signature line: that the log had this head at `time`, in seconds since 1970, and that it goes on from all heads
/// that this witness has seen before. To be made only after the head was kept, durably.
///
/// # Errors
/// [`NoteError::Key`] when the name is not one; [`NoteError::Sign`] when the key cannot be used now.
pub fn cosign(
    name: &str,
    key: &dyn SignKey,
    time: u64,
    head: &Checkpoint,
) -> Result<String, NoteError> {
    if !note::is_name(name) {
        return Err(NoteError::Key);
    }
    let mut bytes = note::key_id(name, COSIGNATURE, key.verifying_key().as_bytes()).to_vec();
    bytes.extend_from_slice(&time.to_be_bytes());
    bytes.extend_from_slice(&key.sign(message(time, &head.body()).as_bytes())?);
    Ok(format!("\u{2014} {name} {}\n", BASE64.encode(bytes)))
}

/// Why a checkpoint does not go on from the last one that was seen: a log must never show that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fork {
    /// Another log.
    #[error("the checkpoint is of log `{shown}`, and this site watches `{seen}`")]
    Origin {
        /// Before.
        seen: String,
        /// Now.
        shown: String,
    },
    /// Entries are gone.
    #[error("the log has {shown} entries, and had {seen}: entries were taken back")]
    Shrunk {
        /// Before.
        seen: u64,
        /// Now.
        shown: u64,
    },
    /// The history is another one.
    #[error(
        "the log of {shown} entries does not go on from the {seen} entries that were seen: its history was changed ({why})"
    )]
    Rewritten {
        /// Before.
        seen: u64,
        /// Now.
        shown: u64,
        /// What the proof lacks.
        why: ProofError,
    },
}

/// Checks that a checkpoint goes on from the last one seen, if there is one. Both were signed by the log.
///
/// # Errors
/// [`Fork`].
pub fn goes_on(
    seen: Option<&Checkpoint>,
    shown: &Checkpoint,
    proof: &[Digest],
) -> Result<(), Fork> {
    let Some(seen) = seen else { return Ok(()) };
    if seen.origin != shown.origin {
        let (seen, shown) = (seen.origin.clone(), shown.origin.clone());
        return Err(Fork::Origin { seen, shown });
    }
    let (old, new) = (seen.tree_size, shown.tree_size);
    if new < old {
        return Err(Fork::Shrunk { seen: old, shown: new });
    }
    // Everything goes on from nothing (tlog-witness, the request's rules for old size 0).
    if old == 0 && proof.is_empty() {
        return Ok(());
    }
    verify_consistency(old, new, proof, &seen.root_hash, &shown.root_hash)
        .map_err(|why| Fork::Rewritten { seen: old, shown: new, why })
}

/// What a log asks of a witness over HTTP: the body of `add-checkpoint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddCheckpoint {
    /// Size of the last head that the witness cosigned, as the log knows.
    pub old: u64,
    /// That the log goes on from there.
    pub proof: Vec<Digest>,
    /// The signed checkpoint.
    pub note: String,
}

impl AddCheckpoint {
    /// The body.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("old {}\n{}\n{}", self.old, lines_of(&self.proof), self.note)
    }

    /// Reads a body; `None` when it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (head, note) = text.split_once("\n\n")?;
        let mut lines = head.split('\n');
        let old = decimal(lines.next()?.strip_prefix("old ")?)?;
        Some(Self { old, proof: hashes(lines)?, note: note.to_owned() })
    }
}

/// A proof that an entry is in a log, with the checkpoint that it leads to: all that somebody needs who has the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InclusionProof {
    /// Which entry.
    pub index: u64,
    /// From the leaf to the root.
    pub hashes: Vec<Digest>,
    /// The signed checkpoint, with whatever cosignatures it has.
    pub note: String,
}

/// Why a proof of an entry proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InclusionError {
    /// The file is not a proof.
    #[error("this is not a proof as `{PROOF_HEAD}` describes it")]
    Malformed,
    /// Its checkpoint does not hold.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// It does not lead from the entry to the checkpoint.
    #[error("entry {index} is not shown to be in the log: {why}")]
    Proof {
        /// Which entry.
        index: u64,
        /// What is wrong.
        why: ProofError,
    },
}

impl InclusionProof {
    /// The file.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{PROOF_HEAD}\nindex {}\n{}\n{}", self.index, lines_of(&self.hashes), self.note)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`InclusionError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, InclusionError> {
        let read = || {
            let (head, note) = text.split_once("\n\n")?;
            let mut lines = head.split('\n');
            lines.next().filter(|line| *line == PROOF_HEAD)?;
            let index = decimal(lines.next()?.strip_prefix("index ")?)?;
            Some(Self { index, hashes: hashes(lines)?, note: note.to_owned() })
        };
        read().ok_or(InclusionError::Malformed)
    }

    /// Checks that the entry with this leaf hash is in the log that `key` speaks for, and gives the head.
    ///
    /// # Errors
    /// [`InclusionError`].
    pub fn verify(&self, leaf: &Digest, key: &VerifierKey) -> Result<Checkpoint, InclusionError> {
        let head = Checkpoint::open(&self.note, key)?;
        let index = self.index;
        verify_inclusion(leaf, index, head.tree_size, &self.hashes, &head.root_hash)
            .map_err(|why| InclusionError::Proof { index, why })?;
        Ok(head)
    }
}

fn lines_of(hashes: &[Digest]) -> String {
    hashes.iter().fold(String::new(), |mut text, hash| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", BASE64.encode(hash.0));
        text
    })
}

fn hashes<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Vec<Digest>> {
    let hash = |line: &str| Some(Digest(BASE64.decode(line).ok()?.try_into().ok()?));
    let hashes: Vec<Digest> = lines.take(HASHES_MAX + 1).map(hash).collect::<Option<_>>()?;
    (hashes.len() <= HASHES_MAX).then_some(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::{Frontier, leaf_hash};
    use ed25519_dalek::SigningKey;
    use serde_json::Value;

    fn vectors() -> Value {
        let all: Value =
            serde_json::from_str(include_str!("../testdata/merkle_vectors.json")).expect("JSON");
        all["generated_70000"].clone()
    }

    fn text(v: &Value) -> &str {
        v.as_str().expect("text")
    }

    #[test]
    fn cosignatures_are_those_of_the_reference_and_a_changed_one_does_not_count() {
        let v = vectors();
        let v = &v["checkpoint"];
        let key: WitnessKey = text(&v["witness_vkey"]).parse().expect("a key");
        assert_eq!(key.to_string(), text(&v["witness_vkey"]));
        let (log, note) = (text(&v["vkey"]).parse().expect("a key"), text(&v["checkpoint"]));
        let head = Checkpoint::open(note, &log).expect("opens");
        let seed = hex::decode(text(&v["witness_seed_hex"])).expect("hex");
        let secret = SigningKey::from_bytes(&seed.try_into().expect("32 bytes"));
        let time = v["cosignature_time"].as_u64().expect("a time");
        let line = cosign(key.name(), &secret, time, &head).expect("a line");
        assert_eq!(line.trim_end(), text(&v["cosignature_line"]).trim_end());
        assert_eq!(format!("{note}{line}"), text(&v["cosigned_checkpoint"]));
        assert_eq!(message(time, &head.body()), text(&v["cosigned_message"]));
        assert_eq!(key.cosigned(text(&v["cosigned_checkpoint"])), Ok(Some(time)));
        assert_eq!(key.cosigned(note), Ok(None));
        let later = cosign(key.name(), &secret, time + 1, &head).expect("a line");
        assert_eq!(key.cosigned(&format!("{note}{line}{later}")), Ok(Some(time + 1)));
        // Another time under the same signature, and a log's key in place of a witness's.
        let moved = line.replace("BNLYMwAAAABpVbkA", "BNLYMwAAAABpVbkB");
        assert!(moved != line && key.cosigned(&format!("{note}{moved}")).is_err());
        assert!(text(&v["vkey"]).parse::<WitnessKey>().is_err());
        assert!(cosign("two words", &secret, time, &head).is_err());
    }

    #[test]
    fn a_request_to_a_witness_is_that_of_the_reference() {
        let v = vectors();
        let body = text(&v["witness_add_checkpoint_body_65537_to_70000"]);
        let request = AddCheckpoint::parse(body).expect("a request");
        assert_eq!((request.old, request.to_text().as_str()), (65_537, body));
        let log = text(&v["checkpoint"]["vkey"]).parse().expect("a key");
        let shown = Checkpoint::open(&request.note, &log).expect("opens");
        let root: [u8; 32] = BASE64
            .decode(text(&v["roots"]["65537"]))
            .expect("base64")
            .try_into()
            .expect("32 bytes");
        let seen = Checkpoint { tree_size: 65_537, root_hash: Digest(root), ..shown.clone() };
        assert_eq!(goes_on(Some(&seen), &shown, &request.proof), Ok(()));
        let other = Checkpoint { root_hash: Digest::of(b"other"), ..seen };
        assert!(matches!(
            goes_on(Some(&other), &shown, &request.proof),
            Err(Fork::Rewritten { seen: 65_537, shown: 70_000, .. })
        ));
        for broken in ["", "old 1", "old 01\n\nnote", "old 1\nAAAA\n\nnote", "new 1\n\nnote"] {
            assert_eq!(AddCheckpoint::parse(broken), None, "{broken}");
        }
        let hash = format!("{}\n", BASE64.encode([7; 32]));
        let most = format!("old 1\n{}\nnote", hash.repeat(HASHES_MAX));
        assert_eq!(AddCheckpoint::parse(&most).expect("a request").proof.len(), HASHES_MAX);
        let more = format!("old 1\n{}\nnote", hash.repeat(HASHES_MAX + 1));
        assert_eq!(AddCheckpoint::parse(&more), None);
    }

    #[test]
    fn a_proof_of_an_entry_is_that_of_the_reference_and_holds_for_that_entry_alone() {
        let v = vectors();
        let file = text(&v["tlog_proof_index_42"]);
        let proof = InclusionProof::parse(file).expect("a proof");
        assert_eq!(proof.to_text(), file);
        let log = text(&v["checkpoint"]["vkey"]).parse().expect("a key");
        let head = proof.verify(&leaf_hash(b"leaf-42"), &log).expect("in the log");
        assert_eq!(head.tree_size, 70_000);
        let other = proof.verify(&leaf_hash(b"leaf-43"), &log).expect_err("another entry");
        assert!(matches!(other, InclusionError::Proof { index: 42, .. }), "{other}");
        let moved = InclusionProof::parse(&file.replace("index 42", "index 43")).expect("a proof");
        assert!(moved.verify(&leaf_hash(b"leaf-42"), &log).is_err());
        for broken in [
            file.replace("@v1", "@v2"),
            file.replace("index 42", "index 042"),
            file.replace("index 42\n", ""),
            file.replace("\n\n", "\n"),
            String::new(),
        ] {
            assert_eq!(InclusionProof::parse(&broken), Err(InclusionError::Malformed), "{broken}");
        }
    }

    #[test]
    fn a_log_that_shrinks_forks_or_is_another_one_is_caught() {
        let head = |entries: &[u8]| {
            let mut frontier = Frontier::new();
            entries.iter().for_each(|e| frontier.push(leaf_hash(&[*e])));
            Checkpoint {
                origin: "falaj.test/log".into(),
                tree_size: frontier.size(),
                root_hash: frontier.root(),
            }
        };
        let (seen, shown) = (head(&[1, 2]), head(&[1, 2, 3]));
        let proof = [leaf_hash(&[3])];
        assert_eq!(goes_on(None, &shown, &[]), Ok(()));
        assert_eq!(goes_on(Some(&head(&[])), &shown, &[]), Ok(()));
        assert_eq!(goes_on(Some(&seen), &shown, &proof), Ok(()));
        assert_eq!(goes_on(Some(&seen), &seen, &[]), Ok(()));
        let shrunk = Fork::Shrunk { seen: 3, shown: 2 };
        assert_eq!(goes_on(Some(&shown), &seen, &[]), Err(shrunk));
        for forked in [head(&[1, 9]), head(&[1, 9, 3]), head(&[9, 2, 3])] {
            let fork = goes_on(Some(&seen), &forked, &proof[..usize::from(forked.tree_size == 3)]);
            assert!(matches!(fork, Err(Fork::Rewritten { seen: 2, .. })), "{fork:?}");
        }
        let other = Checkpoint { origin: "falaj.test/other".into(), ..shown };
        assert!(matches!(goes_on(Some(&seen), &other, &proof), Err(Fork::Origin { .. })));
    }
}
