//! What privacy costs, beside its peers and in one run: the accountant, the sampler, a DP-SGD step.
//!
//! `cargo xtask bench privacy` sets the peers up (Opacus, dp-accounting) and runs this; absolute times prove
//! nothing on a shared machine, so every figure is a ratio to something measured in the same minute, or is
//! printed beside it. Times are the process's own CPU time where one thread works.

mod masking;

use anyhow::{Context as _, Result, bail, ensure};
use falaj_agent::{
    config::TrainConfig,
    data::Batch,
    guard::LocalBatch,
    train::{Chance, Plan, Trainer as _, torch::Torch},
};
use falaj_core::{
    dp::{
        Batches, Distributed, ExactDiscreteGaussian, Noise as _, NoiseError, Poisson, Reservation,
        calibrate::{Accountant, Target},
        pld::{Adjacency, Schedule},
    },
    manifest::{Manifest, TensorSpec},
    model::{Conv, ModelSpec, Tokens},
    secagg::{Collector, Site},
    study::{Algorithm, Optimizer, Training},
    update::{Encoding, RawUpdate},
};
use masking::{cohort, signer, update_bytes};
use opendp::{
    domains::{AtomDomain, VectorDomain},
    measurements::make_gaussian,
    measures::ZeroConcentratedDivergence,
    metrics::L2Distance,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use serde_json::Value;
use std::{
    env,
    hint::black_box,
    process::Command,
    time::{Duration, Instant},
};
use tch::{Device, Kind, Reduction, Tensor, no_grad};

fn best(times: usize, mut work: impl FnMut()) -> Duration {
    (0..times)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed()
        })
        .min()
        .unwrap_or_default()
}

/// The best time in seconds of each kind of work, all taken in turn so that the machine's moods hit all.
fn side_by_side<const N: usize>(times: usize, mut works: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut found = [f64::INFINITY; N];
    for _ in 0..times {
        for (best, work) in found.iter_mut().zip(&mut works) {
            let started = Instant::now();
            work();
            *best = best.min(started.elapsed().as_secs_f64());
        }
    }
    found
}

fn report(what: &str, ratio: f64, aim: &str, detail: &str) {
    println!("{what:58} {ratio:>8.3}   aim {aim:10} {detail}");
}

/// What the peers measured, if they are there: `peers.py` prints one JSON object.
fn peers(part: &str) -> Result<Option<Value>> {
    let Some(python) = env::var_os("FALAJ_PEERS_PYTHON") else { return Ok(None) };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers.py");
    let out = Command::new(python).args([script, part]).output().context("running the peers")?;
    ensure!(out.status.success(), "peers: {}", String::from_utf8_lossy(&out.stderr));
    Ok(Some(serde_json::from_slice(&out.stdout)?))
}

type Part = fn() -> Result<()>;
const PARTS: [(&str, Part); 4] =
    [("accountant", accountant), ("sampler", sampler), ("dp-sgd", dp_sgd), ("secagg", secagg)];

fn main() -> Result<()> {
    let asked: Vec<String> = env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for part in &asked {
        if !PARTS.iter().any(|(name, _)| name == part) {
            bail!("there is no part `{part}`: choose from {:?}", PARTS.map(|(name, _)| name));
        }
    }
    tch::set_num_threads(1);
    for (name, part) in PARTS {
        if asked.is_empty() || asked.iter().any(|a| a == name) {
            part()?;
        }
    }
    Ok(())
}

/// Sample rate, noise multiplier, delta; all for 100,000 steps.
const PLANS: [(f64, f64, f64); 5] = [
    (0.001, 0.8, 1e-6),
    (0.01, 1.0, 1e-6),
    (0.1, 4.0, 1e-6),
    (0.05, 50.0, 1e-9),
    (1e-5, 1.0, 1e-9),
];

fn accountant() -> Result<()> {
    let theirs = peers("accountant")?;
    for (i, (q, sigma, delta)) in PLANS.into_iter().enumerate() {
        let schedule = Schedule::new(Adjacency::AddOrRemove).poisson_gaussian(
            Poisson::new(q)?,
            sigma,
            100_000,
        )?;
        let epsilon = schedule.epsilon(delta)?.value();
        let took = best(5, || {
            black_box(schedule.epsilon(delta).expect("an epsilon"));
        });
        let what = format!("epsilon of 1e5 steps, rate {q}, noise {sigma}");
        let ms = took.as_secs_f64() * 1e3;
        match &theirs {
            None => println!("{what:58} {ms:8.2} ms, epsilon {epsilon:.5}; peers skipped"),
            Some(theirs) => {
                let (seconds, value) = (&theirs[i]["seconds"], &theirs[i]["epsilon"]);
                let ratio = took.as_secs_f64() / seconds.as_f64().context("seconds")?;
                let detail = format!(
                    "of dp_accounting's time; {ms:.2} ms; epsilon {epsilon:.5}, theirs {value}"
                );
                report(&what, ratio, "<= 0.1", &detail);
            }
        }
    }
    let target =
        Target { epsilon: 4.0, delta: 1e-6, accountant: Accountant::Pld(Adjacency::AddOrRemove) };
    let mut noise = 0.0;
    let took = best(3, || noise = target.noise_multiplier(0.01, 100_000).expect("reachable"));
    report(
        "calibration of the noise multiplier, seconds",
        took.as_secs_f64(),
        "< 0.5",
        &format!("noise {noise:.6}"),
    );
    Ok(())
}

/// Chi-square of draws against the exact probabilities: a p-value (Wilson, Hilferty 1931).
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "statistics")]
fn p_value(draws: &[i64], sigma: f64) -> f64 {
    let width = ((sigma / 16.0).ceil() as i64).max(1);
    let reach = (7.0 * sigma).ceil() as i64 / width + 2;
    let cells = usize::try_from(2 * reach + 1).unwrap_or(1);
    let cell =
        |x: i64| usize::try_from((x.div_euclid(width) + reach).clamp(0, 2 * reach)).unwrap_or(0);
    let mut found = vec![0.0; cells];
    draws.iter().for_each(|&d| found[cell(d)] += 1.0);
    let mut expected = vec![0.0; cells];
    let far = (12.0 * sigma).ceil() as i64 + 1;
    // A coarse sum over a wide scale is as good as the exact one: the weights are smooth.
    let stride = (sigma as i64 / 20_000).max(1);
    for x in (-far..=far).step_by(usize::try_from(stride).unwrap_or(1)) {
        expected[cell(x)] += (-(x as f64).powi(2) / (2.0 * sigma * sigma)).exp();
    }
    let total: f64 = expected.iter().sum();
    let (mut chi, mut df, mut rare) = (0.0, -1.0, (0.0, 0.0));
    for (o, e) in found.iter().zip(&expected) {
        let e = e / total * draws.len() as f64;
        if e < 20.0 {
            rare = (rare.0 + o, rare.1 + e);
        } else {
            chi += (o - e).powi(2) / e;
            df += 1.0;
        }
    }
    if rare.1 > 5.0 {
        chi += (rare.0 - rare.1).powi(2) / rare.1;
        df += 1.0;
    }
    let df: f64 = df;
    let z = ((chi / df).cbrt() - (1.0 - 2.0 / (9.0 * df))) / (2.0 / (9.0 * df)).sqrt();
    // The upper tail of a standard normal.
    0.5 * libm::erfc(z / std::f64::consts::SQRT_2)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn correlation(pairs: &[(f64, f64)]) -> f64 {
    let n = pairs.len() as f64;
    let mean = |f: fn(&(f64, f64)) -> f64| pairs.iter().map(f).sum::<f64>() / n;
    let (a, b) = (mean(|p| p.0), mean(|p| p.1));
    let sum = |f: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(f).sum::<f64>();
    let both = sum(&|p| (p.0 - a) * (p.1 - b));
    both / (sum(&|p| (p.0 - a).powi(2)) * sum(&|p| (p.1 - b).powi(2))).sqrt()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn sampler() -> Result<()> {
    const OURS: usize = 8_000_000;
    const THEIRS: usize = 50_000;
    for sigma in [0.5, 1.0, 4.25, 100.0, 1_000.5, 65_536.0, 1e9] {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| anyhow::anyhow!("{e}"))?;
        let mut noise = ExactDiscreteGaussian::new(key);
        let mut values = vec![0_i64; OURS];
        noise.add(&mut values[..1], sigma)?;
        let took = best(3, || {
            values.fill(0);
            noise.add(&mut values, sigma).expect("noise");
        });
        let rate = OURS as f64 / took.as_secs_f64() / 1e6;
        let domain = VectorDomain::new(AtomDomain::<i64>::default());
        let metric = L2Distance::<f64>::default();
        let opendp = make_gaussian::<_, _, ZeroConcentratedDivergence>(domain, metric, sigma, None);
        let opendp = opendp.ok().context("OpenDP's sampler")?;
        let zeros = vec![0_i64; THEIRS];
        let started = Instant::now();
        black_box(opendp.invoke(&zeros).ok().context("OpenDP's draws")?);
        let theirs = THEIRS as f64 / started.elapsed().as_secs_f64() / 1e6;
        let p = p_value(&values, sigma);
        report(
            &format!("discrete Gaussian, scale {sigma}, million draws/s and core"),
            rate,
            ">= 40",
            &format!("OpenDP {theirs:.2}; chi-square p {p:.2} over {OURS} draws"),
        );
    }
    // Time of a call for one draw against the size of the draw.
    let (mut noise, mut pairs) = (ExactDiscreteGaussian::new([7; 32]), Vec::new());
    let domain = VectorDomain::new(AtomDomain::<i64>::default());
    let metric = L2Distance::<f64>::default();
    let opendp = make_gaussian::<_, _, ZeroConcentratedDivergence>(domain, metric, 100.0, None);
    let opendp = opendp.ok().context("OpenDP's sampler")?;
    let mut theirs = Vec::new();
    for _ in 0..100_000 {
        let mut value = [0];
        let started = Instant::now();
        noise.add(&mut value, 100.0)?;
        pairs.push((value[0].unsigned_abs() as f64, started.elapsed().as_nanos() as f64));
        let started = Instant::now();
        let drawn = opendp.invoke(&vec![0]).ok().context("OpenDP's draw")?;
        theirs.push((drawn[0].unsigned_abs() as f64, started.elapsed().as_nanos() as f64));
    }
    // An interrupt is no property of the draw: the slowest hundredth is left out.
    let quiet = |mut pairs: Vec<(f64, f64)>| {
        pairs.sort_by(|a, b| a.1.total_cmp(&b.1));
        pairs.truncate(pairs.len() * 99 / 100);
        correlation(&pairs)
    };
    let (ours, theirs) = (quiet(pairs), quiet(theirs));
    report(
        "correlation of a draw's time with its size",
        ours,
        "|r| < 0.02",
        &format!("OpenDP {theirs:.3}"),
    );
    Ok(())
}

/// A model, its inputs, and the mean size of a batch.
fn nets() -> [(&'static str, ModelSpec, usize, usize, &'static str); 4] {
    let conv = |filters, kernel| Conv { filters, kernel, stride: 1, pool: 2, groups: 0 };
    let mlp = |features, hidden, classes| ModelSpec::Mlp { features, hidden, classes };
    let cnn = ModelSpec::Cnn {
        height: 28,
        width: 28,
        channels: 1,
        conv: vec![conv(16, 5), conv(32, 5)],
        hidden: 32,
        classes: 10,
    };
    let transformer = ModelSpec::Transformer {
        tokens: Tokens::Steps { length: 64, channels: 16 },
        width: 128,
        heads: 4,
        blocks: 4,
        feed_forward: 256,
        classes: 2,
    };
    [
        ("MLP 30-128-64-2", mlp(30, vec![128, 64], 2), 30, 256, "<= 1.4"),
        ("MLP of 1 M", mlp(784, vec![1024, 256], 10), 784, 128, "<= 1.4"),
        ("CNN of 40 k", cnn, 784, 256, "<= 1.6"),
        ("transformer of 0.5 M", transformer, 1_024, 16, "<= 1.6"),
    ]
}

/// Logits from parameters and inputs.
type Forward = Box<dyn Fn(&[Tensor], &Tensor) -> Tensor>;

/// A step of plain SGD by libtorch's own derivatives: forward, backward, update.
struct Plain {
    params: Vec<Tensor>,
    forward: Forward,
}

impl Plain {
    fn new(model: &ModelSpec, device: Device) -> Result<Self> {
        let manifest = model.manifest()?;
        let values = model.init([1; 32])?;
        let params = manifest.ranges().map(|(spec, range)| {
            let shape: Vec<i64> = spec.shape.iter().map(|&d| i64::from(d)).collect();
            let leaf = Tensor::from_slice(&values[range]).to_device(device).reshape(shape);
            leaf.set_requires_grad(true)
        });
        let params = params.collect();
        let forward: Forward = match *model {
            ModelSpec::Cnn { .. } => Box::new(|p, x| {
                let conv = |h: &Tensor, i: usize| {
                    let h = h.conv2d(&p[i], Some(&p[i + 1]), [1, 1], [0, 0], [1, 1], 1);
                    h.relu().max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)
                };
                let h = conv(&conv(&x.view([-1, 1, 28, 28]), 0), 2).flatten(1, -1);
                h.linear(&p[4], Some(&p[5])).relu().linear(&p[6], Some(&p[7]))
            }),
            ModelSpec::Transformer { .. } => Box::new(|p, x| {
                let norm = |h: &Tensor, i: usize| {
                    h.layer_norm([128], Some(&p[i]), Some(&p[i + 1]), 1e-5, false)
                };
                let mut h = x.view([-1, 64, 16]).linear(&p[0], Some(&p[1])) + &p[2];
                for block in 0..4 {
                    let i = 3 + 12 * block;
                    let three = norm(&h, i).linear(&p[i + 2], Some(&p[i + 3]));
                    let three = three.view([-1, 64, 3, 4, 32]).permute([2, 0, 3, 1, 4]);
                    let mixed = Tensor::scaled_dot_product_attention::<&Tensor>(
                        &three.select(0, 0),
                        &three.select(0, 1),
                        &three.select(0, 2),
                        None,
                        0.0,
                        false,
                        None,
                        false,
                    );
                    let mixed = mixed.transpose(1, 2).reshape([-1, 64, 128]);
                    h = &h + mixed.linear(&p[i + 4], Some(&p[i + 5]));
                    let inner = norm(&h, i + 6).linear(&p[i + 8], Some(&p[i + 9])).gelu("none");
                    h = &h + inner.linear(&p[i + 10], Some(&p[i + 11]));
                }
                let n = p.len();
                norm(&h, n - 4).mean_dim(1, false, Kind::Float).linear(&p[n - 2], Some(&p[n - 1]))
            }),
            _ => Box::new(|p, x| {
                let mut h = x.shallow_clone();
                for i in (0..p.len()).step_by(2) {
                    h = h.linear(&p[i], Some(&p[i + 1]));
                    if i + 2 < p.len() {
                        h = h.relu();
                    }
                }
                h
            }),
        };
        Ok(Self { params, forward })
    }

    fn step(&mut self, x: &Tensor, y: &Tensor) {
        let logits = (self.forward)(&self.params, x);
        let loss = logits.cross_entropy_loss::<Tensor>(y, None, Reduction::Mean, -100, 0.0);
        let gradients = Tensor::run_backward(&[&loss], &self.params, false, false);
        no_grad(|| {
            for (p, g) in self.params.iter_mut().zip(&gradients) {
                let _ = p.g_sub_(&(g * 0.01));
            }
        });
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn dp_sgd() -> Result<()> {
    let theirs = peers("dp-sgd")?;
    for device in ["cpu", "cuda:0"] {
        let gpu = device != "cpu";
        let config = TrainConfig {
            device: device.into(),
            libtorch_cuda: env::var_os("FALAJ_LIBTORCH_CUDA").map(Into::into),
            ..TrainConfig::default()
        };
        let Ok(torch) = Torch::new(&config) else {
            println!(
                "{:58}  skipped: this machine has no GPU that libtorch can use",
                "DP-SGD on a GPU"
            );
            continue;
        };
        let on = if gpu { Device::Cuda(0) } else { Device::Cpu };
        for (name, model, width, rows, aim) in nets() {
            // Batches of that many records on average, as Poisson sampling gives them.
            let total = rows * 10;
            let features: Vec<f32> =
                (0..total * width).map(|i| (i * 7_919 % 1_000) as f32 / 500.0 - 1.0).collect();
            let labels: Vec<u32> = (0..total).map(|i| u32::from(i % 2 == 0)).collect();
            let x = Tensor::from_slice(&features[..rows * width])
                .view([-1, i64::try_from(width)?])
                .to_device(on);
            let y: Vec<i64> = labels[..rows].iter().map(|&l| i64::from(l)).collect();
            let y = Tensor::from_slice(&y).to_device(on);
            let records = LocalBatch::for_this_site_only(Batch { features, labels, width });
            let steps = if width > 100 { 20 } else { 200 };
            let tenth = Batches::Poisson(Poisson::new(0.1)?);
            let plan = |dp| Plan {
                model: model.clone(),
                training: Training {
                    algorithm: Algorithm::FedAvg,
                    local_steps: steps,
                    batches: tenth,
                    learning_rate: 0.01,
                    optimizer: Optimizer::Sgd { momentum: 0.0 },
                    server_learning_rate: 1.0,
                },
                dp,
                correlated: None,
                first_step: 0,
                adaptive: None,
                summed: None,
                records: total as f64,
            };
            let base = model.init([1; 32])?;
            let (with, without) = (plan(Some((1.0, 1.0))), plan(None));
            let ours = |plan: &Plan| {
                let mut chance = Chance::fresh();
                black_box(torch.run(&records, plan, &base, &mut chance).expect("an update"));
            };
            let mut plain = Plain::new(&model, on)?;
            let sgd = || {
                (0..steps).for_each(|_| plain.step(&x, &y));
                if gpu {
                    tch::Cuda::synchronize(0);
                }
            };
            let [sgd, private, open] =
                side_by_side(9, [&mut { sgd }, &mut || ours(&with), &mut || ours(&without)]);
            let ms = private * 1e3 / f64::from(steps);
            let peer = theirs.as_ref().and_then(|t| t[device].get(name)).map_or_else(
                || "Opacus skipped".to_owned(),
                |t| format!("Opacus {t} of its own plain step"),
            );
            report(
                &format!("DP-SGD step of plain SGD's, {device}, {name}"),
                private / sgd,
                aim,
                &format!(
                    "noise and sampling included; {ms:.2} ms; ours without privacy {:.2}; {peer}",
                    open / sgd
                ),
            );
        }
    }
    Ok(())
}

/// Secure aggregation of a million parameters in memory: every site's and the coordinator's work on one core, and
/// the bytes of all messages over those of the plain updates.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn secagg() -> Result<()> {
    const PARAMS: usize = 1_000_000;
    let shape = vec![u32::try_from(PARAMS)?];
    let manifest = Manifest::new(vec![TensorSpec { name: "w".into(), shape }])?;
    // 24 bits hold the sum of 200 updates of 16.
    let encoding = Encoding::new(24, 1.0)?;
    let noise = Distributed::new(1 << 30, 1.0, (3, 0))?;
    let mut rng = ChaCha20Rng::from_seed([5; 32]);
    for (n, away) in
        [10, 50, 200].into_iter().flat_map(|n: usize| [(n, 0), (n, n / 10), (n, 3 * n / 10)])
    {
        // Of them 30 % may drop out, and 5 % collude.
        let terms = (u32::try_from(n - 3 * n / 10)?, u32::try_from(n / 20)?);
        let cohort = cohort(n, terms, encoding, PARAMS)?;
        let seal = || {
            let raw = RawUpdate::new((0..PARAMS).map(|i| (i % 1_000) as f32 - 500.0).collect());
            let paid = Reservation::from_ledger(1);
            noise.seal(raw, paid, (encoding, 3), &manifest, &mut NoNoise)
        };
        let plain = (n - away) * PARAMS * encoding.bytes_per_value();
        let mut bytes = 0;
        let mut site_time = Duration::ZERO;
        let started = Instant::now();
        let mut collector = Collector::new(cohort.clone());
        let (mut sites, mut adverts) = (Vec::new(), Vec::new());
        for i in 0..n {
            let (site, advert) =
                Site::advertise(cohort.clone(), u16::try_from(i)?, signer(i), &mut rng)?;
            sites.push(site);
            adverts.push(advert);
        }
        // Every site is sent all adverts.
        bytes += adverts.iter().map(|a| a.to_bytes(&cohort).len() * (n + 1)).sum::<usize>();
        adverts.iter().try_for_each(|a| collector.advertised(a))?;
        let (mut shared, mut mail) = (Vec::new(), vec![Vec::new(); n]);
        for (i, site) in sites.into_iter().enumerate() {
            let at = Instant::now();
            let (site, envelopes) = site.share(&adverts, &mut rng)?;
            site_time += at.elapsed();
            collector.dealt(u16::try_from(i)?, &envelopes)?;
            for e in envelopes {
                bytes += 2 * e.to_bytes(&cohort).len();
                mail[usize::from(e.to())].push(e);
            }
            shared.push(site);
        }
        let mut masked = Vec::new();
        for (i, site) in shared.into_iter().enumerate().take(n - away) {
            let update = seal()?;
            let at = Instant::now();
            let (site, update) = site.mask(&mail[i], update)?;
            site_time += at.elapsed();
            let payload = update_bytes(update);
            bytes += payload.len();
            collector.masked(u16::try_from(i)?, &payload)?;
            masked.push(site);
        }
        let survivors = collector.survivors();
        let (mut confirmed, mut confirmations) = (Vec::new(), Vec::new());
        for site in masked {
            let (site, confirmation) = site.confirm(&survivors)?;
            confirmed.push(site);
            confirmations.push(confirmation);
        }
        let one = confirmations[0].to_bytes(&cohort).len();
        bytes += confirmations.len() * (one + confirmations.len() * one + 2 * survivors.len());
        confirmations.iter().try_for_each(|c| collector.confirmed(c))?;
        for site in confirmed {
            let reveal = site.reveal(&confirmations)?;
            bytes += reveal.to_bytes(&cohort).len();
            collector.reveal(&reveal)?;
        }
        let unmasking = Instant::now();
        let sum = collector.sum()?;
        let unmasking = unmasking.elapsed();
        let there = i32::try_from(n - away)?;
        ensure!(
            sum.values
                .iter()
                .enumerate()
                .all(|(i, v)| *v == there * (i32::try_from(i % 1_000).unwrap_or(0) - 500))
        );
        report(
            &format!("secure aggregation, {n} sites, {away} drop out: bytes of plain"),
            bytes as f64 / plain as f64,
            "<= 1.3",
            &format!(
                "{} neighbours; a site {:.0} ms, unmasking {:.2} s, all on one core {:.1} s",
                cohort.graph().neighbours(0).len(),
                site_time.as_secs_f64() * 1e3 / n as f64,
                unmasking.as_secs_f64(),
                started.elapsed().as_secs_f64()
            ),
        );
    }
    Ok(())
}

/// What is measured is masking, not noise.
struct NoNoise;
impl falaj_core::dp::Noise for NoNoise {
    fn add(&mut self, _: &mut [i64], _: f64) -> Result<(), NoiseError> {
        Ok(())
    }
}
