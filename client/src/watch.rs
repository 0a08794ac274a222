//! This site as a witness of the coordinator's log: it keeps the last checkpoint that it saw, asks that the next one
//! goes on from it, cosigns that, and has every receipt that it holds proven.
//!
//! What cannot happen to an honest log is kept as evidence, and from then on nothing is sent: `falaj_core::witness` has
//! the rules. A steward who has looked into it removes the evidence's pin by `falaj-agent evidence dismiss`.

use crate::{
    clock,
    journal::{Journal, JournalError, Promise},
    transport::{Coordinator, TransportError},
};
use falaj_core::{
    id::{Digest, SiteId},
    merkle::verify_inclusion,
    note::{Checkpoint, NoteError, VerifierKey},
    receipt::Receipt,
    sign::{SignError, SignKey},
    succession::Succession,
    witness,
};
use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// The folder of evidence in the state folder.
const FOLDER: &str = "evidence";
/// What the journal pins the log's key under.
pub const LOG_KEY: &str = "log_verifier_key";
/// What the journal pins the path of evidence under.
const PIN: &str = "evidence";

/// Why this site does not go on with a coordinator.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The log did what a log must never do.
    #[error(
        "{what}; the evidence is in {}. Nothing is sent to this coordinator until a steward has looked into it: tell the other sites and the regulator", .evidence.display()
    )]
    Alarm {
        /// What it did.
        what: String,
        /// Where it is kept.
        evidence: PathBuf,
    },
    /// The coordinator could not be asked.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// This site's own key cannot be used now.
    #[error(transparent)]
    Key(SignError),
    /// What was seen could not be kept; nothing is cosigned then.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Evidence could not be kept.
    #[error("the evidence against the log could not be kept: {0}")]
    Evidence(#[from] io::Error),
}

/// A site's view of one coordinator's log.
pub struct Watch<'a> {
    /// The site's state folder.
    pub dir: &'a Path,
    /// Where what was seen is kept.
    pub journal: &'a Journal,
    /// Who watches.
    pub site: &'a SiteId,
    /// The key of the site's certificate.
    pub signer: &'a dyn SignKey,
    /// The log's key.
    pub log: &'a VerifierKey,
}

impl Watch<'_> {
    /// Whether evidence against this log is at hand.
    ///
    /// # Errors
    /// [`WatchError::Alarm`] if there is.
    pub async fn is_clear(&self) -> Result<(), WatchError> {
        match self.journal.pinned(PIN).await? {
            Some(path) => Err(WatchError::Alarm {
                what: "the log has changed its history before".into(),
                evidence: path.into(),
            }),
            None => Ok(()),
        }
    }

    /// Looks at the log as it is now: that it goes on from what was seen, and holds what was promised.
    ///
    /// # Errors
    /// [`WatchError`]; nothing may be sent then.
    pub async fn look(&self, coordinator: &mut Coordinator) -> Result<Checkpoint, WatchError> {
        self.is_clear().await?;
        // Before the checkpoint is asked for: what is promised meanwhile need not be in it.
        let promised = self.journal.unproven().await?;
        let (note, shown) = self.goes_on(coordinator).await?;
        self.prove(coordinator, promised, &note, &shown).await?;
        Ok(shown)
    }

    /// Follows a statement to the key that speaks after this log's. Where the log ends with it, this site sees it to its
    /// end first: that it goes on to there from what was seen, and holds all that was promised.
    ///
    /// # Errors
    /// [`WatchError`]; the key that is pinned stays the one before then.
    pub async fn follow(
        &self,
        coordinator: &mut Coordinator,
        step: &Succession,
    ) -> Result<(), WatchError> {
        self.is_clear().await?;
        if let Some(ended) = step.ended {
            let (note, last) = self.goes_on(coordinator).await?;
            if (last.tree_size, last.root_hash) != ended {
                let what = format!(
                    "the log {} ends with {} entries, and the statement that another goes on from it speaks of another end, with {}",
                    self.log.name(),
                    last.tree_size,
                    ended.0
                );
                return Err(self.alarm(&what, &[&note], &[]).await);
            }
            loop {
                let promised = self.journal.unproven().await?;
                if promised.is_empty() {
                    break;
                }
                self.prove(coordinator, promised, &note, &last).await?;
            }
        }
        self.journal.repin(LOG_KEY, &step.to.to_string(), step.ended.is_some()).await?;
        tracing::info!(from = %step.from, to = %step.to, "another key speaks for the log");
        Ok(())
    }

    /// The log as it is now, which goes on from what was seen: kept, and cosigned.
    async fn goes_on(
        &self,
        coordinator: &mut Coordinator,
    ) -> Result<(String, Checkpoint), WatchError> {
        let broken = |what: String| WatchError::Transport(TransportError::Broken(what));
        let seen_note = self.journal.seen().await?;
        // Who signed it was checked when it was kept; the log may have another key by now.
        let seen = seen_note.as_deref().map(Checkpoint::of_kept).transpose();
        let seen =
            seen.map_err(|e| broken(format!("a log, and what was seen of it is broken: {e}")))?;
        let origin = self.log.name();
        let (note, proof) =
            coordinator.checkpoint(origin, seen.as_ref().map_or(0, |s| s.tree_size)).await?;
        let shown = Checkpoint::open(&note, self.log)
            .map_err(|e| broken(format!("a checkpoint that its own key did not sign ({e})")))?;
        if let Err(fork) = witness::goes_on(seen.as_ref(), &shown, &proof) {
            let seen = seen_note.unwrap_or_default();
            return Err(self.alarm(&fork.to_string(), &[&seen, &note], &proof).await);
        }
        if seen.as_ref() != Some(&shown) {
            self.journal.see(&note).await?;
            let time = u64::try_from(clock::now().as_millis() / 1_000).unwrap_or(0);
            let name = witness::name_of_party(self.site.spiffe());
            let line = witness::cosign(&name, self.signer, time, &shown).map_err(|e| match e {
                NoteError::Sign(e) => WatchError::Key(e),
                e => broken(e.to_string()),
            })?;
            coordinator.cosign(origin, shown.tree_size, line).await?;
        }
        Ok((note, shown))
    }

    /// Has receipts that this site holds proven.
    async fn prove(
        &self,
        coordinator: &mut Coordinator,
        promised: Vec<Promise>,
        note: &str,
        head: &Checkpoint,
    ) -> Result<(), WatchError> {
        for promise in promised {
            let Ok(receipt) = Receipt::parse(&promise.receipt) else { continue };
            let text = String::from_utf8_lossy(&promise.receipt);
            let (index, size) = (receipt.log_index, head.tree_size);
            if index >= size {
                let what = format!(
                    "the log has {size} entries, and a receipt promises that entry {index} is among them"
                );
                return Err(self.alarm(&what, &[&text, note], &[]).await);
            }
            let proof = coordinator.inclusion(self.log.name(), index, size).await?;
            let held = verify_inclusion(&receipt.leaf_hash, index, size, &proof, &head.root_hash);
            if let Err(why) = held {
                let what = format!(
                    "entry {index} of the log is not the one that a receipt promises ({why})"
                );
                return Err(self.alarm(&what, &[&text, note], &proof).await);
            }
            self.journal.proven(&promise).await?;
            tracing::info!(index, size, "a receipt's entry is in the log");
        }
        Ok(())
    }

    /// Keeps what contradicts itself, durably, and gives the error that says so.
    async fn alarm(&self, what: &str, signed: &[&str], proof: &[Digest]) -> WatchError {
        tracing::error!(
            what,
            log = self.log.name(),
            "ALARM: the coordinator's log contradicts itself"
        );
        match self.keep(what, signed, proof).await {
            Ok(evidence) => WatchError::Alarm { what: what.to_owned(), evidence },
            Err(e) => e,
        }
    }

    async fn keep(
        &self,
        what: &str,
        signed: &[&str],
        proof: &[Digest],
    ) -> Result<PathBuf, WatchError> {
        let mut text = format!("{what}\n\nlog key {}\n", self.log);
        for (i, signed) in signed.iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\nsigned statement {}:\n{signed}\n", i + 1);
        }
        let _ = writeln!(text, "\nproof that was shown, {} hashes:", proof.len());
        for hash in proof {
            let _ = writeln!(text, "{hash}");
        }
        let folder = self.dir.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{}.txt", clock::now().as_millis()));
        let mut file = File::create(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(&folder)?.sync_all()?;
        self.journal.pin(PIN, &path.display().to_string()).await?;
        Ok(path)
    }
}

/// The path of the evidence that keeps this site from sending, if there is any.
///
/// # Errors
/// [`JournalError`].
pub async fn evidence(journal: &Journal) -> Result<Option<String>, JournalError> {
    journal.pinned(PIN).await
}

/// Lifts the refusal after a steward has looked into the evidence, which stays where it is; what is seen next is the
/// first checkpoint anew, under another key of the log if there is one. Gives the path of the evidence, if there was any.
///
/// # Errors
/// [`JournalError`].
pub async fn dismiss(
    journal: &Journal,
    new_key: Option<&VerifierKey>,
) -> Result<Option<String>, JournalError> {
    let evidence = journal.pinned(PIN).await?;
    if evidence.is_some() || new_key.is_some() {
        let pins: &[&str] = if new_key.is_some() { &[PIN, LOG_KEY] } else { &[PIN] };
        journal.forget_log(pins).await?;
    }
    if let Some(key) = new_key {
        journal.pin(LOG_KEY, &key.to_string()).await?;
    }
    Ok(evidence)
}
