//! Tokens by which sites get their first certificates.

use super::{Answer, Ctx, Who, people::asker};
use crate::policy::Action;
use axum::{Extension, Json, body::Bytes, extract::State, http::StatusCode};
use falaj_proto::{
    problem::ProblemJson,
    rest::{EnrolmentToken, EnrolmentTokenRequest},
};

/// Makes a token by which one site gets its first certificate, once. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/enrolment-tokens", request_body = EnrolmentTokenRequest, responses((status = 201, body = EnrolmentToken), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 503, body = ProblemJson)))]
pub(super) async fn offer(
    State(app): Ctx,
    Extension(peer): Who,
    body: Bytes,
) -> Answer<(StatusCode, Json<EnrolmentToken>)> {
    let asked: EnrolmentTokenRequest = app.document(&peer, Action::SiteEnroll, &body).await?;
    let EnrolmentTokenRequest { name, place, ttl_s } = asked;
    let token = app.enrolments.offer(asker(&peer)?, &name, &place, ttl_s).await?;
    let offered = EnrolmentToken {
        token: token.to_string(),
        id: token.id,
        site: token.site.to_string(),
        until: token.until.to_string(),
    };
    Ok((StatusCode::CREATED, Json(offered)))
}
