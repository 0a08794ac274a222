//! Measurements as ratios within one run.

use crate::{setup, tools};
use anyhow::{Context as _, Result, ensure};
use std::{path::PathBuf, process::Command};

/// Parts of the benchmark of privacy; it runs when one of them, or `privacy`, is asked for.
const PRIVACY: [&str; 4] = ["accountant", "sampler", "dp-sgd", "secagg"];
/// Data sets of the benchmark of utility; it runs when one of them, or `utility`, is asked for.
const UTILITY: [&str; 3] = ["WDBC", "credit", "digits"];
/// What privacy is measured beside, pinned.
const PEERS: [&str; 3] = ["torch==2.11.0", "opacus==1.6.0", "dp-accounting==0.6.0"];

/// Runs the benchmarks, or the named parts of them.
pub(crate) fn run(parts: &[String]) -> Result<()> {
    let (privacy, others): (Vec<&str>, Vec<&str>) =
        parts.iter().map(String::as_str).partition(|p| *p == "privacy" || PRIVACY.contains(p));
    let (utility, others): (Vec<&str>, Vec<&str>) =
        others.into_iter().partition(|p| *p == "utility" || UTILITY.contains(p));
    let (policy, others): (Vec<&str>, Vec<&str>) = others.into_iter().partition(|p| *p == "policy");
    if !policy.is_empty() {
        tools::cargo(&["bench", "-p", "falaj-policies", "--bench", "decide"])?;
    }
    let all = privacy.is_empty() && utility.is_empty() && policy.is_empty();
    if all || !others.is_empty() {
        // The benchmark starts the programs that lie beside it, so they are built first.
        setup::setup()?;
        tools::programs()?;
        let mut words = vec!["bench", "-p", "falaj-tests", "--bench", "ratios", "--"];
        words.extend(&others);
        tools::cargo(&words)?;
    }
    if others.contains(&"audit") {
        tools::cargo(&["bench", "-p", "falaj-verify", "--bench", "verify"])?;
    }
    if others.contains(&"robust") {
        tools::cargo(&["bench", "-p", "falaj-agent", "--bench", "poisoning"])?;
    }
    for (bench, its) in [("privacy", privacy), ("utility", utility)] {
        if its.is_empty() {
            continue;
        }
        setup::setup()?;
        let python = peers()?;
        let python = python.to_str().context("the cache's path is not UTF-8")?;
        let mut words = vec!["bench", "-p", "falaj-agent", "--bench", bench, "--"];
        words.extend(its.iter().filter(|p| **p != bench));
        tools::cargo_with(&words, &[("FALAJ_PEERS_PYTHON", python)])?;
    }
    Ok(())
}

/// Installs the peers once, in an environment of their own, and gives its Python.
fn peers() -> Result<PathBuf> {
    let home = setup::cache_dir()?.join("peers-1");
    let python = home.join("bin/python");
    let done = home.join("done");
    if done.exists() {
        return Ok(python);
    }
    eprintln!("installing {} (about 3 GB, once)", PEERS.join(", "));
    let run = |program: &str, args: &[&str]| -> Result<()> {
        let status = Command::new(program).args(args).status().context("running Python")?;
        ensure!(status.success(), "`{program} {}` failed", args.join(" "));
        Ok(())
    };
    let text = home.to_str().context("the cache's path is not UTF-8")?;
    run("python3", &["-m", "venv", text])?;
    let mut words = vec!["-m", "pip", "install", "--quiet"];
    words.extend(PEERS);
    run(python.to_str().context("the cache's path is not UTF-8")?, &words)?;
    std::fs::write(done, "")?;
    Ok(python)
}
