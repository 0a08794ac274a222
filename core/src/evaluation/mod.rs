//! Federated evaluation: how good a candidate is, measured at the sites on records that were never trained on.
//!
//! [`holdout`] says which records those are. [`cells`] is what a site counts over them, and the noise that makes the counts
//! fit to leave. [`answer`] is what a site signs about them. [`figures`] is what the coordinator, and whoever audits it,
//! makes of the sum: accuracy, areas under curves, calibration and fairness, each with an interval. `crate::gate` judges by
//! those.
//!
//! Nothing here knows a record's row: a site hands in what is so and what the model says, and a group, and gets counts.

pub mod answer;
pub mod cells;
pub mod check;
pub mod figures;
pub mod holdout;

use crate::{
    dp::rdp::{AccountantError, RdpCurve},
    evaluation::cells::Layout,
};

/// Protected attributes that one study can look at: two, and their intersection.
pub const ATTRIBUTES_MAX: usize = 2;
/// Groups of one attribute, the one for all other values not counted.
pub const GROUPS_MAX: usize = 32;
/// Score bins at most.
pub const BINS_MAX: u32 = 1_000;
/// Perturbations at most.
pub const PERTURBATIONS_MAX: usize = 16;
/// Columns whose distribution one study can watch.
pub const WATCHED_MAX: usize = 32;

/// How a study's candidates are evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// On which records.
    pub held_out: HeldOut,
    /// Every so many rounds, and in the last one.
    pub every: u32,
    /// What makes the counts fit to leave a site.
    pub noise: Noise,
    /// Bins of equal width that a score, the probability of a class, is counted in.
    pub bins: u32,
    /// Bins of equal width in which calibration is looked at.
    pub calibration_bins: u32,
    /// From which probability on a record counts as positive, where there are two classes.
    pub threshold: f64,
    /// Protected attributes.
    pub attributes: Vec<Attribute>,
    /// Groups with fewer records than this, over all sites, are merged.
    pub group_min: u32,
    /// How sure the intervals are, for example 0.95.
    pub confidence: f64,
    /// What is done to records to see how much accuracy that costs.
    pub perturbations: Vec<Perturbation>,
    /// Columns whose distribution is held against a reference.
    pub drift: Vec<Watched>,
}

/// Which records candidates are evaluated on. They are never trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum HeldOut {
    /// This part of each site's records.
    Part(f64),
    /// All records of the data set that sites have bound to this name, beside the one that is trained on.
    Dataset(String),
}

/// What a model says of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// How probable each of so many classes is.
    Classes(u32),
    /// A number.
    Number {
        /// How far the bounds of the label are apart, in its own unit.
        width: f64,
    },
}

impl Target {
    /// How many outputs a model of it has.
    #[must_use]
    pub const fn outputs(self) -> u32 {
        match self {
            Self::Classes(classes) => classes,
            Self::Number { .. } => 1,
        }
    }

    /// Whether it is a number.
    #[must_use]
    pub const fn is_number(self) -> bool {
        matches!(self, Self::Number { .. })
    }
}

impl From<u32> for Target {
    fn from(classes: u32) -> Self {
        Self::Classes(classes)
    }
}

/// A column whose distribution is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// The column, which need not be one that the model sees, and what its values are put together to.
    pub values: Attribute,
    /// The part of the records that each of them had where the study was made; together 1.
    pub reference: Vec<f64>,
}

/// What makes counts fit to leave a site. Neighbours differ by one record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Noise {
    /// Discrete Laplace noise: pure DP.
    Laplace {
        /// What one evaluation costs.
        epsilon: f64,
    },
    /// Discrete Gaussian noise: zero-concentrated DP.
    Gaussian {
        /// What one evaluation costs.
        rho: f64,
    },
    /// None: only where a policy permits it by name.
    None,
}

impl Noise {
    /// What one evaluation costs a record.
    ///
    /// # Errors
    /// [`AccountantError`] when the cost is not a positive number.
    pub fn cost(&self) -> Result<RdpCurve, AccountantError> {
        match *self {
            Self::Laplace { epsilon } => RdpCurve::pure(epsilon),
            Self::Gaussian { rho } => RdpCurve::zcdp(rho),
            Self::None => Ok(RdpCurve::infinite()),
        }
    }

    /// The word that studies and the log use.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Laplace { .. } => "laplace",
            Self::Gaussian { .. } => "gaussian",
            Self::None => "none",
        }
    }
}

/// A protected attribute: a column, which need not be one that the model sees.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    /// The column's name in the CSV header.
    pub column: String,
    /// How its values become groups.
    pub groups: Groups,
}

/// How the values of a protected attribute become groups. Whatever is in none of them is in a last one, *other*.
#[derive(Clone, Debug, PartialEq)]
pub enum Groups {
    /// One for each of these values.
    Values(Vec<String>),
    /// Numbers, cut at these edges: below the first, from each to below the next, from the last on.
    Bands(Vec<f64>),
}

impl Attribute {
    /// How many groups there are, *other* included.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.groups {
            Groups::Values(values) => values.len() + 1,
            Groups::Bands(edges) => edges.len() + 2,
        }
    }

    /// There always is *other*.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// The group of a cell of the column.
    #[must_use]
    pub fn group_of(&self, cell: &str) -> usize {
        let other = self.len() - 1;
        match &self.groups {
            Groups::Values(values) => values.iter().position(|v| v == cell).unwrap_or(other),
            Groups::Bands(edges) => match cell.parse::<f64>() {
                Ok(v) if v.is_finite() => edges.iter().filter(|edge| v >= **edge).count(),
                _ => other,
            },
        }
    }

    /// A group's name: the column and what it holds there.
    #[must_use]
    pub fn name_of(&self, group: usize) -> String {
        let column = &self.column;
        if group + 1 >= self.len() {
            return format!("{column}=other");
        }
        match &self.groups {
            Groups::Values(values) => format!("{column}={}", values[group]),
            Groups::Bands(edges) => match group {
                0 => format!("{column}<{}", edges[0]),
                g if g == edges.len() => format!("{column}>={}", edges[g - 1]),
                g => format!("{}<={column}<{}", edges[g - 1], edges[g]),
            },
        }
    }
}

/// What is done to a record's inputs, as the model sees them: scaled to [-1, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Perturbation {
    /// Normal noise of this standard deviation on each input.
    GaussianNoise {
        /// Standard deviation.
        std: f64,
    },
    /// Each input becomes -1 or 1 with this chance.
    Salt {
        /// The chance.
        rate: f64,
    },
    /// Each input becomes what an empty cell is, with this chance.
    Missing {
        /// The chance.
        rate: f64,
    },
    /// Each input moves by this much.
    Shift {
        /// How far.
        by: f64,
    },
    /// One step of this length in each input, in the direction that raises the loss (Goodfellow et al. 2015, section 4).
    Fgsm {
        /// The longest way of one input.
        epsilon: f64,
    },
    /// Several such steps that stay within this distance (Madry et al. 2018, section 2.1), from where the record is.
    Pgd {
        /// The longest way of one input.
        epsilon: f64,
        /// How many steps; each goes 2.5 epsilon over their number.
        steps: u32,
    },
}

impl Perturbation {
    /// The word that studies use.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::GaussianNoise { .. } => "gaussian_noise",
            Self::Salt { .. } => "salt",
            Self::Missing { .. } => "missing",
            Self::Shift { .. } => "shift",
            Self::Fgsm { .. } => "fgsm",
            Self::Pgd { .. } => "pgd",
        }
    }

    /// Its name and settings, as figures show it.
    #[must_use]
    pub fn name(&self) -> String {
        let word = self.as_str();
        match self {
            Self::GaussianNoise { std } => format!("{word}({std})"),
            Self::Salt { rate } | Self::Missing { rate } => format!("{word}({rate})"),
            Self::Shift { by } => format!("{word}({by})"),
            Self::Fgsm { epsilon } => format!("{word}({epsilon})"),
            Self::Pgd { epsilon, steps } => format!("{word}({epsilon}, {steps} steps)"),
        }
    }
}

impl Evaluation {
    /// Whether a round of so many is evaluated.
    #[must_use]
    pub const fn is_due(&self, round: u32, rounds: u32) -> bool {
        round == rounds || (self.every > 0 && round.is_multiple_of(self.every))
    }

    /// How many of so many rounds are evaluated.
    #[must_use]
    pub const fn times(&self, rounds: u32) -> u32 {
        match rounds.checked_div(self.every) {
            Some(times) if rounds.is_multiple_of(self.every) => times,
            Some(times) => times + 1,
            None => 1,
        }
    }

    /// What a site counts about a model that says this.
    #[must_use]
    pub fn layout(&self, target: impl Into<Target>) -> Layout {
        Layout::new(self, target.into())
    }

    /// Every column that is looked at beside those that the model sees: protected attributes, then watched ones.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        let watched = self.drift.iter().map(|w| &w.values);
        self.attributes.iter().chain(watched).map(|a| a.column.as_str())
    }

    /// Cells of the finest grouping: one for each combination of the attributes' groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.attributes.iter().map(Attribute::len).product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_one_group_and_the_rest_in_other() {
        let sex = Attribute {
            column: "SEX".into(),
            groups: Groups::Values(vec!["1".into(), "2".into()]),
        };
        assert_eq!(["1", "2", "3", ""].map(|c| sex.group_of(c)), [0, 1, 2, 2]);
        assert_eq!([0, 2].map(|g| sex.name_of(g)), ["SEX=1", "SEX=other"]);
        let age = Attribute { column: "AGE".into(), groups: Groups::Bands(vec![30.0, 50.0]) };
        assert_eq!(["29.9", "30", "50", "x", "NaN"].map(|c| age.group_of(c)), [0, 1, 2, 3, 3]);
        assert_eq!([0, 1, 2].map(|g| age.name_of(g)), ["AGE<30", "30<=AGE<50", "AGE>=50"]);
    }

    #[test]
    fn rounds_are_evaluated_as_often_as_it_is_said_and_the_last_one_always() {
        for (every, rounds) in [(1, 7), (3, 7), (7, 7), (10, 7), (4, 8)] {
            let e = Evaluation { every, ..crate::evaluation::cells::tests::settings() };
            let due = (1..=rounds).filter(|r| e.is_due(*r, rounds)).count();
            assert_eq!(due, e.times(rounds) as usize, "every {every} of {rounds}");
            assert!(e.is_due(rounds, rounds));
        }
    }
}
