//! Conformance: what the store promises, on each database that it can live in. What only a server has (roles, sessions,
//! crashes) is in [`postgres`].

mod beside;
mod people;
mod postgres;
mod server;
mod shards;

use anyhow::{Context as _, Result, ensure};
use ed25519_dalek::SigningKey;
use falaj_coordinator::{
    checkpointer::Checkpointer,
    fsck,
    metrics::Metrics,
    persons::Persons,
    proofs,
    store::{
        self, Database, Shard, Store, Writing,
        objects::{Named, Wanted},
        row::{ExchangeRow, ModelRow, StudyRow, UpdateRow},
        writer::{self, Change, Commit, CommitError, Writer},
    },
};
use falaj_core::{
    audit::{Draft, Entry, Kind},
    gate::patience::{Best, Progress},
    id::{Digest, RoundId},
    merkle::{verify_consistency, verify_inclusion},
    note::NoteSigner,
    registry::version::{self, Registry},
    round::{AnyRound, Event, RoundSpec, step},
    time::Timestamp,
};
use server::Server;
use sqlx::{AssertSqlSafe, ConnectOptions as _, sqlite::SqliteConnectOptions};
use std::{fs, sync::Arc};
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};

pub(crate) fn signer() -> Arc<NoteSigner> {
    let key = SigningKey::from_bytes(&[9; 32]);
    Arc::new(NoteSigner::new("falaj.test/log", key).expect("a name"))
}

/// A database of one kind.
pub(crate) enum Home {
    Sqlite(TempDir),
    Postgres(Arc<Server>, u32),
}

/// A store with its writer.
pub(crate) struct Running {
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    serving: JoinHandle<Writing>,
}

impl Running {
    pub(crate) async fn open(database: &Database, kept: Option<&str>) -> Result<Self> {
        let (store, writing) = Store::open(database).await?;
        let metrics = Arc::new(Metrics::default());
        let (writer, service) = writer::open(writing, &signer(), kept, metrics).await?;
        Ok(Self { store, writer, serving: tokio::spawn(service.run()) })
    }

    /// Ends as the coordinator does: what waits is written first.
    pub(crate) async fn close(self) -> Result<()> {
        drop(self.writer);
        self.serving.await?;
        Ok(())
    }

    pub(crate) async fn record(&self, entries: usize) -> Result<u64, CommitError> {
        let drafts = (0..entries).map(|_| Draft::new(Kind::AdminRead)).collect();
        Ok(self.writer.record(drafts).await?.first)
    }
}

impl Home {
    /// Fresh databases, one of each kind.
    async fn each() -> Result<Vec<Self>> {
        let mut homes = vec![Self::Sqlite(tempfile::tempdir()?)];
        if let Some(server) = Server::shared()? {
            homes.push(Self::on(server).await?);
        }
        Ok(homes)
    }

    /// A fresh database on a server, set up by its owner.
    pub(crate) async fn on(server: Arc<Server>) -> Result<Self> {
        let n = server.database().await?;
        let owner = server.options(&format!("owner_{n}"), &format!("falaj_{n}"));
        let done = store::init(&owner, &format!("writer_{n}")).await?;
        ensure!(done.created, "the role was there");
        Ok(Self::Postgres(server, n))
    }

    pub(crate) fn database(&self) -> Database {
        match self {
            Self::Sqlite(dir) => Database::Sqlite(dir.path().join("coordinator.sqlite")),
            Self::Postgres(server, n) => Database::Postgres(Box::new(
                server.options(&format!("writer_{n}"), &format!("falaj_{n}")),
            )),
        }
    }

    pub(crate) async fn open(&self) -> Result<Running> {
        Running::open(&self.database(), None).await
    }

    /// Runs a statement as the database's owner; gives what the database says against it.
    pub(crate) async fn owner(&self, statement: &str) -> Result<Result<(), String>> {
        let sql = AssertSqlSafe(statement.to_owned());
        let done = match self {
            Self::Sqlite(dir) => {
                let path = dir.path().join("coordinator.sqlite");
                let mut connection = SqliteConnectOptions::new().filename(path).connect().await?;
                sqlx::query(sql).execute(&mut connection).await.map(drop)
            }
            Self::Postgres(server, n) => {
                let owner = server.options(&format!("owner_{n}"), &format!("falaj_{n}"));
                let mut connection = owner.options([("search_path", "falaj")]).connect().await?;
                sqlx::query(sql).execute(&mut connection).await.map(drop)
            }
        };
        Ok(done.map_err(|e| e.to_string()))
    }

    /// Changes what may not be changed, as somebody can who owns the database.
    pub(crate) async fn rewrite(&self, statement: &str) -> Result<()> {
        let around = match self {
            Self::Sqlite(_) => ["DROP TRIGGER log_entries_are_not_changed", "SELECT 1"],
            Self::Postgres(..) => [
                "ALTER TABLE log_entries DISABLE TRIGGER append_only",
                "ALTER TABLE log_entries ENABLE ALWAYS TRIGGER append_only",
            ],
        };
        for statement in [around[0], statement, around[1]] {
            self.owner(statement).await?.map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }

    /// Keeps a copy of the database as it is; nobody may have it open.
    async fn back_up(&self) -> Result<()> {
        match self {
            Self::Sqlite(dir) => {
                let copy = format!("VACUUM INTO '{}'", dir.path().join("copy").display());
                self.owner(&copy).await?.map_err(anyhow::Error::msg)
            }
            Self::Postgres(server, n) => {
                end_sessions(server, *n).await?;
                let copy = format!("CREATE DATABASE copy_{n} TEMPLATE falaj_{n} OWNER owner_{n}");
                server.run("postgres", &[&copy]).await
            }
        }
    }

    /// Puts the copy where the database is.
    async fn restore(&mut self) -> Result<()> {
        match self {
            Self::Sqlite(dir) => {
                // Another folder: whoever had the file open may still be closing it.
                let fresh = tempfile::tempdir()?;
                fs::copy(dir.path().join("copy"), fresh.path().join("coordinator.sqlite"))?;
                *dir = fresh;
                Ok(())
            }
            Self::Postgres(server, n) => {
                end_sessions(server, *n).await?;
                let drop = format!("DROP DATABASE falaj_{n}");
                let rename = format!("ALTER DATABASE copy_{n} RENAME TO falaj_{n}");
                server.run("postgres", &[&drop, &rename]).await
            }
        }
    }
}

/// Waits until nobody has the database open; whoever was there has let go of it already.
async fn end_sessions(server: &Server, n: u32) -> Result<()> {
    let mut superuser = server.superuser("postgres").await?;
    let left = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1";
    let name = format!("falaj_{n}");
    while sqlx::query_scalar::<_, i64>(left).bind(&name).fetch_one(&mut superuser).await? > 0 {
        tokio::task::yield_now().await;
    }
    Ok(())
}

fn planned(number: u32) -> AnyRound {
    let id = RoundId { study: "s".parse().expect("valid"), number };
    let spec = RoundSpec {
        base: Digest::of(b"base"),
        min_sites: 1,
        max_sites: 4,
        expected_sites: 1,
        deadline_ms: 1_000,
        grace_ms: 100,
        attempt: 0,
        masked: false,
        members: Vec::new(),
        evaluates: false,
        good: Digest::of(b"base"),
        // Every bit of a figure comes back.
        progress: Progress {
            best: Some(Best { model: Digest::of(b"best"), round: 1, end: 0.1 + 0.2 }),
            without: 2,
        },
    };
    AnyRound::planned(id, spec)
}

fn opened(number: u32) -> AnyRound {
    step(&planned(number), Event::Open, Timestamp::from_millis(0)).expect("taken").next
}

fn study(id: &str) -> Change {
    Change::Study(StudyRow {
        id: id.parse().expect("valid"),
        sha256: Digest::of(b"yaml"),
        yaml: b"name: s".to_vec(),
        state: "running".into(),
        reason: None,
        submitted: Timestamp::from_millis(0),
        submitted_by: "sara".into(),
    })
}

fn site(n: u8) -> falaj_core::id::SiteId {
    format!("spiffe://t/ae-on/ae-az/site/h-{n}").parse().expect("valid")
}

fn exchange(n: u8, messages: &[u8]) -> Change {
    Change::Exchange(ExchangeRow {
        round: planned(1).id().clone(),
        attempt: 0,
        phase: "keys".into(),
        site: site(n),
        messages: messages.to_vec(),
    })
}

/// One row of everything, with entries.
fn everything() -> Commit {
    let update = UpdateRow {
        round: planned(1).id().clone(),
        attempt: 0,
        site: site(1),
        header: b"header".to_vec(),
        signature: vec![0, 255],
        payload: Digest::of(b"payload"),
        bytes: 1 << 40,
        epsilon: "0.5".into(),
        log_index: 0,
        leaf: Digest::of(b""),
        committed: Timestamp::from_millis(0),
    };
    let model = ModelRow {
        study: "s".parse().expect("valid"),
        number: 0,
        sha256: Digest::of(b"model"),
        published: Timestamp::from_millis(0),
    };
    Commit {
        round: None,
        rows: vec![
            study("s"),
            Change::Provenance("s".parse().expect("valid"), 1, b"signed".to_vec()),
            Change::Provenance("s".parse().expect("valid"), 1, b"signed again".to_vec()),
            Change::StudyState("s".parse().expect("valid"), "failed", Some("a \0 in it".into())),
            Change::Update(update, 1),
            exchange(2, b"two"),
            exchange(1, b"one"),
            // A site that sends again keeps its turn.
            exchange(2, b"two again"),
            Change::Model(model),
            Change::Certificate(Digest::of(b"der"), b"der".to_vec()),
            Change::Certificate(Digest::of(b"der"), b"der".to_vec()),
            Change::Policy(Digest::of(b"set"), "b.cedar".into(), b"permit".to_vec()),
            Change::Policy(Digest::of(b"set"), "B.cedar".into(), b"forbid".to_vec()),
            Change::Cosignature(Shard::FIRST, 2, "h-2".into(), "a line\n".into()),
            Change::Cosignature(Shard::FIRST, 2, "h-1".into(), "another\n".into()),
            Change::Cosignature(Shard::FIRST, 1, "h-1".into(), "an old one\n".into()),
        ],
        entries: vec![Draft::new(Kind::AdminRead), Draft::new(Kind::ModelRead)],
    }
}

/// The first version of a study that there is.
fn first_version() -> Commit {
    let digest = Digest::of(b"model");
    let make = version::Event::Make { round: 1, model: digest, manifest: digest, file: digest };
    let registry = Registry::new("s".parse().expect("valid"));
    let registry = version::step(&registry, &make).expect("a version").next;
    Commit { rows: vec![Change::Registry(registry, 0)], ..Commit::default() }
}

/// All that can be read, but times and random bytes.
async fn seen(store: &Store) -> Result<Vec<String>> {
    let study = "s".parse().expect("valid");
    let round = planned(1).id().clone();
    let words = |s: &StudyRow| (s.id.clone(), s.state.clone(), s.submitted_by.clone());
    let update = |u: &UpdateRow| {
        (u.round.clone(), u.site.clone(), u.payload, u.bytes, u.log_index, u.signature.clone())
    };
    let exchanges = store.exchanges(&round, 0).await?.into_iter().map(|e| (e.site, e.messages));
    let models = store.models(&study).await?.into_iter().map(|m| (m.number, m.sha256));
    let updates = store.updates(&study).await?;
    let kinds = ["admin.read", "model.read", "study.failed"];
    let mut of_kind = Vec::new();
    for kind in kinds {
        let found = store.entries(0, u64::MAX, 10, Some(kind)).await?;
        of_kind.push(found.into_iter().map(|(seq, ..)| seq).collect::<Vec<_>>());
    }
    Ok(vec![
        format!("{:?}", store.studies().await?.iter().map(words).collect::<Vec<_>>()),
        format!("{:?}", store.study(&study).await?.as_ref().map(words)),
        format!("{:?}", store.study(&"t".parse()?).await?.is_none()),
        format!("{:?}", store.newest_round(&study).await?),
        format!("{:?}", store.rounds(&study).await?),
        format!("{:?}", updates.iter().map(update).collect::<Vec<_>>()),
        format!("{:?}", store.counted_sites(&round, 0).await?),
        format!("{:?}", store.counted_sites(&round, 1).await?),
        format!("{:?}", store.newest_update(&site(1)).await?.as_ref().map(update)),
        format!("{:?}", store.newest_update(&site(2)).await?.is_none()),
        format!(
            "{:?}",
            store
                .update(&round, &site(1).to_string(), &Digest::of(b"payload"))
                .await?
                .as_ref()
                .map(update)
        ),
        format!("{:?}", exchanges.collect::<Vec<_>>()),
        format!("{:?}", models.collect::<Vec<_>>()),
        format!("{of_kind:?}"),
        format!("{:?}", store.registry(&study).await?),
        format!("{:?}", store.registries("", 9).await?),
        format!("{:?} {:?}", store.registries("", 0).await?, store.registries("s", 9).await?),
        format!("{:?}", store.provenance(&study, 1).await?),
        format!("{:?}", store.provenance(&study, 2).await?),
        format!("{:?}", store.certificates().await?),
        format!("{:?}", store.policies().await?),
        format!("{:?}", store.cosignatures(2).await?),
        format!("{:?}", store.witnesses().await?),
        format!("{:?} {:?}", store.witnessed(1).await?, store.witnessed(9).await?),
        format!("{:?} {:?}", store.checkpoint(7).await?, store.newest_checkpoint().await?),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_reads_alike_on_every_database_and_after_a_restart() -> Result<()> {
    let mut before: Option<Vec<String>> = None;
    for home in Home::each().await? {
        let running = home.open().await?;
        let committed = running.writer.commit(everything()).await?;
        assert_eq!((committed.first, committed.leaves.len(), running.writer.head().0), (0, 2, 2));
        let round = Commit { round: Some((opened(1), 0)), ..Commit::default() };
        running.writer.commit(round).await?;
        running.writer.commit(first_version()).await?;
        let first = seen(&running.store).await?;
        let update = &running.store.updates(&"s".parse()?).await?[0];
        assert_eq!((update.leaf, update.committed), (committed.leaves[1], committed.at));
        running.close().await?;
        let running = home.open().await?;
        assert_eq!(seen(&running.store).await?, first);
        if let Some(before) = before.replace(first.clone()) {
            assert_eq!(before, first, "two databases differ");
        }
        running.close().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_are_read_page_by_page_from_both_ends() -> Result<()> {
    for home in Home::each().await? {
        let running = home.open().await?;
        let rows = vec![study("s"), study("t")];
        running.writer.commit(Commit { rows, ..Commit::default() }).await?;
        for number in 1..=5 {
            let round = Commit { round: Some((opened(number), 0)), ..Commit::default() };
            running.writer.commit(round).await?;
        }
        let (s, t, store) = ("s".parse()?, "t".parse()?, &running.store);
        let numbers =
            |rounds: Vec<AnyRound>| rounds.iter().map(|r| r.id().number).collect::<Vec<_>>();
        for (after, limit, wanted) in [
            (None, 2, vec![1, 2]),
            (Some((2, 0)), 2, vec![3, 4]),
            // Another try of the second would be the next.
            (Some((1, u32::MAX)), 9, vec![2, 3, 4, 5]),
            (Some((5, 0)), 2, vec![]),
        ] {
            assert_eq!(numbers(store.rounds_after(&s, after, limit).await?), wanted, "{after:?}");
        }
        for (before, limit, wanted) in [
            (None, 2, vec![5, 4]),
            (Some((4, 0)), 2, vec![3, 2]),
            (Some((2, u32::MAX)), 9, vec![2, 1]),
            (Some((1, 0)), 2, vec![]),
        ] {
            assert_eq!(
                numbers(store.rounds_before(&s, before, limit).await?),
                wanted,
                "{before:?}"
            );
        }
        assert!(store.rounds_after(&t, None, 9).await?.is_empty());
        running.close().await?;
    }
    Ok(())
}

/// AUD-08: commits of many callers share a transaction, and each is told its own places.
#[tokio::test(flavor = "multi_thread")]
async fn commits_of_many_callers_get_places_of_their_own_and_a_tree_that_proves_them() -> Result<()>
{
    for home in Home::each().await? {
        let running = home.open().await?;
        let mut callers = JoinSet::new();
        for _ in 0..300 {
            let writer = running.writer.clone();
            let drafts = (0..3).map(|_| Draft::new(Kind::AdminRead)).collect();
            callers.spawn(async move { writer.record(drafts).await });
        }
        let mut firsts = Vec::new();
        while let Some(committed) = callers.join_next().await {
            firsts.push(committed??.first);
        }
        firsts.sort_unstable();
        assert_eq!(firsts, (0..300).map(|n| n * 3).collect::<Vec<_>>());
        let (size, root) = running.writer.head();
        assert_eq!(size, 900);
        let entries = running.store.entries(0, size, 1_000, None).await?;
        assert_eq!(entries.len(), 900);
        for index in [0, 255, 256, 899] {
            let proof = proofs::inclusion(&running.store, index, size).await?;
            let (_, _, leaf) = &entries[usize::try_from(index)?];
            verify_inclusion(leaf, index, size, &proof, &root)?;
        }
        let mut old = falaj_core::merkle::Frontier::new();
        entries[..513].iter().for_each(|(_, _, leaf)| old.push(*leaf));
        let proof = proofs::consistency(&running.store, 513, size).await?;
        verify_consistency(513, size, &proof, &old.root(), &root)?;
        running.close().await?;
        let again = home.open().await?;
        assert_eq!(again.writer.head(), (size, root));
        again.close().await?;
        let store = Store::read(&home.database()).await?;
        let found =
            fsck::check(&store, (signer().verifier(), None), &Persons::default(), None, |_| {})
                .await?;
        assert_eq!((found.entries, found.faults), (size, vec![]));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_steps_from_one_version_one_wins_and_the_other_leaves_nothing() -> Result<()> {
    for home in Home::each().await? {
        let running = home.open().await?;
        running.writer.commit(Commit { rows: vec![study("s")], ..Commit::default() }).await?;
        let step = |version| Commit {
            round: Some((opened(1), version)),
            rows: vec![exchange(1, b"x")],
            entries: vec![Draft::new(Kind::AdminRead)],
        };
        running.writer.commit(step(0)).await?;
        // All of these are taken in one transaction or several; it makes no difference.
        let (a, b, c, d) = tokio::join!(
            running.writer.commit(step(0)),
            running.writer.commit(step(1)),
            running.writer.commit(step(1)),
            running.writer.commit(step(7)),
        );
        let all = [a, b, c, d];
        let won = all.iter().filter(|r| r.is_ok()).count();
        let lost = all.iter().filter(|r| matches!(r, Err(CommitError::Conflict))).count();
        assert_eq!((won, lost), (1, 3));
        assert_eq!(running.writer.head().0, 2);
        let newest = running.store.newest_round(&"s".parse()?).await?.context("a round")?;
        assert_eq!(newest, (opened(1), 2));
        running.close().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_moves_of_versions_one_wins_and_the_other_leaves_nothing() -> Result<()> {
    for home in Home::each().await? {
        let running = home.open().await?;
        running.writer.commit(Commit { rows: vec![study("s")], ..Commit::default() }).await?;
        let moved = |over| Commit {
            rows: vec![
                Change::Registry(Registry::new("s".parse().expect("valid")), over),
                exchange(1, b"x"),
            ],
            entries: vec![Draft::new(Kind::VersionPromoted)],
            ..Commit::default()
        };
        running.writer.commit(moved(0)).await?;
        let (a, b, c, d) = tokio::join!(
            running.writer.commit(moved(0)),
            running.writer.commit(moved(1)),
            running.writer.commit(moved(1)),
            running.writer.commit(moved(7)),
        );
        let all = [a, b, c, d];
        let won = all.iter().filter(|r| r.is_ok()).count();
        let lost = all.iter().filter(|r| matches!(r, Err(CommitError::Conflict))).count();
        assert_eq!((won, lost), (1, 3));
        assert_eq!(running.writer.head().0, 2);
        let row = running.store.registry(&"s".parse()?).await?.context("a registry")?;
        assert_eq!(row.version, 2);
        running.close().await?;
    }
    Ok(())
}

/// Whoever was not told that the study has ended would end it again, in another way perhaps.
#[tokio::test(flavor = "multi_thread")]
async fn a_study_ends_once() -> Result<()> {
    for home in Home::each().await? {
        let running = home.open().await?;
        running.writer.commit(Commit { rows: vec![study("s")], ..Commit::default() }).await?;
        let ends = |state| Commit {
            rows: vec![
                Change::StudyState("s".parse().expect("valid"), state, None),
                Change::Registry(Registry::new("s".parse().expect("valid")), 0),
            ],
            entries: vec![Draft::new(Kind::StudyFinished)],
            ..Commit::default()
        };
        running.writer.commit(ends("finished")).await?;
        for state in ["finished", "failed"] {
            let again = running.writer.commit(ends(state)).await;
            assert!(matches!(again, Err(CommitError::Conflict)), "{state}: {again:?}");
        }
        assert_eq!(running.writer.head().0, 1);
        let row = running.store.study(&"s".parse()?).await?.context("a study")?;
        assert_eq!(row.state, "finished");
        running.close().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_leaves_no_entry_and_the_writer_goes_on() -> Result<()> {
    for home in Home::each().await? {
        let running = home.open().await?;
        let entries = || vec![Draft::new(Kind::StudySubmitted)];
        let submit = || Commit { rows: vec![study("s")], entries: entries(), ..Commit::default() };
        running.writer.commit(submit()).await?;
        let twice = running.writer.commit(submit()).await;
        assert!(matches!(twice, Err(CommitError::Failed(_))), "{twice:?}");
        assert_eq!(running.record(1).await?, 1);
        let entries = running.store.entries(0, u64::MAX, 10, None).await?;
        assert_eq!(entries.len(), 2);
        running.close().await?;
    }
    Ok(())
}

/// AUD-07: a check beside a coordinator that writes finds nothing wrong with what is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_whole_while_it_grows_too() -> Result<()> {
    for home in Home::each().await? {
        let running = home.open().await?;
        let checkpointer = Checkpointer::new(running.writer.clone(), signer(), None);
        let store = Store::read(&home.database()).await?;
        let growing = async {
            for _ in 0..60 {
                running.record(50).await?;
                checkpointer.sign().await?;
            }
            anyhow::Ok(())
        };
        let looking = async {
            let mut sizes = Vec::new();
            while sizes.last().is_none_or(|size| *size < 3_000) {
                let found = fsck::check(
                    &store,
                    (signer().verifier(), None),
                    &Persons::default(),
                    None,
                    |_| {},
                )
                .await?;
                ensure!(found.faults.is_empty(), "{:?}", found.faults);
                sizes.push(found.entries);
            }
            Ok(sizes)
        };
        let (grown, sizes) = tokio::join!(growing, looking);
        grown?;
        assert!(sizes?.is_sorted());
        drop(checkpointer);
        running.close().await?;
    }
    Ok(())
}

/// AUD-05: an older copy of the database is noticed by the checkpoint that was kept elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_database_is_refused_naming_both_sizes() -> Result<()> {
    for mut home in Home::each().await? {
        let running = home.open().await?;
        running.record(5).await?;
        running.close().await?;
        home.back_up().await?;
        let running = home.open().await?;
        running.record(4).await?;
        let checkpointer = Checkpointer::new(running.writer.clone(), signer(), None);
        let (size, note) = checkpointer.current(&running.store).await?;
        assert_eq!(size, 9);
        drop(checkpointer);
        running.close().await?;
        let kept = Running::open(&home.database(), Some(&note)).await?;
        kept.close().await?;
        home.restore().await?;
        let refused = Running::open(&home.database(), Some(&note)).await;
        let said = format!("{:#}", refused.err().context("it started")?);
        assert!(said.contains("has 5 entries, but a checkpoint of 9 was signed"), "{said}");
    }
    Ok(())
}

/// AUD-07: a changed entry is named when the coordinator starts, and by `fsck`.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_entry_is_refused_with_its_index() -> Result<()> {
    for home in Home::each().await? {
        let running = home.open().await?;
        running.record(600).await?;
        running.close().await?;
        home.rewrite("UPDATE log_entries SET bytes = (SELECT bytes FROM log_entries WHERE seq = 3) WHERE seq = 311").await?;
        let said = format!("{:#}", home.open().await.err().context("it started")?);
        assert!(said.contains("log entry 311 is missing or was changed"), "{said}");
        let store = Store::read(&home.database()).await?;
        let found =
            fsck::check(&store, (signer().verifier(), None), &Persons::default(), None, |_| {})
                .await?;
        assert_eq!(found.faults.first().context("no fault")?.index, Some(311));
    }
    Ok(())
}

/// CMP-06: the index behind "who accessed this?" answers alike on every database.
#[tokio::test(flavor = "multi_thread")]
async fn the_index_of_what_entries_touch_is_written_with_them() -> Result<()> {
    let [one, other] =
        [Digest([7; 32]), Digest([&[7; 31][..], &[8]].concat().try_into().expect("32"))];
    for home in Home::each().await? {
        let running = home.open().await?;
        let read = |model: &Digest, study: &str| {
            let study = study.parse().expect("valid");
            Draft::new(Kind::ModelRead).study(&study).digest("model_sha256", model)
        };
        for n in 0..600_usize {
            let study = ["s", "t", "u"][n % 3];
            let mut entries = vec![read(if n < 599 { &one } else { &other }, study)];
            if n % 100 == 0 {
                entries.push(Draft::new(Kind::AdminRead).study(&"s".parse()?));
            }
            running.writer.record(entries).await?;
        }
        let size = running.writer.head().0;
        let of = |terms: &[&str], kind, from| Wanted {
            terms: terms.iter().map(|t| (*t).to_owned()).collect(),
            kind,
            from,
            below: size,
        };
        let model = one.to_string();
        for (wanted, found, next) in [
            (of(&[&model], None, 0), 500, true),
            (of(&[&model, "s"], None, 0), 200, false),
            (of(&["s"], None, 0), 206, false),
            (of(&["s"], Some(Kind::AdminRead), 0), 6, false),
            (of(&[], Some(Kind::AdminRead), 0), 6, false),
            (of(&["s"], None, 303), 103, false),
            (of(&["v"], None, 0), 0, false),
        ] {
            let page = running.store.find(&wanted, 500).await?;
            assert_eq!((page.entries.len(), page.next.is_some()), (found, next), "{wanted:?}");
            let order: Vec<u64> = page.entries.iter().map(|(seq, ..)| *seq).collect();
            assert!(order.is_sorted(), "{order:?}");
        }
        let named = async |text: &str| running.store.named(text).await;
        assert_eq!(named("t").await?, Named::Object("t".parse().expect("valid")));
        assert!(
            matches!(named(&model[..16]).await?, Named::Several(a, b) if a == model && b == other.to_string())
        );
        assert_eq!(named("ffffffff").await?, Named::Object("ffffffff".parse().expect("valid")));
        let first = Entry::parse(&running.store.raw_entries(0, 1).await?[0].1)?.ts;
        let first: Timestamp =
            Timestamp::from_millis(first.parse::<jiff::Timestamp>()?.as_millisecond());
        assert_eq!(running.store.first_at(first, size).await?, 0);
        let later = Timestamp::from_millis(first.as_millis() + 3_600_000);
        assert_eq!(running.store.first_at(later, size).await?, size);
        running.close().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn hashes_of_tiles_that_are_wrong_are_made_anew() -> Result<()> {
    for home in Home::each().await? {
        let running = home.open().await?;
        running.record(600).await?;
        let (size, root) = running.writer.head();
        running.close().await?;
        home.owner(
            "UPDATE log_tiles SET hash = (SELECT leaf FROM log_entries WHERE seq = 1) WHERE n = 1",
        )
        .await?
        .map_err(anyhow::Error::msg)?;
        let running = home.open().await?;
        let proof = proofs::inclusion(&running.store, 599, size).await?;
        let leaf = running.store.entries(599, size, 1, None).await?[0].2;
        verify_inclusion(&leaf, 599, size, &proof, &root)?;
        running.close().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_takes_no_update_and_no_deletion_even_from_its_owner() -> Result<()> {
    for home in Home::each().await? {
        let running = home.open().await?;
        running.writer.commit(everything()).await?;
        running.close().await?;
        let mut statements =
            vec!["UPDATE log_entries SET kind = 'x'".to_owned(), "DELETE FROM log_entries".into()];
        if let Home::Postgres(..) = home {
            let tables = ["log_entries", "log_checkpoints", "log_cosignatures"];
            for table in tables.into_iter().chain([
                "certificates",
                "policies",
                "updates",
                "models",
                "provenances",
            ]) {
                statements.push(format!("DELETE FROM {table}"));
                statements.push(format!("DELETE FROM {table} WHERE false"));
                statements.push(format!("TRUNCATE {table}"));
            }
            statements.push("UPDATE updates SET epsilon = '0'".into());
            statements.push("TRUNCATE studies CASCADE".into());
        }
        for statement in statements {
            let said = home.owner(&statement).await?.err().context(statement.clone())?;
            assert!(said.contains("append-only"), "{statement}: {said}");
        }
    }
    Ok(())
}
