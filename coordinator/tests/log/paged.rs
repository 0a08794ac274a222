//! Lists come in pages, and a walk over them finds everything once.

use super::{
    versions::gave,
    world::{REVOKED, STUDY, World, study, text},
};
use anyhow::{Context as _, Result, ensure};
use axum::http::{Request, StatusCode};
use falaj_coordinator::erasure::Asker;
use falaj_core::id::SpiffeId;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Pages in a list, at most.
const PAGES_MAX: usize = 100;

fn with(path: &str, query: &str) -> String {
    let sign = if path.contains('?') { '&' } else { '?' };
    format!("{path}{sign}{query}")
}

/// The first page, or the one after another.
async fn page(
    world: &World,
    path: &str,
    (limit, cursor): (usize, Option<&str>),
) -> Result<(Vec<Value>, Option<String>)> {
    let after = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
    let page = world.get(&with(path, &format!("limit={limit}{after}"))).await?;
    let items = page["items"].as_array().with_context(|| format!("{path}: {page}"))?.clone();
    ensure!(items.len() <= limit, "{path}: {} on a page of {limit}", items.len());
    Ok((items, page["next"].as_str().map(str::to_owned)))
}

/// Everything in a list from a place on, in pages.
async fn walk(
    world: &World,
    path: &str,
    limit: usize,
    mut cursor: Option<String>,
) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for _ in 0..PAGES_MAX {
        let (items, next) = page(world, path, (limit, cursor.as_deref())).await?;
        all.extend(items);
        match next {
            Some(next) => cursor = Some(next),
            None => return Ok(all),
        }
    }
    anyhow::bail!("{path} has no end: {all:?}")
}

/// Several of everything that there is a list of.
async fn seeded() -> Result<World> {
    let world = World::new().await?;
    world.with_versions().await?;
    world.stamp().await?;
    let actor = &world.operator.actor;
    let sara = Asker { id: actor.id.as_ref().context("an operator")?, actor, once: None };
    for n in 0..5_u32 {
        let name = format!("h-{n}");
        world.enrolments.offer(sara, &name, "ae-on/ae-az", 3_600).await?;
        world.revocations.revoke(sara, &format!("{REVOKED}-{n}"), "left").await?;
        world.erasures.place(sara, (None, Some(STUDY)), "Article 1").await?;
        let person: SpiffeId = format!("spiffe://falaj.test/ae-on/ae-az/operator/p-{n}").parse()?;
        world.persons.meet(&person)?;
        let asked = json!({ "action": "log.export", "for": person.to_string() });
        let (status, given) = world.post("approvals", &asked, &world.operator).await?;
        ensure!(status == StatusCode::CREATED, "{given}");
        let request = Request::post("/api/v1/studies").body(study(&format!("s-{n}")).into())?;
        let answer = world.ask(request, &world.operator).await?;
        ensure!(answer.status() == StatusCode::CREATED, "{}", text(answer).await?);
        let site = format!("spiffe://falaj.test/ae-on/ae-az/site/h-{n}").parse()?;
        let (address, agent) = ("127.0.0.1:1".to_owned(), "1".to_owned());
        world.engine.sites().connect(&site, address, agent, Vec::new(), [].into());
        world.stamp_of(u64::from(n) + 2, &format!("note {n}")).await?;
    }
    Ok(world)
}

/// What tells one thing in a list from another. A study goes on while it is looked at.
fn name(path: &str, item: &Value) -> String {
    let named = if path == "studies" { &item["id"] } else { item };
    named.to_string()
}

#[tokio::test]
async fn a_walk_over_a_list_finds_everything_once() -> Result<()> {
    let world = seeded().await?;
    let (models, versions) =
        (format!("studies/{STUDY}/models"), format!("studies/{STUDY}/versions"));
    for path in [
        "approvals",
        "enrolment-tokens",
        "holds",
        "log/timestamps",
        "persons",
        "revocations",
        "sites",
        "studies",
        &*models,
        &*versions,
    ] {
        let names = |items: &[Value]| items.iter().map(|i| name(path, i)).collect::<Vec<_>>();
        let whole = names(&walk(&world, path, 200, None).await?);
        ensure!(whole.len() >= 5, "{path}: {whole:?}");
        for limit in [1, 2, whole.len()] {
            let found = names(&walk(&world, path, limit, None).await?);
            ensure!(found == whole, "{path} by {limit}: {found:?}, and there are {whole:?}");
        }
        let of = (whole.len(), None);
        let (_, next) = page(&world, path, of).await?;
        ensure!(next.is_none(), "{path}: nothing comes after {next:?}");
    }
    Ok(())
}

#[tokio::test]
async fn rounds_and_their_models_are_walked_over_in_their_order() -> Result<()> {
    let world = World::new().await?;
    for number in 2..=6 {
        gave(&world, number).await?;
    }
    for (list, numbers) in [("rounds", vec![1, 2, 3, 4, 5, 6]), ("models", vec![0, 2, 3, 4, 5, 6])]
    {
        let path = format!("studies/{STUDY}/{list}");
        let found = walk(&world, &path, 2, None).await?;
        let found: Vec<_> = found.iter().filter_map(|item| item["round"].as_u64()).collect();
        ensure!(found == numbers, "{list}: {found:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_was_there_is_found_once_though_the_list_grows_meanwhile() -> Result<()> {
    let world = seeded().await?;
    let actor = &world.operator.actor;
    let sara = Asker { id: actor.id.as_ref().context("an operator")?, actor, once: None };
    let there: BTreeSet<String> =
        walk(&world, "holds", 200, None).await?.iter().map(Value::to_string).collect();
    let (mut found, mut cursor) = page(&world, "holds", (2, None)).await?;
    for _ in 0..PAGES_MAX {
        world.erasures.place(sara, (None, Some(STUDY)), "Article 2").await?;
        let Some(after) = cursor else { break };
        let (items, next) = page(&world, "holds", (2, Some(&after))).await?;
        found.extend(items);
        cursor = next;
    }
    let once: BTreeSet<String> = found.iter().map(Value::to_string).collect();
    ensure!(once.len() == found.len() && once.is_superset(&there), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn a_page_without_room_or_with_too_much_is_refused() -> Result<()> {
    let world = World::new().await?;
    let (models, rounds) = (format!("studies/{STUDY}/models"), format!("studies/{STUDY}/rounds"));
    for path in [
        "approvals",
        "enrolment-tokens",
        "holds",
        "log/shards",
        "log/timestamps",
        "log/witnesses",
        "persons",
        "revocations",
        "sites",
        "studies",
        "versions",
        &*models,
        &*rounds,
    ] {
        for query in ["limit=0", "limit=201", "limit=many"] {
            let (status, code) = world.refusal(&with(path, query)).await?;
            ensure!(status == StatusCode::BAD_REQUEST && code == "malformed", "{path}: {code}");
        }
    }
    for (path, cursor) in [(&*models, "latest"), (&*rounds, "1"), ("log/shards", "x")] {
        let (status, code) = world.refusal(&with(path, &format!("cursor={cursor}"))).await?;
        ensure!(status == StatusCode::BAD_REQUEST && code == "malformed", "{path}: {code}");
    }
    Ok(())
}
