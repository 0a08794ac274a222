//! Reports that a coordinator makes by itself: what lies in the folder is what an auditor makes of the bundle beside it.

use anyhow::{Context as _, Result, bail, ensure};
use falaj_coordinator::{app::App, clock, config::Config};
use falaj_tests::federation::{Federation, run, study_yaml, text};
use std::fs;
use tokio_util::sync::CancellationToken;

/// Longer than any month.
const MONTH_MS: u64 = 32 * 86_400_000;

/// What a coordinator with this configuration does when the next month has begun.
pub(super) fn make_due(federation: &Federation) -> Result<()> {
    let config = Config::load(&federation.dir().join("coordinator/coordinator.toml"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let app = App::open(config, &shutdown).await?;
        let reports = app.reports().context("no reports are configured")?;
        ensure!(reports.make_due(clock::now().plus_ms(MONTH_MS)).await? == 0);
        Ok(())
    })
}

/// CMP-01: the same log gives the same report, and the verifier makes it without a network.
#[test]
fn the_report_of_a_month_is_the_one_that_an_auditor_makes_and_each_shard_has_its_own() -> Result<()>
{
    let mut federation = Federation::new()?;
    let trust = federation.ca().join("trust.toml").display().to_string();
    let folder = federation.dir().join("reports");
    fs::create_dir(&folder)?;
    let reporting = |place: &str| {
        format!(
            "[log.reports]\nfolder = \"{}\"\nplace = \"{place}\"\nevery = \"month\"\nstudies = [\"early\"]\n",
            folder.display()
        )
    };
    // A disk abroad stops the start.
    federation.log_extra = reporting("ie/ie-dub");
    let Err(refused) = federation.start_coordinator() else { bail!("it started") };
    let told = format!("{refused:#}");
    ensure!(told.contains("`log.reports`") && told.contains("RES-014"), "{told}");
    federation.log_extra = reporting("ae-on/ae-du");
    let mut coordinator = federation.start_coordinator()?;
    let allowed = federation.entries("endpoint.allowed")?;
    let allowed = &allowed.first().context("an entry")?["entry"];
    ensure!(allowed["endpoint"] == "reports", "{allowed}");
    ensure!(allowed["asked"]["place"] == "ae-on/ae-du", "{allowed}");
    let status = federation.falaj_json(&["status"])?;
    let key = status["log_verifier_key"].as_str().context("a key")?.to_owned();
    federation.submit(&study_yaml("early", 1, 2))?;
    let stopped = federation.falaj(&["study", "stop", "early"])?;
    ensure!(stopped.status.success(), "{}", text(&stopped));
    coordinator.terminate()?;
    federation.log_origin = "falaj.test/audit/2027".into();
    let mut coordinator = federation.start_coordinator()?;
    let begun = federation.entries("log.opened")?;
    let month = begun[0]["entry"]["ts"].as_str().and_then(|ts| ts.get(..7)).context("a month")?;
    coordinator.terminate()?;
    ensure!(fs::read_dir(&folder)?.next().is_none(), "a month is reported on before it is over");

    make_due(&federation)?;

    for (shard, entries) in [("2026", "study.stopped"), ("2027", "log.opened")] {
        let made = folder.join(format!("falaj.test-audit-{shard}-{month}"));
        let bundle = made.join("bundle.tar").display().to_string();
        let again = federation.dir().join("again.json");
        let path = again.display().to_string();
        for (name, more) in
            [("report.json", &[][..]), ("report-study-early.json", &["--study", "early"][..])]
        {
            let there = fs::read(made.join(name))?;
            let report: serde_json::Value = serde_json::from_slice(&there)?;
            let span = |at: &str| report["range"][at].as_str().unwrap_or_default().to_owned();
            let (since, until) = (span("since"), span("until"));
            ensure!(since == format!("{month}-01") && until.starts_with(month), "{report}");
            let words =
                [&bundle, "--trust", &trust, "--log-key", &key, "--report", &path, "--since"];
            let said =
                run("falaj-verify", &[&words[..], &[&since, "--until", &until], more].concat())?;
            ensure!(said.contains("verified: "), "{said}");
            ensure!(fs::read(&again)? == there, "{shard}: {name} is another report");
        }
        let report = fs::read_to_string(made.join("report.json"))?;
        ensure!(report.contains(&format!("\"{entries}\"")), "{shard}: {report}");
    }
    Ok(())
}
