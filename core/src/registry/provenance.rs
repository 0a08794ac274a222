//! Where a version came from: an in-toto statement with a SLSA provenance, in a DSSE envelope, signed by the log's key.
//!
//! Whatever it says follows from the log and from the study's file, but for the proof that the version's entry is in the log:
//! whoever has these makes the same statement again, and [`differs`] names the first field that is another.
//!
//! Sources: in-toto/attestation, Statement v1 and `ResourceDescriptor`; SLSA Provenance v1, in which members of one's own begin
//! with one's name. Canonical JSON ([`crate::canon`]), so there are no fractions: quantities are text.

mod difference;
mod spelled;

pub use difference::{Difference, differs};

use super::dsse::{Envelope, EnvelopeError};
use crate::{
    canon::{self, Canon, CanonError},
    id::{Digest, SiteId, StudyId},
    note::{NoteSigner, VerifierKey},
    sign::SignError,
    study::{Model, Study},
};
use spelled::Said;
use std::collections::BTreeMap;

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
    /// Epsilon by site, as its newest update, or its newest counts about a candidate, state it.
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
        let read = Self::from_canon(&Said::whole(&said))?;
        match differs(&said, &read.statement()) {
            Some(difference) => Err(ProvenanceError::Other(Box::new(difference))),
            None => Ok(read),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
