//! How a study says that its candidates are evaluated, and what they must show.

use super::{OneOrMoreNames, Reader};
use falaj_core::{
    evaluation::{
        Attribute, Evaluation, Groups, HeldOut, Noise, Perturbation, Watched,
        figures::{By, Kind, Metric},
    },
    gate::{Bound, Declared, Figure, OnFailure, When, patience::Patience},
    robust::Standing,
};
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

/// Score bins, unless the study says otherwise.
const BINS_DEFAULT: u32 = 50;
/// Bins for calibration, unless the study says otherwise.
const CALIBRATION_BINS_DEFAULT: u32 = 10;
/// The least records of a group, unless the study says otherwise.
const GROUP_MIN_DEFAULT: u32 = 100;
/// How sure intervals are, unless the study says otherwise.
const CONFIDENCE_DEFAULT: f64 = 0.95;
/// Steps of a projected gradient attack, unless the study says otherwise.
const STEPS_DEFAULT: u32 = 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvaluationYaml {
    holdout: Option<Spanned<f64>>,
    dataset: Option<Spanned<String>>,
    every: Option<Spanned<u32>>,
    noise: Option<Spanned<NoiseYaml>>,
    epsilon: Option<Spanned<f64>>,
    rho: Option<Spanned<f64>>,
    bins: Option<Spanned<u32>>,
    calibration_bins: Option<Spanned<u32>>,
    threshold: Option<Spanned<f64>>,
    groups: Option<Spanned<Vec<Spanned<AttributeYaml>>>>,
    group_min: Option<Spanned<u32>>,
    confidence: Option<Spanned<f64>>,
    robustness: Option<Spanned<Vec<Spanned<PerturbationYaml>>>>,
    drift: Option<Spanned<Vec<Spanned<WatchedYaml>>>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum NoiseYaml {
    Laplace,
    Gaussian,
    None,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AttributeYaml {
    column: String,
    values: Option<Vec<String>>,
    edges: Option<Vec<f64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WatchedYaml {
    column: String,
    values: Option<Vec<String>>,
    edges: Option<Vec<f64>>,
    reference: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PerturbationYaml {
    kind: PerturbationKind,
    std: Option<f64>,
    rate: Option<f64>,
    by: Option<f64>,
    epsilon: Option<f64>,
    steps: Option<u32>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum PerturbationKind {
    GaussianNoise,
    Salt,
    Missing,
    Shift,
    Fgsm,
    Pgd,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GateYaml {
    metric: Spanned<String>,
    at_least: Option<f64>,
    at_most: Option<f64>,
    by: Option<Spanned<OneOrMoreNames>>,
    each_group: Option<Spanned<OneOrMoreNames>>,
    #[serde(default)]
    each_site: bool,
    under: Option<Spanned<String>>,
    of: Option<Spanned<String>>,
    improve_by: Option<f64>,
    patience: Option<u32>,
    when: Option<WhenYaml>,
    on_failure: Option<OnFailureYaml>,
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "snake_case")]
enum WhenYaml {
    #[default]
    EachRound,
    End,
    Promotion,
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "snake_case")]
enum OnFailureYaml {
    Ask,
    #[default]
    Reject,
    RollBack,
    Stop,
}

impl Reader<'_> {
    pub(super) fn evaluation(&mut self, y: Option<&Spanned<EvaluationYaml>>) -> Option<Evaluation> {
        let spanned = y?;
        self.note("evaluation", spanned);
        let (y, here) = (&spanned.value, spanned.referenced);
        let noise = match y.noise.as_ref().map_or(NoiseYaml::Laplace, |n| n.value) {
            NoiseYaml::Laplace => {
                self.unwanted("evaluation.rho", y.rho.as_ref(), "`noise: laplace`");
                let mend = "give what one evaluation may cost, for example 0.2";
                let epsilon = self.needed(here, "evaluation.epsilon", y.epsilon.as_ref(), mend);
                Noise::Laplace { epsilon }
            }
            NoiseYaml::Gaussian => {
                self.unwanted("evaluation.epsilon", y.epsilon.as_ref(), "`noise: gaussian`");
                let mend = "give what one evaluation may cost, for example 0.005";
                Noise::Gaussian { rho: self.needed(here, "evaluation.rho", y.rho.as_ref(), mend) }
            }
            NoiseYaml::None => {
                let because = "`noise: none`, which costs nothing and protects nothing";
                self.unwanted("evaluation.epsilon", y.epsilon.as_ref(), because);
                self.unwanted("evaluation.rho", y.rho.as_ref(), because);
                Noise::None
            }
        };
        if let Some(noise) = &y.noise {
            self.note("evaluation.noise", noise);
        }
        let mut take = |path: &str, value: Option<&Spanned<u32>>, default: u32| {
            self.take_or(&format!("evaluation.{path}"), value, default)
        };
        let every = take("every", y.every.as_ref(), 1);
        let bins = take("bins", y.bins.as_ref(), BINS_DEFAULT);
        let calibration_bins =
            take("calibration_bins", y.calibration_bins.as_ref(), CALIBRATION_BINS_DEFAULT);
        let group_min = take("group_min", y.group_min.as_ref(), GROUP_MIN_DEFAULT);
        let held_out = self.held_out(here, y);
        let (path, confidence) = ("evaluation.confidence", y.confidence.as_ref());
        Some(Evaluation {
            held_out,
            every,
            noise,
            bins,
            calibration_bins,
            threshold: self.take_or("evaluation.threshold", y.threshold.as_ref(), 0.5),
            attributes: self.attributes(y.groups.as_ref()),
            group_min,
            confidence: self.take_or(path, confidence, CONFIDENCE_DEFAULT),
            perturbations: self.perturbations(y.robustness.as_ref()),
            drift: self.drift(y.drift.as_ref()),
        })
    }

    fn held_out(&mut self, here: Location, y: &EvaluationYaml) -> HeldOut {
        match (&y.holdout, &y.dataset) {
            (Some(part), None) => HeldOut::Part(self.take("evaluation.holdout", part)),
            (None, Some(name)) => {
                self.note("evaluation.dataset", name);
                HeldOut::Dataset(name.value.clone())
            }
            _ => {
                let mend = "give `holdout`, the part of each site's records, or `dataset`, one that is kept for it; and only one of the two";
                self.wrong(here, "it is not clear which records are evaluated on", mend);
                HeldOut::Part(0.2)
            }
        }
    }

    fn attributes(&mut self, y: Option<&Spanned<Vec<Spanned<AttributeYaml>>>>) -> Vec<Attribute> {
        let Some(y) = y else { return Vec::new() };
        self.note("evaluation.groups", y);
        let mut attributes = Vec::new();
        for (i, spanned) in y.value.iter().enumerate() {
            self.note(&format!("evaluation.groups[{i}]"), spanned);
            let AttributeYaml { column, values, edges } = &spanned.value;
            let here = spanned.referenced;
            attributes.push(self.attribute(here, column, values.as_ref(), edges.as_ref()));
        }
        attributes
    }

    fn attribute(
        &mut self,
        here: Location,
        column: &str,
        values: Option<&Vec<String>>,
        edges: Option<&Vec<f64>>,
    ) -> Attribute {
        let groups = match (values, edges) {
            (Some(values), None) => Groups::Values(values.clone()),
            (None, Some(edges)) => Groups::Bands(edges.clone()),
            _ => {
                let what = format!("it is not clear which groups `{column}` has");
                let mend = "give `values`, or `edges` between numbers, and only one of the two";
                self.wrong(here, what, mend);
                Groups::Values(vec![String::new()])
            }
        };
        Attribute { column: column.to_owned(), groups }
    }

    fn drift(&mut self, y: Option<&Spanned<Vec<Spanned<WatchedYaml>>>>) -> Vec<Watched> {
        let Some(y) = y else { return Vec::new() };
        self.note("evaluation.drift", y);
        let mut drift = Vec::new();
        for (i, spanned) in y.value.iter().enumerate() {
            self.note(&format!("evaluation.drift[{i}]"), spanned);
            let WatchedYaml { column, values, edges, reference } = &spanned.value;
            let here = spanned.referenced;
            let values = self.attribute(here, column, values.as_ref(), edges.as_ref());
            let mut reference = reference.clone();
            // Where nothing is said of all others, there were none.
            if reference.len() + 1 == values.len() {
                reference.push(0.0);
            }
            drift.push(Watched { values, reference });
        }
        drift
    }

    fn perturbations(
        &mut self,
        y: Option<&Spanned<Vec<Spanned<PerturbationYaml>>>>,
    ) -> Vec<Perturbation> {
        let Some(y) = y else { return Vec::new() };
        self.note("evaluation.robustness", y);
        let mut perturbations = Vec::new();
        for (i, spanned) in y.value.iter().enumerate() {
            self.note(&format!("evaluation.robustness[{i}]"), spanned);
            let p = &spanned.value;
            let given = (p.std, p.rate, p.by, p.epsilon, p.steps);
            let perturbation = match (p.kind, given) {
                (PerturbationKind::GaussianNoise, (Some(std), None, None, None, None)) => {
                    Perturbation::GaussianNoise { std }
                }
                (PerturbationKind::Salt, (None, Some(rate), None, None, None)) => {
                    Perturbation::Salt { rate }
                }
                (PerturbationKind::Missing, (None, Some(rate), None, None, None)) => {
                    Perturbation::Missing { rate }
                }
                (PerturbationKind::Shift, (None, None, Some(by), None, None)) => {
                    Perturbation::Shift { by }
                }
                (PerturbationKind::Fgsm, (None, None, None, Some(epsilon), None)) => {
                    Perturbation::Fgsm { epsilon }
                }
                (PerturbationKind::Pgd, (None, None, None, Some(epsilon), steps)) => {
                    Perturbation::Pgd { epsilon, steps: steps.unwrap_or(STEPS_DEFAULT) }
                }
                (kind, _) => {
                    let needs = match kind {
                        PerturbationKind::GaussianNoise => "`std` alone",
                        PerturbationKind::Salt | PerturbationKind::Missing => "`rate` alone",
                        PerturbationKind::Shift => "`by` alone",
                        PerturbationKind::Fgsm => "`epsilon` alone",
                        PerturbationKind::Pgd => "`epsilon`, and `steps` if not 10",
                    };
                    let what = "it is not clear how strong the perturbation is";
                    self.wrong(spanned.referenced, what, format!("give {needs}"));
                    continue;
                }
            };
            perturbations.push(perturbation);
        }
        perturbations
    }

    pub(super) fn gates(
        &mut self,
        y: Option<&Spanned<Vec<Spanned<GateYaml>>>>,
        e: Option<&Evaluation>,
    ) -> (Vec<Declared>, Option<Patience>) {
        let (mut gates, mut patience) = (Vec::new(), None);
        let Some(y) = y else { return (gates, patience) };
        self.note("gates", y);
        for spanned in &y.value {
            let y = &spanned.value;
            if y.improve_by.is_some() || y.patience.is_some() {
                if patience.is_some() {
                    let mend = "leave the one by whose figure the study is to end";
                    self.wrong(spanned.referenced, "a study has one patience", mend);
                }
                self.note("patience", spanned);
                patience = self.patience(spanned.referenced, y, e);
                continue;
            }
            self.note(&format!("gates[{}]", gates.len()), spanned);
            let bound = match (y.at_least, y.at_most) {
                (Some(least), None) => Bound::AtLeast(least),
                (None, Some(most)) => Bound::AtMost(most),
                _ => {
                    let mend = "give `at_least` or `at_most`, and only one of the two";
                    self.wrong(spanned.referenced, "it is not clear what the gate asks for", mend);
                    continue;
                }
            };
            let Some(figure) = self.figure(spanned.referenced, y, e) else { continue };
            let when = match y.when.unwrap_or_default() {
                WhenYaml::EachRound => When::EachRound,
                WhenYaml::End => When::End,
                WhenYaml::Promotion => When::Promotion,
            };
            let on_failure = match y.on_failure.unwrap_or_default() {
                OnFailureYaml::Ask => OnFailure::Ask,
                OnFailureYaml::Reject => OnFailure::Reject,
                OnFailureYaml::RollBack => OnFailure::RollBack,
                OnFailureYaml::Stop => OnFailure::Stop,
            };
            gates.push(Declared { figure, bound, when, on_failure });
        }
        (gates, patience)
    }

    /// By what the study ends once it has learned what it can.
    fn patience(
        &mut self,
        here: Location,
        y: &GateYaml,
        e: Option<&Evaluation>,
    ) -> Option<Patience> {
        let more = [y.at_least, y.at_most].iter().any(Option::is_some);
        let (Some(improve_by), Some(rounds)) = (y.improve_by, y.patience) else {
            let mend = "give both, for example `improve_by: 0.005, patience: 3`";
            self.wrong(here, "`improve_by` and `patience` mean nothing without each other", mend);
            return None;
        };
        if more || y.when.is_some() || y.on_failure.is_some() {
            let what =
                "patience weighs each model that is evaluated, and ends the study and nothing else";
            let mend = "remove `at_least`, `at_most`, `when` and `on_failure`, or put a bound into a gate of its own";
            self.wrong(here, what, mend);
            return None;
        }
        let figure = self.figure(here, y, e)?;
        Some(Patience { figure, improve_by, rounds })
    }

    /// What a gate looks at.
    fn figure(&mut self, here: Location, y: &GateYaml, e: Option<&Evaluation>) -> Option<Figure> {
        let (name, at) = (y.metric.value.as_str(), y.metric.referenced);
        let plain = y.by.is_none()
            && y.each_group.is_none()
            && !y.each_site
            && y.under.is_none()
            && y.of.is_none();
        let counted = match name {
            "epsilon" => Some(Figure::Epsilon),
            "sites" => Some(Figure::Sites),
            "examples" => Some(Figure::Examples),
            _ => None,
        };
        if let Some(figure) = counted {
            if plain {
                return Some(figure);
            }
            let mend = "remove `by`, `each_group`, `each_site`, `under` and `of`";
            self.wrong(here, format!("`{name}` has no groups"), mend);
            return None;
        }
        if let Some(standing) = Standing::find(name) {
            let others =
                [y.by.is_some(), y.each_group.is_some(), y.under.is_some(), y.of.is_some()];
            if y.each_site && others == [false; 4] {
                return Some(Figure::EachUpdate(standing));
            }
            let mend = "say `each_site: true`, since each site sends one update, and nothing else";
            self.wrong(here, format!("it is not clear whose `{name}` is meant"), mend);
            return None;
        }
        let Some(metric) = Metric::find(name) else {
            let known = Metric::ALL.map(Metric::as_str).join(", ");
            let updates = Standing::ALL.map(Standing::as_str).join(", ");
            let mend = format!("take one of {known}, {updates}, epsilon, sites, examples");
            self.wrong(at, format!("there is no metric `{name}`"), mend);
            return None;
        };
        match (metric.kind(), &y.by, &y.each_group, y.each_site, (&y.under, &y.of)) {
            (Kind::Records, None, None, false, (None, None)) => Some(Figure::Overall(metric)),
            (Kind::Records, None, None, true, (None, None)) => Some(Figure::EachSite(metric)),
            (Kind::Records, None, Some(groups), false, (None, None)) => {
                Some(Figure::EachGroup(metric, self.by(groups, e)?))
            }
            (Kind::Groups, Some(groups), None, false, (None, None)) => {
                Some(Figure::Between(metric, self.by(groups, e)?))
            }
            (Kind::Perturbation, None, None, false, (Some(under), None)) => {
                self.under(under, e).map(Figure::Drop)
            }
            (Kind::Column, None, None, false, (None, Some(column))) => {
                Some(Figure::Column(metric, self.column(column, e)?))
            }
            (kind, ..) => {
                let mend = match kind {
                    Kind::Records => {
                        "give none of `by`, `under` and `of`, and at most one of `each_group: COLUMN` and `each_site: true`"
                    }
                    Kind::Groups => {
                        "give `by: COLUMN`, or `by: [COLUMN, COLUMN]` for the intersection, and nothing else"
                    }
                    Kind::Perturbation => {
                        "give `under: KIND`, for example `under: fgsm`, and nothing else"
                    }
                    Kind::Column => {
                        "give `of: COLUMN`, one under `evaluation.drift`, and nothing else"
                    }
                };
                self.wrong(here, format!("it is not clear whose `{name}` is meant"), mend);
                None
            }
        }
    }

    fn by(&mut self, y: &Spanned<OneOrMoreNames>, e: Option<&Evaluation>) -> Option<By> {
        let names: Vec<&str> = match &y.value {
            OneOrMoreNames::One(name) => vec![name],
            OneOrMoreNames::More(names) => names.iter().map(String::as_str).collect(),
        };
        let attributes = e.map_or(&[][..], |e| &e.attributes);
        let number = |name: &&str| attributes.iter().position(|a| a.column == **name);
        let found: Option<Vec<usize>> = names.iter().map(number).collect();
        match found.as_deref() {
            Some([one]) => Some(By::attribute(*one)),
            Some([a, b]) if a != b => Some(By::BOTH),
            _ => {
                let known: Vec<_> = attributes.iter().map(|a| a.column.as_str()).collect();
                let mend = if known.is_empty() {
                    "list the column under `evaluation.groups`".to_owned()
                } else {
                    format!("the study has groups by {}", known.join(" and "))
                };
                let what = format!("there are no groups by `{}`", names.join(", "));
                self.wrong(y.referenced, what, mend);
                None
            }
        }
    }

    /// The watched column that a gate names.
    fn column(&mut self, y: &Spanned<String>, e: Option<&Evaluation>) -> Option<usize> {
        let all = e.map_or(&[][..], |e| &e.drift);
        let found = all.iter().position(|w| w.values.column == y.value);
        if found.is_none() {
            let known: Vec<_> = all.iter().map(|w| w.values.column.as_str()).collect();
            let mend = if known.is_empty() {
                "list it under `evaluation.drift`".to_owned()
            } else {
                format!("the study watches {}", known.join(", "))
            };
            self.wrong(y.referenced, format!("no column `{}` is watched", y.value), mend);
        }
        found
    }

    /// The perturbation that a gate names: by its kind, or by its kind and settings if there are several of it.
    fn under(&mut self, y: &Spanned<String>, e: Option<&Evaluation>) -> Option<usize> {
        let all = e.map_or(&[][..], |e| &e.perturbations);
        let named = |p: &Perturbation| p.as_str() == y.value || p.name() == y.value;
        let found: Vec<usize> = (0..all.len()).filter(|i| named(&all[*i])).collect();
        if let [one] = found[..] {
            return Some(one);
        }
        let known = all.iter().map(Perturbation::name).collect::<Vec<_>>().join("; ");
        let (what, mend) = if all.is_empty() {
            ("no perturbation is listed".to_owned(), "list it under `evaluation.robustness`".into())
        } else if found.is_empty() {
            (format!("no perturbation `{}` is listed", y.value), format!("there are {known}"))
        } else {
            let what = format!("there is more than one perturbation `{}`", y.value);
            (what, format!("give its settings, too, as in {known}"))
        };
        self.wrong(y.referenced, what, mend);
        None
    }
}
