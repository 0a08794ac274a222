//! Where those come in who have no certificate: TLS 1.3 on addresses of their own, for one call each.
//!
//! Nobody here is known, so everything has a bound.

use crate::{engine::Engine, trusted::Trusted};
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
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// Connections at once, by each address.
const CONNECTIONS_MAX: usize = 64;
/// A handshake that takes longer is given up.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Whoever asks faster than this for long is told to wait: so many at once,
const AT_ONCE: u32 = 30;
/// and one more after so long.
pub(crate) const EVERY: Duration = Duration::from_millis(200);

/// Room for those who come one after the other: it fills with time.
#[derive(Clone)]
pub(crate) struct Pace {
    every: Duration,
    /// What is left, and since when the next one has been filling.
    room: Arc<Mutex<(u32, Instant)>>,
}

impl Pace {
    pub(crate) fn new(every: Duration, now: Instant) -> Self {
        Self { every, room: Arc::new(Mutex::new((AT_ONCE, now))) }
    }

    /// Whether there is room for one more.
    pub(crate) fn take(&self, now: Instant) -> bool {
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

/// Somebody without a certificate, over TLS.
pub(crate) struct Knock {
    stream: TlsStream<TcpStream>,
    /// From where they come.
    pub(crate) address: SocketAddr,
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

/// Accepts until shutdown. Gives connections that are ready to be served.
pub(crate) fn accept(
    listener: TcpListener,
    by: (Engine, Trusted),
    shutdown: CancellationToken,
) -> mpsc::Receiver<io::Result<Knock>> {
    let (ready, accepted) = mpsc::channel(1);
    tokio::spawn(knocking(listener, by, ready, shutdown));
    accepted
}

async fn knocking(
    listener: TcpListener,
    (engine, trusted): (Engine, Trusted),
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
        let Some(tls) = trusted.now().anonymous_tls() else {
            tracing::error!(
                "no trusted issuer vouches for the coordinator: nobody can come in without a certificate"
            );
            continue;
        };
        let (engine, ready) = (engine.clone(), ready.clone());
        tokio::spawn(async move {
            let done = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await;
            match done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                // The server has gone: so does the connection.
                Ok(stream) => drop(ready.send(Ok(Knock { stream, address, _room: room })).await),
                Err(e) => engine.parts().refusals.failed(address, &e).await,
            }
        });
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
