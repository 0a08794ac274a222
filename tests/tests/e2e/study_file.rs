//! What a study file may say: each mistake is reported with file, line, what, and how to mend it.

use anyhow::{Result, ensure};
use falaj_tests::federation::{Federation, SiteSpec, binary, study_yaml, text, wisconsin};
use std::{fs, process::Command};

/// Submits a broken study and gives what the operator reads.
fn complaint(yaml: &str) -> Result<String> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let path = federation.dir().join("broken.yaml");
    fs::write(&path, yaml)?;
    let out = federation.falaj(&["study", "submit", &path.display().to_string()])?;
    ensure!(!out.status.success(), "it was taken");
    ensure!(
        federation.falaj_json(&["study", "list"])?["items"].as_array().is_none_or(Vec::is_empty)
    );
    Ok(text(&out))
}

#[test]
fn an_unknown_key_is_reported_with_its_line() -> Result<()> {
    let yaml = study_yaml("s", 1, 2).replace("training: {", "training: { learning_rat: 3,");
    let line = 1 + yaml.lines().position(|l| l.contains("learning_rat:")).unwrap_or_default();
    let said = complaint(&yaml)?;
    ensure!(said.contains(&format!("broken.yaml:{line}:")), "{said}");
    ensure!(said.contains("learning_rat"), "{said}");
    Ok(())
}

#[test]
fn contradictory_privacy_settings_are_reported_with_the_way_out() -> Result<()> {
    let yaml = study_yaml("s", 1, 2).replace("mechanism: dp_sgd", "mechanism: none");
    let line = 1 + yaml.lines().position(|l| l.contains("mechanism: none")).unwrap_or_default();
    let said = complaint(&yaml)?;
    ensure!(said.contains(&format!("broken.yaml:{line}:")), "{said}");
    ensure!(said.contains("contradicts") && said.contains("remove"), "{said}");
    Ok(())
}

#[test]
fn a_plan_over_its_own_epsilon_limit_says_how_many_rounds_fit() -> Result<()> {
    let yaml = study_yaml("s", 50, 2).replace("epsilon_limit: 900.0", "epsilon_limit: 8.0");
    let said = complaint(&yaml)?;
    ensure!(said.contains("50 rounds cost epsilon") && said.contains("plan at most"), "{said}");
    Ok(())
}

#[test]
fn batch_normalisation_is_refused_with_the_reason() -> Result<()> {
    let cnn = "{ kind: cnn, image: [5, 6, 1], hidden: 8, conv: [{ filters: 4, kernel: 3, norm: batch }] }";
    let said = complaint(&study_yaml("s", 1, 2).replace("{ kind: logistic }", cnn))?;
    ensure!(said.contains("no record has a gradient of its own"), "{said}");
    ensure!(said.contains("norm: group"), "{said}");
    Ok(())
}

#[test]
fn heads_that_do_not_divide_the_width_are_refused() -> Result<()> {
    let model = "{ kind: transformer, width: 10, heads: 4 }";
    let said = complaint(&study_yaml("s", 1, 2).replace("{ kind: logistic }", model))?;
    ensure!(said.contains("4 heads do not divide 10"), "{said}");
    Ok(())
}

#[test]
fn a_declared_transformer_trains_with_adamw_at_the_sites() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let site = SiteSpec { trainer: "torch", ..SiteSpec::new("hospital-1", "ae-on/ae-az") };
    federation.prepare_site(&site, &wisconsin(1)?[0])?;
    let _agent = federation.start_agent(&site)?;
    let model = "{ kind: transformer, width: 8, heads: 2, blocks: 1, feed_forward: 16 }";
    let yaml = study_yaml("s", 2, 1)
        .replace("{ kind: logistic }", model)
        .replace("training: {", "training: { optimizer: adamw,");
    federation.submit(&yaml)?;
    federation.study_reaches("s", &["finished", "failed"])?;
    ensure!(federation.entries("update.accepted")?.len() == 2);
    Ok(())
}

#[test]
fn an_adaptive_clip_norm_goes_on_from_round_to_round() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let site = SiteSpec::new("hospital-1", "ae-on/ae-az");
    federation.prepare_site(&site, &wisconsin(1)?[0])?;
    let agent = federation.start_agent(&site)?;
    let adaptive = "adaptive_clipping: { quantile: 0.9, learning_rate: 0.5, count_noise: 2.0 }";
    let yaml = study_yaml("s", 4, 1)
        .replace("clip_norm: 1.0,", &format!("clip_norm: 900.0, {adaptive},"))
        .replace("sealing: { bits: 16, range: 8.0 }", "sealing: { bits: 32, range: 8000.0 }");
    federation.submit(&yaml)?;
    federation.finishes("s")?;
    // Without the colours, each of which ends at an `m`.
    let plain =
        |part: &str| part.split_once('m').map_or(String::new(), |(_, text)| text.to_owned());
    let output = agent.output();
    let (first, rest) = output.split_once('\u{1b}').unwrap_or((&output, ""));
    let said = first.to_owned() + &rest.split('\u{1b}').map(plain).collect::<String>();
    let norms: Vec<f64> = said
        .split("clip_norm=")
        .skip(1)
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .collect();
    ensure!(norms.len() == 4, "{norms:?}: {said}");
    // No gradient is a hundredth as long, so the norm falls in every step by e^(-0.05), but for the noise's part: in one round
    // it can rise a little, and goes on from there. Where each round began anew, the last one would end as the first.
    ensure!(norms[3] < 0.8 * norms[0], "{norms:?}");
    Ok(())
}

#[test]
fn a_delta_above_one_over_the_records_draws_a_warning() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let site = SiteSpec::new("hospital-1", "ae-on/ae-az");
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?;
    let path = federation.dir().join("study.yaml");
    let explain = |delta: &str| -> Result<String> {
        fs::write(&path, study_yaml("s", 1, 1).replace("1.0e-5", delta))?;
        let out = Command::new(binary("falaj-agent"))
            .args(["explain", &path.display().to_string(), "--config"])
            .arg(&config)
            .output()?;
        ensure!(out.status.success(), "{}", text(&out));
        Ok(text(&out))
    };
    ensure!(explain("5.0e-3")?.contains("warning: the study's delta of 5e-3 is above"));
    ensure!(!explain("1.0e-5")?.contains("warning"));
    Ok(())
}

#[test]
fn an_adaptive_clip_norm_whose_count_would_be_bare_is_refused() -> Result<()> {
    let bare = "adaptive_clipping: { quantile: 0.5, learning_rate: 0.2, count_noise: 0.1 }";
    let yaml = study_yaml("s", 1, 2).replace("clip_norm: 1.0", &format!("clip_norm: 1.0, {bare}"));
    let line = 1 + yaml.lines().position(|l| l.contains("count_noise")).unwrap_or_default();
    let said = complaint(&yaml)?;
    ensure!(said.contains(&format!("broken.yaml:{line}:")), "{said}");
    ensure!(said.contains("noise on the count"), "{said}");
    let yaml = yaml.replace("dp_sgd", "local_gaussian");
    ensure!(complaint(&yaml)?.contains("step by step"));
    Ok(())
}

#[test]
fn a_column_that_the_records_lack_makes_the_site_decline_and_say_so() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let site = SiteSpec::new("hospital-1", "ae-on/ae-az");
    federation.prepare_site(&site, &wisconsin(1)?[0])?;
    let mut agent = federation.start_agent(&site)?;
    let yaml = study_yaml("s", 1, 1)
        .replace("mean_radius", "mean_nonsense")
        .replace("min_sites: 1", "sites: [hospital-1], min_sites: 1")
        .replace("grace_s: 2", "grace_s: 2, retries: 0");
    federation.submit(&yaml)?;
    federation.study_reaches("s", &["failed"])?;
    agent.says("mean_nonsense")?;
    let declined = federation.entries("site.declined")?;
    ensure!(declined.len() == 1, "{declined:?}");
    Ok(())
}
