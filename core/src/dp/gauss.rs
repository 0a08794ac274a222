//! An exact, fast sampler of the discrete Gaussian: whole numbers from the first bit to the last.
//!
//! # What is drawn
//! The distribution on the integers with weights `exp(-x² / 2 sigma²)` (Canonne, Kamath, Steinke 2020,
//! definition 1), where `sigma` is a dyadic fraction. There is no distance, statistical or floating-point,
//! between the noise that is drawn and the noise that the accountant charges.
//!
//! # How, and why it is exact
//! Write `|x| = b w + j` with `w = 2^m` and `0 <= j < w`. Propose block `b` with probability proportional
//! to `e_b = exp(-(b w)² / 2 sigma²)`, `j` uniformly and a sign; accept with probability `exp(-g)`, where
//! `g = j (2 b w + j) / 2 sigma²`; refuse minus zero. The product of the two exponentials is
//! `exp(-x² / 2 sigma²)`, so what is accepted has the weights above. For `m = 0` there is nothing to
//! accept, and the sign is folded into the weights (`1, 2 e_1, 2 e_2, …`).
//!
//! Both choices compare a uniform real `U` with a real number `c` that has no finite expansion: the
//! partial sums of the `e_b`, and `exp(-g)`. `U` is drawn lazily, most significant bits first. Each
//! comparison has three levels, and a level decides only if it cannot be wrong:
//!
//! 1. *Few bits.* The block: 32 bits of `U` against the first 32 bits of `c`, decided unless they are
//!    equal. Acceptance: `U` lies in `[R, R + 2^-k)`, and `R + 2^-k <= 1 - g` suffices, as
//!    `1 - g <= exp(-g)`; `g` is rounded up in fixed point (`Sampler::exponent` gives the error).
//! 2. *64 bits.* The block: against `floor(2^64 c)`, decided unless equal. Acceptance: against a Taylor
//!    sum in 64-bit fixed point whose error is below `TAYLOR_ERROR` units (`exp_neg_64`), decided
//!    unless `U` lies within that margin.
//! 3. *As many bits as it takes*, against enclosures in big integers whose precision grows with the bits
//!    (`exact`). A draw comes here with a chance of about 2^-53.
//!
//! The bounds of level 2's table are the floors of enclosures so narrow that both ends have the same
//! floor, or the comparison is left to level 3. No step uses floating point.
//!
//! # Time
//! A draw takes the same path whatever its value but for what levels 2 and 3 add, which happens with
//! nearly the same small chance for all values; a test counts it. Draw in bulk where nobody can time
//! single values.

mod exact;

use super::{Noise, NoiseError};
use chacha20::{
    ChaCha20,
    cipher::{KeyIvInit as _, StreamCipher as _},
};
use exact::Enclosures;
use std::num::NonZero;
use zeroize::{Zeroize as _, Zeroizing};

/// The smallest scale; below it nearly every draw is zero, and a mechanism has no use for it.
const SIGMA_MIN: f64 = 0.0625;
/// The largest scale, so that every product below fits its 128 bits.
const SIGMA_MAX: f64 = 281_474_976_710_656.0;
/// From this scale on, whole numbers are fine enough; below, the scale keeps 24 bits.
const WHOLE_FROM: f64 = 16_777_216.0;
/// A block is at most this part of the scale, which keeps `g` below 0.31 within the table.
const BLOCKS_PER_SIGMA: u64 = 64;
/// Offsets of up to so many bits share the word that chose the block.
const SHARED_BITS: u32 = 15;
/// Leading bits that find the first candidate block.
const GUIDE_BITS: u32 = 12;
/// Values that share one key stream.
const CHUNK: usize = 1 << 16;
/// Random bytes that are made at once.
const BUFFER: usize = 8 * 1_024;
/// How far [`exp_neg_64`] may be from the truth, in units of 2^-64.
const TAYLOR_ERROR: u64 = 64;
/// Terms of the Taylor sum: `0.31^17 / 17!` is below 2^-76.
const TAYLOR_TERMS: u64 = 16;

/// The discrete Gaussian as a [`Noise`], from a key that nobody else has.
///
/// Every call and every block of 65,536 values has a `ChaCha20` stream of its own (RFC 8439), so the noise
/// does not depend on the number of threads.
pub struct ExactDiscreteGaussian {
    key: Zeroizing<[u8; 32]>,
    threads: NonZero<usize>,
    calls: u32,
    /// The sampler of the last scale: making one costs as much as some ten thousand draws.
    sampler: Option<Sampler>,
}

impl ExactDiscreteGaussian {
    /// A sampler keyed with `key`. The noise is as unpredictable as the key: take it from the operating
    /// system, for one release, and never use it twice.
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        Self { key: Zeroizing::new(key), threads: NonZero::<usize>::MIN, calls: 0, sampler: None }
    }

    /// Draws on so many threads.
    #[must_use]
    pub fn on_threads(self, threads: NonZero<usize>) -> Self {
        Self { threads, ..self }
    }
}

impl Noise for ExactDiscreteGaussian {
    /// Scales lie between 2^-4 and 2^48. The scale that is drawn at is `sigma` rounded up by at most
    /// 2^-23 of itself: more noise, never less.
    fn add(&mut self, values: &mut [i64], sigma: f64) -> Result<(), NoiseError> {
        let scale = Scale::at_least(sigma)?;
        let sampler = match self.sampler.take() {
            Some(sampler) if sampler.scale == scale => sampler,
            _ => Sampler::new(scale),
        };
        let call = self.calls;
        self.calls = call.checked_add(1).ok_or_else(|| {
            NoiseError("a key has served 2^32 releases: take a new one".to_owned())
        })?;
        let (key, shared) = (&*self.key, &sampler);
        let per_thread = values.len().div_ceil(CHUNK).div_ceil(self.threads.get()).max(1);
        let mut chunk = 0_u64;
        std::thread::scope(|scope| {
            let mut parts = values.chunks_mut(per_thread * CHUNK);
            // The last part is this thread's own.
            let own = parts.next_back();
            for part in parts {
                let first = chunk;
                scope.spawn(move || shared.add_chunks(part, key, call, first));
                chunk += per_thread as u64;
            }
            if let Some(part) = own {
                shared.add_chunks(part, key, call, chunk);
            }
        });
        self.sampler = Some(sampler);
        Ok(())
    }
}

/// A scale as whole numbers: `sigma = whole / 2^shift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    whole: u64,
    shift: u32,
}

impl Scale {
    /// The smallest representable scale that is at least `sigma`.
    fn at_least(sigma: f64) -> Result<Self, NoiseError> {
        if !(SIGMA_MIN..=SIGMA_MAX).contains(&sigma) {
            return Err(NoiseError(format!(
                "a scale of {sigma} steps of the grid lies outside {SIGMA_MIN} to {SIGMA_MAX}: choose `sealing.range` and `sealing.bits` so that the grid is finer"
            )));
        }
        let mut shift = 0;
        let mut scaled = sigma;
        // Doubling is exact, and sigma is at least 2^-4.
        while scaled < WHOLE_FROM / 2.0 {
            scaled *= 2.0;
            shift += 1;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive whole number of at most 2^48"
        )]
        let whole = scaled.ceil() as u64;
        Ok(Self { whole, shift })
    }

    /// Bits of an offset: the widest block that is at most `sigma / 64`.
    const fn block_bits(self) -> u32 {
        let widest = (self.whole >> self.shift) / BLOCKS_PER_SIGMA;
        if widest < 2 { 0 } else { widest.ilog2() }
    }
}

/// Random words from one key stream; what was used is overwritten, and nothing is left behind.
struct Words {
    cipher: ChaCha20,
    buffer: [u8; BUFFER],
    at: usize,
    /// Times that level 2, and level 3, were needed.
    #[cfg(test)]
    deep: [u64; 2],
}

impl Words {
    fn new(key: &[u8; 32], call: u32, chunk: u64) -> Self {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&call.to_le_bytes());
        nonce[4..].copy_from_slice(&chunk.to_le_bytes());
        Self {
            cipher: ChaCha20::new(key.into(), &nonce.into()),
            buffer: [0; BUFFER],
            at: BUFFER,
            #[cfg(test)]
            deep: [0; 2],
        }
    }

    #[inline]
    fn next(&mut self) -> u64 {
        if self.at == BUFFER {
            self.refill();
        }
        let (words, _) = self.buffer.as_chunks_mut::<8>();
        let word = u64::from_le_bytes(words[self.at / 8]);
        self.at += 8;
        word
    }

    #[cold]
    #[inline(never)]
    fn refill(&mut self) {
        self.buffer.fill(0);
        self.cipher.apply_keystream(&mut self.buffer);
        self.at = 0;
    }

    /// Counts, in tests, how often a comparison needed a level beyond the first.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "counted in tests only"))]
    fn went_to(&mut self, level: usize) {
        debug_assert!((2..=3).contains(&level));
        #[cfg(test)]
        {
            self.deep[level - 2] += 1;
        }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

/// Everything that draws at one scale share.
struct Sampler {
    scale: Scale,
    /// Bits of an offset, `m`.
    bits: u32,
    /// For each value of a word's leading bits, the first block that it can mean.
    guide: Box<[u16]>,
    /// For each block, where the next one begins: the leading 32 bits, and all 64.
    ends: Box<[u32]>,
    ends_64: Box<[u64]>,
    /// `w² / 2 sigma²` in units of 2^-77, rounded up.
    curvature: u64,
}

impl Sampler {
    fn new(scale: Scale) -> Self {
        let bits = scale.block_bits();
        let enclosures = Enclosures::new(scale.whole, scale.shift, bits, 192);
        // The last bound is 2^64 - 1: whatever reaches it is decided by level 3.
        let ends_64 = enclosures.ends_64();
        let ends: Box<[u32]> = ends_64.iter().map(|end| high(*end)).collect();
        let mut block = 0;
        let guide = (0..1_u32 << GUIDE_BITS)
            .map(|cell| {
                let first = cell << (32 - GUIDE_BITS);
                while ends[usize::from(block)] < first {
                    block += 1;
                }
                block
            })
            .collect();
        let curvature = exact::curvature(scale.whole, scale.shift, bits);
        Self { scale, bits, guide, ends, ends_64, curvature }
    }

    /// Adds a draw to each value; `first` is the number of the first chunk.
    fn add_chunks(&self, values: &mut [i64], key: &[u8; 32], call: u32, first: u64) {
        for (chunk, part) in (first..).zip(values.chunks_mut(CHUNK)) {
            let mut words = Words::new(key, call, chunk);
            if self.bits == 0 {
                part.iter_mut().for_each(|v| *v = v.saturating_add(self.folded::<0>(&mut words)));
            } else if self.bits <= SHARED_BITS {
                part.iter_mut()
                    .for_each(|v| *v = v.saturating_add(self.draw::<0, true>(&mut words)));
            } else {
                part.iter_mut()
                    .for_each(|v| *v = v.saturating_add(self.draw::<0, false>(&mut words)));
            }
        }
    }

    /// A draw where every value is a block of its own. `SKIP` levels are skipped, for tests.
    #[inline]
    fn folded<const SKIP: u8>(&self, words: &mut Words) -> i64 {
        let word = words.next();
        let block = self.block::<SKIP>(high(word), words).cast_signed();
        if word & 1 == 1 { -block } else { block }
    }

    /// A draw from blocks of `w > 1` values; `SHARED` if the offset's bits come from the block's word.
    #[inline]
    fn draw<const SKIP: u8, const SHARED: bool>(&self, words: &mut Words) -> i64 {
        loop {
            let word = words.next();
            let block = self.block::<SKIP>(high(word), words);
            // From below: the sign, the offset, and what is left decides acceptance.
            let negative = word & 1 == 1;
            let (rest, left) = if SHARED { (word << 32, 31) } else { (words.next(), 64) };
            // The offset's bits stand at the top, under them the word's own sign where it is shared.
            let offset = rest >> (64 - self.bits);
            let known = left - self.bits;
            let ticket = Ticket { bits: rest << self.bits, known };
            if self.accepts::<SKIP>(block, offset, ticket, words) {
                let size = ((block << self.bits) + offset).cast_signed();
                if size != 0 || !negative {
                    return if negative { -size } else { size };
                }
            }
        }
    }

    /// The block in which a uniform real with these leading bits falls.
    #[inline]
    fn block<const SKIP: u8>(&self, leading: u32, words: &mut Words) -> u64 {
        let mut block = usize::from(self.guide[(leading >> (32 - GUIDE_BITS)) as usize]);
        // Most cells hold at most one bound, and are passed in the same time whether they do.
        block += usize::from(self.ends[block] < leading);
        while self.ends[block] < leading {
            block += 1;
        }
        if self.ends[block] == leading || SKIP > 0 {
            return self.block_64::<SKIP>(leading, words);
        }
        block as u64
    }

    /// Level 2 of [`block`](Self::block).
    #[cold]
    #[inline(never)]
    fn block_64<const SKIP: u8>(&self, leading: u32, words: &mut Words) -> u64 {
        words.went_to(2);
        let leading = u64::from(leading) << 32 | words.next() >> 32;
        let block = self.ends_64.partition_point(|end| *end < leading);
        // A bound is a floor: beginning as the bound does decides nothing.
        let undecided = self.ends_64.get(block).is_none_or(|end| *end == leading);
        if undecided || SKIP > 1 {
            words.went_to(3);
            let Scale { whole, shift } = self.scale;
            return exact::block(whole, shift, self.bits, leading, || words.next());
        }
        block as u64
    }

    /// `g = j (2 b w + j) / 2 sigma²` in units of 2^-64, off by at most 2 of them.
    ///
    /// With `v = j (2 b w + j) / w²`, below 2^12 in the table: `v` in units of 2^-52 is cut off by less
    /// than one, the curvature `a <= 2^-13` in units of 2^-77 is rounded up by less than one, and
    /// `g = a v` in units of 2^-129 is cut off to 2^-64: the errors are below 2^-65, 2^-65 and 2^-64.
    #[inline]
    fn exponent(&self, block: u64, offset: u64) -> u64 {
        let product = u128::from(offset) * u128::from((block << (self.bits + 1)) + offset);
        let v = if 2 * self.bits <= 52 {
            product << (52 - 2 * self.bits)
        } else {
            product >> (2 * self.bits - 52)
        };
        #[expect(clippy::cast_possible_truncation, reason = "v is below 2^12, g below 1")]
        let g = ((u128::from(v as u64) * u128::from(self.curvature)) >> 65) as u64;
        g
    }

    /// True with chance `exp(-g)`.
    #[inline]
    fn accepts<const SKIP: u8>(
        &self,
        block: u64,
        offset: u64,
        ticket: Ticket,
        words: &mut Words,
    ) -> bool {
        if block >= self.ends.len() as u64 {
            // Beyond the table, where the bounds of the fixed point do not hold.
            return self.accepts_exactly(block, offset, ticket.bits, ticket.known, words);
        }
        let g = self.exponent(block, offset);
        // R + 2^-k <= 1 - g, and a margin of 2 for the error of g.
        if SKIP == 0 && ticket.last() <= !(g + 2) {
            return true;
        }
        self.accepts_64::<SKIP>(block, offset, g, ticket, words)
    }

    /// Level 2 of [`accepts`](Self::accepts).
    #[cold]
    #[inline(never)]
    fn accepts_64<const SKIP: u8>(
        &self,
        block: u64,
        offset: u64,
        g: u64,
        ticket: Ticket,
        words: &mut Words,
    ) -> bool {
        words.went_to(2);
        let drawn = ticket.bits & !(u64::MAX >> ticket.known) | words.next() >> ticket.known;
        let bound = exp_neg_64(g);
        if SKIP < 2 && drawn < bound.saturating_sub(TAYLOR_ERROR) {
            return true;
        }
        if SKIP < 2 && drawn > bound.saturating_add(TAYLOR_ERROR) {
            return false;
        }
        self.accepts_exactly(block, offset, drawn, 64, words)
    }

    /// Level 3 of [`accepts`](Self::accepts).
    fn accepts_exactly(
        &self,
        block: u64,
        offset: u64,
        drawn: u64,
        known: u32,
        words: &mut Words,
    ) -> bool {
        words.went_to(3);
        let Scale { whole, shift } = self.scale;
        exact::accepts(whole, shift, self.bits, block, offset, (drawn, known), || words.next())
    }
}

/// The leading bits of a uniform real: `known` of them, at the top of `bits`.
#[derive(Clone, Copy)]
struct Ticket {
    bits: u64,
    known: u32,
}

impl Ticket {
    /// The last 64-bit number that begins so.
    #[inline]
    const fn last(self) -> u64 {
        self.bits | u64::MAX >> self.known
    }
}

/// The leading half of a word.
#[inline]
const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// `exp(-y)` for `y <= 0.31`, both in units of 2^-64, by Horner's rule on the Taylor sum.
///
/// Each of the steps `p = 1 - y p / k` loses at most three units (two floors, and a one that is a unit
/// short), which the next steps multiply by at most 0.31: five in all. What the sum leaves out is below
/// one unit, and an error of `y` by 4 moves the result by 4. [`TAYLOR_ERROR`] is far above the ten.
#[inline]
fn exp_neg_64(y: u64) -> u64 {
    (1..=TAYLOR_TERMS)
        .rev()
        .fold(u64::MAX, |p, k| u64::MAX - ((u128::from(y) * u128::from(p)) >> 64) as u64 / k)
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "statistics of small numbers")]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn draws(seed: u8, sigma: f64, n: usize) -> Vec<i64> {
        let mut values = vec![0; n];
        ExactDiscreteGaussian::new([seed; 32]).add(&mut values, sigma).expect("noise");
        values
    }

    /// Draws with the first levels skipped: every comparison goes deeper than it needs to.
    fn deep_draws<const SKIP: u8>(sigma: f64, n: usize) -> Vec<i64> {
        let sampler = Sampler::new(Scale::at_least(sigma).expect("in range"));
        let mut words = Words::new(&[SKIP; 32], 0, 0);
        let draw = |_| match sampler.bits {
            0 => sampler.folded::<SKIP>(&mut words),
            1..=SHARED_BITS => sampler.draw::<SKIP, true>(&mut words),
            _ => sampler.draw::<SKIP, false>(&mut words),
        };
        (0..n).map(draw).collect()
    }

    /// Chi-square of `draws` against the exact probabilities, in bins of `width`, as a standard normal
    /// deviate (Wilson, Hilferty 1931).
    fn deviate(draws: &[i64], sigma: f64, width: i64) -> f64 {
        let mut found = BTreeMap::<i64, f64>::new();
        for d in draws {
            *found.entry(d.div_euclid(width)).or_default() += 1.0;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a small range")]
        let reach = (12.0 * sigma).ceil() as i64 + width;
        let density = |x: i64| (-(x as f64).powi(2) / (2.0 * sigma * sigma)).exp();
        let mut expected = BTreeMap::<i64, f64>::new();
        for x in -reach..=reach {
            *expected.entry(x.div_euclid(width)).or_default() += density(x);
        }
        let total: f64 = expected.values().sum();
        let (mut chi, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
        for (bin, weight) in &expected {
            let e = weight / total * draws.len() as f64;
            let o = found.get(bin).copied().unwrap_or(0.0);
            if e < 10.0 {
                rare = (rare.0 + o, rare.1 + e);
            } else {
                chi += (o - e).powi(2) / e;
                cells += 1.0;
            }
        }
        if rare.1 > 1.0 {
            chi += (rare.0 - rare.1).powi(2) / rare.1;
            cells += 1.0;
        }
        let df: f64 = cells - 1.0;
        ((chi / df).cbrt() - (1.0 - 2.0 / (9.0 * df))) / (2.0 / (9.0 * df)).sqrt()
    }

    #[test]
    fn draws_follow_the_exact_probabilities() {
        // Scales of at most 24 bits are drawn at exactly, so the test is against the scale asked for.
        for (seed, sigma, width) in [
            (1, 0.375, 1),
            (2, 0.5, 1),
            (3, 1.0, 1),
            (4, 4.25, 1),
            (5, 31.875, 1),
            (6, 127.5, 5),
            (7, 128.0, 5),
            (8, 300.25, 8),
            (9, 1000.5, 40),
            (10, 65_536.0, 3_001),
        ] {
            let z = deviate(&draws(seed, sigma, 400_000), sigma, width);
            assert!(z.abs() < 4.0, "sigma {sigma}: {z} standard deviations");
        }
    }

    #[test]
    fn the_test_tells_a_scale_that_is_one_percent_off() {
        assert!(deviate(&draws(7, 4.3125, 200_000), 4.25, 1) > 4.0);
    }

    #[test]
    fn every_level_draws_the_same_distribution() {
        for (sigma, width) in [(0.5, 1), (4.25, 1), (130.0, 11), (1000.5, 80), (65_536.0, 6_001)] {
            let z = deviate(&deep_draws::<1>(sigma, 200_000), sigma, width);
            assert!(z.abs() < 4.0, "64 bits, sigma {sigma}: {z}");
            let z = deviate(&deep_draws::<2>(sigma, 600), sigma, width.max(2));
            assert!(z.abs() < 4.0, "big integers, sigma {sigma}: {z}");
        }
        let whole_words = deep_draws::<1>(2.0_f64.powi(30), 50_000);
        let z = deviate(&whole_words.iter().map(|v| v >> 20).collect::<Vec<_>>(), 1024.0, 100);
        assert!(z.abs() < 4.0, "{z}");
    }

    #[test]
    fn levels_one_and_two_decide_as_big_integers_would() {
        // The same words, the decision at each level: they must agree wherever a level decides.
        let sampler = Sampler::new(Scale::at_least(70_000.0).expect("in range"));
        let mut words = Words::new(&[1; 32], 0, 0);
        let Scale { whole, shift } = sampler.scale;
        let mut near = 0;
        for n in 0..4_000_u64 {
            let block = n % sampler.ends.len() as u64;
            let offset = words.next() >> (64 - sampler.bits);
            let g = sampler.exponent(block, offset);
            let bound = exp_neg_64(g);
            if g == 0 {
                continue;
            }
            // As close to the bound as a level may decide, on either side.
            for drawn in [bound - TAYLOR_ERROR - 1, bound + TAYLOR_ERROR + 1, !(g + 2)] {
                let fast = drawn < bound;
                let slow =
                    exact::accepts(whole, shift, sampler.bits, block, offset, (drawn, 64), || 7);
                assert_eq!(fast, slow, "block {block}, offset {offset}");
                near += u64::from(drawn.abs_diff(bound) < 1_000);
            }
        }
        assert!(near > 7_000, "{near}");
        for (block, end) in sampler.ends_64.iter().enumerate().step_by(40) {
            if *end == u64::MAX {
                continue;
            }
            for (leading, expected) in [(end - 1, block), (end + 1, block + 1)] {
                let exact = exact::block(whole, shift, sampler.bits, leading, || 7);
                assert_eq!(exact, expected as u64);
            }
        }
    }

    #[test]
    fn large_scales_have_their_moments_and_fine_last_bits() {
        for sigma in [2.0_f64.powi(21) + 0.5, 2.0_f64.powi(40) + 0.5, SIGMA_MAX] {
            let values = draws(8, sigma, 50_000);
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| v as f64).sum::<f64>() / n / sigma;
            let moment = |k| values.iter().map(|&v| (v as f64 / sigma).powi(k)).sum::<f64>() / n;
            assert!(mean.abs() < 5.0 / n.sqrt(), "{mean}");
            assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{}", moment(2));
            assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt(), "{}", moment(4));
            for bit in 0..8 {
                let ones = values.iter().filter(|&&v| v >> bit & 1 == 1).count() as f64;
                assert!((ones / n - 0.5).abs() < 2.5 / n.sqrt(), "bit {bit}: {ones} of {n}");
            }
        }
    }

    #[test]
    fn what_a_draw_takes_does_not_depend_on_its_value() {
        // Words and deeper levels, over draws near zero and draws in the tail. A draw from the exact
        // sampler of Canonne et al. takes half as much again at three sigma.
        for sigma in [4.25, 1000.5, 2.0_f64.powi(40)] {
            let sampler = Sampler::new(Scale::at_least(sigma).expect("in range"));
            let mut words = Words::new(&[3; 32], 0, 0);
            let mut by_size = [(0.0_f64, 0.0_f64); 3];
            for _ in 0..400_000 {
                let before = (words.at, words.deep[0]);
                let value = match sampler.bits {
                    0 => sampler.folded::<0>(&mut words),
                    1..=SHARED_BITS => sampler.draw::<0, true>(&mut words),
                    _ => sampler.draw::<0, false>(&mut words),
                };
                let taken = (words.at + BUFFER - before.0) % BUFFER / 8;
                let work = taken as f64 + 4.0 * (words.deep[0] - before.1) as f64;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "0 to 2"
                )]
                let bin = (value.unsigned_abs() as f64 / sigma).min(2.0) as usize;
                by_size[bin] = (by_size[bin].0 + work, by_size[bin].1 + 1.0);
            }
            let means = by_size.map(|(work, n)| work / n);
            let spread = means.iter().fold(0.0_f64, |m, v| m.max((v / means[0] - 1.0).abs()));
            assert!(spread < 0.02, "sigma {sigma}: {means:?}");
        }
    }

    #[test]
    fn the_scale_is_rounded_up_and_by_almost_nothing() {
        for sigma in [0.0625, 0.1, 1.0, 1.000_000_1, 77.7, 16_777_215.3, 1e9 + 0.1, 2.8e14] {
            let scale = Scale::at_least(sigma).expect("in range");
            let drawn_at =
                scale.whole as f64 / 2.0_f64.powi(i32::try_from(scale.shift).expect("small"));
            assert!(drawn_at >= sigma && drawn_at <= sigma * (1.0 + 1.2e-7), "{sigma}: {drawn_at}");
        }
    }

    #[test]
    fn no_noise_comes_from_a_broken_scale() {
        for sigma in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.01, 1e15] {
            let err =
                ExactDiscreteGaussian::new([1; 32]).add(&mut [0; 2], sigma).expect_err("refused");
            assert!(err.to_string().contains("a scale of"), "{err}");
        }
    }

    #[test]
    fn a_key_gives_each_call_and_chunk_noise_of_its_own_on_any_number_of_threads() {
        let all = |threads: usize| {
            let threads = NonZero::new(threads).expect("not zero");
            let mut noise = ExactDiscreteGaussian::new([9; 32]).on_threads(threads);
            let mut values = vec![0; 5 * CHUNK / 2];
            noise.add(&mut values, 50.0).expect("noise");
            let mut again = vec![0; CHUNK];
            noise.add(&mut again, 50.0).expect("noise");
            values.extend(again);
            values
        };
        let values = all(1);
        assert_eq!(values, all(2));
        assert_eq!(values, all(7));
        let chunks: Vec<_> = values.chunks(CHUNK / 2).map(|c| &c[..64]).collect();
        let distinct: std::collections::BTreeSet<_> = chunks.iter().collect();
        assert_eq!(distinct.len(), chunks.len());
        assert_ne!(draws(10, 50.0, 100), draws(11, 50.0, 100));
    }
}
