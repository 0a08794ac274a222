//! Who dies while a candidate is evaluated: the round goes on, each site is counted once, and has paid once for what it said.

use crate::evaluation::evaluated;
use anyhow::{Context as _, Result, ensure};
use falaj_tests::{
    federation::{Federation, Process, SiteSpec, run, wait_for, wisconsin},
    rogue::{Rogue, Tasked},
};
use serde_json::Value;
use std::collections::BTreeSet;
use tokio::runtime::Runtime;

const GATES: &str = "  - { metric: roc_auc, at_least: 0.01 }\n";
/// A site that trains, and counts only when a test is done with what is before that.
const SLOW: &str = "slow";
const HONEST: &str = "hospital-1";

/// A round whose candidate waits for one of two sites to count.
struct Scene {
    federation: Federation,
    coordinator: Process,
    honest: SiteSpec,
    agent: Process,
    runtime: Runtime,
    slow: Rogue,
    tasked: Tasked,
}

/// Connects as the slow site, which is given its task: of training, or of an evaluation.
async fn slow(federation: &Federation) -> Result<(Rogue, Tasked)> {
    let credentials = federation.credentials("site", SLOW)?;
    let address = federation.agents_connect_to()?;
    let mut slow = Rogue::connect(address, credentials, &federation.trust()?).await?;
    let tasked = slow.tasked().await?;
    Ok((slow, tasked))
}

impl Scene {
    fn new(study: &str) -> Result<Self> {
        let mut federation = Federation::new()?;
        let coordinator = federation.start_coordinator()?;
        let honest = SiteSpec::new(HONEST, "ae-on/ae-az");
        federation.prepare_site(&honest, &wisconsin(2)?[0])?;
        let agent = federation.start_agent(&honest)?;
        federation.issue("site", SLOW, "ae-on/ae-sh")?;
        let yaml = evaluated(study, 1, 1, GATES)
            .replace("min_sites: 2", &format!("sites: [{HONEST}, {SLOW}], min_sites: 2"));
        federation.submit(&yaml)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (slow, tasked) = runtime.block_on(async {
            let (mut slow, mut tasked) = slow(&federation).await?;
            let update = slow.forge(&slow.honest(&tasked)?, Rogue::zeros(&tasked)?);
            slow.submit(update).await?;
            tasked.evaluates().await?;
            anyhow::Ok((slow, tasked))
        })?;
        Ok(Self { federation, coordinator, honest, agent, runtime, slow, tasked })
    }

    /// Kills the coordinator, starts it again, and is asked again for what the slow site has not counted yet.
    fn restarted(&mut self) -> Result<()> {
        self.coordinator.kill()?;
        self.coordinator = self.federation.start_coordinator()?;
        let before = self.tasked.task.clone();
        (self.slow, self.tasked) = self.runtime.block_on(slow(&self.federation))?;
        let task = &self.tasked.task;
        ensure!(task.evaluates == Some(0) && task.base == before.base, "{task:?}, {before:?}");
        Ok(())
    }

    /// Waits until the honest site's counts are durable.
    fn counted(&self) -> Result<()> {
        wait_for("the hospital's counts", || {
            // The coordinator may have been away when it was asked.
            let counted = self.federation.entries("evaluation.accepted").unwrap_or_default();
            Ok((!counted.is_empty()).then_some(()))
        })
    }

    /// The slow site counts, too, and everything is as if nobody had died.
    fn ends(mut self, study: &str) -> Result<()> {
        let answer = self.slow.answers(&self.tasked, &self.slow.counts(&self.tasked)?)?;
        self.runtime.block_on(self.slow.answer(answer))?;
        self.federation.finishes(study)?;
        ensure!(self.federation.entries("update.accepted")?.len() == 2);
        ensure!(counted_by(&self.federation, 1)?.len() == 2);
        ensure!(charges(&self.federation, HONEST, "round 1")? == 1, "trained more than once");
        ensure!(charges(&self.federation, HONEST, "evaluation of round 1")? == 1, "paid again");
        self.federation.verified()?;
        Ok(())
    }
}

/// The sites whose counts went into the verdict over a round's one model, each of which was taken once.
fn counted_by(federation: &Federation, round: u32) -> Result<BTreeSet<String>> {
    let of = |entry: &Value| entry["entry"]["round"] == round;
    let mut sites = BTreeSet::new();
    for entry in federation.entries("evaluation.accepted")?.iter().filter(|e| of(e)) {
        let site = entry["entry"]["site"].as_str().context("a site")?;
        ensure!(sites.insert(site.to_owned()), "{site} is counted twice: {entry}");
    }
    let published = federation.entries("model.published")?;
    let published: Vec<_> = published.iter().filter(|e| of(e)).collect();
    ensure!(published.len() == 1, "{published:?}");
    let by: BTreeSet<String> =
        serde_json::from_value(published[0]["entry"]["evaluated_by"].clone())?;
    ensure!(by == sites, "{by:?} were judged by, and {sites:?} counted");
    Ok(sites)
}

/// How often a site's ledger is charged for a purpose: what was reserved for it and not given back.
fn charges(federation: &Federation, site: &str, purpose: &str) -> Result<usize> {
    let config = federation.dir().join("sites").join(site).join("agent.toml");
    let words = ["budget", "export", "--config", config.to_str().context("UTF-8")?];
    let (mut reserved, mut given_back) = (BTreeSet::new(), BTreeSet::new());
    // Its last line is the signed head.
    for line in run("falaj-agent", &words)?.lines() {
        let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
        let id = entry["id"].as_u64();
        match entry["kind"].as_str() {
            Some("reserved") if entry["purpose"] == purpose => reserved.extend(id),
            Some("given_back") => given_back.extend(id),
            _ => {}
        }
    }
    Ok(reserved.difference(&given_back).count())
}

#[test]
fn a_coordinator_killed_while_a_candidate_is_evaluated_goes_on_and_nobody_pays_twice() -> Result<()>
{
    let mut scene = Scene::new("weighed")?;
    // Wherever the hospital is with it, and once more when it is done.
    scene.restarted()?;
    scene.counted()?;
    scene.restarted()?;
    scene.restarted()?;
    ensure!(scene.federation.entries("evaluation.accepted")?.len() == 1);
    scene.ends("weighed")
}

#[test]
fn an_agent_killed_after_it_has_counted_is_asked_for_nothing_more() -> Result<()> {
    let mut scene = Scene::new("told")?;
    scene.counted()?;
    scene.agent.kill()?;
    scene.agent = scene.federation.start_agent(&scene.honest)?;
    // Both at once, and what it said is there all the same.
    scene.agent.kill()?;
    scene.restarted()?;
    scene.agent = scene.federation.start_agent(&scene.honest)?;
    scene.ends("told")
}

/// Rounds in which the agent dies at whatever it is just doing.
const ROUNDS: u32 = 4;

#[test]
fn an_agent_killed_while_it_counts_counts_again_and_the_study_ends() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let mut agents = Vec::new();
    let sites = ["hospital-1", "hospital-2"].map(|name| SiteSpec::new(name, "ae-on/ae-az"));
    for (site, records) in sites.iter().zip(wisconsin(2)?) {
        federation.prepare_site(site, &records)?;
        agents.push(federation.start_agent(site)?);
    }
    federation.submit(&evaluated("mortal", ROUNDS, 1, GATES))?;
    for round in 1..=ROUNDS {
        wait_for("a candidate to be evaluated", || {
            let asked = federation.entries("task.sent")?;
            let of = |e: &Value| {
                e["entry"]["round"] == round
                    && e["entry"]["asks_for"] == "evaluation"
                    && e["entry"]["site"].to_string().contains(&sites[0].name)
            };
            Ok(asked.iter().any(of).then_some(()))
        })?;
        agents[0].kill()?;
        agents[0] = federation.start_agent(&sites[0])?;
    }
    federation.finishes("mortal")?;
    for round in 1..=ROUNDS {
        ensure!(counted_by(&federation, round)?.len() == 2, "a site is missing in round {round}");
        let purpose = format!("evaluation of round {round}");
        ensure!(charges(&federation, &sites[1].name, &purpose)? == 1, "{purpose}");
        // What was paid for when it died, and had not been kept by then, may have been seen: it stays paid.
        let paid = charges(&federation, &sites[0].name, &purpose)?;
        ensure!((1..=2).contains(&paid), "{purpose} was paid {paid} times");
    }
    federation.verified()?;
    Ok(())
}
