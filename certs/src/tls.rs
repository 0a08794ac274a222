//! TLS configurations: 1.3 only, both sides certified, nothing resumed, post-quantum hybrid first.

use crate::{
    enrolment::Token,
    identity::{Identity, IdentityError},
    keys::{KeyAt, SecretError, open_token, read_secret},
    revocation::Crls,
    token::TokenError,
    trust::{IssuerEntry, ServerError, TrustFile, TrustStore, spki_sha256},
};
use ed25519_dalek::{SigningKey, pkcs8::DecodePrivateKey as _};
use falaj_core::{
    id::Role,
    sign::{SignError, SignKey},
};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error as TlsError,
    OtherError, PeerIncompatible, RootCertStore, ServerConfig, SignatureAlgorithm, SignatureScheme,
    client::{
        Resumption, WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, Signer, SigningKey as TlsKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is signed to see whether a key can be used.
const READY: &[u8] = b"falaj/key/ready/v1";

/// A certificate chain, its key, and what can be signed with it.
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    tls: Arc<dyn TlsKey>,
    signing: Arc<dyn SignKey>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials([redacted])")
    }
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// Not PEM of the right kind.
    #[error("{path} holds no {what} in PEM form")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The key's file cannot be read, or others can.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The key's token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The key is of another kind.
    #[error("{0} is not an Ed25519 key: make one with `falaj-certs issue`")]
    NotEd25519(PathBuf),
    /// Key and certificate do not belong together.
    #[error("{key} is not the key of {cert}")]
    Mismatch {
        /// The certificate file.
        cert: PathBuf,
        /// Where the key lies.
        key: KeyAt,
    },
    /// No trusted issuer vouches for them.
    #[error(
        "no issuer in the trust configuration vouches for this certificate: bind the one that signed it"
    )]
    Unvouched,
    /// A certificate is about another key than the one that is there.
    #[error("the certificate is about another key")]
    OtherKey,
    /// The TLS library refuses them.
    #[error("TLS cannot use these credentials")]
    Tls(#[from] TlsError),
}

impl Credentials {
    /// Loads a chain and its key, which has to be in a file of mode 0600 or in a token.
    ///
    /// # Errors
    /// [`CredentialsError`], with the file or the token and what to do.
    pub fn load(cert: &Path, key: impl Into<KeyAt>) -> Result<Self, CredentialsError> {
        let key = key.into();
        let read =
            |path: &Path| fs::read(path).map_err(|e| CredentialsError::Read(path.to_owned(), e));
        let pem = |path: &Path, what| CredentialsError::Pem { path: path.to_owned(), what };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(cert)?)
            .collect::<Result<_, _>>()
            .map_err(|_| pem(cert, "certificate"))?;
        let leaf = chain.first().ok_or_else(|| pem(cert, "certificate"))?;
        let (tls, signing) = open_key(&key)?;
        if public_key(leaf).is_none_or(|k| k != signing.verifying_key().to_bytes()) {
            return Err(CredentialsError::Mismatch { cert: cert.to_owned(), key });
        }
        Ok(Self { chain, tls, signing })
    }

    /// Whom the certificate names.
    ///
    /// # Errors
    /// [`IdentityError`] when it names nobody.
    pub fn identity(&self) -> Result<Identity, IdentityError> {
        Identity::parse(&self.chain[0])
    }

    /// The key that signs, which is the certificate's own.
    #[must_use]
    pub const fn signing_key(&self) -> &Arc<dyn SignKey> {
        &self.signing
    }

    /// Signs once, to see whether the key can be used now.
    ///
    /// # Errors
    /// [`SignError`], with where the key lies.
    pub fn ready(&self) -> Result<(), SignError> {
        self.signing.sign(READY).map(drop)
    }

    /// The key under a chain that begins with its certificate.
    fn certified(&self, chain: Vec<CertificateDer<'static>>) -> Arc<SingleCertAndKey> {
        Arc::new(CertifiedKey::new(chain, self.tls.clone()).into())
    }

    /// The certificate itself, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.chain[0]
    }

    /// The certificate and those that follow it.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The same key under another certificate about it.
    ///
    /// # Errors
    /// [`CredentialsError::OtherKey`] when it is about another key.
    pub fn renewed(&self, chain: Vec<CertificateDer<'static>>) -> Result<Self, CredentialsError> {
        let key = chain.first().and_then(public_key);
        if key.is_none_or(|key| key != self.signing.verifying_key().to_bytes()) {
            return Err(CredentialsError::OtherKey);
        }
        Ok(Self { chain, tls: self.tls.clone(), signing: self.signing.clone() })
    }

    /// A request for another certificate about the same key ([`crate::request`]), DER.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn request(&self) -> Result<Vec<u8>, rcgen::Error> {
        crate::request::request(&*self.signing)
    }
}

/// One key, as handshakes use it and as everything else that it signs does.
type OpenKey = (Arc<dyn TlsKey>, Arc<dyn SignKey>);

/// A site's or coordinator's key, for handshakes and for everything else that it signs.
pub(crate) fn open_key(key: &KeyAt) -> Result<OpenKey, CredentialsError> {
    match key {
        KeyAt::File(path) => {
            let pem = || CredentialsError::Pem { path: path.clone(), what: "private key" };
            let der = PrivateKeyDer::from_pem_slice(&read_secret(path)?).map_err(|_| pem())?;
            let signing = SigningKey::from_pkcs8_der(der.secret_der())
                .map_err(|_| CredentialsError::NotEd25519(path.clone()))?;
            Ok((provider().key_provider.load_private_key(der)?, Arc::new(signing)))
        }
        KeyAt::Token(token) => {
            let signing = open_token(token)?;
            Ok((Arc::new(Elsewhere(signing.clone())), signing))
        }
    }
}

/// A key that is asked to sign, and cannot be read, in a handshake.
#[derive(Clone)]
struct Elsewhere(Arc<dyn SignKey>);

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Elsewhere([redacted])")
    }
}

impl TlsKey for Elsewhere {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let wanted = offered.contains(&SignatureScheme::ED25519);
        wanted.then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for Elsewhere {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        let signed = self.0.sign(message).map(|signature| signature.to_vec());
        signed.map_err(|e| TlsError::Other(OtherError(Arc::new(e))))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

fn public_key(leaf: &CertificateDer<'_>) -> Option<[u8; 32]> {
    use x509_parser::prelude::FromDer as _;
    let (_, x509) = x509_parser::certificate::X509Certificate::from_der(leaf).ok()?;
    let key: &[u8] = &x509.public_key().subject_public_key.data;
    key.try_into().ok()
}

/// The cryptography that every party uses, chosen here and never by a process-wide default.
#[must_use]
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            // By itself it is not an approved one (NIST SP 800-56A).
            #[cfg(not(feature = "fips"))]
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

/// Checks chain, dates, purpose and revocation of clients' certificates: of the whole chain up to the issuer, and where lists
/// are named, an old one fails as much as one that names the certificate.
///
/// # Errors
/// [`CredentialsError::Tls`].
pub fn client_verifier(
    trust: &TrustStore,
    crls: &Crls,
) -> Result<Arc<dyn ClientCertVerifier>, CredentialsError> {
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(trust.anchors(), Arc::new(provider()))
            .with_crls(crls.ders())
            .enforce_revocation_expiration();
    if crls.unknown_allowed() {
        builder = builder.allow_unknown_revocation_status();
    }
    Ok(builder.build().map_err(|e| TlsError::General(e.to_string()))?)
}

/// A server that talks to certified clients only. The handshake asks `clients` ([`client_verifier`]); who the
/// client is, and whether its issuer may vouch for its place, is asked afterwards by
/// [`TrustStore::identify`], so that the answer can say what is wrong.
///
/// # Errors
/// [`CredentialsError::Tls`].
pub fn server_config(
    credentials: &Credentials,
    clients: Arc<dyn ClientCertVerifier>,
    alpn: &[&str],
) -> Result<ServerConfig, CredentialsError> {
    let provider = Arc::new(provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(credentials.certified(credentials.chain.clone()));
    // A resumed session would skip the check of the client's certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(config)
}

/// A server for those who have no certificate yet: it shows its own, and the issuer that vouches for it, which their tokens
/// name. Nothing may be served there but giving them one.
///
/// # Errors
/// [`CredentialsError::Tls`]; [`CredentialsError::Unvouched`] when no issuer in `trust` vouches for it.
pub fn anonymous_server_config(
    credentials: &Credentials,
    trust: &TrustStore,
    alpn: &[&str],
) -> Result<ServerConfig, CredentialsError> {
    let issuer = trust.issuer_of(&credentials.chain[0]).ok_or(CredentialsError::Unvouched)?;
    let chain = vec![credentials.chain[0].clone(), issuer];
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(credentials.certified(chain));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(config)
}

/// A client that has no certificate yet, and talks to the coordinator that its token names only: an issuer with the key that
/// the token pins has to vouch for it.
///
/// # Errors
/// [`CredentialsError::Tls`].
pub fn enrolment_client_config(
    token: &Token,
    alpn: &[&str],
) -> Result<ClientConfig, CredentialsError> {
    let provider = Arc::new(provider());
    let verifier = PinnedVerifier { token: token.clone(), provider: provider.clone() };
    Ok(speaking(checked_by(provider, verifier)?.with_no_client_auth(), alpn))
}

#[derive(Debug)]
struct PinnedVerifier {
    token: Token,
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), String> {
        let pinned = |other: &&CertificateDer<'_>| {
            spki_sha256(other).is_ok_and(|spki| spki == self.token.issuer_sha256)
        };
        let issuer = others.iter().find(pinned).ok_or(
            "whoever answers is not vouched for by the issuer that the token names: it is not the coordinator that made the token, or its issuer was replaced since; ask its operator for another token",
        )?;
        let wanted = &self.token.coordinator;
        let entry = IssuerEntry {
            cert: PathBuf::from("the issuer that the token names"),
            spki_sha256: self.token.issuer_sha256.to_string(),
            places: vec![wanted.place().to_string()],
        };
        let file = TrustFile {
            trust_domain: wanted.trust_domain().to_owned(),
            issuers: vec![entry],
            witnesses: Vec::new(),
        };
        let issuer = issuer.clone().into_owned();
        let trust = TrustStore::of(Path::new("the token"), &file, |_| Ok(issuer.clone()))
            .map_err(|e| e.to_string())?;
        let found = trust.identify_server(leaf, now).map_err(|e| e.to_string())?.spiffe;
        if found != *wanted {
            return Err(format!("whoever answers is {found}, and the token names {wanted}"));
        }
        Ok(())
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        // `General` is the one variant whose text reaches the user as it is.
        self.check(end_entity, intermediates, now).map_err(TlsError::General)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whom a client is ready to talk to.
#[derive(Clone, Debug)]
pub struct ServerExpectation {
    places: Vec<String>,
}

impl ServerExpectation {
    /// A coordinator in one of these places (`jurisdiction/region` or `jurisdiction/*`).
    #[must_use]
    pub fn coordinator<S: AsRef<str>>(places: &[S]) -> Self {
        Self { places: places.iter().map(|p| p.as_ref().to_owned()).collect() }
    }
}

/// A client that talks only to whom it expects. The hostname plays no part: the certificate's identity
/// and its place do.
///
/// # Errors
/// [`CredentialsError::Tls`].
pub fn client_config(
    credentials: &Credentials,
    trust: &TrustStore,
    expect: &ServerExpectation,
    alpn: &[&str],
) -> Result<ClientConfig, CredentialsError> {
    let certified = credentials.certified(credentials.chain.clone());
    Ok(speaking(expecting(trust, expect)?.with_client_cert_resolver(certified), alpn))
}

/// As [`client_config`], of somebody who has no certificate yet.
///
/// # Errors
/// [`CredentialsError::Tls`].
pub fn anonymous_client_config(
    trust: &TrustStore,
    expect: &ServerExpectation,
    alpn: &[&str],
) -> Result<ClientConfig, CredentialsError> {
    Ok(speaking(expecting(trust, expect)?.with_no_client_auth(), alpn))
}

/// A client that talks only to whom it expects, and what it shows of itself is to be said.
fn expecting(
    trust: &TrustStore,
    expect: &ServerExpectation,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, CredentialsError> {
    let provider = Arc::new(provider());
    let verifier = CoordinatorVerifier {
        trust: trust.clone(),
        expect: expect.clone(),
        provider: provider.clone(),
    };
    checked_by(provider, verifier)
}

/// A client for which this one checks servers.
fn checked_by(
    provider: Arc<CryptoProvider>,
    verifier: impl ServerCertVerifier + 'static,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, CredentialsError> {
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

/// A client that speaks these protocols, and resumes nothing.
fn speaking(mut config: ClientConfig, alpn: &[&str]) -> ClientConfig {
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    config
}

/// A client of servers outside the federation, which have a name of the DNS: one of these `roots` has to vouch for it.
///
/// # Errors
/// [`CredentialsError::Tls`], also when there is no root, or one that is none.
pub fn web_client_config(
    roots: Vec<CertificateDer<'static>>,
) -> Result<ClientConfig, CredentialsError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root)?;
    }
    if store.is_empty() {
        return Err(TlsError::General("no certificate is there".into()).into());
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth())
}

#[derive(Debug)]
struct CoordinatorVerifier {
    trust: TrustStore,
    expect: ServerExpectation,
    provider: Arc<CryptoProvider>,
}

impl CoordinatorVerifier {
    fn check(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), ServerError> {
        let identity = self.trust.identify_server(leaf, now)?;
        let spiffe = identity.spiffe;
        if spiffe.role() != Role::Coordinator {
            let (found, wanted) = (spiffe.role(), Role::Coordinator);
            return Err(IdentityError::Role { found, wanted }.into());
        }
        let place = spiffe.place();
        if self.expect.places.iter().any(|p| place.matches(p)) {
            Ok(())
        } else {
            let allowed = self.expect.places.join(", ");
            Err(IdentityError::Place { found: place.clone(), allowed }.into())
        }
    }
}

impl ServerCertVerifier for CoordinatorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match self.check(end_entity, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(ServerError::Chain(e)) => Err(e),
            // `General` is the one variant whose text reaches the user as it is.
            Err(ServerError::Identity(e)) => Err(TlsError::General(e.to_string())),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Why a certificate is refused, as one stable word for the log.
#[must_use]
pub fn certificate_reason(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Other(other) => match other.0.downcast_ref::<webpki::Error>() {
            Some(webpki::Error::CaUsedAsEndEntity) => "authority_certificate",
            Some(webpki::Error::UnsupportedCriticalExtension) => "unknown_critical_extension",
            _ => "bad_certificate",
        },
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "not_yet_valid"
        }
        CertificateError::UnknownIssuer => "unknown_issuer",
        CertificateError::BadSignature => "bad_signature",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "wrong_purpose"
        }
        CertificateError::Revoked => "revoked",
        CertificateError::UnknownRevocationStatus => "revocation_unknown",
        CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => "revocation_list_expired",
        CertificateError::UnhandledCriticalExtension => "unknown_critical_extension",
        _ => "bad_certificate",
    }
}

/// Why a handshake failed, as one stable word for the log.
#[must_use]
pub fn handshake_reason(error: &io::Error) -> &'static str {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<TlsError>());
    match tls {
        Some(error) => tls_reason(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "closed_early",
        None if error.kind() == io::ErrorKind::TimedOut => "timeout",
        None => "connection_lost",
    }
}

/// What the TLS library found wrong, as one stable word for the log.
#[must_use]
pub fn tls_reason(error: &TlsError) -> &'static str {
    match error {
        TlsError::NoCertificatesPresented => "no_client_certificate",
        TlsError::InvalidCertificate(e) => certificate_reason(e),
        TlsError::InvalidCertRevocationList(_) => "revocation_unknown",
        TlsError::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => "tls_version",
        TlsError::PeerIncompatible(_) => "nothing_in_common",
        TlsError::InvalidMessage(_) => "not_tls",
        TlsError::AlertReceived(_) => "refused_by_peer",
        _ => "handshake_failed",
    }
}
