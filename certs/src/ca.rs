//! A development certificate authority: one root, one issuer per place, end entities.
//!
//! It lives in a folder. Keys are generated there with mode 0600 and never leave it. For production, bind
//! your own authority's issuers in `trust.toml` instead.

use crate::{
    issue::Grant,
    keys::read_secret,
    request::{PublicEd25519, SigningRequest},
    trust::{IssuerEntry, TrustFile, spki_sha256},
};
use anyhow::{Context as _, Result, bail, ensure};
use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes,
        spki::der::{pem::LineEnding, zeroize::Zeroizing},
    },
};
use falaj_core::id::{Digest, Place, Role, SpiffeId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, PublicKeyData, RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

/// How long the root lives, in days.
const ROOT_DAYS: u32 = 3_650;
/// How long an issuer lives, in days.
const ISSUER_DAYS: u32 = 730;
/// How long an end entity lives unless the caller says otherwise, in days.
pub const LEAF_DAYS: u32 = 90;
/// How long a revocation list is valid unless the caller says otherwise, in days.
pub const CRL_DAYS: u32 = 7;
/// Certificates are valid from a little before now: clocks differ.
const BACKDATE: Duration = Duration::from_mins(5);

/// Serial numbers that an issuer has revoked, each with the second at which it did.
const REVOKED: &str = "revoked";

/// A development authority in a folder.
#[derive(Clone, Debug)]
pub struct Authority {
    dir: PathBuf,
}

/// What to put into an end-entity certificate.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the holder is.
    pub role: Role,
    /// Its short name.
    pub name: String,
    /// Where it is; an issuer for that place signs.
    pub place: Place,
    /// How long it lives.
    pub days: u32,
    /// DNS names for tools that look at them; Falaj does not.
    pub dns: Vec<String>,
}

impl Authority {
    /// Makes a new authority.
    ///
    /// # Errors
    /// When there is one already, or a file cannot be written.
    pub fn init(dir: &Path, trust_domain: &str) -> Result<Self> {
        let this = Self { dir: dir.to_owned() };
        ensure!(
            !this.trust_path().exists(),
            "{} holds an authority already; choose another folder",
            dir.display()
        );
        // The trust domain is checked by making an identity with it.
        SpiffeId::new(trust_domain, &"x/x".parse()?, Role::Operator, "x")?;
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = authority_params(&format!("{trust_domain} root"), ROOT_DAYS, 1);
        params.subject_alt_names.clear();
        let cert = params.self_signed(&key)?;
        Self::write_pair(&this.dir.join("root"), &cert.pem(), &key)?;
        this.write_trust(&TrustFile {
            trust_domain: trust_domain.to_owned(),
            issuers: vec![],
            witnesses: vec![],
        })?;
        Ok(this)
    }

    /// Opens an authority.
    ///
    /// # Errors
    /// When the folder holds none.
    pub fn open(dir: &Path) -> Result<Self> {
        let this = Self { dir: dir.to_owned() };
        ensure!(
            this.trust_path().is_file(),
            "{} holds no authority; make one with `falaj-certs init {0}`",
            dir.display()
        );
        Ok(this)
    }

    /// The trust configuration that every party gets.
    #[must_use]
    pub fn trust_path(&self) -> PathBuf {
        self.dir.join("trust.toml")
    }

    /// Makes an issuer and binds it to a place.
    ///
    /// # Errors
    /// When the place has one already, or a file cannot be written.
    pub fn add_issuer(&self, place: &Place) -> Result<PathBuf> {
        let dir = self.issuer_dir(place, 1);
        ensure!(
            !dir.exists(),
            "{place} has an issuer already, in {}: `--next` makes one to follow it",
            dir.display()
        );
        self.make_issuer(place, 1)
    }

    /// Makes the issuer that follows the newest one of a place, and binds it beside those that are there.
    ///
    /// # Errors
    /// When the place has none, or a file cannot be written.
    pub fn next_issuer(&self, place: &Place) -> Result<PathBuf> {
        self.make_issuer(place, self.newest_issuer(place)?.0 + 1)
    }

    /// Unbinds every issuer of a place but the newest: what they vouched for is worth nothing any more. Gives how many.
    ///
    /// # Errors
    /// When the place has no issuer, or a file cannot be written.
    pub fn retire_issuers(&self, place: &Place) -> Result<usize> {
        let newest = self.newest_issuer(place)?.1.join("cert.pem");
        let newest = newest.strip_prefix(&self.dir)?;
        let mut trust = self.trust()?;
        let before = trust.issuers.len();
        let place = place.to_string();
        trust.issuers.retain(|entry| !entry.places.contains(&place) || entry.cert == newest);
        self.write_trust(&trust)?;
        Ok(before - trust.issuers.len())
    }

    fn make_issuer(&self, place: &Place, number: u32) -> Result<PathBuf> {
        let dir = self.issuer_dir(place, number);
        let root_key = Self::key(&self.dir.join("root"))?;
        let root_pem = fs::read_to_string(self.dir.join("root/cert.pem"))?;
        let root = Issuer::from_ca_cert_pem(&root_pem, root_key)?;
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut trust = self.trust()?;
        // Each has a name of its own: revocation lists are told apart by it.
        let name = match number {
            1 => format!("{} issuer for {place}", trust.trust_domain),
            n => format!("{} issuer {n} for {place}", trust.trust_domain),
        };
        let cert = authority_params(&name, ISSUER_DAYS, 0).signed_by(&key, &root)?;
        Self::write_pair(&dir, &cert.pem(), &key)?;
        let relative = dir.strip_prefix(&self.dir)?.join("cert.pem");
        trust.issuers.push(IssuerEntry {
            cert: relative,
            spki_sha256: spki_sha256(cert.der()).map_err(anyhow::Error::msg)?.to_string(),
            places: vec![place.to_string()],
        });
        self.write_trust(&trust)?;
        Ok(dir)
    }

    /// Issues an end-entity certificate into `<role>/<name>/`.
    ///
    /// # Errors
    /// When the place has no issuer, the name is taken, or a file cannot be written.
    pub fn issue(&self, request: &Request) -> Result<PathBuf> {
        self.issue_in(request, None)
    }

    /// As [`Self::issue`], to a member of a group: the organisational unit in the certificate's subject.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn issue_in(&self, request: &Request, group: Option<&str>) -> Result<PathBuf> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let (dir, cert) = self.certify(request, group, &key)?;
        Self::write_pair(&dir, &cert, &key)?;
        Ok(dir)
    }

    /// Issues a certificate for a key that stays where it is, into `<role>/<name>/cert.pem`.
    ///
    /// # Errors
    /// As [`Self::issue_in`].
    pub fn issue_for(
        &self,
        request: &Request,
        group: Option<&str>,
        key: VerifyingKey,
    ) -> Result<PathBuf> {
        let (dir, cert) = self.certify(request, group, &PublicEd25519(key.to_bytes()))?;
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let path = dir.join("cert.pem");
        fs::write(&path, cert).with_context(|| format!("writing {}", path.display()))?;
        Ok(dir)
    }

    /// A certificate with its issuer's, PEM, and the folder for them, which is not there yet.
    fn certify(
        &self,
        request: &Request,
        group: Option<&str>,
        key: &impl PublicKeyData,
    ) -> Result<(PathBuf, String)> {
        let Request { role, name, place, days, dns } = request;
        let trust = self.trust()?;
        let spiffe = SpiffeId::new(&trust.trust_domain, place, *role, name)?;
        let (_, issuer_dir) = self.newest_issuer(place)?;
        let dir = self.dir.join(role.as_str()).join(name);
        if dir.exists() {
            bail!("{} exists already; remove it to issue the certificate anew", dir.display());
        }
        let issuer_pem = fs::read_to_string(issuer_dir.join("cert.pem"))?;
        let issuer = Issuer::from_ca_cert_pem(&issuer_pem, Self::key(&issuer_dir)?)?;
        let mut params = CertificateParams::new(dns.clone())?;
        params.subject_alt_names.push(SanType::URI(spiffe.to_string().try_into()?));
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationalUnitName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if *role == Role::Coordinator {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, *days);
        let cert = params.signed_by(key, &issuer)?;
        Ok((dir, format!("{}{issuer_pem}", cert.pem())))
    }

    /// A certificate about a request's key that says what is granted, and the issuer that signed it. Nothing that the
    /// request holds beside the key goes into it.
    ///
    /// # Errors
    /// When no issuer of the place can sign.
    pub fn sign(
        &self,
        request: &SigningRequest,
        grant: &Grant,
    ) -> Result<Vec<CertificateDer<'static>>> {
        let dir = self.signing_issuer(grant)?;
        let pem = fs::read_to_string(dir.join("cert.pem"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, Self::key(&dir)?)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, grant.spiffe.name());
        if let Some(group) = &grant.group {
            params.distinguished_name.push(DnType::OrganizationalUnitName, group.as_str());
        }
        params.subject_alt_names.push(SanType::URI(grant.spiffe.to_string().try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        // The library's own choice depends on the key alone, and one key gets many certificates.
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| anyhow::anyhow!("no randomness"))?;
        params.serial_number = Some(SerialNumber::from(serial.to_vec()));
        let now = std::time::SystemTime::now();
        // Of a short life most lies ahead.
        params.not_before = (now - BACKDATE.min(grant.lifetime / 10)).into();
        params.not_after = (now + grant.lifetime).into();
        let cert = params.signed_by(request.key(), &issuer)?;
        Ok(vec![cert.der().clone(), first_certificate(&dir.join("cert.pem"))?])
    }

    /// The folder of the issuer that signs for a place: the newest one that has been there for as long as a certificate
    /// lives, so that everybody has heard of it; the oldest one while there is none.
    fn signing_issuer(&self, grant: &Grant) -> Result<PathBuf> {
        let place = grant.spiffe.place().to_string();
        let now = jiff::Timestamp::now().as_second();
        let heard_of = i64::try_from((BACKDATE + grant.lifetime).as_secs())?;
        let mut chosen = None;
        let of_place = |entry: &IssuerEntry| entry.places.contains(&place);
        for entry in self.trust()?.issuers.into_iter().filter(of_place) {
            let Some(dir) = self.folder_with_key(&entry) else { continue };
            let der = first_certificate(&self.dir.join(&entry.cert))?;
            let (_, x509) = X509Certificate::from_der(&der).context("reading an issuer")?;
            if chosen.is_none() || x509.validity().not_before.timestamp() + heard_of <= now {
                chosen = Some(dir);
            }
        }
        chosen.with_context(|| {
            format!("no issuer in {} vouches for {place} and has its key there", self.dir.display())
        })
    }

    /// Where an issuer lies, if its key does too.
    fn folder_with_key(&self, entry: &IssuerEntry) -> Option<PathBuf> {
        let cert = self.dir.join(&entry.cert);
        cert.parent().filter(|dir| dir.join("key.pem").is_file()).map(Path::to_owned)
    }

    /// Whether the issuer whose key has this digest can sign here, and is not retired.
    ///
    /// # Errors
    /// When the authority's files cannot be read.
    pub fn has_issuer(&self, spki: &Digest) -> Result<bool> {
        let (trust, spki) = (self.trust()?, spki.to_string());
        let this = |entry: &IssuerEntry| {
            entry.spki_sha256 == spki && self.folder_with_key(entry).is_some()
        };
        Ok(trust.issuers.iter().any(this))
    }

    /// The root's certificate, if it lies here.
    ///
    /// # Errors
    /// When it lies here and cannot be read.
    pub fn root(&self) -> Result<Option<CertificateDer<'static>>> {
        let path = self.dir.join("root/cert.pem");
        path.is_file().then(|| first_certificate(&path)).transpose()
    }

    /// Puts a certificate on its issuer's revocation list, which is written anew and valid for so many days.
    ///
    /// # Errors
    /// When no issuer of this authority signed it, or a file cannot be written.
    pub fn revoke(&self, cert: &CertificateDer<'_>, days: u32) -> Result<PathBuf> {
        let (_, x509) = X509Certificate::from_der(cert).context("reading the certificate")?;
        for dir in fs::read_dir(self.dir.join("issuers"))? {
            let dir = dir?.path();
            let issuer = first_certificate(&dir.join("cert.pem"))?;
            let (_, issuer) = X509Certificate::from_der(&issuer).context("reading an issuer")?;
            if issuer.subject().as_raw() == x509.issuer().as_raw() {
                let mut file =
                    fs::OpenOptions::new().create(true).append(true).open(dir.join(REVOKED))?;
                let now = jiff::Timestamp::now().as_second();
                writeln!(file, "{} {now}", x509.raw_serial_as_string())?;
                file.sync_all()?;
                return Self::write_crl(&dir, days);
            }
        }
        bail!("no issuer in {} signed this certificate", self.dir.display())
    }

    /// Writes the revocation list of a place's newest issuer anew, valid for so many days.
    ///
    /// # Errors
    /// When the place has no issuer, or a file cannot be read or written.
    pub fn crl(&self, place: &Place, days: u32) -> Result<PathBuf> {
        Self::write_crl(&self.newest_issuer(place)?.1, days)
    }

    fn write_crl(issuer_dir: &Path, days: u32) -> Result<PathBuf> {
        let listed = issuer_dir.join(REVOKED);
        let text = if listed.exists() { fs::read_to_string(&listed)? } else { String::new() };
        let mut revoked_certs = Vec::new();
        for line in text.lines() {
            let wrong = || format!("{}: `{line}` is no serial number and time", listed.display());
            let (serial, time) = line.split_once(' ').with_context(wrong)?;
            let bytes: Result<Vec<u8>, _> =
                serial.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
            let time: u64 = time.parse().with_context(wrong)?;
            revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from(bytes.with_context(wrong)?),
                revocation_time: (std::time::UNIX_EPOCH + Duration::from_secs(time)).into(),
                reason_code: Some(RevocationReason::Unspecified),
                invalidity_date: None,
            });
        }
        let now = std::time::SystemTime::now();
        let number = now.duration_since(std::time::UNIX_EPOCH)?.as_millis();
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(u64::from(days) * 86_400)).into(),
            // Time is a number that only grows, and needs no file of its own.
            crl_number: SerialNumber::from(u64::try_from(number)?),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = fs::read_to_string(issuer_dir.join("cert.pem"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, Self::key(issuer_dir)?)?;
        let path = issuer_dir.join("crl.pem");
        let fresh = path.with_extension("pem.new");
        fs::write(&fresh, list.signed_by(&issuer)?.pem()?)?;
        fs::rename(&fresh, &path).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    fn issuer_dir(&self, place: &Place, number: u32) -> PathBuf {
        let name = format!("{}_{}", place.jurisdiction(), place.region());
        let name = if number == 1 { name } else { format!("{name}-{number}") };
        self.dir.join("issuers").join(name)
    }

    /// The newest issuer of a place: its number and its folder.
    fn newest_issuer(&self, place: &Place) -> Result<(u32, PathBuf)> {
        let all = (1..).map(|n| (n, self.issuer_dir(place, n)));
        let newest = all.take_while(|(_, dir)| dir.is_dir()).last();
        newest.with_context(|| {
            format!(
                "no issuer vouches for {place}; make one with `falaj-certs issuer {} {place}`",
                self.dir.display()
            )
        })
    }

    fn trust(&self) -> Result<TrustFile> {
        let path = self.trust_path();
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    fn write_trust(&self, trust: &TrustFile) -> Result<()> {
        let path = self.trust_path();
        let fresh = path.with_extension("toml.new");
        fs::write(&fresh, toml::to_string(trust)?)?;
        fs::rename(&fresh, &path).with_context(|| format!("writing {}", path.display()))
    }

    fn key(dir: &Path) -> Result<KeyPair> {
        let path = dir.join("key.pem");
        let pem = read_secret(&path)?;
        let pem = std::str::from_utf8(&pem).with_context(|| format!("{}", path.display()))?;
        Ok(KeyPair::from_pem(pem)?)
    }

    fn write_pair(dir: &Path, cert: &str, key: &KeyPair) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("making {}", dir.display()))?;
        let path = dir.join("key.pem");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("writing {}", path.display()))?;
        file.write_all(key_pem(key)?.as_bytes())?;
        fs::write(dir.join("cert.pem"), cert)?;
        Ok(())
    }
}

/// A private key in PEM form, without its public half (PKCS#8, version 1): OpenSSL before 3.2 and what is built on it, curl for
/// one, read no other.
pub(crate) fn key_pem(key: &KeyPair) -> Result<Zeroizing<String>> {
    let secret_key = SigningKey::from_pkcs8_der(key.serialized_der())?.to_bytes();
    Ok(KeypairBytes { secret_key, public_key: None }.to_pkcs8_pem(LineEnding::LF)?)
}

fn authority_params(name: &str, days: u32, path_length: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, days);
    params
}

fn valid_for(params: &mut CertificateParams, days: u32) {
    let now = std::time::SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + Duration::from_secs(u64::from(days) * 86_400)).into();
}

/// The first certificate of a PEM file.
///
/// # Errors
/// When the file holds none.
pub fn first_certificate(path: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(path)
        .with_context(|| format!("{} holds no certificate in PEM form", path.display()))
}
