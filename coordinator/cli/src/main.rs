//! `falaj`: the operator's command. It speaks only REST, under an operator's certificate.

mod client;
mod watch;

use anyhow::{Context as _, Result, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use client::Client;
use falaj_core::dp::rdp::{self, RdpCurve};
use falaj_proto::rest::{Checkpoint, LogEntry, Model, Page, Site, Status, Study};
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Operates a Falaj coordinator: submit studies, watch them, download models, export the audit log.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  falaj study check study.yaml\n  falaj study submit study.yaml\n  falaj study watch breast-cancer\n  falaj model download breast-cancer -o model.safetensors\n  falaj log export -o bundle.tar && falaj-verify bundle.tar\n\nThe coordinator and your certificate come from flags, from the environment (FALAJ_SERVER, FALAJ_CERT, FALAJ_KEY,\nFALAJ_TRUST), or from a TOML file with those keys in lower case (--config, FALAJ_CONFIG)."
)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// Where the coordinator is, and who you are.
#[derive(Args, Clone)]
struct Connection {
    /// A TOML file with `server`, `cert`, `key`, `trust`, `places`.
    #[arg(long, global = true, env = "FALAJ_CONFIG")]
    config: Option<PathBuf>,
    /// The coordinator, for example `https://127.0.0.1:7444`.
    #[arg(long, global = true, env = "FALAJ_SERVER")]
    server: Option<String>,
    /// Your certificate chain, PEM.
    #[arg(long, global = true, env = "FALAJ_CERT")]
    cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, global = true, env = "FALAJ_KEY")]
    key: Option<PathBuf>,
    /// Whom the federation trusts.
    #[arg(long, global = true, env = "FALAJ_TRUST")]
    trust: Option<PathBuf>,
    /// Places in which the coordinator may lie.
    #[arg(long = "place", global = true, env = "FALAJ_PLACES", value_delimiter = ',')]
    places: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    /// How the coordinator is.
    Status,
    /// The sites that are connected.
    Sites,
    /// Studies.
    Study {
        #[command(subcommand)]
        command: StudyCommand,
    },
    /// Models.
    Model {
        #[command(subcommand)]
        command: ModelCommand,
    },
    /// The audit log.
    Log {
        #[command(subcommand)]
        command: LogCommand,
    },
    /// What settings cost, computed here.
    Privacy {
        #[command(subcommand)]
        command: PrivacyCommand,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum StudyCommand {
    /// Check a study file here, without a coordinator.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Submit a study.
    Submit {
        /// The file.
        file: PathBuf,
    },
    /// Every study.
    List,
    /// One study.
    Show {
        /// Its name.
        id: String,
    },
    /// Follow a study until it is over. Exit code 0 when it finished, 1 otherwise.
    Watch {
        /// Its name.
        id: String,
    },
    /// Stop a study.
    Stop {
        /// Its name.
        id: String,
    },
}

#[derive(Subcommand)]
enum ModelCommand {
    /// The models of a study.
    List {
        /// The study.
        id: String,
    },
    /// Download a model as safetensors.
    Download {
        /// The study.
        id: String,
        /// The round that gave it.
        #[arg(long)]
        round: Option<u32>,
        /// Where to write it.
        #[arg(long, short)]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
enum LogCommand {
    /// A fresh signed checkpoint.
    Checkpoint,
    /// Entries, from the first.
    Entries {
        /// Only this kind, for example `update.accepted`.
        #[arg(long)]
        kind: Option<String>,
        /// First index.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// Export the log as one bundle for `falaj-verify`.
    Export {
        /// Where to write it.
        #[arg(long, short)]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
enum PrivacyCommand {
    /// Epsilon of Poisson-sampled Gaussian steps, by the RDP accountant.
    Epsilon {
        /// The chance with which each record enters a batch.
        #[arg(long)]
        sample_rate: f64,
        /// Noise standard deviation over the clip norm.
        #[arg(long)]
        noise_multiplier: f64,
        /// Steps in all.
        #[arg(long)]
        steps: u64,
        /// At this delta.
        #[arg(long)]
        delta: f64,
    },
    /// The least noise multiplier that stays within an epsilon.
    Calibrate {
        /// The epsilon.
        #[arg(long)]
        target_epsilon: f64,
        /// The chance with which each record enters a batch.
        #[arg(long)]
        sample_rate: f64,
        /// Steps in all.
        #[arg(long)]
        steps: u64,
        /// At this delta.
        #[arg(long)]
        delta: f64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(e) => {
            eprintln!("falaj: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let json = cli.json;
    let client = || Client::new(&cli.connection);
    match &cli.command {
        Command::Status => say(json, &client()?.get::<Status>("status").await?)?,
        Command::Sites => {
            let sites: Page<Site> = client()?.get("sites").await?;
            table(json, &sites, &["ID", "CONNECTED", "DATA SETS"], |s: &Site| {
                vec![s.id.clone(), s.connected.clone(), s.datasets.join(",")]
            })?;
        }
        Command::Study { command } => return study(command, json, client).await,
        Command::Model { command } => model(command, json, &client()?).await?,
        Command::Log { command } => log(command, json, &client()?).await?,
        Command::Privacy { command } => privacy(command, json)?,
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "falaj", &mut std::io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn study(
    command: &StudyCommand,
    json: bool,
    client: impl Fn() -> Result<Client>,
) -> Result<ExitCode> {
    match command {
        StudyCommand::Check { file } => {
            let text = read(file)?;
            let study = falaj_proto::study::parse(&text, &file.display().to_string())?;
            let cost = study.cost_of_rounds(study.rounds.count)?.compose(&study.cost_of_joining()?);
            let epsilon = (study.privacy.delta > 0.0).then(|| cost.epsilon(study.privacy.delta));
            let epsilon = epsilon.transpose()?.map_or_else(|| "inf".to_owned(), |e| e.to_string());
            say(
                json,
                &serde_json::json!({
                    "study": study.id.as_str(),
                    "params": study.manifest()?.params(),
                    "rounds": study.rounds.count,
                    "epsilon_per_site": epsilon,
                    "delta": study.privacy.delta,
                    "ok": true,
                }),
            )?;
        }
        StudyCommand::Submit { file } => {
            // What is wrong is said here, with the file's own lines, before anything is sent.
            let text = read(file)?;
            falaj_proto::study::parse(&text, &file.display().to_string())?;
            say(json, &client()?.submit(file, text).await?)?;
        }
        StudyCommand::List => {
            let studies: Page<Study> = client()?.get("studies").await?;
            table(json, &studies, &["STUDY", "STATE", "ROUND", "SUBMITTED"], |s: &Study| {
                vec![
                    s.id.clone(),
                    s.state.clone(),
                    format!("{}/{}", s.rounds_promoted, s.rounds),
                    s.submitted.clone(),
                ]
            })?;
        }
        StudyCommand::Show { id } => {
            say(json, &client()?.get::<Study>(&format!("studies/{id}")).await?)?;
        }
        StudyCommand::Watch { id } => return watch::watch(&client()?, id, json).await,
        StudyCommand::Stop { id } => {
            say(json, &client()?.post::<Study>(&format!("studies/{id}/stop")).await?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn model(command: &ModelCommand, json: bool, client: &Client) -> Result<()> {
    match command {
        ModelCommand::List { id } => {
            let models: Page<Model> = client.get(&format!("studies/{id}/models")).await?;
            table(json, &models, &["ROUND", "SHA-256", "PARAMS", "PUBLISHED"], |m: &Model| {
                vec![
                    m.round.to_string(),
                    m.model_sha256.clone(),
                    m.params.to_string(),
                    m.published.clone(),
                ]
            })
        }
        ModelCommand::Download { id, round, out } => {
            let round = round.map_or_else(|| "latest".to_owned(), |r| r.to_string());
            let bytes = client.download(&format!("studies/{id}/models/{round}"), out, json).await?;
            say(json, &serde_json::json!({ "file": out, "bytes": bytes }))
        }
    }
}

async fn log(command: &LogCommand, json: bool, client: &Client) -> Result<()> {
    match command {
        LogCommand::Checkpoint => {
            let head: Checkpoint = client.get("log/checkpoint").await?;
            if json {
                say(json, &head)?;
            } else {
                print!("{}", head.note);
            }
        }
        LogCommand::Entries { kind, from } => {
            let mut all = Vec::new();
            let mut from = from.to_string();
            loop {
                let kind = kind.as_deref().map(|k| format!("&kind={k}")).unwrap_or_default();
                let page: Page<LogEntry> =
                    client.get(&format!("log/entries?limit=1000&from={from}{kind}")).await?;
                if json {
                    all.extend(page.items);
                } else {
                    for e in page.items {
                        println!("{:>8}  {}", e.index, e.entry);
                    }
                }
                match page.next {
                    Some(next) => from = next,
                    None => break,
                }
            }
            if json {
                say(json, &all)?;
            }
        }
        LogCommand::Export { out } => {
            let bytes = client.download("log/export", out, json).await?;
            say(json, &serde_json::json!({ "file": out, "bytes": bytes }))?;
        }
    }
    Ok(())
}

fn privacy(command: &PrivacyCommand, json: bool) -> Result<()> {
    let said = match *command {
        PrivacyCommand::Epsilon { sample_rate, noise_multiplier, steps, delta } => {
            let cost = RdpCurve::poisson_gaussian(sample_rate, noise_multiplier, steps)?;
            serde_json::json!({
                "epsilon": cost.epsilon(delta)?.to_string(),
                "delta": delta,
                "unit": "record",
                "adjacency": "add or remove one",
                "accountant": "rdp",
            })
        }
        PrivacyCommand::Calibrate { target_epsilon, sample_rate, steps, delta } => {
            let noise = rdp::noise_multiplier_for(target_epsilon, delta, sample_rate, steps)?;
            serde_json::json!({ "noise_multiplier": noise, "delta": delta, "accountant": "rdp" })
        }
    };
    say(json, &said)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

/// Prints a value: JSON on one line, or one line per member.
fn say<T: Serialize>(json: bool, value: &T) -> Result<()> {
    let value = serde_json::to_value(value)?;
    if json {
        println!("{value}");
        return Ok(());
    }
    let Some(members) = value.as_object() else { bail!("nothing to show") };
    for (key, value) in members {
        match value {
            serde_json::Value::String(s) => println!("{key:20} {s}"),
            serde_json::Value::Object(m) if m.is_empty() => {}
            serde_json::Value::Object(m) => {
                for (name, value) in m {
                    println!("{key:20} {name}: {value}");
                }
            }
            other => println!("{key:20} {other}"),
        }
    }
    Ok(())
}

/// Prints a page: JSON on one line, or a table.
fn table<T: Serialize>(
    json: bool,
    page: &Page<T>,
    header: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<()> {
    if json {
        return say(true, page);
    }
    let mut rows: Vec<Vec<String>> = vec![header.iter().map(|h| (*h).to_owned()).collect()];
    rows.extend(page.items.iter().map(row));
    let widths: Vec<usize> = (0..header.len())
        .map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
    Ok(())
}
