//! How each part of a statement is spelled, and read back.

use super::{
    About, GateSaid, LogSaid, Provenance, ProvenanceError, RoundMade, UpdateCounted, count, sha256,
};
use crate::{canon::Canon, id::Digest};
use std::collections::BTreeMap;

impl Provenance {
    pub(super) fn from_canon(said: &Said<'_>) -> Result<Self, ProvenanceError> {
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
    pub(super) fn from_canon(said: &Said<'_>) -> Result<Self, ProvenanceError> {
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
    pub(super) fn to_canon(&self) -> Canon {
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

    pub(super) fn from_canon(said: &Said<'_>) -> Result<Self, ProvenanceError> {
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
    pub(super) fn to_canon(&self, round: u32) -> Canon {
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

    pub(super) fn from_canon(
        said: &Said<'_>,
        payload: Digest,
    ) -> Result<(u32, Self), ProvenanceError> {
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
    /// As an entry has it: `pass: roc_auc: 0.7512 [0.7312, 0.7721], at least 0.72 needed`. What is spelled otherwise is all name.
    #[must_use]
    pub fn of_line(round: u32, line: &str) -> Self {
        let (verdict, said) = line.split_once(": ").unwrap_or(("", line));
        let (rest, bound) = said
            .strip_suffix(" needed")
            .and_then(|said| said.rsplit_once(", "))
            .unwrap_or((said, ""));
        let (name, found) = rest.split_once(": ").unwrap_or((rest, ""));
        let ranged = found.strip_suffix(']').and_then(|found| found.split_once(" ["));
        let (figure, interval) = ranged.unwrap_or((found, ""));
        Self {
            round,
            name: name.to_owned(),
            scope: String::new(),
            figure: figure.to_owned(),
            interval: interval.to_owned(),
            bound: bound.to_owned(),
            pass: verdict == "pass",
        }
    }

    /// All gates of a round at once, where the list of what was said of them was too long for its entry, which has this SHA-256 of it.
    #[must_use]
    pub fn too_many(round: u32, digest: &str, pass: bool) -> Self {
        Self {
            round,
            name: "gates".to_owned(),
            scope: String::new(),
            figure: format!("too many for the log's entry, which has their SHA-256: {digest}"),
            interval: String::new(),
            bound: String::new(),
            pass,
        }
    }

    pub(super) fn to_canon(&self) -> Canon {
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

    pub(super) fn from_canon(said: &Said<'_>) -> Result<Self, ProvenanceError> {
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
    pub(super) fn to_canon(&self) -> Canon {
        Canon::map([
            ("origin", self.origin.as_str().into()),
            ("index", count(self.index)),
            ("leaf_hash", self.leaf.to_string().into()),
            ("proof", self.proof.as_str().into()),
        ])
    }

    pub(super) fn from_canon(said: &Said<'_>) -> Result<Self, ProvenanceError> {
        Ok(Self {
            origin: said.parsed("origin")?,
            index: said.int("index")?,
            leaf: said.parsed("leaf_hash")?,
            proof: said.parsed("proof")?,
        })
    }
}

/// A part of a statement, and where in it it stands.
pub(super) struct Said<'a> {
    value: &'a Canon,
    path: String,
}

impl<'a> Said<'a> {
    /// A whole statement.
    pub(super) const fn whole(value: &'a Canon) -> Self {
        Self { value, path: String::new() }
    }

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
