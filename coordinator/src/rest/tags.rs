//! Entity tags: whoever has an answer already is told so, and not sent it again (RFC 9110, 13.1.2).
//!
//! Only answers of one document have a tag; the access is decided and recorded all the same.

use axum::{
    body::{Body, HttpBody as _, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use falaj_core::id::Digest;

/// The largest document that gets a tag.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// Gives a document its tag: that of the handler, or one of its bytes.
pub(super) async fn tagged(request: Request, next: Next) -> Response {
    let is_get = request.method() == Method::GET;
    let held = request.headers().get_all(header::IF_NONE_MATCH).iter().cloned().collect::<Vec<_>>();
    let response = next.run(request).await;
    let bytes = response.body().size_hint().exact().filter(|bytes| *bytes <= DOCUMENT_BYTES_MAX);
    let (true, StatusCode::OK, Some(bytes)) = (is_get, response.status(), bytes) else {
        return response;
    };
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, usize::try_from(bytes).unwrap_or(usize::MAX)).await else {
        // The whole body was in memory; it has no other way to fail than to be longer than it said.
        parts.status = StatusCode::INTERNAL_SERVER_ERROR;
        return Response::from_parts(parts, Body::empty());
    };
    let tag = parts
        .headers
        .get(header::ETAG)
        .cloned()
        .or_else(|| HeaderValue::from_str(&format!("\"{}\"", Digest::of(&bytes))).ok());
    let Some(tag) = tag else { return Response::from_parts(parts, Body::from(bytes)) };
    if held.iter().any(|held| is_among(&tag, held)) {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers = HeaderMap::from_iter([(header::ETAG, tag)]);
        return Response::from_parts(parts, Body::empty());
    }
    parts.headers.insert(header::ETAG, tag);
    Response::from_parts(parts, Body::from(bytes))
}

/// Whether a tag is one of a list, or the list is `*`. That one of them is weak makes no difference here.
fn is_among(tag: &HeaderValue, list: &HeaderValue) -> bool {
    let (Ok(tag), Ok(list)) = (tag.to_str(), list.to_str()) else { return false };
    let mut each = list.split(',').map(str::trim);
    each.any(|held| held == "*" || held.strip_prefix("W/").unwrap_or(held) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_a_list_weak_or_not() {
        let tag = HeaderValue::from_static("\"7\"");
        for (list, is) in [
            ("\"7\"", true),
            ("W/\"7\"", true),
            ("\"6\", \"7\"", true),
            ("*", true),
            ("\"70\"", false),
            ("7", false),
            ("", false),
        ] {
            assert_eq!(is_among(&tag, &HeaderValue::from_static(list)), is, "{list}");
        }
    }
}
