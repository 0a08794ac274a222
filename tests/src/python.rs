//! Python with packages by which our work is held against software that is not ours.

use crate::federation::{repository, text};
use anyhow::{Context as _, Result, ensure};
use std::{fs, path::PathBuf, process::Command};

/// What a list says of itself that leaves nothing to pip.
const WHOLE: &str = "# Whole: ";

/// Installs what `tests/NAME/requirements.txt` names beside the build, unless it is there: the interpreter that has it.
///
/// # Errors
/// When Python 3, its `venv` or the packages cannot be had.
pub fn with_packages(name: &str) -> Result<PathBuf> {
    let folder = repository().join("target").join(name);
    fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let wanted = repository().join("tests").join(name).join("requirements.txt");
    let (done, python) = (folder.join("done"), folder.join("bin/python"));
    if fs::read(&done).is_ok_and(|installed| fs::read(&wanted).is_ok_and(|w| w == installed)) {
        return Ok(python);
    }
    let step = |command: &mut Command, what: &str| -> Result<()> {
        let out = command.output().with_context(|| format!("{what} cannot be run"))?;
        ensure!(out.status.success(), "{what}: {}", text(&out));
        Ok(())
    };
    step(Command::new("python3").args(["-m", "venv"]).arg(&folder), "python3 -m venv")?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "-r"]).arg(&wanted);
    if fs::read_to_string(&wanted)?.contains(WHOLE) {
        pip.arg("--no-deps");
    }
    step(&mut pip, "pip install")?;
    fs::copy(&wanted, done)?;
    Ok(python)
}
