//! The models that a study can declare, their manifests, and their first parameters.
//!
//! Layer `i` has `layers.i.weight` and, but for embeddings and positions, `layers.i.bias`, in that order;
//! [`Layer`] gives the shapes, and trainers rely on both. Two classes are two logits.

use crate::manifest::{Manifest, ManifestError, TensorSpec};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::iter;

/// One convolution: kernel, group normalisation if asked for, `ReLU`, then a max-pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Output channels.
    pub filters: u32,
    /// Side of the square kernel, or length of a series' kernel; no padding.
    pub kernel: u32,
    /// Step of the kernel.
    pub stride: u32,
    /// Side and step of the pool; 1 for none.
    pub pool: u32,
    /// Groups of channels that are normalised together (Wu, He 2018); 0 for no normalisation.
    pub groups: u32,
}

/// What a transformer's tokens are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// One token for each input, `x w + b` (Gorishniy et al. 2021, section 3.3): for tables.
    Columns {
        /// Inputs per record.
        features: u32,
    },
    /// Whole numbers in sequence, each looked up in an embedding: for coded events.
    Codes {
        /// Tokens per record.
        length: u32,
        /// Different codes, from 0.
        vocabulary: u32,
    },
    /// Steps in time, each of several values: for measured series.
    Steps {
        /// Steps per record.
        length: u32,
        /// Values per step; inputs are `[length, channels]`.
        channels: u32,
    },
}

impl Tokens {
    /// Tokens per record.
    #[must_use]
    pub const fn length(self) -> u32 {
        match self {
            Self::Columns { features: n }
            | Self::Codes { length: n, .. }
            | Self::Steps { length: n, .. } => n,
        }
    }
}

/// A declared model with all its sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSpec {
    /// Multinomial logistic regression; with one output, linear regression.
    Logistic {
        /// Inputs per record.
        features: u32,
        /// Outputs per record.
        classes: u32,
    },
    /// A multi-layer perceptron with `ReLU`.
    Mlp {
        /// Inputs per record.
        features: u32,
        /// Widths of the hidden layers.
        hidden: Vec<u32>,
        /// Outputs per record.
        classes: u32,
    },
    /// Convolutions, one hidden linear layer, and the output.
    Cnn {
        /// Pixels from top to bottom; 1 for a series, whose kernels and pools are then one pixel high.
        height: u32,
        /// Pixels from left to right, or steps of a series.
        width: u32,
        /// Values per pixel or step; inputs are `[channels, height, width]`.
        channels: u32,
        /// The convolutions.
        conv: Vec<Conv>,
        /// Width of the hidden layer.
        hidden: u32,
        /// Outputs per record.
        classes: u32,
    },
    /// A transformer encoder with normalisation before each part (Xiong et al. 2020), the mean over the
    /// tokens, and the output.
    Transformer {
        /// What the tokens are.
        tokens: Tokens,
        /// Width of a token.
        width: u32,
        /// Heads of each attention; they divide the width.
        heads: u32,
        /// Blocks of attention and feed-forward.
        blocks: u32,
        /// Width inside each feed-forward.
        feed_forward: u32,
        /// Outputs per record.
        classes: u32,
    },
}

/// One layer with parameters, as a trainer builds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// `y = W x + b`; weight `[outputs, inputs]`.
    Linear {
        /// Inputs.
        inputs: u32,
        /// Outputs.
        outputs: u32,
    },
    /// A convolution; weight `[filters, inputs, rows, kernel]`.
    Conv {
        /// Input channels.
        inputs: u32,
        /// The kernel and the pool.
        conv: Conv,
        /// Rows of the kernel: its side, or 1 in a series.
        rows: u32,
    },
    /// Scale and shift after normalisation of a token or of groups of channels; weight `[width]`.
    Norm {
        /// Values or channels.
        width: u32,
    },
    /// A vector for each code; weight `[vocabulary, width]`, no bias.
    Embedding {
        /// Different codes.
        vocabulary: u32,
        /// Width of a token.
        width: u32,
    },
    /// A vector added at each position; weight `[length, width]`, no bias.
    Position {
        /// Tokens per record.
        length: u32,
        /// Width of a token.
        width: u32,
    },
    /// A token for each input, `x w + b`; weight and bias `[features, width]`.
    Tokenizer {
        /// Inputs per record.
        features: u32,
        /// Width of a token.
        width: u32,
    },
}

/// How a tensor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Zero,
    One,
    /// Uniform in ±sqrt(6 / fan-in).
    Uniform(u64),
}

impl First {
    fn draw(self, rng: &mut ChaCha20Rng) -> f32 {
        match self {
            Self::Zero => 0.0,
            Self::One => 1.0,
            Self::Uniform(fan_in) => {
                #[expect(clippy::cast_precision_loss, reason = "a fan-in is below 2^53")]
                let bound = (6.0 / fan_in as f64).sqrt();
                let unit = f64::from(rng.next_u32()) / f64::from(u32::MAX);
                #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
                let value = ((2.0 * unit - 1.0) * bound) as f32;
                value
            }
        }
    }
}

impl Layer {
    /// The shapes of weight and bias, and how they begin.
    fn tensors(self) -> Vec<(&'static str, Vec<u32>, First)> {
        let from = |fan_in: u32| First::Uniform(u64::from(fan_in));
        match self {
            Self::Linear { inputs, outputs } => vec![
                ("weight", vec![outputs, inputs], from(inputs)),
                ("bias", vec![outputs], First::Zero),
            ],
            Self::Conv { inputs, conv, rows } => {
                let fan_in = u64::from(inputs) * u64::from(rows) * u64::from(conv.kernel);
                let shape = vec![conv.filters, inputs, rows, conv.kernel];
                vec![
                    ("weight", shape, First::Uniform(fan_in)),
                    ("bias", vec![conv.filters], First::Zero),
                ]
            }
            Self::Norm { width } => {
                vec![("weight", vec![width], First::One), ("bias", vec![width], First::Zero)]
            }
            Self::Embedding { vocabulary: rows, width }
            | Self::Position { length: rows, width } => {
                vec![("weight", vec![rows, width], from(width))]
            }
            Self::Tokenizer { features, width } => vec![
                ("weight", vec![features, width], from(width)),
                ("bias", vec![features, width], from(width)),
            ],
        }
    }
}

impl ModelSpec {
    /// Numbers that it takes in for each record.
    #[must_use]
    pub const fn inputs(&self) -> usize {
        match *self {
            Self::Logistic { features, .. } | Self::Mlp { features, .. } => features as usize,
            Self::Cnn { height, width, channels, .. } => {
                height as usize * width as usize * channels as usize
            }
            Self::Transformer { tokens, .. } => match tokens {
                Tokens::Columns { features } => features as usize,
                Tokens::Codes { length, .. } => length as usize,
                Tokens::Steps { length, channels } => length as usize * channels as usize,
            },
        }
    }

    /// Classes that the model tells apart, one logit each. A model with one says a number: -1 is the least that its label can
    /// be, 1 the most.
    #[must_use]
    pub const fn classes(&self) -> u32 {
        match *self {
            Self::Logistic { classes, .. }
            | Self::Mlp { classes, .. }
            | Self::Cnn { classes, .. }
            | Self::Transformer { classes, .. } => classes,
        }
    }

    /// Whether any number will do for an input: codes of a vocabulary are whole and bounded.
    #[must_use]
    pub const fn takes_any_number(&self) -> bool {
        !matches!(self, Self::Transformer { tokens: Tokens::Codes { .. }, .. })
    }

    /// The layers with parameters, from the input.
    ///
    /// # Errors
    /// [`ManifestError::DoesNotFit`] when a kernel or pool is larger than what is left of the image;
    /// [`ManifestError::Divides`] when heads or groups do not divide what they are to divide.
    pub fn layers(&self) -> Result<Vec<Layer>, ManifestError> {
        let chain = |widths: &[u32]| {
            widths.windows(2).map(|w| Layer::Linear { inputs: w[0], outputs: w[1] }).collect()
        };
        Ok(match self {
            Self::Logistic { features, classes } => chain(&[*features, *classes]),
            Self::Mlp { features, hidden, classes } => {
                let mut widths = vec![*features];
                widths.extend(hidden);
                widths.push(*classes);
                chain(&widths)
            }
            Self::Cnn { height, width, channels, conv, hidden, classes } => {
                let mut layers = Vec::new();
                let series = *height == 1;
                let (mut h, mut w, mut c) = (*height, *width, *channels);
                for (i, layer) in conv.iter().enumerate() {
                    let out = |side: u32| -> Option<u32> {
                        if layer.stride == 0 || layer.pool == 0 || layer.kernel == 0 {
                            return None;
                        }
                        let side = side.checked_sub(layer.kernel)? / layer.stride + 1;
                        (side >= layer.pool).then(|| (side - layer.pool) / layer.pool + 1)
                    };
                    let rows = if series { 1 } else { layer.kernel };
                    layers.push(Layer::Conv { inputs: c, conv: *layer, rows });
                    if layer.groups > 0 {
                        divides("groups", layer.groups, layer.filters)?;
                        layers.push(Layer::Norm { width: layer.filters });
                    }
                    if !series {
                        h = out(h).ok_or(ManifestError::DoesNotFit(i))?;
                    }
                    w = out(w).ok_or(ManifestError::DoesNotFit(i))?;
                    c = layer.filters;
                }
                let flat = h.checked_mul(w).and_then(|n| n.checked_mul(c));
                let flat = flat.ok_or(ManifestError::TooLarge)?;
                layers.extend(chain(&[flat, *hidden, *classes]));
                layers
            }
            Self::Transformer { tokens, width, heads, blocks, feed_forward, classes } => {
                let width = *width;
                divides("heads", *heads, width)?;
                let mut layers = match *tokens {
                    Tokens::Columns { features } => vec![Layer::Tokenizer { features, width }],
                    Tokens::Codes { length, vocabulary } => vec![
                        Layer::Embedding { vocabulary, width },
                        Layer::Position { length, width },
                    ],
                    Tokens::Steps { length, channels } => vec![
                        Layer::Linear { inputs: channels, outputs: width },
                        Layer::Position { length, width },
                    ],
                };
                let thrice = width.checked_mul(3).ok_or(ManifestError::TooLarge)?;
                for _ in 0..*blocks {
                    // Query, key and value are one layer.
                    layers.extend([
                        Layer::Norm { width },
                        Layer::Linear { inputs: width, outputs: thrice },
                        Layer::Linear { inputs: width, outputs: width },
                        Layer::Norm { width },
                        Layer::Linear { inputs: width, outputs: *feed_forward },
                        Layer::Linear { inputs: *feed_forward, outputs: width },
                    ]);
                }
                layers.push(Layer::Norm { width });
                layers.push(Layer::Linear { inputs: width, outputs: *classes });
                layers
            }
        })
    }

    /// Every tensor, in order.
    ///
    /// # Errors
    /// [`ManifestError`] when the model cannot exist.
    pub fn manifest(&self) -> Result<Manifest, ManifestError> {
        let mut tensors = Vec::new();
        for (i, layer) in self.layers()?.iter().enumerate() {
            for (part, shape, _) in layer.tensors() {
                tensors.push(TensorSpec { name: format!("layers.{i}.{part}"), shape });
            }
        }
        Manifest::new(tensors)
    }

    /// The first parameters, in order: weights uniform in ±sqrt(6 / fan-in) (He et al. 2015, section 2.2),
    /// biases zero, scales after normalisation one. The same seed gives the same bits on every platform:
    /// nothing but multiplication, division and square roots, which IEEE 754 rounds in one way. They are drawn
    /// one by one, such that nobody need hold a model to store it.
    ///
    /// # Errors
    /// [`ManifestError`] when the model cannot exist.
    pub fn first(
        &self,
        seed: [u8; 32],
    ) -> Result<impl Iterator<Item = f32> + use<>, ManifestError> {
        let manifest = self.manifest()?;
        let firsts = self.layers()?.into_iter().flat_map(Layer::tensors).map(|(_, _, first)| first);
        let tensors: Vec<_> = firsts.zip(manifest.ranges().map(|(_, range)| range.len())).collect();
        let mut rng = ChaCha20Rng::from_seed(seed);
        let each = tensors.into_iter().flat_map(|(first, count)| iter::repeat_n(first, count));
        Ok(each.map(move |first| first.draw(&mut rng)))
    }

    /// [`Self::first`], all at once.
    ///
    /// # Errors
    /// [`ManifestError`] when the model cannot exist.
    pub fn init(&self, seed: [u8; 32]) -> Result<Vec<f32>, ManifestError> {
        Ok(self.first(seed)?.collect())
    }
}

fn divides(what: &'static str, divisor: u32, whole: u32) -> Result<(), ManifestError> {
    if divisor > 0 && whole.is_multiple_of(divisor) {
        return Ok(());
    }
    Err(ManifestError::Divides { what, divisor, whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mlp_has_weights_then_biases_layer_by_layer() {
        let spec = ModelSpec::Mlp { features: 30, hidden: vec![16], classes: 2 };
        let manifest = spec.manifest().expect("valid");
        let names: Vec<_> = manifest.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]);
        assert_eq!(manifest.params(), 30 * 16 + 16 + 16 * 2 + 2);
    }

    #[test]
    fn the_same_seed_gives_the_same_parameters() {
        let spec = ModelSpec::Logistic { features: 4, classes: 2 };
        let a = spec.init([7; 32]).expect("valid");
        assert_eq!(a, spec.init([7; 32]).expect("valid"));
        assert_ne!(a, spec.init([8; 32]).expect("valid"));
        assert!(a.iter().all(|p| p.abs() <= 1.225) && a[8..] == [0.0, 0.0]);
    }

    #[test]
    fn a_kernel_larger_than_its_image_is_refused() {
        let conv = vec![Conv { filters: 4, kernel: 9, stride: 1, pool: 1, groups: 0 }];
        let spec =
            ModelSpec::Cnn { height: 8, width: 8, channels: 1, conv, hidden: 8, classes: 10 };
        assert_eq!(spec.manifest(), Err(ManifestError::DoesNotFit(0)));
    }

    #[test]
    fn a_transformer_has_a_scale_of_one_after_each_normalisation() {
        let tokens = Tokens::Codes { length: 5, vocabulary: 7 };
        let spec = ModelSpec::Transformer {
            tokens,
            width: 8,
            heads: 2,
            blocks: 1,
            feed_forward: 16,
            classes: 3,
        };
        let manifest = spec.manifest().expect("valid");
        let params = spec.init([1; 32]).expect("valid");
        let (spec_of, range) = manifest.ranges().nth(2).expect("a norm");
        assert_eq!((spec_of.name.as_str(), &params[range]), ("layers.2.weight", &[1.0; 8][..]));
        let attention = 8 * 24 + 24 + 8 * 8 + 8;
        let feed_forward = 8 * 16 + 16 + 16 * 8 + 8;
        let rest = 7 * 8 + 5 * 8 + 3 * 16 + 8 * 3 + 3;
        assert_eq!(manifest.params(), attention + feed_forward + rest);
    }

    #[test]
    fn heads_and_groups_that_do_not_divide_are_named() {
        let tokens = Tokens::Columns { features: 4 };
        let spec = ModelSpec::Transformer {
            tokens,
            width: 10,
            heads: 4,
            blocks: 1,
            feed_forward: 8,
            classes: 2,
        };
        let err = spec.manifest().expect_err("4 does not divide 10");
        assert_eq!(err.to_string(), "4 heads do not divide 10");
    }
}
