//! Policies, asked by the command: the shipped ones, and a set that went wrong.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{binary, repository, run, text};
use std::{fs, process::Command};

#[test]
fn the_command_tries_the_shipped_cases_and_explains_a_refusal_by_its_rule() -> Result<()> {
    let folder = repository().join("policies").display().to_string();
    let tried = run("falaj", &["policy", "test", &folder])?;
    ensure!(tried.contains("0 decided otherwise"), "{tried}");

    let london = "spiffe://health.example/gb/gb-lnd/site/london";
    let asked = ["policy", "explain", &folder, "--who", london, "--action", "connect"];
    let out = Command::new(binary("falaj")).args(asked).output()?;
    let said = text(&out);
    ensure!(out.status.code() == Some(1), "{said}");
    for words in ["RES-001", "Article 13", "principal.jurisdiction = \"gb\""] {
        ensure!(said.contains(words), "no `{words}` in {said}");
    }
    Ok(())
}

#[test]
fn a_rule_that_was_loosened_fails_its_cases_and_a_misspelt_one_its_schema() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for file in ["coordinator.cedar", "coordinator.cedarschema", "coordinator_test.toml"] {
        fs::copy(repository().join("policies").join(file), folder.path().join(file))?;
    }
    let rules = folder.path().join("coordinator.cedar");
    let path = folder.path().to_str().context("a path in UTF-8")?;
    let shipped = fs::read_to_string(&rules)?;

    fs::write(&rules, shipped.replace(r#"["ae-on"]"#, r#"["ae-on", "gb"]"#))?;
    let failed = run("falaj", &["policy", "test", path]).expect_err("a case fails").to_string();
    ensure!(failed.contains("a site in London is refused: allowed by ACC-100"), "{failed}");

    fs::write(&rules, shipped.replace("principal.jurisdiction", "principal.juristiction"))?;
    let failed = run("falaj", &["policy", "check", path]).expect_err("refused").to_string();
    ensure!(failed.contains("coordinator.cedar") && failed.contains("juristiction"), "{failed}");
    Ok(())
}
