//! Signs the log's tree head: soon after it has grown, and at once when somebody needs it.

use crate::{
    clock,
    store::{
        Store,
        writer::{Change, Commit, CommitError, Head, Writer},
    },
};
use anyhow::Context as _;
use falaj_core::{
    note::{Checkpoint, NoteSigner},
    time::Timestamp,
};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// The head is signed at most this long after it has grown.
const CADENCE: Duration = Duration::from_millis(500);

/// Signs checkpoints. A cheap handle.
#[derive(Clone)]
pub struct Checkpointer {
    writer: Writer,
    signer: Arc<NoteSigner>,
    retiring: Option<(Arc<NoteSigner>, Timestamp)>,
    high_water: Option<Arc<HighWater>>,
    /// The newest that was signed: a second signature has other bytes each time, and one size has one note.
    made: Arc<Mutex<Option<(u64, String)>>>,
}

/// The newest checkpoint, kept a second time elsewhere.
struct HighWater {
    path: PathBuf,
    /// Entries in what lies there.
    size: Mutex<u64>,
}

impl HighWater {
    /// Keeps a checkpoint if it is the newest: whole or not at all, and durable.
    fn keep(&self, size: u64, note: &str) -> io::Result<()> {
        let mut kept = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        if size > *kept {
            let partial = self.path.with_extension("partial");
            let mut file = File::create(&partial)?;
            file.write_all(note.as_bytes())?;
            file.sync_all()?;
            fs::rename(partial, &self.path)?;
            if let Some(folder) = self.path.parent().filter(|p| !p.as_os_str().is_empty()) {
                File::open(folder)?.sync_all()?;
            }
            *kept = size;
        }
        Ok(())
    }
}

/// The checkpoint that was kept elsewhere, if there is one.
///
/// # Errors
/// When the file cannot be read: a missing disk must not look like a first start.
pub fn high_water(path: &Path) -> anyhow::Result<Option<String>> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    anyhow::ensure!(
        folder.is_dir(),
        "{} is not there, where `log.high_water` keeps the newest checkpoint: mount its disk, or make the folder if this is the first start",
        folder.display()
    );
    match fs::read_to_string(path) {
        Ok(note) => Ok(Some(note)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

impl Checkpointer {
    /// A checkpointer of the log that `writer` writes, which keeps the newest checkpoint a second time in a file, if it
    /// is given one.
    #[must_use]
    pub fn new(writer: Writer, signer: Arc<NoteSigner>, high_water: Option<PathBuf>) -> Self {
        let high_water = high_water.map(|path| Arc::new(HighWater { path, size: Mutex::new(0) }));
        Self { writer, signer, retiring: None, high_water, made: Arc::default() }
    }

    /// Signs with the key before as well, until then: who knows only that one can still open what is signed.
    #[must_use]
    pub fn beside(mut self, before: Arc<NoteSigner>, until: Timestamp) -> Self {
        self.retiring = Some((before, until));
        self
    }

    /// Signs the newest durable head; it is stored before anybody sees it.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub async fn sign(&self) -> Result<(u64, String), CommitError> {
        let signed = self.sign_and_keep().await;
        self.writer.metrics().checkpoint(signed.as_ref().ok().map(|(size, _)| *size));
        signed
    }

    async fn sign_and_keep(&self) -> Result<(u64, String), CommitError> {
        let this = self.clone();
        // A key in a token takes its time, and whoever comes next waits for it, too.
        let made = tokio::task::spawn_blocking(move || this.make()).await;
        let (tree_size, note) = made
            .map_err(|e| CommitError::Failed(format!("the checkpoint cannot be signed: {e}")))??;
        let rows = vec![Change::Checkpoint(tree_size, note.clone())];
        self.writer.commit(Commit { rows, ..Commit::default() }).await?;
        if let Some(high_water) = self.high_water.clone() {
            let kept = note.clone();
            let keep = move || high_water.keep(tree_size, &kept);
            let failed = |e: &dyn std::fmt::Display| {
                CommitError::Failed(format!("`log.high_water` cannot be written: {e}"))
            };
            tokio::task::spawn_blocking(keep)
                .await
                .map_err(|e| failed(&e))?
                .map_err(|e| failed(&e))?;
        }
        Ok((tree_size, note))
    }

    /// The newest durable head, signed: by the same bytes for as long as it is the newest.
    fn make(&self) -> Result<(u64, String), CommitError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let (tree_size, root_hash): Head = self.writer.head();
        if let Some(same) = made.as_ref().filter(|(size, _)| *size == tree_size) {
            return Ok(same.clone());
        }
        let origin = self.signer.verifier().name().to_owned();
        let head = Checkpoint { origin, tree_size, root_hash };
        let now = clock::now();
        let time = u64::try_from(now.as_millis() / 1_000).unwrap_or_default();
        let unsigned = |e| CommitError::Failed(format!("the checkpoint cannot be signed: {e}"));
        let mut note = self.signer.checkpoint(&head, time).map_err(unsigned)?;
        if let Some((before, _)) = self.retiring.as_ref().filter(|(_, until)| now < *until) {
            note += &before.line(&head.body()).map_err(|e| unsigned(e.into()))?;
        }
        Ok(made.insert((tree_size, note)).clone())
    }

    /// The newest checkpoint: the head, signed now unless it was before.
    ///
    /// # Errors
    /// When it cannot be read or stored.
    pub async fn current(&self, store: &Store) -> Result<(u64, String), CommitError> {
        let newest = store.newest_checkpoint().await?;
        match newest.filter(|(size, _)| *size == self.writer.head().0) {
            Some(signed) => Ok(signed),
            None => self.sign().await,
        }
    }

    /// Signs for as long as the coordinator runs, and a last time at its end.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut heads = self.writer.heads();
        let mut signed = 0;
        loop {
            let ended = tokio::select! {
                () = shutdown.cancelled() => true,
                grown = heads.changed() => grown.is_err(),
            };
            if !ended {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = tokio::time::sleep(CADENCE) => {}
                }
            }
            if self.writer.head().0 > signed {
                match self.sign().await {
                    Ok((size, _)) => signed = size,
                    Err(e) => tracing::error!(error = %e, "a checkpoint could not be stored"),
                }
            }
            if ended {
                return;
            }
        }
    }
}
