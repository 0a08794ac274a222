//! ML-DSA-44: a second signature of each checkpoint by the log, which holds when somebody can compute Ed25519 keys.
//!
//! It is a C2SP cosignature by the log itself (tlog-cosignature v1.1.0, type 0x06; tlog-checkpoint v1.1.0), and signs no
//! other notes. Keys can be named in any build. Signing and checking need the feature `ml-dsa`, which links the library
//! that also serves TLS; it draws the randomness of a hedged signature itself (FIPS 204, section 3.4). A build without it
//! ignores these lines, as signed-note has it of keys that nobody knows.

use crate::note::{self, Checkpoint, NoteError};
use std::{fmt, str::FromStr};

/// The signature type of an ML-DSA-44 cosignature.
const ML_DSA_44: u8 = 0x06;
/// Bytes of a public key (FIPS 204, table 2).
const KEY_BYTES: usize = 1_312;
/// Bytes of a signature (FIPS 204, table 2).
const SIGNATURE_BYTES: usize = 2_420;
/// Bytes of a signature line: the key's id, the time, the signature.
const LINE_BYTES: usize = 4 + 8 + SIGNATURE_BYTES;

/// Whether this build can sign and check.
pub const BUILT: bool = cfg!(feature = "ml-dsa");

/// A log's second public key.
#[derive(Clone, PartialEq, Eq)]
pub struct MlDsaKey {
    name: String,
    key: Box<[u8; KEY_BYTES]>,
}

impl MlDsaKey {
    /// The name: a log's origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same key, of another shard.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the name is not one.
    pub fn renamed(&self, name: &str) -> Result<Self, NoteError> {
        if is_name(name) {
            Ok(Self { name: name.to_owned(), key: self.key.clone() })
        } else {
            Err(NoteError::Key)
        }
    }

    /// When the log signed this checkpoint with it, in seconds since 1970, if it did. Of several times, the latest. A
    /// build without the feature finds no signature.
    ///
    /// # Errors
    /// [`NoteError`] when the note is no checkpoint, or a signature that claims to be by this key does not verify.
    pub fn signed(&self, note: &str) -> Result<Option<u64>, NoteError> {
        if !BUILT {
            return Ok(None);
        }
        let (body, signatures) = note::split(note)?;
        let (head, id) = (Checkpoint::of_kept(note)?, self.id());
        // What is signed names the log, and has no extension lines.
        let whole = head.origin == self.name && head.body() == body;
        let mut latest = None;
        for (name, bytes) in signatures {
            if name != self.name || bytes[..4] != id {
                continue;
            }
            let bad = || NoteError::BadSignature(name.to_owned());
            let (time, signature) = bytes[4..].split_first_chunk::<8>().ok_or_else(bad)?;
            let time = u64::from_be_bytes(*time);
            let message = message(&self.name, time, &head);
            let message = message.filter(|_| whole && i64::try_from(time).is_ok());
            if !message.is_some_and(|message| self.verifies(&message, signature)) {
                return Err(bad());
            }
            latest = latest.max(Some(time));
        }
        Ok(latest)
    }

    /// Checks that the log has signed this checkpoint with it.
    ///
    /// # Errors
    /// As [`Self::signed`]; [`NoteError::Unsigned`] when it did not, and [`NoteError::NotBuilt`] when this build cannot
    /// tell.
    pub fn require(&self, note: &str) -> Result<(), NoteError> {
        if !BUILT {
            return Err(NoteError::NotBuilt);
        }
        match self.signed(note)? {
            Some(_) => Ok(()),
            None => Err(NoteError::Unsigned(format!("{} (ML-DSA-44)", self.name))),
        }
    }

    fn id(&self) -> [u8; 4] {
        note::key_id(&self.name, ML_DSA_44, self.key.as_slice())
    }

    #[cfg(feature = "ml-dsa")]
    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = aws_lc_rs::signature::UnparsedPublicKey::new(
            &aws_lc_rs::signature::ML_DSA_44,
            self.key.as_slice(),
        );
        signature.len() == SIGNATURE_BYTES && key.verify(message, signature).is_ok()
    }

    #[cfg(not(feature = "ml-dsa"))]
    #[expect(clippy::unused_self, reason = "the same call with the feature")]
    const fn verifies(&self, _: &[u8], _: &[u8]) -> bool {
        false
    }
}

impl fmt::Display for MlDsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&note::key_text(&self.name, ML_DSA_44, self.key.as_slice()))
    }
}

impl fmt::Debug for MlDsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MlDsaKey({}, {})", self.name, hex::encode(self.id()))
    }
}

impl FromStr for MlDsaKey {
    type Err = NoteError;
    fn from_str(s: &str) -> Result<Self, NoteError> {
        let (name, key) = note::parse_key_bytes(s, ML_DSA_44)?;
        let key = key.try_into().map_err(|_| NoteError::Key)?;
        if is_name(&name) { Ok(Self { name, key }) } else { Err(NoteError::Key) }
    }
}

/// Whether the log's own second signature stands under a checkpoint, by whatever key: for whoever has no key to check it
/// with, and must not go on without one.
///
/// # Errors
/// [`NoteError`] when the note is no checkpoint.
pub fn stands_under(note: &str) -> Result<bool, NoteError> {
    let (origin, (_, signatures)) = (Checkpoint::of_kept(note)?.origin, note::split(note)?);
    Ok(signatures.iter().any(|(name, bytes)| *name == origin && bytes.len() == LINE_BYTES))
}

/// Names go into the message under one byte of length.
fn is_name(name: &str) -> bool {
    note::is_name(name) && u8::try_from(name.len()).is_ok()
}

/// What is signed: `cosigned_message` of tlog-cosignature, over the whole tree. `None` when a name is too long for it.
fn message(signer: &str, time: u64, head: &Checkpoint) -> Option<Vec<u8>> {
    let mut message = b"subtree/v1\n\0".to_vec();
    let mut name = |name: &str, then: u64| {
        message.push(u8::try_from(name.len()).ok()?);
        message.extend_from_slice(name.as_bytes());
        message.extend_from_slice(&then.to_be_bytes());
        Some(())
    };
    name(signer, time)?;
    // The tree's first leaf.
    name(&head.origin, 0)?;
    message.extend_from_slice(&head.tree_size.to_be_bytes());
    message.extend_from_slice(&head.root_hash.0);
    Some(message)
}

pub use signing::MlDsaSigner;

#[cfg(not(feature = "ml-dsa"))]
mod signing {
    use super::MlDsaKey;
    use crate::note::{Checkpoint, NoteError};

    /// Signs checkpoints a second time. There is none in a build without the feature.
    #[derive(Clone, Debug)]
    pub enum MlDsaSigner {}

    impl MlDsaSigner {
        /// A signer from its seed, under a log's origin.
        ///
        /// # Errors
        /// [`NoteError::NotBuilt`].
        pub const fn new(_: &str, _: &[u8; 32]) -> Result<Self, NoteError> {
            Err(NoteError::NotBuilt)
        }

        /// A signer with the same key under another name.
        ///
        /// # Errors
        /// None: there is no signer.
        pub const fn renamed(&self, _: &str) -> Result<Self, NoteError> {
            match *self {}
        }

        /// The public half.
        #[must_use]
        pub const fn key(&self) -> &MlDsaKey {
            match *self {}
        }

        /// A signature line under a checkpoint.
        ///
        /// # Errors
        /// None: there is no signer.
        pub const fn line(&self, _: u64, _: &Checkpoint) -> Result<String, NoteError> {
            match *self {}
        }
    }
}

#[cfg(feature = "ml-dsa")]
mod signing {
    use super::{MlDsaKey, SIGNATURE_BYTES, is_name, message};
    use crate::note::{Checkpoint, NoteError};
    use aws_lc_rs::signature::{KeyPair as _, ML_DSA_44_SIGNING, PqdsaKeyPair};
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    use std::fmt;

    /// Signs checkpoints a second time. A cheap handle.
    #[derive(Clone)]
    pub struct MlDsaSigner {
        pair: PqdsaKeyPair,
        key: MlDsaKey,
    }

    impl MlDsaSigner {
        /// A signer from its seed (FIPS 204, algorithm 6), under a log's origin.
        ///
        /// # Errors
        /// [`NoteError::Key`] when the name is not one, or has more than 255 bytes.
        pub fn new(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
            let pair = PqdsaKeyPair::from_seed(&ML_DSA_44_SIGNING, seed);
            let pair = pair.map_err(|_| NoteError::Key)?;
            let key = pair.public_key().as_ref().to_vec().try_into();
            let key = key.map_err(|_| NoteError::Key)?;
            if !is_name(name) {
                return Err(NoteError::Key);
            }
            Ok(Self { pair, key: MlDsaKey { name: name.to_owned(), key } })
        }

        /// A signer with the same key under another name.
        ///
        /// # Errors
        /// As [`Self::new`].
        pub fn renamed(&self, name: &str) -> Result<Self, NoteError> {
            Ok(Self { pair: self.pair.clone(), key: self.key.renamed(name)? })
        }

        /// The public half.
        #[must_use]
        pub const fn key(&self) -> &MlDsaKey {
            &self.key
        }

        /// A signature line under a checkpoint: that the log had this head, and no larger one, at `time`, in seconds since
        /// 1970. Each call gives other bytes.
        ///
        /// # Errors
        /// [`NoteError::Key`] when the head is another log's, or there is no randomness to be had.
        pub fn line(&self, time: u64, head: &Checkpoint) -> Result<String, NoteError> {
            let name = &self.key.name;
            let message = message(name, time, head).filter(|_| head.origin == *name);
            let message = message.ok_or(NoteError::Key)?;
            let mut signature = [0; SIGNATURE_BYTES];
            self.pair.sign(&message, &mut signature).map_err(|_| NoteError::Key)?;
            let bytes = [&self.key.id()[..], &time.to_be_bytes(), &signature].concat();
            Ok(format!("\u{2014} {name} {}\n", BASE64.encode(bytes)))
        }
    }

    impl fmt::Debug for MlDsaSigner {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "MlDsaSigner({}, [redacted])", self.key.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::Digest,
        note::{NoteSigner, VerifierKey},
    };
    use ed25519_dalek::SigningKey;
    use serde_json::Value;
    use sha2::{Digest as _, Sha256};

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../testdata/ml_dsa_vectors.json")).expect("JSON")
    }

    fn text<'a>(of: &'a Value, name: &str) -> &'a str {
        of[name].as_str().expect("text")
    }

    fn head(v: &Value) -> Checkpoint {
        let root: [u8; 32] =
            hex::decode(text(v, "root_hash")).expect("hex").try_into().expect("32");
        let tree_size = v["tree_size"].as_u64().expect("a size");
        Checkpoint { origin: "falaj.test/log".into(), tree_size, root_hash: Digest(root) }
    }

    fn ed25519() -> NoteSigner {
        NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[1; 32])).expect("valid")
    }

    #[test]
    fn a_key_has_one_text_and_the_message_is_the_one_of_the_specification() {
        let v = vectors();
        let key: MlDsaKey = text(&v, "key").parse().expect("a key");
        assert_eq!(key.to_string(), text(&v, "key"));
        assert_eq!(hex::encode(Sha256::digest(key.key.as_slice())), text(&v, "public_key_sha256"));
        let time = v["signed_at"].as_u64().expect("a time");
        let signed = message(key.name(), time, &head(&v)).expect("short names");
        assert_eq!(hex::encode(signed), text(&v, "message"));
        assert_eq!(message(&"n".repeat(256), time, &head(&v)), None);
        // Another type, another name, a byte less.
        let mut bytes = text(&v, "key").split('+');
        let (name, id) = (bytes.next().expect("a name"), bytes.next().expect("an id"));
        for wrong in [
            text(&v, "key").replace(name, "falaj.west/log"),
            text(&v, "key").replace(id, "00000000"),
            ed25519().verifier().to_string(),
            text(&v, "key").replace("+B", "+A"),
            String::new(),
        ] {
            assert_eq!(wrong.parse::<MlDsaKey>(), Err(NoteError::Key), "{wrong}");
        }
        assert!(text(&v, "key").parse::<VerifierKey>().is_err(), "it is no Ed25519 key");
    }

    #[test]
    fn who_does_not_know_the_key_ignores_the_line() {
        let (v, signer) = (vectors(), ed25519());
        let note = signer.sign(&head(&v).body()).expect("signs");
        assert_eq!(stands_under(&note), Ok(false));
        let both = note + text(&v, "line");
        assert_eq!(stands_under(&both), Ok(true));
        assert_eq!(Checkpoint::open(&both, signer.verifier()), Ok(head(&v)));
        // As many as a note may have fit into its bytes.
        let many = both.clone() + &text(&v, "line").repeat(62);
        assert_eq!(Checkpoint::open(&many, signer.verifier()), Ok(head(&v)));
        assert!(Checkpoint::open(&(many + text(&v, "line")), signer.verifier()).is_err());
    }
}
