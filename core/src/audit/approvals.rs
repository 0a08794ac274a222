//! Approvals by a second person, as a log tells of them: which are in force, and of what. Whether whoever gave one is still
//! heard is asked elsewhere, when it would count.

use super::{Draft, Entry, Kind, person::Person};
use crate::{
    canon::CanonError,
    id::{Place, StudyId},
    registry::version::Stage,
    time::Timestamp,
};
use std::collections::BTreeMap;

/// Approvals in force at once.
pub const IN_FORCE_MAX: usize = 1_000;
/// People who approve one thing at once: an entry names each approval that was counted.
pub const OF_ONE_MAX: usize = 64;

/// What is approved: that this person does it, and takes it there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Approved {
    /// `model.read`, `log.export` or `version.promote`.
    pub action: String,
    /// Whose model; none of the log.
    pub study: Option<StudyId>,
    /// Of a promotion, which.
    pub promotion: Option<Promotion>,
    /// Where it is taken to.
    pub place: Place,
    /// Who does it.
    pub person: Person,
}

/// That a version of the study's model goes on to a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Promotion {
    /// The version.
    pub version: u32,
    /// Where to.
    pub stage: Stage,
}

impl Promotion {
    /// What an entry says of it.
    #[must_use]
    pub fn tell(self, draft: Draft) -> Draft {
        draft.count("version", self.version.into()).text("stage", self.stage.as_str())
    }

    /// Reads what an entry says of one, if it is about a version.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it does not say where to.
    pub fn read(entry: &Entry) -> Result<Option<Self>, CanonError> {
        let body = entry.body();
        if body.member("version").is_none() {
            return Ok(None);
        }
        Ok(Some(Self { version: body.int("version")?, stage: body.parsed("stage")? }))
    }
}

/// An approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Its name: 32 random hexadecimal digits.
    pub id: String,
    /// Of what.
    pub of: Approved,
    /// Who gave it.
    pub giver: Person,
    /// Until when it counts.
    pub until: Timestamp,
    /// The entry that says so.
    pub index: u64,
}

impl Approval {
    /// What an entry says of what is approved.
    #[must_use]
    pub fn tell(draft: Draft, id: &str, of: &Approved) -> Draft {
        let draft = draft.text("approval", id).text("approves", &of.action).person(of.person);
        let draft = draft.asked([("place", of.place.to_string().as_str())]);
        let draft = of.study.iter().fold(draft, Draft::study);
        of.promotion.iter().fold(draft, |draft, promotion| promotion.tell(draft))
    }

    /// Reads an entry which says that somebody approves something.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it does not say who, what or until when.
    pub fn read(entry: &Entry) -> Result<Self, CanonError> {
        let (body, lacks) = (entry.body(), |member: &str| CanonError::Member(member.to_owned()));
        let until = Timestamp::parse(body.text("until")?).ok_or_else(|| lacks("until"))?;
        let study = body.member("study").map(|_| body.parsed("study")).transpose()?;
        let of = Approved {
            action: body.text("approves")?.to_owned(),
            study,
            promotion: Promotion::read(entry)?,
            place: entry.destination().ok_or_else(|| lacks("asked"))?,
            person: entry.person().ok_or_else(|| lacks("person"))?,
        };
        let giver = entry.actor_person().ok_or_else(|| lacks("actor"))?;
        let id = body.text("approval")?.to_owned();
        Ok(Self { id, of, giver, until, index: entry.seq })
    }
}

/// Approvals that were given and not withdrawn. Whoever approves the same again has given one approval, the newest.
#[derive(Clone, Debug, Default)]
pub struct Approvals(BTreeMap<(Approved, Person), Approval>);

impl Approvals {
    /// The next entry of the log.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it is about an approval and does not say which.
    pub fn take(&mut self, entry: &Entry) -> Result<(), CanonError> {
        match entry.kind {
            Kind::ApprovalGiven => self.give(Approval::read(entry)?),
            Kind::ApprovalWithdrawn => self.withdraw(entry.body().text("approval")?),
            _ => {}
        }
        Ok(())
    }

    /// Takes up an approval, in the place of the same one by the same person.
    pub fn give(&mut self, approval: Approval) {
        self.0.insert((approval.of.clone(), approval.giver), approval);
    }

    /// Drops the approval of this name.
    pub fn withdraw(&mut self, id: &str) {
        self.0.retain(|_, approval| approval.id != id);
    }

    /// Drops those that were over by then.
    pub fn forget(&mut self, then: Timestamp) {
        self.0.retain(|_, approval| approval.until > then);
    }

    /// The approvals of one thing, one by each person.
    pub fn of<'a>(&'a self, of: &Approved) -> impl Iterator<Item = &'a Approval> + use<'a> {
        let ends = [[0; 16], [0xff; 16]].map(|end| (of.clone(), Person(end)));
        let [first, last] = ends;
        self.0.range(first..=last).map(|(_, approval)| approval)
    }

    /// All of them, by what they are of.
    pub fn all(&self) -> impl Iterator<Item = &Approval> {
        self.0.values()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Actor;

    const OMAR: Person = Person([1; 16]);
    const SARA: Person = Person([2; 16]);
    const LINA: Person = Person([3; 16]);

    fn of(person: Person) -> Approved {
        let place = "ae-on/ae-az".parse().expect("a place");
        Approved { action: "log.export".into(), study: None, promotion: None, place, person }
    }

    fn entry(seq: u64, draft: Draft, by: Person) -> Entry {
        let place = "spiffe://t/ae-on/ae-az/operator/o".parse().expect("an identity");
        let actor = Actor { person: Some(by), id: Some(place), ..Actor::default() };
        let at = Timestamp::from_millis(0);
        Entry::parse(&draft.actor(&actor).finish(seq, at, [0; 16])).expect("an entry")
    }

    fn given(seq: u64, id: &str, of: &Approved, by: Person) -> Entry {
        let until = Timestamp::from_millis(60_000).to_string();
        let draft = Approval::tell(Draft::new(Kind::ApprovalGiven), id, of);
        entry(seq, draft.text("until", &until), by)
    }

    fn named(approvals: &Approvals, of: &Approved) -> Vec<String> {
        approvals.of(of).map(|approval| approval.id.clone()).collect()
    }

    #[test]
    fn each_person_approves_a_thing_once_and_only_that() {
        let mut approvals = Approvals::default();
        let heart = Approved {
            action: "model.read".into(),
            study: Some("heart".parse().expect("a study")),
            ..of(OMAR)
        };
        for told in [
            given(0, "a", &of(OMAR), SARA),
            given(1, "b", &of(OMAR), LINA),
            given(2, "c", &of(OMAR), SARA),
            given(3, "d", &of(SARA), LINA),
            given(4, "e", &heart, SARA),
        ] {
            approvals.take(&told).expect("taken");
        }
        assert_eq!(named(&approvals, &of(OMAR)), ["c", "b"]);
        assert_eq!(named(&approvals, &heart), ["e"]);
        // A promotion is approved of one version, to one stage.
        let promotion = |version, stage| Approved {
            action: "version.promote".into(),
            promotion: Some(Promotion { version, stage }),
            ..heart.clone()
        };
        let second = promotion(2, Stage::Production);
        approvals.take(&given(5, "f", &second, SARA)).expect("taken");
        assert_eq!(named(&approvals, &second), ["f"]);
        for other in [promotion(3, Stage::Production), promotion(2, Stage::Staging)] {
            assert_eq!(named(&approvals, &other), Vec::<String>::new());
        }
        let dubai = Approved { place: "ae-on/ae-du".parse().expect("a place"), ..of(OMAR) };
        assert_eq!(named(&approvals, &dubai), Vec::<String>::new());
        let read = approvals.of(&heart).next().expect("given");
        assert_eq!((&read.of, read.giver, read.index), (&heart, SARA, 4));
    }

    #[test]
    fn what_was_withdrawn_or_is_over_counts_no_longer() {
        let mut approvals = Approvals::default();
        approvals.take(&given(0, "a", &of(OMAR), SARA)).expect("taken");
        approvals.take(&given(1, "b", &of(OMAR), LINA)).expect("taken");
        let draft = Approval::tell(Draft::new(Kind::ApprovalWithdrawn), "a", &of(OMAR));
        approvals.take(&entry(2, draft, LINA)).expect("taken");
        assert_eq!(named(&approvals, &of(OMAR)), ["b"]);
        approvals.forget(Timestamp::from_millis(59_999));
        assert_eq!(approvals.count(), 1);
        approvals.forget(Timestamp::from_millis(60_000));
        assert_eq!(approvals.count(), 0);
    }

    #[test]
    fn an_entry_that_does_not_say_of_what_is_refused() {
        let whole = Approval::tell(Draft::new(Kind::ApprovalGiven), "a", &of(OMAR));
        let read = |draft: Draft| Approval::read(&entry(0, draft, SARA));
        assert!(read(whole.clone()).is_err(), "it has no end");
        assert!(read(whole.text("until", "tomorrow")).is_err());
        let bare = Draft::new(Kind::ApprovalGiven).text("approves", "log.export");
        assert!(read(bare.text("until", "1970-01-01T00:00:00.000Z")).is_err());
    }
}
