//! The log of a coordinator that is killed, and whose disk fails, at any moment: nothing acknowledged is lost, and no two
//! checkpoints contradict each other.
//!
//! Whoever writes is a process of its own, this very program started again ([`child`]); what it was told is kept by
//! whoever started it, and held against the database afterwards ([`told`]). What becomes of a database server that is
//! killed is in the store's own tests, and of one whose disk fails in [`serving`].
//!
//! `FALAJ_KILLS=500` and `FALAJ_FAULTS=all` make it long; `FALAJ_SEED` has the same faults chosen again.

mod child;
mod injected;
mod serving;
mod told;

#[path = "../store/server.rs"]
mod server;

use anyhow::{Context as _, Result, ensure};
use child::{Child, Load, Place};
use server::Server;
use std::{
    env,
    io::{self, Write as _},
    str::FromStr,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use told::Told;

/// Kills of each log, unless `FALAJ_KILLS` says otherwise.
const KILLS: u32 = 15;
/// Lines that a child may say before it is killed.
const LINES: u64 = 400;
/// How long after that line it is killed at most, in microseconds.
const AFTER_LINE: u64 = 3_000;
/// How long after its start, where it may not have opened the log yet.
const AFTER_START: u64 = 60_000;
/// Every so many kills are told of.
const TOLD_EVERY: u32 = 50;

/// Numbers that look random: xorshift64.
struct Random(u64);

impl Random {
    /// From `FALAJ_SEED`, or the clock. It is told, so that the same choices can be had again.
    fn seeded() -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let seed = setting("FALAJ_SEED").unwrap_or(u64::from(now.subsec_nanos())).max(1);
        tell(&format!("FALAJ_SEED={seed}"))?;
        Ok(Self(seed))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A number that the environment sets.
fn setting<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

/// Says it aloud: what the macros write is only seen when a test fails.
fn tell(what: &str) -> io::Result<()> {
    writeln!(io::stderr(), "{what}")
}

/// Kills whoever writes a log, at random instants, again and again; `settled` waits until nothing of it is left.
async fn killed_again_and_again(
    place: &Place,
    mut settled: impl AsyncFnMut() -> Result<()>,
) -> Result<()> {
    let mut random = Random::seeded()?;
    let kills = setting("FALAJ_KILLS").unwrap_or(KILLS);
    let (mut told, mut opening) = (Told::default(), 0);
    for kill in 1..=kills {
        let mut child = Child::start(place, Load::Endless, &[])?;
        // One in four dies while it opens the log, or soon after.
        let (lines, pause) = if random.below(4) == 0 {
            (0, random.below(AFTER_START))
        } else {
            (1 + random.below(LINES), random.below(AFTER_LINE))
        };
        let mut heard = Told::default();
        for _ in 0..lines {
            let line = child.line()?;
            heard.take(&line.with_context(|| format!("kill {kill}: it ended by itself"))?)?;
        }
        thread::sleep(Duration::from_micros(pause));
        child.kill()?;
        while let Some(line) = child.line()? {
            heard.take(&line)?;
        }
        let end = child.end()?;
        ensure!(end.killed, "kill {kill}: it ended by itself: {}", end.said);
        ensure!(heard.refused == 0, "kill {kill}: {} were refused", heard.refused);
        opening += u32::from(heard.opened.is_none());
        settled().await?;
        told.extend(heard, place).await?;
        if kill % TOLD_EVERY == 0 {
            tell(&format!("{kill} kills, {} entries acknowledged", told.entries.len()))?;
        }
    }
    // A last one that nobody kills, in the state that all of them left.
    told.extend(child::undisturbed(place)?, place).await?;
    let size = told.hold(place).await?;
    ensure!(kills == 0 || told.entries.len() > 100, "only {} entries", told.entries.len());
    tell(&format!(
        "{kills} kills ({opening} before the log was open), {size} entries, {} of them acknowledged, {} checkpoints",
        told.entries.len(),
        told.signed.len()
    ))?;
    Ok(())
}

/// AUD-03: in a SQLite file, a coordinator that is killed under load loses nothing that it acknowledged.
#[tokio::test]
async fn on_sqlite_nothing_acknowledged_is_lost_when_the_coordinator_is_killed_under_load()
-> Result<()> {
    let dir = tempfile::tempdir()?;
    killed_again_and_again(&Place::sqlite(dir.path()), async || Ok(())).await
}

/// AUD-03: the same in a PostgreSQL database, whose server goes on.
#[tokio::test]
async fn on_postgresql_nothing_acknowledged_is_lost_when_the_coordinator_is_killed_under_load()
-> Result<()> {
    let Some(server) = Server::shared()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let n = server.database().await?;
    let (database, writer) = (format!("falaj_{n}"), format!("writer_{n}"));
    let owner = server.options(&format!("owner_{n}"), &database);
    falaj_coordinator::store::init(&owner, &writer).await?;
    let place = Place::postgres(dir.path(), &server.url(&writer, &database));
    let mut superuser = server.superuser("postgres").await?;
    // Until its session is gone the server may still commit what a dead coordinator asked for.
    let left = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
    killed_again_and_again(&place, async || {
        loop {
            let left = sqlx::query_scalar::<_, i64>(left).bind(&database);
            if left.fetch_one(&mut superuser).await? == 0 {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}
