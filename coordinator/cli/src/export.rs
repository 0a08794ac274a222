//! Versions of models in another format: the file that is downloaded, checked to be the version's, and converted here.

use crate::{
    args::{ExportArgs, ModelFormat},
    client::Client,
    commands::read_study,
    download::whole,
    show,
};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use falaj_core::{
    id::{Digest, Place, StudyId},
    registry::version::Stage,
    study::Study,
};
use falaj_proto::{
    onnx::{self, About},
    rest::Version,
};
use serde_json::json;
use std::{
    fs::{self, File, Permissions},
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// What stands before the parameters of a `safetensors` file takes at most so many bytes: more than names and shapes of as many
/// tensors as a model may have.
const HEAD_BYTES_MAX: usize = 16 << 20;
/// A file that is written is for whoever the user's mask lets read it.
const MODE: u32 = 0o666;

/// Writes a version in another format.
///
/// # Errors
/// What went wrong, and what to do. Nothing is written then.
pub(crate) async fn run(client: &Client, args: ExportArgs, json: bool) -> Result<()> {
    let (id, to) = (args.of.id.parse::<StudyId>()?, &args.output);
    // What can be known to be in vain is not downloaded: the log would say that somebody has the model.
    free(to)?;
    let (text, study) = read_study(&args.study)?;
    let study_sha256 = Digest::of(text.as_bytes());
    let version = agreed(client, &id, &args, (&study, study_sha256)).await?;

    let file = match &args.file {
        Some(path) => read(path, &study)?,
        None => download(client, (&id, &version), args.to_place, (&study, json)).await?,
    };
    let found = Digest::of(&file).to_string();
    ensure!(
        found == version.safetensors_sha256,
        "{} is not version {} of {id}: its digest is {found}, the version's file has {}",
        args.file
            .as_deref()
            .map_or_else(|| "what the coordinator sent".into(), |path| path.display().to_string()),
        version.version,
        version.safetensors_sha256
    );
    let model_sha256 = version.model_sha256.parse::<Digest>().context("the version's digest")?;
    let about = About {
        study: &study,
        study_sha256,
        version: version.version,
        round: version.round,
        model_sha256,
    };
    let made = match args.format {
        ModelFormat::Onnx => onnx::export(&file, &about),
    }
    .with_context(|| format!("version {} of {id} does not become ONNX", version.version))?;
    write(to, &made)?;

    let answer = json!({
        "file": to,
        "bytes": made.len(),
        "onnx_sha256": Digest::of(&made).to_string(),
        "version": version.version,
        "model_sha256": version.model_sha256,
    });
    show::answer(json, &answer, |_| {
        format!(
            "{} ({}), version {} of {id}, model {}",
            to.display(),
            show::bytes(made.len() as u64),
            version.version,
            show::short(&version.model_sha256)
        )
    })
}

/// The version, when the study file is the one that it came from and it may still be used.
async fn agreed(
    client: &Client,
    id: &StudyId,
    args: &ExportArgs,
    (study, study_sha256): (&Study, Digest),
) -> Result<Version> {
    let shown = args.study.display();
    ensure!(study.id == *id, "{shown} is the study `{}`, not `{id}`", study.id);
    let submitted = client.study(id).await?.study_sha256;
    ensure!(
        study_sha256.to_string() == submitted,
        "{shown} is not what was submitted as `{id}`: its digest is {study_sha256}, that of the study is {submitted}; take the file as it was submitted"
    );
    let version = client.version(id, &args.of.version).await?;
    ensure!(
        version.stage != Stage::Revoked.as_str(),
        "version {} of {id} was revoked: it may not be used any more",
        version.version
    );
    let manifest = study.manifest()?.digest().to_string();
    ensure!(
        manifest == version.manifest_sha256,
        "the tensors of version {} are others than this `falaj` makes of the study ({manifest}, not {}): use a `falaj` of the coordinator's version",
        version.version,
        version.manifest_sha256
    );
    Ok(version)
}

/// The most bytes that a file of the study's model has.
fn most(study: &Study) -> Result<usize> {
    Ok(study.manifest()?.params().saturating_mul(4).saturating_add(HEAD_BYTES_MAX))
}

async fn download(
    client: &Client,
    (id, version): (&StudyId, &Version),
    to: Option<Place>,
    (study, quiet): (&Study, bool),
) -> Result<Bytes> {
    let answer = client.version_file(id, version.version, to).await?;
    Ok(whole(answer, most(study)?, quiet).await?.into())
}

/// A file that was downloaded before.
fn read(path: &Path, study: &Study) -> Result<Bytes> {
    let reading = || format!("cannot read {}", path.display());
    let (file, most) = (File::open(path).with_context(reading)?, most(study)?);
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).with_context(reading)?;
    ensure!(
        bytes.len() <= most,
        "{} is larger than a file of the study's model: {}",
        path.display(),
        show::bytes(most as u64)
    );
    Ok(bytes.into())
}

fn free(to: &Path) -> Result<()> {
    let taken = fs::symlink_metadata(to).is_ok();
    ensure!(!taken, "{} is there already: name another file, or remove it", to.display());
    let folder = folder_of(to);
    ensure!(folder.is_dir(), "{} is no folder: make it, or name another file", folder.display());
    Ok(())
}

fn folder_of(to: &Path) -> &Path {
    to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file, whole or not at all, where there is none.
fn write(to: &Path, bytes: &[u8]) -> Result<()> {
    let writing = || format!("cannot write {}", to.display());
    let mut fresh = tempfile::Builder::new()
        .prefix(".falaj-")
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(folder_of(to))
        .with_context(writing)?;
    fresh.write_all(bytes).with_context(writing)?;
    fresh.as_file().sync_all().with_context(writing)?;
    fresh.persist_noclobber(to).with_context(writing)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_written_over_and_nothing_else_is_left_behind() {
        let dir = tempfile::tempdir().expect("a folder");
        let to = dir.path().join("model.onnx");
        free(&to).expect("nothing is there");
        write(&to, b"one").expect("written");
        let refused = free(&to).expect_err("something is there").to_string();
        assert!(refused.contains("is there already"), "{refused}");
        write(&to, b"two").expect_err("also when it came meanwhile");
        assert_eq!(fs::read(&to).expect("read"), b"one");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1);
    }
}
