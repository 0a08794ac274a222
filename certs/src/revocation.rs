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
    /// One of them cannot be read.
    #[error("{why}")]
    Unread {
        /// The file.
        path: PathBuf,
        /// Why, with the file.
        why: String,
    },
    /// An issuer has none, and nobody said that it needs none.
    #[error(
        "no revocation list of {0} is named in `revocation.crls`: name one, or set `revocation.unknown = \"allow\"`"
    )]
    Missing(String),
}

/// A file that should hold a list: its path, and its bytes or why they could not be read.
pub type ListFile<'a> = (&'a Path, Result<&'a [u8], String>);

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
        let nothing = Self { lists: Vec::new(), unknown_allowed };
        let files: Vec<ListFile<'_>> =
            files.iter().map(|(path, bytes)| (path.as_path(), Ok(bytes.as_slice()))).collect();
        let (this, wrong) = nothing.renewed(&files, trust, now);
        wrong.into_iter().next().map_or(Ok(this), Err)
    }

    /// The lists that take the place of these, and what is wrong with the files. Each issuer is judged by itself: where a file
    /// does not hold the list that it should, the issuer's list from before stays in force, which lets nobody in once its next
    /// one is due, and the lists of all others are taken.
    #[must_use]
    pub fn renewed(
        &self,
        files: &[ListFile<'_>],
        trust: &TrustStore,
        now: UnixTime,
    ) -> (Self, Vec<CrlError>) {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let (mut lists, mut wrong) = (Vec::<Crl>::new(), Vec::new());
        let mut failed = Vec::new();
        for (path, bytes) in files {
            let list = match bytes {
                Ok(bytes) => Crl::read(path, bytes, trust, now),
                Err(why) => Err(CrlError::Unread { path: path.to_path_buf(), why: why.clone() }),
            };
            match list.and_then(|list| self.precede(&list).map(|()| list)) {
                Ok(list) => wrong.extend(add(&mut lists, list)),
                Err(e) => {
                    failed.push(*path);
                    wrong.push(e);
                }
            }
        }
        let mut issuers = Vec::new();
        for (issuer, entry) in trust.issuers() {
            match X509Certificate::from_der(issuer) {
                Ok((_, issuer)) => {
                    issuers
                        .push((issuer.subject().as_raw().to_vec(), issuer.subject().to_string()));
                }
                Err(e) => wrong.push(CrlError::Missing(format!("{} ({e})", entry.cert.display()))),
            }
        }
        for before in &self.lists {
            if lists.iter().any(|list| list.issuer == before.issuer) {
                continue;
            }
            // Whoever is trusted no longer lets nobody in.
            let known = issuers.iter().find(|(issuer, _)| *issuer == before.issuer);
            let Some((_, name)) = known else { continue };
            if !failed.contains(&before.path.as_path()) {
                let what = format!(
                    "it holds no list of {name} any more, whose list from before stays in force: put the newest one there, or take the issuer out of the trust configuration"
                );
                wrong.push(CrlError::List { path: before.path.clone(), what });
            }
            lists.push(before.clone());
        }
        if lists.is_empty() {
            // Without any, nothing would be asked, and those would be let in of whom no list speaks.
            lists.clone_from(&self.lists);
        }
        if !files.is_empty() && !self.unknown_allowed {
            let without = |issuer: &[u8]| !lists.iter().any(|list| list.issuer == issuer);
            let without = issuers.into_iter().filter(|(issuer, _)| without(issuer));
            wrong.extend(without.map(|(_, name)| CrlError::Missing(name)));
        }
        lists.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        (Self { lists, unknown_allowed: self.unknown_allowed }, wrong)
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
        self.lists.iter().try_for_each(|list| before.precede(list))
    }

    /// Whether a list may follow these: it is not older than the one of the same issuer.
    fn precede(&self, list: &Crl) -> Result<(), CrlError> {
        let was = self.lists.iter().find(|was| was.issuer == list.issuer);
        let Some(was) = was.filter(|was| list.is_before(was)) else { return Ok(()) };
        let what = format!(
            "it is older than the list in force (number {}, this one has {}): put the newest one there",
            was.shown(),
            list.shown()
        );
        Err(CrlError::List { path: list.path.clone(), what })
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

    /// When the next one of each list is due, in seconds since the Unix epoch: from then on it is too old.
    pub fn dues(&self) -> impl Iterator<Item = (&Path, i64)> {
        self.lists.iter().map(|list| (list.path.as_path(), list.next_update))
    }

    /// The first list to become too old, and when, in seconds since the Unix epoch.
    #[must_use]
    pub fn first_due(&self) -> Option<(&Path, i64)> {
        self.dues().min_by_key(|(_, due)| *due)
    }

    /// The digest of each list.
    #[must_use]
    pub fn digests(&self) -> Vec<Digest> {
        self.lists.iter().map(|list| Digest::of(&list.der)).collect()
    }
}

/// Adds a list to those of other issuers. Only one of an issuer is ever asked, so the newest one stays: what is wrong then.
fn add(lists: &mut Vec<Crl>, list: Crl) -> Option<CrlError> {
    let Some(other) = lists.iter_mut().find(|other| other.issuer == list.issuer) else {
        lists.push(list);
        return None;
    };
    let left = if list.is_before(other) { list } else { std::mem::replace(other, list) };
    let what =
        format!("{} is a list of the same issuer: name the newer one only", other.path.display());
    Some(CrlError::List { path: left.path, what })
}

impl CrlError {
    /// The file that it is about, if it is about one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::List { path, .. } | Self::Unread { path, .. } => Some(path),
            Self::Missing(_) => None,
        }
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
