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

/// The JSON lines of a command's output.
fn lines(federation: &Federation, args: &[&str]) -> Result<Vec<Value>> {
    let out = federation.falaj(&[&["--json"], args].concat())?;
    ensure!(out.status.success(), "{args:?}: {}", text(&out));
    let stdout = str::from_utf8(&out.stdout)?;
    Ok(stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

/// AUD-09, AUD-11, AUD-14: a shard that has ended is asked, and exported and verified after somebody in it was erased.
#[test]
fn a_shard_that_ended_is_asked_and_is_verified_after_somebody_in_it_was_erased() -> Result<()> {
    let mut federation = Federation::new()?;
    let old = federation.log_origin.clone();
    let old = old.as_str();
    let mut coordinator = federation.start_coordinator()?;
    federation.issue("operator", "laila", "ae-on/ae-du")?;
    ensure!(federation.falaj_as("laila", &["status"])?.status.success());
    let status = federation.falaj_json(&["status"])?;
    let known = status["log_verifier_key"].as_str().context("a key")?.to_owned();
    ensure!(coordinator.terminate()? == Some(0));
    let new = "falaj.test/audit/2999";
    federation.log_origin = new.into();
    let _coordinator = federation.start_coordinator()?;
    ensure!(federation.falaj_as("laila", &["log", "shards"])?.status.success());

    // Who is asked about is in both shards; each row is proven under its own, and names it.
    let rows = lines(&federation, &["log", "who-accessed", LAILA, "--all-shards"])?;
    let (heads, rows): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|line| line["checkpoint"].is_string());
    let shards: Vec<_> = heads.iter().filter_map(|head| head["shard"].as_str()).collect();
    ensure!(shards == [old, new], "{shards:?}");
    for shard in [old, new] {
        let of = |row: &&Value| row["shard"] == *shard && row["personal"].is_string();
        ensure!(rows.iter().filter(of).count() > 1, "{shard}: {rows:?}");
    }
    let table = federation.falaj(&["log", "who-accessed", LAILA, "--shard", old])?;
    ensure!(table.status.success() && text(&table).contains("\nSHARD"), "{}", text(&table));
    ensure!(text(&table).contains(LAILA) && !text(&table).contains(new), "{}", text(&table));
    let folder = federation.dir().join("proofs");
    let to = folder.to_str().context("UTF-8")?;
    lines(&federation, &["log", "who-accessed", LAILA, "--all-shards", "-o", to])?;
    for shard in ["shard-1", "shard-2"] {
        ensure!(fs::read_dir(folder.join(shard))?.count() > 1, "{shard}");
    }
    // A key that was pinned is of one shard; each needs its own.
    let pinned = ["log", "who-accessed", LAILA, "--log-key", &known];
    let one = federation.falaj(&[&pinned[..], &["--shard", old]].concat())?;
    ensure!(one.status.success(), "{}", text(&one));
    let all = federation.falaj(&[&pinned[..], &["--all-shards"]].concat())?;
    ensure!(!all.status.success() && text(&all).contains(&format!("of the shard {new}")));
    let opened = ["log", "query", "--kind", "log.opened", "--all-shards"];
    let opened: Vec<_> = lines(&federation, &opened)?;
    let shards: Vec<_> = opened.iter().filter_map(|row| row["shard"].as_str()).collect();
    ensure!(shards == [old, new] && opened.iter().all(|row| row["index"] == 0), "{opened:?}");
    let limited = ["log", "query", "--all-shards", "--limit", "3"];
    ensure!(lines(&federation, &limited)?.len() == 3);
    let tail = lines(&federation, &["log", "tail", "-n", "1", "--shard", old])?;
    ensure!(tail.len() == 1 && tail[0]["entry"]["kind"] == "log.closed", "{tail:?}");
    let stamps = federation.falaj_json(&["log", "timestamps", "--shard", old])?;
    ensure!(stamps["items"] == Value::Array(Vec::new()), "{stamps}");
    for asked in [&["query"][..], &["who-accessed", "heart"], &["tail"], &["timestamps"]] {
        let asked = [&["log"], asked, &["--shard", "falaj.test/elsewhere"]].concat();
        let refused = federation.falaj(&asked)?;
        let said = text(&refused);
        ensure!(
            !refused.status.success() && said.contains("no shard falaj.test/elsewhere"),
            "{said}"
        );
        ensure!(said.contains("`falaj log shards`"), "{said}");
    }

    let bundle = |name: &str| -> Result<String> {
        let to = federation.dir().join(name);
        let to = to.to_str().context("UTF-8")?.to_owned();
        let out = federation.falaj(&["log", "export", "-o", &to, "--shard", old])?;
        ensure!(out.status.success(), "{}", text(&out));
        Ok(to)
    };
    let trust = federation.ca().join("trust.toml");
    let trust = trust.to_str().context("UTF-8")?;
    let verify =
        |bundle: &str| run("falaj-verify", &[bundle, "--trust", trust, "--log-key", &known]);
    let before = bundle("ended-before.tar")?;
    ensure!(holds(&fs::read(&before)?, LAILA) && !verify(&before)?.contains("erased "));
    let done = federation.falaj_json(&["person", "erase", LAILA, "--article", ARTICLE])?;
    let person = done["person"].as_str().context("a person")?;
    let after = bundle("ended-after.tar")?;
    let bytes = fs::read(&after)?;
    ensure!(!holds(&bytes, "laila"), "the bundle still names whoever was erased");
    ensure!(holds(&bytes, person.trim_start_matches("person:")), "the pseudonym is gone");
    let said = verify(&after)?;
    let shown = format!("{person}: by entry {} of {new}", done["index"]);
    ensure!(said.contains(&shown), "{shown}\n{said}");
    // What was exported before is verified as it was.
    verify(&before)?;
    Ok(())
}
