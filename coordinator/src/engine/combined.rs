//! A round's updates on disk, as another rule than the mean, and gates on updates, read them: block by block, once their
//! set is fixed.
//!
//! What the rules and figures are is `falaj_core::robust`.

use super::{
    Meta,
    spooled::{Damaged, Spooled},
};
use crate::{blob::Blobs, store::writer::CommitError};
use falaj_core::{
    dp::Rotation,
    gate::compare_updates,
    id::{RoundId, SiteId},
    robust::{BlockRule, Compared, Outlier, Rule, Shape, outliers},
    round::{RoundSpec, UpdateRef},
    update::Encoding,
};
use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _};

/// Files that stay open from block to block; others are opened for each block.
const OPEN_MAX: usize = 256;

/// What a rule found out about the updates of a round, and the updates.
pub(super) struct Combined {
    rule: BlockRule,
    spool: Spool,
}

/// Payloads, in the order of their sites' ids.
struct Spool {
    updates: Vec<Spooled>,
    open: Vec<File>,
}

impl Spool {
    /// Reads all of them once, to hold them against what was signed.
    fn open(updates: Vec<Spooled>, shape: &Shape) -> anyhow::Result<Self> {
        let bytes = shape.params * shape.encoding.bytes_per_value();
        let mut open = Vec::with_capacity(updates.len().min(OPEN_MAX));
        for update in &updates {
            let file = update.each_block(bytes, |_| Ok(()))?;
            if open.len() < OPEN_MAX {
                open.push(file);
            }
        }
        Ok(Self { updates, open })
    }

    fn read(&self, update: usize, at: u64, into: &mut [u8]) -> anyhow::Result<()> {
        let spooled = &self.updates[update];
        let read = match self.open.get(update) {
            Some(file) => file.read_exact_at(into, at),
            None => spooled.open()?.read_exact_at(into, at),
        };
        read.map_err(|e| spooled.failed(e))
    }
}

impl Combined {
    /// Reads the updates as often as the rule takes it to know how far each of them counts. It blocks.
    ///
    /// # Errors
    /// [`Damaged`], that the rule makes nothing of them, or why they cannot be read now.
    pub(super) fn measure(
        rule: Rule,
        updates: Vec<Spooled>,
        params: usize,
        encoding: Encoding,
    ) -> anyhow::Result<Self> {
        let shape = Shape { updates: updates.len(), params, encoding };
        let spool = Spool::open(updates, &shape)?;
        let read = |update, at, into: &mut [u8]| spool.read(update, at, into);
        Ok(Self { rule: BlockRule::measure(rule, shape, read)?, spool })
    }

    /// Moves a block of the base. It blocks.
    pub(super) fn move_base(
        &mut self,
        at: usize,
        block: &mut [u8],
        rate: f64,
        rotation: Option<&Rotation>,
    ) -> anyhow::Result<()> {
        let spool = &self.spool;
        let read = |update, at, into: &mut [u8]| spool.read(update, at, into);
        self.rule.move_base(at, block, rate, rotation, read)
    }
}

/// Length and direction of each update. It blocks.
fn compare(
    updates: Vec<Spooled>,
    params: usize,
    encoding: Encoding,
) -> anyhow::Result<Vec<Outlier>> {
    let shape = Shape { updates: updates.len(), params, encoding };
    let spool = Spool::open(updates, &shape)?;
    outliers(shape, |update, at, into: &mut [u8]| spool.read(update, at, into))
}

/// Why gates say nothing of a candidate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unjudged {
    /// They may later.
    #[error(transparent)]
    NotNow(#[from] CommitError),
    /// They never will.
    #[error(transparent)]
    Never(#[from] Damaged),
}

/// How the updates of a round compare with each other, if a gate asks for it and they are seen.
///
/// # Errors
/// When they cannot be read now, or are damaged.
pub(super) async fn compared(
    updates: &Blobs,
    meta: &Meta,
    (round, spec): (&RoundId, &RoundSpec),
    of_round: &BTreeMap<SiteId, UpdateRef>,
) -> Result<Option<Compared>, Unjudged> {
    let is_last = round.number == meta.study.rounds.count;
    let asked = compare_updates(&meta.study.gates, is_last, spec.evaluates);
    if !asked || spec.masked {
        return Ok(None);
    }
    let failed = |what: String| {
        CommitError::Failed(format!("the updates cannot be compared with each other: {what}"))
    };
    let (params, encoding) = (meta.manifest.params(), meta.study.encoding());
    let of_sites = of_round.values().map(|u| Spooled::of(updates, u)).collect();
    let figures = tokio::task::spawn_blocking(move || compare(of_sites, params, encoding)).await;
    let figures = match figures.map_err(|e| failed(e.to_string()))? {
        Ok(figures) => figures,
        Err(e) => {
            let damaged = e.downcast_ref::<Damaged>().copied();
            return Err(damaged.map_or_else(|| failed(format!("{e:#}")).into(), Unjudged::from));
        }
    };
    // Of too few, or too many, nothing is known: the gate fails.
    Ok(Compared::new(of_round.keys().cloned().collect(), figures).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::{id::Digest, robust::Standing};

    /// More than one block of each, in more files than stay open, one of which is ten times the opposite of the others.
    #[tokio::test]
    async fn updates_that_lie_on_disk_are_compared_and_the_one_that_shouts_stands_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::open(dir.path()).expect("opens");
        let (params, sites, bad) = (3_000_usize, OPEN_MAX + 3, 100);
        let mut updates = Vec::new();
        for site in 0..sites {
            let value = |i: usize| {
                let own = i16::try_from(((i * 31) ^ (site * 17)) % 41).expect("small") - 20;
                let common = if i.is_multiple_of(3) { 40 } else { -25 };
                if site == bad { -10 * (common + own) } else { common + own }
            };
            let payload: Vec<u8> = (0..params).flat_map(|i| value(i).to_le_bytes()).collect();
            let digest = Digest::of(&payload);
            blobs.put(digest, payload).await.expect("writes");
            let update = UpdateRef { payload: digest, header: digest, weight: 1 };
            updates.push(Spooled::of(&blobs, &update));
        }
        let encoding = Encoding::new(16, 0.001).expect("valid");
        let figures = compare(updates.clone(), params, encoding).expect("they can be read");
        let site = |n: usize| format!("spiffe://t/ae-on/ae-az/site/h-{n:03}").parse::<SiteId>();
        let named = (0..sites).map(|n| site(n).expect("valid")).collect();
        let compared = Compared::new(named, figures).expect("not too many");
        let outside = |standing: Standing, found: f64| match standing {
            Standing::NormRatio => (found - 10.0).abs() < 1.0,
            Standing::Cosine => found < -0.8,
        };
        for standing in Standing::ALL {
            let found = compared.each(standing).map(|(_, found)| found.expect("a figure"));
            let standing_out = found.enumerate().filter(|(_, found)| outside(standing, *found));
            let standing_out: Vec<usize> = standing_out.map(|(site, _)| site).collect();
            assert_eq!(standing_out, [bad], "{standing:?}");
        }
        // One bit of one of them, open or not while they are read, is not what its site signed.
        for changed in [7, OPEN_MAX + 1] {
            let payload = updates[changed].whole().expect("reads");
            let mut other = payload.clone();
            other[params] ^= 1;
            let (signed, found) = (Digest::of(&payload), Digest::of(&other));
            std::fs::write(blobs.path(&signed), &other).expect("writes");
            let damaged = Some(Damaged::Other { signed, found });
            let compared = compare(updates.clone(), params, encoding).expect_err("damaged");
            assert_eq!(compared.downcast_ref().copied(), damaged);
            let combined = Combined::measure(Rule::Median, updates.clone(), params, encoding);
            assert_eq!(combined.err().and_then(|e| e.downcast_ref().copied()), damaged);
            std::fs::write(blobs.path(&signed), &payload).expect("writes");
        }
    }
}
