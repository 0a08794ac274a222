//! Candidates that gates ask people about: approved, or refused.

use super::{Answer, App, Ctx, Who, asking::Asking, shown, to_the_end};
use crate::{
    accept::Peer,
    engine::{Decided, Handle},
    policy::{Action, Resource},
    versions::checked,
};
use axum::{
    Extension, Json,
    extract::{Path, State},
};
use falaj_core::{
    audit::{Draft, Kind},
    id::Digest,
};
use falaj_proto::{
    problem::{Code, Problem, ProblemJson},
    rest::{CandidateRequest, Study},
};
use std::sync::Arc;

/// Approves that a candidate which gates ask about becomes the study's model. By the second approval it does.
#[utoipa::path(post, path = "/api/v1/studies/{id}/candidate/approve", params(("id" = String, Path)), request_body = CandidateRequest, responses((status = 200, body = Study), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn approve(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    asking: Asking,
) -> Answer<Json<Study>> {
    decide(&app, peer, &id, &asking, Action::ApprovalGive).await
}

/// Refuses a candidate which gates ask about: it does not become the study's model.
#[utoipa::path(post, path = "/api/v1/studies/{id}/candidate/reject", params(("id" = String, Path)), request_body = CandidateRequest, responses((status = 200, body = Study), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn reject(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    asking: Asking,
) -> Answer<Json<Study>> {
    decide(&app, peer, &id, &asking, Action::VersionReject).await
}

async fn decide(
    app: &Arc<App>,
    peer: Arc<Peer>,
    id: &str,
    asking: &Asking,
    action: Action,
) -> Answer<Json<Study>> {
    let handle = app.study(&peer, id).await?;
    let decided = match ready(app, &peer, &handle, asking, action) {
        Ok(Some(decided)) => {
            let (engine, study) = (app.engine.clone(), handle.meta.study.id.clone());
            let work = async move { engine.decided(&study, decided).await };
            to_the_end("a decision over a candidate", work).await
        }
        // That policy says no is in the entry below.
        Ok(None) => Err(Code::Denied.because("policy does not permit it")),
        Err(problem) if problem.code == Code::Denied => {
            let study = &handle.meta.study;
            let resource = Resource::Study(&study.id, study.privacy.mechanism.as_str());
            let draft = Draft::new(Kind::AccessDenied).actor(&peer.actor).study(&study.id);
            let denied = app.engine.deny(peer.party()?, action, &resource, draft, problem).await;
            return Err(denied.into());
        }
        Err(problem) => Err(problem),
    };
    if !matches!(decided, Ok(false)) {
        // Why it cannot be done, or that it was done before, is told to those only who might do it.
        app.grant(&peer, action, Some(&handle)).await?;
    }
    decided?;
    Ok(Json(shown(app, &handle)))
}

/// What is decided; nothing where policy does not allow it.
fn ready(
    app: &App,
    peer: &Arc<Peer>,
    handle: &Handle,
    asking: &Asking,
    action: Action,
) -> Result<Option<Decided>, Problem> {
    let asked: CandidateRequest = asking.read()?;
    let once = asking.once(peer)?;
    let candidate: Digest = asked.candidate_sha256.parse().map_err(|_| {
        Code::Malformed.because("`candidate_sha256` is the SHA-256 of a candidate, in 64 digits")
    })?;
    checked(&asked.reason)?;
    let approves = if action == Action::ApprovalGive {
        let person = peer.actor.person;
        let by = person.ok_or_else(|| Code::Denied.because("people approve"))?;
        if handle.meta.submitted_by == peer.actor.name() {
            let why = "nobody approves a candidate of their own study: ask another approver";
            return Err(Code::Denied.because(why));
        }
        Some(by)
    } else {
        None
    };
    let study = &handle.meta.study;
    let resource = Resource::Study(&study.id, study.privacy.mechanism.as_str());
    let decision = app.engine.parts().policy.decide(peer.party()?, action, &resource);
    let (peer, reason) = (peer.clone(), asked.reason);
    let allowed = decision.allow;
    Ok(allowed.then_some(Decided { peer, action, decision, candidate, approves, reason, once }))
}
