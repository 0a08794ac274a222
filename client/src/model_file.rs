//! Models as files: `safetensors`, one tensor per entry of the manifest, f32.

use anyhow::{Context as _, Result, ensure};
use falaj_core::{aggregate::params_to_bytes, manifest::Manifest};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

/// Reads a model; it must have exactly the manifest's tensors.
///
/// # Errors
/// When the file cannot be read or holds another model.
pub fn read(path: &Path, manifest: &Manifest) -> Result<Vec<f32>> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = SafeTensors::deserialize(&bytes)
        .with_context(|| format!("{} is not a safetensors file", path.display()))?;
    let mut params = Vec::with_capacity(manifest.params());
    for spec in manifest.tensors() {
        let tensor = file
            .tensor(&spec.name)
            .with_context(|| format!("{} has no tensor `{}`", path.display(), spec.name))?;
        let shape: Vec<usize> = spec.shape.iter().map(|&d| d as usize).collect();
        ensure!(
            tensor.dtype() == Dtype::F32 && tensor.shape() == shape,
            "{}: tensor `{}` is {:?} {:?}, the study asks for F32 {shape:?}",
            path.display(),
            spec.name,
            tensor.dtype(),
            tensor.shape()
        );
        let (whole, _) = tensor.data().as_chunks::<4>();
        params.extend(whole.iter().map(|b| f32::from_le_bytes(*b)));
    }
    ensure!(file.len() == manifest.tensors().len(), "{} holds further tensors", path.display());
    Ok(params)
}

/// Opens a file for a model; what is in it stays until the model is written.
///
/// # Errors
/// When it cannot be opened or made.
pub fn open(path: &Path) -> Result<File> {
    let mut how = File::options();
    let file = how.write(true).create(true).truncate(false).open(path);
    file.with_context(|| format!("writing {}", path.display()))
}

/// Writes a model in place of what was in the file.
///
/// # Errors
/// When the file cannot be written.
pub fn write(file: &mut File, manifest: &Manifest, params: &[f32]) -> Result<()> {
    let bytes = params_to_bytes(params);
    let mut views = Vec::new();
    for (spec, range) in manifest.ranges() {
        let shape = spec.shape.iter().map(|&d| d as usize).collect();
        let data = &bytes[range.start * 4..range.end * 4];
        views.push((spec.name.as_str(), TensorView::new(Dtype::F32, shape, data)?));
    }
    let model = safetensors::serialize(views, None)?;
    // A pipe has no length.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    file.write_all(&model)?;
    Ok(())
}
