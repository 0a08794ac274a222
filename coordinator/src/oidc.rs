//! Signing in: for a token of an identity provider, an operator's key gets a certificate for a short time.
//!
//! It has an address of its own, where nobody needs a certificate and nothing else is served. From then on the operator is one
//! like any other: over mutual TLS, by roles, revoked within seconds, vouched for by an issuer that is bound to a place. With a
//! token itself nothing can be asked for. What is served there describes itself at `/openapi.json`, as all else does at the other
//! address. Whom a token names is [`token`]'s to say, purely; this decides what comes of it.

pub mod jws;
mod provider;
pub mod token;

use crate::{
    accept::meet,
    clock,
    config::{OidcConfig, RolesConfig},
    engine::{Engine, problem_of},
    knock::{EVERY, Knock, Pace, accept},
    policy::{Action, Party},
    rest::{Refused, as_problem, problems},
    store::writer::Commit,
    trusted::{Trusted, now_unix},
};
use anyhow::{Context as _, Result, ensure};
use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    middleware::map_response,
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use falaj_certs::{
    ca::Authority,
    issue::{Grant, Granted, Regional, granted},
    request::{REQUEST_BYTES_MAX, SigningRequest, pem},
};
use falaj_core::{
    audit::{Actor, Draft, Kind},
    evidence::Evidence,
    id::{Digest, Role, SpiffeId},
    roles::Roles,
    time::Timestamp,
};
use falaj_proto::{
    problem::{Code, Problem, ProblemJson},
    rest::{Login, LoginProvider, LoginRequest, Page},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use jws::TOKEN_BYTES_MAX;
use provider::Provider;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use token::{Holder, SKEW_S, TokenError, holder};
use tokio::{net::TcpListener, sync::Mutex};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

/// A token, a signing request in base64, and what is around them.
const BODY_BYTES_MAX: usize = TOKEN_BYTES_MAX + 2 * REQUEST_BYTES_MAX;
/// A connection, from the handshake to the answer, may take this long.
const CONNECTION: Duration = Duration::from_mins(1);
/// Tokens that were used and are not over yet.
const USED_MAX: usize = 65_536;
/// What any route here may answer, whatever else it says.
const ANYWHERE: [(&str, &str); 3] = [
    ("400", "The request cannot be read."),
    ("413", "The request is too large."),
    ("500", "The coordinator cannot do this."),
];

/// Signs operators in. A cheap handle.
#[derive(Clone)]
pub struct Oidc(Arc<Inner>);

struct Inner {
    engine: Engine,
    trusted: Trusted,
    roles: Arc<RolesConfig>,
    providers: Vec<Provider>,
    authority: Authority,
    session: Duration,
    /// Tokens that were used, and until when each could be shown again: one token is one certificate.
    used: Mutex<BTreeMap<Digest, i64>>,
    pace: Pace,
}

/// Why nobody is signed in.
enum Refusal {
    /// The token is not believed.
    Token(TokenError),
    /// Something else that has a word in the log.
    Other(&'static str, Problem),
}

impl Oidc {
    /// What a configuration names, if it names anything; no provider is asked yet.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(
        config: Option<OidcConfig>,
        engine: &Engine,
        trusted: &Trusted,
        roles: &Arc<RolesConfig>,
    ) -> Result<Option<Self>> {
        let open = |config| Self::open(config, engine.clone(), trusted.clone(), roles.clone());
        config.map(open).transpose()
    }

    fn open(
        config: OidcConfig,
        engine: Engine,
        trusted: Trusted,
        roles: Arc<RolesConfig>,
    ) -> Result<Self> {
        let now = trusted.now();
        ensure!(
            now.anonymous_tls().is_some(),
            "no issuer in the trust configuration vouches for the coordinator's certificate: operators could not know it when they sign in"
        );
        for provider in &config.providers {
            let place = &provider.place;
            ensure!(
                now.trust().vouches_for(place),
                "no issuer in the trust configuration vouches for {place}, where `oidc.provider` {} has its people",
                provider.issuer
            );
        }
        let authority = Authority::open(&config.authority).context("`oidc.authority`")?;
        let provider = |one| Provider::new(one, &trusted);
        let providers = config.providers.into_iter().map(provider).collect::<Result<_>>()?;
        let session = Duration::from_secs(config.session_s.into());
        let (used, pace) = (Mutex::default(), Pace::new(EVERY, Instant::now()));
        Ok(Self(Arc::new(Inner {
            engine,
            trusted,
            roles,
            providers,
            authority,
            session,
            used,
            pace,
        })))
    }

    /// Whether an issuer may have named somebody so. Operators whose names begin as those of a provider's people have come with
    /// a token: nobody but the authority that signs for tokens may have vouched for them.
    pub async fn may_name(&self, id: &SpiffeId, issuer: &Digest) -> bool {
        let own = id.name().split_once('-').map(|(prefix, _)| prefix);
        let reserved = self.0.providers.iter().any(|p| own == Some(p.config.prefix.as_str()));
        if id.role() != Role::Operator || !reserved {
            return true;
        }
        let (this, issuer) = (self.clone(), *issuer);
        let has = tokio::task::spawn_blocking(move || this.0.authority.has_issuer(&issuer)).await;
        has.map_err(anyhow::Error::from).flatten().unwrap_or_else(|e| {
            tracing::error!(error = %format!("{e:#}"), "nobody who has signed in is let in: `oidc.authority`");
            false
        })
    }

    /// Signs somebody in. The entry is durable before the certificate is given out.
    async fn login(&self, asked: LoginRequest, address: SocketAddr) -> Result<Login, Problem> {
        let mut actor = Actor { address: Some(address.to_string()), ..Actor::default() };
        let (request, holder) = match self.read(&asked).await {
            Ok(read) => read,
            Err(refusal) => return Err(self.refuse(&actor, &asked.issuer, refusal).await),
        };
        let parts = self.0.engine.parts();
        let group = holder.roles.words();
        // As they will be read from the certificate.
        actor.roles = self.0.roles.of(&[&group]);
        actor.person = Some(meet(&parts.persons, &holder.id).await?);
        actor.id = Some(holder.id.clone());
        if let Err(refusal) = self.admit(&asked, &request, &holder, actor.roles).await {
            return Err(self.refuse(&actor, &asked.issuer, refusal).await);
        }
        let granted = self.sign(request, &holder.id, group).await?;
        // Nobody gets a certificate who could not come in with it from where they are.
        let found = Evidence { issuer: Some(granted.issuer), ..Evidence::default() };
        let found = self.0.trusted.now().located(found, holder.id.place(), Some(address));
        let party = Party { id: &holder.id, roles: actor.roles };
        let decision = parts.policy.decide_connect(party, &found);
        let draft = |kind: Kind, actor: &Actor| {
            Draft::new(kind)
                .actor(actor)
                .text("issuer", &asked.issuer)
                .text("action", Action::Connect.as_str())
                .decided(decision.allow, &decision.policies, &decision.policy_set)
                .evidence(&found)
        };
        if !decision.allow {
            parts.metrics.connection("denied");
            let denied = draft(Kind::ConnectionRefused, &actor).text("reason", &decision.reason);
            parts.writer.record(vec![denied]).await.map_err(|e| problem_of(&e))?;
            return Err(Code::Denied.because(&decision.reason));
        }
        actor.cert = Some(granted.identity.cert_sha256);
        let until = Timestamp::from_millis(granted.identity.not_after.saturating_mul(1_000));
        let entry = draft(Kind::OperatorSignedIn, &actor).text("until", &until.to_string());
        let sealed =
            actor.person.and_then(|p| parts.persons.seal_certificate(p, &granted.chain[0]));
        let rows = sealed.into_iter().collect();
        let commit = Commit { rows, entries: vec![entry], round: None };
        parts.writer.commit(commit).await.map_err(|e| problem_of(&e))?;
        parts.metrics.connection("signed_in");
        Ok(Login {
            chain: pem("CERTIFICATE", granted.chain.iter().map(AsRef::as_ref)),
            identity: holder.id.to_string(),
            roles: actor.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            until: until.to_string(),
        })
    }

    /// The request's key, and whom the token names.
    async fn read(&self, asked: &LoginRequest) -> Result<(SigningRequest, Holder), Refusal> {
        let malformed = |reason, what: &dyn std::fmt::Display| {
            Refusal::Other(reason, Code::Malformed.because(what))
        };
        let der = STANDARD.decode(&asked.request).map_err(|_| {
            malformed("unreadable_request", &"`request` is a signing request, DER in base64")
        })?;
        let request = SigningRequest::parse(&der).map_err(|e| malformed(e.reason(), &e))?;
        let provider = self.0.providers.iter().find(|p| p.config.issuer == asked.issuer);
        let provider = provider.ok_or(Refusal::Token(TokenError::Issuer))?;
        let now = self.0.trusted.now();
        let by = (now.trust().trust_domain(), request.public_key());
        let mut missed = false;
        loop {
            let keys = provider.keys(missed).await.map_err(|e| {
                Refusal::Other("provider_unavailable", Code::Unavailable.because(e))
            })?;
            match holder(&asked.token, (&provider.config, &keys), by, clock::now()) {
                // Keys change: those that are kept may be the old ones.
                Err(TokenError::UnknownKey) if !missed => missed = true,
                Err(e) => return Err(Refusal::Token(e)),
                Ok(holder) => return Ok((request, holder)),
            }
        }
    }

    /// Whether somebody whom a token names may have a certificate, but for what policy says. The token is used up by that.
    async fn admit(
        &self,
        asked: &LoginRequest,
        request: &SigningRequest,
        holder: &Holder,
        roles: Roles,
    ) -> Result<(), Refusal> {
        if roles.is_empty() {
            // What `[roles]` says of the roles' own words leaves nothing of them.
            return Err(Refusal::Token(TokenError::Roles));
        }
        let named = self.0.trusted.check_name(&holder.id, request.public_key());
        named.map_err(|why| Refusal::Other(why.reason, why.problem()))?;
        self.take(&asked.token, holder).await
    }

    /// Uses a token up.
    async fn take(&self, token: &str, holder: &Holder) -> Result<(), Refusal> {
        let mut used = self.0.used.lock().await;
        let now = clock::now().as_millis() / 1_000;
        used.retain(|_, until| *until > now - SKEW_S);
        if used.len() >= USED_MAX {
            let busy = Code::Busy.because("too many have signed in in a short while: try again");
            return Err(Refusal::Other("busy", busy));
        }
        if used.insert(Digest::of(token.as_bytes()), holder.until).is_some() {
            let problem = Code::Unidentified.because("this token was used already: sign in again");
            return Err(Refusal::Other("token_used", problem));
        }
        Ok(())
    }

    async fn sign(
        &self,
        request: SigningRequest,
        who: &SpiffeId,
        group: String,
    ) -> Result<Granted, Problem> {
        let grant = Grant { spiffe: who.clone(), lifetime: self.0.session, group: Some(group) };
        let authority = Regional(self.0.authority.clone());
        let trust = self.0.trusted.now().trust().clone();
        let signed = tokio::task::spawn_blocking(move || {
            granted(&authority, &request, &grant, &trust, now_unix)
        });
        let signed = signed.await.map_err(anyhow::Error::from).and_then(|done| Ok(done?));
        signed.map_err(|e| {
            tracing::error!(error = %format!("{e:#}"), "nobody can be signed in");
            Code::Unavailable.because("the authority gives no certificate now")
        })
    }

    /// Records that somebody was not signed in, and says why.
    async fn refuse(&self, actor: &Actor, issuer: &str, refusal: Refusal) -> Problem {
        let (reason, problem) = match refusal {
            Refusal::Token(e) => (e.reason(), Code::Unidentified.because(e)),
            Refusal::Other(reason, problem) => (reason, problem),
        };
        let parts = self.0.engine.parts();
        parts.metrics.connection(reason);
        tracing::warn!(address = actor.address, reason, "signing in was refused");
        let mut entry = Draft::new(Kind::ConnectionRefused)
            .actor(actor)
            .text("decision", "deny")
            .text("reason", reason)
            .text("detail", &problem.detail);
        // Anybody can say any other.
        if self.0.providers.iter().any(|p| p.config.issuer == issuer) {
            entry = entry.text("issuer", issuer);
        }
        if let Err(e) = parts.writer.record(vec![entry]).await {
            // Nothing was given out, so nothing unlogged happened but the refusal itself.
            tracing::error!(error = %e, "a refusal could not be logged");
        }
        problem
    }

    fn router(self) -> Router {
        let (router, api) = routes();
        router
            .route("/openapi.json", get(move || std::future::ready(Json(api.clone()))))
            .fallback(|| async {
                Refused::from(Code::NotFound.because("nothing but signing in is served here"))
            })
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(map_response(as_problem))
            .with_state(self)
    }
}

/// The description of where operators sign in.
#[derive(OpenApi)]
#[openapi(info(
    title = "Falaj coordinator, signing in",
    description = "What a coordinator with `[oidc]` serves at the address in `oidc.address`, where nobody needs a certificate: for a token of an identity provider an operator's key gets one. It is TLS 1.3 with the coordinator's certificate, and HTTP/1.1. Everything else is asked for at the other address, with that certificate."
))]
struct Api;

/// Every route, and their description.
pub fn routes() -> (Router<Oidc>, utoipa::openapi::OpenApi) {
    let (router, mut api) = OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(providers))
        .routes(routes!(login))
        .split_for_parts();
    problems(&mut api, &ANYWHERE);
    (router, api)
}

/// Where one may sign in.
#[utoipa::path(get, path = "/api/v1/login/providers", responses((status = 200, body = Page<LoginProvider>)))]
async fn providers(State(oidc): State<Oidc>) -> Json<Page<LoginProvider>> {
    let shown = |provider: &Provider| {
        let config = &provider.config;
        LoginProvider {
            issuer: config.issuer.clone(),
            client_id: config.client_id.clone(),
            scopes: config.scopes.clone(),
            device: config.device,
            resource: config.resource.clone(),
            ca: provider.ca.clone(),
        }
    };
    Json(Page { items: oidc.0.providers.iter().map(shown).collect(), next: None })
}

/// Gives a certificate for a token: for each token one.
#[utoipa::path(post, path = "/api/v1/login", request_body = LoginRequest, responses((status = 201, body = Login), (status = 401, description = "The token is not believed, or was used already.", body = ProblemJson), (status = 403, description = "Policy does not let whom the token names come from where they are.", body = ProblemJson), (status = 429, description = "Too many sign in at once.", body = ProblemJson), (status = 503, description = "The provider, the authority or the audit log is away.", body = ProblemJson)))]
async fn login(
    State(oidc): State<Oidc>,
    Extension(address): Extension<SocketAddr>,
    body: Bytes,
) -> Result<(StatusCode, Json<Login>), Refused> {
    if !oidc.0.pace.take(Instant::now()) {
        return Err(Code::Busy.because("too many come here at once: try again").into());
    }
    let asked = serde_json::from_slice(&body).map_err(|e| {
        // The error could repeat what stands there.
        let at = format!("line {}, column {}", e.line(), e.column());
        Code::Malformed.because(format!("the body is not the JSON that is asked for: {at}"))
    })?;
    // To its end, even if whoever asked hangs up meanwhile.
    let done = tokio::spawn(async move { oidc.login(asked, address).await }).await;
    let done = done.unwrap_or_else(|e| {
        tracing::error!(error = %e, "signing in broke off");
        Err(Code::Internal.because("signing in broke off"))
    });
    Ok((StatusCode::CREATED, Json(done?)))
}

/// Serves until shutdown.
pub async fn serve(listener: TcpListener, oidc: Oidc, shutdown: CancellationToken) {
    let by = (oidc.0.engine.clone(), oidc.0.trusted.clone());
    let mut accepted = accept(listener, by, shutdown.clone());
    let router = oidc.router();
    while let Some(Ok(knock)) = accepted.recv().await {
        tokio::spawn(converse(knock, router.clone(), shutdown.clone()));
    }
}

/// One connection, which does not live for long.
async fn converse(knock: Knock, router: Router, shutdown: CancellationToken) {
    let service = TowerToHyperService::new(router.layer(Extension(knock.address)));
    let builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    tokio::select! {
        served = builder.serve_connection(TokioIo::new(knock), service) => {
            if let Err(e) = served {
                tracing::debug!(error = %e, "a connection broke");
            }
        }
        () = tokio::time::sleep(CONNECTION) => {}
        () = shutdown.cancelled() => {}
    }
}
