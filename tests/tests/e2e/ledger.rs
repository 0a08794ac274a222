//! The budget ledger against crashes, old copies and strangers: a site never forgets what it has spent.

use anyhow::{Context as _, Result, ensure};
use falaj_core::{
    dp::{Cyclic, Ftrl, Poisson, rdp::RdpCurve},
    id::SiteId,
    ledger::Ledger,
};
use falaj_tests::federation::{
    Federation, Process, SiteSpec, run, study_yaml, text, wait_for, wisconsin,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A running coordinator and one prepared site.
fn one_site(federation: &mut Federation, name: &str) -> Result<(Process, SiteSpec, PathBuf)> {
    let coordinator = federation.start_coordinator()?;
    let site = SiteSpec::new(name, "ae-on/ae-az");
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?;
    Ok((coordinator, site, config))
}

fn agent(args: &[&str], config: &Path) -> Result<std::process::Output> {
    Ok(Command::new(falaj_tests::federation::binary("falaj-agent"))
        .args(args)
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .output()?)
}

fn budget(config: &Path) -> Result<Value> {
    let out = agent(&["budget", "show", "--json"], config)?;
    ensure!(out.status.success(), "{}", text(&out));
    Ok(serde_json::from_slice(&out.stdout)?)
}

/// The site's ledger as it exports it.
fn exported(config: &Path) -> Result<String> {
    let out = agent(&["budget", "export"], config)?;
    ensure!(out.status.success(), "{}", text(&out));
    Ok(String::from_utf8(out.stdout)?)
}

/// Kills of the agent, unless the environment asks for more.
const KILLS: u32 = 12;

#[test]
fn whenever_the_agent_is_killed_the_ledger_has_paid_for_everything_that_was_released() -> Result<()>
{
    // One site, so each round is one release; more rounds than will run.
    killed_at_random(&study_yaml("mortal", 20_000, 1).replace("900.0", "1.0e9"), cost_of)
}

#[test]
fn whenever_the_agent_is_killed_a_stream_of_noise_has_been_paid_for_as_far_as_it_was_released()
-> Result<()> {
    let yaml = study_yaml("stream", 2_000, 1)
        .replace("sample_rate: 0.1,", "batches: 10,")
        .replace("dp_sgd", "dp_ftrl");
    let stream = Ftrl::new(Cyclic::new(10).context("batches")?, 10_000).context("a stream")?;
    killed_at_random(&yaml, |rounds| {
        let cost = stream.cost(1.0, 0..5 * u64::from(rounds))?;
        Ok(cost.compose(&RdpCurve::pure(0.1)?).epsilon(1e-5)?.value())
    })
}

/// Kills the agent of a study again and again, and compares what was spent with what that many rounds cost.
fn killed_at_random(yaml: &str, cost_of: impl Fn(u32) -> Result<f64>) -> Result<()> {
    let kills = std::env::var("FALAJ_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(KILLS);
    let mut federation = Federation::new()?;
    let (_coordinator, site, config) = one_site(&mut federation, "killed")?;
    federation.submit(yaml)?;
    let config_text =
        fs::read_to_string(&config)?.replace("epsilon_limit = 1000.0", "epsilon_limit = 1e9");
    fs::write(&config, config_text)?;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for kill in 0..kills {
        let mut agent = federation.start_agent(&site)?;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let instant = Instant::now() + Duration::from_millis(100 + state % 1_500);
        wait_for("the instant", || Ok((Instant::now() >= instant).then_some(())))?;
        if kill + 1 == kills {
            // On a slow machine no instant before was late enough.
            wait_for("something to be released", || {
                Ok(sealed(&federation, &site).is_ok_and(|n| n > 0).then_some(()))
            })?;
        }
        agent.kill()?;
        // What was sealed lies in the journal before its first byte leaves: it counts as released.
        let chain = replay(&exported(&config)?)?;
        let released = sealed(&federation, &site)?;
        let spent = chain.spent("wdbc", None).epsilon(1e-5)?.value();
        let needed = if released > 0 { cost_of(released)? } else { 0.0 };
        ensure!(
            spent >= needed,
            "kill {kill}: {released} releases need {needed}, {spent} is spent"
        );
    }
    let released = sealed(&federation, &site)?;
    ensure!(released > 0, "nothing was ever released");
    println!("{kills} kills, {released} releases, all paid for");
    Ok(())
}

/// The chain of an export.
fn replay(export: &str) -> Result<Ledger> {
    let (entries, _) = export.trim_end().rsplit_once('\n').context("a signed head")?;
    let mut ledger = Ledger::default();
    entries.lines().try_for_each(|line| ledger.take(line.as_bytes()))?;
    Ok(ledger)
}

/// Updates that were sealed and signed: payloads in the journal's folder.
fn sealed(federation: &Federation, site: &SiteSpec) -> Result<u32> {
    let folder = federation.dir().join("sites").join(&site.name).join("state/journal");
    let is_payload = |name: &str| name.len() == 64;
    let files = fs::read_dir(folder)?.filter_map(Result::ok);
    let count = files.filter(|f| is_payload(&f.file_name().to_string_lossy())).count();
    Ok(u32::try_from(count)?)
}

/// What so many rounds of the test's study cost, beside the disclosed number of records.
fn cost_of(rounds: u32) -> Result<f64> {
    let rounds = RdpCurve::poisson_gaussian(Poisson::new(0.1)?, 1.0, u64::from(rounds) * 5)?;
    Ok(rounds.compose(&RdpCurve::pure(0.1)?).epsilon(1e-5)?.value())
}

#[test]
fn an_older_copy_of_the_ledger_is_noticed_whether_all_of_the_state_went_back_or_only_the_file()
-> Result<()> {
    let mut federation = Federation::new()?;
    let (_coordinator, site, config) = one_site(&mut federation, "yesterday")?;
    let state = config.parent().context("a folder")?.join("state");
    let before = federation.dir().join("before");
    let copy = |from: &Path, to: &Path| -> Result<()> {
        let status = Command::new("cp").arg("-r").arg(from).arg(to).status()?;
        ensure!(status.success(), "cp");
        Ok(())
    };
    budget(&config)?;
    copy(&state, &before)?;
    federation.submit(&study_yaml("spends", 3, 1))?;
    let mut running = federation.start_agent(&site)?;
    federation.study_reaches("spends", &["finished"])?;
    running.terminate()?;
    // Only the database.
    let after = federation.dir().join("after");
    copy(&state, &after)?;
    for file in ["ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"] {
        let _ = fs::remove_file(state.join(file));
        if before.join(file).exists() {
            fs::copy(before.join(file), state.join(file))?;
        }
    }
    let out = agent(&["budget", "show"], &config)?;
    ensure!(!out.status.success() && text(&out).contains("older copy"), "{}", text(&out));
    // The whole folder: only the coordinator remembers, and shows the site's own signature.
    fs::remove_dir_all(&state)?;
    copy(&before, &state)?;
    let site = SiteSpec { args: vec!["--exit-on-refusal".into()], ..site };
    let mut running = federation.start_agent(&site)?;
    ensure!(running.exit_code()? == Some(3), "{}", running.output());
    ensure!(running.output().contains("older copy"), "{}", running.output());
    // The newest one is restored, and all is well.
    fs::remove_dir_all(&state)?;
    copy(&after, &state)?;
    budget(&config)?;
    // The database gone altogether.
    for file in ["ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"] {
        let _ = fs::remove_file(state.join(file));
    }
    let out = agent(&["budget", "show"], &config)?;
    ensure!(!out.status.success() && text(&out).contains("is missing"), "{}", text(&out));
    Ok(())
}

#[test]
fn a_damaged_ledger_and_another_sites_are_refused_by_name() -> Result<()> {
    let mut federation = Federation::new()?;
    let (_coordinator, _site, config) = one_site(&mut federation, "here")?;
    let there = SiteSpec::new("there", "ae-on/ae-du");
    let other = federation.prepare_site(&there, &wisconsin(1)?[0])?;
    budget(&config)?;
    let text_of = fs::read_to_string(&other)?;
    let state = config.parent().context("a folder")?.join("state");
    fs::write(
        &other,
        text_of.replace("dir = \"state\"", &format!("dir = \"{}\"", state.display())),
    )?;
    let out = agent(&["budget", "show"], &other)?;
    let said = text(&out);
    ensure!(
        !out.status.success() && said.contains("here") && said.contains("names another site"),
        "{said}"
    );
    // A damaged file.
    let file = state.join("ledger.sqlite");
    let mut bytes = fs::read(&file)?;
    let _ = fs::remove_file(state.join("ledger.sqlite-wal"));
    bytes.truncate(5_000);
    bytes[2_000..].fill(0x5a);
    fs::write(&file, bytes)?;
    let out = agent(&["budget", "show"], &config)?;
    ensure!(!out.status.success() && text(&out).contains("ledger"), "{}", text(&out));
    Ok(())
}

#[test]
fn a_refusal_costs_nothing_and_what_is_left_is_shown() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let site = SiteSpec { epsilon_limit: 4.0, ..SiteSpec::new("thrifty", "ae-on/ae-az") };
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?;
    let greedy =
        study_yaml("greedy", 30, 1).replace("noise_multiplier: 1.0", "noise_multiplier: 0.25");
    federation.submit(&greedy)?;
    let _agent = federation.start_agent(&site)?;
    wait_for("a refusal", || {
        let declined = federation.entries("site.declined")?;
        Ok(declined
            .iter()
            .any(|e| e["entry"]["reason"].as_str().is_some_and(|r| r.contains("epsilon")))
            .then_some(()))
    })?;
    let shown = budget(&config)?;
    ensure!(shown["datasets"][0]["epsilon"] == "0.0000", "{shown}");
    let modest = study_yaml("modest", 2, 1);
    federation.submit(&modest)?;
    federation.study_reaches("modest", &["finished"])?;
    let study = federation.dir().join("study.yaml");
    let out =
        agent(&["budget", "show", "--json", "--study", study.to_str().context("UTF-8")?], &config)?;
    let shown: Value = serde_json::from_slice(&out.stdout)?;
    let mine = &shown["datasets"][0];
    ensure!(mine["studies"][0]["study"] == "modest", "{shown}");
    ensure!(mine["left"].as_f64().is_some_and(|l| l > 0.0 && l < 4.0), "{shown}");
    ensure!(shown["rounds_left"].as_u64().is_some_and(|r| r > 0), "{shown}");
    Ok(())
}

#[test]
fn an_exported_ledger_is_checked_against_the_updates_that_it_paid_for() -> Result<()> {
    let mut federation = Federation::new()?;
    let (_coordinator, site, config) = one_site(&mut federation, "exported")?;
    federation.submit(&study_yaml("audited", 3, 1))?;
    let mut running = federation.start_agent(&site)?;
    federation.study_reaches("audited", &["finished"])?;
    running.terminate()?;
    federation.verified()?;
    let bundle = federation.dir().join("bundle.tar");
    let bundle = bundle.to_str().context("UTF-8")?;
    let file = federation.dir().join("ledger.jsonl");
    let path = file.to_str().context("UTF-8")?;
    let whole = exported(&config)?;
    fs::write(&file, &whole)?;
    let said = run("falaj-verify", &[bundle, "--ledger", path])?;
    ensure!(said.contains("pay for 3 updates"), "{said}");
    let refused = |text: &str, why: &str| -> Result<()> {
        fs::write(&file, text)?;
        let said = run("falaj-verify", &[bundle, "--ledger", path]).expect_err("wrong").to_string();
        ensure!(said.contains(why), "{said}");
        Ok(())
    };
    let lines: Vec<&str> = whole.lines().collect();
    let (last, entries) = lines.split_last().context("lines")?;
    let cut = [&entries[..3], &[*last]].concat().join("\n");
    refused(&cut, "signed another head")?;
    refused(&whole.replacen("round 1", "round 9", 1), "entry")?;
    // The site itself signs a ledger that it has cut back: its own updates give it away.
    let credentials = federation.credentials("site", "exported")?;
    let mut ledger = Ledger::default();
    entries[..3].iter().try_for_each(|line| ledger.take(line.as_bytes()))?;
    let id: SiteId = credentials.identity()?.spiffe.try_into()?;
    let head = falaj_core::ledger::head_bytes(&id, ledger.entries(), &ledger.head());
    let key = credentials.signing_key();
    let signature =
        falaj_core::note::sign_context(&**key, falaj_core::ledger::HEAD_CONTEXT, &head)?;
    let hex = hex::encode(signature);
    let head = String::from_utf8(head)?.replace('"', "\\\"");
    let resigned = format!(
        "{}\n{{\"certificate\":\"\",\"head\":\"{head}\",\"signature\":\"{hex}\"}}\n",
        entries[..3].join("\n")
    );
    refused(&resigned, "was cut back")?;
    Ok(())
}

#[test]
fn only_a_stewards_signed_statement_lets_a_data_set_start_afresh() -> Result<()> {
    let mut federation = Federation::new()?;
    let (_coordinator, site, config) = one_site(&mut federation, "renewed")?;
    federation.submit(&study_yaml("before", 2, 1))?;
    let mut running = federation.start_agent(&site)?;
    federation.study_reaches("before", &["finished"])?;
    running.terminate()?;
    federation.issue("operator", "elsewhere", "ae-on/ae-du")?;
    let state = |who: (&str, &str), because: &str| {
        let identity = federation.identity(who.0, who.1);
        let (cert, key) = (identity.join("cert.pem"), identity.join("key.pem"));
        let path = |p: &Path| p.to_string_lossy().into_owned();
        agent(
            &[
                "budget",
                "other-people",
                "--dataset",
                "wdbc",
                "--because",
                because,
                "--cert",
                &path(&cert),
                "--key",
                &path(&key),
            ],
            &config,
        )
    };
    let why = "the cohort of 2027 shares nobody with the one before";
    for (who, because, expected) in [
        (("operator", "elsewhere"), why, "no operator in ae-on/ae-az"),
        (("site", "renewed"), why, "no operator in"),
        (("operator", "omar"), "because", "say in a sentence"),
    ] {
        let out = state(who, because)?;
        ensure!(!out.status.success() && text(&out).contains(expected), "{}", text(&out));
    }
    ensure!(budget(&config)?["datasets"][0]["epsilon"] != "0.0000");
    let out = state(("operator", "omar"), why)?;
    ensure!(out.status.success(), "{}", text(&out));
    let shown = budget(&config)?;
    ensure!(
        shown["datasets"][0]["epsilon"] == "0.0000" && shown["datasets"][0]["generation"] == 1,
        "{shown}"
    );
    ensure!(exported(&config)?.contains(why));
    Ok(())
}
