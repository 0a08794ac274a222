//! A Prometheus that is not ours reads what a coordinator gives, by our rules: it takes every metric and every rule, and calls nobody
//! while all is well. Where there is none, this says that it is skipped.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::{
    federation::{Federation, Process, repository, study_yaml, wait_for},
    skipped,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
};

/// A running Prometheus.
struct Prometheus {
    _process: Process,
    address: SocketAddr,
}

impl Prometheus {
    /// Reads the coordinator's metrics every second from now on.
    fn start(federation: &Federation) -> Result<Self> {
        let folder = federation.dir().join("prometheus");
        fs::create_dir(&folder)?;
        let rules = repository().canonicalize()?.join("deploy/prometheus/falaj.rules.yaml");
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [rules],
            "scrape_configs": [{
                "job_name": "falaj",
                "static_configs": [{ "targets": [federation.ready("metrics")?.to_string()] }],
            }],
        });
        // JSON is YAML.
        fs::write(folder.join("prometheus.yml"), config.to_string())?;
        // It takes no port 0: one that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let words = [
            "prometheus".to_owned(),
            format!("--config.file={}", folder.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", folder.join("data").display()),
            format!("--web.listen-address={address}"),
        ];
        let process = federation.spawn("prometheus", &words, "prometheus/log.txt")?;
        let this = Self { _process: process, address };
        wait_for("Prometheus", || Ok(this.ask("/api/v1/query?query=1").ok()))?;
        Ok(this)
    }

    /// The `data` of an answer.
    fn ask(&self, path: &str) -> Result<Value> {
        let mut there = TcpStream::connect(self.address)?;
        there.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        there.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?.1;
        let mut answer: Value = serde_json::from_str(body)?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].take())
    }

    /// The value of the only series of this name.
    fn value(&self, name: &str) -> Result<Option<f64>> {
        let data = self.ask(&format!("/api/v1/query?query={name}"))?;
        let value = data["result"][0]["value"][1].as_str();
        Ok(value.map(str::parse::<f64>).transpose()?)
    }
}

#[test]
fn prometheus_takes_every_metric_and_rule_and_calls_nobody_while_all_is_well() -> Result<()> {
    if !Command::new("prometheus").arg("--version").output().is_ok_and(|out| out.status.success()) {
        skipped(
            "there is no Prometheus; `apt-get install -y --no-install-recommends prometheus` mends that",
        );
        return Ok(());
    }
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let prometheus = Prometheus::start(&federation)?;
    let _agents = federation.start_hospitals()?;
    federation.submit(&study_yaml("watched", 2, 2))?;
    federation.finishes("watched")?;
    wait_for("the version to be scraped", || {
        let stages =
            prometheus.ask("/api/v1/query?query=falaj_versions%7Bstage=%22candidate%22%7D")?;
        Ok((stages["result"][0]["value"][1] == "1").then_some(()))
    })?;
    // What the coordinator gives is there by the same names, as Prometheus has them.
    let text = federation.metrics()?;
    let given: BTreeSet<&str> = text
        .lines()
        .filter(|line| line.starts_with("falaj_"))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    ensure!(given.len() > 30, "{given:?}");
    wait_for("every metric to be scraped", || {
        let names = prometheus.ask("/api/v1/label/__name__/values")?;
        let names = names.as_array().context("names")?.iter().filter_map(Value::as_str);
        let taken: BTreeSet<&str> = names.collect();
        Ok(given.is_subset(&taken).then_some(()))
    })?;
    ensure!(prometheus.value("falaj_log_entries")?.is_some_and(|entries| entries > 10.0));
    ensure!(prometheus.value("falaj_sites_connected")? == Some(2.0));
    wait_for("every rule to be evaluated", || {
        let groups = prometheus.ask("/api/v1/rules")?;
        let groups = groups["groups"].as_array().context("groups")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array()).flatten();
        let rules: Vec<&Value> = rules.collect();
        for rule in &rules {
            ensure!(rule["health"] != "err", "{rule}");
            ensure!(rule["state"] != "firing", "{rule}");
        }
        let all = rules.len() > 30 && rules.iter().all(|rule| rule["health"] == "ok");
        Ok(all.then_some(()))
    })
}
