//! How fast accesses become durable entries, on both databases: as many as it can take, and the wait at a steady thousand a
//! second. Beside each figure stands what the disk alone does in the same folder, in the same run.

use super::server::Server;
use anyhow::{Context as _, Result};
use falaj_coordinator::{
    metrics::Metrics,
    store::{
        self, Database, Store,
        writer::{self, Writer},
    },
};
use falaj_core::{
    audit::{Actor, Draft, Kind},
    id::Digest,
    note::NoteSigner,
};
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::{JoinHandle, JoinSet};

/// Callers at once, each of which waits for its entry before it asks for the next.
const WRITERS: [u32; 3] = [1, 64, 1_024];
/// How long each of them is measured.
const SPAN: Duration = Duration::from_secs(5);
/// Grants a second, and for how long.
const GRANTS_PER_S: u32 = 1_000;
const GRANTS: u32 = 10_000;
/// Synced appends of one page that are timed.
const SYNCS: usize = 500;
const PAGE: usize = 4_096;
/// What is aimed at.
const ENTRIES_AIM: f64 = 20_000.0;
const GRANT_AIM: Duration = Duration::from_millis(10);

/// One database and its writer.
struct Log {
    name: &'static str,
    /// A folder on the same disk as the database's files.
    folder: PathBuf,
    writer: Writer,
    serving: JoinHandle<store::Writing>,
}

impl Log {
    async fn open(name: &'static str, folder: &Path, database: &Database) -> Result<Self> {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let signer = NoteSigner::new("bench", key)?;
        let (_, writing) = Store::open(database).await?;
        let (writer, service) =
            writer::open(writing, &signer, None, Arc::new(Metrics::default())).await?;
        let serving = tokio::spawn(service.run());
        Ok(Self { name, folder: folder.to_owned(), writer, serving })
    }
}

/// An access as a coordinator records it.
fn access() -> Result<Draft> {
    let actor = Actor {
        id: Some("spiffe://bench/ae-on/ae-az/operator/sara".parse()?),
        cert: Some(Digest::of(b"certificate")),
        address: Some("192.0.2.7:50123".into()),
        ..Actor::default()
    };
    Ok(Draft::new(Kind::AdminRead).actor(&actor).text("action", "study.read").decided(
        true,
        &["ACC-205".into()],
        &Digest::of(b"policies"),
    ))
}

/// Measures both databases; PostgreSQL only where it is installed.
pub(crate) fn run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(&[])?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let database = Database::Sqlite(dir.path().join("bench.sqlite"));
        measure(Log::open("SQLite", dir.path(), &database).await?).await?;
        let Some(server) = server else { return Ok(()) };
        let n = server.database().await?;
        let as_whom = |who: &str| server.options(&format!("{who}_{n}"), &format!("falaj_{n}"));
        store::init(&as_whom("owner"), &format!("writer_{n}")).await?;
        let database = Database::Postgres(Box::new(as_whom("writer")));
        measure(Log::open("PostgreSQL", server.dir(), &database).await?).await
    })
}

async fn measure(log: Log) -> Result<()> {
    for writers in WRITERS {
        let synced = syncs(&log.folder)?;
        let per_s = throughput(&log.writer, writers).await?;
        let limit = 1.0 / mean(&synced);
        let name = format!("{}, {writers} writers: entries / synced pages", log.name);
        let met = if per_s >= ENTRIES_AIM { "met" } else { "not met" };
        let detail =
            format!("({per_s:.0} entries/s, {limit:.0} syncs/s; aim {ENTRIES_AIM}/s {met})");
        super::report(&name, per_s / limit, "", &detail);
    }
    let synced = syncs(&log.folder)?;
    let (waits, late) = grants(&log.writer).await?;
    let [p50, p99] = [50, 99].map(|p| percentile(&waits, p));
    let [sync_50, sync_99] = [50, 99].map(|p| percentile(&synced, p));
    let met = if p99 <= GRANT_AIM { "met" } else { "not met" };
    let name = format!("{}, {GRANTS_PER_S} grants/s: p99 / p99 of a synced page", log.name);
    let detail = format!(
        "(p50 {p50:.2?}, p99 {p99:.2?}; synced page p50 {sync_50:.2?}, p99 {sync_99:.2?}; {late} refused; aim p99 {GRANT_AIM:?} {met})"
    );
    super::report(&name, p99.as_secs_f64() / sync_99.as_secs_f64(), "", &detail);
    drop(log.writer);
    log.serving.await?;
    Ok(())
}

/// How long each of many synced appends of a page takes, one after the other; in order of length.
fn syncs(folder: &Path) -> Result<Vec<Duration>> {
    let path = folder.join("synced");
    let mut file = File::create(&path)?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let started = Instant::now();
        file.write_all(&[0; PAGE])?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    fs::remove_file(path)?;
    times.sort_unstable();
    Ok(times)
}

fn mean(times: &[Duration]) -> f64 {
    let sum: Duration = times.iter().sum();
    sum.as_secs_f64() / f64::from(u32::try_from(times.len()).unwrap_or(u32::MAX))
}

/// The time within which so many of a hundred are done.
fn percentile(sorted: &[Duration], p: usize) -> Duration {
    let at = (sorted.len() * p).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

/// Entries a second that so many callers get acknowledged, one at a time each.
async fn throughput(writer: &Writer, writers: u32) -> Result<f64> {
    let draft = access()?;
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..writers {
        let (writer, draft) = (writer.clone(), draft.clone());
        callers.spawn(async move {
            let mut done = 0_u32;
            while started.elapsed() < SPAN {
                writer.record(vec![draft.clone()]).await?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    let mut all = 0.0;
    while let Some(done) = callers.join_next().await {
        all += f64::from(done??);
    }
    Ok(all / started.elapsed().as_secs_f64())
}

/// What each grant waited from when it was wanted, however late it was begun, in order; and how many were refused.
async fn grants(writer: &Writer) -> Result<(Vec<Duration>, u32)> {
    let draft = access()?;
    let started = Instant::now();
    let mut asked = JoinSet::new();
    for n in 0..GRANTS {
        let wanted = started + Duration::from_secs(1) * n / GRANTS_PER_S;
        tokio::time::sleep_until(wanted.into()).await;
        let (writer, draft) = (writer.clone(), draft.clone());
        asked.spawn(async move { writer.record(vec![draft]).await.map(|_| wanted.elapsed()) });
    }
    let (mut waits, mut refused) = (Vec::new(), 0);
    while let Some(done) = asked.join_next().await {
        match done? {
            Ok(wait) => waits.push(wait),
            Err(_) => refused += 1,
        }
    }
    waits.first().context("every grant was refused")?;
    waits.sort_unstable();
    Ok((waits, refused))
}
