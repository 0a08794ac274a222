//! What operators have revoked: certificates, and identities whatever their certificate.
//!
//! The log is the list: a revocation is its entry, and one that was taken back has another. Both are read when the
//! coordinator starts. People stand there by their pseudonyms, so that whoever is erased is on no list after the next start;
//! their issuer's revocation list, which has serial numbers only, goes on naming them.

use crate::{
    engine::{Engine, unreadable},
    erasure::{Asker, entries},
    policy::{Action, Resource},
    store::{
        StoreError,
        writer::{Commit, Committed},
    },
    trusted::{DENIED_MAX, Subject, Trusted},
};
use anyhow::Result;
use falaj_certs::identity::Identity;
use falaj_core::{
    audit::{Draft, Entry, Kind, person::is_person},
    id::SpiffeId,
};
use falaj_proto::problem::{Code, Problem};
use rustls_pki_types::CertificateDer;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::Mutex;

/// How long to wait before the log is asked again whether it has taken what was in doubt.
const RETRY: Duration = Duration::from_secs(1);
/// A reason is at most this long.
const REASON_CHARS_MAX: usize = 200;

/// One revocation that stands.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// Whom it is about.
    pub subject: Subject,
    /// Why, as whoever did it said.
    pub reason: String,
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// The entry that says so, in its shard of the log.
    pub index: u64,
}

impl Revocation {
    /// The one that an entry tells of.
    fn of(subject: Subject, entry: &Entry) -> Self {
        let reason = entry.body().text("reason").unwrap_or_default().to_owned();
        Self { subject, reason, at: entry.ts.clone(), index: entry.seq }
    }
}

/// Revokes, and knows what is revoked. A cheap handle.
#[derive(Clone)]
pub struct Revocations {
    engine: Engine,
    trusted: Trusted,
    /// Whoever has it is the only one who changes them.
    standing: Arc<Mutex<BTreeMap<Subject, Revocation>>>,
    /// Whether the log may have taken one that is not in force yet.
    in_doubt: Arc<AtomicBool>,
}

impl Revocations {
    /// Reads what stands from the log, and puts it in force.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn open(engine: Engine, trusted: Trusted) -> Result<Self> {
        let this = Self { engine, trusted, standing: Arc::default(), in_doubt: Arc::default() };
        this.read_again().await?;
        Ok(this)
    }

    /// Puts in force what the log says.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn read_again(&self) -> Result<()> {
        let mut standing = self.standing.lock().await;
        let mut all = entries(&self.engine, Kind::CertificateRevoked).await?;
        all.extend(entries(&self.engine, Kind::CertificateReinstated).await?);
        // Times order entries over all shards; of one moment, the log does.
        all.sort_by(|a, b| (&a.ts, a.seq).cmp(&(&b.ts, b.seq)));
        standing.clear();
        for entry in all {
            // Whoever was erased is nobody any more.
            let Some(subject) = subject(&self.engine, &entry) else { continue };
            if entry.kind == Kind::CertificateReinstated {
                standing.remove(&subject);
                continue;
            }
            standing.insert(subject.clone(), Revocation::of(subject, &entry));
        }
        self.put_in_force(&standing).await?;
        Ok(())
    }

    /// Denies whom they name, and the keys of certificates that they name.
    async fn put_in_force(
        &self,
        standing: &BTreeMap<Subject, Revocation>,
    ) -> Result<(), StoreError> {
        let subjects: BTreeSet<Subject> = standing.keys().cloned().collect();
        // At once, and whether their keys can be read or not.
        self.trusted.deny(subjects.clone(), None);
        let keys = keys_of(&self.engine, subjects.iter()).await?;
        self.trusted.deny(subjects, Some(keys));
        Ok(())
    }

    /// As [`Self::put_in_force`], of what the log has taken: what cannot be read now is read again until it can be.
    async fn take_up(&self, standing: &BTreeMap<Subject, Revocation>) {
        if let Err(e) = self.put_in_force(standing).await {
            tracing::error!(error = %e, "whose keys were revoked cannot be read; it is tried again");
            if !self.in_doubt.swap(true, Ordering::AcqRel) {
                tokio::spawn(self.clone().settle());
            }
        }
    }

    /// What the log has not taken in time it may take yet: once it takes anything again, what it says is put in force.
    async fn settle(self) {
        let shutdown = self.engine.shutdown().clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
            // Commits are made in their order: what was in doubt is decided when a later one is.
            if self.engine.parts().writer.commit(Commit::default()).await.is_ok() {
                // Before it is read: of what comes into doubt meanwhile another task takes care.
                self.in_doubt.store(false, Ordering::Release);
                match self.read_again().await {
                    Ok(()) => return,
                    Err(e) => {
                        tracing::error!(error = %format!("{e:#}"), "revocations cannot be read again");
                    }
                }
            }
        }
    }

    /// Records a revocation, or that it is taken back.
    async fn record(&self, asker: Asker<'_>, draft: Draft) -> Result<Committed, Problem> {
        let granted =
            self.engine.grant(asker.party(), Action::SiteRevoke, &Resource::Service, draft).await;
        if granted.as_ref().is_err_and(|problem| problem.code == Code::LogUnavailable)
            && !self.in_doubt.swap(true, Ordering::AcqRel)
        {
            tokio::spawn(self.clone().settle());
        }
        Ok(granted?.1)
    }

    /// What stands.
    pub async fn all(&self) -> Vec<Revocation> {
        self.standing.lock().await.values().cloned().collect()
    }

    /// Revokes a certificate, or an identity whatever its certificate. Whoever is connected by it is ended at once. This must
    /// be run to its end: what is in the log and not yet in force would be so only after the next start.
    ///
    /// # Errors
    /// [`Code::Malformed`], [`Code::UnknownCertificate`], or why the log cannot take the entry: nothing is revoked then.
    pub async fn revoke(
        &self,
        asker: Asker<'_>,
        subject: &str,
        reason: &str,
    ) -> Result<Revocation, Problem> {
        let mut standing = self.standing.lock().await;
        if let Some(revoked) = asker.came_before(&self.engine, Action::SiteRevoke).await? {
            return self.told_by(&revoked);
        }
        let read = match self.read(subject).and_then(|s| Ok((s, checked(reason)?))) {
            Ok(_) if standing.len() >= DENIED_MAX => {
                Err(Code::Busy.because(format!("{DENIED_MAX} revocations stand already")))
            }
            Ok((subject, reason)) => self.known(&subject).await.map(|()| (subject, reason)),
            Err(problem) => Err(problem),
        };
        let (subject, reason) = match read {
            Ok(read) => read,
            Err(problem) => return Err(self.refuse_unread(asker, problem).await),
        };
        let draft = self.about(Kind::CertificateRevoked, asker, &subject).await?;
        let draft = draft.text("reason", reason);
        let committed = self.record(asker, draft).await?;
        let (at, index) = (committed.at.to_string(), committed.first);
        let done = Revocation { subject: subject.clone(), reason: reason.to_owned(), at, index };
        standing.insert(subject, done.clone());
        self.take_up(&standing).await;
        Ok(done)
    }

    /// Takes a revocation back. This must be run to its end.
    ///
    /// # Errors
    /// [`Code::Malformed`], [`Code::UnknownCertificate`] when none stands, or why the log cannot take the entry.
    pub async fn reinstate(
        &self,
        asker: Asker<'_>,
        subject: &str,
        reason: &str,
    ) -> Result<Revocation, Problem> {
        let mut standing = self.standing.lock().await;
        if let Some(reinstated) = asker.came_before(&self.engine, Action::SiteRevoke).await? {
            return self.reinstated_before(&reinstated).await;
        }
        let read = self.read(subject).and_then(|subject| {
            if self.engine.parts().policy.broken().is_some() {
                return Err(Code::Denied.because(
                    "while the glass is broken nothing that was revoked is let in again",
                ));
            }
            let none = || {
                Code::UnknownCertificate.because(
                    "nothing of this name was revoked; `falaj site revocations` shows what was",
                )
            };
            Ok((standing.get(&subject).cloned().ok_or_else(none)?, checked(reason)?))
        });
        let (was, reason) = match read {
            Ok(read) => read,
            Err(problem) => return Err(self.refuse_unread(asker, problem).await),
        };
        let draft = self.about(Kind::CertificateReinstated, asker, &was.subject).await?;
        let draft = draft.text("reason", reason);
        self.record(asker, draft).await?;
        standing.remove(&was.subject);
        self.take_up(&standing).await;
        Ok(was)
    }

    /// The revocation that an entry tells of.
    fn told_by(&self, entry: &Entry) -> Result<Revocation, Problem> {
        let erased = || Code::UnknownPerson.because("whoever this was about was erased since");
        Ok(Revocation::of(subject(&self.engine, entry).ok_or_else(erased)?, entry))
    }

    /// The revocation that this entry takes back, as it was.
    async fn reinstated_before(&self, reinstated: &Entry) -> Result<Revocation, Problem> {
        let whom = self.told_by(reinstated)?.subject;
        let mut all = entries(&self.engine, Kind::CertificateRevoked).await.map_err(|e| {
            tracing::error!(error = %format!("{e:#}"), "revocations cannot be read again");
            Code::Internal.because("the coordinator cannot read its log")
        })?;
        let is_of = |entry: &Entry| subject(&self.engine, entry).as_ref() == Some(&whom);
        let place = |entry: &Entry| (entry.ts.clone(), entry.seq);
        all.retain(|entry| place(entry) < place(reinstated) && is_of(entry));
        let was = all.iter().max_by_key(|entry| place(entry));
        self.told_by(was.unwrap_or(reinstated))
    }

    /// Whom a text names. People are named by their identity here, and by their pseudonym in the log.
    fn read(&self, text: &str) -> Result<Subject, Problem> {
        let subject: Subject = text.parse().map_err(|e| Code::Malformed.because(e))?;
        if let Subject::Identity(id) = &subject {
            let now = self.trusted.now();
            let ours = now.trust().trust_domain();
            if id.trust_domain() != ours {
                return Err(Code::Malformed.because(format!("this federation is `{ours}`")));
            }
        }
        Ok(subject)
    }

    /// Whether a certificate has been seen here, so that a wrong digest is noticed. Those of people are not named in the log,
    /// and their digests are none that it knows.
    async fn known(&self, subject: &Subject) -> Result<(), Problem> {
        let Subject::Certificate(digest) = subject else { return Ok(()) };
        if self.engine.parts().store.certificate(digest).await.map_err(unreadable)?.is_some() {
            return Ok(());
        }
        Err(Code::UnknownCertificate.because(
            "no site has come with this certificate: name an identity, or put the digest on the list in `revocation.deny`; people are revoked by their identity",
        ))
    }

    /// The entry about a subject, which names people by their pseudonyms.
    async fn about(
        &self,
        kind: Kind,
        asker: Asker<'_>,
        subject: &Subject,
    ) -> Result<Draft, Problem> {
        let draft = asker.makes(kind);
        Ok(match subject {
            Subject::Certificate(digest) => draft.digest("cert_sha256", digest),
            Subject::Identity(id) if is_person(id) => {
                draft.person(crate::accept::meet(&self.engine.parts().persons, id).await?)
            }
            Subject::Identity(id) => draft.text("identity", &id.to_string()),
        })
    }

    /// Records a request that cannot be carried out, without its words: why it is refused.
    async fn refuse_unread(&self, asker: Asker<'_>, problem: Problem) -> Problem {
        let (who, action) = (asker.party(), Action::SiteRevoke);
        if problem.code == Code::Denied {
            let draft = Draft::new(Kind::AccessDenied).actor(asker.actor);
            return self.engine.deny(who, action, &Resource::Service, draft, problem).await;
        }
        let draft = Draft::new(Kind::AdminRead).actor(asker.actor);
        let granted = self.engine.grant(who, action, &Resource::Service, draft);
        granted.await.err().unwrap_or(problem)
    }
}

/// The keys of the certificates among these subjects: whoever's certificate is denied could come with another one about its key.
///
/// # Errors
/// When a certificate cannot be read from the database.
pub(crate) async fn keys_of(
    engine: &Engine,
    subjects: impl Iterator<Item = &Subject>,
) -> Result<BTreeSet<[u8; 32]>, StoreError> {
    let mut keys = BTreeSet::new();
    for subject in subjects {
        let Subject::Certificate(digest) = subject else { continue };
        let der = engine.parts().store.certificate(digest).await?;
        let identity = der.and_then(|der| Identity::parse(&CertificateDer::from(der)).ok());
        keys.extend(identity.map(|identity| identity.public_key));
    }
    Ok(keys)
}

/// Whom an entry is about; nobody when it is a person who was erased.
fn subject(engine: &Engine, entry: &Entry) -> Option<Subject> {
    if let Some(person) = entry.person() {
        return engine.parts().persons.identity(person).map(Subject::Identity);
    }
    let body = entry.body();
    let identity = body.parsed::<SpiffeId>("identity").map(Subject::Identity);
    identity.or_else(|_| body.parsed("cert_sha256").map(Subject::Certificate)).ok()
}

/// A reason, as it goes into the log.
fn checked(reason: &str) -> Result<&str, Problem> {
    let chars = reason.chars().count();
    let fits = (1..=REASON_CHARS_MAX).contains(&chars) && !reason.chars().any(char::is_control);
    if fits {
        return Ok(reason);
    }
    Err(Code::Malformed
        .because(format!("`reason` has 1 to {REASON_CHARS_MAX} characters and one line")))
}
