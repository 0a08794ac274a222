//! The offline verifier: checks an exported bundle without a database, a network, or trust in anyone.
//!
//! It reads the tar once, from front to back, and keeps one tile of hashes, the frontier of the tree, and one
//! digest per certificate, header and open round. What it finds wrong first, it names.

mod acts;
mod approvals;
pub mod args;
mod decisions;
mod egress;
mod erased;
mod evaluated;
mod in_force;
mod keys;
mod ledger;
mod provenance;
mod replay;
mod revoked;
mod stamps;
mod tokens;

pub use egress::{EgressReport, KindReport};
pub use erased::ErasedReport;
use erased::Later;
use falaj_certs::{timestamp::Issuers, trust::TrustFile};
use falaj_core::{
    audit::{
        Entry, Kind, bundle,
        person::{Disclosure, Person},
    },
    canon::{self, Canon},
    id::Digest,
    merkle::{self, Frontier, TILE_WIDTH},
    ml_dsa::{self, MlDsaKey},
    note::{Checkpoint, VerifierKey},
    report::{Scope, Sections},
    succession::SUCCESSIONS_MAX,
    tiles::Tiles,
};
pub use keys::Before;
use keys::Keys;
pub use ledger::LedgerReport;
pub use provenance::VersionReport;
use replay::Replay;
use serde::Serialize;
use stamps::Stamps;
pub use stamps::{StampLevel, StampReport};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    io::{self, Read},
    path::Path,
};

/// No single file of a bundle is larger, apart from what is streamed: a full tile of entries.
const FILE_BYTES_MAX: u64 = TILE_WIDTH * (merkle::ENTRY_BYTES_MAX as u64 + 2);

/// People who are not disclosed, and people who were erased, at most: a coordinator knows far fewer at once.
const PERSONS_MAX: usize = 1 << 20;

/// What is wrong with a bundle: the first thing found.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// The file cannot be read as a bundle.
    #[error("the bundle cannot be read: {0}")]
    Unreadable(String),
    /// The static files cannot be written.
    #[error("the log cannot be laid out as files: {0}")]
    Unwritable(String),
    /// Something that every bundle has is missing.
    #[error("the bundle has no `{0}`")]
    Missing(String),
    /// The checkpoint does not hold.
    #[error("the checkpoint is wrong: {0}")]
    Checkpoint(String),
    /// An entry's bytes are not those that were hashed.
    #[error(
        "entry {index} is wrong: its leaf hash should be {expected}, its bytes hash to {found}{claims}"
    )]
    Entry {
        /// Index in the log.
        index: u64,
        /// In the tile.
        expected: Digest,
        /// Of the bytes.
        found: Digest,
        /// What the changed bytes claim, if they can be read.
        claims: String,
    },
    /// An entry is not what its place says.
    #[error("entry {index} is wrong: {what}")]
    Content {
        /// Index in the log.
        index: u64,
        /// What is wrong.
        what: String,
    },
    /// The entries are whole, but lead to another root than was signed.
    #[error(
        "the log is not the one that was signed: {size} entries have root {found}, the checkpoint says {signed}"
    )]
    Root {
        /// Entries.
        size: u64,
        /// Of the entries.
        found: Digest,
        /// In the checkpoint.
        signed: Digest,
    },
    /// A site's egress journal does not hold.
    #[error("an egress journal is wrong: {what}")]
    Egress {
        /// What is wrong.
        what: String,
    },
    /// A site's budget ledger does not hold.
    #[error("a budget ledger is wrong: {what}")]
    Ledger {
        /// What is wrong.
        what: String,
    },
    /// What was signed of a version does not hold.
    #[error("a provenance is wrong: {what}")]
    Provenance {
        /// What is wrong.
        what: String,
    },
    /// A file beside the log is not what the log says.
    #[error("`{path}` is wrong: {what}")]
    File {
        /// In the tar.
        path: String,
        /// What is wrong.
        what: String,
    },
}

/// What was checked.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The log's name.
    pub origin: String,
    /// Its verifier key.
    pub log_verifier_key: String,
    /// Whether the caller pinned that key; otherwise it was taken from the bundle itself.
    pub key_pinned: bool,
    /// Its second verifier key, of ML-DSA-44, if it has one.
    pub log_ml_dsa_key: Option<String>,
    /// Whether the checkpoint's signature by that one was checked; a build without the feature `ml-dsa` ignores it.
    pub ml_dsa_checked: bool,
    /// Statements that lead from the key that the caller pinned to this one.
    pub successions: usize,
    /// Where the log goes on from, if it is not the first shard.
    pub before: Option<Before>,
    /// Whether the caller pinned the issuers of certificates; otherwise they are those that the coordinator trusted.
    pub issuers_pinned: bool,
    /// Entries.
    pub tree_size: u64,
    /// Their root.
    pub root_hash: String,
    /// Rounds that gave a model.
    pub models: u64,
    /// Updates that were accepted, each under its site's signature.
    pub updates: u64,
    /// Connections, updates and requests that were refused.
    pub refusals: u64,
    /// Decisions that the policies in the bundle were asked for again, and made again.
    pub decisions: u64,
    /// Quotes of sites' TPMs that were checked again.
    pub quotes: u64,
    /// Verdicts that gates on updates had a part in. The figures of those are the coordinator's word.
    pub compared: u64,
    /// Who stands behind how much of the log, by cosignatures.
    pub witnesses: Vec<WitnessReport>,
    /// Checkpoints that an authority has stamped with the time.
    pub timestamps: Vec<StampReport>,
    /// The time-stamp of the report that the bundle brings, if it brings one.
    pub report_timestamp: Option<StampReport>,
    /// People who are not disclosed because a later shard says that they were erased.
    pub erased: Vec<ErasedReport>,
    /// Budget ledgers that were checked against the updates.
    pub ledgers: Vec<LedgerReport>,
    /// Egress journals that were checked against the updates.
    pub egress: Vec<EgressReport>,
    /// Provenances of versions that were checked against the entries.
    pub versions: Vec<VersionReport>,
    /// The audit report over what was asked for, in the sections of [`falaj_core::report`].
    #[serde(skip)]
    pub sections: Canon,
}

/// What a witness has signed: that it saw the log with so many entries, going on from all that it had seen before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct WitnessReport {
    /// Its identity.
    pub witness: String,
    /// Entries that it saw.
    pub tree_size: u64,
    /// When, as it says.
    pub time: String,
}

/// What a bundle is held against, and what is to be made of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// The log's key as known from elsewhere.
    pub log_key: Option<&'a VerifierKey>,
    /// The log's second key, of ML-DSA-44, as known from elsewhere: the checkpoint has to be signed by it as well.
    pub ml_dsa_key: Option<&'a MlDsaKey>,
    /// Whom the auditor trusts to vouch for whom, as known from elsewhere.
    pub trust: Option<&'a TrustFile>,
    /// Who may have issued the certificates of time-stamp authorities, as known from elsewhere.
    pub tsa: Option<&'a Issuers>,
    /// What the report is about; all of the log without it.
    pub scope: Option<&'a Scope>,
    /// Budget ledgers that sites exported beside it.
    pub ledgers: &'a [String],
    /// Egress journals that sites exported beside it.
    pub egress: &'a [String],
    /// What was signed of versions: DSSE envelopes.
    pub provenances: &'a [String],
    /// A folder in which the log is laid out as static files (C2SP tlog-tiles). It has a `checkpoint` only if the
    /// bundle holds.
    pub tiles: Option<&'a Path>,
}

/// Verifies a bundle; `progress` hears of entries done and in all.
///
/// # Errors
/// [`Wrong`]: the first thing that does not hold.
pub fn verify(
    bundle: impl Read,
    options: Options<'_>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, Wrong> {
    let unreadable = |e: io::Error| Wrong::Unreadable(e.to_string());
    let mut tar = tar::Archive::new(bundle);
    let mut files = tar.entries().map_err(unreadable)?;
    let mut next = || -> Result<Option<(String, Vec<u8>)>, Wrong> {
        let Some(file) = files.next() else { return Ok(None) };
        let mut file = file.map_err(unreadable)?;
        let path = String::from_utf8_lossy(&file.path_bytes()).into_owned();
        let declared = file.header().size().map_err(unreadable)?;
        if declared > FILE_BYTES_MAX {
            return Err(Wrong::File {
                path,
                what: format!("{declared} bytes is more than any file of a bundle has"),
            });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(declared).unwrap_or_default());
        file.read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 != declared {
            return Err(Wrong::Unreadable(format!("`{path}` ends early")));
        }
        Ok(Some((path, bytes)))
    };
    let mut expect = |wanted: &str| match next()? {
        Some((path, bytes)) if path == wanted => Ok(bytes),
        _ => Err(Wrong::Missing(wanted.to_owned())),
    };
    let about = About::parse(&expect(bundle::ABOUT)?)?;
    let mut verifier = Verifier::begin(&about, &expect(bundle::CHECKPOINT)?, options)?;
    while let Some((path, bytes)) = next()? {
        verifier.take(&path, bytes)?;
        progress(verifier.log.frontier.size(), verifier.head.tree_size);
    }
    verifier.finish()
}

/// A bundle that is being read.
struct Verifier<'a> {
    options: Options<'a>,
    key: &'a VerifierKey,
    keys: Keys,
    later: Later,
    note: String,
    head: Checkpoint,
    replay: Replay,
    stamps: Stamps<'a>,
    log: Log,
    witnesses: Vec<WitnessReport>,
    tiles: Tiles,
    /// The report that the bundle brings.
    claimed: Option<Vec<u8>>,
    /// That report's time-stamp.
    claimed_stamp: Option<Vec<u8>>,
}

impl<'a> Verifier<'a> {
    fn begin(about: &'a About, note: &[u8], options: Options<'a>) -> Result<Self, Wrong> {
        let (key, keys) = (&about.key, Keys::of(about, options)?);
        let note = str::from_utf8(note).map_err(|e| Wrong::Checkpoint(e.to_string()))?;
        let head = Checkpoint::open(note, key).map_err(|e| Wrong::Checkpoint(e.to_string()))?;
        if let Some(second) = keys.of_log.ml_dsa()
            && (ml_dsa::BUILT || options.ml_dsa_key.is_some())
        {
            second.require(note).map_err(|e| Wrong::Checkpoint(e.to_string()))?;
        }
        if head.origin != about.origin || head.tree_size != about.tree_size {
            return Err(Wrong::Checkpoint(format!(
                "`{}` speaks of {} entries of {}, the checkpoint of {} of {}",
                bundle::ABOUT,
                about.tree_size,
                about.origin,
                head.tree_size,
                head.origin
            )));
        }
        let later = Later::of(about, &head, keys.of_log.ml_dsa())?;
        // What an earlier bundle left there must not vouch for this one.
        if let Some(old) = options.tiles.map(|folder| folder.join(bundle::CHECKPOINT))
            && let Err(e) = fs::remove_file(&old)
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(Wrong::Unwritable(format!("{}: {e}", old.display())));
        }
        let scoped = options.scope.map(|scope| Sections::new(scope.clone()));
        let folds = [Sections::default()].into_iter().chain(scoped).collect();
        Ok(Self {
            options,
            key,
            keys,
            later,
            note: note.to_owned(),
            head,
            replay: Replay::new(options.trust, folds),
            stamps: Stamps::new(options.tsa),
            log: Log::default(),
            witnesses: Vec::new(),
            tiles: Tiles::default(),
            claimed: None,
            claimed_stamp: None,
        })
    }

    /// The next file of the tar.
    fn take(&mut self, path: &str, bytes: Vec<u8>) -> Result<(), Wrong> {
        if path.starts_with(bundle::WITNESSED) {
            let wrong = |what: String| Wrong::File { path: path.to_owned(), what };
            let (note, earlier) = self.earlier(path, &bytes)?;
            let found = self.replay.witnesses(note, earlier.tree_size).map_err(wrong)?;
            self.witnesses.extend(found);
            self.log.take_earlier(path, &earlier)
        } else if let Some(name) = path.strip_prefix(bundle::STAMPED) {
            if name.parse::<u64>().is_err() {
                return self.stamps.take_answer(path, &bytes);
            }
            let (_, earlier) = self.earlier(path, &bytes)?;
            self.stamps.take_note(path, earlier.tree_size, &bytes)?;
            self.log.take_earlier(path, &earlier)
        } else if path.starts_with(bundle::ERASED) {
            let person = self.later.take(path, bytes)?;
            person.map_or(Ok(()), |person| self.log.take_erased(path, person))
        } else if path.starts_with(bundle::TILES) {
            self.log.take_tile(path, &bytes)
        } else if path.starts_with(bundle::PERSONAL) {
            self.log.take_personal(path, &bytes)
        } else if path.starts_with(bundle::ENTRIES) {
            let follow = &mut |entry: &Entry| {
                self.keys.take(entry)?;
                self.stamps.take_entry(entry)?;
                self.replay.take_entry(entry)
            };
            self.log.take_entries(path, &bytes, self.head.tree_size, follow)?;
            let Some(folder) = self.options.tiles else { return Ok(()) };
            let put = |path: &str, bytes: &[u8]| put_file(folder, path, bytes);
            merkle::entries(&bytes).flatten().try_for_each(|e| self.tiles.push(e, put))
        } else if path == bundle::REPORT {
            self.claimed = Some(bytes);
            Ok(())
        } else if path == bundle::REPORT_STAMP && self.claimed.is_some() {
            self.claimed_stamp = Some(bytes);
            Ok(())
        } else {
            self.replay.take_file(path, bytes)
        }
    }

    /// A checkpoint of this log, which was signed before the one that the bundle goes up to.
    fn earlier<'n>(&self, path: &str, note: &'n [u8]) -> Result<(&'n str, Checkpoint), Wrong> {
        let wrong = |what: String| Wrong::File { path: path.to_owned(), what };
        let note = str::from_utf8(note).map_err(|e| wrong(e.to_string()))?;
        let earlier = self.keys.of_log.open(note).map_err(|e| wrong(e.to_string()))?;
        if earlier.tree_size > self.head.tree_size {
            return Err(wrong("it is of more entries than the bundle has".into()));
        }
        Ok((note, earlier))
    }

    /// All was read: the entries have led to what was signed, and the report is what follows from them.
    fn finish(mut self) -> Result<Report, Wrong> {
        let (size, found) = (self.log.frontier.size(), self.log.frontier.root());
        if size != self.head.tree_size {
            return Err(Wrong::Missing(merkle::entries_path(size / TILE_WIDTH, TILE_WIDTH)));
        }
        if found != self.head.root_hash {
            return Err(Wrong::Root { size, found, signed: self.head.root_hash });
        }
        self.keys.finish()?;
        self.replay.finish()?;
        let erased = self.later.finish()?;
        self.log.people.finish()?;
        let timestamps = self.stamps.finish()?;
        let folds = std::mem::take(&mut self.replay.folds);
        let mut reports = folds.into_iter().map(|f| f.finish(&self.head.origin, size, &found));
        let whole = reports.next().unwrap_or(Canon::Bool(false));
        let wrong = |what: &str| Wrong::File { path: bundle::REPORT.into(), what: what.into() };
        match &self.claimed {
            Some(claimed) if *claimed != whole.to_bytes() => {
                return Err(wrong("it is not the report that follows from the log"));
            }
            Some(_) => {}
            None => return Err(Wrong::Missing(bundle::REPORT.into())),
        }
        let claimed = self.claimed.as_deref().unwrap_or_default();
        let report_timestamp = self.claimed_stamp.as_deref();
        let report_timestamp =
            report_timestamp.map(|answer| self.stamps.report(size, claimed, answer)).transpose()?;
        let sections = reports.next().unwrap_or(whole);
        if let Some(folder) = self.options.tiles {
            self.tiles.finish(|path, bytes| put_file(folder, path, bytes))?;
            put_file(folder, bundle::CHECKPOINT, self.note.as_bytes())?;
        }
        let ledgers = self
            .options
            .ledgers
            .iter()
            .map(|text| self.replay.ledger(text))
            .collect::<Result<_, _>>()?;
        let keys: Vec<VerifierKey> = self.keys.of_log.all().cloned().collect();
        let versions = self
            .options
            .provenances
            .iter()
            .map(|json| self.replay.provenance(json, &self.head.origin, &keys))
            .collect::<Result<_, _>>()?;
        Ok(Report {
            origin: self.head.origin,
            log_verifier_key: self.key.to_string(),
            key_pinned: self.options.log_key.is_some(),
            log_ml_dsa_key: self.keys.of_log.ml_dsa().map(ToString::to_string),
            ml_dsa_checked: ml_dsa::BUILT && self.keys.of_log.ml_dsa().is_some(),
            successions: self.keys.followed,
            before: self.keys.before(),
            issuers_pinned: self.options.trust.is_some(),
            tree_size: size,
            root_hash: found.to_string(),
            models: self.replay.models,
            updates: self.replay.updates,
            refusals: self.replay.refusals,
            decisions: self.replay.decisions.replayed,
            quotes: self.replay.quotes,
            compared: self.replay.evaluations.compared,
            witnesses: self.witnesses,
            timestamps,
            report_timestamp,
            erased,
            ledgers,
            egress: self.replay.egress(self.options.egress)?,
            versions,
            sections,
        })
    }
}

/// One of the static files, made whole or not at all.
fn put_file(folder: &Path, path: &str, bytes: &[u8]) -> Result<(), Wrong> {
    let path = folder.join(path);
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        let partial = path.with_extension("partial");
        fs::write(&partial, bytes)?;
        fs::rename(partial, &path)
    };
    write().map_err(|e: io::Error| Wrong::Unwritable(format!("{}: {e}", path.display())))
}

pub(crate) struct About {
    origin: String,
    tree_size: u64,
    key: VerifierKey,
    ml_dsa: Option<MlDsaKey>,
    /// Who followed whom as the log's key, oldest first.
    successions: Vec<String>,
    /// Who followed that key, as far as a later shard.
    later: Vec<String>,
}

impl About {
    fn parse(bytes: &[u8]) -> Result<Self, Wrong> {
        let wrong = |what: String| Wrong::File { path: bundle::ABOUT.into(), what };
        let c = canon::parse(bytes).map_err(|e| wrong(e.to_string()))?;
        let version: u32 = c.int("v").map_err(|e| wrong(e.to_string()))?;
        if version != bundle::VERSION {
            return Err(wrong(format!("layout {version} is not known to this verifier")));
        }
        let statement = |c: &Canon| match c {
            Canon::Text(text) => Ok(text.clone()),
            _ => Err(wrong("a statement about the log's keys is no text".into())),
        };
        let statements = |name: &str| {
            let listed = c.member(name).map(|_| c.list(name)).transpose();
            let listed = listed.map_err(|e| wrong(e.to_string()))?.unwrap_or_default();
            if listed.len() > SUCCESSIONS_MAX {
                return Err(wrong(format!("it has more than {SUCCESSIONS_MAX} `{name}`")));
            }
            listed.iter().map(statement).collect::<Result<_, _>>()
        };
        Ok(Self {
            successions: statements("successions")?,
            later: statements("later")?,
            origin: c.text("origin").map_err(|e| wrong(e.to_string()))?.to_owned(),
            tree_size: c.int("tree_size").map_err(|e| wrong(e.to_string()))?,
            key: c.parsed("log_verifier_key").map_err(|e| wrong(e.to_string()))?,
            ml_dsa: c
                .member("log_ml_dsa_key")
                .map(|_| c.parsed("log_ml_dsa_key"))
                .transpose()
                .map_err(|e| wrong(e.to_string()))?,
        })
    }
}

/// The log as it is read: one tile of hashes, the tree so far, and the checkpoints that are still to come.
#[derive(Default)]
struct Log {
    frontier: Frontier,
    tile: Vec<Digest>,
    last_ts: String,
    earlier: BTreeMap<u64, Digest>,
    /// What is disclosed of the people in the tile's entries.
    disclosed: VecDeque<Disclosure>,
    people: People,
}

/// People whose commitments are not opened. That is right for those who were erased, and the entry that says so comes
/// last.
#[derive(Default)]
struct People {
    /// The first entry of each.
    withheld: BTreeMap<Person, u64>,
    erased: BTreeSet<Person>,
    /// Who was erased after this log, as far as nothing of theirs has been seen yet.
    later: BTreeSet<Person>,
}

impl People {
    fn withhold(&mut self, person: Person, index: u64) {
        if !self.later.is_empty() {
            self.later.remove(&person);
        }
        if !self.erased.contains(&person) {
            self.withheld.entry(person).or_insert(index);
        }
    }

    fn erase(&mut self, person: Person) {
        self.withheld.remove(&person);
        self.erased.insert(person);
    }

    fn is_full(&self) -> bool {
        self.withheld.len().max(self.erased.len()) > PERSONS_MAX
    }

    fn finish(&self) -> Result<(), Wrong> {
        match self.withheld.iter().min_by_key(|(_, index)| **index) {
            None => match self.later.first() {
                None => Ok(()),
                Some(person) => Err(Wrong::File {
                    path: bundle::erased(*person),
                    what: "nothing of theirs in this log is withheld".into(),
                }),
            },
            Some((person, index)) => Err(Wrong::Content {
                index: *index,
                what: format!(
                    "person {person} was withheld: nothing opens the commitment to who did it, and no entry says that they were erased"
                ),
            }),
        }
    }
}

/// What looks at each entry, and says what is wrong with it.
type Follow<'f> = &'f mut dyn FnMut(&Entry) -> Result<(), String>;

impl Log {
    /// A checkpoint that was signed earlier: it stands before the entries that it is of.
    fn take_earlier(&mut self, path: &str, earlier: &Checkpoint) -> Result<(), Wrong> {
        let Checkpoint { tree_size, root_hash, .. } = earlier;
        let wrong = |what: &str| Wrong::File { path: path.to_owned(), what: what.to_owned() };
        if *tree_size < self.frontier.size() {
            return Err(wrong("it stands after entries that it is of"));
        }
        match self.earlier.insert(*tree_size, *root_hash) {
            Some(other) if other != *root_hash => {
                Err(wrong("another checkpoint of as many entries has another root"))
            }
            _ => self.check_earlier(),
        }
    }

    /// Compares the tree with what was signed of this size, if anything was.
    fn check_earlier(&mut self) -> Result<(), Wrong> {
        let size = self.frontier.size();
        let Some(signed) = self.earlier.remove(&size) else { return Ok(()) };
        let found = self.frontier.root();
        if signed == found { Ok(()) } else { Err(Wrong::Root { size, found, signed }) }
    }

    /// Somebody who was erased after this log: it stands before all entries.
    fn take_erased(&mut self, path: &str, person: Person) -> Result<(), Wrong> {
        let first = self.frontier.size() == 0 && self.tile.is_empty();
        if !first || !self.people.erased.insert(person) || self.people.is_full() {
            let what = "it stands behind entries, or twice, or is one of too many".to_owned();
            return Err(Wrong::File { path: path.to_owned(), what });
        }
        self.people.later.insert(person);
        Ok(())
    }

    fn take_tile(&mut self, path: &str, bytes: &[u8]) -> Result<(), Wrong> {
        let wrong = |what: &str| Wrong::File { path: path.to_owned(), what: what.to_owned() };
        let (hashes, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() || !self.tile.is_empty() {
            return Err(wrong("it is no tile, or entries are missing before it"));
        }
        let expected = merkle::tile_path(0, self.frontier.size() / TILE_WIDTH, hashes.len() as u64);
        if path != expected {
            return Err(Wrong::Missing(expected));
        }
        self.tile = hashes.iter().map(|h| Digest(*h)).collect();
        Ok(())
    }

    /// What is disclosed of the people in the tile that came before: one line for each entry, in order.
    fn take_personal(&mut self, path: &str, bytes: &[u8]) -> Result<(), Wrong> {
        let wrong = |what: String| Wrong::File { path: path.to_owned(), what };
        let from = self.frontier.size();
        let below = from + self.tile.len() as u64;
        let placed = !self.tile.is_empty() && self.disclosed.is_empty();
        if !placed || path != bundle::personal(from / TILE_WIDTH) {
            return Err(wrong("it does not stand between a tile and its entries".into()));
        }
        let lines = bytes.strip_suffix(b"\n").ok_or_else(|| wrong("it ends early".into()))?;
        let mut next = from;
        for line in lines.split(|b| *b == b'\n') {
            let disclosure = Disclosure::parse(line).map_err(|e| wrong(e.to_string()))?;
            if disclosure.seq < next || disclosure.seq >= below {
                return Err(wrong(format!("entry {} is out of place in it", disclosure.seq)));
            }
            next = disclosure.seq + 1;
            self.disclosed.push_back(disclosure);
        }
        Ok(())
    }

    fn take_entries(
        &mut self,
        path: &str,
        bytes: &[u8],
        tree_size: u64,
        follow: Follow<'_>,
    ) -> Result<(), Wrong> {
        let tile = std::mem::take(&mut self.tile);
        let expected = merkle::entries_path(self.frontier.size() / TILE_WIDTH, tile.len() as u64);
        if path != expected {
            return Err(Wrong::Missing(expected));
        }
        let mut hashes = tile.into_iter();
        for entry in merkle::entries(bytes) {
            let index = self.frontier.size();
            let Some(entry) = entry else {
                return Err(Wrong::Content { index, what: "it ends early".into() });
            };
            let Some(expected) = hashes.next() else {
                return Err(Wrong::Content { index, what: "no hash stands for it".into() });
            };
            let found = merkle::leaf_hash(entry);
            if found != expected {
                let claims = Entry::parse(entry)
                    .map(|e| format!("; it claims to be {} at {}", e.kind, e.ts))
                    .unwrap_or_default();
                return Err(Wrong::Entry { index, expected, found, claims });
            }
            self.frontier.push(found);
            self.check_earlier()?;
            self.take_entry(index, entry, follow)?;
        }
        let index = self.frontier.size();
        if let Some(left) = self.disclosed.pop_front() {
            let what = "a person is disclosed in it, and it is not there".to_owned();
            return Err(Wrong::Content { index: left.seq, what });
        }
        if hashes.next().is_some() {
            return Err(Wrong::Content { index, what: "it is missing".into() });
        }
        if index > tree_size {
            return Err(Wrong::Content {
                index: tree_size,
                what: "the checkpoint ends before it".into(),
            });
        }
        Ok(())
    }

    fn take_entry(&mut self, index: u64, bytes: &[u8], follow: Follow<'_>) -> Result<(), Wrong> {
        let wrong = |what: String| Wrong::Content { index, what };
        let entry = Entry::parse(bytes).map_err(|e| wrong(e.to_string()))?;
        if entry.seq != index {
            return Err(wrong(format!("it calls itself entry {}", entry.seq)));
        }
        if entry.ts < self.last_ts {
            return Err(wrong(format!(
                "it is from {}, the one before it from {}",
                entry.ts, self.last_ts
            )));
        }
        self.last_ts.clone_from(&entry.ts);
        let entry = match self.disclosed.pop_front_if(|d| d.seq == index) {
            Some(disclosure) => entry.disclosed(&disclosure).map_err(|e| wrong(e.to_string()))?,
            None => entry,
        };
        match (entry.actor_person(), entry.personal_commit(), entry.actor_id()) {
            (Some(person), Some(_), None) => self.people.withhold(person, index),
            (Some(person), None, _) => {
                return Err(wrong(format!("it names person {person} and commits to nothing")));
            }
            (None, Some(_), _) => return Err(wrong("it commits to nobody".into())),
            _ => {}
        }
        if entry.kind == Kind::ErasurePerformed {
            let person = entry.person().ok_or_else(|| wrong("it erased nobody".into()))?;
            self.people.erase(person);
        }
        if self.people.is_full() {
            return Err(wrong(format!("more than {PERSONS_MAX} people are not disclosed")));
        }
        follow(&entry).map_err(wrong)
    }
}

/// Bytes of a text in hex.
fn hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
