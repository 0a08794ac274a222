//! The command line: what can be asked, and how. Each noun has a file of its own.

mod approval;
mod gate;
mod log;
mod model;
mod person;
mod privacy;
mod round;
mod site;
mod study;

pub(crate) use self::{
    approval::*, gate::*, log::*, model::*, person::*, privacy::*, round::*, site::*, study::*,
};

use crate::{compare::CompareArgs, login::LoginArgs, policy::PolicyCommand};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use falaj_certs::keys::KeyAt;
use std::path::PathBuf;

/// Operates a Falaj coordinator: studies, models, and the audit log.
///
/// Speaks REST over mutual TLS 1.3 with an operator's certificate. Settings come from flags, then the
/// environment, then the file that --config names.
#[derive(Debug, Parser)]
#[command(
    name = "falaj",
    version,
    after_help = "Examples:
  falaj --config falaj.toml login && falaj --config falaj.toml status
  falaj study check heart.yaml
  falaj study submit heart.yaml && falaj study watch heart
  falaj model download heart -o heart.safetensors
  falaj log export -o log.tar && falaj-verify log.tar
  falaj --json log entries --kind connection.refused

A falaj.toml:
  server = \"https://127.0.0.1:7444\"
  cert   = \"cert.pem\"      # paths are relative to the file
  key    = \"key.pem\"       # or \"pkcs11:…\"; without both, whoever `falaj login` signed in
  trust  = \"trust.toml\"
  places = [\"ae-on/*\"]     # where a coordinator may be"
)]
pub(crate) struct Cli {
    /// Answer in JSON: one document, or one a line where things happen over time.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to reach the coordinator, and as whom.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Read settings from this file.
    #[arg(long, global = true, env = "FALAJ_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The coordinator's REST address [default: `https://127.0.0.1:7444`].
    #[arg(long, global = true, env = "FALAJ_SERVER", hide_env_values = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// The operator's certificate, PEM.
    #[arg(long, global = true, env = "FALAJ_CERT", hide_env_values = true, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// Its key: a PEM file with mode 0600, or `pkcs11:…`.
    #[arg(long, global = true, env = "FALAJ_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) key: Option<KeyAt>,
    /// The folder of whoever has signed in with `falaj login`, unless --cert and --key are given [default: `~/.falaj/login`].
    #[arg(long, global = true, env = "FALAJ_LOGIN", hide_env_values = true, value_name = "FOLDER")]
    pub(crate) login: Option<PathBuf>,
    /// Whom to trust: the federation's trust.toml.
    #[arg(long, global = true, env = "FALAJ_TRUST", hide_env_values = true, value_name = "FILE")]
    pub(crate) trust: Option<PathBuf>,
    /// Where the coordinator may be, for example ae-on/ae-az [default: ae-on/*].
    #[arg(
        long = "place",
        global = true,
        env = "FALAJ_PLACES",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "PLACE"
    )]
    pub(crate) places: Vec<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show how the coordinator is.
    Status,
    /// Sign in at an identity provider: for its token the coordinator gives a certificate for a short time.
    ///
    /// Certificate and key go into the folder of --login, where every other command finds them. Nothing needs to be there
    /// before but the trust configuration. A browser of this machine signs in, or one of another with --device, or a
    /// pipeline by its client's secret.
    #[command(
        after_help = "Examples:\n  falaj --trust trust.toml login --at https://coordinator.example:7446\n  falaj --trust trust.toml login --at https://coordinator.example:7446 --device\n  falaj --login ci login --client-id nightly --client-secret-file secret && falaj --login ci study list"
    )]
    Login(LoginArgs),
    /// Remove the certificate of whoever has signed in, and its key.
    Logout,
    /// List the sites that are connected.
    Sites,
    /// Work with studies.
    #[command(subcommand)]
    Study(StudyCommand),
    /// Work with the rounds of a study.
    #[command(subcommand)]
    Round(RoundCommand),
    /// See the gates that a study declares, and what they say of a candidate.
    #[command(subcommand)]
    Gate(GateCommand),
    /// Hold two studies, rounds or versions against each other: settings, figures with their intervals, gates, epsilon by site.
    ///
    /// Intervals that lie apart show a difference; those that overlap show none, though there may be one. Epsilon is what each site has
    /// spent on the whole study so far.
    #[command(
        after_help = "Examples:\n  falaj compare bank bank-wide\n  falaj compare bank@9 bank@5 --figure recall --history\n  falaj compare bank:champion bank:challenger\n  falaj --json compare bank:1 bank:2 | jq .figures"
    )]
    Compare(CompareArgs),
    /// Work with the models of a study, and with the versions by which they are promoted.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Show which versions learned from a site, from a place or from an update, and what a withdrawal of consent makes of each.
    ///
    /// With --study and --version the other way round: everything that made that version, and what became of it.
    #[command(
        after_help = "Examples:\n  falaj lineage --site spiffe://health.example/ae-on/ae-az/site/hospital-2 --since 2026-03-01 --until 2026-05-31\n  falaj lineage --from-place ae-on/ae-du\n  falaj lineage --update 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n  falaj lineage --study heart --version 3"
    )]
    Lineage(LineageArgs),
    /// Work with the audit log.
    #[command(subcommand)]
    Log(LogCommand),
    /// See who the people in the log are, and erase them.
    #[command(subcommand)]
    Person(PersonCommand),
    /// Work with legal holds, which keep people from being erased.
    #[command(subcommand)]
    Hold(HoldCommand),
    /// See which sites are connected, have sites enrol, and revoke sites and other parties.
    #[command(subcommand)]
    Site(SiteCommand),
    /// Approve what another person is to take: the same as `falaj approval give`.
    #[command(
        after_help = "Example:\n  falaj approve version.promote --study heart --version 2 --stage production --for spiffe://health.example/ae-on/ae-az/operator/omar"
    )]
    Approve(GiveArgs),
    /// Approve what another person is to take, see what was approved, and take that back.
    #[command(subcommand)]
    Approval(ApprovalCommand),
    /// Check, try, explain and compare policies; only the comparison asks a coordinator, for its log.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Reckon with privacy; nothing is asked of a coordinator.
    #[command(subcommand)]
    Privacy(PrivacyCommand),
    /// Print completions for a shell.
    #[command(
        after_help = "Example:\n  falaj completions bash > ~/.local/share/bash-completion/completions/falaj"
    )]
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// A span such as `90s`, `20m`, `1h` or `2d`, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "write a number and s, m, h or d, for example 20m".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let each = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(each).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use std::fmt::Write as _;

    fn help(command: &mut clap::Command, path: &str, out: &mut String) {
        let path = format!("{path}{}", command.get_name());
        let text = command.render_long_help().to_string();
        writeln!(out, "# {path} --help\n\n{text}").expect("invariant: a string takes text");
        for sub in command.get_subcommands_mut().filter(|s| s.get_name() != "help") {
            help(sub, &format!("{path} "), out);
        }
    }

    #[test]
    fn the_help_is_the_one_in_the_repository() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/help.txt");
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut now = String::new();
        help(&mut command, "", &mut now);
        if std::env::var_os("FALAJ_BLESS").is_some() {
            std::fs::write(path, &now).expect("written");
        }
        let kept = std::fs::read_to_string(path).expect("the snapshot is there");
        assert!(now == kept, "the help changed: look at it, then run this with FALAJ_BLESS=1");
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
