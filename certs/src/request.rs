//! Signing requests (PKCS #10, RFC 2986): how a site asks for a certificate, and what is looked at in what it asks.
//!
//! Of a request the key counts and the proof that whoever asks has its private half. Names, extensions and whatever else it
//! holds are never granted: what a certificate says is decided by whoever grants it ([`crate::issue`]).

use crate::{
    ca::key_pem,
    keys::KeyAt,
    tls::{CredentialsError, open_key},
};
use anyhow::Result;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, SigningKey, VerifyingKey, pkcs8::DecodePrivateKey as _};
use falaj_core::{id::Digest, sign::SignKey};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ED25519, PublicKeyData, SignatureAlgorithm,
};
use std::{fmt::Write as _, sync::Arc};
use x509_parser::{
    certification_request::X509CertificationRequest,
    oid_registry::{OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519},
    prelude::FromDer as _,
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};
use zeroize::Zeroizing;

/// The longest request that is looked at.
pub const REQUEST_BYTES_MAX: usize = 8 << 10;

/// Curves that people try, by the identifiers that requests have.
const CURVES: [(&str, &str); 6] = [
    ("1.2.840.10045.3.1.1", "P-192"),
    ("1.3.132.0.33", "P-224"),
    ("1.2.840.10045.3.1.7", "P-256"),
    ("1.3.132.0.34", "P-384"),
    ("1.3.132.0.35", "P-521"),
    ("1.3.132.0.10", "secp256k1"),
];

/// Why a request is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Too long.
    #[error("the signing request has {0} bytes, {REQUEST_BYTES_MAX} are allowed")]
    Long(usize),
    /// Not PKCS #10.
    #[error("the signing request cannot be read: {0}")]
    Unreadable(String),
    /// Another kind of key.
    #[error(
        "the signing request is for {0}: a site's key is Ed25519, which also signs its updates; `falaj-agent enroll` makes one"
    )]
    Key(String),
    /// Not signed by its own key.
    #[error(
        "the signing request is not signed by the key that it is for: whoever asks has to have it"
    )]
    Possession,
}

impl RequestError {
    /// What is wrong, as one stable word for the log.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Long(_) => "request_too_long",
            Self::Unreadable(_) => "unreadable_request",
            Self::Key(_) => "key_kind",
            Self::Possession => "no_proof_of_possession",
        }
    }
}

/// A request whose sender has the private half of its key.
#[derive(Clone, Debug)]
pub struct SigningRequest {
    der: Vec<u8>,
    key: PublicEd25519,
}

impl SigningRequest {
    /// Reads a request, DER.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn parse(der: &[u8]) -> Result<Self, RequestError> {
        if der.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::Long(der.len()));
        }
        let unreadable = |e: &dyn std::fmt::Display| RequestError::Unreadable(e.to_string());
        let (rest, asked) = X509CertificationRequest::from_der(der).map_err(|e| unreadable(&e))?;
        if !rest.is_empty() {
            return Err(RequestError::Unreadable("bytes follow it".into()));
        }
        let info = &asked.certification_request_info;
        let spki = &info.subject_pki;
        if spki.algorithm.algorithm != OID_SIG_ED25519 {
            return Err(RequestError::Key(kind_of(spki)));
        }
        let key: &[u8] = &spki.subject_public_key.data;
        let key: [u8; 32] =
            key.try_into().map_err(|_| RequestError::Key("a broken Ed25519 key".into()))?;
        let verifying = VerifyingKey::from_bytes(&key);
        let verifying = verifying.map_err(|_| RequestError::Key("a broken Ed25519 key".into()))?;
        if verifying.is_weak() {
            return Err(RequestError::Key("an Ed25519 key of small order".into()));
        }
        let signature: &[u8] = &asked.signature_value.data;
        let signed = asked.signature_algorithm.algorithm == OID_SIG_ED25519
            && Signature::from_slice(signature)
                .is_ok_and(|s| verifying.verify_strict(info.raw, &s).is_ok());
        if !signed {
            return Err(RequestError::Possession);
        }
        Ok(Self { der: der.to_vec(), key: PublicEd25519(key) })
    }

    /// The public key that it is for.
    #[must_use]
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.key.0
    }

    /// SHA-256 of the public key, for the log.
    #[must_use]
    pub fn key_sha256(&self) -> Digest {
        Digest::of(&self.key.0)
    }

    /// For a library that puts it into a certificate.
    pub(crate) const fn key(&self) -> &PublicEd25519 {
        &self.key
    }

    /// As programs take it.
    #[must_use]
    pub fn pem(&self) -> String {
        pem("CERTIFICATE REQUEST", [&self.der[..]])
    }
}

/// Things of one kind in PEM form (RFC 7468), one after the other.
#[must_use]
pub fn pem<'a>(label: &str, things: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut pem = String::new();
    for der in things {
        // Writing to a string cannot fail.
        let _ = writeln!(pem, "-----BEGIN {label}-----");
        for line in STANDARD.encode(der).as_bytes().chunks(64) {
            pem.extend(line.iter().map(|b| char::from(*b)));
            pem.push('\n');
        }
        let _ = writeln!(pem, "-----END {label}-----");
    }
    pem
}

/// A site's key before there is a certificate about it.
pub struct SiteKey(Arc<dyn SignKey>);

impl SiteKey {
    /// Its public half.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// A request for a certificate about it, DER.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn request(&self) -> Result<Vec<u8>, rcgen::Error> {
        request(&*self.0)
    }
}

/// Makes a key, and gives it in PEM form too, to be written where nobody else reads it.
///
/// # Errors
/// When there is no randomness.
pub fn generate() -> Result<(SiteKey, Zeroizing<String>)> {
    let pair = KeyPair::generate_for(&PKCS_ED25519)?;
    let key = SigningKey::from_pkcs8_der(pair.serialized_der())?;
    Ok((SiteKey(Arc::new(key)), key_pem(&pair)?))
}

/// Loads a key that is there.
///
/// # Errors
/// [`CredentialsError`], also when others can read it.
pub fn load_key(at: &KeyAt) -> Result<SiteKey, CredentialsError> {
    Ok(SiteKey(open_key(at)?.1))
}

/// What a key is, for people.
fn kind_of(spki: &SubjectPublicKeyInfo<'_>) -> String {
    let algorithm = &spki.algorithm;
    if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
        return match spki.parsed() {
            Ok(PublicKey::RSA(key)) => format!("an RSA key of {} bits", key.key_size()),
            _ => "a broken RSA key".into(),
        };
    }
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm.parameters.as_ref().and_then(|p| p.clone().oid().ok());
        let curve = curve.map(|oid| oid.to_id_string()).unwrap_or_default();
        let name = CURVES.iter().find(|(oid, _)| *oid == curve);
        return match name {
            Some((_, name)) => format!("a key on the curve {name}"),
            None => "a key on an elliptic curve that has no name here".into(),
        };
    }
    format!("a key of kind {}", algorithm.algorithm.to_id_string())
}

/// A request for a certificate about this key, DER. It asks for no name: which one is granted does not depend on what is asked.
///
/// # Errors
/// When it cannot be signed.
pub fn request(key: &dyn SignKey) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let signer = Signer { public: PublicEd25519(key.verifying_key().to_bytes()), key };
    Ok(params.serialize_request(&signer)?.der().to_vec())
}

/// An Ed25519 public key.
#[derive(Clone, Debug)]
pub(crate) struct PublicEd25519(pub(crate) [u8; 32]);

impl PublicKeyData for PublicEd25519 {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// Whatever holds the private half.
struct Signer<'a> {
    public: PublicEd25519,
    key: &'a dyn SignKey,
}

impl PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl rcgen::SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signed = self.key.sign(message).map(|signature| signature.to_vec());
        signed.map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
