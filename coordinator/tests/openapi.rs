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
fn every_operation_says_what_it_does_and_how_it_fails() -> Result<(), Box<dyn Error>> {
    let (_, api) = rest::routes();
    let api = serde_json::to_value(api)?;
    let paths = api["paths"].as_object().ok_or("no paths")?;
    assert!(paths.len() >= 11, "{} paths", paths.len());
    // What comes from contents of the log may have been deleted.
    for (path, method) in [
        ("log/entries", "get"),
        ("log/accesses", "get"),
        ("log/mirror", "get"),
        ("log/export", "get"),
        ("log/prunings", "post"),
        ("studies/{id}/versions/{version}/lineage", "get"),
        ("studies/{id}/versions/{version}/provenance", "get"),
        ("studies/{id}/versions/{version}/card", "get"),
        ("studies/{id}/versions/{version}/promote", "post"),
    ] {
        let operation = &paths[&format!("/api/v1/{path}")][method];
        assert!(operation["responses"]["410"].is_object(), "{method} {path}: no 410");
    }
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
            for code in ["400", "401", "403", "413", "429", "500", "503", "507"] {
                assert!(operation["responses"][code].is_object(), "{method} {path}: no {code}");
            }
        }
    }
    Ok(())
}
