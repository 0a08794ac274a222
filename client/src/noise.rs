//! Noise from OpenDP: privacy maps and exact samplers for what leaves beside the training noise.
//!
//! OpenDP's samplers draw from the operating system's randomness themselves, which is why they are called
//! here and not in `falaj-core`.

use falaj_core::dp::{Noise, NoiseError};
use opendp::{
    domains::{AtomDomain, VectorDomain},
    measurements::{make_gaussian, make_laplace},
    measures::{MaxDivergence, ZeroConcentratedDivergence},
    metrics::{L1Distance, L2Distance},
};

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
        let domain = VectorDomain::new(AtomDomain::<i64>::default());
        let metric = L2Distance::<f64>::default();
        let gaussian =
            make_gaussian::<_, _, ZeroConcentratedDivergence>(domain, metric, sigma, None);
        let noised = gaussian.map_err(failed)?.invoke(&values.to_vec()).map_err(failed)?;
        values.copy_from_slice(&noised);
        Ok(())
    }
}

/// What OpenDP's privacy map says a discrete Gaussian of scale `sigma` costs at this L2 sensitivity, in
/// rho of zero-concentrated DP.
///
/// # Errors
/// [`NoiseError`] when OpenDP refuses the settings.
pub fn gaussian_rho(sensitivity: f64, sigma: f64) -> Result<f64, NoiseError> {
    let domain = VectorDomain::new(AtomDomain::<i64>::default());
    let metric = L2Distance::<f64>::default();
    make_gaussian::<_, _, ZeroConcentratedDivergence>(domain, metric, sigma, None)
        .map_err(failed)?
        .map(&sensitivity)
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_privacy_map_is_the_gaussian_one_and_never_smaller() {
        let rho = gaussian_rho(100.0, 200.0).expect("valid");
        assert!((0.125..0.125_001).contains(&rho), "{rho}");
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
