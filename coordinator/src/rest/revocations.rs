//! What operators have revoked, and revoking.

use super::{
    Answer, Ctx, Who,
    asking::{Asking, asker},
    pages::PageQuery,
    to_the_end,
};
use crate::{policy::Action, revocations};
use axum::{
    Extension, Json,
    extract::{Query, State},
    http::StatusCode,
};
use falaj_proto::{
    problem::ProblemJson,
    rest::{Page, Revocation, RevocationRequest},
};

fn shown(r: revocations::Revocation) -> Revocation {
    Revocation { subject: r.subject.to_string(), reason: r.reason, at: r.at, index: r.index }
}

/// The revocations that stand. Those on issuers' lists and in the deny file are not among them.
#[utoipa::path(get, path = "/api/v1/revocations", params(PageQuery), responses((status = 200, body = Page<Revocation>), (status = 403, body = ProblemJson)))]
pub(super) async fn list(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<Revocation>>> {
    app.grant(&peer, Action::SiteRevoke, None).await?;
    let (revocations, next) = query.of(app.revocations.all().await, |r| r.subject.clone())?;
    Ok(Json(Page { items: revocations.into_iter().map(shown).collect(), next }))
}

/// Revokes a certificate, or an identity whatever its certificate: whoever is connected by it is ended within seconds.
#[utoipa::path(post, path = "/api/v1/revocations", request_body = RevocationRequest, responses((status = 201, body = Revocation), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn revoke(
    State(app): Ctx,
    Extension(peer): Who,
    asking: Asking,
) -> Answer<(StatusCode, Json<Revocation>)> {
    let (asked, once): (RevocationRequest, _) =
        app.document(&peer, Action::SiteRevoke, &asking).await?;
    let revocations = app.revocations.clone();
    let done = to_the_end("a revocation", async move {
        revocations.revoke(asker(&peer, once)?, &asked.subject, &asked.reason).await
    });
    Ok((StatusCode::CREATED, Json(shown(done.await?))))
}

/// Takes a revocation back.
#[utoipa::path(post, path = "/api/v1/reinstatements", request_body = RevocationRequest, responses((status = 200, body = Revocation), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn reinstate(
    State(app): Ctx,
    Extension(peer): Who,
    asking: Asking,
) -> Answer<Json<Revocation>> {
    let (asked, once): (RevocationRequest, _) =
        app.document(&peer, Action::SiteRevoke, &asking).await?;
    let revocations = app.revocations.clone();
    let was = to_the_end("a revocation", async move {
        revocations.reinstate(asker(&peer, once)?, &asked.subject, &asked.reason).await
    });
    Ok(Json(shown(was.await?)))
}
