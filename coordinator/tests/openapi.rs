//! The description of REST in the repository is the one that the handlers give.

use falaj_coordinator::rest;
use serde_json::Value;
use std::{env, error::Error, fs};

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/openapi.json");

#[test]
fn the_api_is_the_one_in_the_repository() -> Result<(), Box<dyn Error>> {
    let (_, api) = rest::routes();
    let now = api.to_pretty_json()? + "\n";
    if env::var_os("FALAJ_BLESS").is_some() {
        fs::write(SNAPSHOT, &now)?;
    }
    let kept = fs::read_to_string(SNAPSHOT)?;
    assert!(now == kept, "the API changed: look at it, then run this with FALAJ_BLESS=1");
    Ok(())
}

#[test]
fn every_change_says_that_it_takes_a_key() -> Result<(), Box<dyn Error>> {
    let (_, api) = rest::routes();
    let api = serde_json::to_value(api)?;
    let mut changes = 0;
    for (path, item) in api["paths"].as_object().ok_or("no paths")? {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let keys = parameters
                .filter(|p| p["name"] == "Idempotency-Key" && p["in"] == "header")
                .count();
            let wanted = usize::from(method != "get");
            assert!(keys == wanted, "{method} {path}: {keys} keys");
            assert!(
                method == "get" || operation["responses"]["409"].is_object(),
                "{method} {path}: no 409"
            );
            changes += wanted;
        }
    }
    assert!(changes >= 19, "{changes} changes");
    Ok(())
}

/// Lists that have an end by themselves: the gates of one study's file.
const SHORT: [&str; 1] = ["/api/v1/studies/{id}/gates"];

#[test]
fn every_list_comes_in_pages() -> Result<(), Box<dyn Error>> {
    let (_, api) = rest::routes();
    let api = serde_json::to_value(api)?;
    let mut lists = 0;
    for (path, item) in api["paths"].as_object().ok_or("no paths")? {
        let content = &item["get"]["responses"]["200"]["content"]["application/json"];
        let schema = content["schema"]["$ref"].as_str().unwrap_or_default();
        let schema = schema.rsplit('/').next().unwrap_or_default();
        let is_list = api["components"]["schemas"][schema]["properties"]["next"].is_object();
        if !is_list || SHORT.contains(&&**path) {
            continue;
        }
        lists += 1;
        let parameters = item["get"]["parameters"].as_array().into_iter().flatten();
        let named: Vec<_> = parameters.filter_map(|p| p["name"].as_str()).collect();
        for parameter in ["cursor", "limit"] {
            // Entries of the log go on from an index.
            let goes_on = parameter == "cursor" && named.contains(&"from");
            assert!(goes_on || named.contains(&parameter), "{path}: no `{parameter}`: {named:?}");
        }
    }
    assert!(lists >= 16, "{lists} lists");
    Ok(())
}

#[test]
fn every_operation_says_what_it_does_and_how_it_fails() -> Result<(), Box<dyn Error>> {
    let (_, api) = rest::routes();
    let api = serde_json::to_value(api)?;
    let paths = api["paths"].as_object().ok_or("no paths")?;
    assert!(paths.len() >= 11, "{} paths", paths.len());
    for (path, item) in paths {
        for (method, operation) in item.as_object().into_iter().flatten() {
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
            let failures = operation["responses"].as_object().into_iter().flatten();
            let problem = |(code, _): &(&String, &Value)| code.starts_with('4');
            for (code, failure) in failures.filter(problem) {
                let types: Vec<_> = failure["content"].as_object().into_iter().flatten().collect();
                let is_problem = types.iter().all(|(name, _)| *name == "application/problem+json");
                assert!(is_problem && !types.is_empty(), "{method} {path} {code}: {types:?}");
            }
            for code in ["400", "401", "403", "413", "500", "503"] {
                assert!(operation["responses"][code].is_object(), "{method} {path}: no {code}");
            }
        }
    }
    Ok(())
}
