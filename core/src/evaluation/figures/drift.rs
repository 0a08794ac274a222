//! How far a watched column is from what it was where the study was made.
//!
//! All three figures are convex in the column's parts, so the true one is at most the measured one less a fixed linear
//! combination of the errors of the parts: the upper end is the measured figure and the spread of that. Noise makes the
//! measured figure larger on average; the lower end knows by how much, in the second order.

use super::{Estimate, Found, Metric, Missing, Pool, as_f64, float, rate::Ratio};
use crate::evaluation::cells::Block;

/// A part that is smaller counts as this in a population stability index, which no empty part makes infinite then.
const PART_MIN: f64 = 1e-4;
/// The largest population stability index: everything where nothing was, and the other way round.
pub(super) const PSI_MAX: f64 = 18.5;

/// One term of a divergence: its value, and its first and second derivatives by the measured part.
struct Term {
    value: f64,
    slope: f64,
    bend: f64,
}

/// Jeffreys' divergence of a part `q` from a part `p`, in nats.
fn jeffreys(q: f64, p: f64) -> Term {
    let (q, p) = (q.max(PART_MIN), p.max(PART_MIN));
    let log = (q / p).ln();
    Term { value: (q - p) * log, slope: log + 1.0 - p / q, bend: 1.0 / q + p / (q * q) }
}

/// Jensen and Shannon's, in bits.
fn jensen_shannon(q: f64, p: f64) -> Term {
    let q = q.max(0.0);
    let half = |a: f64| if a > 0.0 { a / 2.0 * (2.0 * a / (p + q)).log2() } else { 0.0 };
    // Where there is none, one more is looked at as if there were the least.
    let at = q.max(PART_MIN);
    Term {
        value: half(p) + half(q),
        slope: (2.0 * at / (p + at)).log2() / 2.0,
        bend: p / (at * (p + at)) / (2.0 * std::f64::consts::LN_2),
    }
}

impl Pool<'_> {
    /// A figure of a watched column, by its number.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn drift(&self, metric: Metric, number: usize) -> Found<Estimate> {
        let Some(watched) = self.e.drift.get(number) else { return Err(Missing::Undefined) };
        let counts = &self.counts[self.layout.column(number)];
        let counts: Vec<f64> = counts.iter().map(|c| as_f64(*c)).collect();
        let (records, noise) = (counts.iter().sum::<f64>(), self.noise(Block::Columns));
        self.distinct(records, float(counts.len()) * noise)?;
        match metric {
            Metric::Psi => {
                Ok(self.divergence(metric, (&counts, noise), &watched.reference, jeffreys))
            }
            Metric::JensenShannon => {
                let of =
                    self.divergence(metric, (&counts, noise), &watched.reference, jensen_shannon);
                let Estimate { value, low, high } = of;
                Ok(Estimate { value: value.sqrt(), low: low.sqrt(), high: high.sqrt() })
            }
            Metric::Ks => Ok(self.ks((&counts, noise), &watched.reference)),
            _ => Err(Missing::Undefined),
        }
    }

    fn divergence(
        &self,
        metric: Metric,
        (counts, noise): (&[f64], f64),
        reference: &[f64],
        term: impl Fn(f64, f64) -> Term,
    ) -> Estimate {
        let n: f64 = counts.iter().sum();
        let terms: Vec<Term> =
            counts.iter().zip(reference).map(|(count, p)| term(count / n, *p)).collect();
        let value: f64 = terms.iter().map(|t| t.value).sum();
        // One record more in a cell takes something from the parts of all others.
        let level: f64 = terms.iter().zip(counts).map(|(t, count)| t.slope * count / n).sum();
        let (mut linear, mut over, mut over_spread, mut steepest) = (0.0, 0.0, 0.0, 0.0_f64);
        for (t, count) in terms.iter().zip(counts) {
            let (slope, variance) = ((t.slope - level) / n, self.variance(*count, noise));
            linear += slope * slope * variance;
            steepest = steepest.max(slope.abs());
            let second = t.bend * variance / (n * n) / 2.0;
            over += second;
            over_spread += 2.0 * second * second;
        }
        let z = self.z(self.tail());
        let steepest = self.if_sampled(z * steepest);
        let most = metric.most(self.layout.target);
        Estimate {
            value: value.clamp(0.0, most),
            low: (value - over - z * (linear + over_spread).sqrt().hypot(steepest))
                .clamp(0.0, most),
            high: (value + z * linear.sqrt().hypot(steepest)).clamp(0.0, most),
        }
    }

    /// Cumulated parts are parts of a whole, with the intervals of those.
    fn ks(&self, (counts, noise): (&[f64], f64), reference: &[f64]) -> Estimate {
        let (whole, cells) = (counts.iter().sum::<f64>(), float(counts.len()));
        let trials = self.if_sampled(whole);
        let (z, all) = (self.z(self.tail()), self.z_of(counts.len()));
        let mut found = Estimate { value: 0.0, low: 0.0, high: 0.0 };
        let (mut part, mut expected) = (0.0, 0.0);
        // The last one is all records on both sides.
        for (i, (count, p)) in counts.iter().zip(reference).enumerate().take(counts.len() - 1) {
            part += count;
            expected += p;
            let of_part = float(i + 1) * noise;
            let of =
                Ratio { part, whole, of_part, of_both: of_part, of_whole: cells * noise, trials };
            let (low, high) = of.ends(z);
            found.value = found.value.max((part / whole - expected).abs());
            found.high = found.high.max(high - expected).max(expected - low);
            let (low, high) = of.ends(all);
            found.low = found.low.max(low - expected).max(expected - high);
        }
        Estimate {
            value: found.value.min(1.0),
            low: found.low.min(1.0),
            high: found.high.clamp(found.value.min(1.0), 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{
        Attribute, Evaluation, Groups, Noise, Watched,
        cells::{Tally, tests::settings},
        figures::tests::draw,
    };
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    const REFERENCE: [f64; 4] = [0.2, 0.5, 0.3, 0.0];

    fn watching(noise: Noise) -> Evaluation {
        let values = Attribute { column: "LIMIT".into(), groups: Groups::Bands(vec![50.0, 200.0]) };
        let drift = vec![Watched { values, reference: REFERENCE.to_vec() }];
        Evaluation { noise, attributes: Vec::new(), perturbations: Vec::new(), drift, ..settings() }
    }

    fn counted(e: &Evaluation, of: [i64; 4]) -> Vec<i64> {
        let mut tally = Tally::new(e.layout(2));
        for (value, times) in of.into_iter().enumerate() {
            for _ in 0..times {
                tally.record(0, 1, &[0.1, 0.9]);
                tally.watched(0, value);
            }
        }
        tally.into_counts()
    }

    fn found(e: &Evaluation, counts: &[i64]) -> [Found<Estimate>; 3] {
        let mut pool = Pool::new(e, 2);
        pool.add(counts).expect("counts");
        [Metric::Psi, Metric::Ks, Metric::JensenShannon].map(|m| pool.drift(m, 0))
    }

    /// By `SciPy` 1.17.1, of the parts `q` and the reference `p`: `rel_entr(q, p).sum() + rel_entr(p, q).sum()` over parts that
    /// are at least 0.0001, `abs(cumsum(q) - cumsum(p)).max()`, and `jensenshannon(p, q, base=2)`.
    #[test]
    fn figures_are_scipys_to_1e_9() {
        let e = watching(Noise::None);
        for (of, theirs) in [
            ([300, 450, 240, 10], [0.104_794_334_513_842_43, 0.1, 0.124_985_580_731_021_19]),
            ([200, 500, 300, 0], [0.0; 3]),
            ([0, 100, 900, 0], [2.822_362_939_836_968_3, 0.6, 0.564_115_589_954_766_3]),
        ] {
            for (ours, theirs) in found(&e, &counted(&e, of)).into_iter().zip(theirs) {
                let ours = ours.expect("a figure");
                assert!((ours.value - theirs).abs() < 1e-9, "{of:?}: {ours:?}, SciPy {theirs}");
                assert!(ours.low <= ours.value && ours.value <= ours.high, "{ours:?}");
            }
        }
        assert_eq!(Pool::new(&e, 2).drift(Metric::Psi, 0), Err(Missing::Nothing));
        assert_eq!(Pool::new(&e, 2).drift(Metric::Psi, 1), Err(Missing::Undefined));
    }

    /// Also where nothing has drifted, and the slopes are none.
    #[test]
    fn intervals_cover_the_pooled_value() {
        for (noise, of) in [
            (Noise::Laplace { epsilon: 0.5 }, [1_200, 1_800, 960, 40]),
            (Noise::Laplace { epsilon: 0.5 }, [800, 2_000, 1_200, 0]),
            (Noise::Gaussian { rho: 0.05 }, [1_200, 1_800, 960, 40]),
            (Noise::Gaussian { rho: 0.05 }, [800, 2_000, 1_200, 0]),
        ] {
            let (exact, noised) = (watching(Noise::None), watching(noise));
            let counts = counted(&exact, of);
            let truth = found(&exact, &counts).map(|f| f.expect("a figure").value);
            let mut covered = [0_u32; 3];
            for run in 0..500 {
                let mut rng = ChaCha20Rng::seed_from_u64(run);
                let mut with_noise = counts.clone();
                for (_, range, scale) in noised.layout(2).scales() {
                    with_noise[range].iter_mut().for_each(|c| *c += draw(&mut rng, scale));
                }
                let mut pool = Pool::new(&noised, 2);
                pool.add(&with_noise).expect("counts");
                let pool = pool.of_these_records();
                let metrics = [Metric::Psi, Metric::Ks, Metric::JensenShannon];
                for ((metric, truth), covered) in metrics.iter().zip(truth).zip(&mut covered) {
                    let found = pool.drift(*metric, 0).expect("a figure");
                    *covered += u32::from(found.low <= truth && truth <= found.high);
                }
            }
            assert!(covered.iter().all(|c| *c >= 470), "{noise:?} {of:?}: {covered:?} of 500");
        }
    }
}
