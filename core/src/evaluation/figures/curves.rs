//! Figures of scores: areas under curves.

use super::{DISTINCT, Found, Pool, as_f64, float, rate::Rate};
use crate::evaluation::cells::Block;

/// Scores of some records: how many are in each bin, of the class or not.
pub(super) struct Curve {
    pub(super) of: Vec<f64>,
    pub(super) not: Vec<f64>,
    /// The variance of one bin's noise.
    pub(super) noise: f64,
}

impl Pool<'_> {
    pub(super) fn curve(&self, cells: &[usize]) -> Curve {
        let (start, bins) = (self.layout.range(Block::Scores).start, self.layout.bins);
        let class = |class: usize| -> Vec<f64> {
            let at = |cell: usize, bin: usize| start + (cell * 2 + class) * bins + bin;
            (0..bins)
                .map(|bin| cells.iter().map(|cell| as_f64(self.counts[at(*cell, bin)])).sum())
                .collect()
        };
        let noise = self.noise(Block::Scores) * float(cells.len());
        Curve { of: class(1), not: class(0), noise }
    }

    pub(super) fn against_rest(&self, class: usize) -> Curve {
        let (range, bins) = (self.layout.range(Block::OneVsRest), self.layout.bins);
        let is = |is: usize| {
            let from = range.start + (class * 2 + is) * bins;
            self.counts[from..from + bins].iter().map(|c| as_f64(*c)).collect()
        };
        Curve { of: is(1), not: is(0), noise: self.noise(Block::OneVsRest) }
    }

    /// Area under the ROC curve: pairs in the right order, and half of those in one bin (Hanley, `McNeil` 1982).
    pub(super) fn roc_auc(&self, curve: &Curve) -> Found<Rate> {
        let (of, not) = (curve.of.iter().sum::<f64>(), curve.not.iter().sum::<f64>());
        let bins = float(curve.of.len());
        self.distinct(of, bins * curve.noise)?;
        self.distinct(not, bins * curve.noise)?;
        let (mut below, mut pairs) = (0.0, 0.0);
        // How many pairs one more record in a bin makes.
        let mut by_of = Vec::with_capacity(curve.of.len());
        for (p, n) in curve.of.iter().zip(&curve.not) {
            by_of.push(below + n / 2.0);
            pairs += p * (below + n / 2.0);
            below += n;
        }
        let auc = pairs / (of * not);
        let (mut above, mut variance, mut steepest) = (0.0, 0.0, 0.0_f64);
        for (bin, (p, n)) in curve.of.iter().zip(&curve.not).enumerate().rev() {
            let slope_of = (by_of[bin] / not - auc) / of;
            let slope_not = ((above + p / 2.0) / of - auc) / not;
            variance += slope_of * slope_of * self.variance(*p, curve.noise)
                + slope_not * slope_not * self.variance(*n, curve.noise);
            steepest = steepest.max(slope_of.abs()).max(slope_not.abs());
            above += p;
        }
        // Noise meets noise in the pairs: bins² / 2 products of weight one, and bins of weight a half.
        let products = bins * bins / 2.0 * curve.noise * curve.noise;
        variance += products / (of * not).powi(2);
        Ok(Rate::delta(auc, variance, self.if_sampled(steepest)))
    }

    /// Average precision: precision at each step of recall, from the highest score down.
    ///
    /// Where too few records are above a score to tell them from noise, precision is taken to be what it is further down, and
    /// how wrong that can be is part of the interval. What noise adds on average, in the second order, is taken off.
    pub(super) fn pr_auc(&self, curve: &Curve) -> Found<Rate> {
        let (of, bins) = (curve.of.iter().sum::<f64>(), float(curve.of.len()));
        self.distinct(of, bins * curve.noise)?;
        let (mut tp, mut fp, mut area, mut excess) = (0.0, 0.0, 0.0, 0.0);
        // Positives above the first score with a precision, and how far off that may be.
        let (mut waiting, mut doubt) = (0.0, 0.0);
        // For each bin, from the highest: precision there, and how the sum so far moves with a record above.
        let mut at = Vec::with_capacity(curve.of.len());
        for (i, (p, n)) in curve.of.iter().zip(&curve.not).rev().enumerate() {
            tp += p;
            fp += n;
            let (said, noise) = (tp + fp, float(i + 1) * curve.noise);
            if said < 1.0 || said <= DISTINCT * (2.0 * noise).sqrt() {
                waiting += p;
                at.push((*p, *n, 0.0, 0.0, 0.0, 0.0));
                continue;
            }
            let precision = (tp / said).clamp(0.0, 1.0);
            let (by_tp, by_fp) = (fp / (said * said), -tp / (said * said));
            let mut mass = *p;
            if waiting != 0.0 {
                doubt += waiting.abs() * precision.max(1.0 - precision);
                mass += std::mem::take(&mut waiting);
            }
            area += mass / of * precision;
            excess += curve.noise * by_tp / of
                + mass / of * noise * (2.0 * precision - 1.0) / (said * said);
            at.push((*p, *n, precision, by_tp, by_fp, mass));
        }
        // A record in a bin is in every sum from there on down.
        let (mut down_tp, mut down_fp, mut below) = (0.0, 0.0, 0.0);
        let (mut variance, mut steepest) = (0.0, 0.0_f64);
        for (p, n, precision, by_tp, by_fp, mass) in at.into_iter().rev() {
            down_tp += mass / of * by_tp;
            down_fp += mass / of * by_fp;
            // Above the first precision that one counts.
            below = if mass == 0.0 && by_tp == 0.0 { below } else { precision };
            let slope_of = (below - area) / of + down_tp;
            variance += slope_of * slope_of * self.variance(p, curve.noise)
                + down_fp * down_fp * self.variance(n, curve.noise);
            steepest = steepest.max(slope_of.abs()).max(down_fp.abs());
        }
        let doubt = if curve.noise > 0.0 { doubt / of } else { 0.0 };
        let reach = doubt / self.z(self.tail());
        let variance = (variance.sqrt() + reach).powi(2);
        Ok(Rate::delta(area - excess, variance, self.if_sampled(steepest)))
    }
}
