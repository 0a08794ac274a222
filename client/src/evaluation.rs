//! What a site counts about a candidate over the records that it holds out, and the noise on it.

use crate::{
    data::{Batch, place},
    evaluate::place_said,
    local::Held,
    noise::NoiseSource,
    perturb,
    train::{Chance, TrainError, Trainer},
};
use falaj_core::{
    dp::{Noise, NoiseError},
    evaluation::{
        Evaluation,
        cells::{Layout, RECORDS_MAX, Scale, Tally},
    },
    model::ModelSpec,
};

/// A model to be evaluated.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    /// What runs it.
    pub trainer: &'a dyn Trainer,
    /// Its shape.
    pub model: &'a ModelSpec,
    /// Its parameters.
    pub params: &'a [f32],
}

/// Counts over the held-out records, before noise: they must not leave the site so.
///
/// # Errors
/// [`TrainError`] when the model cannot be run.
pub fn count(
    held: &Held,
    (e, layout): (&Evaluation, &Layout),
    candidate: Candidate<'_>,
    chance: &mut Chance,
) -> Result<Vec<i64>, TrainError> {
    let records = held.records.batch();
    if records.rows() > RECORDS_MAX {
        let what = format!("more than {RECORDS_MAX} records are held out: hold out fewer");
        return Err(TrainError::Library(what));
    }
    let mut tally = Tally::new(layout.clone());
    let mut before = Vec::with_capacity(records.rows());
    if layout.is_number() {
        let Candidate { trainer, model, params } = candidate;
        let outputs = trainer.logits(records, model, params)?;
        for (row, said) in outputs.iter().enumerate() {
            let (group, label) = (held.told.groups[row], place(records.labels[row]));
            tally.number(group, label, place_said(said[0]));
            for (column, values) in held.told.watched.iter().enumerate() {
                tally.watched(column, values[row]);
            }
        }
        return Ok(tally.into_counts());
    }
    for (row, p) in probabilities(records, candidate)?.iter().enumerate() {
        let class = records.labels[row] as usize;
        tally.record(held.told.groups[row], class, p);
        for (column, values) in held.told.watched.iter().enumerate() {
            tally.watched(column, values[row]);
        }
        before.push(layout.said(p) == class);
    }
    for (number, perturbation) in e.perturbations.iter().enumerate() {
        let Candidate { trainer, model, params } = candidate;
        let made = perturb::perturbed(records, *perturbation, (trainer, model, params), chance)?;
        for (row, p) in probabilities(&made, candidate)?.iter().enumerate() {
            let after = layout.said(p) == made.labels[row] as usize;
            tally.perturbed(number, before[row], after);
        }
    }
    Ok(tally.into_counts())
}

/// Each row's probability of each class.
fn probabilities(
    records: &Batch,
    Candidate { trainer, model, params }: Candidate<'_>,
) -> Result<Vec<Vec<f64>>, TrainError> {
    if records.rows() == 0 {
        return Ok(Vec::new());
    }
    let logits = trainer.logits(records, model, params)?;
    Ok(logits.iter().map(|row| softmax(row)).collect())
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut out: Vec<f64> = logits.iter().map(|l| f64::from(l - most).exp()).collect();
    let sum: f64 = out.iter().sum();
    out.iter_mut().for_each(|p| *p /= sum);
    out
}

/// Puts the study's noise on counts, which makes them fit to leave.
///
/// # Errors
/// [`NoiseError`]; the counts must not be used then.
pub fn with_noise(
    mut counts: Vec<i64>,
    layout: &Layout,
    laplace: &mut dyn NoiseSource,
    gaussian: &mut dyn Noise,
) -> Result<Vec<i64>, NoiseError> {
    for (_, range, scale) in layout.scales() {
        match scale {
            Scale::Laplace(scale) => laplace.laplace(&mut counts[range], scale)?,
            Scale::Gaussian(sigma) => gaussian.add(&mut counts[range], sigma)?,
            Scale::Exact => {}
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data::Told, guard::LocalBatch, noise::OpenDp, train::linear::Linear};
    use falaj_core::evaluation::{
        HeldOut, Noise as Declared, Perturbation, Target,
        figures::{Metric, Pool},
    };

    /// Evaluations whose noise is looked at.
    const DRAWS: u32 = 400;

    fn settings(noise: Declared) -> Evaluation {
        Evaluation {
            held_out: HeldOut::Part(0.5),
            every: 1,
            noise,
            bins: 50,
            calibration_bins: 10,
            threshold: 0.5,
            attributes: Vec::new(),
            group_min: 10,
            confidence: 0.95,
            perturbations: vec![Perturbation::Fgsm { epsilon: 0.2 }],
            drift: Vec::new(),
        }
    }

    /// A model that says the second class where the first of two inputs is positive, and records of which it is right about
    /// nine in ten; and which part of them is right, and so near to the edge that the attack reaches over it.
    fn counted(noise: Declared) -> (Evaluation, Vec<i64>, f64) {
        let model = ModelSpec::Logistic { features: 2, classes: 2 };
        let params = [-2.0, 0.0, 2.0, 0.0, 0.0, 0.0];
        let mut chance = Chance::insecure(b"held out");
        #[expect(clippy::cast_possible_truncation, reason = "test data")]
        let features: Vec<f32> = (0..4_000).map(|_| (chance.unit() * 2.0 - 1.0) as f32).collect();
        let near = |(i, x): (usize, &[f32])| i % 10 != 0 && x[0].abs() < 0.2;
        let reached = features.chunks(2).enumerate().filter(|row| near(*row)).count();
        let labels = features.chunks(2).enumerate();
        let labels = labels.map(|(i, x)| u32::from((x[0] > 0.0) != (i % 10 == 0))).collect();
        let records = LocalBatch::for_this_site_only(Batch { features, labels, width: 2 });
        let told = Told { groups: vec![0; 2_000], watched: Vec::new() };
        let held = Held { records, told };
        let e = settings(noise);
        let candidate = Candidate { trainer: &Linear, model: &model, params: &params };
        let counts = count(&held, (&e, &e.layout(2)), candidate, &mut chance).expect("counted");
        #[expect(clippy::cast_precision_loss, reason = "test data")]
        let reached = reached as f64 / 2_000.0;
        (e, counts, reached)
    }

    #[test]
    fn counts_without_noise_give_the_accuracy_and_what_an_attack_costs() {
        let (e, counts, reached) = counted(Declared::None);
        let mut pool = Pool::new(&e, 2);
        pool.add(&counts).expect("counts");
        let accuracy = pool.overall(Metric::Accuracy).expect("a figure").value;
        assert!((accuracy - 0.9).abs() < 1e-12, "{accuracy}");
        // What was wrong is pushed further from its class, and stays wrong.
        let drop = pool.drop_under(0).expect("a figure").value;
        assert!((drop - reached).abs() < 1e-9, "{drop} {reached}");
    }

    #[test]
    fn opendps_noise_has_the_variance_that_the_intervals_count_with() {
        for noise in [Declared::Laplace { epsilon: 0.5 }, Declared::Gaussian { rho: 0.01 }] {
            let e = settings(noise);
            let layout = e.layout(2);
            let mut squares = vec![0.0; layout.scales().len()];
            for _ in 0..DRAWS {
                let zeros = vec![0; layout.cells()];
                let noised = with_noise(zeros, &layout, &mut OpenDp, &mut OpenDp).expect("noised");
                for (sum, (_, range, _)) in squares.iter_mut().zip(layout.scales()) {
                    #[expect(clippy::cast_precision_loss, reason = "compared")]
                    let of_block: f64 = noised[range].iter().map(|n| (*n as f64).powi(2)).sum();
                    *sum += of_block;
                }
                assert_eq!(layout.check(&noised), Ok(()));
            }
            for (sum, (block, range, scale)) in squares.iter().zip(layout.scales()) {
                let draws = DRAWS * u32::try_from(range.len()).expect("a few cells");
                // The mean square of so many Laplace draws is within a ninth of the variance in two cases of three.
                let part = sum / f64::from(draws) / scale.variance();
                assert!((0.5..2.0).contains(&part), "{noise:?} {block:?}: {part}");
            }
        }
    }

    #[test]
    fn a_number_is_counted_by_how_far_off_it_is_and_cut_at_its_bounds() {
        let target = Target::Number { width: 100.0 };
        let mut e = settings(Declared::None);
        e.perturbations.clear();
        // It says the input, and the third record's is beyond the bounds.
        let model = ModelSpec::Logistic { features: 1, classes: 1 };
        let features = vec![-1.0, 0.0, 3.0, 0.5];
        let labels = vec![0, u32::MAX, u32::MAX, 0];
        let records = LocalBatch::for_this_site_only(Batch { features, labels, width: 1 });
        let told = Told { groups: vec![0; 4], watched: Vec::new() };
        let held = Held { records, told };
        let candidate = Candidate { trainer: &Linear, model: &model, params: &[1.0, 0.0] };
        let mut chance = Chance::insecure(b"numbers");
        let how = (&e, &e.layout(target));
        let counts = count(&held, how, candidate, &mut chance).expect("counted");
        let mut pool = Pool::new(&e, target);
        pool.add(&counts).expect("counts");
        // Off by 0, 50, 0 and 75 of 100.
        let mae = pool.overall(Metric::Mae).expect("a figure").value;
        assert!((mae - 31.25).abs() < 1e-6, "{mae}");
    }
}
