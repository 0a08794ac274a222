//! Figures of a label that is a number: how far off what a model says of it is.
//!
//! The sums are of places between the label's bounds; the figures are in its own unit. Where records are a sample, a sum of so much
//! of each has the variance of a sum of their squares, which are sums as well: of absolute errors the squared ones, of those
//! the fourth powers.

use super::{
    DISTINCT, Found, Metric, Missing, Pool, as_f64, float,
    rate::{Rate, Ratio},
};
use crate::evaluation::{
    Target,
    cells::{Block, LOSS_BITS},
};
use std::ops::Range;

/// A sum, and the variance of its noise.
#[derive(Clone, Copy)]
struct Sum {
    of: f64,
    noise: f64,
}

impl Pool<'_> {
    /// The sum of a block over groups, in what one record adds.
    fn sum(&self, block: Block, range: &Range<usize>, cells: &[usize], unit: f64) -> Sum {
        let of = cells.iter().map(|c| as_f64(self.counts[range.start + c])).sum::<f64>() * unit;
        Sum { of, noise: self.noise(block) * unit * unit * float(cells.len()) }
    }

    /// A metric of numbers.
    pub(super) fn of_numbers(&self, metric: Metric, cells: &[usize]) -> Found<Rate> {
        let Target::Number { width } = self.layout.target else { return Err(Missing::Undefined) };
        let unit = 2_f64.powi(-LOSS_BITS.cast_signed());
        let errors = |block: Block| self.sum(block, &self.layout.range(block), cells, unit);
        let records = self.sum(Block::Records, &self.layout.range(Block::Records), cells, 1.0);
        self.distinct(records.of, records.noise)?;
        let (squared, fourth) = (errors(Block::SquaredErrors), errors(Block::FourthPowers));
        // The mean of squares is at least the square of the mean, and of what is at most 1, at most the mean. Noise knows neither.
        let within = |squares: f64, of: Sum| {
            let least = of.of * of.of / records.of;
            squares.clamp(least.max(0.0), of.of.max(least).max(0.0))
        };
        let mean = |of: Sum, squares: f64, scale: f64| {
            let spread = (within(squares, of) - of.of * of.of / records.of).max(0.0);
            Ratio {
                part: of.of * scale,
                whole: records.of,
                of_part: (self.if_sampled(spread) + of.noise) * scale * scale,
                of_both: 0.0,
                of_whole: records.noise,
                trials: 0.0,
            }
        };
        match metric {
            Metric::Mae => Ok(mean(errors(Block::AbsoluteErrors), squared.of, width).into()),
            Metric::Rmse => Ok(Rate::root(mean(squared, fourth.of, width * width))),
            Metric::R2 => {
                let squares = within(fourth.of, squared);
                self.determination(records, (squared, squares), cells)
            }
            _ => Err(Missing::Undefined),
        }
    }

    /// One less the squared errors over the squared distances from the mean. How both vary together over samples is not counted,
    /// and cannot be less than nothing: leaving it out makes the interval wider, never narrower.
    fn determination(
        &self,
        records: Sum,
        (squared, fourth): (Sum, f64),
        cells: &[usize],
    ) -> Found<Rate> {
        let unit = 2_f64.powi(-LOSS_BITS.cast_signed());
        let power = |power: usize| self.sum(Block::Powers, &self.layout.power(power), cells, unit);
        let [m1, m2, m3, m4] = [1, 2, 3, 4].map(power);
        let (n, mean) = (records.of, (m1.of / records.of).clamp(-1.0, 1.0));
        // What noise adds to the square of the sum on average is taken off.
        let around = m2.of - (m1.of * m1.of - m1.noise) / n;
        let noise = m2.noise + 4.0 * mean.powi(2) * m1.noise + mean.powi(4) * records.noise;
        if around <= 0.0 || around <= DISTINCT * noise.sqrt() {
            #[expect(clippy::cast_possible_truncation, reason = "shown, not counted with")]
            let about = n.round() as i64;
            return Err(if noise > 0.0 { Missing::TooFew(about) } else { Missing::Undefined });
        }
        let centred = m4.of - 4.0 * mean * m3.of + 6.0 * mean.powi(2) * m2.of
            - 4.0 * mean.powi(3) * m1.of
            + mean.powi(4) * n;
        // No distance from the mean is more than that of the further bound.
        let least = around * around / n;
        let centred = centred.clamp(least, (around * (1.0 + mean.abs()).powi(2)).max(least));
        // Powers are of a label between -1 and 1, errors of places between 0 and 1: half as far apart.
        Ok(Rate::rest(Ratio {
            part: 4.0 * squared.of,
            whole: around,
            of_part: 16.0 * (self.if_sampled(fourth) + squared.noise),
            of_both: 0.0,
            of_whole: noise + self.if_sampled(centred),
            trials: 0.0,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{
        Attribute, Evaluation, Groups, Noise,
        cells::{Tally, tests::settings},
        figures::{By, Estimate, Kind, tests::draw},
    };
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;
    use serde_json::Value;

    /// Runs of each coverage test, and how many a nominal 95 % interval must cover: 94 %.
    const RUNS: (u64, usize) = (500, 470);
    /// How often each of the reference's rows is there, so that a study's usual noise is less than its figures.
    const TIMES: i64 = 40;

    fn reference() -> Value {
        let text = include_str!("../../../testdata/regression.json");
        serde_json::from_str(text).expect("JSON")
    }

    fn settings_of(noise: Noise) -> Evaluation {
        let sex = Groups::Values(vec!["1".into(), "2".into()]);
        Evaluation {
            noise,
            group_min: 60,
            attributes: vec![
                Attribute { column: "SEX".into(), groups: sex },
                Attribute { column: "AGE".into(), groups: Groups::Bands(vec![30.0, 50.0]) },
            ],
            perturbations: Vec::new(),
            ..settings()
        }
    }

    fn target() -> Target {
        let (all, end) = (reference(), |v: &Value| v.as_f64().expect("a number"));
        Target::Number { width: end(&all["max"]) - end(&all["min"]) }
    }

    /// The reference's rows as `sites` sites count them.
    fn counts(e: &Evaluation, sites: usize) -> Vec<Vec<i64>> {
        let all = reference();
        let mut tallies = vec![Tally::new(e.layout(target())); sites];
        let column = |name: &str| all[name].as_array().cloned().expect("a list");
        let [labels, said, sex, age] = ["labels", "said", "sex", "age"].map(column);
        let place = |units: &Value| units.as_f64().expect("a number") / 2_f64.powi(30);
        for row in 0..labels.len() {
            let sex = e.attributes[0].group_of(sex[row].as_str().expect("text"));
            let age = e.attributes[1].group_of(&age[row].to_string());
            let group = sex * e.attributes[1].len() + age;
            tallies[row % sites].number(group, place(&labels[row]), place(&said[row]));
        }
        tallies.into_iter().map(Tally::into_counts).collect()
    }

    fn pool<'a>(e: &'a Evaluation, counts: &[Vec<i64>]) -> Pool<'a> {
        let mut pool = Pool::new(e, target());
        counts.iter().for_each(|c| pool.add(c).expect("counts of a site"));
        pool
    }

    /// To 1e-9 of what they are: squares are summed in units of 2^-32.
    fn close(what: &str, found: Found<Estimate>, theirs: &Value) {
        let (ours, theirs) = (found.expect("a figure"), theirs.as_f64().expect("a number"));
        let apart = (ours.value - theirs).abs();
        assert!(apart < 1e-9 * theirs.abs().max(1.0), "{what}: {ours:?}, scikit-learn {theirs}");
        assert!(ours.low <= ours.value && ours.value <= ours.high, "{what}: {ours:?}");
    }

    #[test]
    fn figures_are_scikit_learns_to_1e_9() {
        let e = settings_of(Noise::None);
        let (pool, all) = (pool(&e, &counts(&e, 4)), reference());
        for metric in [Metric::Mae, Metric::Rmse, Metric::R2] {
            let name = metric.as_str();
            close(name, pool.overall(metric), &all["figures"][name]);
            for by in By::every(2) {
                let theirs = &all["groups"][by.name(&e)];
                let grouped = pool.groups(by).groups;
                assert_eq!(Some(grouped.len() as u64), theirs["groups"].as_u64());
                for group in grouped {
                    let theirs = &theirs["each"][&group.name][name];
                    close(&group.name, pool.of_group(metric, &group), theirs);
                }
            }
        }
        for metric in [Metric::MaeDifference, Metric::WorstGroupMae] {
            for by in By::every(2) {
                let theirs = &all["groups"][by.name(&e)][metric.as_str()];
                close(metric.as_str(), pool.between(metric, by), theirs);
            }
        }
    }

    #[test]
    fn figures_of_classes_are_undefined_and_the_other_way_round() {
        let e = settings_of(Noise::None);
        let numbers = pool(&e, &counts(&e, 1));
        let mut classes = Pool::new(&e, 2);
        let mut tally = Tally::new(e.layout(2));
        (0..200).for_each(|i| tally.record(i % 2, i % 2, &[0.4, 0.6]));
        classes.add(&tally.into_counts()).expect("counts");
        for metric in Metric::ALL {
            let (found, of_classes) = match metric.kind() {
                Kind::Records => (numbers.overall(metric), classes.overall(metric)),
                Kind::Groups => {
                    let by = By::attribute(0);
                    (numbers.between(metric, by), classes.between(metric, by))
                }
                Kind::Perturbation | Kind::Column => continue,
            };
            let both = metric == Metric::Records;
            assert_eq!(found.is_ok(), both || metric.is_of_numbers(), "{metric:?}: {found:?}");
            let undefined = of_classes == Err(Missing::Undefined);
            assert!(!metric.is_of_numbers() || undefined, "{metric:?}: {of_classes:?}");
        }
        // Nothing that a model could say explains labels that are all the same.
        let mut same = Tally::new(e.layout(target()));
        (0..200).for_each(|_| same.number(0, 0.5, 0.75));
        let same = pool(&e, &[same.into_counts()]);
        assert_eq!(same.overall(Metric::R2), Err(Missing::Undefined));
        let mae = same.overall(Metric::Mae).expect("a figure").value;
        assert!((mae - 321.0 / 4.0).abs() < 1e-9, "{mae}");
    }

    fn figures(pool: &Pool<'_>) -> [Found<Estimate>; 5] {
        [
            pool.overall(Metric::Mae),
            pool.overall(Metric::Rmse),
            pool.overall(Metric::R2),
            pool.between(Metric::MaeDifference, By::attribute(0)),
            pool.between(Metric::WorstGroupMae, By::attribute(0)),
        ]
    }

    /// In at least 94 % of seeded runs, for the noise alone and with the spread of sampling.
    fn cover(noise: Noise, sites: usize) {
        let (exact, noised) = (settings_of(Noise::None), settings_of(noise));
        let mut counts = counts(&exact, sites);
        counts.iter_mut().flatten().for_each(|c| *c *= TIMES);
        let truth = figures(&pool(&exact, &counts)).map(|f| f.expect("a figure").value);
        let mut covered = [[0; 5]; 2];
        for run in 0..RUNS.0 {
            let mut rng = ChaCha20Rng::seed_from_u64(run);
            let mut with_noise = counts.clone();
            for (_, range, scale) in noised.layout(target()).scales() {
                for site in &mut with_noise {
                    site[range.clone()].iter_mut().for_each(|c| *c += draw(&mut rng, scale));
                }
            }
            let both = pool(&noised, &with_noise);
            let alone = both.clone().of_these_records();
            for (pool, covered) in [both, alone].iter().zip(&mut covered) {
                for ((found, truth), hits) in figures(pool).into_iter().zip(truth).zip(covered) {
                    let found = found.expect("a figure");
                    *hits += usize::from(found.low <= truth && truth <= found.high);
                }
            }
        }
        println!("of {} runs with {noise:?} at {sites} sites: {covered:?}", RUNS.0);
        assert!(covered.iter().flatten().all(|c| *c >= RUNS.1), "{noise:?}, {sites}: {covered:?}");
    }

    #[test]
    fn intervals_cover_the_pooled_value_with_laplace_noise() {
        cover(Noise::Laplace { epsilon: 0.5 }, 3);
        cover(Noise::Laplace { epsilon: 0.5 }, 1);
    }

    #[test]
    fn intervals_cover_the_pooled_value_with_gaussian_noise() {
        cover(Noise::Gaussian { rho: 0.1 }, 5);
    }

    /// Of another sample: rows drawn again from the reference's, without noise.
    #[test]
    fn intervals_cover_what_the_records_are_a_sample_of() {
        use rand_core::RngCore as _;
        let e = settings_of(Noise::None);
        let all = reference();
        let column = |name: &str| -> Vec<f64> {
            let place = |v: &Value| v.as_f64().expect("a number") / 2_f64.powi(30);
            all[name].as_array().expect("a list").iter().map(place).collect()
        };
        let (labels, said) = (column("labels"), column("said"));
        let truth = ["mae", "rmse", "r2"].map(|m| all["figures"][m].as_f64().expect("a number"));
        let mut covered = [0; 3];
        for run in 0..RUNS.0 {
            let mut rng = ChaCha20Rng::seed_from_u64(run);
            let mut tally = Tally::new(e.layout(target()));
            for _ in 0..400 {
                let row = rng.next_u32() as usize % labels.len();
                tally.number(0, labels[row], said[row]);
            }
            let pool = pool(&e, &[tally.into_counts()]);
            let found = [Metric::Mae, Metric::Rmse, Metric::R2].map(|m| pool.overall(m));
            for ((found, truth), hits) in found.into_iter().zip(truth).zip(&mut covered) {
                let found = found.expect("a figure");
                *hits += usize::from(found.low <= truth && truth <= found.high);
            }
        }
        assert!(covered.iter().all(|c| *c >= RUNS.1), "{covered:?} of {}", RUNS.0);
    }

    #[test]
    fn what_cannot_be_told_from_noise_is_missing() {
        let e = settings_of(Noise::Laplace { epsilon: 0.01 });
        let pool = pool(&e, &counts(&settings_of(Noise::None), 1));
        for metric in [Metric::Mae, Metric::Rmse, Metric::R2] {
            assert!(matches!(pool.overall(metric), Err(Missing::TooFew(_))), "{metric:?}");
        }
        assert_eq!(Pool::new(&e, target()).overall(Metric::Mae), Err(Missing::Nothing));
    }
}
