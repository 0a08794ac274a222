//! A study that wants witnesses behind each round before its model counts.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::{
    federation::{Federation, study_yaml, wait_for},
    regulator::{NAME, Regulator},
};

fn wanting(name: &str, quorum: u32, within_s: u32) -> String {
    let yaml = study_yaml(name, 1, 2);
    format!("{yaml}governance: {{ witnesses: {{ quorum: {quorum}, within_s: {within_s} }} }}\n")
}

#[test]
fn a_model_waits_for_its_witnesses_also_over_a_killed_coordinator() -> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let log = federation.falaj_json(&["status"])?["log_verifier_key"].clone();
    let _agents = federation.start_hospitals()?;
    federation.submit(&wanting("quorum", 3, 600))?;
    wait_for("the round to be aggregated", || {
        let rounds = federation.falaj_json(&["study", "rounds", "quorum"])?;
        Ok((rounds["items"][0]["stage"] == "gated").then_some(()))
    })?;
    ensure!(federation.entries("model.published")?.is_empty());
    coordinator.kill()?;

    let regulator = Regulator::start(&federation, log.as_str().context("a key")?)?;
    regulator.is_asked_by(&mut federation)?;
    let _coordinator = federation.start_coordinator()?;
    federation.finishes("quorum")?;
    let published = federation.entries("model.published")?;
    let [published] = &published[..] else { anyhow::bail!("{published:?}") };
    let named = published["entry"]["witnesses"].as_array().context("witnesses")?;
    let outside = |line: &&serde_json::Value| line.to_string().contains(NAME);
    ensure!(named.len() == 3 && named.iter().filter(outside).count() == 1, "{named:?}");
    federation.verified()?;
    Ok(())
}

#[test]
fn a_round_that_too_few_stand_behind_gives_no_model() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let _agents = federation.start_hospitals()?;
    federation.submit(&wanting("alone", 3, 2))?;
    let study = federation.study_reaches("alone", &["finished", "failed"])?;
    ensure!(study["state"] == "failed", "{study}");
    let why = "witnesses: 2 stood behind the round within 2 s, at least 3 needed";
    ensure!(study["reason"].to_string().contains(why), "{study}");
    let rejected = federation.entries("model.rejected")?;
    ensure!(rejected[0].to_string().contains(why), "{rejected:?}");
    ensure!(federation.entries("model.published")?.is_empty());
    federation.verified()?;
    Ok(())
}
