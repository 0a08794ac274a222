//! What is sealed of people: in the transaction of its entry, never changed, and readable only with the person's key.

use super::{Home, signer};
use anyhow::{Context as _, Result, ensure};
use falaj_coordinator::{
    metrics::Metrics,
    persons::Persons,
    store::{
        Store,
        writer::{self, Commit, CommitError},
    },
};
use falaj_core::{
    audit::{Actor, Draft, Entry, Kind, objects::Object},
    id::Digest,
};
use std::sync::Arc;

/// AUD-09, on each database.
#[tokio::test]
async fn what_is_sealed_of_people_lies_beside_its_entry_and_opens_only_with_their_key() -> Result<()>
{
    for home in Home::each().await? {
        let dir = tempfile::tempdir()?;
        let persons = Persons::open(&dir.path().join("persons"))?;
        let (store, writing) = Store::open(&home.database()).await?;
        let metrics = Arc::new(Metrics::default());
        let (log, service) =
            writer::open(writing.sealing(persons.clone()), &signer(), None, metrics).await?;
        let serving = tokio::spawn(service.run());
        let id = "spiffe://t/ae-on/ae-az/operator/sara".parse()?;
        let person = persons.meet(&id)?;
        let actor = Actor {
            person: Some(person),
            id: Some(id),
            cert: Some(Digest::of(b"certificate")),
            address: Some("192.0.2.7:1".into()),
            ..Actor::default()
        };
        let draft = |kind| Draft::new(kind).actor(&actor);
        for _ in 0..2 {
            // The same certificate comes again and is kept once.
            let sealed = persons.seal_certificate(person, b"certificate");
            let entries = vec![Draft::new(Kind::PolicyLoaded), draft(Kind::AdminRead)];
            let rows = sealed.into_iter().collect();
            log.commit(Commit { round: None, rows, entries }).await?;
        }
        let rows = store.personal(0, u64::MAX).await?;
        ensure!(rows.iter().map(|(seq, ..)| *seq).eq([1, 3]), "{} rows", rows.len());
        ensure!(store.personal(2, 3).await?.is_empty(), "a row that was not asked for");
        for (seq, whose, sealed) in &rows {
            ensure!(*whose == person);
            let disclosure =
                persons.disclosure(person, *seq, sealed).context("it does not open")?;
            let (_, bytes, _) =
                store.entries(*seq, seq + 1, 1, None).await?.into_iter().next().context("there")?;
            let entry = Entry::parse(&bytes)?.disclosed(&disclosure)?;
            ensure!(entry.actor_id() == actor.id.as_ref() && entry.actor_cert() == actor.cert);
        }
        let certificates = store.personal_certificates().await?;
        let [(whose, tag, sealed)] = &certificates[..] else {
            anyhow::bail!("{} certificates", certificates.len())
        };
        let opened = persons.certificate(*whose, tag, sealed);
        ensure!(opened.as_deref() == Some(&b"certificate"[..]), "{opened:?}");
        for statement in ["UPDATE log_personal SET person = ''", "DELETE FROM log_personal"] {
            ensure!(home.owner(statement).await?.is_err(), "{statement} was done");
        }
        let term = Object::Person(person).to_string();
        ensure!(store.newest_of(&term, &[]).await? == Some(3));
        ensure!(store.newest_of(&term, &[Kind::AdminRead]).await?.is_none());
        ensure!(store.newest_of("nothing", &[]).await?.is_none());
        // From the erasure on nothing of theirs is written, but for the entry that says so.
        persons.forget(person)?;
        let size = log.head().0;
        let refused =
            log.record(vec![Draft::new(Kind::PolicyLoaded), draft(Kind::AdminRead)]).await;
        ensure!(matches!(refused, Err(CommitError::Erased)), "{refused:?}");
        ensure!(log.head().0 == size && persons.seal_certificate(person, b"x").is_none());
        log.record(vec![draft(Kind::ErasurePerformed).person(person)]).await?;
        let rows = store.personal(0, u64::MAX).await?;
        ensure!(rows.len() == 2, "{} rows", rows.len());
        ensure!(rows.iter().all(|(seq, p, sealed)| persons.disclosure(*p, *seq, sealed).is_none()));
        drop(log);
        serving.await?;
    }
    Ok(())
}
