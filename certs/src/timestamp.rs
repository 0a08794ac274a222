//! Time-stamps of others (RFC 3161): what is asked of an authority, and what its answer is worth. No network, no clock.
//!
//! An answer is read as it came, in DER; nothing in it is decoded and encoded again, so what is hashed and verified are
//! the bytes that the authority signed. Signatures and chains are checked by rustls' own verifier.

use crate::tls::provider;
use aws_lc_rs::digest::{self, digest};
use falaj_core::{id::Digest, time::Timestamp};
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, UnixTime, alg_id, pem::PemObject as _,
};
use std::{fs, path::Path, str::FromStr, time::Duration};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::{
    asn1_rs::{Any, Class, FromDer as _, Oid, Tag, ToDer as _, oid},
    certificate::X509Certificate,
};

/// An answer is no longer than this. They have a few thousand bytes.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;
/// What is asked, by HTTP's name.
pub const QUERY_TYPE: &str = "application/timestamp-query";
/// What is answered, by HTTP's name.
pub const REPLY_TYPE: &str = "application/timestamp-reply";

const ID_SIGNED_DATA: Oid<'static> = oid!(1.2.840.113549.1.7.2);
const ID_TST_INFO: Oid<'static> = oid!(1.2.840.113549.1.9.16.1.4);
const ID_CONTENT_TYPE: Oid<'static> = oid!(1.2.840.113549.1.9.3);
const ID_MESSAGE_DIGEST: Oid<'static> = oid!(1.2.840.113549.1.9.4);
const ID_SIGNING_CERTIFICATE: Oid<'static> = oid!(1.2.840.113549.1.9.16.2.12);
const ID_SIGNING_CERTIFICATE_V2: Oid<'static> = oid!(1.2.840.113549.1.9.16.2.47);
const ID_SHA256: Oid<'static> = oid!(2.16.840.1.101.3.4.2.1);
const ID_SHA384: Oid<'static> = oid!(2.16.840.1.101.3.4.2.2);
const ID_SHA512: Oid<'static> = oid!(2.16.840.1.101.3.4.2.3);
/// `id-kp-timeStamping`, 1.3.6.1.5.5.7.3.8.
const EKU_TIME_STAMPING: &[u8] = &[43, 6, 1, 5, 5, 7, 3, 8];

/// Why an answer is no time-stamp, or not the one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimestampError {
    /// It cannot be read.
    #[error("it is no time-stamp in the form of RFC 3161: {0} cannot be read")]
    Malformed(&'static str),
    /// The authority said no.
    #[error("the authority refused: status {status}{text}")]
    Refused {
        /// `PKIStatus`.
        status: u8,
        /// What it says, after a comma.
        text: String,
    },
    /// It is of something else.
    #[error("it is a time-stamp of something else: of {found}, where {expected} was to be stamped")]
    Imprint {
        /// In the token.
        found: Digest,
        /// Asked for.
        expected: Digest,
    },
    /// It answers another question.
    #[error("it answers another question: its nonce is not the one that was sent")]
    Nonce,
    /// It is given under another policy.
    #[error("it is given under policy {found}, and {expected} was asked for")]
    Policy {
        /// In the token.
        found: String,
        /// Asked for.
        expected: String,
    },
    /// It uses something that this does not take.
    #[error(
        "its {0} is not one that is taken: RSA and ECDSA are, with SHA-256, SHA-384 and SHA-512"
    )]
    Algorithm(&'static str),
    /// What is signed is not what it holds.
    #[error("its signature does not hold: {0}")]
    Signature(&'static str),
    /// The certificate is not fit for time-stamps.
    #[error("its certificate, of {holder}, {why}")]
    Certificate {
        /// Whom it names.
        holder: String,
        /// What is wrong with it.
        why: String,
    },
}

use TimestampError::{Algorithm, Malformed, Signature};

/// Which policy an authority is to work under: an object identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy(Oid<'static>);

impl FromStr for Policy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let oid = Oid::from_str(text).ok().filter(|oid| !oid.as_bytes().is_empty());
        oid.map(Self).ok_or_else(|| {
            format!("`{text}` is no object identifier: write one such as 1.3.6.1.4.1.13762.3")
        })
    }
}

impl<'de> serde::Deserialize<'de> for Policy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A question to an authority, for a time-stamp of what has this SHA-256. The authority's certificate is to be in the
/// answer.
#[must_use]
pub fn query(imprint: &Digest, nonce: &[u8; 16], policy: Option<&Policy>) -> Vec<u8> {
    let algorithm = element(0x30, &[&oid_element(&ID_SHA256), &[0x05, 0x00]]);
    let imprint = element(0x30, &[&algorithm, &element(0x04, &[&imprint.0])]);
    let policy = policy.map(|policy| oid_element(&policy.0)).unwrap_or_default();
    // A leading one keeps the number positive, and its length the same.
    let nonce = element(0x02, &[&[1], nonce]);
    element(0x30, &[&[0x02, 0x01, 0x01], &imprint, &policy, &nonce, &[0x01, 0x01, 0xff]])
}

/// An element in DER: a tag, the length of its parts, and the parts.
fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if let Ok(short @ 0..0x80) = u8::try_from(length) {
        out.push(short);
    } else {
        let digits: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|d| *d == 0).collect();
        // At most eight.
        out.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
        out.extend(digits);
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

fn oid_element(oid: &Oid<'_>) -> Vec<u8> {
    oid.to_der_vec().unwrap_or_default()
}

/// The authorities' issuers that somebody trusts.
#[derive(Clone, Debug)]
pub struct Issuers(Vec<CertificateDer<'static>>);

impl Issuers {
    /// From a PEM file with one certificate or more.
    ///
    /// # Errors
    /// Which file, what is wrong with it, and what it should be.
    pub fn load(path: &Path) -> Result<Self, String> {
        let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let pem = fs::read(path).map_err(|e| wrong(&e))?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let found = found.map_err(|e| wrong(&e))?;
        if found.is_empty() {
            return Err(wrong(
                &"there is no certificate in it: give the authority's issuer, in PEM",
            ));
        }
        for der in &found {
            anchor_from_trusted_cert(der).map_err(|e| wrong(&e))?;
        }
        Ok(Self(found))
    }
}

/// A time-stamp that is whole: the key of the certificate in it has signed that something with this SHA-256 was there at
/// this time. Whose certificate that is, [`Stamp::check_issuer`] tells.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// SHA-256 of what was stamped.
    pub imprint: Digest,
    /// When.
    pub time: Timestamp,
    /// The authority, as its certificate names it.
    pub authority: String,
    /// SHA-256 of that certificate.
    pub certificate: Digest,
    policy: String,
    nonce: Vec<u8>,
    signer: CertificateDer<'static>,
    others: Vec<CertificateDer<'static>>,
}

impl Stamp {
    /// Reads an authority's answer (`TimeStampResp`) about what has this SHA-256, and checks everything but who issued
    /// the authority's certificate.
    ///
    /// # Errors
    /// [`TimestampError`]: the first thing that does not hold.
    pub fn open(answer: &[u8], expected: &Digest) -> Result<Self, TimestampError> {
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(Malformed("so long an answer"));
        }
        let token = granted(answer)?;
        let signed = SignedData::read(token)?;
        let info = TstInfo::read(signed.content)?;
        if info.imprint != *expected {
            return Err(TimestampError::Imprint { found: info.imprint, expected: *expected });
        }
        let signer = signed.check()?;
        let others = signed.certificates.iter().filter(|der| **der != signer);
        let (_, x509) =
            X509Certificate::from_der(signer).map_err(|_| Malformed("a certificate"))?;
        let stamp = Self {
            imprint: *expected,
            time: info.time,
            authority: x509.subject().to_string(),
            certificate: Digest::of(signer),
            policy: info.policy,
            nonce: info.nonce.to_vec(),
            signer: CertificateDer::from(signer.to_vec()),
            others: others.map(|der| CertificateDer::from(der.to_vec())).collect(),
        };
        stamp.check_purpose(&x509)?;
        Ok(stamp)
    }

    /// Whether this answers a [`query`] with this nonce and policy.
    ///
    /// # Errors
    /// [`TimestampError::Nonce`], [`TimestampError::Policy`].
    pub fn check_answers(
        &self,
        nonce: &[u8; 16],
        policy: Option<&Policy>,
    ) -> Result<(), TimestampError> {
        if self.nonce.split_first() != Some((&1, &nonce[..])) {
            return Err(TimestampError::Nonce);
        }
        match policy.map(|policy| policy.0.to_id_string()) {
            Some(expected) if expected != self.policy => {
                Err(TimestampError::Policy { found: self.policy.clone(), expected })
            }
            _ => Ok(()),
        }
    }

    /// Whether one of these has issued the authority's certificate, itself or through others in the answer, all valid when
    /// the stamp was made.
    ///
    /// # Errors
    /// [`TimestampError::Certificate`].
    pub fn check_issuer(&self, issuers: &Issuers) -> Result<(), TimestampError> {
        let unfit = |e: webpki::Error| {
            self.unfit(format!("does not lead to an issuer that is trusted for time-stamps ({e})"))
        };
        let anchors: Result<Vec<_>, _> = issuers.0.iter().map(anchor_from_trusted_cert).collect();
        let anchors = anchors.map_err(unfit)?;
        let certificate = EndEntityCert::try_from(&self.signer).map_err(unfit)?;
        let seconds = u64::try_from(self.time.as_millis() / 1_000).unwrap_or_default();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        // That the authority's own certificate has this purpose was checked; its issuers need not name any.
        let usage = KeyUsage::required_if_present(EKU_TIME_STAMPING);
        let algorithms = provider().signature_verification_algorithms.all;
        certificate
            .verify_for_usage(algorithms, &anchors, &self.others, at, usage, None, None)
            .map_err(unfit)?;
        Ok(())
    }

    /// The certificate is for time-stamps and nothing else (RFC 3161, section 2.3), and was valid when this was made.
    fn check_purpose(&self, x509: &X509Certificate<'_>) -> Result<(), TimestampError> {
        let purpose = x509.extended_key_usage().ok().flatten();
        let fit = purpose.is_some_and(|purpose| {
            let of = purpose.value;
            let others = of.any
                || of.server_auth
                || of.client_auth
                || of.code_signing
                || of.email_protection
                || of.ocsp_signing
                || !of.other.is_empty();
            purpose.critical && of.time_stamping && !others
        });
        if !fit {
            return Err(self.unfit(
                "is not for time-stamps, critically and only (extended key usage timeStamping)"
                    .into(),
            ));
        }
        let (from, until) = (x509.validity().not_before, x509.validity().not_after);
        let at = self.time.as_millis().div_euclid(1_000);
        if at < from.timestamp() || at > until.timestamp() {
            let at = self.time;
            return Err(
                self.unfit(format!("is valid from {from} to {until}, and the stamp is of {at}"))
            );
        }
        Ok(())
    }

    fn unfit(&self, why: String) -> TimestampError {
        TimestampError::Certificate { holder: self.authority.clone(), why }
    }
}

/// Elements in DER, one after the other.
#[derive(Clone, Copy)]
struct Der<'a> {
    rest: &'a [u8],
    /// What is being read, for errors.
    what: &'static str,
}

impl<'a> Der<'a> {
    const fn new(rest: &'a [u8], what: &'static str) -> Self {
        Self { rest, what }
    }

    /// The next element: itself, and whole.
    fn any(&mut self) -> Result<(Any<'a>, &'a [u8]), TimestampError> {
        let (rest, any) = Any::from_der(self.rest).map_err(|_| Malformed(self.what))?;
        let whole = &self.rest[..self.rest.len() - rest.len()];
        self.rest = rest;
        Ok((any, whole))
    }

    /// What the next element holds, which has this tag.
    fn take(&mut self, tag: Tag) -> Result<&'a [u8], TimestampError> {
        let (any, _) = self.any()?;
        let fits = any.class() == Class::Universal && any.tag() == tag;
        if fits { Ok(any.data) } else { Err(Malformed(self.what)) }
    }

    fn next_is(&self, class: Class, tag: Tag) -> bool {
        let next = Any::from_der(self.rest);
        next.is_ok_and(|(_, any)| any.class() == class && any.tag() == tag)
    }

    /// As [`Self::take`], if there is one.
    fn maybe(&mut self, tag: Tag) -> Result<Option<&'a [u8]>, TimestampError> {
        if self.next_is(Class::Universal, tag) { self.take(tag).map(Some) } else { Ok(None) }
    }

    /// What the next element holds, if it has this number in its context.
    fn context(&mut self, number: u32) -> Result<Option<&'a [u8]>, TimestampError> {
        if !self.next_is(Class::ContextSpecific, Tag(number)) {
            return Ok(None);
        }
        self.any().map(|(any, _)| Some(any.data))
    }

    fn sequence(&mut self) -> Result<Self, TimestampError> {
        Ok(Self::new(self.take(Tag::Sequence)?, self.what))
    }

    fn set(&mut self) -> Result<Self, TimestampError> {
        Ok(Self::new(self.take(Tag::Set)?, self.what))
    }

    fn oid(&mut self) -> Result<Oid<'a>, TimestampError> {
        Ok(Oid::new(self.take(Tag::Oid)?.into()))
    }

    /// A small number.
    fn small(&mut self) -> Result<u8, TimestampError> {
        match self.take(Tag::Integer)? {
            [n] => Ok(*n),
            _ => Err(Malformed(self.what)),
        }
    }

    const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn end(&self) -> Result<(), TimestampError> {
        if self.is_empty() { Ok(()) } else { Err(Malformed(self.what)) }
    }
}

/// The token in an answer (RFC 3161, section 2.4.2).
fn granted(answer: &[u8]) -> Result<&[u8], TimestampError> {
    let mut outer = Der::new(answer, "the answer");
    let mut answer = outer.sequence()?;
    outer.end()?;
    let mut status = answer.sequence()?;
    let number = status.small()?;
    // Granted, or granted with changes: what was changed is compared with what was asked.
    if number > 1 {
        let texts = status.maybe(Tag::Sequence)?.unwrap_or_default();
        let text = Der::new(texts, "the status").take(Tag::Utf8String).unwrap_or_default();
        let text: String = String::from_utf8_lossy(text).chars().take(200).collect();
        let text = if text.is_empty() { text } else { format!(", {text}") };
        return Err(TimestampError::Refused { status: number, text });
    }
    let (_, token) = answer.any()?;
    answer.end()?;
    Ok(token)
}

/// What an authority signed, and how (RFC 5652, section 5).
struct SignedData<'a> {
    content: &'a [u8],
    certificates: Vec<&'a [u8]>,
    digest: Oid<'a>,
    /// The signed attributes: what their element holds.
    attributes: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> SignedData<'a> {
    fn read(token: &'a [u8]) -> Result<Self, TimestampError> {
        let mut token = Der::new(token, "the token").sequence()?;
        if token.oid()? != ID_SIGNED_DATA {
            return Err(Malformed("another content than signed data"));
        }
        let content = token.context(0)?.ok_or(Malformed("the token"))?;
        token.end()?;
        let mut signed = Der::new(content, "the signed data").sequence()?;
        signed.small()?;
        signed.set()?;
        let mut content = signed.sequence()?;
        if content.oid()? != ID_TST_INFO {
            return Err(Malformed("another content than a time-stamp"));
        }
        let content = content.context(0)?.ok_or(Malformed("the content"))?;
        let content = Der::new(content, "the content").take(Tag::OctetString)?;
        let mut certificates = Vec::new();
        let mut all = Der::new(signed.context(0)?.unwrap_or_default(), "the certificates");
        while !all.is_empty() {
            let (any, whole) = all.any()?;
            // Other forms of certificates have a context's tag; nothing here needs them.
            if any.class() == Class::Universal {
                certificates.push(whole);
            }
        }
        signed.context(1)?;
        let mut signers = signed.set()?;
        signed.end()?;
        let mut signer = signers.sequence()?;
        // A token has one signature, its authority's.
        signers.end()?;
        signer.what = "the signature";
        signer.small()?;
        // Who signed is bound by the signed digest of the certificate; what is named here beside it is not signed.
        signer.any()?;
        let digest = signer.sequence()?.oid()?;
        let attributes = signer.context(0)?.ok_or(Malformed("what is signed"))?;
        let algorithm = signer.take(Tag::Sequence)?;
        let signature = signer.take(Tag::OctetString)?;
        Ok(Self { content, certificates, digest, attributes, algorithm, signature })
    }

    /// Checks the signature and what it covers; gives the certificate under whose key it holds.
    fn check(&self) -> Result<&'a [u8], TimestampError> {
        if self
            .attribute(&ID_CONTENT_TYPE)?
            .ok_or(Signature("the kind of its content is not signed"))?
            .oid()?
            != ID_TST_INFO
        {
            return Err(Signature("another kind of content is signed"));
        }
        let signed = self.attribute(&ID_MESSAGE_DIGEST)?;
        let signed =
            signed.ok_or(Signature("its content is not signed"))?.take(Tag::OctetString)?;
        let hash = hash_of(&self.digest)?;
        if signed != digest(hash, self.content).as_ref() {
            return Err(Signature("another content is signed"));
        }
        let signer = self.signer()?;
        let der = CertificateDer::from(signer);
        let certificate =
            EndEntityCert::try_from(&der).map_err(|_| Malformed("the certificate"))?;
        let wanted = self.algorithm()?;
        // They are signed as the set that they are, and stand there under another tag.
        let message = element(0x31, &[self.attributes]);
        let algorithms = provider().signature_verification_algorithms.all.iter();
        let mut fitting = algorithms.filter(|a| a.signature_alg_id() == wanted).peekable();
        if fitting.peek().is_none() {
            return Err(Algorithm("signature"));
        }
        if fitting.any(|a| certificate.verify_signature(*a, &message, self.signature).is_ok()) {
            Ok(signer)
        } else {
            Err(Signature("it was not made with the certificate's key"))
        }
    }

    /// The only value of a signed attribute that occurs at most once.
    fn attribute(&self, wanted: &Oid<'_>) -> Result<Option<Der<'a>>, TimestampError> {
        let mut all = Der::new(self.attributes, "what is signed");
        let mut found = None;
        while !all.is_empty() {
            let mut attribute = all.sequence()?;
            if attribute.oid()? == *wanted {
                let mut values = attribute.set()?;
                let (_, value) = values.any()?;
                values.end()?;
                if found.replace(Der::new(value, "what is signed")).is_some() {
                    return Err(Malformed("what is signed twice"));
                }
            }
        }
        Ok(found)
    }

    /// The certificate of whose digest the signature says that it is the signer's (RFC 5035; by SHA-1, RFC 2634).
    fn signer(&self) -> Result<&'a [u8], TimestampError> {
        let (hash, named) = if let Some(mut value) = self.attribute(&ID_SIGNING_CERTIFICATE_V2)? {
            let mut first = value.sequence()?.sequence()?.sequence()?;
            let hash = match first.maybe(Tag::Sequence)? {
                Some(algorithm) => hash_of(&Der::new(algorithm, "what is signed").oid()?)?,
                None => &digest::SHA256,
            };
            (hash, first.take(Tag::OctetString)?)
        } else if let Some(mut value) = self.attribute(&ID_SIGNING_CERTIFICATE)? {
            let mut first = value.sequence()?.sequence()?.sequence()?;
            // What is signed is not this digest but all that it stands in, by a better one.
            (&digest::SHA1_FOR_LEGACY_USE_ONLY, first.take(Tag::OctetString)?)
        } else {
            return Err(Signature("it does not say by which certificate it was made"));
        };
        let of = |der: &&&[u8]| digest(hash, der).as_ref() == named;
        let found = self.certificates.iter().find(of);
        found.copied().ok_or(Signature("the certificate by which it was made is not in the answer"))
    }

    /// How it was signed, as verifiers call it.
    fn algorithm(&self) -> Result<AlgorithmIdentifier, TimestampError> {
        let known = [
            alg_id::RSA_PKCS1_SHA256,
            alg_id::RSA_PKCS1_SHA384,
            alg_id::RSA_PKCS1_SHA512,
            alg_id::RSA_PSS_SHA256,
            alg_id::RSA_PSS_SHA384,
            alg_id::RSA_PSS_SHA512,
            alg_id::ECDSA_SHA256,
            alg_id::ECDSA_SHA384,
            alg_id::ECDSA_SHA512,
        ];
        // Of RSA some say only that it is RSA; the digest is named beside it then.
        if self.algorithm == &*alg_id::RSA_ENCRYPTION {
            let by_digest = [ID_SHA256, ID_SHA384, ID_SHA512].into_iter().zip(known);
            let found = by_digest.into_iter().find(|(digest, _)| *digest == self.digest);
            return found.map(|(_, known)| known).ok_or(Algorithm("digest"));
        }
        let found = known.into_iter().find(|known| **known == *self.algorithm);
        found.ok_or(Algorithm("signature"))
    }
}

fn hash_of(oid: &Oid<'_>) -> Result<&'static digest::Algorithm, TimestampError> {
    let known =
        [(ID_SHA256, &digest::SHA256), (ID_SHA384, &digest::SHA384), (ID_SHA512, &digest::SHA512)];
    let found = known.into_iter().find(|(known, _)| known == oid);
    found.map(|(_, hash)| hash).ok_or(Algorithm("digest"))
}

/// What a token says (RFC 3161, section 2.4.2).
struct TstInfo<'a> {
    policy: String,
    imprint: Digest,
    time: Timestamp,
    nonce: &'a [u8],
}

impl<'a> TstInfo<'a> {
    fn read(content: &'a [u8]) -> Result<Self, TimestampError> {
        let mut outer = Der::new(content, "the time-stamp's content");
        let mut info = outer.sequence()?;
        outer.end()?;
        if info.small()? != 1 {
            return Err(Malformed("another version of time-stamps"));
        }
        let policy = info.oid()?.to_id_string();
        let mut imprint = info.sequence()?;
        if imprint.sequence()?.oid()? != ID_SHA256 {
            return Err(Algorithm("digest of what was stamped"));
        }
        let imprint = imprint.take(Tag::OctetString)?.try_into();
        let imprint = Digest(imprint.map_err(|_| Malformed("the digest of what was stamped"))?);
        info.take(Tag::Integer)?;
        let time = info.take(Tag::GeneralizedTime)?;
        let time = moment(time).ok_or(Malformed("the time"))?;
        // How exact the time is, and whether stamps are in order.
        info.maybe(Tag::Sequence)?;
        info.maybe(Tag::Boolean)?;
        let nonce = info.maybe(Tag::Integer)?.unwrap_or_default();
        Ok(Self { policy, imprint, time, nonce })
    }
}

/// `20260131093000Z`, with a fraction of a second or without.
fn moment(text: &[u8]) -> Option<Timestamp> {
    let text = str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.len() != 14 || !digits(whole) || !digits(fraction) || fraction.is_empty() {
        return None;
    }
    let part = |at: std::ops::Range<usize>| whole.get(at);
    let (date, time) =
        ((part(0..4)?, part(4..6)?, part(6..8)?), (part(8..10)?, part(10..12)?, part(12..14)?));
    let fraction = fraction.get(..fraction.len().min(9))?;
    let text =
        format!("{}-{}-{}T{}:{}:{}.{fraction}Z", date.0, date.1, date.2, time.0, time.1, time.2);
    let found: jiff::Timestamp = text.parse().ok()?;
    Some(Timestamp::from_millis(found.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_with_its_fraction_and_nothing_else_is() {
        let read = |text: &str| moment(text.as_bytes()).map(|time| time.to_string());
        for (text, time) in [
            ("20260131093000Z", "2026-01-31T09:30:00.000Z"),
            ("20260131093000.5Z", "2026-01-31T09:30:00.500Z"),
            ("20260131093000.123456789012Z", "2026-01-31T09:30:00.123Z"),
        ] {
            assert_eq!(read(text).as_deref(), Some(time));
        }
        for text in [
            "",
            "Z",
            "20260131093000",
            "202601310930Z",
            "20260231093000Z",
            "20260131093000.Z",
            "20260131093000+0400",
            "2026013109300éZ",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    /// The question that OpenSSL 3.0 asks for the same digest, nonce and policy, byte for byte but for the nonce's length:
    /// `openssl ts -query -sha256 -digest 00…00 -cert -tspolicy 1.2.3.4.1`, read with `openssl asn1parse`.
    #[test]
    fn a_question_is_in_der() {
        let policy = "1.2.3.4.1".parse().ok();
        let asked = query(&Digest([0; 32]), &[7; 16], policy.as_ref());
        let head = [
            0x30, 82, 2, 1, 1, 0x30, 49, 0x30, 13, 6, 9, 0x60, 0x86, 0x48, 1, 101, 3, 4, 2, 1, 5,
            0, 4, 32,
        ];
        let tail = [&[6, 4, 42, 3, 4, 1, 2, 17, 1][..], &[7; 16], &[1, 1, 255]].concat();
        assert_eq!(asked, [&head[..], &[0; 32], &tail].concat());
        assert_eq!(element(4, &[&[0; 200]])[..3], [4, 0x81, 200]);
        assert_eq!(element(4, &[&[0; 300]])[..4], [4, 0x82, 1, 44]);
    }
}
