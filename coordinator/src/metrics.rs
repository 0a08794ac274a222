//! What Prometheus reads: names, help and labels in one place. No identities but those of sites, studies and outside witnesses, which
//! are as many as somebody has configured or submitted; every other label has a fixed list of words. `docs/METRICS.md` is the table.

use crate::{memory::Memory, policy::Action, store::writer::CommitError};
use falaj_core::{
    id::StudyId,
    registry::version::{self, Stage},
    time::Timestamp,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

/// Outcomes of which there is a count from the start: what rises from nothing at its first scrape has not risen, for Prometheus.
const ROUNDS: [&str; 3] = ["promoted", "rejected", "failed"];
const CONNECTIONS: [&str; 3] = ["admitted", "denied", "revoked"];
const TIMESTAMPS: [&str; 2] = ["granted", "failed"];
const OUTCOMES: [&str; 4] = ["complete", "broken_off", "failed", "unrecorded"];
const REPORTS: [&str; 2] = ["made", "failed"];
const POLICY_SETS: [&str; 2] = ["loaded", "refused"];
const QUORUMS: [&str; 2] = ["reached", "too_few"];
const CHECKPOINTS: [&str; 2] = ["signed", "failed"];
const VERDICTS: [&str; 5] = ["published", "rejected", "rolled_back", "stopped", "held"];
/// What becomes of commits, beside why there may be none.
const DURABLE: &str = "durable";

/// One label: what became of something, or its kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    outcome: String,
}

/// One label: the site's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Site {
    study: String,
    site: String,
}

/// An outside witness, and what became of a request to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Asked {
    witness: String,
    outcome: String,
}

/// One label: an outside witness.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outside {
    witness: String,
}

/// One label: what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Alert {
    alert: String,
}

/// What a gate looks at, and whether it passed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Judged {
    metric: String,
    outcome: String,
}

/// What is approved, and what became of an approval.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Approving {
    action: String,
    outcome: String,
}

/// One label: what is approved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Approved {
    action: String,
}

/// One label: where a version stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Standing {
    stage: String,
}

/// One label: what is over some day.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ending {
    of: String,
}

/// One label: memory in which sense.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Having {
    of: String,
}

/// What is registered, and by which names.
#[derive(Default)]
struct Registered {
    registry: Registry,
    names: Vec<&'static str>,
}

impl Registered {
    fn add(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.registry.register(name, help, metric);
        self.names.push(name);
    }
}

/// Every metric of the coordinator.
pub struct Metrics {
    registered: Registered,
    rounds: Family<Outcome, Counter>,
    updates: Family<Outcome, Counter>,
    connections: Family<Outcome, Counter>,
    timestamps: Family<Outcome, Counter>,
    outcomes: Family<Outcome, Counter>,
    reports: Family<Outcome, Counter>,
    policy_sets: Family<Outcome, Counter>,
    epsilon: Family<Site, Gauge<f64, AtomicU64>>,
    quorums: Family<Outcome, Counter>,
    witness_wait_seconds: Histogram,
    asked: Family<Asked, Counter>,
    alerts: Family<Alert, Counter>,
    cosigned: Family<Outside, Gauge>,
    /// Bytes of update payloads received.
    pub bytes_in: Counter,
    /// Bytes of models sent to sites.
    pub bytes_out: Counter,
    /// Sites whose agents are connected.
    pub sites_connected: Gauge,
    /// Commits that wait for the writer.
    pub writer_queue: Gauge,
    /// Entries in the log.
    pub log_size: Gauge,
    commits: Family<Outcome, Counter>,
    commit_seconds: Histogram,
    commit_group: Histogram,
    checkpoints: Family<Outcome, Counter>,
    checkpoint_entries: Gauge,
    gates: Family<Judged, Counter>,
    verdicts: Family<Outcome, Counter>,
    candidates_held: Gauge,
    /// The studies that they are of.
    held: Mutex<BTreeSet<StudyId>>,
    evaluations: Family<Outcome, Counter>,
    versions: Family<Standing, Gauge>,
    /// How many versions of each study stand where, as they are in the gauge.
    versions_by_study: Mutex<BTreeMap<StudyId, BTreeMap<Stage, i64>>>,
    approvals: Family<Approving, Counter>,
    approvals_waiting: Family<Approved, Gauge>,
    /// What each approval is of that nobody has used, and until when it counts.
    waiting: Mutex<Vec<(String, Timestamp)>>,
    quotes: Family<Outcome, Counter>,
    ends: Family<Ending, Gauge>,
    memory: Family<Having, Gauge>,
    tracking_behind: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut this = Self {
            registered: Registered { registry: Registry::with_prefix("falaj"), names: Vec::new() },
            rounds: Family::default(),
            updates: Family::default(),
            connections: Family::default(),
            timestamps: Family::default(),
            outcomes: Family::default(),
            reports: Family::default(),
            policy_sets: Family::default(),
            epsilon: Family::default(),
            quorums: Family::default(),
            witness_wait_seconds: Histogram::new(exponential_buckets(0.5, 2.0, 14)),
            asked: Family::default(),
            alerts: Family::default(),
            cosigned: Family::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            sites_connected: Gauge::default(),
            writer_queue: Gauge::default(),
            log_size: Gauge::default(),
            commits: Family::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            commit_group: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            checkpoints: Family::default(),
            checkpoint_entries: Gauge::default(),
            gates: Family::default(),
            verdicts: Family::default(),
            candidates_held: Gauge::default(),
            held: Mutex::default(),
            evaluations: Family::default(),
            versions: Family::default(),
            versions_by_study: Mutex::default(),
            approvals: Family::default(),
            approvals_waiting: Family::default(),
            waiting: Mutex::default(),
            quotes: Family::default(),
            ends: Family::default(),
            memory: Family::default(),
            tracking_behind: Gauge::default(),
        };
        let mut to = std::mem::take(&mut this.registered);
        this.register_rounds(&mut to);
        this.register_people(&mut to);
        this.register_log(&mut to);
        to.add(
            "memory_bytes",
            "Memory of the process: in live objects, active pages, held by the allocator, anonymous in RAM",
            this.memory.clone(),
        );
        this.registered = to;
        this.begin();
        this
    }
}

impl Metrics {
    /// What studies come to.
    fn register_rounds(&self, to: &mut Registered) {
        to.add("rounds", "Rounds by the stage that they reached", self.rounds.clone());
        to.add("updates", "Updates by outcome", self.updates.clone());
        to.add("update_bytes", "Bytes of payloads received", self.bytes_in.clone());
        to.add("model_bytes", "Bytes of models sent to sites", self.bytes_out.clone());
        to.add(
            "epsilon_spent",
            "Epsilon that a site states to have spent on a study",
            self.epsilon.clone(),
        );
        to.add(
            "evaluations",
            "What sites counted about candidates, by outcome: accepted, duplicate, or why it was refused",
            self.evaluations.clone(),
        );
        to.add(
            "gates",
            "Gates that were asked, by what they look at and outcome",
            self.gates.clone(),
        );
        to.add(
            "verdicts",
            "Verdicts on candidates: published, or what becomes of a study whose gate failed",
            self.verdicts.clone(),
        );
        to.add(
            "candidates_held",
            "Candidates that wait for people to approve or refuse them",
            self.candidates_held.clone(),
        );
        to.add("versions", "Versions of models by stage", self.versions.clone());
    }

    /// Who is here, and who may be.
    fn register_people(&self, to: &mut Registered) {
        to.add("connections", "Connections by outcome", self.connections.clone());
        to.add("sites_connected", "Connected sites", self.sites_connected.clone());
        to.add(
            "quotes",
            "What the newest quotes of declared TPMs say, by outcome: as_declared, other_start, or what is wrong with them",
            self.quotes.clone(),
        );
        to.add(
            "ends_timestamp_seconds",
            "When the first certificate or revocation list of its kind is over",
            self.ends.clone(),
        );
        to.add(
            "policy_sets",
            "Changed policies by outcome: loaded, or refused while the old ones stay in force",
            self.policy_sets.clone(),
        );
        to.add(
            "approvals",
            "Approvals by outcome: given, withdrawn, used, or missing where somebody was refused for want of one",
            self.approvals.clone(),
        );
        to.add(
            "approvals_waiting",
            "Approvals in force that nobody has used",
            self.approvals_waiting.clone(),
        );
        to.add(
            "outcomes",
            "What became of models and exports that were served; those that could not be recorded are counted twice",
            self.outcomes.clone(),
        );
        to.add("alerts", "What somebody should look into, by what it is", self.alerts.clone());
    }

    /// The log, and who vouches for it.
    fn register_log(&self, to: &mut Registered) {
        to.add("log_entries", "Entries in the audit log", self.log_size.clone());
        to.add("writer_queue", "Commits that wait", self.writer_queue.clone());
        to.add("commits", "Commits by outcome: durable, or why they are not", self.commits.clone());
        to.add("commit_seconds", "Time of one durable transaction", self.commit_seconds.clone());
        to.add("commit_group", "Commits in one transaction", self.commit_group.clone());
        to.add(
            "checkpoints",
            "Checkpoints by outcome: signed, or failed",
            self.checkpoints.clone(),
        );
        to.add(
            "checkpoint_entries",
            "Entries in the newest checkpoint that is signed",
            self.checkpoint_entries.clone(),
        );
        to.add(
            "timestamps",
            "Questions to the time-stamp authority by outcome",
            self.timestamps.clone(),
        );
        to.add(
            "reports",
            "Reports of a period that were due, by outcome: made, or failed",
            self.reports.clone(),
        );
        to.add(
            "witness_quorums",
            "Rounds that wanted witnesses behind them, by outcome: reached, or too_few",
            self.quorums.clone(),
        );
        to.add(
            "witness_wait_seconds",
            "Time for which a round waited for its witnesses",
            self.witness_wait_seconds.clone(),
        );
        to.add("witness_requests", "Requests to outside witnesses by outcome", self.asked.clone());
        to.add(
            "witness_log_entries",
            "Entries in the newest checkpoint that an outside witness has cosigned",
            self.cosigned.clone(),
        );
        to.add(
            "tracking_behind_entries",
            "Entries since the first that MLflow has not been told of",
            self.tracking_behind.clone(),
        );
    }

    /// Counts nothing yet, aloud.
    fn begin(&self) {
        let counted: [(&Family<Outcome, Counter>, &[&str]); 9] = [
            (&self.rounds, &ROUNDS),
            (&self.connections, &CONNECTIONS),
            (&self.timestamps, &TIMESTAMPS),
            (&self.outcomes, &OUTCOMES),
            (&self.reports, &REPORTS),
            (&self.policy_sets, &POLICY_SETS),
            (&self.quorums, &QUORUMS),
            (&self.checkpoints, &CHECKPOINTS),
            (&self.verdicts, &VERDICTS),
        ];
        for (family, outcomes) in counted {
            for outcome in outcomes {
                family.get_or_create(&Outcome { outcome: (*outcome).into() }).inc_by(0);
            }
        }
        for outcome in [DURABLE].into_iter().chain(CommitError::OUTCOMES) {
            self.commits.get_or_create(&Outcome { outcome: outcome.into() }).inc_by(0);
        }
        for action in Action::TAKING {
            for outcome in ["given", "withdrawn", "used", "missing"] {
                self.count_approval(action.as_str(), outcome, 0);
            }
        }
        self.refresh(Timestamp::from_millis(0));
        for stage in Stage::ALL {
            self.versions.get_or_create(&Standing { stage: stage.as_str().into() }).set(0);
        }
    }

    /// A round reached a stage.
    pub fn round(&self, stage: &str) {
        self.rounds.get_or_create(&Outcome { outcome: stage.into() }).inc();
    }

    /// An update was accepted, or refused with a code.
    pub fn update(&self, outcome: &str) {
        self.updates.get_or_create(&Outcome { outcome: outcome.into() }).inc();
    }

    /// A connection was admitted, or refused for a reason.
    pub fn connection(&self, outcome: &str) {
        self.connections.get_or_create(&Outcome { outcome: outcome.into() }).inc();
    }

    /// The time-stamp authority was asked, and gave what was asked for or did not.
    pub fn timestamp(&self, outcome: &str) {
        self.timestamps.get_or_create(&Outcome { outcome: outcome.into() }).inc();
    }

    /// What became of something that was served.
    pub fn outcome(&self, outcome: &str) {
        self.outcomes.get_or_create(&Outcome { outcome: outcome.into() }).inc();
    }

    /// A report of a period was due, and was made or failed.
    pub fn report(&self, outcome: &str) {
        self.reports.get_or_create(&Outcome { outcome: outcome.into() }).inc();
    }

    /// Changed policies were put in force, or refused.
    pub fn policy_set(&self, outcome: &str) {
        self.policy_sets.get_or_create(&Outcome { outcome: outcome.into() }).inc();
    }

    /// A round that wanted witnesses behind it was judged, after it had waited for them for so long.
    pub fn witness_quorum(&self, reached: bool, waited: Duration) {
        let outcome = if reached { "reached" } else { "too_few" };
        self.quorums.get_or_create(&Outcome { outcome: outcome.into() }).inc();
        self.witness_wait_seconds.observe(waited.as_secs_f64());
    }

    /// An outside witness was asked for a cosignature.
    pub fn witness_asked(&self, witness: &str, outcome: &str) {
        let labels = Asked { witness: witness.into(), outcome: outcome.into() };
        self.asked.get_or_create(&labels).inc();
    }

    /// An outside witness stands behind so many entries.
    pub fn witness_cosigned(&self, witness: &str, tree_size: u64) {
        let labels = Outside { witness: witness.into() };
        let tree_size = i64::try_from(tree_size).unwrap_or(i64::MAX);
        self.cosigned.get_or_create(&labels).set(tree_size);
    }

    /// Something is wrong that somebody should look into.
    pub fn alert(&self, alert: &str) {
        self.alerts.get_or_create(&Alert { alert: alert.into() }).inc();
    }

    /// A site states its epsilon.
    pub fn epsilon(&self, study: &str, site: &str, epsilon: f64) {
        let labels = Site { study: study.into(), site: site.into() };
        self.epsilon.get_or_create(&labels).set(epsilon);
    }

    /// A group of commits became durable, or failed.
    #[expect(clippy::cast_precision_loss, reason = "groups are small")]
    pub fn committed(&self, group: usize, took: Duration) {
        self.commit_seconds.observe(took.as_secs_f64());
        self.commit_group.observe(group as f64);
    }

    /// What became of a commit: nothing if it is durable, or why it is not.
    pub fn commit(&self, failed: Option<&CommitError>) {
        let outcome = failed.map_or(DURABLE, CommitError::outcome).to_owned();
        self.commits.get_or_create(&Outcome { outcome }).inc();
    }

    /// The head of the log was signed, and is kept, or was not; so many entries are in it.
    pub fn checkpoint(&self, signed: Option<u64>) {
        let outcome = if signed.is_some() { "signed" } else { "failed" };
        self.checkpoints.get_or_create(&Outcome { outcome: outcome.into() }).inc();
        if let Some(tree_size) = signed {
            self.checkpointed(tree_size);
        }
    }

    /// So many entries are in the newest checkpoint.
    pub fn checkpointed(&self, tree_size: u64) {
        self.checkpoint_entries.set(i64::try_from(tree_size).unwrap_or(i64::MAX));
    }

    /// A gate was asked: what it looks at, and whether it passed.
    pub fn gate(&self, metric: &str, pass: bool) {
        let outcome = if pass { "passed" } else { "failed" };
        let labels = Judged { metric: metric.into(), outcome: outcome.into() };
        self.gates.get_or_create(&labels).inc();
    }

    /// A candidate was judged.
    pub fn verdict(&self, outcome: &str) {
        self.verdicts.get_or_create(&Outcome { outcome: outcome.into() }).inc();
    }

    /// Whether a candidate of a study waits for people.
    pub fn held(&self, study: &StudyId, waits: bool) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if waits {
            held.insert(study.clone());
        } else {
            held.remove(study);
        }
        self.candidates_held.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
    }

    /// What a site counted about a candidate was accepted, had been, or was refused with a code.
    pub fn evaluation(&self, outcome: &str) {
        self.evaluations.get_or_create(&Outcome { outcome: outcome.into() }).inc();
    }

    /// How the versions of a study stand now.
    pub fn versions(&self, registry: &version::Registry) {
        let mut now = BTreeMap::new();
        for version in registry.versions.values() {
            *now.entry(version.stage).or_insert(0) += 1;
        }
        let mut all = self.versions_by_study.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.insert(registry.study.clone(), now.clone()).unwrap_or_default();
        for stage in Stage::ALL {
            let of = |counted: &BTreeMap<Stage, i64>| counted.get(stage).copied().unwrap_or(0);
            let labels = Standing { stage: stage.as_str().into() };
            self.versions.get_or_create(&labels).inc_by(of(&now) - of(&before));
        }
    }

    /// An approval was given, withdrawn or used, or was missing where somebody acted.
    pub fn approval(&self, action: &str, outcome: &str) {
        self.count_approval(action, outcome, 1);
    }

    fn count_approval(&self, action: &str, outcome: &str, times: u64) {
        let labels = Approving { action: action.into(), outcome: outcome.into() };
        self.approvals.get_or_create(&labels).inc_by(times);
    }

    /// What each approval is of that nobody has used, and until when it counts.
    pub fn approvals_waiting(&self, waiting: Vec<(String, Timestamp)>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    /// Takes out what is over by now, and looks at the memory, before somebody reads.
    pub fn refresh(&self, now: Timestamp) {
        self.measure();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|(_, until)| *until > now);
        for action in Action::TAKING {
            let action = action.as_str();
            let count = waiting.iter().filter(|(of, _)| of == action).count();
            let labels = Approved { action: action.into() };
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.approvals_waiting.get_or_create(&labels).set(count);
        }
    }

    /// What the process has; nothing where nobody says.
    fn measure(&self) {
        let now = Memory::now().ok();
        let of = |named: fn(Memory) -> u64| now.map(named).and_then(|n| i64::try_from(n).ok());
        for (name, bytes) in [
            ("live", of(|m| m.live)),
            ("active", of(|m| m.active)),
            ("held", of(|m| m.held)),
            ("anonymous", of(|m| m.anonymous)),
        ] {
            let labels = Having { of: name.into() };
            if let Some(bytes) = bytes {
                self.memory.get_or_create(&labels).set(bytes);
            } else {
                self.memory.remove(&labels);
            }
        }
    }

    /// What the newest quote of a TPM that is declared for a site says.
    pub fn quote(&self, outcome: &str) {
        self.quotes.get_or_create(&Outcome { outcome: outcome.into() }).inc();
    }

    /// When the first of a kind is over, in seconds since the Unix epoch; there is none of it otherwise.
    pub fn ends(&self, of: &str, at: Option<i64>) {
        let labels = Ending { of: of.into() };
        match at {
            Some(at) => {
                self.ends.get_or_create(&labels).set(at);
            }
            None => {
                self.ends.remove(&labels);
            }
        }
    }

    /// MLflow has not been told of the newest so many entries.
    pub fn tracking_behind(&self, entries: u64) {
        self.tracking_behind.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// The names that are registered, without prefix and suffix.
    #[must_use]
    pub fn names(&self) -> &[&'static str] {
        &self.registered.names
    }

    /// The text that Prometheus scrapes.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut out, &self.registered.registry);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_waited_for_witnesses_are_counted_with_how_long() {
        let metrics = Metrics::default();
        metrics.witness_quorum(true, Duration::from_secs(3));
        metrics.witness_quorum(false, Duration::from_mins(1));
        let text = metrics.text();
        for line in [
            "falaj_witness_quorums_total{outcome=\"reached\"} 1\n",
            "falaj_witness_quorums_total{outcome=\"too_few\"} 1\n",
            "falaj_witness_wait_seconds_sum 63.0\n",
            "falaj_witness_wait_seconds_bucket{le=\"4.0\"} 1\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn what_alerts_watch_is_there_before_it_happens() {
        let text = Metrics::default().text();
        for line in [
            "falaj_rounds_total{outcome=\"failed\"} 0\n",
            "falaj_verdicts_total{outcome=\"rolled_back\"} 0\n",
            "falaj_commits_total{outcome=\"full\"} 0\n",
            "falaj_checkpoints_total{outcome=\"failed\"} 0\n",
            "falaj_versions{stage=\"production\"} 0\n",
            "falaj_approvals_total{action=\"version.promote\",outcome=\"missing\"} 0\n",
            "falaj_approvals_waiting{action=\"log.export\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn gates_and_verdicts_are_counted_by_what_they_are() {
        let metrics = Metrics::default();
        metrics.gate("roc_auc", true);
        metrics.gate("roc_auc", false);
        metrics.gate("roc_auc", false);
        metrics.verdict("stopped");
        let study = |name: &str| name.parse().expect("a study");
        for (name, waits) in [("a", true), ("b", true), ("a", true), ("a", false)] {
            metrics.held(&study(name), waits);
        }
        metrics.evaluation("accepted");
        metrics.commit(None);
        metrics.commit(Some(&CommitError::Full));
        metrics.checkpoint(Some(7));
        metrics.checkpoint(None);
        let text = metrics.text();
        for line in [
            "falaj_gates_total{metric=\"roc_auc\",outcome=\"passed\"} 1\n",
            "falaj_gates_total{metric=\"roc_auc\",outcome=\"failed\"} 2\n",
            "falaj_verdicts_total{outcome=\"stopped\"} 1\n",
            "falaj_candidates_held 1\n",
            "falaj_evaluations_total{outcome=\"accepted\"} 1\n",
            "falaj_commits_total{outcome=\"durable\"} 1\n",
            "falaj_commits_total{outcome=\"full\"} 1\n",
            "falaj_checkpoints_total{outcome=\"failed\"} 1\n",
            "falaj_checkpoint_entries 7\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    /// A registry with one version at each of these stages.
    fn registry(study: &str, stages: &[Stage]) -> version::Registry {
        let mut registry = version::Registry::new(study.parse().expect("a study"));
        for (number, stage) in (1..).zip(stages) {
            let digest = falaj_core::id::Digest::of(b"");
            let version = version::Version {
                number,
                round: number,
                model: digest,
                manifest: digest,
                file: digest,
                stage: *stage,
                served: 0,
            };
            registry.versions.insert(number, version);
        }
        registry
    }

    #[test]
    fn versions_of_all_studies_are_counted_where_they_stand() {
        let metrics = Metrics::default();
        metrics.versions(&registry("heart", &[Stage::Archived, Stage::Production]));
        metrics.versions(&registry("lung", &[Stage::Candidate]));
        // A study is told of again when one of its versions has moved.
        metrics.versions(&registry("lung", &[Stage::Production]));
        metrics.versions(&registry("lung", &[Stage::Production]));
        let text = metrics.text();
        for (stage, count) in [("archived", 1), ("production", 2), ("candidate", 0)] {
            let line = format!("falaj_versions{{stage=\"{stage}\"}} {count}\n");
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    }

    #[test]
    fn approvals_wait_until_they_are_over() {
        let metrics = Metrics::default();
        let waits = |until| ("version.promote".to_owned(), Timestamp::from_millis(until));
        metrics.approvals_waiting(vec![waits(1_000), waits(2_000)]);
        for (now, count) in [(999, 2), (1_000, 1), (2_000, 0)] {
            metrics.refresh(Timestamp::from_millis(now));
            let line = format!("falaj_approvals_waiting{{action=\"version.promote\"}} {count}\n");
            assert!(metrics.text().contains(&line), "{now}: {}", metrics.text());
        }
    }

    #[test]
    fn what_has_no_end_is_not_shown_as_one() {
        let metrics = Metrics::default();
        metrics.ends("site", Some(1_900_000_000));
        let line = "falaj_ends_timestamp_seconds{of=\"site\"} 1900000000\n";
        assert!(metrics.text().contains(line), "{}", metrics.text());
        metrics.ends("site", None);
        assert!(!metrics.text().contains("ends_timestamp_seconds"), "{}", metrics.text());
    }
}
