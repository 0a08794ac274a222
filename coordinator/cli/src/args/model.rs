//! Models, their versions, and where those came from.

use clap::{Args, Subcommand, ValueEnum};
use falaj_core::{
    id::Place,
    registry::version::{Alias, Stage},
};
use std::path::PathBuf;

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
    /// Write a version's model as ONNX, for a runtime that is not ours.
    ///
    /// The version is downloaded, which policy decides over and the log says, checked, and converted here. What the file takes in
    /// are the study's columns as they stand in records: it scales them itself, as sites do. It carries the names of columns,
    /// classes and categories, and the bounds, that the study declares. docs/ONNX.md has all of it.
    #[command(
        after_help = "Examples:\n  falaj model export heart 2 --study heart.yaml -o heart-2.onnx\n  falaj model export heart champion --study heart.yaml --file heart.safetensors -o heart.onnx"
    )]
    Export(ExportArgs),
    #[command(flatten)]
    Version(VersionCommand),
}

/// Which version is written as what, and where.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) of: OfVersion,
    /// The study file, as it was submitted.
    #[arg(long, value_name = "FILE")]
    pub(crate) study: PathBuf,
    /// As what.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: ModelFormat,
    /// Where to write it; nothing that is there is written over.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// The version's safetensors file, if it was downloaded before: nothing is downloaded then.
    #[arg(long, value_name = "FILE", conflicts_with = "to_place")]
    pub(crate) file: Option<PathBuf>,
    /// Where the output lies, or will: jurisdiction and region; where you are yourself when absent. Policy decides over it, and
    /// it is part of the entry.
    #[arg(long, value_name = "PLACE")]
    pub(crate) to_place: Option<Place>,
}

/// As what a model is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModelFormat {
    /// Open Neural Network Exchange.
    #[default]
    Onnx,
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
