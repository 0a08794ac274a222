//! The programs of a deployment, run as separate processes.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Nothing that the demo waits for takes longer.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where the programs and the demo's files are.
pub(crate) struct Stage {
    /// The output folder, absolute.
    pub(crate) out: PathBuf,
    /// The folder of the built programs.
    pub(crate) bin: PathBuf,
}

/// A process that ends with the demo, however the demo ends.
pub(crate) struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// What it has written.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Result<Option<i32>> {
        Ok(self.child.try_wait()?.map(|status| status.code().unwrap_or(-1)))
    }

    /// Asks it to end and waits.
    pub(crate) fn stop(mut self) -> Result<()> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        wait_for(&format!("{} to end", self.name), || Ok(self.ended()?.map(drop)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(started.elapsed() < PATIENCE, "gave up waiting for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

impl Stage {
    /// A program, ready to get arguments.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.stdin(Stdio::null()).current_dir(&self.out);
        command
    }

    /// Runs a program to its end and gives its standard output.
    pub(crate) fn run(&self, name: &str, args: &[&str]) -> Result<String> {
        let out = self.try_run(name, args)?;
        if !out.status.success() {
            bail!("{name} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Runs a program to its end, whatever it says.
    pub(crate) fn try_run(&self, name: &str, args: &[&str]) -> Result<Output> {
        self.program(name).args(args).output().with_context(|| format!("running {name}"))
    }

    /// Runs a program and reads the JSON that it prints.
    pub(crate) fn json(&self, name: &str, args: &[&str]) -> Result<Value> {
        let text = self.run(name, args)?;
        serde_json::from_str(&text).with_context(|| format!("{name} {args:?} printed {text}"))
    }

    /// The operator's command.
    pub(crate) fn falaj(&self, args: &[&str]) -> Result<Value> {
        self.falaj_as("operator", args)
    }

    /// The command of one of several operators.
    pub(crate) fn falaj_as(&self, operator: &str, args: &[&str]) -> Result<Value> {
        let config = format!("{operator}/falaj.toml");
        self.json("falaj", &[&["--config", &config, "--json"], args].concat())
    }

    /// Starts a program that runs on; what it writes goes to a file.
    pub(crate) fn start(&self, name: &str, args: &[&str], log: &str) -> Result<Running> {
        let log = self.out.join(log);
        let file = File::create(&log)?;
        let child = self
            .program(name)
            .args(args)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Running { name: name.to_owned(), child, log })
    }

    /// Writes a file under the output folder.
    pub(crate) fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.out.join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}
