//! Entries by what they are, and who accessed what, with proofs.

use super::world::{STUDY, World};
use anyhow::{Context as _, Result, ensure};
use axum::http::StatusCode;
use falaj_core::{
    audit::{Draft, Entry, Kind, objects},
    id::Digest,
    merkle::leaf_hash,
    note::{Checkpoint, VerifierKey},
    witness::InclusionProof,
};
use falaj_proto::rest::{Accesses, ProvenEntry};
use serde_json::Value;
use sqlx::{
    Row as _,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

/// Whether an entry has this value, as a filter means it.
type Passes = fn(&Value, &str) -> bool;

fn key() -> VerifierKey {
    super::world::signer().verifier().clone()
}

async fn accesses(world: &World, query: &str) -> Result<Accesses> {
    Ok(serde_json::from_value(world.get(&format!("log/accesses?{query}")).await?)?)
}

/// Checks a row as a stranger does who has the log's key alone.
fn proven(row: &ProvenEntry, note: &str) -> Result<Entry> {
    let hashes = row.proof.iter().map(|h| h.parse()).collect::<Result<_, _>>()?;
    let proof = InclusionProof { index: row.index, hashes, note: note.to_owned() };
    proof.verify(&leaf_hash(row.bytes.as_bytes()), &key())?;
    Ok(Entry::parse(row.bytes.as_bytes())?)
}

fn indices(answer: &Accesses) -> Vec<u64> {
    answer.items.iter().map(|e| e.index).collect()
}

#[tokio::test]
async fn whatever_touched_an_object_is_found_and_each_row_is_proven_under_one_checkpoint()
-> Result<()> {
    let world = World::new().await?;
    let site = world.site.actor.id.clone().context("a site")?;
    let payload = Digest::of(b"payload");
    let study = STUDY.parse()?;
    let draft = |n: u64| {
        let draft = Draft::new(Kind::UpdateDuplicate).count("n", n).study(&study);
        if n.is_multiple_of(3) { draft.digest("payload_sha256", &payload) } else { draft }
    };
    world.writer.record((0..700).map(draft).collect()).await?;
    for object in [payload.to_string(), payload.to_string()[..9].to_owned(), STUDY.to_owned()] {
        // Page after page, under the first page's checkpoint, although each page adds to the log.
        let (mut rows, mut cursor, mut notes) = (Vec::new(), String::new(), Vec::new());
        let tree_size = loop {
            let page = accesses(&world, &format!("object={object}&limit=100{cursor}")).await?;
            for row in &page.items {
                let entry = proven(row, &page.checkpoint.note)?;
                let named = objects::objects(&entry);
                ensure!(named.iter().any(|o| o.to_string() == page.object), "{}", row.bytes);
                rows.push(row.index);
            }
            notes.push(page.checkpoint.note.clone());
            match page.next {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break page.checkpoint.tree_size,
            }
        };
        ensure!(notes.iter().all(|note| *note == notes[0]), "there are several checkpoints");
        // Nothing that a look at every entry finds is missing.
        let all = world.entries(0).await?;
        let touched = |e: &&Entry| {
            objects::objects(e).iter().any(|o| o.to_string().starts_with(&object))
                && e.seq < tree_size
        };
        let wanted: Vec<u64> = all.iter().filter(touched).map(|e| e.seq).collect();
        ensure!(rows == wanted, "{object}: {} rows, and not {}", rows.len(), wanted.len());
        // Whoever asks has touched it: that is the newest row.
        let asked = all.get(usize::try_from(*rows.last().context("rows")?)?).context("an entry")?;
        ensure!(asked.kind == Kind::AdminRead, "{:?}", asked.kind);
    }
    ensure!(
        accesses(&world, &format!("object={site}")).await?.items.len() == 1,
        "only the question"
    );
    Ok(())
}

#[tokio::test]
async fn a_changed_row_proves_nothing() -> Result<()> {
    let world = World::new().await?;
    let page = accesses(&world, &format!("object={STUDY}")).await?;
    let row = &page.items[0];
    proven(row, &page.checkpoint.note)?;
    let lied = ProvenEntry { bytes: row.bytes.replace("\"v\":1", "\"v\":2"), ..row.clone() };
    ensure!(proven(&lied, &page.checkpoint.note).is_err(), "another entry");
    let moved = ProvenEntry { index: row.index + 1, ..row.clone() };
    ensure!(proven(&moved, &page.checkpoint.note).is_err(), "another place");
    ensure!(
        Checkpoint::open(&page.checkpoint.note, &key())?.tree_size == page.checkpoint.tree_size
    );
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_and_said_to_be() -> Result<()> {
    let world = World::new().await?;
    let twins = [Digest([0xab; 32]), {
        let mut other = [0xab; 32];
        other[31] = 0;
        Digest(other)
    }];
    let drafts = twins.iter().map(|d| Draft::new(Kind::ModelRead).digest("model_sha256", d));
    world.writer.record(drafts.collect()).await?;
    for (path, status, code) in [
        ("log/accesses?object=abababab", StatusCode::BAD_REQUEST, "malformed"),
        ("log/accesses?object=00000000", StatusCode::NOT_FOUND, "not_found"),
        ("log/accesses?object=Fatima%20A", StatusCode::BAD_REQUEST, "malformed"),
        ("log/accesses?object=heart&since=yesterday", StatusCode::BAD_REQUEST, "malformed"),
        ("log/accesses?object=heart&cursor=7", StatusCode::BAD_REQUEST, "malformed"),
        ("log/accesses?object=heart&cursor=0.999999", StatusCode::BAD_REQUEST, "malformed"),
        ("log/accesses?object=heart&witnessed=true", StatusCode::NOT_FOUND, "not_found"),
        ("log/entries?round=1", StatusCode::BAD_REQUEST, "malformed"),
        ("log/entries?kind=nothing", StatusCode::BAD_REQUEST, "malformed"),
        ("log/entries?decision=maybe", StatusCode::BAD_REQUEST, "malformed"),
        ("log/entries?actor=sara", StatusCode::BAD_REQUEST, "malformed"),
        ("log/entries?policy=a%20b", StatusCode::BAD_REQUEST, "malformed"),
    ] {
        let before = world.writer.head().0;
        let refused = world.refusal(path).await?;
        ensure!(refused == (status, code.to_owned()), "{path}: {refused:?}");
        // Refused or not, it is in the log, and foreign words are not.
        let entries = world.entries(before).await?;
        ensure!(entries.len() == 1 && entries[0].kind == Kind::AdminRead, "{path}");
        let bytes = String::from_utf8(entries[0].body().to_bytes())?;
        ensure!(!bytes.contains("Fatima") && !bytes.contains("yesterday"), "{bytes}");
    }
    Ok(())
}

#[tokio::test]
async fn every_filter_gives_what_a_look_at_each_entry_gives() -> Result<()> {
    let world = World::new().await?;
    let study = STUDY.parse()?;
    let other = "lung".parse()?;
    let drafts = (0..300_u32).map(|n| {
        let actor = if n.is_multiple_of(2) { &world.operator.actor } else { &world.site.actor };
        let study = if n.is_multiple_of(3) { &study } else { &other };
        let round = falaj_core::id::RoundId { study: Clone::clone(study), number: n % 5 + 1 };
        let policy = if n.is_multiple_of(7) { "ACC-100" } else { "RES-001" };
        let kind = if n.is_multiple_of(4) { Kind::ModelRead } else { Kind::AccessDenied };
        let set = Digest::of(b"set");
        Draft::new(kind).actor(actor).round(&round).decided(n % 11 < 6, &[policy.into()], &set)
    });
    let first = world.writer.record(drafts.collect()).await?.first;
    let sara = world.operator.actor.id.as_ref().context("an operator")?.to_string();
    let filters: [(&str, String, Passes); 6] = [
        ("actor", sara, |e, v| {
            // By whichever name somebody asks: nobody else in this world is a person.
            assert!(v.contains("sara"));
            !e["actor"]["person"].is_null()
        }),
        ("study", STUDY.into(), |e, v| e["study"] == v || e["asked"]["object"] == v),
        ("decision", "deny".into(), |e, v| e["decision"] == v),
        ("policy", "ACC-100".into(), |e, v| {
            e["policy_ids"].as_array().is_some_and(|p| p.iter().any(|p| p == v))
        }),
        ("kind", "model.read".into(), |e, v| e["kind"] == v),
        ("from", first.to_string(), |e, v| e["seq"].as_u64() >= v.parse().ok()),
    ];
    for chosen in 0..1_u32 << filters.len() {
        let chosen: Vec<_> = filters
            .iter()
            .enumerate()
            .filter(|(i, _)| chosen >> i & 1 == 1)
            .map(|(_, f)| f)
            .collect();
        let query: Vec<String> = chosen.iter().map(|(name, v, _)| format!("{name}={v}")).collect();
        let before = world.entries(0).await?;
        let wanted: Vec<u64> = before
            .iter()
            .map(|e| serde_json::from_slice::<Value>(&e.body().to_bytes()))
            .collect::<Result<Vec<_>, _>>()?
            .iter()
            .filter(|e| chosen.iter().all(|(_, v, passes)| passes(e, v)))
            .filter_map(|e| e["seq"].as_u64())
            .collect();
        let page = world.get(&format!("log/entries?limit=1000&{}", query.join("&"))).await?;
        let items = page["items"].as_array().context("items")?;
        let found: Vec<u64> = items.iter().filter_map(|e| e["index"].as_u64()).collect();
        // The question itself may be the newest.
        let found: Vec<u64> = found.into_iter().filter(|n| *n < before.len() as u64).collect();
        ensure!(found == wanted, "{query:?}: {found:?} and not {wanted:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_span_of_time_is_cut_where_it_should_be() -> Result<()> {
    let world = World::new().await?;
    for n in 0..20 {
        world.writer.record(vec![Draft::new(Kind::PolicyLoaded).count("n", n)]).await?;
    }
    let all = world.entries(0).await?;
    let at = &all[all.len() / 2].ts;
    let count = |test: &dyn Fn(&Entry) -> bool| all.iter().filter(|e| test(e)).count();
    let kind = |e: &Entry| e.kind == Kind::PolicyLoaded;
    for (query, wanted) in [
        (format!("since={at}"), count(&|e| kind(e) && e.ts >= *at)),
        (format!("until={at}"), count(&|e| kind(e) && e.ts < *at)),
        (format!("until={}", &at[..10]), 20),
        ("since=2001-01-01&until=2001-12-31".to_owned(), 0),
    ] {
        let page = world.get(&format!("log/entries?kind=policy.loaded&{query}")).await?;
        let found = page["items"].as_array().context("items")?.len();
        ensure!(found == wanted, "{query}: {found} and not {wanted}");
    }
    Ok(())
}

#[tokio::test]
async fn a_log_from_before_there_was_an_index_is_put_into_it_at_the_start() -> Result<()> {
    let world = World::new().await?;
    let payload = Digest::of(b"payload");
    for _ in 0..3 {
        let draft = || Draft::new(Kind::UpdateDuplicate).digest("payload_sha256", &payload);
        world.writer.record((0..900).map(|_| draft()).collect()).await?;
    }
    let options = SqliteConnectOptions::new().filename(world.dir.path().join("coordinator.sqlite"));
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    let dump =
        "SELECT name, seq FROM log_objects JOIN log_object_names ON id = object ORDER BY name, seq";
    let index = async || -> Result<Vec<(String, i64)>> {
        let rows = sqlx::query(dump).fetch_all(&pool).await?;
        Ok(rows.iter().map(|r| (r.get("name"), r.get("seq"))).collect())
    };
    let written = index().await?;
    ensure!(written.len() > 2_700, "{} rows", written.len());
    // As an older database is after the migration; and as one that was interrupted in the middle.
    let size = world.writer.head().0;
    for (first, gone) in [(0, "1 = 1"), (1_000, "seq >= 1000")] {
        for statement in [
            format!("DELETE FROM log_objects WHERE {gone}"),
            "DELETE FROM log_object_names WHERE id NOT IN (SELECT object FROM log_objects)".into(),
            format!("INSERT INTO log_objects_lack VALUES ({first}, {size})"),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&pool).await?;
        }
        ensure!(index().await? != written, "nothing was taken away");
        let (_, writing) =
            falaj_coordinator::store::Store::open(&falaj_coordinator::store::Database::Sqlite(
                world.dir.path().join("coordinator.sqlite"),
            ))
            .await?;
        let metrics = std::sync::Arc::new(falaj_coordinator::metrics::Metrics::default());
        falaj_coordinator::store::writer::open(writing, &super::world::signer(), None, metrics)
            .await?;
        ensure!(index().await? == written, "the index is another one");
    }
    let page = accesses(&world, &format!("object={payload}&limit=1000")).await?;
    ensure!(indices(&page).len() == 1_000 && page.next.is_some(), "{:?}", page.next);
    Ok(())
}
