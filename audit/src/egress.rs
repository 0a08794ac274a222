//! A site's exported egress journal beside the bundle: the chain is whole, the site signed its head, and each update of
//! the site that the log counts left it as the journal says.

use crate::Wrong;
use ed25519_dalek::VerifyingKey;
use falaj_core::{
    canon,
    egress::{Chain, Event, HEAD_CONTEXT, Kind, Sent, head_bytes},
    id::{Digest, RoundId, SiteId},
    note,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What one site's journal shows.
#[derive(Clone, Debug, Serialize)]
pub struct EgressReport {
    /// The site.
    pub site: String,
    /// The first entry that was given.
    pub first: u64,
    /// Entries of its journal, those before the first included.
    pub entries: u64,
    /// Updates in the bundle that are in it.
    pub updates: u64,
    /// Updates in it that the bundle does not count, and says that they were refused.
    pub refused: u64,
    /// Updates in it of which the bundle knows nothing: lost on their way, sent to another log, or to nobody who says so.
    pub unknown: u64,
    /// What left, by kind.
    pub kinds: BTreeMap<String, KindReport>,
}

/// What left in messages of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KindReport {
    /// How many, the same ones sent again included.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes of the largest.
    pub largest: u64,
}

/// An update of the bundle, as its signed header describes it.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    pub(crate) round: RoundId,
    pub(crate) header: Digest,
    pub(crate) payload: Digest,
    /// Of header, signature and payload.
    pub(crate) bytes: u64,
}

/// A file that a site exported, and signed.
struct File<'a> {
    site: SiteId,
    lines: Vec<&'a str>,
    first: u64,
}

/// Checks exported journals, of one site one or several that follow each other, against the keys of the sites' certificates
/// and the updates that are counted, both from the bundle.
pub(crate) fn check(
    texts: &[String],
    keys: &BTreeMap<String, Vec<VerifyingKey>>,
    counted: &BTreeMap<SiteId, Vec<Counted>>,
    refused: &BTreeSet<Digest>,
) -> Result<Vec<EgressReport>, Wrong> {
    let mut files = BTreeMap::<SiteId, Vec<File<'_>>>::new();
    for text in texts {
        let file = open(text, keys)?;
        files.entry(file.site.clone()).or_default().push(file);
    }
    let none = Vec::new();
    files
        .into_iter()
        .map(|(site, files)| {
            let counted = counted.get(&site).unwrap_or(&none);
            one_site(&site, files, counted, refused)
        })
        .collect()
}

fn wrong(what: String) -> Wrong {
    Wrong::Egress { what }
}

/// A file whose last line the site signed.
fn open<'a>(text: &'a str, keys: &BTreeMap<String, Vec<VerifyingKey>>) -> Result<File<'a>, Wrong> {
    let (entries, last) = text
        .trim_end()
        .rsplit_once('\n')
        .ok_or_else(|| wrong("it has no entries and signed head".into()))?;
    let unread = |e: canon::CanonError| wrong(format!("its last line: {e}"));
    let last = canon::parse(last.as_bytes()).map_err(unread)?;
    let signed = last.text("head").map_err(unread)?;
    let site: SiteId =
        canon::parse(signed.as_bytes()).and_then(|head| head.parsed("site")).map_err(unread)?;
    let lines: Vec<&str> = entries.lines().collect();
    let mut chain = before(&lines, &site)?;
    let first = chain.entries();
    for line in &lines {
        chain.take(line.as_bytes()).map_err(|e| wrong(e.to_string()))?;
    }
    if chain.site() != Some(&site) {
        return Err(wrong(format!("it was opened by another site than {site}, which signed it")));
    }
    let head = head_bytes(&site, chain.entries(), &chain.head());
    if signed.as_bytes() != head {
        return Err(wrong(format!(
            "{site} signed another head than the one that its {} entries come to",
            chain.entries()
        )));
    }
    let signature = last.text("signature").map_err(unread)?;
    let signature =
        crate::hex(signature).ok_or_else(|| wrong("its signature cannot be read".into()))?;
    let keys = keys.get(&site.to_string()).map(Vec::as_slice).unwrap_or_default();
    if !keys.iter().any(|key| note::verify_context(key, HEAD_CONTEXT, &head, &signature)) {
        return Err(wrong(format!("no certificate of {site} in the bundle signed its head")));
    }
    Ok(File { site, lines, first })
}

fn one_site(
    site: &SiteId,
    mut files: Vec<File<'_>>,
    counted: &[Counted],
    refused: &BTreeSet<Digest>,
) -> Result<EgressReport, Wrong> {
    files.sort_by_key(|file| file.first);
    let first = files.first().map_or(0, |file| file.first);
    let mut lines: Vec<&str> = Vec::new();
    for file in &files {
        let known = usize::try_from(file.first - first).unwrap_or(usize::MAX);
        let Some(both) = lines.get(known..) else {
            let (from, to) = (first + lines.len() as u64, file.first - 1);
            return Err(wrong(format!(
                "entries {from} to {to} of {site} are in none of the files"
            )));
        };
        let shared = both.len().min(file.lines.len());
        if both[..shared] != file.lines[..shared] {
            return Err(wrong(format!("two files of {site} tell of different journals")));
        }
        lines.extend(&file.lines[shared..]);
    }
    let mut chain = before(&lines, site)?;
    let (mut kinds, mut updates) = (BTreeMap::<String, KindReport>::new(), Vec::<Sent>::new());
    for line in lines {
        let entry = chain.take(line.as_bytes()).map_err(|e| wrong(e.to_string()))?;
        let Event::Sent(sent) = entry.event else { continue };
        let kind = kinds.entry(sent.kind.as_str().to_owned()).or_default();
        kind.messages += 1;
        kind.bytes = kind.bytes.saturating_add(sent.bytes);
        kind.largest = kind.largest.max(sent.bytes);
        if sent.kind == Kind::Update {
            updates.push(sent);
        }
    }
    for update in counted {
        let left = updates.iter().find(|sent| sent.header == Some(update.header));
        let Some(left) = left else {
            let hint = if first > 0 {
                format!("; entries before {first} are in an earlier file, which belongs here too")
            } else {
                String::new()
            };
            return Err(wrong(format!(
                "the log counts an update of {site} for {}, with header {}, which did not leave by its journal{hint}",
                update.round, update.header
            )));
        };
        if (left.sha256, left.bytes, left.round.as_ref())
            != (update.payload, update.bytes, Some(&update.round))
        {
            return Err(wrong(format!(
                "the update of {site} for {} left otherwise than the log counts it: {} bytes with digest {}",
                update.round, left.bytes, left.sha256
            )));
        }
    }
    let known: BTreeSet<Digest> = counted.iter().map(|update| update.header).collect();
    let others = updates.iter().filter(|sent| sent.header.is_some_and(|h| !known.contains(&h)));
    let others: BTreeMap<Option<Digest>, Digest> =
        others.map(|sent| (sent.header, sent.sha256)).collect();
    let unknown = others.values().filter(|payload| !refused.contains(payload)).count() as u64;
    Ok(EgressReport {
        site: site.to_string(),
        first,
        entries: chain.entries(),
        updates: counted.len() as u64,
        refused: others.len() as u64 - unknown,
        unknown,
        kinds,
    })
}

/// Where the first of these lines goes on from.
fn before(lines: &[&str], site: &SiteId) -> Result<Chain, Wrong> {
    let line = lines.first().map(|line| line.as_bytes()).unwrap_or_default();
    Chain::before(line, site.clone()).map_err(|e| wrong(e.to_string()))
}
