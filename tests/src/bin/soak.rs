//! The soak: three agents and a coordinator for as long as is asked, certificates that live for a minute, issuers that are
//! replaced again and again in the middle of rounds. Fails when a round was lost, or when a process has grown.
//!
//! `cargo xtask soak --minutes 120` runs it.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::enrolled::School;
use std::{
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};

/// How long a certificate lives, in seconds.
const LIFETIME_S: u64 = 60;
/// Rounds of a study: the coordinator keeps something of each study, so that they are few.
const ROUNDS: u32 = 2_000;
/// Descriptors that may be open at the end beyond those at the beginning: connections that are just being replaced.
const DESCRIPTORS: usize = 12;
/// Memory that a process may have at the end beyond that at the beginning: a part of it, and so many KiB.
const MEMORY_PART: f64 = 0.25;
const MEMORY_KIB: u64 = 16 << 10;

/// What a process has.
#[derive(Clone, Debug)]
struct Has {
    name: String,
    descriptors: usize,
    memory_kib: u64,
}

fn has(name: &str, pid: u32) -> Result<Has> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory = memory.and_then(|m| m.trim().trim_end_matches(" kB").parse().ok());
    Ok(Has { name: name.into(), descriptors, memory_kib: memory.context("no VmRSS")? })
}

fn all(school: &School) -> Result<Vec<Has>> {
    let mut all = vec![has("coordinator", school.coordinator.id())?];
    for (i, agent) in school.agents.iter().enumerate() {
        all.push(has(&format!("hospital-{}", i + 1), agent.id())?);
    }
    Ok(all)
}

fn soak(minutes: u64) -> Result<()> {
    let mut school = School::open(LIFETIME_S, ROUNDS)?;
    let done = learn(&mut school, minutes);
    if done.is_err() {
        eprintln!("soak: every program's words are in {}", school.federation.keep().display());
    }
    done
}

fn learn(school: &mut School, minutes: u64) -> Result<()> {
    let started = Instant::now();
    let end = started + Duration::from_secs(minutes * 60);
    // What is measured begins when everything has happened once, and caches have had a tenth of the time to fill.
    school.learn_until(|s| s.each_renewed(2))?;
    let warm = started + Duration::from_secs(minutes * 60 / 10);
    loop {
        school.rotate()?;
        if Instant::now() >= warm {
            break;
        }
    }
    let before = all(school)?;
    let tell = |school: &mut School, now: &[Has]| -> Result<()> {
        println!("{:>4} min: {}", started.elapsed().as_secs() / 60, school.told()?);
        for p in now {
            println!(
                "          {:12} {:4} descriptors {:8} KiB",
                p.name, p.descriptors, p.memory_kib
            );
        }
        Ok(())
    };
    tell(school, &before)?;
    while Instant::now() < end {
        school.rotate()?;
        school.nothing_was_lost()?;
        let now = all(school)?;
        tell(school, &now)?;
    }
    let after = all(school)?;
    println!("at the end:");
    tell(school, &after)?;
    for (b, a) in before.iter().zip(&after) {
        let grown = a.memory_kib.saturating_sub(b.memory_kib);
        #[expect(clippy::cast_precision_loss, reason = "memory has fewer than 2^52 KiB")]
        let part = grown as f64 / b.memory_kib as f64;
        ensure!(
            a.descriptors <= b.descriptors + DESCRIPTORS,
            "descriptors of {}: {b:?} {a:?}",
            a.name
        );
        ensure!(grown <= MEMORY_KIB || part <= MEMORY_PART, "memory of {}: {b:?} {a:?}", a.name);
    }
    school.federation.verified_by(&school.all_issuers())?;
    println!("no round was lost; the log is verified");
    Ok(())
}

fn main() -> ExitCode {
    let minutes = std::env::args().nth(1).and_then(|m| m.parse().ok());
    let Some(minutes) = minutes else {
        eprintln!("soak: say for how many minutes");
        return ExitCode::FAILURE;
    };
    match soak(minutes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("soak: {e:#}");
            ExitCode::FAILURE
        }
    }
}
