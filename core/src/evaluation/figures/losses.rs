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
        let squares = self.squared_losses(metric, cells, sum) / records;
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

    /// The most that the squared losses come to, given how many scores lie in which bin, and what all losses sum to.
    fn squared_losses(&self, metric: Metric, cells: &[usize], sum: f64) -> f64 {
        let bins = self.layout.bins;
        let most = metric.most(self.layout.target);
        // Of a record whose class had this probability.
        let loss = |p: f64| match metric {
            Metric::LogLoss => -p.ln(),
            _ => (1.0 - p).powi(2),
        };
        // Between which losses so many records lie whose class's probability is in this bin.
        let within = |records: f64, bin: usize| {
            let [low, high] = [bin + 1, bin].map(|edge| loss(float(edge) / float(bins)).min(most));
            (records.max(0.0), low.max(0.0), high)
        };
        let known: Vec<_> = if self.layout.is_binary() {
            let curve = self.curve(cells);
            let of = curve.of.iter().enumerate().map(|(bin, n)| within(*n, bin));
            let not = curve.not.iter().enumerate().map(|(bin, n)| within(*n, bins - 1 - bin));
            of.chain(not).collect()
        } else if metric == Metric::LogLoss && cells.len() == self.layout.groups {
            let curves = (0..self.layout.classes).map(|class| self.against_rest(class).of);
            let each = |of: Vec<f64>| of.into_iter().enumerate().map(|(bin, n)| within(n, bin));
            curves.flat_map(each).collect()
        } else {
            Vec::new()
        };
        most_of_squares(known, sum, most)
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

/// The most that squares come to whose roots sum to this and are `most` at most, so many of which lie between these two. A square is
/// at most the chord between the ends (Bhatia, Davis 2000), which is steepest where the ends are largest: what the sum has beyond
/// the lower ends is put there first.
fn most_of_squares(mut known: Vec<(f64, f64, f64)>, sum: f64, most: f64) -> f64 {
    known.sort_by(|(_, a, b), (_, c, d)| (c + d).total_cmp(&(a + b)));
    let mut left = sum - known.iter().map(|(n, low, _)| n * low).sum::<f64>();
    let mut squares = 0.0;
    for (n, low, high) in known {
        let more = left.clamp(0.0, n * (high - low));
        squares += n * low * low + (low + high) * more;
        left -= more;
    }
    // What is still left is noise, or nothing is known of where they lie.
    (squares + left.max(0.0) * 2.0 * most).min(sum.max(0.0) * most)
}
