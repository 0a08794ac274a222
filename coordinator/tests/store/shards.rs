//! Who speaks for the log after whom: other keys, and shards that go on from one another, on each database (AUD-11).

use super::Home;
use anyhow::{Context as _, Result, ensure};
use ed25519_dalek::SigningKey;
use falaj_coordinator::{
    checkpointer::Checkpointer,
    clock,
    config::{LogConfig, RetiringConfig},
    fsck,
    metrics::Metrics,
    persons::Persons,
    proofs,
    shards::{self, Keys, Opened, Shards},
    store::{
        Store, StoreError,
        objects::Wanted,
        row::{Stamped, StudyRow, TimestampRow},
        writer::{Change, Commit},
    },
};
use falaj_core::{
    audit::{Draft, Entry, Kind},
    id::Digest,
    merkle::{leaf_hash, verify_inclusion},
    note::{Checkpoint, NoteSigner},
    succession::{Succession, follow},
    time::Timestamp,
};
use std::{path::PathBuf, sync::Arc};

const OLD: &str = "falaj.test/audit/2026";
const NEW: &str = "falaj.test/audit/2027";
/// More entries than a tile holds.
const MANY: usize = 300;

fn signer(origin: &str, seed: u8) -> Arc<NoteSigner> {
    let key = SigningKey::from_bytes(&[seed; 32]);
    Arc::new(NoteSigner::new(origin, key).expect("a name"))
}

/// How a coordinator is configured: a shard, the key that signs, and the one before while it retires.
#[derive(Clone)]
struct Setup {
    origin: &'static str,
    key: u8,
    /// The seed of the second key, of ML-DSA-44.
    second: Option<u8>,
    retiring: Option<(u8, Timestamp)>,
    high_water: Option<PathBuf>,
}

impl Setup {
    fn new(origin: &'static str, key: u8) -> Self {
        Self { origin, key, second: None, retiring: None, high_water: None }
    }

    fn signer(&self) -> Arc<NoteSigner> {
        let signer = signer(self.origin, self.key);
        let Some(second) = self.second else { return signer };
        let renamed = signer.renamed(self.origin).expect("a name");
        Arc::new(renamed.with_ml_dsa(&[second; 32]).expect("built with the feature"))
    }

    /// Starts as the coordinator does, up to its first entry.
    async fn open(&self, home: &Home) -> Result<Opened> {
        let retiring =
            self.retiring.map(|(_, until)| RetiringConfig { key: (&PathBuf::new()).into(), until });
        let (key, high_water) = (None, self.high_water.clone());
        let config = LogConfig {
            origin: self.origin.into(),
            key,
            retiring,
            high_water,
            ml_dsa_key: None,
            timestamps: None,
            reports: None,
            retention: None,
            witnesses: Vec::new(),
        };
        let retiring = self.retiring.map(|(seed, _)| signer(self.origin, seed));
        let keys = Keys { signer: self.signer(), retiring };
        let kept = self.high_water.as_deref().filter(|path| path.exists());
        let kept = kept.map(std::fs::read_to_string).transpose()?;
        let there = Store::open(&home.database()).await?;
        let metrics = Arc::new(Metrics::default());
        shards::open(there, &config, &keys, kept.as_deref(), "the coordinator", &metrics).await
    }

    /// Starts, and writes its first entry.
    async fn start(&self, home: &Home) -> Result<Opened> {
        let mut opened = self.open(home).await?;
        let entries = vec![Draft::new(Kind::CoordinatorStarted)];
        let mut commit = Commit { entries, ..Commit::default() };
        if let Some(begins) = opened.begins.take() {
            begins.put(&mut commit);
        }
        opened.writer.commit(commit).await?;
        Ok(opened)
    }

    fn checkpointer(&self, opened: &Opened) -> Checkpointer {
        let new = Checkpointer::new(opened.writer.clone(), self.signer(), self.high_water.clone());
        match self.retiring {
            Some((seed, until)) => new.beside(signer(self.origin, seed), until),
            None => new,
        }
    }

    /// Starts, works for a while, has its log signed, and ends. Gives the last checkpoint.
    async fn work(&self, home: &Home, entries: usize) -> Result<String> {
        let opened = self.start(home).await?;
        opened.writer.record(vec_of(entries)).await?;
        Ok(self.checkpointer(&opened).sign().await?.1)
    }

    /// Everything in the database is whole.
    async fn whole(&self, home: &Home) -> Result<Vec<u64>> {
        let store = Store::read(&home.database()).await?;
        let mut sizes = Vec::new();
        for shard in store.shards().await? {
            let signer = self.signer();
            let keys = (signer.verifier(), signer.ml_dsa());
            let found = fsck::check(&shard, keys, &Persons::default(), None, |_| {}).await?;
            ensure!(found.faults.is_empty(), "{:?}", found.faults);
            ensure!(found.checkpoints > 0, "nothing was signed");
            sizes.push(found.entries);
        }
        Ok(sizes)
    }
}

fn vec_of(entries: usize) -> Vec<Draft> {
    (0..entries).map(|_| Draft::new(Kind::AdminRead)).collect()
}

fn later() -> Timestamp {
    clock::now().plus_ms(3_600_000)
}

async fn refusal(setup: &Setup, home: &Home) -> String {
    match setup.open(home).await {
        Ok(_) => "it started".into(),
        Err(e) => format!("{e:#}"),
    }
}

/// The kinds of a shard's entries that are not reads.
async fn kinds(store: &Store) -> Result<Vec<Kind>> {
    let entries = store.entries(0, u64::MAX, 1 << 20, None).await?;
    let mut kinds = Vec::new();
    for (i, (seq, bytes, _)) in entries.iter().enumerate() {
        let entry = Entry::parse(bytes)?;
        ensure!(*seq == i as u64 && entry.seq == *seq, "an entry calls itself {}", entry.seq);
        kinds.push(entry.kind);
    }
    kinds.retain(|kind| *kind != Kind::AdminRead);
    Ok(kinds)
}

/// AUD-11.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_replaced_while_both_sign_and_no_entry_is_lost() -> Result<()> {
    for home in Home::each().await? {
        let (first, second) = (signer(OLD, 1), signer(OLD, 2));
        Setup::new(OLD, 1).work(&home, MANY).await?;
        let unannounced = refusal(&Setup::new(OLD, 2), &home).await;
        ensure!(unannounced.contains("log.retiring"), "{unannounced}");
        let rotating = Setup { retiring: Some((1, later())), ..Setup::new(OLD, 2) };
        let note = rotating.work(&home, 5).await?;
        // Whoever knows either key opens what is signed meanwhile.
        for key in [&first, &second] {
            Checkpoint::open(&note, key.verifier())?;
        }
        // Starting again does not replace it again, and when its time is over the old key signs no more.
        let over = Setup { retiring: Some((1, clock::now())), ..rotating.clone() };
        let note = over.work(&home, 5).await?;
        Checkpoint::open(&note, second.verifier())?;
        ensure!(Checkpoint::open(&note, first.verifier()).is_err(), "{note}");
        let done = Setup::new(OLD, 2);
        done.work(&home, 5).await?;
        ensure!(done.whole(&home).await? == [MANY as u64 + 21]);
        let store = Store::read(&home.database()).await?;
        let rotated = [Kind::LogOpened, Kind::CoordinatorStarted, Kind::KeyRotated];
        ensure!(kinds(&store).await?.starts_with(&rotated));
        // The old key leads to the new one, and that one vouches for what the old one signed.
        let statements = store.successions(None).await?;
        ensure!(follow(first.verifier(), second.verifier(), &statements)?.len() == 1);
        let back = refusal(&Setup::new(OLD, 1), &home).await;
        ensure!(back.contains("cannot be read"), "{back}");
    }
    Ok(())
}

/// AUD-11.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_ends_and_the_next_one_begins_with_its_last_checkpoint() -> Result<()> {
    for home in Home::each().await? {
        let (before, after) = (Setup::new(OLD, 1), Setup::new(NEW, 1));
        before.work(&home, MANY).await?;
        after.work(&home, MANY + 100).await?;
        let sizes = [MANY as u64 + 3, MANY as u64 + 102];
        ensure!(after.whole(&home).await? == sizes);
        let store = Store::read(&home.database()).await?;
        let shards = Shards::load(&store, after.signer().verifier()).await?;
        let (old, old_keys) = shards.find(OLD).context("the old shard")?;
        let (new, new_keys) = shards.newest();
        ensure!(old.ended() && !new.ended());
        ensure!(kinds(old).await? == [Kind::LogOpened, Kind::CoordinatorStarted, Kind::LogClosed]);
        ensure!(kinds(new).await? == [Kind::LogOpened, Kind::CoordinatorStarted]);
        // The first entry of the one has the last checkpoint of the other.
        let (_, bytes, _) = new.entries(0, 1, 1, None).await?.remove(0);
        let opened = Entry::parse(&bytes)?;
        let (size, last) = old.newest_checkpoint().await?.context("a checkpoint")?;
        ensure!(opened.body().text("checkpoint")? == last && size == sizes[0]);
        let step = Succession::open(opened.body().text("succession")?)?;
        let last = Checkpoint::open(&last, &step.from)?;
        ensure!(step.ended == Some((size, last.root_hash)));
        ensure!(step.from.name() == OLD && step.to == *after.signer().verifier());
        // Every entry of both is proven, under the keys of its own shard.
        for (shard, keys, size) in [(old, old_keys, sizes[0]), (new, new_keys, sizes[1])] {
            let (signed, note) = shard.newest_checkpoint().await?.context("a checkpoint")?;
            let head = keys.open(&note)?;
            ensure!(signed == size && head.tree_size == size);
            let entries = shard.entries(0, size, 1 << 20, None).await?;
            let indices: Vec<u64> = entries.iter().map(|(seq, ..)| *seq).collect();
            let found = proofs::inclusions(shard, &indices, size).await?;
            for ((seq, _, leaf), proof) in entries.iter().zip(&found) {
                verify_inclusion(leaf, *seq, size, proof, &head.root_hash)?;
            }
        }
        ensure!(
            Checkpoint::open(&old.newest_checkpoint().await?.context("one")?.1, &step.to).is_err()
        );
        // No entry is earlier than one of the shard before.
        let (_, ended, _) = old.entries(size - 1, size, 1, None).await?.remove(0);
        ensure!(Entry::parse(&ended)?.ts <= opened.ts);
        let back = refusal(&before, &home).await;
        ensure!(back.contains("has ended") && back.contains(NEW), "{back}");
        after.work(&home, 1).await?;
        ensure!(after.whole(&home).await? == [sizes[0], sizes[1] + 2]);
    }
    Ok(())
}

/// AUD-11.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_shards_that_was_cut_off_is_made_up_for_and_no_study_is_torn() -> Result<()> {
    for home in Home::each().await? {
        let elsewhere = tempfile::tempdir()?;
        let kept = Some(elsewhere.path().join("log.checkpoint"));
        let before = Setup { high_water: kept.clone(), ..Setup::new(OLD, 1) };
        let after = Setup { high_water: kept, ..Setup::new(NEW, 1) };
        let opened = before.start(&home).await?;
        let (id, yaml) = ("s".parse()?, b"name: s".to_vec());
        let study = StudyRow {
            sha256: Digest::of(&yaml),
            id,
            yaml,
            state: "running".into(),
            reason: None,
            submitted: Timestamp::from_millis(0),
            submitted_by: "spiffe://t/ae-on/ae-az/operator/sara".into(),
        };
        let over = Change::StudyState(study.id.clone(), "finished", None);
        let rows = vec![Change::Study(study)];
        opened.writer.commit(Commit { rows, ..Commit::default() }).await?;
        before.checkpointer(&opened).sign().await?;
        drop(opened);
        let torn = refusal(&after, &home).await;
        ensure!(torn.contains("the study `s` still runs"), "{torn}");
        let opened = before.start(&home).await?;
        opened.writer.commit(Commit { rows: vec![over], ..Commit::default() }).await?;
        drop(opened);
        // Closed, and killed before the next shard had an entry: twice.
        for _ in 0..2 {
            drop(after.open(&home).await?);
        }
        let closed = refusal(&before, &home).await;
        ensure!(closed.contains(&format!("{NEW} goes on from it")), "{closed}");
        let elsewhere = Setup { origin: "falaj.test/audit/2028", ..after.clone() };
        let elsewhere = refusal(&elsewhere, &home).await;
        ensure!(elsewhere.contains(&format!("closed for {NEW}")), "{elsewhere}");
        // Killed before the new shard was signed: what is kept elsewhere is still of the old one.
        drop(after.start(&home).await?);
        after.work(&home, 3).await?;
        let sizes = after.whole(&home).await?;
        ensure!(sizes == [4, 6], "{sizes:?}");
        let store = Store::read(&home.database()).await?;
        let old = store.shards().await?.remove(0);
        let closings = kinds(&old).await?;
        ensure!(closings.iter().filter(|kind| **kind == Kind::LogClosed).count() == 1);
    }
    Ok(())
}

/// AUD-05, across shards.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_from_before_the_shard_that_is_kept_elsewhere_does_not_start() -> Result<()> {
    for home in Home::each().await? {
        let elsewhere = tempfile::tempdir()?;
        let kept = elsewhere.path().join("log.checkpoint");
        let before = Setup { high_water: Some(kept.clone()), ..Setup::new(OLD, 1) };
        before.work(&home, 3).await?;
        let newer = Checkpoint { origin: NEW.into(), tree_size: 2, root_hash: Digest::of(b"root") };
        std::fs::write(&kept, signer(NEW, 1).sign(&newer.body())?)?;
        let after = Setup { high_water: Some(kept), ..Setup::new(NEW, 1) };
        let refused = refusal(&after, &home).await;
        ensure!(refused.contains("an older database was restored"), "{refused}");
        ensure!(refused.contains(NEW), "{refused}");
    }
    Ok(())
}

/// AUD-13: a time-stamp is of one shard, and its size and index are those of the shard.
#[tokio::test]
async fn time_stamps_lie_in_the_shard_that_they_are_of() -> Result<()> {
    for home in Home::each().await? {
        let mut sizes = Vec::new();
        for origin in [OLD, NEW] {
            let setup = Setup::new(origin, 1);
            let opened = setup.start(&home).await?;
            ensure!(opened.store.newest_timestamp().await?.is_none(), "another shard's");
            for _ in 0..2 {
                let (tree_size, note) = setup.checkpointer(&opened).current(&opened.store).await?;
                let row = TimestampRow {
                    what: Stamped::Checkpoint,
                    imprint: Digest::of(note.as_bytes()),
                    tree_size,
                    authority: "CN=Authority".into(),
                    stamped: clock::now(),
                    answer: origin.as_bytes().to_vec(),
                    log_index: 0,
                    committed: clock::now(),
                };
                let rows = vec![Change::Timestamp(row)];
                let entries = vec![Draft::new(Kind::CheckpointStamped)];
                let done = opened.writer.commit(Commit { rows, entries, round: None }).await?;
                sizes.push((origin, tree_size, done.first));
            }
        }
        let mut found = Vec::new();
        let store = Store::read(&home.database()).await?;
        for (shard, origin) in store.shards().await?.into_iter().zip([OLD, NEW]) {
            let all = shard.timestamps(0, u64::MAX, 10).await?;
            ensure!(all.iter().all(|row| row.answer == origin.as_bytes()), "another shard's");
            found.extend(all.iter().map(|row| (origin, row.tree_size, row.log_index)));
            let [first, second] = &all[..] else { anyhow::bail!("{all:?}") };
            let one = shard.timestamps(0, second.log_index, 10).await?;
            ensure!(one.len() == 1, "the second stamp's entry is beyond");
            let one = shard.timestamps(first.tree_size, u64::MAX, 1).await?;
            ensure!(one.first().map(|row| row.tree_size) == Some(second.tree_size));
            let newest = shard.newest_timestamp().await?.context("a stamp")?;
            ensure!(newest.tree_size == second.tree_size);
        }
        assert_eq!(found, sizes);
        for statement in ["UPDATE log_timestamps SET authority = ''", "DELETE FROM log_timestamps"]
        {
            let refused = home.owner(statement).await?;
            ensure!(refused.is_err_and(|e| e.contains("append-only")), "{statement}");
        }
    }
    Ok(())
}

/// CMP-04: contents go only where a pruning was begun, and then hashes stay: every proof still verifies, also after a restart,
/// and whoever asks for contents is told that they are deleted.
#[tokio::test(flavor = "multi_thread")]
async fn contents_of_a_shard_go_only_when_its_pruning_was_begun_and_hashes_stay() -> Result<()> {
    for home in Home::each().await? {
        let (before, after) = (Setup::new(OLD, 1), Setup::new(NEW, 1));
        before.work(&home, MANY).await?;
        let opened = after.start(&home).await?;
        after.checkpointer(&opened).sign().await?;
        let shards = opened.store.shards().await?;
        let [old, new] = &shards[..] else { anyhow::bail!("{} shards", shards.len()) };
        let (size, entries) = (old.size().await?, old.entries(0, u64::MAX, 1 << 20, None).await?);
        let change = async |change: Change| {
            let commit = Commit { rows: vec![change], ..Commit::default() };
            opened.writer.commit(commit).await
        };
        let all = |of: &Store| Change::Empty(of.shard().clone(), 0, u64::MAX);
        ensure!(change(all(old)).await.is_err(), "no pruning was begun");
        change(Change::Prune(old.shard().clone())).await?;
        ensure!(change(all(new)).await.is_err(), "it is another shard");
        for statement in [
            "UPDATE log_entries SET kind = 'x'",
            "UPDATE log_entries SET bytes = leaf WHERE seq = 5",
            "DELETE FROM log_entries",
            "UPDATE log_prunings SET shard = 1",
            "DELETE FROM log_prunings",
        ] {
            let refused = home.owner(statement).await?;
            ensure!(refused.is_err_and(|e| e.contains("append-only")), "{statement}");
        }
        ensure!(old.entries(0, u64::MAX, 1 << 20, None).await? == entries, "something is gone");
        ensure!(new.entries(0, u64::MAX, 10, None).await?.len() == 2);
        // Page by page, and again from the beginning, as after a crash.
        for _ in 0..2 {
            for (from, below) in [(0, 200), (200, size)] {
                change(Change::Empty(old.shard().clone(), from, below)).await?;
            }
        }
        drop(opened);
        after.work(&home, 5).await?;
        let store = Store::read(&home.database()).await?;
        let old = store.shards().await?.remove(0);
        ensure!(matches!(old.entries(0, 10, 10, None).await, Err(StoreError::Pruned)));
        let wanted = Wanted { below: u64::MAX, ..Wanted::default() };
        ensure!(matches!(old.find(&wanted, 1).await, Err(StoreError::Pruned)));
        ensure!(store.pruned().await.is_ok_and(|pruned| !pruned) && old.pruned().await?);
        // What is kept is found by its kind, and nothing else is.
        for kind in Kind::ALL {
            let of_kind = |rows: &[(u64, Vec<u8>, Digest)]| -> Result<Vec<u64>> {
                let mut found = Vec::new();
                for (index, bytes, _) in rows {
                    if Entry::parse(bytes)?.kind == *kind {
                        found.push(*index);
                    }
                }
                Ok(found)
            };
            let there = old.entries(0, u64::MAX, 1 << 20, Some(kind.as_str())).await?;
            let wanted = if Kind::KEPT.contains(kind) { of_kind(&entries)? } else { Vec::new() };
            ensure!(of_kind(&there)? == wanted, "{kind}");
        }
        // Every entry that somebody holds is still proven.
        let keys = Shards::load(&store, after.signer().verifier()).await?;
        let (_, keys) = keys.find(OLD).context("the old shard")?;
        let head = keys.open(&old.newest_checkpoint().await?.context("a checkpoint")?.1)?;
        let indices: Vec<u64> = (0..size).collect();
        let found = proofs::inclusions(&old, &indices, size).await?;
        for ((seq, bytes, _), proof) in entries.iter().zip(&found) {
            verify_inclusion(&leaf_hash(bytes), *seq, size, proof, &head.root_hash)?;
        }
        let signer = after.signer();
        let found =
            fsck::check(&old, (signer.verifier(), None), &Persons::default(), None, |_| {}).await?;
        ensure!(found.faults.is_empty() && found.pruned == size - 2, "{found:?}");
        // A hash that was changed with the contents gone is still noticed.
        home.rewrite("UPDATE log_entries SET leaf = (SELECT leaf FROM log_entries WHERE seq = 9) WHERE seq = 8")
            .await?;
        let found =
            fsck::check(&old, (signer.verifier(), None), &Persons::default(), None, |_| {}).await?;
        ensure!(!found.faults.is_empty(), "nobody noticed");
    }
    Ok(())
}

/// AUD-04: an access of which nothing is told yet when its shard is closed is unknown in that shard, and no other speaks of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_shard_owes_is_told_before_it_is_closed() -> Result<()> {
    for home in Home::each().await? {
        let opened = Setup::new(OLD, 1).start(&home).await?;
        let exported = opened.writer.record(vec![Draft::new(Kind::LogExported)]).await?.first;
        drop(opened);
        let opened = Setup::new(NEW, 1).start(&home).await?;
        let shards = opened.store.shards().await?;
        let [old, new] = &shards[..] else { anyhow::bail!("{} shards", shards.len()) };
        let told = [Kind::LogOpened, Kind::CoordinatorStarted, Kind::LogExported];
        let told = [&told[..], &[Kind::AccessServed, Kind::LogClosed]].concat();
        ensure!(kinds(old).await? == told, "{:?}", kinds(old).await?);
        let owed = old.entries(0, u64::MAX, 1, Some(Kind::AccessServed.as_str())).await?;
        let entry = Entry::parse(&owed.first().context("an outcome")?.1)?;
        ensure!(entry.body().int("intent") == Ok(exported));
        ensure!(entry.body().text("outcome") == Ok("unknown"));
        ensure!(kinds(new).await? == [Kind::LogOpened, Kind::CoordinatorStarted]);
    }
    Ok(())
}

/// AUD-11.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_replaced_and_the_next_shard_begins_in_one_start() -> Result<()> {
    for home in Home::each().await? {
        Setup::new(OLD, 1).work(&home, 3).await?;
        let both = Setup { retiring: Some((1, later())), ..Setup::new(NEW, 2) };
        let note = both.work(&home, 3).await?;
        let (before, after) = (signer(OLD, 1), signer(NEW, 2));
        Checkpoint::open(&note, after.verifier())?;
        ensure!(both.whole(&home).await? == [7, 5]);
        // The old shard says which key follows which, and is closed by the new one.
        let store = Store::read(&home.database()).await?;
        let shards = Shards::load(&store, after.verifier()).await?;
        let (old, keys) = shards.find(OLD).context("the old shard")?;
        let expected =
            [Kind::LogOpened, Kind::CoordinatorStarted, Kind::KeyRotated, Kind::LogClosed];
        ensure!(kinds(old).await? == expected);
        let (_, last) = old.newest_checkpoint().await?.context("a checkpoint")?;
        Checkpoint::open(&last, signer(OLD, 2).verifier())?;
        ensure!(keys.open(&last)?.tree_size == 7);
        ensure!(follow(before.verifier(), after.verifier(), shards.statements())?.len() == 2);
        // The next start, which still names the old key, replaces nothing again.
        both.work(&home, 1).await?;
        let sizes = both.whole(&home).await?;
        ensure!(sizes == [7, 7], "{sizes:?}");
        let store = Store::read(&home.database()).await?.shards().await?.remove(1);
        let kinds = kinds(&store).await?;
        ensure!(!kinds.contains(&Kind::KeyRotated), "{kinds:?}");
    }
    Ok(())
}

/// Every checkpoint is signed by both keys, in each shard; a second key that changes is refused, as is one that is gone.
#[cfg(feature = "ml-dsa")]
#[tokio::test(flavor = "multi_thread")]
async fn a_second_key_signs_every_checkpoint_and_stays_as_long_as_the_log() -> Result<()> {
    for home in Home::each().await? {
        let first = Setup::new(OLD, 1).work(&home, 3).await?;
        let with = |origin| Setup { second: Some(9), ..Setup::new(origin, 1) };
        let (old, new) = (with(OLD).signer(), with(NEW).signer());
        let (old, new) = (old.ml_dsa().context("a key")?, new.ml_dsa().context("a key")?);
        ensure!(old.signed(&first)?.is_none(), "it was not there yet");
        let opened = with(OLD).start(&home).await?;
        let checkpointer = with(OLD).checkpointer(&opened);
        let (size, note) = checkpointer.sign().await?;
        old.require(&note)?;
        // One size has one note: what is given out is what is kept, however often it is asked for.
        ensure!(checkpointer.clone().sign().await? == (size, note.clone()));
        ensure!(opened.store.checkpoint(size).await?.as_ref() == Some(&note));
        let keys = Shards::load(&opened.store, with(OLD).signer().verifier()).await?;
        ensure!(keys.beside(Some(old))?.newest().1.open(&note)?.tree_size == size);
        drop((opened, checkpointer));
        for (setup, why) in [
            (Setup { second: Some(8), ..with(OLD) }, "another key than the one that signed"),
            (Setup { second: Some(8), ..with(NEW) }, "another key than the one that signed"),
            (Setup::new(OLD, 1), "has no `log.ml_dsa_key`"),
            (Setup::new(NEW, 1), "has no `log.ml_dsa_key`"),
        ] {
            let refused = refusal(&setup, &home).await;
            ensure!(refused.contains(why), "{refused}");
        }
        let note = with(NEW).work(&home, 3).await?;
        new.require(&note)?;
        let store = Store::read(&home.database()).await?;
        let now = with(NEW).signer();
        let shards = Shards::load(&store, now.verifier()).await?.beside(Some(new))?;
        let (ended, keys) = shards.find(OLD).context("the old shard")?;
        let (_, last) = ended.newest_checkpoint().await?.context("a checkpoint")?;
        old.require(&last)?;
        ensure!(keys.ml_dsa() == Some(old));
        // What the new shard begins with is the old one's end, short enough for an entry.
        let (_, bytes, _) = shards.newest().0.entries(0, 1, 1, None).await?.remove(0);
        let opening = Entry::parse(&bytes)?;
        let said = Checkpoint::open(opening.body().text("checkpoint")?, signer(OLD, 1).verifier())?;
        ensure!(said == Checkpoint::open(&last, signer(OLD, 1).verifier())?);
        with(NEW).whole(&home).await?;
    }
    Ok(())
}
