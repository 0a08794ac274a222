//! Measurements as ratios within one run.

use anyhow::Result;

/// Runs the benchmarks.
pub(crate) fn run() -> Result<()> {
    // The benchmark starts the programs that lie beside it, so they are built first.
    let programs = ["falaj-certs", "falaj-coordinator", "falaj-cli"];
    let mut words = vec!["build", "--release"];
    words.extend(programs.iter().flat_map(|p| ["-p", p]));
    crate::tools::cargo(&words)?;
    crate::tools::cargo(&["bench", "-p", "falaj-tests", "--bench", "ratios"])
}
