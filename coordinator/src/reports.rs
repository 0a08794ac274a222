//! Reports that nobody has to ask for: when a day, a week or a month is over, its report and the bundle that it follows from
//! are written into the operator's folder.
//!
//! The log is the memory of what was made: an entry names what is about to be put there, then a rename puts it. Whatever
//! stops a report, a full disk or a start in the middle, is made up for later, and keeps nothing else waiting.

use crate::{
    checkpointer::Checkpointer,
    clock,
    config::{Every, ReportsConfig},
    daily::daily,
    endpoints,
    engine::Engine,
    erased::Erased,
    export,
    store::Store,
    timestamps::Timestamps,
};
use anyhow::{Context as _, Result, ensure};
use falaj_core::{
    audit::{Draft, Entry, Kind},
    id::{Digest, SpiffeId},
    report::Scope,
    succession::LogKeys,
    time::Timestamp,
};
use jiff::{ToSpan as _, civil::Date, tz::TimeZone};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};
use tokio_util::sync::CancellationToken;

/// Periods that are looked back at: an older one that was missed is asked for by hand.
const PERIODS: usize = 12;
/// Studies and parties that have a report of their own, at most: each is folded beside the others.
const OWN_MAX: usize = 64;
/// Bytes that are hashed at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Entries that are read at once.
const PAGE: u32 = 1_000;
/// The bundle, in a period's folder.
pub const BUNDLE: &str = "bundle.tar";
/// The report over the period, in its folder.
pub const REPORT: &str = "report.json";

/// A span of time that is reported on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Period {
    /// `2026-11`, `2026-W47` or `2026-11-25`.
    name: String,
    /// Its first day, and the day after its last.
    first: Date,
    after: Date,
}

impl Period {
    /// The period that has this day.
    fn of(every: Every, day: Date) -> Result<Self> {
        let (name, first, after) = match every {
            Every::Day => (day.to_string(), day, day.tomorrow()?),
            Every::Week => {
                let week = day.iso_week_date();
                let passed = i64::from(day.weekday().to_monday_zero_offset());
                let first = day.checked_sub(passed.days())?;
                let name = format!("{:04}-W{:02}", week.year(), week.week());
                (name, first, first.checked_add(7.days())?)
            }
            Every::Month => {
                let first = day.first_of_month();
                let name = format!("{:04}-{:02}", day.year(), day.month());
                (name, first, first.checked_add(1.month())?)
            }
        };
        Ok(Self { name, first, after })
    }

    /// The newest periods that are over, newest first.
    fn over(every: Every, now: Timestamp) -> Result<Vec<Self>> {
        let now = jiff::Timestamp::from_millisecond(now.as_millis())?;
        let mut next = Self::of(every, now.to_zoned(TimeZone::UTC).date())?;
        let mut over = Vec::with_capacity(PERIODS);
        for _ in 0..PERIODS {
            next = Self::of(every, next.first.yesterday()?)?;
            over.push(next.clone());
        }
        Ok(over)
    }

    /// What an auditor names when they make the same report: `--since` and `--until`.
    fn scope(&self) -> Result<Scope> {
        let (since, until) = (self.first.to_string(), self.after.yesterday()?.to_string());
        Ok(Scope { since, until, ..Scope::default() })
    }

    /// Whether anything between these two entries may be of it, by their times; without the second, whatever is to come.
    fn meets(&self, first: &str, last: Option<&str>) -> bool {
        // Times and dates are in one fixed form, so text order is time order.
        *first < *self.after.to_string() && last.is_none_or(|last| *last >= *self.first.to_string())
    }
}

/// A report that is to be made.
struct Due<'a> {
    shard: &'a (Store, LogKeys),
    period: Period,
    /// The bundle that the log names already.
    named: Option<Digest>,
}

/// Makes reports.
#[derive(Clone)]
pub struct Reports {
    config: ReportsConfig,
    own: Vec<(String, Scope)>,
    engine: Engine,
    checkpointer: Checkpointer,
    timestamps: Option<Timestamps>,
    coordinator: SpiffeId,
}

impl Reports {
    /// Reports as they are configured, by this coordinator.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(
        config: ReportsConfig,
        engine: Engine,
        checkpointer: Checkpointer,
        timestamps: Option<Timestamps>,
        coordinator: SpiffeId,
    ) -> Result<Self> {
        ensure!(
            timestamps.is_some() || !config.timestamp,
            "`log.reports.timestamp` needs an authority: set `log.timestamps`"
        );
        let count = config.studies.len() + config.subjects.len();
        ensure!(
            count <= OWN_MAX,
            "`log.reports` names {count} studies and subjects; there can be {OWN_MAX}"
        );
        let mut own = Vec::with_capacity(count);
        for study in &config.studies {
            let id = study.parse().with_context(|| format!("`log.reports.studies`: {study}"))?;
            let scope = Scope { study: Some(id), ..Scope::default() };
            own.push((format!("report-study-{}.json", safe(study)), scope));
        }
        for subject in &config.subjects {
            let id: SpiffeId =
                subject.parse().with_context(|| format!("`log.reports.subjects`: {subject}"))?;
            let name = safe(subject.trim_start_matches("spiffe://"));
            let scope = Scope { subject: Some(id), ..Scope::default() };
            own.push((format!("report-subject-{name}.json"), scope));
        }
        let timestamps = timestamps.filter(|_| config.timestamp);
        Ok(Self { config, own, engine, checkpointer, timestamps, coordinator })
    }

    /// Makes what is due, for as long as the coordinator runs.
    pub async fn run(self, shutdown: CancellationToken) {
        daily(clock::now, |now, _| self.look(now), shutdown).await;
    }

    /// Makes what is due. Gives whether everything is made.
    async fn look(&self, now: Timestamp) -> bool {
        match self.make_due(now).await {
            Ok(failed) => failed == 0,
            Err(e) => {
                tracing::error!(error = %format!("{e:#}"), "which reports are due cannot be told");
                false
            }
        }
    }

    /// Makes every report that is due at this time. Gives how many could not be made.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn make_due(&self, now: Timestamp) -> Result<usize> {
        Ok(self.make_all(self.due(now).await?).await)
    }

    /// One that fails does not keep the others from being made.
    async fn make_all(&self, due: Vec<Due<'_>>) -> usize {
        let mut failed = 0;
        for due in due {
            let name = folder_name(&due);
            let made = self.make(&due).await;
            self.engine.parts().metrics.report(if made.is_ok() { "made" } else { "failed" });
            match made {
                Ok(()) => tracing::info!(report = name, "the report of a period is made"),
                Err(e) => {
                    failed += 1;
                    tracing::error!(error = %format!("{e:#}"), report = name, "no report is made of a period; it is tried again");
                }
            }
        }
        failed
    }

    /// What is due: of each shard the periods that it has entries of, oldest first, but for those that are there.
    async fn due(&self, now: Timestamp) -> Result<Vec<Due<'_>>> {
        let named = self.named().await?;
        let mut due = Vec::new();
        let over = Period::over(self.config.every, now)?;
        for shard in self.engine.parts().shards.all() {
            let (store, keys) = shard;
            if store.pruned().await? {
                continue;
            }
            let Some(first) = ts(store, 0).await? else { continue };
            let last = if store.ended() {
                ts(store, store.size().await?.saturating_sub(1)).await?
            } else {
                None
            };
            for period in over.iter().rev().filter(|p| p.meets(&first, last.as_deref())) {
                let key = (keys.newest().name().to_owned(), period.name.clone());
                let named = named.get(&key).copied();
                let one = Due { shard, period: period.clone(), named };
                // Named, and not put there yet: that is still to be done.
                if named.is_none() || self.partial(&one).exists() {
                    due.push(one);
                }
            }
        }
        Ok(due)
    }

    /// The bundles that the log names, by shard and period.
    async fn named(&self) -> Result<BTreeMap<(String, String), Digest>> {
        let mut named = BTreeMap::new();
        for (store, _) in self.engine.parts().shards.all() {
            let mut from = 0;
            loop {
                let kind = Some(Kind::ReportExported.as_str());
                let rows = store.entries(from, u64::MAX, PAGE, kind).await?;
                let Some((last, ..)) = rows.last() else { break };
                from = last + 1;
                for (_, bytes, _) in rows {
                    let entry = Entry::parse(&bytes)?;
                    let body = entry.body();
                    let key = (body.text("log")?.to_owned(), body.text("period")?.to_owned());
                    named.insert(key, body.parsed("bundle_sha256")?);
                }
            }
        }
        Ok(named)
    }

    /// Where it is made before it is put there.
    fn partial(&self, due: &Due<'_>) -> PathBuf {
        self.config.folder.join(format!(".{}", folder_name(due)))
    }

    async fn make(&self, due: &Due<'_>) -> Result<()> {
        let ReportsConfig { folder, place, .. } = &self.config;
        // What was permitted at the start may not be any more.
        let said = endpoints::reported(&self.engine.parts().policy, &self.coordinator, place);
        ensure!(
            said.allow,
            "`log.reports.place`: nothing may be written to {place}: {}",
            said.reason
        );
        ensure!(
            folder.is_dir(),
            "`log.reports.folder`: {} is not there: make it, or mount its disk",
            folder.display()
        );
        let (partial, to) = (self.partial(due), folder.join(folder_name(due)));
        ensure!(
            !to.exists(),
            "{} is there, and not because the log says so: move it away",
            to.display()
        );
        if let Some(named) = due.named {
            let (found, _) = hashed(&partial.join(BUNDLE)).await?;
            ensure!(
                found == named,
                "{} is not what the log names: move it away",
                partial.display()
            );
        } else {
            // Whatever a start in the middle has left.
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            DirBuilder::new().mode(0o700).create(&partial)?;
            if let Err(e) = self.write(due, &partial).await {
                // What cannot be removed now is removed before the next try.
                let _ = fs::remove_dir_all(&partial);
                return Err(e);
            }
        }
        fs::rename(&partial, &to).with_context(|| format!("making {}", to.display()))?;
        File::open(folder)?.sync_all()?;
        Ok(())
    }

    /// Writes everything, and says in the log what it is.
    async fn write(&self, due: &Due<'_>, to: &Path) -> Result<()> {
        let (store, keys) = due.shard;
        let parts = self.engine.parts();
        let (tree_size, note) = if store.ended() {
            store.newest_checkpoint().await?.context("this shard has no checkpoint")?
        } else {
            // Commits are made one after the other: behind this one there is nothing that was begun before, and so nothing
            // more of a period that is over.
            self.checkpointer.sign().await?;
            self.checkpointer.current(store).await?
        };
        // Whoever is erased meanwhile was not when this was begun.
        let persons = parts.persons.now();
        let of = (store, tree_size);
        let erased = Erased::after(of, &persons, &parts.shards, &self.checkpointer).await?;
        let span = due.period.scope()?;
        let own = self.own.iter().map(|(_, scope)| Scope {
            since: span.since.clone(),
            until: span.until.clone(),
            ..scope.clone()
        });
        let scopes: Vec<Scope> = [span.clone()].into_iter().chain(own).collect();
        let bundle = to.join(BUNDLE);
        private(&bundle)?;
        let from = (store, &persons, &erased);
        let timestamps = self.timestamps.as_ref();
        let reports =
            export::write(from, keys, &note, tree_size, timestamps, &scopes, &bundle).await?;
        let names = [REPORT].into_iter().chain(self.own.iter().map(|(name, _)| &**name));
        let mut digests = Vec::with_capacity(reports.len());
        for (name, report) in names.zip(&reports) {
            put(&to.join(name), report)?;
            if let Some(timestamps) = timestamps {
                let stamp = timestamps.report(report, tree_size).await?;
                put(&to.join(format!("{name}.tsr")), &stamp)?;
            }
            digests.push(Digest::of(report));
        }
        File::open(to)?.sync_all()?;
        let (bundle, bytes) = hashed(&bundle).await?;
        let entry = Draft::new(Kind::ReportExported)
            .text("coordinator", &self.coordinator.to_string())
            .text("log", keys.newest().name())
            .text("period", &due.period.name)
            .count("tree_size", tree_size)
            .digest("bundle_sha256", &bundle)
            .count("bytes", bytes)
            .digests("reports", &digests);
        parts.writer.record(vec![entry]).await?;
        Ok(())
    }
}

/// `health.example-audit-2026-2026-11`.
fn folder_name(due: &Due<'_>) -> String {
    format!("{}-{}", safe(due.shard.1.newest().name()), due.period.name)
}

/// A text as part of a file's name.
fn safe(text: &str) -> String {
    let kept = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    text.chars().map(|c| if kept(c) { c } else { '-' }).collect()
}

/// When an entry was committed, if it is there.
async fn ts(store: &Store, index: u64) -> Result<Option<String>> {
    let rows = store.entries(index, index + 1, 1, None).await?;
    rows.first().map(|(_, bytes, _)| Ok(Entry::parse(bytes)?.ts)).transpose()
}

/// A new file that nobody else reads.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = private(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A file's digest, and how many bytes it has.
pub(crate) async fn hashed(path: &Path) -> Result<(Digest, u64)> {
    let path = path.to_owned();
    let hash = move || -> Result<(Digest, u64)> {
        let mut file = File::open(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut hasher = Sha256::new();
        let (mut bytes, mut chunk) = (0, vec![0; CHUNK_BYTES]);
        loop {
            let read = file.read(&mut chunk)?;
            if read == 0 {
                return Ok((Digest(hasher.finalize().into()), bytes));
            }
            hasher.update(&chunk[..read]);
            bytes += read as u64;
        }
    };
    tokio::task::spawn_blocking(hash).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(every: Every, now: &str) -> Vec<Period> {
        let now: jiff::Timestamp = now.parse().expect("a time");
        Period::over(every, Timestamp::from_millis(now.as_millisecond())).expect("periods")
    }

    fn names(every: Every, now: &str) -> Vec<String> {
        over(every, now).into_iter().take(3).map(|p| p.name).collect()
    }

    #[test]
    fn a_period_is_over_once_the_next_has_begun() {
        assert_eq!(
            names(Every::Month, "2026-01-31T23:59:59.999Z"),
            ["2025-12", "2025-11", "2025-10"]
        );
        assert_eq!(names(Every::Month, "2026-02-01T00:00:00Z"), ["2026-01", "2025-12", "2025-11"]);
        assert_eq!(
            names(Every::Week, "2027-01-03T23:59:59Z"),
            ["2026-W52", "2026-W51", "2026-W50"]
        );
        assert_eq!(
            names(Every::Week, "2027-01-04T00:00:00Z"),
            ["2026-W53", "2026-W52", "2026-W51"]
        );
        assert_eq!(
            names(Every::Day, "2028-03-01T12:00:00Z"),
            ["2028-02-29", "2028-02-28", "2028-02-27"]
        );
        assert_eq!(over(Every::Day, "2028-03-01T12:00:00Z").len(), PERIODS);
    }

    #[test]
    fn a_period_is_named_as_an_auditor_names_it() {
        let scope = |every, now| over(every, now)[0].scope().expect("a scope");
        let month = scope(Every::Month, "2026-12-01T00:00:00Z");
        assert_eq!((&*month.since, &*month.until), ("2026-11-01", "2026-11-30"));
        let week = scope(Every::Week, "2027-01-04T00:00:00Z");
        assert_eq!((&*week.since, &*week.until), ("2026-12-28", "2027-01-03"));
        let day = scope(Every::Day, "2026-11-02T00:00:00Z");
        assert_eq!((&*day.since, &*day.until), ("2026-11-01", "2026-11-01"));
    }

    #[test]
    fn a_shard_has_the_periods_in_which_it_was_written() {
        let november = &over(Every::Month, "2026-12-01T00:00:00Z")[0];
        let (before, within, after) =
            ("2026-10-31T23:59:59.999Z", "2026-11-30T23:59:59.999Z", "2026-12-01T00:00:00.000Z");
        assert!(november.meets(before, None) && november.meets(within, None));
        assert!(!november.meets(after, None));
        assert!(november.meets(before, Some(within)) && november.meets(before, Some(after)));
        assert!(!november.meets(before, Some(before)));
    }

    #[test]
    fn a_name_stays_in_its_folder() {
        assert_eq!(safe("health.example/audit/2026"), "health.example-audit-2026");
        assert_eq!(safe("../..\\/\0é"), "..-..----");
    }
}
