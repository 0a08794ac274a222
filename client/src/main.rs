//! `falaj-agent`: the program that runs at a site, next to the records.

use anyhow::{Context as _, Result, ensure};
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use falaj_agent::{
    agent::{self, Agent, Ended, Options},
    audit::{self, Audit, Sabotage},
    budget, clock,
    config::{Config, TrainConfig},
    data, egress, enrol, evaluate,
    guard::ResidencyGuard,
    holdout, identity,
    ledger::Ledger,
    local::{self, Alone},
    model_file,
    policy::{Approval, Approvals, Asked, PolicyFile, Sources},
    sandbox::{self, Task},
    train::{self, Chance},
    watch,
};
use falaj_certs::{
    enrolment::{TOKEN_BYTES_MAX, Token},
    keys::KeyAt,
    tls::Credentials,
};
use falaj_core::{
    evaluation::{Evaluation, Target},
    evidence::Declared,
    id::{Digest, Place, Role, SiteId, SpiffeId},
    note::VerifierKey,
    study::{LabelValues, Study},
    time::Timestamp,
};
use falaj_sandbox::Probe;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::{
    fs::{self, File},
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code when the coordinator refuses this site, or this site the coordinator.
const EXIT_REFUSED: u8 = 3;
/// A steward's name is at most this long.
const STEWARD_BYTES_MAX: usize = 64;
/// What is said where there is no policy file.
const NO_POLICY: &str = "none: the configuration alone decides";

/// What is said when nothing but this program keeps records here.
const OFF: &str = "the sandbox is off: nothing but this program keeps records here";

/// The agent of a Falaj federation: trains beside the records and lets only sealed updates out.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  falaj-agent enroll hospital-1.token --place ae-on/ae-az --config agent.toml\n  falaj-agent explain study.yaml --config agent.toml\n  falaj-agent run --config agent.toml\n  falaj-agent budget show --config agent.toml --json\n  falaj-agent evaluate study.yaml --model model.safetensors --data held_out.csv"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// How to write to standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Subcommand)]
enum Command {
    /// Connect to the coordinator and take part until told to end.
    Run {
        #[command(flatten)]
        config: ConfigArg,
        /// End with code 3 when one side refuses the other, instead of trying again.
        #[arg(long)]
        exit_on_refusal: bool,
        /// Fixed randomness, for tests: protects nobody, and release builds do not have it.
        #[cfg(debug_assertions)]
        #[arg(long, hide = true)]
        insecure_seed: Option<u64>,
    },
    /// Get this site's first certificate, for a token from the coordinator's operator: the key is made here and stays here.
    ///
    /// Nothing that is there is written over. An enrolment that broke off is taken up again by the same command.
    #[command(
        after_help = "Examples:\n  falaj-agent enroll hospital-1.token --place ae-on/ae-az --config agent.toml\n  falaj-agent enroll - --place ae-on/ae-az --dir identity < hospital-1.token\n  falaj-agent enroll new.token --place ae-on/ae-az --config agent.toml --again"
    )]
    Enroll {
        /// A file with the token, or `-` for standard input: a secret on a command line can be read by others.
        token: PathBuf,
        /// Where this site is, `<jurisdiction>/<region>`: a token for a site elsewhere is refused.
        #[arg(long)]
        place: Place,
        /// The configuration, which says where key, certificate and trust configuration are to lie.
        #[arg(long, env = "FALAJ_AGENT_CONFIG", required_unless_present = "dir")]
        config: Option<PathBuf>,
        /// A folder for them, instead.
        #[arg(long, conflicts_with = "config")]
        dir: Option<PathBuf>,
        /// The site has enrolled before, and its certificate has expired: keep the key, and get another certificate about it.
        #[arg(long)]
        again: bool,
    },
    /// Look at what the agent takes away from itself before it touches records.
    Sandbox {
        #[command(subcommand)]
        command: SandboxCommand,
    },
    /// Look at the configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Say what a study would read, cost, and let out, before anything is touched.
    Explain {
        /// The study file.
        study: PathBuf,
        #[command(flatten)]
        config: ConfigArg,
        /// Who would ask, as `spiffe://…/coordinator/…`: one where `policy.coordinator_places` expects it
        /// otherwise.
        #[arg(long)]
        coordinator: Option<SpiffeId>,
    },
    /// Approve a study file, as a steward of this site: its own policy (`site.cedar`) can demand that.
    #[command(
        after_help = "Example:\n  falaj-agent approve study.yaml --steward dpo --config agent.toml"
    )]
    Approve {
        /// The study file; a changed one has to be approved again.
        study: PathBuf,
        #[command(flatten)]
        config: ConfigArg,
        /// Who approves it: a role's name, which policies can ask for.
        #[arg(long, value_parser = steward)]
        steward: String,
    },
    /// Which studies stewards have approved, and take that back.
    Approvals {
        #[command(subcommand)]
        command: ApprovalsCommand,
    },
    /// Show what the site's own policy refused.
    Refusals {
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Look at what left this site, message by message, and give that to an auditor.
    Egress {
        #[command(subcommand)]
        command: EgressCommand,
    },
    /// Look at the records.
    Data {
        #[command(subcommand)]
        command: DataCommand,
    },
    /// Train a study at this site alone, with the same privacy, for comparison.
    Train {
        /// The study file.
        study: PathBuf,
        #[command(flatten)]
        config: ConfigArg,
        /// Where to write the model. What is there stays until training is over.
        #[arg(long, short)]
        out: PathBuf,
        /// Rounds, instead of the study's own number.
        #[arg(long)]
        rounds: Option<u32>,
        /// Without noise and without spending the ledger: the model must not leave the site.
        #[arg(long)]
        no_privacy: bool,
    },
    /// Measure a model on records at hand.
    Evaluate {
        /// The study file.
        study: PathBuf,
        /// The model.
        #[arg(long)]
        model: PathBuf,
        /// A CSV file, or a folder of them.
        #[arg(long)]
        data: PathBuf,
        /// Also write what the model says of each record to this file, as CSV: its logits, a column for each class, or the number
        /// where the label is one. They tell of the records: keep the file where those are.
        #[arg(long, value_name = "FILE")]
        outputs: Option<PathBuf>,
    },
    /// Attack a study's training steps and say whether its privacy claim withstood.
    ///
    /// Nothing of a site is read: the records are the attacker's own. Ends with code 1 when the claim is refuted,
    /// which happens to a true claim in at most one audit of a thousand.
    #[command(after_help = "Example:\n  falaj-agent audit study.yaml --trials 10000 --json")]
    Audit {
        /// The study file.
        study: PathBuf,
        /// Rounds that are trained with the attacked record, and as many without it.
        #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(200..=10_000_000))]
        trials: u32,
        /// Break the steps on purpose, to see that the audit notices.
        #[arg(long, value_enum)]
        sabotage: Option<Break>,
    },
    /// What has been spent on each data set, and what is left.
    Budget {
        #[command(subcommand)]
        command: BudgetCommand,
    },
    /// Evidence that the coordinator's log contradicts itself, while there is any, keeps this site from sending.
    Evidence {
        #[command(subcommand)]
        command: EvidenceCommand,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum SandboxCommand {
    /// Enter the sandbox as `run` does, and try to get out: every attempt has to be refused, and what is needed has to work.
    ///
    /// Ends with code 1 when something is otherwise.
    #[command(
        after_help = "Examples:\n  falaj-agent sandbox check --config agent.toml\n  falaj-agent sandbox check --config agent.toml --study study.yaml"
    )]
    Check {
        #[command(flatten)]
        config: ConfigArg,
        /// As `train` does with this study file instead: it speaks to nobody, not to the coordinator either.
        #[arg(long)]
        study: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check the configuration and the certificates it names.
    Check {
        #[command(flatten)]
        config: ConfigArg,
    },
}

#[derive(Subcommand)]
#[command(
    after_help = "Examples:\n  falaj-agent budget show --config agent.toml\n  falaj-agent budget show --config agent.toml --study study.yaml --json\n  falaj-agent budget export --config agent.toml -o ledger.jsonl\n  falaj-verify bundle.tar --ledger ledger.jsonl"
)]
#[expect(clippy::large_enum_variant, reason = "it is parsed once")]
enum BudgetCommand {
    /// Show epsilon by data set and study, and what is left.
    Show {
        #[command(flatten)]
        config: ConfigArg,
        /// Say how many further rounds of this study are left.
        #[arg(long)]
        study: Option<PathBuf>,
    },
    /// Write the whole ledger for an auditor, its head signed by this site.
    Export {
        #[command(flatten)]
        config: ConfigArg,
        /// Where to; standard output otherwise.
        #[arg(long, short)]
        out: Option<PathBuf>,
    },
    /// State, signed by a steward, that the people in a data set are others than before: it starts afresh.
    OtherPeople {
        #[command(flatten)]
        config: ConfigArg,
        /// The data set.
        #[arg(long)]
        dataset: String,
        /// Why, in a sentence that stays in the ledger.
        #[arg(long)]
        because: String,
        /// The steward's certificate: an operator's of this site's place.
        #[arg(long)]
        cert: PathBuf,
        /// The steward's key: a PEM file with mode 0600, or `pkcs11:…`.
        #[arg(long)]
        key: KeyAt,
    },
}

#[derive(Subcommand)]
enum EgressCommand {
    /// Show what left: each message, and what it comes to by kind.
    #[command(
        after_help = "Examples:\n  falaj-agent egress show --config agent.toml --since 2027-03-01\n  falaj-agent egress show --config agent.toml --openmetrics > /var/lib/node_exporter/falaj.prom"
    )]
    Show {
        #[command(flatten)]
        config: ConfigArg,
        /// Only messages from this day or moment on, in UTC: `2027-03-01` or `2027-03-01T09:30:00.000Z`.
        #[arg(long, value_parser = moment)]
        since: Option<Timestamp>,
        /// Counters alone, as OpenMetrics: the agent opens no port, so a collector reads a file.
        #[arg(long, conflicts_with = "since")]
        openmetrics: bool,
    },
    /// Write the journal for an auditor, its head signed by this site; `falaj-verify --egress` reads it.
    Export {
        #[command(flatten)]
        config: ConfigArg,
        /// Where to; standard output otherwise.
        #[arg(long, short)]
        out: Option<PathBuf>,
    },
    /// Drop entries that were exported, and keep what they come to. The next export begins after them.
    Release {
        #[command(flatten)]
        config: ConfigArg,
        /// The number of the last entry that goes.
        #[arg(long)]
        through: u64,
    },
}

#[derive(Subcommand)]
enum ApprovalsCommand {
    /// Show every approval and revocation, oldest first.
    List {
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Revoke a study's approval: from its next round on it does not run.
    Revoke {
        /// The study file that was approved.
        study: PathBuf,
        #[command(flatten)]
        config: ConfigArg,
        /// Who revokes it.
        #[arg(long, value_parser = steward)]
        steward: String,
    },
}

#[derive(Subcommand)]
enum EvidenceCommand {
    /// Show what the log did, and the signed statements that prove it.
    Show {
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Go on with the coordinator all the same: to be done by a steward, while the agent does not run. The evidence
    /// stays where it is, and the log's next checkpoint is taken as the first.
    Dismiss {
        #[command(flatten)]
        config: ConfigArg,
        /// The log has begun anew under this key, which the coordinator's operator has told you.
        #[arg(long)]
        log_key: Option<String>,
    },
}

#[derive(Subcommand)]
enum DataCommand {
    /// Read the records under a study's schema and report every broken row.
    Check {
        /// The study file.
        study: PathBuf,
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Say that a change of `holdout.key`, or of a data set's name or `identity` in the configuration, is meant.
    ///
    /// Other records are held out from then on: models that were trained here before have seen some of them, and would be
    /// evaluated too well. Begin their studies anew.
    HoldOutAnew {
        #[command(flatten)]
        config: ConfigArg,
    },
}

#[derive(clap::Args)]
struct ConfigArg {
    /// The configuration.
    #[arg(long, env = "FALAJ_AGENT_CONFIG")]
    config: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// What an audit breaks on purpose.
#[derive(Clone, Copy, ValueEnum)]
enum Break {
    /// Half of the noise.
    NoiseHalved,
    /// Gradients are cut at a thousand times the agreed norm.
    ClippingOff,
    /// Every round draws the same.
    SeedReused,
}

impl From<Break> for Sabotage {
    fn from(how: Break) -> Self {
        match how {
            Break::NoiseHalved => Self::NoiseHalved,
            Break::ClippingOff => Self::ClippingOff,
            Break::SeedReused => Self::SeedReused,
        }
    }
}

fn main() -> ExitCode {
    match started(Cli::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("falaj-agent: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The sandbox comes before there is a second thread, which would stay outside.
fn started(cli: Cli) -> Result<ExitCode> {
    let mut model = None;
    match &cli.command {
        Command::Run { config, .. } => {
            log_to_stderr(cli.log_format);
            let file = &config.config;
            match sandbox::restrict(&Config::load(file)?, file, Task::Rounds)? {
                None => tracing::warn!("{OFF}"),
                Some(entered) if entered.missing.is_empty() => tracing::info!("in the sandbox"),
                Some(entered) => tracing::warn!(
                    missing = entered.missing.join(", "),
                    "the sandbox has a gap: this kernel cannot refuse everything"
                ),
            }
        }
        Command::Train { study, config, out, .. } => {
            let file = &config.config;
            let config = Config::load(file)?;
            // What is wrong with it is said before a file is made.
            read_study(study)?;
            // Opened outside, so that nothing beside it has to be written from inside.
            model = Some(model_file::open(out)?);
            match sandbox::restrict(&config, file, Task::Alone(study))? {
                None => eprintln!("falaj-agent: {OFF}"),
                Some(entered) if entered.missing.is_empty() => {}
                Some(entered) => eprintln!(
                    "falaj-agent: the sandbox has a gap: this kernel cannot refuse {}",
                    entered.missing.join(", ")
                ),
            }
        }
        Command::Sandbox { command: SandboxCommand::Check { config, study } } => {
            let file = &config.config;
            let task = study.as_deref().map_or(Task::Rounds, Task::Alone);
            return sandbox_check(&Config::load(file)?, file, task, cli.json);
        }
        _ => {}
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build()?.block_on(run(cli, model))
}

fn sandbox_check(config: &Config, file: &Path, task: Task<'_>, json: bool) -> Result<ExitCode> {
    let (entered, probes) = sandbox::check(config, file, task)?;
    let right = probes.iter().all(Probe::is_right) && entered.missing.is_empty();
    if json {
        let row = |p: &Probe| json!({ "tried": p.what, "to_be_refused": p.unwanted, "refused": p.refused, "right": p.is_right() });
        let probes: Vec<_> = probes.iter().map(row).collect();
        println!("{}", json!({ "probes": probes, "missing": entered.missing, "right": right }));
    } else {
        for p in &probes {
            let verdict = if p.is_right() { "as it should be" } else { "WRONG" };
            let became = p.refused.as_deref().unwrap_or("it went through");
            println!("{verdict:16} {:48} {became}", p.what);
        }
        for lacking in &entered.missing {
            println!("{:16} this kernel cannot refuse {lacking}", "WRONG");
        }
    }
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Does what is asked; `model` is the file for what is trained, if anything is.
async fn run(cli: Cli, model: Option<File>) -> Result<ExitCode> {
    match cli.command {
        Command::Run {
            config,
            exit_on_refusal,
            #[cfg(debug_assertions)]
            insecure_seed,
        } => {
            let options = Options {
                exit_on_refusal,
                #[cfg(debug_assertions)]
                insecure_seed,
            };
            let shutdown = CancellationToken::new();
            tokio::spawn(end_on_signal(shutdown.clone()));
            let agent = Agent::open(Config::load(&config.config)?, options).await?;
            return Ok(match agent.run(shutdown).await? {
                Ended::Asked => ExitCode::SUCCESS,
                Ended::Refused(why) => {
                    eprintln!("falaj-agent: {why}");
                    ExitCode::from(EXIT_REFUSED)
                }
            });
        }
        Command::Enroll { token, place, config, dir, again } => {
            enroll(&token, &place, (config.as_deref(), dir.as_deref()), again, cli.json).await?;
        }
        Command::Sandbox { .. } => unreachable!("it is done before there is a runtime"),
        Command::Config { command: ConfigCommand::Check { config } } => {
            let config = Config::load(&config.config)?;
            let identity = identity::credentials(&config)?.identity()?;
            identity::trust(&config)?;
            let policy = PolicyFile::open(&config.site_policy)?.current();
            let policy = policy.map_or_else(|| NO_POLICY.into(), |p| p.digest().to_string());
            let identity = identity.spiffe.to_string();
            say(cli.json, &json!({ "identity": identity, "site_policy": policy, "ok": true }));
        }
        Command::Explain { study, config, coordinator } => {
            return explain(&study, &config.config, coordinator, cli.json).await;
        }
        Command::Approve { study, config, steward } => {
            approve(&study, &config.config, steward, true, cli.json).await?;
        }
        Command::Approvals { command } => match command {
            ApprovalsCommand::List { config } => approvals(&config.config, cli.json).await?,
            ApprovalsCommand::Revoke { study, config, steward } => {
                approve(&study, &config.config, steward, false, cli.json).await?;
            }
        },
        Command::Refusals { config } => refusals(&config.config, cli.json).await?,
        Command::Egress { command } => egress(command, cli.json).await?,
        Command::Data { command } => of_data(command, cli.json).await?,
        Command::Train { study, config, out, rounds, no_privacy } => {
            let how = Alone { rounds, no_privacy };
            let model = model.context("the file for the model was not opened")?;
            train_alone(&study, &config.config, (&out, model), how, cli.json).await?;
        }
        Command::Evaluate { study, model, data, outputs } => {
            evaluate_at_hand(&study, &model, &data, outputs.as_deref(), cli.json)?;
        }
        Command::Audit { study, trials, sabotage } => {
            return audited(&study, trials, sabotage.map(Into::into), cli.json);
        }
        Command::Budget { command } => budget(command, cli.json).await?,
        Command::Evidence { command } => evidence(command, cli.json).await?,
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "falaj-agent",
                &mut std::io::stdout(),
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn evaluate_at_hand(
    study: &Path,
    model: &Path,
    records: &Path,
    outputs: Option<&Path>,
    json: bool,
) -> Result<()> {
    let (study, _) = read_study(study)?;
    let batch = data::load(records, &study.data, &data::declared_bounds(&study.data))?;
    let params = model_file::read(model, &study.manifest()?)?;
    let spec = study.model_spec();
    let config = TrainConfig { device: "cpu".into(), ..Default::default() };
    let logits = train::choose(&config, &spec)?.logits(&batch, &spec, &params)?;
    let label = &study.data.label;
    let write = |path: &Path| match &label.values {
        LabelValues::Classes(classes) => evaluate::write_outputs(path, classes, &logits),
        LabelValues::Number { min, max } => {
            let number = |said: &Vec<f32>| vec![min + (max - min) * evaluate::place_said(said[0])];
            let numbers: Vec<Vec<f64>> = logits.iter().map(number).collect();
            evaluate::write_outputs(path, std::slice::from_ref(&label.column), &numbers)
        }
    };
    if let Some(path) = outputs {
        write(path).with_context(|| format!("writing {}", path.display()))?;
    }
    let scores = match study.target() {
        Target::Classes(_) => serde_json::to_value(evaluate::scores(logits, &batch.labels))?,
        Target::Number { width } => {
            serde_json::to_value(evaluate::number_scores(&logits, &batch.labels, width))?
        }
    };
    say(json, &scores);
    Ok(())
}

/// Enrols this site by a token, into the files that a configuration names or into a folder.
async fn enroll(
    token: &Path,
    place: &Place,
    to: (Option<&Path>, Option<&Path>),
    again: bool,
    json: bool,
) -> Result<()> {
    let token: Token = read_token(token)?.parse()?;
    let files = match to {
        (_, Some(dir)) => enrol::Files::within(dir),
        (Some(config), None) => {
            let config = Config::load(config)?;
            let spoken_to = &config.policy.coordinator_places;
            let at = token.coordinator.place();
            ensure!(
                spoken_to.iter().any(|p| at.matches(p)),
                "the token is for a coordinator in {at}, and `policy.coordinator_places` permits only {}",
                spoken_to.join(", ")
            );
            enrol::Files::of(&config)
        }
        (None, None) => anyhow::bail!("say where it is to lie: `--config` or `--dir`"),
    };
    let identity = enrol::enrol(&token, &files, place, again).await?;
    if let Some(root) = files.root.as_ref().filter(|root| !root.exists()) {
        eprintln!(
            "falaj-agent: {} is not there: issuers that are replaced are not followed",
            root.display()
        );
    }
    let until = falaj_core::time::Timestamp::from_millis(identity.not_after * 1_000);
    let told = json!({
        "identity": identity.spiffe.to_string(),
        "until": until.to_string(),
        "cert": files.cert,
        "key": files.key.to_string(),
        "trust": files.trust,
    });
    say(json, &told);
    Ok(())
}

async fn evidence(command: EvidenceCommand, json: bool) -> Result<()> {
    let (EvidenceCommand::Show { config } | EvidenceCommand::Dismiss { config, .. }) = &command;
    let config = Config::load(&config.config)?;
    let (_, site, _) = opened(&config).await?;
    let (_, journal) = agent::state(&config.state.dir, &site).await?;
    let path = match command {
        EvidenceCommand::Show { .. } => watch::evidence(&journal).await?,
        EvidenceCommand::Dismiss { log_key, .. } => {
            let key = log_key.as_deref().map(str::parse::<VerifierKey>).transpose()?;
            watch::dismiss(&journal, key.as_ref()).await?
        }
    };
    let text = path.as_ref().map(fs::read_to_string).transpose()?;
    if json {
        println!("{}", json!({ "evidence": path, "text": text }));
    } else {
        println!(
            "{}",
            text.unwrap_or_else(|| "none: the log has never contradicted itself".into())
        );
    }
    Ok(())
}

async fn of_data(command: DataCommand, json: bool) -> Result<()> {
    match command {
        DataCommand::Check { study, config } => {
            let (study, _) = read_study(&study)?;
            let config = Config::load(&config.config)?;
            let dataset = config.dataset(&study.data.dataset).with_context(|| {
                format!("this site offers no data set `{}`", study.data.dataset)
            })?;
            let batch =
                data::load(&dataset.path, &study.data, &data::declared_bounds(&study.data))?;
            say(json, &json!({ "rows": batch.rows(), "inputs": batch.width, "ok": true }));
        }
        DataCommand::HoldOutAnew { config } => {
            let config = Config::load(&config.config)?;
            let (_, site, _) = opened(&config).await?;
            let (_, journal) = agent::state(&config.state.dir, &site).await?;
            holdout::anew(&journal).await?;
            say(json, &json!({ "holds_out": "anew, from the next task on", "ok": true }));
        }
    }
    Ok(())
}

fn read_study(path: &Path) -> Result<(Study, Digest)> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let study = falaj_proto::study::parse(&text, &path.display().to_string())?;
    Ok((study, Digest::of(text.as_bytes())))
}

/// Prints an object as JSON, or as one line per member.
fn say(json: bool, value: &serde_json::Value) {
    if json {
        println!("{value}");
        return;
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        match value {
            serde_json::Value::String(s) => println!("{key:24} {s}"),
            other => println!("{key:24} {other}"),
        }
    }
}

/// A token from a file, or from standard input.
fn read_token(path: &Path) -> Result<String> {
    use std::io::Read as _;
    let most = TOKEN_BYTES_MAX as u64 + 1;
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(most).read_to_string(&mut text)?;
    } else {
        let file = File::open(path);
        let file = file.with_context(|| format!("reading the token in {}", path.display()))?;
        file.take(most).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// A steward's name: it stands in policies and in the journal.
fn steward(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if text.is_empty() || text.len() > STEWARD_BYTES_MAX || !text.bytes().all(fits) {
        return Err("use up to 64 of a-z, 0-9 and -".into());
    }
    Ok(text.to_owned())
}

/// Keeps a steward's word about a study file.
async fn approve(
    study: &Path,
    config: &Path,
    steward: String,
    approved: bool,
    json: bool,
) -> Result<()> {
    let (study, study_sha256) = read_study(study)?;
    let config = Config::load(config)?;
    let (credentials, site, _) = opened(&config).await?;
    let (_, journal) = agent::state(&config.state.dir, &site).await?;
    let key = credentials.signing_key().verifying_key();
    let approvals = Approvals { journal: &journal, site: &site, key: &key };
    let standing = approvals.steward(&study_sha256).await?;
    ensure!(
        approved || standing.is_some(),
        "this study file has no approval to revoke; `falaj-agent approvals list` shows what was approved"
    );
    let at = clock::now();
    let word = Approval { study: study.id.to_string(), study_sha256, steward, at, approved };
    approvals.keep(&**credentials.signing_key(), &word).await?;
    say(json, &shown(&word));
    Ok(())
}

fn shown(word: &Approval) -> serde_json::Value {
    json!({
        "study": word.study,
        "study_sha256": word.study_sha256.to_string(),
        "steward": word.steward,
        "at": word.at.to_string(),
        "word": if word.approved { "approved" } else { "revoked" },
    })
}

async fn approvals(config: &Path, json: bool) -> Result<()> {
    let config = Config::load(config)?;
    let (credentials, site, _) = opened(&config).await?;
    let (_, journal) = agent::state(&config.state.dir, &site).await?;
    let key = credentials.signing_key().verifying_key();
    let words = Approvals { journal: &journal, site: &site, key: &key }.all().await?;
    let unsigned = words.iter().filter(|word| word.is_none()).count();
    let words: Vec<Approval> = words.into_iter().flatten().collect();
    if json {
        let words: Vec<_> = words.iter().map(shown).collect();
        println!("{}", json!({ "approvals": words, "not_signed_by_this_key": unsigned }));
        return Ok(());
    }
    for word in &words {
        let said = if word.approved { "approved" } else { "revoked" };
        println!("{} {said} by {}: {} {}", word.at, word.steward, word.study, word.study_sha256);
    }
    if words.is_empty() {
        println!("no study has been approved here");
    }
    if unsigned > 0 {
        println!("{unsigned} more are not signed by this site's key and do not count");
    }
    Ok(())
}

async fn refusals(config: &Path, json: bool) -> Result<()> {
    let config = Config::load(config)?;
    let (_, site, _) = opened(&config).await?;
    let (_, journal) = agent::state(&config.state.dir, &site).await?;
    let refusals = journal.refusals().await?;
    if json {
        println!("{}", json!({ "refusals": refusals }));
        return Ok(());
    }
    for r in &refusals {
        println!("{} {}/{}: {} (policy {})", r.at, r.study, r.round, r.reason, r.policy_sha256);
    }
    if refusals.is_empty() {
        println!("the site's own policy has refused nothing");
    }
    Ok(())
}

async fn egress(command: EgressCommand, json: bool) -> Result<()> {
    let (EgressCommand::Show { config, .. }
    | EgressCommand::Export { config, .. }
    | EgressCommand::Release { config, .. }) = &command;
    let config = Config::load(&config.config)?;
    let (credentials, site, _) = opened(&config).await?;
    let journal = agent::egress(&config.state.dir, &site).await?;
    match command {
        EgressCommand::Show { openmetrics: true, .. } => {
            print!("{}", egress::openmetrics(&journal.counts().await?));
        }
        EgressCommand::Show { since, .. } => {
            let left = journal.left(since).await?;
            let counts = journal.counts().await?;
            if json {
                println!("{}", json!({ "messages": left, "all_time": counts }));
                return Ok(());
            }
            for m in &left {
                println!("{m}");
            }
            for (kind, count) in &counts {
                println!("{kind:16} {:>9} messages {:>14} bytes", count.messages, count.bytes);
            }
        }
        EgressCommand::Export { out, .. } => {
            let key = credentials.signing_key();
            let export = journal.export(&**key, credentials.certificate()).await?;
            budget::write(out.as_deref(), &export.text)?;
            journal.exported(&export).await?;
        }
        EgressCommand::Release { through, .. } => {
            journal.release(through).await?;
            say(json, &json!({ "released_through": through }));
        }
    }
    Ok(())
}

/// A day, from its beginning, or a moment.
fn moment(text: &str) -> Result<Timestamp, String> {
    let whole = if text.contains('T') { text.to_owned() } else { format!("{text}T00:00:00.000Z") };
    Timestamp::parse(&whole)
        .ok_or_else(|| "write `2027-03-01` or `2027-03-01T09:30:00.000Z`".to_owned())
}

/// A coordinator where the configuration expects one: in this site's own region, if only the jurisdiction is said.
fn expected(config: &Config, site: &SiteId) -> Result<SpiffeId> {
    let site = site.spiffe();
    let pattern = config.policy.coordinator_places.first().context("no place of a coordinator")?;
    let place = pattern.replace("/*", &format!("/{}", site.place().region())).parse()?;
    Ok(SpiffeId::new(site.trust_domain(), &place, Role::Coordinator, "coordinator")?)
}

async fn explain(
    study: &Path,
    config: &Path,
    coordinator: Option<SpiffeId>,
    json: bool,
) -> Result<ExitCode> {
    let (study, digest) = read_study(study)?;
    let config = Config::load(config)?;
    let permitted = ResidencyGuard::new(&config).permits(&study);
    let file = PolicyFile::open(&config.site_policy)?;
    let dataset = config
        .dataset(&study.data.dataset)
        .with_context(|| format!("this site offers no data set `{}`", study.data.dataset))?;
    let (credentials, site, ledger) = opened(&config).await?;
    let (_, journal) = agent::state(&config.state.dir, &site).await?;
    file.missed(&journal).await?;
    let coordinator = coordinator.map_or_else(|| expected(&config, &site), Ok)?;
    let permitted = permitted.map_err(|e| e.to_string()).and_then(|()| {
        let places = &config.policy.coordinator_places;
        let spoken_to = places.iter().any(|p| coordinator.place().matches(p));
        spoken_to.then_some(()).ok_or_else(|| {
            let (place, places) = (coordinator.place(), places.join(" or "));
            format!("this site speaks with coordinators in {places} only, not in {place}")
        })
    });
    let key = credentials.signing_key().verifying_key();
    let sources =
        Sources { config: &config, ledger: &ledger, journal: &journal, site: &site, key: &key };
    // What it says of itself is known when it comes.
    let declared = Declared::default();
    let asked = Asked {
        coordinator: &coordinator,
        declared: &declared,
        study: &study,
        study_sha256: digest,
        round: 1,
        paid: false,
        now: clock::now(),
    };
    let answer = sources.ask(&file, asked).await?;
    let decided = answer.as_ref().map(|a| &a.decision);
    let permitted = permitted.and_then(|()| match decided {
        Some(d) if !d.allow => Err(d.reason.clone()),
        _ => Ok(()),
    });
    let delta = if study.privacy.delta > 0.0 { study.privacy.delta } else { dataset.delta };
    let rounds = study.rounds.count;
    let training = study.cost_of_rounds(rounds)?.compose(&study.cost_of_joining()?);
    let cost = training.compose(&study.cost_of_evaluations(rounds)?);
    let spent = ledger.spent(&dataset.name, None).await?;
    // What may not run is not looked at either.
    let batch = permitted
        .as_ref()
        .ok()
        .map(|()| data::load(&dataset.path, &study.data, &data::declared_bounds(&study.data)));
    let rows = batch.as_ref().map_or_else(
        || "not looked at".into(),
        |b| b.as_ref().map_or_else(ToString::to_string, |b| b.rows().to_string()),
    );
    let params = study.manifest()?.params();
    let told = json!({
        "study": study.id.as_str(),
        "study_sha256": digest.to_string(),
        "purpose": study.purpose,
        "permitted": permitted.as_ref().map_or_else(Clone::clone, |()| "yes".into()),
        "asked_as_if_by": coordinator.to_string(),
        "site_policy": decided.map_or_else(|| NO_POLICY.into(), |d| d.digest.to_string()),
        "rules_that_decided": decided.map(|d| d.rules.join(", ")),
        "approved_by": answer.as_ref().and_then(|a| a.steward.clone()),
        "epsilon_study_after_next_round": answer.as_ref().map(|a| a.epsilon_study.to_string()),
        "epsilon_month_after_next_round": answer.as_ref().map(|a| a.epsilon_month.to_string()),
        "columns_read": columns_read(&study),
        "label": study.data.label.column,
        "rows_found": rows,
        "leaves_per_round": format!("{} bytes: {params} values of {} bits{}", params * study.encoding().bytes_per_value(), study.sealing.bits, if study.sealing.rotated { ", rotated" } else { "" }),
        "evaluated_on": study.evaluation.as_ref().map(|_| study.evaluated_on()),
        "leaves_per_evaluation": leaves_per_evaluation(&study),
        "rounds": study.rounds.count,
        "mechanism": study.privacy.mechanism.as_str(),
        "epsilon_of_the_plan": format!("{} at delta {delta:e}", cost.epsilon(delta)?),
        "epsilon_spent_before": format!("{} at delta {:e}", spent.epsilon(dataset.delta)?, dataset.delta),
        "epsilon_after_the_plan": format!("{} of {}", spent.compose(&cost).epsilon(dataset.delta)?, dataset.epsilon_limit),
        "recipient": format!("coordinator at {}, in {}", config.coordinator.address, config.policy.coordinator_places.join(" or ")),
    });
    say(json, &told);
    if let Some(why) =
        batch.and_then(Result::ok).and_then(|b| local::delta_too_large(&study, b.rows()))
    {
        eprintln!("warning: {why}");
    }
    if let Err(why) = permitted {
        eprintln!("falaj-agent: it would not run here: {why}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The columns that training and evaluations read, each once, without the label.
fn columns_read(study: &Study) -> String {
    let mut columns: Vec<&str> = study.data.features.iter().map(|f| f.name.as_str()).collect();
    for column in study.evaluation.iter().flat_map(Evaluation::columns) {
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    columns.join(", ")
}

/// What an evaluation lets out, if there are any.
fn leaves_per_evaluation(study: &Study) -> Option<String> {
    let e = study.evaluation.as_ref()?;
    let (cells, noise) = (e.layout(study.target()).cells(), e.noise.as_str());
    Some(format!("{cells} counts of records and sums over them, noise: {noise}"))
}

fn audited(study: &Path, trials: u32, sabotage: Option<Sabotage>, json: bool) -> Result<ExitCode> {
    let (study, _) = read_study(study)?;
    let config = TrainConfig { device: "cpu".into(), ..Default::default() };
    let trainer = train::choose(&config, &study.model_spec())?;
    let bar = progress_bar("rounds of the attack", json)?;
    let progress = |done: u64, planned: u64| {
        bar.set_length(planned);
        bar.set_position(done);
    };
    let found = audit::audit(&study, trainer.as_ref(), trials, sabotage, &progress)?;
    bar.finish_and_clear();
    if json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        print!("{}", told(&found));
    }
    Ok(if found.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An audit's findings in sentences.
fn told(found: &Audit) -> String {
    let Audit { steps, trials, delta, claimed_epsilon, canary, .. } = found;
    let below = found.noise_multiplier_below.map_or_else(
        || "show nothing about the noise".into(),
        |below| format!("show a noise multiplier below {below:.3}"),
    );
    let verdict = if found.passed {
        "the claim withstood, which does not prove it"
    } else {
        "REFUTED: the updates tell more than the study claims. Do not run it; tell its operator"
    };
    format!(
        "claimed     epsilon {claimed_epsilon:.4} at delta {delta:e} for a round of {steps} steps, noise multiplier {}\n\
         two worlds  {trials} rounds in each {below}: epsilon at least {:.4}, the record's gradient at {:.0} % of the clip norm\n\
         one run     epsilon at least {:.4}\n\
         {verdict} (chance of a false alarm: {})\n",
        found.noise_multiplier,
        found.two_worlds_epsilon,
        canary * 100.0,
        found.one_run_epsilon,
        audit::ERROR,
    )
}

/// A bar for people who watch; hidden from files and programs.
fn progress_bar(what: &str, json: bool) -> Result<ProgressBar> {
    let style =
        ProgressStyle::with_template(&format!("{{bar:40}} {{pos}}/{{len}} {what} {{eta}}"))?;
    let watched = std::io::stderr().is_terminal() && !json;
    Ok(if watched { ProgressBar::new(0).with_style(style) } else { ProgressBar::hidden() })
}

async fn train_alone(
    study: &Path,
    config: &Path,
    (out, mut model): (&Path, File),
    how: Alone,
    json: bool,
) -> Result<()> {
    let (study, digest) = read_study(study)?;
    let config = Config::load(config)?;
    if how.no_privacy {
        eprintln!("falaj-agent: training without noise; this model must not leave the site");
    }
    let (_, site, ledger) = opened(&config).await?;
    let (_, journal) = agent::state(&config.state.dir, &site).await?;
    let kept = (&ledger, &journal);
    let first = study.model_spec().init(Study::model_seed(&digest))?;
    let bar = progress_bar("rounds", json)?;
    let progress = |done: u32, planned: u32| {
        bar.set_length(u64::from(planned));
        bar.set_position(u64::from(done));
    };
    let trained =
        local::train_alone(&config, kept, &study, first, how, Chance::fresh(), progress).await?;
    bar.finish_and_clear();
    let written = model_file::write(&mut model, &study.manifest()?, &trained.params);
    written.with_context(|| format!("writing {}", out.display()))?;
    let epsilon = trained.epsilon.map(|e| e.to_string());
    say(json, &json!({ "model": out, "rounds": trained.rounds, "epsilon": epsilon }));
    Ok(())
}

/// This site and what it keeps.
async fn opened(config: &Config) -> Result<(Credentials, SiteId, Ledger)> {
    let credentials = identity::credentials(config)?;
    let site = SiteId::try_from(credentials.identity()?.spiffe)?;
    let (ledger, _) = agent::state(&config.state.dir, &site).await?;
    Ok((credentials, site, ledger))
}

async fn budget(command: BudgetCommand, json: bool) -> Result<()> {
    match command {
        BudgetCommand::Show { config, study } => {
            let config = Config::load(&config.config)?;
            let (_, _, ledger) = opened(&config).await?;
            let mut shown =
                serde_json::json!({ "datasets": budget::budgets(&config, &ledger).await? });
            if let Some(study) = study {
                let (study, _) = read_study(&study)?;
                let rounds = budget::rounds_left(&config, &ledger, &study).await?;
                shown["rounds_left"] = rounds.into();
            }
            if json {
                println!("{shown}");
                return Ok(());
            }
            for b in budget::budgets(&config, &ledger).await? {
                println!(
                    "{}: epsilon {} of {} at delta {:e}; room for one release of {:.4}",
                    b.dataset, b.epsilon, b.limit, b.delta, b.left
                );
                for s in b.studies {
                    println!("  {:30} {}", s.study, s.epsilon);
                }
            }
            if let Some(rounds) = shown["rounds_left"].as_u64() {
                println!("rounds left of the study: {rounds}");
            }
        }
        BudgetCommand::Export { config, out } => {
            let (credentials, site, ledger) = opened(&Config::load(&config.config)?).await?;
            let text = budget::export(&ledger, &credentials, &site).await?;
            budget::write(out.as_deref(), &text)?;
        }
        BudgetCommand::OtherPeople { config, dataset, because, cert, key } => {
            let config = Config::load(&config.config)?;
            let (_, site, ledger) = opened(&config).await?;
            let steward = (cert.as_path(), &key);
            let statement = (dataset.as_str(), because.as_str());
            budget::other_people(&config, &ledger, &site, steward, statement).await?;
            say(json, &json!({ "dataset": dataset, "spent": "0, from now on" }));
        }
    }
    Ok(())
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
