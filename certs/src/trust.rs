//! Whom a federation trusts: issuers, each bound to the places that it may vouch for.
//!
//! The bound issuers are the trust anchors themselves, so a certificate must be signed directly by one of
//! them. URI name constraints would say the same inside a certificate, but the verifier that we use
//! rejects every chain that carries them; so the binding is checked here, by key.

use crate::identity::{Identity, IdentityError};
use falaj_core::{
    id::{Digest, Place},
    witness::WitnessKey,
};
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::CryptoProvider,
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use x509_parser::{
    asn1_rs::ToDer as _, certificate::X509Certificate, prelude::FromDer as _,
    x509::AlgorithmIdentifier,
};

/// Issuers that are taken from somebody else at most.
const ISSUERS_MAX: usize = 256;

/// The trust configuration as it stands in `trust.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustFile {
    /// The federation's trust domain.
    pub trust_domain: String,
    /// Issuers and the places that each may vouch for.
    #[serde(default, rename = "issuer")]
    pub issuers: Vec<IssuerEntry>,
    /// Outside witnesses whose cosignatures of the log count, beside those of sites.
    #[serde(default, rename = "witness", skip_serializing_if = "Vec::is_empty")]
    pub witnesses: Vec<WitnessEntry>,
}

/// One outside witness in `trust.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessEntry {
    /// Its verifier key (C2SP tlog-cosignature): `<name>+<8 hex digits>+<base64>`.
    pub key: String,
}

/// One issuer in `trust.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerEntry {
    /// Its certificate, relative to the file.
    pub cert: PathBuf,
    /// SHA-256 of its public key (`SubjectPublicKeyInfo`), so that a swapped file is noticed.
    pub spki_sha256: String,
    /// The places that it may vouch for.
    pub places: Vec<String>,
}

impl TrustFile {
    /// Reads a trust configuration, which is called `path` in errors.
    ///
    /// # Errors
    /// [`TrustError::Toml`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, TrustError> {
        toml::from_str(text).map_err(|e| TrustError::Toml(path.to_owned(), Box::new(e)))
    }

    /// The keys of its outside witnesses. `path` is what it is called in errors.
    ///
    /// # Errors
    /// [`TrustError::Witness`] when one is no key, or speaks under a name of the federation's own.
    pub fn witness_keys(&self, path: &Path) -> Result<Vec<WitnessKey>, TrustError> {
        let key = |entry: &WitnessEntry| {
            let wrong = |what: &str| TrustError::Witness {
                file: path.to_owned(),
                key: entry.key.clone(),
                what: what.to_owned(),
            };
            let key: WitnessKey = entry.key.parse().map_err(|_| wrong("it is no witness's key"))?;
            if key.name().starts_with(&format!("{}/", self.trust_domain)) {
                return Err(wrong("its name is one of the federation, under which sites cosign"));
            }
            Ok(key)
        };
        self.witnesses.iter().map(key).collect()
    }
}

/// Why a trust configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    /// The TOML is wrong.
    #[error("{0} is not a trust configuration")]
    Toml(PathBuf, #[source] Box<toml::de::Error>),
    /// An issuer is wrong.
    #[error("{file}, issuer {cert}: {what}")]
    Issuer {
        /// The trust configuration.
        file: PathBuf,
        /// The issuer's certificate.
        cert: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// An outside witness is wrong.
    #[error("{file}, witness {key}: {what}")]
    Witness {
        /// The trust configuration.
        file: PathBuf,
        /// The witness's key, as it stands there.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// Nobody is trusted.
    #[error("{0} names no issuer: nobody could connect; add one with `falaj-certs issuer`")]
    Empty(PathBuf),
}

/// Whom a federation trusts.
#[derive(Clone)]
pub struct TrustStore {
    trust_domain: String,
    by_place: Arc<BTreeMap<Place, Vec<Arc<Anchor>>>>,
    all: Arc<RootCertStore>,
    issuers: Arc<[(CertificateDer<'static>, IssuerEntry)]>,
    witnesses: Arc<[WitnessKey]>,
    provider: Arc<CryptoProvider>,
}

/// One issuer, as the only anchor. An anchor's own validity is nobody's business but ours.
struct Anchor {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    /// SHA-256 of its key.
    spki: Digest,
    not_before: i64,
    not_after: i64,
}

impl Anchor {
    fn is_valid(&self, now: UnixTime) -> bool {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.not_before <= now && now <= self.not_after
    }
}

impl std::fmt::Debug for TrustStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrustStore({}, {} places)", self.trust_domain, self.by_place.len())
    }
}

impl TrustStore {
    /// Loads `trust.toml` and the issuers that it names.
    ///
    /// # Errors
    /// [`TrustError`], with the file and what to do.
    pub fn load(path: &Path) -> Result<Self, TrustError> {
        let text = fs::read_to_string(path).map_err(|e| TrustError::Read(path.to_owned(), e))?;
        let file = TrustFile::parse(path, &text)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::of(path, &file, |issuer| {
            CertificateDer::from_pem_file(folder.join(&issuer.cert))
                .map_err(|e| format!("cannot be read as PEM ({e})"))
        })
    }

    /// What a trust configuration says, which is called `path` in errors; `certificate` finds each issuer's.
    ///
    /// # Errors
    /// [`TrustError`], with the issuer and what to do.
    pub fn of(
        path: &Path,
        file: &TrustFile,
        mut certificate: impl FnMut(&IssuerEntry) -> Result<CertificateDer<'static>, String>,
    ) -> Result<Self, TrustError> {
        if file.issuers.is_empty() {
            return Err(TrustError::Empty(path.to_owned()));
        }
        let provider = Arc::new(crate::tls::provider());
        let mut all = RootCertStore::empty();
        let mut by_place: BTreeMap<Place, Vec<Arc<Anchor>>> = BTreeMap::new();
        let mut issuers = Vec::new();
        for issuer in &file.issuers {
            let wrong = |what: String| TrustError::Issuer {
                file: path.to_owned(),
                cert: issuer.cert.clone(),
                what,
            };
            let cert = certificate(issuer).map_err(wrong)?;
            let spki = spki_sha256(&cert).map_err(wrong)?;
            if spki.to_string() != issuer.spki_sha256 {
                return Err(wrong(format!(
                    "its key is {spki}, the configuration binds {}: the file was swapped, or the issuer renewed its key; bind the new key if you meant to",
                    issuer.spki_sha256
                )));
            }
            all.add(cert.clone()).map_err(|e| wrong(e.to_string()))?;
            issuers.push((cert.clone(), issuer.clone()));
            let anchor = Arc::new(anchor(cert, spki, &provider).map_err(wrong)?);
            for place in &issuer.places {
                let place: Place =
                    place.parse().map_err(|e: falaj_core::id::IdError| wrong(e.to_string()))?;
                by_place.entry(place).or_default().push(anchor.clone());
            }
        }
        let witnesses = file.witness_keys(path)?.into();
        Ok(Self {
            trust_domain: file.trust_domain.clone(),
            by_place: Arc::new(by_place),
            all: Arc::new(all),
            issuers: issuers.into(),
            witnesses,
            provider,
        })
    }

    /// The trust configuration that follows this one, if `offered` may: what somebody says whom this one vouches for. A new
    /// issuer is taken only when `root`, which is known from before, has signed it, and only for places that issuers are bound
    /// to already; one that is bound may be left out, or be bound to fewer places. Outside witnesses stay. None when nothing
    /// changes.
    ///
    /// # Errors
    /// Why it may not.
    pub fn followed_by(
        &self,
        offered: &TrustFile,
        certificates: &[CertificateDer<'static>],
        root: &CertificateDer<'_>,
    ) -> Result<Option<Self>, String> {
        if offered.trust_domain != self.trust_domain {
            return Err(format!("it is of trust domain `{}`", offered.trust_domain));
        }
        if offered.issuers.len() > ISSUERS_MAX {
            return Err(format!("it has more than {ISSUERS_MAX} issuers"));
        }
        let bound: BTreeSet<String> = self.by_place.keys().map(Place::to_string).collect();
        let same = |entry: &IssuerEntry| {
            let of =
                |(_, e): &&(CertificateDer<'_>, IssuerEntry)| e.spki_sha256 == entry.spki_sha256;
            self.issuers.iter().find(of).map(|(_, e)| e)
        };
        let mut found = Vec::new();
        for entry in &offered.issuers {
            let cert = certificates
                .iter()
                .find(|cert| spki_sha256(cert).is_ok_and(|s| s.to_string() == entry.spki_sha256))
                .ok_or_else(|| format!("the issuer with key {} is missing", entry.spki_sha256))?;
            let is_new = |place: &&String| match same(entry) {
                Some(before) => !before.places.contains(place),
                None => !bound.contains(*place),
            };
            if let Some(place) = entry.places.iter().find(is_new) {
                return Err(format!(
                    "it binds the issuer with key {} to {place}: bind it yourself if you believe that",
                    entry.spki_sha256
                ));
            }
            if same(entry).is_none() && !self.is_signed_by(cert, root) {
                return Err(format!(
                    "the root that is known here did not sign the issuer with key {}",
                    entry.spki_sha256
                ));
            }
            found.push((cert.clone(), entry.clone()));
        }
        let keys = |issuers: &[(CertificateDer<'_>, IssuerEntry)]| -> BTreeSet<_> {
            issuers.iter().map(|(_, e)| (e.spki_sha256.clone(), e.places.clone())).collect()
        };
        if keys(&found) == keys(&self.issuers) {
            return Ok(None);
        }
        let file = TrustFile { issuers: offered.issuers.clone(), ..self.file() };
        let certificate = |entry: &IssuerEntry| {
            let cert = found.iter().find(|(_, e)| e.spki_sha256 == entry.spki_sha256);
            cert.map(|(cert, _)| cert.clone()).ok_or_else(|| "it is missing".to_owned())
        };
        Self::of(Path::new("what was offered"), &file, certificate)
            .map(Some)
            .map_err(|e| e.to_string())
    }

    /// Whether an authority, valid itself, signed a certificate.
    fn is_signed_by(&self, cert: &CertificateDer<'_>, root: &CertificateDer<'_>) -> bool {
        let (Ok((_, cert)), Ok((_, root))) =
            (X509Certificate::from_der(cert), X509Certificate::from_der(root))
        else {
            return false;
        };
        let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
        let valid = |x509: &X509Certificate<'_>| {
            let validity = x509.validity();
            x509.is_ca()
                && validity.not_before.timestamp() <= now
                && now <= validity.not_after.timestamp()
        };
        valid(&root)
            && valid(&cert)
            && self.is_signature_of(
                &root,
                cert.issuer().as_raw(),
                cert.tbs_certificate.as_ref(),
                &cert.signature_algorithm,
                &cert.signature_value.data,
            )
    }

    /// The federation's trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The issuers' certificates, and what each may vouch for.
    #[must_use]
    pub fn issuers(&self) -> &[(CertificateDer<'static>, IssuerEntry)] {
        &self.issuers
    }

    /// The trust configuration that says all of this.
    #[must_use]
    pub fn file(&self) -> TrustFile {
        TrustFile {
            trust_domain: self.trust_domain.clone(),
            issuers: self.issuers.iter().map(|(_, entry)| entry.clone()).collect(),
            witnesses: self.witnesses.iter().map(|k| WitnessEntry { key: k.to_string() }).collect(),
        }
    }

    /// The outside witnesses whose cosignatures count.
    #[must_use]
    pub fn witnesses(&self) -> &[WitnessKey] {
        &self.witnesses
    }

    /// Whether a bound issuer of this name (DER) signed a message. Issuers of one name are told apart by their keys.
    pub(crate) fn signed_by_issuer(
        &self,
        name: &[u8],
        message: &[u8],
        algorithm: &AlgorithmIdentifier<'_>,
        signature: &[u8],
    ) -> bool {
        self.issuers.iter().any(|(der, _)| {
            X509Certificate::from_der(der).is_ok_and(|(_, issuer)| {
                self.is_signature_of(&issuer, name, message, algorithm, signature)
            })
        })
    }

    /// Whether an authority of this name (DER) signed a message.
    fn is_signature_of(
        &self,
        authority: &X509Certificate<'_>,
        name: &[u8],
        message: &[u8],
        algorithm: &AlgorithmIdentifier<'_>,
        signature: &[u8],
    ) -> bool {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let key = authority.public_key();
        // The library's names of algorithms leave the outer SEQUENCE out, as `value_of` does.
        let (Some(of_key), Some(of_signature)) = (value_of(&key.algorithm), value_of(algorithm))
        else {
            return false;
        };
        authority.subject().as_raw() == name
            && algorithms.iter().any(|a| {
                a.public_key_alg_id().as_ref() == of_key
                    && a.signature_alg_id().as_ref() == of_signature
                    && a.verify_signature(&key.subject_public_key.data, message, signature).is_ok()
            })
    }

    /// When the first of the bound issuers that are valid at `now` is over: both in seconds since the Unix epoch.
    #[must_use]
    pub fn first_end(&self, now: i64) -> Option<i64> {
        let ends = self.by_place.values().flatten().map(|anchor| anchor.not_after);
        ends.filter(|end| now <= *end).min()
    }

    /// Every bound issuer, as anchors for the handshake.
    pub(crate) fn anchors(&self) -> Arc<RootCertStore> {
        self.all.clone()
    }

    /// Who a client is: its certificate names one identity, and an issuer bound to the place in it signed
    /// it directly.
    ///
    /// # Errors
    /// [`IdentityError`], for the answer and the log.
    pub fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, IdentityError> {
        Ok(self.vouched(chain)?.0)
    }

    /// As [`Self::identify`], and the digest of the key of the issuer that vouches for it.
    ///
    /// # Errors
    /// As [`Self::identify`].
    pub fn vouched(
        &self,
        chain: &[CertificateDer<'_>],
    ) -> Result<(Identity, Digest), IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::Missing)?;
        match self.identify_at(leaf, UnixTime::now()) {
            Ok(vouched) => Ok(vouched),
            Err(IdentityError::NotBound(place)) if !self.is_direct(leaf) => {
                Err(IdentityError::Indirect(place))
            }
            Err(e) => Err(e),
        }
    }

    /// Whether a bound issuer signed a certificate, without anybody between.
    fn is_direct(&self, leaf: &CertificateDer<'_>) -> bool {
        let mut anchors = self.by_place.values().flatten();
        anchors.any(|a| a.clients.verify_client_cert(leaf, &[], UnixTime::now()).is_ok())
    }

    /// As [`Self::identify`], at another time; and the digest of the key of the issuer that vouches for it.
    ///
    /// # Errors
    /// As [`Self::identify`].
    pub fn identify_at(
        &self,
        leaf: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<(Identity, Digest), IdentityError> {
        let identity = Identity::parse(leaf)?;
        let mut signers = self
            .anchors_of(&identity)?
            .iter()
            .filter(|a| a.clients.verify_client_cert(leaf, &[], now).is_ok())
            .peekable();
        let place = || identity.spiffe.place().clone();
        if signers.peek().is_none() {
            return Err(IdentityError::NotBound(place()));
        }
        let Some(issuer) = signers.find(|a| a.is_valid(now)) else {
            return Err(IdentityError::IssuerExpired(place()));
        };
        let spki = issuer.spki;
        Ok((identity, spki))
    }

    /// Whether any issuer may vouch for a place.
    #[must_use]
    pub fn vouches_for(&self, place: &Place) -> bool {
        self.issuers().iter().any(|(_, entry)| entry.places.iter().any(|p| place.matches(p)))
    }

    /// The issuer that vouches for a server's certificate.
    #[must_use]
    pub fn issuer_of(&self, leaf: &CertificateDer<'_>) -> Option<CertificateDer<'static>> {
        let identity = Identity::parse(leaf).ok()?;
        let parsed = ParsedCertificate::try_from(leaf).ok()?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let now = UnixTime::now();
        let signed = |a: &&Arc<Anchor>| {
            let roots = &a.roots;
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, &[], now, algorithms).is_ok()
        };
        let spki = self.anchors_of(&identity).ok()?.iter().find(signed)?.spki;
        self.issuer(&spki)
    }

    /// The bound issuer with this key.
    #[must_use]
    pub fn issuer(&self, spki: &Digest) -> Option<CertificateDer<'static>> {
        let spki = spki.to_string();
        self.issuers.iter().find(|(_, e)| e.spki_sha256 == spki).map(|(der, _)| der.clone())
    }

    /// As [`Self::identify`], for a server's certificate.
    pub(crate) fn identify_server(
        &self,
        leaf: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<Identity, ServerError> {
        let identity = Identity::parse(leaf)?;
        let anchors = self.anchors_of(&identity)?;
        let parsed = ParsedCertificate::try_from(leaf).map_err(ServerError::Chain)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let direct = |roots: &RootCertStore| {
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, &[], now, algorithms)
        };
        let place = || identity.spiffe.place().clone();
        let mut signers = anchors.iter().filter(|a| direct(&a.roots).is_ok()).peekable();
        if signers.peek().is_some() {
            return if signers.any(|a| a.is_valid(now)) {
                Ok(identity)
            } else {
                Err(IdentityError::IssuerExpired(place()).into())
            };
        }
        match direct(&self.all) {
            // Somebody whom we trust signed it, but for another place.
            Ok(()) => Err(IdentityError::NotBound(place()).into()),
            Err(e) => Err(ServerError::Chain(e)),
        }
    }

    fn anchors_of(&self, identity: &Identity) -> Result<&[Arc<Anchor>], IdentityError> {
        let spiffe = &identity.spiffe;
        if spiffe.trust_domain() != self.trust_domain {
            return Err(IdentityError::TrustDomain {
                found: spiffe.trust_domain().to_owned(),
                ours: self.trust_domain.clone(),
            });
        }
        self.by_place
            .get(spiffe.place())
            .map(Vec::as_slice)
            .ok_or_else(|| IdentityError::UnknownPlace(spiffe.place().clone()))
    }
}

/// Why a server is not whom we look for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Chain(rustls::Error),
}

/// An issuer as an anchor: it must be a certificate authority.
fn anchor(
    cert: CertificateDer<'static>,
    spki: Digest,
    provider: &Arc<CryptoProvider>,
) -> Result<Anchor, String> {
    let (not_before, not_after) = {
        let (_, x509) = X509Certificate::from_der(&cert).map_err(|e| e.to_string())?;
        if !x509.is_ca() {
            return Err("it is no certificate authority's, and could vouch for nobody".into());
        }
        (x509.validity().not_before.timestamp(), x509.validity().not_after.timestamp())
    };
    let mut roots = RootCertStore::empty();
    roots.add(cert).map_err(|e| e.to_string())?;
    let roots = Arc::new(roots);
    let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|e| e.to_string())?;
    Ok(Anchor { roots, clients, spki, not_before, not_after })
}

/// What stands inside an algorithm's SEQUENCE, DER.
fn value_of(algorithm: &AlgorithmIdentifier<'_>) -> Option<Vec<u8>> {
    let mut value = algorithm.algorithm.to_der_vec().ok()?;
    if let Some(parameters) = &algorithm.parameters {
        value.extend(parameters.to_der_vec().ok()?);
    }
    Some(value)
}

/// SHA-256 of a certificate's `SubjectPublicKeyInfo`.
///
/// # Errors
/// What keeps the certificate from being read.
pub fn spki_sha256(cert: &CertificateDer<'_>) -> Result<Digest, String> {
    let (_, x509) = X509Certificate::from_der(cert).map_err(|e| e.to_string())?;
    Ok(Digest::of(x509.public_key().raw))
}
