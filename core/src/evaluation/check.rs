//! What is wrong with how a study is to be evaluated, and with its gates.

use super::{
    ATTRIBUTES_MAX, Attribute, BINS_MAX, Evaluation, GROUPS_MAX, Groups, HeldOut, Noise,
    PERTURBATIONS_MAX, Perturbation, Target, WATCHED_MAX,
    cells::{CELLS_MAX, float},
    figures::{Kind, Metric},
};
use crate::{
    dp::rdp::Epsilon,
    gate::{Bound, Declared, Figure, OnFailure, When, patience::Patience},
    robust::Standing,
    study::{Problem, Study},
};
use std::collections::BTreeSet;

/// Steps of one projected gradient attack at most.
const STEPS_MAX: u32 = 100;
/// Gates of a study at most.
pub const GATES_MAX: usize = 100;

/// Bytes of a column that is named in verdicts, and of a value.
const NAME_MAX: usize = 64;

/// Whether a column or a value can stand in the line that a verdict is: what is signed of a version is read from it again.
fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && !text.contains(char::is_control)
        && ![": ", "; ", ", ", " ["].iter().any(|sign| text.contains(sign))
        && text.trim() == text
}

/// What is found, in the order in which it is looked for.
struct Found(Vec<Problem>);

impl Found {
    fn when(&mut self, wrong: bool, at: &str, what: impl Into<String>, mend: impl Into<String>) {
        if wrong {
            self.0.push(Problem { at: at.to_owned(), what: what.into(), mend: mend.into() });
        }
    }
}

/// Everything that is wrong with an evaluation of a model that says this. `protected` says whether the study
/// protects records.
#[must_use]
pub fn settings(e: &Evaluation, target: impl Into<Target>, protected: bool) -> Vec<Problem> {
    let (target, mut p) = (target.into(), Found(Vec::new()));
    match &e.held_out {
        HeldOut::Part(part) => p.when(
            !(*part > 0.0 && *part <= 0.9),
            "evaluation.holdout",
            format!("{part} of the records cannot be held out"),
            "give a part above 0 and at most 0.9, for example 0.2",
        ),
        HeldOut::Dataset(name) => p.when(
            name.is_empty(),
            "evaluation.dataset",
            "no data set is named",
            "name the data set as the sites' configurations bind it",
        ),
    }
    p.when(e.every == 0, "evaluation.every", "no round would be evaluated", "give 1 or more");
    let positive = |v: f64| v.is_finite() && v > 0.0;
    match e.noise {
        Noise::Laplace { epsilon } => p.when(
            !positive(epsilon),
            "evaluation.epsilon",
            format!("{epsilon} is no epsilon"),
            "give what one evaluation may cost, for example 0.2",
        ),
        Noise::Gaussian { rho } => p.when(
            !positive(rho),
            "evaluation.rho",
            format!("{rho} is no rho"),
            "give what one evaluation may cost in zero-concentrated DP, for example 0.005",
        ),
        Noise::None => p.when(
            protected,
            "evaluation.noise",
            "the counts of held-out records would leave a site without noise",
            "say `noise: laplace` or `noise: gaussian`; `none` is for `mechanism: none`, where a policy permits it",
        ),
    }
    if !target.is_number() {
        bins(e, target.outputs(), &mut p);
    }
    attributes(e, &mut p);
    p.when(
        e.group_min == 0,
        "evaluation.group_min",
        "a group of nobody would be compared",
        "give the least records of a group, for example 100",
    );
    p.when(
        !(e.confidence >= 0.5 && e.confidence <= 0.9999),
        "evaluation.confidence",
        format!("{} is no confidence", e.confidence),
        "give 0.5 to 0.9999, usually 0.95",
    );
    perturbations(e, target, &mut p);
    drift(e, &mut p);
    if p.0.is_empty() {
        let cells = e.layout(target).cells();
        p.when(
            cells > CELLS_MAX,
            "evaluation",
            format!("a site would send {cells} counts"),
            format!("take fewer bins or groups: at most {CELLS_MAX} counts travel"),
        );
    }
    p.0
}

fn bins(e: &Evaluation, classes: u32, p: &mut Found) {
    p.when(
        !(2..=BINS_MAX).contains(&e.bins),
        "evaluation.bins",
        format!("{} score bins", e.bins),
        format!("give 2 to {BINS_MAX}"),
    );
    p.when(
        e.calibration_bins == 0 || !e.bins.is_multiple_of(e.calibration_bins.max(1)),
        "evaluation.calibration_bins",
        format!("{} score bins do not make {} for calibration", e.bins, e.calibration_bins),
        "give a number that divides `bins`",
    );
    let at = e.threshold * f64::from(e.bins);
    let on_edge = (at - at.round()).abs() < 1e-9 && at.round() >= 1.0 && at < f64::from(e.bins);
    p.when(
        classes == 2 && !on_edge,
        "evaluation.threshold",
        format!("{} lies inside one of {} score bins", e.threshold, e.bins),
        "give a threshold at the edge of a bin: a whole number of bins over `bins`",
    );
}

fn attributes(e: &Evaluation, p: &mut Found) {
    let count = e.attributes.len();
    p.when(
        count > ATTRIBUTES_MAX,
        "evaluation.groups",
        format!("{count} protected attributes"),
        format!("give at most {ATTRIBUTES_MAX}"),
    );
    let columns: BTreeSet<_> = e.attributes.iter().map(|a| &a.column).collect();
    p.when(
        columns.len() != count,
        "evaluation.groups",
        "a column is listed twice",
        "list each protected attribute once",
    );
    for (i, attribute) in e.attributes.iter().enumerate() {
        groups(attribute, &format!("evaluation.groups[{i}]"), p);
    }
}

/// What a column's values are put together to.
fn groups(attribute: &Attribute, at: &str, p: &mut Found) {
    let named = &attribute.column;
    let values = match &attribute.groups {
        Groups::Values(values) => &values[..],
        Groups::Bands(_) => &[],
    };
    let unclear = [named].into_iter().chain(values).find(|text| !is_name(text));
    if let Some(unclear) = unclear {
        let shown: String = unclear.chars().take(NAME_MAX).collect();
        p.when(
            true,
            at,
            format!("`{}` would not be told from what stands around it in a verdict", shown.escape_debug()),
            format!("give columns and values of 1 to {NAME_MAX} bytes, without control characters, and without `: `, `; `, `, ` and ` [`: name the value otherwise in the data"),
        );
    }
    match &attribute.groups {
        Groups::Values(values) => {
            let distinct: BTreeSet<_> = values.iter().collect();
            p.when(
                values.is_empty() || distinct.len() != values.len(),
                at,
                format!("`{named}` lists no value, or one twice"),
                "list each value whose records are a group once; all others are `other`",
            );
        }
        Groups::Bands(edges) => p.when(
            edges.is_empty()
                || edges.iter().any(|v| !v.is_finite())
                || edges.windows(2).any(|pair| pair[0] >= pair[1]),
            at,
            format!("`{named}` has edges that do not ascend"),
            "give finite numbers, each above the one before, for example `edges: [30, 50]`",
        ),
    }
    p.when(
        attribute.len() > GROUPS_MAX + 1,
        at,
        format!("`{named}` has {} groups", attribute.len()),
        format!("give at most {GROUPS_MAX}: small groups tell nothing"),
    );
}

fn perturbations(e: &Evaluation, target: Target, p: &mut Found) {
    p.when(
        target.is_number() && !e.perturbations.is_empty(),
        "evaluation.robustness",
        "what a perturbation costs is counted in records whose class is no more found, and the label is a number",
        "remove `robustness`",
    );
    p.when(
        e.perturbations.len() > PERTURBATIONS_MAX,
        "evaluation.robustness",
        format!("{} perturbations", e.perturbations.len()),
        format!("give at most {PERTURBATIONS_MAX}"),
    );
    for (i, perturbation) in e.perturbations.iter().enumerate() {
        let at = format!("evaluation.robustness[{i}]");
        let (fits, range) = match *perturbation {
            Perturbation::GaussianNoise { std } => {
                (std > 0.0 && std <= 2.0, "`std` above 0 and at most 2")
            }
            Perturbation::Salt { rate } | Perturbation::Missing { rate } => {
                (rate > 0.0 && rate <= 1.0, "`rate` above 0 and at most 1")
            }
            Perturbation::Shift { by } => (
                by.is_finite() && by.abs() > 0.0 && by.abs() <= 2.0,
                "`by` up to 2 in either direction, and not 0",
            ),
            Perturbation::Fgsm { epsilon } => {
                (epsilon > 0.0 && epsilon <= 2.0, "`epsilon` above 0 and at most 2")
            }
            Perturbation::Pgd { epsilon, steps } => (
                epsilon > 0.0 && epsilon <= 2.0 && (1..=STEPS_MAX).contains(&steps),
                "`epsilon` above 0 and at most 2, and 1 to 100 `steps`",
            ),
        };
        let what = format!("{} is none of inputs between -1 and 1", perturbation.name());
        p.when(!fits, &at, what, format!("give {range}"));
    }
}

fn drift(e: &Evaluation, p: &mut Found) {
    p.when(
        e.drift.len() > WATCHED_MAX,
        "evaluation.drift",
        format!("{} columns are watched", e.drift.len()),
        format!("give at most {WATCHED_MAX}: all of them share what an evaluation may cost"),
    );
    let columns: BTreeSet<_> = e.drift.iter().map(|w| &w.values.column).collect();
    p.when(
        columns.len() != e.drift.len(),
        "evaluation.drift",
        "a column is watched twice",
        "list each column once",
    );
    for (i, watched) in e.drift.iter().enumerate() {
        let at = format!("evaluation.drift[{i}]");
        let (parts, needed) = (watched.reference.len(), watched.values.len());
        groups(&watched.values, &at, p);
        p.when(
            parts != needed,
            &at,
            format!("`reference` has {parts} parts, `{}` {needed}", watched.values.column),
            "give the part of the records that each value or band had, and last of all others if there were any",
        );
        let sum: f64 = watched.reference.iter().sum();
        p.when(
            watched.reference.iter().any(|part| !(0.0..=1.0).contains(part))
                || sum.is_nan()
                || (sum - 1.0).abs() > 1e-6,
            &at,
            format!("the parts of `reference` come to {sum}"),
            "give parts between 0 and 1 that come to 1",
        );
    }
}

/// Everything that is wrong with gates on a model that says this, beside an evaluation or none.
#[must_use]
pub fn gates(
    gates: &[Declared],
    e: Option<&Evaluation>,
    target: impl Into<Target>,
) -> Vec<Problem> {
    let (target, mut p) = (target.into(), Found(Vec::new()));
    p.when(
        gates.len() > GATES_MAX,
        "gates",
        format!("{} gates", gates.len()),
        format!("give at most {GATES_MAX}"),
    );
    for (i, gate) in gates.iter().enumerate() {
        let at = format!("gates[{i}]");
        let metric = match gate.figure {
            Figure::Overall(m)
            | Figure::EachGroup(m, _)
            | Figure::EachSite(m)
            | Figure::Between(m, _) => Some(m),
            Figure::Drop(_) => Some(Metric::AccuracyDrop),
            _ => None,
        };
        if metric.is_some_and(|metric| !suits(metric, target, &at, &mut p)) {
            continue;
        }
        let (least, most) = range(gate.figure, target);
        p.when(
            e.is_none() && gate.figure.is_evaluated(),
            &at,
            format!("`{}` needs records that are held out", gate.figure.name(None)),
            "add a section `evaluation`, for example with `holdout: 0.2`",
        );
        p.when(
            gate.when == When::Promotion && gate.on_failure != OnFailure::Reject,
            &at,
            format!("`on_failure: {}` of a gate that no round is asked", gate.on_failure.as_str()),
            "remove `on_failure`: a version that fails a gate with `when: promotion` stays where it stands",
        );
        let (Bound::AtLeast(bound) | Bound::AtMost(bound)) = gate.bound;
        p.when(!bound.is_finite(), &at, format!("{bound} is no bound"), "give a number");
        if let Some(says) = gate.bound.decides_nothing(least, most) {
            let bounds = if most < f64::MAX {
                format!("between {least} and {most}")
            } else {
                format!("above {least}")
            };
            p.when(
                true,
                &at,
                format!("`{}` {says} is {}", gate.figure.name(e), gate.bound),
                format!("give a bound {bounds}, so that the gate decides something"),
            );
        }
        if let Some((end, mend)) = out_of_reach(gate, (least, most)) {
            let name = gate.figure.name(e);
            let what = format!("`{name}` never is {} by the {end} end of its interval", gate.bound);
            p.when(true, &at, what, mend);
        }
        if let Figure::Overall(m)
        | Figure::EachGroup(m, _)
        | Figure::EachSite(m)
        | Figure::Between(m, _) = gate.figure
        {
            let Target::Classes(classes) = target else { continue };
            p.when(
                m.is_binary_only() && classes != 2,
                &at,
                format!("`{}` is for two classes, and the label has {classes}", m.as_str()),
                "take a metric that has a meaning for more, for example `worst_class_recall` or `worst_group_accuracy`",
            );
            p.when(
                !m.is_by_group() && classes != 2 && matches!(gate.figure, Figure::EachGroup(..)),
                &at,
                format!("`{}` is not counted by group for more than two classes", m.as_str()),
                "take `accuracy`, `balanced_accuracy` or `f1` for groups",
            );
        }
    }
    p.0
}

/// Whether a metric is for a label such as the study's: a number, or classes.
fn suits(metric: Metric, target: Target, at: &str, p: &mut Found) -> bool {
    if metric == Metric::Records || metric.is_of_numbers() == target.is_number() {
        return true;
    }
    let (is, other, mend) = if target.is_number() {
        let mend =
            "take `mae`, `rmse` or `r2`; between groups `mae_difference` or `worst_group_mae`";
        ("has classes", "is a number", mend)
    } else {
        (
            "is a number",
            "has classes",
            "take a metric of classes, for example `accuracy` or `roc_auc`",
        )
    };
    let name = metric.as_str();
    p.when(true, at, format!("`{name}` is for a label that {is}, and this one {other}"), mend);
    false
}

/// Everything that is wrong with a study's patience, beside its other gates and the number of its rounds.
#[must_use]
pub fn patience(
    patience: &Patience,
    (gates, rounds): (&[Declared], u32),
    e: Option<&Evaluation>,
    target: impl Into<Target>,
) -> Vec<Problem> {
    let (target, mut p) = (target.into(), Found(Vec::new()));
    let Patience { figure, improve_by, rounds: wait } = *patience;
    let (at, name) = ("patience", figure.name(e));
    let compares = patience.compares();
    p.when(
        compares.is_none(),
        at,
        format!("by `{name}` no model is better than another"),
        "take a figure of the whole model, for example `roc_auc`, `brier` or `worst_group_recall`",
    );
    if let Some((metric, _)) = compares
        && suits(metric, target, at, &mut p)
    {
        let classes = target.outputs();
        p.when(
            metric.is_binary_only() && classes != 2,
            at,
            format!("`{}` is for two classes, and the label has {classes}", metric.as_str()),
            "take a metric that has a meaning for more, for example `accuracy`",
        );
        let (least, most) = range(figure, target);
        p.when(
            !(improve_by >= 0.0 && improve_by < most - least),
            at,
            format!("`{name}` never is better by {improve_by}"),
            format!("give `improve_by` from 0 to below {}", most - least),
        );
    }
    p.when(wait == 0, at, "no round would be waited for", "give `patience: 1` or more");
    let Some(e) = e else {
        let mend = "add a section `evaluation`, for example with `holdout: 0.2`";
        p.when(true, at, format!("`{name}` needs records that are held out"), mend);
        return p.0;
    };
    let evaluated = e.times(rounds);
    // The first is the best when it comes, and with the last one a study ends anyway.
    p.when(
        wait > 0 && wait > evaluated.saturating_sub(2),
        at,
        format!(
            "a patience of {wait} does not run out before the last of {evaluated} evaluated rounds"
        ),
        format!("give a smaller `patience`, or at least {} such rounds", wait.saturating_add(2)),
    );
    for (i, gate) in gates.iter().enumerate() {
        p.when(
            gate.when == When::End,
            &format!("gates[{i}]"),
            "it asks of the last round's model alone, and with patience a study may end with another",
            "remove `when: end`, so that each model is asked that may be the last",
        );
    }
    p.0
}

/// Gates that no round of a study can pass, whatever its sites hold: more sites than may take part, or less epsilon than one
/// round costs. A name in `cohort.sites` counts as one site.
#[must_use]
pub fn beyond_reach(study: &Study) -> Vec<Problem> {
    let mut p = Found(Vec::new());
    let named = study.cohort.sites.len();
    let most = if named == 0 { study.sites_max() as usize } else { named };
    let one_round = || {
        let cost = study.cost_of_round_after(0);
        cost.and_then(|cost| cost.epsilon(study.privacy.delta)).ok()
    };
    for (i, gate) in study.gates.iter().enumerate() {
        let at = format!("gates[{i}]");
        match (gate.figure, gate.bound) {
            (Figure::Sites, Bound::AtLeast(bound)) => p.when(
                bound > float(most),
                &at,
                format!("`sites` never is at least {bound}: {most} may take part in a round"),
                "ask for no more, or have more sites take part",
            ),
            (Figure::Epsilon, Bound::AtMost(bound)) => {
                let Some(least) = one_round().map(Epsilon::value) else { continue };
                p.when(
                    bound < least,
                    &at,
                    format!(
                        "`epsilon` never is at most {bound}: one round of training costs {least:.4}"
                    ),
                    "give a higher bound, or more noise",
                );
            }
            _ => {}
        }
    }
    p.0
}

/// Which end of an interval never comes to the bound, which is the most or the least that there can be, and what to do about it: however
/// many records are right, one more might not be.
fn out_of_reach(gate: &Declared, (least, most): (f64, f64)) -> Option<(&'static str, String)> {
    let metric = match gate.figure {
        Figure::Overall(metric)
        | Figure::EachGroup(metric, _)
        | Figure::EachSite(metric)
        | Figure::Between(metric, _)
        | Figure::Column(metric, _) => metric,
        Figure::Drop(_) => Metric::AccuracyDrop,
        // The largest of all is no less than their median, and the smallest no more.
        Figure::EachUpdate(Standing::NormRatio) => {
            return match gate.bound {
                Bound::AtLeast(bound) if bound > 1.0 => {
                    Some(("lower", "give a bound of at most 1".to_owned()))
                }
                Bound::AtMost(bound) if bound < 1.0 => {
                    Some(("upper", "give a bound of at least 1".to_owned()))
                }
                _ => None,
            };
        }
        _ => return None,
    };
    let is = |bound: f64, end: f64| bound.total_cmp(&end).is_eq();
    match gate.bound {
        Bound::AtLeast(bound) if is(bound, most) && !metric.reaches_most() => {
            Some(("lower", format!("give a bound below {most}")))
        }
        // There are two zeros.
        Bound::AtMost(bound) if is(bound + 0.0, least) && !metric.reaches_least() => {
            Some(("upper", format!("give a bound above {least}")))
        }
        _ => None,
    }
}

/// Between which values a figure lies.
fn range(figure: Figure, target: Target) -> (f64, f64) {
    match figure {
        Figure::Overall(m)
        | Figure::EachGroup(m, _)
        | Figure::EachSite(m)
        | Figure::Between(m, _)
        | Figure::Column(m, _) => (m.least(), m.most(target)),
        Figure::Drop(_) => (Metric::AccuracyDrop.least(), Metric::AccuracyDrop.most(target)),
        Figure::Sites => (0.0, float(crate::study::SITES_MAX as usize)),
        Figure::Epsilon | Figure::Examples => (0.0, f64::MAX),
        Figure::EachUpdate(standing) => standing.range(),
    }
}

/// Whether a metric can be looked at so: of records, between groups, or under a perturbation.
#[must_use]
pub fn fits(metric: Metric, kind: Kind) -> bool {
    metric.kind() == kind
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{Attribute, cells::tests::settings as sound, figures::By};

    fn of(change: impl FnOnce(&mut Evaluation)) -> Vec<String> {
        let mut e = sound();
        change(&mut e);
        settings(&e, 2, true).into_iter().map(|p| format!("{}: {}", p.at, p.what)).collect()
    }

    type Change<'a> = &'a dyn Fn(&mut Evaluation);

    #[test]
    fn what_cannot_be_is_named_and_what_can_be_is_not() {
        assert!(of(|_| {}).is_empty());
        let cases: [(Change<'_>, &str); 13] = [
            (&|e| e.held_out = HeldOut::Part(1.0), "evaluation.holdout: 1 of the records"),
            (&|e| e.every = 0, "evaluation.every: no round"),
            (
                &|e| e.attributes[0].groups = Groups::Values(vec!["a: 0.99 [0.98, 1]".into()]),
                "evaluation.groups[0]: `a: 0.99 [0.98, 1]` would not be told from",
            ),
            (
                &|e| e.attributes[0].groups = Groups::Values(vec!["a".repeat(65)]),
                "evaluation.groups[0]: `aaaa",
            ),
            (
                &|e| e.attributes[0].column = "a\nb".into(),
                "evaluation.groups[0]: `a\\nb` would not be told from",
            ),
            (&|e| e.noise = Noise::None, "evaluation.noise: the counts of held-out records"),
            (&|e| e.noise = Noise::Gaussian { rho: 0.0 }, "evaluation.rho: 0 is no rho"),
            (&|e| e.threshold = 0.51, "evaluation.threshold: 0.51 lies inside"),
            (&|e| e.calibration_bins = 3, "evaluation.calibration_bins: 20 score bins"),
            (&|e| e.confidence = 1.0, "evaluation.confidence: 1 is no confidence"),
            (
                &|e| e.perturbations[0] = Perturbation::Pgd { epsilon: 0.1, steps: 0 },
                "evaluation.robustness[0]: pgd(0.1, 0 steps)",
            ),
            (
                &|e| e.attributes[0].groups = Groups::Bands(vec![3.0, 3.0]),
                "evaluation.groups[0]: `SEX` has edges",
            ),
            (
                &|e| e.attributes.push(e.attributes[0].clone()),
                "evaluation.groups: a column is listed twice",
            ),
        ];
        for (change, said) in cases {
            let found = of(change);
            assert!(found.len() == 1 && found[0].starts_with(said), "{said}: {found:?}");
        }
        let many = of(|e| {
            let wide = |c: &str| Attribute {
                column: c.into(),
                groups: Groups::Bands((0..31).map(f64::from).collect()),
            };
            e.attributes = vec![wide("a"), wide("b")];
            e.bins = 100;
        });
        assert!(many[0].starts_with("evaluation: a site would send"), "{many:?}");
        let e = Evaluation { noise: Noise::None, ..sound() };
        assert!(settings(&e, 2, false).is_empty());
    }

    #[test]
    fn a_gate_that_decides_nothing_or_needs_what_is_not_there_is_refused() {
        let gate = |figure, bound| Declared {
            figure,
            bound,
            when: When::EachRound,
            on_failure: OnFailure::Reject,
        };
        let e = sound();
        let said = |figure, bound, e: Option<&Evaluation>, classes| {
            let found = gates(&[gate(figure, bound)], e, classes);
            found.first().map(|p| format!("{}: {}", p.at, p.what)).unwrap_or_default()
        };
        let auc = Figure::Overall(Metric::RocAuc);
        assert_eq!(said(auc, Bound::AtLeast(0.7), Some(&e), 2), "");
        assert_eq!(
            said(auc, Bound::AtLeast(0.7), None, 2),
            "gates[0]: `roc_auc` needs records that are held out"
        );
        assert_eq!(
            said(auc, Bound::AtLeast(1.2), Some(&e), 2),
            "gates[0]: `roc_auc` never is at least 1.2"
        );
        assert_eq!(
            said(auc, Bound::AtMost(1.0), Some(&e), 2),
            "gates[0]: `roc_auc` always is at most 1"
        );
        // The worse end of an interval never is all that there can be, however many records are right.
        let difference = Figure::Between(Metric::EqualOpportunityDifference, By::attribute(0));
        let column = Figure::Column(Metric::Ks, 0);
        let ratio = Figure::EachUpdate(Standing::NormRatio);
        let records = Figure::EachGroup(Metric::Records, By::attribute(0));
        for (figure, bound, what) in [
            (auc, Bound::AtLeast(1.0), "`roc_auc` never is at least 1 by the lower end"),
            (difference, Bound::AtMost(0.0), "never is at most 0 by the upper end"),
            (difference, Bound::AtMost(-0.0), "by the upper end"),
            (column, Bound::AtMost(0.0), "never is at most 0 by the upper end"),
            (Figure::Drop(0), Bound::AtMost(-1.0), "never is at most -1 by the upper end"),
            (ratio, Bound::AtMost(0.9), "never is at most 0.9 by the upper end"),
            (ratio, Bound::AtLeast(1.5), "never is at least 1.5 by the lower end"),
            (records, Bound::AtLeast(1e12), "never is at least 1000000000000"),
        ] {
            let found = said(figure, bound, Some(&e), 2);
            assert!(found.contains(what), "{figure:?}: {found}");
        }
        for (figure, bound) in [
            (auc, Bound::AtLeast(0.999_999)),
            (difference, Bound::AtMost(0.000_001)),
            // Where nothing drifts, or nothing is lost, there is no width.
            (Figure::Column(Metric::Psi, 0), Bound::AtMost(0.0)),
            (Figure::Drop(0), Bound::AtMost(0.0)),
            (ratio, Bound::AtMost(1.0)),
            (records, Bound::AtLeast(100.0)),
            (Figure::Overall(Metric::Brier), Bound::AtMost(0.0)),
        ] {
            assert_eq!(said(figure, bound, Some(&e), 2), "", "{figure:?}");
        }
        let odds = Figure::Between(Metric::EqualizedOddsDifference, By::attribute(0));
        assert!(said(odds, Bound::AtMost(0.1), Some(&e), 5).contains("is for two classes"));
        let each = Figure::EachGroup(Metric::RocAuc, By::attribute(0));
        assert_eq!(said(each, Bound::AtLeast(0.7), Some(&e), 2), "");
        assert!(said(each, Bound::AtLeast(0.7), Some(&e), 5).contains("not counted by group"));
        assert_eq!(said(Figure::Sites, Bound::AtLeast(3.0), None, 2), "");
        let mae = Figure::Overall(Metric::Mae);
        assert!(
            said(mae, Bound::AtMost(0.5), Some(&e), 2).contains("for a label that is a number")
        );
        assert!(said(Figure::Epsilon, Bound::AtMost(f64::NAN), None, 2).contains("is no bound"));
        for (on_failure, count) in [(OnFailure::Reject, 0), (OnFailure::Stop, 1)] {
            let at_promotion = Declared {
                when: When::Promotion,
                on_failure,
                ..gate(Figure::Sites, Bound::AtLeast(3.0))
            };
            let found = gates(&[at_promotion], None, 2);
            assert_eq!(found.len(), count, "{found:?}");
        }
    }

    #[test]
    fn a_number_has_metrics_of_its_own_and_no_perturbations() {
        let target = Target::Number { width: 80.0 };
        // Bins and thresholds are of scores.
        let e = Evaluation { perturbations: Vec::new(), threshold: 0.123, ..sound() };
        assert!(settings(&e, target, true).is_empty());
        let found = settings(&sound(), target, true);
        assert!(found.len() == 1 && found[0].at == "evaluation.robustness", "{found:?}");
        let said = |figure, bound| {
            let (when, on_failure) = (When::End, OnFailure::Stop);
            let found = gates(&[Declared { figure, bound, when, on_failure }], Some(&e), target);
            found.first().map(|p| p.what.clone()).unwrap_or_default()
        };
        let by = By::attribute(0);
        for (figure, bound) in [
            (Figure::Overall(Metric::Mae), Bound::AtMost(20.0)),
            (Figure::EachSite(Metric::Rmse), Bound::AtMost(30.0)),
            (Figure::EachGroup(Metric::R2, by), Bound::AtLeast(-0.1)),
            (Figure::Between(Metric::MaeDifference, by), Bound::AtMost(5.0)),
        ] {
            assert_eq!(said(figure, bound), "", "{figure:?}");
        }
        for metric in [Metric::Accuracy, Metric::RocAuc, Metric::LogLoss] {
            let found = said(Figure::Overall(metric), Bound::AtLeast(0.5));
            assert!(found.contains("is for a label that has classes"), "{found}");
        }
        let found = said(Figure::Overall(Metric::Mae), Bound::AtMost(80.0));
        assert_eq!(found, "`mae` always is at most 80");
        let found = said(Figure::Overall(Metric::R2), Bound::AtLeast(1.1));
        assert_eq!(found, "`r2` never is at least 1.1");
    }

    #[test]
    fn patience_that_compares_nothing_or_never_runs_out_is_refused() {
        let e = Evaluation { every: 2, ..sound() };
        let said = |figure, improve_by, wait, e: Option<&Evaluation>| {
            let asked = Patience { figure, improve_by, rounds: wait };
            // Ten rounds, of which five are evaluated.
            let found = patience(&asked, (&[], 10), e, 2);
            let of = |p: &Problem| format!("{}: {}", p.at, p.what);
            found.iter().map(of).collect::<Vec<_>>().join("; ")
        };
        let auc = Figure::Overall(Metric::RocAuc);
        for (figure, improve_by, wait, e, what) in [
            (auc, 0.01, 3, Some(&e), ""),
            (auc, 0.0, 1, Some(&e), ""),
            (auc, -0.01, 3, Some(&e), "patience: `roc_auc` never is better by -0.01"),
            (auc, 1.0, 3, Some(&e), "patience: `roc_auc` never is better by 1"),
            (auc, f64::NAN, 3, Some(&e), "patience: `roc_auc` never is better by NaN"),
            (auc, 0.01, 0, Some(&e), "patience: no round would be waited for"),
            (
                auc,
                0.01,
                4,
                Some(&e),
                "patience: a patience of 4 does not run out before the last of 5 evaluated rounds",
            ),
            (auc, 0.01, 3, None, "patience: `roc_auc` needs records that are held out"),
            (
                Figure::Sites,
                1.0,
                3,
                Some(&e),
                "patience: by `sites` no model is better than another",
            ),
            (
                Figure::EachSite(Metric::F1),
                0.1,
                3,
                Some(&e),
                "patience: by `f1 at each site` no model is better than another",
            ),
        ] {
            assert_eq!(said(figure, improve_by, wait, e), what);
        }
        // A number has an error of its own unit to become better by, and no area under a curve.
        let number = Target::Number { width: 80.0 };
        let said = |metric, improve_by, target| {
            let figure = Figure::Overall(metric);
            let asked = Patience { figure, improve_by, rounds: 3 };
            let found = patience(&asked, (&[], 10), Some(&e), target);
            found.iter().map(|p| p.what.clone()).collect::<Vec<_>>().join("; ")
        };
        for (metric, improve_by, target, what) in [
            (Metric::Mae, 20.0, number, ""),
            (Metric::R2, 0.01, number, ""),
            (Metric::Rmse, 80.0, number, "`rmse` never is better by 80"),
            (
                Metric::RocAuc,
                0.01,
                number,
                "`roc_auc` is for a label that has classes, and this one is a number",
            ),
            (
                Metric::Mae,
                0.01,
                Target::Classes(2),
                "`mae` is for a label that is a number, and this one has classes",
            ),
        ] {
            assert_eq!(said(metric, improve_by, target), what);
        }
        let last = Declared {
            figure: auc,
            bound: Bound::AtLeast(0.7),
            when: When::End,
            on_failure: OnFailure::Reject,
        };
        let asked = Patience { figure: auc, improve_by: 0.01, rounds: 3 };
        let found = patience(&asked, (&[last], 10), Some(&e), 2);
        assert!(found.len() == 1 && found[0].at == "gates[0]", "{found:?}");
    }
}
