//! Erasing people, and the legal holds that keep them from being erased. What is kept for how long is decided in
//! `falaj_core::audit::erasure`.
//!
//! The log is the only memory: holds that stand, and erasures that were begun and not done, are read from it at the start.

mod holds;

use crate::{
    clock,
    engine::{Engine, problem_of, unreadable},
    once::Once,
    policy::{Action, Party, Resource},
    store::{Store, objects::Wanted},
};
use anyhow::{Context as _, Result, ensure};
use falaj_core::{
    audit::{
        Actor, Draft, Entry, Kind,
        erasure::{Acted, Kept, kept},
        objects::{Object, actor_term},
        person::Person,
    },
    id::{SpiffeId, StudyId},
    time::Timestamp,
};
use falaj_proto::problem::{Code, Problem};
use holds::Standing;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::Mutex;

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
    /// The holds that stand. Whoever has it is the only one who erases.
    standing: Arc<Mutex<Standing>>,
}

impl Erasures {
    /// Reads the holds that stand from the log, and finishes what was begun and not done, by a crash or because the log took the
    /// intent late: whoever was about to be erased is, unless something keeps them by now, and whoever was erased and came back
    /// with an old copy of the people's folder is so again.
    ///
    /// # Errors
    /// When the log cannot be read, or somebody cannot be erased.
    pub async fn open(engine: Engine) -> Result<Self> {
        let standing = Arc::new(Mutex::new(Standing::read(&engine).await?));
        let mut begun = BTreeMap::new();
        for entry in entries(&engine, Kind::ErasureBegun).await? {
            begun.insert(about(&entry)?, entry);
        }
        let this = Self { engine, standing };
        for entry in entries(&this.engine, Kind::ErasurePerformed).await? {
            let person = about(&entry)?;
            begun.remove(&person);
            if this.engine.parts().persons.identity(person).is_some() {
                this.forget(person).await?;
                tracing::warn!(%person, "an old copy of somebody who was erased is erased again");
            }
        }
        let standing = this.standing().await?;
        for (person, entry) in begun {
            if let Some(kept) = this.keeps(person, &standing, clock::now()).await? {
                tracing::warn!(%person, begun = entry.seq, %kept, "an erasure that was begun does not go on: ask for it again, or start again, when nothing keeps them any more");
                continue;
            }
            this.carry_out(person, intent(&entry)?.1, None).await?;
            tracing::info!(%person, begun = entry.seq, "an erasure that was interrupted is done");
        }
        drop(standing);
        Ok(this)
    }

    /// Erases a person; the entry that says so. The intent is durable before anything is erased. What was begun under the same key
    /// and is not done is done now.
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
        let standing = self.standing().await?;
        let begun = asker.came_before(&self.engine, Action::PersonErase).await?;
        let read = match &begun {
            Some(begun) => intent(begun).map_err(|e| Code::Internal.because(e)),
            None => self.person(whom).and_then(|person| Ok((person, checked(article)?))),
        };
        let (person, article) = match read {
            Ok(read) => read,
            Err(problem) => {
                return Err(self.refuse_unread(asker, Action::PersonErase, problem).await);
            }
        };
        if begun.is_some()
            && let Some(done) = self.done(person).await?
        {
            return Ok((person, done));
        }
        if let Some(kept) = self.keeps(person, &standing, now).await? {
            let draft = Draft::new(Kind::ErasureRefused).actor(asker.actor).person(person);
            let (draft, code) = refused(draft, &kept);
            self.grant(asker, Action::PersonErase, draft).await?;
            return Err(code.because(kept));
        }
        if begun.is_none() {
            let draft = asker.makes(Kind::ErasureBegun).person(person).text("article", article);
            self.grant(asker, Action::PersonErase, draft).await?;
        }
        Ok((person, self.carry_out(person, article, Some(asker.actor)).await?))
    }

    /// The entry that says that a person was erased, if one does.
    async fn done(&self, person: Person) -> Result<Option<u64>, Problem> {
        let (store, object) = (&self.engine.parts().store, Object::Person(person));
        let done = store.find_one(&object, Some(Kind::ErasurePerformed), |_| true).await;
        Ok(done.map_err(unreadable)?.map(|entry| entry.seq))
    }

    /// What keeps a person from being erased. Of whoever is nobody any more nothing is left to be kept.
    async fn keeps(
        &self,
        person: Person,
        standing: &Standing,
        now: Timestamp,
    ) -> Result<Option<Kept>, Problem> {
        if self.engine.parts().persons.identity(person).is_none() {
            return Ok(None);
        }
        Ok(kept(person, now, standing.all(), &self.acted(person).await?))
    }

    /// Does what was begun; the entry that says so.
    async fn carry_out(
        &self,
        person: Person,
        article: &str,
        by: Option<&Actor>,
    ) -> Result<u64, Problem> {
        self.forget(person).await.map_err(|e| {
            tracing::error!(error = %format!("{e:#}"), %person, "a person cannot be erased");
            Code::Internal.because("the erasure was begun, and the coordinator could not finish it: it goes on when the same request comes again, and at the next start")
        })?;
        let draft = Draft::new(Kind::ErasurePerformed).person(person).text("article", article);
        let draft = by.into_iter().fold(draft, Draft::actor);
        let done = self.engine.parts().writer.record(vec![draft]).await;
        Ok(done.map_err(|e| problem_of(&e))?.first)
    }

    /// The engine whose people these are.
    pub(crate) const fn engine(&self) -> &Engine {
        &self.engine
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

/// Whom an erasure is to erase that was begun, and by which article of law.
fn intent(begun: &Entry) -> Result<(Person, &str)> {
    Ok((about(begun)?, begun.body().text("article")?))
}

/// When an entry was made.
pub(crate) fn time_of(entry: &Entry) -> Option<Timestamp> {
    let ts = entry.ts.parse::<jiff::Timestamp>().ok()?;
    Some(Timestamp::from_millis(ts.as_millisecond()))
}

/// Whether a shard has an entry that touches all of these; of one that is pruned, what is left of it.
pub(crate) async fn touches(shard: &Store, terms: BTreeSet<String>) -> Result<bool, Problem> {
    let mut wanted = Wanted { terms, below: u64::MAX, ..Wanted::default() };
    loop {
        let found = shard.find_left(&wanted, 1).await.map_err(unreadable)?;
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
