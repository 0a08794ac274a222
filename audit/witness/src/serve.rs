//! The witness over HTTP: `POST /add-checkpoint`, with the status codes of C2SP tlog-witness v1.0.0.

use crate::{
    clock,
    config::Config,
    keep::{Refusal, Witness},
};
use anyhow::{Context as _, Result, ensure};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::post,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{net::SocketAddr, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// The largest request: 63 hashes, and a checkpoint with all its signatures.
const BODY_BYTES_MAX: usize = 64 << 10;
/// A connection is ended after this long, whatever it does.
const CONNECTION: Duration = Duration::from_mins(5);
/// Requests under way when the witness is asked to end get this long.
const GRACE: Duration = Duration::from_secs(5);
/// Requests that are checked and kept at once; others wait for their turn.
const CHECKS: usize = 16;
/// What the body of a conflict is (tlog-witness, "409 Conflict").
const SIZE: &str = "text/x.tlog.size";

/// What requests are answered from.
#[derive(Clone)]
struct App {
    witness: Arc<Witness>,
    checks: Arc<Semaphore>,
    /// The time that a client has for a body.
    timeout: Duration,
}

/// The routes of a witness, which gives a client so long for the body of a request.
pub fn router(witness: Arc<Witness>, timeout: Duration) -> Router {
    let app = App { witness, checks: Arc::new(Semaphore::new(CHECKS)), timeout };
    Router::new().route("/add-checkpoint", post(add_checkpoint)).with_state(app)
}

async fn add_checkpoint(State(app): State<App>, body: Body) -> Response {
    let body = match tokio::time::timeout(app.timeout, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) => body,
        Ok(Err(e)) => {
            let what = format!("the request cannot be read, or has more than 64 KiB: {e}\n");
            return (StatusCode::BAD_REQUEST, what).into_response();
        }
        Err(_) => {
            return (StatusCode::REQUEST_TIMEOUT, "the request came too slowly\n").into_response();
        }
    };
    let Ok(turn) = app.checks.clone().acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    // On a thread of its own, to its end: a client that goes away must not leave it half done.
    let added = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        app.witness.add(&body, clock::now())
    });
    match added.await {
        Ok(Ok(line)) => line.into_response(),
        Ok(Err(refusal)) => refused(&refusal),
        Err(e) => {
            tracing::error!(error = %e, "a request broke off");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal {
        Refusal::Conflict { kept } => {
            return (StatusCode::CONFLICT, [(CONTENT_TYPE, SIZE)], format!("{kept}\n"))
                .into_response();
        }
        Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
        Refusal::UnknownOrigin(_) => StatusCode::NOT_FOUND,
        Refusal::Unsigned(_) => StatusCode::FORBIDDEN,
        Refusal::Proof { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Refusal::Storage(e) => {
            tracing::error!(error = %e, "what was seen cannot be kept, and is not cosigned");
            let what = "the witness cannot keep what it saw; try again later\n";
            return (StatusCode::SERVICE_UNAVAILABLE, what).into_response();
        }
    };
    (status, format!("{refusal}\n")).into_response()
}

/// Serves a configuration until shutdown. `ready` hears of the address once it listens.
///
/// # Errors
/// What is missing or wrong, where, and what to do.
pub async fn run(
    config: &Config,
    shutdown: CancellationToken,
    ready: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    config.verifier()?;
    let witness = Witness::open(&config.name, config.signer()?, config.keys()?, &config.state)?;
    let tls = config.tls.as_ref().map(acceptor).transpose()?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listening on {}", config.listen))?;
    let bound = listener.local_addr()?;
    if tls.is_none() && !bound.ip().is_loopback() {
        tracing::warn!(%bound, "plain HTTP beyond loopback: who listens sees sizes and when the log grows; nobody can forge a cosignature");
    }
    ready(bound)?;
    let rooms = Arc::new(Semaphore::new(config.connections_max));
    let timeout = Duration::from_secs(config.timeout_s);
    let router = router(Arc::new(witness), timeout);
    let graceful = GracefulShutdown::new();
    loop {
        let Ok(room) = rooms.clone().acquire_owned().await else { break };
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!(error = %e, "a connection was not taken");
                    // What is short, file descriptors mostly, is not there again at once.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (router, tls, watcher) = (router.clone(), tls.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _room = room;
            match tls {
                None => one(stream, router, watcher, timeout).await,
                Some(tls) => match tokio::time::timeout(timeout, tls.accept(stream)).await {
                    Ok(Ok(stream)) => one(stream, router, watcher, timeout).await,
                    Ok(Err(e)) => tracing::debug!(error = %e, "a handshake failed"),
                    Err(_) => tracing::debug!("a handshake was too slow"),
                },
            }
        });
    }
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(GRACE) => tracing::warn!("some requests were cut off"),
    }
    Ok(())
}

/// Serves one connection. A head that does not come in time ends it without an answer: there is no request yet.
async fn one(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    watcher: hyper_util::server::graceful::Watcher,
    timeout: Duration,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(timeout);
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let serving = watcher.watch(serving.into_owned());
    match tokio::time::timeout(CONNECTION, serving).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(e)) => tracing::debug!(error = %e, "a connection broke"),
    }
}

fn acceptor(tls: &crate::config::Tls) -> Result<TlsAcceptor> {
    let mode = std::fs::metadata(&tls.key)
        .with_context(|| format!("reading {}", tls.key.display()))?
        .permissions()
        .mode()
        & 0o777;
    ensure!(
        mode & 0o077 == 0,
        "{0} can be read by others (mode {mode:o}): run `chmod 600 {0}`",
        tls.key.display()
    );
    let chain = CertificateDer::pem_file_iter(&tls.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| anyhow::anyhow!("{}: no certificate in PEM form ({e})", tls.cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|e| anyhow::anyhow!("{}: no key in PEM form ({e})", tls.key.display()))?;
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(falaj_certs::tls::provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .with_context(|| format!("{} and its key", tls.cert.display()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
