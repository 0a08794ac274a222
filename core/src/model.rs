//! The models that a study can declare, their manifests, and their first parameters.
//!
//! Layer `i` has `layers.i.weight` (linear: `[out, in]`; convolution: `[out, in, k, k]`) and
//! `layers.i.bias` (`[out]`), in that order; trainers rely on it. Two classes are two logits.

use crate::manifest::{Manifest, ManifestError, TensorSpec};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

/// One convolution: kernel, `ReLU`, then a square max-pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Output channels.
    pub filters: u32,
    /// Side of the square kernel; no padding.
    pub kernel: u32,
    /// Step of the kernel.
    pub stride: u32,
    /// Side and step of the pool; 1 for none.
    pub pool: u32,
}

/// A declared model with all its sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSpec {
    /// Multinomial logistic regression.
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
        /// Pixels from top to bottom.
        height: u32,
        /// Pixels from left to right.
        width: u32,
        /// Values per pixel; inputs are `[channels, height, width]`.
        channels: u32,
        /// The convolutions.
        conv: Vec<Conv>,
        /// Width of the hidden layer.
        hidden: u32,
        /// Outputs per record.
        classes: u32,
    },
}

/// One layer, as a trainer builds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// `y = W x + b`.
    Linear {
        /// Inputs.
        inputs: u32,
        /// Outputs.
        outputs: u32,
    },
    /// A convolution, its `ReLU` and its pool.
    Conv {
        /// Input channels.
        inputs: u32,
        /// The kernel and the pool.
        conv: Conv,
    },
}

impl ModelSpec {
    /// The layers with parameters, from the input. `ReLU` stands between any two.
    ///
    /// # Errors
    /// [`ManifestError::DoesNotFit`] when a kernel or pool is larger than what is left of the image.
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
                let (mut h, mut w, mut c) = (*height, *width, *channels);
                for (i, layer) in conv.iter().enumerate() {
                    let out = |side: u32| -> Option<u32> {
                        if layer.stride == 0 || layer.pool == 0 || layer.kernel == 0 {
                            return None;
                        }
                        let side = side.checked_sub(layer.kernel)? / layer.stride + 1;
                        (side >= layer.pool).then(|| (side - layer.pool) / layer.pool + 1)
                    };
                    layers.push(Layer::Conv { inputs: c, conv: *layer });
                    h = out(h).ok_or(ManifestError::DoesNotFit(i))?;
                    w = out(w).ok_or(ManifestError::DoesNotFit(i))?;
                    c = layer.filters;
                }
                let flat = h.checked_mul(w).and_then(|n| n.checked_mul(c));
                let flat = flat.ok_or(ManifestError::TooLarge)?;
                layers.extend(chain(&[flat, *hidden, *classes]));
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
            let (weight, outputs) = match *layer {
                Layer::Linear { inputs, outputs } => (vec![outputs, inputs], outputs),
                Layer::Conv { inputs, conv } => {
                    (vec![conv.filters, inputs, conv.kernel, conv.kernel], conv.filters)
                }
            };
            tensors.push(TensorSpec { name: format!("layers.{i}.weight"), shape: weight });
            tensors.push(TensorSpec { name: format!("layers.{i}.bias"), shape: vec![outputs] });
        }
        Manifest::new(tensors)
    }

    /// The first parameters: weights uniform in ±sqrt(6 / fan-in) (He et al. 2015, section 2.2), biases
    /// zero. The same seed gives the same bits on every platform: nothing but multiplication, division
    /// and square roots, which IEEE 754 rounds in one way.
    ///
    /// # Errors
    /// [`ManifestError`] when the model cannot exist.
    pub fn init(&self, seed: [u8; 32]) -> Result<Vec<f32>, ManifestError> {
        let manifest = self.manifest()?;
        let mut rng = ChaCha20Rng::from_seed(seed);
        let mut params = vec![0.0_f32; manifest.params()];
        for (tensor, range) in manifest.ranges() {
            if tensor.shape.len() < 2 {
                continue;
            }
            let fan_in: f64 = tensor.shape[1..].iter().map(|&d| f64::from(d)).product();
            let bound = (6.0 / fan_in).sqrt();
            for p in &mut params[range] {
                let unit = f64::from(rng.next_u32()) / f64::from(u32::MAX);
                #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
                let value = ((2.0 * unit - 1.0) * bound) as f32;
                *p = value;
            }
        }
        Ok(params)
    }
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
        let conv = vec![Conv { filters: 4, kernel: 9, stride: 1, pool: 1 }];
        let spec =
            ModelSpec::Cnn { height: 8, width: 8, channels: 1, conv, hidden: 8, classes: 10 };
        assert_eq!(spec.manifest(), Err(ManifestError::DoesNotFit(0)));
    }
}
