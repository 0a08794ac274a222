//! Calls to the operating system that fail, or never return, one after the other: `strace` sees to that.

use crate::{
    Random,
    child::{Child, End, Load, Place, heard, undisturbed},
    tell,
    told::Told,
};
use anyhow::{Result, ensure};
use std::{collections::BTreeMap, env, ffi::OsString, fs, process::Command};

/// What makes bytes and names durable. Which of them are used, a first run shows.
const CALLS: [&str; 7] =
    ["write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2"];
/// What becomes of a call: it fails in one way or another, or the process ends when it begins.
const FAULTS: [&str; 3] = ["error=EIO", "error=ENOSPC", "signal=SIGKILL"];
/// Faults that are injected, unless `FALAJ_FAULTS` says another number, or `all`.
const INJECTED: usize = 24;
/// Commits of each caller.
const COMMITS: u32 = 8;
/// Every so many faults are told of.
const TOLD_EVERY: usize = 50;

/// Whether `strace` is there and may trace; where it is not, that is said aloud.
pub(crate) fn may_trace() -> Result<bool> {
    let traced = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    let why = match traced {
        Ok(done) if done.status.success() => return Ok(true),
        Ok(done) => String::from_utf8_lossy(&done.stderr).trim().to_owned(),
        Err(_) => "there is no strace; `apt-get install -y strace` mends that".into(),
    };
    tell(&format!("SKIPPED: {why}"))?;
    Ok(false)
}

/// A child that was traced.
struct Traced {
    told: Told,
    end: End,
    /// What `strace` saw.
    trace: String,
}

/// Runs a child whose calls on the log's files are traced, and in which one goes wrong if a fault is given.
fn traced(place: &Place, load: Load, fault: Option<&str>) -> Result<Traced> {
    let dir = tempfile::tempdir()?;
    let trace = dir.path().join("trace");
    let calls: Vec<String> = CALLS.iter().map(|call| format!("?{call}")).collect();
    let mut under: Vec<OsString> =
        ["strace", "-f", "-y", "-e", "signal=none", "-o"].map(Into::into).into();
    under.push(trace.clone().into());
    under.extend(["-e".into(), format!("trace={}", calls.join(",")).into()]);
    for file in place.files() {
        under.extend(["-P".into(), file.into()]);
    }
    if let Some(fault) = fault {
        under.extend(["-e".into(), format!("inject={fault}").into()]);
    }
    let (told, end) = heard(Child::start(place, load, &under)?)?;
    Ok(Traced { told, end, trace: fs::read_to_string(trace)? })
}

impl Traced {
    /// How often each call was made, by the thread that made it most often: `strace` counts by threads.
    fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut by_thread: BTreeMap<(&str, &'static str), u64> = BTreeMap::new();
        for line in self.trace.lines() {
            let Some((thread, called)) = line.split_once(' ') else { continue };
            let called = called.trim_start().split_once('(').map(|(name, _)| name);
            if let Some(call) = CALLS.into_iter().find(|call| Some(*call) == called) {
                *by_thread.entry((thread, call)).or_default() += 1;
            }
        }
        let mut counts = BTreeMap::new();
        for ((_, call), n) in by_thread {
            let most: &mut u64 = counts.entry(call).or_default();
            *most = n.max(*most);
        }
        counts
    }

    /// Calls that were made to fail, of files whose path ends so.
    fn failed(&self, file: &str) -> u64 {
        let lines = self.trace.lines();
        lines.filter(|l| l.contains("(INJECTED)") && l.contains(file)).count() as u64
    }

    /// Whether anything went wrong on purpose.
    fn hit(&self) -> bool {
        self.end.killed || self.failed("") > 0
    }
}

/// How often a call is made while a log is opened, and until the writer ends.
struct Reach {
    opening: u64,
    whole: u64,
}

/// The calls that are made in a place, by name.
fn reaches(place: &Place, fresh: bool) -> Result<BTreeMap<&'static str, Reach>> {
    let dir = tempfile::tempdir()?;
    let other = Place::sqlite(&dir.path().canonicalize()?);
    let opened = traced(if fresh { &other } else { place }, Load::Each(0), None)?;
    let written = traced(place, Load::Each(COMMITS), None)?;
    for run in [&opened, &written] {
        ensure!(run.told.done, "a traced start fails: {}", run.end.said);
    }
    let opening = opened.counts();
    let whole = written.counts().into_iter();
    let reach = |(call, whole)| {
        (call, Reach { opening: opening.get(call).copied().unwrap_or(0).min(whole), whole })
    };
    Ok(whole.map(reach).collect())
}

/// A fault, in the words of `strace`, and whether it is for a log that is new.
struct Planned {
    fault: String,
    fresh: bool,
}

/// Which faults are injected: spread over calls, kinds, opening and load, new logs and one that grows.
fn planned(
    random: &mut Random,
    fresh: &BTreeMap<&'static str, Reach>,
    grown: &BTreeMap<&'static str, Reach>,
) -> Result<Vec<Planned>> {
    let asked = env::var("FALAJ_FAULTS").ok();
    let mut plan = Vec::new();
    if asked.as_deref() == Some("all") {
        for (is_fresh, reaches) in [(true, fresh), (false, grown)] {
            for (call, reach) in reaches {
                for fault in FAULTS {
                    let each = (1..=reach.whole).map(|n| format!("{call}:{fault}:when={n}"));
                    plan.extend(each.map(|fault| Planned { fault, fresh: is_fresh }));
                }
            }
        }
        return Ok(plan);
    }
    let number = asked.map(|n| n.parse()).transpose()?.unwrap_or(INJECTED);
    let calls: Vec<&str> = fresh.keys().copied().collect();
    for n in 0..number {
        let (call, turn) = (calls[n % calls.len()], n / calls.len());
        let (fault, turn) = (FAULTS[turn % FAULTS.len()], turn / FAULTS.len());
        let is_fresh = random.below(2) == 0;
        let Some(reach) = (if is_fresh { fresh } else { grown }).get(call) else { continue };
        let when = if turn % 2 == 0 && reach.opening > 0 {
            1 + random.below(reach.opening)
        } else {
            1 + reach.opening + random.below((reach.whole - reach.opening).max(1))
        };
        // Once, or from then on; in each thread, as all of this is counted.
        let on = if random.below(2) == 0 { "" } else { "+" };
        plan.push(Planned { fault: format!("{call}:{fault}:when={when}{on}"), fresh: is_fresh });
    }
    Ok(plan)
}

/// AUD-03: whatever call on its files fails, once or from then on, with whatever error, or is the last of the process: what
/// was acknowledged is there, checkpoints agree, and the next start goes on.
#[tokio::test]
async fn nothing_acknowledged_is_lost_whatever_call_to_the_disk_fails() -> Result<()> {
    if !may_trace()? {
        return Ok(());
    }
    let mut random = Random::seeded()?;
    let dir = tempfile::tempdir()?;
    let grown = Place::sqlite(&dir.path().canonicalize()?);
    let mut told = Told::default();
    let fresh_reach = reaches(&grown, true)?;
    let grown_reach = reaches(&grown, false)?;
    let plan = planned(&mut random, &fresh_reach, &grown_reach)?;
    let (mut hit, mut opening, mut held) = (BTreeMap::<&str, u64>::new(), 0, 0);
    for (n, Planned { fault, fresh }) in plan.iter().enumerate() {
        let own = tempfile::tempdir()?;
        let own = Place::sqlite(&own.path().canonicalize()?);
        let mut own_told = Told::default();
        let (place, told) = if *fresh { (&own, &mut own_told) } else { (&grown, &mut told) };
        let run = traced(place, Load::Each(COMMITS), Some(fault))?;
        if run.hit() {
            let (call, _) = fault.split_once(':').unwrap_or_default();
            *hit.entry(call).or_default() += 1;
            opening += u64::from(run.told.opened.is_none());
        }
        // Who could not even begin says why; who could go on, refuses what it cannot keep and comes to its end.
        let explained = run.end.killed || run.told.done || run.end.said.contains("Error: ");
        ensure!(explained, "{fault}: {}", run.end.said);
        // The same once more without a fault, in the state that it left.
        let next = undisturbed(place).map_err(|e| e.context(format!("after {fault}")))?;
        let heard = run.told;
        for heard in [heard, next] {
            held += heard.entries.len();
            told.extend(heard, place).await.map_err(|e| e.context(format!("after {fault}")))?;
        }
        told.hold(place).await.map_err(|e| e.context(format!("after {fault}")))?;
        if (n + 1) % TOLD_EVERY == 0 {
            tell(&format!("{} of {} faults", n + 1, plan.len()))?;
        }
    }
    let all: u64 = hit.values().sum();
    tell(&format!(
        "{} faults planned, {all} hit ({hit:?}), {opening} before the log was open; {held} entries acknowledged",
        plan.len()
    ))?;
    for call in fresh_reach.keys() {
        ensure!(plan.len() < INJECTED || hit.contains_key(call), "no fault hit {call}");
    }
    Ok(())
}

/// AUD-03: what was not synced is not acknowledged, though the next sync succeeds and though the bytes may be on the disk.
#[tokio::test]
async fn an_entry_whose_sync_fails_is_not_acknowledged_and_the_next_one_is() -> Result<()> {
    /// Less than is signed for: each commit is one entry's.
    const ALONE: u32 = 7;
    if !may_trace()? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let place = Place::sqlite(&dir.path().canonicalize()?);
    let mut told = Told::default();
    told.extend(undisturbed(&place)?, &place).await?;
    let usual = traced(&place, Load::Alone(ALONE), None)?;
    let sync = ["fsync", "fdatasync"];
    let sync = if usual.counts().contains_key(sync[1]) { sync[1] } else { sync[0] };
    let mut refused = 0;
    for error in ["EIO", "ENOSPC"] {
        for when in 1..=u64::from(ALONE) {
            let fault = format!("{sync}:error={error}:when={when}");
            let run = traced(&place, Load::Alone(ALONE), Some(&fault))?;
            ensure!(run.told.done, "{fault}: {}", run.end.said);
            // The last sync may be that of the file's closing, when nobody waits any more.
            let failed = run.failed("-wal>");
            ensure!(
                failed == run.told.refused || failed == run.told.refused + 1,
                "{fault}: {failed} syncs failed, and {} commits were refused",
                run.told.refused
            );
            ensure!(run.told.full == 0, "{fault}: a disk that fails is not full");
            let answered = run.told.entries.len() as u64 + run.told.refused;
            ensure!(answered == u64::from(ALONE), "{fault}: {answered} answers");
            // The first sync is that of the file's head: a thread whose first one fails never gets further.
            ensure!(when < 4 || !run.told.entries.is_empty(), "{fault}: it does not recover");
            refused += run.told.refused;
            told.extend(run.told, &place).await?;
        }
    }
    ensure!(refused > 0, "nothing was refused");
    told.extend(undisturbed(&place)?, &place).await?;
    let size = told.hold(&place).await?;
    tell(&format!("{refused} refused for want of a sync, {size} entries"))?;
    Ok(())
}
