//! People: who is in the log, erasing them, and legal holds.

use super::{
    Answer, Ctx, Who,
    asking::{Asking, asker},
    pages::PageQuery,
    to_the_end,
};
use crate::{clock, policy::Action};
use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use falaj_core::audit::{erasure, objects::Object};
use falaj_proto::{
    problem::ProblemJson,
    rest::{Erasure, ErasureRequest, Hold, HoldRequest, Page, Person},
};

fn shown(hold: erasure::Hold) -> Hold {
    Hold { hold: hold.id, object: hold.object.to_string(), article: hold.article }
}

/// Who the people in the log are, as far as they were not erased.
#[utoipa::path(get, path = "/api/v1/persons", params(PageQuery), responses((status = 200, body = Page<Person>), (status = 403, body = ProblemJson)))]
pub(super) async fn list(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<Person>>> {
    app.grant(&peer, Action::PersonRead, None).await?;
    let (persons, next) = query.of(app.engine.parts().persons.all(), |(person, _)| *person)?;
    let person = |(person, id): (_, falaj_core::id::SpiffeId)| Person {
        person: Object::Person(person).to_string(),
        id: id.to_string(),
    };
    Ok(Json(Page { items: persons.into_iter().map(person).collect(), next }))
}

/// Erases a person: nobody can tell any more whom the pseudonym named.
#[utoipa::path(post, path = "/api/v1/erasures", request_body = ErasureRequest, responses((status = 201, body = Erasure), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn erase(
    State(app): Ctx,
    Extension(peer): Who,
    asking: Asking,
) -> Answer<(StatusCode, Json<Erasure>)> {
    let (asked, once): (ErasureRequest, _) =
        app.document(&peer, Action::PersonErase, &asking).await?;
    let erasures = app.erasures.clone();
    let done = to_the_end("an erasure", async move {
        let (asker, now) = (asker(&peer, once)?, clock::now());
        erasures.erase(asker, &asked.person, &asked.article, now).await
    });
    let (person, index) = done.await?;
    let person = Object::Person(person).to_string();
    Ok((StatusCode::CREATED, Json(Erasure { person, index })))
}

/// The legal holds that stand.
#[utoipa::path(get, path = "/api/v1/holds", params(PageQuery), responses((status = 200, body = Page<Hold>), (status = 403, body = ProblemJson)))]
pub(super) async fn holds(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<Hold>>> {
    app.grant(&peer, Action::HoldRead, None).await?;
    let (holds, next) = query.of(app.erasures.holds().await?, |hold| hold.id.clone())?;
    Ok(Json(Page { items: holds.into_iter().map(shown).collect(), next }))
}

/// Places a legal hold on a person, or on everybody who acted in a study.
#[utoipa::path(post, path = "/api/v1/holds", request_body = HoldRequest, responses((status = 201, body = Hold), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn hold(
    State(app): Ctx,
    Extension(peer): Who,
    asking: Asking,
) -> Answer<(StatusCode, Json<Hold>)> {
    let (asked, once): (HoldRequest, _) = app.document(&peer, Action::HoldPlace, &asking).await?;
    let erasures = app.erasures.clone();
    let placed = to_the_end("a hold", async move {
        let on = (asked.person.as_deref(), asked.study.as_deref());
        erasures.place(asker(&peer, once)?, on, &asked.article).await
    });
    Ok((StatusCode::CREATED, Json(shown(placed.await?))))
}

/// Releases a legal hold.
#[utoipa::path(post, path = "/api/v1/holds/{hold}/release", params(("hold" = String, Path)), responses((status = 200, body = Hold), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn release(
    State(app): Ctx,
    Extension(peer): Who,
    Path(hold): Path<String>,
    asking: Asking,
) -> Answer<Json<Hold>> {
    let once = app.keyed(&peer, (Action::HoldRelease, None), &asking).await?;
    let erasures = app.erasures.clone();
    let released =
        to_the_end("a hold", async move { erasures.release(asker(&peer, once)?, &hold).await });
    Ok(Json(shown(released.await?)))
}
