//! A study: what was agreed about data, model, training, privacy and rounds.
//!
//! A study is declarative: nothing in it is code. [`Study::check`] finds what contradicts itself and
//! says how to mend it; the YAML spelling, with lines and columns, lives in `falaj-proto`.

use crate::{
    dp::{
        AdaptiveClipping, Batches, Distributed, DistributedError, Ftrl, Poisson, Rotation, Unit,
        ftrl,
        rdp::{AccountantError, RdpCurve},
    },
    evaluation::{self, Evaluation, HeldOut, Target},
    gate::{
        self,
        patience::{Patience, Progress},
    },
    id::{Digest, Place, SiteId, StudyId},
    manifest::{Manifest, ManifestError},
    model::{Conv, ModelSpec, Tokens},
    robust::{OUTLIERS_MAX, OUTLIERS_MIN, Rule, RuleError},
    secagg::MEMBERS_MAX,
    update::Encoding,
};

/// The largest number of examples that may stand behind one update.
pub const WEIGHT_MAX: u32 = 10_000_000;
/// The most rounds that one study may plan.
pub const ROUNDS_MAX: u32 = 100_000;
/// The most sites that one round takes in.
pub const SITES_MAX: u32 = 10_000;

/// What was agreed.
#[derive(Clone, Debug, PartialEq)]
pub struct Study {
    /// Its name at the coordinator.
    pub id: StudyId,
    /// Why the data may be used: shown to the site's steward and kept in the log.
    pub purpose: String,
    /// Which records, and what is read from them.
    pub data: Data,
    /// What is learned.
    pub model: Model,
    /// How a site trains.
    pub training: Training,
    /// How records are protected.
    pub privacy: Privacy,
    /// The grid on which updates travel.
    pub sealing: Sealing,
    /// Who takes part.
    pub cohort: Cohort,
    /// How the updates of a round become one.
    pub aggregation: Rule,
    /// How rounds run.
    pub rounds: Rounds,
    /// On what ground the data may be used.
    pub governance: Governance,
    /// How candidates are evaluated on records that are held out, if they are.
    pub evaluation: Option<Evaluation>,
    /// What a candidate must show before it becomes a model.
    pub gates: Vec<gate::Declared>,
    /// When the study has learned what it can, if it ends by that.
    pub patience: Option<Patience>,
}

/// Witnesses that can stand behind a log at once.
const WITNESSES_MAX: u32 = 60;
/// Times that a round can be tried again.
const RETRIES_MAX: u32 = 100;
/// Seconds for which witnesses of a round can be waited for.
const WITNESS_WAIT_MAX_S: u32 = 3_600;

/// On what ground the data may be used: references to papers that are kept elsewhere, for the audit report. Nothing here
/// is checked against those papers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Governance {
    /// The legal basis or exception that is relied on, in the words of whoever submits the study.
    pub legal_basis: Option<String>,
    /// The data protection impact assessment.
    pub dpia: Option<String>,
    /// The consent or permission under which records are used.
    pub consent: Option<Consent>,
    /// How long records of the study are kept.
    pub retention: Option<Retention>,
    /// Who must stand behind a round before its model is the study's.
    pub witnesses: Option<WitnessQuorum>,
}

/// How many witnesses of the log must have cosigned it with every entry of a round in it before the round's model is the
/// study's, and how long they are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WitnessQuorum {
    /// At least so many, sites and outside witnesses together.
    pub quorum: u32,
    /// In seconds. A round for which there are fewer by then gives no model.
    pub within_s: u32,
}

/// A consent or permission, and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    /// Where it is kept.
    pub reference: String,
    /// Its last day, `2027-06-30`, in UTC.
    pub expires: String,
}

impl Consent {
    /// Whether it had ended at `ts`, RFC 3339 in UTC.
    #[must_use]
    pub fn is_over(&self, ts: &str) -> bool {
        ts.get(..10).is_none_or(|day| *day > *self.expires)
    }
}

/// How long records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Six months.
    Months6,
    /// Five years.
    Years5,
    /// Ten years.
    Years10,
    /// Twenty-five years, as health records are.
    Years25,
}

impl Retention {
    /// The word that studies use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Months6 => "6m",
            Self::Years5 => "5y",
            Self::Years10 => "10y",
            Self::Years25 => "25y",
        }
    }

    /// How many months that is.
    #[must_use]
    pub const fn months(self) -> u32 {
        match self {
            Self::Months6 => 6,
            Self::Years5 => 60,
            Self::Years10 => 120,
            Self::Years25 => 300,
        }
    }
}

/// Which records, and what is read from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// The name under which each site has bound its own records.
    pub dataset: String,
    /// Columns that the model sees, in input order.
    pub features: Vec<Feature>,
    /// The column to predict.
    pub label: Label,
}

/// One input column.
#[derive(Clone, Debug, PartialEq)]
pub struct Feature {
    /// The column's name in the CSV header.
    pub name: String,
    /// How it becomes numbers.
    pub kind: FeatureKind,
}

/// How a column becomes numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum FeatureKind {
    /// A number, clamped to its bounds and scaled to [-1, 1]. One input.
    Numeric {
        /// Where the bounds come from.
        bounds: Bounds,
        /// What an empty cell means.
        missing: Missing,
    },
    /// One of a fixed set of values, one-hot. As many inputs as values, and one more when
    /// missing cells are kept as their own category.
    Categorical {
        /// The values that are allowed.
        values: Vec<String>,
        /// What an empty cell means.
        missing: Missing,
    },
}

/// Where a numeric column's bounds come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bounds {
    /// Public knowledge, written in the study.
    Declared {
        /// Scaled to -1.
        min: f64,
        /// Scaled to 1.
        max: f64,
    },
    /// Estimated at the site from its records by a differentially private histogram; the bounds
    /// never leave the site.
    Estimated {
        /// What the estimate costs, once per site, in pure epsilon.
        epsilon: f64,
    },
}

/// What an empty cell means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The row breaks the schema and is reported.
    Refuse,
    /// Numeric: the middle of the bounds. Categorical: a category of its own.
    Keep,
}

/// The column to predict.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// The column's name in the CSV header.
    pub column: String,
    /// What it holds.
    pub values: LabelValues,
}

/// What the column to predict holds.
#[derive(Clone, Debug, PartialEq)]
pub enum LabelValues {
    /// One of these, in class order; for two classes the second is the positive one.
    Classes(Vec<String>),
    /// A number, cut at its bounds, which are public knowledge.
    Number {
        /// The least.
        min: f64,
        /// The most.
        max: f64,
    },
}

impl Label {
    /// Its classes; none where it is a number.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        match &self.values {
            LabelValues::Classes(classes) => classes,
            LabelValues::Number { .. } => &[],
        }
    }
}

/// What is learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// Multinomial logistic regression.
    Logistic,
    /// Linear regression, for a label that is a number.
    Linear,
    /// A multi-layer perceptron with ReLU.
    Mlp {
        /// Widths of the hidden layers, from the input.
        hidden: Vec<u32>,
    },
    /// A small convolutional network over an image whose pixels are the features, row by row.
    Cnn {
        /// Pixels from top to bottom.
        height: u32,
        /// Pixels from left to right.
        width: u32,
        /// Values per pixel.
        channels: u32,
        /// Convolution layers, from the input.
        conv: Vec<Conv>,
        /// Width of the hidden layer after the convolutions.
        hidden: u32,
    },
    /// A small transformer encoder.
    Transformer {
        /// What the tokens are.
        tokens: TokenKind,
        /// Width of a token.
        width: u32,
        /// Heads of each attention.
        heads: u32,
        /// Blocks of attention and feed-forward.
        blocks: u32,
        /// Width inside each feed-forward.
        feed_forward: u32,
    },
}

/// What a transformer's tokens are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// One for each input.
    Columns,
    /// One for each feature, which holds a code from 0.
    Codes {
        /// Different codes.
        vocabulary: u32,
    },
    /// One for each step in time, whose values are neighbouring features.
    Steps {
        /// Values per step.
        channels: u32,
    },
}

/// How a privatised gradient becomes a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent.
    Sgd {
        /// Heavy-ball momentum (Polyak 1964), 0 for none.
        momentum: f64,
    },
    /// Adam (Kingma, Ba 2015) without the bias that the noise adds to its second moment
    /// (Tang, Panda, Lécuyer 2024, algorithm 1), and with decoupled weight decay
    /// (Loshchilov, Hutter 2019). Its state lasts one round.
    Adam {
        /// How much of each parameter a step takes away, times the learning rate; 0 for plain Adam.
        weight_decay: f64,
    },
}

/// How a site trains in one round.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// What the site minimises.
    pub algorithm: Algorithm,
    /// Optimiser steps per round.
    pub local_steps: u32,
    /// How each step's batch comes about.
    pub batches: Batches,
    /// Step size.
    pub learning_rate: f64,
    /// How a gradient becomes a step.
    pub optimizer: Optimizer,
    /// How much of the mean update is applied to the model, usually 1.
    pub server_learning_rate: f64,
}

/// What the site minimises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    /// The local loss (`McMahan` et al. 2017, algorithm 1).
    FedAvg,
    /// The local loss plus mu/2 times the squared distance from the base model
    /// (Li et al. 2020, section 3.2).
    FedProx {
        /// Strength of the pull towards the base model.
        mu: f64,
    },
}

/// How records are protected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Privacy {
    /// Where the noise is added.
    pub mechanism: Mechanism,
    /// The delta at which epsilon is stated.
    pub delta: f64,
    /// The most epsilon that this study may spend at one site.
    pub epsilon_limit: f64,
    /// What the noised example count (the update's weight) costs, once per site, in pure epsilon.
    pub weight_epsilon: f64,
}

/// Where the noise is added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mechanism {
    /// In each training step: record-level (Abadi et al. 2016, algorithm 1).
    DpSgd {
        /// Noise standard deviation over the clip norm.
        noise_multiplier: f64,
        /// L2 bound of one record's gradient, or where it begins.
        clip_norm: f64,
        /// How the bound moves; absent when it stays.
        adaptive: Option<AdaptiveClipping>,
    },
    /// In each training step, correlated over the steps of all rounds: record-level, for batches in a fixed order
    /// (Kairouz et al. 2021; [`Ftrl`]).
    DpFtrl {
        /// Noise standard deviation over what one record can move all steps together by.
        noise_multiplier: f64,
        /// L2 bound of one record's gradient.
        clip_norm: f64,
    },
    /// Once, on the site's whole update: site-level.
    LocalGaussian {
        /// Noise standard deviation over the clip norm.
        noise_multiplier: f64,
        /// L2 bound of the whole update.
        clip_norm: f64,
    },
    /// In shares, one at each site, under secure aggregation: against the coordinator too.
    DistributedGaussian {
        /// Noise standard deviation of the sum over what one unit can contribute to it.
        noise_multiplier: f64,
        /// L2 bound: of the whole update, or of one record's gradient.
        clip_norm: f64,
        /// Sites that may work with the coordinator, and keep their shares out.
        colluders: u32,
        /// What is protected.
        protects: Protects,
    },
    /// Nowhere: only where a policy permits it by name.
    None,
}

/// What noise in shares protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protects {
    /// A site's whole update.
    Site,
    /// One record: a round is one step, whose gradients are summed over a Poisson sample at each site.
    Record {
        /// What each site's sum is divided by: the records of a usual batch, in public.
        batch_size: u32,
    },
}

impl Mechanism {
    /// The word that studies, policies and the log use.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::DpSgd { .. } => "dp_sgd",
            Self::DpFtrl { .. } => "dp_ftrl",
            Self::LocalGaussian { .. } => "local_gaussian",
            Self::DistributedGaussian { .. } => "distributed_gaussian",
            Self::None => "none",
        }
    }
}

/// The grid on which updates travel: b-bit integers times a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sealing {
    /// Bits of one value, 8 to 32.
    pub bits: u8,
    /// The largest absolute value that one coordinate of an update can carry.
    pub range: f64,
    /// Whether updates are rotated at random before they are rounded.
    pub rotated: bool,
}

/// Who takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cohort {
    /// Places whose sites may join, as `jurisdiction/region` or `jurisdiction/*`.
    pub places: Vec<String>,
    /// Names of the sites that may join; empty means every site in the places.
    pub sites: Vec<String>,
    /// Updates without which a round fails.
    pub min_sites: u32,
    /// What an update counts for.
    pub weights: Weights,
}

impl Cohort {
    /// Whether `site` may take part, as far as the study itself says; policy decides as well.
    #[must_use]
    pub fn admits(&self, site: &SiteId) -> bool {
        let place: &Place = site.spiffe().place();
        self.places.iter().any(|p| place.matches(p))
            && (self.sites.is_empty() || self.sites.iter().any(|s| s == site.name()))
    }

    /// Why there can never be so many witnesses behind a round, where only sites that are named here may take part, and
    /// `outside` witnesses count beside them. A name counts as one site.
    #[must_use]
    pub fn quorum_beyond_reach(&self, wanted: WitnessQuorum, outside: usize) -> Option<Problem> {
        let (quorum, sites) = (wanted.quorum, self.sites.len());
        if sites == 0 || quorum as usize <= sites + outside {
            return None;
        }
        Some(Problem {
            at: "governance.witnesses".into(),
            what: format!(
                "a quorum of {quorum} witnesses cannot be reached: at most {} count, {sites} sites that `cohort.sites` names and {outside} outside witnesses that the coordinator asks and its trust.toml names",
                sites + outside
            ),
            mend: format!(
                "lower `quorum` to at most {}, name more sites, or have the coordinator's operator add outside witnesses under `[[log.witnesses]]` and in trust.toml",
                sites + outside
            ),
        })
    }

    /// The most members of a masked round with this many colluders: among more, a coordinator could show two
    /// lists of survivors that each have enough sites.
    #[must_use]
    pub fn masked_max(&self, colluders: u32) -> u32 {
        let most = u32::try_from(MEMBERS_MAX).unwrap_or(u32::MAX);
        (2 * self.min_sites.min(most)).saturating_sub(colluders + 1).min(most)
    }
}

/// What an update counts for in the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// The noised number of training examples behind it.
    Examples,
    /// The same for every site.
    Uniform,
}

/// How rounds run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// How many rounds are planned.
    pub count: u32,
    /// A round that has not its quorum after this long fails.
    pub deadline_s: u32,
    /// How long a round with quorum waits for the rest.
    pub grace_s: u32,
    /// A round that fails is tried again at most this often before the study fails.
    pub retries: u32,
}

/// One thing that is wrong with a study.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, as a dotted path: `privacy.noise_multiplier`, `data.features[3]`.
    pub at: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub mend: String,
}

impl Study {
    /// Numbers that the model takes in per record.
    #[must_use]
    pub fn inputs(&self) -> u32 {
        let width = |f: &Feature| match &f.kind {
            FeatureKind::Numeric { .. } => 1,
            FeatureKind::Categorical { values, missing } => {
                values.len() + usize::from(*missing == Missing::Keep)
            }
        };
        let total: usize = self.data.features.iter().map(width).sum();
        u32::try_from(total).unwrap_or(u32::MAX)
    }

    /// The model with its sizes filled in from the data.
    #[must_use]
    pub fn model_spec(&self) -> ModelSpec {
        let classes = self.target().outputs();
        match &self.model {
            Model::Logistic | Model::Linear => {
                ModelSpec::Logistic { features: self.inputs(), classes }
            }
            Model::Mlp { hidden } => {
                ModelSpec::Mlp { features: self.inputs(), hidden: hidden.clone(), classes }
            }
            Model::Cnn { height, width, channels, conv, hidden } => ModelSpec::Cnn {
                height: *height,
                width: *width,
                channels: *channels,
                conv: conv.clone(),
                hidden: *hidden,
                classes,
            },
            Model::Transformer { tokens, width, heads, blocks, feed_forward } => {
                ModelSpec::Transformer {
                    tokens: match *tokens {
                        TokenKind::Columns => Tokens::Columns { features: self.inputs() },
                        TokenKind::Codes { vocabulary } => {
                            Tokens::Codes { length: self.inputs(), vocabulary }
                        }
                        TokenKind::Steps { channels } => {
                            let length = self.inputs() / channels.max(1);
                            Tokens::Steps { length, channels }
                        }
                    },
                    width: *width,
                    heads: *heads,
                    blocks: *blocks,
                    feed_forward: *feed_forward,
                    classes,
                }
            }
        }
    }

    /// The model's parameters, in manifest order.
    ///
    /// # Errors
    /// [`ManifestError`] when the model cannot exist, for example because it is too large.
    pub fn manifest(&self) -> Result<Manifest, ManifestError> {
        self.model_spec().manifest()
    }

    /// The grid on which updates travel.
    ///
    /// # Panics
    /// When the study was not checked: a checked study has a grid.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        Encoding::for_range(self.sealing.bits, self.sealing.range)
            .expect("invariant: a checked study has a grid")
    }

    /// How the updates of a round are rotated before they are rounded, where the study asks for it.
    #[must_use]
    pub fn rotation(&self, study_digest: &Digest, round: u32) -> Option<Rotation> {
        self.sealing.rotated.then(|| Rotation::of_round(study_digest, round))
    }

    /// The seed of the first model, bound to the study's bytes.
    #[must_use]
    pub fn model_seed(study_digest: &Digest) -> [u8; 32] {
        let mut tagged = b"falaj/model-seed/v1\0".to_vec();
        tagged.extend_from_slice(study_digest.as_bytes());
        *Digest::of(&tagged).as_bytes()
    }

    /// The most sites that one round takes in.
    #[must_use]
    pub fn sites_max(&self) -> u32 {
        match self.privacy.mechanism {
            Mechanism::DistributedGaussian { colluders, .. } => self.cohort.masked_max(colluders),
            _ if self.asks_of_updates().next().is_some() => {
                self.aggregation.updates_max().min(OUTLIERS_MAX)
            }
            _ => self.aggregation.updates_max(),
        }
    }

    /// Gates that ask how updates compare with each other, by their number.
    fn asks_of_updates(&self) -> impl Iterator<Item = (usize, &gate::Declared)> {
        let gates = self.gates.iter().enumerate();
        gates.filter(|(_, gate)| matches!(gate.figure, gate::Figure::EachUpdate(_)))
    }

    /// The noise in shares, where the study has it.
    ///
    /// # Errors
    /// [`DistributedError`] when the grid cannot carry it.
    #[must_use]
    pub fn distributed(&self) -> Option<Result<Distributed, DistributedError>> {
        let Mechanism::DistributedGaussian { noise_multiplier, clip_norm, colluders, protects } =
            self.privacy.mechanism
        else {
            return None;
        };
        let (encoding, terms) = (self.encoding(), (self.cohort.min_sites, colluders));
        Some(match protects {
            Protects::Site => Distributed::over_sites(clip_norm, encoding, noise_multiplier, terms)
                .map(|noise| noise.rotated(self.sealing.rotated)),
            Protects::Record { batch_size } => {
                let length = self.training.learning_rate * clip_norm / f64::from(batch_size);
                let params = self.manifest().map_or(0, |m| m.params() as u64);
                Distributed::over_records(length, (encoding, params), noise_multiplier, terms)
            }
        })
    }

    /// Whom the noise protects.
    #[must_use]
    pub const fn unit(&self) -> Unit {
        match self.privacy.mechanism {
            Mechanism::LocalGaussian { .. }
            | Mechanism::DistributedGaussian { protects: Protects::Site, .. } => Unit::Site,
            _ => Unit::Record,
        }
    }

    /// Whether a site discloses how many records it has, with noise.
    #[must_use]
    pub fn discloses_records(&self) -> bool {
        match self.privacy.mechanism {
            Mechanism::DpSgd { .. } | Mechanism::DpFtrl { .. } => true,
            Mechanism::None => false,
            _ => self.cohort.weights == Weights::Examples,
        }
    }

    /// How the noise of a site's steps is correlated, where it is.
    #[must_use]
    pub fn ftrl(&self) -> Option<Ftrl> {
        let (Mechanism::DpFtrl { .. }, Batches::Cyclic(batches)) =
            (self.privacy.mechanism, self.training.batches)
        else {
            return None;
        };
        let steps = u64::from(self.rounds.count) * u64::from(self.training.local_steps);
        Ftrl::new(batches, steps)
    }

    /// What the next round costs at a site whose noise is correlated, after so many steps of a stream.
    ///
    /// # Errors
    /// [`AccountantError`] when the settings have no finite guarantee.
    pub fn cost_of_round_after(&self, steps: u64) -> Result<RdpCurve, AccountantError> {
        let Mechanism::DpFtrl { noise_multiplier, .. } = self.privacy.mechanism else {
            return self.cost_of_rounds(1);
        };
        let ftrl = self.ftrl().ok_or(AccountantError::Order)?;
        ftrl.cost(noise_multiplier, steps..steps + u64::from(self.training.local_steps))
    }

    /// What `rounds` rounds of training cost the unit that is protected: one record or one site.
    ///
    /// # Errors
    /// [`AccountantError`] when the settings have no finite guarantee.
    pub fn cost_of_rounds(&self, rounds: u32) -> Result<RdpCurve, AccountantError> {
        let steps = u64::from(rounds);
        match self.privacy.mechanism {
            Mechanism::DpSgd { noise_multiplier, .. } => RdpCurve::poisson_gaussian(
                self.training.batches.drawn()?,
                noise_multiplier,
                steps * u64::from(self.training.local_steps),
            ),
            Mechanism::DpFtrl { noise_multiplier, .. } => {
                let ftrl = self.ftrl().ok_or(AccountantError::Order)?;
                let steps = steps * u64::from(self.training.local_steps);
                let whole = ftrl.cost(noise_multiplier, 0..ftrl.steps())?;
                #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
                let streams = (steps / ftrl.steps()) as f64;
                let begun = ftrl.cost(noise_multiplier, 0..steps % ftrl.steps())?;
                Ok(whole.times(streams).compose(&begun))
            }
            Mechanism::LocalGaussian { noise_multiplier, .. } => {
                RdpCurve::poisson_gaussian(Poisson::ALL, noise_multiplier, steps)
            }
            Mechanism::DistributedGaussian {
                noise_multiplier,
                protects: Protects::Record { .. },
                ..
            } => {
                let sampling = self.training.batches.drawn()?;
                RdpCurve::poisson_gaussian(sampling, noise_multiplier, steps)
            }
            Mechanism::DistributedGaussian { noise_multiplier, .. } => {
                let params = self.manifest().map_or(0, |m| m.params() as u64);
                let refused = AccountantError::NoiseMultiplier(noise_multiplier);
                let noise = self.distributed().and_then(Result::ok).ok_or(refused)?;
                Ok(noise.cost(params)?.times(f64::from(rounds)))
            }
            Mechanism::None => Ok(RdpCurve::infinite()),
        }
    }

    /// What a site spends once, before its first round: noised counts and estimated bounds.
    ///
    /// # Errors
    /// [`AccountantError`] when an epsilon is not a positive number.
    pub fn cost_of_joining(&self) -> Result<RdpCurve, AccountantError> {
        let mut cost = RdpCurve::zero();
        if self.discloses_records() {
            cost = cost.compose(&RdpCurve::pure(self.privacy.weight_epsilon)?);
        }
        for f in &self.data.features {
            if let FeatureKind::Numeric { bounds: Bounds::Estimated { epsilon }, .. } = f.kind {
                cost = cost.compose(&RdpCurve::pure(epsilon)?);
            }
        }
        Ok(cost)
    }

    /// What the evaluations in `rounds` rounds cost a record. A record is either trained on or held out, and is charged for both
    /// all the same: this errs on the side of the record.
    ///
    /// # Errors
    /// [`AccountantError`] when an evaluation's cost is not a positive number.
    pub fn cost_of_evaluations(&self, rounds: u32) -> Result<RdpCurve, AccountantError> {
        match &self.evaluation {
            Some(e) => Ok(e.noise.cost()?.times(f64::from(e.times(rounds)))),
            None => Ok(RdpCurve::zero()),
        }
    }

    /// What the model says of a record.
    #[must_use]
    pub fn target(&self) -> Target {
        match &self.data.label.values {
            LabelValues::Classes(classes) => {
                Target::Classes(u32::try_from(classes.len()).unwrap_or(u32::MAX))
            }
            LabelValues::Number { min, max } => Target::Number { width: max - min },
        }
    }

    /// The data set that candidates are evaluated on: another one where the study names one, and otherwise its own.
    #[must_use]
    pub fn evaluated_on(&self) -> &str {
        match self.evaluation.as_ref().map(|e| &e.held_out) {
            Some(HeldOut::Dataset(name)) => name,
            _ => &self.data.dataset,
        }
    }

    /// Whether a study that has come so far ends with a round that gave a model.
    #[must_use]
    pub fn ends_with(&self, round: u32, progress: &Progress) -> bool {
        round >= self.rounds.count || self.patience.is_some_and(|p| p.is_over(progress))
    }

    /// Everything in this study that contradicts itself; empty when it can run.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut found = Problems(Vec::new());
        self.check_data(&mut found);
        self.check_model(&mut found);
        self.check_training(&mut found);
        self.check_rounds(&mut found);
        self.check_evaluation(&mut found);
        self.check_privacy(&mut found);
        self.check_aggregation(&mut found);
        self.check_outliers(&mut found);
        self.check_governance(&mut found);
        found.0
    }

    fn check_evaluation(&self, p: &mut Problems) {
        let protected = self.privacy.mechanism != Mechanism::None;
        let (e, target) = (self.evaluation.as_ref(), self.target());
        p.0.extend(e.map_or_else(Vec::new, |e| evaluation::check::settings(e, target, protected)));
        p.when(
            e.is_some_and(|e| !e.perturbations.is_empty()) && !self.model_spec().takes_any_number(),
            "evaluation.robustness",
            "inputs that are codes cannot be moved by a little",
            || "remove `robustness`, or take `tokens: steps`".into(),
        );
        p.0.extend(evaluation::check::gates(&self.gates, e, target));
        if let Some(patience) = &self.patience {
            let gates = (&self.gates[..], self.rounds.count);
            p.0.extend(evaluation::check::patience(patience, gates, e, target));
        }
        if let Some(HeldOut::Dataset(name)) = e.map(|e| &e.held_out) {
            p.when(
                *name == self.data.dataset,
                "evaluation.dataset",
                &format!("`{name}` would be trained on and evaluated on"),
                || "name another data set, or hold a part of this one out: `holdout: 0.2`".into(),
            );
        }
        p.0.extend(evaluation::check::beyond_reach(self));
    }

    fn check_governance(&self, p: &mut Problems) {
        if let Some(WitnessQuorum { quorum, within_s }) = self.governance.witnesses {
            let at = "governance.witnesses";
            let asked = format!("a quorum of {quorum} within {within_s} s");
            p.when(!(1..=WITNESSES_MAX).contains(&quorum), at, &asked, || {
                format!("at least 1 witness, and at most {WITNESSES_MAX}, so many a log has")
            });
            p.when(!(1..=WITNESS_WAIT_MAX_S).contains(&within_s), at, &asked, || {
                format!("wait for at least 1 second, and at most {WITNESS_WAIT_MAX_S}")
            });
        }
        let Some(consent) = &self.governance.consent else { return };
        let digits = |at: std::ops::Range<usize>| {
            consent.expires.get(at).is_some_and(|s| s.bytes().all(|b| b.is_ascii_digit()))
        };
        let day = consent.expires.len() == 10
            && [0..4, 5..7, 8..10].into_iter().all(digits)
            && consent.expires.get(4..5) == Some("-")
            && consent.expires.get(7..8) == Some("-")
            && ("01".."13").contains(&&consent.expires[5..7])
            && ("01".."32").contains(&&consent.expires[8..10]);
        p.when(!day, "governance.consent", &format!("`{}` is no day", consent.expires), || {
            "write the last day of the consent as `2027-06-30`".into()
        });
    }

    fn check_data(&self, p: &mut Problems) {
        let data = &self.data;
        p.when(data.dataset.is_empty(), "data.dataset", "no data set is named", || {
            "name the data set as the sites' configurations bind it".into()
        });
        p.when(data.features.is_empty(), "data.features", "the model would see no column", || {
            "list at least one feature".into()
        });
        let mut seen = std::collections::BTreeSet::new();
        for (i, f) in data.features.iter().enumerate() {
            let at = format!("data.features[{i}]");
            p.when(!seen.insert(&f.name), &at, &format!("`{}` is listed twice", f.name), || {
                "list each column once".into()
            });
            p.when(
                f.name == data.label.column,
                "data.label.column",
                &format!("`{}` is both a feature and the label", f.name),
                || {
                    "remove it from the features: a model that sees the answer learns nothing"
                        .into()
                },
            );
            match &f.kind {
                FeatureKind::Numeric { bounds: Bounds::Declared { min, max }, .. } => p.when(
                    !(min.is_finite() && max.is_finite() && min < max),
                    &at,
                    &format!("`{}` has bounds {min} to {max}", f.name),
                    || "give a finite `min` below `max`".into(),
                ),
                FeatureKind::Numeric { bounds: Bounds::Estimated { epsilon }, .. } => p.when(
                    !(epsilon.is_finite() && *epsilon > 0.0),
                    &at,
                    &format!("`{}` would estimate its bounds at epsilon {epsilon}", f.name),
                    || "give a positive `estimate_epsilon`".into(),
                ),
                FeatureKind::Categorical { values, .. } => {
                    let distinct: std::collections::BTreeSet<_> = values.iter().collect();
                    p.when(
                        values.is_empty() || distinct.len() != values.len(),
                        &at,
                        &format!("`{}` lists no value, or one twice", f.name),
                        || "list each allowed value once".into(),
                    );
                }
            }
        }
        match &data.label.values {
            LabelValues::Classes(listed) => {
                let classes: std::collections::BTreeSet<_> = listed.iter().collect();
                p.when(
                    classes.len() < 2 || classes.len() != listed.len(),
                    "data.label.classes",
                    "a label needs at least two different classes",
                    || {
                        "list every class once; for two classes the second is the positive one"
                            .into()
                    },
                );
            }
            LabelValues::Number { min, max } => p.when(
                !((max - min).is_finite() && min < max),
                "data.label",
                &format!("the label has bounds {min} to {max}"),
                || "give a finite `min` below `max`: labels beyond them are cut there".into(),
            ),
        }
    }

    fn check_model(&self, p: &mut Problems) {
        let number = matches!(self.data.label.values, LabelValues::Number { .. });
        p.when(
            number && self.model == Model::Logistic,
            "model",
            "logistic regression tells classes apart, and the label is a number",
            || "use `kind: linear`, or an MLP, a CNN or a transformer".into(),
        );
        p.when(
            !number && self.model == Model::Linear,
            "model",
            "linear regression says a number, and the label has classes",
            || {
                "use `kind: logistic`, or give the label `min` and `max` in place of `classes`"
                    .into()
            },
        );
        match &self.model {
            Model::Mlp { hidden } => p.when(
                hidden.is_empty() || hidden.contains(&0),
                "model.hidden",
                "an MLP needs hidden layers of at least one unit",
                || "give for example `hidden: [32]`, or use `kind: logistic`".into(),
            ),
            Model::Cnn { height, width, channels, .. } => p.when(
                u64::from(*height) * u64::from(*width) * u64::from(*channels)
                    != u64::from(self.inputs()),
                "model.image",
                &format!(
                    "the image has {height} x {width} x {channels} values, the features {}",
                    self.inputs()
                ),
                || "list exactly one numeric feature per pixel value, row by row".into(),
            ),
            Model::Transformer { tokens: TokenKind::Steps { channels }, .. } => p.when(
                *channels == 0 || !self.inputs().is_multiple_of(*channels),
                "model.channels",
                &format!("{} values do not make whole steps of {channels}", self.inputs()),
                || "list the features step by step, as many in each as there are channels".into(),
            ),
            Model::Transformer { tokens: TokenKind::Codes { vocabulary }, .. } => {
                let codes = |f: &Feature| match f.kind {
                    FeatureKind::Numeric { bounds: Bounds::Declared { min, max }, .. } => {
                        min.abs() < f64::EPSILON
                            && (max + 1.0 - f64::from(*vocabulary)).abs() < f64::EPSILON
                    }
                    _ => false,
                };
                if let Some(i) = self.data.features.iter().position(|f| !codes(f)) {
                    let name = &self.data.features[i].name;
                    let what =
                        format!("`{name}` does not hold codes of a vocabulary of {vocabulary}");
                    p.when(true, &format!("data.features[{i}]"), &what, || {
                        format!("give `min: 0` and `max: {}`", vocabulary.saturating_sub(1))
                    });
                }
                p.when(
                    *vocabulary < 2,
                    "model.vocabulary",
                    "a vocabulary has at least two codes",
                    || "give the number of different codes".into(),
                );
            }
            Model::Logistic
            | Model::Linear
            | Model::Transformer { tokens: TokenKind::Columns, .. } => {}
        }
        if let Err(e) = self.manifest() {
            p.when(true, "model", &e.to_string(), || "choose smaller or fitting layers".into());
        }
    }

    fn check_training(&self, p: &mut Problems) {
        let t = &self.training;
        p.when(
            t.local_steps == 0 || t.local_steps > 1_000_000,
            "training.local_steps",
            "a site must take between 1 and 1,000,000 steps",
            || "give a number in that range".into(),
        );
        p.when(
            !(t.learning_rate.is_finite() && t.learning_rate > 0.0),
            "training.learning_rate",
            &format!("{} is not a step size", t.learning_rate),
            || "give a positive number".into(),
        );
        match t.optimizer {
            Optimizer::Sgd { momentum } => p.when(
                !(0.0..1.0).contains(&momentum),
                "training.momentum",
                &format!("{momentum} is not a momentum"),
                || "give a number from 0 to below 1".into(),
            ),
            Optimizer::Adam { weight_decay } => p.when(
                !(0.0..1.0).contains(&weight_decay),
                "training.weight_decay",
                &format!("{weight_decay} is not a weight decay"),
                || "give a number from 0 to below 1, for example 0.01".into(),
            ),
        }
        p.when(
            !(t.server_learning_rate.is_finite() && t.server_learning_rate > 0.0),
            "training.server_learning_rate",
            "the model would never move",
            || "give a positive number, usually 1".into(),
        );
        if let Algorithm::FedProx { mu } = t.algorithm {
            p.when(
                !(mu.is_finite() && mu > 0.0),
                "training.mu",
                "FedProx without a pull is FedAvg",
                || "give a positive `mu`, or use `algorithm: fedavg`".into(),
            );
        }
    }

    fn check_rounds(&self, p: &mut Problems) {
        let r = &self.rounds;
        p.when(
            r.count == 0 || r.count > ROUNDS_MAX,
            "rounds.count",
            &format!("{} rounds", r.count),
            || format!("give 1 to {ROUNDS_MAX}"),
        );
        p.when(r.deadline_s == 0, "rounds.deadline_s", "every round would fail at once", || {
            "give the seconds that a site may take, for example 600".into()
        });
        p.when(
            r.grace_s > r.deadline_s,
            "rounds.grace_s",
            "the grace period is longer than the deadline",
            || format!("give at most {} seconds", r.deadline_s),
        );
        p.when(
            r.retries > RETRIES_MAX,
            "rounds.retries",
            &format!("a round that fails is tried again {} times", r.retries),
            || format!("give at most {RETRIES_MAX}: sites pay for every try"),
        );
        let c = &self.cohort;
        p.when(
            c.min_sites == 0 || c.min_sites > SITES_MAX,
            "cohort.min_sites",
            &format!("{} sites", c.min_sites),
            || format!("give 1 to {SITES_MAX}; with fewer than 2, one site's update is the model"),
        );
        p.when(
            !c.sites.is_empty() && (c.sites.len() as u64) < u64::from(c.min_sites),
            "cohort.min_sites",
            &format!("{} sites are needed and only {} are named", c.min_sites, c.sites.len()),
            || "name more sites or need fewer".into(),
        );
        p.when(
            c.places.is_empty(),
            "cohort.places",
            "no place is named, so no site could join",
            || "name places, for example `ae-on/*`".into(),
        );
        for place in &c.places {
            let probe = place.replace("/*", "/x");
            p.when(probe.parse::<Place>().is_err(), "cohort.places", &format!("`{place}` is not a place"), || {
                "write `<jurisdiction>/<region>` or `<jurisdiction>/*`, for example `ae-on/ae-az`".into()
            });
        }
    }

    /// Whether a rule other than the mean sees what it needs.
    fn check_aggregation(&self, p: &mut Problems) {
        let rule = self.aggregation;
        if rule == Rule::Mean {
            return;
        }
        let name = rule.as_str();
        p.when(
            matches!(self.privacy.mechanism, Mechanism::DistributedGaussian { .. }),
            "aggregation.rule",
            &format!("under `distributed_gaussian` the coordinator sees only the sum of all updates, of which `{name}` cannot be taken"),
            || "remove `aggregation`, or use a mechanism that adds its noise at each site, whose updates the coordinator sees one by one".into(),
        );
        p.when(
            self.cohort.weights != Weights::Uniform,
            "cohort.weights",
            &format!("a site says its own weight, so one bad site could say that it is many; `{name}` counts all of them the same"),
            || "say `weights: uniform`".into(),
        );
        let grid = Encoding::for_range(self.sealing.bits, self.sealing.range);
        if let (Rule::NormBounded { clip_norm: Some(norm) }, Ok(grid)) = (rule, grid) {
            let step = grid.step();
            p.when(
                norm > 0.0 && norm < step,
                "aggregation.clip_norm",
                &format!("an update shortened to {norm} is less than one step of the grid, {step}, and the model would learn nothing"),
                || "give the length of an update that learnt something, or remove it, and the median of the norms is taken".into(),
            );
        }
        let Err(e) = rule.admits(u64::from(self.cohort.min_sites)) else { return };
        let (at, mend) = match e {
            RuleError::TooFew { needs, .. } => (
                "cohort.min_sites",
                format!("need at least {needs} sites, or choose a rule that bears fewer bad ones"),
            ),
            RuleError::TooMany { most, .. } => {
                ("cohort.min_sites", format!("need at most {most} sites, or say `rule: median`"))
            }
            RuleError::BearsNone(_) => (
                "aggregation.byzantine",
                "give the number of sites that may send anything at all, or remove `aggregation`"
                    .into(),
            ),
            RuleError::Keep { .. } => (
                "aggregation.keep",
                "keep fewer, need more sites, or remove `keep`, and as many are kept as can be"
                    .into(),
            ),
            RuleError::ClipNorm => (
                "aggregation.clip_norm",
                "give a positive number, or remove it, and the median of the norms is taken".into(),
            ),
        };
        p.when(true, at, &e.to_string(), || mend);
    }

    /// Whether gates on updates see any, and enough of them.
    fn check_outliers(&self, p: &mut Problems) {
        let masked = matches!(self.privacy.mechanism, Mechanism::DistributedGaussian { .. });
        for (number, gate) in self.asks_of_updates() {
            let name = gate.figure.metric();
            p.when(
                masked,
                &format!("gates[{number}]"),
                &format!("under `distributed_gaussian` the coordinator sees only the sum of all updates, and of none of them `{name}`"),
                || "remove the gate, or use a mechanism that adds its noise at each site, whose updates the coordinator sees one by one".into(),
            );
        }
        let sites = self.cohort.min_sites;
        p.when(
            !masked
                && self.asks_of_updates().next().is_some()
                && !(OUTLIERS_MIN..=OUTLIERS_MAX).contains(&sites),
            "cohort.min_sites",
            &format!("a gate asks how far an update stands out, and of {sites} none can"),
            || format!("need {OUTLIERS_MIN} to {OUTLIERS_MAX} sites, or remove the gate"),
        );
    }

    fn check_privacy(&self, p: &mut Problems) {
        let v = &self.privacy;
        let s = &self.sealing;
        p.when(!(8..=32).contains(&s.bits), "sealing.bits", &format!("{} bits", s.bits), || {
            "give 8 to 32".into()
        });
        p.when(
            !(s.range.is_finite() && s.range > 0.0),
            "sealing.range",
            "an update could carry nothing",
            || "give the largest absolute value of one coordinate, for example 1.0".into(),
        );
        match v.mechanism {
            Mechanism::DpSgd { noise_multiplier, clip_norm, .. }
            | Mechanism::DpFtrl { noise_multiplier, clip_norm }
            | Mechanism::LocalGaussian { noise_multiplier, clip_norm }
            | Mechanism::DistributedGaussian { noise_multiplier, clip_norm, .. } => {
                p.when(
                    !(noise_multiplier.is_finite() && noise_multiplier > 0.0),
                    "privacy.noise_multiplier",
                    &format!("{noise_multiplier} protects nobody"),
                    || {
                        "give a positive number, or say `mechanism: none` where a policy permits it"
                            .into()
                    },
                );
                p.when(
                    !(clip_norm.is_finite() && clip_norm > 0.0),
                    "privacy.clip_norm",
                    &format!("{clip_norm} bounds nothing"),
                    || "give a positive number, for example 1.0".into(),
                );
            }
            Mechanism::None => return,
        }
        if let Mechanism::DpSgd { noise_multiplier, adaptive: Some(adaptive), .. } = v.mechanism
            && let Some(why) = adaptive.problem(noise_multiplier)
        {
            p.when(true, "privacy.adaptive_clipping", why, || {
                "for example { quantile: 0.5, learning_rate: 0.2, count_noise: 10.0 }".into()
            });
        }
        p.when(
            !(v.delta > 0.0 && v.delta < 1e-2),
            "privacy.delta",
            &format!("{} is no delta", v.delta),
            || "give a number well below one over the number of records, for example 1e-5".into(),
        );
        p.when(
            !(v.epsilon_limit.is_finite() && v.epsilon_limit > 0.0),
            "privacy.epsilon_limit",
            &format!("{} is no limit", v.epsilon_limit),
            || "give the most epsilon that one site may spend on this study".into(),
        );
        if self.discloses_records() {
            p.when(
                !(v.weight_epsilon.is_finite() && v.weight_epsilon > 0.0),
                "privacy.weight_epsilon",
                "the number of examples would leave a site without noise",
                || "give a positive number, for example 0.1".into(),
            );
        }
        self.check_batches(p);
        self.check_masking(p);
        if p.0.is_empty() {
            self.check_plan(p);
        }
    }

    /// Whether the batches come about as the mechanism's theorem asks.
    fn check_batches(&self, p: &mut Problems) {
        let drawn = matches!(self.training.batches, Batches::Poisson(_));
        match self.privacy.mechanism {
            Mechanism::DpFtrl { .. } => {
                p.when(
                    drawn,
                    "training.sample_rate",
                    "`dp_ftrl` is for batches that take turns",
                    || "say `batches: 20` for twenty of them, or use `mechanism: dp_sgd`".into(),
                );
                let t = u64::from(self.rounds.count) * u64::from(self.training.local_steps);
                p.when(
                    t > ftrl::STEPS_MAX,
                    "rounds.count",
                    &format!("{t} steps in all are too many to correlate noise over"),
                    || format!("plan at most {} rounds times local steps", ftrl::STEPS_MAX),
                );
            }
            Mechanism::DpSgd { .. }
            | Mechanism::DistributedGaussian { protects: Protects::Record { .. }, .. } => p.when(
                !drawn,
                "training.batches",
                "batches that take turns earn no amplification, which this mechanism counts on",
                || "give `sample_rate` in place of `batches`, or use `mechanism: dp_ftrl`".into(),
            ),
            _ => {}
        }
    }

    /// What is meaningless under masks, and what the ring cannot carry.
    fn check_masking(&self, p: &mut Problems) {
        let Mechanism::DistributedGaussian { colluders, protects, .. } = self.privacy.mechanism
        else {
            return;
        };
        let (c, t) = (&self.cohort, &self.training);
        p.when(
            c.weights != Weights::Uniform,
            "cohort.weights",
            "masked updates cannot be weighted: the coordinator sees only their sum, and a weight would scale a site's noise with its update",
            || "say `weights: uniform`".into(),
        );
        p.when(
            c.min_sites < 3 || colluders.saturating_add(2) > c.min_sites,
            "cohort.min_sites",
            &format!(
                "a sum over {} sites, {colluders} of them colluding, would show what single sites sent",
                c.min_sites
            ),
            || format!("need at least {} sites", colluders.saturating_add(2).max(3)),
        );
        let most = c.masked_max(colluders);
        let named = c.sites.len() as u64;
        p.when(
            named > u64::from(most),
            "cohort.min_sites",
            &format!(
                "with {named} sites and a threshold of {}, a coordinator that shows different lists to different sites could take a single update out of the sum",
                c.min_sites
            ),
            || format!("need more than half of sites and colluders together: at least {}", u64::midpoint(named, colluders.into()) + 1),
        );
        if let Protects::Record { batch_size } = protects {
            p.when(
                self.sealing.rotated,
                "sealing.rotation",
                "what one record moves a sum by is accounted before rounding, in the coordinates of its gradient",
                || "remove `rotation`, or say `unit: site`".into(),
            );
            p.when(batch_size == 0, "privacy.batch_size", "no record would count", || {
                "give the records of a usual batch at one site, for example 32".into()
            });
            let plain = t.optimizer == Optimizer::Sgd { momentum: 0.0 }
                && t.algorithm == Algorithm::FedAvg
                && t.local_steps == 1;
            p.when(
                !plain,
                "training",
                "noise in shares protects a record only in a sum of gradients, so a round is one plain step",
                || "say `local_steps: 1` with `optimizer: sgd`, no momentum and `algorithm: fedavg`, or `unit: site`".into(),
            );
        }
        if p.0.is_empty() {
            let params = self.manifest().map_or(0, |m| m.params() as u64);
            let fits = |noise: Distributed| noise.fits(most, params, self.sealing.bits);
            if let Some(Err(e)) = self.distributed().map(|noise| noise.and_then(fits)) {
                p.when(true, "sealing", &e.to_string(), || {
                    "or leave `sealing` out, and a grid is chosen".into()
                });
            }
        }
    }

    /// Whether the planned rounds fit under the study's own epsilon limit.
    fn check_plan(&self, p: &mut Problems) {
        let v = &self.privacy;
        let spent = |rounds: u32| -> Option<f64> {
            let training = self.cost_of_rounds(rounds).ok()?.compose(&self.cost_of_joining().ok()?);
            let cost = training.compose(&self.cost_of_evaluations(rounds).ok()?);
            cost.epsilon(v.delta).ok().map(super::dp::rdp::Epsilon::value)
        };
        let Some(planned) = spent(self.rounds.count) else {
            p.when(true, "privacy", "these settings have no finite guarantee", || {
                "raise `noise_multiplier` or lower `sample_rate`".into()
            });
            return;
        };
        if planned > v.epsilon_limit && matches!(v.mechanism, Mechanism::DpFtrl { .. }) {
            p.when(
                true,
                "privacy.epsilon_limit",
                &format!(
                    "the whole study costs epsilon {planned:.3} at delta {:e}, the limit is {}",
                    v.delta, v.epsilon_limit
                ),
                || "raise `noise_multiplier`: it is over what one record moves all steps by, however many they are".into(),
            );
        } else if planned > v.epsilon_limit {
            let (mut fits, mut fails) = (0, self.rounds.count);
            while fails - fits > 1 {
                let middle = fits + (fails - fits) / 2;
                if spent(middle).is_some_and(|e| e <= v.epsilon_limit) {
                    fits = middle;
                } else {
                    fails = middle;
                }
            }
            p.when(
                true,
                "privacy.epsilon_limit",
                &format!(
                    "{} rounds cost epsilon {planned:.3} at delta {:e}, the limit is {}",
                    self.rounds.count, v.delta, v.epsilon_limit
                ),
                || {
                    format!(
                        "plan at most {fits} rounds, raise `noise_multiplier`, or take fewer or smaller local steps"
                    )
                },
            );
        }
    }
}

struct Problems(Vec<Problem>);

impl Problems {
    fn when(&mut self, wrong: bool, at: &str, what: &str, mend: impl FnOnce() -> String) {
        if wrong {
            self.0.push(Problem { at: at.to_owned(), what: what.to_owned(), mend: mend() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_within_reach_of_named_sites_and_outside_witnesses_together() {
        let cohort = |sites: &[&str]| Cohort {
            places: vec!["ae-on/*".into()],
            sites: sites.iter().map(|s| (*s).to_owned()).collect(),
            min_sites: 1,
            weights: Weights::Examples,
        };
        let quorum = |quorum| WitnessQuorum { quorum, within_s: 60 };
        let two = cohort(&["a", "b"]);
        assert_eq!(two.quorum_beyond_reach(quorum(3), 1), None);
        let wrong = two.quorum_beyond_reach(quorum(4), 1).expect("beyond reach");
        assert!(wrong.what.contains("a quorum of 4") && wrong.what.contains("at most 3 count"));
        assert!(wrong.mend.contains("at most 3"), "{}", wrong.mend);
        // Any number of sites may join.
        assert_eq!(cohort(&[]).quorum_beyond_reach(quorum(60), 0), None);
    }
}
