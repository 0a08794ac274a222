//! A site that trains alone: in the sandbox, as one that takes part in rounds.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{Federation, SiteSpec, binary, run, study_yaml, text, wisconsin};
use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output, Stdio},
};

fn train(study: &Path, config: &Path, out: &Path) -> Result<Output> {
    let mut command = Command::new(binary("falaj-agent"));
    command.arg("train").arg(study).arg("--config").arg(config).arg("--out").arg(out);
    Ok(command.stdin(Stdio::null()).output()?)
}

#[test]
fn who_trains_alone_opens_nothing_but_what_the_configuration_names() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let site = SiteSpec::new("hospital-1", "ae-on/ae-az");
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?;
    let records = config.parent().context("a folder")?.join("data/records.csv");
    let asked = federation.dir().join("asked");
    fs::create_dir_all(&asked)?;
    let (study, model) = (asked.join("study.yaml"), asked.join("model.safetensors"));
    fs::write(&study, study_yaml("alone", 1, 2))?;
    // Records that are elsewhere, whatever the name says under which they are read.
    let elsewhere = federation.dir().join("elsewhere.csv");
    fs::rename(&records, &elsewhere)?;
    symlink(&elsewhere, &records)?;
    let settings = fs::read_to_string(&config)?;
    fs::write(&config, format!("{settings}[sandbox]\nmode = \"off\"\n"))?;
    let out = train(&study, &config, &model)?;
    ensure!(out.status.success() && text(&out).contains("the sandbox is off"), "{}", text(&out));
    let before = fs::read(&model)?;
    ensure!(!before.is_empty(), "no model");
    fs::write(&config, &settings)?;
    let out = train(&study, &config, &model)?;
    let said = text(&out);
    if said.contains("cannot refuse files") {
        eprintln!("SKIPPED in part: this kernel cannot keep a program from files");
    } else {
        ensure!(!out.status.success() && said.contains("Permission denied"), "{said}");
        ensure!(fs::read(&model)? == before, "the model that was there is gone");
    }
    fs::remove_file(&records)?;
    fs::rename(&elsewhere, &records)?;
    let out = train(&study, &config, &model)?;
    ensure!(out.status.success(), "{}", text(&out));
    ensure!(fs::read(&model)?.len() == before.len(), "another model");
    let (config, study) = (config.display().to_string(), study.display().to_string());
    let checked = ["sandbox", "check", "--config", &config, "--study", &study];
    if said.contains("the sandbox has a gap") {
        eprintln!("SKIPPED in part: this kernel cannot refuse everything");
    } else {
        run("falaj-agent", &checked)?;
    }
    Ok(())
}
