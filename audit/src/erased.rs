//! People who were erased after the bundle's log went on elsewhere: entries of later shards say so, each with its proof.

use crate::{About, Wrong};
use falaj_core::{
    audit::{Entry, Kind, bundle, person::Person},
    merkle::leaf_hash,
    ml_dsa::{self, MlDsaKey},
    note::{Checkpoint, VerifierKey},
    succession::Succession,
    witness::InclusionProof,
};
use serde::Serialize;

/// Somebody whom a later shard says to have been erased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErasedReport {
    /// The pseudonym.
    pub person: String,
    /// The shard that says so.
    pub origin: String,
    /// By which entry.
    pub index: u64,
}

/// What later shards say, and who speaks for them.
pub(crate) struct Later {
    /// Keys of later shards, as far as statements lead on from the bundle's.
    keys: Vec<VerifierKey>,
    /// The log's second key, if checkpoints have to be signed by it.
    second: Option<MlDsaKey>,
    /// The entry that waits for its proof.
    unproven: Option<(Person, Vec<u8>)>,
    pub(crate) found: Vec<ErasedReport>,
}

impl Later {
    /// Follows what a bundle says of later shards; `head` is what it was signed by itself.
    pub(crate) fn of(
        about: &About,
        head: &Checkpoint,
        second: Option<&MlDsaKey>,
    ) -> Result<Self, Wrong> {
        let wrong = |what: String| Wrong::File { path: bundle::ABOUT.into(), what };
        let mut keys = vec![about.key.clone()];
        for text in &about.later {
            let step = Succession::open(text).map_err(|e| wrong(e.to_string()))?;
            if keys.last() != Some(&step.from) {
                return Err(wrong(format!("`later` has a gap before `{}`", step.from)));
            }
            if step.from.name() == about.origin
                && let Some((size, root)) = step.ended
                && (size < head.tree_size || (size == head.tree_size && root != head.root_hash))
            {
                let what = format!("{} says that this shard ended elsewhere", step.to.name());
                return Err(wrong(what));
            }
            keys.push(step.to);
        }
        keys.retain(|key| key.name() != about.origin);
        let second = second.filter(|_| ml_dsa::BUILT).cloned();
        Ok(Self { keys, second, unproven: None, found: Vec::new() })
    }

    /// An entry, or the proof of the one before: then it gives who was erased.
    pub(crate) fn take(&mut self, path: &str, bytes: Vec<u8>) -> Result<Option<Person>, Wrong> {
        let wrong = |what: String| Wrong::File { path: path.to_owned(), what };
        let name = path.strip_prefix(bundle::ERASED).unwrap_or_default();
        let person = name.split('.').next().unwrap_or_default().parse();
        let person: Person = person.map_err(|_| wrong("it names nobody".into()))?;
        if path == bundle::erased(person) && self.unproven.is_none() {
            self.unproven = Some((person, bytes));
            return Ok(None);
        }
        let entry = self.unproven.take_if(|_| path == bundle::erased_proof(person));
        let Some((_, entry)) = entry.filter(|(of, _)| *of == person) else {
            return Err(wrong("it does not stand behind the entry that it is of".into()));
        };
        self.found.push(self.prove(person, &entry, &bytes).map_err(wrong)?);
        Ok(Some(person))
    }

    /// The entry is in a later shard, and says that this person was erased.
    fn prove(&self, person: Person, entry: &[u8], proof: &[u8]) -> Result<ErasedReport, String> {
        let proof = str::from_utf8(proof).map_err(|e| e.to_string())?;
        let proof = InclusionProof::parse(proof).map_err(|e| e.to_string())?;
        let leaf = leaf_hash(entry);
        let origin = proof.note.lines().next().unwrap_or_default().to_owned();
        let mut held = Err(format!("no statement leads to a key of {origin}, which has signed it"));
        for key in self.keys.iter().filter(|key| key.name() == origin) {
            held = proof.verify(&leaf, key).map_err(|e| e.to_string());
            if held.is_ok() {
                break;
            }
        }
        held?;
        if let Some(second) = &self.second {
            let second = second.renamed(&origin).map_err(|e| e.to_string())?;
            second.require(&proof.note).map_err(|e| e.to_string())?;
        }
        let entry = Entry::parse(entry).map_err(|e| e.to_string())?;
        let erased = entry.kind == Kind::ErasurePerformed && entry.person() == Some(person);
        if !erased || entry.seq != proof.index {
            return Err(format!("entry {} of {origin} erases nobody of that name", proof.index));
        }
        Ok(ErasedReport { person: format!("person:{person}"), origin, index: entry.seq })
    }

    /// Everything was proven, and statements are there for that alone.
    pub(crate) fn finish(self) -> Result<Vec<ErasedReport>, Wrong> {
        if let Some((person, _)) = self.unproven {
            return Err(Wrong::Missing(bundle::erased_proof(person)));
        }
        if self.found.is_empty() && !self.keys.is_empty() {
            let what = "it leads on to later shards, of which the bundle has nothing".to_owned();
            return Err(Wrong::File { path: bundle::ABOUT.into(), what });
        }
        Ok(self.found)
    }
}
