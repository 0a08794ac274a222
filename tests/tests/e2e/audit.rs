//! The privacy claim of a study under attack, as an operator orders it.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{binary, study_yaml, text};
use std::{fs, process::Command};

/// A round of one full batch: the Gaussian mechanism itself.
fn study_file(dir: &std::path::Path) -> Result<String> {
    let yaml = study_yaml("audited", 1, 1)
        .replace("local_steps: 5, sample_rate: 0.1", "local_steps: 1, sample_rate: 1.0");
    let path = dir.join("audited.yaml");
    fs::write(&path, yaml)?;
    Ok(path.to_str().context("UTF-8")?.to_owned())
}

#[test]
fn the_command_passes_our_steps_and_says_what_it_saw() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let study = study_file(dir.path())?;
    let out = Command::new(binary("falaj"))
        .args(["--json", "privacy", "audit", &study, "--trials", "2000"])
        .output()?;
    ensure!(out.status.success(), "{}", text(&out));
    let found: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let figure = |name: &str| found[name].as_f64().with_context(|| format!("{name}: {found}"));
    ensure!(found["passed"] == true, "{found}");
    // Half of the claim is what an attack of this many trials proves, give or take a tenth: it is by chance itself.
    ensure!(figure("two_worlds_epsilon")? > 0.15 * figure("claimed_epsilon")?, "{found}");
    ensure!(figure("noise_multiplier_below")? > figure("noise_multiplier")?, "{found}");
    Ok(())
}

#[test]
fn steps_that_are_broken_on_purpose_fail_with_their_own_exit_code() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let study = study_file(dir.path())?;
    for how in ["noise-halved", "clipping-off", "seed-reused"] {
        let out = Command::new(binary("falaj-agent"))
            .args(["audit", &study, "--trials", "2000", "--sabotage", how])
            .output()?;
        ensure!(out.status.code() == Some(1), "{how}: {}", text(&out));
        ensure!(text(&out).contains("REFUTED"), "{how}: {}", text(&out));
    }
    Ok(())
}
