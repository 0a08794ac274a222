//! A regulator's witness, in a process of its own, stands behind a coordinator's log, and a verifier counts it (AUD-10).

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{Federation, binary, run, text, wait_for};
use serde_json::Value;
use std::{fs, process::Command};

const NAME: &str = "witness.regulator.test/1";

/// AUD-10.
#[test]
fn a_regulators_witness_stands_behind_the_log_and_counts_for_those_who_know_it() -> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let status = federation.falaj_json(&["status"])?;
    let log = status["log_verifier_key"].as_str().context("a key")?.to_owned();
    coordinator.terminate()?;

    let home = federation.dir().join("regulator");
    fs::create_dir_all(home.join("state"))?;
    let path = |name: &str| home.join(name).display().to_string();
    let key = run("falaj-witness", &["keygen", &path("witness.key"), "--name", NAME])?;
    let key = key.trim();
    let config = format!(
        "name = \"{NAME}\"\nkey = \"witness.key\"\nstate = \"state\"\nlisten = \"127.0.0.1:0\"\n[[log]]\nkey = \"{log}\"\n"
    );
    fs::write(path("witness.toml"), config)?;
    let words = [
        binary("falaj-witness").display().to_string(),
        "serve".into(),
        "--config".into(),
        path("witness.toml"),
        "--ready-file".into(),
        path("ready.json"),
    ];
    let _witness = federation.spawn("regulator", &words, "regulator/log.txt")?;
    let ready = wait_for("the witness", || Ok(fs::read(path("ready.json")).ok()))?;
    let ready: Value = serde_json::from_slice(&ready)?;
    let address = ready["http"].as_str().context("an address")?;

    // The auditor's own copy names the sites' issuers, and not the regulator yet.
    let known = federation.ca().join("trust.toml");
    let before = fs::read_to_string(&known)?;
    let auditors = home.join("trust.toml");
    fs::write(&auditors, &before)?;
    fs::write(&known, format!("{before}\n[[witness]]\nkey = \"{key}\"\n"))?;
    federation.log_extra =
        format!("witnesses = [{{ url = \"http://{address}\", key = \"{key}\" }}]\n");
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
