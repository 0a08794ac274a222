//! What a set must decide, case by case: the file beside the policies.

use crate::{Action, Policies, Resource};
use falaj_core::id::{Place, SpiffeId, StudyId};
use serde::Deserialize;
use std::fmt;

/// The file with the cases of the set beside it.
pub const CASES: &str = "coordinator_test.toml";

/// What a coordinator is to decide.
#[derive(Debug)]
pub struct Cases {
    here: Place,
    cases: Vec<Asked>,
}

/// A case, read.
#[derive(Debug)]
struct Asked {
    case: Case,
    who: SpiffeId,
    action: Action,
    study: StudyId,
    destination: Place,
}

/// Cases, as they stand in their file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Where the coordinator is that is asked: `ae-on/ae-az`.
    coordinator: String,
    #[serde(rename = "case")]
    cases: Vec<Case>,
}

/// One request, and what is to be decided.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    principal: String,
    action: String,
    /// Asked of a study that is so protected; of the coordinator itself when absent.
    mechanism: Option<String>,
    /// The study's name, where rules name studies.
    study: Option<String>,
    /// Where something is taken to: `ae-on/ae-du`; where the principal is when absent.
    destination: Option<String>,
    allow: bool,
    /// The rules that decide; none when nothing permits it.
    policies: Vec<String>,
}

/// Why cases cannot be tried.
#[derive(Debug, thiserror::Error)]
#[error("{CASES}: {0}")]
pub struct CasesError(String);

/// A case that is decided otherwise.
#[derive(Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The case's name.
    pub name: String,
    /// What it says.
    pub wanted: (bool, Vec<String>),
    /// What the policies say.
    pub found: (bool, Vec<String>),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |(allow, by): &(bool, Vec<String>)| {
            let word = if *allow { "allowed" } else { "denied" };
            let by = if by.is_empty() { "no rule".to_owned() } else { by.join(", ") };
            format!("{word} by {by}")
        };
        let (found, wanted) = (side(&self.found), side(&self.wanted));
        write!(f, "{}: {found}, and should be {wanted}", self.name)
    }
}

impl Cases {
    /// Reads the file.
    ///
    /// # Errors
    /// [`CasesError`], also when there is no case in it or an action is none.
    pub fn parse(text: &str) -> Result<Self, CasesError> {
        let file: File = toml::from_str(text).map_err(|e| CasesError(e.to_string()))?;
        let here = file.coordinator.parse();
        let here = here.map_err(|e| CasesError(format!("{}: {e}", file.coordinator)))?;
        if file.cases.is_empty() {
            return Err(CasesError("there is no case in it".to_owned()));
        }
        let parsed = |case: Case| {
            let wrong = |e: &dyn fmt::Display| CasesError(format!("{}: {e}", case.name));
            let who: SpiffeId = case.principal.parse().map_err(|e| wrong(&e))?;
            let destination = match &case.destination {
                Some(place) => place.parse().map_err(|e| wrong(&e))?,
                None => who.place().clone(),
            };
            let action = case.action.parse().map_err(|e| wrong(&e))?;
            let study = case.study.as_deref().unwrap_or("some-study").parse();
            let study = study.map_err(|e| wrong(&e))?;
            Ok(Asked { case, who, action, study, destination })
        };
        let cases = file.cases.into_iter().map(parsed).collect::<Result<_, _>>()?;
        Ok(Self { here, cases })
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.cases.len()
    }

    /// Every case that these policies decide otherwise.
    #[must_use]
    pub fn mismatches(&self, policies: &Policies) -> Vec<Mismatch> {
        let mut found = Vec::new();
        for Asked { case, who, action, study, destination } in &self.cases {
            let mechanism = case.mechanism.as_deref();
            let resource = mechanism.map_or(Resource::Service, |m| Resource::Study(study, m));
            let said = policies.decide_to(&self.here, who, *action, &resource, destination);
            let wanted = (case.allow, case.policies.clone());
            let said = (said.allow, said.policies);
            if said != wanted {
                found.push(Mismatch { name: case.name.clone(), wanted, found: said });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::shipped;

    #[test]
    fn a_case_that_is_decided_otherwise_is_named_with_both_sides() {
        let text = include_str!("../coordinator_test.toml");
        let turned = text.replacen("allow = true", "allow = false", 1);
        let wrong = Cases::parse(&turned).expect("cases").mismatches(&shipped());
        let shown: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        let one = "a site onshore connects: allowed by ACC-100, and should be denied by ACC-100";
        assert_eq!(shown, [one]);
    }

    #[test]
    fn cases_that_say_nothing_are_refused() {
        let head = "coordinator = \"ae-on/ae-az\"\n";
        let unknown = "[[case]]\nname = \"n\"\nprincipal = \"spiffe://t/a/b/site/s\"\naction = \"fly\"\nallow = true\npolicies = []\n";
        for (text, why) in [
            ("", "coordinator"),
            (&format!("{head}case = []"), "no case"),
            (&format!("{head}{unknown}"), "`fly`"),
            (&format!("{head}{unknown}wish = 1\n"), "wish"),
        ] {
            let error = Cases::parse(text).expect_err("refused").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
