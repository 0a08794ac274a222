//! Where a version came from: an in-toto statement with a SLSA provenance, in a DSSE envelope, signed by the log's key.
//!
//! Whatever it says follows from the log and from the study's file, but for the proof that the version's entry is in the log:
//! whoever has these makes the same statement again, and [`differs`] names the first field that is another.
//!
//! Sources: in-toto/attestation, Statement v1 and `ResourceDescriptor`; SLSA Provenance v1, in which members of one's own begin
//! with one's name. Canonical JSON ([`crate::canon`]), so there are no fractions: quantities are text.

use super::dsse::{Envelope, EnvelopeError};
use crate::{
    canon::{self, Canon, CanonError},
    id::{Digest, SiteId, StudyId},
    note::{NoteSigner, VerifierKey},
    sign::SignError,
    study::{Model, Study},
};
use std::{collections::BTreeMap, fmt};

/// The type of an envelope's payload.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// The type of the statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// The type of what it states.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// How a model comes about: in rounds, from updates of sites.
pub const BUILD_TYPE: &str = "urn:falaj:federated-training:v1";

/// What is known of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The study.
    pub study: StudyId,
    /// The version's number.
    pub version: u32,
    /// The round whose model it is.
    pub round: u32,
    /// SHA-256 of its parameters.
    pub model: Digest,
    /// SHA-256 of the manifest of its tensors.
    pub manifest: Digest,
    /// SHA-256 of the `safetensors` file that it is downloaded as.
    pub file: Digest,
    /// What the study says of itself.
    pub about: About,
    /// SHA-256 of the study's file.
    pub study_sha256: Digest,
    /// The model that the first round began from.
    pub base: Digest,
    /// The sets of policies by which it was decided who may take part.
    pub policy_sets: Vec<Digest>,
    /// Every round up to its own, and what went into it.
    pub rounds: Vec<RoundMade>,
    /// Epsilon by site, as each site's newest update states it.
    pub epsilon: BTreeMap<SiteId, String>,
    /// The gates that were judged, and their figures.
    pub gates: Vec<GateSaid>,
    /// Who coordinated it, by SPIFFE ID.
    pub coordinator: String,
    /// The coordinator's version.
    pub software: String,
    /// When the study was submitted.
    pub started: String,
    /// When its model was published.
    pub finished: String,
    /// Where the log says that there is this version.
    pub log: LogSaid,
}

/// What a study's file says that people ask of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// What it is for.
    pub purpose: String,
    /// The name of the data set at each site.
    pub dataset: String,
    /// Columns that the model sees, in input order.
    pub features: Vec<String>,
    /// The column that it predicts.
    pub label: String,
    /// The values of that column.
    pub classes: Vec<String>,
    /// What kind of model it is.
    pub architecture: String,
    /// The privacy mechanism.
    pub mechanism: String,
    /// The delta at which epsilon is stated.
    pub delta: String,
    /// The most epsilon that the study may spend at a site.
    pub epsilon_limit: String,
    /// Places whose sites may take part.
    pub places: Vec<String>,
    /// The legal basis; empty when the study names none.
    pub legal_basis: String,
    /// The impact assessment; empty when the study names none.
    pub dpia: String,
    /// The consent or permission; empty when the study names none.
    pub consent: String,
}

/// A round that gave a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundMade {
    /// Its number.
    pub number: u32,
    /// The model that it began from.
    pub base: Digest,
    /// The model that it gave.
    pub model: Digest,
    /// The weights of its updates together.
    pub weight: u64,
    /// The entry that says so.
    pub index: u64,
    /// The updates that went into it.
    pub updates: Vec<UpdateCounted>,
}

/// An update that went into a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateCounted {
    /// Whose it is.
    pub site: SiteId,
    /// SHA-256 of its payload.
    pub payload: Digest,
    /// SHA-256 of its signed header.
    pub header: Digest,
    /// Examples behind it, as noised by the site.
    pub weight: u64,
    /// Epsilon as the site states it.
    pub epsilon: String,
    /// The entry that says that it counts.
    pub index: u64,
}

/// A gate, as a round's verdict has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateSaid {
    /// The round.
    pub round: u32,
    /// Its name.
    pub name: String,
    /// Whom it is about: all, a group, a site.
    pub scope: String,
    /// What was measured.
    pub figure: String,
    /// Between which figures the true one lies.
    pub interval: String,
    /// What it is held against.
    pub bound: String,
    /// Whether it passed.
    pub pass: bool,
}

/// Where the log speaks of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSaid {
    /// Which log.
    pub origin: String,
    /// Index of the entry.
    pub index: u64,
    /// The entry's leaf hash.
    pub leaf: Digest,
    /// That it is there: a C2SP tlog-proof, with the checkpoint that it leads to.
    pub proof: String,
}

/// Why a provenance is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProvenanceError {
    /// The envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Its payload is not canonical.
    #[error("`payload`")]
    Canon(#[source] CanonError),
    /// A field is missing, or of another kind.
    #[error("`{0}` is missing, or cannot be read")]
    Field(String),
    /// It has a field that no provenance has, or says a thing twice in different ways.
    #[error("{0}")]
    Other(Box<Difference>),
}

/// The first field in which a statement is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where: `predicate.runDetails.builder.id`.
    pub field: String,
    /// What stands there; none where nothing does.
    pub said: Option<String>,
    /// What should stand there; none where nothing should.
    pub follows: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, said, follows } = self;
        match (said, follows) {
            (Some(said), Some(follows)) => {
                write!(f, "`{field}` is {said}, and what follows is {follows}")
            }
            (Some(said), None) => write!(f, "`{field}` is {said}, and should not be there"),
            (None, Some(follows)) => write!(f, "`{field}` is missing, and should be {follows}"),
            (None, None) => write!(f, "`{field}` is wrong"),
        }
    }
}

impl About {
    /// What a study says of itself.
    #[must_use]
    pub fn of(study: &Study) -> Self {
        let said = |text: &Option<String>| text.clone().unwrap_or_default();
        let consent = study.governance.consent.as_ref();
        Self {
            purpose: study.purpose.clone(),
            dataset: study.data.dataset.clone(),
            features: study.data.features.iter().map(|feature| feature.name.clone()).collect(),
            label: study.data.label.column.clone(),
            classes: study.data.label.classes().to_vec(),
            architecture: architecture(&study.model).to_owned(),
            mechanism: study.privacy.mechanism.as_str().to_owned(),
            delta: format!("{:e}", study.privacy.delta),
            epsilon_limit: study.privacy.epsilon_limit.to_string(),
            places: study.cohort.places.clone(),
            legal_basis: said(&study.governance.legal_basis),
            dpia: said(&study.governance.dpia),
            consent: consent
                .map(|c| format!("{}, until {}", c.reference, c.expires))
                .unwrap_or_default(),
        }
    }
}

const fn architecture(model: &Model) -> &'static str {
    match model {
        Model::Logistic => "logistic",
        Model::Linear => "linear",
        Model::Mlp { .. } => "mlp",
        Model::Cnn { .. } => "cnn",
        Model::Transformer { .. } => "transformer",
    }
}

fn texts<T: ToString>(values: &[T]) -> Canon {
    Canon::List(values.iter().map(|value| value.to_string().into()).collect())
}

fn count(n: u64) -> Canon {
    Canon::Int(i64::try_from(n).unwrap_or(i64::MAX).min((1 << 53) - 1))
}

fn sha256(digest: &Digest) -> Canon {
    Canon::map([("sha256", digest.to_string().into())])
}

/// A `ResourceDescriptor`.
fn resource(name: &str, digest: &Digest) -> Canon {
    Canon::map([("name", name.into()), ("digest", sha256(digest))])
}

impl Provenance {
    /// What files of this version are called, without what comes after the dot.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{}", self.study, self.version)
    }

    /// The statement.
    #[must_use]
    pub fn statement(&self) -> Canon {
        let name = self.name();
        Canon::map([
            ("_type", STATEMENT_TYPE.into()),
            (
                "subject",
                Canon::List(vec![
                    resource(&format!("{name}.safetensors"), &self.file),
                    resource(&format!("{name}.params"), &self.model),
                ]),
            ),
            ("predicateType", PREDICATE_TYPE.into()),
            (
                "predicate",
                Canon::map([
                    ("buildDefinition", self.definition()),
                    ("runDetails", self.run()),
                    ("falaj_epsilon_by_site", self.epsilons()),
                    (
                        "falaj_gates",
                        Canon::List(self.gates.iter().map(GateSaid::to_canon).collect()),
                    ),
                    ("falaj_log", self.log.to_canon()),
                ]),
            ),
        ])
    }

    fn definition(&self) -> Canon {
        let mut dependencies = vec![
            resource("study", &self.study_sha256),
            resource("tensors", &self.manifest),
            resource("base-model", &self.base),
        ];
        dependencies.extend(self.policy_sets.iter().map(|set| resource("policies", set)));
        let updates = self.rounds.iter().flat_map(|r| r.updates.iter().map(move |u| (r.number, u)));
        dependencies.extend(updates.map(|(round, update)| update.to_canon(round)));
        let about = &self.about;
        let external = Canon::map([
            ("study", self.study.as_str().into()),
            ("version", self.version.into()),
            ("round", self.round.into()),
        ]);
        let internal = Canon::map([
            ("purpose", about.purpose.as_str().into()),
            ("dataset", about.dataset.as_str().into()),
            ("features", texts(&about.features)),
            ("label", about.label.as_str().into()),
            ("classes", texts(&about.classes)),
            ("architecture", about.architecture.as_str().into()),
            ("mechanism", about.mechanism.as_str().into()),
            ("delta", about.delta.as_str().into()),
            ("epsilon_limit", about.epsilon_limit.as_str().into()),
            ("places", texts(&about.places)),
            ("legal_basis", about.legal_basis.as_str().into()),
            ("dpia", about.dpia.as_str().into()),
            ("consent", about.consent.as_str().into()),
        ]);
        Canon::map([
            ("buildType", BUILD_TYPE.into()),
            ("externalParameters", external),
            ("internalParameters", internal),
            ("resolvedDependencies", Canon::List(dependencies)),
        ])
    }

    fn run(&self) -> Canon {
        let software = Canon::map([("falaj-coordinator", self.software.as_str().into())]);
        Canon::map([
            (
                "builder",
                Canon::map([("id", self.coordinator.as_str().into()), ("version", software)]),
            ),
            (
                "metadata",
                Canon::map([
                    ("invocationId", format!("{}/{}", self.study, self.round).into()),
                    ("startedOn", self.started.as_str().into()),
                    ("finishedOn", self.finished.as_str().into()),
                ]),
            ),
            ("byproducts", Canon::List(self.rounds.iter().map(RoundMade::to_canon).collect())),
        ])
    }

    fn epsilons(&self) -> Canon {
        let epsilons = self.epsilon.iter();
        Canon::Map(epsilons.map(|(site, e)| (site.to_string(), e.as_str().into())).collect())
    }

    /// Signs the statement.
    ///
    /// # Errors
    /// [`SignError`] when the key cannot be used now.
    pub fn sign(&self, signer: &NoteSigner) -> Result<Envelope, SignError> {
        Envelope::sign(PAYLOAD_TYPE, self.statement().to_bytes(), signer)
    }

    /// Reads an envelope that this key signed.
    ///
    /// # Errors
    /// [`ProvenanceError`], which says what is wrong with it.
    pub fn open(envelope: &Envelope, key: &VerifierKey) -> Result<Self, ProvenanceError> {
        envelope.verify(PAYLOAD_TYPE, key)?;
        Self::read(&envelope.payload)
    }

    /// Reads a statement, whoever signed it.
    ///
    /// # Errors
    /// [`ProvenanceError`], which names the field.
    pub fn read(statement: &[u8]) -> Result<Self, ProvenanceError> {
        let said = canon::parse(statement).map_err(ProvenanceError::Canon)?;
        let read = Self::from_canon(&Said { value: &said, path: String::new() })?;
        match differs(&said, &read.statement()) {
            Some(difference) => Err(ProvenanceError::Other(Box::new(difference))),
            None => Ok(read),
        }
    }

    fn from_canon(said: &Said<'_>) -> Result<Self, ProvenanceError> {
        let subject = said.list("subject")?;
        let of_subject = |n: usize| {
            let missing = || ProvenanceError::Field(format!("subject[{n}]"));
            subject.get(n).ok_or_else(missing)?.at("digest")?.parsed("sha256")
        };
        let (file, model) = (of_subject(0)?, of_subject(1)?);
        let predicate = said.at("predicate")?;
        let definition = predicate.at("buildDefinition")?;
        let external = definition.at("externalParameters")?;
        let about = About::from_canon(&definition.at("internalParameters")?)?;
        let run = predicate.at("runDetails")?;
        let (builder, metadata) = (run.at("builder")?, run.at("metadata")?);
        let mut rounds = BTreeMap::new();
        for round in run.list("byproducts")? {
            let round = RoundMade::from_canon(&round)?;
            rounds.insert(round.number, round);
        }
        let mut of = BTreeMap::new();
        let mut policy_sets = Vec::new();
        for dependency in definition.list("resolvedDependencies")? {
            let name: String = dependency.parsed("name")?;
            let digest: Digest = dependency.at("digest")?.parsed("sha256")?;
            match name.as_str() {
                "policies" => policy_sets.push(digest),
                "update" => {
                    let (round, update) = UpdateCounted::from_canon(&dependency, digest)?;
                    let unknown =
                        || ProvenanceError::Field(format!("{}.annotations.round", dependency.path));
                    rounds.get_mut(&round).ok_or_else(unknown)?.updates.push(update);
                }
                _ => {
                    of.insert(name, digest);
                }
            }
        }
        let dependency = |name: &str| {
            let path = format!("predicate.buildDefinition.resolvedDependencies: {name}");
            of.get(name).copied().ok_or(ProvenanceError::Field(path))
        };
        let mut epsilon = BTreeMap::new();
        let epsilons = predicate.at("falaj_epsilon_by_site")?;
        for (site, value) in epsilons.members()? {
            let wrong = || ProvenanceError::Field(format!("{}.{site}", epsilons.path));
            let Canon::Text(value) = value else { return Err(wrong()) };
            epsilon.insert(site.parse().map_err(|_| wrong())?, value.clone());
        }
        let gates = predicate.list("falaj_gates")?;
        Ok(Self {
            study: external.parsed("study")?,
            version: external.int("version")?,
            round: external.int("round")?,
            model,
            manifest: dependency("tensors")?,
            file,
            about,
            study_sha256: dependency("study")?,
            base: dependency("base-model")?,
            policy_sets,
            rounds: rounds.into_values().collect(),
            epsilon,
            gates: gates.iter().map(GateSaid::from_canon).collect::<Result<_, _>>()?,
            coordinator: builder.parsed("id")?,
            software: builder.at("version")?.parsed("falaj-coordinator")?,
            started: metadata.parsed("startedOn")?,
            finished: metadata.parsed("finishedOn")?,
            log: LogSaid::from_canon(&predicate.at("falaj_log")?)?,
        })
    }
}

impl About {
    fn from_canon(said: &Said<'_>) -> Result<Self, ProvenanceError> {
        Ok(Self {
            purpose: said.parsed("purpose")?,
            dataset: said.parsed("dataset")?,
            features: said.texts("features")?,
            label: said.parsed("label")?,
            classes: said.texts("classes")?,
            architecture: said.parsed("architecture")?,
            mechanism: said.parsed("mechanism")?,
            delta: said.parsed("delta")?,
            epsilon_limit: said.parsed("epsilon_limit")?,
            places: said.texts("places")?,
            legal_basis: said.parsed("legal_basis")?,
            dpia: said.parsed("dpia")?,
            consent: said.parsed("consent")?,
        })
    }
}

impl RoundMade {
    fn to_canon(&self) -> Canon {
        let annotations = Canon::map([
            ("round", self.number.into()),
            ("base_sha256", self.base.to_string().into()),
            ("total_weight", count(self.weight)),
            ("log_index", count(self.index)),
        ]);
        Canon::map([
            ("name", "model".into()),
            ("digest", sha256(&self.model)),
            ("annotations", annotations),
        ])
    }

    fn from_canon(said: &Said<'_>) -> Result<Self, ProvenanceError> {
        let noted = said.at("annotations")?;
        Ok(Self {
            number: noted.int("round")?,
            base: noted.parsed("base_sha256")?,
            model: said.at("digest")?.parsed("sha256")?,
            weight: noted.int("total_weight")?,
            index: noted.int("log_index")?,
            updates: Vec::new(),
        })
    }
}

impl UpdateCounted {
    fn to_canon(&self, round: u32) -> Canon {
        let annotations = Canon::map([
            ("round", round.into()),
            ("header_sha256", self.header.to_string().into()),
            ("weight", count(self.weight)),
            ("epsilon", self.epsilon.as_str().into()),
            ("log_index", count(self.index)),
        ]);
        Canon::map([
            ("name", "update".into()),
            ("uri", self.site.to_string().into()),
            ("digest", sha256(&self.payload)),
            ("annotations", annotations),
        ])
    }

    fn from_canon(said: &Said<'_>, payload: Digest) -> Result<(u32, Self), ProvenanceError> {
        let noted = said.at("annotations")?;
        let update = Self {
            site: said.parsed("uri")?,
            payload,
            header: noted.parsed("header_sha256")?,
            weight: noted.int("weight")?,
            epsilon: noted.parsed("epsilon")?,
            index: noted.int("log_index")?,
        };
        Ok((noted.int("round")?, update))
    }
}

impl GateSaid {
    fn to_canon(&self) -> Canon {
        Canon::map([
            ("round", self.round.into()),
            ("name", self.name.as_str().into()),
            ("scope", self.scope.as_str().into()),
            ("figure", self.figure.as_str().into()),
            ("interval", self.interval.as_str().into()),
            ("bound", self.bound.as_str().into()),
            ("pass", self.pass.into()),
        ])
    }

    fn from_canon(said: &Said<'_>) -> Result<Self, ProvenanceError> {
        Ok(Self {
            round: said.int("round")?,
            name: said.parsed("name")?,
            scope: said.parsed("scope")?,
            figure: said.parsed("figure")?,
            interval: said.parsed("interval")?,
            bound: said.parsed("bound")?,
            pass: match said.value.member("pass") {
                Some(Canon::Bool(pass)) => *pass,
                _ => return Err(said.wrong("pass")),
            },
        })
    }
}

impl LogSaid {
    fn to_canon(&self) -> Canon {
        Canon::map([
            ("origin", self.origin.as_str().into()),
            ("index", count(self.index)),
            ("leaf_hash", self.leaf.to_string().into()),
            ("proof", self.proof.as_str().into()),
        ])
    }

    fn from_canon(said: &Said<'_>) -> Result<Self, ProvenanceError> {
        Ok(Self {
            origin: said.parsed("origin")?,
            index: said.int("index")?,
            leaf: said.parsed("leaf_hash")?,
            proof: said.parsed("proof")?,
        })
    }
}

/// A part of a statement, and where in it it stands.
struct Said<'a> {
    value: &'a Canon,
    path: String,
}

impl<'a> Said<'a> {
    fn under(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn wrong(&self, key: &str) -> ProvenanceError {
        ProvenanceError::Field(self.under(key))
    }

    fn at(&self, key: &str) -> Result<Self, ProvenanceError> {
        let value = self.value.member(key).ok_or_else(|| self.wrong(key))?;
        Ok(Said { value, path: self.under(key) })
    }

    fn members(&self) -> Result<&'a BTreeMap<String, Canon>, ProvenanceError> {
        match self.value {
            Canon::Map(members) => Ok(members),
            _ => Err(ProvenanceError::Field(self.path.clone())),
        }
    }

    fn list(&self, key: &str) -> Result<Vec<Self>, ProvenanceError> {
        let items = self.value.list(key).map_err(|_| self.wrong(key))?.iter().enumerate();
        let item = |(n, value)| Said { value, path: format!("{}[{n}]", self.under(key)) };
        Ok(items.map(item).collect())
    }

    fn parsed<T: std::str::FromStr>(&self, key: &str) -> Result<T, ProvenanceError> {
        self.value.parsed(key).map_err(|_| self.wrong(key))
    }

    fn int<T: TryFrom<i64>>(&self, key: &str) -> Result<T, ProvenanceError> {
        self.value.int(key).map_err(|_| self.wrong(key))
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, ProvenanceError> {
        let text = |said: &Self| match said.value {
            Canon::Text(text) => Ok(text.clone()),
            _ => Err(ProvenanceError::Field(said.path.clone())),
        };
        self.list(key)?.iter().map(text).collect()
    }
}

/// The first field in which what a statement says is not what follows.
#[must_use]
pub fn differs(said: &Canon, follows: &Canon) -> Option<Difference> {
    first(said, follows, String::new())
}

fn first(said: &Canon, follows: &Canon, field: String) -> Option<Difference> {
    let member =
        |key: &str| if field.is_empty() { key.to_owned() } else { format!("{field}.{key}") };
    let one = |field, said: Option<&Canon>, follows: Option<&Canon>| {
        let shown = |value: &Canon| shorten(&String::from_utf8_lossy(&value.to_bytes()));
        Some(Difference { field, said: said.map(shown), follows: follows.map(shown) })
    };
    match (said, follows) {
        (Canon::Map(said), Canon::Map(follows)) => {
            let missing = follows.iter().find(|(key, _)| !said.contains_key(*key));
            if let Some((key, value)) = missing {
                return one(member(key), None, Some(value));
            }
            said.iter().find_map(|(key, value)| match follows.get(key) {
                Some(other) => first(value, other, member(key)),
                None => one(member(key), Some(value), None),
            })
        }
        (Canon::List(said), Canon::List(follows)) => {
            let both = said.iter().zip(follows).enumerate();
            let mut found = both.filter_map(|(n, (a, b))| first(a, b, format!("{field}[{n}]")));
            found.next().or_else(|| {
                let n = said.len().min(follows.len());
                let (a, b) = (said.get(n), follows.get(n));
                if a.is_none() && b.is_none() { None } else { one(format!("{field}[{n}]"), a, b) }
            })
        }
        (said, follows) if said == follows => None,
        (said, follows) => one(field, Some(said), Some(follows)),
    }
}

/// What stands in a message of a value.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 120;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain(['…']).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;

    fn digest(what: &str) -> Digest {
        Digest::of(what.as_bytes())
    }

    pub(crate) fn site(name: &str) -> SiteId {
        format!("spiffe://t/ae-on/ae-az/site/{name}").parse().expect("a site")
    }

    pub(crate) fn example() -> Provenance {
        let update = |round: u32, name: &str, index| UpdateCounted {
            site: site(name),
            payload: digest(&format!("payload {round} {name}")),
            header: digest(&format!("header {round} {name}")),
            weight: 100,
            epsilon: format!("0.{round}"),
            index,
        };
        let round = |number: u32, index| RoundMade {
            number,
            base: digest(&format!("model {}", number - 1)),
            model: digest(&format!("model {number}")),
            weight: 200,
            index,
            updates: vec![update(number, "a", index - 2), update(number, "b", index - 1)],
        };
        Provenance {
            study: "heart".parse().expect("a study"),
            version: 1,
            round: 2,
            model: digest("model 2"),
            manifest: digest("manifest"),
            file: digest("file"),
            about: About {
                purpose: "Who <may> fall ill".into(),
                dataset: "cardio".into(),
                features: vec!["age".into(), "sex".into()],
                label: "ill".into(),
                classes: vec!["no".into(), "yes".into()],
                architecture: "mlp".into(),
                mechanism: "dp_sgd".into(),
                delta: "1e-5".into(),
                epsilon_limit: "4".into(),
                places: vec!["ae-on/*".into()],
                legal_basis: "consent".into(),
                dpia: String::new(),
                consent: "C-1, until 2027-06-30".into(),
            },
            study_sha256: digest("study"),
            base: digest("model 0"),
            policy_sets: vec![digest("policies")],
            rounds: vec![round(1, 10), round(2, 20)],
            epsilon: [(site("a"), "0.2".to_owned()), (site("b"), "0.2".to_owned())].into(),
            gates: vec![GateSaid {
                round: 2,
                name: "auc".into(),
                scope: "all".into(),
                figure: "0.75".into(),
                interval: "0.73..0.77".into(),
                bound: ">= 0.72".into(),
                pass: true,
            }],
            coordinator: "spiffe://t/ae-on/ae-az/coordinator/main".into(),
            software: "0.1.0".into(),
            started: "2026-03-01T00:00:00.000Z".into(),
            finished: "2026-03-02T00:00:00.000Z".into(),
            log: LogSaid {
                origin: "falaj.test/log".into(),
                index: 21,
                leaf: digest("leaf"),
                proof: "c2sp.org/tlog-proof@v1\nindex 21\n".into(),
            },
        }
    }

    fn signer() -> NoteSigner {
        NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[1; 32])).expect("a signer")
    }

    #[test]
    fn a_provenance_reads_back_from_its_envelope() {
        let (provenance, signer) = (example(), signer());
        let envelope = provenance.sign(&signer).expect("signed");
        let json = envelope.to_json();
        let read = Envelope::parse(json.as_bytes()).expect("an envelope");
        assert_eq!(Provenance::open(&read, signer.verifier()), Ok(provenance));
    }

    /// Every text, number and truth in a statement, each changed by itself.
    fn tampered(value: &Canon) -> Vec<Canon> {
        match value {
            Canon::Bool(b) => vec![Canon::Bool(!b)],
            Canon::Int(n) => vec![Canon::Int(n + 1)],
            // Another digest, site or text of the same kind.
            Canon::Text(text) => {
                let last = text.chars().last().unwrap_or('x');
                let other = if last == '0' { '1' } else { '0' };
                let mut chars: Vec<char> = text.chars().collect();
                chars.pop();
                vec![Canon::Text(chars.into_iter().chain([other]).collect())]
            }
            Canon::List(items) => {
                let changed = |(n, item): (usize, &Canon)| {
                    let with = move |other| {
                        let mut items = items.clone();
                        items[n] = other;
                        Canon::List(items)
                    };
                    tampered(item).into_iter().map(with).collect::<Vec<_>>()
                };
                let fewer = (!items.is_empty()).then(|| Canon::List(items[1..].to_vec()));
                items.iter().enumerate().flat_map(changed).chain(fewer).collect()
            }
            Canon::Map(members) => {
                let changed = |(key, member): (&String, &Canon)| {
                    let key = key.clone();
                    let with = move |other| {
                        let mut members = members.clone();
                        members.insert(key.clone(), other);
                        Canon::Map(members)
                    };
                    tampered(member).into_iter().map(with).collect::<Vec<_>>()
                };
                let more = [("more".to_owned(), Canon::Int(0))];
                let more = Canon::Map(members.clone().into_iter().chain(more).collect());
                let fewer = members.keys().map(|key| {
                    let but = members.iter().filter(|(k, _)| *k != key);
                    Canon::Map(but.map(|(k, v)| (k.clone(), v.clone())).collect())
                });
                members.iter().flat_map(changed).chain([more]).chain(fewer).collect()
            }
        }
    }

    #[test]
    fn whatever_is_changed_is_named_by_its_field_and_the_signature_is_over_all_of_it() {
        let (provenance, signer) = (example(), signer());
        let whole = provenance.statement();
        let envelope = provenance.sign(&signer).expect("signed");
        let all = tampered(&whole);
        assert!(all.len() > 200, "{}", all.len());
        for changed in all {
            let difference = differs(&changed, &whole).expect("it is another");
            assert!(!difference.field.is_empty(), "{difference}");
            let payload = changed.to_bytes();
            // What can still be read is another provenance; what cannot says where.
            match Provenance::read(&payload) {
                Ok(read) => assert_ne!(read, provenance),
                Err(e) => assert!(e.to_string().contains('`'), "{e}"),
            }
            let forged = Envelope { payload, ..envelope.clone() };
            let wrong = Provenance::open(&forged, signer.verifier()).expect_err("forged");
            assert!(wrong.to_string().starts_with("`signatures`: the one by"), "{wrong}");
        }
    }

    #[test]
    fn the_field_that_differs_is_the_one_that_was_changed() {
        let whole = example();
        let said = |change: &dyn Fn(&mut Provenance)| {
            let mut other = whole.clone();
            change(&mut other);
            differs(&other.statement(), &whole.statement()).expect("it differs").to_string()
        };
        let wanted = "`predicate.buildDefinition.resolvedDependencies[4].annotations.epsilon` is \"9\", and what follows is \"0.1\"";
        assert_eq!(said(&|p| p.rounds[0].updates[0].epsilon = "9".into()), wanted);
        let model = said(&|p| p.model = digest("other"));
        assert!(model.starts_with("`subject[1].digest.sha256` is"), "{model}");
        let gate = said(&|p| p.gates[0].pass = false);
        assert_eq!(gate, "`predicate.falaj_gates[0].pass` is false, and what follows is true");
        let gates = said(&|p| p.gates.clear());
        assert!(gates.starts_with("`predicate.falaj_gates[0]` is missing"), "{gates}");
        let more = said(&|p| p.policy_sets.push(digest("other")));
        assert!(more.starts_with("`predicate.buildDefinition.resolvedDependencies[4]"), "{more}");
    }

    #[test]
    fn a_statement_of_another_type_or_with_more_in_it_is_refused() {
        let whole = example().statement();
        let Canon::Map(mut members) = whole else { panic!("an object") };
        members.insert("predicateType".into(), "https://example.com/other".into());
        let read = Provenance::read(&Canon::Map(members.clone()).to_bytes()).expect_err("another");
        assert!(read.to_string().starts_with("`predicateType` is"), "{read}");
        members.insert("predicateType".into(), PREDICATE_TYPE.into());
        members.insert("more".into(), true.into());
        let read = Provenance::read(&Canon::Map(members).to_bytes()).expect_err("more");
        assert_eq!(read.to_string(), "`more` is true, and should not be there");
        assert!(matches!(Provenance::read(b"{ }"), Err(ProvenanceError::Canon(_))));
    }
}
