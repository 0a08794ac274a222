//! Noise under OpenDP's privacy maps, for what leaves beside the training noise.
//!
//! Counts and other small releases use OpenDP's samplers; whole updates use the core's discrete Gaussian
//! inside an OpenDP measurement. Both draw from the operating system's randomness, which is why they are
//! called here and not in `falaj-core`.

use falaj_core::dp::{ExactDiscreteGaussian, Noise, NoiseError};
use opendp::{
    core::{Function, Measurement},
    domains::{AtomDomain, VectorDomain},
    error::ErrorVariant,
    measurements::{make_gaussian, make_laplace},
    measures::{MaxDivergence, ZeroConcentratedDivergence},
    metrics::{L1Distance, L2Distance},
};
use std::num::NonZero;
use zeroize::Zeroizing;

/// Adds discrete Laplace noise to counts.
pub trait NoiseSource {
    /// Noise of this scale on each count.
    ///
    /// # Errors
    /// [`NoiseError`]; the counts must not be used then.
    fn laplace(&mut self, counts: &mut [i64], scale: f64) -> Result<(), NoiseError>;
}

/// OpenDP's exact samplers.
#[derive(Clone, Copy, Debug)]
pub struct OpenDp;

fn failed(e: impl std::fmt::Display) -> NoiseError {
    NoiseError(e.to_string())
}

impl NoiseSource for OpenDp {
    fn laplace(&mut self, counts: &mut [i64], scale: f64) -> Result<(), NoiseError> {
        let domain = VectorDomain::new(AtomDomain::<i64>::default());
        let metric = L1Distance::<i64>::default();
        let laplace = make_laplace::<_, _, MaxDivergence>(domain, metric, scale, None);
        let noised = laplace.map_err(failed)?.invoke(&counts.to_vec()).map_err(failed)?;
        counts.copy_from_slice(&noised);
        Ok(())
    }
}

impl Noise for OpenDp {
    fn add(&mut self, values: &mut [i64], sigma: f64) -> Result<(), NoiseError> {
        let noised = gaussian(sigma)?.invoke(&values.to_vec()).map_err(failed)?;
        values.copy_from_slice(&noised);
        Ok(())
    }
}

/// OpenDP's measurement of integers by the discrete Gaussian.
type Gaussian = Measurement<
    VectorDomain<AtomDomain<i64>>,
    L2Distance<f64>,
    ZeroConcentratedDivergence,
    Vec<i64>,
>;

/// OpenDP's own discrete Gaussian: its privacy map, and its sampler.
fn opendp_gaussian(sigma: f64) -> Result<Gaussian, NoiseError> {
    let domain = VectorDomain::new(AtomDomain::<i64>::default());
    let metric = L2Distance::<f64>::default();
    make_gaussian::<_, _, ZeroConcentratedDivergence>(domain, metric, sigma, None).map_err(failed)
}

/// The same measurement with our sampler, which draws from the same distribution some hundred times as
/// fast: the privacy map stays OpenDP's. Each release is keyed afresh by the operating system.
fn gaussian(sigma: f64) -> Result<Gaussian, NoiseError> {
    let theirs = opendp_gaussian(sigma)?;
    let release = Function::new_fallible(move |values: &Vec<i64>| {
        let refused = |e: String| opendp::error::Error {
            message: Some(e),
            ..ErrorVariant::FailedFunction.into()
        };
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key).map_err(|e| refused(e.to_string()))?;
        let threads = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        let mut sampler = ExactDiscreteGaussian::new(*key).on_threads(threads);
        let mut noised = values.clone();
        sampler.add(&mut noised, sigma).map_err(|e| refused(e.to_string()))?;
        Ok(noised)
    });
    let map = theirs.privacy_map.clone();
    Measurement::new(
        theirs.input_domain.clone(),
        theirs.input_metric.clone(),
        theirs.output_measure.clone(),
        release,
        map,
    )
    .map_err(failed)
}

/// What OpenDP's privacy map says a discrete Gaussian of scale `sigma` costs at this L2 sensitivity, in
/// rho of zero-concentrated DP.
///
/// # Errors
/// [`NoiseError`] when OpenDP refuses the settings.
pub fn gaussian_rho(sensitivity: f64, sigma: f64) -> Result<f64, NoiseError> {
    gaussian(sigma)?.map(&sensitivity).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_privacy_map_is_the_gaussian_one_and_never_smaller() {
        let rho = gaussian_rho(100.0, 200.0).expect("valid");
        assert!((0.125..0.125_001).contains(&rho), "{rho}");
    }

    /// Probabilities of draws at most as far as each of `cuts` from zero, in both samplers' draws.
    fn below(draws: &[i64], cuts: &[i64]) -> Vec<f64> {
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let part =
            |cut: &i64| draws.iter().filter(|d| *d <= cut).count() as f64 / draws.len() as f64;
        cuts.iter().map(part).collect()
    }

    #[test]
    fn our_sampler_and_opendps_draw_from_one_distribution() {
        // Two-sample Kolmogorov-Smirnov at 1e-4: 2.23 sqrt(2 / n), at every value that occurs.
        const DRAWS: usize = 20_000;
        for sigma in [0.5, 1.0, 4.25, 100.0, 65_536.0, 1e9] {
            let zeros = vec![0; DRAWS];
            let ours = gaussian(sigma).expect("valid").invoke(&zeros).expect("drawn");
            let theirs = opendp_gaussian(sigma).expect("valid").invoke(&zeros).expect("drawn");
            let mut cuts: Vec<i64> = ours.iter().chain(&theirs).copied().collect();
            cuts.sort_unstable();
            cuts.dedup();
            let step = cuts.len().div_ceil(400);
            let cuts: Vec<i64> = cuts.into_iter().step_by(step).collect();
            let (a, b) = (below(&ours, &cuts), below(&theirs, &cuts));
            let farthest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(farthest < 2.23 * 0.01, "sigma {sigma}: {farthest}");
        }
    }

    #[test]
    fn noise_has_the_scale_that_was_asked_for() {
        let mut values = vec![0_i64; 4_000];
        OpenDp.add(&mut values, 50.0).expect("noised");
        let squares: i64 = values.iter().map(|v| v * v).sum();
        // A variance of 2,500 over 4,000 draws.
        assert!((45 * 45..55 * 55).contains(&(squares / 4_000)), "{squares}");
    }
}
