//! Approvals by a second person: who has approved that somebody else has a model or the log, and takes it somewhere, or promotes a
//! version.
//!
//! The log is the list, and is read when the coordinator starts: of its own shard, so that whoever verifies it finds there what
//! counted. Policies decide who may approve, and what waits for it; here is only how many other people there are.

use crate::{
    accept::meet,
    clock,
    engine::{Engine, problem_of, unreadable},
    erasure::Asker,
    policy::{Action, Decision, Given, Party, Resource, With},
    store::{
        objects::Wanted,
        writer::{Change, Commit, Committed},
    },
    trusted::Trusted,
    versions,
};
use anyhow::{Result, ensure};
use falaj_core::{
    audit::{
        Draft, Entry, Kind,
        approvals::{self, Approval, Approved, IN_FORCE_MAX, OF_ONE_MAX, Promotion},
        objects::{Object, actor_term},
        person::{Person, is_person},
    },
    id::{Place, SpiffeId, StudyId},
    roles::Roles,
};
use falaj_proto::problem::{Code, Problem};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Mutex, MutexGuard};

/// How long an approval counts unless asked otherwise.
const TTL: Duration = Duration::from_hours(24);
/// The longest that one counts.
const TTL_MAX: Duration = Duration::from_hours(30 * 24);
/// Entries that are read at once.
const PAGE: u32 = 1_000;

/// What somebody is asked to approve, in the words of whoever asks.
pub struct Asked<'a> {
    /// `model.read`, `log.export` or `version.promote`.
    pub action: &'a str,
    /// Whose model.
    pub study: Option<&'a str>,
    /// Of a promotion, which version.
    pub version: Option<u32>,
    /// Of a promotion, where the version is to go on to.
    pub stage: Option<&'a str>,
    /// Who is to act, by SPIFFE ID.
    pub whom: &'a str,
    /// Where it is taken to; where they are when absent.
    pub place: Option<&'a str>,
    /// For how long, in seconds.
    pub ttl_s: Option<u64>,
}

/// What a person takes somewhere, or has serve there.
pub struct Taken<'a> {
    /// By what.
    pub action: Action,
    /// Of what.
    pub resource: &'a Resource<'a>,
    /// Where to.
    pub to: &'a Place,
    /// Of a promotion, which.
    pub promotion: Option<Promotion>,
}

/// The same, read.
struct Read {
    action: Action,
    /// The study and its mechanism.
    study: Option<(StudyId, String)>,
    /// Who submitted the study, as entries name them.
    submitter: Option<String>,
    promotion: Option<Promotion>,
    whom: SpiffeId,
    place: Place,
    ttl: Duration,
}

#[derive(Default)]
struct Standing {
    approvals: approvals::Approvals,
    /// Those by which something was allowed, of the ones in force.
    used: BTreeSet<String>,
    /// Whether the log may have taken an entry that is not in here.
    in_doubt: bool,
}

/// Takes approvals, and counts them. A cheap handle.
#[derive(Clone)]
pub struct Approvals {
    engine: Engine,
    trusted: Trusted,
    /// Whoever has it is the only one who changes them, and nobody counts meanwhile: the log has both in their order.
    standing: Arc<Mutex<Standing>>,
}

impl Approvals {
    /// Reads what is in force from the log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn open(engine: Engine, trusted: Trusted) -> Result<Self> {
        let mut approvals = read(&engine).await?;
        approvals.forget(clock::now());
        let used = used(&engine, &approvals).await?;
        let standing = Standing { approvals, used, in_doubt: false };
        tell(&engine, &standing);
        Ok(Self { engine, trusted, standing: Arc::new(Mutex::new(standing)) })
    }

    /// What is in force now, as the log says.
    async fn standing(&self) -> Result<MutexGuard<'_, Standing>, Problem> {
        let mut standing = self.standing.lock().await;
        if standing.in_doubt {
            // Commits are made in their order: what was in doubt is decided when a later one is.
            let settled = self.engine.parts().writer.commit(Commit::default()).await;
            settled.map_err(|e| problem_of(&e))?;
            standing.approvals = read(&self.engine).await.map_err(|e| {
                tracing::error!(error = %format!("{e:#}"), "approvals cannot be read again");
                Code::Internal.because("the coordinator cannot read its log")
            })?;
            standing.in_doubt = false;
            tell(&self.engine, &standing);
        }
        standing.approvals.forget(clock::now());
        Ok(standing)
    }

    /// Every approval in force, whether or not its giver would be heard now.
    ///
    /// # Errors
    /// Why the log cannot be read.
    pub async fn all(&self) -> Result<Vec<Approval>, Problem> {
        Ok(self.standing().await?.approvals.all().cloned().collect())
    }

    /// Approves that another person has a model or the log, and takes it somewhere, or promotes a version. This must be run to its end.
    ///
    /// # Errors
    /// [`Code::Malformed`], [`Code::UnknownStudy`], [`Code::UnknownModel`], [`Code::Denied`], [`Code::Busy`], or why the log cannot
    /// take the entry.
    pub async fn give(&self, asker: Asker<'_>, asked: &Asked<'_>) -> Result<Approval, Problem> {
        let mut standing = self.standing().await?;
        if let Some(given) = asker.came_before(&self.engine, Action::ApprovalGive).await? {
            return Approval::read(&given).map_err(|e| Code::Internal.because(e));
        }
        let Read { action, study, submitter, promotion, whom, place, ttl } =
            match self.read(asker, asked) {
                Ok(read) => read,
                Err(problem) => {
                    return Err(self.refuse_unread(asker, Action::ApprovalGive, problem).await);
                }
            };
        if let (Some((study, _)), Some(Promotion { version, .. })) = (&study, promotion)
            && let Err(problem) =
                versions::check_made(&self.engine.parts().store, study, version).await
        {
            return Err(self.refuse_unread(asker, Action::ApprovalGive, problem).await);
        }
        let resource = match &study {
            Some((id, mechanism)) => Resource::Study(id, mechanism),
            None => Resource::Service,
        };
        let (give, policy) = (Action::ApprovalGive, &self.engine.parts().policy);
        let decision = policy.decide_to(asker.party(), give, &resource, &place);
        let own = promotion.is_some() && submitter == Some(asker.actor.name());
        let giver = match asker.actor.person {
            None => Err("people approve"),
            Some(_) if own => Err(
                "nobody approves that a version of their own study is promoted: ask another approver",
            ),
            Some(giver) => Ok(giver),
        };
        let about = |draft| study.iter().fold(draft, |draft: Draft, (study, _)| draft.study(study));
        let giver = match giver {
            Ok(giver) => giver,
            Err(why) => {
                let draft = about(Draft::new(Kind::AccessDenied).actor(asker.actor));
                let problem = Code::Denied.because(why);
                return Err(self.engine.deny(asker.party(), give, &resource, draft, problem).await);
            }
        };
        let draft = asker.makes(Kind::ApprovalGiven);
        if !decision.allow {
            let draft = draft.asked([("place", place.to_string().as_str())]);
            let draft = about(draft);
            let refused = self.engine.record(give, decision, draft).await;
            return Err(refused.err().unwrap_or_else(|| Code::Denied.because("it is denied")));
        }
        let action = action.as_str().to_owned();
        let study = study.map(|(id, _)| id);
        let person = meet(&self.engine.parts().persons, &whom).await?;
        let of = Approved { action, study, promotion, place, person };
        let again = standing.approvals.of(&of).any(|approval| approval.giver == giver);
        let full = if again {
            None
        } else if standing.approvals.count() >= IN_FORCE_MAX {
            Some(format!("{IN_FORCE_MAX} approvals are in force already"))
        } else if standing.approvals.of(&of).count() >= OF_ONE_MAX {
            Some(format!("{OF_ONE_MAX} people have approved this already"))
        } else {
            None
        };
        if let Some(why) = full {
            return Err(self.refuse_unread(asker, give, Code::Busy.because(why)).await);
        }
        let (id, until) = (hex::encode(clock::nonce()), clock::now().plus_ms(ms(ttl)));
        let draft = Approval::tell(draft, &id, &of).text("until", &until.to_string());
        let recorded = self.engine.record(give, decision, draft).await;
        let (_, committed) = settled(&mut standing, recorded)?;
        let approval = Approval { id, of, giver, until, index: committed.first };
        standing.approvals.give(approval.clone());
        self.count(&mut standing, &approval.of.action, "given");
        Ok(approval)
    }

    /// Takes an approval back. This must be run to its end.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::Denied`], or why the log cannot take the entry.
    pub async fn withdraw(&self, asker: Asker<'_>, id: &str) -> Result<Approval, Problem> {
        let mut standing = self.standing().await?;
        if let Some(gone) = asker.came_before(&self.engine, Action::ApprovalWithdraw).await? {
            return self.withdrawn_before(&gone).await;
        }
        let found = standing.approvals.all().find(|approval| approval.id == id).cloned();
        let Some(approval) = found else {
            let problem = Code::NotFound.because(
                "no approval of this name is in force; `falaj approval list` shows those that are",
            );
            return Err(self.refuse_unread(asker, Action::ApprovalWithdraw, problem).await);
        };
        let draft = asker.makes(Kind::ApprovalWithdrawn);
        let draft = Approval::tell(draft, id, &approval.of);
        let (withdraw, resource) = (Action::ApprovalWithdraw, Resource::Service);
        let recorded = self.engine.grant(asker.party(), withdraw, &resource, draft).await;
        settled(&mut standing, recorded)?;
        standing.approvals.withdraw(id);
        self.count(&mut standing, &approval.of.action, "withdrawn");
        Ok(approval)
    }

    /// The approval that was taken back before, as it was given.
    async fn withdrawn_before(&self, gone: &Entry) -> Result<Approval, Problem> {
        let untold = || Code::Internal.because("the log does not tell which approval it was");
        let id = gone.body().find_text("approval").ok_or_else(untold)?;
        let whom = Object::Person(gone.person().ok_or_else(untold)?);
        let is = |entry: &Entry| entry.body().find_text("approval") == Some(id);
        let store = &self.engine.parts().store;
        let given =
            store.find_one(&whom, Some(Kind::ApprovalGiven), is).await.map_err(unreadable)?;
        Approval::read(&given.ok_or_else(untold)?).map_err(|e| Code::Internal.because(e))
    }

    /// Decides over what a person takes to a place, by who has approved it, and records that; `rows` become durable with it if it
    /// is allowed.
    ///
    /// # Errors
    /// As [`Engine::grant`].
    pub async fn grant(
        &self,
        who: (Party<'_>, Person),
        taken: &Taken<'_>,
        draft: Draft,
        rows: Vec<Change>,
    ) -> Result<Committed, Problem> {
        let mut standing = self.standing().await?;
        let (decision, counted) = self.decide(&standing, who, taken).await?;
        let wanting = !decision.allow && {
            let policy = &self.engine.parts().policy;
            policy.wants_approval(who.0, taken.action, taken.resource, &with(who.0, taken))
        };
        let draft =
            if counted.is_empty() { draft } else { draft.texts("approvals", counted.clone()) };
        let recorded = self.engine.record_with(taken.action, decision, draft, rows).await;
        // Nobody takes an approval back between what was counted and the entry that says so.
        if wanting {
            self.count(&mut standing, taken.action.as_str(), "missing");
        }
        if recorded.is_ok() && !counted.is_empty() {
            standing.used.extend(counted);
            self.count(&mut standing, taken.action.as_str(), "used");
        }
        drop(standing);
        Ok(recorded?.1)
    }

    /// Counts what became of an approval, and tells who watches which of them wait.
    fn count(&self, standing: &mut Standing, action: &str, outcome: &str) {
        let Standing { approvals, used, .. } = standing;
        keep_in_force(used, approvals);
        self.engine.parts().metrics.approval(action, outcome);
        tell(&self.engine, standing);
    }

    /// Whether it would be allowed now, by who has approved it. Nothing is recorded: [`Self::grant`] is asked in any case.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn would_grant(
        &self,
        who: (Party<'_>, Person),
        taken: &Taken<'_>,
    ) -> Result<bool, Problem> {
        let standing = self.standing().await?;
        Ok(self.decide(&standing, who, taken).await?.0.allow)
    }

    /// The decision, and the names of the approvals that it counts.
    async fn decide(
        &self,
        standing: &Standing,
        (who, person): (Party<'_>, Person),
        taken: &Taken<'_>,
    ) -> Result<(Decision, Vec<String>), Problem> {
        let study = match taken.resource {
            Resource::Study(id, _) => Some((*id).clone()),
            Resource::Service => None,
        };
        // Whoever submitted a study approves no promotion of what it learned.
        let submitter = match (&study, taken.promotion) {
            (Some(study), Some(_)) => Some(self.engine.study(study)?.meta.submitted_by.clone()),
            _ => None,
        };
        let of = Approved {
            action: taken.action.as_str().to_owned(),
            study,
            promotion: taken.promotion,
            place: taken.to.clone(),
            person,
        };
        let persons = &self.engine.parts().persons;
        let mut given = Vec::new();
        for approval in standing.approvals.of(&of).filter(|approval| approval.giver != person) {
            if submitter.as_ref() == Some(&Object::Person(approval.giver).to_string()) {
                continue;
            }
            // Whoever was erased or revoked is not heard.
            let giver = persons.identity(approval.giver).filter(|id| !self.trusted.is_revoked(id));
            if let Some(giver) = giver {
                let roles = self.roles(approval.giver).await?;
                given.push(Given { approval: approval.id.clone(), giver, roles });
            }
        }
        let policy = &self.engine.parts().policy;
        Ok(policy.decide_approved(who, taken.action, taken.resource, &with(who, taken), given))
    }

    /// The roles of whoever gave an approval: those with which they did what they did last.
    async fn roles(&self, giver: Person) -> Result<Roles, Problem> {
        let (store, _) = self.engine.parts().shards.newest();
        let term = actor_term(&Object::Person(giver));
        let Some(newest) = store.newest_of(&term, &[]).await.map_err(unreadable)? else {
            return Ok(Roles::NONE);
        };
        let rows = store.entries(newest, newest + 1, 1, None).await.map_err(unreadable)?;
        let entry = rows.first().and_then(|(_, bytes, _)| Entry::parse(bytes).ok());
        let roles = entry.and_then(|entry| entry.actor_roles().ok().flatten());
        Ok(roles.unwrap_or(Roles::NONE))
    }

    fn read(&self, asker: Asker<'_>, asked: &Asked<'_>) -> Result<Read, Problem> {
        let malformed = |e: &dyn std::fmt::Display| Code::Malformed.because(e);
        let action = Action::TAKING.into_iter().find(|action| action.as_str() == asked.action);
        let action = action.ok_or_else(|| {
            malformed(&"what is approved is `model.read`, `log.export` or `version.promote`: say which as `action`")
        })?;
        let mut submitter = None;
        let study = match (action, asked.study) {
            (Action::ModelRead | Action::VersionPromote, Some(study)) => {
                let id: StudyId = study.parse().map_err(|_| {
                    Code::UnknownStudy
                        .because("there is no such study; `falaj study list` shows those there are")
                })?;
                let handle = self.engine.study(&id)?;
                submitter = Some(handle.meta.submitted_by.clone());
                Some((id, handle.meta.study.privacy.mechanism.as_str().to_owned()))
            }
            (Action::LogExport, None) => None,
            _ => {
                return Err(malformed(
                    &"`study` is said of `model.read` and `version.promote`, and only of those",
                ));
            }
        };
        let promotion = match (action, asked.version, asked.stage) {
            (Action::VersionPromote, Some(version), Some(stage)) => {
                let stage = stage.parse().map_err(|e| malformed(&format!("`stage`: {e}")))?;
                Some(Promotion { version, stage })
            }
            (Action::ModelRead | Action::LogExport, None, None) => None,
            _ => {
                return Err(malformed(
                    &"`version` and `stage` are said of `version.promote`, and only of that",
                ));
            }
        };
        let whom: SpiffeId = asked
            .whom
            .parse()
            .map_err(|_| malformed(&"`for` is whoever is to act, by SPIFFE ID"))?;
        if !is_person(&whom) || whom.trust_domain() != asker.id.trust_domain() {
            return Err(malformed(&"`for` is an operator of this federation"));
        }
        if whom == *asker.id {
            return Err(malformed(&"nobody approves for themselves: ask another person"));
        }
        let place = match asked.place {
            Some(place) => place.parse().map_err(|e| malformed(&format!("`place`: {e}")))?,
            None => whom.place().clone(),
        };
        let ttl = asked.ttl_s.map_or(TTL, Duration::from_secs);
        if !(Duration::from_secs(1)..=TTL_MAX).contains(&ttl) {
            let most = TTL_MAX.as_secs();
            return Err(malformed(&format!("an approval counts for 1 to {most} seconds")));
        }
        Ok(Read { action, study, submitter, promotion, whom, place, ttl })
    }

    /// Records a request that cannot be carried out, without its words: why it is refused.
    async fn refuse_unread(&self, asker: Asker<'_>, action: Action, problem: Problem) -> Problem {
        let draft = Draft::new(Kind::AdminRead).actor(asker.actor);
        let granted = self.engine.grant(asker.party(), action, &Resource::Service, draft);
        granted.await.err().unwrap_or(problem)
    }
}

/// What policies look at beside who, what and of which study.
fn with<'a>(who: Party<'a>, taken: &Taken<'a>) -> With<'a> {
    let stage = taken.promotion.map_or("", |promotion| promotion.stage.as_str());
    With { destination: taken.to, stage, ..With::of(who.id) }
}

/// Tells who watches which approvals wait to be used.
fn tell(engine: &Engine, standing: &Standing) {
    let waiting = standing.approvals.all().filter(|approval| !standing.used.contains(&approval.id));
    let waiting = waiting.map(|approval| (approval.of.action.clone(), approval.until));
    engine.parts().metrics.approvals_waiting(waiting.collect());
}

fn ms(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}

/// What was recorded; what the log has not taken in time it may take yet.
fn settled<T>(standing: &mut Standing, recorded: Result<T, Problem>) -> Result<T, Problem> {
    standing.in_doubt |= recorded.as_ref().is_err_and(|e| e.code == Code::LogUnavailable);
    recorded
}

/// Which of these were counted where something was allowed, as the log says.
async fn used(engine: &Engine, approvals: &approvals::Approvals) -> Result<BTreeSet<String>> {
    let (store, _) = engine.parts().shards.newest();
    let mut used = BTreeSet::new();
    // An approval is counted for the person whom it names, and after it was given.
    let mut since: BTreeMap<Person, u64> = BTreeMap::new();
    for approval in approvals.all() {
        let first = since.entry(approval.of.person).or_insert(approval.index);
        *first = approval.index.min(*first);
    }
    for (person, first) in since {
        for kind in [Kind::ModelRead, Kind::LogExported, Kind::VersionPromoted] {
            let terms = [actor_term(&Object::Person(person))].into();
            let mut wanted = Wanted { terms, kind: Some(kind), from: first, below: u64::MAX };
            loop {
                let found = store.find(&wanted, PAGE).await?;
                for (_, bytes, _) in &found.entries {
                    let entry = Entry::parse(bytes)?;
                    used.extend(entry.approvals()?.into_iter().map(str::to_owned));
                }
                match found.next {
                    Some(next) => wanted.from = next,
                    None => break,
                }
            }
        }
    }
    keep_in_force(&mut used, approvals);
    Ok(used)
}

/// Forgets which approvals were used that are in force no longer.
fn keep_in_force(used: &mut BTreeSet<String>, approvals: &approvals::Approvals) {
    let in_force: BTreeSet<&str> = approvals.all().map(|approval| approval.id.as_str()).collect();
    used.retain(|id| in_force.contains(id.as_str()));
}

/// The approvals that the shard that is written tells of.
async fn read(engine: &Engine) -> Result<approvals::Approvals> {
    let (store, _) = engine.parts().shards.newest();
    let mut entries = Vec::new();
    for kind in [Kind::ApprovalGiven, Kind::ApprovalWithdrawn] {
        let mut from = 0;
        loop {
            let rows = store.entries(from, u64::MAX, PAGE, Some(kind.as_str())).await?;
            let Some((last, ..)) = rows.last() else { break };
            ensure!(*last >= from, "the database gives entries out of order");
            from = last + 1;
            for (_, bytes, _) in &rows {
                entries.push(Entry::parse(bytes)?);
            }
        }
    }
    entries.sort_by_key(|entry| entry.seq);
    let mut approvals = approvals::Approvals::default();
    for entry in &entries {
        approvals.take(entry)?;
    }
    Ok(approvals)
}
