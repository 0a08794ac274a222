//! What Prometheus reads: names, help and labels in one place. No identities but site names.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use std::{sync::atomic::AtomicU64, time::Duration};

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

/// Every metric of the coordinator.
pub struct Metrics {
    registry: Registry,
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
    commit_seconds: Histogram,
    commit_group: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("falaj");
        let this = Self {
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
            commit_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            commit_group: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            registry: Registry::default(),
        };
        registry.register("rounds", "Rounds by the stage that they reached", this.rounds.clone());
        registry.register("updates", "Updates by outcome", this.updates.clone());
        registry.register("connections", "Connections by outcome", this.connections.clone());
        registry.register(
            "timestamps",
            "Questions to the time-stamp authority by outcome",
            this.timestamps.clone(),
        );
        registry.register(
            "outcomes",
            "What became of models and exports that were served; those that could not be recorded are counted twice",
            this.outcomes.clone(),
        );
        registry.register(
            "reports",
            "Reports of a period that were due, by outcome: made, or failed",
            this.reports.clone(),
        );
        registry.register(
            "policy_sets",
            "Changed policies by outcome: loaded, or refused while the old ones stay in force",
            this.policy_sets.clone(),
        );
        registry.register(
            "epsilon_spent",
            "Epsilon that a site states to have spent on a study",
            this.epsilon.clone(),
        );
        registry.register(
            "witness_quorums",
            "Rounds that wanted witnesses behind them, by outcome: reached, or too_few",
            this.quorums.clone(),
        );
        registry.register(
            "witness_wait_seconds",
            "Time for which a round waited for its witnesses",
            this.witness_wait_seconds.clone(),
        );
        registry.register(
            "witness_requests",
            "Requests to outside witnesses by outcome",
            this.asked.clone(),
        );
        registry.register(
            "witness_log_entries",
            "Entries in the newest checkpoint that an outside witness has cosigned",
            this.cosigned.clone(),
        );
        registry.register(
            "alerts",
            "What somebody should look into, by what it is",
            this.alerts.clone(),
        );
        registry.register("update_bytes", "Bytes of payloads received", this.bytes_in.clone());
        registry.register("model_bytes", "Bytes of models sent to sites", this.bytes_out.clone());
        registry.register("sites_connected", "Connected sites", this.sites_connected.clone());
        registry.register("writer_queue", "Commits that wait", this.writer_queue.clone());
        registry.register("log_entries", "Entries in the audit log", this.log_size.clone());
        registry.register(
            "commit_seconds",
            "Time of one durable transaction",
            this.commit_seconds.clone(),
        );
        registry.register("commit_group", "Commits in one transaction", this.commit_group.clone());
        Self { registry, ..this }
    }
}

impl Metrics {
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

    /// The text that Prometheus scrapes.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut out, &self.registry);
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
}
