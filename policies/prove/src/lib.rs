//! Proves of a set of policies what it must come to, for every request that its schema allows, and not only for those that
//! somebody thought of: Cedar's symbolic compiler (`SymCC`, itself verified in Lean) puts the question, cvc5 answers it.
//!
//! What a set must come to are its *properties*, policies themselves: what a `forbid` of them describes is never allowed,
//! what a `permit` of them describes is always allowed. A property that no change of a rule could break would say nothing
//! of that rule, so each rule is changed in every small way, and each change that makes a difference must be refuted.

mod mutate;

use cedar_policy::{Effect, Policy, PolicyId, PolicySet, RequestEnv, Schema};
use cedar_policy_symcc::{
    CedarSymCompiler, CompiledPolicy, CompiledPolicySet, err::Error as SymccError,
    solver::LocalSolver,
};
use falaj_policies::{POLICIES, PolicyError, SCHEMA};
use serde::Serialize;
use std::{collections::BTreeMap, fmt, str::FromStr as _};

/// The file with the properties of the set beside it.
pub const PROPERTIES: &str = "coordinator.properties.cedar";

/// How long the solver may think about one question, in milliseconds. All of them together take as long as they take.
const ANSWER: &str = "--tlimit-per=60000";

/// Why nothing could be proved or refuted.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// A file is not what it should be.
    #[error(transparent)]
    File(#[from] PolicyError),
    /// There is no solver.
    #[error(
        "cvc5 cannot be started: install it (`apt-get install cvc5`), or name it by the variable CVC5"
    )]
    Solver(#[source] Box<SymccError>),
    /// The solver, or the compiler before it, gave no answer.
    #[error("{asked}: no answer")]
    Unanswered {
        /// What was asked.
        asked: String,
        /// What came instead.
        #[source]
        why: Box<SymccError>,
    },
    /// A rule could not be changed and read again.
    #[error("{rule}: it cannot be changed: {what}")]
    Mutation {
        /// The rule.
        rule: String,
        /// What is wrong.
        what: String,
    },
}

/// What a set must come to.
struct Property {
    id: String,
    effect: Effect,
    /// What it describes, as the one `permit` of a set.
    described: PolicySet,
}

/// A request for which something does not hold.
#[derive(Clone, Debug, Serialize)]
pub struct Refutation {
    /// The property, or the rule that errs.
    pub id: String,
    /// What happens that must not.
    pub what: &'static str,
    /// One such request, with the entities that it speaks of.
    pub example: String,
}

impl fmt::Display for Refutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, for example\n{}", self.id, self.what, self.example)
    }
}

/// What became of the changed rules.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Mutants {
    /// Changes that some property refutes.
    pub refuted: usize,
    /// Changes that make no difference to any request.
    pub equivalent: usize,
    /// Changes that do, and that no property refutes: the changed rule, by the id of the rule.
    pub survivors: Vec<(String, String)>,
}

/// A set, its schema and its properties, compiled for each kind of request, and a solver.
pub struct Prover {
    solver: CedarSymCompiler<LocalSolver>,
    schema: Schema,
    set: PolicySet,
    properties: Vec<Property>,
    kinds: Vec<Kind>,
}

/// One kind of request: who, what, of what.
struct Kind {
    environment: RequestEnv,
    name: String,
    set: CompiledPolicySet,
    properties: Vec<CompiledPolicySet>,
}

impl Prover {
    /// Reads a set, its schema and its properties from their files, by name, and starts a solver.
    ///
    /// # Errors
    /// [`ProveError`].
    pub fn new(files: &BTreeMap<String, Vec<u8>>) -> Result<Self, ProveError> {
        let wrong = |file, what: String| PolicyError { file, what };
        let read = |name: &'static str| {
            let bytes = files.get(name).ok_or_else(|| wrong(name, "it is not there".into()))?;
            str::from_utf8(bytes).map_err(|e| wrong(name, e.to_string()))
        };
        let (schema, _) = Schema::from_cedarschema_str(read(SCHEMA)?)
            .map_err(|e| wrong(SCHEMA, e.to_string()))?;
        let parse = |name: &'static str| {
            PolicySet::from_str(read(name)?).map_err(|e| wrong(name, e.to_string()))
        };
        let set = parse(POLICIES)?;
        let properties = parse(PROPERTIES)?
            .policies()
            .map(|policy| property(policy).map_err(|what| wrong(PROPERTIES, what)))
            .collect::<Result<Vec<_>, _>>()?;
        let solver = LocalSolver::cvc5_with_args([ANSWER])
            .map_err(|e| ProveError::Solver(Box::new(e.into())))?;
        let solver = CedarSymCompiler::new(solver).map_err(|e| ProveError::Solver(Box::new(e)))?;
        let mut kinds = Vec::new();
        for environment in schema.request_envs() {
            let name = format!(
                "{} {} {}",
                environment.principal(),
                environment.action().id().unescaped(),
                environment.resource()
            );
            let compile = |set: &PolicySet| {
                CompiledPolicySet::compile(set, &environment, &schema).map_err(|why| {
                    ProveError::Unanswered { asked: name.clone(), why: Box::new(why) }
                })
            };
            let compiled = compile(&set)?;
            let properties =
                properties.iter().map(|p| compile(&p.described)).collect::<Result<_, _>>()?;
            kinds.push(Kind { name, set: compiled, properties, environment });
        }
        kinds.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { solver, schema, set, properties, kinds })
    }

    /// How many properties, rules and kinds of requests there are.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.properties.len(), self.set.policies().count(), self.kinds.len())
    }

    /// Every rule that can err and every property that does not hold, with a request that shows it. None: all is proven.
    ///
    /// # Errors
    /// [`ProveError::Unanswered`].
    pub async fn refutations(&mut self) -> Result<Vec<Refutation>, ProveError> {
        let mut found = Vec::new();
        for kind in &self.kinds {
            for rule in self.set.policies() {
                let asked = || format!("whether {} errs ({})", id_of(rule), kind.name);
                let answer = |why| ProveError::Unanswered { asked: asked(), why: Box::new(why) };
                let compiled = CompiledPolicy::compile(rule, &kind.environment, &self.schema)
                    .map_err(answer)?;
                let example = self.solver.check_never_errors_with_counterexample_opt(&compiled);
                if let Some(example) = example.await.map_err(answer)? {
                    let (id, example) = (id_of(rule), example.to_string());
                    found.push(Refutation { id, what: "the rule errs", example });
                }
            }
            for (property, described) in self.properties.iter().zip(&kind.properties) {
                let answer = |why| ProveError::Unanswered {
                    asked: format!("{} ({})", property.id, kind.name),
                    why: Box::new(why),
                };
                let (what, example) = match property.effect {
                    Effect::Forbid => (
                        "it is allowed",
                        self.solver
                            .check_disjoint_with_counterexample_opt(&kind.set, described)
                            .await,
                    ),
                    Effect::Permit => (
                        "it is denied",
                        self.solver
                            .check_implies_with_counterexample_opt(described, &kind.set)
                            .await,
                    ),
                };
                if let Some(example) = example.map_err(answer)? {
                    let (id, example) = (property.id.clone(), example.to_string());
                    found.push(Refutation { id, what, example });
                }
            }
        }
        Ok(found)
    }

    /// Changes each rule in every small way, and asks whether the properties notice. `progress` is told how many changes of
    /// how many have been looked at.
    ///
    /// # Errors
    /// [`ProveError`].
    pub async fn mutants(
        &mut self,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Mutants, ProveError> {
        let rules: Vec<Policy> = self.set.policies().cloned().collect();
        let mut changes = Vec::new();
        for rule in &rules {
            let wrong = |what: String| ProveError::Mutation { rule: id_of(rule), what };
            let json = rule.to_json().map_err(|e| wrong(e.to_string()))?;
            changes.push((rule, None));
            for mutant in mutate::mutants(&json) {
                // Some changes make no policy, an empty list for example.
                let mutant = Policy::from_json(Some(rule.id().clone()), mutant).ok();
                changes.extend(mutant.map(|mutant| (rule, Some(mutant))));
            }
        }
        let mut outcome = Mutants::default();
        for (i, (rule, mutant)) in changes.iter().enumerate() {
            progress(i, changes.len());
            let others = rules.iter().filter(|r| r.id() != rule.id()).cloned();
            let set = PolicySet::from_policies(others.chain(mutant.clone()))
                .map_err(|e| ProveError::Mutation { rule: id_of(rule), what: e.to_string() })?;
            match self.fate(&set).await? {
                Fate::Refuted => outcome.refuted += 1,
                Fate::Equivalent => outcome.equivalent += 1,
                Fate::Survives => {
                    let text = mutant.as_ref().map_or("removed".to_owned(), ToString::to_string);
                    outcome.survivors.push((id_of(rule), text));
                }
            }
        }
        Ok(outcome)
    }

    async fn fate(&mut self, mutant: &PolicySet) -> Result<Fate, ProveError> {
        let mut fate = Fate::Equivalent;
        for kind in &self.kinds {
            let answer = |why| ProveError::Unanswered {
                asked: format!("a changed rule ({})", kind.name),
                why: Box::new(why),
            };
            // What does not fit the schema is refused when policies are loaded.
            let Ok(changed) = CompiledPolicySet::compile(mutant, &kind.environment, &self.schema)
            else {
                return Ok(Fate::Refuted);
            };
            let same = self.solver.check_equivalent_opt(&changed, &kind.set).await;
            if same.map_err(answer)? {
                continue;
            }
            fate = Fate::Survives;
            for (property, described) in self.properties.iter().zip(&kind.properties) {
                let holds = match property.effect {
                    Effect::Forbid => self.solver.check_disjoint_opt(&changed, described).await,
                    Effect::Permit => self.solver.check_implies_opt(described, &changed).await,
                };
                if !holds.map_err(answer)? {
                    return Ok(Fate::Refuted);
                }
            }
        }
        Ok(fate)
    }
}

enum Fate {
    Refuted,
    Equivalent,
    Survives,
}

/// A rule's name: its annotation `@id`, or its place in the file.
fn id_of(policy: &Policy) -> String {
    policy.annotation("id").map_or_else(|| policy.id().to_string(), str::to_owned)
}

fn property(policy: &Policy) -> Result<Property, String> {
    let id = id_of(policy);
    let wrong = |e: &dyn fmt::Display| format!("{id}: {e}");
    let mut json = policy.to_json().map_err(|e| wrong(&e))?;
    json["effect"] = "permit".into();
    let described = Policy::from_json(Some(PolicyId::new(&id)), json).map_err(|e| wrong(&e))?;
    let described = PolicySet::from_policies([described]).map_err(|e| wrong(&e))?;
    Ok(Property { effect: policy.effect(), described, id })
}
