//! Random rotation: what is heavy in one coordinate becomes light in many, so that a coarse grid holds it.
//!
//! A block `x` of parameters becomes `H D x`: random signs `D`, then the normalised Walsh-Hadamard transform `H`
//! (Ailon, Chazelle 2006; for federated means Suresh et al. 2017, section 3, and Kairouz, Liu, Steinke 2021,
//! section 4). It keeps every length, so clipping, sensitivity and noise are what they would be without it, and it
//! is linear, so the mean of rotated updates is the rotated mean, which the coordinator turns back. The signs are
//! public: they protect nothing.
//!
//! Nothing is padded. In a block whose length `n` is no power of two, the first `m < n <= 2 m` coordinates are
//! transformed, and then, under other signs, the last `m`. Either step is orthogonal, so both together are.
//!
//! For any block that was fixed before the signs were drawn, each coordinate of the result is sub-Gaussian with
//! variance at most `|x|² / m` (Hoeffding 1963, theorem 2; for a coordinate that both steps touch, given the signs
//! of the first one), which [`Rotation::flatness`] turns into a bound.

use crate::id::Digest;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

/// The most parameters that are mixed with each other: bounds memory, and keeps a block in a near cache.
const BLOCK_MAX: usize = 1 << 16;

/// Public signs of one round.
#[derive(Clone, Debug)]
pub struct Rotation([u8; 32]);

impl Rotation {
    /// The signs of a round of a study: the same for all that take part, others in every round.
    #[must_use]
    pub fn of_round(study_sha256: &Digest, round: u32) -> Self {
        let mut tagged = b"falaj/rotation/v1\0".to_vec();
        tagged.extend_from_slice(study_sha256.as_bytes());
        tagged.extend_from_slice(&round.to_be_bytes());
        Self(*Digest::of(&tagged).as_bytes())
    }

    /// Parameters in each block of so many; the last block may have fewer, but hardly.
    #[must_use]
    pub const fn block(params: usize) -> usize {
        let blocks = params.div_ceil(BLOCK_MAX);
        if blocks == 0 { 1 } else { params.div_ceil(blocks) }
    }

    /// What no coordinate of a rotated update exceeds, over the update's length, but for `chance`; at most 1.
    #[must_use]
    pub fn flatness(params: usize, chance: f64) -> f64 {
        let block = Self::block(params);
        let last = params - block * (params.saturating_sub(1) / block);
        #[expect(clippy::cast_precision_loss, reason = "at most 2^16")]
        let least = largest_power(last) as f64;
        #[expect(clippy::cast_precision_loss, reason = "within a logarithm")]
        let tail = (2.0 * params as f64 / chance).ln();
        (2.0 * tail / least).sqrt().min(1.0)
    }

    /// Rotates an update, block by block.
    pub fn apply(&self, values: &mut [f32]) {
        let block = Self::block(values.len());
        let mut wide = vec![0.0; block.min(values.len())];
        for (i, values) in values.chunks_mut(block).enumerate() {
            let wide = &mut wide[..values.len()];
            wide.iter_mut().zip(&*values).for_each(|(w, v)| *w = f64::from(*v));
            let m = largest_power(wide.len());
            let mut signs = self.signs(i);
            flip(&mut wide[..m], &mut signs);
            transform(&mut wide[..m]);
            if m < wide.len() {
                let at = wide.len() - m;
                flip(&mut wide[at..], &mut signs);
                transform(&mut wide[at..]);
            }
            #[expect(clippy::cast_possible_truncation, reason = "updates are f32")]
            values.iter_mut().zip(&*wide).for_each(|(v, w)| *v = *w as f32);
        }
    }

    /// Turns block number `i` of a rotated update, or of a mean of them, back. The same bits everywhere: one order of
    /// operations, each of them exact or rounded to nearest.
    pub fn undo(&self, i: usize, block: &mut [f64]) {
        let (n, m) = (block.len(), largest_power(block.len()));
        // Orthogonal and symmetric, so each transform is its own inverse; signs come after it on the way back.
        let mut signs = self.signs(i);
        let mut first = vec![1.0; m];
        flip(&mut first, &mut signs);
        if m < n {
            transform(&mut block[n - m..]);
            flip(&mut block[n - m..], &mut signs);
        }
        transform(&mut block[..m]);
        block.iter_mut().zip(first).for_each(|(v, sign)| *v *= sign);
    }

    /// A stream of its own for each block.
    fn signs(&self, block: usize) -> ChaCha20Rng {
        let mut rng = ChaCha20Rng::from_seed(self.0);
        rng.set_stream(block as u64);
        rng
    }
}

/// The largest power of two up to `n`, which is at least one.
const fn largest_power(n: usize) -> usize {
    if n == 0 { 0 } else { 1 << n.ilog2() }
}

/// Turns the sign of each value by a fair coin.
fn flip(values: &mut [f64], coins: &mut ChaCha20Rng) {
    for values in values.chunks_mut(32) {
        let coins = coins.next_u32();
        for (bit, v) in values.iter_mut().enumerate() {
            let sign = u64::from(coins >> bit & 1) << 63;
            *v = f64::from_bits(v.to_bits() ^ sign);
        }
    }
}

/// The normalised Walsh-Hadamard transform of a power of two of values, in place.
fn transform(values: &mut [f64]) {
    let mut half = 1;
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    #[expect(clippy::cast_precision_loss, reason = "at most 2^16")]
    let scale = 1.0 / (values.len().max(1) as f64).sqrt();
    values.iter_mut().for_each(|v| *v *= scale);
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
mod tests {
    use super::*;

    fn rotation() -> Rotation {
        Rotation::of_round(&Digest::of(b"a study"), 7)
    }

    fn back(rotated: &[f32]) -> Vec<f64> {
        let mut wide: Vec<f64> = rotated.iter().map(|&v| f64::from(v)).collect();
        let block = Rotation::block(wide.len());
        for (i, block) in wide.chunks_mut(block).enumerate() {
            rotation().undo(i, block);
        }
        wide
    }

    fn length(values: &[f32]) -> f64 {
        values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn lengths_are_kept_and_the_way_back_leads_home_for_every_size() {
        for n in (1..70).chain([1_000, BLOCK_MAX, BLOCK_MAX + 1, 3 * BLOCK_MAX - 5]) {
            let values: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let mut rotated = values.clone();
            rotation().apply(&mut rotated);
            assert!((length(&rotated) / length(&values) - 1.0).abs() < 1e-6, "{n}");
            for (v, b) in values.iter().zip(back(&rotated)) {
                assert!((f64::from(*v) - b).abs() < 1e-5, "{n}: {v} became {b}");
            }
        }
    }

    #[test]
    fn columns_are_orthonormal() {
        for n in [1, 2, 3, 5, 8, 13, 24] {
            let columns: Vec<Vec<f32>> = (0..n)
                .map(|i| {
                    let mut unit = vec![0.0; n];
                    unit[i] = 1.0;
                    rotation().apply(&mut unit);
                    unit
                })
                .collect();
            for (i, a) in columns.iter().enumerate() {
                for (j, b) in columns.iter().enumerate() {
                    let dot: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((dot - expected).abs() < 1e-5, "{n}: {i}, {j}: {dot}");
                }
            }
        }
    }

    #[test]
    fn a_spike_is_spread_as_far_as_the_bound_says() {
        for n in [512, 513, 1_023, 5_000, BLOCK_MAX + 3] {
            let bound = Rotation::flatness(n, 1e-9);
            for at in [0, n / 3, n / 2, n - 1] {
                let mut spike = vec![0.0; n];
                spike[at] = 1.0;
                rotation().apply(&mut spike);
                let most = spike.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
                assert!(f64::from(most) <= bound, "{n}, {at}: {most} > {bound}");
            }
        }
        assert!(Rotation::flatness(1 << 20, 1e-12) < 0.04);
        assert!((Rotation::flatness(3, 1e-12) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_constant_is_spread_as_well() {
        // Without signs a Hadamard transform gathers a constant in one coordinate; without other signs for the
        // second step, so would that.
        for n in [1_024, 1_025] {
            let mut flat = vec![1.0; n];
            rotation().apply(&mut flat);
            let most = flat.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
            assert!(most < 7.0, "{n}: {most}");
        }
    }

    #[test]
    fn rounds_and_studies_have_signs_of_their_own() {
        let turned = |study: &[u8], round| {
            let mut values = vec![1.0; 64];
            Rotation::of_round(&Digest::of(study), round).apply(&mut values);
            values
        };
        assert_eq!(turned(b"a", 1), turned(b"a", 1));
        assert_ne!(turned(b"a", 1), turned(b"a", 2));
        assert_ne!(turned(b"a", 1), turned(b"b", 1));
    }

    #[test]
    fn nothing_is_nothing() {
        rotation().apply(&mut []);
        assert_eq!(Rotation::block(0), 1);
        let mut zero = vec![0.0; 5];
        rotation().apply(&mut zero);
        assert!(zero.iter().all(|v| *v == 0.0));
    }
}
