//! Decisions made again: what the log says that the policies decided has to be what they decide.

use crate::{acts, in_force::InForce};
use falaj_core::{
    audit::{Entry, Kind},
    canon::Node,
    evidence::Evidence,
    id::{Digest, Place, SpiffeId, StudyId},
    time::Timestamp,
};
use falaj_policies::{Action, POLICIES, Party, Policies, Resource, SCHEMA, With};
use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
};

/// Decisions that are remembered at once; a party asks for few things, and often.
const REMEMBERED_MAX: usize = 4_096;
/// Policy sets that are kept in parsed form at once.
const SETS_MAX: usize = 16;
/// A rule that fits those schemas alone in which requests to connect say what is known of the connection.
const OF_EVIDENCE: &str =
    "permit (principal is Falaj::Site, action == Falaj::Action::\"connect\", resource)
when { context has evidence && context.evidence has probed && context.evidence.probed };";

/// What else of the log bears on a decision.
pub(crate) struct Around<'a> {
    /// Policy files by the digest of their set.
    pub(crate) policies: &'a BTreeMap<Digest, Vec<(String, Vec<u8>)>>,
    /// Whose key signed a certificate, by its digest.
    pub(crate) issuers: &'a BTreeMap<Digest, Digest>,
    /// When policy may have been asked already, where that is not at the time of the entry.
    pub(crate) asked: &'a dyn Fn() -> Option<Timestamp>,
    /// Whether the log goes on from another shard, which tells of studies too.
    pub(crate) goes_on: bool,
}

/// A set in parsed form.
struct Set {
    policies: Policies,
    /// Whether requests to connect say what is known of the connection.
    evidenced: bool,
}

/// Makes decisions again.
#[derive(Default)]
pub(crate) struct Decisions {
    /// Where the coordinator is.
    here: Option<Place>,
    in_force: InForce,
    /// The mechanism of each study.
    mechanisms: BTreeMap<StudyId, String>,
    sets: BTreeMap<Digest, Set>,
    /// What was asked and decided where the coordinator is, where it was right.
    right: HashSet<String>,
    /// The one that is looked at.
    key: String,
    /// How many were made again.
    pub(crate) replayed: u64,
}

impl Decisions {
    /// A study was submitted, in which updates are sealed so.
    pub(crate) fn submitted(&mut self, study: StudyId, mechanism: String) {
        self.mechanisms.insert(study, mechanism);
    }

    /// Holds an entry's decision against what its kind tells of, and against the policies that were in force. It is not made
    /// again where no policy made it, for people who are not disclosed, and about studies of an earlier shard.
    pub(crate) fn take(
        &mut self,
        entry: &Entry,
        who: Option<&SpiffeId>,
        around: &Around<'_>,
    ) -> Result<(), String> {
        let body = entry.body();
        if entry.kind == Kind::CoordinatorStarted {
            let id: SpiffeId = body.parsed("coordinator").map_err(|e| e.to_string())?;
            self.here = Some(id.place().clone());
            self.right.clear();
        }
        self.in_force.take(entry)?;
        let mut said = Said::default();
        // One walk over the members is quicker than one for each of them.
        for (name, value) in body.members() {
            match name {
                "action" => said.action = value.as_text(),
                "decision" => said.decision = value.as_text(),
                "mechanism" => said.mechanism = value.as_text(),
                "policy_set_sha256" => said.set = value.as_text(),
                "study" => said.study = value.as_text(),
                _ => {}
            }
        }
        acts::check(entry.kind, said.action, said.decision, said.set)?;
        // A version that a study makes of itself nobody asked for.
        let asked_for = entry.kind == Kind::VersionMade && entry.body().member("actor").is_some();
        if asked_for && said.action != Some(Action::VersionMake.as_str()) {
            return Err(format!(
                "it is {}, and does not say that anybody might ask for it",
                entry.kind
            ));
        }
        let (Some(action), Some(set)) = (said.action, said.set) else { return Ok(()) };
        let set: Digest = set.parse().map_err(|_| format!("`{set}` is no policy set"))?;
        let allowed = said.decision == Some("allow");
        self.in_force.check(&set, allowed, entry, around.asked)?;
        let evidence = entry.evidence().map_err(|e| e.to_string())?;
        self.check_evidence(entry, (action, &set), evidence.as_ref(), around)?;
        match who {
            Some(who) => self.again(entry, (who, action, set), evidence.as_ref(), &said, around),
            None if entry.actor_person().is_none() && acts::is_let(entry.kind) => {
                Err(format!("it is {}, and names nobody who asked for it", entry.kind))
            }
            None => Ok(()),
        }
    }

    /// What has to be known for a decision is told, and who vouches for a certificate is as the certificate has it.
    fn check_evidence(
        &mut self,
        entry: &Entry,
        (action, set): (&str, &Digest),
        evidence: Option<&Evidence>,
        around: &Around<'_>,
    ) -> Result<(), String> {
        let connects = action == Action::Connect.as_str();
        let uses = action == Action::EndpointUse.as_str();
        let Some(evidence) = evidence else {
            if uses || (connects && self.set(set, around)?.evidenced) {
                return Err(format!("it says nothing of what was known when {action} was decided"));
            }
            return Ok(());
        };
        if uses && entry.destination().is_none() {
            return Err("it does not say in which place the endpoint is declared".into());
        }
        let Some(cert) = entry.actor_cert().filter(|_| connects) else { return Ok(()) };
        match around.issuers.get(&cert) {
            Some(issuer) if evidence.issuer != Some(*issuer) => Err(format!(
                "it names another issuer than {issuer}, whose key signed the certificate {cert}"
            )),
            _ => Ok(()),
        }
    }

    /// Makes a decision again.
    fn again(
        &mut self,
        entry: &Entry,
        (who, action, set): (&SpiffeId, &str, Digest),
        evidence: Option<&Evidence>,
        said: &Said<'_>,
        around: &Around<'_>,
    ) -> Result<(), String> {
        let body = entry.body();
        let of_service = || action.parse::<Action>().is_ok_and(Action::is_of_service);
        let study = said.study.filter(|_| !of_service());
        let submits = action == Action::StudySubmit.as_str();
        let mechanism = match study {
            Some(name) => {
                // What was submitted holds. What was to be submitted, and what an earlier shard tells of, only the entry knows.
                let told = said.mechanism.filter(|_| submits || around.goes_on);
                let known = || self.mechanism(name);
                let found = if submits { told.or_else(known) } else { known().or(told) };
                match found {
                    Some(mechanism) => Some(mechanism.to_owned()),
                    None if around.goes_on => return Ok(()),
                    None => return Err(format!("no study `{name}` was submitted before it")),
                }
            }
            None => None,
        };
        let somewhere = action.parse::<Action>().is_ok_and(Action::is_somewhere);
        let destination = entry.destination().filter(|_| somewhere);
        let endpoint = body.find_text("endpoint").unwrap_or_default();
        let approvals = entry.approvals().map_err(|e| e.to_string())?.len();
        // Where a version goes is part of what is asked, and of no other request.
        let promotes = action == Action::VersionPromote.as_str();
        let stage = body.find_text("stage").filter(|_| promotes).unwrap_or_default();
        let roles = entry.actor_roles().map_err(|e| e.to_string())?.unwrap_or_default();
        let decision = body.text("decision").map_err(|e| e.to_string())?;
        let ids = body.list("policy_ids").map_err(|e| e.to_string())?;
        self.key.clear();
        let texts = [Some(decision), Some(action), study, mechanism.as_deref()];
        let ids_of = ids.iter().map(|id| id.as_text());
        // Writing to a string cannot fail. Lengths keep apart what was written one after the other.
        let _ = write!(self.key, "{set} {who} {roles}");
        if let Some(destination) = &destination {
            let _ = write!(self.key, " to {destination}");
        }
        if let Some(evidence) = evidence {
            let _ = write!(self.key, " {}:{endpoint} by {evidence:?}", endpoint.len());
        }
        if approvals > 0 {
            let _ = write!(self.key, " approved by {approvals}");
        }
        if promotes {
            let _ = write!(self.key, " as {}:{stage}", stage.len());
        }
        for text in texts.into_iter().chain(ids_of) {
            let text = text.unwrap_or_default();
            let _ = write!(self.key, " {}:{text}", text.len());
        }
        if !self.right.contains(&self.key) {
            let who = Party { id: who, roles };
            let asked = (set, who, action, study.zip(mechanism.as_deref()));
            let destination = destination.as_ref().unwrap_or(who.id.place());
            let with = With { destination, evidence, endpoint, approvals, stage };
            let (allow, by) = self.decide(asked, &with, around)?;
            let same = |(id, by): (&Node<'_>, &String)| id.as_text() == Some(by);
            let allowed = decision == "allow";
            if allowed != allow || ids.len() != by.len() || !ids.iter().zip(&by).all(same) {
                let word = if allow { "allow" } else { "deny" };
                return Err(format!(
                    "it says that the policies decided `{decision}`, and they decide `{word}` by [{}] when {} with roles {roles} asks for {action}",
                    by.join(", "),
                    who.id
                ));
            }
            if self.right.len() >= REMEMBERED_MAX {
                self.right.clear();
            }
            self.right.insert(self.key.clone());
        }
        self.replayed += 1;
        Ok(())
    }

    /// Whether somebody may do something with a study, or with the coordinator's log, towards a place, by the policies of a set.
    /// Where the bundle knows no more of the study they may.
    pub(crate) fn allows(
        &mut self,
        (set, who): (Digest, Party<'_>),
        action: Action,
        study: Option<&StudyId>,
        destination: &Place,
        around: &Around<'_>,
    ) -> Result<bool, String> {
        let mechanism = study.and_then(|study| self.mechanisms.get(study)).cloned();
        if study.is_some() && mechanism.is_none() {
            return Ok(true);
        }
        let of = study.map(StudyId::as_str).zip(mechanism.as_deref());
        let with = With { destination, ..With::of(who.id) };
        let (allow, _) = self.decide((set, who, action.as_str(), of), &with, around)?;
        Ok(allow)
    }

    fn mechanism(&self, study: &str) -> Option<&str> {
        let id: StudyId = study.parse().ok()?;
        self.mechanisms.get(&id).map(String::as_str)
    }

    /// A set, whose files are those that its digest names.
    fn set(&mut self, set: &Digest, around: &Around<'_>) -> Result<&Set, String> {
        if !self.sets.contains_key(set) {
            let files = around.policies.get(set);
            let files = files.ok_or_else(|| format!("its policies {set} are not in the bundle"))?;
            let policies = Policies::parse(files);
            let policies = policies.map_err(|e| format!("its policies cannot be read: {e}"))?;
            if policies.digest() != *set {
                return Err(format!("its policies {set} are others in the bundle"));
            }
            let schema = files.iter().filter(|(name, _)| name == SCHEMA).cloned();
            let rule = (POLICIES.to_owned(), OF_EVIDENCE.as_bytes().to_vec());
            let evidenced = Policies::parse(&schema.chain([rule]).collect::<Vec<_>>()).is_ok();
            if self.sets.len() >= SETS_MAX {
                self.sets.clear();
            }
            self.sets.insert(*set, Set { policies, evidenced });
        }
        Ok(&self.sets[set])
    }

    fn decide(
        &mut self,
        (set, who, action, study): (Digest, Party<'_>, &str, Option<(&str, &str)>),
        with: &With<'_>,
        around: &Around<'_>,
    ) -> Result<(bool, Vec<String>), String> {
        let here = self.here.clone().ok_or("no coordinator had started before it")?;
        let action: Action = action.parse().map_err(|e| format!("{e}"))?;
        let id: StudyId;
        let resource = match study {
            Some((name, mechanism)) => {
                id = name.parse().map_err(|_| format!("`{name}` is no study"))?;
                Resource::Study(&id, mechanism)
            }
            None => Resource::Service,
        };
        let said =
            self.set(&set, around)?.policies.decide_with(&here, who, action, &resource, with);
        Ok((said.allow, said.policies))
    }
}

/// What an entry says of its decision.
#[derive(Default)]
struct Said<'a> {
    action: Option<&'a str>,
    decision: Option<&'a str>,
    mechanism: Option<&'a str>,
    set: Option<&'a str>,
    study: Option<&'a str>,
}
