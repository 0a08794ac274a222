//! AUD-04, its other half: the intent is an entry before, the outcome after.

use super::{
    server::Server,
    world::{STUDY, World, text},
};
use anyhow::{Context as _, Result, ensure};
use axum::{
    body::{Bytes, to_bytes},
    http::{Method, StatusCode},
};
use falaj_coordinator::{
    outcomes::{Intent, settle},
    rest::EXPORTS_MAX,
    store::{
        self, Database,
        writer::{CommitError, Committed},
    },
};
use falaj_core::{
    audit::{Actor, Draft, Entry, Kind},
    id::Digest,
};
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use std::io;

fn outcomes(entries: &[Entry]) -> Vec<(u64, String, Option<u64>)> {
    let served = entries.iter().filter(|e| e.kind == Kind::AccessServed);
    let told = served.map(|e| {
        let body = e.body();
        let outcome = body.text("outcome").unwrap_or_default().to_owned();
        (body.int("intent").unwrap_or_default(), outcome, body.int("bytes").ok())
    });
    told.collect()
}

async fn index_of(world: &World, kind: Kind) -> Result<u64> {
    let entries = world.entries(0).await?;
    Ok(entries.iter().rfind(|e| e.kind == kind).context("an intent")?.seq)
}

#[tokio::test]
async fn what_was_handed_over_is_told_afterwards_and_also_when_nobody_took_it_to_the_end()
-> Result<()> {
    let world = World::new().await?;
    let path = "/api/v1/studies/heart/models/latest";
    let answer = world.call(Method::GET, path).await?;
    let bytes = to_bytes(answer.into_body(), usize::MAX).await?.len() as u64;
    world.engine.parts().outcomes.drained().await;
    let read = index_of(&world, Kind::ModelRead).await?;
    ensure!(outcomes(&world.entries(0).await?) == [(read, "complete".to_owned(), Some(bytes))]);

    let answer = world.call(Method::GET, path).await?;
    let mut body = answer.into_body().into_data_stream();
    let begun = body.next().await.context("a chunk")??;
    drop(body);
    let never_begun = world.call(Method::GET, "/api/v1/log/export").await?;
    drop(never_begun);
    world.engine.parts().outcomes.drained().await;
    let told = outcomes(&world.entries(0).await?);
    let (read, exported) =
        (index_of(&world, Kind::ModelRead).await?, index_of(&world, Kind::LogExported).await?);
    let broken = |index, bytes| (index, "broken_off".to_owned(), Some(bytes));
    ensure!(told[1..] == [broken(read, begun.len() as u64), broken(exported, 0)], "{told:?}");
    Ok(())
}

/// AUD-14. Whoever looks for a model by its digest or its round finds those who downloaded it.
#[tokio::test]
async fn the_log_says_which_model_an_operator_downloaded() -> Result<()> {
    let world = World::new().await?;
    world.publish(2).await?;
    let number = world.promoted(2, &[]).await?;
    let models = world.store.models(&STUDY.parse()?).await?;
    let model = models.iter().find(|model| model.number == 2).context("a model")?.sha256;
    let mut reads = Vec::new();
    for (path, version) in
        [("models/2".to_owned(), None), (format!("versions/{number}/file"), Some(number))]
    {
        let path = format!("/api/v1/studies/{STUDY}/{path}");
        let answer = world.call(Method::GET, &path).await?;
        ensure!(answer.status() == StatusCode::OK, "{path}: {}", text(answer).await?);
        let index = index_of(&world, Kind::ModelRead).await?;
        let entry = world.entries(index).await?.into_iter().next().context("an entry")?;
        let body = entry.body();
        ensure!(body.parsed::<Digest>("model_sha256")? == model, "{path}: {entry:?}");
        ensure!(body.int::<u64>("round")? == 2 && body.int("version").ok() == version, "{entry:?}");
        reads.push(index);
    }
    for object in [model.to_string(), format!("{STUDY}/2")] {
        let found = world.get(&format!("log/accesses?object={object}")).await?;
        let found = found["items"].as_array().context("items")?;
        let has = |index: &u64| found.iter().any(|entry| entry["index"] == *index);
        ensure!(reads.iter().all(has), "{object}: {reads:?} in {found:?}");
    }
    Ok(())
}

/// Nothing was handed out, and no later start has to say that it does not know.
#[tokio::test]
async fn what_is_refused_after_its_intent_has_failed() -> Result<()> {
    let world = World::new().await?;
    world.publish(1).await?;
    let number = world.promoted(1, &[]).await?;
    let revoke = format!("studies/{STUDY}/versions/{number}/revoke");
    let (status, told) =
        world.post(&revoke, &json!({ "reason": "withdrawn" }), &world.operator).await?;
    ensure!(status == StatusCode::OK, "{told}");
    for (path, kind) in [
        (format!("studies/{STUDY}/versions/{number}/file"), Kind::ModelRead),
        (format!("studies/{STUDY}/versions/9/file"), Kind::ModelRead),
        (format!("studies/{STUDY}/models/1?place=nowhere"), Kind::ModelRead),
        ("log/export?tree_size=999".to_owned(), Kind::LogExported),
        ("log/export?timestamp=true".to_owned(), Kind::LogExported),
        ("log/mirror?from=999&place=ae-on/ae-az".to_owned(), Kind::LogExported),
    ] {
        let answer = world.call(Method::GET, &format!("/api/v1/{path}")).await?;
        ensure!(answer.status().is_client_error(), "{path}: {}", answer.status());
        world.engine.parts().outcomes.drained().await;
        let intent = index_of(&world, kind).await?;
        let told = outcomes(&world.entries(intent).await?);
        ensure!(told == [(intent, "failed".to_owned(), Some(0))], "{path}: {told:?}");
    }
    ensure!(settle(&world.store, &world.writer).await? == 0, "one is left");
    Ok(())
}

/// Each is a copy of the log on the coordinator's disk for as long as its reader takes.
#[tokio::test]
async fn so_many_exports_at_once_and_no_more() -> Result<()> {
    let world = World::new().await?;
    let paths = ["/api/v1/log/export", "/api/v1/log/mirror?from=0&place=ae-on/ae-az"];
    let mut taken = Vec::new();
    for path in paths.into_iter().cycle().take(EXPORTS_MAX) {
        let answer = world.call(Method::GET, path).await?;
        ensure!(answer.status() == StatusCode::OK, "{path}: {}", text(answer).await?);
        taken.push(answer);
    }
    for path in ["log/export", "log/mirror?from=0&place=ae-on/ae-az"] {
        let busy = world.refusal(path).await?;
        ensure!(busy == (StatusCode::TOO_MANY_REQUESTS, "busy".into()), "{path}: {busy:?}");
    }
    // One that is read to its end makes room, and so does one that nobody reads.
    to_bytes(taken.pop().context("an answer")?.into_body(), usize::MAX).await?;
    drop(taken.pop());
    for path in paths {
        let answer = world.call(Method::GET, path).await?;
        ensure!(answer.status() == StatusCode::OK, "{path}: {}", text(answer).await?);
        taken.push(answer);
    }
    Ok(())
}

#[tokio::test]
async fn what_became_of_an_access_when_the_coordinator_died_is_said_to_be_unknown_once()
-> Result<()> {
    unknown_once(&World::new().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_too_it_is_said_once() -> Result<()> {
    let Some(server) = Server::shared()? else { return Ok(()) };
    let n = server.database().await?;
    let (name, writer) = (format!("falaj_{n}"), format!("writer_{n}"));
    store::init(&server.options(&format!("owner_{n}"), &name), &writer).await?;
    let database = Database::Postgres(Box::new(server.options(&writer, &name)));
    unknown_once(&World::on(&database).await?).await
}

async fn unknown_once(world: &World) -> Result<()> {
    let record = async |kind: Kind| -> Result<Committed, CommitError> {
        world.writer.record(vec![Draft::new(kind)]).await
    };
    record(Kind::CoordinatorStarted).await?;
    let told = record(Kind::ModelRead).await?.first;
    let served = Draft::new(Kind::AccessServed).count("intent", told).text("served", "model.read");
    world.writer.record(vec![served]).await?;
    let lost = [record(Kind::ModelRead).await?.first, record(Kind::LogExported).await?.first];

    let before = world.writer.head().0;
    let store = &world.engine.parts().store;
    ensure!(settle(store, &world.writer).await? == 2);
    let told = outcomes(&world.entries(before).await?);
    ensure!(told == lost.map(|index| (index, "unknown".to_owned(), None)), "{told:?}");
    ensure!(settle(store, &world.writer).await? == 0, "they were told twice");
    record(Kind::CoordinatorStarted).await?;
    ensure!(settle(store, &world.writer).await? == 0, "they were told again after a start");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_read_to_its_end_has_failed() -> Result<()> {
    let world = World::new().await?;
    let kind = Kind::ModelRead;
    let index = world.writer.record(vec![Draft::new(kind)]).await?.first;
    let outcomes_of = &world.engine.parts().outcomes;
    let intent = Intent { index, kind, actor: Actor::default(), study: None };
    let read = [Ok(Bytes::from_static(b"half")), Err(io::Error::other("a disk that fails"))];
    let mut body = outcomes_of.serving(intent).watch(8, stream::iter(read));
    while body.next().await.is_some() {}
    drop(body);
    outcomes_of.drained().await;
    let told = outcomes(&world.entries(index).await?);
    ensure!(told == [(index, "failed".to_owned(), Some(4))], "{told:?}");
    Ok(())
}
