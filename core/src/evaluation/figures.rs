//! Figures from the sum of all sites' counts, each with an interval.
//!
//! **What an interval means.** It covers, with the study's confidence, the figure that the model has on the records that the
//! held-out ones are a sample of: the spread of sampling (each cell's count as a Poisson number) and of the noise on the counts
//! together, carried through by the delta method (Oehlert 1992). Where the noise is Laplace, normal quantiles are widened
//! by the first term of Cornish and Fisher (1938) for the heavier tails of few draws.
//!
//! **Where a figure is a maximum over groups** (a difference, a calibration error), it is convex in what it is made of, so
//! the true figure is at most the measured one plus the error of *one fixed* combination: the bound against which such a figure
//! is judged is as sharp as that of a single rate. The other bound holds for all groups at once (Bonferroni).
//!
//! **Scores** are known by their bin: every figure takes a record's score to be its bin's middle. Log loss and squared
//! error are summed at the sites from the scores themselves.
//!
//! What cannot be told from the noise is not guessed: the figure is [`Missing`], and a gate on it fails.

use super::{
    Evaluation,
    cells::{Block, CountsError, LOSS_BITS, Layout, Scale, as_f64, float},
    jet::Jet,
};
use crate::dp::rdp::log_erfc;

/// A denominator has to be so many standard deviations of its noise away from nothing.
const DISTINCT: f64 = 3.0;

/// What is measured. The definitions are those of scikit-learn and fairlearn, by these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Part of the records whose class was said.
    Accuracy,
    /// Mean of the classes' recalls.
    BalancedAccuracy,
    /// Part of what was said to be positive that is; the mean over classes where there are more than two.
    Precision,
    /// Part of the positives that was said to be; the mean over classes where there are more than two.
    Recall,
    /// Part of the negatives that was said to be negative.
    Specificity,
    /// Harmonic mean of precision and recall; the mean over classes where there are more than two.
    F1,
    /// Area under the ROC curve; the mean of each class against the rest where there are more than two.
    RocAuc,
    /// Average precision: the area under the precision-recall curve by steps; the mean as for [`Self::RocAuc`].
    PrAuc,
    /// Mean negative log likelihood, in nats, each record's cut at 14.
    LogLoss,
    /// Mean squared error of the probabilities: of the positive class, or summed over classes where there are more than two.
    Brier,
    /// Expected calibration error: of the positive class (two classes), or of the class that was said (Guo et al. 2017).
    Ece,
    /// Part that is said to be positive.
    SelectionRate,
    /// The least recall of a class.
    WorstClassRecall,
    /// The largest difference of selection rates between groups.
    DemographicParityDifference,
    /// The smallest selection rate over the largest.
    DemographicParityRatio,
    /// The largest difference of recalls between groups.
    EqualOpportunityDifference,
    /// The larger of the largest differences of recalls, and of false positive rates.
    EqualizedOddsDifference,
    /// The smaller of the ratios of recalls, and of false positive rates.
    EqualizedOddsRatio,
    /// The largest difference of precisions between groups.
    PredictiveParityDifference,
    /// The largest difference of accuracies between groups.
    AccuracyDifference,
    /// The least recall of a group.
    WorstGroupRecall,
    /// The least accuracy of a group.
    WorstGroupAccuracy,
    /// The largest expected calibration error of a group.
    WorstGroupEce,
    /// Accuracy that a perturbation costs.
    AccuracyDrop,
}

/// What a metric is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All records, or those of one group.
    Records,
    /// Groups against each other.
    Groups,
    /// A perturbation.
    Perturbation,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 24] = [
        Self::Accuracy,
        Self::BalancedAccuracy,
        Self::Precision,
        Self::Recall,
        Self::Specificity,
        Self::F1,
        Self::RocAuc,
        Self::PrAuc,
        Self::LogLoss,
        Self::Brier,
        Self::Ece,
        Self::SelectionRate,
        Self::WorstClassRecall,
        Self::DemographicParityDifference,
        Self::DemographicParityRatio,
        Self::EqualOpportunityDifference,
        Self::EqualizedOddsDifference,
        Self::EqualizedOddsRatio,
        Self::PredictiveParityDifference,
        Self::AccuracyDifference,
        Self::WorstGroupRecall,
        Self::WorstGroupAccuracy,
        Self::WorstGroupEce,
        Self::AccuracyDrop,
    ];

    /// The word that studies, gates and the log use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::BalancedAccuracy => "balanced_accuracy",
            Self::Precision => "precision",
            Self::Recall => "recall",
            Self::Specificity => "specificity",
            Self::F1 => "f1",
            Self::RocAuc => "roc_auc",
            Self::PrAuc => "pr_auc",
            Self::LogLoss => "log_loss",
            Self::Brier => "brier",
            Self::Ece => "ece",
            Self::SelectionRate => "selection_rate",
            Self::WorstClassRecall => "worst_class_recall",
            Self::DemographicParityDifference => "demographic_parity_difference",
            Self::DemographicParityRatio => "demographic_parity_ratio",
            Self::EqualOpportunityDifference => "equal_opportunity_difference",
            Self::EqualizedOddsDifference => "equalized_odds_difference",
            Self::EqualizedOddsRatio => "equalized_odds_ratio",
            Self::PredictiveParityDifference => "predictive_parity_difference",
            Self::AccuracyDifference => "accuracy_difference",
            Self::WorstGroupRecall => "worst_group_recall",
            Self::WorstGroupAccuracy => "worst_group_accuracy",
            Self::WorstGroupEce => "worst_group_ece",
            Self::AccuracyDrop => "accuracy_drop",
        }
    }

    /// The metric of that name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.as_str() == name)
    }

    /// What it is of.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Accuracy
            | Self::BalancedAccuracy
            | Self::Precision
            | Self::Recall
            | Self::Specificity
            | Self::F1
            | Self::RocAuc
            | Self::PrAuc
            | Self::LogLoss
            | Self::Brier
            | Self::Ece
            | Self::SelectionRate
            | Self::WorstClassRecall => Kind::Records,
            Self::AccuracyDrop => Kind::Perturbation,
            _ => Kind::Groups,
        }
    }

    /// Whether it is for two classes alone.
    #[must_use]
    pub const fn is_binary_only(self) -> bool {
        matches!(
            self,
            Self::Specificity
                | Self::SelectionRate
                | Self::DemographicParityDifference
                | Self::DemographicParityRatio
                | Self::EqualOpportunityDifference
                | Self::EqualizedOddsDifference
                | Self::EqualizedOddsRatio
                | Self::PredictiveParityDifference
                | Self::WorstGroupRecall
                | Self::WorstGroupEce
        )
    }

    /// The largest value that it can have.
    #[must_use]
    pub const fn most(self) -> f64 {
        match self {
            Self::LogLoss => super::cells::LOG_LOSS_MAX,
            Self::Brier => 2.0,
            _ => 1.0,
        }
    }

    /// The smallest value that it can have.
    #[must_use]
    pub const fn least(self) -> f64 {
        if matches!(self, Self::AccuracyDrop) { -1.0 } else { 0.0 }
    }
}

/// Attributes by which records are grouped: one, the other, or both at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct By {
    first: bool,
    second: bool,
}

impl By {
    /// The attribute of this number, from 0.
    #[must_use]
    pub const fn attribute(number: usize) -> Self {
        Self { first: number == 0, second: number != 0 }
    }

    /// The intersection of both.
    pub const BOTH: Self = Self { first: true, second: true };

    /// Whether the attribute of this number counts.
    const fn has(self, number: usize) -> bool {
        if number == 0 { self.first } else { self.second }
    }

    /// Every grouping that so many attributes have.
    #[must_use]
    pub fn every(attributes: usize) -> Vec<Self> {
        let each = (0..attributes).map(Self::attribute);
        each.chain((attributes == 2).then_some(Self::BOTH)).collect()
    }

    /// Its name: the attributes' columns.
    #[must_use]
    pub fn name(self, e: &Evaluation) -> String {
        let columns = e.attributes.iter().enumerate().filter(|(i, _)| self.has(*i));
        columns.map(|(_, a)| a.column.as_str()).collect::<Vec<_>>().join(" x ")
    }
}

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
    /// What it is a part of cannot be told from noise.
    #[error("about {0} records are too few to tell it from the noise")]
    TooFew(i64),
    /// There are not two groups to compare.
    #[error("there are not two groups with at least {0} records")]
    Groups(u32),
    /// It is not defined there.
    #[error("it is not defined for this study")]
    Undefined,
}

/// A group of records: cells of the finest grouping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What its records have in common.
    pub name: String,
    cells: Vec<usize>,
}

/// Groups that can be compared, and those that are too small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouped {
    /// With enough records; smaller ones are merged into a last one, if that has enough.
    pub groups: Vec<Group>,
    /// Names of those that were merged.
    pub merged: Vec<String>,
    /// Names of those that nothing is said about.
    pub withheld: Vec<String>,
}

/// A value and its variance.
#[derive(Clone, Copy, Debug)]
struct Rate {
    value: f64,
    variance: f64,
}

impl Rate {
    fn sd(self) -> f64 {
        self.variance.sqrt()
    }
}

type Found<T> = Result<T, Missing>;

/// Scores of some records: how many are in each bin, of the class or not.
struct Curve {
    of: Vec<f64>,
    not: Vec<f64>,
    /// The variance of one bin's noise.
    noise: f64,
}

/// The counts of all sites together.
#[derive(Clone, Debug)]
pub struct Pool<'a> {
    e: &'a Evaluation,
    layout: Layout,
    counts: Vec<i64>,
    sites: u32,
    sampling: bool,
}

impl<'a> Pool<'a> {
    /// Nothing yet, for a model of so many classes.
    #[must_use]
    pub fn new(e: &'a Evaluation, classes: u32) -> Self {
        let layout = e.layout(classes);
        let counts = vec![0; layout.cells()];
        Self { e, layout, counts, sites: 0, sampling: true }
    }

    /// Adds a site's counts.
    ///
    /// # Errors
    /// [`CountsError`] when they cannot be a site's; the sum is unchanged then.
    pub fn add(&mut self, counts: &[i64]) -> Result<(), CountsError> {
        self.layout.check(counts)?;
        let sums = self.counts.iter().zip(counts).map(|(a, b)| a.checked_add(*b));
        self.counts = sums.collect::<Option<_>>().ok_or(CountsError::Overflow)?;
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
        self.counts[self.layout.range(self.main())].iter().sum()
    }

    const fn main(&self) -> Block {
        if self.layout.is_binary() { Block::Scores } else { Block::Confusion }
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
        (1.0 - self.e.confidence) / 2.0
    }

    fn estimate(&self, metric: Metric, rate: Rate) -> Estimate {
        let (least, most) = (metric.least(), metric.most());
        let reach = self.z(self.tail()) * rate.sd();
        Estimate {
            value: rate.value.clamp(least, most),
            low: (rate.value - reach).clamp(least, most),
            high: (rate.value + reach).clamp(least, most),
        }
    }

    // ---- groups ----

    /// The groups by these attributes.
    #[must_use]
    pub fn groups(&self, by: By) -> Grouped {
        let attributes = &self.e.attributes;
        let mut all: Vec<Group> = Vec::new();
        for cell in 0..self.layout.groups {
            // The first attribute changes slowest.
            let mut rest = cell;
            let mut names: Vec<String> = Vec::new();
            for (i, attribute) in attributes.iter().enumerate().rev() {
                if by.has(i) {
                    names.push(attribute.name_of(rest % attribute.len()));
                }
                rest /= attribute.len();
            }
            names.reverse();
            let name = names.join(", ");
            match all.iter_mut().find(|g| g.name == name) {
                Some(group) => group.cells.push(cell),
                None => all.push(Group { name, cells: vec![cell] }),
            }
        }
        let size = |cells: &[usize]| self.size(cells);
        let least = f64::from(self.e.group_min);
        let (groups, small): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|g| size(&g.cells) >= least);
        let names: Vec<String> = small.iter().map(|g| g.name.clone()).collect();
        let cells: Vec<usize> = small.into_iter().flat_map(|g| g.cells).collect();
        let mut grouped = Grouped { groups, merged: Vec::new(), withheld: Vec::new() };
        if size(&cells) >= least && !cells.is_empty() {
            grouped.groups.push(Group { name: "smaller groups".into(), cells });
            grouped.merged = names;
        } else {
            grouped.withheld = names;
        }
        grouped
    }

    fn size(&self, cells: &[usize]) -> f64 {
        let (start, each) = self.of_main();
        let of = |cell: usize| {
            let from = start + cell * each;
            self.counts[from..from + each].iter().map(|c| as_f64(*c)).sum::<f64>()
        };
        cells.iter().map(|cell| of(*cell)).sum()
    }

    /// Where the main block begins, and how many of its cells belong to one group.
    fn of_main(&self) -> (usize, usize) {
        let range = self.layout.range(self.main());
        (range.start, range.len() / self.layout.groups.max(1))
    }

    fn everybody(&self) -> Vec<usize> {
        (0..self.layout.groups).collect()
    }

    // ---- two classes ----

    fn curve(&self, cells: &[usize]) -> Curve {
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

    /// One quantity over another, if that is one.
    fn part(&self, of: (Jet, Jet), (counts, noise): ([f64; 4], [f64; 4])) -> Found<Rate> {
        let (part, whole) = of;
        self.distinct(whole.value, whole.variance(noise))?;
        let rate = part / whole;
        let variances = std::array::from_fn(|i| self.variance(counts[i], noise[i]));
        Ok(Rate { value: rate.value, variance: rate.variance(variances) })
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

    fn binary(&self, metric: Metric, cells: &[usize]) -> Found<Rate> {
        let (counts, noise) = self.confusion(cells);
        let [tp, fp, tn, fn_] = Jet::variables(counts);
        let part = |a: Jet, b: Jet| self.part((a, b), (counts, noise));
        match metric {
            Metric::Accuracy => part(tp + tn, tp + tn + fp + fn_),
            Metric::SelectionRate => part(tp + fp, tp + tn + fp + fn_),
            Metric::Precision => part(tp, tp + fp),
            Metric::Recall => part(tp, tp + fn_),
            Metric::Specificity => part(tn, tn + fp),
            Metric::F1 => part(tp + tp, tp + tp + fp + fn_),
            Metric::BalancedAccuracy => {
                let (a, b) = (part(tp, tp + fn_)?, part(tn, tn + fp)?);
                let variance = (a.variance + b.variance) / 4.0;
                Ok(Rate { value: f64::midpoint(a.value, b.value), variance })
            }
            Metric::RocAuc => self.roc_auc(&self.curve(cells)),
            Metric::PrAuc => self.pr_auc(&self.curve(cells)),
            Metric::LogLoss | Metric::Brier => self.loss(metric, cells),
            _ => Err(Missing::Undefined),
        }
    }

    /// Area under the ROC curve: pairs in the right order, and half of those in one bin (Hanley, `McNeil` 1982).
    fn roc_auc(&self, curve: &Curve) -> Found<Rate> {
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
        let (mut above, mut variance) = (0.0, 0.0);
        for (bin, (p, n)) in curve.of.iter().zip(&curve.not).enumerate().rev() {
            let slope_of = (by_of[bin] / not - auc) / of;
            let slope_not = ((above + p / 2.0) / of - auc) / not;
            variance += slope_of * slope_of * self.variance(*p, curve.noise)
                + slope_not * slope_not * self.variance(*n, curve.noise);
            above += p;
        }
        // Noise meets noise in the pairs: bins² / 2 products of weight one, and bins of weight a half.
        let products = bins * bins / 2.0 * curve.noise * curve.noise;
        variance += products / (of * not).powi(2);
        Ok(Rate { value: auc, variance })
    }

    /// Average precision: precision at each step of recall, from the highest score down.
    ///
    /// Where too few records are above a score to tell them from noise, precision is taken to be what it is further down, and
    /// how wrong that can be is part of the interval. What noise adds on average, in the second order, is taken off.
    fn pr_auc(&self, curve: &Curve) -> Found<Rate> {
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
        let (mut down_tp, mut down_fp, mut variance, mut below) = (0.0, 0.0, 0.0, 0.0);
        for (p, n, precision, by_tp, by_fp, mass) in at.into_iter().rev() {
            down_tp += mass / of * by_tp;
            down_fp += mass / of * by_fp;
            // Above the first precision that one counts.
            below = if mass == 0.0 && by_tp == 0.0 { below } else { precision };
            let slope_of = (below - area) / of + down_tp;
            variance += slope_of * slope_of * self.variance(p, curve.noise)
                + down_fp * down_fp * self.variance(n, curve.noise);
        }
        let doubt = if curve.noise > 0.0 { doubt / of } else { 0.0 };
        let reach = doubt / self.z(self.tail());
        Ok(Rate { value: area - excess, variance: (variance.sqrt() + reach).powi(2) })
    }

    /// A mean loss: its sum over the number of records.
    fn loss(&self, metric: Metric, cells: &[usize]) -> Found<Rate> {
        let block = if metric == Metric::LogLoss { Block::LogLoss } else { Block::SquaredError };
        let (start, unit) = (self.layout.range(block).start, 2_f64.powi(-LOSS_BITS.cast_signed()));
        let sum: f64 = cells.iter().map(|c| as_f64(self.counts[start + c]) * unit).sum();
        let noise = self.noise(block) * unit * unit * float(cells.len());
        let records = self.size(cells);
        let (_, each) = self.of_main();
        let noise_of_records = self.noise(self.main()) * float(cells.len() * each);
        self.distinct(records, noise_of_records)?;
        let mean = sum / records;
        let squares = self.squared_losses(metric, cells, (mean, records));
        let spread = if self.sampling { (squares - mean * mean).max(0.0) * records } else { 0.0 };
        let variance = (spread + noise + mean * mean * noise_of_records) / (records * records);
        Ok(Rate { value: mean, variance })
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
            return if all > 0.0 { sum / all } else { mean * metric.most() };
        }
        // The mean of squares of what lies between 0 and the most is at most that times the mean (Bhatia, Davis 2000).
        mean * metric.most()
    }

    // ---- more classes ----

    fn against_rest(&self, class: usize) -> Curve {
        let (range, bins) = (self.layout.range(Block::OneVsRest), self.layout.bins);
        let is = |is: usize| {
            let from = range.start + (class * 2 + is) * bins;
            self.counts[from..from + bins].iter().map(|c| as_f64(*c)).collect()
        };
        Curve { of: is(1), not: is(0), noise: self.noise(Block::OneVsRest) }
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
            let variance = (0..k * k).map(|i| {
                let (y, said) = (i / k, i % k);
                let slope = if y == said { each[y].1 } else { each[y].2 + each[said].3 };
                (slope / float(k)).powi(2) * self.variance(m[i], noise)
            });
            let value = each.iter().map(|e| e.0).sum::<f64>() / float(k);
            Ok(Rate { value, variance: variance.sum() })
        };
        let recall = |c: usize| {
            let n = row(c);
            self.distinct(n, float(k) * noise)?;
            let r = m[c * k + c] / n;
            Ok((r, (1.0 - r) / n, -r / n, 0.0))
        };
        match metric {
            Metric::Accuracy => {
                let n: f64 = m.iter().sum();
                self.distinct(n, float(k * k) * noise)?;
                let right: f64 = (0..k).map(|c| m[c * k + c]).sum();
                let a = right / n;
                let variance = (0..k * k).map(|i| {
                    let slope = if i / k == i % k { 1.0 - a } else { -a } / n;
                    slope * slope * self.variance(m[i], noise)
                });
                Ok(Rate { value: a, variance: variance.sum() })
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
                let sd = each.iter().map(|r| r.sd()).sum::<f64>() / float(k);
                let value = each.iter().map(|r| r.value).sum::<f64>() / float(k);
                Ok(Rate { value, variance: sd * sd })
            }
            Metric::LogLoss | Metric::Brier => self.loss(metric, cells),
            _ => Err(Missing::Undefined),
        }
    }

    /// The recall of each class.
    fn recalls(&self, cells: &[usize]) -> Found<Vec<Rate>> {
        if self.layout.is_binary() {
            let of = |m| self.binary(m, cells);
            return Ok(vec![of(Metric::Specificity)?, of(Metric::Recall)?]);
        }
        let k = self.layout.classes;
        let noise = self.noise(Block::Confusion) * float(cells.len());
        let m = self.matrix(cells);
        let one = |c: usize| {
            let row = &m[c * k..(c + 1) * k];
            let n: f64 = row.iter().sum();
            self.distinct(n, float(k) * noise)?;
            let r = row[c] / n;
            let found = (1.0 - r).powi(2) * self.variance(row[c], noise);
            let missed = r * r * self.variance(n - row[c], float(k - 1) * noise);
            Ok(Rate { value: r, variance: (found + missed) / (n * n) })
        };
        (0..k).map(one).collect()
    }

    fn rate(&self, metric: Metric, cells: &[usize]) -> Found<Rate> {
        if self.layout.is_binary() {
            self.binary(metric, cells)
        } else {
            self.several(metric, cells)
        }
    }

    // ---- calibration ----

    /// The expected calibration error with its interval. Its value is that of the noised counts, which noise makes larger.
    fn ece(&self, cells: &[usize]) -> Found<Estimate> {
        let curve = if self.layout.is_binary() {
            self.curve(cells)
        } else if cells.len() == self.layout.groups {
            let (range, bins) = (self.layout.range(Block::Confidence), self.layout.bins);
            let counts = &self.counts[range];
            let of = |part: &[i64]| part.iter().map(|c| as_f64(*c)).collect();
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

    // ---- groups against each other ----

    fn rates(&self, metric: Metric, groups: &[Group]) -> Found<Vec<Rate>> {
        groups.iter().map(|g| self.rate(metric, &g.cells)).collect()
    }

    /// The quantile for a bound that holds for so many at once.
    fn z_of(&self, many: usize) -> f64 {
        self.z(self.tail() / float(many.max(1)))
    }

    /// The largest difference within each of these lists, and the largest of those.
    fn difference(&self, lists: &[Vec<Rate>]) -> Estimate {
        let many = lists.iter().map(Vec::len).sum();
        let (z, all) = (self.z(self.tail()), self.z_of(many));
        let mut found = Estimate { value: 0.0, low: 0.0, high: 0.0 };
        for rates in lists {
            let (low, high) = ends(rates, |r| r.value);
            let value = high - low;
            // The two with the widest spread: no pair has more.
            let mut variances: Vec<f64> = rates.iter().map(|r| r.variance).collect();
            variances.sort_by(|a, b| b.total_cmp(a));
            let reach = z * variances.iter().take(2).sum::<f64>().sqrt();
            let (_, least) = ends(rates, |r| r.value - all * r.sd());
            let (most, _) = ends(rates, |r| r.value + all * r.sd());
            found.value = found.value.max(value);
            found.high = found.high.max(value + reach);
            found.low = found.low.max(least - most);
        }
        found.high = found.high.min(1.0);
        found
    }

    /// The smallest over the largest within each of these lists, and the smallest of those.
    fn ratio(&self, lists: &[Vec<Rate>]) -> Found<Estimate> {
        let all = self.z_of(2 * lists.iter().map(Vec::len).sum::<usize>());
        let mut found = Estimate { value: 1.0, low: 1.0, high: 1.0 };
        for rates in lists {
            let (low, high) = ends(rates, |r| r.value);
            if high <= 0.0 {
                return Err(Missing::Undefined);
            }
            let (low_down, high_down) = ends(rates, |r| (r.value - all * r.sd()).max(0.0));
            let (low_up, high_up) = ends(rates, |r| r.value + all * r.sd());
            found.value = found.value.min((low / high).max(0.0));
            found.low = found.low.min(low_down / high_up);
            found.high = found.high.min(if high_down > 0.0 { low_up / high_down } else { 1.0 });
        }
        Ok(found)
    }

    /// The smallest of these.
    fn worst(&self, rates: &[Rate]) -> Estimate {
        let (z, all) = (self.z(self.tail()), self.z_of(rates.len()));
        let (value, _) = ends(rates, |r| r.value);
        let (_, widest) = ends(rates, |r| r.sd());
        let (high, _) = ends(rates, |r| r.value + all * r.sd());
        Estimate {
            value: value.clamp(0.0, 1.0),
            low: (value - z * widest).clamp(0.0, 1.0),
            high: high.clamp(0.0, 1.0),
        }
    }

    /// A metric between groups.
    ///
    /// # Errors
    /// [`Missing`]: also when a group's part of it cannot be told from noise.
    pub fn between(&self, metric: Metric, by: By) -> Found<Estimate> {
        if metric.is_binary_only() && !self.layout.is_binary() {
            return Err(Missing::Undefined);
        }
        let Grouped { groups, .. } = self.groups(by);
        if groups.len() < 2 {
            return Err(Missing::Groups(self.e.group_min));
        }
        let rates = |m: Metric| self.rates(m, &groups);
        let false_positives = || -> Found<Vec<Rate>> {
            let specific = rates(Metric::Specificity)?;
            Ok(specific.into_iter().map(|r| Rate { value: 1.0 - r.value, ..r }).collect())
        };
        Ok(match metric {
            Metric::DemographicParityDifference => {
                self.difference(&[rates(Metric::SelectionRate)?])
            }
            Metric::DemographicParityRatio => self.ratio(&[rates(Metric::SelectionRate)?])?,
            Metric::EqualOpportunityDifference => self.difference(&[rates(Metric::Recall)?]),
            Metric::EqualizedOddsDifference => {
                self.difference(&[rates(Metric::Recall)?, false_positives()?])
            }
            Metric::EqualizedOddsRatio => {
                self.ratio(&[rates(Metric::Recall)?, false_positives()?])?
            }
            Metric::PredictiveParityDifference => self.difference(&[rates(Metric::Precision)?]),
            Metric::AccuracyDifference => self.difference(&[rates(Metric::Accuracy)?]),
            Metric::WorstGroupRecall => self.worst(&rates(Metric::Recall)?),
            Metric::WorstGroupAccuracy => self.worst(&rates(Metric::Accuracy)?),
            Metric::WorstGroupEce => {
                let each = groups.iter().map(|g| self.ece(&g.cells)).collect::<Found<Vec<_>>>()?;
                // A maximum of convex figures: at most each one's own upper end; and at least each one's lower.
                let largest =
                    |of: &dyn Fn(&Estimate) -> f64| each.iter().map(of).fold(0.0, f64::max);
                Estimate {
                    value: largest(&|e| e.value),
                    low: largest(&|e| e.low),
                    high: largest(&|e| e.high),
                }
            }
            _ => return Err(Missing::Undefined),
        })
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
        if metric.kind() != Kind::Records || metric.is_binary_only() && !self.layout.is_binary() {
            return Err(Missing::Undefined);
        }
        match metric {
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
        let (n, (_, each)) = (self.size(&everybody), self.of_main());
        let noise_of_records = self.noise(self.main()) * float(everybody.len() * each);
        self.distinct(n, noise_of_records)?;
        let (noise, drop) = (self.noise(Block::Changed), (lost - gained) / n);
        let sampled = if self.sampling { (lost + gained).max(0.0) } else { 0.0 };
        let variance = (sampled + 2.0 * noise + drop * drop * noise_of_records) / (n * n);
        Ok(self.estimate(Metric::AccuracyDrop, Rate { value: drop, variance }))
    }
}

/// The smallest and the largest of what rates come to.
fn ends(rates: &[Rate], of: impl Fn(&Rate) -> f64) -> (f64, f64) {
    let each = || rates.iter().map(&of);
    (each().fold(f64::INFINITY, f64::min), each().fold(f64::NEG_INFINITY, f64::max))
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
