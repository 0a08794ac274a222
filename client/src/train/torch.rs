//! Training with libtorch, on CPU or GPU: logistic regression, MLP, small CNN.
//!
//! DP-SGD by book-keeping (Bu et al. 2023): one forward pass that records what enters each layer, one
//! backward pass that asks only for the gradients at the layers' outputs. From the two come each record's
//! gradient norm and, weighted, the clipped sum; no per-record weight gradient of a linear layer ever exists.

use super::{Chance, Plan, TrainError, Trainer, cuda, descend, difference};
use crate::{config::TrainConfig, data::Batch, guard::LocalBatch};
use falaj_core::{
    model::{Layer, ModelSpec},
    update::RawUpdate,
};
use tch::{Device, Kind, Reduction, TchError, Tensor, no_grad};

/// Records in one pass; a larger Poisson batch is taken in several, summed before the noise.
const PASS_ROWS: usize = 4_096;

/// The torch trainer on one device.
#[derive(Clone, Copy, Debug)]
pub struct Torch {
    device: Device,
}

impl From<TchError> for TrainError {
    fn from(e: TchError) -> Self {
        // The first line says what; the rest is libtorch's own stack.
        Self::Library(e.to_string().lines().next().unwrap_or_default().to_owned())
    }
}

/// What a layer saw: its input and its output before any activation.
struct Seen {
    input: Tensor,
    output: Tensor,
}

impl Torch {
    /// A trainer on the device that a configuration asks for.
    ///
    /// # Errors
    /// [`TrainError::Library`] when a GPU is asked for and cannot be had.
    pub fn new(config: &TrainConfig) -> Result<Self, TrainError> {
        let threads = i32::try_from(config.threads.max(1)).unwrap_or(1);
        tch::set_num_threads(threads);
        if config.device == "cpu" {
            return Ok(Self { device: Device::Cpu });
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
            Some(n) if n < count => Ok(Self { device: Device::Cuda(n) }),
            Some(n) => Err(TrainError::Library(format!(
                "there is no GPU {n} ({count} found); set `train.libtorch_cuda` to the `lib` folder of a full PyTorch, or `train.device = \"cpu\"`"
            ))),
            None if count > 0 => Ok(Self { device: Device::Cuda(0) }),
            None => Ok(Self { device: Device::Cpu }),
        }
    }

    /// Parameters as tensors, weight and bias by layer.
    fn tensors(
        self,
        model: &ModelSpec,
        params: &[f32],
    ) -> Result<(Vec<Layer>, Vec<Tensor>), TrainError> {
        let library = |e: falaj_core::manifest::ManifestError| TrainError::Library(e.to_string());
        let manifest = model.manifest().map_err(library)?;
        if params.len() != manifest.params() {
            let (found, expected) = (params.len(), manifest.params());
            return Err(TrainError::Shape { found, expected });
        }
        let tensors = manifest
            .ranges()
            .map(|(spec, range)| {
                let shape: Vec<i64> = spec.shape.iter().map(|&d| i64::from(d)).collect();
                Tensor::from_slice(&params[range]).to_device(self.device).reshape(shape)
            })
            .collect();
        Ok((model.layers().map_err(library)?, tensors))
    }

    /// Rows as the model's input.
    fn inputs(self, batch: &Batch, rows: &[usize], model: &ModelSpec) -> (Tensor, Tensor) {
        let mut values = Vec::with_capacity(rows.len() * batch.width);
        rows.iter().for_each(|&row| values.extend_from_slice(batch.row(row)));
        let labels: Vec<i64> = rows.iter().map(|&row| i64::from(batch.labels[row])).collect();
        let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        let x = Tensor::from_slice(&values).to_device(self.device);
        let x = match *model {
            ModelSpec::Cnn { height, width, channels, .. } => {
                x.reshape([count, i64::from(channels), i64::from(height), i64::from(width)])
            }
            _ => x.reshape([count, -1]),
        };
        (x, Tensor::from_slice(&labels).to_device(self.device))
    }
}

/// Logits, and what each layer saw if `seen` asks for it.
fn forward(
    layers: &[Layer],
    tensors: &[Tensor],
    x: &Tensor,
    mut seen: Option<&mut Vec<Seen>>,
) -> Result<Tensor, TchError> {
    let mut h = x.shallow_clone();
    for (i, layer) in layers.iter().enumerate() {
        let (weight, bias) = (&tensors[2 * i], &tensors[2 * i + 1]);
        let (input, output) = match layer {
            Layer::Linear { .. } => {
                let input = if h.dim() > 2 { h.f_flatten(1, -1)? } else { h };
                let output = input.f_linear(weight, Some(bias))?;
                (input, output)
            }
            Layer::Conv { conv, .. } => {
                let stride = i64::from(conv.stride);
                let output = h.f_conv2d(weight, Some(bias), [stride, stride], [0, 0], [1, 1], 1)?;
                (h, output)
            }
        };
        let output = if seen.is_some() && !output.requires_grad() {
            output.set_requires_grad(true)
        } else {
            output
        };
        if let Some(seen) = seen.as_deref_mut() {
            seen.push(Seen { input: input.detach(), output: output.shallow_clone() });
        }
        h = if i + 1 < layers.len() { output.f_relu()? } else { output };
        if let Layer::Conv { conv, .. } = layer
            && conv.pool > 1
        {
            let pool = i64::from(conv.pool);
            h = h.f_max_pool2d([pool, pool], [pool, pool], [0, 0], [1, 1], false)?;
        }
    }
    Ok(h)
}

/// Sum over the batch of each record's gradient, clipped in L2 to `clip` when there is one: by layer,
/// weight then bias. Also each record's norm before clipping, when it was needed.
fn clipped_sum(
    layers: &[Layer],
    tensors: &[Tensor],
    x: &Tensor,
    y: &Tensor,
    clip: Option<f64>,
) -> Result<(Vec<Tensor>, Option<Tensor>), TchError> {
    let mut seen = Vec::new();
    let logits = forward(layers, tensors, x, Some(&mut seen))?;
    let loss = logits.f_cross_entropy_loss::<Tensor>(y, None, Reduction::Sum, -100, 0.0)?;
    let outputs: Vec<&Tensor> = seen.iter().map(|s| &s.output).collect();
    let gradients = Tensor::f_run_backward(&[&loss], &outputs, false, false)?;
    no_grad(|| {
        let batch = x.size()[0];
        let mut squares = Tensor::zeros([batch], (Kind::Float, x.device()));
        // Convolutions need each record's own gradient; linear layers do not.
        let mut own: Vec<Option<(Tensor, Tensor)>> = Vec::with_capacity(layers.len());
        for ((layer, seen), g) in layers.iter().zip(&seen).zip(&gradients) {
            match layer {
                Layer::Linear { .. } => {
                    if clip.is_some() {
                        // |g xᵀ|² = |g|²|x|², and the bias adds |g|².
                        let g2 = g.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?;
                        let x2 = seen.input.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?;
                        squares += &g2 * x2 + &g2;
                    }
                    own.push(None);
                }
                Layer::Conv { conv, .. } => {
                    let (k, s) = (i64::from(conv.kernel), i64::from(conv.stride));
                    let patches = seen.input.f_im2col([k, k], [1, 1], [0, 0], [s, s])?;
                    let g = g.f_flatten(2, -1)?;
                    let weight = g.f_bmm(&patches.f_transpose(1, 2)?)?;
                    let bias = g.f_sum_dim_intlist(2, false, Kind::Float)?;
                    if clip.is_some() {
                        squares +=
                            weight.f_square()?.f_sum_dim_intlist(
                                [1_i64, 2].as_slice(),
                                false,
                                Kind::Float,
                            )? + bias.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?;
                    }
                    own.push(Some((weight, bias)));
                }
            }
        }
        let norms = clip.is_some().then(|| squares.sqrt());
        let factors = match (clip, &norms) {
            (Some(clip), Some(norms)) => (norms.reciprocal() * clip).clamp_max(1.0),
            _ => Tensor::ones([batch], (Kind::Float, x.device())),
        };
        let mut sums = Vec::with_capacity(tensors.len());
        for (i, ((seen, g), own)) in seen.iter().zip(&gradients).zip(own).enumerate() {
            if let Some((weight, bias)) = own {
                let row = factors.unsqueeze(0);
                let sum = row.f_matmul(&weight.f_flatten(1, -1)?)?;
                sums.push(sum.f_view_as(&tensors[2 * i])?);
                sums.push(row.f_matmul(&bias)?.f_squeeze_dim(0)?);
            } else {
                let weighted = g.f_mul(&factors.unsqueeze(1))?;
                sums.push(weighted.f_tr()?.f_matmul(&seen.input)?);
                sums.push(weighted.f_sum_dim_intlist(0, false, Kind::Float)?);
            }
        }
        Ok((sums, norms))
    })
}

/// Tensors as one run of numbers, in manifest order.
fn flat(tensors: &[Tensor], out: &mut [f32]) {
    let mut at = 0;
    for t in tensors {
        let count = t.numel();
        t.to_device(Device::Cpu).contiguous().view(-1).copy_data(&mut out[at..at + count], count);
        at += count;
    }
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
    ) -> Result<RawUpdate, TrainError> {
        let batch = records.batch();
        let mut params = base.to_vec();
        let mut velocity = vec![0.0; params.len()];
        let mut pass_sum = vec![0.0_f32; params.len()];
        for _ in 0..plan.training.local_steps {
            let rows = chance.sample(batch.rows(), plan.training.sample_rate);
            let (layers, tensors) = self.tensors(&plan.model, &params)?;
            let mut sum = vec![0.0_f32; params.len()];
            for pass in rows.chunks(PASS_ROWS) {
                let (x, y) = self.inputs(batch, pass, &plan.model);
                let (sums, _) = clipped_sum(&layers, &tensors, &x, &y, plan.clip())?;
                flat(&sums, &mut pass_sum);
                sum.iter_mut().zip(&pass_sum).for_each(|(s, p)| *s += p);
            }
            descend(plan, rows.len(), &sum, chance, base, &mut params, &mut velocity);
        }
        Ok(difference(&params, base))
    }

    fn logits(
        &self,
        records: &Batch,
        model: &ModelSpec,
        params: &[f32],
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let (layers, tensors) = self.tensors(model, params)?;
        let rows: Vec<usize> = (0..records.rows()).collect();
        let mut out = Vec::with_capacity(rows.len());
        for pass in rows.chunks(PASS_ROWS) {
            let (x, _) = self.inputs(records, pass, model);
            let logits = no_grad(|| forward(&layers, &tensors, &x, None))?;
            let classes = usize::try_from(logits.size()[1]).unwrap_or(0);
            let mut values = vec![0.0; pass.len() * classes];
            flat(&[logits], &mut values);
            out.extend(values.chunks(classes.max(1)).map(<[f32]>::to_vec));
        }
        Ok(out)
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

    /// One record at a time, with torch's own autograd: what book-keeping must agree with.
    fn one_by_one(
        layers: &[Layer],
        tensors: &[Tensor],
        x: &Tensor,
        y: &Tensor,
        clip: f64,
    ) -> (Vec<Tensor>, Vec<f64>) {
        let leaves: Vec<Tensor> =
            tensors.iter().map(|t| t.detach().copy().set_requires_grad(true)).collect();
        let mut sums: Vec<Tensor> = tensors.iter().map(Tensor::zeros_like).collect();
        let mut norms = Vec::new();
        for i in 0..x.size()[0] {
            let logits = forward(layers, &leaves, &x.narrow(0, i, 1), None).expect("forward");
            let loss = logits.cross_entropy_loss::<Tensor>(
                &y.narrow(0, i, 1),
                None,
                Reduction::Sum,
                -100,
                0.0,
            );
            let gradients = Tensor::run_backward(&[&loss], &leaves, false, false);
            let norm = gradients
                .iter()
                .map(|g| g.square().sum(Kind::Float).double_value(&[]))
                .sum::<f64>()
                .sqrt();
            no_grad(|| {
                for (sum, g) in sums.iter_mut().zip(&gradients) {
                    *sum += g * (clip / norm).min(1.0);
                }
            });
            norms.push(norm);
        }
        (sums, norms)
    }

    fn agrees(model: &ModelSpec, width: usize, classes: u32) {
        let batch = records(17, width, classes);
        let params = model.init([3; 32]).expect("a model");
        let (layers, tensors) = cpu().tensors(model, &params).expect("tensors");
        let rows: Vec<usize> = (0..batch.rows()).collect();
        let (x, y) = cpu().inputs(&batch, &rows, model);
        let clip = 0.7;
        let (ours, norms) = clipped_sum(&layers, &tensors, &x, &y, Some(clip)).expect("a sum");
        let norms = norms.expect("norms");
        let (theirs, own_norms) = one_by_one(&layers, &tensors, &x, &y, clip);
        for (i, norm) in own_norms.iter().enumerate() {
            let ours = norms.double_value(&[i64::try_from(i).expect("small")]);
            assert!((ours / norm - 1.0).abs() < 1e-5, "row {i}: {ours}, {norm}");
        }
        for (a, b) in ours.iter().zip(&theirs) {
            let worst = (a - b).abs().max().double_value(&[]);
            assert!(worst < 1e-5, "{worst}");
        }
    }

    #[test]
    fn book_keeping_agrees_with_one_record_at_a_time_for_an_mlp() {
        agrees(&ModelSpec::Mlp { features: 6, hidden: vec![9, 5], classes: 3 }, 6, 3);
    }

    #[test]
    fn book_keeping_agrees_with_one_record_at_a_time_for_a_cnn() {
        let conv = vec![
            Conv { filters: 4, kernel: 3, stride: 1, pool: 2 },
            Conv { filters: 5, kernel: 2, stride: 1, pool: 1 },
        ];
        let model =
            ModelSpec::Cnn { height: 8, width: 8, channels: 1, conv, hidden: 7, classes: 4 };
        agrees(&model, 64, 4);
    }

    #[test]
    fn a_gpu_gives_what_the_cpu_gives_or_is_skipped_aloud() {
        if tch::Cuda::device_count() == 0 {
            println!("skipped: this machine has no GPU that libtorch can use");
            return;
        }
        let gpu = Torch { device: Device::Cuda(0) };
        let model = ModelSpec::Mlp { features: 6, hidden: vec![9], classes: 2 };
        let params = model.init([3; 32]).expect("a model");
        let batch = records(11, 6, 2);
        let a = cpu().logits(&batch, &model, &params).expect("logits");
        let b = gpu.logits(&batch, &model, &params).expect("logits");
        for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
            assert!((a - b).abs() < 1e-4);
        }
    }
}
