//! One step of DP-SGD after clipping: noise on the sum, the mean, the optimiser, the move.
//!
//! The clipped sum is rounded to a grid of integers, and exact discrete Gaussian noise is added there, so
//! that no floating-point draw stands on the privacy path and everything that follows is post-processing.
//! Rounding moves two neighbouring sums apart by at most one grid step more in each of `d` coordinates:
//! the L2 sensitivity in steps is `C / step + sqrt(d)` instead of `C / step`, and the step is chosen so
//! that the noise, of [`SCALE`] steps, is the agreed multiple of exactly that. The accountant's figure for
//! the real-valued Gaussian is used for the discrete one of this scale (Canonne, Kamath, Steinke 2020,
//! theorem 7: their divergences differ by less than `exp(-pi² sigma²)`); `docs/adr/0003` has the rest.
//!
//! The sum is divided by the expected batch size, which is computed from the *disclosed* (noised) number
//! of records, so that the exact number does not leak.

use super::{Chance, Plan, TrainError};
use falaj_core::{
    dp::{ExactDiscreteGaussian, Noise as _, NoiseError},
    study::{Algorithm, Optimizer},
};
use std::sync::mpsc::{Receiver, sync_channel};

/// The noise's standard deviation in steps of the grid: 2^21 costs the sampler one word for a draw.
const SCALE: f64 = 2_097_152.0;
/// From so many parameters on, the noise of the next step is drawn on another thread meanwhile.
const AHEAD_FROM: usize = 16_384;
/// Adding and taking away 1.5 · 2^52 rounds a number below 2^51 to the nearest whole one.
const ROUNDER: f64 = 6_755_399_441_055_744.0;
/// Adam's decay of the first and second moment (Kingma, Ba 2015, algorithm 1).
const BETA: (f64, f64) = (0.9, 0.999);
/// Adam's smallest second moment.
const SECOND_MIN: f64 = 1e-12;
/// The least second moment, in variances of the noise: without noise's share, what is left of a small
/// gradient's is mostly the error of its estimate.
const SECOND_FLOOR: f64 = 0.25;

/// Where discrete Gaussian noise of [`SCALE`] comes from.
enum Draws {
    Now(Box<ExactDiscreteGaussian>),
    Ahead(Receiver<Result<Vec<i64>, NoiseError>>),
}

/// Noise on a grid.
struct Noise {
    draws: Draws,
    buffer: Vec<i64>,
    /// One step of the grid.
    grid: f64,
}

impl Noise {
    fn new(
        (clip_norm, multiplier): (f64, f64),
        params: usize,
        chance: &mut Chance,
    ) -> Result<Self, NoiseError> {
        #[expect(clippy::cast_precision_loss, reason = "at most 2^31 parameters")]
        let rounding = multiplier * (params as f64).sqrt();
        if rounding > SCALE / 2.0 {
            return Err(NoiseError(format!(
                "a noise multiplier of {multiplier} on {params} parameters needs a finer grid than there is: lower `privacy.noise_multiplier`"
            )));
        }
        // multiplier (C / grid + sqrt(d)) = SCALE, and a little more for the rounding of this line.
        let grid = multiplier * clip_norm / (SCALE - rounding) * (1.0 + 1e-12);
        let mut sampler = ExactDiscreteGaussian::new(*chance.key());
        let draws = if params < AHEAD_FROM {
            Draws::Now(Box::new(sampler))
        } else {
            let (give, take) = sync_channel(1);
            // The thread ends when nobody takes any more.
            std::thread::spawn(move || {
                loop {
                    let mut drawn = vec![0; params];
                    let drawn = sampler.add(&mut drawn, SCALE).map(|()| drawn);
                    if give.send(drawn).is_err() {
                        break;
                    }
                }
            });
            Draws::Ahead(take)
        };
        Ok(Self { draws, buffer: vec![0; params], grid })
    }

    /// Draws for one step, in steps of the grid.
    fn next(&mut self) -> Result<&[i64], NoiseError> {
        match &mut self.draws {
            Draws::Now(sampler) => {
                self.buffer.fill(0);
                sampler.add(&mut self.buffer, SCALE)?;
            }
            Draws::Ahead(take) => {
                let gone = || NoiseError("the thread that draws noise has ended".to_owned());
                self.buffer = take.recv().map_err(|_| gone())??;
            }
        }
        Ok(&self.buffer)
    }
}

/// The parameters on their way through a round.
pub(super) struct Descent<'a> {
    plan: &'a Plan,
    base: &'a [f32],
    params: Vec<f32>,
    noise: Option<Noise>,
    /// Momentum, or Adam's first moment.
    first: Vec<f32>,
    /// Adam's second moment.
    second: Vec<f32>,
    steps: u32,
}

impl<'a> Descent<'a> {
    /// At the base model.
    pub(super) fn new(
        plan: &'a Plan,
        base: &'a [f32],
        chance: &mut Chance,
    ) -> Result<Self, TrainError> {
        let noise = plan.dp.map(|dp| Noise::new(dp, base.len(), chance)).transpose()?;
        let second = match plan.training.optimizer {
            Optimizer::Sgd { .. } => Vec::new(),
            Optimizer::Adam { .. } => vec![0.0; base.len()],
        };
        let (params, first) = (base.to_vec(), vec![0.0; base.len()]);
        Ok(Self { plan, base, params, noise, first, second, steps: 0 })
    }

    /// The parameters now.
    pub(super) fn params(&self) -> &[f32] {
        &self.params
    }

    /// Takes a step with the sum of the clipped gradients of a batch.
    pub(super) fn step(&mut self, batch: usize, sum: &[f32]) -> Result<(), TrainError> {
        self.steps += 1;
        if sum.iter().any(|g| !g.is_finite()) {
            return Err(TrainError::NotFinite(self.steps));
        }
        let divisor = match self.plan.dp {
            Some(_) => self.plan.expected_batch(),
            #[expect(clippy::cast_precision_loss, reason = "batches are small")]
            None => batch.max(1) as f64,
        };
        let gradient: Vec<f32> = match &mut self.noise {
            Some(noise) => {
                let (finer, mean) = (1.0 / noise.grid, noise.grid / divisor);
                let drawn = noise.next()?;
                let private = sum.iter().zip(drawn).map(|(&g, &z)| {
                    let whole = (f64::from(g) * finer + ROUNDER) - ROUNDER;
                    #[expect(clippy::cast_precision_loss, reason = "draws are below 2^30")]
                    let noised = whole + z as f64;
                    #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
                    let mean = (noised * mean) as f32;
                    mean
                });
                private.collect()
            }
            #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
            None => sum.iter().map(|&g| (f64::from(g) / divisor) as f32).collect(),
        };
        // The variance that noise gives each coordinate of the mean.
        let noise = self.plan.dp.map_or(0.0, |(clip, z)| (clip * z / divisor).powi(2));
        self.descend(&gradient, noise);
        Ok(())
    }

    /// Optimiser and move, on what is already private. All in f32, as the parameters are.
    #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
    fn descend(&mut self, gradient: &[f32], noise: f64) {
        let mu = match self.plan.training.algorithm {
            Algorithm::FedAvg => 0.0,
            Algorithm::FedProx { mu } => mu as f32,
        };
        let rate = self.plan.training.learning_rate;
        let moving = self.params.iter_mut().zip(self.base).zip(gradient).zip(&mut self.first);
        match self.plan.training.optimizer {
            Optimizer::Sgd { momentum } => {
                let (momentum, rate) = (momentum as f32, rate as f32);
                for (((p, base), g), v) in moving {
                    *v = momentum * *v + g + mu * (*p - base);
                    *p -= rate * *v;
                }
            }
            Optimizer::Adam { weight_decay } => {
                let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
                let unbias = (1.0 - BETA.0.powi(steps), 1.0 - BETA.1.powi(steps));
                let (b1, b2) = (BETA.0 as f32, BETA.1 as f32);
                let least = SECOND_MIN.max(SECOND_FLOOR * noise) as f32;
                let (noise, second_by) = (noise as f32, (1.0 / unbias.1) as f32);
                let (rate_by, keep) =
                    ((rate / unbias.0) as f32, (1.0 - rate * weight_decay) as f32);
                for ((((p, base), g), m), v) in moving.zip(&mut self.second) {
                    let g = g + mu * (*p - base);
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                    let second = (*v * second_by - noise).max(least);
                    *p = keep * *p - rate_by * *m / second.sqrt();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::{model::ModelSpec, study::Training};

    fn plan(dp: Option<(f64, f64)>, optimizer: Optimizer) -> Plan {
        Plan {
            model: ModelSpec::Logistic { features: 1, classes: 2 },
            training: Training {
                algorithm: Algorithm::FedAvg,
                local_steps: 1,
                sample_rate: 0.5,
                learning_rate: 1.0,
                optimizer,
                server_learning_rate: 1.0,
            },
            dp,
            records: 20.0,
        }
    }

    const SGD: Optimizer = Optimizer::Sgd { momentum: 0.0 };

    #[test]
    fn an_empty_batch_still_gets_the_agreed_noise_on_either_side_of_the_thread() {
        for params in [AHEAD_FROM / 2, AHEAD_FROM] {
            let plan = plan(Some((2.0, 1.5)), SGD);
            let base = vec![0.0; params];
            let mut chance = Chance::insecure(b"empty batch");
            let mut descent = Descent::new(&plan, &base, &mut chance).expect("valid");
            let zero = vec![0.0; params];
            descent.step(0, &zero).expect("a step");
            let first = descent.params().to_vec();
            descent.step(0, &zero).expect("a step");
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            let n = params as f64;
            let squares: f64 = first.iter().map(|&p| f64::from(p).powi(2)).sum();
            // A standard deviation of 2 · 1.5 over the expected batch of 10.
            let ratio = (squares / n).sqrt() / 0.3;
            assert!((ratio - 1.0).abs() < 4.0 / (2.0 * n).sqrt(), "{ratio}");
            let again: Vec<f32> = descent.params().iter().zip(&first).map(|(b, a)| b - a).collect();
            assert_ne!(again, first, "two steps had the same noise");
        }
    }

    #[test]
    fn what_leaves_a_step_lies_on_the_grid_of_the_noise() {
        // Mironov 2012: a real-valued draw in floating point gives away the sum under it.
        let plan = plan(Some((1.0, 1.0)), SGD);
        let base = vec![0.0; 1_000];
        let mut chance = Chance::insecure(b"grid");
        let mut descent = Descent::new(&plan, &base, &mut chance).expect("valid");
        let grid = descent.noise.as_ref().expect("noise").grid / 10.0;
        descent.step(1, &vec![0.123_456_7; 1_000]).expect("a step");
        for p in descent.params() {
            let steps = f64::from(*p) / grid;
            // An f32 holds 24 bits of a number of some 2^21 steps.
            assert!(
                (steps - steps.round()).abs()
                    <= 0.51 * f64::from(f32::EPSILON) * steps.abs().max(1.0) * 2.0,
                "{steps}"
            );
        }
    }

    #[test]
    fn noise_covers_what_rounding_to_the_grid_adds_to_the_sensitivity() {
        let mut chance = Chance::insecure(b"sensitivity");
        for (clip, z, params) in [(1.0, 1.1, 100), (0.01, 30.0, 1 << 20), (5.0, 0.3, 1 << 12)] {
            let noise = Noise::new((clip, z), params, &mut chance).expect("valid");
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            let sensitivity = clip / noise.grid + (params as f64).sqrt();
            let ratio = SCALE / (z * sensitivity);
            assert!((1.0 - 1e-12..1.0 + 1e-9).contains(&ratio), "{ratio}");
        }
        assert!(Noise::new((1.0, 1e6), 1 << 20, &mut chance).is_err());
    }

    #[test]
    fn a_gradient_that_is_no_number_ends_the_round_by_name() {
        let plan = plan(None, SGD);
        let base = [0.0; 4];
        let mut chance = Chance::insecure(b"nan");
        let mut descent = Descent::new(&plan, &base, &mut chance).expect("valid");
        descent.step(1, &[0.0; 4]).expect("a step");
        for bad in [f32::NAN, f32::INFINITY] {
            let err = descent.step(1, &[0.0, bad, 0.0, 0.0]).expect_err("not finite");
            assert!(matches!(err, TrainError::NotFinite(_)), "{err}");
        }
        assert_eq!(descent.params(), base);
    }

    #[test]
    fn adam_takes_the_noises_share_out_of_the_second_moment() {
        // A gradient of 3 in every coordinate under noise of standard deviation 4: the raw second moment
        // is 25, the gradient's own 9. After many steps a move is nearly 3 / 3.
        let plan = plan(None, Optimizer::Adam { weight_decay: 0.0 });
        let base = vec![0.0; 4_000];
        let mut chance = Chance::insecure(b"adam");
        let mut descent = Descent::new(&plan, &base, &mut chance).expect("valid");
        for _ in 0..300 {
            #[expect(clippy::cast_possible_truncation, reason = "test data")]
            let g: Vec<f32> = (0..4_000).map(|_| (3.0 + 4.0 * chance.normal()) as f32).collect();
            descent.steps += 1;
            descent.descend(&g, 16.0);
        }
        let before = descent.params.iter().map(|p| f64::from(*p)).sum::<f64>() / 4_000.0;
        descent.steps += 1;
        descent.descend(&vec![3.0; 4_000], 16.0);
        let after = descent.params.iter().map(|p| f64::from(*p)).sum::<f64>() / 4_000.0;
        let moved = before - after;
        assert!((0.9..1.1).contains(&moved), "{moved}");
    }
}
