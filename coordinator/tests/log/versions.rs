//! Versions of models: who may move them, what is signed of them, and what the log tells.

use super::{
    server::Server,
    world::{STUDY, World, signer, text},
};
use anyhow::{Context as _, Result, ensure};
use axum::{
    body::Body,
    http::{HeaderValue, Method, Request, StatusCode},
};
use falaj_coordinator::{
    accept::Peer,
    clock,
    store::{
        self, Database,
        row::{ModelRow, UpdateRow},
        writer::{Change, Commit},
    },
};
use falaj_core::{
    audit::{Draft, Kind},
    canon::Node,
    gate::patience::Progress,
    id::{Digest, RoundId, SiteId, StudyId},
    registry::{
        dsse::Envelope,
        lineage::Lineage,
        provenance::{PAYLOAD_TYPE, Provenance},
    },
    round::{AnyRound, Promoted, Round, RoundSpec, UpdateRef},
    witness::InclusionProof,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, sync::Arc};

fn version(number: u64, what: &str) -> String {
    format!("studies/{STUDY}/versions/{number}{what}")
}

async fn refused(
    world: &World,
    path: &str,
    asked: Value,
    (status, code): (StatusCode, &str),
) -> Result<String> {
    let (found, answer) = world.post(path, &asked, &world.operator).await?;
    ensure!(found == status && answer["code"] == code, "{path} {asked}: {found} {answer}");
    Ok(answer["detail"].as_str().context("a detail")?.to_owned())
}

#[tokio::test]
async fn production_needs_another_person_who_did_not_submit_the_study() -> Result<()> {
    let world = World::new().await?;
    world.publish(1).await?;
    let number = world.promoted(1, &["staging"]).await?;
    let (promote, production) = (version(number, "/promote"), json!({ "stage": "production" }));
    let before = world.writer.head().0;
    let why =
        refused(&world, &promote, production.clone(), (StatusCode::FORBIDDEN, "denied")).await?;
    ensure!(why.contains("APR-002"), "{why}");
    let entries = world.entries(before).await?;
    let denied = entries.iter().find(|e| e.kind == Kind::AccessDenied).context("an entry")?;
    ensure!(denied.body().text("stage") == Ok("production"), "{denied:?}");
    // Whoever submitted the study is sara: she approves what omar does with another's study, and not with her own.
    let omar = world.person("omar")?;
    let asked = |whom: &str, stage: &str| json!({ "action": "version.promote", "study": STUDY, "version": number, "stage": stage, "for": whom });
    let (sara_id, omar_id) =
        (world.operator.identity()?.spiffe.to_string(), omar.identity()?.spiffe.to_string());
    let why = refused(
        &world,
        "approvals",
        asked(&omar_id, "production"),
        (StatusCode::FORBIDDEN, "denied"),
    )
    .await?;
    ensure!(why.contains("their own study"), "{why}");
    // Whoever tries to get round a second person is found among the denials.
    let found = world.get("log/entries?kind=access.denied&decision=deny").await?;
    let found = found["items"].as_array().context("items")?;
    let is = |row: &Value| row.to_string().contains("their own study");
    ensure!(found.iter().filter(|row| is(row)).count() == 1, "{found:?}");
    let own = world.entries(before).await?;
    let own = own.iter().filter(|e| e.body().text("action") == Ok("approval.give"));
    let own: Vec<_> = own.collect();
    let [own] = &own[..] else { anyhow::bail!("{own:?}") };
    ensure!(own.kind == Kind::AccessDenied && own.body().text("study") == Ok(STUDY), "{own:?}");
    ensure!(own.body().member("policy_set_sha256").is_none(), "no policy said so: {own:?}");
    let why = refused(
        &world,
        "approvals",
        asked(&sara_id, "production"),
        (StatusCode::BAD_REQUEST, "malformed"),
    )
    .await?;
    ensure!(why.contains("for themselves"), "{why}");
    // An approval of another stage is of something else.
    for (stage, status) in [("archived", StatusCode::FORBIDDEN), ("production", StatusCode::OK)] {
        let (given, answer) = world.post("approvals", &asked(&sara_id, stage), &omar).await?;
        ensure!(given == StatusCode::CREATED, "{answer}");
        let (found, answer) = world.post(&promote, &production, &world.operator).await?;
        ensure!(found == status, "{stage}: {found} {answer}");
    }
    let entries = world.entries(before).await?;
    let promoted = entries.iter().find(|e| e.kind == Kind::VersionPromoted).context("an entry")?;
    ensure!(promoted.approvals()?.len() == 1, "{promoted:?}");
    let shown = world.get(&format!("studies/{STUDY}/versions/champion")).await?;
    ensure!(shown["version"] == number && shown["stage"] == "production", "{shown}");
    Ok(())
}

/// A round with two sites whose updates cost 0.5 and 0.75, and which gave a model: durable as an engine makes it.
pub(super) async fn gave(world: &World, number: u32) -> Result<()> {
    let sites = [("hospital-1", "0.5"), ("hospital-2", "0.75")];
    gave_in(world, (STUDY, number), &sites, |published| published).await
}

/// The same, with these sites, and what their updates cost; `more` is said of the model that is published.
pub(super) async fn gave_in(
    world: &World,
    (study, number): (&str, u32),
    sites: &[(&str, &str)],
    more: impl FnOnce(Draft) -> Draft,
) -> Result<()> {
    let (parts, study): (_, StudyId) = (world.engine.parts(), study.parse()?);
    let base = world.store.models(&study).await?.first().context("a model")?.sha256;
    let mut params = parts.models.read(&base).await?;
    params[0] ^= u8::try_from(number)?;
    let model = Digest::of(&params);
    parts.models.put(model, params).await?;
    let manifest = world.engine.study(&study)?.meta.manifest.digest();
    let id = RoundId { study: study.clone(), number };
    let about = |kind| Draft::new(kind).round(&id).count("attempt", 0);
    let (mut updates, mut rows, mut entries) = (BTreeMap::new(), Vec::new(), Vec::new());
    for &(site, epsilon) in sites {
        let site: SiteId = format!("spiffe://falaj.test/ae-on/ae-az/site/{site}").parse()?;
        let header = format!("header of {site}").into_bytes();
        let payload = Digest::of(format!("payload of {site}").as_bytes());
        let update = UpdateRef { payload, header: Digest::of(&header), weight: 10 };
        let row = UpdateRow {
            round: id.clone(),
            attempt: 0,
            site: site.clone(),
            header,
            signature: vec![0; 64],
            payload,
            bytes: 8,
            epsilon: (*epsilon).to_owned(),
            log_index: 0,
            leaf: payload,
            committed: clock::now(),
        };
        rows.push(Change::Update(row, entries.len()));
        let accepted = about(Kind::UpdateAccepted)
            .text("site", &site.to_string())
            .digest("payload_sha256", &payload)
            .digest("header_sha256", &update.header)
            .count("weight", 10)
            .text("epsilon", epsilon);
        entries.push(accepted);
        updates.insert(site, update);
    }
    let payloads: Vec<Digest> = updates.values().map(|u: &UpdateRef| u.payload).collect();
    let published = about(Kind::ModelPublished)
        .digest("base_sha256", &base)
        .digest("model_sha256", &model)
        .digest("manifest_sha256", &manifest)
        .digests("updates", &payloads)
        .count("total_weight", 10 * sites.len() as u64);
    entries.push(more(published));
    let there = u32::try_from(sites.len())?;
    let spec = RoundSpec {
        base,
        min_sites: there,
        max_sites: there,
        expected_sites: there,
        deadline_ms: 1_000,
        grace_ms: 1_000,
        attempt: 0,
        masked: false,
        members: Vec::new(),
        evaluates: false,
        good: base,
        progress: Progress::default(),
    };
    let stage = Promoted { updates, model, progress: Progress::default() };
    let round = Round { id, spec, stage };
    let published = clock::now();
    rows.push(Change::Model(ModelRow { study, number, sha256: model, published }));
    let round = Some((AnyRound::Promoted(round), 0));
    world.writer.commit(Commit { round, rows, entries }).await?;
    Ok(())
}

const AT_PROMOTION: &str = "gates:\n  - { metric: sites, at_least: 3, when: promotion }\n  - { metric: epsilon, at_most: 10, when: promotion }\n";

#[tokio::test]
async fn a_version_that_fails_a_gate_stays_where_it_stands_and_the_log_says_by_which() -> Result<()>
{
    let world = World::asking(AT_PROMOTION).await?;
    gave(&world, 2).await?;
    let number = world.promoted(2, &[]).await?;
    let (promote, staging) = (version(number, "/promote"), json!({ "stage": "staging" }));
    let before = world.writer.head().0;
    let failed = (StatusCode::CONFLICT, "gate_failed");
    let why = refused(&world, &promote, staging.clone(), failed).await?;
    ensure!(
        why == "version 1 does not go on to `staging`: it fails 1 of its study's gates that are asked then: sites: 2, at least 3 needed",
        "{why}"
    );
    let lines = ["fail: sites: 2, at least 3 needed", "pass: epsilon: 0.75, at most 10 needed"];
    let entries = world.entries(before).await?;
    ensure!(entries.iter().all(|e| e.kind != Kind::VersionPromoted), "{entries:?}");
    let told = entries.iter().find(|e| e.kind == Kind::AdminRead).context("an entry")?;
    let said: Vec<_> = told.body().list("gates")?.into_iter().filter_map(Node::as_text).collect();
    ensure!(said == lines && told.body().text("stage") == Ok("staging"), "{told:?}");
    ensure!(told.body().text("action") == Ok("version.promote"), "{told:?}");
    let shown = world.get(&version(number, "")).await?;
    ensure!(shown["stage"] == "candidate", "{shown}");
    let gates = shown["gates"].as_array().context("gates")?;
    ensure!(
        gates.len() == 2 && gates[0]["name"] == "sites" && gates[0]["pass"] == false,
        "{shown}"
    );
    ensure!(gates[1]["figure"] == "0.75" && gates[1]["bound"] == "at most 10", "{shown}");
    let counted = world.engine.parts().metrics.text();
    for line in [
        "falaj_gates_total{metric=\"sites\",outcome=\"failed\"} 1\n",
        "falaj_gates_total{metric=\"epsilon\",outcome=\"passed\"} 1\n",
    ] {
        ensure!(counted.contains(line), "{line} is not in {counted}");
    }
    // Who may not promote is told so, and nothing of gates.
    let stranger = json!({ "stage": "staging", "place": "gb/gb-lnd" });
    refused(&world, &promote, stranger, (StatusCode::FORBIDDEN, "denied")).await?;
    // It may still be put out.
    let reason = json!({ "reason": "too few sites" });
    let (status, answer) =
        world.post(&version(number, "/reject"), &reason, &world.operator).await?;
    ensure!(status == StatusCode::OK && answer["stage"] == "rejected", "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_version_that_passes_its_gates_goes_on_and_the_log_says_by_what() -> Result<()> {
    let world = World::asking(&AT_PROMOTION.replace("at_least: 3", "at_least: 2")).await?;
    gave(&world, 2).await?;
    let before = world.writer.head().0;
    let number = world.promoted(2, &["staging", "production", "archived"]).await?;
    let entries = world.entries(before).await?;
    let promoted = entries.iter().filter(|e| e.kind == Kind::VersionPromoted);
    let said = promoted.map(|e| e.body().list("gates").into_iter().flatten().count());
    // What is put away is asked nothing.
    ensure!(said.collect::<Vec<_>>() == [2, 2, 0], "{entries:?}");
    let told = world.get(&version(number, "/lineage")).await?;
    let moves = told["moves"].as_array().context("moves")?;
    ensure!(
        moves[1]["gates"][0]["name"] == "sites" && moves[1]["gates"][0]["pass"] == true,
        "{told}"
    );
    ensure!(moves[0].get("gates").is_none() && moves[3].get("gates").is_none(), "{told}");
    Ok(())
}

#[tokio::test]
async fn a_version_whose_round_is_not_there_is_asked_in_vain() -> Result<()> {
    let world = World::asking(AT_PROMOTION).await?;
    // The model is there, and nothing of who made it.
    world.publish(1).await?;
    let number = world.promoted(1, &[]).await?;
    let internal = (StatusCode::INTERNAL_SERVER_ERROR, "internal");
    let staging = json!({ "stage": "staging" });
    let why = refused(&world, &version(number, "/promote"), staging, internal).await?;
    ensure!(why.contains("has no round 1 that gave the version's model"), "{why}");
    Ok(())
}

#[tokio::test]
async fn of_two_moves_that_were_computed_from_one_state_one_wins() -> Result<()> {
    let world = World::new().await?;
    world.publish(2).await?;
    let numbers = [world.promoted(1, &[]).await?, world.promoted(2, &[]).await?];
    let shown = world.get(&version(numbers[0], "")).await?;
    let tag = format!("\"{}\"", shown["revision"]);
    let promote = async |number: u64| {
        let request = Request::post(format!("/api/v1/{}", version(number, "/promote")));
        let request = request.header("if-match", &tag).body(r#"{"stage":"staging"}"#.into())?;
        let answer = world.ask(request, &world.operator).await?;
        let status = answer.status();
        anyhow::Ok((status, text(answer).await?))
    };
    let (one, other) = tokio::join!(promote(numbers[0]), promote(numbers[1]));
    let all = [one?, other?];
    let won = all.iter().filter(|(status, _)| *status == StatusCode::OK).count();
    let lost = all
        .iter()
        .filter(|(status, text)| *status == StatusCode::CONFLICT && text.contains("\"conflict\""));
    ensure!((won, lost.count()) == (1, 1), "{all:?}");
    let versions = world.get(&format!("studies/{STUDY}/versions")).await?;
    let staged = versions["items"].as_array().context("items")?.iter();
    ensure!(staged.filter(|v| v["stage"] == "staging").count() == 1, "{versions}");
    // The loser looks again, and goes on.
    let (status, answer) = world
        .post(&version(numbers[1], "/reject"), &json!({ "reason": "worse" }), &world.operator)
        .await?;
    ensure!(status == StatusCode::OK || answer["code"] == "wrong_stage", "{answer}");
    Ok(())
}

/// Two people put one version each into production at once: one of them does, and the log and the registry say the same.
async fn one_of_two_serves(world: World) -> Result<()> {
    world.publish(2).await?;
    let (sara, omar) = (world.operator.clone(), world.person("omar")?);
    let layla = world.person("layla")?;
    let numbers = [world.promoted(1, &["staging"]).await?, world.promoted(2, &["staging"]).await?];
    // Each may: somebody else approved it.
    for (number, who) in numbers.into_iter().zip([&sara, &layla]) {
        let whom = who.identity()?.spiffe.to_string();
        let asked = json!({ "action": "version.promote", "study": STUDY, "version": number, "stage": "production", "for": whom });
        let (status, answer) = world.post("approvals", &asked, &omar).await?;
        ensure!(status == StatusCode::CREATED, "{answer}");
    }
    let before = world.writer.head().0;
    let tag = format!("\"{}\"", world.get(&version(numbers[0], "")).await?["revision"]);
    let promote = async |number: u64, who: &Arc<Peer>| {
        let request = Request::post(format!("/api/v1/{}", version(number, "/promote")));
        let request = request.header("if-match", &tag).body(r#"{"stage":"production"}"#.into())?;
        let answer = world.ask(request, who).await?;
        anyhow::Ok((number, answer.status(), text(answer).await?))
    };
    let (one, other) = tokio::join!(promote(numbers[0], &sara), promote(numbers[1], &layla));
    let (mut won, mut lost) = (Vec::new(), Vec::new());
    for (number, status, answer) in [one?, other?] {
        match status {
            StatusCode::OK => won.push(number),
            StatusCode::CONFLICT if answer.contains("\"conflict\"") => lost.push(number),
            _ => anyhow::bail!("{number}: {status} {answer}"),
        }
    }
    let ([won], [lost]) = (&won[..], &lost[..]) else {
        anyhow::bail!("{won:?} won, {lost:?} lost")
    };
    let staged = |number: &u64| version(*number, "");
    let (winner, loser) = (world.get(&staged(won)).await?, world.get(&staged(lost)).await?);
    ensure!(
        winner["stage"] == "production" && winner["aliases"] == json!(["champion"]),
        "{winner}"
    );
    ensure!(loser["stage"] == "staging" && loser["revision"] == winner["revision"], "{loser}");
    let entries = world.entries(before).await?;
    let promoted: Vec<_> = entries.iter().filter(|e| e.kind == Kind::VersionPromoted).collect();
    ensure!(
        promoted.len() == 1 && promoted[0].body().int::<u64>("version") == Ok(*won),
        "{promoted:?}"
    );
    // What the log tells comes to the same, entry by entry; the loser looks again, and is the champion then.
    let mut lineage = Lineage::default();
    for entry in world.entries(0).await? {
        lineage.take(&entry)?;
    }
    let study = STUDY.parse()?;
    let kept = world.store.registry(&study).await?.context("versions")?.registry;
    ensure!(lineage.registry(&study) == Some(&kept), "{kept:?}");
    let who = if *lost == numbers[0] { &sara } else { &layla };
    let (status, answer) =
        world.post(&version(*lost, "/promote"), &json!({ "stage": "production" }), who).await?;
    ensure!(status == StatusCode::OK && answer["aliases"] == json!(["champion"]), "{answer}");
    let archived = world.get(&staged(won)).await?;
    ensure!(archived["stage"] == "archived" && archived["aliases"] == json!([]), "{archived}");
    Ok(())
}

#[tokio::test]
async fn of_two_who_put_a_version_into_production_at_once_one_does() -> Result<()> {
    one_of_two_serves(World::new().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_of_two_who_put_a_version_into_production_at_once_one_does() -> Result<()> {
    let Some(server) = Server::shared()? else { return Ok(()) };
    let n = server.database().await?;
    let (name, writer) = (format!("falaj_{n}"), format!("writer_{n}"));
    store::init(&server.options(&format!("owner_{n}"), &name), &writer).await?;
    let database = Database::Postgres(Box::new(server.options(&writer, &name)));
    one_of_two_serves(World::on(&database).await?).await
}

#[tokio::test]
async fn whoever_approves_a_promotion_twice_is_one_person() -> Result<()> {
    let world = World::new().await?;
    world.publish(1).await?;
    let number = world.promoted(1, &["staging"]).await?;
    let omar = world.person("omar")?;
    let sara = world.operator.identity()?.spiffe.to_string();
    let asked = json!({ "action": "version.promote", "study": STUDY, "version": number, "stage": "production", "for": sara });
    let mut names = Vec::new();
    for _ in 0..2 {
        let (status, answer) = world.post("approvals", &asked, &omar).await?;
        ensure!(status == StatusCode::CREATED, "{answer}");
        names.push(answer["approval"].as_str().context("a name")?.to_owned());
    }
    // The newer one stands in the place of the older.
    let listed = world.get("approvals").await?;
    let listed = listed["items"].as_array().context("items")?;
    let named =
        |a: &&Value| a["approval"] == names[0].as_str() || a["approval"] == names[1].as_str();
    let listed: Vec<_> = listed.iter().filter(named).collect();
    ensure!(listed.len() == 1 && listed[0]["approval"] == names[1].as_str(), "{listed:?}");
    let before = world.writer.head().0;
    let (status, answer) = world
        .post(&version(number, "/promote"), &json!({ "stage": "production" }), &world.operator)
        .await?;
    ensure!(status == StatusCode::OK, "{answer}");
    let entries = world.entries(before).await?;
    let promoted = entries.iter().find(|e| e.kind == Kind::VersionPromoted).context("an entry")?;
    ensure!(promoted.approvals()? == names[1..], "{promoted:?}");
    Ok(())
}

/// One model's file in the place of another's: each is whole, and it is not the model that was published.
#[tokio::test]
async fn a_model_whose_file_was_swapped_for_another_is_not_promoted() -> Result<()> {
    let world = World::new().await?;
    world.publish(2).await?;
    let number = world.promoted(1, &[]).await?;
    let models = world.store.models(&STUDY.parse()?).await?;
    let of = |round: usize| world.engine.parts().models.path(&models[round].sha256);
    let (own, others) = (fs::read(of(1))?, fs::read(of(2))?);
    ensure!(own.len() == others.len() && own != others);
    fs::write(of(1), &others)?;
    let file = world.call(Method::GET, &format!("/api/v1/{}", version(number, "/file"))).await?;
    ensure!(file.status() == StatusCode::OK, "its digest is known at its end");
    ensure!(axum::body::to_bytes(file.into_body(), usize::MAX).await.is_err(), "another's model");
    let damaged = (StatusCode::INTERNAL_SERVER_ERROR, "model_damaged");
    let (promote, staging) = (version(number, "/promote"), json!({ "stage": "staging" }));
    let before = world.writer.head().0;
    refused(&world, &promote, staging.clone(), damaged).await?;
    let entries = world.entries(before).await?;
    ensure!(entries.iter().all(|e| e.kind != Kind::VersionPromoted), "{entries:?}");
    // Where it is gone altogether it is not promoted either; the right one is, once it is back.
    fs::remove_file(of(1))?;
    let internal = (StatusCode::INTERNAL_SERVER_ERROR, "internal");
    refused(&world, &promote, staging.clone(), internal).await?;
    fs::write(of(1), &own)?;
    let (status, answer) = world.post(&promote, &staging, &world.operator).await?;
    ensure!(status == StatusCode::OK && answer["stage"] == "staging", "{answer}");
    Ok(())
}

#[tokio::test]
async fn versions_come_in_pages_and_what_somebody_has_already_is_not_sent_again() -> Result<()> {
    let world = World::new().await?;
    world.publish(3).await?;
    for round in 1..=3 {
        world.promoted(round, &[]).await?;
    }
    let path = format!("studies/{STUDY}/versions?limit=2");
    let first = world.get(&path).await?;
    ensure!(first["items"].as_array().is_some_and(|items| items.len() == 2), "{first}");
    ensure!(first["next"] == "2", "{first}");
    let second = world.get(&format!("{path}&cursor=2")).await?;
    ensure!(second["items"][0]["version"] == 3 && second.get("next").is_none(), "{second}");
    let (status, code) = world.refusal(&format!("studies/{STUDY}/versions?limit=0")).await?;
    ensure!(status == StatusCode::BAD_REQUEST && code == "malformed", "{code}");
    let study = |what: &str| format!("studies/{STUDY}/{what}");
    for path in [version(1, ""), version(1, "/lineage"), study("file"), study("gates")] {
        let before = world.writer.head().0;
        let mut tag: Option<HeaderValue> = None;
        for status in [StatusCode::OK, StatusCode::NOT_MODIFIED] {
            let mut request = Request::get(format!("/api/v1/{path}"));
            if let Some(tag) = &tag {
                request = request.header("if-none-match", tag);
            }
            let answer = world.ask(request.body(Body::empty())?, &world.operator).await?;
            ensure!(answer.status() == status, "{path}: {}", answer.status());
            tag = Some(answer.headers().get("etag").context("a tag")?.clone());
            ensure!(
                text(answer).await?.is_empty() == (status == StatusCode::NOT_MODIFIED),
                "{path}"
            );
        }
        // Both were decided and recorded.
        let read = world.entries(before).await?;
        let read = read.iter().filter(|entry| entry.kind == Kind::AdminRead);
        ensure!(read.count() == 2, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_move_that_comes_again_under_its_key_is_done_once() -> Result<()> {
    let world = World::new().await?;
    world.with_versions().await?;
    let before = world.writer.head().0;
    let ask = async |key: &str, asked: &'static str| {
        let request = Request::post(format!("/api/v1/studies/{STUDY}/roll-back"));
        let request = request.header("idempotency-key", key).body(asked.into())?;
        let answer = world.ask(request, &world.operator).await?;
        let status = answer.status();
        anyhow::Ok((status, text(answer).await?))
    };
    let first = ask("one", r#"{"reason":"worse"}"#).await?;
    ensure!(first.0 == StatusCode::OK, "{first:?}");
    let again = ask("one", r#"{"reason":"worse"}"#).await?;
    ensure!(again == first, "{again:?}, and before {first:?}");
    let entries = world.entries(before).await?;
    let back = entries.iter().filter(|entry| entry.kind == Kind::VersionRolledBack);
    ensure!(back.count() == 1, "{entries:?}");
    let (status, other) = ask("one", r#"{"reason":"another"}"#).await?;
    ensure!(status == StatusCode::CONFLICT && other.contains("take a new one"), "{other}");
    let (status, told) = ask("two words", r#"{"reason":"worse"}"#).await?;
    ensure!(status == StatusCode::BAD_REQUEST && told.contains("visible ASCII"), "{told}");
    Ok(())
}

/// Also when the alias was given to another version meanwhile: one key makes one change.
#[tokio::test]
async fn an_alias_that_is_given_or_taken_away_again_under_its_key_is_so_once() -> Result<()> {
    let world = World::new().await?;
    world.with_versions().await?;
    let before = world.writer.head().0;
    let ask = async |key: &str, asked: &'static str| {
        let request = Request::post(format!("/api/v1/studies/{STUDY}/aliases/challenger"));
        let request = request.header("idempotency-key", key).body(asked.into())?;
        let answer = world.ask(request, &world.operator).await?;
        let (status, answer) = (answer.status(), text(answer).await?);
        ensure!(status == StatusCode::OK, "{key}: {status} {answer}");
        anyhow::Ok(serde_json::from_str::<Value>(&answer)?)
    };
    let (give, take) = (r#"{"version":3}"#, r#"{"version":null}"#);
    ask("given", give).await?;
    let taken = ask("taken", take).await?;
    ensure!(taken["version"] == 3 && taken["aliases"] == json!([]), "{taken}");
    ensure!(ask("taken", take).await? == taken, "taken away once");
    ask("given-again", give).await?;
    for (key, asked) in [("taken", take), ("given", give), ("given-again", give)] {
        let again = ask(key, asked).await?;
        ensure!(again["version"] == 3 && again["aliases"] == json!(["challenger"]), "{again}");
    }
    let entries = world.entries(before).await?;
    let moves: Vec<_> = entries.iter().filter(|e| e.kind == Kind::VersionAliased).collect();
    ensure!(moves.len() == 3 && moves[1].body().int::<u64>("was") == Ok(3), "{moves:?}");
    // Whoever tells it anew from the log comes to the same.
    let mut lineage = Lineage::default();
    for entry in world.entries(0).await? {
        lineage.take(&entry)?;
    }
    let study = STUDY.parse()?;
    let kept = world.store.registry(&study).await?.context("versions")?.registry;
    ensure!(lineage.registry(&study) == Some(&kept), "{kept:?}");
    Ok(())
}

#[tokio::test]
async fn a_model_whose_bytes_were_changed_is_neither_made_a_version_nor_promoted() -> Result<()> {
    let world = World::new().await?;
    world.publish(2).await?;
    let number = world.promoted(1, &[]).await?;
    let models = world.store.models(&STUDY.parse()?).await?;
    for model in &models[1..] {
        let path = world.engine.parts().models.path(&model.sha256);
        let mut bytes = fs::read(&path)?;
        bytes[0] ^= 0xff;
        fs::write(&path, bytes)?;
    }
    let damaged = (StatusCode::INTERNAL_SERVER_ERROR, "model_damaged");
    refused(&world, &version(number, "/promote"), json!({ "stage": "staging" }), damaged).await?;
    refused(&world, &format!("studies/{STUDY}/versions"), json!({ "round": 2 }), damaged).await?;
    let shown = world.get(&version(number, "")).await?;
    ensure!(shown["stage"] == "candidate", "{shown}");
    Ok(())
}

#[tokio::test]
async fn a_version_whose_model_was_changed_since_is_not_rolled_back_to() -> Result<()> {
    let world = World::new().await?;
    world.publish(2).await?;
    let omar = world.person("omar")?;
    let sara = world.operator.identity()?.spiffe.to_string();
    for round in [1, 2] {
        let number = world.promoted(round, &["staging"]).await?;
        let asked = json!({ "action": "version.promote", "study": STUDY, "version": number, "stage": "production", "for": sara });
        // What is not there yet cannot have been looked at.
        let mut early = asked.clone();
        early["version"] = json!(number + 1);
        let (status, answer) = world.post("approvals", &early, &omar).await?;
        ensure!(status == StatusCode::NOT_FOUND && answer["code"] == "unknown_model", "{answer}");
        let (status, answer) = world.post("approvals", &asked, &omar).await?;
        ensure!(status == StatusCode::CREATED, "{answer}");
        let production = json!({ "stage": "production" });
        let promote = version(number, "/promote");
        let (status, answer) = world.post(&promote, &production, &world.operator).await?;
        ensure!(status == StatusCode::OK, "{answer}");
    }
    let models = world.store.models(&STUDY.parse()?).await?;
    let path = world.engine.parts().models.path(&models[1].sha256);
    let good = fs::read(&path)?;
    let mut bad = good.clone();
    bad[0] ^= 0xff;
    fs::write(&path, bad)?;
    let (back, reason) = (format!("studies/{STUDY}/roll-back"), json!({ "reason": "worse" }));
    let damaged = (StatusCode::INTERNAL_SERVER_ERROR, "model_damaged");
    refused(&world, &back, reason.clone(), damaged).await?;
    let shown = world.get(&format!("studies/{STUDY}/versions/champion")).await?;
    ensure!(shown["version"] == 2, "{shown}");
    fs::write(&path, good)?;
    let (status, answer) = world.post(&back, &reason, &world.operator).await?;
    ensure!(status == StatusCode::OK && answer["version"] == 1, "{answer}");
    Ok(())
}

#[tokio::test]
async fn what_is_signed_of_a_version_is_the_same_each_time_and_leads_to_the_log() -> Result<()> {
    let world = World::new().await?;
    world.publish(2).await?;
    let number = world.promoted(2, &["staging"]).await?;
    let path = format!("/api/v1/{}", version(number, "/provenance"));
    let mut all = Vec::new();
    for _ in 0..2 {
        let answer = world.call(Method::GET, &path).await?;
        let kind = answer.headers()["content-type"].to_str()?.to_owned();
        ensure!(kind == "application/vnd.dsse.envelope.v1+json", "{kind}");
        all.push(text(answer).await?);
    }
    ensure!(all[0] == all[1], "it was signed twice");
    let envelope = Envelope::parse(all[0].as_bytes())?;
    let signer = signer();
    envelope.verify(PAYLOAD_TYPE, signer.verifier())?;
    let provenance = Provenance::read(&envelope.payload)?;
    let sites: Vec<_> = provenance.rounds.iter().map(|round| round.updates.len()).collect();
    ensure!(sites == [1, 2] && provenance.round == 2, "{provenance:?}");
    let proof = InclusionProof::parse(&provenance.log.proof)?;
    proof.verify(&provenance.log.leaf, signer.verifier())?;
    // Its first subject is the file that is downloaded.
    let answer = world.call(Method::GET, &format!("/api/v1/{}", version(number, "/file"))).await?;
    let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await?;
    ensure!(Digest::of(&bytes) == provenance.file, "it is another file");
    // The promotion says what was signed by then.
    let entries = world.entries(0).await?;
    let promoted = entries.iter().find(|e| e.kind == Kind::VersionPromoted).context("an entry")?;
    let said: Digest = promoted.body().parsed("provenance_sha256")?;
    ensure!(said == Digest::of(all[0].as_bytes()));
    let card =
        text(world.call(Method::GET, &format!("/api/v1/{}", version(number, "/card"))).await?)
            .await?;
    ensure!(
        card.contains(&provenance.model.to_string()) && card.contains("asking the log"),
        "{card}"
    );
    let html = format!("/api/v1/{}", version(number, "/card?format=html"));
    let html = text(world.call(Method::GET, &html).await?).await?;
    ensure!(html.starts_with("<!doctype html>"), "{html}");
    Ok(())
}

#[tokio::test]
async fn a_revoked_version_is_not_served_and_none_goes_abroad() -> Result<()> {
    let world = World::new().await?;
    world.publish(2).await?;
    let number = world.promoted(2, &[]).await?;
    let file = version(number, "/file");
    let (status, code) = world.refusal(&format!("{file}?place=gb/gb-lnd")).await?;
    ensure!((status, &*code) == (StatusCode::FORBIDDEN, "denied"), "{status} {code}");
    let promote = json!({ "stage": "staging", "place": "gb/gb-lnd" });
    refused(&world, &version(number, "/promote"), promote, (StatusCode::FORBIDDEN, "denied"))
        .await?;
    let answer = world.call(Method::GET, &format!("/api/v1/{file}")).await?;
    ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
    let asked = json!({ "reason": "hospital-2 withdrew its consent" });
    let (status, answer) = world.post(&version(number, "/revoke"), &asked, &world.operator).await?;
    ensure!(status == StatusCode::OK && answer["stage"] == "revoked", "{answer}");
    for path in [file, format!("studies/{STUDY}/models/2")] {
        let (status, code) = world.refusal(&path).await?;
        ensure!(
            (status, &*code) == (StatusCode::CONFLICT, "wrong_stage"),
            "{path}: {status} {code}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_log_tells_both_ways_what_made_a_version_and_what_it_touched() -> Result<()> {
    let world = World::new().await?;
    world.publish(3).await?;
    let stages = ["staging", "production"];
    let clean = world.promoted(1, &stages).await?;
    let touched = world.promoted(2, &stages).await?;
    let site = "spiffe://falaj.test/ae-on/ae-az/site/hospital-2";
    let answer = world.get(&format!("lineage?site={site}")).await?;
    let all = answer["versions"].as_array().context("versions")?;
    ensure!(all.len() == 1 && all[0]["version"] == touched, "{answer}");
    ensure!(all[0]["remedy"] == "roll_back" && all[0]["back_to"] == clean, "{answer}");
    ensure!(all[0]["untouched_round"] == 1, "{answer}");
    let answer = world.get(&format!("lineage?site={site}&until=2020-01-01")).await?;
    ensure!(answer["versions"].as_array().context("versions")?.is_empty(), "{answer}");
    let (status, code) = world.refusal("lineage").await?;
    ensure!((status, &*code) == (StatusCode::BAD_REQUEST, "malformed"), "{status} {code}");
    let told = world.get(&version(touched, "/lineage")).await?;
    let updates = told["rounds"][1]["updates"].as_array().context("updates")?;
    ensure!(updates.len() == 2 && updates[1]["site"] == site, "{told}");
    let kinds: Vec<_> =
        told["moves"].as_array().context("moves")?.iter().map(|m| &m["kind"]).collect();
    ensure!(kinds == ["version.made", "version.promoted", "version.promoted"], "{told}");
    ensure!(told["approvals"].as_array().context("approvals")?.len() == 2, "{told}");
    let omar = world.person("omar")?.identity()?.spiffe.to_string();
    ensure!(told["approvals"][0]["by"] == omar.as_str(), "{told}");
    // Back to the one that did not learn from it; there is nothing before that.
    let path = format!("studies/{STUDY}/roll-back");
    let asked = json!({ "reason": "consent was withdrawn" });
    let (status, back) = world.post(&path, &asked, &world.operator).await?;
    ensure!(status == StatusCode::OK && back["version"] == clean, "{back}");
    refused(&world, &path, asked, (StatusCode::CONFLICT, "wrong_stage")).await?;
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_read_or_is_not_there_is_refused_and_told_to_nobody_who_may_not_know()
-> Result<()> {
    let world = World::new().await?;
    world.publish(1).await?;
    let versions = format!("studies/{STUDY}/versions");
    let malformed = (StatusCode::BAD_REQUEST, "malformed");
    refused(&world, &versions, json!({ "round": "one" }), malformed).await?;
    refused(&world, &versions, json!({ "round": 9 }), (StatusCode::NOT_FOUND, "unknown_model"))
        .await?;
    refused(&world, &versions, json!({ "round": 0 }), (StatusCode::NOT_FOUND, "unknown_model"))
        .await?;
    let number = world.promoted(1, &[]).await?;
    refused(&world, &versions, json!({ "round": 1 }), (StatusCode::CONFLICT, "wrong_stage"))
        .await?;
    refused(&world, &version(number, "/promote"), json!({ "stage": "live" }), malformed).await?;
    refused(&world, &version(number, "/reject"), json!({ "reason": "" }), malformed).await?;
    refused(
        &world,
        &version(9, "/promote"),
        json!({ "stage": "staging" }),
        (StatusCode::NOT_FOUND, "unknown_model"),
    )
    .await?;
    let (status, code) = world.refusal(&version(9, "/lineage")).await?;
    ensure!((status, &*code) == (StatusCode::NOT_FOUND, "unknown_model"), "{status} {code}");
    // A site is told nothing but that it may not.
    for what in ["", "/provenance", "/card", "/lineage"] {
        let request = Request::get(format!("/api/v1/{}", version(9, what))).body(Body::empty())?;
        let answer = world.ask(request, &world.site).await?;
        ensure!(answer.status() == StatusCode::FORBIDDEN, "{what}: {}", answer.status());
    }
    let page = world.get("versions?limit=1").await?;
    ensure!(page["items"].as_array().context("items")?.len() == 1, "{page}");
    ensure!(page["next"] == STUDY, "{page}");
    let last = world.get(&format!("versions?limit=1&cursor={STUDY}")).await?;
    ensure!(last["items"].as_array().context("items")?.is_empty(), "{last}");
    Ok(())
}
