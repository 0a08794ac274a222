//! Robust rules: what they promise whoever lies, and what others compute for the same updates.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "tests compare with a tolerance"
)]

use falaj_core::{
    aggregate::{Accumulator, AggregateError, params_from_bytes, params_to_bytes},
    dp::Rotation,
    gate::{Bound, Declared, Facts, Figure, Gate, OnFailure, When, judge},
    id::{Digest, SiteId},
    robust::{BlockRule, Compared, Outlier, Rule, RuleError, Shape, Standing, outliers},
    update::Encoding,
};
use proptest::prelude::*;
use serde_json::Value;

/// Updates in memory, as they would lie on disk.
struct Spool {
    shape: Shape,
    payloads: Vec<Vec<u8>>,
}

impl Spool {
    fn new(bits: u8, step: f64, updates: &[Vec<i32>]) -> Self {
        let encoding = Encoding::new(bits, step).expect("valid");
        let width = encoding.bytes_per_value();
        let payload = |values: &Vec<i32>| {
            values.iter().flat_map(|v| v.to_le_bytes()[..width].to_vec()).collect()
        };
        let shape = Shape { updates: updates.len(), params: updates[0].len(), encoding };
        Self { shape, payloads: updates.iter().map(payload).collect() }
    }

    #[expect(clippy::unnecessary_wraps, reason = "as rules read")]
    fn read(&self, update: usize, at: u64, into: &mut [u8]) -> Result<(), AggregateError> {
        let at = usize::try_from(at).expect("small");
        into.copy_from_slice(&self.payloads[update][at..at + into.len()]);
        Ok(())
    }

    fn rule(&self, rule: Rule) -> Result<BlockRule, AggregateError> {
        BlockRule::measure(rule, self.shape, |u, at, into: &mut [u8]| self.read(u, at, into))
    }

    /// A base of zeros moved by a rule, in blocks of so many parameters.
    fn moved(&self, rule: Rule, block: usize, rotation: Option<&Rotation>) -> Vec<f32> {
        let mut measured = self.rule(rule).expect("a rule for these");
        let mut model = params_to_bytes(&vec![0.0; self.shape.params]);
        for (i, part) in model.chunks_mut(4 * block).enumerate() {
            let read = |u, at, into: &mut [u8]| self.read(u, at, into);
            measured.move_base(i * block, part, 1.0, rotation, read).expect("a model");
        }
        params_from_bytes(&model).expect("whole parameters")
    }

    fn outliers(&self) -> Vec<Outlier> {
        outliers(self.shape, |u, at, into: &mut [u8]| self.read(u, at, into)).expect("some")
    }

    fn result(&self, rule: Rule) -> Vec<f32> {
        self.moved(rule, self.shape.params, None)
    }

    fn mean(&self) -> Vec<f32> {
        let mut sums = Accumulator::new(self.shape.params, self.shape.encoding);
        self.payloads.iter().for_each(|p| sums.fold(p, 1).expect("fits"));
        let mut model = params_to_bytes(&vec![0.0; self.shape.params]);
        sums.move_base(0, &mut model, 1.0, None).expect("a model");
        params_from_bytes(&model).expect("whole parameters")
    }
}

/// Every rule that takes as many updates, where `bad` of them may be.
fn rules(updates: usize, bad: u32) -> Vec<Rule> {
    let byzantine = bad.max(1);
    let all = [
        Rule::Mean,
        Rule::Median,
        Rule::TrimmedMean { byzantine },
        Rule::Krum { byzantine },
        Rule::MultiKrum { byzantine, keep: None },
        Rule::MultiKrum { byzantine, keep: Some(1) },
        Rule::GeometricMedian,
        Rule::NormBounded { clip_norm: None },
        Rule::NormBounded { clip_norm: Some(1e12) },
    ];
    all.into_iter().filter(|rule| rule.admits(updates as u64).is_ok()).collect()
}

const BITS: [u8; 6] = [8, 12, 16, 17, 24, 32];

fn grid() -> impl Strategy<Value = u8> {
    prop::sample::select(&BITS[..])
}

fn value(bits: u8) -> impl Strategy<Value = i32> {
    let max = i32::MAX >> (32 - bits);
    prop_oneof![8 => -max..=max, 1 => Just(max), 1 => Just(-max), 1 => Just(0)]
}

/// Updates whose values are anything on the grid: few for networks, or many for the search.
fn updates() -> impl Strategy<Value = (u8, Vec<Vec<i32>>)> {
    let sizes = (grid(), prop_oneof![3 => 1..16_usize, 1 => 60..90_usize], 1..40_usize);
    sizes.prop_flat_map(|(bits, n, d)| {
        let update = prop::collection::vec(value(bits), d);
        (Just(bits), prop::collection::vec(update, n))
    })
}

/// Good updates near a centre, and bad ones of any size, fewer than half: the good come first.
fn attacked() -> impl Strategy<Value = (u8, Vec<Vec<i32>>, usize)> {
    (grid(), 3..20_usize, 1..12_usize).prop_flat_map(|(bits, n, d)| {
        let bad = 1..=((n - 1) / 2);
        (Just((bits, n, d)), bad).prop_flat_map(|((bits, n, d), bad)| {
            let max = i32::MAX >> (32 - bits);
            let near = prop::collection::vec(-max / 8..=max / 8, d);
            let good = prop::collection::vec(near, n - bad);
            let far = prop::collection::vec(prop::collection::vec(value(bits), d), bad);
            (Just(bits), good, far).prop_map(move |(bits, mut all, far)| {
                all.extend(far);
                (bits, all, bad)
            })
        })
    })
}

/// Good updates around a centre, and bad ones, fewer than half, that say ten times the opposite: the bad come first.
fn turned() -> impl Strategy<Value = (u8, Vec<Vec<i32>>, usize)> {
    let bits = prop::sample::select(&BITS[2..]);
    (bits, 3..20_usize, 1..60_usize).prop_flat_map(|(bits, n, d)| {
        let side =
            (40..=300, any::<bool>()).prop_map(|(v, turn): (i32, bool)| if turn { -v } else { v });
        // In percent of the centre.
        let own = prop::collection::vec(prop::collection::vec(80..=120, d), n);
        let centre = prop::collection::vec(side, d);
        (Just(bits), centre, own, 1..=((n - 1) / 2)).prop_map(|(bits, centre, own, bad)| {
            let update = |(site, own): (usize, Vec<i32>)| -> Vec<i32> {
                let times = if site < bad { -10 } else { 1 };
                centre.iter().zip(own).map(|(c, percent)| times * c * percent / 100).collect()
            };
            (bits, own.into_iter().enumerate().map(update).collect(), bad)
        })
    })
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

fn wide(update: &[i32]) -> Vec<f64> {
    update.iter().copied().map(f64::from).collect()
}

fn real(model: &[f32]) -> Vec<f64> {
    model.iter().copied().map(f64::from).collect()
}

/// What is within rounding of what: as f32 round, and as weights of so many updates are cut.
fn close(found: &[f32], expected: &[f64], bits: u8, slack: f64) -> Result<(), String> {
    let largest = f64::from(i32::MAX >> (32 - bits));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let allowed = 1e-6 * expected.abs() + slack * largest + 1e-9;
        if (f64::from(*found) - expected).abs() > allowed {
            return Err(format!("coordinate {i} is {found}, not {expected}"));
        }
    }
    Ok(())
}

/// The rules in the plainest words: one update a row, all of it in memory, f64.
fn naive(rule: Rule, updates: &[Vec<f64>]) -> Vec<f64> {
    let n = updates.len();
    let columns = |of: &dyn Fn(Vec<f64>) -> f64| -> Vec<f64> {
        (0..updates[0].len()).map(|c| of(updates.iter().map(|u| u[c]).collect())).collect()
    };
    let mean_of = |kept: &[Vec<f64>]| -> Vec<f64> {
        let mean = |c: usize| kept.iter().map(|u| u[c]).sum::<f64>() / kept.len() as f64;
        (0..updates[0].len()).map(mean).collect()
    };
    let trimmed = |trim: usize| {
        columns(&move |mut column| {
            column.sort_by(f64::total_cmp);
            let kept = &column[trim..n - trim];
            kept.iter().sum::<f64>() / kept.len() as f64
        })
    };
    let krum = |byzantine: u32, keep: Option<u32>| {
        let neighbours = n - byzantine as usize - 2;
        let mut scored: Vec<(f64, f64, usize)> = (0..n)
            .map(|i| {
                let mut near: Vec<f64> = (0..n)
                    .filter(|j| *j != i)
                    .map(|j| distance(&updates[i], &updates[j]).powi(2))
                    .collect();
                near.sort_by(f64::total_cmp);
                let zeros = vec![0.0; updates[i].len()];
                (near[..neighbours].iter().sum(), distance(&updates[i], &zeros), i)
            })
            .collect();
        scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let keep = keep.map_or(neighbours, |k| k as usize);
        mean_of(&scored[..keep].iter().map(|s| updates[s.2].clone()).collect::<Vec<_>>())
    };
    match rule {
        Rule::Mean => mean_of(updates),
        Rule::Median => trimmed((n - 1) / 2),
        Rule::TrimmedMean { byzantine } => trimmed(byzantine as usize),
        Rule::Krum { byzantine } => krum(byzantine, Some(1)),
        Rule::MultiKrum { byzantine, keep } => krum(byzantine, keep),
        Rule::GeometricMedian => {
            // From whoever has the least sum of distances, sorted so that a tie is one: the mean of several such.
            let sum = |from: &Vec<f64>| -> f64 {
                let mut far: Vec<f64> = updates.iter().map(|u| distance(u, from)).collect();
                far.sort_by(f64::total_cmp);
                far.iter().map(|d| if *d > 1.0 { *d } else { f64::midpoint(d * d, 1.0) }).sum()
            };
            let sums: Vec<f64> = updates.iter().map(sum).collect();
            let least = sums.iter().copied().fold(f64::INFINITY, f64::min);
            let middle = updates.iter().zip(&sums).filter(|(_, sum)| **sum <= least);
            let mut at = mean_of(&middle.map(|(u, _)| u.clone()).collect::<Vec<_>>());
            for _ in 0..1_000 {
                let near = updates.iter().map(|u| 1.0 / distance(u, &at).max(1.0));
                let near: Vec<f64> = near.collect();
                let total: f64 = near.iter().sum();
                at = (0..at.len())
                    .map(|c| updates.iter().zip(&near).map(|(u, w)| u[c] * w).sum::<f64>() / total)
                    .collect();
            }
            at
        }
        Rule::NormBounded { clip_norm } => {
            let zeros = vec![0.0; updates[0].len()];
            let norms: Vec<f64> = updates.iter().map(|u| distance(u, &zeros)).collect();
            let mut sorted = norms.clone();
            sorted.sort_by(f64::total_cmp);
            let longest = clip_norm.unwrap_or(sorted[(n - 1) / 2]);
            let short = updates.iter().zip(&norms).map(|(u, norm)| {
                let share = if *norm > longest { longest / norm } else { 1.0 };
                u.iter().map(|v| v * share).collect()
            });
            mean_of(&short.collect::<Vec<Vec<f64>>>())
        }
    }
}

proptest! {
    #[test]
    fn rules_are_what_the_plainest_words_say((bits, updates) in updates()) {
        let spool = Spool::new(bits, 1.0, &updates);
        let plain: Vec<Vec<f64>> = updates.iter().map(|u| wide(u)).collect();
        for rule in rules(updates.len(), updates.len() as u32 / 5) {
            // Krum may see a tie where floating point sees none, and weights are cut.
            let (found, expected) = (spool.result(rule), naive(rule, &plain));
            let slack = match rule {
                Rule::Krum { .. } | Rule::MultiKrum { .. } if bits > 24 => continue,
                Rule::GeometricMedian => 1e-3,
                Rule::NormBounded { .. } => 1e-6,
                _ => 0.0,
            };
            if let Err(e) = close(&found, &expected, bits, slack) {
                prop_assert!(false, "{:?}: {}", rule, e);
            }
        }
    }

    #[test]
    fn no_rule_cares_who_came_first(
        ((bits, updates), shuffled) in updates().prop_flat_map(|(bits, updates)| {
            let shuffled = Just(updates.clone()).prop_shuffle();
            (Just((bits, updates)), shuffled)
        }),
    ) {
        let (one, other) = (Spool::new(bits, 0.25, &updates), Spool::new(bits, 0.25, &shuffled));
        for rule in rules(updates.len(), updates.len() as u32 / 5) {
            let (a, b) = (one.result(rule), other.result(rule));
            if rule == Rule::GeometricMedian {
                // Sums of floating point weights are taken by id; ids stay where they are, whoever comes first.
                prop_assert!(close(&a, &real(&b), bits, 1e-6).is_ok(), "{:?}", rule);
            } else if !matches!(rule, Rule::Krum { .. } | Rule::MultiKrum { .. }) {
                prop_assert_eq!(a, b, "{:?}", rule);
            } else if one.result(Rule::Mean) != other.result(Rule::Mean) || a != b {
                // Equal scores and equal lengths: then either is as good as the other.
                let plain: Vec<Vec<f64>> = updates.iter().map(|u| wide(u)).collect();
                let mut lengths: Vec<u64> =
                    plain.iter().map(|u| distance(u, &vec![0.0; u.len()]).to_bits()).collect();
                lengths.sort_unstable();
                lengths.dedup();
                prop_assert!(lengths.len() < updates.len(), "{:?}", rule);
            }
        }
    }

    #[test]
    fn of_updates_that_are_all_the_same_every_rule_is_the_mean(
        (bits, update, n) in (grid(), 1..90_usize).prop_flat_map(|(bits, n)| {
            (Just(bits), prop::collection::vec(value(bits), 1..300), Just(n))
        }),
    ) {
        // With a step that is a power of two nothing is rounded before the one f32 at the end.
        let spool = Spool::new(bits, 0.125, &vec![update; n]);
        let mean = spool.mean();
        for rule in rules(n, n as u32 / 5) {
            prop_assert_eq!(&spool.result(rule), &mean, "{:?}", rule);
        }
    }

    #[test]
    fn blocks_make_the_same_model_as_one_piece((bits, updates) in updates(), block in 1..40_usize) {
        let spool = Spool::new(bits, 0.3, &updates);
        for rule in rules(updates.len(), updates.len() as u32 / 5) {
            let (whole, parts) = (spool.result(rule), spool.moved(rule, block, None));
            prop_assert_eq!(parts, whole, "{:?}", rule);
        }
    }

    #[test]
    fn a_few_bad_updates_of_any_size_stay_within_bounds((bits, updates, bad) in attacked()) {
        let (n, good) = (updates.len(), updates.len() - bad);
        let spool = Spool::new(bits, 1.0, &updates);
        let plain: Vec<Vec<f64>> = updates.iter().map(|u| wide(u)).collect();
        let zeros = vec![0.0; plain[0].len()];
        let reach = |from: &[f64]| {
            plain[..good].iter().map(|u| distance(u, from)).fold(0.0, f64::max)
        };
        let widest = plain[..good].iter().map(|u| reach(u)).fold(0.0, f64::max);
        let rounding = 1e-5 * f64::from(i32::MAX >> (32 - bits)) + 1.0;
        let f = bad as u32;
        for rule in rules(n, f) {
            let found = real(&spool.result(rule));
            match rule {
                Rule::Median | Rule::TrimmedMean { .. } => {
                    for (c, v) in found.iter().enumerate() {
                        let column = || updates[..good].iter().map(|u| u[c]);
                        let (low, high) = (column().min(), column().max());
                        let low = f64::from(low.expect("some are good") as f32);
                        let high = f64::from(high.expect("some are good") as f32);
                        prop_assert!((low..=high).contains(v), "{rule:?}: {v}, not {low} to {high}");
                    }
                }
                Rule::Krum { .. } | Rule::MultiKrum { .. } => {
                    // Each kept score is at most that of the worst good one, and of the n - f - 2 neighbours of
                    // whatever is kept at least one is good: so far can a kept update be from a good one.
                    let farthest = ((n - bad - 2) as f64).sqrt() * widest;
                    let nearest =
                        plain[..good].iter().map(|u| distance(u, &found)).fold(f64::MAX, f64::min);
                    let within = if matches!(rule, Rule::Krum { .. }) { 0.0 } else { widest };
                    prop_assert!(nearest <= farthest + within + rounding, "{rule:?}: {nearest}");
                }
                Rule::GeometricMedian => {
                    let centre = naive(Rule::Mean, &plain[..good]);
                    let factor = 2.0 * good as f64 / (n - 2 * bad) as f64;
                    let moved = distance(&found, &centre);
                    let allowed = factor * (reach(&centre) + 1.0) + rounding;
                    prop_assert!(moved <= allowed, "moved by {moved}, over {allowed}");
                }
                Rule::NormBounded { clip_norm: None } => {
                    // More than half are good, so the median of the norms is no more than the longest good one.
                    prop_assert!(distance(&found, &zeros) <= reach(&zeros) + rounding);
                }
                Rule::Mean | Rule::NormBounded { .. } => {}
            }
        }
        let longest = reach(&zeros).max(1.0) / 2.0;
        let bounded = real(&spool.result(Rule::NormBounded { clip_norm: Some(longest) }));
        let clean = Spool::new(bits, 1.0, &updates[..good]);
        let clean = real(&clean.result(Rule::NormBounded { clip_norm: Some(longest) }));
        // Without the bad ones' share: each of them moves the mean by at most norm / n.
        let share = good as f64 / n as f64;
        let scaled: Vec<f64> = clean.iter().map(|v| v * share).collect();
        let most = bad as f64 * longest / n as f64;
        prop_assert!(distance(&bounded, &scaled) <= most + rounding);
    }

    #[test]
    fn lengths_and_directions_are_those_of_the_updates((bits, updates) in updates()) {
        let spool = Spool::new(bits, 0.5, &updates);
        let found = spool.outliers();
        let plain: Vec<Vec<f64>> = updates.iter().map(|u| wide(u)).collect();
        let centre = naive(Rule::Median, &plain);
        let zeros = vec![0.0; centre.len()];
        for (update, Outlier { norm, cosine }) in plain.iter().zip(found) {
            let length = distance(update, &zeros);
            prop_assert!((norm - length / 2.0).abs() <= 1e-9 * length);
            let both = length * distance(&centre, &zeros);
            let product: f64 = update.iter().zip(&centre).map(|(a, b)| a * b).sum();
            match cosine {
                Some(cosine) => prop_assert!((cosine - product / both).abs() < 1e-6),
                None => prop_assert!(both < 1e-9),
            }
        }
    }

    #[test]
    fn how_far_an_update_stands_out_does_not_depend_on_who_came_first(
        ((bits, updates), order) in updates().prop_flat_map(|(bits, updates)| {
            let order: Vec<usize> = (0..updates.len()).collect();
            (Just((bits, updates)), Just(order).prop_shuffle())
        }),
    ) {
        let shuffled: Vec<Vec<i32>> = order.iter().map(|&u| updates[u].clone()).collect();
        let found = Spool::new(bits, 0.25, &updates).outliers();
        let expected: Vec<Outlier> = order.iter().map(|&u| found[u]).collect();
        prop_assert_eq!(Spool::new(bits, 0.25, &shuffled).outliers(), expected);
    }

    #[test]
    fn ten_times_the_opposite_is_named_and_nobody_else(
        (bits, updates, bad) in turned(), ratio in 2.0..5.0_f64,
    ) {
        let site = |n: usize| format!("spiffe://t/ae-on/ae-az/site/h-{n}").parse::<SiteId>();
        let sites = (0..updates.len()).map(|n| site(n).expect("valid")).collect();
        let found = Spool::new(bits, 0.01, &updates).outliers();
        let compared = Compared::new(sites, found).expect("some");
        let (when, on_failure) = (When::EachRound, OnFailure::Reject);
        let gates = [
            (Standing::NormRatio, Bound::AtMost(ratio)),
            (Standing::Cosine, Bound::AtLeast(0.0)),
        ];
        let gates = gates.map(|(standing, bound)| {
            let figure = Figure::EachUpdate(standing);
            Gate::Declared(Declared { figure, bound, when, on_failure })
        });
        let facts = Facts { compared: Some(compared), ..Facts::of([].iter(), true, 0) };
        let verdict = judge(&facts, &gates);
        let failed = verdict.judged.iter().filter(|j| !j.pass).map(|j| j.figure.clone());
        let failed: Vec<String> = failed.collect();
        let named = |standing: Standing| {
            (0..bad).map(move |n| format!("{} at h-{n}", standing.as_str()))
        };
        let expected: Vec<String> = Standing::ALL.into_iter().flat_map(named).collect();
        prop_assert_eq!(failed, expected);
    }
}

/// One less than half of many updates is bad, as far away as the grid goes, all at one place.
#[test]
fn a_geometric_median_of_hundreds_is_where_the_good_ones_are() {
    let (n, bad, spread) = (401_usize, 200, 50_u32);
    for params in [1, 8] {
        let mut state = 1_u32;
        let mut near = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            i32::try_from((state >> 8) % (2 * spread + 1)).expect("small") - spread.cast_signed()
        };
        let mut updates: Vec<Vec<i32>> =
            (0..n - bad).map(|_| (0..params).map(|_| near()).collect()).collect();
        updates.resize(n, vec![i32::MAX >> 8; params]);
        let good: Vec<Vec<f64>> = updates[..n - bad].iter().map(|u| wide(u)).collect();
        let centre = naive(Rule::Mean, &good);
        let reach = good.iter().map(|u| distance(u, &centre)).fold(0.0, f64::max);
        let rule = Rule::GeometricMedian;
        let found = real(&Spool::new(24, 1.0, &updates).result(rule));
        let (moved, most) = (distance(&found, &centre), 2.0 * (n - bad) as f64 * (reach + 1.0));
        assert!(moved <= most, "{params}: moved by {moved}, over {most}");
        // Whoever comes first.
        updates.reverse();
        let reversed = Spool::new(24, 1.0, &updates).result(rule);
        assert!(close(&reversed, &found, 24, 1e-6).is_ok(), "{params}: {reversed:?}, {found:?}");
    }
}

#[test]
fn others_compute_the_same_from_the_same_updates() {
    let text = include_str!("../testdata/robust_rules.json");
    let vectors: Value = serde_json::from_str(text).expect("JSON");
    let numbers = |v: &Value| -> Vec<f64> {
        v.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
    };
    for case in vectors["cases"].as_array().expect("a list") {
        let count = |key: &str| case[key].as_u64().and_then(|v| u32::try_from(v).ok());
        let bits = u8::try_from(count("bits").expect("bits")).expect("few");
        let step = case["step"].as_f64().expect("a step");
        let rows = case["updates"].as_array().expect("a list");
        let updates: Vec<Vec<i32>> =
            rows.iter().map(|row| numbers(row).iter().map(|v| *v as i32).collect()).collect();
        let spool = Spool::new(bits, step, &updates);
        let byzantine = count("byzantine").expect("a count");
        let clip_norm = case["clip_norm"].as_f64();
        for (key, rule, slack) in [
            ("mean", Rule::Mean, 0.0),
            ("median", Rule::Median, 0.0),
            ("trimmed_mean", Rule::TrimmedMean { byzantine }, 0.0),
            ("krum", Rule::Krum { byzantine }, 0.0),
            ("multi_krum", Rule::MultiKrum { byzantine, keep: count("keep") }, 0.0),
            ("geometric_median", Rule::GeometricMedian, 1e-6),
            ("norm_bounded", Rule::NormBounded { clip_norm }, 1e-8),
            ("norm_bounded_median", Rule::NormBounded { clip_norm: None }, 1e-8),
        ] {
            let found = spool.result(rule);
            let expected = numbers(&case[key]);
            assert_eq!(found.len(), expected.len(), "{key}");
            if let Err(e) = close(&found, &expected, bits, slack * step) {
                panic!("{key} of {} updates of {bits} bits: {e}", updates.len());
            }
        }
        let (norms, cosines) = (numbers(&case["norms"]), numbers(&case["cosines"]));
        for ((found, norm), cosine) in spool.outliers().iter().zip(norms).zip(cosines) {
            assert!((found.norm - norm).abs() < 1e-9 * norm.max(1.0), "{} {norm}", found.norm);
            let direction = found.cosine.expect("a direction");
            assert!((direction - cosine).abs() < 1e-9, "{direction} {cosine}");
        }
    }
}

#[test]
fn many_blocks_and_many_updates_give_what_one_tile_gives() {
    // Over block and tile borders of every kind, with as many updates as make blocks short.
    for (updates, params) in [(5, 200_001), (40, 70_000), (300, 3_333), (1_100, 1_300)] {
        let value = |u: usize, p: usize| {
            i32::try_from((u * 7_919 + p * 104_729) % 65_535).expect("small") - 32_767
        };
        let rows: Vec<Vec<i32>> =
            (0..updates).map(|u| (0..params).map(|p| value(u, p)).collect()).collect();
        let spool = Spool::new(16, 1.0, &rows);
        for rule in [Rule::Median, Rule::TrimmedMean { byzantine: 1 }] {
            let found = spool.moved(rule, 65_536, None);
            for p in (0..params).step_by(977).chain([params - 1]) {
                let column: Vec<Vec<f64>> =
                    rows.iter().map(|row| vec![f64::from(row[p])]).collect();
                let expected = naive(rule, &column)[0];
                assert!((f64::from(found[p]) - expected).abs() < 1e-2, "{rule:?} at {p}");
            }
        }
        for (row, found) in rows.iter().zip(spool.outliers()) {
            let square: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum();
            assert!((found.norm / square.sqrt() - 1.0).abs() < 1e-12);
        }
    }
}

#[test]
fn what_was_rotated_is_turned_back_whatever_the_rule() {
    // Two blocks; all that is good points one way, with a little of its own, and two sites shout.
    let params = 100_000;
    let rotation = Rotation::of_round(&Digest::of(b"a study"), 1);
    let heavy = 0.5_f32;
    let sealed = |sites: &[(usize, f32)]| {
        let step = 1e-3;
        let update = |&(own, scale): &(usize, f32)| -> Vec<i32> {
            let mut values = vec![0.0_f32; params];
            values[7] = heavy * scale;
            values[own] += 0.01 * scale;
            rotation.apply(&mut values);
            values.iter().map(|v| (f64::from(*v) / (step * 1e-3)).round() as i32).collect()
        };
        let rows: Vec<Vec<i32>> = sites.iter().map(update).collect();
        Spool::new(24, step * 1e-3, &rows)
    };
    let sites: Vec<(usize, f32)> =
        (0..7).map(|i| (1_000 * (i + 1), if i < 5 { 1.0 } else { -100.0 })).collect();
    let spool = sealed(&sites);
    let block = Rotation::block(params);
    for rule in rules(7, 2) {
        let found = spool.moved(rule, block, Some(&rotation));
        assert_eq!(found, spool.moved(rule, 2 * block, Some(&rotation)), "{rule:?}");
        let carried_away = found[7] < 0.0;
        let bears = !matches!(rule, Rule::Mean | Rule::NormBounded { clip_norm: Some(_) });
        assert_eq!(carried_away, !bears, "{rule:?}: {}", found[7]);
        if bears {
            let least = if matches!(rule, Rule::NormBounded { .. }) { 0.15 } else { 0.49 };
            assert!((least..0.51).contains(&found[7]), "{rule:?}: {}", found[7]);
        }
    }
}

#[test]
fn a_rule_that_promises_nothing_for_these_says_what_it_takes() {
    let refused = |rule: Rule, updates: usize| {
        let spool = Spool::new(16, 1.0, &vec![vec![1]; updates]);
        let read = |_, _, _: &mut [u8]| -> Result<(), AggregateError> { panic!("nothing is read") };
        match BlockRule::measure(rule, spool.shape, read).map(|_| ()) {
            Err(AggregateError::Rule(e)) => e.to_string(),
            other => panic!("{rule:?} of {updates}: {other:?}"),
        }
    };
    for (rule, updates, says) in [
        (Rule::Median, 2, "median of 2 updates bounds nothing: it needs at least 3"),
        (Rule::TrimmedMean { byzantine: 2 }, 4, "needs at least 5"),
        (Rule::Krum { byzantine: 2 }, 6, "needs at least 7"),
        (Rule::MultiKrum { byzantine: 2, keep: Some(4) }, 6, "needs at least 8"),
        (Rule::MultiKrum { byzantine: 2, keep: Some(4) }, 7, "at most 3 of 7, not 4"),
        (Rule::MultiKrum { byzantine: 2, keep: Some(0) }, 7, "keeps at least 1"),
        (Rule::Krum { byzantine: 0 }, 7, "krum that bears no bad update"),
        (Rule::GeometricMedian, 2, "needs at least 3"),
        (Rule::GeometricMedian, 1_025, "at most 1024 updates, there are 1025"),
        (Rule::NormBounded { clip_norm: Some(f64::NAN) }, 3, "not a positive number"),
        (Rule::NormBounded { clip_norm: Some(-1.0) }, 3, "not a positive number"),
    ] {
        let said = refused(rule, updates);
        assert!(said.contains(says), "{rule:?} of {updates}: {said}");
    }
    let err = Rule::Mean.admits(0).expect_err("nothing");
    assert_eq!(err, RuleError::TooFew { rule: "mean", updates: 0, needs: 1 });
}

#[test]
fn weights_say_which_updates_made_the_result() {
    let spool = Spool::new(16, 1.0, &[vec![5], vec![6], vec![7], vec![6], vec![30_000]]);
    let weights = |rule| {
        let measured = spool.rule(rule).expect("a rule for these");
        measured.weights().map(|(weights, divisor)| (weights.to_vec(), divisor))
    };
    assert_eq!(weights(Rule::Krum { byzantine: 1 }), Some((vec![0, 1, 0, 0, 0], 1)));
    let two = Rule::MultiKrum { byzantine: 1, keep: None };
    assert_eq!(weights(two), Some((vec![0, 1, 0, 1, 0], 2)));
    assert_eq!(weights(Rule::Median), None);
    let one = 1 << 30;
    let bounded = Rule::NormBounded { clip_norm: Some(6.0) };
    let (shares, divisor) = weights(bounded).expect("weights");
    assert_eq!((shares[0], shares[1], divisor), (one, one, 5 << 30));
    assert!(shares[2] < one && shares[4] > 0);
}

#[test]
fn bytes_that_cannot_be_read_and_blocks_that_do_not_fit_give_no_model() {
    let spool = Spool::new(16, 1.0, &[vec![1, 2], vec![1, 2], vec![1, 2]]);
    let broken = |_, _, _: &mut [u8]| Err(AggregateError::Empty);
    for rule in [Rule::GeometricMedian, Rule::NormBounded { clip_norm: None }] {
        let err = BlockRule::measure(rule, spool.shape, broken).map(|_| ()).expect_err("unread");
        assert_eq!(err, AggregateError::Empty);
    }
    let mut median = spool.rule(Rule::Median).expect("a rule for these");
    let err = median.move_base(0, &mut [0; 8], 1.0, None, broken).expect_err("unread");
    assert_eq!(err, AggregateError::Empty);
    let read = |u, at, into: &mut [u8]| spool.read(u, at, into);
    for (at, bytes) in [(1, 8), (0, 7), (usize::MAX, 8)] {
        let err = median.move_base(at, &mut vec![0; bytes], 1.0, None, read).expect_err("no block");
        assert!(matches!(err, AggregateError::Shape { .. }), "{err}");
    }
    let mut model = params_to_bytes(&[f32::MAX, f32::MAX]);
    let err = median.move_base(0, &mut model, 1e38, None, read).expect_err("too large");
    assert_eq!(err, AggregateError::NotFinite(0));
}
