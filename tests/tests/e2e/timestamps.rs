//! AUD-13: time-stamps from the coordinator's start to the auditor's desk, checked by us and by OpenSSL.

#[path = "../../../coordinator/tests/timestamps/authority.rs"]
#[expect(dead_code, reason = "the coordinator's own tests need more of it")]
mod authority;

use anyhow::{Context as _, Result, ensure};
use authority::{Files, SOUND, Server, openssl_is_there};
use falaj_tests::federation::{Federation, run, text, wait_for};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A bundle's files, in order.
fn unpacked(bundle: &Path, to: &Path) -> Result<Vec<String>> {
    let bundle = bundle.to_str().context("UTF-8")?;
    let to = to.to_str().context("UTF-8")?;
    fs::create_dir_all(to)?;
    shell("tar", &["-xf", bundle, "-C", to])?;
    Ok(shell("tar", &["-tf", bundle])?.lines().map(str::to_owned).collect())
}

fn packed(names: &[String], from: &Path, to: &Path) -> Result<()> {
    let [from, to] = [from, to].map(|path| path.display().to_string());
    let mut args = vec!["--format=ustar", "-cf", &to, "-C", &from];
    args.extend(names.iter().map(String::as_str));
    shell("tar", &args).map(drop)
}

fn shell(program: &str, args: &[&str]) -> Result<String> {
    let out = std::process::Command::new(program).args(args).output()?;
    ensure!(out.status.success(), "{program}: {}", text(&out));
    Ok(String::from_utf8(out.stdout)?)
}

/// A federation whose log is stamped twice: at the first start, and as if the day had changed since.
struct Stamped {
    federation: Federation,
    server: Server,
    files: Files,
    folder: PathBuf,
}

impl Stamped {
    fn new() -> Result<Self> {
        let mut federation = Federation::new()?;
        let folder = federation.dir().to_owned();
        let files = Files::make(&folder.join("tsa"), SOUND)?;
        let server = Server::honest(&files)?;
        federation.log_extra = format!(
            "timestamps = {{ url = \"{}\", ca = \"{}\", place = \"ae-on/ae-az\" }}\n",
            server.url(),
            files.root().display()
        );
        Ok(Self { federation, server, files, folder })
    }

    fn stamps(&self, count: usize) -> Result<()> {
        wait_for("a stamp", || {
            let stamps = self.federation.falaj_json(&["log", "timestamps"])?;
            Ok(stamps["items"].as_array().filter(|items| items.len() == count).map(drop))
        })
    }

    fn export(&self, name: &str, more: &[&str]) -> Result<PathBuf> {
        let path = self.folder.join(name);
        let to = path.display().to_string();
        let out = self.federation.falaj(&[&["log", "export", "-o", &to][..], more].concat())?;
        ensure!(out.status.success(), "{}", text(&out));
        Ok(path)
    }
}

fn verify(bundle: &Path, more: &[&str]) -> Result<String> {
    let bundle = bundle.display().to_string();
    run("falaj-verify", &[&[bundle.as_str()][..], more].concat())
}

/// A coordinator's bundle with two stamps of its log and one of its report, taken apart.
struct Apart {
    stamped: Stamped,
    bundle: PathBuf,
    folder: PathBuf,
    /// The files' names, in order.
    names: Vec<String>,
    bytes: BTreeMap<String, Vec<u8>>,
    /// The names of the two stamps of the log.
    stamps: [String; 2],
}

impl Apart {
    fn new() -> Result<Self> {
        let mut stamped = Stamped::new()?;
        let mut coordinator = stamped.federation.start_coordinator()?;
        stamped.stamps(1)?;
        coordinator.terminate()?;
        // Yesterday, for all that the coordinator can tell.
        yesterday(&stamped.folder.join("coordinator/state/coordinator.sqlite"))?;
        let _coordinator = stamped.federation.start_coordinator()?;
        stamped.stamps(2)?;
        let bundle = stamped.export("with.tar", &["--timestamp"])?;
        let size = size_of(&verify(&bundle, &["--json"])?)?.to_string();
        let again = stamped.export("again.tar", &["--timestamp", "--tree-size", &size])?;
        ensure!(fs::read(&bundle)? == fs::read(&again)?, "the same bundle has other bytes");
        let without = stamped.export("without.tar", &["--tree-size", &size])?;
        ensure!(fs::read(&bundle)? != fs::read(&without)?);
        verify(&without, &[])?;
        let folder = stamped.folder.join("unpacked");
        let names = unpacked(&bundle, &folder)?;
        let read = |name: &String| Ok((name.clone(), fs::read(folder.join(name))?));
        let bytes = names.iter().map(read).collect::<Result<_>>()?;
        let is_stamp = |n: &&String| n.starts_with("stamped/") && n.contains(".tsr");
        let stamps: Vec<String> = names.iter().filter(is_stamp).cloned().collect();
        let stamps = stamps.try_into().map_err(|all| anyhow::anyhow!("{all:?}"))?;
        Ok(Self { stamped, bundle, folder, names, bytes, stamps })
    }

    fn note_of(&self, stamp: &str) -> &[u8] {
        &self.bytes[stamp.trim_end_matches(".tsr")]
    }

    /// All but these.
    fn without(&self, left_out: &[&str]) -> Vec<String> {
        let kept = self.names.iter().filter(|name| !left_out.contains(&name.as_str()));
        kept.cloned().collect()
    }

    /// Puts other bytes under a name.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(fs::write(self.folder.join(name), bytes)?)
    }

    /// Why a bundle of these files is refused; what was put under other names is as it was again.
    fn refused(&self, names: &[String]) -> Result<String> {
        let changed = self.stamped.folder.join("changed.tar");
        packed(names, &self.folder, &changed)?;
        let wrong = verify(&changed, &[]).err().context("it is verified")?;
        self.bytes.iter().try_for_each(|(name, bytes)| self.put(name, bytes))?;
        Ok(wrong.to_string())
    }
}

/// AUD-13, RES-07: what the coordinator had stamped is in its bundles, with the report's own stamp where it is asked for; the
/// same bundle has the same bytes; OpenSSL and the verifier accept each stamp, and refuse two that changed places.
#[test]
fn stamps_go_with_the_bundle_and_swapped_ones_are_refused_by_everybody() -> Result<()> {
    if !openssl_is_there() {
        return Ok(());
    }
    let apart = Apart::new()?;
    let (files, bytes) = (&apart.stamped.files, &apart.bytes);
    ensure!(apart.names.last().is_some_and(|name| name == "report.json.tsr"));
    let [one, other] = &apart.stamps;
    for (stamp, of, fits) in
        [(one, one, true), (other, other, true), (one, other, false), (other, one, false)]
    {
        ensure!(files.accepts(&bytes[stamp], apart.note_of(of))? == fits, "{stamp}");
    }
    ensure!(files.accepts(&bytes["report.json.tsr"], &bytes["report.json"])?);
    apart.put(one, &bytes[other])?;
    apart.put(other, &bytes[one])?;
    let wrong = apart.refused(&apart.names)?;
    ensure!(wrong.contains(one) && wrong.contains("a time-stamp of something else"), "{wrong}");

    // Who is trusted is for the auditor to say; the report is the same.
    let said = verify(&apart.bundle, &[])?;
    ensure!(said.matches("recorded: the log names").count() == 3, "{said}");
    let root = files.root().display().to_string();
    let said = verify(&apart.bundle, &["--tsa-ca", &root])?;
    ensure!(said.matches("attested: its certificate").count() == 3, "{said}");
    let stranger = Files::make(&apart.stamped.folder.join("stranger"), SOUND)?.root();
    let stranger = stranger.display().to_string();
    let wrong = verify(&apart.bundle, &["--tsa-ca", &stranger]).err().context("a stranger's")?;
    ensure!(wrong.to_string().contains("does not lead to an issuer"), "{wrong}");
    let report = String::from_utf8(bytes["report.json"].clone())?;
    for word in ["E5.timestamps", "timestamps", "authorities", "E15.third_parties"] {
        ensure!(report.contains(&format!("\"{word}\"")), "{word}: {report}");
    }
    ensure!(report.contains("CN=Time-stamp authority"), "{report}");
    Ok(())
}

/// AUD-13: a stamp that is left out, changed or added is found.
#[test]
fn stamps_and_the_entries_that_name_them_are_the_same() -> Result<()> {
    if !openssl_is_there() {
        return Ok(());
    }
    let apart = Apart::new()?;
    let [stamp, _] = &apart.stamps;
    let note = stamp.trim_end_matches(".tsr");
    let wrong = apart.refused(&apart.without(&[stamp, note]))?;
    ensure!(wrong.contains("is not in the bundle"), "{wrong}");
    let wrong = apart.refused(&apart.without(&[stamp]))?;
    ensure!(wrong.contains(&format!("the bundle has no `{stamp}`")), "{wrong}");
    let wrong = apart.refused(&apart.without(&[note]))?;
    ensure!(wrong.contains("its checkpoint does not stand before it"), "{wrong}");
    apart.put("report.json.tsr", &apart.bytes[stamp])?;
    let wrong = apart.refused(&apart.names)?;
    ensure!(
        wrong.contains("`report.json.tsr` is wrong: it is a time-stamp of something"),
        "{wrong}"
    );

    // A checkpoint of this log, truly stamped, but behind the coordinator's back.
    let [query, checkpoint] = ["query", "checkpoint"].map(|name| apart.folder.join(name));
    let [asked, head] = [&query, &checkpoint].map(|path| path.display().to_string());
    shell("openssl", &["ts", "-query", "-data", &head, "-sha256", "-cert", "-out", &asked])?;
    let answer = apart.stamped.files.answer(&fs::read(&query)?)?;
    let size = String::from_utf8(apart.bytes["checkpoint"].clone())?;
    let size = size.lines().nth(1).context("a size")?;
    let added = [format!("stamped/{size}"), format!("stamped/{size}.tsr")];
    apart.put(&added[0], &apart.bytes["checkpoint"])?;
    apart.put(&added[1], &answer)?;
    let mut names = apart.names.clone();
    let at = names.iter().position(|name| name.starts_with("tile/")).context("tiles")?;
    names.splice(at..at, added);
    let wrong = apart.refused(&names)?;
    ensure!(wrong.contains("no entry of the log names it"), "{wrong}");
    Ok(())
}

/// AUD-13: an operator takes stamps home and checks them with OpenSSL alone.
#[test]
fn stamps_are_written_out_with_the_command_that_checks_them() -> Result<()> {
    if !openssl_is_there() {
        return Ok(());
    }
    let mut stamped = Stamped::new()?;
    let _coordinator = stamped.federation.start_coordinator()?;
    stamped.stamps(1)?;
    let folder = stamped.folder.join("stamps").display().to_string();
    let out = stamped.federation.falaj(&["log", "timestamps", "-o", &folder])?;
    ensure!(out.status.success(), "{}", text(&out));
    let command = String::from_utf8(out.stdout)?;
    let root = stamped.files.root().display().to_string();
    let words: Vec<&str> = command
        .split_whitespace()
        .map(|word| if word == "CA.pem" { root.as_str() } else { word })
        .collect();
    let [program, args @ ..] = &words[..] else { anyhow::bail!("{command}") };
    let said = std::process::Command::new(program).args(args).output()?;
    ensure!(String::from_utf8_lossy(&said.stdout).contains("Verification: OK"), "{command}");
    // Each question is an entry, which says what was asked.
    let entries = stamped.federation.entries("admin.read")?;
    let asked = |what: &str| entries.iter().any(|e| e["entry"]["asked"][what].is_string());
    ensure!(asked("timestamps") && asked("timestamp"), "{entries:?}");
    Ok(())
}

/// AUD-13: a coordinator whose authority is away serves as it did; a report cannot be stamped then, and that is said.
#[test]
fn a_coordinator_without_its_authority_goes_on() -> Result<()> {
    if !openssl_is_there() {
        return Ok(());
    }
    let mut stamped = Stamped::new()?;
    stamped.server.set(|_| Ok(authority::Reply::Status(503)));
    let mut coordinator = stamped.federation.start_coordinator()?;
    coordinator.says("no time-stamp")?;
    stamped.federation.falaj_json(&["status"])?;
    let bundle = stamped.export("plain.tar", &[])?;
    let said = verify(&bundle, &[])?;
    ensure!(!said.contains("time-stamp"), "{said}");
    let to = stamped.folder.join("none.tar").display().to_string();
    let out = stamped.federation.falaj(&["log", "export", "--timestamp", "-o", &to])?;
    ensure!(!out.status.success() && text(&out).contains("HTTP status 503"), "{}", text(&out));
    ensure!(!Path::new(&to).exists());
    ensure!(coordinator.terminate()? == Some(0));
    Ok(())
}

fn size_of(json: &str) -> Result<u64> {
    let verdict: serde_json::Value = serde_json::from_str(json)?;
    verdict["report"]["tree_size"].as_u64().context("a size")
}

/// Moves the stamps in a database a day back, as no coordinator could.
fn yesterday(database: &Path) -> Result<()> {
    use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
    let options = SqliteConnectOptions::new().filename(database);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let refused = sqlx::query("UPDATE log_timestamps SET committed_ms = 0")
            .execute(&mut connection)
            .await;
        ensure!(refused.is_err_and(|e| e.to_string().contains("append-only")));
        for statement in [
            "DROP TRIGGER log_timestamps_are_not_changed",
            "UPDATE log_timestamps SET committed_ms = committed_ms - 86400000",
        ] {
            sqlx::query(statement).execute(&mut connection).await?;
        }
        Ok(connection.close().await?)
    })
}

/// AUD-13: with `timestamp` a report that the coordinator makes by itself has a stamp of its own, and so has its bundle's.
#[test]
fn the_report_of_a_month_is_stamped_and_openssl_accepts_it() -> Result<()> {
    if !openssl_is_there() {
        return Ok(());
    }
    let mut stamped = Stamped::new()?;
    let reports = stamped.folder.join("reports");
    fs::create_dir(&reports)?;
    let more = format!(
        "reports = {{ folder = \"{}\", place = \"ae-on/ae-az\", every = \"month\", timestamp = true }}\n",
        reports.display()
    );
    stamped.federation.log_extra.push_str(&more);
    let mut coordinator = stamped.federation.start_coordinator()?;
    stamped.stamps(1)?;
    coordinator.terminate()?;
    super::reports::make_due(&stamped.federation)?;
    let made = fs::read_dir(&reports)?.next().context("no report is made")??.path();
    let (report, stamp) =
        (fs::read(made.join("report.json"))?, fs::read(made.join("report.json.tsr"))?);
    ensure!(stamped.files.accepts(&stamp, &report)?);
    ensure!(!stamped.files.accepts(&stamp, b"another report")?);
    let [bundle, ca, trust] =
        [made.join("bundle.tar"), stamped.files.root(), stamped.federation.ca().join("trust.toml")]
            .map(|path| path.display().to_string());
    let said = run("falaj-verify", &[&bundle, "--tsa-ca", &ca, "--trust", &trust])?;
    ensure!(said.contains("time-stamp the report, at "), "{said}");
    Ok(())
}
