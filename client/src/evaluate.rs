//! How good a model is on records at hand: accuracy, area under the ROC curve, log loss; of a number how far off it is.

use crate::{
    data::{Batch, place},
    train::{TrainError, Trainer, linear::softmax},
};
use falaj_core::model::ModelSpec;
use serde::Serialize;

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
    let mut probabilities = trainer.logits(records, model, params)?;
    probabilities.iter_mut().for_each(|p| softmax(p));
    let classes = probabilities.first().map_or(0, Vec::len);
    let (mut right, mut loss) = (0, 0.0);
    for (p, &label) in probabilities.iter().zip(&records.labels) {
        let best = (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap_or(0);
        right += usize::from(best == label as usize);
        loss -= f64::from(p[label as usize].max(1e-12)).ln();
    }
    let against_rest = |class: usize| {
        let scored: Vec<(f32, bool)> = probabilities
            .iter()
            .zip(&records.labels)
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
    let n = records.rows().max(1) as f64;
    #[expect(clippy::cast_precision_loss, reason = "records are far below 2^53")]
    Ok(Scores { records: records.rows(), accuracy: right as f64 / n, auc, log_loss: loss / n })
}

/// What was measured of a model that says a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NumberScores {
    /// Records.
    pub records: usize,
    /// Mean absolute error, in the label's unit.
    pub mae: f64,
    /// Root of the mean squared error, in the label's unit.
    pub rmse: f64,
    /// Coefficient of determination. Absent when all labels are the same.
    pub r2: Option<f64>,
}

/// Measures a model that says a number, of a label whose bounds are so far apart.
///
/// # Errors
/// [`TrainError`] when the model does not fit.
pub fn evaluate_number(
    trainer: &dyn Trainer,
    records: &Batch,
    (model, params): (&ModelSpec, &[f32]),
    width: f64,
) -> Result<NumberScores, TrainError> {
    let outputs = trainer.logits(records, model, params)?;
    let (mut absolute, mut squared, mut sum, mut squares) = (0.0, 0.0, 0.0, 0.0);
    for (said, &label) in outputs.iter().zip(&records.labels) {
        let label = place(label);
        let said = f64::midpoint(f64::from(said[0]), 1.0).clamp(0.0, 1.0);
        absolute += (label - said).abs();
        squared += (label - said).powi(2);
        sum += label;
        squares += label * label;
    }
    #[expect(clippy::cast_precision_loss, reason = "records are far below 2^53")]
    let n = records.rows().max(1) as f64;
    let around = squares - sum * sum / n;
    Ok(NumberScores {
        records: records.rows(),
        mae: absolute / n * width,
        rmse: (squared / n).sqrt() * width,
        r2: (around > 1e-9).then(|| 1.0 - squared / around),
    })
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
