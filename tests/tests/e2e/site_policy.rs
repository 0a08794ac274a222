//! The site's own policy: final at the site, whatever the coordinator asks for.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{
    Federation, SiteSpec, binary, repository, run, study_yaml, text, wisconsin,
};
use serde_json::Value;
use std::{fs, process::Command};

/// A study of one round at one site, which fails when that site declines.
fn yaml(name: &str) -> String {
    let governed = "governance: { legal_basis: \"protocol FD-1\" }\n";
    let yaml = study_yaml(name, 1, 1)
        .replace("min_sites: 1", "sites: [hospital-1], min_sites: 1")
        .replace("grace_s: 2", "grace_s: 2, retries: 0");
    format!("{yaml}\n{governed}")
}

#[test]
fn a_study_runs_only_after_a_steward_has_approved_its_very_file() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let site = SiteSpec::new("hospital-1", "ae-on/ae-az");
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?;
    let folder = config.parent().context("a folder")?;
    let policy = folder.join("site.cedar");
    fs::copy(repository().join("policies/site.cedar"), &policy)?;
    let config = config.display().to_string();
    let mut agent = federation.start_agent(&site)?;

    // Nobody has approved it: declined with the rule, kept at the site, and the records were never opened.
    federation.submit(&yaml("unapproved"))?;
    federation.study_reaches("unapproved", &["failed"])?;
    let declined = federation.entries("site.declined")?;
    ensure!(declined.len() == 1 && declined[0].to_string().contains("SITE-001"), "{declined:?}");
    let kept: Value =
        serde_json::from_str(&run("falaj-agent", &["refusals", "--config", &config, "--json"])?)?;
    ensure!(kept["refusals"][0]["study"] == "unapproved", "{kept}");
    let budget = run("falaj-agent", &["budget", "show", "--config", &config])?;
    ensure!(budget.contains("epsilon 0.0000"), "{budget}");

    // Explained before, approved, explained after.
    let study = federation.dir().join("approved.yaml");
    fs::write(&study, yaml("approved"))?;
    let study = study.display().to_string();
    let explain = || -> Result<(Option<i32>, Value)> {
        let words = ["explain", &study, "--config", &config, "--json"];
        let out = Command::new(binary("falaj-agent")).args(words).output()?;
        let told = serde_json::from_slice(&out.stdout).with_context(|| text(&out))?;
        Ok((out.status.code(), told))
    };
    let (code, told) = explain()?;
    ensure!(code == Some(1) && told["rules_that_decided"] == "SITE-001", "{told}");
    ensure!(told["rows_found"] == "not looked at", "{told}");
    run("falaj-agent", &["approve", &study, "--steward", "dpo", "--config", &config])?;
    let (code, told) = explain()?;
    ensure!(code == Some(0) && told["rules_that_decided"] == "SITE-100", "{told}");
    ensure!(told["approved_by"] == "dpo", "{told}");
    federation.submit(&yaml("approved"))?;
    federation.finishes("approved")?;

    // Revoked, it does not run; a broken file changes nothing; a changed one is in force at once.
    run("falaj-agent", &["approvals", "revoke", &study, "--steward", "dpo", "--config", &config])?;
    ensure!(explain()?.0 == Some(1), "revoked, and it would still run");
    let shipped = fs::read_to_string(&policy)?;
    fs::write(&policy, "permit (principal")?;
    federation.submit(&yaml("while-broken"))?;
    federation.study_reaches("while-broken", &["failed"])?;
    agent.says("what was in force before stays in force")?;
    let other = federation.dir().join("other.yaml");
    fs::write(&other, yaml("other"))?;
    let other = other.display().to_string();
    run("falaj-agent", &["approve", &other, "--steward", "dpo", "--config", &config])
        .context("approving needs no policy")?;
    let closed = "@id(\"CLOSED\") @reason(\"the data room is closed\") forbid (principal, action, resource);";
    fs::write(&policy, format!("{shipped}\n{closed}\n"))?;
    federation.submit(&yaml("other"))?;
    federation.study_reaches("other", &["failed"])?;
    let declined = federation.entries("site.declined")?;
    let reasons: Vec<String> = declined.iter().map(ToString::to_string).collect();
    ensure!(reasons.len() == 3 && reasons[1].contains("SITE-001"), "{reasons:?}");
    ensure!(reasons[2].contains("CLOSED: the data room is closed"), "{reasons:?}");
    // Where it is gone, a program that starts does not take that for a site without rules.
    fs::remove_file(&policy)?;
    let words = ["explain", &other, "--config", &config];
    let out = Command::new(binary("falaj-agent")).args(words).output()?;
    ensure!(!out.status.success() && text(&out).contains("site.cedar is gone"), "{}", text(&out));
    federation.verified()?;
    Ok(())
}

/// Where a coordinator stores and computes is its operator's word: its own policy decides over it first, and then each site.
#[test]
fn a_site_refuses_a_coordinator_that_says_it_stores_elsewhere() -> Result<()> {
    let mut federation = Federation::new()?;
    federation.coordinator_extra = "[declared]\nstorage = \"ie/ie-dub\"\n".to_owned();
    let failed = federation.start_coordinator().err().context("it started")?;
    let told = format!("{failed:#}");
    ensure!(told.contains("`declared.storage`") && told.contains("RES-014"), "{told}");
    federation.coordinator_extra =
        "[declared]\nstorage = \"ae-on/ae-du\"\ncompute = \"ae-on/ae-az\"\n".to_owned();
    let _coordinator = federation.start_coordinator()?;
    let allowed = federation.entries("endpoint.allowed")?;
    let told: Vec<_> = allowed
        .iter()
        .map(|e| (e["entry"]["endpoint"].as_str(), e["entry"]["asked"]["place"].as_str()))
        .collect();
    let (storage, compute) =
        ((Some("storage"), Some("ae-on/ae-du")), (Some("compute"), Some("ae-on/ae-az")));
    ensure!(told == [storage, compute], "{allowed:?}");
    let site = SiteSpec::new("hospital-1", "ae-on/ae-az");
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?;
    let policy = config.with_file_name("site.cedar");
    let said = |place: &str| {
        format!(
            "permit (principal, action, resource);\n@id(\"NEAR\") @reason(\"it does not store here\") forbid (principal, action, resource)\nunless {{ principal has storage && principal.storage.region == \"{place}\" && principal has compute && principal.compute.region == \"ae-az\" }};\n"
        )
    };
    fs::write(&policy, said("ae-az"))?;
    let _agent = federation.start_agent(&site)?;
    federation.submit(&yaml("far"))?;
    federation.study_reaches("far", &["failed"])?;
    let declined = federation.entries("site.declined")?;
    ensure!(declined.len() == 1 && declined[0].to_string().contains("NEAR"), "{declined:?}");
    fs::write(&policy, said("ae-du"))?;
    federation.submit(&yaml("near"))?;
    federation.finishes("near")?;
    federation.verified()?;
    Ok(())
}

#[test]
fn an_agent_whose_policy_is_broken_does_not_start() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let site = SiteSpec::new("hospital-1", "ae-on/ae-az");
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?;
    fs::write(config.with_file_name("site.cedar"), "permit (principal")?;
    let config = config.display().to_string();
    let out = Command::new(binary("falaj-agent")).args(["run", "--config", &config]).output()?;
    ensure!(!out.status.success() && text(&out).contains("site.cedar"), "{}", text(&out));
    Ok(())
}
