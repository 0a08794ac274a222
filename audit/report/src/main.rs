//! `falaj-report`: makes the audit report's views from its JSON, offline.

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use falaj_core::id::Digest;
use falaj_report::{
    catalog, html, pdf,
    source::{SOURCE_BYTES_MAX, Source, is_joined},
    tables,
    view::{View, missing_words},
    words::{Lang, Words},
};
use falaj_verify::{
    Options,
    args::{Pins, Scoped},
    verify,
};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs,
    io::{IsTerminal as _, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Makes the audit report for regulators from its JSON: HTML and PDF in English and Arabic, and tables for other
/// tools. Needs no network; the same JSON gives the same files, byte for byte.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Verifies an exported bundle and makes files from the report that follows from it.
    #[command(
        after_help = "Examples:\n  falaj-report make bundle.tar -o report --trust trust.toml\n  falaj-report make bundle.tar -o march --since 2026-03 --until 2026-03 --lang ar\n  falaj-report make bundle.tar -o about-h1 --subject spiffe://falaj.demo/ae-on/ae-az/site/hospital-1\n\nExit codes: 0 made, 1 not made: the bundle does not hold, or a file cannot be written."
    )]
    Make(Box<Make>),
    /// Makes files from a report's JSON.
    #[command(
        after_help = "Examples:\n  falaj-report render report.json -o report\n  falaj-report render report.json -o report --lang ar --format pdf\n  falaj-report render report.json -o report --format csv --format parquet\n  falaj-report render report.json -o report --clauses policies/clauses --json\n\nExit codes: 0 made, 1 not made."
    )]
    Render(Render),
}

#[derive(clap::Args)]
struct Make {
    /// The bundle, as `falaj log export` wrote it.
    bundle: PathBuf,
    #[command(flatten)]
    pins: Pins,
    #[command(flatten)]
    scoped: Scoped,
    #[command(flatten)]
    views: Views,
}

#[derive(clap::Args)]
struct Render {
    /// The report's JSON; `-` reads it from standard input.
    report: PathBuf,
    #[command(flatten)]
    views: Views,
}

/// What is made, and where.
#[derive(clap::Args)]
struct Views {
    /// The folder to write to; it is made if it is not there.
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    /// A language of the views; may be given twice. Without it, both.
    #[arg(long = "lang", value_enum)]
    langs: Vec<Lang>,
    /// A format; may be given several times. Without it: html, pdf and json.
    #[arg(long = "format", value_enum)]
    formats: Vec<Format>,
    /// A folder of clause catalogues, in place of those that the program carries.
    #[arg(long, value_name = "FOLDER")]
    clauses: Option<PathBuf>,
    /// Print JSON: each file, its bytes and its SHA-256.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A page for each language: `report.en.html`.
    Html,
    /// A document for each language: `report.en.pdf`.
    Pdf,
    /// The source of both, with the clauses joined: `report.json`.
    Json,
    /// Each table: `tables/E1.parties.csv`. Cells that a spreadsheet would run begin with an apostrophe.
    Csv,
    /// Each table: `tables/E1.parties.jsonl`.
    Jsonl,
    /// Each table: `tables/E1.parties.parquet`.
    Parquet,
}

/// What is made when no format is asked for.
const FORMATS: [Format; 3] = [Format::Html, Format::Pdf, Format::Json];

fn main() -> ExitCode {
    let made = match Cli::parse().command {
        Command::Make(make) => verified(&make)
            .and_then(|bytes| run(&make.views, &make.bundle.display().to_string(), &bytes)),
        Command::Render(render) => read(&render.report)
            .and_then(|bytes| run(&render.views, &render.report.display().to_string(), &bytes)),
    };
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("falaj-report: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes what was asked for from the report in `bytes`, which come from `name`.
fn run(views: &Views, name: &str, bytes: &[u8]) -> Result<()> {
    let formats = if views.formats.is_empty() { &FORMATS[..] } else { &views.formats };
    let mut langs = if views.langs.is_empty() { Lang::ALL.to_vec() } else { views.langs.clone() };
    langs.sort();
    langs.dedup();
    let wants = |format| formats.contains(&format);

    let files = match &views.clauses {
        Some(folder) => Some(catalog::read(folder)?),
        None if is_joined(bytes).with_context(|| name.to_owned())? => None,
        None => Some(catalog::embedded()?),
    };
    let source = Source::join(bytes, files.as_deref()).with_context(|| name.to_owned())?;
    let mut folder = Folder::open(&views.output)?;
    let steps = langs.len() * usize::from(wants(Format::Html))
        + langs.len() * usize::from(wants(Format::Pdf));
    let bar = progress(views.json, steps);
    if wants(Format::Json) {
        folder.write("report.json", source.bytes())?;
    }
    for lang in &langs {
        let words = Words::of(*lang)?;
        let missing: Vec<_> = missing_words(source.report(), &words).into_iter().collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            eprintln!(
                "falaj-report: no {} words for {missing}: another version made this report",
                lang.tag()
            );
        }
        let view = View::of(&source, &words);
        if wants(Format::Html) {
            let name = format!("report.{}.html", lang.tag());
            bar.set_message(name.clone());
            folder.write(&name, html::page(&view).as_bytes())?;
            bar.inc(1);
        }
        if wants(Format::Pdf) {
            let name = format!("report.{}.pdf", lang.tag());
            bar.set_message(name.clone());
            let document = pdf::document(&view, &source.report().range.last_ts);
            folder.write(&name, &document.with_context(|| name.clone())?)?;
            bar.inc(1);
        }
    }
    for (name, table) in tables::all(source.report()) {
        if wants(Format::Csv) {
            folder.write(&format!("tables/{name}.csv"), &tables::csv(table)?)?;
        }
        if wants(Format::Jsonl) {
            folder.write(&format!("tables/{name}.jsonl"), &tables::jsonl(table))?;
        }
        if wants(Format::Parquet) {
            folder.write(&format!("tables/{name}.parquet"), &tables::parquet(table)?)?;
        }
    }
    bar.finish_and_clear();
    say(views, &source, &folder);
    Ok(())
}

/// The report that follows from a bundle, if that holds.
fn verified(make: &Make) -> Result<Vec<u8>> {
    let trust = make.pins.trust().map_err(anyhow::Error::msg)?;
    let tsa = make.pins.tsa().map_err(anyhow::Error::msg)?;
    let scope = make.scoped.scope();
    let options = Options {
        log_key: make.pins.log_key.as_ref(),
        ml_dsa_key: make.pins.ml_dsa_key.as_ref(),
        trust: trust.as_ref(),
        tsa: tsa.as_ref(),
        scope: Some(&scope),
        ..Options::default()
    };
    let name = make.bundle.display().to_string();
    let file = fs::File::open(&make.bundle).with_context(|| name.clone())?;
    let bar = progress(make.views.json, 0);
    let report = verify(std::io::BufReader::new(file), options, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(report.with_context(|| format!("{name} does not hold"))?.sections.to_bytes())
}

/// The report's JSON from a file.
fn read(report: &Path) -> Result<Vec<u8>> {
    let name = report.display();
    let mut bytes = Vec::new();
    let limit = u64::try_from(SOURCE_BYTES_MAX)?.saturating_add(1);
    if report == Path::new("-") {
        std::io::stdin().take(limit).read_to_end(&mut bytes).context("standard input")?;
    } else {
        let file = fs::File::open(report).with_context(|| name.to_string())?;
        file.take(limit).read_to_end(&mut bytes).with_context(|| name.to_string())?;
    }
    Ok(bytes)
}

fn progress(hidden: bool, steps: usize) -> ProgressBar {
    if hidden || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {msg}");
    let steps = u64::try_from(steps).unwrap_or(u64::MAX);
    style.map_or_else(|_| ProgressBar::hidden(), |style| ProgressBar::new(steps).with_style(style))
}

fn say(views: &Views, source: &Source, folder: &Folder) {
    if views.json {
        let files = folder.made.iter().map(|made| {
            serde_json::json!({ "file": made.name, "bytes": made.bytes, "sha256": made.digest.to_string() })
        });
        let files: Vec<_> = files.collect();
        let source = source.digest().to_string();
        println!("{}", serde_json::json!({ "source_sha256": source, "files": files }));
        return;
    }
    for made in &folder.made {
        println!("{}  {}", made.digest, folder.path.join(&made.name).display());
    }
    println!("Made from a source with SHA-256 {}.", source.digest());
}

/// A file that was written.
struct Made {
    name: String,
    bytes: usize,
    digest: Digest,
}

/// The folder that is written to. A file appears in it whole or not at all.
struct Folder {
    path: PathBuf,
    made: Vec<Made>,
}

impl Folder {
    fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)
            .with_context(|| format!("{}: no such folder can be made", path.display()))?;
        Ok(Self { path: path.to_owned(), made: Vec::new() })
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let Some(folder) = path.parent() else { bail!("{name} is no name of a file") };
        ensure!(!path.is_dir(), "{}: a folder is in the way", path.display());
        let written = || -> std::io::Result<()> {
            fs::create_dir_all(folder)?;
            // As any new file: what the user's mask allows.
            let mode = fs::Permissions::from_mode(0o666);
            let mut builder = tempfile::Builder::new();
            let mut file =
                builder.prefix(".falaj-report-").permissions(mode).tempfile_in(folder)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|e| e.error)?;
            Ok(())
        };
        written().with_context(|| format!("{} cannot be written", path.display()))?;
        let digest = Digest::of(bytes);
        self.made.push(Made { name: name.to_owned(), bytes: bytes.len(), digest });
        Ok(())
    }
}
