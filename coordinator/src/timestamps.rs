//! Has an authority stamp the log with the time (RFC 3161): once a day a checkpoint, and reports for whom it is asked.
//!
//! The authority sees a digest. What it answers is checked in full before it is kept, and kept as it came. That it does
//! not answer stops nothing: it is said, counted, and tried again.

use crate::{
    checkpointer::Checkpointer,
    clock,
    config::TimestampConfig,
    daily::{daily, day_of},
    endpoints::Within,
    metrics::Metrics,
    store::{
        Store, StoreError,
        row::{Stamped, TimestampRow},
        writer::{Change, Commit, CommitError, Writer},
    },
    trusted::Trusted,
};
use anyhow::{Context as _, Result, ensure};
use falaj_certs::{
    timestamp::{
        ANSWER_BYTES_MAX, Issuers, Policy, QUERY_TYPE, REPLY_TYPE, Stamp, TimestampError, query,
    },
    tls::provider,
};
use falaj_core::{
    audit::{Draft, Kind},
    id::Digest,
    time::Timestamp,
};
use reqwest::{
    Url,
    header::{ACCEPT, CONTENT_TYPE},
    redirect,
};
use rustls::{ClientConfig, RootCertStore};
use std::{sync::Arc, time::Duration};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// An authority that has not answered in full by then is away.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// The authority's clock and ours are no further apart: a stamp that says otherwise is worth looking into first.
const CLOCKS_APART_MS_MAX: u64 = 10 * 60 * 1_000;

/// Why there is no time-stamp.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// It gave no answer, or not in time.
    #[error("the time-stamp authority cannot be reached, or does not answer in time")]
    Unreachable(#[source] reqwest::Error),
    /// It answered with an error of HTTP's.
    #[error("the time-stamp authority answered with HTTP status {0}")]
    Status(u16),
    /// The answer has no end.
    #[error("the time-stamp authority's answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    /// The answer is not what was asked for.
    #[error("the time-stamp authority's answer is not taken")]
    Answer(#[from] TimestampError),
    /// Its clock is another.
    #[error(
        "the time-stamp authority says that it is {said}, and here it is {now}: one of the clocks is wrong"
    )]
    Clock {
        /// By its clock.
        said: Timestamp,
        /// By ours.
        now: Timestamp,
    },
    /// The log does not take it.
    #[error("the time-stamp cannot be kept")]
    Commit(#[from] CommitError),
    /// What is to be stamped cannot be read.
    #[error("the store cannot be read")]
    Store(#[from] StoreError),
}

/// An authority that can be asked.
pub struct Authority {
    http: reqwest::Client,
    url: Url,
    issuers: Issuers,
    policy: Option<Policy>,
}

impl Authority {
    /// The authority that a configuration names. Nothing is sent yet. With `trusted` it is not connected to at an address
    /// outside the place in which it is declared.
    ///
    /// # Errors
    /// What is wrong with the configuration, and what to do.
    pub fn load(config: &TimestampConfig, trusted: Option<&Trusted>) -> Result<Self> {
        let url: Url = config
            .url
            .parse()
            .with_context(|| format!("`log.timestamps.url` is no URL: {}", config.url))?;
        ensure!(
            url.scheme() == "http",
            "`log.timestamps.url` must begin with http://: what an authority answers is signed, and is checked against `log.timestamps.ca`"
        );
        let issuers = Issuers::load(&config.ca)
            .map_err(|e| anyhow::anyhow!("`log.timestamps.ca` cannot be used: {e}"))?;
        // Nobody is trusted for TLS, which is not used.
        let tls = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut http = reqwest::Client::builder();
        if let Some(trusted) = trusted {
            http = http.dns_resolver(Arc::new(Within::new(trusted.clone(), config.place.clone())));
        }
        let http = http
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(ANSWER_WAIT)
            .user_agent(concat!("falaj/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("setting up HTTP")?;
        Ok(Self { http, url, issuers, policy: config.policy.clone() })
    }

    /// Has it stamp what has this SHA-256, and checks the answer: the stamp, and the answer as it came.
    ///
    /// # Errors
    /// [`StampError`].
    pub async fn ask(&self, imprint: &Digest) -> Result<(Stamp, Vec<u8>), StampError> {
        // The address is the operator's, and is in the configuration.
        let unreachable = |e: reqwest::Error| StampError::Unreachable(e.without_url());
        let nonce = clock::nonce();
        let asked = self
            .http
            .post(self.url.clone())
            .header(CONTENT_TYPE, QUERY_TYPE)
            .header(ACCEPT, REPLY_TYPE)
            .body(query(imprint, &nonce, self.policy.as_ref()));
        let mut response = asked.send().await.map_err(unreachable)?;
        if !response.status().is_success() {
            return Err(StampError::Status(response.status().as_u16()));
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(StampError::TooLong);
            }
            answer.extend_from_slice(&chunk);
        }
        let stamp = Stamp::open(&answer, imprint)?;
        stamp.check_answers(&nonce, self.policy.as_ref())?;
        stamp.check_issuer(&self.issuers)?;
        let (said, now) = (stamp.time, clock::now());
        if said.since_ms(now).max(now.since_ms(said)) > CLOCKS_APART_MS_MAX {
            return Err(StampError::Clock { said, now });
        }
        Ok((stamp, answer))
    }
}

/// Stamps the log. A cheap handle.
#[derive(Clone)]
pub struct Timestamps {
    authority: Arc<Authority>,
    store: Store,
    writer: Writer,
    checkpointer: Checkpointer,
    metrics: Arc<Metrics>,
    /// One question at a time: nothing is stamped twice.
    turn: Arc<Mutex<()>>,
}

impl Timestamps {
    /// Stamps of this authority for the log that `writer` writes.
    #[must_use]
    pub fn new(
        authority: Authority,
        store: Store,
        writer: Writer,
        checkpointer: Checkpointer,
        metrics: Arc<Metrics>,
    ) -> Self {
        let authority = Arc::new(authority);
        Self { authority, store, writer, checkpointer, metrics, turn: Arc::default() }
    }

    /// Has the newest checkpoint stamped. Gives its size.
    ///
    /// # Errors
    /// [`StampError`]; nothing is kept then.
    pub async fn checkpoint(&self) -> Result<u64, StampError> {
        let _turn = self.turn.lock().await;
        let (tree_size, signed) = self.checkpointer.current(&self.store).await?;
        // What lies in the store is what others get, should it have been signed before in another way.
        let note = self.store.checkpoint(tree_size).await?.unwrap_or(signed);
        self.stamp(Stamped::Checkpoint, tree_size, note.as_bytes()).await?;
        Ok(tree_size)
    }

    /// The stamp of a report up to a checkpoint of so many entries, as the authority answered. The same report has the
    /// same stamp, whenever it is asked for.
    ///
    /// # Errors
    /// [`StampError`].
    pub async fn report(&self, report: &[u8], tree_size: u64) -> Result<Vec<u8>, StampError> {
        let _turn = self.turn.lock().await;
        match self.store.report_timestamp(&Digest::of(report)).await? {
            Some(answer) => Ok(answer),
            None => self.stamp(Stamped::Report, tree_size, report).await,
        }
    }

    /// Has something stamped, and keeps the answer together with the entry that says so.
    async fn stamp(
        &self,
        what: Stamped,
        tree_size: u64,
        bytes: &[u8],
    ) -> Result<Vec<u8>, StampError> {
        let imprint = Digest::of(bytes);
        let asked = self.authority.ask(&imprint).await;
        self.metrics.timestamp(if asked.is_ok() { "granted" } else { "failed" });
        let (stamp, answer) = asked?;
        let (kind, name) = match what {
            Stamped::Checkpoint => (Kind::CheckpointStamped, "checkpoint_sha256"),
            Stamped::Report => (Kind::ReportStamped, "report_sha256"),
        };
        let entry = Draft::new(kind)
            .count("tree_size", tree_size)
            .digest(name, &imprint)
            .digest("token_sha256", &Digest::of(&answer))
            .text("authority", &stamp.authority)
            .digest("authority_sha256", &stamp.certificate)
            .text("stamped", &stamp.time.to_string());
        let row = TimestampRow {
            what,
            imprint,
            tree_size,
            authority: stamp.authority,
            stamped: stamp.time,
            answer: answer.clone(),
            // The writer sets both.
            log_index: 0,
            committed: stamp.time,
        };
        let rows = vec![Change::Timestamp(row)];
        self.writer.commit(Commit { rows, entries: vec![entry], round: None }).await?;
        Ok(answer)
    }

    /// Sees to it that each day has a stamped checkpoint, for as long as the coordinator runs.
    pub async fn run(self, shutdown: CancellationToken) {
        daily(clock::now, |now, again| self.look(now, again), shutdown).await;
    }

    /// Has a checkpoint stamped if today has none. Gives whether it has one.
    async fn look(&self, now: Timestamp, again: Duration) -> bool {
        let stamped = match self.store.newest_timestamp().await {
            Ok(Some(newest)) if day_of(newest.committed) >= day_of(now) => return true,
            Ok(_) => self.checkpoint().await,
            Err(e) => Err(e.into()),
        };
        match stamped {
            Ok(tree_size) => {
                tracing::info!(tree_size, "a checkpoint is stamped with the time");
                true
            }
            Err(e) => {
                let error = format!("{:#}", anyhow::Error::from(e));
                tracing::error!(error, again_s = again.as_secs(), "no time-stamp");
                false
            }
        }
    }
}
