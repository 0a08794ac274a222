//! A regulator's witness, in a process of its own, stands behind a coordinator's log, and a verifier counts it (AUD-10).

use anyhow::{Context as _, Result, ensure};
use falaj_tests::{
    federation::{Federation, binary, text, wait_for},
    regulator::{NAME, Regulator},
};
use std::{fs, process::Command};

/// AUD-10.
#[test]
fn a_regulators_witness_stands_behind_the_log_and_counts_for_those_who_know_it() -> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let status = federation.falaj_json(&["status"])?;
    let log = status["log_verifier_key"].as_str().context("a key")?.to_owned();
    coordinator.terminate()?;

    let regulator = Regulator::start(&federation, &log)?;
    let key = &regulator.key;
    // The auditor's own copy names the sites' issuers, and not the regulator yet.
    let known = federation.ca().join("trust.toml");
    let before = fs::read_to_string(&known)?;
    let auditors = federation.dir().join("auditors.toml");
    fs::write(&auditors, &before)?;
    regulator.is_asked_by(&mut federation)?;
    let _coordinator = federation.start_coordinator()?;
    let stands = || -> Result<Option<u64>> {
        let all = federation.falaj_json(&["log", "witnesses"])?;
        let all = all["items"].as_array().context("a list")?;
        let ours = all.iter().find(|w| w["witness"] == NAME);
        Ok(ours.and_then(|w| w["tree_size"].as_u64()))
    };
    let size = wait_for("the regulator's cosignature", stands)?;
    ensure!(size > 2, "{size}");

    let said = federation.verified()?;
    ensure!(said.contains(&format!("witness    {NAME}: saw the first ")), "{said}");
    let verify = |trust: &str| {
        let bundle = federation.dir().join("bundle.tar");
        Command::new(binary("falaj-verify")).arg(bundle).args(["--trust", trust]).output()
    };
    let unknown = verify(&auditors.display().to_string())?;
    ensure!(!unknown.status.success(), "{}", text(&unknown));
    ensure!(text(&unknown).contains("does not name its witness"), "{}", text(&unknown));
    fs::write(&auditors, format!("{before}\n[[witness]]\nkey = \"{key}\"\n"))?;
    let both = verify(&auditors.display().to_string())?;
    ensure!(both.status.success() && text(&both).contains(NAME), "{}", text(&both));
    Ok(())
}
