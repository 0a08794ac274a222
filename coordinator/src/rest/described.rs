//! What this interface says when it says no: the same everywhere, and described everywhere.

use super::asking::{IDEMPOTENCY_KEY, KEY_CHARS_MAX};
use axum::{
    body::{Body, to_bytes},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use falaj_proto::problem::{Code, ProblemJson};
use std::collections::BTreeMap;
use utoipa::openapi::{
    Content, Header, Object, ObjectBuilder, OpenApi, Ref, RefOr, Required, Response as Described,
    Type,
    path::{Operation, ParameterBuilder, ParameterIn},
};

/// The type of a problem (RFC 9457).
pub(super) const PROBLEM: &str = "application/problem+json";
/// Bytes of a reason that are kept.
const REASON_BYTES: usize = 4 << 10;
/// What any route may answer, whatever else it says.
const ANYWHERE: [(&str, &str); 8] = [
    ("400", "The request cannot be read."),
    ("401", "It is not known any more who asks."),
    ("403", "Policy does not permit this."),
    ("413", "The request is too large."),
    ("429", "The audit log has too much to take at once: ask again."),
    ("500", "The coordinator cannot do this."),
    ("503", "The audit log takes no entry now, so nothing is served."),
    ("507", "The disk is full, so nothing is served."),
];

/// Types of answers that are no document: they have no tag.
const STREAMS: [&str; 3] = ["text/event-stream", "application/octet-stream", "application/x-tar"];

/// Describes problems as what they are, those that any route may answer for every route, the tags of documents, and the keys under
/// which changes are made once. Names of operations are made such that each is one's own.
pub(super) fn described(mut api: OpenApi) -> OpenApi {
    let mut named: BTreeMap<String, u32> = BTreeMap::new();
    for path in api.paths.paths.values() {
        let methods = [&path.get, &path.put, &path.post, &path.delete];
        for name in methods.into_iter().flatten().filter_map(|o| o.operation_id.clone()) {
            *named.entry(name).or_default() += 1;
        }
    }
    for (at, path) in &mut api.paths.paths {
        for (method, operation) in [("get", &mut path.get), ("post", &mut path.post)] {
            let Some(operation) = operation else { continue };
            let taken = operation.operation_id.as_ref().and_then(|name| named.get(name));
            if taken.is_some_and(|times| *times > 1) {
                let words = at.trim_start_matches("/api/v1/").replace(['/', '-'], "_");
                operation.operation_id =
                    Some(format!("{method}_{}", words.replace(['{', '}'], "")));
            }
        }
        if let Some(operation) = &mut path.get {
            describe_tag(operation);
        }
        if let Some(operation) = &mut path.post {
            describe_key(operation);
        }
    }
    problems(&mut api, &ANYWHERE);
    api
}

/// Describes problems as what they are, and for every route those that any may answer.
pub(crate) fn problems(api: &mut OpenApi, anywhere: &[(&str, &str)]) {
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
            for (status, why) in anywhere {
                responses.entry((*status).to_owned()).or_insert_with(|| problem(why));
            }
        }
    }
}

/// A problem, and why it is answered.
fn problem(why: &str) -> RefOr<Described> {
    let mut response = Described::new(why);
    let content = Content::new(Some(Ref::from_schema_name("ProblemJson")));
    response.content.insert(PROBLEM.to_owned(), RefOr::T(content));
    RefOr::T(response)
}

/// Describes the key under which a change is made once.
fn describe_key(operation: &mut Operation) {
    let key = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(KEY_CHARS_MAX))
        .pattern(Some("^[!-~]+$"));
    let parameter = ParameterBuilder::new()
        .name(IDEMPOTENCY_KEY)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("Under which this is done once, however often whoever asks sends it. The same key with another path or document is refused."))
        .schema(Some(key));
    operation.parameters.get_or_insert_default().push(RefOr::T(parameter.build()));
    let responses = &mut operation.responses.responses;
    let why = "Another request came under this key before.";
    responses.entry("409".to_owned()).or_insert_with(|| problem(why));
}

/// Describes the tag of a document, and what is answered to whoever has it already.
fn describe_tag(operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    let Some(RefOr::T(document)) = responses.get_mut("200") else { return };
    if document.content.keys().any(|kind| STREAMS.contains(&kind.as_str())) {
        return;
    }
    document.headers.entry("ETag".to_owned()).or_insert_with(|| RefOr::T(Header::default()));
    let mut same = Described::new("It is the document that has this tag.");
    same.headers.insert("ETag".to_owned(), RefOr::T(Header::default()));
    responses.insert("304".to_owned(), RefOr::T(same));
    let held = ParameterBuilder::new()
        .name("If-None-Match")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("The tag of the document that whoever asks has already."))
        .schema(Some(Object::with_type(Type::String)));
    operation.parameters.get_or_insert_default().push(RefOr::T(held.build()));
}

/// Makes a problem of what the framework refuses in words of its own: a path, a query or a body that cannot be read.
pub(crate) async fn as_problem(response: Response) -> Response {
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
