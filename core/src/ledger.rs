//! The budget ledger as a chain of entries: what each data set has spent, replayed from its first line.
//!
//! Each entry is canonical JSON that names the SHA-256 of the one before, so that no line can be changed, left
//! out or put in. A site keeps the chain, signs its head for the auditor, and names the head in each update
//! that it signs: whoever holds such an update can tell a chain that was cut back from a whole one.
//!
//! What was reserved counts as spent until it is given back, and it can be given back only before it was used.

use crate::{
    canon::{self, Canon, CanonError},
    dp::rdp::RdpCurve,
    id::{Digest, SiteId, StudyId},
    note,
    time::Timestamp,
};
use ed25519_dalek::VerifyingKey;
use std::collections::BTreeMap;

/// The context under which a site signs the head of its ledger.
pub const HEAD_CONTEXT: &str = "falaj/ledger-head/v1";
/// The context under which a steward states that a data set is about other people.
pub const OTHERS_CONTEXT: &str = "falaj/other-people/v1";

/// What a ledger says happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The ledger begins, at this site.
    Opened {
        /// The site.
        site: SiteId,
    },
    /// A cost is reserved.
    Reserved {
        /// Its number.
        id: u64,
        /// The data set that pays.
        dataset: String,
        /// The study that it pays for.
        study: StudyId,
        /// What for.
        purpose: String,
        /// How much.
        cost: Box<RdpCurve>,
    },
    /// What was paid for has left, and was acknowledged.
    Committed {
        /// The reservation.
        id: u64,
    },
    /// Nothing was made with a reservation.
    GivenBack {
        /// The reservation.
        id: u64,
    },
    /// From now on the data set is about other people: a steward says so, signed.
    Others {
        /// The statement's canonical bytes, as signed.
        statement: String,
        /// The steward's signature, in hex.
        signature: String,
        /// SHA-256 of the steward's certificate.
        steward: Digest,
    },
}

/// A steward's statement that the people in a data set are others than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherPeople {
    /// The site.
    pub site: SiteId,
    /// The data set.
    pub dataset: String,
    /// The head of the ledger that the steward saw: a statement works once.
    pub head: Digest,
    /// Why, in the steward's words.
    pub because: String,
}

impl OtherPeople {
    /// The canonical bytes, as signed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        Canon::map([
            ("because", self.because.as_str().into()),
            ("dataset", self.dataset.as_str().into()),
            ("head_sha256", self.head.to_string().into()),
            ("site", self.site.to_string().into()),
            ("v", Canon::Int(1)),
        ])
        .to_bytes()
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`CanonError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CanonError> {
        let c = canon::parse(bytes)?;
        Ok(Self {
            site: c.parsed("site")?,
            dataset: c.text("dataset")?.to_owned(),
            head: c.parsed("head_sha256")?,
            because: c.text("because")?.to_owned(),
        })
    }

    /// Whether `key` signed it.
    #[must_use]
    pub fn is_signed(&self, key: &VerifyingKey, signature: &[u8]) -> bool {
        note::verify_context(key, OTHERS_CONTEXT, &self.to_bytes(), signature)
    }
}

/// Why a chain does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {seq} of the ledger is wrong: {what}")]
pub struct BrokenChain {
    /// Which entry, from 0.
    pub seq: u64,
    /// What is wrong.
    pub what: String,
}

/// A reservation that is neither committed nor given back.
#[derive(Clone, Debug, PartialEq)]
struct Pending {
    key: Key,
    cost: RdpCurve,
}

/// A data set, how often its people were replaced before, and a study.
type Key = (String, u32, StudyId);

/// What the entries so far come to.
#[derive(Clone, Debug)]
pub struct Ledger {
    site: Option<SiteId>,
    head: Digest,
    entries: u64,
    next: u64,
    generations: BTreeMap<String, u32>,
    settled: BTreeMap<Key, RdpCurve>,
    pending: BTreeMap<u64, Pending>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            site: None,
            head: Digest([0; 32]),
            entries: 0,
            next: 1,
            generations: BTreeMap::new(),
            settled: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }
}

impl Ledger {
    /// The SHA-256 of the newest entry.
    #[must_use]
    pub const fn head(&self) -> Digest {
        self.head
    }

    /// How many entries there are.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// Whose it is; none before the first entry.
    #[must_use]
    pub const fn site(&self) -> Option<&SiteId> {
        self.site.as_ref()
    }

    /// The number of the next reservation.
    #[must_use]
    pub const fn next_id(&self) -> u64 {
        self.next
    }

    /// Whether a reservation can still be given back.
    #[must_use]
    pub fn is_pending(&self, id: u64) -> bool {
        self.pending.contains_key(&id)
    }

    /// What the people who are in a data set now have spent: on one study, or on all.
    #[must_use]
    pub fn spent(&self, dataset: &str, study: Option<&StudyId>) -> RdpCurve {
        let generation = self.generation(dataset);
        let counts = |(d, g, s): &Key| {
            d == dataset && *g == generation && study.is_none_or(|study| study == s)
        };
        let settled = self.settled.iter().filter(|(key, _)| counts(key)).map(|(_, cost)| cost);
        let pending = self.pending.values().filter(|p| counts(&p.key)).map(|p| &p.cost);
        settled.chain(pending).fold(RdpCurve::zero(), |sum, cost| sum.compose(cost))
    }

    /// Every data set and study that the people who are in it now have spent on.
    #[must_use]
    pub fn studies(&self) -> Vec<(String, StudyId)> {
        let keys = self.settled.keys().chain(self.pending.values().map(|p| &p.key));
        let mut found: Vec<_> = keys
            .filter(|(dataset, generation, _)| *generation == self.generation(dataset))
            .map(|(dataset, _, study)| (dataset.clone(), study.clone()))
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// How often a data set's people were replaced.
    #[must_use]
    pub fn generation(&self, dataset: &str) -> u32 {
        self.generations.get(dataset).copied().unwrap_or(0)
    }

    /// The bytes of an entry that would come next. `nonce` keeps the head from being guessed.
    #[must_use]
    pub fn entry(&self, event: &Event, at: Timestamp, nonce: [u8; 16]) -> Vec<u8> {
        let int = |n: u64| Canon::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let common = [
            ("at_ms", Canon::Int(at.as_millis())),
            ("nonce", hex::encode(nonce).into()),
            ("prev_sha256", self.head.to_string().into()),
            ("seq", int(self.entries)),
            ("v", Canon::Int(1)),
        ];
        let own: Vec<(&str, Canon)> = match event {
            Event::Opened { site } => {
                vec![("kind", "opened".into()), ("site", site.to_string().into())]
            }
            Event::Reserved { id, dataset, study, purpose, cost } => vec![
                ("kind", "reserved".into()),
                ("id", int(*id)),
                ("dataset", dataset.as_str().into()),
                ("study", study.as_str().into()),
                ("purpose", purpose.as_str().into()),
                ("cost_rdp", cost.to_text().into()),
            ],
            Event::Committed { id } => vec![("kind", "committed".into()), ("id", int(*id))],
            Event::GivenBack { id } => vec![("kind", "given_back".into()), ("id", int(*id))],
            Event::Others { statement, signature, steward } => vec![
                ("kind", "other_people".into()),
                ("statement", statement.as_str().into()),
                ("signature", signature.as_str().into()),
                ("steward_sha256", steward.to_string().into()),
            ],
        };
        Canon::map(common.into_iter().chain(own)).to_bytes()
    }

    /// Takes in the next entry.
    ///
    /// # Errors
    /// [`BrokenChain`]; nothing of it is taken then.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), BrokenChain> {
        let seq = self.entries;
        let wrong = |what: String| BrokenChain { seq, what };
        let unread = |e: CanonError| wrong(e.to_string());
        let c = canon::parse(bytes).map_err(unread)?;
        if c.int::<u64>("seq").map_err(unread)? != seq {
            return Err(wrong("it does not stand in its place".into()));
        }
        let prev: Digest = c.parsed("prev_sha256").map_err(unread)?;
        if prev != self.head {
            return Err(wrong(format!("it follows {prev}, the entry before it is {}", self.head)));
        }
        let kind = c.text("kind").map_err(unread)?;
        if (kind == "opened") != (seq == 0) {
            return Err(wrong("a ledger is opened once, by its first entry".into()));
        }
        let id = || c.int::<u64>("id").map_err(unread);
        match kind {
            "opened" => self.site = Some(c.parsed("site").map_err(unread)?),
            "reserved" => {
                if id()? != self.next {
                    return Err(wrong(format!("reservation {} is not the next", id()?)));
                }
                let dataset = c.text("dataset").map_err(unread)?.to_owned();
                let study = c.parsed("study").map_err(unread)?;
                let cost = RdpCurve::parse(c.text("cost_rdp").map_err(unread)?)
                    .ok_or_else(|| wrong("its cost cannot be read".into()))?;
                let key = (dataset.clone(), self.generation(&dataset), study);
                self.pending.insert(id()?, Pending { key, cost });
                self.next += 1;
            }
            "committed" | "given_back" => {
                let Some(pending) = self.pending.remove(&id()?) else {
                    return Err(wrong(format!("reservation {} is not pending", id()?)));
                };
                if kind == "committed" {
                    let settled = self.settled.entry(pending.key).or_insert_with(RdpCurve::zero);
                    *settled = settled.compose(&pending.cost);
                }
            }
            "other_people" => {
                let statement = c.text("statement").map_err(unread)?;
                let statement = OtherPeople::parse(statement.as_bytes()).map_err(unread)?;
                if statement.head != self.head || Some(&statement.site) != self.site.as_ref() {
                    return Err(wrong("the steward's statement is about another ledger".into()));
                }
                *self.generations.entry(statement.dataset).or_default() += 1;
            }
            other => return Err(wrong(format!("`{other}` is nothing that happens"))),
        }
        self.head = Digest::of(bytes);
        self.entries += 1;
        Ok(())
    }
}

/// The head of a ledger, as its site signs it for an auditor.
#[must_use]
pub fn head_bytes(site: &SiteId, entries: u64, head: &Digest) -> Vec<u8> {
    Canon::map([
        ("entries", Canon::Int(i64::try_from(entries).unwrap_or(i64::MAX))),
        ("head_sha256", head.to_string().into()),
        ("site", site.to_string().into()),
        ("v", Canon::Int(1)),
    ])
    .to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> SiteId {
        "spiffe://t/ae-on/ae-az/site/h".parse().expect("valid")
    }
    fn study(name: &str) -> StudyId {
        name.parse().expect("valid")
    }
    fn cost() -> RdpCurve {
        RdpCurve::pure(0.5).expect("valid")
    }
    fn reserved(id: u64, of: &str) -> Event {
        let (dataset, purpose) = ("d".to_owned(), "round 1".to_owned());
        Event::Reserved { id, dataset, study: study(of), purpose, cost: Box::new(cost()) }
    }

    /// A ledger of these events, and its entries.
    fn chain(events: &[Event]) -> (Ledger, Vec<Vec<u8>>) {
        let (mut ledger, mut entries) = (Ledger::default(), Vec::new());
        for event in events {
            let bytes = ledger.entry(event, Timestamp::from_millis(1), [7; 16]);
            ledger.take(&bytes).expect("the next entry");
            entries.push(bytes);
        }
        (ledger, entries)
    }

    #[test]
    fn what_is_reserved_counts_until_it_is_given_back() {
        let opened = Event::Opened { site: site() };
        let events = [
            opened,
            reserved(1, "a"),
            reserved(2, "b"),
            reserved(3, "a"),
            Event::Committed { id: 1 },
            Event::GivenBack { id: 2 },
        ];
        let (ledger, _) = chain(&events);
        let spent = |study: Option<&StudyId>| ledger.spent("d", study).epsilon(1e-6).expect("e");
        let both = cost().compose(&cost()).epsilon(1e-6).expect("e");
        assert!(spent(None) >= both && spent(None).value() < both.value() * 1.000_001);
        assert!(spent(Some(&study("b"))).value() <= 0.0);
        assert_eq!(ledger.spent("other", None), RdpCurve::zero());
        assert!(ledger.is_pending(3) && !ledger.is_pending(1));
        assert_eq!(ledger.studies(), [("d".to_owned(), study("a"))]);
    }

    #[test]
    fn a_chain_that_was_touched_anywhere_does_not_hold() {
        let events = [
            Event::Opened { site: site() },
            reserved(1, "a"),
            Event::Committed { id: 1 },
            reserved(2, "a"),
        ];
        let (_, entries) = chain(&events);
        let replay = |entries: &[Vec<u8>]| {
            let mut ledger = Ledger::default();
            entries.iter().try_for_each(|e| ledger.take(e))
        };
        assert_eq!(replay(&entries), Ok(()));
        let mut cheaper = entries.clone();
        let text = String::from_utf8(cheaper[1].clone()).expect("ASCII");
        let less = RdpCurve::pure(0.1).expect("valid").to_text();
        cheaper[1] = text.replace(&cost().to_text(), &less).into_bytes();
        assert_eq!(replay(&cheaper).expect_err("changed").seq, 2);
        let mut shorter = entries.clone();
        shorter.remove(1);
        assert_eq!(replay(&shorter).expect_err("left out").seq, 1);
        let mut swapped = entries.clone();
        swapped.swap(2, 3);
        assert_eq!(replay(&swapped).expect_err("swapped").seq, 2);
        let mut twice = entries;
        twice.push(twice[3].clone());
        assert_eq!(replay(&twice).expect_err("twice").seq, 4);
    }

    #[test]
    fn events_that_cannot_follow_are_refused() {
        let open = Event::Opened { site: site() };
        for (events, next) in [
            (vec![], reserved(1, "a")),
            (vec![open.clone()], open.clone()),
            (vec![open.clone()], reserved(2, "a")),
            (vec![open.clone()], Event::Committed { id: 1 }),
            (vec![open, reserved(1, "a"), Event::Committed { id: 1 }], Event::GivenBack { id: 1 }),
        ] {
            let (mut ledger, _) = chain(&events);
            let bytes = ledger.entry(&next, Timestamp::from_millis(1), [7; 16]);
            let before = (ledger.head(), ledger.entries());
            assert!(ledger.take(&bytes).is_err(), "{next:?} after {events:?}");
            assert_eq!((ledger.head(), ledger.entries()), before);
        }
    }

    #[test]
    fn other_people_start_afresh_and_only_by_a_statement_about_this_very_ledger() {
        let (mut ledger, _) = chain(&[Event::Opened { site: site() }, reserved(1, "a")]);
        let statement = |head| OtherPeople {
            site: site(),
            dataset: "d".into(),
            head,
            because: "the cohort of 2027 shares nobody with the one before".into(),
        };
        let others = |s: &OtherPeople| Event::Others {
            statement: String::from_utf8(s.to_bytes()).expect("text"),
            signature: String::new(),
            steward: Digest::of(b"steward"),
        };
        let stale = others(&statement(Digest::of(b"another head")));
        let bytes = ledger.entry(&stale, Timestamp::from_millis(2), [7; 16]);
        assert!(ledger.take(&bytes).is_err());
        let good = others(&statement(ledger.head()));
        let bytes = ledger.entry(&good, Timestamp::from_millis(2), [7; 16]);
        ledger.take(&bytes).expect("about this ledger");
        assert_eq!(ledger.spent("d", None), RdpCurve::zero());
        assert_eq!(ledger.generation("d"), 1);
    }
}
