//! A federation of real processes in a temporary folder.

use anyhow::{Context, Result, bail, ensure};
use falaj_certs::{tls, trust::TrustStore};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Nothing in a test takes longer than this; a condition that is not met by then has failed.
pub const PATIENCE: Duration = Duration::from_mins(2);
/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// The trust domain of every test.
pub const TRUST_DOMAIN: &str = "falaj.test";

/// Waits until `condition` gives a value.
///
/// # Errors
/// When it has given none after [`PATIENCE`], naming `what` was waited for.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        ensure!(started.elapsed() < PATIENCE, "gave up waiting for {what}");
        thread::sleep(GLANCE);
    }
}

/// A binary of this workspace, built beside the running test.
///
/// # Panics
/// When it has not been built: `cargo xtask test` builds all of them first.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().expect("a test has a path");
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let path = dir.join(name);
    assert!(path.is_file(), "{} is not built: run `cargo xtask test`", path.display());
    path
}

/// The repository's root.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A process that is ended when it goes out of scope.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, on both streams.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it without warning, as a power cut would.
    ///
    /// # Errors
    /// When it cannot be killed or reaped.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, as a service manager would, and waits for its exit code.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate(&mut self) -> Result<Option<i32>> {
        let status = Command::new("kill").arg("-TERM").arg(self.id().to_string()).status()?;
        ensure!(status.success(), "could not signal {}", self.name);
        self.exit_code()
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn exit_code(&mut self) -> Result<Option<i32>> {
        let name = self.name.clone();
        let child = &mut self.child;
        let status = wait_for(&format!("{name} to end"), || Ok(child.try_wait()?))?;
        Ok(status.code())
    }

    /// Waits until its output holds `text`.
    ///
    /// # Errors
    /// When it does not, with what it wrote instead.
    pub fn says(&mut self, text: &str) -> Result<()> {
        let started = Instant::now();
        while !self.output().contains(text) {
            let gone = self.child.try_wait()?.is_some();
            ensure!(
                !gone && started.elapsed() < PATIENCE,
                "{} never said `{text}`; it said:\n{}",
                self.name,
                self.output()
            );
            thread::sleep(GLANCE);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.output());
        }
    }
}

/// Where the coordinator listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// For agents.
    pub grpc: SocketAddr,
    /// For operators.
    pub rest: SocketAddr,
}

/// A site of the federation.
#[derive(Clone, Debug)]
pub struct SiteSpec {
    /// Its name in the certificate.
    pub name: String,
    /// Its place.
    pub place: String,
    /// Its limit across all studies.
    pub epsilon_limit: f64,
    /// `linear` needs no libtorch.
    pub trainer: &'static str,
    /// Further arguments of `falaj-agent run`.
    pub args: Vec<String>,
}

impl SiteSpec {
    /// A site with a generous limit and the plain trainer.
    #[must_use]
    pub fn new(name: &str, place: &str) -> Self {
        Self {
            name: name.into(),
            place: place.into(),
            epsilon_limit: 1_000.0,
            trainer: "linear",
            args: Vec::new(),
        }
    }
}

/// A certificate authority, configurations, records, and the processes on them.
pub struct Federation {
    dir: TempDir,
    /// Addresses that the coordinator bound last; kept over restarts so that agents find it again.
    pub addresses: Option<Addresses>,
    /// Further lines of the coordinator's configuration.
    pub coordinator_extra: String,
    /// Further lines of its `[log]`.
    pub log_extra: String,
    /// Further lines of its `[state]`.
    pub state_extra: String,
    /// The origin of its log.
    pub log_origin: String,
    /// The folder with its policies.
    pub policies: PathBuf,
    /// Where the coordinator's key lies; in its file otherwise.
    pub coordinator_key: Option<String>,
    /// Environment of the programs that are started from now on.
    pub environment: Vec<(String, String)>,
    /// The address on which it listens, when it is started for the first time.
    pub listen: String,
    /// A command through which operators' commands run, for example one that puts them into a network of their own.
    pub operators_through: Vec<String>,
    starts: u32,
}

/// What Prometheus would scrape there.
///
/// # Errors
/// When nobody answers.
pub fn scraped(address: SocketAddr) -> Result<String> {
    let mut there = TcpStream::connect(address)?;
    there.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    there.read_to_string(&mut answer)?;
    Ok(answer)
}

impl Federation {
    /// Makes the authority, with issuers for the Emirates and for London.
    ///
    /// # Errors
    /// When a certificate cannot be made.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("falaj-e2e-").tempdir()?;
        let (coordinator_extra, log_extra) = (String::new(), String::new());
        let policies = repository().join("policies").canonicalize()?;
        let this = Self {
            dir,
            addresses: None,
            coordinator_extra,
            log_extra,
            state_extra: String::new(),
            log_origin: format!("{TRUST_DOMAIN}/audit/2026"),
            policies,
            coordinator_key: None,
            environment: Vec::new(),
            listen: "127.0.0.1".into(),
            operators_through: Vec::new(),
            starts: 0,
        };
        let ca = this.ca();
        let ca = ca.to_str().context("a temporary path is UTF-8")?;
        run("falaj-certs", &["init", ca, "--trust-domain", TRUST_DOMAIN])?;
        for place in ["ae-on/ae-az", "ae-on/ae-du", "ae-on/ae-sh", "gb/gb-lnd"] {
            run("falaj-certs", &["issuer", ca, place])?;
        }
        this.issue("coordinator", "main", "ae-on/ae-az")?;
        this.issue("operator", "omar", "ae-on/ae-az")?;
        Ok(this)
    }

    /// The temporary folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The certificate authority's folder.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir().join("ca")
    }

    /// The trust configuration that every party shares.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn trust(&self) -> Result<TrustStore> {
        Ok(TrustStore::load(&self.ca().join("trust.toml"))?)
    }

    /// The folder with `cert.pem` and `key.pem` of `role/name`.
    #[must_use]
    pub fn identity(&self, role: &str, name: &str) -> PathBuf {
        self.ca().join(role).join(name)
    }

    /// Certificate and key of `role/name`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn credentials(&self, role: &str, name: &str) -> Result<tls::Credentials> {
        let dir = self.identity(role, name);
        Ok(tls::Credentials::load(&dir.join("cert.pem"), &dir.join("key.pem"))?)
    }

    /// Issues a certificate.
    ///
    /// # Errors
    /// When the authority refuses.
    pub fn issue(&self, role: &str, name: &str, place: &str) -> Result<()> {
        let ca = self.ca();
        let ca = ca.to_str().context("a temporary path is UTF-8")?;
        run("falaj-certs", &["issue", ca, role, name, "--place", place])?;
        Ok(())
    }

    /// The coordinator's state folder.
    #[must_use]
    pub fn coordinator_state(&self) -> PathBuf {
        self.dir().join("coordinator/state")
    }

    fn coordinator_config(&self) -> Result<PathBuf> {
        let dir = self.dir().join("coordinator");
        fs::create_dir_all(dir.join("state"))?;
        let (grpc, rest) = match self.addresses {
            Some(a) => (a.grpc.to_string(), a.rest.to_string()),
            None => (format!("{}:0", self.listen), format!("{}:0", self.listen)),
        };
        let identity = self.identity("coordinator", "main");
        let file = identity.join("key.pem").display().to_string();
        let text = format!(
            "[identity]\ncert = \"{id}/cert.pem\"\nkey = \"{key}\"\ntrust = \"{ca}/trust.toml\"\n\
             [listen]\ngrpc = \"{grpc}\"\nrest = \"{rest}\"\nmetrics = \"127.0.0.1:0\"\n\
             [state]\ndir = \"state\"\n{state}[log]\norigin = \"{origin}\"\n{log}\
             [policy]\ndir = \"{policies}\"\n{extra}",
            id = identity.display(),
            key = self.coordinator_key.as_ref().unwrap_or(&file),
            ca = self.ca().display(),
            policies = self.policies.display(),
            origin = self.log_origin,
            log = self.log_extra,
            state = self.state_extra,
            extra = self.coordinator_extra,
        );
        let path = dir.join("coordinator.toml");
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Starts the coordinator and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_coordinator(&mut self) -> Result<Process> {
        self.start_coordinator_through(&[])
    }

    /// Starts the coordinator through a wrapping command, for example one that gives it a small disk.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_coordinator_through(&mut self, wrapper: &[&str]) -> Result<Process> {
        let config = self.coordinator_config()?;
        self.starts += 1;
        let ready = self.dir().join(format!("coordinator/ready-{}.json", self.starts));
        let mut words: Vec<String> = wrapper.iter().map(|w| (*w).to_owned()).collect();
        words.push(binary("falaj-coordinator").display().to_string());
        words.extend(["run".into(), "--config".into(), config.display().to_string()]);
        words.extend(["--ready-file".into(), ready.display().to_string()]);
        let mut process = self.spawn("coordinator", &words, "coordinator/log.txt")?;
        let text = wait_for("the coordinator to be ready", || {
            if let Some(status) = process.child.try_wait()? {
                bail!("the coordinator ended ({status}):\n{}", process.output());
            }
            Ok(fs::read_to_string(&ready).ok())
        })?;
        let ready: Value = serde_json::from_str(&text)?;
        let address = |key: &str| -> Result<SocketAddr> {
            Ok(ready[key].as_str().with_context(|| format!("no `{key}` in {text}"))?.parse()?)
        };
        self.addresses = Some(Addresses { grpc: address("grpc")?, rest: address("rest")? });
        Ok(process)
    }

    /// Where agents connect to the coordinator that was started last.
    ///
    /// # Errors
    /// When none was started.
    pub fn agents_connect_to(&self) -> Result<SocketAddr> {
        Ok(self.addresses.context("start the coordinator first")?.grpc)
    }

    /// Where sites enrol with the coordinator that was started last.
    ///
    /// # Errors
    /// When it gives no certificates.
    pub fn enrolment(&self) -> Result<SocketAddr> {
        self.ready("enrolment")
    }

    /// An address of the coordinator that was started last, by its name in the ready file.
    ///
    /// # Errors
    /// When it has none.
    pub fn ready(&self, name: &str) -> Result<SocketAddr> {
        let ready = self.dir().join(format!("coordinator/ready-{}.json", self.starts));
        let ready: Value = serde_json::from_str(&fs::read_to_string(ready)?)?;
        Ok(ready[name].as_str().context("an address")?.parse()?)
    }

    /// What Prometheus would scrape from the coordinator that was started last.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<String> {
        scraped(self.ready("metrics")?)
    }

    /// Issues a site's certificate, gives it records and a configuration, and says where that is.
    ///
    /// # Errors
    /// When the coordinator has not been started, or a file cannot be written.
    pub fn prepare_site(&self, site: &SiteSpec, csv: &str) -> Result<PathBuf> {
        self.issue("site", &site.name, &site.place)?;
        let dir = self.dir().join("sites").join(&site.name);
        fs::create_dir_all(dir.join("data"))?;
        fs::write(dir.join("data/records.csv"), csv)?;
        let addresses = self.addresses.context("start the coordinator first")?;
        let identity = self.identity("site", &site.name);
        let text = format!(
            "[identity]\ncert = \"{id}/cert.pem\"\nkey = \"{id}/key.pem\"\ntrust = \"{ca}/trust.toml\"\n\
             [coordinator]\naddress = \"{grpc}\"\n\
             [policy]\ncoordinator_places = [\"ae-on/*\"]\n\
             [[dataset]]\nname = \"wdbc\"\npath = \"data\"\nepsilon_limit = {limit:?}\ndelta = 1e-5\n\
             [train]\ntrainer = \"{trainer}\"\ndevice = \"cpu\"\n[state]\ndir = \"state\"\n",
            id = identity.display(),
            ca = self.ca().display(),
            grpc = addresses.grpc,
            limit = site.epsilon_limit,
            trainer = site.trainer,
        );
        let path = dir.join("agent.toml");
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Downloads a study's newest model and evaluates it on all records: its area under the curve.
    ///
    /// # Errors
    /// When there is none, or it cannot be evaluated. The study is the one that was submitted last.
    pub fn auc(&self, study: &str) -> Result<f64> {
        let model = self.dir().join(format!("{study}.safetensors")).display().to_string();
        let out = self.falaj(&["model", "download", study, "-o", &model])?;
        ensure!(out.status.success(), "{}", text(&out));
        let records = self.dir().join("all.csv").display().to_string();
        fs::write(&records, &wisconsin(1)?[0])?;
        let study = self.dir().join("study.yaml").display().to_string();
        let words = ["evaluate", &study, "--model", &model, "--data", &records, "--json"];
        let scores: Value = serde_json::from_str(&run("falaj-agent", &words)?)?;
        scores["auc"].as_f64().with_context(|| scores.to_string())
    }

    /// Starts the agents of two hospitals, in Abu Dhabi and Dubai.
    ///
    /// # Errors
    /// When the coordinator has not been started, or an agent cannot be.
    pub fn start_hospitals(&self) -> Result<Vec<Process>> {
        let mut agents = Vec::new();
        for (i, (place, records)) in
            ["ae-on/ae-az", "ae-on/ae-du"].into_iter().zip(wisconsin(2)?).enumerate()
        {
            let site = SiteSpec::new(&format!("hospital-{}", i + 1), place);
            self.prepare_site(&site, &records)?;
            agents.push(self.start_agent(&site)?);
        }
        Ok(agents)
    }

    /// Starts a prepared site's agent.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&self, site: &SiteSpec) -> Result<Process> {
        self.start_agent_through(&[], site)
    }

    /// Starts a prepared site's agent through a wrapping command.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent_through(&self, wrapper: &[&str], site: &SiteSpec) -> Result<Process> {
        let config = self.dir().join("sites").join(&site.name).join("agent.toml");
        let mut words: Vec<String> = wrapper.iter().map(|word| (*word).to_owned()).collect();
        words.push(binary("falaj-agent").display().to_string());
        words.extend(["run".into(), "--config".into(), config.display().to_string()]);
        words.extend(site.args.iter().cloned());
        self.spawn(&site.name, &words, &format!("sites/{}/log.txt", site.name))
    }

    /// Starts a program; what it says is kept in a file in the federation's folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, words: &[String], log: &str) -> Result<Process> {
        let log = self.dir().join(log);
        let file = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(&words[0])
            .args(&words[1..])
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {}", words[0]))?;
        Ok(Process { name: name.into(), child, log })
    }

    /// Runs the `falaj` command as the operator.
    ///
    /// # Errors
    /// When it cannot be run; its own failure is in the output.
    pub fn falaj(&self, args: &[&str]) -> Result<Output> {
        self.falaj_as("omar", args)
    }

    /// Runs the `falaj` command as this operator.
    ///
    /// # Errors
    /// As [`Self::falaj`].
    pub fn falaj_as(&self, operator: &str, args: &[&str]) -> Result<Output> {
        let addresses = self.addresses.context("start the coordinator first")?;
        let identity = self.identity("operator", operator);
        let falaj = binary("falaj").display().to_string();
        let mut words = self.operators_through.iter().chain([&falaj]);
        Ok(Command::new(words.next().context("a command")?)
            .args(words)
            .arg("--server")
            .arg(format!("https://{}", addresses.rest))
            .arg("--cert")
            .arg(identity.join("cert.pem"))
            .arg("--key")
            .arg(identity.join("key.pem"))
            .arg("--trust")
            .arg(self.ca().join("trust.toml"))
            .args(args)
            .stdin(Stdio::null())
            .output()?)
    }

    /// Runs the `falaj` command with `--json` and reads its answer.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn falaj_json(&self, args: &[&str]) -> Result<Value> {
        let mut words = vec!["--json"];
        words.extend(args);
        let out = self.falaj(&words)?;
        ensure!(out.status.success(), "falaj {args:?}: {}", text(&out));
        Ok(serde_json::from_slice(&out.stdout)?)
    }

    /// As [`Self::falaj_json`], and again while a busy machine does not take the entry about it in time.
    ///
    /// # Errors
    /// When it fails otherwise, or for too long.
    pub fn falaj_in_time(&self, args: &[&str]) -> Result<Value> {
        wait_for("the log to take an entry in time", || match self.falaj_json(args) {
            Err(e) if e.to_string().contains("\"log_unavailable\"") => Ok(None),
            answer => answer.map(Some),
        })
    }

    /// Its folder stays: somebody wants to look at what happened.
    pub fn keep(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir().to_owned()
    }

    /// Submits a study file's text.
    ///
    /// # Errors
    /// When it is refused, with the reason.
    pub fn submit(&self, yaml: &str) -> Result<()> {
        let path = self.dir().join("study.yaml");
        fs::write(&path, yaml)?;
        let out = self.falaj(&["study", "submit", path.to_str().context("UTF-8")?])?;
        ensure!(out.status.success(), "submitting: {}", text(&out));
        Ok(())
    }

    /// Waits until the study is in one of `states`, and gives its description.
    ///
    /// # Errors
    /// When it is in none of them in time.
    pub fn study_reaches(&self, study: &str, states: &[&str]) -> Result<Value> {
        let mut last = Value::Null;
        wait_for(&format!("{study} to be {states:?}"), || {
            // The coordinator may be away for a moment in tests that kill it.
            if let Ok(shown) = self.falaj_json(&["study", "show", study]) {
                last = shown;
            }
            let state = last["state"].as_str().unwrap_or_default();
            Ok(states.contains(&state).then(|| last.clone()))
        })
    }

    /// Waits until the study has run all its rounds.
    ///
    /// # Errors
    /// When it fails, or does not end in time.
    pub fn finishes(&self, study: &str) -> Result<()> {
        let shown = self.study_reaches(study, &["finished", "failed"])?;
        ensure!(shown["state"] == "finished", "{shown}");
        Ok(())
    }

    /// Every entry of the log of one kind.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn entries(&self, kind: &str) -> Result<Vec<Value>> {
        let answer = self.falaj_json(&["log", "entries", "--kind", kind])?;
        let items = if answer.is_array() { &answer } else { &answer["items"] };
        Ok(items.as_array().cloned().unwrap_or_default())
    }

    /// Exports the log and runs the verifier on it.
    ///
    /// # Errors
    /// When the export fails; the verifier's verdict is in the output.
    pub fn export_and_verify(&self) -> Result<Output> {
        self.export_and_verify_by(&self.ca().join("trust.toml"))
    }

    fn export_and_verify_by(&self, trust: &Path) -> Result<Output> {
        let bundle = self.dir().join("bundle.tar");
        let _ = fs::remove_file(&bundle);
        let out = self.falaj(&["log", "export", "-o", bundle.to_str().context("UTF-8")?])?;
        ensure!(out.status.success(), "exporting: {}", text(&out));
        Ok(Command::new(binary("falaj-verify"))
            .arg(&bundle)
            .arg("--trust")
            .arg(trust)
            .stdin(Stdio::null())
            .output()?)
    }

    /// As [`Self::verified`], by an auditor's own trust configuration.
    ///
    /// # Errors
    /// When the verifier finds anything wrong.
    pub fn verified_by(&self, trust: &Path) -> Result<String> {
        let out = self.export_and_verify_by(trust)?;
        ensure!(out.status.success(), "falaj-verify: {}", text(&out));
        Ok(text(&out))
    }

    /// As [`Self::export_and_verify`], and the verdict must be good.
    ///
    /// # Errors
    /// When the verifier finds anything wrong.
    pub fn verified(&self) -> Result<String> {
        let out = self.export_and_verify()?;
        ensure!(out.status.success(), "falaj-verify: {}", text(&out));
        Ok(text(&out))
    }
}

/// Runs a binary of this workspace to its end.
///
/// # Errors
/// When it fails, with what it said.
pub fn run(name: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(binary(name)).args(args).stdin(Stdio::null()).output()?;
    ensure!(out.status.success(), "{name} {args:?}: {}", text(&out));
    Ok(text(&out))
}

/// Both streams of a finished command.
#[must_use]
pub fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// The columns of the Wisconsin data that tests use, with public bounds.
const COLUMNS: [(&str, f64, f64); 6] = [
    ("mean_radius", 6.0, 30.0),
    ("mean_texture", 9.0, 40.0),
    ("mean_concavity", 0.0, 0.5),
    ("worst_radius", 7.0, 40.0),
    ("worst_texture", 12.0, 50.0),
    ("worst_concave_points", 0.0, 0.3),
];

/// The Wisconsin records split over `parts` sites, each with a header.
///
/// # Errors
/// When the data set cannot be read.
pub fn wisconsin(parts: usize) -> Result<Vec<String>> {
    let whole = fs::read_to_string(repository().join("tests/data/wdbc.csv"))?;
    let mut lines = whole.lines();
    let header = lines.next().context("the data set has a header")?;
    let mut out = vec![format!("{header}\n"); parts];
    for (i, line) in lines.enumerate() {
        writeln!(out[i % parts], "{line}")?;
    }
    Ok(out)
}

/// A study that the plain trainer can run: logistic regression on six columns.
#[must_use]
pub fn study_yaml(name: &str, rounds: u32, min_sites: u32) -> String {
    let mut features = String::new();
    for (column, min, max) in COLUMNS {
        let _ = writeln!(features, "    - {{ name: {column}, min: {min:?}, max: {max:?} }}");
    }
    format!(
        "study: {name}\npurpose: end-to-end test\ndata:\n  dataset: wdbc\n  label: {{ column: diagnosis, classes: [benign, malignant] }}\n  features:\n{features}\
         model: {{ kind: logistic }}\n\
         training: {{ local_steps: 5, sample_rate: 0.1, learning_rate: 0.5 }}\n\
         privacy: {{ mechanism: dp_sgd, noise_multiplier: 1.0, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 900.0 }}\n\
         sealing: {{ bits: 16, range: 8.0 }}\n\
         cohort: {{ places: [\"ae-on/*\"], min_sites: {min_sites} }}\n\
         rounds: {{ count: {rounds}, deadline_s: 60, grace_s: 2 }}\n"
    )
}
