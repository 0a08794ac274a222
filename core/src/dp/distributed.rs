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
//! The unit is a site's whole update (added or removed) against everybody who sees the sum, the
//! coordinator and `c` colluding sites included.

use super::rdp::{AccountantError, RdpCurve};

/// The least scale of a share, in steps of the grid.
pub const SHARE_MIN: f64 = 3.0;
/// The chance that any coordinate of a sum wraps around, at most.
const WRAP_CHANCE: f64 = 1e-12;
/// What the approximation by one Gaussian may cost beyond it.
const APPROXIMATION_MAX: f64 = 1e-15;

/// Noise in shares on a grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distributed {
    sensitivity: u32,
    share: f64,
    honest: u32,
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
    /// The grid is too coarse for shares of that noise.
    #[error(
        "each site's share of the noise would be {0:.2} steps of the grid, and {SHARE_MIN} are needed: lower `sealing.range` or raise `sealing.bits` or `privacy.noise_multiplier`"
    )]
    Coarse(f64),
    /// The sum would leave the ring.
    #[error(
        "the sum of {members} updates with their noise needs {needed} bits, the grid has {bits}: raise `sealing.bits` or `sealing.range`"
    )]
    Wraps {
        /// Sites at most.
        members: u32,
        /// Bits that would do.
        needed: u32,
        /// Bits of the grid.
        bits: u8,
    },
}

impl Distributed {
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
            return Err(DistributedError::Coarse(share));
        }
        Ok(Self { sensitivity, share, honest })
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

    /// What one round costs a site, over `params` coordinates.
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

    /// Whether sums of up to `members` updates stay within a ring of `bits`, but for a chance of 1e-12
    /// over all `params` coordinates.
    ///
    /// A coordinate of an update is at most the sensitivity, and the noise of `m` shares of scale `s` is
    /// beyond `l` with a chance of at most `2 exp(-l² / 2 m s²)` (Canonne, Kamath, Steinke 2020,
    /// corollary 17, and the sum of independent sub-Gaussians).
    ///
    /// # Errors
    /// [`DistributedError::Wraps`] with the bits that would do.
    pub fn fits(&self, members: u32, params: u64, bits: u8) -> Result<(), DistributedError> {
        #[expect(clippy::cast_precision_loss, reason = "an upper bound with room to spare")]
        let chance = (2.0 * params as f64 / WRAP_CHANCE).ln();
        let noise = (2.0 * chance * self.variance(members)).sqrt();
        let reach = f64::from(members) * f64::from(self.sensitivity) + noise + 1.0;
        let needed = (2..64).find(|&b| 2.0_f64.powi(b - 1) > reach).unwrap_or(64);
        let needed = needed.unsigned_abs();
        if needed <= u32::from(bits) {
            return Ok(());
        }
        Err(DistributedError::Wraps { members, needed, bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let tau = Distributed { sensitivity: 1, share, honest }.tau();
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
            matches!(coarse, DistributedError::Coarse(s) if (s - 2.0).abs() < 1e-9),
            "{coarse}"
        );
        let none = Distributed::new(100, 1.0, (2, 2)).expect_err("nobody honest");
        assert!(matches!(none, DistributedError::Honest { .. }), "{none}");
        for z in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Distributed::new(100, z, (4, 0)).is_err());
        }
        let noise = Distributed::new(1_000, 1.0, (8, 0)).expect("valid");
        let wraps = noise.fits(10, 1_000_000, 12).expect_err("too narrow");
        let DistributedError::Wraps { needed, .. } = wraps else { panic!("{wraps}") };
        assert_eq!(needed, 16);
        assert_eq!(noise.fits(10, 1_000_000, 16), Ok(()));
    }
}
