//! The files that say who is trusted: read, told apart, and taken or not.

use super::{DENIED_MAX, InForce, Lists, Subject, Tpms, now_unix};
use crate::{
    config::{EvidenceConfig, IdentityConfig, RevocationConfig},
    export::TRUST_FILE,
    store::writer::Change,
};
use anyhow::{Context as _, Result, bail, ensure};
use falaj_certs::{
    keys::KeyAt,
    revocation::{CRL_BYTES_MAX, CrlError, Crls, ListFile},
    tls::Credentials,
    tpm,
    trust::{TrustFile, TrustStore},
};
use falaj_core::{
    id::{Digest, SiteId},
    networks::{List, Networks},
    tpm::{Declared, REGISTERS},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A file other than a revocation list is at most this long.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How the name of a list ends that is kept over a restart.
const KEPT: &str = "crl";
/// A list of networks is at most this long.
const NETWORKS_BYTES_MAX: u64 = 16 << 20;

/// How a file, or several that belong together, was last seen.
#[derive(Default)]
pub(super) struct Seen {
    /// What was taken.
    pub(super) taken: Option<Digest>,
    /// What was not, and has been seen once.
    pub(super) broken: Option<Digest>,
    /// What was not, and somebody was told.
    pub(super) told: Option<Digest>,
}

/// What becomes of a look at files.
pub(super) enum Look<T> {
    Same,
    Fresh(T),
    Broken(anyhow::Error),
}

impl Seen {
    /// Whether this was seen once already, and not taken.
    pub(super) fn is_second_look(&self, print: Digest) -> bool {
        self.broken == Some(print)
    }

    /// Takes files if they have changed. What is broken is tried once more before anybody hears of it: it may only be
    /// half written.
    pub(super) fn look<T>(&mut self, print: Digest, take: impl FnOnce() -> Result<T>) -> Look<T> {
        if self.taken == Some(print) {
            (self.broken, self.told) = (None, None);
            return Look::Same;
        }
        match take() {
            Ok(fresh) => {
                *self = Self { taken: Some(print), broken: None, told: None };
                Look::Fresh(fresh)
            }
            Err(_) if self.told == Some(print) => Look::Same,
            Err(e) if self.broken == Some(print) => {
                self.told = Some(print);
                Look::Broken(e)
            }
            Err(_) => {
                self.broken = Some(print);
                Look::Same
            }
        }
    }
}

/// What is wrong with files that are taken one by one, and of what somebody was told.
#[derive(Default)]
pub(super) struct Wrong {
    seen: BTreeSet<Digest>,
    told: BTreeSet<Digest>,
}

impl Wrong {
    /// What somebody is to be told of all that is wrong now, each under a digest that tells it apart: what was so already at the
    /// last look, for a file may only be half written, and was not told.
    pub(super) fn news(&mut self, found: Vec<(Digest, String)>) -> Vec<String> {
        let now: BTreeSet<Digest> = found.iter().map(|(which, _)| *which).collect();
        self.told.retain(|which| now.contains(which));
        let is_news = |which: &Digest| self.seen.contains(which) && !self.told.contains(which);
        let (which, news): (Vec<Digest>, Vec<String>) =
            found.into_iter().filter(|(which, _)| is_news(which)).unzip();
        self.told.extend(which);
        self.seen = now;
        news
    }
}

/// The files, and how each was last seen.
pub(super) struct Files {
    pub(super) identity: IdentityConfig,
    pub(super) revocation: RevocationConfig,
    pub(super) evidence: EvidenceConfig,
    pub(super) certificate: Seen,
    pub(super) trust: Seen,
    pub(super) crls: Option<Digest>,
    pub(super) crls_wrong: Wrong,
    pub(super) deny: Seen,
    pub(super) networks: Seen,
    pub(super) tpms: Seen,
    /// The revocation lists of which it was told that they are too old: their files, and when the next ones were due.
    pub(super) overdue: BTreeSet<(PathBuf, i64)>,
    /// Where the newest list of each issuer is kept over a restart.
    pub(super) kept: Option<PathBuf>,
}

/// Which TPMs are declared.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TpmFile {
    #[serde(rename = "site", default)]
    sites: Vec<TpmEntry>,
}

/// The TPM of one site.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TpmEntry {
    /// Whose it is.
    id: String,
    /// The public part of its attestation key, as `tpm2_readpublic -o` writes it, in hexadecimal digits.
    key: String,
    /// What registers of its SHA-256 bank should hold.
    pcrs: BTreeMap<String, String>,
}

/// The coordinator's own certificate, which must name whom it named before.
pub(super) fn own_certificate(
    files: &IdentityConfig,
    before: &Credentials,
) -> Result<Arc<Credentials>> {
    let fresh = Credentials::load(&files.cert, &files.key)?;
    let (found, was) = (fresh.identity()?.spiffe, before.identity()?.spiffe);
    ensure!(
        found == was,
        "{} names {found}, this coordinator is {was}: start it again to make it another",
        files.cert.display()
    );
    Ok(Arc::new(fresh))
}

/// Reads a file that is not longer than it may be.
pub(super) fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let file = fs::File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading {}", path.display()))?;
    if bytes.len() as u64 > most {
        bail!("{} is longer than {most} bytes", path.display());
    }
    Ok(bytes)
}

/// What tells one content of files from another, a missing one from an empty one included.
pub(super) fn print<'a>(paths: impl IntoIterator<Item = &'a PathBuf>, most: u64) -> Digest {
    let mut all = Vec::new();
    for path in paths {
        let found = read(path, most).map_or_else(|_| [0; 32], |bytes| Digest::of(&bytes).0);
        all.extend_from_slice(&found);
    }
    Digest::of(&all)
}

impl Files {
    pub(super) fn print_certificate(&self) -> Digest {
        let mut files = vec![&self.identity.cert];
        if let KeyAt::File(path) = &self.identity.key {
            files.push(path);
        }
        print(files, FILE_BYTES_MAX)
    }

    pub(super) fn print_trust(&self) -> Digest {
        let path = &self.identity.trust;
        let text = read(path, FILE_BYTES_MAX).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let file = text.and_then(|text| TrustFile::parse(path, &text).ok());
        let folder = path.parent().unwrap_or(Path::new("."));
        let issuers = file.into_iter().flat_map(|file| file.issuers);
        let issuers: Vec<PathBuf> = issuers.map(|issuer| folder.join(issuer.cert)).collect();
        print([path].into_iter().chain(&issuers), FILE_BYTES_MAX)
    }

    pub(super) fn print_crls(&self, trust: &Digest) -> Digest {
        let lists = print(&self.revocation.crls, CRL_BYTES_MAX);
        Digest::of(&[lists.0, trust.0].concat())
    }

    pub(super) fn print_denied(&self) -> Digest {
        print(&self.revocation.deny, FILE_BYTES_MAX)
    }

    /// The trust configuration and the digest of its file; the trust domain stays what it was.
    pub(super) fn read_trust(&self, before: Option<&TrustStore>) -> Result<(TrustStore, Digest)> {
        let path = &self.identity.trust;
        let digest = Digest::of(&read(path, FILE_BYTES_MAX)?);
        let trust = TrustStore::load(path)?;
        ensure!(
            Digest::of(&read(path, FILE_BYTES_MAX)?) == digest,
            "{} has changed while it was read",
            path.display()
        );
        if let Some(before) = before {
            ensure!(
                before.trust_domain() == trust.trust_domain(),
                "{} is of another trust domain: start the coordinator again to change it",
                path.display()
            );
        }
        Ok((trust, digest))
    }

    pub(super) fn read_crls(&self, trust: &TrustStore) -> Result<Crls> {
        let list = |path: &PathBuf| Ok((path.clone(), read(path, CRL_BYTES_MAX)?));
        let lists: Result<Vec<_>> = self.revocation.crls.iter().map(list).collect();
        let allowed = self.revocation.unknown.is_allowed();
        Ok(Crls::read(&lists?, trust, allowed, now_unix())?)
    }

    /// The revocation lists that follow those in force, if any has changed, and what somebody is to be told of the others.
    pub(super) fn look_at_crls(
        &mut self,
        (trust, trust_sha256): (&TrustStore, &Digest),
        before: &Crls,
    ) -> (Option<Crls>, Vec<String>) {
        // Who may sign a list has changed with the trust configuration.
        let print = self.print_crls(trust_sha256);
        if self.crls == Some(print) {
            self.crls_wrong = Wrong::default();
            return (None, Vec::new());
        }
        let bytes = |path: &PathBuf| read(path, CRL_BYTES_MAX).map_err(|e| format!("{e:#}"));
        let there: Vec<_> = self.revocation.crls.iter().map(|path| (path, bytes(path))).collect();
        let files: Vec<ListFile<'_>> = there
            .iter()
            .map(|(path, bytes)| (path.as_path(), bytes.as_deref().map_err(Clone::clone)))
            .collect();
        let (fresh, wrong) = before.renewed(&files, trust, now_unix());
        self.crls = wrong.is_empty().then_some(print);
        let which = |e: &CrlError| {
            let file = files.iter().find(|(path, _)| Some(*path) == e.path());
            let bytes = file.and_then(|(_, bytes)| bytes.as_ref().ok()).copied();
            Digest::of(
                &[&Digest::of(bytes.unwrap_or_default()).0, e.to_string().as_bytes()].concat(),
            )
        };
        let wrong = wrong.iter().map(|e| (which(e), e.to_string())).collect();
        let sorted = |crls: &Crls| crls.digests().into_iter().collect::<BTreeSet<_>>();
        let news = self.crls_wrong.news(wrong);
        ((sorted(&fresh) != sorted(before)).then_some(fresh), news)
    }

    /// The lists that were in force when the coordinator ran last.
    pub(super) fn read_kept(&self) -> Result<Crls> {
        let Some(dir) = &self.kept else { return Ok(Crls::default()) };
        let mut lists = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == KEPT) {
                lists.push((path.clone(), read(&path, CRL_BYTES_MAX)?));
            }
        }
        let kept = Crls::remember(&lists);
        kept.context("remove the file if the newest list of its issuer is the one configured")
    }

    /// Keeps lists that are in force, whatever becomes of those of issuers that have none now.
    pub(super) fn keep(&self, crls: &Crls) -> Result<()> {
        let Some(dir) = &self.kept else { return Ok(()) };
        for (issuer, list) in crls.by_issuer() {
            let path = dir.join(format!("{issuer}.{KEPT}"));
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(list)?;
            file.as_file().sync_all()?;
            file.persist(&path).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// The list of those denied at once: one to a line, `#` begins a remark. A file that was cut short is none.
    pub(super) fn read_denied(&self, trust_domain: &str) -> Result<BTreeSet<Subject>> {
        let Some(path) = &self.revocation.deny else { return Ok(BTreeSet::new()) };
        let text = String::from_utf8(read(path, FILE_BYTES_MAX)?)
            .with_context(|| format!("{} is not text", path.display()))?;
        ensure!(
            !text.is_empty(),
            "{} is empty: to deny nobody, write a line that begins with `#`",
            path.display()
        );
        ensure!(
            text.ends_with('\n'),
            "the last line of {} has no end: it may be cut short; end it",
            path.display()
        );
        let mut denied = BTreeSet::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                let at = || format!("{}, line {}", path.display(), n + 1);
                let subject: Subject = line.parse().with_context(at)?;
                if let Subject::Identity(id) = &subject {
                    let ours = id.trust_domain() == trust_domain;
                    ensure!(ours, "{}: this federation is `{trust_domain}`", at());
                }
                denied.insert(subject);
            }
        }
        ensure!(denied.len() <= DENIED_MAX, "{} denies more than {DENIED_MAX}", path.display());
        Ok(denied)
    }

    pub(super) fn print_networks(&self) -> Digest {
        print(self.evidence.networks.iter().map(|list| &list.file), NETWORKS_BYTES_MAX)
    }

    /// Which networks belong to which place, and the digests of the lists; none when none is configured.
    pub(super) fn read_networks(&self) -> Result<Option<Lists>> {
        if self.evidence.networks.is_empty() {
            return Ok(None);
        }
        let mut texts = Vec::new();
        for list in &self.evidence.networks {
            let name = list.file.display().to_string();
            let bytes = read(&list.file, NETWORKS_BYTES_MAX)?;
            let text = String::from_utf8(bytes).with_context(|| format!("{name} is not text"))?;
            texts.push((name, text, list.jurisdiction.as_deref()));
        }
        let lists: Vec<List<'_>> = texts
            .iter()
            .map(|(name, text, jurisdiction)| List { name, text, jurisdiction: *jurisdiction })
            .collect();
        let digests = texts.iter().map(|(_, text, _)| Digest::of(text.as_bytes())).collect();
        Ok(Some((Networks::parse(&lists)?, digests)))
    }

    pub(super) fn print_tpms(&self) -> Digest {
        print(&self.evidence.tpms, FILE_BYTES_MAX)
    }

    /// The TPMs that are declared for sites, if that has changed.
    pub(super) fn look_at_tpms(&mut self, trust_domain: &str) -> Look<Option<Tpms>> {
        let print = self.print_tpms();
        let mut seen = std::mem::take(&mut self.tpms);
        let second = seen.is_second_look(print);
        let taken = seen.look(print, || {
            let fresh = self.read_tpms(trust_domain)?;
            // Of a file that is being written only the beginning may be there.
            ensure!(second, "the declared TPMs have changed: that is taken when it is seen twice");
            Ok(fresh)
        });
        self.tpms = seen;
        taken
    }

    /// The TPMs that are declared for sites, and the digest of the file; none when none is configured.
    pub(super) fn read_tpms(&self, trust_domain: &str) -> Result<Option<Tpms>> {
        let Some(path) = &self.evidence.tpms else { return Ok(None) };
        let bytes = read(path, FILE_BYTES_MAX)?;
        let at = || path.display().to_string();
        let text = str::from_utf8(&bytes).with_context(at)?;
        ensure!(
            text.ends_with('\n'),
            "the last line of {} has no end: it may be cut short; end it",
            path.display()
        );
        let file: TpmFile = toml::from_str(text).with_context(at)?;
        let mut tpms = BTreeMap::new();
        for TpmEntry { id, key, pcrs } in file.sites {
            let at = || format!("{}, `{id}`", path.display());
            let site: SiteId = id.parse().with_context(at)?;
            let ours = site.spiffe().trust_domain() == trust_domain;
            ensure!(ours, "{}: this federation is `{trust_domain}`", at());
            let key = hex::decode(&key).with_context(|| format!("{}: `key`", at()))?;
            let key = tpm::key(&key).with_context(|| format!("{}: `key`", at()))?;
            ensure!(!pcrs.is_empty(), "{}: `pcrs` names no register", at());
            let mut values = BTreeMap::new();
            for (n, value) in pcrs {
                let at = || format!("{}: register `{n}` of `pcrs`", at());
                let number: u8 = n.parse().with_context(at)?;
                ensure!(number < REGISTERS, "{}: the last one is {}", at(), REGISTERS - 1);
                let value = value.parse().with_context(at)?;
                ensure!(values.insert(number, value).is_none(), "{} is there twice", at());
            }
            let declared = Declared { key, pcrs: values };
            ensure!(tpms.insert(site, declared).is_none(), "{} is there twice", at());
        }
        Ok(Some((tpms, Digest::of(&bytes))))
    }

    /// What whoever reads the log later needs: the trust configuration, its issuers, and the coordinator's certificate.
    pub(super) fn rows(&self, now: &InForce) -> Vec<Change> {
        let kept = |der: &[u8]| Change::Certificate(Digest::of(der), der.to_vec());
        let mut rows: Vec<Change> = now.trust.issuers().iter().map(|(der, _)| kept(der)).collect();
        rows.push(kept(now.credentials.certificate()));
        let text = read(&self.identity.trust, FILE_BYTES_MAX).ok();
        let text = text.filter(|bytes| Digest::of(bytes) == now.trust_sha256);
        rows.extend(text.map(|bytes| Change::Policy(now.trust_sha256, TRUST_FILE.into(), bytes)));
        rows
    }
}
