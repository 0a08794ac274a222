//! The one place where things are constructed: from a configuration to a running coordinator.

use crate::{
    accept::{Acceptor, Connection},
    approvals::Approvals,
    blob::Blobs,
    checkpointer::{Checkpointer, high_water},
    clock,
    config::{Config, Limits, LogConfig, StateConfig},
    endpoints,
    engine::{Engine, Parts},
    enrolment::{Enrolments, door},
    erasure::Erasures,
    metrics::Metrics,
    oidc::{self, Oidc},
    outcomes::{self, Outcomes},
    persons::Persons,
    policy::{self, PolicyEngine},
    pruning::Prunings,
    refusals::Refusals,
    reports::Reports,
    rest,
    revocations::Revocations,
    rpc::Rpc,
    shards::{self, Begins, Keys, Opened, Shards},
    store::{
        Store,
        writer::{self, Commit, Writer},
    },
    tiles,
    timestamps::{Authority, Timestamps},
    tracking::{Mlflow, Tracking},
    trusted::{Door, Trusted},
    versions::Versions,
    witnesses::{self, Counted, Outside},
};
use anyhow::{Context as _, Result, ensure};
use axum::{Extension, Router};
use ed25519_dalek::SigningKey;
use falaj_certs::{
    identity::Identity,
    keys::{KeyAt, open_token, read_secret},
};
use falaj_core::{
    audit::{Draft, Kind},
    id::Role,
    ml_dsa::{MlDsaKey, MlDsaSigner},
    note::{NoteSigner, VerifierKey},
    sign::SignKey,
};
use falaj_proto::v1::federation_server::FederationServer;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

/// A message is at most one chunk and its frame; sizes never surface to a user.
const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// HTTP/2 windows: one large upload must not wait for round trips.
const WINDOW_BYTES: u32 = 8 << 20;
/// HTTP/2 frames of an upload: with the smallest, each fills a TLS record and leaves a few bytes for another.
const FRAME_BYTES_MAX: u32 = 256 << 10;
/// A silent connection is asked whether it lives after this long.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Requests under way when the coordinator is asked to end get this long.
const GRACE: Duration = Duration::from_secs(5);

/// The addresses that a coordinator has bound.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// For agents.
    pub grpc: SocketAddr,
    /// For operators.
    pub rest: SocketAddr,
    /// For Prometheus.
    pub metrics: Option<SocketAddr>,
    /// For whoever reads tiles.
    pub tiles: Option<SocketAddr>,
    /// For sites that have no certificate yet.
    pub enrolment: Option<SocketAddr>,
    /// For operators who sign in.
    pub oidc: Option<SocketAddr>,
}

/// What is listened on.
struct Listeners {
    grpc: TcpListener,
    rest: TcpListener,
    metrics: Option<TcpListener>,
    tiles: Option<TcpListener>,
    enrolment: Option<TcpListener>,
    oidc: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<(Self, Bound)> {
        let bind = async |address: SocketAddr| {
            TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
        };
        let bind_if = async |address: Option<SocketAddr>| match address {
            Some(address) => bind(address).await.map(Some),
            None => Ok(None),
        };
        let (listen, enrolment) = (&config.listen, config.enrolment.as_ref());
        let this = Self {
            grpc: bind(listen.grpc).await?,
            rest: bind(listen.rest).await?,
            metrics: bind_if(listen.metrics).await?,
            tiles: bind_if(listen.tiles).await?,
            enrolment: bind_if(enrolment.and_then(|enrolment| enrolment.address)).await?,
            oidc: bind_if(config.oidc.as_ref().map(|oidc| oidc.address)).await?,
        };
        let at = |listener: &Option<TcpListener>| {
            listener.as_ref().map(TcpListener::local_addr).transpose()
        };
        let bound = Bound {
            grpc: this.grpc.local_addr()?,
            rest: this.rest.local_addr()?,
            metrics: at(&this.metrics)?,
            tiles: at(&this.tiles)?,
            enrolment: at(&this.enrolment)?,
            oidc: at(&this.oidc)?,
        };
        Ok((this, bound))
    }
}

/// A coordinator that is ready to run.
pub struct App {
    config: Config,
    engine: Engine,
    checkpointer: Checkpointer,
    timestamps: Option<Timestamps>,
    reports: Option<Reports>,
    acceptors: [Acceptor; 2],
    trusted: Trusted,
    enrolments: Enrolments,
    oidc: Option<Oidc>,
    rest: Router,
    metrics: Arc<Metrics>,
    policy: PolicyEngine,
    writer: writer::Writer,
    outside: Vec<Outside>,
    tracking: Option<Tracking>,
}

impl App {
    /// Loads everything that a configuration names, checks the log, and takes up running studies.
    ///
    /// # Errors
    /// What is missing or wrong, where, and what to do.
    pub async fn open(config: Config, shutdown: &CancellationToken) -> Result<Self> {
        let Named { trusted, identity, policy, spoken_to } = Named::by(&config).await?;
        let dir = &config.state.dir;
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        trusted.keep_lists(dir.join("revocation-lists"))?;
        let persons = Persons::open(&dir.join("persons"))?;
        warn_of_lock_out(&persons, &policy, &trusted, &config);
        let scratch = emptied(&dir.join("scratch"))?;
        let keys = log_keys(&config)?;
        let models = models(&config.state)?;
        let metrics = Arc::<Metrics>::default();
        let (store, writing) = Store::open(&config.state.database()?).await?;
        let there = (store, writing.sealing(persons.clone()));
        let kept = config.log.high_water.as_deref().map(high_water).transpose()?.flatten();
        let me = identity.spiffe.to_string();
        let Opened { store, writer, begins } =
            shards::open(there, &config.log, &keys, kept.as_deref(), &me, &metrics).await?;
        if begins.is_none() {
            outcomes::settle(&store, &writer).await?;
        }
        started(&writer, begins, &policy, &me, &trusted, spoken_to.entries).await?;
        let parts = Parts {
            store: store.clone(),
            writer: writer.clone(),
            updates: Blobs::open(&dir.join("updates"))?,
            models,
            persons,
            outcomes: Outcomes::new(writer.clone(), metrics.clone()),
            refusals: refusals(&writer, &metrics, &config.limits),
            policy: policy.clone(),
            witnesses: Counted::of(&spoken_to.witnesses, trusted.now().trust()),
            metrics: metrics.clone(),
            signer: keys.signer.clone(),
            shards: all_shards(&store, &keys).await?,
            limits: config.limits.clone(),
        };
        let engine = Engine::open(parts, shutdown.clone()).await?;
        let erasures = Erasures::open(engine.clone()).await?;
        let checkpointer = checkpointer(&writer, keys, &config.log);
        let timestamps = spoken_to.authority.map(|authority| {
            Timestamps::new(authority, store, writer.clone(), checkpointer.clone(), metrics.clone())
        });
        let reporting = |config| {
            let me = identity.spiffe.clone();
            Reports::new(config, engine.clone(), checkpointer.clone(), timestamps.clone(), me)
        };
        let reports = config.log.reports.clone().map(reporting).transpose()?;
        let revocations = Revocations::open(engine.clone(), trusted.clone()).await?;
        let approvals = Approvals::open(engine.clone(), trusted.clone()).await?;
        let me = identity.spiffe.clone();
        let enrolment = config.enrolment.as_ref();
        let enrolments = Enrolments::open(engine.clone(), trusted.clone(), me, enrolment).await?;
        // Whoever was revoked while nobody was here to be told is in no model that follows.
        trusted.withdraw_absent(&engine).await?;
        engine.begin();
        let told = |mlflow| Tracking::new(engine.clone(), mlflow, &identity.spiffe);
        let tracking = spoken_to.mlflow.map(told);
        let roles = Arc::new(config.roles.clone());
        let oidc = Oidc::of(config.oidc.clone(), &engine, &trusted, &roles)?;
        let acceptor = |door| {
            let (trusted, roles, oidc) = (trusted.clone(), roles.clone(), oidc.clone());
            Acceptor { trusted, door, engine: engine.clone(), roles, oidc }
        };
        let rest = rest::router(Arc::new(rest::App {
            engine: engine.clone(),
            prunings: Prunings::open(erasures.clone(), config.log.retention.clone()).await?,
            erasures,
            revocations,
            versions: Versions::new(engine.clone(), approvals.clone(), checkpointer.clone()),
            approvals,
            enrolments: enrolments.clone(),
            checkpointer: checkpointer.clone(),
            timestamps: timestamps.clone(),
            trusted: trusted.clone(),
            identity: identity.spiffe,
            started: clock::now().to_string(),
            scratch,
            tails: Arc::new(Semaphore::new(rest::TAILS_MAX)),
            exports: Arc::new(Semaphore::new(rest::EXPORTS_MAX)),
            shutdown: shutdown.clone(),
        }));
        let acceptors = [Door::Agents, Door::Operators].map(acceptor);
        Ok(Self {
            config,
            engine,
            checkpointer,
            timestamps,
            reports,
            acceptors,
            trusted,
            enrolments,
            oidc,
            rest,
            metrics,
            policy,
            writer,
            outside: spoken_to.witnesses,
            tracking,
        })
    }

    /// The reports that it makes by itself, if some are configured.
    #[must_use]
    pub const fn reports(&self) -> Option<&Reports> {
        self.reports.as_ref()
    }

    /// Serves until shutdown. `ready` hears of the bound addresses once everything listens.
    ///
    /// # Errors
    /// When an address cannot be bound, or serving fails.
    pub async fn run(
        self,
        shutdown: CancellationToken,
        ready: impl FnOnce(Bound) -> Result<()>,
    ) -> Result<()> {
        let Self {
            config,
            engine,
            checkpointer,
            timestamps,
            reports,
            acceptors,
            trusted,
            enrolments,
            oidc,
            rest,
            metrics,
            policy,
            writer,
            outside,
            tracking,
        } = self;
        let (listeners, bound) = Listeners::bind(&config).await?;
        let at = (policy.clone(), trusted.clone());
        let database = endpoints::watch(&config, at, shutdown.clone())?;
        let signing = checkpointer.clone();
        let checkpoints = tokio::spawn(checkpointer.run(shutdown.clone()));
        let stamping = timestamps.map(|t| tokio::spawn(t.run(shutdown.clone())));
        let reporting = reports.map(|r| tokio::spawn(r.run(shutdown.clone())));
        let parts = engine.parts();
        let refusals = tokio::spawn(parts.refusals.clone().run(shutdown.clone()));
        for witness in outside {
            let (store, writer) = (parts.store.clone(), writer.clone());
            tokio::spawn(witness.run(store, writer, metrics.clone(), shutdown.clone()));
        }
        if let Some(tracking) = tracking {
            tokio::spawn(tracking.run(shutdown.clone()));
        }
        let [for_agents, for_operators] = acceptors;
        let most = config.limits.connections_max;
        let agents = for_agents.run(listeners.grpc, most, shutdown.clone());
        let operators = for_operators.run(listeners.rest, most, shutdown.clone());
        let operators = tokio::spawn(serve_rest(operators, rest, shutdown.clone()));
        if let Some((listener, address)) = listeners.enrolment.zip(bound.enrolment) {
            let public = config.enrolment.as_ref().and_then(|enrolment| enrolment.public.clone());
            enrolments.listens(public.unwrap_or_else(|| address.to_string()));
            let asked = (engine.clone(), trusted.clone());
            tokio::spawn(door::serve(listener, enrolments.clone(), asked, shutdown.clone()));
        }
        if let Some((listener, oidc)) = listeners.oidc.zip(oidc) {
            tokio::spawn(oidc::serve(listener, oidc, shutdown.clone()));
        }
        if let Some(listener) = listeners.tiles {
            tokio::spawn(tiles::serve(listener, parts.shards.clone(), shutdown.clone()));
        }
        if let Some(listener) = listeners.metrics {
            tokio::spawn(serve_metrics(
                listener,
                metrics.clone(),
                writer.clone(),
                shutdown.clone(),
            ));
        }
        tokio::spawn(trusted.clone().watch(engine.clone(), shutdown.clone()));
        let following = (parts.persons.clone(), writer.clone(), metrics.clone());
        let (persons, writer, counted) = following;
        tokio::spawn(policy::follow(policy, persons, writer, counted, trusted, shutdown.clone()));
        ready(bound)?;
        let rpc = Rpc::new(engine.clone(), signing, enrolments, &config.evidence)
            .declaring(config.declared.told());
        let service = FederationServer::new(rpc).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let ended = shutdown.clone();
        let ending = engine.clone();
        let serving = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_frame_size(FRAME_BYTES_MAX)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_service(service)
            .serve_with_incoming_shutdown(ReceiverStream::new(agents), async move {
                ended.cancelled().await;
                // The task streams never end by themselves.
                ending.sites().close();
            });
        let forced = async {
            shutdown.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            served = serving => served.context("serving agents")?,
            () = forced => tracing::warn!("some requests were cut off"),
        }
        engine.ended().await;
        operators.await?;
        engine.parts().outcomes.drained().await;
        refusals.await?;
        for background in [stamping, reporting].into_iter().flatten() {
            background.await?;
        }
        checkpoints.await?;
        database.await?
    }
}

async fn all_shards(store: &Store, keys: &Keys) -> Result<Shards> {
    Shards::load(store, keys.signer.verifier()).await?.beside(keys.signer.ml_dsa())
}

fn refusals(writer: &Writer, metrics: &Arc<Metrics>, limits: &Limits) -> Arc<Refusals> {
    Arc::new(Refusals::new(writer.clone(), metrics.clone(), limits.refusals_logged_max))
}

/// What the coordinator speaks to besides its database, and the entries that say that it may speak to each.
struct SpokenTo {
    authority: Option<Authority>,
    witnesses: Vec<Outside>,
    mlflow: Option<Mlflow>,
    entries: Vec<Draft>,
}

impl SpokenTo {
    /// Loads what a configuration names, and has policy decide over it and the database before any is spoken to.
    async fn load(
        config: &Config,
        identity: &Identity,
        policy: &PolicyEngine,
        trusted: &Trusted,
    ) -> Result<Self> {
        let log = &config.log;
        let trust_domain = identity.spiffe.trust_domain();
        let authority = log.timestamps.as_ref();
        Ok(Self {
            authority: authority.map(|one| Authority::load(one, Some(trusted))).transpose()?,
            witnesses: witnesses::load(&log.witnesses, trust_domain, Some(trusted))?,
            mlflow: config.tracking.as_ref().map(|one| Mlflow::load(one, trusted)).transpose()?,
            entries: endpoints::permitted(config, policy, trusted, identity).await?,
        })
    }
}

/// What a configuration names, before anything is spoken to.
struct Named {
    trusted: Trusted,
    identity: Identity,
    policy: PolicyEngine,
    spoken_to: SpokenTo,
}

impl Named {
    async fn by(config: &Config) -> Result<Self> {
        let trusted = Trusted::open(&config.identity, &config.revocation, &config.evidence)?;
        let identity = coordinators(trusted.own_identity()?, config)?;
        let policy = PolicyEngine::load(&config.policy.dir, identity.spiffe.place())?;
        trusted.check_policy(&policy)?;
        trusted.decided_by(policy.clone());
        let spoken_to = SpokenTo::load(config, &identity, &policy, &trusted).await?;
        Ok(Self { trusted, identity, policy, spoken_to })
    }
}

/// Looks at what a configuration names as a start does, and speaks to nothing: the coordinator's certificate, its policies, and
/// whether they let it speak to its endpoints.
///
/// # Errors
/// What is missing or wrong, where, and what to do.
pub async fn checked(config: &Config) -> Result<(Identity, PolicyEngine)> {
    let Named { identity, policy, .. } = Named::by(config).await?;
    Ok((identity, policy))
}

/// The folder of the models, and what seals them.
fn models(state: &StateConfig) -> Result<Blobs> {
    let models = Blobs::open(&state.dir.join("models"))?;
    Ok(models.sealed(state.model_key.as_deref(), &state.model_keys_before)?)
}

/// A folder for what need not outlive a run, without what the last one left.
fn emptied(folder: &Path) -> Result<PathBuf> {
    // What cannot be removed does no harm.
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder.to_owned())
}

/// A coordinator's certificate, and nobody else's.
fn coordinators(identity: Identity, config: &Config) -> Result<Identity> {
    ensure!(
        identity.spiffe.role() == Role::Coordinator,
        "{} is a {}'s certificate, a coordinator's is needed",
        config.identity.cert.display(),
        identity.spiffe.role()
    );
    Ok(identity)
}

/// Says so when no operator could come and put the policies right.
fn warn_of_lock_out(persons: &Persons, policy: &PolicyEngine, trusted: &Trusted, config: &Config) {
    if !persons.all().is_empty() && !policy.lets_in(persons, &trusted.now().best_evidence()) {
        tracing::error!(
            policies = %config.policy.dir.display(),
            "no operator who is known may connect and look or revoke: put the policies right; until then `falaj-coordinator break-glass` lets operators look, stop and revoke"
        );
    }
}

fn checkpointer(writer: &writer::Writer, keys: Keys, config: &LogConfig) -> Checkpointer {
    let this = Checkpointer::new(writer.clone(), keys.signer, config.high_water.clone());
    match keys.retiring.zip(config.retiring.as_ref()) {
        Some((before, retiring)) => this.beside(before, retiring.until),
        None => this,
    }
}

/// The log's keys; those that sign are made on the first start.
fn log_keys(config: &Config) -> Result<Keys> {
    let signer =
        |at: &KeyAt| Ok::<_, anyhow::Error>(NoteSigner::new(&config.log.origin, log_key(at)?)?);
    let retiring = config.log.retiring.as_ref().map(|retiring| {
        ensure!(is_there(&retiring.key), "`log.retiring.key`: {} is not there", retiring.key);
        signer(&retiring.key).map(Arc::new)
    });
    let mut signer = signer(&key_at(config))?;
    if let Some(path) = &config.log.ml_dsa_key {
        let why = "`log.origin` has more than 255 bytes: `log.ml_dsa_key` cannot sign for it";
        signer = signer.with_ml_dsa(&secret(path)?).context(why)?;
    }
    Ok(Keys { signer: Arc::new(signer), retiring: retiring.transpose()? })
}

/// The public key of the log that a configuration names; its secret half is made on the first start.
///
/// # Errors
/// When there is no key yet, or it cannot be read.
pub fn log_verifier_key(config: &Config) -> Result<VerifierKey> {
    let at = key_at(config);
    ensure!(is_there(&at), "{at} is not there: this coordinator has never started");
    let key = log_key(&at)?.verifying_key();
    Ok(VerifierKey::new(&config.log.origin, key)?)
}

/// The log's second public key, if a configuration names one; its secret half is made on the first start.
///
/// # Errors
/// As [`log_verifier_key`].
pub fn log_ml_dsa_key(config: &Config) -> Result<Option<MlDsaKey>> {
    let Some(path) = &config.log.ml_dsa_key else { return Ok(None) };
    ensure!(path.exists(), "{} is not there: no start has made it yet", path.display());
    Ok(Some(MlDsaSigner::new(&config.log.origin, &secret(path)?)?.key().clone()))
}

fn key_at(config: &Config) -> KeyAt {
    let named = config.log.key.clone();
    named.unwrap_or_else(|| KeyAt::File(config.state.dir.join("log.key")))
}

/// Whether there is such a file; whether a token has the key is seen when it is opened.
fn is_there(key: &KeyAt) -> bool {
    key.file().is_none_or(Path::exists)
}

fn log_key(at: &KeyAt) -> Result<Arc<dyn SignKey>> {
    Ok(match at {
        KeyAt::File(path) => Arc::new(SigningKey::from_bytes(&secret(path)?)),
        KeyAt::Token(token) => open_token(token)?,
    })
}

/// The secret behind a log key, made on the first start with mode 0600.
fn secret(path: &Path) -> Result<[u8; 32]> {
    if !path.exists() {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("writing {}", path.display()))?;
        file.write_all(hex::encode(secret).as_bytes())?;
        file.sync_all()?;
    }
    let text = read_secret(path)?;
    let mut secret = [0; 32];
    hex::decode_to_slice(text.trim_ascii(), &mut secret).with_context(|| {
        format!("{} is not a log key: restore it from a backup", path.display())
    })?;
    Ok(secret)
}

/// The first entries of a run: under which certificate, trust and policies the coordinator works.
async fn started(
    writer: &writer::Writer,
    begins: Option<Begins>,
    policy: &PolicyEngine,
    identity: &str,
    trusted: &Trusted,
    endpoints: Vec<Draft>,
) -> Result<()> {
    let entry = Draft::new(Kind::CoordinatorStarted)
        .text("coordinator", identity)
        .text("version", env!("CARGO_PKG_VERSION"))
        .digest("policy_set_sha256", &policy.digest());
    let (entry, trust_rows) = trusted.started(entry);
    let rows = policy.rows().into_iter().chain(trust_rows).collect();
    let entries = [Some(entry), policy.broken()].into_iter().flatten().collect();
    let mut commit = Commit { rows, entries, round: None };
    if let Some(begins) = begins {
        begins.put(&mut commit);
    }
    commit.entries.extend(endpoints);
    writer.commit(commit).await?;
    Ok(())
}

async fn serve_rest(
    mut accepted: mpsc::Receiver<std::io::Result<Connection>>,
    router: Router,
    shutdown: CancellationToken,
) {
    let graceful = GracefulShutdown::new();
    loop {
        let connection = tokio::select! {
            () = shutdown.cancelled() => break,
            next = accepted.recv() => match next {
                Some(Ok(connection)) => connection,
                Some(Err(_)) => continue,
                None => break,
            },
        };
        let peer = connection.peer.clone();
        let service = TowerToHyperService::new(router.clone().layer(Extension(peer)));
        let builder = auto::Builder::new(TokioExecutor::new());
        let serving = builder.serve_connection(TokioIo::new(connection), service).into_owned();
        let serving = graceful.watch(serving);
        tokio::spawn(async move {
            if let Err(e) = serving.await {
                tracing::debug!(error = %e, "a connection broke");
            }
        });
    }
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(GRACE) => {}
    }
}

async fn serve_metrics(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    writer: writer::Writer,
    shutdown: CancellationToken,
) {
    let text = move || {
        metrics.log_size.set(i64::try_from(writer.head().0).unwrap_or(i64::MAX));
        metrics.refresh(clock::now());
        let content = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        std::future::ready(([(axum::http::header::CONTENT_TYPE, content)], metrics.text()))
    };
    let router = Router::new().route("/metrics", axum::routing::get(text));
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(async move { shutdown.cancelled().await })
        .await;
    if let Err(e) = served {
        tracing::error!(error = %e, "metrics are not served any more");
    }
}
