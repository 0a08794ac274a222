//! REST over mutual TLS.

use crate::Connection;
use anyhow::{Context as _, Result, anyhow, bail};
use falaj_certs::{
    tls::{Credentials, ServerExpectation, client_config},
    trust::TrustStore,
};
use falaj_proto::{problem::ProblemJson, rest::Study};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Response;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// Places in which a coordinator may lie unless the caller says otherwise.
const PLACES: &str = "ae-on/*";
/// Connecting takes at most this long.
const CONNECT: Duration = Duration::from_secs(10);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    server: Option<String>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    trust: Option<PathBuf>,
    #[serde(default)]
    places: Vec<String>,
}

/// A coordinator that can be asked.
pub(crate) struct Client {
    server: String,
    http: reqwest::Client,
}

impl Client {
    /// A client from flags, the environment, or a file.
    pub(crate) fn new(connection: &Connection) -> Result<Self> {
        let file = match &connection.config {
            Some(path) => {
                let text = fs::read_to_string(path)
                    .with_context(|| format!("reading {}", path.display()))?;
                let mut file: FileConfig =
                    toml::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
                let base = path.parent().unwrap_or(Path::new("."));
                for p in [&mut file.cert, &mut file.key, &mut file.trust].into_iter().flatten() {
                    *p = base.join(&*p);
                }
                file
            }
            None => FileConfig::default(),
        };
        let missing = |what: &str| {
            anyhow!(
                "`{what}` is not set: give --{what}, FALAJ_{}, or `{what}` in --config",
                what.to_uppercase()
            )
        };
        let path = |flag: &Option<PathBuf>, file: Option<PathBuf>, what: &str| {
            flag.clone().or(file).ok_or_else(|| missing(what))
        };
        let server = connection.server.clone().or(file.server).ok_or_else(|| missing("server"))?;
        let cert = path(&connection.cert, file.cert, "cert")?;
        let key = path(&connection.key, file.key, "key")?;
        let trust = path(&connection.trust, file.trust, "trust")?;
        let mut places =
            if connection.places.is_empty() { file.places } else { connection.places.clone() };
        if places.is_empty() {
            places.push(PLACES.to_owned());
        }
        let credentials = Credentials::load(&cert, &key)?;
        let expect = ServerExpectation::coordinator(&places);
        let tls =
            client_config(&credentials, &TrustStore::load(&trust)?, &expect, &["h2", "http/1.1"])?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self { server: server.trim_end_matches('/').to_owned(), http })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/v1/{path}", self.server)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        Ok(self.open(path).await?.json().await?)
    }

    pub(crate) async fn open(&self, path: &str) -> Result<Response> {
        self.good(self.http.get(self.url(path)).send().await).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        Ok(self.good(self.http.post(self.url(path)).send().await).await?.json().await?)
    }

    pub(crate) async fn submit(&self, file: &Path, yaml: String) -> Result<Study> {
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let request = self
            .http
            .post(self.url("studies"))
            .header("content-type", "application/yaml")
            .header("falaj-file-name", name)
            .body(yaml);
        Ok(self.good(request.send().await).await?.json().await?)
    }

    /// Downloads into a file that appears only when it is whole.
    pub(crate) async fn download(&self, path: &str, to: &Path, quiet: bool) -> Result<u64> {
        let mut response = self.open(path).await?;
        let bar = match response.content_length() {
            Some(bytes) if !quiet && std::io::stderr().is_terminal() => ProgressBar::new(bytes)
                .with_style(ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {eta}")?),
            _ => ProgressBar::hidden(),
        };
        let partial = to.with_extension("partial");
        let write = || format!("writing {}", to.display());
        let mut file = File::create(&partial).with_context(write)?;
        let mut bytes = 0;
        while let Some(chunk) = response.chunk().await? {
            file.write_all(&chunk).with_context(write)?;
            bytes += chunk.len() as u64;
            bar.set_position(bytes);
        }
        file.sync_all().with_context(write)?;
        fs::rename(&partial, to).with_context(write)?;
        bar.finish_and_clear();
        Ok(bytes)
    }

    /// A response that is no problem.
    async fn good(&self, response: reqwest::Result<Response>) -> Result<Response> {
        let response = response.map_err(|e| {
            // The innermost cause says what is wrong; the layers above only that something is.
            let mut cause: &dyn std::error::Error = &e;
            while let Some(next) = cause.source() {
                cause = next;
            }
            anyhow!("{}: {cause}", self.server)
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        match response.json::<ProblemJson>().await {
            Ok(p) => bail!("{} [{}]", p.detail, p.code),
            Err(_) => bail!("{} answers {status}", self.server),
        }
    }
}
