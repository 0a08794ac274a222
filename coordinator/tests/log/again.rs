//! Changes that are asked for again: whoever got no answer sends the same request under the same key, and it is made once.

use super::world::{LAYLA, OMAR, REVOKED, STUDY, World, text};
use anyhow::{Context as _, Result, ensure};
use axum::{
    body::{Body, Bytes, to_bytes},
    http::{Method, Request, StatusCode},
};
use falaj_coordinator::{accept::Peer, erasure::Asker};
use falaj_core::{
    audit::{Entry, Kind},
    id::Digest,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// What is answered to a document that somebody posts under a key.
async fn post(
    world: &World,
    path: &str,
    (key, document): (&str, Bytes),
    who: &Arc<Peer>,
) -> Result<(StatusCode, Value)> {
    let request = Request::post(path).header("idempotency-key", key).body(Body::from(document))?;
    let answer = world.ask(request, who).await?;
    let status = answer.status();
    let answered = text(answer).await?;
    Ok((status, serde_json::from_str(&answered).with_context(|| format!("{path}: {answered}"))?))
}

fn hold_on(person: &str) -> Bytes {
    json!({ "person": person, "article": "Article 1" }).to_string().into()
}

/// The entries, of those from an index on, that were made under any key.
async fn keyed(world: &World, from: u64) -> Result<Vec<Entry>> {
    let is = |entry: &Entry| entry.body().find::<Digest>("idempotency_sha256").is_some();
    Ok(world.entries(from).await?.into_iter().filter(is).collect())
}

/// Goes over every route that changes something: a new one that forgets its key fails here.
#[tokio::test]
async fn every_change_that_comes_again_under_its_key_is_made_once() -> Result<()> {
    let world = World::new().await?;
    world.with_versions().await?;
    world.persons.meet(&LAYLA.parse()?)?;
    let actor = &world.operator.actor;
    let sara = Asker { id: actor.id.as_ref().context("an operator")?, actor, once: None };
    world.revocations.revoke(sara, REVOKED, "left").await?;
    let hold = world.erasures.place(sara, (None, Some(STUDY)), "Article 1").await?;
    let token = world.enrolments.offer(sara, "late", "ae-on/ae-az", 60).await?;
    let asked = json!({ "action": "model.read", "study": STUDY, "for": OMAR });
    let (_, approval) = world.post("approvals", &asked, &world.operator).await?;
    let approval = approval["approval"].as_str().context("an approval")?;
    let mut changes = 0;
    for request in World::every_route(&hold.id, &token.id, approval)? {
        if request.method() != Method::POST {
            continue;
        }
        let (parts, body) = request.into_parts();
        let (path, document) = (parts.uri.path(), to_bytes(body, usize::MAX).await?);
        let key = format!("again:{path}");
        let before = world.writer.head().0;
        let ask = async |document: &Bytes| {
            post(&world, path, (&key, document.clone()), &world.operator).await
        };
        let (status, first) = ask(&document).await?;
        let (again, second) = ask(&document).await?;
        // The one shard that there is cannot be pruned, and no candidate waits for people.
        if path.ends_with("/prunings") || path.contains("/candidate/") {
            ensure!(!status.is_success() && again == status, "{path}: {first} {second}");
            ensure!(keyed(&world, before).await?.is_empty(), "{path}: nothing was changed");
            continue;
        }
        ensure!(status.is_success(), "{path}: {status} {first}");
        if path.ends_with("/enrolment-tokens") {
            // Its secret is nowhere.
            let told = second["detail"].as_str().unwrap_or_default();
            let id = first["id"].as_str().context("an id")?;
            ensure!(again == StatusCode::CONFLICT && told.contains(id), "{path}: {again} {second}");
        } else {
            ensure!(again == status, "{path}: {again} {second}");
            // A study goes on meanwhile.
            let is_study = path.ends_with("/studies") || path.ends_with("/stop");
            let same = if is_study { first["id"] == second["id"] } else { first == second };
            ensure!(same, "{path}: {second}, and before {first}");
        }
        let made = keyed(&world, before).await?;
        ensure!(made.len() == 1, "{path}: {made:?}");
        ensure!(made[0].kind != Kind::AccessDenied, "{path}: {made:?}");
        // That it came again is an access.
        let entries = world.entries(made[0].seq + 1).await?;
        let looked = entries
            .iter()
            .any(|e| e.kind == Kind::AdminRead && e.actor_person() == world.operator.actor.person);
        ensure!(looked, "{path}: {entries:?}");
        let other = [&document[..], b"\n"].concat().into();
        let (status, told) = ask(&other).await?;
        let code = &told["code"];
        ensure!(status == StatusCode::CONFLICT && code == "conflict", "{path}: {status} {told}");
        ensure!(keyed(&world, before).await?.len() == 1, "{path}: it was made again");
        changes += 1;
    }
    ensure!(changes >= 17, "{changes} changes");
    Ok(())
}

#[tokio::test]
async fn a_key_is_its_callers_own_and_belongs_to_one_request() -> Result<()> {
    let world = World::new().await?;
    world.persons.meet(&LAYLA.parse()?)?;
    let (sara, omar) = (&world.operator, &world.person("omar")?);
    let ask = async |path: &str, document: Bytes, who: &Arc<Peer>| {
        post(&world, &format!("/api/v1/{path}"), ("one", document), who).await
    };
    let (status, first) = ask("holds", hold_on(LAYLA), sara).await?;
    ensure!(status == StatusCode::CREATED, "{first}");
    let (status, others) = ask("holds", hold_on(LAYLA), omar).await?;
    ensure!(status == StatusCode::CREATED && others["hold"] != first["hold"], "{others}");
    let (status, again) = ask("holds", hold_on(LAYLA), sara).await?;
    ensure!(status == StatusCode::CREATED && again == first, "{again}, and before {first}");
    // Another route under the key does nothing, whatever it is asked.
    let study = super::world::study("other");
    let before = world.writer.head().0;
    for (path, document) in [
        ("holds", hold_on(OMAR)),
        (&*format!("holds/{}/release", first["hold"].as_str().context("a hold")?), Bytes::new()),
        ("studies", study.into()),
        (&*format!("studies/{STUDY}/stop"), Bytes::new()),
    ] {
        let (status, told) = ask(path, document, sara).await?;
        ensure!(status == StatusCode::CONFLICT && told["code"] == "conflict", "{path}: {told}");
    }
    ensure!(keyed(&world, before).await?.is_empty(), "something was done");
    ensure!(world.get(&format!("studies/{STUDY}")).await?["state"] == "running");
    Ok(())
}

/// Both find that nothing was done yet, unless one waits for the other.
#[tokio::test]
async fn of_two_that_come_at_once_under_one_key_one_makes_the_change() -> Result<()> {
    let world = World::new().await?;
    world.publish(1).await?;
    world.persons.meet(&LAYLA.parse()?)?;
    let token = json!({ "name": "newcomer", "place": "ae-on/ae-az", "ttl_s": 60 }).to_string();
    let stop = format!("/api/v1/studies/{STUDY}/stop");
    let versions = format!("/api/v1/studies/{STUDY}/versions");
    for (path, document, both) in [
        ("/api/v1/holds", hold_on(LAYLA), true),
        ("/api/v1/enrolment-tokens", token.into(), false),
        ("/api/v1/studies", super::world::study("other").into(), true),
        (&*versions, Bytes::from_static(br#"{"round":1}"#), true),
        (&*stop, Bytes::new(), true),
    ] {
        let before = world.writer.head().0;
        let ask = || post(&world, path, (path, document.clone()), &world.operator);
        let (one, other) = tokio::join!(ask(), ask());
        let answers = [one?, other?];
        let served = answers.iter().filter(|(status, _)| status.is_success()).count();
        ensure!(served == if both { 2 } else { 1 }, "{path}: {answers:?}");
        let made = keyed(&world, before).await?;
        ensure!(made.len() == 1, "{path}: {made:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_key_is_remembered_over_a_restart_and_in_the_next_shard() -> Result<()> {
    let world = World::over(tempfile::tempdir()?).await?;
    world.persons.meet(&LAYLA.parse()?)?;
    let path = "/api/v1/holds";
    let (status, first) = post(&world, path, ("one", hold_on(LAYLA)), &world.operator).await?;
    ensure!(status == StatusCode::CREATED, "{first}");
    let world = world.next("falaj.test/log/next").await?;
    let (status, again) = post(&world, path, ("one", hold_on(LAYLA)), &world.operator).await?;
    ensure!(status == StatusCode::CREATED && again == first, "{again}, and before {first}");
    ensure!(world.erasures.holds().await?.len() == 1, "it was placed again");
    Ok(())
}

/// Also before anything of it can be read: otherwise studies could be tried out unseen.
#[tokio::test]
async fn a_study_that_is_not_started_is_an_access_and_nobody_else_hears_why() -> Result<()> {
    let world = World::new().await?;
    let path = "/api/v1/studies";
    let new = Bytes::from(super::world::study("other"));
    let (status, told) = post(&world, path, ("taken", new.clone()), &world.operator).await?;
    ensure!(status == StatusCode::CREATED, "{told}");
    let good = Bytes::from(super::world::study("another"));
    let of_two = "min_sites: 2, sites: [hospital-1, hospital-2]";
    let beyond = super::world::study("beyond").replace("min_sites: 2", of_two)
        + "governance: { witnesses: { quorum: 9, within_s: 60 } }\n";
    for (key, document, code, study) in [
        ("one", Bytes::from_static(b"study: ["), "study_invalid", "unread"),
        ("two", Bytes::from_static(&[0xff]), "study_invalid", "unread"),
        ("two words", good.clone(), "malformed", "unread"),
        ("three", new, "study_exists", "other"),
        ("taken", good, "conflict", "another"),
        ("four", beyond.into(), "study_invalid", "beyond"),
    ] {
        for (who, code, kind) in
            [(&world.operator, code, Kind::AdminRead), (&world.site, "denied", Kind::AccessDenied)]
        {
            let before = world.writer.head().0;
            // A site's key is its own, so that nothing came under it before.
            let (_, told) = post(&world, path, (key, document.clone()), who).await?;
            ensure!(told["code"] == code, "{key}: {told}");
            let entries = world.entries(before).await?;
            let is = |entry: &&Entry| entry.body().text("action") == Ok("study.submit");
            let entries: Vec<_> = entries.iter().filter(is).collect();
            let [entry] = &entries[..] else { anyhow::bail!("{key}: {entries:?}") };
            ensure!(entry.kind == kind && entry.body().text("study") == Ok(study), "{entry:?}");
            ensure!(entry.body().text("mechanism").is_ok(), "a verifier needs it: {entry:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_none_is_an_access_and_changes_nothing() -> Result<()> {
    let world = World::new().await?;
    world.persons.meet(&LAYLA.parse()?)?;
    let long = "k".repeat(129);
    for key in ["two words", "", &*long] {
        let before = world.writer.head().0;
        let (status, told) =
            post(&world, "/api/v1/holds", (key, hold_on(LAYLA)), &world.operator).await?;
        ensure!(status == StatusCode::BAD_REQUEST && told["code"] == "malformed", "{key}: {told}");
        let entries = world.entries(before).await?;
        let [entry] = &entries[..] else { anyhow::bail!("{key}: {entries:?}") };
        ensure!(entry.kind == Kind::AdminRead, "{key}: {entry:?}");
        ensure!(entry.body().text("action") == Ok("hold.place"), "{key}: {entry:?}");
    }
    ensure!(world.erasures.holds().await?.is_empty());
    Ok(())
}
