//! Where secret keys lie, and how they are read: in files that nobody else can touch, or in a token.

use crate::token::{TokenError, TokenKey};
use falaj_core::sign::SignKey;
use serde::Deserialize;
use std::{
    fmt, fs,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};
use zeroize::Zeroizing;

/// A file with a secret is at most this long.
const SECRET_BYTES_MAX: usize = 64 << 10;

/// Where a secret key lies: `key` in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum KeyAt {
    /// In a file with mode 0600.
    File(PathBuf),
    /// In a token: `pkcs11:…` (RFC 7512).
    Token(TokenKey),
}

impl KeyAt {
    /// The same, a file's path taken from a folder.
    #[must_use]
    pub fn below(self, base: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(base.join(path)),
            token @ Self::Token(_) => token,
        }
    }

    /// Its file, if it lies in one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Token(_) => None,
        }
    }

    /// Files that using it needs: its own, or those that its token's URI names.
    #[must_use]
    pub fn files(&self) -> Vec<&Path> {
        match self {
            Self::File(path) => vec![path],
            Self::Token(token) => vec![token.module(), token.pin_file()],
        }
    }
}

impl TryFrom<String> for KeyAt {
    type Error = TokenError;

    fn try_from(text: String) -> Result<Self, TokenError> {
        text.parse()
    }
}

impl FromStr for KeyAt {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.starts_with(TokenKey::SCHEME) {
            Ok(Self::Token(text.parse()?))
        } else {
            Ok(Self::File(text.into()))
        }
    }
}

impl fmt::Display for KeyAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Token(token) => token.fmt(f),
        }
    }
}

impl From<&Path> for KeyAt {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<&PathBuf> for KeyAt {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl From<&Self> for KeyAt {
    fn from(at: &Self) -> Self {
        at.clone()
    }
}

/// Why a file with a secret is not read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// Others could read or change it.
    #[error(
        "{path} can be read or changed by others (mode {mode:o}): run `chmod 600 {path}`",
        path = path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is no such thing.
    #[error("{0} is longer than {SECRET_BYTES_MAX} bytes: it holds no key")]
    Long(PathBuf),
}

/// Reads a secret from a file that its owner alone can read or write.
///
/// # Errors
/// [`SecretError`], with the file and what to do.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let failed = |e| SecretError::Read(path.to_owned(), e);
    // What is asked for its mode is what is read, whatever becomes of the name meanwhile.
    let file = fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Exposed { path: path.to_owned(), mode });
    }
    // With room for all of it from the beginning: what grows leaves copies behind that nobody wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1));
    file.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > SECRET_BYTES_MAX {
        return Err(SecretError::Long(path.to_owned()));
    }
    Ok(bytes)
}

/// Opens a key in a token: it has signed once when this returns.
///
/// # Errors
/// [`TokenError`], with token, object and module.
pub fn open_token(at: &TokenKey) -> Result<Arc<dyn SignKey>, TokenError> {
    at.check_pin()?;
    #[cfg(feature = "pkcs11")]
    return crate::token::pkcs11::TokenSigner::open(at).map(|key| Arc::new(key) as _);
    #[cfg(not(feature = "pkcs11"))]
    return Err(TokenError::NotBuilt(at.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_others_can_read_or_write_is_not_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("key");
        fs::write(&path, "secret").expect("written");
        for mode in [0o640, 0o620, 0o604, 0o602, 0o610, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            let e = read_secret(&path).expect_err("exposed").to_string();
            assert!(e.contains(&format!("mode {mode:o}")) && e.contains("chmod 600"), "{e}");
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            assert_eq!(read_secret(&path).expect("read")[..], b"secret"[..]);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        fs::write(&path, vec![0; (64 << 10) + 1]).expect("written");
        assert!(matches!(read_secret(&path), Err(SecretError::Long(_))));
    }

    #[test]
    fn a_secret_is_read_into_room_that_does_not_grow() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("key");
        fs::write(&path, vec![7; 5_000]).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        let read = read_secret(&path).expect("read");
        assert!(read.len() == 5_000 && read.capacity() > 64 << 10, "{}", read.capacity());
    }

    /// Whoever reads a configuration shows the line that could not be read, so that nothing with a PIN in it fails then.
    #[test]
    fn a_configuration_with_a_pin_in_it_is_read_and_the_key_is_refused() {
        #[derive(Debug, Deserialize)]
        struct Config {
            key: KeyAt,
        }
        for uri in ["pkcs11:token=t;object=k?pin-value=hush1234", "pkcs11:pin-value=hush1234;=?&x"]
        {
            let config: Config = toml::from_str(&format!("key = \"{uri}\"")).expect("it is read");
            let KeyAt::Token(key) = &config.key else { panic!("{config:?}") };
            let e = open_token(key).err().expect("refused").to_string();
            assert!(e.contains("holds a PIN"), "{e}");
            assert!(!format!("{e} {config:?} {}", config.key).contains("hush1234"));
        }
    }

    #[test]
    fn a_key_lies_in_a_file_unless_a_uri_says_otherwise() {
        let file: KeyAt = "pkcs11.pem".parse().expect("a file");
        assert_eq!(file.below(Path::new("/etc/falaj")).to_string(), "/etc/falaj/pkcs11.pem");
        let uri = "pkcs11:token=t;object=k?module-path=/m.so&pin-source=/pin";
        let token: KeyAt = uri.parse().expect("a URI");
        assert!(matches!(&token, KeyAt::Token(_)) && token.file().is_none());
        assert_eq!(token.clone().below(Path::new("/etc/falaj")), token);
        assert_eq!(token.files(), [Path::new("/m.so"), Path::new("/pin")]);
        assert!("pkcs11:token=t".parse::<KeyAt>().is_err());
    }
}
