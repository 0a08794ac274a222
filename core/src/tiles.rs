//! The log as static files: what any tool reads that knows C2SP tlog-tiles, from a disk or a plain web server.

use crate::{
    id::Digest,
    merkle::{
        Frontier, TILE_HEIGHT, TILE_WIDTH, entries, entries_path, leaf_hash, put_entry, tile_path,
    },
};

/// Makes the files while entries come in their order: one tile of hashes for each level, and one bundle of entries, are
/// held in memory. The signed checkpoint goes beside them as `checkpoint`.
#[derive(Clone, Debug, Default)]
pub struct Tiles {
    /// From the leaves up: whole tiles so far, and the hashes of the next.
    levels: Vec<(u64, Vec<Digest>)>,
    bundle: Vec<u8>,
}

impl Tiles {
    /// The files that a log of so many entries has and that are not whole: what [`Self::resume`] needs, in this order.
    #[must_use]
    pub fn unfinished(size: u64) -> Vec<String> {
        let levels =
            (0_u8..).map(|level| (level, size.checked_shr(u32::from(level) * TILE_HEIGHT)));
        let levels = levels.map_while(|(level, n)| n.filter(|n| *n > 0).map(|n| (level, n)));
        let tiles = levels.filter(|(_, n)| n % TILE_WIDTH > 0);
        let mut paths: Vec<_> =
            tiles.map(|(level, n)| tile_path(level, n / TILE_WIDTH, n % TILE_WIDTH)).collect();
        if !size.is_multiple_of(TILE_WIDTH) {
            paths.push(entries_path(size / TILE_WIDTH, size % TILE_WIDTH));
        }
        paths
    }

    /// Goes on after so many entries, from the bytes of the files that were not whole. `None` when they are not those files.
    /// Whether they are those of a log, [`Self::tree`] tells.
    #[must_use]
    pub fn resume(size: u64, files: Vec<Vec<u8>>) -> Option<Self> {
        let mut files = files.into_iter();
        let mut levels = Vec::new();
        while let Some(n) = size.checked_shr(u32::try_from(levels.len()).ok()? * TILE_HEIGHT)
            && n > 0
        {
            let mut tile = Vec::new();
            if n % TILE_WIDTH > 0 {
                let bytes = files.next()?;
                let (hashes, rest) = bytes.as_chunks::<32>();
                if !rest.is_empty() || hashes.len() as u64 != n % TILE_WIDTH {
                    return None;
                }
                tile.extend(hashes.iter().map(|hash| Digest(*hash)));
            }
            levels.push((n / TILE_WIDTH, tile));
        }
        let bundle = if size.is_multiple_of(TILE_WIDTH) { Vec::new() } else { files.next()? };
        let hashes = levels.first().map_or(&[][..], |(_, tile)| tile).iter().copied().map(Some);
        let leaves = entries(&bundle).map(|entry| entry.map(leaf_hash));
        let whole = leaves.eq(hashes) && files.next().is_none();
        whole.then_some(Self { levels, bundle })
    }

    /// The tree so far.
    #[must_use]
    pub fn tree(&self) -> Frontier {
        let mut tree = Frontier::new();
        let mut height = TILE_HEIGHT * u32::try_from(self.levels.len()).unwrap_or_default();
        for (_, tile) in self.levels.iter().rev() {
            height -= TILE_HEIGHT;
            let mut right = Frontier::new();
            tile.iter().for_each(|hash| right.push(*hash));
            tree.join(height, &right);
        }
        tree
    }

    /// Takes the next entry; `put` gets each file that is whole by it: its path, and its bytes.
    ///
    /// # Errors
    /// Whatever `put` gives.
    pub fn push<E>(
        &mut self,
        entry: &[u8],
        mut put: impl FnMut(&str, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        put_entry(entry, &mut self.bundle);
        let mut hash = leaf_hash(entry);
        for level in 0_u8.. {
            if self.levels.len() == usize::from(level) {
                self.levels.push((0, Vec::new()));
            }
            let (whole, tile) = &mut self.levels[usize::from(level)];
            tile.push(hash);
            if tile.len() as u64 != TILE_WIDTH {
                break;
            }
            put(&tile_path(level, *whole, TILE_WIDTH), &bytes_of(tile))?;
            if level == 0 {
                put(&entries_path(*whole, TILE_WIDTH), &self.bundle)?;
                self.bundle.clear();
            }
            let mut subtree = Frontier::new();
            tile.drain(..).for_each(|h| subtree.push(h));
            *whole += 1;
            hash = subtree.root();
        }
        Ok(())
    }

    /// Gives `put` what is not whole.
    ///
    /// # Errors
    /// Whatever `put` gives.
    pub fn finish<E>(self, mut put: impl FnMut(&str, &[u8]) -> Result<(), E>) -> Result<(), E> {
        for (level, (whole, tile)) in (0_u8..).zip(&self.levels) {
            let width = tile.len() as u64;
            if width > 0 {
                put(&tile_path(level, *whole, width), &bytes_of(tile))?;
            }
            if width > 0 && level == 0 {
                put(&entries_path(*whole, width), &self.bundle)?;
            }
        }
        Ok(())
    }
}

fn bytes_of(tile: &[Digest]) -> Vec<u8> {
    tile.iter().flat_map(|h| h.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use sha2::{Digest as _, Sha256};
    use std::{collections::BTreeMap, convert::Infallible};

    fn files(entries: impl Iterator<Item = String>) -> BTreeMap<String, Vec<u8>> {
        let (mut tiles, mut files) = (Tiles::default(), BTreeMap::new());
        let mut put = |path: &str, bytes: &[u8]| -> Result<(), Infallible> {
            assert!(files.insert(path.to_owned(), bytes.to_vec()).is_none(), "{path} twice");
            Ok(())
        };
        for entry in entries {
            let Ok(()) = tiles.push(entry.as_bytes(), &mut put);
        }
        let Ok(()) = tiles.finish(&mut put);
        files
    }

    #[test]
    fn the_files_of_70_000_entries_are_those_that_go_writes() {
        let all: Value =
            serde_json::from_str(include_str!("../testdata/merkle_vectors.json")).expect("JSON");
        let v = &all["generated_70000"];
        let files = files((0..70_000).map(|i| format!("leaf-{i}")));
        let check = |of: &Value| {
            let bytes = &files[of["path"].as_str().expect("a path")];
            assert_eq!(bytes.len() as u64, of["len"].as_u64().expect("a length"), "{of}");
            assert_eq!(hex::encode(Sha256::digest(bytes)), of["sha256"], "{of}");
        };
        v["tiles_of_interest"].as_array().expect("a list").iter().for_each(check);
        check(&v["last_entry_bundle"]);
        let of_level = |level: &str, partial: bool| {
            let tile = |p: &&String| p.starts_with(level) && p.contains(".p/") == partial;
            files.keys().filter(tile).count() as u64
        };
        let counts = &v["tile_counts"];
        assert_eq!(of_level("tile/0/", false), counts["L0_full"]);
        assert_eq!(of_level("tile/0/", true), counts["L0_partial_w112"]);
        assert_eq!(of_level("tile/1/", false), counts["L1_full"]);
        assert_eq!(of_level("tile/1/", true), counts["L1_partial_w17"]);
        assert_eq!(of_level("tile/2/", true), counts["L2_partial_w1"]);
    }

    #[test]
    fn whoever_goes_on_from_any_size_writes_the_same_files() {
        let entry = |i: u64| format!("leaf-{i}");
        let whole = files((0..66_000).map(entry));
        for size in [0, 1, 255, 256, 257, 65_535, 65_536, 65_537, 65_793] {
            let before = files((0..size).map(entry));
            let read = Tiles::unfinished(size).iter().map(|path| before[path].clone()).collect();
            let mut tiles = Tiles::resume(size, read).expect("those files");
            let mut tree = Frontier::new();
            (0..size).for_each(|i| tree.push(leaf_hash(entry(i).as_bytes())));
            assert_eq!(tiles.tree(), tree, "{size}");
            let mut after = before.clone();
            let mut put = |path: &str, bytes: &[u8]| -> Result<(), Infallible> {
                after.insert(path.to_owned(), bytes.to_vec());
                Ok(())
            };
            for i in size..66_000 {
                let Ok(()) = tiles.push(entry(i).as_bytes(), &mut put);
            }
            let Ok(()) = tiles.finish(&mut put);
            assert!(whole.iter().all(|(path, bytes)| after[path] == *bytes), "{size}");
        }
    }

    #[test]
    fn what_is_not_what_was_left_unfinished_is_not_gone_on_from() {
        let before = files((0..300).map(|i| i.to_string()));
        let read = || -> Vec<Vec<u8>> {
            Tiles::unfinished(300).iter().map(|path| before[path].clone()).collect()
        };
        assert!(Tiles::resume(300, read()).is_some());
        assert!(Tiles::resume(301, read()).is_none() && Tiles::resume(44, read()).is_none());
        for file in 0..read().len() {
            let (mut fewer, mut shorter) = (read(), read());
            fewer.remove(file);
            shorter[file].pop();
            assert!(Tiles::resume(300, fewer).is_none() && Tiles::resume(300, shorter).is_none());
        }
        // Entries that are not those of the hashes.
        let mut other = read();
        other[2][2] ^= 1;
        assert!(Tiles::resume(300, other).is_none());
        assert!(Tiles::resume(0, Vec::new()).is_some() && Tiles::resume(0, read()).is_none());
    }

    #[test]
    fn nothing_gives_no_file_and_a_whole_tile_no_partial_one() {
        assert!(files(std::iter::empty()).is_empty());
        let paths: Vec<String> = files((0..256).map(|i| i.to_string())).into_keys().collect();
        assert_eq!(paths, ["tile/0/000", "tile/1/000.p/1", "tile/entries/000"]);
    }
}
