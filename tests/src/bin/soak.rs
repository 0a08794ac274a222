//! The soak: three agents and a coordinator for as long as is asked, certificates that live for a minute, issuers that are
//! replaced again and again in the middle of rounds. Fails when a round was lost, or when a process has grown.
//!
//! What grows is told by a line through all samples, and not by two of them: the median of the slopes between each two
//! (Theil and Sen), so that what comes and goes, even for a quarter of the time, moves it little. Three limits, each with its
//! reason:
//! - the coordinator's live objects may grow by less than [`KEPT_PER_ROUND`] bytes for each round: nothing that is kept of a
//!   round is smaller than the digest of its model;
//! - each process' anonymous memory may grow by less than [`ANONYMOUS_PART`] of itself: that is the live objects and what lies
//!   between them, which no single object answers for;
//! - its descriptors by less than one.
//!
//! `cargo xtask soak --minutes 120` runs it.

use anyhow::{Context as _, Result, bail, ensure};
use falaj_tests::{
    enrolled::School,
    federation::{scraped, wait_for},
};
use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a certificate lives, in seconds.
const LIFETIME_S: u64 = 60;
/// Rounds of a study: the coordinator keeps something of each study, so that they are few.
const ROUNDS: u32 = 2_000;
/// Between two samples.
const EVERY: Duration = Duration::from_secs(5);
/// Fewer samples say nothing about a slope.
const SAMPLES: usize = 30;
/// Bytes: a SHA-256 digest.
const KEPT_PER_ROUND: f64 = 32.0;
const ANONYMOUS_PART: f64 = 0.05;

/// What a process has at one moment, by quantity.
#[derive(Clone, Debug)]
struct Sample {
    second: f64,
    descriptors: f64,
    /// Bytes.
    anonymous: f64,
    /// Bytes in live objects, where the process says so.
    live: Option<f64>,
}

/// A process, and all its samples.
#[derive(Clone, Debug)]
struct Series {
    name: String,
    pid: u32,
    metrics: Option<SocketAddr>,
    samples: Vec<Sample>,
}

impl Series {
    fn sample(&self, started: Instant) -> Result<Sample> {
        let pid = self.pid;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let anonymous = anonymous.and_then(|m| m.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        let live = self.metrics.map(|address| {
            let text = scraped(address)?;
            let live =
                text.lines().find_map(|l| l.strip_prefix("falaj_memory_bytes{of=\"live\"} "));
            live.context("no live bytes")?.trim().parse().context("live bytes")
        });
        Ok(Sample {
            second: started.elapsed().as_secs_f64(),
            #[expect(clippy::cast_precision_loss, reason = "descriptors are few")]
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64,
            anonymous: anonymous.context("no RssAnon")? * 1024.0,
            live: live.transpose()?,
        })
    }

    fn of(&self, quantity: impl Fn(&Sample) -> Option<f64>) -> Option<Line> {
        let points = self.samples.iter().filter_map(|s| Some((s.second, quantity(s)?)));
        Line::through(&points.collect::<Vec<_>>())
    }
}

/// What a quantity is, and by how much it grows from the first sample to the last.
#[derive(Clone, Copy, Debug)]
struct Line {
    median: f64,
    growth: f64,
}

impl Line {
    /// By the median of the slopes between each two points (Sen 1968).
    fn through(points: &[(f64, f64)]) -> Option<Self> {
        let (first, last) = (points.first()?, points.last()?);
        let pairs =
            points.iter().enumerate().flat_map(|(i, a)| points[..i].iter().map(move |b| (a, b)));
        let slope = median(pairs.map(|(a, b)| (a.1 - b.1) / (a.0 - b.0)).collect())?;
        let median = median(points.iter().map(|p| p.1).collect())?;
        Some(Self { median, growth: slope * (last.0 - first.0) })
    }
}

fn median(mut of: Vec<f64>) -> Option<f64> {
    let middle = of.len() / 2;
    (middle < of.len()).then(|| *of.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// Samples all processes until it is asked for them.
struct Sampler {
    all: Arc<Mutex<Vec<Series>>>,
    end: Sender<()>,
    thread: JoinHandle<Result<()>>,
}

impl Sampler {
    fn start(school: &School) -> Result<Self> {
        let series =
            |name: String, pid, metrics| Series { name, pid, metrics, samples: Vec::new() };
        let metrics = school.federation.ready("metrics")?;
        let mut all = vec![series("coordinator".into(), school.coordinator.id(), Some(metrics))];
        for (i, agent) in (1..).zip(&school.agents) {
            all.push(series(format!("hospital-{i}"), agent.id(), None));
        }
        let all = Arc::new(Mutex::new(all));
        let (end, ended) = mpsc::channel();
        let of = Arc::clone(&all);
        let thread = thread::spawn(move || {
            let started = Instant::now();
            while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                for series in of.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
                    let sample = series.sample(started).with_context(|| series.name.clone())?;
                    series.samples.push(sample);
                }
            }
            Ok(())
        });
        Ok(Self { all, end, thread })
    }

    fn now(&self) -> Vec<Series> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn end(self) -> Result<Vec<Series>> {
        drop(self.end);
        match self.thread.join() {
            Ok(done) => done.context("a sample")?,
            Err(_) => bail!("the sampling has panicked"),
        }
        Ok(std::mem::take(&mut *self.all.lock().unwrap_or_else(PoisonError::into_inner)))
    }
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
    let minute = || started.elapsed().as_secs() / 60;
    println!("{:>4} min: {}; sampling begins", minute(), school.told()?);
    let rounds = school.rounds()?;
    let sampler = Sampler::start(school)?;
    while Instant::now() < end {
        school.rotate()?;
        school.nothing_was_lost()?;
        println!("{:>4} min: {}", minute(), school.told()?);
        for series in sampler.now() {
            if let Some(s) = series.samples.last() {
                println!("          {}", shown(&series.name, s));
            }
        }
    }
    wait_for("enough samples", || {
        Ok(sampler.now().iter().all(|s| s.samples.len() >= SAMPLES).then_some(()))
    })?;
    let all = sampler.end()?;
    let rounds = school.rounds()? - rounds;
    let grown = grown(&all, rounds)?;
    let file = school.federation.dir().join("samples.csv");
    fs::write(&file, table(&all)?)?;
    println!("every sample is in {}", file.display());
    school.federation.verified_by(&school.all_issuers())?;
    println!("no round was lost; the log is verified");
    ensure!(grown.is_empty(), "grown: {}", grown.join("; "));
    Ok(())
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

fn shown(name: &str, s: &Sample) -> String {
    let live = s.live.map(|live| format!(", {:.2} MiB live", mib(live))).unwrap_or_default();
    format!(
        "{name:12} {:3} descriptors, {:.2} MiB anonymous{live}",
        s.descriptors,
        mib(s.anonymous)
    )
}

/// Prints the line of each quantity; what is over its limit.
fn grown(all: &[Series], rounds: u64) -> Result<Vec<String>> {
    #[expect(clippy::cast_precision_loss, reason = "rounds are fewer than 2^52")]
    let kept = KEPT_PER_ROUND * rounds as f64;
    println!("over {rounds} rounds, by the median slope:");
    let mut over = Vec::new();
    for series in all {
        let descriptors = series.of(|s| Some(s.descriptors)).context("no samples")?;
        let anonymous = series.of(|s| Some(s.anonymous)).context("no samples")?;
        let mut lines = vec![
            (
                descriptors.growth < 1.0,
                format!(
                    "descriptors {:.0} {:+.2} (less than 1)",
                    descriptors.median, descriptors.growth
                ),
            ),
            (
                anonymous.growth < ANONYMOUS_PART * anonymous.median,
                format!(
                    "anonymous {:.2} MiB {:+.2} (less than {:.2})",
                    mib(anonymous.median),
                    mib(anonymous.growth),
                    mib(ANONYMOUS_PART * anonymous.median)
                ),
            ),
        ];
        if let Some(live) = series.of(|s| s.live) {
            lines.push((
                live.growth < kept,
                format!(
                    "live {:.3} MiB {:+.3} (less than {:.3})",
                    mib(live.median),
                    mib(live.growth),
                    mib(kept)
                ),
            ));
        }
        for (held, line) in lines {
            println!("  {:12} {} {line}", series.name, if held { "flat " } else { "GROWN" });
            if !held {
                over.push(format!("{}: {line}", series.name));
            }
        }
    }
    Ok(over)
}

fn table(all: &[Series]) -> Result<String> {
    let mut out = String::from("process,second,descriptors,anonymous_bytes,live_bytes\n");
    for series in all {
        for s in &series.samples {
            let live = s.live.map(|live| live.to_string()).unwrap_or_default();
            writeln!(
                out,
                "{},{:.1},{},{},{live}",
                series.name, s.second, s.descriptors, s.anonymous
            )?;
        }
    }
    Ok(out)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_beneath_what_comes_and_goes() {
        // Grows by 2 in each second; a fifth of the points are far above it.
        let points: Vec<(f64, f64)> = (0..100)
            .map(|i| (f64::from(i), f64::from(i) * 2.0 + if i % 5 == 0 { 1e6 } else { 0.0 }))
            .collect();
        let line = Line::through(&points).expect("points");
        assert!((line.growth - 198.0).abs() < 1e-6, "{line:?}");
        assert!(Line::through(&points[..1]).is_none() && Line::through(&[]).is_none());
    }
}
