//! Who a certificate names.

use falaj_core::id::{Digest, IdError, Place, Role, SpiffeId};
use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, oid_registry::OID_SIG_ED25519,
    prelude::FromDer as _,
};

/// A name that stands where an identity should.
const DNS: &str = "a DNS name";
/// Another one.
const WILDCARD: &str = "a wildcard";

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its one SPIFFE URI.
    pub spiffe: SpiffeId,
    /// SHA-256 of the certificate.
    pub cert_sha256: Digest,
    /// The Ed25519 public key, which also signs updates.
    pub public_key: [u8; 32],
    /// Valid from, in seconds since the Unix epoch.
    pub not_before: i64,
    /// Valid until, in seconds since the Unix epoch.
    pub not_after: i64,
    /// The organisational units in its subject, in their order; one that is no text is empty. What they stand for is said
    /// elsewhere.
    pub groups: Vec<String>,
}

/// Why a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The handshake brought no certificate.
    #[error("no certificate was presented: configure `identity.cert` and `identity.key`")]
    Missing,
    /// Not a certificate.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// No URI in the subject alternative name.
    #[error("the certificate carries no SPIFFE URI: issue one with `falaj-certs issue`")]
    NoUri,
    /// More than one URI.
    #[error("the certificate carries {0} URIs; an identity is exactly one SPIFFE URI")]
    ManyUris(usize),
    /// Another kind of name where the URI should be.
    #[error(
        "the certificate carries {0} instead of a SPIFFE URI: issue one with `falaj-certs issue`"
    )]
    Instead(&'static str),
    /// A URI that is no Falaj identity.
    #[error(transparent)]
    Malformed(#[from] IdError),
    /// A CA certificate.
    #[error("the certificate is a certificate authority's; an identity is an end entity")]
    Authority,
    /// Another kind of key.
    #[error("the certificate's key is not Ed25519, which signs updates here")]
    Key,
    /// The trust domain is another.
    #[error("the certificate belongs to trust domain `{found}`, this federation is `{ours}`")]
    TrustDomain {
        /// In the certificate.
        found: String,
        /// In the trust configuration.
        ours: String,
    },
    /// No issuer is bound to the place.
    #[error("no issuer is trusted to vouch for {0}: bind one in the trust configuration")]
    UnknownPlace(Place),
    /// The issuer that signed it is not bound to the place that it names.
    #[error("the certificate claims {0}, but no issuer bound to that place signed it")]
    NotBound(Place),
    /// Whoever signed it is no issuer of the trust configuration, though one of them vouches for that.
    #[error(
        "the certificate of {0} was signed by an authority below a trusted issuer: an issuer signs directly, or is bound itself"
    )]
    Indirect(Place),
    /// The issuer that signed it is not valid itself any more.
    #[error("the issuer that vouches for {0} has expired: make a new one and bind it")]
    IssuerExpired(Place),
    /// It is a certificate for something else.
    #[error("the certificate is a {found}'s, a {wanted} was expected")]
    Role {
        /// In the certificate.
        found: Role,
        /// That was expected.
        wanted: Role,
    },
    /// A coordinator outside the places that this site's policy allows.
    #[error("the coordinator lies in {found}, but this site's policy allows only {allowed}")]
    Place {
        /// In the certificate.
        found: Place,
        /// In the site's policy.
        allowed: String,
    },
}

impl IdentityError {
    /// What is wrong, as one stable word for the log.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "no_client_certificate",
            Self::Unreadable(_) => "unreadable_certificate",
            Self::NoUri => "no_identity",
            Self::ManyUris(_) => "many_identities",
            Self::Instead(DNS) => "dns_name_only",
            Self::Instead(WILDCARD) => "wildcard_only",
            Self::Instead(_) => "ip_address_only",
            Self::Malformed(IdError::Spiffe { id, .. }) if id.contains('%') => {
                "percent_encoded_identity"
            }
            Self::Malformed(IdError::Spiffe { id, .. })
                if id.contains(|c: char| c.is_ascii_uppercase()) =>
            {
                "upper_case_identity"
            }
            Self::Malformed(_) => "malformed_identity",
            Self::Authority => "authority_certificate",
            Self::Key => "key_kind",
            Self::TrustDomain { .. } => "other_trust_domain",
            Self::UnknownPlace(_) => "unknown_place",
            Self::NotBound(_) => "issuer_not_bound",
            Self::Indirect(_) => "chain_too_long",
            Self::IssuerExpired(_) => "issuer_expired",
            Self::Role { .. } => "wrong_role",
            Self::Place { .. } => "wrong_place",
        }
    }
}

impl Identity {
    /// Reads an end-entity certificate. Whether somebody trusted signed it is not asked here: see
    /// [`crate::trust::TrustStore::identify`].
    ///
    /// # Errors
    /// [`IdentityError`], which says what is wrong with it.
    pub fn parse(cert: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (rest, x509) = X509Certificate::from_der(cert)
            .map_err(|e| IdentityError::Unreadable(e.to_string()))?;
        if !rest.is_empty() {
            return Err(IdentityError::Unreadable("bytes follow the certificate".into()));
        }
        if x509.is_ca() {
            return Err(IdentityError::Authority);
        }
        let names = x509
            .subject_alternative_name()
            .map_err(|e| IdentityError::Unreadable(e.to_string()))?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|ext| &ext.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        let [uri] = uris[..] else {
            if !uris.is_empty() {
                return Err(IdentityError::ManyUris(uris.len()));
            }
            let others = names.iter().flat_map(|ext| &ext.value.general_names);
            let other = others.into_iter().find_map(|name| match name {
                GeneralName::DNSName(name) if name.starts_with('*') => Some(WILDCARD),
                GeneralName::DNSName(_) => Some(DNS),
                GeneralName::IPAddress(_) => Some("an IP address"),
                _ => None,
            });
            return Err(other.map_or(IdentityError::NoUri, IdentityError::Instead));
        };
        let spki = x509.public_key();
        if spki.algorithm.algorithm != OID_SIG_ED25519 {
            return Err(IdentityError::Key);
        }
        let key: &[u8] = &spki.subject_public_key.data;
        Ok(Self {
            spiffe: uri.parse()?,
            cert_sha256: Digest::of(cert),
            public_key: key.try_into().map_err(|_| IdentityError::Key)?,
            not_before: x509.validity().not_before.timestamp(),
            not_after: x509.validity().not_after.timestamp(),
            groups: x509
                .subject()
                .iter_organizational_unit()
                .map(|unit| unit.as_str().unwrap_or_default().to_owned())
                .collect(),
        })
    }
}
