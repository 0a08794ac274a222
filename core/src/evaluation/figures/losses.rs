//! Losses: how far probabilities are from what came true.

use super::{
    Estimate, Found, Metric, Missing, Pool, as_f64,
    curves::Curve,
    float,
    rate::{Rate, Ratio},
};
use crate::evaluation::cells::{Block, LOSS_BITS};

impl Pool<'_> {
    /// A mean loss: its sum over the number of records.
    pub(super) fn loss(&self, metric: Metric, cells: &[usize]) -> Found<Rate> {
        let block = if metric == Metric::LogLoss { Block::LogLoss } else { Block::SquaredError };
        let (start, unit) = (self.layout.range(block).start, 2_f64.powi(-LOSS_BITS.cast_signed()));
        let sum: f64 = cells.iter().map(|c| as_f64(self.counts[start + c]) * unit).sum();
        let noise = self.noise(block) * unit * unit * float(cells.len());
        let records = self.size(cells);
        let noise_of_records = self.noise_of_size(cells);
        self.distinct(records, noise_of_records)?;
        let mean = sum / records;
        let squares = self.squared_losses(metric, cells, (mean, records));
        let spread = self.if_sampled((squares - mean * mean).max(0.0) * records);
        Ok(Rate::from(Ratio {
            part: sum,
            whole: records,
            of_part: spread + noise,
            of_both: 0.0,
            of_whole: noise_of_records,
            trials: 0.0,
        }))
    }

    /// The mean of the squared losses, from where the scores lie; or a bound on it.
    fn squared_losses(&self, metric: Metric, cells: &[usize], (mean, records): (f64, f64)) -> f64 {
        let bins = self.layout.bins;
        let middle = |bin: usize| (float(bin) + 0.5) / float(bins);
        // Of a record whose class had this probability.
        let of = |p: f64| match metric {
            Metric::LogLoss => p.ln().powi(2),
            _ => (1.0 - p).powi(4),
        };
        if self.layout.is_binary() {
            let curve = self.curve(cells);
            let one = |(bin, (p, n)): (usize, (&f64, &f64))| {
                p.max(0.0) * of(middle(bin)) + n.max(0.0) * of(1.0 - middle(bin))
            };
            let sum: f64 = curve.of.iter().zip(&curve.not).enumerate().map(one).sum();
            return sum / records;
        }
        if metric == Metric::LogLoss {
            // How probable the true classes were, over all groups.
            let curves = (0..self.layout.classes).map(|c| self.against_rest(c).of);
            let (mut sum, mut all) = (0.0, 0.0);
            for of_class in curves {
                for (bin, p) in of_class.iter().enumerate() {
                    sum += p.max(0.0) * of(middle(bin));
                    all += p.max(0.0);
                }
            }
            return if all > 0.0 { sum / all } else { mean * metric.most(self.layout.target) };
        }
        // The mean of squares of what lies between 0 and the most is at most that times the mean (Bhatia, Davis 2000).
        mean * metric.most(self.layout.target)
    }

    /// The expected calibration error with its interval. Its value is that of the noised counts, which noise makes larger.
    pub(super) fn ece(&self, cells: &[usize]) -> Found<Estimate> {
        let curve = if self.layout.is_binary() {
            self.curve(cells)
        } else if cells.len() == self.layout.groups {
            let (range, bins) = (self.layout.range(Block::Confidence), self.layout.bins);
            let counts = &self.counts[range];
            let of = |part: &[i128]| part.iter().map(|c| as_f64(*c)).collect();
            let noise = self.noise(Block::Confidence);
            Curve { not: of(&counts[..bins]), of: of(&counts[bins..]), noise }
        } else {
            return Err(Missing::Undefined);
        };
        let bins = curve.of.len();
        let n: f64 = curve.of.iter().chain(&curve.not).sum();
        self.distinct(n, 2.0 * float(bins) * curve.noise)?;
        let wide = bins / (self.e.calibration_bins.max(1) as usize).min(bins).max(1);
        let (mut sum, mut spreads, mut slopes) = (0.0, Vec::new(), 0.0);
        let each = |from: usize| {
            let (mut gap, mut spread) = (0.0, 0.0);
            for bin in from..(from + wide).min(bins) {
                let s = (float(bin) + 0.5) / float(bins);
                let (p, q) = (curve.of[bin], curve.not[bin]);
                gap += p - s * (p + q);
                let (vp, vq) = (self.variance(p, curve.noise), self.variance(q, curve.noise));
                spread += (1.0 - s).powi(2) * vp + s * s * vq;
            }
            (gap, spread)
        };
        for from in (0..bins).step_by(wide) {
            let (gap, spread) = each(from);
            sum += gap.abs();
            spreads.push(spread);
        }
        let ece = sum / n;
        for bin in 0..bins {
            let s = (float(bin) + 0.5) / float(bins);
            let (vp, vq) = (
                self.variance(curve.of[bin], curve.noise),
                self.variance(curve.not[bin], curve.noise),
            );
            slopes += (1.0 - s + ece).powi(2) * vp + (s + ece).powi(2) * vq;
        }
        let z = self.z(self.tail());
        let mean = spreads.iter().map(|v| (2.0 * v / std::f64::consts::PI).sqrt()).sum::<f64>();
        let left = 1.0 - 2.0 / std::f64::consts::PI;
        let over = mean + z * (left * spreads.iter().sum::<f64>()).sqrt();
        Ok(Estimate {
            value: ece.clamp(0.0, 1.0),
            low: (ece - over / n).clamp(0.0, 1.0),
            high: (ece + z * slopes.sqrt() / n).clamp(0.0, 1.0),
        })
    }
}
