//! Quotes of a TPM as evidence of a connection, by a real TPM in software: `swtpm`, and `tpm2-tools` which are not ours. Skipped
//! aloud where they are not installed. The commands are those of `docs/runbooks/attest-with-a-tpm.md`.

use anyhow::{Context as _, Result, ensure};
use falaj_core::{
    id::{Digest, SpiffeId},
    tpm::qualifying,
};
use falaj_proto::{
    problem::{Code, code_of},
    v1::{ConnectRequest, Push, push},
};
use falaj_tests::{
    federation::{Federation, PATIENCE, Process, SiteSpec, study_yaml, text, wait_for, wisconsin},
    rogue::Rogue,
};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};
use tonic::{Status, Streaming};

const SITE: &str = "spiffe://falaj.test/ae-on/ae-az/site/hospital-1";
/// A site beside it, whose key is of another kind.
const BESIDE: &str = "spiffe://falaj.test/ae-on/ae-az/site/hospital-3";
/// Where the attestation key lies in the TPM, another one, and one of RSA.
const KEY: &str = "0x81010002";
const OTHER_KEY: &str = "0x81010003";
const RSA_KEY: &str = "0x81010004";

/// What has to be installed, and is not; that is said aloud.
fn is_skipped() -> bool {
    let there = |name: &str| Path::new("/usr/bin").join(name).exists();
    let missing = [("swtpm", "swtpm"), ("tpm2_quote", "tpm2-tools")];
    let missing = missing.into_iter().find(|(program, _)| !there(program));
    if let Some((_, package)) = missing {
        // Past the capture of the test's output.
        let said =
            format!("SKIPPED: there is no {package}; `apt-get install -y {package}` mends that\n");
        let _ = std::io::stderr().write_all(said.as_bytes());
    }
    missing.is_some()
}

/// A TPM in software.
struct Tpm {
    dir: PathBuf,
    process: Process,
}

impl Tpm {
    /// A new one, with three attestation keys.
    fn new(federation: &Federation) -> Result<Self> {
        let dir = federation.dir().join("tpm");
        fs::create_dir(&dir)?;
        let this = Self { process: Self::start(federation, &dir)?, dir };
        this.tool("tpm2_createek", &["-G", "ecc", "-c", "ek.ctx", "-u", "ek.pub"])?;
        for (handle, public, [kind, scheme]) in [
            (KEY, "ak.pub", ["ecc", "ecdsa"]),
            (OTHER_KEY, "other.pub", ["ecc", "ecdsa"]),
            (RSA_KEY, "rsa.pub", ["rsa", "rsapss"]),
        ] {
            let made = ["-C", "ek.ctx", "-c", "ak.ctx", "-n", "ak.name", "-G", kind];
            this.tool("tpm2_createak", &[&made[..], &["-g", "sha256", "-s", scheme]].concat())?;
            this.tool("tpm2_flushcontext", &["-t"])?;
            this.tool("tpm2_evictcontrol", &["-C", "o", "-c", "ak.ctx", handle])?;
            this.tool("tpm2_readpublic", &["-c", handle, "-o", public])?;
        }
        Ok(this)
    }

    /// Starts it; what it keeps is what it kept before.
    fn start(federation: &Federation, dir: &Path) -> Result<Process> {
        let at = |name: &str| dir.join(name).display().to_string();
        let words = [
            "/usr/bin/swtpm".into(),
            "socket".into(),
            "--tpm2".into(),
            "--tpmstate".into(),
            format!("dir={}", dir.display()),
            "--server".into(),
            format!("type=unixio,path={}", at("socket")),
            "--ctrl".into(),
            format!("type=unixio,path={}", at("socket.ctrl")),
            "--flags".into(),
            "not-need-init,startup-clear".into(),
        ];
        for name in ["socket", "socket.ctrl"] {
            // Of one that was killed.
            let _ = fs::remove_file(dir.join(name));
        }
        let process = federation.spawn("swtpm", &words, "swtpm.log")?;
        wait_for("the TPM", || Ok(UnixStream::connect(dir.join("socket")).ok()))?;
        Ok(process)
    }

    /// What one of the TPM's tools says; the TPM serves one at a time.
    fn tool(&self, name: &str, args: &[&str]) -> Result<String> {
        let at = format!("swtpm:path={}", self.dir.join("socket").display());
        let out = Command::new(name)
            .args(args)
            .env("TPM2TOOLS_TCTI", at)
            .current_dir(&self.dir)
            .output()?;
        ensure!(out.status.success(), "{name} {args:?}: {}", text(&out));
        Ok(text(&out))
    }

    fn file(&self, name: &str) -> Result<Vec<u8>> {
        Ok(fs::read(self.dir.join(name))?)
    }

    /// A quote over these registers for what is asked, and its signature, by the tools.
    fn quote(&self, key: &str, registers: &str, asked: &Digest) -> Result<(Vec<u8>, Vec<u8>)> {
        let list = format!("sha256:{registers}");
        let of = ["-c", key, "-l", &list, "-q", &asked.to_string(), "-m", "quote", "-s", "signed"];
        self.tool("tpm2_quote", &of)?;
        Ok((self.file("quote")?, self.file("signed")?))
    }

    /// What an operator declares of it for a site: its key, and its registers as they are.
    fn declared(&self, site: &str, public: &str) -> Result<String> {
        let mut lines = format!(
            "[[site]]\nid = \"{site}\"\nkey = \"{}\"\n[site.pcrs]\n",
            hex(&self.file(public)?)
        );
        for line in self.tool("tpm2_pcrread", &["sha256:0,2,4,7"])?.lines() {
            if let Some((n, value)) = line.split_once(": 0x") {
                writeln!(lines, "{} = \"{}\"", n.trim(), value.to_lowercase())?;
            }
        }
        Ok(lines)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &Value) -> Result<Vec<u8>> {
    let text = text.as_str().context("hexadecimal digits")?;
    let pair = |at: usize| Ok(u8::from_str_radix(&text[at..at + 2], 16)?);
    (0..text.len()).step_by(2).map(pair).collect()
}

/// A federation whose coordinator wants a quote of two sites every second, and a TPM for that.
fn federation() -> Result<(Federation, Tpm, Process)> {
    let mut federation = Federation::new()?;
    let tpm = Tpm::new(&federation)?;
    let path = tpms(&federation);
    fs::write(&path, tpm.declared(SITE, "ak.pub")? + &tpm.declared(BESIDE, "rsa.pub")?)?;
    federation.coordinator_extra =
        format!("[evidence]\nprobe_every_s = 1\ntpms = \"{}\"\n", path.display());
    let coordinator = federation.start_coordinator()?;
    Ok((federation, tpm, coordinator))
}

fn tpms(federation: &Federation) -> PathBuf {
    federation.dir().join("tpms.toml")
}

/// Entries of a kind about a site.
fn entries(federation: &Federation, kind: &str, site: &str) -> Result<Vec<Value>> {
    let all = federation.entries(kind)?.into_iter().map(|mut e| e["entry"].take());
    Ok(all.filter(|e| e["actor"].to_string().contains(site)).collect())
}

/// Waits for an entry of a kind about the first site of which this holds.
fn entry(
    federation: &Federation,
    kind: &str,
    what: &str,
    is: impl Fn(&Value) -> bool,
) -> Result<Value> {
    wait_for(&format!("{kind}: {what}"), || {
        Ok(entries(federation, kind, "hospital-1")?.into_iter().find(|e| is(e)))
    })
}

fn by(rule: &str) -> impl Fn(&Value) -> bool {
    move |entry| entry["policy_ids"].to_string().contains(rule)
}

/// An agent with a TPM is let in and learns; once its machine has started something else it is cut off, and when its TPM is gone,
/// and comes back when that does; a site beside it of which no TPM is declared hears nothing of all that.
#[test]
fn a_site_stays_for_as_long_as_its_tpm_says_what_was_declared() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (federation, mut tpm, _coordinator) = federation()?;
    let sites =
        ["hospital-1", "hospital-2", "hospital-3"].map(|name| SiteSpec::new(name, "ae-on/ae-az"));
    let mut agents = Vec::new();
    for (site, records) in sites.iter().zip(wisconsin(3)?) {
        let config = federation.prepare_site(site, &records)?;
        let key = [Some(KEY), None, Some(RSA_KEY)][agents.len()];
        if let Some(key) = key {
            let socket = tpm.dir.join("socket");
            let lines =
                format!("[tpm]\ndevice = \"swtpm:path={}\"\nkey = \"{key}\"\n", socket.display());
            fs::write(&config, fs::read_to_string(&config)? + &lines)?;
        }
        agents.push(federation.start_agent(site)?);
    }
    let good = |e: &Value| e["evidence"]["tpm"]["as_declared"] == true;
    let taken = entry(&federation, "evidence.taken", "a good quote", good)?;
    checked_by_others(&federation, &tpm, &taken["evidence"]["tpm"])?;
    federation.submit(&study_yaml("attested", 1, 3))?;
    federation.finishes("attested")?;

    // Something else is started.
    let other = format!("7:sha256={}", "ab".repeat(32));
    tpm.tool("tpm2_pcrextend", &[&other])?;
    let ended = entry(&federation, "connection.ended", "another start", by("RES-017"))?;
    ensure!(ended["evidence"]["tpm"]["as_declared"] == false && ended["pending"] == "kept");
    agents[0].says("has started with something else than what is declared")?;

    tpm.process.kill()?;
    let absent = |e: &Value| e["evidence"]["tpm"]["fault"] == "absent" && by("RES-016")(e);
    entry(&federation, "connection.ended", "no quote", absent)?;
    agents[0].says("no quote for the coordinator")?;
    agents[0].says("cannot be spoken to")?;

    // The machine starts anew, and as declared.
    tpm.process = Tpm::start(&federation, &tpm.dir)?;
    let before = taken["evidence"]["tpm"]["resets"].as_i64().context("resets")?;
    let again =
        |e: &Value| good(e) && e["evidence"]["tpm"]["resets"].as_i64().is_some_and(|n| n > before);
    entry(&federation, "evidence.taken", "a good quote after another start", again)?;

    ensure!(entries(&federation, "connection.ended", "hospital-2")?.is_empty());
    let beside = entries(&federation, "evidence.taken", "hospital-2")?;
    ensure!(!beside.is_empty() && beside.iter().all(|e| e["evidence"].get("tpm").is_none()));
    let verdict = federation.verified()?;
    ensure!(verdict.contains("of sites' TPMs, each checked again"), "{verdict}");
    for agent in &mut agents {
        agent.terminate()?;
    }
    Ok(())
}

/// The quote in the log is one by the tools of others, too, for what the coordinator has to have asked.
fn checked_by_others(federation: &Federation, tpm: &Tpm, logged: &Value) -> Result<()> {
    ensure!(logged["key"].as_str() == Some(&hex(&tpm.file("ak.pub")?[2..])), "{logged}");
    fs::write(tpm.dir.join("logged"), unhex(&logged["attest"])?)?;
    fs::write(tpm.dir.join("logged.signed"), unhex(&logged["signature"])?)?;
    let asked = asked(federation, "hospital-1", &unhex(&logged["nonce"])?)?.to_string();
    let check = |asked: &str| {
        let of =
            ["-u", "ak.pub", "-m", "logged", "-s", "logged.signed", "-g", "sha256", "-q", asked];
        tpm.tool("tpm2_checkquote", &of)
    };
    check(&asked)?;
    ensure!(check(&Digest::of(b"else").to_string()).is_err(), "it checks nothing");
    Ok(())
}

/// What a TPM is asked for when the coordinator has sent this nonce to a site.
fn asked(federation: &Federation, site: &str, nonce: &[u8]) -> Result<Digest> {
    let key = federation.credentials("site", site)?.identity()?.public_key;
    let coordinator: SpiffeId = "spiffe://falaj.test/ae-on/ae-az/coordinator/main".parse()?;
    Ok(qualifying(nonce.try_into()?, &key, &coordinator))
}

type Given = (Vec<u8>, Vec<u8>);
/// What a site gives for a nonce.
type Give<'a> = Box<dyn Fn(&[u8]) -> Result<Given> + 'a>;

/// Connects as the first site, answers probes, and gives for a quote what `give` gives for its nonce: the status that ends the
/// stream, or none when it gives none any more.
async fn connected(
    federation: &Federation,
    gives_quotes: bool,
    mut give: impl FnMut(&[u8]) -> Result<Option<Given>>,
) -> Result<Option<Status>> {
    let credentials = federation.credentials("site", "hospital-1")?;
    let to = federation.agents_connect_to()?;
    let mut rogue = Rogue::connect(to, credentials, &federation.trust()?).await?;
    let hello = ConnectRequest { answers_probes: true, gives_quotes, ..ConnectRequest::default() };
    let mut stream: Streaming<Push> = rogue.open_as(hello).await?;
    loop {
        let probe = match tokio::time::timeout(PATIENCE, stream.message()).await? {
            Ok(Some(Push { push: Some(push::Push::Probe(probe)) })) => probe,
            Ok(Some(_)) => continue,
            Ok(None) => return Ok(None),
            Err(status) => return Ok(Some(status)),
        };
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        // Whoever was cut off meanwhile reads it on the stream.
        if !probe.quote {
            let _ = rogue.answer_probe(&probe.nonce, now).await;
        } else if let Some(quote) = give(&probe.nonce)? {
            let _ = rogue.give_quote(&probe.nonce, now, quote).await;
        } else {
            return Ok(None);
        }
    }
}

fn denied(status: Option<Status>, words: &str) -> Result<()> {
    let status = status.context("it was not cut off")?;
    ensure!(code_of(&status) == Some(Code::Denied), "{status:?}");
    ensure!(status.message().contains(words), "{status:?}");
    Ok(())
}

/// Whoever holds the site's own key gets nowhere with a quote by another key, from before, for somebody else, over other registers,
/// or with none; and the log says which it was.
#[test]
fn a_quote_by_another_key_from_before_or_for_somebody_else_counts_for_nothing() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (federation, tpm, _coordinator) = federation()?;
    federation.issue("site", "hospital-1", "ae-on/ae-az")?;
    federation.issue("site", "hospital-2", "ae-on/ae-az")?;
    let all = "0,2,4,7";
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build()?;
    let mine = |nonce: &[u8]| asked(&federation, "hospital-1", nonce);
    let mut before = None;
    let kept = runtime.block_on(connected(&federation, true, |nonce| {
        let good = tpm.quote(KEY, all, &mine(nonce)?)?;
        // It is taken, and asked for once more.
        let was = before.replace(good.clone());
        Ok(was.is_none().then_some(good))
    }))?;
    ensure!(kept.is_none(), "{kept:?}");
    let good = |e: &Value| e["evidence"]["tpm"]["as_declared"] == true;
    entry(&federation, "evidence.taken", "a good quote", good)?;
    let before = before.context("a quote")?;
    let garbage = || Ok((b"no quote".to_vec(), b"no signature".to_vec()));
    let cases: [(&str, Give<'_>); 7] = [
        ("other_key", Box::new(|nonce| tpm.quote(OTHER_KEY, all, &mine(nonce)?))),
        ("other_question", Box::new(|_| Ok(before.clone()))),
        (
            "other_question",
            Box::new(|nonce| tpm.quote(KEY, all, &asked(&federation, "hospital-2", nonce)?)),
        ),
        ("other_registers", Box::new(|nonce| tpm.quote(KEY, "0,2,4", &mine(nonce)?))),
        ("malformed", Box::new(|_| garbage())),
        ("absent", Box::new(|_| Ok(Given::default()))),
        (
            "other_key",
            Box::new(|nonce| {
                let (mut quote, signature) = tpm.quote(KEY, all, &mine(nonce)?)?;
                let last = quote.last_mut().context("bytes")?;
                *last ^= 1;
                Ok((quote, signature))
            }),
        ),
    ];
    for (fault, give) in &cases {
        let status =
            runtime.block_on(connected(&federation, true, |nonce| give(nonce).map(Some)))?;
        denied(status, "RES-016")?;
        let ended = entries(&federation, "connection.ended", "hospital-1")?;
        let ended = ended.last().context("an entry")?;
        ensure!(ended["evidence"]["tpm"]["fault"] == *fault, "{fault}: {ended}");
    }
    let status = runtime.block_on(connected(&federation, false, |_| Ok(None)))?;
    denied(status, "gave no good quote")?;

    // Other registers are declared while it is connected: a file that is broken changes nothing, a whole one does.
    let whole = fs::read_to_string(tpms(&federation))?;
    fs::write(tpms(&federation), whole.replace("[site.pcrs]", "[site.pcr]"))?;
    let mut changed = false;
    let status = runtime.block_on(connected(&federation, true, |nonce| {
        let alerts = federation.entries("alert.raised")?;
        let told = alerts.iter().any(|e| e["entry"]["alert"] == "tpms_not_taken");
        if told && !std::mem::replace(&mut changed, true) {
            let other = whole.replace(
                &format!("7 = \"{}\"", "0".repeat(64)),
                &format!("7 = \"{}\"", "1".repeat(64)),
            );
            ensure!(other != whole, "{whole}");
            fs::write(tpms(&federation), other)?;
        }
        Ok(Some(tpm.quote(KEY, all, &mine(nonce)?)?))
    }))?;
    denied(status, "RES-017")?;
    let loaded = federation.entries("trust.loaded")?;
    let loaded = &loaded.last().context("an entry")?["entry"];
    ensure!(loaded["changed"] == "TPMs" && loaded["tpms_sha256"].is_string(), "{loaded}");
    federation.verified()?;
    Ok(())
}
