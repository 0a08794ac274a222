//! Pruning: deleting the contents of a shard that has ended, under a written policy that the log keeps. Hashes stay, so that
//! every proof still verifies, and so do the entries that bind those who come later ([`Kind::KEPT`]).
//!
//! Whoever asks shows that they hold all that is deleted: the bundle that the log would export now. What there is to say of versions
//! is signed before. The log is the only memory: what was begun and is not done goes on at the next start.

use crate::{
    checkpointer::Checkpointer,
    engine::{problem_of, unreadable},
    erased::Erased,
    erasure::{Asker, Erasures, entries, refused, time_of, touches},
    export,
    policy::{Action, Resource},
    reports::hashed,
    store::{
        Store,
        writer::{Change, Commit},
    },
    versions,
};
use anyhow::{Context as _, Result};
use falaj_core::{
    audit::{
        Actor, Draft, Entry, Kind,
        erasure::{Acted, HeldObject, Hold, Kept, kept_by_term, term_end},
        objects::{Object, actor_term},
    },
    id::Digest,
    succession::LogKeys,
    time::Timestamp,
};
use falaj_proto::problem::{Code, Problem};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::Mutex;

/// Entries whose contents are deleted together.
const PAGE: u64 = 256;
/// The longest policy: the log has its lines in one entry.
const POLICY_BYTES_MAX: usize = 16 << 10;
/// The longest line of it, as long as texts in entries are.
const LINE_CHARS_MAX: usize = 1_000;
/// The longest term.
const MONTHS_MAX: u32 = 1_200;

/// A policy of retention, TOML.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetentionPolicy {
    /// For how many months a shard is kept after its last entry, at the least.
    keep_months: u32,
    /// By which article of law.
    article: String,
    /// Who decided so, and where that is written.
    #[expect(dead_code, reason = "read by people, in the log")]
    decided_by: String,
}

/// What was pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Entries of the shard.
    pub entries: u64,
    /// The entry that says so.
    pub index: u64,
}

/// Prunes shards. A cheap handle.
#[derive(Clone)]
pub struct Prunings {
    erasures: Erasures,
    /// The policy's file, read anew each time; without one nothing is pruned.
    policy: Option<Arc<Path>>,
    /// Whoever has it is the only one who prunes.
    one_at_a_time: Arc<Mutex<()>>,
}

impl Prunings {
    /// Finishes what was begun and not done, by a crash or because the log took the intent late, but for what a hold keeps by now.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub async fn open(erasures: Erasures, policy: Option<PathBuf>) -> Result<Self> {
        let policy = policy.map(Into::into);
        let this = Self { erasures, policy, one_at_a_time: Arc::default() };
        let parts = this.erasures.engine().parts();
        let mut done = BTreeSet::new();
        for entry in entries(this.erasures.engine(), Kind::PruningPerformed).await? {
            done.insert(entry.body().text("log")?.to_owned());
        }
        let standing = this.erasures.standing().await?;
        for entry in entries(this.erasures.engine(), Kind::PruningBegun).await? {
            let origin = entry.body().text("log")?.to_owned();
            if !done.insert(origin.clone()) {
                continue;
            }
            let (store, _) = parts.shards.find(&origin).with_context(|| {
                format!("entry {} prunes {origin}, which is not there", entry.seq)
            })?;
            if let Some(kept) = this.held(store, standing.all()).await? {
                tracing::warn!(shard = origin, begun = entry.seq, %kept, "a pruning that was begun does not go on: start again when the hold is released");
                continue;
            }
            this.finish(store, &entry, None).await?;
            tracing::info!(shard = origin, "a pruning that was interrupted is done");
        }
        drop(standing);
        Ok(this)
    }

    /// Deletes the contents of the shard with this origin. `bundle` is the digest of what was exported of it. The intent is
    /// durable before anything is deleted. What was begun under the same key and is not done is done now.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::Pruned`], [`Code::Conflict`] when another bundle would be exported now, and
    /// [`Code::LegalHold`] or [`Code::Retained`] with the article and the day, which the log has too; why versions cannot be
    /// signed, or the log cannot take an entry. Nothing is deleted then.
    pub async fn prune(
        &self,
        asker: Asker<'_>,
        (origin, bundle): (&str, &Digest),
        (scratch, checkpointer): (&Path, &Checkpointer),
        now: Timestamp,
    ) -> Result<Pruned, Problem> {
        // Whoever may not do it makes nobody write a bundle.
        let policy = &self.erasures.engine().parts().policy;
        if !policy.decide(asker.party(), Action::LogPrune, &Resource::Service).allow {
            let denied = Code::Denied.because("policy does not permit this");
            return Err(self.erasures.refuse_unread(asker, Action::LogPrune, denied).await);
        }
        let _one_at_a_time = self.one_at_a_time.lock().await;
        if let Some(begun) = asker.came_before(self.erasures.engine(), Action::LogPrune).await? {
            return self.pruned_before(asker, &begun).await;
        }
        let read = async {
            let policy = self.read_policy()?;
            let shard = self.shard(origin).await?;
            self.check_bundle(shard, bundle, (scratch, checkpointer)).await?;
            versions::before_pruning(self.erasures.engine(), checkpointer, &shard.0).await?;
            Ok((policy, shard))
        };
        let ((policy, text), (store, _)) = match read.await {
            Ok(read) => read,
            Err(problem) => {
                return Err(self.erasures.refuse_unread(asker, Action::LogPrune, problem).await);
            }
        };
        let size = store.size().await.map_err(unreadable)?;
        let begun = {
            // No hold is placed between the look and the intent.
            let standing = self.erasures.standing().await?;
            let kept = match self.held(store, standing.all()).await? {
                Some(hold) => Some(hold),
                None => self.kept(store, size, &policy, now).await?,
            };
            if let Some(kept) = kept {
                return Err(self.refuse(asker, origin, kept).await);
            }
            let draft = asker
                .makes(Kind::PruningBegun)
                .text("log", origin)
                .text("article", &policy.article)
                .text("bundle_sha256", &bundle.to_string())
                .texts("policy", text.split('\n').map(str::to_owned))
                .text("policy_sha256", &Digest::of(text.as_bytes()).to_string())
                .count("entries", size);
            self.erasures.grant(asker, Action::LogPrune, draft).await?
        };
        let begun = self.intent(begun).await.map_err(|e| unfinished(&e, origin))?;
        let index = self.finish(store, &begun, Some(asker.actor)).await?;
        Ok(Pruned { entries: size, index })
    }

    /// Records that something keeps a shard: why it is not pruned.
    async fn refuse(&self, asker: Asker<'_>, origin: &str, kept: Kept) -> Problem {
        let draft = Draft::new(Kind::PruningRefused).actor(asker.actor).text("log", origin);
        let (draft, code) = refused(draft, &kept);
        let recorded = self.erasures.grant(asker, Action::LogPrune, draft).await;
        recorded.err().unwrap_or_else(|| code.because(kept))
    }

    /// What was pruned by what this entry began. If that is not done it goes on, unless a hold was placed meanwhile; terms were
    /// over when it was begun.
    async fn pruned_before(&self, asker: Asker<'_>, begun: &Entry) -> Result<Pruned, Problem> {
        let untold = |e: anyhow::Error| {
            tracing::error!(error = %format!("{e:#}"), "what was pruned cannot be read");
            Code::Internal.because("the coordinator cannot read its log")
        };
        let engine = self.erasures.engine();
        let origin = begun.body().text("log").map_err(|e| untold(e.into()))?;
        let size = begun.body().int("entries").map_err(|e| untold(e.into()))?;
        let done = entries(engine, Kind::PruningPerformed).await.map_err(untold)?;
        let done = done.iter().find(|done| done.body().text("log") == Ok(origin));
        if let Some(done) = done {
            return Ok(Pruned { entries: size, index: done.seq });
        }
        let found = engine.parts().shards.find(origin);
        let (store, _) = found.with_context(|| format!("{origin} is not there")).map_err(untold)?;
        {
            let standing = self.erasures.standing().await?;
            if let Some(kept) = self.held(store, standing.all()).await? {
                return Err(self.refuse(asker, origin, kept).await);
            }
        }
        let index = self.finish(store, begun, Some(asker.actor)).await?;
        Ok(Pruned { entries: size, index })
    }

    /// The entry at this place of the shard that is written.
    async fn intent(&self, index: u64) -> Result<Entry> {
        let (newest, _) = self.erasures.engine().parts().shards.newest();
        let rows = newest.entries(index, index + 1, 1, None).await?;
        let (_, bytes, _) = rows.first().context("the intent is gone")?;
        Ok(Entry::parse(bytes)?)
    }

    /// Does what was begun; the entry that says so.
    async fn finish(
        &self,
        store: &Store,
        begun: &Entry,
        by: Option<&Actor>,
    ) -> Result<u64, Problem> {
        let emptied = async {
            self.empty(store).await?;
            performed(begun)
        };
        let origin = store.shard().origin.as_deref().unwrap_or_default();
        let draft = emptied.await.map_err(|e| unfinished(&e, origin))?;
        let draft = by.into_iter().fold(draft, Draft::actor);
        let done = self.erasures.engine().parts().writer.record(vec![draft]).await;
        Ok(done.map_err(|e| problem_of(&e))?.first)
    }

    /// The policy, and its text.
    fn read_policy(&self) -> Result<(RetentionPolicy, String), Problem> {
        let path = self.policy.as_deref().ok_or_else(|| {
            Code::NotFound.because("this coordinator keeps everything: a written policy, which `log.retention` in its configuration names, lets shards be pruned")
        })?;
        let wrong = |why: String| {
            tracing::error!(policy = %path.display(), why, "nothing is pruned");
            Code::Unavailable.because(
                "the policy in `log.retention` cannot be used; the coordinator's messages say why",
            )
        };
        let text = fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        if text.len() > POLICY_BYTES_MAX {
            return Err(wrong(format!("it has more than {POLICY_BYTES_MAX} bytes")));
        }
        if text.split('\n').any(|line| line.chars().count() > LINE_CHARS_MAX) {
            return Err(wrong(format!("a line of it has more than {LINE_CHARS_MAX} characters")));
        }
        let policy: RetentionPolicy = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if !(1..=MONTHS_MAX).contains(&policy.keep_months) {
            return Err(wrong(format!("`keep_months` is not from 1 to {MONTHS_MAX}")));
        }
        Ok((policy, text))
    }

    /// A shard that can be pruned.
    async fn shard(&self, origin: &str) -> Result<&(Store, LogKeys), Problem> {
        let found = self.erasures.engine().parts().shards.find(origin);
        let shard = found.ok_or_else(|| {
            Code::NotFound
                .because("the log has no such shard; `falaj log shards` lists those there are")
        })?;
        if !shard.0.ended() {
            return Err(Code::Retained
                .because("this shard is still written: only one that has ended is pruned"));
        }
        shard.0.check_whole().await.map_err(unreadable)?;
        Ok(shard)
    }

    /// Whether a bundle is what would be exported now: it is made once more, and hashed.
    async fn check_bundle(
        &self,
        (store, keys): &(Store, LogKeys),
        bundle: &Digest,
        (scratch, checkpointer): (&Path, &Checkpointer),
    ) -> Result<(), Problem> {
        let parts = self.erasures.engine().parts();
        let persons = parts.persons.now();
        let made = async {
            let file = tempfile::Builder::new().prefix("prune-").tempfile_in(scratch)?;
            let (size, note) = store.newest_checkpoint().await?.context("no checkpoint")?;
            let erased =
                Erased::after((store, size), &persons, &parts.shards, checkpointer).await?;
            let from = (store, &persons, &erased);
            export::write(from, keys, &note, size, None, &[], file.path()).await?;
            let (made, _) = hashed(file.path()).await?;
            Ok::<_, anyhow::Error>(made)
        };
        let made = made.await.map_err(|e| {
            tracing::error!(error = %format!("{e:#}"), "a bundle to compare with cannot be made");
            Code::Internal.because("the bundle to compare with cannot be made")
        })?;
        if made != *bundle {
            return Err(Code::Conflict.because(format!(
                "the bundle that you hold, {bundle}, is not what is exported of this shard now, {made}: export it again, without a time-stamp, verify that, and keep it"
            )));
        }
        Ok(())
    }

    /// A hold that covers something in a shard.
    async fn held(
        &self,
        store: &Store,
        holds: impl Iterator<Item = &Hold>,
    ) -> Result<Option<Kept>, Problem> {
        for hold in holds {
            let terms = match &hold.object {
                HeldObject::Study(study) => vec![study.to_string()],
                HeldObject::Person(person) => {
                    let person = Object::Person(*person);
                    vec![actor_term(&person), person.to_string()]
                }
            };
            for term in terms {
                if touches(store, [term].into()).await? {
                    return Ok(Some(Kept::Hold(hold.clone())));
                }
            }
        }
        Ok(None)
    }

    /// A term that is not over: the policy's, counted from the shard's last entry, or that of a study in it.
    async fn kept(
        &self,
        store: &Store,
        size: u64,
        policy: &RetentionPolicy,
        now: Timestamp,
    ) -> Result<Option<Kept>, Problem> {
        let mut acted = Vec::new();
        for handle in self.erasures.engine().studies() {
            let study = &handle.meta.study;
            if touches(store, [study.id.to_string()].into()).await? {
                let over = handle.view().state != "running";
                let last = if over { self.erasures.last(&study.id).await? } else { None };
                let (study, retention) = (study.id.clone(), study.governance.retention);
                acted.push(Acted { study, retention, last });
            }
        }
        if let Some(kept) = kept_by_term(now, &acted) {
            return Ok(Some(kept));
        }
        let last = size.saturating_sub(1);
        let rows = store.entries(last, last + 1, 1, None).await.map_err(unreadable)?;
        let ended = rows.first().and_then(|(_, bytes, _)| time_of(&Entry::parse(bytes).ok()?));
        let ended =
            ended.ok_or_else(|| Code::Internal.because("the shard's end cannot be read"))?;
        let until = term_end(ended, policy.keep_months);
        let article = policy.article.clone();
        Ok((until > now.to_string()).then_some(Kept::Shard { article, until }))
    }

    /// Deletes the contents of a shard, page by page; it goes on where it was interrupted.
    async fn empty(&self, store: &Store) -> Result<()> {
        let writer = &self.erasures.engine().parts().writer;
        let (shard, size) = (store.shard(), store.size().await?);
        writer.commit(rows(Change::Prune(shard.clone()))).await?;
        let mut from = 0;
        while from < size {
            let below = size.min(from + PAGE);
            writer.commit(rows(Change::Empty(shard.clone(), from, below))).await?;
            from = below;
        }
        Ok(())
    }
}

/// What is answered about a pruning that the log has begun, and that is not done.
fn unfinished(error: &anyhow::Error, origin: &str) -> Problem {
    tracing::error!(error = %format!("{error:#}"), shard = origin, "a shard cannot be pruned");
    Code::Internal.because("the pruning was begun, and the coordinator could not finish it: it goes on when the same request comes again, and at the next start")
}

fn rows(change: Change) -> Commit {
    Commit { rows: vec![change], ..Commit::default() }
}

/// The entry that says that what this one began is done.
fn performed(begun: &Entry) -> Result<Draft> {
    let body = begun.body();
    let mut draft = Draft::new(Kind::PruningPerformed).count("entries", body.int("entries")?);
    for key in ["log", "article", "bundle_sha256", "policy_sha256"] {
        draft = draft.text(key, body.text(key)?);
    }
    Ok(draft)
}
