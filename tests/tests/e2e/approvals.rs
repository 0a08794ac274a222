//! Two persons: under a set that asks for it, nobody takes the log or a model out by themselves, and what a second person approves is
//! just that.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{Federation, repository, run, study_yaml, text, wait_for};
use serde_json::Value;
use std::fs;

const OMAR: &str = "spiffe://falaj.test/ae-on/ae-az/operator/omar";

fn operator(federation: &Federation, name: &str, group: &str) -> Result<()> {
    let ca = federation.ca().display().to_string();
    let asked = ["issue", &ca, "operator", name, "--place", "ae-on/ae-az", "--group", group];
    run("falaj-certs", &asked)?;
    Ok(())
}

/// A federation under the set for health: Omar has every role, Sara and Lina approve.
fn federation() -> Result<Federation> {
    let mut federation = Federation::new()?;
    federation.policies = repository().join("policies/sets/uae-health").canonicalize()?;
    operator(&federation, "sara", "approver")?;
    operator(&federation, "lina", "site-steward")?;
    operator(&federation, "noor", "auditor")?;
    Ok(federation)
}

/// What somebody approves, as it is answered.
fn approve(federation: &Federation, by: &str, what: &[&str]) -> Result<Value> {
    let out = federation.falaj_as(by, &[&["--json", "approval", "give"], what].concat())?;
    ensure!(out.status.success(), "{by} approves {what:?}: {}", text(&out));
    Ok(serde_json::from_slice(&out.stdout)?)
}

/// Omar exports the log. When he is refused it is for want of another person, as he reads, and as the log says.
fn exports(federation: &Federation) -> Result<bool> {
    let bundle = federation.dir().join("asked.tar");
    let _ = fs::remove_file(&bundle);
    takes(federation, &["log", "export", "-o", &bundle.display().to_string()])
}

fn takes(federation: &Federation, words: &[&str]) -> Result<bool> {
    let denied = || -> Result<Vec<Value>> {
        let of = |e: &Value| e["entry"]["policy_ids"] == serde_json::json!(["APR-001"]);
        Ok(federation.entries("access.denied")?.into_iter().filter(of).collect())
    };
    let before = denied()?.len();
    let out = federation.falaj(words)?;
    if out.status.success() {
        return Ok(true);
    }
    let said = text(&out);
    ensure!(said.contains("APR-001") && said.contains("falaj approval give"), "{said}");
    let denied = denied()?;
    ensure!(denied.len() == before + 1, "the refusal is not in the log: {denied:?}");
    let last = denied.last().context("a refusal")?;
    ensure!(last["entry"].get("approvals").is_none(), "{last}");
    Ok(false)
}

/// The newest export that was allowed, and the approvals that it counted.
fn counted(federation: &Federation) -> Result<Vec<String>> {
    let all = federation.entries("log.exported")?;
    let names = &all.last().context("an export")?["entry"]["approvals"];
    Ok(serde_json::from_value(names.clone())?)
}

fn name(approval: &Value) -> Result<String> {
    Ok(approval["approval"].as_str().context("a name")?.to_owned())
}

#[test]
fn an_export_waits_for_another_person_who_approved_just_this() -> Result<()> {
    let mut federation = federation()?;
    let _coordinator = federation.start_coordinator()?;
    ensure!(!exports(&federation)?, "alone");

    let own = federation.falaj(&["approval", "give", "log.export", "--for", OMAR])?;
    ensure!(!own.status.success() && text(&own).contains("another person"), "{}", text(&own));
    let auditor = ["approval", "give", "log.export", "--for", OMAR];
    let auditor = federation.falaj_as("noor", &auditor)?;
    ensure!(text(&auditor).contains("denied"), "{}", text(&auditor));
    let abroad = ["approval", "give", "log.export", "--for", OMAR, "--to-place", "gb/gb-lnd"];
    let abroad = federation.falaj_as("sara", &abroad)?;
    ensure!(text(&abroad).contains("RES-004"), "{}", text(&abroad));
    let noor = "spiffe://falaj.test/ae-on/ae-az/operator/noor";
    approve(&federation, "sara", &["log.export", "--for", noor])?;
    approve(&federation, "sara", &["log.export", "--for", OMAR, "--to-place", "ae-on/ae-du"])?;
    ensure!(!exports(&federation)?, "for others, and to elsewhere");

    // Whoever says so twice is one person.
    approve(&federation, "sara", &["log.export", "--for", OMAR])?;
    let second = approve(&federation, "sara", &["log.export", "--for", OMAR])?;
    ensure!(exports(&federation)?, "approved");
    ensure!(counted(&federation)? == [name(&second)?], "{:?}", counted(&federation)?);
    let third = approve(&federation, "lina", &["log.export", "--for", OMAR])?;
    ensure!(exports(&federation)?);
    let mut both = [name(&second)?, name(&third)?];
    let mut found = counted(&federation)?;
    both.sort();
    found.sort();
    ensure!(found == both, "{found:?}");

    // The log never names them but by pseudonym.
    for given in federation.entries("approval.given")? {
        let entry = given["entry"].to_string();
        ensure!(!entry.contains("operator/"), "{entry}");
    }
    federation.verified()?;

    // A model is another thing, and one study's is not another's.
    for study in ["heart", "lung"] {
        federation.submit(&study_yaml(study, 1, 2))?;
    }
    let file = federation.dir().join("model").display().to_string();
    let download = |study| takes(&federation, &["model", "download", study, "-o", &file]);
    ensure!(!download("heart")?, "alone");
    approve(&federation, "sara", &["model.read", "--study", "heart", "--for", OMAR])?;
    ensure!(download("heart")? && !download("lung")?);

    let withdrawn = name(&second)?;
    let withdraw = |by| federation.falaj_as(by, &["approval", "withdraw", &withdrawn]);
    ensure!(text(&withdraw("noor")?).contains("denied"));
    ensure!(withdraw("sara")?.status.success());
    ensure!(text(&withdraw("sara")?).contains("no approval of this name"));
    ensure!(exports(&federation)? && counted(&federation)? == [name(&third)?]);
    federation.verified()?;
    Ok(())
}

#[test]
fn whoever_is_not_heard_any_more_does_not_count_and_a_restart_changes_nothing() -> Result<()> {
    let mut federation = federation()?;
    let mut coordinator = federation.start_coordinator()?;
    let listed = |federation: &Federation| -> Result<Vec<Value>> {
        let page = federation.falaj_json(&["approval", "list"])?;
        Ok(page["items"].as_array().cloned().unwrap_or_default())
    };
    approve(&federation, "sara", &["log.export", "--for", OMAR, "--ttl", "1s"])?;
    wait_for("the approval to be over", || Ok(listed(&federation)?.is_empty().then_some(())))?;
    ensure!(!exports(&federation)?, "it is over");

    let given = approve(&federation, "sara", &["log.export", "--for", OMAR, "--ttl", "1h"])?;
    let withdrawn = approve(&federation, "lina", &["log.export", "--for", OMAR])?;
    let out = federation.falaj_as("lina", &["approval", "withdraw", &name(&withdrawn)?])?;
    ensure!(out.status.success(), "{}", text(&out));
    coordinator.terminate()?;
    let _coordinator = federation.start_coordinator()?;
    ensure!(listed(&federation)? == [given.clone()], "{:?}", listed(&federation)?);
    ensure!(given["for"] == OMAR && given["place"] == "ae-on/ae-az", "{given}");
    ensure!(exports(&federation)? && counted(&federation)? == [name(&given)?]);

    // By the roles that she comes with: it is her certificate that says less now.
    fs::remove_dir_all(federation.identity("operator", "sara"))?;
    operator(&federation, "sara", "data-scientist")?;
    ensure!(federation.falaj_as("sara", &["status"])?.status.success());
    ensure!(!exports(&federation)?, "she is no approver any more");
    fs::remove_dir_all(federation.identity("operator", "sara"))?;
    operator(&federation, "sara", "approver")?;
    ensure!(federation.falaj_as("sara", &["status"])?.status.success());
    ensure!(exports(&federation)?, "she is one again");

    let sara = "spiffe://falaj.test/ae-on/ae-az/operator/sara";
    let revoked = federation.falaj(&["site", "revoke", sara, "--reason", "left"])?;
    ensure!(revoked.status.success(), "{}", text(&revoked));
    ensure!(!exports(&federation)?, "she is revoked");

    approve(&federation, "lina", &["log.export", "--for", OMAR])?;
    federation.verified()?;
    Ok(())
}
