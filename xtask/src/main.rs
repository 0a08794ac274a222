//! The project's own commands: set up, demonstrate, test, check, measure.

mod bench;
mod demo;
mod fuzz;
mod setup;
mod tools;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use std::{
    env,
    process::{self, ExitCode},
};

/// The project's own commands.
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo bank\n  cargo xtask demo hospital\n  cargo xtask test\n  cargo xtask test -- -p falaj-core\n  cargo xtask check"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get libtorch, pinned by hash, once.
    Setup,
    /// Run the main job: hospitals of three emirates learn one model, and a fourth is refused. Or `bank`: of two models one earns its
    /// place in production. Or `hospital`: a study goes back after a bad round, and ends once it gets no better.
    Demo(demo::Options),
    /// Set up and run every test. Arguments after `--` replace `--workspace`.
    Test {
        /// Passed on to `cargo test`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Format, lints, docs, licences.
    Check,
    /// Run the simulation of the round engine over more seeds.
    Sim {
        /// How many seeds.
        #[arg(long, default_value_t = 2_000)]
        seeds: u32,
    },
    /// Three agents and a coordinator for as long as is asked, under certificates that live for a minute and issuers that are
    /// replaced in the middle of rounds: fails when a round is lost, or a process grows.
    Soak {
        /// For how long.
        #[arg(long, default_value_t = 120)]
        minutes: u64,
    },
    /// Fuzz every parser that meets foreign bytes, or the named one of `tests/fuzz`.
    Fuzz {
        /// How long each target runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// The only target to run.
        target: Option<String>,
    },
    /// Measure, as ratios within one run.
    Bench {
        /// Parts to run: `fold`, `log`, `durable`, `who-accessed`, `uploads`, `memory`, `robust` (rules beside a copy, their memory, and
        /// what poisoning does to digits under each); or `audit`, which is those of the log and the verifier; or `policy`; or `privacy`,
        /// and of it `accountant`, `sampler`, `dp-sgd`, `secagg`; or `utility`, and of it `WDBC`, `credit`, `digits`. Without any: the
        /// first seven, of `robust` without digits.
        parts: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Setup => setup::setup().map(drop),
        Command::Demo(options) => demo::run(&options),
        Command::Test { args } => test(&args),
        Command::Check => check(),
        Command::Sim { seeds } => sim(seeds),
        Command::Soak { minutes } => soak(minutes),
        Command::Fuzz { seconds, target } => fuzz::run(seconds, target.as_deref()),
        Command::Bench { parts } => bench::run(&parts),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a log's second key is in. Of the whole workspace, so that nothing else is built another time.
const SECOND_KEY: [&str; 3] = [
    "--workspace",
    "--features",
    "falaj-core/ml-dsa,falaj-coordinator/ml-dsa,falaj-verify/ml-dsa,falaj-report/ml-dsa",
];
/// The tests that need it.
const SECOND_KEY_TESTS: [&str; 6] = ["--test", "ml_dsa", "--test", "bundle", "--test", "store"];

fn test(args: &[String]) -> Result<()> {
    setup::setup()?;
    setup::go();
    setup::postgresql();
    setup::strace();
    setup::tls();
    setup::tokens();
    setup::tpms();
    setup::cvc5();
    setup::promtool();
    // End-to-end tests run the very binaries, so all of them come first; with the tests, since without them cargo chooses other
    // features of what they are built from, and builds it twice.
    tools::cargo(&["build", "--workspace", "--bins", "--tests"])?;
    let mut words = vec!["test"];
    if args.is_empty() {
        words.push("--workspace");
    }
    words.extend(args.iter().map(String::as_str));
    tools::cargo(&words)?;
    if args.is_empty() {
        tools::cargo(&[&["test"], &SECOND_KEY[..], &SECOND_KEY_TESTS].concat())?;
    }
    Ok(())
}

fn check() -> Result<()> {
    setup::setup()?;
    tools::cargo(&["fmt", "--all", "--check"])?;
    tools::cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    let clippy = ["--all-targets", "--", "-D", "warnings"];
    tools::cargo(&[&["clippy"], &SECOND_KEY[..], &clippy[..]].concat())?;
    tools::cargo_with(&["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")])?;
    if tools::has("cargo-deny") {
        tools::cargo(&["deny", "check", "bans", "licenses", "sources"])?;
    } else {
        eprintln!("skipped: licences and sources; `cargo install cargo-deny --locked` mends that");
    }
    tools::cargo(&["test", "-p", "falaj-tests", "--test", "tidy"])
}

fn soak(minutes: u64) -> Result<()> {
    setup::setup()?;
    tools::cargo(&["build", "--workspace", "--bins"])?;
    // As it was just built: cargo would build it with other features if it were asked to run it.
    let soak = env::current_exe()?.with_file_name("soak");
    let status = process::Command::new(soak).arg(minutes.to_string()).status()?;
    ensure!(status.success(), "the soak failed");
    Ok(())
}

fn sim(seeds: u32) -> Result<()> {
    let seeds = seeds.to_string();
    tools::cargo_with(
        &["test", "-p", "falaj-coordinator", "--test", "sim", "--", "--nocapture"],
        &[("FALAJ_SIM_SEEDS", &seeds)],
    )
}
