//! The messages of secure aggregation as bytes: fixed layouts, one spelling, each bound to its cohort.
//!
//! Every message begins with its kind, the cohort's digest and its sender's number. Whatever is not exactly
//! of that form is refused with what is wrong.

use super::Cohort;
use crate::id::Digest;

/// Bytes of kind, cohort and sender.
const HEAD: usize = 1 + 32 + 2;
/// Bytes of an encrypted pair of shares: two shares and the authenticator.
pub(super) const SEALED_SHARES: usize = 64 + 16;

/// Why a message is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It is another kind of message, or none.
    #[error("not the kind of message that this stage takes")]
    Kind,
    /// It is too short or too long.
    #[error("{found} bytes where the message has {expected}")]
    Length {
        /// Of the message.
        found: usize,
        /// Of its kind.
        expected: usize,
    },
    /// It belongs to another cohort or round.
    #[error("a message of another cohort or round")]
    Cohort,
    /// Its sender, or somebody in it, is no member of the cohort or not in order.
    #[error("member {0} is not one, or not in order")]
    Member(u16),
    /// The signature is not the site's.
    #[error("the signature of member {0} is not right")]
    Signature(u16),
    /// Nobody is a member twice: a message came before.
    #[error("member {0} has sent this before, and differently")]
    Twice(u16),
    /// The key agrees to nothing, or is another member's.
    #[error("a key of member {0} is of low order or not its own")]
    Key(u16),
    /// Shares that cannot be opened, or are not those that were committed to.
    #[error("the shares from member {0} are forged")]
    Shares(u16),
    /// A value with bits beyond the ring's.
    #[error("the masked update of member {0} has values beyond the agreed bits")]
    Values(u16),
    /// A share for somebody who is no neighbour, or of the wrong kind, or one that is missing.
    #[error("member {0} reveals other shares than the list asks for")]
    Reveals(u16),
    /// This site's own key cannot be used now.
    #[error("this site's key cannot sign at present")]
    Unsigned,
    /// Fewer than the agreed number of sites.
    #[error("{found} sites where at least {needed} must be: there is no sum")]
    TooFew {
        /// Sites.
        found: usize,
        /// The threshold.
        needed: u32,
    },
    /// The list leaves the site itself out, or is not the one that was confirmed.
    #[error("the list of sites is not the one that this site confirmed")]
    List,
    /// A dealer's shares do not give the secret that it is bound to.
    #[error("the shares that member {0} dealt do not belong together")]
    Dealer(u16),
    /// The sealed update is not one of this cohort's.
    #[error("the sealed update has another encoding or number of parameters than the cohort")]
    Update,
}

/// Two keys for a round, signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    pub(super) from: u16,
    pub(super) encryption: [u8; 32],
    pub(super) masking: [u8; 32],
    pub(super) seed_commitment: [u8; 32],
    pub(super) signature: [u8; 64],
}

/// Shares for one neighbour, encrypted, and what binds the dealer to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub(super) from: u16,
    pub(super) to: u16,
    pub(super) sealed: [u8; SEALED_SHARES],
    /// Of the masking key's share and of the seed's.
    pub(super) commitments: [[u8; 32]; 2],
}

/// A signature on the list of those whose masked updates arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    pub(super) from: u16,
    pub(super) survivors: [u8; 32],
    pub(super) signature: [u8; 64],
}

/// One share for each neighbour: of the seed for a survivor, of the masking key for one that dropped out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reveal {
    pub(super) from: u16,
    pub(super) shares: Vec<(u16, [u8; 32])>,
}

struct Reader<'a> {
    bytes: &'a [u8],
    members: usize,
}

impl<'a> Reader<'a> {
    /// The rest after the head, and who sent it.
    fn open(bytes: &'a [u8], kind: u8, cohort: &Cohort) -> Result<(Self, u16), MessageError> {
        let (head, rest) = bytes
            .split_at_checked(HEAD)
            .ok_or(MessageError::Length { found: bytes.len(), expected: HEAD })?;
        if head[0] != kind {
            return Err(MessageError::Kind);
        }
        if head[1..33] != *cohort.digest().as_bytes() {
            return Err(MessageError::Cohort);
        }
        let mut reader = Self { bytes: &head[33..], members: cohort.members().len() };
        let from = reader.member()?;
        reader.bytes = rest;
        Ok((reader, from))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let (taken, rest) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or(MessageError::Length { found: self.bytes.len(), expected: N })?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn member(&mut self) -> Result<u16, MessageError> {
        let member = u16::from_le_bytes(self.take()?);
        if usize::from(member) < self.members {
            Ok(member)
        } else {
            Err(MessageError::Member(member))
        }
    }

    /// A count, and as many members in rising order with what belongs to each.
    fn members<T>(
        &mut self,
        mut each: impl FnMut(&mut Self) -> Result<T, MessageError>,
    ) -> Result<Vec<(u16, T)>, MessageError> {
        let count = u16::from_le_bytes(self.take()?);
        let mut found: Vec<(u16, T)> = Vec::with_capacity(usize::from(count).min(self.members));
        for _ in 0..count {
            let member = self.member()?;
            if found.last().is_some_and(|(before, _)| *before >= member) {
                return Err(MessageError::Member(member));
            }
            found.push((member, each(self)?));
        }
        Ok(found)
    }

    fn end(self) -> Result<(), MessageError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(MessageError::Length { found: self.bytes.len(), expected: 0 })
    }
}

fn head(kind: u8, cohort: &Cohort, from: u16) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(cohort.digest().as_bytes());
    out.extend_from_slice(&from.to_le_bytes());
    out
}

fn count(out: &mut Vec<u8>, list: usize) {
    out.extend_from_slice(&u16::try_from(list).unwrap_or(u16::MAX).to_le_bytes());
}

impl Advert {
    /// What is signed.
    pub(super) fn signed_bytes(&self, cohort: &Cohort) -> Vec<u8> {
        let mut out = head(1, cohort, self.from);
        out.extend_from_slice(&self.encryption);
        out.extend_from_slice(&self.masking);
        out.extend_from_slice(&self.seed_commitment);
        out
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self, cohort: &Cohort) -> Vec<u8> {
        let mut out = self.signed_bytes(cohort);
        out.extend_from_slice(&self.signature);
        out
    }

    /// Who says to have sent it.
    #[must_use]
    pub const fn from(&self) -> u16 {
        self.from
    }

    /// Reads one; its signature is checked where it is used.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(bytes: &[u8], cohort: &Cohort) -> Result<Self, MessageError> {
        let (mut r, from) = Reader::open(bytes, 1, cohort)?;
        let this = Self {
            from,
            encryption: r.take()?,
            masking: r.take()?,
            seed_commitment: r.take()?,
            signature: r.take()?,
        };
        r.end().map(|()| this)
    }
}

impl Envelope {
    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self, cohort: &Cohort) -> Vec<u8> {
        let mut out = head(2, cohort, self.from);
        out.extend_from_slice(&self.to.to_le_bytes());
        out.extend_from_slice(&self.sealed);
        out.extend_from_slice(self.commitments.as_flattened());
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(bytes: &[u8], cohort: &Cohort) -> Result<Self, MessageError> {
        let (mut r, from) = Reader::open(bytes, 2, cohort)?;
        let to = r.member()?;
        let this = Self { from, to, sealed: r.take()?, commitments: [r.take()?, r.take()?] };
        r.end().map(|()| this)
    }

    /// For whom it is.
    #[must_use]
    pub const fn to(&self) -> u16 {
        self.to
    }
}

impl Confirmation {
    /// What is signed.
    pub(super) fn signed_bytes(&self, cohort: &Cohort) -> Vec<u8> {
        let mut out = head(3, cohort, self.from);
        out.extend_from_slice(&self.survivors);
        out
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self, cohort: &Cohort) -> Vec<u8> {
        let mut out = self.signed_bytes(cohort);
        out.extend_from_slice(&self.signature);
        out
    }

    /// Who says to have sent it.
    #[must_use]
    pub const fn from(&self) -> u16 {
        self.from
    }

    /// Reads one; its signature is checked where it is used.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(bytes: &[u8], cohort: &Cohort) -> Result<Self, MessageError> {
        let (mut r, from) = Reader::open(bytes, 3, cohort)?;
        let this = Self { from, survivors: r.take()?, signature: r.take()? };
        r.end().map(|()| this)
    }
}

impl Reveal {
    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self, cohort: &Cohort) -> Vec<u8> {
        let mut out = head(4, cohort, self.from);
        count(&mut out, self.shares.len());
        for (about, share) in &self.shares {
            out.extend_from_slice(&about.to_le_bytes());
            out.extend_from_slice(share);
        }
        out
    }

    /// Who says to have sent it.
    #[must_use]
    pub const fn from(&self) -> u16 {
        self.from
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(bytes: &[u8], cohort: &Cohort) -> Result<Self, MessageError> {
        let (mut r, from) = Reader::open(bytes, 4, cohort)?;
        let shares = r.members(Reader::take)?;
        r.end().map(|()| Self { from, shares })
    }
}

/// The digest of a seed, which its owner is bound to by its advert.
pub(super) fn seed_commitment(cohort: &Digest, from: u16, seed: &[u8; 32]) -> [u8; 32] {
    use sha2::Digest as _;
    let mut hash = super::tagged("seed");
    hash.update(cohort.0);
    hash.update(from.to_le_bytes());
    hash.update(seed);
    hash.finalize().into()
}
