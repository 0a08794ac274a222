//! REST over mutual TLS: one method per thing that a coordinator can be asked.

use crate::{destination::Only, settings::Settings};
use anyhow::{Context as _, Result};
use falaj_certs::{
    tls::{ServerExpectation, client_config},
    trust::TrustStore,
};
use falaj_core::id::{Place, StudyId};
use falaj_proto::{
    problem::ProblemJson,
    rest::{
        Accesses, Approval, ApprovalRequest, CandidateRequest, Checkpoint, EnrolmentToken,
        EnrolmentTokenRequest, EnrolmentTokenState, Erasure, ErasureRequest, Figures, Gate, Hold,
        HoldRequest, LogEntry, LogShard, Model, Page, Person, Pruning, PruningRequest, Revocation,
        RevocationRequest, Round, Site, Status, Study, Timestamp, Touched, Version, VersionLineage,
        Witness,
    },
};
use reqwest::{Method, RequestBuilder, Response, header::HeaderValue, redirect};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

/// A coordinator that does not take the connection within this time is away.
const CONNECT: Duration = Duration::from_secs(10);
/// A coordinator that is silent for this long has gone; an export may take a while before its first byte.
const SILENCE: Duration = Duration::from_mins(2);
/// The longest event that a watcher takes.
const EVENT_BYTES_MAX: usize = 1 << 20;
/// How often something that is done once is asked for again.
const AGAIN: u32 = 2;
/// The longest problem that is read.
const PROBLEM_BYTES_MAX: usize = 64 << 10;
/// Carries the name of a study's file, for messages.
const FILE_NAME: &str = "falaj-file-name";

/// A coordinator.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: String,
}

/// Why the coordinator gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// It said no, and why.
    #[error("{} [{}]", .0.detail, .0.code)]
    Refused(ProblemJson),
    /// It could not be reached, or the connection broke.
    #[error("cannot talk to {server}; check --server, --cert and --place")]
    Unreachable {
        /// Where it was looked for.
        server: String,
        /// What went wrong.
        #[source]
        source: reqwest::Error,
    },
    /// It answered in a way that cannot be read.
    #[error("{server} answered {status}, which is no answer of a coordinator")]
    Foreign {
        /// Who answered.
        server: String,
        /// The HTTP status.
        status: u16,
    },
    /// An event that cannot be read.
    #[error("an event cannot be read: {0}")]
    Event(String),
}

type Answer<T> = Result<T, ClientError>;

impl Client {
    /// A client with these settings; nothing is sent yet.
    ///
    /// # Errors
    /// When certificate, key or trust configuration cannot be used.
    pub(crate) fn new(settings: Settings) -> Result<Self> {
        let credentials = settings.credentials()?;
        let trust = TrustStore::load(&settings.trust)?;
        let expect = ServerExpectation::coordinator(&settings.places);
        let tls = client_config(&credentials, &trust, &expect, &["http/1.1"])?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .user_agent(concat!("falaj/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("setting up TLS")?;
        Ok(Self { http, server: settings.server })
    }

    /// The name of the machine that the coordinator is asked at.
    pub(crate) fn host(&self) -> String {
        let url = reqwest::Url::parse(&self.server).ok();
        url.and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
    }

    /// How the coordinator is.
    pub(crate) async fn status(&self) -> Answer<Status> {
        self.get("status").await
    }

    /// The connected sites.
    pub(crate) async fn sites(&self) -> Answer<Page<Site>> {
        self.pages("sites").await
    }

    /// Submits a study file.
    pub(crate) async fn submit(&self, yaml: String, file: &str) -> Answer<Study> {
        let name: String = file.chars().filter(char::is_ascii_graphic).collect();
        let name = HeaderValue::from_str(&name).unwrap_or(HeaderValue::from_static("study.yaml"));
        self.once(|| {
            let request = self.request(Method::POST, "studies").body(yaml.clone());
            request.header(FILE_NAME, &name).header("content-type", "application/yaml")
        })
        .await
    }

    /// Every study.
    pub(crate) async fn studies(&self) -> Answer<Page<Study>> {
        self.pages("studies").await
    }

    /// One study.
    pub(crate) async fn study(&self, id: &StudyId) -> Answer<Study> {
        self.get(&format!("studies/{id}")).await
    }

    /// A study's file, as it was submitted.
    pub(crate) async fn study_file(&self, id: &StudyId) -> Answer<String> {
        let answer = self.send(self.request(Method::GET, &format!("studies/{id}/file"))).await?;
        answer.text().await.map_err(|source| self.unreachable(source))
    }

    /// The gates of a study, and what they say of a round's candidate; of the newest when no round is named.
    pub(crate) async fn gates(&self, id: &StudyId, round: Option<u32>) -> Answer<Page<Gate>> {
        let of: Vec<_> = round.map(|round| ("round", round.to_string())).into_iter().collect();
        self.pages_of(&format!("studies/{id}/gates"), &of).await
    }

    /// Stops a study.
    pub(crate) async fn stop(&self, id: &StudyId) -> Answer<Study> {
        self.change(&format!("studies/{id}/stop"), None::<&()>).await
    }

    /// Decides over a candidate that waits for people: `approve` or `reject`.
    pub(crate) async fn decide(
        &self,
        id: &StudyId,
        what: &str,
        asked: &CandidateRequest,
    ) -> Answer<Study> {
        let path = format!("studies/{id}/candidate/{what}");
        self.change(&path, Some(asked)).await
    }

    /// The rounds of a study.
    pub(crate) async fn rounds(&self, id: &StudyId) -> Answer<Page<Round>> {
        self.pages(&format!("studies/{id}/rounds")).await
    }

    /// Figures of a study's candidates that pass these filters, the newest round first.
    pub(crate) async fn figures(
        &self,
        id: &StudyId,
        filters: &[(&str, String)],
    ) -> Answer<Page<Figures>> {
        self.pages_of(&format!("studies/{id}/figures"), filters).await
    }

    /// The first page of them.
    pub(crate) async fn newest_figures(
        &self,
        id: &StudyId,
        filters: &[(&str, String)],
    ) -> Answer<Page<Figures>> {
        self.read(self.request(Method::GET, &format!("studies/{id}/figures")).query(filters)).await
    }

    /// What happens in a study from now on.
    pub(crate) async fn events(&self, id: &StudyId) -> Answer<Events> {
        self.events_of(self.request(Method::GET, &format!("studies/{id}/events"))).await
    }

    async fn events_of(&self, request: RequestBuilder) -> Answer<Events> {
        let server = self.server.clone();
        Ok(Events { answer: self.send(request).await?, server, text: Vec::new() })
    }

    /// The models of a study.
    pub(crate) async fn models(&self, id: &StudyId) -> Answer<Page<Model>> {
        self.pages(&format!("studies/{id}/models")).await
    }

    /// A model's bytes, which are taken to a place; the newest when no round is named.
    pub(crate) async fn model(
        &self,
        id: &StudyId,
        round: Option<u32>,
        to: Option<Place>,
    ) -> Answer<Response> {
        let round = round.map_or_else(|| "latest".to_owned(), |n| n.to_string());
        let to: Vec<_> = to.map(|place| ("place", place.to_string())).into_iter().collect();
        let request = self.request(Method::GET, &format!("studies/{id}/models/{round}"));
        self.send(request.query(&to)).await
    }

    /// The versions of a study, or of every study.
    pub(crate) async fn versions(&self, id: Option<&StudyId>) -> Answer<Page<Version>> {
        match id {
            Some(id) => self.pages(&format!("studies/{id}/versions")).await,
            None => self.pages("versions").await,
        }
    }

    /// One version, by its number or an alias.
    pub(crate) async fn version(&self, id: &StudyId, version: &str) -> Answer<Version> {
        self.read(self.of_version(Method::GET, id, version, "")).await
    }

    /// A version's model as `safetensors`, which is taken to a place.
    pub(crate) async fn version_file(
        &self,
        id: &StudyId,
        version: u32,
        to: Option<Place>,
    ) -> Answer<Response> {
        let to: Vec<_> = to.map(|place| ("place", place.to_string())).into_iter().collect();
        let request = self.of_version(Method::GET, id, &version.to_string(), "/file");
        self.send(request.query(&to)).await
    }

    /// What is signed of a version.
    pub(crate) async fn provenance(&self, id: &StudyId, version: &str) -> Answer<String> {
        let answer = self.send(self.of_version(Method::GET, id, version, "/provenance")).await?;
        answer.text().await.map_err(|source| self.unreachable(source))
    }

    /// A version's model card.
    pub(crate) async fn card(&self, id: &StudyId, version: &str, format: &str) -> Answer<String> {
        let request = self.of_version(Method::GET, id, version, "/card");
        let answer = self.send(request.query(&[("format", format)])).await?;
        answer.text().await.map_err(|source| self.unreachable(source))
    }

    /// Everything that made a version.
    pub(crate) async fn ancestry(&self, id: &StudyId, version: &str) -> Answer<VersionLineage> {
        self.read(self.of_version(Method::GET, id, version, "/lineage")).await
    }

    /// The versions that learned from what the filters name: every page, as one.
    pub(crate) async fn touched(&self, filters: &[(&str, String)]) -> Answer<Touched> {
        let ask = || self.request(Method::GET, "lineage").query(filters);
        let mut all: Touched = self.read(ask()).await?;
        while let Some(cursor) = all.next.take() {
            let page: Touched = self.read(ask().query(&[("cursor", &cursor)])).await?;
            // As in `pages_of`.
            all.next = page.next.filter(|next| !page.versions.is_empty() && *next != cursor);
            all.versions.extend(page.versions);
        }
        Ok(all)
    }

    /// Has a study's versions move: `what` is a path under the study. Only if they are at the revision, if one is named.
    pub(crate) async fn move_version(
        &self,
        id: &StudyId,
        what: &str,
        asked: &impl Serialize,
        revision: Option<u64>,
    ) -> Answer<Version> {
        let path = format!("studies/{id}/{what}");
        self.once(|| {
            let request = self.request(Method::POST, &path).json(asked);
            match revision {
                Some(revision) => request.header("if-match", format!("\"{revision}\"")),
                None => request,
            }
        })
        .await
    }

    fn of_version(
        &self,
        method: Method,
        id: &StudyId,
        version: &str,
        what: &str,
    ) -> RequestBuilder {
        self.request(method, &format!("studies/{id}/versions/{version}{what}"))
    }

    /// A checkpoint, signed now.
    pub(crate) async fn checkpoint(&self) -> Answer<Checkpoint> {
        self.get("log/checkpoint").await
    }

    /// Who stands behind how much of the log.
    pub(crate) async fn witnesses(&self) -> Answer<Page<Witness>> {
        self.pages("log/witnesses").await
    }

    /// The shards of the log.
    pub(crate) async fn shards(&self) -> Answer<Page<LogShard>> {
        self.pages("log/shards").await
    }

    /// One page of log entries: of those that pass the filters, by name, which are not empty.
    pub(crate) async fn entries(&self, filters: &[(&str, String)]) -> Answer<Page<LogEntry>> {
        self.read(self.request(Method::GET, "log/entries").query(filters)).await
    }

    /// One page of the entries that touched an object, with their proofs.
    pub(crate) async fn accesses(&self, filters: &[(&str, String)]) -> Answer<Accesses> {
        self.read(self.request(Method::GET, "log/accesses").query(filters)).await
    }

    /// The newest entries and those that come, as is asked for; after the entry `seen` when one is named.
    pub(crate) async fn tail(
        &self,
        filters: &[(&str, String)],
        seen: Option<u64>,
    ) -> Answer<Events> {
        let mut request = self.request(Method::GET, "log/tail").query(filters);
        if let Some(seen) = seen {
            request = request.header("last-event-id", seen);
        }
        self.events_of(request).await
    }

    /// The proof that an entry is in the log.
    pub(crate) async fn proof(&self, index: u64, shard: Option<String>) -> Answer<String> {
        let path = format!("log/entries/{index}/proof");
        let request = self.request(Method::GET, &path).query(of_shard(shard.as_deref()).as_slice());
        let answer = self.send(request).await?;
        answer.text().await.map_err(|source| self.unreachable(source))
    }

    /// Every checkpoint of a shard that an authority has stamped with the time.
    pub(crate) async fn timestamps(&self, shard: Option<&str>) -> Answer<Page<Timestamp>> {
        self.pages_of("log/timestamps", of_shard(shard).as_slice()).await
    }

    /// The time-stamp of the checkpoint of so many entries, as the authority answered.
    pub(crate) async fn timestamp(&self, tree_size: u64, shard: Option<&str>) -> Answer<Vec<u8>> {
        let path = format!("log/timestamps/{tree_size}");
        let request = self.request(Method::GET, &path).query(of_shard(shard).as_slice());
        let answer = self.send(request).await?;
        let bytes = answer.bytes().await.map_err(|source| self.unreachable(source))?;
        Ok(bytes.into())
    }

    /// The export's bytes: of the shard that is written or another, whole or up to a checkpoint, and with a time-stamp of
    /// its report if asked. They are taken to a place.
    pub(crate) async fn export(
        &self,
        tree_size: Option<u64>,
        shard: Option<String>,
        timestamp: bool,
        to: Option<Place>,
    ) -> Answer<Response> {
        let size = tree_size.map(|size| ("tree_size", size.to_string()));
        let shard = of_shard(shard.as_deref());
        let stamp = timestamp.then(|| ("timestamp", "true".to_owned()));
        let of = size.into_iter().chain(shard).chain(stamp);
        let of: Vec<_> = of.chain(to.map(|place| ("place", place.to_string()))).collect();
        self.send(self.request(Method::GET, "log/export").query(&of)).await
    }

    /// What a mirror of so many entries in this place lacks; where it is written to, if that is over the network.
    pub(crate) async fn mirror(
        &self,
        from: u64,
        place: &Place,
        at: Option<&Only>,
        shard: Option<&str>,
    ) -> Answer<Response> {
        let mut of = vec![("from", from.to_string()), ("place", place.to_string())];
        if let Some(Only { host, addresses }) = at {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            of.extend([("host", host.clone()), ("addresses", addresses.join(","))]);
        }
        of.extend(of_shard(shard));
        self.send(self.request(Method::GET, "log/mirror").query(&of)).await
    }

    /// The people in the log.
    pub(crate) async fn persons(&self) -> Answer<Page<Person>> {
        self.pages("persons").await
    }

    /// Erases a person.
    pub(crate) async fn erase(&self, asked: &ErasureRequest) -> Answer<Erasure> {
        self.change("erasures", Some(asked)).await
    }

    /// Prunes a shard that has ended.
    pub(crate) async fn prune(&self, asked: &PruningRequest) -> Answer<Pruning> {
        self.change("log/prunings", Some(asked)).await
    }

    /// The legal holds that stand.
    pub(crate) async fn holds(&self) -> Answer<Page<Hold>> {
        self.pages("holds").await
    }

    /// Places a legal hold.
    pub(crate) async fn place_hold(&self, asked: &HoldRequest) -> Answer<Hold> {
        self.change("holds", Some(asked)).await
    }

    /// Releases a legal hold.
    pub(crate) async fn release_hold(&self, hold: &str) -> Answer<Hold> {
        self.change(&format!("holds/{hold}/release"), None::<&()>).await
    }

    /// Makes a token by which a site enrols.
    pub(crate) async fn enrolment_token(
        &self,
        asked: &EnrolmentTokenRequest,
    ) -> Answer<EnrolmentToken> {
        self.change("enrolment-tokens", Some(asked)).await
    }

    /// The tokens that can be used, and what became of others.
    pub(crate) async fn enrolment_tokens(&self) -> Answer<Page<EnrolmentTokenState>> {
        self.pages("enrolment-tokens").await
    }

    /// Takes a token back that nobody has used.
    pub(crate) async fn withdraw_token(&self, id: &str) -> Answer<EnrolmentTokenState> {
        self.change(&format!("enrolment-tokens/{id}/withdraw"), None::<&()>).await
    }

    /// The approvals in force.
    pub(crate) async fn approvals(&self) -> Answer<Page<Approval>> {
        self.pages("approvals").await
    }

    /// Approves what another person is to take.
    pub(crate) async fn approve(&self, asked: &ApprovalRequest) -> Answer<Approval> {
        self.change("approvals", Some(asked)).await
    }

    /// Takes an approval back.
    pub(crate) async fn withdraw(&self, approval: &str) -> Answer<Approval> {
        self.change(&format!("approvals/{approval}/withdraw"), None::<&()>).await
    }

    /// The revocations that stand.
    pub(crate) async fn revocations(&self) -> Answer<Page<Revocation>> {
        self.pages("revocations").await
    }

    /// Revokes a certificate or an identity.
    pub(crate) async fn revoke(&self, asked: &RevocationRequest) -> Answer<Revocation> {
        self.change("revocations", Some(asked)).await
    }

    /// Takes a revocation back.
    pub(crate) async fn reinstate(&self, asked: &RevocationRequest) -> Answer<Revocation> {
        self.change("reinstatements", Some(asked)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/api/v1/{path}", self.server))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        self.read(self.request(Method::GET, path)).await
    }

    /// Every page of a list, as one.
    async fn pages<T: DeserializeOwned>(&self, path: &str) -> Answer<Page<T>> {
        self.pages_of(path, &[]).await
    }

    /// The same, of what passes a filter.
    async fn pages_of<T: DeserializeOwned>(
        &self,
        path: &str,
        of: &[(&str, String)],
    ) -> Answer<Page<T>> {
        let ask = || self.request(Method::GET, path).query(of);
        let mut all: Page<T> = self.read(ask()).await?;
        while let Some(cursor) = all.next.take() {
            let page: Page<T> = self.read(ask().query(&[("cursor", &cursor)])).await?;
            // A page that adds nothing would go on for ever.
            all.next = page.next.filter(|next| !page.items.is_empty() && *next != cursor);
            all.items.extend(page.items);
        }
        Ok(all)
    }

    /// Asks for a change: `path` takes it, with a document if there is one.
    async fn change<T: DeserializeOwned>(
        &self,
        path: &str,
        asked: Option<&impl Serialize>,
    ) -> Answer<T> {
        self.once(|| {
            let request = self.request(Method::POST, path);
            match asked {
                Some(asked) => request.json(asked),
                None => request,
            }
        })
        .await
    }

    /// Asks for a change that is made once: when the connection breaks the same is asked again, under the same key.
    async fn once<T: DeserializeOwned>(&self, ask: impl Fn() -> RequestBuilder) -> Answer<T> {
        let mut bytes = [0; 16];
        // Without chance there is no key, and what may have been done is not tried again.
        let drawn = getrandom::fill(&mut bytes).is_ok();
        let key = drawn.then(|| format!("{:032x}", u128::from_be_bytes(bytes)));
        let Some(key) = key else { return self.read(ask()).await };
        for _ in 0..AGAIN {
            match self.read(ask().header("idempotency-key", &key)).await {
                Err(ClientError::Unreachable { .. }) => {}
                answer => return answer,
            }
        }
        self.read(ask().header("idempotency-key", &key)).await
    }

    async fn read<T: DeserializeOwned>(&self, request: RequestBuilder) -> Answer<T> {
        let answer = self.send(request).await?;
        answer.json().await.map_err(|source| self.unreachable(source))
    }

    async fn send(&self, request: RequestBuilder) -> Answer<Response> {
        let answer = request.send().await.map_err(|source| self.unreachable(source))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let foreign = ClientError::Foreign { server: self.server.clone(), status: status.as_u16() };
        if answer.content_length().is_some_and(|n| n > PROBLEM_BYTES_MAX as u64) {
            return Err(foreign);
        }
        Err(answer.json().await.map_or(foreign, ClientError::Refused))
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        // The address is in the message already.
        ClientError::Unreachable { server: self.server.clone(), source: source.without_url() }
    }
}

/// The filter for a shard, if it is not the one that is written.
fn of_shard(shard: Option<&str>) -> Option<(&'static str, String)> {
    shard.map(|origin| ("shard", origin.to_owned()))
}

/// Server-sent events, as they come.
#[derive(Debug)]
pub(crate) struct Events {
    answer: Response,
    server: String,
    text: Vec<u8>,
}

/// One of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// What it is, when it says so.
    pub(crate) kind: String,
    /// What it carries.
    pub(crate) data: Vec<u8>,
}

impl Event {
    /// What it carries, read.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Answer<T> {
        serde_json::from_slice(&self.data).map_err(|e| ClientError::Event(e.to_string()))
    }
}

impl Events {
    /// The next event; none when the stream has ended.
    ///
    /// # Errors
    /// When the connection breaks, or an event is longer than one can be.
    pub(crate) async fn next(&mut self) -> Answer<Option<Event>> {
        loop {
            if let Some(event) = take_event(&mut self.text) {
                return Ok(Some(event));
            }
            if self.text.len() > EVENT_BYTES_MAX {
                return Err(ClientError::Event(format!(
                    "it is longer than {EVENT_BYTES_MAX} bytes"
                )));
            }
            let chunk = self.answer.chunk().await.map_err(|source| ClientError::Unreachable {
                server: self.server.clone(),
                source: source.without_url(),
            })?;
            match chunk {
                Some(chunk) => self.text.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// The first whole event in `text`, which it is taken from. Comments, which only keep the connection alive, are skipped.
/// Source: WHATWG HTML, section 9.2.6.
fn take_event(text: &mut Vec<u8>) -> Option<Event> {
    loop {
        let end = text.windows(2).position(|w| w == b"\n\n")?;
        let block: Vec<u8> = text.drain(..end + 2).collect();
        let field = |name: &'static [u8]| {
            block
                .split(|&b| b == b'\n')
                .filter_map(move |line| line.strip_prefix(name))
                .map(|line| line.strip_prefix(b" ").unwrap_or(line))
        };
        let data: Vec<&[u8]> = field(b"data:").collect();
        if !data.is_empty() {
            let kind = field(b"event:").next().map(String::from_utf8_lossy);
            let kind = kind.map(std::borrow::Cow::into_owned).unwrap_or_default();
            return Some(Event { kind, data: data.join(&b'\n') });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_across_chunks_and_comments() {
        let mut text = b":\n\nid: 1\ndata: {\"a\":".to_vec();
        let event = |kind: &str, data: &str| Some(Event { kind: kind.into(), data: data.into() });
        assert_eq!(take_event(&mut text), None);
        text.extend_from_slice(b"1}\n\nevent: end\ndata:x\ndata: y\n\n:alive\n\n");
        assert_eq!(take_event(&mut text), event("", "{\"a\":1}"));
        assert_eq!(take_event(&mut text), event("end", "x\ny"));
        assert_eq!(take_event(&mut text), None);
        assert!(text.is_empty());
    }
}
