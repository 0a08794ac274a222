//! Where those come in who have no certificate yet: TLS 1.3 on an address of its own, one call, small and slow.
//!
//! Nobody here is known, so everything has a bound, and what is refused too often at once is not logged one by one.

use super::Enrolments;
use crate::{engine::Engine, trusted::Trusted};
use falaj_certs::{request::REQUEST_BYTES_MAX, tls::handshake_reason};
use falaj_core::audit::{Actor, Draft, Kind};
use falaj_proto::{
    problem::Code,
    v1::{
        EnrolReply, EnrolRequest,
        enrolment_server::{Enrolment, EnrolmentServer},
    },
};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::Connected},
};

/// Connections at once.
const CONNECTIONS_MAX: usize = 64;
/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection that lives longer is closed: one call needs a moment, and an outside authority half a minute.
const CONNECTION: Duration = Duration::from_mins(1);
/// A call takes at most this long.
const CALL: Duration = Duration::from_secs(45);
/// A request and its frame.
const MESSAGE_BYTES_MAX: usize = REQUEST_BYTES_MAX + (4 << 10);
/// Whoever asks faster than this for long is told to wait: so many at once,
const AT_ONCE: u32 = 30;
/// and one more after so long.
const EVERY: Duration = Duration::from_millis(200);
/// Handshakes that failed are entries no faster than one after so long: anybody can have them fail.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// Room for those who come one after the other: it fills with time.
#[derive(Clone)]
struct Pace {
    every: Duration,
    /// What is left, and since when the next one has been filling.
    room: Arc<Mutex<(u32, Instant)>>,
}

impl Pace {
    fn new(every: Duration, now: Instant) -> Self {
        Self { every, room: Arc::new(Mutex::new((AT_ONCE, now))) }
    }

    /// Whether there is room for one more.
    fn take(&self, now: Instant) -> bool {
        let mut inner = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let (room, since) = *inner;
        let past = now.saturating_duration_since(since);
        let more = u32::try_from(past.as_millis() / self.every.as_millis()).unwrap_or(u32::MAX);
        let room = room.saturating_add(more).min(AT_ONCE);
        // When it is full, nothing has been filling.
        let since = if room == AT_ONCE { now } else { since + self.every * more };
        *inner = (room.saturating_sub(1), since);
        room > 0
    }
}

struct Knock {
    stream: TlsStream<TcpStream>,
    address: SocketAddr,
    _room: OwnedSemaphorePermit,
}

impl Connected for Knock {
    type ConnectInfo = SocketAddr;
    fn connect_info(&self) -> SocketAddr {
        self.address
    }
}

impl AsyncRead for Knock {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Knock {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The service.
struct Service {
    enrolments: Enrolments,
    pace: Pace,
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolReply>, Status> {
        let from = request.extensions().get::<SocketAddr>().copied();
        let from = from.ok_or_else(|| Code::Internal.because("the connection has no address"))?;
        if !self.pace.take(Instant::now()) {
            return Err(Code::Busy.because("too many come here at once: try again").into());
        }
        let (enrolments, asked) = (self.enrolments.clone(), request.into_inner());
        // To its end, even if whoever asked hangs up meanwhile.
        let done = tokio::spawn(async move { enrolments.enrol(asked, from).await }).await;
        let done = done.unwrap_or_else(|e| {
            tracing::error!(error = %e, "an enrolment broke off");
            Err(Code::Internal.because("the enrolment broke off"))
        });
        Ok(Response::new(done?))
    }
}

/// Serves until shutdown.
pub async fn serve(
    listener: TcpListener,
    enrolments: Enrolments,
    (engine, trusted): (Engine, Trusted),
    shutdown: CancellationToken,
) {
    let pace = Pace::new(EVERY, Instant::now());
    let (ready, accepted) = mpsc::channel(1);
    let knocking = accept(listener, (engine, trusted), ready, shutdown.clone());
    tokio::spawn(knocking);
    let service = EnrolmentServer::new(Service { enrolments, pace })
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
    let served = Server::builder()
        .timeout(CALL)
        .concurrency_limit_per_connection(1)
        .max_connection_age(CONNECTION)
        // Also of those who say nothing at all.
        .max_connection_age_grace(CALL)
        .http2_keepalive_interval(Some(HANDSHAKE))
        .http2_keepalive_timeout(Some(HANDSHAKE))
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), shutdown.cancelled_owned())
        .await;
    if let Err(e) = served {
        tracing::error!(error = %e, "nobody can enrol any more");
    }
}

async fn accept(
    listener: TcpListener,
    (engine, trusted): (Engine, Trusted),
    ready: mpsc::Sender<io::Result<Knock>>,
    shutdown: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let logged = Pace::new(LOGGED_EVERY, Instant::now());
    loop {
        let next = async {
            // It is never closed, so waiting for it only ends with a permit.
            let room = room.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, room))
        };
        let (stream, address, room) = tokio::select! {
            () = shutdown.cancelled() => return,
            next = next => match next {
                Some((Ok((stream, address)), room)) => (stream, address, room),
                Some((Err(e), _)) => {
                    tracing::error!(error = %e, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                None => return,
            },
        };
        let Some(tls) = trusted.now().enrolment_tls() else {
            tracing::error!("no trusted issuer vouches for the coordinator: nobody can enrol");
            continue;
        };
        let (engine, logged, ready) = (engine.clone(), logged.clone(), ready.clone());
        tokio::spawn(async move {
            let done = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await;
            match done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                // The server has gone: so does the connection.
                Ok(stream) => drop(ready.send(Ok(Knock { stream, address, _room: room })).await),
                Err(e) => refuse(&engine, address, &e, logged.take(Instant::now())).await,
            }
        });
    }
}

/// Counts a handshake that failed, and logs it if it is `logged`.
async fn refuse(engine: &Engine, address: SocketAddr, error: &io::Error, logged: bool) {
    let (parts, reason) = (engine.parts(), handshake_reason(error));
    parts.metrics.connection(reason);
    if !logged {
        tracing::debug!(%address, %error, "a handshake failed");
        return;
    }
    let actor = Actor { address: Some(address.to_string()), ..Actor::default() };
    let entry = Draft::new(Kind::ConnectionRefused)
        .actor(&actor)
        .text("decision", "deny")
        .text("reason", reason)
        .text("detail", &error.to_string());
    if let Err(e) = parts.writer.record(vec![entry]).await {
        tracing::error!(error = %e, "a refusal could not be logged");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_too_fast_waits_and_has_room_again_later() {
        let now = Instant::now();
        let pace = Pace::new(EVERY, now);
        let taken = |now| (0..1_000).filter(|_| pace.take(now)).count();
        assert_eq!(taken(now), AT_ONCE as usize);
        assert_eq!(taken(now + EVERY * 10), 10);
        assert_eq!(taken(now + EVERY * 10), 0);
        assert_eq!(taken(now + EVERY * 1_000), AT_ONCE as usize);
    }
}
