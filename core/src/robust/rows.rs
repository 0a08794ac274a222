//! The same block of every update, as whole numbers side by side.
//!
//! A block lies in tiles: [`TILE`] values of the first update, as many of the second, and so on, then the next tile.
//! What is done to all updates in one tile stays in the nearest cache, and each step of it is one loop over whole
//! arrays, which the compiler turns into vector code.

use super::{ROWS_BYTES, Shape, columns::Trim};
use crate::update::{from_24, values};

/// Values of one update in a tile.
pub(super) const TILE: usize = 256;
/// Most values of one update that are read at once.
pub(super) const SPAN_MAX: usize = 1 << 16;
/// Fewest, however many updates there are.
const SPAN_MIN: usize = 4 * TILE;

/// Values of one update in a tile.
pub(super) type Tile<L> = [L; TILE];

/// A whole number of an update, as it is computed with.
pub(super) trait Lane: Copy + Ord + Default + Into<i64> + From<bool> {
    /// What sums of as many as there may be updates fit.
    type Sum: Copy + Default + Into<i64>;

    /// Whole values of so many bytes; the two have the same number of them.
    fn decode(width: usize, bytes: &[u8], into: &mut [Self]);
    /// `2^bit`, which may wrap.
    fn power(bit: usize) -> Self;
    /// Sum, which may wrap.
    fn plus(self, other: Self) -> Self;
    /// Adds to a sum.
    fn add_to(self, sum: &mut Self::Sum);
    /// Takes so many times this from a sum.
    fn take_from(self, times: i32, sum: &mut Self::Sum);
    /// The sum of products, exactly.
    fn dot(a: &Tile<Self>, b: &Tile<Self>) -> i128;
}

impl Lane for i16 {
    type Sum = i32;

    fn decode(width: usize, bytes: &[u8], into: &mut [Self]) {
        if width == 1 {
            into.iter_mut().zip(bytes).for_each(|(v, b)| *v = Self::from(b.cast_signed()));
        } else {
            into.iter_mut().zip(values::<2>(bytes)).for_each(|(v, b)| *v = Self::from_le_bytes(b));
        }
    }

    fn power(bit: usize) -> Self {
        1 << bit
    }

    #[inline]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }

    #[inline]
    fn add_to(self, sum: &mut i32) {
        *sum = sum.wrapping_add(i32::from(self));
    }

    #[inline]
    fn take_from(self, times: i32, sum: &mut i32) {
        *sum = sum.wrapping_sub(i32::from(self).wrapping_mul(times));
    }

    #[inline]
    fn dot(a: &Tile<Self>, b: &Tile<Self>) -> i128 {
        // Two products fit 32 bits, and making them is one instruction. Of these pairs the whole is summed modulo 2^32,
        // and apart from it the upper halves: what is left of the lower ones is less than 2^23.
        let (mut whole, mut upper) = (0_i32, 0_i32);
        for (a, b) in a.as_chunks::<2>().0.iter().zip(b.as_chunks::<2>().0) {
            let pair =
                (i32::from(a[0]) * i32::from(b[0])).wrapping_add(i32::from(a[1]) * i32::from(b[1]));
            whole = whole.wrapping_add(pair);
            upper = upper.wrapping_add(pair >> 16);
        }
        let lower = whole.wrapping_sub(upper << 16);
        i128::from((i64::from(upper) << 16) + i64::from(lower))
    }
}

impl Lane for i32 {
    type Sum = i64;

    fn decode(width: usize, bytes: &[u8], into: &mut [Self]) {
        if width == 3 {
            into.iter_mut().zip(values::<3>(bytes)).for_each(|(v, b)| *v = from_24(b));
        } else {
            into.iter_mut().zip(values::<4>(bytes)).for_each(|(v, b)| *v = Self::from_le_bytes(b));
        }
    }

    fn power(bit: usize) -> Self {
        1 << bit
    }

    #[inline]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }

    #[inline]
    fn add_to(self, sum: &mut i64) {
        *sum = sum.wrapping_add(i64::from(self));
    }

    #[inline]
    fn take_from(self, times: i32, sum: &mut i64) {
        *sum = sum.wrapping_sub(i64::from(self).wrapping_mul(i64::from(times)));
    }

    #[inline]
    fn dot(a: &Tile<Self>, b: &Tile<Self>) -> i128 {
        let products = a.iter().zip(b).map(|(a, b)| i64::from(*a) * i64::from(*b));
        let (lower, upper) = products.fold((0_i64, 0_i64), |(lower, upper), product| {
            (lower + (product & 0xffff_ffff), upper + (product >> 32))
        });
        (i128::from(upper) << 32) + i128::from(lower)
    }
}

/// The most bits of whole numbers whose products [`dot_f64`] sums exactly.
pub(super) const F64_BITS: u8 = 24;

/// The sum of products of whole numbers, exactly: each product is below 2^46, and each lane sums 32 of them.
#[inline]
pub(super) fn dot_f64(a: &Tile<f64>, b: &Tile<f64>) -> i128 {
    let mut sums = [0.0; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^51")]
    let sums = sums.map(|sum| sum as i64);
    i128::from(sums.iter().sum::<i64>())
}

/// Updates beside the median of each coordinate, in whole steps of the grid, exactly: of twice the median, since the mean
/// of two whole numbers need not be one.
pub(super) struct Against {
    /// The squared length of each update.
    pub(super) squares: Vec<i128>,
    /// The inner product of each update with twice the median.
    pub(super) products: Vec<i128>,
    /// The squared length of twice the median.
    pub(super) centre: i128,
}

/// A block of every update, in the width that their grid asks for.
pub(super) enum Rows {
    /// Up to 16 bits.
    Narrow(Block<i16>),
    /// Up to 32.
    Wide(Block<i32>),
}

/// A block of every update.
pub(super) struct Block<L> {
    pub(super) shape: Shape,
    /// As many as there are updates, then as many again for the next tile.
    tiles: Vec<Tile<L>>,
    /// One update's part of the block, as it was read.
    bytes: Vec<u8>,
    /// Values of each update in the longest block.
    span: usize,
}

impl<L: Lane> Block<L> {
    fn new(shape: &Shape) -> Self {
        let share = ROWS_BYTES / (size_of::<L>() * shape.updates.max(1));
        let span = share.clamp(SPAN_MIN, SPAN_MAX).min(shape.params).next_multiple_of(TILE);
        Self { shape: *shape, tiles: Vec::new(), bytes: Vec::new(), span }
    }

    /// Gives `tile` each tile of the values from number `at` to `end`: where it begins, how many values of it there
    /// are, and one row for each update, whose end is filled with zeros.
    pub(super) fn each_tile<E>(
        &mut self,
        (at, end): (usize, usize),
        read: &mut impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
        mut tile: impl FnMut(usize, usize, &mut [Tile<L>]),
    ) -> Result<(), E> {
        let updates = self.shape.updates;
        let width = self.shape.encoding.bytes_per_value();
        self.tiles.resize(self.span / TILE * updates, [L::default(); TILE]);
        self.bytes.resize(self.span * width, 0);
        let mut from = at;
        while from < end {
            let count = self.span.min(end - from);
            let bytes = &mut self.bytes[..count * width];
            for update in 0..updates {
                read(update, (from * width) as u64, bytes)?;
                let rows = self.tiles[update..].iter_mut().step_by(updates);
                for (row, bytes) in rows.zip(bytes.chunks(TILE * width)) {
                    let (values, rest) = row.split_at_mut(bytes.len() / width);
                    L::decode(width, bytes, values);
                    rest.fill(L::default());
                }
            }
            let tiles = self.tiles.chunks_exact_mut(updates).take(count.div_ceil(TILE));
            for (i, rows) in tiles.enumerate() {
                tile(from + i * TILE, TILE.min(count - i * TILE), rows);
            }
            from += count;
        }
        Ok(())
    }

    fn trimmed<E>(
        &mut self,
        at: usize,
        trim: &Trim,
        step: f64,
        means: &mut [f64],
        read: &mut impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let bits = self.shape.encoding.bits();
        let kept = f64::from(trim.kept());
        let mut sums = [L::Sum::default(); TILE];
        self.each_tile((at, at + means.len()), read, |from, count, rows| {
            trim.sums(bits, rows, &mut sums);
            let means = &mut means[from - at..][..count];
            for (mean, sum) in means.iter_mut().zip(sums) {
                #[expect(clippy::cast_precision_loss, reason = "rounded once, the same everywhere")]
                let sum = sum.into() as f64;
                *mean = sum * step / kept;
            }
        })
    }

    fn against_median<E>(
        &mut self,
        read: &mut impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Against, E> {
        let (updates, bits) = (self.shape.updates, self.shape.encoding.bits());
        let trim = Trim::new(updates, (updates - 1) / 2);
        let (squares, products) = (vec![0; updates], vec![0; updates]);
        let mut found = Against { squares, products, centre: 0 };
        let mut sorted = Vec::with_capacity(updates);
        self.each_tile((0, self.shape.params), read, |_, _, rows| {
            sorted.clear();
            sorted.extend_from_slice(rows);
            // The sum of the two, which need not fit a lane, is multiplied in two parts.
            let [low, high] = trim.middle(bits, &mut sorted);
            found.centre += L::dot(&low, &low) + 2 * L::dot(&low, &high) + L::dot(&high, &high);
            let sums = found.squares.iter_mut().zip(&mut found.products);
            for (row, (square, product)) in rows.iter().zip(sums) {
                *square += L::dot(row, row);
                let of_low = L::dot(row, &low);
                *product += of_low + if updates % 2 == 1 { of_low } else { L::dot(row, &high) };
            }
        })?;
        Ok(found)
    }
}

impl Rows {
    pub(super) fn new(shape: &Shape) -> Self {
        if shape.encoding.bits() <= 16 {
            Self::Narrow(Block::new(shape))
        } else {
            Self::Wide(Block::new(shape))
        }
    }

    /// Means of what `trim` keeps, from value number `at` on.
    pub(super) fn trimmed<E>(
        &mut self,
        at: usize,
        trim: &Trim,
        step: f64,
        means: &mut [f64],
        read: &mut impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Self::Narrow(block) => block.trimmed(at, trim, step, means, read),
            Self::Wide(block) => block.trimmed(at, trim, step, means, read),
        }
    }

    /// Each update beside the median of each coordinate.
    pub(super) fn against_median<E>(
        &mut self,
        read: &mut impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Against, E> {
        match self {
            Self::Narrow(block) => block.against_median(read),
            Self::Wide(block) => block.against_median(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_exact_at_the_ends_of_every_grid() {
        for bits in 8..=16 {
            let max = i16::MAX >> (16 - bits);
            let (high, low) = ([max; TILE], [-max; TILE]);
            let expected = 256 * i128::from(max).pow(2);
            assert_eq!(i16::dot(&high, &high), expected, "{bits}");
            assert_eq!(i16::dot(&low, &low), expected, "{bits}");
            assert_eq!(i16::dot(&high, &low), -expected, "{bits}");
        }
        for bits in 17..=32 {
            let max = i32::MAX >> (32 - bits);
            let (high, low) = ([max; TILE], [-max; TILE]);
            let expected = 256 * i128::from(max).pow(2);
            assert_eq!(i32::dot(&high, &high), expected, "{bits}");
            assert_eq!(i32::dot(&high, &low), -expected, "{bits}");
            if bits <= F64_BITS {
                let (high, low) = (high.map(f64::from), low.map(f64::from));
                assert_eq!(dot_f64(&high, &high), expected, "{bits}");
                assert_eq!(dot_f64(&high, &low), -expected, "{bits}");
            }
        }
    }
}
