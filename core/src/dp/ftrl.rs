//! DP-FTRL: training with batches in a fixed order, whose noise is correlated over the steps (Kairouz et al. 2021).
//!
//! For a site that cannot draw its batches at random, or may not rely on the draw being secret. Its records lie in
//! `b` batches that take turns ([`Cyclic`]), so that one record takes part in every `b`-th step of `T` and no other.
//! With `x` the steps' sums of clipped gradients, the site releases `C x + z` row by row: `z` is discrete Gaussian
//! noise, and `C` is banded, lower triangular and Toeplitz with ones on its diagonal. `C^-1 (C x + z)`, which is
//! post-processing, is `x` under noise of which a step takes back most of what the steps before it added.
//!
//! # The factor
//! The first `p <= b` coefficients of `(1 - q)^(-1/2)`, the square root of the matrix of prefix sums (Kalinin,
//! Lampert 2024), where `p` is the one among the powers of two up to [`BANDS_MAX`] for which the prefix sums of `x`
//! have the least mean squared error at a given cost.
//!
//! # What it costs
//! Neighbours differ by one record, which moves one row of `x` by at most the clip norm in each of its turns, and
//! every batch is chosen by the record alone. Columns of `C` that are `p` or more apart share no row, so the rows of
//! `C x` that it moves in different turns are different ones, and together they move by at most `S` times the clip
//! norm, with `S²` the squared lengths of the columns of its turns, summed. The first batch has the most turns, and
//! each of them the longest part of its column: its `S²` bounds that of all others, after any number of steps.
//!
//! Each row is released under fresh noise, given all rows before it. So its conditional Rényi divergence of order `a`
//! is at most `a |move|² / 2 sigma²` (Canonne, Kamath, Steinke 2020, proposition 5), whatever was chosen by what was
//! seen before (Denisov et al. 2022, theorem 2.1), and the sum over the rows so far is bounded as above. That is what
//! a Rényi filter needs (Feldman, Zrnic 2021): a stream is charged as it goes on, among other releases.

use super::{
    rdp::{AccountantError, RdpCurve},
    sampling::Cyclic,
};
use std::ops::Range;

/// The most rows that are held back to correlate noise over, which bounds memory: a stream keeps twice as many
/// gradients, less two.
pub const BANDS_MAX: u32 = 16;
/// The most steps of one stream.
pub const STEPS_MAX: u64 = 100_000;

/// How the noise of one stream of steps is correlated.
#[derive(Clone, Debug, PartialEq)]
pub struct Ftrl {
    batches: u64,
    steps: u64,
    /// The first column of `C`, as far as it is not zero.
    factor: Vec<f64>,
}

impl Ftrl {
    /// For a stream of so many steps, between 1 and [`STEPS_MAX`]; `None` outside.
    #[must_use]
    pub fn new(batches: Cyclic, steps: u64) -> Option<Self> {
        if !(1..=STEPS_MAX).contains(&steps) {
            return None;
        }
        let most = batches.count().min(BANDS_MAX);
        (0..=most.ilog2())
            .map(|power| Self {
                batches: batches.count().into(),
                steps,
                factor: square_root(1 << power),
            })
            .min_by(|a, b| a.error().total_cmp(&b.error()))
    }

    /// The coefficients that weigh this step's sum and those before it; the first is 1.
    #[must_use]
    pub fn factor(&self) -> &[f64] {
        &self.factor
    }

    /// How many steps the stream has.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// By how many clip norms one record can move the whole stream, in L2. Rounded up.
    #[must_use]
    pub fn sensitivity(&self) -> f64 {
        self.squared(self.steps).sqrt() * (1.0 + 1e-12)
    }

    /// On how many rows that is, at most: what rounding each row moves the stream by, in squared steps of a grid and
    /// for each coordinate. In the same proportion to the whole after any number of steps, so it scales with the cost.
    #[must_use]
    pub fn rows(&self) -> f64 {
        let column = self.column(self.factor.len());
        #[expect(clippy::cast_precision_loss, reason = "at most 16")]
        let bands = self.factor.len() as f64;
        bands * self.squared(self.steps) / column * (1.0 + 1e-12)
    }

    /// What some steps cost, of a stream whose noise is `noise_multiplier` times what one record can move all of it
    /// by. Over the whole stream that is `1 / 2 noise_multiplier²` in zCDP.
    ///
    /// # Errors
    /// [`AccountantError::NoiseMultiplier`] when it is no positive number.
    pub fn cost(
        &self,
        noise_multiplier: f64,
        steps: Range<u64>,
    ) -> Result<RdpCurve, AccountantError> {
        if !(noise_multiplier.is_finite() && noise_multiplier > 0.0) {
            return Err(AccountantError::NoiseMultiplier(noise_multiplier));
        }
        let moved = self.squared(steps.end) - self.squared(steps.start);
        let share = moved / self.squared(self.steps) * (1.0 + 1e-11);
        if share <= 0.0 {
            return Ok(RdpCurve::zero());
        }
        RdpCurve::zcdp(share / (2.0 * noise_multiplier.powi(2)))
    }

    /// The noise multiplier of a single Gaussian release that tells as much of a record as the first steps of a stream
    /// of this one do.
    #[must_use]
    pub fn noise_multiplier_after(&self, noise_multiplier: f64, steps: u64) -> f64 {
        noise_multiplier * (self.squared(self.steps) / self.squared(steps)).sqrt()
    }

    /// Standard deviation of what is added to a late step's sum, over that of the noise.
    #[must_use]
    pub fn spread(&self) -> f64 {
        self.inverse().map(|v| v * v).sum::<f64>().sqrt()
    }

    /// Root mean squared error of the prefix sums of a stream at a noise multiplier of 1, over the clip norm.
    #[must_use]
    pub fn error(&self) -> f64 {
        let (mut left, mut prefix, mut total) = (self.steps, 0.0, 0.0);
        for v in self.inverse() {
            prefix += v;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let times = left as f64;
            total += times * prefix * prefix;
            left -= 1;
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let steps = self.steps as f64;
        self.sensitivity() * (total / steps).sqrt()
    }

    /// The squared length of the first rows of a column.
    fn column(&self, rows: usize) -> f64 {
        self.factor.iter().take(rows).map(|c| c * c).sum()
    }

    /// What a record of the first batch has moved after so many steps, squared.
    fn squared(&self, steps: u64) -> f64 {
        let (turns, since) = (steps / self.batches, steps % self.batches);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let whole = turns as f64 * self.column(self.factor.len());
        whole + self.column(usize::try_from(since).unwrap_or(usize::MAX))
    }

    /// The first column of `C^-1`, as long as the stream.
    fn inverse(&self) -> impl Iterator<Item = f64> + '_ {
        let mut last = vec![0.0; self.factor.len()];
        (0..self.steps).map(move |step| {
            let known: f64 = self.factor.iter().zip(&last).skip(1).map(|(c, v)| c * v).sum();
            let next = if step == 0 { 1.0 } else { -known };
            // The newest stands second, where the next step's sum begins.
            last.rotate_right(1);
            if let Some(second) = last.get_mut(1) {
                *second = next;
            }
            next
        })
    }
}

/// Coefficients of `(1 - q)^(-1/2)`.
fn square_root(bands: u32) -> Vec<f64> {
    let ratio = |i: u32| f64::from(2 * i - 1) / f64::from(2 * i);
    let mut last = 1.0;
    let next = (1..bands).map(|i| {
        last *= ratio(i);
        last
    });
    std::iter::once(1.0).chain(next).collect()
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
mod tests {
    use super::*;

    fn ftrl(batches: u32, steps: u64, bands: u32) -> Ftrl {
        Ftrl { batches: batches.into(), steps, factor: square_root(bands) }
    }

    /// `C` in full.
    fn matrix(ftrl: &Ftrl) -> Vec<Vec<f64>> {
        let steps = usize::try_from(ftrl.steps).expect("small");
        let entry = |row: usize, column: usize| {
            row.checked_sub(column).and_then(|i| ftrl.factor.get(i)).copied().unwrap_or(0.0)
        };
        (0..steps).map(|row| (0..steps).map(|column| entry(row, column)).collect()).collect()
    }

    #[test]
    fn the_factor_squared_is_the_matrix_of_prefix_sums() {
        let c = square_root(12);
        for n in 0..12 {
            let product: f64 = (0..=n).map(|i| c[i] * c[n - i]).sum();
            assert!((product - 1.0).abs() < 1e-12, "{n}: {product}");
        }
    }

    #[test]
    fn no_record_moves_the_first_rows_by_more_than_is_charged_and_one_of_the_first_batch_does_by_that()
     {
        for (batches, steps, bands) in
            [(1, 5, 1), (4, 4, 4), (4, 17, 4), (5, 23, 4), (8, 30, 2), (16, 50, 16), (9, 3, 8)]
        {
            let ftrl = ftrl(batches, steps, bands);
            let c = matrix(&ftrl);
            for so_far in 1..=steps {
                let moved = |batch: u64| -> f64 {
                    // One unit-length move in each of the batch's turns, each in the worst direction: the same one.
                    let small = |t| usize::try_from(t).expect("small");
                    let turns: Vec<usize> =
                        (batch..steps).step_by(batches as usize).map(small).collect();
                    c.iter()
                        .take(usize::try_from(so_far).expect("small"))
                        .map(|row| turns.iter().map(|t| row[*t]).sum::<f64>().powi(2))
                        .sum()
                };
                let most = (0..u64::from(batches)).map(moved).fold(0.0, f64::max);
                let charged = ftrl.squared(so_far);
                assert!((most - charged).abs() < 1e-12, "{ftrl:?} after {so_far}: {most}");
                assert!((moved(0) - charged).abs() < 1e-12);
            }
            // Rows that are moved, each by at most one step more for being rounded.
            let rows =
                c.iter().filter(|row| row.iter().step_by(batches as usize).any(|v| *v > 0.0));
            assert!(ftrl.rows() >= rows.count() as f64 - 1e-9, "{ftrl:?}");
        }
    }

    #[test]
    fn rounds_add_up_to_the_stream_and_the_stream_to_one_gaussian() {
        let ftrl = Ftrl::new(Cyclic::new(7).expect("batches"), 100).expect("a stream");
        let rounds = (0..20).map(|r| ftrl.cost(1.7, 5 * r..5 * r + 5).expect("a cost"));
        let sum = rounds.fold(RdpCurve::zero(), |sum, cost| sum.compose(&cost));
        let whole = RdpCurve::zcdp(1.0 / (2.0 * 1.7 * 1.7)).expect("a cost");
        let (sum, whole) = (sum.epsilon(1e-5).expect("e"), whole.epsilon(1e-5).expect("e"));
        assert!(sum >= whole && sum.value() < whole.value() * (1.0 + 1e-6), "{sum:?}, {whole:?}");
        let first = ftrl.noise_multiplier_after(1.7, 12);
        let first = RdpCurve::zcdp(1.0 / (2.0 * first * first)).expect("a cost");
        let (first, cost) = (first.epsilon(1e-5), ftrl.cost(1.7, 0..12).expect("a cost"));
        let ratio = cost.epsilon(1e-5).expect("e").value() / first.expect("e").value();
        assert!((1.0 - 1e-9..1.0 + 1e-6).contains(&ratio), "{ratio}");
        assert!(ftrl.cost(0.0, 0..5).is_err());
        // No row of a record of the first batch: it was charged for before those of the others came.
        let quiet = Ftrl { factor: square_root(2), ..ftrl };
        assert_eq!(quiet.cost(1.0, 3..5).expect("a cost"), RdpCurve::zero());
    }

    #[test]
    fn the_error_is_that_of_the_matrices_themselves() {
        for (batches, steps, bands) in [(4, 9, 4), (8, 20, 1), (16, 33, 8)] {
            let ftrl = ftrl(batches, steps, bands);
            let (c, n) = (matrix(&ftrl), usize::try_from(steps).expect("small"));
            // Prefix sums of C^-1, column by column, by forward substitution.
            let mut squares = 0.0;
            let mut last = 0.0;
            for column in 0..n {
                let mut inverse = vec![0.0; n];
                for row in 0..n {
                    let known: f64 = (0..row).map(|j| c[row][j] * inverse[j]).sum();
                    inverse[row] = f64::from(u8::from(row == column)) - known;
                }
                let mut prefix = 0.0;
                for v in &inverse {
                    prefix += v;
                    squares += prefix * prefix;
                }
                last += inverse[n - 1].powi(2);
            }
            let error = ftrl.sensitivity() * (squares / n as f64).sqrt();
            assert!((ftrl.error() / error - 1.0).abs() < 1e-9, "{} and {error}", ftrl.error());
            assert!((ftrl.spread() / last.sqrt() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn correlated_noise_errs_less_than_independent_noise_where_there_is_room_for_bands() {
        // 20 passes over 50 batches.
        let batches = Cyclic::new(50).expect("batches");
        let (chosen, plain) = (Ftrl::new(batches, 1_000).expect("valid"), ftrl(50, 1_000, 1));
        assert_eq!(chosen.factor().len(), 16);
        assert!(chosen.error() < 0.5 * plain.error(), "{} {}", chosen.error(), plain.error());
        // One batch leaves no room.
        let one = Ftrl::new(Cyclic::new(1).expect("batches"), 10).expect("valid");
        assert_eq!(one.factor(), [1.0]);
        assert!(Ftrl::new(batches, 0).is_none() && Ftrl::new(batches, STEPS_MAX + 1).is_none());
    }
}
