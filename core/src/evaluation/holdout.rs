//! Which records are held out: those whose keyed hash falls below a share of all hashes.
//!
//! The same record is on the same side in every round, in every study and in every later version of the data, as long as its
//! identity stays what it is. The key is the site's own, so nobody else can tell which records are held out.

use sha2::{Digest as _, Sha256};

/// The secret of one data set at one site.
#[derive(Clone)]
pub struct Key(pub [u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key([redacted])")
    }
}

/// Whether the record of this identity is held out, where `share` of all records are: SHA-256 over the key, and each part of
/// the identity after its length.
#[must_use]
pub fn is_held_out<'a>(key: &Key, identity: impl IntoIterator<Item = &'a str>, share: f64) -> bool {
    let mut hash = Sha256::new();
    hash.update(b"falaj/holdout/v1\0");
    hash.update(key.0);
    for part in identity {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, ..] = digest;
    // 32 bits are exact in an f64, and finer than any share that somebody means.
    f64::from(u32::from_le_bytes([a, b, c, d])) < share * 2_f64.powi(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(key: u8, share: f64) -> Vec<usize> {
        let key = Key([key; 32]);
        (0..20_000).filter(|i| is_held_out(&key, [i.to_string().as_str()], share)).collect()
    }

    #[test]
    fn the_share_is_held_out_and_a_larger_share_keeps_those_that_were() {
        let (fifth, third) = (held(1, 0.2), held(1, 1.0 / 3.0));
        // A binomial of 20,000 at 0.2 has a standard deviation of 57.
        assert!((3_720..4_280).contains(&fifth.len()), "{}", fifth.len());
        assert!(fifth.iter().all(|i| third.binary_search(i).is_ok()));
        assert!(held(1, 0.0).is_empty() && held(1, 1.0).len() == 20_000);
    }

    #[test]
    fn another_key_holds_out_others_and_parts_cannot_be_shifted_into_each_other() {
        let (one, two) = (held(1, 0.2), held(2, 0.2));
        let both = one.iter().filter(|i| two.binary_search(i).is_ok()).count();
        // Independent: a fifth of a fifth.
        assert!((640..960).contains(&both), "{both}");
        let of = |identity: &[&str]| {
            let at = |share: f64| is_held_out(&Key([3; 32]), identity.iter().copied(), share);
            // The least share that holds it out, to ten bits.
            (0..1_024).find(|i| at(f64::from(*i) / 1_024.0))
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert!(!format!("{:?}", Key([3; 32])).contains('3'));
    }
}
