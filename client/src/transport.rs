//! Speaking with the coordinator: outbound only, over mutual TLS, models and updates in chunks.

use falaj_certs::identity::Identity;
use falaj_certs::tls::{self, Credentials, CredentialsError, ServerExpectation};
use falaj_certs::trust::TrustStore;
use falaj_core::{
    aggregate::params_from_bytes,
    id::{Digest, SpiffeId},
    note,
    note::VerifierKey,
    receipt::{self, Receipt},
    update::SignedUpdate,
};
use falaj_proto::{
    CHUNK_BYTES_MAX,
    problem::{Code, code_of},
    v1::{
        AnswerRequest, CheckpointReply, CheckpointRequest, ConnectRequest, CosignRequest,
        DeclineRequest, FetchModelRequest, ProveInclusionRequest, Push, UpdateOpen, UpdatePart,
        federation_client::FederationClient, model_part, update_part,
    },
};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use std::{io, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
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
        Ok(Self { address: address.to_owned(), tls })
    }

    /// Connects.
    ///
    /// # Errors
    /// [`TransportError::Connect`] when nobody answers, [`TransportError::Unwanted`] when it is somebody
    /// whom our policy does not permit.
    pub async fn dial(&self) -> Result<Coordinator, TransportError> {
        // The handshake comes first, by hand, so that its errors reach the user as they are.
        let connect = async {
            let tcp = TcpStream::connect(&self.address).await?;
            tcp.set_nodelay(true)?;
            // The certificate's identity is what is checked; a name is only asked for by the interface.
            let name =
                rustls::pki_types::ServerName::try_from("coordinator").map_err(io::Error::other)?;
            TlsConnector::from(self.tls.clone()).connect(name, tcp).await
        };
        let stream = match tokio::time::timeout(CONNECT, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return Err(self.explain(&e)),
            Err(_) => {
                let what = format!("{} does not answer", self.address);
                return Err(TransportError::Connect(what));
            }
        };
        // The handshake has checked the certificate; it is read once more for who it names.
        let peer = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let identity = peer.map(Identity::parse).and_then(Result::ok).map(|i| i.spiffe);
        let identity = identity
            .ok_or_else(|| TransportError::Broken("no certificate that names it".into()))?;
        let mut first = Some(stream);
        let endpoint = Endpoint::from_static("http://coordinator")
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let channel = endpoint
            .connect_with_connector(tower::service_fn(move |_| {
                // One connection; when it breaks, the agent dials again and says so.
                let stream = first.take().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe));
                std::future::ready(stream.map(TokioIo::new))
            }))
            .await
            .map_err(|e| TransportError::Connect(format!("{}: {e}", self.address)))?;
        let client = FederationClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Coordinator { client, identity })
    }

    fn explain(&self, error: &io::Error) -> TransportError {
        let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::General(why)) => TransportError::Unwanted(why.clone()),
            Some(rustls::Error::InvalidCertificate(e)) => TransportError::Unwanted(format!(
                "the coordinator's certificate cannot be trusted: {e}"
            )),
            Some(rustls::Error::AlertReceived(alert)) => TransportError::Refused(format!(
                "it rejects this site's certificate ({alert:?}); look at it with `falaj-certs show`"
            )),
            _ => TransportError::Connect(format!("{}: {error}", self.address)),
        }
    }
}

/// An open connection to the coordinator.
#[derive(Clone)]
pub struct Coordinator {
    client: FederationClient<Channel>,
    identity: SpiffeId,
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

    /// Opens the stream on which tasks are pushed.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn open(
        &mut self,
        datasets: Vec<String>,
        trainers: Vec<String>,
    ) -> Result<Streaming<Push>, TransportError> {
        let agent_version = env!("CARGO_PKG_VERSION").into();
        let hello = ConnectRequest { agent_version, datasets, trainers };
        Ok(self.client.connect(hello).await?.into_inner())
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
        self.client.decline(decline).await?;
        Ok(())
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
        let reply = self.client.checkpoint(wanted).await?;
        let CheckpointReply { checkpoint, proof } = reply.into_inner();
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
        self.client.cosign(CosignRequest { tree_size, cosignature: line, origin }).await?;
        Ok(())
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
        digests(self.client.prove_inclusion(wanted).await?.into_inner().proof)
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
        let mut parts = self.client.fetch_model(wanted).await?.into_inner();
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
        self.client.answer(answer).await?;
        Ok(())
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
        let open = UpdateOpen {
            header: update.header().to_vec().into(),
            signature: update.signature().to_vec().into(),
        };
        let payload = bytes::Bytes::copy_from_slice(update.payload());
        let chunks = (0..payload.len()).step_by(CHUNK_BYTES_MAX).map(move |at| {
            let end = (at + CHUNK_BYTES_MAX).min(payload.len());
            update_part::Part::Chunk(payload.slice(at..end))
        });
        let parts = std::iter::once(update_part::Part::Open(open))
            .chain(chunks)
            .map(|part| UpdatePart { part: Some(part) })
            .collect::<Vec<_>>();
        let reply = self.client.submit_update(tokio_stream::iter(parts)).await?.into_inner();
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
