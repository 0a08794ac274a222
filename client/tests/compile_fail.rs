//! Side doors that must not compile: only what the egress journal holds can be sent. Each file in `compile_fail/` is one
//! attempt, compiled against this crate as it was built for this test; its first line names the compiler's error code and
//! what it protects. The codes are compared, not the messages, which change with the compiler.

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

/// What a program is compiled against.
const LIBRARIES: [&str; 3] = ["falaj_agent", "falaj_core", "falaj_proto"];
/// Builds of one library that are tried.
const BUILDS_MAX: usize = 6;

/// The builds of a library beside this test, the newest first.
fn builds(deps: &Path, name: &str) -> Vec<PathBuf> {
    let prefix = format!("lib{name}-");
    let built = |path: &PathBuf| -> Option<SystemTime> {
        let file = path.file_name()?.to_str()?;
        let is_it = file.starts_with(&prefix) && path.extension().is_some_and(|e| e == "rlib");
        if is_it { path.metadata().ok()?.modified().ok() } else { None }
    };
    let files = fs::read_dir(deps).expect("a folder").map(|entry| entry.expect("readable").path());
    let mut found: Vec<_> = files.filter_map(|path| built(&path).map(|at| (at, path))).collect();
    found.sort();
    found.into_iter().rev().take(BUILDS_MAX).map(|(_, path)| path).collect()
}

/// Libraries that were built with one another, the newest of them: cargo keeps several builds of each, and only with such
/// does the road compile.
fn libraries(deps: &Path, road: &Path) -> [PathBuf; 3] {
    let [agents, cores, protos] = LIBRARIES.map(|name| builds(deps, name));
    for agent in &agents {
        for core in &cores {
            for proto in &protos {
                let chosen = [agent, core, proto].map(Clone::clone);
                if errors(road, deps, &chosen).is_empty() {
                    return chosen;
                }
            }
        }
    }
    panic!("the road compiles with no build in {}", deps.display());
}

/// The error codes that the compiler has for a program.
fn errors(program: &Path, deps: &Path, libraries: &[PathBuf; 3]) -> BTreeSet<String> {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "--crate-type=bin", "--emit=metadata", "--error-format=json"]);
    rustc.arg("-L").arg(format!("dependency={}", deps.display()));
    for (name, library) in LIBRARIES.iter().zip(libraries) {
        rustc.arg("--extern").arg(format!("{name}={}", library.display()));
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("side_doors");
    fs::create_dir_all(&out).expect("a folder");
    let done = rustc.arg("--out-dir").arg(out).arg(program).output().expect("rustc runs");
    let said = String::from_utf8(done.stderr).expect("UTF-8");
    let messages = said.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let codes: BTreeSet<String> = messages
        .filter(|message| message["level"] == "error")
        .filter_map(|message| message["code"]["code"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(done.status.success(), codes.is_empty(), "{}: {said}", program.display());
    codes
}

#[test]
fn nothing_but_what_the_journal_holds_can_be_sent() {
    let deps = env::current_exe().expect("this program").parent().expect("a folder").to_owned();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile_fail");
    let libraries = libraries(&deps, &folder.join("the_road_compiles.rs"));
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("readable").path();
        let name = path.file_stem().and_then(|n| n.to_str()).expect("a name").to_owned();
        let text = fs::read_to_string(&path).expect("readable");
        let first = text.lines().next().unwrap_or_default().trim_start_matches("//! ");
        let code = first.split_once(": ").map(|(code, _)| code.to_owned());
        assert_eq!(code.is_none(), name == "the_road_compiles", "{name}: the first line");
        found.insert(name.clone(), errors(&path, &deps, &libraries));
        assert_eq!(found[&name], code.into_iter().collect(), "{name}");
    }
    assert!(found.len() >= 7, "attempts are missing: {:?}", found.keys());
}
