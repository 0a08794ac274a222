//! Policies, asked by the command: the shipped ones, and a set that went wrong.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{Federation, binary, repository, run, study_yaml, text, wait_for};
use serde_json::Value;
use std::{fs, path::PathBuf, process::Command};

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

/// A copy of its policies for a federation whose coordinator has not started: the file with the rules.
fn own_policies(federation: &mut Federation) -> Result<PathBuf> {
    let folder = federation.dir().join("policies");
    fs::create_dir(&folder)?;
    for file in ["coordinator.cedar", "coordinator.cedarschema"] {
        fs::copy(federation.policies.join(file), folder.join(file))?;
    }
    let rules = folder.join("coordinator.cedar");
    federation.policies = folder;
    Ok(rules)
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

#[test]
fn changed_policies_come_into_force_by_themselves_and_broken_ones_leave_the_old_in_force()
-> Result<()> {
    let mut federation = Federation::new()?;
    let rules = own_policies(&mut federation)?;
    let _coordinator = federation.start_coordinator()?;
    let shipped = fs::read_to_string(&rules)?;
    let in_force = || -> Result<Value> {
        Ok(federation.falaj_json(&["status"])?["policy_set_sha256"].clone())
    };
    let first = in_force()?;
    let told = |kind: &str, count: usize| {
        wait_for(&format!("{count} entries of {kind}"), || {
            let entries = federation.entries(kind)?;
            Ok((entries.len() >= count).then_some(entries))
        })
    };

    fs::write(&rules, format!("{shipped}\n// Somebody was here.\n"))?;
    let loaded = told("policy.loaded", 1)?;
    let second = in_force()?;
    ensure!(first != second);
    ensure!(loaded[0]["entry"]["policy_set_sha256"] == second, "{loaded:?}");

    fs::write(&rules, shipped.replace("principal.jurisdiction", "principal.juristiction"))?;
    let refused = told("policy.refused", 1)?;
    let refused = &refused[0]["entry"];
    let why = refused["reason"].to_string();
    ensure!(why.contains("juristiction") && refused["policy_set_sha256"] == second, "{why}");

    fs::write(&rules, "forbid (principal, action, resource);")?;
    let why = told("policy.refused", 2)?[1]["entry"]["reason"].to_string();
    ensure!(why.contains("no operator who is known could connect"), "{why}");
    fs::write(&rules, r#"permit (principal, action == Falaj::Action::"connect", resource);"#)?;
    let why = told("policy.refused", 3)?[2]["entry"]["reason"].to_string();
    ensure!(why.contains("read the status or revoke a site"), "{why}");
    ensure!(in_force()? == second);

    fs::write(&rules, &shipped)?;
    told("policy.loaded", 2)?;
    ensure!(in_force()? == first);
    federation.verified()?;
    Ok(())
}

/// A coordinator that starts with policies which lock everybody out is put right by whoever has the run of its machine, and
/// the log says so.
#[test]
fn whoever_is_locked_out_breaks_the_glass_and_does_no_more_than_look_stop_and_revoke() -> Result<()>
{
    let mut federation = Federation::new()?;
    let rules = own_policies(&mut federation)?;
    let shipped = fs::read_to_string(&rules)?;
    fs::write(&rules, "@id(\"OUT\") forbid (principal, action, resource);")?;
    let _coordinator = federation.start_coordinator()?;
    let refused = federation.falaj(&["status"])?;
    ensure!(!refused.status.success() && text(&refused).contains("OUT"), "{}", text(&refused));

    let config = federation.dir().join("coordinator/coordinator.toml").display().to_string();
    let break_glass = |more: &[&str]| {
        run("falaj-coordinator", &[&["break-glass", "--config", &config], more].concat())
    };
    let long = break_glass(&["--reason", "x", "--minutes", "241"]);
    ensure!(long.is_err_and(|e| e.to_string().contains("241")));
    break_glass(&["--reason", "rule OUT locks everybody out"])?;
    // Who cannot get in cannot ask the log, either: getting in shows that it is broken.
    wait_for("an operator to be let in", || {
        Ok(federation.falaj(&["status"])?.status.success().then_some(()))
    })?;
    let broken = federation.entries("glass.broken")?;
    ensure!(broken.len() == 1, "{broken:?}");
    ensure!(broken[0]["entry"]["reason"] == "rule OUT locks everybody out", "{broken:?}");
    let file = federation.dir().join("study.yaml");
    fs::write(&file, study_yaml("meanwhile", 1, 2))?;
    let submitted = federation.falaj(&["study", "submit", &file.display().to_string()])?;
    ensure!(text(&submitted).contains("BRK-003"), "{}", text(&submitted));

    fs::write(&rules, &shipped)?;
    break_glass(&["--mend"])?;
    wait_for("the shipped policies", || {
        let submitted = federation.falaj(&["study", "submit", &file.display().to_string()])?;
        Ok(submitted.status.success().then_some(()))
    })?;
    ensure!(federation.entries("glass.mended")?.len() == 1);
    federation.verified()?;
    Ok(())
}

/// The time of a broken glass ends also when the folder has nothing that could be in force by then; and nobody who was revoked
/// comes back meanwhile.
#[test]
fn the_glass_is_mended_whatever_the_folder_has_by_then() -> Result<()> {
    let mut federation = Federation::new()?;
    let rules = own_policies(&mut federation)?;
    let _coordinator = federation.start_coordinator()?;
    let revoked = "spiffe://falaj.test/ae-on/ae-az/site/hospital-9";
    let revoke = |word: &str| federation.falaj(&["site", word, revoked, "--reason", "tried"]);
    let config = federation.dir().join("coordinator/coordinator.toml").display().to_string();
    let break_glass = |more: &[&str]| {
        run("falaj-coordinator", &[&["break-glass", "--config", &config], more].concat())
    };
    break_glass(&["--reason", "tried"])?;
    wait_for("the glass to be broken", || {
        Ok((federation.entries("glass.broken")?.len() == 1).then_some(()))
    })?;
    let out = revoke("revoke")?;
    ensure!(out.status.success(), "{}", text(&out));
    let out = revoke("reinstate")?;
    ensure!(!out.status.success() && text(&out).contains("the glass is broken"), "{}", text(&out));
    let denied = federation.entries("access.denied")?;
    let last = &denied.last().context("a denial")?["entry"];
    ensure!(last["action"] == "site.revoke" && last["decision"] == "deny", "{last}");

    fs::write(&rules, "permit (")?;
    break_glass(&["--mend"])?;
    wait_for("the glass to be mended", || {
        Ok((federation.entries("glass.mended")?.len() == 1).then_some(()))
    })?;
    ensure!(federation.entries("policy.refused")?.len() == 1);
    let out = revoke("reinstate")?;
    ensure!(out.status.success(), "{}", text(&out));
    federation.submit(&study_yaml("afterwards", 1, 2))?;
    federation.verified()?;
    Ok(())
}

#[test]
fn what_other_policies_would_have_decided_is_shown_from_the_log() -> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let agents = federation.start_hospitals()?;
    federation.submit(&study_yaml("compared", 1, 2))?;
    federation.finishes("compared")?;
    let old = federation.policies.display().to_string();
    let new = federation.dir().join("new");
    fs::create_dir(&new)?;
    let files = ["coordinator.cedar", "coordinator.cedarschema"];
    for file in files {
        fs::copy(federation.policies.join(file), new.join(file))?;
    }
    let new_path = new.display().to_string();
    let asked = ["--json", "policy", "diff", &old, &new_path];
    let same = federation.falaj(&asked)?;
    ensure!(same.status.success(), "{}", text(&same));

    let rules = new.join(files[0]);
    let dubai = "forbid (principal is Falaj::Site, action == Falaj::Action::\"task.get\", resource) when { principal.region == \"ae-du\" };";
    fs::write(&rules, format!("{}\n@id(\"NEW-1\")\n{dubai}", fs::read_to_string(&rules)?))?;
    let other = federation.falaj(&asked)?;
    ensure!(other.status.code() == Some(1), "{}", text(&other));
    let answer: Value = serde_json::from_slice(&other.stdout)?;
    let [change] = &answer["changes"].as_array().context("a list")?[..] else {
        anyhow::bail!("{answer}");
    };
    for (name, value) in [
        ("who", "spiffe://falaj.test/ae-on/ae-du/site/hospital-2"),
        ("action", "task.get"),
        ("study", "compared"),
        ("old", "allow (ACC-101)"),
        ("new", "deny (NEW-1)"),
        ("shard", "falaj.test/audit/2026"),
        ("count", "1"),
    ] {
        ensure!(change[name] == value, "{name}: {change}");
    }
    ensure!(answer["unknown"] == 0 && answer["requests"].as_u64() > Some(10), "{answer}");

    // In the next shard, what is asked about the study is decided by how it is protected, which the shard before says.
    drop(agents);
    coordinator.terminate()?;
    federation.log_origin = "falaj.test/audit/2027".into();
    let _coordinator = federation.start_coordinator()?;
    let file = federation.dir().join("model.safetensors").display().to_string();
    let had = federation.falaj(&["model", "download", "compared", "-o", &file])?;
    ensure!(had.status.success(), "{}", text(&had));
    let models = "forbid (principal is Falaj::Operator, action == Falaj::Action::\"model.read\", resource) when { resource.mechanism == \"dp_sgd\" };";
    fs::write(&rules, format!("{}\n@id(\"NEW-2\")\n{models}", fs::read_to_string(&rules)?))?;
    let other = federation.falaj(&asked)?;
    let answer: Value = serde_json::from_slice(&other.stdout)?;
    let changes = answer["changes"].as_array().context("a list")?;
    let told =
        |change: &Value| ["new", "shard"].map(|name| change[name].as_str().map(str::to_owned));
    let mut told: Vec<_> = changes.iter().map(told).collect();
    told.sort();
    let wanted =
        [["deny (NEW-1)", "falaj.test/audit/2026"], ["deny (NEW-2)", "falaj.test/audit/2027"]];
    ensure!(told == wanted.map(|words| words.map(|word| Some(word.to_owned()))), "{answer}");
    ensure!(answer["unknown"] == 0, "{answer}");
    Ok(())
}
