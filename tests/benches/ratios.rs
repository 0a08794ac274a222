//! Measurements as ratios within one run: each figure stands beside a limit of this machine that was measured
//! in the same minute. Absolute times prove nothing on a shared machine.
//!
//! `cargo xtask bench` builds the programs in release and runs this; `cargo xtask bench fold` runs one part.

#[path = "ratios/durable.rs"]
mod durable;
#[path = "ratios/robust.rs"]
mod robust;
#[path = "../../coordinator/tests/store/server.rs"]
#[expect(dead_code, reason = "the store's tests use more of it")]
mod server;

use anyhow::{Context as _, Result, ensure};
use falaj_coordinator::{
    metrics::Metrics,
    proofs,
    store::{Database, Store, objects::Wanted, writer},
};
use falaj_core::{
    aggregate::Accumulator,
    audit::{Actor, Draft, Kind},
    id::Digest,
    merkle::{Frontier, leaf_hash},
    note::NoteSigner,
    robust::Rule,
    update::{Encoding, UpdateHeader},
};
use falaj_tests::{
    federation::{Federation, Process},
    rogue::{Forgery, Rogue, Tasked},
};
use std::{
    fs::{self, File},
    hint::black_box,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Parameters of the model that is 100 MB as f32.
const PARAMS: usize = 25_000_000;
/// How often each short measurement is repeated; the best one counts.
const TIMES: usize = 15;

fn best(mut work: impl FnMut()) -> Duration {
    (0..TIMES)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed()
        })
        .min()
        .unwrap_or_default()
}

fn report(what: &str, ratio: f64, aim: &str, detail: &str) {
    println!("{what:58} {ratio:>8.3}   aim {aim:10} {detail}");
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn gb_per_s(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e9
}

type Part = fn() -> Result<()>;
const PARTS: [(&str, Part); 7] = [
    ("fold", fold),
    ("log", log),
    ("durable", durable::run),
    ("who-accessed", who_accessed),
    ("uploads", uploads),
    ("memory", memory),
    ("robust", robust::run),
];
/// Parts that are meant by `audit`.
const AUDIT: [&str; 3] = ["log", "durable", "who-accessed"];

fn main() -> Result<()> {
    // Cargo adds `--bench`; other words choose parts.
    let words = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let words: Vec<String> = words
        .flat_map(|w| if w == "audit" { AUDIT.map(str::to_owned).to_vec() } else { vec![w] })
        .collect();
    let unknown = words.iter().find(|w| PARTS.iter().all(|(name, _)| name != w));
    let names = PARTS.map(|(name, _)| name).join(", ");
    ensure!(unknown.is_none(), "there is no part {unknown:?}; there are {names}");
    for (name, part) in PARTS {
        if words.is_empty() || words.iter().any(|w| w == name) {
            part()?;
        }
    }
    Ok(())
}

/// Folding 16-bit updates into their sums against adding two vectors and copying memory.
fn fold() -> Result<()> {
    let encoding = Encoding::for_range(16, 1.0)?;
    let payload = vec![1_u8; PARAMS * 2];
    let mut sums = Accumulator::new(PARAMS, encoding);
    let narrow = best(|| sums.fold(black_box(&payload), 3).expect("it fits"));
    // From here on a sum no longer fits four bytes.
    sums.admit(1 << 20)?;
    let wide = best(|| sums.fold(black_box(&payload), 3).expect("it fits"));
    let (mut a, b) = (vec![0.0_f32; PARAMS], vec![1.0_f32; PARAMS]);
    let adding = best(|| a.iter_mut().zip(black_box(&b)).for_each(|(a, b)| *a += b));
    black_box(&a);
    let source = vec![1_u8; PARAMS * 4];
    let mut target = vec![0_u8; PARAMS * 4];
    let copying = best(|| target.copy_from_slice(black_box(&source)));
    black_box(&target);
    // Bytes moved per parameter: a fold reads two, and reads and writes four or eight; an addition reads
    // eight and writes four; a copy reads four and writes four.
    let (add, copy) = (gb_per_s(PARAMS * 12, adding), gb_per_s(PARAMS * 8, copying));
    for (width, bytes, took) in [(32, 10, narrow), (64, 18, wide)] {
        let fold = gb_per_s(PARAMS * bytes, took);
        let detail = format!("({fold:.1} GB/s, a += b {add:.1}, copy {copy:.1})");
        let name = format!("fold bandwidth, {width}-bit sums / ");
        report(&format!("{name}`a += b` bandwidth"), fold / add, ">= 0.9", &detail);
        report(&format!("{name}memory copy bandwidth"), fold / copy, "", "");
    }
    let time = adding.as_secs_f64() / narrow.as_secs_f64();
    report("time of `a += b` / time of a fold, as many parameters", time, ">= 1", "");
    Ok(())
}

/// Durable log entries per second through the writer, and verified ones per second on one core.
fn log() -> Result<()> {
    const CALLERS: u32 = 64;
    const EACH: u32 = 400;
    const BURST: usize = 8;
    let dir = tempfile::tempdir()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let took = runtime.block_on(async {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let signer = NoteSigner::new("bench", key)?;
        let database = Database::Sqlite(dir.path().join("bench.sqlite"));
        let (_, writing) = Store::open(&database).await?;
        let (writer, service) =
            writer::open(writing, &signer, None, Arc::new(Metrics::default())).await?;
        tokio::spawn(service.run());
        let started = Instant::now();
        let mut callers = Vec::new();
        for caller in 0..CALLERS {
            let writer = writer.clone();
            callers.push(tokio::spawn(async move {
                for n in 0..EACH {
                    let draft = Draft::new(Kind::AdminRead)
                        .text("action", "study.read")
                        .text("reason", &format!("caller {caller} entry {n}"));
                    writer.record(vec![draft; BURST]).await?;
                }
                anyhow::Ok(())
            }));
        }
        for caller in callers {
            caller.await??;
        }
        anyhow::Ok(started.elapsed())
    })?;
    let entries = f64::from(CALLERS * EACH) * 8.0;
    let per_s = entries / took.as_secs_f64();
    // The limit beside it: synced writes of one page, one after the other.
    let mut file = File::create(dir.path().join("synced"))?;
    let started = Instant::now();
    for _ in 0..200 {
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
    }
    let synced = 200.0 / started.elapsed().as_secs_f64();
    let detail = format!("({per_s:.0} /s, synced writes {synced:.0} /s; aim >= 20,000 /s)");
    report("durable log entries / synced writes", per_s / synced, "", &detail);
    let entry = Draft::new(Kind::AdminRead).text("action", "study.read").finish(
        0,
        falaj_core::time::Timestamp::from_millis(0),
        [0; 16],
    );
    let hashing = best(|| {
        let mut frontier = Frontier::new();
        (0..100_000).for_each(|_| frontier.push(leaf_hash(black_box(&entry))));
        black_box(frontier.root());
    });
    let verified = 100_000.0 / hashing.as_secs_f64();
    println!(
        "{:58} {verified:>8.0} /s  aim >= 500,000",
        "log entries hashed into the tree, one core"
    );
    Ok(())
}

/// Who accessed a study, in a log of a million entries: a page with its proofs, beside the aim of two seconds (CMP-06)
/// and beside a plain SELECT of the same rows by an index.
fn who_accessed() -> Result<()> {
    const ENTRIES: u64 = 1_000_000;
    const TOGETHER: u64 = 500;
    const STUDIES: u64 = 1_000;
    const SITES: u64 = 64;
    const PAGE: u32 = 200;
    const AIM_S: f64 = 2.0;
    const SELECT: &str = "SELECT bytes FROM log_entries WHERE seq IN (SELECT seq FROM log_objects WHERE object = (SELECT id FROM log_object_names WHERE name = 'study-7') ORDER BY seq LIMIT 200)";
    let dir = tempfile::tempdir()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (answered, plain) = runtime.block_on(async {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let signer = NoteSigner::new("bench", key)?;
        let database = Database::Sqlite(dir.path().join("bench.sqlite"));
        let (store, writing) = Store::open(&database).await?;
        let pool = writing.sqlite().context("a SQLite file")?;
        let (writer, service) =
            writer::open(writing, &signer, None, Arc::new(Metrics::default())).await?;
        tokio::spawn(service.run());
        let draft = |n: u64| {
            let site = n % SITES;
            let actor = Actor {
                id: Some(format!("spiffe://bench/ae-on/ae-az/site/s-{site}").parse()?),
                cert: Some(Digest::of(&site.to_be_bytes())),
                address: Some("127.0.0.1:1".into()),
                ..Actor::default()
            };
            let draft = Draft::new(Kind::ModelRead)
                .actor(&actor)
                .study(&format!("study-{}", n % STUDIES).parse()?)
                .digest("model_sha256", &Digest::of(&n.to_be_bytes()))
                .decided(true, &["ACC-101".into()], &Digest::of(b"set"));
            anyhow::Ok(draft)
        };
        for first in (0..ENTRIES).step_by(usize::try_from(TOGETHER)?) {
            let drafts = (first..first + TOGETHER).map(draft).collect::<Result<_>>()?;
            writer.record(drafts).await?;
        }
        let terms = ["study-7".to_owned()].into();
        let wanted = Wanted { terms, below: ENTRIES, ..Wanted::default() };
        let (mut answered, mut plain) = (Duration::MAX, Duration::MAX);
        for _ in 0..TIMES {
            let started = Instant::now();
            let found = store.find(&wanted, PAGE).await?;
            let indices: Vec<u64> = found.entries.iter().map(|(index, ..)| *index).collect();
            let proofs = proofs::inclusions(&store, &indices, ENTRIES).await?;
            answered = answered.min(started.elapsed());
            ensure!(proofs.len() == PAGE as usize, "{} proofs", proofs.len());
            let started = Instant::now();
            let rows = sqlx::query(SELECT).fetch_all(&pool).await?.len();
            plain = plain.min(started.elapsed());
            ensure!(rows == indices.len(), "{rows} rows, and {}", indices.len());
        }
        anyhow::Ok((answered.as_secs_f64(), plain.as_secs_f64()))
    })?;
    let detail = format!("({:.1} ms for {PAGE} rows with proofs)", answered * 1e3);
    report("who accessed a study, 10^6 entries / 2 s", answered / AIM_S, "<= 1", &detail);
    let detail = format!("(SELECT {:.1} ms)", plain * 1e3);
    report("who accessed a study / plain SELECT of its rows", answered / plain, "", &detail);
    Ok(())
}

/// A study whose model is 100 MB as f32.
fn large_study(name: &str, rounds: u32, sites: usize, rule: Option<Rule>) -> String {
    let names: Vec<String> = (0..sites).map(|i| format!("s-{i}")).collect();
    let yaml = falaj_tests::federation::study_yaml(name, rounds, u32::try_from(sites).unwrap_or(1))
        .replace("model: { kind: logistic }", "model: { kind: mlp, hidden: [5000, 4996] }")
        .replace("min_sites:", &format!("sites: [{}], min_sites:", names.join(", ")))
        .replace("deadline_s: 60", "deadline_s: 600");
    let Some(rule) = rule else { return yaml };
    let byzantine = match rule {
        Rule::TrimmedMean { byzantine }
        | Rule::Krum { byzantine }
        | Rule::MultiKrum { byzantine, .. } => format!(", byzantine: {byzantine}"),
        _ => String::new(),
    };
    let aggregation = format!("aggregation: {{ rule: {}{byzantine} }}", rule.as_str());
    // Four bytes a value: an update is as long as the model.
    yaml.replace("bits: 16", "bits: 32").replace(
        &format!("min_sites: {sites} }}"),
        &format!("min_sites: {sites}, weights: uniform }}\n{aggregation}"),
    )
}

/// A coordinator, and sites that hold a task of a large study.
struct Loaded {
    coordinator: Process,
    federation: Federation,
    sites: Vec<(Rogue, Tasked)>,
    runtime: tokio::runtime::Runtime,
}

fn loaded(rounds: u32, sites: usize, rule: Option<Rule>) -> Result<Loaded> {
    let mut federation = Federation::new()?;
    let coordinator = federation.start_coordinator()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let address = federation.addresses.context("started")?.grpc;
    let trust = federation.trust()?;
    let mut rogues = Vec::new();
    for i in 0..sites {
        let name = format!("s-{i}");
        federation.issue("site", &name, "ae-on/ae-az")?;
        let credentials = federation.credentials("site", &name)?;
        rogues.push(runtime.block_on(Rogue::connect(address, credentials, &trust))?);
    }
    federation.submit(&large_study("large", rounds, sites, rule))?;
    let joining = rogues.into_iter().map(|mut rogue| async move {
        let tasked = rogue.tasked().await?;
        anyhow::Ok((rogue, tasked))
    });
    let sites = runtime.block_on(futures_util::future::try_join_all(joining))?;
    Ok(Loaded { coordinator, federation, sites, runtime })
}

/// One committed update over mutual TLS against the slower of the raw loopback and a synced write.
fn uploads() -> Result<()> {
    const ROUNDS: u32 = 10;
    let mut scene = loaded(ROUNDS, 1, None)?;
    let (rogue, tasked) = &mut scene.sites[0];
    let mut committed = Duration::MAX;
    let mut bytes = 0;
    for round in 1..=ROUNDS {
        // Each round's bytes are others, as in life: the spool names a file by what is in it.
        let payload = vec![u8::try_from(round)?; Rogue::zeros(tasked)?.len()];
        bytes = payload.len();
        let header = UpdateHeader { payload: Digest::of(&payload), ..rogue.honest(tasked)? };
        let forgery: Forgery = rogue.forge(&header, payload);
        let started = Instant::now();
        scene.runtime.block_on(rogue.submit(forgery))?;
        committed = committed.min(started.elapsed());
        if round < ROUNDS {
            scene.runtime.block_on(tasked.again())?;
        }
    }
    scene.federation.study_reaches("large", &["finished"])?;
    let loopback = best_of(10, || raw_tls(&scene.federation, bytes))?;
    let block = vec![0_u8; bytes];
    let synced = best_of(10, || {
        let path = scene.federation.dir().join("synced");
        let started = Instant::now();
        let mut file = File::create_new(&path)?;
        file.write_all(&block)?;
        file.sync_data()?;
        let took = started.elapsed();
        fs::remove_file(path)?;
        Ok(took)
    })?;
    let slower = loopback.max(synced);
    let detail = format!(
        "({} MB: committed {committed:.2?}, raw TLS {loopback:.2?}, synced write {synced:.2?})",
        bytes >> 20
    );
    let ratio = slower.as_secs_f64() / committed.as_secs_f64();
    report("committed update / slower of raw TLS and synced write", ratio, ">= 0.5", &detail);
    Ok(())
}

fn best_of(times: usize, mut work: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..times {
        best = best.min(work()?);
    }
    Ok(best)
}

/// The time that these bytes take through plain TLS on the loopback, with the same certificates.
fn raw_tls(federation: &Federation, bytes: usize) -> Result<Duration> {
    let trust = federation.trust()?;
    let server = federation.credentials("coordinator", "main")?;
    let client = federation.credentials("site", "s-0")?;
    let clients =
        falaj_certs::tls::client_verifier(&trust, &falaj_certs::revocation::Crls::default())?;
    let server = Arc::new(falaj_certs::tls::server_config(&server, clients, &[])?);
    let expect = falaj_certs::tls::ServerExpectation::coordinator(&["ae-on/*"]);
    let client = Arc::new(falaj_certs::tls::client_config(&client, &trust, &expect, &[])?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let reading = thread::spawn(move || -> Result<()> {
        let (mut tcp, _) = listener.accept()?;
        let mut connection = rustls::ServerConnection::new(server)?;
        let mut stream = rustls::Stream::new(&mut connection, &mut tcp);
        let mut block = vec![0; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            let n = stream.read(&mut block)?;
            ensure!(n > 0, "it ended early");
            left -= n.min(left);
        }
        stream.write_all(&[1])?;
        Ok(())
    });
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_nodelay(true)?;
    let mut connection = rustls::ClientConnection::new(client, "coordinator".try_into()?)?;
    let mut stream = rustls::Stream::new(&mut connection, &mut tcp);
    let block = vec![0_u8; 1 << 20];
    let started = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let n = left.min(block.len());
        stream.write_all(&block[..n])?;
        left -= n;
    }
    stream.read_exact(&mut [0])?;
    let took = started.elapsed();
    reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    Ok(took)
}

/// What each further site adds to the coordinator's peak memory, in model sizes.
fn memory() -> Result<()> {
    let (few, many) = (peak_at(2, None)?, peak_at(16, None)?);
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let per_site = (many as f64 - few as f64) / 14.0 / (PARAMS as f64 * 4.0);
    let detail =
        format!("(peak {} MB at 2 sites, {} MB at 16, model 100 MB)", few >> 20, many >> 20);
    report("memory per further site / model size", per_site, "<= 0.05", &detail);
    ensure!(per_site <= 0.05, "a coordinator's memory grows with its sites");
    Ok(())
}

/// Peak memory of a coordinator that takes the updates of `sites` sites, four at once, in bytes: from when all of them have their
/// tasks, for whatever it held to begin the study would hide what updates take.
fn peak_at(sites: usize, rule: Option<Rule>) -> Result<u64> {
    use futures_util::{StreamExt as _, TryStreamExt as _};
    let mut scene = loaded(1, sites, rule)?;
    let taken = std::mem::take(&mut scene.sites);
    // 5 sets the peak back to what is in memory now: proc(5).
    fs::write(format!("/proc/{}/clear_refs", scene.coordinator.id()), "5")?;
    scene.runtime.block_on(async {
        futures_util::stream::iter(taken)
            .map(|(mut rogue, tasked)| async move {
                let payload = Rogue::zeros(&tasked)?;
                let mut header = rogue.honest(&tasked)?;
                if rule.is_some() {
                    header.weight = 1;
                }
                let forgery = rogue.forge(&header, payload);
                rogue.submit(forgery).await?;
                anyhow::Ok(())
            })
            .buffer_unordered(4)
            .try_collect::<Vec<()>>()
            .await
    })?;
    scene.federation.study_reaches("large", &["finished"])?;
    let status = fs::read_to_string(format!("/proc/{}/status", scene.coordinator.id()))?;
    let line = status.lines().find(|l| l.starts_with("VmHWM")).context("VmHWM")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a figure")?.parse()?;
    Ok(kib * 1024)
}
