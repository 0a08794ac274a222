//! A clip norm that follows a quantile of the gradients' norms (Andrew et al. 2021).
//!
//! Each step also releases how many records of the batch were within the clip norm, with noise, and moves the
//! norm towards the quantile. Counting ±1/2 for each record, the sum of the clipped gradients and the count are
//! one Gaussian release whose noise multiplier `z` is made of the two (theorem 1 there):
//! `z^-2 = z_sum^-2 + (2 sigma_count)^-2`. So the study states `z`, which the accountant charges, and the sum
//! gets the little more noise that pays for the count.

/// How the clip norm moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptiveClipping {
    /// The share of records that are to be within the clip norm, above 0 and below 1.
    pub quantile: f64,
    /// How fast the norm's logarithm moves with the share's distance from the quantile.
    pub learning_rate: f64,
    /// Standard deviation of the noise on the count, in records.
    pub count_noise: f64,
}

/// The norm stays within this factor of where it began.
const FACTOR_MAX: f64 = 1024.0;
/// Of less noise the discrete Gaussian is no stand-in for the one that is accounted.
const COUNT_NOISE_MIN: f64 = 2.0;

impl AdaptiveClipping {
    /// What is wrong with these settings under a noise multiplier, if anything.
    #[must_use]
    pub fn problem(&self, noise_multiplier: f64) -> Option<&'static str> {
        let share = self.quantile > 0.0 && self.quantile < 1.0;
        let rate = self.learning_rate > 0.0 && self.learning_rate <= 1.0;
        let noise = self.count_noise.is_finite()
            && self.count_noise >= COUNT_NOISE_MIN.max(0.51 * noise_multiplier);
        [
            (share, "the quantile must be above 0 and below 1, for example 0.5"),
            (rate, "the learning rate must be above 0 and at most 1, for example 0.2"),
            (
                noise,
                "the noise on the count must be at least 2 records and more than half the noise multiplier: a twentieth of a usual batch costs next to nothing",
            ),
        ]
        .into_iter()
        .find_map(|(good, why)| (!good).then_some(why))
    }

    /// The noise multiplier of the sum of gradients, where both releases together are to have this one.
    /// Infinite where the count alone has less noise than that.
    #[must_use]
    pub fn noise_multiplier_of_sum(&self, noise_multiplier: f64) -> f64 {
        let left = noise_multiplier.powi(-2) - (2.0 * self.count_noise).powi(-2);
        // Rounded up: more noise, never less.
        if left > 0.0 { left.powf(-0.5) * (1.0 + 1e-12) } else { f64::INFINITY }
    }

    /// The scale of the noise on the count, which is in halves of a record.
    #[must_use]
    pub const fn count_scale(&self) -> f64 {
        2.0 * self.count_noise
    }

    /// The next clip norm, after a step in which `halves` came out as the noised count of records within the
    /// norm less those beyond it, in a batch of some `batch` records.
    #[must_use]
    pub fn next(&self, (clip_norm, first): (f64, f64), halves: i64, batch: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let within = (0.5 + halves as f64 / (2.0 * batch)).clamp(0.0, 1.0);
        let moved = clip_norm * (-self.learning_rate * (within - self.quantile)).exp();
        moved.clamp(first / FACTOR_MAX, first * FACTOR_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: AdaptiveClipping =
        AdaptiveClipping { quantile: 0.5, learning_rate: 0.2, count_noise: 10.0 };

    #[test]
    fn sum_and_count_together_have_the_noise_that_is_charged() {
        for z in [0.3, 1.0, 5.0, 19.0] {
            let sum = HALF.noise_multiplier_of_sum(z);
            assert!(sum > z, "{sum}");
            // Moved by one record: 1 in the sum's units, 1 in halves of a record.
            let both = (sum.powi(-2) + HALF.count_scale().powi(-2)).powf(-0.5);
            assert!((both / z - 1.0).abs() < 1e-9 && both >= z, "{both}");
        }
        assert!(HALF.noise_multiplier_of_sum(21.0).is_infinite());
    }

    #[test]
    fn the_norm_comes_to_the_quantile_and_stays_in_bounds() {
        // Norms spread evenly over 0 to 10: the quantile is 8.
        let clipping = AdaptiveClipping { quantile: 0.8, ..HALF };
        let mut norm = 0.1;
        for _ in 0..400 {
            #[expect(clippy::cast_possible_truncation, reason = "a small count")]
            let within = (100.0 * f64::min(norm / 10.0, 1.0)).round() as i64;
            norm = clipping.next((norm, 0.1), 2 * within - 100, 100.0);
        }
        assert!((norm - 8.0).abs() < 0.2, "{norm}");
        for (halves, bound) in [(i64::MIN / 4, 1024.0), (i64::MAX / 4, 1.0 / 1024.0)] {
            let mut norm = 1.0;
            (0..200).for_each(|_| norm = HALF.next((norm, 1.0), halves, 10.0));
            assert!((norm / bound - 1.0).abs() < 1e-12, "{norm}");
        }
    }

    #[test]
    fn settings_without_meaning_are_named() {
        assert_eq!(HALF.problem(1.0), None);
        let bad = [
            AdaptiveClipping { quantile: 1.0, ..HALF },
            AdaptiveClipping { learning_rate: 0.0, ..HALF },
            AdaptiveClipping { count_noise: 1.0, ..HALF },
            AdaptiveClipping { count_noise: f64::NAN, ..HALF },
        ];
        assert!(bad.iter().all(|b| b.problem(1.0).is_some()));
        assert!(HALF.problem(20.0).is_some());
    }
}
