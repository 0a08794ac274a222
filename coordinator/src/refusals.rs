//! Handshakes that fail, at every door. Anybody can have them fail, as often as they like, so only so many in a minute are entries
//! of their own; the others are told at its end, by how many they were.

use crate::{metrics::Metrics, store::writer::Writer};
use falaj_certs::tls::handshake_reason;
use falaj_core::audit::{Actor, Draft, Kind};
use std::{
    collections::BTreeMap,
    io, mem,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How long they are counted together.
const TOGETHER: Duration = Duration::from_mins(1);
/// Entries of one reason in that time, unless the configuration says otherwise.
pub const LOGGED_MAX: u32 = 30;

/// What failed.
struct Failed {
    address: SocketAddr,
    reason: &'static str,
    detail: String,
}

/// What failed by one reason since the last turn.
#[derive(Default)]
struct Since {
    logged: u32,
    /// The last one that is no entry yet, and how many came before it that are none either.
    left_out: Option<(Failed, u64)>,
}

/// Counts handshakes that fail, and tells the log of them.
pub struct Refusals {
    writer: Writer,
    metrics: Arc<Metrics>,
    logged_max: u32,
    /// By reason, of which there are few.
    since: Mutex<BTreeMap<&'static str, Since>>,
}

impl Refusals {
    /// None yet; of one reason so many in a minute are entries of their own.
    #[must_use]
    pub fn new(writer: Writer, metrics: Arc<Metrics>, logged_max: u32) -> Self {
        Self { writer, metrics, logged_max, since: Mutex::default() }
    }

    /// A handshake failed.
    pub(crate) async fn failed(&self, address: SocketAddr, error: &io::Error) {
        let (reason, detail) = (handshake_reason(error), error.to_string());
        self.metrics.connection(reason);
        let failed = Failed { address, reason, detail };
        if let Some(failed) = self.to_be_told(failed) {
            self.tell(vec![(failed, 0)]).await;
        }
    }

    /// It, if it is to be an entry now.
    fn to_be_told(&self, failed: Failed) -> Option<Failed> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let since = since.entry(failed.reason).or_default();
        if since.logged < self.logged_max {
            since.logged += 1;
            return Some(failed);
        }
        let before = since.left_out.take().map_or(0, |(_, before)| before + 1);
        since.left_out = Some((failed, before));
        None
    }

    /// What was left out since the last turn, with how many came before it.
    fn turn(&self) -> Vec<(Failed, u64)> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut *since).into_values().filter_map(|since| since.left_out).collect()
    }

    async fn tell(&self, all: Vec<(Failed, u64)>) {
        let entry = |(Failed { address, reason, detail }, left_out): (Failed, u64)| {
            tracing::warn!(%address, reason, detail, left_out, "connection refused");
            let actor = Actor { address: Some(address.to_string()), ..Actor::default() };
            let entry = Draft::new(Kind::ConnectionRefused)
                .actor(&actor)
                .text("decision", "deny")
                .text("reason", reason)
                .text("detail", &detail);
            if left_out > 0 { entry.count("left_out", left_out) } else { entry }
        };
        let entries: Vec<Draft> = all.into_iter().map(entry).collect();
        if entries.is_empty() {
            return;
        }
        if let Err(e) = self.writer.record(entries).await {
            // Nothing was served, so nothing unlogged happened but the refusals themselves.
            tracing::error!(error = %e, "refusals could not be logged");
        }
    }

    /// Tells each minute what was left out in it, until shutdown, and then once more.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut minutes = interval(TOGETHER);
        minutes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let over = tokio::select! {
                () = shutdown.cancelled() => true,
                _ = minutes.tick() => false,
            };
            let left_out = self.turn();
            self.tell(left_out).await;
            if over {
                return;
            }
        }
    }
}
