//! Asking the log: entries by what they are, who accessed a thing (with proofs), and entries as they come.
//!
//! Each of these reads is an entry of the log itself before it is served, and says what was asked (AUD-14).

use super::{
    Answer, App, Asked, Ctx, Who,
    shards::{self, Shard},
};
use crate::{
    accept::Peer,
    engine::unreadable,
    policy::Action,
    proofs,
    store::{
        Store,
        objects::{Named, Stored, Wanted},
        writer::Head,
    },
};
use axum::{
    Extension, Json,
    extract::{Query, State},
    http::HeaderMap,
    response::{
        IntoResponse as _, Response,
        sse::{Event as Sse, KeepAlive},
    },
};
use falaj_core::{
    audit::{
        Kind,
        objects::{
            Object, PREFIX_DIGITS_MIN, actor_term, decision_term, is_prefix, names_person,
            policy_term,
        },
        person::Disclosure,
    },
    id::{Place, RoundId, StudyId},
    time::Timestamp,
};
use falaj_proto::{
    problem::{Code, Problem, ProblemJson},
    rest::{Accesses, LogEntry, Page, ProvenEntry},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    fmt::Display,
    sync::Arc,
};
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa::IntoParams;

/// Log entries on one page.
const PAGE_MAX: u32 = 1_000;
/// Log entries on one page unless asked otherwise.
const PAGE: u32 = 200;
/// The longest id of a policy that is looked for.
const POLICY_CHARS_MAX: usize = 256;
/// Entries that a stream reads at once: what a slow reader holds in memory is at most so many.
const TAIL_PAGE: u32 = 100;
/// Entries that are so near to each other are looked up together.
const NEAR: u64 = 64;
/// A stream is recorded again, and asked of the policies again, after so many entries.
const TAIL_RECORDED_EVERY: u64 = 1_000;

pub(super) fn malformed(why: impl Display) -> Problem {
    Code::Malformed.because(why)
}

/// Which entries of the log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EntriesQuery {
    /// The origin of a shard; the one that is written when absent.
    shard: Option<String>,
    /// First index; `next` of one page is `from` of the one after it.
    #[serde(default)]
    from: u64,
    /// Entries on the page, at most 1,000.
    limit: Option<u32>,
    /// Only this kind, for example `update.accepted`.
    kind: Option<String>,
    /// Only what this party did, by its SPIFFE ID; or this person, by that or by `person:` and the pseudonym.
    actor: Option<String>,
    /// Only what is about this study.
    study: Option<String>,
    /// Only what is about this round of the study.
    round: Option<u32>,
    /// Only what was decided so: `allow` or `deny`.
    decision: Option<String>,
    /// Only what this policy decided, by its id.
    policy: Option<String>,
    /// Not earlier than this: RFC 3339, or a date in UTC.
    since: Option<String>,
    /// Earlier than this: RFC 3339, or a date in UTC, which is included to its end.
    until: Option<String>,
    /// Where what is read is passed on to: a place such as `ae-on/ae-az`; where whoever asks is themselves when absent.
    place: Option<String>,
}

/// A span of time that was asked for.
#[derive(Clone, Copy, Default)]
struct Span {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Span {
    fn read(
        since: Option<&String>,
        until: Option<&String>,
        asked: &mut Asked,
    ) -> Result<Self, Problem> {
        let mut read = |name, text: Option<&String>, days| {
            let time = text.map(|text| point(name, text, days)).transpose()?;
            asked.extend(time.map(|time| (name, time.to_string())));
            Ok::<_, Problem>(time)
        };
        Ok(Self { since: read("since", since, 0)?, until: read("until", until, 1)? })
    }

    /// The entries of this span: from one index to below another, of the first `size` entries.
    async fn indices(self, store: &Store, size: u64) -> Result<(u64, u64), Problem> {
        let first_at = async |time: Option<Timestamp>, otherwise: u64| match time {
            Some(time) => store.first_at(time, size).await.map_err(unreadable),
            None => Ok(otherwise),
        };
        Ok((first_at(self.since, 0).await?, first_at(self.until, size).await?))
    }
}

/// A point in time as people write it. A date stands for its beginning, `days` later.
pub(super) fn point(name: &str, text: &str, days: i64) -> Result<Timestamp, Problem> {
    let bad =
        || malformed(format!("`{name}` is neither a time like 2026-01-31T09:30:00Z nor a date"));
    let time: jiff::Timestamp = if let Ok(time) = text.parse() {
        time
    } else {
        let date: jiff::civil::Date = text.parse().map_err(|_| bad())?;
        let date = date.checked_add(jiff::Span::new().days(days)).map_err(|_| bad())?;
        date.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| bad())?.timestamp()
    };
    // Entries have whole milliseconds: the first that is not earlier.
    let ms = time.as_nanosecond().div_euclid(1_000_000)
        + i128::from(time.as_nanosecond().rem_euclid(1_000_000) > 0);
    Ok(Timestamp::from_millis(i64::try_from(ms).map_err(|_| bad())?))
}

/// Where what is read is passed on to, if whoever reads says so.
fn passed_on(place: Option<&String>) -> Result<Option<(&'static str, String)>, Problem> {
    let Some(place) = place else { return Ok(None) };
    let place: Place = place.parse().map_err(|e| malformed(format!("`place`: {e}")))?;
    Ok(Some(("place", place.to_string())))
}

impl EntriesQuery {
    /// What is wanted, and in what span of time. Texts are put into the log only once they have the form of what they
    /// should be.
    fn read<'a>(&self, app: &'a App) -> Result<((&'a Shard, Wanted, Span), Asked), Problem> {
        let (shard, mut asked) = shards::named(app, self.shard.as_ref())?;
        let mut wanted = Wanted { from: self.from, ..Wanted::default() };
        let mut want = |name, value: String, term: String| {
            wanted.terms.insert(term);
            asked.push((name, value));
        };
        if let Some(actor) = &self.actor {
            let bad = || malformed("`actor` is a SPIFFE ID, or `person:` and a pseudonym");
            let actor: Object = actor.parse().map_err(|_| bad())?;
            if !matches!(actor, Object::Party(_) | Object::Person(_)) {
                return Err(bad());
            }
            let actor = app.pseudonymous(actor)?;
            want("actor", actor.to_string(), actor_term(&actor));
        }
        match (&self.study, self.round) {
            (Some(study), number) => {
                let study: StudyId = study.parse().map_err(malformed)?;
                let object = match number {
                    Some(number) => Object::Round(RoundId { study, number }),
                    None => Object::Study(study),
                };
                want("object", object.to_string(), object.to_string());
            }
            (None, Some(_)) => return Err(malformed("`round` needs the `study` that it is of")),
            (None, None) => {}
        }
        if let Some(decision) = &self.decision {
            if !["allow", "deny"].contains(&decision.as_str()) {
                return Err(malformed("`decision` is `allow` or `deny`"));
            }
            want("decision", decision.clone(), decision_term(decision));
        }
        if let Some(policy) = &self.policy {
            let is_id = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
            if policy.len() > POLICY_CHARS_MAX || !policy.chars().all(is_id) {
                return Err(malformed("`policy` is not the id of a policy"));
            }
            want("policy", policy.clone(), policy_term(policy));
        }
        if let Some(kind) = &self.kind {
            let kinds = || Kind::ALL.iter().map(|k| k.as_str()).collect::<Vec<_>>().join(", ");
            let kind: Kind = kind.parse().map_err(|_| {
                malformed(format!("`kind` is no kind of entry; there are {}", kinds()))
            })?;
            wanted.kind = Some(kind);
            asked.push(("kind", kind.to_string()));
        }
        let span = Span::read(self.since.as_ref(), self.until.as_ref(), &mut asked)?;
        asked.push(("from", self.from.to_string()));
        asked.extend(passed_on(self.place.as_ref())?);
        Ok(((shard, wanted, span), asked))
    }
}

fn shown(
    (index, bytes, leaf): Stored,
    personal: &BTreeMap<u64, Disclosure>,
) -> Result<LogEntry, Problem> {
    let entry = serde_json::from_slice(&bytes).map_err(|e| Code::Internal.because(e))?;
    let personal = text_of(personal, index);
    Ok(LogEntry { index, leaf_hash: leaf.to_string(), personal, entry })
}

/// What is disclosed of the person in an entry, as it is sent.
fn text_of(personal: &BTreeMap<u64, Disclosure>, index: u64) -> Option<String> {
    String::from_utf8(personal.get(&index)?.to_bytes()).ok()
}

impl App {
    /// What is logged and looked up for an object: people never stand in clear.
    fn pseudonymous(&self, object: Object) -> Result<Object, Problem> {
        if !names_person(&object) {
            return Ok(object);
        }
        self.erasures.person(&object.to_string()).map(Object::Person)
    }

    /// What is known of the people in these entries of a shard, which are in order.
    async fn disclosures(
        &self,
        store: &Store,
        entries: &[Stored],
    ) -> Result<BTreeMap<u64, Disclosure>, Problem> {
        let parts = self.engine.parts();
        let mut found = BTreeMap::new();
        for near in entries.chunk_by(|(a, ..), (b, ..)| b - a <= NEAR) {
            let (Some((from, ..)), Some((last, ..))) = (near.first(), near.last()) else {
                continue;
            };
            let rows = store.personal(*from, last + 1).await.map_err(unreadable)?;
            for (seq, person, sealed) in rows {
                let disclosure = parts.persons.disclosure(person, seq, &sealed);
                found.extend(disclosure.map(|d| (seq, d)));
            }
        }
        Ok(found)
    }

    /// Entries that are durable in a shard.
    async fn size(&self, store: &Store) -> Result<u64, Problem> {
        if store.ended() {
            return store.size().await.map_err(unreadable);
        }
        Ok(self.engine.parts().writer.head().0)
    }

    /// Records a read of the log and what it asks for. What cannot be read is recorded without its words, and refused.
    async fn grant_read<T>(
        &self,
        peer: &Peer,
        read: Result<(T, Asked), Problem>,
    ) -> Result<T, Problem> {
        let (read, asked) = match read {
            Ok((read, asked)) => (Ok(read), asked),
            Err(problem) => (Err(problem), Asked::new()),
        };
        self.grant_asked(peer, Action::LogRead, None, &asked).await?;
        read
    }
}

/// Entries of the log, a page at a time. A page that was sought through in vain can be empty and have a next one.
#[utoipa::path(get, path = "/api/v1/log/entries", params(EntriesQuery), responses((status = 200, body = Page<LogEntry>), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 410, body = ProblemJson), (status = 503, body = ProblemJson)))]
pub(super) async fn entries(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<EntriesQuery>,
) -> Answer<Json<Page<LogEntry>>> {
    let read = query.read(&app);
    let ((store, _), mut wanted, span) = app.grant_read(&peer, read).await?;
    let (from, below) = span.indices(store, app.size(store).await?).await?;
    wanted.from = wanted.from.max(from);
    wanted.below = below;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let found = store.find(&wanted, limit).await.map_err(unreadable)?;
    let personal = app.disclosures(store, &found.entries).await?;
    let items = found.entries.into_iter().map(|e| shown(e, &personal));
    let items = items.collect::<Result<_, Problem>>()?;
    Ok(Json(Page { items, next: found.next.map(|next| next.to_string()) }))
}

/// Who accessed what.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AccessesQuery {
    /// The origin of a shard; the one that is written when absent.
    shard: Option<String>,
    /// A study, `study/round`, a SPIFFE ID, `person:` and a pseudonym, a SHA-256 digest, or at least the first 8 digits of one.
    object: String,
    /// Not earlier than this: RFC 3339, or a date in UTC.
    since: Option<String>,
    /// Earlier than this: RFC 3339, or a date in UTC, which is included to its end.
    until: Option<String>,
    /// Entries on the page, at most 1,000.
    limit: Option<u32>,
    /// `next` of the page before this one.
    cursor: Option<String>,
    /// Prove under the newest checkpoint that a witness has cosigned, and show nothing that came after it.
    #[serde(default)]
    witnessed: bool,
    /// Where what is read is passed on to: a place such as `ae-on/ae-az`; where whoever asks is themselves when absent.
    place: Option<String>,
}

/// Where a page begins, and under a checkpoint of how many entries all pages are.
#[derive(Clone, Copy)]
struct Cursor {
    from: u64,
    tree_size: u64,
}

impl Cursor {
    fn read(text: &str) -> Result<Self, Problem> {
        let read = || {
            let (from, tree_size) = text.split_once('.')?;
            Some(Self { from: from.parse().ok()?, tree_size: tree_size.parse().ok()? })
        };
        read().ok_or_else(|| malformed("`cursor` is not the `next` of a page"))
    }
}

impl Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.from, self.tree_size)
    }
}

impl AccessesQuery {
    async fn read<'a>(
        &self,
        app: &'a App,
    ) -> Result<((&'a Shard, Object, Span, Option<Cursor>), Asked), Problem> {
        let (shard, mut asked) = shards::named(app, self.shard.as_ref())?;
        let text = &self.object;
        if text.parse::<Object>().is_err() && !is_prefix(text) {
            return Err(malformed(format!(
                "`object` is a study, study/round, a SPIFFE ID, a SHA-256 digest or at least the first {PREFIX_DIGITS_MIN} digits of one"
            )));
        }
        let object = match shard.0.named(text).await.map_err(unreadable)? {
            Named::Object(object) => object,
            Named::Nothing => {
                let why = format!("no entry names a digest that begins with {text}");
                return Err(Code::NotFound.because(why));
            }
            Named::Several(one, other) => {
                let why =
                    format!("{text} is the beginning of {one} and of {other}: give more digits");
                return Err(malformed(why));
            }
        };
        let object = app.pseudonymous(object)?;
        asked.push(("object", object.to_string()));
        let span = Span::read(self.since.as_ref(), self.until.as_ref(), &mut asked)?;
        let cursor = self.cursor.as_deref().map(Cursor::read).transpose()?;
        asked.extend(cursor.map(|cursor| ("cursor", cursor.to_string())));
        asked.extend(passed_on(self.place.as_ref())?);
        Ok(((shard, object, span, cursor), asked))
    }

    /// The checkpoint under which the answer stands.
    async fn checkpoint(
        &self,
        app: &App,
        store: &Store,
        cursor: Option<Cursor>,
    ) -> Result<String, Problem> {
        let size = match cursor {
            Some(cursor) => cursor.tree_size,
            None if self.witnessed => {
                let witnesses = store.witnesses().await.map_err(unreadable)?;
                let newest = witnesses.into_iter().map(|(_, size)| size).max();
                newest
                    .ok_or_else(|| Code::NotFound.because("no witness has cosigned this log yet"))?
            }
            None => return Ok(app.current_checkpoint(store).await?.1),
        };
        let note = store.checkpoint(size).await.map_err(unreadable)?;
        note.ok_or_else(|| malformed(format!("there is no checkpoint of {size} entries")))
    }
}

/// Every entry that touched an object, each with the proof that it is in the log under one checkpoint.
#[utoipa::path(get, path = "/api/v1/log/accesses", params(AccessesQuery), responses((status = 200, body = Accesses), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 410, body = ProblemJson), (status = 503, body = ProblemJson)))]
pub(super) async fn accesses(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<AccessesQuery>,
) -> Answer<Json<Accesses>> {
    let read = query.read(&app).await;
    let (shard, object, span, cursor) = app.grant_read(&peer, read).await?;
    let (store, _) = shard;
    let note = query.checkpoint(&app, store, cursor).await?;
    let checkpoint = App::cosigned(shard, note).await?;
    let size = checkpoint.tree_size;
    let (from, below) = span.indices(store, size).await?;
    let from = from.max(cursor.map_or(0, |cursor| cursor.from));
    let wanted = Wanted { terms: [object.to_string()].into(), kind: None, from, below };
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let found = store.find(&wanted, limit).await.map_err(unreadable)?;
    let indices: Vec<u64> = found.entries.iter().map(|(index, ..)| *index).collect();
    let proofs = proofs::inclusions(store, &indices, size).await.map_err(unreadable)?;
    let personal = app.disclosures(store, &found.entries).await?;
    let proven = |((index, bytes, leaf), proof): (Stored, Vec<_>)| {
        let bytes = String::from_utf8(bytes).map_err(|e| Code::Internal.because(e))?;
        let proof = proof.iter().map(ToString::to_string).collect();
        let personal = text_of(&personal, index);
        let leaf_hash = leaf.to_string();
        Ok::<_, Problem>(ProvenEntry { index, leaf_hash, personal, bytes, proof })
    };
    let items = found.entries.into_iter().zip(proofs).map(proven).collect::<Result<_, _>>()?;
    let next = found.next.map(|from| Cursor { from, tree_size: size }.to_string());
    Ok(Json(Accesses { object: object.to_string(), checkpoint, items, next }))
}

/// How to follow the log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TailQuery {
    /// The origin of a shard; the one that is written when absent.
    shard: Option<String>,
    /// Entries before now, at most 1,000.
    last: Option<u32>,
    /// Whether to go on with entries as they become durable.
    #[serde(default)]
    follow: bool,
    /// Where entries are passed on to, a receiver of syslog for example: a place such as `ae-on/ae-az`; where whoever asks is
    /// themselves when absent.
    place: Option<String>,
}

impl TailQuery {
    /// Of which shard, from which entry on, and below which, if there is an end.
    async fn read(
        &self,
        app: &App,
        headers: &HeaderMap,
    ) -> Result<((Store, u64, Option<u64>), Asked), Problem> {
        let ((store, _), mut asked) = shards::named(app, self.shard.as_ref())?;
        if self.follow && store.ended() {
            return Err(malformed(
                "nothing comes after a shard that has ended: do not `follow` it",
            ));
        }
        let size = app.size(store).await?;
        let seen = headers.get("last-event-id").map(|id| id.to_str().unwrap_or("").parse::<u64>());
        let from = match seen {
            None => size.saturating_sub(self.last.unwrap_or(0).min(PAGE_MAX).into()),
            Some(Ok(id)) if id < size => id + 1,
            Some(_) => return Err(malformed("`Last-Event-ID` is not the index of an entry")),
        };
        asked.push(("tail", from.to_string()));
        asked.extend(passed_on(self.place.as_ref())?);
        Ok(((store.clone(), from, (!self.follow).then_some(size)), asked))
    }
}

/// Entries as they become durable, as server-sent events of `LogEntry` whose ids are indices. `Last-Event-ID` goes on
/// after an entry. The last event is `end`, or `problem` with a `ProblemJson`.
#[utoipa::path(get, path = "/api/v1/log/tail", params(TailQuery, ("Last-Event-ID" = Option<u64>, Header, description = "The entry after which to go on.")), responses((status = 200, body = LogEntry, content_type = "text/event-stream"), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 429, body = ProblemJson), (status = 503, body = ProblemJson)))]
pub(super) async fn tail(
    State(app): Ctx,
    Extension(peer): Who,
    headers: HeaderMap,
    Query(query): Query<TailQuery>,
) -> Answer<Response> {
    let read = query.read(&app, &headers).await;
    let (store, next, below) = app.grant_read(&peer, read).await?;
    let room = app.tails.clone().try_acquire_owned().map_err(|_| {
        Code::Busy.because(format!("{} follow the log already; try again", super::TAILS_MAX))
    })?;
    let (heads, ready) = (app.engine.parts().writer.heads(), VecDeque::new());
    let (to, served, ended) = (passed_on(query.place.as_ref())?, 0, false);
    let tail = Tail { app, store, peer, to, heads, next, below, ready, served, ended, _room: room };
    let stream = futures_util::stream::unfold(tail, Tail::step);
    Ok(axum::response::Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
}

/// Somebody who follows the log. Nothing is read ahead of a slow reader but one page.
struct Tail {
    app: Arc<App>,
    /// Of which shard.
    store: Store,
    peer: Arc<Peer>,
    /// Where they pass entries on to.
    to: Option<(&'static str, String)>,
    heads: watch::Receiver<Head>,
    /// The entry to read next.
    next: u64,
    /// Where it ends, if it does.
    below: Option<u64>,
    ready: VecDeque<LogEntry>,
    /// Entries since the read was last recorded.
    served: u64,
    ended: bool,
    _room: OwnedSemaphorePermit,
}

impl Tail {
    /// The next event, as soon as there is one.
    async fn step(mut self) -> Option<(Result<Sse, Infallible>, Self)> {
        if self.ended {
            return None;
        }
        let event = match self.advance().await {
            Ok(Some(entry)) => {
                let index = entry.index.to_string();
                Sse::default().id(index).json_data(entry)
            }
            Ok(None) => {
                self.ended = true;
                let why = if self.below.is_some() { "there are no more" } else { "shutting down" };
                Ok(Sse::default().event("end").data(why))
            }
            Err(problem) => {
                self.ended = true;
                Sse::default().event("problem").json_data(ProblemJson::from(&problem))
            }
        };
        // These shapes always have a spelling in JSON.
        event.ok().map(|event| (Ok(event), self))
    }

    /// The next entry, as soon as there is one; none when the stream is over.
    async fn advance(&mut self) -> Result<Option<LogEntry>, Problem> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                self.served += 1;
                return Ok(Some(entry));
            }
            if self.app.shutdown.is_cancelled() || self.below.is_some_and(|b| self.next >= b) {
                return Ok(None);
            }
            if self.served >= TAIL_RECORDED_EVERY {
                let mut asked = vec![("tail", self.next.to_string())];
                asked.extend(self.to.clone());
                self.app.grant_asked(&self.peer, Action::LogRead, None, &asked).await?;
                self.served = 0;
            }
            let size = self.heads.borrow_and_update().0;
            let below = self.below.unwrap_or(size);
            if self.next < below {
                let wanted = Wanted { from: self.next, below, ..Wanted::default() };
                let found = self.store.find(&wanted, TAIL_PAGE).await.map_err(unreadable)?;
                self.next = found.entries.last().map_or(below, |(index, ..)| index + 1);
                let personal = self.app.disclosures(&self.store, &found.entries).await?;
                let entries = found.entries.into_iter().map(|e| shown(e, &personal));
                self.ready = entries.collect::<Result<_, Problem>>()?;
                continue;
            }
            tokio::select! {
                () = self.app.shutdown.cancelled() => return Ok(None),
                grown = self.heads.changed() => if grown.is_err() { return Ok(None) },
            }
        }
    }
}
