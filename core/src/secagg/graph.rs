//! Who shares masks and secrets with whom.
//!
//! Up to [`SPARSE_FROM`] members everybody is everybody's neighbour. Above, the members
//! stand on a circle in a random order, and each is the neighbour of the `k / 2` next ones on either side (a
//! Harary graph, Bell et al. 2020, section 3.2). `Graph::new` takes the smallest even `k`, and a number
//! of shares `s` that give a secret back, such that over the random order, with `r = n - t + c` members
//! dropped out or colluding:
//!
//! - no member has `s` colluding neighbours, who could give its secrets away (a hypergeometric tail);
//! - no member has fewer than `s` neighbours left, who are needed to take its mask off;
//! - no `k / 2` members in a row are dropped out or colluding, so that the honest ones left are connected
//!   and their sum is all that the masks let through;
//!
//! each with a chance below 2^-40 for all members together. Where no such `k` is below `n - 1`, the graph is
//! complete.

use super::SPARSE_FROM;
use crate::id::Digest;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

/// The chance that the order is a bad one, as a power of two, for each of three reasons.
const BAD_LOG2: f64 = -42.0;

/// The neighbourhoods of a cohort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    neighbours: Vec<Vec<u16>>,
    shares: u32,
}

impl Graph {
    pub(super) fn new(cohort: &Digest, n: usize, threshold: u32, colluders: u32) -> Self {
        let members = u32::try_from(n).unwrap_or(u32::MAX);
        let sparse = (n > SPARSE_FROM).then(|| degree(members, threshold, colluders)).flatten();
        let number = |i: usize| u16::try_from(i).unwrap_or(u16::MAX);
        let Some((degree, shares)) = sparse else {
            let others = |i| (0..n).filter(|&j| j != i).map(number).collect();
            // All but the owner hold a share, so one less than the threshold must do.
            return Self { neighbours: (0..n).map(others).collect(), shares: threshold - 1 };
        };
        let order = shuffled(n, cohort);
        let mut neighbours = vec![Vec::new(); n];
        for (at, &member) in order.iter().enumerate() {
            for step in 1..=degree as usize / 2 {
                let other = order[(at + step) % n];
                neighbours[member].push(number(other));
                neighbours[other].push(number(member));
            }
        }
        neighbours.iter_mut().for_each(|list| list.sort_unstable());
        Self { neighbours, shares }
    }

    /// The neighbours of a member, in order.
    #[must_use]
    pub fn neighbours(&self, member: u16) -> &[u16] {
        self.neighbours.get(usize::from(member)).map_or(&[], Vec::as_slice)
    }

    /// Shares that give a secret back.
    #[must_use]
    pub const fn shares(&self) -> u32 {
        self.shares
    }
}

/// A uniformly random order that everybody can recompute (Fisher, Yates).
fn shuffled(n: usize, cohort: &Digest) -> Vec<usize> {
    let mut tagged = b"falaj/secagg/graph/v1\0".to_vec();
    tagged.extend_from_slice(cohort.as_bytes());
    let mut rng = ChaCha20Rng::from_seed(*Digest::of(&tagged).as_bytes());
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        // 64 bits for at most 200 places: the bias is below 2^-56.
        let place = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, usize::try_from(place).unwrap_or(0));
    }
    order
}

/// Degree and shares of a sparse graph, or none where only a complete one will do.
fn degree(n: u32, threshold: u32, colluders: u32) -> Option<(u32, u32)> {
    let dropped = n - threshold;
    let each = BAD_LOG2 - f64::from(n).log2();
    for degree in (4..n.saturating_sub(1)).step_by(2) {
        // k/2 in a row, beginning anywhere.
        if all_bad(n, dropped + colluders, degree / 2) > each {
            continue;
        }
        // Colluders among the neighbours, and neighbours that are left: the least number of shares that
        // is safe, and whether that many are left.
        let safe = (1..=degree).find(|&s| tail(n - 1, colluders, degree, s) <= each)?;
        // Fewer than `safe` left is more than `degree - safe` dropped.
        if tail(n - 1, dropped, degree, degree - safe + 1) <= each {
            return Some((degree, safe));
        }
    }
    None
}

/// Logarithm to base 2 of the number of ways to choose.
fn choose(n: u32, k: u32) -> f64 {
    let ln = |v: u32| libm::lgamma(f64::from(v) + 1.0);
    (ln(n) - ln(k) - ln(n - k)) / std::f64::consts::LN_2
}

/// log2 of the chance that `run` given places all hold one of `bad` among `n`.
fn all_bad(n: u32, bad: u32, run: u32) -> f64 {
    if run > bad { f64::NEG_INFINITY } else { choose(n - run, bad - run) - choose(n, bad) }
}

/// log2 of the chance that a random choice of `draws` among `n` has at least `least` of `marked` ones.
fn tail(n: u32, marked: u32, draws: u32, least: u32) -> f64 {
    let most = marked.min(draws);
    let from = least.max(draws.saturating_sub(n - marked));
    if from > most {
        return f64::NEG_INFINITY;
    }
    let of = |k: u32| choose(marked, k) + choose(n - marked, draws - k) - choose(n, draws);
    let sum: f64 = (from..=most).map(|k| of(k).exp2()).sum();
    sum.log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_those_of_the_hypergeometric_distribution() {
        // 5 of 10 marked, 3 drawn: all three marked with chance 10/120, at least two with 60/120.
        assert!((tail(10, 5, 3, 3).exp2() - 10.0 / 120.0).abs() < 1e-12);
        assert!((tail(10, 5, 3, 2).exp2() - 0.5).abs() < 1e-12);
        assert!(tail(10, 2, 3, 3) < -1e300);
        assert!((all_bad(10, 5, 3).exp2() - 10.0 / 120.0).abs() < 1e-12);
    }

    #[test]
    fn small_cohorts_are_complete_and_large_ones_sparse_and_symmetric() {
        let digest = Digest::of(b"cohort");
        let small = Graph::new(&digest, 10, 7, 2);
        assert!((0..10).all(|i| small.neighbours(i).len() == 9));
        assert_eq!(small.shares(), 6);
        let large = Graph::new(&digest, 200, 170, 20);
        let degree = large.neighbours(0).len();
        assert!(degree < 120, "{degree}");
        for i in 0..200 {
            let list = large.neighbours(i);
            assert_eq!(list.len(), degree);
            assert!(list.is_sorted() && !list.contains(&i));
            assert!(list.iter().all(|&j| large.neighbours(j).contains(&i)));
        }
        assert_ne!(large, Graph::new(&Digest::of(b"another"), 200, 170, 20));
        assert!((large.shares() as usize) < degree);
    }

    #[test]
    fn where_no_sparse_graph_is_safe_the_graph_is_complete() {
        let tight = Graph::new(&Digest::of(b"cohort"), 40, 27, 12);
        assert_eq!(tight.neighbours(3).len(), 39);
        assert_eq!(tight.shares(), 26);
    }
}
