//! Where sites come in that have no certificate yet: one call, small and slow, on an address of its own (`knock`).

use super::Enrolments;
use crate::{
    engine::Engine,
    knock::{EVERY, HANDSHAKE, Pace, accept},
    trusted::Trusted,
};
use falaj_certs::request::REQUEST_BYTES_MAX;
use falaj_proto::{
    problem::Code,
    v1::{
        EnrolReply, EnrolRequest,
        enrolment_server::{Enrolment, EnrolmentServer},
    },
};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

/// A connection that lives longer is closed: one call needs a moment, and an outside authority half a minute.
const CONNECTION: Duration = Duration::from_mins(1);
/// A call takes at most this long.
const CALL: Duration = Duration::from_secs(45);
/// A request and its frame.
const MESSAGE_BYTES_MAX: usize = REQUEST_BYTES_MAX + (4 << 10);
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
    by: (Engine, Trusted),
    shutdown: CancellationToken,
) {
    let pace = Pace::new(EVERY, Instant::now());
    let accepted = accept(listener, by, shutdown.clone());
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
