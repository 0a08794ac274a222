//! The second key's signatures, in a build that has them and in one that has not. A file of its own, so that the tests which need the
//! feature can be run by name.

#[cfg(feature = "ml-dsa")]
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::SigningKey;
#[cfg(feature = "ml-dsa")]
use falaj_core::ml_dsa::MlDsaSigner;
use falaj_core::{
    id::Digest,
    ml_dsa::MlDsaKey,
    note::{Checkpoint, NoteError, NoteSigner},
};
use serde_json::Value;

/// Bytes of a signature line: the key's id, the time, the signature (FIPS 204, table 2).
#[cfg(feature = "ml-dsa")]
const LINE_BYTES: usize = 4 + 8 + 2_420;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../testdata/ml_dsa_vectors.json")).expect("JSON")
}

fn text<'a>(of: &'a Value, name: &str) -> &'a str {
    of[name].as_str().expect("text")
}

fn head(v: &Value) -> Checkpoint {
    let root = hex::decode(text(v, "root_hash")).expect("hex").try_into().expect("32");
    let tree_size = v["tree_size"].as_u64().expect("a size");
    Checkpoint { origin: "falaj.test/log".into(), tree_size, root_hash: Digest(root) }
}

fn ed25519() -> NoteSigner {
    NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[1; 32])).expect("valid")
}

#[cfg(not(feature = "ml-dsa"))]
#[test]
fn a_build_without_it_finds_no_signature_and_vouches_for_none() {
    let v = vectors();
    let key: MlDsaKey = text(&v, "key").parse().expect("a key");
    let both = ed25519().sign(&head(&v).body()).expect("signs") + text(&v, "line");
    assert_eq!(key.signed(&both), Ok(None));
    assert_eq!(key.require(&both), Err(NoteError::NotBuilt));
}

#[cfg(feature = "ml-dsa")]
#[test]
fn signatures_of_another_implementation_verify_and_wrong_ones_do_not() {
    let v = vectors();
    let key: MlDsaKey = text(&v, "key").parse().expect("a key");
    let seed: [u8; 32] = hex::decode(text(&v, "seed")).expect("hex").try_into().expect("32");
    assert_eq!(*MlDsaSigner::new("falaj.test/log", &seed).expect("valid").key(), key);
    let note = ed25519().sign(&head(&v).body()).expect("signs");
    let under = |line: &str| key.signed(&(note.clone() + line));
    assert_eq!(under(text(&v, "line")), Ok(v["signed_at"].as_u64()));
    assert_eq!(under(text(&v, "line_without_time")), Ok(Some(0)));
    let bad = Err(NoteError::BadSignature("falaj.test/log".into()));
    for wrong in v["wrong_lines"].as_array().expect("a list") {
        assert_eq!(under(text(wrong, "line")), bad, "{}", wrong["what"]);
    }
    // A good line does not mend a wrong one.
    let wrong = text(&v["wrong_lines"][0], "line");
    assert_eq!(under(&(wrong.to_owned() + text(&v, "line"))), bad);
    assert_eq!(under(""), Ok(None));
    assert!(matches!(key.require(&note), Err(NoteError::Unsigned(_))));
    for (from, to) in [("\n70000\n", "\n70001\n"), ("=\n\n", "=\nan extension\n\n")] {
        let other = note.replacen(from, to, 1) + text(&v, "line");
        assert!(other.len() != note.len() && key.signed(&other) == bad, "{to}");
    }
}

#[cfg(feature = "ml-dsa")]
#[test]
fn what_is_signed_verifies_and_a_flipped_bit_anywhere_is_found() {
    let (v, note) = (vectors(), ed25519().sign(&head(&vectors()).body()).expect("signs"));
    let signer = MlDsaSigner::new("falaj.test/log", &[3; 32]).expect("valid");
    let (one, two) = (signer.line(7, &head(&v)), signer.line(7, &head(&v)));
    let one = one.expect("signed");
    assert_ne!(one, two.expect("signed"), "signatures are hedged");
    assert_eq!(signer.key().signed(&(note.clone() + &one)), Ok(Some(7)));
    assert_eq!(signer.key().require(&(note.clone() + &one)), Ok(()));
    let prefix = "\u{2014} falaj.test/log ";
    let line = one.strip_prefix(prefix).expect("a line");
    let bytes = BASE64.decode(line.trim_end()).expect("base64");
    assert_eq!(bytes.len(), LINE_BYTES);
    for at in (4..LINE_BYTES).step_by(97).chain([LINE_BYTES - 1]) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        let line = format!("{prefix}{}\n", BASE64.encode(flipped));
        assert!(signer.key().signed(&(note.clone() + &line)).is_err(), "byte {at}");
    }
    for length in [5, 12, LINE_BYTES - 1] {
        let line = format!("{prefix}{}\n", BASE64.encode(&bytes[..length]));
        assert!(signer.key().signed(&(note.clone() + &line)).is_err(), "{length} bytes");
    }
    // Another log's key does not sign this head, and the key of the next shard is another name.
    let next = signer.renamed("falaj.test/next").expect("a name");
    assert_eq!(next.line(7, &head(&v)), Err(NoteError::Key));
    assert_eq!(next.key().signed(&(note + &one)), Ok(None));
    assert_eq!(*next.key(), signer.key().renamed("falaj.test/next").expect("a name"));
    assert_eq!(format!("{signer:?}"), "MlDsaSigner(falaj.test/log, [redacted])");
}
