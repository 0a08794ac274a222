//! The plan that meets a target: one of noise, steps and sample rate, the other two given.

use super::{
    pld::{Adjacency, Schedule},
    rdp::{AccountantError, RdpCurve},
    sampling::Poisson,
};

/// How precisely a setting is found, relatively.
const PRECISION: f64 = 1e-6;
/// The largest noise multiplier looked for.
const NOISE_MAX: f64 = 1e4;
/// The least sample rate looked for.
const RATE_MIN: f64 = 1e-6;
/// The most steps counted.
const STEPS_MAX: u64 = 1 << 32;

/// Who reckons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accountant {
    /// Privacy-loss distributions: tight, for a plan that is fixed before its first step.
    Pld(Adjacency),
    /// Rényi divergences, as the sites' ledgers count: for plans that may change.
    Rdp,
}

/// What a plan of Poisson-sampled Gaussian steps must keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The epsilon that must not be exceeded.
    pub epsilon: f64,
    /// The delta at which it is stated.
    pub delta: f64,
    /// By whose figures.
    pub accountant: Accountant,
}

impl Target {
    /// Whether the plan keeps to the target for certain.
    ///
    /// # Errors
    /// [`AccountantError`] when an argument is none.
    pub fn is_met(
        &self,
        sample_rate: f64,
        noise_multiplier: f64,
        steps: u64,
    ) -> Result<bool, AccountantError> {
        if !(self.epsilon.is_finite() && self.epsilon > 0.0) {
            return Err(AccountantError::Epsilon(self.epsilon));
        }
        let sampling = Poisson::new(sample_rate)?;
        match self.accountant {
            Accountant::Pld(adjacency) => Schedule::new(adjacency)
                .poisson_gaussian(sampling, noise_multiplier, steps)?
                .is_within(self.epsilon, self.delta),
            Accountant::Rdp => {
                let cost = RdpCurve::poisson_gaussian(sampling, noise_multiplier, steps)?;
                Ok(cost.epsilon(self.delta)?.value() <= self.epsilon)
            }
        }
    }

    /// The least noise multiplier that meets the target, to six digits, rounded up.
    ///
    /// # Errors
    /// [`AccountantError`] when an argument is none, or nothing up to 10^4 suffices.
    pub fn noise_multiplier(&self, sample_rate: f64, steps: u64) -> Result<f64, AccountantError> {
        let (mut too_little, mut enough) = (0.0, 1.0);
        while !self.is_met(sample_rate, enough, steps)? {
            too_little = enough;
            enough *= 2.0;
            if enough > NOISE_MAX {
                return Err(AccountantError::OutOfReach(NOISE_MAX));
            }
        }
        while enough - too_little > PRECISION * enough {
            let middle = f64::midpoint(too_little, enough);
            if self.is_met(sample_rate, middle, steps)? {
                enough = middle;
            } else {
                too_little = middle;
            }
        }
        Ok(enough)
    }

    /// How many steps keep to the target; at most 2^32 are counted.
    ///
    /// # Errors
    /// [`AccountantError`] when an argument is none.
    pub fn steps(&self, sample_rate: f64, noise_multiplier: f64) -> Result<u64, AccountantError> {
        // Small numbers first: long schedules of a harsh setting are the slow ones to account for.
        let (mut fit, mut probe) = (0, 1);
        while probe <= STEPS_MAX && self.is_met(sample_rate, noise_multiplier, probe)? {
            fit = probe;
            probe *= 2;
        }
        let mut too_many = probe.min(STEPS_MAX + 1);
        while too_many - fit > 1 {
            let middle = u64::midpoint(fit, too_many);
            if self.is_met(sample_rate, noise_multiplier, middle)? {
                fit = middle;
            } else {
                too_many = middle;
            }
        }
        Ok(fit)
    }

    /// The largest sample rate that keeps to the target, to six digits, rounded down.
    ///
    /// # Errors
    /// [`AccountantError`] when an argument is none, or no rate above 10^-6 fits.
    pub fn sample_rate(&self, noise_multiplier: f64, steps: u64) -> Result<f64, AccountantError> {
        if self.is_met(1.0, noise_multiplier, steps)? {
            return Ok(1.0);
        }
        if !self.is_met(RATE_MIN, noise_multiplier, steps)? {
            return Err(AccountantError::NoSampleRate(RATE_MIN));
        }
        let (mut fit, mut too_much) = (RATE_MIN, 1.0);
        while too_much - fit > PRECISION * fit {
            // By ratios first: the answer may be small.
            let middle = if too_much > 4.0 * fit {
                (fit * too_much).sqrt()
            } else {
                f64::midpoint(fit, too_much)
            };
            if self.is_met(middle, noise_multiplier, steps)? {
                fit = middle;
            } else {
                too_much = middle;
            }
        }
        Ok(fit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const TIGHT: Accountant = Accountant::Pld(Adjacency::AddOrRemove);

    #[test]
    fn the_least_noise_agrees_with_the_reference() {
        let file: Value =
            serde_json::from_str(include_str!("../../testdata/dp_accounting.json")).expect("JSON");
        for case in file["calibration"].as_array().expect("a list") {
            let number = |k: &str| case[k].as_f64().expect("a number");
            let target =
                Target { epsilon: number("target_eps"), delta: number("delta"), accountant: TIGHT };
            let steps = case["steps"].as_u64().expect("steps");
            let found = target.noise_multiplier(number("q"), steps).expect("reachable");
            let theirs = number("sigma_pld");
            assert!((found / theirs - 1.0).abs() < 1e-3, "{}: {found}, {theirs}", case["id"]);
        }
    }

    #[test]
    fn what_is_found_fits_and_a_little_more_does_not() {
        for accountant in [TIGHT, Accountant::Pld(Adjacency::Substitute), Accountant::Rdp] {
            let target = Target { epsilon: 2.0, delta: 1e-5, accountant };
            let fits = |q, noise, t| target.is_met(q, noise, t).expect("valid");
            let noise = target.noise_multiplier(0.1, 200).expect("reachable");
            assert!(fits(0.1, noise, 200) && !fits(0.1, noise * 0.999_99, 200), "{noise}");
            let steps = target.steps(0.01, 1.0).expect("valid");
            assert!(steps > 0 && fits(0.01, 1.0, steps) && !fits(0.01, 1.0, steps + 1), "{steps}");
            let rate = target.sample_rate(1.0, 500).expect("reachable");
            assert!(fits(rate, 1.0, 500) && !fits(rate * 1.000_01, 1.0, 500), "{rate}");
        }
    }

    #[test]
    fn a_target_out_of_reach_is_said_to_be_so() {
        let target = |epsilon, accountant| Target { epsilon, delta: 1e-5, accountant };
        for accountant in [TIGHT, Accountant::Rdp] {
            assert_eq!(target(0.01, accountant).steps(1.0, 0.5), Ok(0));
            let noise = target(1e-9, accountant).noise_multiplier(1.0, 1_000_000);
            assert_eq!(noise, Err(AccountantError::OutOfReach(NOISE_MAX)));
            let rate = target(1e-9, accountant).sample_rate(0.3, 1_000_000);
            assert_eq!(rate, Err(AccountantError::NoSampleRate(RATE_MIN)));
            for epsilon in [-1.0, 0.0, f64::NAN, f64::INFINITY] {
                assert!(target(epsilon, accountant).steps(0.1, 1.0).is_err(), "{epsilon}");
            }
            assert!(target(1.0, accountant).noise_multiplier(0.0, 1).is_err());
            assert!(target(1.0, accountant).steps(0.1, 0.0).is_err());
        }
    }
}
