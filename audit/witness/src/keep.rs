//! What a witness keeps of one log, and the decision whether the next checkpoint is cosigned.
//!
//! Check and keep are one step under the log's lock, and what is kept is read back from the disk each time: nothing in
//! memory can be newer or older than what a restart would find.

use ed25519_dalek::SigningKey;
use falaj_core::{
    id::Digest,
    merkle::{empty_root, other_prefix},
    note::{Checkpoint, NoteError, VerifierKey},
    witness::{self, AddCheckpoint},
};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// The newest checkpoint that was cosigned, in a log's folder.
const CHECKPOINT: &str = "checkpoint";
/// The folder of evidence in a log's folder.
const EVIDENCE: &str = "evidence";
/// Contradictions of one log that are kept at most; one is enough.
const CONTRADICTIONS_MAX: usize = 1_000;
/// Heads with a wrong proof that are kept at most: anybody can send a signed head with a wrong proof.
const UNPROVEN_MAX: usize = 16;

/// Why a checkpoint is not cosigned.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request cannot be read, or contradicts itself.
    #[error("{0}")]
    Malformed(String),
    /// The log is not one of those that are watched.
    #[error("this witness does not watch the log `{0}`")]
    UnknownOrigin(String),
    /// No known key of the log has signed it.
    #[error("{0}")]
    Unsigned(NoteError),
    /// The log believes that this witness has another size, or shows another root for the size that it has.
    #[error("this witness has {kept} entries of the log")]
    Conflict {
        /// What it has.
        kept: u64,
    },
    /// The proof does not lead from what was seen to what is shown.
    #[error("the proof does not lead from the {kept} entries that were seen to those shown")]
    Proof {
        /// What it has.
        kept: u64,
    },
    /// What was seen cannot be read or kept.
    #[error("the witness cannot keep what it saw: {0}")]
    Storage(#[from] io::Error),
}

/// What a witness holds of one log.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The signed checkpoint with the witness's own cosignature.
    pub note: String,
    /// The head in it.
    pub head: Checkpoint,
}

/// One log and its folder.
struct Log {
    keys: Vec<VerifierKey>,
    dir: PathBuf,
    /// Held from reading what was seen until the next one is durable.
    lock: Mutex<()>,
}

/// A witness: its key, and what it keeps of each log.
pub struct Witness {
    name: String,
    key: SigningKey,
    logs: BTreeMap<String, Log>,
    /// Held for as long as the witness runs: no second one works on the same folder.
    _lock: File,
}

/// How one log stands with a witness.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Which log.
    pub origin: String,
    /// What was cosigned last, if anything was.
    pub kept: Option<Kept>,
    /// Evidence against it, by file.
    pub evidence: Vec<PathBuf>,
}

impl Witness {
    /// Opens the folder of a witness for it alone.
    ///
    /// # Errors
    /// When the folder is not there or another witness uses it, and when what was kept of a log cannot be read.
    pub fn open(
        name: &str,
        key: SigningKey,
        keys: BTreeMap<String, Vec<VerifierKey>>,
        state: &Path,
    ) -> io::Result<Self> {
        let at = |what: String| io::Error::other(format!("{}: {what}", state.display()));
        if !state.is_dir() {
            return Err(at("the state folder is not there: mount its disk, or make it if this is the first start. A witness that begins anew on an old key would cosign a history that it has refused before".into()));
        }
        let lock = File::create(state.join("lock"))?;
        lock.try_lock().map_err(|e| at(format!("another witness uses it ({e})")))?;
        let log = |(origin, keys): (String, Vec<VerifierKey>)| {
            let dir = folder(state, &origin);
            (origin, Log { keys, dir, lock: Mutex::new(()) })
        };
        let this = Self {
            name: name.to_owned(),
            key,
            logs: keys.into_iter().map(log).collect(),
            _lock: lock,
        };
        for log in this.logs.values() {
            fs::create_dir_all(log.dir.join(EVIDENCE))?;
            log.read()?;
        }
        File::open(state)?.sync_all()?;
        Ok(this)
    }

    /// The answer to `add-checkpoint`: the line by which this witness stands behind the head, after the head became
    /// durable. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was kept then, but evidence if the log contradicts itself.
    pub fn add(&self, body: &[u8], now: u64) -> Result<String, Refusal> {
        let malformed = |what: &str| Refusal::Malformed(what.to_owned());
        let text = str::from_utf8(body).map_err(|_| malformed("the request is not text"))?;
        let request = AddCheckpoint::parse(text).ok_or_else(|| {
            malformed(
                "the request is not `old <size>`, at most 63 hashes, a blank line and a checkpoint",
            )
        })?;
        let origin = request.note.lines().next().unwrap_or_default();
        let log = self.logs.get(origin).ok_or_else(|| Refusal::UnknownOrigin(origin.to_owned()))?;
        let shown = log.open(&request.note)?;
        // What is cosigned is the body as it was signed.
        if !request.note.strip_prefix(&shown.body()).is_some_and(|rest| rest.starts_with('\n')) {
            return Err(malformed("the checkpoint has lines that this witness does not know"));
        }
        if request.old > shown.tree_size {
            return Err(malformed("`old` is larger than the checkpoint"));
        }
        let _held = log.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !log.dir.is_dir() {
            // A disk that is away must not look like a log of which nothing was seen.
            let gone = format!("{} is gone: mount its disk", log.dir.display());
            return Err(io::Error::other(gone).into());
        }
        let kept = log.read()?;
        log.check(kept.as_ref(), &shown, &request)?;
        let malformed_name = |e: NoteError| Refusal::Storage(io::Error::other(e));
        let line = witness::cosign(&self.name, &self.key, now, &shown).map_err(malformed_name)?;
        put(&log.dir, CHECKPOINT, (own_note(&request.note, &shown, log) + &line).as_bytes())?;
        Ok(line)
    }
}

/// How each log stands, by what lies in the folder; the witness may run meanwhile.
///
/// # Errors
/// When something there cannot be read.
pub fn standings(
    keys: BTreeMap<String, Vec<VerifierKey>>,
    state: &Path,
) -> io::Result<Vec<Standing>> {
    let standing = |(origin, keys): (String, Vec<VerifierKey>)| {
        let log = Log { keys, dir: folder(state, &origin), lock: Mutex::new(()) };
        let mut evidence: Vec<PathBuf> = match fs::read_dir(log.dir.join(EVIDENCE)) {
            Ok(files) => files.map(|f| Ok(f?.path())).collect::<io::Result<_>>()?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        evidence.retain(|path| path.extension().is_some_and(|e| e == "txt"));
        evidence.sort();
        Ok(Standing { origin, kept: log.read()?, evidence })
    };
    keys.into_iter().map(standing).collect()
}

/// An origin can hold what no file's name may.
fn folder(state: &Path, origin: &str) -> PathBuf {
    state.join(Digest::of(origin.as_bytes()).to_string())
}

/// The note with the log's own signatures and no others: strangers' lines are not kept.
fn own_note(note: &str, head: &Checkpoint, log: &Log) -> String {
    let own = |line: &&str| {
        let alone = format!("{}\n{line}\n", head.body());
        log.keys.iter().any(|key| Checkpoint::open(&alone, key).is_ok())
    };
    let lines = note[head.body().len() + 1..].lines().filter(own);
    let mut text = head.body() + "\n";
    lines.for_each(|line| {
        text.push_str(line);
        text.push('\n');
    });
    text
}

impl Log {
    /// The head of a note that a known key has signed.
    fn open(&self, note: &str) -> Result<Checkpoint, Refusal> {
        let mut unsigned = NoteError::Unsigned(note.lines().next().unwrap_or_default().to_owned());
        for key in &self.keys {
            match Checkpoint::open(note, key) {
                Ok(head) => return Ok(head),
                Err(e @ NoteError::BadSignature(_)) => return Err(Refusal::Unsigned(e)),
                Err(e @ NoteError::Unsigned(_)) => unsigned = e,
                Err(e) => return Err(Refusal::Malformed(e.to_string())),
            }
        }
        Err(Refusal::Unsigned(unsigned))
    }

    /// What lies there.
    fn read(&self) -> io::Result<Option<Kept>> {
        let path = self.dir.join(CHECKPOINT);
        let note = match fs::read_to_string(&path) {
            Ok(note) => note,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let head = self.open(&note).map_err(|e| {
            io::Error::other(format!("{} is not what was kept ({e}): a key of the log that signed it was taken from the configuration, or the file was changed", path.display()))
        })?;
        Ok(Some(Kept { note, head }))
    }

    /// Whether the shown head goes on from the kept one, in the order in which the protocol asks.
    fn check(
        &self,
        kept: Option<&Kept>,
        shown: &Checkpoint,
        request: &AddCheckpoint,
    ) -> Result<(), Refusal> {
        let size = kept.map_or(0, |k| k.head.tree_size);
        let root = kept.map_or_else(empty_root, |k| k.head.root_hash);
        if shown.tree_size == size && shown.root_hash != root {
            let Some(kept) = kept else { return Err(Refusal::Proof { kept: 0 }) };
            let what = format!("the log signed two histories of {size} entries");
            self.keep_evidence("contradiction", CONTRADICTIONS_MAX, &what, kept, request)?;
            return Err(Refusal::Conflict { kept: size });
        }
        if request.old != size {
            return Err(Refusal::Conflict { kept: size });
        }
        let seen = kept.map(|k| &k.head);
        if witness::goes_on(seen, shown, &request.proof).is_ok() {
            let from_nothing = kept.is_some() || request.proof.is_empty();
            return if from_nothing { Ok(()) } else { Err(Refusal::Proof { kept: size }) };
        }
        let (from, to) = ((size, &root), (shown.tree_size, &shown.root_hash));
        if let Some(kept) = kept.filter(|_| shown.tree_size > size) {
            if let Some(other) = other_prefix(from, to, &request.proof) {
                let what = format!(
                    "the log signed a head of {} entries whose first {size} have root {other}, and signed another root for those {size} before",
                    shown.tree_size
                );
                self.keep_evidence("contradiction", CONTRADICTIONS_MAX, &what, kept, request)?;
            } else {
                let what = format!(
                    "a head of {} entries that the log signed came with a proof that does not lead to it from the {size} entries signed before: the proof is wrong, or the history was changed. Ask the log for a proof that holds",
                    shown.tree_size
                );
                self.keep_evidence("unproven", UNPROVEN_MAX, &what, kept, request)?;
            }
        }
        Err(Refusal::Proof { kept: size })
    }

    /// Keeps what the log signed, durably, once.
    fn keep_evidence(
        &self,
        kind: &str,
        most: usize,
        what: &str,
        kept: &Kept,
        request: &AddCheckpoint,
    ) -> io::Result<()> {
        let mut text = format!("{what}\n");
        for key in &self.keys {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "\nlog key {key}");
        }
        for (i, note) in [&kept.note, &request.note].into_iter().enumerate() {
            let _ = write!(text, "\nsigned statement {}:\n{note}\n", i + 1);
        }
        let _ = writeln!(text, "\nproof that was shown, {} hashes:", request.proof.len());
        for hash in &request.proof {
            let _ = writeln!(text, "{hash}");
        }
        let folder = self.dir.join(EVIDENCE);
        // The same contradiction is one file, however often it is shown and cosigned in between.
        let heads = [&kept.note, &request.note].map(|n| n.split("\n\n").next().unwrap_or_default());
        let name =
            format!("{kind}-{}.txt", &Digest::of(heads.concat().as_bytes()).to_string()[..16]);
        if folder.join(&name).exists() {
            return Ok(());
        }
        let mut there = 0;
        for file in fs::read_dir(&folder)? {
            there += usize::from(file?.file_name().to_string_lossy().starts_with(kind));
        }
        if there >= most {
            return Ok(());
        }
        put(&folder, &name, text.as_bytes())?;
        tracing::error!(what, evidence = %folder.join(name).display(), "the log contradicts itself, or was shown so");
        Ok(())
    }
}

/// Puts a file there whole or not at all, durably.
fn put(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let partial = folder.join(format!("{name}.partial"));
    let mut file = File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(partial, folder.join(name))?;
    File::open(folder)?.sync_all()
}
