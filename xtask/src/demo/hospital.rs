//! Hospitals that learn with care: a delivery of records with swapped diagnoses makes a bad round, by which the study goes back to
//! its last good model; put right, it goes on, and ends by patience, before its last round, with its best model.

use super::{
    agent_config, agents, authority, connected, coordinator, data, empty, operator,
    processes::{Running, Stage},
    report::{columns, say, text},
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Instant,
};

const STUDY: &str = "breast-cancer-with-care";
const FILE: &str = include_str!("../../demo/hospital.yaml");
/// What a hospital lets the study have. A patient's number says whose a record is, so that a later delivery of it stays on the side
/// that it was on.
const LETS: &str = "studies = [\"breast-cancer-with-care\"]

[[dataset]]
name = \"wdbc\"
path = \"data\"
identity = [\"patient\"]
epsilon_limit = 8.0
delta = 1e-5

[train]
trainer = \"linear\"
";
/// Name and place.
const HOSPITALS: [(&str, &str); 3] =
    [("hospital-1", "ae-on/ae-az"), ("hospital-2", "ae-on/ae-du"), ("hospital-3", "ae-on/ae-sh")];
/// To whom the bad delivery comes: the one with the most records.
const CARELESS: usize = 0;
/// The figure that the study's gate and its patience look at.
const FIGURE: &str = "accuracy";
/// What is said when chance made it otherwise.
const AGAIN: &str = "its noise is drawn afresh each time; run the demo again";

/// Runs the demo.
pub(super) fn run(stage: &Stage) -> Result<()> {
    let started = Instant::now();
    let records = data::patients()?;
    prepare(stage, &records)?;
    let coordinator = coordinator(stage, "policies", "")?;
    let agents = agents(stage, &HOSPITALS.map(|(name, _)| name))?;
    connected(stage, "operator", HOSPITALS.len())?;
    stage.falaj(&["study", "submit", "study.yaml"])?;
    let bad_from = follow(stage, &records[CARELESS])?;

    let mut report = String::new();
    let ended = stage.falaj(&["study", "show", STUDY])?;
    let judged = judged(stage)?;
    told(stage, &judged, &mut report)?;
    rolled_back(stage, &judged, bad_from, &mut report)?;
    stopped_early(stage, &ended, &mut report)?;
    stage.falaj(&["log", "export", "-o", "bundle.tar"])?;
    agents.into_iter().try_for_each(Running::stop)?;
    coordinator.stop()?;
    let verified = stage.run("falaj-verify", &["bundle.tar", "--trust", "ca/trust.toml"])?;
    let verdict = verified.lines().last().unwrap_or_default().trim();
    say(&mut report, &format!("\nfalaj-verify: {verdict}"));
    stage.write("report.txt", &report)?;
    println!(
        "\nEverything lies in {} (this is report.txt); {:.0} s in all.",
        stage.out.display(),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Certificates, records, configurations, the study.
fn prepare(stage: &Stage, records: &[String; 3]) -> Result<()> {
    empty(stage)?;
    stage.write("study.yaml", FILE)?;
    authority(stage, &HOSPITALS.map(|(_, place)| place))?;
    let issue = |role: &str, name: &str, place: &str| {
        stage.run("falaj-certs", &["issue", "ca", role, name, "--place", place]).map(drop)
    };
    issue("coordinator", "main", "ae-on/ae-az")?;
    issue("operator", "health-authority", "ae-on/ae-az")?;
    operator(stage, "operator", "health-authority")?;
    for ((name, place), records) in HOSPITALS.iter().zip(records) {
        issue("site", name, place)?;
        stage.write(&format!("{name}/data/records.csv"), records)?;
        agent_config(stage, name, name, LETS)?;
    }
    Ok(())
}

/// Follows the study to its end. Once it has a good model, a delivery comes with the diagnoses swapped; once a gate has kept out
/// what was learned from it, the right one comes. Gives the first round that could learn from the bad one.
fn follow(stage: &Stage, records: &str) -> Result<u64> {
    let name = HOSPITALS[CARELESS].0;
    let mut watch = stage
        .program("falaj")
        .args(["--config", "operator/falaj.toml", "--json", "study", "watch", STUDY])
        .stdout(Stdio::piped())
        .spawn()?;
    let events = BufReader::new(watch.stdout.take().context("a pipe")?);
    let (mut bad_from, mut righted) = (None, false);
    for line in events.lines() {
        let event: Value = serde_json::from_str(&line?)?;
        let round = event["round"].as_u64().unwrap_or(0);
        // The second round is the first that is evaluated: from there on there is something to go back to.
        if bad_from.is_none() && event["stage"] == "promoted" && round >= 2 {
            deliver(stage, name, &data::swapped(records)?)?;
            println!("after round {round}, {name} gets records with swapped diagnoses");
            bad_from = Some(round + 1);
        }
        if bad_from.is_some() && !righted && event["stage"] == "rejected" {
            deliver(stage, name, records)?;
            println!("after round {round}, {name} gets the right records again");
            righted = true;
        }
    }
    watch.wait()?;
    let bad_from = bad_from.filter(|_| righted);
    bad_from.with_context(|| {
        format!("no gate kept out what was learned from swapped diagnoses this time; {AGAIN}")
    })
}

/// A delivery takes the place of the one before it, at once and as a whole.
fn deliver(stage: &Stage, name: &str, records: &str) -> Result<()> {
    let coming = format!("{name}/delivery.csv");
    stage.write(&coming, records)?;
    let to = stage.out.join(format!("{name}/data/records.csv"));
    fs::rename(stage.out.join(coming), &to).with_context(|| format!("replacing {}", to.display()))
}

/// What was judged of a round's candidate.
struct Judged {
    /// Where it stands in the log.
    index: u64,
    published: bool,
    /// What patience says of it.
    weighed: String,
}

/// The last verdict on each round that was evaluated, from the log.
fn judged(stage: &Stage) -> Result<BTreeMap<u64, Judged>> {
    let mut judged = BTreeMap::new();
    for (kind, published) in [("model.rejected", false), ("model.published", true)] {
        for item in entries(stage, kind)? {
            let (index, entry) = (item["index"].as_u64().unwrap_or(0), &item["entry"]);
            if entry["evaluated_by"].is_array() {
                let weighed = entry["patience"].as_str().unwrap_or_default().to_owned();
                let round = entry["round"].as_u64().context("a verdict without a round")?;
                judged.insert(round, Judged { index, published, weighed });
            }
        }
    }
    Ok(judged)
}

fn entries(stage: &Stage, kind: &str) -> Result<Vec<Value>> {
    let answer = stage.falaj(&["log", "entries", "--kind", kind])?;
    Ok(answer["items"].as_array().cloned().unwrap_or_default())
}

/// Each evaluated round with its figure.
fn told(stage: &Stage, judged: &BTreeMap<u64, Judged>, report: &mut String) -> Result<()> {
    let words = ["study", "figures", STUDY, "--figure", FIGURE, "--history"];
    let history = stage.falaj(&words)?;
    let mut rows = Vec::new();
    for of in history["items"].as_array().context("no figures")? {
        let round = of["round"].as_u64().unwrap_or(0);
        let mut figures = of["figures"].as_array().into_iter().flatten();
        let figure = figures.find(|f| f["figure"] == FIGURE);
        let Some((figure, verdict)) = figure.zip(judged.get(&round)) else { continue };
        let number = |v: &Value| v.as_f64().map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
        let became = match verdict.weighed.split_once(':') {
            _ if !verdict.published => "kept out, and rolled back".to_owned(),
            Some((how, rest)) => {
                let rounds = rest.rsplit_once("; ").map_or("", |(_, rounds)| rounds);
                format!("published: {how} {rounds}").trim_end().to_owned()
            }
            None => "published".to_owned(),
        };
        let interval = format!("[{}, {}]", number(&figure["low"]), number(&figure["high"]));
        rows.push((round, [round.to_string(), number(&figure["value"]), interval, became]));
    }
    rows.sort_by_key(|(round, _)| *round);
    ensure!(!rows.is_empty(), "{STUDY} was not evaluated: {history}");
    let head = ["round", FIGURE, "interval", ""];
    let rows = rows.into_iter().map(|(_, row)| row);
    say(report, &format!("\n{STUDY}\n{}", columns(head, rows).trim_end()));
    Ok(())
}

/// A gate kept a candidate out, the study went back to its last good model, and went on from there.
fn rolled_back(
    stage: &Stage,
    judged: &BTreeMap<u64, Judged>,
    bad_from: u64,
    report: &mut String,
) -> Result<()> {
    let all = entries(stage, "model.rolled_back")?;
    let by_gate = |item: &&Value| {
        let round = item["entry"]["round"].as_u64().filter(|round| *round >= bad_from);
        round.is_some_and(|round| judged.get(&round).is_some_and(|judged| !judged.published))
    };
    let Some(back) = all.iter().find(by_gate) else {
        bail!("the study was not rolled back by its bad round this time; {AGAIN}");
    };
    let (index, entry) = (back["index"].as_u64().unwrap_or(0), &back["entry"]);
    say(
        report,
        &format!(
            "\nround {} was bad, and the study went back (log entry {index}): {}\n  from {}\n  to   {}",
            entry["round"],
            text(&entry["reason"]),
            text(&entry["from_sha256"]),
            text(&entry["model_sha256"]),
        ),
    );
    let on = judged.iter().find(|(_, judged)| judged.published && judged.index > index);
    let Some((round, good)) = on else {
        bail!("no round after the rollback gave a model that was good enough; {AGAIN}");
    };
    say(report, &format!("  round {round} gave a good one again (log entry {})", good.index));
    Ok(())
}

/// The study ended before its last round, with its best model, which is a version.
fn stopped_early(stage: &Stage, ended: &Value, report: &mut String) -> Result<()> {
    let (patience, rounds) = (&ended["patience"], &ended["rounds"]);
    let best = &patience["best"];
    let early = ended["state"] == "finished"
        && ended["round"].as_u64() < rounds.as_u64()
        && patience["without"] == patience["rounds"];
    ensure!(
        early,
        "the study did not end by patience before its last round this time: {}, round {} of {rounds} ({}); {AGAIN}",
        text(&ended["state"]),
        ended["round"],
        ended["reason"]
    );
    ensure!(
        ended["model_sha256"] == best["model_sha256"],
        "the study ended with another model than its best: {ended}"
    );
    let versions = stage.falaj(&["model", "versions", STUDY])?;
    let version = &versions["items"][0];
    ensure!(version["model_sha256"] == best["model_sha256"], "its version is another: {versions}");
    say(
        report,
        &format!(
            "\nfinished in round {} of {rounds}: {}\n  version {} is {}",
            ended["round"],
            text(&ended["reason"]),
            version["version"],
            text(&best["model_sha256"]),
        ),
    );
    let spent = ended["epsilon_by_site"].as_object().into_iter().flatten();
    let spent = spent.map(|(site, e)| format!("{site} {:.2}", e.as_f64().unwrap_or(f64::INFINITY)));
    let spent = spent.collect::<Vec<_>>().join(", ");
    say(report, &format!("  epsilon, evaluations included: {spent}"));
    Ok(())
}
