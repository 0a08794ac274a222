//! Logistic regression in plain Rust: the same DP-SGD without libtorch.

use super::{Chance, Outcome, Plan, TrainError, Trainer, batches::Turns, step::Descent};
use crate::{data::Batch, guard::LocalBatch};
use falaj_core::model::ModelSpec;

/// The plain trainer.
#[derive(Clone, Copy, Debug)]
pub struct Linear;

/// Inputs and classes, when the model is one for this trainer.
fn sizes(model: &ModelSpec, params: &[f32]) -> Result<(usize, usize), TrainError> {
    let ModelSpec::Logistic { features, classes } = *model else {
        return Err(TrainError::Unsupported("linear"));
    };
    let (features, classes) = (features as usize, classes as usize);
    let expected = features * classes + classes;
    if params.len() != expected {
        return Err(TrainError::Shape { found: params.len(), expected });
    }
    Ok((features, classes))
}

/// Logits of one row: weights are `[classes, features]`, then biases.
fn logits_of(params: &[f32], features: usize, classes: usize, x: &[f32]) -> Vec<f32> {
    let bias = &params[features * classes..];
    (0..classes)
        .map(|c| {
            let w = &params[c * features..(c + 1) * features];
            w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() + bias[c]
        })
        .collect()
}

/// Turns logits into probabilities.
pub(crate) fn softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    for l in logits.iter_mut() {
        *l = (*l - max).exp();
        total += *l;
    }
    logits.iter_mut().for_each(|l| *l /= total);
}

impl Trainer for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn run(
        &self,
        records: &LocalBatch,
        plan: &Plan,
        base: &[f32],
        chance: &mut Chance,
    ) -> Result<Outcome, TrainError> {
        let (features, classes) = sizes(&plan.model, base)?;
        let batch = records.batch();
        let mut descent = Descent::new(plan, base, chance)?;
        let mut turns = Turns::new(plan, batch);
        for _ in 0..plan.training.local_steps {
            let rows = turns.next(chance);
            let (params, clip) = (descent.params(), descent.clip());
            let mut within = 0;
            let mut sum = vec![0.0_f32; params.len()];
            for &row in rows.iter() {
                let x = batch.row(row);
                // The gradient of cross entropy with respect to the logits: probabilities minus one-hot.
                let mut g = logits_of(params, features, classes, x);
                softmax(&mut g);
                g[batch.labels[row] as usize] -= 1.0;
                let factor = clip.map_or(1.0, |clip| {
                    // The whole gradient is the outer product of g and (x, 1).
                    let squares = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
                    let norm = (squares(&g) * (squares(x) + 1.0)).sqrt();
                    within += usize::from(norm <= clip);
                    if norm > clip { clip / norm } else { 1.0 }
                });
                for (c, g) in g.iter().enumerate() {
                    #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
                    let g = (f64::from(*g) * factor) as f32;
                    let weights = &mut sum[c * features..(c + 1) * features];
                    weights.iter_mut().zip(x).for_each(|(s, x)| *s += g * x);
                    sum[features * classes + c] += g;
                }
            }
            descent.step((rows.len(), within), &sum)?;
        }
        Ok(descent.finish())
    }

    fn logits(
        &self,
        records: &Batch,
        model: &ModelSpec,
        params: &[f32],
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let (features, classes) = sizes(model, params)?;
        Ok((0..records.rows())
            .map(|row| logits_of(params, features, classes, records.row(row)))
            .collect())
    }

    fn input_gradients(
        &self,
        records: &Batch,
        model: &ModelSpec,
        params: &[f32],
    ) -> Result<Vec<f32>, TrainError> {
        let (features, classes) = sizes(model, params)?;
        let mut out = vec![0.0; records.rows() * features];
        for (row, out) in out.chunks_mut(features.max(1)).enumerate() {
            let mut g = logits_of(params, features, classes, records.row(row));
            softmax(&mut g);
            g[records.labels[row] as usize] -= 1.0;
            for (c, g) in g.iter().enumerate() {
                let weights = &params[c * features..(c + 1) * features];
                out.iter_mut().zip(weights).for_each(|(o, w)| *o += g * w);
            }
        }
        Ok(out)
    }
}
