//! Rules by which updates become one that a few bad updates cannot carry away.
//!
//! [`Accumulator`] takes the mean, which one update can move anywhere. The rules here bound what updates can do that
//! may be anything at all, their number and not their size given. `n` is the number of updates, `f` of them are bad:
//!
//! | rule | result | source | bad updates that it bears |
//! |---|---|---|---|
//! | median | in each coordinate, the mean of the two middle ones of an even number | Yin et al. 2018 (arXiv 1803.01498), definition 1 | f < n/2: each coordinate stays between good ones |
//! | trimmed mean | in each coordinate, the mean without the f largest and the f smallest | the same, definition 2 | f, of n >= 2f + 1: each coordinate stays between good ones |
//! | Krum | the update with the least sum of squared distances to its n - f - 2 nearest | Blanchard et al. 2017 (arXiv 1703.02757), section 4 | f, of n >= 2f + 3: some good update is within √(n - f - 2) times the good ones' diameter of it |
//! | multi-Krum | the mean of the `keep` updates that Krum likes best | the same, section 6 | f, while keep <= n - f - 2: the same of each that is kept |
//! | geometric median | the point with the least sum of distances to all | Pillutla, Kakade, Harchaoui 2022 (arXiv 1912.13445), smoothed Weiszfeld algorithm | f < n/2: within 2(n - f)/(n - 2f) times the good ones' reach of their mean |
//! | norm-bounded mean | the mean after longer updates were shortened to a norm | Sun et al. 2019 (arXiv 1911.07963), norm thresholding | any, each moves the result by at most norm/n; with the median's norm, f < n/2 |
//!
//! All updates count the same: a site says its own weight, so that one bad site could say that it is many.
//!
//! # How
//! No rule holds the updates. Their bytes are asked for block by block, the same block of each, and a block is short
//! where updates are many: memory is [`ROWS_BYTES`] and what a block of the model takes. Median and trimmed mean are
//! taken within a block. The others depend on how long updates are or how far from each other: one pass over all
//! blocks measures that, exactly, in integers, and gives each update a weight; the second pass is a weighted mean, by
//! [`Accumulator`]. For the geometric median too one pass is enough: every iterate of Weiszfeld's algorithm is a mean
//! of the updates with some weights `λ`, so its distance to update `k` follows from the distances `D` between updates,
//! `|Σ λᵢ uᵢ - uₖ|² = Σ λᵢ Dᵢₖ - ½ ΣΣ λᵢ λⱼ Dᵢⱼ`, and the iteration touches no parameter. It begins at the update with the
//! least sum of distances, and no step makes the sum longer: an iteration that ends before it has settled is at most
//! 4(n - f)/(n - 2f) + 1 times the good ones' reach from their mean.
//!
//! # No bit depends on who came first
//! Whoever calls orders updates by their sites' ids. Sums, products, order and distances are exact. Floating point
//! comes in with the weights of the last two rules, a fixed sequence of operations that are each rounded to nearest;
//! they are cut to multiples of a power of two, and the sums are whole numbers again. As with the mean, one
//! coordinate is rounded twice at the end: to f64, and to f32 with the base. Where all updates are the same the
//! result is the mean's, up to the last bit of that f64.
//!
//! # Rotated updates
//! Rotation is orthogonal, so lengths and distances are as they were, and with them all rules but the first two.
//! Median and trimmed mean are taken in the rotated coordinates and turned back: each *rotated* coordinate is between
//! good ones then, and whatever bound they give for the length of an error holds as it stands.

mod columns;
mod outliers;
mod pairs;
mod rows;

use crate::{
    aggregate::{Accumulator, AggregateError, move_by},
    dp::Rotation,
    study::SITES_MAX,
    update::Encoding,
};
use columns::Trim;
use pairs::Gram;
use rows::Rows;

pub use outliers::{
    Compared, NotCompared, OUTLIERS_MAX, OUTLIERS_MIN, Outlier, Standing, outliers,
};

/// What the blocks of all updates take together, unless there are so many that the shortest block of each takes more.
pub const ROWS_BYTES: usize = 1 << 20;
/// The most updates between which all distances are kept.
pub const PAIRS_MAX: u32 = 1_024;

/// How the updates of a round become one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Rule {
    /// Their mean, weighted as the study says.
    #[default]
    Mean,
    /// The median of each coordinate.
    Median,
    /// The mean of each coordinate without its ends.
    TrimmedMean {
        /// Values that are left out at either end: as many updates may be bad.
        byzantine: u32,
    },
    /// The update that lies closest to its neighbours.
    Krum {
        /// Updates that may be bad.
        byzantine: u32,
    },
    /// The mean of those that lie closest to their neighbours.
    MultiKrum {
        /// Updates that may be bad.
        byzantine: u32,
        /// Updates whose mean it is; as many as the theorem allows where it is absent.
        keep: Option<u32>,
    },
    /// The point with the least sum of distances to all.
    GeometricMedian,
    /// The mean after the long ones were shortened.
    NormBounded {
        /// The longest that an update may be, L2; where it is absent, the median of their norms.
        clip_norm: Option<f64>,
    },
}

/// Why a rule gives nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The rule promises nothing for so few.
    #[error("{rule} of {updates} updates bounds nothing: it needs at least {needs}")]
    TooFew {
        /// The rule, as studies spell it.
        rule: &'static str,
        /// Updates that there are.
        updates: u64,
        /// Updates that it takes.
        needs: u64,
    },
    /// Memory would grow with them.
    #[error("{rule} takes at most {most} updates, there are {updates}")]
    TooMany {
        /// The rule, as studies spell it.
        rule: &'static str,
        /// Updates that there are.
        updates: u64,
        /// The most that it takes.
        most: u64,
    },
    /// It would bear nothing that the mean does not.
    #[error("{0} that bears no bad update is another word for something simpler")]
    BearsNone(&'static str),
    /// Nothing, or bad updates, would be kept.
    #[error("multi_krum keeps at least 1 update, and at most {most} of {updates}, not {keep}")]
    Keep {
        /// Updates to keep.
        keep: u32,
        /// The most of which each is near good ones.
        most: u64,
        /// Updates that there are.
        updates: u64,
    },
    /// No length.
    #[error("an update cannot be shortened to a norm that is not a positive number")]
    ClipNorm,
}

impl Rule {
    /// The word that studies and the log use.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Median => "median",
            Self::TrimmedMean { .. } => "trimmed_mean",
            Self::Krum { .. } => "krum",
            Self::MultiKrum { .. } => "multi_krum",
            Self::GeometricMedian => "geometric_median",
            Self::NormBounded { .. } => "norm_bounded",
        }
    }

    /// Fewest updates for which it promises something.
    #[must_use]
    pub fn updates_min(&self) -> u64 {
        match *self {
            Self::Mean | Self::NormBounded { clip_norm: Some(_) } => 1,
            // With fewer, one bad update is half of them.
            Self::Median | Self::GeometricMedian | Self::NormBounded { clip_norm: None } => 3,
            Self::TrimmedMean { byzantine } => 2 * u64::from(byzantine) + 1,
            Self::Krum { byzantine } => 2 * u64::from(byzantine) + 3,
            Self::MultiKrum { byzantine, keep } => (2 * u64::from(byzantine) + 3)
                .max(u64::from(byzantine) + 2 + u64::from(keep.unwrap_or(1))),
        }
    }

    /// Most updates that it takes.
    #[must_use]
    pub const fn updates_max(&self) -> u32 {
        match self {
            Self::Krum { .. } | Self::MultiKrum { .. } | Self::GeometricMedian => PAIRS_MAX,
            _ => SITES_MAX,
        }
    }

    /// Whether it promises something for so many updates.
    ///
    /// # Errors
    /// [`RuleError`], which says what it would take.
    pub fn admits(&self, updates: u64) -> Result<(), RuleError> {
        let rule = self.as_str();
        match *self {
            Self::TrimmedMean { byzantine: 0 }
            | Self::Krum { byzantine: 0 }
            | Self::MultiKrum { byzantine: 0, .. } => return Err(RuleError::BearsNone(rule)),
            Self::NormBounded { clip_norm: Some(norm) } if !(norm.is_finite() && norm > 0.0) => {
                return Err(RuleError::ClipNorm);
            }
            Self::MultiKrum { byzantine, keep: Some(keep) } => {
                let most = updates.saturating_sub(u64::from(byzantine) + 2);
                let enough = updates >= 2 * u64::from(byzantine) + 3;
                if keep == 0 || enough && u64::from(keep) > most {
                    return Err(RuleError::Keep { keep, most, updates });
                }
            }
            _ => {}
        }
        let (needs, most) = (self.updates_min(), u64::from(self.updates_max()));
        if updates < needs {
            return Err(RuleError::TooFew { rule, updates, needs });
        }
        if updates > most {
            return Err(RuleError::TooMany { rule, updates, most });
        }
        Ok(())
    }
}

/// The updates of one round, in the order of their sites' ids.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many there are.
    pub updates: usize,
    /// Values in each.
    pub params: usize,
    /// Their grid.
    pub encoding: Encoding,
}

/// A rule that has measured the updates of a round, and now moves the base block by block.
///
/// Everywhere, `read(update, at, bytes)` fills `bytes` with the payload of an update from byte number `at` on.
pub struct BlockRule {
    shape: Shape,
    how: How,
    rows: Rows,
    bytes: Vec<u8>,
    means: Vec<f64>,
}

enum How {
    /// Coordinate by coordinate.
    Columns(Trim),
    /// A mean with weights: what each update counts, and what the sum is divided by.
    Weighted { weights: Vec<u32>, divisor: u64 },
}

impl BlockRule {
    /// Reads the updates as often as the rule takes it to know how far each of them counts.
    ///
    /// # Errors
    /// [`RuleError`] as [`AggregateError`], before a byte is read, and whatever reading gives.
    ///
    /// # Panics
    /// Never: no rule admits more updates than can be counted.
    pub fn measure<E: From<AggregateError>>(
        rule: Rule,
        shape: Shape,
        mut read: impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let updates = shape.updates;
        rule.admits(updates as u64).map_err(AggregateError::from)?;
        let count = u32::try_from(updates).expect("invariant: no rule admits so many");
        let mut rows = Rows::new(&shape);
        let how = match rule {
            Rule::Mean => How::Weighted { weights: vec![1; updates], divisor: u64::from(count) },
            Rule::Median => How::Columns(Trim::new(updates, (updates - 1) / 2)),
            Rule::TrimmedMean { byzantine } => How::Columns(Trim::new(updates, byzantine as usize)),
            Rule::Krum { byzantine } | Rule::MultiKrum { byzantine, .. } => {
                let most = count - byzantine - 2;
                let keep = match rule {
                    Rule::MultiKrum { keep, .. } => keep.unwrap_or(most),
                    _ => 1,
                };
                let gram = Gram::measure(&mut rows, &mut read)?;
                let mut weights = vec![0; updates];
                for update in gram.closest(most as usize, keep as usize) {
                    weights[update] = 1;
                }
                How::Weighted { weights, divisor: u64::from(keep) }
            }
            Rule::GeometricMedian => {
                let weights = Gram::measure(&mut rows, &mut read)?.geometric_median();
                let weights = pairs::cut(&weights, weight_bits(&shape, 1));
                let divisor = weights.iter().copied().map(u64::from).sum();
                How::Weighted { weights, divisor }
            }
            Rule::NormBounded { clip_norm } => {
                let squares = pairs::squares(&mut rows, &mut read)?;
                let bits = weight_bits(&shape, u64::from(count));
                let clip_norm = clip_norm.map(|norm| norm / shape.encoding.step());
                let shares = pairs::shortened(&squares, clip_norm);
                let weights = pairs::cut(&shares, bits);
                How::Weighted { weights, divisor: u64::from(count) << bits }
            }
        };
        Ok(Self { shape, how, rows, bytes: Vec::new(), means: Vec::new() })
    }

    /// What each update counts for, and what the sum of the counted is divided by; `None` where each coordinate has its
    /// own answer.
    #[must_use]
    pub fn weights(&self) -> Option<(&[u32], u64)> {
        match &self.how {
            How::Columns(_) => None,
            How::Weighted { weights, divisor } => Some((weights, *divisor)),
        }
    }

    /// Moves a block of the base model, in place, as [`Accumulator::move_base`] does with the mean: `model` holds the
    /// parameters from number `at` on as they travel. Of rotated updates a block is whole blocks of [`Rotation::block`].
    ///
    /// # Errors
    /// [`AggregateError`], and whatever reading gives; then the block is not to be used.
    pub fn move_base<E: From<AggregateError>>(
        &mut self,
        at: usize,
        model: &mut [u8],
        server_learning_rate: f64,
        rotation: Option<&Rotation>,
        mut read: impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let params = self.shape.params;
        let values = model.len() / 4;
        if at.checked_add(values).is_none_or(|end| end > params) {
            return Err(AggregateError::Shape { bytes: model.len(), at, params }.into());
        }
        let mut means = std::mem::take(&mut self.means);
        means.clear();
        means.resize(values, 0.0);
        match &self.how {
            How::Columns(trim) => {
                let step = self.shape.encoding.step();
                self.rows.trimmed(at, trim, step, &mut means, &mut read)?;
            }
            How::Weighted { weights, divisor } => {
                let encoding = self.shape.encoding;
                let block = (&mut *means, &mut self.bytes);
                weighted(at, encoding, (weights, *divisor), block, &mut read)?;
            }
        }
        move_by(at, params, model, &mut means, server_learning_rate, rotation)?;
        self.means = means;
        Ok(())
    }
}

/// Means of one block, of updates that count differently.
fn weighted<E: From<AggregateError>>(
    at: usize,
    encoding: Encoding,
    (weights, divisor): (&[u32], u64),
    (means, bytes): (&mut [f64], &mut Vec<u8>),
    read: &mut impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let width = encoding.bytes_per_value();
    let short = rows::SPAN_MAX.min(means.len());
    bytes.resize(short * width, 0);
    let mut sums = Accumulator::new(short, encoding);
    for (i, means) in means.chunks_mut(rows::SPAN_MAX).enumerate() {
        let from = at + i * rows::SPAN_MAX;
        let bytes = &mut bytes[..means.len() * width];
        sums.reset();
        for (update, &weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0) {
            read(update, (from * width) as u64, bytes)?;
            sums.admit(weight)?;
            sums.fold_values(0, bytes, weight)?;
        }
        sums.quotients_from(0, divisor, means);
    }
    Ok(())
}

/// Bits of the fraction to which weights are cut that add up to at most `total`: sums must fit 64 bits.
const fn weight_bits(shape: &Shape, total: u64) -> u32 {
    let room = 62 - (shape.encoding.bits() as u32 - 1) - total.next_power_of_two().ilog2();
    if room < 30 { room } else { 30 }
}
