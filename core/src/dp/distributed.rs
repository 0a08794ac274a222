//! Noise in shares: each site adds a part, and the securely aggregated sum carries the whole.
//!
//! Threshold `t`, colluders `c`: each site draws the discrete Gaussian of variance `sigma² / (t - c)` on the
//! integers of its sealed update. A sum exists only of at least `t` sites, of which `t - c` are honest and
//! keep their draws to themselves, so it carries at least `sigma²` whoever drops out; what is more is
//! post-processing.
//!
//! # What it costs
//! A sum of `m` discrete Gaussians is not one, but nearly: each probability is within a factor `e^±tau` of
//! the discrete Gaussian's of the same variance, `tau = 10 sum_{k<m} exp(-2 pi² s² k / (k + 1))` for shares
//! of scale `s` (Kairouz, Liu, Steinke 2021, on sums of discrete Gaussians). Over `d` coordinates the factor is `e^±(tau d)`,
//! and in the definition of the Rényi divergence of order `a` the factors add at most
//! `tau d (2 a - 1) / (a - 1)` to what the discrete Gaussian costs, `a D² / 2 sigma²` for an L2
//! sensitivity `D` (Canonne, Kamath, Steinke 2020, theorem 4). For shares of at least [`SHARE_MIN`] steps that
//! is below 1e-20 and covered by rounding up.
//!
//! # The unit
//! Added or removed, against everybody who sees the sum, the coordinator and `c` colluding sites included:
//! - [`Unit::Site`]: a site's whole update, clipped in L2 as whole numbers before its share is added.
//! - [`Unit::Record`]: one record. A site's update is a sum over a Poisson sample of its records, each of
//!   which moves it by at most an agreed length; sampling is the site's secret, so it amplifies. Rounding
//!   moves two neighbouring sums apart by at most one step more in each coordinate, and cutting each
//!   coordinate off moves them no further apart: the sensitivity in steps counts that.

use super::{
    Noise, Reservation, Rotation, SealError,
    rdp::{AccountantError, RdpCurve},
    seal::{clip, nearest, whole_steps},
};
use crate::{
    manifest::Manifest,
    update::{Encoding, PartialUpdate, RawUpdate},
};
use zeroize::Zeroizing;

/// The least scale of a share, in steps of the grid.
pub const SHARE_MIN: f64 = 3.0;
/// The least scale of a share where the accountant's figure is the real-valued Gaussian's.
pub const SHARE_MIN_SAMPLED: f64 = 16.0;
/// The chance that any coordinate of a sum wraps around, at most.
const WRAP_CHANCE: f64 = 1e-12;
/// What the approximation by one Gaussian may cost beyond it.
const APPROXIMATION_MAX: f64 = 1e-15;

/// Whom the noise protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A site's whole update.
    Site,
    /// One record.
    Record,
}

/// Noise in shares on a grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distributed {
    unit: Unit,
    sensitivity: u32,
    share: f64,
    honest: u32,
    rotated: bool,
}

/// Why noise cannot be shared so.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum DistributedError {
    /// Nobody honest is sure to be there.
    #[error(
        "a threshold of {threshold} with {colluders} colluders leaves no honest site: raise `cohort.min_sites`"
    )]
    Honest {
        /// Sites without which there is no sum.
        threshold: u32,
        /// Sites that may keep their share of the noise out.
        colluders: u32,
    },
    /// A multiplier that is no positive number.
    #[error(transparent)]
    Accountant(#[from] AccountantError),
    /// What one unit can contribute is no usable number of grid steps.
    #[error(
        "one {unit:?} contributes {steps:.2} steps of the grid: choose `sealing.range` and `sealing.bits` so that it is between 16 and 2^30"
    )]
    Grid {
        /// Whose.
        unit: Unit,
        /// How many steps.
        steps: f64,
    },
    /// The grid is too coarse for shares of that noise.
    #[error(
        "each site's share of the noise would be {share:.2} steps of the grid, and {least} are needed: raise `sealing.bits` or `privacy.noise_multiplier`, or lower `sealing.range`"
    )]
    Coarse {
        /// As it would be.
        share: f64,
        /// As it must be.
        least: f64,
    },
    /// The sum would leave the ring.
    #[error(
        "the sum of {members} updates and their noise reaches {times:.2} times as far as the grid: raise `sealing.range` by that, and `sealing.bits` as well if the grid becomes too coarse"
    )]
    Wraps {
        /// Sites at most.
        members: u32,
        /// How much too far.
        times: f64,
    },
}

impl Distributed {
    /// Noise of `noise_multiplier` times the L2 bound of a site's update, for [`Unit::Site`].
    ///
    /// # Errors
    /// [`DistributedError`].
    pub fn over_sites(
        clip_norm: f64,
        encoding: Encoding,
        noise_multiplier: f64,
        terms: (u32, u32),
    ) -> Result<Self, DistributedError> {
        let grid = |steps| DistributedError::Grid { unit: Unit::Site, steps };
        let steps = whole_steps(clip_norm, encoding).map_err(grid)?;
        Self::new(steps, noise_multiplier, terms)
    }

    /// Noise of `noise_multiplier` times the L2 length by which one record can move an update of `params`
    /// values, for [`Unit::Record`].
    ///
    /// # Errors
    /// [`DistributedError`].
    pub fn over_records(
        length: f64,
        (encoding, params): (Encoding, u64),
        noise_multiplier: f64,
        terms: (u32, u32),
    ) -> Result<Self, DistributedError> {
        #[expect(clippy::cast_precision_loss, reason = "rounded up below")]
        let root = (params as f64).sqrt();
        // An f32 is within 2^-24 of its value, which is at most the grid's largest.
        let rounding = 1.0 + f64::from(encoding.max()) * 2.0_f64.powi(-22);
        let steps = (length / encoding.step() + root * rounding) * (1.0 + 1e-12);
        if !(16.0..1_073_741_824.0).contains(&steps) {
            return Err(DistributedError::Grid { unit: Unit::Record, steps });
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range was checked"
        )]
        let this = Self::new(steps.ceil() as u32, noise_multiplier, terms)?;
        if this.share < SHARE_MIN_SAMPLED {
            return Err(DistributedError::Coarse { share: this.share, least: SHARE_MIN_SAMPLED });
        }
        Ok(Self { unit: Unit::Record, ..this })
    }

    /// Noise of `noise_multiplier` times the L2 sensitivity, which is in whole steps of the grid.
    ///
    /// # Errors
    /// [`DistributedError`].
    pub fn new(
        sensitivity: u32,
        noise_multiplier: f64,
        (threshold, colluders): (u32, u32),
    ) -> Result<Self, DistributedError> {
        if !(noise_multiplier.is_finite() && noise_multiplier > 0.0) {
            return Err(AccountantError::NoiseMultiplier(noise_multiplier).into());
        }
        let honest = threshold.saturating_sub(colluders);
        if honest == 0 {
            return Err(DistributedError::Honest { threshold, colluders });
        }
        // Rounded up: more noise, never less.
        let sigma = noise_multiplier * f64::from(sensitivity);
        let share = sigma / f64::from(honest).sqrt() * (1.0 + 1e-12);
        if share.is_nan() || share < SHARE_MIN {
            return Err(DistributedError::Coarse { share, least: SHARE_MIN });
        }
        Ok(Self { unit: Unit::Site, sensitivity, share, honest, rotated: false })
    }

    /// The same for updates that are rotated before they are rounded, or not.
    #[must_use]
    pub const fn rotated(self, rotated: bool) -> Self {
        Self { rotated, ..self }
    }

    /// The scale at which each site draws, in steps of the grid.
    #[must_use]
    pub const fn share(&self) -> f64 {
        self.share
    }

    /// Variance that a sum of `sites` updates carries, in steps squared.
    #[must_use]
    pub fn variance(&self, sites: u32) -> f64 {
        f64::from(sites) * self.share * self.share
    }

    /// What one round costs a site under [`Unit::Site`], over `params` coordinates.
    ///
    /// # Errors
    /// [`AccountantError::TooFine`] when the approximation by one Gaussian would not be covered.
    pub fn cost(&self, params: u64) -> Result<RdpCurve, AccountantError> {
        let variance = self.variance(self.honest) / (1.0 + 2e-12);
        let rho = f64::from(self.sensitivity).powi(2) / (2.0 * variance) * (1.0 + 1e-11);
        #[expect(clippy::cast_precision_loss, reason = "an upper bound with room to spare")]
        let params = params as f64;
        // At order 1.1 the factors count twelvefold, at larger ones less.
        let approximation = 12.0 * params * self.tau();
        if approximation > APPROXIMATION_MAX * rho.min(1.0) {
            return Err(AccountantError::TooFine(params));
        }
        RdpCurve::zcdp(rho)
    }

    /// The logarithm by which a sum of the honest shares may be off one Gaussian, for each coordinate.
    fn tau(&self) -> f64 {
        let exponent = -2.0 * (std::f64::consts::PI * self.share).powi(2);
        let term = |k: u32| (exponent * f64::from(k) / f64::from(k + 1)).exp();
        10.0 * (1..self.honest).map(term).sum::<f64>()
    }

    /// Whether sums of up to `members` updates stay within the ring of a grid, but for a chance of 1e-12 over
    /// all `params` coordinates.
    ///
    /// A coordinate of a site's clipped update is at most the sensitivity; of a rotated one, but for as small a
    /// chance again, only a part of it ([`Rotation::flatness`]). One of a sum over records is cut off at
    /// [`Self::room`], which must leave room for more than a few of them.
    ///
    /// # Errors
    /// [`DistributedError::Wraps`] with how much too far the sum reaches.
    pub fn fits(&self, members: u32, params: u64, bits: u8) -> Result<(), DistributedError> {
        let coordinate = match self.unit {
            Unit::Site if self.rotated => {
                let part = Rotation::flatness(usize::try_from(params).unwrap_or(0), WRAP_CHANCE);
                (part * f64::from(self.sensitivity) + 1.0).min(self.sensitivity.into())
            }
            Unit::Site => f64::from(self.sensitivity),
            Unit::Record => 4.0 * f64::from(self.sensitivity),
        };
        let reach = f64::from(members) * coordinate + self.tail(members, params) + 1.0;
        let times = reach / 2.0_f64.powi(i32::from(bits) - 1);
        if times < 1.0 { Ok(()) } else { Err(DistributedError::Wraps { members, times }) }
    }

    /// What the noise of `members` shares does not exceed in any of `params` coordinates, but for a chance
    /// of 1e-12: `m` shares of scale `s` are beyond `l` with a chance of at most `2 exp(-l² / 2 m s²)`
    /// (Canonne, Kamath, Steinke 2020, corollary 17, and the sum of independent sub-Gaussians).
    fn tail(&self, members: u32, params: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "an upper bound with room to spare")]
        let chance = (2.0 * params as f64 / WRAP_CHANCE).ln();
        (2.0 * chance * self.variance(members)).sqrt()
    }

    /// The most that one site's update may be in any coordinate, in steps, so that no sum wraps around.
    #[must_use]
    pub fn room(&self, members: u32, params: u64, bits: u8) -> i64 {
        let ring = 2.0_f64.powi(i32::from(bits) - 1) - 1.0;
        let room = (ring - self.tail(members, params)) / f64::from(members.max(1));
        #[expect(clippy::cast_possible_truncation, reason = "at most 2^31")]
        let room = room.max(0.0).floor() as i64;
        room
    }

    /// Makes an update fit to be masked, in a cohort of `members`: clipped or cut off, rounded, checked, and
    /// with this site's share of the noise.
    ///
    /// # Errors
    /// [`SealError`]. The reservation is spent all the same: it was made for this training.
    #[expect(clippy::needless_pass_by_value, reason = "taking it is the point: it pays once")]
    pub fn seal(
        &self,
        raw: RawUpdate,
        reservation: Reservation,
        (encoding, members): (Encoding, u32),
        manifest: &Manifest,
        noise: &mut dyn Noise,
    ) -> Result<PartialUpdate, SealError> {
        let values = raw.checked(manifest)?;
        let mut saturated = 0;
        let mut whole = match self.unit {
            Unit::Site => clip(&values, encoding, i64::from(self.sensitivity)),
            Unit::Record => {
                let room = self.room(members, manifest.params() as u64, encoding.bits());
                let mut cut = |v: &f32| {
                    let whole = nearest(f64::from(*v) / encoding.step());
                    let kept = whole.clamp(-room, room);
                    saturated += usize::from(kept != whole);
                    kept
                };
                values.iter().map(&mut cut).collect()
            }
        };
        noise.add(&mut whole, self.share)?;
        let ring = u32::MAX >> (32 - encoding.bits());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "modulo the ring, which divides 2^32"
        )]
        let ringed = whole.iter().map(|&v| v as u32 & ring).collect();
        let values = Zeroizing::new(ringed);
        Ok(PartialUpdate { values, encoding, saturated, reservation: reservation.id() })
    }

    /// Whether a sum of `sites` updates is no longer than honest ones and their noise can make it, but for a
    /// chance of 1e-12 (Hsu, Kakade, Zhang 2012, theorem 2.1, on the length of sub-Gaussian noise). A site
    /// that masks something longer is seen by this, though not which one it is.
    #[must_use]
    pub fn is_plausible(&self, sum: &[i32], sites: u32, room: i64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "an upper bound with room to spare")]
        let (params, room) = (sum.len() as f64, room as f64);
        let tail = -WRAP_CHANCE.ln();
        let spread = params + 2.0 * (params * tail).sqrt() + 2.0 * tail;
        let noise = (self.variance(sites) * spread).sqrt();
        let one = match self.unit {
            Unit::Site => f64::from(self.sensitivity),
            Unit::Record => room * params.sqrt(),
        };
        let most = f64::from(sites) * one + noise;
        let squared: i128 = sum.iter().map(|&v| i128::from(i64::from(v) * i64::from(v))).sum();
        #[expect(clippy::cast_precision_loss, reason = "compared with room to spare")]
        let length = (squared as f64).sqrt();
        length <= most * (1.0 + 1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_spares_the_ring_the_bits_that_single_coordinates_would_need() {
        // A hundred sites, a million parameters: the least ring in which a sum fits on a grid of 32 steps to the
        // clip norm.
        let noise = Distributed::new(32, 1.0, (100, 0)).expect("valid");
        let bits = |noise: Distributed| (8..=32).find(|b| noise.fits(100, 1 << 20, *b).is_ok());
        assert_eq!(bits(noise), Some(13));
        assert_eq!(bits(noise.rotated(true)), Some(10));
        // Among few parameters a coordinate may carry everything, rotated or not.
        let least = |noise: Distributed| (8..=32).find(|b| noise.fits(100, 4, *b).is_ok());
        assert_eq!(least(noise), least(noise.rotated(true)));
    }

    #[test]
    fn the_sum_of_the_honest_shares_carries_the_whole_noise_and_costs_its_rho() {
        let noise = Distributed::new(1_000, 2.0, (8, 2)).expect("valid");
        assert!((noise.variance(6) / 4e6 - 1.0).abs() < 1e-9);
        assert!(noise.variance(6) >= 4e6);
        let cost = noise.cost(1_000_000).expect("a cost");
        let exact = RdpCurve::zcdp(1.0 / 8.0).expect("valid");
        let (ours, whole) = (cost.epsilon(1e-6).expect("e"), exact.epsilon(1e-6).expect("e"));
        assert!(ours >= whole && ours.value() < whole.value() * (1.0 + 1e-9), "{ours} {whole}");
    }

    #[test]
    fn a_sum_of_small_shares_is_as_near_to_one_gaussian_as_the_theorem_says() {
        // Exact convolution of two and three discrete Gaussians of a scale where tau is not small.
        for (share, honest) in [(0.6_f64, 2_u32), (0.8, 2), (0.7, 3)] {
            let reach = 12_i32;
            let weights = |variance: f64, reach: i32| -> Vec<f64> {
                let w: Vec<f64> = (-reach..=reach)
                    .map(|x| (-f64::from(x).powi(2) / (2.0 * variance)).exp())
                    .collect();
                let total: f64 = w.iter().sum();
                w.iter().map(|v| v / total).collect()
            };
            let one = weights(share * share, reach);
            let mut sum = one.clone();
            for _ in 1..honest {
                let mut next = vec![0.0; sum.len() + one.len() - 1];
                for (i, a) in sum.iter().enumerate() {
                    one.iter().enumerate().for_each(|(j, b)| next[i + j] += a * b);
                }
                sum = next;
            }
            let honest_reach = reach * i32::try_from(honest).expect("small");
            let whole = weights(f64::from(honest) * share * share, honest_reach);
            let tau =
                Distributed { unit: Unit::Site, sensitivity: 1, share, honest, rotated: false }
                    .tau();
            // Far out the reach cuts the convolution off; within five standard deviations it does not.
            let middle = usize::try_from(honest_reach).expect("small");
            let worst = (middle - 4..=middle + 4)
                .map(|i| (sum[i] / whole[i]).ln().abs())
                .fold(0.0, f64::max);
            assert!(worst <= tau && worst > tau / 1e4, "{worst} against {tau}");
        }
    }

    #[test]
    fn what_the_grid_cannot_carry_is_refused_with_what_would_do() {
        let coarse = Distributed::new(4, 1.0, (4, 0)).expect_err("a share of two steps");
        assert!(
            matches!(coarse, DistributedError::Coarse { share, .. } if (share - 2.0).abs() < 1e-9),
            "{coarse}"
        );
        let none = Distributed::new(100, 1.0, (2, 2)).expect_err("nobody honest");
        assert!(matches!(none, DistributedError::Honest { .. }), "{none}");
        for z in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Distributed::new(100, z, (4, 0)).is_err());
        }
        let noise = Distributed::new(1_000, 1.0, (8, 0)).expect("valid");
        let wraps = noise.fits(10, 1_000_000, 12).expect_err("too narrow");
        let DistributedError::Wraps { times, .. } = wraps else { panic!("{wraps}") };
        assert!(times > 8.0 && times < 16.0, "{times}");
        assert_eq!(noise.fits(10, 1_000_000, 16), Ok(()));
    }

    fn manifest(params: u32) -> Manifest {
        let shape = vec![params];
        Manifest::new(vec![crate::manifest::TensorSpec { name: "w".into(), shape }]).expect("valid")
    }

    struct Silent;
    impl Noise for Silent {
        fn add(&mut self, _: &mut [i64], _: f64) -> Result<(), super::super::NoiseError> {
            Ok(())
        }
    }

    fn sealed(noise: &Distributed, values: Vec<f32>, encoding: Encoding) -> Vec<i32> {
        let manifest = manifest(u32::try_from(values.len()).expect("small"));
        let paid = Reservation::from_ledger(1);
        let part = noise
            .seal(RawUpdate::new(values), paid, (encoding, 4), &manifest, &mut Silent)
            .expect("sealed");
        let shift = 32 - u32::from(encoding.bits());
        part.values.iter().map(|v| (v << shift).cast_signed() >> shift).collect()
    }

    #[test]
    fn a_sites_whole_numbers_are_no_longer_than_the_noise_is_scaled_to() {
        let encoding = Encoding::for_range(24, 16.0).expect("valid");
        let noise = Distributed::over_sites(1.0, encoding, 1.0, (3, 0)).expect("valid");
        for values in [vec![1e30, -1e30, 3.0, 0.0], vec![0.5; 4], vec![0.01, -0.7, 0.0, 0.2]] {
            let whole = sealed(&noise, values, encoding);
            let squared: i64 = whole.iter().map(|&v| i64::from(v) * i64::from(v)).sum();
            assert!(squared <= i64::from(noise.sensitivity).pow(2), "{whole:?}");
        }
    }

    #[test]
    fn one_record_moves_the_whole_numbers_by_no_more_than_the_noise_is_scaled_to() {
        let encoding = Encoding::for_range(20, 16.0).expect("valid");
        let length = 0.01;
        let noise = Distributed::over_records(length, (encoding, 4), 1.0, (3, 0)).expect("valid");
        // A fixed sequence of sums with and without one record of that length, beyond the cut as well.
        let mut state = 7_u32;
        let mut unit = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1_u32 << 23) - 1.0
        };
        for _ in 0..200 {
            let without: Vec<f64> = (0..4).map(|_| 6.0 * unit()).collect();
            let record: Vec<f64> = (0..4).map(|_| unit()).collect();
            let norm = record.iter().map(|r| r * r).sum::<f64>().sqrt();
            #[expect(clippy::cast_possible_truncation, reason = "updates are f32")]
            let with: Vec<f32> =
                without.iter().zip(&record).map(|(s, r)| (s + r / norm * length) as f32).collect();
            #[expect(clippy::cast_possible_truncation, reason = "updates are f32")]
            let without: Vec<f32> = without.iter().map(|s| *s as f32).collect();
            let (a, b) = (sealed(&noise, with, encoding), sealed(&noise, without, encoding));
            let moved: i64 =
                a.iter().zip(&b).map(|(a, b)| i64::from(a - b) * i64::from(a - b)).sum();
            assert!(moved <= i64::from(noise.sensitivity).pow(2), "{moved}");
        }
    }

    #[test]
    fn a_sum_that_no_honest_sites_can_have_made_is_told_from_one_that_they_can() {
        let noise = Distributed::new(1_000, 1.0, (4, 0)).expect("valid");
        let mut honest = vec![0_i64; 1_000];
        super::super::ExactDiscreteGaussian::new([3; 32])
            .add(&mut honest, noise.variance(5).sqrt())
            .expect("drawn");
        let mut sum: Vec<i32> = honest.iter().map(|&v| i32::try_from(v).expect("small")).collect();
        sum[0] += 5_000;
        assert!(noise.is_plausible(&sum, 5, 0));
        sum[0] += 100_000;
        assert!(!noise.is_plausible(&sum, 5, 0));
    }
}
