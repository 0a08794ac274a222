//! Decisions made again: what the log says that the policies decided has to be what they decide.

use falaj_core::{
    audit::{Entry, Kind},
    canon::Node,
    id::{Digest, Place, SpiffeId, StudyId},
};
use falaj_policies::{Action, Party, Policies, Resource, With};
use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
};

/// Decisions that are remembered at once; a party asks for few things, and often.
const REMEMBERED_MAX: usize = 4_096;
/// Policy sets that are kept in parsed form at once.
const SETS_MAX: usize = 16;

/// Makes decisions again.
#[derive(Default)]
pub(crate) struct Decisions {
    /// Where the coordinator is.
    here: Option<Place>,
    /// The mechanism of each study.
    mechanisms: BTreeMap<StudyId, String>,
    sets: BTreeMap<Digest, Policies>,
    /// What was asked and decided, where it was right.
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

    /// Holds an entry's decision against the policies, whose files `files` finds. Decisions that no policy made, and those
    /// about studies or by people of which the bundle knows no more, are left out.
    pub(crate) fn take<'a>(
        &mut self,
        entry: &Entry,
        who: Option<&SpiffeId>,
        files: impl FnOnce(&Digest) -> Option<&'a [(String, Vec<u8>)]>,
    ) -> Result<(), String> {
        let body = entry.body();
        if entry.kind == Kind::CoordinatorStarted {
            let id: SpiffeId = body.parsed("coordinator").map_err(|e| e.to_string())?;
            self.here = Some(id.place().clone());
        }
        let (mut action, mut study, mut mechanism, mut set) = (None, None, None, None);
        // One walk over the members is quicker than one for each of them.
        for (name, value) in body.members() {
            match name {
                "action" => action = value.as_text(),
                "mechanism" => mechanism = value.as_text(),
                "policy_set_sha256" => set = value.as_text(),
                "study" => study = value.as_text(),
                _ => {}
            }
        }
        let set: Option<Digest> = set.and_then(|set| set.parse().ok());
        let (Some(set), Some(action), Some(who)) = (set, action, who) else { return Ok(()) };
        let of_service = || action.parse::<Action>().is_ok_and(Action::is_of_service);
        let study = study.filter(|_| !of_service());
        let mechanism = match study {
            Some(name) => match mechanism.or_else(|| self.mechanism(name)) {
                Some(mechanism) => Some(mechanism.to_owned()),
                None => return Ok(()),
            },
            None => None,
        };
        let somewhere = action.parse::<Action>().is_ok_and(Action::is_somewhere);
        let destination = entry.destination().filter(|_| somewhere);
        let endpoint = body.find_text("endpoint").unwrap_or_default();
        let evidence = entry.evidence().map_err(|e| e.to_string())?;
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
        if let Some(evidence) = &evidence {
            let _ = write!(self.key, " {}:{endpoint} by {evidence:?}", endpoint.len());
        }
        for text in texts.into_iter().chain(ids_of) {
            let text = text.unwrap_or_default();
            let _ = write!(self.key, " {}:{text}", text.len());
        }
        if !self.right.contains(&self.key) {
            let who = Party { id: who, roles };
            let asked = (set, who, action, study.zip(mechanism.as_deref()));
            let destination = destination.as_ref().unwrap_or(who.id.place());
            let with = With { destination, evidence: evidence.as_ref(), endpoint };
            let (allow, by) = self.decide(asked, &with, files)?;
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

    fn mechanism(&self, study: &str) -> Option<&str> {
        let id: StudyId = study.parse().ok()?;
        self.mechanisms.get(&id).map(String::as_str)
    }

    fn decide<'a>(
        &mut self,
        (set, who, action, study): (Digest, Party<'_>, &str, Option<(&str, &str)>),
        with: &With<'_>,
        files: impl FnOnce(&Digest) -> Option<&'a [(String, Vec<u8>)]>,
    ) -> Result<(bool, Vec<String>), String> {
        if !self.sets.contains_key(&set) {
            let missing = || format!("its policies {set} are not in the bundle");
            let parsed = Policies::parse(files(&set).ok_or_else(missing)?);
            let parsed = parsed.map_err(|e| format!("its policies cannot be read: {e}"))?;
            if self.sets.len() >= SETS_MAX {
                self.sets.clear();
            }
            self.sets.insert(set, parsed);
        }
        let here = self.here.as_ref().ok_or("no coordinator had started before it")?;
        let action: Action = action.parse().map_err(|e| format!("{e}"))?;
        let id: StudyId;
        let resource = match study {
            Some((name, mechanism)) => {
                id = name.parse().map_err(|_| format!("`{name}` is no study"))?;
                Resource::Study(&id, mechanism)
            }
            None => Resource::Service,
        };
        let said = self.sets[&set].decide_with(here, who, action, &resource, with);
        Ok((said.allow, said.policies))
    }
}
