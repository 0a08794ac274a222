//! An exact sampler of the discrete Gaussian, in whole numbers from the first bit to the last.
//!
//! Canonne, Kamath, Steinke 2020 ("The discrete Gaussian for differential privacy"), algorithms 1 to 3.
//! Every coin is decided by comparing random bits with a fraction of whole numbers, as many bits as it
//! takes, so there is no floating-point distance between the noise that is drawn and the noise that the
//! accountant charges. How long a draw takes depends on its value: draw where nobody can time single
//! values.

use super::{Noise, NoiseError};
use rand_core::{CryptoRng, RngCore};

/// The smallest scale; below it nearly every draw is zero, and a mechanism has no use for it.
const SIGMA_MIN: f64 = 0.0625;
/// The largest scale, so that every product below fits its 128 bits.
const SIGMA_MAX: f64 = 281_474_976_710_656.0;
/// From this scale on, whole numbers are fine enough; below, the scale keeps 24 bits.
const WHOLE_FROM: f64 = 16_777_216.0;
/// Random words that one draw may take. A draw takes about 20; needing this many has a chance far below
/// 2^-100, so it means that the generator is broken.
const WORDS_MAX: u32 = 4_096;
/// Whole multiples of the proposal's scale that a draw may reach: a chance below e^-255.
const TAIL_MAX: u64 = 256;

/// The discrete Gaussian as a [`Noise`], drawing from a generator that is given.
pub struct ExactDiscreteGaussian<R> {
    rng: R,
}

impl<R: RngCore + CryptoRng> ExactDiscreteGaussian<R> {
    /// A sampler on `rng`. The noise is as unpredictable as the generator: seed it from the operating
    /// system, and never twice the same.
    #[must_use]
    pub const fn new(rng: R) -> Self {
        Self { rng }
    }
}

impl<R: RngCore + CryptoRng> Noise for ExactDiscreteGaussian<R> {
    /// Scales lie between 2^-4 and 2^48. The scale that is drawn at is `sigma` rounded up by at most
    /// 2^-23 of itself: more noise, never less.
    fn add(&mut self, values: &mut [i64], sigma: f64) -> Result<(), NoiseError> {
        let scale = Scale::at_least(sigma)?;
        for value in values {
            let mut words = Words { rng: &mut self.rng, left: WORDS_MAX };
            let drawn = scale.draw(&mut words).map_err(|Exhausted| {
                NoiseError("the random generator repeats itself: seed it anew".into())
            })?;
            *value = value.saturating_add(drawn);
        }
        Ok(())
    }
}

/// A draw took more words than chance allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exhausted;

/// Random words, of which one draw may take so many.
struct Words<'a, R> {
    rng: &'a mut R,
    left: u32,
}

impl<R: RngCore> Words<'_, R> {
    #[inline]
    fn next(&mut self) -> Result<u64, Exhausted> {
        self.left = self.left.checked_sub(1).ok_or(Exhausted)?;
        Ok(self.rng.next_u64())
    }

    /// Uniform in `0..below`: the remainder of a word, unless the word lies in the last, partial period.
    #[inline]
    fn uniform(&mut self, below: u64) -> Result<u64, Exhausted> {
        let unusable = (u64::MAX % below + 1) % below;
        loop {
            let word = self.next()?;
            if word <= u64::MAX - unusable {
                return Ok(word % below);
            }
        }
    }

    /// True with chance `num / den`, for `num <= den < 2^126`: whether a uniform real in 0..1, of which
    /// 64 more bits are drawn while they do not decide, lies below the fraction.
    #[inline]
    fn coin(&mut self, mut num: u128, den: u128) -> Result<bool, Exhausted> {
        debug_assert!(num <= den && den < 1 << 126);
        let (den_high, den_low) = (den >> 64, den & u128::from(u64::MAX));
        loop {
            // The real lies in [word, word + 1) · 2^-64. Compare word · den with num · 2^64, in 192 bits.
            let word = u128::from(self.next()?);
            let low = word * den_low;
            let high = word * den_high + (low >> 64);
            if high >= num {
                return Ok(false);
            }
            let gap = num - high;
            if gap > den_high + 1 {
                return Ok(true);
            }
            // What of the fraction lies above the word, in units of 2^-64 / den.
            let rest = (gap << 64) - (low & u128::from(u64::MAX));
            if rest >= den {
                return Ok(true);
            }
            num = rest;
        }
    }

    /// True with chance `exp(-num / den)` (algorithm 1), for `den < 2^113`.
    #[inline]
    fn coin_exp(&mut self, num: u128, den: u128) -> Result<bool, Exhausted> {
        for _ in 0..num / den {
            if !self.coin_exp_unit(1, 1)? {
                return Ok(false);
            }
        }
        self.coin_exp_unit(num % den, den)
    }

    /// True with chance `exp(-num / den)`, for `num <= den`: the parity of how long coins of chance
    /// `num / (k · den)` keep falling on one side.
    #[inline]
    fn coin_exp_unit(&mut self, num: u128, den: u128) -> Result<bool, Exhausted> {
        let mut k = 1;
        while self.coin(num, den * k)? {
            k += 1;
        }
        Ok(k % 2 == 1)
    }
}

/// A scale as whole numbers: `sigma = whole / 2^shift`, and the proposal's scale `t` beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    whole: u64,
    shift: u32,
    /// Scale of the discrete Laplace that draws are proposed from.
    t: u64,
}

impl Scale {
    /// The smallest representable scale that is at least `sigma`.
    fn at_least(sigma: f64) -> Result<Self, NoiseError> {
        if !(SIGMA_MIN..=SIGMA_MAX).contains(&sigma) {
            return Err(NoiseError(format!(
                "a scale of {sigma} steps of the grid lies outside {SIGMA_MIN} to {SIGMA_MAX}: choose `sealing.range` and `sealing.bits` so that the grid is finer"
            )));
        }
        let mut shift = 0;
        let mut scaled = sigma;
        // Doubling is exact, and sigma is at least 2^-4.
        while scaled < WHOLE_FROM / 2.0 {
            scaled *= 2.0;
            shift += 1;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive whole number of at most 2^48"
        )]
        let whole = scaled.ceil() as u64;
        let t = if shift == 0 { whole } else { (whole >> shift) + 1 };
        Ok(Self { whole, shift, t })
    }

    /// One draw (algorithm 3): propose from the discrete Laplace, accept with chance
    /// `exp(-(|y| - sigma²/t)² / 2 sigma²)`.
    fn draw<R: RngCore>(&self, words: &mut Words<'_, R>) -> Result<i64, Exhausted> {
        let t = u128::from(self.t);
        let squared = u128::from(self.whole) * u128::from(self.whole);
        loop {
            let (size, negative) = self.propose(words)?;
            let y = u128::from(size);
            let (distance, den) = if self.shift == 0 {
                // t is sigma: the exponent is (|y| - sigma)² / 2 sigma².
                (y.abs_diff(t), 2 * squared)
            } else {
                // With sigma² = squared / 4^shift, both sides times 4^shift.
                let four = 2 * self.shift;
                (((y * t) << four).abs_diff(squared), (2 * squared * t * t) << four)
            };
            if words.coin_exp(distance * distance, den)? {
                let value = i64::try_from(size).map_err(|_| Exhausted)?;
                return Ok(if negative { -value } else { value });
            }
        }
    }

    /// Size and sign of a discrete Laplace draw of scale `t` (algorithm 2).
    #[inline]
    fn propose<R: RngCore>(&self, words: &mut Words<'_, R>) -> Result<(u64, bool), Exhausted> {
        loop {
            let offset = words.uniform(self.t)?;
            if !words.coin_exp_unit(u128::from(offset), u128::from(self.t))? {
                continue;
            }
            let mut whole = 0;
            while words.coin_exp_unit(1, 1)? {
                whole += 1;
                if whole == TAIL_MAX {
                    return Err(Exhausted);
                }
            }
            let size = offset + self.t * whole;
            let negative = words.next()? >> 63 == 1;
            if size > 0 || !negative {
                return Ok((size, negative));
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "statistics of small numbers")]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;
    use std::collections::BTreeMap;

    /// Gives these words and then repeats the last one.
    struct Script(Vec<u64>);
    impl RngCore for Script {
        fn next_u32(&mut self) -> u32 {
            u32::try_from(self.next_u64() >> 32).expect("32 bits")
        }
        fn next_u64(&mut self) -> u64 {
            if self.0.len() > 1 { self.0.remove(0) } else { self.0[0] }
        }
        fn fill_bytes(&mut self, dst: &mut [u8]) {
            dst.fill(0);
        }
    }
    impl CryptoRng for Script {}

    fn coin(words: &[u64], num: u128, den: u128) -> Result<bool, Exhausted> {
        Words { rng: &mut Script(words.to_vec()), left: 8 }.coin(num, den)
    }

    fn draws(seed: u64, sigma: f64, n: usize) -> Vec<i64> {
        let mut values = vec![0; n];
        ExactDiscreteGaussian::new(ChaCha20Rng::seed_from_u64(seed))
            .add(&mut values, sigma)
            .expect("noise");
        values
    }

    /// Chi-square of `draws` against the exact probabilities, in bins of `width`, as a standard normal
    /// deviate (Wilson, Hilferty 1931).
    fn deviate(draws: &[i64], sigma: f64, width: i64) -> f64 {
        let mut found = BTreeMap::<i64, f64>::new();
        for d in draws {
            *found.entry(d.div_euclid(width)).or_default() += 1.0;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a small range")]
        let reach = (12.0 * sigma).ceil() as i64 + width;
        let density = |x: i64| (-(x as f64).powi(2) / (2.0 * sigma * sigma)).exp();
        let mut expected = BTreeMap::<i64, f64>::new();
        for x in -reach..=reach {
            *expected.entry(x.div_euclid(width)).or_default() += density(x);
        }
        let total: f64 = expected.values().sum();
        let (mut chi, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
        for (bin, weight) in &expected {
            let e = weight / total * draws.len() as f64;
            let o = found.get(bin).copied().unwrap_or(0.0);
            if e < 10.0 {
                rare = (rare.0 + o, rare.1 + e);
            } else {
                chi += (o - e).powi(2) / e;
                cells += 1.0;
            }
        }
        if rare.1 > 1.0 {
            chi += (rare.0 - rare.1).powi(2) / rare.1;
            cells += 1.0;
        }
        let df: f64 = cells - 1.0;
        ((chi / df).cbrt() - (1.0 - 2.0 / (9.0 * df))) / (2.0 / (9.0 * df)).sqrt()
    }

    #[test]
    fn draws_follow_the_exact_probabilities() {
        // Scales of at most 24 bits are drawn at exactly, so the test is against the scale asked for.
        for (seed, sigma, width) in
            [(1, 0.5, 1), (2, 1.0, 1), (3, 0.375, 1), (4, 4.25, 1), (5, 31.875, 3), (6, 1000.5, 80)]
        {
            let z = deviate(&draws(seed, sigma, 200_000), sigma, width);
            assert!(z.abs() < 4.0, "sigma {sigma}: {z} standard deviations");
        }
    }

    #[test]
    fn the_test_tells_a_scale_that_is_one_percent_off() {
        assert!(deviate(&draws(7, 4.3125, 200_000), 4.25, 1) > 4.0);
    }

    #[test]
    fn large_scales_have_their_moments_and_fine_last_bits() {
        let sigma = 2.0_f64.powi(40) + 0.5;
        let values = draws(8, sigma, 50_000);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| v as f64).sum::<f64>() / n / sigma;
        let variance = values.iter().map(|&v| (v as f64 / sigma).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 5.0 / n.sqrt(), "{mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{variance}");
        for bit in 0..8 {
            let ones = values.iter().filter(|&&v| v >> bit & 1 == 1).count() as f64;
            assert!((ones / n - 0.5).abs() < 2.5 / n.sqrt(), "bit {bit}: {ones} of {n}");
        }
    }

    #[test]
    fn a_coin_that_a_word_does_not_decide_takes_the_next_one() {
        // A third is 0.5555… in base 2^64, five being repeated in every digit of base 16.
        const THIRD: u64 = 0x5555_5555_5555_5555;
        assert_eq!(coin(&[THIRD - 1], 1, 3), Ok(true));
        assert_eq!(coin(&[THIRD + 1], 1, 3), Ok(false));
        assert_eq!(coin(&[THIRD, THIRD - 1], 1, 3), Ok(true));
        assert_eq!(coin(&[THIRD, THIRD, THIRD + 1], 1, 3), Ok(false));
        let large = 1_u128 << 100;
        assert_eq!(coin(&[THIRD, THIRD - 1], large, 3 * large), Ok(true));
        assert_eq!(coin(&[THIRD, THIRD + 1], large, 3 * large), Ok(false));
        assert_eq!((coin(&[0], 0, 7), coin(&[u64::MAX], 7, 7)), (Ok(false), Ok(true)));
        // One half ends with the first word: nothing of it is left for the second.
        assert_eq!(coin(&[1 << 63, 0], 1, 2), Ok(false));
        assert_eq!(coin(&[(1 << 63) - 1], 1, 2), Ok(true));
    }

    #[test]
    fn the_scale_is_rounded_up_and_by_almost_nothing() {
        for sigma in [0.0625, 0.1, 1.0, 1.000_000_1, 77.7, 16_777_215.3, 1e9 + 0.1, 2.8e14] {
            let scale = Scale::at_least(sigma).expect("in range");
            let drawn_at =
                scale.whole as f64 / 2.0_f64.powi(i32::try_from(scale.shift).expect("small"));
            assert!(drawn_at >= sigma && drawn_at <= sigma * (1.0 + 1.2e-7), "{sigma}: {drawn_at}");
        }
    }

    #[test]
    fn no_noise_comes_from_a_broken_scale_or_a_broken_generator() {
        let mut values = [0; 2];
        for sigma in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.01, 1e15] {
            let rng = ChaCha20Rng::seed_from_u64(1);
            let err = ExactDiscreteGaussian::new(rng).add(&mut values, sigma).expect_err("refused");
            assert!(err.to_string().contains("a scale of"), "{err}");
        }
        for stuck in [0, u64::MAX] {
            let mut noise = ExactDiscreteGaussian::new(Script(vec![stuck]));
            let drawn = noise.add(&mut values, 10.0);
            assert!(drawn.is_err(), "a generator stuck at {stuck} gave {values:?}");
        }
    }

    #[test]
    fn the_same_generator_gives_the_same_noise_and_another_gives_another() {
        assert_eq!(draws(9, 50.0, 100), draws(9, 50.0, 100));
        assert_ne!(draws(9, 50.0, 100), draws(10, 50.0, 100));
    }
}
