//! Logistic and linear regression in plain Rust: the same DP-SGD without libtorch.

use super::{Chance, Outcome, Plan, TrainError, Trainer, batches::Turns, step::Descent};
use crate::{
    data::{Batch, aim},
    guard::LocalBatch,
};
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

/// How the loss of a record moves with the model's outputs: cross entropy by probabilities minus one-hot; half the squared error of
/// a number by how far off it is.
fn slope(mut outputs: Vec<f32>, label: u32) -> Vec<f32> {
    if let [said] = outputs.as_mut_slice() {
        *said -= aim(label);
        return outputs;
    }
    softmax(&mut outputs);
    outputs[label as usize] -= 1.0;
    outputs
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
                let g = slope(logits_of(params, features, classes, x), batch.labels[row]);
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
            let g =
                slope(logits_of(params, features, classes, records.row(row)), records.labels[row]);
            for (c, g) in g.iter().enumerate() {
                let weights = &params[c * features..(c + 1) * features];
                out.iter_mut().zip(weights).for_each(|(o, w)| *o += g * w);
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        evaluate::number_scores,
        train::step::tests::{SGD, plan},
    };
    use falaj_core::{
        dp::{Batches, Poisson},
        study::Training,
    };

    /// Records of one input, whose label is between 0 and 80: 20 more than half the input's place.
    fn records() -> Batch {
        let inputs = [-1.0_f32, -0.5, 0.0, 0.25, 0.5, 1.0];
        let label = |x: &f32| {
            let place = (20.0 + 40.0 * f64::midpoint(f64::from(*x), 1.0)) / 80.0;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place")]
            let label = (place * f64::from(u32::MAX)).round() as u32;
            label
        };
        Batch { labels: inputs.iter().map(label).collect(), features: inputs.to_vec(), width: 1 }
    }

    const MODEL: ModelSpec = ModelSpec::Logistic { features: 1, classes: 1 };

    #[test]
    fn a_number_is_learned_and_said_in_its_own_unit() {
        let (plan, admitted) = (plan(None, SGD), LocalBatch::for_this_site_only(records()));
        let (local_steps, batches) = (400, Batches::Poisson(Poisson::ALL));
        let training = Training { local_steps, batches, learning_rate: 0.3, ..plan.training };
        let plan = Plan { model: MODEL, training, ..plan };
        let mut chance = Chance::insecure(b"a number");
        let outcome = Linear.run(&admitted, &plan, &[0.0, 0.0], &mut chance).expect("trained");
        let mut params = [0.0; 2];
        outcome.update.apply_locally(&mut params);
        // Of a label between -1 and 1, half of the input is all that there is to learn.
        assert!((params[0] - 0.5).abs() < 1e-3 && params[1].abs() < 1e-3, "{params:?}");
        let scores = |params: &[f32]| {
            let outputs = Linear.logits(&records(), &MODEL, params).expect("outputs");
            number_scores(&outputs, &records().labels, 80.0)
        };
        let found = scores(&params);
        assert!(found.mae < 0.05 && found.rmse < 0.05, "{found:?}");
        assert!(found.r2.is_some_and(|r2| r2 > 0.999), "{found:?}");
        // A model that says the middle of the bounds of every record: the mean of the distances from it.
        let mae = scores(&[0.0; 2]).mae;
        assert!((mae - 65.0 / 6.0).abs() < 1e-6, "{mae}");
    }

    #[test]
    fn a_numbers_gradient_is_clipped_and_is_the_losss() {
        let one = |x: f32| Batch { features: vec![x], labels: vec![u32::MAX], width: 1 };
        let plan = plan(Some((0.1, 1e-5)), SGD);
        let batches = Batches::Poisson(Poisson::ALL);
        let training = Training { local_steps: 1, batches, learning_rate: 1.0, ..plan.training };
        let plan = Plan { model: MODEL, training, records: 1.0, ..plan };
        let admitted = LocalBatch::for_this_site_only(one(0.75));
        let mut chance = Chance::insecure(b"clipped");
        let outcome = Linear.run(&admitted, &plan, &[0.0, 0.0], &mut chance).expect("trained");
        // One too little, times (0.75, 1), is 1.25 long.
        let mut moved = [0.0; 2];
        outcome.update.apply_locally(&mut moved);
        for (got, wanted) in moved.into_iter().zip([0.06, 0.08]) {
            assert!((got - wanted).abs() < 1e-4, "{got} {wanted}");
        }
        let slope = Linear.input_gradients(&one(0.75), &MODEL, &[2.0, 0.5]).expect("slopes");
        // It says 2, and should say 1.
        assert!(slope.len() == 1 && (slope[0] - 2.0).abs() < 1e-6, "{slope:?}");
    }
}
