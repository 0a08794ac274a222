//! Who dies when: nothing that was acknowledged is lost, nothing is counted twice.

use anyhow::{Context as _, Result, ensure};
use falaj_proto::problem::{Code, code_of};
use falaj_tests::{
    federation::{Federation, Process, SiteSpec, study_yaml, wait_for, wisconsin},
    rogue::Rogue,
};
use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

/// Two honest sites in a running federation.
fn two_sites(federation: &mut Federation) -> Result<(Process, Vec<SiteSpec>, Vec<Process>)> {
    let coordinator = federation.start_coordinator()?;
    let records = wisconsin(2)?;
    let mut sites = Vec::new();
    let mut agents = Vec::new();
    for (i, place) in ["ae-on/ae-az", "ae-on/ae-du"].iter().enumerate() {
        let site = SiteSpec::new(&format!("hospital-{}", i + 1), place);
        federation.prepare_site(&site, &records[i])?;
        agents.push(federation.start_agent(&site)?);
        sites.push(site);
    }
    Ok((coordinator, sites, agents))
}

/// Every promoted round counts each site exactly once.
fn counted_once(federation: &Federation, rounds: usize, sites: usize) -> Result<()> {
    let published = federation.entries("model.published")?;
    ensure!(published.len() == rounds, "{} models of {rounds}", published.len());
    for entry in &published {
        let updates = entry["entry"]["updates"].as_array().cloned().unwrap_or_default();
        ensure!(updates.len() == sites, "{entry}");
    }
    Ok(())
}

#[test]
fn a_coordinator_killed_while_collecting_goes_on_and_counts_every_update_once() -> Result<()> {
    let mut federation = Federation::new()?;
    let (mut coordinator, _sites, _agents) = two_sites(&mut federation)?;
    federation.submit(&study_yaml("killed", 6, 2))?;
    for round in 1..=3_u64 {
        wait_for("an accepted update", || {
            Ok((federation.entries("update.accepted")?.len() as u64 >= 2 * round - 1).then_some(()))
        })?;
        coordinator.kill()?;
        coordinator = federation.start_coordinator()?;
    }
    federation.finishes("killed")?;
    counted_once(&federation, 6, 2)?;
    federation.verified()?;
    Ok(())
}

#[test]
fn an_agent_killed_mid_round_and_restarted_finishes_the_study() -> Result<()> {
    let mut federation = Federation::new()?;
    let (_coordinator, sites, mut agents) = two_sites(&mut federation)?;
    federation.submit(&study_yaml("widow", 4, 2))?;
    wait_for("the second round", || {
        Ok((!federation.entries("model.published")?.is_empty()).then_some(()))
    })?;
    agents[0].kill()?;
    agents[0] = federation.start_agent(&sites[0])?;
    federation.finishes("widow")?;
    counted_once(&federation, 4, 2)?;
    federation.verified()?;
    Ok(())
}

/// Instants at which the coordinator is killed, unless the environment asks for more.
const KILLS: u32 = 8;

#[test]
fn a_coordinator_killed_at_random_instants_finishes_every_time() -> Result<()> {
    let kills = std::env::var("FALAJ_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(KILLS);
    let mut federation = Federation::new()?;
    let (mut coordinator, _sites, _agents) = two_sites(&mut federation)?;
    // A fixed multiplicative generator: the instants differ, the test repeats.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for kill in 0..kills {
        let study = format!("random-{kill}");
        federation.submit(&study_yaml(&study, 3, 2))?;
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let instant = Instant::now() + Duration::from_millis((state >> 33) % 1_500);
        wait_for("the instant", || Ok((Instant::now() >= instant).then_some(())))?;
        coordinator.kill()?;
        coordinator = federation.start_coordinator()?;
        let shown = federation.study_reaches(&study, &["finished", "failed"])?;
        ensure!(shown["state"] == "finished", "kill {kill}: {shown}");
        federation.verified()?;
    }
    counted_once(&federation, 3 * kills as usize, 2)
}

#[test]
fn a_full_disk_refuses_updates_and_corrupts_nothing() -> Result<()> {
    // A mount namespace gives the coordinator's state a file system of its own, and small.
    let probe = std::process::Command::new("unshare").args(["-rm", "true"]).status();
    if !probe.is_ok_and(|s| s.success()) {
        ensure!(std::env::var_os("CI").is_none(), "CI must be able to make a mount namespace");
        falaj_tests::skipped("this machine lets no unprivileged user make a mount namespace");
        return Ok(());
    }
    let mut federation = Federation::new()?;
    let state = federation.coordinator_state();
    fs::create_dir_all(&state)?;
    let script = format!("mount -t tmpfs -o size=8m tmpfs '{}' && exec \"$@\"", state.display());
    let coordinator =
        federation.start_coordinator_through(&["unshare", "-rm", "sh", "-c", &script, "sh"])?;
    federation.issue("site", "rogue", "ae-on/ae-sh")?;
    let address = federation.addresses.context("started")?.grpc;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let credentials = federation.credentials("site", "rogue")?;
    let trust = federation.trust()?;
    let mut rogue = runtime.block_on(Rogue::connect(address, credentials, &trust))?;
    let yaml = study_yaml("full", 1, 1).replace("min_sites: 1", "sites: [rogue], min_sites: 1");
    federation.submit(&yaml)?;
    let tasked = runtime.block_on(rogue.tasked())?;
    // The same file system, seen through the coordinator's own root.
    let inside = format!("/proc/{}/root{}", coordinator.id(), state.display());
    let filler = Path::new(&inside).join("filler");
    let mut file = File::create(&filler)?;
    for block in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![0; block]).is_ok() {}
    }
    let update = rogue.forge(&rogue.honest(&tasked)?, Rogue::zeros(&tasked)?);
    let refusal = runtime.block_on(rogue.submit(update.clone())).err().context("it was taken")?;
    ensure!(code_of(&refusal) == Some(Code::StorageFull), "{refusal:?}");
    // With room again it goes on, without a restart, and nothing is corrupted.
    drop(file);
    fs::remove_file(&filler)?;
    runtime.block_on(rogue.submit(update)).with_context(|| coordinator.output())?;
    federation.finishes("full")?;
    ensure!(federation.entries("update.accepted")?.len() == 1);
    federation.verified()?;
    Ok(())
}
