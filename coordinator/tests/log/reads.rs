//! AUD-14: every read of the log, and whatever else an operator asks for, is itself an entry before it is served.

use super::world::{LAYLA, OMAR, REVOKED, STUDY, World, text};
use anyhow::{Context as _, Result, ensure};
use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use falaj_coordinator::erasure::Asker;
use falaj_core::audit::Kind;
use serde_json::Value;

/// AUD-14. Goes over every route that the router has: a new one without an entry fails here.
#[tokio::test]
async fn every_route_is_an_entry_before_it_is_served() -> Result<()> {
    let world = World::new().await?;
    world.stamp().await?;
    world.with_versions().await?;
    world.persons.meet(&LAYLA.parse()?)?;
    let sara = Asker {
        id: world.operator.actor.id.as_ref().context("an operator")?,
        actor: &world.operator.actor,
        once: None,
    };
    world.revocations.revoke(sara, REVOKED, "left").await?;
    let hold = world.erasures.place(sara, (None, Some(STUDY)), "Article 1").await?;
    let token = world.enrolments.offer(sara, "late", "ae-on/ae-az", 60).await?;
    // Of something else than what the route approves, which would take its place.
    let asked = format!(r#"{{"action":"model.read","study":"{STUDY}","for":"{OMAR}"}}"#);
    let answer = Request::post("/api/v1/approvals").body(asked.into())?;
    let approval: Value = text(world.ask(answer, &world.operator).await?).await?.parse()?;
    let approval = approval["approval"].as_str().context("an approval")?;
    for request in World::every_route(&hold.id, &token.id, approval)? {
        let shown = format!("{} {}", request.method(), request.uri());
        let path = request.uri().path().to_owned();
        let before = world.writer.head().0;
        let answer = world.ask(request, &world.operator).await?;
        // The answer has begun and its body is not read yet: the entry is there all the same.
        // The one shard that there is cannot be pruned, and no candidate waits for people.
        let refused = path.ends_with("/prunings") || path.contains("/candidate/");
        let served = answer.status().is_success() || refused;
        ensure!(served, "{shown}: {}", text(answer).await?);
        let entries = world.entries(before).await?;
        // The outcome of the route before may come only now.
        let mut entries = entries.iter().filter(|e| e.kind != Kind::AccessServed);
        let entry = entries.find(|e| e.actor_person() == world.operator.actor.person);
        let entry = entry.with_context(|| format!("{shown}: no entry"))?;
        // Nobody approves what their own study has learned.
        let own = path.ends_with("/candidate/approve");
        let decided = entry.body().text("decision");
        ensure!(decided == Ok(if own { "deny" } else { "allow" }), "{shown}: {decided:?}");
        if path.starts_with("/api/v1/log/") {
            let carried_away = ["/export", "/mirror"].iter().any(|end| path.ends_with(end));
            let wanted = if carried_away { Kind::LogExported } else { Kind::AdminRead };
            ensure!(entry.kind == wanted, "{shown}: {}", entry.kind);
        }
    }
    Ok(())
}

/// What is not there is an access as well: otherwise names could be tried out unseen.
#[tokio::test]
async fn asking_for_what_is_not_there_is_an_entry_too() -> Result<()> {
    let world = World::new().await?;
    let code_of = |path: String| {
        let world = &world;
        async move {
            let before = world.writer.head().0;
            let (status, code) = world.refusal(&path).await?;
            ensure!(status == StatusCode::NOT_FOUND, "{path}: {status}");
            let entries = world.entries(before).await?;
            let entry = entries.first().with_context(|| format!("{path}: no entry"))?;
            ensure!(entry.kind == Kind::AdminRead && entry.body().text("decision") == Ok("allow"));
            Ok((code, entry.body().find_text("study").map(str::to_owned)))
        }
    };
    for path in ["", "/rounds", "/events", "/models", "/models/latest"] {
        let (code, _) = code_of(format!("studies/lungs{path}")).await?;
        ensure!(code == "unknown_study", "{path}: {code}");
    }
    let (code, study) = code_of(format!("studies/{STUDY}/models/7")).await?;
    ensure!(code == "unknown_model" && study.as_deref() == Some(STUDY), "{code} {study:?}");
    Ok(())
}

/// AUD-14. The entry says what was asked.
#[tokio::test]
async fn the_entry_of_a_read_says_what_was_asked() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator.actor.id.as_ref().context("an operator")?;
    for (path, wanted) in [
        (
            format!("log/accesses?object={STUDY}/1&until=2026-01-31"),
            vec![("object", "heart/1"), ("until", "2026-02-01T00:00:00.000Z")],
        ),
        (
            format!(
                "log/entries?kind=model.read&actor={operator}&study={STUDY}&round=2&decision=deny&policy=ACC-100&from=1"
            ),
            vec![
                ("kind", "model.read"),
                ("object", "heart/2"),
                ("decision", "deny"),
                ("policy", "ACC-100"),
                ("from", "1"),
            ],
        ),
    ] {
        let before = world.writer.head().0;
        world.get(&path).await?;
        let entry = world.entries(before).await?.into_iter().next().context("an entry")?;
        let body: Value = serde_json::from_slice(&entry.body().to_bytes())?;
        for (name, value) in wanted {
            ensure!(body["asked"][name] == value, "{path}: {body}");
        }
        ensure!(body["action"] == "log.read", "{body}");
    }
    Ok(())
}

/// Where entries are passed on to is decided over before any is served, and is in the log.
#[tokio::test]
async fn what_is_read_of_the_log_is_passed_on_to_nobody_abroad() -> Result<()> {
    let world = World::new().await?;
    for path in ["entries?limit=1000", "accesses?object=heart", "tail?last=1"] {
        let path = format!("log/{path}");
        for (place, status, decision, policy) in [
            ("ae-on/ae-du", StatusCode::OK, "allow", "ACC-202"),
            ("us/us-va", StatusCode::FORBIDDEN, "deny", "RES-004"),
        ] {
            let before = world.writer.head().0;
            let asked = format!("/api/v1/{path}&place={place}");
            let answer = world.call(Method::GET, &asked).await?;
            ensure!(answer.status() == status, "{asked}: {}", answer.status());
            let entry = world.entries(before).await?.into_iter().next().context("an entry")?;
            ensure!(entry.destination() == Some(place.parse()?), "{asked}: {entry:?}");
            let body: Value = serde_json::from_slice(&entry.body().to_bytes())?;
            ensure!(body["decision"] == decision && body["policy_ids"][0] == policy, "{body}");
        }
        let refused = world.refusal(&format!("{path}&place=virginia")).await?;
        ensure!(refused == (StatusCode::BAD_REQUEST, "malformed".to_owned()), "{refused:?}");
    }
    Ok(())
}

/// AUD-14. Whoever may not read is in the log too, and is told no.
#[tokio::test]
async fn a_site_that_asks_the_log_is_refused_and_recorded() -> Result<()> {
    let world = World::new().await?;
    for path in ["entries", "accesses?object=heart", "accesses?object=00000000", "tail", "export"] {
        let before = world.writer.head().0;
        let request = Request::get(format!("/api/v1/log/{path}")).body(Body::empty())?;
        let answer = world.ask(request, &world.site).await?;
        ensure!(answer.status() == StatusCode::FORBIDDEN, "{path}: {}", answer.status());
        let entries = world.entries(before).await?;
        ensure!(entries.len() == 1 && entries[0].kind == Kind::AccessDenied, "{path}: {entries:?}");
    }
    Ok(())
}
