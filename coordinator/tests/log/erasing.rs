//! Erasing people: what is gone afterwards and what stays, and what keeps somebody from being erased.

use super::{
    server::Server,
    world::{LAYLA, OMAR, World, erasure, peer, signer, study, text},
};
use anyhow::{Context as _, Result, ensure};
use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use falaj_coordinator::{
    accept::Peer,
    erasure::{Asker, Erasures},
    policy::{Action, Resource},
    store::{self, Database, writer::Commit},
};
use falaj_core::{
    audit::{
        Draft, Entry, Kind,
        erasure::term_end,
        person::{Disclosure, Person},
    },
    id::Role,
    merkle::leaf_hash,
    study::Retention,
    time::Timestamp,
    witness::InclusionProof,
};
use serde_json::Value;
use sqlx::{AssertSqlSafe, ConnectOptions as _, sqlite::SqliteConnectOptions};
use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc};

/// Where the person who is erased comes from; no other text is like it.
const ADDRESS: &str = "198.51.100.23:47113";

pub(super) fn asker(peer: &Peer) -> Asker<'_> {
    Asker { id: peer.actor.id.as_ref().expect("an operator"), actor: &peer.actor, once: None }
}

/// Somebody who comes as the accept loop lets them in: certificate and entry, in one commit.
pub(super) async fn come(world: &World, name: &str) -> Result<(Arc<Peer>, Person)> {
    let peer = peer(world.dir.path(), &world.persons, Role::Operator, name)?;
    let peer = Arc::into_inner(peer).context("one")?;
    let actor = falaj_core::audit::Actor { address: Some(ADDRESS.into()), ..peer.actor };
    let peer = Arc::new(Peer { actor, ..peer });
    let person = peer.actor.person.context("a person")?;
    let sealed = world.persons.seal_certificate(person, &peer.certificate);
    let set = world.engine.parts().policy.digest();
    let entry = Draft::new(Kind::ConnectionAdmitted).actor(&peer.actor);
    let entry = entry.text("action", "connect").decided(true, &["ACC-200".into()], &set);
    let rows = sealed.into_iter().collect();
    world.writer.commit(Commit { rows, entries: vec![entry], round: None }).await?;
    Ok((peer, person))
}

async fn submit(world: &World, who: &Arc<Peer>, name: &str, retention: Option<&str>) -> Result<()> {
    let class = retention.map(|r| format!("governance: {{ retention: {r} }}\n"));
    let yaml = study(name) + &class.unwrap_or_default();
    let answer = world.ask(Request::post("/api/v1/studies").body(yaml.into())?, who).await?;
    ensure!(answer.status() == StatusCode::CREATED, "{}", text(answer).await?);
    Ok(())
}

/// Stops a study and waits until it is over.
async fn stop(world: &World, name: &str) -> Result<()> {
    let answer = world.call(Method::POST, &format!("/api/v1/studies/{name}/stop")).await?;
    ensure!(answer.status() == StatusCode::OK, "{}", text(answer).await?);
    let mut heads = world.writer.heads();
    let name = name.parse()?;
    while world.engine.study(&name)?.view().state == "running" {
        tokio::time::timeout(super::world::PATIENCE, heads.changed()).await??;
    }
    Ok(())
}

async fn erase(world: &World, whom: &str) -> Result<(StatusCode, Value)> {
    let body = erasure(whom, "Decree-Law 45/2021, Article 15");
    let request = Request::post("/api/v1/erasures").body(body.into())?;
    let answer = world.ask(request, &world.operator).await?;
    Ok((answer.status(), serde_json::from_str(&text(answer).await?)?))
}

/// Every file in these folders, but for the authority's, which is another machine's.
fn files(dirs: &[PathBuf]) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let (mut found, mut todo) = (Vec::new(), dirs.to_vec());
    while let Some(dir) = todo.pop() {
        for file in fs::read_dir(&dir)? {
            let path = file?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != "ca") {
                    todo.push(path);
                }
            } else if path.is_file() {
                found.push((path.clone(), fs::read(&path)?));
            }
        }
    }
    Ok(found)
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    let finder = needle.first().copied().unwrap_or_default();
    let starts = bytes.iter().enumerate().filter(|(_, b)| **b == finder);
    starts.into_iter().any(|(at, _)| bytes[at..].starts_with(needle))
}

/// The secrets that these files hold, with the files.
fn leaks(dirs: &[PathBuf], secrets: &[(&str, Vec<u8>)]) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for (path, bytes) in files(dirs)? {
        for (name, secret) in secrets {
            let hex = hex::encode(secret).into_bytes();
            if holds(&bytes, secret) || holds(&bytes, &hex) {
                found.push(((*name).to_owned(), path.clone()));
            }
        }
    }
    Ok(found)
}

/// AUD-09, with its log in one database: nothing that identifies whoever was erased is in any file any more, nor in a
/// backup that is made then, and whatever was proven before is proven still.
async fn nothing_is_left(
    world: &World,
    dirs: &[PathBuf],
    backup: impl AsyncFn() -> Result<PathBuf>,
) -> Result<()> {
    let (omar, person) = come(world, "omar").await?;
    submit(world, &omar, "kidney", None).await?;
    let path = format!("/api/v1/log/accesses?object={OMAR}");
    let answer = world.ask(Request::get(path).body(Body::empty())?, &omar).await?;
    ensure!(answer.status() == StatusCode::OK, "{}", text(answer).await?);
    let listed = world.get("persons").await?;
    ensure!(listed["items"].as_array().is_some_and(|p| p.iter().any(|p| p["id"] == OMAR)));
    // A denial says why, and names nobody.
    let oliver = "spiffe://falaj.test/gb/gb-lnd/operator/oliver".parse()?;
    let denied = world.engine.parts().policy.decide(&oliver, Action::LogRead, &Resource::Service);
    ensure!(!denied.allow && !denied.reason.contains("oliver"), "{}", denied.reason);

    // What an entry of theirs is proven by, and what it discloses.
    let rows = world.store.personal(0, u64::MAX).await?;
    let theirs: Vec<Disclosure> = rows
        .iter()
        .filter(|(_, p, _)| *p == person)
        .filter_map(|(seq, p, sealed)| world.persons.disclosure(*p, *seq, sealed))
        .collect();
    ensure!(theirs.len() >= 3 && theirs.iter().all(|d| d.id() == omar.actor.id), "{theirs:?}");
    let mut proofs = Vec::new();
    for disclosure in &theirs {
        let row = world.store.entries(disclosure.seq, disclosure.seq + 1, 1, None).await?;
        let (_, bytes, _) = row.into_iter().next().context("an entry")?;
        Entry::parse(&bytes)?.disclosed(disclosure)?;
        let path = format!("/api/v1/log/entries/{}/proof", disclosure.seq);
        let proof = text(world.call(Method::GET, &path).await?).await?;
        proofs.push((bytes, proof));
    }
    let key = fs::read(world.dir.path().join("persons").join(person.to_string()))?;
    let key: Value = serde_json::from_slice(&key)?;
    let key = hex::decode(key["key"].as_str().context("a key")?)?;
    let cert = omar.actor.cert.context("a certificate")?;
    let mut secrets = vec![
        ("identity", OMAR.as_bytes().to_vec()),
        ("name", b"operator/omar".to_vec()),
        ("address", ADDRESS.as_bytes().to_vec()),
        ("certificate", omar.certificate.to_vec()),
        ("certificate's digest", cert.0.to_vec()),
        ("key", key),
    ];
    secrets.extend(theirs.iter().map(|d| ("salt", d.salt.to_vec())));
    // Before: in the person's own file and nowhere else. So the search finds what is there.
    let before = leaks(dirs, &secrets)?;
    let names: Vec<&str> = before.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(["identity", "name", "key"].iter().all(|n| names.contains(n)), "{before:?}");
    let own = world.dir.path().join("persons");
    ensure!(before.iter().all(|(_, path)| path.starts_with(&own)), "{before:?}");
    let pseudonym = [("pseudonym", person.to_string().into_bytes())];
    ensure!(!leaks(dirs, &pseudonym)?.is_empty(), "the database is not looked into");

    let (status, done) = erase(world, OMAR).await?;
    ensure!(status == StatusCode::CREATED, "{done}");
    let copy = backup().await?;
    let mut all = dirs.to_vec();
    all.push(copy.clone());
    let after = leaks(&all, &secrets)?;
    ensure!(after.is_empty(), "{after:?}");
    ensure!(!leaks(&[copy], &pseudonym)?.is_empty(), "the backup is not looked into");

    // The tree stands as it did: the same bytes, the same proofs, and new ones.
    for (bytes, proof) in proofs {
        let index = Entry::parse(&bytes)?.seq;
        let (_, now, _) = world
            .store
            .entries(index, index + 1, 1, None)
            .await?
            .into_iter()
            .next()
            .context("there")?;
        ensure!(now == bytes, "entry {index} is another one");
        let path = format!("/api/v1/log/entries/{index}/proof");
        let again = text(world.call(Method::GET, &path).await?).await?;
        for proof in [proof, again] {
            let proof = InclusionProof::parse(&proof)?;
            proof.verify(&leaf_hash(&bytes), signer().verifier())?;
        }
    }
    // The log says so, in order, and shows no identity where it did.
    let entries = world.entries(0).await?;
    let at = |kind| entries.iter().find(|e| e.kind == kind).context("an entry");
    let (begun, performed) = (at(Kind::ErasureBegun)?, at(Kind::ErasurePerformed)?);
    ensure!(begun.seq < performed.seq && Some(performed.seq) == done["index"].as_u64());
    ensure!(begun.person() == Some(person) && performed.person() == Some(person));
    let rows = world.get(&format!("log/accesses?object=person:{person}&limit=1000")).await?;
    let rows = rows["items"].as_array().context("rows")?.clone();
    let of = |row: &&Value| row["bytes"].as_str().is_some_and(|b| b.contains("personal_commit"));
    ensure!(rows.iter().filter(of).count() > theirs.len(), "{} rows", rows.len());
    for row in &rows {
        ensure!(row["personal"].as_str().is_none_or(|p| !p.contains("omar")), "{row}");
    }
    // Asked for by name, nobody is known, and the question is in the log without the name.
    let refused = world.refusal(&format!("log/accesses?object={OMAR}")).await?;
    ensure!(refused == (StatusCode::NOT_FOUND, "unknown_person".into()), "{refused:?}");
    let kidney = world.get("studies/kidney").await?;
    ensure!(kidney["submitted_by"] == format!("person:{person}"), "{kidney}");
    // A connection that is still open is nobody's any more; whoever comes again is somebody else.
    let request = Request::get("/api/v1/status").body(Body::empty())?;
    let answer = world.ask(request, &omar).await?;
    ensure!(answer.status() == StatusCode::UNAUTHORIZED, "{}", text(answer).await?);
    let (_, again) = come(world, "omar").await?;
    ensure!(again != person, "the same pseudonym");
    Ok(())
}

/// AUD-09, in a SQLite file: the file, its WAL and its index, everything else in the state folder, and a copy.
#[tokio::test]
async fn after_an_erasure_nothing_of_a_person_is_in_any_file_nor_in_a_backup() -> Result<()> {
    let world = World::new().await?;
    let state = world.dir.path().to_owned();
    let elsewhere = tempfile::tempdir()?;
    let copy = async || {
        let options = SqliteConnectOptions::new().filename(state.join("coordinator.sqlite"));
        let mut connection = options.connect().await?;
        let to = elsewhere.path().join("copy.sqlite");
        let statement = AssertSqlSafe(format!("VACUUM INTO '{}'", to.display()));
        sqlx::query(statement).execute(&mut connection).await?;
        Ok(elsewhere.path().to_owned())
    };
    nothing_is_left(&world, std::slice::from_ref(&state), copy).await
}

/// AUD-09, on a server: its whole data folder with its WAL, and a copy of every table that is made afterwards.
#[tokio::test]
async fn on_postgresql_nothing_of_a_person_is_left_in_the_server_s_folder() -> Result<()> {
    // A server of its own: another test's people are nobody's business here.
    let Some(server) = Server::start(&[])? else { return Ok(()) };
    let n = server.database().await?;
    let (name, writer) = (format!("falaj_{n}"), format!("writer_{n}"));
    store::init(&server.options(&format!("owner_{n}"), &name), &writer).await?;
    let database = Database::Postgres(Box::new(server.options(&writer, &name)));
    let world = World::on(&database).await?;
    server.run(&name, &["CHECKPOINT"]).await?;
    let copy = async || {
        let copies =
            ["log_entries", "log_personal", "personal_certificates", "studies", "log_object_names"]
                .map(|t| format!("CREATE TABLE public.{t} AS SELECT * FROM falaj.{t}"));
        let copies: Vec<&str> = copies.iter().map(String::as_str).collect();
        server.run(&name, &copies).await?;
        server.run(&name, &["CHECKPOINT"]).await?;
        Ok(server.dir().to_owned())
    };
    let dirs = [world.dir.path().to_owned(), server.dir().to_owned()];
    nothing_is_left(&world, &dirs, copy).await
}

/// CMP-04: under each class an erasure is refused until the term is over, and done from then on; each is in the log.
#[tokio::test]
async fn an_erasure_waits_for_every_class_of_retention() -> Result<()> {
    let world = World::new().await?;
    for (name, retention) in [
        ("half-a-year", Retention::Months6),
        ("five", Retention::Years5),
        ("ten", Retention::Years10),
        ("twenty-five", Retention::Years25),
    ] {
        let (peer, person) = come(&world, &format!("keeper-{name}")).await?;
        let whom = peer.actor.name();
        submit(&world, &peer, name, Some(retention.as_str())).await?;
        let sara = asker(&world.operator);
        let later = |ms: i64| Timestamp::from_millis(ms);
        let never = later(99 * 366 * 86_400_000);
        let refused = world.erasures.erase(sara, &whom, "Article 15", never).await;
        let refused = refused.err().context("it runs")?;
        ensure!(refused.code.as_str() == "retained" && refused.detail.contains("still runs"));
        stop(&world, name).await?;
        let looks = [Kind::AdminRead, Kind::ErasureRefused];
        let entries = world.entries(0).await?;
        let told = |e: &&Entry| e.body().text("study") == Ok(name) && !looks.contains(&e.kind);
        let last = entries.iter().rfind(told).context("entries")?;
        let last = Timestamp::from_millis(last.ts.parse::<jiff::Timestamp>()?.as_millisecond());
        let until = term_end(last, retention.months());
        let end = until.parse::<jiff::Timestamp>()?.as_millisecond();
        // Looking at it meanwhile makes nothing longer.
        world.get(&format!("studies/{name}")).await?;
        let before = world.writer.head().0;
        let refused = world.erasures.erase(sara, &whom, "Article 15", later(end - 1)).await;
        let refused = refused.err().context("it is too early")?;
        ensure!(refused.code.as_str() == "retained", "{refused}");
        ensure!(refused.detail.contains(&until), "{refused}");
        let entries = world.entries(before).await?;
        ensure!(entries.len() == 1 && entries[0].kind == Kind::ErasureRefused, "{entries:?}");
        let body = entries[0].body();
        ensure!(entries[0].person() == Some(person));
        ensure!(body.text("until") == Ok(&*until) && body.text("study") == Ok(name));
        ensure!(!body.text("article")?.is_empty());
        ensure!(world.persons.identity(person).is_some(), "erased all the same");
        let done = world.erasures.erase(sara, &whom, "Article 15", later(end)).await?;
        ensure!(done.0 == person && world.persons.identity(person).is_none());
    }
    Ok(())
}

/// CMP-04: nobody is erased under a legal hold, on them or on a study in which they acted, also after a restart.
#[tokio::test]
async fn an_erasure_waits_for_legal_holds_also_after_a_restart() -> Result<()> {
    let world = World::new().await?;
    let sara = asker(&world.operator);
    let (omar, person) = come(&world, "omar").await?;
    submit(&world, &omar, "kidney", None).await?;
    for body in [
        serde_json::json!({ "person": OMAR, "article": "Penal Procedure, Article 5" }),
        serde_json::json!({ "study": "kidney", "article": "Penal Procedure, Article 5" }),
    ] {
        let request = Request::post("/api/v1/holds").body(body.to_string().into())?;
        let answer = world.ask(request, &world.operator).await?;
        ensure!(answer.status() == StatusCode::CREATED, "{}", answer.status());
        let hold: Value = serde_json::from_str(&text(answer).await?)?;
        let before = world.writer.head().0;
        let (status, problem) = erase(&world, OMAR).await?;
        ensure!(status == StatusCode::CONFLICT && problem["code"] == "legal_hold", "{problem}");
        ensure!(problem["detail"].as_str().is_some_and(|d| d.contains("Article 5")), "{problem}");
        let entries = world.entries(before).await?;
        ensure!(entries.len() == 1 && entries[0].kind == Kind::ErasureRefused, "{entries:?}");
        ensure!(entries[0].body().text("hold") == Ok(hold["hold"].as_str().context("a hold")?));
        let restarted = Erasures::open(world.engine.clone()).await?;
        let now = falaj_coordinator::clock::now();
        let refused = restarted.erase(sara, OMAR, "Article 15", now).await;
        ensure!(refused.is_err_and(|p| p.code.as_str() == "legal_hold"), "a restart forgot it");
        ensure!(world.get("holds").await?["items"] == serde_json::json!([hold]));
        let release = format!("/api/v1/holds/{}/release", hold["hold"].as_str().context("a hold")?);
        let answer = world.call(Method::POST, &release).await?;
        ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
        let answer = world.call(Method::POST, &release).await?;
        ensure!(answer.status() == StatusCode::NOT_FOUND, "{}", answer.status());
    }
    ensure!(world.persons.identity(person).is_some(), "erased all the same");
    let (status, done) = erase(&world, OMAR).await?;
    ensure!(status == StatusCode::CREATED, "{done}");
    Ok(())
}

/// AUD-09: whoever was about to be erased when the coordinator was killed is erased at the next start, and once.
#[tokio::test]
async fn an_erasure_that_a_crash_interrupted_is_finished_at_the_start() -> Result<()> {
    let world = World::new().await?;
    let (_, person) = come(&world, "omar").await?;
    let intent = Draft::new(Kind::ErasureBegun).actor(&world.operator.actor);
    world.writer.record(vec![intent.person(person).text("article", "Article 15")]).await?;
    for _ in 0..2 {
        Erasures::open(world.engine.clone()).await?;
        ensure!(!world.dir.path().join("persons").join(person.to_string()).exists());
        let entries = world.entries(0).await?;
        let done = entries.iter().filter(|e| e.kind == Kind::ErasurePerformed).count();
        ensure!(done == 1 && world.persons.identity(person).is_none(), "{done}");
    }
    Ok(())
}

/// AUD-09: an old copy of the folder does not bring anybody back.
#[tokio::test]
async fn whoever_was_erased_and_is_in_an_old_copy_is_erased_again_at_the_start() -> Result<()> {
    let world = World::new().await?;
    let (_, person) = come(&world, "omar").await?;
    let file = world.dir.path().join("persons").join(person.to_string());
    let kept = fs::read(&file)?;
    let (status, done) = erase(&world, OMAR).await?;
    ensure!(status == StatusCode::CREATED && !file.exists(), "{done}");
    let World { dir, .. } = world;
    fs::write(&file, kept)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let world = World::over(dir).await?;
    ensure!(!file.exists() && world.persons.identity(person).is_none(), "somebody is back");
    Ok(())
}

/// Whoever erases themselves is told so, and the entry that says it names them no longer.
#[tokio::test]
async fn somebody_can_erase_themselves() -> Result<()> {
    let world = World::new().await?;
    let (omar, person) = come(&world, "omar").await?;
    let done = world.erasures.erase(asker(&omar), OMAR, "Article 15", Timestamp::from_millis(0));
    let (_, index) = done.await?;
    let entry = world.entries(index).await?.into_iter().next().context("an entry")?;
    ensure!(entry.kind == Kind::ErasurePerformed && entry.actor_person() == Some(person));
    ensure!(entry.personal_commit().is_some());
    let kept = world.store.personal(index, index + 1).await?;
    ensure!(kept.is_empty(), "something can still be opened");
    Ok(())
}

/// A checkpoint from before an erasure cannot say why it discloses nobody, so nothing is exported up to it.
#[tokio::test]
async fn an_export_up_to_a_checkpoint_from_before_an_erasure_is_refused() -> Result<()> {
    let world = World::new().await?;
    come(&world, "omar").await?;
    let size = world.get("log/checkpoint").await?["tree_size"].as_u64().context("a size")?;
    let path = format!("/api/v1/log/export?tree_size={size}");
    let answer = world.call(Method::GET, &path).await?;
    ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
    let (status, done) = erase(&world, OMAR).await?;
    ensure!(status == StatusCode::CREATED, "{done}");
    let answer = world.call(Method::GET, &path).await?;
    ensure!(answer.status() == StatusCode::NOT_FOUND, "{}", answer.status());
    let why = text(answer).await?;
    ensure!(why.contains(&format!("entry {}", done["index"])), "{why}");
    Ok(())
}

/// What a bundle has, file by file.
fn files_of(bundle: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for file in tar::Archive::new(bundle).entries()? {
        let (mut file, mut bytes) = (file?, Vec::new());
        std::io::Read::read_to_end(&mut file, &mut bytes)?;
        files.push((String::from_utf8(file.path_bytes().into_owned())?, bytes));
    }
    Ok(files)
}

async fn exported(world: &World, query: &str) -> Result<Vec<u8>> {
    let answer = world.call(Method::GET, &format!("/api/v1/log/export?{query}")).await?;
    let status = answer.status();
    let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX).await?;
    ensure!(status == StatusCode::OK, "{query}: {}", String::from_utf8_lossy(&bytes));
    Ok(bytes.into())
}

/// AUD-09, AUD-11: a shard that has ended is exported after somebody in it was erased, without them, and with the entry of the
/// later shard that says why; always in the same bytes. Whoever did nothing in it is not in it.
#[tokio::test]
async fn a_shard_that_ended_is_exported_after_somebody_in_it_was_erased() -> Result<()> {
    let world = World::over(tempfile::tempdir()?).await?;
    let (omar, person) = come(&world, "omar").await?;
    let (_, layla) = come(&world, "layla").await?;
    let size = world.get("log/checkpoint").await?["tree_size"].as_u64().context("a size")?;
    let world = world.next("falaj.test/log/2").await?;
    let (_, noura) = come(&world, "noura").await?;
    let shard = "shard=falaj.test/log";
    let before = exported(&world, shard).await?;
    ensure!(holds(&before, OMAR.as_bytes()) && holds(&before, LAYLA.as_bytes()), "not disclosed");
    let from = world.writer.head().0;
    for whom in [OMAR, "spiffe://falaj.test/ae-on/ae-az/operator/noura"] {
        let (status, done) = erase(&world, whom).await?;
        ensure!(status == StatusCode::CREATED, "{done}");
    }
    let after = exported(&world, shard).await?;
    ensure!(exported(&world, shard).await? == after, "other bytes than before");
    let cert = omar.actor.cert.context("a certificate")?.to_string();
    for secret in [OMAR.as_bytes(), &omar.certificate[..], cert.as_bytes()] {
        ensure!(!holds(&after, secret), "it names who was erased");
    }
    ensure!(holds(&after, LAYLA.as_bytes()) && holds(&after, layla.to_string().as_bytes()));
    let files = files_of(&after)?;
    let shown: Vec<_> = files.iter().filter(|(path, _)| path.starts_with("erased/")).collect();
    let paths: Vec<_> = shown.iter().map(|(path, _)| path.as_str()).collect();
    let wanted = [format!("erased/{person}.json"), format!("erased/{person}.tlog-proof")];
    ensure!(paths == wanted, "{paths:?}; {noura} did nothing in it");
    // What it shows: by the key that the statements lead to.
    let about = falaj_core::canon::parse(&files[0].1)?;
    let falaj_core::canon::Canon::Text(statement) = &about.list("later")?[0] else {
        anyhow::bail!("no statement")
    };
    let step = falaj_core::succession::Succession::open(statement)?;
    ensure!(step.from == *signer().verifier() && step.to.name() == "falaj.test/log/2");
    let proof = InclusionProof::parse(str::from_utf8(&shown[1].1)?)?;
    proof.verify(&leaf_hash(&shown[0].1), &step.to)?;
    let entry = Entry::parse(&shown[0].1)?;
    ensure!(entry.kind == Kind::ErasurePerformed && entry.person() == Some(person));
    ensure!(entry.seq >= from && entry.seq == proof.index, "{}", entry.seq);
    // The entries themselves are those that were there before.
    let entries = |files: &[(String, Vec<u8>)]| {
        let of = |path: &str| path.starts_with("tile/") || path == "checkpoint";
        files.iter().filter(|(path, _)| of(path)).cloned().collect::<Vec<_>>()
    };
    ensure!(entries(&files) == entries(&files_of(&before)?), "other entries");
    // As far as an earlier checkpoint too.
    let earlier = files_of(&exported(&world, &format!("{shard}&tree_size={size}")).await?)?;
    ensure!(earlier.iter().any(|(path, _)| *path == wanted[0]), "it cannot say why");
    Ok(())
}
