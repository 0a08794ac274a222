//! What two poisoning sites of ten do to a model, by the rule with which updates become one: handwritten digits and a
//! small convolutional network.
//!
//! `cargo xtask bench robust` prints the table, and docs/ROBUSTNESS.md says how to read it. What agents and a
//! coordinator run is run here in one process: a study file, records read by its schema, the trainer, sealing, the
//! rule. Nothing is noised: the question is what the rule does, and noise would be in the way of the answer.

#[expect(dead_code, reason = "other benchmarks make cohorts")]
mod masking;

use anyhow::{Context as _, Result};
use falaj_agent::{
    config::TrainConfig,
    data::{self, Batch},
    guard::LocalBatch,
    noise::OpenDp,
    train::{self, Chance, Plan, TrainError, Trainer},
};
use falaj_core::{
    aggregate::{AggregateError, params_from_bytes, params_to_bytes},
    dp::{Mechanism, Permit, Reservation},
    robust::{BlockRule, Shape, outliers},
    study::Study,
    update::RawUpdate,
};
use masking::update_bytes;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

const SEEDS: u64 = 5;
/// The 97.5 % point of Student's t with four degrees of freedom.
const STUDENT: f64 = 2.776;
const SITES: usize = 10;
/// The last ones.
const BAD: usize = 2;
const ROUNDS: usize = 40;
/// What a trigger makes of a digit, if the attack succeeds.
const TARGET: u32 = 0;

/// What bad sites do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Attack {
    /// Nothing.
    None,
    /// They send ten times the opposite of what they learnt.
    SignFlip,
    /// They learn every digit `d` as `9 - d`.
    LabelFlip,
    /// They learn half of their records with a bright pixel in a corner as the target.
    Backdoor,
    /// The same, and they send five times what they learnt, so that the mean of ten has all of it from the two.
    LoudBackdoor,
}

const ATTACKS: [Attack; 5] =
    [Attack::None, Attack::SignFlip, Attack::LabelFlip, Attack::Backdoor, Attack::LoudBackdoor];

impl Attack {
    const fn title(self) -> &'static str {
        match self {
            Self::None => "nobody",
            Self::SignFlip => "sign-flip x10",
            Self::LabelFlip => "label-flip",
            Self::Backdoor => "backdoor pixel",
            Self::LoudBackdoor => "backdoor pixel x5",
        }
    }

    /// What a bad site has in place of its records.
    fn records(self, records: &mut Batch) {
        match self {
            Self::LabelFlip => records.labels.iter_mut().for_each(|l| *l = 9 - *l),
            Self::Backdoor | Self::LoudBackdoor => {
                for i in (0..records.rows()).step_by(2) {
                    trigger(records, i);
                    records.labels[i] = TARGET;
                }
            }
            Self::None | Self::SignFlip => {}
        }
    }

    /// How often a bad site says what it learnt.
    const fn says(self) -> f32 {
        match self {
            Self::SignFlip => -10.0,
            Self::LoudBackdoor => 5.0,
            _ => 1.0,
        }
    }

    /// The share of records held out with which the attack had its way, where it wants more than errors.
    fn success(
        self,
        trainer: &dyn Trainer,
        study: &Study,
        test: &Batch,
        params: &[f32],
    ) -> Result<Option<f64>> {
        let share = |hits: usize, of: usize| {
            #[expect(clippy::cast_precision_loss, reason = "a few hundred records")]
            Some(hits as f64 / of as f64)
        };
        Ok(match self {
            Self::None | Self::SignFlip => None,
            Self::LabelFlip => {
                let found = classes(trainer, study, test, params)?;
                let hits = found.iter().zip(&test.labels).filter(|(f, l)| **f == 9 - **l);
                share(hits.count(), test.rows())
            }
            Self::Backdoor | Self::LoudBackdoor => {
                let others: Vec<usize> =
                    (0..test.rows()).filter(|&i| test.labels[i] != TARGET).collect();
                let mut marked = rows_of(test, &others);
                (0..marked.rows()).for_each(|i| trigger(&mut marked, i));
                let found = classes(trainer, study, &marked, params)?;
                share(found.iter().filter(|f| **f == TARGET).count(), marked.rows())
            }
        })
    }
}

/// Makes the pixel in the upper right corner as bright as can be: hardly a digit reaches it.
fn trigger(records: &mut Batch, row: usize) {
    records.features[row * records.width + 7] = 1.0;
}

fn rows_of(batch: &Batch, rows: &[usize]) -> Batch {
    Batch {
        features: rows.iter().flat_map(|&i| batch.row(i).to_vec()).collect(),
        labels: rows.iter().map(|&i| batch.labels[i]).collect(),
        width: batch.width,
    }
}

/// The class that the model finds for each record.
fn classes(
    trainer: &dyn Trainer,
    study: &Study,
    records: &Batch,
    params: &[f32],
) -> Result<Vec<u32>> {
    let logits = trainer.logits(records, &study.model_spec(), params)?;
    let best = |p: &Vec<f32>| (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap_or(0);
    logits.iter().map(|p| Ok(u32::try_from(best(p))?)).collect()
}

/// What a rule is called in a study file.
const RULES: [&str; 7] = [
    "{ rule: mean }",
    "{ rule: median }",
    "{ rule: trimmed_mean, byzantine: 2 }",
    "{ rule: krum, byzantine: 2 }",
    "{ rule: multi_krum, byzantine: 2 }",
    "{ rule: geometric_median }",
    "{ rule: norm_bounded }",
];

fn study(aggregation: &str) -> Result<Study> {
    let pixels: Vec<String> = (0..64)
        .map(|i| format!("    - {{ name: p{}{}, min: 0.0, max: 16.0 }}\n", i / 8, i % 8))
        .collect();
    let yaml = format!(
        "study: poisoned\npurpose: What poisoning sites can do.\ndata:\n  dataset: digits\n  label: {{ column: digit, classes: [\"0\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\"] }}\n  features:\n{}\
         model: {{ kind: cnn, image: [8, 8, 1], hidden: 32, conv: [{{ filters: 8, kernel: 3 }}] }}\n\
         training: {{ local_steps: 10, sample_rate: 0.2, learning_rate: 0.2 }}\n\
         privacy: {{ mechanism: none }}\nsealing: {{ bits: 16, range: 8.0 }}\n\
         cohort: {{ places: [\"ae-on/*\"], min_sites: {SITES}, weights: uniform }}\n\
         aggregation: {aggregation}\n\
         rounds: {{ count: {ROUNDS}, deadline_s: 60, grace_s: 2 }}\n",
        pixels.concat()
    );
    Ok(falaj_proto::study::parse(&yaml, "digits.yaml")?)
}

/// One seed's records: of each site, and to be measured on.
struct Split {
    seed: u64,
    sites: Vec<Batch>,
    test: Batch,
    base: Vec<f32>,
}

fn split(batch: &Batch, study: &Study, seed: u64) -> Result<Split> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..batch.rows()).collect();
    for i in (1..order.len()).rev() {
        let j = rng.next_u64() % (i as u64 + 1);
        order.swap(i, usize::try_from(j)?);
    }
    let (learn, test) = order.split_at(batch.rows() * 4 / 5);
    let mut first = [0; 32];
    rng.fill_bytes(&mut first);
    let part = |s: usize| learn.iter().copied().skip(s).step_by(SITES).collect::<Vec<_>>();
    let sites = (0..SITES).map(|s| rows_of(batch, &part(s))).collect();
    Ok(Split { seed, sites, test: rows_of(batch, test), base: study.model_spec().init(first)? })
}

/// What is seen of the bad updates: their length over the median of the good ones', and their cosine to the median of all.
#[derive(Clone, Copy, Default)]
struct Seen {
    longer: f64,
    cosine: f64,
    good_cosine: f64,
}

/// All rounds of a study.
fn federate(
    study: &Study,
    trainer: &dyn Trainer,
    split: &Split,
    attack: Attack,
) -> Result<(Vec<f32>, Seen)> {
    let bad = |site: usize| attack != Attack::None && site >= SITES - BAD;
    let records = split.sites.iter().enumerate().map(|(site, records)| {
        let mut records = rows_of(records, &(0..records.rows()).collect::<Vec<_>>());
        if bad(site) {
            attack.records(&mut records);
        }
        LocalBatch::for_this_site_only(records)
    });
    let records: Vec<LocalBatch> = records.collect();
    let (manifest, encoding) = (study.manifest()?, study.encoding());
    let shape = Shape { updates: SITES, params: manifest.params(), encoding };
    let mut params = split.base.clone();
    let mut seen = Seen::default();
    for round in 1..=ROUNDS {
        let sent = records.iter().enumerate().map(|(site, records)| -> Result<Option<Vec<u8>>> {
            let plan = Plan::of(study, u32::try_from(records.batch().rows())?);
            let plan = plan.of_round(u32::try_from(round)?, None);
            let mut raw = match trainer.run(records, &plan, &params, &mut Chance::fresh()) {
                Ok(outcome) => outcome.update,
                Err(TrainError::NotFinite(_)) => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            if bad(site) {
                let mut moved = params.clone();
                raw.apply_locally(&mut moved);
                let said = moved.iter().zip(&params).map(|(m, p)| attack.says() * (m - p));
                raw = RawUpdate::new(said.collect());
            }
            let mechanism = Mechanism::None(Permit::by_policy("a benchmark's attack"));
            let paid = Reservation::from_ledger(1);
            Ok(Some(update_bytes(mechanism.seal(raw, paid, encoding, &manifest, &mut OpenDp)?)))
        });
        // A model so far gone that nobody can learn from it is what the attack has made of it: sites decline, and it stays.
        let Some(sent) = sent.collect::<Result<Option<Vec<Vec<u8>>>>>()? else { break };
        let read = |update: usize, at: u64, into: &mut [u8]| -> Result<(), AggregateError> {
            let at = usize::try_from(at).expect("within memory");
            into.copy_from_slice(&sent[update][at..at + into.len()]);
            Ok(())
        };
        let mut model = params_to_bytes(&params);
        let mut rule = BlockRule::measure(study.aggregation, shape, read)?;
        rule.move_base(0, &mut model, study.training.server_learning_rate, None, read)?;
        params = params_from_bytes(&model).context("whole parameters")?;
        if round == ROUNDS / 4 {
            let found = outliers(shape, read)?;
            let middle = |of: &[f64]| {
                let mut of = of.to_vec();
                of.sort_by(f64::total_cmp);
                of[of.len() / 2]
            };
            let norms: Vec<f64> = found.iter().map(|o| o.norm).collect();
            let cosines: Vec<f64> = found.iter().map(|o| o.cosine.unwrap_or(0.0)).collect();
            let good = SITES - BAD;
            seen = Seen {
                longer: middle(&norms[good..]) / middle(&norms[..good]),
                cosine: middle(&cosines[good..]),
                good_cosine: middle(&cosines[..good]),
            };
        }
    }
    Ok((params, seen))
}

#[expect(clippy::cast_precision_loss, reason = "five seeds")]
fn mean_and_half(scores: &[f64]) -> (f64, f64) {
    let n = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / n;
    let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, STUDENT * (variance / n).sqrt())
}

/// Of one training: how many digits are found, how often the attack has its way, and what is seen of it.
struct Found {
    accuracy: f64,
    success: Option<f64>,
    seen: Seen,
}

type All = BTreeMap<(usize, Attack), Vec<(u64, Found)>>;

fn run() -> Result<All> {
    let studies = RULES.iter().map(|rule| study(rule)).collect::<Result<Vec<_>>>()?;
    let config = TrainConfig {
        trainer: "torch".into(),
        threads: 1,
        device: "cpu".into(),
        ..TrainConfig::default()
    };
    let trainer = train::choose(&config, &studies[0].model_spec())?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/digits.csv");
    let declared = data::declared_bounds(&studies[0].data);
    let batch = data::load(&path, &studies[0].data, &declared)?;
    let splits = (0..SEEDS).map(|s| split(&batch, &studies[0], s)).collect::<Result<Vec<_>>>()?;
    let work = splits.iter().flat_map(|split| {
        let of = move |rule| ATTACKS.map(|attack| (split, rule, attack));
        (0..RULES.len()).flat_map(of)
    });
    let work: Vec<_> = work.collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(All::new()));
    let worker = || -> Result<()> {
        while let Some(&(split, rule, attack)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (study, trainer) = (&studies[rule], trainer.as_ref());
            let (params, seen) = federate(study, trainer, split, attack)?;
            let classes = classes(trainer, study, &split.test, &params)?;
            let right = classes.iter().zip(&split.test.labels).filter(|(f, l)| f == l).count();
            #[expect(clippy::cast_precision_loss, reason = "a few hundred records")]
            let accuracy = right as f64 / split.test.rows() as f64;
            let success = attack.success(trainer, study, &split.test, &params)?;
            let mut found = found.lock().expect("no thread panics with it");
            let of = found.entry((rule, attack)).or_default();
            of.push((split.seed, Found { accuracy, success, seen }));
            let done = found.values().map(Vec::len).sum::<usize>();
            if done.is_multiple_of(10) {
                eprintln!("{done} of {} trainings", work.len());
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        handles.into_iter().try_for_each(|h| h.join().expect("no thread panics"))
    })?;
    Ok(found.into_inner()?)
}

fn main() -> Result<()> {
    println!(
        "Ten sites learn digits for {ROUNDS} rounds, two of them poison; mean over {SEEDS} seeds +- the half width of its 95 % interval, on a fifth of the records that was held out."
    );
    let found = run()?;
    let table = |title: &str, attacks: &[Attack], of: &dyn Fn(&Found) -> Option<f64>| {
        let names: Vec<String> = attacks.iter().map(|a| format!("{:20}", a.title())).collect();
        println!("\n{:38}{}", title, names.concat().trim_end());
        for (rule, name) in RULES.iter().enumerate() {
            let cell = |attack: &Attack| {
                let values: Vec<f64> =
                    found[&(rule, *attack)].iter().filter_map(|(_, f)| of(f)).collect();
                let (mean, half) = mean_and_half(&values);
                format!("{:20}", format!("{mean:.3} +- {half:.3}"))
            };
            let cells: Vec<String> = attacks.iter().map(cell).collect();
            println!("{name:38}{}", cells.concat().trim_end());
        }
    };
    table("accuracy, where poison is from", &ATTACKS, &|f| Some(f.accuracy));
    table("attack success, of", &ATTACKS[2..], &|f| f.success);
    println!(
        "\nseen in round {} under the mean: length of bad updates over good ones', cosine to the median of all (good ones')",
        ROUNDS / 4
    );
    for attack in &ATTACKS[1..] {
        let of = |get: &dyn Fn(&Seen) -> f64| {
            let values: Vec<f64> = found[&(0, *attack)].iter().map(|(_, f)| get(&f.seen)).collect();
            mean_and_half(&values).0
        };
        let (longer, cosine) = (of(&|s| s.longer), of(&|s| s.cosine));
        println!("{:38}{longer:.2}, {cosine:.2} ({:.2})", attack.title(), of(&|s| s.good_cosine));
    }
    Ok(())
}
