//! Versions of models: what there are and what each came from, and having them move.

use super::{
    Answer, App, Ctx, Found, ToQuery, Who,
    asking::{Asking, asker},
    lineage::gate_said,
    pages::{PageQuery, limited},
    send_model, to_the_end,
};
use crate::{accept::Peer, engine::Handle, policy::Action, versions::Act};
use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use falaj_core::{
    gate::Judged,
    id::{Digest, Place, StudyId},
    registry::{
        card,
        dsse::Envelope,
        provenance::{GateSaid, Provenance},
        version::{Alias, Registry, Stage},
    },
};
use falaj_proto::{
    problem::{Code, Problem, ProblemJson},
    rest,
    rest::{AliasRequest, Page, PromotionRequest, ReasonRequest, VersionRequest},
};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;

/// The type of a DSSE envelope.
const ENVELOPE_TYPE: &str = "application/vnd.dsse.envelope.v1+json";
/// Digits of its document's digest in an entity tag.
const TAG_DIGITS: usize = 16;

pub(super) fn malformed(why: impl std::fmt::Display) -> Problem {
    Code::Malformed.because(why)
}

pub(super) fn shown(
    registry: &Registry,
    revision: u64,
    number: u32,
) -> Result<rest::Version, Problem> {
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

/// A version with its entity tag: the revision, which is what a condition is about, and a digest of the document, for gates say
/// something else at times without a change of the versions.
fn tagged(status: StatusCode, version: &rest::Version) -> Answer<Response> {
    let document = serde_json::to_vec(version).map_err(|e| Code::Internal.because(e))?;
    let digest = Digest::of(&document).to_string();
    let tag = format!("\"{}-{}\"", version.revision, digest.get(..TAG_DIGITS).unwrap_or(&digest));
    let headers = [(header::ETAG, tag), (header::CONTENT_TYPE, "application/json".to_owned())];
    Ok((status, headers, document).into_response())
}

/// How often the study's versions had been changed when whoever asks looked, if they say so.
fn expected(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let mut tags = headers.get_all(header::IF_MATCH).iter();
    let Some(tag) = tags.next() else { return Ok(None) };
    if tag == "*" && tags.next().is_none() {
        return Ok(None);
    }
    let tag = tag.to_str().ok().filter(|_| tags.next().is_none());
    let tag = tag.and_then(|tag| tag.strip_prefix('"')?.strip_suffix('"'));
    // A tag as it was given, or the bare revision.
    let revision = tag.map(|tag| tag.split_once('-').map_or(tag, |(revision, _)| revision));
    let revision = revision.and_then(|revision| revision.parse().ok());
    revision.map(Some).ok_or_else(|| malformed("`If-Match` is not one entity tag of a version"))
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
    pub(super) async fn version(
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
    /// Studies on the page, at most 200; 50 when absent.
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
    let limit = limited(query.limit)?;
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
#[utoipa::path(get, path = "/api/v1/studies/{id}/versions", params(("id" = String, Path), PageQuery), responses((status = 200, body = Page<rest::Version>), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn of_study(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<rest::Version>>> {
    let handle = app.study(&peer, &id).await?;
    app.grant(&peer, Action::StudyRead, Some(&handle)).await?;
    let (registry, revision) = app.versions.of(&handle.meta.study.id).await?;
    let (items, next) = query.of(all_of(&registry, revision)?, |version| version.version)?;
    Ok(Json(Page { items, next }))
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
    let read = |judged: &Judged| gate_said(GateSaid::of_line(round, &judged.line()));
    version.gates = gates.iter().map(read).collect();
    tagged(StatusCode::OK, &version)
}

/// What is signed of a version: an in-toto statement with a SLSA provenance, in a DSSE envelope.
#[utoipa::path(get, path = "/api/v1/studies/{id}/versions/{version}/provenance", params(("id" = String, Path), ("version" = String, Path)), responses((status = 200, body = Object, content_type = "application/vnd.dsse.envelope.v1+json"), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 410, body = ProblemJson)))]
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
#[utoipa::path(get, path = "/api/v1/studies/{id}/versions/{version}/card", params(("id" = String, Path), ("version" = String, Path), CardQuery), responses((status = 200, body = String, content_type = "text/markdown"), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 410, body = ProblemJson)))]
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
        Ok(Found { version: Some(number), round: found.round, model: found.model })
    });
    send_model(&app, &peer, &handle, found, &to).await
}

/// Which version of a study: by its number.
fn numbered(version: &str) -> Result<u32, Problem> {
    version.parse().map_err(|_| malformed("a version is moved by its number"))
}

/// Has a version move, and shows it: `read` makes of the request's document what is wanted.
async fn act<T: DeserializeOwned>(
    app: std::sync::Arc<App>,
    peer: std::sync::Arc<Peer>,
    action: Action,
    id: &str,
    asking: &Asking,
    read: impl FnOnce(T) -> Result<Act, Problem>,
) -> Answer<Response> {
    let handle = app.study(&peer, id).await?;
    let wanted = asking.read().and_then(read);
    let wanted =
        wanted.and_then(|act| Ok((act, expected(&asking.parts.headers)?, asking.once(&peer)?)));
    let (wanted, expected, once) = match wanted {
        Ok(wanted) => wanted,
        Err(problem) => {
            app.grant(&peer, action, Some(&handle)).await?;
            return Err(problem.into());
        }
    };
    let status =
        if matches!(wanted, Act::Make { .. }) { StatusCode::CREATED } else { StatusCode::OK };
    let versions = app.versions.clone();
    let (of, by) = (handle.clone(), peer.clone());
    let done = to_the_end("a version's move", async move {
        versions.act(asker(&by, once)?, &of, &wanted, expected).await
    });
    let done = done.await?;
    if done.again {
        // Nothing is done, and how the version stands is an access like any other.
        app.grant(&peer, Action::StudyRead, Some(&handle)).await?;
    }
    tagged(status, &shown(&done.registry, done.revision, done.number)?)
}

/// Makes a round's model a version.
#[utoipa::path(post, path = "/api/v1/studies/{id}/versions", params(("id" = String, Path)), request_body = VersionRequest, responses((status = 201, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn make(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    asking: Asking,
) -> Answer<Response> {
    let read = |asked: VersionRequest| Ok(Act::Make { round: asked.round });
    act(app, peer, Action::VersionMake, &id, &asking, read).await
}

/// Has a version go on to another stage. Policies say how many other people have to have approved just that.
#[utoipa::path(post, path = "/api/v1/studies/{id}/versions/{version}/promote", params(("id" = String, Path), ("version" = u32, Path), ("If-Match" = Option<String>, Header)), request_body = PromotionRequest, responses((status = 200, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson), (status = 410, body = ProblemJson)))]
pub(super) async fn promote(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
    asking: Asking,
) -> Answer<Response> {
    let read = |asked: PromotionRequest| {
        let place = asked.place.map(|place| place.parse::<Place>()).transpose();
        let place = place.map_err(|e| malformed(format!("`place`: {e}")))?;
        let stage: Stage = asked.stage.parse().map_err(|e| malformed(format!("`stage`: {e}")))?;
        Ok(Act::Promote { number: numbered(&version)?, stage, place })
    };
    act(app, peer, Action::VersionPromote, &id, &asking, read).await
}

/// Says that a version is not good enough.
#[utoipa::path(post, path = "/api/v1/studies/{id}/versions/{version}/reject", params(("id" = String, Path), ("version" = u32, Path), ("If-Match" = Option<String>, Header)), request_body = ReasonRequest, responses((status = 200, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn reject(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
    asking: Asking,
) -> Answer<Response> {
    let read = |asked: ReasonRequest| {
        Ok(Act::Reject { number: numbered(&version)?, reason: asked.reason })
    };
    act(app, peer, Action::VersionReject, &id, &asking, read).await
}

/// Says that a version must not be used any more: it is not served from then on.
#[utoipa::path(post, path = "/api/v1/studies/{id}/versions/{version}/revoke", params(("id" = String, Path), ("version" = u32, Path), ("If-Match" = Option<String>, Header)), request_body = ReasonRequest, responses((status = 200, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn revoke(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
    asking: Asking,
) -> Answer<Response> {
    let read = |asked: ReasonRequest| {
        Ok(Act::Revoke { number: numbered(&version)?, reason: asked.reason })
    };
    act(app, peer, Action::VersionRevoke, &id, &asking, read).await
}

/// Has the version that was in production before serve again.
#[utoipa::path(post, path = "/api/v1/studies/{id}/roll-back", params(("id" = String, Path), ("If-Match" = Option<String>, Header)), request_body = ReasonRequest, responses((status = 200, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn roll_back(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    asking: Asking,
) -> Answer<Response> {
    let read = |asked: ReasonRequest| Ok(Act::RollBack { reason: asked.reason });
    act(app, peer, Action::VersionRollBack, &id, &asking, read).await
}

/// Gives an alias to a version, or takes it away. The answer is whoever has it, or had it.
#[utoipa::path(post, path = "/api/v1/studies/{id}/aliases/{alias}", params(("id" = String, Path), ("alias" = String, Path), ("If-Match" = Option<String>, Header)), request_body = AliasRequest, responses((status = 200, body = rest::Version, headers(("ETag" = String))), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn alias(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, alias)): Path<(String, String)>,
    asking: Asking,
) -> Answer<Response> {
    let read = |asked: AliasRequest| {
        let alias: Alias = alias.parse().map_err(malformed)?;
        Ok(Act::Alias { alias, number: asked.version })
    };
    act(app, peer, Action::VersionAlias, &id, &asking, read).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_condition_that_cannot_be_read_is_refused_and_not_passed_over() {
        let read = |tags: &[&[u8]]| {
            let tags = tags.iter().map(|tag| HeaderValue::from_bytes(tag).expect("a header"));
            expected(&tags.map(|tag| (header::IF_MATCH, tag)).collect())
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[b"*"]), Ok(None));
        assert_eq!(read(&[b"\"7\""]), Ok(Some(7)));
        assert_eq!(read(&[b"\"7-0123456789abcdef\""]), Ok(Some(7)));
        let wrong: [&[&[u8]]; 7] = [
            &[b"7"],
            &[b"\"7\", \"8\""],
            &[b"\"seven\""],
            &[b"\"\xff\""],
            &[b"\"7\"", b"\"8\""],
            &[b"*", b"\"8\""],
            &[b"\"7\"", b"*"],
        ];
        for tags in wrong {
            assert_eq!(read(tags).map_err(|e| e.code), Err(Code::Malformed), "{tags:?}");
        }
    }
    #[test]
    fn the_tag_of_a_version_is_another_when_its_gates_are() {
        let gate = rest::LineageGate {
            round: 1,
            name: "accuracy".into(),
            scope: "all".into(),
            figure: "0.9".into(),
            interval: "0.8 to 0.95".into(),
            bound: "at least 0.7".into(),
            pass: true,
        };
        let version = |gates| rest::Version {
            study: "heart".into(),
            version: 1,
            stage: "staging".into(),
            aliases: Vec::new(),
            round: 1,
            model_sha256: "00".repeat(32),
            manifest_sha256: "11".repeat(32),
            safetensors_sha256: "22".repeat(32),
            revision: 7,
            gates,
        };
        let tag = |gates| {
            let answer = tagged(StatusCode::OK, &version(gates)).map_err(|refused| refused.0);
            answer.expect("an answer").headers()[header::ETAG].clone()
        };
        let (with, without) = (tag(vec![gate.clone()]), tag(Vec::new()));
        assert_ne!(with, without);
        assert_eq!(with, tag(vec![gate]));
        // Both are of one revision, which is what a condition is about.
        for tag in [with, without] {
            let headers = HeaderMap::from_iter([(header::IF_MATCH, tag)]);
            assert_eq!(expected(&headers), Ok(Some(7)));
        }
    }
}
