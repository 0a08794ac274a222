//! A study's columns as a graph's input: one number for each, which the graph clamps, scales and spreads as the agent does when it
//! reads a cell (`client/src/data.rs`).

use super::{OnnxError, graph::Graph, ir::Attribute};
use falaj_core::study::{Bounds, Feature, FeatureKind, Missing, Study};
use serde_json::{Value, json};

/// The name of the graph's input.
pub(super) const FEATURES: &str = "features";

/// How the model's inputs come from columns: a number for each input.
#[derive(Default)]
struct Plan {
    /// Which column it comes from.
    column: Vec<i64>,
    /// What a missing number counts as; no number where none may be missing.
    missing: Vec<f32>,
    low: Vec<f32>,
    high: Vec<f32>,
    scale: Vec<f32>,
    /// Whether it says that a category is a certain one, and which.
    categorical: Vec<bool>,
    code: Vec<f32>,
}

/// Scaled inputs `[batch, inputs]`, and which records were well-formed `[batch, 1]`.
pub(super) struct Read {
    pub(super) inputs: String,
    pub(super) sound: String,
}

/// Bounds between which a column is clamped. Where a site estimated them they are nobody else's, and values are given as the
/// model sees them, in [-1, 1].
fn bounds(kind: &FeatureKind) -> Option<(f64, f64)> {
    match kind {
        FeatureKind::Numeric { bounds: Bounds::Declared { min, max }, .. } => Some((*min, *max)),
        FeatureKind::Numeric { bounds: Bounds::Estimated { .. }, .. } => Some((-1.0, 1.0)),
        FeatureKind::Categorical { .. } => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a graph computes in f32")]
const fn single(value: f64) -> f32 {
    value as f32
}

/// A category's number; there are far fewer than an f32 can tell apart.
#[expect(clippy::cast_precision_loss, reason = "a study of 1 MiB has fewer values than 2^24")]
const fn code(at: usize) -> f32 {
    at as f32
}

impl Plan {
    fn of(study: &Study) -> Result<Self, OnnxError> {
        let mut plan = Self::default();
        for (at, feature) in study.data.features.iter().enumerate() {
            let column = i64::try_from(at).unwrap_or(i64::MAX);
            match (&feature.kind, bounds(&feature.kind)) {
                (FeatureKind::Categorical { values, missing }, _) => {
                    let keep = *missing == Missing::Keep;
                    let count = values.len() + usize::from(keep);
                    let none = if keep { code(values.len()) } else { f32::NAN };
                    for value in 0..count {
                        let last = code(count.saturating_sub(1));
                        plan.add((column, none), (0.0, last), Some(code(value)));
                    }
                }
                (FeatureKind::Numeric { missing, .. }, between) => {
                    let (min, max) = between.unwrap_or((-1.0, 1.0));
                    let (low, high) = (single(min), single(max));
                    if low >= high || !(high - low).is_finite() {
                        return Err(OnnxError::Bounds { column: feature.name.clone(), min, max });
                    }
                    let middle = single(f64::midpoint(min, max));
                    let none = if *missing == Missing::Keep { middle } else { f32::NAN };
                    plan.add((column, none), (low, high), None);
                }
            }
        }
        Ok(plan)
    }

    fn add(&mut self, (column, none): (i64, f32), (low, high): (f32, f32), code: Option<f32>) {
        self.column.push(column);
        self.missing.push(none);
        self.low.push(low);
        self.high.push(high);
        self.scale.push(if code.is_some() { 0.0 } else { 2.0 / (high - low) });
        self.categorical.push(code.is_some());
        self.code.push(code.unwrap_or_default());
    }
}

/// Adds to a graph what reads a study's columns.
///
/// # Errors
/// [`OnnxError::Bounds`] when a column's bounds are one number to a graph.
pub(super) fn read(graph: &mut Graph, study: &Study) -> Result<Read, OnnxError> {
    let plan = Plan::of(study)?;
    let categories = plan.categorical.contains(&true);
    let none = Vec::new;
    let mut x = FEATURES.to_owned();
    if categories {
        let column = graph.ints(&plan.column);
        x = graph.node("Gather", &[&x, &column], vec![Attribute::int("axis", 1)]);
    }
    let (low, high) = (graph.floats(&plan.low), graph.floats(&plan.high));
    let missing = graph.floats(&plan.missing);
    let absent = graph.node("IsNaN", &[&x], none());
    let kept = graph.node("Where", &[&absent, &missing, &x], none());
    // What is no number now may not be missing. Nothing is computed with it: runtimes differ in what comes of that.
    let absent = graph.node("IsNaN", &[&kept], none());
    let number = graph.node("Where", &[&absent, &low, &kept], none());
    let clamped = graph.node("Max", &[&number, &low], none());
    let clamped = graph.node("Min", &[&clamped, &high], none());
    let (scale, one) = (graph.floats(&plan.scale), graph.scalar(1.0));
    let scaled = graph.node("Sub", &[&clamped, &low], none());
    let scaled = graph.node("Mul", &[&scaled, &scale], none());
    let mut inputs = graph.node("Sub", &[&scaled, &one], none());
    let mut expected = number.clone();
    if categories {
        let (categorical, code) = (graph.bools(&plan.categorical), graph.floats(&plan.code));
        let is = graph.node("Equal", &[&number, &code], none());
        let is = graph.as_numbers(&is);
        inputs = graph.node("Where", &[&categorical, &is, &inputs], none());
        // A category's number is whole and one of those that there are.
        let whole = graph.node("Round", &[&clamped], none());
        expected = graph.node("Where", &[&categorical, &whole, &number], none());
    }
    let sound = graph.node("Equal", &[&expected, &kept], none());
    let sound = graph.as_numbers(&sound);
    let all = vec![Attribute::ints("axes", &[1]), Attribute::int("keepdims", 1)];
    let sound = graph.node("ReduceMin", &[&sound], all);
    let sound = graph.as_truths(&sound);
    Ok(Read { inputs, sound })
}

/// The columns of [`FEATURES`] in order, as metadata say them. Members are in the order of their names, whatever writes them.
pub(super) fn described(study: &Study) -> Value {
    let missing = |missing: Missing| match missing {
        Missing::Refuse => "refuse",
        Missing::Keep => "keep",
    };
    let column = |feature: &Feature| match &feature.kind {
        FeatureKind::Numeric { bounds: Bounds::Declared { min, max }, missing: m } => {
            json!({ "kind": "numeric", "max": max, "min": min, "missing": missing(*m), "name": feature.name })
        }
        FeatureKind::Numeric { bounds: Bounds::Estimated { .. }, missing: m } => {
            json!({ "kind": "scaled", "missing": missing(*m), "name": feature.name })
        }
        FeatureKind::Categorical { values, missing: m } => {
            json!({ "kind": "categorical", "missing": missing(*m), "name": feature.name, "values": values })
        }
    };
    study.data.features.iter().map(column).collect()
}
