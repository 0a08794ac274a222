//! Versions of models: what there are and what each came from, and having them move.

use super::{Answer, App, Ctx, ToQuery, Who, people::asker, send_model, to_the_end};
use crate::{
    accept::Peer,
    engine::Handle,
    policy::Action,
    versions::{Act, Done},
};
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use falaj_core::{
    audit::objects::Object,
    gate::Judged,
    id::{Place, SiteId, StudyId},
    registry::{
        card,
        dsse::Envelope,
        lineage::{Ancestry, Asked, Remedy, Source, Touched},
        provenance::{GateSaid, Provenance},
        version::{Alias, Registry, Stage},
    },
    time::Timestamp,
};
use falaj_proto::{
    problem::{Code, Problem, ProblemJson},
    rest,
    rest::{AliasRequest, Page, PromotionRequest, ReasonRequest, VersionRequest},
};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;

/// Studies whose versions are on one page, at most.
const PAGE_MAX: u32 = 200;
/// Studies whose versions are on one page unless asked otherwise.
const PAGE: u32 = 50;
/// The type of a DSSE envelope.
const ENVELOPE_TYPE: &str = "application/vnd.dsse.envelope.v1+json";

fn malformed(why: impl std::fmt::Display) -> Problem {
    Code::Malformed.because(why)
}

fn shown(registry: &Registry, revision: u64, number: u32) -> Result<rest::Version, Problem> {
    let version = registry.version(number).map_err(|e| Code::UnknownModel.because(e))?;
    Ok(rest::Version {
        study: registry.study.to_string(),
        version: number,
        stage: version.stage.as_str().to_owned(),
        aliases: registry.aliases_of(number).map(|alias| alias.as_str().to_owned()).collect(),
        round: version.round,
        model_sha256: version.model.to_string(),
        manifest_sha256: version.manifest.to_string(),
        safetensors_sha256: version.file.to_string(),
        revision,
        gates: Vec::new(),
    })
}

fn all_of(registry: &Registry, revision: u64) -> Result<Vec<rest::Version>, Problem> {
    registry.versions.keys().map(|number| shown(registry, revision, *number)).collect()
}

/// A version with its entity tag.
fn tagged(status: StatusCode, version: rest::Version) -> Response {
    let tag = HeaderValue::from_str(&format!("\"{}\"", version.revision));
    let tag = tag.unwrap_or_else(|_| HeaderValue::from_static("\"0\""));
    (status, [(header::ETAG, tag)], Json(version)).into_response()
}

/// How often the study's versions had been changed when whoever asks looked, if they say so.
fn expected(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(tag) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let read = tag.to_str().ok().filter(|tag| *tag != "*").map(|tag| {
        let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
        number.and_then(|number| number.parse().ok())
    });
    match read {
        None => Ok(None),
        Some(Some(revision)) => Ok(Some(revision)),
        Some(None) => Err(malformed("`If-Match` is no entity tag of a version")),
    }
}

/// A version's number, or the version that has an alias.
fn find(registry: &Registry, version: &str) -> Result<u32, Problem> {
    let study = &registry.study;
    let none = || {
        let what = format!(
            "study `{study}` has no version `{version}`; `falaj model versions {study}` shows those there are"
        );
        Code::UnknownModel.because(what)
    };
    let number = match version.parse::<Alias>() {
        Ok(alias) => registry.aliases.get(&alias).copied(),
        Err(_) => version.parse().ok(),
    };
    number.filter(|number| registry.versions.contains_key(number)).ok_or_else(none)
}

impl App {
    /// A study, and which of its versions is meant; whoever asks may do `action` with the study.
    async fn version(
        &self,
        peer: &Peer,
        action: Action,
        study: &str,
        version: &str,
    ) -> Result<(Handle, Registry, u64, u32), Problem> {
        let handle = self.study(peer, study).await?;
        self.grant(peer, action, Some(&handle)).await?;
        let (registry, revision) = self.versions.of(&handle.meta.study.id).await?;
        let number = find(&registry, version)?;
        Ok((handle, registry, revision, number))
    }

    /// What was signed of a version.
    async fn provenance(&self, handle: &Handle, number: u32) -> Result<Provenance, Problem> {
        let json = self.versions.provenance(handle, number).await?;
        let read = Envelope::parse(&json).map_err(|e| e.to_string());
        let read = read.and_then(|e| Provenance::read(&e.payload).map_err(|e| e.to_string()));
        read.map_err(|e| {
            tracing::error!(error = e, "what was signed of a version cannot be read");
            Code::Internal.because("what was signed of this version cannot be read")
        })
    }
}

/// The versions of every study, by study.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Studies whose names come after this one; `next` of one page is the `cursor` of the one after it.
    cursor: Option<String>,
    /// Studies on the page, at most 200.
    limit: Option<u32>,
}

/// The versions of every study.
#[utoipa::path(get, path = "/api/v1/versions", params(ListQuery), responses((status = 200, body = Page<rest::Version>), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson)))]
pub(super) async fn list(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<ListQuery>,
) -> Answer<Json<Page<rest::Version>>> {
    app.grant(&peer, Action::StatusRead, None).await?;
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(malformed(format!("`limit` is 1 to {PAGE_MAX}")).into());
    }
    let after = match &query.cursor {
        Some(study) => study.parse::<StudyId>().map_err(malformed)?.to_string(),
        None => String::new(),
    };
    let rows = app.versions.after(&after, limit).await?;
    let next = rows.last().filter(|_| rows.len() == limit as usize);
    let next = next.map(|row| row.registry.study.to_string());
    let mut items = Vec::new();
    for row in &rows {
        items.extend(all_of(&row.registry, row.version)?);
    }
    Ok(Json(Page { items, next }))
}

/// The versions of a study.
#[utoipa::path(get, path = "/api/v1/studies/{id}/versions", params(("id" = String, Path)), responses((status = 200, body = Page<rest::Version>), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn of_study(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
) -> Answer<Json<Page<rest::Version>>> {
    let handle = app.study(&peer, &id).await?;
    app.grant(&peer, Action::StudyRead, Some(&handle)).await?;
    let (registry, revision) = app.versions.of(&handle.meta.study.id).await?;
    Ok(Json(Page { items: all_of(&registry, revision)?, next: None }))
}

/// One version, by its number or an alias.
#[utoipa::path(get, path = "/api/v1/studies/{id}/versions/{version}", params(("id" = String, Path), ("version" = String, Path)), responses((status = 200, body = rest::Version, headers(("ETag" = String))), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn show(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
) -> Answer<Response> {
    let (handle, registry, revision, number) =
        app.version(&peer, Action::StudyRead, &id, &version).await?;
    let mut version = shown(&registry, revision, number)?;
    let gates = app.versions.gates(&handle, &registry, number).await?;
    let round = version.round;
    let read = |judged: &Judged| gate(GateSaid::of_line(round, &judged.line()));
    version.gates = gates.iter().map(read).collect();
    Ok(tagged(StatusCode::OK, version))
}

/// What is signed of a version: an in-toto statement with a SLSA provenance, in a DSSE envelope.
#[utoipa::path(get, path = "/api/v1/studies/{id}/versions/{version}/provenance", params(("id" = String, Path), ("version" = String, Path)), responses((status = 200, body = String, content_type = "application/vnd.dsse.envelope.v1+json"), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn provenance(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
) -> Answer<Response> {
    let (handle, _, _, number) = app.version(&peer, Action::StudyRead, &id, &version).await?;
    let envelope = app.versions.provenance(&handle, number).await?;
    Ok(([(header::CONTENT_TYPE, ENVELOPE_TYPE)], envelope).into_response())
}

/// As what a card is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CardQuery {
    /// `markdown` or `html`; `markdown` when absent.
    format: Option<String>,
}

/// A version's model card, made from what is signed of it.
#[utoipa::path(get, path = "/api/v1/studies/{id}/versions/{version}/card", params(("id" = String, Path), ("version" = String, Path), CardQuery), responses((status = 200, body = String, content_type = "text/markdown"), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn card(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
    Query(query): Query<CardQuery>,
) -> Answer<Response> {
    let (handle, _, _, number) = app.version(&peer, Action::StudyRead, &id, &version).await?;
    let provenance = app.provenance(&handle, number).await?;
    let (kind, text) = match query.format.as_deref() {
        None | Some("markdown") => ("text/markdown; charset=utf-8", card::markdown(&provenance)),
        Some("html") => ("text/html; charset=utf-8", card::html(&provenance)),
        Some(_) => return Err(malformed("`format` is `markdown` or `html`").into()),
    };
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// Downloads a version as `safetensors`, unless it was revoked.
#[utoipa::path(get, path = "/api/v1/studies/{id}/versions/{version}/file", params(("id" = String, Path), ("version" = String, Path), ToQuery), responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn file(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
    Query(to): Query<ToQuery>,
) -> Answer<Response> {
    let handle = app.study(&peer, &id).await?;
    let (registry, _) = app.versions.of(&handle.meta.study.id).await?;
    let found = find(&registry, &version).and_then(|number| {
        let found = registry.version(number).map_err(|e| Code::UnknownModel.because(e))?;
        Ok((found.round, found.model))
    });
    send_model(&app, &peer, &handle, found, &to).await
}

/// Everything that made a version, and what became of it, as the log tells.
#[utoipa::path(get, path = "/api/v1/studies/{id}/versions/{version}/lineage", params(("id" = String, Path), ("version" = String, Path)), responses((status = 200, body = rest::VersionLineage), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 410, body = ProblemJson)))]
pub(super) async fn ancestry(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
) -> Answer<Json<rest::VersionLineage>> {
    let (handle, registry, revision, number) =
        app.version(&peer, Action::StudyRead, &id, &version).await?;
    let ancestry = app.versions.ancestry(&handle.meta.study.id, number).await?;
    Ok(Json(told(&app, shown(&registry, revision, number)?, ancestry)))
}

fn gate(said: GateSaid) -> rest::LineageGate {
    rest::LineageGate {
        round: said.round,
        name: said.name,
        scope: said.scope,
        figure: said.figure,
        interval: said.interval,
        bound: said.bound,
        pass: said.pass,
    }
}

fn told(app: &App, version: rest::Version, of: Ancestry) -> rest::VersionLineage {
    let update = |u: &falaj_core::registry::provenance::UpdateCounted| rest::LineageUpdate {
        site: u.site.to_string(),
        payload_sha256: u.payload.to_string(),
        header_sha256: u.header.to_string(),
        weight: u.weight,
        epsilon: u.epsilon.clone(),
        index: u.index,
    };
    let rounds = of.rounds.iter().map(|round| rest::LineageRound {
        round: round.number,
        base_sha256: round.base.to_string(),
        model_sha256: round.model.to_string(),
        index: round.index,
        updates: round.updates.iter().map(update).collect(),
    });
    let gates = of.gates.into_iter().map(gate);
    let evaluations = of.evaluations.iter().map(|evaluated| rest::LineageEvaluation {
        round: evaluated.round,
        site: evaluated.site.to_string(),
        index: evaluated.index,
    });
    let policies = of.policy_sets.iter().map(|(set, index)| rest::LineagePolicies {
        policy_set_sha256: set.to_string(),
        index: *index,
    });
    let approvals = of.approvals.into_iter().map(|approval| rest::LineageApproval {
        stage: approval.promotion.stage.as_str().to_owned(),
        by: app.named(&Object::Person(approval.giver).to_string()),
        approval: approval.id,
        index: approval.index,
    });
    let moves = of.moves.into_iter().map(|moved| rest::LineageMove {
        kind: moved.kind.as_str().to_owned(),
        stage: moved.stage.as_str().to_owned(),
        at: moved.ts,
        reason: moved.reason,
        approvals: moved.approvals,
        gates: moved.gates.into_iter().map(gate).collect(),
        index: moved.index,
    });
    rest::VersionLineage {
        version,
        index: of.made,
        submitted: of.submitted,
        rounds: rounds.collect(),
        evaluations: evaluations.collect(),
        gates: gates.collect(),
        policies: policies.collect(),
        approvals: approvals.collect(),
        moves: moves.collect(),
    }
}

/// From what. One of `site`, `place` and `update`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LineageQuery {
    /// A site, by SPIFFE ID.
    site: Option<String>,
    /// A place such as `ae-on/ae-az`: every site in it.
    place: Option<String>,
    /// An update, by the SHA-256 of its payload or of its header.
    update: Option<String>,
    /// Accepted not earlier than this: RFC 3339, or a date in UTC.
    since: Option<String>,
    /// Accepted earlier than this: RFC 3339, or a date in UTC, which is included to its end.
    until: Option<String>,
}

impl LineageQuery {
    fn read(&self) -> Result<Asked, Problem> {
        let source = match (&self.site, &self.place, &self.update) {
            (Some(site), None, None) => {
                Source::Site(site.parse::<SiteId>().map_err(|e| malformed(format!("`site`: {e}")))?)
            }
            (None, Some(place), None) => Source::Place(
                place.parse::<Place>().map_err(|e| malformed(format!("`place`: {e}")))?,
            ),
            (None, None, Some(update)) => {
                Source::Update(update.parse().map_err(|e| malformed(format!("`update`: {e}")))?)
            }
            _ => return Err(malformed("ask by one of `site`, `place` and `update`")),
        };
        let time = |name, text: Option<&String>, days| -> Result<String, Problem> {
            let point = text.map(|text| super::log::point(name, text, days)).transpose()?;
            Ok(point.map(|point: Timestamp| point.to_string()).unwrap_or_default())
        };
        Ok(Asked {
            source,
            since: time("since", self.since.as_ref(), 0)?,
            until: time("until", self.until.as_ref(), 1)?,
        })
    }

    /// What is asked for, in words that are known.
    fn asked(asked: &Asked) -> Vec<(&'static str, String)> {
        let mut said = vec![match &asked.source {
            Source::Site(site) => ("object", site.to_string()),
            Source::Place(place) => ("of_place", place.to_string()),
            Source::Update(update) => ("object", update.to_string()),
        }];
        for (name, time) in [("since", &asked.since), ("until", &asked.until)] {
            said.extend((!time.is_empty()).then(|| (name, time.clone())));
        }
        said
    }
}

/// The versions that learned from a site, a place or an update, and what a withdrawal of consent makes of each.
#[utoipa::path(get, path = "/api/v1/lineage", params(LineageQuery), responses((status = 200, body = rest::Touched), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson)))]
pub(super) async fn lineage(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<LineageQuery>,
) -> Answer<Json<rest::Touched>> {
    let asked = query.read();
    let said = asked.as_ref().map(LineageQuery::asked).unwrap_or_default();
    app.grant_asked(&peer, Action::LogRead, None, &said).await?;
    let asked = asked?;
    let (lineage, deleted) = app.versions.lineage().await?;
    let version = |touched: Touched| rest::TouchedVersion {
        study: touched.study.to_string(),
        version: touched.version.number,
        stage: touched.version.stage.as_str().to_owned(),
        round: touched.version.round,
        model_sha256: touched.version.model.to_string(),
        sites: touched.sites.iter().map(ToString::to_string).collect(),
        updates: touched.updates,
        first_round: touched.rounds.0,
        last_round: touched.rounds.1,
        first_index: touched.indices.0,
        last_index: touched.indices.1,
        remedy: touched.remedy.as_str().to_owned(),
        back_to: match touched.remedy {
            Remedy::RollBack(number) => Some(number),
            _ => None,
        },
        untouched_round: touched.untouched,
    };
    let versions = lineage.touched(&asked).into_iter().map(version).collect();
    Ok(Json(rest::Touched { versions, deleted }))
}

/// Which version of a study: by its number.
fn numbered(version: &str) -> Result<u32, Problem> {
    version.parse().map_err(|_| malformed("a version is moved by its number"))
}

/// Has a version move: `read` makes of the request's document what is wanted.
async fn act<T: DeserializeOwned>(
    app: std::sync::Arc<App>,
    peer: std::sync::Arc<Peer>,
    action: Action,
    id: &str,
    (headers, body): (&HeaderMap, &[u8]),
    read: impl FnOnce(T) -> Result<Act, Problem>,
) -> Answer<(Done, rest::Version)> {
    let handle = app.study(&peer, id).await?;
    let wanted = serde_json::from_slice(body)
        .map_err(|e| {
            // The error says where it is wrong, and could repeat what stands there.
            let at = format!("line {}, column {}", e.line(), e.column());
            malformed(format!("the body is not the JSON that is asked for: {at}"))
        })
        .and_then(read)
        .and_then(|act| Ok((act, expected(headers)?)));
    let (wanted, expected) = match wanted {
        Ok(wanted) => wanted,
        Err(problem) => {
            app.grant(&peer, action, Some(&handle)).await?;
            return Err(problem.into());
        }
    };
    let versions = app.versions.clone();
    let done = to_the_end("a version's move", async move {
        versions.act(asker(&peer)?, &handle, &wanted, expected).await
    });
    let done = done.await?;
    let shown = shown(&done.registry, done.revision, done.number)?;
    Ok((done, shown))
}

/// Makes a round's model a version.
#[utoipa::path(post, path = "/api/v1/studies/{id}/versions", params(("id" = String, Path)), request_body = VersionRequest, responses((status = 201, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn make(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let read = |asked: VersionRequest| Ok(Act::Make { round: asked.round });
    let (_, version) =
        act(app, peer, Action::VersionMake, &id, (&headers, &body[..]), read).await?;
    Ok(tagged(StatusCode::CREATED, version))
}

/// Has a version go on to another stage. Policies say how many other people have to have approved just that.
#[utoipa::path(post, path = "/api/v1/studies/{id}/versions/{version}/promote", params(("id" = String, Path), ("version" = u32, Path), ("If-Match" = Option<String>, Header)), request_body = PromotionRequest, responses((status = 200, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn promote(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let read = |asked: PromotionRequest| {
        let place = asked.place.map(|place| place.parse::<Place>()).transpose();
        let place = place.map_err(|e| malformed(format!("`place`: {e}")))?;
        let stage: Stage = asked.stage.parse().map_err(|e| malformed(format!("`stage`: {e}")))?;
        Ok(Act::Promote { number: numbered(&version)?, stage, place })
    };
    let (_, version) =
        act(app, peer, Action::VersionPromote, &id, (&headers, &body[..]), read).await?;
    Ok(tagged(StatusCode::OK, version))
}

/// Says that a version is not good enough.
#[utoipa::path(post, path = "/api/v1/studies/{id}/versions/{version}/reject", params(("id" = String, Path), ("version" = u32, Path), ("If-Match" = Option<String>, Header)), request_body = ReasonRequest, responses((status = 200, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn reject(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let read = |asked: ReasonRequest| {
        Ok(Act::Reject { number: numbered(&version)?, reason: asked.reason })
    };
    let (_, version) =
        act(app, peer, Action::VersionReject, &id, (&headers, &body[..]), read).await?;
    Ok(tagged(StatusCode::OK, version))
}

/// Says that a version must not be used any more: it is not served from then on.
#[utoipa::path(post, path = "/api/v1/studies/{id}/versions/{version}/revoke", params(("id" = String, Path), ("version" = u32, Path), ("If-Match" = Option<String>, Header)), request_body = ReasonRequest, responses((status = 200, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn revoke(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let read = |asked: ReasonRequest| {
        Ok(Act::Revoke { number: numbered(&version)?, reason: asked.reason })
    };
    let (_, version) =
        act(app, peer, Action::VersionRevoke, &id, (&headers, &body[..]), read).await?;
    Ok(tagged(StatusCode::OK, version))
}

/// Has the version that was in production before serve again.
#[utoipa::path(post, path = "/api/v1/studies/{id}/roll-back", params(("id" = String, Path), ("If-Match" = Option<String>, Header)), request_body = ReasonRequest, responses((status = 200, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn roll_back(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let read = |asked: ReasonRequest| Ok(Act::RollBack { reason: asked.reason });
    let (_, version) =
        act(app, peer, Action::VersionRollBack, &id, (&headers, &body[..]), read).await?;
    Ok(tagged(StatusCode::OK, version))
}

/// Gives an alias to a version, or takes it away. The answer is whoever has it, or had it.
#[utoipa::path(post, path = "/api/v1/studies/{id}/aliases/{alias}", params(("id" = String, Path), ("alias" = String, Path), ("If-Match" = Option<String>, Header)), request_body = AliasRequest, responses((status = 200, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn alias(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, alias)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let read = |asked: AliasRequest| {
        let alias: Alias = alias.parse().map_err(malformed)?;
        Ok(Act::Alias { alias, number: asked.version })
    };
    let (_, version) =
        act(app, peer, Action::VersionAlias, &id, (&headers, &body[..]), read).await?;
    Ok(tagged(StatusCode::OK, version))
}
