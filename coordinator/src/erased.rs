//! Whoever was erased after a bundle ends, and what the bundle shows of that.
//!
//! The entry that says so lies in a later shard. It goes into the bundle with the proof that it is there, and with the
//! statements that lead from the bundle's key to the one that has signed this proof.

use crate::{
    checkpointer::Checkpointer,
    persons::Persons,
    proofs,
    shards::Shards,
    store::{Store, objects::Wanted},
};
use anyhow::{Context as _, Result};
use falaj_core::{
    audit::{
        Entry, Kind,
        objects::{Object, actor_term},
        person::Person,
    },
    succession::{LogKeys, Succession},
    witness::InclusionProof,
};
use std::collections::BTreeMap;

/// Erasures that are read at once.
const PAGE: u32 = 256;

/// Somebody was erased later in the same shard: a bundle up to a checkpoint after that can say so itself.
#[derive(Debug, thiserror::Error)]
#[error(
    "somebody in it was erased by entry {index} of {origin}, which it could not show: ask for a checkpoint after that, or have entries proven one by one"
)]
pub struct Beyond {
    /// The entry that says so.
    pub index: u64,
    /// In which shard.
    pub origin: String,
}

/// People who did something in the first entries of a shard and were erased in a later one.
#[derive(Debug, Default)]
pub struct Erased {
    /// Statements that lead on from the shard's key.
    pub(crate) statements: Vec<String>,
    /// The entry that says of each that they were erased, and the proof of it.
    pub(crate) people: BTreeMap<Person, (Vec<u8>, String)>,
}

impl Erased {
    /// Whoever did something in the first `tree_size` entries of a shard, is not among `persons` any more, and whose erasure
    /// lies beyond.
    ///
    /// # Errors
    /// [`Beyond`], and when the store cannot be read or the erasure's own checkpoint cannot be signed.
    pub async fn after(
        (store, tree_size): (&Store, u64),
        persons: &Persons,
        shards: &Shards,
        checkpointer: &Checkpointer,
    ) -> Result<Self> {
        let mut this = Self::default();
        let before = store.successions(Some(tree_size)).await?.len();
        let mut reached = before;
        let first = store.shard().first;
        for (shard, keys) in shards.all().iter().filter(|(s, _)| s.shard().first >= first) {
            let same = shard.shard().first == first;
            let mut from = if same { tree_size } else { 0 };
            loop {
                let kind = Some(Kind::ErasurePerformed.as_str());
                let rows = shard.entries(from, u64::MAX, PAGE, kind).await?;
                let Some((last, ..)) = rows.last() else { break };
                from = last + 1;
                for (index, bytes, _) in rows {
                    let person = Entry::parse(&bytes)?.person().context("it names nobody")?;
                    let shown = this.people.contains_key(&person)
                        || persons.identity(person).is_some()
                        || !is_withheld(store, person, tree_size).await?;
                    if shown {
                        continue;
                    }
                    if same {
                        let origin = keys.newest().name().to_owned();
                        return Err(Beyond { index, origin }.into());
                    }
                    let (proof, step) = proven((shard, keys), index, shards, checkpointer).await?;
                    reached = reached.max(step);
                    this.people.insert(person, (bytes, proof));
                }
            }
        }
        this.statements = shards.statements().get(before..reached).unwrap_or_default().to_vec();
        Ok(this)
    }
}

/// Whether so many entries have something that a person did, and not that they were erased.
async fn is_withheld(store: &Store, person: Person, tree_size: u64) -> Result<bool> {
    let person = Object::Person(person);
    let among = async |term: String, kind| -> Result<bool> {
        let mut wanted = Wanted { terms: [term].into(), kind, below: tree_size, from: 0 };
        loop {
            let found = store.find(&wanted, 1).await?;
            match found.next {
                Some(next) if found.entries.is_empty() => wanted.from = next,
                _ => return Ok(!found.entries.is_empty()),
            }
        }
    };
    Ok(among(actor_term(&person), None).await?
        && !among(person.to_string(), Some(Kind::ErasurePerformed)).await?)
}

/// The proof of an entry under the first checkpoint that has it, and how many statements lead to the key of that.
async fn proven(
    (shard, keys): (&Store, &LogKeys),
    index: u64,
    shards: &Shards,
    checkpointer: &Checkpointer,
) -> Result<(String, usize)> {
    if !shard.ended() {
        checkpointer.current(shard).await?;
    }
    // Always the same one: what is exported again has the same bytes.
    let signed = shard.checkpoints(index, 1).await?.pop();
    let (tree_size, note) = signed.with_context(|| format!("nothing is signed of {index}"))?;
    let key = keys.who_signed(&note).context("nobody who speaks for the log has signed this")?;
    let hashes = proofs::inclusion(shard, index, tree_size).await?;
    let leads = |text: &String| Succession::open(text).is_ok_and(|step| step.to == *key);
    let step = shards.statements().iter().position(leads);
    let step = step.with_context(|| format!("no statement leads to {key}"))?;
    Ok((InclusionProof { index, hashes, note }.to_text(), step + 1))
}
