//! The mean of what is left of each column when its ends are cut off.
//!
//! A median is such a mean too, with as much cut off as can be. A sorting network orders the values of a column,
//! [`TILE`] columns at a time: which two rows are compared next does not depend on the values, so every step is a minimum
//! and a maximum of two arrays. A network for `n` rows has about `n log²n / 4` steps, fewer where the order among what is
//! kept, and among what is not, does not matter. For very many updates the two values at which columns are cut are
//! searched for, bit by bit, in `bits` passes over the rows: counting is linear in `n`. Either way the sum of what is kept
//! is exact.

use super::rows::{Lane, TILE, Tile};

/// From so many updates on a search is quicker than a network.
const MANY: usize = 1_024;

/// How columns of `n` values are trimmed.
pub(super) struct Trim {
    updates: usize,
    /// Values that are left out at either end.
    ends: usize,
    /// None where columns are searched.
    network: Option<Vec<Step>>,
}

/// One step of a network: the lesser of two values goes to row `low`, the greater to row `high`.
struct Step {
    low: u16,
    high: u16,
    /// Which of the two are looked at again.
    wanted: Wanted,
}

#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    Both,
    Low,
    High,
}

impl Trim {
    /// Leaves out `trim` values at either end, less than half of them.
    pub(super) fn new(updates: usize, trim: usize) -> Self {
        let network = (updates < MANY).then(|| network(updates, trim));
        Self { updates, ends: trim, network }
    }

    /// Values of a column that are kept.
    pub(super) fn kept(&self) -> u32 {
        u32::try_from(self.updates - 2 * self.ends).expect("invariant: there are few updates")
    }

    /// Sums of the kept values of each column. The rows are out of order after it.
    pub(super) fn sums<L: Lane>(&self, bits: u8, rows: &mut [Tile<L>], sums: &mut [L::Sum; TILE]) {
        sums.fill(L::Sum::default());
        if let Some(network) = &self.network {
            sort(network, rows);
            for row in &rows[self.ends..self.updates - self.ends] {
                sums.iter_mut().zip(row).for_each(|(sum, v)| v.add_to(sum));
            }
            return;
        }
        let [low, high] = self.ends(bits, rows);
        for row in &*rows {
            // What lies beyond an end counts as the end, and exactly `trim` values of a column do at either.
            for (((sum, v), low), high) in sums.iter_mut().zip(row).zip(&low).zip(&high) {
                (*v).max(*low).min(*high).add_to(sum);
            }
        }
        let trim = i32::try_from(self.ends).expect("invariant: there are few updates");
        for ((sum, low), high) in sums.iter_mut().zip(&low).zip(&high) {
            low.take_from(trim, sum);
            high.take_from(trim, sum);
        }
    }

    /// The least and the greatest value of each column that are kept: of a median the two whose mean it is. The rows are
    /// out of order after it.
    pub(super) fn middle<L: Lane>(&self, bits: u8, rows: &mut [Tile<L>]) -> [Tile<L>; 2] {
        if let Some(network) = &self.network {
            sort(network, rows);
            return [rows[self.ends], rows[self.updates - 1 - self.ends]];
        }
        self.ends(bits, rows)
    }

    /// The least and the greatest kept value of each column: from the highest bit down, a bit belongs to the value at
    /// a place if no more values than come before that place are less than with it.
    fn ends<L: Lane>(&self, bits: u8, rows: &[Tile<L>]) -> [Tile<L>; 2] {
        let place = |n: usize| {
            (0..14)
                .filter(|bit| n >> bit & 1 == 1)
                .fold(L::default(), |v, bit| v.plus(L::power(bit)))
        };
        let places = [place(self.ends), place(self.updates - 1 - self.ends)];
        let mut ends: [Tile<L>; 2] = [[least(bits); TILE]; 2];
        for bit in (0..usize::from(bits)).rev() {
            let power = L::power(bit);
            let [mut low, mut high] = ends;
            low.iter_mut().chain(&mut high).for_each(|v| *v = v.plus(power));
            let mut less = [[L::default(); TILE]; 2];
            let [less_low, less_high] = &mut less;
            for row in rows {
                for (i, v) in row.iter().enumerate() {
                    less_low[i] = less_low[i].plus(L::from(*v < low[i]));
                    less_high[i] = less_high[i].plus(L::from(*v < high[i]));
                }
            }
            for ((end, with), (less, place)) in
                ends.iter_mut().zip([low, high]).zip(less.iter().zip(places))
            {
                for ((end, with), less) in end.iter_mut().zip(with).zip(less) {
                    *end = if *less <= place { with } else { *end };
                }
            }
        }
        ends
    }
}

fn sort<L: Lane>(network: &[Step], rows: &mut [Tile<L>]) {
    for step in network {
        let (before, from) = rows.split_at_mut(usize::from(step.high));
        let (low, high) = (&mut before[usize::from(step.low)], &mut from[0]);
        match step.wanted {
            Wanted::Both => {
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = ((*a).min(*b), (*a).max(*b));
                }
            }
            Wanted::Low => low.iter_mut().zip(high).for_each(|(a, b)| *a = (*a).min(*b)),
            Wanted::High => high.iter_mut().zip(low).for_each(|(b, a)| *b = (*a).max(*b)),
        }
    }
}

/// `-2^(bits - 1)`: in two's complement all bits from the top one on.
fn least<L: Lane>(bits: u8) -> L {
    let width = 8 * size_of::<L>();
    (usize::from(bits) - 1..width).fold(L::default(), |v, bit| v.plus(L::power(bit)))
}

/// Batcher's merge exchange (Knuth, The Art of Computer Programming, volume 3, 5.2.2, algorithm M), which takes any
/// number of rows, less the steps that cannot change which values are kept. It orders what is kept from what is not,
/// and nothing beyond that.
fn network(updates: usize, trim: usize) -> Vec<Step> {
    let pairs = merge_exchange(updates);
    // From the last step back: whether a row's value, as it is there, ends among the kept ones; `None` while it
    // matters where a value goes.
    let kept = trim..updates - trim;
    let mut fate: Vec<Option<bool>> = (0..updates).map(|row| Some(kept.contains(&row))).collect();
    let mut steps = Vec::new();
    for &(low, high) in pairs.iter().rev() {
        let wanted = match (fate[low], fate[high]) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(false), _) => Wanted::High,
            (_, Some(false)) => Wanted::Low,
            _ => Wanted::Both,
        };
        (fate[low], fate[high]) = (None, None);
        let row = |at: usize| u16::try_from(at).expect("invariant: a network is for few updates");
        steps.push(Step { low: row(low), high: row(high), wanted });
    }
    steps.reverse();
    steps
}

/// Pairs of rows, of which each time the lesser value goes to the first.
fn merge_exchange(rows: usize) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    let half = rows.next_power_of_two() / 2;
    let mut p = half;
    while p > 0 {
        let (mut q, mut r, mut d) = (half, 0, p);
        loop {
            pairs.extend((0..rows.saturating_sub(d)).filter(|i| i & p == r).map(|i| (i, i + d)));
            if q == p {
                break;
            }
            (d, q, r) = (q - p, q / 2, p);
        }
        p /= 2;
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network orders everything if it orders zeros and ones (Knuth, 5.3.4, theorem Z); what is kept of them is
    /// then what is kept of anything.
    #[test]
    fn networks_keep_what_they_should_of_all_zeros_and_ones() {
        for updates in 1..=12_usize {
            for trim in 0..=(updates - 1) / 2 {
                let network = Trim::new(updates, trim);
                let inputs: Vec<usize> = (0..1 << updates).collect();
                for inputs in inputs.chunks(TILE) {
                    let mut rows = vec![[0_i16; TILE]; updates];
                    for (row, values) in rows.iter_mut().enumerate() {
                        for (v, input) in values.iter_mut().zip(inputs) {
                            *v = i16::from(input >> row & 1 == 1);
                        }
                    }
                    let mut sums = [0; TILE];
                    network.sums(8, &mut rows, &mut sums);
                    for (sum, input) in sums.iter().zip(inputs) {
                        let ones = usize::try_from(input.count_ones()).expect("few");
                        let kept = ones.saturating_sub(trim).min(updates - 2 * trim);
                        assert_eq!(*sum, i32::try_from(kept).expect("few"), "{updates} {trim}");
                    }
                }
            }
        }
    }

    #[test]
    fn networks_are_no_longer_than_they_must() {
        let steps = |updates, trim| network(updates, trim).len();
        // As Knuth counts them (5.2.2, exercise 15 and table 1).
        assert_eq!(merge_exchange(16).len(), 63);
        assert_eq!(merge_exchange(10).len(), 31);
        // A mean of all needs no order.
        assert_eq!(steps(32, 0), 0);
        assert_eq!(steps(3, 1), 3);
        assert!(steps(32, 15) < merge_exchange(32).len());
    }

    #[test]
    fn a_search_finds_what_sorting_finds() {
        let mut state = 7_u64;
        let mut next = |bits: u32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            i32::try_from(state.cast_signed() >> (64 - bits)).expect("so many bits")
        };
        for bits in [8_u8, 12, 16, 17, 24, 32] {
            for (updates, trim) in [(64, 31), (65, 32), (100, 3), (64, 0), (301, 100)] {
                let max = i32::MAX >> (32 - bits);
                let rows: Vec<Tile<i32>> = (0..updates)
                    .map(|_| [0; TILE].map(|_: i32| next(u32::from(bits)).max(-max)))
                    .collect();
                let mut expected = [0_i64; TILE];
                for (column, sum) in expected.iter_mut().enumerate() {
                    let mut values: Vec<i32> = rows.iter().map(|row| row[column]).collect();
                    values.sort_unstable();
                    *sum = values[trim..updates - trim].iter().copied().map(i64::from).sum();
                }
                let trimmed = Trim { updates, ends: trim, network: None };
                let mut sums = [0; TILE];
                trimmed.sums(bits, &mut rows.clone(), &mut sums);
                assert_eq!(sums, expected, "{bits} bits, {trim} of {updates}");
                if bits <= 16 {
                    let narrow = |row: &Tile<i32>| row.map(|v| i16::try_from(v).expect("narrow"));
                    let mut rows: Vec<Tile<i16>> = rows.iter().map(narrow).collect();
                    let mut sums = [0; TILE];
                    trimmed.sums(bits, &mut rows, &mut sums);
                    assert_eq!(sums.map(i64::from), expected, "{bits} bits, {trim} of {updates}");
                }
            }
        }
    }
}
