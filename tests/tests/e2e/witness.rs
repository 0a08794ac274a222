//! Sites as witnesses: they stand behind the log, have their receipts proven, and catch a log that changes its history.

use anyhow::{Context as _, Result, ensure};
use falaj_core::{
    note::{Checkpoint, VerifierKey},
    witness,
};
use falaj_tests::federation::{
    Federation, Process, SiteSpec, binary, run, study_yaml, text, wait_for, wisconsin,
};
use falaj_tests::rogue::Rogue;
use serde_json::Value;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use std::{fs, path::Path, process::Command};

fn site(federation: &Federation, name: &str, records: &str) -> Result<SiteSpec> {
    let site = SiteSpec::new(name, "ae-on/ae-az");
    federation.prepare_site(&site, records)?;
    Ok(site)
}

/// A study that one site trains alone.
fn alone(study: &str, rounds: u32, site: &str) -> String {
    study_yaml(study, rounds, 1).replace("min_sites: 1", &format!("sites: [{site}], min_sites: 1"))
}

#[test]
fn every_site_stands_behind_the_log_and_has_its_receipts_proven() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let records = wisconsin(2)?;
    let mut agents = Vec::new();
    for (i, csv) in records.iter().enumerate() {
        let site = site(&federation, &format!("hospital-{}", i + 1), csv)?;
        agents.push(federation.start_agent(&site)?);
    }
    federation.submit(&study_yaml("watched", 4, 2))?;
    federation.finishes("watched")?;
    for agent in &mut agents {
        agent.says("a receipt's entry is in the log")?;
    }
    let witnesses = federation.falaj_json(&["log", "witnesses"])?;
    let witnesses = witnesses["items"].as_array().context("a list")?;
    ensure!(witnesses.len() == 2, "{witnesses:?}");
    // Each has seen the log when its last round began, after the round before was published.
    let third = federation.entries("model.published")?[2]["index"].as_u64().context("an index")?;
    ensure!(witnesses.iter().all(|w| w["tree_size"].as_u64() > Some(third)), "{witnesses:?}");
    let said = federation.verified()?;
    for name in ["hospital-1", "hospital-2"] {
        let line = said.lines().find(|l| l.starts_with("witness") && l.contains(name));
        ensure!(line.is_some_and(|l| l.contains("saw the first")), "{name}: {said}");
    }
    Ok(())
}

#[test]
fn a_single_entry_is_proven_to_whoever_has_the_logs_key() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    // More entries than one tile holds.
    for _ in 0..260 {
        federation.falaj_json(&["status"])?;
    }
    let status = federation.falaj_json(&["status"])?;
    let key = status["log_verifier_key"].as_str().context("a key")?;
    let file = federation.dir().join("entry.tlog-proof");
    let file = file.to_str().context("UTF-8")?;
    for index in [0_u64, 7, 255, 256, 259] {
        let from = index.to_string();
        let page = federation.falaj_json(&["log", "entries", "--from", &from, "--limit", "2"])?;
        let leaf = |i: usize| page["items"][i]["leaf_hash"].as_str().map(str::to_owned);
        let (leaf, next) = (leaf(0).context("an entry")?, leaf(1).context("the next")?);
        let out = federation.falaj(&["log", "prove", &from, "-o", file])?;
        ensure!(out.status.success(), "{}", text(&out));
        let check = |leaf: &str| {
            run("falaj-verify", &["--proof", file, "--leaf-hash", leaf, "--log-key", key])
        };
        let said = check(&leaf)?;
        ensure!(said.contains(&format!("entry {index} is one of the")), "{said}");
        let wrong = check(&next).expect_err("another entry").to_string();
        ensure!(wrong.contains("is not shown to be in the log"), "{wrong}");
    }
    let none = federation.falaj(&["log", "prove", "1000000"])?;
    ensure!(!none.status.success() && text(&none).contains("the log has"), "{}", text(&none));
    Ok(())
}

#[test]
fn a_false_cosignature_is_refused_and_what_is_not_there_is_not_proven() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    federation.issue("site", "rogue", "ae-on/ae-sh")?;
    let status = federation.falaj_json(&["status"])?;
    let log: VerifierKey = status["log_verifier_key"].as_str().context("a key")?.parse()?;
    let credentials = || federation.credentials("site", "rogue");
    let (name, key) = ("falaj.test/ae-on/ae-sh/site/rogue", credentials()?.signing_key().clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let address = federation.addresses.context("started")?.grpc;
        let mut rogue = Rogue::connect(address, credentials()?, &federation.trust()?).await?;
        let (note, none) = rogue.checkpoint(0).await?;
        let head = Checkpoint::open(&note, &log)?;
        let size = head.tree_size;
        ensure!(none == 0 && size > 1);
        // Whoever claims to have seen more gets the checkpoint, and no proof.
        ensure!(rogue.checkpoint(u64::MAX).await?.1 == 0);
        ensure!(rogue.checkpoint(size - 1).await?.1 > 0);
        let good = witness::cosign(name, &key, 1_700_000_000, &head)?;
        let other = Checkpoint { tree_size: size + 1, ..head.clone() };
        let stranger = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
        for (size, line, why) in [
            (size + 1_000, good.clone(), "no checkpoint of this size"),
            (size, witness::cosign(name, &key, 1, &other)?, "does not verify"),
            (size, witness::cosign(name, &stranger, 1, &head)?, "no cosignature by the key"),
            (
                size,
                witness::cosign("falaj.test/ae-on/ae-az/site/h", &key, 1, &head)?,
                "no cosignature",
            ),
            (size, good.clone() + &good, "no cosignature"),
            (size, "not a signature line\n".into(), "not a signed note"),
            (size, String::new(), "no cosignature"),
            (size, format!("\u{2014} {name} {}\n", "A".repeat(2_000)), "no cosignature"),
        ] {
            let refused = rogue.cosign(size, &line).await.expect_err("refused");
            ensure!(refused.message().contains(why), "{line}: {}", refused.message());
        }
        rogue.cosign(size, &good).await?;
        // The answer was lost, and it is sent again.
        rogue.cosign(size, &good).await?;
        ensure!(rogue.inclusion(0, size).await? > 0);
        for (index, of) in [(size, size), (0, 0), (0, size + 1_000_000), (u64::MAX, u64::MAX)] {
            let refused = rogue.inclusion(index, of).await.expect_err("refused");
            ensure!(refused.message().contains("no entry of that index"), "{}", refused.message());
        }
        Ok(())
    })?;
    federation.verified()?;
    Ok(())
}

/// Copies a folder's files, and who may read them.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let (path, to) = {
            let e = entry?;
            (e.path(), to.join(e.file_name()))
        };
        if path.is_dir() { copy(&path, &to)? } else { fs::copy(&path, &to).map(drop)? }
    }
    Ok(())
}

/// A coordinator whose database went back to where it was before a study that `hospital-1` took part in.
fn gone_back(federation: &mut Federation) -> Result<(Process, [SiteSpec; 2])> {
    let mut coordinator = federation.start_coordinator()?;
    let records = wisconsin(2)?;
    let sites = [
        site(federation, "hospital-1", &records[0])?,
        site(federation, "hospital-2", &records[1])?,
    ];
    coordinator.terminate()?;
    let (state, old) = (federation.coordinator_state(), federation.dir().join("yesterday"));
    copy(&state, &old)?;
    let mut coordinator = federation.start_coordinator()?;
    let mut agent = federation.start_agent(&sites[0])?;
    federation.submit(&alone("today", 3, "hospital-1"))?;
    federation.finishes("today")?;
    agent.terminate()?;
    coordinator.kill()?;
    fs::remove_dir_all(&state)?;
    copy(&old, &state)?;
    Ok((federation.start_coordinator()?, sites))
}

/// Exit code and words of a check of the coordinator's log.
fn fsck(federation: &Federation) -> Result<(Option<i32>, String)> {
    let config = federation.dir().join("coordinator/coordinator.toml");
    let command = ["fsck", "--config"];
    let out = Command::new(binary("falaj-coordinator")).args(command).arg(config).output()?;
    Ok((out.status.code(), text(&out)))
}

/// AUD-05.
#[test]
fn a_coordinator_does_not_start_on_yesterdays_folder_while_its_high_water_file_says_more()
-> Result<()> {
    let mut federation = Federation::new()?;
    let elsewhere = federation.dir().join("another-disk");
    federation.log_extra = format!("high_water = \"{}/log.checkpoint\"\n", elsewhere.display());
    let missing = federation.start_coordinator().expect_err("no disk").to_string();
    ensure!(missing.contains("mount its disk"), "{missing}");
    fs::create_dir_all(&elsewhere)?;
    let mut coordinator = federation.start_coordinator()?;
    coordinator.terminate()?;
    let (state, old) = (federation.coordinator_state(), federation.dir().join("yesterday"));
    copy(&state, &old)?;
    let mut coordinator = federation.start_coordinator()?;
    for _ in 0..20 {
        federation.falaj_json(&["status"])?;
    }
    let signed = federation.falaj_json(&["log", "checkpoint"])?;
    // While it serves, and at rest.
    ensure!(fsck(&federation)?.0 == Some(0));
    coordinator.kill()?;
    ensure!(fsck(&federation)?.0 == Some(0));
    fs::remove_dir_all(&state)?;
    copy(&old, &state)?;
    let refused = federation.start_coordinator().expect_err("an older log").to_string();
    let size = signed["tree_size"].as_u64().context("a size")?;
    let (code, said) = fsck(&federation)?;
    ensure!(code == Some(1) && said.contains(&format!("a checkpoint of {size} entries")), "{said}");
    ensure!(refused.contains(&format!("a checkpoint of {size} was signed")), "{refused}");
    ensure!(refused.contains("an older database was restored"), "{refused}");
    Ok(())
}

fn evidence(federation: &Federation, site: &SiteSpec, words: &[&str]) -> Result<Value> {
    let config = federation.dir().join("sites").join(&site.name).join("agent.toml");
    let out = Command::new(binary("falaj-agent"))
        .arg("evidence")
        .args(words)
        .args(["--json", "--config"])
        .arg(config)
        .output()?;
    ensure!(out.status.success(), "{}", text(&out));
    Ok(serde_json::from_slice(&out.stdout)?)
}

#[test]
fn yesterdays_database_is_caught_by_whoever_saw_more_and_nothing_is_sent_to_it() -> Result<()> {
    let mut federation = Federation::new()?;
    let (_coordinator, [first, _]) = gone_back(&mut federation)?;
    federation
        .submit(&alone("again", 3, "hospital-1").replace("grace_s: 2", "grace_s: 2, retries: 0"))?;
    let mut agent = federation.start_agent(&first)?;
    agent.says("ALARM")?;
    agent.says("entries were taken back")?;
    agent.terminate()?;
    // It stays away, whatever the coordinator does now.
    let stubborn = SiteSpec { args: vec!["--exit-on-refusal".into()], ..first.clone() };
    ensure!(federation.start_agent(&stubborn)?.exit_code()? == Some(3));
    ensure!(federation.entries("update.accepted")?.is_empty());
    let shown = evidence(&federation, &first, &["show"])?;
    let said = shown["text"].as_str().context("evidence")?;
    ensure!(said.matches("\n\u{2014} ").count() == 2, "two signed statements: {said}");
    // A steward has looked into it.
    evidence(&federation, &first, &["dismiss"])?;
    ensure!(evidence(&federation, &first, &["show"])?["evidence"].is_null());
    let _agent = federation.start_agent(&first)?;
    federation.finishes("again")?;
    Ok(())
}

/// AUD-15.
#[test]
fn a_coordinator_that_cannot_prove_a_receipt_is_dropped_and_the_receipt_is_kept() -> Result<()> {
    let mut federation = Federation::new()?;
    let (_coordinator, [first, _]) = gone_back(&mut federation)?;
    // The site does not know any more what it saw, nor that its receipts were proven: it has the receipts alone.
    let journal = federation.dir().join("sites/hospital-1/state/journal/journal.sqlite");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(&journal);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        sqlx::raw_sql("DELETE FROM seen; DELETE FROM proven").execute(&mut connection).await?;
        connection.close().await
    })?;
    let mut agent = federation.start_agent(&first)?;
    agent.says("ALARM")?;
    agent.says("a receipt promises")?;
    let shown = evidence(&federation, &first, &["show"])?;
    let said = shown["text"].as_str().context("evidence")?;
    ensure!(said.contains("\"payload_sha256\"") && said.contains("\n\u{2014} "), "{said}");
    Ok(())
}

#[test]
fn a_log_that_begins_anew_is_taken_only_by_the_key_that_a_steward_was_told() -> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let first = site(&federation, "hospital-1", &wisconsin(1)?[0])?;
    let mut agent = federation.start_agent(&first)?;
    federation.submit(&alone("before", 2, "hospital-1"))?;
    federation.finishes("before")?;
    agent.terminate()?;
    coordinator.kill()?;
    fs::remove_dir_all(federation.coordinator_state())?;
    let _coordinator = federation.start_coordinator()?;
    let stubborn = SiteSpec { args: vec!["--exit-on-refusal".into()], ..first.clone() };
    let mut refused = federation.start_agent(&stubborn)?;
    ensure!(refused.exit_code()? == Some(3));
    ensure!(refused.output().contains("the log's key has changed"), "{}", refused.output());
    let key = federation.falaj_json(&["status"])?["log_verifier_key"].clone();
    let key = key.as_str().context("a key")?;
    // Another key than the coordinator's does not help.
    let other = "falaj.test/other+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx";
    ensure!(evidence(&federation, &first, &["dismiss", "--log-key", other]).is_err());
    evidence(&federation, &first, &["dismiss", "--log-key", key])?;
    let _agent = federation.start_agent(&first)?;
    federation.submit(&alone("after", 2, "hospital-1"))?;
    federation.finishes("after")
}

/// AUD-06.
#[test]
fn a_forked_log_is_caught_within_one_round_though_it_has_grown() -> Result<()> {
    let mut federation = Federation::new()?;
    let (_coordinator, [first, second]) = gone_back(&mut federation)?;
    let _other = federation.start_agent(&second)?;
    federation.submit(&alone("elsewhere", 12, "hospital-2"))?;
    federation.finishes("elsewhere")?;
    let before = federation.entries("update.accepted")?.len();
    federation.submit(&study_yaml("both", 2, 1))?;
    let mut agent = federation.start_agent(&first)?;
    agent.says("its history was changed")?;
    federation.finishes("both")?;
    // The other site alone took part: it saw one history only.
    let accepted = federation.entries("update.accepted")?;
    let by_first =
        |e: &Value| e["entry"]["site"].as_str().is_some_and(|s| s.ends_with("hospital-1"));
    ensure!(accepted.len() > before && !accepted.iter().any(by_first));
    wait_for("the evidence", || {
        Ok(evidence(&federation, &first, &["show"])?["text"].as_str().map(|_| ()))
    })
}
