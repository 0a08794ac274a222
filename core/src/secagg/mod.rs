//! Secure aggregation: the coordinator learns the sum of the sites' sealed updates and nothing else of them.
//!
//! Pairwise masks that cancel in the sum, with a self-mask and secret shares so that sites may drop out
//! (Bonawitz et al. 2017, "Practical secure aggregation", figure 4, the variant against an active server),
//! among neighbours of a sparse graph in large cohorts (Bell et al. 2020, "Secure single-server
//! aggregation with (poly)logarithmic overhead", section 3). It works on the integers of sealed updates,
//! modulo `2^bits`, so the masked sum is the plain sum bit for bit.
//!
//! # The five stages
//! Each site walks [`Site`] from stage to stage, each of which can be taken only once; the coordinator
//! collects on a [`Collector`].
//!
//! 1. **Advertise** two X25519 keys for this round, signed with the key of the site's certificate.
//! 2. **Share** the masking key and the seed of the self-mask among the neighbours, each share encrypted
//!    for its holder and bound by a commitment that the coordinator keeps.
//! 3. **Mask** the sealed update and send it.
//! 4. **Confirm**, signed, which sites' masked updates arrived.
//! 5. **Reveal**, after seeing that at least the threshold of sites confirmed the same list: for a site on
//!    the list its share of the seed, for one that is not its share of the masking key; never both.
//!
//! # What holds, against whom
//! `n` members, threshold `t`, at most `c` of them colluding with a coordinator that may deviate in any way,
//! `2 t > n + c`, honest certificates: the coordinator learns at most the sum over one list of at least `t`
//! sites, `t - c` of them honest. Two lists would each need `t` signatures, of which at least `t - c` from
//! honest sites, and there are only `n - c` of those, each of which signs once: `2 (t - c) > n - c`.
//! In sparse graphs (from [`SPARSE_FROM`] members on) the neighbourhoods must also be good; [`graph`] bounds
//! the chance that one is not by 2^-40, for members that the coordinator did not choose by trying.
//!
//! What does not hold: a colluding or faulty site can send any masked vector, and nobody can see its norm;
//! its own sealing attests it. A wrong share, key or confirmation is detected and its sender named.

pub mod collector;
pub mod graph;
mod shamir;
pub mod site;
pub mod wire;

use crate::{
    id::{Digest, RoundId, SiteId},
    update::Encoding,
};
use chacha20::{
    ChaCha20,
    cipher::{KeyIvInit as _, StreamCipher as _},
};
pub use collector::Collector;
use ed25519_dalek::VerifyingKey;
pub use graph::Graph;
use sha2::{Digest as _, Sha256};
pub use site::Site;
use std::fmt;
pub use wire::MessageError;
use zeroize::{Zeroize as _, Zeroizing};

/// The fewest members of a cohort.
pub const MEMBERS_MIN: usize = 3;
/// The most members of a cohort: shares are points of a field of 256 elements.
pub const MEMBERS_MAX: usize = 200;
/// Cohorts of more members than this use a sparse graph.
pub const SPARSE_FROM: usize = 32;

/// A member of a cohort: a site, and the key of its certificate, which the caller has verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The site.
    pub site: SiteId,
    /// The key that signs for it.
    pub key: VerifyingKey,
}

/// Why sites cannot aggregate securely together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CohortError {
    /// Too few or too many.
    #[error("{0} members: secure aggregation takes {MEMBERS_MIN} to {MEMBERS_MAX}")]
    Members(usize),
    /// A site, or a key, is there twice.
    #[error("`{0}` is there twice, or its key is another member's")]
    Twice(SiteId),
    /// The threshold does not protect against a coordinator that shows different lists.
    #[error(
        "a threshold of {threshold} among {members} members with {colluders} colluders: twice the threshold must be more than members and colluders together, and at most all of them ({least} to {members})"
    )]
    Threshold {
        /// As asked.
        threshold: u32,
        /// How many members.
        members: usize,
        /// Colluders that are tolerated.
        colluders: u32,
        /// The least threshold that would do.
        least: u32,
    },
    /// There is nothing to add.
    #[error("an update without parameters")]
    Empty,
}

/// Who aggregates together in one round, and on what terms. All of it enters every key and signature.
#[derive(Clone, Debug)]
pub struct Cohort {
    round: RoundId,
    attempt: u32,
    members: Vec<Member>,
    threshold: u32,
    colluders: u32,
    encoding: Encoding,
    params: usize,
    graph: Graph,
    digest: Digest,
}

impl Cohort {
    /// A cohort of these members, in any order, whose updates have `params` values in `encoding`.
    ///
    /// `threshold` is the number of sites without which there is no sum, `colluders` the number of
    /// members that may work with the coordinator. Another `attempt` at the same round is another cohort:
    /// what sites signed in the one is worth nothing in the other.
    ///
    /// # Errors
    /// [`CohortError`].
    pub fn new(
        (round, attempt): (RoundId, u32),
        mut members: Vec<Member>,
        (threshold, colluders): (u32, u32),
        encoding: Encoding,
        params: usize,
    ) -> Result<Self, CohortError> {
        let n = members.len();
        if !(MEMBERS_MIN..=MEMBERS_MAX).contains(&n) {
            return Err(CohortError::Members(n));
        }
        members.sort_by(|a, b| a.site.cmp(&b.site));
        for (i, member) in members.iter().enumerate() {
            if members[..i].iter().any(|m| m.site == member.site || m.key == member.key) {
                return Err(CohortError::Twice(member.site.clone()));
            }
        }
        let count = u32::try_from(n).unwrap_or(u32::MAX);
        let least = count.saturating_add(colluders) / 2 + 1;
        if threshold < least || threshold > count || colluders + 2 > threshold {
            return Err(CohortError::Threshold { threshold, members: n, colluders, least });
        }
        if params == 0 {
            return Err(CohortError::Empty);
        }
        let mut hash = tagged("cohort");
        hash.update(round.to_string().as_bytes());
        let terms = [attempt, threshold, colluders].map(u64::from);
        for number in terms.into_iter().chain([params as u64]) {
            hash.update(number.to_le_bytes());
        }
        hash.update([encoding.bits()]);
        hash.update(encoding.step().to_bits().to_le_bytes());
        for member in &members {
            let site = member.site.to_string();
            hash.update((site.len() as u64).to_le_bytes());
            hash.update(site.as_bytes());
            hash.update(member.key.as_bytes());
        }
        let digest = Digest(hash.finalize().into());
        let graph = Graph::new(&digest, n, threshold, colluders);
        Ok(Self { round, attempt, members, threshold, colluders, encoding, params, graph, digest })
    }

    /// The members, in the order by which messages number them.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The number of a site.
    #[must_use]
    pub fn index_of(&self, site: &SiteId) -> Option<u16> {
        let at = self.members.binary_search_by(|m| m.site.cmp(site)).ok()?;
        u16::try_from(at).ok()
    }

    /// The round.
    #[must_use]
    pub const fn round(&self) -> &RoundId {
        &self.round
    }

    /// Which try of the round.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Sites without which there is no sum.
    #[must_use]
    pub const fn threshold(&self) -> u32 {
        self.threshold
    }

    /// Members that may work with the coordinator.
    #[must_use]
    pub const fn colluders(&self) -> u32 {
        self.colluders
    }

    /// Values of one update.
    #[must_use]
    pub const fn params(&self) -> usize {
        self.params
    }

    /// What the values are.
    #[must_use]
    pub const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Who shares with whom.
    #[must_use]
    pub const fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Binds every message to this cohort and round.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// A hash for one purpose of this protocol.
fn tagged(purpose: &str) -> Sha256 {
    Sha256::new_with_prefix(format!("falaj/secagg/{purpose}/v1\0"))
}

/// Adds (or takes away) the mask that a seed stands for, modulo 2^32; the sum's low bits are the ring's.
///
/// A seed belongs to one pair or site in one round, so one nonce will do.
fn apply_mask(values: &mut [u32], seed: &[u8; 32], encoding: Encoding, add: bool) {
    let mut cipher = ChaCha20::new(seed.into(), &[0; 12].into());
    let mut buffer = Zeroizing::new([0_u8; 8_192]);
    let narrow = encoding.bits() <= 16;
    let per_buffer = if narrow { buffer.len() / 2 } else { buffer.len() / 4 };
    for part in values.chunks_mut(per_buffer) {
        buffer.zeroize();
        cipher.apply_keystream(&mut *buffer);
        let apply = |v: &mut u32, mask: u32| {
            *v = if add { v.wrapping_add(mask) } else { v.wrapping_sub(mask) };
        };
        if narrow {
            let words = buffer.as_chunks::<2>().0;
            part.iter_mut().zip(words).for_each(|(v, w)| apply(v, u16::from_le_bytes(*w).into()));
        } else {
            let words = buffer.as_chunks::<4>().0;
            part.iter_mut().zip(words).for_each(|(v, w)| apply(v, u32::from_le_bytes(*w)));
        }
    }
}

/// The ring's bits of a number.
const fn ring(value: u32, encoding: Encoding) -> u32 {
    value & (u32::MAX >> (32 - encoding.bits()))
}

/// Ring elements as they travel.
fn pack(values: &[u32], encoding: Encoding) -> Vec<u8> {
    let width = encoding.bytes_per_value();
    let mut out = Vec::with_capacity(values.len() * width);
    for v in values {
        out.extend_from_slice(&ring(*v, encoding).to_le_bytes()[..width]);
    }
    out
}

/// Ring elements that travelled, added to `sum`; false if one has bits beyond the ring's.
fn add_packed(sum: &mut [u32], bytes: &[u8], encoding: Encoding) -> bool {
    let width = encoding.bytes_per_value();
    let mut beyond = 0;
    for (s, chunk) in sum.iter_mut().zip(bytes.chunks_exact(width)) {
        let mut wide = [0; 4];
        wide[..width].copy_from_slice(chunk);
        let value = u32::from_le_bytes(wide);
        beyond |= value ^ ring(value, encoding);
        *s = s.wrapping_add(value);
    }
    beyond == 0
}

/// Two secrets that a site shares: its masking key, or the seed of its self-mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Secret {
    /// The X25519 key that pairwise masks come from: revealed for a site that dropped out.
    MaskingKey,
    /// The seed of the self-mask: revealed for a site whose masked update arrived.
    Seed,
}

/// A share's commitment: shares are uniform, so the hash gives nothing away.
fn commitment(
    cohort: &Digest,
    dealer: u16,
    holder: u16,
    which: Secret,
    share: &[u8; 32],
) -> [u8; 32] {
    let mut hash = tagged("share");
    hash.update(cohort.0);
    hash.update(dealer.to_le_bytes());
    hash.update(holder.to_le_bytes());
    hash.update([u8::from(which == Secret::Seed)]);
    hash.update(share);
    hash.finalize().into()
}

/// What two sites share, for one purpose: from their X25519 keys, bound to the cohort and both keys.
fn pair_key(
    purpose: &str,
    cohort: &Digest,
    own: &x25519_dalek::StaticSecret,
    other: &[u8; 32],
) -> Option<Zeroizing<[u8; 32]>> {
    let shared = own.diffie_hellman(&(*other).into());
    // A key of low order would make the result known to everybody.
    if !shared.was_contributory() {
        return None;
    }
    let mine = x25519_dalek::PublicKey::from(own).to_bytes();
    let (low, high) = if mine < *other { (&mine, other) } else { (other, &mine) };
    let mut hash = tagged(purpose);
    hash.update(cohort.0);
    hash.update(low);
    hash.update(high);
    hash.update(shared.as_bytes());
    Some(Zeroizing::new(hash.finalize().into()))
}

/// The list of those whose masked updates arrived, as it is signed.
fn survivors_digest(cohort: &Digest, survivors: &[u16]) -> [u8; 32] {
    let mut hash = tagged("survivors");
    hash.update(cohort.0);
    for s in survivors {
        hash.update(s.to_le_bytes());
    }
    hash.finalize().into()
}

/// A sum of sealed updates.
#[derive(Clone, PartialEq, Eq)]
pub struct Sum {
    /// The sum of each value, centred around zero.
    pub values: Vec<i32>,
    /// The numbers of the sites that are in it.
    pub sites: Vec<u16>,
}

impl fmt::Debug for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sum({} values of {} sites)", self.values.len(), self.sites.len())
    }
}
