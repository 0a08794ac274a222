//! Tokens by which sites get their first certificates.

use super::{
    Answer, Ctx, Who,
    asking::{Asking, asker},
    pages::PageQuery,
    to_the_end,
};
use crate::{enrolment::Told, policy::Action};
use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use falaj_proto::{
    problem::ProblemJson,
    rest::{EnrolmentToken, EnrolmentTokenRequest, EnrolmentTokenState, Page},
};

fn shown(told: Told) -> EnrolmentTokenState {
    EnrolmentTokenState {
        id: told.id,
        site: told.site.to_string(),
        until: told.until.to_string(),
        state: told.fate.as_str().into(),
    }
}

/// The tokens that can be used, and what became of the others of the last thirty days. No secret is among this.
#[utoipa::path(get, path = "/api/v1/enrolment-tokens", params(PageQuery), responses((status = 200, body = Page<EnrolmentTokenState>), (status = 403, body = ProblemJson)))]
pub(super) async fn list(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<EnrolmentTokenState>>> {
    app.grant(&peer, Action::SiteEnroll, None).await?;
    let (tokens, next) = query.of(app.enrolments.all(), |told| told.id.clone())?;
    Ok(Json(Page { items: tokens.into_iter().map(shown).collect(), next }))
}

/// Takes a token back that nobody has used.
#[utoipa::path(post, path = "/api/v1/enrolment-tokens/{token}/withdraw", params(("token" = String, Path)), responses((status = 200, body = EnrolmentTokenState), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn withdraw(
    State(app): Ctx,
    Extension(peer): Who,
    Path(token): Path<String>,
    asking: Asking,
) -> Answer<Json<EnrolmentTokenState>> {
    let once = app.keyed(&peer, (Action::SiteEnroll, None), &asking).await?;
    let enrolments = app.enrolments.clone();
    let withdrawn = to_the_end("a token's withdrawal", async move {
        enrolments.withdraw(asker(&peer, once)?, &token).await
    });
    Ok(Json(shown(withdrawn.await?)))
}

/// Makes a token by which one site gets its first certificate, once. Its secret is in this answer and nowhere else: the same
/// request under the same key is refused, and names the token that it made.
#[utoipa::path(post, path = "/api/v1/enrolment-tokens", request_body = EnrolmentTokenRequest, responses((status = 201, body = EnrolmentToken), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 503, body = ProblemJson)))]
pub(super) async fn offer(
    State(app): Ctx,
    Extension(peer): Who,
    asking: Asking,
) -> Answer<(StatusCode, Json<EnrolmentToken>)> {
    let (asked, once): (EnrolmentTokenRequest, _) =
        app.document(&peer, Action::SiteEnroll, &asking).await?;
    let EnrolmentTokenRequest { name, place, ttl_s } = asked;
    let enrolments = app.enrolments.clone();
    let token = to_the_end("a token", async move {
        enrolments.offer(asker(&peer, once)?, &name, &place, ttl_s).await
    });
    let token = token.await?;
    let offered = EnrolmentToken {
        token: token.to_string(),
        id: token.id,
        site: token.site.to_string(),
        until: token.until.to_string(),
    };
    Ok((StatusCode::CREATED, Json(offered)))
}
