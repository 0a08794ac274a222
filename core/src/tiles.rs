//! The log as static files: what any tool reads that knows C2SP tlog-tiles, from a disk or a plain web server.

use crate::{
    id::Digest,
    merkle::{Frontier, TILE_WIDTH, entries_path, leaf_hash, put_entry, tile_path},
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
    fn nothing_gives_no_file_and_a_whole_tile_no_partial_one() {
        assert!(files(std::iter::empty()).is_empty());
        let paths: Vec<String> = files((0..256).map(|i| i.to_string())).into_keys().collect();
        assert_eq!(paths, ["tile/0/000", "tile/1/000.p/1", "tile/entries/000"]);
    }
}
