//! The command line: what can be asked, and how.

use crate::{
    feed::{Format, Receiver},
    figures::FiguresArgs,
    login::LoginArgs,
    policy::PolicyCommand,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use falaj_certs::keys::KeyAt;
use falaj_core::{
    id::Place,
    note::VerifierKey,
    registry::version::{Alias, Stage},
};
use serde::{Deserialize, Serialize};
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
    /// Revoke sites and other parties, and take that back.
    #[command(subcommand)]
    Site(SiteCommand),
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

/// Work with the models of a study.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// List the models; round 0 is the first, untrained one.
    List {
        /// Name of the study.
        id: String,
    },
    /// Download a model as safetensors and check its digest.
    #[command(
        after_help = "Example:\n  falaj model download heart --round 7 -o heart-7.safetensors"
    )]
    Download {
        /// Name of the study.
        id: String,
        /// The round that gave it; the newest when absent.
        #[arg(long)]
        round: Option<u32>,
        /// Where to write it.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Where that lies, or will: jurisdiction and region; where you are yourself when absent. Policy decides over it, and
        /// it is part of the entry.
        #[arg(long, value_name = "PLACE")]
        to_place: Option<Place>,
    },
    #[command(flatten)]
    Version(VersionCommand),
}

/// Work with the versions of a study's model.
#[derive(Debug, Subcommand)]
pub(crate) enum VersionCommand {
    /// List the versions of a study, or of every study, and where each stands.
    #[command(after_help = "Examples:\n  falaj model versions\n  falaj model versions heart")]
    Versions {
        /// Name of the study; every one when absent.
        id: Option<String>,
    },
    /// Show one version.
    #[command(
        after_help = "Examples:\n  falaj model show heart 2\n  falaj model show heart champion"
    )]
    Show {
        #[command(flatten)]
        of: OfVersion,
    },
    /// Show or write a version's model card, made from what is signed of it.
    #[command(
        after_help = "Examples:\n  falaj model card heart 2\n  falaj model card heart champion --format html -o heart-2.html"
    )]
    Card {
        #[command(flatten)]
        of: OfVersion,
        /// As what.
        #[arg(long, value_enum, default_value_t)]
        format: CardFormat,
        /// Where to write it; standard output when absent.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Show or write what is signed of a version: its provenance, an in-toto statement in a DSSE envelope.
    ///
    /// `falaj-verify bundle.tar --provenance FILE` checks each field of it against the log.
    #[command(
        visible_alias = "manifest",
        after_help = "Example:\n  falaj model provenance heart 2 -o heart-2.dsse.json"
    )]
    Provenance {
        #[command(flatten)]
        of: OfVersion,
        /// Where to write it; standard output when absent.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make a round's model a version. The last model of a study that has run all its rounds is one by itself.
    #[command(after_help = "Example:\n  falaj model make heart --round 7")]
    Make {
        /// Name of the study.
        id: String,
        /// The round that gave it.
        #[arg(long)]
        round: u32,
    },
    /// Have a version go on to the next stage: staging, production, archived.
    ///
    /// In production it takes the place of the version that is there, and is the champion. Policies say how many other people have
    /// to have approved just that, with `falaj approval give version.promote`.
    #[command(
        after_help = "Examples:\n  falaj model promote heart 2 --to staging\n  falaj model promote heart 2 --to production --serve-in ae-on/ae-du"
    )]
    Promote {
        #[command(flatten)]
        of: NumberedVersion,
        /// The stage.
        #[arg(long)]
        to: Stage,
        /// Where it is to serve: jurisdiction and region; where you are yourself when absent. Policy decides over it.
        #[arg(long, value_name = "PLACE")]
        serve_in: Option<Place>,
        #[command(flatten)]
        seen: Seen,
    },
    /// Say that a version is not good enough; it has not been in production.
    #[command(
        after_help = "Example:\n  falaj model reject heart 3 --reason \"recall of women is 8 points lower\""
    )]
    Reject {
        #[command(flatten)]
        of: NumberedVersion,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        seen: Seen,
    },
    /// Say that a version must not be used any more: it is not served from then on.
    #[command(
        after_help = "Example:\n  falaj model revoke heart 2 --reason \"hospital-2 withdrew its consent\""
    )]
    Revoke {
        #[command(flatten)]
        of: NumberedVersion,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        seen: Seen,
    },
    /// Have the version that was in production before serve again.
    #[command(
        after_help = "Example:\n  falaj model rollback heart --reason \"false alarms since noon\""
    )]
    Rollback {
        /// Name of the study.
        id: String,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        seen: Seen,
    },
    /// Give an alias to a version, or take it away: `challenger` to one in staging, `champion` to the one in production.
    #[command(
        after_help = "Examples:\n  falaj model alias heart challenger --version 3\n  falaj model alias heart challenger"
    )]
    Alias {
        /// Name of the study.
        id: String,
        /// Which alias.
        alias: Alias,
        /// Who is to have it; nobody when absent.
        #[arg(long)]
        version: Option<u32>,
        #[command(flatten)]
        seen: Seen,
    },
}

/// A version of a study.
#[derive(Debug, Args)]
pub(crate) struct OfVersion {
    /// Name of the study.
    pub(crate) id: String,
    /// The version's number, or `champion` or `challenger`.
    #[arg(value_parser = version)]
    pub(crate) version: String,
}

/// A version's number, or an alias.
fn version(text: &str) -> Result<String, String> {
    match text.parse::<u32>() {
        Ok(number) => Ok(number.to_string()),
        Err(_) => text.parse::<Alias>().map(|alias| alias.to_string()).map_err(|e| e.to_string()),
    }
}

/// A version of a study that is to move.
#[derive(Debug, Args)]
pub(crate) struct NumberedVersion {
    /// Name of the study.
    pub(crate) id: String,
    /// The version's number.
    pub(crate) version: u32,
}

/// Why something is done.
#[derive(Debug, Args)]
pub(crate) struct Why {
    /// Why: one line. It stays in the log: nothing about a person.
    #[arg(long)]
    pub(crate) reason: String,
}

/// How things stood when somebody looked.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Seen {
    /// Only if the study's versions are still at this revision, as `falaj model show` shows it.
    #[arg(long, value_name = "N")]
    pub(crate) if_revision: Option<u64>,
}

/// As what a card is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CardFormat {
    /// Markdown.
    #[default]
    Markdown,
    /// A page of HTML.
    Html,
}

/// From what, or of which version.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct LineageArgs {
    /// A site, by SPIFFE ID.
    #[arg(long, value_name = "ID", group = "of", required_unless_present_any = ["from_place", "update", "study"])]
    pub(crate) site: Option<String>,
    /// Every site in a place.
    #[arg(long, value_name = "PLACE", group = "of")]
    pub(crate) from_place: Option<Place>,
    /// An update, by the SHA-256 of its payload or of its header.
    #[arg(long, value_name = "SHA-256", group = "of")]
    pub(crate) update: Option<String>,
    /// Name of the study whose version it is.
    #[arg(long, group = "of", requires = "version")]
    pub(crate) study: Option<String>,
    /// The version's number, or an alias.
    #[arg(long, requires = "study", value_parser = version)]
    pub(crate) version: Option<String>,
    /// Updates that were accepted not earlier than this: RFC 3339, or a date in UTC.
    #[arg(long, value_name = "TIME", conflicts_with = "study")]
    pub(crate) since: Option<String>,
    /// Updates that were accepted earlier than this: RFC 3339, or a date in UTC, which is included to its end.
    #[arg(long, value_name = "TIME", conflicts_with = "study")]
    pub(crate) until: Option<String>,
}

/// Work with the audit log.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Have the log signed now, and show the checkpoint.
    Checkpoint,
    /// List the witnesses: who stands behind how much of the log, by cosignatures.
    Witnesses,
    /// List entries.
    #[command(
        after_help = "Examples:\n  falaj log entries --kind connection.refused\n  falaj log entries --from 1000 --limit 50"
    )]
    Entries {
        /// Only entries of this kind.
        #[arg(long)]
        kind: Option<String>,
        /// Index to begin with.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// At most this many; all when absent.
        #[arg(long)]
        limit: Option<u64>,
    },
    /// Find entries by what they are: every filter that is given must hold.
    ///
    /// With --json one entry a line.
    #[command(
        after_help = "Examples:\n  falaj log query --decision deny --since 2026-01-01\n  falaj log query --decision deny --all-shards\n  falaj log query --actor spiffe://health.example/ae-on/ae-az/operator/sara --kind model.read\n  falaj --json log query --study heart --round 3"
    )]
    Query {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        which: Which,
        /// Index to begin with.
        #[arg(long, default_value_t = 0, conflicts_with = "all_shards")]
        from: u64,
        /// At most this many; all when absent.
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// Show who accessed an object: every entry that touched it, the newest last, each proven to be in the log.
    ///
    /// All rows are proven under one signed checkpoint, and each is checked here, from the entry's own bytes, before it
    /// is shown. That no row is missing is not proven: for that, export the log and verify it. With --json the first line
    /// has the checkpoint, and then there is one entry a line; with --all-shards so for each shard.
    #[command(
        name = "who-accessed",
        after_help = "Examples:\n  falaj log who-accessed heart\n  falaj log who-accessed heart/3 --since 2026-01-01 --until 2026-01-31\n  falaj log who-accessed spiffe://health.example/ae-on/ae-az/site/hospital-1\n  falaj log who-accessed 9f86d081 -o proofs\n  falaj log who-accessed heart --all-shards"
    )]
    WhoAccessed(Accessed),
    /// Show the newest entries, and with --follow each one as it becomes durable, until Ctrl-C.
    ///
    /// With --json one entry a line. With --format as a SIEM reads them; --to sends them to a receiver of syslog: over TCP
    /// and TLS with a count of octets before each, over a new connection whenever one breaks.
    #[command(
        after_help = "Examples:\n  falaj log tail -n 20\n  falaj --json log tail --follow | jq .entry.kind\n  falaj log tail --follow --format ocsf\n  falaj log tail --follow --format syslog --to tls://siem.example:6514 --to-ca siem-ca.pem\n  falaj log tail --follow --after 4711 --format syslog --to tcp://localhost:601"
    )]
    Tail {
        /// How many entries of those that are there.
        #[arg(short = 'n', long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1_000))]
        last: u32,
        /// Go on with those that come.
        #[arg(short, long)]
        follow: bool,
        /// Begin after the entry with this index.
        #[arg(long, value_name = "INDEX", conflicts_with = "last")]
        after: Option<u64>,
        /// A shard that has ended, by its origin.
        #[arg(long, value_name = "ORIGIN", conflicts_with = "follow")]
        shard: Option<String>,
        /// In which form.
        #[arg(long, value_enum)]
        format: Option<Format>,
        /// A receiver of syslog: udp://host:port, tcp://host:port or tls://host:port.
        #[arg(long, value_name = "RECEIVER", requires = "format")]
        to: Option<Receiver>,
        /// Certificates, in PEM, of who may vouch for a receiver that is named with tls://.
        #[arg(long, value_name = "FILE", requires = "to")]
        to_ca: Option<PathBuf>,
    },
    /// Prove that an entry is in the log: a file that anybody can check who has the entry and the log's key.
    #[command(
        after_help = "Examples:\n  falaj log prove 12\n  falaj log prove 12 -o entry-12.tlog-proof\n  falaj-verify --proof entry-12.tlog-proof --leaf-hash <as `falaj log entries` shows it> --log-key <key>"
    )]
    Prove {
        /// The entry's index.
        index: u64,
        /// Where to write the proof (C2SP tlog-proof); standard output otherwise.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Of a shard that has ended, by its origin.
        #[arg(long, value_name = "ORIGIN")]
        shard: Option<String>,
    },
    /// List the shards of the log: each goes on where the one before ended.
    Shards,
    /// Delete the contents of a shard that has ended, under the coordinator's written policy. It cannot be undone.
    ///
    /// Hashes stay, so that checkpoints and proofs still verify, and so do the entries by which keys, holds, erasures and
    /// revocations are known. You show that you hold everything: the bundle has to be what is exported of the shard now. Refused while a
    /// legal hold covers something in it, or a term is not over; the log has the refusal, the article and the day. Should the
    /// connection break, the coordinator goes on: `falaj log shards` tells.
    #[command(
        after_help = "Examples:\n  falaj log export 2026.tar --shard health.example/audit/2026\n  falaj-verify 2026.tar\n  falaj log prune health.example/audit/2026 --bundle 2026.tar"
    )]
    Prune {
        /// The shard, by its origin.
        origin: String,
        /// The bundle that was exported of it, without a time-stamp; keep it.
        #[arg(long, value_name = "FILE")]
        bundle: PathBuf,
    },
    /// List the checkpoints that an authority has stamped with the time (RFC 3161).
    ///
    /// With --output each is written with its time-stamp, and the command is printed by which OpenSSL checks it.
    #[command(
        after_help = "Examples:\n  falaj log timestamps\n  falaj log timestamps -o stamps\n  openssl ts -verify -in stamps/checkpoint-120.tsr -data stamps/checkpoint-120 -CAfile tsa-ca.pem"
    )]
    Timestamps {
        /// Write each checkpoint and its time-stamp into this folder.
        #[arg(short, long, value_name = "FOLDER")]
        output: Option<PathBuf>,
        /// Of a shard that has ended, by its origin.
        #[arg(long, value_name = "ORIGIN")]
        shard: Option<String>,
    },
    /// Write the log as static files (C2SP tlog-tiles) into a folder or a bucket, for any tool that reads them.
    ///
    /// Only what is new is asked for, and it is written once it leads from what is there to the newest signed checkpoint.
    /// Files that are there are never changed, but for `checkpoint`, which comes last. A destination with more entries than
    /// the log, or with another history, is refused. It is an export: policy decides, and each time is an entry. People are in it
    /// under their pseudonyms.
    #[command(
        after_help = "Examples:\n  falaj log mirror public/log --to-place ae-on/ae-az\n  falaj log mirror s3://audit/2026 --to-place ae-on/ae-az --follow\n  falaj log mirror public/2026 --to-place ae-on/ae-az --shard health.example/audit/2026"
    )]
    Mirror {
        /// Of each shard one of its own: a folder, `file:///folder`, or `s3://bucket/prefix` with credentials, region and
        /// endpoint in `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION` and `AWS_ENDPOINT_URL`.
        destination: String,
        /// Where it lies: jurisdiction and region, as in SPIFFE IDs. It is part of the entry.
        #[arg(long, value_name = "PLACE")]
        to_place: Place,
        /// A shard that has ended, by its origin.
        #[arg(long, value_name = "ORIGIN", conflicts_with = "follow")]
        shard: Option<String>,
        /// The log's public key; what the coordinator says it is otherwise.
        #[arg(long, value_name = "KEY")]
        log_key: Option<VerifierKey>,
        /// Go on with what comes, until Ctrl-C.
        #[arg(short, long)]
        follow: bool,
        /// With --follow: seconds between two looks. Each look is an entry of the log.
        #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "follow", value_parser = clap::value_parser!(u64).range(1..=86_400))]
        every: u64,
    },
    /// Export the log as one tar, for `falaj-verify`.
    #[command(
        after_help = "Examples:\n  falaj log export -o bundle.tar && falaj-verify bundle.tar\n  falaj log export --shard health.example/audit/2026 -o 2026.tar"
    )]
    Export {
        /// Where to write it.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Up to the checkpoint of so many entries, which was signed before: the same bytes each time.
        #[arg(long, value_name = "ENTRIES")]
        tree_size: Option<u64>,
        /// A shard that has ended, by its origin.
        #[arg(long, value_name = "ORIGIN")]
        shard: Option<String>,
        /// Have the time-stamp authority that the coordinator asks stamp the report, too.
        #[arg(long)]
        timestamp: bool,
        /// Where that lies, or will: jurisdiction and region; where you are yourself when absent. Policy decides over it, and
        /// it is part of the entry.
        #[arg(long, value_name = "PLACE")]
        to_place: Option<Place>,
    },
}

/// See who the people in the log are, and erase them.
#[derive(Debug, Subcommand)]
pub(crate) enum PersonCommand {
    /// List the people in the log: pseudonyms, and who they are.
    #[command(after_help = "Example:\n  falaj person list")]
    List,
    /// Erase a person: afterwards nobody can tell whom the pseudonym in the log named. It cannot be undone.
    ///
    /// The log stays whole, and says that it was done, by which article and who asked. Refused while a legal hold stands, or
    /// while records of a study in which they acted must be kept; the log has the refusal, the article and the day.
    #[command(
        after_help = "Examples:\n  falaj person erase spiffe://health.example/ae-on/ae-az/operator/sara --article \"Federal Decree-Law 45/2021, Article 15\"\n  falaj --json person erase person:00112233445566778899aabbccddeeff --article \"Federal Decree-Law 45/2021, Article 15\""
    )]
    Erase {
        /// Who: a SPIFFE ID, or `person:` and the pseudonym.
        person: String,
        /// The article of law by which they ask. It stays in the log: write nothing about the person.
        #[arg(long)]
        article: String,
    },
}

/// Revoke sites and other parties, and take that back.
#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    /// Revoke a certificate, or an identity whatever its certificate: whoever is connected by it is ended within seconds.
    #[command(
        after_help = "Examples:\n  falaj site revoke spiffe://health.example/ae-on/ae-az/site/hospital-1 --reason \"left the federation\"\n  falaj site revoke 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --reason \"key lost\""
    )]
    Revoke {
        /// A SPIFFE ID, or the SHA-256 of a certificate, as `falaj-certs show` prints it.
        subject: String,
        /// Why, in one line. It stays in the log: write nothing about a person.
        #[arg(long)]
        reason: String,
    },
    /// Take a revocation back.
    #[command(
        after_help = "Example:\n  falaj site reinstate spiffe://health.example/ae-on/ae-az/site/hospital-1 --reason \"a new agreement\""
    )]
    Reinstate {
        /// As it was revoked.
        subject: String,
        /// Why, in one line. It stays in the log: write nothing about a person.
        #[arg(long)]
        reason: String,
    },
    /// Make a token by which a site gets its first certificate, once: `falaj-agent enroll` uses it.
    ///
    /// It is a secret: give it to the site's operator in a way that nobody else reads, and by no other channel than you would
    /// a password. Who made it, for whom and until when is in the log.
    #[command(
        after_help = "Examples:\n  falaj site enroll-token hospital-1 --at-place ae-on/ae-az\n  falaj site enroll-token hospital-1 --at-place ae-on/ae-az --ttl 20m > hospital-1.token"
    )]
    EnrollToken {
        /// The site's short name: lower-case letters, digits and `-`.
        name: String,
        /// Where it is: jurisdiction and region. An issuer has to be bound to it.
        #[arg(long, value_name = "PLACE")]
        at_place: Place,
        /// How long it can be used: a number and `s`, `m`, `h` or `d`.
        #[arg(long, default_value = "1h", value_parser = seconds)]
        ttl: u64,
    },
    /// List enrolment tokens: those that can be used, and what became of the others of the last thirty days.
    #[command(after_help = "Example:\n  falaj site tokens")]
    Tokens,
    /// Take an enrolment token back that nobody has used. `falaj site revoke` is for a site that has enrolled.
    #[command(
        after_help = "Example:\n  falaj site withdraw-token 3f6c5a9b0d1e4f72a8c3b5d7e9f10234"
    )]
    WithdrawToken {
        /// Its number: `falaj site tokens` shows it.
        token: String,
    },
    /// List the revocations that stand. Issuers' lists and the coordinator's deny file are not among them.
    #[command(after_help = "Example:\n  falaj site revocations")]
    Revocations,
}

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
    Give {
        /// What they do: `log.export`, with mirrors, `model.read` or `version.promote`.
        #[arg(value_parser = ["log.export", "model.read", "version.promote"])]
        action: String,
        /// Whose models.
        #[arg(long, required_if_eq_any([("action", "model.read"), ("action", "version.promote")]))]
        study: Option<String>,
        /// Which version they promote.
        #[arg(long, required_if_eq("action", "version.promote"))]
        version: Option<u32>,
        /// Where it is to go on to.
        #[arg(long, required_if_eq("action", "version.promote"))]
        stage: Option<Stage>,
        /// Who is to act: another person, by SPIFFE ID.
        #[arg(long = "for", value_name = "ID")]
        whom: String,
        /// Where it is taken to, or is to serve; where they are themselves when absent.
        #[arg(long, value_name = "PLACE")]
        to_place: Option<Place>,
        /// How long it counts: a number and `s`, `m`, `h` or `d`; 30 days at most.
        #[arg(long, default_value = "24h", value_parser = seconds)]
        ttl: u64,
    },
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

/// Work with legal holds, which keep people from being erased.
#[derive(Debug, Subcommand)]
pub(crate) enum HoldCommand {
    /// Place a hold on a person, or on everybody who acted in a study.
    #[command(
        after_help = "Examples:\n  falaj hold place --study heart --article \"Court order 12/2026\"\n  falaj hold place --person spiffe://health.example/ae-on/ae-az/operator/sara --article \"Court order 12/2026\""
    )]
    Place {
        /// Who: a SPIFFE ID, or `person:` and the pseudonym.
        #[arg(
            long,
            value_name = "WHO",
            required_unless_present = "study",
            conflicts_with = "study"
        )]
        person: Option<String>,
        /// The study.
        #[arg(long)]
        study: Option<String>,
        /// The article of law or the order by which it is placed. It stays in the log: write nothing about the person.
        #[arg(long)]
        article: String,
    },
    /// Release a hold.
    #[command(after_help = "Example:\n  falaj hold release 0123456789abcdef")]
    Release {
        /// Its name, as `falaj hold list` shows it.
        hold: String,
    },
    /// List the holds that stand.
    #[command(after_help = "Example:\n  falaj hold list")]
    List,
}

/// Which entries.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Filter {
    /// Only entries of this kind.
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// Only what this party or person did, by SPIFFE ID, or by `person:` and the pseudonym.
    #[arg(long, value_name = "ID")]
    pub(crate) actor: Option<String>,
    /// Only what is about this study.
    #[arg(long)]
    pub(crate) study: Option<String>,
    /// Only what is about this round of the study.
    #[arg(long, value_name = "N", requires = "study")]
    pub(crate) round: Option<u32>,
    /// Only what was decided so.
    #[arg(long, value_parser = ["allow", "deny"])]
    pub(crate) decision: Option<String>,
    /// Only what this policy decided, by its id.
    #[arg(long, value_name = "ID")]
    pub(crate) policy: Option<String>,
    #[command(flatten)]
    pub(crate) span: Span,
}

/// Who accessed what.
#[derive(Debug, Args)]
pub(crate) struct Accessed {
    /// A study, study/round, a site or operator by its SPIFFE ID, `person:` and a pseudonym, or a SHA-256 digest, at
    /// least its first 8 digits.
    pub(crate) object: String,
    #[command(flatten)]
    pub(crate) span: Span,
    #[command(flatten)]
    pub(crate) which: Which,
    /// At most this many; all when absent.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Where to go on: what an answer that was cut short gave.
    #[arg(long, value_name = "CURSOR", conflicts_with = "all_shards")]
    pub(crate) cursor: Option<String>,
    /// Prove under the newest checkpoint that a witness has cosigned, and show nothing that came after it.
    #[arg(long)]
    pub(crate) witnessed: bool,
    /// The log's public key; what the coordinator says it is otherwise. With --all-shards once for each shard.
    #[arg(long, value_name = "KEY")]
    pub(crate) log_key: Vec<VerifierKey>,
    /// Also write each entry and its proof (C2SP tlog-proof) into this folder; with --all-shards into `shard-1` there,
    /// the oldest, and so on.
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) output: Option<PathBuf>,
}

/// Which shards of the log; the one that is written when neither is given. Each row then names its shard.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Which {
    /// A shard that has ended, by its origin, as `falaj log shards` lists it.
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) shard: Option<String>,
    /// Every shard, one after the other, the oldest first. Indices begin anew in each.
    #[arg(long, conflicts_with = "shard")]
    pub(crate) all_shards: bool,
}

/// A span of time.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Span {
    /// Not earlier than this: RFC 3339, or a date in UTC.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Earlier than this: RFC 3339, or a date in UTC, which is included to its end.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
}

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
