//! A regulator's witness, in a process of its own.

use crate::federation::{Federation, Process, binary, run, wait_for};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fs;

/// Under which name it signs.
pub const NAME: &str = "witness.regulator.test/1";

/// A witness that runs, and what it is known by.
#[derive(Debug)]
pub struct Regulator {
    /// Its verifier key.
    pub key: String,
    address: String,
    _process: Process,
}

impl Regulator {
    /// Starts a witness of the log with this verifier key, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(federation: &Federation, log: &str) -> Result<Self> {
        let home = federation.dir().join("regulator");
        fs::create_dir_all(home.join("state"))?;
        let path = |name: &str| home.join(name).display().to_string();
        let key = run("falaj-witness", &["keygen", &path("witness.key"), "--name", NAME])?;
        let config = format!(
            "name = \"{NAME}\"\nkey = \"witness.key\"\nstate = \"state\"\nlisten = \"127.0.0.1:0\"\n[[log]]\nkey = \"{log}\"\n"
        );
        fs::write(path("witness.toml"), config)?;
        let words = [
            binary("falaj-witness").display().to_string(),
            "serve".into(),
            "--config".into(),
            path("witness.toml"),
            "--ready-file".into(),
            path("ready.json"),
        ];
        let process = federation.spawn("regulator", &words, "regulator/log.txt")?;
        let ready = wait_for("the witness", || Ok(fs::read(path("ready.json")).ok()))?;
        let ready: Value = serde_json::from_slice(&ready)?;
        let address = ready["http"].as_str().context("an address")?.to_owned();
        Ok(Self { key: key.trim().to_owned(), address, _process: process })
    }

    /// Has the coordinator ask it from its next start on, and the federation's trust configuration name it.
    ///
    /// # Errors
    /// When the trust configuration cannot be changed.
    pub fn is_asked_by(&self, federation: &mut Federation) -> Result<()> {
        let known = federation.ca().join("trust.toml");
        let before = fs::read_to_string(&known)?;
        fs::write(&known, format!("{before}\n[[witness]]\nkey = \"{}\"\n", self.key))?;
        self.is_asked_unnamed_by(federation);
        Ok(())
    }

    /// Has the coordinator ask it from its next start on, without a word in the trust configuration.
    pub fn is_asked_unnamed_by(&self, federation: &mut Federation) {
        federation.log_extra = format!(
            "witnesses = [{{ url = \"http://{}\", key = \"{}\", place = \"ae-on/ae-az\" }}]\n",
            self.address, self.key
        );
    }
}
