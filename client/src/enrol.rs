//! A site's first certificate, for a token: the key is made here and stays here.
//!
//! The key lies under another name until everything else is there, so that an enrolment that broke off is taken up again with
//! the same key, for which the coordinator gives the same certificate again.

use crate::{
    config::Config,
    identity::{make, pem, write, write_trust},
    transport,
};
use anyhow::{Context as _, Result, ensure};
use falaj_certs::{
    enrolment::Token,
    identity::Identity,
    keys::KeyAt,
    request::{generate, load_key},
    trust::{IssuerEntry, TrustFile, TrustStore, spki_sha256},
};
use falaj_core::id::Place;
use falaj_proto::v1::{EnrolReply, EnrolRequest};
use rustls::pki_types::CertificateDer;
use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Where what is made is put.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate and those that follow it.
    pub cert: PathBuf,
    /// Its key.
    pub key: KeyAt,
    /// Whom the federation trusts.
    pub trust: PathBuf,
    /// The root that signs issuers, if it is wanted.
    pub root: Option<PathBuf>,
}

impl Files {
    /// Where a configuration has them.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let files = config.identity.clone();
        Self { cert: files.cert, key: files.key, trust: files.trust, root: files.root }
    }

    /// All in one folder.
    #[must_use]
    pub fn within(dir: &Path) -> Self {
        let [cert, key, trust, root] =
            ["cert.pem", "key.pem", "trust.toml", "root.pem"].map(|name| dir.join(name));
        Self { cert, key: KeyAt::File(key), trust, root: Some(root) }
    }

    /// The key's file, and where the key is while the enrolment is not complete; neither for a key in a token.
    fn made(&self) -> Option<(&Path, PathBuf)> {
        let key = self.key.file()?;
        let mut begun = key.as_os_str().to_owned();
        begun.push(".enrolling");
        Some((key, begun.into()))
    }
}

/// Enrols. With `again` the site has a key already and keeps it; without, nothing that is there is written over. A key in a
/// token is there in any case.
///
/// # Errors
/// What is wrong, and what to do. Nothing that was there is lost.
pub async fn enrol(token: &Token, files: &Files, place: &Place, again: bool) -> Result<Identity> {
    let made = files.made();
    let of_file = made.as_ref().map(|(key, _)| *key);
    let begun = made.as_ref().map(|(_, begun)| begun).filter(|_| !again);
    let others = [files.cert.as_path(), files.trust.as_path()];
    let there = of_file.into_iter().chain(others).find(|path| path.exists());
    if again {
        ensure!(
            of_file.is_none_or(Path::exists),
            "{} is not there: without `--again` a key is made",
            files.key
        );
    } else if !begun.is_some_and(|begun| begun.exists())
        && let Some(there) = there
    {
        anyhow::bail!(
            "{} is there already, and nothing is written over: to get another certificate about the key that is there, use `--again`; to enrol anew, move the old files away",
            there.display()
        );
    }
    for path in of_file.into_iter().chain(others).chain(files.root.as_deref()) {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            make(folder)?;
        }
    }
    let key = match begun {
        None => load_key(&files.key)?,
        Some(begun) if begun.exists() => load_key(&begun.into())?,
        Some(begun) => {
            let (key, text) = generate()?;
            let mut options = fs::OpenOptions::new();
            let file = options.write(true).create_new(true).mode(0o600).open(begun);
            let mut file = file.with_context(|| format!("writing {}", begun.display()))?;
            std::io::Write::write_all(&mut file, text.as_bytes())?;
            file.sync_all()?;
            key
        }
    };
    let asked = EnrolRequest {
        token: token.id.clone(),
        secret: token.secret.expose().to_vec().into(),
        request: key.request()?.into(),
        place: place.to_string(),
    };
    let reply = transport::enrol(token, asked).await?;
    let given = Given::of(token, reply, &key.public_key())?;
    write_trust(&files.trust, &given.trust)?;
    if let Some((path, root)) = files.root.as_ref().zip(given.root) {
        write(path, pem(&[root]).as_bytes())?;
    }
    write(&files.cert, pem(&given.chain).as_bytes())?;
    if let Some((key, begun)) = of_file.zip(begun) {
        fs::rename(begun, key).with_context(|| format!("writing {}", key.display()))?;
    }
    Ok(given.identity)
}

/// What came, once it was looked at.
struct Given {
    chain: Vec<CertificateDer<'static>>,
    identity: Identity,
    trust: TrustStore,
    root: Option<CertificateDer<'static>>,
}

impl Given {
    fn of(token: &Token, reply: EnrolReply, public_key: &[u8; 32]) -> Result<Self> {
        let ders = |all: Vec<bytes::Bytes>| -> Vec<CertificateDer<'static>> {
            all.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect()
        };
        let trust = reply.trust.context("no trust configuration came")?;
        let (chain, issuers) = (ders(reply.chain), ders(trust.issuers));
        let came = Path::new("the trust configuration that came");
        let file = TrustFile::parse(came, &trust.file)?;
        let certificate = |entry: &IssuerEntry| {
            let of = |der: &&CertificateDer<'_>| {
                spki_sha256(der).is_ok_and(|spki| spki.to_string() == entry.spki_sha256)
            };
            issuers
                .iter()
                .find(of)
                .cloned()
                .ok_or_else(|| "its certificate did not come".to_owned())
        };
        let trust = TrustStore::of(came, &file, certificate)?;
        ensure!(
            trust.trust_domain() == token.site.trust_domain(),
            "a trust configuration of another federation came, `{}`",
            trust.trust_domain()
        );
        let bound = trust.issuers().iter().any(|(_, entry)| {
            entry.spki_sha256 == token.issuer_sha256.to_string()
                && entry.places.contains(&token.coordinator.place().to_string())
        });
        ensure!(
            bound,
            "the trust configuration that came does not hold the issuer that the token names"
        );
        let identity = trust.identify(&chain).context("the certificate that came")?;
        ensure!(
            identity.spiffe == token.site && identity.public_key == *public_key,
            "a certificate of {} came, for another name or key than was asked for",
            identity.spiffe
        );
        let root = Some(reply.root).filter(|root| !root.is_empty());
        let root = root.map(|root| CertificateDer::from(root.to_vec()));
        Ok(Self { chain, identity, trust, root })
    }
}
