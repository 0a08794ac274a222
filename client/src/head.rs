//! The newest head of a chain, kept a second time beside its database, so that an older copy put in its place is noticed.

use falaj_core::id::Digest;
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// The head that was kept under a name, if one was.
///
/// # Errors
/// When it cannot be read, or is no digest.
pub(crate) fn read(dir: &Path, name: &str) -> io::Result<Option<Digest>> {
    match fs::read_to_string(dir.join(name)) {
        Ok(text) => {
            let damaged = |_| io::Error::other(format!("`{}` is no digest", text.trim()));
            Ok(Some(text.trim().parse().map_err(damaged)?))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Keeps a head, whole or not at all, whoever else does so at the same time.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(dir: &Path, name: &str, head: &Digest) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(&format!("{name}.")).tempfile_in(dir)?;
    writeln!(file, "{head}")?;
    file.as_file().sync_all()?;
    file.persist(dir.join(name)).map_err(|e| e.error)?;
    File::open(dir)?.sync_all()
}
