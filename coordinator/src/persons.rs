//! People and the keys to what the log commits to about them: one file for each, and nothing of it in the database.
//!
//! Database files, their logs and their backups keep what was deleted from them; a file of its own can be overwritten. A
//! person gets a random pseudonym and a random key when they come for the first time. Once the file is gone, nobody can
//! connect the pseudonym with anybody any more, the coordinator included.

use crate::{clock, store::writer::Change};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use falaj_core::{
    audit::person::{Disclosure, Person},
    canon::{self, Canon},
    id::{Digest, SpiffeId},
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};
use zeroize::Zeroizing;

/// People that are known at once, at most.
pub const PERSONS_MAX: usize = 65_536;
/// How a file that is still being written ends.
const PARTIAL: &str = ".partial";
/// The longest file that is read.
const FILE_BYTES_MAX: u64 = 4_096;
/// Bytes of a nonce, which stands before what it was used for.
const NONCE_BYTES: usize = 24;
/// What the tag of a certificate hashes before a zero byte, the person's key and the certificate's digest.
const TAG: &[u8] = b"falaj/personal/certificate/v1";

/// Why a person cannot be taken up, or not be forgotten.
#[derive(Debug, thiserror::Error)]
pub enum PersonsError {
    /// The folder or a file in it cannot be used.
    #[error("{0}")]
    File(PathBuf, #[source] io::Error),
    /// Others may read a file.
    #[error("{0} can be read by others (mode {1:o}): run `chmod -R go= {0}`")]
    Open(PathBuf, u32),
    /// A file is not what was written there.
    #[error("{0} is not a person's file: restore the folder from its newest backup")]
    Unreadable(PathBuf),
    /// One identity has two files.
    #[error("{0} and {1} are about one person: restore the folder from its newest backup")]
    Twice(Person, Person),
    /// Too many people.
    #[error("{PERSONS_MAX} people are known already: erase those who have left")]
    Full,
}

/// Everybody who is known, and their keys. A cheap handle.
#[derive(Clone, Default)]
pub struct Persons {
    /// The folder; nobody can be taken up without one.
    dir: Option<Arc<PathBuf>>,
    known: Arc<Mutex<Known>>,
}

#[derive(Clone, Default)]
struct Known {
    pseudonyms: BTreeMap<SpiffeId, Person>,
    people: BTreeMap<Person, Held>,
}

impl Known {
    /// Reads one person's file.
    fn take(&mut self, path: &Path) -> Result<(), PersonsError> {
        let failed = |e| PersonsError::File(path.to_owned(), e);
        let unreadable = || PersonsError::Unreadable(path.to_owned());
        check_mode(path)?;
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
        let person: Person = name.ok_or_else(unreadable)?;
        if fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(unreadable());
        }
        let bytes = Zeroizing::new(fs::read(path).map_err(failed)?);
        let held = Held::parse(&bytes).ok_or_else(unreadable)?;
        if let Some(other) = self.pseudonyms.insert(held.id.clone(), person) {
            return Err(PersonsError::Twice(other, person));
        }
        self.people.insert(person, held);
        if self.people.len() > PERSONS_MAX {
            return Err(PersonsError::Full);
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Held {
    id: SpiffeId,
    key: Zeroizing<[u8; 32]>,
}

impl Persons {
    /// Reads everybody who is known from a folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`PersonsError`], with the file and what to do.
    pub fn open(dir: &Path) -> Result<Self, PersonsError> {
        let failed = |e| PersonsError::File(dir.to_owned(), e);
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        check_mode(dir)?;
        let mut known = Known::default();
        for file in fs::read_dir(dir).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            if path.to_string_lossy().ends_with(PARTIAL) {
                // No entry names it: its person was still to be taken up.
                wipe(&path).map_err(|e| PersonsError::File(path.clone(), e))?;
                continue;
            }
            known.take(&path)?;
        }
        let dir = Some(Arc::new(dir.to_owned()));
        Ok(Self { dir, known: Arc::new(Mutex::new(known)) })
    }

    /// Everybody who is known, as their folder is now: nothing there is made or removed, so a coordinator may use it
    /// meanwhile. Without a folder nobody is known.
    ///
    /// # Errors
    /// [`PersonsError`], with the file and what to do.
    pub fn read(dir: &Path) -> Result<Self, PersonsError> {
        let failed = |e| PersonsError::File(dir.to_owned(), e);
        let mut known = Known::default();
        let files = match fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            files => files.map_err(failed)?,
        };
        for file in files {
            let path = file.map_err(failed)?.path();
            match known.take(&path) {
                // Somebody is being taken up, or was erased since the folder was read.
                Err(_) if path.to_string_lossy().ends_with(PARTIAL) || !path.exists() => {}
                taken => taken?,
            }
        }
        Ok(Self { dir: None, known: Arc::new(Mutex::new(known)) })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("invariant: nobody panics while holding the people")
    }

    /// The pseudonym of whoever has this identity, if they are known.
    #[must_use]
    pub fn of(&self, id: &SpiffeId) -> Option<Person> {
        self.known().pseudonyms.get(id).copied()
    }

    /// Who is behind a pseudonym, unless they were erased.
    #[must_use]
    pub fn identity(&self, person: Person) -> Option<SpiffeId> {
        self.known().people.get(&person).map(|held| held.id.clone())
    }

    /// Everybody who is known.
    #[must_use]
    pub fn all(&self) -> Vec<(Person, SpiffeId)> {
        let known = self.known();
        known.people.iter().map(|(person, held)| (*person, held.id.clone())).collect()
    }

    /// The pseudonym of whoever has this identity: their file is durable when this returns. Blocks.
    ///
    /// # Errors
    /// [`PersonsError`].
    pub fn meet(&self, id: &SpiffeId) -> Result<Person, PersonsError> {
        let mut known = self.known();
        if let Some(person) = known.pseudonyms.get(id) {
            return Ok(*person);
        }
        if known.people.len() >= PERSONS_MAX {
            return Err(PersonsError::Full);
        }
        let none = || PersonsError::File(PathBuf::from("persons"), io::ErrorKind::NotFound.into());
        let dir = self.dir.as_ref().ok_or_else(none)?;
        let person = Person(clock::nonce());
        let held = Held { id: id.clone(), key: Zeroizing::new(clock::secret()) };
        let path = dir.join(person.to_string());
        let partial = path.with_extension(&PARTIAL[1..]);
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
            file.write_all(&held.to_bytes())?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(&**dir)?.sync_all()
        };
        if let Err(e) = write() {
            // What was begun must not stay behind; if it does, the next start removes it.
            let _ = fs::remove_file(&partial);
            return Err(PersonsError::File(path, e));
        }
        known.pseudonyms.insert(id.clone(), person);
        known.people.insert(person, held);
        Ok(person)
    }

    /// Erases a person: their file is overwritten, removed, and gone for good when this returns. Blocks.
    ///
    /// # Errors
    /// [`PersonsError::File`]; the person may or may not still be known then.
    pub fn forget(&self, person: Person) -> Result<(), PersonsError> {
        let mut known = self.known();
        if let Some(dir) = &self.dir {
            let path = dir.join(person.to_string());
            match wipe(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(PersonsError::File(path, e));
                }
                _ => {}
            }
        }
        if let Some(held) = known.people.remove(&person) {
            known.pseudonyms.remove(&held.id);
        }
        Ok(())
    }

    /// These people as they are now, whoever is erased meanwhile.
    #[must_use]
    pub fn now(&self) -> Self {
        Self { dir: None, known: Arc::new(Mutex::new(self.known().clone())) }
    }

    fn cipher(&self, person: Person) -> Option<XChaCha20Poly1305> {
        let known = self.known();
        Some(XChaCha20Poly1305::new((&*known.people.get(&person)?.key).into()))
    }

    /// Seals what is beside the log: its place there is part of what is authenticated. None if the person is not known.
    fn seal(&self, person: Person, place: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = [clock::nonce(), clock::nonce()].concat();
        sealed.truncate(NONCE_BYTES);
        let nonce = XNonce::try_from(&sealed[..]).ok()?;
        let aad = [&person.0[..], place].concat();
        let payload = Payload { msg: plain, aad: &aad };
        sealed.extend(self.cipher(person)?.encrypt(&nonce, payload).ok()?);
        Some(sealed)
    }

    fn unseal(&self, person: Person, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_BYTES)?;
        let nonce = XNonce::try_from(nonce).ok()?;
        let aad = [&person.0[..], place].concat();
        self.cipher(person)?.decrypt(&nonce, Payload { msg: sealed, aad: &aad }).ok()
    }

    /// A disclosure, sealed for its entry. None if the person is not known, or not any more.
    #[must_use]
    pub fn seal_disclosure(&self, person: Person, disclosure: &Disclosure) -> Option<Vec<u8>> {
        self.seal(person, &disclosure.seq.to_be_bytes(), &disclosure.to_bytes())
    }

    /// Opens what [`Self::seal_disclosure`] gave. None if the person was erased, or it is another one's.
    #[must_use]
    pub fn disclosure(&self, person: Person, seq: u64, sealed: &[u8]) -> Option<Disclosure> {
        let opened = self.unseal(person, &seq.to_be_bytes(), sealed)?;
        Disclosure::parse(&opened).ok().filter(|d| d.seq == seq)
    }

    /// A person's certificate, as it is kept. None if the person is not known.
    #[must_use]
    pub fn seal_certificate(&self, person: Person, der: &[u8]) -> Option<Change> {
        let tag = {
            let known = self.known();
            let mut hash = Sha256::new();
            hash.update(TAG);
            hash.update([0]);
            hash.update(*known.people.get(&person)?.key);
            hash.update(Digest::of(der).0);
            Digest(hash.finalize().into())
        };
        let sealed = self.seal(person, &tag.0, der)?;
        Some(Change::PersonalCertificate { person, tag, sealed })
    }

    /// Opens what [`Self::seal_certificate`] gave.
    #[must_use]
    pub fn certificate(&self, person: Person, tag: &Digest, sealed: &[u8]) -> Option<Vec<u8>> {
        self.unseal(person, &tag.0, sealed)
    }
}

impl Held {
    fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let members = [
            ("id", self.id.to_string().into()),
            ("key", hex::encode(*self.key).into()),
            ("v", Canon::Int(1)),
        ];
        Zeroizing::new(Canon::map(members).to_bytes())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let read = canon::parse(bytes).ok().filter(|c| c.int("v") == Ok(1))?;
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(read.text("key").ok()?, &mut *key).ok()?;
        Some(Self { id: read.parsed("id").ok()?, key })
    }
}

/// Refuses what others than its owner can read.
fn check_mode(path: &Path) -> Result<(), PersonsError> {
    let about = fs::metadata(path).map_err(|e| PersonsError::File(path.to_owned(), e))?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(PersonsError::Open(path.to_owned(), mode)) }
}

/// Overwrites a file where it lies, and removes it; durable when this returns.
fn wipe(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    file.write_all(&vec![0; bytes.min(1 << 20)])?;
    file.sync_all()?;
    fs::remove_file(path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://t/ae-on/ae-az/operator/{name}").parse().expect("an identity")
    }

    fn disclosure(seq: u64) -> Disclosure {
        Disclosure {
            seq,
            salt: [3; 32],
            payload: Canon::map([("id", id("sara").to_string().into())]),
        }
    }

    #[test]
    fn a_person_keeps_the_pseudonym_until_erased_and_gets_another_one_then() {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path().join("persons");
        let persons = Persons::open(&dir).expect("open");
        let sara = persons.meet(&id("sara")).expect("met");
        assert_eq!(persons.meet(&id("sara")).expect("met"), sara);
        assert_ne!(persons.meet(&id("omar")).expect("met"), sara);
        let mode = |p: &Path| fs::metadata(p).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join(sara.to_string()))), (0o700, 0o600));
        let sealed = persons.seal_disclosure(sara, &disclosure(7)).expect("sealed");
        let again = Persons::open(&dir).expect("open");
        assert_eq!(again.of(&id("sara")), Some(sara));
        assert_eq!(again.disclosure(sara, 7, &sealed), Some(disclosure(7)));
        // Moved to another entry or another person, it opens nothing.
        assert_eq!(again.disclosure(sara, 8, &sealed), None);
        let omar = again.of(&id("omar")).expect("known");
        assert_eq!(again.disclosure(omar, 7, &sealed), None);
        again.forget(sara).expect("erased");
        again.forget(sara).expect("it is gone already");
        assert_eq!((again.of(&id("sara")), again.identity(sara)), (None, None));
        assert_eq!(again.disclosure(sara, 7, &sealed), None);
        let after = Persons::open(&dir).expect("open");
        assert_eq!(after.all(), [(omar, id("omar"))]);
        assert_ne!(after.meet(&id("sara")).expect("met"), sara);
    }

    #[test]
    fn what_a_crash_left_behind_goes_and_what_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path().join("persons");
        let sara = Persons::open(&dir).expect("open").meet(&id("sara")).expect("met");
        fs::write(dir.join("00.partial"), b"half").expect("written");
        assert_eq!(Persons::open(&dir).expect("open").all().len(), 1);
        assert!(!dir.join("00.partial").exists());
        let file = dir.join(sara.to_string());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        assert!(matches!(Persons::open(&dir), Err(PersonsError::Open(..))));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("set");
        fs::write(&file, b"{}").expect("written");
        assert!(matches!(Persons::open(&dir), Err(PersonsError::Unreadable(_))));
    }
}
