//! Studies.

use crate::figures::FiguresArgs;
use clap::Subcommand;
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
    /// Stop a study; its models stay.
    Stop {
        /// Its name.
        id: String,
    },
}
