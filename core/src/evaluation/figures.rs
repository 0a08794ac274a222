//! Figures from the sum of all sites' counts, each with an interval.
//!
//! **What an interval means.** It covers, with the study's confidence, the figure that the model has on the records that the
//! held-out ones are a sample of: the spread of sampling and of the noise on the counts together. `rate` has how: Fieller's
//! and Wilson's intervals for parts of a whole, the delta method (each cell's count as a Poisson number) for other figures.
//! Where the noise is Laplace, normal quantiles are widened by the first term of Cornish and Fisher (1938) for the heavier
//! tails of few draws. A fifth of each tail is kept for what these approximations leave out.
//!
//! **Where a figure is a maximum over groups** (a difference, a calibration error), the true one is that of *one fixed*
//! combination of groups, and at most the largest of all combinations' upper ends: the bound against which such a figure is
//! judged is as sharp as that of a single rate. The other bound holds for all groups at once (Bonferroni).
//!
//! **Scores** are known by their bin: every figure takes a record's score to be its bin's middle. Log loss and squared
//! error are summed at the sites from the scores themselves; so are the errors of a number.
//!
//! What cannot be told from the noise is not guessed: the figure is [`Missing`], and a gate on it fails.

mod between;
mod curves;
mod drift;
mod groups;
mod losses;
mod metric;
mod numbers;
mod rate;
mod rates;

pub(crate) use groups::listed;
pub use groups::{By, Group, Grouped};
pub use metric::{Better, Kind, Metric};

use super::{
    Evaluation, Target,
    cells::{Block, CountsError, Layout, Scale, as_f64, float},
};
use crate::dp::rdp::log_erfc;
use rate::{Rate, Ratio};

/// A denominator has to be so many standard deviations of its noise away from nothing.
const DISTINCT: f64 = 3.0;
/// How much of an interval's tails is given to what its approximations know.
const KNOWN: f64 = 0.8;

/// A figure with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// What the counts give.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

/// Why there is no figure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Nobody has counted.
    #[error("no site has sent counts")]
    Nothing,
    /// A site has not counted.
    #[error("has sent no counts")]
    Silent,
    /// Fewer have counted than it takes to say something of all.
    #[error("{sites} of the {needed} sites that it takes sent counts")]
    Sites {
        /// How many have.
        sites: u32,
        /// How many it takes.
        needed: u32,
    },
    /// What it is a part of cannot be told from noise.
    #[error("about {0} records are too few to tell it from the noise")]
    TooFew(i64),
    /// There are not two groups to compare.
    #[error("there are not two groups with at least {0} records")]
    Groups(u32),
    /// Of declared groups there are too few records to say something.
    #[error("fewer than {least} records of {groups}")]
    Small {
        /// The least that a group has to have.
        least: u32,
        /// Their names.
        groups: String,
    },
    /// It is not defined there.
    #[error("it is not defined for this study")]
    Undefined,
}

type Found<T> = Result<T, Missing>;

/// The counts of all sites together.
#[derive(Clone, Debug)]
pub struct Pool<'a> {
    e: &'a Evaluation,
    layout: Layout,
    /// Each as wide as it takes: what one site may say has a bound, and how many sites there are has one.
    counts: Vec<i128>,
    sites: u32,
    sampling: bool,
}

impl<'a> Pool<'a> {
    /// Nothing yet, for a model that says this.
    #[must_use]
    pub fn new(e: &'a Evaluation, target: impl Into<Target>) -> Self {
        let layout = e.layout(target);
        let counts = vec![0; layout.cells()];
        Self { e, layout, counts, sites: 0, sampling: true }
    }

    /// Adds a site's counts.
    ///
    /// # Errors
    /// [`CountsError`] when they cannot be a site's; the sum is unchanged then.
    pub fn add(&mut self, counts: &[i64]) -> Result<(), CountsError> {
        self.layout.check(counts)?;
        for (sum, count) in self.counts.iter_mut().zip(counts) {
            *sum += i128::from(*count);
        }
        self.sites += 1;
        Ok(())
    }

    /// Sites whose counts are in it.
    #[must_use]
    pub const fn sites(&self) -> u32 {
        self.sites
    }

    /// Intervals for the figures of exactly the records that were counted: the noise alone, without the spread of sampling.
    #[must_use]
    pub fn of_these_records(mut self) -> Self {
        self.sampling = false;
        self
    }

    /// About how many records there are.
    #[must_use]
    pub fn records(&self) -> i64 {
        let records: i128 = self.counts[self.layout.range(self.main())].iter().sum();
        i64::try_from(records).unwrap_or(i64::MAX)
    }

    const fn main(&self) -> Block {
        self.layout.main()
    }

    /// The variance of one cell's noise.
    fn noise(&self, block: Block) -> f64 {
        f64::from(self.sites) * self.layout.scale(block).variance()
    }

    /// The variance of a count with this much noise.
    fn variance(&self, count: f64, noise: f64) -> f64 {
        noise + if self.sampling { count.max(0.0) } else { 0.0 }
    }

    /// The normal quantile for an upper tail, wider where few Laplace draws are in it.
    fn z(&self, tail: f64) -> f64 {
        let z = normal_quantile(tail);
        let laplace = matches!(self.layout.scale(self.main()), Scale::Laplace(_));
        // The excess kurtosis of a Laplace draw is 3 (6 for the continuous one over 2, against 3 of a normal one).
        let excess = if laplace { 3.0 / f64::from(self.sites.max(1)) } else { 0.0 };
        z * (1.0 + (z * z - 3.0).max(0.0) * excess / 24.0)
    }

    /// The tail on each side of an interval.
    fn tail(&self) -> f64 {
        KNOWN * (1.0 - self.e.confidence) / 2.0
    }

    /// So much where the records are a sample, nothing where they are all there is.
    const fn if_sampled(&self, much: f64) -> f64 {
        if self.sampling { much } else { 0.0 }
    }

    fn estimate(&self, metric: Metric, rate: Rate) -> Estimate {
        let (least, most) = (metric.least(), metric.most(self.layout.target));
        let (low, high) = rate.ends(self.z(self.tail()));
        let value = rate.value.clamp(least, most);
        // Noise can put a part beyond its whole, and with it its interval beyond what there can be.
        Estimate {
            value,
            low: low.clamp(least, most).min(value),
            high: high.clamp(least, most).max(value),
        }
    }

    /// Whether a number of records can be told from nothing.
    fn distinct(&self, count: f64, noise: f64) -> Found<()> {
        if count >= 1.0 && count > DISTINCT * noise.sqrt() {
            return Ok(());
        }
        #[expect(clippy::cast_possible_truncation, reason = "shown, not counted with")]
        let about = count.round() as i64;
        Err(if self.sites == 0 { Missing::Nothing } else { Missing::TooFew(about) })
    }

    /// A metric of all records.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn overall(&self, metric: Metric) -> Found<Estimate> {
        self.among(metric, &self.everybody())
    }

    /// A metric of one group.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn of_group(&self, metric: Metric, group: &Group) -> Found<Estimate> {
        self.among(metric, &group.cells)
    }

    fn among(&self, metric: Metric, cells: &[usize]) -> Found<Estimate> {
        if self.sites == 0 {
            return Err(Missing::Nothing);
        }
        if metric.kind() != Kind::Records || !metric.is_for(self.layout.target) {
            return Err(Missing::Undefined);
        }
        match metric {
            Metric::Records => self.counted(cells),
            Metric::Ece => self.ece(cells),
            Metric::WorstClassRecall => Ok(self.worst(&self.recalls(cells)?)),
            _ => Ok(self.estimate(metric, self.rate(metric, cells)?)),
        }
    }

    /// The accuracy that a perturbation costs.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn drop_under(&self, perturbation: usize) -> Found<Estimate> {
        let range = self.layout.range(Block::Changed);
        let at = range.start + 2 * perturbation;
        if at + 1 >= range.end {
            return Err(Missing::Undefined);
        }
        let (lost, gained) = (as_f64(self.counts[at]), as_f64(self.counts[at + 1]));
        let everybody = self.everybody();
        let (n, noise_of_records) = (self.size(&everybody), self.noise_of_size(&everybody));
        self.distinct(n, noise_of_records)?;
        let noise = self.noise(Block::Changed);
        // Where nothing was lost, one more record that is counts as it does elsewhere: see `rate`.
        let sampled = self.if_sampled((lost + gained).max(self.z(self.tail()).powi(2)));
        let part = Ratio {
            part: lost - gained,
            whole: n,
            of_part: sampled + 2.0 * noise,
            of_both: 0.0,
            of_whole: noise_of_records,
            trials: 0.0,
        };
        Ok(self.estimate(Metric::AccuracyDrop, part.into()))
    }
}

/// The number that a standard normal draw is above with this chance, below a half: by halving.
fn normal_quantile(tail: f64) -> f64 {
    let wanted = (2.0 * tail).ln();
    let (mut low, mut high) = (0.0, 40.0);
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if log_erfc(middle / 2_f64.sqrt()) > wanted { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests;
