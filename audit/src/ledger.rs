//! A site's exported budget ledger beside the bundle: the chain is whole, the site signed its head, and it holds
//! what each of the site's updates in the bundle was paid from.

use crate::Wrong;
use ed25519_dalek::VerifyingKey;
use falaj_core::{
    canon,
    id::{Digest, SiteId},
    ledger::{HEAD_CONTEXT, Ledger, head_bytes},
    note,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What one ledger shows.
#[derive(Clone, Debug, Serialize)]
pub struct LedgerReport {
    /// The site.
    pub site: String,
    /// Entries of its ledger.
    pub entries: u64,
    /// Updates in the bundle whose payment is in it.
    pub updates: u64,
    /// Data sets and studies with spending.
    pub studies: Vec<(String, String)>,
}

/// Checks an exported ledger against the keys of the site's certificates and the ledger heads that its updates
/// name, both from the bundle.
pub(crate) fn check(
    text: &str,
    keys: &BTreeMap<String, Vec<VerifyingKey>>,
    heads: &BTreeMap<SiteId, Vec<Digest>>,
) -> Result<LedgerReport, Wrong> {
    let wrong = |what: String| Wrong::Ledger { what };
    let (entries, last) = text
        .trim_end()
        .rsplit_once('\n')
        .ok_or_else(|| wrong("it has no entries and signed head".into()))?;
    let (mut ledger, mut digests) = (Ledger::default(), BTreeSet::new());
    for line in entries.lines() {
        ledger.take(line.as_bytes()).map_err(|e| wrong(e.to_string()))?;
        digests.insert(ledger.head());
    }
    let site = ledger.site().cloned().ok_or_else(|| wrong("it was never opened".into()))?;
    let unread = |e: canon::CanonError| wrong(format!("its last line: {e}"));
    let last = canon::parse(last.as_bytes()).map_err(unread)?;
    let head = head_bytes(&site, ledger.entries(), &ledger.head());
    if last.text("head").map_err(unread)?.as_bytes() != head {
        return Err(wrong(format!(
            "{site} signed another head than the one that its {} entries come to",
            ledger.entries()
        )));
    }
    let signature = crate::hex(last.text("signature").map_err(unread)?)
        .ok_or_else(|| wrong("its signature cannot be read".into()))?;
    let keys = keys.get(&site.to_string()).map(Vec::as_slice).unwrap_or_default();
    if !keys.iter().any(|key| note::verify_context(key, HEAD_CONTEXT, &head, &signature)) {
        return Err(wrong(format!("no certificate of {site} in the bundle signed its head")));
    }
    let named = heads.get(&site).map(Vec::as_slice).unwrap_or_default();
    if let Some(lost) = named.iter().find(|head| !digests.contains(head)) {
        return Err(wrong(format!(
            "an update of {site} was paid from entry {lost}, which its ledger does not hold: the ledger was cut back"
        )));
    }
    Ok(LedgerReport {
        site: site.to_string(),
        entries: ledger.entries(),
        updates: named.len() as u64,
        studies: ledger.studies().into_iter().map(|(d, s)| (d, s.to_string())).collect(),
    })
}
