//! Side doors that must not compile: what is not sealed cannot leave, what is not paid for cannot be
//! sealed. Each file in `compile_fail/` is one attempt; its first line names the compiler's error code
//! and what it protects. The codes are compared, not the messages, which change with the compiler.

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
};

/// The error codes of each attempt. Every attempt is a program of one crate, which cargo checks apart
/// from this build; an attempt that cargo did not get to is absent.
fn errors_by_attempt<'a>(
    attempts: impl Iterator<Item = &'a String>,
) -> BTreeMap<String, BTreeSet<String>> {
    let core = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = Path::new(env!("CARGO_TARGET_TMPDIR")).join("side_doors");
    fs::create_dir_all(&here).expect("a folder");
    let mut manifest = format!(
        "[package]\nname = \"side-doors\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [dependencies]\nfalaj-core = {{ path = \"{}\" }}\n\
         ed25519-dalek = {{ version = \"*\", default-features = false }}\n",
        core.display()
    );
    for name in attempts {
        let path = core.join("tests/compile_fail").join(format!("{name}.rs"));
        write!(manifest, "\n[[bin]]\nname = \"{name}\"\npath = \"{}\"\n", path.display())
            .expect("text");
    }
    fs::write(here.join("Cargo.toml"), manifest).expect("written");
    fs::copy(core.join("../Cargo.lock"), here.join("Cargo.lock")).expect("the same versions");
    let out = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--keep-going", "--bins", "--message-format=json"])
        .args(["--target-dir".as_ref(), here.join("target").as_os_str()])
        .current_dir(&here)
        .output()
        .expect("cargo runs");
    let mut found = BTreeMap::<String, BTreeSet<String>>::new();
    for line in String::from_utf8(out.stdout).expect("UTF-8").lines() {
        let message: Value = serde_json::from_str(line).expect("JSON");
        let name = message["target"]["name"].as_str().unwrap_or_default();
        let compiled = message["reason"] == "compiler-artifact";
        if compiled || message["message"]["level"] == "error" {
            let code = message["message"]["code"]["code"].as_str();
            found.entry(name.to_owned()).or_default().extend(code.map(str::to_owned));
        }
    }
    let core = found.get("falaj_core");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(core.is_some_and(BTreeSet::is_empty), "core itself was not built: {said}");
    found
}

#[test]
fn side_doors_do_not_compile_and_the_road_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile_fail");
    let mut attempts = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("readable").path();
        let name = path.file_stem().and_then(|n| n.to_str()).expect("a name").to_owned();
        attempts.insert(name, fs::read_to_string(&path).expect("readable"));
    }
    assert!(attempts.len() >= 12, "attempts are missing: {:?}", attempts.keys());
    let found = errors_by_attempt(attempts.keys());
    for (name, text) in &attempts {
        let first = text.lines().next().unwrap_or_default().trim_start_matches("//! ");
        let code = first.split_once(": ").map(|(code, _)| code.to_owned());
        assert_eq!(code.is_none(), name == "the_road_compiles", "{name}: the first line");
        assert_eq!(found.get(name), Some(&code.into_iter().collect()), "{name}");
    }
}
