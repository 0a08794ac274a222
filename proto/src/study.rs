//! Study files: how a [`Study`] is spelled in YAML.
//!
//! Every complaint carries file, line and column, what is wrong there, and how to mend it. Unknown keys
//! are refused, and so are settings that belong to another mechanism, model or algorithm: a setting
//! that would be ignored is a misunderstanding.

mod evaluation;
mod settings;

pub use settings::settings;

use falaj_core::{
    dp::{AdaptiveClipping, Batches, Cyclic, Poisson, Rotation},
    model::Conv,
    robust::Rule,
    study::{
        Algorithm, Bounds, Cohort, Consent, Data, Feature, FeatureKind, Governance, Label,
        LabelValues, Mechanism, Missing, Model, Optimizer, Privacy, Problem, Protects, Retention,
        Rounds, Sealing, Study, TokenKind, Training, Weights, WitnessQuorum,
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_saphyr::{Location, Spanned};
use std::{collections::BTreeMap, fmt};

/// The largest study file, in bytes.
pub const STUDY_BYTES_MAX: usize = 1 << 20;
/// A study that does not say otherwise waits this long for its sites, in seconds.
const DEADLINE_S_DEFAULT: u32 = 600;
/// A study that does not say otherwise waits this long after quorum, in seconds.
const GRACE_S_DEFAULT: u32 = 30;
/// A study that does not say otherwise tries a failed round again this often.
const RETRIES_DEFAULT: u32 = 3;
/// Bits of one value of an update, unless the study says otherwise.
const BITS_DEFAULT: u8 = 16;
/// The same where updates are masked: the whole sum travels on the grid.
const BITS_MASKED: u8 = 24;
/// The chance that a coordinate of a rotated update is beyond the range that is chosen for it.
const SPIKE_CHANCE: f64 = 1e-12;

/// One complaint about a study file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StudyError {
    /// The file's name, as the reader knows it.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// What is wrong.
    pub what: String,
    /// How to mend it; empty when the sentence says it all.
    pub mend: String,
}

impl fmt::Display for StudyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.what)?;
        if self.mend.is_empty() { Ok(()) } else { write!(f, "; {}", self.mend) }
    }
}

/// Every complaint about a study file, in the order of its lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct StudyErrors(pub Vec<StudyError>);

impl fmt::Display for StudyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, e) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            e.fmt(f)?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Yaml {
    study: Spanned<String>,
    purpose: String,
    data: Spanned<DataYaml>,
    model: Spanned<ModelYaml>,
    training: Spanned<TrainingYaml>,
    privacy: Spanned<PrivacyYaml>,
    sealing: Option<Spanned<SealingYaml>>,
    cohort: Spanned<CohortYaml>,
    aggregation: Option<Spanned<AggregationYaml>>,
    rounds: Spanned<RoundsYaml>,
    governance: Option<Spanned<GovernanceYaml>>,
    evaluation: Option<Spanned<evaluation::EvaluationYaml>>,
    gates: Option<Spanned<Vec<Spanned<evaluation::GateYaml>>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GovernanceYaml {
    legal_basis: Option<String>,
    dpia: Option<String>,
    consent: Option<Spanned<ConsentYaml>>,
    retention: Option<RetentionYaml>,
    witnesses: Option<Spanned<WitnessesYaml>>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
struct WitnessesYaml {
    quorum: u32,
    #[serde(default = "WitnessesYaml::within_s")]
    within_s: u32,
}

impl WitnessesYaml {
    const fn within_s() -> u32 {
        60
    }
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct ConsentYaml {
    reference: String,
    expires: String,
}

#[derive(Deserialize, Clone, Copy)]
enum RetentionYaml {
    #[serde(rename = "6m")]
    Months6,
    #[serde(rename = "5y")]
    Years5,
    #[serde(rename = "10y")]
    Years10,
    #[serde(rename = "25y")]
    Years25,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataYaml {
    dataset: Spanned<String>,
    label: Spanned<LabelYaml>,
    features: Spanned<Vec<Spanned<FeatureYaml>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelYaml {
    column: Spanned<String>,
    classes: Option<Spanned<Vec<String>>>,
    min: Option<f64>,
    max: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FeatureYaml {
    name: String,
    min: Option<f64>,
    max: Option<f64>,
    estimate_epsilon: Option<f64>,
    values: Option<Vec<String>>,
    #[serde(default)]
    missing: MissingYaml,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum MissingYaml {
    #[default]
    Refuse,
    Keep,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelYaml {
    kind: Spanned<ModelKind>,
    hidden: Option<Spanned<OneOrMore>>,
    image: Option<Spanned<[u32; 3]>>,
    series: Option<Spanned<[u32; 2]>>,
    conv: Option<Spanned<Vec<ConvYaml>>>,
    tokens: Option<Spanned<TokensYaml>>,
    vocabulary: Option<Spanned<u32>>,
    channels: Option<Spanned<u32>>,
    width: Option<Spanned<u32>>,
    heads: Option<Spanned<u32>>,
    blocks: Option<Spanned<u32>>,
    feed_forward: Option<Spanned<u32>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum TokensYaml {
    Columns,
    Codes,
    Steps,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum ModelKind {
    Logistic,
    Linear,
    Mlp,
    Cnn,
    Transformer,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMoreNames {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConvYaml {
    filters: u32,
    kernel: u32,
    #[serde(default = "one")]
    stride: u32,
    #[serde(default = "one")]
    pool: u32,
    norm: Option<Spanned<NormYaml>>,
    groups: Option<Spanned<u32>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum NormYaml {
    None,
    Group,
    Batch,
}

const fn one() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrainingYaml {
    #[serde(default)]
    algorithm: AlgorithmKind,
    mu: Option<Spanned<f64>>,
    local_steps: Spanned<u32>,
    sample_rate: Option<Spanned<f64>>,
    batches: Option<Spanned<u32>>,
    learning_rate: Spanned<f64>,
    optimizer: Option<Spanned<OptimizerKind>>,
    momentum: Option<Spanned<f64>>,
    weight_decay: Option<Spanned<f64>>,
    server_learning_rate: Option<Spanned<f64>>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum AlgorithmKind {
    #[default]
    Fedavg,
    Fedprox,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum OptimizerKind {
    Sgd,
    Adam,
    Adamw,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrivacyYaml {
    mechanism: Spanned<MechanismKind>,
    noise_multiplier: Option<Spanned<f64>>,
    clip_norm: Option<Spanned<f64>>,
    adaptive_clipping: Option<Spanned<AdaptiveYaml>>,
    delta: Option<Spanned<f64>>,
    epsilon_limit: Option<Spanned<f64>>,
    weight_epsilon: Option<Spanned<f64>>,
    unit: Option<Spanned<UnitYaml>>,
    colluders: Option<Spanned<u32>>,
    batch_size: Option<Spanned<u32>>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
struct AdaptiveYaml {
    quantile: f64,
    learning_rate: f64,
    count_noise: f64,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum UnitYaml {
    Site,
    Record,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum MechanismKind {
    DpSgd,
    DpFtrl,
    LocalGaussian,
    DistributedGaussian,
    None,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SealingYaml {
    bits: Option<Spanned<u8>>,
    range: Option<Spanned<f64>>,
    rotation: Option<Spanned<RotationYaml>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum RotationYaml {
    None,
    Hadamard,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CohortYaml {
    places: Spanned<Vec<String>>,
    #[serde(default)]
    sites: Vec<String>,
    min_sites: Spanned<u32>,
    #[serde(default)]
    weights: WeightsYaml,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum WeightsYaml {
    #[default]
    Examples,
    Uniform,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AggregationYaml {
    rule: Spanned<RuleYaml>,
    byzantine: Option<Spanned<u32>>,
    keep: Option<Spanned<u32>>,
    clip_norm: Option<Spanned<f64>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum RuleYaml {
    Mean,
    Median,
    TrimmedMean,
    Krum,
    MultiKrum,
    GeometricMedian,
    NormBounded,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoundsYaml {
    count: Spanned<u32>,
    deadline_s: Option<Spanned<u32>>,
    grace_s: Option<Spanned<u32>>,
    retries: Option<u32>,
}

/// Reads a study file.
///
/// # Errors
/// [`StudyErrors`]: everything that is wrong with it, each with file, line and column.
pub fn parse(text: &str, file: &str) -> Result<Study, StudyErrors> {
    let yaml: Yaml = read(text, file)?;
    let mut reader = Reader { file, places: BTreeMap::new(), errors: Vec::new() };
    let study = reader.study(&yaml);
    if let Some(study) = study
        && reader.errors.is_empty()
    {
        for problem in study.check() {
            let location = reader.place_of(&problem.at);
            let Problem { what, mend, .. } = problem;
            reader.errors.push(at(file, location, what, mend));
        }
        if reader.errors.is_empty() {
            return Ok(study);
        }
    }
    reader.errors.sort_by_key(|e| (e.line, e.column));
    Err(StudyErrors(reader.errors))
}

/// Reads a file's YAML.
fn read<T: DeserializeOwned>(text: &str, file: &str) -> Result<T, StudyErrors> {
    if text.len() > STUDY_BYTES_MAX {
        return Err(StudyErrors(vec![StudyError {
            file: file.to_owned(),
            line: 1,
            column: 1,
            what: format!("the study has {} bytes", text.len()),
            mend: format!("a study has at most {STUDY_BYTES_MAX}"),
        }]));
    }
    serde_saphyr::from_str(text).map_err(|e| {
        let location = e.location().unwrap_or(Location::UNKNOWN);
        // The first line says what; the rest of the rendering repeats the source.
        let message = e.without_snippet().to_string();
        let what = message.lines().next().unwrap_or_default().to_owned();
        let mend = if what.contains("unknown field") {
            "remove it, or correct its spelling".to_owned()
        } else {
            String::new()
        };
        StudyErrors(vec![at(file, location, what, mend)])
    })
}

fn at(file: &str, location: Location, what: String, mend: String) -> StudyError {
    StudyError {
        file: file.to_owned(),
        line: location.line().max(1),
        column: location.column().max(1),
        what,
        mend,
    }
}

/// Turns the YAML into a study, remembering where each key stands.
struct Reader<'a> {
    file: &'a str,
    places: BTreeMap<String, Location>,
    errors: Vec<StudyError>,
}

impl Reader<'_> {
    /// Where the value under `path` stands, or the nearest section around it.
    fn place_of(&self, path: &str) -> Location {
        let mut path = path;
        loop {
            if let Some(location) = self.places.get(path) {
                return *location;
            }
            match path.rfind(['.', '[']) {
                Some(cut) => path = &path[..cut],
                None => return Location::UNKNOWN,
            }
        }
    }

    fn note<T>(&mut self, path: &str, value: &Spanned<T>) {
        self.places.insert(path.to_owned(), value.referenced);
    }

    fn take<T: Copy>(&mut self, path: &str, value: &Spanned<T>) -> T {
        self.note(path, value);
        value.value
    }

    fn take_or<T: Copy>(&mut self, path: &str, value: Option<&Spanned<T>>, default: T) -> T {
        value.map_or(default, |v| self.take(path, v))
    }

    fn wrong(&mut self, location: Location, what: impl Into<String>, mend: impl Into<String>) {
        self.errors.push(at(self.file, location, what.into(), mend.into()));
    }

    /// A key that its section needs.
    fn needed<T: Copy + Default>(
        &mut self,
        section: Location,
        path: &str,
        value: Option<&Spanned<T>>,
        mend: &str,
    ) -> T {
        if let Some(v) = value {
            self.take(path, v)
        } else {
            self.wrong(section, format!("`{path}` is missing"), mend);
            T::default()
        }
    }

    /// A key that would be ignored where it stands.
    fn unwanted<T>(&mut self, path: &str, value: Option<&Spanned<T>>, because: &str) {
        if let Some(v) = value {
            self.wrong(
                v.referenced,
                format!("`{path}` contradicts {because}"),
                "remove one of the two",
            );
        }
    }

    fn study(&mut self, y: &Yaml) -> Option<Study> {
        self.note("data", &y.data);
        self.note("model", &y.model);
        self.note("training", &y.training);
        self.note("privacy", &y.privacy);
        self.note("cohort", &y.cohort);
        self.note("rounds", &y.rounds);
        let id = match y.study.value.parse() {
            Ok(id) => Some(id),
            Err(e) => {
                let e: falaj_core::id::IdError = e;
                self.wrong(y.study.referenced, e.to_string(), "");
                None
            }
        };
        let privacy = self.privacy(&y.privacy);
        let (training, cohort) = (self.training(&y.training), self.cohort(&y.cohort.value));
        let evaluation = self.evaluation(y.evaluation.as_ref());
        let (gates, patience) = self.gates(y.gates.as_ref(), evaluation.as_ref());
        let mut study = Study {
            purpose: y.purpose.clone(),
            data: self.data(&y.data.value),
            model: self.model(&y.model),
            training,
            privacy,
            sealing: Sealing { bits: BITS_DEFAULT, range: 1.0, rotated: false },
            cohort,
            aggregation: self.aggregation(y.aggregation.as_ref()),
            rounds: self.rounds(&y.rounds.value),
            governance: self.governance(y.governance.as_ref()),
            evaluation,
            gates,
            patience,
            id: id?,
        };
        study.sealing = self.sealing(y.sealing.as_ref(), &study);
        Some(study)
    }

    fn governance(&mut self, y: Option<&Spanned<GovernanceYaml>>) -> Governance {
        let Some(y) = y else { return Governance::default() };
        self.note("governance", y);
        let y = &y.value;
        if let Some(consent) = &y.consent {
            self.note("governance.consent", consent);
        }
        if let Some(witnesses) = &y.witnesses {
            self.note("governance.witnesses", witnesses);
        }
        Governance {
            witnesses: y.witnesses.as_ref().map(|w| {
                let WitnessesYaml { quorum, within_s } = w.value;
                WitnessQuorum { quorum, within_s }
            }),
            legal_basis: y.legal_basis.clone(),
            dpia: y.dpia.clone(),
            consent: y.consent.as_ref().map(|c| {
                let ConsentYaml { reference, expires } = c.value.clone();
                Consent { reference, expires }
            }),
            retention: y.retention.map(|r| match r {
                RetentionYaml::Months6 => Retention::Months6,
                RetentionYaml::Years5 => Retention::Years5,
                RetentionYaml::Years10 => Retention::Years10,
                RetentionYaml::Years25 => Retention::Years25,
            }),
        }
    }

    fn data(&mut self, y: &DataYaml) -> Data {
        self.note("data.dataset", &y.dataset);
        let label = self.label(&y.label);
        self.note("data.features", &y.features);
        let mut features = Vec::with_capacity(y.features.value.len());
        for (i, f) in y.features.value.iter().enumerate() {
            self.note(&format!("data.features[{i}]"), f);
            features.push(self.feature(f));
        }
        Data { dataset: y.dataset.value.clone(), features, label }
    }

    fn label(&mut self, spanned: &Spanned<LabelYaml>) -> Label {
        let y = &spanned.value;
        self.note("data.label", spanned);
        self.note("data.label.column", &y.column);
        let values = match (&y.classes, y.min, y.max) {
            (Some(classes), None, None) => {
                self.note("data.label.classes", classes);
                LabelValues::Classes(classes.value.clone())
            }
            (None, Some(min), Some(max)) => LabelValues::Number { min, max },
            _ => {
                self.wrong(
                    spanned.referenced,
                    format!("it is not clear what `{}` holds", y.column.value),
                    "give `classes`, or `min` and `max` of a number, and only one of the two",
                );
                LabelValues::Classes(Vec::new())
            }
        };
        Label { column: y.column.value.clone(), values }
    }

    fn feature(&mut self, spanned: &Spanned<FeatureYaml>) -> Feature {
        let y = &spanned.value;
        let missing = match y.missing {
            MissingYaml::Refuse => Missing::Refuse,
            MissingYaml::Keep => Missing::Keep,
        };
        let kind = match (&y.values, y.min, y.max, y.estimate_epsilon) {
            (Some(values), None, None, None) => {
                FeatureKind::Categorical { values: values.clone(), missing }
            }
            (None, Some(min), Some(max), None) => {
                FeatureKind::Numeric { bounds: Bounds::Declared { min, max }, missing }
            }
            (None, None, None, Some(epsilon)) => {
                FeatureKind::Numeric { bounds: Bounds::Estimated { epsilon }, missing }
            }
            _ => {
                self.wrong(
                    spanned.referenced,
                    format!("it is not clear how `{}` becomes numbers", y.name),
                    "give `min` and `max`, or `estimate_epsilon`, or `values`, and only one of these",
                );
                FeatureKind::Categorical { values: Vec::new(), missing }
            }
        };
        Feature { name: y.name.clone(), kind }
    }

    fn model(&mut self, spanned: &Spanned<ModelYaml>) -> Model {
        let y = &spanned.value;
        let here = spanned.referenced;
        if let Some(hidden) = &y.hidden {
            self.note("model.hidden", hidden);
        }
        match y.kind.value {
            kind @ (ModelKind::Logistic | ModelKind::Linear) => {
                let (model, because) = if kind == ModelKind::Logistic {
                    (Model::Logistic, "`kind: logistic`, which has no layers")
                } else {
                    (Model::Linear, "`kind: linear`, which has no layers")
                };
                self.unwanted("model.hidden", y.hidden.as_ref(), because);
                self.no_image(y, because);
                self.no_tokens(y, because);
                model
            }
            ModelKind::Mlp => {
                let because = "`kind: mlp`, whose layers are all linear";
                self.no_image(y, because);
                self.no_tokens(y, because);
                let hidden = match y.hidden.as_ref().map(|h| &h.value) {
                    Some(OneOrMore::One(n)) => vec![*n],
                    Some(OneOrMore::More(list)) => list.clone(),
                    None => {
                        self.wrong(
                            here,
                            "`model.hidden` is missing",
                            "give for example `hidden: [32]`",
                        );
                        Vec::new()
                    }
                };
                Model::Mlp { hidden }
            }
            ModelKind::Cnn => {
                self.no_tokens(y, "`kind: cnn`, which has no tokens");
                let [height, width, channels] = match (&y.image, &y.series) {
                    (None, Some(series)) => {
                        let [length, channels] = self.take("model.series", series);
                        self.note("model.image", series);
                        [1, length, channels]
                    }
                    (image, series) => {
                        if image.is_some() {
                            self.unwanted("model.series", series.as_ref(), "`model.image`");
                        }
                        self.needed(
                            here,
                            "model.image",
                            image.as_ref(),
                            "give `image: [height, width, channels]`, or `series: [length, channels]`",
                        )
                    }
                };
                let conv = self.convolutions(here, y.conv.as_ref());
                let hidden = match y.hidden.as_ref().map(|h| &h.value) {
                    Some(OneOrMore::One(n)) => *n,
                    Some(OneOrMore::More(list)) if list.len() == 1 => list[0],
                    _ => {
                        self.wrong(
                            here,
                            "a CNN has exactly one hidden layer",
                            "give for example `hidden: 32`",
                        );
                        1
                    }
                };
                Model::Cnn { height, width, channels, conv, hidden }
            }
            ModelKind::Transformer => self.transformer(here, y),
        }
    }

    fn no_image(&mut self, y: &ModelYaml, because: &str) {
        self.unwanted("model.image", y.image.as_ref(), because);
        self.unwanted("model.series", y.series.as_ref(), because);
        self.unwanted("model.conv", y.conv.as_ref(), because);
    }

    fn no_tokens(&mut self, y: &ModelYaml, because: &str) {
        self.unwanted("model.tokens", y.tokens.as_ref(), because);
        for (path, value) in [
            ("model.vocabulary", &y.vocabulary),
            ("model.channels", &y.channels),
            ("model.width", &y.width),
            ("model.heads", &y.heads),
            ("model.blocks", &y.blocks),
            ("model.feed_forward", &y.feed_forward),
        ] {
            self.unwanted(path, value.as_ref(), because);
        }
    }

    fn convolutions(&mut self, here: Location, y: Option<&Spanned<Vec<ConvYaml>>>) -> Vec<Conv> {
        let mut conv = Vec::new();
        for c in y.map_or(&[][..], |c| &c.value) {
            let groups = match c.norm.as_ref().map(|n| n.value) {
                Some(NormYaml::Group) => self.take_or("model.conv", c.groups.as_ref(), 1),
                norm => {
                    let at = c.norm.as_ref().map_or(here, |n| n.referenced);
                    if norm == Some(NormYaml::Batch) {
                        self.wrong(
                            at,
                            "batch normalisation mixes the records of a batch, so no record has a gradient of its own that could be clipped",
                            "use `norm: group`, which looks at one record at a time",
                        );
                    } else {
                        let because = "a convolution without `norm: group`";
                        self.unwanted("model.conv.groups", c.groups.as_ref(), because);
                    }
                    0
                }
            };
            let &ConvYaml { filters, kernel, stride, pool, .. } = c;
            conv.push(Conv { filters, kernel, stride, pool, groups });
        }
        if conv.is_empty() {
            self.wrong(
                here,
                "`model.conv` is missing",
                "give at least one layer, for example `conv: [{filters: 8, kernel: 3}]`",
            );
        }
        conv
    }

    fn transformer(&mut self, here: Location, y: &ModelYaml) -> Model {
        let because = "`kind: transformer`";
        self.unwanted("model.hidden", y.hidden.as_ref(), because);
        self.no_image(y, because);
        let kind = y.tokens.as_ref().map_or(TokensYaml::Columns, |t| t.value);
        if kind != TokensYaml::Codes {
            let because = "tokens that are no codes";
            self.unwanted("model.vocabulary", y.vocabulary.as_ref(), because);
        }
        if kind != TokensYaml::Steps {
            let because = "tokens that are no steps in time";
            self.unwanted("model.channels", y.channels.as_ref(), because);
        }
        let tokens = match kind {
            TokensYaml::Columns => TokenKind::Columns,
            TokensYaml::Codes => TokenKind::Codes {
                vocabulary: self.needed(
                    here,
                    "model.vocabulary",
                    y.vocabulary.as_ref(),
                    "give the number of different codes",
                ),
            },
            TokensYaml::Steps => TokenKind::Steps {
                channels: self.needed(
                    here,
                    "model.channels",
                    y.channels.as_ref(),
                    "give the number of values at each step",
                ),
            },
        };
        let width = self.take_or("model.width", y.width.as_ref(), 32);
        Model::Transformer {
            tokens,
            width,
            heads: self.take_or("model.heads", y.heads.as_ref(), 4),
            blocks: self.take_or("model.blocks", y.blocks.as_ref(), 2),
            feed_forward: self.take_or(
                "model.feed_forward",
                y.feed_forward.as_ref(),
                width.saturating_mul(2),
            ),
        }
    }

    fn training(&mut self, spanned: &Spanned<TrainingYaml>) -> Training {
        let y = &spanned.value;
        let algorithm = match y.algorithm {
            AlgorithmKind::Fedavg => {
                self.unwanted(
                    "training.mu",
                    y.mu.as_ref(),
                    "`algorithm: fedavg`, which has no pull",
                );
                Algorithm::FedAvg
            }
            AlgorithmKind::Fedprox => Algorithm::FedProx {
                mu: self.needed(
                    spanned.referenced,
                    "training.mu",
                    y.mu.as_ref(),
                    "give the strength of the pull, for example 0.01",
                ),
            },
        };
        let optimizer = match y.optimizer.as_ref().map_or(OptimizerKind::Sgd, |o| o.value) {
            OptimizerKind::Sgd => {
                let because = "`optimizer: sgd`";
                self.unwanted("training.weight_decay", y.weight_decay.as_ref(), because);
                Optimizer::Sgd {
                    momentum: self.take_or("training.momentum", y.momentum.as_ref(), 0.0),
                }
            }
            OptimizerKind::Adam => {
                let because = "`optimizer: adam`";
                self.unwanted("training.momentum", y.momentum.as_ref(), because);
                let because = "`optimizer: adam`; `adamw` has one";
                self.unwanted("training.weight_decay", y.weight_decay.as_ref(), because);
                Optimizer::Adam { weight_decay: 0.0 }
            }
            OptimizerKind::Adamw => {
                let because = "`optimizer: adamw`";
                self.unwanted("training.momentum", y.momentum.as_ref(), because);
                let decay = self.take_or("training.weight_decay", y.weight_decay.as_ref(), 0.01);
                Optimizer::Adam { weight_decay: decay }
            }
        };
        let batches = self.batches(spanned);
        Training {
            algorithm,
            local_steps: self.take("training.local_steps", &y.local_steps),
            batches,
            learning_rate: self.take("training.learning_rate", &y.learning_rate),
            optimizer,
            server_learning_rate: self.take_or(
                "training.server_learning_rate",
                y.server_learning_rate.as_ref(),
                1.0,
            ),
        }
    }

    fn batches(&mut self, spanned: &Spanned<TrainingYaml>) -> Batches {
        let all = Batches::Poisson(Poisson::ALL);
        match (&spanned.value.sample_rate, &spanned.value.batches) {
            (Some(rate), None) => {
                let chance = self.take("training.sample_rate", rate);
                Poisson::new(chance).map_or_else(
                    |_| {
                        let what = format!("{chance} is not a chance");
                        self.wrong(rate.referenced, what, "give a number above 0 and at most 1");
                        all
                    },
                    Batches::Poisson,
                )
            }
            (None, Some(count)) => {
                let taken = self.take("training.batches", count);
                Cyclic::new(taken).map_or_else(
                    || {
                        let mend = "give the batches that the records are split in, for example 20";
                        self.wrong(count.referenced, "no batch would ever be trained on", mend);
                        all
                    },
                    Batches::Cyclic,
                )
            }
            _ => {
                let mend = "give `sample_rate` for batches drawn at random, for example 0.05, or `batches` for so many that take turns, and only one of the two";
                self.wrong(spanned.referenced, "it is not clear how batches come about", mend);
                all
            }
        }
    }

    fn privacy(&mut self, spanned: &Spanned<PrivacyYaml>) -> Privacy {
        let y = &spanned.value;
        let here = spanned.referenced;
        self.note("privacy.mechanism", &y.mechanism);
        if matches!(y.mechanism.value, MechanismKind::None) {
            let because = "`mechanism: none`, which protects nothing";
            self.unwanted("privacy.noise_multiplier", y.noise_multiplier.as_ref(), because);
            self.unwanted("privacy.clip_norm", y.clip_norm.as_ref(), because);
            self.unwanted("privacy.adaptive_clipping", y.adaptive_clipping.as_ref(), because);
            self.unwanted("privacy.delta", y.delta.as_ref(), because);
            self.unwanted("privacy.epsilon_limit", y.epsilon_limit.as_ref(), because);
            self.unwanted("privacy.weight_epsilon", y.weight_epsilon.as_ref(), because);
            self.no_masks(y, because);
            return Privacy {
                mechanism: Mechanism::None,
                delta: 0.0,
                epsilon_limit: f64::INFINITY,
                weight_epsilon: 0.0,
            };
        }
        let noise_multiplier = self.needed(
            here,
            "privacy.noise_multiplier",
            y.noise_multiplier.as_ref(),
            "give the noise over the clip norm, for example 1.1",
        );
        let clip_norm = self.needed(
            here,
            "privacy.clip_norm",
            y.clip_norm.as_ref(),
            "give the L2 bound, for example 1.0",
        );
        if !matches!(y.mechanism.value, MechanismKind::DpSgd) {
            let because = "this mechanism: only `dp_sgd` clips records at the site, step by step";
            self.unwanted("privacy.adaptive_clipping", y.adaptive_clipping.as_ref(), because);
        }
        let mechanism = match y.mechanism.value {
            MechanismKind::DpFtrl => {
                self.no_masks(y, "`mechanism: dp_ftrl`, which protects a record at each site");
                Mechanism::DpFtrl { noise_multiplier, clip_norm }
            }
            MechanismKind::LocalGaussian => {
                self.no_masks(
                    y,
                    "`mechanism: local_gaussian`, which protects a site's whole update",
                );
                Mechanism::LocalGaussian { noise_multiplier, clip_norm }
            }
            MechanismKind::DistributedGaussian => Mechanism::DistributedGaussian {
                noise_multiplier,
                clip_norm,
                colluders: self.take_or("privacy.colluders", y.colluders.as_ref(), 0),
                protects: self.protects(here, y),
            },
            _ => {
                self.no_masks(y, "`mechanism: dp_sgd`, which protects a record at each site");
                let adaptive = y.adaptive_clipping.as_ref().map(|spanned| {
                    self.note("privacy.adaptive_clipping", spanned);
                    let AdaptiveYaml { quantile, learning_rate, count_noise } = spanned.value;
                    AdaptiveClipping { quantile, learning_rate, count_noise }
                });
                Mechanism::DpSgd { noise_multiplier, clip_norm, adaptive }
            }
        };
        Privacy {
            mechanism,
            delta: self.needed(here, "privacy.delta", y.delta.as_ref(), "give for example 1e-5"),
            epsilon_limit: self.needed(
                here,
                "privacy.epsilon_limit",
                y.epsilon_limit.as_ref(),
                "give the most epsilon that one site may spend on this study",
            ),
            weight_epsilon: self.take_or("privacy.weight_epsilon", y.weight_epsilon.as_ref(), 0.1),
        }
    }

    fn no_masks(&mut self, y: &PrivacyYaml, because: &str) {
        self.unwanted("privacy.unit", y.unit.as_ref(), because);
        self.unwanted("privacy.colluders", y.colluders.as_ref(), because);
        self.unwanted("privacy.batch_size", y.batch_size.as_ref(), because);
    }

    fn protects(&mut self, here: Location, y: &PrivacyYaml) -> Protects {
        if y.unit.as_ref().map_or(UnitYaml::Site, |u| u.value) == UnitYaml::Site {
            let because = "`unit: site`, whose update is clipped as a whole";
            self.unwanted("privacy.batch_size", y.batch_size.as_ref(), because);
            return Protects::Site;
        }
        let mend = "give the records of a usual batch at one site, for example 32";
        let batch_size = self.needed(here, "privacy.batch_size", y.batch_size.as_ref(), mend);
        Protects::Record { batch_size }
    }

    fn sealing(&mut self, spanned: Option<&Spanned<SealingYaml>>, study: &Study) -> Sealing {
        let masked = matches!(study.privacy.mechanism, Mechanism::DistributedGaussian { .. });
        let bits = if masked { BITS_MASKED } else { BITS_DEFAULT };
        let Some(spanned) = spanned else {
            return Sealing { bits, range: range_of(study, false), rotated: false };
        };
        self.note("sealing", spanned);
        let y = &spanned.value;
        let rotation = self.take_or("sealing.rotation", y.rotation.as_ref(), RotationYaml::None);
        let rotated = rotation == RotationYaml::Hadamard;
        Sealing {
            bits: self.take_or("sealing.bits", y.bits.as_ref(), bits),
            range: self.take_or("sealing.range", y.range.as_ref(), range_of(study, rotated)),
            rotated,
        }
    }

    fn cohort(&mut self, y: &CohortYaml) -> Cohort {
        self.note("cohort.places", &y.places);
        Cohort {
            places: y.places.value.clone(),
            sites: y.sites.clone(),
            min_sites: self.take("cohort.min_sites", &y.min_sites),
            weights: match y.weights {
                WeightsYaml::Examples => Weights::Examples,
                WeightsYaml::Uniform => Weights::Uniform,
            },
        }
    }

    fn aggregation(&mut self, spanned: Option<&Spanned<AggregationYaml>>) -> Rule {
        let Some(spanned) = spanned else { return Rule::Mean };
        self.note("aggregation", spanned);
        let y = &spanned.value;
        let rule = self.take("aggregation.rule", &y.rule);
        if !matches!(rule, RuleYaml::TrimmedMean | RuleYaml::Krum | RuleYaml::MultiKrum) {
            let because = "this rule, which needs no number of bad sites";
            self.unwanted("aggregation.byzantine", y.byzantine.as_ref(), because);
        }
        if rule != RuleYaml::MultiKrum {
            let because = "this rule: only `multi_krum` keeps some updates as they are";
            self.unwanted("aggregation.keep", y.keep.as_ref(), because);
        }
        if rule != RuleYaml::NormBounded {
            let because = "this rule: only `norm_bounded` shortens updates";
            self.unwanted("aggregation.clip_norm", y.clip_norm.as_ref(), because);
        }
        let mut byzantine = || {
            let mend = "give the number of sites that may send anything at all, for example 1";
            self.needed(spanned.referenced, "aggregation.byzantine", y.byzantine.as_ref(), mend)
        };
        match rule {
            RuleYaml::Mean => Rule::Mean,
            RuleYaml::Median => Rule::Median,
            RuleYaml::TrimmedMean => Rule::TrimmedMean { byzantine: byzantine() },
            RuleYaml::Krum => Rule::Krum { byzantine: byzantine() },
            RuleYaml::MultiKrum => {
                let byzantine = byzantine();
                let keep = y.keep.as_ref().map(|keep| self.take("aggregation.keep", keep));
                Rule::MultiKrum { byzantine, keep }
            }
            RuleYaml::GeometricMedian => Rule::GeometricMedian,
            RuleYaml::NormBounded => {
                let norm = y.clip_norm.as_ref();
                let clip_norm = norm.map(|norm| self.take("aggregation.clip_norm", norm));
                Rule::NormBounded { clip_norm }
            }
        }
    }

    fn rounds(&mut self, y: &RoundsYaml) -> Rounds {
        let deadline_s =
            self.take_or("rounds.deadline_s", y.deadline_s.as_ref(), DEADLINE_S_DEFAULT);
        Rounds {
            count: self.take("rounds.count", &y.count),
            deadline_s,
            grace_s: self.take_or(
                "rounds.grace_s",
                y.grace_s.as_ref(),
                GRACE_S_DEFAULT.min(deadline_s),
            ),
            retries: y.retries.unwrap_or(RETRIES_DEFAULT),
        }
    }
}

/// The range of a grid that holds a study's updates.
fn range_of(study: &Study, rotated: bool) -> f64 {
    // An update is at most its clip norm in any coordinate where the whole of it is clipped, and a rotated one only
    // a part of that; elsewhere a range of 1 holds what local training moves a parameter by.
    let params = study.manifest().map_or(0, |m| m.params());
    let part = if rotated { Rotation::flatness(params, SPIKE_CHANCE) } else { 1.0 };
    match study.privacy.mechanism {
        Mechanism::LocalGaussian { clip_norm, noise_multiplier } => {
            clip_norm * (part + 8.0 * noise_multiplier)
        }
        Mechanism::DistributedGaussian { clip_norm, colluders, noise_multiplier, protects } => {
            // The sum and its noise: what all sites can contribute to one coordinate, and a dozen standard
            // deviations of as many shares as there may be sites.
            let members = f64::from(study.cohort.masked_max(colluders));
            let honest = f64::from(study.cohort.min_sites.saturating_sub(colluders).max(1));
            let (one, unit) = match protects {
                Protects::Site => (part * clip_norm, clip_norm),
                Protects::Record { batch_size } => {
                    let whole = study.training.learning_rate * clip_norm;
                    (whole.max(4.0 * whole / f64::from(batch_size)), whole / f64::from(batch_size))
                }
            };
            1.01 * (members * one + 14.0 * noise_multiplier * unit * (members / honest).sqrt())
        }
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::{evaluation::Target, model::ModelSpec};

    const STUDY: &str = "study: s
purpose: To be read.
data:
  dataset: d
  label: { column: y, classes: [a, b] }
  features: [{ name: x, min: 0.0, max: 1.0 }]
model: { kind: logistic }
training: { local_steps: 1, sample_rate: 0.1, learning_rate: 0.5 }
privacy: { mechanism: none }
cohort: { places: [\"ae-on/*\"], min_sites: 9, weights: uniform }
rounds: { count: 1 }
";

    #[test]
    fn a_gate_that_no_round_can_pass_is_refused_where_it_stands() {
        let private = "mechanism: dp_sgd, noise_multiplier: 4.0, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 8.0";
        let private = STUDY.replace("mechanism: none", private);
        let named = private.replace("min_sites: 9", "sites: [a, b, c], min_sites: 2");
        let asked = |study: &str, gate: &str| {
            let parsed = parse(&format!("{study}gates:\n  - {gate}\n"), "s.yaml");
            parsed.map(drop).map_err(|e| e.to_string())
        };
        for (study, gate) in [
            (&named, "{ metric: sites, at_least: 3 }"),
            (&private, "{ metric: sites, at_least: 30 }"),
            (&private, "{ metric: epsilon, at_most: 7.5 }"),
            // What nobody protects costs no number.
            (&STUDY.to_owned(), "{ metric: epsilon, at_most: 0.001 }"),
        ] {
            assert_eq!(asked(study, gate), Ok(()), "{gate}");
        }
        for (study, gate, why) in [
            (&named, "{ metric: sites, at_least: 4 }", "`sites` never is at least 4: 3 may take"),
            (&private, "{ metric: epsilon, at_most: 0.001 }", "never is at most 0.001: one round"),
        ] {
            let refused = asked(study, gate).expect_err("it can never hold");
            assert!(refused.contains(why) && refused.contains("s.yaml:"), "{refused}");
        }
    }

    #[test]
    fn every_rule_is_read_as_it_is_spelled() {
        let ruled = |aggregation: &str| {
            parse(&format!("{STUDY}aggregation: {aggregation}\n"), "s.yaml").map(|s| s.aggregation)
        };
        assert_eq!(parse(STUDY, "s.yaml").expect("a study").aggregation, Rule::Mean);
        for (text, rule) in [
            ("{ rule: mean }", Rule::Mean),
            ("{ rule: median }", Rule::Median),
            ("{ rule: trimmed_mean, byzantine: 4 }", Rule::TrimmedMean { byzantine: 4 }),
            ("{ rule: krum, byzantine: 3 }", Rule::Krum { byzantine: 3 }),
            ("{ rule: multi_krum, byzantine: 2 }", Rule::MultiKrum { byzantine: 2, keep: None }),
            (
                "{ rule: multi_krum, byzantine: 2, keep: 5 }",
                Rule::MultiKrum { byzantine: 2, keep: Some(5) },
            ),
            ("{ rule: geometric_median }", Rule::GeometricMedian),
            ("{ rule: norm_bounded }", Rule::NormBounded { clip_norm: None }),
            ("{ rule: norm_bounded, clip_norm: 0.5 }", Rule::NormBounded { clip_norm: Some(0.5) }),
        ] {
            assert_eq!(ruled(text), Ok(rule), "{text}");
            let spelled = text.contains(&format!("rule: {}", rule.as_str()));
            assert!(spelled, "{text}");
        }
        let two = "{ rule: median, byzantine: 1, clip_norm: 1.0 }";
        let errors = ruled(two).expect_err("contradicts itself").0;
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors.iter().all(|e| e.line == 12 && e.column > 13), "{errors:?}");
        // The grid's step is 0.001: less than that is nothing.
        let fine = STUDY.replace("cohort:", "sealing: { bits: 8, range: 0.127 }\ncohort:");
        let bounded = |norm: &str| {
            let rule = format!("aggregation: {{ rule: norm_bounded, clip_norm: {norm} }}\n");
            parse(&format!("{fine}{rule}"), "s.yaml").map(drop)
        };
        assert_eq!(bounded("0.0011"), Ok(()));
        let errors = bounded("0.0009").expect_err("less than a step").0;
        assert!(errors[0].what.contains("less than one step of the grid"), "{errors:?}");
    }

    #[test]
    fn a_label_has_classes_or_is_a_number_and_the_model_has_to_suit_it() {
        let of = |label: &str, kind: &str| {
            let text = STUDY.replace("{ column: y, classes: [a, b] }", label);
            parse(&text.replace("kind: logistic", &format!("kind: {kind}")), "s.yaml")
        };
        let number = of("{ column: y, min: 25, max: 346 }", "linear").expect("a study");
        assert_eq!(number.target(), Target::Number { width: 321.0 });
        assert_eq!(number.model_spec(), ModelSpec::Logistic { features: 1, classes: 1 });
        let classes = of("{ column: y, classes: [a, b] }", "logistic").expect("a study");
        assert_eq!(classes.target(), Target::Classes(2));
        for label in
            ["{ column: y }", "{ column: y, min: 0 }", "{ column: y, classes: [a, b], max: 1 }"]
        {
            let errors = of(label, "linear").expect_err("refused").0;
            assert!(errors[0].what.contains("not clear what `y` holds"), "{errors:?}");
        }
        for (label, kind, said) in [
            ("{ column: y, min: 5, max: 5 }", "linear", "the label has bounds 5 to 5"),
            ("{ column: y, min: 0, max: 9 }", "logistic", "logistic regression tells classes"),
            ("{ column: y, classes: [a, b] }", "linear", "linear regression says a number"),
        ] {
            let found = of(label, kind).expect_err("refused").0;
            assert!(found.len() == 1 && found[0].what.contains(said), "{found:?}");
        }
    }
}
