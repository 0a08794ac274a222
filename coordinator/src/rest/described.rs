//! What this interface says when it says no: the same everywhere, and described everywhere.

use axum::{
    body::{Body, to_bytes},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use falaj_proto::problem::{Code, ProblemJson};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response as Described};

/// The type of a problem (RFC 9457).
pub(super) const PROBLEM: &str = "application/problem+json";
/// Bytes of a reason that are kept.
const REASON_BYTES: usize = 4 << 10;
/// What any route may answer, whatever else it says.
const ANYWHERE: [(&str, &str); 6] = [
    ("400", "The request cannot be read."),
    ("401", "It is not known any more who asks."),
    ("403", "Policy does not permit this."),
    ("413", "The request is too large."),
    ("500", "The coordinator cannot do this."),
    ("503", "The audit log takes no entry now, so nothing is served."),
];

/// Describes problems as what they are, and those that any route may answer for every route.
pub(super) fn described(mut api: OpenApi) -> OpenApi {
    for path in api.paths.paths.values_mut() {
        let methods = [&mut path.get, &mut path.put, &mut path.post, &mut path.delete];
        for operation in methods.into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            for (status, response) in responses.iter_mut() {
                if status.starts_with(['4', '5'])
                    && let RefOr::T(response) = response
                    && let Some(content) = response.content.shift_remove("application/json")
                {
                    response.content.insert(PROBLEM.to_owned(), content);
                }
            }
            for (status, why) in ANYWHERE {
                responses.entry(status.to_owned()).or_insert_with(|| {
                    let mut response = Described::new(why);
                    let content = Content::new(Some(Ref::from_schema_name("ProblemJson")));
                    response.content.insert(PROBLEM.to_owned(), RefOr::T(content));
                    RefOr::T(response)
                });
            }
        }
    }
    api
}

/// Makes a problem of what the framework refuses in words of its own: a path, a query or a body that cannot be read.
pub(super) async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_one = kind.is_some_and(|kind| kind.as_bytes().starts_with(PROBLEM.as_bytes()));
    if is_one || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (code, status) = match status {
        StatusCode::METHOD_NOT_ALLOWED => (Code::MethodNotAllowed, status),
        StatusCode::PAYLOAD_TOO_LARGE => (Code::TooLarge, status),
        StatusCode::NOT_FOUND => (Code::NotFound, status),
        _ if status.is_server_error() => (Code::Internal, StatusCode::INTERNAL_SERVER_ERROR),
        _ => (Code::Malformed, StatusCode::BAD_REQUEST),
    };
    let (mut parts, body) = response.into_parts();
    let why = to_bytes(body, REASON_BYTES).await.unwrap_or_default();
    let why = String::from_utf8_lossy(&why);
    let why = if why.is_empty() { "see /openapi.json for what can be asked here" } else { &*why };
    let problem = ProblemJson::from(&code.because(why));
    parts.status = status;
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM));
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(serde_json::to_vec(&problem).unwrap_or_default()))
}
