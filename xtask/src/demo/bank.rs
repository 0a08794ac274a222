//! Banks: five of them in three emirates, each with card holders of another age, learn who is likely to default. Twice: one model
//! passes every gate, and two people let it into production; the other, which also sees sex and limit, is unfair and kept out.

use super::{
    agent_config, agents, authority, connected, coordinator, data, empty, operator,
    processes::{Running, Stage},
    report::{columns, say, text},
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::time::Instant;

const STUDY: &str = include_str!("../../demo/bank.yaml");
const BY_RECORD: &str = "default-by-record";
const BY_PERSON: &str = "default-by-person";
/// What the second study sees beside what the first one does.
const PERSON: &str = "    - { name: SEX, values: [female, male] }
    - { name: LIMIT_BAL, min: 0.0, max: 300000.0 }
";
/// Both studies, at epsilon 4 each, are paid from one ledger.
const LETS: &str = "studies = [\"default-by-record\", \"default-by-person\"]

[[dataset]]
name = \"cards\"
path = \"data\"
identity = [\"ID\"]
epsilon_limit = 8.0
delta = 1e-5

[train]
trainer = \"linear\"
";
/// Name and place, from the youngest card holders to the oldest.
const BANKS: [(&str, &str); 5] = [
    ("bank-1", "ae-on/ae-az"),
    ("bank-2", "ae-on/ae-az"),
    ("bank-3", "ae-on/ae-du"),
    ("bank-4", "ae-on/ae-du"),
    ("bank-5", "ae-on/ae-sh"),
];
/// Whom `uae-finance` keeps apart: lina learns, omar operates, sara and khalid approve, noor audits.
const PEOPLE: [(&str, &str); 5] = [
    ("lina", "data-scientist"),
    ("omar", "operator"),
    ("sara", "approver"),
    ("khalid", "approver"),
    ("noor", "auditor"),
];
const FAIRNESS: &str = "equal_opportunity_difference by SEX";

/// Runs the demo.
pub(super) fn run(stage: &Stage) -> Result<()> {
    let started = Instant::now();
    prepare(stage)?;
    let coordinator = coordinator(stage, "policies/sets/uae-finance", "\n[roles]\ndefault = []\n")?;
    let agents = agents(stage, &BANKS.map(|(name, _)| name))?;
    connected(stage, "lina", BANKS.len())?;

    let mut report = String::new();
    let record = learn(stage, BY_RECORD, "study.yaml", &mut report)?;
    let person = learn(stage, BY_PERSON, "study-by-person.yaml", &mut report)?;
    ensure!(
        record["state"] == "finished",
        "{BY_RECORD} did not pass this time ({}): its noise is drawn afresh each time; run the demo again",
        record["reason"]
    );
    kept_out(stage, &person, &mut report)?;
    promoted(stage, &mut report)?;
    export(stage)?;
    agents.into_iter().try_for_each(Running::stop)?;
    coordinator.stop()?;
    spent(stage, &record, &person, &mut report)?;
    verified(stage, &mut report)?;
    stage.write("report.txt", &report)?;
    println!(
        "\nEverything lies in {} (this is report.txt); {:.0} s in all.",
        stage.out.display(),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Certificates, records, configurations, both studies.
fn prepare(stage: &Stage) -> Result<()> {
    const FEATURES: &str = "  features:\n";
    empty(stage)?;
    ensure!(
        STUDY.contains(FEATURES) && STUDY.contains(BY_RECORD),
        "xtask/demo/bank.yaml has no features, or another name, so that no second study can be made of it"
    );
    let person = STUDY
        .replacen(&format!("study: {BY_RECORD}"), &format!("study: {BY_PERSON}"), 1)
        .replacen(FEATURES, &format!("{FEATURES}{PERSON}"), 1);
    stage.write("study.yaml", STUDY)?;
    stage.write("study-by-person.yaml", &person)?;
    authority(stage, &["ae-on/ae-az", "ae-on/ae-du", "ae-on/ae-sh"])?;
    let issue = |role: &str, name: &str, place: &str, group: &[&str]| {
        let words = ["issue", "ca", role, name, "--place", place];
        stage.run("falaj-certs", &[&words, group].concat()).map(drop)
    };
    issue("coordinator", "main", "ae-on/ae-az", &[])?;
    for (name, role) in PEOPLE {
        issue("operator", name, "ae-on/ae-az", &["--group", role])?;
        operator(stage, name, name)?;
    }
    for ((name, place), records) in BANKS.iter().zip(data::by_age()?) {
        issue("site", name, place, &[])?;
        stage.write(&format!("{name}/data/cards.csv"), &records)?;
        agent_config(stage, name, name, LETS)?;
    }
    Ok(())
}

/// Runs a study to its end, and tells what its gates saw.
fn learn(stage: &Stage, study: &str, file: &str, report: &mut String) -> Result<Value> {
    stage.falaj_as("lina", &["study", "submit", file])?;
    // It exits with 1 when the study fails, which one of them is to do: what it came to is asked below.
    stage.try_run("falaj", &["--config", "lina/falaj.toml", "--json", "study", "watch", study])?;
    let ended = stage.falaj_as("lina", &["study", "show", study])?;
    let of = stage.falaj_as("lina", &["study", "figures", study])?;
    let figures = of["figures"].as_array().context("no figures")?;
    let number = |v: &Value| v.as_f64().map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
    let mut rows = Vec::new();
    for figure in figures {
        for gate in figure["gates"].as_array().into_iter().flatten() {
            let found = match figure["missing"].as_str() {
                Some(why) => why.to_owned(),
                None => format!("[{}, {}]", number(&figure["low"]), number(&figure["high"])),
            };
            rows.push([
                text(&figure["figure"]).to_owned(),
                number(&figure["value"]),
                found,
                text(&gate["bound"]).to_owned(),
                if gate["pass"] == true { "passes" } else { "FAILS" }.to_owned(),
            ]);
        }
    }
    ensure!(!rows.is_empty(), "{study} was not evaluated: {ended}");
    let confidence = 100.0 * of["confidence"].as_f64().unwrap_or(f64::NAN);
    say(
        report,
        &format!(
            "\n{study}: {} (round {}, about {} records held out, {confidence:.0} % intervals)\n{}",
            text(&ended["state"]),
            of["round"],
            of["records"],
            columns(["gate on", "figure", "interval", "bound", ""], rows.into_iter()).trim_end(),
        ),
    );
    Ok(ended)
}

/// The second study has failed by its fairness, the log has it, and there is no version of it to promote.
fn kept_out(stage: &Stage, ended: &Value, report: &mut String) -> Result<()> {
    let rejected = stage.falaj_as("omar", &["log", "entries", "--kind", "model.rejected"])?;
    let items = rejected["items"].as_array().into_iter().flatten();
    let entry = items.into_iter().find(|e| e["entry"]["study"] == BY_PERSON);
    let gates = entry.map(|e| e["entry"]["gates"].as_array().cloned().unwrap_or_default());
    let unfair = |line: &Value| text(line).starts_with(&format!("fail: {FAIRNESS}"));
    let line = gates.iter().flatten().find(|line| unfair(line));
    let (Some(entry), Some(line)) = (entry, line) else {
        bail!(
            "{BY_PERSON} did not fail by {FAIRNESS} this time ({}): its noise is drawn afresh each time; run the demo again",
            ended["reason"]
        );
    };
    let versions = stage.falaj_as("omar", &["model", "versions", BY_PERSON])?;
    ensure!(versions["items"].as_array().is_some_and(Vec::is_empty), "{versions}");
    let words = ["model", "promote", BY_PERSON, "1", "--to", "staging"];
    let told = refused(stage, "omar", &words)?;
    say(
        report,
        &format!(
            "\n{BY_PERSON} is kept out (log entry {}): {}\n  it has no version; omar tries to promote one: {told}",
            entry["index"],
            text(line),
        ),
    );
    Ok(())
}

/// What a command that has to fail says.
fn refused(stage: &Stage, who: &str, words: &[&str]) -> Result<String> {
    let config = format!("{who}/falaj.toml");
    let out = stage.try_run("falaj", &[&["--config", &config], words].concat())?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(!out.status.success(), "{who} was not refused: falaj {}", words.join(" "));
    Ok(said.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn id(name: &str) -> String {
    format!("spiffe://falaj.demo/ae-on/ae-az/operator/{name}")
}

/// Into production, once two other people have approved just that.
fn promoted(stage: &Stage, report: &mut String) -> Result<()> {
    stage.falaj_as("omar", &["model", "promote", BY_RECORD, "1", "--to", "staging"])?;
    let production = ["model", "promote", BY_RECORD, "1", "--to", "production"];
    let omar = id("omar");
    let approve = ["approval", "give", "version.promote", "--study", BY_RECORD, "--version", "1"];
    let approve = [&approve[..], &["--stage", "production", "--for", &omar]].concat();
    let alone = refused(stage, "omar", &production)?;
    stage.falaj_as("sara", &approve)?;
    let by_one = refused(stage, "omar", &production)?;
    for said in [&alone, &by_one] {
        ensure!(said.contains("APR-002"), "omar was refused for another reason: {said}");
    }
    stage.falaj_as("khalid", &approve)?;
    let champion = stage.falaj_as("omar", &production)?;
    ensure!(champion["stage"] == "production", "{champion}");
    let lineage = stage.falaj_as("omar", &["lineage", "--study", BY_RECORD, "--version", "1"])?;
    let approvals: Vec<&Value> = lineage["approvals"].as_array().into_iter().flatten().collect();
    ensure!(approvals.len() == 2, "two people have approved it: {lineage}");
    say(
        report,
        &format!(
            "\n{BY_RECORD} version 1 goes into production, by omar\n  with no approval he is refused: {alone}\n  with one as well; with two it is the champion. Approved by"
        ),
    );
    for approval in approvals {
        let (by, index) = (text(&approval["by"]), &approval["index"]);
        say(report, &format!("    {by} (log entry {index})"));
    }
    let config = ["--config", "omar/falaj.toml", "model"];
    for words in [
        ["provenance", BY_RECORD, "champion", "-o", "provenance.dsse.json"],
        ["card", BY_RECORD, "champion", "-o", "model-card.md"],
    ] {
        stage.run("falaj", &[&config[..], &words].concat())?;
    }
    Ok(())
}

/// The auditor takes the log out, as an approver has approved.
fn export(stage: &Stage) -> Result<()> {
    stage.falaj_as("sara", &["approval", "give", "log.export", "--for", &id("noor")])?;
    stage.falaj_as("noor", &["log", "export", "-o", "bundle.tar"])?;
    Ok(())
}

/// What each study has cost at each bank, its evaluation included, and what the ledger has over both.
fn spent(stage: &Stage, record: &Value, person: &Value, report: &mut String) -> Result<()> {
    let mut rows = Vec::new();
    for (name, place) in BANKS {
        let config = format!("{name}/agent.toml");
        let budget =
            stage.json("falaj-agent", &["--json", "budget", "show", "--config", &config])?;
        let ledger = format!("{name}.jsonl");
        stage.run("falaj-agent", &["budget", "export", "--config", &config, "-o", &ledger])?;
        let each = [record, person].map(|study| study["epsilon_by_site"][name].as_f64());
        for epsilon in each {
            let epsilon = epsilon.with_context(|| format!("{name} states no epsilon"))?;
            ensure!(epsilon <= 4.0, "{name} has spent {epsilon} on one study");
        }
        let [record, person] = each.map(|e| format!("{:.4}", e.unwrap_or(f64::INFINITY)));
        let both = plain(&budget["datasets"][0]["epsilon"]);
        rows.push([name.to_owned(), place.to_owned(), record, person, both]);
    }
    let head = ["epsilon, evaluation included", "place", BY_RECORD, BY_PERSON, "ledger, both"];
    say(report, &format!("\n{}", columns(head, rows.into_iter()).trim_end()));
    Ok(())
}

/// The log and the five ledgers hold, and what is signed of the champion follows from them.
fn verified(stage: &Stage, report: &mut String) -> Result<()> {
    let ledgers = BANKS.map(|(name, _)| format!("{name}.jsonl"));
    let mut words = vec!["bundle.tar", "--trust", "ca/trust.toml"];
    words.extend(["--provenance", "provenance.dsse.json"]);
    words.extend(ledgers.iter().flat_map(|ledger| ["--ledger", ledger]));
    let said = stage.run("falaj-verify", &words)?;
    let champion =
        said.lines().find(|line| line.contains(&format!("{BY_RECORD} 1, now production")));
    let champion = champion.with_context(|| format!("no word on the champion: {said}"))?;
    let verdict = said.lines().last().unwrap_or_default();
    say(
        report,
        &format!("\nfalaj-verify {}\n  {}\n  {}", words.join(" "), champion.trim(), verdict.trim()),
    );
    Ok(())
}

/// A text or a number, as it stands.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
