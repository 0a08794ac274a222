//! What privacy costs in accuracy: three real data sets, ten seeds, each mechanism beside Opacus.
//!
//! `cargo xtask bench utility` sets Opacus up and prints the table. Every row of ours runs what an agent and
//! a coordinator run: a study file, the records read by its schema, the trainer, sealing or masking, and the
//! aggregate. Opacus gets the same records, first parameters, sample rate, steps, clip norm, learning rate
//! and noise multiplier, and its model is measured by the same function.

mod masking;

use anyhow::{Context as _, Result, ensure};
use falaj_agent::{
    config::TrainConfig,
    data::{self, Batch},
    evaluate::evaluate,
    guard::LocalBatch,
    noise::OpenDp,
    train::{self, Chance, Plan, Trainer},
};
use falaj_core::{
    aggregate::Accumulator,
    dp::{
        Mechanism, Permit, Poisson, Reservation,
        calibrate::{Accountant, Target},
        pld::{Adjacency, Schedule},
    },
    id::Digest,
    secagg::{Cohort, Collector, Site},
    study::{Mechanism as Declared, Study},
    update::PartialUpdate,
};
use masking::{cohort, signer, update_bytes};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    env, fs,
    io::Read as _,
    path::Path,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

const SEEDS: u64 = 10;
const EPSILONS: [f64; 4] = [1.0, 2.0, 4.0, 8.0];
const DELTA: f64 = 1e-5;
/// The 97.5 % point of Student's t with nine degrees of freedom.
const STUDENT: f64 = 2.262;

/// A data set and how it is learnt; nothing is tuned for an epsilon.
struct Task {
    name: &'static str,
    file: &'static str,
    metric: &'static str,
    label: &'static str,
    features: String,
    model: &'static str,
    rate: f64,
    steps: u32,
    learning_rate: f64,
    /// Sites for noise at records, and for noise at whole sites, which needs many.
    sites: [usize; 2],
}

fn tasks() -> [Task; 3] {
    let numeric = |name: &str, min: f64, max: f64| {
        format!("    - {{ name: {name}, min: {min:?}, max: {max:?} }}\n")
    };
    let demo = include_str!("../../xtask/demo/study.yaml");
    let wdbc = demo.split_inclusive('\n').filter(|l| l.contains(", min: ")).collect();
    let mut credit = numeric("LIMIT_BAL", 0.0, 5e5) + &numeric("AGE", 20.0, 80.0);
    credit += "    - { name: SEX, values: [female, male] }\n";
    credit +=
        "    - { name: EDUCATION, values: [\"0\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\"] }\n";
    credit += "    - { name: MARRIAGE, values: [\"0\", \"1\", \"2\", \"3\"] }\n";
    credit += &[0, 2, 3, 4, 5, 6].map(|i| numeric(&format!("PAY_{i}"), -2.0, 4.0)).concat();
    credit += &[1, 2, 3, 4, 5, 6].map(|i| numeric(&format!("BILL_AMT{i}"), 0.0, 2e5)).concat();
    credit += &[1, 2, 3, 4, 5, 6].map(|i| numeric(&format!("PAY_AMT{i}"), 0.0, 2e4)).concat();
    let pixels = (0..64).map(|i| numeric(&format!("p{}{}", i / 8, i % 8), 0.0, 16.0)).collect();
    [
        Task {
            name: "WDBC",
            file: "wdbc.csv",
            metric: "accuracy",
            label: "{ column: diagnosis, classes: [benign, malignant] }",
            features: wdbc,
            model: "{ kind: logistic }",
            rate: 0.2,
            steps: 100,
            learning_rate: 1.0,
            sites: [4, 20],
        },
        Task {
            name: "credit",
            file: "credit_default.csv.gz",
            metric: "AUC",
            label: "{ column: default_payment_next_month, classes: [\"0\", \"1\"] }",
            features: credit,
            model: "{ kind: logistic }",
            rate: 0.05,
            steps: 200,
            learning_rate: 1.0,
            sites: [10, 100],
        },
        Task {
            name: "digits",
            file: "digits.csv",
            metric: "accuracy",
            label: "{ column: digit, classes: [\"0\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\"] }",
            features: pixels,
            model: "{ kind: mlp, hidden: [32] }",
            rate: 0.2,
            steps: 200,
            learning_rate: 1.0,
            sites: [4, 40],
        },
    ]
}

/// The rows of the table: where the records are, and how what is learnt from them is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Plain,
    Opacus,
    Pooled,
    Ftrl,
    DpSgd,
    Distributed,
    Local,
}

const OURS: [Row; 5] = [Row::Pooled, Row::Ftrl, Row::DpSgd, Row::Distributed, Row::Local];

impl Row {
    fn title(self, task: &Task) -> String {
        let [records, sites] = task.sites;
        match self {
            Self::Plain => "no privacy, pooled".to_owned(),
            Self::Opacus => "Opacus, pooled".to_owned(),
            Self::Pooled => "dp_sgd, pooled".to_owned(),
            Self::Ftrl => "dp_ftrl, pooled".to_owned(),
            Self::DpSgd => format!("dp_sgd, {records} sites"),
            Self::Distributed => format!("distributed_gaussian, {records} sites"),
            Self::Local => format!("local_gaussian, {sites} sites"),
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Plain => "-",
            Self::Local => "site",
            _ => "record",
        }
    }

    const fn sites(self, task: &Task) -> usize {
        match self {
            Self::Plain | Self::Opacus | Self::Pooled | Self::Ftrl => 1,
            Self::DpSgd | Self::Distributed => task.sites[0],
            Self::Local => task.sites[1],
        }
    }

    /// Rounds, and steps in each.
    const fn rounds(self, task: &Task) -> (u32, u32) {
        match self {
            Self::Distributed => (task.steps, 1),
            Self::Local => (1, task.steps),
            _ => (task.steps / 10, 10),
        }
    }

    /// The privacy part of the study, and its grid.
    fn privacy(self, task: &Task, rows: usize, noise: f64) -> String {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand records")]
        let batch = (task.rate * rows as f64 / self.sites(task) as f64).round();
        match self {
            Self::Plain => {
                "privacy: { mechanism: none }\nsealing: { bits: 32, range: 64.0 }".into()
            }
            Self::Distributed => format!(
                "privacy: {{ mechanism: distributed_gaussian, unit: record, batch_size: {batch}, noise_multiplier: {noise:?}, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 100.0 }}"
            ),
            Self::Local => format!(
                "privacy: {{ mechanism: local_gaussian, noise_multiplier: {noise:?}, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 100.0 }}\nsealing: {{ bits: 24, range: 64.0 }}"
            ),
            Self::Ftrl => format!(
                "privacy: {{ mechanism: dp_ftrl, noise_multiplier: {noise:?}, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 100.0 }}\nsealing: {{ bits: 24, range: 64.0 }}"
            ),
            _ => format!(
                "privacy: {{ mechanism: dp_sgd, noise_multiplier: {noise:?}, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 100.0 }}\nsealing: {{ bits: 24, range: 64.0 }}"
            ),
        }
    }

    fn study(self, task: &Task, rows: usize, noise: f64) -> Result<Study> {
        let ((rounds, steps), sites) = (self.rounds(task), self.sites(task));
        let Task { name, label, features, model, rate, learning_rate, .. } = task;
        let batches = match self {
            Self::Ftrl => format!("batches: {}", (1.0 / rate).round()),
            _ => format!("sample_rate: {rate:?}"),
        };
        let yaml = format!(
            "study: utility\npurpose: What privacy costs on {name}.\ndata:\n  dataset: records\n  label: {label}\n  features:\n{features}model: {model}\n\
             training: {{ local_steps: {steps}, {batches}, learning_rate: {learning_rate:?} }}\n{}\n\
             cohort: {{ places: [\"ae-on/*\"], min_sites: {sites}, weights: uniform }}\n\
             rounds: {{ count: {rounds}, deadline_s: 60, grace_s: 2 }}\n",
            self.privacy(task, rows, noise)
        );
        Ok(falaj_proto::study::parse(&yaml, &format!("{name}.yaml"))?)
    }
}

/// The noise multipliers for the epsilons: for steps on records, and for one release of a whole site or of all that
/// correlated steps tell of a record.
fn noises(task: &Task, row: Row) -> Result<Vec<f64>> {
    let noise = |epsilon| {
        let accountant = Accountant::Pld(Adjacency::AddOrRemove);
        let target = Target { epsilon, delta: DELTA, accountant };
        let (rate, steps) = if matches!(row, Row::Local | Row::Ftrl) {
            (1.0, 1)
        } else {
            (task.rate, u64::from(task.steps))
        };
        let noise = target.noise_multiplier(rate, steps)?;
        let claimed = Schedule::new(Adjacency::AddOrRemove)
            .poisson_gaussian(Poisson::new(rate)?, noise, steps)?
            .epsilon(DELTA)?
            .value();
        ensure!(claimed <= epsilon, "{claimed} is over {epsilon}");
        Ok(noise)
    };
    EPSILONS.into_iter().map(noise).collect()
}

/// One seed's records: to learn from, and to be measured on.
struct Split {
    seed: u64,
    learn: Batch,
    test: Batch,
    base: Vec<f32>,
}

fn rows_of(batch: &Batch, rows: &[usize]) -> Batch {
    Batch {
        features: rows.iter().flat_map(|&i| batch.row(i).to_vec()).collect(),
        labels: rows.iter().map(|&i| batch.labels[i]).collect(),
        width: batch.width,
    }
}

/// Four fifths to learn from, in random order.
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
    let base = study.model_spec().init(first)?;
    Ok(Split { seed, learn: rows_of(batch, learn), test: rows_of(batch, test), base })
}

fn read(task: &Task, dir: &Path, study: &Study) -> Result<Batch> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(task.file);
    let bytes = fs::read(&from).with_context(|| from.display().to_string())?;
    let mut text = Vec::new();
    if from.extension().is_some_and(|e| e == "gz") {
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut text)?;
    } else {
        text = bytes;
    }
    let path = dir.join(format!("{}.csv", task.name));
    fs::write(&path, text)?;
    Ok(data::load(&path, &study.data, &data::declared_bounds(&study.data))?)
}

/// Runs a study's rounds among its sites, as agents and a coordinator would, and gives the model.
fn federate(study: &Study, trainer: &dyn Trainer, split: &Split, sites: usize) -> Result<Vec<f32>> {
    let part = |s: usize| (s..split.learn.rows()).step_by(sites).collect::<Vec<_>>();
    let parts: Vec<LocalBatch> = (0..sites)
        .map(|s| LocalBatch::for_this_site_only(rows_of(&split.learn, &part(s))))
        .collect();
    let (manifest, encoding) = (study.manifest()?, study.encoding());
    let mut params = split.base.clone();
    let mut streams = vec![None; sites];
    for round in 0..study.rounds.count {
        let rotation = study.rotation(&Digest::of(study.id.as_str().as_bytes()), round);
        let updates = parts.iter().zip(&mut streams).map(|(records, stream)| {
            let plan = Plan::of(study, u32::try_from(records.batch().rows())?);
            let plan = plan.of_round(round + 1, stream.take());
            let outcome = trainer.run(records, &plan, &params, &mut Chance::fresh())?;
            let raw = outcome.update;
            *stream = outcome.stream;
            let raw = match &rotation {
                Some(rotation) => raw.rotated(rotation),
                None => raw,
            };
            Ok((raw, Reservation::from_ledger(1)))
        });
        let updates = updates.collect::<Result<Vec<_>>>()?;
        let sum = match study.privacy.mechanism {
            Declared::DistributedGaussian { colluders, .. } => {
                let noise = study.distributed().context("noise in shares")??;
                let terms = (study.cohort.min_sites, colluders);
                let members = u32::try_from(sites)?;
                let seal = |(raw, paid)| {
                    noise.seal(raw, paid, (encoding, members), &manifest, &mut OpenDp)
                };
                let parts = updates.into_iter().map(seal).collect::<Result<Vec<_>, _>>()?;
                let cohort = cohort(sites, terms, encoding, manifest.params())?;
                Accumulator::of_sum(masked_sum(&cohort, parts)?, members, encoding)
            }
            ref declared => {
                let mechanism = match *declared {
                    Declared::LocalGaussian { noise_multiplier, clip_norm } => {
                        Mechanism::LocalGaussian { clip_norm, noise_multiplier }
                    }
                    Declared::None => Mechanism::None(Permit::by_policy("a benchmark's baseline")),
                    _ => Mechanism::DpSgd,
                };
                let mut sums = Accumulator::new(manifest.params(), encoding);
                for (raw, paid) in updates {
                    let sealed = mechanism.seal(raw, paid, encoding, &manifest, &mut OpenDp)?;
                    sums.fold(&update_bytes(sealed), 1)?;
                }
                sums
            }
        };
        let mut bytes: Vec<u8> = params.iter().flat_map(|p| p.to_le_bytes()).collect();
        sum.move_base(0, &mut bytes, study.training.server_learning_rate, rotation.as_ref())?;
        params = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    }
    Ok(params)
}

/// The sum of masked updates, by the whole protocol.
fn masked_sum(cohort: &Cohort, updates: Vec<PartialUpdate>) -> Result<Vec<i32>> {
    let mut rng = ChaCha20Rng::from_seed([5; 32]);
    let mut collector = Collector::new(cohort.clone());
    let (mut sites, mut adverts) = (Vec::new(), Vec::new());
    for i in 0..updates.len() {
        let (site, advert) =
            Site::advertise(cohort.clone(), u16::try_from(i)?, signer(i), &mut rng)?;
        collector.advertised(&advert)?;
        sites.push(site);
        adverts.push(advert);
    }
    let (mut shared, mut mail) = (Vec::new(), vec![Vec::new(); updates.len()]);
    for (i, site) in sites.into_iter().enumerate() {
        let (site, envelopes) = site.share(&adverts, &mut rng)?;
        collector.dealt(u16::try_from(i)?, &envelopes)?;
        envelopes.into_iter().for_each(|e| mail[usize::from(e.to())].push(e));
        shared.push(site);
    }
    let mut masked = Vec::new();
    for (i, (site, update)) in shared.into_iter().zip(updates).enumerate() {
        let (site, update) = site.mask(&mail[i], update)?;
        collector.masked(u16::try_from(i)?, &update_bytes(update))?;
        masked.push(site);
    }
    let survivors = collector.survivors();
    let (mut confirmed, mut confirmations) = (Vec::new(), Vec::new());
    for site in masked {
        let (site, confirmation) = site.confirm(&survivors)?;
        collector.confirmed(&confirmation)?;
        confirmed.push(site);
        confirmations.push(confirmation);
    }
    for site in confirmed {
        collector.reveal(&site.reveal(&confirmations)?)?;
    }
    Ok(collector.sum()?.values)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Opacus's models of all splits and noises, or nothing where it is not installed.
fn opacus(
    task: &Task,
    dir: &Path,
    splits: &[Split],
    noises: &[f64],
) -> Result<Option<Vec<Vec<Vec<f32>>>>> {
    let Some(python) = env::var_os("FALAJ_PEERS_PYTHON") else { return Ok(None) };
    let mut jobs = Vec::new();
    for split in splits {
        let file = |what: &str| dir.join(format!("{}-{}.{what}", task.name, split.seed));
        fs::write(file("x"), floats(&split.learn.features))?;
        let labels: Vec<u8> = split.learn.labels.iter().flat_map(|l| l.to_le_bytes()).collect();
        fs::write(file("y"), labels)?;
        fs::write(file("base"), floats(&split.base))?;
        jobs.push(
            json!({ "x": file("x"), "y": file("y"), "base": file("base"), "seed": split.seed }),
        );
    }
    let study = Row::Plain.study(task, 1_000, 1.0)?;
    let widths: Vec<u64> = study
        .manifest()?
        .tensors()
        .iter()
        .filter(|t| t.shape.len() == 2)
        .map(|t| u64::from(t.shape[0]))
        .collect();
    let order = json!({
        "inputs": splits[0].learn.width, "widths": widths, "rate": task.rate, "steps": task.steps,
        "learning_rate": task.learning_rate, "clip_norm": 1.0, "noises": noises, "jobs": jobs,
    });
    let path = dir.join("order.json");
    fs::write(&path, order.to_string())?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers.py");
    let out = Command::new(python).args([script, "utility"]).arg(&path).output()?;
    ensure!(out.status.success(), "Opacus: {}", String::from_utf8_lossy(&out.stderr));
    let found: Value = serde_json::from_slice(&out.stdout)?;
    let model = |path: &Value| -> Result<Vec<f32>> {
        let bytes = fs::read(path.as_str().context("a path")?)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    let list = |v: &Value| v.as_array().cloned().context("a list");
    let of_split = |v: &Value| list(v)?.iter().map(model).collect::<Result<Vec<_>>>();
    Ok(Some(list(&found)?.iter().map(of_split).collect::<Result<Vec<_>>>()?))
}

#[expect(clippy::cast_precision_loss, reason = "ten seeds")]
fn mean_and_half(scores: &[f64]) -> (f64, f64) {
    let n = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / n;
    let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, STUDENT * (variance / n).sqrt())
}

type Scores = BTreeMap<(Row, usize), Vec<f64>>;

fn run(task: &Task, dir: &Path) -> Result<Scores> {
    let study = Row::Plain.study(task, 1_000, 1.0)?;
    let config = |trainer: &str| TrainConfig {
        trainer: trainer.into(),
        threads: 1,
        device: "cpu".into(),
        ..TrainConfig::default()
    };
    let logistic = task.model.contains("logistic");
    let trainer =
        train::choose(&config(if logistic { "linear" } else { "torch" }), &study.model_spec())?;
    let batch = read(task, dir, &study)?;
    let splits = (0..SEEDS).map(|s| split(&batch, &study, s)).collect::<Result<Vec<_>>>()?;
    let score = |split: &Split, params: &[f32]| -> Result<f64> {
        let scores = evaluate(trainer.as_ref(), &split.test, &study.model_spec(), params)?;
        if task.metric == "AUC" { scores.auc.context("both classes") } else { Ok(scores.accuracy) }
    };
    let mut work: Vec<(Row, usize, f64)> = vec![(Row::Plain, 0, 0.0)];
    for row in OURS {
        work.extend(noises(task, row)?.into_iter().enumerate().map(|(e, noise)| (row, e, noise)));
    }
    let work: Vec<_> = work.iter().flat_map(|w| splits.iter().map(move |s| (*w, s))).collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || -> Result<()> {
        while let Some(((row, e, noise), split)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            let study = row.study(task, split.learn.rows(), *noise)?;
            let params = federate(&study, trainer.as_ref(), split, row.sites(task))
                .with_context(|| format!("{row:?} at epsilon {}", EPSILONS[*e]))?;
            let score = score(split, &params)?;
            let mut found = found.lock().expect("no thread panics with it");
            found.push(((*row, *e), split.seed, score));
            if found.len().is_multiple_of(10) {
                eprintln!("{}: {} of {} trainings", task.name, found.len(), work.len());
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        handles.into_iter().try_for_each(|h| h.join().expect("no thread panics"))
    })?;
    let mut found = found.into_inner()?;
    found.sort_by_key(|(key, seed, _)| (*key, *seed));
    let mut scores = Scores::new();
    found.into_iter().for_each(|(key, _, score)| scores.entry(key).or_default().push(score));
    if let Some(theirs) = opacus(task, dir, &splits, &noises(task, Row::Pooled)?)? {
        for (split, models) in splits.iter().zip(theirs) {
            for (e, params) in models.iter().enumerate() {
                scores.entry((Row::Opacus, e)).or_default().push(score(split, params)?);
            }
        }
    }
    Ok(scores)
}

fn main() -> Result<()> {
    let only: Vec<String> = env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    println!(
        "Mean over {SEEDS} seeds +- the half width of its 95 % interval, on a fifth of the records that was held out; delta {DELTA:e}, add or remove one unit; an asterisk marks a difference to Opacus on the same seeds whose 95 % interval leaves 0 out."
    );
    for task in tasks().iter().filter(|t| only.is_empty() || only.iter().any(|o| o == t.name)) {
        let dir = tempfile::tempdir()?;
        let scores = run(task, dir.path())?;
        println!("\n{}, {}", task.name, task.metric);
        println!(
            "{:36}{:8}{}",
            "",
            "unit",
            EPSILONS.map(|e| format!("{:18}", format!("epsilon {e}"))).concat()
        );
        let rows = [Row::Plain, Row::Opacus].into_iter().chain(OURS);
        for row in rows {
            let cell = |e: usize| {
                let Some(ours) = scores.get(&(row, e)) else {
                    return if row == Row::Plain { String::new() } else { "skipped".into() };
                };
                let (mean, half) = mean_and_half(ours);
                let theirs = scores.get(&(Row::Opacus, e)).filter(|_| row.unit() == "record");
                let apart = theirs.is_some_and(|theirs| {
                    let apart: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
                    let (mean, half) = mean_and_half(&apart);
                    mean.abs() > half
                });
                format!("{mean:.3} +- {half:.3}{}", if apart { " *" } else { "" })
            };
            let cells: Vec<String> =
                (0..EPSILONS.len()).map(|e| format!("{:18}", cell(e))).collect();
            println!("{:36}{:8}{}", row.title(task), row.unit(), cells.concat().trim_end());
        }
    }
    Ok(())
}
