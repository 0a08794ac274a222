//! Which rules can speak of a request at all: those of its kind, and of these only those that name nobody else. A decision by
//! them is the decision by all, since a rule whose scope does not match neither permits, forbids nor errs.

use cedar_policy::{
    AuthorizationError, Authorizer, Decision, Entities, EntityTypeName, EntityUid, Policy,
    PolicyId, PolicySet, PolicySetError, PrincipalConstraint, Request, ResourceConstraint, Schema,
};
use std::collections::HashMap;

/// Rules by the kind of request: the type of who asks, and the action.
pub(crate) struct Index {
    groups: HashMap<(EntityTypeName, EntityUid), Group>,
}

/// The rules for one kind of request.
#[derive(Default)]
struct Group {
    /// Those that name nobody.
    general: PolicySet,
    /// Those that name who asks, or else what it is asked of.
    naming: HashMap<EntityUid, PolicySet>,
}

/// What rules say together.
#[derive(Default)]
pub(crate) struct Said {
    permits: Vec<PolicyId>,
    forbids: Vec<PolicyId>,
    errors: Vec<AuthorizationError>,
}

impl Index {
    pub(crate) fn new(set: &PolicySet, schema: &Schema) -> Result<Self, Box<PolicySetError>> {
        let mut groups: HashMap<_, Group> = HashMap::new();
        for policy in set.policies() {
            let mut kinds: Vec<_> = policy
                .get_valid_request_envs(schema)
                .map(|kind| (kind.principal().clone(), kind.action().clone()))
                .collect();
            kinds.sort_by_key(|(who, what)| (who.to_string(), what.to_string()));
            kinds.dedup();
            for kind in kinds {
                let group = groups.entry(kind).or_default();
                let rules = match named(policy) {
                    Some(named) => group.naming.entry(named).or_default(),
                    None => &mut group.general,
                };
                rules.add(policy.clone())?;
            }
        }
        Ok(Self { groups })
    }

    /// What the rules say about a request of `who`, to do `action`, of `what`.
    pub(crate) fn ask(
        &self,
        (who, action, what): (&EntityUid, &EntityUid, &EntityUid),
        request: &Request,
        entities: &Entities,
    ) -> Said {
        let mut said = Said::default();
        let Some(group) = self.groups.get(&(who.type_name().clone(), action.clone())) else {
            return said;
        };
        let naming = [who, what].into_iter().filter_map(|one| group.naming.get(one));
        for rules in [&group.general].into_iter().chain(naming) {
            let answer = Authorizer::new().is_authorized(request, rules, entities);
            let decided = answer.diagnostics().reason().cloned();
            match answer.decision() {
                Decision::Allow => said.permits.extend(decided),
                Decision::Deny => said.forbids.extend(decided),
            }
            said.errors.extend(answer.diagnostics().errors().cloned());
        }
        said
    }
}

impl Said {
    /// Whether it is allowed: something permits it, and nothing forbids it.
    pub(crate) const fn allow(&self) -> bool {
        self.forbids.is_empty() && !self.permits.is_empty()
    }

    /// The rules that decided.
    pub(crate) fn decided(&self) -> &[PolicyId] {
        if self.forbids.is_empty() { &self.permits } else { &self.forbids }
    }

    /// Rules that erred.
    pub(crate) fn errors(&self) -> &[AuthorizationError] {
        &self.errors
    }
}

/// Whom, or else what, a rule names in its scope.
fn named(policy: &Policy) -> Option<EntityUid> {
    match (policy.principal_constraint(), policy.resource_constraint()) {
        (PrincipalConstraint::Eq(named), _) | (_, ResourceConstraint::Eq(named)) => Some(named),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Action, POLICIES, Policies, Resource, SCHEMA, With};
    use falaj_core::id::{Place, SpiffeId, StudyId};

    const MORE: &str = r#"
        @id("P") permit (principal == Falaj::Witness::"spiffe://t/ae-on/ae-az/witness/w", action, resource);
        @id("F1") forbid (principal == Falaj::Site::"spiffe://t/ae-on/ae-az/site/a", action == Falaj::Action::"task.get", resource);
        @id("F2") forbid (principal, action, resource == Falaj::Study::"closed");
        @id("F3") forbid (principal == Falaj::Site::"spiffe://t/ae-on/ae-az/site/b", action, resource == Falaj::Study::"closed");
        @id("F4") forbid (principal in Falaj::Site::"spiffe://t/ae-on/ae-az/site/c", action, resource);
    "#;

    #[test]
    fn the_rules_that_are_asked_decide_as_all_of_them_do() {
        let file = |name: &str, text: String| (name.to_owned(), text.into_bytes());
        let shipped = include_str!("../coordinator.cedar");
        let files = [
            file(POLICIES, format!("{shipped}{MORE}")),
            file(SCHEMA, include_str!("../coordinator.cedarschema").to_owned()),
        ];
        let policies = Policies::parse(&files).expect("policies");
        let here: Place = "ae-on/ae-az".parse().expect("a place");
        let mut decided = std::collections::BTreeSet::new();
        for who in
            ["site/a", "site/b", "site/c", "site/d", "operator/o", "witness/w", "coordinator/k"]
        {
            for place in ["ae-on/ae-az", "gb/gb-lnd"] {
                let who: SpiffeId =
                    format!("spiffe://t/{place}/{who}").parse().expect("an identity");
                for (study, mechanism) in
                    [("closed", "dp_sgd"), ("open", "dp_sgd"), ("open", "none")]
                {
                    let study: StudyId = study.parse().expect("a study");
                    for action in Action::ALL {
                        for resource in [Resource::Service, Resource::Study(&study, mechanism)] {
                            let Ok((request, entities, _)) = policies.request(
                                &here,
                                (&who).into(),
                                action,
                                &resource,
                                &With::of(&who),
                            ) else {
                                continue;
                            };
                            let all =
                                Authorizer::new().is_authorized(&request, &policies.set, &entities);
                            let mut wanted: Vec<String> =
                                all.diagnostics().reason().map(|id| policies.name(id)).collect();
                            wanted.sort();
                            let said = policies.decide(&here, &who, action, &resource);
                            assert_eq!(said.allow, all.decision() == Decision::Allow);
                            assert_eq!(said.policies, wanted, "{who} {action:?} {resource:?}");
                            decided.extend(wanted);
                        }
                    }
                }
            }
        }
        for rule in ["P", "F1", "F2", "F3", "F4", "RES-001", "PRV-001", "ACC-101"] {
            assert!(decided.contains(rule), "{rule} was never asked");
        }
    }
}
