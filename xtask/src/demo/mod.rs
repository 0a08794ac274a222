//! The main job: hospitals of three emirates learn one model over mutual TLS, with differential privacy. And, in `bank`, five banks
//! whose model has to earn its place, and in `hospital` a study that survives a bad round and knows when to stop.
//!
//! This composes the public programs and adds nothing to them: certificates by `falaj-certs`, a coordinator
//! and agents as separate processes, the operator's `falaj`, and `falaj-verify` at the end.

mod bank;
mod data;
mod hospital;
mod processes;
mod report;

use crate::{setup, tools};
use anyhow::{Context as _, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use processes::{Running, Stage, wait_for};
use report::Row;
use serde_json::Value;
use std::{
    env, fs,
    io::{BufRead as _, BufReader, IsTerminal as _},
    path::PathBuf,
    process::Stdio,
    time::Instant,
};

const STUDY: &str = "breast-cancer";
/// Name, place, emirate, and the steward who alone approves studies there.
const HOSPITALS: [(&str, &str, &str, &str); 3] = [
    ("hospital-1", "ae-on/ae-az", "Abu Dhabi", "research-board"),
    ("hospital-2", "ae-on/ae-du", "Dubai", "data-protection-officer"),
    ("hospital-3", "ae-on/ae-sh", "Sharjah", "medical-director"),
];
/// What each hospital's data set may spend; Sharjah's is spent before the study ends.
const LIMITS: [f64; 3] = [8.0, 8.0, 4.0];

/// What is shown.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Which {
    /// Three hospitals learn one model, and a fourth is refused.
    Hospitals,
    /// Five banks learn two models: one passes its gates and is promoted by two people, the other is unfair and kept out.
    Bank,
    /// Three hospitals learn with care: a bad delivery of records makes a bad round, the study goes back to its last good model,
    /// and ends by patience.
    Hospital,
}

/// How the demo runs.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which demo. `--seed`, `--seeds` and `--report` are of the hospitals.
    #[arg(value_enum, default_value_t = Which::Hospitals)]
    which: Which,
    /// Where everything is put; emptied first.
    #[arg(long, default_value = "demo-out")]
    out: PathBuf,
    /// Which split of the records.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Make the audit report for people as well, in English and Arabic. Its maker takes some minutes to build.
    #[arg(long)]
    report: bool,
    /// Run this many splits, from `--seed` on, and print the means.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
}

/// What one run gave.
struct Outcome {
    rows: Vec<Row>,
}

/// Runs the demo.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::setup()?;
    eprintln!("building the programs that a deployment runs (release)");
    tools::programs()?;
    let out = std::path::absolute(&options.out)?;
    // Beside this program, wherever cargo was told to build.
    let built = env::current_exe().context("this program's own path")?;
    let built = built.ancestors().nth(2).context("a target folder")?.join("release");
    let stage = || Stage { out: out.clone(), bin: built.clone() };
    match options.which {
        Which::Bank => return bank::run(&stage()),
        Which::Hospital => return hospital::run(&stage()),
        Which::Hospitals => {}
    }
    let mut outcomes = Vec::new();
    for seed in options.seed..options.seed + options.seeds {
        outcomes.push(once(&stage(), seed)?);
    }
    if options.report {
        eprintln!("building what makes the audit report (release)");
        tools::cargo(&["build", "--release", "-p", "falaj-report"])?;
        let stage = stage();
        let words = ["make", "bundle.tar", "--trust", "ca/trust.toml", "-o", "audit"];
        println!("\n{}", stage.run("falaj-report", &words)?.trim());
    }
    if outcomes.len() > 1 {
        println!("\nMeans over {} splits (accuracy, AUC):", outcomes.len());
        #[expect(clippy::cast_precision_loss, reason = "a few runs")]
        let n = outcomes.len() as f64;
        for (i, row) in outcomes[0].rows.iter().enumerate() {
            let mean = |f: fn(&Row) -> f64| outcomes.iter().map(|o| f(&o.rows[i])).sum::<f64>() / n;
            println!(
                "  {:34} {:.2} %  {:.4}",
                row.model,
                100.0 * mean(|r| r.accuracy),
                mean(|r| r.auc)
            );
        }
    }
    Ok(())
}

fn once(stage: &Stage, seed: u64) -> Result<Outcome> {
    let started = Instant::now();
    prepare(stage, seed)?;
    let mut notes = approved(stage)?;
    operator(stage, "operator", "health-authority")?;
    let coordinator = coordinator(stage, "policies", "")?;
    let agents = agents(stage, &HOSPITALS.map(|(name, ..)| name))?;
    notes.push(london(stage)?);
    connected(stage, "operator", HOSPITALS.len())?;
    let learning = Instant::now();
    stage.falaj(&["study", "submit", "study.yaml"])?;
    let curve = follow(stage)?;
    let took = learning.elapsed().as_secs_f64();
    notes.push(spent(stage)?);

    let study = stage.falaj(&["study", "show", STUDY])?;
    stage.falaj(&["model", "download", STUDY, "-o", "model.safetensors"])?;
    let rows = compare(stage, &study, took)?;
    println!("\nOn rows that nobody trained on:\n{}", report::table(&rows));

    notes.extend(audit(stage)?);
    stage.write("report.html", &report::html(&rows, &curve, &notes))?;
    agents.into_iter().try_for_each(Running::stop)?;
    coordinator.stop()?;
    println!(
        "\nEverything lies in {} (open report.html); {:.0} s in all.",
        stage.out.display(),
        started.elapsed().as_secs_f64()
    );
    Ok(Outcome { rows })
}

/// Agents of these sites.
fn agents(stage: &Stage, sites: &[&str]) -> Result<Vec<Running>> {
    let start = |site: &&str| {
        let config = format!("{site}/agent.toml");
        stage.start("falaj-agent", &["run", "--config", &config], &format!("{site}/agent.log"))
    };
    sites.iter().map(start).collect()
}

/// Waits until so many sites are there, as an operator sees it.
fn connected(stage: &Stage, operator: &str, sites: usize) -> Result<()> {
    wait_for("the sites to connect", || {
        let there = stage.falaj_as(operator, &["sites"])?;
        Ok((there["items"].as_array().map_or(0, Vec::len) == sites).then_some(()))
    })
}

/// Makes the folder, empty.
fn empty(stage: &Stage) -> Result<()> {
    if stage.out.exists() {
        ensure!(
            stage.out.join("study.yaml").is_file() || fs::read_dir(&stage.out)?.next().is_none(),
            "{} is not a demo's folder: choose another with --out",
            stage.out.display()
        );
        fs::remove_dir_all(&stage.out)?;
    }
    Ok(fs::create_dir_all(&stage.out)?)
}

/// An authority for certificates, with an issuer for each place.
fn authority(stage: &Stage, places: &[&str]) -> Result<()> {
    stage.run("falaj-certs", &["init", "ca", "--trust-domain", "falaj.demo"])?;
    for place in places {
        stage.run("falaj-certs", &["issuer", "ca", place])?;
    }
    Ok(())
}

/// Certificates, records, configurations, the study.
fn prepare(stage: &Stage, seed: u64) -> Result<()> {
    empty(stage)?;
    stage.write("study.yaml", include_str!("../../demo/study.yaml"))?;
    authority(stage, &["ae-on/ae-az", "ae-on/ae-du", "ae-on/ae-sh", "gb/gb-lnd"])?;
    let issue = |role: &str, name: &str, place: &str| {
        stage.run("falaj-certs", &["issue", "ca", role, name, "--place", place]).map(drop)
    };
    issue("coordinator", "main", "ae-on/ae-az")?;
    issue("operator", "health-authority", "ae-on/ae-az")?;
    let split = data::split(seed)?;
    stage.write("held-out/records.csv", &split.held_out)?;
    let mut pooled = String::new();
    for (((name, place, _, steward), records), limit) in
        HOSPITALS.iter().zip(&split.hospitals).zip(LIMITS)
    {
        issue("site", name, place)?;
        stage.write(&format!("{name}/data/records.csv"), records)?;
        pooled.push_str(if pooled.is_empty() {
            records
        } else {
            records.split_once('\n').map_or("", |r| r.1)
        });
        agent_config(stage, name, name, &wisconsin(limit))?;
        site_policy(stage, name, steward)?;
        // The comparison with training alone spends a ledger of its own.
        let alone = format!("alone/{name}");
        stage.write(&format!("{alone}/data/records.csv"), records)?;
        agent_config(stage, &alone, name, &wisconsin(limit))?;
    }
    stage.write("alone/pooled/data/records.csv", &pooled)?;
    agent_config(stage, "alone/pooled", "hospital-1", &wisconsin(8.0))?;
    issue("site", "london", "gb/gb-lnd")?;
    stage.write("london/data/records.csv", &split.hospitals[0])?;
    agent_config(stage, "london", "london", &wisconsin(8.0))
}

/// Fixed ports, so that the configurations that the demo leaves behind can be used again.
const GRPC: &str = "127.0.0.1:17443";
const REST: &str = "127.0.0.1:17444";
const METRICS: &str = "127.0.0.1:17464";

/// What a hospital lets studies have.
fn wisconsin(limit: f64) -> String {
    format!(
        "studies = [\"{STUDY}\"]\n\n\
         [[dataset]]\nname = \"wdbc\"\npath = \"data\"\nepsilon_limit = {limit:?}\ndelta = 1e-5\n"
    )
}

fn agent_config(stage: &Stage, dir: &str, site: &str, lets: &str) -> Result<()> {
    let ca = stage.out.join("ca");
    let text = format!(
        "[identity]\ncert = \"{ca}/site/{site}/cert.pem\"\nkey = \"{ca}/site/{site}/key.pem\"\ntrust = \"{ca}/trust.toml\"\n\n\
         [coordinator]\naddress = \"{GRPC}\"\n\n[policy]\ncoordinator_places = [\"ae-on/*\"]\n{lets}\n\
         [state]\ndir = \"state\"\n",
        ca = ca.display()
    );
    stage.write(&format!("{dir}/agent.toml"), &text)
}

/// A site's own policy: the shipped one, narrowed to studies that its own steward has approved.
fn site_policy(stage: &Stage, dir: &str, steward: &str) -> Result<()> {
    const ANY_STEWARD: &str = "unless { context has steward };";
    let shipped = tools::root().join("policies/site.cedar");
    let shipped = fs::read_to_string(&shipped).context("reading policies/site.cedar")?;
    ensure!(shipped.contains(ANY_STEWARD), "policies/site.cedar has no `{ANY_STEWARD}` any more");
    let ours =
        format!("unless {{ context has steward && [\"{steward}\"].contains(context.steward) }};");
    stage.write(&format!("{dir}/site.cedar"), &shipped.replace(ANY_STEWARD, &ours))
}

/// No hospital would run the study before its own steward has approved this very file; then each would.
fn approved(stage: &Stage) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for (name, _, _, steward) in HOSPITALS {
        let config = format!("{name}/agent.toml");
        let explain = ["--json", "explain", "study.yaml", "--config", &config];
        let out = stage.try_run("falaj-agent", &explain)?;
        let before: Value = serde_json::from_slice(&out.stdout).with_context(|| {
            format!("explaining at {name}: {}", String::from_utf8_lossy(&out.stderr).trim())
        })?;
        ensure!(
            before["rules_that_decided"] == "SITE-001",
            "{name} does not wait for its steward: {before}"
        );
        let approve = ["approve", "study.yaml", "--steward", steward, "--config", &config];
        stage.run("falaj-agent", &approve)?;
        let after = stage.json("falaj-agent", &explain)?;
        ensure!(
            after["permitted"] == "yes" && after["approved_by"] == steward,
            "{name} would not run what its steward approved: {after}"
        );
        let note = format!(
            "{name} would not run the study ({}); its steward {steward} has approved the file {}, and now it would ({})",
            before["permitted"].as_str().unwrap_or("?"),
            after["study_sha256"].as_str().and_then(|digest| digest.get(..8)).unwrap_or("?"),
            after["rules_that_decided"].as_str().unwrap_or("?"),
        );
        println!("{note}");
        notes.push(note);
    }
    Ok(notes)
}

/// An operator's configuration, in a folder of its own.
fn operator(stage: &Stage, dir: &str, name: &str) -> Result<()> {
    let ca = stage.out.join("ca");
    let text = format!(
        "server = \"https://{REST}\"\ncert = \"{ca}/operator/{name}/cert.pem\"\nkey = \"{ca}/operator/{name}/key.pem\"\ntrust = \"{ca}/trust.toml\"\n",
        ca = ca.display()
    );
    stage.write(&format!("{dir}/falaj.toml"), &text)
}

/// A coordinator under a folder of policies, with further lines of its configuration.
fn coordinator(stage: &Stage, policies: &str, further: &str) -> Result<Running> {
    let ca = stage.out.join("ca");
    let policies = tools::root().join(policies);
    stage.write(
        "coordinator/coordinator.toml",
        &format!(
            "[identity]\ncert = \"{ca}/coordinator/main/cert.pem\"\nkey = \"{ca}/coordinator/main/key.pem\"\ntrust = \"{ca}/trust.toml\"\n\n\
             [listen]\ngrpc = \"{GRPC}\"\nrest = \"{REST}\"\nmetrics = \"{METRICS}\"\n\n[state]\ndir = \"state\"\n\n\
             [log]\norigin = \"falaj.demo/audit/2026\"\n\n[policy]\ndir = \"{}\"\n{further}",
            policies.display(),
            ca = ca.display()
        ),
    )?;
    let args = [
        "run",
        "--config",
        "coordinator/coordinator.toml",
        "--ready-file",
        "coordinator/ready.json",
    ];
    let mut running = stage.start("falaj-coordinator", &args, "coordinator/coordinator.log")?;
    wait_for("the coordinator to be ready", || {
        if running.ended()?.is_some() {
            bail!("the coordinator ended:\n{}", running.output());
        }
        Ok(stage.out.join("coordinator/ready.json").is_file().then_some(()))
    })?;
    Ok(running)
}

/// London is refused, told why, and the refusal is in the log.
fn london(stage: &Stage) -> Result<String> {
    let args = ["run", "--config", "london/agent.toml", "--exit-on-refusal"];
    let mut agent = stage.start("falaj-agent", &args, "london/agent.log")?;
    let code = wait_for("London to be refused", || agent.ended())?;
    ensure!(code == 3, "London's agent ended with {code}:\n{}", agent.output());
    let log = agent.output();
    let why = log.lines().last().unwrap_or_default();
    let entries = stage.falaj(&["log", "entries", "--kind", "connection.refused"])?;
    let entry = entries["items"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|e| e["entry"]["actor"]["place"] == "gb/gb-lnd")
        .context("London's refusal is not in the log")?;
    println!("London is refused: {why}");
    println!(
        "  log entry {}: {}",
        entry["index"],
        entry["entry"]["reason"].as_str().unwrap_or("?")
    );
    Ok(format!("London was refused (log entry {}): {why}", entry["index"]))
}

/// Follows the study; gives accuracy on held-out rows by round.
fn follow(stage: &Stage) -> Result<Vec<(u32, f64)>> {
    let mut watch = stage
        .program("falaj")
        .args(["--config", "operator/falaj.toml", "--json", "study", "watch", STUDY])
        .stdout(Stdio::piped())
        .spawn()?;
    let events = BufReader::new(watch.stdout.take().context("a pipe")?);
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(0)
            .with_style(ProgressStyle::with_template("{bar:24} round {pos}/{len}  {msg}")?)
    } else {
        ProgressBar::hidden()
    };
    let mut curve = vec![(0, accuracy_of_round(stage, 0)?)];
    for line in events.lines() {
        let event: Value = serde_json::from_str(&line?)?;
        let round = event["round"].as_u64().unwrap_or(0);
        let number = u32::try_from(round)?;
        if event["stage"] == "promoted" && curve.last().is_some_and(|(r, _)| *r < number) {
            curve.push((number, accuracy_of_round(stage, number)?));
        }
        let accuracy = curve.last().map_or(0.0, |(_, a)| *a);
        let epsilon: Vec<String> = event["epsilon_by_site"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(site, e)| format!("{site} {:.2}", e.as_f64().unwrap_or(f64::INFINITY)))
            .collect();
        let status = format!(
            "{} of {} updates  accuracy {:.1} %  epsilon {}",
            event["updates_in"],
            event["cohort"],
            100.0 * accuracy,
            epsilon.join(", ")
        );
        bar.set_length(event["rounds"].as_u64().unwrap_or(0));
        bar.set_position(round);
        if bar.is_hidden() && event["stage"] == "promoted" && event["state"] == "running" {
            println!("round {round}/{}  {status}", event["rounds"]);
        }
        bar.set_message(status);
    }
    bar.finish();
    ensure!(watch.wait()?.success(), "the study did not finish: see coordinator/coordinator.log");
    Ok(curve)
}

fn accuracy_of_round(stage: &Stage, round: u32) -> Result<f64> {
    let file = format!("models/round-{round}.safetensors");
    fs::create_dir_all(stage.out.join("models"))?;
    let number = round.to_string();
    stage.falaj(&["model", "download", STUDY, "--round", &number, "-o", &file])?;
    Ok(scores(stage, &file)?.0)
}

/// Accuracy and AUC of a model file on the held-out rows.
fn scores(stage: &Stage, model: &str) -> Result<(f64, f64)> {
    let args = ["--json", "evaluate", "study.yaml", "--model", model, "--data", "held-out"];
    let said = stage.json("falaj-agent", &args)?;
    let number = |key: &str| said[key].as_f64().with_context(|| format!("no {key} in {said}"));
    Ok((number("accuracy")?, number("auc")?))
}

/// Sharjah refused to train once its budget was spent, and the study went on.
fn spent(stage: &Stage) -> Result<String> {
    let declined = stage.falaj(&["log", "entries", "--kind", "site.declined"])?;
    let first = declined["items"]
        .as_array()
        .and_then(|d| d.first())
        .context("no site declined: the small budget was not spent")?
        .clone();
    let entry = &first["entry"];
    let told = format!(
        "hospital-3 declined from round {} on ({}); the study went on with the others",
        entry["round"],
        entry["reason"].as_str().unwrap_or("?")
    );
    println!("{told}");
    Ok(told)
}

/// The federated model against training alone and against pooled records, with and without privacy.
fn compare(stage: &Stage, study: &Value, took: f64) -> Result<Vec<Row>> {
    let (accuracy, auc) = scores(stage, "model.safetensors")?;
    let list = |key: &str, show: fn(&Value) -> String| -> String {
        let items = study[key].as_object().into_iter().flatten();
        items.map(|(_, v)| show(v)).collect::<Vec<_>>().join(" / ")
    };
    let bytes = study["bytes_by_site"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, b)| b.as_u64())
        .sum();
    let mut rows = vec![Row {
        model: "federated, private".into(),
        accuracy,
        auc,
        epsilon: list("epsilon_by_site", |v| format!("{:.2}", v.as_f64().unwrap_or(f64::INFINITY))),
        bytes: Some(bytes),
        seconds: took,
    }];
    let mut alone = |model: String, dir: &str, extra: &[&str]| -> Result<()> {
        let started = Instant::now();
        let config = format!("alone/{dir}/agent.toml");
        let out = format!("alone/{dir}/model{}.safetensors", extra.len());
        let mut args = vec!["--json", "train", "study.yaml", "--config", &config, "--out", &out];
        args.extend(extra);
        let said = stage.json("falaj-agent", &args)?;
        let (accuracy, auc) = scores(stage, &out)?;
        let epsilon = said["epsilon"].as_str().unwrap_or("none").to_owned();
        let seconds = started.elapsed().as_secs_f64();
        rows.push(Row { model, accuracy, auc, epsilon, bytes: None, seconds });
        Ok(())
    };
    for (name, _, emirate, _) in HOSPITALS {
        alone(format!("{name} alone, private ({emirate})"), name, &[])?;
    }
    alone("pooled, private".into(), "pooled", &[])?;
    alone("pooled, without privacy".into(), "pooled", &["--no-privacy"])?;
    Ok(rows)
}

/// Exports and verifies the log; then one byte is changed, and the verifier names the entry.
fn audit(stage: &Stage) -> Result<Vec<String>> {
    stage.falaj(&["log", "export", "-o", "bundle.tar"])?;
    let verified = stage.run("falaj-verify", &["bundle.tar", "--trust", "ca/trust.toml"])?;
    let verdict = verified.lines().last().unwrap_or_default().to_owned();
    println!("falaj-verify: {verdict}");
    let mut bytes = fs::read(stage.out.join("bundle.tar"))?;
    let needle = b"\"kind\":\"update.accepted\"";
    let at = bytes
        .windows(needle.len())
        .rposition(|w| w == needle)
        .context("no accepted update in the export")?;
    bytes[at + needle.len() - 3] ^= 1;
    fs::write(stage.out.join("bundle-changed.tar"), bytes)?;
    let out = stage.try_run("falaj-verify", &["bundle-changed.tar"])?;
    let found = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    ensure!(
        out.status.code() == Some(1) && found.contains("entry "),
        "the changed byte was not found: {found}"
    );
    println!("one byte changed, falaj-verify: {found}");
    Ok(vec![verdict, format!("After one byte was changed: {found}")])
}
