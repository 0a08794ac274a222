//! The models' forward passes, layer by layer in the order that the core declares.

use super::tape::Tape;
use falaj_core::model::{Layer, ModelSpec, Tokens};
use tch::{Kind, TchError, Tensor};

/// Logits `[batch, classes]` of inputs as [`shaped`] makes them.
pub(super) fn forward(
    model: &ModelSpec,
    tape: &mut Tape<'_>,
    x: &Tensor,
) -> Result<Tensor, TchError> {
    match *model {
        ModelSpec::Logistic { .. } | ModelSpec::Mlp { .. } => chain(tape, x.shallow_clone()),
        ModelSpec::Cnn { height, .. } => {
            let mut h = x.shallow_clone();
            while let Some(Layer::Conv { .. }) = tape.peek() {
                let (y, conv) = tape.conv(&h)?;
                let y = if conv.groups > 0 { tape.group_norm(&y, conv.groups)? } else { y };
                h = y.f_relu()?;
                if conv.pool > 1 {
                    let pool = i64::from(conv.pool);
                    let pool = [if height == 1 { 1 } else { pool }, pool];
                    h = h.f_max_pool2d(pool, pool, [0, 0], [1, 1], false)?;
                }
            }
            chain(tape, h.f_flatten(1, -1)?)
        }
        ModelSpec::Transformer { tokens, heads, blocks, .. } => {
            let mut h = match tokens {
                Tokens::Columns { .. } => tape.tokenizer(x)?,
                Tokens::Codes { .. } => {
                    let h = tape.embedding(x)?;
                    tape.position(&h)?
                }
                Tokens::Steps { .. } => {
                    let h = tape.linear(x)?;
                    tape.position(&h)?
                }
            };
            for _ in 0..blocks {
                let normal = tape.layer_norm(&h)?;
                h = h.f_add(&attention(tape, &normal, i64::from(heads))?)?;
                let normal = tape.layer_norm(&h)?;
                let inner = tape.linear(&normal)?.f_gelu("none")?;
                h = h.f_add(&tape.linear(&inner)?)?;
            }
            let mean = tape.layer_norm(&h)?.f_mean_dim(1, false, Kind::Float)?;
            tape.linear(&mean)
        }
    }
}

/// Linear layers with `ReLU` between them, to the last.
fn chain(tape: &mut Tape<'_>, mut h: Tensor) -> Result<Tensor, TchError> {
    loop {
        h = tape.linear(&h)?;
        if tape.peek().is_none() {
            return Ok(h);
        }
        h = h.f_relu()?;
    }
}

/// Multi-head self-attention over tokens `[batch, length, width]` (Vaswani et al. 2017, section 3.2.2).
fn attention(tape: &mut Tape<'_>, x: &Tensor, heads: i64) -> Result<Tensor, TchError> {
    let size = x.size();
    let (batch, length, width) = (size[0], size[1], size[2]);
    let three = tape.linear(x)?.f_view([batch, length, 3, heads, width / heads])?;
    // [3, batch, heads, length, width of a head]
    let three = three.f_permute([2, 0, 3, 1, 4])?;
    let part = |i: i64| three.f_select(0, i);
    let mixed = Tensor::f_scaled_dot_product_attention::<&Tensor>(
        &part(0)?,
        &part(1)?,
        &part(2)?,
        None,
        0.0,
        false,
        None,
        false,
    )?;
    let together = mixed.f_transpose(1, 2)?.f_reshape([batch, length, width])?;
    tape.linear(&together)
}

/// Rows of inputs in the shape that a model takes.
pub(super) fn shaped(model: &ModelSpec, x: &Tensor, rows: i64) -> Result<Tensor, TchError> {
    match *model {
        ModelSpec::Logistic { .. }
        | ModelSpec::Mlp { .. }
        | ModelSpec::Transformer { tokens: Tokens::Columns { .. }, .. } => x.f_reshape([rows, -1]),
        ModelSpec::Cnn { height, width, channels, .. } => {
            x.f_reshape([rows, i64::from(channels), i64::from(height), i64::from(width)])
        }
        ModelSpec::Transformer { tokens: Tokens::Codes { vocabulary, .. }, .. } => {
            // Inputs were scaled from 0..vocabulary to [-1, 1].
            let last = f64::from(vocabulary.saturating_sub(1));
            let codes = x.f_reshape([rows, -1])?.f_add_scalar(1.0)?.f_mul_scalar(last / 2.0)?;
            codes.f_round()?.f_clamp(0.0, last)?.f_to_kind(Kind::Int64)
        }
        ModelSpec::Transformer { tokens: Tokens::Steps { length, channels }, .. } => {
            x.f_reshape([rows, i64::from(length), i64::from(channels)])
        }
    }
}

/// Values that one record's pass holds at most, roughly: activations, and own gradients where they exist.
pub(super) fn values_per_record(model: &ModelSpec, layers: &[Layer]) -> usize {
    let each = |layer: &Layer| -> u64 {
        let places = match model {
            ModelSpec::Cnn { height, width, .. } => u64::from(*height) * u64::from(*width),
            ModelSpec::Transformer { tokens, .. } => u64::from(tokens.length()),
            _ => 1,
        };
        match *layer {
            Layer::Linear { inputs, outputs } => {
                let places =
                    if matches!(model, ModelSpec::Transformer { .. }) { places } else { 1 };
                places * u64::from(inputs + outputs) * 2 + 2 * places * places
            }
            Layer::Conv { inputs, conv, rows } => {
                let patch = u64::from(inputs) * u64::from(rows) * u64::from(conv.kernel);
                places * (patch + 3 * u64::from(conv.filters)) + patch * u64::from(conv.filters)
            }
            Layer::Norm { width }
            | Layer::Position { width, .. }
            | Layer::Tokenizer { width, .. } => 3 * places * u64::from(width),
            Layer::Embedding { width, .. } => places * u64::from(width) + 2 * places * places,
        }
    };
    usize::try_from(layers.iter().map(each).sum::<u64>()).unwrap_or(usize::MAX).max(1)
}
