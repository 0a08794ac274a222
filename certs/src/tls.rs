//! TLS configurations: 1.3 only, both sides certified, nothing resumed, post-quantum hybrid first.

use crate::{
    identity::{Identity, IdentityError},
    revocation::Crls,
    trust::{ServerError, TrustStore},
};
use ed25519_dalek::{SigningKey, pkcs8::DecodePrivateKey as _};
use falaj_core::id::Role;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, PeerIncompatible,
    ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use std::{
    fmt, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A certificate chain, its key, and what can be signed with it.
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    signing: SigningKey,
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
    /// Others can read the key.
    #[error("{path} can be read by others (mode {mode:o}): run `chmod 600 {path}`", path = path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The key is of another kind.
    #[error("{0} is not an Ed25519 key: make one with `falaj-certs issue`")]
    NotEd25519(PathBuf),
    /// Key and certificate do not belong together.
    #[error("{key} is not the key of {cert}")]
    Mismatch {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// The TLS library refuses them.
    #[error("TLS cannot use these credentials")]
    Tls(#[from] TlsError),
}

impl Credentials {
    /// Loads a chain and its key.
    ///
    /// # Errors
    /// [`CredentialsError`], with the file and what to do.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, CredentialsError> {
        let read =
            |path: &Path| fs::read(path).map_err(|e| CredentialsError::Read(path.to_owned(), e));
        let pem = |path: &Path, what| CredentialsError::Pem { path: path.to_owned(), what };
        let mode = fs::metadata(key)
            .map_err(|e| CredentialsError::Read(key.to_owned(), e))?
            .permissions()
            .mode()
            & 0o777;
        if mode & 0o077 != 0 {
            return Err(CredentialsError::Exposed { path: key.to_owned(), mode });
        }
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(cert)?)
            .collect::<Result<_, _>>()
            .map_err(|_| pem(cert, "certificate"))?;
        let leaf = chain.first().ok_or_else(|| pem(cert, "certificate"))?;
        let key_der =
            PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| pem(key, "private key"))?;
        let signing = SigningKey::from_pkcs8_der(key_der.secret_der())
            .map_err(|_| CredentialsError::NotEd25519(key.to_owned()))?;
        let matches = public_key(leaf).is_some_and(|k| k == signing.verifying_key().to_bytes());
        if !matches {
            return Err(CredentialsError::Mismatch { cert: cert.to_owned(), key: key.to_owned() });
        }
        Ok(Self { chain, key: key_der, signing })
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
    pub const fn signing_key(&self) -> &SigningKey {
        &self.signing
    }

    /// The certificate itself, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.chain[0]
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
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    // A resumed session would skip the check of the client's certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(config)
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
    let provider = Arc::new(provider());
    let verifier = CoordinatorVerifier {
        trust: trust.clone(),
        expect: expect.clone(),
        provider: provider.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(config)
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
