//! Approvals by a second person, as the log goes on: each that a decision counts was given before it, by somebody else, for just
//! this, and was still good then.
//!
//! That it counts all of them is not looked for: whom issuers' lists or the deny file name is not in a log.

use crate::{decisions::Decisions, revoked::Revoked};
use falaj_core::{
    audit::{
        Entry, Kind,
        approvals::{Approval, Approvals, Approved, IN_FORCE_MAX},
        person::Person,
    },
    id::{Digest, SpiffeId},
    roles::Roles,
    time::Timestamp,
};
use falaj_policies::{Action, Party};
use std::collections::{BTreeMap, BTreeSet};

/// What was decided has its entry so long after it, at most, in milliseconds.
const UNDER_WAY_MS: u64 = 5_000;

/// Approvals, and how those stand who gave them.
#[derive(Default)]
pub(crate) struct Approving {
    standing: Approvals,
    givers: BTreeMap<Person, Giver>,
}

/// Somebody who gave an approval.
struct Giver {
    /// Who they are, unless they were erased since.
    id: Option<SpiffeId>,
    /// The roles with which they did what they did last.
    roles: Roles,
    /// Those with which they did what they did before, and until when that may still have been so.
    before: Option<(Roles, Timestamp)>,
    /// When they were erased.
    erased: Option<Timestamp>,
}

impl Approving {
    /// The next entry of the log. `files` finds the policies of a set.
    pub(crate) fn take<'a>(
        &mut self,
        entry: &Entry,
        revoked: &Revoked,
        decisions: &mut Decisions,
        files: impl Fn(&Digest) -> Option<&'a [(String, Vec<u8>)]> + Copy,
    ) -> Result<(), String> {
        if entry.kind != Kind::ApprovalGiven && self.givers.is_empty() {
            return match entry.approvals().map_err(|e| e.to_string())?.first() {
                Some(id) => Err(unknown(id)),
                None => Ok(()),
            };
        }
        let at = Timestamp::parse(&entry.ts).ok_or_else(|| format!("`{}` is no time", entry.ts))?;
        self.seen(entry, at)?;
        self.standing.take(entry).map_err(|e| e.to_string())?;
        if entry.kind == Kind::ApprovalGiven {
            self.standing.forget(Timestamp::from_millis(
                at.as_millis().saturating_sub(UNDER_WAY_MS.cast_signed()),
            ));
            let people: BTreeSet<Person> = self.standing.all().map(|a| a.giver).collect();
            self.givers.retain(|person, _| people.contains(person));
            // What was over is kept a little longer than the coordinator keeps it.
            if self.standing.count() > 2 * IN_FORCE_MAX {
                return Err("more approvals are in force than a coordinator takes".to_owned());
            }
        }
        self.check(entry, at, revoked, decisions, files)
    }

    /// What an entry shows of people who have approved something.
    fn seen(&mut self, entry: &Entry, at: Timestamp) -> Result<(), String> {
        if entry.kind == Kind::ErasurePerformed
            && let Some(giver) = entry.person().and_then(|person| self.givers.get_mut(&person))
        {
            giver.erased = Some(at);
        }
        let Some(person) = entry.actor_person() else { return Ok(()) };
        if entry.kind != Kind::ApprovalGiven && !self.givers.contains_key(&person) {
            return Ok(());
        }
        let roles = entry.actor_roles().map_err(|e| e.to_string())?.unwrap_or(Roles::NONE);
        let id = entry.actor_id().cloned();
        let giver = self.givers.entry(person).or_insert_with(|| Giver {
            id: id.clone(),
            roles,
            before: None,
            erased: None,
        });
        if giver.roles != roles {
            giver.before = Some((giver.roles, at.plus_ms(UNDER_WAY_MS)));
            giver.roles = roles;
        }
        giver.id = id.or(giver.id.take());
        Ok(())
    }

    /// Whether what a decision counts was good.
    fn check<'a>(
        &mut self,
        entry: &Entry,
        at: Timestamp,
        revoked: &Revoked,
        decisions: &mut Decisions,
        files: impl Fn(&Digest) -> Option<&'a [(String, Vec<u8>)]> + Copy,
    ) -> Result<(), String> {
        let named = entry.approvals().map_err(|e| e.to_string())?;
        if named.is_empty() {
            return Ok(());
        }
        let of = asked(entry).ok_or("it counts approvals, and nobody approves such a thing")?;
        let set: Digest = entry.body().parsed("policy_set_sha256").map_err(|e| e.to_string())?;
        let mut once = BTreeSet::new();
        for id in named {
            if !once.insert(id) {
                return Err(format!("it counts the approval {id} twice"));
            }
            let found = self.standing.of(&of).find(|approval| approval.id == id);
            let approval = found.ok_or_else(|| match self.standing.all().find(|a| a.id == id) {
                Some(_) => format!("it counts the approval {id}, which is of something else"),
                None => unknown(id),
            })?;
            self.good(approval, &of, at, revoked)?;
            let giver = self.givers.get(&approval.giver).ok_or_else(|| unknown(id))?;
            // Of whoever was erased since nobody can say what they might do.
            if let Some(who) = &giver.id {
                let before = giver.before.filter(|(_, until)| at <= *until);
                let mut may = false;
                for roles in [Some(giver.roles), before.map(|(roles, _)| roles)] {
                    let Some(roles) = roles.filter(|_| !may) else { continue };
                    let who = Party { id: who, roles };
                    let of_study = of.study.as_ref();
                    may = decisions.allows(
                        (set, who),
                        Action::ApprovalGive,
                        of_study,
                        &of.place,
                        files,
                    )?;
                }
                if !may {
                    return Err(format!(
                        "it counts the approval {id}, whose giver may not give it by the policies in force"
                    ));
                }
            }
        }
        Ok(())
    }

    fn good(
        &self,
        approval: &Approval,
        of: &Approved,
        at: Timestamp,
        revoked: &Revoked,
    ) -> Result<(), String> {
        let id = &approval.id;
        if approval.giver == of.person {
            return Err(format!("it counts the approval {id}, which is whoever's who asks"));
        }
        if at > approval.until.plus_ms(UNDER_WAY_MS) {
            return Err(format!(
                "it counts the approval {id}, which was good until {}",
                approval.until
            ));
        }
        if revoked.is_out(&approval.giver.to_string(), at) {
            return Err(format!("it counts the approval {id}, whose giver was revoked before"));
        }
        let erased = self.givers.get(&approval.giver).and_then(|giver| giver.erased);
        if erased.is_some_and(|erased| at > erased.plus_ms(UNDER_WAY_MS)) {
            return Err(format!("it counts the approval {id}, whose giver was erased before"));
        }
        Ok(())
    }
}

fn unknown(id: &str) -> String {
    format!("it counts the approval {id}, which nobody gave before, or somebody took back")
}

/// What an entry's decision is about, as one would approve it.
fn asked(entry: &Entry) -> Option<Approved> {
    let body = entry.body();
    let action: Action = body.parsed("action").ok()?;
    if !Action::TAKING.contains(&action) {
        return None;
    }
    let study = match action {
        Action::ModelRead => Some(body.parsed("study").ok()?),
        _ => None,
    };
    let place = entry.destination().or_else(|| entry.actor_place())?;
    let action = action.as_str().to_owned();
    Some(Approved { action, study, place, person: entry.actor_person()? })
}
