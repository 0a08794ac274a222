//! `falaj-coordinator`: the server.

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use falaj_coordinator::{
    app::{self, App, Bound, log_ml_dsa_key, log_verifier_key},
    config::Config,
    fsck,
    persons::Persons,
    policy::glass,
    store::{self, Database, Store},
};
use std::{
    fs,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The coordinator of a Falaj federation: runs rounds over mutual TLS, aggregates sealed updates, enforces
/// policy, and logs every access.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  falaj-coordinator run --config coordinator.toml\n  falaj-coordinator config check --config coordinator.toml\n  falaj-coordinator fsck --config coordinator.toml\n  falaj-coordinator database init --config coordinator.toml --owner-url-file owner.url\n\nSIGHUP reads the policies again; SIGTERM ends it after what is under way."
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
    /// Check the log at rest: every entry, hash and checkpoint, the index of what entries touch, time-stamps, and what is
    /// sealed of people. Changes nothing, so the coordinator may run meanwhile; ends with code 1 when something is wrong.
    #[command(after_help = "Example:\n  falaj-coordinator fsck --config coordinator.toml --json")]
    Fsck {
        /// The configuration.
        #[arg(long, env = "FALAJ_COORDINATOR_CONFIG")]
        config: PathBuf,
        /// Print JSON, one line for each shard of the log.
        #[arg(long)]
        json: bool,
    },
    /// Put rescue policies in the place of all others for a while, when those lock out whoever could put them right.
    ///
    /// Operators of the coordinator's jurisdiction may look, stop studies and revoke; sites wait; nothing is learnt and nothing
    /// leaves. The log says `glass.broken`, with the reason, and who did what meanwhile. A running coordinator takes it up
    /// within seconds.
    #[command(
        after_help = "Examples:\n  falaj-coordinator break-glass --config coordinator.toml --reason \"RES-002 locks everybody out\"\n  falaj-coordinator break-glass --config coordinator.toml --mend"
    )]
    BreakGlass {
        /// The configuration.
        #[arg(long, env = "FALAJ_COORDINATOR_CONFIG")]
        config: PathBuf,
        /// Why: one line, which stands in the log.
        #[arg(long, required_unless_present = "mend", conflicts_with = "mend")]
        reason: Option<String>,
        /// For how many minutes.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=i64::from(glass::MINUTES_MAX)))]
        minutes: u32,
        /// Mend it before its time is over.
        #[arg(long)]
        mend: bool,
    },
    /// Look after a PostgreSQL database.
    Database {
        #[command(subcommand)]
        command: DatabaseCommand,
    },
    /// Look at a configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Subcommand)]
enum DatabaseCommand {
    /// Set a PostgreSQL database up for the coordinator, or bring it up to date.
    ///
    /// Makes the tables, and the role that the configuration's URL names unless it is there. The role may add to the log,
    /// and change or remove nothing in it. Run it again after an update of the coordinator.
    #[command(
        after_help = "Example:\n  umask 077\n  echo 'postgres://falaj_owner:secret@db.example/falaj' > owner.url\n  falaj-coordinator database init --config coordinator.toml --owner-url-file owner.url\n\nThe database exists already and belongs to the owner. A role that is made here has no password: set one with\npsql's \\password. Keep the owner's URL away from the coordinator's machine."
    )]
    Init {
        /// The configuration, with `state.database.url_file`.
        #[arg(long, env = "FALAJ_COORDINATOR_CONFIG")]
        config: PathBuf,
        /// A file with the URL of the database's owner, mode 0600.
        #[arg(long)]
        owner_url_file: PathBuf,
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
        Command::BreakGlass { config, reason, minutes, .. } => {
            let dir = Config::load(&config)?.policy.dir;
            break_glass(&dir, reason.as_deref(), minutes)
                .with_context(|| format!("in {}", dir.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Database { command: DatabaseCommand::Init { config, owner_url_file } } => {
            database_init(&Config::load(&config)?, &owner_url_file).await
        }
        Command::Config { command: ConfigCommand::Check { config } } => {
            let config = Config::load(&config)?;
            let (identity, policy) = app::checked(&config).await?;
            println!("ok: {} under policy set {}", identity.spiffe, policy.digest());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Breaks the glass for a reason, and mends it without.
fn break_glass(dir: &Path, reason: Option<&str>, minutes: u32) -> Result<()> {
    match reason {
        Some(reason) => {
            let glass = glass::break_it(dir, reason, minutes)?;
            println!("broken until {}: put the policies right meanwhile", glass.until);
        }
        None if glass::mend(dir)? => println!("mended: the policies are asked again"),
        None => println!("it was not broken"),
    }
    Ok(())
}

async fn database_init(config: &Config, owner_url_file: &Path) -> Result<ExitCode> {
    let Database::Postgres(writer) = config.state.database()? else {
        anyhow::bail!(
            "the configuration has no `state.database.url_file`: its database is a SQLite file, which needs no setting up"
        );
    };
    let owner = store::url(owner_url_file)?;
    anyhow::ensure!(
        owner.get_database() == writer.get_database(),
        "{} names the database {}, and the configuration {}",
        owner_url_file.display(),
        owner.get_database().unwrap_or_default(),
        writer.get_database().unwrap_or_default()
    );
    app::checked(config).await?;
    let role = writer.get_username();
    let done = store::init(&owner, role).await?;
    println!("ok: schema version {}; the role {role} may add to the log", done.version);
    if done.created {
        println!(
            "the role {role} is new and has no password: set one with `\\password {role}` in psql, or map a certificate to it"
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn fsck(config: &Config, json: bool) -> Result<ExitCode> {
    let (key, second) = (log_verifier_key(config)?, log_ml_dsa_key(config)?);
    let elsewhere = config.log.high_water.as_deref();
    let shown = std::io::stderr().is_terminal() && !json;
    let progress = |entries| {
        if shown {
            eprint!("\r{entries} entries");
        }
    };
    let database = config.state.database()?;
    if matches!(database, Database::Postgres(_)) {
        app::checked(config).await?;
    }
    let store = Store::read(&database).await?;
    let persons = Persons::read(&config.state.dir.join("persons"))?;
    let mut code = ExitCode::SUCCESS;
    for shard in store.shards().await? {
        let elsewhere = elsewhere.filter(|_| !shard.ended());
        let keys = (&key, second.as_ref());
        let found = fsck::check(&shard, keys, &persons, elsewhere, progress).await?;
        if shown {
            eprint!("\r");
        }
        if !found.faults.is_empty() {
            code = ExitCode::FAILURE;
        }
        if json {
            println!("{}", serde_json::to_string(&found)?);
            continue;
        }
        for fault in &found.faults {
            match fault.index {
                Some(index) => println!("WRONG: entry {index}: {}", fault.what),
                None => println!("WRONG: {}", fault.what),
            }
        }
        let deleted = match found.pruned {
            0 => String::new(),
            pruned => format!(" ({pruned} of them deleted)"),
        };
        let whole = if found.faults.is_empty() { "whole" } else { "not whole" };
        println!(
            "{whole}: {}, {} entries{deleted} under root {}, {} checkpoints, {} rows of the index, {} time-stamps, {} disclosures",
            found.origin,
            found.entries,
            found.root_hash,
            found.checkpoints,
            found.touches,
            found.timestamps,
            found.personal
        );
    }
    Ok(code)
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
        "tiles": bound.tiles.map(|a| a.to_string()),
        "enrolment": bound.enrolment.map(|a| a.to_string()),
        "oidc": bound.oidc.map(|a| a.to_string()),
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
