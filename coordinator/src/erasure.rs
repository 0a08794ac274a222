//! Erasing people, and the legal holds that keep them from being erased. What is kept for how long is decided in
//! `falaj_core::audit::erasure`.
//!
//! The log is the only memory: holds that stand, and erasures that a crash interrupted, are read from it at the start.

use crate::{
    engine::{Engine, problem_of, unreadable},
    once::Once,
    policy::{Action, Party, Resource},
    store::{Store, objects::Wanted},
};
use anyhow::{Context as _, Result, ensure};
use falaj_core::{
    audit::{
        Actor, Draft, Entry, Kind,
        erasure::{Acted, HeldObject, Hold, Kept, kept},
        objects::{Object, actor_term},
        person::Person,
    },
    id::{SpiffeId, StudyId},
    time::Timestamp,
};
use falaj_proto::problem::{Code, Problem};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::{Mutex, MutexGuard};

/// Holds that stand at once, at most.
const HOLDS_MAX: usize = 10_000;
/// The longest name of an article of law.
const ARTICLE_CHARS_MAX: usize = 200;
/// Entries that are read at once.
const PAGE: u32 = 1_000;
/// Entries that tell nothing of a study but that somebody looked, or asked whether it keeps them: its term does not begin
/// anew with them.
const LOOKS: [Kind; 9] = [
    Kind::AdminRead,
    Kind::ModelRead,
    Kind::AccessDenied,
    Kind::ApprovalGiven,
    Kind::ApprovalWithdrawn,
    Kind::ErasureBegun,
    Kind::ErasureRefused,
    Kind::HoldPlaced,
    Kind::HoldReleased,
];

/// Who asks, as whom the policies and the log see them.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    /// For the policies.
    pub id: &'a SpiffeId,
    /// For the log.
    pub actor: &'a Actor,
    /// How the request is known when it comes again, if whoever asks gave it a key.
    pub once: Option<Once>,
}

impl<'a> Asker<'a> {
    /// As policies see them.
    #[must_use]
    pub const fn party(&self) -> Party<'a> {
        Party { id: self.id, roles: self.actor.roles }
    }
}

/// Erases people, and knows the holds. A cheap handle.
#[derive(Clone)]
pub struct Erasures {
    engine: Engine,
    /// The holds that stand, by name. Whoever has it is the only one who erases.
    holds: Arc<Mutex<BTreeMap<String, Hold>>>,
}

impl Erasures {
    /// Reads the holds that stand from the log, and finishes what a crash interrupted: whoever was about to be erased is, and
    /// whoever was erased and came back with an old copy of the people's folder is so again.
    ///
    /// # Errors
    /// When the log cannot be read, or somebody cannot be erased.
    pub async fn open(engine: Engine) -> Result<Self> {
        let holds = standing(&engine).await?;
        let mut begun = BTreeMap::new();
        for entry in entries(&engine, Kind::ErasureBegun).await? {
            begun.insert(about(&entry)?, entry);
        }
        let this = Self { engine, holds: Arc::new(Mutex::new(holds)) };
        for entry in entries(&this.engine, Kind::ErasurePerformed).await? {
            let person = about(&entry)?;
            begun.remove(&person);
            if this.engine.parts().persons.identity(person).is_some() {
                this.forget(person).await?;
                tracing::warn!(%person, "an old copy of somebody who was erased is erased again");
            }
        }
        for (person, entry) in begun {
            let article = entry.body().text("article")?;
            this.forget(person).await?;
            let draft = performed(person, article);
            this.engine.parts().writer.record(vec![draft]).await?;
            tracing::info!(%person, begun = entry.seq, "an erasure that was interrupted is done");
        }
        Ok(this)
    }

    /// Erases a person; the entry that says so. The intent is durable before anything is erased.
    ///
    /// # Errors
    /// [`Code::UnknownPerson`], [`Code::LegalHold`] or [`Code::Retained`] with the article and the day, which the log has
    /// too, and why the log cannot take an entry: nothing is erased then.
    pub async fn erase(
        &self,
        asker: Asker<'_>,
        whom: &str,
        article: &str,
        now: Timestamp,
    ) -> Result<(Person, u64), Problem> {
        let holds = self.holds.lock().await;
        if let Some(begun) = asker.came_before(&self.engine, Action::PersonErase).await? {
            return self.erased_before(&begun).await;
        }
        let read = self.person(whom).and_then(|person| Ok((person, checked(article)?)));
        let (person, article) = match read {
            Ok(read) => read,
            Err(problem) => {
                return Err(self.refuse_unread(asker, Action::PersonErase, problem).await);
            }
        };
        let acted = self.acted(person).await?;
        if let Some(kept) = kept(person, now, holds.values(), &acted) {
            let draft = Draft::new(Kind::ErasureRefused).actor(asker.actor).person(person);
            let (draft, code) = refused(draft, &kept);
            self.grant(asker, Action::PersonErase, draft).await?;
            return Err(code.because(kept));
        }
        let draft = asker.makes(Kind::ErasureBegun).person(person).text("article", article);
        self.grant(asker, Action::PersonErase, draft).await?;
        self.forget(person).await.map_err(|e| {
            tracing::error!(error = %format!("{e:#}"), %person, "a person cannot be erased");
            unfinished()
        })?;
        let draft = performed(person, article).actor(asker.actor);
        let done = self.engine.parts().writer.record(vec![draft]).await;
        Ok((person, done.map_err(|e| problem_of(&e))?.first))
    }

    /// Whom an erasure was about that was begun before, and the entry that says that it is done.
    async fn erased_before(&self, begun: &Entry) -> Result<(Person, u64), Problem> {
        let person = about(begun).map_err(|e| Code::Internal.because(e))?;
        let (store, object) = (&self.engine.parts().store, Object::Person(person));
        let done = store.find_one(&object, Some(Kind::ErasurePerformed), |_| true).await;
        let done = done.map_err(unreadable)?.ok_or_else(unfinished)?;
        Ok((person, done.seq))
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
        let mut holds = self.holds.lock().await;
        if let Some(placed) = asker.came_before(&self.engine, Action::HoldPlace).await? {
            return self.held_before(&mut holds, &placed).await;
        }
        let read = self.held_object(person, study).and_then(|o| Ok((o, checked(article)?)));
        let read = match read {
            Ok(_) if holds.len() >= HOLDS_MAX => {
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
        let id = hex::encode(&crate::clock::nonce()[..8]);
        let draft = draft.text("hold", &id).text("article", article);
        self.grant(asker, Action::HoldPlace, draft).await?;
        let hold = Hold { id: id.clone(), object, article: article.to_owned() };
        holds.insert(id, hold.clone());
        Ok(hold)
    }

    /// Releases a hold.
    ///
    /// # Errors
    /// [`Code::UnknownHold`], or why the log cannot take an entry.
    pub async fn release(&self, asker: Asker<'_>, id: &str) -> Result<Hold, Problem> {
        let mut holds = self.holds.lock().await;
        if let Some(released) = asker.came_before(&self.engine, Action::HoldRelease).await? {
            return self.held_before(&mut holds, &released).await;
        }
        let Some(hold) = holds.get(id).cloned() else {
            let problem = Code::UnknownHold
                .because("no hold of this name stands; `falaj hold list` shows those that do");
            return Err(self.refuse_unread(asker, Action::HoldRelease, problem).await);
        };
        let draft = on(asker.makes(Kind::HoldReleased), &hold.object);
        let draft = draft.text("hold", id).text("article", &hold.article);
        self.grant(asker, Action::HoldRelease, draft).await?;
        holds.remove(id);
        Ok(hold)
    }

    /// The hold that was placed or released before, as the entry says. Whatever the log took too late to be told of is known now.
    async fn held_before(
        &self,
        holds: &mut BTreeMap<String, Hold>,
        entry: &Entry,
    ) -> Result<Hold, Problem> {
        let untold = |e: anyhow::Error| {
            tracing::error!(error = %format!("{e:#}"), "holds cannot be read again");
            Code::Internal.because("the coordinator cannot read its log")
        };
        *holds = standing(&self.engine).await.map_err(untold)?;
        hold(entry).map_err(untold)
    }

    /// The engine whose people these are.
    pub(crate) const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The holds that stand, and nobody changes them meanwhile.
    pub(crate) async fn standing(&self) -> MutexGuard<'_, BTreeMap<String, Hold>> {
        self.holds.lock().await
    }

    /// The holds that stand.
    pub async fn holds(&self) -> Vec<Hold> {
        self.holds.lock().await.values().cloned().collect()
    }

    /// Whom a text names: a SPIFFE ID, or a pseudonym with `person:` before it or without.
    ///
    /// # Errors
    /// [`Code::UnknownPerson`], and [`Code::Malformed`] for anything else. Neither repeats the text.
    pub fn person(&self, text: &str) -> Result<Person, Problem> {
        let persons = &self.engine.parts().persons;
        let pseudonym = text.strip_prefix("person:").unwrap_or(text).parse::<Person>();
        let found = match (pseudonym, text.parse::<SpiffeId>()) {
            (Ok(person), _) => persons.identity(person).map(|_| person),
            (_, Ok(id)) => persons.of(&id),
            _ => {
                return Err(Code::Malformed.because(
                    "a person is named by a SPIFFE ID, or by `person:` and 32 hexadecimal digits",
                ));
            }
        };
        found.ok_or_else(|| {
            Code::UnknownPerson
                .because("nobody of this name is known; `falaj person list` shows who is")
        })
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

    /// Asks the policies and records what is about to happen: the entry's place.
    pub(crate) async fn grant(
        &self,
        asker: Asker<'_>,
        action: Action,
        draft: Draft,
    ) -> Result<u64, Problem> {
        let granted = self.engine.grant(asker.party(), action, &Resource::Service, draft).await?;
        Ok(granted.1.first)
    }

    /// Records a request that cannot be carried out, without its words: why it is refused.
    pub(crate) async fn refuse_unread(
        &self,
        asker: Asker<'_>,
        action: Action,
        problem: Problem,
    ) -> Problem {
        let draft = Draft::new(Kind::AdminRead).actor(asker.actor);
        self.grant(asker, action, draft).await.err().unwrap_or(problem)
    }

    /// The studies in which a person acted.
    async fn acted(&self, person: Person) -> Result<Vec<Acted>, Problem> {
        let mut acted = Vec::new();
        for handle in self.engine.studies() {
            let study = &handle.meta.study;
            if !self.touches(person, &study.id).await? {
                continue;
            }
            let over = handle.view().state != "running";
            let last = if over { self.last(&study.id).await? } else { None };
            if over && last.is_none() {
                // Its records were pruned, when its term was over.
                continue;
            }
            let (study, retention) = (study.id.clone(), study.governance.retention);
            acted.push(Acted { study, retention, last });
        }
        Ok(acted)
    }

    /// Whether any shard has an entry about a study that this person made.
    async fn touches(&self, person: Person, study: &StudyId) -> Result<bool, Problem> {
        let terms = [actor_term(&Object::Person(person)), study.to_string()];
        for (shard, _) in self.engine.parts().shards.all() {
            if touches(shard, terms.clone().into()).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// When the log last told of a study.
    pub(crate) async fn last(&self, study: &StudyId) -> Result<Option<Timestamp>, Problem> {
        for (shard, _) in self.engine.parts().shards.all().iter().rev() {
            let newest = shard.newest_of(study.as_str(), &LOOKS).await.map_err(unreadable)?;
            let Some(newest) = newest else { continue };
            let rows = shard.entries(newest, newest + 1, 1, None).await.map_err(unreadable)?;
            let entry = rows.first().and_then(|(_, bytes, _)| Entry::parse(bytes).ok());
            return Ok(entry.and_then(|entry| time_of(&entry)));
        }
        Ok(None)
    }

    async fn forget(&self, person: Person) -> Result<()> {
        let persons = self.engine.parts().persons.clone();
        tokio::task::spawn_blocking(move || persons.forget(person)).await??;
        Ok(())
    }
}

/// What an entry says of why something is kept, and the code with which that is answered.
pub(crate) fn refused(draft: Draft, kept: &Kept) -> (Draft, Code) {
    let draft = draft.text("reason", kept.reason()).text("article", kept.article());
    match kept {
        Kept::Hold(hold) => (draft.text("hold", &hold.id), Code::LegalHold),
        Kept::Term { study, retention, until } => {
            let draft = draft.study(study).text("retention", retention.as_str());
            (draft.text("until", until.as_deref().unwrap_or("")), Code::Retained)
        }
        Kept::Shard { until, .. } => (draft.text("until", until), Code::Retained),
    }
}

/// What is answered about an erasure that the log has begun, and that is not done.
fn unfinished() -> Problem {
    Code::Internal.because("the erasure was begun, and the coordinator could not finish it: it goes on when it is started again")
}

/// The entry that says that a person has been erased.
fn performed(person: Person, article: &str) -> Draft {
    Draft::new(Kind::ErasurePerformed).person(person).text("article", article)
}

/// An entry about what a hold is on.
fn on(draft: Draft, object: &HeldObject) -> Draft {
    match object {
        HeldObject::Person(person) => draft.person(*person),
        HeldObject::Study(study) => draft.study(study),
    }
}

/// The name of an article of law, as it goes into the log.
fn checked(article: &str) -> Result<&str, Problem> {
    let chars = article.chars().count();
    let fits = (1..=ARTICLE_CHARS_MAX).contains(&chars) && !article.chars().any(char::is_control);
    if fits {
        return Ok(article);
    }
    Err(Code::Malformed.because(format!(
        "`article` names the article of law, in 1 to {ARTICLE_CHARS_MAX} characters and one line"
    )))
}

/// The person that an entry is about.
fn about(entry: &Entry) -> Result<Person> {
    entry.person().with_context(|| format!("log entry {} names no person", entry.seq))
}

/// The holds that stand, as the log says.
async fn standing(engine: &Engine) -> Result<BTreeMap<String, Hold>> {
    let mut holds = BTreeMap::new();
    for entry in entries(engine, Kind::HoldPlaced).await? {
        let hold = hold(&entry)?;
        holds.insert(hold.id.clone(), hold);
    }
    for entry in entries(engine, Kind::HoldReleased).await? {
        holds.remove(entry.body().text("hold")?);
    }
    Ok(holds)
}

/// The hold that an entry placed.
fn hold(entry: &Entry) -> Result<Hold> {
    let object = match entry.person() {
        Some(person) => HeldObject::Person(person),
        None => HeldObject::Study(entry.body().parsed("study")?),
    };
    let article = entry.body().text("article")?.to_owned();
    Ok(Hold { id: entry.body().text("hold")?.to_owned(), object, article })
}

/// When an entry was made.
pub(crate) fn time_of(entry: &Entry) -> Option<Timestamp> {
    let ts = entry.ts.parse::<jiff::Timestamp>().ok()?;
    Some(Timestamp::from_millis(ts.as_millisecond()))
}

/// Whether a shard has an entry that touches all of these; one that was pruned has none.
pub(crate) async fn touches(shard: &Store, terms: BTreeSet<String>) -> Result<bool, Problem> {
    if shard.pruned().await.map_err(unreadable)? {
        return Ok(false);
    }
    let mut wanted = Wanted { terms, below: u64::MAX, ..Wanted::default() };
    loop {
        let found = shard.find(&wanted, 1).await.map_err(unreadable)?;
        match found.next {
            _ if !found.entries.is_empty() => return Ok(true),
            Some(next) => wanted.from = next,
            None => return Ok(false),
        }
    }
}

/// Every entry of a kind, over all shards.
pub(crate) async fn entries(engine: &Engine, kind: Kind) -> Result<Vec<Entry>> {
    let mut all = Vec::new();
    for (shard, _) in engine.parts().shards.all() {
        let mut from = 0;
        loop {
            let rows = shard.entries(from, u64::MAX, PAGE, Some(kind.as_str())).await?;
            let Some((last, ..)) = rows.last() else { break };
            ensure!(*last >= from, "the database gives entries out of order");
            from = last + 1;
            for (_, bytes, _) in &rows {
                all.push(Entry::parse(bytes)?);
            }
        }
    }
    Ok(all)
}
