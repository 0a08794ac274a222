//! The audit log.

use crate::feed::{Format, Receiver};
use clap::{Args, Subcommand};
use falaj_core::{id::Place, note::VerifierKey};
use std::path::PathBuf;

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
        /// Where they are passed on to, as of `query`.
        #[arg(long, value_name = "PLACE")]
        to_place: Option<Place>,
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
    /// and TLS with a count of octets before each, over a new connection whenever one breaks. Policy decides over the place
    /// where the receiver lies.
    #[command(
        after_help = "Examples:\n  falaj log tail -n 20\n  falaj --json log tail --follow | jq .entry.kind\n  falaj log tail --follow --format ocsf --to-place ae-on/ae-du | forwarder\n  falaj log tail --follow --format syslog --to tls://siem.example:6514 --to-ca siem-ca.pem --to-place ae-on/ae-az\n  falaj log tail --follow --after 4711 --format syslog --to tcp://localhost:601 --to-place ae-on/ae-az"
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
        #[arg(long, value_name = "RECEIVER", requires = "format", requires = "to_place")]
        to: Option<Receiver>,
        /// Where the receiver lies, or whatever entries are passed on to: jurisdiction and region; where you are yourself when
        /// absent. Policy decides over it, and it is part of the entry.
        #[arg(long, value_name = "PLACE")]
        to_place: Option<Place>,
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
    /// Where they are passed on to: jurisdiction and region; where you are yourself when absent. Policy decides over it, and it is
    /// part of the entry.
    #[arg(long, value_name = "PLACE")]
    pub(crate) to_place: Option<Place>,
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
    /// Where that is passed on to: jurisdiction and region; where you are yourself when absent. Policy decides over it, and it is
    /// part of the entry.
    #[arg(long, value_name = "PLACE")]
    pub(crate) to_place: Option<Place>,
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
