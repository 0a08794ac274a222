//! Candidates are evaluated at the sites, on records that are never trained on, and judged by gates.

use crate::masked::masked;
use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{
    Federation, Process, SiteSpec, repository, run, study_yaml, text, wait_for, wisconsin,
};
use serde_json::Value;
use std::{fs, path::PathBuf};

/// A study of two hospitals whose records are held out by threes.
pub(crate) fn evaluated(name: &str, rounds: u32, every: u32, gates: &str) -> String {
    let yaml = study_yaml(name, rounds, 2);
    format!(
        "{yaml}evaluation:\n  holdout: 0.3\n  every: {every}\n  epsilon: 8.0\n  bins: 10\n  group_min: 20\n  groups: [{{ column: mean_radius, edges: [14.0] }}]\n  robustness: [{{ kind: fgsm, epsilon: 0.05 }}, {{ kind: missing, rate: 0.1 }}]\n  drift: [{{ column: mean_radius, edges: [12.0, 15.0], reference: [0.33, 0.37, 0.3] }}]\ngates:\n{gates}"
    )
}

/// What an entry lists.
pub(crate) fn lines(entry: &Value, member: &str) -> Vec<String> {
    let lines = entry["entry"][member].as_array().cloned().unwrap_or_default();
    lines.iter().filter_map(|l| l.as_str().map(str::to_owned)).collect()
}

#[test]
fn a_model_that_is_good_enough_is_published_with_every_gates_figure() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let _agents = federation.start_hospitals()?;
    let gates = "  - { metric: roc_auc, at_least: 0.55 }\n  - { metric: accuracy_difference, by: mean_radius, at_most: 0.99 }\n  - { metric: accuracy_drop, under: fgsm, at_most: 0.9 }\n  - { metric: ks, of: mean_radius, at_most: 0.9 }\n  - { metric: accuracy, each_site: true, at_least: 0.2 }\n  - { metric: epsilon, at_most: 900 }\n  - { metric: records, each_group: mean_radius, at_least: 10 }\n";
    federation.submit(&evaluated("good", 2, 1, gates))?;
    federation.finishes("good")?;
    let counted = federation.entries("evaluation.accepted")?;
    ensure!(counted.len() == 4, "{counted:?}");
    for entry in &counted {
        let entry = &entry["entry"];
        let epsilon: f64 = entry["epsilon"].as_str().context("epsilon")?.parse()?;
        ensure!(entry["noise"] == "laplace" && epsilon > 8.0, "{entry}");
    }
    let published = federation.entries("model.published")?;
    ensure!(published.len() == 2, "{published:?}");
    for entry in &published {
        let gates = lines(entry, "gates");
        // Accuracy is judged at each of two sites, and records are counted of each of two groups.
        ensure!(gates.len() == 9 && gates.iter().all(|g| g.starts_with("pass: ")), "{gates:?}");
        ensure!(gates[0].starts_with("pass: roc_auc: ") && gates[0].contains('['), "{gates:?}");
        ensure!(lines(entry, "evaluated_by").len() == 2, "{entry}");
    }
    figures_are_shown(&federation)?;
    gates_are_shown(&federation)?;
    let metrics = federation.metrics()?;
    for line in [
        "falaj_evaluations_total{outcome=\"accepted\"} 4\n",
        "falaj_verdicts_total{outcome=\"published\"} 2\n",
        "falaj_verdicts_total{outcome=\"rejected\"} 0\n",
        "falaj_gates_total{metric=\"roc_auc\",outcome=\"passed\"} 2\n",
        "falaj_gates_total{metric=\"accuracy_drop\",outcome=\"passed\"} 2\n",
        "falaj_gates_total{metric=\"participation\",outcome=\"passed\"} 2\n",
        "falaj_versions{stage=\"candidate\"} 1\n",
    ] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    // What is evaluated and trained on is paid from the same ledger, each for itself.
    let ledger = federation.dir().join("sites/hospital-1/agent.toml");
    let words = ["budget", "export", "--config", ledger.to_str().context("UTF-8")?];
    let ledger = run("falaj-agent", &words)?;
    for purpose in ["\"round 2\"", "\"evaluation of round 1\"", "\"evaluation of round 2\""] {
        ensure!(ledger.contains(purpose), "{purpose}: {ledger}");
    }
    federation.verified()?;
    Ok(())
}

/// Every figure of every candidate, those that no gate asks for too.
fn figures_are_shown(federation: &Federation) -> Result<()> {
    let newest = federation.falaj_json(&["study", "figures", "good", "--sites"])?;
    ensure!(newest["round"] == 2 && newest["sites"].as_array().is_some_and(|s| s.len() == 2));
    let figures = newest["figures"].as_array().context("figures")?;
    let find = |name: &str| {
        let found = figures.iter().find(|f| f["figure"] == name);
        found.with_context(|| format!("{name}: {newest}"))
    };
    let auc = find("roc_auc")?;
    let ends = [&auc["low"], &auc["value"], &auc["high"]].map(Value::as_f64);
    ensure!(ends.is_sorted() && ends[0].is_some_and(|low| low >= 0.55), "{auc}");
    ensure!(
        auc["gates"][0]["bound"] == "at least 0.55" && auc["gates"][0]["pass"] == true,
        "{auc}"
    );
    for name in
        ["brier", "accuracy at hospital-2", "accuracy_drop under fgsm(0.05)", "psi of mean_radius"]
    {
        find(name)?;
    }
    // Those that nothing is said about stand behind it.
    let of_group = |f: &&Value| {
        f["figure"].as_str().is_some_and(|f| f.starts_with("recall of mean_radius<14 (without "))
    };
    ensure!(figures.iter().find(of_group).is_some_and(|f| f["low"].is_f64()), "{newest}");
    let compared = federation.falaj(&["study", "figures", "good", "--against", "1"])?;
    ensure!(
        text(&compared).contains("ROUND 1") && text(&compared).contains("passes: at least 0.55")
    );
    let words = ["study", "figures", "good", "--figure", "roc_auc", "--history"];
    let history = federation.falaj_json(&words)?;
    let rounds = history["items"].as_array().context("rounds")?;
    ensure!(rounds.len() == 2 && rounds[0]["round"] == 1, "{history}");
    let begins = |f: &Value| f["figure"].as_str().is_some_and(|f| f.starts_with("roc_auc"));
    for round in rounds {
        let figures = round["figures"].as_array().context("figures")?;
        ensure!(figures[0]["figure"] == "roc_auc" && figures.iter().all(begins), "{round}");
    }
    Ok(())
}

/// Every gate with its figures, as the verdict has them; and both rounds side by side.
fn gates_are_shown(federation: &Federation) -> Result<()> {
    let gates = federation.falaj_json(&["gate", "list", "good", "--history"])?;
    let items = gates["items"].as_array().context("gates")?;
    ensure!(items.len() == 7, "{gates}");
    for gate in items {
        ensure!(gate["round"] == 2 && gate["asked"] == true && gate["pass"] == true, "{gate}");
        ensure!(gate["when"] == "each_round" && gate["on_failure"] == "reject", "{gate}");
    }
    ensure!(
        items[0]["bound"] == "at least 0.55"
            && items[4]["figures"][1]["figure"] == "accuracy at hospital-2",
        "{gates}"
    );
    // What is no figure of counts is as the log has it.
    let epsilon = &items[5]["figures"][0];
    ensure!(
        epsilon["figure"] == "epsilon" && epsilon["value"].as_f64().is_some_and(|e| e > 8.0),
        "{gates}"
    );
    ensure!(gates["history"].as_array().is_some_and(|rounds| rounds.len() == 2), "{gates}");
    // A study that is over is shown once.
    let watched = federation.falaj(&["gate", "list", "good", "--watch"])?;
    let said = text(&watched);
    ensure!(watched.status.success() && said.matches("roc_auc").count() == 1, "{said}");
    ensure!(said.contains("at least 0.55") && said.contains("passes"), "{said}");
    let first = federation.falaj_json(&["gate", "list", "good", "--round", "1"])?;
    ensure!(first["items"][0]["round"] == 1 && first["items"][5]["round"] == 1, "{first}");
    let none = federation.falaj(&["gate", "list", "good", "--round", "7"])?;
    ensure!(
        !none.status.success() && text(&none).contains("has had no round 7"),
        "{}",
        text(&none)
    );
    let why = text(&federation.falaj(&["gate", "explain", "good", "roc_auc"])?);
    ensure!(
        why.contains("the lower end of its interval") && why.contains("above the bound"),
        "{why}"
    );
    let round = federation.falaj_json(&["round", "show", "good", "2"])?;
    ensure!(
        round["tries"][0]["stage"] == "promoted" && round["gates"][0]["pass"] == true,
        "{round}"
    );
    let compared = federation.falaj_json(&["compare", "good@2", "good@1"])?;
    ensure!(compared["settings"] == serde_json::json!([]), "{compared}");
    let auc = compared["figures"]
        .as_array()
        .context("figures")?
        .iter()
        .find(|f| f["figure"] == "roc_auc");
    let auc = auc.context("roc_auc")?;
    let [left, right, change] =
        [&auc["left"]["value"], &auc["right"]["value"], &auc["change"]].map(Value::as_f64);
    let right_as_shown = left.context("a figure")? + change.context("a change")?;
    ensure!((right_as_shown - right.context("a figure")?).abs() < 1e-9, "{auc}");
    ensure!(auc["overlap"].is_boolean(), "{auc}");
    let shown = text(&federation.falaj(&["compare", "good@2", "good", "--history"])?);
    ensure!(
        shown.contains("both files make the same settings") && shown.contains("overlap"),
        "{shown}"
    );
    Ok(())
}

#[test]
fn a_model_that_fails_a_gate_is_kept_out_and_the_study_can_end_by_it() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let _agents = federation.start_hospitals()?;
    let gates = "  - { metric: accuracy, at_least: 0.9999, on_failure: stop }\n  - { metric: sites, at_least: 2 }\n";
    federation.submit(&evaluated("ended", 3, 1, gates))?;
    let study = federation.study_reaches("ended", &["finished", "failed"])?;
    let why = study["reason"].as_str().unwrap_or_default();
    ensure!(
        study["state"] == "finished" && why.starts_with("a gate ended it in round 1: accuracy: "),
        "{study}"
    );
    ensure!(federation.entries("model.published")?.is_empty());
    let rejected = federation.entries("model.rejected")?;
    let gates = lines(&rejected[0], "gates");
    ensure!(gates.len() == 2 && gates[0].starts_with("fail: accuracy"), "{gates:?}");
    ensure!(gates[1] == "pass: sites: 2, at least 2 needed", "{gates:?}");
    let listed = federation.falaj_json(&["gate", "list", "ended"])?;
    let [accuracy, sites] = [&listed["items"][0], &listed["items"][1]];
    ensure!(accuracy["pass"] == false && accuracy["on_failure"] == "stop", "{listed}");
    ensure!(sites["pass"] == true && sites["figures"][0]["value"] == 2.0, "{listed}");
    let metrics = federation.metrics()?;
    for line in [
        "falaj_verdicts_total{outcome=\"stopped\"} 1\n",
        "falaj_gates_total{metric=\"accuracy\",outcome=\"failed\"} 1\n",
        "falaj_gates_total{metric=\"sites\",outcome=\"passed\"} 1\n",
    ] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    federation.verified()?;
    Ok(())
}

#[test]
fn a_version_goes_on_only_if_it_passes_what_is_asked_then() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let _agents = federation.start_hospitals()?;
    let gates = "  - { metric: roc_auc, at_least: 0.02 }\n  - { metric: roc_auc, at_least: 0.01, when: promotion }\n  - { metric: accuracy, each_site: true, at_least: 0.01, when: promotion }\n  - { metric: epsilon, at_most: 900, when: promotion }\n";
    federation.submit(&evaluated("asked", 2, 1, gates))?;
    federation.finishes("asked")?;
    for entry in federation.entries("model.published")? {
        let gates = lines(&entry, "gates");
        ensure!(gates.len() == 1 && gates[0].contains("at least 0.02"), "{gates:?}");
    }
    let shown = federation.falaj_json(&["model", "show", "asked", "1"])?;
    let gates = shown["gates"].as_array().context("gates")?;
    ensure!(gates.len() == 4 && gates.iter().all(|gate| gate["pass"] == true), "{shown}");
    federation.falaj_json(&["model", "promote", "asked", "1", "--to", "staging"])?;
    let promoted = federation.entries("version.promoted")?;
    let said = lines(&promoted[0], "gates");
    ensure!(said.len() == 4 && said.iter().all(|line| line.starts_with("pass: ")), "{said:?}");
    ensure!(said[0].starts_with("pass: roc_auc: ") && said[0].contains('['), "{said:?}");
    ensure!(lines(&promoted[0], "evaluated_by").len() == 2, "{promoted:?}");
    let lineage = federation.falaj(&["lineage", "--study", "asked", "--version", "1"])?;
    ensure!(text(&lineage).contains("ASKED AT A PROMOTION"), "{}", text(&lineage));

    // Another one has the same records, and is asked what no model is.
    let gates = "  - { metric: accuracy, at_least: 0.9999, when: promotion }\n";
    federation.submit(&evaluated("strict", 2, 2, gates))?;
    federation.finishes("strict")?;
    ensure!(federation.entries("model.published")?.len() == 4);
    let made = federation.falaj_json(&["model", "make", "strict", "--round", "1"])?;
    ensure!(made["version"] == 2, "{made}");
    // The first round was not evaluated: what is missing fails.
    for (version, why) in [("1", "["), ("2", "no site has sent counts")] {
        let out = federation.falaj(&["model", "promote", "strict", version, "--to", "staging"])?;
        let told = text(&out);
        ensure!(!out.status.success() && told.contains("gate_failed"), "{told}");
        ensure!(told.contains("accuracy: ") && told.contains(why), "{told}");
        ensure!(told.contains("at least 0.9999 needed"), "{told}");
        let shown = text(&federation.falaj(&["model", "show", "strict", version])?);
        ensure!(shown.contains("candidate") && shown.contains("FAILS"), "{shown}");
    }
    let kept = federation.entries("admin.read")?;
    let kept: Vec<_> =
        kept.iter().map(|entry| lines(entry, "gates")).filter(|l| !l.is_empty()).collect();
    ensure!(
        kept.len() == 2 && kept.iter().all(|l| l[0].starts_with("fail: accuracy: ")),
        "{kept:?}"
    );
    ensure!(federation.entries("version.promoted")?.len() == 1);
    federation.verified()?;
    Ok(())
}

#[test]
fn a_study_goes_back_to_the_last_model_that_passed() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let _agents = federation.start_hospitals()?;
    let gates = "  - { metric: accuracy, at_least: 0.9999, on_failure: roll_back }\n";
    federation.submit(&evaluated("back", 4, 3, gates))?;
    let study = federation.study_reaches("back", &["finished", "failed"])?;
    ensure!(study["reason"].to_string().contains("rolled it back in its last round, 4"), "{study}");
    // Two rounds were not asked; the third failed, and the fourth began where the first did.
    ensure!(federation.entries("model.published")?.len() == 2);
    let opened = federation.entries("round.opened")?;
    let base = |round: usize| opened[round - 1]["entry"]["base_sha256"].clone();
    ensure!(opened.len() == 4 && base(4) == base(1) && base(3) != base(1), "{opened:?}");
    ensure!(federation.metrics()?.contains("falaj_verdicts_total{outcome=\"rolled_back\"} 2\n"));
    let back = federation.entries("model.rolled_back")?;
    ensure!(back.len() == 1 && back[0]["entry"]["model_sha256"] == base(1), "{back:?}");
    ensure!(study["model_sha256"] == base(1), "{study}");
    federation.verified()?;
    Ok(())
}

/// The candidate of a study that waits for people.
fn held(federation: &Federation, study: &str) -> Result<String> {
    wait_for("a candidate that waits for people", || {
        let rounds = federation.falaj_json(&["study", "rounds", study])?;
        let last = rounds["items"].as_array().and_then(|rounds| rounds.last().cloned());
        if last.is_none_or(|last| last["stage"] != "held") {
            return Ok(None);
        }
        let held = federation.entries("candidate.held")?;
        let of_study = held.iter().rfind(|told| told["entry"]["study"] == study);
        Ok(of_study.and_then(|told| told["entry"]["model_sha256"].as_str().map(str::to_owned)))
    })
}

#[test]
fn a_candidate_that_gates_ask_about_becomes_the_model_by_two_people_and_by_no_silence() -> Result<()>
{
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let ca = federation.ca().display().to_string();
    for (name, group) in [("sara", "operator"), ("lina", "approver"), ("noor", "approver")] {
        let asked = ["issue", &ca, "operator", name, "--place", "ae-on/ae-az", "--group", group];
        run("falaj-certs", &asked)?;
    }
    let _agents = federation.start_hospitals()?;
    let gates = "  - { metric: accuracy, at_least: 0.9999, on_failure: ask }\n  - { metric: sites, at_least: 2 }\n";
    let once = |name: &str| {
        evaluated(name, 1, 1, gates)
            .replace("rounds: { count: 1,", "rounds: { count: 1, retries: 0,")
    };
    federation.submit(&once("asks"))?;
    let candidate = held(&federation, "asks")?;
    let told = &federation.entries("candidate.held")?[0];
    let said = lines(told, "gates");
    ensure!(said.len() == 2 && said[0].starts_with("fail: accuracy: "), "{told}");
    ensure!(federation.metrics()?.contains("falaj_candidates_held 1\n"));
    // It waits through a restart, and is nothing that anybody can have.
    coordinator.kill()?;
    coordinator = federation.start_coordinator()?;
    ensure!(held(&federation, "asks")? == candidate);
    ensure!(federation.entries("model.published")?.is_empty());
    let decide = |by: &str, what: &str, study: &str, candidate: &str| {
        let words = ["study", what, study, "--candidate", candidate, "--reason", "small round"];
        Ok::<_, anyhow::Error>(text(&federation.falaj_as(by, &words)?))
    };
    let own = federation.falaj(&[
        "study",
        "approve",
        "asks",
        "--candidate",
        &candidate,
        "--reason",
        "mine",
    ])?;
    ensure!(text(&own).contains("their own study"), "{}", text(&own));
    let denied = federation.entries("access.denied")?;
    let last = &denied.last().context("a denial")?["entry"];
    ensure!(last["action"] == "approval.give" && last["decision"] == "deny", "{last}");
    let operator = decide("sara", "approve", "asks", &candidate)?;
    ensure!(operator.contains("denied"), "{operator}");
    let other = decide("lina", "approve", "asks", &"0".repeat(64))?;
    ensure!(other.contains("conflict") && other.contains("waits for people"), "{other}");
    let first = decide("lina", "approve", "asks", &candidate)?;
    ensure!(first.contains("is approved"), "{first}");
    let again = decide("lina", "approve", "asks", &candidate)?;
    ensure!(again.contains("duplicate") && again.contains("another person"), "{again}");
    ensure!(held(&federation, "asks")? == candidate);
    let second = decide("noor", "approve", "asks", &candidate)?;
    ensure!(second.contains("is approved"), "{second}");
    federation.finishes("asks")?;
    let published = federation.entries("model.published")?;
    ensure!(published.len() == 1 && published[0]["entry"]["model_sha256"] == candidate.as_str());
    ensure!(lines(&published[0], "gates") == said, "{published:?}");
    ensure!(federation.entries("candidate.approved")?.len() == 2);
    let version = federation.falaj_json(&["model", "show", "asks", "1"])?;
    ensure!(version["model_sha256"] == candidate.as_str(), "{version}");

    // One who says no is enough.
    federation.submit(&once("asks-in-vain"))?;
    let candidate = held(&federation, "asks-in-vain")?;
    let refused = decide("sara", "refuse", "asks-in-vain", &candidate)?;
    ensure!(refused.contains("is refused"), "{refused}");
    let study = federation.study_reaches("asks-in-vain", &["finished", "failed"])?;
    let why = study["reason"].as_str().unwrap_or_default();
    ensure!(study["state"] == "failed" && why.contains("it was refused: small round"), "{study}");
    ensure!(federation.entries("model.published")?.len() == 1);
    let metrics = federation.metrics()?;
    for line in [
        "falaj_candidates_held 0\n",
        "falaj_verdicts_total{outcome=\"held\"} 1\n",
        "falaj_verdicts_total{outcome=\"published\"} 1\n",
        "falaj_verdicts_total{outcome=\"rejected\"} 1\n",
    ] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    federation.verified()?;
    drop(coordinator);
    Ok(())
}

/// Of whoever approved a candidate and was revoked or erased before somebody else did, nothing counts.
#[test]
fn a_candidate_does_not_become_the_model_by_somebody_who_was_revoked_or_erased() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let ca = federation.ca().display().to_string();
    for name in ["lina", "noor", "maha", "huda"] {
        let asked =
            ["issue", &ca, "operator", name, "--place", "ae-on/ae-az", "--group", "approver"];
        run("falaj-certs", &asked)?;
    }
    let _agents = federation.start_hospitals()?;
    let gates = "  - { metric: accuracy, at_least: 0.9999, on_failure: ask }\n";
    federation.submit(&evaluated("heard", 1, 1, gates))?;
    let candidate = held(&federation, "heard")?;
    let approves = |by: &str, so_far: usize| -> Result<()> {
        let words = ["study", "approve", "heard", "--candidate", &*candidate, "--reason", "small"];
        let told = text(&federation.falaj_as(by, &words)?);
        ensure!(told.contains("is approved"), "{by}: {told}");
        ensure!(federation.entries("candidate.approved")?.len() == so_far, "{by}");
        Ok(())
    };
    let waits = || -> Result<()> {
        ensure!(held(&federation, "heard")? == candidate);
        ensure!(federation.entries("model.published")?.is_empty(), "one person let it through");
        Ok(())
    };
    let id = |name: &str| format!("spiffe://falaj.test/ae-on/ae-az/operator/{name}");
    approves("lina", 1)?;
    let revoked = federation.falaj(&["site", "revoke", &id("lina"), "--reason", "left"])?;
    ensure!(revoked.status.success(), "{}", text(&revoked));
    approves("noor", 2)?;
    waits()?;
    federation.falaj_json(&["person", "erase", &id("noor"), "--article", "Article 15"])?;
    approves("maha", 3)?;
    waits()?;
    approves("huda", 4)?;
    federation.finishes("heard")?;
    let published = federation.entries("model.published")?;
    ensure!(published.len() == 1 && published[0]["entry"]["model_sha256"] == candidate.as_str());
    federation.verified()?;
    Ok(())
}

/// By so much a model never becomes better: the first one is the best.
const PATIENT: &str =
    "  - { metric: sites, at_least: 2 }\n  - { metric: accuracy, improve_by: 0.95, patience: 6 }\n";

#[test]
fn a_study_ends_by_patience_with_its_best_model_and_a_restart_forgets_nothing() -> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let mut agents = federation.start_hospitals()?;
    federation.submit(&evaluated("patient", 12, 1, PATIENT))?;
    wait_for("a first model", || {
        Ok((!federation.entries("model.published")?.is_empty()).then_some(()))
    })?;
    // Without its agents the study waits where it is.
    agents.iter_mut().try_for_each(Process::kill)?;
    coordinator.kill()?;
    let mut coordinator = federation.start_coordinator()?;
    let waiting = federation.falaj_json(&["study", "show", "patient"])?;
    ensure!(waiting["state"] == "running" && waiting["patience"]["rounds"] == 6, "{waiting}");
    ensure!(waiting["patience"]["best"]["round"] == 1, "{waiting}");
    for (name, place) in [("hospital-1", "ae-on/ae-az"), ("hospital-2", "ae-on/ae-du")] {
        agents.push(federation.start_agent(&SiteSpec::new(name, place))?);
    }

    let study = federation.study_reaches("patient", &["finished", "failed"])?;
    let why = "accuracy was not better by 0.95 in 6 evaluated rounds; the best model by accuracy is that of round 1";
    ensure!(study["state"] == "finished" && study["reason"] == why, "{study}");
    let published = federation.entries("model.published")?;
    ensure!(published.len() == 7 && federation.entries("round.opened")?.len() == 7, "{study}");
    let line = |entry: &Value| entry["entry"]["patience"].as_str().unwrap_or("?").to_owned();
    let lines: Vec<String> = published.iter().map(line).collect();
    ensure!(
        lines[0].starts_with("better: accuracy: 0.")
            && lines[0].ends_with("], no figure before it")
            && lines[1..].iter().all(|l| l.starts_with("no better: accuracy: 0."))
            && lines[6].ends_with(" needed to be better than round 1; 6 of 6 such rounds"),
        "{lines:?}"
    );
    // It goes back to the best one, which is a version.
    let best = &published[0]["entry"]["model_sha256"];
    let back = federation.entries("model.rolled_back")?;
    ensure!(back.len() == 1 && back[0]["entry"]["model_sha256"] == *best, "{back:?}");
    let made = federation.entries("version.made")?;
    ensure!(made.len() == 1 && made[0]["entry"]["model_sha256"] == *best, "{made:?}");
    let finished = federation.entries("study.finished")?;
    ensure!(finished[0]["entry"]["model_sha256"] == *best, "{finished:?}");

    // Also for a coordinator that was not there.
    coordinator.kill()?;
    let _coordinator = federation.start_coordinator()?;
    let study = federation.falaj_json(&["study", "show", "patient"])?;
    ensure!(study["model_sha256"] == *best && study["patience"]["without"] == 6, "{study}");
    let shown = text(&federation.falaj(&["study", "show", "patient"])?);
    let said = "6 of 6 rounds without accuracy better by 0.95; the best is round 1, 0.";
    ensure!(shown.contains(said), "{shown}");
    for (latest, same) in [(true, "--round=1"), (false, "--round=7")] {
        let download = |round: &[&str]| {
            let file = federation.dir().join("model.safetensors");
            let file = file.to_str().context("UTF-8")?;
            let words = [&["model", "download", "patient", "-o", file][..], round].concat();
            let out = federation.falaj(&words)?;
            ensure!(out.status.success(), "{}", text(&out));
            Ok(fs::read(file)?)
        };
        ensure!((download(&[])? == download(&[same])?) == latest, "the newest model and {same}");
    }
    federation.verified()?;
    Ok(())
}

#[test]
fn only_what_was_evaluated_and_became_the_model_is_weighed() -> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    let _agents = federation.start_hospitals()?;
    let gates = "  - { metric: accuracy, improve_by: 0.95, patience: 2 }\n";
    federation.submit(&evaluated("long", 7, 2, gates))?;
    let study = federation.study_reaches("long", &["finished", "failed"])?;
    // Rounds 2, 4 and 6 are evaluated; the last one is not needed.
    ensure!(study["round"] == 6 && study["patience"]["best"]["round"] == 2, "{study}");
    let gates = "  - { metric: accuracy, improve_by: 0.95, patience: 2 }\n  - { metric: accuracy, at_least: 0.9999, on_failure: roll_back }\n";
    federation.submit(&evaluated("short", 4, 1, gates))?;
    let study = federation.study_reaches("short", &["finished", "failed"])?;
    ensure!(study["reason"].to_string().contains("rolled it back in its last round, 4"), "{study}");
    let patience = &study["patience"];
    ensure!(patience["without"] == 0 && patience["best"].is_null(), "{study}");

    // What each round costs is known by now. The third is kept out, and the last: the study ends with its best model all the same,
    // and not with the second, from which a round would go on.
    let counted = federation.entries("evaluation.accepted")?;
    let spent = |round: u64| {
        let mut of_round = counted
            .iter()
            .map(|e| &e["entry"])
            .filter(|e| e["study"] == "short" && e["round"] == round);
        let epsilon = of_round.next().and_then(|e| e["epsilon"].as_str());
        Ok::<f64, anyhow::Error>(epsilon.with_context(|| format!("{counted:?}"))?.parse()?)
    };
    let between = f64::midpoint(spent(2)?, spent(3)?);
    let gates = format!(
        "  - {{ metric: accuracy, improve_by: 0.95, patience: 2 }}\n  - {{ metric: epsilon, at_most: {between}, on_failure: roll_back }}\n"
    );
    federation.submit(&evaluated("back", 4, 1, &gates))?;
    let study = federation.study_reaches("back", &["finished", "failed"])?;
    let why = "a gate rolled it back in its last round, 4: epsilon: ";
    ensure!(study["reason"].to_string().contains(why), "{study}");
    let of = |kind: &str| -> Result<Vec<Value>> {
        let entries = federation.entries(kind)?.into_iter().map(|mut e| e["entry"].take());
        Ok(entries.filter(|e| e["study"] == "back").collect())
    };
    let (published, back) = (of("model.published")?, of("model.rolled_back")?);
    ensure!(published.len() == 2 && of("model.rejected")?.len() == 2, "{published:?}");
    let best = &published[0]["model_sha256"];
    ensure!(back.len() == 1 && back[0]["model_sha256"] == *best, "{back:?}");
    ensure!(of("study.finished")?[0]["model_sha256"] == *best, "{study}");
    ensure!(of("version.made")?[0]["model_sha256"] == *best, "{study}");
    federation.verified()?;
    coordinator.kill()?;
    let _coordinator = federation.start_coordinator()?;
    let study = federation.falaj_json(&["study", "show", "back"])?;
    ensure!(study["model_sha256"] == *best, "{study}");
    Ok(())
}

/// Sites that train, the last of which has enough for a round of training, and not for an evaluation at 8.
fn start_with_one_spent(federation: &Federation, names: &[&str]) -> Result<Vec<Process>> {
    let (parts, last) = (wisconsin(2)?, names.last());
    let start = |(name, records): (&&str, &String)| {
        let epsilon_limit = if Some(name) == last { 6.0 } else { 900.0 };
        let site = SiteSpec { epsilon_limit, ..SiteSpec::new(name, "ae-on/ae-az") };
        federation.prepare_site(&site, records)?;
        federation.start_agent(&site)
    };
    names.iter().zip(parts.iter().cycle()).map(start).collect()
}

/// What is said of all sites is said by those who have counted, and who is silent fails what each of them is asked.
#[test]
fn a_site_whose_budget_is_spent_does_not_evaluate_and_fails_what_is_asked_of_each() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let names = ["hospital-1", "hospital-2", "hospital-3"];
    let _agents = start_with_one_spent(&federation, &names)?;
    let gates = "  - { metric: roc_auc, at_least: 0.3 }\n  - { metric: accuracy, each_site: true, at_least: 0.2, on_failure: stop }\n";
    let cohort = format!("sites: [{}], min_sites: 2", names.join(", "));
    let yaml = evaluated("spent", 1, 1, gates).replace("min_sites: 2", &cohort);
    federation.submit(&yaml.replace("grace_s: 2", "grace_s: 30"))?;
    let study = federation.study_reaches("spent", &["finished", "failed"])?;
    let why = study["reason"].as_str().unwrap_or_default();
    let silent = "accuracy at hospital-3: has sent no counts";
    ensure!(why.starts_with(&format!("a gate ended it in round 1: {silent}")), "{study}");
    ensure!(federation.entries("model.published")?.is_empty());
    let rejected = federation.entries("model.rejected")?;
    let by = lines(&rejected[0], "evaluated_by");
    let counted = |name: &str| by.iter().any(|by| by.ends_with(&format!("/{name}")));
    ensure!(by.len() == 2 && counted("hospital-1") && counted("hospital-2"), "{by:?}");
    let gates = lines(&rejected[0], "gates");
    ensure!(gates.len() == 4 && gates[0].starts_with("pass: roc_auc: "), "{gates:?}");
    ensure!(gates[1].starts_with("pass: accuracy at hospital-1: "), "{gates:?}");
    ensure!(gates[3] == format!("fail: {silent}, at least 0.2 needed"), "{gates:?}");
    let declined = federation.entries("site.declined")?;
    ensure!(declined.iter().any(|d| d.to_string().contains("epsilon_spent")), "{declined:?}");
    // Also where it is asked again.
    let listed = federation.falaj_json(&["gate", "list", "spent"])?;
    let each = &listed["items"][1];
    ensure!(each["pass"] == false && listed["items"][0]["pass"] == true, "{listed}");
    let figures = each["figures"].as_array().context("figures")?;
    ensure!(figures.len() == 3 && figures[2]["missing"] == "has sent no counts", "{listed}");
    federation.verified()?;
    Ok(())
}

/// One of two could otherwise carry every gate.
#[test]
fn where_fewer_count_than_a_study_takes_nothing_is_said_of_all() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let _agents = start_with_one_spent(&federation, &["hospital-1", "hospital-2"])?;
    let gates = "  - { metric: roc_auc, at_least: 0.01 }\n";
    let yaml = evaluated("few", 1, 1, gates)
        .replace("rounds: { count: 1,", "rounds: { count: 1, retries: 0,");
    federation.submit(&yaml)?;
    let study = federation.study_reaches("few", &["finished", "failed"])?;
    ensure!(study["state"] == "failed", "{study}");
    let rejected = federation.entries("model.rejected")?;
    let gates = lines(&rejected[0], "gates");
    let few = "fail: roc_auc: 1 of the 2 sites that it takes sent counts, at least 0.01 needed";
    ensure!(gates == [few] && federation.entries("model.published")?.is_empty(), "{gates:?}");
    federation.verified()?;
    Ok(())
}

/// How far diabetes has gone on a year later, learned as a number at two hospitals.
fn progression(gates: &str) -> String {
    let bounds = [
        ("age", 18, 90),
        ("bmi", 15, 45),
        ("bp", 50, 150),
        ("s1", 80, 320),
        ("s2", 30, 250),
        ("s3", 20, 100),
        ("s4", 1, 10),
        ("s5", 3, 7),
        ("s6", 50, 130),
    ];
    let feature = |(name, min, max): (&str, u32, u32)| {
        format!("    - {{ name: {name}, min: {min}.0, max: {max}.0 }}\n")
    };
    let features: String = bounds.into_iter().map(feature).collect();
    format!(
        "study: progression\npurpose: end-to-end test\ndata:\n  dataset: diabetes\n  label: {{ column: progression, min: 20.0, max: 350.0 }}\n  features:\n{features}    - {{ name: sex, values: [\"1\", \"2\"] }}\n\
         model: {{ kind: linear }}\n\
         training: {{ local_steps: 20, sample_rate: 0.3, learning_rate: 0.3 }}\n\
         privacy: {{ mechanism: dp_sgd, noise_multiplier: 1.0, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 900.0 }}\n\
         sealing: {{ bits: 16, range: 8.0 }}\n\
         cohort: {{ places: [\"ae-on/*\"], min_sites: 2 }}\n\
         rounds: {{ count: 4, deadline_s: 60, grace_s: 2 }}\n\
         evaluation:\n  holdout: 0.3\n  every: 4\n  epsilon: 40.0\n  group_min: 20\n  groups: [{{ column: sex, values: [\"1\", \"2\"] }}]\n  drift: [{{ column: age, edges: [40.0, 55.0], reference: [0.33, 0.37, 0.3] }}]\ngates:\n{gates}"
    )
}

/// A site of each half of the diabetes records.
fn start_clinics(federation: &Federation) -> Result<Vec<Process>> {
    let whole = fs::read_to_string(repository().join("tests/data/diabetes.csv"))?;
    let (header, rows) = whole.split_once('\n').context("the data set has a header")?;
    let mut agents = Vec::new();
    for part in 0..2 {
        let own = rows.lines().skip(part).step_by(2);
        let csv = own.fold(format!("{header}\n"), |csv, row| csv + row + "\n");
        let site = SiteSpec::new(&format!("clinic-{part}"), "ae-on/ae-az");
        let config = federation.prepare_site(&site, &csv)?;
        let text = fs::read_to_string(&config)?;
        fs::write(&config, text.replace("name = \"wdbc\"", "name = \"diabetes\""))?;
        agents.push(federation.start_agent(&site)?);
    }
    Ok(agents)
}

#[test]
fn a_model_that_says_a_number_is_trained_evaluated_and_judged() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let _agents = start_clinics(&federation)?;
    // A model that says the mean of all records is off by 66. Bounds leave room for the noise of two small sites.
    let gates = "  - { metric: mae, at_most: 150 }\n  - { metric: rmse, at_most: 200 }\n  - { metric: r2, at_least: -3 }\n  - { metric: mae, each_group: sex, at_most: 250 }\n  - { metric: worst_group_mae, by: sex, at_most: 250 }\n  - { metric: mae_difference, by: sex, at_most: 250 }\n  - { metric: mae, each_site: true, at_most: 250 }\n  - { metric: ks, of: age, at_most: 0.9 }\n";
    federation.submit(&progression(gates))?;
    federation.finishes("progression")?;
    ensure!(federation.entries("evaluation.accepted")?.len() == 2);
    let published = federation.entries("model.published")?;
    let gates = lines(published.last().context("a model")?, "gates");
    // Two groups and two sites are judged each for itself.
    ensure!(gates.len() == 10 && gates.iter().all(|g| g.starts_with("pass: ")), "{gates:?}");
    ensure!(gates[0].starts_with("pass: mae: ") && gates[2].starts_with("pass: r2: "), "{gates:?}");
    let shown = federation.falaj_json(&["study", "figures", "progression"])?;
    let figures = shown["figures"].as_array().context("figures")?;
    let find = |name: &str| figures.iter().find(|f| f["figure"] == name);
    let mae = find("mae").with_context(|| format!("{shown}"))?;
    let ends = [&mae["low"], &mae["value"], &mae["high"]].map(Value::as_f64);
    // In the label's own unit.
    ensure!(ends.is_sorted() && ends[0].is_some_and(|low| low > 5.0), "{mae}");
    ensure!(find("accuracy").is_none() && find("roc_auc").is_none(), "{shown}");
    federation.verified()?;
    Ok(())
}

/// No error is less by more than the bounds are apart: the first model is the best, and the second the last.
#[test]
fn a_study_of_a_number_ends_by_patience_with_the_model_that_is_least_off() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let _agents = start_clinics(&federation)?;
    let yaml = progression("  - { metric: mae, improve_by: 329.0, patience: 1 }\n");
    federation.submit(&yaml.replace("every: 4", "every: 1"))?;
    let study = federation.study_reaches("progression", &["finished", "failed"])?;
    let why =
        "mae was not better by 329 in 1 evaluated rounds; the best model by mae is that of round 1";
    ensure!(study["state"] == "finished" && study["reason"] == why, "{study}");
    let published = federation.entries("model.published")?;
    let lines: Vec<&str> =
        published.iter().filter_map(|entry| entry["entry"]["patience"].as_str()).collect();
    ensure!(
        lines.len() == 2
            && lines[0].starts_with("better: mae: ")
            && lines[1].starts_with("no better: mae: ")
            && lines[1].contains("], at most "),
        "{lines:?}"
    );
    let back = federation.entries("model.rolled_back")?;
    let best = &published[0]["entry"]["model_sha256"];
    ensure!(back.len() == 1 && back[0]["entry"]["model_sha256"] == *best, "{back:?}");
    federation.verified()?;
    Ok(())
}

#[test]
fn what_is_for_classes_is_refused_where_the_label_is_a_number() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let path = federation.dir().join("broken.yaml");
    let good = progression("  - { metric: mae, at_most: 75 }\n");
    let robustness = "  robustness: [{ kind: salt, rate: 0.1 }]\ngates:";
    for (was, is, said) in [
        (
            "metric: mae, at_most",
            "metric: accuracy, at_least",
            "`accuracy` is for a label that has classes",
        ),
        ("at_most: 75", "at_most: 330", "`mae` always is at most 330"),
        ("kind: linear", "kind: logistic", "logistic regression tells classes apart"),
        ("min: 20.0, max: 350.0 }", "min: 20.0 }", "it is not clear what `progression` holds"),
        ("gates:", robustness, "what a perturbation costs is counted in records whose class"),
    ] {
        ensure!(good.contains(was), "{was}");
        fs::write(&path, good.replacen(was, is, 1))?;
        let out = federation.falaj(&["study", "submit", &path.display().to_string()])?;
        let told = text(&out);
        ensure!(!out.status.success() && told.contains(said), "{is}: {told}");
    }
    Ok(())
}

/// A site whose configuration binds a second data set, at `path`, to the name `later`.
fn keeps_later(federation: &Federation, site: &SiteSpec, path: &str) -> Result<PathBuf> {
    let parts = wisconsin(2)?;
    let config = federation.prepare_site(site, &parts[0])?;
    let folder = config.parent().context("a folder")?.join("later");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("records.csv"), &parts[1])?;
    let text = fs::read_to_string(&config)?;
    let later = format!(
        "[[dataset]]\nname = \"later\"\npath = \"{path}\"\nepsilon_limit = 100.0\ndelta = 1e-5\n[train]"
    );
    fs::write(&config, text.replacen("[train]", &later, 1))?;
    Ok(config)
}

#[test]
fn what_an_evaluation_reads_and_lets_out_is_explained_beforehand() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let site = SiteSpec::new("hospital-1", "ae-on/ae-az");
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?.display().to_string();
    let study = federation.dir().join("told.yaml");
    let yaml = evaluated("told", 2, 1, "  - { metric: roc_auc, at_least: 0.01 }\n")
        .replace("column: mean_radius, edges: [14.0]", "column: ward, values: [\"1\", \"2\"]");
    fs::write(&study, yaml)?;
    let study = study.display().to_string();
    let told = run("falaj-agent", &["explain", &study, "--config", &config, "--json"])?;
    let told: Value = serde_json::from_str(&told)?;
    let columns: Vec<&str> =
        told["columns_read"].as_str().context("columns")?.split(", ").collect();
    ensure!(columns.contains(&"ward"), "{told}");
    ensure!(columns.iter().filter(|c| **c == "mean_radius").count() == 1, "{told}");
    ensure!(told["evaluated_on"] == "wdbc", "{told}");
    let leaves = told["leaves_per_evaluation"].as_str().context("what leaves")?;
    let (cells, noise) = leaves.split_once(' ').context("a number")?;
    ensure!(cells.parse::<u32>()? > 20 && noise.ends_with("noise: laplace"), "{told}");
    Ok(())
}

/// All of its records are evaluated on, it alone pays for that, and what is trained on is kept apart from it.
#[test]
fn a_data_set_can_be_kept_for_evaluation_alone() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let (keeps, mixes) =
        (SiteSpec::new("hospital-1", "ae-on/ae-az"), SiteSpec::new("hospital-2", "ae-on/ae-du"));
    let config = keeps_later(&federation, &keeps, "later")?;
    // The folder that it trains on, by another way.
    keeps_later(&federation, &mixes, "later/../data")?;
    // Its own policy lets the one data set be used, and not the other.
    let forbids = SiteSpec::new("hospital-3", "ae-on/ae-az");
    let policy = keeps_later(&federation, &forbids, "later")?.with_file_name("site.cedar");
    let rule = "permit (principal, action, resource) when { resource.dataset == \"wdbc\" };";
    fs::write(policy, rule)?;
    let sites = [&keeps, &mixes, &forbids];
    let _agents =
        sites.map(|site| federation.start_agent(site)).into_iter().collect::<Result<Vec<_>>>()?;
    wait_for("three sites to be there", || {
        Ok(federation.metrics()?.contains("falaj_sites_connected 3\n").then_some(()))
    })?;
    let gates = "  - { metric: roc_auc, at_least: 0.01 }\n";
    let yaml = evaluated("kept", 2, 1, gates).replace("holdout: 0.3", "dataset: later");
    federation.submit(&yaml.replace("min_sites: 2", "min_sites: 1"))?;
    federation.finishes("kept")?;
    let declined = federation.entries("site.declined")?;
    ensure!(
        !declined.is_empty() && !declined.iter().any(|d| d.to_string().contains("/hospital-1")),
        "{declined:?}"
    );
    for (site, said) in [
        ("hospital-2", "have a file in common"),
        ("hospital-3", "no rule of the site's policy permits this study"),
    ] {
        let log = federation.dir().join(format!("sites/{site}/log.txt"));
        wait_for(&format!("{site} to refuse"), || {
            Ok(fs::read_to_string(&log)?.contains(said).then_some(()))
        })?;
    }
    let counted = federation.entries("evaluation.accepted")?;
    ensure!(counted.len() == 2, "{counted:?}");
    let words = ["budget", "export", "--config", config.to_str().context("UTF-8")?];
    let ledger = run("falaj-agent", &words)?;
    let paid = ledger.lines().filter(|l| l.contains("\"evaluation of round"));
    let paid: Vec<&str> = paid.collect();
    ensure!(paid.len() == 2 && paid.iter().all(|l| l.contains("\"later\"")), "{ledger}");
    let trained = ledger.lines().find(|l| l.contains("\"round 2\""));
    ensure!(trained.is_some_and(|l| l.contains("\"wdbc\"")), "{ledger}");
    let shown = federation.falaj_json(&["study", "figures", "kept"])?;
    let auc = shown["figures"].as_array().and_then(|f| f.iter().find(|f| f["figure"] == "roc_auc"));
    ensure!(auc.is_some_and(|f| f["value"].is_f64()), "{shown}");
    federation.verified()?;

    let path = federation.dir().join("broken.yaml");
    for (is, said) in [
        ("dataset: wdbc", "`wdbc` would be trained on and evaluated on"),
        ("group_min: 20", "it is not clear which records are evaluated on"),
        ("dataset: later\n  holdout: 0.2", "it is not clear which records are evaluated on"),
    ] {
        let again = evaluated("again", 1, 1, gates).replace("  group_min: 20\n", "");
        fs::write(&path, again.replace("holdout: 0.3", is))?;
        let out = federation.falaj(&["study", "submit", &path.display().to_string()])?;
        let told = text(&out);
        ensure!(!out.status.success() && told.contains(said), "{is}: {told}");
    }
    Ok(())
}

/// Under masks a candidate is evaluated as elsewhere.
#[test]
fn a_masked_candidate_is_evaluated_too() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let mut agents = Vec::new();
    for (i, records) in wisconsin(3)?.iter().enumerate() {
        let site = SiteSpec::new(&format!("hospital-{}", i + 1), "ae-on/ae-az");
        federation.prepare_site(&site, records)?;
        agents.push(federation.start_agent(&site)?);
    }
    let gates = "  - { metric: roc_auc, at_least: 0.01 }\n";
    let yaml = masked(&evaluated("masked", 2, 1, gates).replace("min_sites: 2", "min_sites: 3"), 3);
    federation.submit(&yaml)?;
    federation.finishes("masked")?;
    ensure!(federation.entries("evaluation.accepted")?.len() == 6);
    federation.verified()?;
    Ok(())
}

#[test]
fn gates_that_make_no_sense_are_refused_with_their_lines() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    for (gate, said) in [
        (
            "{ metric: roc_acu, at_least: 0.7 }",
            "there is no metric `roc_acu`; take one of records, accuracy, ",
        ),
        ("{ metric: roc_auc, at_least: 1.7 }", "`roc_auc` never is at least 1.7"),
        (
            "{ metric: accuracy, at_least: 1 }",
            "`accuracy` never is at least 1 by the lower end of its interval",
        ),
        (
            "{ metric: accuracy_difference, by: mean_radius, at_most: 0 }",
            "never is at most 0 by the upper end of its interval",
        ),
        (
            "{ metric: roc_auc, at_least: 0.7, at_most: 0.9 }",
            "it is not clear what the gate asks for",
        ),
        (
            "{ metric: recall, each_group: SEX, at_least: 0.7 }",
            "there are no groups by `SEX`; the study has groups by mean_radius",
        ),
        (
            "{ metric: worst_group_recall, at_least: 0.7 }",
            "it is not clear whose `worst_group_recall` is meant; give `by: COLUMN`",
        ),
        (
            "{ metric: accuracy_drop, under: pgd, at_most: 0.1 }",
            "no perturbation `pgd` is listed; there are fgsm(0.05); missing(0.1)",
        ),
        ("{ metric: sites, by: mean_radius, at_least: 2 }", "`sites` has no groups"),
        (
            "{ metric: sites, at_least: 2, when: promotion, on_failure: stop }",
            "`on_failure: stop` of a gate that no round is asked",
        ),
        (
            "{ metric: epsilon, at_most: 0.01 }",
            "`epsilon` never is at most 0.01: one round of training costs ",
        ),
        (
            "{ metric: recall, each_group: [mean_radius, AGE], at_least: 0.7 }",
            "there are no groups by `mean_radius, AGE`",
        ),
        (
            "{ metric: psi, of: income, at_most: 0.2 }",
            "no column `income` is watched; the study watches mean_radius",
        ),
        (
            "{ metric: mae, at_most: 9 }",
            "`mae` is for a label that is a number, and this one has classes",
        ),
        (
            "{ metric: records, each_group: mean_radius, at_least: 0 }",
            "always is at least 0; give a bound between 0 and ",
        ),
        ("{ metric: ks, at_most: 0.2 }", "it is not clear whose `ks` is meant; give `of: COLUMN`"),
        (
            "{ metric: update_cosine, at_least: 0.2 }",
            "it is not clear whose `update_cosine` is meant; say `each_site: true`",
        ),
        (
            "{ metric: update_norm_ratio, each_site: true, by: mean_radius, at_most: 3 }",
            "it is not clear whose `update_norm_ratio` is meant",
        ),
        (
            "{ metric: update_cosine, each_site: true, at_least: -1.0 }",
            "`update_cosine at each site` always is at least -1",
        ),
    ] {
        is_refused(&federation, &format!("  - {gate}\n"), gate, said)?;
    }
    Ok(())
}

#[test]
fn patience_that_makes_no_sense_is_refused_with_its_line() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    for (gate, said) in [
        (
            "{ metric: roc_acu, improve_by: 0.01, patience: 2 }",
            "there is no metric `roc_acu`; take one of records, accuracy, ",
        ),
        (
            "{ metric: roc_auc, improve_by: -0.01, patience: 2 }",
            "`roc_auc` never is better by -0.01; give `improve_by` from 0 to below 1",
        ),
        (
            "{ metric: mae, improve_by: 0.01, patience: 2 }",
            "`mae` is for a label that is a number, and this one has classes",
        ),
        ("{ metric: roc_auc, improve_by: 0.01, patience: 0 }", "no round would be waited for"),
        (
            "{ metric: roc_auc, improve_by: 0.01, patience: 8 }",
            "a patience of 8 does not run out before the last of 9 evaluated rounds",
        ),
        (
            "{ metric: sites, improve_by: 1, patience: 2 }",
            "by `sites` no model is better than another",
        ),
        (
            "{ metric: accuracy, each_site: true, improve_by: 0.01, patience: 2 }",
            "by `accuracy at each site` no model is better than another",
        ),
        (
            "{ metric: roc_auc, improve_by: 0.01 }",
            "`improve_by` and `patience` mean nothing without each other",
        ),
        (
            "{ metric: roc_auc, improve_by: 0.01, patience: 2, on_failure: stop }",
            "patience weighs each model that is evaluated, and ends the study and nothing else",
        ),
    ] {
        is_refused(&federation, &format!("  - {gate}\n"), gate, said)?;
    }
    // Beside patience every model is asked everything, and there is one patience.
    let patience = "  - { metric: roc_auc, improve_by: 0.01, patience: 2 }\n";
    for (gate, said) in [
        (
            "{ metric: roc_auc, at_least: 0.7, when: end }",
            "it asks of the last round's model alone",
        ),
        ("{ metric: brier, improve_by: 0.01, patience: 2 }", "a study has one patience"),
    ] {
        is_refused(&federation, &format!("{patience}  - {gate}\n"), gate, said)?;
    }
    Ok(())
}

/// A study of nine rounds with these gates is refused at the line of one of them.
fn is_refused(federation: &Federation, gates: &str, gate: &str, said: &str) -> Result<()> {
    let path = federation.dir().join("broken.yaml");
    let yaml = evaluated("broken", 9, 1, gates);
    let line = 1 + yaml.lines().position(|l| l.contains(gate)).context("a line")?;
    fs::write(&path, &yaml)?;
    let out = federation.falaj(&["study", "submit", &path.display().to_string()])?;
    let (told, place) = (text(&out), format!("broken.yaml:{line}:"));
    ensure!(!out.status.success() && told.contains(said), "{gate}: {told}");
    ensure!(told.contains(&place), "{gate}: {told}");
    Ok(())
}
