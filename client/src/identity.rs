//! Who this site is and whom it trusts, as its files say now: read again when they change, and renewed by the coordinator.
//!
//! The configured files are the site's own, and nothing here writes them. What the coordinator gave lies in `identity/` of the
//! state folder: a renewed certificate, about the same key, and issuers that were followed. The certificate that lives longest
//! is used. A site's key stays: it signs updates, receipts are checked against it, and stewards' approvals are made with it.

use crate::{
    agent::jittered,
    clock,
    config::Config,
    transport::{Coordinator, Dialer, TransportError},
};
use anyhow::{Context as _, Result, bail, ensure};
use falaj_certs::{
    ca::first_certificate,
    identity::Identity,
    issue::LIFETIME_MAX,
    tls::Credentials,
    trust::{IssuerEntry, TrustFile, TrustStore},
};
use falaj_core::id::{Digest, Place};
use falaj_proto::v1::Trust;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// How often files are looked at.
const GLANCE: Duration = Duration::from_secs(1);
/// What came from the coordinator, in the state folder.
const FOLDER: &str = "identity";
/// A certificate's file in it.
const CERT: &str = "cert.pem";
/// A trust configuration's file in it.
const TRUST: &str = "trust.toml";
/// SHA-256 of the configured trust configuration that it follows.
const FOLLOWS: &str = "follows";
/// A file is at most this long.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Certificates that come along with one at most.
const CHAIN_MAX: usize = 4;
/// The longest pause between attempts to renew.
const PAUSE_LONGEST: Duration = Duration::from_hours(1);
/// The shortest.
const PAUSE_SHORTEST: Duration = Duration::from_secs(1);
/// The longest pause after the coordinator has said that it is too early.
const PAUSE_EARLY: Duration = Duration::from_hours(24);
/// How long files that could not be used are left alone while they stay as they are: what is missing may be elsewhere, as a
/// token is.
const PAUSE_FILES: Duration = Duration::from_secs(30);
/// How far the clocks of coordinator and site may be apart.
const CLOCKS_APART: Duration = Duration::from_hours(1);

/// What is in use.
pub struct Now {
    /// Certificate and key.
    pub credentials: Credentials,
    /// Who that is, and how long it holds.
    pub identity: Identity,
    /// Whom the site trusts.
    pub trust: TrustStore,
    /// How the coordinator is reached with both.
    pub dialer: Dialer,
}

/// The files as they were seen last.
struct Seen {
    /// As they were taken.
    taken: Digest,
    /// As they could not be, and when that was.
    failed: Option<(Digest, Instant)>,
}

impl Seen {
    /// Whether files that look so now are worth reading.
    fn is_due(&self, found: &Digest, now: Instant) -> bool {
        let waits = |(failed, at): &(Digest, Instant)| {
            failed == found && now.duration_since(*at) < PAUSE_FILES
        };
        self.taken != *found && !self.failed.as_ref().is_some_and(waits)
    }
}

/// Who this site is. Connections are made with what is in use when they are made.
pub struct Identities {
    config: Arc<Config>,
    now: RwLock<Arc<Now>>,
    changes: watch::Sender<u64>,
    /// The files as they were seen last.
    seen: Mutex<Seen>,
    /// Whether the coordinator renews certificates.
    renews: AtomicBool,
}

impl Identities {
    /// Reads the files.
    ///
    /// # Errors
    /// What is missing or wrong, where, and what to do.
    pub fn open(config: Arc<Config>) -> Result<Self> {
        let seen = Mutex::new(Seen { taken: print(&config), failed: None });
        let now = RwLock::new(Arc::new(read(&config)?));
        let (changes, _) = watch::channel(0);
        Ok(Self { config, now, changes, seen, renews: AtomicBool::new(false) })
    }

    /// What is in use.
    #[must_use]
    pub fn now(&self) -> Arc<Now> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells when something else is in use.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether the coordinator renews certificates.
    pub fn renewed_there(&self, renews: bool) {
        self.renews.store(renews, Ordering::Relaxed);
    }

    /// How the coordinator is reached.
    ///
    /// # Errors
    /// [`TransportError::Unwanted`] when the site's certificate has expired: nobody renews it then.
    pub fn dialer(&self) -> Result<Dialer, TransportError> {
        self.look();
        let now = self.now();
        if now.identity.not_after < clock::now().as_millis() / 1_000 {
            return Err(TransportError::Unwanted(format!(
                "this site's certificate expired at {} by this machine's clock, and an expired one is not renewed: ask the coordinator's operator for a token (`falaj site enroll-token`), then run `falaj-agent enroll --again`",
                instant(now.identity.not_after)
            )));
        }
        Ok(now.dialer.clone())
    }

    /// Takes files that have changed. What cannot be used leaves what was in use before.
    pub fn look(&self) {
        let found = print(&self.config);
        let mut seen = self.seen();
        if !seen.is_due(&found, Instant::now()) {
            return;
        }
        match read(&self.config).and_then(|fresh| self.take(fresh)) {
            Ok(()) => {
                tracing::info!("certificate and trust configuration were read again");
                *seen = Seen { taken: found, failed: None };
            }
            Err(e) => {
                tracing::error!(error = %format!("{e:#}"), "certificate or trust configuration cannot be used; what was before stays in use");
                seen.failed = Some((found, Instant::now()));
            }
        }
    }

    fn take(&self, fresh: Now) -> Result<()> {
        let before = self.now();
        ensure!(
            fresh.identity.spiffe == before.identity.spiffe,
            "the certificate names {}, and this agent is {}: start it again to make it another",
            fresh.identity.spiffe,
            before.identity.spiffe
        );
        ensure!(
            fresh.identity.public_key == before.identity.public_key,
            "the key is another one: start the agent again to sign with it"
        );
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        self.changes.send_modify(|n| *n += 1);
        Ok(())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the files, and has the certificate renewed when it is time, for as long as the connection lasts.
    pub async fn keep(&self, mut coordinator: Coordinator) {
        let mut due = None;
        let mut pause = None;
        loop {
            tokio::time::sleep(GLANCE).await;
            self.look();
            if !self.config.identity.renew || !self.renews.load(Ordering::Relaxed) {
                continue;
            }
            let identity = self.now().identity.clone();
            let now = clock::now().as_millis();
            let (cert, at) =
                *due.get_or_insert_with(|| (identity.cert_sha256, renew_at(&identity)));
            if cert != identity.cert_sha256 {
                (due, pause) = (None, None);
                continue;
            }
            if now < pause.unwrap_or(at) {
                continue;
            }
            match self.renew(&mut coordinator).await {
                Ok(until) => tracing::info!(until, "the certificate was renewed"),
                Err(e) => {
                    let left = u64::try_from(identity.not_after * 1_000 - now).unwrap_or(0) / 1_000;
                    let early = e.downcast_ref().is_some_and(TransportError::is_too_early);
                    let wait = if early {
                        tracing::info!(
                            left_s = left,
                            "the coordinator renews this certificate later"
                        );
                        jittered(ask_after(left))
                    } else {
                        tracing::error!(error = %format!("{e:#}"), left_s = left, "the certificate could not be renewed; trying again");
                        jittered(retry_after(&identity))
                    };
                    pause = Some(now + i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
                }
            }
        }
    }

    /// Has the certificate renewed: until when the new one holds.
    async fn renew(&self, coordinator: &mut Coordinator) -> Result<String> {
        let before = self.now();
        let request = before.credentials.request().context("making a signing request")?;
        let reply = coordinator.renew(request).await?;
        ensure!(reply.chain.len() <= CHAIN_MAX, "{} certificates came", reply.chain.len());
        let chain: Vec<CertificateDer<'static>> =
            reply.chain.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let fresh = before.credentials.renewed(chain.clone())?;
        let identity = fresh.identity()?;
        ensure!(
            identity.spiffe == before.identity.spiffe,
            "the certificate that came names {}",
            identity.spiffe
        );
        ensure!(
            identity.not_after > before.identity.not_after,
            "the certificate that came ends no later than the one that is there"
        );
        let now = clock::now().as_millis() / 1_000;
        ensure!(
            identity.not_after <= now + seconds(LIFETIME_MAX + CLOCKS_APART),
            "the certificate that came lives until {}, longer than any may",
            instant(identity.not_after)
        );
        let trust = self.now().trust.clone();
        let offered = reply.trust.map(|sent| {
            let root = self.config.identity.root.as_deref();
            followed(root, &trust, &sent, coordinator.identity().place())
        });
        let followed = offered.transpose().unwrap_or_else(|e| {
            tracing::error!(error = %format!("{e:#}"), "issuers that the coordinator trusts are not followed; what is trusted here stays");
            None
        });
        let followed = followed.flatten();
        // The coordinator's clock may be a little ahead.
        let at = now.max(identity.not_before.min(now + seconds(CLOCKS_APART)));
        let at = Duration::from_secs(u64::try_from(at).unwrap_or(0));
        let leaf = chain.first().context("no certificate came")?;
        followed
            .as_ref()
            .unwrap_or(&trust)
            .identify_at(leaf, UnixTime::since_unix_epoch(at))
            .context("the certificate that came is by nobody whom this site trusts: look at `identity.trust` and `identity.root`")?;
        if let Some(followed) = followed {
            keep_followed(&self.config, &followed)?;
        }
        let folder = folder(&self.config);
        make(&folder)?;
        write(&folder.join(CERT), pem(&chain).as_bytes())?;
        self.look();
        ensure!(
            self.now().identity.cert_sha256 == identity.cert_sha256,
            "the certificate that came is not the one in use"
        );
        Ok(instant(identity.not_after))
    }
}

/// Whom a site trusts that follows the coordinator to issuers which the root, if there is one, has signed; none when that is
/// nobody else.
///
/// # Errors
/// Why it does not.
pub(crate) fn followed(
    root: Option<&Path>,
    trust: &TrustStore,
    sent: &Trust,
    coordinator: &Place,
) -> Result<Option<TrustStore>> {
    let Some(root) = root else { return Ok(None) };
    ensure!(
        root.exists(),
        "`identity.root` names {}, which is not there: put the root's certificate there, or take the line out",
        root.display()
    );
    let offered = TrustFile::parse(Path::new("what the coordinator sent"), &sent.file)?;
    let issuers: Vec<CertificateDer<'static>> =
        sent.issuers.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let followed = trust.followed_by(&offered, &issuers, &first_certificate(root)?);
    let Some(followed) = followed.map_err(anyhow::Error::msg)? else { return Ok(None) };
    let place = coordinator.to_string();
    ensure!(
        followed.issuers().iter().any(|(_, entry)| entry.places.contains(&place)),
        "nobody in it vouches for {place}, where the coordinator is that sent it"
    );
    Ok(Some(followed))
}

/// Keeps issuers that are followed, in the state folder.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn keep_followed(config: &Config, followed: &TrustStore) -> Result<()> {
    let folder = folder(config);
    make(&folder)?;
    // Without this line the rest counts for nothing, and so it comes last.
    write(&folder.join(FOLLOWS), b"")?;
    write_trust(&folder.join(TRUST), followed)?;
    let follows = digest_of(&config.identity.trust);
    write(&folder.join(FOLLOWS), follows.to_string().as_bytes())?;
    tracing::info!(
        issuers = followed.issuers().len(),
        "the coordinator's issuers have changed; the root has signed them"
    );
    Ok(())
}

/// Takes a renewed certificate out of the state folder: a site that enrols has another.
///
/// # Errors
/// When it cannot be removed.
pub(crate) fn forget_renewed(config: &Config) -> Result<()> {
    let renewed = folder(config).join(CERT);
    match fs::remove_file(&renewed) {
        Ok(()) => sync(&folder(config)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("removing {}", renewed.display())),
    }
}

/// Certificate and key that are in use when an agent with this configuration starts.
///
/// # Errors
/// What is missing or wrong, where, and what to do.
pub fn credentials(config: &Config) -> Result<Credentials> {
    let files = &config.identity;
    let own = Credentials::load(&files.cert, &files.key)?;
    let renewed = folder(config).join(CERT);
    if !renewed.exists() {
        return Ok(own);
    }
    let other = match Credentials::load(&renewed, &files.key) {
        Ok(other) => other,
        Err(e) => {
            // It is about a key that was replaced since, or was never whole.
            tracing::warn!(error = %e, "the renewed certificate is not used");
            return Ok(own);
        }
    };
    let (mine, its) = (own.identity()?, other.identity()?);
    Ok(if its.spiffe == mine.spiffe && its.not_after > mine.not_after { other } else { own })
}

/// Whom an agent with this configuration trusts when it starts.
///
/// # Errors
/// What is missing or wrong, where, and what to do.
pub fn trust(config: &Config) -> Result<TrustStore> {
    let configured = TrustStore::load(&config.identity.trust)?;
    let folder = folder(config);
    let follows = fs::read_to_string(folder.join(FOLLOWS)).unwrap_or_default();
    // Whoever changes the configured one has the last word.
    if config.identity.root.is_none() || follows != digest_of(&config.identity.trust).to_string() {
        return Ok(configured);
    }
    match TrustStore::load(&folder.join(TRUST)) {
        Ok(followed) => Ok(followed),
        Err(e) => {
            tracing::warn!(error = %e, "issuers that were followed cannot be used");
            Ok(configured)
        }
    }
}

fn read(config: &Config) -> Result<Now> {
    let credentials = credentials(config)?;
    let identity = credentials.identity()?;
    let trust = trust(config)?;
    let places = &config.policy.coordinator_places;
    let dialer = Dialer::new(&config.coordinator.address, &credentials, &trust, places)?;
    Ok(Now { credentials, identity, trust, dialer })
}

fn folder(config: &Config) -> PathBuf {
    config.state.dir.join(FOLDER)
}

/// What tells one content of the files from another.
fn print(config: &Config) -> Digest {
    let (files, folder) = (&config.identity, folder(config));
    let mut paths = vec![files.cert.clone(), folder.join(CERT)];
    paths.extend(files.key.file().map(Path::to_owned));
    for trust in [&files.trust, &folder.join(TRUST)] {
        let file = bounded(trust).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let file = file.and_then(|text| TrustFile::parse(trust, &text).ok());
        let issuers = file.into_iter().flat_map(|file| file.issuers);
        let beside = trust.parent().unwrap_or(Path::new(".")).to_owned();
        paths.extend(issuers.map(|issuer| beside.join(issuer.cert)));
        paths.push(trust.clone());
    }
    paths.push(folder.join(FOLLOWS));
    paths.extend(files.root.clone());
    let digests: Vec<[u8; 32]> = paths.iter().map(|path| digest_of(path).0).collect();
    Digest::of(&digests.concat())
}

/// SHA-256 of a file; zeros for one that is not there.
fn digest_of(path: &Path) -> Digest {
    bounded(path).map_or(Digest([0; 32]), |bytes| Digest::of(&bytes))
}

fn bounded(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("{} is longer than {FILE_BYTES_MAX} bytes", path.display());
    }
    Ok(bytes)
}

/// Writes a trust configuration and, in a folder beside it, the certificates of its issuers.
///
/// # Errors
/// When a file cannot be written.
pub fn write_trust(path: &Path, trust: &TrustStore) -> Result<()> {
    let beside = path.parent().unwrap_or(Path::new("."));
    make(&beside.join("issuers"))?;
    let mut file = trust.file();
    for (IssuerEntry { cert, spki_sha256, .. }, (der, _)) in
        file.issuers.iter_mut().zip(trust.issuers())
    {
        let short = spki_sha256.get(..16).unwrap_or(spki_sha256);
        *cert = PathBuf::from("issuers").join(format!("{short}.pem"));
        write(&beside.join(&*cert), pem(std::slice::from_ref(der)).as_bytes())?;
    }
    write(path, toml::to_string(&file)?.as_bytes())
}

/// Makes a folder.
///
/// # Errors
/// When it cannot be made.
pub fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

/// Puts a whole file in the place of the one that is there: it is the old one or the new one, whenever the power fails.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let written = || -> std::io::Result<()> {
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    written().with_context(|| format!("writing {}", path.display()))?;
    sync(above(path))
}

/// The folder that a file lies in.
pub(crate) fn above(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Has what became of a folder's files be on the disk.
///
/// # Errors
/// When that cannot be.
pub(crate) fn sync(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("writing {}", folder.display()))
}

/// Certificates in PEM form.
#[must_use]
pub fn pem(chain: &[CertificateDer<'_>]) -> String {
    falaj_certs::request::pem("CERTIFICATE", chain.iter().map(AsRef::as_ref))
}

/// When a certificate is renewed, in milliseconds since the Unix epoch: after two thirds of its life at the latest, and a
/// little before, so that those who were started together do not come together.
fn renew_at(identity: &Identity) -> i64 {
    let life = u64::try_from(identity.not_after - identity.not_before).unwrap_or(0);
    let life = Duration::from_secs(life);
    // Of what is jittered at least the half is waited.
    let after = life / 2 + jittered(life / 6);
    identity.not_before * 1_000 + i64::try_from(after.as_millis()).unwrap_or(i64::MAX)
}

/// How long to wait before another attempt: a certificate is tried for several times in what is left of its life.
fn retry_after(identity: &Identity) -> Duration {
    let life = u64::try_from(identity.not_after - identity.not_before).unwrap_or(0);
    Duration::from_secs(life / 24).clamp(PAUSE_SHORTEST, PAUSE_LONGEST)
}

/// How long to wait when it was too early: the less is left, the sooner it may be time.
fn ask_after(left_s: u64) -> Duration {
    Duration::from_secs(left_s / 12).clamp(PAUSE_SHORTEST, PAUSE_EARLY)
}

fn seconds(of: Duration) -> i64 {
    i64::try_from(of.as_secs()).unwrap_or(i64::MAX)
}

fn instant(seconds: i64) -> String {
    falaj_core::time::Timestamp::from_millis(seconds.saturating_mul(1_000)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_between_seven_and_eight_twelfths_of_its_life() {
        let life = 86_400;
        let identity = Identity {
            spiffe: "spiffe://falaj.test/ae-on/ae-az/site/hospital-1".parse().expect("an id"),
            cert_sha256: Digest([0; 32]),
            public_key: [0; 32],
            not_before: 1_000_000,
            not_after: 1_000_000 + life,
            groups: Vec::new(),
        };
        let at: Vec<i64> = (0..200).map(|_| renew_at(&identity) / 1_000 - 1_000_000).collect();
        assert!(at.iter().all(|s| (life * 7 / 12..=life * 2 / 3).contains(s)), "{at:?}");
        assert!(at.iter().any(|s| *s != at[0]), "nobody else comes at another time");
        assert_eq!(retry_after(&identity), Duration::from_hours(1));
    }

    /// A certificate of 90 days that a coordinator which grants a day does not renew before its last one is asked for less than
    /// a hundred times, and not a thousand.
    #[test]
    fn who_is_too_early_does_not_come_every_hour() {
        let (mut left, mut asked) = (30 * 86_400, 0);
        while left > 86_400 {
            left -= ask_after(left).as_secs() / 2;
            asked += 1;
        }
        assert!((30..100).contains(&asked) && left > 80_000, "{asked} times, {left} s left");
        assert_eq!(ask_after(0), PAUSE_SHORTEST);
    }

    #[test]
    fn files_that_could_not_be_used_are_tried_again_though_they_stay_as_they_are() {
        let (then, [before, now, later]) =
            (Instant::now(), ["before", "now", "later"].map(|name| Digest::of(name.as_bytes())));
        let mut seen = Seen { taken: before, failed: None };
        assert!(!seen.is_due(&before, then) && seen.is_due(&now, then));
        seen.failed = Some((now, then));
        assert!(!seen.is_due(&now, then + PAUSE_FILES / 2), "not every second");
        assert!(seen.is_due(&now, then + PAUSE_FILES));
        assert!(seen.is_due(&later, then), "others at once");
    }
}
