//! Batches that take turns: a site's noise is correlated over all rounds of a study, and paid for as one stream.

use anyhow::{Context as _, Result, ensure};
use falaj_core::dp::rdp::RdpCurve;
use falaj_tests::federation::{
    Federation, Process, SiteSpec, binary, study_yaml, text, wait_for, wisconsin,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Four passes over ten batches.
fn streamed_yaml(name: &str, min_sites: u32) -> String {
    study_yaml(name, 8, min_sites)
        .replace("local_steps: 5, sample_rate: 0.1,", "local_steps: 5, batches: 10,")
        .replace("mechanism: dp_sgd,", "mechanism: dp_ftrl,")
}

/// What the whole stream costs at the study's delta, beside the disclosed number of records.
fn cost_of_streams(streams: f64) -> Result<f64> {
    let stream = RdpCurve::zcdp(0.5)?.times(streams);
    Ok(stream.compose(&RdpCurve::pure(0.1)?).epsilon(1e-5)?.value())
}

fn spent(config: &Path) -> Result<f64> {
    let out = Command::new(binary("falaj-agent"))
        .args(["budget", "show", "--json", "--config"])
        .arg(config)
        .output()?;
    ensure!(out.status.success(), "{}", text(&out));
    let shown: Value = serde_json::from_slice(&out.stdout)?;
    let epsilon = shown["datasets"][0]["epsilon"].as_str().context("an epsilon")?;
    Ok(epsilon.parse()?)
}

/// The site's files of streams.
fn streams(config: &Path) -> Result<Vec<PathBuf>> {
    let folder = config.parent().context("a folder")?.join("state/streams");
    Ok(fs::read_dir(folder)?.filter_map(|e| e.ok().map(|e| e.path())).collect())
}

fn one_site(federation: &mut Federation) -> Result<(Process, SiteSpec, PathBuf)> {
    let coordinator = federation.start_coordinator()?;
    let site = SiteSpec::new("hospital-1", "ae-on/ae-az");
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?;
    Ok((coordinator, site, config))
}

fn accepted(federation: &Federation, updates: usize) -> Result<()> {
    wait_for("updates", || {
        Ok((federation.entries("update.accepted")?.len() >= updates).then_some(()))
    })
}

#[test]
fn sites_learn_without_drawing_their_batches_and_pay_for_one_stream() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let (mut configs, mut agents) = (Vec::new(), Vec::new());
    for (i, csv) in wisconsin(2)?.iter().enumerate() {
        let site = SiteSpec::new(&format!("hospital-{}", i + 1), "ae-on/ae-az");
        configs.push(federation.prepare_site(&site, csv)?);
        agents.push(federation.start_agent(&site)?);
    }
    federation.submit(&streamed_yaml("streamed", 2))?;
    federation.finishes("streamed")?;
    let auc = federation.auc("streamed")?;
    ensure!(auc > 0.9, "{auc}");
    let whole = cost_of_streams(1.0)?;
    for config in &configs {
        let spent = spent(config)?;
        ensure!((spent - whole).abs() < 2e-4, "{spent} was spent on a stream of {whole}");
        // What nobody needs any more is not kept: sums of gradients, above all.
        wait_for("streams to be removed", || Ok(streams(config)?.is_empty().then_some(())))?;
    }
    federation.verified()?;
    Ok(())
}

#[test]
fn a_stream_survives_a_kill_of_its_site() -> Result<()> {
    let mut federation = Federation::new()?;
    let (_coordinator, site, config) = one_site(&mut federation)?;
    let mut agent = federation.start_agent(&site)?;
    federation.submit(&streamed_yaml("killed", 1))?;
    accepted(&federation, 3)?;
    agent.kill()?;
    let agent = federation.start_agent(&site)?;
    federation.finishes("killed")?;
    // A round that the kill broke off was paid for; if it had moved the stream, the stream may be used up before the
    // last round.
    let said = agent.output();
    let begun_anew = said.contains("have used the stream of noise up");
    ensure!(!said.contains("at its own cost") || begun_anew, "{said}");
    let (spent, whole) = (spent(&config)?, cost_of_streams(1.0)?);
    ensure!(spent > whole - 2e-4 && spent < cost_of_streams(1.5)?, "{spent}, {whole}");
    Ok(())
}

#[test]
fn a_stream_that_is_lost_begins_anew_and_is_paid_for_anew() -> Result<()> {
    let mut federation = Federation::new()?;
    let (_coordinator, site, config) = one_site(&mut federation)?;
    let mut agent = federation.start_agent(&site)?;
    federation.submit(&streamed_yaml("lost", 1))?;
    accepted(&federation, 3)?;
    agent.terminate()?;
    let before = spent(&config)?;
    for file in streams(&config)? {
        fs::remove_file(file)?;
    }
    let mut agent = federation.start_agent(&site)?;
    agent.says("a new stream of noise begins, at its own cost")?;
    federation.finishes("lost")?;
    let after = spent(&config)?;
    ensure!(before < cost_of_streams(1.0)?, "{before}");
    ensure!(after > cost_of_streams(1.0)? && after < cost_of_streams(2.0)?, "{after}");
    Ok(())
}

#[test]
fn batches_that_do_not_come_about_as_the_theorem_asks_are_refused_with_the_way_out() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let good = streamed_yaml("refused", 2);
    for (from, to, why) in [
        ("batches: 10", "sample_rate: 0.1", "is for batches that take turns"),
        ("batches: 10", "batches: 10, sample_rate: 0.1", "not clear how batches come about"),
        ("batches: 10, ", "", "not clear how batches come about"),
        ("batches: 10", "batches: 0", "no batch would ever be trained on"),
        ("dp_ftrl", "dp_sgd", "earn no amplification"),
        ("local_steps: 5", "local_steps: 20000", "too many to correlate noise over"),
        ("epsilon_limit: 900.0", "epsilon_limit: 0.5", "raise `noise_multiplier`"),
        ("clip_norm", "unit: record, clip_norm", "contradicts `mechanism: dp_ftrl`"),
    ] {
        ensure!(good.contains(from), "{from}");
        let refused = federation.submit(&good.replace(from, to)).expect_err("refused").to_string();
        ensure!(refused.contains(why) && refused.contains("study.yaml:"), "{to}: {refused}");
    }
    federation.submit(&good)?;
    Ok(())
}
