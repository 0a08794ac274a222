//! A model as ONNX, for a runtime that is not ours. Pure: bytes in, bytes out, and the same for the same.
//!
//! The graph takes `features` `[batch, columns]`, f32: a number for each column of the study, in its order, as it stands in a
//! record. It clamps, scales and spreads them as sites do before they train, so that nobody has to do it again and otherwise:
//!
//! - a numeric column's number is as in the records; one whose bounds a site estimated is already scaled to [-1, 1], for those
//!   bounds never left the site;
//! - a categorical column's number is the place of its value in the study's list, from 0;
//! - a missing cell is NaN.
//!
//! It gives `logits` and `probabilities`, `[batch, classes]`. A record that the study's schema refuses (a cell is missing that may
//! not be, a category is none of the study's) gets NaN, never a guess; the others beside it are not affected.
//!
//! Every tensor of the model is in the file under its own name, bit by bit as it was trained, and the metadata say which model
//! that is: `falaj.*`, of which [`About`] has what is not in the study.

mod graph;
mod inputs;
mod ir;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use falaj_core::{
    id::Digest,
    manifest::{Manifest, ManifestError, TensorSpec},
    study::Study,
};
use graph::{Graph, length};
use prost::Message as _;
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use serde_json::json;

/// The most bytes of a file: readers of the format take no more in one message.
const BYTES_MAX: usize = i32::MAX.unsigned_abs() as usize;
/// The size of a parameter.
const PARAM_BYTES: usize = 4;

/// Which model it is that a file holds: what the file then says of itself.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// What was agreed.
    pub study: &'a Study,
    /// SHA-256 of the study's file.
    pub study_sha256: Digest,
    /// The version's number.
    pub version: u32,
    /// The round that gave the model.
    pub round: u32,
    /// SHA-256 of the model's parameters: a file with others is refused.
    pub model_sha256: Digest,
}

/// Why a model does not become ONNX.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The bytes are something else.
    #[error("this is no safetensors file, or a part of one")]
    NotSafetensors(#[source] SafeTensorError),
    /// A tensor is not there.
    #[error("tensor `{0}` of the study's model is missing: the file holds another model")]
    Missing(String),
    /// A tensor is otherwise than the study's model has it.
    #[error(
        "tensor `{name}` is {found}, the study's model has {expected}: the file holds another model"
    )]
    Shape {
        /// Its name.
        name: String,
        /// As it is.
        found: String,
        /// As it should be.
        expected: String,
    },
    /// There are tensors that the study's model does not have.
    #[error("tensor `{0}` is none of the study's model: the file holds another model")]
    Further(String),
    /// A parameter is no number.
    #[error(
        "parameter {0} is {1}: whatever such a model says means nothing; export an earlier version"
    )]
    NotFinite(String, f32),
    /// The parameters are others.
    #[error(
        "the parameters have digest {found}, those of the version have {expected}: the file holds another model, or is damaged"
    )]
    Model {
        /// Of the file.
        found: Digest,
        /// As promised.
        expected: Digest,
    },
    /// A column cannot be scaled.
    #[error(
        "column `{column}` goes from {min} to {max}, between which an f32 tells nothing apart: ONNX of it would be wrong"
    )]
    Bounds {
        /// Its name.
        column: String,
        /// Its lower bound.
        min: f64,
        /// Its upper bound.
        max: f64,
    },
    /// There is more than the format takes.
    #[error("the file would have {0} bytes; ONNX takes at most {BYTES_MAX} in one")]
    TooLarge(usize),
    /// The study's model cannot exist.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Makes an ONNX model of a `safetensors` file.
///
/// # Errors
/// [`OnnxError`]: the file is not the model that it is said to be, or ONNX cannot hold it.
pub fn export(file: &Bytes, about: &About<'_>) -> Result<Vec<u8>, OnnxError> {
    let study = about.study;
    let (spec, manifest) = (study.model_spec(), study.manifest()?);
    let mut graph = Graph::default();
    for (tensor, raw) in tensors(file, &manifest, about.model_sha256)? {
        let dims = tensor.shape.iter().map(|&d| i64::from(d)).collect();
        graph.tensor(tensor.name.clone(), dims, ir::F32, raw);
    }
    let read = inputs::read(&mut graph, study)?;
    let raw = graph::forward(&mut graph, &spec, &spec.layers()?, &read.inputs);
    let nothing = graph.scalar(f32::NAN);
    let logits = "logits".to_owned();
    let logits = graph.named(logits, "Where", &[&read.sound, &raw, &nothing], Vec::new());
    let last = vec![ir::Attribute::int("axis", -1)];
    let probabilities = graph.named("probabilities".into(), "Softmax", &[&logits], last);

    let (columns, classes) = (length(study.data.features.len()), i64::from(spec.classes()));
    let features = "a number for each of `falaj.columns`; NaN where one is missing";
    let by_class = "for each of `falaj.classes`; NaN for a record that the study's schema refuses";
    let model = ir::Model {
        ir_version: ir::IR_VERSION,
        producer_name: "falaj".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        model_version: i64::from(about.version),
        opset_import: vec![ir::OperatorSet { domain: Some(String::new()), version: ir::OPSET }],
        metadata_props: metadata(about, &manifest, file),
        graph: Some(ir::GraphProto {
            name: study.id.as_str().to_owned(),
            node: graph.nodes,
            initializer: graph.tensors,
            input: vec![value(inputs::FEATURES.into(), columns, features)],
            output: vec![value(logits, classes, by_class), value(probabilities, classes, by_class)],
        }),
    };
    match model.encoded_len() {
        bytes if bytes > BYTES_MAX => Err(OnnxError::TooLarge(bytes)),
        _ => Ok(model.encode_to_vec()),
    }
}

/// Numbers by record, `[batch, width]`.
fn value(name: String, width: i64, doc: &str) -> ir::ValueInfo {
    let dim = |value| ir::Dimension { value: Some(value) };
    let dims = vec![dim(ir::Extent::Param("batch".into())), dim(ir::Extent::Value(width))];
    let tensor = ir::TensorType { elem_type: ir::F32, shape: Some(ir::Shape { dim: dims }) };
    let r#type = Some(ir::Type { tensor_type: Some(tensor) });
    ir::ValueInfo { name, r#type, doc_string: doc.to_owned() }
}

/// The tensors of a file in the manifest's order, when they are just those of the model.
fn tensors<'m>(
    file: &Bytes,
    manifest: &'m Manifest,
    model: Digest,
) -> Result<Vec<(&'m TensorSpec, Bytes)>, OnnxError> {
    let read = SafeTensors::deserialize(file).map_err(OnnxError::NotSafetensors)?;
    let mut found = Vec::new();
    for (spec, range) in manifest.ranges() {
        let tensor = read.tensor(&spec.name).map_err(|_| OnnxError::Missing(spec.name.clone()))?;
        fits(spec, &tensor)?;
        let raw = tensor.data();
        let (whole, _) = raw.as_chunks::<PARAM_BYTES>();
        let mut numbers = whole.iter().map(|b| f32::from_le_bytes(*b)).enumerate();
        if let Some((at, value)) = numbers.find(|(_, value)| !value.is_finite()) {
            return Err(OnnxError::NotFinite(manifest.describe(range.start + at), value));
        }
        found.push((spec, file.slice_ref(raw)));
    }
    let known = |name: &&str| manifest.tensors().iter().any(|spec| spec.name == **name);
    if read.len() != manifest.tensors().len()
        && let Some(name) = read.names().into_iter().filter(|name| !known(name)).min()
    {
        return Err(OnnxError::Further(name.to_owned()));
    }
    // The tensors fill what follows the head, as reading has made sure; in another order they are another model.
    let params = manifest.params().saturating_mul(PARAM_BYTES);
    let digest = Digest::of(&file[file.len().saturating_sub(params)..]);
    if digest == model {
        Ok(found)
    } else {
        Err(OnnxError::Model { found: digest, expected: model })
    }
}

fn fits(spec: &TensorSpec, tensor: &TensorView<'_>) -> Result<(), OnnxError> {
    let same =
        tensor.shape().iter().map(|&d| d as u64).eq(spec.shape.iter().map(|&d| u64::from(d)));
    if same && tensor.dtype() == Dtype::F32 {
        return Ok(());
    }
    Err(OnnxError::Shape {
        name: spec.name.clone(),
        found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
        expected: format!("{:?} {:?}", Dtype::F32, spec.shape),
    })
}

/// What a file says of itself, always in the same order.
fn metadata(about: &About<'_>, manifest: &Manifest, file: &Bytes) -> Vec<ir::Property> {
    let study = about.study;
    let threshold = study.evaluation.as_ref().filter(|_| study.classes() == 2);
    let facts = [
        ("study", Some(study.id.as_str().to_owned())),
        ("study_sha256", Some(about.study_sha256.to_string())),
        ("version", Some(about.version.to_string())),
        ("round", Some(about.round.to_string())),
        ("model_sha256", Some(about.model_sha256.to_string())),
        ("manifest_sha256", Some(manifest.digest().to_string())),
        ("safetensors_sha256", Some(Digest::of(file).to_string())),
        ("label", Some(study.data.label.column.clone())),
        ("classes", Some(json!(study.data.label.classes).to_string())),
        ("threshold", threshold.map(|e| e.threshold.to_string())),
        ("columns", Some(inputs::described(study).to_string())),
    ];
    let property = |(key, value): (&str, Option<String>)| {
        Some(ir::Property { key: format!("falaj.{key}"), value: value? })
    };
    facts.into_iter().filter_map(property).collect()
}
