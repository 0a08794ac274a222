//! Files at rest: AES-256-GCM under a data key of each file, which is wrapped by a key that lies elsewhere.
//!
//! A file is a head and segments. The head has a magic word, which key wraps, and the wrapped data key. A segment is up to
//! `SEGMENT_BYTES` and its tag; its nonce is its number and whether it is the last, so that none can be moved, left out or
//! added. No data key is used for two files. What is not sealed has no such head, and is read as it is.

use crate::clock;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fmt, fs,
    fs::File,
    io::{self, BufRead as _, BufReader, Read},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// What a sealed file begins with.
const MAGIC: [u8; 16] = *b"falaj/sealed/v1\0";
/// The name of a key: the beginning of its hash.
pub type KeyName = [u8; 8];
/// Bytes of a wrapped data key, with its nonce and tag.
const WRAPPED_BYTES: usize = 12 + 32 + TAG_BYTES;
/// Bytes before the first segment.
const HEAD_BYTES: usize = MAGIC.len() + size_of::<KeyName>() + WRAPPED_BYTES;
/// Bytes in a segment.
const SEGMENT_BYTES: usize = 64 << 10;
/// Bytes of a tag.
const TAG_BYTES: usize = 16;

/// Wraps data keys: the one thing that has to be kept elsewhere, whatever keeps it.
pub trait KeySource: Send + Sync + fmt::Debug {
    /// The name of the key that wraps now.
    fn name(&self) -> KeyName;

    /// Wraps a data key.
    ///
    /// # Errors
    /// When the key cannot be used now.
    fn wrap(&self, data_key: &[u8; 32]) -> io::Result<[u8; WRAPPED_BYTES]>;

    /// Unwraps a data key that the key of this name has wrapped.
    ///
    /// # Errors
    /// When there is no such key, or it has wrapped something else.
    fn unwrap(&self, by: KeyName, wrapped: &[u8; WRAPPED_BYTES])
    -> io::Result<Zeroizing<[u8; 32]>>;

    /// Whether it can unwrap what the key of this name has wrapped.
    fn has(&self, name: KeyName) -> bool;
}

/// Keys in files: the first wraps, and all unwrap.
pub struct FileKeys(Vec<(KeyName, LessSafeKey)>);

impl fmt::Debug for FileKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(|(name, _)| hex::encode(name)).collect();
        write!(f, "FileKeys({})", names.join(", "))
    }
}

/// Why keys of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file cannot be read, or made.
    #[error("cannot read the key {0}")]
    Read(PathBuf, #[source] io::Error),
    /// Others may read it.
    #[error("{0}: others may read this key: `chmod 600` it")]
    Open(PathBuf),
    /// It is no key.
    #[error("{0}: a key of models is 64 hexadecimal digits")]
    Malformed(PathBuf),
    /// Something is sealed by a key that is not there.
    #[error(
        "{file} is sealed by the key {name}, which the configuration does not name: put its file back as `state.model_key`, or into `state.model_keys_before`"
    )]
    Missing {
        /// The sealed file.
        file: PathBuf,
        /// The key's name.
        name: String,
    },
}

impl KeyError {
    pub(super) fn missing(file: &Path, name: KeyName) -> Self {
        Self::Missing { file: file.to_owned(), name: hex::encode(name) }
    }
}

impl FileKeys {
    /// Reads the key that wraps, and those that wrapped before, for files that are sealed by these keys. The first is made if there
    /// is no such file, unless something is sealed that the others do not open: then it is lost, and another would hide that.
    ///
    /// # Errors
    /// [`KeyError`], with the file.
    pub fn load(
        now: &Path,
        before: &[PathBuf],
        sealed: &BTreeMap<KeyName, PathBuf>,
    ) -> Result<Self, KeyError> {
        let mut keys = Self(before.iter().map(|path| read(path)).collect::<Result<_, _>>()?);
        if !now.exists() {
            keys.opens(sealed)?;
            make(now).map_err(|e| KeyError::Read(now.to_owned(), e))?;
        }
        keys.0.insert(0, read(now)?);
        keys.opens(sealed)?;
        Ok(keys)
    }

    fn opens(&self, sealed: &BTreeMap<KeyName, PathBuf>) -> Result<(), KeyError> {
        match sealed.iter().find(|(name, _)| !self.has(**name)) {
            Some((name, file)) => Err(KeyError::missing(file, *name)),
            None => Ok(()),
        }
    }

    fn find(&self, name: KeyName) -> Option<&LessSafeKey> {
        self.0.iter().find(|(of, _)| *of == name).map(|(_, key)| key)
    }
}

/// Makes a key, readable by nobody else.
fn make(path: &Path) -> io::Result<()> {
    let text = Zeroizing::new(hex::encode(*Zeroizing::new(clock::secret())));
    let partial = path.with_extension("partial");
    fs::write(&partial, b"")?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o600))?;
    fs::write(&partial, text.as_bytes())?;
    File::open(&partial)?.sync_all()?;
    fs::rename(partial, path)
}

fn read(path: &Path) -> Result<(KeyName, LessSafeKey), KeyError> {
    let unreadable = |e| KeyError::Read(path.to_owned(), e);
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(KeyError::Open(path.to_owned()));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(unreadable)?);
    let mut key = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim(), &mut *key)
        .map_err(|_| KeyError::Malformed(path.to_owned()))?;
    let hash = Sha256::new().chain_update(b"falaj/model-key/v1\0").chain_update(*key).finalize();
    let mut name = KeyName::default();
    name.copy_from_slice(&hash[..8]);
    Ok((name, cipher(&key).map_err(unreadable)?))
}

fn cipher(key: &[u8; 32]) -> io::Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, key);
    Ok(LessSafeKey::new(key.map_err(|_| io::Error::other("the cipher cannot be had"))?))
}

impl KeySource for FileKeys {
    fn name(&self) -> KeyName {
        self.0.first().map(|(name, _)| *name).unwrap_or_default()
    }

    fn wrap(&self, data_key: &[u8; 32]) -> io::Result<[u8; WRAPPED_BYTES]> {
        let (_, key) = self.0.first().ok_or_else(|| io::Error::other("there is no key"))?;
        let mut nonce = [0; 12];
        nonce.copy_from_slice(&clock::nonce()[..12]);
        let mut sealed = Zeroizing::new(data_key.to_vec());
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(MAGIC),
            &mut *sealed,
        )
        .map_err(|_| io::Error::other("a data key cannot be wrapped"))?;
        let mut wrapped = [0; WRAPPED_BYTES];
        wrapped[..12].copy_from_slice(&nonce);
        wrapped[12..].copy_from_slice(&sealed);
        Ok(wrapped)
    }

    fn unwrap(
        &self,
        by: KeyName,
        wrapped: &[u8; WRAPPED_BYTES],
    ) -> io::Result<Zeroizing<[u8; 32]>> {
        let none = || {
            let name = hex::encode(by);
            io::Error::other(format!("it is sealed by the key {name}, which is not configured"))
        };
        let key = self.find(by).ok_or_else(none)?;
        let mut nonce = [0; 12];
        nonce.copy_from_slice(&wrapped[..12]);
        let mut sealed = Zeroizing::new(wrapped[12..].to_vec());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let opened = key.open_in_place(nonce, Aad::from(MAGIC), &mut sealed);
        let opened = opened.map_err(|_| changed("its wrapped key"))?;
        let mut data_key = Zeroizing::new([0; 32]);
        data_key.copy_from_slice(opened);
        Ok(data_key)
    }

    fn has(&self, name: KeyName) -> bool {
        self.find(name).is_some()
    }
}

fn changed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what} was changed, or is sealed by another key"),
    )
}

/// The nonce of a segment.
fn nonce(index: u64, last: bool) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&index.to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

/// Seals what is written, segment by segment.
pub(super) struct Sealer {
    key: LessSafeKey,
    index: u64,
    /// What is not sealed yet: a segment is, once something comes after it.
    rest: Vec<u8>,
}

impl Sealer {
    /// With a fresh data key; gives the head, which is to be written first.
    pub(super) fn new(keys: &dyn KeySource) -> io::Result<(Self, Vec<u8>)> {
        let data_key = Zeroizing::new(clock::secret());
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&keys.name());
        head.extend_from_slice(&keys.wrap(&data_key)?);
        let rest = Vec::with_capacity(SEGMENT_BYTES + TAG_BYTES);
        Ok((Self { key: cipher(&data_key)?, index: 0, rest }, head))
    }

    /// Takes bytes, and gives what is sealed by now.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            if self.rest.len() == SEGMENT_BYTES {
                self.seal(false, &mut out)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(SEGMENT_BYTES - self.rest.len()));
            self.rest.extend_from_slice(now);
            bytes = later;
        }
        Ok(out)
    }

    /// The last segment, which may be empty.
    pub(super) fn finish(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.seal(true, &mut out)?;
        Ok(out)
    }

    fn seal(&mut self, last: bool, out: &mut Vec<u8>) -> io::Result<()> {
        let nonce = nonce(self.index, last);
        self.key
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut self.rest)
            .map_err(|_| io::Error::other("a segment cannot be sealed"))?;
        out.append(&mut self.rest);
        self.index += 1;
        Ok(())
    }
}

/// Reads a file, sealed or not.
pub struct Reader {
    file: BufReader<File>,
    length: u64,
    opening: Option<Opening>,
}

/// How a sealed file is read.
struct Opening {
    key: LessSafeKey,
    index: u64,
    segment: Vec<u8>,
    /// How much of the segment was given.
    given: usize,
    /// How much of it there is.
    there: usize,
    last: bool,
}

/// The key that a file is sealed by, if it is.
pub(super) fn sealed_by(file: &mut BufReader<File>) -> io::Result<Option<KeyName>> {
    let mut head = [0; MAGIC.len() + size_of::<KeyName>()];
    let mut have = 0;
    while have < head.len() {
        match file.read(&mut head[have..])? {
            0 => return Ok(None),
            n => have += n,
        }
    }
    let mut name = KeyName::default();
    name.copy_from_slice(&head[MAGIC.len()..]);
    Ok((head[..MAGIC.len()] == MAGIC).then_some(name))
}

impl Reader {
    /// Opens a file.
    ///
    /// # Errors
    /// When it cannot be read, or is sealed by a key that is not there.
    pub(super) fn open(path: &Path, keys: Option<&dyn KeySource>) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut file = BufReader::with_capacity(SEGMENT_BYTES + TAG_BYTES, file);
        let Some(name) = sealed_by(&mut file)? else {
            let file = BufReader::new(File::open(path)?);
            return Ok(Self { file, length, opening: None });
        };
        let no_keys = || io::Error::other("it is sealed, and no `state.model_key` is configured");
        let mut wrapped = [0; WRAPPED_BYTES];
        file.read_exact(&mut wrapped)?;
        let data_key = keys.ok_or_else(no_keys)?.unwrap(name, &wrapped)?;
        let sealed = length.saturating_sub(HEAD_BYTES as u64);
        let segments = sealed.div_ceil((SEGMENT_BYTES + TAG_BYTES) as u64);
        let opening = Opening {
            key: cipher(&data_key)?,
            index: 0,
            segment: vec![0; SEGMENT_BYTES + TAG_BYTES],
            given: 0,
            there: 0,
            last: false,
        };
        let length = sealed.saturating_sub(segments * TAG_BYTES as u64);
        Ok(Self { file, length, opening: Some(opening) })
    }

    /// Bytes in it, sealed or not.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(opening) = &mut self.opening else { return self.file.read(out) };
        while opening.given == opening.there {
            if opening.last {
                return Ok(0);
            }
            let mut have = 0;
            while have < opening.segment.len() {
                match self.file.read(&mut opening.segment[have..])? {
                    0 => break,
                    n => have += n,
                }
            }
            opening.last = self.file.fill_buf()?.is_empty();
            let nonce = nonce(opening.index, opening.last);
            let segment = &mut opening.segment[..have];
            let opened = opening.key.open_in_place(nonce, Aad::empty(), segment);
            opening.there = opened.map_err(|_| changed("it"))?.len();
            opening.given = 0;
            opening.index += 1;
        }
        let n = out.len().min(opening.there - opening.given);
        out[..n].copy_from_slice(&opening.segment[opening.given..opening.given + n]);
        opening.given += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(dir: &Path, name: &str, before: &[&str]) -> FileKeys {
        let before: Vec<PathBuf> = before.iter().map(|name| dir.join(name)).collect();
        FileKeys::load(&dir.join(name), &before, &BTreeMap::new()).expect("keys")
    }

    fn refused(
        dir: &Path,
        name: &str,
        before: &[PathBuf],
        sealed: &BTreeMap<KeyName, PathBuf>,
    ) -> KeyError {
        FileKeys::load(&dir.join(name), before, sealed).expect_err("refused")
    }

    fn write(path: &Path, keys: &FileKeys, bytes: &[u8], step: usize) {
        let (mut sealer, mut out) = Sealer::new(keys).expect("a sealer");
        for part in bytes.chunks(step) {
            out.extend(sealer.take(part).expect("taken"));
        }
        out.extend(sealer.finish().expect("finished"));
        fs::write(path, out).expect("written");
    }

    fn read_all(path: &Path, keys: &FileKeys) -> io::Result<Vec<u8>> {
        let mut reader = Reader::open(path, Some(keys))?;
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        assert_eq!(reader.length(), bytes.len() as u64);
        Ok(bytes)
    }

    #[test]
    fn what_is_sealed_opens_to_the_same_bytes_and_is_not_there_in_clear() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, keys) = (dir.path().join("model"), keys(dir.path(), "key", &[]));
        for length in [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES]
        {
            let bytes: Vec<u8> =
                (0..length).map(|i| u8::try_from(i % 251).expect("small")).collect();
            for step in [length.max(1), 1_000, SEGMENT_BYTES] {
                write(&path, &keys, &bytes, step);
                assert_eq!(read_all(&path, &keys).expect("opens"), bytes, "{length} by {step}");
            }
            let sealed = fs::read(&path).expect("reads");
            assert!(length < 64 || !sealed.windows(64).any(|w| w == &bytes[..64]));
        }
        fs::write(&path, b"in clear").expect("written");
        assert_eq!(read_all(&path, &keys).expect("reads"), b"in clear");
    }

    #[test]
    fn a_changed_moved_or_missing_part_is_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, keys) = (dir.path().join("model"), keys(dir.path(), "key", &[]));
        write(&path, &keys, &vec![7; 2 * SEGMENT_BYTES + 5], SEGMENT_BYTES);
        let good = fs::read(&path).expect("reads");
        let whole = SEGMENT_BYTES + TAG_BYTES;
        let mut forged = Vec::new();
        for at in
            [20, MAGIC.len() + 8, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + whole, good.len() - 1]
        {
            let mut other = good.clone();
            other[at] ^= 1;
            forged.push(other);
        }
        // Two segments in each other's place, one left out, and the last cut off.
        let (head, segments) = good.split_at(HEAD_BYTES);
        let (one, rest) = segments.split_at(whole);
        let (two, last) = rest.split_at(whole);
        forged.push([head, two, one, last].concat());
        forged.push([head, one, last].concat());
        forged.push([head, one, two].concat());
        forged.push([head, one, two, last, last].concat());
        forged.push(head.to_vec());
        for (n, bytes) in forged.iter().enumerate() {
            fs::write(&path, bytes).expect("written");
            assert!(read_all(&path, &keys).is_err(), "{n}");
        }
    }

    #[test]
    fn an_older_key_still_opens_and_a_lost_one_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model");
        let old = keys(dir.path(), "old", &[]);
        write(&path, &old, b"a model", 3);
        let both = keys(dir.path(), "new", &["old"]);
        assert_eq!(read_all(&path, &both).expect("opens"), b"a model");
        assert_ne!(both.name(), old.name());
        let lost = read_all(&path, &keys(dir.path(), "new", &[])).expect_err("lost");
        assert!(lost.to_string().contains(&hex::encode(old.name())), "{lost}");
        assert!(Reader::open(&path, None).is_err());
        let mode = fs::metadata(dir.path().join("new")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // No other key is made in the place of one that is lost.
        let sealed = BTreeMap::from([(old.name(), path)]);
        for name in ["new", "newer"] {
            let why = refused(dir.path(), name, &[], &sealed);
            assert!(matches!(why, KeyError::Missing { .. }), "{why}");
        }
        assert!(!dir.path().join("newer").exists());
        fs::set_permissions(dir.path().join("new"), fs::Permissions::from_mode(0o644))
            .expect("set");
        let open = refused(dir.path(), "new", &[], &BTreeMap::new());
        assert!(matches!(open, KeyError::Open(_)), "{open}");
        fs::write(dir.path().join("old"), "no key").expect("written");
        let none = refused(dir.path(), "old", &[], &BTreeMap::new());
        assert!(matches!(none, KeyError::Malformed(_)), "{none}");
    }
}
