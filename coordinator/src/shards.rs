//! Who speaks for the log after whom: another key of the same shard, or the next shard, which begins where the one before
//! ended. Both happen when the coordinator starts, before anybody is served, and a start that is cut off is made up for by
//! the next one.

use crate::{
    checkpointer::Checkpointer,
    config::LogConfig,
    metrics::Metrics,
    outcomes,
    store::{
        Store, Writing,
        writer::{self, Change, Commit, Writer},
    },
};
use anyhow::{Context as _, Result, bail, ensure};
use falaj_core::{
    audit::{Draft, Entry, Kind},
    ml_dsa::{self, MlDsaKey},
    note::{Checkpoint, NoteSigner, VerifierKey},
    succession::{LogKeys, ORIGIN_CHARS_MAX, Succession},
};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// The shards of the log, and who spoke for each. A cheap handle; neither changes while the coordinator runs.
#[derive(Clone)]
pub struct Shards {
    shards: Arc<[(Store, LogKeys)]>,
    statements: Arc<[String]>,
}

impl Shards {
    /// The shards that there are, when `now` is the key that signs the newest.
    ///
    /// # Errors
    /// When the store cannot be read, or nothing says who spoke for a shard.
    pub async fn load(store: &Store, now: &VerifierKey) -> Result<Self> {
        let statements = store.successions(None).await?;
        let mut shards = Vec::new();
        for shard in store.shards().await? {
            let origin = shard.shard().origin.as_deref().unwrap_or(now.name());
            let keys = LogKeys::of(origin, now, &statements)?;
            shards.push((shard, keys));
        }
        Ok(Self { shards: shards.into(), statements: statements.into() })
    }

    /// The same, each with a second key.
    ///
    /// # Errors
    /// When a shard's origin is too long for it.
    pub fn beside(self, ml_dsa: Option<&MlDsaKey>) -> Result<Self> {
        let Some(ml_dsa) = ml_dsa else { return Ok(self) };
        let beside = |(store, keys): &(Store, LogKeys)| {
            let second = ml_dsa.renamed(keys.newest().name())?;
            Ok((store.clone(), keys.clone().beside(Some(second))))
        };
        let shards = self.shards.iter().map(beside).collect::<Result<Vec<_>>>()?;
        Ok(Self { shards: shards.into(), ..self })
    }

    /// Each shard and its keys, oldest first.
    #[must_use]
    pub fn all(&self) -> &[(Store, LogKeys)] {
        &self.shards
    }

    /// The shard that is written.
    ///
    /// # Panics
    /// Never: there is always one.
    #[must_use]
    pub fn newest(&self) -> &(Store, LogKeys) {
        self.shards.last().expect("invariant: a log has a shard")
    }

    /// The shard with this origin, if there is one.
    #[must_use]
    pub fn find(&self, origin: &str) -> Option<&(Store, LogKeys)> {
        self.shards.iter().find(|(_, keys)| keys.newest().name() == origin)
    }

    /// The statements that lead from one key to the next, oldest first.
    #[must_use]
    pub fn statements(&self) -> &[String] {
        &self.statements
    }
}

/// The log's keys as they are configured.
pub struct Keys {
    /// The key that signs, under the origin of the shard that is written.
    pub signer: Arc<NoteSigner>,
    /// The key before, while both sign, or until the log says that it was replaced.
    pub retiring: Option<Arc<NoteSigner>>,
}

/// The log, ready to be written.
pub struct Opened {
    /// To read it.
    pub store: Store,
    /// To write it.
    pub writer: Writer,
    /// What the first commit has to write down, if the shard is new.
    pub begins: Option<Begins>,
}

/// What a new shard begins with.
pub struct Begins {
    row: Change,
    entry: Draft,
}

impl Begins {
    /// Puts it at the beginning of a commit.
    pub fn put(self, commit: &mut Commit) {
        commit.rows.insert(0, self.row);
        commit.entries.insert(0, self.entry);
    }
}

/// Opens the log that a configuration names: the shard that is there, under a new key if there is one, or the next shard.
///
/// # Errors
/// When the log is not the one that was signed, was closed, or cannot be closed yet.
pub async fn open(
    (store, writing): (Store, Writing),
    config: &LogConfig,
    keys: &Keys,
    kept: Option<&str>,
    coordinator: &str,
    metrics: &Arc<Metrics>,
) -> Result<Opened> {
    ensure!(
        config.origin.chars().count() <= ORIGIN_CHARS_MAX,
        "`log.origin` has more than {ORIGIN_CHARS_MAX} characters"
    );
    let newest = store.newest_checkpoint().await?;
    let there = match &newest {
        Some((_, note)) => {
            Some(Checkpoint::of_kept(note).context("the newest checkpoint cannot be read")?.origin)
        }
        None => store.shard().origin.clone(),
    };
    if let Some((_, note)) = &newest {
        check_second(note, &keys.signer)?;
    }
    let kept = check_kept(&store, there.as_deref(), kept).await?;
    let Some(there) = there else {
        ensure!(
            kept.is_none(),
            "`log.high_water` has a checkpoint, and there is no log: an empty database was put in place of the log's"
        );
        let (writer, service) = writer::open(writing, &keys.signer, None, metrics.clone()).await?;
        tokio::spawn(service.run());
        return Ok(begun(store, writer, coordinator, &config.origin, None));
    };
    let shards = store.shards().await?;
    let mut ended = shards.iter().filter_map(|s| s.shard().origin.as_deref());
    ensure!(
        there == config.origin || ended.all(|origin| origin != config.origin),
        "the log {} has ended, and {there} goes on from it: set `log.origin` to that",
        config.origin
    );
    if there == config.origin {
        if let Some(next) = closed_for(&store).await? {
            bail!(
                "the log {there} was closed, and {next} goes on from it: set `log.origin` to that"
            );
        }
        let (writer, _) = resume(writing, keys, kept.as_deref(), metrics).await?;
        write_down(&store, &writer, &there).await?;
        return Ok(Opened { store, writer, begins: None });
    }
    roll(store, writing, config, keys, (&there, kept.as_deref()), (coordinator, metrics)).await
}

/// A new shard, whose first commit is still to come.
fn begun(
    store: Store,
    writer: Writer,
    coordinator: &str,
    origin: &str,
    after: Option<(String, String)>,
) -> Opened {
    let mut entry = Draft::new(Kind::LogOpened).text("coordinator", coordinator);
    if let Some((note, statement)) = after {
        entry = entry.text("checkpoint", &note).text("succession", &statement);
    }
    let row = Change::Shard(origin.to_owned());
    Opened { store, writer, begins: Some(Begins { row, entry }) }
}

/// A second key stays for as long as the log does: whoever pinned it would otherwise take what comes for a forgery.
fn check_second(newest: &str, signer: &NoteSigner) -> Result<()> {
    if !ml_dsa::stands_under(newest)? {
        return Ok(());
    }
    let key = signer.ml_dsa().context(
        "the newest checkpoint has a second signature, by ML-DSA-44, and the configuration has no `log.ml_dsa_key`: name the key that was there before",
    )?;
    let key = key.renamed(&Checkpoint::of_kept(newest)?.origin)?;
    ensure!(
        key.signed(newest)?.is_some(),
        "`log.ml_dsa_key` is another key than the one that signed the newest checkpoint: restore it from a backup; a second key is not replaced while its log goes on"
    );
    Ok(())
}

/// What was kept elsewhere, if it is of the shard that is there. One of a shard before was the last that was kept of it.
async fn check_kept(
    store: &Store,
    there: Option<&str>,
    kept: Option<&str>,
) -> Result<Option<String>> {
    let Some(note) = kept else { return Ok(None) };
    let head = Checkpoint::of_kept(note).context("the checkpoint in `log.high_water`")?;
    if there.is_none_or(|there| head.origin == there) {
        return Ok(Some(note.to_owned()));
    }
    for shard in store.shards().await? {
        if shard.shard().origin.as_deref() == Some(&head.origin) {
            let signed = shard.checkpoint(head.tree_size).await?;
            let signed = signed.map(|note| Checkpoint::of_kept(&note)).transpose()?;
            ensure!(
                signed.as_ref() == Some(&head),
                "`log.high_water` has a checkpoint of {} entries of {} that is not in the database: another database was put in its place",
                head.tree_size,
                head.origin
            );
            return Ok(None);
        }
    }
    bail!(
        "`log.high_water` has a checkpoint of {} entries of {}, which the database does not know: an older database was restored",
        head.tree_size,
        head.origin
    )
}

/// Goes on in the shard that is there, under the key that is configured for it.
async fn resume(
    writing: Writing,
    keys: &Keys,
    kept: Option<&str>,
    metrics: &Arc<Metrics>,
) -> Result<(Writer, JoinHandle<Writing>)> {
    let signer = &keys.signer;
    let Some(before) = &keys.retiring else {
        let (writer, service) = writer::open(writing, signer, kept, metrics.clone()).await?;
        return Ok((writer, tokio::spawn(service.run())));
    };
    let statements = writing.store().successions(None).await?;
    let key = signer.verifier();
    // The newest statement says who speaks now; the key before may have done so under the name of an earlier shard alone.
    let newest = statements.last().map(|text| Succession::open(text)).transpose()?;
    let replaced = before.verifier() == key || newest.is_some_and(|step| step.to == *key);
    let opening = if replaced { signer } else { before };
    let store = &writing.store().clone();
    let (writer, service) = writer::open(writing, opening, kept, metrics.clone()).await?;
    let serving = tokio::spawn(service.run());
    if !replaced {
        ensure!(
            closed_for(store).await?.is_none(),
            "the log was closed: take `log.retiring` out until the next shard has begun"
        );
        let entry = Draft::new(Kind::KeyRotated)
            .text("from", &before.verifier().to_string())
            .text("to", &key.to_string())
            .text("succession", &Succession::sign(before, signer, None)?);
        writer.record(vec![entry]).await?;
        tracing::info!(from = %before.verifier(), to = %key, "another key signs the log");
    }
    Ok((writer, serving))
}

/// Writes down the origin of a log that was begun before there were shards.
async fn write_down(store: &Store, writer: &Writer, origin: &str) -> Result<()> {
    if store.shard().origin.is_none() {
        let rows = vec![Change::Shard(origin.to_owned())];
        writer.commit(Commit { rows, ..Commit::default() }).await?;
    }
    Ok(())
}

/// The shard for which this one was closed, if it was.
async fn closed_for(store: &Store) -> Result<Option<String>> {
    let Some(last) = store.size().await?.checked_sub(1) else { return Ok(None) };
    let entries = store.entries(last, last + 1, 1, Some(Kind::LogClosed.as_str())).await?;
    let Some((_, bytes, _)) = entries.first() else { return Ok(None) };
    Ok(Some(Entry::parse(bytes)?.body().text("next")?.to_owned()))
}

/// Closes the shard that is there and begins the next one. Studies do not go from one to the other: a round's entries lie
/// in one shard.
async fn roll(
    store: Store,
    writing: Writing,
    config: &LogConfig,
    keys: &Keys,
    (there, kept): (&str, Option<&str>),
    (coordinator, metrics): (&str, &Arc<Metrics>),
) -> Result<Opened> {
    let next = &config.origin;
    if let Some(study) = store.studies().await?.iter().find(|s| s.state == "running") {
        bail!(
            "`log.origin` is {next}, and the study `{}` still runs in {there}: set `log.origin` back to {there} until it ends",
            study.id
        );
    }
    // The same keys, under the name of the shard that ends.
    let named = |signer: &NoteSigner| signer.renamed(there).map(Arc::new);
    let retiring = keys.retiring.as_deref().map(named).transpose()?;
    let before = Keys { signer: named(&keys.signer)?, retiring };
    let (writer, serving) = resume(writing, &before, kept, metrics).await?;
    write_down(&store, &writer, there).await?;
    match closed_for(&store).await? {
        None => {
            outcomes::settle(&store, &writer).await?;
            writer.record(vec![Draft::new(Kind::LogClosed).text("next", next)]).await?;
        }
        Some(named) if named == *next => {}
        Some(named) => bail!("the log {there} was closed for {named}, not for {next}"),
    }
    let closing =
        Checkpointer::new(writer.clone(), before.signer.clone(), config.high_water.clone());
    let (size, note) = closing.current(&store).await?;
    drop((closing, writer));
    let mut writing = serving.await?;
    let head = Checkpoint::of_kept(&note)?;
    let statement = Succession::sign(&before.signer, &keys.signer, Some(&head))?;
    // A second signature does not fit into an entry; the bundle of the shard that ended has it.
    let note = before.signer.sign(&head.body())?;
    let store = writing.enter(store.shard().next(size, next));
    let (writer, service) = writer::open(writing, &keys.signer, None, metrics.clone()).await?;
    tokio::spawn(service.run());
    tracing::info!(from = there, entries = size, to = next, "the next shard of the log begins");
    Ok(begun(store, writer, coordinator, next, Some((note, statement))))
}
