//! The audit report of real runs: nothing to be found in one that went as agreed, and each thing that did not in its place.

use anyhow::{Context as _, Result, ensure};
use falaj_coordinator::{
    metrics::Metrics,
    store::{Database, Store, writer},
};
use falaj_core::{
    audit::{Actor, Draft, Kind},
    id::Digest,
    note::NoteSigner,
};
use falaj_tests::{
    federation::{Federation, SiteSpec, binary, run, study_yaml, text, wisconsin},
    rogue::Rogue,
};
use serde_json::Value;
use std::{fs, path::Path, process::Command, sync::Arc};

const GOVERNED: &str = "governance:\n  legal_basis: research permission 7\n  dpia: DPIA-7\n  consent: { reference: protocol 7, expires: 2099-12-31 }\n  retention: 25y\n";

/// Exports the log, and gives the report that the verifier makes of it.
fn report(federation: &Federation, bundle: &Path, more: &[&str]) -> Result<Value> {
    let to = bundle.to_str().context("UTF-8")?;
    let out = federation.falaj(&["log", "export", "-o", to])?;
    ensure!(out.status.success(), "{}", text(&out));
    verified(federation, bundle, more)
}

fn verified(federation: &Federation, bundle: &Path, more: &[&str]) -> Result<Value> {
    let json = bundle.with_extension("json");
    let trust = federation.ca().join("trust.toml");
    let (bundle, json) = (bundle.to_str().context("UTF-8")?, json.to_str().context("UTF-8")?);
    let mut words = vec![bundle, "--trust", trust.to_str().context("UTF-8")?, "--report", json];
    words.extend(more);
    run("falaj-verify", &words)?;
    Ok(serde_json::from_slice(&fs::read(json)?)?)
}

fn names(report: &Value) -> Vec<&str> {
    let found = report["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
    found.iter().filter_map(|f| f["finding"].as_str()).collect()
}

fn level<'a>(report: &'a Value, fact: &str) -> &'a str {
    let sections = report["sections"].as_array().map(Vec::as_slice).unwrap_or_default();
    let facts = sections.iter().filter_map(|s| s["facts"].as_array()).flatten();
    facts.filter(|f| f["fact"] == fact).find_map(|f| f["level"].as_str()).unwrap_or("gap")
}

/// CMP-01 and CMP-03: a run as agreed.
#[test]
fn a_run_as_agreed_shows_no_finding_and_its_bundle_can_be_made_again() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let _agents = federation.start_hospitals()?;
    federation.submit(&(study_yaml("agreed", 2, 2) + GOVERNED))?;
    federation.finishes("agreed")?;
    ensure!(federation.auc("agreed")? > 0.5);
    let first = federation.dir().join("first.tar");
    let whole = report(&federation, &first, &[])?;
    ensure!(names(&whole).is_empty(), "{}", whole["findings"]);
    for (fact, expected) in [
        ("E1.places", "ca_attested"),
        ("E3.legal_basis", "declared"),
        ("E4.accesses", "witnessed"),
        ("E5.integrity", "proven"),
        ("E6.epsilon", "attested"),
        ("E6.mechanisms", "proven"),
        ("E7.transport", "witnessed"),
        ("E8.policies", "proven"),
        ("E9.lineage", "proven"),
        ("E10.dpia", "declared"),
        ("E13.approvals", "gap"),
    ] {
        // The newest entries, the export among them, have no witness yet.
        let found = level(&whole, fact).replace("recorded", "witnessed");
        ensure!(found == expected, "{fact} is {found}");
    }
    let size = whole["log"]["tree_size"].to_string();
    // A hospital that comes later changes nothing about what was.
    federation.issue("operator", "late", "ae-on/ae-du")?;
    ensure!(federation.falaj_as("late", &["status"])?.status.success());
    let again = federation.dir().join("again.tar");
    let words = ["log", "export", "--tree-size", &size, "-o", again.to_str().context("UTF-8")?];
    let out = federation.falaj(&words)?;
    ensure!(out.status.success(), "{}", text(&out));
    ensure!(fs::read(&first)? == fs::read(&again)?, "the same log gave other bytes");
    let none = federation.falaj(&["log", "export", "--tree-size", "999999", "-o", "none.tar"])?;
    ensure!(text(&none).contains("no checkpoint of 999999 entries"), "{}", text(&none));

    // For people, in both languages, from one source.
    let pages = federation.dir().join("pages");
    let words = ["make", first.to_str().context("UTF-8")?, "-o", pages.to_str().context("UTF-8")?];
    let out = Command::new(binary("falaj-report")).args(words).output()?;
    ensure!(out.status.success() && out.stderr.is_empty(), "{}", text(&out));
    let source = Digest::of(&fs::read(pages.join("report.json"))?).to_string();
    for lang in ["en", "ar"] {
        let html = fs::read_to_string(pages.join(format!("report.{lang}.html")))?;
        // Digests are broken with invisible marks, for lines to end in them.
        let plain: String = html.replace("<wbr>", "").replace(['\u{200b}', '\u{2060}'], "");
        ensure!(plain.contains(&source), "the {lang} page names another source");
        ensure!(fs::read(pages.join(format!("report.{lang}.pdf")))?.starts_with(b"%PDF-"));
    }

    // Everything about one hospital, and about nobody else.
    let me = "spiffe://falaj.test/ae-on/ae-az/site/hospital-1";
    let mine = verified(&federation, &first, &["--subject", me])?;
    let parties = mine["sections"][3]["tables"][0]["rows"].as_array().context("accesses")?;
    ensure!(parties.len() == 1 && parties[0][0] == me, "{parties:?}");
    Ok(())
}

/// CMP-03: a run with everything that should not be, under policies that let it.
#[test]
fn a_run_that_went_wrong_shows_each_wrong_in_its_section() -> Result<()> {
    let mut federation = Federation::new()?;
    let lax = federation.dir().join("lax");
    fs::create_dir(&lax)?;
    for file in ["coordinator.cedar", "coordinator.cedarschema"] {
        let text = fs::read_to_string(federation.policies.join(file))?;
        fs::write(lax.join(file), text.replace("[\"ae-on\"]", "[\"ae-on\", \"gb\"]"))?;
    }
    federation.policies = lax;
    let mut coordinator = federation.start_coordinator()?;
    let mut agents = federation.start_hospitals()?;
    let london = SiteSpec::new("london", "gb/gb-lnd");
    federation.prepare_site(&london, &wisconsin(3)?[2])?;
    agents.push(federation.start_agent(&london)?);
    federation.issue("site", "rogue", "ae-on/ae-sh")?;
    let expired = "governance:\n  consent: { reference: protocol 7, expires: 2020-12-31 }\n";
    let yaml = study_yaml("wrong", 1, 4).replace("[\"ae-on/*\"]", "[\"ae-on/*\", \"gb/*\"]");
    federation.submit(&(yaml + expired))?;
    overspend(&federation)?;
    federation.finishes("wrong")?;
    federation.issue("operator", "eve", "gb/gb-lnd")?;
    let model = federation.dir().join("taken.safetensors");
    let words = ["model", "download", "wrong", "-o", model.to_str().context("UTF-8")?];
    let out = federation.falaj_as("eve", &words)?;
    ensure!(out.status.success(), "{}", text(&out));
    drop(agents);
    coordinator.terminate()?;
    read_past_the_policies(&federation)?;
    let _coordinator = federation.start_coordinator()?;
    let report = report(&federation, &federation.dir().join("wrong.tar"), &[])?;
    let mut found = names(&report);
    found.sort_unstable();
    let planted = [
        "epsilon_overrun",
        "expired_consent",
        "export_without_approval",
        "export_without_approval",
        "missing_dpia",
        "out_of_region_join",
        "read_without_grant",
    ];
    ensure!(found == planted, "{}", report["findings"]);
    for finding in report["findings"].as_array().context("findings")? {
        // A model leaves for London twice: to the site, which trains on it, and to who downloads it.
        let expected = match finding["finding"].as_str().unwrap_or_default() {
            "epsilon_overrun" => ("E6", "rogue"),
            "expired_consent" => ("E12", ""),
            "export_without_approval" => ("E2", ""),
            "missing_dpia" => ("E10", ""),
            "out_of_region_join" => ("E1", "london"),
            _ => ("E4", "mallory"),
        };
        let who = finding["who"].as_str().context("who")?;
        ensure!(finding["section"] == expected.0 && who.ends_with(expected.1), "{finding}");
    }
    let left = report["sections"][1]["tables"][0]["rows"].as_array().context("transfers abroad")?;
    let tables = report["sections"][3]["tables"].as_array().context("the tables of E4")?;
    let people = tables.iter().find(|table| table["name"] == "people").context("people")?;
    let people = people["rows"].as_array().context("rows")?;
    let is_eve = |row: &&Value| row[1].as_str().is_some_and(|who| who.ends_with("/eve"));
    let eve = people.iter().find(is_eve).context("nobody says who took the model")?;
    ensure!(left.iter().any(|row| row[1] == eve[0]), "{left:?}");
    Ok(())
}

/// A site that states more than was agreed, and is let in all the same.
fn overspend(federation: &Federation) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let address = federation.addresses.context("started")?.grpc;
        let credentials = federation.credentials("site", "rogue")?;
        let mut rogue = Rogue::connect(address, credentials, &federation.trust()?).await?;
        let tasked = rogue.tasked().await?;
        let mut header = rogue.honest(&tasked)?;
        header.epsilon = "900.5000".into();
        let forgery = rogue.forge(&header, Rogue::zeros(&tasked)?);
        rogue.submit(forgery).await?;
        Ok(())
    })
}

/// Somebody with the run of the coordinator's machine reads the log without asking any policy.
fn read_past_the_policies(federation: &Federation) -> Result<()> {
    federation.issue("operator", "mallory", "ae-on/ae-az")?;
    let credentials = federation.credentials("operator", "mallory")?;
    let identity = credentials.identity()?;
    let (id, cert) = (identity.spiffe, identity.cert_sha256);
    let actor = Actor { id: Some(id), cert: Some(cert), ..Actor::default() };
    let state = federation.coordinator_state();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut secret = [0; 32];
        hex::decode_to_slice(fs::read_to_string(state.join("log.key"))?.trim(), &mut secret)?;
        let key = ed25519_dalek::SigningKey::from_bytes(&secret);
        let signer = Arc::new(NoteSigner::new("falaj.test/audit/2026", key)?);
        let database = Database::Sqlite(state.join("coordinator.sqlite"));
        let (_, writing) = Store::open(&database).await?;
        let metrics = Arc::new(Metrics::default());
        let (writer, service) = writer::open(writing, &signer, None, metrics).await?;
        let service = tokio::spawn(service.run());
        let rows = vec![writer::Change::Certificate(cert, credentials.certificate().to_vec())];
        let entries = vec![Draft::new(Kind::AdminRead).actor(&actor).text("action", "log.read")];
        writer.commit(writer::Commit { round: None, rows, entries }).await?;
        drop(writer);
        service.await?;
        Ok(())
    })
}
