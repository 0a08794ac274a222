//! Level 3 of the sampler: comparisons with enclosures in big integers, to as many bits as it takes.
//!
//! A number in `0..` is enclosed by two whole numbers in units of `2^-precision`, the lower rounded down and
//! the upper rounded up at each operation.

use dashu_int::{UBig, ops::BitTest as _};

/// Bits by which a comparison goes on.
const STEP: u32 = 64;

/// A real number between two fractions with one power of two as denominator.
#[derive(Clone, Debug)]
struct Enclosure {
    low: UBig,
    high: UBig,
}

impl Enclosure {
    fn one(precision: usize) -> Self {
        let one = UBig::ONE << precision;
        Self { low: one.clone(), high: one }
    }

    fn times(&self, other: &Self, precision: usize) -> Self {
        Self {
            low: (&self.low * &other.low) >> precision,
            high: ((&self.high * &other.high) >> precision) + UBig::ONE,
        }
    }

    fn plus(&self, other: &Self) -> Self {
        Self { low: &self.low + &other.low, high: &self.high + &other.high }
    }

    fn doubled(&self) -> Self {
        Self { low: &self.low << 1, high: &self.high << 1 }
    }
}

/// Encloses `exp(-num / den)`.
///
/// The argument is halved until it is at most 1/2; there the alternating Taylor sums enclose the value, the
/// terms falling; then squared as often.
fn exp_neg(num: &UBig, den: &UBig, precision: usize) -> Enclosure {
    let halvings = (num / den).bit_len() + 1;
    // Squaring doubles the relative error: as many bits more.
    let p = precision + 2 * halvings + 32;
    let den = den << halvings;
    let (low, high) = ((num << p) / &den, (num << p) / &den + UBig::ONE);
    // Terms of y^k / k!, for the lower and the upper end of y.
    let mut term = Enclosure::one(p);
    let mut sum = Enclosure::one(p);
    for k in 1_u32.. {
        term = Enclosure {
            low: ((&term.low * &low) >> p) / k,
            high: ((&term.high * &high) >> p) / k + UBig::ONE,
        };
        if k % 2 == 1 {
            sum = Enclosure { low: sum.low - &term.high, high: sum.high - &term.low };
        } else {
            sum = sum.plus(&term);
        }
        if term.high <= UBig::from(4_u8) {
            break;
        }
    }
    // The rest is smaller than the last term.
    sum = Enclosure { low: sum.low - &term.high, high: sum.high + &term.high };
    for _ in 0..halvings {
        sum = sum.times(&sum, p);
    }
    let cut = p - precision;
    Enclosure { low: sum.low >> cut, high: (sum.high >> cut) + UBig::ONE }
}

/// `w² / 2 sigma²` as a fraction, for `sigma = whole / 2^shift` and `w = 2^bits`.
fn curvature_parts(whole: u64, shift: u32, bits: u32) -> (UBig, UBig) {
    let whole = UBig::from(whole);
    (UBig::ONE << (2 * (bits + shift)) as usize, (&whole * &whole) << 1)
}

/// `w² / 2 sigma²` in units of 2^-77, rounded up; 0 where blocks have one value and no use for it.
pub(super) fn curvature(whole: u64, shift: u32, bits: u32) -> u64 {
    if bits == 0 {
        return 0;
    }
    let (num, den) = curvature_parts(whole, shift, bits);
    let units = (num << 77) / den + UBig::ONE;
    u64::try_from(units).unwrap_or(u64::MAX)
}

/// Enclosures of the blocks' weights, until what is left does not matter at this precision.
pub(super) struct Enclosures {
    precision: usize,
    /// Sums of the weights of the blocks up to and with each.
    sums: Vec<Enclosure>,
    /// The sum of all weights.
    total: Enclosure,
}

impl Enclosures {
    /// Blocks of `2^bits` values at the scale `whole / 2^shift`.
    pub(super) fn new(whole: u64, shift: u32, bits: u32, precision: usize) -> Self {
        let (num, den) = curvature_parts(whole, shift, bits);
        // e_(b+1) = e_b E^(2b+1), for E = exp(-w² / 2 sigma²).
        let first = exp_neg(&num, &den, precision);
        let squared = first.times(&first, precision);
        let folded = bits == 0;
        let mut weight = Enclosure::one(precision);
        let mut ratio = first;
        let mut sum = weight.clone();
        let mut sums = vec![sum.clone()];
        loop {
            weight = weight.times(&ratio, precision);
            ratio = ratio.times(&squared, precision);
            let counted = if folded { weight.doubled() } else { weight.clone() };
            // Each later weight is at most its predecessor times the ratio: a geometric series.
            let one = UBig::ONE << precision;
            if ratio.high < one && weight.high <= UBig::from(4_u8) {
                let rest = ((&counted.high << precision) / (one - &ratio.high)) + UBig::ONE;
                let total = Enclosure { low: sum.low.clone(), high: &sum.high + rest };
                return Self { precision, sums, total };
            }
            sum = sum.plus(&counted);
            sums.push(sum.clone());
        }
    }

    /// Where each block ends, as a part of the whole in units of 2^-64 rounded down; from the first end
    /// that is not certain in all 64 bits on, 2^64 - 1.
    pub(super) fn ends_64(&self) -> Box<[u64]> {
        let mut ends = Vec::new();
        for sum in &self.sums {
            let low = u64::try_from((&sum.low << 64) / &self.total.high).unwrap_or(u64::MAX);
            let high = u64::try_from((&sum.high << 64) / &self.total.low).unwrap_or(u64::MAX);
            if low != high || low == u64::MAX {
                break;
            }
            ends.push(low);
        }
        ends.push(u64::MAX);
        ends.into()
    }

    /// The block of every real in `[drawn, drawn + 1) / 2^known`, if all have the same.
    fn block_of(&self, drawn: &UBig, known: usize) -> Option<u64> {
        let next = drawn + UBig::ONE;
        // Ends at or below the real, and ends above it.
        let below = |sum: &Enclosure| (&sum.high << known) <= drawn * &self.total.low;
        let above = |sum: &Enclosure| (&sum.low << known) >= &next * &self.total.high;
        let block = self.sums.partition_point(below);
        let found = self.sums.get(block).is_some_and(above);
        found.then_some(block as u64)
    }
}

/// The block in which a uniform real falls whose first 64 bits are given; more bits come from `next`.
pub(super) fn block(
    whole: u64,
    shift: u32,
    bits: u32,
    leading: u64,
    mut next: impl FnMut() -> u64,
) -> u64 {
    let mut drawn = UBig::from(leading);
    let mut known = STEP as usize;
    loop {
        drawn = (drawn << STEP as usize) + UBig::from(next());
        known += STEP as usize;
        let enclosures = Enclosures::new(whole, shift, bits, known + 96);
        debug_assert!(enclosures.precision > known);
        if let Some(block) = enclosures.block_of(&drawn, known) {
            return block;
        }
    }
}

/// Whether a uniform real, `known` bits of which stand at the top of `drawn`, lies below
/// `exp(-j (2 b w + j) / 2 sigma²)`.
pub(super) fn accepts(
    whole: u64,
    shift: u32,
    bits: u32,
    block: u64,
    offset: u64,
    (drawn, known): (u64, u32),
    mut next: impl FnMut() -> u64,
) -> bool {
    let (_, den) = curvature_parts(whole, shift, bits);
    let far = (UBig::from(block) << (bits + 1) as usize) + UBig::from(offset);
    let num = (UBig::from(offset) * far) << (2 * shift) as usize;
    let mut drawn = UBig::from(drawn >> (64 - known));
    let mut known = known as usize;
    loop {
        drawn = (drawn << STEP as usize) + UBig::from(next());
        known += STEP as usize;
        let bound = exp_neg(&num, &den, known + 32);
        if ((&drawn + UBig::ONE) << 32) <= bound.low {
            return true;
        }
        if (&drawn << 32) >= bound.high {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(e: &Enclosure, precision: usize, expected: f64) {
        let units = |v: &UBig| {
            let digits = u64::try_from(v >> (precision - 60)).expect("below 16");
            #[expect(clippy::cast_precision_loss, reason = "compared at 1e-12")]
            let value = digits as f64 / 2.0_f64.powi(60);
            value
        };
        assert!(e.low <= e.high, "{e:?}");
        let (low, high) = (units(&e.low), units(&e.high));
        assert!((low - expected).abs() < 1e-14 && (high - expected).abs() < 1e-14, "{low} {high}");
    }

    #[test]
    fn exponentials_are_enclosed_and_narrow() {
        for (num, den) in [(0_u32, 1_u32), (1, 3), (1, 2), (5, 1), (1, 1_000_000), (40, 1)] {
            let e = exp_neg(&num.into(), &den.into(), 192);
            close(&e, 192, (-f64::from(num) / f64::from(den)).exp());
            assert!(&e.high - &e.low <= UBig::from(4_u8), "{e:?}");
            // Twice the precision encloses the same number more narrowly.
            let finer = exp_neg(&num.into(), &den.into(), 384);
            assert!(e.low <= (&finer.low >> 192) && (&finer.high >> 192) <= e.high);
        }
    }

    #[test]
    fn ends_are_certain_rise_and_nearly_fill_the_unit() {
        for (whole, shift, bits) in [(1 << 23, 18, 0), (1 << 23, 20, 0), (1 << 40, 0, 34)] {
            let ends = Enclosures::new(whole, shift, bits, 192).ends_64();
            assert!(ends.is_sorted(), "{whole} >> {shift}");
            let last_but_one = ends[ends.len() - 2];
            assert!(last_but_one > u64::MAX - 64, "{last_but_one}");
        }
    }

    #[test]
    fn a_block_beyond_the_table_is_found() {
        // All 128 leading bits set: far out in the tail, where only exact sums reach.
        let scale = (1 << 23, 21, 0);
        let table = Enclosures::new(scale.0, scale.1, scale.2, 192).ends_64().len() as u64;
        let found = block(scale.0, scale.1, scale.2, u64::MAX, || u64::MAX - 1);
        // A tail of 2^-128 is at 13.1 sigma, one of 2^-64 at 9.1.
        assert!(found > table && (50..60).contains(&found), "{found} beyond {table}");
    }
}
