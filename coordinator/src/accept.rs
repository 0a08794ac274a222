//! The accept loop: TLS by hand, because a handshake that fails must be an entry in the log.
//!
//! Every connection ends in one of three ways: the handshake fails (an entry, and the socket closes); the
//! peer is known but may not be here (an entry, and every request is answered with the reason); or it is
//! admitted (an entry, before anything is served).

use crate::{
    config::RolesConfig,
    engine::{Engine, problem_of},
    evidence::Known,
    oidc::Oidc,
    persons::Persons,
    policy::{Action, Party},
    store::writer::{Change, Commit},
    trusted::{Door, Standing, Trusted, holder_of},
};
use falaj_certs::identity::{Identity, IdentityError};
use falaj_core::id::IdError;
use falaj_core::{
    audit::{
        Actor, Draft, Kind,
        person::{Person, is_person},
    },
    evidence::Evidence,
    id::{Digest, SiteId, SpiffeId},
};
use falaj_proto::problem::{Code, Problem};
use rustls::ServerConnection;
use rustls_pki_types::CertificateDer;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES: usize = 256;
/// Connections that wait to be served.
const ACCEPTED: usize = 64;
/// Whoever is cut off has this long to read why.
const LINGER: Duration = Duration::from_millis(500);

/// Who is at the other end, and whether it may be here.
pub struct Peer {
    /// For the log.
    pub actor: Actor,
    /// Its certificate, DER.
    pub certificate: Arc<[u8]>,
    /// Its certificate and those that it sent with it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether it still may be here.
    pub standing: Standing,
    /// Who knows that.
    pub trusted: Trusted,
    /// What is known of the connection.
    pub known: Known,
    /// Whose certificate it comes with: a trusted issuer vouches for it and nobody has revoked it, whether policy lets it be here or
    /// not. None of anybody else.
    pub holder: Option<Digest>,
    /// Who it is, or why every request is refused.
    pub admitted: Result<Identity, Problem>,
}

impl Peer {
    /// Who it is. Whether it still may be here is asked each time.
    ///
    /// # Errors
    /// Why every request of this connection is refused.
    pub fn identity(&self) -> Result<&Identity, Problem> {
        let identity = self.admitted.as_ref().map_err(Clone::clone)?;
        if let Some(problem) = self.standing.problem() {
            return Err(problem);
        }
        let checked = self.trusted.check(self, identity);
        checked.map_err(|why| why.problem())?;
        Ok(identity)
    }

    /// Who it is, as policies see it.
    ///
    /// # Errors
    /// As [`Self::identity`].
    pub fn party(&self) -> Result<Party<'_>, Problem> {
        Ok(Party { id: &self.identity()?.spiffe, roles: self.actor.roles })
    }

    /// Which site it is.
    ///
    /// # Errors
    /// As [`Self::identity`], and [`Code::Denied`] when it is no site.
    pub fn site(&self) -> Result<(SiteId, &Identity), Problem> {
        let identity = self.identity()?;
        let site = SiteId::try_from(identity.spiffe.clone())
            .map_err(|e| Code::Denied.because(format!("only sites may do this: {e}")))?;
        Ok((site, identity))
    }
}

/// An accepted connection: the bytes and who sends them.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    /// Who is at the other end.
    pub peer: Arc<Peer>,
    /// Done once the peer was cut off and has had the time to read why.
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    serial: u64,
    _room: tokio::sync::OwnedSemaphorePermit,
}

impl Connection {
    fn new(
        stream: TlsStream<TcpStream>,
        peer: Arc<Peer>,
        room: tokio::sync::OwnedSemaphorePermit,
    ) -> Self {
        let end = peer.standing.end().clone();
        let cut = async move {
            end.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        let serial = peer.trusted.join(&peer);
        Self { stream, peer, cut: Box::pin(cut), serial, _room: room }
    }

    /// Breaks the connection once its peer was cut off.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // A future that is done may not be asked again, and what is broken stays so.
        if self.peer.standing.is_over() || self.cut.as_mut().poll(cx).is_ready() {
            self.peer.standing.over();
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.peer.trusted.leave(self.serial, &self.peer);
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;
    fn connect_info(&self) -> Arc<Peer> {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How a connection is protected, for the log.
struct Transport {
    version: String,
    group: String,
}

impl Transport {
    fn of(tls: &ServerConnection) -> Self {
        let version = tls.protocol_version().map(|v| format!("{v:?}"));
        let group = tls.negotiated_key_exchange_group().map(|g| format!("{:?}", g.name()));
        Self { version: version.unwrap_or_default(), group: group.unwrap_or_default() }
    }
}

/// The pseudonym of a person, who is taken up when they come for the first time.
pub(crate) async fn meet(persons: &Persons, id: &SpiffeId) -> Result<Person, Problem> {
    if let Some(person) = persons.of(id) {
        return Ok(person);
    }
    let (persons, id) = (persons.clone(), id.clone());
    let met = tokio::task::spawn_blocking(move || persons.meet(&id)).await;
    let met = met.map_err(anyhow::Error::from).and_then(|met| Ok(met?));
    met.map_err(|e| {
        tracing::error!(error = %format!("{e:#}"), "a person cannot be taken up");
        Code::StorageFull.because("the coordinator cannot take up anybody for the moment")
    })
}

/// What an accept loop works with.
#[derive(Clone)]
pub struct Acceptor {
    /// Whom the coordinator lets in.
    pub trusted: Trusted,
    /// By which listener they come.
    pub door: Door,
    /// Where decisions and entries are made.
    pub engine: Engine,
    /// Which roles operators have.
    pub roles: Arc<RolesConfig>,
    /// Who signs operators in, if anybody does.
    pub oidc: Option<Oidc>,
}

impl Acceptor {
    /// Accepts until shutdown. Gives connections that are ready to be served.
    #[must_use]
    pub fn run(
        self,
        listener: TcpListener,
        connections_max: usize,
        shutdown: CancellationToken,
    ) -> mpsc::Receiver<io::Result<Connection>> {
        let (ready, accepted) = mpsc::channel(ACCEPTED);
        let room = Arc::new(Semaphore::new(connections_max));
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        tokio::spawn(async move {
            loop {
                let next = async {
                    // Both are never closed, so waiting for them only ends with a permit.
                    let room = room.clone().acquire_owned().await.ok()?;
                    let handshake = handshakes.clone().acquire_owned().await.ok()?;
                    Some((listener.accept().await, room, handshake))
                };
                let (tcp, room, handshake) = tokio::select! {
                    () = shutdown.cancelled() => return,
                    next = next => match next {
                        Some((Ok(tcp), room, handshake)) => (tcp, room, handshake),
                        Some((Err(e), ..)) => {
                            // Out of file descriptors, most likely: others must close first.
                            tracing::error!(error = %e, "a connection cannot be accepted");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            continue;
                        }
                        None => return,
                    },
                };
                let (this, ready) = (self.clone(), ready.clone());
                tokio::spawn(async move {
                    let (stream, address) = tcp;
                    let connection = this.handshake(stream, address, room).await;
                    drop(handshake);
                    if let Some(connection) = connection {
                        // The server has gone: so does the connection.
                        let _ = ready.send(Ok(connection)).await;
                    }
                });
            }
        });
        accepted
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        room: tokio::sync::OwnedSemaphorePermit,
    ) -> Option<Connection> {
        let _ = stream.set_nodelay(true);
        // What comes into force from here on is held against the peer with its first request.
        let generation = self.trusted.generation();
        let acceptor = TlsAcceptor::from(self.trusted.now().tls(self.door));
        let done = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
        let stream = match done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => stream,
            Err(e) => {
                self.engine.parts().refusals.failed(address, &e).await;
                return None;
            }
        };
        let chain: Vec<CertificateDer<'static>> = stream
            .get_ref()
            .1
            .peer_certificates()
            .map(|c| c.iter().map(|c| c.clone().into_owned()).collect())
            .unwrap_or_default();
        let transport = Transport::of(stream.get_ref().1);
        let peer = Arc::new(self.admit((chain, generation), address, &transport).await);
        Some(Connection::new(stream, peer, room))
    }

    /// Who the peer is and whether it may be here; an entry says so before anything is served.
    async fn admit(
        &self,
        (chain, generation): (Vec<CertificateDer<'static>>, u64),
        address: SocketAddr,
        transport: &Transport,
    ) -> Peer {
        let cert = chain.first().map(|c| Digest::of(c));
        let certificate: Arc<[u8]> = chain.first().map(AsRef::as_ref).unwrap_or_default().into();
        let address_text = Some(address.to_string());
        let mut actor = Actor { cert, address: address_text, ..Actor::default() };
        let peer = |actor: Actor, standing: Standing, admitted: Result<Identity, Problem>| Peer {
            actor,
            certificate: certificate.clone(),
            chain: chain.clone(),
            standing,
            trusted: self.trusted.clone(),
            known: Known::default(),
            holder: None,
            admitted,
        };
        let in_force = self.trusted.now();
        let (identity, issuer) = match self.vouched(&chain).await {
            Ok(vouched) => vouched,
            Err((reason, detail, problem)) => {
                // Nobody vouches for what such a certificate says: it may name anybody, and is not kept.
                self.refuse(&actor, reason, &detail).await;
                return peer(actor, Standing::default(), Err(problem));
            }
        };
        let parts = self.engine.parts();
        actor.id = Some(identity.spiffe.clone());
        let rows: Vec<Change> = if is_person(&identity.spiffe) {
            match meet(&parts.persons, &identity.spiffe).await {
                Ok(person) => {
                    actor.person = Some(person);
                    actor.roles = self.roles.of(&identity.groups);
                }
                Err(problem) => return peer(actor, Standing::default(), Err(problem)),
            }
            let sealed = actor.person.and_then(|p| parts.persons.seal_certificate(p, &certificate));
            sealed.into_iter().collect()
        } else {
            cert.map(|cert| Change::Certificate(cert, certificate.to_vec())).into_iter().collect()
        };
        let standing = match self.trusted.standing(&identity, generation) {
            Ok(standing) => standing,
            Err(why) => {
                self.refuse(&actor, why.reason, &why.detail).await;
                let problem = why.problem();
                return peer(actor, Standing::default(), Err(problem));
            }
        };
        // Whoever has stolen it is most likely refused by policy, and is noticed all the same.
        let holder = Some(holder_of(&identity));
        let found = Evidence { issuer: Some(issuer), ..Evidence::default() };
        let found = in_force.located(found, identity.spiffe.place(), Some(address));
        let found = in_force.attested(found, &identity, None);
        let who = Party { id: &identity.spiffe, roles: actor.roles };
        let decision = parts.policy.decide_connect(who, &found);
        let draft = |kind: Kind| {
            Draft::new(kind)
                .actor(&actor)
                .text("action", Action::Connect.as_str())
                .decided(decision.allow, &decision.policies, &decision.policy_set)
                .evidence(&found)
        };
        let entry = if decision.allow {
            draft(Kind::ConnectionAdmitted)
                .text("tls_version", &transport.version)
                .text("tls_group", &transport.group)
        } else {
            draft(Kind::ConnectionRefused).text("reason", &decision.reason)
        };
        parts.metrics.connection(if decision.allow { "admitted" } else { "denied" });
        let commit = Commit { round: None, rows, entries: vec![entry] };
        let committed = parts.writer.commit(commit).await;
        let admitted = match committed {
            _ if !decision.allow => {
                tracing::warn!(%address, reason = decision.reason, "connection refused");
                Err(Code::Denied.because(&decision.reason))
            }
            Ok(_) => Ok(identity),
            Err(e) => Err(problem_of(&e)),
        };
        let peer = Peer { holder, ..peer(actor, standing, admitted) };
        peer.known.take(found);
        peer
    }

    /// Who a certificate names, and which issuer vouches for it; or the word, the detail and the problem of why nobody does.
    async fn vouched(
        &self,
        chain: &[CertificateDer<'_>],
    ) -> Result<(Identity, Digest), (&'static str, String, Problem)> {
        let vouched = self.trusted.now().trust().vouched(chain).map_err(|e| {
            let detail = match &e {
                IdentityError::Malformed(IdError::Spiffe { why, .. }) => {
                    format!("the certificate names no Falaj identity: {why}")
                }
                IdentityError::Malformed(_) => "the certificate names no Falaj identity".into(),
                e => e.to_string(),
            };
            (e.reason(), detail, Code::Unidentified.because(e))
        })?;
        if let Some(oidc) = &self.oidc
            && !oidc.may_name(&vouched.0.spiffe, &vouched.1).await
        {
            let detail = "names that begin so are of those who sign in at an identity provider, and another issuer vouches for this one";
            return Err(("reserved_name", detail.into(), Code::Unidentified.because(detail)));
        }
        Ok(vouched)
    }

    async fn refuse(&self, actor: &Actor, reason: &str, detail: &str) {
        let parts = self.engine.parts();
        parts.metrics.connection(reason);
        tracing::warn!(address = actor.address, reason, detail, "connection refused");
        let entry = Draft::new(Kind::ConnectionRefused)
            .actor(actor)
            .text("decision", "deny")
            .text("reason", reason)
            .text("detail", detail);
        if let Err(e) = parts.writer.record(vec![entry]).await {
            // Nothing was served, so nothing unlogged happened but the refusal itself.
            tracing::error!(error = %e, "a refusal could not be logged");
        }
    }
}
