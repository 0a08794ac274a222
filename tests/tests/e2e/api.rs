//! REST against its own description, by Schemathesis: whatever is asked, no server error and no answer that is not described.

use crate::evaluation::evaluated;
use anyhow::{Context as _, Result, ensure};
use falaj_tests::{
    federation::{Federation, text},
    python, skipped,
};
use std::{fmt::Write as _, fs, path::Path, process::Command};

/// What is looked at in each answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
/// Answers that go on for as long as somebody listens.
const ENDLESS: &str = "(/events|/log/tail)$";
/// Below which every document is there, for whoever asks with names that are.
const STUDIES: &str = "GET /api/v1/studies/";

/// Names and numbers of what is there, by where in a request they belong. Four requests in five take one of them, and the others
/// whatever a machine thinks of.
fn dictionaries(approval: &str, hold: &str, log: &str) -> Result<String> {
    let texts = |values: &[&str]| format!("{values:?}");
    let mut config = String::new();
    let mut parameters = "[parameters]\n".to_owned();
    for (at, values) in [
        ("path.id", texts(&["a", "b"])),
        ("path.round", texts(&["1", "2", "latest"])),
        // Some routes take an alias in its place, and others a number alone.
        ("path.version", "[1, \"1\"]".to_owned()),
        ("path.alias", texts(&["champion", "challenger"])),
        ("path.index", "[0, 1, 2]".to_owned()),
        ("path.approval", texts(&[approval])),
        ("path.hold", texts(&[hold])),
        ("query.round", "[1, 2]".to_owned()),
        ("query.place", texts(&["ae-on/ae-az"])),
        ("query.shard", texts(&[log])),
        ("query.object", texts(&["a", "b"])),
        ("query.study", texts(&["a", "b"])),
        ("body.round", "[1, 2]".to_owned()),
        ("body.stage", texts(&["staging", "production", "archived"])),
        ("body.study", texts(&["a", "b"])),
    ] {
        let name = at.replace('.', "_");
        writeln!(config, "[dictionaries.{name}]\nvalues = {values}\n")?;
        writeln!(parameters, "{at:?} = {{ dictionary = {name:?}, probability = 0.8 }}")?;
    }
    Ok(config + &parameters)
}

/// A federation whose studies have models, figures and versions; there are an approval and a hold, too.
fn seeded(federation: &Federation, here: &Path) -> Result<()> {
    // A machine tries such names by itself, too.
    for name in ["a", "b"] {
        federation.submit(&evaluated(name, 2, 1, "  - { metric: roc_auc, at_least: 0.01 }\n"))?;
        federation.finishes(name)?;
    }
    let sara = "spiffe://falaj.test/ae-on/ae-az/operator/sara";
    let words = ["approval", "give", "log.export", "--for", sara];
    let approval = federation.falaj_json(&words)?;
    let hold = federation.falaj_json(&["hold", "place", "--study", "a", "--article", "Order 1"])?;
    let named = |name: &serde_json::Value| name.as_str().map(str::to_owned).context("a name");
    let (approval, hold) = (named(&approval["approval"])?, named(&hold["hold"])?);
    let config = dictionaries(&approval, &hold, &federation.log_origin)?;
    Ok(fs::write(here.join("schemathesis.toml"), config)?)
}

#[test]
fn whatever_is_asked_no_server_error_and_no_answer_that_is_not_described() -> Result<()> {
    let python = match python::with_packages("api") {
        Ok(python) => python,
        Err(e) => {
            skipped(&format!("nobody tries the API (Python 3 and pip are needed): {e:#}"));
            return Ok(());
        }
    };
    let mut federation = Federation::new()?;
    federation.coordinator_extra = format!(
        "[enrolment]\naddress = \"127.0.0.1:0\"\nauthority = \"{}\"\n",
        federation.ca().display()
    );
    let _coordinator = federation.start_coordinator()?;
    let _agents = federation.start_hospitals()?;
    let here = federation.dir().join("schemathesis");
    fs::create_dir_all(&here)?;
    seeded(&federation, &here)?;
    let server = federation.addresses.context("started")?.rest;
    let operator = federation.identity("operator", "omar");
    let out = Command::new(python)
        .current_dir(&here)
        .args(["-m", "schemathesis.cli", "run"])
        .arg(format!("https://{server}/openapi.json"))
        .arg("--request-cert")
        .arg(operator.join("cert.pem"))
        .arg("--request-cert-key")
        .arg(operator.join("key.pem"))
        // The coordinator's certificate names it by a URI, as no browser would have it.
        .args(["--tls-verify", "false", "--checks", CHECKS, "--exclude-path-regex", ENDLESS])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1"])
        .args(["--continue-on-failure", "--no-shrink", "--no-color"])
        .args(["--generation-database", "none", "--suppress-health-check", "all"])
        .output()?;
    let told = text(&out);
    ensure!(out.status.success(), "{told}");
    let selected = told.split_once(" selected").and_then(|(before, _)| before.rsplit(' ').next());
    let passed = format!("✅ {} passed", selected.context("how many were tried")?);
    ensure!(told.matches(&passed).count() == 2, "{told}");
    // Where a document of a study is asked for, one is answered with, at least once.
    let absent = told.split_once("Missing test data").map(|(_, rest)| rest);
    let absent =
        absent.and_then(|rest| rest.split_once("= SUMMARY =")).map_or("", |(list, _)| list);
    // Other lists, of answers whose type is not looked into, have their status in brackets.
    let listed = |line: &&str| {
        line.trim_start().trim_start_matches("- ").starts_with(STUDIES) && !line.ends_with(')')
    };
    let absent: Vec<_> = absent.lines().filter(listed).collect();
    ensure!(absent.is_empty(), "nobody was ever given {absent:?}: {told}");
    // Each request that was read, whatever became of it, is an entry, and the log holds.
    federation.verified()?;
    Ok(())
}
