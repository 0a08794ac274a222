//! Where those come in who have no certificate yet: TLS 1.3 on an address of its own, one call, small and slow.
//!
//! Nobody here is known, so everything has a bound, and what is refused too often at once is not logged one by one.

use super::Enrolments;
use crate::{clock, engine::Engine, trusted::Trusted};
use falaj_certs::{request::REQUEST_BYTES_MAX, tls::handshake_reason};
use falaj_core::{
    audit::{Actor, Draft, Kind},
    time::Timestamp,
};
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
    time::Duration,
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
/// Whoever comes faster than this for long is told to wait: so many at once,
const AT_ONCE: u64 = 30;
/// and one more in so many milliseconds.
const EVERY_MS: u64 = 200;

/// Room for those who come one after the other: it fills with time.
#[derive(Clone)]
struct Pace(Arc<Mutex<(u64, Timestamp)>>);

impl Pace {
    fn new() -> Self {
        Self(Arc::new(Mutex::new((AT_ONCE, clock::now()))))
    }

    /// Whether there is room for one more.
    fn take(&self, now: Timestamp) -> bool {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (room, since) = *inner;
        let more = now.since_ms(since) / EVERY_MS;
        let room = (room + more).min(AT_ONCE);
        let since = since.plus_ms(more * EVERY_MS);
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
        if !self.pace.take(clock::now()) {
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
    let pace = Pace::new();
    let (ready, accepted) = mpsc::channel(1);
    let knocking = accept(listener, (engine, trusted), pace.clone(), ready, shutdown.clone());
    tokio::spawn(knocking);
    let service = EnrolmentServer::new(Service { enrolments, pace })
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
    let served = Server::builder()
        .timeout(CALL)
        .concurrency_limit_per_connection(1)
        .max_connection_age(CONNECTION)
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
    pace: Pace,
    ready: mpsc::Sender<io::Result<Knock>>,
    shutdown: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
        let (engine, pace, ready) = (engine.clone(), pace.clone(), ready.clone());
        tokio::spawn(async move {
            let done = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await;
            match done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                // The server has gone: so does the connection.
                Ok(stream) => drop(ready.send(Ok(Knock { stream, address, _room: room })).await),
                Err(e) if pace.take(clock::now()) => refuse(&engine, address, &e).await,
                Err(e) => tracing::debug!(%address, error = %e, "a handshake failed"),
            }
        });
    }
}

/// Logs a handshake that failed.
async fn refuse(engine: &Engine, address: SocketAddr, error: &io::Error) {
    let (parts, reason) = (engine.parts(), handshake_reason(error));
    parts.metrics.connection(reason);
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
        let pace = Pace::new();
        let now = clock::now();
        let taken = (0..1_000).filter(|_| pace.take(now)).count();
        assert_eq!(taken as u64, AT_ONCE);
        let later = now.plus_ms(10 * EVERY_MS);
        let taken = (0..1_000).filter(|_| pace.take(later)).count();
        assert!((9..=11).contains(&taken), "{taken}");
    }
}
