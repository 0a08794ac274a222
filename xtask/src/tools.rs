//! Running other programs, and saying in one line what is missing.

use anyhow::{Context as _, Result, ensure};
use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Builds the programs that a deployment runs, all at once: others beside them would have what they are built from built anew.
pub(crate) fn programs() -> Result<()> {
    let all = ["falaj-certs", "falaj-coordinator", "falaj-cli", "falaj-agent", "falaj-verify"];
    let words = ["build", "--release"].into_iter();
    cargo(&words.chain(all.into_iter().flat_map(|p| ["-p", p])).collect::<Vec<_>>())
}

/// Runs cargo in the repository.
pub(crate) fn cargo(args: &[&str]) -> Result<()> {
    cargo_with(args, &[])
}

/// Runs cargo in the repository with further environment variables.
pub(crate) fn cargo_with(args: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(args)
        .envs(variables.iter().copied())
        .current_dir(root())
        .status()
        .context("running cargo")?;
    ensure!(status.success(), "`cargo {}` failed", args.join(" "));
    Ok(())
}

/// Whether a program is there.
pub(crate) fn has(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Bytes that are free where `path` lies.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let out = Command::new("df").args(["--output=avail", "-B1"]).arg(path).output().ok()?;
    String::from_utf8_lossy(&out.stdout).lines().nth(1)?.trim().parse().ok()
}
