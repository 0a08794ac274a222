//! The log as static files (C2SP tlog-tiles), kept up to date: what is written was checked to lead from what is there to the
//! newest signed checkpoint.
//!
//! Files are written once and never changed; `checkpoint` alone is replaced, last, when all that it covers is durable. So
//! whoever reads finds a whole log, and a run that was cut off is made up for by the next one.

use crate::{
    client::{Client, ClientError},
    destination::{CHECKPOINT, Destination, Nowhere},
    download::save_as_is,
    show,
};
use anyhow::{Context as _, Result, ensure};
use falaj_core::{
    id::Place,
    merkle::{ENTRY_BYTES_MAX, Frontier, TILE_WIDTH, entries, entries_path, leaf_hash},
    note::{Checkpoint, NOTE_BYTES_MAX, VerifierKey},
    tiles::Tiles,
};
use serde_json::json;
use std::{
    fs::File,
    io::{self, BufReader, Read},
    pin::pin,
    time::Duration,
};

/// Every checkpoint that was ever there, by its size.
const CHECKPOINTS: &str = "checkpoints";
/// The largest bundle of entries.
const BUNDLE_BYTES_MAX: u64 = TILE_WIDTH * (ENTRY_BYTES_MAX as u64 + 2);

/// What is mirrored, and how that is told.
pub(crate) struct Mirror<'a> {
    pub(crate) client: &'a Client,
    /// Where the destination lies.
    pub(crate) place: Place,
    pub(crate) shard: Option<String>,
    /// The log's key as known from elsewhere.
    pub(crate) log_key: Option<VerifierKey>,
    pub(crate) json: bool,
}

impl Mirror<'_> {
    /// Brings a destination up to date: once, or again and again.
    ///
    /// # Errors
    /// When the destination is another log's or has more than the log, or something cannot be read, written or asked.
    pub(crate) async fn run(&self, destination: &str, every: Option<Duration>) -> Result<()> {
        let mut to = Destination::open(destination)?;
        let key = self.key().await?;
        let mut begun = false;
        // Wherever it is cut off, the next run makes up for it.
        let mut interrupted = pin!(tokio::signal::ctrl_c());
        loop {
            let done = tokio::select! {
                interrupted = &mut interrupted => return Ok(interrupted?),
                done = self.once(&mut to, &key) => done,
            };
            match done {
                Ok(()) => begun = true,
                // Whoever follows outlives absences of the coordinator, and of name servers, and others' exports.
                Err(e) if begun && passes(&e) => eprintln!("falaj: {e:#}; it is tried again"),
                Err(e) => return Err(e),
            }
            let Some(pause) = every else { return Ok(()) };
            tokio::select! {
                interrupted = &mut interrupted => return Ok(interrupted?),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn key(&self) -> Result<VerifierKey> {
        if let Some(key) = &self.log_key {
            return Ok(key.clone());
        }
        let key = match &self.shard {
            None => self.client.status().await?.log_verifier_key,
            Some(origin) => {
                let shards = self.client.shards().await?.items;
                let shard = shards.into_iter().find(|shard| shard.origin == *origin);
                shard.with_context(|| format!("the log has no shard {origin}"))?.log_verifier_key
            }
        };
        key.parse().context("the log's public key cannot be read")
    }

    async fn once(&self, to: &mut Destination, key: &VerifierKey) -> Result<()> {
        let at = to.look_up().await?;
        let (from, tiles) = left_off(to, key.name()).await?;
        let scratch = to.scratch().context("making a folder for what comes")?;
        let incoming = scratch.path().join("incoming.tar");
        let answer =
            self.client.mirror(from, &self.place, at.as_ref(), self.shard.as_deref()).await?;
        save_as_is(answer, &incoming, self.json).await?;
        let open = || Ok(BufReader::new(File::open(&incoming)?));
        let Taken { head, files, bytes } = take(to, open, (from, tiles), key).await?;
        let (size, place) = (head.tree_size, to.name());
        let answer = json!({
            "destination": place, "origin": head.origin, "from": from, "tree_size": size,
            "root_hash": head.root_hash.to_string(), "files": files, "bytes": bytes,
        });
        show::answer(self.json, &answer, |_| {
            format!(
                "{place}: {size} entries of {}, {} of them new ({files} files, {})",
                head.origin,
                size - from,
                show::bytes(bytes)
            )
        })
    }
}

/// Whether it may go well another time.
fn passes(e: &anyhow::Error) -> bool {
    match e.downcast_ref() {
        Some(ClientError::Unreachable { .. }) => true,
        Some(ClientError::Refused(problem)) => problem.code == "busy",
        _ => e.is::<Nowhere>(),
    }
}

/// What was written.
#[derive(Debug)]
struct Taken {
    head: Checkpoint,
    files: u64,
    bytes: u64,
}

/// How many entries are there, and their last tiles. What is there leads to the checkpoint that is there.
async fn left_off(to: &mut Destination, origin: &str) -> Result<(u64, Tiles)> {
    let place = to.name();
    let Some(note) = to.newest().await? else { return Ok((0, Tiles::default())) };
    let head = Checkpoint::of_kept(&String::from_utf8(note)?)
        .with_context(|| format!("{place}/{CHECKPOINT}"))?;
    ensure!(
        head.origin == origin,
        "{place} has the log {}, and this is {origin}: each log and each shard needs a place of its own",
        head.origin
    );
    let (size, mut files) = (head.tree_size, Vec::new());
    for path in Tiles::unfinished(size) {
        let file = to.read(&path).await?;
        files.push(file.with_context(|| format!("{place}/{path} is gone: mirror to a new place"))?);
    }
    let tiles = Tiles::resume(size, files).filter(|tiles| tiles.tree().root() == head.root_hash);
    let tiles = tiles.with_context(|| {
        format!(
            "the files in {place} do not lead to its checkpoint of {size} entries: they were changed; mirror to a new place"
        )
    })?;
    Ok((size, tiles))
}

/// Takes what is lacking: looks at all of it first, and writes then.
async fn take<R: Read>(
    to: &mut Destination,
    open: impl Fn() -> io::Result<R>,
    (from, mut tiles): (u64, Tiles),
    key: &VerifierKey,
) -> Result<Taken> {
    let mut tree = tiles.tree();
    let mut tar = tar::Archive::new(open()?);
    let mut answer = Answer::begin(&mut tar, from)?;
    while let Some(bundle) = answer.next()? {
        bundle.iter().for_each(|entry| tree.push(leaf_hash(entry)));
    }
    let head = Checkpoint::open(&answer.note, key).context("what the coordinator sent")?;
    check(&to.name(), from, &head, &tree)?;
    let mut taken = Taken { head, files: 0, bytes: 0 };
    let mut tar = tar::Archive::new(open()?);
    let mut answer = Answer::begin(&mut tar, from)?;
    while let Some(bundle) = answer.next()? {
        let mut whole = Files::new();
        bundle.iter().try_for_each(|entry| tiles.push(entry, keep(&mut whole)))?;
        put(to, &mut taken, whole).await?;
    }
    let mut rest = Files::new();
    tiles.finish(keep(&mut rest))?;
    put(to, &mut taken, rest).await?;
    let (note, dated) = (answer.note, format!("{CHECKPOINTS}/{}", taken.head.tree_size));
    // The same head may have been signed once more: the first note stays.
    let there = to.read(&dated).await?.map(String::from_utf8).transpose()?;
    if there.is_none_or(|there| Checkpoint::of_kept(&there).as_ref() != Ok(&taken.head)) {
        put(to, &mut taken, vec![(dated, note.clone().into_bytes())]).await?;
    }
    to.publish(note.as_bytes()).await?;
    Ok(taken)
}

/// Files by their paths.
type Files = Vec<(String, Vec<u8>)>;

fn keep(files: &mut Files) -> impl FnMut(&str, &[u8]) -> Result<()> {
    |path, bytes| {
        files.push((path.to_owned(), bytes.to_vec()));
        Ok(())
    }
}

async fn put(to: &mut Destination, taken: &mut Taken, files: Files) -> Result<()> {
    for (path, bytes) in files {
        if to.put(&path, &bytes).await? {
            taken.files += 1;
            taken.bytes += bytes.len() as u64;
        }
    }
    Ok(())
}

/// Whether a signed tree goes on from the entries that are there.
fn check(place: &str, from: u64, head: &Checkpoint, tree: &Frontier) -> Result<()> {
    let size = head.tree_size;
    ensure!(
        size >= from,
        "the log has {size} entries, and {place} has {from}: nothing is written; if entries were lost, tell the log's witnesses"
    );
    ensure!(
        tree.size() == size,
        "the coordinator sent entries up to {}, under a checkpoint of {size}",
        tree.size()
    );
    ensure!(
        tree.root() == head.root_hash,
        "the log of {size} entries does not go on from the {from} that are in {place}: nothing is written; keep both, and show them to the log's witnesses"
    );
    Ok(())
}

/// What the coordinator sent: the checkpoint, and then entries, bundle by bundle.
struct Answer<'t, R: Read> {
    note: String,
    files: tar::Entries<'t, R>,
    /// What a mirror has of the first bundle already.
    had: u64,
    index: u64,
}

impl<'t, R: Read> Answer<'t, R> {
    fn begin(tar: &'t mut tar::Archive<R>, from: u64) -> Result<Self> {
        let had = from % TILE_WIDTH;
        let mut this = Self { note: String::new(), files: tar.entries()?, had, index: from - had };
        let (path, note) = this.file(NOTE_BYTES_MAX as u64)?.context("the answer is empty")?;
        ensure!(path == CHECKPOINT, "the answer begins with `{path}`");
        this.note = String::from_utf8(note)?;
        Ok(this)
    }

    fn file(&mut self, most: u64) -> Result<Option<(String, Vec<u8>)>> {
        let Some(file) = self.files.next() else { return Ok(None) };
        let mut file = file?;
        let path = String::from_utf8_lossy(&file.path_bytes()).into_owned();
        let declared = file.header().size()?;
        ensure!(declared <= most, "`{path}` in the answer has {declared} bytes");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 == declared, "`{path}` in the answer ends early");
        Ok(Some((path, bytes)))
    }

    /// The entries of the next bundle that the mirror has not.
    fn next(&mut self) -> Result<Option<Vec<Vec<u8>>>> {
        let Some((path, bytes)) = self.file(BUNDLE_BYTES_MAX)? else { return Ok(None) };
        let bundle: Option<Vec<Vec<u8>>> =
            entries(&bytes).map(|entry| entry.map(<[u8]>::to_vec)).collect();
        let mut bundle = bundle.with_context(|| format!("`{path}` in the answer ends early"))?;
        let width = bundle.len() as u64;
        ensure!(
            self.index.is_multiple_of(TILE_WIDTH)
                && (1..=TILE_WIDTH).contains(&width)
                && path == entries_path(self.index / TILE_WIDTH, width),
            "the answer has `{path}` where entries from {} on should be",
            self.index
        );
        self.index += width;
        let had = std::mem::take(&mut self.had).min(width);
        bundle.drain(..usize::try_from(had)?);
        Ok(Some(bundle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use falaj_core::{merkle::put_entry, note::NoteSigner};
    use falaj_proto::problem::{Code, ProblemJson};
    use std::{
        collections::BTreeMap,
        fs,
        path::{Path, PathBuf},
    };

    #[test]
    fn whoever_follows_outlives_a_coordinator_that_is_busy_and_no_refusal() {
        for (code, goes_on) in [(Code::Busy, true), (Code::Denied, false)] {
            let problem = ProblemJson::from(&code.because("so it is"));
            assert_eq!(passes(&ClientError::Refused(problem).into()), goes_on, "{code}");
        }
    }

    fn signer() -> NoteSigner {
        NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[5; 32])).expect("a name")
    }

    /// What a coordinator sends that has so many entries, to a mirror of `from`. Beyond the `fork`th they are other ones.
    fn sent(from: u64, size: u64, fork: u64) -> Vec<u8> {
        let entry = |i: u64| if i < fork { format!("leaf-{i}") } else { format!("other-{i}") };
        let mut tree = Frontier::new();
        (0..size).for_each(|i| tree.push(leaf_hash(entry(i).as_bytes())));
        let origin = "falaj.test/log".to_owned();
        let head = Checkpoint { origin, tree_size: size, root_hash: tree.root() };
        let mut tar = tar::Builder::new(Vec::new());
        let mut put = |path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, path, bytes).expect("in memory");
        };
        put(CHECKPOINT, signer().sign(&head.body()).expect("signs").as_bytes());
        let mut at = from - from % TILE_WIDTH;
        while at < size && from < size {
            let width = TILE_WIDTH.min(size - at);
            let mut bundle = Vec::new();
            (at..at + width).for_each(|i| put_entry(entry(i).as_bytes(), &mut bundle));
            put(&entries_path(at / TILE_WIDTH, width), &bundle);
            at += width;
        }
        tar.into_inner().expect("in memory")
    }

    /// Mirrors so many entries, as a run does.
    async fn run(root: &Path, size: u64, fork: u64) -> Result<Taken> {
        let mut to = Destination::open(root.to_str().expect("UTF-8"))?;
        let key = signer().verifier().clone();
        let (from, tiles) = left_off(&mut to, key.name()).await?;
        let sent = sent(from, size, fork);
        take(&mut to, || Ok(&sent[..]), (from, tiles), &key).await
    }

    fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut found, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let name = path.strip_prefix(root).expect("below").to_owned();
                    found.insert(name, fs::read(path).expect("a file"));
                }
            }
        }
        found
    }

    /// The first so many entries of one history.
    const ONE: u64 = u64::MAX;

    #[tokio::test]
    async fn a_mirror_that_grew_step_by_step_is_the_one_that_was_made_at_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let (grown, made) = (dir.path().join("grown"), dir.path().join("made"));
        let mut before = 0;
        for size in [1, 255, 256, 300, 300, 66_000, 66_001] {
            let taken = run(&grown, size, ONE).await.expect("taken");
            assert_eq!((taken.head.tree_size, taken.files == 0), (size, size == before), "{size}");
            before = size;
        }
        run(&made, 66_001, ONE).await.expect("taken");
        let (grown, made) = (files(&grown), files(&made));
        assert!(made.iter().all(|(path, bytes)| grown.get(path) == Some(bytes)));
        // What is more there was not whole at the time, or is an earlier checkpoint.
        let more = |path: &&PathBuf| {
            let path = path.to_string_lossy();
            !path.contains(".p/") && !path.starts_with(CHECKPOINTS)
        };
        let more: Vec<_> = grown.keys().filter(|p| !made.contains_key(*p)).filter(more).collect();
        assert!(more.is_empty(), "{more:?}");
        // And it is what any maker of such files makes.
        let mut tiles = Tiles::default();
        let mut compared = 0;
        let mut same = |path: &str, bytes: &[u8]| -> Result<()> {
            compared += 1;
            ensure!(made.get(Path::new(path)).is_some_and(|there| there == bytes), "{path}");
            Ok(())
        };
        (0..66_001).for_each(|i| {
            tiles.push(format!("leaf-{i}").as_bytes(), &mut same).expect("the same");
        });
        tiles.finish(&mut same).expect("the same");
        assert_eq!(compared, 2 * (66_001 / 256 + 1) + 2 + 1);
    }

    #[tokio::test]
    async fn a_log_that_is_shorter_or_another_one_is_refused_and_nothing_is_written() {
        let dir = tempfile::tempdir().expect("a folder");
        run(dir.path(), 300, ONE).await.expect("taken");
        let before = files(dir.path());
        for (size, fork, why) in [
            (299, ONE, "the log has 299 entries"),
            (300, 299, "does not go on from the 300"),
            (400, 299, "does not go on from the 300"),
            (900, 0, "does not go on from the 300"),
        ] {
            let wrong = format!("{:#}", run(dir.path(), size, fork).await.expect_err("refused"));
            assert!(wrong.contains(why) && wrong.contains("300"), "{size}, {fork}: {wrong}");
            assert_eq!(files(dir.path()), before, "{size}, {fork}");
        }
        // Entries after the fork are as good as any others.
        assert_eq!(run(dir.path(), 400, 300).await.expect("taken").head.tree_size, 400);
    }

    #[tokio::test]
    async fn what_was_changed_is_named_and_what_was_cut_off_is_made_up_for() {
        let dir = tempfile::tempdir().expect("a folder");
        run(dir.path(), 300, ONE).await.expect("taken");
        // A run that was killed before its checkpoint: its files are there.
        let old = fs::read(dir.path().join(CHECKPOINT)).expect("a checkpoint");
        run(dir.path(), 600, ONE).await.expect("taken");
        fs::write(dir.path().join(CHECKPOINT), &old).expect("written");
        let again = run(dir.path(), 600, ONE).await.expect("taken");
        assert_eq!((again.files, again.head.tree_size), (0, 600));
        // Files that the next run needs, and one that it writes.
        for path in Tiles::unfinished(600) {
            let path = dir.path().join(path);
            let whole = fs::read(&path).expect("a file");
            let mut changed = whole.clone();
            changed[5] ^= 1;
            fs::write(&path, changed).expect("written");
            let wrong = format!("{:#}", run(dir.path(), 700, ONE).await.expect_err("changed"));
            assert!(wrong.contains("do not lead to its checkpoint of 600 entries"), "{wrong}");
            fs::remove_file(&path).expect("removed");
            let wrong = format!("{:#}", run(dir.path(), 700, ONE).await.expect_err("gone"));
            assert!(wrong.contains("is gone"), "{wrong}");
            fs::write(&path, whole).expect("written");
        }
        let next = dir.path().join("tile/0/002");
        fs::write(&next, b"something else").expect("written");
        let wrong = format!("{:#}", run(dir.path(), 800, ONE).await.expect_err("there already"));
        assert!(wrong.contains("tile/0/002") && wrong.contains("with other bytes"), "{wrong}");
        let kept = fs::read_to_string(dir.path().join(CHECKPOINT)).expect("a checkpoint");
        assert_eq!(Checkpoint::of_kept(&kept).expect("reads").tree_size, 600);
        fs::remove_file(next).expect("removed");
        assert_eq!(run(dir.path(), 800, ONE).await.expect("taken").head.tree_size, 800);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_signed_or_not_in_order_is_not_taken() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().to_str().expect("UTF-8");
        let mut to = Destination::open(path).expect("a folder");
        let key = signer().verifier().clone();
        let other = NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[6; 32]));
        let other = other.expect("a name").verifier().clone();
        let mut refused = async |sent: &[u8], key: &VerifierKey| {
            let taken = take(&mut to, || Ok(sent), (0, Tiles::default()), key).await;
            format!("{:#}", taken.expect_err("refused"))
        };
        let whole = sent(0, 300, ONE);
        let unsigned = refused(&whole, &other).await;
        assert!(unsigned.contains("not signed by"), "{unsigned}");
        let late = refused(&sent(256, 300, ONE), &key).await;
        assert!(late.contains("where entries from 0 on should be"), "{late}");
        for length in [10, 700, 3_000] {
            refused(&whole[..length], &key).await;
        }
        assert_eq!(files(dir.path()).len(), 1, "the lock alone");
        let locked = Destination::open(path).err().expect("locked").to_string();
        assert!(locked.contains("another `falaj log mirror`"), "{locked}");
    }

    /// A server that speaks S3 (Python's `moto`), while it lives.
    struct Server(std::process::Child, String);

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Server {
        /// `None` when there is none on this machine.
        fn start() -> Option<Self> {
            use std::{io::BufRead as _, process};
            let mut command = process::Command::new("moto_server");
            command.args(["-H", "127.0.0.1", "-p", "0"]).stderr(process::Stdio::piped());
            let mut child = match command.spawn() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
                child => child.expect("it starts"),
            };
            let mut said = BufReader::new(child.stderr.take().expect("piped")).lines();
            let url = said.find_map(|line| {
                let line = line.expect("text");
                line.split_once("Running on ").map(|(_, url)| url.trim().to_owned())
            });
            // What it says from now on must not keep it waiting.
            std::thread::spawn(move || said.for_each(drop));
            Some(Self(child, url.expect("it listens")))
        }

        fn bucket(&self, place: &str) -> Destination {
            let builder = object_store::aws::AmazonS3Builder::new()
                .with_endpoint(&self.1)
                .with_allow_http(true)
                .with_region("me-central-1")
                .with_access_key_id("test")
                .with_secret_access_key("test");
            Destination::bucket(place, builder).expect("a bucket")
        }
    }

    #[tokio::test]
    async fn a_bucket_has_what_a_folder_has_and_the_store_itself_refuses_what_would_be_written_twice()
     {
        let Some(server) = Server::start() else {
            eprintln!("SKIPPED: there is no S3 server; `pip install 'moto[server]'` mends that");
            return;
        };
        let _ = falaj_certs::tls::provider().install_default();
        let made = reqwest::Client::new().put(format!("{}/logs", server.1)).send().await;
        assert!(made.expect("an answer").status().is_success());
        let dir = tempfile::tempdir().expect("a folder");
        let key = signer().verifier().clone();
        let mirror = async |to: &mut Destination, size: u64, fork: u64| -> Result<Taken> {
            let (from, tiles) = left_off(to, key.name()).await?;
            let sent = sent(from, size, fork);
            take(to, || Ok(&sent[..]), (from, tiles), &key).await
        };
        let mut to = server.bucket("logs/public/2026");
        for size in [1, 300, 300, 1_000] {
            let at = to.look_up().await.expect("found").expect("over the network");
            assert_eq!(at.host, "127.0.0.1");
            let (bucket, folder) =
                (mirror(&mut to, size, ONE).await, run(dir.path(), size, ONE).await);
            let (bucket, folder) = (bucket.expect("taken"), folder.expect("taken"));
            assert_eq!((bucket.files, bucket.bytes), (folder.files, folder.bytes), "{size}");
        }
        for (path, bytes) in files(dir.path()) {
            let path = path.to_str().expect("UTF-8");
            if path != ".lock" {
                assert_eq!(to.read(path).await.expect("read"), Some(bytes), "{path}");
            }
        }
        for (size, fork) in [(999, ONE), (1_200, 999)] {
            let wrong = format!("{:#}", mirror(&mut to, size, fork).await.expect_err("refused"));
            assert!(wrong.contains("1000") && wrong.contains("s3://logs/public/2026"), "{wrong}");
        }
        let other = to.put("tile/0/000", b"other bytes").await.expect_err("refused").to_string();
        assert!(other.contains("s3://logs/public/2026/tile/0/000 is there already"), "{other}");
        // Two mirrors read the same checkpoint: the slower one gives way.
        let (mut fast, mut slow) =
            (server.bucket("logs/public/2026"), server.bucket("logs/public/2026"));
        let at = left_off(&mut slow, key.name()).await.expect("read");
        mirror(&mut fast, 1_100, ONE).await.expect("taken");
        let late = sent(at.0, 1_050, ONE);
        let late = take(&mut slow, || Ok(&late[..]), at, &key).await.expect_err("too late");
        assert!(format!("{late:#}").contains("another `falaj log mirror`"), "{late:#}");
        assert_eq!(left_off(&mut slow, key.name()).await.expect("read").0, 1_100);
    }

    #[test]
    fn a_destination_is_a_folder_or_a_bucket() {
        for wrong in ["gs://bucket/log", "file://host/log", "https://log.example/"] {
            let why = Destination::open(wrong).err().expect("refused").to_string();
            assert!(why.contains("name a folder"), "{wrong}: {why}");
        }
    }
}
