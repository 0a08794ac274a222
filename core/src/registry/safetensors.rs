//! A model as the file that it is downloaded as: `safetensors`, whose data is just what is stored.

use crate::{
    id::{Digest, StudyId},
    manifest::Manifest,
};
use serde_json::{Map, json};

/// What stands before the parameters in the file: its length, then JSON. Parameters are stored in manifest order as
/// little-endian f32, which is just how the format wants its data.
#[must_use]
pub fn head(
    study: &StudyId,
    study_sha256: &Digest,
    round: u32,
    model: &Digest,
    manifest: &Manifest,
) -> Vec<u8> {
    let mut tensors = Map::new();
    let about = json!({
        "study": study.as_str(),
        "study_sha256": study_sha256.to_string(),
        "round": round.to_string(),
        "model_sha256": model.to_string(),
        "format": "pt",
    });
    tensors.insert("__metadata__".into(), about);
    for (tensor, range) in manifest.ranges() {
        let entry = json!({
            "dtype": "F32",
            "shape": tensor.shape,
            "data_offsets": [range.start * 4, range.end * 4],
        });
        tensors.insert(tensor.name.clone(), entry);
    }
    let mut json = serde_json::Value::Object(tensors).to_string().into_bytes();
    // The format asks that the data begin at a multiple of eight.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.extend(json);
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::TensorSpec;

    #[test]
    fn the_head_says_where_each_tensor_lies_and_is_the_same_each_time() {
        let spec = |name: &str, shape: Vec<u32>| TensorSpec { name: name.into(), shape };
        let manifest =
            Manifest::new(vec![spec("w", vec![2, 3]), spec("b", vec![2])]).expect("a manifest");
        let study = "heart".parse().expect("a study");
        let (file, model) = (Digest::of(b"study"), Digest::of(b"model"));
        let bytes = head(&study, &file, 3, &model, &manifest);
        assert_eq!(bytes, head(&study, &file, 3, &model, &manifest));
        let (length, json) = bytes.split_first_chunk::<8>().expect("a length");
        assert_eq!((u64::from_le_bytes(*length), json.len() % 8), (json.len() as u64, 0));
        let read: serde_json::Value = serde_json::from_slice(json).expect("JSON");
        assert_eq!(read["w"]["data_offsets"], json!([0, 24]));
        assert_eq!(read["b"]["data_offsets"], json!([24, 32]));
        assert_eq!(read["__metadata__"]["round"], "3");
    }
}
