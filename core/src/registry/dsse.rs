//! DSSE envelopes: what is signed, with its type, so that no signature can serve where another was meant.
//!
//! Source: secure-systems-lab/dsse v1.0.2, `protocol.md` and `envelope.md`.

use crate::{
    note::{NoteSigner, VerifierKey},
    sign::SignError,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD as BASE64, URL_SAFE},
};
use ed25519_dalek::Signature;
use serde_json::{Value, json};

/// The largest envelope that is read.
pub const ENVELOPE_BYTES_MAX: usize = 64 << 20;
/// Signatures of one envelope at most.
const SIGNATURES_MAX: usize = 16;

/// The bytes that are signed: `DSSEv1 ‖ SP ‖ LEN(type) ‖ SP ‖ type ‖ SP ‖ LEN(payload) ‖ SP ‖ payload`.
#[must_use]
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Why an envelope is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is no envelope.
    #[error("this is no DSSE envelope: `{field}` {what}")]
    Malformed {
        /// What cannot be read.
        field: &'static str,
        /// Why.
        what: String,
    },
    /// Its payload is of another type than was expected.
    #[error("`payloadType` is `{found}`, not `{wanted}`")]
    Type {
        /// In the envelope.
        found: String,
        /// What was expected.
        wanted: &'static str,
    },
    /// Nobody whose key is known signed it.
    #[error("`signatures` has none by `{0}`")]
    Unsigned(String),
    /// A signature that claims the key does not verify.
    #[error(
        "`signatures`: the one by `{0}` is not over this `payload` and `payloadType`, or was changed"
    )]
    BadSignature(String),
}

/// An envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What the payload is.
    pub payload_type: String,
    /// What is signed.
    pub payload: Vec<u8>,
    /// By whom, as they call their key, and the signature.
    pub signatures: Vec<(String, Vec<u8>)>,
}

/// What a log's key is called in an envelope: its name, `+` and its id in a signed note.
#[must_use]
pub fn key_id(key: &VerifierKey) -> String {
    // The key itself is in base64, in which a `+` is a digit; a name has none.
    key.to_string().splitn(3, '+').take(2).collect::<Vec<_>>().join("+")
}

impl Envelope {
    /// Signs a payload.
    ///
    /// # Errors
    /// [`SignError`] when the key cannot be used now.
    pub fn sign(
        payload_type: &str,
        payload: Vec<u8>,
        signer: &NoteSigner,
    ) -> Result<Self, SignError> {
        let signature = signer.sign_dsse(payload_type, &payload)?.to_vec();
        let signatures = vec![(key_id(signer.verifier()), signature)];
        Ok(Self { payload_type: payload_type.to_owned(), payload, signatures })
    }

    /// The JSON of it.
    #[must_use]
    pub fn to_json(&self) -> String {
        let signatures = self.signatures.iter();
        let signatures: Vec<Value> = signatures
            .map(|(keyid, sig)| json!({ "keyid": keyid, "sig": BASE64.encode(sig) }))
            .collect();
        json!({
            "payload": BASE64.encode(&self.payload),
            "payloadType": self.payload_type,
            "signatures": signatures,
        })
        .to_string()
    }

    /// Reads JSON from anywhere.
    ///
    /// # Errors
    /// [`EnvelopeError::Malformed`], which says what cannot be read.
    pub fn parse(json: &[u8]) -> Result<Self, EnvelopeError> {
        let malformed = |field, what: &str| EnvelopeError::Malformed { field, what: what.into() };
        if json.len() > ENVELOPE_BYTES_MAX {
            return Err(malformed("payload", "is longer than 64 MiB"));
        }
        let value: Value = serde_json::from_slice(json)
            .map_err(|e| malformed("envelope", &format!("is not JSON: {e}")))?;
        let text = |value: &Value, field: &'static str| -> Result<String, EnvelopeError> {
            let text = value.get(field).and_then(Value::as_str);
            text.map(str::to_owned).ok_or_else(|| malformed(field, "is missing or no text"))
        };
        let bytes = |value: &Value, field: &'static str| {
            let text = text(value, field)?;
            let read = BASE64.decode(&text).or_else(|_| URL_SAFE.decode(&text));
            read.map_err(|e| malformed(field, &format!("is not base64: {e}")))
        };
        let signed = value.get("signatures").and_then(Value::as_array);
        let signed = signed.ok_or_else(|| malformed("signatures", "is missing or no list"))?;
        if signed.is_empty() || signed.len() > SIGNATURES_MAX {
            return Err(malformed("signatures", "has not 1 to 16 signatures"));
        }
        let signature = |value: &Value| {
            let keyid = value.get("keyid").and_then(Value::as_str).unwrap_or_default();
            Ok((keyid.to_owned(), bytes(value, "sig")?))
        };
        Ok(Self {
            payload_type: text(&value, "payloadType")?,
            payload: bytes(&value, "payload")?,
            signatures: signed.iter().map(signature).collect::<Result<_, _>>()?,
        })
    }

    /// That this key signed it, and that it is of this type.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn verify(&self, wanted: &'static str, key: &VerifierKey) -> Result<(), EnvelopeError> {
        if self.payload_type != wanted {
            return Err(EnvelopeError::Type { found: self.payload_type.clone(), wanted });
        }
        let name = key_id(key);
        let message = pae(&self.payload_type, &self.payload);
        // A key's name is a hint, which anybody can change: what counts is the signature.
        let good = self.signatures.iter().any(|(_, signature)| {
            Signature::from_slice(signature)
                .is_ok_and(|signature| key.key().verify_strict(&message, &signature).is_ok())
        });
        if good {
            return Ok(());
        }
        let claims = self.signatures.iter().any(|(keyid, _)| *keyid == name);
        Err(if claims { EnvelopeError::BadSignature(name) } else { EnvelopeError::Unsigned(name) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;

    const TYPE: &str = "http://example.com/HelloWorld";

    /// The vector of secure-systems-lab/dsse, `protocol.md`.
    #[test]
    fn what_is_signed_is_the_published_vector() {
        assert_eq!(
            pae(TYPE, b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
        // Lengths are of bytes, and what is empty has one.
        assert_eq!(pae("é", b""), "DSSEv1 2 é 0 ".as_bytes());
    }

    #[test]
    fn a_keys_id_is_its_name_and_eight_digits_whatever_is_in_the_key() {
        for seed in 0..=u8::MAX {
            let id = key_id(&signer(seed).verifier().to_string().parse().expect("a key"));
            let number = id.strip_prefix("falaj.test/log+").expect("its name");
            assert!(number.len() == 8 && number.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
        }
    }

    fn signer(seed: u8) -> NoteSigner {
        NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[seed; 32])).expect("a signer")
    }

    #[test]
    fn an_envelope_reads_back_and_holds_for_its_type_payload_and_key_alone() {
        let envelope = Envelope::sign(TYPE, b"hello world".to_vec(), &signer(1)).expect("signed");
        let read = Envelope::parse(envelope.to_json().as_bytes()).expect("an envelope");
        assert_eq!(read, envelope);
        let signer_1 = signer(1);
        let key = signer_1.verifier();
        assert_eq!(read.verify(TYPE, key), Ok(()));
        let named = Envelope {
            signatures: vec![("other".into(), read.signatures[0].1.clone())],
            ..read.clone()
        };
        assert_eq!(named.verify(TYPE, key), Ok(()), "a name is a hint");
        let mut changed = read.clone();
        changed.payload[0] ^= 1;
        let wrong = changed.verify(TYPE, key).expect_err("changed");
        assert!(matches!(&wrong, EnvelopeError::BadSignature(_)), "{wrong}");
        let other = signer(2);
        assert!(matches!(read.verify(TYPE, other.verifier()), Err(EnvelopeError::Unsigned(_))));
        let typed = Envelope { payload_type: "text/plain".into(), ..read };
        assert!(matches!(typed.verify(TYPE, key), Err(EnvelopeError::Type { .. })));
    }

    #[test]
    fn what_is_no_envelope_says_where() {
        for (json, why) in [
            ("[", "`envelope` is not JSON"),
            ("{}", "`signatures` is missing"),
            (r#"{"signatures":[]}"#, "has not 1 to 16"),
            (r#"{"signatures":[{"sig":"AA=="}]}"#, "`payloadType` is missing"),
            (r#"{"signatures":[{"sig":"AA=="}],"payloadType":"t"}"#, "`payload` is missing"),
            (
                r#"{"signatures":[{"sig":"A"}],"payloadType":"t","payload":""}"#,
                "`sig` is not base64",
            ),
            (r#"{"signatures":[{"sig":1}],"payloadType":"t","payload":""}"#, "`sig` is missing"),
            (
                r#"{"signatures":[{"sig":"AA=="}],"payloadType":"t","payload":"*"}"#,
                "`payload` is not",
            ),
        ] {
            let said = Envelope::parse(json.as_bytes()).expect_err(why).to_string();
            assert!(said.contains(why), "{said}");
        }
    }
}
