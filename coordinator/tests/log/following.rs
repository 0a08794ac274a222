//! Following the log: entries as they become durable, for readers fast and slow, over the router and over TLS.

use super::world::{PATIENCE, World, credentials, party, policies, text};
use anyhow::{Context as _, Result, bail, ensure};
use axum::{
    body::Body,
    http::{Request, StatusCode},
    response::Response,
};
use falaj_certs::{
    ca::Authority,
    tls::{ServerExpectation, client_config},
    trust::TrustStore,
};
use falaj_coordinator::{
    app::App,
    config::{
        Config, DeclaredConfig, EvidenceConfig, IdentityConfig, Limits, ListenConfig, LogConfig,
        PolicyConfig, RevocationConfig, RolesConfig, StateConfig,
    },
    rest::TAILS_MAX,
};
use falaj_core::{
    audit::{Draft, Kind},
    id::Role,
};
use futures_util::{Stream, StreamExt as _};
use serde_json::Value;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use std::pin::Pin;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// One event: its kind, which entries have none, and its data.
type Event = (String, Value);

/// Events as they come.
struct Events {
    body: Pin<Box<dyn Stream<Item = Result<Vec<u8>>>>>,
    text: String,
}

impl Events {
    fn of(answer: Response) -> Self {
        let body = answer.into_body().into_data_stream();
        Self { body: Box::pin(body.map(|part| Ok(part?.to_vec()))), text: String::new() }
    }

    /// The next event; none when there are no more.
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                let field = |name: &str| {
                    event.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned())
                };
                let (kind, data) = (field("event:").unwrap_or_default(), field("data:"));
                let Some(data) = data else { continue };
                let data = serde_json::from_str(&data).unwrap_or(Value::String(data));
                return Ok(Some((kind, data)));
            }
            match tokio::time::timeout(PATIENCE, self.body.next()).await.context("it hangs")? {
                Some(part) => self.text.push_str(std::str::from_utf8(&part?)?),
                None => return Ok(None),
            }
        }
    }

    /// The index of the next entry.
    async fn index(&mut self) -> Result<u64> {
        match self.next().await? {
            Some((kind, entry)) if kind.is_empty() => entry["index"].as_u64().context("an index"),
            other => bail!("{other:?} is no entry"),
        }
    }
}

async fn tail(world: &World, query: &str, seen: Option<u64>) -> Result<Response> {
    let mut request = Request::get(format!("/api/v1/log/tail?{query}"));
    if let Some(seen) = seen {
        request = request.header("last-event-id", seen);
    }
    world.ask(request.body(Body::empty())?, &world.operator).await
}

async fn grown(world: &World, by: u64) -> Result<()> {
    for _ in 0..by / 100 {
        world
            .writer
            .record((0..100).map(|n| Draft::new(Kind::PolicyLoaded).count("n", n)).collect())
            .await?;
    }
    Ok(())
}

/// Entries that say that somebody follows the log, and passes it on to Dubai.
async fn recorded(world: &World) -> Result<usize> {
    let entries = world.entries(0).await?;
    let follows = |e: &&falaj_core::audit::Entry| {
        let asked = e.body().member("asked");
        asked.is_some_and(|asked| {
            asked.text("tail").is_ok() && asked.text("place") == Ok("ae-on/ae-du")
        })
    };
    Ok(entries.iter().filter(follows).count())
}

/// AUD-14: a stream is recorded when it begins, and again with every thousand entries.
#[tokio::test]
async fn entries_come_in_order_without_a_gap_and_the_stream_is_recorded_again_and_again()
-> Result<()> {
    let world = World::new().await?;
    let size = world.writer.head().0;
    let query = "last=1&follow=true&place=ae-on/ae-du";
    let mut events = Events::of(tail(&world, query, None).await?);
    grown(&world, 2_500).await?;
    let mut wanted = size - 1;
    while wanted < size + 2_500 {
        ensure!(events.index().await? == wanted, "entry {wanted} does not come");
        wanted += 1;
    }
    // The stream's own records are entries like others, and those come too.
    ensure!(recorded(&world).await? == 3, "{} records", recorded(&world).await?);
    ensure!(events.index().await? == wanted);
    // It goes on where a reader was.
    drop(events);
    let mut again = Events::of(tail(&world, "follow=true", Some(7)).await?);
    ensure!(again.index().await? == 8);
    Ok(())
}

#[tokio::test]
async fn nothing_is_read_ahead_of_a_slow_reader() -> Result<()> {
    let world = World::new().await?;
    let mut events = Events::of(tail(&world, "follow=true&place=ae-on/ae-du", None).await?);
    let first = events.index().await?;
    let before = world.writer.head().0;
    grown(&world, 5_000).await?;
    // Reading on would have been recorded by now.
    ensure!(world.writer.head().0 == before + 5_000, "somebody read ahead");
    ensure!(recorded(&world).await? == 1);
    for n in 1..5_000 {
        ensure!(events.index().await? == first + n);
    }
    Ok(())
}

#[tokio::test]
async fn without_follow_it_ends_with_what_was_there() -> Result<()> {
    let world = World::new().await?;
    grown(&world, 300).await?;
    let size = world.writer.head().0;
    let mut events = Events::of(tail(&world, "last=250", None).await?);
    for index in size - 250..size {
        ensure!(events.index().await? == index);
    }
    let end = events.next().await?.context("an end")?;
    ensure!(end.0 == "end" && events.next().await?.is_none(), "{end:?}");
    Ok(())
}

/// AUD-04: a stream that can no longer be recorded ends, and says why.
#[tokio::test]
async fn a_stream_ends_when_the_log_takes_no_more_entries() -> Result<()> {
    let world = World::new().await?;
    grown(&world, 1_500).await?;
    let mut events = Events::of(tail(&world, "last=1000&follow=true", None).await?);
    ensure!(events.index().await? > 0);
    let mut other = SqliteConnection::connect_with(&world.pool().connect_options()).await?;
    let lock = other.begin_with("BEGIN IMMEDIATE").await?;
    let mut served = 1;
    let last = loop {
        match events.next().await?.context("no end")? {
            (kind, _) if kind.is_empty() => served += 1,
            last => break last,
        }
    };
    ensure!(served >= 1_000 && last.0 == "problem", "{served}, {last:?}");
    ensure!(last.1["code"] == "log_unavailable", "{last:?}");
    ensure!(events.next().await?.is_none());
    lock.rollback().await?;
    Ok(())
}

#[tokio::test]
async fn there_is_room_for_so_many_and_a_reader_who_leaves_makes_room() -> Result<()> {
    let world = World::new().await?;
    let mut open = Vec::new();
    for _ in 0..TAILS_MAX {
        open.push(tail(&world, "follow=true", None).await?);
    }
    let one_more = tail(&world, "follow=true", None).await?;
    ensure!(one_more.status() == StatusCode::TOO_MANY_REQUESTS, "{}", one_more.status());
    open.pop();
    ensure!(tail(&world, "follow=true", None).await?.status() == StatusCode::OK);
    let bad = tail(&world, "follow=true", Some(1 << 40)).await?;
    ensure!(bad.status() == StatusCode::BAD_REQUEST, "{}", text(bad).await?);
    Ok(())
}

/// AUD-04, and the end of a stream: a whole coordinator over TLS.
#[tokio::test]
async fn a_coordinator_that_ends_says_so_to_those_who_follow_and_one_that_cannot_log_lets_nobody_in()
-> Result<()> {
    let dir = tempfile::tempdir()?;
    let home = party(dir.path(), Role::Coordinator, "main")?;
    let operator = credentials(&party(dir.path(), Role::Operator, "sara")?)?;
    let trust = Authority::open(&dir.path().join("ca"))?.trust_path();
    let local = "127.0.0.1:0".parse()?;
    let state = dir.path().join("state");
    let config = Config {
        identity: IdentityConfig {
            cert: home.join("cert.pem"),
            key: (&home.join("key.pem")).into(),
            trust: trust.clone(),
        },
        listen: ListenConfig { grpc: local, rest: local, metrics: None, tiles: None },
        state: StateConfig {
            dir: state.clone(),
            database: None,
            model_key: None,
            model_keys_before: Vec::new(),
        },
        log: LogConfig {
            origin: "falaj.test/log".into(),
            key: None,
            retiring: None,
            high_water: None,
            ml_dsa_key: None,
            timestamps: None,
            reports: None,
            retention: None,
            witnesses: Vec::new(),
        },
        policy: PolicyConfig { dir: policies() },
        revocation: RevocationConfig::default(),
        evidence: EvidenceConfig::default(),
        declared: DeclaredConfig::default(),
        roles: RolesConfig::default(),
        oidc: None,
        tracking: None,
        enrolment: None,
        limits: Limits::default(),
    };
    let shutdown = CancellationToken::new();
    let app = App::open(config, &shutdown).await?;
    let (ready, bound) = oneshot::channel();
    let running = tokio::spawn(app.run(shutdown.clone(), |bound| {
        ready.send(bound).map_err(|_| anyhow::anyhow!("nobody waits"))
    }));
    let server = format!("https://{}/api/v1", bound.await?.rest);
    let expect = ServerExpectation::coordinator(&["ae-on/*"]);
    let tls = client_config(&operator, &TrustStore::load(&trust)?, &expect, &["http/1.1"])?;
    let client = || reqwest::Client::builder().tls_backend_preconfigured(tls.clone()).build();
    let follower = client()?.get(format!("{server}/log/tail?last=1&follow=true")).send().await?;
    ensure!(follower.status() == 200, "{}", follower.status());
    let body = follower.bytes_stream().map(|part| Ok(part?.to_vec()));
    let mut events = Events { body: Box::pin(body), text: String::new() };
    let first = events.index().await?;
    ensure!(events.index().await? == first + 1);
    // The log takes nothing: whoever comes now is told so, and nothing else.
    let options = SqliteConnectOptions::new().filename(state.join("coordinator.sqlite"));
    let mut other = SqliteConnection::connect_with(&options).await?;
    let lock = other.begin_with("BEGIN IMMEDIATE").await?;
    let refused = client()?.get(format!("{server}/status")).send().await?;
    ensure!(refused.status() == 503, "{}", refused.status());
    ensure!(refused.json::<Value>().await?["code"] == "log_unavailable");
    lock.rollback().await?;
    let served = client()?.get(format!("{server}/status")).send().await?;
    ensure!(served.status() == 200, "{}", served.status());
    // A new connection and what it asked for.
    ensure!(events.index().await? == first + 2 && events.index().await? == first + 3);
    shutdown.cancel();
    let end = events.next().await?.context("an end")?;
    ensure!(end.0 == "end", "{end:?}");
    ensure!(events.next().await?.is_none());
    tokio::time::timeout(PATIENCE, running).await???;
    Ok(())
}
