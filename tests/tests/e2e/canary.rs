//! Nothing of a record is on the wire: a marked record lies among a site's, and what the site sends is read with its own keys.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::{
    federation::{
        Federation, SiteSpec, binary, run, study_yaml, text as text_of, wait_for, wisconsin,
    },
    wiretap::{Overheard, Wiretap, occurs},
};
use serde_json::Value;
use std::{fs, path::Path, process::Command};

/// The marked values: columns of the study, their bounds, and what the marked record has there. No other record has any of it.
const MARKED: [(&str, f64, f64, f64); 6] = [
    ("mean_radius", 6.0, 30.0, 17.283_945_61),
    ("mean_texture", 9.0, 40.0, 23.718_281_83),
    ("mean_concavity", 0.0, 0.5, 0.314_159_265),
    ("worst_radius", 7.0, 40.0, 29.141_421_36),
    ("worst_texture", 12.0, 50.0, 37.320_508_08),
    ("worst_concave_points", 0.0, 0.3, 0.224_236_068),
];

/// Records with the marked values in the first of them.
fn marked(records: &str) -> Result<String> {
    let mut lines: Vec<String> = records.lines().map(str::to_owned).collect();
    let header: Vec<&str> = records.lines().next().context("a header")?.split(',').collect();
    let mut cells: Vec<String> = lines[1].split(',').map(str::to_owned).collect();
    for (column, .., value) in MARKED {
        let at = header.iter().position(|name| *name == column).context(column)?;
        cells[at] = value.to_string();
    }
    lines[1] = cells.join(",");
    Ok(lines.join("\n") + "\n")
}

/// Every way in which the record could stand somewhere: its values as they are written, and raw or scaled as numbers, in
/// whichever order of bytes; of short ones two neighbours together, because four bytes are found by chance.
fn patterns() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let unit = |(_, min, max, value): (_, f64, f64, f64)| (value - min) / (max - min);
    let views: [(&str, Vec<f64>); 3] = [
        ("raw", MARKED.iter().map(|m| m.3).collect()),
        ("scaled to [0, 1]", MARKED.iter().map(|m| unit(*m)).collect()),
        ("scaled to [-1, 1]", MARKED.iter().map(|m| 2.0_f64.mul_add(unit(*m), -1.0)).collect()),
    ];
    for (view, values) in views {
        for (value, (column, ..)) in values.iter().zip(MARKED) {
            let name = format!("{column}, {view}");
            all.push((format!("{name}, f64"), value.to_le_bytes().to_vec()));
            all.push((format!("{name}, f64, big-endian"), value.to_be_bytes().to_vec()));
            let digits: String = value.to_string().chars().take(9).collect();
            all.push((format!("{name}, in digits"), digits.into_bytes()));
        }
        for (pair, names) in values.windows(2).zip(MARKED.windows(2)) {
            let name = format!("{} and {}, {view}", names[0].0, names[1].0);
            #[expect(clippy::cast_possible_truncation, reason = "as a trainer would")]
            let pair = [pair[0] as f32, pair[1] as f32];
            all.push((format!("{name}, f32"), pair.map(f32::to_le_bytes).concat()));
            all.push((format!("{name}, f32, big-endian"), pair.map(f32::to_be_bytes).concat()));
        }
    }
    all
}

#[test]
fn no_byte_of_a_marked_record_is_on_the_wire() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let records = wisconsin(2)?;
    let (watched, other) =
        (SiteSpec::new("hospital-1", "ae-on/ae-az"), SiteSpec::new("hospital-2", "ae-on/ae-du"));
    let config = federation.prepare_site(&watched, &marked(&records[0])?)?;
    federation.prepare_site(&other, &records[1])?;
    // The watched site connects where everything that it sends is read.
    let tap = Wiretap::open(&federation, "hospital-1", federation.agents_connect_to()?)?;
    let there = fs::read_to_string(&config)?;
    let real = format!("address = \"{}\"", federation.agents_connect_to()?);
    ensure!(there.contains(&real), "{there}");
    fs::write(&config, there.replace(&real, &format!("address = \"{}\"", tap.address())))?;
    let mut agents = [federation.start_agent(&watched)?, federation.start_agent(&other)?];
    federation.submit(&study_yaml("canary", 3, 2))?;
    federation.finishes("canary")?;
    ensure!(federation.entries("update.accepted")?.len() == 6);
    let sent = tap.sent()?;
    // The tap hears what is sent: the study's name, the site's, and its three updates.
    for known in ["canary", "hospital-1"] {
        ensure!(occurs(known.as_bytes(), &sent), "`{known}` was not heard in {} bytes", sent.len());
    }
    let patterns = patterns();
    ensure!(patterns.len() >= 80, "{}", patterns.len());
    let found: Vec<&String> =
        patterns.iter().filter(|(_, bytes)| occurs(bytes, &sent)).map(|(name, _)| name).collect();
    ensure!(found.is_empty(), "on the wire: {found:?}");
    // The record was there to be learnt from, and where it lies each way of writing it in digits is found.
    let kept = fs::read(federation.dir().join("sites/hospital-1/data/records.csv"))?;
    let raw = patterns
        .iter()
        .filter(|(name, bytes)| name.contains("raw, in digits") && occurs(bytes, &kept));
    ensure!(raw.count() == MARKED.len(), "the record is not where it should be");
    let verdict = federation.verified()?;
    ensure!(verdict.contains("verified"), "{verdict}");
    agents[0].terminate()?;
    journalled(&federation, &tap, &config)
}

/// The site's egress journal says what was heard on the wire, message for message, and the verifier holds it against the log.
fn journalled(federation: &Federation, tap: &Wiretap, config: &Path) -> Result<()> {
    let config = config.display().to_string();
    let shown = run("falaj-agent", &["egress", "show", "--config", &config, "--json"])?;
    let shown: Value = serde_json::from_str(&shown)?;
    let messages = shown["messages"].as_array().context("messages")?;
    let mut said = Vec::new();
    for message in messages {
        said.push(Overheard {
            update: message["kind"] == "update",
            bytes: message["bytes"].as_u64().context("bytes")?,
            sha256: message["sha256"].as_str().context("sha256")?.to_owned(),
        });
    }
    said.sort();
    let heard = wait_for("the wire to be quiet", || {
        let heard = tap.messages()?;
        Ok((heard.len() >= said.len()).then_some(heard))
    })?;
    ensure!(heard == said, "heard {heard:#?}, and the journal says {said:#?}");
    let updates = said.iter().filter(|message| message.update).count();
    ensure!(updates == 3 && said.len() > 10, "{said:#?}");
    ensure!(shown["all_time"]["update"]["messages"] == 3, "{shown}");
    let metrics = run("falaj-agent", &["egress", "show", "--config", &config, "--openmetrics"])?;
    ensure!(metrics.contains("falaj_egress_messages_total{kind=\"update\"} 3"), "{metrics}");
    let later = ["egress", "show", "--config", &config, "--json", "--since", "2100-01-01"];
    let later: Value = serde_json::from_str(&run("falaj-agent", &later)?)?;
    ensure!(later["messages"].as_array().is_some_and(Vec::is_empty), "{later}");

    // An auditor holds the journal against the log.
    let file = |name: &str| federation.dir().join(name).display().to_string();
    let (whole, bundle) = (file("egress.jsonl"), file("bundle.tar"));
    run("falaj-agent", &["egress", "export", "--config", &config, "-o", &whole])?;
    let verdict = run("falaj-verify", &[&bundle, "--egress", &whole])?;
    ensure!(verdict.contains("3 counted updates left as it says"), "{verdict}");
    ensure!(verdict.contains("0 were refused, and 0 are not in this log"), "{verdict}");
    // A line left out, and the end cut off: neither holds.
    let lines = fs::read_to_string(&whole)?;
    let lines: Vec<&str> = lines.lines().collect();
    let update =
        lines.iter().rposition(|line| line.contains("\"kind\":\"update\"")).context("one")?;
    let first =
        lines.iter().position(|line| line.contains("\"kind\":\"update\"")).context("one")?;
    let without = [&lines[..first], &lines[first + 1..]].concat().join("\n");
    let cut = [&lines[..update], &lines[lines.len() - 1..]].concat().join("\n");
    for (name, text, word) in [("without", without, "entry"), ("cut", cut, "signed another head")] {
        fs::write(file(name), text)?;
        let words = [bundle.as_str(), "--egress", &file(name)];
        let out = Command::new(binary("falaj-verify")).args(words).output()?;
        ensure!(out.status.code() == Some(1) && text_of(&out).contains(word), "{}", text_of(&out));
    }
    // What was exported is released; what is exported next belongs behind it.
    let through = (update - 2).to_string();
    run("falaj-agent", &["egress", "release", "--config", &config, "--through", &through])?;
    let rest = file("rest.jsonl");
    run("falaj-agent", &["egress", "export", "--config", &config, "-o", &rest])?;
    let out = Command::new(binary("falaj-verify")).args([&bundle, "--egress", &rest]).output()?;
    ensure!(out.status.code() == Some(1), "{}", text_of(&out));
    ensure!(text_of(&out).contains("an earlier file, which belongs here too"), "{}", text_of(&out));
    let words = [bundle.as_str(), "--egress", &rest, "--egress", &whole, "--json"];
    let verdict: Value = serde_json::from_str(&run("falaj-verify", &words)?)?;
    let report = &verdict["report"]["egress"][0];
    ensure!(report["first"] == 0 && report["updates"] == 3, "{report}");
    let counts = run("falaj-agent", &["egress", "show", "--config", &config, "--openmetrics"])?;
    ensure!(counts == metrics, "{counts}");
    Ok(())
}
