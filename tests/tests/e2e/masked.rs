//! Masked rounds over real sockets: the coordinator learns the sum, sites drop out, either side is killed.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{Federation, Process, SiteSpec, study_yaml, wait_for, wisconsin};
use serde_json::Value;
use std::fs;

/// The study of every test here: record-level protection against the coordinator too.
fn masked_yaml(name: &str, rounds: u32, min_sites: u32) -> String {
    masked(&study_yaml(name, rounds, min_sites), min_sites)
}

/// A study of the plain kind with so many sites, masked.
pub(crate) fn masked(yaml: &str, min_sites: u32) -> String {
    yaml.replace(
        "training: { local_steps: 5, sample_rate: 0.1, learning_rate: 0.5 }",
        "training: { local_steps: 1, sample_rate: 0.2, learning_rate: 2.0 }",
    )
    .replace(
        "mechanism: dp_sgd, noise_multiplier: 1.0,",
        "mechanism: distributed_gaussian, unit: record, batch_size: 28, noise_multiplier: 0.8,",
    )
    .replace("sealing: { bits: 16, range: 8.0 }\n", "")
    .replace(
        &format!("min_sites: {min_sites} }}"),
        &format!("min_sites: {min_sites}, weights: uniform }}"),
    )
}

fn sites(federation: &Federation, n: usize) -> Result<Vec<SiteSpec>> {
    let records = wisconsin(n)?;
    let places = ["ae-on/ae-az", "ae-on/ae-du", "ae-on/ae-sh"];
    let mut out = Vec::new();
    for (i, csv) in records.iter().enumerate() {
        let site = SiteSpec::new(&format!("hospital-{}", i + 1), places[i % places.len()]);
        federation.prepare_site(&site, csv)?;
        out.push(site);
    }
    Ok(out)
}

fn start(federation: &Federation, sites: &[SiteSpec]) -> Result<Vec<Process>> {
    sites.iter().map(|s| federation.start_agent(s)).collect()
}

/// How many models of the study came from updates of how many sites.
fn counted(federation: &Federation, study: &str) -> Result<Vec<usize>> {
    let mine = |e: &Value| e["entry"]["study"] == study;
    let count = |e: &Value| e["entry"]["updates"].as_array().map_or(0, Vec::len);
    Ok(federation.entries("model.published")?.iter().filter(|e| mine(e)).map(count).collect())
}

#[test]
fn a_masked_study_learns_and_the_coordinator_keeps_no_single_update() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let sites = sites(&federation, 4)?;
    let _agents = start(&federation, &sites)?;
    federation.submit(&masked_yaml("masked", 12, 3))?;
    federation.finishes("masked")?;
    ensure!(counted(&federation, "masked")?.iter().all(|n| *n >= 3));
    ensure!(counted(&federation, "masked")?.len() == 12);
    federation.verified()?;
    // The model is better than guessing the larger class, which 63 % are in.
    let auc = federation.auc("masked")?;
    ensure!(auc > 0.9, "{auc}");
    // What the coordinator spooled of a site has the look of noise: every byte value equally often.
    let spool = federation.coordinator_state().join("updates");
    let mut counts = [0_u32; 256];
    for file in fs::read_dir(&spool).with_context(|| spool.display().to_string())? {
        fs::read(file?.path())?.iter().for_each(|b| counts[usize::from(*b)] += 1);
    }
    let total: u32 = counts.iter().sum();
    let expected = f64::from(total) / 256.0;
    let chi: f64 = counts.iter().map(|c| (f64::from(*c) - expected).powi(2) / expected).sum();
    // A chi-square with 255 degrees of freedom: 380 is five and a half standard deviations.
    ensure!(total > 1_500 && chi < 380.0, "{total} bytes, {chi}");
    Ok(())
}

#[test]
fn rotated_updates_of_whole_sites_learn_with_masks_and_without() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let sites = sites(&federation, 4)?;
    let _agents = start(&federation, &sites)?;
    let rotated = "sealing: { bits: 16, rotation: hadamard }";
    for (name, mechanism) in [
        ("local", "mechanism: local_gaussian, noise_multiplier: 0.3,"),
        ("masked", "mechanism: distributed_gaussian, unit: site, noise_multiplier: 0.5,"),
    ] {
        let yaml = study_yaml(name, 8, 3)
            .replace("mechanism: dp_sgd, noise_multiplier: 1.0,", mechanism)
            .replace("sealing: { bits: 16, range: 8.0 }", rotated)
            .replace("min_sites: 3 }", "min_sites: 3, weights: uniform }");
        federation.submit(&yaml)?;
        federation.finishes(name)?;
        ensure!(counted(&federation, name)?.len() == 8);
        let auc = federation.auc(name)?;
        ensure!(auc > 0.9, "{name}: {auc}");
    }
    federation.verified()?;
    Ok(())
}

#[test]
fn sites_that_drop_out_of_a_masked_round_are_gone_without() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let sites = sites(&federation, 4)?;
    let mut agents = start(&federation, &sites)?;
    federation.submit(&masked_yaml("dropout", 30, 3))?;
    wait_for("the second model", || {
        Ok((counted(&federation, "dropout")?.len() >= 2).then_some(()))
    })?;
    agents[1].kill()?;
    federation.finishes("dropout")?;
    let counted = counted(&federation, "dropout")?;
    ensure!(counted.len() == 30 && counted.last() == Some(&3), "{counted:?}");
    federation.verified()?;
    Ok(())
}

#[test]
fn a_masked_round_survives_kills_of_the_coordinator_and_of_a_site() -> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let sites = sites(&federation, 4)?;
    let mut agents = start(&federation, &sites)?;
    federation.submit(&masked_yaml("killed", 8, 3))?;
    for answers in [5, 14, 35] {
        wait_for("an answer", || {
            Ok((federation.entries("exchange.answered")?.len() >= answers).then_some(()))
        })?;
        coordinator.kill()?;
        coordinator = federation.start_coordinator()?;
    }
    agents[0].kill()?;
    agents[0] = federation.start_agent(&sites[0])?;
    federation.finishes("killed")?;
    ensure!(counted(&federation, "killed")?.len() == 8);
    federation.verified()?;
    Ok(())
}

#[test]
fn what_is_meaningless_under_masks_is_refused_with_the_reason() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let good = masked_yaml("refused", 2, 3);
    let five = "places: [\"ae-on/*\"], sites: [a, b, c, d, e, f]";
    for (from, to, why) in [
        (", weights: uniform", "", "masked updates cannot be weighted"),
        ("min_sites: 3", "min_sites: 2", "would show what single sites sent"),
        ("noise_multiplier: 0.8", "noise_multiplier: 0.8, colluders: 2", "would show what single"),
        ("places: [\"ae-on/*\"]", five, "shows different lists"),
        ("local_steps: 1", "local_steps: 2", "a round is one plain step"),
        ("learning_rate: 2.0", "learning_rate: 2.0, optimizer: adam", "a round is one plain step"),
        (", batch_size: 28", "", "`privacy.batch_size` is missing"),
        ("batch_size: 28", "batch_size: 0", "no record would count"),
        ("unit: record", "unit: site", "contradicts `unit: site`"),
        ("rounds:", "sealing: { rotation: hadamard }\nrounds:", "accounted before rounding"),
        ("rounds:", "sealing: { bits: 8, range: 30.0 }\nrounds:", "steps of the grid"),
        ("rounds:", "sealing: { bits: 24, range: 0.5 }\nrounds:", "times as far as the grid"),
    ] {
        ensure!(good.contains(from), "{from}");
        let refused = federation.submit(&good.replace(from, to)).expect_err("refused").to_string();
        ensure!(refused.contains(why) && refused.contains("study.yaml:"), "{to}: {refused}");
    }
    federation.submit(&good)?;
    Ok(())
}
