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

use super::{Chance, Outcome, Plan, TrainError, stream::Correlated};
use falaj_core::{
    dp::{AdaptiveClipping, ExactDiscreteGaussian, Noise as _, NoiseError},
    study::{Algorithm, Optimizer, Training},
    update::RawUpdate,
};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The noise's standard deviation in steps of the grid: 2^21 costs the sampler one word for a draw.
const SCALE: f64 = 2_097_152.0;
/// Clipping aims this much below the bound, relatively: the rounding of f32 sums stays within it.
const CLIP_SLACK: f64 = 1e-5;
/// What rounding a row moves two neighbouring ones apart by, in steps of the grid and for each coordinate: one, and
/// what the sum of a few weighed f32s in f64 may err by.
const ROUNDING_OF_ROWS: f64 = 1.01;
/// From so many parameters on, the noise of the next step is drawn on another thread meanwhile.
const AHEAD_FROM: usize = 4_096;
/// Draws at once: half a mebibyte of them.
const DRAWN: usize = 1 << 16;
/// Parameters that are noised and moved together.
const BLOCK: usize = 1_024;
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
    Now(Box<Drawer>),
    /// Drawn on another thread, which gets what was used back to draw into.
    Ahead(Receiver<Result<Vec<i32>, NoiseError>>, SyncSender<Vec<i32>>),
}

/// Draws at [`SCALE`], so many at once that they stay in a near cache.
struct Drawer {
    sampler: ExactDiscreteGaussian,
    wide: Vec<i64>,
}

impl Drawer {
    fn new(key: [u8; 32], params: usize) -> Self {
        Self { sampler: ExactDiscreteGaussian::new(key), wide: vec![0; params.min(DRAWN)] }
    }

    /// One step's draws. A draw of 1,000 standard deviations does not happen; it would be cut off.
    fn draw(&mut self, drawn: &mut [i32]) -> Result<(), NoiseError> {
        let narrow = |z: i64| i32::try_from(z).unwrap_or(if z < 0 { i32::MIN } else { i32::MAX });
        for drawn in drawn.chunks_mut(DRAWN) {
            let wide = &mut self.wide[..drawn.len()];
            wide.fill(0);
            self.sampler.add(wide, SCALE)?;
            drawn.iter_mut().zip(wide).for_each(|(d, z)| *d = narrow(*z));
        }
        Ok(())
    }
}

/// Noise on a grid.
struct Noise {
    draws: Draws,
    drawn: Vec<i32>,
    /// One step of the grid,
    grid: f64,
    /// and of that for a clip norm of 1.
    grid_of_one: f64,
}

/// A clip norm on its way, and the noise on the counts that move it.
struct Moving {
    how: AdaptiveClipping,
    first: f64,
    sampler: ExactDiscreteGaussian,
}

impl Noise {
    /// Noise of `multiplier` times what one record moves the sums by: the clip norm, and for being rounded on
    /// so many `rows` the root of them and of the parameters, in steps of the grid.
    fn new(
        (clip_norm, multiplier): (f64, f64),
        (rows, params): (f64, usize),
        chance: &mut Chance,
    ) -> Result<Self, NoiseError> {
        #[expect(clippy::cast_precision_loss, reason = "at most 2^31 parameters")]
        let rounding = multiplier * (rows * params as f64).sqrt();
        if rounding > SCALE / 2.0 {
            return Err(NoiseError(format!(
                "a noise multiplier of {multiplier} on {params} parameters needs a finer grid than there is: lower `privacy.noise_multiplier`"
            )));
        }
        // multiplier (C / grid + sqrt(rows d)) = SCALE, and a little more for the rounding of this line.
        let grid_of_one = multiplier / (SCALE - rounding) * (1.0 + 1e-12);
        let mut drawer = Drawer::new(*chance.key(), params);
        let draws = if params < AHEAD_FROM {
            Draws::Now(Box::new(drawer))
        } else {
            let (give, take) = sync_channel(1);
            let (give_back, used) = sync_channel(2);
            // The thread ends when nobody takes any more.
            std::thread::spawn(move || {
                loop {
                    let mut drawn = used.try_recv().unwrap_or_else(|_| vec![0; params]);
                    let done = drawer.draw(&mut drawn).map(|()| drawn);
                    if give.send(done).is_err() {
                        break;
                    }
                }
            });
            Draws::Ahead(take, give_back)
        };
        Ok(Self { draws, drawn: vec![0; params], grid: clip_norm * grid_of_one, grid_of_one })
    }

    /// Draws for one step, in steps of the grid.
    fn next(&mut self) -> Result<&[i32], NoiseError> {
        match &mut self.draws {
            Draws::Now(drawer) => drawer.draw(&mut self.drawn)?,
            Draws::Ahead(take, give_back) => {
                let gone = || NoiseError("the thread that draws noise has ended".to_owned());
                let fresh = take.recv().map_err(|_| gone())??;
                let used = std::mem::replace(&mut self.drawn, fresh);
                // Without room for it the thread has enough to draw into.
                let _ = give_back.try_send(used);
            }
        }
        Ok(&self.drawn)
    }
}

/// The parameters on their way through a round.
pub(super) struct Descent<'a> {
    plan: &'a Plan,
    base: &'a [f32],
    params: Vec<f32>,
    noise: Option<Noise>,
    correlated: Option<Correlated>,
    /// Deviation of what a step's gradient gets of the noise, over the noise's.
    spread: f64,
    /// The clip norm now.
    clip_norm: Option<f64>,
    moving: Option<Moving>,
    /// Momentum, or Adam's first moment.
    first: Vec<f32>,
    /// Adam's second moment.
    second: Vec<f32>,
    /// The move of a round that is one sum, apart from the parameters that it is added to: a sum of both
    /// would be rounded by their size.
    moved: Vec<f32>,
    steps: u32,
}

impl<'a> Descent<'a> {
    /// At the base model.
    pub(super) fn new(
        plan: &'a Plan,
        base: &'a [f32],
        chance: &mut Chance,
    ) -> Result<Self, TrainError> {
        let correlated = plan.correlated.clone();
        let of_sum = |(clip_norm, multiplier)| match (plan.adaptive, &correlated) {
            (Some((how, _)), _) => ((clip_norm, how.noise_multiplier_of_sum(multiplier)), 1.0),
            (None, Some(run)) => {
                // All rows that one record moves, as one vector: the clip norm is `sensitivity` of them long.
                let (sensitivity, rows) = (run.factor.sensitivity(), run.factor.rows());
                let rounding = ROUNDING_OF_ROWS.powi(2) * rows / sensitivity.powi(2);
                ((clip_norm, multiplier * sensitivity), rounding)
            }
            (None, None) => ((clip_norm, multiplier), 1.0),
        };
        let noise = |dp| {
            let (dp, rows) = of_sum(dp);
            Noise::new(dp, (rows, base.len()), chance)
        };
        let noise = plan.dp.map(noise).transpose()?;
        let moving = plan.adaptive.map(|(how, first)| Moving {
            how,
            first,
            sampler: ExactDiscreteGaussian::new(*chance.key()),
        });
        let clip_norm = plan.dp.or(plan.summed).map(|(clip_norm, _)| clip_norm);
        let second = match plan.training.optimizer {
            Optimizer::Sgd { .. } => Vec::new(),
            Optimizer::Adam { .. } => vec![0.0; base.len()],
        };
        let (params, first) = (base.to_vec(), vec![0.0; base.len()]);
        let moved = if plan.summed.is_some() { vec![0.0; base.len()] } else { Vec::new() };
        Ok(Self {
            plan,
            base,
            params,
            noise,
            spread: correlated.as_ref().map_or(1.0, |run| run.factor.spread()),
            correlated,
            clip_norm,
            moving,
            first,
            second,
            moved,
            steps: 0,
        })
    }

    /// The parameters now.
    pub(super) fn params(&self) -> &[f32] {
        &self.params
    }

    /// The bound that clipping aims at in the next step.
    pub(super) fn clip(&self) -> Option<f64> {
        self.clip_norm.map(|clip_norm| clip_norm * (1.0 - CLIP_SLACK))
    }

    /// What the round's steps come to.
    pub(super) fn finish(self) -> Outcome {
        let update = if self.plan.summed.is_some() {
            self.moved
        } else {
            self.params.iter().zip(self.base).map(|(p, b)| p - b).collect()
        };
        let clip_norm = self.clip_norm.filter(|_| self.moving.is_some());
        let stream = self.correlated.map(Correlated::finish);
        Outcome { update: RawUpdate::new(update), clip_norm, stream }
    }

    /// Takes a step with the sum of the clipped gradients of a batch, of which so many were `within` the bound as
    /// they were.
    pub(super) fn step(
        &mut self,
        (batch, within): (usize, usize),
        sum: &[f32],
    ) -> Result<(), TrainError> {
        self.descend(batch, sum)?;
        let (Some(moving), Some(noise), Some(clip_norm)) =
            (&mut self.moving, &mut self.noise, &mut self.clip_norm)
        else {
            return Ok(());
        };
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX / 4);
        let mut halves = [2 * count(within) - count(batch)];
        moving.sampler.add(&mut halves, moving.how.count_scale())?;
        let at = (*clip_norm, moving.first);
        *clip_norm = moving.how.next(at, halves[0], self.plan.expected_batch());
        noise.grid = *clip_norm * noise.grid_of_one;
        Ok(())
    }

    fn descend(&mut self, batch: usize, sum: &[f32]) -> Result<(), TrainError> {
        self.steps += 1;
        let divisor = match (self.plan.dp, self.plan.summed) {
            (Some(_), _) => self.plan.expected_batch(),
            (None, Some((_, divisor))) => divisor,
            #[expect(clippy::cast_precision_loss, reason = "batches are small")]
            (None, None) => batch.max(1) as f64,
        };
        let deviation = self.noise.as_ref().map_or(0.0, |n| self.spread * n.grid * SCALE / divisor);
        let mut moves = Moves::new(&self.plan.training, self.steps, deviation);
        let (grid, drawn) = match &mut self.noise {
            Some(noise) => (noise.grid, Some(noise.next()?)),
            None => (1.0, None),
        };
        let (finer, mean) = (1.0 / grid, grid / divisor);
        if let Some(run) = &mut self.correlated {
            run.begin(sum);
        }
        // Block by block, so that a block stays in the nearest cache from noise to move.
        let mut gradient = [0.0_f32; BLOCK];
        let mut finite = true;
        for at in (0..sum.len()).step_by(BLOCK) {
            let range = at..(at + BLOCK).min(sum.len());
            let sums = &sum[range.clone()];
            let gradient = &mut gradient[..sums.len()];
            finite &= sums.iter().fold(true, |all, g| all & g.is_finite());
            #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
            if let (Some(drawn), Some(run)) = (drawn, &mut self.correlated) {
                let drawn = (&drawn[range.clone()], grid);
                let round = |v: f64| (v + ROUNDER) - ROUNDER;
                run.release(range.clone(), drawn, round, (gradient, 1.0 / divisor));
            } else if let Some(drawn) = drawn {
                for ((out, &g), &z) in gradient.iter_mut().zip(sums).zip(&drawn[range.clone()]) {
                    let whole = (f64::from(g) * finer + ROUNDER) - ROUNDER;
                    *out = ((whole + f64::from(z)) * mean) as f32;
                }
            } else {
                gradient.iter_mut().zip(sums).for_each(|(o, &g)| *o = (f64::from(g) * mean) as f32);
            }
            if let Some(moved) = self.moved.get_mut(range.clone()) {
                moved.iter_mut().zip(&*gradient).for_each(|(m, g)| *m -= moves.rate * g);
            }
            let second = self.second.get_mut(range.clone()).unwrap_or(&mut []);
            let (params, base) = (&mut self.params[range.clone()], &self.base[range.clone()]);
            moves.take(gradient, base, params, &mut self.first[range], second);
        }
        if finite { Ok(()) } else { Err(TrainError::NotFinite(self.steps)) }
    }
}

/// The optimiser's move, on what is already private. All in f32, as the parameters are.
struct Moves {
    optimizer: Optimizer,
    /// `FedProx`'s pull.
    mu: f32,
    rate: f32,
    /// What a step leaves of a parameter.
    keep: f32,
    /// Adam: one over what the second moment's start at zero has taken from it, the variance that noise
    /// gives each coordinate of the mean, and the least second moment.
    second: (f32, f32, f32),
}

impl Moves {
    #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
    fn new(training: &Training, steps: u32, deviation: f64) -> Self {
        let mu = match training.algorithm {
            Algorithm::FedAvg => 0.0,
            Algorithm::FedProx { mu } => mu as f32,
        };
        let noise = deviation.powi(2);
        let steps = i32::try_from(steps).unwrap_or(i32::MAX);
        let (rate, decay) = match training.optimizer {
            Optimizer::Sgd { .. } => (training.learning_rate, 0.0),
            Optimizer::Adam { weight_decay } => {
                (training.learning_rate / (1.0 - BETA.0.powi(steps)), weight_decay)
            }
        };
        let least = SECOND_MIN.max(SECOND_FLOOR * noise);
        Self {
            optimizer: training.optimizer,
            mu,
            rate: rate as f32,
            keep: (1.0 - training.learning_rate * decay) as f32,
            second: ((1.0 / (1.0 - BETA.1.powi(steps))) as f32, noise as f32, least as f32),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
    fn take(
        &mut self,
        gradient: &[f32],
        base: &[f32],
        params: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
    ) {
        let (mu, rate, keep) = (self.mu, self.rate, self.keep);
        let moving = params.iter_mut().zip(base).zip(gradient).zip(first);
        match self.optimizer {
            Optimizer::Sgd { momentum } => {
                let momentum = momentum as f32;
                for (((p, base), g), v) in moving {
                    *v = momentum * *v + g + mu * (*p - base);
                    *p -= rate * *v;
                }
            }
            Optimizer::Adam { .. } => {
                let (b1, b2) = (BETA.0 as f32, BETA.1 as f32);
                let (unbias, noise, least) = self.second;
                for ((((p, base), g), m), v) in moving.zip(second) {
                    let g = g + mu * (*p - base);
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                    let own = (*v * unbias - noise).max(least);
                    *p = keep * *p - rate * *m / own.sqrt();
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::train::stream::Stream;
    use falaj_core::{
        dp::{Batches, Cyclic, Ftrl, Poisson},
        model::ModelSpec,
    };

    pub(in crate::train) fn plan(dp: Option<(f64, f64)>, optimizer: Optimizer) -> Plan {
        Plan {
            model: ModelSpec::Logistic { features: 1, classes: 2 },
            training: Training {
                algorithm: Algorithm::FedAvg,
                local_steps: 1,
                batches: Batches::Poisson(Poisson::new(0.5).expect("a chance")),
                learning_rate: 1.0,
                optimizer,
                server_learning_rate: 1.0,
            },
            dp,
            correlated: None,
            first_step: 0,
            adaptive: None,
            summed: None,
            records: 20.0,
        }
    }

    pub(in crate::train) const SGD: Optimizer = Optimizer::Sgd { momentum: 0.0 };

    #[test]
    fn an_empty_batch_still_gets_the_agreed_noise_on_either_side_of_the_thread() {
        for params in [AHEAD_FROM / 2, AHEAD_FROM] {
            let plan = plan(Some((2.0, 1.5)), SGD);
            let base = vec![0.0; params];
            let mut chance = Chance::insecure(b"empty batch");
            let mut descent = Descent::new(&plan, &base, &mut chance).expect("valid");
            let zero = vec![0.0; params];
            descent.step((0, 0), &zero).expect("a step");
            let first = descent.params().to_vec();
            descent.step((0, 0), &zero).expect("a step");
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
        descent.step((1, 1), &vec![0.123_456_7; 1_000]).expect("a step");
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
            let noise = Noise::new((clip, z), (1.0, params), &mut chance).expect("valid");
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            let sensitivity = clip / noise.grid + (params as f64).sqrt();
            let ratio = SCALE / (z * sensitivity);
            assert!((1.0 - 1e-12..1.0 + 1e-9).contains(&ratio), "{ratio}");
        }
        assert!(Noise::new((1.0, 1e6), (1.0, 1 << 20), &mut chance).is_err());
    }

    #[test]
    fn rows_of_a_stream_have_independent_noise_of_what_one_record_moves_all_of_them_by() {
        let (clip, z, params, steps) = (2.0, 1.5, 2_000, 60);
        let factor = Ftrl::new(Cyclic::new(8).expect("batches"), steps).expect("a stream");
        let correlated = Correlated { factor: factor.clone(), stream: Stream::default() };
        let plan = Plan { correlated: Some(correlated), ..plan(Some((clip, z)), SGD) };
        let base = vec![0.0; params];
        let mut chance = Chance::insecure(b"stream");
        let mut descent = Descent::new(&plan, &base, &mut chance).expect("valid");
        // What the optimiser got of each step, times the expected batch of 10.
        let (mut got, mut at) = (Vec::new(), base.clone());
        for _ in 0..steps {
            descent.step((0, 0), &vec![0.0; params]).expect("a step");
            let moved = descent.params().iter().zip(&at);
            got.push(moved.map(|(b, a)| -10.0 * f64::from(b - a)).collect::<Vec<f64>>());
            at = descent.params().to_vec();
        }
        // The factor makes of it the noise of each row again.
        let row = |t: usize, i: usize| {
            let weighed = factor.factor().iter().zip(got[..=t].iter().rev());
            weighed.map(|(c, got)| c * got[i]).sum::<f64>()
        };
        let mean = |of: &dyn Fn(usize, usize) -> f64| {
            let all = (10..50).flat_map(|t| (0..params).map(move |i| (t, i)));
            all.map(|(t, i)| of(t, i)).sum::<f64>() / (40.0 * 2_000.0)
        };
        let variance = mean(&|t, i| row(t, i).powi(2));
        let deviation = z * factor.sensitivity() * clip;
        assert!((variance.sqrt() / deviation - 1.0).abs() < 0.02, "{variance}, {deviation}");
        for lag in 1..4 {
            let together = mean(&|t, i| row(t, i) * row(t - lag, i)) / variance;
            assert!(together.abs() < 0.02, "{lag}: {together}");
        }
        // While a step takes back part of what the one before it added.
        let spread = mean(&|t, i| got[t][i].powi(2));
        assert!(mean(&|t, i| got[t][i] * got[t - 1][i]) < -0.2 * spread);
        assert!((spread / variance / factor.spread().powi(2) - 1.0).abs() < 0.05);
        let stream = descent.finish().stream.expect("a stream");
        assert_eq!(stream.steps(), steps);
    }

    #[test]
    fn a_gradient_that_is_no_number_ends_the_round_by_name() {
        let plan = plan(None, SGD);
        let base = [0.0; 4];
        let mut chance = Chance::insecure(b"nan");
        let mut descent = Descent::new(&plan, &base, &mut chance).expect("valid");
        descent.step((1, 1), &[0.0; 4]).expect("a step");
        for bad in [f32::NAN, f32::INFINITY] {
            let err = descent.step((1, 1), &[0.0, bad, 0.0, 0.0]).expect_err("not finite");
            assert!(matches!(err, TrainError::NotFinite(_)), "{err}");
        }
    }

    #[test]
    fn an_adaptive_clip_norm_follows_the_records_and_the_noise_follows_it() {
        let how = AdaptiveClipping { quantile: 0.5, learning_rate: 0.2, count_noise: 4.0 };
        let mut plan = plan(Some((1.0, 1.5)), SGD);
        plan.adaptive = Some((how, 1.0));
        plan.training.batches = Batches::Poisson(Poisson::ALL);
        plan.records = 200.0;
        let base = vec![0.0; 2_000];
        let mut chance = Chance::insecure(b"adaptive");
        let mut descent = Descent::new(&plan, &base, &mut chance).expect("valid");
        let zero = vec![0.0; 2_000];
        // Every gradient is of length 7: within the bound once it is above that.
        let mut before = base.clone();
        for _ in 0..60 {
            before = descent.params().to_vec();
            let within = if descent.clip().expect("a bound") >= 7.0 { 200 } else { 0 };
            descent.step((200, within), &zero).expect("a step");
        }
        let noise: f64 = descent
            .params()
            .iter()
            .zip(&before)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>();
        let deviation = (noise / 2_000.0).sqrt() * 200.0 / how.noise_multiplier_of_sum(1.5);
        let clip_norm = descent.finish().clip_norm.expect("it moves");
        assert!((clip_norm / 7.0 - 1.0).abs() < 0.15, "{clip_norm}");
        assert!((deviation / 7.0 - 1.0).abs() < 0.25, "{deviation}");
    }

    #[test]
    fn a_round_that_is_one_sum_moves_by_exactly_that_whatever_the_parameters_are() {
        let plan = Plan { summed: Some((1.0, 4.0)), ..plan(None, SGD) };
        let base = [1e6, -1e6, 0.0, 3.0];
        let mut chance = Chance::insecure(b"summed");
        let mut descent = Descent::new(&plan, &base, &mut chance).expect("valid");
        descent.step((9, 9), &[0.5, 0.25, -1.0, 1e-6]).expect("a step");
        let mut moved = vec![0.0; 4];
        descent.finish().update.apply_locally(&mut moved);
        assert_eq!(moved, [-0.125, -0.0625, 0.25, -2.5e-7]);
    }

    #[test]
    fn adam_takes_the_noises_share_out_of_the_second_moment() {
        // A gradient of 3 in every coordinate under noise of standard deviation 4: the raw second moment
        // is 25, the gradient's own 9. After many steps a move is nearly 3 / 3.
        let plan = plan(Some((1.0, 40.0)), Optimizer::Adam { weight_decay: 0.0 });
        let base = vec![0.0; 4_000];
        let mut chance = Chance::insecure(b"adam");
        let mut descent = Descent::new(&plan, &base, &mut chance).expect("valid");
        let mean = |d: &Descent| d.params.iter().map(|p| f64::from(*p)).sum::<f64>() / 4_000.0;
        let mut before = 0.0;
        for _ in 0..300 {
            before = mean(&descent);
            // Over the expected batch of 10: a gradient of 3, noise of 40 / 10.
            descent.step((10, 10), &vec![30.0; 4_000]).expect("a step");
        }
        let moved = before - mean(&descent);
        assert!((0.8..1.2).contains(&moved), "{moved}");
    }
}
