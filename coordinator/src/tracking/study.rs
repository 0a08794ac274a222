//! One study, told to MLflow: a run with its parameters, and from then on what the log says became of it.

use super::{
    TrackingError,
    mlflow::{METRICS_MAX, Mlflow, Run, WORDS_MAX},
    words::{self, Figures, Metric},
};
use crate::{
    engine::{Engine, Handle, evaluation},
    store::{Store, StoreError, objects::Wanted},
};
use falaj_core::{
    audit::{Entry, Kind, objects::Object},
    gate::Figure,
    id::{RoundId, SiteId},
    registry::version::Alias,
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

/// What MLflow is told of.
pub(super) const TOLD: [Kind; 15] = [
    Kind::StudySubmitted,
    Kind::ModelPublished,
    Kind::ModelRejected,
    Kind::CandidateHeld,
    Kind::RoundFailed,
    Kind::ModelRolledBack,
    Kind::StudyFinished,
    Kind::StudyFailed,
    Kind::StudyStopped,
    Kind::VersionMade,
    Kind::VersionPromoted,
    Kind::VersionRejected,
    Kind::VersionRevoked,
    Kind::VersionRolledBack,
    Kind::VersionAliased,
];
/// Entries that are read at once.
const PAGE: u32 = 500;
/// Figures of one round. Of more, those of single sites are left out.
const FIGURES_MAX: usize = 10_000;
/// Versions of a study that its run has tags of: the newest.
const VERSIONS_MAX: usize = 50;
/// The shard of the log up to which a run has been told, and the index in it.
const SHARD: &str = "falaj.log_shard";
const INDEX: &str = "falaj.log_index";

/// How far MLflow knows a study.
pub(super) struct Standing {
    run: Run,
    /// The shard and the index of the first entry that it has not been told of.
    next: (u32, u64),
}

impl Standing {
    /// Whether somebody has thrown the run away, who may take it out again.
    pub(super) const fn is_deleted(&self) -> bool {
        self.run.is_deleted
    }
}

/// What is about to be told.
#[derive(Default)]
struct Batch {
    metrics: Vec<Metric>,
    params: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    /// How the run ends, and when.
    ends: Option<(&'static str, i64)>,
    /// The last entry in it.
    last: Option<(u32, u64)>,
}

impl Batch {
    fn tag(&mut self, name: &str, value: &str) {
        self.tags.insert(name.to_owned(), words::value(value));
    }
}

/// Tells a server of studies.
pub(super) struct Teller<'a> {
    pub(super) engine: &'a Engine,
    pub(super) mlflow: &'a Mlflow,
    /// The trust domain: others may tell the same server of studies of the same name.
    pub(super) federation: &'a str,
}

impl Teller<'_> {
    /// Tells what MLflow does not know of a study, up to the log's entry `below`. Without a standing it is asked what it knows.
    pub(super) async fn tell(
        &self,
        study: &Handle,
        standing: Option<Standing>,
        below: u64,
    ) -> Result<Standing, TrackingError> {
        let mut standing = match standing {
            Some(standing) => standing,
            None => self.found(study).await?,
        };
        if standing.is_deleted() {
            return Ok(standing);
        }
        let mut batch = Batch { params: Self::params(study), ..Batch::default() };
        batch.params.retain(|name, _| !standing.run.has_param(name));
        let store = &self.engine.parts().store;
        for shard in store.shards().await? {
            let number = shard.shard().number;
            let (next, from) = standing.next;
            if number < next {
                continue;
            }
            let from = if number == next { from } else { 0 };
            // In this one as far as it was looked at before; of those before it nothing comes any more.
            let below = if number == store.shard().number { below } else { u64::MAX };
            match self.shard(study, &shard, (from, below), &mut standing, &mut batch).await {
                Err(TrackingError::Store(StoreError::Pruned)) => {}
                told => told?,
            }
        }
        self.send(&mut standing, &mut batch).await?;
        Ok(standing)
    }

    /// The run of a study, which is made if there is none, and how far it goes.
    async fn found(&self, study: &Handle) -> Result<Standing, TrackingError> {
        let meta = &study.meta;
        // Studies that learn from the same records stand in one experiment, so that they can be compared.
        let experiment = format!("falaj/{}", words::value(&meta.study.data.dataset));
        let experiment = self.mlflow.experiment(&experiment).await?;
        let (name, digest) = (meta.study.id.as_str(), meta.digest.to_string());
        let known_by =
            [("falaj.federation", self.federation), ("falaj.study_sha256", digest.as_str())];
        let run = if let Some(run) = self.mlflow.run_with(&experiment, &known_by).await? {
            run
        } else {
            let source = concat!("falaj ", env!("CARGO_PKG_VERSION"));
            let more = [("falaj.study", name), ("mlflow.source.name", source)];
            let tags: Vec<_> = known_by.into_iter().chain(more).collect();
            let start = meta.submitted.as_millis();
            self.mlflow.make_run(&experiment, name, start, &tags).await?
        };
        let shard = run.number(SHARD).and_then(|shard| u32::try_from(shard).ok());
        let next = match shard.zip(run.number(INDEX)) {
            Some((shard, index)) => (shard, index.saturating_add(1)),
            None => (0, 0),
        };
        Ok(Standing { run, next })
    }

    fn params(study: &Handle) -> BTreeMap<String, String> {
        let meta = &study.meta;
        let mut params = words::params(&String::from_utf8_lossy(&meta.yaml)).unwrap_or_else(|e| {
            tracing::warn!(study = %meta.study.id, error = e, "MLflow gets no parameters of a study");
            BTreeMap::new()
        });
        params.insert("study_sha256".into(), meta.digest.to_string());
        params
    }

    /// What the entries of one shard say.
    async fn shard(
        &self,
        study: &Handle,
        store: &Store,
        (mut from, below): (u64, u64),
        standing: &mut Standing,
        batch: &mut Batch,
    ) -> Result<(), TrackingError> {
        let number = store.shard().number;
        let terms = BTreeSet::from([Object::Study(study.meta.study.id.clone()).to_string()]);
        loop {
            let wanted = Wanted { terms: terms.clone(), kind: None, from, below };
            let page = store.find(&wanted, PAGE).await?;
            for (index, bytes, _) in page.entries {
                let entry = read(&bytes)?;
                if !TOLD.contains(&entry.kind) {
                    continue;
                }
                self.entry(study, store, (index, &entry), batch).await?;
                batch.last = Some((number, index));
                if batch.metrics.len() >= METRICS_MAX || batch.ends.is_some() {
                    self.send(standing, batch).await?;
                }
            }
            match page.next {
                Some(next) if next < below => from = next,
                _ => break,
            }
        }
        if below != u64::MAX {
            standing.next = standing.next.max((number, below));
        }
        Ok(())
    }

    /// What one entry says.
    async fn entry(
        &self,
        study: &Handle,
        store: &Store,
        (index, entry): (u64, &Entry),
        batch: &mut Batch,
    ) -> Result<(), TrackingError> {
        let at = moment(entry)?;
        match entry.kind {
            Kind::StudySubmitted => {
                if let Ok(policies) = entry.body().text("policy_set_sha256") {
                    batch.params.insert("policy_set_sha256".into(), words::value(policies));
                }
            }
            Kind::ModelPublished | Kind::ModelRejected | Kind::RoundFailed => {
                return self.round(study, store, (index, entry), batch).await;
            }
            // Its figures are told with what people decide.
            Kind::CandidateHeld => {
                let round = entry.round().map_err(|_| unreadable(entry))?;
                batch.tag("falaj.round", &round.number.to_string());
                batch.tag("falaj.verdict", "held");
            }
            Kind::ModelRolledBack => {
                batch.tag("falaj.verdict", "rolled_back");
                if let Ok(model) = entry.body().text("model_sha256") {
                    batch.tag("falaj.model_sha256", model);
                }
            }
            Kind::StudyFinished => batch.ends = Some(("FINISHED", at)),
            Kind::StudyFailed => batch.ends = Some(("FAILED", at)),
            Kind::StudyStopped => batch.ends = Some(("KILLED", at)),
            _ => self.versions(study, batch).await?,
        }
        Ok(())
    }

    /// What came of one try of a round.
    async fn round(
        &self,
        study: &Handle,
        store: &Store,
        (index, entry): (u64, &Entry),
        batch: &mut Batch,
    ) -> Result<(), TrackingError> {
        let verdict = match entry.kind {
            Kind::ModelPublished => "published",
            Kind::ModelRejected => "rejected",
            _ => "failed",
        };
        let round = entry.round().map_err(|_| unreadable(entry))?;
        let attempt: u32 = entry.body().int("attempt").unwrap_or_default();
        let counted = counted(store, (&round, attempt), index).await?;
        let mut figures = Figures::at(round.number, moment(entry)?);
        figures.add("published", if verdict == "published" { 1.0 } else { 0.0 });
        let updates =
            entry.digests("updates").map_or(counted.updates, |updates| updates.len() as u64);
        let examples = entry.body().int("total_weight").unwrap_or(counted.examples);
        figures.add("sites", count(updates));
        figures.add("examples", count(examples));
        let sites = self.evaluated(study, (&round, attempt), &mut figures).await?;
        for (site, epsilon) in &counted.epsilon {
            figures.add(&format!("epsilon at {}", site.name()), *epsilon);
        }
        for (name, [value, low, high]) in sites {
            figures.add_between(&name, value, low, high);
        }
        if figures.metrics.len() > FIGURES_MAX {
            batch.tag("falaj.left_out", &format!("figures beyond {FIGURES_MAX} in one round"));
            figures.metrics.truncate(FIGURES_MAX);
        }
        batch.metrics.append(&mut figures.metrics);
        batch.tag("falaj.round", &round.number.to_string());
        batch.tag("falaj.verdict", verdict);
        if verdict == "published"
            && let Ok(model) = entry.body().text("model_sha256")
        {
            batch.tag("falaj.model_sha256", model);
        }
        let names: Vec<&str> = counted.epsilon.keys().map(SiteId::name).collect();
        batch.tag("falaj.sites", &names.join(", "));
        Ok(())
    }

    /// Adds what sites have counted about the candidate; gives the figures of single sites, which are many.
    async fn evaluated(
        &self,
        study: &Handle,
        which: (&RoundId, u32),
        figures: &mut Figures,
    ) -> Result<Vec<(String, [f64; 3])>, TrackingError> {
        let (meta, mut of_sites) = (&study.meta, Vec::new());
        let Some(e) = &meta.study.evaluation else { return Ok(of_sites) };
        let kept = evaluation::kept(&self.engine.parts().store, meta, e, which).await;
        let kept = kept.map_err(|e| TrackingError::Evaluation(e.to_string()))?;
        if kept.candidate.is_none() {
            return Ok(of_sites);
        }
        for figure in Figure::every(e, meta.study.target()) {
            for found in figure.of(&kept.evaluated) {
                let Ok(estimate) = found.found else { continue };
                let (value, low, high) = (estimate.value, estimate.low, estimate.high);
                if matches!(figure, Figure::EachSite(_)) {
                    of_sites.push((found.figure, [value, low, high]));
                } else {
                    figures.add_between(&found.figure, value, low, high);
                }
            }
        }
        Ok(of_sites)
    }

    /// Where the versions of a study stand now.
    async fn versions(&self, study: &Handle, batch: &mut Batch) -> Result<(), TrackingError> {
        let row = self.engine.parts().store.registry(&study.meta.study.id).await?;
        let Some(registry) = row.map(|row| row.registry) else { return Ok(()) };
        for version in registry.versions.values().rev().take(VERSIONS_MAX) {
            batch.tag(&format!("falaj.version.{}", version.number), version.stage.as_str());
        }
        for alias in Alias::ALL {
            let number = registry.aliases.get(alias).map(ToString::to_string);
            batch.tag(&format!("falaj.{}", alias.as_str()), &number.unwrap_or_default());
        }
        Ok(())
    }

    /// Sends what is there. How far the run goes is said last: whatever is sent in part is sent again, and MLflow has it once.
    async fn send(&self, standing: &mut Standing, batch: &mut Batch) -> Result<(), TrackingError> {
        let batch = std::mem::take(batch);
        let run = &standing.run;
        let metrics: Vec<Metric> = batch.metrics.into_iter().filter(|m| run.lacks(m)).collect();
        let params = batch.params.iter().filter(|(name, _)| !run.has_param(name));
        let params: Vec<_> = params.map(|(name, value)| (&**name, &**value)).collect();
        for some in metrics.chunks(METRICS_MAX) {
            self.mlflow.log(&run.id, some, [], []).await?;
        }
        for some in params.chunks(WORDS_MAX) {
            self.mlflow.log(&run.id, &[], some.iter().copied(), []).await?;
        }
        if let Some((status, at)) = batch.ends {
            self.mlflow.end(&run.id, status, at).await?;
        }
        if let Some((shard, index)) = batch.last {
            self.reached(&run.id, (shard, index), &batch.tags).await?;
            standing.next = (shard, index + 1);
        }
        standing.run.has_now(batch.params.into_keys());
        Ok(())
    }

    /// Says how far a run goes.
    async fn reached(
        &self,
        run: &str,
        (shard, index): (u32, u64),
        tags: &BTreeMap<String, String>,
    ) -> Result<(), TrackingError> {
        let reached = [(SHARD, shard.to_string()), (INDEX, index.to_string())];
        let tags = tags.iter().map(|(name, value)| (&**name, &**value));
        let tags = tags.chain(reached.iter().map(|(name, value)| (*name, &**value)));
        self.mlflow.log(run, &[], [], tags).await
    }
}

/// What the log says of one try of a round.
#[derive(Default)]
struct Counted {
    updates: u64,
    examples: u64,
    /// What each site has spent by then, as it says.
    epsilon: BTreeMap<SiteId, f64>,
}

/// Reads what was accepted in a try of a round, before the entry that ends it.
async fn counted(
    store: &Store,
    (round, attempt): (&RoundId, u32),
    below: u64,
) -> Result<Counted, TrackingError> {
    let mut counted = Counted::default();
    let terms = BTreeSet::from([Object::Round(round.clone()).to_string()]);
    for kind in [Kind::UpdateAccepted, Kind::EvaluationAccepted] {
        let mut from = 0;
        loop {
            let wanted = Wanted { terms: terms.clone(), kind: Some(kind), from, below };
            let page = store.find(&wanted, PAGE).await?;
            for (_, bytes, _) in &page.entries {
                let entry = read(bytes)?;
                let said = entry.body();
                if said.int::<u32>("attempt").unwrap_or_default() != attempt {
                    continue;
                }
                if kind == Kind::UpdateAccepted {
                    counted.updates += 1;
                    counted.examples += said.int::<u64>("weight").unwrap_or_default();
                }
                let epsilon = said.text("epsilon").ok().and_then(|e| e.parse().ok());
                // What an evaluation says includes what was spent before.
                if let Some((site, epsilon)) = said.find::<SiteId>("site").zip(epsilon) {
                    counted.epsilon.insert(site, epsilon);
                }
            }
            match page.next {
                Some(next) if next < below => from = next,
                _ => break,
            }
        }
    }
    Ok(counted)
}

fn read(bytes: &[u8]) -> Result<Entry, TrackingError> {
    let what =
        |e| TrackingError::Store(StoreError::Corrupt(format!("an entry that is none ({e})")));
    Entry::parse(bytes).map_err(what)
}

fn unreadable(entry: &Entry) -> TrackingError {
    TrackingError::Store(StoreError::Corrupt(format!("an odd entry {}", entry.seq)))
}

/// When an entry was committed, in milliseconds since 1970.
fn moment(entry: &Entry) -> Result<i64, TrackingError> {
    let at = Timestamp::parse(&entry.ts).ok_or_else(|| unreadable(entry))?;
    Ok(at.as_millis())
}

#[expect(clippy::cast_precision_loss, reason = "sites and examples are below 2^53")]
const fn count(n: u64) -> f64 {
    n as f64
}
