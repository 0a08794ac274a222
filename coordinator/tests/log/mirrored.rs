//! What a mirror of the log is given: an export like any other, which leads from what it has to the newest checkpoint.

use super::world::{NETWORKS, PATIENCE, World, signer, text};
use anyhow::{Context as _, Result, ensure};
use axum::{
    body::{Body, to_bytes},
    http::{Method, Request, StatusCode},
};
use falaj_core::{
    audit::{Entry, Kind},
    merkle::{Frontier, entries, leaf_hash},
    note::Checkpoint,
};
use std::{fs, io::Read as _};

/// The checkpoint, the files by their paths, and all bytes.
async fn given(world: &World, from: u64) -> Result<(Checkpoint, Vec<(String, Vec<u8>)>, Vec<u8>)> {
    let path = format!("/api/v1/log/mirror?from={from}&place=ae-on/ae-du");
    let answer = world.call(Method::GET, &path).await?;
    ensure!(answer.status() == StatusCode::OK, "{}", text(answer).await?);
    let bytes = to_bytes(answer.into_body(), usize::MAX).await?.to_vec();
    let mut files = Vec::new();
    for file in tar::Archive::new(&bytes[..]).entries()? {
        let (mut file, mut content) = (file?, Vec::new());
        file.read_to_end(&mut content)?;
        files.push((String::from_utf8(file.path_bytes().into_owned())?, content));
    }
    let (path, note) = files.remove(0);
    ensure!(path == "checkpoint", "{path}");
    let head = Checkpoint::open(str::from_utf8(&note)?, signer().verifier())?;
    Ok((head, files, bytes))
}

/// AUD-04 and AUD-08, for mirrors.
#[tokio::test]
async fn a_mirror_gets_what_it_lacks_and_the_log_says_where_it_lies() -> Result<()> {
    let world = World::new().await?;
    let mut tree = Frontier::new();
    for round in 0..2 {
        let from = tree.size();
        let (head, files, bytes) = given(&world, from).await?;
        let paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
        ensure!(paths == [format!("tile/entries/000.p/{}", head.tree_size)], "{paths:?}");
        let had = usize::try_from(from)?;
        for entry in entries(&files[0].1).skip(had) {
            tree.push(leaf_hash(entry.context("an entry")?));
        }
        ensure!((tree.size(), tree.root()) == (head.tree_size, head.root_hash), "round {round}");
        let exported = world.entries(from).await?;
        let exported = exported.iter().find(|e| e.kind == Kind::LogExported).context("an entry")?;
        let asked = exported.body().member("asked").context("what was asked")?;
        ensure!(asked.text("place")? == "ae-on/ae-du" && asked.text("from")? == from.to_string());
        ensure!(exported.seq < head.tree_size, "it covers itself");
        // Who asked is in it, by a pseudonym alone.
        let has = |what: &str| bytes.windows(what.len()).any(|w| w == what.as_bytes());
        let person = exported.actor_person().context("a person")?;
        ensure!(has(&person.to_string()) && !has("operator/sara"));
    }
    Ok(())
}

#[tokio::test]
async fn a_mirror_with_more_than_the_log_or_nowhere_gets_nothing_and_neither_does_a_site()
-> Result<()> {
    let world = World::new().await?;
    let before = world.writer.head().0;
    let more = world.call(Method::GET, "/api/v1/log/mirror?from=999&place=ae-on/ae-az").await?;
    ensure!(more.status() == StatusCode::NOT_FOUND);
    let why = text(more).await?;
    // The access itself is in it, and what became of it is not yet.
    ensure!(why.contains(&format!("{} entries, and the mirror 999", before + 1)), "{why}");
    let nowhere = world.refusal("log/mirror?from=0&place=somewhere").await?;
    ensure!(nowhere == (StatusCode::BAD_REQUEST, "malformed".into()), "{nowhere:?}");
    let request = Request::get("/api/v1/log/mirror?from=0&place=ae-on/ae-az").body(Body::empty())?;
    let site = world.ask(request, &world.site).await?;
    ensure!(site.status() == StatusCode::FORBIDDEN, "{}", text(site).await?);
    // What became of the others may come only now.
    let entries = world.entries(before).await?;
    let last = entries.iter().rfind(|entry| entry.kind != Kind::AccessServed);
    ensure!(last.context("an entry")?.kind == Kind::AccessDenied, "{entries:?}");
    Ok(())
}

#[tokio::test]
async fn a_bucket_outside_of_its_place_gets_nothing_and_one_inside_is_in_the_log() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let networks = "192.0.2.0/24,ae-on/ae-az\n127.0.0.0/8,ae-on/ae-az\n198.51.100.0/24,ie/ie-dub\n";
    fs::write(dir.path().join(NETWORKS), networks)?;
    let world = World::over(dir).await?;
    let ask = async |more: &str| {
        world.call(Method::GET, &format!("/api/v1/log/mirror?from=0&{more}")).await
    };
    let inside = "host=s3.example&addresses=192.0.2.7,192.0.2.8";
    let given = ask(&format!("place=ae-on/ae-az&{inside}")).await?;
    ensure!(given.status() == StatusCode::OK, "{}", text(given).await?);
    let entries = world.entries(0).await?;
    let exported = entries.iter().find(|e| e.kind == Kind::LogExported).context("an export")?;
    let allowed = entries.iter().find(|e| e.kind == Kind::EndpointAllowed).context("an entry")?;
    let of = |entry: &Entry, name: &str| -> Result<String> {
        Ok(entry.body().member("asked").context("asked")?.text(name)?.to_owned())
    };
    ensure!(exported.seq < allowed.seq && of(exported, "addresses")? == "192.0.2.7,192.0.2.8");
    ensure!(of(allowed, "host")? == "s3.example" && of(allowed, "place")? == "ae-on/ae-az");
    ensure!(allowed.body().text("endpoint")? == "mirror");
    let evidence = allowed.evidence()?.context("what was known")?;
    ensure!(evidence.address_known && evidence.address_in_place, "{evidence:?}");
    for (what, rule) in [
        // One address is enough, and so is an address of which nothing is known.
        ("place=ae-on/ae-az&host=s3.example&addresses=192.0.2.7,198.51.100.1", "RES-015"),
        ("place=ae-on/ae-az&host=s3.example&addresses=203.0.113.1", "RES-015"),
        ("place=ae-on/ae-du&host=s3.example&addresses=192.0.2.7", "RES-015"),
    ] {
        let from = world.writer.head().0;
        let refused = ask(what).await?;
        ensure!(refused.status() == StatusCode::FORBIDDEN, "{what}");
        let why = text(refused).await?;
        ensure!(why.contains(rule), "{what}: {why}");
        // What became of it follows.
        let mut heads = world.writer.heads();
        tokio::time::timeout(PATIENCE, heads.wait_for(|head| head.0 >= from + 3)).await??;
        let entries = world.entries(from).await?;
        let kinds: Vec<Kind> = entries.iter().map(|entry| entry.kind).collect();
        ensure!(kinds == [Kind::LogExported, Kind::AccessDenied, Kind::AccessServed], "{kinds:?}");
        ensure!(entries[1].body().text("action")? == "endpoint.use", "{what}");
        let served = entries[2].body();
        ensure!(served.text("outcome")? == "failed" && served.int::<u64>("bytes")? == 0, "{what}");
    }
    for what in [
        "host=s3.example",
        "addresses=192.0.2.7",
        "host=s3.example&addresses=somewhere",
        "host=s3.example&addresses=",
        "host=&addresses=192.0.2.7",
    ] {
        let wrong = ask(&format!("place=ae-on/ae-az&{what}")).await?;
        ensure!(wrong.status() == StatusCode::BAD_REQUEST, "{what}");
    }
    let many = vec!["192.0.2.7"; 33].join(",");
    let many = ask(&format!("place=ae-on/ae-az&host=s3.example&addresses={many}")).await?;
    ensure!(many.status() == StatusCode::BAD_REQUEST, "{}", text(many).await?);
    Ok(())
}
