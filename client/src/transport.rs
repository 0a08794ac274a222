//! Speaking with the coordinator: outbound only, over mutual TLS, models and updates in chunks.

use crate::{
    config::DeclaredConfig,
    egress::{Egress, EgressError},
    wire::{self, Wire},
};
use falaj_certs::enrolment::Token;
use falaj_certs::identity::Identity;
use falaj_certs::tls::{self, Credentials, CredentialsError, ServerExpectation};
use falaj_certs::trust::TrustStore;
use falaj_core::{
    aggregate::params_from_bytes,
    evidence::Declared,
    id::{Digest, Place, SpiffeId},
    note,
    note::VerifierKey,
    receipt::{self, Receipt},
    sign::SignError,
    update::SignedUpdate,
};
use falaj_proto::{
    problem::{Code, code_of},
    v1::{
        AnswerRequest, CheckpointReply, CheckpointRequest, ConnectRequest, CosignRequest,
        DeclineRequest, EnrolReply, EnrolRequest, FetchModelRequest, ProbeAnswer,
        ProveInclusionRequest, Push, RenewReply, RenewRequest, model_part,
    },
};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use std::{
    io,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::StreamExt as _;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// A connection attempt takes at most this long.
const CONNECT: Duration = Duration::from_secs(10);
/// A silent connection is asked whether it lives after this long.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// HTTP/2 windows: a large model must not wait for round trips.
const WINDOW_BYTES: u32 = 8 << 20;
/// A message is at most one chunk and its frame.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Why the coordinator could not be spoken with.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nobody answers, or not whom we look for.
    #[error("{0}")]
    Connect(String),
    /// We do not want to speak with whoever answers: our own check refused it.
    #[error("{0}")]
    Unwanted(String),
    /// This site's own key cannot be used now.
    #[error(transparent)]
    Key(SignError),
    /// What should leave could not be written down.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// The coordinator refuses us.
    #[error("the coordinator refuses: {0}")]
    Refused(String),
    /// The coordinator answers with an error.
    #[error("the coordinator answers: {}", .0.message())]
    Status(Box<Status>),
    /// What it sent is not what it promised.
    #[error("the coordinator sent {0}")]
    Broken(String),
}

impl From<Status> for TransportError {
    fn from(status: Status) -> Self {
        match code_of(&status) {
            Some(code @ (Code::Denied | Code::Unidentified | Code::Revoked)) => {
                Self::Refused(format!("{} [{code}]", status.message()))
            }
            _ => Self::Status(Box::new(status)),
        }
    }
}

impl TransportError {
    /// Whether a certificate is not renewed because too much of its life is left.
    #[must_use]
    pub fn is_too_early(&self) -> bool {
        let word = |s: &Status| s.message().starts_with("too_early");
        self.code() == Some(Code::EnrolmentRefused)
            && matches!(self, Self::Status(status) if word(status))
    }

    /// The coordinator's code, if it gave one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status(status) => code_of(status),
            _ => None,
        }
    }
}

/// How to reach the coordinator, and whom to expect there.
#[derive(Clone)]
pub struct Dialer {
    address: String,
    tls: Arc<ClientConfig>,
    /// Whether it comes without a certificate, to get its first one.
    enrols: bool,
}

impl Dialer {
    /// A dialer that speaks only with a coordinator in `places`.
    ///
    /// # Errors
    /// When the credentials cannot be used.
    pub fn new(
        address: &str,
        credentials: &Credentials,
        trust: &TrustStore,
        places: &[String],
    ) -> Result<Self, CredentialsError> {
        let expect = ServerExpectation::coordinator(places);
        let tls = Arc::new(tls::client_config(credentials, trust, &expect, &["h2"])?);
        Ok(Self { address: address.to_owned(), tls, enrols: false })
    }

    /// Connects; what is sent then is written down in `egress`.
    ///
    /// # Errors
    /// [`TransportError::Connect`] when nobody answers, [`TransportError::Unwanted`] when it is somebody
    /// whom our policy does not permit.
    pub async fn dial(&self, egress: &Egress) -> Result<Coordinator, TransportError> {
        let stream = self.handshake().await?;
        // The handshake has checked the certificate; it is read once more for who it names.
        let peer = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let identity = peer.map(Identity::parse).and_then(Result::ok).map(|i| i.spiffe);
        let identity = identity
            .ok_or_else(|| TransportError::Broken("no certificate that names it".into()))?;
        let channel = self.channel(stream).await?;
        let wire = Wire::new(channel, MESSAGE_BYTES_MAX);
        let link = Link { serial: 0, wire, declared: Arc::default() };
        Ok(Coordinator { link: Arc::new(RwLock::new(link)), egress: egress.clone(), identity })
    }

    async fn handshake(&self) -> Result<TlsStream<TcpStream>, TransportError> {
        // The handshake comes first, by hand, so that its errors reach the user as they are.
        let connect = async {
            let tcp = TcpStream::connect(&self.address).await?;
            tcp.set_nodelay(true)?;
            // The certificate's identity is what is checked; a name is only asked for by the interface.
            let name =
                rustls::pki_types::ServerName::try_from("coordinator").map_err(io::Error::other)?;
            TlsConnector::from(self.tls.clone()).connect(name, tcp).await
        };
        match tokio::time::timeout(CONNECT, connect).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(e)) => Err(self.explain(&e)),
            Err(_) => {
                let what = format!("{} does not answer", self.address);
                Err(TransportError::Connect(what))
            }
        }
    }

    async fn channel(&self, stream: TlsStream<TcpStream>) -> Result<Channel, TransportError> {
        let mut first = Some(stream);
        let endpoint = Endpoint::from_static("http://coordinator")
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        endpoint
            .connect_with_connector(tower::service_fn(move |_| {
                // One connection; when it breaks, the agent dials again and says so.
                let stream = first.take().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe));
                std::future::ready(stream.map(TokioIo::new))
            }))
            .await
            .map_err(|e| TransportError::Connect(format!("{}: {e}", self.address)))
    }

    fn explain(&self, error: &io::Error) -> TransportError {
        let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::Other(e)) = tls
            && let Some(e) = e.0.downcast_ref::<SignError>()
        {
            return TransportError::Key(e.clone());
        }
        match tls {
            Some(rustls::Error::General(why)) => TransportError::Unwanted(why.clone()),
            Some(rustls::Error::InvalidCertificate(e)) => TransportError::Unwanted(format!(
                "the coordinator's certificate cannot be trusted: {e}"
            )),
            Some(rustls::Error::AlertReceived(alert)) if self.enrols => {
                TransportError::Refused(format!(
                    "{} breaks off ({alert:?}) before anything is asked: ask the coordinator's operator whether sites enrol there",
                    self.address
                ))
            }
            Some(rustls::Error::AlertReceived(alert)) => TransportError::Refused(format!(
                "it rejects this site's certificate ({alert:?}); look at it with `falaj-certs show`"
            )),
            _ => TransportError::Connect(format!("{}: {error}", self.address)),
        }
    }
}

/// Asks for a site's first certificate, where and of whom its token says.
///
/// # Errors
/// [`TransportError`].
pub async fn enrol(token: &Token, asked: EnrolRequest) -> Result<EnrolReply, TransportError> {
    let tls = tls::enrolment_client_config(token, &["h2"])
        .map_err(|e| TransportError::Connect(e.to_string()))?;
    let dialer = Dialer { address: token.address.clone(), tls: Arc::new(tls), enrols: true };
    let channel = dialer.channel(dialer.handshake().await?).await?;
    Ok(wire::enrol(channel, asked, MESSAGE_BYTES_MAX).await?)
}

/// An open connection to the coordinator. Clones share it, and go over to another one together.
#[derive(Clone)]
pub struct Coordinator {
    link: Arc<RwLock<Link>>,
    egress: Egress,
    identity: SpiffeId,
}

/// One connection.
#[derive(Clone)]
struct Link {
    /// How many came before it.
    serial: u64,
    wire: Wire,
    /// Where whoever is there says that they store and compute.
    declared: Arc<Declared>,
}

/// What came of sending an update.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    /// The promise.
    pub receipt: Receipt,
    /// As signed.
    pub bytes: Vec<u8>,
    /// By the log key.
    pub signature: Vec<u8>,
    /// Whether it was counted before.
    pub already_counted: bool,
}

impl Coordinator {
    /// Who it is, by its certificate.
    #[must_use]
    pub const fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// How often the connection was replaced.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.link().serial
    }

    /// Goes over to another connection to the same coordinator: what is under way ends on this one, what follows begins on the
    /// other.
    pub fn go_over(&self, other: &Self) {
        let wire = other.wire();
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        *link = Link { serial: link.serial + 1, wire, declared: link.declared.clone() };
    }

    /// Keeps where it says that it stores and computes.
    pub fn declares(&self, declared: Declared) {
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        link.declared = Arc::new(declared);
    }

    /// Where it said last that it stores and computes.
    #[must_use]
    pub fn declared(&self) -> Arc<Declared> {
        self.link().declared
    }

    fn link(&self) -> Link {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wire(&self) -> Wire {
        self.link().wire
    }

    /// Asks for another certificate about the key of the one that this site comes with: certificates, and whom the
    /// coordinator trusts.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn renew(&mut self, request: Vec<u8>) -> Result<RenewReply, TransportError> {
        let asked = self.egress.note(RenewRequest { request: request.into() }).await?;
        Ok(self.wire().renew(asked).await?)
    }

    /// Opens the stream on which tasks are pushed.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn open(
        &mut self,
        datasets: Vec<String>,
        trainers: Vec<String>,
        declared: &DeclaredConfig,
        gives_quotes: bool,
    ) -> Result<Streaming<Push>, TransportError> {
        let place = |place: &Option<Place>| place.as_ref().map(ToString::to_string);
        let hello = ConnectRequest {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            datasets,
            trainers,
            storage: place(&declared.storage).unwrap_or_default(),
            compute: place(&declared.compute).unwrap_or_default(),
            answers_probes: true,
            gives_quotes,
        };
        Ok(self.wire().connect(self.egress.note(hello).await?).await?)
    }

    /// Answers a probe.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn answer_probe(&mut self, answer: ProbeAnswer) -> Result<(), TransportError> {
        Ok(self.wire().answer_probe(self.egress.note(answer).await?).await?)
    }

    /// Declines a round.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn decline(
        &mut self,
        study: &str,
        round: u32,
        code: &str,
        reason: String,
    ) -> Result<(), TransportError> {
        let decline = DeclineRequest { study: study.into(), round, code: code.into(), reason };
        Ok(self.wire().decline(self.egress.note(decline).await?).await?)
    }

    /// The newest checkpoint of a shard of the log, and the proof that it goes on from one of `seen` entries.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn checkpoint(
        &mut self,
        origin: &str,
        seen: u64,
    ) -> Result<(String, Vec<Digest>), TransportError> {
        let wanted = CheckpointRequest { seen_size: seen, origin: origin.into() };
        let reply = self.wire().checkpoint(self.egress.note(wanted).await?).await?;
        let CheckpointReply { checkpoint, proof } = reply;
        Ok((checkpoint, digests(proof)?))
    }

    /// Tells the coordinator that this site has seen a checkpoint.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn cosign(
        &mut self,
        origin: &str,
        tree_size: u64,
        line: String,
    ) -> Result<(), TransportError> {
        let origin = origin.into();
        let cosignature = CosignRequest { tree_size, cosignature: line, origin };
        Ok(self.wire().cosign(self.egress.note(cosignature).await?).await?)
    }

    /// The proof that entry `index` is among the first `tree_size` of a shard of the log.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn inclusion(
        &mut self,
        origin: &str,
        index: u64,
        tree_size: u64,
    ) -> Result<Vec<Digest>, TransportError> {
        let wanted = ProveInclusionRequest { index, tree_size, origin: origin.into() };
        digests(self.wire().prove_inclusion(self.egress.note(wanted).await?).await?.proof)
    }

    /// Downloads a model of `params` parameters and checks its digest.
    ///
    /// # Errors
    /// [`TransportError`]; [`TransportError::Broken`] when it is not the model that was asked for.
    pub async fn fetch(
        &mut self,
        study: &str,
        model: &Digest,
        params: usize,
    ) -> Result<Vec<f32>, TransportError> {
        let wanted = FetchModelRequest { study: study.into(), model_sha256: model.to_string() };
        let mut parts = self.wire().fetch_model(self.egress.note(wanted).await?).await?;
        let expected = params * 4;
        let mut bytes = Vec::new();
        while let Some(part) = parts.next().await {
            match part?.part {
                Some(model_part::Part::Open(open)) => {
                    if open.payload_bytes != expected as u64 {
                        let what = format!(
                            "a model of {} bytes instead of {expected}",
                            open.payload_bytes
                        );
                        return Err(TransportError::Broken(what));
                    }
                    bytes.reserve_exact(expected);
                }
                Some(model_part::Part::Chunk(chunk)) if bytes.len() + chunk.len() <= expected => {
                    bytes.extend_from_slice(&chunk);
                }
                _ => return Err(TransportError::Broken("more than the model".into())),
            }
        }
        if Digest::of(&bytes) != *model {
            return Err(TransportError::Broken(format!("something else than model {model}")));
        }
        params_from_bytes(&bytes).ok_or_else(|| TransportError::Broken("a broken model".into()))
    }

    /// Answers what a masked round asked for.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn answer(&mut self, answer: AnswerRequest) -> Result<(), TransportError> {
        Ok(self.wire().answer(self.egress.note(answer).await?).await?)
    }

    /// Sends a signed update in chunks, and checks the receipt that comes back.
    ///
    /// # Errors
    /// [`TransportError`]; [`TransportError::Broken`] when the receipt promises something else.
    pub async fn submit(
        &mut self,
        update: &SignedUpdate,
        log_key: &VerifierKey,
    ) -> Result<Acknowledged, TransportError> {
        let reply = self.wire().submit(self.egress.note(update).await?).await?;
        let broken = |what: &str| TransportError::Broken(what.to_owned());
        if !note::verify_context(log_key.key(), receipt::CONTEXT, &reply.receipt, &reply.signature)
        {
            return Err(broken("a receipt that the log's key did not sign"));
        }
        let receipt =
            Receipt::parse(&reply.receipt).map_err(|_| broken("a receipt that cannot be read"))?;
        if receipt.header != Digest::of(update.header())
            || receipt.payload != Digest::of(update.payload())
        {
            return Err(broken("a receipt for another update"));
        }
        Ok(Acknowledged {
            receipt,
            bytes: reply.receipt.to_vec(),
            signature: reply.signature.to_vec(),
            already_counted: reply.already_counted,
        })
    }
}

/// Hashes of a proof.
fn digests(proof: Vec<bytes::Bytes>) -> Result<Vec<Digest>, TransportError> {
    let digest = |hash: bytes::Bytes| <[u8; 32]>::try_from(&hash[..]).ok().map(Digest);
    let broken = || TransportError::Broken("a proof whose hashes are none".into());
    proof.into_iter().map(digest).collect::<Option<_>>().ok_or_else(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_enrols_is_not_told_that_a_certificate_is_rejected() {
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(tls::provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::HandshakeFailure);
        let alert = io::Error::other(alert);
        let mut dialer = Dialer { address: "c:1".into(), tls: Arc::new(tls), enrols: true };
        let said = dialer.explain(&alert).to_string();
        assert!(said.contains("c:1 breaks off") && !said.contains("rejects"), "{said}");
        dialer.enrols = false;
        assert!(dialer.explain(&alert).to_string().contains("rejects this site's certificate"));
    }

    #[test]
    fn too_early_is_told_from_other_refusals() {
        let refused =
            |what: &str| TransportError::from(Status::from(Code::EnrolmentRefused.because(what)));
        assert!(refused("too_early: 2592000 seconds of it are left").is_too_early());
        assert!(!refused("revoked: it was").is_too_early());
        let busy = Status::from(Code::Busy.because("too_early"));
        assert!(!TransportError::from(busy).is_too_early());
    }
}
