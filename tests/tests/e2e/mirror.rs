//! The log as static files in a folder, which a coordinator's operator keeps up to date.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{Federation, run, text};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

const PLACE: [&str; 2] = ["--to-place", "ae-on/ae-az"];

fn mirror(federation: &Federation, folder: &str) -> Result<Value> {
    federation.falaj_json(&[&["log", "mirror", folder], &PLACE[..]].concat())
}

fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    Ok(found)
}

#[test]
fn a_mirror_has_the_files_of_the_verifier_and_takes_no_other_log() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let folder = federation.dir().join("mirror");
    let folder = folder.to_str().context("UTF-8")?;
    let first = mirror(&federation, folder)?;
    let size = |answer: &Value| answer["tree_size"].as_u64().context("a size");
    for _ in 0..300 {
        federation.falaj_json(&["status"])?;
    }
    let second = mirror(&federation, folder)?;
    ensure!(second["from"] == first["tree_size"] && size(&second)? > 300, "{second}");
    let upto = size(&second)?.to_string();
    let (bundle, tiles) = (federation.dir().join("b.tar"), federation.dir().join("tiles"));
    let (path, laid) = (bundle.to_str().context("UTF-8")?, tiles.to_str().context("UTF-8")?);
    let out = federation.falaj(&["log", "export", "--tree-size", &upto, "-o", path])?;
    ensure!(out.status.success(), "{}", text(&out));
    run("falaj-verify", &[path, "--tiles", laid])?;
    let laid = files(&tiles)?;
    ensure!(laid.len() >= 6, "{laid:?}");
    for file in laid {
        let same = fs::read(tiles.join(&file))? == fs::read(Path::new(folder).join(&file))?;
        ensure!(same, "{}", file.display());
    }
    // Another log, of the same name, with fewer entries: nothing changes.
    let mut other = Federation::new()?;
    let _other = other.start_coordinator()?;
    let kept = fs::read(Path::new(folder).join("checkpoint"))?;
    let out = other.falaj(&[&["log", "mirror", folder], &PLACE[..]].concat())?;
    ensure!(!out.status.success() && text(&out).contains(&upto), "{}", text(&out));
    ensure!(fs::read(Path::new(folder).join("checkpoint"))? == kept);
    Ok(())
}
