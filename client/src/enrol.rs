//! A site's first certificate, for a token: the key is made here and stays here.
//!
//! The key lies under another name until everything else is there, so that an enrolment that broke off is taken up again with
//! the same key, for which the coordinator gives the same certificate again.

use crate::{
    config::Config,
    identity::{
        self, above, followed, forget_renewed, keep_followed, make, pem, sync, write, write_trust,
    },
    transport,
};
use anyhow::{Context as _, Result, ensure};
use falaj_certs::{
    ca::first_certificate,
    enrolment::Token,
    identity::Identity,
    keys::KeyAt,
    request::{generate, load_key},
    trust::{IssuerEntry, TrustFile, TrustStore, spki_sha256},
};
use falaj_core::id::Place;
use falaj_proto::v1::{EnrolReply, EnrolRequest, Trust};
use rustls::pki_types::CertificateDer;
use std::{
    fs,
    io::Write as _,
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
    /// The configuration that says so, if one does.
    config: Option<Config>,
}

impl Files {
    /// Where a configuration has them.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let files = config.identity.clone();
        let config = Some(config.clone());
        Self { cert: files.cert, key: files.key, trust: files.trust, root: files.root, config }
    }

    /// All in one folder.
    #[must_use]
    pub fn within(dir: &Path) -> Self {
        let [cert, key, trust, root] =
            ["cert.pem", "key.pem", "trust.toml", "root.pem"].map(|name| dir.join(name));
        Self { cert, key: KeyAt::File(key), trust, root: Some(root), config: None }
    }

    /// The key's file, and where the key is while the enrolment is not complete; neither for a key in a token.
    fn made(&self) -> Option<(&Path, PathBuf)> {
        let key = self.key.file()?;
        let mut begun = key.as_os_str().to_owned();
        begun.push(".enrolling");
        Some((key, begun.into()))
    }

    /// Whom a site trusts that has enrolled before, for whom the token has to be; none if that is not there any more.
    fn trusted(&self, token: &Token) -> Result<Option<TrustStore>> {
        if self.cert.exists() {
            let before = Identity::parse(&first_certificate(&self.cert)?)
                .with_context(|| format!("reading {}", self.cert.display()))?;
            ensure!(
                before.spiffe == token.site,
                "{} names {}, and the token is for {}: ask for a token for this site; to make it another, move the old files away and enrol without `--again`",
                self.cert.display(),
                before.spiffe,
                token.site
            );
        }
        if !self.trust.exists() {
            return Ok(None);
        }
        Ok(Some(match &self.config {
            Some(config) => identity::trust(config)?,
            None => TrustStore::load(&self.trust)?,
        }))
    }
}

/// Enrols. With `again` the site has a key already and keeps it, as it does whom it trusts and the root; without, nothing that
/// is there is written over. A key in a token is there in any case.
///
/// # Errors
/// What is wrong, and what to do. Nothing that was there is lost.
pub async fn enrol(token: &Token, files: &Files, place: &Place, again: bool) -> Result<Identity> {
    ensure!(
        token.site.place() == place,
        "the token is for a site in {}, and `--place` says {place}: ask for a token for where this site is",
        token.site.place()
    );
    let trusted = if again { files.trusted(token)? } else { None };
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
            keep(begun, text.as_bytes())?;
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
    match trusted {
        None => {
            write_trust(&files.trust, &given.trust)?;
            let root = files.root.as_ref().filter(|path| !path.exists());
            if let Some((path, root)) = root.zip(given.root) {
                write(path, pem(&[root]).as_bytes())?;
            }
        }
        Some(trust) => {
            let followed = given.known(&trust, files, token)?;
            if let Some((config, followed)) = files.config.as_ref().zip(followed) {
                keep_followed(config, &followed)?;
            }
        }
    }
    write(&files.cert, pem(&given.chain).as_bytes())?;
    if let Some((key, begun)) = of_file.zip(begun) {
        fs::rename(begun, key).with_context(|| format!("writing {}", key.display()))?;
        sync(above(key))?;
    }
    if let Some(config) = &files.config {
        // The one that lives longest is used, and that would be an earlier one that was renewed.
        forget_renewed(config)?;
    }
    Ok(given.identity)
}

/// Puts a key where nothing is, whole or not at all, for nobody else to read.
fn keep(path: &Path, key: &[u8]) -> Result<()> {
    let written = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".key-").tempfile_in(above(path))?;
        file.write_all(key)?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path).map_err(|e| e.error)?;
        Ok(())
    };
    written().with_context(|| format!("writing {}", path.display()))?;
    sync(above(path))
}

/// What came, once it was looked at.
struct Given {
    chain: Vec<CertificateDer<'static>>,
    identity: Identity,
    trust: TrustStore,
    /// The same, as it came.
    sent: Trust,
    root: Option<CertificateDer<'static>>,
}

impl Given {
    /// That whom a site trusts already vouches for the certificate: by itself, or by what follows from it.
    fn known(
        &self,
        trust: &TrustStore,
        files: &Files,
        token: &Token,
    ) -> Result<Option<TrustStore>> {
        let Err(e) = trust.identify(&self.chain) else { return Ok(None) };
        let followed =
            followed(files.root.as_deref(), trust, &self.sent, token.coordinator.place());
        match followed {
            Ok(Some(followed)) if followed.identify(&self.chain).is_ok() => {
                return Ok(Some(followed));
            }
            Ok(_) => Err(e.into()),
            Err(why) => Err(why),
        }
        .with_context(|| {
            format!(
                "{} does not vouch for the certificate that came, and stays as it is: hear from the coordinator's operator, in another way, which issuer signs now, bind it there, and do this again with the same token",
                files.trust.display()
            )
        })
    }

    fn of(token: &Token, reply: EnrolReply, public_key: &[u8; 32]) -> Result<Self> {
        let ders = |all: Vec<bytes::Bytes>| -> Vec<CertificateDer<'static>> {
            all.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect()
        };
        let sent = reply.trust.context("no trust configuration came")?;
        let (chain, issuers) = (ders(reply.chain), ders(sent.issuers.clone()));
        let came = Path::new("the trust configuration that came");
        let file = TrustFile::parse(came, &sent.file)?;
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
        Ok(Self { chain, identity, trust, sent, root })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_there_whole_for_nobody_else_and_is_never_written_over() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("key.pem.enrolling");
        keep(&path, b"first").expect("kept");
        keep(&path, b"second").expect_err("one is there");
        assert_eq!(fs::read(&path).expect("read"), b"first");
        let mode = fs::metadata(&path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{mode:o}");
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1, "nothing else is left");
    }
}
