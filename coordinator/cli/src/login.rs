//! Signing in at an identity provider: a token of it, and for that a certificate for a short time.
//!
//! Neither the token nor the key leaves this program but for where it belongs: the token goes to the coordinator once, bound
//! to the key; the key lies in a file that nobody else can read.

use crate::settings::{CERT, KEY, SignIn};
use anyhow::{Context as _, Result, bail, ensure};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use clap::Args;
use falaj_certs::{
    keys::read_secret,
    request::generate,
    tls::{ServerExpectation, anonymous_client_config, web_client_config},
    trust::TrustStore,
};
use falaj_core::id::Digest;
use falaj_proto::{
    problem::ProblemJson,
    rest::{Login, LoginProvider, LoginRequest, Page},
};
use reqwest::{Client, Response, Url, header, redirect};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// Where a coordinator takes tokens, when nothing else is said.
const AT_DEFAULT: &str = "https://127.0.0.1:7446";
/// Whoever does not answer within this time is away.
const PATIENCE: Duration = Duration::from_secs(30);
/// A person has this long to sign in.
const PERSON: Duration = Duration::from_mins(10);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// The longest request of a browser that comes back.
const CALLBACK_BYTES_MAX: usize = 16 << 10;
/// A device asks at least so often, unless the provider says otherwise.
const INTERVAL_S: u64 = 5;
/// What a device adds when it is told to slow down (RFC 8628, section 3.5).
const SLOWER: Duration = Duration::from_secs(5);
/// Connections of browsers that are heard at once.
const CALLBACKS_MAX: usize = 16;
/// Text of a provider is shown up to here.
const SHOWN_CHARS_MAX: usize = 1_000;
/// The grant of a device.
const DEVICE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// Where to sign in, and how.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// Where the coordinator takes tokens.
    #[arg(long, env = "FALAJ_LOGIN_SERVER", hide_env_values = true, value_name = "URL", default_value = AT_DEFAULT)]
    at: String,
    /// The provider, by its issuer; needed where the coordinator knows several.
    #[arg(long, value_name = "URL")]
    provider: Option<String>,
    /// Sign in on another device, by a code that is shown.
    #[arg(long, conflicts_with = "client_id")]
    device: bool,
    /// As a pipeline: the client at the provider.
    #[arg(
        long,
        env = "FALAJ_CLIENT_ID",
        hide_env_values = true,
        value_name = "ID",
        requires = "client_secret_file"
    )]
    client_id: Option<String>,
    /// As a pipeline: a file with the client's secret, mode 0600.
    #[arg(long, env = "FALAJ_CLIENT_SECRET_FILE", hide_env_values = true, value_name = "FILE")]
    client_secret_file: Option<PathBuf>,
}

/// What is known of a provider (OpenID Connect Discovery 1.0).
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    device_authorization_endpoint: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    access_token: Option<String>,
    id_token: Option<String>,
}

#[derive(Deserialize)]
struct DeviceCode {
    #[serde(rename = "device_code")]
    secret: String,
    user_code: String,
    verification_uri: String,
    verification_uri_complete: Option<String>,
    expires_in: u64,
    interval: Option<u64>,
}

#[derive(Deserialize)]
struct OauthError {
    error: String,
    error_description: Option<String>,
}

/// A provider, and how it is spoken to.
struct Provider {
    told: LoginProvider,
    metadata: Metadata,
    http: Client,
}

/// Signs in, and keeps the certificate and its key in a folder.
///
/// # Errors
/// What went wrong, and what to do.
pub(crate) async fn run(args: &LoginArgs, sign_in: &SignIn) -> Result<Login> {
    let trust = TrustStore::load(&sign_in.trust)?;
    let expect = ServerExpectation::coordinator(&sign_in.places);
    let coordinator = client(anonymous_client_config(&trust, &expect, &["http/1.1"])?)?;
    let at = args.at.trim_end_matches('/');
    ensure!(
        at.starts_with("https://"),
        "`{at}` is no address of a coordinator: it begins with https://"
    );
    let away = || format!("cannot talk to {at}; check --at, --trust and --place");
    let answer = coordinator.get(format!("{at}/api/v1/login/providers")).send().await;
    let there: Page<LoginProvider> = read(answer.with_context(away)?).await?;
    let provider = Provider::find(there.items, args.provider.as_deref()).await?;
    let (key, key_pem) = generate()?;
    let public_key = key.public_key();
    let token = if let Some(id) = &args.client_id {
        let secret = args.client_secret_file.as_deref().context("no --client-secret-file")?;
        provider.as_pipeline(id, secret).await?
    } else if args.device {
        provider.by_device(&public_key).await?
    } else {
        provider.by_browser(&public_key).await?
    };
    let issuer = provider.told.issuer;
    let asked = LoginRequest { issuer, token, request: STANDARD.encode(key.request()?) };
    let answer = coordinator.post(format!("{at}/api/v1/login")).json(&asked).send().await;
    let login: Login = read(answer.with_context(away)?).await?;
    let chain = CertificateDer::pem_slice_iter(login.chain.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().context("what came is no certificate")?;
    let identity = trust.identify(&chain).context("the certificate that came")?;
    ensure!(identity.public_key == public_key, "the certificate that came is about another key");
    keep(&sign_in.folder, &key_pem, &login.chain)?;
    Ok(login)
}

/// Removes what [`run`] kept. The certificate is good until its end for whoever has a copy.
///
/// # Errors
/// When a file cannot be removed.
pub(crate) fn forget(folder: &Path) -> Result<()> {
    for name in [KEY, CERT] {
        let path = folder.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Provider {
    async fn find(there: Vec<LoginProvider>, wanted: Option<&str>) -> Result<Self> {
        let known: Vec<String> = there.iter().map(|p| p.issuer.clone()).collect();
        let mut fitting = there.into_iter().filter(|p| wanted.is_none_or(|w| p.issuer == w));
        let (Some(told), None) = (fitting.next(), fitting.next()) else {
            bail!("name the provider with --provider; the coordinator knows {}", known.join(", "));
        };
        let roots = CertificateDer::pem_slice_iter(told.ca.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("the certificates that vouch for the provider cannot be read")?;
        let http = client(web_client_config(roots)?)?;
        let url = format!("{}/.well-known/openid-configuration", told.issuer.trim_end_matches('/'));
        let answer =
            http.get(&url).send().await.with_context(|| format!("cannot talk to {url}"))?;
        let metadata: Metadata = read(answer).await?;
        ensure!(metadata.issuer == told.issuer, "{url} says that it is {}", metadata.issuer);
        Ok(Self { told, metadata, http })
    }

    fn scope(&self) -> String {
        ["openid"]
            .into_iter()
            .chain(self.told.scopes.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Authorization code with PKCE (RFC 7636), by the browser of this machine (RFC 8252, section 7.3).
    async fn by_browser(&self, key: &[u8; 32]) -> Result<String> {
        let (state, verifier) = (random()?, random()?);
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listening on 127.0.0.1")?;
        let back = format!("http://{}/callback", listener.local_addr()?);
        let challenge = URL_SAFE_NO_PAD.encode(Digest::of(verifier.as_bytes()).as_bytes());
        let nonce = URL_SAFE_NO_PAD.encode(Digest::of(key).as_bytes());
        let url = Url::parse_with_params(
            &self.metadata.authorization_endpoint,
            [
                ("response_type", "code"),
                ("client_id", &self.told.client_id),
                ("redirect_uri", &back),
                ("scope", &self.scope()),
                ("state", &state),
                ("nonce", &nonce),
                ("code_challenge", &challenge),
                ("code_challenge_method", "S256"),
            ],
        )?;
        ensure!(url.scheme() == "https", "the provider signs in at {url}, which is not https");
        eprintln!("Open this address in your browser:\n{url}");
        let came = timeout(PERSON, self.callback(&listener, &state)).await;
        let code =
            came.map_err(|_| anyhow::anyhow!("nobody has signed in within {PERSON:?}"))??;
        let tokens = self
            .token(&[
                ("grant_type", "authorization_code"),
                ("code", &code),
                ("redirect_uri", &back),
                ("client_id", &self.told.client_id),
                ("code_verifier", &verifier),
            ])
            .await?;
        tokens.map_err(|e| said(&e))?.id_token.context("the provider gave no ID token")
    }

    /// Waits until the browser comes back, and gives the code that it brings.
    async fn callback(&self, listener: &TcpListener, state: &str) -> Result<String> {
        // Browsers open connections ahead and say nothing on them, so they are heard side by side.
        let mut heard = JoinSet::new();
        loop {
            let (stream, target) = tokio::select! {
                accepted = listener.accept(), if heard.len() < CALLBACKS_MAX => {
                    heard.spawn(timeout(PATIENCE, target_of(accepted?.0)));
                    continue;
                }
                Some(done) = heard.join_next() => match done {
                    Ok(Ok(Some(asked))) => asked,
                    _ => continue,
                },
            };
            let url = Url::parse("http://127.0.0.1").and_then(|base| base.join(&target));
            let Ok(url) = url else { continue };
            let param = |name: &str| {
                url.query_pairs().find(|(n, _)| n == name).map(|(_, value)| value.into_owned())
            };
            // Any program of this machine can come here; only the browser knows this.
            if url.path() != "/callback" || param("state").as_deref() != Some(state) {
                answer(stream, "404 Not Found", "Nothing is here.").await;
                continue;
            }
            if param("iss").is_some_and(|iss| iss != self.told.issuer) {
                answer(stream, "200 OK", "Another provider sent you here.").await;
                bail!("another provider than {} answered", self.told.issuer);
            }
            let Some(code) = param("code") else {
                answer(stream, "200 OK", "You were not signed in.").await;
                let error = param("error").unwrap_or_default();
                return Err(said(&OauthError {
                    error,
                    error_description: param("error_description"),
                }));
            };
            answer(stream, "200 OK", "You can close this page.").await;
            return Ok(code);
        }
    }

    /// The device flow (RFC 8628).
    async fn by_device(&self, key: &[u8; 32]) -> Result<String> {
        ensure!(
            self.told.device,
            "the coordinator takes no tokens of devices of this provider: leave out --device"
        );
        let endpoint = self.metadata.device_authorization_endpoint.as_deref();
        let endpoint = endpoint.context("the provider has no device flow: leave out --device")?;
        let nonce = URL_SAFE_NO_PAD.encode(Digest::of(key).as_bytes());
        let form = [
            ("client_id", self.told.client_id.as_str()),
            ("scope", &self.scope()),
            ("nonce", &nonce),
        ];
        let code: DeviceCode = read(self.post(endpoint, &form).await?).await?;
        let (at, word) = (shown(&code.verification_uri), shown(&code.user_code));
        eprintln!("Open {at} on another device, and enter {word}");
        if let Some(whole) = &code.verification_uri_complete {
            eprintln!("or open {}", shown(whole));
        }
        let ends = Instant::now() + Duration::from_secs(code.expires_in).min(PERSON);
        let mut interval = Duration::from_secs(code.interval.unwrap_or(INTERVAL_S).clamp(1, 60));
        let form = [
            ("grant_type", DEVICE),
            ("device_code", &code.secret),
            ("client_id", &self.told.client_id),
        ];
        while Instant::now() < ends {
            sleep(interval).await;
            match self.token(&form).await? {
                Ok(tokens) => return tokens.id_token.context("the provider gave no ID token"),
                Err(e) if e.error == "authorization_pending" => {}
                Err(e) if e.error == "slow_down" => interval += SLOWER,
                Err(e) => return Err(said(&e)),
            }
        }
        bail!("nobody has signed in in time")
    }

    /// Client credentials (RFC 6749, section 4.4) for the resource that the coordinator is.
    async fn as_pipeline(&self, id: &str, secret: &Path) -> Result<String> {
        let resource = self.told.resource.as_deref();
        let resource = resource.context("the coordinator takes no pipelines of this provider")?;
        let secret = read_secret(secret)?;
        let secret = std::str::from_utf8(&secret).context("the client's secret is no text")?;
        let form = form(&[("grant_type", "client_credentials"), ("resource", resource)]);
        // Both are encoded before they are put together (RFC 6749, section 2.3.1).
        let request = self.http.post(&self.metadata.token_endpoint);
        let request = request.basic_auth(encoded(id), Some(encoded(secret.trim_end())));
        let request =
            request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(form);
        let answer = request.send().await.context("cannot talk to the provider")?;
        let tokens: Result<Tokens, OauthError> = tokens(answer).await?;
        tokens.map_err(|e| said(&e))?.access_token.context("the provider gave no access token")
    }

    async fn post(&self, url: &str, fields: &[(&str, &str)]) -> Result<Response> {
        let request =
            self.http.post(url).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        request.body(form(fields)).send().await.with_context(|| format!("cannot talk to {url}"))
    }

    async fn token(&self, fields: &[(&str, &str)]) -> Result<Result<Tokens, OauthError>> {
        tokens(self.post(&self.metadata.token_endpoint, fields).await?).await
    }
}

/// The target of a browser's request; nothing when it is no GET.
async fn target_of(mut stream: TcpStream) -> Option<(TcpStream, String)> {
    let (mut head, mut block) = (Vec::new(), [0; 1_024]);
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < CALLBACK_BYTES_MAX {
        match stream.read(&mut block).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => head.extend_from_slice(&block[..n]),
        }
    }
    let head = String::from_utf8(head).ok()?;
    let target = head.strip_prefix("GET ")?.split(' ').next()?;
    target.starts_with('/').then(|| (stream, target.to_owned()))
}

/// Answers a browser. Whoever signed in need not read it, so that it may fail.
async fn answer(mut stream: TcpStream, status: &str, words: &str) {
    let length = words.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{words}"
    );
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Text of a provider, fit for a terminal.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect()
}

fn client(tls: rustls::ClientConfig) -> Result<Client> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .timeout(PATIENCE)
        .user_agent(concat!("falaj/", env!("CARGO_PKG_VERSION")))
        .build()
        .context("setting up TLS")
}

/// 32 random bytes, in base64url.
fn random() -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Fields as a form has them.
fn form(fields: &[(&str, &str)]) -> String {
    let url = Url::parse_with_params("https://form.invalid", fields);
    url.ok().and_then(|url| url.query().map(str::to_owned)).unwrap_or_default()
}

fn encoded(text: &str) -> String {
    form(&[(text, "")]).trim_end_matches('=').to_owned()
}

fn said(error: &OauthError) -> anyhow::Error {
    let more = error.error_description.as_deref().unwrap_or_default();
    anyhow::anyhow!("the provider says: {} {}", shown(&error.error), shown(more))
}

async fn bytes(mut answer: Response) -> Result<(u16, Vec<u8>)> {
    let (status, mut body) = (answer.status().as_u16(), Vec::new());
    while let Some(part) = answer.chunk().await? {
        body.extend_from_slice(&part);
        ensure!(body.len() <= ANSWER_BYTES_MAX, "an answer has more than {ANSWER_BYTES_MAX} bytes");
    }
    Ok((status, body))
}

/// An answer's document, or the problem that it tells.
async fn read<T: DeserializeOwned>(answer: Response) -> Result<T> {
    let url = answer.url().clone();
    let (status, body) = bytes(answer).await?;
    if (200..300).contains(&status) {
        return serde_json::from_slice(&body)
            .with_context(|| format!("{url}: its answer cannot be read"));
    }
    match (
        serde_json::from_slice::<ProblemJson>(&body),
        serde_json::from_slice::<OauthError>(&body),
    ) {
        (Ok(problem), _) => bail!("{} [{}]", problem.detail, problem.code),
        (_, Ok(error)) => Err(said(&error)),
        _ => bail!("{url} answered {status}"),
    }
}

async fn tokens(answer: Response) -> Result<Result<Tokens, OauthError>> {
    let url = answer.url().clone();
    let (status, body) = bytes(answer).await?;
    let unreadable = || format!("{url}: its answer ({status}) cannot be read");
    if status == 200 {
        return Ok(Ok(serde_json::from_slice(&body).with_context(unreadable)?));
    }
    Ok(Err(serde_json::from_slice(&body).with_context(unreadable)?))
}

/// Keeps both, for nobody else to read. What was there before is replaced.
fn keep(folder: &Path, key: &str, chain: &str) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("making {}", folder.display()))?;
    for (name, text) in [(KEY, key), (CERT, chain)] {
        let path = folder.join(name);
        let fresh = path.with_extension("pem.new");
        let write = || {
            // Not one that lies there: others may have opened it.
            let _ = fs::remove_file(&fresh);
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
