//! How studies, figures and parameters are spelled for MLflow: pure, and nothing of people.

use falaj_core::id::Digest;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The longest name of a series or a parameter; MLflow takes 250 characters, and the ends of an interval need a few.
const KEY_CHARS_MAX: usize = 240;
/// The longest value of a parameter or a tag: what older versions of MLflow take, too.
const VALUE_CHARS_MAX: usize = 500;
/// Parameters of one run.
const PARAMS_MAX: usize = 300;
/// What a study file says that is a parameter. What somebody has written for people to read is none: it could name one.
const SECTIONS: [&str; 10] = [
    "data",
    "model",
    "training",
    "privacy",
    "sealing",
    "cohort",
    "aggregation",
    "rounds",
    "evaluation",
    "gates",
];

/// One figure at one round.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Metric {
    /// The series.
    pub(super) key: String,
    pub(super) value: f64,
    /// In milliseconds since 1970.
    pub(super) timestamp: i64,
    /// The round.
    pub(super) step: i64,
}

/// The figures of one round, each under a name of its own.
#[derive(Debug)]
pub(super) struct Figures {
    step: i64,
    timestamp: i64,
    keys: BTreeSet<String>,
    pub(super) metrics: Vec<Metric>,
}

impl Figures {
    pub(super) fn at(step: u32, timestamp: i64) -> Self {
        let (keys, metrics) = (BTreeSet::new(), Vec::new());
        Self { step: step.into(), timestamp, keys, metrics }
    }

    /// A figure without an interval.
    pub(super) fn add(&mut self, name: &str, value: f64) {
        let key = self.key(name);
        self.push(key, value);
    }

    /// A figure, and the ends of its interval.
    pub(super) fn add_between(&mut self, name: &str, value: f64, low: f64, high: f64) {
        let key = self.key(name);
        self.push(format!("{key}.low"), low);
        self.push(format!("{key}.high"), high);
        self.push(key, value);
    }

    /// What is no number, or has no end, is not sent: MLflow has no word for it.
    fn push(&mut self, key: String, value: f64) {
        if value.is_finite() {
            self.metrics.push(Metric { key, value, timestamp: self.timestamp, step: self.step });
        }
    }

    /// A name that no other figure of the round has.
    fn key(&mut self, name: &str) -> String {
        // Which groups are merged, or nothing is said about, changes from round to round; the series is the same.
        let name = [" (without ", " (merging "]
            .into_iter()
            .fold(name, |name, word| name.split_once(word).map_or(name, |(name, _)| name));
        let mut key = key(name);
        if !self.keys.insert(key.clone()) {
            key = distinct(&key, name);
            self.keys.insert(key.clone());
        }
        key
    }
}

/// A name as MLflow takes it: letters, digits, `_`, `-`, `.`, `:` and single spaces. Comparisons become words.
pub(super) fn key(name: &str) -> String {
    let mut spelled = String::new();
    let mut rest = name.chars().peekable();
    while let Some(c) = rest.next() {
        let or_equal = matches!(c, '<' | '>') && rest.next_if_eq(&'=').is_some();
        match c {
            '<' if or_equal => spelled.push_str(" le "),
            '>' if or_equal => spelled.push_str(" ge "),
            '<' => spelled.push_str(" lt "),
            '>' => spelled.push_str(" gt "),
            '=' => spelled.push_str(" is "),
            '&' => spelled.push_str(" and "),
            '(' | ')' | ',' => spelled.push(' '),
            c if c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | ' ') => spelled.push(c),
            _ => spelled.push('_'),
        }
    }
    let spelled = spelled.split_whitespace().collect::<Vec<_>>().join(" ");
    if spelled.chars().count() > KEY_CHARS_MAX { distinct(&spelled, name) } else { spelled }
}

/// A spelling with a few digits of the name's digest behind it.
fn distinct(key: &str, name: &str) -> String {
    let digest = Digest::of(name.as_bytes()).to_string();
    let begin: String = key.chars().take(KEY_CHARS_MAX - 9).collect();
    format!("{begin}-{}", &digest[..8])
}

/// A value, cut to what MLflow takes.
pub(super) fn value(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(VALUE_CHARS_MAX).collect()
}

/// The parameters of a study, by the names that its file has for them.
///
/// # Errors
/// When the file is no YAML.
pub(super) fn params(yaml: &str) -> Result<BTreeMap<String, String>, String> {
    let file: Value = serde_saphyr::from_str(yaml).map_err(|e| e.to_string())?;
    let mut params = BTreeMap::new();
    for section in SECTIONS {
        if let Some(said) = file.get(section) {
            flatten(section, said, &mut params);
        }
    }
    Ok(params.into_iter().take(PARAMS_MAX).collect())
}

fn flatten(name: &str, said: &Value, params: &mut BTreeMap<String, String>) {
    match said {
        Value::Object(members) => {
            for (member, said) in members {
                flatten(&format!("{name}.{member}"), said, params);
            }
        }
        // There can be hundreds of columns.
        Value::Array(columns) if name == "data.features" => {
            params.insert(name.to_owned(), columns.len().to_string());
        }
        Value::Array(gates) if name == "gates" => {
            for (n, gate) in (1..).zip(gates) {
                params.insert(format!("{name}.{n:02}"), value(&inline(gate)));
            }
        }
        said => {
            params.insert(key(name), value(&inline(said)));
        }
    }
}

/// A value on one line.
fn inline(said: &Value) -> String {
    let joined = |parts: Vec<String>, by: &str| parts.join(by);
    match said {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            joined(items.iter().map(inline).collect(), "; ")
        }
        Value::Array(items) => joined(items.iter().map(inline).collect(), ", "),
        Value::Object(members) => {
            let member = |(name, said): (&String, &Value)| format!("{name}: {}", inline(said));
            joined(members.iter().map(member).collect(), ", ")
        }
        said => said.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_names_that_mlflow_takes() {
        for (name, spelled) in [
            ("roc_auc", "roc_auc"),
            ("recall of mean_radius<14", "recall of mean_radius lt 14"),
            ("recall of 12<=mean_radius<15", "recall of 12 le mean_radius lt 15"),
            ("recall of mean_radius>=15", "recall of mean_radius ge 15"),
            ("recall of SEX=female & AGE>=60", "recall of SEX is female and AGE ge 60"),
            ("accuracy_drop under pgd(0.05, 3 steps)", "accuracy_drop under pgd 0.05 3 steps"),
            ("accuracy at hospital-2", "accuracy at hospital-2"),
            ("recall of الجنس=أنثى", "recall of الجنس is أنثى"),
            ("psi of ../a/b", "psi of .._a_b"),
        ] {
            assert_eq!(key(name), spelled);
        }
        let long = key(&format!("recall of {}", "x".repeat(400)));
        assert_eq!(long.chars().count(), KEY_CHARS_MAX);
        assert_ne!(long, key(&format!("recall of {}", "x".repeat(401))));
    }

    #[test]
    fn figures_of_a_round_do_not_meet_under_one_name() {
        let mut figures = Figures::at(3, 7);
        figures.add_between(
            "recall of A=1 (without A=2, too few records)",
            0.5,
            0.4,
            f64::INFINITY,
        );
        figures.add("recall of A is 1", 0.25);
        figures.add("epsilon at hospital-1", f64::NAN);
        let keys: Vec<&str> = figures.metrics.iter().map(|m| &*m.key).collect();
        assert_eq!(keys[..2], ["recall of A is 1.low", "recall of A is 1"]);
        assert!(keys.len() == 3 && keys[2].starts_with("recall of A is 1-"), "{keys:?}");
        assert!(figures.metrics.iter().all(|m| (m.step, m.timestamp) == (3, 7)));
    }

    #[test]
    fn parameters_are_a_study_files_own_words_and_nothing_that_could_name_somebody() {
        let yaml = "study: heart\npurpose: as Dr. Omar has asked\ndata:\n  dataset: wdbc\n  label: { column: diagnosis, classes: [benign, malignant] }\n  features:\n    - { name: a, min: 0.0, max: 1.0 }\n    - { name: b, min: 0.0, max: 1.0 }\ntraining: { local_steps: 5, learning_rate: 0.5 }\ncohort: { places: [\"ae-on/*\"], min_sites: 2 }\ngovernance: { legal_basis: asked Omar }\ngates:\n  - { metric: roc_auc, at_least: 0.55 }\n  - { metric: sites, at_least: 2 }\n";
        let params = params(yaml).expect("YAML");
        for (name, value) in [
            ("data.dataset", "wdbc"),
            ("data.features", "2"),
            ("data.label.classes", "benign, malignant"),
            ("training.local_steps", "5"),
            ("training.learning_rate", "0.5"),
            ("cohort.places", "ae-on/*"),
        ] {
            assert_eq!(params.get(name).map(String::as_str), Some(value), "{name}");
        }
        let gate = &params["gates.01"];
        assert!(gate.contains("metric: roc_auc") && gate.contains("at_least: 0.55"), "{gate}");
        assert!(params.contains_key("gates.02"));
        assert!(!format!("{params:?}").contains("Omar"), "{params:?}");
    }
}
