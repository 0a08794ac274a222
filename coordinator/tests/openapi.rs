//! The description of REST in the repository is the one that the handlers give.

use falaj_coordinator::{oidc, rest};
use serde_json::Value;
use std::{env, error::Error, fs, path::Path};
use utoipa::openapi::OpenApi;

const SNAPSHOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots");

fn is_kept(api: &OpenApi, name: &str) -> Result<(), Box<dyn Error>> {
    let path = Path::new(SNAPSHOTS).join(name);
    let now = api.to_pretty_json()? + "\n";
    if env::var_os("FALAJ_BLESS").is_some() {
        fs::write(&path, &now)?;
    }
    let kept = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    assert!(now == kept, "{name} changed: look at it, then run this with FALAJ_BLESS=1");
    Ok(())
}

#[test]
fn the_api_is_the_one_in_the_repository() -> Result<(), Box<dyn Error>> {
    is_kept(&rest::routes().1, "openapi.json")
}

#[test]
fn where_operators_sign_in_is_as_the_repository_has_it() -> Result<(), Box<dyn Error>> {
    is_kept(&oidc::routes().1, "openapi-login.json")
}

#[test]
fn signing_in_says_how_it_fails() -> Result<(), Box<dyn Error>> {
    let api = serde_json::to_value(oidc::routes().1)?;
    let paths = api["paths"].as_object().ok_or("no paths")?;
    let mut all: Vec<&str> = paths.keys().map(String::as_str).collect();
    all.sort_unstable();
    assert_eq!(all, ["/api/v1/login", "/api/v1/login/providers"]);
    let codes = |path: &str, method: &str| -> Vec<String> {
        let responses = paths[path][method]["responses"].as_object();
        let mut codes: Vec<_> = responses.into_iter().flatten().map(|(c, _)| c.clone()).collect();
        codes.sort_unstable();
        codes
    };
    let login = codes("/api/v1/login", "post");
    assert_eq!(login, ["201", "400", "401", "403", "413", "429", "500", "503"]);
    assert_eq!(codes("/api/v1/login/providers", "get"), ["200", "400", "413", "500"]);
    for item in paths.values() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            assert!(operation["summary"].is_string(), "{method} has no summary");
            let responses = operation["responses"].as_object().ok_or("no responses")?;
            for (code, failure) in responses.iter().filter(|(code, _)| !code.starts_with('2')) {
                let types = failure["content"].as_object().ok_or("nothing is said")?;
                assert!(types.keys().eq(["application/problem+json"]), "{method} {code}");
            }
        }
    }
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
