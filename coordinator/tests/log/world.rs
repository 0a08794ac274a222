//! A coordinator in this process: everything that is behind its sockets, and what asks it.

use anyhow::{Context as _, Result, ensure};
use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    http::{Method, Request, StatusCode},
    response::Response,
};
use ed25519_dalek::SigningKey;
use falaj_certs::{
    ca::{self, Authority},
    tls::Credentials,
};
use falaj_coordinator::{
    accept::Peer,
    approvals::Approvals,
    blob::Blobs,
    checkpointer::Checkpointer,
    clock,
    config::{
        EvidenceConfig, IdentityConfig, Limits, LogConfig, NetworksConfig, ReportsConfig,
        RevocationConfig,
    },
    engine::{Engine, Parts},
    enrolment::Enrolments,
    erasure::Erasures,
    evidence::Known,
    metrics::Metrics,
    outcomes::Outcomes,
    persons::Persons,
    policy::PolicyEngine,
    pruning::Prunings,
    refusals::{LOGGED_MAX, Refusals},
    reports::Reports,
    rest::{self, EXPORTS_MAX, TAILS_MAX},
    revocations::Revocations,
    rpc::Rpc,
    shards::{self, Keys, Shards},
    store::{
        Database, Store,
        row::{ModelRow, Stamped, TimestampRow},
        writer::{self, Change, Commit},
    },
    trusted::{Standing, Trusted},
    versions::Versions,
    witnesses::Counted,
};
use falaj_core::{
    audit::{Actor, Draft, Entry, Kind},
    id::{Digest, Place, Role, RoundId},
    note::NoteSigner,
    roles::Roles,
};
use falaj_proto::v1::federation_server::FederationServer;
use serde_json::{Value, json};
use sqlx::SqlitePool;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Nothing in a test takes longer; what does has hung.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// The largest answer.
const BYTES_MAX: usize = 64 << 20;
/// Somebody who has to do with the study that every world has.
pub(crate) const OMAR: &str = "spiffe://falaj.test/ae-on/ae-az/operator/omar";
/// Somebody who is erased when every route is asked, and has to do with no study.
pub(crate) const LAYLA: &str = "spiffe://falaj.test/ae-on/ae-az/operator/layla";
/// The file in a world's folder that may have a policy of retention.
pub(crate) const RETENTION: &str = "retention.toml";
/// The file in a world's folder that may say which networks lie where.
pub(crate) const NETWORKS: &str = "networks.csv";
/// Somebody who is revoked before every route is asked, and reinstated then.
pub(crate) const REVOKED: &str = "spiffe://falaj.test/ae-on/ae-az/site/gone";
/// Somebody who is revoked when every route is asked.
const NEWCOMER: &str = "spiffe://falaj.test/ae-on/ae-az/site/newcomer";
/// The study that every world has.
pub(crate) const STUDY: &str = "heart";

/// A coordinator and who asks it.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) engine: Engine,
    pub(crate) erasures: Erasures,
    pub(crate) revocations: Revocations,
    pub(crate) enrolments: Enrolments,
    pub(crate) persons: Persons,
    pub(crate) store: Store,
    pub(crate) writer: writer::Writer,
    pub(crate) operator: Arc<Peer>,
    pub(crate) site: Arc<Peer>,
    /// What the writer writes through, to a SQLite file.
    pool: Option<SqlitePool>,
    pub(crate) checkpointer: Checkpointer,
    pub(crate) prunings: Prunings,
    router: Router,
}

/// Certificates in a folder: an authority, and a party's own folder under it.
pub(crate) fn party(dir: &Path, role: Role, name: &str) -> Result<PathBuf> {
    let place: Place = "ae-on/ae-az".parse()?;
    let home = dir.join("ca");
    let authority = if home.exists() {
        Authority::open(&home)?
    } else {
        let authority = Authority::init(&home, "falaj.test")?;
        authority.add_issuer(&place)?;
        authority
    };
    let own = home.join(role.to_string()).join(name);
    if own.exists() {
        return Ok(own);
    }
    authority.issue(&ca::Request { role, name: name.into(), place, days: 1, dns: Vec::new() })
}

pub(crate) fn credentials(home: &Path) -> Result<Credentials> {
    Ok(Credentials::load(&home.join("cert.pem"), &home.join("key.pem"))?)
}

pub(crate) fn peer(dir: &Path, persons: &Persons, role: Role, name: &str) -> Result<Arc<Peer>> {
    let credentials = credentials(&party(dir, role, name)?)?;
    let identity = credentials.identity()?;
    let person = (role == Role::Operator).then(|| persons.meet(&identity.spiffe)).transpose()?;
    let actor = Actor {
        person,
        id: Some(identity.spiffe.clone()),
        cert: Some(identity.cert_sha256),
        address: Some("127.0.0.1:1".into()),
        roles: Roles::ALL,
    };
    let certificate = credentials.certificate().into();
    let standing = Standing::default();
    let (chain, trusted) = (Vec::new(), trusted(dir)?);
    let (known, admitted) = (Known::default(), Ok(identity));
    known.let_in();
    let holder = None;
    Ok(Arc::new(Peer { actor, certificate, chain, standing, trusted, known, holder, admitted }))
}

/// Whom a coordinator lets in that has the authority in this folder.
pub(crate) fn trusted(dir: &Path) -> Result<Trusted> {
    let own = party(dir, Role::Coordinator, "main")?;
    let trust = dir.join("ca/trust.toml");
    let identity =
        IdentityConfig { cert: own.join("cert.pem"), key: (&own.join("key.pem")).into(), trust };
    let file = dir.join(NETWORKS);
    let networks = file.exists().then_some(NetworksConfig { file, jurisdiction: None });
    let networks = networks.into_iter().collect();
    let evidence = EvidenceConfig { networks, ..EvidenceConfig::default() };
    Trusted::open(&identity, &RevocationConfig::default(), &evidence)
}

pub(crate) fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies")
}

pub(crate) fn signer() -> NoteSigner {
    NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[9; 32])).expect("a name")
}

/// A study that waits for two sites, which never come.
pub(crate) fn study(name: &str) -> String {
    format!(
        "study: {name}\npurpose: asking the log\n\
         data:\n  dataset: wdbc\n  label: {{ column: diagnosis, classes: [benign, malignant] }}\n  features:\n    - {{ name: radius, min: 0.0, max: 30.0 }}\n\
         model: {{ kind: logistic }}\n\
         training: {{ local_steps: 5, sample_rate: 0.1, learning_rate: 0.5 }}\n\
         privacy: {{ mechanism: dp_sgd, noise_multiplier: 1.0, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 900.0 }}\n\
         sealing: {{ bits: 16, range: 8.0 }}\n\
         cohort: {{ places: [\"ae-on/*\"], min_sites: 2 }}\n\
         rounds: {{ count: 1, deadline_s: 3600, grace_s: 2 }}\n"
    )
}

impl World {
    /// A coordinator with one study.
    pub(crate) async fn new() -> Result<Self> {
        Self::asking("").await
    }

    /// A coordinator with one study that says this, too.
    pub(crate) async fn asking(more: &str) -> Result<Self> {
        Self::over(tempfile::tempdir()?).await?.with_a_study(more).await
    }

    /// A coordinator with one study, and its log in this database.
    pub(crate) async fn on(database: &Database) -> Result<Self> {
        Self::open(tempfile::tempdir()?, database).await?.with_a_study("").await
    }

    async fn with_a_study(self, more: &str) -> Result<Self> {
        let this = self;
        let yaml = study(STUDY) + more;
        let request = Request::post("/api/v1/studies").body(yaml.into())?;
        let answer = this.ask(request, &this.operator).await?;
        ensure!(answer.status() == StatusCode::CREATED, "{}", text(answer).await?);
        // The round's opening is the last thing that happens by itself.
        let mut heads = this.writer.heads();
        tokio::time::timeout(PATIENCE, heads.wait_for(|head| head.0 >= 2)).await??;
        Ok(this)
    }

    /// A coordinator over what lies in a folder.
    pub(crate) async fn over(dir: TempDir) -> Result<Self> {
        let database = Database::Sqlite(dir.path().join("coordinator.sqlite"));
        Self::open(dir, &database).await
    }

    /// Reports over this log.
    pub(crate) fn reports(&self, config: ReportsConfig) -> Result<Reports> {
        let (engine, checkpointer) = (self.engine.clone(), self.checkpointer.clone());
        let me = "spiffe://falaj.test/ae-on/ae-az/coordinator/main".parse()?;
        Reports::new(config, engine, checkpointer, None, me)
    }

    /// Puts a time-stamp into the store, of a checkpoint of one entry: what is in it is for other tests.
    pub(crate) async fn stamp(&self) -> Result<()> {
        self.stamp_of(1, "note").await
    }

    /// The same, of a checkpoint of so many entries, which this note stands for.
    pub(crate) async fn stamp_of(&self, tree_size: u64, note: &str) -> Result<()> {
        let row = TimestampRow {
            what: Stamped::Checkpoint,
            imprint: Digest::of(note.as_bytes()),
            tree_size,
            authority: "CN=Authority".into(),
            stamped: clock::now(),
            answer: b"answer".to_vec(),
            log_index: 0,
            committed: clock::now(),
        };
        let rows = vec![Change::Checkpoint(tree_size, note.into()), Change::Timestamp(row)];
        let entries = vec![Draft::new(Kind::CheckpointStamped)];
        self.writer.commit(Commit { rows, entries, round: None }).await?;
        Ok(())
    }

    /// What the writer writes through, to a SQLite file.
    pub(crate) fn pool(&self) -> &SqlitePool {
        self.pool.as_ref().expect("a SQLite file")
    }

    async fn open(dir: TempDir, database: &Database) -> Result<Self> {
        let persons = Persons::open(&dir.path().join("persons"))?;
        let (signer, metrics) = (Arc::new(signer()), Arc::new(Metrics::default()));
        let (store, writing) = Store::open(database).await?;
        let writing = writing.sealing(persons.clone());
        let pool = writing.sqlite();
        let (writer, service) = writer::open(writing, &signer, None, metrics.clone()).await?;
        tokio::spawn(service.run());
        Self::with(dir, persons, signer, (store, writer, pool), metrics).await
    }

    /// The coordinator that goes on from this one in the next shard of its log, which is a SQLite file.
    pub(crate) async fn next(self, origin: &str) -> Result<Self> {
        let Self { dir, .. } = self;
        let persons = Persons::open(&dir.path().join("persons"))?;
        let (signer, metrics) = (Arc::new(signer().renamed(origin)?), Arc::new(Metrics::default()));
        let database = Database::Sqlite(dir.path().join("coordinator.sqlite"));
        let (store, writing) = Store::open(&database).await?;
        let writing = writing.sealing(persons.clone());
        let pool = writing.sqlite();
        let config = LogConfig {
            origin: origin.to_owned(),
            key: None,
            retiring: None,
            high_water: None,
            ml_dsa_key: None,
            timestamps: None,
            reports: None,
            retention: None,
            witnesses: Vec::new(),
        };
        let keys = Keys { signer: signer.clone(), retiring: None };
        let there = (store, writing);
        let opened = shards::open(there, &config, &keys, None, "the coordinator", &metrics).await?;
        let entries = vec![Draft::new(Kind::CoordinatorStarted)];
        let mut commit = Commit { entries, ..Commit::default() };
        opened.begins.context("it is the shard that was there")?.put(&mut commit);
        opened.writer.commit(commit).await?;
        Self::with(dir, persons, signer, (opened.store, opened.writer, pool), metrics).await
    }

    async fn with(
        dir: TempDir,
        persons: Persons,
        signer: Arc<NoteSigner>,
        (store, writer, pool): (Store, writer::Writer, Option<SqlitePool>),
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let path = dir.path();
        let operator = peer(path, &persons, Role::Operator, "sara")?;
        let site = peer(path, &persons, Role::Site, "hospital-1")?;
        let home = credentials(&party(path, Role::Coordinator, "main")?)?.identity()?.spiffe;
        let parts = Parts {
            store: store.clone(),
            writer: writer.clone(),
            updates: Blobs::open(&path.join("updates"))?,
            models: Blobs::open(&path.join("models"))?,
            persons: persons.clone(),
            outcomes: Outcomes::new(writer.clone(), metrics.clone()),
            refusals: Arc::new(Refusals::new(writer.clone(), metrics.clone(), LOGGED_MAX)),
            policy: PolicyEngine::load(&policies(), home.place())?,
            witnesses: Counted::default(),
            metrics,
            shards: Shards::load(&store, signer.verifier()).await?,
            signer: signer.clone(),
            limits: Limits::default(),
        };
        let shutdown = CancellationToken::new();
        let engine = Engine::open(parts, shutdown.clone()).await?;
        engine.begin();
        let erasures = Erasures::open(engine.clone()).await?;
        let revocations = Revocations::open(engine.clone(), trusted(path)?).await?;
        let approvals = Approvals::open(engine.clone(), trusted(path)?).await?;
        let (whom, me) = (trusted(path)?, home.clone());
        let enrolments = Enrolments::open(engine.clone(), whom, me, None).await?;
        enrolments.listens("127.0.0.1:8447".into());
        let checkpointer = Checkpointer::new(writer.clone(), signer, None);
        let policy = Some(path.join(RETENTION));
        let prunings = Prunings::open(erasures.clone(), policy).await?;
        let router = rest::router(Arc::new(rest::App {
            engine: engine.clone(),
            erasures: erasures.clone(),
            prunings: prunings.clone(),
            revocations: revocations.clone(),
            versions: Versions::new(engine.clone(), approvals.clone(), checkpointer.clone()),
            approvals,
            enrolments: enrolments.clone(),
            checkpointer: checkpointer.clone(),
            timestamps: None,
            trusted: trusted(path)?,
            identity: home,
            started: clock::now().to_string(),
            scratch: path.to_owned(),
            tails: Arc::new(Semaphore::new(TAILS_MAX)),
            exports: Arc::new(Semaphore::new(EXPORTS_MAX)),
            shutdown,
        }));
        Ok(Self {
            dir,
            engine,
            erasures,
            revocations,
            enrolments,
            persons,
            store,
            writer,
            operator,
            site,
            pool,
            checkpointer,
            prunings,
            router,
        })
    }

    /// Another operator.
    pub(crate) fn person(&self, name: &str) -> Result<Arc<Peer>> {
        peer(self.dir.path(), &self.persons, Role::Operator, name)
    }

    /// Models of the study, each as if two sites had learned it in a round: `hospital-1` in all, `hospital-2` from the second.
    pub(crate) async fn publish(&self, rounds: u32) -> Result<()> {
        let (parts, study) = (self.engine.parts(), STUDY.parse()?);
        let handle = self.engine.study(&study)?;
        let first = self.store.models(&study).await?.first().context("a model")?.sha256;
        let (mut base, params) = (first, parts.models.read(&first).await?);
        for number in 1..=rounds {
            let mut params = params.clone();
            params[0] ^= u8::try_from(number)?;
            let model = Digest::of(&params);
            parts.models.put(model, params).await?;
            let sites = ["hospital-1", "hospital-2"].into_iter().take(number.min(2) as usize);
            let round = RoundId { study: study.clone(), number };
            let about = |kind| Draft::new(kind).round(&round).count("attempt", 0);
            let payload = |site: &str| Digest::of(format!("payload {number} {site}").as_bytes());
            let accepted = |site: &str| {
                about(Kind::UpdateAccepted)
                    .text("site", &format!("spiffe://falaj.test/ae-on/ae-az/site/{site}"))
                    .digest("payload_sha256", &payload(site))
                    .digest("header_sha256", &Digest::of(b"header"))
                    .count("weight", 10)
                    .text("epsilon", "0.5")
            };
            let published = about(Kind::ModelPublished)
                .digest("base_sha256", &base)
                .digest("model_sha256", &model)
                .digest("manifest_sha256", &handle.meta.manifest.digest())
                .digests("updates", &sites.clone().map(payload).collect::<Vec<_>>())
                .count("total_weight", 20);
            let entries = sites.map(accepted).chain([published]).collect();
            let row =
                ModelRow { study: study.clone(), number, sha256: model, published: clock::now() };
            let rows = vec![Change::Model(row)];
            self.writer.commit(Commit { rows, entries, round: None }).await?;
            base = model;
        }
        Ok(())
    }

    /// What is answered to a document that somebody posts: the status and the answer.
    pub(crate) async fn post(
        &self,
        path: &str,
        document: &Value,
        who: &Arc<Peer>,
    ) -> Result<(StatusCode, Value)> {
        let request = Request::post(format!("/api/v1/{path}")).body(document.to_string().into())?;
        let answer = self.ask(request, who).await?;
        Ok((answer.status(), serde_json::from_str(&text(answer).await?)?))
    }

    /// Makes a round's model a version, and has it go on to a stage, with another person's approval.
    pub(crate) async fn promoted(&self, round: u32, stages: &[&str]) -> Result<u64> {
        let versions = format!("studies/{STUDY}/versions");
        let (status, made) =
            self.post(&versions, &json!({ "round": round }), &self.operator).await?;
        ensure!(status == StatusCode::CREATED, "{made}");
        let number = made["version"].as_u64().context("a number")?;
        let sara = self.operator.identity()?.spiffe.to_string();
        for stage in stages {
            let asked = json!({ "action": "version.promote", "study": STUDY, "version": number, "stage": stage, "for": sara });
            let (status, given) = self.post("approvals", &asked, &self.person("omar")?).await?;
            ensure!(status == StatusCode::CREATED, "{given}");
            let path = format!("{versions}/{number}/promote");
            let (status, moved) =
                self.post(&path, &json!({ "stage": stage }), &self.operator).await?;
            ensure!(status == StatusCode::OK && moved["stage"] == *stage, "{moved}");
        }
        Ok(number)
    }

    /// Versions of every kind, for [`Self::every_route`]: the first has served, the second serves, the third is tried, and nobody
    /// has decided over the others.
    pub(crate) async fn with_versions(&self) -> Result<()> {
        self.publish(7).await?;
        let all = ["staging", "production"];
        for (round, stages) in [(1, 2), (2, 2), (3, 1), (4, 0), (5, 0), (6, 0)] {
            self.promoted(round, &all[..stages]).await?;
        }
        Ok(())
    }

    /// What the router answers to somebody.
    pub(crate) async fn ask(&self, request: Request<Body>, who: &Arc<Peer>) -> Result<Response> {
        let router = self.router.clone().layer(Extension(who.clone()));
        Ok(tokio::time::timeout(PATIENCE, router.oneshot(request)).await.context("it hangs")??)
    }

    /// What the router answers to the operator.
    pub(crate) async fn call(&self, method: Method, path: &str) -> Result<Response> {
        let request = Request::builder().method(method).uri(path).body(Body::empty())?;
        self.ask(request, &self.operator).await
    }

    /// A document that the operator gets.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.call(Method::GET, &format!("/api/v1/{path}")).await?;
        ensure!(answer.status() == StatusCode::OK, "{path}: {}", text(answer).await?);
        Ok(serde_json::from_str(&text(answer).await?)?)
    }

    /// One request for every route that there is, by the operator, the release of this hold and the withdrawal of this token and of
    /// this approval among them.
    pub(crate) fn every_route(
        hold: &str,
        token: &str,
        approval: &str,
    ) -> Result<Vec<Request<Body>>> {
        let (_, api) = rest::routes();
        let api = serde_json::to_value(api)?;
        let mut requests = Vec::new();
        for (path, methods) in api["paths"].as_object().context("paths")? {
            for method in methods.as_object().context("methods")?.keys() {
                let (path, body) = match path.as_str() {
                    "/api/v1/studies" if method == "post" => (path.clone(), study("other")),
                    "/api/v1/log/prunings" => (path.clone(), pruning("falaj.test/log", &[0; 32])),
                    "/api/v1/erasures" => (path.clone(), erasure(LAYLA, "Article 14")),
                    "/api/v1/holds" if method == "post" => (
                        path.clone(),
                        format!("{{\"study\":\"{STUDY}\",\"article\":\"Article 1\"}}"),
                    ),
                    "/api/v1/revocations" if method == "post" => {
                        (path.clone(), revocation(NEWCOMER))
                    }
                    "/api/v1/enrolment-tokens" if method == "post" => {
                        let asked = r#"{"name":"newcomer","place":"ae-on/ae-az","ttl_s":60}"#;
                        (path.clone(), asked.into())
                    }
                    "/api/v1/approvals" if method == "post" => {
                        let asked = format!(r#"{{"action":"log.export","for":"{OMAR}"}}"#);
                        (path.clone(), asked)
                    }
                    "/api/v1/lineage" => (format!("{path}?place=ae-on/ae-az"), String::new()),
                    "/api/v1/studies/{id}/versions" if method == "post" => {
                        (path.replace("{id}", STUDY), r#"{"round":7}"#.into())
                    }
                    "/api/v1/studies/{id}/aliases/{alias}" => {
                        let path = path.replace("{id}", STUDY).replace("{alias}", "challenger");
                        (path, r#"{"version":3}"#.into())
                    }
                    "/api/v1/studies/{id}/roll-back" => {
                        (path.replace("{id}", STUDY), r#"{"reason":"worse"}"#.into())
                    }
                    path if path.contains("/versions/{version}/") && method == "post" => {
                        let verb = path.rsplit('/').next().unwrap_or_default();
                        let (version, asked) = match verb {
                            "promote" => ("4", r#"{"stage":"staging"}"#),
                            "reject" => ("5", r#"{"reason":"worse"}"#),
                            _ => ("6", r#"{"reason":"worse"}"#),
                        };
                        let path = path.replace("{id}", STUDY).replace("{version}", version);
                        (path, asked.into())
                    }
                    path if path.contains("/candidate/") => {
                        let none = Digest([0; 32]);
                        let asked =
                            json!({ "candidate_sha256": none.to_string(), "reason": "fine" });
                        (path.replace("{id}", STUDY), asked.to_string())
                    }
                    "/api/v1/reinstatements" => (path.clone(), revocation(REVOKED)),
                    "/api/v1/log/mirror" => {
                        (format!("{path}?from=0&place=ae-on/ae-az"), String::new())
                    }
                    "/api/v1/log/accesses" => (format!("{path}?object={STUDY}"), String::new()),
                    _ => (path.replace("{id}", STUDY), String::new()),
                };
                let path = path.replace("{hold}", hold).replace("{token}", token);
                let path = path.replace("{approval}", approval);
                let path = path.replace("{round}", "latest").replace("{index}", "0");
                let path = path.replace("{tree_size}", "1").replace("{version}", "1");
                ensure!(!path.contains('{'), "{path}: say here what stands for this parameter");
                let method = method.to_uppercase();
                requests.push(Request::builder().method(&*method).uri(path).body(body.into())?);
            }
        }
        ensure!(requests.len() >= 24, "{} routes", requests.len());
        Ok(requests)
    }

    /// The code with which the operator is refused.
    pub(crate) async fn refusal(&self, path: &str) -> Result<(StatusCode, String)> {
        let answer = self.call(Method::GET, &format!("/api/v1/{path}")).await?;
        let status = answer.status();
        let problem: Value = serde_json::from_str(&text(answer).await?)?;
        Ok((status, problem["code"].as_str().context("no code")?.to_owned()))
    }

    /// The RPC service, over its own wire format.
    pub(crate) fn rpc(&self) -> FederationServer<Rpc> {
        FederationServer::new(Rpc::new(
            self.engine.clone(),
            self.checkpointer.clone(),
            self.enrolments.clone(),
            &EvidenceConfig::default(),
        ))
    }

    /// Entries from an index on.
    pub(crate) async fn entries(&self, from: u64) -> Result<Vec<Entry>> {
        let rows = self.store.entries(from, u64::MAX, 10_000, None).await?;
        Ok(rows.iter().map(|(_, bytes, _)| Entry::parse(bytes)).collect::<Result<_, _>>()?)
    }
}

/// A request's document that asks for an erasure.
pub(crate) fn erasure(person: &str, article: &str) -> String {
    serde_json::json!({ "person": person, "article": article }).to_string()
}

/// A request's document that asks for a pruning.
pub(crate) fn pruning(shard: &str, bundle: &[u8; 32]) -> String {
    serde_json::json!({ "shard": shard, "bundle_sha256": Digest(*bundle).to_string() }).to_string()
}

/// A request's document that revokes somebody, or takes that back.
pub(crate) fn revocation(subject: &str) -> String {
    serde_json::json!({ "subject": subject, "reason": "left" }).to_string()
}

/// The whole body of an answer.
pub(crate) async fn text(answer: Response) -> Result<String> {
    let bytes = tokio::time::timeout(PATIENCE, to_bytes(answer.into_body(), BYTES_MAX)).await;
    Ok(String::from_utf8(bytes.context("it hangs")??.to_vec())?)
}
