//! People in the log: an entry names a person by a pseudonym and commits to the rest, which is kept apart and can be erased.
//!
//! A commitment is a hash over a random salt. Without the salt, nobody can tell whether it is about somebody whom they
//! guess; with it, anybody can check what it says. Where salts are kept and how they are erased is the coordinator's.

use super::Actor;
use crate::{
    canon::{Canon, CanonError, Document, Node},
    id::{Digest, Role, SpiffeId, hex_lower},
    roles,
};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// What a commitment hashes before a zero byte, the salt and the payload.
const CONTEXT: &[u8] = b"falaj/personal/v1";

/// A person's pseudonym: 16 random bytes, which nothing connects with the person but what can be erased.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Person(pub [u8; 16]);

impl fmt::Display for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 32];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str(str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Person({self})")
    }
}

/// Why something personal cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PersonError {
    /// No pseudonym.
    #[error("a person's pseudonym is 32 lower-case hexadecimal digits")]
    Pseudonym,
    /// No disclosure.
    #[error("a disclosure cannot be read: {0}")]
    Unreadable(#[from] CanonError),
    /// It is about another entry, or none that names a person.
    #[error("it discloses entry {disclosed}, and this is entry {entry}, {kind}")]
    Misplaced {
        /// What it is about.
        disclosed: u64,
        /// What it was held against.
        entry: u64,
        /// What that is.
        kind: &'static str,
    },
    /// It does not open the entry's commitment.
    #[error(
        "its commitment is to {committed}, and what is disclosed hashes to {found}: it is not what was logged"
    )]
    Commitment {
        /// In the entry.
        committed: Digest,
        /// Of what is disclosed.
        found: Digest,
    },
    /// The entry and what it commits to disagree.
    #[error("it names a person in {place}, and commits to {id}")]
    Place {
        /// In the entry.
        place: String,
        /// In the disclosure.
        id: String,
    },
}

impl FromStr for Person {
    type Err = PersonError;
    fn from_str(s: &str) -> Result<Self, PersonError> {
        hex_lower(s).map(Self).ok_or(PersonError::Pseudonym)
    }
}

/// Whether an identity is a natural person's: an operator's. Sites, coordinators and witnesses are organisations.
#[must_use]
pub fn is_person(id: &SpiffeId) -> bool {
    id.role() == Role::Operator
}

/// What an entry commits to: the actor's `address`, `cert_sha256` and `id`, as far as they are known.
#[must_use]
pub fn payload(actor: &Actor) -> Canon {
    let members = [
        ("address", actor.address.clone()),
        ("cert_sha256", actor.cert.map(|cert| cert.to_string())),
        ("id", actor.id.as_ref().map(ToString::to_string)),
    ];
    let known = members.into_iter().filter_map(|(name, value)| Some((name, value?)));
    Canon::map(known.map(|(name, value)| (name, super::bounded(&value))))
}

/// The salt and the payload behind the commitment of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disclosure {
    /// The entry.
    pub seq: u64,
    /// Random.
    pub salt: [u8; 32],
    /// What [`payload`] gives.
    pub payload: Canon,
}

impl Disclosure {
    /// SHA-256 over `falaj/personal/v1`, a zero byte, the salt and the payload's canonical bytes.
    #[must_use]
    pub fn commitment(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update(CONTEXT);
        hash.update([0]);
        hash.update(self.salt);
        hash.update(self.payload.to_bytes());
        Digest(hash.finalize().into())
    }

    /// As a bundle has it: one line of canonical JSON, without its end.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let seq = Canon::Int(i64::try_from(self.seq).unwrap_or(i64::MAX));
        let salt = hex::encode(self.salt).into();
        Canon::map([("payload", self.payload.clone()), ("salt", salt), ("seq", seq)]).to_bytes()
    }

    /// Reads [`Self::to_bytes`].
    ///
    /// # Errors
    /// [`PersonError::Unreadable`].
    pub fn parse(bytes: &[u8]) -> Result<Self, PersonError> {
        let read = Document::parse(bytes)?;
        let read = read.root();
        let bad = |member: &str| CanonError::Member(member.into());
        let salt = hex_lower(read.text("salt")?).ok_or_else(|| bad("salt"))?;
        let payload = read.member("payload").map(Node::to_canon);
        let known = ["address", "cert_sha256", "id"];
        let payload = payload.filter(|payload| match payload {
            Canon::Map(m) => m.keys().all(|k| known.contains(&&**k)),
            _ => false,
        });
        let payload = payload.ok_or_else(|| bad("payload"))?;
        // Nothing else stands in it, and a document has one spelling.
        if read.members().count() != 3 {
            return Err(CanonError::NotCanonical.into());
        }
        Ok(Self { seq: read.int("seq")?, salt, payload })
    }

    /// Who it is, when that was known.
    #[must_use]
    pub fn id(&self) -> Option<SpiffeId> {
        self.payload.parsed("id").ok()
    }

    /// By which certificate, when that was known.
    #[must_use]
    pub fn cert(&self) -> Option<Digest> {
        self.payload.parsed("cert_sha256").ok()
    }
}

/// The member `actor` of an entry that a person did.
pub(super) fn members(person: Person, actor: &Actor) -> BTreeMap<String, Canon> {
    let place = actor.id.as_ref().map(|id| ("place", id.place().to_string().into()));
    let roles = ("roles", roles::list(actor.roles));
    let all = [Some(("person", person.to_string().into())), place, Some(roles)];
    all.into_iter().flatten().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Draft, Entry, Kind},
        roles::OperatorRole,
        time::Timestamp,
    };

    fn sara() -> Actor {
        Actor {
            person: Some(Person([7; 16])),
            id: Some("spiffe://t/ae-on/ae-az/operator/sara".parse().expect("valid")),
            cert: Some(Digest::of(b"cert")),
            address: Some("192.0.2.7:4711".into()),
            roles: [OperatorRole::Auditor, OperatorRole::Approver].into_iter().collect(),
        }
    }

    fn entry(salt: [u8; 32]) -> (Vec<u8>, Disclosure) {
        let mut draft = Draft::new(Kind::AdminRead).actor(&sara());
        let disclosure = draft.commit_to_person(3, salt).expect("a person did it").1;
        (draft.finish(3, Timestamp::from_millis(0), [1; 16]), disclosure)
    }

    #[test]
    fn an_entry_of_a_person_names_a_pseudonym_a_place_and_roles_and_nothing_else() {
        let (bytes, disclosure) = entry([2; 32]);
        let text = String::from_utf8(bytes.clone()).expect("text");
        for secret in ["sara", "192.0.2.7", &Digest::of(b"cert").to_string()] {
            assert!(!text.contains(secret), "{text}");
        }
        let read = Entry::parse(&bytes).expect("an entry");
        assert_eq!((read.actor_id(), read.actor_cert()), (None, None));
        assert_eq!(read.actor_person(), Some(Person([7; 16])));
        assert_eq!(read.actor_place().map(|p| p.to_string()).as_deref(), Some("ae-on/ae-az"));
        assert_eq!(read.actor_roles(), Ok(Some(sara().roles)));
        assert!(text.contains(r#""roles":["approver","auditor"]"#), "{text}");
        let open = read.disclosed(&disclosure).expect("it opens");
        assert_eq!((open.actor_id(), open.actor_cert()), (sara().id.as_ref(), sara().cert));
        let line = disclosure.to_bytes();
        assert_eq!(Disclosure::parse(&line), Ok(disclosure));
    }

    #[test]
    fn what_is_not_what_was_logged_opens_nothing() {
        let (bytes, disclosure) = entry([2; 32]);
        let read = || Entry::parse(&bytes).expect("an entry");
        let other = |change: &dyn Fn(&mut Disclosure)| {
            let mut other = disclosure.clone();
            change(&mut other);
            read().disclosed(&other).expect_err("it is another")
        };
        let salt = other(&|d| d.salt[0] ^= 1);
        assert!(matches!(salt, PersonError::Commitment { .. }), "{salt}");
        let who = other(&|d| d.payload = Canon::map([("id", "spiffe://t/a/b/operator/x".into())]));
        assert!(matches!(who, PersonError::Commitment { .. }), "{who}");
        assert!(matches!(other(&|d| d.seq = 4), PersonError::Misplaced { .. }));
        // The commitment is right, and says something else than the entry.
        let elsewhere = sara().id.expect("known").to_string().replace("ae-az", "ae-du");
        let payload = Canon::map([("id", elsewhere.into())]);
        let lie = Disclosure { payload, ..disclosure };
        let text = String::from_utf8(bytes.clone()).expect("text");
        let committed = read().personal_commit().expect("there").to_string();
        let lied = text.replace(&committed, &lie.commitment().to_string());
        let lied = Entry::parse(lied.as_bytes()).expect("an entry");
        assert!(matches!(lied.disclosed(&lie), Err(PersonError::Place { .. })));
    }

    /// AUD-09: without the salt a million guesses find nothing; with it the right one is found.
    #[test]
    fn a_dictionary_finds_nobody_in_a_leaf_without_the_salt() {
        let mut salt = [0; 32];
        salt.iter_mut().zip(0_u8..).for_each(|(b, i)| *b = i.wrapping_mul(151) ^ 0x5a);
        let actor = |n: u32| Actor {
            id: Some(format!("spiffe://t/ae-on/ae-az/operator/user-{n}").parse().expect("valid")),
            cert: None,
            address: None,
            person: Some(Person([7; 16])),
            ..Actor::default()
        };
        let hidden = 777_777;
        let mut draft = Draft::new(Kind::AdminRead).actor(&actor(hidden));
        let (_, disclosure) = draft.commit_to_person(0, salt).expect("a person did it");
        let leaf = draft.finish(0, Timestamp::from_millis(0), [1; 16]);
        let entry = Entry::parse(&leaf).expect("an entry");
        let text = String::from_utf8(leaf).expect("text");
        let committed = disclosure.commitment();
        let zero = [0; 32];
        let (mut guessed, mut known) = (0, Vec::new());
        let mut of = [0_u8; 256];
        for n in 0..1_000_000_u32 {
            // The payload as `payload` spells it, without its detour over an identity: a million of them.
            let guess = format!("{{\"id\":\"spiffe://t/ae-on/ae-az/operator/user-{n}\"}}");
            let hash = |salt: &[u8]| {
                let mut at = 0;
                for part in [CONTEXT, &[0], salt, guess.as_bytes()] {
                    of[at..at + part.len()].copy_from_slice(part);
                    at += part.len();
                }
                Digest::of(&of[..at])
            };
            let mut hash = hash;
            let (empty, zeroed, salted) = (hash(&[]), hash(&zero), hash(&salt));
            // Each guess that was hashed in a way that needs no salt, and the name itself.
            for found in [Digest::of(guess.as_bytes()), empty, zeroed] {
                guessed += u32::from(found == committed);
            }
            if salted == committed {
                known.push(n);
            }
        }
        assert_eq!((guessed, known), (0, vec![hidden]));
        assert!(!text.contains(&format!("user-{hidden}")), "{text}");
        assert_eq!(payload(&actor(hidden)), disclosure.payload);
        assert!(entry.disclosed(&disclosure).is_ok());
    }
}
