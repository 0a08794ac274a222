//! A database server whose own calls to its disk fail, or that ends in the middle of one: `strace` sees to that. What the
//! coordinator was told to be durable is there afterwards.

use crate::{
    Random,
    child::{Child, Load, Place, undisturbed},
    injected::may_trace,
    server::Server,
    setting, tell,
    told::Told,
};
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

/// What a server makes bytes and names durable by. It speaks to its clients by other calls.
const CALLS: [&str; 7] =
    ["write", "pwrite64", "pwritev", "fsync", "fdatasync", "rename", "renameat2"];
/// What becomes of a call.
const FAULTS: [&str; 3] = ["error=EIO", "error=ENOSPC", "signal=SIGKILL"];
/// Faults that are injected, unless `FALAJ_FAULTS` says another number, or `all`.
const INJECTED: usize = 6;
/// Commits of each caller.
const COMMITS: u32 = 8;
/// A server that is asked so often, with a pause in between, and does not answer has hung.
const TRIES: u32 = 600;
const BETWEEN: Duration = Duration::from_millis(100);
/// Every so many faults are told of.
const TOLD_EVERY: usize = 20;

/// The server's processes: the first one, and what it has started.
fn processes(data: &Path) -> Result<Vec<String>> {
    let file = fs::read_to_string(data.join("postmaster.pid")).context("it does not run")?;
    let first = file.lines().next().context("no number")?.trim().to_owned();
    let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children"))?;
    let children = children.split_whitespace().map(str::to_owned);
    Ok([first].into_iter().chain(children).collect())
}

/// `strace` over every process of a server, those that it starts meanwhile included.
struct Trace {
    strace: process::Child,
    file: PathBuf,
}

impl Trace {
    /// Begins; it is there when this returns.
    fn over(data: &Path, file: &Path, fault: Option<&str>) -> Result<Self> {
        let calls: Vec<String> = CALLS.iter().map(|call| format!("?{call}")).collect();
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-e", "signal=none", "-o"]).arg(file);
        command.args(["-e", &format!("trace={}", calls.join(","))]);
        if let Some(fault) = fault {
            command.args(["-e", &format!("inject={fault}")]);
        }
        let processes = processes(data)?;
        for process in &processes {
            command.args(["-p", process]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut strace = command.spawn()?;
        let mut said = BufReader::new(strace.stderr.take().context("no pipe")?);
        let mut attached = 0;
        while attached < processes.len() {
            let mut line = String::new();
            ensure!(said.read_line(&mut line)? > 0, "strace ended");
            // A process that has ended meanwhile makes no calls.
            attached += usize::from(line.contains(" attached") || line.contains("No such process"));
        }
        // What it says later is of no use, and must not fill the pipe.
        thread::spawn(move || said.lines().map_while(Result::ok).for_each(drop));
        Ok(Self { strace, file: file.to_owned() })
    }

    /// Ends it, and gives what it saw.
    fn end(mut self) -> Result<String> {
        Command::new("kill").args(["-TERM", &self.strace.id().to_string()]).status()?;
        self.strace.wait()?;
        Ok(fs::read_to_string(&self.file)?)
    }
}

/// How often each call was made, by the process that made it most often: `strace` counts by processes.
fn counts(trace: &str) -> BTreeMap<&'static str, u64> {
    let mut by_process: BTreeMap<(&str, &'static str), u64> = BTreeMap::new();
    for line in trace.lines() {
        let Some((process, called)) = line.split_once(' ') else { continue };
        let called = called.trim_start().split_once('(').map(|(name, _)| name);
        if let Some(call) = CALLS.into_iter().find(|call| Some(*call) == called) {
            *by_process.entry((process, call)).or_default() += 1;
        }
    }
    let mut counts = BTreeMap::new();
    for ((_, call), n) in by_process {
        let most: &mut u64 = counts.entry(call).or_default();
        *most = n.max(*most);
    }
    counts
}

/// The server answers again: by itself, or started anew where its first process has ended.
async fn recovered(server: &Server, data: &Path) -> Result<()> {
    for _ in 0..TRIES {
        if server.superuser("postgres").await.is_ok() {
            return Ok(());
        }
        let first = processes(data).ok().and_then(|all| all.into_iter().next());
        let status = first.and_then(|id| File::open(format!("/proc/{id}/status")).ok());
        let ended = status.is_none_or(|file| {
            BufReader::new(file).lines().map_while(Result::ok).any(|l| l.starts_with("State:\tZ"))
        });
        if ended {
            server.kill()?;
            server.launch()?;
        }
        thread::sleep(BETWEEN);
    }
    bail!("the server does not come back: {}", fs::read_to_string(server.dir().join("said"))?)
}

/// What was told under a trace, and what the trace saw.
async fn loaded(
    server: &Arc<Server>,
    place: &Place,
    fault: Option<&str>,
) -> Result<(Told, String)> {
    let dir = tempfile::tempdir()?;
    let data = server.dir().join("data");
    let trace = Trace::over(&data, &dir.path().join("trace"), fault)?;
    let mut child = Child::start(place, Load::Each(COMMITS), &[])?;
    let mut told = Told::default();
    let mut asked = None;
    while let Some(line) = child.line()? {
        told.take(&line)?;
        if told.entries.len() > 8 && asked.is_none() {
            // Everything else that is to be durable is written beside the load; whether it succeeds is the server's matter.
            let server = server.clone();
            asked =
                Some(tokio::spawn(async move { server.run("postgres", &["CHECKPOINT"]).await }));
        }
    }
    let end = child.end()?;
    if let Some(asked) = asked {
        // It fails where the server does.
        let _ = asked.await?;
    }
    let trace = trace.end()?;
    let explained = told.done || end.said.contains("Error: ");
    ensure!(explained && !end.killed, "{fault:?}: {}", end.said);
    Ok((told, trace))
}

/// Which faults are injected, in the words of `strace`.
fn planned(random: &mut Random, reach: &BTreeMap<&'static str, u64>) -> Vec<String> {
    let all = std::env::var("FALAJ_FAULTS").is_ok_and(|asked| asked == "all");
    let mut plan = Vec::new();
    if all {
        for (call, most) in reach {
            for fault in FAULTS {
                plan.extend((1..=*most).map(|n| format!("{call}:{fault}:when={n}")));
            }
        }
        return plan;
    }
    let calls: Vec<(&str, u64)> = reach.iter().map(|(call, most)| (*call, *most)).collect();
    for n in 0..setting("FALAJ_FAULTS").unwrap_or(INJECTED) {
        let (call, most) = calls[n % calls.len()];
        let fault = FAULTS[(n / calls.len() + n) % FAULTS.len()];
        // Other runs make somewhat fewer calls.
        plan.push(format!("{call}:{fault}:when={}", 1 + random.below(most.div_ceil(2))));
    }
    plan
}

/// AUD-03: whatever call of a PostgreSQL server to its disk fails, or is the last of the process that makes it, what was
/// acknowledged is there, checkpoints agree, and the next start goes on.
#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_nothing_acknowledged_is_lost_whatever_call_of_the_server_to_its_disk_fails()
-> Result<()> {
    if !may_trace()? {
        return Ok(());
    }
    let Some(server) = Server::start(&[])? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let n = server.database().await?;
    let (database, writer) = (format!("falaj_{n}"), format!("writer_{n}"));
    let owner = server.options(&format!("owner_{n}"), &database);
    falaj_coordinator::store::init(&owner, &writer).await?;
    let place = Place::postgres(dir.path(), &server.url(&writer, &database));
    let mut random = Random::seeded()?;
    let mut told = Told::default();
    told.extend(undisturbed(&place)?, &place).await?;
    let (heard, trace) = loaded(&server, &place, None).await?;
    ensure!(heard.done && heard.refused == 0, "a traced server refuses");
    told.extend(heard, &place).await?;
    let reach = counts(&trace);
    ensure!(reach.contains_key("fdatasync") || reach.contains_key("fsync"), "{reach:?}");
    let plan = planned(&mut random, &reach);
    let (mut hit, mut refused) = (0, 0);
    for (n, fault) in plan.iter().enumerate() {
        let (heard, trace) = loaded(&server, &place, Some(fault)).await?;
        hit += usize::from(trace.contains("(INJECTED)") || trace.contains("killed by SIGKILL"));
        refused += heard.refused;
        recovered(&server, &server.dir().join("data")).await.with_context(|| fault.clone())?;
        // The same once more without a fault, in the state that it left.
        let next = undisturbed(&place).with_context(|| format!("after {fault}"))?;
        for heard in [heard, next] {
            told.extend(heard, &place).await.with_context(|| format!("after {fault}"))?;
        }
        told.hold(&place).await.with_context(|| format!("after {fault}"))?;
        if (n + 1) % TOLD_EVERY == 0 {
            tell(&format!("{} of {} faults", n + 1, plan.len()))?;
        }
    }
    ensure!(hit > 0 || plan.is_empty(), "none of {} faults came to pass", plan.len());
    tell(&format!(
        "{hit} of {} faults inside the server, {refused} commits refused, {} acknowledged, {} checkpoints",
        plan.len(),
        told.entries.len(),
        told.signed.len()
    ))?;
    Ok(())
}
