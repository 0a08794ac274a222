//! The process that writes: what it does, and how it is started, heard and ended.

use crate::told::Told;
use anyhow::{Context as _, Result, bail, ensure};
use ed25519_dalek::SigningKey;
use falaj_coordinator::{
    checkpointer::{Checkpointer, high_water},
    metrics::Metrics,
    store::{
        Database, Store,
        writer::{self, Writer},
    },
};
use falaj_core::{
    audit::{Draft, Kind},
    note::{Checkpoint, NoteSigner},
};
use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::Arc,
};
use tokio::{runtime::Builder, task::JoinSet};

/// What tells this program that it is to write: where the log lies.
const DATABASE: &str = "FALAJ_FAULTS_DATABASE";
/// Where the newest checkpoint is kept a second time.
const HIGH_WATER: &str = "FALAJ_FAULTS_HIGH_WATER";
/// How much is to be written.
const LOAD: &str = "FALAJ_FAULTS_LOAD";
/// How a URL of PostgreSQL begins; all else is the path of a SQLite file.
const POSTGRES: &str = "postgres:";

/// Callers that write at once.
const CALLERS: u32 = 8;
/// Commits of one caller between two checkpoints that it has signed.
const SIGNED_EVERY: u32 = 8;

pub(crate) fn signer() -> Arc<NoteSigner> {
    let key = SigningKey::from_bytes(&[11; 32]);
    Arc::new(NoteSigner::new("falaj.test/log", key).expect("a name"))
}

/// How much a child writes.
#[derive(Clone, Copy)]
pub(crate) enum Load {
    /// Until it is killed, by [`CALLERS`] at once.
    Endless,
    /// So many commits by each of [`CALLERS`] at once.
    Each(u32),
    /// So many commits, one after the other.
    Alone(u32),
}

impl Load {
    fn text(self) -> String {
        let (callers, commits) = match self {
            Self::Endless => (CALLERS, u32::MAX),
            Self::Each(commits) => (CALLERS, commits),
            Self::Alone(commits) => (1, commits),
        };
        format!("{callers} {commits}")
    }
}

/// Where a log lies, and the checkpoint that is kept a second time.
#[derive(Clone)]
pub(crate) struct Place {
    database: String,
    pub(crate) high_water: PathBuf,
}

impl Place {
    pub(crate) fn sqlite(dir: &Path) -> Self {
        let database = dir.join("coordinator.sqlite").display().to_string();
        Self { database, high_water: dir.join("high-water") }
    }

    pub(crate) fn postgres(dir: &Path, url: &str) -> Self {
        Self { database: url.to_owned(), high_water: dir.join("high-water") }
    }

    pub(crate) fn database(&self) -> Result<Database> {
        Ok(if self.database.starts_with(POSTGRES) {
            Database::Postgres(Box::new(self.database.parse()?))
        } else {
            Database::Sqlite(self.database.clone().into())
        })
    }

    /// Every file that the coordinator writes there.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let suffixes = ["", "-wal", "-shm", "-journal"];
        let mut files: Vec<PathBuf> =
            suffixes.iter().map(|s| format!("{}{s}", self.database).into()).collect();
        files.push(self.high_water.clone());
        files.push(self.high_water.with_extension("partial"));
        files.extend(self.high_water.parent().map(Path::to_owned));
        files
    }
}

// ---- in the child ----

/// Not a test of its own: what the child does, and nothing in any other process.
#[test]
fn the_child_writes() -> Result<()> {
    let Ok(database) = env::var(DATABASE) else { return Ok(()) };
    let high_water = env::var_os(HIGH_WATER).context("no high water")?.into();
    let load = env::var(LOAD)?;
    let (callers, commits) = load.split_once(' ').context("no load")?;
    let (callers, commits) = (callers.parse()?, commits.parse()?);
    // One thread for files, so that what it calls can be counted.
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(write(&Place { database, high_water }, callers, commits))
}

/// Tells whoever listens; if nobody does any more, it is over.
fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    // What the test harness has written is in the same line otherwise.
    out.write_all(format!("\n{line}\n").as_bytes())?;
    out.flush()
}

/// Opens a log as the coordinator does, and writes to it.
async fn write(place: &Place, callers: u32, commits: u32) -> Result<()> {
    let signer = signer();
    let (store, writing) = Store::open(&place.database()?).await?;
    let kept = high_water(&place.high_water)?;
    let metrics = Arc::new(Metrics::default());
    let (writer, service) = writer::open(writing, &signer, kept.as_deref(), metrics).await?;
    let serving = tokio::spawn(service.run());
    let high_water = Some(place.high_water.clone());
    let checkpointer = Checkpointer::new(writer.clone(), signer, high_water);
    say(&format!("opened {}", writer.head().0))?;
    let mut calling = JoinSet::new();
    for _ in 0..callers {
        calling.spawn(call(writer.clone(), checkpointer.clone(), commits));
    }
    while let Some(done) = calling.join_next().await {
        done??;
    }
    drop((writer, checkpointer, store));
    serving.await?;
    say("done")?;
    Ok(())
}

/// One caller: commits, and has the head signed now and then.
async fn call(writer: Writer, checkpointer: Checkpointer, commits: u32) -> Result<()> {
    for n in 1..=commits {
        match writer.record(vec![Draft::new(Kind::AdminRead).count("n", n.into())]).await {
            Ok(done) => say(&format!("acknowledged {} {}", done.first, done.leaves[0]))?,
            Err(e) => say(&format!("refused {e}"))?,
        }
        if n % SIGNED_EVERY == 0 {
            match checkpointer.sign().await {
                Ok((_, note)) => {
                    let head = Checkpoint::open(&note, signer().verifier())?;
                    say(&format!("signed {} {}", head.tree_size, head.root_hash))?;
                }
                Err(e) => say(&format!("unsigned {e}"))?,
            }
        }
    }
    Ok(())
}

// ---- in whoever starts it ----

/// A process that writes.
pub(crate) struct Child {
    process: process::Child,
    out: BufReader<process::ChildStdout>,
    /// What it says on standard error.
    err: File,
}

/// How a child ended.
pub(crate) struct End {
    pub(crate) killed: bool,
    pub(crate) succeeded: bool,
    /// What it said about that.
    pub(crate) said: String,
}

impl Child {
    /// Starts one, under a command such as `strace` if one is given.
    pub(crate) fn start(place: &Place, load: Load, under: &[OsString]) -> Result<Self> {
        let this = env::current_exe()?;
        let child = ["child::the_child_writes", "--exact", "--nocapture", "--test-threads=1"];
        let words = under.iter().map(OsString::as_os_str);
        let words = words.chain([this.as_os_str()]).chain(child.map(OsStr::new));
        let words: Vec<&OsStr> = words.collect();
        let err = tempfile::tempfile()?;
        let mut process = Command::new(words[0])
            .args(&words[1..])
            .env(DATABASE, &place.database)
            .env(HIGH_WATER, &place.high_water)
            .env(LOAD, load.text())
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(err.try_clone()?)
            .spawn()?;
        let out = BufReader::new(process.stdout.take().context("no pipe")?);
        Ok(Self { process, out, err })
    }

    /// The next line that is the child's own; none when it has ended.
    pub(crate) fn line(&mut self) -> Result<Option<String>> {
        loop {
            let mut line = String::new();
            if self.out.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let words = ["opened ", "acknowledged ", "refused ", "signed ", "unsigned ", "done"];
            if words.iter().any(|word| line.starts_with(word)) && line.ends_with('\n') {
                return Ok(Some(line));
            }
        }
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        Ok(self.process.kill()?)
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> Result<End> {
        let status = self.process.wait()?;
        let mut said = String::new();
        self.err.rewind()?;
        self.err.read_to_string(&mut said)?;
        let killed = status.signal() == Some(9);
        Ok(End { killed, succeeded: status.success(), said })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Whoever has ended already is not there any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Hears a child to its end.
pub(crate) fn heard(mut child: Child) -> Result<(Told, End)> {
    let mut told = Told::default();
    while let Some(line) = child.line()? {
        told.take(&line)?;
    }
    Ok((told, child.end()?))
}

/// A child that nobody disturbs: it must start, and do everything.
pub(crate) fn undisturbed(place: &Place) -> Result<Told> {
    let (told, end) = heard(Child::start(place, Load::Each(SIGNED_EVERY), &[])?)?;
    if !(end.succeeded && told.done) {
        bail!("an undisturbed start fails: {}", end.said);
    }
    ensure!(told.refused == 0, "{} were refused though nothing was in the way", told.refused);
    Ok(told)
}
