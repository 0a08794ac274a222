//! What an entry touches: the names under which it is found when somebody asks who accessed a thing.
//!
//! Decided from the entry's bytes and nothing else, so that whoever has the entries can make the same index anew.

use super::{
    Entry,
    person::{Person, is_person},
};
use crate::{
    canon::Node,
    id::{Digest, IdError, RoundId, SpiffeId, StudyId},
};
use std::{collections::BTreeSet, fmt, str::FromStr};

/// The fewest digits by which a digest may be asked for.
pub const PREFIX_DIGITS_MIN: usize = 8;
/// How the object that is a person begins; no other begins so.
const PERSON: &str = "person:";
/// Digits of a whole digest.
const DIGITS: usize = 64;

/// A thing that entries touch, and that can be asked about. Each has one spelling, and no two share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A study, by its name.
    Study(StudyId),
    /// A round: `study/number`.
    Round(RoundId),
    /// A site, an operator, a coordinator or a witness, by its SPIFFE ID.
    Party(SpiffeId),
    /// A person, by the pseudonym: `person:` and 32 hexadecimal digits.
    Person(Person),
    /// A certificate, study file, model, payload or whatever else entries name by its SHA-256.
    Digest(Digest),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Study(id) => id.fmt(f),
            Self::Round(id) => write!(f, "{}/{}", id.study, id.number),
            Self::Party(id) => id.fmt(f),
            Self::Person(person) => write!(f, "{PERSON}{person}"),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl FromStr for Object {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        if s.len() == DIGITS && is_hex(s) {
            return s.parse().map(Self::Digest);
        }
        if s.starts_with("spiffe://") {
            return s.parse().map(Self::Party);
        }
        if let Some(person) = s.strip_prefix(PERSON) {
            // What is no pseudonym is no study's name either, and the error says so.
            let person: Result<Person, _> = person.parse();
            return person.map(Self::Person).or_else(|_| s.parse().map(Self::Study));
        }
        match s.split_once('/') {
            None => s.parse().map(Self::Study),
            Some((study, number)) => {
                let study: StudyId = study.parse()?;
                match number.parse() {
                    Ok(n) if n > 0 && format!("{n}") == number => {
                        Ok(Self::Round(RoundId { study, number: n }))
                    }
                    // The whole text is no study's name either, and the error says so.
                    _ => s.parse().map(Self::Study),
                }
            }
        }
    }
}

/// Whether `text` can be the beginning of a digest: at least [`PREFIX_DIGITS_MIN`] lower-case hexadecimal digits.
#[must_use]
pub fn is_prefix(text: &str) -> bool {
    (PREFIX_DIGITS_MIN..DIGITS).contains(&text.len()) && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The things that an entry touches, wherever they stand in it:
///
/// - every text that is a SHA-256 digest, in members and in lists;
/// - every text that is a SPIFFE ID, and every `person`: who did it, and about whom it is;
/// - `study`, and with `round` beside it the round too;
/// - `object` of what was `asked`: who asked about a thing has touched it.
#[must_use]
pub fn objects(entry: &Entry) -> BTreeSet<Object> {
    let mut found = BTreeSet::new();
    collect(entry.body(), &mut found);
    found
}

fn collect(value: Node<'_>, found: &mut BTreeSet<Object>) {
    if let Some(text) = value.as_text()
        && (text.len() == DIGITS || text.starts_with("spiffe://"))
    {
        found.extend(text.parse().ok().filter(|o| !matches!(o, Object::Study(_))));
    }
    value.items().for_each(|item| collect(item, found));
    value.members().for_each(|(_, member)| collect(member, found));
    if let Ok(study) = value.parsed::<StudyId>("study") {
        if let Some(number) = value.int("round").ok().filter(|n| *n > 0) {
            found.insert(Object::Round(RoundId { study: study.clone(), number }));
        }
        found.insert(Object::Study(study));
    }
    found.extend(value.parsed("person").map(Object::Person));
    if let Some(asked) = value.member("asked") {
        found.extend(asked.parsed::<Object>("object").ok());
    }
}

/// Everything under which an entry is found: its objects, who did it, how it was decided and by which policies.
#[must_use]
pub fn terms(entry: &Entry) -> BTreeSet<String> {
    let mut terms: BTreeSet<String> = objects(entry).iter().map(Object::to_string).collect();
    terms.extend(actor(entry).map(|actor| actor_term(&actor)));
    terms.extend(entry.body().text("decision").ok().map(decision_term));
    let policies = entry.body().list("policy_ids").unwrap_or_default();
    terms.extend(policies.into_iter().filter_map(Node::as_text).map(policy_term));
    terms
}

/// Who did it, as the entry names them.
#[must_use]
pub fn actor(entry: &Entry) -> Option<Object> {
    if let Some(person) = entry.actor_person() {
        return Some(Object::Person(person));
    }
    entry.actor_id().cloned().map(Object::Party)
}

/// Whether an object names a natural person in clear, which nothing that is logged may do.
#[must_use]
pub fn names_person(object: &Object) -> bool {
    matches!(object, Object::Party(id) if is_person(id))
}

/// The term for entries of what this party or person did, which are fewer than those that touch it. No object is spelled
/// like it.
#[must_use]
pub fn actor_term(actor: &Object) -> String {
    format!("actor:{actor}")
}

/// The term for entries that were decided so: `allow` or `deny`. No object is spelled like it.
#[must_use]
pub fn decision_term(decision: &str) -> String {
    format!("decision:{decision}")
}

/// The term for entries that this policy decided. No object is spelled like it.
#[must_use]
pub fn policy_term(policy: &str) -> String {
    format!("policy:{policy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Actor, Draft, Kind},
        time::Timestamp,
    };

    fn entry(draft: Draft) -> Entry {
        Entry::parse(&draft.finish(7, Timestamp::from_millis(0), [1; 16])).expect("an entry")
    }

    fn named(found: &BTreeSet<Object>) -> Vec<String> {
        found.iter().map(Object::to_string).collect()
    }

    #[test]
    fn an_entry_touches_who_did_it_what_it_is_about_and_every_digest_in_it() {
        let site = "spiffe://t/ae-on/ae-az/site/h";
        let actor = Actor {
            id: Some("spiffe://t/ae-on/ae-az/operator/o".parse().expect("valid")),
            cert: Some(Digest::of(b"cert")),
            address: Some("127.0.0.1:1".into()),
            ..Actor::default()
        };
        let round = RoundId { study: "heart".parse().expect("valid"), number: 2 };
        let draft = Draft::new(Kind::UpdateAccepted)
            .actor(&actor)
            .round(&round)
            .text("site", site)
            .text("reason", &format!("not {}", Digest::of(b"prose")))
            .digest("payload_sha256", &Digest::of(b"p"))
            .digests("updates", &[Digest::of(b"u")])
            .decided(true, &["base-1".into()], &Digest::of(b"set"));
        let entry = entry(draft);
        let found = objects(&entry);
        let digest = |bytes: &[u8]| Object::Digest(Digest::of(bytes));
        let wanted: BTreeSet<Object> = [
            Object::Study(round.study.clone()),
            Object::Round(round),
            Object::Party(site.parse().expect("valid")),
            Object::Party("spiffe://t/ae-on/ae-az/operator/o".parse().expect("valid")),
            digest(b"cert"),
            digest(b"p"),
            digest(b"u"),
            digest(b"set"),
        ]
        .into();
        assert_eq!(found, wanted, "{:?}", named(&found));
        let terms = terms(&entry);
        assert!(terms.contains("decision:allow") && terms.contains("policy:base-1"));
        assert!(terms.contains("actor:spiffe://t/ae-on/ae-az/operator/o"), "{terms:?}");
        assert_eq!(terms.len(), wanted.len() + 3);
    }

    #[test]
    fn who_asked_about_a_thing_has_touched_it() {
        for object in ["heart/3", "heart", &"ab".repeat(32)] {
            let asked = [("object", object), ("kind", "heart")];
            let found = objects(&entry(Draft::new(Kind::AdminRead).asked(asked)));
            assert_eq!(named(&found), [object.to_owned()]);
        }
        // Any other text is prose.
        let other = Draft::new(Kind::AdminRead).text("action", "heart").text("object", "heart");
        assert!(objects(&entry(other)).is_empty());
    }

    #[test]
    fn every_object_reads_back_as_it_is_spelled_and_nothing_else_is_one() {
        let digest = Digest::of(b"x").to_string();
        let person = format!("person:{}", Person([0xab; 16]));
        for text in ["heart", "heart/12", "spiffe://t/ae-on/ae-az/site/h", &digest, &person] {
            assert_eq!(text.parse::<Object>().expect("an object").to_string(), text);
        }
        for text in [
            "",
            "Heart",
            "heart/",
            "heart/0",
            "heart/012",
            "heart/+1",
            "spiffe://t",
            "a b",
            "person:",
        ] {
            assert!(text.parse::<Object>().is_err(), "{text}");
        }
        assert!(is_prefix(&digest[..8]) && is_prefix(&digest[..63]));
        assert!(!is_prefix(&digest[..7]) && !is_prefix(&digest) && !is_prefix("0123456G"));
    }
}
