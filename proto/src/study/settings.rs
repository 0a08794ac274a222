//! The settings of a study file by their paths, to hold two files against each other.

use super::{StudyErrors, read};
use serde_json::Value;
use std::collections::BTreeMap;

/// Members by which an element of a list is named.
const NAMES: [&str; 3] = ["name", "column", "kind"];

/// Every setting that a study file makes, by its path: `privacy.noise_multiplier`, `data.features[PAY_0].max`. What a file leaves out is
/// not there, and has its default. Nothing is checked: [`super::parse`] does that.
///
/// # Errors
/// [`StudyErrors`] when it is no YAML, or too large.
pub fn settings(text: &str, file: &str) -> Result<BTreeMap<String, String>, StudyErrors> {
    let value: Value = read(text, file)?;
    let mut found = BTreeMap::new();
    walk(&value, String::new(), &mut found);
    Ok(found)
}

fn walk(value: &Value, path: String, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(value, path, found);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (n, item) in items.iter().enumerate() {
                let name = NAMES.iter().find_map(|name| item.get(name)?.as_str());
                let at =
                    name.map_or_else(|| format!("{path}[{n}]"), |name| format!("{path}[{name}]"));
                // Two of one name are told apart by where they stand.
                let taken = found.keys().any(|other| other.starts_with(&format!("{at}.")));
                walk(item, if taken { format!("{path}[{n}]") } else { at }, found);
            }
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            found.insert(path, format!("[{}]", items.join(", ")));
        }
        _ => {
            found.insert(path, shown(value));
        }
    }
}

/// A scalar as text; 1 and 1.0 are the same.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(n) if n.is_f64() => n.as_f64().unwrap_or_default().to_string(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_has_its_path() {
        let text = "study: heart\ndata:\n  features:\n    - { name: PAY_0, min: 0.0 }\n    - { name: PAY_2, min: 1.0 }\nprivacy: { delta: 1.0e-5 }\ncohort: { sites: [a, b] }\nevaluation:\n  robustness: [{ kind: fgsm, epsilon: 0.1 }, { kind: fgsm, epsilon: 0.2 }]\n";
        let found = settings(text, "heart.yaml").expect("it is YAML");
        let found: Vec<(&str, &str)> =
            found.iter().map(|(path, value)| (path.as_str(), value.as_str())).collect();
        let wanted = [
            ("cohort.sites", "[a, b]"),
            ("data.features[PAY_0].min", "0"),
            ("data.features[PAY_0].name", "PAY_0"),
            ("data.features[PAY_2].min", "1"),
            ("data.features[PAY_2].name", "PAY_2"),
            ("evaluation.robustness[1].epsilon", "0.2"),
            ("evaluation.robustness[1].kind", "fgsm"),
            ("evaluation.robustness[fgsm].epsilon", "0.1"),
            ("evaluation.robustness[fgsm].kind", "fgsm"),
            ("privacy.delta", "0.00001"),
            ("study", "heart"),
        ];
        assert_eq!(found, wanted);
        assert!(settings("a: [", "broken.yaml").is_err());
    }
}
