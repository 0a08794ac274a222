//! What asks for a change: its document, and the key under which it is done once.

use super::App;
use crate::{accept::Peer, engine::Handle, erasure::Asker, once::Once, policy::Action};
use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::request::Parts,
    response::{IntoResponse, Response},
};
use falaj_core::{audit::objects::Object, id::Digest};
use falaj_proto::problem::{Code, Problem};
use serde::de::DeserializeOwned;

/// Under which a request is done once, however often it comes.
pub(super) const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
/// The longest.
pub(super) const KEY_CHARS_MAX: usize = 128;

/// A request that asks for a change.
pub(super) struct Asking {
    /// All but its document.
    pub(super) parts: Parts,
    /// Its document.
    pub(super) body: Bytes,
}

impl<S: Send + Sync> FromRequest<S> for Asking {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts.clone(), body);
        let body = Bytes::from_request(request, state).await;
        Ok(Self { parts, body: body.map_err(IntoResponse::into_response)? })
    }
}

impl Asking {
    /// By what the request is known when it comes again, if whoever asks gave it a key: the same person, key, path and document.
    ///
    /// # Errors
    /// [`Code::Malformed`] of a key that is none.
    pub(super) fn once(&self, peer: &Peer) -> Result<Option<Once>, Problem> {
        let Some(key) = self.parts.headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
        let key = key.as_bytes();
        if !(1..=KEY_CHARS_MAX).contains(&key.len()) || !key.iter().all(u8::is_ascii_graphic) {
            return Err(Code::Malformed.because(format!(
                "`{IDEMPOTENCY_KEY}` has 1 to {KEY_CHARS_MAX} visible ASCII characters"
            )));
        }
        let who = match (peer.actor.person, &peer.actor.id) {
            (Some(person), _) => Object::Person(person).to_string(),
            (None, Some(id)) => id.to_string(),
            (None, None) => return Ok(None),
        };
        let digest =
            |first: &[u8], second: &[u8]| Digest::of(&[first, &b"\0"[..], second].concat());
        let request = digest(self.parts.uri.path().as_bytes(), &self.body);
        Ok(Some(Once { key: digest(who.as_bytes(), key), request }))
    }

    /// The document, read.
    ///
    /// # Errors
    /// [`Code::Malformed`], which says where it is wrong, and does not repeat what stands there.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.body).map_err(|e| {
            let at = format!("line {}, column {}", e.line(), e.column());
            Code::Malformed.because(format!("the body is not the JSON that is asked for: {at}"))
        })
    }
}

/// Who asks, as whom policies and log see them.
pub(super) fn asker(peer: &Peer, once: Option<Once>) -> Result<Asker<'_>, Problem> {
    Ok(Asker { id: &peer.identity()?.spiffe, actor: &peer.actor, once })
}

impl App {
    /// A request's document, and how it is known when it comes again. What cannot be read is recorded without its words, and
    /// refused.
    pub(super) async fn document<T: DeserializeOwned>(
        &self,
        peer: &Peer,
        action: Action,
        asking: &Asking,
    ) -> Result<(T, Option<Once>), Problem> {
        let read = asking.read().and_then(|document| Ok((document, asking.once(peer)?)));
        self.recorded(peer, (action, None), read).await
    }

    /// How a request without a document is known when it comes again, as [`Self::document`].
    pub(super) async fn keyed(
        &self,
        peer: &Peer,
        of: (Action, Option<&Handle>),
        asking: &Asking,
    ) -> Result<Option<Once>, Problem> {
        self.recorded(peer, of, asking.once(peer)).await
    }

    async fn recorded<T>(
        &self,
        peer: &Peer,
        (action, study): (Action, Option<&Handle>),
        read: Result<T, Problem>,
    ) -> Result<T, Problem> {
        if read.is_err() {
            self.grant(peer, action, study).await?;
        }
        read
    }
}
