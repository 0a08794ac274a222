//! Book-keeping (Bu et al. 2023): what each layer saw, and from it each record's gradient norm and the
//! clipped sum, after one backward pass that asks only for the gradients at the layers' outputs.
//!
//! A layer's rule gives the squared norm of one record's gradient from its input `a` and its output
//! gradient `g` (Li et al. 2022, section 4; Bu et al. 2023, table 4), and the sum of the gradients weighted
//! by the clip factors. A record's gradient itself exists only where that is cheaper.
//!
//! Records must not mix: batch normalisation has no rule and cannot be declared.

use falaj_core::model::{Conv, Layer};
use tch::{Kind, TchError, Tensor};

/// Small enough to be nothing beside a token's variance.
const NORM_EPSILON: f64 = 1e-5;

/// Values that one layer's own gradients may take, for a whole pass: 64 MiB of f32.
pub(super) const OWN_VALUES: i64 = 1 << 24;

/// What a layer saw: its input, its output before any activation, and where its parameters begin.
struct Seen {
    layer: Layer,
    input: Tensor,
    output: Tensor,
    first: usize,
}

/// A forward pass through layers in their order, which remembers what is needed if it is asked to.
pub(super) struct Tape<'a> {
    layers: &'a [Layer],
    params: &'a [Tensor],
    /// What products are computed in; sums, norms and normalisation stay in f32.
    compute: Kind,
    at: usize,
    first: usize,
    seen: Option<Vec<Seen>>,
    /// Values that one layer's own gradients may take.
    own_values: i64,
}

/// Values per record that a layer leaves, for bounding memory.
fn taken(layer: &Layer) -> usize {
    match layer {
        Layer::Embedding { .. } | Layer::Position { .. } => 1,
        _ => 2,
    }
}

impl<'a> Tape<'a> {
    /// A pass that remembers what book-keeping needs if it is told how many values one layer's own
    /// gradients may take, usually [`OWN_VALUES`].
    pub(super) fn new(
        layers: &'a [Layer],
        params: &'a [Tensor],
        compute: Kind,
        remember: Option<i64>,
    ) -> Self {
        let own_values = remember.unwrap_or(0);
        let seen = remember.is_some().then(Vec::new);
        Self { layers, params, compute, at: 0, first: 0, seen, own_values }
    }

    /// The next layer, and where its parameters begin.
    fn next(&mut self) -> Result<(Layer, usize), TchError> {
        let layer = *self.layers.get(self.at).ok_or_else(|| wrong("no layer is left"))?;
        let first = self.first;
        self.at += 1;
        self.first += taken(&layer);
        Ok((layer, first))
    }

    /// Remembers a layer's input and output; from the first layer on, outputs have gradients.
    fn keep(&mut self, (layer, first): (Layer, usize), input: &Tensor, output: Tensor) -> Tensor {
        let Some(seen) = &mut self.seen else { return output };
        let output = if output.requires_grad() { output } else { output.set_requires_grad(true) };
        let (input, kept) = (input.detach(), output.shallow_clone());
        seen.push(Seen { layer, input, output: kept, first });
        output
    }

    /// A product in the kind that is asked for, its result in f32.
    fn cast(&self, t: &Tensor) -> Tensor {
        if t.kind() == self.compute { t.shallow_clone() } else { t.to_kind(self.compute) }
    }

    /// `y = W x + b` on the last dimension.
    pub(super) fn linear(&mut self, x: &Tensor) -> Result<Tensor, TchError> {
        let at = self.next()?;
        let (w, b) = (self.cast(&self.params[at.1]), self.cast(&self.params[at.1 + 1]));
        let y = self.cast(x).f_linear(&w, Some(&b))?.f_to_kind(Kind::Float)?;
        Ok(self.keep(at, x, y))
    }

    /// A convolution; also tells its kernel, groups and pool.
    pub(super) fn conv(&mut self, x: &Tensor) -> Result<(Tensor, Conv), TchError> {
        let at = self.next()?;
        let Layer::Conv { conv, .. } = at.0 else { return Err(wrong("no convolution")) };
        let (w, b) = (self.cast(&self.params[at.1]), self.cast(&self.params[at.1 + 1]));
        let stride = strides(conv);
        let y = self.cast(x).f_conv2d(&w, Some(&b), stride, [0, 0], [1, 1], 1)?;
        let y = y.f_to_kind(Kind::Float)?;
        Ok((self.keep(at, x, y), conv))
    }

    /// Normalises the last dimension, then scale and shift (Ba, Kiros, Hinton 2016).
    pub(super) fn layer_norm(&mut self, x: &Tensor) -> Result<Tensor, TchError> {
        let at = self.next()?;
        let width = x.size().last().copied().unwrap_or(1);
        let none: Option<&Tensor> = None;
        let x = x.f_layer_norm([width], none, none, NORM_EPSILON, false)?;
        let y = x.f_mul(&self.params[at.1])?.f_add(&self.params[at.1 + 1])?;
        Ok(self.keep(at, &x, y))
    }

    /// Normalises groups of channels, then scale and shift of each channel (Wu, He 2018).
    pub(super) fn group_norm(&mut self, x: &Tensor, groups: u32) -> Result<Tensor, TchError> {
        let at = self.next()?;
        let none: Option<&Tensor> = None;
        let x = x.f_group_norm(i64::from(groups), none, none, NORM_EPSILON, false)?;
        let by_channel = |t: &Tensor| t.f_view([1, -1, 1, 1]);
        let y = x.f_mul(&by_channel(&self.params[at.1])?)?;
        let y = y.f_add(&by_channel(&self.params[at.1 + 1])?)?;
        Ok(self.keep(at, &x, y))
    }

    /// Looks codes `[batch, length]` up.
    pub(super) fn embedding(&mut self, codes: &Tensor) -> Result<Tensor, TchError> {
        let at = self.next()?;
        let y = Tensor::f_embedding(&self.params[at.1], codes, -1, false, false)?;
        Ok(self.keep(at, codes, y))
    }

    /// Adds each position's vector.
    pub(super) fn position(&mut self, x: &Tensor) -> Result<Tensor, TchError> {
        let at = self.next()?;
        let y = x.f_add(&self.params[at.1])?;
        Ok(self.keep(at, x, y))
    }

    /// Makes a token of each input `[batch, features]`.
    pub(super) fn tokenizer(&mut self, x: &Tensor) -> Result<Tensor, TchError> {
        let at = self.next()?;
        let y = x.f_unsqueeze(-1)?.f_mul(&self.params[at.1])?.f_add(&self.params[at.1 + 1])?;
        Ok(self.keep(at, x, y))
    }

    /// The layer that comes next.
    pub(super) fn peek(&self) -> Option<Layer> {
        self.layers.get(self.at).copied()
    }

    /// Each record's gradient norm, for a loss that is a sum over records, and the sum of the gradients
    /// clipped to `clip`, or of the gradients as they are: by parameter, in order.
    pub(super) fn clipped_sum(
        self,
        loss: &Tensor,
        clip: Option<f64>,
    ) -> Result<(Vec<Tensor>, Option<Tensor>), TchError> {
        let seen = self.seen.ok_or_else(|| wrong("a pass that remembered nothing"))?;
        let outputs: Vec<&Tensor> = seen.iter().map(|s| &s.output).collect();
        let gradients = Tensor::f_run_backward(&[loss], &outputs, false, false)?;
        tch::no_grad(|| {
            let rules: Vec<Rule> = seen
                .into_iter()
                .zip(gradients)
                .map(|(seen, g)| Rule::new(seen, &g, clip.is_some().then_some(self.own_values)))
                .collect::<Result<_, _>>()?;
            let mut norms = None;
            let mut factors = None;
            if let Some(clip) = clip {
                let mut squares: Option<Tensor> = None;
                for rule in &rules {
                    let own = rule.squares()?;
                    squares = Some(match squares {
                        Some(sum) => sum.f_add(&own)?,
                        None => own,
                    });
                }
                let found = squares.ok_or_else(|| wrong("a model without layers"))?.f_sqrt()?;
                factors = Some(found.f_reciprocal()?.f_mul_scalar(clip)?.f_clamp_max(1.0)?);
                norms = Some(found);
            }
            let mut sums: Vec<Tensor> = self.params.iter().map(|_| Tensor::new()).collect();
            for rule in &rules {
                let (weight, bias) = rule.weighted(factors.as_ref())?;
                let shape = self.params[rule.seen.first].size();
                sums[rule.seen.first] = weight.f_reshape(shape)?;
                if let Some(bias) = bias {
                    let shape = self.params[rule.seen.first + 1].size();
                    sums[rule.seen.first + 1] = bias.f_reshape(shape)?;
                }
            }
            Ok((sums, norms))
        })
    }
}

fn wrong(what: &str) -> TchError {
    TchError::Shape(what.to_owned())
}

/// Down and across alike: a series is one row high, from which no step leads down.
fn strides(conv: Conv) -> [i64; 2] {
    [i64::from(conv.stride); 2]
}

/// What each place of a kernel sees: `[batch, channels · kernel, places]` of `[batch, channels, height, width]`.
/// Copied from a view of overlapping strides, row by row: several times as fast as libtorch's `im2col`.
fn patches(x: &Tensor, kernel: [i64; 2], stride: [i64; 2]) -> Result<Tensor, TchError> {
    let x = x.f_contiguous()?;
    let (batch, channels, height, width) = x.size4()?;
    let places = [(height - kernel[0]) / stride[0] + 1, (width - kernel[1]) / stride[1] + 1];
    let area = height * width;
    let size = [batch, channels, kernel[0], kernel[1], places[0], places[1]];
    let strides = [channels * area, area, width, 1, width * stride[0], stride[1]];
    let copied = x.f_as_strided(size, strides, None)?.f_contiguous()?;
    copied.f_view([batch, channels * kernel[0] * kernel[1], places[0] * places[1]])
}

/// Sum of the squares over every dimension but the first.
fn squares(t: &Tensor) -> Result<Tensor, TchError> {
    let flat = if t.dim() > 2 { t.f_flatten(1, -1)? } else { t.shallow_clone() };
    // One pass without a copy of the squares, which are as large as every record's gradient.
    flat.f_linalg_norm(2.0, 1, false, Kind::Float)?.f_square()
}

/// Sum over the records of `g`, weighted; `g` is `[batch, …]`.
fn weighted_sum(g: &Tensor, factors: Option<&Tensor>) -> Result<Tensor, TchError> {
    let flat = g.f_flatten(1, -1)?;
    match factors {
        Some(f) => f.f_unsqueeze(0)?.f_matmul(&flat)?.f_squeeze_dim(0),
        None => flat.f_sum_dim_intlist(0, false, Kind::Float),
    }
}

/// How a layer's part of the norm and of the sum is found.
enum Way {
    /// Rows of two matrices for each record, `a` `[batch, rows, in]` and `g` `[batch, rows, out]`: the
    /// gradient is `gᵀ a`, and its norm comes from the two Gram matrices.
    Ghost { a: Tensor, g: Tensor },
    /// One row each: the norm is the product of two norms.
    Outer { a: Tensor, g: Tensor },
    /// Each record's own gradients, `[batch, …]`, of weight and bias.
    Own { weight: Tensor, bias: Option<Tensor> },
    /// Rows of a table: codes `[batch, rows]` and `g` `[batch, rows, width]`.
    Lookup { codes: Tensor, g: Tensor, entries: i64 },
}

struct Rule {
    seen: Seen,
    way: Way,
}

impl Rule {
    fn new(seen: Seen, g: &Tensor, own_values: Option<i64>) -> Result<Self, TchError> {
        let way = match seen.layer {
            Layer::Linear { inputs, outputs } => {
                if seen.input.dim() == 2 {
                    Way::Outer { a: seen.input.shallow_clone(), g: g.shallow_clone() }
                } else {
                    let whole = i64::from(inputs) * i64::from(outputs);
                    Self::rows(seen.input.shallow_clone(), g.shallow_clone(), whole, own_values)?
                }
            }
            Layer::Conv { inputs, conv, rows } => {
                let kernel = [i64::from(rows), i64::from(conv.kernel)];
                let patches = patches(&seen.input, kernel, strides(conv))?;
                let (a, g) = (patches.f_transpose(1, 2)?, g.f_flatten(2, -1)?.f_transpose(1, 2)?);
                let whole = i64::from(inputs) * kernel[0] * kernel[1] * i64::from(conv.filters);
                // Patches lie column by column: one product over all records would copy them first.
                Self::rows(a, g, whole, own_values.or(Some(OWN_VALUES)))?
            }
            Layer::Norm { width } => {
                // A channel's places, or a record's tokens, share their scale and shift.
                let product = g.f_mul(&seen.input)?;
                let width = i64::from(width);
                let by_width = |t: &Tensor| -> Result<Tensor, TchError> {
                    match t.dim() {
                        2 => Ok(t.shallow_clone()),
                        3 => t.f_sum_dim_intlist(1, false, Kind::Float),
                        _ => t.f_flatten(2, -1)?.f_sum_dim_intlist(2, false, Kind::Float),
                    }
                };
                debug_assert_eq!(by_width(g)?.size()[1], width);
                Way::Own { weight: by_width(&product)?, bias: Some(by_width(g)?) }
            }
            Layer::Embedding { vocabulary, .. } => Way::Lookup {
                codes: seen.input.shallow_clone(),
                g: g.shallow_clone(),
                entries: i64::from(vocabulary),
            },
            Layer::Position { .. } => Way::Own { weight: g.shallow_clone(), bias: None },
            Layer::Tokenizer { .. } => {
                let weight = g.f_mul(&seen.input.f_unsqueeze(-1)?)?;
                Way::Own { weight, bias: Some(g.shallow_clone()) }
            }
        };
        Ok(Self { seen, way })
    }

    /// The cheaper way for `gᵀ a` over several rows. The gradients themselves take fewer operations than
    /// two Gram matrices and then the sum; the matrices take less memory where rows are few and layers
    /// wide.
    fn rows(a: Tensor, g: Tensor, whole: i64, own_values: Option<i64>) -> Result<Way, TchError> {
        let (batch, rows) = (g.size()[0], g.size()[1]);
        // Without clipping there is no norm to find, and one product gives the sum.
        let own = own_values.is_some_and(|max| batch * whole <= max || 2 * rows * rows > whole);
        if own {
            let weight = g.f_transpose(1, 2)?.f_bmm(&a)?;
            let bias = g.f_sum_dim_intlist(1, false, Kind::Float)?;
            Ok(Way::Own { weight, bias: Some(bias) })
        } else {
            Ok(Way::Ghost { a, g })
        }
    }

    /// Each record's squared norm in this layer.
    fn squares(&self) -> Result<Tensor, TchError> {
        match &self.way {
            Way::Outer { a, g } => {
                // |g aᵀ|² = |g|²|a|², and the bias adds |g|².
                let g = squares(g)?;
                squares(a)?.f_mul(&g)?.f_add(&g)
            }
            Way::Ghost { a, g } => {
                // |gᵀ a|² is the sum of the products of the Gram matrices of a and g; the bias, a column of
                // ones beside a, adds one to each entry of the first.
                let gram = |t: &Tensor| t.f_bmm(&t.f_transpose(1, 2)?);
                let both = gram(a)?.f_add_scalar(1.0)?.f_mul(&gram(g)?)?;
                both.f_flatten(1, -1)?.f_sum_dim_intlist(1, false, Kind::Float)
            }
            Way::Own { weight, bias } => {
                let own = squares(weight)?;
                match bias {
                    Some(bias) => own.f_add(&squares(bias)?),
                    None => Ok(own),
                }
            }
            Way::Lookup { codes, g, .. } => {
                // Rows that looked the same entry up add to the same gradient.
                let same = codes.f_unsqueeze(1)?.f_eq_tensor(&codes.f_unsqueeze(2)?)?;
                let gram = g.f_bmm(&g.f_transpose(1, 2)?)?;
                let both = gram.f_mul(&same.f_to_kind(Kind::Float)?)?;
                both.f_flatten(1, -1)?.f_sum_dim_intlist(1, false, Kind::Float)
            }
        }
    }

    /// The weighted sum of the records' gradients, of weight and bias.
    fn weighted(&self, factors: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>), TchError> {
        match &self.way {
            Way::Outer { a, g } => {
                let g = match factors {
                    Some(f) => g.f_mul(&f.f_unsqueeze(1)?)?,
                    None => g.shallow_clone(),
                };
                let bias = g.f_sum_dim_intlist(0, false, Kind::Float)?;
                Ok((g.f_tr()?.f_matmul(a)?, Some(bias)))
            }
            Way::Ghost { a, g } => {
                let g = match factors {
                    Some(f) => g.f_mul(&f.f_view([-1, 1, 1])?)?,
                    None => g.shallow_clone(),
                };
                let g = g.f_flatten(0, 1)?;
                let weight = g.f_tr()?.f_matmul(&a.f_flatten(0, 1)?)?;
                Ok((weight, Some(g.f_sum_dim_intlist(0, false, Kind::Float)?)))
            }
            Way::Own { weight, bias } => {
                let bias = bias.as_ref().map(|b| weighted_sum(b, factors)).transpose()?;
                Ok((weighted_sum(weight, factors)?, bias))
            }
            Way::Lookup { codes, g, entries } => {
                let g = match factors {
                    Some(f) => g.f_mul(&f.f_view([-1, 1, 1])?)?,
                    None => g.shallow_clone(),
                };
                let width = g.size()[2];
                let table = Tensor::f_zeros([*entries, width], (Kind::Float, g.device()))?;
                let rows = table.f_index_add(0, &codes.f_flatten(0, -1)?, &g.f_flatten(0, 1)?)?;
                Ok((rows, None))
            }
        }
    }
}
