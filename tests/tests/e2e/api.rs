//! REST against its own description, by Schemathesis: whatever is asked, no server error and no answer that is not described.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::{
    federation::{Federation, study_yaml, text},
    python, skipped,
};
use std::process::Command;

/// What is looked at in each answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
/// Answers that go on for as long as somebody listens.
const ENDLESS: &str = "(/events|/log/tail)$";

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
    // Names that a machine tries, so that some of what it asks for is there.
    for name in ["a", "b"] {
        federation.submit(&study_yaml(name, 2, 2))?;
        federation.finishes(name)?;
    }
    let server = federation.addresses.context("started")?.rest;
    let operator = federation.identity("operator", "omar");
    let here = federation.dir().join("schemathesis");
    std::fs::create_dir_all(&here)?;
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
    // Each request that was read, whatever became of it, is an entry, and the log holds.
    federation.verified()?;
    Ok(())
}
