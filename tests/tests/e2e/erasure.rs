//! A person is erased from a running coordinator: with real certificates, over the command line, and as the verifier and the
//! report see it before and after.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{Federation, run, study_yaml, text};
use serde_json::Value;
use std::{fs, path::PathBuf};

const LAILA: &str = "spiffe://falaj.test/ae-on/ae-du/operator/laila";
const ARTICLE: &str = "Federal Decree-Law 45/2021, Article 15";

/// Exports the log and verifies it with the auditor's own trust; gives the bundle's bytes and its report.
fn exported(federation: &Federation, name: &str) -> Result<(PathBuf, Vec<u8>, Value)> {
    let bundle = federation.dir().join(name);
    let to = bundle.to_str().context("UTF-8")?;
    let out = federation.falaj(&["log", "export", "-o", to])?;
    ensure!(out.status.success(), "{}", text(&out));
    let (json, trust) = (bundle.with_extension("json"), federation.ca().join("trust.toml"));
    let (json, trust) = (json.to_str().context("UTF-8")?, trust.to_str().context("UTF-8")?);
    run("falaj-verify", &[to, "--trust", trust, "--report", json])?;
    let (bytes, report) = (fs::read(&bundle)?, serde_json::from_slice(&fs::read(json)?)?);
    Ok((bundle, bytes, report))
}

fn holds(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle.as_bytes())
}

/// AUD-09, CMP-04: refused under a hold, done without one; both bundles are verified, and findings go on.
#[test]
fn a_person_is_erased_and_every_bundle_is_still_verified() -> Result<()> {
    let mut federation = Federation::new()?;
    let mut coordinator = federation.start_coordinator()?;
    federation.issue("operator", "laila", "ae-on/ae-du")?;
    ensure!(federation.falaj_as("laila", &["status"])?.status.success());
    let study = federation.dir().join("kidney.yaml");
    fs::write(&study, study_yaml("kidney", 1, 2) + "governance:\n  dpia: DPIA-7\n")?;
    let out =
        federation.falaj_as("laila", &["study", "submit", study.to_str().context("UTF-8")?])?;
    ensure!(out.status.success(), "{}", text(&out));
    let (before, bytes, report) = exported(&federation, "before.tar")?;
    ensure!(holds(&bytes, LAILA) && report.to_string().contains(LAILA), "it is not disclosed");
    ensure!(report["findings"] == Value::Array(Vec::new()), "{}", report["findings"]);

    let hold =
        federation.falaj_json(&["hold", "place", "--person", LAILA, "--article", "Order 12"])?;
    let refused = federation.falaj(&["person", "erase", LAILA, "--article", ARTICLE])?;
    ensure!(!refused.status.success() && text(&refused).contains("Order 12"), "{}", text(&refused));
    let on_study = ["hold", "place", "--study", "kidney", "--article", "Order 13"];
    let second = federation.falaj_json(&on_study)?;
    federation.falaj_json(&["hold", "release", second["hold"].as_str().context("a hold")?])?;
    // A restart forgets neither holds nor people.
    ensure!(coordinator.terminate()? == Some(0));
    let _coordinator = federation.start_coordinator()?;
    let refused = federation.falaj(&["person", "erase", LAILA, "--article", ARTICLE])?;
    ensure!(!refused.status.success() && text(&refused).contains("Order 12"), "{}", text(&refused));
    federation.falaj_json(&["hold", "release", hold["hold"].as_str().context("a hold")?])?;
    let done = federation.falaj_json(&["person", "erase", LAILA, "--article", ARTICLE])?;
    let person = done["person"].as_str().context("a person")?.to_owned();
    let people = federation.falaj_json(&["person", "list"])?;
    ensure!(!people.to_string().contains("laila"), "{people}");

    let (_, bytes, report) = exported(&federation, "after.tar")?;
    ensure!(!holds(&bytes, "laila"), "the bundle still names whoever was erased");
    ensure!(holds(&bytes, person.trim_start_matches("person:")), "the pseudonym is gone");
    ensure!(report["findings"] == Value::Array(Vec::new()), "{}", report["findings"]);
    let section = |n: usize| report["sections"][n].to_string();
    ensure!(
        section(11).contains("E12.erasures") && section(11).contains(ARTICLE),
        "{}",
        section(11)
    );
    ensure!(section(11).contains("legal_hold"), "{}", section(11));
    ensure!(section(13).contains("E14.holds"), "{}", section(13));
    // What was exported before is verified as it was.
    run("falaj-verify", &[before.to_str().context("UTF-8")?])?;
    // Nothing in the coordinator's folder names them.
    let mut folders = vec![federation.coordinator_state()];
    while let Some(folder) = folders.pop() {
        for file in fs::read_dir(folder)? {
            let path = file?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                ensure!(!holds(&fs::read(&path)?, "operator/laila"), "{}", path.display());
            }
        }
    }
    // Whoever comes again is somebody new, and rows say who as long as that is known.
    ensure!(federation.falaj_as("laila", &["status"])?.status.success());
    let rows = federation.falaj(&["log", "who-accessed", LAILA])?;
    ensure!(rows.status.success() && text(&rows).contains(LAILA), "{}", text(&rows));
    ensure!(!text(&rows).contains(&person), "{}", text(&rows));
    let rows = federation.falaj(&["log", "who-accessed", &person])?;
    ensure!(rows.status.success() && text(&rows).contains(&person), "{}", text(&rows));
    ensure!(!text(&rows).contains("laila"), "{}", text(&rows));
    Ok(())
}
