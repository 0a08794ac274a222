//! What a site counts over its held-out records, and the noise on it.
//!
//! The counts are one list of whole numbers in [`Block`]s. Adding or removing one record changes a block by a bounded amount,
//! [`Layout::sensitivity`]; each block gets its part of what an evaluation costs, and noise for that. The blocks compose
//! (Dwork, Roth 2014, theorem 3.16; Bun, Steinke 2016, lemma 2.3), so that all of them together cost what the study says.
//!
//! | block | cells | what one record adds |
//! |---|---|---|
//! | scores (two classes) | group × class × score bin | one to one cell |
//! | confusion (more classes) | group × class × class that was said | one to one cell |
//! | confidence (more classes) | right or not × bin of the highest score | one to one cell |
//! | one against the rest (more classes) | class × is it or not × score bin | one to a cell of each class |
//! | log loss, squared error | group | at most [`LOG_LOSS_MAX`], at most 1 or 2; in units of 2^-32 |
//! | changed | perturbation × lost or gained | at most one for each perturbation |
//! | columns | watched column × what its values are put together to | one to a cell of each column |
//!
//! Where the label is a number, it is known by its place between its bounds, 0 at the least and 1 at the most; what the model
//! says is cut there too. With `e` the distance of the two places, and `t` twice the label's place less one:
//!
//! | block | cells | what one record adds |
//! |---|---|---|
//! | records | group | one to one cell |
//! | absolute errors, squares and fourth powers of them | group | `e`, `e²`, `e⁴`: at most 1; in units of 2^-32 |
//! | powers of the label | power × group | `t`, `t²`, `t³`, `t⁴` to a cell of each power: at most 1 and at least -1; in units of 2^-32 |
//! | columns | as above | as above |
//!
//! Each sum is made of whole units, to which one record's share is rounded: what is at most 1 is at most 2^32 of them, so that no
//! sensitivity grows by rounding.

use super::{Evaluation, Noise, Target};
use std::ops::Range;

/// A record's log loss is cut here, in nats: a model that gives a class a chance below a millionth could lose any amount.
pub const LOG_LOSS_MAX: f64 = 14.0;
/// Losses are summed in units of two to the power of minus this.
pub const LOSS_BITS: u32 = 32;
/// Cells at most: what a site sends has a bound.
pub const CELLS_MAX: usize = 100_000;
/// Records of one site at most, so that no sum is beyond 63 bits: 2^26 · 14 · 2^32 is below 2^62.
pub const RECORDS_MAX: usize = 1 << 26;
/// The chance, at most, that honest counts are taken for impossible ones.
const REFUSAL_CHANCE: f64 = 1e-9;

/// Which cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Block {
    /// By group, class and score bin, where there are two classes.
    Scores,
    /// By group, class and class that was said, where there are more.
    Confusion,
    /// By whether the class that was said is right, and the bin of its score.
    Confidence,
    /// By class, whether the record is of it, and the bin of its score.
    OneVsRest,
    /// Sum of log losses by group.
    LogLoss,
    /// Sum of squared errors by group.
    SquaredError,
    /// Records that were right and are not when perturbed, and the other way round.
    Changed,
    /// By watched column and what its values are put together to.
    Columns,
    /// Records by group, where the label is a number.
    Records,
    /// Sum of absolute errors by group.
    AbsoluteErrors,
    /// Sum of their squares by group.
    SquaredErrors,
    /// Sum of their fourth powers by group: how far the sum of squares could be another.
    FourthPowers,
    /// Sums of the label's first four powers, by power and group.
    Powers,
}

/// Powers of a label that are summed.
const POWERS: usize = 4;

impl Block {
    /// How much of what an evaluation costs is spent on the block, against the others.
    const fn weight(self) -> f64 {
        match self {
            Self::Scores | Self::Confusion | Self::SquaredErrors | Self::Powers => 4.0,
            Self::OneVsRest | Self::Changed | Self::Columns | Self::AbsoluteErrors => 2.0,
            Self::Confidence
            | Self::LogLoss
            | Self::SquaredError
            | Self::Records
            | Self::FourthPowers => 1.0,
        }
    }
}

/// The cells of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    pub(super) target: Target,
    pub(super) classes: usize,
    pub(super) groups: usize,
    pub(super) bins: usize,
    pub(super) perturbations: usize,
    /// How many cells each watched column has.
    pub(super) columns: Vec<usize>,
    /// The first bin that counts as positive.
    pub(super) positive_from: usize,
    noise: Noise,
}

/// What is wrong with counts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CountsError {
    /// Not as many as there are cells.
    #[error("there are {found} counts, and {expected} cells")]
    Length {
        /// How many came.
        found: usize,
        /// How many belong there.
        expected: usize,
    },
    /// A cell that no noise explains.
    #[error(
        "the {block:?} count {at} is {count}: below zero by more than the study's noise explains"
    )]
    Negative {
        /// Of which block.
        block: Block,
        /// Which cell of it.
        at: usize,
        /// The count.
        count: i64,
    },
    /// Two blocks that count the same records differ by more than noise explains.
    #[error("the counts do not add up: {what}")]
    Sum {
        /// Which, and by how much.
        what: String,
    },
}

/// The noise on a block's cells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Discrete Laplace with this scale.
    Laplace(f64),
    /// Discrete Gaussian with this standard deviation.
    Gaussian(f64),
    /// None.
    Exact,
}

impl Scale {
    /// The variance of one cell's noise.
    #[must_use]
    pub fn variance(self) -> f64 {
        match self {
            // 2p / (1 - p)^2 with p = e^(-1/b) (Inusah, Kozubowski 2006, proposition 2.2), without cancellation.
            Self::Laplace(b) => {
                let q = -(-1.0 / b).exp_m1();
                2.0 * (1.0 - q) / (q * q)
            }
            Self::Gaussian(sigma) => sigma * sigma,
            Self::Exact => 0.0,
        }
    }

    /// The sum of `cells` draws is at most this far from zero, but with this chance (Chernoff: a Laplace draw has
    /// ln E e^(λX) ≤ 2 b² λ² up to λ = 1/(√2 b)).
    #[must_use]
    pub fn tail(self, cells: usize, chance: f64) -> f64 {
        let (m, nats) = (float(cells), (2.0 / chance).ln());
        match self {
            Self::Laplace(b) => {
                let near = b * (8.0 * m * nats).sqrt();
                let far = 2_f64.sqrt() * b * (m + nats);
                1.0 + if near <= 8_f64.sqrt() * m * b { near } else { far }
            }
            Self::Gaussian(sigma) => 1.0 + sigma * (2.0 * m * nats).sqrt(),
            Self::Exact => 0.0,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of cells and records are below 2^53")]
pub(super) const fn float(n: usize) -> f64 {
    n as f64
}

impl Layout {
    pub(super) fn new(e: &Evaluation, target: Target) -> Self {
        let bins = e.bins as usize;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a checked threshold lies between two bins"
        )]
        let positive_from = (e.threshold * float(bins)).round().max(0.0) as usize;
        Self {
            target,
            classes: target.outputs() as usize,
            groups: e.groups(),
            bins,
            perturbations: e.perturbations.len(),
            columns: e.drift.iter().map(|w| w.values.len()).collect(),
            positive_from: positive_from.min(bins),
            noise: e.noise,
        }
    }

    /// Whether there are two classes.
    #[must_use]
    pub const fn is_binary(&self) -> bool {
        self.classes == 2
    }

    /// Whether the label is a number.
    #[must_use]
    pub const fn is_number(&self) -> bool {
        self.target.is_number()
    }

    /// The block in which each record is once.
    pub(super) const fn main(&self) -> Block {
        if self.is_number() {
            Block::Records
        } else if self.is_binary() {
            Block::Scores
        } else {
            Block::Confusion
        }
    }

    /// The blocks, and where each lies in the list.
    #[must_use]
    pub fn blocks(&self) -> Vec<(Block, Range<usize>)> {
        let (k, b, g) = (self.classes, self.bins, self.groups);
        let mut sizes = if self.is_number() {
            vec![
                (Block::Records, g),
                (Block::AbsoluteErrors, g),
                (Block::SquaredErrors, g),
                (Block::FourthPowers, g),
                (Block::Powers, POWERS * g),
            ]
        } else if self.is_binary() {
            vec![(Block::Scores, g * 2 * b)]
        } else {
            vec![
                (Block::Confusion, g * k * k),
                (Block::Confidence, 2 * b),
                (Block::OneVsRest, k * 2 * b),
            ]
        };
        if !self.is_number() {
            sizes.extend([(Block::LogLoss, g), (Block::SquaredError, g)]);
        }
        if self.perturbations > 0 {
            sizes.push((Block::Changed, 2 * self.perturbations));
        }
        if !self.columns.is_empty() {
            sizes.push((Block::Columns, self.columns.iter().sum()));
        }
        let mut at = 0;
        sizes
            .into_iter()
            .map(|(block, size)| {
                at += size;
                (block, at - size..at)
            })
            .collect()
    }

    /// How many cells there are.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.blocks().last().map_or(0, |(_, range)| range.end)
    }

    /// Where a block lies.
    pub(super) fn range(&self, block: Block) -> Range<usize> {
        self.blocks().into_iter().find(|(b, _)| *b == block).map_or(0..0, |(_, range)| range)
    }

    /// Where a watched column's cells lie.
    pub(super) fn column(&self, number: usize) -> Range<usize> {
        let start = self.range(Block::Columns).start + self.columns[..number].iter().sum::<usize>();
        start..start + self.columns[number]
    }

    /// Where the sums of a power of the label lie, from the first.
    pub(super) fn power(&self, power: usize) -> Range<usize> {
        let start = self.range(Block::Powers).start + (power - 1) * self.groups;
        start..start + self.groups
    }

    /// How far one record can move a block, as the sum of the cells' changes (L1) and as the root of the sum of their squares
    /// (L2).
    #[must_use]
    pub fn sensitivity(&self, block: Block) -> (f64, f64) {
        let unit = 2_f64.powi(LOSS_BITS.cast_signed());
        let alone = |most: f64| (most, most);
        let ones = |cells: usize| (float(cells), float(cells).sqrt());
        match block {
            Block::Scores | Block::Confusion | Block::Confidence | Block::Records => alone(1.0),
            Block::AbsoluteErrors | Block::SquaredErrors | Block::FourthPowers => alone(unit),
            Block::Powers => (float(POWERS) * unit, float(POWERS).sqrt() * unit),
            Block::OneVsRest => ones(self.classes),
            Block::LogLoss => alone(LOG_LOSS_MAX * unit),
            Block::SquaredError => alone(if self.is_binary() { unit } else { 2.0 * unit }),
            Block::Changed => ones(self.perturbations),
            Block::Columns => ones(self.columns.len()),
        }
    }

    /// The noise on each block's cells.
    #[must_use]
    pub fn scales(&self) -> Vec<(Block, Range<usize>, Scale)> {
        let blocks = self.blocks();
        let whole: f64 = blocks.iter().map(|(block, _)| block.weight()).sum();
        // The parts are rounded down by this much, so that together they are never more than the whole.
        let share = |block: Block| block.weight() / whole * (1.0 - 1e-12);
        let scale = |block: Block| {
            let (l1, l2) = self.sensitivity(block);
            match self.noise {
                Noise::Laplace { epsilon } => Scale::Laplace(l1 / (epsilon * share(block))),
                Noise::Gaussian { rho } => Scale::Gaussian(l2 / (2.0 * rho * share(block)).sqrt()),
                Noise::None => Scale::Exact,
            }
        };
        blocks.into_iter().map(|(block, range)| (block, range, scale(block))).collect()
    }

    pub(super) fn scale(&self, block: Block) -> Scale {
        let scales = self.scales();
        scales.into_iter().find(|(b, ..)| *b == block).map_or(Scale::Exact, |(.., scale)| scale)
    }

    /// The bin of a score.
    pub(super) fn bin(&self, score: f64) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a score lies in 0 to 1; what does not is cut"
        )]
        let bin = (score.clamp(0.0, 1.0) * float(self.bins)) as usize;
        bin.min(self.bins - 1)
    }

    /// The class that is said at these probabilities, one for each class.
    #[must_use]
    pub fn said(&self, probabilities: &[f64]) -> usize {
        if self.is_number() {
            return 0;
        }
        if self.is_binary() {
            return usize::from(self.bin(probabilities[1]) >= self.positive_from);
        }
        let best = |a: usize, b: usize| if probabilities[b] > probabilities[a] { b } else { a };
        (1..self.classes).fold(0, best)
    }

    /// Whether counts can be those of an honest site: not below zero, and adding up, but for the noise.
    ///
    /// # Errors
    /// [`CountsError`].
    pub fn check(&self, counts: &[i64]) -> Result<(), CountsError> {
        let (found, expected) = (counts.len(), self.cells());
        if found != expected {
            return Err(CountsError::Length { found, expected });
        }
        let chance = REFUSAL_CHANCE / float(expected.max(1));
        for (block, range, scale) in self.scales() {
            let least = -scale.tail(1, chance);
            // Odd powers of a label may be below zero.
            let signed =
                |at: usize| block == Block::Powers && (at / self.groups.max(1)).is_multiple_of(2);
            for (at, &count) in counts[range].iter().enumerate() {
                if as_f64(count) < least && !signed(at) {
                    return Err(CountsError::Negative { block, at, count });
                }
            }
        }
        let sum = |range: Range<usize>| counts[range].iter().map(|c| as_f64(*c)).sum::<f64>();
        let of = |block: Block, range: Range<usize>| {
            (sum(range.clone()), self.scale(block).tail(range.len(), chance))
        };
        let main = self.main();
        let (records, slack) = of(main, self.range(main));
        // All other blocks are held against these records, so that this bounds every count.
        if records > float(RECORDS_MAX) + slack {
            let what = format!("{records} records, and a site counts {RECORDS_MAX} at most");
            return Err(CountsError::Sum { what });
        }
        let differ = |what: &str, (value, tail): (f64, f64)| {
            if (value - records).abs() <= slack + tail {
                return Ok(());
            }
            let what = format!("{what} are {value}, records {records}");
            Err(CountsError::Sum { what })
        };
        if self.is_number() {
            self.check_numbers(records + slack, of)?;
        } else if !self.is_binary() {
            differ("confidences", of(Block::Confidence, self.range(Block::Confidence)))?;
            let each = self.range(Block::OneVsRest);
            for class in 0..self.classes {
                let start = each.start + class * 2 * self.bins;
                let range = start..start + 2 * self.bins;
                differ(&format!("scores of class {class}"), of(Block::OneVsRest, range))?;
            }
        }
        for number in 0..self.columns.len() {
            differ(&format!("watched column {number}"), of(Block::Columns, self.column(number)))?;
        }
        let most = |block: Block, each: f64, cells: Range<usize>, what: &str| {
            let (value, tail) = of(block, cells);
            if value <= each * (records + slack) + tail {
                return Ok(());
            }
            let what = format!("{what} is {value:.0}, more than {records} records can make it");
            Err(CountsError::Sum { what })
        };
        for (block, what) in
            [(Block::LogLoss, "the log loss"), (Block::SquaredError, "the squared error")]
        {
            if !self.is_number() {
                most(block, self.sensitivity(block).0, self.range(block), what)?;
            }
        }
        for cell in self.range(Block::Changed) {
            most(Block::Changed, 1.0, cell..cell + 1, "a perturbation's count")?;
        }
        Ok(())
    }

    /// Whether sums over a label that is a number can be those of so many `records` at most; `of` has a sum and how far noise may
    /// have moved it.
    fn check_numbers(
        &self,
        records: f64,
        of: impl Fn(Block, Range<usize>) -> (f64, f64),
    ) -> Result<(), CountsError> {
        let all =
            ("what the records can make".to_owned(), records * 2_f64.powi(LOSS_BITS.cast_signed()));
        let no_more = |what: String, (sum, tail): (f64, f64), than: &(String, f64)| {
            if sum <= than.1 + tail {
                return Ok((what, sum + tail));
            }
            let what = format!("{what} are {sum:.0}, {} {:.0} at most", than.0, than.1);
            Err(CountsError::Sum { what })
        };
        // What lies between 0 and 1 is no less than its square.
        let errors = |block: Block| of(block, self.range(block));
        let absolute = no_more("the absolute errors".into(), errors(Block::AbsoluteErrors), &all)?;
        let squares = errors(Block::SquaredErrors);
        let squares = no_more("the squared errors".into(), squares, &absolute)?;
        no_more("the fourth powers of errors".into(), errors(Block::FourthPowers), &squares)?;
        let power = |power: usize| of(Block::Powers, self.power(power));
        let squares = no_more("the squares of the label".into(), power(2), &all)?;
        no_more("the fourth powers of the label".into(), power(4), &squares)?;
        // They may be below zero, so that each group's is held by itself: two could hide each other in a sum.
        for (odd, than) in [(1, &all), (3, &squares)] {
            for cell in self.power(odd) {
                let (sum, tail) = of(Block::Powers, cell..cell + 1);
                let what = format!("the label's powers of {odd} in a group, as lengths,");
                no_more(what, (sum.abs(), tail), than)?;
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "compared and estimated with, not counted")]
pub(super) fn as_f64(count: impl Into<i128>) -> f64 {
    count.into() as f64
}

/// Counts of one site, as they are before noise: they must not leave it.
#[derive(Clone)]
pub struct Tally {
    layout: Layout,
    starts: Vec<(Block, usize)>,
    counts: Vec<i64>,
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tally({} cells, redacted)", self.counts.len())
    }
}

impl Tally {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        let starts = layout.blocks().into_iter().map(|(b, range)| (b, range.start)).collect();
        let counts = vec![0; layout.cells()];
        Self { layout, starts, counts }
    }

    fn add(&mut self, block: Block, cell: usize, by: i64) {
        let start = self.starts.iter().find(|(b, _)| *b == block).map(|(_, start)| *start);
        if let Some(count) = start.and_then(|start| self.counts.get_mut(start + cell)) {
            *count += by;
        }
    }

    /// Counts a record: its group, its class, and the model's probability of each class. Probabilities that are no numbers are as
    /// wrong as can be.
    pub fn record(&mut self, group: usize, class: usize, probabilities: &[f64]) {
        let (k, b) = (self.layout.classes, self.layout.bins);
        let wrong: Vec<f64>;
        let probabilities = if probabilities.iter().any(|p| p.is_nan()) {
            wrong = (0..k).map(|c| f64::from(u8::from(c == (class + 1) % k))).collect();
            &wrong
        } else {
            probabilities
        };
        let said = self.layout.said(probabilities);
        if self.layout.is_binary() {
            let bin = self.layout.bin(probabilities[1]);
            self.add(Block::Scores, (group * 2 + class) * b + bin, 1);
        } else {
            self.add(Block::Confusion, (group * k + class) * k + said, 1);
            let confidence = self.layout.bin(probabilities[said]);
            self.add(Block::Confidence, usize::from(said == class) * b + confidence, 1);
            for (c, p) in probabilities.iter().enumerate() {
                let cell = (c * 2 + usize::from(c == class)) * b + self.layout.bin(*p);
                self.add(Block::OneVsRest, cell, 1);
            }
        }
        let truth = probabilities[class].clamp(0.0, 1.0);
        let log_loss = (-truth.ln()).clamp(0.0, LOG_LOSS_MAX);
        let squared: f64 = if self.layout.is_binary() {
            (1.0 - truth).powi(2)
        } else {
            let error = |(c, p): (usize, &f64)| (p - f64::from(u8::from(c == class))).powi(2);
            probabilities.iter().enumerate().map(error).sum::<f64>().min(2.0)
        };
        self.add(Block::LogLoss, group, fixed(log_loss));
        self.add(Block::SquaredError, group, fixed(squared));
    }

    /// Counts a record whose label is a number: its group, the label's place between its bounds, and the place that the model says.
    /// What is no number is as wrong as can be.
    pub fn number(&mut self, group: usize, place: f64, said: f64) {
        let place = place.clamp(0.0, 1.0);
        let error = (place - said.clamp(0.0, 1.0)).abs();
        let error = if error.is_nan() { 1.0 } else { error };
        let label = 2.0 * place - 1.0;
        self.add(Block::Records, group, 1);
        self.add(Block::AbsoluteErrors, group, fixed(error));
        self.add(Block::SquaredErrors, group, fixed(error.powi(2)));
        self.add(Block::FourthPowers, group, fixed(error.powi(4)));
        let mut power = 1.0;
        for number in 0..POWERS {
            power *= label;
            self.add(Block::Powers, number * self.layout.groups + group, fixed(power));
        }
    }

    /// Counts what a perturbation made of a record: whether it was right before, and is.
    pub fn perturbed(&mut self, perturbation: usize, before: bool, after: bool) {
        match (before, after) {
            (true, false) => self.add(Block::Changed, 2 * perturbation, 1),
            (false, true) => self.add(Block::Changed, 2 * perturbation + 1, 1),
            _ => {}
        }
    }

    /// Counts what a record has in a watched column.
    pub fn watched(&mut self, column: usize, value: usize) {
        let before: usize = self.layout.columns[..column].iter().sum();
        self.add(Block::Columns, before + value, 1);
    }

    /// The counts, for the noise.
    #[must_use]
    pub fn into_counts(self) -> Vec<i64> {
        self.counts
    }
}

/// A loss in units of 2^-32.
fn fixed(loss: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "at most 14 · 2^32")]
    let units = (loss * 2_f64.powi(LOSS_BITS.cast_signed())).round() as i64;
    units
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::evaluation::{Attribute, Groups, HeldOut, Perturbation};

    pub(crate) fn settings() -> Evaluation {
        Evaluation {
            held_out: HeldOut::Part(0.2),
            every: 1,
            noise: Noise::Laplace { epsilon: 1.0 },
            bins: 20,
            calibration_bins: 10,
            threshold: 0.5,
            attributes: vec![Attribute {
                column: "SEX".into(),
                groups: Groups::Values(vec!["1".into(), "2".into()]),
            }],
            group_min: 50,
            confidence: 0.95,
            perturbations: vec![Perturbation::Shift { by: 0.1 }],
            drift: Vec::new(),
        }
    }

    /// Changes of all blocks by one record, against what the sensitivities say.
    fn changes(layout: &Layout, group: usize, class: usize, p: &[f64], changed: bool) {
        let mut tally = Tally::new(layout.clone());
        tally.record(group, class, p);
        for i in 0..layout.perturbations {
            tally.perturbed(i, changed, !changed);
        }
        let counts = tally.into_counts();
        for (block, range) in layout.blocks() {
            let (l1, l2) = layout.sensitivity(block);
            let cells = counts[range].iter().map(|c| as_f64(*c));
            let sum: f64 = cells.clone().map(f64::abs).sum();
            let norm = cells.map(|c| c * c).sum::<f64>().sqrt();
            assert!(sum <= l1 && norm <= l2 * (1.0 + 1e-12), "{block:?}: {sum} {norm}");
        }
    }

    #[test]
    fn one_record_moves_each_block_by_no_more_than_its_sensitivity() {
        let two = settings().layout(2);
        let five = settings().layout(5);
        for (group, class) in [(0, 0), (2, 1), (1, 1)] {
            for p in [0.0, 1e-9, 0.3, 0.5, 1.0] {
                changes(&two, group, class, &[1.0 - p, p], p > 0.2);
                let rest = (1.0 - p) / 4.0;
                changes(&five, group, class, &[p, rest, rest, rest, rest], p > 0.2);
            }
        }
    }

    #[test]
    fn what_a_model_says_that_is_no_number_is_as_wrong_as_can_be() {
        for classes in [2, 5] {
            let layout = settings().layout(classes);
            for class in 0..classes as usize {
                let wrong = |p: f64| {
                    let mut all = vec![p; classes as usize];
                    if !p.is_nan() {
                        all = vec![0.0; classes as usize];
                        all[(class + 1) % classes as usize] = p;
                    }
                    let mut tally = Tally::new(layout.clone());
                    tally.record(0, class, &all);
                    tally.into_counts()
                };
                assert_eq!(wrong(f64::NAN), wrong(1.0), "class {class} of {classes}");
                let start = layout.range(Block::LogLoss).start;
                assert_eq!(wrong(f64::NAN)[start], 14 << LOSS_BITS, "class {class} of {classes}");
            }
        }
    }

    const NUMBER: Target = Target::Number { width: 80.0 };

    /// A study of a label that is a number.
    fn of_numbers(noise: Noise) -> Layout {
        Evaluation { noise, perturbations: Vec::new(), ..settings() }.layout(NUMBER)
    }

    #[test]
    fn one_record_of_a_number_moves_each_block_by_no_more_than_its_sensitivity() {
        let layout = of_numbers(Noise::None);
        let places = [-3.0, 0.0, 1e-12, 0.1, 1.0 / 3.0, 0.5, 0.999_999_999_9, 1.0, 7.0];
        for (place, said) in places.iter().flat_map(|p| places.iter().map(move |q| (*p, *q))) {
            let mut tally = Tally::new(layout.clone());
            tally.number(1, place, said);
            let counts = tally.into_counts();
            for (block, range) in layout.blocks() {
                let (l1, l2) = layout.sensitivity(block);
                let cells = counts[range].iter().map(|c| as_f64(*c));
                let sum: f64 = cells.clone().map(f64::abs).sum();
                let norm = cells.map(|c| c * c).sum::<f64>().sqrt();
                assert!(sum <= l1 && norm <= l2 * (1.0 + 1e-12), "{block:?}: {sum} {norm}");
            }
            assert_eq!(layout.check(&counts), Ok(()), "{place} {said}");
        }
        // Whatever else a model says is as wrong as can be.
        let mut tally = Tally::new(layout.clone());
        tally.number(0, 0.5, f64::NAN);
        tally.number(0, 0.0, f64::INFINITY);
        let errors = layout.range(Block::AbsoluteErrors).start;
        assert_eq!(tally.into_counts()[errors], 2 << LOSS_BITS);
    }

    #[test]
    fn sums_over_numbers_that_cannot_be_are_refused_by_name_and_honest_ones_are_not() {
        let layout = of_numbers(Noise::None);
        let mut tally = Tally::new(layout.clone());
        (0..100).for_each(|i| tally.number(i % 3, float(i) / 400.0, float(i % 7) / 7.0));
        let counts = tally.into_counts();
        assert_eq!(layout.check(&counts), Ok(()));
        // Most labels are in the lower half: sums of odd powers are below zero.
        assert!(counts[layout.power(1).start] < 0);
        let broken = |at: usize, by: i64| {
            let mut counts = counts.clone();
            counts[at] += by;
            layout.check(&counts).unwrap_err().to_string()
        };
        let start = |block| layout.range(block).start;
        let much = 1 << 45;
        assert!(broken(start(Block::Records), -1_000).starts_with("the Records count 0 is -9"));
        assert!(broken(start(Block::AbsoluteErrors), -much).contains("below zero"));
        for (at, said) in [
            (start(Block::AbsoluteErrors), "the absolute errors are"),
            (start(Block::SquaredErrors), "the squared errors are"),
            (start(Block::FourthPowers), "the fourth powers of errors are"),
            (layout.power(1).start, "the label's powers of 1 in a group, as lengths, are"),
            (layout.power(2).start, "the squares of the label are"),
            (layout.power(3).start, "the label's powers of 3 in a group, as lengths, are"),
            (layout.power(4).start, "the fourth powers of the label are"),
        ] {
            let found = broken(at, much);
            assert!(found.contains(said), "{found}, not {said}");
        }
        for odd in [1, 3] {
            assert!(broken(layout.power(odd).start, -much).contains("the label's powers of"));
            // Two groups that hide each other in the sum of both.
            let mut hidden = counts.clone();
            hidden[layout.power(odd).start] += much;
            hidden[layout.power(odd).start + 1] -= much;
            let found = layout.check(&hidden).unwrap_err().to_string();
            assert!(found.contains(&format!("the label's powers of {odd} in a group")), "{found}");
        }
        // More than any site counts: it would be most of what all sites together say.
        let many = broken(start(Block::Records), 1 << 40);
        assert!(many.contains("records, and a site counts 67108864 at most"), "{many}");
    }

    #[test]
    fn the_blocks_together_cost_what_the_study_says() {
        for target in [Target::Classes(2), Target::Classes(5), NUMBER] {
            let cost = |noise| {
                let layout = Evaluation { noise, ..settings() }.layout(target);
                let each = layout.scales().into_iter().map(|(block, _, scale)| match scale {
                    Scale::Laplace(b) => layout.sensitivity(block).0 / b,
                    Scale::Gaussian(s) => (layout.sensitivity(block).1 / s).powi(2) / 2.0,
                    Scale::Exact => f64::INFINITY,
                });
                each.sum::<f64>()
            };
            let (epsilon, rho) =
                (cost(Noise::Laplace { epsilon: 0.7 }), cost(Noise::Gaussian { rho: 0.02 }));
            assert!(epsilon <= 0.7 && epsilon > 0.699_999, "{epsilon}");
            assert!(rho <= 0.02 && rho > 0.019_999, "{rho}");
            assert!(cost(Noise::None).is_infinite());
        }
    }

    #[test]
    fn a_laplace_draws_variance_is_that_of_its_sum() {
        for b in [0.3_f64, 1.0, 7.5, 1e5] {
            let p = (-1.0 / b).exp();
            let series: f64 = (1..2_000_000)
                .map(f64::from)
                .take_while(|k| k / b < 60.0)
                .map(|k| 2.0 * k * k * p.powf(k) * (1.0 - p) / (1.0 + p))
                .sum();
            let variance = Scale::Laplace(b).variance();
            assert!(b > 1e4 || (variance / series - 1.0).abs() < 1e-9, "{b}: {variance} {series}");
            assert!((variance / (2.0 * b * b) - 1.0).abs() < 1.0 / (b * b), "{b}: {variance}");
        }
    }

    #[test]
    fn counts_that_cannot_be_are_refused_by_name_and_honest_ones_are_not() {
        for classes in [2, 4] {
            let layout = Evaluation { noise: Noise::None, ..settings() }.layout(classes);
            let mut tally = Tally::new(layout.clone());
            let rest = 0.4 / f64::from(classes - 1);
            let mut p = vec![rest; classes as usize];
            p[0] = 0.6;
            for i in 0..100 {
                tally.record(i % 3, i % classes as usize, &p);
                tally.perturbed(0, i % 2 == 0, i % 3 == 0);
            }
            let counts = tally.into_counts();
            assert_eq!(layout.check(&counts), Ok(()));
            assert!(matches!(layout.check(&counts[1..]), Err(CountsError::Length { .. })));
            let broken = |at: usize, by: i64| {
                let mut counts = counts.clone();
                counts[at] += by;
                layout.check(&counts)
            };
            assert!(matches!(broken(0, -1_000), Err(CountsError::Negative { count: ..0, .. })));
            let start = |block| layout.range(block).start;
            let loss = broken(start(Block::LogLoss), 1 << 45);
            assert!(loss.unwrap_err().to_string().contains("the log loss is"));
            // More than any site counts: it would be most of what all sites together say.
            for many in [1 << 40, i64::MAX - 1_000] {
                let many = broken(start(layout.blocks()[0].0), many).unwrap_err().to_string();
                assert!(many.contains("records, and a site counts 67108864 at most"), "{many}");
            }
            let changed = broken(start(Block::Changed), 101);
            assert!(changed.unwrap_err().to_string().contains("a perturbation's count is"));
            if classes > 2 {
                let score = broken(start(Block::OneVsRest), 1);
                assert!(score.unwrap_err().to_string().contains("scores of class 0 are 101"));
                assert!(broken(start(Block::Confidence), 1).is_err());
            }
        }
    }
}
