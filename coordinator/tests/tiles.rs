//! A log that the coordinator writes, held against tools that know nothing of Falaj.

use ed25519_dalek::SigningKey;
use falaj_coordinator::{
    checkpointer::Checkpointer,
    metrics::Metrics,
    proofs,
    shards::Shards,
    store::{Database, Store, writer},
};
use falaj_core::{
    audit::{Draft, Kind},
    merkle::{Frontier, TILE_WIDTH, tile_path, verify_consistency, verify_inclusion},
    note::{Checkpoint, NoteSigner},
    tiles::Tiles,
};
use std::{error::Error, fs, io, path::Path, process::Command, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Entries of the log: two levels of whole tiles, and a beginning of the third.
const ENTRIES: u64 = 70_000;
/// Entries that are handed in together.
const TOGETHER: u64 = 1_000;

type Outcome = Result<(), Box<dyn Error>>;

fn signer() -> NoteSigner {
    NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[7; 32])).expect("a name")
}

/// A log of [`ENTRIES`] entries in a folder: its store, and its newest checkpoint.
async fn written(dir: &Path) -> Result<(Store, String), Box<dyn Error>> {
    let (store, writing) = Store::open(&Database::Sqlite(dir.join("coordinator.sqlite"))).await?;
    let signer = Arc::new(signer());
    let (writer, service) =
        writer::open(writing, &signer, None, Arc::new(Metrics::default())).await?;
    let serving = tokio::spawn(service.run());
    for batch in 0..ENTRIES / TOGETHER {
        let entry = |i| Draft::new(Kind::AdminRead).count("n", batch * TOGETHER + i);
        writer.record((0..TOGETHER).map(entry).collect()).await?;
    }
    let checkpointer = Checkpointer::new(writer.clone(), signer, None);
    let (size, note) = checkpointer.current(&store).await?;
    assert_eq!(size, ENTRIES);
    drop((writer, checkpointer));
    serving.await?;
    Ok((store, note))
}

fn put(folder: &Path, path: &str, bytes: &[u8]) -> io::Result<()> {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().unwrap_or(folder))?;
    fs::write(path, bytes)
}

#[tokio::test]
async fn gos_own_tools_verify_every_tile_and_proofs_and_ours_come_from_the_store() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (store, note) = written(dir.path()).await?;
    let head = Checkpoint::open(&note, signer().verifier())?;
    let (mut tiles, mut roots, mut leaves) = (Tiles::default(), vec![], vec![]);
    let (mut frontier, folder) = (Frontier::new(), dir.path().join("tiles"));
    for from in (0..ENTRIES).step_by(1_000) {
        for (_, bytes, leaf) in store.entries(from, ENTRIES, 1_000, None).await? {
            tiles.push(&bytes, |path, bytes| put(&folder, path, bytes))?;
            roots.push(frontier.root());
            leaves.push(leaf);
            frontier.push(leaf);
        }
    }
    tiles.finish(|path, bytes| put(&folder, path, bytes))?;
    put(&folder, "checkpoint", note.as_bytes())?;
    assert_eq!(frontier.root(), head.root_hash);
    // Our own proofs, from the leaves and the hashes of tiles in the store.
    let at = |i: u64| usize::try_from(i).expect("small");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..100 {
        let size = 1 + next(ENTRIES);
        let root = if size == ENTRIES { head.root_hash } else { roots[at(size)] };
        let index = next(size);
        let proof = proofs::inclusion(&store, index, size).await?;
        verify_inclusion(&leaves[at(index)], index, size, &proof, &root)?;
        let old = 1 + next(size);
        let proof = proofs::consistency(&store, old, size).await?;
        let old_root = if old == ENTRIES { head.root_hash } else { roots[at(old)] };
        verify_consistency(old, size, &proof, &old_root, &root)?;
    }
    served(store, &folder).await?;
    go(&folder)
}

/// Every hash tile is the same over HTTP, and nothing else is there.
async fn served(store: Store, folder: &Path) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}/falaj.test/log", listener.local_addr()?);
    let shutdown = CancellationToken::new();
    let shards = Shards::load(&store, signer().verifier()).await?;
    let serving = tokio::spawn(falaj_coordinator::tiles::serve(listener, shards, shutdown.clone()));
    // The client wants one though it speaks plain HTTP; another test may have been first.
    let _ = falaj_certs::tls::provider().install_default();
    let http = reqwest::Client::new();
    let get = async |path: &str| -> Result<(u16, Vec<u8>), Box<dyn Error>> {
        let answer = http.get(format!("{base}/{path}")).send().await?;
        Ok((answer.status().as_u16(), answer.bytes().await?.to_vec()))
    };
    assert_eq!(get("checkpoint").await?, (200, fs::read(folder.join("checkpoint"))?));
    let mut compared = 0;
    for level in 0..3 {
        let whole = ENTRIES >> (8 * (level + 1));
        let left = (ENTRIES >> (8 * level)) % TILE_WIDTH;
        let partial = (left > 0).then_some((whole, left));
        for (n, width) in (0..whole).map(|n| (n, TILE_WIDTH)).chain(partial) {
            let path = tile_path(u8::try_from(level)?, n, width);
            assert_eq!(get(&path).await?, (200, fs::read(folder.join(&path))?), "{path}");
            compared += 1;
        }
    }
    // As many as there are tiles of 70,000 hashes, and of those of them.
    assert_eq!(compared, 274 + 2 + 1);
    let (_, first) = get("tile/0/000").await?;
    assert_eq!(get("tile/0/000.p/9").await?, (200, first[..9 * 32].to_vec()));
    let beyond = tile_path(0, ENTRIES / TILE_WIDTH, ENTRIES % TILE_WIDTH + 1);
    for nothing in [&*beyond, "tile/3/000.p/1", "tile/entries/000", "tile/0/0", "", "../log.key"] {
        assert_eq!(get(nothing).await?.0, 404, "{nothing}");
    }
    shutdown.cancel();
    serving.await?;
    Ok(())
}

/// Runs the few lines of Go beside this file.
fn go(folder: &Path) -> Outcome {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tiles.go");
    let run = |folder: &Path| {
        Command::new("go")
            .args(["run", program])
            .arg(folder)
            .arg(signer().verifier().to_string())
            .envs([("GOPATH", "/usr/share/gocode"), ("GO111MODULE", "off"), ("GOFLAGS", "")])
            .output()
    };
    let out = match run(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            eprintln!(
                "SKIPPED: there is no Go; `apt-get install -y golang-go golang-golang-x-mod-dev` mends that"
            );
            return Ok(());
        }
        out => out?,
    };
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(
        said.contains("70000 entries, 277 tiles, 100 inclusion and 100 consistency proofs"),
        "{said}"
    );
    // It can fail: one flipped bit in one tile.
    let tile = folder.join("tile/0/100");
    let mut bytes = fs::read(&tile)?;
    bytes[1_000] ^= 1;
    fs::write(&tile, bytes)?;
    let out = run(folder)?;
    assert!(!out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    Ok(())
}
