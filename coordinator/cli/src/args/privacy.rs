//! Privacy.

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Reckon with privacy.
#[derive(Debug, Subcommand)]
pub(crate) enum PrivacyCommand {
    /// Epsilon of Gaussian steps over Poisson-sampled batches.
    ///
    /// The figure holds for batches in which every record is independently with the sample rate, and for
    /// nothing else: shuffled or fixed-size batches lose more. All steps of a study with `dp_ftrl` are one Gaussian
    /// release: `--sample-rate 1 --steps 1`, whatever the batches.
    #[command(
        after_help = "Examples:\n  falaj privacy epsilon --sample-rate 0.05 --noise-multiplier 1.1 --steps 400 --delta 1e-5\n  falaj privacy epsilon --batch - < plans.jsonl"
    )]
    Epsilon {
        #[command(flatten)]
        plan: Plan,
        /// The delta at which epsilon is stated, or several of them with commas between.
        #[arg(long, required_unless_present = "batch", value_delimiter = ',', value_parser = delta)]
        delta: Vec<f64>,
        /// Records that are protected: a delta above one over their number draws a warning.
        #[arg(long, value_name = "N")]
        records: Option<u64>,
        #[command(flatten)]
        how: How,
        /// Answer JSON Lines from this file, `-` for standard input.
        ///
        /// One plan a line: `{"sample_rate":0.05,"noise_multiplier":1.1,"steps":400,"delta":1e-5}`.
        /// Or releases of several kinds:
        /// `{"releases":[{"kind":"gaussian","noise_multiplier":9,"count":2}],"deltas":[1e-5,1e-9]}`, where the
        /// kinds are `poisson_gaussian`, `gaussian`, `discrete_gaussian` (`sigma`, `sensitivity`, `count`) and
        /// `discrete_laplace` (`scale`, `sensitivity`, `count`). Instead of `delta` or `deltas`, `at_epsilon`
        /// asks for the delta there. `records` draws a warning where a delta is above one over their number.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["sample_rate", "noise_multiplier", "steps", "delta", "records", "accountant", "neighbours"])]
        batch: Option<PathBuf>,
    },
    /// Delta at an epsilon, from below and from above, for the same steps.
    #[command(
        after_help = "Example:\n  falaj privacy delta --epsilon 2 --sample-rate 0.05 --noise-multiplier 1.1 --steps 400"
    )]
    Delta {
        #[command(flatten)]
        plan: Plan,
        /// The epsilon, at least 0.
        #[arg(long)]
        epsilon: f64,
        #[command(flatten)]
        how: How,
    },
    /// The setting that meets a target epsilon: leave out the one that is looked for.
    #[command(
        after_help = "Examples:\n  falaj privacy calibrate --target-epsilon 2 --delta 1e-5 --sample-rate 0.01 --steps 2000\n  falaj privacy calibrate --target-epsilon 2 --delta 1e-5 --sample-rate 0.01 --noise-multiplier 1.1"
    )]
    Calibrate {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        plan: Plan,
        #[command(flatten)]
        how: How,
    },
    /// Attack a study's training steps and say whether its privacy claim withstood.
    ///
    /// Runs the `falaj-agent` that lies beside this program, or else the one on the path, since the agent is
    /// what trains. Ends with code 1 when the claim is refuted.
    #[command(after_help = "Example:\n  falaj privacy audit study.yaml --trials 10000")]
    Audit {
        /// The study file.
        study: PathBuf,
        /// Rounds that are trained with the attacked record, and as many without it.
        #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(200..=10_000_000))]
        trials: u32,
    },
    /// Epsilon at deltas from 0.1 down to 1e-12.
    #[command(
        after_help = "Examples:\n  falaj privacy curve --sample-rate 0.05 --noise-multiplier 1.1 --steps 400\n  falaj privacy curve --sample-rate 0.05 --noise-multiplier 1.1 --steps 400 --plot curve.svg"
    )]
    Curve {
        #[command(flatten)]
        plan: Plan,
        /// Which data sets are neighbours.
        #[arg(long, value_enum, default_value_t)]
        neighbours: Neighbours,
        /// Also draw delta over epsilon into this SVG file.
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
    },
}

/// Gaussian steps over Poisson-sampled batches.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Plan {
    /// Chance with which a record is in a batch, above 0, at most 1.
    #[arg(long, value_name = "Q")]
    pub(crate) sample_rate: Option<f64>,
    /// Noise standard deviation over the clip norm.
    #[arg(long, value_name = "SIGMA")]
    pub(crate) noise_multiplier: Option<f64>,
    /// Steps, over all rounds.
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
}

/// How epsilon is found.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct How {
    /// Privacy-loss distributions are tight, for a plan that is fixed beforehand; Renyi divergences are what
    /// the sites' ledgers count, which allow plans that change.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) accountant: Accountant,
    /// Which data sets are neighbours.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) neighbours: Neighbours,
}

/// What a plan must meet.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Target {
    /// The epsilon that must not be exceeded.
    #[arg(long, value_name = "EPSILON")]
    pub(crate) target_epsilon: f64,
    /// The delta at which it is stated.
    #[arg(long, value_parser = delta)]
    pub(crate) delta: f64,
}

/// Which accountant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accountant {
    /// Privacy-loss distributions.
    #[default]
    Pld,
    /// Renyi divergences.
    Rdp,
}

/// Which data sets are neighbours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Neighbours {
    /// One record more or less.
    #[default]
    AddOrRemove,
    /// One record is another.
    Substitute,
}

fn delta(text: &str) -> Result<f64, String> {
    let delta: f64 = text.parse().map_err(|e| format!("{e}"))?;
    if delta > 0.0 && delta < 1.0 {
        Ok(delta)
    } else {
        Err("a delta lies above 0 and below 1".into())
    }
}
