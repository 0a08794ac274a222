//! Pruning a shard that has ended: what keeps it, what goes and what stays, and that a crash loses no part of it.

use super::{
    held::{in_doubt, keyed, late},
    world::{RETENTION, REVOKED, STUDY, World, pruning, study, text, trusted},
};
use anyhow::{Context as _, Result, ensure};
use axum::http::{Method, Request, StatusCode};
use falaj_coordinator::{
    erasure::Erasures,
    pruning::Prunings,
    revocations::Revocations,
    store::writer::{Change, Commit},
};
use falaj_core::{
    audit::{Draft, Entry, Kind, erasure::term_end},
    id::Digest,
    time::Timestamp,
};
use serde_json::Value;
use std::fs;

const OLD: &str = "falaj.test/log";
const NEW: &str = "falaj.test/log/2";
const ARTICLE: &str = "Federal Law 2/2019, Article 20";

/// A policy of retention.
fn policy(months: u32) -> String {
    format!(
        "# For how long the log is kept.\nkeep_months = {months}\narticle = \"{ARTICLE}\"\ndecided_by = \"The committee, minutes 12\"\n"
    )
}

/// A log whose first shard has ended; in it are two studies, of which one keeps its records for half a year.
async fn ended() -> Result<World> {
    let world = World::new().await?;
    let yaml = study("kidney") + "governance: { retention: 6m }\n";
    let request = Request::post("/api/v1/studies").body(yaml.into())?;
    let answer = world.ask(request, &world.operator).await?;
    ensure!(answer.status() == StatusCode::CREATED, "{}", text(answer).await?);
    for study in [STUDY, "kidney"] {
        let answer = world.call(Method::POST, &format!("/api/v1/studies/{study}/stop")).await?;
        ensure!(answer.status() == StatusCode::OK, "{}", text(answer).await?);
    }
    let asker = super::erasing::asker(&world.operator);
    world.revocations.revoke(asker, REVOKED, "left").await?;
    world.get("log/checkpoint").await?;
    world.next(NEW).await
}

/// The bundle that is exported of the old shard now.
async fn exported(world: &World) -> Result<Vec<u8>> {
    let answer = world.call(Method::GET, &format!("/api/v1/log/export?shard={OLD}")).await?;
    ensure!(answer.status() == StatusCode::OK);
    Ok(axum::body::to_bytes(answer.into_body(), 64 << 20).await?.to_vec())
}

/// What is answered to an operator who asks for a pruning.
async fn asked(world: &World, shard: &str, bundle: &[u8]) -> Result<(StatusCode, Value)> {
    let body = pruning(shard, &Digest::of(bundle).0);
    let request = Request::post("/api/v1/log/prunings").body(body.into())?;
    let answer = world.ask(request, &world.operator).await?;
    let status = answer.status();
    Ok((status, serde_json::from_str(&text(answer).await?)?))
}

/// Refused with this code and these words, and the log has entries of these kinds of it.
async fn refused(
    world: &World,
    (shard, bundle): (&str, &[u8]),
    (code, words): (&str, &str),
    kind: Kind,
) -> Result<Entry> {
    let before = world.writer.head().0;
    let (status, problem) = asked(world, shard, bundle).await?;
    ensure!(!status.is_success() && problem["code"] == code, "{status} {problem}");
    ensure!(problem["detail"].as_str().is_some_and(|d| d.contains(words)), "{problem}");
    let mut entries = world.entries(before).await?;
    entries.retain(|entry| entry.kind != Kind::AccessServed);
    ensure!(entries.len() == 1 && entries[0].kind == kind, "{entries:?}");
    Ok(entries.remove(0))
}

/// CMP-04: nothing is deleted without a written policy, before its term and that of every study is over, under a legal
/// hold, or of which the operator holds no whole copy; each refusal is in the log. Afterwards it is, and the log says so.
#[tokio::test]
async fn a_shard_is_pruned_when_nothing_keeps_it_and_not_before() -> Result<()> {
    let world = ended().await?;
    let bundle = exported(&world).await?;
    let refusal = async |shard, bundle: &[u8], code, words: &str, kind| {
        refused(&world, (shard, bundle), (code, words), kind).await
    };
    let without = Prunings::open(world.erasures.clone(), None).await?;
    let asker = super::erasing::asker(&world.operator);
    let (shard, by) = ((OLD, &Digest::of(&bundle)), (world.dir.path(), &world.checkpointer));
    let kept = without.prune(asker, shard, by, Timestamp::from_millis(0)).await;
    let kept = kept.err().context("there is no policy")?;
    ensure!(kept.code.as_str() == "not_found" && kept.detail.contains("log.retention"), "{kept}");
    refusal(OLD, &bundle, "unavailable", "cannot be used", Kind::AdminRead).await?;
    let file = world.dir.path().join(RETENTION);
    fs::write(&file, "keep_months = 0\narticle = \"x\"\ndecided_by = \"x\"\n")?;
    refusal(OLD, &bundle, "unavailable", "cannot be used", Kind::AdminRead).await?;
    fs::write(&file, policy(120))?;
    refusal("falaj.test/none", &bundle, "not_found", "no such shard", Kind::AdminRead).await?;
    refusal(NEW, &bundle, "retained", "still written", Kind::AdminRead).await?;
    refusal(OLD, b"another", "conflict", "export it again", Kind::AdminRead).await?;
    // Who may not do it is told so before anything is compared.
    let body = pruning(OLD, &Digest::of(b"another").0);
    let request = Request::post("/api/v1/log/prunings").body(body.into())?;
    let answer = world.ask(request, &world.site).await?;
    ensure!(answer.status() == StatusCode::FORBIDDEN, "{}", text(answer).await?);
    // The study's own term first, then the policy's.
    let entry = refusal(OLD, &bundle, "retained", "kidney", Kind::PruningRefused).await?;
    ensure!(entry.body().text("study") == Ok("kidney") && entry.body().text("log") == Ok(OLD));
    let (old, _) = world.engine.parts().shards.find(OLD).context("the old shard")?;
    let size = old.size().await?;
    let (_, last, _) = old.entries(size - 1, size, 1, None).await?.remove(0);
    let ts = Entry::parse(&last)?.ts.parse::<jiff::Timestamp>()?;
    let until = term_end(Timestamp::from_millis(ts.as_millisecond()), 120);
    let end = Timestamp::from_millis(until.parse::<jiff::Timestamp>()?.as_millisecond());
    let prune = async |now: Timestamp| {
        let asker = super::erasing::asker(&world.operator);
        let shard = (OLD, &Digest::of(&bundle));
        let by = (world.dir.path(), &world.checkpointer);
        world.prunings.prune(asker, shard, by, now).await
    };
    let early = prune(Timestamp::from_millis(end.as_millis() - 1)).await;
    let early = early.err().context("it is too early")?;
    ensure!(early.code.as_str() == "retained" && early.detail.contains(&until), "{early}");
    let newest = world.entries(world.writer.head().0 - 1).await?.remove(0);
    ensure!(newest.kind == Kind::PruningRefused && newest.body().text("until") == Ok(&*until));
    ensure!(newest.body().text("article") == Ok(ARTICLE));
    // Whatever the terms say, holds come first; one that covers nothing in the shard keeps nothing.
    let held = |what: &str| format!("{{{what},\"article\":\"Court order 12\"}}");
    let study = held(&format!("\"study\":\"{STUDY}\""));
    let person = held(&format!("\"person\":\"{}\"", world.operator.actor.name()));
    for body in [study, person] {
        let request = Request::post("/api/v1/holds").body(body.into())?;
        let hold: Value =
            serde_json::from_str(&text(world.ask(request, &world.operator).await?).await?)?;
        let hold = hold["hold"].as_str().context("a hold")?;
        let kept = prune(end).await.err().context("a hold stands")?;
        ensure!(kept.code.as_str() == "legal_hold" && kept.detail.contains(hold), "{kept}");
        let newest = world.entries(world.writer.head().0 - 1).await?.remove(0);
        ensure!(newest.kind == Kind::PruningRefused && newest.body().text("hold") == Ok(hold));
        world.call(Method::POST, &format!("/api/v1/holds/{hold}/release")).await?;
    }
    ensure!(old.entries(0, size, 1_000, None).await?.len() as u64 == size, "something is gone");
    let before = world.writer.head().0;
    let done = prune(end).await?;
    ensure!(done.entries == size);
    let entries = world.entries(before).await?;
    let kinds: Vec<Kind> = entries.iter().map(|e| e.kind).collect();
    ensure!(kinds == [Kind::PruningBegun, Kind::PruningPerformed], "{kinds:?}");
    ensure!(entries[1].seq == done.index);
    let begun = entries[0].body();
    let lines = begun.list("policy")?.into_iter().map(|line| line.as_text().unwrap_or_default());
    ensure!(lines.collect::<Vec<_>>().join("\n") == policy(120));
    ensure!(begun.parsed("policy_sha256") == Ok(Digest::of(policy(120).as_bytes())));
    for entry in &entries {
        ensure!(entry.actor_person() == world.operator.actor.person);
        ensure!(entry.body().parsed("bundle_sha256") == Ok(Digest::of(&bundle)));
        ensure!(entry.body().text("article") == Ok(ARTICLE));
    }
    let again = prune(end).await.err().context("it is pruned")?;
    ensure!(again.code.as_str() == "pruned" && again.code.http() == 410, "{again}");
    gone(&world, &bundle).await
}

/// Whoever asks for contents is told; proofs are served as before, and the coordinator starts again.
async fn gone(world: &World, bundle: &[u8]) -> Result<()> {
    for path in [
        format!("log/export?shard={OLD}"),
        format!("log/mirror?from=0&place=ae-on/ae-az&shard={OLD}"),
        format!("log/entries?shard={OLD}"),
        format!("log/accesses?object={STUDY}&shard={OLD}"),
    ] {
        let (status, code) = world.refusal(&path).await?;
        ensure!((status, &*code) == (StatusCode::GONE, "pruned"), "{path}: {status} {code}");
    }
    let shards = world.get("log/shards").await?;
    ensure!(shards["items"][0]["pruned"] == true && shards["items"][1]["pruned"] == false);
    let proof =
        world.call(Method::GET, &format!("/api/v1/log/entries/1/proof?shard={OLD}")).await?;
    ensure!(proof.status() == StatusCode::OK);
    ensure!(asked(world, OLD, bundle).await?.1["code"] == "pruned");
    // What was kept is known at the next start.
    Erasures::open(world.engine.clone()).await?;
    let revocations = Revocations::open(world.engine.clone(), trusted(world.dir.path())?).await?;
    let revoked = revocations.all().await;
    ensure!(revoked.len() == 1 && revoked[0].subject.to_string() == REVOKED, "{revoked:?}");
    Ok(())
}

/// AUD-04: a pruning that a crash interrupted, before or in the middle of it, is finished at the next start, once.
#[tokio::test]
async fn a_pruning_that_was_interrupted_is_finished_at_the_next_start() -> Result<()> {
    for pages in [false, true] {
        let world = ended().await?;
        let bundle = exported(&world).await?;
        let (old, _) = world.engine.parts().shards.find(OLD).context("the old shard")?;
        let begun = Draft::new(Kind::PruningBegun)
            .text("log", OLD)
            .text("article", ARTICLE)
            .digest("bundle_sha256", &Digest::of(&bundle))
            .digest("policy_sha256", &Digest::of(policy(1).as_bytes()))
            .count("entries", old.size().await?);
        world.writer.record(vec![begun]).await?;
        if pages {
            let shard = old.shard().clone();
            let rows = vec![Change::Prune(shard.clone()), Change::Empty(shard, 0, 3)];
            world.writer.commit(Commit { rows, ..Commit::default() }).await?;
        }
        let before = world.writer.head().0;
        for _ in 0..2 {
            Prunings::open(world.erasures.clone(), None).await?;
        }
        let entries = world.entries(before).await?;
        let kinds: Vec<Kind> = entries.iter().map(|e| e.kind).collect();
        ensure!(kinds == [Kind::PruningPerformed], "{kinds:?}");
        ensure!(entries[0].body().parsed("bundle_sha256") == Ok(Digest::of(&bundle)));
        fs::write(world.dir.path().join(RETENTION), policy(1))?;
        gone(&world, &bundle).await?;
    }
    Ok(())
}

/// CMP-04: a hold that the log took too late to be told of keeps a shard, too.
#[tokio::test]
async fn a_shard_is_not_pruned_under_a_hold_that_the_log_took_late() -> Result<()> {
    let world = ended().await?;
    let bundle = exported(&world).await?;
    fs::write(world.dir.path().join(RETENTION), policy(1))?;
    let sara = super::erasing::asker(&world.operator);
    let (shard, by) = ((OLD, &Digest::of(&bundle)), (world.dir.path(), &world.checkpointer));
    in_doubt(&world, world.erasures.place(sara, (None, Some(STUDY)), ARTICLE)).await?;
    late(&world, Draft::new(Kind::HoldPlaced).study(&STUDY.parse()?)).await?;
    let far = Timestamp::parse("2999-01-01T00:00:00.000Z").context("a time")?;
    let kept = world.prunings.prune(sara, shard, by, far).await.err().context("a hold stands")?;
    ensure!(kept.code.as_str() == "legal_hold", "{kept}");
    let (old, _) = world.engine.parts().shards.find(OLD).context("the old shard")?;
    ensure!(!old.pruned().await?, "pruned all the same");
    Ok(())
}

/// Entries of prunings, of those from an index on.
async fn of(world: &World, from: u64) -> Result<Vec<Entry>> {
    let is =
        |kind| matches!(kind, Kind::PruningBegun | Kind::PruningPerformed | Kind::PruningRefused);
    Ok(world.entries(from).await?.into_iter().filter(|entry| is(entry.kind)).collect())
}

/// CMP-04: a pruning that was begun, and that a hold came before, waits until that is released, before anything was deleted or in the
/// middle of it; then it goes on when it is asked for again, and once.
#[tokio::test]
async fn a_pruning_that_was_begun_waits_for_a_hold_that_was_placed_since() -> Result<()> {
    for pages in [false, true] {
        let world = ended().await?;
        let bundle = exported(&world).await?;
        fs::write(world.dir.path().join(RETENTION), policy(1))?;
        let sara = super::erasing::asker(&world.operator);
        let asker = keyed(sara, "late");
        let (old, _) = world.engine.parts().shards.find(OLD).context("the old shard")?;
        let size = old.size().await?;
        let begun = asker
            .makes(Kind::PruningBegun)
            .text("log", OLD)
            .text("article", ARTICLE)
            .digest("bundle_sha256", &Digest::of(&bundle))
            .digest("policy_sha256", &Digest::of(policy(1).as_bytes()))
            .count("entries", size);
        world.writer.record(vec![begun]).await?;
        let gone_below = if pages { 3 } else { 0 };
        if pages {
            let shard = old.shard().clone();
            let rows = vec![Change::Prune(shard.clone()), Change::Empty(shard, 0, gone_below)];
            world.writer.commit(Commit { rows, ..Commit::default() }).await?;
        }
        let hold = world.erasures.place(sara, (None, Some(STUDY)), ARTICLE).await?;
        let before = world.writer.head().0;
        Prunings::open(world.erasures.clone(), None).await?;
        ensure!(of(&world, before).await?.is_empty(), "{pages}: it went on past a hold");
        let (shard, by) = ((OLD, &Digest::of(&bundle)), (world.dir.path(), &world.checkpointer));
        let now = falaj_coordinator::clock::now();
        let prune = async || world.prunings.prune(asker, shard, by, now).await;
        let kept = prune().await.err().context("a hold stands")?;
        ensure!(kept.code.as_str() == "legal_hold" && kept.detail.contains(&hold.id), "{kept}");
        let entries = of(&world, before).await?;
        let [refused] = &entries[..] else { anyhow::bail!("{pages}: {entries:?}") };
        ensure!(refused.kind == Kind::PruningRefused && refused.body().text("log") == Ok(OLD));
        let left = old.entries(gone_below, size, 1_000, None).await?.len() as u64;
        ensure!(left == size - gone_below, "{pages}: {left} are left of {size}");
        world.erasures.release(sara, &hold.id).await?;
        let before = world.writer.head().0;
        let done = prune().await?;
        ensure!(done.entries == size && prune().await? == done);
        let entries = of(&world, before).await?;
        let [performed] = &entries[..] else { anyhow::bail!("{pages}: {entries:?}") };
        ensure!(performed.kind == Kind::PruningPerformed && performed.seq == done.index);
        gone(&world, &bundle).await?;
    }
    Ok(())
}

/// A version that was made in a shard which was pruned since, and of which nobody had anything signed; three sites had learned it,
/// in a study with these gates.
async fn with_a_pruned_version(gates: &str) -> Result<World> {
    let world = World::over(tempfile::tempdir()?).await?;
    let yaml = study(STUDY).replace("min_sites: 2", "min_sites: 3") + gates;
    let request = Request::post("/api/v1/studies").body(yaml.into())?;
    let answer = world.ask(request, &world.operator).await?;
    ensure!(answer.status() == StatusCode::CREATED, "{}", text(answer).await?);
    let answer = world.call(Method::POST, &format!("/api/v1/studies/{STUDY}/stop")).await?;
    ensure!(answer.status() == StatusCode::OK, "{}", text(answer).await?);
    let sites = [("hospital-1", "0.5"), ("hospital-2", "0.75"), ("hospital-3", "0.5")];
    let compared = [
        "1.000000e0 0.900000 hospital-1",
        "1.250000e0 0.812500 hospital-2",
        "1.500000e0 0.500000 hospital-3",
    ];
    let tell = |published: Draft| published.texts("compared", compared.map(str::to_owned));
    super::versions::gave_in(&world, (STUDY, 2), &sites, tell).await?;
    ensure!(world.promoted(2, &[]).await? == 1);
    let shown = world.get(&version("")).await?;
    let passes = shown["gates"].as_array().context("gates")?.iter().all(|g| g["pass"] == true);
    ensure!(passes && shown["stage"] == "candidate", "{shown}");
    world.get("log/checkpoint").await?;
    let world = world.next(NEW).await?;
    let bundle = exported(&world).await?;
    fs::write(world.dir.path().join(RETENTION), policy(1))?;
    let asker = super::erasing::asker(&world.operator);
    let (shard, by) = ((OLD, &Digest::of(&bundle)), (world.dir.path(), &world.checkpointer));
    let later = Timestamp::parse("2999-01-01T00:00:00.000Z").context("a time")?;
    world.prunings.prune(asker, shard, by, later).await?;
    Ok(world)
}

fn version(what: &str) -> String {
    format!("studies/{STUDY}/versions/1{what}")
}

/// What is answered to an operator who puts the version into staging.
async fn staged(world: &World) -> Result<(StatusCode, Value)> {
    let staging = serde_json::json!({ "stage": "staging" });
    world.post(&version("/promote"), &staging, &world.operator).await
}

#[tokio::test]
async fn what_a_version_was_made_of_is_signed_before_it_is_deleted_and_it_goes_on() -> Result<()> {
    let gates = "gates: [{ metric: sites, at_least: 3, when: promotion }]\n";
    let world = with_a_pruned_version(gates).await?;
    let path = format!("/api/v1/{}", version("/provenance"));
    let answer = world.call(Method::GET, &path).await?;
    ensure!(answer.status() == StatusCode::OK, "{}", text(answer).await?);
    let signed = text(answer).await?;
    let before = world.writer.head().0;
    let (status, moved) = staged(&world).await?;
    ensure!(status == StatusCode::OK && moved["stage"] == "staging", "{moved}");
    let entries = world.entries(before).await?;
    let promoted = entries.iter().find(|e| e.kind == Kind::VersionPromoted).context("an entry")?;
    let said = promoted.body().parsed("provenance_sha256");
    ensure!(said == Ok(Digest::of(signed.as_bytes())), "{promoted:?}");
    // Of another round, of which nobody made a version in time, nothing can be signed any more.
    let path = format!("studies/{STUDY}/versions");
    let round = serde_json::json!({ "round": 3 });
    let sites = [("hospital-1", "0.5"), ("hospital-2", "0.75"), ("hospital-3", "0.5")];
    super::versions::gave_in(&world, (STUDY, 3), &sites, |published| published).await?;
    let (status, problem) = world.post(&path, &round, &world.operator).await?;
    ensure!(status == StatusCode::CONFLICT && problem["code"] == "wrong_stage", "{problem}");
    ensure!(problem["detail"].to_string().contains("earlier shard"), "{problem}");
    Ok(())
}

#[tokio::test]
async fn a_version_of_whose_updates_nothing_is_known_any_more_fails_gates_on_them() -> Result<()> {
    let gates = "gates:\n  - { metric: sites, at_least: 3, when: promotion }\n  - { metric: update_norm_ratio, each_site: true, at_most: 8, when: promotion }\n";
    let world = with_a_pruned_version(gates).await?;
    let (status, problem) = staged(&world).await?;
    ensure!(status == StatusCode::CONFLICT && problem["code"] == "gate_failed", "{problem}");
    let why = problem["detail"].as_str().context("a detail")?;
    ensure!(
        why.ends_with(
            "it fails 1 of its study's gates that are asked then: update_norm_ratio at each site: nobody has compared the 3 updates, at most 8 needed"
        ),
        "{why}"
    );
    let shown = world.get(&version("")).await?;
    ensure!(shown["stage"] == "candidate" && shown["gates"][0]["pass"] == true, "{shown}");
    ensure!(shown["gates"][1]["pass"] == false, "{shown}");
    Ok(())
}
