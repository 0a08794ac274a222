//! Where a site keeps its streams of correlated noise between rounds.
//!
//! A file in the state folder, readable by its owner alone, holds what `train::stream` needs to go on; the ledger
//! remembers how far the stream is and the file's digest. What a round costs depends on where its stream stands, so a
//! stream moves on only from where it was when the round was paid for. One that is lost, damaged or used up, or whose
//! records have changed, is not mended: a new one begins, independent of it, and is paid for from its beginning.

use crate::{
    data::Batch,
    ledger::{Ledger, LedgerError},
    train::stream::Stream,
};
use falaj_core::{
    id::{Digest, StudyId},
    study::Study,
};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// What the ledger remembers a stream as.
const NAME: &str = "noise stream";
/// The folder of streams in the state folder.
const FOLDER: &str = "streams";

/// Why a stream cannot be kept; the update must not leave then.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Its file.
    #[error("the stream of noise cannot be kept in {}: {error}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Two rounds at once.
    #[error(
        "another training of study `{0}` has moved this site's stream of noise on meanwhile: let one process at a time use `state.dir`"
    )]
    Raced(StudyId),
}

/// A round's place in a stream.
#[derive(Debug, Default)]
pub struct Turn {
    /// What the ledger remembered when the round was paid for.
    before: Option<String>,
    /// The settings and records that the stream is about; none before its first round.
    about: Option<Digest>,
    stream: Stream,
}

impl Turn {
    /// Steps taken before the round.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.stream.steps()
    }

    /// The stream, to go on with.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.stream.clone()
    }

    /// Whether it is about other settings or records than these.
    #[must_use]
    pub fn is_about_others(&self, study: &Study, records: &Batch) -> bool {
        self.about.is_some_and(|known| known != digest_of(study, records))
    }

    /// A new stream in its place.
    #[must_use]
    pub fn anew(self) -> Self {
        Self { before: self.before, ..Self::default() }
    }
}

/// The next round's place in the site's stream for a study; none when the study's noise is not correlated.
///
/// # Errors
/// When the ledger fails.
pub async fn turn(dir: &Path, ledger: &Ledger, study: &Study) -> Result<Option<Turn>, LedgerError> {
    let Some(factor) = study.ftrl() else { return Ok(None) };
    let before = ledger.released(&study.data.dataset, &study.id, NAME).await?;
    let Some(row) = &before else { return Ok(Some(Turn::default())) };
    let turn = match read(dir, study, row) {
        Ok((stream, about)) => Turn { before, about: Some(about), stream },
        Err(why) => {
            tracing::warn!(study = %study.id, "a new stream of noise begins, at its own cost: {why}");
            return Ok(Some(Turn { before, ..Turn::default() }));
        }
    };
    let left = factor.steps().saturating_sub(turn.steps());
    if left < u64::from(study.training.local_steps) {
        tracing::warn!(study = %study.id, "rounds that failed have used the stream of noise up: a new one begins, at its own cost");
        return Ok(Some(turn.anew()));
    }
    Ok(Some(turn))
}

/// The stream that the ledger remembers so, and the digest of what it is about.
fn read(dir: &Path, study: &Study, row: &str) -> Result<(Stream, Digest), String> {
    let mut words = row.split(' ');
    let mut word = || words.next().ok_or("the ledger's note of it cannot be read");
    let (steps, file, about) = (word()?, word()?, word()?);
    let file: Digest = file.parse().map_err(|e| format!("{e}"))?;
    let about = about.parse().map_err(|e| format!("{e}"))?;
    let path = path_of(dir, &study.id, &file);
    let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    if Digest::of(&bytes) != file {
        return Err(format!("{} is damaged", path.display()));
    }
    let params = study.manifest().map_err(|e| e.to_string())?.params();
    let stream = Stream::parse(&bytes, params).filter(|s| s.steps().to_string() == steps);
    let stream = stream.ok_or_else(|| format!("{} is not about this model", path.display()))?;
    Ok((stream, about))
}

/// Keeps where a round has left its stream, durably. Nothing of the round may leave the site before that.
///
/// # Errors
/// [`StreamError`].
pub async fn keep(
    dir: &Path,
    ledger: &Ledger,
    study: &Study,
    (turn, stream): (Turn, Stream),
    records: &Batch,
) -> Result<(), StreamError> {
    let bytes = stream.to_bytes();
    let digest = Digest::of(&bytes);
    let path = path_of(dir, &study.id, &digest);
    write(&path, &bytes).map_err(|error| StreamError::Io { path: path.clone(), error })?;
    let row = format!("{} {digest} {}", stream.steps(), digest_of(study, records));
    let moved = (turn.before.as_deref(), row.as_str());
    if !ledger.release_after(&study.data.dataset, &study.id, NAME, moved).await? {
        return Err(StreamError::Raced(study.id.clone()));
    }
    clear(dir, &study.id, Some(&path)).map_err(|error| StreamError::Io { path, error })
}

/// Removes a study's streams, which nobody needs once it is over.
///
/// # Errors
/// When a file cannot be removed.
pub fn forget(dir: &Path, study: &StudyId) -> io::Result<()> {
    clear(dir, study, None)
}

fn clear(dir: &Path, study: &StudyId, keep: Option<&Path>) -> io::Result<()> {
    let folder = dir.join(FOLDER);
    if !folder.try_exists()? {
        return Ok(());
    }
    // A study's name holds no full stop.
    let own = format!("{study}.");
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_own = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&own));
        if is_own && keep != Some(path.as_path()) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn path_of(dir: &Path, study: &StudyId, digest: &Digest) -> PathBuf {
    dir.join(FOLDER).join(format!("{study}.{digest}"))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)?;
    let partial = path.with_extension("partial");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(partial, path)?;
    File::open(folder)?.sync_all()
}

/// A digest of what decides which record has its turn in which step, and how far it can move it. An agent of another
/// version may write settings differently, and begins a new stream then.
fn digest_of(study: &Study, records: &Batch) -> Digest {
    let mut hash = Sha256::new();
    let settings = (&study.data, &study.model, &study.training, &study.privacy, study.rounds.count);
    hash.update(format!("{settings:?}"));
    for row in 0..records.rows() {
        records.row(row).iter().for_each(|v| hash.update(v.to_le_bytes()));
        hash.update(records.labels[row].to_le_bytes());
    }
    Digest(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        guard::LocalBatch,
        train::{Chance, Plan, Trainer as _, linear::Linear},
    };
    use falaj_core::id::SiteId;

    fn study() -> Study {
        let yaml = "study: streamed\npurpose: test\ndata:\n  dataset: d\n  label: { column: y, classes: [a, b] }\n  features:\n    - { name: x, min: -1.0, max: 1.0 }\nmodel: { kind: logistic }\ntraining: { local_steps: 3, batches: 4, learning_rate: 0.5 }\nprivacy: { mechanism: dp_ftrl, noise_multiplier: 1.0, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 900.0 }\ncohort: { places: [\"ae-on/*\"], min_sites: 1 }\nrounds: { count: 4 }\n";
        falaj_proto::study::parse(yaml, "study").expect("valid")
    }

    fn records(rows: usize) -> LocalBatch {
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let features = (0..rows).map(|i| i as f32 / rows as f32).collect();
        LocalBatch::for_this_site_only(Batch { features, labels: vec![0; rows], width: 1 })
    }

    /// A round from where the turn stands.
    fn trained(study: &Study, turn: &Turn, records: &LocalBatch) -> Stream {
        let plan = Plan::of(study, 20).of_round(1, Some(turn.stream()));
        let base = vec![0.0; study.manifest().expect("a model").params()];
        let outcome = Linear.run(records, &plan, &base, &mut Chance::insecure(b"round"));
        outcome.expect("trained").stream.expect("a stream")
    }

    async fn ledger(dir: &Path) -> Ledger {
        let site: SiteId = "spiffe://falaj.test/ae-on/ae-az/site/s".parse().expect("a site");
        Ledger::open(dir, &site).await.expect("a ledger")
    }

    async fn next(dir: &Path, ledger: &Ledger, study: &Study) -> Turn {
        turn(dir, ledger, study).await.expect("readable").expect("correlated")
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let all = fs::read_dir(dir.join(FOLDER)).expect("a folder");
        all.map(|e| e.expect("an entry").path()).collect()
    }

    #[tokio::test]
    async fn a_stream_goes_on_from_round_to_round_until_it_is_used_up() {
        let dir = tempfile::tempdir().expect("a folder");
        let (dir, study, records) = (dir.path(), study(), records(20));
        let ledger = ledger(dir).await;
        for steps in [0, 3, 6, 9, 0] {
            let turn = next(dir, &ledger, &study).await;
            assert_eq!(turn.steps(), steps);
            assert!(!turn.is_about_others(&study, records.batch()));
            let stream = trained(&study, &turn, &records);
            keep(dir, &ledger, &study, (turn, stream), records.batch()).await.expect("kept");
            assert_eq!(files(dir).len(), 1);
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(&files(dir)[0]).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        forget(dir, &study.id).expect("forgotten");
        assert!(files(dir).is_empty());
        assert_eq!(next(dir, &ledger, &study).await.steps(), 0);
    }

    #[tokio::test]
    async fn what_is_lost_damaged_or_about_other_records_begins_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let (dir, study, records) = (dir.path(), study(), records(20));
        let ledger = ledger(dir).await;
        let turn = next(dir, &ledger, &study).await;
        let stream = trained(&study, &turn, &records);
        keep(dir, &ledger, &study, (turn, stream), records.batch()).await.expect("kept");
        let turn = next(dir, &ledger, &study).await;
        assert!(turn.is_about_others(&study, self::records(19).batch()));
        let mut other = study.clone();
        other.training.learning_rate = 0.25;
        assert!(turn.is_about_others(&other, records.batch()));
        assert_eq!(turn.anew().steps(), 0);
        let path = &files(dir)[0];
        let mut bytes = fs::read(path).expect("a file");
        *bytes.last_mut().expect("bytes") ^= 1;
        fs::write(path, &bytes).expect("written");
        let turn = next(dir, &ledger, &study).await;
        assert_eq!(turn.steps(), 0);
        // What begins anew takes the place of what was damaged.
        let stream = trained(&study, &turn, &records);
        keep(dir, &ledger, &study, (turn, stream), records.batch()).await.expect("kept");
        assert_eq!(next(dir, &ledger, &study).await.steps(), 3);
        fs::remove_file(&files(dir)[0]).expect("removed");
        assert_eq!(next(dir, &ledger, &study).await.steps(), 0);
    }

    #[tokio::test]
    async fn of_two_rounds_in_the_same_place_one_comes_to_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let (dir, study, records) = (dir.path(), study(), records(20));
        let ledger = ledger(dir).await;
        for steps in [0, 3] {
            let (one, other) = (next(dir, &ledger, &study).await, next(dir, &ledger, &study).await);
            assert_eq!((one.steps(), other.steps()), (steps, steps));
            let stream = trained(&study, &one, &records);
            let copy = trained(&study, &other, &self::records(21));
            keep(dir, &ledger, &study, (one, stream), records.batch()).await.expect("kept");
            let raced = keep(dir, &ledger, &study, (other, copy), records.batch()).await;
            assert!(matches!(raced, Err(StreamError::Raced(_))), "{raced:?}");
            // The one that was kept is still there.
            assert_eq!(next(dir, &ledger, &study).await.steps(), steps + 3);
        }
    }
}
