//! Figures against independent implementations on the pooled rows, and intervals against seeded noise.
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "test data")]

use super::*;
use crate::evaluation::{
    Attribute, Groups, Noise, Perturbation,
    cells::{LOSS_BITS, RECORDS_MAX, Tally, tests::settings},
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use serde_json::Value;

/// Runs of each coverage test.
const RUNS: u64 = 500;
/// A nominal 95 % interval must cover at least so many of them: 94 %. Also that for the noise alone, whose value is the pooled one.
const COVERED: usize = 470;
/// How often each of the reference's rows is there, so that a study's usual noise is less than its figures.
const TIMES: i64 = 40;

fn reference() -> Value {
    serde_json::from_str(include_str!("../../../testdata/evaluation.json")).expect("JSON")
}

fn number(v: &Value) -> f64 {
    v.as_f64().expect("a number")
}

fn list(v: &Value) -> &Vec<Value> {
    v.as_array().expect("a list")
}

/// The settings of the reference's study of two classes.
fn two_classes(noise: Noise) -> Evaluation {
    let sex = Groups::Values(vec!["1".into(), "2".into()]);
    Evaluation {
        noise,
        bins: 100,
        calibration_bins: 10,
        group_min: 60,
        attributes: vec![
            Attribute { column: "SEX".into(), groups: sex },
            Attribute { column: "AGE".into(), groups: Groups::Bands(vec![30.0, 50.0]) },
        ],
        perturbations: Vec::new(),
        ..settings()
    }
}

/// The reference's rows as `sites` sites count them.
fn two_class_counts(e: &Evaluation, sites: usize) -> Vec<Vec<i64>> {
    let reference = reference();
    let rows = &reference["binary"];
    let mut tallies = vec![Tally::new(e.layout(2)); sites];
    let columns = ["units", "labels", "sex", "age"].map(|c| list(&rows[c]));
    for (i, units) in columns[0].iter().enumerate() {
        let p = number(units) / 2_f64.powi(30);
        let class = columns[1][i].as_u64().expect("a class") as usize;
        let sex = e.attributes[0].group_of(columns[2][i].as_str().expect("text"));
        let age = e.attributes[1].group_of(&columns[3][i].to_string());
        let group = sex * e.attributes[1].len() + age;
        tallies[i % sites].record(group, class, &[1.0 - p, p]);
    }
    tallies.into_iter().map(Tally::into_counts).collect()
}

fn four_class_counts(e: &Evaluation, sites: usize) -> Vec<Vec<i64>> {
    let reference = reference();
    let rows = &reference["several"];
    let mut tallies = vec![Tally::new(e.layout(4)); sites];
    let labels = list(&rows["labels"]);
    for (i, units) in list(&rows["units"]).iter().enumerate() {
        let units: Vec<f64> = list(units).iter().map(number).collect();
        let whole: f64 = units.iter().sum();
        let p: Vec<f64> = units.iter().map(|u| u / whole).collect();
        tallies[i % sites].record(0, labels[i].as_u64().expect("a class") as usize, &p);
    }
    tallies.into_iter().map(Tally::into_counts).collect()
}

fn four_classes(noise: Noise) -> Evaluation {
    Evaluation { attributes: Vec::new(), ..two_classes(noise) }
}

fn pool<'a>(e: &'a Evaluation, classes: u32, counts: &[Vec<i64>]) -> Pool<'a> {
    let mut pool = Pool::new(e, classes);
    for c in counts {
        pool.add(c).expect("counts of a site");
    }
    pool
}

/// The metrics of a kind that a model of so many classes has.
fn of_classes(kind: Kind, classes: u32) -> impl Iterator<Item = Metric> {
    let target = Target::Classes(classes);
    Metric::ALL.into_iter().filter(move |m| m.kind() == kind && m.is_for(target))
}

fn close(what: &str, ours: f64, theirs: f64) {
    assert!((ours - theirs).abs() < 1e-9, "{what}: {ours}, the reference {theirs}");
}

#[test]
fn sites_that_say_as_much_as_they_may_do_not_make_the_sum_unreadable() {
    let e = two_classes(Noise::None);
    let layout = e.layout(2);
    let (mut counts, most) = (vec![0; layout.cells()], i64::try_from(RECORDS_MAX).expect("small"));
    counts[0] = most;
    counts[layout.range(Block::LogLoss).start] = (14 * most) << LOSS_BITS;
    let pool = pool(&e, 2, &vec![counts; 9]);
    // Nine such sums of losses are beyond 63 bits.
    assert_eq!(pool.records(), 9 * most);
    close("log loss", pool.overall(Metric::LogLoss).expect("a figure").value, 14.0);
}

#[test]
fn figures_of_two_classes_are_scikit_learns_and_fairlearns_to_1e_9() {
    let e = two_classes(Noise::None);
    let pool = pool(&e, 2, &two_class_counts(&e, 5));
    let reference = reference();
    let figures = reference["binary"]["figures"].as_object().expect("figures");
    assert!(figures.len() >= 12);
    for (name, theirs) in figures {
        let metric = Metric::find(name).expect("a metric");
        close(name, pool.overall(metric).expect("a figure").value, number(theirs));
    }
    for by in By::every(2) {
        let name = by.name(&e);
        let theirs = &reference["binary"]["groups"][&name];
        assert_eq!(Some(pool.groups(by).groups.len() as u64), theirs["groups"].as_u64(), "{name}");
        for metric in of_classes(Kind::Groups, 2) {
            let what = format!("{} by {name}", metric.as_str());
            let ours = pool.between(metric, by).unwrap_or_else(|why| panic!("{what}: {why}"));
            close(&what, ours.value, number(&theirs[metric.as_str()]));
            assert!(ours.low <= ours.value && ours.value <= ours.high, "{what}: {ours:?}");
        }
    }
}

#[test]
fn records_are_as_many_as_were_counted_and_an_interval_is_that_of_the_noise() {
    let (exact, noised) = (two_classes(Noise::None), two_classes(Noise::Laplace { epsilon: 0.5 }));
    let mut counts = two_class_counts(&exact, 5);
    counts.iter_mut().flatten().for_each(|c| *c *= TIMES);
    let (without, with) = (pool(&exact, 2, &counts), pool(&noised, 2, &counts));
    let all = without.overall(Metric::Records).expect("a figure");
    let value = without.records() as f64;
    assert_eq!(all, Estimate { value, low: value, high: value });
    let of = |pool: &Pool<'_>| -> Vec<Estimate> {
        let groups = pool.groups(By::attribute(0)).groups;
        groups.iter().map(|g| pool.of_group(Metric::Records, g).expect("a figure")).collect()
    };
    close("groups", of(&without).iter().map(|e| e.value).sum(), value);
    for e in of(&with) {
        assert!(e.low < e.value && e.value < e.high && e.high < 1.5 * e.value, "{e:?}");
    }
}

#[test]
fn figures_of_four_classes_are_scikit_learns_to_1e_9() {
    let e = four_classes(Noise::None);
    let pool = pool(&e, 4, &four_class_counts(&e, 3));
    let reference = reference();
    let figures = reference["several"]["figures"].as_object().expect("figures");
    assert!(figures.len() >= 11);
    for (name, theirs) in figures {
        let metric = Metric::find(name).expect("a metric");
        close(name, pool.overall(metric).expect("a figure").value, number(theirs));
    }
    assert_eq!(pool.overall(Metric::Specificity), Err(Missing::Undefined));
}

/// A seeded draw of the noise on one cell, by inversion: good enough to test with, and nothing else.
pub(super) fn draw(rng: &mut ChaCha20Rng, scale: Scale) -> i64 {
    let unit = |rng: &mut ChaCha20Rng| ((rng.next_u64() >> 11) as f64 + 0.5) / 2_f64.powi(53);
    match scale {
        // The difference of two geometric draws.
        Scale::Laplace(b) => {
            let mut one = || (unit(rng).ln() / (-1.0 / b)).floor() as i64;
            one() - one()
        }
        Scale::Gaussian(sigma) => {
            let (u, v) = (unit(rng), unit(rng));
            (sigma * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()).round() as i64
        }
        Scale::Exact => 0,
    }
}

/// Figures of a pool by their names.
type Figures = Vec<(String, Result<Estimate, Missing>)>;

/// Those of all records, between groups and, of two classes, of each group.
fn every_figure(pool: &Pool<'_>, classes: u32) -> Figures {
    // Groups that are compared may change with the noise where one is about as large as the least; SEX has none.
    let sex = By::attribute(0);
    let records = of_classes(Kind::Records, classes);
    let mut all: Figures = records.map(|m| (m.as_str().to_owned(), pool.overall(m))).collect();
    for metric in of_classes(Kind::Groups, classes) {
        all.push((format!("{} by SEX", metric.as_str()), pool.between(metric, sex)));
    }
    let groups = if classes == 2 { pool.groups(sex).groups } else { Vec::new() };
    for (metric, group) in
        groups.iter().flat_map(|g| of_classes(Kind::Records, classes).map(move |m| (m, g)))
    {
        let name = format!("{} of {}", metric.as_str(), group.name);
        all.push((name, pool.of_group(metric, group)));
    }
    all
}

/// In how many seeded runs each figure's interval covers the value of the counts without noise, for the noise alone and with
/// the spread of sampling.
fn covered(
    (exact, noised, classes): (&Evaluation, &Evaluation, u32),
    counts: &[Vec<i64>],
    figures: &dyn Fn(&Pool<'_>) -> Figures,
) -> Vec<(String, [usize; 2])> {
    let truth = figures(&pool(exact, classes, counts));
    let known = truth.into_iter().filter_map(|(name, found)| Some((name, found.ok()?.value)));
    let wanted: Vec<(String, f64)> = known.collect();
    let mut hits = vec![[0, 0]; wanted.len()];
    let layout = noised.layout(classes);
    for run in 0..RUNS {
        let mut rng = ChaCha20Rng::seed_from_u64(run);
        let mut with_noise = counts.to_vec();
        for (_, range, scale) in layout.scales() {
            for site in &mut with_noise {
                site[range.clone()].iter_mut().for_each(|c| *c += draw(&mut rng, scale));
            }
        }
        let both = pool(noised, classes, &with_noise);
        let alone = both.clone().of_these_records();
        for (which, pool) in [both, alone].iter().enumerate() {
            let mut found = figures(pool).into_iter();
            for ((name, truth), hits) in wanted.iter().zip(&mut hits) {
                let found = found.find(|(n, _)| n == name).map(|(_, found)| found);
                let found = found.unwrap_or_else(|| panic!("run {run}: {name} is not there"));
                let found = found.unwrap_or_else(|why| panic!("run {run}: {name}: {why}"));
                hits[which] += usize::from(found.low <= *truth && *truth <= found.high);
            }
        }
    }
    wanted.into_iter().map(|(name, _)| name).zip(hits).collect()
}

/// All of at least so many figures do in at least 94 % of the runs, each for itself; whatever does not is named, with how often it does.
fn all_cover(what: &str, least: usize, hits: &[(String, [usize; 2])]) {
    assert!(hits.len() >= least, "{what}: {hits:?}");
    println!("of {RUNS} runs {what}: {hits:?}");
    let few: Vec<String> = hits
        .iter()
        .filter(|(_, hits)| hits.iter().any(|hits| *hits < COVERED))
        .map(|(name, [both, alone])| {
            format!("{name}: {both} with the spread of sampling, {alone} for the noise alone")
        })
        .collect();
    assert!(few.is_empty(), "of {RUNS} runs {what}, at least {COVERED} needed: {few:#?}");
}

fn figures_cover(noise: Noise, classes: u32, sites: usize) {
    let settings = |noise| if classes == 2 { two_classes(noise) } else { four_classes(noise) };
    let (exact, noised) = (settings(Noise::None), settings(noise));
    let mut counts = if classes == 2 {
        two_class_counts(&exact, sites)
    } else {
        four_class_counts(&exact, sites)
    };
    counts.iter_mut().flatten().for_each(|c| *c *= TIMES);
    let figures = |pool: &Pool<'_>| every_figure(pool, classes);
    let hits = covered((&exact, &noised, classes), &counts, &figures);
    // Of two classes: 14 of all records and of each of three groups, and ten between them.
    let least = if classes == 2 { 66 } else { 12 };
    all_cover(&format!("with {noise:?} at {sites} sites"), least, &hits);
}

#[test]
fn intervals_cover_the_pooled_value_with_laplace_noise() {
    figures_cover(Noise::Laplace { epsilon: 0.5 }, 2, 3);
}

#[test]
fn intervals_cover_the_pooled_value_with_laplace_noise_at_one_site() {
    figures_cover(Noise::Laplace { epsilon: 0.5 }, 2, 1);
}

#[test]
fn intervals_cover_the_pooled_value_with_gaussian_noise() {
    figures_cover(Noise::Gaussian { rho: 0.1 }, 2, 5);
}

#[test]
fn intervals_of_four_classes_cover_the_pooled_value() {
    figures_cover(Noise::Gaussian { rho: 0.02 }, 4, 3);
}

#[test]
fn where_60_of_60_were_right_the_lower_end_is_0_93() {
    let e = Evaluation { bins: 2, calibration_bins: 2, ..four_classes(Noise::None) };
    let mut tally = Tally::new(e.layout(2));
    for row in 0..60 {
        let class = row % 2;
        let said = if class == 0 { [0.9, 0.1] } else { [0.1, 0.9] };
        tally.record(0, class, &said);
    }
    let pool = pool(&e, 2, &[tally.into_counts()]);
    let accuracy = pool.overall(Metric::Accuracy).expect("a figure");
    assert_eq!((accuracy.value, format!("{:.2}", accuracy.low)), (1.0, "0.93".to_owned()));
}

/// Models that are sure of themselves, and wrong: what a score's bin says of a loss is little there.
#[test]
fn intervals_of_losses_cover_what_the_records_are_a_sample_of() {
    // How many of a hundred are wrong, with which probability of the true class; and with which the others are right.
    for (wrong, sure, right) in
        [(11, 1e-9, 0.999), (20, 1e-3, 0.9), (30, 0.02, 0.98), (3, 0.3, 0.6)]
    {
        for (classes, bins) in [(2, 2), (2, 50), (4, 50)] {
            let e = Evaluation {
                bins,
                calibration_bins: 2,
                attributes: vec![two_classes(Noise::None).attributes[0].clone()],
                group_min: 1,
                ..four_classes(Noise::None)
            };
            let kept = |row: u32| if row < wrong { sure } else { right };
            let said = |row: u32, class: usize| -> Vec<f64> {
                let rest = (1.0 - kept(row)) / f64::from(classes - 1);
                (0..classes as usize).map(|c| if c == class { kept(row) } else { rest }).collect()
            };
            let mean =
                |loss: &dyn Fn(f64) -> f64| (0..100).map(|r| loss(kept(r))).sum::<f64>() / 100.0;
            let others = f64::from(classes - 1);
            let brier =
                |p: f64| (1.0 - p).powi(2) * if classes == 2 { 1.0 } else { 1.0 + 1.0 / others };
            let truth = [mean(&|p| (-p.ln()).min(14.0)), mean(&brier)];
            let mut covered = [[0; 2]; 2];
            for run in 0..RUNS {
                let mut rng = ChaCha20Rng::seed_from_u64(run);
                let mut tally = Tally::new(e.layout(classes));
                for _ in 0..1_000 {
                    let (row, class) = (rng.next_u32() % 100, rng.next_u32() % classes);
                    tally.record(
                        rng.next_u32() as usize % 2,
                        class as usize,
                        &said(row, class as usize),
                    );
                }
                let pool = pool(&e, classes, &[tally.into_counts()]);
                let group = &pool.groups(By::attribute(0)).groups[0];
                for (which, metric) in [Metric::LogLoss, Metric::Brier].into_iter().enumerate() {
                    let found = [pool.overall(metric), pool.of_group(metric, group)];
                    for (hits, found) in covered[which].iter_mut().zip(found) {
                        let found = found.expect("a figure");
                        *hits +=
                            usize::from(found.low <= truth[which] && truth[which] <= found.high);
                    }
                }
            }
            let few = covered.iter().flatten().any(|hits| *hits < COVERED);
            assert!(!few, "{wrong} wrong at {sure}, {classes} classes, {bins} bins: {covered:?}");
        }
    }
}

/// Perturbations that cost much, little, nothing, and less than nothing.
#[test]
fn intervals_of_what_a_perturbation_costs_cover_the_pooled_value() {
    for (noise, sites) in [
        (Noise::Laplace { epsilon: 0.5 }, 3),
        (Noise::Laplace { epsilon: 0.5 }, 1),
        (Noise::Gaussian { rho: 0.1 }, 5),
    ] {
        let settings = |noise| Evaluation {
            attributes: Vec::new(),
            perturbations: [0.4, 0.3, 0.2, 0.1].map(|rate| Perturbation::Salt { rate }).to_vec(),
            ..two_classes(noise)
        };
        let (exact, noised) = (settings(Noise::None), settings(noise));
        let mut tallies = vec![Tally::new(exact.layout(2)); sites];
        for i in 0..4_000 {
            let (right, tally) = (i % 10 != 0, &mut tallies[i % sites]);
            tally.record(0, 1, if right { &[0.2, 0.8] } else { &[0.8, 0.2] });
            let after = [i % 20 >= 12, i % 20 != 3 && right, right, right || i % 20 == 0];
            for (number, after) in after.into_iter().enumerate() {
                tally.perturbed(number, right, after);
            }
        }
        let counts: Vec<Vec<i64>> = tallies.into_iter().map(Tally::into_counts).collect();
        let figures = |pool: &Pool<'_>| -> Figures {
            let one = |number| (format!("accuracy_drop {number}"), pool.drop_under(number));
            (0..4).map(one).collect()
        };
        let hits = covered((&exact, &noised, 2), &counts, &figures);
        all_cover(&format!("with {noise:?} at {sites} sites"), 4, &hits);
    }
}

#[test]
fn what_cannot_be_told_from_noise_is_missing_and_never_guessed() {
    let e = two_classes(Noise::Laplace { epsilon: 0.01 });
    let exact = two_class_counts(&two_classes(Noise::None), 1);
    let pool = pool(&e, 2, &exact);
    assert!(matches!(pool.overall(Metric::RocAuc), Err(Missing::TooFew(_))));
    assert!(matches!(pool.overall(Metric::LogLoss), Err(Missing::TooFew(_))));
    assert_eq!(Pool::new(&e, 2).overall(Metric::Accuracy), Err(Missing::Nothing));
    assert_eq!(
        Pool::new(&e, 2).between(Metric::WorstGroupRecall, By::BOTH),
        Err(Missing::Groups(60))
    );
}

#[test]
fn small_groups_are_merged_if_they_are_enough_together_and_withheld_otherwise() {
    let all = |least| {
        let e = Evaluation { group_min: least, ..two_classes(Noise::None) };
        let counts = two_class_counts(&e, 2);
        let grouped = pool(&e, 2, &counts).groups(By::BOTH);
        let names: Vec<String> = grouped.groups.into_iter().map(|g| g.name).collect();
        (names, grouped.merged, (grouped.withheld, grouped.small))
    };
    let (groups, merged, withheld) = all(60);
    assert_eq!(groups.last().map(String::as_str), Some("smaller groups"));
    assert!(merged.contains(&"SEX=other, AGE<30".to_owned()), "{merged:?}");
    assert!(withheld.0.is_empty() && withheld.1.is_empty(), "{withheld:?}");
    // Those that are left out are *other* by one attribute or both, of which nobody is asked.
    let (groups, merged, (withheld, small)) = all(110);
    assert!(
        merged.is_empty() && withheld.len() == 6 && groups.len() == 6 && small.is_empty(),
        "{groups:?} {withheld:?} {small:?}"
    );
    // 136 and 172 are below 30, and with the others they are enough to be one group.
    let (groups, merged, (withheld, small)) = all(200);
    assert!(
        groups.len() == 5 && withheld.is_empty() && small.is_empty(),
        "{groups:?} {withheld:?}"
    );
    assert!(merged.contains(&"SEX=1, AGE<30".to_owned()), "{merged:?}");
    // A declared one that is too small alone is told from those.
    let e = Evaluation { group_min: 330, ..two_classes(Noise::None) };
    let counts = two_class_counts(&e, 2);
    let grouped = pool(&e, 2, &counts).groups(By::attribute(1));
    assert_eq!(grouped.withheld, ["AGE<30", "AGE=other"]);
    assert!(grouped.small == ["AGE<30"] && grouped.groups.len() == 2, "{grouped:?}");
}

#[test]
fn a_perturbations_drop_is_that_of_the_accuracies() {
    let e = Evaluation {
        noise: Noise::None,
        perturbations: vec![Perturbation::Shift { by: 0.1 }, Perturbation::Salt { rate: 0.1 }],
        ..settings()
    };
    let mut tally = Tally::new(e.layout(2));
    for i in 0..100 {
        // Right before: 80; after: 70, of which 5 were wrong before.
        tally.record(0, 1, if i < 80 { &[0.1, 0.9] } else { &[0.9, 0.1] });
        tally.perturbed(0, i < 80, !(65..95).contains(&i));
    }
    let pool = pool(&e, 2, &[tally.into_counts()]);
    let drop = pool.drop_under(0).expect("a figure");
    close("the drop", drop.value, 0.10);
    // Twenty records changed: a standard deviation of √20 of a hundred.
    assert!(
        (drop.high - drop.low - 2.0 * 1.959_964 * 0.2_f64.sqrt() / 10.0 * 1.0).abs() < 0.02,
        "{drop:?}"
    );
    close("no change", pool.drop_under(1).expect("a figure").value, 0.0);
    assert_eq!(pool.drop_under(2), Err(Missing::Undefined));
}

#[test]
fn normal_quantiles_are_the_tables() {
    for (tail, z) in [
        (0.025, 1.959_963_984_540_054),
        (0.001, 3.090_232_306_167_813),
        (0.25, 0.674_489_750_196_081_7),
    ] {
        assert!((normal_quantile(tail) - z).abs() < 1e-9, "{tail}");
    }
}
