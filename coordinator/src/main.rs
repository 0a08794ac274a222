//! `falaj-coordinator`: the server.

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use falaj_coordinator::{
    app::{App, Bound, log_verifier_key},
    config::Config,
    fsck,
    policy::PolicyEngine,
};
use std::{
    fs,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Buffers of an upload come and go by the megabyte. The system's allocator hands each back to the kernel,
/// which clears its pages again for the next one: a tenth of the time that an upload takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The coordinator of a Falaj federation: runs rounds over mutual TLS, aggregates sealed updates, enforces
/// policy, and logs every access.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  falaj-coordinator run --config coordinator.toml\n  falaj-coordinator config check --config coordinator.toml\n  falaj-coordinator fsck --config coordinator.toml\n\nSIGHUP reads the policies again; SIGTERM ends it after what is under way."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until told to end.
    Run {
        /// The configuration.
        #[arg(long, env = "FALAJ_COORDINATOR_CONFIG")]
        config: PathBuf,
        /// Write the bound addresses here, as JSON, once everything listens.
        #[arg(long)]
        ready_file: Option<PathBuf>,
        /// How to write to standard error.
        #[arg(long, value_enum, default_value_t = LogFormat::Text)]
        log_format: LogFormat,
    },
    /// Check the log at rest: every entry, hash and checkpoint. Changes nothing; ends with code 1 when something is wrong.
    #[command(after_help = "Example:\n  falaj-coordinator fsck --config coordinator.toml --json")]
    Fsck {
        /// The configuration.
        #[arg(long, env = "FALAJ_COORDINATOR_CONFIG")]
        config: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look at a configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a configuration, its policies and its certificates, and say what is wrong.
    Check {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(e) => {
            eprintln!("falaj-coordinator: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run { config, ready_file, log_format } => {
            log_to_stderr(log_format);
            let shutdown = CancellationToken::new();
            tokio::spawn(end_on_signal(shutdown.clone()));
            let app = App::open(Config::load(&config)?, &shutdown).await?;
            app.run(shutdown, |bound| ready(bound, ready_file.as_deref())).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Fsck { config, json } => fsck(&Config::load(&config)?, json).await,
        Command::Config { command: ConfigCommand::Check { config } } => {
            let config = Config::load(&config)?;
            let credentials =
                falaj_certs::tls::Credentials::load(&config.identity.cert, &config.identity.key)?;
            let identity = credentials.identity()?;
            falaj_certs::trust::TrustStore::load(&config.identity.trust)?;
            let policy = PolicyEngine::load(&config.policy.dir, identity.spiffe.place())?;
            println!("ok: {} under policy set {}", identity.spiffe, policy.digest());
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn fsck(config: &Config, json: bool) -> Result<ExitCode> {
    let key = log_verifier_key(config)?;
    let elsewhere = config.log.high_water.as_deref();
    let shown = std::io::stderr().is_terminal() && !json;
    let progress = |entries| {
        if shown {
            eprint!("\r{entries} entries");
        }
    };
    let found = fsck::check(&config.state.dir, &key, elsewhere, progress).await?;
    if shown {
        eprint!("\r");
    }
    if json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        for fault in &found.faults {
            match fault.index {
                Some(index) => println!("WRONG: entry {index}: {}", fault.what),
                None => println!("WRONG: {}", fault.what),
            }
        }
        let whole = if found.faults.is_empty() { "whole" } else { "not whole" };
        println!(
            "{whole}: {} entries under root {}, {} checkpoints",
            found.entries, found.root_hash, found.checkpoints
        );
    }
    Ok(if found.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn log_to_stderr(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FALAJ_LOG")
        .unwrap_or_else(|_| "info,sqlx=warn".into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn ready(bound: Bound, file: Option<&Path>) -> Result<()> {
    tracing::info!(grpc = %bound.grpc, rest = %bound.rest, metrics = ?bound.metrics, "ready");
    let Some(path) = file else { return Ok(()) };
    let text = serde_json::json!({
        "grpc": bound.grpc.to_string(),
        "rest": bound.rest.to_string(),
        "metrics": bound.metrics.map(|a| a.to_string()),
    });
    let fresh = path.with_extension("new");
    fs::write(&fresh, text.to_string())?;
    fs::rename(&fresh, path).with_context(|| format!("writing {}", path.display()))
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
    tracing::info!("ending");
    shutdown.cancel();
}
