//! Studies.

use crate::figures::FiguresArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Work with studies.
#[derive(Debug, Subcommand)]
pub(crate) enum StudyCommand {
    /// Check a study file; nothing is asked of a coordinator.
    Check {
        /// The study, YAML.
        file: PathBuf,
    },
    /// Submit a study; it starts at once.
    Submit {
        /// The study, YAML.
        file: PathBuf,
    },
    /// List the studies.
    List,
    /// Show one study.
    Show {
        /// Its name.
        id: String,
    },
    /// Watch a study until it is over.
    ///
    /// Exits with 0 when it has finished, with 1 when it failed or was stopped. Outlives short absences of
    /// the coordinator.
    Watch {
        /// Its name.
        id: String,
    },
    /// List the rounds of a study.
    Rounds {
        /// Its name.
        id: String,
    },
    /// Show what sites have counted about candidates: each figure with its interval, and what gates say of it.
    #[command(
        after_help = "Examples:\n  falaj study figures bank\n  falaj study figures bank --round 9 --against 5\n  falaj study figures bank --figure roc_auc --history"
    )]
    Figures(FiguresArgs),
    /// Approve that a candidate which gates ask about becomes the study's model.
    ///
    /// It takes two people, neither of whom submitted the study.
    #[command(
        after_help = "Examples:\n  falaj study rounds heart                                 # which candidate waits, and why\n  falaj study approve heart --candidate 6d0c… --reason \"few records of women in this round\""
    )]
    Approve(DecideArgs),
    /// Refuse a candidate which gates ask about: the round is tried again, or the study fails.
    Refuse(DecideArgs),
    /// Stop a study; its models stay.
    Stop {
        /// Its name.
        id: String,
    },
}

/// What is decided over a candidate that waits for people.
#[derive(Debug, Args)]
pub(crate) struct DecideArgs {
    /// Name of the study.
    pub(crate) id: String,
    /// SHA-256 of the candidate.
    #[arg(long, value_name = "SHA256")]
    pub(crate) candidate: String,
    /// Why. It stays in the log: nothing about a person.
    #[arg(long)]
    pub(crate) reason: String,
}
