//! Fuzzing with coverage, by libFuzzer, on the stable toolchain: the flags that make it are stable ones.

use crate::tools;
use anyhow::{Context as _, Result, ensure};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What lets libFuzzer see which way a run went. Addresses need no sanitizer: `unsafe` is forbidden in what is fuzzed.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1";
/// Every run of the same length begins from the same seed.
const SEED: u32 = 1;
/// Inputs are no longer.
const BYTES_MAX: u32 = 1 << 16;

/// Looks for inputs that break a parser's promises, for so many seconds with each target.
pub(crate) fn run(seconds: u64, target: Option<&str>) -> Result<()> {
    let folder = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let folder = tools::root().join(folder).join("fuzz");
    let host = host()?;
    let folder_text = folder.to_str().context("the target folder's path is not UTF-8")?;
    // With a target named, build scripts and macros are compiled without the flags.
    let words =
        ["build", "--release", "-p", "falaj-fuzz", "--features", "libfuzzer", "--bin", "fuzz"];
    let words: Vec<&str> =
        words.into_iter().chain(["--target", &host, "--target-dir", folder_text]).collect();
    tools::cargo_with(&words, &[("RUSTFLAGS", FLAGS)])?;
    let program = folder.join(&host).join("release/fuzz");
    let names = names()?;
    let chosen: Vec<&String> =
        names.iter().filter(|n| target.is_none_or(|t| t == n.as_str())).collect();
    ensure!(!chosen.is_empty(), "there is no such target; there are {}", names.join(", "));
    let mut broken = Vec::new();
    for name in chosen {
        if !fuzz(&program, &folder, name, seconds)? {
            broken.push(name.as_str());
        }
    }
    ensure!(
        broken.is_empty(),
        "broken: {}; the inputs lie in {}. Keep each as tests/fuzz/regressions/TARGET.WHAT",
        broken.join(", "),
        folder.join("found").display()
    );
    Ok(())
}

/// Runs one target and says how many inputs it was given; false when one broke it.
fn fuzz(program: &Path, folder: &Path, name: &str, seconds: u64) -> Result<bool> {
    let (corpus, found) = (folder.join("corpus").join(name), folder.join("found"));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&found)?;
    let done = Command::new(program)
        .env("FALAJ_FUZZ_TARGET", name)
        .env("FALAJ_FUZZ_SEEDS", &corpus)
        .arg(&corpus)
        .args([
            format!("-max_total_time={seconds}"),
            format!("-seed={SEED}"),
            format!("-max_len={BYTES_MAX}"),
            format!("-artifact_prefix={}/{name}.", found.display()),
            "-print_final_stats=1".to_owned(),
            "-timeout=10".to_owned(),
            "-verbosity=0".to_owned(),
        ])
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    let said = String::from_utf8_lossy(&done.stderr);
    let stat = |key: &str| {
        let line = said.lines().find(|line| line.contains(key)).unwrap_or_default();
        line.split_whitespace().last().unwrap_or("?").to_owned()
    };
    println!(
        "{name:16} {:>10} executions, {:>8}/s, {:>5} MiB at most{}",
        stat("number_of_executed_units"),
        stat("average_exec_per_sec"),
        stat("peak_rss_mb"),
        if done.status.success() { "" } else { "   BROKEN" }
    );
    if !done.status.success() {
        eprintln!("{said}");
    }
    Ok(done.status.success())
}

/// The triple that the compiler compiles for.
fn host() -> Result<String> {
    let said = Command::new("rustc").arg("-vV").output().context("running rustc")?;
    let said = String::from_utf8(said.stdout)?;
    let line = said.lines().find_map(|line| line.strip_prefix("host: "));
    line.map(str::to_owned).context("rustc names no host")
}

/// The targets' names, from their table.
fn names() -> Result<Vec<String>> {
    let path = tools::root().join("tests/fuzz/src/lib.rs");
    let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let rows = source.lines().filter_map(|l| l.trim().strip_prefix("Target { name: \""));
    Ok(rows.filter_map(|row| Some(row.split_once('"')?.0.to_owned())).collect())
}
