//! What a candidate must show before it becomes a model.
//!
//! A figure that is missing fails its gate: nothing passes by silence.

use crate::{round::UpdateRef, study::WitnessQuorum};

/// What is known of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Updates that went into it.
    pub sites: u32,
    /// Examples behind them, as noised by the sites.
    pub examples: u64,
    /// Whether every parameter is a finite number.
    pub finite: bool,
    /// Witnesses that have cosigned the log with every entry of the round in it.
    pub witnesses: u32,
}

impl Metrics {
    /// What the counted updates say.
    pub fn of<'a>(
        updates: impl Iterator<Item = &'a UpdateRef>,
        finite: bool,
        witnesses: u32,
    ) -> Self {
        let (sites, examples) = updates.fold((0, 0), |(n, w), u| (n + 1, w + u64::from(u.weight)));
        Self { sites, examples, finite, witnesses }
    }
}

/// A check on a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// At least this many sites stand behind it.
    Participation {
        /// The least number of sites.
        min_sites: u32,
    },
    /// Every parameter is a finite number.
    Finite,
    /// At least so many witnesses stand behind the round.
    Witnesses(WitnessQuorum),
}

/// What the gates say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether every gate passed.
    pub pass: bool,
    /// Each gate that failed: its name, its figure and its bound.
    pub reasons: Vec<String>,
}

/// Judges a candidate by every gate.
#[must_use]
pub fn judge(metrics: &Metrics, gates: &[Gate]) -> Verdict {
    let reasons: Vec<String> = gates
        .iter()
        .filter_map(|gate| match gate {
            Gate::Participation { min_sites } if metrics.sites < *min_sites => {
                Some(format!("participation: {} sites, at least {min_sites} needed", metrics.sites))
            }
            Gate::Finite if !metrics.finite => {
                Some("finite: the candidate has parameters that are not numbers".to_owned())
            }
            Gate::Witnesses(WitnessQuorum { quorum, within_s }) if metrics.witnesses < *quorum => {
                Some(format!(
                    "witnesses: {} stood behind the round within {within_s} s, at least {quorum} needed",
                    metrics.witnesses
                ))
            }
            _ => None,
        })
        .collect();
    Verdict { pass: reasons.is_empty(), reasons }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failed_gate_is_named_with_its_figure() {
        let quorum = WitnessQuorum { quorum: 2, within_s: 60 };
        let gates = [Gate::Participation { min_sites: 3 }, Gate::Finite, Gate::Witnesses(quorum)];
        let bad = judge(&Metrics { sites: 2, examples: 9, finite: false, witnesses: 1 }, &gates);
        assert!(!bad.pass);
        assert_eq!(bad.reasons.len(), 3);
        assert!(bad.reasons[0].contains("2 sites, at least 3"));
        assert!(bad.reasons[2].contains("1 stood behind the round within 60 s, at least 2"));
        let good = Metrics { sites: 3, examples: 9, finite: true, witnesses: 2 };
        assert!(judge(&good, &gates).pass);
    }
}
