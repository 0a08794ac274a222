//! AUD-13: time-stamps of the log by an authority, over HTTP, and OpenSSL's own word on what is kept.

mod authority;

use anyhow::{Context as _, Result, ensure};
use authority::{Files, Kind as Made, Reply, SOUND, Server, openssl_is_there};
use ed25519_dalek::SigningKey;
use falaj_certs::timestamp::{Issuers, Stamp};
use falaj_coordinator::{
    checkpointer::Checkpointer,
    config::TimestampConfig,
    metrics::Metrics,
    store::{Database, Store, writer},
    timestamps::{Authority, StampError, Timestamps},
};
use falaj_core::{
    audit::{Draft, Entry, Kind},
    id::Digest,
    note::NoteSigner,
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Nothing in a test takes longer; what does has hung.
const PATIENCE: Duration = Duration::from_mins(1);

fn config(url: String, ca: &Path) -> TimestampConfig {
    let place = "ae-on/ae-az".parse().expect("a place");
    TimestampConfig { url, ca: ca.to_owned(), policy: None, place }
}

/// A log that is stamped.
struct World {
    store: Store,
    writer: writer::Writer,
    metrics: Arc<Metrics>,
    timestamps: Timestamps,
}

impl World {
    async fn open(dir: &Path, config: &TimestampConfig) -> Result<Self> {
        let database = Database::Sqlite(dir.join("coordinator.sqlite"));
        let (store, writing) = Store::open(&database).await?;
        let signer = NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[9; 32]))?;
        let (signer, metrics) = (Arc::new(signer), Arc::new(Metrics::default()));
        let (writer, service) = writer::open(writing, &signer, None, metrics.clone()).await?;
        tokio::spawn(service.run());
        writer.record(vec![Draft::new(Kind::AdminRead)]).await?;
        let checkpointer = Checkpointer::new(writer.clone(), signer, None);
        let timestamps = Timestamps::new(
            Authority::load(config, None)?,
            store.clone(),
            writer.clone(),
            checkpointer,
            metrics.clone(),
        );
        Ok(Self { store, writer, metrics, timestamps })
    }

    async fn newest(&self) -> Result<Entry> {
        let size = self.writer.head().0;
        let rows = self.store.entries(size - 1, size, 1, None).await?;
        Ok(Entry::parse(&rows.first().context("an entry")?.1)?)
    }
}

/// AUD-13: what the coordinator keeps, OpenSSL accepts, as a stamp of this checkpoint and of no other; with RSA and ECDSA,
/// each digest, and either way to name the certificate.
#[tokio::test]
async fn openssl_accepts_the_stamps_that_are_kept_and_refuses_swapped_ones() -> Result<()> {
    if !openssl_is_there() {
        return Ok(());
    }
    let p256: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let p384: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"];
    let kinds = [
        SOUND,
        Made { digest: "sha384", ess: "sha1", ..SOUND },
        Made { key: &["rsa:3072"], digest: "sha512", ..SOUND },
        Made { key: p256, ..SOUND },
        Made { key: p384, digest: "sha384", ess: "sha384", ..SOUND },
        Made { key: p256, digest: "sha512", ess: "sha512", ..SOUND },
    ];
    for kind in kinds {
        let dir = tempfile::tempdir()?;
        let files = Files::make(&dir.path().join("tsa"), kind)?;
        let server = Server::honest(&files)?;
        let world = World::open(dir.path(), &config(server.url(), &files.root())).await?;
        let mut kept = Vec::new();
        for _ in 0..2 {
            let size = world.timestamps.checkpoint().await?;
            let entry = world.newest().await?;
            let rows = world.store.timestamps(size - 1, u64::MAX, 1).await?;
            let row = rows.first().context("a stamp")?.clone();
            let note = world.store.checkpoint(size).await?.context("a checkpoint")?;
            let body = entry.body();
            assert_eq!(entry.kind, Kind::CheckpointStamped);
            assert_eq!(body.int("tree_size"), Ok(size));
            assert_eq!(body.parsed("checkpoint_sha256"), Ok(Digest::of(note.as_bytes())));
            assert_eq!(body.parsed("token_sha256"), Ok(Digest::of(&row.answer)));
            assert_eq!(body.text("stamped"), Ok(&*row.stamped.to_string()));
            assert_eq!((row.log_index, row.tree_size), (entry.seq, size));
            ensure!(row.authority.contains("CN=Time-stamp authority"), "{}", row.authority);
            kept.push((note, row.answer));
        }
        let [(first, one), (second, other)] = &kept[..] else { unreachable!() };
        ensure!(files.accepts(one, first.as_bytes())? && files.accepts(other, second.as_bytes())?);
        ensure!(
            !files.accepts(one, second.as_bytes())? && !files.accepts(other, first.as_bytes())?
        );
        let swapped = Stamp::open(one, &Digest::of(second.as_bytes()));
        let swapped = swapped.expect_err("it is of another checkpoint").to_string();
        ensure!(swapped.contains("a time-stamp of something else"), "{swapped}");
    }
    Ok(())
}

/// AUD-13: the coordinator stamps by itself at the start, once for the day, and ends when it is told to.
#[tokio::test]
async fn a_day_without_a_stamp_gets_one_and_a_restart_no_second() -> Result<()> {
    if !openssl_is_there() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let files = Files::make(&dir.path().join("tsa"), SOUND)?;
    let server = Server::honest(&files)?;
    let world = World::open(dir.path(), &config(server.url(), &files.root())).await?;
    let stamped = |size: u64| {
        let mut heads = world.writer.heads();
        async move {
            let grown = tokio::time::timeout(PATIENCE, heads.wait_for(|head| head.0 >= size)).await;
            grown.context("nothing is stamped")?.map(|_| ()).context("the writer has ended")
        }
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(world.timestamps.clone().run(shutdown.clone()));
    stamped(2).await?;
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, running).await??;
    let first = world.newest().await?;
    assert_eq!((first.kind, first.body().int("tree_size")), (Kind::CheckpointStamped, Ok(1)));
    // Today has one: whoever starts again does not ask. A question would be refused aloud, and counted.
    server.set(|_| Ok(Reply::Status(500)));
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(world.timestamps.clone().run(shutdown.clone()));
    world.writer.record(vec![Draft::new(Kind::AdminRead)]).await?;
    // It looks at the store before it would ask; these questions stand behind its own.
    for _ in 0..20 {
        world.store.newest_timestamp().await?;
    }
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, running).await??;
    let text = world.metrics.text();
    ensure!(text.contains("falaj_timestamps_total{outcome=\"granted\"} 1"), "{text}");
    ensure!(text.contains("falaj_timestamps_total{outcome=\"failed\"} 0\n"), "{text}");
    Ok(())
}

/// AUD-13: a report has one stamp, however often it is asked for.
#[tokio::test]
async fn the_same_report_keeps_its_stamp() -> Result<()> {
    if !openssl_is_there() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let files = Files::make(&dir.path().join("tsa"), SOUND)?;
    let server = Server::honest(&files)?;
    let world = World::open(dir.path(), &config(server.url(), &files.root())).await?;
    let (one, same, other) = tokio::try_join!(
        world.timestamps.report(b"a report", 1),
        world.timestamps.report(b"a report", 1),
        world.timestamps.report(b"another", 1),
    )?;
    ensure!(one == same && one != other);
    ensure!(files.accepts(&one, b"a report")? && !files.accepts(&one, b"another")?);
    let entry = world.newest().await?;
    assert_eq!((entry.kind, entry.seq), (Kind::ReportStamped, 2));
    // A report's stamp is no checkpoint's.
    ensure!(world.store.newest_timestamp().await?.is_none());
    Ok(())
}

type Answers = Box<dyn FnMut(&[u8]) -> Result<Reply> + Send>;

/// An honest answer to a question in which some bytes were changed, counted from the end.
fn changed(files: &Files, from_end: usize) -> Answers {
    let files = files.clone();
    Box::new(move |query| {
        let mut query = query.to_vec();
        let at = query.len() - from_end;
        query[at] ^= 1;
        files.answer(&query).map(Reply::Bytes)
    })
}

/// An honest answer that was changed.
fn spoilt(files: &Files, spoil: fn(Vec<u8>) -> Vec<u8>) -> Answers {
    let files = files.clone();
    Box::new(move |query| files.answer(query).map(spoil).map(Reply::Bytes))
}

/// AUD-13: whatever else an authority answers is refused, says why, is counted, and leaves nothing in the log.
#[tokio::test]
async fn every_other_answer_is_refused_and_nothing_of_it_is_kept() -> Result<()> {
    if !openssl_is_there() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let at = |name: &str, kind| Files::make(&dir.path().join(name), kind);
    let sound = at("sound", SOUND)?;
    let stranger = at("stranger", SOUND)?;
    let expired = at("expired", Made { valid: ["20200101000000Z", "20210101000000Z"], ..SOUND })?;
    let for_all = at("for-all", Made { purpose: "critical,timeStamping,serverAuth", ..SOUND })?;
    let uncritical = at("uncritical", Made { purpose: "timeStamping", ..SOUND })?;
    let for_code = at("for-code", Made { purpose: "critical,codeSigning", ..SOUND })?;
    let server = Server::honest(&sound)?;
    // One file with every root, so that a certificate is refused for what it is and not for its issuer.
    let roots = dir.path().join("roots.pem");
    let pem = |files: &Files| std::fs::read_to_string(files.root());
    let all = [&sound, &expired, &for_all, &uncritical, &for_code];
    std::fs::write(&roots, all.into_iter().map(pem).collect::<Result<String, _>>()?)?;
    let world = World::open(dir.path(), &config(server.url(), &roots)).await?;

    let answer = |files: &Files| files.clone();
    let anew = |files: &Files| -> Answers {
        let (files, honest) = (files.clone(), sound.clone());
        Box::new(move |query| files.signed_anew(&honest, query).map(Reply::Bytes))
    };
    let flipped = |mut answer: Vec<u8>| {
        let last = answer.len() - 1;
        answer[last] ^= 1;
        answer
    };
    let cases: [(&str, Answers); 18] = [
        // The question ends with 17 bytes of nonce and three that ask for the certificate; the digest is before the nonce.
        ("its nonce is not the one that was sent", changed(&sound, 4)),
        ("a time-stamp of something else", changed(&sound, 3 + 19 + 1)),
        ("is not for time-stamps, critically and only", anew(&for_all)),
        ("is not for time-stamps, critically and only", anew(&uncritical)),
        ("is not for time-stamps, critically and only", anew(&for_code)),
        ("is valid from", anew(&expired)),
        ("does not lead to an issuer that is trusted", anew(&stranger)),
        ("does not lead to an issuer that is trusted", {
            let stranger = answer(&stranger);
            Box::new(move |query| stranger.answer(query).map(Reply::Bytes))
        }),
        ("it was not made with the certificate's key", spoilt(&sound, flipped)),
        ("the answer cannot be read", spoilt(&sound, |answer| answer[..answer.len() / 2].to_vec())),
        ("the answer cannot be read", spoilt(&sound, |answer| [answer, vec![0]].concat())),
        ("the answer cannot be read", Box::new(|_| Ok(Reply::Bytes(Vec::new())))),
        (
            "the answer cannot be read",
            Box::new(|_| Ok(Reply::Bytes(b"<html>Hello</html>".to_vec()))),
        ),
        (
            "refused: status 2, no room",
            Box::new(|_| {
                let text = b"no room";
                let mut answer = vec![0x30, 16, 0x30, 14, 0x02, 1, 2, 0x30, 9, 0x0c, 7];
                answer.extend_from_slice(text);
                Ok(Reply::Bytes(answer))
            }),
        ),
        ("HTTP status 500", Box::new(|_| Ok(Reply::Status(500)))),
        ("HTTP status 302", Box::new(|_| Ok(Reply::Status(302)))),
        ("longer than 65536 bytes", Box::new(|_| Ok(Reply::Endless))),
        ("cannot be reached, or does not answer in time", Box::new(|_| Ok(Reply::Never))),
    ];
    let size = world.writer.head().0;
    let count = cases.len();
    for (why, answers) in cases {
        server.set(answers);
        let refused = world.timestamps.checkpoint().await;
        let said = match refused {
            Ok(size) => anyhow::bail!("{why}: stamped {size}"),
            Err(e) => format!("{:#}", anyhow::Error::from(e)),
        };
        ensure!(said.contains(why), "{why}: {said}");
    }
    assert_eq!(world.writer.head().0, size, "the log has grown");
    ensure!(world.store.newest_timestamp().await?.is_none());
    let text = world.metrics.text();
    ensure!(
        text.contains(&format!("falaj_timestamps_total{{outcome=\"failed\"}} {count}")),
        "{text}"
    );
    // Each of them is an answer to the very question, so it was refused for the reason that it gives.
    let sound_again = sound.clone();
    server.set(move |query| sound_again.answer(query).map(Reply::Bytes));
    assert_eq!(world.timestamps.checkpoint().await?, size);
    Ok(())
}

/// AUD-13: an authority stamps under the policy that was asked for, or not at all; a server that is not there is said to
/// be away.
#[tokio::test]
async fn a_policy_is_asked_for_and_held_to() -> Result<()> {
    if !openssl_is_there() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let files = Files::make(&dir.path().join("tsa"), SOUND)?;
    let server = Server::honest(&files)?;
    let ask = |policy: &str| {
        let policy = policy.parse().map_err(anyhow::Error::msg);
        let config = policy.map(|policy| TimestampConfig {
            policy: Some(policy),
            ..config(server.url(), &files.root())
        });
        async move {
            Ok::<_, anyhow::Error>(Authority::load(&config?, None)?.ask(&Digest::of(b"x")).await)
        }
    };
    ensure!(ask("1.2.3.4.5.6").await?.is_ok());
    let refused = ask("1.2.3.4.9").await?.err().context("a policy that it does not have")?;
    ensure!(format!("{:#}", anyhow::Error::from(refused)).contains("refused: status 2"));
    ensure!("no policy".parse::<falaj_certs::timestamp::Policy>().is_err());
    let other = files.clone();
    server.set(move |query| {
        // Without the policy that was asked for: the answer is given under the authority's own.
        let query: Vec<u8> = query.to_vec();
        let stripped = [&[0x30, query[1] - 7], &query[2..56], &query[63..]].concat();
        other.answer(&stripped).map(Reply::Bytes)
    });
    let refused = ask("1.2.3.4.5.6").await?.err().context("another policy")?;
    let said = format!("{:#}", anyhow::Error::from(refused));
    ensure!(said.contains("under policy 1.2.3.4.1, and 1.2.3.4.5.6 was asked for"), "{said}");
    let url = server.url();
    drop(server);
    let away = Authority::load(&config(url, &files.root()), None)?.ask(&Digest::of(b"x")).await;
    ensure!(matches!(away, Err(StampError::Unreachable(_))));
    Ok(())
}

/// A configuration that cannot work is refused before anything starts, and says what to do.
#[test]
fn a_configuration_that_cannot_work_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "no certificate\n")?;
    let load = |url: &str, ca: &Path| {
        let refused =
            Authority::load(&config(url.into(), ca), None).err().map(|e| format!("{e:#}"));
        refused.unwrap_or_default()
    };
    for (url, ca, why) in [
        ("tsa.example", &*empty, "`log.timestamps.url` is no URL"),
        ("https://tsa.example", &*empty, "must begin with http://"),
        ("http://tsa.example", &*empty, "there is no certificate in it"),
        ("http://tsa.example", &*dir.path().join("none.pem"), "none.pem"),
    ] {
        let said = load(url, ca);
        ensure!(said.contains(why), "{why}: {said}");
    }
    ensure!(Issuers::load(&empty).is_err());
    Ok(())
}
