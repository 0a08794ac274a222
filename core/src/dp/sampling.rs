//! Sampling that earns amplification, tied to the draw: whoever asks the accountant for a sampled figure shows the
//! very thing that draws the batches.

use super::rdp::AccountantError;

/// Poisson sampling: every unit enters every batch by its own coin.
///
/// Shuffled and fixed-size batches are other mechanisms, which lose more; they have no such value, and so no figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Poisson(f64);

impl Poisson {
    /// Every unit in every batch.
    pub const ALL: Self = Self(1.0);

    /// Coins that fall for a unit with chance `rate`.
    ///
    /// # Errors
    /// [`AccountantError::SampleRate`] outside (0, 1].
    pub fn new(rate: f64) -> Result<Self, AccountantError> {
        if rate > 0.0 && rate <= 1.0 {
            Ok(Self(rate))
        } else {
            Err(AccountantError::SampleRate(rate))
        }
    }

    /// The chance of a unit to be in a batch.
    #[must_use]
    pub const fn rate(self) -> f64 {
        self.0
    }

    /// One batch of `units`, in order; `coin` gives uniform numbers in [0, 1), one for each unit.
    pub fn draw(self, units: usize, mut coin: impl FnMut() -> f64) -> Vec<usize> {
        (0..units).filter(|_| coin() < self.0).collect()
    }
}

/// For tests of the accountants.
#[cfg(test)]
pub(super) fn rate(rate: f64) -> Poisson {
    Poisson::new(rate).expect("a chance")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_that_is_no_chance_is_refused() {
        for rate in [0.0, -0.1, 1.000_001, f64::NAN, f64::INFINITY] {
            assert!(Poisson::new(rate).is_err(), "{rate}");
        }
    }

    #[test]
    fn every_unit_has_a_coin_of_its_own() {
        let sampling = Poisson::new(0.5).expect("a chance");
        let mut coins = [0.1, 0.9, 0.49, 0.5, 0.0].into_iter();
        assert_eq!(sampling.draw(5, || coins.next().expect("five coins")), [0, 2, 4]);
        assert_eq!(coins.next(), None);
        assert_eq!(Poisson::ALL.draw(3, || 0.999_999), [0, 1, 2]);
    }
}
