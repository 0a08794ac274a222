//! House rules as tests: floors, words that may not appear, files that must say what they are.

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use falaj_tests::federation::repository;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each room may import, tests aside.
const FLOORS: [(&str, &[&str]); 15] = [
    ("falaj-core", &[]),
    ("falaj-proto", &["falaj-core"]),
    ("falaj-certs", &["falaj-core"]),
    ("falaj-policies", &["falaj-core"]),
    ("falaj-prove", &["falaj-policies"]),
    ("falaj-coordinator", &["falaj-core", "falaj-proto", "falaj-certs", "falaj-policies"]),
    ("falaj-cli", &["falaj-core", "falaj-proto", "falaj-certs", "falaj-policies"]),
    ("falaj-sandbox", &[]),
    (
        "falaj-agent",
        &["falaj-core", "falaj-proto", "falaj-certs", "falaj-policies", "falaj-sandbox"],
    ),
    ("falaj-verify", &["falaj-core", "falaj-proto", "falaj-certs", "falaj-policies"]),
    ("falaj-report", &["falaj-core", "falaj-proto", "falaj-certs", "falaj-verify"]),
    ("falaj-witness", &["falaj-core", "falaj-certs"]),
    (
        "falaj-tests",
        &["falaj-core", "falaj-proto", "falaj-certs", "falaj-coordinator", "falaj-witness"],
    ),
    ("falaj-fuzz", &["falaj-core", "falaj-proto", "falaj-certs", "falaj-verify"]),
    ("xtask", &[]),
];

/// What core must not reach, directly.
const NOT_IN_CORE: [&str; 8] =
    ["tokio", "sqlx", "tracing", "getrandom", "tonic", "rustls", "axum", "reqwest"];

fn metadata() -> Result<Metadata> {
    Ok(MetadataCommand::new().manifest_path(repository().join("Cargo.toml")).exec()?)
}

#[test]
fn imports_go_downward_only() -> Result<()> {
    let floors: BTreeMap<_, _> = FLOORS.into_iter().collect();
    for package in metadata()?.workspace_packages() {
        let allowed = floors
            .get(package.name.as_str())
            .with_context(|| format!("{} has no floor", package.name))?;
        for dependency in &package.dependencies {
            let ours = floors.contains_key(dependency.name.as_str());
            ensure!(
                !ours || allowed.contains(&dependency.name.as_str()),
                "{} imports {}",
                package.name,
                dependency.name
            );
        }
    }
    Ok(())
}

#[test]
fn core_has_no_way_out() -> Result<()> {
    let metadata = metadata()?;
    let core = metadata
        .workspace_packages()
        .into_iter()
        .find(|p| p.name.as_str() == "falaj-core")
        .context("core")?
        .clone();
    for d in core.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
        ensure!(!NOT_IN_CORE.contains(&d.name.as_str()), "core imports {}", d.name);
    }
    for (path, text) in sources("core/src")? {
        for word in ["std::fs", "std::net", "std::env", "SystemTime", "Instant::", "HashMap"] {
            ensure!(!outside_tests(&text).contains(word), "{} uses {word}", path.display());
        }
    }
    Ok(())
}

#[test]
fn only_the_agent_reaches_libtorch() -> Result<()> {
    let metadata = metadata()?;
    let resolve = metadata.resolve.as_ref().context("a resolved graph")?;
    let by_id: BTreeMap<_, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    for package in metadata.workspace_packages() {
        let mut reached = BTreeSet::new();
        let mut open = vec![&package.id];
        while let Some(id) = open.pop() {
            if reached.insert(id) {
                open.extend(by_id.get(id).into_iter().flat_map(|n| &n.dependencies));
            }
        }
        let torch = reached.iter().any(|id| metadata[*id].name.as_str() == "torch-sys");
        ensure!(torch == (package.name.as_str() == "falaj-agent"), "{}: {torch}", package.name);
    }
    Ok(())
}

/// Every Rust file of ours below a folder.
fn sources(below: &str) -> Result<Vec<(PathBuf, String)>> {
    fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) -> Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') && name != "demo-out" {
                    walk(&path, out)?;
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push((path.clone(), fs::read_to_string(&path)?));
            }
        }
        Ok(())
    }
    let mut out = Vec::new();
    walk(&repository().join(below), &mut out)?;
    Ok(out)
}

/// The text before its unit tests.
fn outside_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text)
}

#[test]
fn every_file_opens_by_saying_what_it_is() -> Result<()> {
    for (path, text) in sources("")? {
        let fixture = path.components().any(|c| c.as_os_str() == "compile_fail");
        ensure!(fixture || text.starts_with("//! "), "{} does not say what it is", path.display());
    }
    Ok(())
}

#[test]
fn nothing_is_left_for_later_and_nothing_is_switched_off() -> Result<()> {
    // Written in two halves, so that this file does not find itself.
    let words =
        [("todo", "!("), ("unimplemented", "!("), ("#[ign", "ore"), ("dbg", "!("), ("FIX", "ME")];
    for (path, text) in sources("")? {
        for (a, b) in words {
            ensure!(!text.contains(&format!("{a}{b}")), "{}: {a}{b}", path.display());
        }
    }
    Ok(())
}

#[test]
fn unsafe_stands_in_one_place() -> Result<()> {
    for (path, text) in sources("")? {
        let here = path.ends_with("client/src/train/cuda.rs");
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
        let found = code.into_iter().any(|l| l.contains(concat!("unsafe", " {")));
        ensure!(found == here, "{}: {found}", path.display());
    }
    Ok(())
}

#[test]
fn clocks_and_chance_are_read_where_they_belong() -> Result<()> {
    let owners = [
        "coordinator/src/clock.rs",
        "coordinator/src/app.rs",
        "client/src/train/mod.rs",
        "client/src/agent.rs",
        "client/src/clock.rs",
        "client/src/noise.rs",
        "audit/witness/src/clock.rs",
        "audit/witness/src/config.rs",
        "certs/src/ca.rs",
        "certs/src/trust.rs",
    ];
    for room in ["core", "proto", "certs/src", "coordinator/src", "client/src", "audit"] {
        for (path, text) in sources(room)? {
            if owners.iter().any(|o| path.ends_with(o)) {
                continue;
            }
            for word in ["SystemTime::now", "UnixTime::now", "getrandom::fill", "Timestamp::now"] {
                ensure!(!outside_tests(&text).contains(word), "{}: {word}", path.display());
            }
        }
    }
    Ok(())
}

#[test]
fn no_private_key_lies_in_the_repository() -> Result<()> {
    let out = std::process::Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(repository())
        .output()?;
    for file in String::from_utf8_lossy(&out.stdout).split('\0').filter(|f| !f.is_empty()) {
        let bytes = fs::read(repository().join(file)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        ensure!(!text.contains(concat!("-----BEGIN ", "PRIVATE KEY")), "{file} holds a key");
    }
    Ok(())
}

/// Whoever meets a word in a refusal finds what to do about it.
#[test]
fn every_reason_of_a_refusal_is_in_the_runbook() -> Result<()> {
    let runbook = fs::read_to_string(repository().join("docs/runbooks/read-a-refusal.md"))?;
    let mut words = 0;
    for file in ["certs/src/identity.rs", "certs/src/tls.rs", "coordinator/src/oidc/token.rs"] {
        let text = fs::read_to_string(repository().join(file))?;
        let functions = outside_tests(&text).split("-> &'static str {").skip(1);
        for body in functions.filter_map(|after| after.split("\n}").next()) {
            for word in body.split('"').skip(1).step_by(2) {
                ensure!(runbook.contains(&format!("`{word}`")), "{file}: `{word}`");
                words += 1;
            }
        }
    }
    ensure!(words > 30, "only {words} were found: does this test still look where they are?");
    Ok(())
}
