//! Requests that are done once, however often they come.
//!
//! Whoever asks for a change gives the request a key, and sends it again under the same one where no answer came. The log is the
//! memory: the entry that makes the change tells of the key, in the one transaction that makes it durable, and by it the change is
//! found again, after a restart too, for as long as the entry is kept. What an answer held that the log does not (the secret of a
//! token) is kept nowhere, and not answered again.

use crate::{
    engine::{Engine, Parts, problem_of, unreadable},
    erasure::Asker,
    policy::{Action, Resource},
    store::writer::Commit,
};
use falaj_core::{
    audit::{Draft, Entry, Kind, objects::Object},
    id::Digest,
};
use falaj_proto::problem::{Code, Problem};

/// Where an entry has [`Once::key`].
const KEY: &str = "idempotency_sha256";
/// Where it has [`Once::request`].
const REQUEST: &str = "request_sha256";

/// A request that is done once, however often it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Once {
    /// SHA-256 of who asks, and of the key that they gave it.
    pub key: Digest,
    /// SHA-256 of what it asks for.
    pub request: Digest,
}

impl Once {
    /// Puts it into the entry that makes the change, which is where it is found again.
    #[must_use]
    pub fn tell(&self, draft: Draft) -> Draft {
        draft.digest(KEY, &self.key).digest(REQUEST, &self.request)
    }
}

/// What was done when this request came before: the entry that made the change, if one did. What was denied was not done. Whoever
/// asks sees to it that nothing is done for the same request between this and the change.
///
/// # Errors
/// [`Code::Conflict`] when another request came under this key; why the log cannot be read, or takes no entries.
pub(crate) async fn before(parts: &Parts, once: Option<Once>) -> Result<Option<Entry>, Problem> {
    let Some(Once { key, request }) = once else { return Ok(None) };
    // Commits are made in their order: what the log had not taken in time is decided when a later one is.
    parts.writer.commit(Commit::default()).await.map_err(|e| problem_of(&e))?;
    let is_change = |entry: &Entry| {
        entry.kind != Kind::AccessDenied && entry.body().find::<Digest>(KEY) == Some(key)
    };
    let found = parts.store.find_one(&Object::Digest(key), None, is_change).await;
    match found.map_err(unreadable)? {
        Some(entry) if entry.body().find::<Digest>(REQUEST) != Some(request) => {
            let why = "this `Idempotency-Key` came with another request before: take a new one";
            Err(Code::Conflict.because(why))
        }
        found => Ok(found),
    }
}

impl Asker<'_> {
    /// The entry that makes the change which is asked for: by whom, and under which key.
    #[must_use]
    pub fn makes(&self, kind: Kind) -> Draft {
        let draft = Draft::new(kind).actor(self.actor);
        self.once.iter().fold(draft, |draft, once| once.tell(draft))
    }

    /// As [`before`]; that the request came again is an access, which the policies decide as they would the change.
    ///
    /// # Errors
    /// As [`before`]; [`Code::Denied`], or why the log cannot take the entry.
    pub(crate) async fn came_before(
        &self,
        engine: &Engine,
        action: Action,
    ) -> Result<Option<Entry>, Problem> {
        let found = before(engine.parts(), self.once).await;
        if !matches!(found, Ok(None)) {
            let draft = Draft::new(Kind::AdminRead).actor(self.actor);
            engine.grant(self.party(), action, &Resource::Service, draft).await?;
        }
        found
    }
}

/// Does what is asked for once, where doing it twice is refused anyway: of two that ask at the same time the one that was refused
/// is told that it is done. Whether it was done before.
///
/// # Errors
/// As [`before`], and why it cannot be done.
pub(crate) async fn once(
    parts: &Parts,
    once: Option<Once>,
    work: impl Future<Output = Result<(), Problem>> + Send,
) -> Result<bool, Problem> {
    if before(parts, once).await?.is_some() {
        return Ok(true);
    }
    let Err(problem) = work.await else { return Ok(false) };
    before(parts, once).await?.map(|_| true).ok_or(problem)
}
