//! AUD-07: whatever is changed in a log at rest is found, and named by its index.

use ed25519_dalek::SigningKey;
use falaj_coordinator::{
    checkpointer::Checkpointer,
    fsck::{Findings, check},
    metrics::Metrics,
    persons::Persons,
    store::{Database, Store, writer},
};
use falaj_core::{
    audit::{Draft, Kind},
    note::NoteSigner,
};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use std::{error::Error, path::Path, sync::Arc};

const ENTRIES: u64 = 600;

type Outcome = Result<(), Box<dyn Error>>;

fn signer() -> NoteSigner {
    NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[9; 32])).expect("a name")
}

/// A log in a folder, with a checkpoint for every hundred entries.
async fn written(dir: &Path) -> Outcome {
    let (store, writing) = Store::open(&Database::Sqlite(dir.join("coordinator.sqlite"))).await?;
    let signer = Arc::new(signer());
    let metrics = Arc::new(Metrics::default());
    let (writer, service) = writer::open(writing, &signer, None, metrics).await?;
    let serving = tokio::spawn(service.run());
    let checkpointer = Checkpointer::new(writer.clone(), signer, Some(dir.join("high-water")));
    for _ in 0..ENTRIES / 100 {
        writer.record((0..100).map(|_| Draft::new(Kind::AdminRead)).collect()).await?;
        checkpointer.current(&store).await?;
    }
    drop((writer, checkpointer));
    serving.await?;
    Ok(())
}

/// What is found after a statement has changed the database behind everybody's back.
async fn after(statement: &str) -> Result<Findings, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    written(dir.path()).await?;
    let options = SqliteConnectOptions::new().filename(dir.path().join("coordinator.sqlite"));
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    for trigger in ["log_entries_are_not_changed", "log_entries_are_not_deleted"] {
        sqlx::query(sqlx::AssertSqlSafe(format!("DROP TRIGGER {trigger}"))).execute(&pool).await?;
    }
    sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&pool).await?;
    pool.close().await;
    let elsewhere = dir.path().join("high-water");
    let store = Store::read(&Database::Sqlite(dir.path().join("coordinator.sqlite"))).await?;
    Ok(check(&store, (signer().verifier(), None), &Persons::default(), Some(&elsewhere), |_| {})
        .await?)
}

/// The index and words of the first fault.
fn first(found: &Findings) -> (Option<u64>, &str) {
    found.faults.first().map_or((None, "nothing"), |f| (f.index, f.what.as_str()))
}

#[tokio::test]
async fn a_whole_log_is_whole() -> Outcome {
    let found = after("SELECT 1").await?;
    assert_eq!((found.entries, found.checkpoints, found.faults), (ENTRIES, 6, vec![]));
    Ok(())
}

#[tokio::test]
async fn a_changed_entry_is_named_and_no_other() -> Outcome {
    for index in [0_u64, 255, 256, 599] {
        let flip = format!(
            "UPDATE log_entries SET bytes = CAST(replace(CAST(bytes AS TEXT), 'admin.read', 'admin.reed') AS BLOB) WHERE seq = {index}"
        );
        let found = after(&flip).await?;
        let (named, what) = first(&found);
        assert_eq!(named, Some(index), "{what}");
        assert!(what.contains("its bytes hash to"), "{what}");
        assert!(found.faults.iter().all(|f| f.index == Some(index)), "{:?}", found.faults);
    }
    Ok(())
}

#[tokio::test]
async fn changed_hashes_checkpoints_and_missing_entries_are_found() -> Outcome {
    let zeros = "x'0000000000000000000000000000000000000000000000000000000000000000'";
    let cases = [
        (format!("UPDATE log_entries SET leaf = {zeros} WHERE seq = 300"), Some(300), "hash to"),
        ("UPDATE log_entries SET leaf = x'00' WHERE seq = 7".into(), Some(7), "no hash is stored"),
        ("DELETE FROM log_entries WHERE seq = 41".into(), Some(41), "it is missing"),
        ("DELETE FROM log_entries WHERE seq >= 550".into(), None, "of 600 entries was signed, and there are 550"),
        (format!("UPDATE log_tiles SET hash = {zeros} WHERE n = 1"), None, "tile 1 of level 1"),
        ("DELETE FROM log_tiles WHERE n = 0".into(), None, "tile 0 of level 1"),
        ("INSERT INTO log_tiles VALUES (1, 9, x'00')".into(), None, "that are not there"),
        ("UPDATE log_checkpoints SET note = replace(note, 'falaj.test', 'falaj.west') WHERE tree_size = 300".into(), None, "the checkpoint of 300 entries is wrong"),
        ("UPDATE log_checkpoints SET tree_size = 301 WHERE tree_size = 300".into(), None, "speaks of 300"),
        // A database that went back by itself: the checkpoint on the other disk knows of more.
        ("DELETE FROM log_checkpoints WHERE tree_size = 600".into(), None, "nothing"),
    ];
    for (statement, index, why) in cases {
        let found = after(&statement).await?;
        let (named, what) = first(&found);
        assert_eq!(named, index, "{statement}: {what}");
        assert!(what.contains(why), "{statement}: {what}");
    }
    Ok(())
}
