//! Sites that enrolled with tokens, and learn one study after the other while their certificates are renewed.

use crate::federation::{
    Federation, Process, SiteSpec, binary, run, study_yaml, text, wait_for, wisconsin,
};
use anyhow::{Context as _, Result, ensure};
use falaj_certs::enrolment::Token;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Where the sites are.
pub const PLACES: [&str; 3] = ["ae-on/ae-az", "ae-on/ae-du", "ae-on/ae-sh"];

/// A federation whose coordinator gives certificates that live for so many seconds.
///
/// # Errors
/// When it does not come up.
pub fn federation(lifetime_s: u64) -> Result<(Federation, Process)> {
    let mut federation = Federation::new()?;
    federation.coordinator_extra = format!(
        "[enrolment]\naddress = \"127.0.0.1:0\"\nauthority = \"{}\"\nlifetime_s = {lifetime_s}\n",
        federation.ca().display()
    );
    let coordinator = federation.start_coordinator()?;
    Ok((federation, coordinator))
}

/// A token for a site, as its operator gets it.
///
/// # Errors
/// When the coordinator makes none.
pub fn token(federation: &Federation, name: &str, place: &str, ttl: &str) -> Result<Token> {
    let words = ["site", "enroll-token", name, "--at-place", place, "--ttl", ttl];
    let made = federation.falaj_json(&words)?;
    Ok(made["token"].as_str().context("a token")?.parse()?)
}

/// Runs `falaj-agent enroll` into a folder.
///
/// # Errors
/// When it cannot be run; its own failure is in the output.
pub fn enroll(folder: &Path, token: &Token, place: &str, more: &[&str]) -> Result<Output> {
    fs::create_dir_all(folder)?;
    let file = folder.join("token");
    fs::write(&file, token.to_string())?;
    let folder = folder.to_str().context("UTF-8")?;
    Ok(Command::new(binary("falaj-agent"))
        .args(["enroll", file.to_str().context("UTF-8")?, "--place", place, "--dir", folder])
        .args(more)
        .stdin(Stdio::null())
        .output()?)
}

/// Enrols a site, gives it records and a configuration: its folder.
///
/// # Errors
/// When it cannot enrol.
pub fn prepare(federation: &Federation, name: &str, place: &str, records: &str) -> Result<PathBuf> {
    let dir = federation.dir().join("sites").join(name);
    fs::create_dir_all(dir.join("data"))?;
    fs::write(dir.join("data/records.csv"), records)?;
    let token = token(federation, name, place, "5m")?;
    let out = enroll(&dir.join("identity"), &token, place, &[])?;
    ensure!(out.status.success(), "{}", text(&out));
    let config = format!(
        "[identity]\ncert = \"identity/cert.pem\"\nkey = \"identity/key.pem\"\ntrust = \"identity/trust.toml\"\nroot = \"identity/root.pem\"\n\
         [coordinator]\naddress = \"{}\"\n[policy]\ncoordinator_places = [\"ae-on/*\"]\n\
         [[dataset]]\nname = \"wdbc\"\npath = \"data\"\nepsilon_limit = 1000.0\ndelta = 1e-5\n\
         [train]\ntrainer = \"linear\"\ndevice = \"cpu\"\n[state]\ndir = \"state\"\n",
        federation.agents_connect_to()?
    );
    fs::write(dir.join("agent.toml"), config)?;
    Ok(dir)
}

/// Renewals of one site.
#[derive(Clone, Debug, Default)]
pub struct Renewals {
    /// How many.
    pub times: usize,
    /// The keys of the issuers that signed them.
    pub issuers: BTreeSet<String>,
}

/// Three sites that enrolled, their coordinator, and study after study.
pub struct School {
    /// The federation.
    pub federation: Federation,
    /// The coordinator.
    pub coordinator: Process,
    /// The agents.
    pub agents: Vec<Process>,
    /// Rounds of each study.
    rounds: u32,
    /// Studies so far.
    pub studies: u32,
    /// How often the issuers were replaced.
    pub rotations: u32,
    /// Renewals that were read, and up to which entry.
    renewals: BTreeMap<String, Renewals>,
    read: u64,
}

impl School {
    /// Three sites enrol and begin, under certificates that live for so many seconds, with studies of so many rounds.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn open(lifetime_s: u64, rounds: u32) -> Result<Self> {
        let (federation, coordinator) = federation(lifetime_s)?;
        let mut agents = Vec::new();
        for (i, (place, records)) in PLACES.into_iter().zip(wisconsin(3)?).enumerate() {
            let name = format!("hospital-{}", i + 1);
            prepare(&federation, &name, place, &records)?;
            agents.push(federation.start_agent(&SiteSpec::new(&name, place))?);
        }
        let this = Self {
            federation,
            coordinator,
            agents,
            rounds,
            studies: 0,
            rotations: 0,
            renewals: BTreeMap::new(),
            read: 0,
        };
        this.keep_issuers()?;
        Ok(this)
    }

    /// Has the sites learn, one study after the other, until `done`; that is asked whenever a round is over.
    ///
    /// # Errors
    /// When a study fails, or nothing goes on.
    pub fn learn_until(&mut self, mut done: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let mut before = Value::Null;
        while !done(self)? {
            if self.is_over()? {
                self.studies += 1;
                // Many rounds at one site, with room in its budget for all of them.
                let study = study_yaml(&self.study(), self.rounds, 3);
                self.federation
                    .submit(&study.replace("noise_multiplier: 1.0", "noise_multiplier: 4.0"))?;
            }
            before = wait_for("a round to be over", || {
                let shown = self.federation.falaj_in_time(&["study", "show", &self.study()])?;
                ensure!(shown["state"] != "failed", "{shown}");
                let now = serde_json::json!([shown["id"], shown["rounds_promoted"]]);
                Ok((now != before || shown["state"] == "finished").then_some(now))
            })?;
        }
        Ok(())
    }

    fn study(&self) -> String {
        format!("study-{}", self.studies)
    }

    fn is_over(&self) -> Result<bool> {
        if self.studies == 0 {
            return Ok(true);
        }
        let shown = self.federation.falaj_in_time(&["study", "show", &self.study()])?;
        Ok(shown["state"] == "finished")
    }

    /// Renewals in the log, by site.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn renewals(&mut self) -> Result<BTreeMap<String, Renewals>> {
        let from = self.read.to_string();
        let words = ["log", "entries", "--kind", "certificate.renewed", "--from", &from];
        let answer = self.federation.falaj_in_time(&words)?;
        let items = if answer.is_array() { &answer } else { &answer["items"] };
        let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        for entry in items.as_array().into_iter().flatten() {
            let of = self.renewals.entry(word(&entry["entry"]["actor"]["id"])).or_default();
            of.times += 1;
            of.issuers.insert(word(&entry["entry"]["issuer_sha256"]));
            self.read = self.read.max(entry["index"].as_u64().context("an index")? + 1);
        }
        Ok(self.renewals.clone())
    }

    /// Whether each site's certificate was renewed so often.
    ///
    /// # Errors
    /// As [`Self::renewals`].
    pub fn each_renewed(&mut self, times: usize) -> Result<bool> {
        let renewed = self.renewals()?;
        Ok(renewed.len() == PLACES.len() && renewed.values().all(|r| r.times >= times))
    }

    /// Replaces the issuers of all places while the sites learn, and the coordinator's and the operator's own certificates
    /// with them.
    ///
    /// # Errors
    /// When it does not come to it.
    pub fn rotate(&mut self) -> Result<()> {
        let ca = self.federation.ca().to_str().context("UTF-8")?.to_owned();
        for place in PLACES {
            run("falaj-certs", &["issuer", &ca, place, "--next"])?;
        }
        self.keep_issuers()?;
        let before = self.renewals()?;
        self.learn_until(|this| {
            let now = this.renewals()?;
            let more = |(site, r): (&String, &Renewals)| {
                before.get(site).is_some_and(|b| r.issuers.len() > b.issuers.len())
            };
            Ok(now.len() == PLACES.len() && now.iter().all(more))
        })?;
        self.rotations += 1;
        let own = |this: &Self| -> Result<usize> {
            let loaded = this.entries("trust.loaded")?;
            let of = |e: &&Value| {
                e["entry"]["changed"].as_str().is_some_and(|what| what.contains("certificate"))
            };
            Ok(loaded.iter().filter(of).count())
        };
        let seen = own(self)?;
        for (role, name) in [("coordinator", "main"), ("operator", "omar")] {
            let dir = self.federation.identity(role, name);
            fs::rename(&dir, dir.with_file_name(format!("{name}-{}", self.rotations)))?;
            self.federation.issue(role, name, PLACES[0])?;
        }
        self.learn_until(|this| Ok(own(this)? > seen))?;
        for place in PLACES {
            run("falaj-certs", &["retire", &ca, place])?;
        }
        Ok(())
    }

    /// A trust configuration with every issuer that there was: what an auditor goes by.
    #[must_use]
    pub fn all_issuers(&self) -> PathBuf {
        self.federation.dir().join("all-issuers.toml")
    }

    fn keep_issuers(&self) -> Result<()> {
        let ca = self.federation.ca();
        let now = fs::read_to_string(ca.join("trust.toml"))?;
        let now = now.replace("cert = \"", &format!("cert = \"{}/", ca.display()));
        let kept = fs::read_to_string(self.all_issuers()).unwrap_or_default();
        let mut all = kept.clone();
        for (i, part) in now.split("[[issuer]]").enumerate() {
            if i == 0 && kept.is_empty() {
                all.push_str(part);
            } else if i > 0 && !kept.contains(part.trim()) {
                // Writing to a string cannot fail.
                let _ = write!(all, "[[issuer]]{}\n\n", part.trim_end());
            }
        }
        Ok(fs::write(self.all_issuers(), all)?)
    }

    /// That no round was lost: none failed, nobody declined, and each study has a model of each of its rounds.
    ///
    /// # Errors
    /// What was lost.
    pub fn nothing_was_lost(&self) -> Result<()> {
        for kind in ["round.failed", "study.failed", "site.declined", "update.refused"] {
            let mut lost = self.entries(kind)?;
            // What a busy machine does not take in time is offered again.
            let passing = ["busy", "log_unavailable", "unavailable"];
            lost.retain(|e| e["entry"]["code"].as_str().is_none_or(|c| !passing.contains(&c)));
            ensure!(lost.is_empty(), "{kind}: {lost:?}");
        }
        for n in 1..=self.studies {
            let study = self.federation.falaj_in_time(&["study", "show", &format!("study-{n}")])?;
            let (round, promoted) = (study["round"].as_u64(), study["rounds_promoted"].as_u64());
            let running = study["state"] == "running" && round <= promoted.map(|n| n + 1);
            ensure!(running || promoted == Some(self.rounds.into()), "{study}");
        }
        Ok(())
    }

    fn entries(&self, kind: &str) -> Result<Vec<Value>> {
        let answer = self.federation.falaj_in_time(&["log", "entries", "--kind", kind])?;
        Ok(answer["items"].as_array().or(answer.as_array()).cloned().unwrap_or_default())
    }

    /// Rounds so far, of all studies.
    ///
    /// # Errors
    /// When the newest study cannot be read.
    pub fn rounds(&self) -> Result<u64> {
        let shown = self.federation.falaj_in_time(&["study", "show", &self.study()])?;
        let before = u64::from(self.studies.saturating_sub(1)) * u64::from(self.rounds);
        Ok(before + shown["rounds_promoted"].as_u64().unwrap_or_default())
    }

    /// What happened so far, in one line.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn told(&mut self) -> Result<String> {
        let renewed: usize = self.renewals()?.values().map(|r| r.times).sum();
        let rounds = self.rounds()?;
        let (studies, rotations) = (self.studies, self.rotations);
        Ok(format!(
            "{rounds} rounds of {studies} studies, {renewed} renewals, issuers replaced {rotations} times"
        ))
    }
}
