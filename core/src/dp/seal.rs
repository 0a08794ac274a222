//! Sealing: the only way from a [`RawUpdate`] to a [`SealedUpdate`].
//!
//! Clip, scale, round to the grid, noise, encode. The sensitivity that noise is scaled to is checked in
//! whole numbers after rounding, so no floating-point sum stands on the privacy path of
//! [`Mechanism::LocalGaussian`] (Kairouz, Liu, Steinke 2021, section 4; Casacuberta et al. 2022).

use crate::{
    manifest::Manifest,
    update::{Encoding, RawUpdate, SealedUpdate},
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

/// How often a clipped update is scaled down again because rounding lengthened it.
const RESCALES: usize = 4;

/// Proof that the site's ledger holds, durably, what the update costs. Sealing consumes it, so one
/// reservation pays for one update.
#[derive(Debug)]
pub struct Reservation {
    id: u64,
}

impl Reservation {
    /// For the ledger alone, once the reservation is durable.
    #[must_use]
    pub const fn from_ledger(id: u64) -> Self {
        Self { id }
    }

    /// Its number in the ledger.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }
}

/// A policy's permission to send updates without noise. Only a policy decision makes one.
#[derive(Debug)]
pub struct Permit {
    policy: String,
}

impl Permit {
    /// For whoever decides policy at the site: the policy that permits `mechanism: none` by name.
    #[must_use]
    pub fn by_policy(policy: &str) -> Self {
        Self { policy: policy.to_owned() }
    }

    /// The policy that permits it.
    #[must_use]
    pub fn policy(&self) -> &str {
        &self.policy
    }
}

/// A source of exact discrete Gaussian noise.
pub trait Noise {
    /// Adds to each value an independent draw from the discrete Gaussian of scale `sigma`
    /// (Canonne, Kamath, Steinke 2020, definition 1).
    ///
    /// # Errors
    /// [`NoiseError`]; the values must not be used then.
    fn add(&mut self, values: &mut [i64], sigma: f64) -> Result<(), NoiseError>;
}

/// Noise could not be drawn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("noise could not be drawn: {0}")]
pub struct NoiseError(pub String);

/// How an update is made fit to leave.
#[derive(Debug)]
pub enum Mechanism {
    /// Training added the noise (DP-SGD); what remains is post-processing, which costs nothing.
    DpSgd,
    /// The same, with noise that is correlated over the steps (DP-FTRL).
    DpFtrl,
    /// The whole update is clipped in L2 and noised once.
    LocalGaussian {
        /// L2 bound of the update.
        clip_norm: f64,
        /// Noise standard deviation over the clip norm.
        noise_multiplier: f64,
    },
    /// Nothing, where a policy permits it by name.
    None(Permit),
}

/// Why an update cannot be sealed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SealError {
    /// Training gave a number that is none.
    #[error(
        "parameter {parameter} of the update is {value}: lower `training.learning_rate`, or look for a broken record"
    )]
    NotFinite {
        /// Tensor and position.
        parameter: String,
        /// NaN or an infinity.
        value: f32,
    },
    /// The update has another number of parameters than the model.
    #[error("the update has {found} parameters, the model {expected}")]
    Length {
        /// In the update.
        found: usize,
        /// In the manifest.
        expected: usize,
    },
    /// The clip norm is not a usable number of grid steps.
    #[error(
        "a clip norm of {clip_norm} is {steps} steps of the grid: choose `sealing.range` and `sealing.bits` so that it is between 16 and 2^30"
    )]
    Grid {
        /// The clip norm.
        clip_norm: f64,
        /// In steps.
        steps: f64,
    },
    /// Noise that protects nobody.
    #[error(
        "a noise multiplier of {0} protects nobody: set `privacy.noise_multiplier` to a positive number"
    )]
    NoNoise(f64),
    /// Noise failed.
    #[error(transparent)]
    Noise(#[from] NoiseError),
}

impl Mechanism {
    /// The word that headers and the log use.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::DpSgd => "dp_sgd",
            Self::DpFtrl => "dp_ftrl",
            Self::LocalGaussian { .. } => "local_gaussian",
            Self::None(_) => "none",
        }
    }

    /// Seals an update on a grid.
    ///
    /// # Errors
    /// [`SealError`]. The reservation is spent all the same: it was made for this training.
    #[expect(clippy::needless_pass_by_value, reason = "taking it is the point: it pays once")]
    pub fn seal(
        &self,
        raw: RawUpdate,
        reservation: Reservation,
        encoding: Encoding,
        manifest: &Manifest,
        noise: &mut dyn Noise,
    ) -> Result<SealedUpdate, SealError> {
        let values = raw.checked(manifest)?;
        let whole = match *self {
            Self::DpSgd | Self::DpFtrl | Self::None(_) => {
                let mut dither = Dither::of(&values);
                values.iter().map(|&v| dither.round(f64::from(v) / encoding.step())).collect()
            }
            Self::LocalGaussian { clip_norm, noise_multiplier } => {
                if !(noise_multiplier.is_finite() && noise_multiplier > 0.0) {
                    return Err(SealError::NoNoise(noise_multiplier));
                }
                let bound = whole_steps(clip_norm, encoding)
                    .map_err(|steps| SealError::Grid { clip_norm, steps })?;
                let bound = i64::from(bound);
                let mut whole = clip(&values, encoding, bound);
                #[expect(clippy::cast_precision_loss, reason = "the bound is below 2^30")]
                noise.add(&mut whole, noise_multiplier * bound as f64)?;
                whole
            }
        };
        let max = i64::from(encoding.max());
        let mut payload = Vec::with_capacity(whole.len() * encoding.bytes_per_value());
        let mut saturated = 0;
        for v in whole {
            let kept = v.clamp(-max, max);
            saturated += usize::from(kept != v);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "within the grid, at most 32 bits"
            )]
            encoding.put(kept as i32, &mut payload);
        }
        Ok(SealedUpdate {
            payload,
            encoding,
            params: values.len(),
            saturated,
            mechanism: self.as_str(),
            reservation: reservation.id,
            cohort: None,
        })
    }
}

impl RawUpdate {
    /// The numbers, if there are as many as in the model and all of them are finite.
    pub(super) fn checked(self, manifest: &Manifest) -> Result<Vec<f32>, SealError> {
        let values = self.0;
        if values.len() != manifest.params() {
            let (found, expected) = (values.len(), manifest.params());
            return Err(SealError::Length { found, expected });
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let parameter = manifest.describe(i);
            return Err(SealError::NotFinite { parameter, value: values[i] });
        }
        Ok(values)
    }
}

/// The nearest whole number; far outside every grid it saturates.
pub(super) fn nearest(v: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and is clamped to the grid")]
    let whole = v.round_ties_even() as i64;
    whole
}

/// Rounding up or down by chance, so that the expectation is the number itself: what lies between two steps of a
/// coarse grid is kept in the sum over many coordinates and sites (Kairouz, Liu, Steinke 2021, section 4.1).
///
/// The chance is keyed by the numbers: no theorem asks for more, since rounding comes before the noise and what
/// noise must cover is checked after it; and the same numbers are sealed the same.
struct Dither(ChaCha20Rng);

impl Dither {
    fn of(values: &[f32]) -> Self {
        let mut hash = Sha256::new();
        let mut block = [0; 4 * 256];
        for values in values.chunks(256) {
            let bytes = &mut block[..4 * values.len()];
            bytes
                .as_chunks_mut::<4>()
                .0
                .iter_mut()
                .zip(values)
                .for_each(|(b, v)| *b = v.to_le_bytes());
            hash.update(bytes);
        }
        Self(ChaCha20Rng::from_seed(hash.finalize().into()))
    }

    /// One of the two whole numbers beside `v`; far outside every grid it saturates.
    fn round(&mut self, v: f64) -> i64 {
        let chance = f64::from(self.0.next_u32()) / 4_294_967_296.0;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "saturates, and is clamped to the grid"
        )]
        let whole = (v + chance).floor() as i64;
        whole
    }
}

/// The whole number next towards zero.
fn towards_zero(v: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "values are clipped to 2^30 steps")]
    let whole = v as i64;
    whole
}

/// The clip norm in whole steps of the grid, rounded down: the sensitivity that the noise is scaled to.
/// When it is no usable number of them, that number.
pub(super) fn whole_steps(clip_norm: f64, encoding: Encoding) -> Result<u32, f64> {
    let steps = clip_norm / encoding.step();
    if !(16.0..1_073_741_824.0).contains(&steps) {
        return Err(steps);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range was checked"
    )]
    let bound = steps.floor() as u32;
    Ok(bound)
}

/// Clips in L2 and rounds by [`Dither`], on the condition that the whole numbers' exact norm is at most `bound`
/// (Kairouz, Liu, Steinke 2021, section 4.1): what the accountant is charged is what is rounded to.
pub(super) fn clip(values: &[f32], encoding: Encoding, bound: i64) -> Vec<i64> {
    #[expect(clippy::cast_precision_loss, reason = "the bound is below 2^30")]
    let limit = bound as f64;
    let norm = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    let mut scale = (1.0 / encoding.step()).min(limit / norm);
    let mut dither = Dither::of(values);
    // Rounding may push the norm over by what it adds; scaling that off keeps the direction.
    for _ in 0..RESCALES {
        let rounded: Vec<i64> =
            values.iter().map(|&v| dither.round(f64::from(v) * scale)).collect();
        let squared = norm_squared(&rounded);
        if squared <= i128::from(bound) * i128::from(bound) {
            return rounded;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate that is checked again")]
        let excess = limit / (squared as f64).sqrt();
        // Where most numbers are less than a step, the squared norm goes with the scale and not with its square;
        // chance moves it by one part in `limit`.
        scale *= excess * excess * (1.0 - 3.0 / limit);
    }
    // A grid too coarse for so many parameters: rounding towards zero only shortens.
    let mut shorter: Vec<i64> =
        values.iter().map(|&v| towards_zero(f64::from(v) * scale)).collect();
    while norm_squared(&shorter) > i128::from(bound) * i128::from(bound) {
        for v in &mut shorter {
            *v /= 2;
        }
    }
    shorter
}

/// The exact squared L2 norm; sums of up to 2^31 squares below 2^62 fit.
fn norm_squared(values: &[i64]) -> i128 {
    values.iter().map(|&v| i128::from(v) * i128::from(v)).sum()
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
mod tests {
    use super::*;
    use crate::model::ModelSpec;

    /// Remembers the scale it was asked for, and adds nothing.
    struct Silent(Option<f64>);
    impl Noise for Silent {
        fn add(&mut self, _: &mut [i64], sigma: f64) -> Result<(), NoiseError> {
            self.0 = Some(sigma);
            Ok(())
        }
    }

    fn manifest() -> Manifest {
        ModelSpec::Logistic { features: 1, classes: 2 }.manifest().expect("valid")
    }

    #[test]
    fn a_number_that_is_none_is_named_before_sealing() {
        let encoding = Encoding::for_range(16, 1.0).expect("valid");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let raw = RawUpdate::new(vec![0.0, 0.0, bad, 0.0]);
            let err = Mechanism::DpSgd
                .seal(raw, Reservation::from_ledger(1), encoding, &manifest(), &mut Silent(None))
                .expect_err("not finite");
            assert!(err.to_string().contains("layers.0.bias[0]"), "{err}");
        }
    }

    #[test]
    fn values_beyond_the_grid_are_cut_and_counted() {
        let encoding = Encoding::for_range(8, 1.0).expect("valid");
        let raw = RawUpdate::new(vec![2.0, -1e30, 0.5, 0.0]);
        let sealed = Mechanism::DpSgd
            .seal(raw, Reservation::from_ledger(1), encoding, &manifest(), &mut Silent(None))
            .expect("sealed");
        assert_eq!(sealed.payload, [127, 129, 64, 0]);
        assert_eq!(sealed.saturated(), 2);
    }

    #[test]
    fn the_exact_norm_never_exceeds_the_sensitivity_that_noise_is_scaled_to() {
        let encoding = Encoding::for_range(16, 8.0).expect("valid");
        let mechanism = Mechanism::LocalGaussian { clip_norm: 1.0, noise_multiplier: 2.0 };
        for values in [
            vec![1e30, -1e30, 1e-30, f32::MIN_POSITIVE / 2.0],
            vec![0.5, 0.5, 0.5, 0.5],
            vec![-0.0, 0.3, 0.1, 0.7],
        ] {
            let mut noise = Silent(None);
            let raw = RawUpdate::new(values);
            let sealed = mechanism
                .seal(raw, Reservation::from_ledger(1), encoding, &manifest(), &mut noise)
                .expect("sealed");
            let squared: i64 = crate::update::values::<2>(&sealed.payload)
                .map(|v| i64::from(i16::from_le_bytes(v)).pow(2))
                .sum();
            let bound = noise.0.expect("noised") / 2.0;
            assert!(squared as f64 <= bound * bound, "{squared} > {bound}^2");
        }
    }

    #[test]
    fn clipping_many_parameters_on_a_coarse_grid_keeps_their_direction() {
        let encoding = Encoding::for_range(8, 1.0).expect("valid");
        let values: Vec<f32> = (0..400_u16).map(|i| f32::from(i % 7) - 3.0).collect();
        let whole = clip(&values, encoding, 127);
        let dot: f64 = whole.iter().zip(&values).map(|(&w, &v)| w as f64 * f64::from(v)).sum();
        let norm: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let length = (norm_squared(&whole) as f64).sqrt();
        assert!(length <= 127.0, "{length}");
        assert!(length > 110.0 && dot / norm / length > 0.99, "{length}, {}", dot / norm / length);
    }

    #[test]
    fn a_grid_too_coarse_for_its_parameters_keeps_the_bound_and_loses_no_direction() {
        let encoding = Encoding::for_range(8, 1.0).expect("valid");
        let values: Vec<f32> =
            (0..100_000_u32).map(|i| if i % 4 == 0 { -0.005 } else { 0.005 }).collect();
        let whole = clip(&values, encoding, 127);
        assert!(norm_squared(&whole) <= 127 * 127);
        // Each number is a third of a step: to the nearest, nothing would be left.
        let sum = |negative: bool| -> i64 {
            let of = values.iter().zip(&whole).filter(|(v, _)| (**v < 0.0) == negative);
            of.map(|(_, w)| *w).sum()
        };
        assert!(
            sum(false) > 10_000 && sum(true) < -3_000 && sum(false) < -4 * sum(true),
            "{} {}",
            sum(false),
            sum(true)
        );
    }

    #[test]
    fn rounding_is_right_on_average_and_the_same_for_the_same_numbers() {
        let values = vec![0.3_f32; 40_000];
        let rounded = |values: &[f32]| {
            let mut dither = Dither::of(values);
            values.iter().map(|v| dither.round(f64::from(*v))).collect::<Vec<_>>()
        };
        let whole = rounded(&values);
        let mean = whole.iter().sum::<i64>() as f64 / 40_000.0;
        // Four standard deviations of a mean of 40,000 coins of 0.3.
        assert!((mean - f64::from(0.3_f32)).abs() < 4.0 * 0.0023, "{mean}");
        assert!(whole.iter().all(|w| [0, 1].contains(w)));
        assert_eq!(whole, rounded(&values));
        assert_eq!(Dither::of(&values).round(-7.0), -7);
    }

    #[test]
    fn a_rotated_update_survives_a_grid_that_would_cut_its_heavy_coordinates() {
        let features = 511;
        let manifest = ModelSpec::Logistic { features, classes: 2 }.manifest().expect("valid");
        let mut spiky = vec![0.0_f32; manifest.params()];
        (spiky[5], spiky[700]) = (0.8, -0.6);
        let rotation = crate::dp::Rotation::of_round(&crate::id::Digest::of(b"a study"), 1);
        let encoding = Encoding::for_range(8, 0.2).expect("valid");
        let mechanism = Mechanism::LocalGaussian { clip_norm: 1.0, noise_multiplier: 1.0 };
        let seal = |raw: RawUpdate| {
            let paid = Reservation::from_ledger(1);
            mechanism.seal(raw, paid, encoding, &manifest, &mut Silent(None)).expect("sealed")
        };
        assert_eq!(seal(RawUpdate::new(spiky.clone())).saturated(), 2);
        let sealed = seal(RawUpdate::new(spiky.clone()).rotated(&rotation));
        assert_eq!(sealed.saturated(), 0);
        let whole = crate::update::values::<1>(&sealed.payload).map(i8::from_le_bytes);
        let mut back: Vec<f64> = whole.map(|v| f64::from(v) * encoding.step()).collect();
        rotation.undo(0, &mut back);
        let error: f64 = back.iter().zip(&spiky).map(|(b, s)| (b - f64::from(*s)).powi(2)).sum();
        // Dither in a thousand coordinates, of variance at most a quarter of a step each.
        assert!(error.sqrt() < 0.5 * encoding.step() * 1_026_f64.sqrt() * 1.2, "{error}");
    }

    #[test]
    fn noise_that_protects_nobody_is_refused() {
        let encoding = Encoding::for_range(16, 8.0).expect("valid");
        for noise_multiplier in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let mechanism = Mechanism::LocalGaussian { clip_norm: 1.0, noise_multiplier };
            let (raw, paid) = (RawUpdate::new(vec![0.0; 4]), Reservation::from_ledger(1));
            let err = mechanism
                .seal(raw, paid, encoding, &manifest(), &mut Silent(None))
                .expect_err("refused");
            assert!(matches!(err, SealError::NoNoise(_)), "{err}");
        }
    }

    #[test]
    fn a_clip_norm_that_the_grid_cannot_hold_is_refused() {
        let encoding = Encoding::for_range(8, 1000.0).expect("valid");
        let mechanism = Mechanism::LocalGaussian { clip_norm: 1.0, noise_multiplier: 1.0 };
        let raw = RawUpdate::new(vec![0.0; 4]);
        let err = mechanism
            .seal(raw, Reservation::from_ledger(1), encoding, &manifest(), &mut Silent(None))
            .expect_err("too coarse");
        assert!(matches!(err, SealError::Grid { .. }));
    }
}
