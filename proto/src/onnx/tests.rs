//! What is in a file, message by message. That a runtime agrees with the agent is shown end to end, in `tests/tests/e2e/onnx.rs`.

use super::{About, OnnxError, export, ir};
use bytes::Bytes;
use falaj_core::{
    aggregate::params_to_bytes,
    id::Digest,
    manifest::{Manifest, TensorSpec},
    registry::safetensors::head,
    study::{Bounds, FeatureKind, Missing, Study},
};
use prost::Message as _;
use std::collections::BTreeSet;

const STUDY_SHA256: Digest = Digest([7; 32]);

/// A study of so many numeric columns.
fn study(columns: usize, (min, max): (f64, f64), model: &str) -> Study {
    let column = |i| format!("    - {{ name: c{i}, min: {min:?}, max: {max:?} }}\n");
    let columns: String = (0..columns).map(column).collect();
    let text = format!(
        "study: heart\npurpose: test\ndata:\n  dataset: d\n  label: {{ column: y, classes: [low, high, other] }}\n  features:\n{columns}model: {model}\n\
         training: {{ local_steps: 1, sample_rate: 0.1, learning_rate: 0.5 }}\n\
         privacy: {{ mechanism: dp_sgd, noise_multiplier: 1.0, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 900.0 }}\n\
         cohort: {{ places: [\"ae-on/*\"], min_sites: 2 }}\nrounds: {{ count: 2 }}\n"
    );
    crate::study::parse(&text, "study.yaml").expect("a study")
}

fn models() -> Vec<Study> {
    let transformer = "width: 8, heads: 2, blocks: 2, feed_forward: 12 }";
    vec![
        study(6, (0.0, 9.0), "{ kind: logistic }"),
        study(6, (0.0, 9.0), "{ kind: mlp, hidden: [9, 5] }"),
        study(
            81,
            (0.0, 255.0),
            "{ kind: cnn, image: [9, 9, 1], conv: [{ filters: 4, kernel: 3, pool: 2, norm: group, groups: 2 }, { filters: 5, kernel: 2, stride: 2, norm: none }], hidden: 7 }",
        ),
        study(6, (0.0, 9.0), &format!("{{ kind: transformer, tokens: columns, {transformer}")),
        study(
            9,
            (0.0, 4.0),
            &format!("{{ kind: transformer, tokens: codes, vocabulary: 5, {transformer}"),
        ),
        study(
            12,
            (0.0, 9.0),
            &format!("{{ kind: transformer, tokens: steps, channels: 4, {transformer}"),
        ),
    ]
}

/// A `safetensors` file of parameters.
fn file(manifest: &Manifest, params: &[f32]) -> Bytes {
    let (study, raw) = ("heart".parse().expect("a name"), params_to_bytes(params));
    let mut file = head(&study, &STUDY_SHA256, 2, &Digest::of(&raw), manifest);
    file.extend(raw);
    file.into()
}

fn about<'a>(study: &'a Study, params: &[f32]) -> About<'a> {
    let model_sha256 = Digest::of(&params_to_bytes(params));
    About { study, study_sha256: STUDY_SHA256, version: 1, round: 2, model_sha256 }
}

fn params(study: &Study) -> Vec<f32> {
    study.model_spec().init([3; 32]).expect("a model")
}

fn exported(study: &Study) -> ir::Model {
    let params = params(study);
    let file = file(&study.manifest().expect("a manifest"), &params);
    let bytes = export(&file, &about(study, &params)).expect("a model");
    assert_eq!(bytes, export(&file, &about(study, &params)).expect("a model"), "the same again");
    ir::Model::decode(&bytes[..]).expect("a message")
}

#[test]
fn each_value_is_made_once_before_it_is_used_and_every_tensor_is_the_models() {
    for study in models() {
        let graph = exported(&study).graph.expect("a graph");
        let mut known: BTreeSet<&str> = graph.input.iter().map(|v| &*v.name).collect();
        let mut unused: BTreeSet<&str> = BTreeSet::new();
        for tensor in &graph.initializer {
            assert!(known.insert(&tensor.name), "{} twice", tensor.name);
            unused.insert(&tensor.name);
        }
        for node in &graph.node {
            for input in &node.input {
                assert!(known.contains(&**input), "{} wants {input}", node.name);
                unused.remove(&**input);
            }
            let [output] = &node.output[..] else { panic!("{} gives one value", node.name) };
            assert!(known.insert(output), "{output} twice");
        }
        assert!(unused.is_empty(), "{unused:?}");
        assert!(graph.output.iter().all(|v| known.contains(&*v.name)));
        let (manifest, params) = (study.manifest().expect("a manifest"), params(&study));
        for ((spec, range), tensor) in manifest.ranges().zip(&graph.initializer) {
            let dims: Vec<i64> = spec.shape.iter().map(|&d| d.into()).collect();
            assert_eq!(
                (&tensor.name, &tensor.dims, tensor.data_type),
                (&spec.name, &dims, ir::F32)
            );
            let raw = tensor.raw_data.as_deref().expect("numbers");
            assert_eq!(raw, params_to_bytes(&params[range]));
        }
    }
}

#[test]
fn a_file_says_which_model_it_holds_and_what_its_columns_are() {
    let mut study = study(3, (0.0, 9.0), "{ kind: logistic }");
    let (values, missing) = (vec!["f".into(), "m".into()], Missing::Keep);
    study.data.features[1].kind = FeatureKind::Categorical { values, missing };
    let bounds = Bounds::Estimated { epsilon: 1.0 };
    study.data.features[2].kind = FeatureKind::Numeric { bounds, missing: Missing::Refuse };
    let model = exported(&study);
    let fact = |key: &str| {
        let found = model.metadata_props.iter().find(|p| p.key == key);
        found.map(|p| p.value.as_str())
    };
    let digest = Digest::of(&params_to_bytes(&params(&study))).to_string();
    assert_eq!(fact("falaj.model_sha256"), Some(&*digest));
    assert_eq!(fact("falaj.study_sha256"), Some(&*STUDY_SHA256.to_string()));
    assert_eq!(fact("falaj.version"), Some("1"));
    assert_eq!(fact("falaj.classes"), Some("[\"low\",\"high\",\"other\"]"));
    assert_eq!(fact("falaj.threshold"), None, "of three classes none is the positive one");
    assert_eq!(
        fact("falaj.columns"),
        Some(
            r#"[{"kind":"numeric","max":9.0,"min":0.0,"missing":"refuse","name":"c0"},{"kind":"categorical","missing":"keep","name":"c1","values":["f","m"]},{"kind":"scaled","missing":"refuse","name":"c2"}]"#
        )
    );
    let graph = model.graph.expect("a graph");
    let dims = |v: &ir::ValueInfo| {
        let tensor = v.r#type.clone().and_then(|t| t.tensor_type).expect("a tensor");
        let dims = tensor.shape.expect("a shape").dim;
        dims.into_iter().filter_map(|d| d.value).collect::<Vec<_>>()
    };
    let batch = || ir::Extent::Param("batch".into());
    assert_eq!(dims(&graph.input[0]), [batch(), ir::Extent::Value(3)], "columns, not inputs");
    assert_eq!(dims(&graph.output[1]), [batch(), ir::Extent::Value(3)]);
}

#[test]
fn a_file_that_is_not_the_model_is_refused_and_says_why() {
    let study = study(3, (0.0, 9.0), "{ kind: logistic }");
    let (manifest, good) = (study.manifest().expect("a manifest"), params(&study));
    let about = about(&study, &good);
    let refused = |file: &Bytes| export(file, &about).expect_err("refused").to_string();
    let whole = file(&manifest, &good);
    for end in [0, 7, 8, 60, whole.len() - 1] {
        let error = refused(&whole.slice(..end));
        assert!(error.contains("no safetensors file"), "{end}: {error}");
    }
    let tensors = |change: &dyn Fn(&mut Vec<TensorSpec>)| {
        let mut specs = manifest.tensors().to_vec();
        change(&mut specs);
        let other = Manifest::new(specs).expect("a manifest");
        file(&other, &vec![0.0; other.params()])
    };
    let error = refused(&tensors(&|specs| specs[1].name = "layers.0.biases".into()));
    assert!(error.contains("`layers.0.bias` of the study's model is missing"), "{error}");
    let error = refused(&tensors(&|specs| specs[0].shape = vec![3, 4]));
    assert!(
        error.contains("`layers.0.weight` is F32 [3, 4]") && error.contains("[3, 3]"),
        "{error}"
    );
    let further = TensorSpec { name: "layers.1.weight".into(), shape: vec![1] };
    let error = refused(&tensors(&|specs| specs.push(further.clone())));
    assert!(error.contains("`layers.1.weight` is none"), "{error}");
    let error = refused(&tensors(&|specs| specs.reverse()));
    assert!(error.contains("another model, or is damaged"), "{error}");
    for (value, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let mut bad = good.clone();
        bad[10] = value;
        let error = refused(&file(&manifest, &bad));
        assert!(error.contains(&format!("layers.0.bias[1] is {shown}")), "{error}");
    }
    let mut other = good.clone();
    other[0] += 1.0;
    assert!(matches!(export(&file(&manifest, &other), &about), Err(OnnxError::Model { .. })));
}

#[test]
fn bounds_that_are_one_number_to_a_graph_are_refused() {
    let narrow = study(2, (1.0e9, 1.000_000_001e9), "{ kind: logistic }");
    let params = params(&narrow);
    let file = file(&narrow.manifest().expect("a manifest"), &params);
    let error = export(&file, &about(&narrow, &params)).expect_err("refused").to_string();
    assert!(error.contains("column `c0` goes from 1000000000 to 1000000001"), "{error}");
}
