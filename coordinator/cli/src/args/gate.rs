//! Gates.

use clap::Subcommand;

/// Work with the gates that a study declares.
#[derive(Debug, Subcommand)]
pub(crate) enum GateCommand {
    /// List the gates of a study: each with its bound, when it is asked and what failing does, and what it says of the newest candidate.
    #[command(
        after_help = "Examples:\n  falaj gate list bank\n  falaj gate list bank --round 3 --history\n  falaj --json gate list bank --watch"
    )]
    List {
        /// Name of the study.
        id: String,
        /// What they say of this round's candidate; each of the newest that it has looked at when absent.
        #[arg(long)]
        round: Option<u32>,
        /// With a line of bars: each figure over all rounds.
        #[arg(long)]
        history: bool,
        /// Show them again whenever a round has ended, until the study is over. With --json one document a line.
        #[arg(long, conflicts_with = "round")]
        watch: bool,
    },
    /// Say in sentences what each gate asks for, which end of the interval it is held against, and by how much it passes or fails.
    #[command(
        after_help = "Examples:\n  falaj gate explain bank\n  falaj gate explain bank equal_opportunity_difference --round 3"
    )]
    Explain {
        /// Name of the study.
        id: String,
        /// Gates whose names begin with this alone.
        gate: Option<String>,
        /// What they say of this round's candidate; each of the newest that it has looked at when absent.
        #[arg(long)]
        round: Option<u32>,
    },
}
