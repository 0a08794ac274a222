//! `falaj-verify`: checks an exported audit log, offline.

use clap::Parser;
use falaj_core::{id::Digest, note::VerifierKey, report::Scope, witness::InclusionProof};
use falaj_verify::{
    Options, Report, StampLevel, StampReport,
    args::{Pins, Scoped},
    verify,
};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs::File,
    io::{BufReader, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Something in the bundle is wrong.
const EXIT_WRONG: u8 = 1;
/// The bundle cannot be opened.
const EXIT_USAGE: u8 = 2;

/// Verifies an audit bundle of a Falaj coordinator: that the log was never rewritten, that each model follows
/// from logged updates, and each update from a site's signature. Needs no network and trusts nobody.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  falaj-verify bundle.tar\n  falaj-verify bundle.tar --log-key 'falaj.demo/audit/2026+1a2b3c4d+AbCd...'\n  falaj-verify bundle.tar --trust trust.toml\n  falaj-verify bundle.tar --tsa-ca tsa-ca.pem\n  falaj-verify bundle.tar --ledger hospital-1.jsonl\n  falaj-verify bundle.tar --egress hospital-1-egress.jsonl\n  falaj-verify bundle.tar --provenance heart-3.dsse.json\n  falaj-verify bundle.tar --report march.json --since 2026-03 --until 2026-03\n  falaj-verify bundle.tar --report all-about-h1.json --subject spiffe://falaj.demo/ae-on/ae-az/site/hospital-1\n  falaj-verify bundle.tar --json\n  falaj-verify bundle.tar --tiles public/log\n  falaj-verify --proof entry-12.tlog-proof --leaf-hash 9f86... --log-key 'falaj.demo/audit/2026+1a2b3c4d+AbCd...'\n\nExit codes: 0 verified, 1 something is wrong, 2 the bundle cannot be opened."
)]
struct Cli {
    /// The bundle, as `falaj log export` wrote it.
    #[arg(required_unless_present = "proof")]
    bundle: Option<PathBuf>,
    /// Instead of a bundle, the proof of one entry, as `falaj log prove` wrote it.
    #[arg(long, conflicts_with_all = ["bundle", "ledger"], requires_all = ["leaf_hash", "log_key"])]
    proof: Option<PathBuf>,
    /// The leaf hash of the entry that is to be proven.
    #[arg(long, requires = "proof", value_name = "HEX")]
    leaf_hash: Option<Digest>,
    #[command(flatten)]
    pins: Pins,
    /// A site's budget ledger, as `falaj-agent budget export` wrote it: that it is whole, and holds what the
    /// site's updates were paid from. May be given for several sites.
    #[arg(long)]
    ledger: Vec<PathBuf>,
    /// What left a site, as `falaj-agent egress export` wrote it: that it is whole, and that each update that the log counts
    /// left as it says. May be given for several sites, and of one site in several files that follow each other.
    #[arg(long, conflicts_with = "proof")]
    egress: Vec<PathBuf>,
    /// What was signed of a version, as `falaj model provenance` wrote it: that the log's key signed it, and that each field
    /// follows from the log. May be given for several versions.
    #[arg(long, value_name = "FILE", conflicts_with = "proof")]
    provenance: Vec<PathBuf>,
    /// Lay the log out as static files in this folder (C2SP tlog-tiles), for any tool or web server that knows them.
    #[arg(long, value_name = "FOLDER", conflicts_with = "proof")]
    tiles: Option<PathBuf>,
    /// Write the audit report as JSON, which follows from the bundle alone; `falaj-report` makes pages of it.
    #[arg(long, value_name = "FILE", conflicts_with = "proof")]
    report: Option<PathBuf>,
    #[command(flatten)]
    scoped: Scoped,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print only the verdict.
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let (Some(path), Some(leaf), Some(key)) = (&cli.proof, &cli.leaf_hash, &cli.pins.log_key) {
        return one_entry(&cli, path, leaf, key);
    }
    let bundle = cli.bundle.clone().unwrap_or_default();
    let file = match File::open(&bundle) {
        Ok(file) => BufReader::new(file),
        Err(e) => {
            eprintln!("falaj-verify: {}: {e}", bundle.display());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let beside = [&cli.ledger, &cli.egress, &cli.provenance].map(|paths| texts(paths));
    let (ledgers, egress, provenances) = match beside {
        [Ok(ledgers), Ok(egress), Ok(provenances)] => (ledgers, egress, provenances),
        [Err(e), ..] | [_, Err(e), _] | [.., Err(e)] => {
            eprintln!("falaj-verify: {e}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let trust = match cli.pins.trust() {
        Ok(trust) => trust,
        Err(e) => {
            eprintln!("falaj-verify: {e}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let tsa = match cli.pins.tsa() {
        Ok(tsa) => tsa,
        Err(e) => {
            eprintln!("falaj-verify: {e}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let scope = cli.scoped.scope();
    if cli.report.is_none() && scope != Scope::default() {
        eprintln!(
            "falaj-verify: a bundle is always verified as a whole; what you named is for `--report FILE`"
        );
        return ExitCode::from(EXIT_USAGE);
    }
    let bar = if std::io::stderr().is_terminal() && !cli.json && !cli.quiet {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} entries");
        style.map_or_else(|_| ProgressBar::hidden(), |style| ProgressBar::new(0).with_style(style))
    } else {
        ProgressBar::hidden()
    };
    let options = Options {
        log_key: cli.pins.log_key.as_ref(),
        ml_dsa_key: cli.pins.ml_dsa_key.as_ref(),
        trust: trust.as_ref(),
        tsa: tsa.as_ref(),
        scope: Some(&scope),
        ledgers: &ledgers,
        egress: &egress,
        provenances: &provenances,
        tiles: cli.tiles.as_deref(),
    };
    let verdict = verify(file, options, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    match verdict {
        Ok(report) => {
            if let Some(path) = &cli.report
                && let Err(e) = std::fs::write(path, report.sections.to_bytes())
            {
                eprintln!("falaj-verify: {}: {e}", path.display());
                return ExitCode::from(EXIT_USAGE);
            }
            say(&cli, &report);
            ExitCode::SUCCESS
        }
        Err(wrong) => refuse(&cli, &wrong),
    }
}

/// The files that sites exported.
fn texts(paths: &[PathBuf]) -> Result<Vec<String>, String> {
    let text = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
    };
    paths.iter().map(text).collect()
}

fn refuse(cli: &Cli, wrong: &dyn std::fmt::Display) -> ExitCode {
    if cli.json {
        println!("{}", serde_json::json!({ "verified": false, "wrong": wrong.to_string() }));
    } else {
        println!("WRONG: {wrong}");
    }
    ExitCode::from(EXIT_WRONG)
}

/// Checks that one entry is in the log that a key speaks for.
fn one_entry(cli: &Cli, path: &Path, leaf: &Digest, key: &VerifierKey) -> ExitCode {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) => {
            eprintln!("falaj-verify: {}: {e}", path.display());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let proof = InclusionProof::parse(&text);
    let second = cli.pins.ml_dsa_key.as_ref();
    let checked = proof.and_then(|proof| {
        let head = proof.verify(leaf, key)?;
        second.map(|second| second.require(&proof.note)).transpose()?;
        Ok((proof.index, head))
    });
    match checked {
        Ok((index, head)) => {
            if cli.json {
                let (size, root) = (head.tree_size, head.root_hash.to_string());
                println!(
                    "{}",
                    serde_json::json!({ "verified": true, "index": index, "tree_size": size, "root_hash": root })
                );
            } else {
                println!(
                    "verified: entry {index} is one of the {} entries under root {}",
                    head.tree_size, head.root_hash
                );
            }
            ExitCode::SUCCESS
        }
        Err(wrong) => refuse(cli, &wrong),
    }
}

/// What a time-stamp says, and how much that is worth.
fn stamped(what: &str, stamp: &StampReport) -> String {
    let worth = match stamp.level {
        StampLevel::Declared => {
            "declared: nothing but the bundle names the authority's certificate; name its issuer with --tsa-ca"
        }
        StampLevel::Recorded => {
            "recorded: the log names the authority's certificate; name its issuer with --tsa-ca"
        }
        StampLevel::Attested => "attested: its certificate is issued by one that you gave",
    };
    format!("time-stamp {what}, at {}: {} ({worth})", stamp.time, stamp.authority)
}

/// What authorities have stamped with the time.
fn say_stamps(report: &Report) {
    let stamps = &report.timestamps;
    if let [first, .., last] = &stamps[..] {
        println!("{}", stamped(&format!("the first {} entries", first.tree_size), first));
        if stamps.len() > 2 {
            println!("time-stamp {} more between them", stamps.len() - 2);
        }
        println!("{}", stamped(&format!("the first {} entries", last.tree_size), last));
    } else if let [only] = &stamps[..] {
        println!("{}", stamped(&format!("the first {} entries", only.tree_size), only));
    }
    if let Some(stamp) = &report.report_timestamp {
        println!("{}", stamped("the report", stamp));
    }
}

fn say(cli: &Cli, report: &Report) {
    if cli.json {
        println!("{}", serde_json::json!({ "verified": true, "report": report }));
        return;
    }
    if !cli.quiet {
        let key = if report.successions > 0 {
            "followed from the one that you gave"
        } else if report.key_pinned {
            "as you gave it"
        } else {
            "taken from the bundle; pin it with --log-key"
        };
        println!("log        {}", report.origin);
        println!("key        {} ({key})", report.log_verifier_key);
        if let Some(second) = &report.log_ml_dsa_key {
            let known = if !report.ml_dsa_checked {
                "not checked: this build does not know ML-DSA-44"
            } else if cli.pins.ml_dsa_key.is_some() {
                "as you gave it"
            } else {
                "taken from the bundle; pin it with --ml-dsa-key"
            };
            println!("second key {second} ({known})");
        }
        if let Some(before) = &report.before {
            println!(
                "goes on    from {}: {} entries under root {}",
                before.origin, before.tree_size, before.root_hash
            );
        }
        let issuers = if report.issuers_pinned {
            "those that you gave"
        } else {
            "those that the coordinator trusted; pin yours with --trust"
        };
        println!("issuers    {issuers}");
        println!("refusals   {}", report.refusals);
        println!(
            "decisions  {}, each made again by the policies that were in force",
            report.decisions
        );
        if report.quotes > 0 {
            println!("quotes     {} of sites' TPMs, each checked again", report.quotes);
        }
        if report.compared > 0 {
            println!(
                "compared   updates in {} verdicts: gates judged again by figures of updates, which are the coordinator's word",
                report.compared
            );
        }
        for w in &report.witnesses {
            println!(
                "witness    {}: saw the first {} entries, at {}",
                w.witness, w.tree_size, w.time
            );
        }
        say_stamps(report);
        for e in &report.erased {
            println!("erased     {}: by entry {} of {}", e.person, e.index, e.origin);
        }
        for l in &report.ledgers {
            println!(
                "ledger     {}: whole, {} entries pay for {} updates",
                l.site, l.entries, l.updates
            );
        }
        for e in &report.egress {
            println!(
                "egress     {}: whole from entry {} to {}, {} counted updates left as it says; of others {} were refused, and {} are not in this log",
                e.site,
                e.first,
                e.entries.saturating_sub(1),
                e.updates,
                e.refused,
                e.unknown
            );
            for (kind, k) in &e.kinds {
                println!(
                    "           {kind}: {} messages, {} bytes, the largest {}",
                    k.messages, k.bytes, k.largest
                );
            }
        }
        for v in &report.versions {
            println!(
                "version    {} {}, now {}: signed, and follows from entry {} and {} updates",
                v.study, v.version, v.stage, v.index, v.updates
            );
        }
    }
    println!(
        "verified: {} entries under root {}, {} models from {} signed updates",
        report.tree_size, report.root_hash, report.models, report.updates
    );
}
