//! Steps whose noise is correlated: what DP-FTRL holds back from step to step and from round to round.
//!
//! A step's release is row `t` of `C x + z` (`falaj_core::dp::ftrl`): the sums of the last steps, weighed, rounded to
//! a grid and noised there, as whole numbers. What the optimiser gets is the row of `C^-1 (C x + z)`, computed from
//! releases alone. So both are kept, for as many steps as the factor is long: sums, which never leave the site, and
//! what was released of them.

use falaj_core::dp::Ftrl;
use std::{collections::VecDeque, fmt, ops::Range, sync::Arc};

/// What begins a stream's bytes.
const MAGIC: &[u8; 16] = b"falaj/stream/v1\0";

/// A step's clipped sum, and what was released of it.
type Row = (Vec<f32>, Vec<f32>);

/// A stream of steps on its way through the rounds of a study.
#[derive(Clone, Default)]
pub struct Stream {
    steps: u64,
    /// Newest first.
    rows: VecDeque<Arc<Row>>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream(after {} steps, redacted)", self.steps)
    }
}

impl Stream {
    /// Steps taken so far.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// Its bytes, for the site alone.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let params = self.rows.front().map_or(0, |row| row.0.len());
        let mut bytes = Vec::with_capacity(40 + self.rows.len() * params * 8);
        bytes.extend_from_slice(MAGIC);
        for head in [self.steps, self.rows.len() as u64, params as u64] {
            bytes.extend_from_slice(&head.to_le_bytes());
        }
        for (sum, released) in self.rows.iter().map(Arc::as_ref) {
            sum.iter().chain(released).for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
        }
        bytes
    }

    /// Reads [`Self::to_bytes`] of a model with so many parameters; `None` when they are none.
    #[must_use]
    pub fn parse(bytes: &[u8], params: usize) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (heads, values) = rest.split_at_checked(24)?;
        let (heads, _) = heads.as_chunks::<8>();
        let &[steps, rows, width] = heads else { return None };
        let rows = usize::try_from(u64::from_le_bytes(rows)).ok()?;
        let width = u64::from_le_bytes(width);
        let (values, more) = values.as_chunks::<4>();
        let fits = rows.checked_mul(2).and_then(|r| r.checked_mul(params)) == Some(values.len());
        if !more.is_empty() || !fits || (rows > 0 && width != params as u64) {
            return None;
        }
        let numbers =
            |values: &[[u8; 4]]| values.iter().map(|v| f32::from_le_bytes(*v)).collect::<Vec<_>>();
        let pair = |values: &[[u8; 4]]| {
            let (sum, released) = values.split_at(params);
            Arc::new((numbers(sum), numbers(released)))
        };
        let rows = if rows == 0 {
            VecDeque::new()
        } else {
            values.chunks_exact(2 * params).map(pair).collect()
        };
        Some(Self { steps: u64::from_le_bytes(steps), rows })
    }
}

/// How a stream goes on.
#[derive(Clone, Debug)]
pub struct Correlated {
    /// How noise is correlated over its steps.
    pub factor: Ftrl,
    /// Where it stands.
    pub stream: Stream,
}

impl Correlated {
    /// Takes up the next step's sum.
    pub(super) fn begin(&mut self, sum: &[f32]) {
        let rows = &mut self.stream.rows;
        rows.truncate(self.factor.factor().len() - 1);
        rows.push_front(Arc::new((sum.to_vec(), vec![0.0; sum.len()])));
        self.stream.steps += 1;
    }

    /// Releases a block of the step: its noised row, and what the optimiser gets of it, times `mean` into `out`.
    /// `drawn` is the block's noise in steps of a grid, each of them `grid` long.
    pub(super) fn release(
        &mut self,
        range: Range<usize>,
        (drawn, grid): (&[i32], f64),
        round: impl Fn(f64) -> f64,
        (out, mean): (&mut [f32], f64),
    ) {
        let factor = self.factor.factor();
        let mut weighed = vec![0.0_f64; range.len()];
        let mut before = vec![0.0_f64; range.len()];
        for (i, (row, c)) in self.stream.rows.iter().zip(factor).enumerate() {
            let (sum, released) = &**row;
            let sums = &sum[range.clone()];
            weighed.iter_mut().zip(sums).for_each(|(w, v)| *w += c * f64::from(*v));
            if i > 0 {
                let released = &released[range.clone()];
                before.iter_mut().zip(released).for_each(|(b, v)| *b += c * f64::from(*v));
            }
        }
        // Nobody else holds the row of a step that has just begun.
        let Some((_, released)) = self.stream.rows.front_mut().and_then(Arc::get_mut) else {
            return;
        };
        let released = released[range].iter_mut().zip(out).zip(drawn);
        for (((released, out), z), (w, b)) in released.zip(weighed.iter().zip(&before)) {
            let row = (round(w / grid) + f64::from(*z)) * grid;
            #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
            let own = (row - b) as f32;
            *released = own;
            #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
            let step = (f64::from(own) * mean) as f32;
            *out = step;
        }
    }

    /// Where the stream stands after the round.
    pub(super) fn finish(mut self) -> Stream {
        self.stream.rows.truncate(self.factor.factor().len() - 1);
        self.stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::dp::Cyclic;

    fn correlated(batches: u32, steps: u64) -> Correlated {
        let factor = Ftrl::new(Cyclic::new(batches).expect("batches"), steps).expect("a stream");
        Correlated { factor, stream: Stream::default() }
    }

    #[test]
    fn the_optimiser_gets_the_sums_under_the_inverse_factor_of_the_noise() {
        // With noise of one grid step in each row, `C^-1 (C x + z)` is `x` and the inverse's prefix sums.
        let mut run = correlated(8, 200);
        let bands = run.factor.factor().to_vec();
        assert_eq!(bands.len(), 8);
        let grid = 0.5;
        let mut noise = Vec::new();
        for step in 0..40_u16 {
            let sum = [f32::from(step % 7), -3.0];
            run.begin(&sum);
            let mut out = [0.0; 2];
            // Not rounded, so that what comes out can be computed.
            run.release(0..2, (&[1, 1], grid), |v| v, (&mut out, 1.0));
            let known: f64 = bands.iter().skip(1).zip(noise.iter().rev()).map(|(c, w)| c * w).sum();
            noise.push(grid - known);
            for (out, sum) in out.iter().zip(sum) {
                let expected = f64::from(sum) + noise[usize::from(step)];
                assert!((f64::from(*out) - expected).abs() < 1e-4, "{step}: {out}, {expected}");
            }
        }
        assert_eq!(run.stream.steps(), 40);
        assert_eq!(run.finish().rows.len(), 7);
    }

    #[test]
    fn a_stream_goes_on_from_its_bytes_as_if_it_had_never_stopped() {
        let mut whole = correlated(4, 50);
        let mut parts = correlated(4, 50);
        for step in 0..12_u16 {
            let (mut a, mut b) = ([0.0; 3], [0.0; 3]);
            for (run, out) in [(&mut whole, &mut a), (&mut parts, &mut b)] {
                run.begin(&[f32::from(step), 1.5, -2.0]);
                run.release(0..1, (&[5], 0.25), f64::round, (&mut out[..1], 0.1));
                run.release(1..3, (&[-7, 9], 0.25), f64::round, (&mut out[1..], 0.1));
            }
            assert_eq!(a.map(f32::to_bits), b.map(f32::to_bits));
            if step % 3 == 2 {
                let bytes = parts.clone().finish().to_bytes();
                parts.stream = Stream::parse(&bytes, 3).expect("a stream");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_stream_of_the_model_are_refused() {
        let mut run = correlated(4, 50);
        run.begin(&[1.0, 2.0]);
        let bytes = run.stream.to_bytes();
        assert!(Stream::parse(&bytes, 2).is_some());
        assert!(Stream::parse(&Stream::default().to_bytes(), 2).is_some_and(|s| s.steps() == 0));
        assert!(Stream::parse(&bytes, 1).is_none() && Stream::parse(&bytes, 4).is_none());
        for cut in 0..bytes.len() {
            assert!(Stream::parse(&bytes[..cut], 2).is_none(), "{cut}");
        }
        let mut huge = bytes;
        huge[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Stream::parse(&huge, 2).is_none());
    }
}
