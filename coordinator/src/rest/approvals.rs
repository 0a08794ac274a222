//! Approvals by a second person.

use super::{
    Answer, App, Ctx, Who,
    asking::{Asking, asker},
    pages::PageQuery,
    to_the_end,
};
use crate::{approvals::Asked, policy::Action};
use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use falaj_core::audit::{approvals, objects::Object, person};
use falaj_proto::{
    problem::ProblemJson,
    rest::{Approval, ApprovalRequest, Page},
};

fn shown(app: &App, approval: approvals::Approval) -> Approval {
    let named = |person: person::Person| app.named(&Object::Person(person).to_string());
    Approval {
        whom: named(approval.of.person),
        by: named(approval.giver),
        approval: approval.id,
        action: approval.of.action,
        study: approval.of.study.map(|study| study.to_string()),
        version: approval.of.promotion.map(|promotion| promotion.version),
        stage: approval.of.promotion.map(|promotion| promotion.stage.as_str().to_owned()),
        place: approval.of.place.to_string(),
        until: approval.until.to_string(),
        index: approval.index,
    }
}

/// The approvals in force, in the order in which they were given.
#[utoipa::path(get, path = "/api/v1/approvals", params(PageQuery), responses((status = 200, body = Page<Approval>), (status = 403, body = ProblemJson)))]
pub(super) async fn list(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<Approval>>> {
    app.grant(&peer, Action::ApprovalRead, None).await?;
    // All of them are in one shard, where no two have the same place.
    let (approvals, next) = query.of(app.approvals.all().await?, |approval| approval.index)?;
    let items = approvals.into_iter().map(|approval| shown(&app, approval)).collect();
    Ok(Json(Page { items, next }))
}

/// Approves that another person has a model or the log, and takes it somewhere, or promotes a version. The same again takes the place of what the
/// same person approved before.
#[utoipa::path(post, path = "/api/v1/approvals", request_body = ApprovalRequest, responses((status = 201, body = Approval), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn give(
    State(app): Ctx,
    Extension(peer): Who,
    asking: Asking,
) -> Answer<(StatusCode, Json<Approval>)> {
    let (asked, once): (ApprovalRequest, _) =
        app.document(&peer, Action::ApprovalGive, &asking).await?;
    let approvals = app.approvals.clone();
    let given = to_the_end("an approval", async move {
        let asked = Asked {
            action: &asked.action,
            study: asked.study.as_deref(),
            version: asked.version,
            stage: asked.stage.as_deref(),
            whom: &asked.whom,
            place: asked.place.as_deref(),
            ttl_s: asked.ttl_s,
        };
        approvals.give(asker(&peer, once)?, &asked).await
    });
    let given = given.await?;
    Ok((StatusCode::CREATED, Json(shown(&app, given))))
}

/// Takes an approval back.
#[utoipa::path(post, path = "/api/v1/approvals/{approval}/withdraw", params(("approval" = String, Path)), responses((status = 200, body = Approval), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn withdraw(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    asking: Asking,
) -> Answer<Json<Approval>> {
    let once = app.keyed(&peer, (Action::ApprovalWithdraw, None), &asking).await?;
    let approvals = app.approvals.clone();
    let was =
        to_the_end(
            "an approval",
            async move { approvals.withdraw(asker(&peer, once)?, &id).await },
        );
    let was = was.await?;
    Ok(Json(shown(&app, was)))
}
