//! AUD-07, beside the tree: whatever is changed in the index, among time-stamps or in what is sealed of people is found, and
//! named by its entry; on each database.

use super::{Home, signer};
use anyhow::{Context as _, Result, ensure};
use falaj_coordinator::{
    checkpointer::Checkpointer,
    clock,
    fsck::{Findings, check},
    metrics::Metrics,
    persons::Persons,
    store::{
        Store,
        row::{Stamped, TimestampRow},
        writer::{self, Change, Commit},
    },
};
use falaj_core::{
    audit::{Actor, Draft, Kind, person::Disclosure},
    id::Digest,
    time::Timestamp,
};
use std::{path::PathBuf, sync::Arc};
use tempfile::TempDir;

/// More entries than are read at once, and more rows of people.
const ENTRIES: u64 = 1_300;
/// Entries about `heart`; the rest are about `lung`.
const HEART: u64 = 1_000;

/// A log with everything beside it, and the keys of its people.
struct Log {
    home: Home,
    keys: TempDir,
    /// The pseudonyms of Sara, and of Omar, who was erased.
    people: [String; 2],
    /// Entries that tell of time-stamps: of a checkpoint, and of a report.
    stamped: [u64; 2],
}

impl Log {
    fn persons(&self) -> PathBuf {
        self.keys.path().join("persons")
    }

    async fn written(home: Home) -> Result<Self> {
        let keys = tempfile::tempdir()?;
        let persons = Persons::open(&keys.path().join("persons"))?;
        let (store, writing) = Store::open(&home.database()).await?;
        let metrics = Arc::new(Metrics::default());
        let (log, service) =
            writer::open(writing.sealing(persons.clone()), &signer(), None, metrics).await?;
        let serving = tokio::spawn(service.run());
        let who = |name: &str| -> Result<Actor> {
            let id = format!("spiffe://t/ae-on/ae-az/operator/{name}").parse()?;
            let person = Some(persons.meet(&id)?);
            Ok(Actor { person, id: Some(id), ..Actor::default() })
        };
        let (sara, omar) = (who("sara")?, who("omar")?);
        let draft = |n: u64| {
            let study = if n < HEART { "heart" } else { "lung" }.parse().expect("a study");
            let draft = Draft::new(Kind::AdminRead).study(&study).count("n", n);
            match n % 3 {
                0 => draft.actor(&sara),
                1 => draft.actor(&omar),
                _ => draft,
            }
        };
        for at in (0..ENTRIES).step_by(100) {
            log.record((at..at + 100).map(draft).collect()).await?;
        }
        let checkpointer = Checkpointer::new(log.clone(), signer(), None);
        let mut stamped = [0; 2];
        for (n, what, kind, digest) in [
            (0, Stamped::Checkpoint, Kind::CheckpointStamped, "checkpoint_sha256"),
            (1, Stamped::Report, Kind::ReportStamped, "report_sha256"),
        ] {
            let (tree_size, note) = checkpointer.current(&store).await?;
            let (imprint, answer) = (Digest::of(note.as_bytes()), vec![u8::try_from(n)?; 9]);
            let stamped_at = Timestamp::from_millis(1_767_225_600_000);
            let entry = Draft::new(kind)
                .count("tree_size", tree_size)
                .digest(digest, &imprint)
                .digest("token_sha256", &Digest::of(&answer))
                .text("stamped", &stamped_at.to_string());
            let row = TimestampRow {
                what,
                imprint,
                tree_size,
                authority: "CN=Authority".into(),
                stamped: stamped_at,
                answer,
                log_index: 0,
                committed: clock::now(),
            };
            let rows = vec![Change::Timestamp(row)];
            stamped[n] =
                log.commit(Commit { rows, entries: vec![entry], round: None }).await?.first;
        }
        let people =
            [&sara, &omar].map(|who| who.person.map(|p| p.to_string()).unwrap_or_default());
        let omar = omar.person.context("a person")?;
        persons.forget(omar)?;
        log.record(vec![Draft::new(Kind::ErasurePerformed).person(omar)]).await?;
        checkpointer.current(&store).await?;
        drop((log, checkpointer));
        serving.await?;
        Ok(Self { home, keys, people, stamped })
    }

    async fn looked_at(&self) -> Result<Findings> {
        let store = Store::read(&self.home.database()).await?;
        let persons = Persons::read(&self.persons())?;
        check(&store, (signer().verifier(), None), &persons, None, |_| {}).await
    }

    /// What is found after these statements have changed the database behind everybody's back.
    async fn after(&self, statements: &[String]) -> Result<Findings> {
        for statement in statements {
            let done = self.home.owner(statement).await?;
            done.map_err(anyhow::Error::msg).with_context(|| statement.clone())?;
        }
        self.looked_at().await
    }

    /// Lets the owner change what lies beside the entries.
    async fn opened(home: Home) -> Result<Self> {
        let this = Self::written(home).await?;
        let statements = match &this.home {
            Home::Sqlite(_) => [
                "DROP TRIGGER log_personal_is_not_changed",
                "DROP TRIGGER log_personal_is_not_deleted",
                "DROP TRIGGER log_timestamps_are_not_changed",
                "DROP TRIGGER log_timestamps_are_not_deleted",
            ],
            Home::Postgres(..) => [
                "ALTER TABLE log_personal DISABLE TRIGGER append_only",
                "ALTER TABLE log_timestamps DISABLE TRIGGER append_only",
                "SELECT 1",
                "SELECT 1",
            ],
        };
        for statement in statements {
            this.home.owner(statement).await?.map_err(anyhow::Error::msg)?;
        }
        Ok(this)
    }

    /// Bytes as the database spells them.
    fn blob(&self, bytes: &[u8]) -> String {
        let hex = hex::encode(bytes);
        match &self.home {
            Home::Sqlite(_) => format!("x'{hex}'"),
            Home::Postgres(..) => format!("'\\x{hex}'::bytea"),
        }
    }
}

/// A damage, what mends it, and the faults that are found in between.
type Case<'c> = (&'c str, &'c str, &'c [(u64, &'c str)]);

/// Each fault is of the entry that is named beside it, and says this.
fn are(found: &Findings, wanted: &[(u64, &str)]) -> Result<()> {
    let fits = |(fault, (index, what)): (&falaj_coordinator::fsck::Fault, &(u64, &str))| {
        fault.index == Some(*index) && fault.what.contains(what)
    };
    ensure!(
        found.faults.len() == wanted.len() && found.faults.iter().zip(wanted).all(fits),
        "{wanted:?}: {:?}",
        found.faults
    );
    Ok(())
}

/// One damage after the other, each mended before the next.
async fn each(log: &Log, cases: &[Case<'_>]) -> Result<()> {
    are(&log.looked_at().await?, &[])?;
    for (damage, mend, wanted) in cases {
        let split = |text: &str| text.split("; ").map(str::to_owned).collect::<Vec<_>>();
        let found = log.after(&split(damage)).await?;
        are(&found, wanted).with_context(|| (*damage).to_owned())?;
        let mended = log.after(&split(mend)).await?;
        are(&mended, &[]).with_context(|| format!("mended: {mend}"))?;
    }
    Ok(())
}

/// AUD-07.
#[tokio::test]
async fn a_log_with_everything_beside_it_is_whole_and_all_of_it_is_counted() -> Result<()> {
    for home in Home::each().await? {
        let log = Log::written(home).await?;
        let found = log.looked_at().await?;
        are(&found, &[])?;
        ensure!(found.entries == ENTRIES + 3, "{found:?}");
        // Its study, and of people also who they are, that they did it, and the commitment; of stamps two digests each; one
        // erased person.
        let people = 2 * ENTRIES / 3 + 1;
        ensure!(found.touches == ENTRIES + 3 * people + 4 + 1, "{found:?}");
        ensure!((found.timestamps, found.personal) == (2, people), "{found:?}");
        // Looking changes nothing, and makes nothing: of people whose keys are elsewhere nothing is opened.
        let store = Store::read(&log.home.database()).await?;
        let nowhere = log.keys.path().join("nowhere");
        let nobody = Persons::read(&nowhere)?;
        let found = check(&store, (signer().verifier(), None), &nobody, None, |_| {}).await?;
        ensure!(found.faults.is_empty() && !nowhere.exists(), "{found:?}");
    }
    Ok(())
}

/// AUD-07, AUD-14: the index is what the entries say.
#[tokio::test]
async fn what_the_index_lacks_and_what_it_has_too_much_is_named_by_entry_and_term() -> Result<()> {
    for home in Home::each().await? {
        let log = Log::opened(home).await?;
        let heart = "(SELECT id FROM log_object_names WHERE name = 'heart')";
        let lung = "(SELECT id FROM log_object_names WHERE name = 'lung')";
        let gone = format!("DELETE FROM log_objects WHERE seq = 701 AND object = {heart}");
        let back = format!("INSERT INTO log_objects (object, seq) VALUES ({heart}, 701)");
        let added = format!("INSERT INTO log_objects (object, seq) VALUES ({lung}, 5)");
        let taken = format!("DELETE FROM log_objects WHERE seq = 5 AND object = {lung}");
        let beyond = format!("INSERT INTO log_objects (object, seq) VALUES ({lung}, 99999)");
        let moved = format!("{gone}; {added}");
        each(
            &log,
            &[
                (&gone, &back, &[(701, "it touches `heart`, and the index")]),
                (&added, &taken, &[(5, "says that it touches `lung`, which it does not")]),
                // One that is missing does not make up for one that is too much.
                (
                    &moved,
                    &format!("{taken}; {back}"),
                    &[(701, "touches `heart`"), (5, "touches `lung`, which it does not")],
                ),
                (
                    &beyond,
                    "DELETE FROM log_objects WHERE seq = 99999",
                    &[(99_999, "it is not there, and the index")],
                ),
                (
                    "INSERT INTO log_objects (object, seq) VALUES (424242, 7)",
                    "DELETE FROM log_objects WHERE object = 424242",
                    &[(7, "object 424242, which has no name")],
                ),
            ],
        )
        .await?;
        // A name that was changed is wrong at each entry; a hundred are told.
        let renamed =
            ["UPDATE log_object_names SET name = 'kidney' WHERE name = 'lung'".to_owned()];
        let found = log.after(&renamed).await?;
        let (first, last) = (found.faults.first().context("one")?, found.faults.len());
        ensure!(last == 100 && first.index == Some(HEART), "{last} {first:?}");
        ensure!(first.what.contains("it touches `lung`"), "{first:?}");
    }
    Ok(())
}

/// AUD-07, AUD-13: a time-stamp is the one of which its entry tells.
#[tokio::test]
async fn a_time_stamp_that_is_not_as_its_entry_says_is_named() -> Result<()> {
    for home in Home::each().await? {
        let log = Log::opened(home).await?;
        let [checkpoint, report] = log.stamped;
        let set =
            |what: &str| format!("UPDATE log_timestamps SET {what} WHERE what = 'checkpoint'");
        let (ones, zeros) = (log.blob(&[1; 9]), log.blob(&[0; 9]));
        let imprint = |text: &str| {
            format!("UPDATE log_timestamps SET imprint = {text} WHERE log_index = {checkpoint}")
        };
        let (longer, shorter) = (imprint("imprint || '0'"), imprint("substr(imprint, 1, 64)"));
        let told = "it tells of a time-stamp, and ";
        each(
            &log,
            &[
                (
                    &set("log_index = log_index - 1"),
                    &set("log_index = log_index + 1"),
                    &[
                        (checkpoint - 1, "it tells of no time-stamp, and that of"),
                        (checkpoint, &format!("{told}0 lie beside")),
                    ],
                ),
                (
                    &set("log_index = 99999"),
                    &set(&format!("log_index = {checkpoint}")),
                    &[
                        (checkpoint, &format!("{told}0 lie beside")),
                        (99_999, "it is not there, and the time-stamp of"),
                    ],
                ),
                (
                    &set("tree_size = tree_size + 1"),
                    &set("tree_size = tree_size - 1"),
                    &[(checkpoint, "entries in its checkpoint")],
                ),
                (
                    &set(&format!("answer = {ones}")),
                    &set(&format!("answer = {zeros}")),
                    &[(checkpoint, "the SHA-256 of the answer")],
                ),
                (
                    &set("stamped_ms = stamped_ms - 1"),
                    &set("stamped_ms = stamped_ms + 1"),
                    &[(checkpoint, "when it was stamped")],
                ),
                (&longer, &shorter, &[(checkpoint, "its digest")]),
                (
                    &format!(
                        "UPDATE log_timestamps SET what = 'checkpoint' WHERE log_index = {report}"
                    ),
                    &format!(
                        "UPDATE log_timestamps SET what = 'report' WHERE log_index = {report}"
                    ),
                    &[(report, "of what it is, report in the entry, is checkpoint")],
                ),
            ],
        )
        .await?;
        let gone = [format!("DELETE FROM log_timestamps WHERE log_index = {report}")];
        are(&log.after(&gone).await?, &[(report, &format!("{told}0 lie beside"))])?;
    }
    Ok(())
}

/// AUD-07, AUD-09: what is sealed of people is of the entry's person, and opens its commitment; of whoever was erased there is
/// nothing to open, and that is no fault.
#[tokio::test]
async fn what_is_sealed_of_people_is_of_its_entry_and_opens_it() -> Result<()> {
    for home in Home::each().await? {
        let log = Log::opened(home).await?;
        let [sara, omar] = &log.people;
        let store = Store::read(&log.home.database()).await?;
        let persons = Persons::read(&log.persons())?;
        let rows = store.personal(300, 304).await?;
        // Entry 300 is Sara's, 301 Omar's, 302 nobody's, 303 Sara's again.
        ensure!(rows.iter().map(|(seq, ..)| *seq).eq([300, 301, 303]), "{rows:?}");
        let (_, person, sealed) = &rows[0];
        let disclosed = persons.disclosure(*person, 300, sealed).context("it does not open")?;
        ensure!(persons.disclosure(rows[1].1, 301, &rows[1].2).is_none(), "Omar was erased");
        // Sealed by the right key for the right place, and something else.
        let other = Disclosure { salt: [1; 32], ..disclosed };
        let other = persons.seal_disclosure(*person, &other).context("a key")?;
        let set =
            |what: &str, seq: u64| format!("UPDATE log_personal SET {what} WHERE seq = {seq}");
        let of = |bytes: &[u8]| format!("sealed = {}", log.blob(bytes));
        let cannot = "cannot be opened by the key of person";
        let elsewhere = "what opens that does not lie beside the log";
        each(
            &log,
            &[
                (
                    &set(&format!("person = '{omar}'"), 300),
                    &set(&format!("person = '{sara}'"), 300),
                    &[(300, &format!("it is of person {sara}, and what lies beside the log for it is of `{omar}`"))],
                ),
                (
                    &set("person = 'nobody'", 301),
                    &set(&format!("person = '{omar}'"), 301),
                    &[(301, "is of `nobody`")],
                ),
                (&set(&of(&rows[2].2), 300), &set(&of(sealed), 300), &[(300, cannot)]),
                (&set(&of(b"short"), 300), &set(&of(sealed), 300), &[(300, cannot)]),
                (&set(&of(&other), 300), &set(&of(sealed), 300), &[(300, "is not what it commits to")]),
                (
                    &set("seq = 302", 300),
                    &set("seq = 300", 302),
                    &[(300, elsewhere), (302, "it commits to nobody")],
                ),
                (
                    &set("seq = 99999", 300),
                    &set("seq = 300", 99_999),
                    &[(300, elsewhere), (99_999, "it is not there, and something personal")],
                ),
                // Nobody can tell what Omar's rows were.
                (&set(&of(b"short"), 301), &set(&of(&rows[1].2), 301), &[]),
            ],
        )
        .await?;
        let gone = |seq: u64| format!("DELETE FROM log_personal WHERE seq = {seq}");
        are(&log.after(&[gone(301), gone(303)]).await?, &[(303, elsewhere)])?;
    }
    Ok(())
}

/// AUD-07: beside contents that were deleted under a policy nothing is missed, and nothing may be left.
#[tokio::test]
async fn beside_contents_that_were_deleted_nothing_is_missed_and_nothing_may_be_left() -> Result<()>
{
    for home in Home::each().await? {
        let log = Log::written(home).await?;
        let metrics = Arc::new(Metrics::default());
        let rows = |rows: Vec<Change>| Commit { rows, ..Commit::default() };
        let (store, writing) = Store::open(&log.home.database()).await?;
        let (writer, service) = writer::open(writing, &signer(), None, metrics.clone()).await?;
        let serving = tokio::spawn(service.run());
        writer.commit(rows(vec![Change::Shard("falaj.test/log".into())])).await?;
        drop(writer);
        let mut writing = serving.await?;
        let (old, size, next) = (store.shard().clone(), store.size().await?, "falaj.test/log/2");
        writing.enter(old.next(size, next));
        let key = signer().renamed(next)?;
        let (writer, service) = writer::open(writing, &key, None, metrics).await?;
        let serving = tokio::spawn(service.run());
        let entries = vec![Draft::new(Kind::LogOpened)];
        let begun = vec![Change::Shard(next.into())];
        writer.commit(Commit { rows: begun, entries, round: None }).await?;
        writer.commit(rows(vec![Change::Prune(old.clone())])).await?;
        for from in (0..size).step_by(500) {
            let below = size.min(from + 500);
            writer.commit(rows(vec![Change::Empty(old.clone(), from, below)])).await?;
        }
        drop(writer);
        serving.await?;
        let looked_at = async || {
            let store = Store::read(&log.home.database()).await?.shards().await?.remove(0);
            let persons = Persons::read(&log.persons())?;
            check(&store, (signer().verifier(), None), &persons, None, |_| {}).await
        };
        let found = looked_at().await?;
        are(&found, &[])?;
        // The erasure stays, without anything beside it; so do the time-stamps, without what tells of them.
        ensure!((found.entries, found.pruned) == (size, size - 1), "{found:?}");
        ensure!((found.touches, found.personal, found.timestamps) == (0, 0, 2), "{found:?}");
        let sealed = log.blob(b"left");
        for statement in [
            "INSERT INTO log_object_names (name) VALUES ('left')".to_owned(),
            "INSERT INTO log_objects (object, seq) SELECT id, 5 FROM log_object_names WHERE name = 'left'".to_owned(),
            format!("INSERT INTO log_personal (seq, person, sealed) VALUES (6, '{}', {sealed})", log.people[0]),
        ] {
            let done = log.home.owner(&statement).await?;
            done.map_err(anyhow::Error::msg).context(statement)?;
        }
        let left = [
            (5, "the index of what entries touch still says that it touches `left`"),
            (6, "something personal still lies beside the log"),
        ];
        are(&looked_at().await?, &left)?;
    }
    Ok(())
}
