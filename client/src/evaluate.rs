//! How good a model is on records at hand: accuracy, area under the ROC curve, log loss.

use crate::{
    data::Batch,
    train::{TrainError, Trainer, linear::softmax},
};
use falaj_core::model::ModelSpec;
use serde::Serialize;
use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt as _, path::Path};

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Records.
    pub records: usize,
    /// Share of records whose class was found.
    pub accuracy: f64,
    /// Area under the ROC curve of the positive class; for more than two classes, the mean over one
    /// class against the rest. Absent when a class has no record.
    pub auc: Option<f64>,
    /// Mean negative log likelihood, in nats.
    pub log_loss: f64,
}

/// Measures a model.
///
/// # Errors
/// [`TrainError`] when the model does not fit.
pub fn evaluate(
    trainer: &dyn Trainer,
    records: &Batch,
    model: &ModelSpec,
    params: &[f32],
) -> Result<Scores, TrainError> {
    Ok(scores(trainer.logits(records, model, params)?, &records.labels))
}

/// What a model's outputs for records of these classes come to.
#[must_use]
pub fn scores(logits: Vec<Vec<f32>>, labels: &[u32]) -> Scores {
    let mut probabilities = logits;
    probabilities.iter_mut().for_each(|p| softmax(p));
    let classes = probabilities.first().map_or(0, Vec::len);
    let (mut right, mut loss) = (0, 0.0);
    for (p, &label) in probabilities.iter().zip(labels) {
        let best = (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap_or(0);
        right += usize::from(best == label as usize);
        loss -= f64::from(p[label as usize].max(1e-12)).ln();
    }
    let against_rest = |class: usize| {
        let scored: Vec<(f32, bool)> = probabilities
            .iter()
            .zip(labels)
            .map(|(p, &label)| (p[class], label as usize == class))
            .collect();
        auc(scored)
    };
    let auc = match classes {
        0 | 1 => None,
        2 => against_rest(1),
        n => {
            let each: Option<Vec<f64>> = (0..n).map(against_rest).collect();
            #[expect(clippy::cast_precision_loss, reason = "a few classes")]
            each.map(|a| a.iter().sum::<f64>() / n as f64)
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "records are far below 2^53")]
    let n = labels.len().max(1) as f64;
    #[expect(clippy::cast_precision_loss, reason = "records are far below 2^53")]
    Scores { records: labels.len(), accuracy: right as f64 / n, auc, log_loss: loss / n }
}

/// Writes a model's outputs to a file that only its owner reads: a column for each class, a line for each record.
///
/// # Errors
/// When there is such a file already, or it cannot be written.
pub fn write_outputs(
    path: &Path,
    classes: &[String],
    logits: &[Vec<f32>],
) -> Result<(), csv::Error> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut writer = csv::Writer::from_writer(file);
    writer.write_record(classes)?;
    for row in logits {
        writer.write_record(row.iter().map(f32::to_string))?;
    }
    writer.flush()?;
    Ok(())
}

/// Area under the ROC curve by ranks, ties counted half (Hanley and `McNeil` 1982).
fn auc(mut scored: Vec<(f32, bool)>) -> Option<f64> {
    scored.sort_by(|a, b| a.0.total_cmp(&b.0));
    #[expect(clippy::cast_precision_loss, reason = "records are far below 2^53")]
    let positives = scored.iter().filter(|s| s.1).count() as f64;
    #[expect(clippy::cast_precision_loss, reason = "records are far below 2^53")]
    let negatives = scored.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let mut ranks = 0.0;
    let mut at = 0;
    while at < scored.len() {
        let tied = scored[at..].iter().take_while(|s| s.0.total_cmp(&scored[at].0).is_eq()).count();
        #[expect(clippy::cast_precision_loss, reason = "records are far below 2^53")]
        let rank = f64::midpoint((2 * at + tied) as f64, 1.0);
        #[expect(clippy::cast_precision_loss, reason = "records are far below 2^53")]
        let hits = scored[at..at + tied].iter().filter(|s| s.1).count() as f64;
        ranks += rank * hits;
        at += tied;
    }
    Some((ranks - positives * (positives + 1.0) / 2.0) / (positives * negatives))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auc_counts_pairs_in_the_right_order_and_ties_half() {
        // Positives 0.8, 0.4; negatives 0.6, 0.4: pairs right 1 + 1, tie 0.5, wrong 0 of 4.
        let scored = vec![(0.8, true), (0.4, true), (0.6, false), (0.4, false)];
        assert_eq!(auc(scored), Some(0.625));
        assert_eq!(auc(vec![(0.1, true)]), None);
    }
}
