//! Signed tokens (RFC 7515, compact) and the keys of whoever signs them (RFC 7517): three algorithms, and a key for each.
//!
//! Pure. What a token says is not asked here; [`super::token`] does.

use super::token::TokenError;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The longest token that is looked at.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Keys that a provider may have.
pub(super) const KEYS_MAX: usize = 64;
/// Bytes of a modulus: 2,048 bits.
const MODULUS_BYTES_MIN: usize = 256;
/// Bytes of a coordinate on P-256.
const P256_BYTES: usize = 32;
/// The type of access tokens (RFC 9068).
const ACCESS: [&str; 2] = ["at+jwt", "application/at+jwt"];

/// A provider's keys.
#[derive(Clone, Debug, Deserialize)]
pub struct Keys {
    #[serde(deserialize_with = "of_known_kinds")]
    keys: Vec<Key>,
}

/// One of them.
#[derive(Clone, Debug, Deserialize)]
struct Key {
    kid: String,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    #[serde(flatten)]
    kind: Kind,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kty")]
enum Kind {
    #[serde(rename = "RSA")]
    Rsa { n: String, e: String },
    #[serde(rename = "EC")]
    Curve { crv: String, x: String, y: String },
    #[serde(rename = "OKP")]
    Edwards { crv: String, x: String },
}

/// A set may hold keys of kinds that are not used here, and those are left out.
fn of_known_kinds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Key>, D::Error> {
    let all = Vec::<Value>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect())
}

impl Keys {
    /// How many can be used.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.keys.len()
    }
}

#[derive(Deserialize)]
struct Head {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
}

/// What a provider has signed.
#[derive(Debug)]
pub struct Signed {
    /// Whether it is an access token.
    pub access: bool,
    /// Its claims, JSON.
    pub claims: Vec<u8>,
}

/// What a token holds, once one of the keys is seen to have signed it.
///
/// # Errors
/// [`TokenError::Long`], [`TokenError::Unreadable`], [`TokenError::Algorithm`], [`TokenError::UnknownKey`] when the key that it names
/// is not among these, or is for something else, and [`TokenError::Signature`].
pub fn signed(token: &str, keys: &Keys) -> Result<Signed, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Long(token.len()));
    }
    let mut parts = token.split('.');
    let (Some(head), Some(claims), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Unreadable("its form"));
    };
    let message = &token[..head.len() + 1 + claims.len()];
    let decoded =
        |part, what| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Unreadable(what));
    let head = decoded(head, "its head")?;
    let head: Head =
        serde_json::from_slice(&head).map_err(|_| TokenError::Unreadable("its head"))?;
    if head.crit.is_some() {
        return Err(TokenError::Unreadable("it has critical extensions"));
    }
    if !["RS256", "ES256", "EdDSA"].contains(&head.alg.as_str()) {
        return Err(TokenError::Algorithm);
    }
    let kid = head.kid.ok_or(TokenError::UnknownKey)?;
    let named = |key: &&Key| key.kid == kid && key.is_for(&head.alg);
    let key = keys.keys.iter().find(named).ok_or(TokenError::UnknownKey)?;
    let signature = decoded(signature, "its signature")?;
    if !key.has_signed(message.as_bytes(), &signature).ok_or(TokenError::UnknownKey)? {
        return Err(TokenError::Signature);
    }
    let access = head.typ.is_some_and(|typ| ACCESS.contains(&typ.to_ascii_lowercase().as_str()));
    Ok(Signed { access, claims: decoded(claims, "its claims")? })
}

impl Key {
    /// Whether it is for signatures by this algorithm: the key says which one that can be, and a token does not.
    fn is_for(&self, algorithm: &str) -> bool {
        let kind = match &self.kind {
            Kind::Rsa { .. } => "RS256",
            Kind::Curve { crv, .. } if crv == "P-256" => "ES256",
            Kind::Edwards { crv, .. } if crv == "Ed25519" => "EdDSA",
            Kind::Curve { .. } | Kind::Edwards { .. } => return false,
        };
        let named = self.alg.as_deref().is_none_or(|alg| alg == algorithm);
        let purpose = self.purpose.as_deref().is_none_or(|purpose| purpose == "sig");
        kind == algorithm && named && purpose
    }

    /// Whether it has signed a message; none when it is no such key, or too weak.
    fn has_signed(&self, message: &[u8], signature: &[u8]) -> Option<bool> {
        let number = |text: &String| {
            let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
            let zeros = bytes.iter().take_while(|b| **b == 0).count();
            Some(bytes[zeros..].to_vec())
        };
        let checked = match &self.kind {
            Kind::Rsa { n, e } => {
                let (n, e) = (number(n)?, number(e)?);
                if n.len() < MODULUS_BYTES_MIN {
                    return None;
                }
                let key = RsaPublicKeyComponents { n: &n, e: &e };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            Kind::Curve { x, y, .. } => {
                // An uncompressed point (SEC 1).
                let mut point = vec![4];
                for coordinate in [x, y] {
                    let bytes = URL_SAFE_NO_PAD.decode(coordinate).ok()?;
                    point.extend((bytes.len() == P256_BYTES).then_some(bytes)?);
                }
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            Kind::Edwards { x, .. } => {
                let point = URL_SAFE_NO_PAD.decode(x).ok()?;
                UnparsedPublicKey::new(&ED25519, point).verify(message, signature)
            }
        };
        Some(checked.is_ok())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use aws_lc_rs::{
        rand::SystemRandom,
        rsa::{KeyPair as RsaKey, KeySize},
        signature::{
            ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
            RSA_PKCS1_SHA256,
        },
    };
    use serde_json::json;

    /// A provider's keys, and what they sign with.
    pub(in crate::oidc) struct Signer {
        edwards: Ed25519KeyPair,
        curve: EcdsaKeyPair,
        rsa: RsaKey,
    }

    fn part(bytes: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    impl Signer {
        pub(in crate::oidc) fn new() -> Self {
            Self {
                edwards: Ed25519KeyPair::generate().expect("a key"),
                curve: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
                rsa: RsaKey::generate(KeySize::Rsa2048).expect("a key"),
            }
        }

        /// The point of the key on P-256, which is public.
        pub(in crate::oidc) fn point(&self) -> &[u8] {
            self.curve.public_key().as_ref()
        }

        pub(in crate::oidc) fn document(&self) -> Value {
            let rsa = self.rsa.public_key();
            let (n, e) = (rsa.modulus(), rsa.exponent());
            let (n, e) = (
                part(n.big_endian_without_leading_zero()),
                part(e.big_endian_without_leading_zero()),
            );
            let (x, y) = (part(&self.point()[1..33]), part(&self.point()[33..65]));
            json!({ "keys": [
                { "kty": "EC", "crv": "P-256", "use": "sig", "kid": "ES256", "x": x, "y": y },
                { "kty": "RSA", "alg": "RS256", "kid": "RS256", "n": n, "e": e },
                { "kty": "OKP", "crv": "Ed25519", "kid": "EdDSA", "x": part(self.edwards.public_key()) },
                { "kty": "oct", "kid": "secret", "k": part([1; 32]) },
                { "kty": "new", "kid": 7 },
                { "kty": "EC", "crv": "P-256", "use": "enc", "kid": "enc", "x": x, "y": y },
                { "kty": "EC", "crv": "P-384", "kid": "p384", "x": x, "y": y },
                { "kty": "EC", "crv": "P-256", "alg": "ES384", "kid": "es384", "x": x, "y": y },
                { "kty": "EC", "crv": "P-256", "kid": "short", "x": "AQ", "y": y },
                { "kty": "RSA", "kid": "weak", "n": part([0xff; 128]), "e": e },
                { "kty": "RSA", "kid": "padded", "n": part([vec![0; 128], vec![0xff; 128]].concat()), "e": e },
            ] })
        }

        pub(in crate::oidc) fn keys(&self) -> Keys {
            serde_json::from_value(self.document()).expect("keys")
        }

        /// A token that this head says how to sign.
        pub(in crate::oidc) fn token(&self, head: &Value, claims: &Value) -> String {
            let message = format!("{}.{}", part(head.to_string()), part(claims.to_string()));
            let (random, bytes) = (SystemRandom::new(), message.as_bytes());
            let signature = match head["alg"].as_str().unwrap_or_default() {
                "EdDSA" => self.edwards.sign(bytes).as_ref().to_vec(),
                "RS256" => {
                    let mut signature = vec![0; self.rsa.public_modulus_len()];
                    self.rsa
                        .sign(&RSA_PKCS1_SHA256, &random, bytes, &mut signature)
                        .expect("signed");
                    signature
                }
                _ => self.curve.sign(&random, bytes).expect("signed").as_ref().to_vec(),
            };
            format!("{message}.{}", part(signature))
        }
    }

    #[test]
    fn each_algorithm_has_its_key_and_no_key_is_for_another_algorithm() {
        let signer = Signer::new();
        let keys = signer.keys();
        let said = |alg: &str, kid: &str| {
            let token = signer.token(&json!({ "alg": alg, "kid": kid }), &json!({ "sub": "4711" }));
            signed(&token, &keys).map(|s| s.claims).map_err(|e| e.reason())
        };
        let algorithms = ["ES256", "RS256", "EdDSA"];
        for alg in algorithms {
            for kid in algorithms {
                let wanted = if alg == kid {
                    Ok(br#"{"sub":"4711"}"#.to_vec())
                } else {
                    Err("token_key_unknown")
                };
                assert_eq!(said(alg, kid), wanted, "{alg} by {kid}");
            }
        }
        for kid in ["secret", "enc", "p384", "es384", "short"] {
            assert_eq!(said("ES256", kid), Err("token_key_unknown"), "{kid}");
        }
        for kid in ["weak", "padded"] {
            assert_eq!(said("RS256", kid), Err("token_key_unknown"), "{kid}");
        }
        for alg in ["RS384", "PS256", "ES512", "HS256", "none", "None", "es256", ""] {
            assert_eq!(said(alg, "ES256"), Err("token_algorithm"), "{alg}");
        }
    }

    #[test]
    fn no_byte_of_a_token_can_be_changed() {
        let signer = Signer::new();
        let keys = signer.keys();
        let token =
            signer.token(&json!({ "alg": "EdDSA", "kid": "EdDSA" }), &json!({ "sub": "4711" }));
        assert!(signed(&token, &keys).is_ok());
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("text");
            assert!(signed(&changed, &keys).is_err(), "byte {at}");
        }
        for more in
            ["", ".", "..", &format!("{token}.e30"), &format!("{token}="), &format!(" {token}")]
        {
            assert!(signed(more, &keys).is_err(), "{more}");
        }
    }
}
