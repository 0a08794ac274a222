//! The log as a SIEM gets it: the operator's command between a running coordinator and a receiver.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{Federation, text};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    thread,
};

/// A message by its count of octets.
fn message(reader: &mut impl std::io::BufRead) -> Result<String> {
    let mut length = Vec::new();
    reader.read_until(b' ', &mut length)?;
    let length: u64 = String::from_utf8(length)?.trim().parse()?;
    let mut message = String::new();
    reader.take(length).read_to_string(&mut message)?;
    Ok(message)
}

#[test]
fn entries_reach_a_receiver_of_syslog_and_are_events_with_the_very_bytes() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = format!("tcp://{}", listener.local_addr()?);
    let receiving = thread::spawn(move || -> Result<Vec<String>> {
        let (stream, _) = listener.accept()?;
        let mut reader = BufReader::new(stream);
        let mut all = Vec::new();
        while !reader.fill_buf()?.is_empty() {
            all.push(message(&mut reader)?);
        }
        Ok(all)
    });
    let syslog = ["log", "tail", "-n", "100", "--format", "syslog", "--to", &to];
    // Where the receiver lies is said, and nothing goes to one abroad: it is sent the entries of the last try alone.
    let out = federation.falaj(&syslog)?;
    ensure!(text(&out).contains("--to-place"), "{}", text(&out));
    let to_place = |place| [&syslog[..], &["--to-place", place]].concat();
    let out = federation.falaj(&to_place("us/us-va"))?;
    ensure!(!out.status.success() && text(&out).contains("RES-004"), "{}", text(&out));
    let out = federation.falaj(&to_place("ae-on/ae-du"))?;
    ensure!(out.status.success(), "{}", text(&out));
    let messages = receiving.join().ok().context("the receiver")??;
    let entries = federation.falaj_json(&["log", "entries"])?;
    let entries = entries["items"].as_array().context("a list")?;
    let places: Vec<_> = entries.iter().map(|e| &e["entry"]["asked"]["place"]).collect();
    ensure!(places.iter().any(|place| **place == "us/us-va"), "{places:?}");
    ensure!(places.iter().any(|place| **place == "ae-on/ae-du"), "{places:?}");
    ensure!(messages.len() >= 3, "{messages:?}");
    for (index, message) in messages.iter().enumerate() {
        let kind = entries[index]["entry"]["kind"].as_str().context("a kind")?;
        ensure!(message.contains(&format!("[falaj@32473 seq=\"{index}\" kind=\"{kind}\"")));
        let (_, bytes) = message.split_once("] \u{feff}").context("the entry")?;
        ensure!(serde_json::from_str::<Value>(bytes)? == entries[index]["entry"], "{message}");
    }
    let out = federation.falaj(&["log", "tail", "-n", "100", "--format", "ocsf"])?;
    ensure!(out.status.success(), "{}", text(&out));
    let events = String::from_utf8(out.stdout)?;
    for (index, line) in events.lines().take(messages.len()).enumerate() {
        let event: Value = serde_json::from_str(line)?;
        ensure!(event["metadata"]["sequence"] == index, "{line}");
        ensure!(event["metadata"]["log_name"] == "falaj.test/audit/2026", "{line}");
        let (_, bytes) = messages[index].split_once("] \u{feff}").context("the entry")?;
        ensure!(event["raw_data"] == bytes, "{line}");
    }
    let out = federation.falaj(&["log", "tail", "--after", "0", "--format", "ocsf"])?;
    ensure!(String::from_utf8(out.stdout)?.contains("\"sequence\":1"));
    Ok(())
}
