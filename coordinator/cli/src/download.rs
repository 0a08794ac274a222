//! Large answers, written to a file or kept whole, with progress; a file appears whole or not at all.

use crate::show;
use anyhow::{Context as _, Result, ensure};
use falaj_core::id::Digest;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Response;
use sha2::{Digest as _, Sha256};
use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
};
use tokio::{
    fs::{self, File},
    io::{AsyncReadExt as _, AsyncWriteExt as _},
};

/// What is read at once.
const CHUNK_BYTES: usize = 1 << 20;
/// The length that a safetensors file begins with, in bytes.
const HEAD_LENGTH_BYTES: usize = 8;

/// Hashes the parameters of a safetensors file as its bytes come, and leaves out what stands before them.
#[derive(Default)]
pub(crate) struct ParamsHash {
    length: Vec<u8>,
    header_left: u64,
    hash: Sha256,
}

impl ParamsHash {
    /// Takes the file's next bytes.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        if self.length.len() < HEAD_LENGTH_BYTES {
            let (length, rest) =
                bytes.split_at(bytes.len().min(HEAD_LENGTH_BYTES - self.length.len()));
            self.length.extend_from_slice(length);
            bytes = rest;
            let Ok(whole) = self.length.as_slice().try_into() else { return };
            self.header_left = u64::from_le_bytes(whole);
        }
        let skip = usize::try_from(self.header_left).unwrap_or(usize::MAX).min(bytes.len());
        self.header_left -= skip as u64;
        self.hash.update(&bytes[skip..]);
    }

    /// SHA-256 of the parameters so far.
    pub(crate) fn finish(self) -> Digest {
        Digest(self.hash.finalize().into())
    }
}

/// Removes a file that was not written to its end.
struct Partial(Option<PathBuf>);

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Writes an answer to `to` and gives the bytes written. `inspect` sees every byte on the way and has the
/// last word before the file appears.
///
/// # Errors
/// When the connection breaks, the file cannot be written, or `inspect` is not content.
pub(crate) async fn save<T: Default>(
    mut answer: Response,
    to: &Path,
    quiet: bool,
    mut feed: impl FnMut(&mut T, &[u8]),
    inspect: impl FnOnce(T) -> Result<()>,
) -> Result<u64> {
    let name = to.file_name().with_context(|| format!("{} names no file", to.display()))?;
    let mut fresh = name.to_owned();
    fresh.push(".partial");
    let fresh = to.with_file_name(fresh);
    let writing = || format!("cannot write {}", fresh.display());
    let mut file = File::create(&fresh).await.with_context(writing)?;
    let mut partial = Partial(Some(fresh.clone()));
    let expected = answer.content_length();
    let bar = bar(expected, quiet);
    let (mut seen, mut written) = (T::default(), 0);
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        feed(&mut seen, &chunk);
        file.write_all(&chunk).await.with_context(writing)?;
        written += chunk.len() as u64;
        bar.set_position(written);
    }
    bar.finish_and_clear();
    ensure!(
        expected.is_none_or(|n| n == written),
        "the download broke off after {}: try again",
        show::bytes(written)
    );
    inspect(seen)?;
    file.sync_all().await.with_context(writing)?;
    fs::rename(&fresh, to).await.with_context(|| format!("cannot write {}", to.display()))?;
    partial.0 = None;
    Ok(written)
}

/// [`save`] of bytes that nothing is to be known of here.
///
/// # Errors
/// As [`save`].
pub(crate) async fn save_as_is(answer: Response, to: &Path, quiet: bool) -> Result<u64> {
    save(answer, to, quiet, |(), _| {}, |()| Ok(())).await
}

/// An answer as a whole, in memory. One of more than `most` bytes is not read to its end.
///
/// # Errors
/// When the connection breaks, or there are more bytes.
pub(crate) async fn whole(mut answer: Response, most: usize, quiet: bool) -> Result<Vec<u8>> {
    let expected = answer.content_length();
    let bar = bar(expected, quiet);
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        ensure!(
            chunk.len() <= most.saturating_sub(bytes.len()),
            "the coordinator sends more than {}: that cannot be what was asked for",
            show::bytes(most as u64)
        );
        bytes.extend_from_slice(&chunk);
        bar.set_position(bytes.len() as u64);
    }
    bar.finish_and_clear();
    ensure!(
        expected.is_none_or(|n| n == bytes.len() as u64),
        "the download broke off after {}: try again",
        show::bytes(bytes.len() as u64)
    );
    Ok(bytes)
}

/// SHA-256 of a file.
///
/// # Errors
/// When it cannot be read.
pub(crate) async fn digest_of(path: &Path, quiet: bool) -> Result<Digest> {
    let reading = || format!("cannot read {}", path.display());
    let mut file = File::open(path).await.with_context(reading)?;
    let bar = bar(Some(file.metadata().await.with_context(reading)?.len()), quiet);
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        let read = file.read(&mut chunk).await.with_context(reading)?;
        if read == 0 {
            bar.finish_and_clear();
            return Ok(Digest(hash.finalize().into()));
        }
        hash.update(&chunk[..read]);
        bar.inc(read as u64);
    }
}

fn bar(length: Option<u64>, quiet: bool) -> ProgressBar {
    let target = if quiet || !std::io::stderr().is_terminal() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let style =
        ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .expect("invariant: the template is valid");
    ProgressBar::with_draw_target(length, target).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_parameters_are_hashed_however_the_bytes_are_cut() {
        let header = b"{\"a\":1} ";
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header);
        file.extend_from_slice(b"params");
        for cut in 1..=file.len() {
            let mut hash = ParamsHash::default();
            file.chunks(cut).for_each(|chunk| hash.feed(chunk));
            assert_eq!(hash.finish(), Digest::of(b"params"), "chunks of {cut}");
        }
    }
}
