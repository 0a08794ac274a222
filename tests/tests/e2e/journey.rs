//! The main road: sites learn one model, the log verifies, and arrival order does not matter.

use anyhow::{Context, Result, ensure};
use falaj_tests::federation::{Federation, Process, SiteSpec, study_yaml, text, wisconsin};
use std::{fs, process::Command};

const EMIRATES: [&str; 3] = ["ae-on/ae-az", "ae-on/ae-du", "ae-on/ae-sh"];

/// A federation whose sites hold the Wisconsin records; agents start in the order given.
fn federation(order: &[usize], args: &[&str]) -> Result<(Federation, Process, Vec<Process>)> {
    let mut federation = Federation::new()?;
    let coordinator = federation.start_coordinator()?;
    let records = wisconsin(EMIRATES.len())?;
    let mut agents = Vec::new();
    for &i in order {
        let mut site = SiteSpec::new(&format!("hospital-{}", i + 1), EMIRATES[i]);
        site.args = args.iter().map(|a| (*a).to_owned()).collect();
        federation.prepare_site(&site, &records[i])?;
        agents.push(federation.start_agent(&site)?);
    }
    Ok((federation, coordinator, agents))
}

#[test]
fn three_sites_learn_one_model_and_the_log_verifies() -> Result<()> {
    let (federation, _coordinator, _agents) = federation(&[0, 1, 2], &[])?;
    federation.submit(&study_yaml("first", 3, 3))?;
    let study = federation.study_reaches("first", &["finished", "failed", "stopped"])?;
    ensure!(study["state"] == "finished", "{study}");
    ensure!(study["rounds_promoted"] == 3, "{study}");
    ensure!(federation.entries("update.accepted")?.len() == 9);
    ensure!(federation.entries("model.published")?.len() == 3);
    let verdict = federation.verified()?;
    ensure!(verdict.contains("verified"), "{verdict}");
    Ok(())
}

#[test]
fn one_changed_byte_in_an_export_is_found_and_the_entry_named() -> Result<()> {
    let (federation, _coordinator, _agents) = federation(&[0, 1, 2], &[])?;
    federation.submit(&study_yaml("tampered", 1, 3))?;
    federation.study_reaches("tampered", &["finished"])?;
    federation.verified()?;
    let bundle = federation.dir().join("bundle.tar");
    let mut bytes = fs::read(&bundle)?;
    let needle = b"\"kind\":\"update.accepted\"";
    let at = bytes.windows(needle.len()).position(|w| w == needle).context("an accepted update")?;
    bytes[at + 9] ^= 1;
    let forged = federation.dir().join("forged.tar");
    fs::write(&forged, bytes)?;
    let out =
        Command::new(falaj_tests::federation::binary("falaj-verify")).arg(&forged).output()?;
    ensure!(out.status.code() == Some(1), "{}", text(&out));
    ensure!(text(&out).contains("entry "), "no entry named: {}", text(&out));
    Ok(())
}

/// The digest of the last model when agents with fixed seeds start in `order`.
fn model_with_order(order: &[usize]) -> Result<String> {
    let (federation, _coordinator, _agents) = federation(order, &["--insecure-seed", "7"])?;
    federation.submit(&study_yaml("ordered", 3, 3))?;
    let study = federation.study_reaches("ordered", &["finished", "failed"])?;
    ensure!(study["state"] == "finished", "{study}");
    Ok(study["model_sha256"].as_str().context("a model")?.to_owned())
}

#[test]
fn shuffled_arrival_gives_the_same_model_bit_for_bit() -> Result<()> {
    let first = model_with_order(&[0, 1, 2])?;
    ensure!(first == model_with_order(&[2, 0, 1])?);
    ensure!(first == model_with_order(&[1, 2, 0])?);
    Ok(())
}

#[test]
fn a_site_whose_budget_is_spent_declines_and_the_study_goes_on() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let records = wisconsin(3)?;
    let mut agents = Vec::new();
    for (i, place) in EMIRATES.iter().enumerate() {
        let mut site = SiteSpec::new(&format!("hospital-{}", i + 1), place);
        if i == 2 {
            site.epsilon_limit = 3.0;
        }
        federation.prepare_site(&site, &records[i])?;
        agents.push(federation.start_agent(&site)?);
    }
    federation.submit(&study_yaml("frugal", 6, 2))?;
    federation.finishes("frugal")?;
    let declined = federation.entries("site.declined")?;
    ensure!(!declined.is_empty(), "nobody declined");
    ensure!(declined.iter().all(|e| e.to_string().contains("hospital-3")), "{declined:?}");
    ensure!(declined[0].to_string().contains("epsilon"), "{declined:?}");
    federation.verified()?;
    Ok(())
}

#[test]
fn both_programs_end_cleanly_when_asked_to() -> Result<()> {
    let (federation, mut coordinator, mut agents) = federation(&[0, 1], &[])?;
    federation.submit(&study_yaml("calm", 1, 2))?;
    federation.study_reaches("calm", &["finished"])?;
    ensure!(agents[0].terminate()? == Some(0), "{}", agents[0].output());
    ensure!(coordinator.terminate()? == Some(0), "{}", coordinator.output());
    Ok(())
}
