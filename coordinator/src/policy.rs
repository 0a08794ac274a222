//! Who may do what: Cedar policies, checked against their schema when they are loaded.
//!
//! The default is deny. Cedar skips a policy that errs, so any error in a decision denies. A decision carries
//! the ids of the policies that made it and the digest of the whole set, for the log.

use arc_swap::ArcSwap;
use cedar_policy::{
    Authorizer, Context, Decision as CedarDecision, Entities, Entity, EntityUid, PolicySet,
    Request, RestrictedExpression, Schema, ValidationMode, Validator,
};
use falaj_core::{
    audit::policy_set,
    id::{Digest, Place, SpiffeId, StudyId},
};
use std::{
    collections::{HashMap, HashSet},
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Speak to the coordinator at all.
    Connect,
    /// Take part in a study's round.
    StudyJoin,
    /// Be given a task.
    TaskGet,
    /// Send an update.
    UpdateSend,
    /// Read a model.
    ModelRead,
    /// Submit a study.
    StudySubmit,
    /// Read about a study.
    StudyRead,
    /// Stop a study.
    StudyStop,
    /// Read how the coordinator is.
    StatusRead,
    /// Read the log.
    LogRead,
    /// Export the log.
    LogExport,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 11] = [
        Self::Connect,
        Self::StudyJoin,
        Self::TaskGet,
        Self::UpdateSend,
        Self::ModelRead,
        Self::StudySubmit,
        Self::StudyRead,
        Self::StudyStop,
        Self::StatusRead,
        Self::LogRead,
        Self::LogExport,
    ];

    /// The word that policies use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::StudyJoin => "study.join",
            Self::TaskGet => "task.get",
            Self::UpdateSend => "update.send",
            Self::ModelRead => "model.read",
            Self::StudySubmit => "study.submit",
            Self::StudyRead => "study.read",
            Self::StudyStop => "study.stop",
            Self::StatusRead => "status.read",
            Self::LogRead => "log.read",
            Self::LogExport => "log.export",
        }
    }
}

/// What it is wanted of.
#[derive(Clone, Debug)]
pub enum Resource<'a> {
    /// The coordinator itself.
    Service,
    /// A study, sealed by this mechanism.
    Study(&'a StudyId, &'a str),
}

/// What the policies say.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Whether it may be done.
    pub allow: bool,
    /// Ids of the policies that decided; none when nothing permits it.
    pub policies: Vec<String>,
    /// For people: which policy said no, and why.
    pub reason: String,
    /// SHA-256 of the policy set.
    pub policy_set: Digest,
}

/// Why policies cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A file cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    /// A file does not parse, or does not fit the schema.
    #[error("{0}: {1}")]
    Invalid(PathBuf, String),
}

struct Loaded {
    policies: PolicySet,
    schema: Schema,
    digest: Digest,
    files: Vec<(String, Vec<u8>)>,
}

/// Decides. A cheap handle: clones share the set in force.
#[derive(Clone)]
pub struct PolicyEngine {
    dir: Arc<PathBuf>,
    place: Arc<Place>,
    loaded: Arc<ArcSwap<Loaded>>,
}

impl PolicyEngine {
    /// Loads `coordinator.cedar` under `coordinator.cedarschema` for a coordinator in `place`.
    ///
    /// # Errors
    /// [`PolicyError`], with the file and what is wrong in it.
    pub fn load(dir: &Path, place: &Place) -> Result<Self, PolicyError> {
        let loaded = Arc::new(ArcSwap::from_pointee(load(dir)?));
        Ok(Self { dir: Arc::new(dir.to_owned()), place: Arc::new(place.clone()), loaded })
    }

    /// Reads the files again. What does not parse leaves the old set in force.
    ///
    /// # Errors
    /// [`PolicyError`], with the file and what is wrong in it.
    pub fn reload(&self) -> Result<Digest, PolicyError> {
        let fresh = load(&self.dir)?;
        let digest = fresh.digest;
        self.loaded.store(Arc::new(fresh));
        Ok(digest)
    }

    /// SHA-256 of the policy set in force.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.loaded.load().digest
    }

    /// The files in force: names and bytes.
    #[must_use]
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        self.loaded.load().files.clone()
    }

    /// Whether `who` may do `action`.
    #[must_use]
    pub fn decide(&self, who: &SpiffeId, action: Action, resource: &Resource<'_>) -> Decision {
        let loaded = self.loaded.load();
        match self.ask(&loaded, who, action, resource) {
            Ok(decision) => decision,
            Err(e) => {
                // The schema knows no such request: this kind of party never does this.
                tracing::debug!(error = %e, "no such request");
                Decision {
                    allow: false,
                    policies: Vec::new(),
                    reason: format!("`{}` is not for a {}", action.as_str(), who.role()),
                    policy_set: loaded.digest,
                }
            }
        }
    }

    fn ask(
        &self,
        loaded: &Loaded,
        who: &SpiffeId,
        action: Action,
        resource: &Resource<'_>,
    ) -> Result<Decision, Box<dyn std::error::Error + Send + Sync>> {
        let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
        let principal = uid(role_type(who), &who.to_string())?;
        let place = who.place();
        let principal_entity = Entity::new(
            principal.clone(),
            HashMap::from([
                ("name".to_owned(), text(who.name())),
                ("trust_domain".to_owned(), text(who.trust_domain())),
                ("jurisdiction".to_owned(), text(place.jurisdiction())),
                ("region".to_owned(), text(place.region())),
            ]),
            HashSet::new(),
        )?;
        let here = text(self.place.jurisdiction());
        let (resource_uid, attributes) = match resource {
            Resource::Service => (
                uid("Service", "coordinator")?,
                HashMap::from([
                    ("jurisdiction".to_owned(), here),
                    ("region".to_owned(), text(self.place.region())),
                ]),
            ),
            Resource::Study(id, mechanism) => (
                uid("Study", id.as_str())?,
                HashMap::from([
                    ("mechanism".to_owned(), text(mechanism)),
                    ("jurisdiction".to_owned(), here),
                ]),
            ),
        };
        let resource_entity = Entity::new(resource_uid.clone(), attributes, HashSet::new())?;
        let request = Request::new(
            principal,
            uid("Action", action.as_str())?,
            resource_uid,
            Context::empty(),
            Some(&loaded.schema),
        )?;
        let entities =
            Entities::from_entities([principal_entity, resource_entity], Some(&loaded.schema))?;
        let answer = Authorizer::new().is_authorized(&request, &loaded.policies, &entities);
        let mut policies: Vec<String> = answer
            .diagnostics()
            .reason()
            .map(|id| annotation(loaded, id, "id").unwrap_or_else(|| id.to_string()))
            .collect();
        policies.sort();
        let mut errors = answer.diagnostics().errors().peekable();
        if let Some(error) = errors.peek() {
            return Ok(Decision {
                allow: false,
                policies,
                reason: format!("a policy erred, which denies: {error}"),
                policy_set: loaded.digest,
            });
        }
        let allow = answer.decision() == CedarDecision::Allow;
        let why: Vec<String> = answer
            .diagnostics()
            .reason()
            .filter_map(|id| annotation(loaded, id, "reason"))
            .collect();
        let reason = if allow {
            String::new()
        } else if policies.is_empty() {
            format!("nothing permits {who} to {}", action.as_str())
        } else {
            format!("denied to {who} in {} by {}: {}", place, policies.join(", "), why.join("; "))
        };
        Ok(Decision { allow, policies, reason, policy_set: loaded.digest })
    }
}

impl fmt::Debug for PolicyEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyEngine({}, {})", self.dir.display(), self.digest())
    }
}

fn annotation(loaded: &Loaded, id: &cedar_policy::PolicyId, key: &str) -> Option<String> {
    Some(loaded.policies.policy(id)?.annotation(key)?.to_owned())
}

const fn role_type(who: &SpiffeId) -> &'static str {
    use falaj_core::id::Role;
    match who.role() {
        Role::Site => "Site",
        Role::Operator => "Operator",
        Role::Coordinator => "Coordinator",
        Role::Witness => "Witness",
    }
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, Box<dyn std::error::Error + Send + Sync>> {
    let kind = cedar_policy::EntityTypeName::from_str(&format!("Falaj::{kind}"))?;
    Ok(EntityUid::from_type_name_and_id(kind, cedar_policy::EntityId::new(id)))
}

fn load(dir: &Path) -> Result<Loaded, PolicyError> {
    let read = |name: &str| {
        let path = dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => {
                let text = String::from_utf8(bytes.clone())
                    .map_err(|e| PolicyError::Invalid(path.clone(), e.to_string()))?;
                Ok((path, bytes, text))
            }
            Err(e) => Err(PolicyError::Read(path, e)),
        }
    };
    let (schema_path, schema_bytes, schema_text) = read("coordinator.cedarschema")?;
    let (schema, _) = Schema::from_cedarschema_str(&schema_text)
        .map_err(|e| PolicyError::Invalid(schema_path, e.to_string()))?;
    let (path, bytes, text) = read("coordinator.cedar")?;
    let policies = PolicySet::from_str(&text)
        .map_err(|e| PolicyError::Invalid(path.clone(), e.to_string()))?;
    let verdict = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
    if let Some(problem) = verdict.validation_errors().next() {
        return Err(PolicyError::Invalid(path, problem.to_string()));
    }
    if let Some(problem) = verdict.validation_warnings().next() {
        return Err(PolicyError::Invalid(path, problem.to_string()));
    }
    let files = vec![
        ("coordinator.cedar".to_owned(), bytes),
        ("coordinator.cedarschema".to_owned(), schema_bytes),
    ];
    Ok(Loaded { policies, schema, digest: policy_set(&files), files })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Cases {
        case: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        principal: String,
        action: String,
        mechanism: Option<String>,
        allow: bool,
        policies: Vec<String>,
    }

    fn shipped() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies")
    }

    fn engine(dir: &Path) -> PolicyEngine {
        PolicyEngine::load(dir, &"ae-on/ae-az".parse().expect("valid")).expect("policies load")
    }

    #[test]
    fn the_shipped_policies_decide_as_their_cases_say() {
        let engine = engine(&shipped());
        let text = fs::read_to_string(shipped().join("coordinator_test.toml")).expect("a file");
        let cases: Cases = toml::from_str(&text).expect("cases");
        assert!(cases.case.len() >= 20);
        let study: StudyId = "s".parse().expect("valid");
        for case in cases.case {
            let action =
                Action::ALL.into_iter().find(|a| a.as_str() == case.action).expect("an action");
            let resource =
                case.mechanism.as_deref().map_or(Resource::Service, |m| Resource::Study(&study, m));
            let who = case.principal.parse().expect("an identity");
            let said = engine.decide(&who, action, &resource);
            assert_eq!((said.allow, said.policies), (case.allow, case.policies), "{}", case.name);
        }
    }

    #[test]
    fn a_file_that_does_not_fit_the_schema_leaves_the_old_set_in_force() {
        let dir = tempfile::tempdir().expect("a folder");
        for file in ["coordinator.cedar", "coordinator.cedarschema"] {
            fs::copy(shipped().join(file), dir.path().join(file)).expect("copied");
        }
        let engine = engine(dir.path());
        let before = engine.digest();
        let misspelt =
            "permit (principal is Falaj::Site, action, resource) when { principal.nmae == \"x\" };";
        fs::write(dir.path().join("coordinator.cedar"), misspelt).expect("written");
        let err = engine.reload().expect_err("refused").to_string();
        assert!(err.contains("coordinator.cedar"), "{err}");
        assert_eq!(engine.digest(), before);
        let abu_dhabi = "spiffe://t/ae-on/ae-az/site/h".parse().expect("valid");
        assert!(engine.decide(&abu_dhabi, Action::Connect, &Resource::Service).allow);
    }

    #[test]
    fn a_denial_names_the_policy_its_reason_and_the_place() {
        let london = "spiffe://t/gb/gb-lnd/site/london".parse().expect("valid");
        let said = engine(&shipped()).decide(&london, Action::Connect, &Resource::Service);
        assert!(!said.allow);
        for word in ["RES-001", "gb/gb-lnd", "onshore"] {
            assert!(said.reason.contains(word), "{}", said.reason);
        }
    }
}
