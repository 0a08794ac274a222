//! What depends on lengths and distances: Krum, the geometric median, and updates that are shortened.

use super::rows::{Block, F64_BITS, Lane, Rows, Tile, dot_f64};

/// Most steps of Weiszfeld's algorithm. What has been found by then counts: no step makes the sum of distances longer, so
/// that it is no longer than that of any update.
const ITERATIONS_MAX: usize = 1_000;
/// Weights that move less than this in a step are found: it is finer than what they are cut to.
const SETTLED: f64 = 1e-10;

/// Inner products of all pairs of updates, in whole steps of the grid, exactly.
pub(super) struct Gram {
    updates: usize,
    /// Of update `i` with each `j <= i`, row by row.
    products: Vec<i128>,
}

/// The nearest f64.
#[expect(clippy::cast_precision_loss, reason = "rounded once, the same everywhere")]
pub(super) const fn as_f64(v: i128) -> f64 {
    v as f64
}

/// Of update `i` with each `j <= i`, row by row; `factors` is what a row is multiplied as.
fn products<L: Lane, F: Copy, E>(
    block: &mut Block<L>,
    factors: impl Fn(&Tile<L>) -> Tile<F>,
    dot: impl Fn(&Tile<F>, &Tile<F>) -> i128,
    read: &mut impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<i128>, E> {
    let shape = block.shape;
    let mut products = vec![0; shape.updates * (shape.updates + 1) / 2];
    let mut tile: Vec<Tile<F>> = Vec::with_capacity(shape.updates);
    block.each_tile((0, shape.params), read, |_, _, rows| {
        tile.clear();
        tile.extend(rows.iter().map(&factors));
        let mut sums = products.iter_mut();
        for (i, a) in tile.iter().enumerate() {
            for (b, sum) in tile[..=i].iter().zip(&mut sums) {
                *sum += dot(a, b);
            }
        }
    })?;
    Ok(products)
}

fn squares_of<L: Lane, E>(
    block: &mut Block<L>,
    read: &mut impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<i128>, E> {
    let shape = block.shape;
    let mut squares = vec![0; shape.updates];
    block.each_tile((0, shape.params), read, |_, _, rows| {
        squares.iter_mut().zip(rows).for_each(|(sum, row)| *sum += L::dot(row, row));
    })?;
    Ok(squares)
}

/// The squared length of each update, in whole steps of the grid.
pub(super) fn squares<E>(
    rows: &mut Rows,
    read: &mut impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<i128>, E> {
    match rows {
        Rows::Narrow(block) => squares_of(block, read),
        Rows::Wide(block) => squares_of(block, read),
    }
}

/// What is left of each update whose squared length is given when it is shortened to a norm in steps of the grid, or
/// to the median of their norms, of an even number the lower one.
pub(super) fn shortened(squares: &[i128], clip_norm: Option<f64>) -> Vec<f64> {
    let clip_norm = clip_norm.unwrap_or_else(|| {
        let mut sorted = squares.to_vec();
        sorted.sort_unstable();
        as_f64(sorted[(sorted.len() - 1) / 2]).sqrt()
    });
    squares
        .iter()
        .map(|&square| {
            let norm = as_f64(square).sqrt();
            if norm > clip_norm { clip_norm / norm } else { 1.0 }
        })
        .collect()
}

/// Shares from 0 to 1 as multiples of `2^-bits`, rounded down.
pub(super) fn cut(shares: &[f64], bits: u32) -> Vec<u32> {
    let one = f64::from(1_u32 << bits);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shares are from 0 to 1, and a fraction is meant to be lost"
    )]
    let cut = |share: &f64| (share * one) as u32;
    shares.iter().map(cut).collect()
}

impl Gram {
    /// One pass over all updates.
    pub(super) fn measure<E>(
        rows: &mut Rows,
        read: &mut impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let (updates, products) = match rows {
            Rows::Narrow(block) => {
                (block.shape.updates, products(block, |row| *row, i16::dot, read)?)
            }
            Rows::Wide(block) if block.shape.encoding.bits() <= F64_BITS => {
                let factors = |row: &Tile<i32>| row.map(f64::from);
                (block.shape.updates, products(block, factors, dot_f64, read)?)
            }
            Rows::Wide(block) => {
                (block.shape.updates, products(block, |row| *row, i32::dot, read)?)
            }
        };
        Ok(Self { updates, products })
    }

    fn product(&self, a: usize, b: usize) -> i128 {
        let (low, high) = (a.min(b), a.max(b));
        self.products[high * (high + 1) / 2 + low]
    }

    /// The squared distance of two updates, exactly.
    fn distance(&self, a: usize, b: usize) -> i128 {
        self.product(a, a) + self.product(b, b) - 2 * self.product(a, b)
    }

    /// The `keep` updates whose squared distances to their `neighbours` nearest others sum up to least: Krum's scores.
    /// Of equal scores the shorter update comes first, then the one whose site's id does.
    pub(super) fn closest(&self, neighbours: usize, keep: usize) -> Vec<usize> {
        let mut scored: Vec<(i128, i128, usize)> = (0..self.updates)
            .map(|i| {
                let others = (0..self.updates).filter(|&j| j != i);
                let mut distances: Vec<i128> = others.map(|j| self.distance(i, j)).collect();
                distances.sort_unstable();
                (distances[..neighbours].iter().sum(), self.product(i, i), i)
            })
            .collect();
        scored.sort_unstable();
        scored[..keep].iter().map(|&(_, _, i)| i).collect()
    }

    /// Weights, which sum up to 1, of the mean that is the geometric median: Weiszfeld's algorithm from the update with the
    /// least sum of distances to all, smoothed by one step of the grid: what is nearer than that is no nearer.
    ///
    /// From the mean of all it would take far bad updates, nearly half of all, more steps than there are to let go of it.
    /// From there it is within bounds from the first step on: `m` has no more of a sum than any good update `z` has, so that
    /// `Σ (|m - g| - |z - g|)` over the good `g` is at most `f |m - z|`, and `|m - z|` at most `2 Σ |z - g| / (n - 2f)`.
    pub(super) fn geometric_median(&self) -> Vec<f64> {
        let n = self.updates;
        let mut distances = vec![0.0; n * n];
        for (i, row) in distances.chunks_exact_mut(n).enumerate() {
            row.iter_mut().enumerate().for_each(|(j, d)| *d = as_f64(self.distance(i, j)));
        }
        let mut weights = medoids(&distances, n);
        for _ in 0..ITERATIONS_MAX {
            // Σ λᵢ Dᵢₖ for each k, and ½ ΣΣ λᵢ λⱼ Dᵢⱼ.
            let to: Vec<f64> = distances.chunks_exact(n).map(|row| inner(row, &weights)).collect();
            let within = inner(&to, &weights) / 2.0;
            let mut next: Vec<f64> =
                to.iter().map(|to| 1.0 / (to - within).max(1.0).sqrt()).collect();
            let total: f64 = next.iter().sum();
            next.iter_mut().for_each(|w| *w /= total);
            let moved = next.iter().zip(&weights).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            weights = next;
            if moved <= SETTLED {
                break;
            }
        }
        weights
    }
}

/// Weights of the update with the least sum of distances to all, of squared distances row by row; of several such, of their
/// mean, whose sum is no greater.
fn medoids(distances: &[f64], n: usize) -> Vec<f64> {
    let sum = |row: &[f64]| -> f64 {
        // From the shortest on, so that no sum depends on who came first.
        let mut row = row.to_vec();
        row.sort_unstable_by(f64::total_cmp);
        row.iter().copied().map(smoothed).sum()
    };
    let sums: Vec<f64> = distances.chunks_exact(n).map(sum).collect();
    let least = sums.iter().copied().fold(f64::INFINITY, f64::min);
    let mut weights: Vec<f64> =
        sums.iter().map(|&sum| if sum <= least { 1.0 } else { 0.0 }).collect();
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= total);
    weights
}

/// The length whose sum the smoothed algorithm never makes longer, of a squared length in steps of the grid.
fn smoothed(square: f64) -> f64 {
    if square > 1.0 { square.sqrt() } else { f64::midpoint(square, 1.0) }
}

/// In one order, so that it is the same everywhere.
fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of updates with one value each.
    fn gram(values: &[i128]) -> Gram {
        let products =
            values.iter().enumerate().flat_map(|(i, a)| values[..=i].iter().map(move |b| a * b));
        Gram { updates: values.len(), products: products.collect() }
    }

    #[test]
    fn krum_scores_by_the_nearest_only_and_breaks_ties_by_length() {
        // With two neighbours each: 10, 11 and 12 score 5, 2 and 5; the far ones do not spoil it.
        let five = gram(&[10, 12, 1_000_000, 11, -5]);
        assert_eq!(five.closest(2, 3), [3, 0, 1]);
        // A pair of nearest neighbours always has the same score with one neighbour.
        assert_eq!(gram(&[9, 3, 2]).closest(1, 1), [2]);
        assert_eq!(gram(&[2, 3, 9]).closest(1, 1), [0]);
    }

    #[test]
    fn the_geometric_median_on_a_line_is_the_median() {
        let weights = gram(&[0, 1_000, 2_000, 70_000, 1 << 60]).geometric_median();
        let sum: f64 = weights.iter().sum();
        assert!((sum - 1.0).abs() < 1e-12 && weights[2] > 0.99, "{weights:?}");
        // What is the same counts the same.
        assert_eq!(gram(&[7; 4]).geometric_median(), [0.25; 4]);
        // Of an even number of updates no point between the middle two has less of a sum: it is the one half way.
        let orders = [[0, 1_000, 2_000, 70_000], [2_000, 0, 70_000, 1_000]];
        for (values, near) in orders.into_iter().zip([[1, 2], [0, 3]]) {
            let weights = gram(&values).geometric_median();
            assert!((weights[near[0]] - weights[near[1]]).abs() < 1e-9, "{weights:?}");
        }
    }

    #[test]
    fn many_far_updates_carry_no_start_away() {
        // 200 of 401 are as far away as 24 bits go; from the mean of all a thousand steps are not enough.
        let far = i128::from(i32::MAX >> 8);
        let near = (0..201).map(|i| i * 37 % 101 - 50);
        let values: Vec<i128> = near.chain(std::iter::repeat_n(far, 200)).collect();
        let weights = gram(&values).geometric_median();
        let found: f64 = values.iter().zip(&weights).map(|(v, w)| as_f64(*v) * w).sum();
        assert!((-51.0..=51.0).contains(&found), "{found}");
    }

    #[test]
    fn only_the_long_are_shortened() {
        assert_eq!(shortened(&[9, 100, 0], Some(5.0)), [1.0, 0.5, 1.0]);
        // Norms 1, 2, 4 and 8; the lower of the middle two is 2.
        assert_eq!(shortened(&[64, 1, 16, 4], None), [0.25, 1.0, 0.5, 1.0]);
        assert_eq!(shortened(&[0, 0, 4], None), [1.0, 1.0, 0.0]);
        assert_eq!(cut(&[1.0, 0.5, 0.999_999], 4), [16, 8, 15]);
    }
}
