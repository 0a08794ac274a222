//! What a set says about one request, for whoever asks why.

use crate::{Action, Decision, Party, Policies, Resource, With, annotation};
use cedar_policy::{Effect, PolicyId};
use falaj_core::id::Place;

/// A rule that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its `@id`.
    pub id: String,
    /// Whether it forbids.
    pub forbids: bool,
    /// The law that it serves.
    pub law: Option<String>,
    /// What whoever is refused reads.
    pub reason: Option<String>,
    /// Its text.
    pub text: String,
}

impl Policies {
    /// What is decided, and by which rules: those that forbid, or else those that permit.
    #[must_use]
    pub fn explain<'a>(
        &self,
        here: &Place,
        who: impl Into<Party<'a>>,
        action: Action,
        resource: &Resource<'_>,
        with: &With<'_>,
    ) -> (Decision, Vec<Rule>) {
        let decision = self.decide_with(here, who, action, resource, with);
        let mut rules: Vec<Rule> = self.rules();
        rules.retain(|rule| decision.policies.contains(&rule.id));
        (decision, rules)
    }

    /// Every rule, by its id.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let rule = |id: &PolicyId, forbids: bool, text: String| Rule {
            id: self.name(id),
            forbids,
            law: annotation(&self.set, id, "law"),
            reason: annotation(&self.set, id, "reason"),
            text,
        };
        let all = self.set.policies();
        let mut rules: Vec<Rule> =
            all.map(|p| rule(p.id(), p.effect() == Effect::Forbid, p.to_string())).collect();
        rules.sort_by(|a, b| a.id.cmp(&b.id));
        rules
    }
}
