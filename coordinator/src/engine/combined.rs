//! A round's updates on disk, as another rule than the mean reads them: block by block, once their set is fixed.
//!
//! What the rules are is `falaj_core::robust`.

use falaj_core::{
    dp::Rotation,
    robust::{BlockRule, Rule, Shape},
    update::Encoding,
};
use std::{fs::File, io, os::unix::fs::FileExt as _, path::PathBuf};

/// Files that stay open from block to block; others are opened for each block.
const OPEN_MAX: usize = 256;

/// What a rule found out about the updates of a round, and the updates.
pub(super) struct Combined {
    rule: BlockRule,
    spool: Spool,
}

/// Payloads, in the order of their sites' ids.
struct Spool {
    paths: Vec<PathBuf>,
    open: Vec<File>,
}

impl Spool {
    fn open(paths: Vec<PathBuf>) -> io::Result<Self> {
        let open = paths.iter().take(OPEN_MAX).map(File::open).collect::<io::Result<_>>()?;
        Ok(Self { paths, open })
    }

    fn read(&self, update: usize, at: u64, into: &mut [u8]) -> anyhow::Result<()> {
        match self.open.get(update) {
            Some(file) => file.read_exact_at(into, at)?,
            None => File::open(&self.paths[update])?.read_exact_at(into, at)?,
        }
        Ok(())
    }
}

impl Combined {
    /// Reads the updates as often as the rule takes it to know how far each of them counts. It blocks.
    pub(super) fn measure(
        rule: Rule,
        paths: Vec<PathBuf>,
        params: usize,
        encoding: Encoding,
    ) -> anyhow::Result<Self> {
        let shape = Shape { updates: paths.len(), params, encoding };
        let spool = Spool::open(paths)?;
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
