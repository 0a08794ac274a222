//! What is signed of versions: when somebody wants to have it, and at the latest before the entries are deleted that it comes from.
//!
//! It is not signed when a version is made: the later it is, the more witnesses stand behind it.

use super::{fold, read};
use crate::{
    checkpointer::Checkpointer,
    engine::{Engine, Handle, problem_of, unreadable},
    proofs,
    store::{
        Store,
        writer::{Change, Commit},
    },
};
use anyhow::Context as _;
use falaj_core::{
    id::StudyId,
    registry::{lineage::Lineage, provenance::About},
    witness::InclusionProof,
};
use falaj_proto::problem::{Code, Problem};

/// What is signed of a version, as a DSSE envelope: signed now unless it was before, and the same bytes from then on.
pub(super) async fn provenance(
    engine: &Engine,
    checkpointer: &Checkpointer,
    handle: &Handle,
    number: u32,
) -> Result<Vec<u8>, Problem> {
    let (store, study) = (&engine.parts().store, &handle.meta.study.id);
    if let Some(kept) = store.provenance(study, number).await.map_err(unreadable)? {
        return Ok(kept);
    }
    let envelope = sign(engine, checkpointer, handle, number).await?;
    keep(engine, study, number, envelope).await?;
    // Of two that sign at once, the first is kept.
    let kept = store.provenance(study, number).await.map_err(unreadable)?;
    kept.ok_or_else(|| Code::Internal.because("what was signed of the version is not there"))
}

/// Signs what there is to say of each version that a shard tells of and nobody has had signed: afterwards nobody can.
///
/// # Errors
/// Why it cannot be read or signed.
pub(crate) async fn before_pruning(
    engine: &Engine,
    checkpointer: &Checkpointer,
    store: &Store,
) -> Result<(), Problem> {
    for handle in engine.studies() {
        let study = &handle.meta.study.id;
        let row = read(&engine.parts().store, study).await.map_err(unreadable)?;
        let mut unsigned = Vec::new();
        for number in row.registry.versions.into_keys() {
            let kept = engine.parts().store.provenance(study, number).await;
            if kept.map_err(unreadable)?.is_none() {
                unsigned.push(number);
            }
        }
        if unsigned.is_empty() {
            continue;
        }
        let mut lineage = Lineage::new(true);
        fold(store, study, &mut lineage).await.map_err(|e| failed(&e, study))?;
        for number in unsigned {
            let Some((index, _)) = lineage.made(study, number) else { continue };
            let made = envelope(engine, checkpointer, store, (&lineage, index), &handle, number);
            match made.await? {
                Some(envelope) => keep(engine, study, number, envelope).await?,
                // Nothing could be signed of it before, either.
                None => {
                    tracing::warn!(%study, number, "the shard does not tell of the version's round: nothing is signed of it");
                }
            }
        }
    }
    Ok(())
}

async fn keep(
    engine: &Engine,
    study: &StudyId,
    number: u32,
    envelope: Vec<u8>,
) -> Result<(), Problem> {
    let rows = vec![Change::Provenance(study.clone(), number, envelope)];
    let commit = Commit { rows, ..Commit::default() };
    engine.parts().writer.commit(commit).await.map_err(|e| problem_of(&e))?;
    Ok(())
}

fn failed(error: &anyhow::Error, study: &StudyId) -> Problem {
    tracing::error!(error = %format!("{error:#}"), %study, "a version cannot be signed");
    Code::Internal.because("the coordinator cannot sign what there is to say of this version")
}

async fn sign(
    engine: &Engine,
    checkpointer: &Checkpointer,
    handle: &Handle,
    number: u32,
) -> Result<Vec<u8>, Problem> {
    let study = &handle.meta.study.id;
    for store in engine.parts().store.shards().await.map_err(unreadable)?.iter().rev() {
        if store.pruned().await.map_err(unreadable)? {
            continue;
        }
        let mut lineage = Lineage::new(true);
        fold(store, study, &mut lineage).await.map_err(|e| failed(&e, study))?;
        if let Some((index, _)) = lineage.made(study, number) {
            let made = envelope(engine, checkpointer, store, (&lineage, index), handle, number);
            let untold = || format!("the shard does not tell of the round of version {number}");
            return made.await?.with_context(untold).map_err(|e| failed(&e, study));
        }
    }
    Err(Code::Pruned.because(format!(
        "the entries that tell of version {number} of study `{study}` were deleted, so nothing can be signed of it"
    )))
}

/// What a shard tells of a version that was made by this entry in it, signed; nothing where it does not tell of the version's round.
async fn envelope(
    engine: &Engine,
    checkpointer: &Checkpointer,
    store: &Store,
    (lineage, index): (&Lineage, u64),
    handle: &Handle,
    number: u32,
) -> Result<Option<Vec<u8>>, Problem> {
    let study = &handle.meta.study;
    let (origin, proof) = proof(engine, checkpointer, store, index).await?;
    let about = About::of(study);
    let Some(provenance) = lineage.provenance(&study.id, number, about, &origin, proof) else {
        return Ok(None);
    };
    let signed = provenance.sign(&engine.parts().signer);
    let envelope = signed.map_err(|e| failed(&e.into(), &study.id))?;
    Ok(Some(envelope.to_json().into_bytes()))
}

/// Which log a shard is, and the proof that an entry is in it.
async fn proof(
    engine: &Engine,
    checkpointer: &Checkpointer,
    store: &Store,
    index: u64,
) -> Result<(String, String), Problem> {
    let (tree_size, note) = if store.ended() {
        let last = store.newest_checkpoint().await.map_err(unreadable)?;
        last.ok_or_else(|| Code::NotFound.because("this shard has no checkpoint"))?
    } else {
        checkpointer.current(store).await.map_err(|e| problem_of(&e))?
    };
    if index >= tree_size {
        return Err(Code::Internal.because("the checkpoint does not reach the version"));
    }
    let hashes = proofs::inclusion(store, index, tree_size).await.map_err(unreadable)?;
    let note = note + &store.cosignatures(tree_size).await.map_err(unreadable)?.concat();
    let own = || engine.parts().signer.verifier().name().to_owned();
    let origin = store.shard().origin.clone().unwrap_or_else(own);
    Ok((origin, InclusionProof { index, hashes, note }.to_text()))
}
