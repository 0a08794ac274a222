//! How sites get certificates: the first for a one-time token, each further one over the channel of the one before it.
//!
//! The log is the list: a token is its entry, which holds the SHA-256 of its secret, and so is its use. Both are read when the
//! coordinator starts. A certificate is given out after its entry is durable. Who signs is behind
//! [`falaj_certs::issue::Issuer`]; where those come in who have no certificate yet is [`door`].

pub mod door;

use crate::{
    accept::Peer,
    clock,
    config::{Authorised, EnrolmentConfig},
    engine::{Engine, problem_of, unreadable},
    erasure::{Asker, entries},
    policy::{Action, Resource},
    store::writer::{Change, Commit},
    trusted::{Trusted, now_unix},
};
use anyhow::{Context as _, Result, ensure};
use falaj_certs::{
    ca::{Authority, first_certificate},
    enrolment::{Secret, Token, is_token_id},
    identity::Identity,
    issue::{Grant, Granted, Issuer, Outside, Regional, granted},
    request::SigningRequest,
    trust::IssuerEntry,
};
use falaj_core::{
    audit::{Actor, Draft, Entry, Kind},
    evidence::Evidence,
    id::{Digest, Place, Role, SiteId, SpiffeId},
    time::Timestamp,
};
use falaj_proto::{
    problem::{Code, Problem},
    v1::{EnrolReply, EnrolRequest, RenewReply, Trust},
};
use rustls_pki_types::CertificateDer;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Semaphore;

/// The longest life of a token.
pub const TTL_MAX: Duration = Duration::from_hours(7 * 24);
/// Tokens that can be used at once.
const TOKENS_MAX: usize = 10_000;
/// Tokens are known for so long after their end, in milliseconds: whoever comes too late hears so.
const KEPT_MS: u64 = 30 * 86_400_000;
/// Certificates that are signed at once: behind some of them is a program.
const SIGNING_MAX: usize = 8;

/// A token that was made here.
struct Made {
    secret_sha256: Digest,
    site: SiteId,
    until: Timestamp,
    used: Option<Use>,
    /// Whether an operator took it back before anybody had used it.
    withdrawn: bool,
}

/// What became of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It can be used.
    Open,
    /// A certificate was given for it, or is just being given.
    Used,
    /// Its time is over.
    Expired,
    /// An operator took it back.
    Withdrawn,
}

impl Fate {
    /// As it is spelled.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Used => "used",
            Self::Expired => "expired",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl Made {
    fn fate(&self, now: Timestamp) -> Fate {
        if self.used.is_some() {
            Fate::Used
        } else if self.withdrawn {
            Fate::Withdrawn
        } else if now > self.until {
            Fate::Expired
        } else {
            Fate::Open
        }
    }
}

/// A token, without its secret.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its number, as it stands in the log.
    pub id: String,
    /// The site that it is for.
    pub site: SiteId,
    /// Until when it can be used.
    pub until: Timestamp,
    /// What became of it.
    pub fate: Fate,
}

/// That somebody came with a token.
#[derive(Clone, Copy)]
struct Use {
    /// The public key that the certificate is about: nobody else gets one.
    key: [u8; 32],
    /// The certificate, once its entry is durable.
    cert: Option<Digest>,
    /// Whether it is being signed just now.
    under_way: bool,
}

/// A refusal: one stable word, and what to do.
struct Why(&'static str, String);

/// Gives certificates, and knows the tokens. A cheap handle.
#[derive(Clone)]
pub struct Enrolments(Arc<Inner>);

struct Inner {
    engine: Engine,
    trusted: Trusted,
    coordinator: SpiffeId,
    issuer: Option<Arc<dyn Issuer>>,
    root: Option<PathBuf>,
    lifetime: Duration,
    /// Where tokens say that sites enrol; none while nobody can.
    public: Mutex<Option<String>>,
    tokens: Mutex<BTreeMap<String, Made>>,
    /// Whoever has it is the only operator who makes a token or takes one back.
    one_at_a_time: tokio::sync::Mutex<()>,
    /// What was given last about a key; nothing while it is being signed.
    renewals: Mutex<BTreeMap<[u8; 32], Option<Granted>>>,
    signing: Semaphore,
}

impl Enrolments {
    /// Reads the tokens from the log.
    ///
    /// # Errors
    /// When the authority cannot be used, or the log cannot be read.
    pub async fn open(
        engine: Engine,
        trusted: Trusted,
        coordinator: SpiffeId,
        config: Option<&EnrolmentConfig>,
    ) -> Result<Self> {
        let (issuer, root): (Option<Arc<dyn Issuer>>, _) = match config {
            None => (None, None),
            Some(config) => match config.authorised()? {
                Authorised::Folder(dir) => {
                    let authority = Authority::open(&dir).context("`enrolment.authority`")?;
                    let root = config.root.clone().or_else(|| Some(dir.join("root/cert.pem")));
                    (Some(Arc::new(Regional(authority))), root.filter(|root| root.is_file()))
                }
                Authorised::Command(command) => {
                    (Some(Arc::new(Outside { command })), config.root.clone())
                }
            },
        };
        if let Some(root) = &root {
            first_certificate(root).context("`enrolment.root`")?;
        }
        if config.is_some_and(|config| config.address.is_some()) {
            ensure!(
                trusted.now().anonymous_tls().is_some(),
                "no issuer in the trust configuration vouches for the coordinator's certificate: sites could not know it when they enrol"
            );
        }
        let lifetime = config.map_or(Duration::ZERO, EnrolmentConfig::lifetime);
        let tokens = Mutex::new(read(&engine).await?);
        let signing = Semaphore::new(SIGNING_MAX);
        let public = Mutex::default();
        Ok(Self(Arc::new(Inner {
            engine,
            trusted,
            coordinator,
            issuer,
            root,
            lifetime,
            public,
            tokens,
            one_at_a_time: tokio::sync::Mutex::default(),
            renewals: Mutex::default(),
            signing,
        })))
    }

    /// Whether certificates are renewed here.
    #[must_use]
    pub fn renews(&self) -> bool {
        self.0.issuer.is_some()
    }

    /// Sites enrol at this address from now on.
    pub fn listens(&self, public: String) {
        *self.0.public.lock().unwrap_or_else(PoisonError::into_inner) = Some(public);
    }

    /// Makes a token by which a site gets its first certificate. Its secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// [`Code::Malformed`], [`Code::Unavailable`] while nobody can enrol here, [`Code::Busy`], [`Code::Denied`], or why the log
    /// cannot take the entry; [`Code::Conflict`] when the request came before.
    pub async fn offer(
        &self,
        asker: Asker<'_>,
        name: &str,
        place: &str,
        ttl_s: u64,
    ) -> Result<Token, Problem> {
        let _one_at_a_time = self.0.one_at_a_time.lock().await;
        if let Some(entry) = asker.came_before(&self.0.engine, Action::SiteEnroll).await? {
            // If the log took it too late to be told of, it is known now, so that it can be taken back.
            let (id, made) = offered(&entry).map_err(|e| Code::Internal.because(e))?;
            self.tokens().entry(id.clone()).or_insert(made);
            return Err(told_once(&id));
        }
        let token = match self.token(name, place, ttl_s) {
            Ok(token) => token,
            Err(problem) => {
                // Recorded without its words: who asked, and that it came to nothing.
                let draft = Draft::new(Kind::AdminRead).actor(asker.actor);
                let engine = &self.0.engine;
                let granted =
                    engine.grant(asker.party(), Action::SiteEnroll, &Resource::Service, draft);
                return Err(granted.await.err().unwrap_or(problem));
            }
        };
        let secret_sha256 = token.secret.digest();
        let draft = asker
            .makes(Kind::EnrolmentOffered)
            .text("identity", &token.site.to_string())
            .text("token", &token.id)
            .digest("secret_sha256", &secret_sha256)
            .text("until", &token.until.to_string());
        let engine = &self.0.engine;
        engine.grant(asker.party(), Action::SiteEnroll, &Resource::Service, draft).await?;
        let site = SiteId::try_from(token.site.clone()).map_err(|e| Code::Malformed.because(e))?;
        let made = Made { secret_sha256, site, until: token.until, used: None, withdrawn: false };
        self.tokens().insert(token.id.clone(), made);
        Ok(token)
    }

    /// The tokens that are known: those that can be used, and what became of the others of the last thirty days.
    #[must_use]
    pub fn all(&self) -> Vec<Told> {
        let now = clock::now();
        let told = |(id, made): (&String, &Made)| Told {
            id: id.clone(),
            site: made.site.clone(),
            until: made.until,
            fate: made.fate(now),
        };
        self.tokens().iter().map(told).collect()
    }

    /// Takes a token back that nobody has used.
    ///
    /// # Errors
    /// [`Code::UnknownToken`], [`Code::Conflict`] when it was used, [`Code::Denied`], or why the log cannot take the entry.
    pub async fn withdraw(&self, asker: Asker<'_>, id: &str) -> Result<Told, Problem> {
        let (engine, action) = (&self.0.engine, Action::SiteEnroll);
        let _one_at_a_time = self.0.one_at_a_time.lock().await;
        if asker.came_before(engine, action).await?.is_some() {
            let told = self.all().into_iter().find(|told| told.id == id);
            return told.ok_or_else(|| unknown_token(id));
        }
        let may = engine.parts().policy.decide(asker.party(), action, &Resource::Service).allow;
        // Before its entry, so that nobody is given a certificate for it after that.
        let taken = if may { self.take_back(id) } else { Err(unknown_token(id)) };
        let draft = match &taken {
            Ok((told, _)) => asker
                .makes(Kind::EnrolmentWithdrawn)
                .text("token", id)
                .text("identity", &told.site.to_string()),
            Err(_) => Draft::new(Kind::AdminRead).actor(asker.actor),
        };
        let granted = engine.grant(asker.party(), action, &Resource::Service, draft).await;
        if let Err(problem) = granted {
            // What the log has not taken in time it may take yet.
            if problem.code != Code::LogUnavailable
                && let Ok((_, was)) = taken
                && let Some(made) = self.tokens().get_mut(id)
            {
                made.withdrawn = was;
            }
            return Err(problem);
        }
        taken.map(|(told, _)| told)
    }

    /// From now on nobody can use a token; with it whether that was so before.
    fn take_back(&self, id: &str) -> Result<(Told, bool), Problem> {
        let mut tokens = self.tokens();
        let made = tokens.get_mut(id).ok_or_else(|| unknown_token(id))?;
        if made.used.is_some() {
            return Err(Code::Conflict.because(format!(
                "a certificate was given for token {id}: `falaj site revoke {}` takes that back",
                made.site
            )));
        }
        let was = std::mem::replace(&mut made.withdrawn, true);
        let (site, until) = (made.site.clone(), made.until);
        Ok((Told { id: id.to_owned(), site, until, fate: Fate::Withdrawn }, was))
    }

    /// A fresh token, before anybody hears of it.
    fn token(&self, name: &str, place: &str, ttl_s: u64) -> Result<Token, Problem> {
        let malformed = |e: &dyn std::fmt::Display| Code::Malformed.because(e);
        let public = self.0.public.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let address = public.ok_or_else(|| {
            Code::Unavailable
                .because("nobody can enrol here: set `enrolment.address` in the configuration")
        })?;
        let place: Place = place.parse().map_err(|e: falaj_core::id::IdError| malformed(&e))?;
        let now = self.0.trusted.now();
        if self.0.issuer.is_some() && !now.trust().vouches_for(&place) {
            return Err(malformed(&format!(
                "no issuer in the trust configuration vouches for {place}: bind one first"
            )));
        }
        let domain = self.0.coordinator.trust_domain();
        let site = SpiffeId::new(domain, &place, Role::Site, name).map_err(|e| malformed(&e))?;
        if !(1..=TTL_MAX.as_secs()).contains(&ttl_s) {
            let most = TTL_MAX.as_secs();
            return Err(malformed(&format!("a token lives for 1 to {most} seconds")));
        }
        let now = clock::now();
        let mut tokens = self.tokens();
        tokens.retain(|_, made| now.since_ms(made.until) < KEPT_MS);
        if tokens.len() >= TOKENS_MAX {
            return Err(Code::Busy.because(format!("{TOKENS_MAX} tokens stand already")));
        }
        drop(tokens);
        let issuer_sha256 = self.0.trusted.now().own_issuer().ok_or_else(|| {
            Code::Unavailable
                .because("no trusted issuer vouches for the coordinator's own certificate")
        })?;
        Ok(Token {
            address,
            coordinator: self.0.coordinator.clone(),
            issuer_sha256,
            site,
            id: hex::encode(clock::nonce()),
            secret: Secret::new(clock::secret()),
            until: now.plus_ms(ttl_s.saturating_mul(1_000)),
        })
    }

    /// Gives a site its first certificate. This must be run to its end: a token would stay in use.
    ///
    /// # Errors
    /// [`Code::EnrolmentRefused`], [`Code::Busy`], [`Code::Unavailable`] when the authority fails, or why the log cannot take
    /// the entry.
    pub async fn enrol(
        &self,
        asked: EnrolRequest,
        from: SocketAddr,
    ) -> Result<EnrolReply, Problem> {
        let actor = Actor { address: Some(from.to_string()), ..Actor::default() };
        let id = Some(asked.token.as_str()).filter(|id| is_token_id(id));
        let request = match SigningRequest::parse(&asked.request) {
            Ok(request) => request,
            Err(e) => {
                let why = Why(e.reason(), e.to_string());
                return Err(self.refuse(&actor, None, why).await);
            }
        };
        let site = match self.claim(&asked, &request) {
            Ok(Claimed::Fresh(site)) => site,
            Ok(Claimed::Again(site, cert)) => {
                return self.again(&actor, &asked.token, &site, cert, &request).await;
            }
            Ok(Claimed::UnderWay) => {
                return Err(Code::Busy.because("this token is being used: try again"));
            }
            Err(why) => {
                // Only a token that is known here stands in the log: others are what somebody made up.
                let known = id.filter(|id| self.tokens().contains_key(*id));
                return Err(self.refuse(&actor, known, why).await);
            }
        };
        let done = self.first(&actor, &asked.token, &site, &request).await;
        if let Some(made) = self.tokens().get_mut(&asked.token) {
            let cert = done.as_ref().ok().map(|granted| granted.identity.cert_sha256);
            // What the log has not taken in time it may take yet, so that the token stays with this key.
            let kept = cert.is_some() || matches!(&done, Err(e) if e.code == Code::LogUnavailable);
            let key = *request.public_key();
            made.used = kept.then_some(Use { key, cert, under_way: false });
        }
        Ok(self.reply(done?.chain))
    }

    /// Whether a token is good for this request; from then on it is nobody else's.
    fn claim(&self, asked: &EnrolRequest, request: &SigningRequest) -> Result<Claimed, Why> {
        let unknown = || {
            let what = "no such token was made here: copy the whole line, and look whether it is from this coordinator's operator";
            Why("unknown_token", what.into())
        };
        let mut tokens = self.tokens();
        let made = tokens.get_mut(&asked.token).ok_or_else(unknown)?;
        let secret = Secret::of(&asked.secret).map(|secret| secret.digest());
        if secret != Some(made.secret_sha256) {
            return Err(unknown());
        }
        let key = *request.public_key();
        // Whose answer was lost may come again, also when the token's time is over by then.
        if let Some(used) = made.used {
            return match used {
                Use { key: by, cert: None, .. } if by != key => Err(Why(
                    "used_token",
                    "somebody came with this token and another key, and it is not known here whether a certificate was given: ask the coordinator's operator for another token, and to withdraw this one or, if `falaj site tokens` says that it was used, to revoke the site".into(),
                )),
                Use { key: by, .. } if by != key => Err(Why(
                    "used_token",
                    format!(
                        "a certificate for {} was given for this token, about another key: if that was not you, tell the coordinator's operator to revoke the site",
                        made.site
                    ),
                )),
                Use { under_way: true, .. } => Ok(Claimed::UnderWay),
                Use { cert: Some(cert), .. } => Ok(Claimed::Again(made.site.clone(), cert)),
                Use { cert: None, .. } => {
                    made.used = Some(Use { key, cert: None, under_way: true });
                    Ok(Claimed::Fresh(made.site.clone()))
                }
            };
        }
        if made.withdrawn {
            let what = "the coordinator's operator took this token back: ask for another";
            return Err(Why("withdrawn_token", what.into()));
        }
        if clock::now() > made.until {
            let what = format!("this token could be used until {}: ask for another", made.until);
            return Err(Why("expired_token", what));
        }
        let here = made.site.spiffe().place();
        if asked.place.parse::<Place>().ok().as_ref() != Some(here) {
            return Err(Why(
                "other_region",
                format!("this token is for a site in {here}: ask for one for where the site is"),
            ));
        }
        made.used = Some(Use { key, cert: None, under_way: true });
        Ok(Claimed::Fresh(made.site.clone()))
    }

    /// The first certificate of a site, once its entry is durable.
    async fn first(
        &self,
        actor: &Actor,
        token: &str,
        site: &SiteId,
        request: &SigningRequest,
    ) -> Result<Granted, Problem> {
        if self.0.engine.parts().policy.broken().is_some() {
            let what = "while the glass is broken no site enrols: try again when it is mended";
            return Err(self.refuse(actor, Some(token), Why("denied", what.into())).await);
        }
        let granted = self.sign(site, request).await?;
        if let Err(why) = self.may_connect(site, request, &self.seen(actor, site, granted.issuer)) {
            return Err(self.refuse(actor, Some(token), why).await);
        }
        let draft = Draft::new(Kind::SiteEnrolled)
            .actor(actor)
            .text("identity", &site.to_string())
            .text("token", token);
        self.record(draft, request, &granted).await?;
        tracing::info!(%site, token, "a site has enrolled");
        Ok(granted)
    }

    /// The certificate that was given before.
    async fn again(
        &self,
        actor: &Actor,
        token: &str,
        site: &SiteId,
        cert: Digest,
        request: &SigningRequest,
    ) -> Result<EnrolReply, Problem> {
        let der = self.0.engine.parts().store.certificate(&cert).await.map_err(unreadable)?;
        let now = self.0.trusted.now();
        let known = der.map(CertificateDer::from).and_then(|der| {
            let (identity, issuer) = now.trust().identify_at(&der, now_unix()).ok()?;
            let after = now.trust().issuer(&issuer);
            Some(Granted { chain: [der].into_iter().chain(after).collect(), identity, issuer })
        });
        let Some(granted) = known else {
            let what = "its certificate is not valid any more: ask for another token";
            return Err(self.refuse(actor, Some(token), Why("used_token", what.into())).await);
        };
        if let Err(why) = self.may_connect(site, request, &self.seen(actor, site, granted.issuer)) {
            return Err(self.refuse(actor, Some(token), why).await);
        }
        let draft = Draft::new(Kind::SiteEnrolled)
            .actor(actor)
            .text("identity", &site.to_string())
            .text("token", token)
            .text("again", "true");
        self.record(draft, request, &granted).await?;
        Ok(self.reply(granted.chain))
    }

    /// Gives a site another certificate about its key. This should be run to its end: the entry says that it was given.
    ///
    /// # Errors
    /// [`Code::EnrolmentRefused`], what [`Peer::site`] refuses for, [`Code::Unavailable`] when the authority fails, or why
    /// the log cannot take the entry.
    pub async fn renew(&self, peer: &Peer, request: &[u8]) -> Result<RenewReply, Problem> {
        let (site, identity) = peer.site()?;
        let checked = SigningRequest::parse(request)
            .map_err(|e| Why(e.reason(), e.to_string()))
            .and_then(|request| {
                let seconds = clock::now().as_millis() / 1_000;
                let (left, life) =
                    (identity.not_after - seconds, identity.not_after - identity.not_before);
                if !self.renews() {
                    let what = "this coordinator renews no certificates: have it renewed where it was issued";
                    return Err(Why("not_renewed_here", what.into()));
                }
                if *request.public_key() != identity.public_key {
                    let what = "a certificate is renewed about its own key: enrol with a token to change the key";
                    return Err(Why("other_key", what.into()));
                }
                // What is given now would end no later than what is there, if that is of another authority's.
                if left * 2 > life || left > self.0.lifetime.as_secs().try_into().unwrap_or(i64::MAX) {
                    return Err(Why("too_early", format!("{left} seconds of it are left")));
                }
                let evidence = self.located(peer.known.evidence(), &peer.actor, &site);
                self.may_connect(&site, &request, &evidence).map(|()| request)
            });
        let request = match checked {
            Ok(request) => request,
            Err(why) => return Err(self.refuse(&peer.actor, None, why).await),
        };
        let key = *request.public_key();
        let granted = if let Some(before) = self.begin_renewal(&site, key)? {
            before
        } else {
            let renewed = self.renewed(peer, &site, &request).await;
            match &renewed {
                Ok(granted) => self.renewals().insert(key, Some(granted.clone())),
                Err(_) => self.renewals().remove(&key),
            };
            renewed?
        };
        let EnrolReply { chain, trust, .. } = self.reply(granted.chain);
        Ok(RenewReply { chain, trust })
    }

    /// Begins to renew the certificate about a key, unless somebody does that just now; what was given for it lately is given
    /// again, for whoever's answer was lost.
    fn begin_renewal(&self, site: &SiteId, key: [u8; 32]) -> Result<Option<Granted>, Problem> {
        let seconds = clock::now().as_millis() / 1_000;
        let mut renewals = self.renewals();
        renewals.retain(|_, given| given.as_ref().is_none_or(|g| g.identity.not_after > seconds));
        match renewals.get(&key) {
            Some(None) => Err(Code::Busy.because("this certificate is being renewed: try again")),
            // The key may be another site's since: whoever moves can enrol again with it.
            Some(Some(given))
                if given.identity.spiffe == *site.spiffe() && self.is_fresh(given, seconds) =>
            {
                Ok(Some(given.clone()))
            }
            _ => {
                renewals.insert(key, None);
                Ok(None)
            }
        }
    }

    /// Whether a certificate has more than half of its life before it, and its issuer is trusted still.
    fn is_fresh(&self, given: &Granted, seconds: i64) -> bool {
        let Identity { not_before, not_after, .. } = given.identity;
        let vouched = |leaf| self.0.trusted.now().trust().identify_at(leaf, now_unix()).is_ok();
        (not_after - seconds) * 2 > not_after - not_before
            && given.chain.first().is_some_and(vouched)
    }

    /// Another certificate about a site's key, once its entry is durable.
    async fn renewed(
        &self,
        peer: &Peer,
        site: &SiteId,
        request: &SigningRequest,
    ) -> Result<Granted, Problem> {
        let granted = self.sign(site, request).await?;
        // Signing takes its time, and whoever was revoked meanwhile gets nothing.
        peer.identity()?;
        let draft = Draft::new(Kind::CertificateRenewed).actor(&peer.actor);
        self.record(draft, request, &granted).await?;
        tracing::info!(%site, "a certificate was renewed");
        Ok(granted)
    }

    /// What is known of a connection by which a site enrols, if it came back with a certificate of this issuer.
    fn seen(&self, actor: &Actor, site: &SiteId, issuer: Digest) -> Evidence {
        self.located(Evidence { issuer: Some(issuer), ..Evidence::default() }, actor, site)
    }

    fn located(&self, evidence: Evidence, actor: &Actor, site: &SiteId) -> Evidence {
        let address = actor.address.as_ref().and_then(|address| address.parse().ok());
        self.0.trusted.now().located(evidence, site.spiffe().place(), address)
    }

    /// Nobody gets a certificate who could not come in with it from where they are.
    fn may_connect(
        &self,
        site: &SiteId,
        request: &SigningRequest,
        evidence: &Evidence,
    ) -> Result<(), Why> {
        let named = self.0.trusted.check_name(site.spiffe(), request.public_key());
        named.map_err(|why| Why(why.reason, why.detail))?;
        let decision = self.0.engine.parts().policy.decide_connect(site.spiffe(), evidence);
        if decision.allow { Ok(()) } else { Err(Why("denied", decision.reason)) }
    }

    fn renewals(&self) -> MutexGuard<'_, BTreeMap<[u8; 32], Option<Granted>>> {
        // As with the tokens.
        self.0.renewals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sign(&self, site: &SiteId, request: &SigningRequest) -> Result<Granted, Problem> {
        let busy = || Code::Busy.because("too many certificates are being signed: try again");
        let _room = self.0.signing.try_acquire().map_err(|_| busy())?;
        let unavailable = || Code::Unavailable.because("the authority gives no certificate now");
        let issuer = self.0.issuer.clone().ok_or_else(unavailable)?;
        let grant = Grant { spiffe: site.spiffe().clone(), lifetime: self.0.lifetime, group: None };
        let (request, trust) = (request.clone(), self.0.trusted.now().trust().clone());
        let signed = tokio::task::spawn_blocking(move || {
            granted(issuer.as_ref(), &request, &grant, &trust, now_unix)
        });
        let signed = signed.await.map_err(anyhow::Error::from).and_then(|done| Ok(done?));
        signed.map_err(|e| {
            tracing::error!(%site, error = %format!("{e:#}"), "no certificate could be signed");
            unavailable()
        })
    }

    /// What is given out is in the log before.
    async fn record(
        &self,
        draft: Draft,
        request: &SigningRequest,
        granted: &Granted,
    ) -> Result<(), Problem> {
        let cert = granted.identity.cert_sha256;
        let until = granted.identity.not_after.saturating_mul(1_000);
        let entry = draft
            .digest("cert_sha256", &cert)
            .digest("key_sha256", &request.key_sha256())
            .digest("issuer_sha256", &granted.issuer)
            .text("until", &Timestamp::from_millis(until).to_string());
        let rows = vec![Change::Certificate(cert, granted.chain[0].to_vec())];
        let commit = Commit { rows, entries: vec![entry], round: None };
        self.0.engine.parts().writer.commit(commit).await.map_err(|e| problem_of(&e))?;
        Ok(())
    }

    fn reply(&self, chain: Vec<CertificateDer<'static>>) -> EnrolReply {
        let now = self.0.trusted.now();
        let mut file = now.trust().file();
        for entry in &mut file.issuers {
            // Where the coordinator keeps them is its own business.
            let IssuerEntry { cert, spki_sha256, .. } = entry;
            *cert =
                PathBuf::from(format!("issuers/{}.pem", &spki_sha256[..16.min(spki_sha256.len())]));
        }
        let issuers = now.trust().issuers().iter().map(|(der, _)| der.to_vec().into());
        let issuers = issuers.collect();
        let root = self.0.root.as_deref().and_then(|root| first_certificate(root).ok());
        EnrolReply {
            chain: chain.into_iter().map(|der| der.to_vec().into()).collect(),
            trust: Some(Trust { file: toml::to_string(&file).unwrap_or_default(), issuers }),
            root: root.map(|der| der.to_vec().into()).unwrap_or_default(),
        }
    }

    /// Logs a refusal, and says why.
    async fn refuse(&self, actor: &Actor, token: Option<&str>, Why(word, detail): Why) -> Problem {
        let parts = self.0.engine.parts();
        parts.metrics.connection(word);
        tracing::warn!(who = actor.name(), address = actor.address, word, detail, "no certificate");
        let mut draft = Draft::new(Kind::EnrolmentRefused)
            .actor(actor)
            .text("decision", "deny")
            .text("reason", word)
            .text("detail", &detail);
        if let Some(token) = token {
            draft = draft.text("token", token);
        }
        if let Err(e) = parts.writer.record(vec![draft]).await {
            tracing::error!(error = %e, "a refusal could not be logged");
        }
        Code::EnrolmentRefused.because(format!("{word}: {detail}"))
    }

    fn tokens(&self) -> MutexGuard<'_, BTreeMap<String, Made>> {
        // The map is never left half changed, so a panic elsewhere does not spoil it.
        self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What somebody who comes with a good token gets.
enum Claimed {
    /// A certificate for this site.
    Fresh(SiteId),
    /// The one that was given before.
    Again(SiteId, Digest),
    /// Nothing yet: another request with the same key is served.
    UnderWay,
}

/// What whoever comes again is told of the token that was made for them: its secret was in the one answer, and is nowhere.
fn told_once(id: &str) -> Problem {
    Code::Conflict.because(format!(
        "token {id} was made when this request came before, and its secret was in that answer alone: take it back with `falaj site withdraw-token {id}`, and ask under another `Idempotency-Key`"
    ))
}

fn unknown_token(id: &str) -> Problem {
    Code::UnknownToken
        .because(format!("there is no token `{id}`; `falaj site tokens` shows those there are"))
}

/// The token that an entry tells of, as it was made.
fn offered(entry: &Entry) -> Result<(String, Made)> {
    let body = entry.body();
    let until = Timestamp::parse(body.text("until").unwrap_or_default());
    let until = until.context("a token in the log has no end")?;
    let (secret_sha256, site) = (body.parsed("secret_sha256")?, body.parsed("identity")?);
    let made = Made { secret_sha256, site, until, used: None, withdrawn: false };
    Ok((body.text("token")?.to_owned(), made))
}

/// The tokens that the log tells of.
async fn read(engine: &Engine) -> Result<BTreeMap<String, Made>> {
    let mut tokens = BTreeMap::new();
    let now = clock::now();
    for entry in entries(engine, Kind::EnrolmentOffered).await? {
        let (id, made) = offered(&entry)?;
        if now.since_ms(made.until) < KEPT_MS {
            tokens.insert(id, made);
        }
    }
    if tokens.is_empty() {
        return Ok(tokens);
    }
    for entry in entries(engine, Kind::EnrolmentWithdrawn).await? {
        if let Some(made) = tokens.get_mut(entry.body().text("token")?) {
            made.withdrawn = true;
        }
    }
    for entry in entries(engine, Kind::SiteEnrolled).await? {
        let body = entry.body();
        let Some(made) = tokens.get_mut(body.text("token")?) else { continue };
        let cert: Digest = body.parsed("cert_sha256")?;
        let der = engine.parts().store.certificate(&cert).await?;
        let der = der.with_context(|| format!("the certificate {cert} is not in the database"))?;
        let identity = Identity::parse(&CertificateDer::from(&der[..]))?;
        made.used = Some(Use { key: identity.public_key, cert: Some(cert), under_way: false });
    }
    Ok(tokens)
}
