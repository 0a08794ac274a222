//! Training with libtorch, on CPU or GPU: every model that a study can declare.
//!
//! DP-SGD by book-keeping (`tape`), or one record at a time where the configuration asks for it. A large
//! Poisson batch is taken in several passes of bounded memory, whose sums are added before the noise.

mod nets;
mod tape;

use super::{Chance, Outcome, Plan, TrainError, Trainer, batches::Turns, cuda, step::Descent};
use crate::{
    config::TrainConfig,
    data::{Batch, aim},
    guard::LocalBatch,
};
use falaj_core::{
    manifest::{Manifest, ManifestError, TensorSpec},
    model::{Layer, ModelSpec, Tokens},
};
use std::ops::Range;
use tape::Tape;
use tch::{Device, Kind, Reduction, TchError, Tensor, no_grad};

/// Values that one pass may hold: 256 MiB of f32.
const PASS_VALUES: usize = 1 << 26;
/// Records in one pass at most.
const PASS_ROWS: usize = 4_096;

/// The torch trainer on one device.
#[derive(Clone, Copy, Debug)]
pub struct Torch {
    device: Device,
    /// What products are computed in.
    compute: Kind,
    micro_batches: bool,
}

/// A model with its parameters.
struct Net<'a> {
    model: &'a ModelSpec,
    layers: &'a [Layer],
    params: &'a [Tensor],
    compute: Kind,
    own_values: i64,
}

impl From<TchError> for TrainError {
    fn from(e: TchError) -> Self {
        // The first line says what; the rest is libtorch's own stack.
        Self::Library(e.to_string().lines().next().unwrap_or_default().to_owned())
    }
}

impl Torch {
    /// A trainer on the device that a configuration asks for.
    ///
    /// # Errors
    /// [`TrainError::Library`] when a GPU is asked for and cannot be had.
    pub fn new(config: &TrainConfig) -> Result<Self, TrainError> {
        let threads = i32::try_from(config.threads.max(1)).unwrap_or(1);
        tch::set_num_threads(threads);
        let device = Self::device(config)?;
        let mixed = config.precision == "mixed";
        let compute = if mixed { Kind::BFloat16 } else { Kind::Float };
        Ok(Self { device, compute, micro_batches: config.micro_batches })
    }

    fn device(config: &TrainConfig) -> Result<Device, TrainError> {
        if config.device == "cpu" {
            return Ok(Device::Cpu);
        }
        if let Some(folder) = &config.libtorch_cuda
            && let Err(e) = cuda::load(folder)
        {
            if config.device != "auto" {
                return Err(TrainError::Library(format!("CUDA cannot be loaded: {e}")));
            }
            tracing::warn!(error = e, "CUDA cannot be loaded; training on the CPU");
        }
        let wanted = config.device.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok());
        let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        match wanted {
            Some(n) if n < count => Ok(Device::Cuda(n)),
            Some(n) => Err(TrainError::Library(format!(
                "there is no GPU {n} ({count} found); set `train.libtorch_cuda` to the `lib` folder of a full PyTorch, or `train.device = \"cpu\"`"
            ))),
            None if count > 0 => Ok(Device::Cuda(0)),
            None => Ok(Device::Cpu),
        }
    }

    /// A model's layers and the shapes of its parameters, which `params` must fit.
    fn shapes(model: &ModelSpec, params: &[f32]) -> Result<(Vec<Layer>, Manifest), TrainError> {
        let library = |e: ManifestError| TrainError::Library(e.to_string());
        let manifest = model.manifest().map_err(library)?;
        if params.len() != manifest.params() {
            let (found, expected) = (params.len(), manifest.params());
            return Err(TrainError::Shape { found, expected });
        }
        Ok((model.layers().map_err(library)?, manifest))
    }

    fn net<'a>(self, model: &'a ModelSpec, layers: &'a [Layer], params: &'a [Tensor]) -> Net<'a> {
        Net { model, layers, params, compute: self.compute, own_values: tape::OWN_VALUES }
    }

    /// Parameters as tensors, in manifest order.
    fn tensors(self, manifest: &Manifest, params: &[f32]) -> Result<Vec<Tensor>, TchError> {
        let tensor = |(spec, range): (&TensorSpec, Range<usize>)| {
            let shape: Vec<i64> = spec.shape.iter().map(|&d| i64::from(d)).collect();
            Tensor::f_from_slice(&params[range])?.f_to_device(self.device)?.f_reshape(shape)
        };
        manifest.ranges().map(tensor).collect()
    }

    /// Rows as the model's input.
    fn inputs(
        self,
        batch: &Batch,
        rows: &[usize],
        model: &ModelSpec,
    ) -> Result<(Tensor, Tensor), TchError> {
        let mut values = Vec::with_capacity(rows.len() * batch.width);
        rows.iter().for_each(|&row| values.extend_from_slice(batch.row(row)));
        let labels = rows.iter().map(|&row| batch.labels[row]);
        let y = if model.classes() == 1 {
            Tensor::f_from_slice(&labels.map(aim).collect::<Vec<f32>>())?.f_unsqueeze(1)?
        } else {
            Tensor::f_from_slice(&labels.map(i64::from).collect::<Vec<i64>>())?
        };
        let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        let x = Tensor::f_from_slice(&values)?.f_to_device(self.device)?;
        Ok((nets::shaped(model, &x, count)?, y.f_to_device(self.device)?))
    }
}

/// The sum of the records' losses: cross entropy, or half the squared error of a number.
fn loss(model: &ModelSpec, outputs: &Tensor, y: &Tensor) -> Result<Tensor, TchError> {
    if model.classes() == 1 {
        return outputs.f_to_kind(Kind::Float)?.f_mse_loss(y, Reduction::Sum)?.f_mul_scalar(0.5);
    }
    outputs.f_cross_entropy_loss::<Tensor>(y, None, Reduction::Sum, -100, 0.0)
}

/// Sum over the batch of each record's gradient, clipped in L2 to `clip` when there is one, by parameter;
/// and each record's norm before clipping, when it was needed.
fn clipped_sum(
    net: &Net<'_>,
    x: &Tensor,
    y: &Tensor,
    clip: Option<f64>,
) -> Result<(Vec<Tensor>, Option<Tensor>), TchError> {
    let mut tape = Tape::new(net.layers, net.params, net.compute, Some(net.own_values));
    let logits = nets::forward(net.model, &mut tape, x)?;
    let loss = loss(net.model, &logits, y)?;
    tape.clipped_sum(&loss, clip)
}

/// The same by libtorch's own derivatives, one record at a time: slow, and right for any layer.
fn micro_batched_sum(
    net: &Net<'_>,
    x: &Tensor,
    y: &Tensor,
    clip: Option<f64>,
) -> Result<(Vec<Tensor>, Option<Tensor>), TchError> {
    let leaves: Vec<Tensor> =
        net.params.iter().map(|t| t.detach().copy().set_requires_grad(true)).collect();
    let mut sums: Vec<Tensor> = net.params.iter().map(Tensor::zeros_like).collect();
    let mut norms = Vec::new();
    for i in 0..x.size()[0] {
        let mut tape = Tape::new(net.layers, &leaves, net.compute, None);
        let logits = nets::forward(net.model, &mut tape, &x.f_narrow(0, i, 1)?)?;
        let own = y.f_narrow(0, i, 1)?;
        let loss = loss(net.model, &logits, &own)?;
        let gradients = Tensor::f_run_backward(&[&loss], &leaves, false, false)?;
        no_grad(|| -> Result<(), TchError> {
            let mut squares = 0.0;
            for g in &gradients {
                squares += g.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
            }
            let norm = f64::sqrt(squares);
            let factor = clip.map_or(1.0, |clip| (clip / norm).min(1.0));
            for (sum, g) in sums.iter_mut().zip(&gradients) {
                *sum = sum.f_add(&g.f_mul_scalar(factor)?)?;
            }
            norms.push(norm);
            Ok(())
        })?;
    }
    let norms = clip.is_some().then(|| Tensor::from_slice(&norms).to_kind(Kind::Float));
    Ok((sums, norms))
}

/// Tensors as one run of numbers, in manifest order.
fn flat(tensors: &[Tensor], out: &mut [f32]) -> Result<(), TchError> {
    let mut at = 0;
    for t in tensors {
        let count = t.numel();
        let here = t.f_to_device(Device::Cpu)?.f_contiguous()?.f_view(-1)?;
        here.f_copy_data(&mut out[at..at + count], count)?;
        at += count;
    }
    Ok(())
}

impl Trainer for Torch {
    fn name(&self) -> &'static str {
        "torch"
    }

    fn run(
        &self,
        records: &LocalBatch,
        plan: &Plan,
        base: &[f32],
        chance: &mut Chance,
    ) -> Result<Outcome, TrainError> {
        let batch = records.batch();
        let (layers, manifest) = Self::shapes(&plan.model, base)?;
        let mut descent = Descent::new(plan, base, chance)?;
        let mut sum = vec![0.0_f32; base.len()];
        let mut turns = Turns::new(plan, batch);
        for _ in 0..plan.training.local_steps {
            let rows = turns.next(chance);
            let params = self.tensors(&manifest, descent.params())?;
            let net = self.net(&plan.model, &layers, &params);
            let count = plan.adaptive.is_some();
            let within = self.batch_sum(&net, batch, &rows, (descent.clip(), count), &mut sum)?;
            descent.step((rows.len(), within), &sum)?;
        }
        Ok(descent.finish())
    }

    fn logits(
        &self,
        records: &Batch,
        model: &ModelSpec,
        params: &[f32],
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let (layers, manifest) = Self::shapes(model, params)?;
        let tensors = self.tensors(&manifest, params)?;
        let rows: Vec<usize> = (0..records.rows()).collect();
        let mut out = Vec::with_capacity(rows.len());
        for pass in rows.chunks(pass_rows(model, &layers)) {
            let (x, _) = self.inputs(records, pass, model)?;
            let mut tape = Tape::new(&layers, &tensors, self.compute, None);
            let logits = no_grad(|| nets::forward(model, &mut tape, &x))?;
            let classes = usize::try_from(logits.size()[1]).unwrap_or(0);
            let mut values = vec![0.0; pass.len() * classes];
            flat(&[logits], &mut values)?;
            out.extend(values.chunks(classes.max(1)).map(<[f32]>::to_vec));
        }
        Ok(out)
    }

    fn input_gradients(
        &self,
        records: &Batch,
        model: &ModelSpec,
        params: &[f32],
    ) -> Result<Vec<f32>, TrainError> {
        if matches!(model, ModelSpec::Transformer { tokens: Tokens::Codes { .. }, .. }) {
            let what = "inputs that are codes cannot be moved by a little";
            return Err(TrainError::Library(what.into()));
        }
        let (layers, manifest) = Self::shapes(model, params)?;
        let tensors = self.tensors(&manifest, params)?;
        let rows: Vec<usize> = (0..records.rows()).collect();
        let mut out = vec![0.0; records.rows() * records.width];
        let passes = rows.chunks(pass_rows(model, &layers));
        let mut at = 0;
        for pass in passes {
            let (x, y) = self.inputs(records, pass, model)?;
            let x = x.f_detach()?.f_set_requires_grad(true)?;
            let mut tape = Tape::new(&layers, &tensors, self.compute, None);
            let logits = nets::forward(model, &mut tape, &x)?.f_to_kind(Kind::Float)?;
            let loss = loss(model, &logits, &y)?;
            let gradients = Tensor::f_run_backward(&[&loss], &[&x], false, false)?;
            let values = pass.len() * records.width;
            flat(&gradients, &mut out[at..at + values])?;
            at += values;
        }
        Ok(out)
    }
}

/// Records that one pass takes in bounded memory.
fn pass_rows(model: &ModelSpec, layers: &[Layer]) -> usize {
    (PASS_VALUES / nets::values_per_record(model, layers)).clamp(1, PASS_ROWS)
}

impl Torch {
    /// The clipped sum of a batch of any size, into `out`, and, if they are to be counted, how many of its
    /// records were within the bound.
    fn batch_sum(
        self,
        net: &Net<'_>,
        batch: &Batch,
        rows: &[usize],
        (clip, count): (Option<f64>, bool),
        out: &mut [f32],
    ) -> Result<usize, TchError> {
        let one_pass = if self.micro_batches { micro_batched_sum } else { clipped_sum };
        let mut total: Option<Vec<Tensor>> = None;
        let mut within = 0;
        for pass in rows.chunks(pass_rows(net.model, net.layers)) {
            let (x, y) = self.inputs(batch, pass, net.model)?;
            let (sums, norms) = one_pass(net, &x, &y, clip)?;
            if let (true, Some(clip), Some(norms)) = (count, clip, norms) {
                let inside = norms.f_le(clip)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
                within += usize::try_from(inside).unwrap_or(0);
            }
            total = Some(match total {
                Some(before) => {
                    before.iter().zip(&sums).map(|(a, b)| a.f_add(b)).collect::<Result<_, _>>()?
                }
                None => sums,
            });
        }
        if let Some(total) = total {
            flat(&total, out)?;
        } else {
            // An empty batch: the noise that follows is all there is.
            out.fill(0.0);
        }
        Ok(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::model::Conv;

    fn cpu() -> Torch {
        Torch::new(&TrainConfig { device: "cpu".into(), ..TrainConfig::default() }).expect("a CPU")
    }

    fn records(rows: usize, width: usize, classes: u32) -> Batch {
        let mut chance = Chance::insecure(b"records");
        #[expect(clippy::cast_possible_truncation, reason = "test data")]
        let features = (0..rows * width).map(|_| chance.normal() as f32).collect();
        let labels = (0..rows).map(|r| u32::try_from(r).expect("small") % classes).collect();
        Batch { features, labels, width }
    }

    /// The loss's derivative by each input, against the difference of losses a little way apart.
    #[test]
    fn gradients_by_inputs_are_those_of_small_steps() {
        let conv = vec![Conv { filters: 3, kernel: 2, stride: 1, pool: 1, groups: 0 }];
        let cnn = ModelSpec::Cnn { height: 3, width: 4, channels: 1, conv, hidden: 5, classes: 3 };
        let tokens = Tokens::Columns { features: 12 };
        let (width, heads, blocks) = (8, 2, 1);
        let transformer =
            ModelSpec::Transformer { tokens, width, heads, blocks, feed_forward: 8, classes: 3 };
        let mlp = ModelSpec::Mlp { features: 12, hidden: vec![6], classes: 3 };
        for model in [ModelSpec::Logistic { features: 12, classes: 3 }, mlp, cnn, transformer] {
            let batch = records(5, 12, 3);
            let params = model.init([3; 32]).expect("a model");
            let slopes = cpu().input_gradients(&batch, &model, &params).expect("slopes");
            assert_eq!(slopes.len(), batch.features.len());
            let losses = |batch: &Batch| -> Vec<f64> {
                let logits = cpu().logits(batch, &model, &params).expect("logits");
                let loss = |(row, mut p): (usize, Vec<f32>)| {
                    crate::train::linear::softmax(&mut p);
                    -f64::from(p[batch.labels[row] as usize]).ln()
                };
                logits.into_iter().enumerate().map(loss).collect()
            };
            for input in [0, 5, 11] {
                let step = |by: f32| {
                    let mut moved = batch.clone();
                    (0..5).for_each(|row| moved.features[row * 12 + input] += by);
                    losses(&moved)
                };
                let (up, down) = (step(5e-3), step(-5e-3));
                for row in 0..5 {
                    let slope = (up[row] - down[row]) / 1e-2;
                    let ours = f64::from(slopes[row * 12 + input]);
                    // Where an activation bends in between, both are right.
                    assert!((slope - ours).abs() < 0.05, "{model:?} {row} {input}: {slope} {ours}");
                }
            }
        }
        let tokens = Tokens::Codes { length: 12, vocabulary: 4 };
        let codes =
            ModelSpec::Transformer { tokens, width, heads, blocks, feed_forward: 8, classes: 3 };
        let params = codes.init([3; 32]).expect("a model");
        let refused = cpu().input_gradients(&records(5, 12, 3), &codes, &params);
        assert!(refused.expect_err("refused").to_string().contains("codes cannot be moved"));
    }

    const CLIP: f64 = 0.7;

    fn net_sums(
        torch: Torch,
        model: &ModelSpec,
        width: usize,
        classes: u32,
        by: impl Fn(
            &Net<'_>,
            &Tensor,
            &Tensor,
            Option<f64>,
        ) -> Result<(Vec<Tensor>, Option<Tensor>), TchError>,
        (clip, own_values): (Option<f64>, i64),
    ) -> (Vec<Tensor>, Option<Tensor>) {
        let batch = records(17, width, classes);
        let params = model.init([3; 32]).expect("a model");
        let (layers, manifest) = Torch::shapes(model, &params).expect("shapes");
        let params = torch.tensors(&manifest, &params).expect("tensors");
        let rows: Vec<usize> = (0..batch.rows()).collect();
        let (x, y) = torch.inputs(&batch, &rows, model).expect("inputs");
        let net = Net { own_values, ..torch.net(model, &layers, &params) };
        by(&net, &x, &y, clip).expect("a sum")
    }

    /// Book-keeping against libtorch's own derivatives, record by record: norms, and every parameter's
    /// clipped and unclipped sum.
    fn agrees(model: &ModelSpec, width: usize, classes: u32) {
        // Each record's own gradients where they may be had, and Gram matrices where they may not.
        for how in [(Some(CLIP), tape::OWN_VALUES), (Some(CLIP), 0), (None, 0)] {
            let (ours, norms) = net_sums(cpu(), model, width, classes, clipped_sum, how);
            let (theirs, own_norms) =
                net_sums(cpu(), model, width, classes, micro_batched_sum, how);
            if let (Some(a), Some(b)) = (norms, own_norms) {
                let worst = (&a / &b - 1.0).abs().max().double_value(&[]);
                assert!(worst < 1e-5, "norms: {worst}");
                let clipped = b.gt(CLIP).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
                assert!(clipped > 0.5, "hardly anything was clipped: {clipped}");
            }
            for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                assert_eq!(a.size(), b.size(), "parameter {i}");
                let worst = ((a - b).abs().max() / (b.abs().max() + 1.0)).double_value(&[]);
                assert!(worst < 1e-5, "parameter {i}: {worst}");
            }
        }
    }

    fn transformer(tokens: Tokens, width: u32) -> ModelSpec {
        ModelSpec::Transformer { tokens, width, heads: 2, blocks: 2, feed_forward: 12, classes: 3 }
    }

    const fn layer(filters: u32, kernel: u32, pool: u32, groups: u32) -> Conv {
        Conv { filters, kernel, stride: 1, pool, groups }
    }

    #[test]
    fn book_keeping_agrees_with_one_record_at_a_time_for_an_mlp() {
        agrees(&ModelSpec::Mlp { features: 6, hidden: vec![9, 5], classes: 3 }, 6, 3);
        agrees(&ModelSpec::Logistic { features: 6, classes: 3 }, 6, 3);
    }

    #[test]
    fn book_keeping_agrees_with_one_record_at_a_time_for_a_number() {
        // Labels of 0 to 2 are all but at the least of the bounds.
        agrees(&ModelSpec::Mlp { features: 6, hidden: vec![9, 5], classes: 1 }, 6, 3);
        agrees(&ModelSpec::Logistic { features: 6, classes: 1 }, 6, 3);
    }

    #[test]
    fn a_number_is_learned_as_the_plain_trainer_learns_it() {
        use crate::train::{
            linear::Linear,
            step::tests::{SGD, plan},
        };
        use falaj_core::{
            dp::{Batches, Poisson},
            study::Training,
        };
        let model = ModelSpec::Logistic { features: 4, classes: 1 };
        let mut batch = records(30, 4, 1);
        batch.labels = (0..30).map(|i| i * (u32::MAX / 29)).collect();
        let plan = plan(None, SGD);
        let (local_steps, batches) = (5, Batches::Poisson(Poisson::ALL));
        let training = Training { local_steps, batches, learning_rate: 0.1, ..plan.training };
        let plan = Plan { model: model.clone(), training, ..plan };
        let base = model.init([3; 32]).expect("a model");
        let slopes = |t: &dyn Trainer| t.input_gradients(&batch, &model, &base).expect("slopes");
        let update = |t: &dyn Trainer| {
            let admitted = LocalBatch::for_this_site_only(batch.clone());
            let outcome = t.run(&admitted, &plan, &base, &mut Chance::insecure(b"number"));
            let mut params = vec![0.0; base.len()];
            outcome.expect("trained").update.apply_locally(&mut params);
            params
        };
        for (a, b) in [(slopes(&cpu()), slopes(&Linear)), (update(&cpu()), update(&Linear))] {
            assert_eq!(a.len(), b.len());
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4), "{a:?} {b:?}");
            assert!(a.iter().any(|a| a.abs() > 1e-2), "{a:?}");
        }
    }

    #[test]
    fn book_keeping_agrees_with_one_record_at_a_time_for_a_cnn() {
        let conv = vec![layer(4, 3, 2, 0), Conv { stride: 2, ..layer(5, 2, 1, 0) }];
        let model =
            ModelSpec::Cnn { height: 9, width: 9, channels: 1, conv, hidden: 7, classes: 4 };
        agrees(&model, 81, 4);
        // A kernel of one place skips rows as it skips columns.
        let conv = vec![Conv { stride: 2, ..layer(4, 1, 1, 0) }, layer(5, 2, 1, 0)];
        let model =
            ModelSpec::Cnn { height: 7, width: 9, channels: 2, conv, hidden: 7, classes: 4 };
        agrees(&model, 126, 4);
        // Few places and many channels: norms come from Gram matrices.
        let conv = vec![layer(24, 3, 1, 0)];
        let model =
            ModelSpec::Cnn { height: 4, width: 4, channels: 3, conv, hidden: 7, classes: 4 };
        agrees(&model, 48, 4);
    }

    #[test]
    fn book_keeping_agrees_with_one_record_at_a_time_for_a_series_and_group_normalisation() {
        let conv = vec![layer(4, 3, 2, 2), Conv { stride: 2, ..layer(6, 3, 1, 3) }];
        let model =
            ModelSpec::Cnn { height: 1, width: 20, channels: 2, conv, hidden: 7, classes: 4 };
        agrees(&model, 40, 4);
    }

    #[test]
    fn book_keeping_agrees_with_one_record_at_a_time_for_transformers() {
        agrees(&transformer(Tokens::Columns { features: 6 }, 8), 6, 3);
        // Fewer codes than places: some are looked up more than once.
        agrees(&transformer(Tokens::Codes { length: 9, vocabulary: 5 }, 8), 9, 3);
        agrees(&transformer(Tokens::Steps { length: 3, channels: 4 }, 16), 12, 3);
        agrees(&transformer(Tokens::Steps { length: 20, channels: 2 }, 6), 40, 3);
    }

    #[test]
    fn a_large_batch_in_passes_sums_to_the_whole() {
        let model = ModelSpec::Mlp { features: 6, hidden: vec![9], classes: 3 };
        let batch = records(PASS_ROWS + 100, 6, 3);
        let params = model.init([3; 32]).expect("a model");
        let (layers, manifest) = Torch::shapes(&model, &params).expect("shapes");
        let params = cpu().tensors(&manifest, &params).expect("tensors");
        let net = cpu().net(&model, &layers, &params);
        let rows: Vec<usize> = (0..batch.rows()).collect();
        let sum = |rows: &[usize]| {
            let mut out = vec![0.0; 9 * 6 + 9 + 9 * 3 + 3];
            let within = cpu().batch_sum(&net, &batch, rows, (Some(CLIP), true), &mut out);
            within.map(|within| (out, within)).expect("a sum")
        };
        let (whole, first, rest) = (sum(&rows), sum(&rows[..1_000]), sum(&rows[1_000..]));
        assert_eq!(whole.1, first.1 + rest.1);
        assert!((1..rows.len()).contains(&whole.1), "{}", whole.1);
        let (whole, first, rest) = (whole.0, first.0, rest.0);
        for ((w, f), r) in whole.iter().zip(&first).zip(&rest) {
            assert!((w - f - r).abs() < 1e-2, "{w} {f} {r}");
        }
        assert_eq!(sum(&[]), (vec![0.0; whole.len()], 0), "an empty batch");
        assert!(sum(&[5]).0.iter().any(|g| *g != 0.0), "a batch of one");
    }

    #[test]
    fn half_precision_products_keep_the_clipped_sum_and_its_bound() {
        let mixed = Torch { compute: Kind::BFloat16, ..cpu() };
        let model = transformer(Tokens::Columns { features: 6 }, 8);
        let (half, _) = net_sums(mixed, &model, 6, 3, clipped_sum, (Some(CLIP), tape::OWN_VALUES));
        let (full, _) = net_sums(cpu(), &model, 6, 3, clipped_sum, (Some(CLIP), tape::OWN_VALUES));
        let squares = |t: &[Tensor]| -> f64 {
            t.iter().map(|t| t.square().sum(Kind::Double).double_value(&[])).sum()
        };
        let apart: Vec<Tensor> = half.iter().zip(&full).map(|(a, b)| a - b).collect();
        let relative = (squares(&apart) / squares(&full)).sqrt();
        assert!(relative > 0.0 && relative < 0.05, "{relative}");
        assert!(squares(&half).sqrt() <= 17.0 * CLIP);
    }

    #[test]
    fn a_gpu_gives_what_the_cpu_gives_or_is_skipped_aloud() {
        use std::io::Write as _;
        if tch::Cuda::device_count() == 0 {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: this machine has no GPU that libtorch can use"
            );
            return;
        }
        let gpu = Torch { device: Device::Cuda(0), ..cpu() };
        for (model, width, classes) in [
            (ModelSpec::Mlp { features: 6, hidden: vec![9], classes: 2 }, 6, 2),
            (transformer(Tokens::Codes { length: 9, vocabulary: 5 }, 8), 9, 3),
        ] {
            let (a, _) = net_sums(
                cpu(),
                &model,
                width,
                classes,
                clipped_sum,
                (Some(CLIP), tape::OWN_VALUES),
            );
            let (b, _) =
                net_sums(gpu, &model, width, classes, clipped_sum, (Some(CLIP), tape::OWN_VALUES));
            for (a, b) in a.iter().zip(&b) {
                let worst = (a - b.to_device(Device::Cpu)).abs().max().double_value(&[]);
                assert!(worst < 1e-3, "{worst}");
            }
        }
    }
}
