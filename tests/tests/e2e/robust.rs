//! Robust rules over real sockets: two sites that shout, and what the log and its verifier say of the rule.

use anyhow::{Result, ensure};
use falaj_core::{id::Digest, update::UpdateHeader};
use falaj_tests::{
    federation::{Federation, SiteSpec, study_yaml, wisconsin},
    rogue::Rogue,
};
use serde_json::Value;
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
        shout(&runtime, &mut rogues)?;
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

/// Both sites say, round after round, the most that the grid lets them say.
fn shout(runtime: &Runtime, rogues: &mut [Rogue]) -> Result<()> {
    let shouting = rogues.iter_mut().map(|rogue| async move {
        let mut tasked = rogue.tasked().await?;
        for round in 1..=ROUNDS {
            let zeros = Rogue::zeros(&tasked)?;
            // 32767 and -32767 in two bytes: whatever is large speaks for the first class, and against the second.
            let half = zeros.len() / 4;
            let most = |i: usize| if i < half { [0xff, 0x7f] } else { [0x01, 0x80] };
            let payload: Vec<u8> = (0..zeros.len() / 2).flat_map(most).collect();
            let honest = rogue.honest(&tasked)?;
            let header = UpdateHeader { payload: Digest::of(&payload), weight: 1, ..honest };
            let forgery = rogue.forge(&header, payload);
            rogue.submit(forgery).await?;
            if round < ROUNDS {
                tasked.again().await?;
            }
        }
        anyhow::Ok(())
    });
    runtime.block_on(futures_util::future::try_join_all(shouting))?;
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
