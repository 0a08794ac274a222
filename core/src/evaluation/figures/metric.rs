//! What is measured.

use super::drift::PSI_MAX;
use crate::{
    evaluation::{
        Target,
        cells::{LOG_LOSS_MAX, RECORDS_MAX},
    },
    study::SITES_MAX,
};

/// Records of as many sites as there can be.
#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
const RECORDS_OF_ALL: f64 = RECORDS_MAX as f64 * SITES_MAX as f64;
/// Less than this a coefficient of determination is not said to be.
const R2_LEAST: f64 = -1_000.0;

/// What is measured. The definitions are those of scikit-learn and fairlearn, by these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// How many records were counted. It says who takes part, and nothing of the model.
    Records,
    /// Ratio of the records whose class was said.
    Accuracy,
    /// Mean of the classes' recalls.
    BalancedAccuracy,
    /// Ratio of what was said to be positive that is; the mean over classes where there are more than two.
    Precision,
    /// Ratio of the positives that was said to be; the mean over classes where there are more than two.
    Recall,
    /// Ratio of the negatives that was said to be negative.
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
    /// Ratio that is said to be positive.
    SelectionRate,
    /// The least recall of a class.
    WorstClassRecall,
    /// Mean absolute error of a number, in its own unit.
    Mae,
    /// Root of the mean squared error of a number, in its own unit.
    Rmse,
    /// Coefficient of determination: the part of a number's variance that is no error; what is below -1,000 is said to be that.
    R2,
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
    /// The largest difference of mean absolute errors between groups.
    MaeDifference,
    /// The largest mean absolute error of a group.
    WorstGroupMae,
    /// Accuracy that a perturbation costs.
    AccuracyDrop,
    /// Population stability index of a watched column against its reference: Jeffreys' divergence, in nats, of parts that are
    /// at least 0.0001.
    Psi,
    /// The largest difference between a watched column's cumulated parts and those of its reference (Kolmogorov and Smirnov).
    Ks,
    /// Jensen and Shannon's distance between a watched column and its reference: the root of the divergence, in bits.
    JensenShannon,
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
    /// A watched column.
    Column,
}

/// In which direction a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The more the better.
    Higher,
    /// The less the better.
    Lower,
}

impl Better {
    /// What has to be reached, in the words of a bound.
    #[must_use]
    pub const fn bound(self) -> &'static str {
        match self {
            Self::Higher => "at least",
            Self::Lower => "at most",
        }
    }
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 33] = [
        Self::Records,
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
        Self::Mae,
        Self::Rmse,
        Self::R2,
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
        Self::MaeDifference,
        Self::WorstGroupMae,
        Self::AccuracyDrop,
        Self::Psi,
        Self::Ks,
        Self::JensenShannon,
    ];

    /// The word that studies, gates and the log use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Records => "records",
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
            Self::Mae => "mae",
            Self::Rmse => "rmse",
            Self::R2 => "r2",
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
            Self::MaeDifference => "mae_difference",
            Self::WorstGroupMae => "worst_group_mae",
            Self::AccuracyDrop => "accuracy_drop",
            Self::Psi => "psi",
            Self::Ks => "ks",
            Self::JensenShannon => "jensen_shannon",
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
            Self::Records
            | Self::Accuracy
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
            | Self::WorstClassRecall
            | Self::Mae
            | Self::Rmse
            | Self::R2 => Kind::Records,
            Self::AccuracyDrop => Kind::Perturbation,
            Self::Psi | Self::Ks | Self::JensenShannon => Kind::Column,
            _ => Kind::Groups,
        }
    }

    /// In which direction a model is better by it; none where neither is, or where it says nothing of the model.
    #[must_use]
    pub const fn better(self) -> Option<Better> {
        match self {
            Self::Accuracy
            | Self::BalancedAccuracy
            | Self::Precision
            | Self::Recall
            | Self::Specificity
            | Self::F1
            | Self::RocAuc
            | Self::PrAuc
            | Self::WorstClassRecall
            | Self::R2
            | Self::DemographicParityRatio
            | Self::EqualizedOddsRatio
            | Self::WorstGroupRecall
            | Self::WorstGroupAccuracy => Some(Better::Higher),
            Self::LogLoss
            | Self::Brier
            | Self::Ece
            | Self::Mae
            | Self::Rmse
            | Self::DemographicParityDifference
            | Self::EqualOpportunityDifference
            | Self::EqualizedOddsDifference
            | Self::PredictiveParityDifference
            | Self::AccuracyDifference
            | Self::WorstGroupEce
            | Self::MaeDifference
            | Self::WorstGroupMae
            | Self::AccuracyDrop => Some(Better::Lower),
            Self::Records | Self::SelectionRate | Self::Psi | Self::Ks | Self::JensenShannon => {
                None
            }
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

    /// Whether it is for labels that are numbers.
    #[must_use]
    pub const fn is_of_numbers(self) -> bool {
        matches!(
            self,
            Self::Mae | Self::Rmse | Self::R2 | Self::MaeDifference | Self::WorstGroupMae
        )
    }

    /// Whether it has a meaning for what a model says.
    #[must_use]
    pub const fn is_for(self, target: Target) -> bool {
        match target {
            _ if matches!(self, Self::Records) => true,
            Target::Number { .. } => self.is_of_numbers() || matches!(self.kind(), Kind::Column),
            Target::Classes(classes) => {
                !self.is_of_numbers() && (classes == 2 || !self.is_binary_only())
            }
        }
    }

    /// Whether it is counted by group for more than two classes.
    #[must_use]
    pub const fn is_by_group(self) -> bool {
        !matches!(self, Self::RocAuc | Self::PrAuc | Self::Ece)
    }

    /// The largest value that it can have for what a model says.
    #[must_use]
    pub const fn most(self, target: Target) -> f64 {
        match (self, target) {
            (Self::Records, _) => RECORDS_OF_ALL,
            (Self::LogLoss, _) => LOG_LOSS_MAX,
            (Self::Psi, _) => PSI_MAX,
            (Self::R2, _) => 1.0,
            (_, Target::Number { width }) if self.is_of_numbers() => width,
            (Self::Brier, Target::Classes(classes)) if classes > 2 => 2.0,
            _ => 1.0,
        }
    }

    /// Whether the lower end of an interval can be the largest value: not where there is one more record that might not be so.
    #[must_use]
    pub const fn reaches_most(self) -> bool {
        !matches!(
            self,
            Self::Accuracy
                | Self::BalancedAccuracy
                | Self::Precision
                | Self::Recall
                | Self::Specificity
                | Self::F1
                | Self::RocAuc
                | Self::PrAuc
                | Self::SelectionRate
                | Self::WorstClassRecall
                | Self::DemographicParityRatio
                | Self::EqualizedOddsRatio
                | Self::WorstGroupRecall
                | Self::AccuracyDrop
                | Self::WorstGroupAccuracy
        )
    }

    /// Whether the upper end of an interval can be the smallest value. Of losses it can, and of what noise may put below it.
    #[must_use]
    pub const fn reaches_least(self) -> bool {
        !matches!(
            self,
            Self::Records
                | Self::Accuracy
                | Self::BalancedAccuracy
                | Self::Precision
                | Self::Recall
                | Self::Specificity
                | Self::F1
                | Self::RocAuc
                | Self::Ece
                | Self::SelectionRate
                | Self::WorstClassRecall
                | Self::DemographicParityDifference
                | Self::DemographicParityRatio
                | Self::EqualOpportunityDifference
                | Self::EqualizedOddsDifference
                | Self::EqualizedOddsRatio
                | Self::PredictiveParityDifference
                | Self::AccuracyDifference
                | Self::WorstGroupRecall
                | Self::WorstGroupAccuracy
                | Self::WorstGroupEce
                | Self::AccuracyDrop
                | Self::Ks
        )
    }

    /// The smallest value that it can have.
    #[must_use]
    pub const fn least(self) -> f64 {
        match self {
            Self::AccuracyDrop => -1.0,
            Self::R2 => R2_LEAST,
            _ => 0.0,
        }
    }
}
