//! Keys that lie in tokens: a study whose coordinator and one of whose sites sign in SoftHSM. Needs Debian's `softhsm2` and
//! `opensc`; skipped aloud where they are not installed. The commands are those of `docs/runbooks/keys-in-a-token.md`.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::{
    federation::{Federation, Process, SiteSpec, binary, study_yaml, text, wisconsin},
    skipped,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "8152-hush";

/// What has to be installed, and is not.
fn missing() -> Option<&'static str> {
    let found = |name: &str| {
        let paths = ["/usr/bin", "/usr/local/bin"];
        paths.iter().any(|dir| Path::new(dir).join(name).exists())
    };
    if !Path::new(MODULE).exists() || !found("softhsm2-util") {
        Some("softhsm2")
    } else if !found("pkcs11-tool") {
        Some("opensc")
    } else {
        None
    }
}

/// A token of SoftHSM, with its configuration and the file of its PIN.
struct Token {
    dir: PathBuf,
    label: String,
}

impl Token {
    fn new(dir: PathBuf, label: &str) -> Result<Self> {
        fs::create_dir_all(dir.join("tokens"))?;
        let this = Self { dir, label: label.into() };
        let conf =
            format!("directories.tokendir = {}\nlog.level = ERROR\n", this.tokens().display());
        fs::write(this.dir.join("softhsm2.conf"), conf)?;
        fs::write(this.pin(), format!("{PIN}\n"))?;
        fs::set_permissions(this.pin(), fs::Permissions::from_mode(0o600))?;
        this.tool(
            "softhsm2-util",
            &["--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", PIN],
        )?;
        Ok(this)
    }

    fn tokens(&self) -> PathBuf {
        self.dir.join("tokens")
    }

    fn pin(&self) -> PathBuf {
        self.dir.join("pin")
    }

    fn environment(&self) -> (String, String) {
        let conf = self.dir.join("softhsm2.conf");
        ("SOFTHSM2_CONF".into(), conf.display().to_string())
    }

    fn tool(&self, program: &str, args: &[&str]) -> Result<String> {
        let out = Command::new(program).args(args).envs([self.environment()]).output()?;
        ensure!(out.status.success(), "{program} {args:?}: {}", text(&out));
        Ok(text(&out))
    }

    /// Makes a key, and gives its URI.
    fn key(&self, object: &str, id: &str) -> Result<String> {
        self.tool(
            "pkcs11-tool",
            &[
                "--module",
                MODULE,
                "--token-label",
                &self.label,
                "--login",
                "--pin",
                PIN,
                "--keypairgen",
                "--key-type",
                "EC:edwards25519",
                "--label",
                object,
                "--id",
                id,
            ],
        )?;
        Ok(format!(
            "pkcs11:token={};object={object}?module-path={MODULE}&pin-source=file:{}",
            self.label,
            self.pin().display()
        ))
    }

    /// Issues a certificate for a key, in place of the one with a key file.
    fn issue(&self, federation: &Federation, of: (&str, &str, &str), key: &str) -> Result<()> {
        let (role, name, place) = of;
        let dir = federation.identity(role, name);
        fs::remove_dir_all(&dir)?;
        let ca = federation.ca();
        let ca = ca.to_str().context("UTF-8")?;
        let program = binary("falaj-certs");
        let program = program.to_str().context("UTF-8")?;
        self.tool(program, &["issue", ca, role, name, "--place", place, "--key", key])?;
        ensure!(dir.join("cert.pem").exists() && !dir.join("key.pem").exists());
        Ok(())
    }
}

/// Nothing that was written down holds the PIN.
fn is_hushed(processes: &[&Process], folders: &[&Path]) -> Result<()> {
    for process in processes {
        ensure!(!process.output().contains(PIN), "the PIN was said");
    }
    for folder in folders {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_file() {
                let bytes = fs::read(&path)?;
                let found = bytes.windows(PIN.len()).any(|w| w == PIN.as_bytes());
                ensure!(!found, "{} holds the PIN", path.display());
            }
        }
    }
    Ok(())
}

#[test]
fn a_study_whose_coordinator_and_site_have_their_keys_in_tokens_verifies_offline() -> Result<()> {
    if let Some(package) = missing() {
        skipped(&format!("there is no {package}; `apt-get install -y {package}` mends that"));
        return Ok(());
    }
    let mut federation = Federation::new()?;
    let central = Token::new(federation.dir().join("hsm-coordinator"), "central")?;
    let (tls, log) = (central.key("tls", "01")?, central.key("log", "02")?);
    central.issue(&federation, ("coordinator", "main", "ae-on/ae-az"), &tls)?;
    federation.coordinator_key = Some(tls);
    federation.log_extra = format!("key = \"{log}\"\n");
    federation.environment = vec![central.environment()];
    let coordinator = federation.start_coordinator()?;
    ensure!(!federation.coordinator_state().join("log.key").exists(), "it made a key file");

    let (in_token, in_file) =
        (SiteSpec::new("hospital-1", "ae-on/ae-az"), SiteSpec::new("hospital-2", "ae-on/ae-du"));
    let records = wisconsin(2)?;
    let config = federation.prepare_site(&in_token, &records[0])?;
    federation.prepare_site(&in_file, &records[1])?;
    let own = Token::new(federation.dir().join("hsm-site"), "site")?;
    let key = own.key("site", "01")?;
    own.issue(&federation, ("site", "hospital-1", "ae-on/ae-az"), &key)?;
    let before = fs::read_to_string(&config)?;
    let file = federation.identity("site", "hospital-1").join("key.pem");
    let there = before.replace(&file.display().to_string(), &key);
    ensure!(there != before, "{before}");
    // What SoftHSM touches: its tokens, and its configuration.
    let dirs = format!("[sandbox]\ntoken_dirs = [\"{}\"]\n", own.dir.display());
    fs::write(&config, format!("{there}{dirs}"))?;
    let agent = binary("falaj-agent").display().to_string();
    let words = ["sandbox", "check", "--config", &config.display().to_string()];
    // An older kernel refuses less, and the command says so by its code; what is needed works on any.
    let out = Command::new(&agent).args(words).envs([own.environment()]).output()?;
    let tried = text(&out);
    let signs = tried.lines().find(|l| l.contains("sign with key `site` in token `site`"));
    ensure!(signs.is_some_and(|line| line.ends_with("it went through")), "{tried}");
    federation.environment = vec![own.environment()];
    let mut agent = federation.start_agent(&in_token)?;
    agent.says("the sandbox")?;
    federation.environment.clear();
    let other = federation.start_agent(&in_file)?;

    federation.submit(&study_yaml("in-tokens", 2, 2))?;
    federation.finishes("in-tokens")?;
    ensure!(federation.entries("update.accepted")?.len() == 4);

    // The site's token is away when the next study begins, and comes back.
    let drawer = own.dir.join("drawer");
    fs::rename(own.tokens(), &drawer)?;
    federation.submit(&study_yaml("away", 1, 2))?;
    agent.says("a task waits for the site's key")?;
    let said = agent.output();
    ensure!(said.contains("key `site` in token `site`") && said.contains(MODULE), "{said}");
    fs::rename(&drawer, own.tokens())?;
    federation.finishes("away")?;

    let verdict = federation.verified()?;
    ensure!(verdict.contains("verified") && verdict.contains("6 signed updates"), "{verdict}");
    let state = federation.dir().join("sites/hospital-1/state");
    let journal = state.join("journal");
    is_hushed(&[&coordinator, &agent, &other], &[&federation.coordinator_state(), &state, &journal])
}
