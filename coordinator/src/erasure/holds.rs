//! Legal holds: placing and releasing them, and which stand.

use super::{Asker, Erasures, checked, entries};
use crate::{
    clock,
    engine::{Engine, problem_of},
    policy::Action,
    store::writer::Commit,
};
use anyhow::Result;
use falaj_core::{
    audit::{
        Draft, Entry, Kind,
        erasure::{HeldObject, Hold},
    },
    id::StudyId,
};
use falaj_proto::problem::{Code, Problem};
use std::collections::BTreeMap;
use tokio::sync::MutexGuard;

/// Holds that stand at once, at most.
const HOLDS_MAX: usize = 10_000;

/// The holds that stand.
pub(crate) struct Standing {
    /// By name.
    holds: BTreeMap<String, Hold>,
    /// Whether the log may have taken an entry that is not in here.
    in_doubt: bool,
}

impl Standing {
    /// As the log says.
    pub(super) async fn read(engine: &Engine) -> Result<Self> {
        let mut holds = BTreeMap::new();
        for entry in entries(engine, Kind::HoldPlaced).await? {
            let hold = hold(&entry)?;
            holds.insert(hold.id.clone(), hold);
        }
        for entry in entries(engine, Kind::HoldReleased).await? {
            holds.remove(entry.body().text("hold")?);
        }
        Ok(Self { holds, in_doubt: false })
    }

    /// Each of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Hold> {
        self.holds.values()
    }

    /// What was recorded; what the log has not taken in time it may take yet.
    fn settled<T>(&mut self, recorded: Result<T, Problem>) -> Result<T, Problem> {
        self.in_doubt |= recorded.as_ref().is_err_and(|e| e.code == Code::LogUnavailable);
        recorded
    }
}

impl Erasures {
    /// The holds that stand, as the log says, and nobody changes them meanwhile.
    ///
    /// # Errors
    /// Why it is not known which do: nothing is erased or pruned then.
    pub(crate) async fn standing(&self) -> Result<MutexGuard<'_, Standing>, Problem> {
        let mut standing = self.standing.lock().await;
        if standing.in_doubt {
            // Commits are made in their order: what was in doubt is decided when a later one is.
            let settled = self.engine.parts().writer.commit(Commit::default()).await;
            settled.map_err(|e| problem_of(&e))?;
            *standing = Standing::read(&self.engine).await.map_err(|e| untold(&e))?;
        }
        Ok(standing)
    }

    /// The holds that stand.
    ///
    /// # Errors
    /// Why it is not known which do.
    pub async fn holds(&self) -> Result<Vec<Hold>, Problem> {
        Ok(self.standing().await?.all().cloned().collect())
    }

    /// Places a hold on a person or on a study.
    ///
    /// # Errors
    /// [`Code::UnknownPerson`], [`Code::UnknownStudy`], [`Code::Malformed`], or why the log cannot take an entry.
    pub async fn place(
        &self,
        asker: Asker<'_>,
        (person, study): (Option<&str>, Option<&str>),
        article: &str,
    ) -> Result<Hold, Problem> {
        let mut standing = self.standing().await?;
        if let Some(placed) = asker.came_before(&self.engine, Action::HoldPlace).await? {
            return hold(&placed).map_err(|e| untold(&e));
        }
        let read = self.held_object(person, study).and_then(|o| Ok((o, checked(article)?)));
        let read = match read {
            Ok(_) if standing.holds.len() >= HOLDS_MAX => {
                Err(Code::Busy.because(format!("{HOLDS_MAX} holds stand already")))
            }
            read => read,
        };
        let (object, article) = match read {
            Ok(read) => read,
            Err(problem) => {
                return Err(self.refuse_unread(asker, Action::HoldPlace, problem).await);
            }
        };
        let draft = on(asker.makes(Kind::HoldPlaced), &object);
        let id = hex::encode(&clock::nonce()[..8]);
        let draft = draft.text("hold", &id).text("article", article);
        let granted = self.grant(asker, Action::HoldPlace, draft).await;
        standing.settled(granted)?;
        let hold = Hold { id: id.clone(), object, article: article.to_owned() };
        standing.holds.insert(id, hold.clone());
        Ok(hold)
    }

    /// Releases a hold.
    ///
    /// # Errors
    /// [`Code::UnknownHold`], or why the log cannot take an entry.
    pub async fn release(&self, asker: Asker<'_>, id: &str) -> Result<Hold, Problem> {
        let mut standing = self.standing().await?;
        if let Some(released) = asker.came_before(&self.engine, Action::HoldRelease).await? {
            return hold(&released).map_err(|e| untold(&e));
        }
        let Some(hold) = standing.holds.get(id).cloned() else {
            let problem = Code::UnknownHold
                .because("no hold of this name stands; `falaj hold list` shows those that do");
            return Err(self.refuse_unread(asker, Action::HoldRelease, problem).await);
        };
        let draft = on(asker.makes(Kind::HoldReleased), &hold.object);
        let draft = draft.text("hold", id).text("article", &hold.article);
        let granted = self.grant(asker, Action::HoldRelease, draft).await;
        standing.settled(granted)?;
        standing.holds.remove(id);
        Ok(hold)
    }

    fn held_object(
        &self,
        person: Option<&str>,
        study: Option<&str>,
    ) -> Result<HeldObject, Problem> {
        match (person, study) {
            (Some(person), None) => self.person(person).map(HeldObject::Person),
            (None, Some(study)) => {
                let id: StudyId = study.parse().map_err(|_| {
                    Code::UnknownStudy
                        .because("there is no such study; `falaj study list` shows those there are")
                })?;
                self.engine.study(&id)?;
                Ok(HeldObject::Study(id))
            }
            _ => {
                Err(Code::Malformed
                    .because("a hold is on a `person` or on a `study`, one of the two"))
            }
        }
    }
}

/// An entry about what a hold is on.
fn on(draft: Draft, object: &HeldObject) -> Draft {
    match object {
        HeldObject::Person(person) => draft.person(*person),
        HeldObject::Study(study) => draft.study(study),
    }
}

/// The hold that an entry placed or released.
fn hold(entry: &Entry) -> Result<Hold> {
    let object = match entry.person() {
        Some(person) => HeldObject::Person(person),
        None => HeldObject::Study(entry.body().parsed("study")?),
    };
    let article = entry.body().text("article")?.to_owned();
    Ok(Hold { id: entry.body().text("hold")?.to_owned(), object, article })
}

/// What is answered where the log does not tell of holds what it should.
fn untold(error: &anyhow::Error) -> Problem {
    tracing::error!(error = %format!("{error:#}"), "holds cannot be read again");
    Code::Internal.because("the coordinator cannot read its log")
}
