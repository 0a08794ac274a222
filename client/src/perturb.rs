//! What is done to held-out records to see how much accuracy that costs a model.
//!
//! All of it is in the scaled inputs that a model sees, between -1 and 1. Attacks know the model: its gradients by its inputs.

use crate::{
    data::Batch,
    train::{Chance, TrainError, Trainer},
};
use falaj_core::{evaluation::Perturbation, model::ModelSpec};

/// How far one of several steps goes, over epsilon over their number (Madry et al. 2018, section 5: 2.5 for steps to reach the edge
/// from anywhere).
const STEP: f64 = 2.5;

/// The records as a perturbation makes them.
///
/// # Errors
/// [`TrainError`] when the model cannot be attacked.
pub fn perturbed(
    records: &Batch,
    perturbation: Perturbation,
    (trainer, model, params): (&dyn Trainer, &ModelSpec, &[f32]),
    chance: &mut Chance,
) -> Result<Batch, TrainError> {
    let mut out = records.clone();
    let unit = |v: f64| narrow(v.clamp(-1.0, 1.0));
    match perturbation {
        Perturbation::GaussianNoise { std } => {
            for x in &mut out.features {
                *x = unit(f64::from(*x) + std * chance.normal());
            }
        }
        Perturbation::Salt { rate } => {
            for x in &mut out.features {
                if chance.unit() < rate {
                    *x = if chance.unit() < 0.5 { -1.0 } else { 1.0 };
                }
            }
        }
        Perturbation::Missing { rate } => {
            for x in &mut out.features {
                if chance.unit() < rate {
                    // The middle of the bounds, as an empty cell is read; of a category: none.
                    *x = 0.0;
                }
            }
        }
        Perturbation::Shift { by } => {
            for x in &mut out.features {
                *x = unit(f64::from(*x) + by);
            }
        }
        Perturbation::Fgsm { epsilon } => {
            let slopes = trainer.input_gradients(&out, model, params)?;
            climb(&mut out, records, &slopes, (epsilon, epsilon));
        }
        Perturbation::Pgd { epsilon, steps } => {
            for _ in 0..steps {
                let slopes = trainer.input_gradients(&out, model, params)?;
                climb(&mut out, records, &slopes, (STEP * epsilon / f64::from(steps), epsilon));
            }
        }
    }
    Ok(out)
}

/// Moves each input by a step in the direction that raises the loss, and no further than `epsilon` from where it began.
fn climb(out: &mut Batch, from: &Batch, slopes: &[f32], (step, epsilon): (f64, f64)) {
    let (step, epsilon) = (narrow(step), narrow(epsilon));
    for ((x, start), slope) in out.features.iter_mut().zip(&from.features).zip(slopes) {
        let direction = if *slope > 0.0 {
            1.0
        } else if *slope < 0.0 {
            -1.0
        } else {
            0.0
        };
        let near = (*x + step * direction).clamp(start - epsilon, start + epsilon);
        *x = near.clamp(-1.0, 1.0);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "inputs are f32 in [-1, 1]")]
const fn narrow(v: f64) -> f32 {
    v as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::linear::Linear;

    const MODEL: ModelSpec = ModelSpec::Logistic { features: 2, classes: 2 };
    /// Says the second class where the first input is positive, and looks at the second not at all.
    const PARAMS: [f32; 6] = [-2.0, 0.0, 2.0, 0.0, 0.0, 0.0];

    fn records() -> Batch {
        let mut chance = Chance::insecure(b"perturbed");
        let features: Vec<f32> = (0..2_000).map(|_| narrow(chance.unit() * 1.6 - 0.8)).collect();
        let labels = features.chunks(2).map(|x| u32::from(x[0] > 0.0)).collect();
        Batch { features, labels, width: 2 }
    }

    fn made(perturbation: Perturbation) -> Batch {
        let mut chance = Chance::insecure(b"chance");
        perturbed(&records(), perturbation, (&Linear, &MODEL, &PARAMS), &mut chance).expect("made")
    }

    fn moved(perturbation: Perturbation) -> Vec<f32> {
        let (before, after) = (records(), made(perturbation));
        assert!(after.features.iter().all(|x| (-1.0..=1.0).contains(x)));
        assert_eq!(before.labels, after.labels);
        after.features.iter().zip(&before.features).map(|(a, b)| a - b).collect()
    }

    #[test]
    fn attacks_go_against_the_label_by_epsilon_and_no_further() {
        for attack in
            [Perturbation::Fgsm { epsilon: 0.1 }, Perturbation::Pgd { epsilon: 0.1, steps: 5 }]
        {
            for (row, by) in moved(attack).chunks(2).enumerate() {
                // Towards the other class, in the input that the model looks at.
                let against = if records().labels[row] == 1 { -0.1 } else { 0.1 };
                assert!((by[0] - against).abs() < 1e-6 && by[1] == 0.0, "{attack:?} {row}: {by:?}");
            }
        }
    }

    #[test]
    fn what_is_random_has_the_size_that_was_asked_for() {
        let noise = moved(Perturbation::GaussianNoise { std: 0.05 });
        let variance: f32 = noise.iter().map(|v| v * v).sum::<f32>() / 2_000.0;
        assert!((variance.sqrt() - 0.05).abs() < 0.005, "{variance}");
        let missing = made(Perturbation::Missing { rate: 0.3 });
        let gone = missing.features.iter().filter(|x| **x == 0.0).count();
        assert!((530..670).contains(&gone), "{gone}");
        let salted = made(Perturbation::Salt { rate: 0.3 });
        let ends = salted.features.iter().filter(|x| x.abs() >= 1.0).count();
        assert!((530..670).contains(&ends), "{ends}");
        assert!(moved(Perturbation::Shift { by: 0.1 }).iter().all(|v| (v - 0.1).abs() < 1e-6));
    }

    #[test]
    fn gradients_by_inputs_are_those_of_small_steps() {
        let batch = records();
        let slopes = Linear.input_gradients(&batch, &MODEL, &PARAMS).expect("slopes");
        let loss = |features: Vec<f32>| {
            let one = Batch { features, labels: vec![batch.labels[0]], width: 2 };
            let mut p = Linear.logits(&one, &MODEL, &PARAMS).expect("logits").remove(0);
            crate::train::linear::softmax(&mut p);
            -f64::from(p[batch.labels[0] as usize]).ln()
        };
        let at = batch.row(0).to_vec();
        for i in 0..2 {
            let mut next = at.clone();
            next[i] += 1e-2;
            let slope = (loss(next) - loss(at.clone())) / 1e-2;
            assert!((slope - f64::from(slopes[i])).abs() < 0.02, "{i}: {slope} {}", slopes[i]);
        }
    }
}
