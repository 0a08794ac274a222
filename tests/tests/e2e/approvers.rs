//! Promotions that do not go through: one approver who says it twice, and two people who promote at once.

use crate::promotion::{SARA, json_of, learned};
use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{Federation, repository, run, text};
use serde_json::{Value, json};
use std::{fs, thread};

/// The words by which somebody approves that Sara puts a version into production.
fn approving(version: &str) -> [&str; 10] {
    let words = ["approval", "give", "version.promote", "--study", "heart", "--version"];
    let [a, b, c, d, e, f] = words;
    [a, b, c, d, e, f, version, "--stage=production", "--for", SARA]
}

/// The approvals that an entry counts.
fn counted(entry: &Value) -> Result<Vec<String>> {
    Ok(serde_json::from_value(entry["entry"]["approvals"].clone())?)
}

#[test]
fn one_approver_who_says_it_twice_does_not_stand_for_two() -> Result<()> {
    let mut federation = Federation::new()?;
    // The shipped policies, by which two other people have to approve.
    let policies = federation.dir().join("policies");
    fs::create_dir_all(&policies)?;
    for name in ["coordinator.cedar", "coordinator.cedarschema"] {
        let shipped = fs::read_to_string(repository().join("policies").join(name))?;
        let stricter = shipped.replace("context.approvals >= 1", "context.approvals >= 2");
        ensure!((stricter == shipped) == name.ends_with("schema"), "{name} asks for nothing");
        fs::write(policies.join(name), stricter)?;
    }
    federation.policies = policies;
    let (federation, _coordinator, _agents) = learned(federation)?;
    let ca = federation.ca().display().to_string();
    let noor = ["issue", &ca, "operator", "noor", "--place", "ae-on/ae-az", "--group", "approver"];
    run("falaj-certs", &noor)?;
    json_of(&federation, "sara", &["model", "promote", "heart", "1", "--to", "staging"])?;
    let production = ["model", "promote", "heart", "1", "--to", "production"];
    let name = |approval: &Value| approval["approval"].as_str().map(str::to_owned);
    let approve = |by: &str| -> Result<String> {
        name(&json_of(&federation, by, &approving("1"))?).context("a name")
    };
    approve("lina")?;
    let second = approve("lina")?;
    let alone = federation.falaj_as("sara", &production)?;
    ensure!(!alone.status.success() && text(&alone).contains("APR-002"), "{}", text(&alone));
    let denied = federation.entries("access.denied")?;
    // The older one is no more: one person is counted, by what she said last.
    ensure!(counted(denied.last().context("a refusal")?)? == [second.clone()], "{denied:?}");
    // Whoever submitted the study, and whoever promotes, is nobody who approves.
    for (by, why) in [("omar", "their own study"), ("sara", "")] {
        let out = federation.falaj_as(by, &approving("1"))?;
        ensure!(!out.status.success() && text(&out).contains(why), "{by}: {}", text(&out));
    }
    ensure!(!federation.falaj_as("sara", &production)?.status.success());
    let other = approve("noor")?;
    let champion = json_of(&federation, "sara", &production)?;
    ensure!(champion["stage"] == "production", "{champion}");
    let promoted = federation.entries("version.promoted")?;
    let mut found = counted(promoted.last().context("a promotion")?)?;
    let mut both = vec![second, other];
    found.sort();
    both.sort();
    ensure!(found == both, "{found:?}");
    federation.verified()?;
    Ok(())
}

#[test]
fn of_two_who_promote_at_once_one_does_and_the_log_is_verified() -> Result<()> {
    let (federation, _coordinator, _agents) = learned(Federation::new()?)?;
    let made = federation.falaj_json(&["model", "make", "heart", "--round", "1"])?;
    ensure!(made["version"] == 2, "{made}");
    for version in ["1", "2"] {
        json_of(&federation, "sara", &["model", "promote", "heart", version, "--to", "staging"])?;
        json_of(&federation, "lina", &approving(version))?;
    }
    let revision = federation.falaj_json(&["model", "show", "heart", "1"])?["revision"].to_string();
    let promote = |version: &str| {
        let words = ["model", "promote", "heart", version, "--to", "production", "--if-revision"];
        federation.falaj_as("sara", &[&words[..], &[&*revision]].concat())
    };
    let both = thread::scope(|scope| {
        let asked = ["1", "2"].map(|version| scope.spawn(move || promote(version)));
        asked.map(|asked| asked.join().expect("it does not panic"))
    });
    let [one, two] = both;
    let (one, two) = (one?, two?);
    let (won, lost) = match (one.status.success(), two.status.success()) {
        (true, false) => (1, &two),
        (false, true) => (2, &one),
        _ => anyhow::bail!("{}{}", text(&one), text(&two)),
    };
    ensure!(text(lost).contains("conflict"), "{}", text(lost));
    let versions = federation.falaj_json(&["model", "versions", "heart"])?;
    let serving: Vec<_> = versions["items"].as_array().context("versions")?.iter().collect();
    let serving: Vec<_> = serving.into_iter().filter(|v| v["stage"] == "production").collect();
    ensure!(serving.len() == 1 && serving[0]["version"] == won, "{versions}");
    ensure!(serving[0]["aliases"] == json!(["champion"]), "{versions}");
    let promoted = federation.entries("version.promoted")?;
    let to = |e: &&Value| e["entry"]["stage"] == "production";
    ensure!(promoted.iter().filter(to).count() == 1, "{promoted:?}");
    federation.verified()?;
    Ok(())
}
