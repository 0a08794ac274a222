//! Models sealed at rest whose key is lost, or another: nothing starts, nothing is made in its place, nothing is lost, and everything is
//! there again with the key.

use anyhow::{Context as _, Result, ensure};
use falaj_core::id::Digest;
use falaj_tests::federation::{Federation, study_yaml, text};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Writes a key's file, which these may read.
fn key(path: &Path, text: &str, mode: u32) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// The SHA-256 of the file of a round's model, as the operator gets it.
fn downloaded(federation: &Federation, round: &str) -> Result<Digest> {
    let file = federation.dir().join("downloaded");
    let _ = fs::remove_file(&file);
    let path = file.display().to_string();
    let out = federation.falaj(&["model", "download", "heart", "--round", round, "-o", &path])?;
    ensure!(out.status.success(), "{}", text(&out));
    Ok(Digest::of(&fs::read(file)?))
}

/// The files of the models of two rounds.
fn files(federation: &Federation) -> Result<[PathBuf; 2]> {
    let published = federation.entries("model.published")?;
    let file = |round: usize| {
        let model = published[round]["entry"]["model_sha256"].as_str().context("a digest")?;
        anyhow::Ok(federation.coordinator_state().join("models").join(model))
    };
    Ok([file(0)?, file(1)?])
}

#[test]
fn without_its_key_nothing_starts_and_with_it_everything_is_there_again() -> Result<()> {
    let mut federation = Federation::new()?;
    let path = federation.dir().join("model.key");
    federation.state_extra = format!("model_key = \"{}\"\n", path.display());
    let mut coordinator = federation.start_coordinator()?;
    let _agents = federation.start_hospitals()?;
    federation.submit(&study_yaml("heart", 2, 2))?;
    federation.finishes("heart")?;
    let models = files(&federation)?;
    let sealed = [fs::read(&models[0])?, fs::read(&models[1])?];
    ensure!(sealed.iter().all(|bytes| bytes.starts_with(b"falaj/sealed/v1\0")), "in clear");
    let whole = downloaded(&federation, "2")?;
    let log = federation.entries("model.published")?;
    coordinator.terminate()?;

    let good = fs::read_to_string(&path)?;
    let kept = federation.dir().join("kept.key");
    fs::rename(&path, &kept)?;
    let another = "ab".repeat(32);
    for (there, mode, why) in [
        (None, 0, "is sealed by the key"),
        (Some(&*another), 0o600, "is sealed by the key"),
        (Some("no key at all"), 0o600, "64 hexadecimal digits"),
        (Some(""), 0o600, "64 hexadecimal digits"),
        (Some(&*good), 0o644, "others may read this key"),
    ] {
        if let Some(text) = there {
            key(&path, text, mode)?;
        }
        fs::remove_file(federation.dir().join("coordinator/log.txt"))?;
        let refused = federation.start_coordinator().err().with_context(|| why.to_owned())?;
        let refused = format!("{refused:#}");
        ensure!(refused.contains(why), "{why}: {refused}");
        // What is there stays as it is, the models with it.
        let after = fs::read_to_string(&path).ok();
        ensure!(after.as_deref() == there, "the key was changed");
        ensure!([fs::read(&models[0])?, fs::read(&models[1])?] == sealed, "a model was changed");
        let _ = fs::remove_file(&path);
    }

    fs::rename(&kept, &path)?;
    let _coordinator = federation.start_coordinator()?;
    ensure!(downloaded(&federation, "2")? == whole, "another model");
    ensure!(federation.entries("model.published")? == log, "another log");
    // Sealed by the right key, and another model's: its own digest says so.
    fs::write(&models[1], &sealed[0])?;
    let staging = ["model", "promote", "heart", "1", "--to", "staging"];
    let swapped = federation.falaj(&staging)?;
    ensure!(!swapped.status.success(), "a model that is another's was promoted");
    ensure!(text(&swapped).contains("model_damaged"), "{}", text(&swapped));
    fs::write(&models[1], &sealed[1])?;
    let promoted = federation.falaj_json(&staging)?;
    ensure!(promoted["stage"] == "staging", "{promoted}");
    federation.verified()?;
    Ok(())
}
