//! What left a site, as a chain of entries: one for each message, with its kind, size and digest, written before it was sent.
//!
//! Each entry is canonical JSON that names the SHA-256 of the one before, so that no line can be changed, left out or put in. A
//! site keeps the chain and signs its head for an auditor, who holds it against the coordinator's log. Entries that an
//! auditor has may be released: the file that is exported next begins where they ended.

use crate::{
    canon::{self, Canon, CanonError},
    id::{Digest, RoundId, SiteId},
    time::Timestamp,
};
use std::fmt;

/// The context under which a site signs the head of its egress journal.
pub const HEAD_CONTEXT: &str = "falaj/egress-head/v1";

/// Every kind of message that can leave a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Which data sets and trainers there are, by name.
    Hello,
    /// That the site takes no part in a round, and why.
    Decline,
    /// Keys, sealed shares, a signed list or reveals of a masked round.
    Answer,
    /// Which model is wanted.
    ModelAsked,
    /// Which checkpoint is wanted.
    CheckpointAsked,
    /// A cosignature of a checkpoint.
    Cosignature,
    /// Which proof of an entry is wanted.
    ProofAsked,
    /// A request for another certificate about the site's key.
    Renewal,
    /// The signed answer to a probe of round trip and clock, with a TPM's quote where one was asked for.
    Probe,
    /// A sealed and signed update.
    Update,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Hello,
        Self::Decline,
        Self::Answer,
        Self::ModelAsked,
        Self::CheckpointAsked,
        Self::Cosignature,
        Self::ProofAsked,
        Self::Renewal,
        Self::Probe,
        Self::Update,
    ];

    /// Its word in the journal.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Decline => "decline",
            Self::Answer => "answer",
            Self::ModelAsked => "model_asked",
            Self::CheckpointAsked => "checkpoint_asked",
            Self::Cosignature => "cosignature",
            Self::ProofAsked => "proof_asked",
            Self::Renewal => "renewal",
            Self::Probe => "probe",
            Self::Update => "update",
        }
    }

    /// The most bytes that a message of this kind has; an update has as many as its study's model and grid make.
    #[must_use]
    pub const fn bytes_max(self) -> u64 {
        match self {
            Self::Hello | Self::Decline => 64 << 10,
            Self::Answer => 4 << 20,
            Self::ModelAsked | Self::CheckpointAsked | Self::ProofAsked => 1 << 10,
            Self::Cosignature | Self::Probe => 4 << 10,
            Self::Renewal => 16 << 10,
            Self::Update => u64::MAX,
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A message that leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// What it is.
    pub kind: Kind,
    /// Its bytes: of an update header, signature and payload, of anything else the encoded message.
    pub bytes: u64,
    /// Their SHA-256; of an update that of the payload alone, which is what its header and the log name.
    pub sha256: Digest,
    /// SHA-256 of an update's header.
    pub header: Option<Digest>,
    /// The round that it is about.
    pub round: Option<RoundId>,
}

/// What a journal says happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The journal begins, at this site.
    Opened {
        /// The site.
        site: SiteId,
    },
    /// A message is about to leave.
    Sent(Sent),
    /// Entries before this one were released: they are with an auditor.
    Released {
        /// The first that was kept.
        before: u64,
    },
}

/// Why a chain does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {seq} of the egress journal is wrong: {what}")]
pub struct BrokenChain {
    /// Which entry, from 0.
    pub seq: u64,
    /// What is wrong.
    pub what: String,
}

/// An entry, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 0.
    pub seq: u64,
    /// When it was written.
    pub at: Timestamp,
    /// What happened.
    pub event: Event,
    prev: Digest,
}

impl Entry {
    /// Reads an entry wherever it stands.
    ///
    /// # Errors
    /// [`CanonError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CanonError> {
        let c = canon::parse(bytes)?;
        let member = |name: &str| CanonError::Member(name.to_owned());
        let digest = |name: &str| c.member(name).map(|_| c.parsed(name)).transpose();
        let event = match c.text("kind")? {
            "opened" => Event::Opened { site: c.parsed("site")? },
            "released" => Event::Released { before: c.int("before")? },
            word => Event::Sent(Sent {
                kind: Kind::parse(word).ok_or_else(|| member("kind"))?,
                bytes: c.int("bytes")?,
                sha256: c.parsed("sha256")?,
                header: digest("header_sha256")?,
                round: match c.member("study") {
                    None => None,
                    Some(_) => Some(RoundId { study: c.parsed("study")?, number: c.int("round")? }),
                },
            }),
        };
        let at = Timestamp::from_millis(c.int("at_ms")?);
        Ok(Self { seq: c.int("seq")?, at, event, prev: c.parsed("prev_sha256")? })
    }
}

/// Where a chain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    site: Option<SiteId>,
    head: Digest,
    entries: u64,
}

impl Default for Chain {
    fn default() -> Self {
        Self { site: None, head: Digest([0; 32]), entries: 0 }
    }
}

impl Chain {
    /// The SHA-256 of the newest entry.
    #[must_use]
    pub const fn head(&self) -> Digest {
        self.head
    }

    /// How many entries there were, released ones included.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// Whose it is; none before the first entry.
    #[must_use]
    pub const fn site(&self) -> Option<&SiteId> {
        self.site.as_ref()
    }

    /// A chain of which the first entries are elsewhere, as its next entry says.
    ///
    /// # Errors
    /// When the entry cannot be read.
    pub fn before(next: &[u8], site: SiteId) -> Result<Self, BrokenChain> {
        let next = Entry::parse(next).map_err(|e| BrokenChain { seq: 0, what: e.to_string() })?;
        let site = (next.seq > 0).then_some(site);
        Ok(Self { site, head: next.prev, entries: next.seq })
    }

    /// The bytes of an entry that would come next.
    #[must_use]
    pub fn entry(&self, event: &Event, at: Timestamp) -> Vec<u8> {
        let int = |n: u64| Canon::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let mut members = vec![
            ("at_ms", Canon::Int(at.as_millis())),
            ("prev_sha256", self.head.to_string().into()),
            ("seq", int(self.entries)),
            ("v", Canon::Int(1)),
        ];
        match event {
            Event::Opened { site } => {
                members.extend([("kind", "opened".into()), ("site", site.to_string().into())]);
            }
            Event::Released { before } => {
                members.extend([("kind", "released".into()), ("before", int(*before))]);
            }
            Event::Sent(sent) => {
                members.extend([
                    ("kind", sent.kind.as_str().into()),
                    ("bytes", int(sent.bytes)),
                    ("sha256", sent.sha256.to_string().into()),
                ]);
                members.extend(sent.header.map(|h| ("header_sha256", h.to_string().into())));
                if let Some(round) = &sent.round {
                    members.push(("study", round.study.as_str().into()));
                    members.push(("round", int(round.number.into())));
                }
            }
        }
        Canon::map(members).to_bytes()
    }

    /// Takes in the next entry.
    ///
    /// # Errors
    /// [`BrokenChain`]; nothing of it is taken then.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Entry, BrokenChain> {
        let seq = self.entries;
        let wrong = |what: String| BrokenChain { seq, what };
        let entry = Entry::parse(bytes).map_err(|e| wrong(e.to_string()))?;
        if entry.seq != seq {
            return Err(wrong(format!("number {} stands in its place", entry.seq)));
        }
        if entry.prev != self.head {
            let (prev, head) = (entry.prev, self.head);
            return Err(wrong(format!("it follows {prev}, the entry before it is {head}")));
        }
        match &entry.event {
            Event::Opened { site } if seq == 0 => self.site = Some(site.clone()),
            _ if seq == 0 => return Err(wrong("a journal is opened by its first entry".into())),
            Event::Opened { .. } => return Err(wrong("a journal is opened once".into())),
            Event::Released { before } if *before > seq => {
                return Err(wrong("it releases entries that are not there yet".into()));
            }
            Event::Sent(sent) if sent.bytes > sent.kind.bytes_max() => {
                let (kind, bytes) = (sent.kind, sent.bytes);
                return Err(wrong(format!("no {kind} has {bytes} bytes")));
            }
            Event::Sent(sent) if (sent.kind == Kind::Update) != sent.header.is_some() => {
                return Err(wrong("an update has a header, and nothing else has".into()));
            }
            Event::Released { .. } | Event::Sent(_) => {}
        }
        self.head = Digest::of(bytes);
        self.entries += 1;
        Ok(entry)
    }
}

/// The head of an egress journal, as its site signs it for an auditor.
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
        let spiffe = "spiffe://t/ae-on/ae-az/site/h".parse::<crate::id::SpiffeId>().expect("an id");
        spiffe.try_into().expect("a site")
    }

    fn sent(kind: Kind, bytes: u64) -> Event {
        let header = (kind == Kind::Update).then(|| Digest::of(b"header"));
        let round = RoundId { study: "s".parse().expect("a study"), number: 2 };
        Event::Sent(Sent { kind, bytes, sha256: Digest::of(b"m"), header, round: Some(round) })
    }

    /// Every kind of entry once.
    fn whole() -> (Chain, Vec<Vec<u8>>) {
        let mut events = vec![Event::Opened { site: site() }];
        events.extend(Kind::ALL.map(|kind| sent(kind, 100)));
        events.push(Event::Released { before: 3 });
        let (mut chain, mut lines) = (Chain::default(), Vec::new());
        for event in events {
            let line = chain.entry(&event, Timestamp::from_millis(7));
            assert_eq!(chain.take(&line).expect("holds").event, event);
            lines.push(line);
        }
        (chain, lines)
    }

    fn replay(mut chain: Chain, lines: &[Vec<u8>]) -> Result<Chain, BrokenChain> {
        lines.iter().try_for_each(|line| chain.take(line).map(drop))?;
        Ok(chain)
    }

    #[test]
    fn a_journal_replays_and_none_of_its_lines_can_be_left_out_changed_or_moved() {
        let (chain, lines) = whole();
        assert_eq!(replay(Chain::default(), &lines), Ok(chain.clone()));
        assert_eq!((chain.entries(), chain.site()), (lines.len() as u64, Some(&site())));
        for at in 0..lines.len() - 1 {
            let mut less = lines.clone();
            less.remove(at);
            assert!(replay(Chain::default(), &less).is_err(), "without {at}");
            let mut swapped = lines.clone();
            swapped.swap(at, at + 1);
            assert!(replay(Chain::default(), &swapped).is_err(), "{at} and the next");
            let mut changed = lines.clone();
            let text = String::from_utf8(changed[at].clone()).expect("text");
            changed[at] = text.replace("\"at_ms\":7", "\"at_ms\":8").into_bytes();
            assert!(replay(Chain::default(), &changed).is_err(), "{at} changed");
        }
    }

    #[test]
    fn a_journal_goes_on_from_where_an_earlier_file_ended() {
        let (chain, lines) = whole();
        let from = Chain::before(&lines[4], site()).expect("a place");
        assert_eq!(from.entries(), 4);
        assert_eq!(replay(from, &lines[4..]), Ok(chain));
        let first = Chain::before(&lines[0], site()).expect("a place");
        assert_eq!(first, Chain::default(), "nothing is before the first");
    }

    #[test]
    fn what_no_message_can_be_is_no_entry() {
        let (chain, _) = whole();
        let late = Chain::default().entry(&sent(Kind::Hello, 1), Timestamp::from_millis(1));
        assert!(Chain::default().take(&late).is_err(), "it was not opened");
        let headless = Event::Sent(Sent {
            kind: Kind::Update,
            bytes: 1,
            sha256: Digest::of(b""),
            header: None,
            round: None,
        });
        for event in [
            Event::Opened { site: site() },
            Event::Released { before: chain.entries() + 1 },
            sent(Kind::Cosignature, Kind::Cosignature.bytes_max() + 1),
            sent(Kind::ModelAsked, 1 << 20),
            headless,
        ] {
            let line = chain.entry(&event, Timestamp::from_millis(9));
            assert!(chain.clone().take(&line).is_err(), "{event:?}");
        }
        let line = chain.entry(&sent(Kind::Hello, 1), Timestamp::from_millis(9));
        let text = String::from_utf8(line).expect("text").replace("hello", "records");
        assert!(chain.clone().take(text.as_bytes()).is_err(), "another kind");
        assert!(chain.clone().take(b"{}").is_err());
    }
}
