//! Rates: parts of records.

use super::{
    Found, Metric, Missing, Pool, as_f64, float,
    rate::{Rate, Ratio},
};
use crate::evaluation::cells::Block;

/// How much true and false positives, true and false negatives count.
type Kinds = [f64; 4];

const ALL: Kinds = [1.0; 4];
/// True positives.
const FOUND: Kinds = [1.0, 0.0, 0.0, 0.0];
const POSITIVE: Kinds = [1.0, 0.0, 0.0, 1.0];
/// True negatives.
const LEFT: Kinds = [0.0, 0.0, 1.0, 0.0];
const NEGATIVE: Kinds = [0.0, 1.0, 1.0, 0.0];

impl Pool<'_> {
    /// True and false positives, true and false negatives, and the variance of each one's noise.
    fn confusion(&self, cells: &[usize]) -> ([f64; 4], [f64; 4]) {
        let (curve, from) = (self.curve(cells), self.layout.positive_from);
        let sum = |bins: &[f64]| bins.iter().sum::<f64>();
        let (low, high) = (float(from), float(self.layout.bins - from));
        let counts = [
            sum(&curve.of[from..]),
            sum(&curve.not[from..]),
            sum(&curve.not[..from]),
            sum(&curve.of[..from]),
        ];
        (counts, [high, high, low, low].map(|bins| bins * curve.noise))
    }

    /// The records of some of the four kinds among those of others, if that is a part of anything.
    fn part(&self, (part, whole): (Kinds, Kinds), cells: &[usize]) -> Found<Ratio> {
        let (counts, noise) = self.confusion(cells);
        let sum = |of: &dyn Fn(usize) -> f64| (0..4).map(of).sum::<f64>();
        let records = sum(&|i| whole[i] * counts[i]);
        let of_whole = sum(&|i| whole[i] * noise[i]);
        self.distinct(records, of_whole)?;
        let of_part = sum(&|i| part[i] * noise[i]);
        Ok(Ratio {
            part: sum(&|i| part[i] * counts[i]),
            whole: records,
            of_part,
            // Every kind that is in the part is in the whole.
            of_both: of_part,
            of_whole,
            trials: if self.sampling { records } else { 0.0 },
        })
    }

    fn binary(&self, metric: Metric, cells: &[usize]) -> Found<Rate> {
        let part = |part: Kinds, whole: Kinds| self.part((part, whole), cells);
        Ok(match metric {
            Metric::Accuracy => part([1.0, 0.0, 1.0, 0.0], ALL)?.into(),
            Metric::SelectionRate => part([1.0, 1.0, 0.0, 0.0], ALL)?.into(),
            Metric::Precision => part(FOUND, [1.0, 1.0, 0.0, 0.0])?.into(),
            Metric::Recall => part(FOUND, POSITIVE)?.into(),
            Metric::Specificity => part(LEFT, NEGATIVE)?.into(),
            Metric::F1 => Rate::harmonic(part(FOUND, [1.0, 1.0, 0.0, 1.0])?),
            Metric::BalancedAccuracy => Rate::mean(part(FOUND, POSITIVE)?, part(LEFT, NEGATIVE)?),
            Metric::RocAuc => self.roc_auc(&self.curve(cells))?,
            Metric::PrAuc => self.pr_auc(&self.curve(cells))?,
            Metric::LogLoss | Metric::Brier => self.loss(metric, cells)?,
            _ => return Err(Missing::Undefined),
        })
    }

    /// Ratio of the negatives that was said to be positive.
    pub(super) fn false_positives(&self, cells: &[usize]) -> Found<Rate> {
        self.part(([0.0, 1.0, 0.0, 0.0], NEGATIVE), cells).map(Rate::from)
    }

    /// Counts by class and by class that was said.
    fn matrix(&self, cells: &[usize]) -> Vec<f64> {
        let (start, each) = self.of_main();
        let at = |i: usize| cells.iter().map(|c| as_f64(self.counts[start + c * each + i])).sum();
        (0..each).map(at).collect()
    }

    fn several(&self, metric: Metric, cells: &[usize]) -> Found<Rate> {
        let k = self.layout.classes;
        let noise = self.noise(Block::Confusion) * float(cells.len());
        let m = self.matrix(cells);
        let row = |c: usize| m[c * k..(c + 1) * k].iter().sum::<f64>();
        let column = |c: usize| (0..k).map(|y| m[y * k + c]).sum::<f64>();
        // A mean over classes, with how it moves with each cell.
        let mean = |of: &dyn Fn(usize) -> Found<(f64, f64, f64, f64)>| -> Found<Rate> {
            // Of each class: the value, and how it moves with a record that was found, missed, or said in error.
            let each = (0..k).map(of).collect::<Found<Vec<_>>>()?;
            let (mut variance, mut steepest) = (0.0, 0.0_f64);
            for (i, count) in m.iter().enumerate() {
                let (y, said) = (i / k, i % k);
                let slope = if y == said { each[y].1 } else { each[y].2 + each[said].3 } / float(k);
                variance += slope * slope * self.variance(*count, noise);
                steepest = steepest.max(slope.abs());
            }
            let value = each.iter().map(|e| e.0).sum::<f64>() / float(k);
            Ok(Rate::delta(value, variance, self.if_sampled(steepest)))
        };
        let recall = |c: usize| {
            let n = row(c);
            self.distinct(n, float(k) * noise)?;
            let r = m[c * k + c] / n;
            Ok((r, (1.0 - r) / n, -r / n, 0.0))
        };
        match metric {
            Metric::Accuracy => {
                let right = (0..k).map(|c| m[c * k + c]).sum();
                self.among_several((right, k), (m.iter().sum(), k * k), noise).map(Rate::from)
            }
            Metric::BalancedAccuracy | Metric::Recall => mean(&recall),
            Metric::Precision => mean(&|c| {
                let n = column(c);
                self.distinct(n, float(k) * noise)?;
                let p = m[c * k + c] / n;
                Ok((p, (1.0 - p) / n, 0.0, -p / n))
            }),
            Metric::F1 => mean(&|c| {
                let (tp, d) = (m[c * k + c], row(c) + column(c));
                self.distinct(d, 2.0 * float(k) * noise)?;
                Ok((
                    2.0 * tp / d,
                    2.0 / d - 4.0 * tp / (d * d),
                    -2.0 * tp / (d * d),
                    -2.0 * tp / (d * d),
                ))
            }),
            Metric::RocAuc | Metric::PrAuc if cells.len() == self.layout.groups => {
                let one = |c: usize| {
                    let curve = self.against_rest(c);
                    if metric == Metric::RocAuc {
                        self.roc_auc(&curve)
                    } else {
                        self.pr_auc(&curve)
                    }
                };
                let each = (0..k).map(one).collect::<Found<Vec<_>>>()?;
                // The same records are in all of them: their errors may all go the same way.
                let mean = |of: &dyn Fn(&Rate) -> f64| each.iter().map(of).sum::<f64>() / float(k);
                let sd = mean(&|r| r.slopes().0.sqrt());
                Ok(Rate::delta(mean(&|r| r.value), sd * sd, mean(&|r| r.slopes().1)))
            }
            Metric::LogLoss | Metric::Brier => self.loss(metric, cells),
            _ => Err(Missing::Undefined),
        }
    }

    /// The recall of each class.
    pub(super) fn recalls(&self, cells: &[usize]) -> Found<Vec<Rate>> {
        if self.layout.is_binary() {
            let of = |m| self.binary(m, cells);
            return Ok(vec![of(Metric::Specificity)?, of(Metric::Recall)?]);
        }
        let k = self.layout.classes;
        let noise = self.noise(Block::Confusion) * float(cells.len());
        let m = self.matrix(cells);
        let one = |c: usize| {
            let row = &m[c * k..(c + 1) * k];
            self.among_several((row[c], 1), (row.iter().sum(), k), noise).map(Rate::from)
        };
        (0..k).map(one).collect()
    }

    /// Records in so many cells among those in so many.
    fn among_several(
        &self,
        (part, of_part): (f64, usize),
        (whole, of_whole): (f64, usize),
        noise: f64,
    ) -> Found<Ratio> {
        self.distinct(whole, float(of_whole) * noise)?;
        let trials = if self.sampling { whole } else { 0.0 };
        let (of_part, of_whole) = (float(of_part) * noise, float(of_whole) * noise);
        Ok(Ratio { part, whole, of_part, of_both: of_part, of_whole, trials })
    }

    pub(super) fn rate(&self, metric: Metric, cells: &[usize]) -> Found<Rate> {
        if self.layout.is_number() {
            self.of_numbers(metric, cells)
        } else if self.layout.is_binary() {
            self.binary(metric, cells)
        } else {
            self.several(metric, cells)
        }
    }
}
