//! What a site lets a coordinator's studies do there: Cedar policies of the site's own, under a schema that is compiled in.
//! Pure: whoever asks brings the hour, the approval and what the ledger knows.
//!
//! The default is deny, and a rule that errs denies. How the policies come from a file, and what is done with a refusal,
//! is the agent's.

use crate::{PolicyError, annotation};
use cedar_policy::{
    Authorizer, Context, Decision as CedarDecision, Entities, Entity, EntityId, EntityTypeName,
    EntityUid, PolicyId, PolicySet, Request, RestrictedExpression, Schema, ValidationMode,
    Validator,
};
use falaj_core::{
    evaluation::Evaluation,
    evidence::Declared,
    id::{Digest, Place, SpiffeId},
    study::{Model, Retention, Study},
    time::Timestamp,
};
use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
};

/// The file's name, beside the agent's configuration.
pub const SITE_POLICIES: &str = "site.cedar";
/// What the shipped policies are.
pub const SITE_SHIPPED: &str = include_str!("../site.cedar");
/// What they may speak of.
const SITE_SCHEMA: &str = include_str!("../site.cedarschema");
/// The largest number that Cedar's decimals hold, to four places: more than any budget.
const DECIMAL_MOST: f64 = 1e14;

/// A question to a site's policies: whether a round of a study may run.
#[derive(Clone, Debug)]
pub struct SiteRequest<'a> {
    /// Who asks.
    pub coordinator: &'a SpiffeId,
    /// Where they say that they store and compute.
    pub declared: &'a Declared,
    /// For which study.
    pub study: &'a Study,
    /// For which of its data sets: the one that it trains on, or one that is kept for evaluation.
    pub dataset: &'a str,
    /// SHA-256 of the study's file.
    pub study_sha256: Digest,
    /// Which round, from 1.
    pub round: u32,
    /// When, in UTC.
    pub now: Timestamp,
    /// Who approved this file at the site.
    pub steward: Option<&'a str>,
    /// Epsilon that the study will have cost the data set after this round.
    pub epsilon_study: f64,
    /// Epsilon of all studies on the data set since the month began, this round counted.
    pub epsilon_month: f64,
}

/// What a site's policies say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteDecision {
    /// Whether it may run.
    pub allow: bool,
    /// Ids of the rules that decided; none when nothing permits it.
    pub rules: Vec<String>,
    /// For people, when it may not: the rules and their reasons.
    pub reason: String,
    /// SHA-256 of the policies.
    pub digest: Digest,
}

/// A site's policies, which fit their schema.
pub struct SitePolicies {
    set: PolicySet,
    schema: Schema,
    digest: Digest,
}

impl SitePolicies {
    /// Reads policies.
    ///
    /// # Errors
    /// [`PolicyError`] when they do not parse, do not fit the schema, or two rules share an `@id`.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let invalid = |what: String| PolicyError { file: SITE_POLICIES, what };
        let (schema, _) = Schema::from_cedarschema_str(SITE_SCHEMA)
            .map_err(|e| PolicyError { file: "site.cedarschema", what: e.to_string() })?;
        let set = PolicySet::from_str(text).map_err(|e| invalid(e.to_string()))?;
        let verdict = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
        if let Some(problem) = verdict.validation_errors().next() {
            return Err(invalid(problem.to_string()));
        }
        if let Some(problem) = verdict.validation_warnings().next() {
            return Err(invalid(problem.to_string()));
        }
        let mut ids = HashSet::new();
        for policy in set.policies() {
            let id = rule(&set, policy.id());
            if ids.replace(id.clone()).is_some() {
                return Err(invalid(format!("two rules have the id `{id}`: give each its own")));
            }
        }
        Ok(Self { set, schema, digest: Digest::of(text.as_bytes()) })
    }

    /// SHA-256 of the policies' text.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether what is asked may be done.
    #[must_use]
    pub fn decide(&self, asked: &SiteRequest<'_>) -> SiteDecision {
        self.ask(asked).unwrap_or_else(|e| {
            self.denied(Vec::new(), format!("the site's policy cannot be asked: {e}"))
        })
    }

    const fn denied(&self, rules: Vec<String>, reason: String) -> SiteDecision {
        SiteDecision { allow: false, rules, reason, digest: self.digest }
    }

    fn ask(
        &self,
        asked: &SiteRequest<'_>,
    ) -> Result<SiteDecision, Box<dyn std::error::Error + Send + Sync>> {
        let (who, study) = (asked.coordinator, asked.study);
        let principal = uid("Coordinator", &who.to_string())?;
        let attributes = [("name", text(who.name())), ("trust_domain", text(who.trust_domain()))];
        let mut attributes: Vec<_> = attributes.into_iter().chain(place_of(who.place())).collect();
        let Declared { storage, compute } = asked.declared;
        for (key, said) in [("storage", storage), ("compute", compute)] {
            let Some(place) = said else { continue };
            attributes.push((key, RestrictedExpression::new_record(named(place_of(place)))?));
        }
        let coordinator = Entity::new(principal.clone(), named(attributes), HashSet::new())?;
        let resource = uid("Study", study.id.as_str())?;
        let attributes = named(facts(asked));
        let entities = [coordinator, Entity::new(resource.clone(), attributes, HashSet::new())?];
        let entities = Entities::from_entities(entities, Some(&self.schema))?;
        let action = uid("Action", "study.run")?;
        let hour = |ahead: u64| {
            let ms = asked.now.plus_ms(ahead * 3_600_000).as_millis();
            RestrictedExpression::new_long(ms.div_euclid(3_600_000).rem_euclid(24))
        };
        let context = [
            ("round", RestrictedExpression::new_long(i64::from(asked.round))),
            ("hour_utc", hour(0)),
            ("hour_uae", hour(4)),
            ("epsilon_study", decimal(asked.epsilon_study)),
            ("epsilon_month", decimal(asked.epsilon_month)),
        ];
        let steward = asked.steward.map(|name| ("steward", text(name)));
        let context = Context::from_pairs(named(context.into_iter().chain(steward)))?;
        let request = Request::new(principal, action, resource, context, Some(&self.schema))?;

        let answer = Authorizer::new().is_authorized(&request, &self.set, &entities);
        let mut decided: Vec<&PolicyId> = answer.diagnostics().reason().collect();
        decided.sort_by_key(|id| rule(&self.set, id));
        let rules: Vec<String> = decided.iter().map(|id| rule(&self.set, id)).collect();
        if answer.diagnostics().errors().next().is_some() {
            return Ok(
                self.denied(rules, "a rule of the site's policy erred, which refuses".into())
            );
        }
        if answer.decision() == CedarDecision::Allow {
            let reason = String::new();
            return Ok(SiteDecision { allow: true, rules, reason, digest: self.digest });
        }
        if rules.is_empty() {
            return Ok(self.denied(rules, "no rule of the site's policy permits this study".into()));
        }
        let why = decided.iter().map(|id| {
            let reason = annotation(&self.set, id, "reason");
            format!(
                "{}: {}",
                rule(&self.set, id),
                reason.as_deref().unwrap_or("it gives no reason")
            )
        });
        let reason = why.collect::<Vec<_>>().join("; ");
        Ok(self.denied(rules, format!("the site's policy refuses by {reason}")))
    }
}

/// What a study's file says, as far as policies may speak of it.
fn facts(asked: &SiteRequest<'_>) -> Vec<(&'static str, RestrictedExpression)> {
    let study = asked.study;
    let columns = study.data.features.iter().map(|f| f.name.as_str());
    let columns = columns.chain([study.data.label.column.as_str()]);
    // What is looked at beside the model's inputs is used no less.
    let beside = study.evaluation.iter().flat_map(Evaluation::columns);
    let columns = columns.chain(beside).map(text);
    let mut facts = vec![
        ("sha256", text(&asked.study_sha256.to_string())),
        ("dataset", text(asked.dataset)),
        ("columns", RestrictedExpression::new_set(columns)),
        ("purpose", text(&study.purpose)),
        ("model", text(model(&study.model))),
        ("mechanism", text(study.privacy.mechanism.as_str())),
        ("rounds", RestrictedExpression::new_long(i64::from(study.rounds.count))),
    ];
    let papers = &study.governance;
    let consent = papers.consent.as_ref();
    let optional = [
        ("legal_basis", papers.legal_basis.as_deref()),
        ("dpia", papers.dpia.as_deref()),
        ("consent", consent.map(|c| c.reference.as_str())),
        ("consent_expires", consent.map(|c| c.expires.as_str())),
        ("retention", papers.retention.map(Retention::as_str)),
    ];
    facts.extend(optional.into_iter().filter_map(|(key, value)| Some((key, text(value?)))));
    facts
}

/// The word for a kind of model, as studies write it.
const fn model(model: &Model) -> &'static str {
    match model {
        Model::Logistic => "logistic",
        Model::Linear => "linear",
        Model::Mlp { .. } => "mlp",
        Model::Cnn { .. } => "cnn",
        Model::Transformer { .. } => "transformer",
    }
}

/// A figure as a decimal, rounded up; what has no bound is more than any that can be written.
fn decimal(value: f64) -> RestrictedExpression {
    let up = if value.is_nan() { DECIMAL_MOST } else { value.clamp(0.0, DECIMAL_MOST) };
    let up = if up < DECIMAL_MOST { (up * 1e4).ceil() / 1e4 } else { up };
    RestrictedExpression::new_decimal(format!("{up:.4}"))
}

fn place_of(place: &Place) -> [(&'static str, RestrictedExpression); 2] {
    [("jurisdiction", text(place.jurisdiction())), ("region", text(place.region()))]
}

fn text(text: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(text.to_owned())
}

fn named<I>(pairs: I) -> HashMap<String, RestrictedExpression>
where
    I: IntoIterator<Item = (&'static str, RestrictedExpression)>,
{
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn rule(set: &PolicySet, id: &PolicyId) -> String {
    annotation(set, id, "id").unwrap_or_else(|| id.to_string())
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, Box<dyn std::error::Error + Send + Sync>> {
    let kind = EntityTypeName::from_str(&format!("FalajSite::{kind}"))?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::dp::{Batches, Poisson};
    use falaj_core::evaluation::{Attribute, Groups, HeldOut, Noise, Watched};
    use falaj_core::study::{
        Algorithm, Bounds, Cohort, Consent, Data, Feature, FeatureKind, Governance, Label,
        LabelValues, Mechanism, Missing, Optimizer, Privacy, Rounds, Sealing, Training, Weights,
    };
    use serde::Deserialize;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        case: Vec<Case>,
    }

    /// What a case changes in a request that is permitted.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        name: String,
        coordinator: Option<String>,
        storage: Option<String>,
        compute: Option<String>,
        approved: Option<bool>,
        mechanism: Option<String>,
        legal_basis: Option<bool>,
        epsilon_study: Option<f64>,
        epsilon_month: Option<f64>,
        allow: bool,
        rules: Vec<String>,
    }

    fn study() -> Study {
        let bounds = Bounds::Declared { min: 0.0, max: 1.0 };
        let kind = FeatureKind::Numeric { bounds, missing: Missing::Refuse };
        Study {
            id: "tumours".parse().expect("a name"),
            purpose: "Tell benign from malignant".into(),
            data: Data {
                dataset: "wdbc".into(),
                features: vec![Feature { name: "radius".into(), kind }],
                label: Label {
                    column: "diagnosis".into(),
                    values: LabelValues::Classes(vec!["b".into(), "m".into()]),
                },
            },
            model: Model::Logistic,
            training: Training {
                algorithm: Algorithm::FedAvg,
                local_steps: 1,
                batches: Batches::Poisson(Poisson::new(0.1).expect("a chance")),
                learning_rate: 0.1,
                optimizer: Optimizer::Sgd { momentum: 0.0 },
                server_learning_rate: 1.0,
            },
            privacy: Privacy {
                mechanism: Mechanism::LocalGaussian { noise_multiplier: 1.0, clip_norm: 1.0 },
                delta: 1e-5,
                epsilon_limit: 8.0,
                weight_epsilon: 0.1,
            },
            sealing: Sealing { bits: 16, range: 4.0, rotated: false },
            cohort: Cohort {
                places: vec!["ae-on/*".into()],
                sites: Vec::new(),
                min_sites: 2,
                weights: Weights::Uniform,
            },
            aggregation: falaj_core::robust::Rule::Mean,
            rounds: Rounds { count: 3, deadline_s: 60, grace_s: 5, retries: 0 },
            evaluation: None,
            gates: Vec::new(),
            patience: None,
            governance: Governance {
                legal_basis: Some("scientific research".into()),
                dpia: None,
                consent: Some(Consent { reference: "FD-1".into(), expires: "2030-12-31".into() }),
                retention: Some(Retention::Years25),
                witnesses: None,
            },
        }
    }

    /// 2026-11-25, 21:30 in UTC: half past one of the next day in the Emirates.
    fn decided(text: &str, change: impl FnOnce(&mut SiteRequest<'_>)) -> SiteDecision {
        let policies = SitePolicies::parse(text).expect("policies");
        let coordinator = "spiffe://t/ae-on/ae-az/coordinator/main".parse().expect("an id");
        let study = study();
        let declared = Declared::default();
        let mut asked = SiteRequest {
            coordinator: &coordinator,
            declared: &declared,
            study: &study,
            dataset: &study.data.dataset,
            study_sha256: Digest::of(b"the file"),
            round: 1,
            now: Timestamp::parse("2026-11-25T21:30:00.000Z").expect("a time"),
            steward: Some("dpo"),
            epsilon_study: 1.0,
            epsilon_month: 2.0,
        };
        change(&mut asked);
        policies.decide(&asked)
    }

    #[test]
    fn the_shipped_site_policy_decides_as_its_cases_say() {
        let file: File = toml::from_str(include_str!("../site_test.toml")).expect("cases");
        assert!(file.case.len() >= 10);
        let place = |text: Option<String>| text.map(|text| text.parse::<Place>().expect("a place"));
        for case in file.case {
            let coordinator = case.coordinator.as_deref().map(|c| c.parse().expect("an id"));
            let mut changed = study();
            if let Some(mechanism) = &case.mechanism {
                assert_eq!(mechanism, "none");
                changed.privacy.mechanism = Mechanism::None;
            }
            if case.legal_basis == Some(false) {
                changed.governance.legal_basis = None;
            }
            let policies = SitePolicies::parse(SITE_SHIPPED).expect("policies");
            let onshore = "spiffe://t/ae-on/ae-az/coordinator/main".parse().expect("an id");
            let declared = Declared { storage: place(case.storage), compute: place(case.compute) };
            let said = policies.decide(&SiteRequest {
                coordinator: coordinator.as_ref().unwrap_or(&onshore),
                declared: &declared,
                study: &changed,
                dataset: &changed.data.dataset,
                study_sha256: Digest::of(b"the file"),
                round: 1,
                now: Timestamp::from_millis(0),
                steward: case.approved.unwrap_or(true).then_some("dpo"),
                epsilon_study: case.epsilon_study.unwrap_or(1.0),
                epsilon_month: case.epsilon_month.unwrap_or(1.0),
            });
            assert_eq!((said.allow, &said.rules), (case.allow, &case.rules), "{}", case.name);
            assert!(case.rules.iter().all(|r| said.allow || said.reason.contains(r)), "{said:?}");
        }
    }

    #[test]
    fn hours_columns_studies_stewards_and_purposes_can_be_named() {
        let allowed = |when: &str| {
            let text = format!("permit (principal, action, resource) when {{ {when} }};");
            decided(&text, |_| {}).allow
        };
        for when in [
            "context.hour_utc == 21 && context.hour_uae == 1",
            "[\"radius\", \"diagnosis\", \"age\"].containsAll(resource.columns)",
            "resource == FalajSite::Study::\"tumours\" && resource.dataset == \"wdbc\"",
            "context has steward && [\"dpo\"].contains(context.steward)",
            "resource.purpose like \"*malignant*\" && resource.rounds <= 3 && context.round == 1",
            "resource has consent && resource.consent == \"FD-1\" && resource has consent_expires && resource.consent_expires == \"2030-12-31\"",
            "context.epsilon_study.lessThan(decimal(\"1.0001\"))",
        ] {
            assert!(allowed(when), "{when}");
        }
        for when in [
            "context.hour_uae == 21",
            "[\"radius\"].containsAll(resource.columns)",
            "context has steward && [\"board\"].contains(context.steward)",
            "resource has dpia",
        ] {
            assert!(!allowed(when), "{when}");
        }
    }

    #[test]
    fn columns_that_only_an_evaluation_looks_at_are_columns_of_the_study() {
        let attribute = |column: &str| Attribute {
            column: column.into(),
            groups: Groups::Values(vec!["1".into()]),
        };
        let coordinator = "spiffe://t/ae-on/ae-az/coordinator/main".parse().expect("an id");
        let mut evaluated = study();
        evaluated.evaluation = Some(Evaluation {
            held_out: HeldOut::Part(0.2),
            every: 1,
            noise: Noise::Laplace { epsilon: 0.2 },
            bins: 10,
            calibration_bins: 10,
            threshold: 0.5,
            attributes: vec![attribute("sex")],
            group_min: 100,
            confidence: 0.95,
            perturbations: Vec::new(),
            drift: vec![Watched { values: attribute("income"), reference: vec![1.0, 0.0] }],
        });
        for (columns, allow) in [
            ("[\"radius\", \"diagnosis\", \"sex\", \"income\"]", true),
            ("[\"radius\", \"diagnosis\", \"sex\"]", false),
            ("[\"radius\", \"diagnosis\", \"income\"]", false),
        ] {
            let text = format!(
                "permit (principal, action, resource) when {{ {columns}.containsAll(resource.columns) }};"
            );
            let asked = SiteRequest {
                coordinator: &coordinator,
                declared: &Declared::default(),
                study: &evaluated,
                dataset: &evaluated.data.dataset,
                study_sha256: Digest::of(b"the file"),
                round: 1,
                now: Timestamp::parse("2026-11-25T21:30:00.000Z").expect("a time"),
                steward: None,
                epsilon_study: 1.0,
                epsilon_month: 2.0,
            };
            let said = SitePolicies::parse(&text).expect("policies").decide(&asked);
            assert_eq!(said.allow, allow, "{columns}");
        }
    }

    /// POL-05: a rule that errs denies, though another one permits.
    #[test]
    fn a_rule_that_errs_refuses() {
        let errs = "permit (principal, action, resource);\n\
                    @id(\"SUM\") forbid (principal, action, resource)\n\
                    when { 9223372036854775807 + context.round > 0 };";
        let said = decided(errs, |_| {});
        assert!(!said.allow && said.reason.contains("erred"), "{said:?}");
    }

    #[test]
    fn no_rule_at_all_refuses() {
        let said = decided("", |_| {});
        assert!(!said.allow && said.reason.contains("no rule"), "{said:?}");
    }

    #[test]
    fn a_figure_is_rounded_up_so_that_a_limit_is_never_passed_unseen() {
        let limit = "permit (principal, action, resource) when { context.epsilon_month.lessThanOrEqual(decimal(\"2.0\")) };";
        assert!(decided(limit, |_| {}).allow);
        assert!(!decided(limit, |asked| asked.epsilon_month = 2.000_001).allow);
        assert!(!decided(limit, |asked| asked.epsilon_month = f64::INFINITY).allow);
        assert!(!decided(limit, |asked| asked.epsilon_month = f64::NAN).allow);
    }

    #[test]
    fn policies_that_cannot_be_meant_are_not_taken() {
        for (text, why) in [
            ("permit (principal, action, resource", "unexpected"),
            (
                "permit (principal, action, resource) when { resource.colums == [\"age\"] };",
                "colums",
            ),
            ("permit (principal, action, resource) when { context.steward == \"x\" };", "steward"),
            (
                "@id(\"A\") permit (principal, action, resource); @id(\"A\") forbid (principal, action, resource);",
                "`A`",
            ),
        ] {
            let Err(e) = SitePolicies::parse(text) else { panic!("it was taken: {text}") };
            assert!(e.to_string().contains(why), "{e}");
        }
    }
}
