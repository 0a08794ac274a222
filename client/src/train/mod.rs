//! Trainers: what turns admitted records into a raw update.
//!
//! All of them do the same DP-SGD (Abadi et al. 2016, algorithm 1): in each step every record enters the
//! batch independently with the study's sample rate (true Poisson sampling), its gradient is clipped in L2,
//! and noise is added to the sum, also when the batch is empty. `batches` says who is in it, `step` adds the noise
//! and moves the parameters. Under DP-FTRL batches take turns, and `stream` correlates the noise of the steps.

pub(crate) mod batches;
pub mod cuda;
pub mod linear;
mod step;
pub mod stream;
#[cfg(feature = "torch")]
pub mod torch;

use crate::{config::TrainConfig, guard::LocalBatch};
use falaj_core::{
    dp::{AdaptiveClipping, NoiseError, Poisson},
    model::ModelSpec,
    study::{Mechanism, Protects, Study, Training},
    update::RawUpdate,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use stream::{Correlated, Stream};
use zeroize::Zeroizing;

/// How one round is trained.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model.
    pub model: ModelSpec,
    /// Steps, rates, algorithm.
    pub training: Training,
    /// Clip norm and noise multiplier, for noise in each step.
    pub dp: Option<(f64, f64)>,
    /// How that noise is correlated over the steps, for DP-FTRL.
    pub correlated: Option<Correlated>,
    /// Steps that were taken before the round, for batches that take turns.
    pub first_step: u64,
    /// How that clip norm moves from step to step, and where it began in the first round.
    pub adaptive: Option<(AdaptiveClipping, f64)>,
    /// Clip norm and what the sum is divided by, for one step whose noise is added when it is sealed.
    pub summed: Option<(f64, f64)>,
    /// The number of records as disclosed.
    pub records: f64,
}

impl Plan {
    /// How a study trains at a site that discloses `records`.
    #[must_use]
    pub fn of(study: &Study, records: u32) -> Self {
        let (dp, adaptive) = match study.privacy.mechanism {
            Mechanism::DpSgd { clip_norm, noise_multiplier, adaptive } => {
                (Some((clip_norm, noise_multiplier)), adaptive.map(|a| (a, clip_norm)))
            }
            Mechanism::DpFtrl { clip_norm, noise_multiplier } => {
                (Some((clip_norm, noise_multiplier)), None)
            }
            _ => (None, None),
        };
        let summed = match study.privacy.mechanism {
            Mechanism::DistributedGaussian {
                clip_norm,
                protects: Protects::Record { batch_size },
                ..
            } => Some((clip_norm, f64::from(batch_size))),
            _ => None,
        };
        Self {
            model: study.model_spec(),
            training: study.training.clone(),
            dp,
            correlated: study.ftrl().map(|factor| Correlated { factor, stream: Stream::default() }),
            first_step: 0,
            adaptive,
            summed,
            records: f64::from(records),
        }
    }

    /// The plan of a round (from 1), or of what a stream of correlated noise has come to.
    #[must_use]
    pub fn of_round(mut self, round: u32, stream: Option<Stream>) -> Self {
        let rounds_before = u64::from(round.saturating_sub(1));
        self.first_step = rounds_before * u64::from(self.training.local_steps);
        if let (Some(correlated), Some(stream)) = (&mut self.correlated, stream) {
            self.first_step = stream.steps();
            correlated.stream = stream;
        }
        self
    }

    /// Expected records in one batch.
    fn expected_batch(&self) -> f64 {
        (self.training.batches.rate() * self.records).max(1.0)
    }
}

/// Why training gave no update.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrainError {
    /// The trainer does not know the model.
    #[error("the `{0}` trainer cannot train this model: use a trainer built with libtorch")]
    Unsupported(&'static str),
    /// The parameters do not fit the model.
    #[error("the base model has {found} parameters, the study's model {expected}")]
    Shape {
        /// In the base model.
        found: usize,
        /// In the manifest.
        expected: usize,
    },
    /// Noise could not be drawn.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// Gradients that are no numbers.
    #[error(
        "the gradients of step {0} are not finite: lower `training.learning_rate`, or look for a broken record"
    )]
    NotFinite(u32),
    /// The library failed.
    #[error("training failed: {0}")]
    Library(String),
}

/// What a round of training gave.
#[derive(Debug)]
pub struct Outcome {
    /// New parameters minus base parameters.
    pub update: RawUpdate,
    /// Where an adaptive clip norm has come to: as private as the update, so it may be kept for the next round.
    pub clip_norm: Option<f64>,
    /// Where a stream of correlated noise has come to: never to leave the site.
    pub stream: Option<Stream>,
}

/// Trains one round.
pub trait Trainer: Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Takes the plan's steps from the base parameters.
    ///
    /// # Errors
    /// [`TrainError`].
    fn run(
        &self,
        records: &LocalBatch,
        plan: &Plan,
        base: &[f32],
        chance: &mut Chance,
    ) -> Result<Outcome, TrainError>;

    /// The model's outputs (logits) for each row.
    ///
    /// # Errors
    /// [`TrainError`].
    fn logits(
        &self,
        records: &crate::data::Batch,
        model: &ModelSpec,
        params: &[f32],
    ) -> Result<Vec<Vec<f32>>, TrainError>;

    /// How each row's loss moves with its inputs: as many numbers as the batch has features.
    ///
    /// # Errors
    /// [`TrainError`]: also where inputs are codes, which nothing can be moved by a little.
    fn input_gradients(
        &self,
        records: &crate::data::Batch,
        model: &ModelSpec,
        params: &[f32],
    ) -> Result<Vec<f32>, TrainError>;
}

/// The trainer that a configuration asks for, and what a model needs.
///
/// # Errors
/// [`TrainError::Unsupported`] when this agent was built without the one that is needed.
pub fn choose(config: &TrainConfig, model: &ModelSpec) -> Result<Box<dyn Trainer>, TrainError> {
    let simple = matches!(model, ModelSpec::Logistic { .. });
    match config.trainer.as_str() {
        "linear" if !simple => Err(TrainError::Unsupported("linear")),
        "linear" => Ok(Box::new(linear::Linear)),
        #[cfg(feature = "torch")]
        _ => Ok(Box::new(torch::Torch::new(config)?)),
        #[cfg(not(feature = "torch"))]
        "auto" if simple => Ok(Box::new(linear::Linear)),
        #[cfg(not(feature = "torch"))]
        _ => Err(TrainError::Unsupported("linear")),
    }
}

/// Names of the trainers that this agent was built with.
#[must_use]
pub fn built() -> Vec<String> {
    let mut names = vec!["linear".to_owned()];
    if cfg!(feature = "torch") {
        names.push("torch".to_owned());
    }
    names
}

/// Where chance comes from: a cryptographic generator, keyed by the operating system for each use.
pub struct Chance {
    rng: ChaCha20Rng,
    spare: Option<f64>,
}

impl Chance {
    /// Keyed afresh by the operating system.
    ///
    /// # Panics
    /// When the operating system has no randomness to give: noise without it would protect nobody.
    #[must_use]
    pub fn fresh() -> Self {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("invariant: the operating system gives randomness");
        Self::keyed(seed)
    }

    /// From a key. The same key gives the same chance: nothing that leaves a site may use one twice.
    pub(crate) fn keyed(key: [u8; 32]) -> Self {
        Self { rng: ChaCha20Rng::from_seed(key), spare: None }
    }

    /// The same chance every time: for tests, and absent from release builds.
    #[cfg(debug_assertions)]
    #[must_use]
    pub fn insecure(seed: &[u8]) -> Self {
        Self::keyed(*falaj_core::id::Digest::of(seed).as_bytes())
    }

    /// A key that nobody else has, for a release of noise.
    pub(crate) fn key(&mut self) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        self.rng.fill_bytes(&mut *key);
        key
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
        let unit = (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        unit
    }

    /// Fair coins.
    pub(crate) fn coins(&mut self, count: usize) -> Vec<bool> {
        (0..count).map(|_| self.unit() < 0.5).collect()
    }

    /// The rows of one batch.
    pub fn sample(&mut self, rows: usize, sampling: Poisson) -> Vec<usize> {
        sampling.draw(rows, || self.unit())
    }

    /// A standard normal draw (polar method of Marsaglia and Bray 1964), to perturb records with and for test data: what
    /// protects records is drawn exactly, in [`step`].
    pub(crate) fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (u, v) = (2.0 * self.unit() - 1.0, 2.0 * self.unit() - 1.0);
            let s = u * u + v * v;
            if s > 0.0 && s < 1.0 {
                let factor = (-2.0 * s.ln() / s).sqrt();
                self.spare = Some(v * factor);
                return u * factor;
            }
        }
    }
}

/// The same noise every time, for tests: rounded Laplace draws that no theorem stands behind.
#[cfg(debug_assertions)]
impl crate::noise::NoiseSource for Chance {
    fn laplace(
        &mut self,
        counts: &mut [i64],
        scale: f64,
    ) -> Result<(), falaj_core::dp::NoiseError> {
        for count in counts {
            let u = self.unit() - 0.5;
            #[expect(clippy::cast_possible_truncation, reason = "draws are small")]
            let draw = (-scale * u.signum() * (1.0 - 2.0 * u.abs()).ln()).round() as i64;
            *count += draw;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_is_independent_with_the_rate_that_was_asked_for() {
        let mut chance = Chance::insecure(b"sampling");
        let tenth = Poisson::new(0.1).expect("a chance");
        let sizes: Vec<usize> = (0..400).map(|_| chance.sample(1_000, tenth).len()).collect();
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let mean = sizes.iter().sum::<usize>() as f64 / 400.0;
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let variance = sizes.iter().map(|&s| (s as f64 - mean).powi(2)).sum::<f64>() / 399.0;
        // A binomial of 1,000 at 0.1: mean 100, variance 90. A fixed batch would have variance 0.
        assert!((98.0..102.0).contains(&mean), "{mean}");
        assert!((70.0..112.0).contains(&variance), "{variance}");
    }

    #[test]
    fn normal_draws_have_the_moments_of_a_standard_normal() {
        let mut chance = Chance::insecure(b"normal");
        let draws: Vec<f64> = (0..20_000).map(|_| chance.normal()).collect();
        let moment = |k: i32| draws.iter().map(|d| d.powi(k)).sum::<f64>() / 20_000.0;
        assert!(
            moment(1).abs() < 0.03 && (moment(2) - 1.0).abs() < 0.04,
            "{} {}",
            moment(1),
            moment(2)
        );
        assert!((moment(4) - 3.0).abs() < 0.3, "{}", moment(4));
    }
}
