//! AUD-04: while the audit log can take no entry, nothing is served; once it can, everything is again, without a restart.

use super::{
    server::Server,
    world::{PATIENCE, STUDY, World, text},
};
use anyhow::{Context as _, Result, ensure};
use axum::http::StatusCode;
use falaj_coordinator::store::{self, Database, writer::CommitError};
use falaj_core::audit::{Draft, Kind};
use falaj_proto::{
    problem::{Code, code_of},
    v1::{FetchModelRequest, federation_client::FederationClient},
};
use futures_util::{FutureExt as _, future::join_all};
use serde_json::Value;
use sqlx::{
    Connection as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqlitePool},
};
use tonic::Request;

/// What a site is told when it asks for the study's first model.
async fn fetch(world: &World) -> Result<Result<(), Code>> {
    let peer = world.site.clone();
    let admitted = move |mut request: Request<()>| {
        request.extensions_mut().insert(peer.clone());
        Ok(request)
    };
    let mut client = FederationClient::with_interceptor(world.rpc(), admitted);
    let models = world.store.models(&STUDY.parse()?).await?;
    let model_sha256 = models.first().context("a model")?.sha256.to_string();
    let request = FetchModelRequest { study: STUDY.into(), model_sha256 };
    match tokio::time::timeout(PATIENCE, client.fetch_model(request)).await.context("it hangs")? {
        Ok(_) => Ok(Ok(())),
        Err(status) => Ok(Err(code_of(&status).context("no code")?)),
    }
}

/// Every route and a site's call are refused with this code, and nothing but that happens. (The outcome of what was served
/// before may still come.)
async fn all_refused(world: &World, code: Code) -> Result<()> {
    let size = world.writer.head().0;
    let asked = World::every_route("none", "none", "none")?.into_iter().map(async |request| {
        let shown = format!("{} {}", request.method(), request.uri());
        let answer = world.ask(request, &world.operator).await?;
        let status = answer.status().as_u16();
        let problem: Value = serde_json::from_str(&text(answer).await?).context(shown.clone())?;
        ensure!(
            (status, problem["code"].as_str()) == (code.http(), Some(code.as_str())),
            "{shown}: {status} {problem}"
        );
        Ok(())
    });
    let (routes, fetched) = tokio::join!(join_all(asked), fetch(world));
    routes.into_iter().collect::<Result<Vec<()>>>()?;
    ensure!(fetched? == Err(code), "a model was served");
    let entries = world.entries(size).await?;
    let mut kinds = entries.iter().map(|e| e.kind);
    ensure!(kinds.all(|kind| kind == Kind::AccessServed), "the log has grown: {entries:?}");
    Ok(())
}

/// Everything is served again, and the log holds nothing of what was refused. (The outcome of what was served before may
/// still come.)
async fn all_served(world: &World, size: u64) -> Result<()> {
    world.get("status").await?;
    ensure!(fetch(world).await? == Ok(()), "no model");
    let entries = world.entries(size).await?;
    let kinds = entries.iter().map(|e| e.kind).filter(|kind| *kind != Kind::AccessServed);
    let kinds: Vec<Kind> = kinds.collect();
    ensure!(kinds == [Kind::AdminRead, Kind::ModelRead], "{kinds:?}");
    Ok(())
}

/// From now on the writer writes through connections like these.
async fn reconnected(pool: &SqlitePool, options: SqliteConnectOptions) -> Result<()> {
    pool.set_connect_options(options);
    pool.acquire().await?.close().await?;
    Ok(())
}

/// AUD-04.
#[tokio::test]
async fn a_full_store_refuses_everything_until_there_is_room() -> Result<()> {
    let world = World::new().await?;
    let size = world.writer.head().0;
    let usual = (*world.pool().connect_options()).clone();
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(world.pool()).await?;
    let full = usual.clone().pragma("max_page_count", pages.to_string());
    reconnected(world.pool(), full).await?;
    // What is left of the last pages is used up, by what takes the least.
    let filled = loop {
        let least = world.writer.record(vec![Draft::new(Kind::PolicyLoaded)]).await;
        if least.is_err() {
            break least;
        }
        ensure!(world.writer.head().0 < size + 10_000, "it is never full");
    };
    ensure!(matches!(filled, Err(CommitError::Full)), "{filled:?}");
    let size = world.writer.head().0;
    all_refused(&world, Code::StorageFull).await?;
    world.pool().set_connect_options(usual);
    all_served(&world, size).await
}

/// AUD-04.
#[tokio::test]
async fn a_read_only_store_refuses_everything_until_it_can_be_written() -> Result<()> {
    let world = World::new().await?;
    let size = world.writer.head().0;
    let usual = (*world.pool().connect_options()).clone();
    reconnected(world.pool(), usual.clone().read_only(true)).await?;
    all_refused(&world, Code::LogUnavailable).await?;
    world.pool().set_connect_options(usual);
    all_served(&world, size).await
}

/// AUD-04. Somebody else holds the database's lock for as long as it takes.
#[tokio::test]
async fn a_slow_store_refuses_everything_and_begins_nothing_that_was_given_up() -> Result<()> {
    let world = World::new().await?;
    let size = world.writer.head().0;
    let mut other = SqliteConnection::connect_with(&world.pool().connect_options()).await?;
    let lock = other.begin_with("BEGIN IMMEDIATE").await?;
    all_refused(&world, Code::LogUnavailable).await?;
    lock.rollback().await?;
    all_served(&world, size).await
}

/// AUD-04. The same with the log on a database server: no room, no writes, a lock that is not given back.
#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_a_store_that_is_full_read_only_or_slow_refuses_everything_until_it_is_not()
-> Result<()> {
    let Some(server) = Server::shared()? else { return Ok(()) };
    let n = server.database().await?;
    let (name, writer) = (format!("falaj_{n}"), format!("writer_{n}"));
    store::init(&server.options(&format!("owner_{n}"), &name), &writer).await?;
    let database = Database::Postgres(Box::new(server.options(&writer, &name)));
    let world = World::on(&database).await?;

    let size = world.writer.head().0;
    // The code that the server gives when it cannot extend a file.
    server.run(&name, &[
        "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$",
        "CREATE TRIGGER no_room BEFORE INSERT ON falaj.log_entries EXECUTE FUNCTION no_room()",
    ]).await?;
    all_refused(&world, Code::StorageFull).await?;
    server.run(&name, &["DROP TRIGGER no_room ON falaj.log_entries"]).await?;
    all_served(&world, size).await?;

    let size = world.writer.head().0;
    let read_only = format!("ALTER DATABASE {name} SET default_transaction_read_only =");
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{writer}'"
    );
    server.run("postgres", &[&format!("{read_only} on"), &end]).await?;
    all_refused(&world, Code::LogUnavailable).await?;
    server.run("postgres", &[&format!("{read_only} off")]).await?;
    all_served(&world, size).await?;

    let size = world.writer.head().0;
    let mut other = server.superuser(&name).await?;
    let mut lock = other.begin().await?;
    // What every transaction begins with: when the lock is given back, it is too late for those who waited.
    sqlx::query("LOCK TABLE falaj.writer IN EXCLUSIVE MODE").execute(&mut *lock).await?;
    all_refused(&world, Code::LogUnavailable).await?;
    lock.rollback().await?;
    all_served(&world, size).await
}

/// AUD-04. More commits wait than may wait.
#[tokio::test]
async fn a_full_queue_refuses_at_once_and_is_worked_off() -> Result<()> {
    let world = World::new().await?;
    let mut waiting = Vec::new();
    // Nothing here gives the writer its turn before the queue is full.
    let refused = loop {
        let mut commit = Box::pin(world.writer.record(vec![Draft::new(Kind::PolicyLoaded)]));
        match (&mut commit).now_or_never() {
            None => waiting.push(commit),
            Some(done) => break done,
        }
        ensure!(waiting.len() < 100_000, "there is no bound");
    };
    ensure!(matches!(refused, Err(CommitError::Busy)), "{refused:?}");
    let refused = world.refusal("status").await?;
    ensure!(refused == (StatusCode::TOO_MANY_REQUESTS, "busy".into()), "{refused:?}");
    let size = world.writer.head().0;
    let done = tokio::time::timeout(PATIENCE, join_all(waiting)).await?;
    let taken = done.iter().filter(|d| d.is_ok()).count() as u64;
    // On a slow machine some may have been given up; whatever was taken is there, and nothing else.
    ensure!(taken > 0 && world.writer.head().0 == size + taken, "{taken} of {}", done.len());
    world.get("status").await?;
    Ok(())
}
