//! A log whose key is replaced, and that goes on in another shard: sites follow, and both shards verify (AUD-11).

use anyhow::{Context as _, Result, ensure};
use falaj_core::note::VerifierKey;
use falaj_tests::federation::{Federation, SiteSpec, binary, run, study_yaml, text, wisconsin};
use std::{fs, process::Command};

fn key(federation: &Federation) -> Result<VerifierKey> {
    let status = federation.falaj_json(&["status"])?;
    Ok(status["log_verifier_key"].as_str().context("a key")?.parse()?)
}

fn index(federation: &Federation, kind: &str) -> Result<Option<u64>> {
    Ok(federation.entries(kind)?.last().and_then(|e| e["index"].as_u64()))
}

/// Exports the shard that is written, or one that has ended.
fn export(federation: &Federation, name: &str, shard: &[&str]) -> Result<String> {
    let path = federation.dir().join(name);
    let path = path.to_str().context("UTF-8")?;
    let out = federation.falaj(&[&["log", "export", "-o", path], shard].concat())?;
    ensure!(out.status.success(), "exporting: {}", text(&out));
    Ok(path.to_owned())
}

/// Both shards under the first key alone, the one going on from the other; an entry of the old one is still proven.
fn both_verify(federation: &Federation, trust: &str, known: &str) -> Result<()> {
    // Whoever knew the very first key alone verifies both shards.
    let shard = ["--shard", "falaj.test/audit/2026"];
    let (ended, written) =
        (export(federation, "2026.tar", &shard)?, export(federation, "2027.tar", &[])?);
    let verify =
        |bundle: &str| run("falaj-verify", &[bundle, "--trust", trust, "--log-key", known]);
    let (of_ended, of_written) = (verify(&ended)?, verify(&written)?);
    ensure!(of_ended.contains("4 models") && of_written.contains("2 models"), "{of_written}");
    let total = of_ended.lines().last().and_then(|l| l.split(' ').nth(1)).context("a size")?;
    let goes_on = format!("goes on    from falaj.test/audit/2026: {total} entries under root");
    ensure!(of_written.contains(&goes_on), "{goes_on}\n{of_written}");
    // Both sites have seen the end of the old shard.
    for site in ["hospital-1", "hospital-2"] {
        let line = of_ended.lines().find(|l| l.starts_with("witness") && l.contains(site));
        ensure!(line.is_some_and(|l| l.contains(&format!("first {total} entries"))), "{of_ended}");
    }
    // An entry of the old shard is still proven.
    let proof = federation.dir().join("old.tlog-proof");
    let path = proof.to_str().context("UTF-8")?;
    let out = federation.falaj(&[&["log", "prove", "7", "-o", path][..], &shard].concat())?;
    ensure!(out.status.success(), "{}", text(&out));
    ensure!(fs::read_to_string(&proof)?.contains("\nfalaj.test/audit/2026\n"));
    let shards = federation.falaj_json(&["log", "shards"])?;
    let states: Vec<_> = shards["items"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|s| s["ended"].as_bool())
        .collect();
    ensure!(states == [Some(true), Some(false)], "{shards}");
    let none = federation.falaj(&["log", "export", "-o", path, "--shard", "elsewhere"])?;
    ensure!(
        !none.status.success()
            && text(&none).contains("there are falaj.test/audit/2026, falaj.test/audit/2027"),
        "{}",
        text(&none)
    );
    Ok(())
}

/// AUD-11.
#[test]
fn sites_follow_the_log_to_another_key_and_to_the_next_shard_and_none_is_lost() -> Result<()> {
    let mut federation = Federation::new()?;
    let trust = federation.ca().join("trust.toml");
    let trust = trust.to_str().context("UTF-8")?.to_owned();
    let mut coordinator = federation.start_coordinator()?;
    let records = wisconsin(2)?;
    let sites: Vec<SiteSpec> =
        ["hospital-1", "hospital-2"].map(|name| SiteSpec::new(name, "ae-on/ae-az")).into();
    for (site, records) in sites.iter().zip(&records) {
        federation.prepare_site(site, records)?;
    }
    let mut first = federation.start_agent(&sites[0])?;
    let mut second = federation.start_agent(&sites[1])?;
    federation.submit(&study_yaml("before", 2, 2))?;
    federation.finishes("before")?;
    let old = key(&federation)?;
    // The second site is away until the log has another key and another shard.
    second.terminate()?;
    first.terminate()?;
    coordinator.terminate()?;

    let state = federation.coordinator_state();
    federation.log_extra = "key = \"state/log-2.key\"\n".into();
    let unannounced = federation.start_coordinator().expect_err("another key").to_string();
    ensure!(unannounced.contains("log.retiring"), "{unannounced}");
    federation.log_extra = "key = \"state/log-2.key\"\nretiring = { key = \"state/log.key\", until = \"2999-12-31\" }\n".into();
    let mut coordinator = federation.start_coordinator()?;
    let new = key(&federation)?;
    ensure!(new != old && index(&federation, "key.rotated")?.is_some());
    let mut first = federation.start_agent(&sites[0])?;
    first.says("another key speaks for the log")?;
    federation.submit(&study_yaml("between", 2, 1))?;
    federation.finishes("between")?;
    // Both sign meanwhile, and both lead to the bundle's key.
    let bundle = export(&federation, "rotated.tar", &[])?;
    for known in [&old, &new] {
        let said =
            run("falaj-verify", &[&bundle, "--trust", &trust, "--log-key", &known.to_string()])?;
        ensure!(said.contains("verified"), "{said}");
        let followed = said.contains("followed from the one that you gave");
        ensure!(followed == (known == &old), "{said}");
    }
    first.terminate()?;
    coordinator.terminate()?;

    // The old key is gone for good, and the next year begins.
    fs::remove_file(state.join("log.key"))?;
    federation.log_extra = "key = \"state/log-2.key\"\n".into();
    federation.log_origin = "falaj.test/audit/2027".into();
    let mut coordinator = federation.start_coordinator()?;
    let next = key(&federation)?;
    ensure!(next.name() == "falaj.test/audit/2027" && next.key() == new.key());
    ensure!(index(&federation, "log.opened")? == Some(0));
    let mut first = federation.start_agent(&sites[0])?;
    let mut second = federation.start_agent(&sites[1])?;
    for agent in [&mut first, &mut second] {
        agent.says("falaj.test/audit/2027")?;
    }
    federation.submit(&study_yaml("after", 2, 2))?;
    federation.finishes("after")?;
    let witnesses = federation.falaj_json(&["log", "witnesses"])?;
    ensure!(witnesses["items"].as_array().is_some_and(|all| all.len() == 2), "{witnesses}");

    both_verify(&federation, &trust, &old.to_string())?;
    coordinator.terminate()?;

    let config = federation.dir().join("coordinator/coordinator.toml");
    let out = Command::new(binary("falaj-coordinator"))
        .args(["fsck", "--config"])
        .arg(config)
        .output()?;
    ensure!(
        out.status.success() && text(&out).matches("whole: falaj.test/audit/").count() == 2,
        "{}",
        text(&out)
    );
    // The old shard is not gone back to.
    federation.log_origin = "falaj.test/audit/2026".into();
    let back = federation.start_coordinator().expect_err("an ended log").to_string();
    ensure!(back.contains("has ended"), "{back}");
    Ok(())
}
