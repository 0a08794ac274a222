//! What a graph says of a record: how probable each class is, or a number in the label's own unit, cut at its bounds as sites cut it
//! when they evaluate a model.

use super::{
    OnnxError,
    graph::{Graph, length},
    inputs::bounds_in_f32,
    ir::{Attribute, ValueInfo},
    value,
};
use falaj_core::study::{LabelValues, Study};

/// Of a model's outputs, and whether a record is sound: both by name.
#[derive(Clone, Copy)]
pub(super) struct Raw<'a> {
    pub(super) outputs: &'a str,
    pub(super) sound: &'a str,
}

/// Adds to a graph what it says of a record.
///
/// # Errors
/// [`OnnxError::Bounds`] when a label's bounds are one number to a graph.
pub(super) fn say(
    graph: &mut Graph,
    study: &Study,
    raw: Raw<'_>,
) -> Result<Vec<ValueInfo>, OnnxError> {
    match &study.data.label.values {
        LabelValues::Classes(classes) => Ok(probabilities(graph, length(classes.len()), raw)),
        LabelValues::Number { min, max } => {
            number(graph, &study.data.label.column, (*min, *max), raw)
        }
    }
}

fn probabilities(graph: &mut Graph, classes: i64, raw: Raw<'_>) -> Vec<ValueInfo> {
    let nothing = graph.scalar(f32::NAN);
    let inputs = [raw.sound, raw.outputs, &nothing];
    let logits = graph.named("logits".into(), "Where", &inputs, Vec::new());
    let last = vec![Attribute::int("axis", -1)];
    let probabilities = graph.named("probabilities".into(), "Softmax", &[&logits], last);
    let by_class = "for each of `falaj.classes`; NaN for a record that the study's schema refuses";
    [logits, probabilities].map(|name| value(name, classes, by_class)).into()
}

/// A model says -1 for the least and 1 for the most.
fn number(
    graph: &mut Graph,
    column: &str,
    (min, max): (f64, f64),
    raw: Raw<'_>,
) -> Result<Vec<ValueInfo>, OnnxError> {
    let (low, high) = bounds_in_f32(column, (min, max))?;
    let none = Vec::new;
    let (half, middle) = (graph.scalar((high - low) / 2.0), graph.scalar(f32::midpoint(low, high)));
    let (low, high) = (graph.scalar(low), graph.scalar(high));
    let nothing = graph.scalar(f32::NAN);
    // What a model computes may be no number. It stays none: runtimes differ in what a bound makes of it.
    let unknown = graph.node("IsNaN", &[raw.outputs], none());
    let known = graph.node("Where", &[&unknown, &middle, raw.outputs], none());
    let told = graph.node("Mul", &[&known, &half], none());
    let told = graph.node("Add", &[&told, &middle], none());
    let told = graph.node("Max", &[&told, &low], none());
    let told = graph.node("Min", &[&told, &high], none());
    let told = graph.node("Where", &[&unknown, &nothing, &told], none());
    let inputs = [raw.sound, &told, &nothing];
    let prediction = graph.named("prediction".into(), "Where", &inputs, none());
    let doc = "`falaj.label`, in its own unit; NaN for a record that the study's schema refuses";
    Ok(vec![value(prediction, 1, doc)])
}
