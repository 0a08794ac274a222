//! What is known of an identity provider: its keys, asked for at its own address, kept for a while.

use super::jws::{KEYS_MAX, Keys};
use crate::{config::ProviderConfig, endpoints::Within, trusted::Trusted};
use anyhow::{Context as _, Result, ensure};
use falaj_certs::tls::web_client_config;
use reqwest::{Client, Url, redirect};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, de::DeserializeOwned};
use std::{fs, sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::Instant};

/// A provider that has not answered by then is away.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer of a provider that is read.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Keys are asked for again after this long.
const FRESH: Duration = Duration::from_mins(10);
/// A key that is not known makes them be asked for again, but not more often than this.
const AGAIN: Duration = Duration::from_secs(5);
/// Keys of a provider that does not answer any more are used for this long.
const STALE: Duration = Duration::from_hours(1);
/// While there are none, whoever does not answer is not asked again for this long.
const PAUSE: Duration = Duration::from_secs(2);

/// Why a provider's keys cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("the identity provider {0} does not answer the coordinator: try again")]
pub(super) struct Unavailable(String);

/// A provider.
pub(super) struct Provider {
    /// As the configuration has it.
    pub(super) config: ProviderConfig,
    /// The certificates that vouch for its server, PEM.
    pub(super) ca: String,
    http: Client,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    keys: Option<(Arc<Keys>, Instant)>,
    /// When it was asked last, whatever came of it.
    asked: Option<Instant>,
}

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: String,
}

impl Provider {
    /// A provider as a configuration has it; nothing is asked yet.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub(super) fn new(config: ProviderConfig, trusted: &Trusted) -> Result<Self> {
        let at = || format!("`oidc.provider` {}: {}", config.issuer, config.ca.display());
        let ca = fs::read_to_string(&config.ca).with_context(at)?;
        let roots = CertificateDer::pem_slice_iter(ca.as_bytes()).collect::<Result<Vec<_>, _>>();
        let tls = web_client_config(roots.with_context(at)?).with_context(at)?;
        let within = Within::new(trusted.clone(), config.server_place().clone());
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Arc::new(within))
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(PATIENCE)
            .user_agent(concat!("falaj-coordinator/", env!("CARGO_PKG_VERSION")))
            .build()
            .with_context(at)?;
        Ok(Self { config, ca, http, kept: Mutex::default() })
    }

    /// Its keys. When a key was `missed` they are asked for again, unless that was done a moment ago.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub(super) async fn keys(&self, missed: bool) -> Result<Arc<Keys>, Unavailable> {
        let mut kept = self.kept.lock().await;
        let wanted = missed || kept.keys.as_ref().is_none_or(|(_, at)| at.elapsed() >= FRESH);
        let pause = if kept.keys.is_some() { AGAIN } else { PAUSE };
        if wanted && kept.asked.is_none_or(|at| at.elapsed() >= pause) {
            match self.ask().await {
                Ok(keys) => kept.keys = Some((Arc::new(keys), Instant::now())),
                Err(e) => {
                    let (issuer, why) = (&self.config.issuer, format!("{e:#}"));
                    tracing::error!(issuer, error = why, "an identity provider gave no keys");
                }
            }
            kept.asked = Some(Instant::now());
        }
        let known = kept.keys.as_ref().filter(|(_, at)| at.elapsed() < STALE);
        known.map(|(keys, _)| keys.clone()).ok_or_else(|| Unavailable(self.config.issuer.clone()))
    }

    async fn ask(&self) -> Result<Keys> {
        let issuer = &self.config.issuer;
        let at = issuer.trim_end_matches('/');
        let metadata: Metadata =
            self.get(&format!("{at}/.well-known/openid-configuration")).await?;
        ensure!(metadata.issuer == *issuer, "it says that it is {}", metadata.issuer);
        let keys: Keys = self.get(&metadata.jwks_uri).await?;
        ensure!(keys.count() <= KEYS_MAX, "it has more than {KEYS_MAX} keys");
        Ok(keys)
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T> {
        let url: Url = url.parse().with_context(|| format!("`{url}` is no address"))?;
        let mut answer =
            self.http.get(url.clone()).send().await?.error_for_status().context("its answer")?;
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await? {
            body.extend_from_slice(&part);
            ensure!(body.len() <= ANSWER_BYTES_MAX, "{url}: more than {ANSWER_BYTES_MAX} bytes");
        }
        serde_json::from_slice(&body).with_context(|| format!("{url}: its answer cannot be read"))
    }
}
