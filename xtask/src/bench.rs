//! Measurements as ratios within one run.

use anyhow::Result;

/// Runs the benchmarks.
pub(crate) fn run() -> Result<()> {
    crate::tools::cargo(&["bench", "-p", "falaj-tests"])
}
