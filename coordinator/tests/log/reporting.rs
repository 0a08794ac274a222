//! Reports that nobody asks for, by a made clock: what is over is reported, once, whatever came in between.

use super::{
    server::Server,
    world::{PATIENCE, World},
};
use anyhow::{Context as _, Result, ensure};
use falaj_coordinator::{
    config::{Every, ReportsConfig},
    reports::{BUNDLE, REPORT, Reports},
    store::{self, Database},
};
use falaj_core::{
    audit::{Draft, Entry, Kind},
    id::Digest,
    time::Timestamp,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const DAY_MS: u64 = 86_400_000;
const HEART: &str = "report-study-heart.json";
const SITE: &str = "report-subject-falaj.test-ae-on-ae-az-site-hospital-1.json";

fn config(folder: &Path, every: Every) -> ReportsConfig {
    ReportsConfig {
        folder: folder.to_owned(),
        place: "ae-on/ae-az".parse().expect("a place"),
        every,
        studies: vec!["heart".into()],
        subjects: vec!["spiffe://falaj.test/ae-on/ae-az/site/hospital-1".into()],
        timestamp: false,
    }
}

/// A world, and where its reports go.
struct Reporting {
    world: World,
    folder: TempDir,
    reports: Reports,
    /// When the log began.
    began: Timestamp,
}

impl Reporting {
    async fn of(world: World, every: Every) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let reports = world.reports(config(folder.path(), every))?;
        let first = world.entries(0).await?;
        let began = Timestamp::parse(&first.first().context("an entry")?.ts).context("a time")?;
        Ok(Self { world, folder, reports, began })
    }

    /// The folder of the day on which the log began, or so many after it.
    fn day(&self, after: u64) -> PathBuf {
        let day = self.began.plus_ms(after * DAY_MS).to_string();
        self.folder.path().join(format!("falaj.test-log-{}", &day[..10]))
    }

    fn later(&self, days: u64) -> Timestamp {
        self.began.plus_ms(days * DAY_MS)
    }

    /// The entries that say what was made.
    async fn said(&self) -> Result<Vec<Entry>> {
        let entries = self.world.entries(0).await?;
        Ok(entries.into_iter().filter(|e| e.kind == Kind::ReportExported).collect())
    }

    fn counted(&self, outcome: &str) -> bool {
        let text = self.world.engine.parts().metrics.text();
        let none = format!("falaj_reports_total{{outcome=\"{outcome}\"}} 0\n");
        !text.contains(&none)
    }

    /// What lies in the folder, by name.
    fn made(&self) -> Result<Vec<String>> {
        let mut names = fs::read_dir(self.folder.path())?
            .map(|file| Ok(file?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }
}

async fn is_reported_once(world: World) -> Result<()> {
    let this = Reporting::of(world, Every::Day).await?;
    ensure!(this.reports.make_due(this.began).await? == 0 && this.made()?.is_empty());
    ensure!(this.reports.make_due(this.later(1)).await? == 0);
    let folder = this.day(0);
    let name = folder.file_name().context("a name")?.to_string_lossy().into_owned();
    ensure!(this.made()? == [name], "{:?}", this.made()?);
    let said = this.said().await?;
    let [entry] = &said[..] else { anyhow::bail!("{said:?}") };
    let body = entry.body();
    let bundle = fs::read(folder.join(BUNDLE))?;
    ensure!(body.parsed("bundle_sha256") == Ok(Digest::of(&bundle)));
    ensure!(body.int("bytes") == Ok(bundle.len() as u64));
    ensure!(body.int::<u64>("tree_size").is_ok_and(|size| size <= entry.seq), "{entry:?}");
    ensure!(body.text("log") == Ok("falaj.test/log"));
    ensure!(body.text("coordinator") == Ok("spiffe://falaj.test/ae-on/ae-az/coordinator/main"));
    let named = body.list("reports").unwrap_or_default();
    for (named, file) in named.iter().zip([REPORT, HEART, SITE]) {
        let report = fs::read(folder.join(file))?;
        ensure!(named.as_text() == Some(&*Digest::of(&report).to_string()), "{file}");
    }
    for (path, mode) in [(folder.clone(), 0o700), (folder.join(BUNDLE), 0o600)] {
        let found = fs::metadata(&path)?.permissions().mode() & 0o777;
        ensure!(found == mode, "{} has mode {found:o}", path.display());
    }
    // Once, and also when whoever collects reports has taken it away.
    fs::remove_dir_all(&folder)?;
    ensure!(this.reports.make_due(this.later(1)).await? == 0);
    ensure!(this.made()?.is_empty() && this.said().await?.len() == 1);
    Ok(())
}

#[tokio::test]
async fn a_day_that_is_over_is_reported_once() -> Result<()> {
    is_reported_once(World::new().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_a_day_that_is_over_is_reported_once() -> Result<()> {
    let Some(server) = Server::shared()? else { return Ok(()) };
    let n = server.database().await?;
    let (name, writer) = (format!("falaj_{n}"), format!("writer_{n}"));
    store::init(&server.options(&format!("owner_{n}"), &name), &writer).await?;
    let database = Database::Postgres(Box::new(server.options(&writer, &name)));
    is_reported_once(World::on(&database).await?).await
}

#[tokio::test]
async fn what_was_missed_is_made_up_for_but_for_what_is_too_long_ago() -> Result<()> {
    let this = Reporting::of(World::new().await?, Every::Day).await?;
    ensure!(this.reports.make_due(this.later(3)).await? == 0);
    ensure!((0..3).all(|n| this.day(n).is_dir()) && this.made()?.len() == 3, "{:?}", this.made()?);
    ensure!(this.reports.make_due(this.later(20)).await? == 0);
    ensure!(!this.day(7).exists() && (8..20).all(|n| this.day(n).is_dir()));
    ensure!(this.made()?.len() == 15, "{:?}", this.made()?);
    Ok(())
}

#[tokio::test]
async fn one_that_fails_is_counted_and_made_later_and_nothing_of_it_is_left() -> Result<()> {
    let this = Reporting::of(World::new().await?, Every::Day).await?;
    let elsewhere = this.folder.path().join("later");
    let reports = this.world.reports(config(&elsewhere, Every::Day))?;
    ensure!(reports.make_due(this.later(1)).await? == 1);
    ensure!(this.counted("failed") && !this.counted("made") && this.said().await?.is_empty());
    fs::create_dir(&elsewhere)?;
    ensure!(reports.make_due(this.later(1)).await? == 0);
    ensure!(this.counted("made") && this.said().await?.len() == 1);
    // Somebody's own folder is not touched, and keeps no other from being made.
    let theirs = this.day(1);
    fs::create_dir(&theirs)?;
    fs::write(theirs.join("mine"), "mine")?;
    ensure!(this.reports.make_due(this.later(3)).await? == 1);
    ensure!(fs::read(theirs.join("mine"))? == b"mine" && this.day(2).join(BUNDLE).is_file());
    Ok(())
}

#[tokio::test]
async fn a_start_in_the_middle_is_made_up_for() -> Result<()> {
    let this = Reporting::of(World::new().await?, Every::Day).await?;
    let name = this.day(0).file_name().context("a name")?.to_string_lossy().into_owned();
    let partial = this.folder.path().join(format!(".{name}"));
    // Before the log said what it is.
    fs::create_dir(&partial)?;
    fs::write(partial.join(BUNDLE), "half of i")?;
    ensure!(this.reports.make_due(this.later(1)).await? == 0);
    ensure!(this.made()? == [name], "{:?}", this.made()?);
    let bundle = fs::read(this.day(0).join(BUNDLE))?;
    ensure!(bundle.len() > 1_000);
    // After the log said so, before it was put there.
    fs::rename(this.day(0), &partial)?;
    ensure!(this.reports.make_due(this.later(1)).await? == 0);
    ensure!(fs::read(this.day(0).join(BUNDLE))? == bundle && this.said().await?.len() == 1);
    // What the log does not name is not put there.
    fs::rename(this.day(0), &partial)?;
    fs::write(partial.join(BUNDLE), "something else")?;
    ensure!(this.reports.make_due(this.later(1)).await? == 1 && !this.day(0).exists());
    Ok(())
}

#[tokio::test]
async fn a_report_has_every_entry_of_its_period() -> Result<()> {
    let this = Reporting::of(World::new().await?, Every::Month).await?;
    let mut writing = Vec::new();
    for _ in 0..50 {
        let writer = this.world.writer.clone();
        writing.push(tokio::spawn(async move {
            writer.record(vec![Draft::new(Kind::AdminRead)]).await
        }));
    }
    // All of them lie in the month that is reported on, and some are still under way when it begins.
    ensure!(this.reports.make_due(this.later(31)).await? == 0);
    for entry in writing {
        tokio::time::timeout(PATIENCE, entry).await???;
    }
    let month = this.began.to_string();
    let folder = this.folder.path().join(format!("falaj.test-log-{}", &month[..7]));
    let report: serde_json::Value = serde_json::from_slice(&fs::read(folder.join(REPORT))?)?;
    let said = this.said().await?;
    let size: u64 = said[0].body().int("tree_size")?;
    ensure!(report["range"]["to"] == size && report["log"]["tree_size"] == size, "{report}");
    ensure!(report["range"]["since"] == format!("{}-01", &month[..7]), "{}", report["range"]);
    Ok(())
}

/// The folder may be anybody's disk: where it lies is declared, and nothing is written where policy lets nothing be kept.
#[tokio::test]
async fn no_report_is_written_to_a_place_abroad() -> Result<()> {
    let this = Reporting::of(World::new().await?, Every::Day).await?;
    let place = "gb/gb-lnd".parse()?;
    let abroad = ReportsConfig { place, ..config(this.folder.path(), Every::Day) };
    let reports = this.world.reports(abroad)?;
    ensure!(reports.make_due(this.later(1)).await? == 1 && this.made()?.is_empty());
    ensure!(this.reports.make_due(this.later(1)).await? == 0 && this.day(0).exists());
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_reported_on_is_said_at_the_start_and_a_coordinator_that_ends_waits_for_none()
-> Result<()> {
    let this = Reporting::of(World::new().await?, Every::Week).await?;
    let sound = config(this.folder.path(), Every::Week);
    let wrong = [
        (ReportsConfig { timestamp: true, ..sound.clone() }, "log.timestamps"),
        (ReportsConfig { studies: vec!["../..".into()], ..sound.clone() }, "log.reports.studies"),
        (ReportsConfig { subjects: vec!["sara".into()], ..sound.clone() }, "log.reports.subjects"),
        (ReportsConfig { studies: vec!["s".into(); 65], ..sound }, "there can be 64"),
    ];
    for (config, says) in wrong {
        let said = format!("{:#}", this.world.reports(config).err().context("taken")?);
        ensure!(said.contains(says), "{said}");
    }
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(this.reports.clone().run(shutdown.clone()));
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, running).await??;
    Ok(())
}
