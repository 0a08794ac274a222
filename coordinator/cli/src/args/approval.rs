//! Approvals.

use super::seconds;
use clap::{Args, Subcommand};
use falaj_core::{id::Place, registry::version::Stage};

/// Approve what another person is to take, see what was approved, and take that back.
#[derive(Debug, Subcommand)]
pub(crate) enum ApprovalCommand {
    /// Approve that another person exports the log, or has a study's models, and takes them to one place; or promotes a version.
    ///
    /// Policies say what needs it, how many people have to approve, and who may. It is an entry of the log. The same again takes
    /// the place of what you approved before.
    #[command(
        after_help = "Examples:\n  falaj approval give log.export --for spiffe://health.example/ae-on/ae-az/operator/sara\n  falaj approval give model.read --study heart --for spiffe://health.example/ae-on/ae-az/operator/lina --to-place ae-on/ae-du --ttl 7d\n  falaj approval give version.promote --study heart --version 2 --stage production --for spiffe://health.example/ae-on/ae-az/operator/omar"
    )]
    Give(GiveArgs),
    /// Take an approval back.
    #[command(after_help = "Example:\n  falaj approval withdraw 00112233445566778899aabbccddeeff")]
    Withdraw {
        /// Its name, as `falaj approval list` shows it.
        approval: String,
    },
    /// List the approvals in force.
    #[command(after_help = "Example:\n  falaj approval list")]
    List,
}

/// What is approved, for whom.
#[derive(Debug, Args)]
pub(crate) struct GiveArgs {
    /// What they do: `log.export`, with mirrors, `model.read` or `version.promote`.
    #[arg(value_parser = ["log.export", "model.read", "version.promote"])]
    pub(crate) action: String,
    /// Whose models.
    #[arg(long, required_if_eq_any([("action", "model.read"), ("action", "version.promote")]))]
    pub(crate) study: Option<String>,
    /// Which version they promote.
    #[arg(long, required_if_eq("action", "version.promote"))]
    pub(crate) version: Option<u32>,
    /// Where it is to go on to.
    #[arg(long, required_if_eq("action", "version.promote"))]
    pub(crate) stage: Option<Stage>,
    /// Who is to act: another person, by SPIFFE ID.
    #[arg(long = "for", value_name = "ID")]
    pub(crate) whom: String,
    /// Where it is taken to, or is to serve; where they are themselves when absent.
    #[arg(long, value_name = "PLACE")]
    pub(crate) to_place: Option<Place>,
    /// How long it counts: a number and `s`, `m`, `h` or `d`; 30 days at most.
    #[arg(long, default_value = "24h", value_parser = seconds)]
    pub(crate) ttl: u64,
}
