//! What a set must decide, case by case: the file beside the policies.

use crate::{Action, Party, Policies, Resource, With};
use falaj_core::{
    evidence::{Evidence, Skew},
    id::{Digest, Place, Role, SpiffeId, StudyId},
    roles::{OperatorRole, Roles},
    tpm::{AttestationKey, Declared, Fault, Quoted, Tpm},
};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt};

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
    roles: Roles,
    action: Action,
    study: StudyId,
    destination: Place,
    evidence: Evidence,
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
    /// An operator's roles; every one when absent, as by default for whoever's certificate names none.
    roles: Option<Vec<String>>,
    action: String,
    /// Asked of a study that is so protected; of the coordinator itself when absent.
    mechanism: Option<String>,
    /// The study's name, where rules name studies.
    study: Option<String>,
    /// Where something is taken to: `ae-on/ae-du`; where the principal is when absent.
    destination: Option<String>,
    /// What is known of the connection; nothing when absent.
    #[serde(default)]
    evidence: Gathered,
    /// What an endpoint is to the coordinator.
    #[serde(default)]
    endpoint: String,
    /// How many other people have approved it.
    #[serde(default)]
    approvals: usize,
    /// Where a version is to go on to.
    #[serde(default)]
    stage: String,
    allow: bool,
    /// The rules that decide; none when nothing permits it.
    policies: Vec<String>,
}

/// What is known of a connection, as policies name it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Gathered {
    issuer: Option<String>,
    address_known: bool,
    address_in_place: bool,
    probed: bool,
    rtt_us: Option<u64>,
    skew_ms: Option<u64>,
    skew_uncertainty_ms: u64,
    storage: Option<String>,
    compute: Option<String>,
    tpm: Option<Quote>,
}

/// What came of a TPM that is declared.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Quote {
    /// No good quote.
    Absent,
    /// One that says what is declared.
    AsDeclared,
    /// One that says something else.
    Otherwise,
}

/// The public part of a key on P-256: which key it is, no case asks.
const SOME_KEY: [u8; 24] =
    [0, 0x23, 0, 0xb, 0, 5, 0, 0x72, 0, 0, 0, 0x10, 0, 0x18, 0, 0xb, 0, 3, 0, 0x10, 0, 0, 0, 0];

impl Gathered {
    fn evidence(&self) -> Result<Evidence, String> {
        let place = |text: &Option<String>| -> Result<Option<Place>, String> {
            text.as_ref().map(|text| text.parse().map_err(|e| format!("{e}"))).transpose()
        };
        let issuer = self.issuer.as_ref().map(|text| text.parse::<Digest>());
        let uncertainty_ms = self.skew_uncertainty_ms;
        let key = AttestationKey::parse(&SOME_KEY).map_err(|e| e.to_string())?;
        let tpm = |quote| {
            let good = |as_declared| Ok(Quoted { as_declared, resets: 1, restarts: 0 });
            let found = match quote {
                Quote::Absent => Err(Fault::Absent),
                Quote::AsDeclared => good(true),
                Quote::Otherwise => good(false),
            };
            Tpm { declared: Declared { key, pcrs: BTreeMap::new() }, quote: None, found }
        };
        Ok(Evidence {
            issuer: issuer.transpose().map_err(|e| e.to_string())?,
            address_known: self.address_known,
            address_in_place: self.address_in_place,
            probed: self.probed,
            rtt_us: self.rtt_us,
            skew: self.skew_ms.map(|ms| Skew { ms, uncertainty_ms }),
            storage: place(&self.storage)?,
            compute: place(&self.compute)?,
            tpm: self.tpm.map(tpm),
        })
    }
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
            let roles = match &case.roles {
                Some(_) if who.role() != Role::Operator => {
                    return Err(wrong(&"only an operator has roles"));
                }
                Some(roles) => {
                    let read = roles.iter().map(|role| role.parse::<OperatorRole>());
                    read.collect::<Result<_, _>>().map_err(|e| wrong(&e))?
                }
                None => Roles::ALL,
            };
            let action = case.action.parse().map_err(|e| wrong(&e))?;
            let study = case.study.as_deref().unwrap_or("some-study").parse();
            let study = study.map_err(|e| wrong(&e))?;
            let evidence = case.evidence.evidence().map_err(|e| wrong(&e))?;
            Ok(Asked { case, who, roles, action, study, destination, evidence })
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
        for Asked { case, who, roles, action, study, destination, evidence } in &self.cases {
            let mechanism = case.mechanism.as_deref();
            let resource = mechanism.map_or(Resource::Service, |m| Resource::Study(study, m));
            let who = Party { id: who, roles: *roles };
            let (evidence, endpoint) = (Some(evidence), case.endpoint.as_str());
            let (approvals, stage) = (case.approvals, case.stage.as_str());
            let with = With { destination, evidence, endpoint, approvals, stage };
            let said = policies.decide_with(&self.here, who, *action, &resource, &with);
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
