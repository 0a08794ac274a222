//! Certificates that are not to be trusted any more: revocation lists of issuers (RFC 5280, section 5).
//!
//! Every list is held against the trust configuration when it is read, so that a file that was swapped, cut short or put
//! back changes nothing. Whether a certificate is on one is asked of the TLS library alone, in the handshake and again
//! later: see [`crate::tls::client_verifier`].

use crate::trust::TrustStore;
use falaj_core::id::Digest;
use rustls_pki_types::{CertificateRevocationListDer, UnixTime, pem::PemObject as _};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};
use x509_parser::{
    certificate::X509Certificate, num_bigint::BigUint, prelude::FromDer as _,
    revocation_list::CertificateRevocationList,
};

/// A revocation list is at most this long: some fifty thousand certificates. Its signature is checked in every handshake, over
/// all of it, so a longer one would let anybody with a certificate keep the coordinator busy.
pub const CRL_BYTES_MAX: u64 = 2 << 20;
/// The extension of a list that speaks of a part of its issuer's certificates only (RFC 5280, section 5.2.5).
const PARTIAL: &str = "2.5.29.28";

/// Revocation lists that were checked, and what is done where none speaks.
#[derive(Clone, Debug, Default)]
pub struct Crls {
    lists: Vec<Crl>,
    unknown_allowed: bool,
}

/// One issuer's list.
#[derive(Clone, Debug)]
struct Crl {
    path: PathBuf,
    der: CertificateRevocationListDer<'static>,
    /// The issuer's name, DER.
    issuer: Vec<u8>,
    /// Its number, big-endian without leading zeros; empty when it has none.
    number: Vec<u8>,
    /// Issued, in seconds since the Unix epoch.
    this_update: i64,
    /// When the next one is due, in seconds since the Unix epoch.
    next_update: i64,
}

/// Why revocation lists are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// One of them is wrong.
    #[error("{path}: {what}", path = path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// An issuer has none, and nobody said that it needs none.
    #[error(
        "no revocation list of {0} is named in `revocation.crls`: name one, or set `revocation.unknown = \"allow\"`"
    )]
    Missing(String),
}

impl Crls {
    /// Reads lists, PEM or DER, each with the path of its file. Without any, nothing is asked of lists. `unknown_allowed` lets
    /// those in of whose issuer there is none.
    ///
    /// # Errors
    /// [`CrlError`], for the first list that is not what it should be.
    pub fn read(
        files: &[(PathBuf, Vec<u8>)],
        trust: &TrustStore,
        unknown_allowed: bool,
        now: UnixTime,
    ) -> Result<Self, CrlError> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let lists = files.iter().map(|(path, bytes)| Crl::read(path, bytes, trust, now));
        let this = Self { lists: lists.collect::<Result<_, _>>()?, unknown_allowed };
        for (n, list) in this.lists.iter().enumerate() {
            // Only the first would be asked, be it the older one.
            if let Some(other) = this.lists[..n].iter().find(|other| other.issuer == list.issuer) {
                let first = other.path.display();
                let what = format!("{first} is a list of the same issuer: name the newer one only");
                return Err(CrlError::List { path: list.path.clone(), what });
            }
        }
        if !this.lists.is_empty() && !unknown_allowed {
            for (issuer, entry) in trust.issuers() {
                let (_, issuer) = X509Certificate::from_der(issuer)
                    .map_err(|e| CrlError::Missing(format!("{} ({e})", entry.cert.display())))?;
                let name = issuer.subject().as_raw();
                if !this.lists.iter().any(|list| list.issuer == name) {
                    return Err(CrlError::Missing(issuer.subject().to_string()));
                }
            }
        }
        Ok(this)
    }

    /// Lists that were in force once, to tell newer ones from older ones: neither their signatures nor their times are asked about.
    ///
    /// # Errors
    /// [`CrlError::List`], for a file that is no list.
    pub fn remember(files: &[(PathBuf, Vec<u8>)]) -> Result<Self, CrlError> {
        let lists = files.iter().map(|(path, bytes)| Crl::parse(path, bytes));
        Ok(Self { lists: lists.collect::<Result<_, _>>()?, unknown_allowed: false })
    }

    /// The lists, each with the digest of its issuer's name.
    pub fn by_issuer(&self) -> impl Iterator<Item = (Digest, &[u8])> {
        self.lists.iter().map(|list| (Digest::of(&list.issuer), list.der.as_ref()))
    }

    /// Whether these may take the place of `before`: no list is older than the one of the same issuer there.
    ///
    /// # Errors
    /// [`CrlError::List`].
    pub fn follow(&self, before: &Self) -> Result<(), CrlError> {
        for list in &self.lists {
            let was = before.lists.iter().find(|b| b.issuer == list.issuer);
            if let Some(was) = was.filter(|was| list.is_before(was)) {
                let what = format!(
                    "it is older than the list in force (number {}, this one has {}): put the newest one there",
                    was.shown(),
                    list.shown()
                );
                return Err(CrlError::List { path: list.path.clone(), what });
            }
        }
        Ok(())
    }

    /// The lists, for the TLS library.
    pub(crate) fn ders(&self) -> impl Iterator<Item = CertificateRevocationListDer<'static>> {
        self.lists.iter().map(|list| list.der.clone())
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Whether those are let in of whose issuer there is no list.
    #[must_use]
    pub const fn unknown_allowed(&self) -> bool {
        self.unknown_allowed
    }

    /// The first list to become too old, and when, in seconds since the Unix epoch.
    #[must_use]
    pub fn first_due(&self) -> Option<(&Path, i64)> {
        let dues = self.lists.iter().map(|list| (list.path.as_path(), list.next_update));
        dues.min_by_key(|(_, due)| *due)
    }

    /// The digest of each list.
    #[must_use]
    pub fn digests(&self) -> Vec<Digest> {
        self.lists.iter().map(|list| Digest::of(&list.der)).collect()
    }
}

impl Crl {
    /// A list that holds now, signed by an issuer in the trust configuration.
    fn read(path: &Path, bytes: &[u8], trust: &TrustStore, now: i64) -> Result<Self, CrlError> {
        let this = Self::parse(path, bytes)?;
        let wrong = |what: &str| CrlError::List { path: path.to_owned(), what: what.to_owned() };
        let (_, crl) = CertificateRevocationList::from_der(&this.der)
            .map_err(|_| wrong("it is no revocation list"))?;
        if !trust.signed_by_issuer(
            &this.issuer,
            crl.tbs_cert_list.as_ref(),
            &crl.signature_algorithm,
            &crl.signature_value.data,
        ) {
            return Err(wrong("no issuer in the trust configuration signed it"));
        }
        if this.this_update > now {
            return Err(wrong("it is from the future: look at the clock of whoever made it"));
        }
        if this.next_update <= now {
            return Err(wrong("it is too old: the next one was due; put the newest one there"));
        }
        Ok(this)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, CrlError> {
        let wrong = |what: &str| CrlError::List { path: path.to_owned(), what: what.to_owned() };
        let der = if bytes.starts_with(b"-----") {
            CertificateRevocationListDer::from_pem_slice(bytes)
                .map_err(|_| wrong("it holds no revocation list in PEM form"))?
        } else {
            CertificateRevocationListDer::from(bytes.to_vec())
        };
        let (rest, crl) = CertificateRevocationList::from_der(&der)
            .map_err(|_| wrong("it is no revocation list"))?;
        if !rest.is_empty() {
            return Err(wrong("bytes follow the revocation list"));
        }
        // Whoever will ask it reads more strictly than this parser does.
        webpki::BorrowedCertRevocationList::from_der(&der)
            .map_err(|e| wrong(&format!("it cannot be used ({e})")))?;
        if crl.extensions().iter().any(|extension| extension.oid.to_id_string() == PARTIAL) {
            return Err(wrong(
                "it speaks of a part of its issuer's certificates only (issuingDistributionPoint): name a complete list",
            ));
        }
        let issuer = crl.tbs_cert_list.issuer.as_raw().to_vec();
        let next_update = crl.next_update().map(|at| at.timestamp());
        let next_update = next_update
            .ok_or_else(|| wrong("it does not say when the next one is due (nextUpdate)"))?;
        let this_update = crl.last_update().timestamp();
        let number = crl.crl_number().map(BigUint::to_bytes_be).unwrap_or_default();
        Ok(Self { path: path.to_owned(), issuer, number, this_update, next_update, der })
    }

    /// Whether it was issued before another one, by number where both have one, and by time.
    fn is_before(&self, other: &Self) -> bool {
        let numbered = !self.number.is_empty() && !other.number.is_empty();
        let number = |list: &Self| (list.number.len(), list.number.clone());
        (numbered && number(self) < number(other)) || self.this_update < other.this_update
    }

    fn shown(&self) -> String {
        if self.number.is_empty() {
            return "none".into();
        }
        let mut text = String::new();
        for byte in &self.number {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}
