//! A shard that has ended, asked as the one that is written is: each answer stands under the shard's own checkpoint and key.

use super::world::{STUDY, World, signer, text};
use anyhow::{Context as _, Result, ensure};
use axum::http::{Method, StatusCode};
use falaj_core::{
    audit::{Draft, Entry, Kind, objects::objects, person::Disclosure},
    id::Digest,
    merkle::leaf_hash,
    note::{Checkpoint, VerifierKey},
    witness::InclusionProof,
};
use falaj_proto::rest::Accesses;
use serde_json::Value;

const OLD: &str = "falaj.test/log";
const NEW: &str = "falaj.test/log/2";
/// Entries about one payload in the shard that ended, and in the next.
const BEFORE: usize = 300;
const AFTER: usize = 7;

fn payload() -> Digest {
    Digest::of(b"payload")
}

async fn written(world: &World, entries: usize) -> Result<()> {
    let (study, payload) = (STUDY.parse()?, payload());
    let draft = |_| {
        Draft::new(Kind::UpdateDuplicate)
            .actor(&world.operator.actor)
            .study(&study)
            .digest("payload_sha256", &payload)
    };
    world.writer.record((0..entries).map(draft).collect()).await?;
    Ok(())
}

/// A log of two shards, of which the first has a time-stamp.
async fn two_shards() -> Result<World> {
    let world = World::over(tempfile::tempdir()?).await?;
    written(&world, BEFORE).await?;
    world.stamp().await?;
    world.get("log/checkpoint").await?;
    let world = world.next(NEW).await?;
    written(&world, AFTER).await?;
    Ok(world)
}

/// Every page of an answer, each row checked as a stranger does who has the shard's key alone. The indices, and entries in
/// the checkpoint.
async fn proven(world: &World, query: &str, key: &VerifierKey) -> Result<(Vec<u64>, u64)> {
    let (mut indices, mut cursor, mut notes) = (Vec::new(), String::new(), Vec::new());
    loop {
        let page = world.get(&format!("log/accesses?{query}&limit=100{cursor}")).await?;
        let page: Accesses = serde_json::from_value(page)?;
        for row in &page.items {
            let hashes = row.proof.iter().map(|h| h.parse()).collect::<Result<_, _>>()?;
            let note = page.checkpoint.note.clone();
            let proof = InclusionProof { index: row.index, hashes, note };
            proof.verify(&leaf_hash(row.bytes.as_bytes()), key)?;
            let entry = Entry::parse(row.bytes.as_bytes())?;
            ensure!(objects(&entry).iter().any(|o| o.to_string() == page.object), "{}", row.bytes);
            let personal = row.personal.as_ref().context("nobody is disclosed")?;
            entry.disclosed(&Disclosure::parse(personal.as_bytes())?)?;
            indices.push(row.index);
        }
        notes.push(page.checkpoint.note);
        match page.next {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    ensure!(notes.iter().all(|note| *note == notes[0]), "there are several checkpoints");
    Ok((indices, Checkpoint::open(&notes[0], key)?.tree_size))
}

/// AUD-11, AUD-14: who accessed a thing is asked of either shard, and every row is proven by the key of its own.
#[tokio::test]
async fn who_accessed_a_thing_in_a_shard_that_ended_is_proven_under_its_last_checkpoint()
-> Result<()> {
    let world = two_shards().await?;
    let shards = world.engine.parts().shards.all();
    let (old, new) = (shards[0].1.newest(), shards[1].1.newest());
    ensure!(old == signer().verifier() && new.name() == NEW);
    for (shard, key, least) in [(OLD, old, BEFORE), (NEW, new, AFTER)] {
        for object in [payload().to_string(), payload().to_string()[..9].to_owned(), STUDY.into()] {
            let query = format!("object={object}&shard={shard}");
            let (found, size) = proven(&world, &query, key).await?;
            let (store, _) = world.engine.parts().shards.find(shard).context("a shard")?;
            let rows = store.entries(0, size, 10_000, None).await?;
            let touched = |(index, bytes, _): &(u64, Vec<u8>, Digest)| {
                let entry = Entry::parse(bytes).ok()?;
                let mut objects = objects(&entry).into_iter().map(|o| o.to_string());
                objects.any(|o| o.starts_with(&object)).then_some(*index)
            };
            let wanted: Vec<u64> = rows.iter().filter_map(touched).collect();
            ensure!(found == wanted && found.len() >= least, "{query}: {found:?} {wanted:?}");
            ensure!(!store.ended() || size == store.size().await?, "it has more entries");
        }
    }
    // Who asks nothing of shards asks the one that is written.
    let (found, _) = proven(&world, &format!("object={}", payload()), new).await?;
    ensure!(found.len() < BEFORE, "{}", found.len());
    // In the span of time of the old shard there is nothing of the new one.
    let (store, _) = world.engine.parts().shards.find(OLD).context("a shard")?;
    let (_, first, _) = store.entries(0, 1, 1, None).await?.remove(0);
    let query = format!("object={STUDY}&shard={OLD}&until={}", Entry::parse(&first)?.ts);
    ensure!(proven(&world, &query, old).await?.0.is_empty());
    Ok(())
}

/// AUD-11, AUD-14.
#[tokio::test]
async fn entries_streams_and_time_stamps_of_a_shard_that_ended_are_given() -> Result<()> {
    let world = two_shards().await?;
    let count = async |query: &str| -> Result<usize> {
        let page = world.get(&format!("log/entries?limit=1000&{query}")).await?;
        let items = page["items"].as_array().context("items")?;
        ensure!(items.iter().all(|e| e["index"] == e["entry"]["seq"]), "{query}");
        Ok(items.len())
    };
    let kind = "kind=update.duplicate";
    ensure!(count(&format!("{kind}&shard={OLD}")).await? == BEFORE);
    ensure!(count(kind).await? == AFTER && count(&format!("{kind}&shard={NEW}")).await? == AFTER);
    ensure!(count(&format!("kind=log.closed&shard={OLD}")).await? == 1);
    ensure!(count(&format!("{kind}&shard={OLD}&since=2001-01-01&study={STUDY}")).await? == BEFORE);
    ensure!(count(&format!("{kind}&shard={OLD}&until=2001-01-01")).await? == 0);

    let path = format!("/api/v1/log/tail?last=3&shard={OLD}");
    let answer = world.call(Method::GET, &path).await?;
    let stream = text(answer).await?;
    let ids: Vec<u64> =
        stream.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    let (store, _) = world.engine.parts().shards.find(OLD).context("a shard")?;
    let size = store.size().await?;
    ensure!(ids == [size - 3, size - 2, size - 1], "{ids:?} of {size}");
    ensure!(stream.contains("log.closed") && stream.contains("event: end"), "{stream}");
    let follow = world.refusal(&format!("log/tail?follow=true&shard={OLD}")).await?;
    ensure!(follow == (StatusCode::BAD_REQUEST, "malformed".into()), "{follow:?}");

    let stamps = |page: Value| page["items"].as_array().map(Vec::len);
    ensure!(stamps(world.get(&format!("log/timestamps?shard={OLD}")).await?) == Some(1));
    ensure!(stamps(world.get("log/timestamps").await?) == Some(0));
    let path = format!("/api/v1/log/timestamps/1?shard={OLD}");
    let answer = world.call(Method::GET, &path).await?;
    ensure!(answer.status() == StatusCode::OK && text(answer).await? == "answer");
    ensure!(world.refusal("log/timestamps/1").await?.0 == StatusCode::NOT_FOUND);
    Ok(())
}

/// AUD-14: each question is an entry of the shard that is written, which says about which shard it was; an origin that there
/// is not is named to who asked, and not kept.
#[tokio::test]
async fn a_question_about_another_shard_is_an_entry_and_an_unknown_shard_is_named() -> Result<()> {
    let world = two_shards().await?;
    let about = format!("object={}", payload());
    let question = format!("log/accesses?{about}");
    for path in [&question, "log/entries?from=0", "log/timestamps?cursor=0", "log/tail?last=1"] {
        let before = world.writer.head().0;
        let answer = world.call(Method::GET, &format!("/api/v1/{path}&shard={OLD}")).await?;
        ensure!(answer.status() == StatusCode::OK, "{path}: {}", text(answer).await?);
        let entry = world.entries(before).await?.into_iter().next().context("an entry")?;
        let asked = entry.body().member("asked").context("what was asked")?;
        ensure!(asked.text("shard") == Ok(OLD), "{path}");

        let before = world.writer.head().0;
        let unknown = format!("/api/v1/{path}&shard=falaj.test/elsewhere");
        let answer = world.call(Method::GET, &unknown).await?;
        ensure!(answer.status() == StatusCode::NOT_FOUND, "{path}: {}", answer.status());
        let why = text(answer).await?;
        ensure!(why.contains("no shard falaj.test/elsewhere"), "{path}: {why}");
        ensure!(why.contains(OLD) && why.contains("`falaj log shards`"), "{path}: {why}");
        let entries = world.entries(before).await?;
        ensure!(entries.len() == 1 && entries[0].kind == Kind::AdminRead, "{path}: {entries:?}");
        let bytes = String::from_utf8(entries[0].body().to_bytes())?;
        ensure!(!bytes.contains("elsewhere"), "{bytes}");
    }
    Ok(())
}
