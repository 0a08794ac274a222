//! Whom the coordinator lets in, as its files and its log say now: its own certificate, the trust configuration, issuers'
//! revocation lists, a list of those denied at once, which networks belong to which place, and what operators have revoked.
//!
//! Files are looked at every second, and each is taken by itself, revocation lists issuer by issuer: one that is broken leaves
//! what it said before in force, and the others are taken all the same. Whoever is connected is asked about again on every request, and when anything has
//! changed: who may be here no longer is told so, logged, and cut off ([`Trusted::watch`]). Whether a certificate is on a
//! list is asked of the TLS library; nothing here reads a list by itself.

mod files;
mod standing;
#[cfg(test)]
mod tests;

pub use standing::Standing;

use crate::{
    accept::Peer,
    clock,
    config::{EvidenceConfig, IdentityConfig, RevocationConfig},
    engine::Engine,
    metrics::Metrics,
    policy::{Action, Decision, Party, PolicyEngine},
    revocations::keys_of,
    store::writer::{Change, Commit},
};
use anyhow::{Context as _, Result, ensure};
use arc_swap::ArcSwap;
use falaj_certs::{
    identity::Identity,
    revocation::Crls,
    tls::{
        Credentials, CredentialsError, anonymous_server_config, client_verifier, server_config,
        tls_reason,
    },
    tpm,
    trust::{TrustStore, spki_sha256},
};
use falaj_core::{
    audit::{Draft, Entry, Kind},
    evidence::Evidence,
    id::{Digest, Place, RoundId, SiteId, SpiffeId},
    networks::Networks,
    tpm::{Declared, Quote},
};
use falaj_proto::problem::{Code, Problem};
use files::{Files, Look, Seen, Wrong, own_certificate};
use futures_util::StreamExt as _;
use rustls::{ServerConfig, server::danger::ClientCertVerifier};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often files are looked at, and who is connected.
const GLANCE: Duration = Duration::from_secs(1);
/// Who may be denied by the file, and by operators, at most.
pub const DENIED_MAX: usize = 100_000;

/// Why somebody may not stay whom policy lets in no longer.
const POLICY: &str = "policy";
/// The alert of a certificate in use from two networks at once.
const ELSEWHERE: &str = "certificate_in_two_networks";
/// Such alerts that wait to be logged.
const ELSEWHERE_MAX: usize = 1_024;

/// Nothing that was checked is believed for longer than this, in seconds, whatever nobody has thought of.
const GOOD_S: i64 = 60;

/// Connections that are ended side by side.
const ENDS: usize = 256;

/// Whom a revocation is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Whoever has this identity, by whichever certificate.
    Identity(SpiffeId),
    /// One certificate, by its SHA-256.
    Certificate(Digest),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(id) => id.fmt(f),
            Self::Certificate(digest) => digest.fmt(f),
        }
    }
}

/// A text that names neither an identity nor a certificate.
#[derive(Debug, thiserror::Error)]
#[error("whom to deny is a SPIFFE ID, or the 64 hexadecimal digits of a certificate's SHA-256")]
pub struct NoSubject;

impl FromStr for Subject {
    type Err = NoSubject;
    fn from_str(text: &str) -> Result<Self, NoSubject> {
        let identity = text.parse().map(Self::Identity);
        identity.or_else(|_| text.parse().map(Self::Certificate)).map_err(|_| NoSubject)
    }
}

/// Which listener a connection comes in by.
#[derive(Clone, Copy, Debug)]
pub enum Door {
    /// For agents.
    Agents,
    /// For operators.
    Operators,
}

/// Why somebody is not let in, or may not stay.
#[derive(Clone, Debug)]
pub struct Why {
    /// One stable word for the log.
    pub reason: &'static str,
    /// What whoever it is reads.
    pub detail: String,
    /// What policy decided, over which evidence, where it was policy's to decide.
    pub decided: Option<Box<(Decision, Evidence)>>,
}

impl Why {
    const fn new(reason: &'static str, detail: String) -> Self {
        Self { reason, detail, decided: None }
    }

    /// Policy lets them stay no longer.
    fn policy(decision: Decision, evidence: Evidence) -> Self {
        let detail = decision.reason.clone();
        Self { reason: POLICY, detail, decided: Some(Box::new((decision, evidence))) }
    }

    /// What they are told.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let code = if self.reason == POLICY { Code::Denied } else { Code::Revoked };
        code.because(&self.detail)
    }

    /// Whether what they sent before counts all the same: nobody took their certificate away.
    fn is_pending_kept(&self) -> bool {
        self.reason == POLICY || is_of_time(self.reason)
    }
}

/// Which networks belong to which place, and the digests of the lists that say so.
type Lists = (Networks, Vec<Digest>);

/// The TPMs that are declared for sites, and the digest of the file that says so.
type Tpms = (BTreeMap<SiteId, Declared>, Digest);

/// What the files say that are in force.
pub struct InForce {
    credentials: Arc<Credentials>,
    trust: TrustStore,
    trust_sha256: Digest,
    crls: Crls,
    denied: Arc<BTreeSet<Subject>>,
    networks: Option<Arc<Lists>>,
    tpms: Option<Arc<Tpms>>,
    /// The coordinator itself, for whom quotes are made.
    own: SpiffeId,
    clients: Arc<dyn ClientCertVerifier>,
    agents: Arc<ServerConfig>,
    operators: Arc<ServerConfig>,
    /// None while no trusted issuer vouches for the coordinator's own certificate.
    anonymous: Option<Arc<ServerConfig>>,
}

impl InForce {
    /// Whom the federation trusts.
    #[must_use]
    pub const fn trust(&self) -> &TrustStore {
        &self.trust
    }

    /// TLS for a listener.
    #[must_use]
    pub fn tls(&self, door: Door) -> Arc<ServerConfig> {
        match door {
            Door::Agents => self.agents.clone(),
            Door::Operators => self.operators.clone(),
        }
    }

    /// TLS for those who have no certificate yet.
    #[must_use]
    pub fn anonymous_tls(&self) -> Option<Arc<ServerConfig>> {
        self.anonymous.clone()
    }

    /// SHA-256 of the key of the issuer that vouches for the coordinator's own certificate.
    #[must_use]
    pub fn own_issuer(&self) -> Option<Digest> {
        let own = CertificateDer::from(self.credentials.certificate());
        spki_sha256(&self.trust.issuer_of(&own)?).ok()
    }

    /// Whether a certificate is still good by everything but names, at `now`.
    fn check(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Why> {
        let Some((leaf, others)) = chain.split_first() else { return Ok(()) };
        self.clients.verify_client_cert(leaf, others, now).map_err(|e| {
            Why::new(tls_reason(&e), format!("this certificate is not trusted any more: {e}"))
        })?;
        let known = self.trust.identify(chain);
        known.map_err(|e| Why::new(e.reason(), e.to_string()))?;
        Ok(())
    }

    /// The evidence with what is known now of the source address of somebody whom a certificate places in `place`.
    #[must_use]
    pub fn located(
        &self,
        evidence: Evidence,
        place: &Place,
        address: Option<SocketAddr>,
    ) -> Evidence {
        let networks = self.networks.as_ref().map(|networks| &networks.0);
        let lies = networks.zip(address).and_then(|(known, at)| known.place_of(at.ip()));
        Evidence {
            address_known: networks.is_some(),
            address_in_place: lies == Some(place),
            ..evidence
        }
    }

    /// The best that can be known of the connection of an operator: that they come from the place that their certificate names,
    /// where it is known which networks belong to it.
    #[must_use]
    pub fn best_evidence(&self) -> Evidence {
        let networks = self.networks.is_some();
        Evidence { address_known: networks, address_in_place: networks, ..Evidence::default() }
    }

    /// Whether a TPM is declared for a site.
    #[must_use]
    pub fn is_tpm_declared(&self, site: &SiteId) -> bool {
        self.tpms.as_ref().is_some_and(|tpms| tpms.0.contains_key(site))
    }

    /// The evidence with what the newest quote of somebody is worth by what is declared now.
    #[must_use]
    pub fn attested(
        &self,
        evidence: Evidence,
        identity: &Identity,
        quote: Option<Quote>,
    ) -> Evidence {
        let site = SiteId::try_from(identity.spiffe.clone()).ok();
        let declared = self.tpms.as_ref().zip(site).and_then(|(tpms, site)| tpms.0.get(&site));
        let judge = |declared: &Declared| {
            tpm::judged(declared.clone(), quote, &identity.public_key, &self.own)
        };
        Evidence { tpm: declared.map(judge), ..evidence }
    }

    /// Until when a check holds if nothing changes, in seconds since the Unix epoch.
    fn good_until(&self, identity: &Identity) -> i64 {
        let now = seconds();
        // A list that is too old already was asked, and whom it lets in no longer is known.
        let due = self.crls.dues().map(|(_, due)| due).filter(|due| *due > now).min();
        identity.not_after.min(due.unwrap_or(i64::MAX)).min(now + GOOD_S)
    }

    /// What an entry says of it.
    fn tell(&self, draft: Draft) -> Draft {
        let draft = draft
            .digest("trust_sha256", &self.trust_sha256)
            .digest("cert_sha256", &Digest::of(self.credentials.certificate()));
        let draft = match &self.networks {
            Some(networks) => draft.digests("networks_sha256", &networks.1),
            None => draft,
        };
        let draft = match &self.tpms {
            Some(tpms) => draft.digest("tpms_sha256", &tpms.1),
            None => draft,
        };
        if self.crls.is_empty() {
            draft
        } else {
            draft.digests("crls_sha256", &self.crls.digests())
        }
    }
}

/// Whether somebody is out because time has passed, and nobody took their certificate away.
fn is_of_time(reason: &str) -> bool {
    matches!(reason, "expired" | "issuer_expired" | "revocation_list_expired")
}

/// What a look at the files has found.
#[derive(Default)]
struct Found {
    changed: Vec<&'static str>,
    alerts: Vec<(&'static str, String)>,
    rows: Vec<Change>,
    fresh: Option<InForce>,
}

/// Whom operators have revoked.
#[derive(Default)]
struct Denied {
    subjects: BTreeSet<Subject>,
    /// The keys of certificates among them: a renewed certificate is about the same key, and no better.
    keys: BTreeSet<[u8; 32]>,
}

/// Who is connected.
#[derive(Default)]
struct Peers {
    serial: u64,
    by_serial: BTreeMap<u64, Weak<Peer>>,
    by_holder: BTreeMap<Digest, BTreeSet<u64>>,
    /// Those who came while their certificate, or another one of the same holder, was in use from another network.
    elsewhere: Vec<Arc<Peer>>,
}

/// The keys of certificates on the list in the deny file, and the list.
#[derive(Default)]
struct Listed {
    list: Option<Arc<BTreeSet<Subject>>>,
    keys: BTreeSet<[u8; 32]>,
}

struct Inner {
    now: ArcSwap<InForce>,
    /// Whom operators have revoked, as the log says.
    denied: ArcSwap<Denied>,
    /// Whose keys in the deny file were looked up.
    listed: ArcSwap<Listed>,
    /// Counts up with every change of these two, after it.
    generation: AtomicU64,
    files: Mutex<Files>,
    peers: Mutex<Peers>,
    changed: Notify,
    pending_kept: bool,
    /// Who decides whether somebody may be here.
    policy: OnceLock<PolicyEngine>,
    /// For which generation the certificates of counted updates were looked at.
    looked: AtomicU64,
}

/// Knows whom the coordinator lets in. A cheap handle.
#[derive(Clone)]
pub struct Trusted(Arc<Inner>);

impl fmt::Debug for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trusted({:?})", self.now().trust)
    }
}

impl Trusted {
    /// Reads every file that a configuration names. Whatever is wrong with one stops the start.
    ///
    /// # Errors
    /// What is wrong, where, and what to do.
    pub fn open(
        identity: &IdentityConfig,
        revocation: &RevocationConfig,
        evidence: &EvidenceConfig,
    ) -> Result<Self> {
        let mut files = Files {
            identity: identity.clone(),
            revocation: revocation.clone(),
            evidence: evidence.clone(),
            certificate: Seen::default(),
            trust: Seen::default(),
            crls: None,
            crls_wrong: Wrong::default(),
            deny: Seen::default(),
            networks: Seen::default(),
            tpms: Seen::default(),
            overdue: BTreeSet::new(),
            kept: None,
        };
        let credentials = Arc::new(Credentials::load(&identity.cert, &identity.key)?);
        files.certificate.taken = Some(files.print_certificate());
        let (trust, trust_sha256) = files.read_trust(None)?;
        files.trust.taken = Some(files.print_trust());
        let crls = files.read_crls(&trust)?;
        files.crls = Some(files.print_crls(&trust_sha256));
        let denied = Arc::new(files.read_denied(trust.trust_domain())?);
        files.deny.taken = Some(files.print_denied());
        let networks = files.read_networks()?.map(Arc::new);
        files.networks.taken = Some(files.print_networks());
        let tpms = files.read_tpms(trust.trust_domain())?.map(Arc::new);
        files.tpms.taken = Some(files.print_tpms());
        let now = in_force((credentials, trust, trust_sha256, crls), denied, (networks, tpms))?;
        Ok(Self(Arc::new(Inner {
            now: ArcSwap::from_pointee(now),
            denied: ArcSwap::default(),
            listed: ArcSwap::default(),
            generation: AtomicU64::new(0),
            files: Mutex::new(files),
            peers: Mutex::default(),
            changed: Notify::new(),
            pending_kept: revocation.pending.is_kept(),
            policy: OnceLock::new(),
            looked: AtomicU64::new(u64::MAX),
        })))
    }

    /// Keeps the newest revocation list of each issuer in `dir`, so that none is put back while nobody looks.
    ///
    /// # Errors
    /// When a list in force is older than the one that was kept, or the folder cannot be used.
    pub fn keep_lists(&self, dir: PathBuf) -> Result<()> {
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let mut files = self.files();
        files.kept = Some(dir);
        let now = self.now();
        now.crls.follow(&files.read_kept()?)?;
        files.keep(&now.crls)
    }

    /// What is in force now.
    #[must_use]
    pub fn now(&self) -> Arc<InForce> {
        self.0.now.load_full()
    }

    /// Whom the coordinator's own certificate names.
    ///
    /// # Errors
    /// When it names nobody.
    pub fn own_identity(&self) -> Result<Identity> {
        Ok(self.now().credentials.identity()?)
    }

    /// What the first entry of a run says of it, and the rows that belong to it.
    #[must_use]
    pub fn started(&self, draft: Draft) -> (Draft, Vec<Change>) {
        let now = self.now();
        let rows = self.files().rows(&now);
        (now.tell(draft), rows)
    }

    /// Whether policy can decide over what the files say.
    ///
    /// # Errors
    /// When TPMs are declared, and the policies are of a time before them: no rule would ask for a quote.
    pub fn check_policy(&self, policy: &PolicyEngine) -> Result<()> {
        ensure!(
            self.now().tpms.is_none() || policy.know_tpms(),
            "`evidence.tpms` is set, and the policies know of no TPM: take `tpm_declared`, `tpm` and the type `Quoted` into coordinator.cedarschema, and rules as RES-016 and RES-017 into coordinator.cedar"
        );
        Ok(())
    }

    /// Has policy decide, too, whether whoever is connected may stay. Said once; until then it is not asked.
    pub fn decided_by(&self, policy: PolicyEngine) {
        // The first one stays.
        let _ = self.0.policy.set(policy);
    }

    /// Denies whom operators have revoked, as the log says, from now on; `keys` are those of certificates among them, and
    /// when they are not known those that were denied before.
    pub fn deny(&self, subjects: BTreeSet<Subject>, keys: Option<BTreeSet<[u8; 32]>>) {
        let keys = keys.unwrap_or_else(|| self.0.denied.load().keys.clone());
        self.0.denied.store(Arc::new(Denied { subjects, keys }));
        self.0.generation.fetch_add(1, Ordering::Release);
        self.0.changed.notify_one();
    }

    /// Tells what is in force from what came before and what follows.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// How somebody stands who is about to be let in, and whose handshake was done under what was in force in this generation.
    ///
    /// # Errors
    /// [`Why`], when they are denied by name: the handshake asks for all else.
    pub fn standing(&self, identity: &Identity, generation: u64) -> Result<Standing, Why> {
        self.check_denied(&self.now(), identity)?;
        let standing = Standing::default();
        standing.renew(generation, self.now().good_until(identity));
        Ok(standing)
    }

    fn check_denied(&self, now: &InForce, identity: &Identity) -> Result<(), Why> {
        let subjects = [
            Subject::Identity(identity.spiffe.clone()),
            Subject::Certificate(identity.cert_sha256),
        ];
        if subjects.iter().any(|subject| self.is_denied(now, subject))
            || self.is_denied_key(&identity.public_key)
        {
            let detail = "this certificate was revoked: ask the coordinator's operator".into();
            return Err(Why::new("revoked", detail));
        }
        Ok(())
    }

    /// Denies the keys of certificates on the list in the deny file, too.
    async fn deny_listed_keys(&self, engine: &Engine) -> Result<()> {
        let list = self.now().denied.clone();
        if self.0.listed.load().list.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &list)) {
            return Ok(());
        }
        let keys = keys_of(engine, list.iter()).await?;
        self.0.listed.store(Arc::new(Listed { list: Some(list), keys }));
        self.0.generation.fetch_add(1, Ordering::Release);
        self.0.changed.notify_one();
        Ok(())
    }

    fn is_denied_key(&self, key: &[u8; 32]) -> bool {
        self.0.denied.load().keys.contains(key) || self.0.listed.load().keys.contains(key)
    }

    fn is_denied(&self, now: &InForce, subject: &Subject) -> bool {
        self.0.denied.load().subjects.contains(subject) || now.denied.contains(subject)
    }

    /// Whether an identity was revoked, whatever its certificate.
    #[must_use]
    pub fn is_revoked(&self, id: &SpiffeId) -> bool {
        self.is_denied(&self.now(), &Subject::Identity(id.clone()))
    }

    /// Takes up somebody who has come, be they let in or not; the number is theirs until [`Self::leave`]. Whether their
    /// certificate is in use from another network at this moment is noticed here.
    pub fn join(&self, peer: &Arc<Peer>) -> u64 {
        let mut peers = self.peers();
        peers.serial += 1;
        let serial = peers.serial;
        if let Some(holder) = peer.holder {
            let others = peers.by_holder.get(&holder).into_iter().flatten();
            let others = others.filter_map(|other| peers.by_serial.get(other)?.upgrade());
            let here = network_of(peer);
            let mut far = others.filter(|other| network_of(other) != here);
            if far.next().is_some() && peers.elsewhere.len() < ELSEWHERE_MAX {
                peers.elsewhere.push(peer.clone());
                self.0.changed.notify_one();
            }
            peers.by_holder.entry(holder).or_default().insert(serial);
        }
        peers.by_serial.insert(serial, Arc::downgrade(peer));
        serial
    }

    /// Somebody's connection is gone.
    pub fn leave(&self, serial: u64, peer: &Peer) {
        let mut peers = self.peers();
        peers.by_serial.remove(&serial);
        if let Some(holder) = peer.holder
            && let Some(serials) = peers.by_holder.get_mut(&holder)
        {
            serials.remove(&serial);
            if serials.is_empty() {
                peers.by_holder.remove(&holder);
            }
        }
    }

    /// Whether nobody of this name, or with this key, may be let in.
    ///
    /// # Errors
    /// [`Why`].
    pub fn check_name(&self, who: &SpiffeId, key: &[u8; 32]) -> Result<(), Why> {
        let now = self.now();
        if self.is_denied(&now, &Subject::Identity(who.clone())) || self.is_denied_key(key) {
            let what = who.role();
            let detail =
                format!("this {what}, or its key, was revoked: ask the coordinator's operator");
            return Err(Why::new("revoked", detail));
        }
        Ok(())
    }

    /// Whether somebody who was let in may still be here: asked afresh when anything has changed since it was asked last.
    ///
    /// # Errors
    /// [`Why`].
    pub fn check(&self, peer: &Peer, identity: &Identity) -> Result<(), Why> {
        // Before what it counts: what changes meanwhile is asked about next time.
        let generation = self.0.generation.load(Ordering::Acquire);
        let at = now_unix();
        if peer.standing.is_good(generation, seconds()) {
            return Ok(());
        }
        let now = self.now();
        let denied = self.check_denied(&now, identity);
        let checked = denied
            .and_then(|()| now.check(&peer.chain, at))
            .and_then(|()| self.decide(&now, peer, identity));
        match &checked {
            Ok(()) => peer.standing.renew(generation, now.good_until(identity)),
            Err(_) => self.0.changed.notify_one(),
        }
        checked
    }

    /// Whether policy still lets somebody be here, by what is known of their connection now.
    fn decide(&self, now: &InForce, peer: &Peer, identity: &Identity) -> Result<(), Why> {
        let Some(policy) = self.0.policy.get() else { return Ok(()) };
        let mut evidence = peer.known.evidence();
        let quote = evidence.tpm.take().and_then(|tpm| tpm.quote);
        let evidence = now.located(evidence, identity.spiffe.place(), address_of(peer));
        let evidence = now.attested(evidence, identity, quote);
        let who = Party { id: &identity.spiffe, roles: peer.actor.roles };
        let decision = policy.decide_connect(who, &evidence);
        if decision.allow { Ok(()) } else { Err(Why::policy(decision, evidence)) }
    }

    /// Takes more that has been found out about a connection, and the newest quote of its TPM, and decides over it: the decision, for
    /// the log, if they may stay. Whoever may not is cut off.
    pub async fn know(
        &self,
        engine: &Engine,
        peer: &Arc<Peer>,
        quote: Option<Quote>,
        more: impl FnOnce(Evidence) -> Evidence,
    ) -> Option<(Decision, Evidence)> {
        let identity = peer.admitted.as_ref().ok().filter(|_| !peer.standing.is_lost())?;
        let place = identity.spiffe.place();
        let now = self.now();
        let evidence = more(now.located(peer.known.evidence(), place, address_of(peer)));
        let evidence = now.attested(evidence, identity, quote);
        if let Some(tpm) = &evidence.tpm {
            engine.parts().metrics.quote(tpm.outcome());
        }
        let who = Party { id: &identity.spiffe, roles: peer.actor.roles };
        let decision = engine.parts().policy.decide_connect(who, &evidence);
        if decision.allow {
            peer.known.take(evidence.clone());
            return Some((decision, evidence));
        }
        if peer.standing.lose() {
            self.end(engine, peer.clone(), Why::policy(decision, evidence)).await;
        }
        None
    }

    /// Looks at the files and at who is connected until shutdown.
    pub async fn watch(self, engine: Engine, shutdown: CancellationToken) {
        let mut decided_by = engine.parts().policy.digest();
        let mut glance = tokio::time::interval(GLANCE);
        glance.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.0.changed.notified() => {}
                _ = glance.tick() => {
                    self.glance(&engine).await;
                    let policy = engine.parts().policy.digest();
                    if decided_by != policy {
                        decided_by = policy;
                        self.0.generation.fetch_add(1, Ordering::Release);
                    }
                    if let Err(e) = self.withdraw_absent(&engine).await {
                        tracing::error!(error = %format!("{e:#}"), "whose updates are pending cannot be read");
                    }
                }
            }
            self.sweep(&engine).await;
            self.tell_ends(&engine.parts().metrics);
        }
    }

    /// Tells who watches what is over next: our certificate, an issuer, a connected site's certificate, a revocation list.
    fn tell_ends(&self, metrics: &Metrics) {
        let now = self.now();
        let own = now.credentials.identity().ok().map(|own| own.not_after);
        let peers: Vec<Arc<Peer>> =
            self.peers().by_serial.values().filter_map(Weak::upgrade).collect();
        let sites = peers.iter().filter(|peer| !peer.standing.is_lost());
        let sites = sites.filter_map(|peer| peer.admitted.as_ref().ok());
        let sites = sites.filter(|identity| SiteId::try_from(identity.spiffe.clone()).is_ok());
        metrics.ends("coordinator", own);
        metrics.ends("issuer", now.trust.first_end(seconds()));
        metrics.ends("site", sites.map(|identity| identity.not_after).min());
        metrics.ends("revocation_list", now.crls.first_due().map(|(_, due)| due));
    }

    /// Takes what has changed in the files, and logs it.
    async fn glance(&self, engine: &Engine) {
        let this = self.clone();
        let found = tokio::task::spawn_blocking(move || this.look()).await;
        let Ok(Found { changed, alerts, rows, fresh }) = found else {
            tracing::error!("the look at the files that say who is trusted broke off");
            return;
        };
        let parts = engine.parts();
        for (alert, detail) in alerts {
            tracing::error!(alert, detail, "what was in force stays so");
            parts.metrics.alert(alert);
            let draft = Draft::new(Kind::AlertRaised).text("alert", alert).text("detail", &detail);
            if let Err(e) = parts.writer.record(vec![draft]).await {
                tracing::error!(error = %e, alert, "an alert could not be logged");
            }
        }
        let Some(fresh) = fresh else { return };
        let changed = changed.join(", ");
        let entry = fresh.tell(Draft::new(Kind::TrustLoaded).text("changed", &changed));
        // In force before it is logged: a log that is full keeps nobody in whom a list names.
        self.0.now.store(Arc::new(fresh));
        self.0.generation.fetch_add(1, Ordering::Release);
        tracing::info!(changed, "whom the coordinator trusts was read again");
        let commit = Commit { rows, entries: vec![entry], round: None };
        if let Err(e) = parts.writer.commit(commit).await {
            tracing::error!(error = %e, "what is trusted from now on could not be logged");
        }
    }

    /// What has changed in the files. Blocks.
    fn look(&self) -> Found {
        let mut files = self.files();
        let now = self.now();
        let mut found = Found::default();
        let mut certificate = Arc::clone(&now.credentials);
        let (mut trust, mut trust_sha256) = (now.trust.clone(), now.trust_sha256);
        let mut crls = now.crls.clone();
        let mut denied = now.denied.clone();
        let (mut networks, mut tpms) = (now.networks.clone(), now.tpms.clone());
        let print = files.print_certificate();
        let taken = {
            let Files { identity, certificate, .. } = &mut *files;
            certificate.look(print, || own_certificate(identity, &now.credentials))
        };
        note(&mut found, "certificate", "certificate_not_taken", taken, |c| certificate = c);
        let print = files.print_trust();
        let mut seen = std::mem::take(&mut files.trust);
        let taken = seen.look(print, || files.read_trust(Some(&now.trust)));
        files.trust = seen;
        note(&mut found, "trust", "trust_not_taken", taken, |t| (trust, trust_sha256) = t);
        let (taken, wrong) = files.look_at_crls((&trust, &trust_sha256), &now.crls);
        found.alerts.extend(wrong.into_iter().map(|what| ("revocation_list_not_taken", what)));
        if let Some(fresh) = taken {
            found.changed.push("revocation lists");
            crls = fresh;
        }
        let print = files.print_denied();
        let mut seen = std::mem::take(&mut files.deny);
        let second = seen.is_second_look(print);
        let taken = seen.look(print, || {
            let fresh = files.read_denied(trust.trust_domain())?;
            // Of a file that is being written only the beginning may be there.
            ensure!(
                second || fresh.is_superset(&now.denied),
                "somebody is denied no longer: that is taken when it is seen twice"
            );
            Ok(fresh)
        });
        files.deny = seen;
        note(&mut found, "deny list", "deny_list_not_taken", taken, |d| denied = Arc::new(d));
        let print = files.print_networks();
        let mut seen = std::mem::take(&mut files.networks);
        let second = seen.is_second_look(print);
        let taken = seen.look(print, || {
            let fresh = files.read_networks()?;
            // Of a list that is being written only the beginning may be there, and it would put out all who are in the rest.
            ensure!(
                second,
                "the lists of networks have changed: that is taken when it is seen twice"
            );
            Ok(fresh)
        });
        files.networks = seen;
        note(&mut found, "networks", "networks_not_taken", taken, |n| networks = n.map(Arc::new));
        let taken = files.look_at_tpms(trust.trust_domain());
        note(&mut found, "TPMs", "tpms_not_taken", taken, |t| tpms = t.map(Arc::new));
        let overdue = crls.dues().filter(|(_, due)| *due <= seconds());
        let overdue: BTreeSet<_> = overdue.map(|(path, due)| (path.to_owned(), due)).collect();
        for (path, _) in overdue.difference(&files.overdue) {
            let what = format!(
                "{}: the next one was due, and nobody whom it could name is let in until one is there",
                path.display()
            );
            found.alerts.push(("revocation_list_expired", what));
        }
        files.overdue = overdue;
        if found.changed.is_empty() {
            return found;
        }
        match in_force((certificate, trust, trust_sha256, crls), denied, (networks, tpms)) {
            Ok(fresh) => {
                found.rows = files.rows(&fresh);
                if let Err(e) = files.keep(&fresh.crls) {
                    // They are in force all the same.
                    let e = format!("{e:#}");
                    tracing::error!(error = e, "revocation lists cannot be kept over a restart");
                }
                found.fresh = Some(fresh);
            }
            Err(e) => found.alerts.push(("trust_not_taken", format!("{e:#}"))),
        }
        found
    }

    /// Ends the connections of those who may be here no longer.
    async fn sweep(&self, engine: &Engine) {
        self.tell_elsewhere(engine).await;
        let peers: Vec<Arc<Peer>> =
            self.peers().by_serial.values().filter_map(Weak::upgrade).collect();
        let this = self.clone();
        let gone = tokio::task::spawn_blocking(move || {
            let gone = |peer: Arc<Peer>| {
                let identity = peer.admitted.as_ref().ok().filter(|_| !peer.standing.is_lost())?;
                let why = this.check(&peer, identity).err()?;
                peer.standing.lose().then_some((peer.clone(), why))
            };
            peers.into_iter().filter_map(gone).collect::<Vec<_>>()
        });
        let gone = gone.await.unwrap_or_default();
        // Side by side, for when an issuer goes: its sites wait for one transaction of the log, not for one each.
        let ends = gone.into_iter().map(|(peer, why)| self.end(engine, peer, why));
        futures_util::stream::iter(ends).for_each_concurrent(ENDS, |end| end).await;
    }

    /// Logs that somebody may be here no longer, and cuts them off.
    async fn end(&self, engine: &Engine, peer: Arc<Peer>, why: Why) {
        if let Ok(identity) = &peer.admitted {
            let site = SiteId::try_from(identity.spiffe.clone()).ok();
            let kept = self.0.pending_kept || why.is_pending_kept();
            if let Some(site) = &site {
                self.withdraw(engine, site, kept);
            }
            let mut draft = Draft::new(Kind::ConnectionEnded)
                .actor(&peer.actor)
                .text("reason", why.reason)
                .text("detail", &why.detail);
            if site.is_some() {
                let pending = if kept { "kept" } else { "dropped" };
                draft = draft.text("pending", pending);
            }
            if let Some((decision, evidence)) = why.decided.as_deref() {
                draft = draft
                    .text("action", Action::Connect.as_str())
                    .decided(decision.allow, &decision.policies, &decision.policy_set)
                    .evidence(evidence);
            }
            let parts = engine.parts();
            parts.metrics.connection(why.reason);
            tracing::warn!(
                who = peer.actor.name(),
                reason = why.reason,
                why.detail,
                "connection ended"
            );
            if let Err(e) = parts.writer.record(vec![draft]).await {
                // Who may not be here is cut off, whatever becomes of the log.
                tracing::error!(error = %e, "the end of a connection could not be logged");
            }
            peer.standing.cut(why.problem());
        }
    }

    /// Raises an alert for each certificate that is in use from two networks.
    async fn tell_elsewhere(&self, engine: &Engine) {
        let elsewhere = std::mem::take(&mut self.peers().elsewhere);
        for peer in elsewhere {
            let parts = engine.parts();
            parts.metrics.alert(ELSEWHERE);
            tracing::error!(who = peer.actor.name(), alert = ELSEWHERE, "look who has the key");
            // Where else it is used stands in the entries about its other connections: of people, addresses are not told in clear.
            let draft = Draft::new(Kind::AlertRaised)
                .actor(&peer.actor)
                .text("alert", ELSEWHERE)
                .text("detail", "its certificate is in use from another network at the same time");
            if let Err(e) = parts.writer.record(vec![draft]).await {
                tracing::error!(error = %e, alert = ELSEWHERE, "an alert could not be logged");
            }
        }
    }

    /// Has the rounds do without a site, unless it is here by another certificate and keeps what it sent.
    fn withdraw(&self, engine: &Engine, site: &SiteId, kept: bool) {
        let still_here = self.peers().by_serial.values().filter_map(Weak::upgrade).any(|peer| {
            let same = peer.admitted.as_ref().is_ok_and(|i| i.spiffe == *site.spiffe());
            same && !peer.standing.is_lost()
        });
        if !(kept && still_here) {
            engine.withdraw(site, kept);
        }
    }

    /// Has the rounds do without sites that were revoked while they were not connected, or while the coordinator was down:
    /// they may have sent an update and left.
    ///
    /// # Errors
    /// When the store cannot be read. What was not looked at is looked at next time.
    pub async fn withdraw_absent(&self, engine: &Engine) -> Result<()> {
        self.deny_listed_keys(engine).await?;
        let generation = self.0.generation.load(Ordering::Acquire);
        let now = self.now();
        let kept = self.0.pending_kept;
        let mut counted = Vec::new();
        for study in engine.studies() {
            let view = study.view();
            let open = view.round.filter(|round| view.state == "running" && !round.is_over());
            let Some(round) = open else { continue };
            let updates = round.updates();
            let seats = round.standing().into_iter().filter(|(_, word)| word == "joined");
            let sites: BTreeSet<&SiteId> =
                seats.map(|(site, _)| site).chain(updates.keys()).collect();
            for site in sites {
                if self.is_denied(&now, &Subject::Identity(site.spiffe().clone())) {
                    engine.withdraw(site, kept);
                }
            }
            let each =
                updates.iter().map(|(site, u)| (round.id().clone(), site.clone(), u.payload));
            counted.extend(each);
        }
        if !kept && self.0.looked.load(Ordering::Relaxed) != generation {
            for (round, site, payload) in counted {
                let Some(cert) = sent_by(engine, &round, &site, &payload).await? else { continue };
                let chain = engine.parts().store.certificate(&cert).await?;
                let chain = chain.map(|der| [CertificateDer::from(der)]);
                let key = chain.as_ref().and_then(|[leaf]| Identity::parse(leaf).ok());
                let denied = self.is_denied(&now, &Subject::Certificate(cert))
                    || key.is_some_and(|i| self.is_denied_key(&i.public_key));
                let checked = chain.map_or(Ok(()), |chain| now.check(&chain, now_unix()));
                if denied || checked.is_err_and(|why| !is_of_time(why.reason)) {
                    engine.withdraw(&site, false);
                }
            }
            self.0.looked.store(generation, Ordering::Relaxed);
        }
        Ok(())
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.0.peers.lock().expect("invariant: nobody panics while holding the peers")
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.files.lock().expect("invariant: nobody panics while holding the files")
    }
}

/// The certificate by which a counted update was sent, as its entry in the log has it.
async fn sent_by(
    engine: &Engine,
    round: &RoundId,
    site: &SiteId,
    payload: &Digest,
) -> Result<Option<Digest>> {
    let parts = engine.parts();
    let Some(row) = parts.store.update(round, &site.to_string(), payload).await? else {
        return Ok(None);
    };
    // Indexes begin anew in each shard, and one that was pruned has no such entry any more.
    let kind = Some(Kind::UpdateAccepted.as_str());
    for (shard, _) in parts.shards.all() {
        let at = row.log_index;
        for (_, bytes, leaf) in shard.entries(at, at + 1, 1, kind).await? {
            if leaf == row.leaf {
                return Ok(Entry::parse(&bytes)?.actor_cert());
            }
        }
    }
    Ok(None)
}

/// Whose certificate somebody comes with: a site's, whichever of its certificates it is; of anybody else the key's, which a
/// renewed certificate has too.
pub(crate) fn holder_of(identity: &Identity) -> Digest {
    match SiteId::try_from(identity.spiffe.clone()) {
        Ok(site) => Digest::of(site.to_string().as_bytes()),
        Err(_) => Digest::of(&identity.public_key),
    }
}

/// The network that somebody comes from: 24 bits of an IPv4 address, 48 of an IPv6 address.
fn network_of(peer: &Peer) -> Option<u64> {
    let address = address_of(peer)?;
    Some(match address.ip().to_canonical() {
        IpAddr::V4(ip) => u64::from(ip.to_bits() >> 8),
        IpAddr::V6(ip) => (1 << 63) | u64::try_from(ip.to_bits() >> 80).unwrap_or(0),
    })
}

fn address_of(peer: &Peer) -> Option<SocketAddr> {
    peer.actor.address.as_deref()?.parse().ok()
}

/// Puts what a look has given where it belongs.
fn note<T>(
    found: &mut Found,
    name: &'static str,
    alert: &'static str,
    look: Look<T>,
    take: impl FnOnce(T),
) {
    match look {
        Look::Same => {}
        Look::Fresh(fresh) => {
            found.changed.push(name);
            take(fresh);
        }
        Look::Broken(e) => found.alerts.push((alert, format!("{e:#}"))),
    }
}

pub(crate) fn now_unix() -> UnixTime {
    let ms = u64::try_from(clock::now().as_millis()).unwrap_or_default();
    UnixTime::since_unix_epoch(Duration::from_millis(ms))
}

fn seconds() -> i64 {
    clock::now().as_millis() / 1_000
}

type Parts = (Arc<Credentials>, TrustStore, Digest, Crls);

fn in_force(
    (credentials, trust, trust_sha256, crls): Parts,
    denied: Arc<BTreeSet<Subject>>,
    (networks, tpms): (Option<Arc<Lists>>, Option<Arc<Tpms>>),
) -> Result<InForce> {
    let clients = client_verifier(&trust, &crls)?;
    let server = |alpn: &[&str]| server_config(&credentials, clients.clone(), alpn).map(Arc::new);
    let (agents, operators) = (server(&["h2"])?, server(&["h2", "http/1.1"])?);
    let anonymous = match anonymous_server_config(&credentials, &trust, &["h2", "http/1.1"]) {
        Ok(config) => Some(Arc::new(config)),
        Err(CredentialsError::Unvouched) => None,
        Err(e) => return Err(e.into()),
    };
    Ok(InForce {
        own: credentials.identity()?.spiffe,
        credentials,
        trust,
        trust_sha256,
        crls,
        denied,
        networks,
        tpms,
        clients,
        agents,
        operators,
        anonymous,
    })
}
