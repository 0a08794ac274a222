//! The export of the log: one tar that `falaj-verify` checks without us.
//!
//! Written to a file of its own first, in bounded memory, and covering exactly the newest checkpoint.

use crate::{
    engine::Engine,
    store::{Store, row::UpdateRow},
};
use anyhow::{Context as _, Result};
use falaj_certs::identity::{Identity, IdentityError};
use falaj_core::{
    audit::bundle,
    canon::Canon,
    id::Digest,
    merkle::{TILE_WIDTH, entries_path, put_entry, tile_path},
};
use rustls_pki_types::CertificateDer;
use std::{io::Write, path::Path};

/// The name under which a trust configuration is kept among the policies.
pub const TRUST_FILE: &str = "trust.toml";

/// Writes a bundle of everything up to the checkpoint of `tree_size` entries.
///
/// # Errors
/// When the store cannot be read or the file cannot be written.
pub async fn write(engine: &Engine, note: &str, tree_size: u64, to: &Path) -> Result<()> {
    let parts = engine.parts();
    let store = &parts.store;
    let file = std::fs::File::create(to).with_context(|| format!("writing {}", to.display()))?;
    let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
    let about = Canon::map([
        ("v", bundle::VERSION.into()),
        ("origin", parts.signer.verifier().name().into()),
        ("tree_size", Canon::Int(i64::try_from(tree_size)?)),
        ("log_verifier_key", parts.signer.verifier().to_string().into()),
    ]);
    put(&mut tar, bundle::ABOUT, &about.to_bytes())?;
    put(&mut tar, bundle::CHECKPOINT, note.as_bytes())?;
    // Each kind of file stands before what is read in its light: issuers, who trusts them, whom they vouch for.
    let (issuers, certificates): (Vec<_>, Vec<_>) =
        store.certificates().await?.into_iter().partition(|(_, der)| is_authority(der));
    for (digest, der) in issuers {
        put(&mut tar, &bundle::issuer(&digest), &der)?;
    }
    let policies = store.policies().await?;
    for (digest, _, bytes) in policies.iter().filter(|(_, name, _)| name == TRUST_FILE) {
        put(&mut tar, &bundle::trust(digest), bytes)?;
    }
    for (digest, der) in certificates {
        put(&mut tar, &bundle::certificate(&digest), &der)?;
    }
    for (set, name, bytes) in policies.iter().filter(|(_, name, _)| name != TRUST_FILE) {
        put(&mut tar, &bundle::policy(set, name), bytes)?;
    }
    for study in store.studies().await? {
        put(&mut tar, &bundle::study(&study.sha256), &study.yaml)?;
        for update in store.updates(&study.id).await? {
            put_update(&mut tar, &update, tree_size)?;
        }
    }
    for size in store.witnessed(tree_size).await? {
        let Some(note) = store.checkpoint(size).await? else { continue };
        let note = note + &store.cosignatures(size).await?.concat();
        put(&mut tar, &bundle::witnessed(size), note.as_bytes())?;
    }
    entries(store, tree_size, &mut tar).await?;
    tar.into_inner()?.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    Ok(())
}

/// Whether a certificate is an issuer's; others are those of who connects.
fn is_authority(der: &[u8]) -> bool {
    matches!(Identity::parse(&CertificateDer::from(der)), Err(IdentityError::Authority))
}

fn put_update<W: Write>(
    tar: &mut tar::Builder<W>,
    update: &UpdateRow,
    tree_size: u64,
) -> Result<()> {
    if update.log_index >= tree_size {
        return Ok(());
    }
    let digest = Digest::of(&update.header);
    put(tar, &bundle::header(&digest), &update.header)?;
    put(tar, &bundle::signature(&digest), &update.signature)
}

async fn entries<W: Write>(store: &Store, tree_size: u64, tar: &mut tar::Builder<W>) -> Result<()> {
    let mut at = 0;
    while at < tree_size {
        let width = TILE_WIDTH.min(tree_size - at);
        let rows = store.entries(at, at + width, u32::try_from(width)?, None).await?;
        anyhow::ensure!(rows.len() as u64 == width, "log entries are missing after {at}");
        let (mut tile, mut bundle) = (Vec::new(), Vec::new());
        for (_, bytes, leaf) in &rows {
            tile.extend_from_slice(&leaf.0);
            put_entry(bytes, &mut bundle);
        }
        put(tar, &tile_path(0, at / TILE_WIDTH, width), &tile)?;
        put(tar, &entries_path(at / TILE_WIDTH, width), &bundle)?;
        at += width;
    }
    Ok(())
}

fn put<W: Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, path, bytes)?;
    Ok(())
}
