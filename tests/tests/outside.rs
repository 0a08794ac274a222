//! A coordinator's log and an outside witness that knows nothing of it, over a real socket.

use anyhow::{Result, ensure};
use ed25519_dalek::SigningKey;
use falaj_coordinator::{
    checkpointer::Checkpointer,
    config::WitnessConfig,
    metrics::Metrics,
    store::{Database, Store, writer},
    witnesses,
};
use falaj_core::{
    audit::{Draft, Kind},
    id::Place,
    note::NoteSigner,
    witness::WitnessKey,
};
use falaj_tests::federation::{PATIENCE, TRUST_DOMAIN};
use falaj_witness::{
    config::{Config, LogEntry, make_key},
    keep::standings,
    serve,
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::sync::CancellationToken;

fn place() -> Place {
    "ae-on/ae-az".parse().expect("a place")
}

fn signer() -> NoteSigner {
    NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[9; 32])).expect("a name")
}

/// A witness with a key of its own, in a folder; gives its URL and key.
async fn witness(dir: &Path, name: &str) -> Result<(Config, String, WitnessKey)> {
    std::fs::create_dir_all(dir.join("state"))?;
    let key = make_key(&dir.join("witness.key"), name)?;
    let config = Config {
        name: name.into(),
        key: dir.join("witness.key"),
        state: dir.join("state"),
        listen: ([127, 0, 0, 1], 0).into(),
        tls: None,
        connections_max: 8,
        timeout_s: 10,
        logs: vec![LogEntry { key: signer().verifier().to_string() }],
    };
    let (tell, bound) = oneshot::channel();
    let serving = config.clone();
    tokio::spawn(async move {
        let ready = |address| tell.send(address).map_err(|_| anyhow::anyhow!("nobody waits"));
        serve::run(&serving, CancellationToken::new(), ready).await
    });
    let address = tokio::time::timeout(PATIENCE, bound).await??;
    Ok((config, format!("http://{address}"), key))
}

/// AUD-10: an honest witness cosigns what the coordinator shows; one that answers for another key is not counted, and one
/// that answers nothing keeps nobody waiting.
#[tokio::test]
async fn an_outside_witness_cosigns_and_wrong_or_silent_ones_do_not_count() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let signer = Arc::new(signer());
    let metrics = Arc::new(Metrics::default());
    let database = Database::Sqlite(dir.path().join("log.sqlite"));
    let (store, writing) = Store::open(&database).await?;
    let (writer, service) = writer::open(writing, &signer, None, metrics.clone()).await?;
    tokio::spawn(service.run());
    let checkpointer = Checkpointer::new(writer.clone(), signer, None);
    let (config, url, key) = witness(&dir.path().join("good"), "witness.test/good").await?;
    let (_, other_url, _) = witness(&dir.path().join("bad"), "witness.test/bad").await?;
    let pretended = make_key(&dir.path().join("other.key"), "witness.test/bad")?;
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let nobody = make_key(&dir.path().join("silent.key"), "witness.test/silent")?;
    let one = |url: String, key: &WitnessKey| WitnessConfig {
        url,
        key: key.to_string(),
        ca: None,
        place: place(),
    };
    let silent_url = format!("http://{}", silent.local_addr()?);
    let configured = [one(url, &key), one(other_url, &pretended), one(silent_url, &nobody)];
    let shutdown = CancellationToken::new();
    for outside in witnesses::load(&configured, TRUST_DOMAIN, None)? {
        let (store, writer) = (store.clone(), writer.clone());
        tokio::spawn(outside.run(store, writer, metrics.clone(), shutdown.clone()));
    }
    tokio::spawn(checkpointer.run(shutdown.clone()));
    for size in 1..=2_u64 {
        writer.record(vec![Draft::new(Kind::LogOpened).text("coordinator", "a test")]).await?;
        let reached = async {
            loop {
                let all = store.witnesses().await?;
                if all == [("witness.test/good".to_owned(), size)] {
                    return Ok::<_, anyhow::Error>(());
                }
                ensure!(all.iter().all(|(name, _)| name == "witness.test/good"), "{all:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await??;
    }
    let kept = standings(config.keys()?, &config.state)?;
    ensure!(kept[0].kept.as_ref().is_some_and(|kept| kept.head.tree_size == 2));
    let unsigned =
        "falaj_witness_requests_total{witness=\"witness.test/bad\",outcome=\"unsigned\"}";
    let said = async {
        while !metrics.text().contains(unsigned) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, said).await?;
    shutdown.cancel();
    Ok(())
}

#[test]
fn a_witness_under_a_name_of_the_federation_or_without_a_ca_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let inside = make_key(&dir.path().join("a"), &format!("{TRUST_DOMAIN}/site/a"))?.to_string();
    let outside = make_key(&dir.path().join("b"), "witness.test/1")?.to_string();
    for (url, key, word) in [
        ("http://127.0.0.1:1", &inside, "a name in the federation"),
        ("https://127.0.0.1:1", &outside, "https needs `ca`"),
        ("ftp://127.0.0.1:1", &outside, "neither http nor https"),
    ] {
        let one = WitnessConfig { url: url.into(), key: key.clone(), ca: None, place: place() };
        let said = witnesses::load(&[one], TRUST_DOMAIN, None).expect_err("refused").to_string();
        ensure!(said.contains(word), "{said}");
    }
    Ok(())
}
