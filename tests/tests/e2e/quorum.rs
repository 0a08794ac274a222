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
    // Another try would cost the sites epsilon, and could have no more witnesses behind it.
    ensure!(study["reason"].to_string().contains("2 witnesses are there, too few"), "{study}");
    ensure!(federation.entries("round.opened")?.len() == 1);
    let metrics = federation.metrics()?;
    for line in [
        "falaj_witness_quorums_total{outcome=\"too_few\"} 1\n",
        "falaj_witness_wait_seconds_count 1\n",
    ] {
        ensure!(metrics.contains(line), "{metrics}");
    }
    federation.verified()?;
    Ok(())
}

/// AUD-10: only a witness whom the trust configuration names stands behind a round, for the coordinator as for the verifier.
#[test]
fn a_witness_that_the_trust_configuration_does_not_name_makes_no_quorum() -> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let log = federation.falaj_json(&["status"])?["log_verifier_key"].clone();
    let _agents = federation.start_hospitals()?;
    coordinator.kill()?;
    let regulator = Regulator::start(&federation, log.as_str().context("a key")?)?;
    regulator.is_asked_unnamed_by(&mut federation);
    let mut coordinator = federation.start_coordinator()?;
    coordinator.says("trust.toml does not name")?;

    federation.submit(&wanting("unnamed", 3, 12))?;
    let study = federation.study_reaches("unnamed", &["finished", "failed"])?;
    let why = "witnesses: 2 stood behind the round within 12 s, at least 3 needed";
    ensure!(study["reason"].to_string().contains(why), "{study}");
    let closed = federation.entries("round.closed")?[0]["index"].as_u64();
    wait_for("the regulator to have cosigned the round", || {
        let all = federation.falaj_json(&["log", "witnesses"])?;
        let all = all["items"].as_array().context("witnesses")?;
        let its = all.iter().find(|w| w["witness"] == NAME);
        Ok(its.filter(|w| w["tree_size"].as_u64() > closed).map(drop))
    })?;
    federation.verified()?;
    Ok(())
}

#[test]
fn a_quorum_that_can_never_be_reached_is_refused_at_submission() -> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let log = federation.falaj_json(&["status"])?["log_verifier_key"].clone();
    let regulator = Regulator::start(&federation, log.as_str().context("a key")?)?;
    let three = wanting("three", 3, 60)
        .replace("min_sites: 2", "sites: [hospital-1, hospital-2], min_sites: 2");
    let refused = |federation: &Federation| -> Result<()> {
        let said = federation.submit(&three).expect_err("beyond reach").to_string();
        for part in [
            "a quorum of 3 witnesses cannot be reached: at most 2 count",
            "2 sites that `cohort.sites` names and 0 outside witnesses",
            "lower `quorum` to at most 2",
        ] {
            ensure!(said.contains(part), "{said}");
        }
        Ok(())
    };
    refused(&federation)?;
    coordinator.kill()?;
    regulator.is_asked_unnamed_by(&mut federation);
    let mut coordinator = federation.start_coordinator()?;
    refused(&federation)?;
    coordinator.kill()?;
    regulator.is_asked_by(&mut federation)?;
    let _coordinator = federation.start_coordinator()?;
    federation.submit(&three)?;
    ensure!(federation.entries("study.submitted")?.len() == 1);
    Ok(())
}
