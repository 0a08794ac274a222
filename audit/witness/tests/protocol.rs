//! The witness as others meet it: a process of its own, over a real socket.

use anyhow::{Context as _, Result, ensure};
use ed25519_dalek::SigningKey;
use falaj_core::{
    id::Digest,
    merkle::{Frontier, Hashes, consistency_proof, leaf_hash},
    note::{Checkpoint, NoteSigner},
    witness::{AddCheckpoint, WitnessKey},
};
use reqwest::{Client, StatusCode};
use std::{
    convert::Infallible,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const BINARY: &str = env!("CARGO_BIN_EXE_falaj-witness");
const ORIGIN: &str = "falaj.test/log";
const NAME: &str = "witness.test/1";
/// Nothing in a test takes longer; what does has hung.
const PATIENCE: Duration = Duration::from_mins(1);

/// A log of which any history can be made; `fork` names which, and all are the same below `from`.
#[derive(Clone, Copy)]
struct Log {
    fork: u8,
    from: u64,
}

const HONEST: Log = Log { fork: 0, from: 0 };

impl Hashes for Log {
    type Error = Infallible;
    fn subtree(&self, level: u32, n: u64) -> Result<Digest, Infallible> {
        Ok(self.root(n << level, (n + 1) << level))
    }
}

impl Log {
    fn root(self, from: u64, below: u64) -> Digest {
        let mut tree = Frontier::new();
        for i in from..below {
            let fork = if i < self.from { 0 } else { self.fork };
            tree.push(leaf_hash(format!("{fork} {i}").as_bytes()));
        }
        tree.root()
    }

    fn note(self, size: u64) -> String {
        self.signed_by(size, 9)
    }

    fn signed_by(self, size: u64, seed: u8) -> String {
        let head =
            Checkpoint { origin: ORIGIN.into(), tree_size: size, root_hash: self.root(0, size) };
        signer(seed).sign(&head.body()).expect("signs")
    }

    /// A request of a log that believes that the witness has `old` entries.
    fn request(self, old: u64, size: u64) -> AddCheckpoint {
        let Ok(proof) = if old == 0 { Ok(Vec::new()) } else { consistency_proof(&self, old, size) };
        AddCheckpoint { old, proof, note: self.note(size) }
    }
}

fn signer(seed: u8) -> NoteSigner {
    NoteSigner::new(ORIGIN, SigningKey::from_bytes(&[seed; 32])).expect("a name")
}

/// A witness's folder, and its process while it runs.
struct World {
    dir: TempDir,
    child: Option<Child>,
    url: String,
    key: WitnessKey,
    http: Client,
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
    }
}

fn run(args: &[&str], dir: &Path) -> Result<std::process::Output> {
    Ok(Command::new(BINARY).args(args).current_dir(dir).output()?)
}

impl World {
    async fn new() -> Result<Self> {
        Self::with("").await
    }

    /// A witness with this in its configuration, too.
    async fn with(extra: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let made = run(&["keygen", "witness.key", "--name", NAME], dir.path())?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let key = String::from_utf8(made.stdout)?.trim().parse()?;
        fs::create_dir(dir.path().join("state"))?;
        let config = format!(
            "name = \"{NAME}\"\nkey = \"witness.key\"\nstate = \"state\"\nlisten = \"127.0.0.1:0\"\n{extra}[[log]]\nkey = \"{}\"\n",
            signer(9).verifier()
        );
        fs::write(dir.path().join("witness.toml"), config)?;
        // The client wants one even where it never talks TLS; another test may have been first.
        let _ = falaj_certs::tls::provider().install_default();
        // Each request on a connection of its own: one that is kept open may end, idle, just as it is used again.
        let http =
            Client::builder().no_proxy().timeout(PATIENCE).pool_max_idle_per_host(0).build()?;
        let mut this = Self { dir, child: None, url: String::new(), key, http };
        this.start().await?;
        Ok(this)
    }

    async fn start(&mut self) -> Result<()> {
        let ready = self.dir.path().join("ready.json");
        let _ = fs::remove_file(&ready);
        let child = Command::new(BINARY)
            .args(["serve", "--config", "witness.toml", "--ready-file", "ready.json"])
            .current_dir(self.dir.path())
            .stderr(Stdio::null())
            .spawn()?;
        self.child = Some(child);
        let started = Instant::now();
        while !ready.exists() {
            ensure!(started.elapsed() < PATIENCE, "the witness did not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let bound: serde_json::Value = serde_json::from_slice(&fs::read(ready)?)?;
        self.url = format!("http://{}", bound["http"].as_str().context("an address")?);
        Ok(())
    }

    /// Ends the process as a power cut would.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    async fn post(&self, body: impl Into<reqwest::Body>) -> Result<(StatusCode, String, String)> {
        post(&self.http, &self.url, body.into()).await
    }

    async fn add(&self, request: &AddCheckpoint) -> Result<(StatusCode, String, String)> {
        self.post(request.to_text()).await
    }

    /// What the witness has, as a log that knows nothing learns it; `None` when it has nothing.
    async fn size(&self) -> Result<Option<u64>> {
        // One that would need a proof which is not there, so that nothing is cosigned by asking.
        let mut request = HONEST.request(1, 2);
        request.proof.clear();
        let (status, _, body) = self.add(&request).await?;
        ensure!(status == StatusCode::CONFLICT, "{status}: {body}");
        Ok(Some(body.trim().parse()?).filter(|n| *n > 0))
    }

    /// The folder of the log in the state folder.
    fn folder(&self) -> PathBuf {
        self.dir.path().join("state").join(Digest::of(ORIGIN.as_bytes()).to_string())
    }

    fn evidence(&self) -> Result<Vec<String>> {
        let shown = run(&["show", "--config", "witness.toml", "--json"], self.dir.path())?;
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
        let files = shown["logs"][0]["evidence"].as_array().context("a list")?;
        let read = |f: &serde_json::Value| {
            Ok(fs::read_to_string(self.dir.path().join(f.as_str().context("a path")?))?)
        };
        files.iter().map(read).collect()
    }
}

async fn post(
    http: &Client,
    url: &str,
    body: reqwest::Body,
) -> Result<(StatusCode, String, String)> {
    let answer = http.post(format!("{url}/add-checkpoint")).body(body).send().await?;
    let content = answer.headers().get("content-type").and_then(|c| c.to_str().ok());
    let content = content.unwrap_or_default().to_owned();
    Ok((answer.status(), content, answer.text().await?))
}

fn cosigned(key: &WitnessKey, note: &str, line: &str) -> bool {
    matches!(key.cosigned(&format!("{note}{line}")), Ok(Some(_)))
}

/// AUD-10: each status code of the protocol.
#[tokio::test]
async fn each_answer_is_the_one_that_the_protocol_asks_for() -> Result<()> {
    let world = World::new().await?;
    for malformed in ["", "old 1", "old 01\n\nx\n", "old 0\n\nfalaj.test/log\n1\n", "no"] {
        let (status, ..) = world.post(malformed).await?;
        let known = malformed.contains(ORIGIN) || AddCheckpoint::parse(malformed).is_none();
        ensure!(known && status == StatusCode::BAD_REQUEST, "{malformed}: {status}");
    }
    ensure!(world.post(vec![0xff; 10]).await?.0 == StatusCode::BAD_REQUEST);
    // One that is too long is not read to its end, so the answer may be lost with the connection, which serves nobody else.
    let other = Client::builder().no_proxy().timeout(PATIENCE).build()?;
    if let Ok((status, ..)) = post(&other, &world.url, vec![b'x'; 1 << 20].into()).await {
        ensure!(status == StatusCode::BAD_REQUEST, "{status}");
    }
    // `old` beyond the checkpoint, and a body that is signed but has another line.
    ensure!(world.add(&HONEST.request(0, 5)).await?.0 == StatusCode::OK);
    let beyond = AddCheckpoint { old: 6, ..HONEST.request(0, 5) };
    ensure!(world.add(&beyond).await?.0 == StatusCode::BAD_REQUEST);
    let body = HONEST.note(9).split_once("\n\n").context("a note")?.0.to_owned();
    let note = signer(9).sign(&format!("{body}\nextension\n"))?;
    let extended = AddCheckpoint { note, ..HONEST.request(5, 9) };
    ensure!(world.add(&extended).await?.0 == StatusCode::BAD_REQUEST);
    // Another log; another key; a signature that was tampered with.
    let other = HONEST.note(9).replace(ORIGIN, "falaj.test/other");
    let other = AddCheckpoint { note: other, ..HONEST.request(5, 9) };
    ensure!(world.add(&other).await?.0 == StatusCode::NOT_FOUND);
    let stranger = AddCheckpoint { note: HONEST.signed_by(9, 8), ..HONEST.request(5, 9) };
    ensure!(world.add(&stranger).await?.0 == StatusCode::FORBIDDEN);
    let moved = AddCheckpoint {
        note: HONEST.note(9).replacen("\n9\n", "\n8\n", 1),
        ..HONEST.request(5, 9)
    };
    ensure!(world.add(&moved).await?.0 == StatusCode::FORBIDDEN);
    // Another size than is kept teaches which one is.
    for old in [0, 3, 6] {
        let (status, content, body) = world.add(&HONEST.request(old, 9)).await?;
        ensure!(status == StatusCode::CONFLICT && content == "text/x.tlog.size", "{content}");
        ensure!(body == "5\n", "{body}");
    }
    // A proof that is short, long or of another history.
    let right = HONEST.request(5, 9);
    let short = AddCheckpoint { proof: right.proof[1..].to_vec(), ..right.clone() };
    let mut long = right.clone();
    long.proof.push(Digest::of(b"more"));
    for wrong in [short, long, Log { fork: 1, from: 0 }.request(5, 9)] {
        ensure!(world.add(&wrong).await?.0 == StatusCode::UNPROCESSABLE_ENTITY);
    }
    let (status, _, line) = world.add(&right).await?;
    ensure!(status == StatusCode::OK && cosigned(&world.key, &right.note, &line), "{line}");
    // The same head again is cosigned again; a root of its own is not, nor an older head.
    let (status, _, line) = world.add(&HONEST.request(9, 9)).await?;
    ensure!(status == StatusCode::OK && cosigned(&world.key, &right.note, &line));
    ensure!(world.add(&Log { fork: 1, from: 0 }.request(9, 9)).await?.0 == StatusCode::CONFLICT);
    ensure!(world.add(&HONEST.request(5, 7)).await?.0 == StatusCode::CONFLICT);
    ensure!(world.size().await? == Some(9));
    let path = format!("{}/add-checkpoint", world.url);
    ensure!(world.http.get(path).send().await?.status() == StatusCode::METHOD_NOT_ALLOWED);
    Ok(())
}

/// AUD-10, AUD-06: a log with the same key and another history is refused, and what it signed is kept.
#[tokio::test]
async fn a_forked_log_is_refused_and_its_two_statements_are_kept() -> Result<()> {
    let world = World::new().await?;
    ensure!(world.add(&HONEST.request(0, 5)).await?.0 == StatusCode::OK);
    ensure!(world.evidence()?.is_empty());
    let fork = Log { fork: 1, from: 3 };
    // Of the same size; and beyond it, with a proof that holds in the fork's own history.
    ensure!(world.add(&fork.request(5, 5)).await?.0 == StatusCode::CONFLICT);
    ensure!(world.add(&fork.request(5, 9)).await?.0 == StatusCode::UNPROCESSABLE_ENTITY);
    ensure!(world.add(&fork.request(5, 9)).await?.0 == StatusCode::UNPROCESSABLE_ENTITY);
    let evidence = world.evidence()?;
    ensure!(evidence.len() == 2, "{evidence:?}");
    for text in &evidence {
        ensure!(text.contains(&HONEST.note(5)), "{text}");
        ensure!(text.contains(&fork.note(5)) || text.contains(&fork.note(9)), "{text}");
        ensure!(text.starts_with("the log signed"), "{text}");
    }
    // The history that was seen goes on, and can be cosigned still.
    ensure!(world.add(&HONEST.request(5, 9)).await?.0 == StatusCode::OK);
    Ok(())
}

/// AUD-10: a hundred calls at once, half of them of a fork, with a kill -9 in the middle: no roll back, no two histories,
/// and what was answered is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_calls_at_once_never_roll_back_and_cosign_one_history() -> Result<()> {
    let mut world = World::new().await?;
    let fork = Log { fork: 1, from: 1 };
    let mut answered: Vec<(u64, String)> = Vec::new();
    for wave in 0..3_u64 {
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..100_u64 {
            let log = if n % 2 == 0 { HONEST } else { fork };
            // Growing, equal and old sizes, each from what the witness says that it has.
            let size = wave * 10 + 2 + n % 25;
            let (http, url, key) = (world.http.clone(), world.url.clone(), world.key.clone());
            calls.spawn(async move {
                let mut old = 0;
                for _ in 0..20 {
                    let request = log.request(old.min(size), size);
                    let sent = post(&http, &url, request.to_text().into()).await;
                    // Killed in between: nothing was answered.
                    let Ok((status, content, body)) = sent else { return Ok(None) };
                    match status {
                        StatusCode::OK => {
                            ensure!(cosigned(&key, &request.note, &body), "{body}");
                            return Ok(Some((size, request.note)));
                        }
                        StatusCode::CONFLICT if content == "text/x.tlog.size" => {
                            let kept: u64 = body.trim().parse()?;
                            ensure!(kept >= old, "from {old} back to {kept}");
                            if kept > size || kept == old {
                                return Ok(None);
                            }
                            old = kept;
                        }
                        StatusCode::UNPROCESSABLE_ENTITY => return Ok(None),
                        other => anyhow::bail!("{other}: {body}"),
                    }
                }
                Ok(None)
            });
        }
        let mut done = 0;
        while let Some(call) = calls.join_next().await {
            answered.extend(call??);
            done += 1;
            if done == 30 && wave == 1 {
                world.kill();
            }
        }
        if wave == 1 {
            world.start().await?;
        }
        let most = answered.iter().map(|(size, _)| *size).max().context("one was cosigned")?;
        let kept = world.size().await?.context("something is kept")?;
        ensure!(kept >= most, "{most} entries were cosigned, {kept} are kept");
    }
    let of = |log: Log| answered.iter().filter(|(size, note)| log.note(*size) == *note).count();
    ensure!(of(HONEST) == answered.len() || of(fork) == answered.len(), "two histories");
    Ok(())
}

#[tokio::test]
async fn a_key_that_others_can_read_a_missing_folder_and_a_second_witness_are_refused() -> Result<()>
{
    let mut world = World::new().await?;
    let at = |path: &str| world.dir.path().join(path);
    let mode = fs::metadata(at("witness.key"))?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let again = run(&["keygen", "witness.key", "--name", NAME], world.dir.path())?;
    ensure!(!again.status.success());
    let serve = |word: &str| {
        let tried = run(&["serve", "--config", "witness.toml"], world.dir.path())?;
        let said = String::from_utf8_lossy(&tried.stderr).into_owned();
        ensure!(!tried.status.success() && said.contains(word), "{said}");
        Ok(())
    };
    serve("another witness uses it")?;
    fs::set_permissions(at("witness.key"), fs::Permissions::from_mode(0o644))?;
    serve("chmod 600")?;
    fs::set_permissions(at("witness.key"), fs::Permissions::from_mode(0o600))?;
    fs::rename(at("state"), at("elsewhere"))?;
    serve("the state folder is not there")?;
    world.kill();
    Ok(())
}

/// AUD-10: a client that stalls is let go of within the time that the configuration gives, and keeps nobody else waiting.
#[tokio::test]
async fn a_client_that_stalls_is_told_so_and_keeps_nobody_waiting() -> Result<()> {
    let world = World::with("timeout_s = 1\nconnections_max = 3\n").await?;
    let address = world.url.strip_prefix("http://").context("a URL")?;
    let stalled = async |sent: &str| -> Result<TcpStream> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(sent.as_bytes()).await?;
        Ok(stream)
    };
    // In the middle of the body, and in the middle of the head, when there is no request yet that could be answered.
    let request = HONEST.request(0, 5).to_text();
    let head = "POST /add-checkpoint HTTP/1.1\r\nhost: w\r\ncontent-length: 1000\r\n";
    let body = stalled(&format!("{head}\r\n{}", &request[..20])).await?;
    let head = stalled(head).await?;
    ensure!(world.add(&HONEST.request(0, 5)).await?.0 == StatusCode::OK);
    for (mut stream, wanted) in [(body, "HTTP/1.1 408 Request Timeout\r\n"), (head, "")] {
        let mut answer = String::new();
        // To its end: the connection is closed.
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
        ensure!(answer.starts_with(wanted) && answer.is_empty() == wanted.is_empty(), "{answer}");
        ensure!(wanted.is_empty() || answer.contains("the request came too slowly"), "{answer}");
    }
    ensure!(world.add(&HONEST.request(5, 9)).await?.0 == StatusCode::OK);
    ensure!(world.size().await? == Some(9));
    Ok(())
}

/// AUD-10: what cannot be kept is not cosigned, and what cannot be read is not taken for nothing. When it is mended, the
/// next request is answered as if nothing had been, without a restart.
#[tokio::test]
async fn a_witness_that_cannot_write_cosigns_nothing_until_it_is_mended() -> Result<()> {
    let world = World::new().await?;
    let folder = world.folder();
    let refused = async |request: &AddCheckpoint| -> Result<()> {
        let (status, _, body) = world.add(request).await?;
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status}: {body}");
        ensure!(body == "the witness cannot keep what it saw; try again later\n", "{body}");
        Ok(())
    };
    let taken = async |old: u64, size: u64| -> Result<()> {
        let request = HONEST.request(old, size);
        let (status, _, line) = world.add(&request).await?;
        ensure!(status == StatusCode::OK, "{status}: {line}");
        ensure!(cosigned(&world.key, &request.note, &line), "{line}");
        ensure!(world.size().await? == Some(size));
        Ok(())
    };
    taken(0, 5).await?;
    // Something that whoever runs it cannot write over either: a full disk looks so, too.
    let partial = folder.join("checkpoint.partial");
    fs::create_dir(&partial)?;
    refused(&HONEST.request(5, 9)).await?;
    ensure!(world.size().await? == Some(5), "it went on without having kept it");
    fs::remove_dir(&partial)?;
    taken(5, 9).await?;
    // The disk is away: that is not a log of which nothing was seen.
    let away = world.dir.path().join("away");
    fs::rename(&folder, &away)?;
    for old in [0, 9] {
        refused(&HONEST.request(old, 12)).await?;
    }
    refused(&Log { fork: 1, from: 0 }.request(0, 12)).await?;
    fs::rename(&away, &folder)?;
    taken(9, 12).await?;
    // Evidence that cannot be kept: the fork is not refused for good before it is.
    let fork = Log { fork: 1, from: 3 };
    let evidence = folder.join("evidence");
    fs::rename(&evidence, &away)?;
    fs::write(&evidence, "in the way")?;
    refused(&fork.request(12, 12)).await?;
    fs::remove_file(&evidence)?;
    fs::rename(&away, &evidence)?;
    ensure!(world.evidence()?.is_empty());
    ensure!(world.add(&fork.request(12, 12)).await?.0 == StatusCode::CONFLICT);
    ensure!(world.evidence()?.len() == 1);
    Ok(())
}
