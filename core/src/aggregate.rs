//! The weighted mean of sealed updates, in integers until the very end.
//!
//! `new = base + server_learning_rate · step · Σ weightᵢ · updateᵢ / Σ weightᵢ` (arXiv 1602.05629,
//! algorithm 1, with b-bit integers for the updates). Integer sums do not depend on the order of
//! arrival, and the one rounding at the end is per coordinate, so the result is the same bit for bit.
//!
//! Other rules than the mean are in [`crate::robust`].

use crate::{
    dp::Rotation,
    id::Digest,
    robust::RuleError,
    update::{Encoding, values},
};
use sha2::{Digest as _, Sha256};

/// Sums of weighted updates: 4 bytes per parameter while Σ weight · 2^(bits-1) fits them, 8 from then on,
/// however many sites there are.
pub struct Accumulator {
    sums: Sums,
    weight: u64,
    encoding: Encoding,
}

#[derive(Debug, PartialEq)]
enum Sums {
    Narrow(Vec<i32>),
    Wide(Vec<i64>),
}

impl Sums {
    fn len(&self) -> usize {
        match self {
            Self::Narrow(sums) => sums.len(),
            Self::Wide(sums) => sums.len(),
        }
    }
}

/// Why an update cannot be folded in, or no model comes out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AggregateError {
    /// The bytes do not end where the parameters do.
    #[error("{bytes} bytes at value {at} do not fit {params} parameters")]
    Shape {
        /// Bytes offered.
        bytes: usize,
        /// The first value that they speak of.
        at: usize,
        /// Parameters that there are.
        params: usize,
    },
    /// Σ weight · 2^(bits-1) would no longer fit 64 bits.
    #[error("the weights add up to {0}: the sum could overflow")]
    Overflow(u64),
    /// Nothing was folded in.
    #[error("no update was folded in")]
    Empty,
    /// A parameter of the new model is not a number.
    #[error("parameter {0} of the new model is not a finite number")]
    NotFinite(usize),
    /// Another rule than the mean does not take these updates.
    #[error(transparent)]
    Rule(#[from] RuleError),
}

impl Accumulator {
    /// Zero sums for `params` parameters on one grid.
    #[must_use]
    pub fn new(params: usize, encoding: Encoding) -> Self {
        Self { sums: Sums::Narrow(vec![0; params]), weight: 0, encoding }
    }

    /// Sums that were made elsewhere, of `sites` updates that count the same.
    #[must_use]
    pub fn of_sum(sums: Vec<i32>, sites: u32, encoding: Encoding) -> Self {
        Self { sums: Sums::Narrow(sums), weight: u64::from(sites), encoding }
    }

    /// Σ weight of what was folded in.
    #[must_use]
    pub const fn weight(&self) -> u64 {
        self.weight
    }

    /// Makes room for an update of this weight; its values follow by [`Self::fold_values`].
    ///
    /// # Errors
    /// [`AggregateError::Overflow`]; the sums are unchanged.
    pub fn admit(&mut self, weight: u32) -> Result<(), AggregateError> {
        let total = self.weight + u64::from(weight);
        let largest = u128::from(total) * u128::from(self.encoding.max().unsigned_abs());
        if largest > i64::MAX as u128 {
            return Err(AggregateError::Overflow(total));
        }
        if largest > i32::MAX as u128
            && let Sums::Narrow(sums) = &self.sums
        {
            self.sums = Sums::Wide(sums.iter().copied().map(i64::from).collect());
        }
        self.weight = total;
        Ok(())
    }

    /// Folds in a whole update.
    ///
    /// # Errors
    /// [`AggregateError`]; the sums are unchanged.
    pub fn fold(&mut self, payload: &[u8], weight: u32) -> Result<(), AggregateError> {
        if payload.len() != self.sums.len() * self.encoding.bytes_per_value() {
            return Err(AggregateError::Shape {
                bytes: payload.len(),
                at: 0,
                params: self.sums.len(),
            });
        }
        self.admit(weight)?;
        self.fold_values(0, payload, weight)
    }

    /// Folds in the values from number `at` on, of an update that was admitted.
    ///
    /// # Errors
    /// [`AggregateError::Shape`] when the bytes are not whole values within the parameters.
    pub fn fold_values(
        &mut self,
        at: usize,
        bytes: &[u8],
        weight: u32,
    ) -> Result<(), AggregateError> {
        let width = self.encoding.bytes_per_value();
        let params = self.sums.len();
        let end = at + bytes.len() / width;
        if !bytes.len().is_multiple_of(width) || end > params {
            return Err(AggregateError::Shape { bytes: bytes.len(), at, params });
        }
        let sums = &mut self.sums;
        match width {
            1 => add::<7>(sums, at, bytes.iter().map(|&b| u32::from(b ^ 0x80)), weight),
            2 => add::<15>(
                sums,
                at,
                values::<2>(bytes).map(|v| u32::from(u16::from_le_bytes(v) ^ 0x8000)),
                weight,
            ),
            3 => add::<23>(
                sums,
                at,
                values::<3>(bytes).map(|v| u32::from_le_bytes([v[0], v[1], v[2] ^ 0x80, 0])),
                weight,
            ),
            _ => add::<31>(
                sums,
                at,
                values::<4>(bytes).map(|v| u32::from_le_bytes(v) ^ 0x8000_0000),
                weight,
            ),
        }
        Ok(())
    }

    /// Moves a block of the base model by the weighted mean, in place: `model` holds the parameters from
    /// number `at` on as they travel (little-endian f32), and is the same block of the new model after it.
    /// Where updates were rotated their mean is turned back, in whole blocks of [`Rotation::block`] parameters.
    ///
    /// # Errors
    /// [`AggregateError`]; then the block is not to be used.
    pub fn move_base(
        &self,
        at: usize,
        model: &mut [u8],
        server_learning_rate: f64,
        rotation: Option<&Rotation>,
    ) -> Result<(), AggregateError> {
        if self.weight == 0 {
            return Err(AggregateError::Empty);
        }
        let params = self.sums.len();
        let end = fits(at, model.len(), params)?;
        if let Some(rotation) = rotation {
            let block = Rotation::block(params);
            let mut means = vec![0.0; block.min(end - at)];
            for (i, model) in model.chunks_mut(4 * block).enumerate() {
                let from = at + i * block;
                let means = &mut means[..model.len() / 4];
                self.means_from(from, self.weight, means);
                move_by(from, params, model, means, server_learning_rate, Some(rotation))?;
            }
            return Ok(());
        }
        #[expect(clippy::cast_precision_loss, reason = "rounded once, the same everywhere")]
        let total = self.weight as f64;
        let step = self.encoding.step();
        let values = model.as_chunks_mut::<4>().0;
        let finite = match &self.sums {
            Sums::Narrow(sums) => {
                let means = sums[at..end].iter().map(|s| f64::from(*s) * step / total);
                moved(values, means, server_learning_rate)
            }
            Sums::Wide(sums) => {
                #[expect(clippy::cast_precision_loss, reason = "rounded once, the same everywhere")]
                let means = sums[at..end].iter().map(|s| *s as f64 * step / total);
                moved(values, means, server_learning_rate)
            }
        };
        if finite { Ok(()) } else { Err(not_finite(at, values)) }
    }

    /// The sums from number `at` on as numbers, each over `divisor`.
    pub(crate) fn means_from(&self, at: usize, divisor: u64, means: &mut [f64]) {
        let step = self.encoding.step();
        #[expect(clippy::cast_precision_loss, reason = "rounded once, the same everywhere")]
        let divisor = divisor as f64;
        match &self.sums {
            Sums::Narrow(sums) => {
                let sums = sums[at..].iter().map(|s| f64::from(*s));
                means.iter_mut().zip(sums).for_each(|(mean, s)| *mean = s * step / divisor);
            }
            Sums::Wide(sums) => {
                #[expect(clippy::cast_precision_loss, reason = "rounded once, the same everywhere")]
                let sums = sums[at..].iter().map(|s| *s as f64);
                means.iter_mut().zip(sums).for_each(|(mean, s)| *mean = s * step / divisor);
            }
        }
    }

    /// As [`Self::means_from`], of sums that may be beyond what floating point holds: whole parts are exact, so that of equal
    /// values, however they are weighted, the mean is that value.
    pub(crate) fn quotients_from(&self, at: usize, divisor: u64, means: &mut [f64]) {
        let (Sums::Wide(sums), Ok(by)) = (&self.sums, i64::try_from(divisor)) else {
            return self.means_from(at, divisor, means);
        };
        let step = self.encoding.step();
        for (mean, sum) in means.iter_mut().zip(&sums[at..]) {
            #[expect(clippy::cast_precision_loss, reason = "rounded once, the same everywhere")]
            let quotient = (sum / by) as f64 + (sum % by) as f64 / by as f64;
            *mean = quotient * step;
        }
    }

    /// Begins again with nothing folded in, in the same memory.
    pub fn reset(&mut self) {
        match &mut self.sums {
            Sums::Narrow(sums) => sums.fill(0),
            Sums::Wide(sums) => sums.fill(0),
        }
        self.weight = 0;
    }
}

/// The kernel: one pass over sums and values, which the compiler turns into vector code. Values come
/// raised by `2^SIGN`, which makes them unsigned: vector units of every age multiply 32 by 32 unsigned
/// bits into 64. The raise is taken off again, modulo 2^32 or 2^64, in which the sum has room.
#[inline]
fn add<const SIGN: u32>(
    sums: &mut Sums,
    at: usize,
    raised: impl Iterator<Item = u32>,
    weight: u32,
) {
    match sums {
        Sums::Narrow(sums) => {
            let raise = weight << SIGN;
            for (sum, v) in sums[at..].iter_mut().zip(raised) {
                let added = v.wrapping_mul(weight).wrapping_sub(raise);
                *sum = sum.wrapping_add(added.cast_signed());
            }
        }
        Sums::Wide(sums) => {
            let weight = u64::from(weight);
            let raise = weight << SIGN;
            for (sum, v) in sums[at..].iter_mut().zip(raised) {
                let added = (u64::from(v) * weight).wrapping_sub(raise);
                *sum = sum.wrapping_add(added.cast_signed());
            }
        }
    }
}

/// Moves a block of the base model, as it travels, by means that are at hand. Rotated ones are turned back first, in
/// whole blocks of [`Rotation::block`].
///
/// # Errors
/// [`AggregateError::Shape`] and [`AggregateError::NotFinite`].
pub(crate) fn move_by(
    at: usize,
    params: usize,
    model: &mut [u8],
    means: &mut [f64],
    server_learning_rate: f64,
    rotation: Option<&Rotation>,
) -> Result<(), AggregateError> {
    let end = fits(at, model.len(), params)?;
    if let Some(rotation) = rotation {
        let block = Rotation::block(params);
        if !at.is_multiple_of(block) || !(end == params || end.is_multiple_of(block)) {
            return Err(AggregateError::Shape { bytes: model.len(), at, params });
        }
        let blocks = means.chunks_mut(block).enumerate();
        blocks.for_each(|(i, means)| rotation.undo(at / block + i, means));
    }
    let values = model.as_chunks_mut::<4>().0;
    let finite = moved(values, means.iter().copied(), server_learning_rate);
    if finite { Ok(()) } else { Err(not_finite(at, values)) }
}

/// Where a block of parameters as they travel ends, which is within the model.
fn fits(at: usize, bytes: usize, params: usize) -> Result<usize, AggregateError> {
    match at.checked_add(bytes / 4) {
        Some(end) if bytes.is_multiple_of(4) && end <= params => Ok(end),
        _ => Err(AggregateError::Shape { bytes, at, params }),
    }
}

/// Names the first parameter that is no number.
fn not_finite(at: usize, values: &[[u8; 4]]) -> AggregateError {
    let broken = values.iter().position(|v| !f32::from_le_bytes(*v).is_finite());
    AggregateError::NotFinite(at + broken.unwrap_or(0))
}

/// Moves parameters by their means; whether all of them are finite after it.
#[inline]
fn moved(
    values: &mut [[u8; 4]],
    means: impl Iterator<Item = f64>,
    server_learning_rate: f64,
) -> bool {
    let mut finite = true;
    for (value, mean) in values.iter_mut().zip(means) {
        #[expect(clippy::cast_possible_truncation, reason = "rounded once, the same everywhere")]
        let new = (f64::from(f32::from_le_bytes(*value)) + server_learning_rate * mean) as f32;
        finite &= new.is_finite();
        *value = new.to_le_bytes();
    }
    finite
}

/// Parameters as they travel and are hashed: little-endian f32 in manifest order.
#[must_use]
pub fn params_to_bytes(params: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(params.len() * 4);
    for p in params {
        bytes.extend_from_slice(&p.to_le_bytes());
    }
    bytes
}

/// The reverse of [`params_to_bytes`]; `None` when the length is not a multiple of four.
#[must_use]
pub fn params_from_bytes(bytes: &[u8]) -> Option<Vec<f32>> {
    let (whole, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| whole.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// SHA-256 over [`params_to_bytes`], without holding those bytes at once.
#[must_use]
pub fn params_digest(params: &[f32]) -> Digest {
    let mut hash = Sha256::new();
    let mut block = [0; 4096];
    for chunk in params.chunks(1024) {
        for (b, p) in block.as_chunks_mut::<4>().0.iter_mut().zip(chunk) {
            *b = p.to_le_bytes();
        }
        hash.update(&block[..chunk.len() * 4]);
    }
    Digest(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(sums: &Accumulator, base: &[f32], rate: f64) -> Result<Vec<f32>, AggregateError> {
        let mut model = params_to_bytes(base);
        sums.move_base(0, &mut model, rate, None)?;
        Ok(params_from_bytes(&model).expect("whole parameters"))
    }

    fn payload(encoding: Encoding, values: &[i32]) -> Vec<u8> {
        let mut out = Vec::new();
        for &v in values {
            encoding.put(v, &mut out);
        }
        out
    }

    #[test]
    fn the_mean_is_weighted_and_the_same_in_every_width() {
        for bits in [8, 12, 16, 20, 24, 32] {
            let encoding = Encoding::new(bits, 0.5).expect("valid");
            let mut acc = Accumulator::new(2, encoding);
            acc.fold(&payload(encoding, &[4, -8]), 1).expect("fits");
            acc.fold(&payload(encoding, &[8, 8]), 3).expect("fits");
            let new = finished(&acc, &[1.0, 1.0], 1.0).expect("a model");
            // (4·1 + 8·3) / 4 · 0.5 = 3.5 and (-8·1 + 8·3) / 4 · 0.5 = 2.
            assert_eq!(new, [4.5, 3.0], "{bits} bits");
        }
    }

    #[test]
    fn sums_widen_when_they_must_and_stay_the_same() {
        let encoding = Encoding::new(24, 1.0).expect("valid");
        let bytes = payload(encoding, &[encoding.max(), -encoding.max(), 7]);
        let mut acc = Accumulator::new(3, encoding);
        acc.fold(&bytes, 250).expect("fits");
        assert!(matches!(acc.sums, Sums::Narrow(_)));
        acc.fold(&bytes, 750).expect("fits");
        let max = i64::from(encoding.max()) * 1_000;
        assert_eq!(acc.sums, Sums::Wide(vec![max, -max, 7_000]));
        assert_eq!(
            finished(&acc, &[0.0; 3], 1.0).expect("a model"),
            [8_388_607.0, -8_388_607.0, 7.0]
        );
    }

    #[test]
    fn blocks_add_up_to_the_whole() {
        let encoding = Encoding::new(24, 1.0).expect("valid");
        let bytes = payload(encoding, &[1, -2, 3, -4, 5]);
        let mut blocks = Accumulator::new(5, encoding);
        blocks.admit(2).expect("fits");
        blocks.fold_values(0, &bytes[..6], 2).expect("fits");
        blocks.fold_values(2, &bytes[6..], 2).expect("fits");
        let mut whole = Accumulator::new(5, encoding);
        whole.fold(&bytes, 2).expect("fits");
        assert_eq!(blocks.sums, whole.sums);
        let model = finished(&whole, &[0.5; 5], 0.1).expect("a model");
        let mut tail = params_to_bytes(&[0.5; 2]);
        whole.move_base(3, &mut tail, 0.1, None).expect("a model");
        assert_eq!(params_from_bytes(&tail).expect("whole parameters"), model[3..]);
        whole.reset();
        assert_eq!(finished(&whole, &[0.0; 5], 1.0), Err(AggregateError::Empty));
        whole.fold(&bytes, 2).expect("fits");
        assert_eq!(blocks.sums, whole.sums);
    }

    #[test]
    fn a_digest_over_parameters_is_one_over_their_bytes() {
        let params: Vec<f32> = (0_u16..3_000).map(f32::from).collect();
        assert_eq!(params_digest(&params), Digest::of(&params_to_bytes(&params)));
    }

    #[test]
    fn the_mean_of_rotated_updates_is_turned_back_in_blocks_as_in_one_piece() {
        // Three blocks, of which no size is a power of two; every update is one heavy coordinate.
        let params = 150_000;
        let rotation = Rotation::of_round(&Digest::of(b"a study"), 1);
        let flat = Rotation::flatness(params, 1e-9);
        let encoding = Encoding::for_range(16, flat).expect("valid");
        let mut acc = Accumulator::new(params, encoding);
        for at in [3, 149_999] {
            let mut update = vec![0.0_f32; params];
            update[at] = 1.0;
            rotation.apply(&mut update);
            #[expect(clippy::cast_possible_truncation, reason = "within the grid")]
            let whole = |v: &f32| (f64::from(*v) / encoding.step()).round() as i32;
            let whole: Vec<i32> = update.iter().map(whole).collect();
            acc.fold(&payload(encoding, &whole), 1).expect("fits");
        }
        let mut model = params_to_bytes(&vec![1.0; params]);
        acc.move_base(0, &mut model, 1.0, Some(&rotation)).expect("a model");
        let block = Rotation::block(params);
        let mut parts = params_to_bytes(&vec![1.0; params]);
        for (i, part) in parts.chunks_mut(4 * block).enumerate() {
            acc.move_base(i * block, part, 1.0, Some(&rotation)).expect("a model");
        }
        assert_eq!(parts, model);
        let err = acc.move_base(1, &mut parts[4..8], 1.0, Some(&rotation)).expect_err("no block");
        assert!(matches!(err, AggregateError::Shape { .. }), "{err}");
        for (i, v) in params_from_bytes(&model).expect("whole parameters").iter().enumerate() {
            let expected = if [3, 149_999].contains(&i) { 1.5 } else { 1.0 };
            // Rounding errs by at most half a step in each of a block's coordinates; it does not add up.
            assert!((v - expected).abs() < 1e-3, "{i}: {v}");
        }
    }

    #[test]
    fn what_does_not_fit_leaves_the_sums_alone() {
        let encoding = Encoding::new(32, 1.0).expect("valid");
        let mut acc = Accumulator::new(1, encoding);
        assert!(matches!(acc.fold(&[0; 3], 1), Err(AggregateError::Shape { .. })));
        let heavy = payload(encoding, &[i32::MAX]);
        acc.fold(&heavy, u32::MAX).expect("fits");
        assert!(matches!(acc.fold(&heavy, u32::MAX), Err(AggregateError::Overflow(_))));
        assert_eq!(acc.weight(), u64::from(u32::MAX));
        let err = finished(&acc, &[f32::MAX], 1e38).expect_err("too large");
        assert_eq!(err, AggregateError::NotFinite(0));
        assert!(matches!(finished(&acc, &[0.0; 2], 1.0), Err(AggregateError::Shape { .. })));
    }
}
