//! How batches come about, tied to what they cost: whoever asks the accountant for a sampled figure shows the very
//! thing that draws the batches.

use super::rdp::AccountantError;
use sha2::{Digest as _, Sha256};
use std::num::NonZero;

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

/// Batches that take turns: every unit is in one of them for good, and chance has no part in it.
///
/// They earn no amplification. What a unit loses is [`super::Ftrl`]'s to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cyclic(NonZero<u32>);

impl Cyclic {
    /// So many batches; `None` for none.
    #[must_use]
    pub const fn new(count: u32) -> Option<Self> {
        match NonZero::new(count) {
            Some(count) => Some(Self(count)),
            None => None,
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.get()
    }

    /// The batch of a unit, which depends on nothing else: the unit's bytes, and how many of the same bytes came
    /// before it. So taking a unit away leaves all others where they are.
    #[must_use]
    pub fn of(self, unit: &[u8], copies_before: u32) -> u32 {
        let hash = Sha256::new()
            .chain_update(b"falaj/batch/v1\0")
            .chain_update(copies_before.to_be_bytes())
            .chain_update(unit)
            .finalize();
        let (head, _) = hash.split_at(8);
        let head = head.iter().fold(0_u64, |sum, b| sum << 8 | u64::from(*b));
        #[expect(clippy::cast_possible_truncation, reason = "less than the number of batches")]
        let batch = (head % u64::from(self.count())) as u32;
        batch
    }

    /// The batch whose turn a step is.
    #[must_use]
    pub fn at(self, step: u64) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "less than the number of batches")]
        let batch = (step % u64::from(self.count())) as u32;
        batch
    }
}

/// How the batches of training come about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Batches {
    /// Drawn afresh for each step.
    Poisson(Poisson),
    /// In turns.
    Cyclic(Cyclic),
}

impl Batches {
    /// The part of all units that a batch holds, on average.
    #[must_use]
    pub fn rate(self) -> f64 {
        match self {
            Self::Poisson(sampling) => sampling.rate(),
            Self::Cyclic(batches) => 1.0 / f64::from(batches.count()),
        }
    }

    /// The draw, for a figure that is amplified by it.
    ///
    /// # Errors
    /// [`AccountantError::Order`] for batches that nobody draws.
    pub const fn drawn(self) -> Result<Poisson, AccountantError> {
        match self {
            Self::Poisson(sampling) => Ok(sampling),
            Self::Cyclic(_) => Err(AccountantError::Order),
        }
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

    #[test]
    fn a_unit_has_its_turn_whoever_else_is_there() {
        let five = Cyclic::new(5).expect("batches");
        let mut sizes = [0_u32; 5];
        for i in 0..5_000_u32 {
            let unit = i.to_be_bytes();
            assert_eq!(five.of(&unit, 0), five.of(&unit, 0));
            sizes[five.of(&unit, 0) as usize] += 1;
        }
        // Standard deviation 28.
        assert!(sizes.iter().all(|s| (850..1_150).contains(s)), "{sizes:?}");
        // Copies of one unit are spread as well.
        let spread: std::collections::BTreeSet<u32> = (0..50).map(|c| five.of(b"u", c)).collect();
        assert_eq!(spread.len(), 5);
        assert_eq!([0, 4, 5, 7].map(|step| five.at(step)), [0, 4, 0, 2]);
        assert!(Cyclic::new(0).is_none());
        assert!(Batches::Cyclic(five).drawn().is_err());
    }
}
