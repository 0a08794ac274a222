//! Time-stamps in a bundle: each is of the checkpoint that stands before it, and an entry of the log says so.
//!
//! A stamp names its authority by a certificate that came with it. Who that is, nothing in a bundle can vouch for: it
//! counts for as much as the log says, until somebody names the issuer whom they trust.

use crate::Wrong;
use falaj_certs::timestamp::{Issuers, Stamp};
use falaj_core::{
    audit::{Entry, Kind, bundle},
    id::Digest,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// How strong the evidence is that an authority stamped something, by the words of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StampLevel {
    /// Whoever made the bundle says so.
    Declared,
    /// The coordinator's log names the certificate under which the stamp holds.
    Recorded,
    /// An issuer whom you named vouches for that certificate.
    Attested,
}

/// A time-stamp that holds.
#[derive(Clone, Debug, Serialize)]
pub struct StampReport {
    /// Entries that were there at that time.
    pub tree_size: u64,
    /// When, by the authority's clock.
    pub time: String,
    /// The authority, as its certificate names it.
    pub authority: String,
    /// SHA-256 of that certificate.
    pub authority_sha256: String,
    /// How strong the evidence is.
    pub level: StampLevel,
}

/// Time-stamps as they are read.
pub(crate) struct Stamps<'a> {
    issuers: Option<&'a Issuers>,
    /// The checkpoint that waits for its time-stamp: its size and the SHA-256 of its note.
    waiting: Option<(u64, Digest)>,
    /// Stamps that no entry has named yet, by the SHA-256 of the answer: the note's, and what it says.
    unnamed: BTreeMap<Digest, (Digest, StampReport)>,
    /// Certificates of authorities that entries name.
    named: BTreeSet<Digest>,
    found: Vec<StampReport>,
}

impl<'a> Stamps<'a> {
    pub(crate) fn new(issuers: Option<&'a Issuers>) -> Self {
        Self {
            issuers,
            waiting: None,
            unnamed: BTreeMap::new(),
            named: BTreeSet::new(),
            found: Vec::new(),
        }
    }

    /// A checkpoint that was stamped. The caller sees to it that it is one of this log's.
    pub(crate) fn take_note(
        &mut self,
        path: &str,
        tree_size: u64,
        note: &[u8],
    ) -> Result<(), Wrong> {
        self.finish_note()?;
        if path != bundle::stamped(tree_size) {
            return Err(wrong(path, format!("it is a checkpoint of {tree_size} entries")));
        }
        self.waiting = Some((tree_size, Digest::of(note)));
        Ok(())
    }

    /// The time-stamp of the checkpoint that stood before it.
    pub(crate) fn take_answer(&mut self, path: &str, answer: &[u8]) -> Result<(), Wrong> {
        let waiting = self.waiting.take().filter(|(size, _)| path == bundle::stamp(*size));
        let Some((tree_size, note)) = waiting else {
            return Err(wrong(path, "its checkpoint does not stand before it".into()));
        };
        let stamp = self.open(path, answer, &note)?;
        let level = self.level(StampLevel::Recorded);
        let report = report_of(tree_size, &stamp, level);
        self.unnamed.insert(Digest::of(answer), (note, report));
        Ok(())
    }

    fn open(&self, path: &str, answer: &[u8], of: &Digest) -> Result<Stamp, Wrong> {
        let stamp = Stamp::open(answer, of);
        let checked = stamp.and_then(|stamp| {
            self.issuers.map_or(Ok(()), |issuers| stamp.check_issuer(issuers))?;
            Ok(stamp)
        });
        checked.map_err(|e| wrong(path, e.to_string()))
    }

    /// The level, which is higher where the issuer is known from elsewhere.
    fn level(&self, otherwise: StampLevel) -> StampLevel {
        self.issuers.map_or(otherwise, |_| StampLevel::Attested)
    }

    /// The next entry of the log.
    pub(crate) fn take_entry(&mut self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        if matches!(entry.kind, Kind::CheckpointStamped | Kind::ReportStamped) {
            self.named.insert(body.parsed("authority_sha256").map_err(|e| e.to_string())?);
        }
        if entry.kind != Kind::CheckpointStamped {
            return Ok(());
        }
        let digest = |key: &str| body.parsed::<Digest>(key).map_err(|e| e.to_string());
        let token = digest("token_sha256")?;
        let Some((note, report)) = self.unnamed.remove(&token) else {
            return Err(format!("its time-stamp {token} is not in the bundle"));
        };
        let tree_size: u64 = body.int("tree_size").map_err(|e| e.to_string())?;
        let same = tree_size == report.tree_size
            && tree_size <= entry.seq
            && digest("checkpoint_sha256")? == note
            && digest("authority_sha256")?.to_string() == report.authority_sha256
            && body.text("stamped") == Ok(&report.time);
        if !same {
            return Err(format!("the time-stamp {token} says something else"));
        }
        self.found.push(report);
        Ok(())
    }

    /// The time-stamp of the report, of which these are the bytes up to so many entries.
    pub(crate) fn report(
        &self,
        tree_size: u64,
        report: &[u8],
        answer: &[u8],
    ) -> Result<StampReport, Wrong> {
        let stamp = self.open(bundle::REPORT_STAMP, answer, &Digest::of(report))?;
        let named = self.named.contains(&stamp.certificate);
        let level = self.level(if named { StampLevel::Recorded } else { StampLevel::Declared });
        Ok(report_of(tree_size, &stamp, level))
    }

    /// Nothing is left over. The stamps of checkpoints.
    pub(crate) fn finish(&mut self) -> Result<Vec<StampReport>, Wrong> {
        self.finish_note()?;
        if let Some((_, report)) = self.unnamed.values().next() {
            let path = bundle::stamp(report.tree_size);
            return Err(wrong(&path, "no entry of the log names it".into()));
        }
        Ok(std::mem::take(&mut self.found))
    }

    fn finish_note(&self) -> Result<(), Wrong> {
        self.waiting.map_or(Ok(()), |(size, _)| Err(Wrong::Missing(bundle::stamp(size))))
    }
}

fn report_of(tree_size: u64, stamp: &Stamp, level: StampLevel) -> StampReport {
    StampReport {
        tree_size,
        time: stamp.time.to_string(),
        authority: stamp.authority.clone(),
        authority_sha256: stamp.certificate.to_string(),
        level,
    }
}

fn wrong(path: &str, what: String) -> Wrong {
    Wrong::File { path: path.to_owned(), what }
}
