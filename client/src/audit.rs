//! The privacy claim of a study put to the test: what somebody who sees the updates can tell about one record.
//!
//! Two attacks on the very trainer and settings of the study:
//!
//! - **Two worlds**: rounds with one canary record and rounds without it, told apart by the update's
//!   component along the canary's gradient, and by what is left of it beside a second round without the canary.
//!   Every (epsilon, delta) of the accountant's curve bounds how well that can be told (Kairouz, Oh, Viswanath
//!   2015, theorem 2.1): a rate above the bound, beyond chance, refutes the claim (Nasr et al. 2021, 2023).
//! - **One run**: many canaries in one round, each in it by the toss of a coin, and a guess at each coin
//!   (Steinke, Nasr, Jagielski 2023, theorem 5.2).
//!
//! A passed audit proves nothing: it fails to refute. A failed one refutes, but for the chance that is stated.

use crate::{
    data::Batch,
    guard::LocalBatch,
    train::{Chance, Plan, TrainError, Trainer, batches::first_turn},
};
use falaj_core::{
    dp::{
        Batches, Poisson,
        pld::{Adjacency, Schedule},
        rdp::AccountantError,
    },
    manifest::ManifestError,
    model::ModelSpec,
    study::{Algorithm, Optimizer, Study},
};
use serde::Serialize;
use statrs::function::beta::beta_reg;
use std::{num::NonZero, thread};

/// The chance that an audit refutes a claim that holds, over everything that it tries.
pub const ERROR: f64 = 1e-3;
/// Points of the accountant's curve that are tried.
const EPSILONS: [f64; 8] = [0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0];
/// So small a step that the model stays where it is: what is left is the sum of the noised gradients. The
/// choice of the step is post-processing, so the claim holds for it too.
const STEP: f64 = 1e-4;
/// A canary's features are doubled this often at most, until its gradient is clipped.
const DOUBLINGS: u32 = 24;
/// A gradient this many clip norms long shows whether clipping holds it.
const FAR: f64 = 16.0;
/// Noise multipliers that the two worlds' scores are held against.
const NOISE: (f64, f64) = (0.01, 1e4);

/// Why there is no audit.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// There is nothing of this kind to attack.
    #[error(
        "an audit attacks the training steps of `dp_sgd` and `dp_ftrl`: `{0}` is sealed in whole numbers, and its exact distribution is tested where it is drawn"
    )]
    Mechanism(&'static str),
    /// Too few to say anything.
    #[error("{0} trials say nothing: at least 200 do")]
    Trials(u32),
    /// No record that was tried moves the model.
    #[error(
        "no record that was tried moves the model, so there is nothing to look for: is the model's first layer as wide as the features?"
    )]
    NoGradient,
    /// The settings have no guarantee.
    #[error(transparent)]
    Accountant(#[from] AccountantError),
    /// The model cannot exist.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
}

/// Steps that are broken on purpose, to see that the audit notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Half of the noise.
    NoiseHalved,
    /// Gradients are cut at a thousand times the agreed norm; the noise stays as it was.
    ClippingOff,
    /// Every round draws the same.
    SeedReused,
}

impl Sabotage {
    /// The plan as the broken steps see it.
    fn plan(self, plan: &Plan) -> Plan {
        let dp = plan.dp.map(|(clip, noise)| match self {
            Self::NoiseHalved => (clip, noise / 2.0),
            Self::ClippingOff => (clip * 1e3, noise / 1e3),
            Self::SeedReused => (clip, noise),
        });
        Plan { dp, ..plan.clone() }
    }
}

/// What an audit found.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    /// The study.
    pub study: String,
    /// What was attacked: one round's steps, for one record more or less.
    pub steps: u32,
    /// Rounds that were trained in each world.
    pub trials: u32,
    /// The canary's gradient over the clip norm, at most 1.
    pub canary: f64,
    /// The noise multiplier that is claimed.
    pub noise_multiplier: f64,
    /// What the two worlds show it to be less than, but for a chance of [`ERROR`]; absent when they show nothing.
    pub noise_multiplier_below: Option<f64>,
    /// The study's delta.
    pub delta: f64,
    /// The epsilon of a round that is claimed at that delta.
    pub claimed_epsilon: f64,
    /// What the two worlds show epsilon to be at least, if the noise is Gaussian: the accountant's figure for the
    /// noise multiplier that they show.
    pub two_worlds_epsilon: f64,
    /// What the one run shows epsilon to be at least, whatever the noise.
    pub one_run_epsilon: f64,
    /// Whether the claim stands.
    pub passed: bool,
}

/// Trains a round on these records and gives the update.
type Round<'a> =
    dyn Fn(&LocalBatch, &Plan, &mut Chance) -> Result<Vec<f32>, TrainError> + Sync + 'a;

/// Audits a study's training with the trainer that would run it, whole or with something broken on purpose.
///
/// # Errors
/// [`AuditError`].
pub fn audit(
    study: &Study,
    trainer: &dyn Trainer,
    trials: u32,
    sabotage: Option<Sabotage>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Audit, AuditError> {
    let base = study.model_spec().init([7; 32])?;
    let round = |records: &LocalBatch, plan: &Plan, chance: &mut Chance| {
        let mut update = vec![0.0; plan.model.manifest().map_or(0, |m| m.params())];
        let zero = vec![0.0; update.len()];
        let base = if plan.model == study.model_spec() { &base } else { &zero };
        let broken = sabotage.map(|how| how.plan(plan));
        let plan = broken.as_ref().unwrap_or(plan);
        trainer.run(records, plan, base, chance)?.update.apply_locally(&mut update);
        Ok(update)
    };
    let key = Chance::fresh().key();
    let chance = || match sabotage {
        Some(Sabotage::SeedReused) => Chance::keyed(*key),
        _ => Chance::fresh(),
    };
    attack(study, &round, trials, &chance, progress)
}

/// The attacks on whatever trains: `chance` gives each round its randomness.
fn attack(
    study: &Study,
    round: &Round<'_>,
    trials: u32,
    chance: &(dyn Fn() -> Chance + Sync),
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Audit, AuditError> {
    let mut plan = plan_of(study)?;
    if trials < 200 {
        return Err(AuditError::Trials(trials));
    }
    let schedule = claim(&plan, noise_of(&plan))?;
    let (canary, direction, reach) = canary(&plan, round, chance)?;
    // Where batches take turns, the claim is about a record whose turn comes first.
    plan.first_step = first_turn(plan.training.batches, canary.batch());
    let plan = plan;
    let shift = |records: &LocalBatch| -> Result<f64, TrainError> {
        let update = round(records, &plan, &mut chance())?;
        Ok(-update.iter().zip(&direction).map(|(u, d)| f64::from(*u) * d).sum::<f64>() / STEP)
    };
    let empty = records(Vec::new(), Vec::new(), canary.batch().width);
    // A world's rounds, each with another round beside it that never holds the canary.
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let all = u64::from(trials) * 2;
    let done = std::sync::atomic::AtomicU64::new(0);
    let world = |records: &LocalBatch| -> Result<Vec<[f64; 2]>, TrainError> {
        let one = |_: usize| -> Result<[f64; 2], TrainError> {
            let (first, beside) = (shift(records)?, shift(&empty)?);
            progress(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1, all);
            Ok([first, first - beside])
        };
        let part = (trials as usize).div_ceil(threads);
        thread::scope(|scope| {
            let spawned: Vec<_> = (0..threads)
                .map(|_| scope.spawn(|| (0..part).map(one).collect::<Result<Vec<_>, _>>()))
                .collect();
            let mut scores = Vec::new();
            for handle in spawned {
                let gone = |_| TrainError::Library("an audit's thread broke off".into());
                scores.extend(handle.join().map_err(gone)??);
            }
            Ok(scores)
        })
    };
    let told = told_apart(&world(&canary)?, &world(&empty)?);
    let below = noise_below(&told, &plan)?;
    let delta = study.privacy.delta;
    let claimed = schedule.epsilon(delta)?.value();
    let at_least =
        if below.is_finite() { claim(&plan, below)?.epsilon(delta)?.value() } else { 0.0 };
    let one_run = one_run(&plan, delta, round, chance)?;
    Ok(Audit {
        study: study.id.to_string(),
        steps: plan.training.local_steps,
        trials,
        canary: reach,
        noise_multiplier: noise_of(&plan),
        noise_multiplier_below: Some(below).filter(|b| b.is_finite()),
        delta,
        claimed_epsilon: claimed,
        two_worlds_epsilon: at_least,
        one_run_epsilon: one_run,
        passed: !refutes(&told, &schedule)? && one_run <= claimed,
    })
}

/// The study's plan with plain steps that leave the model where it is.
fn plan_of(study: &Study) -> Result<Plan, AuditError> {
    let mut plan = Plan::of(study, 0);
    if plan.dp.is_none() {
        return Err(AuditError::Mechanism(study.privacy.mechanism.as_str()));
    }
    plan.training.learning_rate = STEP;
    plan.training.optimizer = Optimizer::Sgd { momentum: 0.0 };
    plan.training.algorithm = Algorithm::FedAvg;
    Ok(plan)
}

/// What a plan claims of one round with this noise multiplier.
fn claim(plan: &Plan, noise_multiplier: f64) -> Result<Schedule, AccountantError> {
    let (schedule, steps) =
        (Schedule::new(Adjacency::AddOrRemove), u64::from(plan.training.local_steps));
    if let Some(run) = &plan.correlated {
        // The first round of a stream, as one release.
        let noise_multiplier = run.factor.noise_multiplier_after(noise_multiplier, steps);
        return schedule.poisson_gaussian(Poisson::ALL, noise_multiplier, 1);
    }
    schedule.poisson_gaussian(plan.training.batches.drawn()?, noise_multiplier, steps)
}

fn noise_of(plan: &Plan) -> f64 {
    plan.dp.map_or(0.0, |(_, noise_multiplier)| noise_multiplier)
}

fn records(features: Vec<f32>, labels: Vec<u32>, width: usize) -> LocalBatch {
    LocalBatch::for_this_site_only(Batch { features, labels, width })
}

/// A record whose gradient is clipped, the direction of that gradient, and its length over the clip norm.
fn canary(
    plan: &Plan,
    round: &Round<'_>,
    chance: &dyn Fn() -> Chance,
) -> Result<(LocalBatch, Vec<f64>, f64), AuditError> {
    let clip = plan.dp.map_or(1.0, |(clip, _)| clip);
    let width = plan.model.inputs();
    let mut bare = Plan { dp: None, correlated: None, ..plan.clone() };
    bare.training.local_steps = 1;
    bare.training.batches = Batches::Poisson(Poisson::ALL);
    let mut sizes = vec![1.0_f32];
    if plan.model.takes_any_number() {
        for _ in 0..DOUBLINGS {
            sizes.extend([-sizes[sizes.len() - 1], 2.0 * sizes[sizes.len() - 1]]);
        }
    }
    let mut best = (records(Vec::new(), Vec::new(), width), Vec::new(), 0.0);
    // A label that the model gives already has no gradient: every class is tried, or both ends of a number.
    let labels = match plan.model.classes() {
        1 => vec![0, u32::MAX],
        classes => (0..classes).collect(),
    };
    for (size, label) in sizes.iter().flat_map(|s| labels.iter().map(move |l| (*s, *l))) {
        let canary = records(vec![size; width], vec![label], width);
        let update = round(&canary, &bare, &mut chance())?;
        let norm = update.iter().map(|u| f64::from(*u).powi(2)).sum::<f64>().sqrt();
        let reach = norm / STEP / clip;
        if reach > best.2 {
            let direction = update.iter().map(|u| -f64::from(*u) / norm).collect();
            best = (canary, direction, reach);
        }
        if best.2 >= FAR {
            break;
        }
    }
    let (canary, direction, reach) = best;
    if reach > 0.0 { Ok((canary, direction, reach.min(1.0))) } else { Err(AuditError::NoGradient) }
}

/// At least this share, but for a chance of `error` (Clopper, Pearson 1934).
fn share_at_least(hits: usize, of: usize, error: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of trials")]
    let (k, n) = (hits as f64, of as f64);
    if hits == 0 {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let p = f64::midpoint(low, high);
        // The chance of as many hits or more at a share of p.
        if beta_reg(k, n - k + 1.0, p) < error { low = p } else { high = p }
    }
    low
}

/// At most this share, but for a chance of `error`.
fn share_at_most(hits: usize, of: usize, error: f64) -> f64 {
    1.0 - share_at_least(of - hits, of, error)
}

/// How well two worlds were told apart by one threshold: bounds that hold all together, but for half of [`ERROR`].
struct Told {
    /// The epsilon that the threshold was chosen for.
    epsilon: f64,
    /// At least this share of one world lies above the threshold,
    hit: f64,
    /// and at most this share of the other.
    false_alarm: f64,
}

/// What two worlds' scores tell. Thresholds are chosen on one half of the scores and judged on the other, which
/// never looks at the claim: any number of claims may be held against the same bounds.
fn told_apart(with: &[[f64; 2]], without: &[[f64; 2]]) -> Vec<Told> {
    let half = with.len().min(without.len()) / 2;
    // Two scores, two directions, two rates at each point; half of the error is the one run's.
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let error = ERROR / 2.0 / (EPSILONS.len() * 8) as f64;
    let mut told = Vec::new();
    for epsilon in EPSILONS {
        for which in 0..2 {
            let column = |scores: &[[f64; 2]]| scores.iter().map(|s| s[which]).collect::<Vec<_>>();
            let (inside, outside) = (column(with), column(without));
            for flip in [1.0, -1.0] {
                // Told apart in either direction: "with" from high scores, or "without" from low ones.
                let (a, b) = if flip > 0.0 { (&inside, &outside) } else { (&outside, &inside) };
                let cut = best_cut(&a[..half], &b[..half], flip, epsilon);
                let share = |scores: &[f64], bound: fn(usize, usize, f64) -> f64| {
                    let judged = &scores[half..];
                    let above = judged.iter().filter(|s| flip * **s >= cut).count();
                    bound(above, judged.len(), error)
                };
                let (hit, false_alarm) = (share(a, share_at_least), share(b, share_at_most));
                told.push(Told { epsilon, hit, false_alarm });
            }
        }
    }
    told
}

/// Whether somebody tells the worlds apart better than this claim allows: by its curve, hit <= e^epsilon
/// false alarm + delta at every epsilon (Kairouz, Oh, Viswanath 2015, theorem 2.1).
fn refutes(told: &[Told], claim: &Schedule) -> Result<bool, AccountantError> {
    for t in told {
        if t.hit > t.epsilon.exp() * t.false_alarm + claim.delta(t.epsilon)?.upper {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The least noise multiplier that the scores refute, so that there is less noise than that; infinite when they
/// refute none (Nasr et al. 2023, section 5, with the accountant's curve for theirs).
fn noise_below(told: &[Told], plan: &Plan) -> Result<f64, AuditError> {
    let refuted = |noise: f64| Ok::<_, AuditError>(refutes(told, &claim(plan, noise)?)?);
    let (mut low, mut high) = (NOISE.0, NOISE.1);
    if !refuted(high)? {
        return Ok(f64::INFINITY);
    }
    // To a part in a thousand, from above.
    while high / low > 1.001 {
        let middle = (low * high).sqrt();
        if refuted(middle)? { high = middle } else { low = middle }
    }
    Ok(high)
}

/// The threshold that tells the worlds apart best at this epsilon.
fn best_cut(a: &[f64], b: &[f64], flip: f64, epsilon: f64) -> f64 {
    let sorted = |scores: &[f64]| {
        let mut scores: Vec<f64> = scores.iter().map(|s| flip * s).collect();
        scores.sort_by(f64::total_cmp);
        scores
    };
    let (a, b) = (sorted(a), sorted(b));
    let mut best = (f64::NEG_INFINITY, 0.0);
    let mut below = 0;
    for (i, &cut) in a.iter().enumerate() {
        below += b[below..].iter().take_while(|s| **s < cut).count();
        #[expect(clippy::cast_precision_loss, reason = "counts of trials")]
        let (hit, alarm) =
            ((a.len() - i) as f64 / a.len() as f64, (b.len() - below) as f64 / b.len() as f64);
        let gain = hit - epsilon.exp() * alarm;
        if gain > best.0 {
            best = (gain, cut);
        }
    }
    best.1
}

/// Canaries of the one run, each with a gradient of its own direction.
const CANARIES: u32 = 2_000;

/// The one-run attack on the study's settings, on a logistic model with one input for each canary.
fn one_run(
    plan: &Plan,
    delta: f64,
    round: &Round<'_>,
    chance: &dyn Fn() -> Chance,
) -> Result<f64, AuditError> {
    let model = ModelSpec::Logistic { features: CANARIES, classes: 2 };
    let plan = Plan { model, ..plan.clone() };
    let (clip, m) = (plan.dp.map_or(1.0, |(clip, _)| clip), CANARIES as usize);
    let coins: Vec<bool> = Chance::fresh().coins(m);
    let mut features = Vec::new();
    #[expect(clippy::cast_possible_truncation, reason = "a feature is f32")]
    let size = (4.0 * clip).max(8.0) as f32;
    for i in (0..m).filter(|i| coins[*i]) {
        let mut row = vec![0.0; m];
        row[i] = size;
        features.extend(row);
    }
    let labels = vec![0; coins.iter().filter(|c| **c).count()];
    let update = round(&records(features, labels, m), &plan, &mut chance())?;
    // Class 0 is right: each canary pulls its own weight of class 0 up and of class 1 down.
    let mut scores: Vec<(f32, bool)> =
        (0..m).map(|i| (update[i] - update[m + i], coins[i])).collect();
    scores.sort_by(|a, b| a.0.total_cmp(&b.0));
    // The extreme ones are guessed, and the middle is left out.
    let mut best = 0.0_f64;
    let shares = [m / 40, m / 10, m / 4];
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let error = ERROR / 2.0 / shares.len() as f64;
    for side in shares {
        let out = scores[..side].iter().filter(|(_, coin)| !coin).count();
        let inside = scores[m - side..].iter().filter(|(_, coin)| *coin).count();
        best = best.max(one_run_bound(out + inside, 2 * side, m, delta, error));
    }
    Ok(best)
}

/// The largest epsilon at which so many right guesses, of so many, have a chance of less than `error`
/// (Steinke, Nasr, Jagielski 2023, theorem 5.2 and its proof's computation of the delta term).
fn one_run_bound(right: usize, guesses: usize, canaries: usize, delta: f64, error: f64) -> f64 {
    let tail = |v: usize, p: f64| {
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let (v, n) = (v as f64, guesses as f64);
        if v <= 0.0 { 1.0 } else { beta_reg(v, n - v + 1.0, p) }
    };
    let refuted = |epsilon: f64| {
        let p = 1.0 / (1.0 + (-epsilon).exp());
        let beta = tail(right, p);
        // max over i of the chance between v - i and v, over i.
        let mut alpha = 0.0_f64;
        for i in 1..=right {
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            let share = (tail(right - i, p) - beta) / i as f64;
            alpha = alpha.max(share);
        }
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let slack = 2.0 * canaries as f64 * delta * alpha;
        beta + slack < error
    };
    if !refuted(0.0) {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, 20.0);
    for _ in 0..30 {
        let middle = f64::midpoint(low, high);
        if refuted(middle) { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::linear::Linear;
    use falaj_core::{dp::Cyclic, study::Mechanism};

    /// A study of full batches, whose one step is the Gaussian mechanism of mu = 1.
    fn study(sample_rate: f64, steps: u32) -> Study {
        let yaml = format!(
            "study: audited\npurpose: audit\ndata:\n  dataset: d\n  label: {{ column: y, classes: [a, b] }}\n  features:\n    - {{ name: x, min: -1.0, max: 1.0 }}\nmodel: {{ kind: logistic }}\ntraining: {{ local_steps: {steps}, sample_rate: {sample_rate}, learning_rate: 0.5 }}\nprivacy: {{ mechanism: dp_sgd, noise_multiplier: 1.0, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 900.0 }}\ncohort: {{ places: [\"ae-on/*\"], min_sites: 1 }}\nrounds: {{ count: 1 }}\n"
        );
        falaj_proto::study::parse(&yaml, "study").expect("valid")
    }

    fn audited(study: &Study, sabotage: Option<Sabotage>) -> Audit {
        audit(study, &Linear, 4_000, sabotage, &|_, _| {}).expect("an audit")
    }

    #[test]
    fn our_steps_pass_and_the_attack_comes_near() {
        // Somebody who sees only the sum of the steps tells sampled ones apart less well than the claim allows.
        for (rate, steps, near) in [(1.0, 1, 0.5), (1.0, 4, 0.5), (0.3, 3, 0.15)] {
            let found = audited(&study(rate, steps), None);
            assert!(found.passed, "{found:?}");
            assert!(found.two_worlds_epsilon > near * found.claimed_epsilon, "{found:?}");
            assert!(found.one_run_epsilon < found.claimed_epsilon, "{found:?}");
            assert!(found.noise_multiplier_below.is_some_and(|z| z > 1.0), "{found:?}");
        }
    }

    /// The same with correlated noise: of two batches, one has its turn twice in the three steps.
    fn streamed() -> Study {
        let mut study = study(1.0, 3);
        study.training.batches = Batches::Cyclic(Cyclic::new(2).expect("batches"));
        study.privacy.mechanism = Mechanism::DpFtrl { noise_multiplier: 1.0, clip_norm: 1.0 };
        study.rounds.count = 2;
        assert!(study.check().is_empty());
        study
    }

    #[test]
    fn a_stream_passes_and_is_caught_when_it_is_broken() {
        let found = audited(&streamed(), None);
        assert!(found.passed && found.canary > 0.99, "{found:?}");
        assert!(found.two_worlds_epsilon > 0.1 * found.claimed_epsilon, "{found:?}");
        for how in [Sabotage::NoiseHalved, Sabotage::ClippingOff, Sabotage::SeedReused] {
            let found = audited(&streamed(), Some(how));
            assert!(!found.passed, "{how:?}: {found:?}");
        }
    }

    #[test]
    fn what_is_broken_on_purpose_is_caught() {
        use Sabotage::{ClippingOff, NoiseHalved, SeedReused};
        for (how, rate, steps) in [
            (NoiseHalved, 1.0, 1),
            (NoiseHalved, 0.3, 3),
            (ClippingOff, 1.0, 1),
            (SeedReused, 1.0, 2),
        ] {
            let found = audited(&study(rate, steps), Some(how));
            assert!(!found.passed, "{how:?}: {found:?}");
            assert!(found.two_worlds_epsilon > found.claimed_epsilon, "{how:?}: {found:?}");
            assert!(found.noise_multiplier_below.is_some_and(|z| z < 1.0), "{how:?}: {found:?}");
        }
    }

    #[test]
    fn bounds_on_shares_are_those_of_clopper_and_pearson() {
        // R: binom.test(7, 20, conf.level = 0.95)$conf.int is 0.1539092 to 0.5921885.
        assert!((share_at_least(7, 20, 0.025) - 0.153_909_2).abs() < 1e-6);
        assert!((share_at_most(7, 20, 0.025) - 0.592_188_5).abs() < 1e-6);
        assert!(share_at_least(0, 20, 0.01).abs() < 1e-9);
        assert!((share_at_most(20, 20, 0.01) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_one_run_bound_is_the_binomials_without_delta() {
        // 90 right of 100: at epsilon 1.4 the chance of that is binomial tail at 0.802, about 0.01.
        let bound = one_run_bound(90, 100, 1_000, 0.0, 0.01);
        let p = 1.0 / (1.0 + (-bound).exp());
        assert!((beta_reg(90.0, 11.0, p) - 0.01).abs() < 1e-4, "{bound}");
        assert!(one_run_bound(90, 100, 1_000, 1e-5, 0.01) <= bound);
        assert!(one_run_bound(50, 100, 1_000, 0.0, 0.01).abs() < f64::EPSILON);
    }

    #[test]
    fn what_cannot_be_audited_is_refused() {
        let mut other = study(1.0, 1);
        other.privacy.mechanism =
            falaj_core::study::Mechanism::LocalGaussian { noise_multiplier: 1.0, clip_norm: 1.0 };
        let err = audit(&other, &Linear, 1_000, None, &|_, _| {}).expect_err("refused");
        assert!(matches!(err, AuditError::Mechanism("local_gaussian")), "{err}");
        let few = audit(&study(1.0, 1), &Linear, 10, None, &|_, _| {}).expect_err("refused");
        assert!(matches!(few, AuditError::Trials(10)), "{few}");
    }
}
