//! REST, as operators and pipelines see it: decode, ask, call one method, encode.
//!
//! Every request is decided by policy and recorded before it is served. `/openapi.json` is generated from
//! the handlers.

mod approvals;
mod asking;
mod candidates;
mod described;
mod enrolment;
mod figures;
mod gates;
mod lineage;
mod log;
mod mirror;
mod pages;
mod people;
mod revocations;
mod shards;
mod stamps;
mod tags;
mod versions;

use crate::{
    accept::Peer,
    approvals::{Approvals, Taken},
    checkpointer::Checkpointer,
    clock,
    engine::{Engine, Handle, View, by_name, problem_of, unreadable},
    enrolment::Enrolments,
    erased::{Beyond, Erased},
    erasure::Erasures,
    export,
    outcomes::{Intent, Serving},
    policy::{Action, Resource},
    proofs,
    pruning::Prunings,
    revocations::Revocations,
    store::{Store, writer::CommitError},
    timestamps::{StampError, Timestamps},
    trusted::Trusted,
    versions::Versions,
};
use asking::{Asking, asker};
use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event as Sse, KeepAlive},
    },
};
use falaj_core::{
    audit::{Draft, Kind, objects::Object},
    evaluation::Evaluation,
    gate::patience::{Patience, Progress},
    id::{Digest, Place, SpiffeId, StudyId},
    registry::safetensors,
    round::{APPROVERS, AnyRound, Held},
    witness::InclusionProof,
};
use falaj_proto::{
    problem::{Code, Problem, ProblemJson},
    rest::{self, Checkpoint, Model, Page, Round, Site, Status, Study, StudyEvent, Witness},
    study::STUDY_BYTES_MAX,
};
use futures_util::StreamExt as _;
use pages::PageQuery;
use serde::Deserialize;
use shards::{Shard, ShardQuery};
use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};
use tempfile::NamedTempFile;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::{io::ReaderStream, sync::CancellationToken};
use utoipa::{IntoParams, OpenApi};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Bytes of a model that are read at once.
const BLOCK_BYTES: usize = 256 << 10;
/// Operators who follow the log at once.
pub const TAILS_MAX: usize = 64;
/// Exports and mirrors that are made or sent at once: each is a copy of the log on the coordinator's disk.
pub const EXPORTS_MAX: usize = 4;

/// What handlers work with.
pub struct App {
    /// The engine.
    pub engine: Engine,
    /// Erases people.
    pub erasures: Erasures,
    /// Prunes shards that have ended.
    pub prunings: Prunings,
    /// Revokes certificates.
    pub revocations: Revocations,
    /// Takes approvals, and counts them.
    pub approvals: Approvals,
    /// Moves versions of models.
    pub versions: Versions,
    /// Makes tokens for sites.
    pub enrolments: Enrolments,
    /// Signs checkpoints.
    pub checkpointer: Checkpointer,
    /// Has an authority stamp reports, if there is one.
    pub timestamps: Option<Timestamps>,
    /// Which networks lie where.
    pub trusted: Trusted,
    /// Who the coordinator is.
    pub identity: SpiffeId,
    /// When it started.
    pub started: String,
    /// Where exports are written before they are sent.
    pub scratch: PathBuf,
    /// Room for those who follow the log: [`TAILS_MAX`].
    pub tails: Arc<Semaphore>,
    /// Room for exports and mirrors: [`EXPORTS_MAX`].
    pub exports: Arc<Semaphore>,
    /// Ends what would go on for ever.
    pub shutdown: CancellationToken,
}

pub(crate) use described::{as_problem, problems};

type Ctx = State<Arc<App>>;
type Who = Extension<Arc<Peer>>;
/// What a request asks for, by name: for the entry that says so.
type Asked = Vec<(&'static str, String)>;

/// A problem as a response.
pub struct Refused(Problem);

impl From<Problem> for Refused {
    fn from(p: Problem) -> Self {
        Self(p)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&ProblemJson::from(&self.0)).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, described::PROBLEM)], body).into_response()
    }
}

type Answer<T> = Result<T, Refused>;

/// The description of this interface.
#[derive(OpenApi)]
#[openapi(info(
    title = "Falaj coordinator",
    description = "What operators and pipelines may ask of a coordinator. Every request is decided by policy and recorded in the audit log before it is served. Where operators sign in with a token of an identity provider has an address and a description of its own."
))]
struct Api;

/// Every route, and their description.
pub fn routes() -> (Router<Arc<App>>, utoipa::openapi::OpenApi) {
    let (router, api) = OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(status))
        .routes(routes!(sites))
        .routes(routes!(submit, list))
        .routes(routes!(show))
        .routes(routes!(stop))
        .routes(routes!(rounds))
        .routes(routes!(study_file))
        .routes(routes!(figures::figures))
        .routes(routes!(gates::gates))
        .routes(routes!(events))
        .routes(routes!(models))
        .routes(routes!(download))
        .routes(routes!(checkpoint))
        .routes(routes!(witnesses))
        .routes(routes!(shards::shards))
        .routes(routes!(shards::prune))
        .routes(routes!(stamps::timestamps))
        .routes(routes!(stamps::timestamp))
        .routes(routes!(log::entries))
        .routes(routes!(log::accesses))
        .routes(routes!(log::tail))
        .routes(routes!(prove))
        .routes(routes!(log_export))
        .routes(routes!(mirror::mirror))
        .routes(routes!(people::list))
        .routes(routes!(people::erase))
        .routes(routes!(people::holds, people::hold))
        .routes(routes!(people::release))
        .routes(routes!(revocations::list, revocations::revoke))
        .routes(routes!(revocations::reinstate))
        .routes(routes!(enrolment::list, enrolment::offer))
        .routes(routes!(enrolment::withdraw))
        .routes(routes!(approvals::list, approvals::give))
        .routes(routes!(approvals::withdraw))
        .routes(routes!(candidates::approve))
        .routes(routes!(candidates::reject))
        .routes(routes!(versions::list))
        .routes(routes!(versions::of_study, versions::make))
        .routes(routes!(versions::show))
        .routes(routes!(versions::provenance))
        .routes(routes!(versions::card))
        .routes(routes!(versions::file))
        .routes(routes!(lineage::ancestry))
        .routes(routes!(versions::promote))
        .routes(routes!(versions::reject))
        .routes(routes!(versions::revoke))
        .routes(routes!(versions::roll_back))
        .routes(routes!(versions::alias))
        .routes(routes!(lineage::lineage))
        .split_for_parts();
    (router, described::described(api))
}

/// The service for one application.
pub fn router(app: Arc<App>) -> Router {
    let (router, api) = routes();
    router
        .route("/openapi.json", axum::routing::get(move || std::future::ready(Json(api.clone()))))
        .fallback(|| async {
            Refused(Code::NotFound.because("there is nothing here; see /openapi.json"))
        })
        .layer(DefaultBodyLimit::max(STUDY_BYTES_MAX + 1))
        .layer(axum::middleware::map_response(described::as_problem))
        .layer(axum::middleware::from_fn(tags::tagged))
        .with_state(app)
}

impl App {
    /// Decides and records an operator's request before it is served.
    async fn grant(
        &self,
        peer: &Peer,
        action: Action,
        study: Option<&Handle>,
    ) -> Result<Intent, Problem> {
        self.grant_asked(peer, action, study, &[]).await
    }

    /// As [`Self::grant`]; the entry says what was asked for, too. Where something is taken to is its `place`.
    async fn grant_asked(
        &self,
        peer: &Peer,
        action: Action,
        study: Option<&Handle>,
        asked: &[(&str, String)],
    ) -> Result<Intent, Problem> {
        self.grant_told(peer, action, study, asked, |draft| draft).await
    }

    /// As [`Self::grant_asked`]; the entry tells more.
    async fn grant_told(
        &self,
        peer: &Peer,
        action: Action,
        study: Option<&Handle>,
        asked: &[(&str, String)],
        tell: impl FnOnce(Draft) -> Draft + Send,
    ) -> Result<Intent, Problem> {
        let who = peer.party()?;
        let mechanism = study.map_or("none", |h| h.meta.study.privacy.mechanism.as_str());
        let resource =
            study.map_or(Resource::Service, |h| Resource::Study(&h.meta.study.id, mechanism));
        let kind = match action {
            Action::ModelRead => Kind::ModelRead,
            Action::LogExport => Kind::LogExported,
            _ => Kind::AdminRead,
        };
        let mut places = asked.iter().filter(|(name, _)| *name == "place");
        let destination: Option<Place> = places.next().and_then(|(_, place)| place.parse().ok());
        let to = destination.as_ref().unwrap_or(who.id.place());
        let asked = asked.iter().map(|(name, value)| (*name, value.as_str()));
        let mut draft = Draft::new(kind).actor(&peer.actor).asked(asked);
        if let Some(handle) = study {
            draft = draft.study(&handle.meta.study.id);
        }
        let draft = tell(draft);
        let committed = match peer.actor.person {
            Some(person) if Action::TAKING.contains(&action) => {
                let taken = Taken { action, resource: &resource, to, promotion: None };
                self.approvals.grant((who, person), &taken, draft, Vec::new()).await?
            }
            _ => self.engine.grant_to(who, action, &resource, to, draft).await?.1,
        };
        let study = study.map(|handle| handle.meta.study.id.clone());
        Ok(Intent { index: committed.first, kind, actor: peer.actor.clone(), study })
    }

    /// A signed checkpoint of a shard with the cosignatures that it has.
    async fn cosigned((store, keys): &Shard, note: String) -> Result<Checkpoint, Problem> {
        let opened = keys.open(&note).map_err(|e| Code::Internal.because(e))?;
        let tree_size = opened.tree_size;
        let lines = store.cosignatures(tree_size).await.map_err(unreadable)?;
        let root_hash = opened.root_hash.to_string();
        let witnesses = u32::try_from(lines.len()).unwrap_or(u32::MAX);
        Ok(Checkpoint { note: note + &lines.concat(), tree_size, root_hash, witnesses })
    }

    /// Room for an export or a mirror, which is a copy of the log.
    fn room_to_export(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let full = |_| {
            let why = format!(
                "{EXPORTS_MAX} exports or mirrors of the log are made or sent already: try again when one has ended"
            );
            Code::Busy.because(why)
        };
        self.exports.clone().try_acquire_owned().map_err(full)
    }

    /// Where an export is written before it is sent.
    fn scratch_file(&self) -> Result<NamedTempFile, Problem> {
        let made = tempfile::Builder::new().prefix("export-").tempfile_in(&self.scratch);
        made.map_err(|e| export_failed(&e.into()))
    }

    /// The newest checkpoint of a shard: of the one that is written, signed now unless it was before.
    async fn current_checkpoint(&self, store: &Store) -> Result<(u64, String), Problem> {
        if store.ended() {
            return self.last_checkpoint(store).await;
        }
        self.checkpointer.current(store).await.map_err(|e| problem_of(&e))
    }

    /// The last checkpoint of a shard that has ended.
    async fn last_checkpoint(&self, store: &Store) -> Result<(u64, String), Problem> {
        let last = store.newest_checkpoint().await.map_err(unreadable)?;
        last.ok_or_else(|| Code::NotFound.because("this shard has no checkpoint"))
    }

    /// Who a name is, if it is a person's pseudonym and they were not erased.
    fn named(&self, name: &str) -> String {
        let person = match name.parse() {
            Ok(Object::Person(person)) => self.engine.parts().persons.identity(person),
            _ => None,
        };
        person.map_or_else(|| name.to_owned(), |id| id.to_string())
    }

    /// A study that somebody names. That it is not there is told only to those who may know what is, and is an access.
    async fn study(&self, peer: &Peer, name: &str) -> Result<Handle, Problem> {
        let id = name.parse::<StudyId>().map_err(|e| Code::UnknownStudy.because(e));
        match id.and_then(|id| self.engine.study(&id)) {
            Ok(handle) => Ok(handle),
            Err(unknown) => {
                let asked = [("unknown_study", name.to_owned())];
                self.grant_asked(peer, Action::StatusRead, None, &asked).await?;
                Err(unknown)
            }
        }
    }
}

/// Runs something to its end, even if whoever asked hangs up meanwhile.
async fn to_the_end<T: Send + 'static>(
    what: &'static str,
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work).await.unwrap_or_else(|e| {
        tracing::error!(error = %e, "{what} broke off");
        Err(Code::Internal.because(format!("{what} broke off: look whether it stands")))
    })
}

/// A study as operators see it: whoever submitted it by name, unless they were erased.
fn shown(app: &App, handle: &Handle) -> Study {
    let (meta, view): (_, View) = (&handle.meta, handle.view());
    Study {
        id: meta.study.id.to_string(),
        study_sha256: meta.digest.to_string(),
        state: view.state.into(),
        reason: view.reason,
        submitted: meta.submitted.to_string(),
        submitted_by: app.named(&meta.submitted_by),
        round: view.round.as_ref().map_or(0, |r| r.id().number),
        rounds: meta.study.rounds.count,
        rounds_promoted: view.promoted,
        model_sha256: view.model.to_string(),
        epsilon_by_site: by_name(&view.epsilon),
        bytes_by_site: by_name(&view.bytes),
        patience: meta.study.patience.map(|patience| {
            let progress = view.round.as_ref().map(AnyRound::progress).cloned().unwrap_or_default();
            waiting(&patience, progress, meta.study.evaluation.as_ref())
        }),
    }
}

/// How far a study is from its end by patience.
fn waiting(patience: &Patience, progress: Progress, e: Option<&Evaluation>) -> rest::Patience {
    let best = progress.best.map(|best| rest::BestModel {
        round: best.round,
        model_sha256: best.model.to_string(),
        end: best.end,
    });
    rest::Patience {
        figure: patience.figure.name(e),
        improve_by: patience.improve_by,
        rounds: patience.rounds,
        without: progress.without,
        best,
    }
}

/// How the coordinator is.
#[utoipa::path(get, path = "/api/v1/status", responses((status = 200, body = Status), (status = 403, body = ProblemJson)))]
async fn status(State(app): Ctx, Extension(peer): Who) -> Answer<Json<Status>> {
    app.grant(&peer, Action::StatusRead, None).await?;
    let parts = app.engine.parts();
    let running = app.engine.studies().iter().filter(|h| h.view().state == "running").count();
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        identity: app.identity.to_string(),
        started: app.started.clone(),
        sites_connected: small(app.engine.sites().count()),
        studies_running: small(running),
        log_size: parts.writer.head().0,
        policy_set_sha256: parts.policy.digest().to_string(),
        log_verifier_key: parts.signer.verifier().to_string(),
        log_ml_dsa_key: parts.signer.ml_dsa().map(ToString::to_string),
    }))
}

/// The sites that are connected.
#[utoipa::path(get, path = "/api/v1/sites", params(PageQuery), responses((status = 200, body = Page<Site>), (status = 403, body = ProblemJson)))]
async fn sites(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<Site>>> {
    app.grant(&peer, Action::StatusRead, None).await?;
    let (sites, next) = query.of(app.engine.sites().all(), |(id, _)| id.clone())?;
    let items = sites.into_iter().map(|(id, c)| Site {
        id: id.to_string(),
        connected: c.since.to_string(),
        address: c.address,
        agent_version: c.agent_version,
        datasets: c.datasets,
    });
    Ok(Json(Page { items: items.collect(), next }))
}

/// Submits a study: the body is the YAML file.
#[utoipa::path(post, path = "/api/v1/studies", request_body(content = String, content_type = "application/yaml"), responses((status = 201, body = Study), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 409, body = ProblemJson)))]
async fn submit(
    State(app): Ctx,
    Extension(peer): Who,
    asking: Asking,
) -> Answer<(StatusCode, Json<Study>)> {
    let once = match asking.once(&peer) {
        Ok(once) => once,
        Err(problem) => {
            let asker = asker(&peer, None)?;
            return Err(app.engine.refuse_unread(asker, &asking.body, problem).await.into());
        }
    };
    let Asking { parts, body } = asking;
    let engine = app.engine.clone();
    let submitted = to_the_end("a submission", async move {
        let file = parts.headers.get("falaj-file-name").and_then(|name| name.to_str().ok());
        engine.submit(body, file.unwrap_or("study.yaml"), asker(&peer, once)?).await
    });
    let handle = submitted.await?;
    Ok((StatusCode::CREATED, Json(shown(&app, &handle))))
}

/// Every study, by name.
#[utoipa::path(get, path = "/api/v1/studies", params(PageQuery), responses((status = 200, body = Page<Study>), (status = 403, body = ProblemJson)))]
async fn list(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<Study>>> {
    app.grant(&peer, Action::StatusRead, None).await?;
    let (studies, next) = query.of(app.engine.studies(), |handle| handle.meta.study.id.clone())?;
    let items = studies.iter().map(|handle| shown(&app, handle)).collect();
    Ok(Json(Page { items, next }))
}

/// One study.
#[utoipa::path(get, path = "/api/v1/studies/{id}", params(("id" = String, Path)), responses((status = 200, body = Study), (status = 404, body = ProblemJson)))]
async fn show(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
) -> Answer<Json<Study>> {
    let handle = app.study(&peer, &id).await?;
    app.grant(&peer, Action::StudyRead, Some(&handle)).await?;
    Ok(Json(shown(&app, &handle)))
}

/// A study's file, as it was submitted. Its digest is the entity tag.
#[utoipa::path(get, path = "/api/v1/studies/{id}/file", params(("id" = String, Path)), responses((status = 200, body = Object, content_type = "application/yaml", headers(("ETag" = String))), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
async fn study_file(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
) -> Answer<Response> {
    let handle = app.study(&peer, &id).await?;
    app.grant(&peer, Action::StudyRead, Some(&handle)).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/yaml".to_owned()),
        (header::ETAG, format!("\"{}\"", handle.meta.digest)),
    ];
    Ok((headers, handle.meta.yaml.clone()).into_response())
}

/// Stops a study.
#[utoipa::path(post, path = "/api/v1/studies/{id}/stop", params(("id" = String, Path)), responses((status = 200, body = Study), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
async fn stop(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    asking: Asking,
) -> Answer<Json<Study>> {
    let handle = app.study(&peer, &id).await?;
    app.grant(&peer, Action::StudyStop, Some(&handle)).await?;
    let once = asking.once(&peer)?;
    let (engine, study) = (app.engine.clone(), handle.meta.study.id.clone());
    let stopped = async move { engine.stop(&study, &peer.actor, once).await };
    to_the_end("a study's stop", stopped).await?;
    Ok(Json(shown(&app, &handle)))
}

/// The rounds of a study, tries included, in the order in which they were opened.
#[utoipa::path(get, path = "/api/v1/studies/{id}/rounds", params(("id" = String, Path), PageQuery), responses((status = 200, body = Page<Round>), (status = 404, body = ProblemJson)))]
async fn rounds(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<Round>>> {
    let handle = app.study(&peer, &id).await?;
    app.grant(&peer, Action::StudyRead, Some(&handle)).await?;
    let store = &app.engine.parts().store;
    let (rounds, next) = query.rounds(store, &handle.meta.study.id).await?;
    let items = rounds.iter().map(round_shown).collect();
    Ok(Json(Page { items, next }))
}

fn round_shown(round: &AnyRound) -> Round {
    let mut sites: BTreeMap<String, String> = BTreeMap::new();
    for (site, word) in round.standing() {
        sites.insert(site.name().to_owned(), word);
    }
    for site in round.updates().keys() {
        sites.entry(site.name().to_owned()).or_insert_with(|| "updated".to_owned());
    }
    let (model, reason) = match round {
        AnyRound::Promoted(r) => (Some(r.stage.model.to_string()), None),
        AnyRound::Rejected(r) => (None, Some(r.stage.reasons.join("; "))),
        AnyRound::Failed(r) => (None, Some(r.stage.reason.to_string())),
        AnyRound::Held(r) => {
            let Held { candidate, approved, until, reasons, .. } = &r.stage;
            let (so_far, why) = (approved.len(), reasons.join("; "));
            let waits = format!(
                "candidate {candidate} waits until {until} for people, {so_far} of {APPROVERS} approve it: {why}"
            );
            (None, Some(waits))
        }
        _ => (None, None),
    };
    Round {
        round: round.id().number,
        stage: round.stage().into(),
        attempt: round.spec().attempt,
        sites,
        base_sha256: round.spec().base.to_string(),
        model_sha256: model,
        reason,
    }
}

/// What happens in a study, as server-sent events of `StudyEvent`: first how it stands, then each change.
#[utoipa::path(get, path = "/api/v1/studies/{id}/events", params(("id" = String, Path)), responses((status = 200, body = StudyEvent, content_type = "text/event-stream"), (status = 404, body = ProblemJson)))]
async fn events(State(app): Ctx, Extension(peer): Who, Path(id): Path<String>) -> Answer<Response> {
    let handle = app.study(&peer, &id).await?;
    app.grant(&peer, Action::StudyRead, Some(&handle)).await?;
    // Listening begins before the snapshot is taken, so nothing falls between.
    let changes = BroadcastStream::new(handle.watch());
    let first = handle.snapshot();
    let over = first.state != "running";
    let lagging = handle.clone();
    let changes = changes.map(move |change| change.unwrap_or_else(|_| lagging.snapshot()));
    let stream = futures_util::stream::iter([first])
        .chain(changes.take_while(move |_| std::future::ready(!over)));
    // A study that is over says so once, and then nothing more will come.
    let mut last = false;
    let stream = stream
        .take_while(move |event| {
            let go_on = !last;
            last = event.state != "running";
            std::future::ready(go_on)
        })
        .map(|event| Sse::default().json_data(event));
    Ok(axum::response::Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
}

/// The models of a study; round 0 is the first, untrained one.
#[utoipa::path(get, path = "/api/v1/studies/{id}/models", params(("id" = String, Path), PageQuery), responses((status = 200, body = Page<Model>), (status = 404, body = ProblemJson)))]
async fn models(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<Model>>> {
    let handle = app.study(&peer, &id).await?;
    app.grant(&peer, Action::StudyRead, Some(&handle)).await?;
    let manifest = &handle.meta.manifest;
    let rows = app.engine.parts().store.models(&handle.meta.study.id).await.map_err(unreadable)?;
    let (rows, next) = query.of(rows, |row| row.number)?;
    let items = rows.into_iter().map(|m| Model {
        round: m.number,
        model_sha256: m.sha256.to_string(),
        manifest_sha256: manifest.digest().to_string(),
        params: manifest.params() as u64,
        published: m.published.to_string(),
    });
    Ok(Json(Page { items: items.collect(), next }))
}

/// Where something is taken to.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ToQuery {
    /// A place such as `ae-on/ae-az`; where whoever asks is themselves when absent.
    place: Option<String>,
}

impl ToQuery {
    /// What is asked for, in words that are known; an error when it is no place.
    fn asked(&self) -> (Vec<(&'static str, String)>, Result<(), Problem>) {
        let Some(place) = &self.place else { return (Vec::new(), Ok(())) };
        match place.parse::<Place>() {
            Ok(place) => (vec![("place", place.to_string())], Ok(())),
            Err(e) => (Vec::new(), Err(Code::Malformed.because(format!("`place`: {e}")))),
        }
    }
}

/// Downloads a model as `safetensors`. `round` is a number, or `latest`.
#[utoipa::path(get, path = "/api/v1/studies/{id}/models/{round}", params(("id" = String, Path), ("round" = String, Path), ToQuery), responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
async fn download(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, round)): Path<(String, String)>,
    Query(to): Query<ToQuery>,
) -> Answer<Response> {
    let handle = app.study(&peer, &id).await?;
    let parts = app.engine.parts();
    let rows = parts.store.models(&handle.meta.study.id).await.map_err(unreadable)?;
    let row = match round.as_str() {
        "latest" => {
            let newest = handle.view().model;
            rows.iter().find(|m| m.sha256 == newest)
        }
        number => rows.iter().find(|m| number.parse() == Ok(m.number)),
    };
    let Some(row) = row else {
        app.grant(&peer, Action::StudyRead, Some(&handle)).await?;
        let what = format!("study `{id}` has no model of round {round}");
        return Err(Code::UnknownModel.because(what).into());
    };
    let found = Found { version: None, round: row.number, model: row.sha256 };
    send_model(&app, &peer, &handle, Ok(found), &to).await
}

/// Which model is meant.
struct Found {
    /// As which version it was asked for, if it was.
    version: Option<u32>,
    round: u32,
    model: Digest,
}

impl Found {
    fn tell(&self, draft: Draft) -> Draft {
        let draft = draft.count("round", self.round.into()).digest("model_sha256", &self.model);
        self.version.iter().fold(draft, |draft, number| draft.count("version", (*number).into()))
    }
}

/// Sends a round's model as `safetensors`, if policy allows that it is taken there and no version of it was revoked. That it is not
/// there is told to those only who might have it.
async fn send_model(
    app: &App,
    peer: &Peer,
    handle: &Handle,
    found: Result<Found, Problem>,
    to: &ToQuery,
) -> Answer<Response> {
    let (asked, read) = to.asked();
    let tell = |draft: Draft| found.iter().fold(draft, |draft, found| found.tell(draft));
    let intent = app.grant_told(peer, Action::ModelRead, Some(handle), &asked, tell).await?;
    let parts = app.engine.parts();
    let serving = parts.outcomes.serving(intent);
    read?;
    let Found { round, model, .. } = found?;
    let meta = &handle.meta;
    app.versions.check_usable(&meta.study.id, &model).await?;
    let head = safetensors::head(&meta.study.id, &meta.digest, round, &model, &meta.manifest);
    let (_, blocks) = parts.models.blocks(&model, BLOCK_BYTES).await.map_err(|e| {
        tracing::error!(error = %e, %model, "a model cannot be read");
        Code::Internal.because("the coordinator cannot read this model")
    })?;
    let bytes = head.len() + meta.manifest.params() * 4;
    let body = futures_util::stream::iter([Ok::<_, io::Error>(Bytes::from(head))]).chain(blocks);
    let body = serving.watch(bytes as u64, body);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, bytes.to_string()),
        (header::HeaderName::from_static("falaj-model-sha256"), model.to_string()),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// A fresh signed checkpoint of the log.
#[utoipa::path(get, path = "/api/v1/log/checkpoint", responses((status = 200, body = Checkpoint), (status = 403, body = ProblemJson)))]
async fn checkpoint(State(app): Ctx, Extension(peer): Who) -> Answer<Json<Checkpoint>> {
    app.grant(&peer, Action::LogRead, None).await?;
    let (_, note) = app.checkpointer.sign().await.map_err(|e| problem_of(&e))?;
    let written = app.engine.parts().shards.newest();
    Ok(Json(App::cosigned(written, note).await?))
}

/// The proof that an entry is in the log, as a file (C2SP tlog-proof).
#[utoipa::path(get, path = "/api/v1/log/entries/{index}/proof", params(("index" = u64, Path), ShardQuery), responses((status = 200, body = String, content_type = "text/plain"), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
async fn prove(
    State(app): Ctx,
    Extension(peer): Who,
    Path(index): Path<u64>,
    Query(query): Query<ShardQuery>,
) -> Answer<String> {
    let shard = query.find(&app);
    let mut asked = vec![("index", index.to_string())];
    asked.extend(query.asked(&shard));
    app.grant_asked(&peer, Action::LogRead, None, &asked).await?;
    let (store, _) = shard?;
    let (tree_size, note) = app.current_checkpoint(store).await?;
    if index >= tree_size {
        return Err(Code::NotFound.because(format!("the log has {tree_size} entries")).into());
    }
    let hashes = proofs::inclusion(store, index, tree_size).await.map_err(unreadable)?;
    let note = note + &store.cosignatures(tree_size).await.map_err(unreadable)?.concat();
    Ok(InclusionProof { index, hashes, note }.to_text())
}

/// Who stands behind how much of the log, by cosignatures.
#[utoipa::path(get, path = "/api/v1/log/witnesses", params(PageQuery), responses((status = 200, body = Page<Witness>), (status = 403, body = ProblemJson)))]
async fn witnesses(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<Witness>>> {
    app.grant(&peer, Action::LogRead, None).await?;
    let parts = app.engine.parts();
    let size = parts.writer.head().0;
    let witness = |(witness, tree_size): (String, u64)| Witness {
        witness,
        tree_size,
        since: size.saturating_sub(tree_size),
    };
    let all = parts.store.witnesses().await.map_err(unreadable)?;
    let (all, next) = query.of(all, |(witness, _)| witness.clone())?;
    Ok(Json(Page { items: all.into_iter().map(witness).collect(), next }))
}

/// How much of the log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ExportQuery {
    /// Entries: up to this checkpoint, which was signed before.
    tree_size: Option<u64>,
    /// The origin of a shard; the one that is written when absent.
    shard: Option<String>,
    /// Where it is taken to: a place such as `ae-on/ae-az`; where whoever asks is themselves when absent.
    place: Option<String>,
    /// With a time-stamp of the report, from the authority that the coordinator asks.
    #[serde(default)]
    timestamp: bool,
}

/// Exports the log as one tar for `falaj-verify`: up to and including this access, or up to a checkpoint that was signed
/// before, which gives the same bytes each time.
#[utoipa::path(get, path = "/api/v1/log/export", params(ExportQuery), responses((status = 200, body = Vec<u8>, content_type = "application/x-tar"), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 410, body = ProblemJson), (status = 429, body = ProblemJson), (status = 503, body = ProblemJson)))]
async fn log_export(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<ExportQuery>,
) -> Answer<Response> {
    let wanted = ShardQuery { shard: query.shard };
    let shard = wanted.find(&app);
    let mut asked = wanted.asked(&shard);
    asked.extend(query.tree_size.map(|size| ("tree_size", size.to_string())));
    asked.extend(query.timestamp.then(|| ("timestamp", "true".to_owned())));
    let (to, read) = ToQuery { place: query.place }.asked();
    asked.extend(to);
    let intent = app.grant_asked(&peer, Action::LogExport, None, &asked).await?;
    let parts = app.engine.parts();
    let serving = parts.outcomes.serving(intent);
    read?;
    let (store, keys) = shard?;
    let room = app.room_to_export()?;
    store.check_whole().await.map_err(unreadable)?;
    let timestamps = app.timestamps.as_ref().filter(|_| query.timestamp);
    if query.timestamp && timestamps.is_none() {
        let why = "this coordinator asks no time-stamp authority: export without a time-stamp, or set `log.timestamps` in its configuration";
        return Err(Code::NotFound.because(why).into());
    }
    let failed = |e: anyhow::Error| export_failed(&e);
    let (tree_size, note) = match query.tree_size {
        None if store.ended() => app.last_checkpoint(store).await?,
        None => app.checkpointer.sign().await.map_err(|e| problem_of(&e))?,
        Some(size) => {
            let note = store.checkpoint(size).await.map_err(unreadable)?;
            let none =
                || Code::NotFound.because(format!("no checkpoint of {size} entries was signed"));
            (size, note.ok_or_else(none)?)
        }
    };
    // Whoever is erased meanwhile was not when this was asked for.
    let persons = parts.persons.now();
    let of = (store, tree_size);
    let erased = Erased::after(of, &persons, &parts.shards, &app.checkpointer).await;
    let erased = erased.map_err(failed)?;
    let named = app.scratch_file()?;
    let from = (store, &persons, &erased);
    let written = export::write(from, keys, &note, tree_size, timestamps, &[], named.path());
    written.await.map_err(failed)?;
    send_file((serving, room), &named).await
}

/// Why an export cannot be had.
fn export_failed(e: &anyhow::Error) -> Problem {
    if let Some(beyond) = e.downcast_ref::<Beyond>() {
        return Code::NotFound.because(beyond);
    }
    if let Some(commit) = e.downcast_ref::<CommitError>() {
        return problem_of(commit);
    }
    tracing::error!(error = %format!("{e:#}"), "an export failed");
    if let Some(stamp) = e.downcast_ref::<StampError>() {
        return match stamp {
            StampError::Commit(e) => problem_of(e),
            StampError::Store(_) => Code::Internal.because("the export failed"),
            _ => Code::Unavailable.because(format!("{e:#}")),
        };
    }
    match e.downcast_ref::<io::Error>() {
        Some(io) if crate::blob::is_full(io) => {
            Code::StorageFull.because("there is no room to write the export")
        }
        _ => Code::Internal.because("the export failed"),
    }
}

/// Sends a tar that was written, and tells the log what became of it. Its room is taken until then, for so long its bytes are
/// on the disk.
async fn send_file(
    (serving, room): (Serving, OwnedSemaphorePermit),
    written: &NamedTempFile,
) -> Answer<Response> {
    // The file has no name any more once it is open: it goes when it has been sent, or cannot be.
    let file = written.reopen().map_err(|e| export_failed(&e.into()))?;
    let file = tokio::fs::File::from_std(file);
    let bytes = file.metadata().await.map_or(0, |m| m.len());
    let name = format!("attachment; filename=\"falaj-{}.tar\"", clock::now().as_millis());
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_owned()),
        (header::CONTENT_LENGTH, bytes.to_string()),
        (header::CONTENT_DISPOSITION, name),
    ];
    let body = ReaderStream::new(file).map(move |read| {
        let _taken = &room;
        read
    });
    let body = serving.watch(bytes, body);
    Ok((headers, Body::from_stream(body)).into_response())
}
