//! People: who is in the log, erasing them, and legal holds.

use super::{Answer, App, Asker, Ctx, Who};
use crate::{accept::Peer, clock, policy::Action};
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
};
use falaj_core::audit::{erasure, objects::Object};
use falaj_proto::{
    problem::{Code, Problem, ProblemJson},
    rest::{Erasure, ErasureRequest, Hold, HoldRequest, Page, Person},
};
use serde::de::DeserializeOwned;

pub(super) fn asker(peer: &Peer) -> Result<Asker<'_>, Problem> {
    Ok(Asker { id: &peer.identity()?.spiffe, actor: &peer.actor })
}

fn shown(hold: erasure::Hold) -> Hold {
    Hold { hold: hold.id, object: hold.object.to_string(), article: hold.article }
}

impl App {
    /// A request's document. What cannot be read is recorded without its words, and refused.
    pub(super) async fn document<T: DeserializeOwned>(
        &self,
        peer: &Peer,
        action: Action,
        body: &[u8],
    ) -> Result<T, Problem> {
        // The error says where it is wrong, and could repeat what stands there.
        let read = serde_json::from_slice(body).map_err(|e| {
            let at = format!("line {}, column {}", e.line(), e.column());
            Code::Malformed.because(format!("the body is not the JSON that is asked for: {at}"))
        });
        if read.is_err() {
            self.grant(peer, action, None).await?;
        }
        read
    }
}

/// Who the people in the log are, as far as they were not erased.
#[utoipa::path(get, path = "/api/v1/persons", responses((status = 200, body = Page<Person>), (status = 403, body = ProblemJson)))]
pub(super) async fn list(State(app): Ctx, Extension(peer): Who) -> Answer<Json<Page<Person>>> {
    app.grant(&peer, Action::PersonRead, None).await?;
    let person = |(person, id): (_, falaj_core::id::SpiffeId)| Person {
        person: Object::Person(person).to_string(),
        id: id.to_string(),
    };
    let items = app.engine.parts().persons.all().into_iter().map(person).collect();
    Ok(Json(Page { items, next: None }))
}

/// Erases a person: nobody can tell any more whom the pseudonym named.
#[utoipa::path(post, path = "/api/v1/erasures", request_body = ErasureRequest, responses((status = 201, body = Erasure), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson)))]
pub(super) async fn erase(
    State(app): Ctx,
    Extension(peer): Who,
    body: Bytes,
) -> Answer<(StatusCode, Json<Erasure>)> {
    let asked: ErasureRequest = app.document(&peer, Action::PersonErase, &body).await?;
    let done = app.erasures.erase(asker(&peer)?, &asked.person, &asked.article, clock::now());
    let (person, index) = done.await?;
    let person = Object::Person(person).to_string();
    Ok((StatusCode::CREATED, Json(Erasure { person, index })))
}

/// The legal holds that stand.
#[utoipa::path(get, path = "/api/v1/holds", responses((status = 200, body = Page<Hold>), (status = 403, body = ProblemJson)))]
pub(super) async fn holds(State(app): Ctx, Extension(peer): Who) -> Answer<Json<Page<Hold>>> {
    app.grant(&peer, Action::HoldRead, None).await?;
    let items = app.erasures.holds().await.into_iter().map(shown).collect();
    Ok(Json(Page { items, next: None }))
}

/// Places a legal hold on a person, or on everybody who acted in a study.
#[utoipa::path(post, path = "/api/v1/holds", request_body = HoldRequest, responses((status = 201, body = Hold), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn hold(
    State(app): Ctx,
    Extension(peer): Who,
    body: Bytes,
) -> Answer<(StatusCode, Json<Hold>)> {
    let asked: HoldRequest = app.document(&peer, Action::HoldPlace, &body).await?;
    let on = (asked.person.as_deref(), asked.study.as_deref());
    let hold = app.erasures.place(asker(&peer)?, on, &asked.article).await?;
    Ok((StatusCode::CREATED, Json(shown(hold))))
}

/// Releases a legal hold.
#[utoipa::path(post, path = "/api/v1/holds/{hold}/release", params(("hold" = String, Path)), responses((status = 200, body = Hold), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn release(
    State(app): Ctx,
    Extension(peer): Who,
    Path(hold): Path<String>,
) -> Answer<Json<Hold>> {
    Ok(Json(shown(app.erasures.release(asker(&peer)?, &hold).await?)))
}
