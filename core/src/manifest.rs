//! The manifest: which tensors a model has, in which order, and so what each parameter's index means.

use crate::{
    canon::{self, Canon, CanonError},
    id::Digest,
};
use std::{collections::BTreeSet, ops::Range};

/// The most parameters that one model may have.
pub const PARAMS_MAX: u64 = 1 << 31;
/// The most tensors that one model may have.
const TENSORS_MAX: usize = 10_000;

/// One tensor, stored row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, for example `layers.0.weight`.
    pub name: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<u32>,
}

/// Every tensor of a model, in the order in which its parameters travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    tensors: Vec<TensorSpec>,
    params: usize,
}

/// Why tensors are not a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// There is nothing to learn.
    #[error("the model has no parameters")]
    Empty,
    /// A dimension is zero.
    #[error("tensor `{0}` has a dimension of zero")]
    ZeroDimension(String),
    /// Two tensors share a name.
    #[error("two tensors are named `{0}`")]
    NameTwice(String),
    /// There are more parameters or tensors than one model may have.
    #[error("the model has more than {PARAMS_MAX} parameters or {TENSORS_MAX} tensors")]
    TooLarge,
    /// A convolution does not fit its input.
    #[error("layer {0}: the image has become smaller than the kernel or the pool")]
    DoesNotFit(usize),
    /// Heads or groups are no divisor.
    #[error("{divisor} {what} do not divide {whole}")]
    Divides {
        /// Heads, or groups.
        what: &'static str,
        /// How many.
        divisor: u32,
        /// What they were to divide.
        whole: u32,
    },
}

impl Manifest {
    /// A manifest of these tensors.
    ///
    /// # Errors
    /// [`ManifestError`] when names repeat, a dimension is zero, or it is too large.
    pub fn new(tensors: Vec<TensorSpec>) -> Result<Self, ManifestError> {
        if tensors.is_empty() {
            return Err(ManifestError::Empty);
        }
        if tensors.len() > TENSORS_MAX {
            return Err(ManifestError::TooLarge);
        }
        let mut names = BTreeSet::new();
        let mut params: u64 = 0;
        for t in &tensors {
            if !names.insert(t.name.as_str()) {
                return Err(ManifestError::NameTwice(t.name.clone()));
            }
            let mut size: u64 = 1;
            for &d in &t.shape {
                if d == 0 {
                    return Err(ManifestError::ZeroDimension(t.name.clone()));
                }
                size = size.checked_mul(u64::from(d)).ok_or(ManifestError::TooLarge)?;
            }
            params = params.checked_add(size).ok_or(ManifestError::TooLarge)?;
        }
        if params > PARAMS_MAX {
            return Err(ManifestError::TooLarge);
        }
        let params = usize::try_from(params).map_err(|_| ManifestError::TooLarge)?;
        Ok(Self { tensors, params })
    }

    /// Number of parameters over all tensors.
    #[must_use]
    pub const fn params(&self) -> usize {
        self.params
    }

    /// The tensors, in order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Each tensor with the range of its parameters.
    pub fn ranges(&self) -> impl Iterator<Item = (&TensorSpec, Range<usize>)> {
        self.tensors.iter().scan(0, |at, t| {
            let start = *at;
            *at += t.shape.iter().map(|&d| d as usize).product::<usize>();
            Some((t, start..*at))
        })
    }

    /// The tensor and position within it of parameter `index`, for messages.
    #[must_use]
    pub fn describe(&self, index: usize) -> String {
        self.ranges()
            .find(|(_, r)| r.contains(&index))
            .map_or_else(|| format!("{index}"), |(t, r)| format!("{}[{}]", t.name, index - r.start))
    }

    /// The canonical JSON form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let tensors = self.tensors.iter().map(|t| {
            Canon::map([
                ("name", t.name.as_str().into()),
                ("shape", Canon::List(t.shape.iter().map(|&d| d.into()).collect())),
            ])
        });
        Canon::map([("dtype", "f32".into()), ("tensors", Canon::List(tensors.collect()))])
            .to_bytes()
    }

    /// SHA-256 of the canonical form.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// Reads the canonical form.
    ///
    /// # Errors
    /// [`CanonError`] when the bytes are no manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, CanonError> {
        let c = canon::parse(bytes)?;
        let bad = |what: &str| CanonError::Member(what.to_owned());
        let mut tensors = Vec::new();
        for t in c.list("tensors")? {
            let dimension = |d: &Canon| match d {
                Canon::Int(n) => u32::try_from(*n).map_err(|_| bad("shape")),
                _ => Err(bad("shape")),
            };
            let shape = t.list("shape")?.iter().map(dimension).collect::<Result<_, _>>()?;
            tensors.push(TensorSpec { name: t.text("name")?.to_owned(), shape });
        }
        Self::new(tensors).map_err(|e| bad(&e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[u32]) -> TensorSpec {
        TensorSpec { name: name.into(), shape: shape.into() }
    }

    #[test]
    fn a_manifest_round_trips_and_knows_where_each_parameter_lies() {
        let m = Manifest::new(vec![tensor("w", &[2, 3]), tensor("b", &[2])]).expect("valid");
        assert_eq!(m.params(), 8);
        assert_eq!(Manifest::parse(&m.to_bytes()), Ok(m.clone()));
        assert_eq!((m.describe(5), m.describe(6)), ("w[5]".into(), "b[0]".into()));
    }

    #[test]
    fn what_is_no_model_is_refused() {
        let twice = vec![tensor("w", &[1]), tensor("w", &[1])];
        assert_eq!(Manifest::new(twice), Err(ManifestError::NameTwice("w".into())));
        assert_eq!(Manifest::new(vec![]), Err(ManifestError::Empty));
        let huge = vec![tensor("w", &[u32::MAX, u32::MAX, u32::MAX])];
        assert_eq!(Manifest::new(huge), Err(ManifestError::TooLarge));
        let zero = vec![tensor("w", &[0])];
        assert_eq!(Manifest::new(zero), Err(ManifestError::ZeroDimension("w".into())));
    }
}
