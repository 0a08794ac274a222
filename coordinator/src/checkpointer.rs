//! Signs the log's tree head: soon after it has grown, and at once when somebody needs it.

use crate::store::{
    Store,
    writer::{Change, Commit, CommitError, Head, Writer},
};
use falaj_core::note::{Checkpoint, NoteSigner};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// The head is signed at most this long after it has grown.
const CADENCE: Duration = Duration::from_millis(500);

/// Signs checkpoints. A cheap handle.
#[derive(Clone)]
pub struct Checkpointer {
    writer: Writer,
    signer: Arc<NoteSigner>,
}

impl Checkpointer {
    /// A checkpointer of the log that `writer` writes.
    #[must_use]
    pub const fn new(writer: Writer, signer: Arc<NoteSigner>) -> Self {
        Self { writer, signer }
    }

    /// Signs the newest durable head; it is stored before anybody sees it.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub async fn sign(&self) -> Result<(u64, String), CommitError> {
        let (tree_size, root_hash): Head = self.writer.head();
        let origin = self.signer.verifier().name().to_owned();
        let note = self.signer.sign(&Checkpoint { origin, tree_size, root_hash }.body());
        let rows = vec![Change::Checkpoint(tree_size, note.clone())];
        self.writer.commit(Commit { rows, ..Commit::default() }).await?;
        Ok((tree_size, note))
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
