//! `falaj-witness`: an outside witness on the command line.

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use falaj_witness::{
    config::{Config, make_key},
    keep::{Standing, standings},
    serve,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// An outside witness of audit logs: it cosigns a log's checkpoint only when that goes on from the last one that it
/// cosigned (C2SP tlog-witness). It sees sizes and hashes, never entries.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  falaj-witness keygen witness.key --name witness.regulator.example/1\n  mkdir state\n  falaj-witness serve --config witness.toml\n  falaj-witness show --config witness.toml --json\n\nA configuration, witness.toml:\n  name = \"witness.regulator.example/1\"\n  key = \"witness.key\"\n  state = \"state\"\n  listen = \"127.0.0.1:8440\"\n  [[log]]\n  key = \"falaj.demo/audit/2026+1a2b3c4d+AbCd...\"\n\nThe state folder must never go back in time: do not restore it from a copy. SIGTERM ends the witness after what\nis under way."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a key in a file of its own, and print its public half, which logs and auditors are given.
    Keygen {
        /// The file; it must not be there yet.
        key: PathBuf,
        /// The witness's name, for example `witness.regulator.example/1`.
        #[arg(long)]
        name: String,
    },
    /// Answer `POST /add-checkpoint` until told to end.
    Serve {
        /// The configuration.
        #[arg(long, env = "FALAJ_WITNESS_CONFIG")]
        config: PathBuf,
        /// Write the bound address here, as JSON, once it listens.
        #[arg(long)]
        ready_file: Option<PathBuf>,
    },
    /// Show the witness's public key, what it cosigned last of each log, and evidence against them. Ends with code 1 when
    /// there is evidence.
    Show {
        /// The configuration.
        #[arg(long, env = "FALAJ_WITNESS_CONFIG")]
        config: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(e) => {
            eprintln!("falaj-witness: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Keygen { key, name } => {
            println!("{}", make_key(&key, &name)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve { config, ready_file } => {
            tracing_subscriber::fmt().with_writer(std::io::stderr).init();
            let shutdown = CancellationToken::new();
            tokio::spawn(end_on_signal(shutdown.clone()));
            let config = Config::load(&config)?;
            let ready = |bound| {
                tracing::info!(%bound, "listening");
                let text = serde_json::json!({ "http": bound }).to_string();
                ready_file.as_deref().map_or(Ok(()), |path| write_whole(path, &text))
            };
            serve::run(&config, shutdown, ready).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Show { config, json } => show(&Config::load(&config)?, json),
    }
}

fn write_whole(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, text).with_context(|| format!("writing {}", partial.display()))?;
    Ok(fs::rename(partial, path)?)
}

async fn end_on_signal(shutdown: CancellationToken) {
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    shutdown.cancel();
}

fn show(config: &Config, json: bool) -> Result<ExitCode> {
    let verifier = config.verifier()?;
    let logs = standings(config.keys()?, &config.state)?;
    let evidence: usize = logs.iter().map(|log| log.evidence.len()).sum();
    let cosigned = |log: &Standing| {
        let kept = log.kept.as_ref()?;
        let seconds = verifier.cosigned(&kept.note).ok().flatten()?;
        let time = jiff::Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
        Some((kept.head.tree_size, kept.head.root_hash.to_string(), time.to_string()))
    };
    if json {
        let log = |log: &Standing| {
            let (size, root, time) =
                cosigned(log).map_or((None, None, None), |(s, r, t)| (Some(s), Some(r), Some(t)));
            serde_json::json!({ "origin": log.origin, "tree_size": size, "root_hash": root, "time": time, "evidence": log.evidence })
        };
        let logs: Vec<_> = logs.iter().map(log).collect();
        println!("{}", serde_json::json!({ "key": verifier.to_string(), "logs": logs }));
    } else {
        println!("{verifier}");
        for log in &logs {
            match cosigned(log) {
                Some((size, root, time)) => {
                    println!("{}: {size} entries, root {root}, cosigned {time}", log.origin);
                }
                None => println!("{}: nothing cosigned yet", log.origin),
            }
            for path in &log.evidence {
                println!("  EVIDENCE {}", path.display());
            }
        }
    }
    Ok(if evidence == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
