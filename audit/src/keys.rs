//! Who speaks for the log of a bundle, how that follows from a key that is known, and that the log itself says so.

use crate::{About, Options, Wrong};
use falaj_core::{
    audit::{Entry, Kind, bundle},
    id::Digest,
    note::Checkpoint,
    succession::{LogKeys, Succession, follow},
};
use serde::Serialize;
use std::collections::{BTreeSet, VecDeque};

/// The shard before, where this one goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Before {
    /// Its name in checkpoints.
    pub origin: String,
    /// Entries in it.
    pub tree_size: u64,
    /// Their root.
    pub root_hash: String,
}

/// The keys of a log, and the statements that its entries still have to bring.
pub(crate) struct Keys {
    pub(crate) of_log: LogKeys,
    /// Statements that were followed from the key that the caller pinned.
    pub(crate) followed: usize,
    /// How this shard began, if it goes on from another.
    opened: Option<(String, Succession)>,
    /// Keys of this log that followed one another.
    rotated: VecDeque<String>,
    closed: bool,
}

impl Keys {
    /// The keys of a bundle, as what it says of itself has them, and as the caller knows them.
    pub(crate) fn of(about: &About, options: Options<'_>) -> Result<Self, Wrong> {
        let wrong = |what: String| Wrong::File { path: bundle::ABOUT.into(), what };
        let statements = &about.successions;
        let keys =
            LogKeys::of(&about.origin, &about.key, statements).map_err(|e| wrong(e.to_string()))?;
        let followed = match options.log_key {
            Some(pinned) => follow(pinned, &about.key, statements)
                .map_err(|e| Wrong::Checkpoint(e.to_string()))?
                .len(),
            None => 0,
        };
        let (mut opened, mut rotated) = (None, VecDeque::new());
        let mut shards = BTreeSet::from([about.origin.clone()]);
        for text in statements {
            let step = Succession::open(text).map_err(|e| wrong(e.to_string()))?;
            shards.insert(step.from.name().to_owned());
            if !keys.has(&step.to) {
                continue;
            }
            if step.ended.is_some() {
                opened = Some((text.clone(), step));
            } else {
                rotated.push_back(text.clone());
            }
        }
        // One second key serves all shards; who pinned it under the name of an earlier one has it.
        let second = match options.ml_dsa_key {
            None => about.ml_dsa.clone(),
            Some(pinned) if shards.contains(pinned.name()) => {
                Some(pinned.renamed(&about.origin).map_err(|e| wrong(e.to_string()))?)
            }
            Some(pinned) => {
                let (named, origin) = (pinned.name(), &about.origin);
                let what = format!(
                    "the second key that you gave is of {named}, and the bundle of {origin}"
                );
                return Err(Wrong::Checkpoint(what));
            }
        };
        if second.as_ref().is_some_and(|second| second.name() != about.origin) {
            return Err(wrong("its second key is another log's".into()));
        }
        let keys = keys.beside(second);
        Ok(Self { of_log: keys, followed, opened, rotated, closed: false })
    }

    /// The shard before.
    pub(crate) fn before(&self) -> Option<Before> {
        let (_, step) = self.opened.as_ref()?;
        let (tree_size, root): (u64, Digest) = step.ended?;
        let origin = step.from.name().to_owned();
        Some(Before { origin, tree_size, root_hash: root.to_string() })
    }

    /// What an entry says about who speaks for the log.
    pub(crate) fn take(&mut self, entry: &Entry) -> Result<(), String> {
        if self.closed {
            return Err("it comes after the log was closed".into());
        }
        let said = || entry.body().find_text("succession");
        match entry.kind {
            Kind::LogOpened => {
                let expected = self.opened.as_ref().map(|(text, _)| text.as_str());
                if said() != expected || (entry.seq != 0 && said().is_some()) {
                    return Err(format!("it does not open the log as `{}` says", bundle::ABOUT));
                }
                if let Some((_, step)) = &self.opened {
                    let note = entry.body().text("checkpoint").map_err(|e| e.to_string())?;
                    let last = Checkpoint::open(note, &step.from).map_err(|e| e.to_string())?;
                    if Some((last.tree_size, last.root_hash)) != step.ended {
                        return Err("the shard before it ended elsewhere".into());
                    }
                }
            }
            Kind::KeyRotated => {
                let due = self.rotated.pop_front();
                let due = due.filter(|due| said() == Some(due));
                due.ok_or_else(|| format!("it names another key than `{}` says", bundle::ABOUT))?;
            }
            Kind::LogClosed => self.closed = true,
            _ if entry.seq == 0 && self.opened.is_some() => {
                return Err("it does not say where the log goes on from".into());
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a statement was never made in the log.
    pub(crate) fn finish(&self) -> Result<(), Wrong> {
        if self.rotated.is_empty() {
            return Ok(());
        }
        let what = "it has a statement about the log's keys that is in no entry".to_owned();
        Err(Wrong::File { path: bundle::ABOUT.into(), what })
    }
}
