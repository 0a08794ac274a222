//! Rounds.

use clap::Subcommand;

/// Work with the rounds of a study.
#[derive(Debug, Subcommand)]
pub(crate) enum RoundCommand {
    /// List the rounds of a study, tries included.
    #[command(after_help = "Examples:\n  falaj round list bank\n  falaj round list bank --watch")]
    List {
        /// Name of the study.
        id: String,
        /// Show them again whenever a round has ended, until the study is over.
        #[arg(long)]
        watch: bool,
    },
    /// Show one round: each try of it, where each site stood, and what the gates say of its candidate.
    #[command(after_help = "Example:\n  falaj round show bank 3")]
    Show {
        /// Name of the study.
        id: String,
        /// The round's number.
        round: u32,
    },
}
