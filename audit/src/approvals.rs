//! Approvals by a second person, as the log goes on: each that a decision counts was given before it, by somebody else, for just
//! this, and was still good then.
//!
//! That it counts all of them is not looked for: whom issuers' lists or the deny file name is not in a log.

use crate::{
    decisions::{Around, Decisions},
    revoked::{Revoked, UNDER_WAY_MS},
};
use falaj_core::{
    audit::{
        Entry, Kind,
        approvals::{Approval, Approvals, Approved, IN_FORCE_MAX, Promotion},
        person::Person,
    },
    id::{Digest, SpiffeId, StudyId},
    roles::Roles,
    time::Timestamp,
};
use falaj_policies::{Action, Party};
use std::collections::{BTreeMap, BTreeSet};

/// Approvals, and how those stand who gave them.
#[derive(Default)]
pub(crate) struct Approving {
    standing: Approvals,
    givers: BTreeMap<Person, Giver>,
    /// Who submitted each study, if it was a person: they approve no promotion of what it learned.
    submitters: BTreeMap<StudyId, Person>,
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
    /// The next entry of the log.
    pub(crate) fn take(
        &mut self,
        entry: &Entry,
        revoked: &Revoked,
        decisions: &mut Decisions,
        around: &Around<'_>,
    ) -> Result<(), String> {
        if let (Kind::StudySubmitted, Some(person)) = (entry.kind, entry.actor_person()) {
            let study = entry.body().parsed("study").map_err(|e| e.to_string())?;
            self.submitters.insert(study, person);
        }
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
        self.check(entry, at, revoked, decisions, around)
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
    fn check(
        &mut self,
        entry: &Entry,
        at: Timestamp,
        revoked: &Revoked,
        decisions: &mut Decisions,
        around: &Around<'_>,
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
                        around,
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
        let submitter = of.study.as_ref().and_then(|study| self.submitters.get(study));
        if of.promotion.is_some() && submitter == Some(&approval.giver) {
            return Err(format!("it counts the approval {id}, whose giver submitted the study"));
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
        Action::ModelRead | Action::VersionPromote => Some(body.parsed("study").ok()?),
        _ => None,
    };
    let promotion = match action {
        Action::VersionPromote => Promotion::read(entry).ok()?,
        _ => None,
    };
    let place = entry.destination().or_else(|| entry.actor_place())?;
    let action = action.as_str().to_owned();
    Some(Approved { action, study, promotion, place, person: entry.actor_person()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::{
        audit::{Actor, Draft, policy_set},
        id::Place,
        roles::OperatorRole,
    };

    const OMAR: Person = Person([1; 16]);
    const SARA: Person = Person([2; 16]);
    const LINA: Person = Person([3; 16]);

    /// The set for health.
    fn policies() -> Vec<(String, Vec<u8>)> {
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        vec![
            file(
                falaj_policies::POLICIES,
                include_str!("../../policies/sets/uae-health/coordinator.cedar"),
            ),
            file(
                falaj_policies::SCHEMA,
                include_str!("../../policies/sets/uae-health/coordinator.cedarschema"),
            ),
        ]
    }

    /// An entry by a person with this role, who is disclosed.
    fn by(person: Person, role: OperatorRole, draft: Draft) -> Draft {
        let id = format!("spiffe://t/ae-on/ae-az/operator/o-{}", person.0[0]);
        let id = Some(id.parse().expect("an identity"));
        let roles = [role].into_iter().collect();
        draft.actor(&Actor { person: Some(person), id, roles, ..Actor::default() })
    }

    fn of(person: Person) -> Approved {
        let place: Place = "ae-on/ae-az".parse().expect("a place");
        Approved { action: "log.export".into(), study: None, promotion: None, place, person }
    }

    fn given(id: &str, giver: Person, of: &Approved, until_s: i64) -> Draft {
        let until = Timestamp::from_millis(until_s * 1_000).to_string();
        let draft = Approval::tell(Draft::new(Kind::ApprovalGiven), id, of);
        by(giver, OperatorRole::Approver, draft.text("until", &until))
    }

    /// Omar exports the log, and these approvals were counted.
    fn exported(counted: &[&str]) -> Draft {
        let draft = Draft::new(Kind::LogExported)
            .text("action", "log.export")
            .decided(true, &["ACC-207".to_owned()], &policy_set(&policies()))
            .texts("approvals", counted.iter().map(|id| (*id).to_owned()));
        by(OMAR, OperatorRole::Auditor, draft)
    }

    /// Takes entries, each with its time in seconds: what is wrong with the first that is not taken.
    fn taken(drafts: Vec<(i64, Draft)>) -> Result<(), String> {
        let (mut approving, mut revoked) = (Approving::default(), Revoked::default());
        let mut decisions = Decisions::default();
        let (set, issuers) = (policy_set(&policies()), BTreeMap::new());
        let policies = BTreeMap::from([(set, policies())]);
        let around =
            Around { policies: &policies, issuers: &issuers, asked: &|| None, goes_on: false };
        let started = Draft::new(Kind::CoordinatorStarted)
            .text("coordinator", "spiffe://t/ae-on/ae-az/coordinator/main")
            .digest("policy_set_sha256", &set);
        let drafts = [(0, started)].into_iter().chain(drafts);
        for (seq, (at, mut draft)) in (0..).zip(drafts) {
            let at = Timestamp::from_millis(at * 1_000);
            let opened = draft.commit_to_person(seq, [0; 32]);
            let mut entry = Entry::parse(&draft.finish(seq, at, [0; 16])).expect("an entry");
            if let Some((_, disclosure)) = opened {
                entry = entry.disclosed(&disclosure).expect("it opens");
            }
            let who = entry.requester().map(std::borrow::Cow::into_owned);
            revoked.take(&entry, |_| None)?;
            let decided = [Kind::CoordinatorStarted, Kind::LogExported, Kind::AccessDenied];
            if decided.contains(&entry.kind) {
                decisions.take(&entry, who.as_ref(), &around)?;
            }
            approving.take(&entry, &revoked, &mut decisions, &around)?;
        }
        Ok(())
    }

    fn wrong(drafts: Vec<(i64, Draft)>, why: &str) {
        let found = taken(drafts).expect_err(why);
        assert!(found.contains(why), "`{why}`, and it says: {found}");
    }

    #[test]
    fn an_approval_counts_that_another_person_gave_before_for_just_this() {
        let good = || (1, given("a", SARA, &of(OMAR), 60));
        assert_eq!(taken(vec![good(), (2, exported(&["a"]))]), Ok(()));
        let two = (2, given("b", LINA, &of(OMAR), 60));
        assert_eq!(taken(vec![good(), two, (3, exported(&["a", "b"]))]), Ok(()));
        // Somewhere else, for somebody else, and their own.
        let dubai = Approved { place: "ae-on/ae-du".parse().expect("a place"), ..of(OMAR) };
        for other in [given("a", SARA, &dubai, 60), given("a", SARA, &of(LINA), 60)] {
            wrong(vec![(1, other), (2, exported(&["a"]))], "which is of something else");
        }
        wrong(vec![(1, given("a", OMAR, &of(OMAR), 60)), (2, exported(&["a"]))], "who asks");
        wrong(vec![(1, exported(&["a"])), (2, given("a", SARA, &of(OMAR), 60))], "nobody gave");
        wrong(vec![good(), (2, exported(&["a", "a"]))], "twice");
    }

    #[test]
    fn a_number_that_does_not_lead_to_the_decision_is_found() {
        let good = || (1, given("a", SARA, &of(OMAR), 60));
        wrong(vec![good(), (2, exported(&[]))], "they decide `deny` by [APR-001]");
        let denied = |draft: Draft| by(OMAR, OperatorRole::Auditor, draft);
        let bare = Draft::new(Kind::AccessDenied).text("action", "log.export").decided(
            false,
            &["APR-001".to_owned()],
            &policy_set(&policies()),
        );
        assert_eq!(taken(vec![good(), (2, denied(bare.clone()))]), Ok(()));
        let counted = bare.texts("approvals", ["a".to_owned()]);
        wrong(vec![good(), (2, denied(counted))], "they decide `allow`");
    }

    #[test]
    fn what_was_over_taken_back_or_given_anew_is_good_no_longer() {
        let good = || (1, given("a", SARA, &of(OMAR), 60));
        assert_eq!(taken(vec![good(), (65, exported(&["a"]))]), Ok(()));
        wrong(vec![good(), (66, exported(&["a"]))], "was good until");
        let back = Approval::tell(Draft::new(Kind::ApprovalWithdrawn), "a", &of(OMAR));
        let back = by(LINA, OperatorRole::SiteSteward, back);
        wrong(vec![good(), (2, back), (3, exported(&["a"]))], "took back");
        let again = (2, given("b", SARA, &of(OMAR), 60));
        wrong(vec![good(), again.clone(), (3, exported(&["a"]))], "nobody gave before");
        assert_eq!(taken(vec![good(), again, (3, exported(&["b"]))]), Ok(()));
    }

    #[test]
    fn whoever_was_revoked_erased_or_may_not_give_it_now_is_not_heard() {
        let good = || (1, given("a", SARA, &of(OMAR), 60));
        let revoked = (2, Draft::new(Kind::CertificateRevoked).person(SARA));
        // What was under way has its entry afterwards.
        assert_eq!(taken(vec![good(), revoked.clone(), (7, exported(&["a"]))]), Ok(()));
        wrong(vec![good(), revoked, (8, exported(&["a"]))], "giver was revoked");
        let erased = (2, Draft::new(Kind::ErasurePerformed).person(SARA));
        wrong(vec![good(), erased, (8, exported(&["a"]))], "giver was erased");
        let came = by(SARA, OperatorRole::DataScientist, Draft::new(Kind::ConnectionAdmitted));
        assert_eq!(taken(vec![good(), (2, came.clone()), (7, exported(&["a"]))]), Ok(()));
        wrong(vec![good(), (2, came.clone()), (8, exported(&["a"]))], "may not give it");
        let again = by(SARA, OperatorRole::Approver, Draft::new(Kind::ConnectionAdmitted));
        let all = vec![good(), (2, came), (3, again), (20, exported(&["a"]))];
        assert_eq!(taken(all), Ok(()));
        let dear = by(SARA, OperatorRole::Auditor, {
            let until = Timestamp::from_millis(60_000).to_string();
            Approval::tell(Draft::new(Kind::ApprovalGiven), "a", &of(OMAR)).text("until", &until)
        });
        wrong(vec![(1, dear), (2, exported(&["a"]))], "may not give it");
    }
}
