//! A real MLflow server is told of studies as they happen; while it is away rounds go on, and it is told of them later, once.

use crate::evaluation::evaluated;
use anyhow::{Context as _, Result, bail, ensure};
use falaj_tests::{
    federation::{Federation, Process, SiteSpec, text, wait_for},
    python, skipped,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
};

const GATES: &str = "  - { metric: roc_auc, at_least: 0.01 }\n  - { metric: sites, at_least: 2 }\n";

/// A server, and the processes that it starts.
struct Server {
    process: Process,
}

impl Server {
    /// Starts one on its database, which outlives it.
    fn start(python: &Path, federation: &Federation, at: SocketAddr) -> Result<Self> {
        let dir = federation.dir().join("mlflow");
        fs::create_dir_all(&dir)?;
        // In a group of its own, so that all of it can be ended.
        let words = ["setsid", "env", "MLFLOW_DISABLE_TELEMETRY=true", "DO_NOT_TRACK=true"];
        let mut words: Vec<String> = words.map(str::to_owned).into();
        words.push("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false".into());
        words.push(python.display().to_string());
        words.extend(["-m", "mlflow", "server", "--workers", "1"].map(str::to_owned));
        words.extend([
            "--host".into(),
            at.ip().to_string(),
            "--port".into(),
            at.port().to_string(),
        ]);
        words.extend([
            "--backend-store-uri".into(),
            format!("sqlite:///{}/mlflow.db", dir.display()),
        ]);
        words.extend([
            "--artifacts-destination".into(),
            dir.join("artifacts").display().to_string(),
        ]);
        let process = federation.spawn("mlflow", &words, "mlflow/log.txt")?;
        let this = Self { process };
        let alive = || ask(at, "experiments/search?max_results=1", None).ok();
        let answers = || wait_for("MLflow to answer", || Ok(alive()));
        // It makes its tables first, and a busy machine takes its time.
        answers().or_else(|_| answers())?;
        Ok(this)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = format!("-{}", self.process.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
    }
}

/// An address that nobody listens on.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Asks the server.
fn ask(at: SocketAddr, of: &str, asked: Option<&Value>) -> Result<Value> {
    let mut there = TcpStream::connect(at)?;
    let (method, body) = asked.map_or(("GET", String::new()), |asked| ("POST", asked.to_string()));
    let head = format!(
        "{method} /api/2.0/mlflow/{of} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    there.write_all(head.as_bytes())?;
    there.write_all(body.as_bytes())?;
    let mut answer = String::new();
    there.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{of}: {answer}");
    Ok(serde_json::from_str(body)?)
}

/// The runs of an experiment that exists.
fn runs(at: SocketAddr, experiment: &str) -> Result<Vec<Value>> {
    let found = ask(at, &format!("experiments/get-by-name?experiment_name={experiment}"), None)?;
    let id = &found["experiment"]["experiment_id"];
    let asked = json!({ "experiment_ids": [id], "run_view_type": "ALL" });
    let found = ask(at, "runs/search", Some(&asked))?;
    Ok(found["runs"].as_array().cloned().unwrap_or_default())
}

/// The run of a study, once it has this status.
fn run_reaches(at: SocketAddr, study: &str, status: &str) -> Result<Value> {
    wait_for(&format!("{study} to be {status} in MLflow"), || {
        // There is no experiment before the first run.
        let runs = runs(at, "falaj/wdbc").unwrap_or_default();
        let is_it =
            |run: &Value| run["info"]["run_name"] == study && run["info"]["status"] == status;
        Ok(runs.into_iter().find(is_it))
    })
}

/// The run of a study that is over, once MLflow has been told of everything.
fn told(federation: &Federation, at: SocketAddr, study: &str) -> Result<Value> {
    run_reaches(at, study, "FINISHED")?;
    wait_for("nothing to be left to tell", || Ok((behind(federation)? == 0).then_some(())))?;
    run_reaches(at, study, "FINISHED")
}

/// Names and values.
fn words(run: &Value, of: &str) -> BTreeMap<String, String> {
    let all = run["data"][of].as_array().cloned().unwrap_or_default();
    let word = |word: &Value| Some((word["key"].as_str()?.into(), word["value"].as_str()?.into()));
    all.iter().filter_map(word).collect()
}

/// A series of a run as MLflow has kept it: steps and values.
fn series(at: SocketAddr, run: &Value, key: &str) -> Result<Vec<(u64, f64)>> {
    let id = run["info"]["run_id"].as_str().context("an id")?;
    let key = key.replace(' ', "%20");
    let of = format!("metrics/get-history?run_id={id}&metric_key={key}&max_results=1000");
    let found = ask(at, &of, None)?;
    let all = found["metrics"].as_array().cloned().unwrap_or_default();
    let point = |m: &Value| Some((m["step"].as_u64().unwrap_or_default(), m["value"].as_f64()?));
    let mut points: Vec<_> = all.iter().filter_map(point).collect();
    points.sort_by_key(|point| point.0);
    Ok(points)
}

/// How MLflow spells the name of a figure.
fn spelled(figure: &str) -> String {
    let figure = figure.split_once(" (without ").map_or(figure, |(figure, _)| figure);
    let figure = figure.replace("<=", " le ").replace(">=", " ge ").replace('<', " lt ");
    let figure = figure.replace('=', " is ").replace(['(', ')'], " ");
    figure.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// That every figure which `falaj study figures` shows of each round stands in MLflow, with both ends, once.
fn same_figures(federation: &Federation, at: SocketAddr, run: &Value, rounds: u32) -> Result<()> {
    let study = run["info"]["run_name"].as_str().context("a name")?;
    let (mut compared, mut wanted) = (0, BTreeMap::<String, Vec<(u64, f64)>>::new());
    for round in 1..=rounds {
        let number = round.to_string();
        let shown =
            federation.falaj_json(&["study", "figures", study, "--round", &number, "--sites"])?;
        for figure in shown["figures"].as_array().context("figures")? {
            let name = spelled(figure["figure"].as_str().context("a name")?);
            for (end, member) in [("", "value"), (".low", "low"), (".high", "high")] {
                if let Some(value) = figure[member].as_f64() {
                    wanted.entry(format!("{name}{end}")).or_default().push((round.into(), value));
                    compared += 1;
                }
            }
        }
    }
    ensure!(compared > 60, "{compared} figures");
    for (key, points) in &wanted {
        let found = series(at, run, key)?;
        // What is written in digits and read again may differ in the last.
        let same = |(a, b): (&(u64, f64), &(u64, f64))| {
            a.0 == b.0 && (a.1 - b.1).abs() <= 1e-12 * b.1.abs().max(1.0)
        };
        let is_same = found.len() == points.len() && found.iter().zip(points).all(same);
        ensure!(is_same, "{key}: {found:?}, {points:?}");
    }
    for (key, value) in [("sites", 2.0), ("published", 1.0)] {
        let wanted: Vec<_> = (1..=rounds).map(|round| (u64::from(round), value)).collect();
        ensure!(series(at, run, key)? == wanted, "{key}");
    }
    for site in ["hospital-1", "hospital-2"] {
        let spent = series(at, run, &format!("epsilon at {site}"))?;
        let grows = spent.windows(2).all(|pair| pair[0].1 < pair[1].1);
        ensure!(spent.len() == rounds as usize && grows && spent[0].1 > 8.0, "{spent:?}");
    }
    Ok(())
}

/// What the coordinator says of how far MLflow is behind.
fn behind(federation: &Federation) -> Result<u64> {
    let metrics = federation.metrics()?;
    let line = metrics.lines().find_map(|l| l.strip_prefix("falaj_tracking_behind_entries "));
    Ok(line.context("a metric")?.parse()?)
}

/// What the coordinator is to be told of it.
fn section(at: SocketAddr, place: &str) -> String {
    format!("[tracking]\nmlflow = \"http://{at}\"\nplace = \"{place}\"\n")
}

#[test]
fn mlflow_is_told_of_every_round_and_of_what_it_missed_while_it_was_away() -> Result<()> {
    let python = match python::with_packages("tracking") {
        Ok(python) => python,
        Err(e) => {
            skipped(&format!(
                "no MLflow is told of studies (Python 3.11 and pip are needed): {e:#}"
            ));
            return Ok(());
        }
    };
    let mut federation = Federation::new()?;
    let at = free()?;
    let server = Server::start(&python, &federation, at)?;
    federation.coordinator_extra = section(at, "ae-on/ae-az");
    let mut coordinator = federation.start_coordinator()?;
    let mut agents = federation.start_hospitals()?;

    federation.submit(&evaluated("live", 2, 1, GATES))?;
    federation.finishes("live")?;
    let live = told(&federation, at, "live")?;
    same_figures(&federation, at, &live, 2)?;
    parameters_and_tags(&federation, &live)?;

    // A study that has begun, and waits for a site; then MLflow goes away.
    let second = SiteSpec::new("hospital-2", "ae-on/ae-du");
    drop(agents.pop());
    let patient = evaluated("dark", 3, 1, GATES).replace("deadline_s: 60", "deadline_s: 600");
    federation.submit(&patient)?;
    run_reaches(at, "dark", "RUNNING")?;
    drop(server);
    agents.push(federation.start_agent(&second)?);
    federation.finishes("dark")?;
    wait_for("the coordinator to say that MLflow is behind", || {
        Ok((behind(&federation)? > 0).then_some(()))
    })?;
    coordinator.says("MLflow is not told of a study")?;
    // It is told even if the coordinator ends meanwhile.
    coordinator.kill()?;
    let mut coordinator = federation.start_coordinator()?;
    let server = Server::start(&python, &federation, at)?;
    let dark = told(&federation, at, "dark")?;
    same_figures(&federation, at, &dark, 3)?;

    // What stands there is not said again.
    coordinator.kill()?;
    let _coordinator = federation.start_coordinator()?;
    federation.submit(&evaluated("after", 1, 1, GATES))?;
    federation.finishes("after")?;
    told(&federation, at, "after")?;
    let names: Vec<_> =
        runs(at, "falaj/wdbc")?.iter().map(|r| r["info"]["run_name"].clone()).collect();
    let distinct: BTreeSet<_> = names.iter().map(ToString::to_string).collect();
    ensure!(names.len() == 3 && distinct.len() == 3, "{names:?}");
    same_figures(&federation, at, &live, 2)?;
    same_figures(&federation, at, &dark, 3)?;
    drop(server);
    federation.verified()?;
    Ok(())
}

/// What a run says beside its figures, and what it does not.
fn parameters_and_tags(federation: &Federation, run: &Value) -> Result<()> {
    let (params, tags) = (words(run, "params"), words(run, "tags"));
    let study = federation.falaj_json(&["study", "show", "live"])?;
    let submitted = federation.entries("study.submitted")?;
    let submitted = &submitted[0]["entry"];
    for (name, value) in [
        ("data.dataset", json!("wdbc")),
        ("data.features", json!("6")),
        ("model.kind", json!("logistic")),
        ("training.local_steps", json!("5")),
        ("privacy.mechanism", json!("dp_sgd")),
        ("rounds.count", json!("2")),
        ("evaluation.holdout", json!("0.3")),
        ("study_sha256", submitted["study_sha256"].clone()),
        ("policy_set_sha256", submitted["policy_set_sha256"].clone()),
    ] {
        ensure!(params.get(name).map(String::as_str) == value.as_str(), "{name}: {params:?}");
    }
    for (name, value) in [
        ("falaj.study", "live"),
        ("falaj.federation", "falaj.test"),
        ("falaj.round", "2"),
        ("falaj.verdict", "published"),
        ("falaj.sites", "hospital-1, hospital-2"),
        ("falaj.version.1", "candidate"),
    ] {
        ensure!(tags.get(name).map(String::as_str) == Some(value), "{name}: {tags:?}");
    }
    ensure!(tags.get("falaj.model_sha256").map(String::as_str) == study["model_sha256"].as_str());
    // Neither who submitted it, nor what somebody wrote for people to read.
    let all = run.to_string();
    for word in ["omar", "person:", "end-to-end test"] {
        ensure!(!all.contains(word), "{word}: {all}");
    }
    Ok(())
}

#[test]
fn a_server_for_tracking_that_is_not_where_it_may_be_stops_the_start() -> Result<()> {
    let mut federation = Federation::new()?;
    let at = free()?;
    let token = federation.dir().join("token");
    fs::write(&token, "secret\n")?;
    let exposed = format!("{}token_file = \"{}\"\n", section(at, "ae-on/ae-az"), token.display());
    for (extra, said) in [
        (section(at, "gb/gb-lnd"), "declared in gb/gb-lnd, may not be used as tracking"),
        (
            section(at, "ae-on/ae-az").replace("127.0.0.1", "192.0.2.1"),
            "http is for this machine's own addresses alone",
        ),
        (section(at, "ae-on/ae-az").replace("http:", "https:"), "https needs `tracking.ca`"),
        (section(at, "ae-on/ae-az").replace("http://", "http://omar:secret@"), "name a file in"),
        (exposed, "`tracking.token_file`: "),
    ] {
        federation.coordinator_extra = extra;
        match federation.start_coordinator() {
            Ok(_) => bail!("it started: {said}"),
            Err(e) => ensure!(format!("{e:#}").contains(said), "{said}: {e:#}"),
        }
    }
    // One that is nowhere keeps nobody from starting, nor any round.
    federation.coordinator_extra = section(at, "ae-on/ae-az");
    let _coordinator = federation.start_coordinator()?;
    let _agents = federation.start_hospitals()?;
    federation.submit(&evaluated("alone", 1, 1, GATES))?;
    federation.finishes("alone")?;
    let allowed = federation.entries("endpoint.allowed")?;
    ensure!(allowed.len() == 1 && allowed[0]["entry"]["endpoint"] == "tracking", "{allowed:?}");
    let out = federation.export_and_verify()?;
    ensure!(out.status.success(), "{}", text(&out));
    Ok(())
}
