//! gRPC, as sites see it: decode, ask, call one method, encode. Rules live in `falaj-core`.

use crate::{
    accept::Peer,
    blob::{Blobs, is_full},
    checkpointer::Checkpointer,
    config::EvidenceConfig,
    engine::{
        Answer, Arrived, Engine, Handle, MESSAGES_MAX, SignedReceipt, problem_of, refusal,
        unreadable, update_ref,
    },
    enrolment::Enrolments,
    evidence,
    outcomes::Intent,
    policy::{Action, Resource},
    proofs,
    store::{
        Store,
        writer::{Change, Commit, CommitError},
    },
    versions,
};
use ed25519_dalek::VerifyingKey;
use falaj_core::{
    admission::{self, Expectation, HeaderError},
    audit::{Draft, Kind},
    evidence::Declared,
    id::{Digest, Place, RoundId, SiteId, StudyId},
    round::{self, Event, Phase},
    update::{PayloadCheck, PayloadError, UpdateHeader},
    witness::WitnessKey,
};
use falaj_proto::{
    CHUNK_BYTES_MAX,
    problem::{Code, Problem},
    v1::{
        AnswerReply, AnswerRequest, CheckpointReply, CheckpointRequest, ConnectRequest,
        CosignReply, CosignRequest, DeclineReply, DeclineRequest, FetchModelRequest, ModelOpen,
        ModelPart, ProbeAnswer, ProbeReply, ProveInclusionReply, ProveInclusionRequest, Push,
        RenewReply, RenewRequest, SubmitUpdateReply, UpdateOpen, UpdatePart, Welcome,
        federation_server::Federation, model_part, push, update_part,
    },
};
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status, Streaming};

/// A site that sends nothing for this long in the middle of an upload has gone.
const UPLOAD_IDLE: Duration = Duration::from_mins(1);
/// Model chunks that wait for a slow site.
const CHUNKS: usize = 4;
/// A signature line is at most this long.
const COSIGNATURE_BYTES_MAX: usize = 1_024;
/// Data sets that one site may offer.
const DATASETS_MAX: usize = 256;

/// Who is at it, of one site.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// The service.
pub struct Rpc {
    engine: Engine,
    checkpointer: Checkpointer,
    enrolments: Enrolments,
    uploads: Arc<Semaphore>,
    upload_serial: AtomicU64,
    /// Sites of which an update is being made durable and counted: of each one at a time.
    turns: Mutex<BTreeMap<SiteId, Turn>>,
    probe_every: Duration,
    declared: Declared,
}

/// A site that has opened its stream.
pub struct Joined {
    /// Who it is.
    pub site: SiteId,
    /// Its connection.
    pub peer: Arc<Peer>,
    /// The number of its stream.
    pub serial: u64,
    /// Where it says that its records are stored, and that it computes.
    pub declared: (Option<Place>, Option<Place>),
    /// Whether it answers probes.
    pub answers_probes: bool,
    /// Whether it gives quotes of a TPM.
    pub gives_quotes: bool,
}

impl Rpc {
    /// A service over an engine, what signs the log's checkpoints, and what gives certificates.
    #[must_use]
    pub fn new(
        engine: Engine,
        checkpointer: Checkpointer,
        enrolments: Enrolments,
        evidence: &EvidenceConfig,
    ) -> Self {
        let uploads = Arc::new(Semaphore::new(engine.parts().limits.uploads_max));
        let probe_every = Duration::from_secs(evidence.probe_every_s.max(1));
        let upload_serial = AtomicU64::new(0);
        let declared = Declared::default();
        let turns = Mutex::default();
        Self {
            engine,
            checkpointer,
            enrolments,
            uploads,
            upload_serial,
            turns,
            probe_every,
            declared,
        }
    }

    /// Tells sites where the coordinator's operator says that it stores and computes.
    #[must_use]
    pub fn declaring(self, declared: Declared) -> Self {
        Self { declared, ..self }
    }

    /// The shard of the log with this origin; the newest for a site that names none.
    fn shard(&self, origin: &str) -> Result<&Store, Problem> {
        let shards = &self.engine.parts().shards;
        let found = if origin.is_empty() { Some(shards.newest()) } else { shards.find(origin) };
        let unknown = || Code::NotFound.because(format!("there is no log `{origin}` here"));
        Ok(&found.ok_or_else(unknown)?.0)
    }
}

fn peer<T>(request: &Request<T>) -> Result<Arc<Peer>, Status> {
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    Ok(peer.ok_or_else(|| Code::Unidentified.because("the connection has no peer"))?)
}

fn bytes_of(hashes: &[Digest]) -> Vec<bytes::Bytes> {
    hashes.iter().map(|h| bytes::Bytes::copy_from_slice(&h.0)).collect()
}

/// Where this coordinator says that something is.
fn said(place: Option<&Place>) -> String {
    place.map(ToString::to_string).unwrap_or_default()
}

/// Where a site says that something is; nothing when it says nothing.
fn declared(what: &str, text: &str) -> Result<Option<Place>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let place = text.parse().map(Some);
    place.map_err(|e| Code::Malformed.because(format!("`{what}` is declared in no place: {e}")))
}

fn study_id(text: &str) -> Result<StudyId, Problem> {
    text.parse().map_err(|e: falaj_core::id::IdError| Code::UnknownStudy.because(e))
}

/// A site's stream of pushes; when it is dropped, the site has left.
pub struct Pushes {
    pushed: mpsc::Receiver<Result<Push, Status>>,
    engine: Engine,
    site: SiteId,
    serial: u64,
    peer: Arc<Peer>,
    /// Done when the site is cut off; none once it has been told.
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _gone: DropGuard,
}

impl Stream for Pushes {
    type Item = Result<Push, Status>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(cut) = &mut self.cut else { return Poll::Ready(None) };
        if cut.as_mut().poll(cx).is_ready() {
            self.cut = None;
            return Poll::Ready(self.peer.standing.problem().map(|problem| Err(problem.into())));
        }
        self.pushed.poll_recv(cx)
    }
}

impl Drop for Pushes {
    fn drop(&mut self) {
        self.engine.sites().leave(&self.site, self.serial);
        let connected = i64::try_from(self.engine.sites().count()).unwrap_or(i64::MAX);
        self.engine.parts().metrics.sites_connected.set(connected);
        tracing::info!(site = %self.site, "site left");
    }
}

#[tonic::async_trait]
impl Federation for Rpc {
    type ConnectStream = Pushes;

    async fn connect(&self, request: Request<ConnectRequest>) -> Result<Response<Pushes>, Status> {
        let peer = peer(&request)?;
        let (site, _) = peer.site()?;
        let hello = request.into_inner();
        if hello.datasets.len() > DATASETS_MAX {
            return Err(Code::Malformed
                .because(format!("a site offers at most {DATASETS_MAX} data sets"))
                .into());
        }
        let declared = (declared("storage", &hello.storage)?, declared("compute", &hello.compute)?);
        let parts = self.engine.parts();
        let checkpoint = parts.store.newest_checkpoint().await.map_err(unreadable)?;
        let newest = parts.store.newest_update(&site).await.map_err(unreadable)?;
        let (newest_header, newest_signature) =
            newest.map(|u| (u.header, u.signature)).unwrap_or_default();
        let address = peer.actor.address.clone().unwrap_or_default();
        let version = hello.agent_version.chars().take(64).collect();
        let certificate = peer.certificate.clone();
        let sites = self.engine.sites();
        let (serial, pushed) = sites.connect(&site, address, version, hello.datasets, certificate);
        let cut = Some(Box::pin(peer.standing.end().clone().cancelled_owned()));
        let (engine, site_there, stays) = (self.engine.clone(), site.clone(), peer.clone());
        let gone = CancellationToken::new();
        let stream = Pushes {
            pushed,
            engine,
            site: site_there,
            serial,
            peer: stays,
            cut,
            _gone: gone.clone().drop_guard(),
        };
        let connected = i64::try_from(self.engine.sites().count()).unwrap_or(i64::MAX);
        parts.metrics.sites_connected.set(connected);
        let welcome = Welcome {
            coordinator_version: env!("CARGO_PKG_VERSION").into(),
            log_verifier_key: parts.signer.verifier().to_string(),
            checkpoint: checkpoint.map(|(_, note)| note).unwrap_or_default(),
            newest_header: newest_header.into(),
            newest_signature: newest_signature.into(),
            successions: parts.shards.statements().to_vec(),
            renews: self.enrolments.renews(),
            storage: said(self.declared.storage.as_ref()),
            compute: said(self.declared.compute.as_ref()),
        };
        self.engine.sites().push_on(&site, serial, push::Push::Welcome(welcome));
        tracing::info!(%site, "site connected");
        let (answers_probes, gives_quotes) = (hello.answers_probes, hello.gives_quotes);
        let joined = Joined { site, peer, serial, declared, answers_probes, gives_quotes };
        tokio::spawn(evidence::attend(self.engine.clone(), joined, self.probe_every, gone));
        Ok(Response::new(stream))
    }

    async fn answer_probe(
        &self,
        request: Request<ProbeAnswer>,
    ) -> Result<Response<ProbeReply>, Status> {
        let peer = peer(&request)?;
        // Whether it may be here is asked afterwards: it takes longer than the way.
        if let Ok(identity) = &peer.admitted {
            peer.known.answered(&identity.public_key, request.get_ref())?;
        }
        peer.site()?;
        Ok(Response::new(ProbeReply {}))
    }

    async fn decline(
        &self,
        request: Request<DeclineRequest>,
    ) -> Result<Response<DeclineReply>, Status> {
        let peer = peer(&request)?;
        let (site, _) = peer.site()?;
        let decline = request.into_inner();
        let round = RoundId { study: study_id(&decline.study)?, number: decline.round };
        let code: String = decline.code.chars().take(64).collect();
        let reason: String = decline.reason.chars().take(1_000).collect();
        self.engine.decline(site, &round, format!("{code}: {reason}")).await?;
        Ok(Response::new(DeclineReply {}))
    }

    async fn answer(
        &self,
        request: Request<AnswerRequest>,
    ) -> Result<Response<AnswerReply>, Status> {
        let peer = peer(&request)?;
        let (site, _) = peer.site()?;
        peer.known.take_part().await?;
        let AnswerRequest { study, round, attempt, phase, messages } = request.into_inner();
        let round = RoundId { study: study_id(&study)?, number: round };
        let phase =
            Phase::find(&phase).ok_or_else(|| Code::Malformed.because("there is no such phase"))?;
        if messages.len() > MESSAGES_MAX {
            let most = format!("an answer has at most {MESSAGES_MAX} messages");
            return Err(Code::Malformed.because(most).into());
        }
        let answered = self.take_answer(&peer, &site, &round, (attempt, phase, messages)).await;
        if let Err(problem) = &answered {
            if phase == Phase::Evaluation {
                self.engine.parts().metrics.evaluation(problem.code.as_str());
            }
            tracing::warn!(%site, %round, phase = phase.as_str(), detail = problem.detail, "answer refused");
            let entry = Draft::new(Kind::UpdateRefused)
                .actor(&peer.actor)
                .round(&round)
                .text("decision", "deny")
                .text("phase", phase.as_str())
                .text("code", problem.code.as_str())
                .text("reason", &problem.detail);
            if let Err(e) = self.engine.parts().writer.record(vec![entry]).await {
                tracing::error!(error = %e, "a refusal could not be logged");
            }
        }
        answered?;
        Ok(Response::new(AnswerReply {}))
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointRequest>,
    ) -> Result<Response<CheckpointReply>, Status> {
        peer(&request)?.site()?;
        let CheckpointRequest { seen_size: seen, origin } = request.into_inner();
        let store = self.shard(&origin)?;
        let (tree_size, checkpoint) = if store.ended() {
            // The last one: the next shard goes on from it.
            let last = store.newest_checkpoint().await.map_err(unreadable)?;
            last.ok_or_else(|| Code::NotFound.because("this shard has no checkpoint"))?
        } else {
            self.checkpointer.current(store).await.map_err(|e| problem_of(&e))?
        };
        // Whoever saw more has found something out; there is no proof for that.
        let proof = if seen <= tree_size {
            proofs::consistency(store, seen, tree_size).await.map_err(unreadable)?
        } else {
            Vec::new()
        };
        Ok(Response::new(CheckpointReply { checkpoint, proof: bytes_of(&proof) }))
    }

    async fn cosign(
        &self,
        request: Request<CosignRequest>,
    ) -> Result<Response<CosignReply>, Status> {
        let peer = peer(&request)?;
        let (site, identity) = peer.site()?;
        let CosignRequest { tree_size, cosignature, origin } = request.into_inner();
        let (parts, store) = (self.engine.parts(), self.shard(&origin)?);
        let refused = |why: &dyn std::fmt::Display| Status::from(Code::Malformed.because(why));
        let note = store.checkpoint(tree_size).await.map_err(unreadable)?;
        let note = note.ok_or_else(|| refused(&"there is no checkpoint of this size"))?;
        let key =
            WitnessKey::of_party(site.spiffe(), &identity.public_key).map_err(|e| refused(&e))?;
        let one = cosignature.len() <= COSIGNATURE_BYTES_MAX && cosignature.lines().count() == 1;
        let time = if one { key.cosigned(&(note + &cosignature)) } else { Ok(None) };
        if time.map_err(|e| refused(&e))?.is_none() {
            return Err(refused(&"this is no cosignature by the key of the site's certificate"));
        }
        let (shard, name) = (store.shard().clone(), key.name().to_owned());
        let rows = vec![Change::Cosignature(shard, tree_size, name, cosignature)];
        let commit = Commit { rows, ..Commit::default() };
        parts.writer.commit(commit).await.map_err(|e| problem_of(&e))?;
        Ok(Response::new(CosignReply {}))
    }

    async fn prove_inclusion(
        &self,
        request: Request<ProveInclusionRequest>,
    ) -> Result<Response<ProveInclusionReply>, Status> {
        peer(&request)?.site()?;
        let ProveInclusionRequest { index, tree_size, origin } = request.into_inner();
        let store = self.shard(&origin)?;
        let size = if store.ended() {
            store.size().await.map_err(unreadable)?
        } else {
            self.engine.parts().writer.head().0
        };
        if index >= tree_size || tree_size > size {
            let why = "the log has no entry of that index, or no checkpoint of that size";
            return Err(Code::Malformed.because(why).into());
        }
        let proof = proofs::inclusion(store, index, tree_size).await.map_err(unreadable)?;
        Ok(Response::new(ProveInclusionReply { proof: bytes_of(&proof) }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let peer = peer(&request)?;
        let (enrolments, asked) = (self.enrolments.clone(), request.into_inner().request);
        // To its end, even if the site hangs up meanwhile: the entry says that it was given.
        let done = tokio::spawn(async move { enrolments.renew(&peer, &asked).await }).await;
        let done = done.unwrap_or_else(|e| {
            tracing::error!(error = %e, "a renewal broke off");
            Err(Code::Internal.because("the renewal broke off"))
        });
        Ok(Response::new(done?))
    }

    type FetchModelStream = ReceiverStream<Result<ModelPart, Status>>;

    async fn fetch_model(
        &self,
        request: Request<FetchModelRequest>,
    ) -> Result<Response<Self::FetchModelStream>, Status> {
        let peer = peer(&request)?;
        let (site, _) = peer.site()?;
        peer.known.take_part().await?;
        let wanted = request.get_ref();
        let handle = self.engine.study(&study_id(&wanted.study)?)?;
        let digest: Digest = wanted
            .model_sha256
            .parse()
            .map_err(|e: falaj_core::id::IdError| Code::UnknownModel.because(e))?;
        let parts = self.engine.parts();
        let id = &handle.meta.study.id;
        let models = parts.store.models(id).await.map_err(unreadable)?;
        let evaluated = handle.asks_to_evaluate(&site) == Some(digest);
        if !evaluated && !models.iter().any(|m| m.sha256 == digest) {
            return Err(Code::UnknownModel
                .because(format!("study `{id}` has no model {digest}"))
                .into());
        }
        // What a round begins from is told to its sites whatever became of it; stopping the study ends that.
        if !evaluated && handle.base() != Some(digest) {
            versions::check_usable(&parts.store, id, &digest).await?;
        }
        let draft = Draft::new(Kind::ModelRead)
            .actor(&peer.actor)
            .study(id)
            .digest("model_sha256", &digest);
        let resource = Resource::Study(id, handle.meta.study.privacy.mechanism.as_str());
        let granted = self.engine.grant(peer.party()?, Action::ModelRead, &resource, draft).await?;
        let intent = Intent {
            index: granted.1.first,
            kind: Kind::ModelRead,
            actor: peer.actor.clone(),
            study: Some(id.clone()),
        };
        let serving = parts.outcomes.serving(intent);
        let blocks = parts.models.blocks(&digest, CHUNK_BYTES_MAX).await;
        let (payload_bytes, mut blocks) = blocks.map_err(|e| {
            tracing::error!(error = %e, %digest, "a model cannot be read");
            Status::from(Code::Internal.because("the coordinator cannot read this model"))
        })?;
        let (chunks, parts_out) = mpsc::channel(CHUNKS);
        let metrics = parts.metrics.clone();
        let mut serving = serving.of(payload_bytes);
        tokio::spawn(async move {
            let open = ModelOpen { params: payload_bytes / 4, payload_bytes };
            let mut part = Ok(ModelPart { part: Some(model_part::Part::Open(open)) });
            let mut handed = 0;
            loop {
                if chunks.send(part).await.is_err() {
                    return;
                }
                serving.add(handed);
                let chunk = match blocks.next().await {
                    Some(Ok(chunk)) => chunk,
                    Some(Err(e)) => {
                        tracing::error!(error = %e, "a model cannot be read to its end");
                        serving.fail();
                        let _ = chunks
                            .send(Err(Code::Internal.because("the model ended early").into()))
                            .await;
                        return;
                    }
                    None => return,
                };
                metrics.bytes_out.inc_by(chunk.len() as u64);
                handed = chunk.len();
                part = Ok(ModelPart { part: Some(model_part::Part::Chunk(chunk)) });
            }
        });
        Ok(Response::new(ReceiverStream::new(parts_out)))
    }

    async fn submit_update(
        &self,
        request: Request<Streaming<UpdatePart>>,
    ) -> Result<Response<SubmitUpdateReply>, Status> {
        let peer = peer(&request)?;
        let (site, identity) = peer.site()?;
        peer.known.take_part().await?;
        let key = VerifyingKey::from_bytes(&identity.public_key)
            .map_err(|e| Status::from(Code::Unidentified.because(e)))?;
        let Ok(room) = self.uploads.clone().try_acquire_owned() else {
            return Err(Code::Busy
                .because("as many uploads as are taken are under way; try again")
                .into());
        };
        let mut parts = request.into_inner();
        let mut header = None;
        let received = self.receive((&peer, room), &site, &key, &mut parts, &mut header).await;
        let metrics = &self.engine.parts().metrics;
        match received {
            Ok(receipt) => {
                metrics.update(if receipt.already_counted { "duplicate" } else { "accepted" });
                Ok(Response::new(SubmitUpdateReply {
                    receipt: receipt.receipt.into(),
                    signature: receipt.signature.to_vec().into(),
                    already_counted: receipt.already_counted,
                }))
            }
            Err(problem) => {
                metrics.update(problem.code.as_str());
                tracing::warn!(%site, code = %problem.code, detail = problem.detail, "update refused");
                let mut entry = Draft::new(Kind::UpdateRefused)
                    .actor(&peer.actor)
                    .text("decision", "deny")
                    .text("code", problem.code.as_str())
                    .text("reason", &problem.detail);
                if let Some(header) = header {
                    entry = entry.round(&header.round).digest("payload_sha256", &header.payload);
                }
                let logged = self.engine.parts().writer.record(vec![entry]).await;
                if let Err(e) = logged {
                    tracing::error!(error = %e, "a refusal could not be logged");
                }
                Err(problem.into())
            }
        }
    }
}

impl Rpc {
    /// Asks the policies about an answer, and has its round take it.
    async fn take_answer(
        &self,
        peer: &Arc<Peer>,
        site: &SiteId,
        round: &RoundId,
        (attempt, phase, messages): (u32, Phase, Vec<bytes::Bytes>),
    ) -> Result<(), Problem> {
        let handle = self.engine.study(&round.study)?;
        let mechanism = handle.meta.study.privacy.mechanism.as_str();
        let resource = Resource::Study(&round.study, mechanism);
        let (policy, action) = (&self.engine.parts().policy, Action::UpdateSend);
        let decision = policy.decide(site.spiffe(), action, &resource);
        if !decision.allow {
            return Err(Code::Denied.because(&decision.reason));
        }
        let (site, peer, round) = (site.clone(), peer.clone(), round.clone());
        let answer = Answer { site, peer, decision, round, attempt, phase, messages };
        self.engine.answered(answer).await
    }

    async fn receive(
        &self,
        (peer, room): (&Arc<Peer>, OwnedSemaphorePermit),
        site: &SiteId,
        key: &VerifyingKey,
        parts: &mut Streaming<UpdatePart>,
        seen: &mut Option<UpdateHeader>,
    ) -> Result<SignedReceipt, Problem> {
        let Some(update_part::Part::Open(open)) = next(parts).await? else {
            return Err(Code::Malformed.because("an upload begins with its header"));
        };
        let UpdateOpen { header: header_bytes, signature } = open;
        let header =
            UpdateHeader::parse(&header_bytes).map_err(|e| Code::HeaderMalformed.because(e))?;
        *seen = Some(header.clone());
        admission::check_origin(&header, &header_bytes, &signature, site, key)
            .map_err(|e| header_problem(&e))?;
        let handle = self.engine.study(&header.round.study)?;
        let id = &handle.meta.study.id;
        let mechanism = handle.meta.study.privacy.mechanism.as_str();
        let resource = Resource::Study(id, mechanism);
        let decision =
            self.engine.parts().policy.decide(site.spiffe(), Action::UpdateSend, &resource);
        if !decision.allow {
            return Err(Code::Denied.because(&decision.reason));
        }
        let view = handle.view();
        let open = view.round.filter(|_| view.state == "running");
        let event = Event::Update(site.clone(), update_ref(&header, &header_bytes));
        // What the round would say is known before a byte is read; it is asked again when it counts.
        let would = open
            .as_ref()
            .filter(|r| *r.id() == header.round)
            .map(|r| round::step(r, event, crate::clock::now()).map(drop));
        if !matches!(would, Some(Ok(()))) {
            // Sent again because the answer was lost: the same receipt, whatever the round does now.
            let again = self.engine.receipt_again(&header.round, site, &header.payload).await?;
            if let Some(receipt) = again {
                return self.duplicate(peer, &header, receipt).await;
            }
        }
        let Some(open) = open else {
            return Err(Code::StudyOver
                .because(format!("study `{id}` takes no updates: it is {}", view.state)));
        };
        if open.spec().masked && view.cohort.is_none() {
            return Err(Code::Unavailable.because("the round is being taken up; try again"));
        }
        let (id, base) = (open.id().clone(), open.spec().base);
        let expected = Expectation::of(&handle.meta.study, id, base, view.cohort)
            .map_err(|e| Code::Internal.because(e))?;
        let bytes_max = self.engine.parts().limits.update_bytes_max;
        admission::check_header(&header, &expected, bytes_max).map_err(|e| header_problem(&e))?;
        if let Some(Err(e)) = would {
            return Err(refusal(&e));
        }
        let spooling = tokio::select! {
            spooling = self.spool(&header, parts) => Some(spooling?),
            () = peer.standing.end().cancelled() => None,
        };
        let arrived = Arrived {
            site: site.clone(),
            peer: peer.clone(),
            decision,
            header,
            header_bytes: header_bytes.to_vec(),
            signature: signature.to_vec(),
        };
        let (engine, turn) = (self.engine.clone(), self.turn(site));
        // Should the site go away now, this comes to its end all the same: what is durable is counted.
        let counting = tokio::spawn(async move {
            let (_room, _turn) = (room, turn.lock_owned().await);
            if let Some(spooling) = spooling {
                // Others of this site's may have been counted meanwhile; nothing remains of what is refused here.
                still_taken(&handle, &arrived)?;
                spooling.finish().await?;
            }
            engine.count(arrived).await
        });
        counting.await.map_err(|e| {
            tracing::error!(error = %e, "counting an update broke off");
            Code::Internal.because("the coordinator cannot count the update")
        })?
    }

    /// What to hold while an update of this site is made durable and counted.
    fn turn(&self, site: &SiteId) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(site.clone()).or_default().clone()
    }

    async fn duplicate(
        &self,
        peer: &Peer,
        header: &UpdateHeader,
        receipt: SignedReceipt,
    ) -> Result<SignedReceipt, Problem> {
        let entry = Draft::new(Kind::UpdateDuplicate)
            .actor(&peer.actor)
            .round(&header.round)
            .digest("payload_sha256", &header.payload);
        self.engine.parts().writer.record(vec![entry]).await.map_err(|e| problem_of(&e))?;
        Ok(receipt)
    }

    /// Streams the payload to the disk, checking it on the way; it is durable once that is finished. Bytes are
    /// hashed and written on a thread of their own while the next ones arrive.
    async fn spool(
        &self,
        header: &UpdateHeader,
        parts: &mut Streaming<UpdatePart>,
    ) -> Result<Spooling, Problem> {
        let tag = format!("upload-{}", self.upload_serial.fetch_add(1, Ordering::Relaxed));
        let (chunks, arriving) = mpsc::channel(CHUNKS);
        let spool = self.engine.parts().updates.clone();
        let header = header.clone();
        let writing = tokio::task::spawn_blocking(move || write(&spool, &tag, &header, arriving));
        let received = async {
            while let Some(part) = next(parts).await? {
                let update_part::Part::Chunk(chunk) = part else {
                    return Err(Code::Malformed.because("an upload has one header"));
                };
                if chunk.len() > CHUNK_BYTES_MAX {
                    return Err(Code::Malformed
                        .because(format!("a chunk has at most {CHUNK_BYTES_MAX} bytes")));
                }
                self.engine.parts().metrics.bytes_in.inc_by(chunk.len() as u64);
                if chunks.send(Some(chunk)).await.is_err() {
                    // The writer has ended, and says why below.
                    return Ok(());
                }
            }
            Ok(())
        };
        let received: Result<(), Problem> = received.await;
        let spooling = Spooling { chunks, writing };
        match received {
            Ok(()) => Ok(spooling),
            Err(problem) => {
                spooling.leave().await?;
                Err(problem)
            }
        }
    }
}

/// A payload of which every byte has come and none is durable. Dropped before it is finished, it leaves nothing behind.
struct Spooling {
    chunks: mpsc::Sender<Option<bytes::Bytes>>,
    writing: JoinHandle<Result<(), Problem>>,
}

impl Spooling {
    /// It is durable when this returns.
    async fn finish(self) -> Result<(), Problem> {
        // A writer that has ended says why below.
        let _ = self.chunks.send(None).await;
        ended(self.writing).await?
    }

    /// Nothing of it is there any more when this returns.
    async fn leave(self) -> Result<(), Problem> {
        drop(self.chunks);
        // That it broke off is what is wanted.
        ended(self.writing).await.map(drop)
    }
}

async fn ended(writing: JoinHandle<Result<(), Problem>>) -> Result<Result<(), Problem>, Problem> {
    writing.await.map_err(|e| {
        tracing::error!(error = %e, "an update's writer broke off");
        Code::Internal.because("the coordinator cannot store the update")
    })
}

/// Whether the round would count an update of which every byte has come.
fn still_taken(handle: &Handle, arrived: &Arrived) -> Result<(), Problem> {
    let Arrived { site, peer, header, header_bytes, .. } = arrived;
    peer.identity()?;
    let view = handle.view();
    let Some(open) = view.round.filter(|_| view.state == "running") else {
        let id = &header.round.study;
        return Err(
            Code::StudyOver.because(format!("study `{id}` takes no updates: it is {}", view.state))
        );
    };
    let (of, number) = (header.round.number, open.id().number);
    if number != of {
        let why = format!("the update is for round {of}, round {number} is open");
        return Err(Code::WrongRound.because(why));
    }
    let event = Event::Update(site.clone(), update_ref(header, header_bytes));
    round::step(&open, event, crate::clock::now()).map(drop).map_err(|e| refusal(&e))
}

/// Checks chunks and writes them, until `None` says that all are here; without it nothing remains.
fn write(
    spool: &Blobs,
    tag: &str,
    header: &UpdateHeader,
    mut chunks: mpsc::Receiver<Option<bytes::Bytes>>,
) -> Result<(), Problem> {
    let stored = |e: std::io::Error| {
        if is_full(&e) {
            problem_of(&CommitError::Full)
        } else {
            tracing::error!(error = %e, "an update cannot be stored");
            Code::Internal.because("the coordinator cannot store the update")
        }
    };
    let mut file = spool.begin(tag).map_err(stored)?;
    let mut check = PayloadCheck::new(header);
    while let Some(chunk) = chunks.blocking_recv() {
        let Some(chunk) = chunk else {
            check.finish(header.payload).map_err(|e| payload_problem(&e))?;
            return file.finish(&header.payload).map_err(stored);
        };
        check.feed(&chunk).map_err(|e| payload_problem(&e))?;
        file.write(&chunk).map_err(stored)?;
    }
    Err(Code::SizeMismatch.because("the upload broke off"))
}

async fn next(parts: &mut Streaming<UpdatePart>) -> Result<Option<update_part::Part>, Problem> {
    let message = tokio::time::timeout(UPLOAD_IDLE, parts.message()).await;
    let message = message.map_err(|_| {
        Code::SizeMismatch.because(format!("nothing came for {} seconds", UPLOAD_IDLE.as_secs()))
    })?;
    let message = message.map_err(|e| {
        Code::SizeMismatch.because(format!("the upload broke off: {}", e.message()))
    })?;
    message.map(|m| m.part.ok_or_else(|| Code::Malformed.because("an empty message"))).transpose()
}

fn header_problem(e: &HeaderError) -> Problem {
    let code = match e {
        HeaderError::Site { .. } => Code::SiteMismatch,
        HeaderError::Signature(_) => Code::SignatureInvalid,
        HeaderError::Round { .. } => Code::WrongRound,
        HeaderError::Base { .. } => Code::WrongBase,
        HeaderError::Shape { .. } | HeaderError::Weight(_) => Code::ShapeMismatch,
        HeaderError::TooLarge { .. } => Code::TooLarge,
    };
    code.because(e)
}

fn payload_problem(e: &PayloadError) -> Problem {
    let code = match e {
        PayloadError::TooLong(_) | PayloadError::TooShort { .. } => Code::SizeMismatch,
        PayloadError::OutOfRange { .. } => Code::ValueOutOfRange,
        PayloadError::Digest { .. } => Code::DigestMismatch,
    };
    code.because(e)
}
