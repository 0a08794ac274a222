//! Revoking: what is in the log is in force, whatever becomes of whoever asked.

use super::world::{PATIENCE, REVOKED, World, revocation, trusted};
use anyhow::{Context as _, Result, bail, ensure};
use axum::http::Request;
use falaj_coordinator::{erasure::Asker, revocations::Revocations};
use falaj_core::audit::Kind;

/// Shows TLS-02: the entry and what it says come together, also for an operator who hangs up in between.
#[tokio::test]
async fn an_operator_who_hangs_up_has_revoked_all_the_same() -> Result<()> {
    let world = World::new().await?;
    let mut heads = world.writer.heads();
    let before = world.writer.head().0;
    let request = Request::post("/api/v1/revocations").body(revocation(REVOKED).into())?;
    // The request is on its way, and nobody waits for its answer.
    tokio::select! {
        biased;
        answer = world.ask(request, &world.operator) => bail!("answered at once: {answer:?}"),
        () = std::future::ready(()) => {}
    }
    loop {
        let entries = world.entries(before).await?;
        if entries.iter().any(|e| e.kind == Kind::CertificateRevoked) {
            break;
        }
        tokio::time::timeout(PATIENCE, heads.changed()).await.context("no entry")??;
    }
    let all = world.revocations.all().await;
    ensure!(all.len() == 1 && all[0].subject.to_string() == REVOKED, "{all:?}");
    Ok(())
}

/// What the log took after all, when whoever asked had been told that it is in doubt.
#[tokio::test]
async fn what_is_in_the_log_is_in_force_once_it_is_read_again() -> Result<()> {
    let world = World::new().await?;
    let trusted = trusted(world.dir.path())?;
    let other = Revocations::open(world.engine.clone(), trusted.clone()).await?;
    let operator = world.operator.actor.id.as_ref().context("an operator")?;
    let asker = Asker { id: operator, actor: &world.operator.actor, once: None };
    let site = world.site.identity()?;
    let subject = site.spiffe.to_string();
    world.revocations.revoke(asker, &subject, "key lost").await?;
    ensure!(trusted.standing(site, trusted.generation()).is_ok(), "nobody has read it yet");
    other.read_again().await?;
    let why = trusted.standing(site, trusted.generation()).err().context("it is revoked")?;
    ensure!(why.reason == "revoked", "{why:?}");
    world.revocations.reinstate(asker, &subject, "found again").await?;
    other.read_again().await?;
    ensure!(
        trusted.standing(site, trusted.generation()).is_ok() && other.all().await.is_empty(),
        "it is reinstated"
    );
    Ok(())
}
