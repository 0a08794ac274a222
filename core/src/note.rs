//! Ed25519 signatures: C2SP signed notes for checkpoints, and domain-separated signatures for the rest.
//!
//! Sources: C2SP signed-note v1.0.0 and tlog-checkpoint v1.0.0; RFC 8032. The second signature of a checkpoint is in
//! [`crate::ml_dsa`].

use crate::{
    id::Digest,
    ml_dsa::{MlDsaKey, MlDsaSigner},
    registry::dsse,
    sign::{SignError, SignKey},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr, sync::Arc};

/// The signature type of a plain Ed25519 note signature.
const ED25519: u8 = 0x01;
/// The most signature lines that a note may carry; C2SP asks verifiers to take at least 16.
const SIGNATURES_MAX: usize = 64;
/// The largest note, in bytes.
pub const NOTE_BYTES_MAX: usize = 1 << 20;

/// Signs `bytes` under a context, so that no signature can serve where another was meant.
///
/// # Errors
/// [`SignError`] when the key cannot be used now.
pub fn sign_context(key: &dyn SignKey, context: &str, bytes: &[u8]) -> Result<[u8; 64], SignError> {
    key.sign(&contextual(context, bytes))
}

/// Whether `signature` is `key`'s over `bytes` under this context.
#[must_use]
pub fn verify_context(key: &VerifyingKey, context: &str, bytes: &[u8], signature: &[u8]) -> bool {
    Signature::from_slice(signature)
        .is_ok_and(|s| key.verify_strict(&contextual(context, bytes), &s).is_ok())
}

fn contextual(context: &str, bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(context.len() + 1 + bytes.len());
    message.extend_from_slice(context.as_bytes());
    message.push(0);
    message.extend_from_slice(bytes);
    message
}

/// Why a note or a key is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not a note at all.
    #[error("not a signed note: {0}")]
    Malformed(&'static str),
    /// The key's text form is wrong.
    #[error("not a verifier key: expected `<name>+<8 hex digits>+<base64>`")]
    Key,
    /// No signature by the key.
    #[error("the note is not signed by `{0}`")]
    Unsigned(String),
    /// A signature that claims the key does not verify.
    #[error("the note's signature by `{0}` does not verify")]
    BadSignature(String),
    /// The body is not a checkpoint.
    #[error("not a checkpoint: {0}")]
    Checkpoint(&'static str),
    /// The key that should sign cannot.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// A key that this build cannot use.
    #[error("this build does not check ML-DSA-44: use one that was built with `--features ml-dsa`")]
    NotBuilt,
}

/// A named public key: who may sign notes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    key: VerifyingKey,
}

impl VerifierKey {
    /// A key under a name.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the name is empty or holds spaces or `+`.
    pub fn new(name: &str, key: VerifyingKey) -> Result<Self, NoteError> {
        if is_name(name) { Ok(Self { name: name.to_owned(), key }) } else { Err(NoteError::Key) }
    }

    /// The name: a log's origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public key.
    #[must_use]
    pub const fn key(&self) -> &VerifyingKey {
        &self.key
    }

    fn id(&self) -> [u8; 4] {
        key_id(&self.name, ED25519, self.key.as_bytes())
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&key_text(&self.name, ED25519, self.key.as_bytes()))
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;
    fn from_str(s: &str) -> Result<Self, NoteError> {
        let (name, key) = parse_key(s, ED25519)?;
        Ok(Self { name, key })
    }
}

/// Whether a key may have this name.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

/// What signature lines call a key of this type: SHA-256(name ‖ 0x0A ‖ type ‖ key), its first four bytes.
pub(crate) fn key_id(name: &str, kind: u8, key: &[u8]) -> [u8; 4] {
    let mut hash = Sha256::new();
    hash.update(name.as_bytes());
    hash.update([b'\n', kind]);
    hash.update(key);
    let digest: [u8; 32] = hash.finalize().into();
    [digest[0], digest[1], digest[2], digest[3]]
}

/// A key of this type as text.
pub(crate) fn key_text(name: &str, kind: u8, key: &[u8]) -> String {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(key);
    format!("{name}+{}+{}", hex::encode(key_id(name, kind, key)), BASE64.encode(bytes))
}

/// Reads [`key_text`] of an Ed25519 key.
pub(crate) fn parse_key(text: &str, kind: u8) -> Result<(String, VerifyingKey), NoteError> {
    let (name, key) = parse_key_bytes(text, kind)?;
    let key: [u8; 32] = key.try_into().map_err(|_| NoteError::Key)?;
    Ok((name, VerifyingKey::from_bytes(&key).map_err(|_| NoteError::Key)?))
}

/// Reads [`key_text`], whatever the key is.
pub(crate) fn parse_key_bytes(text: &str, kind: u8) -> Result<(String, Vec<u8>), NoteError> {
    let mut parts = text.trim().splitn(3, '+');
    let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(NoteError::Key);
    };
    let bytes = BASE64.decode(key).map_err(|_| NoteError::Key)?;
    let (found, key) = bytes.split_first().ok_or(NoteError::Key)?;
    let good = *found == kind && is_name(name) && hex::encode(key_id(name, kind, key)) == id;
    if good { Ok((name.to_owned(), key.to_vec())) } else { Err(NoteError::Key) }
}

/// Signs notes under a name; checkpoints also by a second key, if it has one.
pub struct NoteSigner {
    key: Arc<dyn SignKey>,
    verifier: VerifierKey,
    ml_dsa: Option<MlDsaSigner>,
}

impl NoteSigner {
    /// A signer with a secret key, wherever that lies.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the name is not one.
    pub fn new(name: &str, key: impl SignKey + 'static) -> Result<Self, NoteError> {
        let verifier = VerifierKey::new(name, key.verifying_key())?;
        Ok(Self { key: Arc::new(key), verifier, ml_dsa: None })
    }

    /// The same, with a second key from this seed.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the name is too long for it; [`NoteError::NotBuilt`].
    pub fn with_ml_dsa(self, seed: &[u8; 32]) -> Result<Self, NoteError> {
        let ml_dsa = Some(MlDsaSigner::new(self.verifier.name(), seed)?);
        Ok(Self { ml_dsa, ..self })
    }

    /// A signer with the same keys under another name.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the name is not one.
    pub fn renamed(&self, name: &str) -> Result<Self, NoteError> {
        let ml_dsa = self.ml_dsa.as_ref().map(|second| second.renamed(name)).transpose()?;
        Ok(Self { ml_dsa, ..Self::new(name, self.key.clone())? })
    }

    /// The public half of the second key, if there is one.
    #[must_use]
    pub fn ml_dsa(&self) -> Option<&MlDsaKey> {
        self.ml_dsa.as_ref().map(MlDsaSigner::key)
    }

    /// Signs a head with all keys, at `time`, in seconds since 1970. With a second key each call gives other bytes.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the second key cannot sign; [`NoteError::Sign`] when the first cannot.
    pub fn checkpoint(&self, head: &Checkpoint, time: u64) -> Result<String, NoteError> {
        let second = self.ml_dsa.as_ref().map(|second| second.line(time, head)).transpose()?;
        Ok(self.sign(&head.body())? + second.as_deref().unwrap_or_default())
    }

    /// The public half.
    #[must_use]
    pub const fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Signs a body, which ends with a newline.
    ///
    /// # Errors
    /// [`SignError`] when the key cannot be used now.
    pub fn sign(&self, body: &str) -> Result<String, SignError> {
        Ok(format!("{body}\n{}", self.line(body)?))
    }

    /// A signature line for a note with this body.
    ///
    /// # Errors
    /// [`SignError`] when the key cannot be used now.
    pub fn line(&self, body: &str) -> Result<String, SignError> {
        let mut bytes = self.verifier.id().to_vec();
        bytes.extend_from_slice(&self.key.sign(body.as_bytes())?);
        Ok(format!("\u{2014} {} {}\n", self.verifier.name, BASE64.encode(bytes)))
    }

    /// Signs bytes under a context.
    ///
    /// # Errors
    /// [`SignError`] when the key cannot be used now.
    pub fn sign_context(&self, context: &str, bytes: &[u8]) -> Result<[u8; 64], SignError> {
        sign_context(&*self.key, context, bytes)
    }

    /// Signs a payload as a DSSE envelope does ([`crate::registry::dsse`]). What begins like that is signed by nothing else.
    ///
    /// # Errors
    /// [`SignError`] when the key cannot be used now.
    pub fn sign_dsse(&self, payload_type: &str, payload: &[u8]) -> Result<[u8; 64], SignError> {
        self.key.sign(&dsse::pae(payload_type, payload))
    }
}

impl fmt::Debug for NoteSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteSigner({}, [redacted])", self.verifier.name)
    }
}

/// Who claims to have signed, and the bytes, a key's id first.
pub(crate) type Claimed<'a> = (&'a str, Vec<u8>);

/// A note's body, and its signatures.
pub(crate) fn split(note: &str) -> Result<(&str, Vec<Claimed<'_>>), NoteError> {
    if note.len() > NOTE_BYTES_MAX {
        return Err(NoteError::Malformed("too long"));
    }
    if note.chars().any(|c| c.is_control() && c != '\n') {
        return Err(NoteError::Malformed("it holds control characters"));
    }
    let split = note.rfind("\n\n").ok_or(NoteError::Malformed("no blank line"))?;
    let (body, lines) = (&note[..=split], &note[split + 2..]);
    if lines.is_empty() || !lines.ends_with('\n') {
        return Err(NoteError::Malformed("no signature line"));
    }
    let mut signatures = Vec::new();
    for line in lines.lines() {
        if signatures.len() >= SIGNATURES_MAX {
            return Err(NoteError::Malformed("too many signatures"));
        }
        let rest = line.strip_prefix("\u{2014} ").ok_or(NoteError::Malformed("signature line"))?;
        let (name, signature) =
            rest.split_once(' ').ok_or(NoteError::Malformed("signature line"))?;
        let bytes = BASE64.decode(signature).map_err(|_| NoteError::Malformed("base64"))?;
        if name.is_empty() || bytes.len() < 5 {
            return Err(NoteError::Malformed("signature line"));
        }
        signatures.push((name, bytes));
    }
    Ok((body, signatures))
}

/// The body of a note that `key` has signed. Signatures by unknown keys are ignored; one that claims to be
/// by `key` and does not verify makes the whole note worthless.
///
/// # Errors
/// [`NoteError`], which says what is wrong.
pub fn open<'a>(note: &'a str, key: &VerifierKey) -> Result<&'a str, NoteError> {
    let (body, signatures) = split(note)?;
    let mut signed = false;
    for (name, bytes) in signatures {
        if name != key.name || bytes[..4] != key.id() {
            continue;
        }
        let good = Signature::from_slice(&bytes[4..])
            .is_ok_and(|s| key.key.verify_strict(body.as_bytes(), &s).is_ok());
        if !good {
            return Err(NoteError::BadSignature(name.to_owned()));
        }
        signed = true;
    }
    if signed { Ok(body) } else { Err(NoteError::Unsigned(key.name.clone())) }
}

/// A plain decimal number: no sign, no leading zero.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// A tree head: what a signed checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// Entries in the tree.
    pub tree_size: u64,
    /// The tree's root.
    pub root_hash: Digest,
}

impl Checkpoint {
    /// The body that is signed.
    #[must_use]
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.tree_size, BASE64.encode(self.root_hash.0))
    }

    /// Opens a signed checkpoint of the log that `key` speaks for.
    ///
    /// # Errors
    /// [`NoteError`] when the signature or the body is wrong, or the origin is another log's.
    pub fn open(note: &str, key: &VerifierKey) -> Result<Self, NoteError> {
        let this = Self::parse(open(note, key)?)?;
        if this.origin == key.name {
            Ok(this)
        } else {
            Err(NoteError::Checkpoint("its origin is another log"))
        }
    }

    /// What a note says that was checked when it was kept: nothing about who signed it is looked at.
    ///
    /// # Errors
    /// [`NoteError`] when it is no note, or its body no checkpoint.
    pub fn of_kept(note: &str) -> Result<Self, NoteError> {
        Self::parse(split(note)?.0)
    }

    fn parse(body: &str) -> Result<Self, NoteError> {
        let mut lines = body.lines();
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(NoteError::Checkpoint("fewer than three lines"));
        };
        if origin.is_empty() {
            return Err(NoteError::Checkpoint("no origin"));
        }
        let tree_size = decimal(size)
            .ok_or(NoteError::Checkpoint("the size is not a plain decimal number below 2^64"))?;
        let root =
            BASE64.decode(root).map_err(|_| NoteError::Checkpoint("the root is not base64"))?;
        let root: [u8; 32] =
            root.try_into().map_err(|_| NoteError::Checkpoint("the root has not 32 bytes"))?;
        Ok(Self { origin: origin.to_owned(), tree_size, root_hash: Digest(root) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;

    fn signer(seed: u8) -> NoteSigner {
        NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[seed; 32])).expect("valid")
    }

    #[test]
    fn the_example_of_the_specification_verifies() {
        // C2SP signed-note, section "Example": the note and key that the specification prints.
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../testdata/merkle_vectors.json")).expect("JSON");
        let example = &vectors["c2sp"]["signed_note_example"];
        let key: VerifierKey = example["vkey"].as_str().expect("text").parse().expect("a key");
        let note = example["note"].as_str().expect("text");
        assert_eq!(open(note, &key), Ok("This is an example message.\n"));
        for mutation in vectors["c2sp"]["signed_note_mutations_own"].as_array().expect("a list") {
            let note = mutation["note"].as_str().expect("text");
            let valid = mutation["valid"].as_bool().expect("a verdict");
            let key: Result<VerifierKey, _> = mutation["vkey"].as_str().expect("text").parse();
            assert_eq!(
                key.is_ok_and(|key| open(note, &key).is_ok()),
                valid,
                "{}",
                mutation["desc"]
            );
        }
    }

    #[test]
    fn checkpoints_of_other_implementations_open() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../testdata/merkle_vectors.json")).expect("JSON");
        let log = &vectors["tessera_posix_log"];
        let key: VerifierKey = log["vkey"].as_str().expect("text").parse().expect("a key");
        let notes = log["checkpoints_by_size_0_to_15"].as_array().expect("a list");
        for (size, note) in notes.iter().enumerate() {
            let head = Checkpoint::open(note.as_str().expect("text"), &key).expect("opens");
            assert_eq!(head.tree_size, size as u64);
        }
        let go = &vectors["generated_70000"]["checkpoint"];
        let key: VerifierKey = go["vkey"].as_str().expect("text").parse().expect("a key");
        for name in ["checkpoint", "cosigned_checkpoint"] {
            let note = go[name].as_str().expect("text");
            assert_eq!(Checkpoint::open(note, &key).expect("opens").tree_size, 70_000);
        }
        // Ed25519 is deterministic: our own signature over the same head is the same note.
        let seed = hex::decode(go["log_seed_hex"].as_str().expect("text")).expect("hex");
        let seed: [u8; 32] = seed.try_into().expect("32 bytes");
        let signer = NoteSigner::new(key.name(), SigningKey::from_bytes(&seed)).expect("valid");
        let body = go["signed_text"].as_str().expect("text");
        assert_eq!(signer.sign(body).expect("signs"), go["checkpoint"].as_str().expect("text"));
    }

    #[test]
    fn a_checkpoint_round_trips_and_a_changed_one_does_not_open() {
        let s = signer(1);
        let head = Checkpoint {
            origin: "falaj.test/log".into(),
            tree_size: 12,
            root_hash: Digest::of(b"root"),
        };
        let note = s.sign(&head.body()).expect("signs");
        assert_eq!(Checkpoint::open(&note, s.verifier()), Ok(head));
        let key: VerifierKey = s.verifier().to_string().parse().expect("a key");
        assert_eq!(&key, s.verifier());
        let changed = note.replacen("\n12\n", "\n13\n", 1);
        assert!(matches!(Checkpoint::open(&changed, &key), Err(NoteError::BadSignature(_))));
        let stranger = signer(2);
        assert!(matches!(
            Checkpoint::open(&note, stranger.verifier()),
            Err(NoteError::Unsigned(_))
        ));
    }

    #[test]
    fn a_size_with_a_leading_zero_is_no_checkpoint() {
        let root = BASE64.encode([0; 32]);
        for size in ["01", "+1", "-1", "1 ", ""] {
            assert!(Checkpoint::parse(&format!("o\n{size}\n{root}\n")).is_err(), "{size}");
        }
    }

    #[test]
    fn a_signature_serves_in_its_own_context_only() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let signature = sign_context(&key, "a", b"x").expect("signs");
        assert!(verify_context(&key.verifying_key(), "a", b"x", &signature));
        assert!(!verify_context(&key.verifying_key(), "b", b"x", &signature));
        assert!(!verify_context(&key.verifying_key(), "a", b"y", &signature));
    }
}
