//! Robust rules over real sockets: two sites that shout, and what the log and its verifier say of the rule.

use crate::evaluation::lines;
use anyhow::{Context as _, Result, ensure};
use falaj_core::{id::Digest, update::UpdateHeader};
use falaj_tests::{
    federation::{Federation, SiteSpec, study_yaml, wisconsin},
    rogue::{Rogue, Tasked},
};
use serde_json::Value;
use std::{fs, io, path::Path};
use tokio::runtime::Runtime;

/// Rounds of each study here.
const ROUNDS: u32 = 6;
/// The sites that train.
const HONEST: usize = 5;

/// A study whose updates become one by a rule.
fn ruled(name: &str, min_sites: u32, aggregation: &str) -> String {
    study_yaml(name, ROUNDS, min_sites).replace(
        &format!("min_sites: {min_sites} }}"),
        &format!("min_sites: {min_sites}, weights: uniform }}\naggregation: {aggregation}"),
    )
}

#[test]
fn two_sites_that_shout_carry_the_mean_away_and_not_the_median() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let mut agents = Vec::new();
    for (i, csv) in wisconsin(HONEST)?.iter().enumerate() {
        let site = SiteSpec::new(&format!("hospital-{}", i + 1), "ae-on/ae-az");
        federation.prepare_site(&site, csv)?;
        agents.push(federation.start_agent(&site)?);
    }
    let runtime = Runtime::new()?;
    let address = federation.addresses.map(|a| a.grpc).expect("it has started");
    let trust = federation.trust()?;
    let mut rogues = Vec::new();
    for name in ["bad-1", "bad-2"] {
        federation.issue("site", name, "ae-on/ae-du")?;
        let credentials = federation.credentials("site", name)?;
        rogues.push(runtime.block_on(Rogue::connect(address, credentials, &trust))?);
    }
    let mut aucs = Vec::new();
    for (name, aggregation) in [
        ("mean", "{ rule: mean }"),
        ("median", "{ rule: median }"),
        ("trimmed", "{ rule: trimmed_mean, byzantine: 2 }"),
        ("multi", "{ rule: multi_krum, byzantine: 2 }"),
        ("geometric", "{ rule: geometric_median }"),
    ] {
        federation.submit(&ruled(name, 7, aggregation))?;
        shout(&runtime, &mut rogues, ROUNDS)?;
        federation.finishes(name)?;
        aucs.push(federation.auc(name)?);
    }
    let rules = ["median", "trimmed_mean", "multi_krum", "geometric_median"];
    let told: Vec<Value> =
        federation.entries("model.published")?.iter().map(|e| e["entry"]["rule"].clone()).collect();
    let expected = [Value::Null].into_iter().chain(rules.map(Value::from));
    let expected: Vec<Value> = expected.flat_map(|rule| vec![rule; ROUNDS as usize]).collect();
    ensure!(told == expected, "{told:?}");
    federation.verified()?;
    ensure!(aucs[0] < 0.6 && aucs[1..].iter().all(|auc| *auc > 0.9), "{aucs:?}");
    Ok(())
}

/// Sends what is no update as one.
async fn send(rogue: &mut Rogue, tasked: &Tasked, payload: Vec<u8>) -> Result<()> {
    let honest = rogue.honest(tasked)?;
    let header = UpdateHeader { payload: Digest::of(&payload), weight: 1, ..honest };
    let forgery = rogue.forge(&header, payload);
    rogue.submit(forgery).await?;
    Ok(())
}

/// These sites say, round after round, the most that the grid lets them say.
fn shout(runtime: &Runtime, rogues: &mut [Rogue], rounds: u32) -> Result<()> {
    let shouting = rogues.iter_mut().map(|rogue| async move {
        let mut tasked = rogue.tasked().await?;
        for round in 1..=rounds {
            let zeros = Rogue::zeros(&tasked)?;
            // 32767 and -32767 in two bytes: whatever is large speaks for the first class, and against the second.
            let half = zeros.len() / 4;
            let most = |i: usize| if i < half { [0xff, 0x7f] } else { [0x01, 0x80] };
            let payload = (0..zeros.len() / 2).flat_map(most).collect();
            send(rogue, &tasked, payload).await?;
            if round < rounds {
                tasked.again().await?;
            }
        }
        anyhow::Ok(())
    });
    runtime.block_on(futures_util::future::try_join_all(shouting))?;
    Ok(())
}

/// A study of one round of four sites, in which none may stand out.
fn watched(name: &str, sites: &str) -> String {
    let places = "places: [\"ae-on/*\"]";
    let yaml = study_yaml(name, 1, 4).replace(places, &format!("{places}, sites: [{sites}]"));
    format!(
        "{yaml}gates:\n  - {{ metric: update_norm_ratio, each_site: true, at_most: 5, on_failure: stop }}\n  - {{ metric: update_cosine, each_site: true, at_least: -0.9, on_failure: stop }}\n"
    )
}

/// Each site says so many times the same.
fn say(runtime: &Runtime, rogues: &mut [Rogue], times: [i16; 4]) -> Result<()> {
    let saying = rogues.iter_mut().zip(times).map(|(rogue, times)| async move {
        let tasked = rogue.tasked().await?;
        let values = Rogue::zeros(&tasked)?.len() / 2;
        let value = |i: usize| times * [300, -200, 100][i % 3];
        let payload = (0..values).flat_map(|i| value(i).to_le_bytes()).collect();
        send(rogue, &tasked, payload).await
    });
    runtime.block_on(futures_util::future::try_join_all(saying))?;
    Ok(())
}

#[test]
fn a_site_whose_update_stands_out_is_named_and_its_round_gives_no_model() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let mut agents = Vec::new();
    for (i, csv) in wisconsin(3)?.iter().enumerate() {
        let site = SiteSpec::new(&format!("hospital-{}", i + 1), "ae-on/ae-az");
        federation.prepare_site(&site, csv)?;
        agents.push(federation.start_agent(&site)?);
    }
    let runtime = Runtime::new()?;
    let address = federation.addresses.map(|a| a.grpc).expect("it has started");
    let trust = federation.trust()?;
    let mut rogues = Vec::new();
    for name in ["bad", "clinic-1", "clinic-2", "clinic-3"] {
        federation.issue("site", name, "ae-on/ae-du")?;
        let credentials = federation.credentials("site", name)?;
        rogues.push(runtime.block_on(Rogue::connect(address, credentials, &trust))?);
    }
    // Three sites that train, and one that shouts.
    federation.submit(&watched("shouted", "hospital-1, hospital-2, hospital-3, bad"))?;
    shout(&runtime, &mut rogues[..1], 1)?;
    let study = federation.study_reaches("shouted", &["finished", "failed"])?;
    let why = study["reason"].as_str().unwrap_or_default();
    ensure!(why.starts_with("a gate ended it in round 1: update_norm_ratio at bad: "), "{study}");
    ensure!(!why.contains("hospital"), "{study}");
    // One that says the opposite, no louder than the others; and one that says the same.
    let clinics = "bad, clinic-1, clinic-2, clinic-3";
    federation.submit(&watched("turned", clinics))?;
    say(&runtime, &mut rogues, [-3, 2, 3, 4])?;
    let study = federation.study_reaches("turned", &["finished", "failed"])?;
    ensure!(
        study["reason"]
            == "a gate ended it in round 1: update_cosine at bad: -1, at least -0.9 needed",
        "{study}"
    );
    federation.submit(&watched("agreed", clinics))?;
    say(&runtime, &mut rogues, [5, 2, 3, 4])?;
    federation.finishes("agreed")?;
    let rejected = federation.entries("model.rejected")?;
    ensure!(rejected.len() == 2, "{rejected:?}");
    for entry in &rejected {
        let (compared, gates) = (lines(entry, "compared"), lines(entry, "gates"));
        ensure!(compared.len() == 4 && gates.len() == 8, "{entry}");
        ensure!(compared.iter().filter(|line| line.ends_with(" bad")).count() == 1, "{entry}");
        let failed: Vec<&String> = gates.iter().filter(|g| g.starts_with("fail: ")).collect();
        ensure!(!failed.is_empty() && failed.iter().all(|g| g.contains(" at bad: ")), "{entry}");
    }
    let published = federation.entries("model.published")?;
    ensure!(published.len() == 1, "{published:?}");
    let gates = lines(&published[0], "gates");
    ensure!(gates.len() == 8 && gates.iter().all(|g| g.starts_with("pass: ")), "{gates:?}");
    let cosines = lines(&published[0], "compared");
    ensure!(cosines.iter().all(|line| line.contains(" 1.000000 ")), "{cosines:?}");
    // And they are shown: the loud one by its length, with what its gate says.
    let ratio = ["study", "figures", "shouted", "--figure", "update_norm_ratio"];
    let shown = federation.falaj_json(&ratio)?;
    let figures = shown["figures"].as_array().context("figures")?;
    ensure!(figures.len() == 4, "{shown}");
    for figure in figures {
        let bad = figure["figure"] == "update_norm_ratio at bad";
        ensure!(figure["value"].is_f64() && figure["gates"][0]["pass"] == !bad, "{figure}");
    }
    let metrics = federation.metrics()?;
    for line in [
        "falaj_gates_total{metric=\"update_norm_ratio\",outcome=\"failed\"} 1\n",
        "falaj_gates_total{metric=\"update_norm_ratio\",outcome=\"passed\"} 2\n",
        "falaj_gates_total{metric=\"update_cosine\",outcome=\"passed\"} ",
    ] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let told = federation.verified()?;
    ensure!(told.contains("compared   updates in 3 verdicts"), "{told}");
    Ok(())
}

/// What becomes of a file.
#[derive(Clone, Copy)]
enum Damage {
    Changed,
    Cut,
    Removed,
}

impl Damage {
    fn happens(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Changed => {
                let mut bytes = fs::read(path)?;
                bytes[3] ^= 1;
                fs::write(path, bytes)
            }
            Self::Cut => fs::write(path, b"short"),
            Self::Removed => fs::remove_file(path),
        }
    }

    const fn told(self) -> &'static str {
        match self {
            Self::Changed => ", which no site signed",
            Self::Cut => " ends too early",
            Self::Removed => " is gone",
        }
    }
}

const DAMAGED: [&str; 3] = ["s-1", "s-2", "s-3"];

/// Sites that say what they are told to, and their tasks.
fn tasked(
    federation: &Federation,
    runtime: &Runtime,
    sites: &[&str],
) -> Result<Vec<(Rogue, Tasked)>> {
    let address = federation.addresses.map(|a| a.grpc).context("it has started")?;
    let trust = federation.trust()?;
    let one = async |site: &&str| {
        let credentials = federation.credentials("site", site)?;
        let mut rogue = Rogue::connect(address, credentials, &trust).await?;
        let tasked = rogue.tasked().await?;
        anyhow::Ok((rogue, tasked))
    };
    // None has a task before all are there.
    runtime.block_on(futures_util::future::try_join_all(sites.iter().map(one)))
}

/// Sends one value throughout, and says what it is called in the spool.
fn sends((rogue, tasked): &mut (Rogue, Tasked), runtime: &Runtime, value: u8) -> Result<String> {
    let payload = vec![value; Rogue::zeros(tasked)?.len()];
    let name = Digest::of(&payload).to_string();
    runtime.block_on(send(rogue, tasked, payload))?;
    Ok(name)
}

#[test]
fn an_update_that_is_no_longer_what_was_signed_is_in_no_model_and_holds_up_no_study() -> Result<()>
{
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    for site in DAMAGED {
        federation.issue("site", site, "ae-on/ae-az")?;
    }
    let spool = federation.coordinator_state().join("updates");
    let runtime = Runtime::new()?;
    let gate = "gates:\n  - { metric: update_norm_ratio, each_site: true, at_most: 5 }\n";
    let cases = [
        ("changed", "{ rule: median }", "", Damage::Changed),
        ("cut", "{ rule: geometric_median }", "", Damage::Cut),
        ("removed", "{ rule: median }", "", Damage::Removed),
        // The mean is in memory by then, and what a gate on updates looks at is not.
        ("compared", "{ rule: mean }", gate, Damage::Removed),
        // A coordinator that starts again folds in what is stored.
        ("again", "{ rule: mean }", "", Damage::Changed),
    ];
    for (i, (name, rule, gates, damage)) in cases.into_iter().enumerate() {
        let sites = format!("sites: [{}], min_sites: 3", DAMAGED.join(", "));
        let yaml = ruled(name, 3, rule).replace("min_sites: 3", &sites);
        let yaml = yaml.replace(&format!("count: {ROUNDS},"), "count: 1, retries: 0,");
        federation.submit(&(yaml + gates))?;
        let mut sites = tasked(&federation, &runtime, &DAMAGED)?;
        // What is the same lies in one file.
        let value = u8::try_from(10 * (i + 1))?;
        let first = sends(&mut sites[0], &runtime, value)?;
        // Once the second is counted, the first was folded in where that is done on arrival.
        sends(&mut sites[1], &runtime, value + 1)?;
        if name == "again" {
            coordinator.kill()?;
        }
        damage.happens(&spool.join(&first))?;
        if name == "again" {
            coordinator = federation.start_coordinator()?;
            sites = tasked(&federation, &runtime, &DAMAGED[2..])?;
        }
        let last = sites.last_mut().context("the third")?;
        sends(last, &runtime, value + 2)?;
        let study = federation.study_reaches(name, &["finished", "failed"])?;
        let why = study["reason"].as_str().unwrap_or_default();
        let expected = format!("round 1: aggregation failed: the stored update {first}");
        ensure!(why.starts_with(&expected) && why.ends_with(damage.told()), "{name}: {study}");
        let alerts = federation.entries("alert.raised")?;
        ensure!(alerts.len() == i + 1, "{name}: {alerts:?}");
        let told = |alert: &Value| {
            let entry = &alert["entry"];
            let detail = entry["detail"].as_str().unwrap_or_default();
            entry["alert"] == "update_damaged" && entry["study"] == name && why.ends_with(detail)
        };
        ensure!(alerts.iter().any(told), "{name}: {alerts:?}");
    }
    let counted = "falaj_alerts_total{alert=\"update_damaged\"} 1\n";
    ensure!(federation.metrics()?.contains(counted), "the alert since the last start");
    ensure!(federation.entries("model.published")?.is_empty());
    federation.verified()?;
    Ok(())
}

/// A base that is not the model it is named by moves nowhere: nothing is lost, and once it was restored the round goes on.
#[test]
fn a_model_that_was_changed_is_the_base_of_none_and_the_round_goes_on_once_it_is_back() -> Result<()>
{
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    for site in DAMAGED {
        federation.issue("site", site, "ae-on/ae-az")?;
    }
    let runtime = Runtime::new()?;
    for (name, rule) in [("mean", "{ rule: mean }"), ("median", "{ rule: median }")] {
        let yaml =
            ruled(name, 3, rule).replace(&format!("count: {ROUNDS},"), "count: 1, retries: 0,");
        federation.submit(&yaml)?;
        let mut sites = tasked(&federation, &runtime, &DAMAGED)?;
        for (value, site) in (1..).zip(&mut sites[..2]) {
            sends(site, &runtime, value)?;
        }
        let study = federation.falaj_json(&["study", "show", name])?;
        let base = study["model_sha256"].as_str().context("the first model")?;
        let path = federation.coordinator_state().join("models").join(base);
        let good = fs::read(&path)?;
        let mut changed = good.clone();
        changed[0] ^= 1;
        fs::write(&path, changed)?;
        sends(sites.last_mut().context("the third")?, &runtime, 3)?;
        coordinator.says(&format!("{base} has SHA-256"))?;
        fs::write(&path, &good[4..])?;
        coordinator.says(&format!("{base} has {} bytes: restore it", good.len() - 4))?;
        fs::write(&path, good)?;
        federation.finishes(name)?;
        // What a study learned is its sites' until it is revoked.
        let study = federation.falaj_json(&["study", "show", name])?;
        let model = study["model_sha256"].as_str().context("the model")?;
        let site = &mut sites[0].0;
        ensure!(runtime.block_on(site.fetch(name, model))? > 0);
        federation.falaj_json(&["model", "revoke", name, "1", "--reason", "no consent"])?;
        let refused = runtime.block_on(site.fetch(name, model)).expect_err("it was revoked");
        ensure!(refused.to_string().contains("was revoked"), "{refused:#}");
    }
    ensure!(federation.entries("model.published")?.len() == 2);
    federation.verified()?;
    Ok(())
}

#[test]
fn gates_on_updates_that_nobody_sees_or_that_are_too_few_are_refused() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let good = watched("refused", "a, b, c, d");
    let masked = "mechanism: distributed_gaussian, unit: record, batch_size: 28, noise_multiplier";
    for (from, to, line, why) in [
        (
            "mechanism: dp_sgd, noise_multiplier",
            masked,
            "  - { metric: update_norm_ratio",
            "sees only the sum of all updates, and of none of them `update_norm_ratio`",
        ),
        ("min_sites: 4", "min_sites: 2", "cohort", "of 2 none can; need 3 to 512 sites"),
    ] {
        ensure!(good.contains(from), "{from}");
        let yaml = good.replace(from, to);
        let at = 1 + yaml.lines().position(|l| l.starts_with(line)).unwrap_or_default();
        let refused = federation.submit(&yaml).expect_err("refused").to_string();
        ensure!(refused.contains(why), "{to}: {refused}");
        ensure!(refused.contains(&format!("study.yaml:{at}:")), "{to} in line {at}: {refused}");
    }
    federation.submit(&good)?;
    Ok(())
}

#[test]
fn a_rule_that_cannot_hold_is_refused_with_the_line_and_the_reason() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let good = ruled("refused", 7, "{ rule: krum, byzantine: 2 }");
    let masked = "mechanism: distributed_gaussian, unit: record, batch_size: 28, noise_multiplier";
    let krum = "{ rule: krum, byzantine: 2 }";
    for (from, to, line, why) in [
        (
            "min_sites: 7",
            "min_sites: 6",
            "cohort",
            "krum of 6 updates bounds nothing: it needs at least 7",
        ),
        (", weights: uniform", "", "cohort", "a site says its own weight"),
        ("mechanism: dp_sgd, noise_multiplier", masked, "aggregation", "sees only the sum"),
        (krum, "{ rule: krum }", "aggregation", "`aggregation.byzantine` is missing"),
        (krum, "{ rule: krum, byzantine: 0 }", "aggregation", "bears no bad update"),
        (krum, "{ rule: median, byzantine: 2 }", "aggregation", "contradicts this rule"),
        (krum, "{ rule: krum, byzantine: 2, keep: 2 }", "aggregation", "only `multi_krum` keeps"),
        (
            krum,
            "{ rule: multi_krum, byzantine: 2, keep: 4 }",
            "aggregation",
            "at most 3 of 7, not 4",
        ),
        (krum, "{ rule: trimmed_mean, byzantine: 4 }", "cohort", "it needs at least 9"),
        (krum, "{ rule: norm_bounded, clip_norm: -1.0 }", "aggregation", "not a positive number"),
        (krum, "{ rule: norm_bounded, clip_norm: 1.0e-4 }", "aggregation", "one step of the grid"),
        (krum, "{ rule: bulyan }", "aggregation", "bulyan"),
    ] {
        ensure!(good.contains(from), "{from}");
        let yaml = good.replace(from, to);
        let at = 1 + yaml.lines().position(|l| l.starts_with(line)).unwrap_or_default();
        let refused = federation.submit(&yaml).expect_err("refused").to_string();
        ensure!(refused.contains(why), "{to}: {refused}");
        ensure!(refused.contains(&format!("study.yaml:{at}:")), "{to} in line {at}: {refused}");
    }
    federation.submit(&good)?;
    Ok(())
}
