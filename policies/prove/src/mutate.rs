//! Small changes of a rule, in Cedar's JSON form of policies.

use serde_json::{Map, Value, json};

/// Operators whose result is true or false.
const BOOLEAN: [&str; 17] = [
    "&&",
    "||",
    "!",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "in",
    "contains",
    "containsAll",
    "containsAny",
    "isEmpty",
    "has",
    "like",
    "is",
];

/// The rule with one thing changed: whom, what or of what it speaks widened to all; an action left out; a condition, or
/// part of one, always true or always false; a number one more or less; a member of a list left out.
pub(crate) fn mutants(rule: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    let mut with = |part: &str, value: Value| {
        let mut rule = rule.clone();
        rule[part] = value;
        found.push(rule);
    };
    for part in ["principal", "action", "resource"] {
        let scope = &rule[part];
        if scope["op"] != "All" {
            with(part, json!({ "op": "All" }));
        }
        for shorter in without_one(scope["entities"].as_array()) {
            with(part, json!({ "op": scope["op"], "entities": shorter }));
        }
    }
    let conditions = rule["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    for (i, condition) in conditions.iter().enumerate() {
        for body in alternatives(&condition["body"]) {
            let mut conditions = conditions.to_vec();
            conditions[i]["body"] = body;
            with("conditions", conditions.into());
        }
    }
    found
}

/// The list with one member left out, in every way that leaves one.
fn without_one(list: Option<&Vec<Value>>) -> Vec<Vec<Value>> {
    let list = list.map_or(&[][..], Vec::as_slice);
    let without = |i: usize| [&list[..i], &list[i + 1..]].concat();
    (0..list.len()).filter(|_| list.len() > 1).map(without).collect()
}

/// The expression with one thing in it changed.
fn alternatives(expression: &Value) -> Vec<Value> {
    let Some((operator, operands)) = expression.as_object().and_then(|o| o.iter().next()) else {
        return Vec::new();
    };
    let wrap = |operands: Value| Value::Object(Map::from_iter([(operator.clone(), operands)]));
    let value = |v: Value| json!({ "Value": v });
    let mut found = Vec::new();
    if BOOLEAN.contains(&operator.as_str()) {
        found.extend([value(true.into()), value(false.into())]);
    }
    match operands {
        Value::Bool(is) => found.push(value((!is).into())),
        Value::Number(n) => {
            let around = n.as_i64().map(|n| [n - 1, n + 1]);
            found.extend(around.into_iter().flatten().map(|n| value(n.into())));
        }
        Value::Array(members) => {
            found.extend(without_one(Some(members)).into_iter().map(|m| wrap(m.into())));
            for (i, member) in members.iter().enumerate() {
                found.extend(alternatives(member).into_iter().map(|changed| {
                    let mut members = members.clone();
                    members[i] = changed;
                    wrap(members.into())
                }));
            }
        }
        Value::Object(named) => {
            for (name, operand) in named {
                found.extend(alternatives(operand).into_iter().map(|changed| {
                    let mut named = named.clone();
                    named.insert(name.clone(), changed);
                    wrap(named.into())
                }));
            }
        }
        Value::Null | Value::String(_) => {}
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use cedar_policy::Policy;

    #[test]
    fn a_rule_is_changed_in_its_scope_and_in_every_part_of_its_condition() {
        let rule = r#"permit (principal, action in [Action::"a", Action::"b"], resource)
            when { ["x", "y"].contains(principal.place) && context.approvers >= 2 };"#;
        let rule = Policy::parse(None, rule).expect("a policy");
        let changed: Vec<String> = mutants(&rule.to_json().expect("JSON"))
            .into_iter()
            .map(|json| Policy::from_json(None, json).expect("a policy").to_string())
            .collect();
        let has = |part: &str| changed.iter().filter(|text| text.contains(part)).count();
        assert_eq!(changed.len(), 13, "{changed:#?}");
        assert_eq!(has("permit(principal, action, resource)"), 1);
        assert_eq!((has(r#"[Action::"a"]"#), has(r#"[Action::"b"]"#)), (1, 1));
        assert_eq!((has(r#"["x"]"#), has(r#"["y"]"#)), (1, 1));
        assert_eq!((has(">= 1"), has(">= 3")), (1, 1));
        assert_eq!((has("true"), has("false")), (3, 3));
    }
}
