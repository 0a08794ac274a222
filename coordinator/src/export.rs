//! The export of the log: one tar that `falaj-verify` checks without us.
//!
//! Written to a file of its own first, in bounded memory, and covering exactly the newest checkpoint.

use crate::{
    engine::evaluation,
    erased::Erased,
    persons::Persons,
    store::{
        Store,
        objects::Stored,
        row::{ExchangeRow, UpdateRow},
    },
    timestamps::Timestamps,
};
use anyhow::{Context as _, Result, ensure};
use falaj_certs::{
    history::History,
    identity::{Identity, IdentityError},
    trust::{TrustFile, spki_sha256},
};
use falaj_core::{
    audit::{Entry, Kind, bundle, person::Disclosure},
    canon::Canon,
    id::Digest,
    merkle::{TILE_WIDTH, entries_path, put_entry, tile_path},
    note::Checkpoint,
    report::{Scope, Sections},
    succession::LogKeys,
};
use rustls_pki_types::CertificateDer;
use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
};

/// The name under which a trust configuration is kept among the policies.
pub const TRUST_FILE: &str = "trust.toml";
/// What entries call the files that they name.
const NAMES: [&str; 4] = ["trust_sha256", "policy_set_sha256", "study_sha256", "cert_sha256"];

/// Time-stamps that are read at once.
const STAMPS_PER_PAGE: u32 = 100;

/// Writes a bundle of everything up to the checkpoint of `tree_size` entries, with what is known of the people in it, and
/// with a time-stamp of its report if one is to be had. The same checkpoint gives the same bytes, whatever came after it, as
/// long as no further witness cosigns one of those before it and nobody in it is erased. `persons` is who was known when
/// `erased` was looked for. Gives the report over each of `scopes`, as the verifier makes it of this bundle.
///
/// # Errors
/// When the store cannot be read, the file cannot be written, or there is no time-stamp to be had.
pub async fn write(
    (store, persons, erased): (&Store, &Persons, &Erased),
    keys: &LogKeys,
    note: &str,
    tree_size: u64,
    timestamps: Option<&Timestamps>,
    scopes: &[Scope],
    to: &Path,
) -> Result<Vec<Vec<u8>>> {
    let file = std::fs::File::create(to).with_context(|| format!("writing {}", to.display()))?;
    let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
    let key = keys.who_signed(note).context("nobody who speaks for the log has signed this")?;
    let mut about = vec![
        ("v", bundle::VERSION.into()),
        ("origin", key.name().into()),
        ("tree_size", Canon::Int(i64::try_from(tree_size)?)),
        ("log_verifier_key", key.to_string().into()),
    ];
    let statements = store.successions(Some(tree_size)).await?;
    for (name, statements) in [("successions", &statements), ("later", &erased.statements)] {
        if !statements.is_empty() {
            let list = statements.iter().map(|text| text.as_str().into()).collect();
            about.push((name, Canon::List(list)));
        }
    }
    if let Some(second) = keys.ml_dsa().filter(|key| matches!(key.signed(note), Ok(Some(_)))) {
        about.push(("log_ml_dsa_key", second.to_string().into()));
    }
    let about = Canon::map(about);
    put(&mut tar, bundle::ABOUT, &about.to_bytes())?;
    put(&mut tar, bundle::CHECKPOINT, note.as_bytes())?;
    let named = named((store, persons), tree_size).await?;
    let scoped = scopes.iter().map(|scope| Sections::new(scope.clone()));
    let mut folds: Vec<Sections> = [Sections::default()].into_iter().chain(scoped).collect();
    let holders = parties((store, persons), &named, &mut tar, &mut folds).await?;
    for (set, name, bytes) in store.policies().await? {
        if name != TRUST_FILE && named.contains(&set) {
            put(&mut tar, &bundle::policy(&set, &name), &bytes)?;
            folds.iter_mut().for_each(|fold| fold.policy(set, &name, &bytes));
        }
    }
    for study in store.studies().await? {
        if !named.contains(&study.sha256) {
            continue;
        }
        put(&mut tar, &bundle::study(&study.sha256), &study.yaml)?;
        let text = str::from_utf8(&study.yaml)?;
        let parsed = falaj_proto::study::parse(text, study.id.as_str())?;
        folds.iter_mut().for_each(|fold| fold.study(study.sha256, parsed.clone()));
        for update in store.updates(&study.id).await? {
            put_update(&mut tar, &update, tree_size)?;
        }
        for row in store.evaluations(&study.id).await? {
            put_evaluation(&mut tar, &row, &named)?;
        }
    }
    for size in store.witnessed(tree_size).await? {
        let Some(note) = store.checkpoint(size).await? else { continue };
        let note = note + &store.cosignatures(size).await?.concat();
        put(&mut tar, &bundle::witnessed(size), note.as_bytes())?;
        for (witness, time) in holders.cosigned(&note).map_err(anyhow::Error::msg)? {
            folds.iter_mut().for_each(|fold| fold.witness(&witness, size, &time));
        }
    }
    stamps(store, tree_size, &mut tar).await?;
    for (person, (entry, proof)) in &erased.people {
        put(&mut tar, &bundle::erased(*person), entry)?;
        put(&mut tar, &bundle::erased_proof(*person), proof.as_bytes())?;
    }
    entries((store, persons), tree_size, &mut tar, &mut folds).await?;
    let head = Checkpoint::open(note, key)?;
    let mut reports = folds
        .into_iter()
        .map(|fold| fold.finish(key.name(), tree_size, &head.root_hash).to_bytes());
    let report = reports.next().context("invariant: the report over the whole log is the first")?;
    put(&mut tar, bundle::REPORT, &report)?;
    if let Some(timestamps) = timestamps {
        let stamp = timestamps.report(&report, tree_size).await?;
        put(&mut tar, bundle::REPORT_STAMP, &stamp)?;
    }
    tar.into_inner()?.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    Ok(reports.collect())
}

/// Writes what somebody lacks who has the first entries of a shard: the checkpoint of so many, and the bundles of entries
/// from the one on that theirs end in.
///
/// # Errors
/// When the store cannot be read, or the file cannot be written.
pub async fn mirror(
    store: &Store,
    note: &str,
    (from, tree_size): (u64, u64),
    to: &Path,
) -> Result<()> {
    let file = std::fs::File::create(to).with_context(|| format!("writing {}", to.display()))?;
    let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
    put(&mut tar, bundle::CHECKPOINT, note.as_bytes())?;
    let mut at = if from < tree_size { from - from % TILE_WIDTH } else { tree_size };
    while at < tree_size {
        let width = TILE_WIDTH.min(tree_size - at);
        let rows = store.entries(at, at + width, u32::try_from(width)?, None).await?;
        ensure!(rows.len() as u64 == width, "log entries are missing after {at}");
        let mut packed = Vec::new();
        rows.iter().for_each(|(_, bytes, _)| put_entry(bytes, &mut packed));
        put(&mut tar, &entries_path(at / TILE_WIDTH, width), &packed)?;
        at += width;
    }
    tar.into_inner()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    Ok(())
}

/// Checkpoints that were stamped, with their time-stamps: those whose entries are in the bundle.
async fn stamps<W: Write>(store: &Store, tree_size: u64, tar: &mut tar::Builder<W>) -> Result<()> {
    let mut after = 0;
    loop {
        let page = store.timestamps(after, tree_size, STAMPS_PER_PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.tree_size;
        for stamp in page {
            let size = stamp.tree_size;
            let note = store.checkpoint(size).await?;
            let note = note.with_context(|| format!("the checkpoint of {size} entries is gone"))?;
            put(tar, &bundle::stamped(size), note.as_bytes())?;
            put(tar, &bundle::stamp(size), &stamp.answer)?;
        }
    }
}

/// The digests of the files that entries name, and of the certificates of people that they commit to.
async fn named((store, persons): (&Store, &Persons), tree_size: u64) -> Result<BTreeSet<Digest>> {
    let mut named = BTreeSet::new();
    each_tile((store, persons), tree_size, |rows, disclosed| {
        named.extend(disclosed.iter().filter_map(Disclosure::cert));
        for (_, bytes, _) in rows {
            let entry = Entry::parse(bytes)?;
            let body = entry.body();
            let files = NAMES.iter().filter_map(|name| body.parsed::<Digest>(name).ok());
            named.extend(files.chain(entry.actor_cert()));
            if entry.kind == Kind::EvaluationAccepted {
                named.extend(body.parsed::<Digest>("header_sha256"));
            }
        }
        Ok(())
    })
    .await?;
    Ok(named)
}

/// Issuers, who trusts them, and for whom they vouch: each kind of file stands before what is read in its light.
async fn parties<W: Write>(
    (store, persons): (&Store, &Persons),
    named: &BTreeSet<Digest>,
    tar: &mut tar::Builder<W>,
    folds: &mut [Sections],
) -> Result<History> {
    let (issuers, mut certificates): (Vec<_>, Vec<_>) =
        store.certificates().await?.into_iter().partition(|(_, der)| is_authority(der));
    for (person, tag, sealed) in store.personal_certificates().await? {
        let der = persons.certificate(person, &tag, &sealed);
        certificates.extend(der.map(|der| (Digest::of(&der), der)));
    }
    certificates.sort();
    certificates.dedup();
    let trusts: Vec<_> = store
        .policies()
        .await?
        .into_iter()
        .filter(|(digest, name, _)| name == TRUST_FILE && named.contains(digest))
        .collect();
    let mut trusted = BTreeSet::new();
    for (_, name, bytes) in &trusts {
        let file = TrustFile::parse(&PathBuf::from(name), str::from_utf8(bytes)?)?;
        trusted.extend(file.issuers.into_iter().map(|issuer| issuer.spki_sha256));
    }
    let mut history = History::default();
    for (digest, der) in issuers {
        let spki = spki_sha256(&CertificateDer::from(&*der)).map_err(anyhow::Error::msg)?;
        if trusted.contains(&spki.to_string()) {
            put(tar, &bundle::issuer(&digest), &der)?;
            history.take_issuer(der).map_err(anyhow::Error::msg)?;
        }
    }
    for (digest, name, bytes) in &trusts {
        put(tar, &bundle::trust(digest), bytes)?;
        history.take_trust(name, bytes).map_err(anyhow::Error::msg)?;
    }
    for (digest, der) in certificates {
        if named.contains(&digest) {
            put(tar, &bundle::certificate(&digest), &der)?;
            if let Some(holder) = history.take_certificate(digest, der) {
                folds.iter_mut().for_each(|fold| fold.certificate(digest, holder.clone()));
            }
        }
    }
    Ok(history)
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

/// What a site counted about a candidate, if an entry in the bundle names it.
fn put_evaluation<W: Write>(
    tar: &mut tar::Builder<W>,
    row: &ExchangeRow,
    named: &BTreeSet<Digest>,
) -> Result<()> {
    let signed = evaluation::stored(row).with_context(|| format!("the counts of {}", row.site))?;
    let digest = Digest::of(&signed.header);
    if named.contains(&digest) {
        put(tar, &bundle::evaluation(&digest, "header"), &signed.header)?;
        put(tar, &bundle::evaluation(&digest, "sig"), &signed.signature)?;
        put(tar, &bundle::evaluation(&digest, "counts"), &signed.counts)?;
    }
    Ok(())
}

async fn entries<W: Write>(
    from: (&Store, &Persons),
    tree_size: u64,
    tar: &mut tar::Builder<W>,
    folds: &mut [Sections],
) -> Result<()> {
    each_tile(from, tree_size, |rows, disclosed| {
        let (mut tile, mut packed, mut personal) = (Vec::new(), Vec::new(), Vec::new());
        let mut disclosed = disclosed.iter().peekable();
        for (seq, bytes, leaf) in rows {
            tile.extend_from_slice(&leaf.0);
            put_entry(bytes, &mut packed);
            let mut entry = Entry::parse(bytes)?;
            if let Some(disclosure) = disclosed.next_if(|d| d.seq == *seq) {
                personal.extend(disclosure.to_bytes());
                personal.push(b'\n');
                entry = entry.disclosed(disclosure)?;
            }
            folds.iter_mut().for_each(|fold| fold.take(&entry));
        }
        let (width, at) = (rows.len() as u64, rows.first().map_or(0, |(seq, ..)| *seq));
        put(tar, &tile_path(0, at / TILE_WIDTH, width), &tile)?;
        if !personal.is_empty() {
            put(tar, &bundle::personal(at / TILE_WIDTH), &personal)?;
        }
        put(tar, &entries_path(at / TILE_WIDTH, width), &packed)
    })
    .await
}

/// Reads a log tile by tile, each with what is known of the people in it, in order.
async fn each_tile(
    (store, persons): (&Store, &Persons),
    tree_size: u64,
    mut take: impl FnMut(&[Stored], &[Disclosure]) -> Result<()>,
) -> Result<()> {
    let mut at = 0;
    while at < tree_size {
        let width = TILE_WIDTH.min(tree_size - at);
        let rows = store.entries(at, at + width, u32::try_from(width)?, None).await?;
        ensure!(rows.len() as u64 == width, "log entries are missing after {at}");
        let sealed = store.personal(at, at + width).await?.into_iter();
        let open =
            |(seq, person, sealed): (u64, _, Vec<u8>)| persons.disclosure(person, seq, &sealed);
        let disclosed: Vec<Disclosure> = sealed.filter_map(open).collect();
        take(&rows, &disclosed)?;
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
