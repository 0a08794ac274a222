//! Legal holds, and erasures, of which nobody was told that the log has them: what it says holds, and a hold comes first.

use super::{
    erasing::{asker, come},
    world::{OMAR, World},
};
use anyhow::{Context as _, Result, ensure};
use falaj_coordinator::{clock, erasure::Asker, once::Once};
use falaj_core::{
    audit::{Draft, Entry, Kind, person::Person},
    id::Digest,
};
use falaj_proto::problem::{Code, Problem};
use sqlx::{Connection as _, SqliteConnection};

const ARTICLE: &str = "Penal Procedure, Article 5";
/// A hold's name.
const HOLD: &str = "0123456789abcdef";

/// Asks for something while the log takes nothing: whoever asks is told that it is in doubt.
pub(super) async fn in_doubt<T>(
    world: &World,
    asked: impl Future<Output = Result<T, Problem>>,
) -> Result<()> {
    let mut other = SqliteConnection::connect_with(&world.pool().connect_options()).await?;
    let lock = other.begin_with("BEGIN IMMEDIATE").await?;
    let told = asked.await.err().context("the log takes nothing")?;
    ensure!(told.code == Code::LogUnavailable, "{told}");
    lock.rollback().await?;
    Ok(())
}

/// The log has an entry of a hold, of which whoever asked for it heard nothing.
pub(super) async fn late(world: &World, draft: Draft) -> Result<()> {
    let draft = draft.actor(&world.operator.actor).text("hold", HOLD).text("article", ARTICLE);
    world.writer.record(vec![draft]).await?;
    Ok(())
}

/// Who asks under a key.
pub(super) fn keyed<'a>(asker: Asker<'a>, key: &str) -> Asker<'a> {
    let once = Once { key: Digest::of(key.as_bytes()), request: Digest::of(b"the request") };
    Asker { once: Some(once), ..asker }
}

async fn erase(world: &World, asker: Asker<'_>) -> Result<(Person, u64), Problem> {
    world.erasures.erase(asker, OMAR, "Article 15", clock::now()).await
}

/// Entries of a kind.
async fn of(world: &World, kind: Kind) -> Result<Vec<Entry>> {
    let entries = world.entries(0).await?.into_iter();
    Ok(entries.filter(|entry| entry.kind == kind).collect())
}

/// CMP-04: a hold that the log took too late to be told of is listed, keeps whom it names, and can be released.
#[tokio::test]
async fn a_hold_that_the_log_took_late_stands() -> Result<()> {
    for listed in [false, true] {
        let world = World::new().await?;
        let sara = asker(&world.operator);
        let (_, person) = come(&world, "omar").await?;
        in_doubt(&world, world.erasures.place(sara, (Some(OMAR), None), ARTICLE)).await?;
        late(&world, Draft::new(Kind::HoldPlaced).person(person)).await?;
        if listed {
            let shown = world.get("holds").await?;
            let (all, hold) = (&shown["items"], &shown["items"][0]["hold"]);
            ensure!(all.as_array().is_some_and(|a| a.len() == 1) && hold == HOLD, "{shown}");
        }
        let refused = erase(&world, sara).await.err().context("a hold stands")?;
        ensure!(refused.code == Code::LegalHold && refused.detail.contains(HOLD), "{refused}");
        ensure!(world.persons.identity(person).is_some(), "erased all the same");
        let released = world.erasures.release(sara, HOLD).await?;
        ensure!(released.id == HOLD && released.article == ARTICLE, "{released:?}");
        ensure!(world.erasures.holds().await?.is_empty());
    }
    Ok(())
}

/// What was not taken after all stands nowhere.
#[tokio::test]
async fn a_hold_that_the_log_never_took_does_not_stand() -> Result<()> {
    let world = World::new().await?;
    let sara = asker(&world.operator);
    let (_, person) = come(&world, "omar").await?;
    in_doubt(&world, world.erasures.place(sara, (Some(OMAR), None), ARTICLE)).await?;
    // Nothing is shown while it is in doubt, and nobody erased.
    in_doubt(&world, world.erasures.holds()).await?;
    in_doubt(&world, erase(&world, sara)).await?;
    ensure!(world.erasures.holds().await?.is_empty());
    erase(&world, sara).await?;
    ensure!(world.persons.identity(person).is_none());
    Ok(())
}

/// A hold that is released, which nobody heard, keeps nobody.
#[tokio::test]
async fn a_release_that_the_log_took_late_is_one() -> Result<()> {
    let world = World::new().await?;
    let sara = asker(&world.operator);
    let (_, person) = come(&world, "omar").await?;
    let hold = world.erasures.place(sara, (Some(OMAR), None), ARTICLE).await?;
    in_doubt(&world, world.erasures.release(sara, &hold.id)).await?;
    let released = Draft::new(Kind::HoldReleased).actor(&world.operator.actor).person(person);
    let released = released.text("hold", &hold.id).text("article", ARTICLE);
    world.writer.record(vec![released]).await?;
    let again = world.erasures.release(sara, &hold.id).await.err().context("it is released")?;
    ensure!(again.code == Code::UnknownHold, "{again}");
    erase(&world, sara).await?;
    ensure!(world.persons.identity(person).is_none());
    Ok(())
}

/// An erasure of which nobody was told that the log has its intent.
async fn begun_late(world: &World) -> Result<Person> {
    let (_, person) = come(world, "omar").await?;
    let sara = keyed(asker(&world.operator), "late");
    let intent = sara.makes(Kind::ErasureBegun).person(person).text("article", "Article 15");
    world.writer.record(vec![intent]).await?;
    Ok(person)
}

/// AUD-04: who asks again is not sent away until the next start.
#[tokio::test]
async fn an_erasure_that_was_begun_goes_on_when_it_is_asked_for_again() -> Result<()> {
    let world = World::new().await?;
    let person = begun_late(&world).await?;
    let sara = keyed(asker(&world.operator), "late");
    let done = erase(&world, sara).await?;
    ensure!(done.0 == person && world.persons.identity(person).is_none());
    ensure!(erase(&world, sara).await? == done, "another answer");
    let performed = of(&world, Kind::ErasurePerformed).await?;
    let [one] = &performed[..] else { anyhow::bail!("{performed:?}") };
    ensure!(one.seq == done.1 && one.body().text("article") == Ok("Article 15"), "{one:?}");
    ensure!(of(&world, Kind::ErasureBegun).await?.len() == 1, "it was begun again");
    Ok(())
}

/// CMP-04: an erasure that was begun, and that a hold came before, waits until that is released, over restarts; then it goes on
/// at the next start, or when whoever wants it asks again, under the same key or another.
#[tokio::test]
async fn an_erasure_that_was_begun_waits_for_a_hold_that_was_placed_since() -> Result<()> {
    for key in [None, Some("late"), Some("another")] {
        let world = World::new().await?;
        let person = begun_late(&world).await?;
        let hold = world.erasures.place(asker(&world.operator), (Some(OMAR), None), ARTICLE);
        let hold = hold.await?;
        let World { dir, .. } = world;
        let world = World::over(dir).await?;
        let sara = asker(&world.operator);
        ensure!(world.persons.identity(person).is_some(), "erased past a hold");
        ensure!(of(&world, Kind::ErasurePerformed).await?.is_empty());
        ensure!(world.erasures.holds().await? == [hold.clone()], "the hold is gone");
        for asked in ["late", "another"] {
            let refused = erase(&world, keyed(sara, asked)).await.err().context("a hold stands")?;
            ensure!(refused.code == Code::LegalHold, "{refused}");
            ensure!(refused.detail.contains(&hold.id), "{refused}");
        }
        ensure!(of(&world, Kind::ErasureRefused).await?.len() == 2);
        world.erasures.release(sara, &hold.id).await?;
        ensure!(world.persons.identity(person).is_some(), "a release erases nobody by itself");
        let world = if let Some(key) = key {
            erase(&world, keyed(sara, key)).await?;
            world
        } else {
            let World { dir, .. } = world;
            World::over(dir).await?
        };
        ensure!(world.persons.identity(person).is_none(), "{key:?}: it does not go on");
        ensure!(of(&world, Kind::ErasurePerformed).await?.len() == 1, "{key:?}");
    }
    Ok(())
}
