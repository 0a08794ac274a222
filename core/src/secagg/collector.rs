//! The coordinator's side: collects each stage's messages, names who breaks them, and unmasks the sum.
//!
//! Its memory is one sum of the model's size, whatever the number of sites, and some hundred bytes for each
//! pair of neighbours.

use super::{
    Cohort, Secret, Sum, add_packed, apply_mask, commitment, pair_key, ring, shamir,
    site::{Adverts, add_advert, add_confirmation, enough, point},
    wire::{Advert, Confirmation, Envelope, MessageError, Reveal, seed_commitment},
};
use std::collections::{BTreeMap, BTreeSet};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Commitments to the shares of the masking key and the seed, by dealer and holder.
type Commitments = BTreeMap<(u16, u16), [[u8; 32]; 2]>;

/// Collects a round of secure aggregation.
pub struct Collector {
    cohort: Cohort,
    adverts: Adverts,
    commitments: Commitments,
    /// Those who dealt shares to all their neighbours.
    dealers: BTreeSet<u16>,
    sum: Vec<u32>,
    /// The neighbours whose masks are in each masked update.
    masked: BTreeMap<u16, Vec<u16>>,
    confirmed: BTreeSet<u16>,
    revealed: BTreeMap<u16, BTreeMap<u16, [u8; 32]>>,
}

impl Collector {
    /// For a cohort.
    #[must_use]
    pub fn new(cohort: Cohort) -> Self {
        let sum = vec![0; cohort.params];
        Self {
            cohort,
            adverts: BTreeMap::new(),
            commitments: BTreeMap::new(),
            dealers: BTreeSet::new(),
            sum,
            masked: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            revealed: BTreeMap::new(),
        }
    }

    /// Who aggregates.
    #[must_use]
    pub const fn cohort(&self) -> &Cohort {
        &self.cohort
    }

    /// Stage 1: takes an advert. Once the stage is over, all of them are shown to every site that sent one.
    ///
    /// # Errors
    /// [`MessageError`]; the sender that it names is to be left out.
    pub fn advertised(&mut self, advert: &Advert) -> Result<(), MessageError> {
        add_advert(&mut self.adverts, &self.cohort, advert)
    }

    /// Stage 2: takes what one site deals to its neighbours.
    ///
    /// # Errors
    /// [`MessageError`]; nothing of the site is taken then.
    pub fn dealt(&mut self, from: u16, envelopes: &[Envelope]) -> Result<(), MessageError> {
        enough(self.adverts.len(), self.cohort.threshold())?;
        let neighbours = self.cohort.graph().neighbours(from);
        let expected: Vec<u16> =
            neighbours.iter().copied().filter(|v| self.adverts.contains_key(v)).collect();
        let to: Vec<u16> = envelopes.iter().map(|e| e.to).collect();
        if !self.adverts.contains_key(&from) || envelopes.iter().any(|e| e.from != from) {
            return Err(MessageError::Member(from));
        }
        if to != expected {
            return Err(MessageError::Shares(from));
        }
        if !self.dealers.insert(from) {
            return Err(MessageError::Twice(from));
        }
        self.commitments.extend(envelopes.iter().map(|e| ((from, e.to), e.commitments)));
        Ok(())
    }

    /// Stage 3: takes a masked update into the sum.
    ///
    /// # Errors
    /// [`MessageError`]; nothing of it is in the sum then.
    pub fn masked(&mut self, from: u16, payload: &[u8]) -> Result<(), MessageError> {
        // Every site is shown the same dealers, so the masks that are in are known.
        let neighbours = self.cohort.graph().neighbours(from);
        let partners = neighbours.iter().copied().filter(|v| self.dealers.contains(v)).collect();
        if !self.dealers.contains(&from) {
            return Err(MessageError::Member(from));
        }
        if self.masked.contains_key(&from) {
            return Err(MessageError::Twice(from));
        }
        let expected = self.sum.len() * self.cohort.encoding.bytes_per_value();
        if payload.len() != expected {
            return Err(MessageError::Length { found: payload.len(), expected });
        }
        // Bits beyond the ring's are looked for in a pass of their own: what is added cannot be taken back.
        let mut probe = vec![0; 4_096];
        let width = self.cohort.encoding.bytes_per_value();
        if !payload.chunks(4_096 * width).all(|c| add_packed(&mut probe, c, self.cohort.encoding)) {
            return Err(MessageError::Values(from));
        }
        add_packed(&mut self.sum, payload, self.cohort.encoding);
        self.masked.insert(from, partners);
        Ok(())
    }

    /// Those whose masked updates arrived, to be confirmed.
    #[must_use]
    pub fn survivors(&self) -> Vec<u16> {
        self.masked.keys().copied().collect()
    }

    /// Stage 4: takes a confirmation. Once the stage is over, all of them are shown to every site that sent one.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn confirmed(&mut self, confirmation: &Confirmation) -> Result<(), MessageError> {
        let survivors = self.survivors();
        add_confirmation(&mut self.confirmed, &self.cohort, &survivors, confirmation)
    }

    /// Stage 5: takes the shares that one site reveals.
    ///
    /// # Errors
    /// [`MessageError`]; a site that reveals a share which was never dealt to it is named.
    pub fn reveal(&mut self, reveal: &Reveal) -> Result<(), MessageError> {
        let from = reveal.from;
        enough(self.confirmed.len(), self.cohort.threshold())?;
        let Some(held) = self.masked.get(&from) else {
            return Err(MessageError::Member(from));
        };
        if self.revealed.contains_key(&from) {
            return Err(MessageError::Twice(from));
        }
        if !reveal.shares.iter().map(|(about, _)| about).eq(held) {
            return Err(MessageError::Reveals(from));
        }
        for (about, share) in &reveal.shares {
            let survived = self.masked.contains_key(about);
            let which = if survived { Secret::Seed } else { Secret::MaskingKey };
            let dealt = self.commitments.get(&(*about, from)).map(|c| c[usize::from(survived)]);
            let own = commitment(self.cohort.digest(), *about, from, which, share);
            if dealt != Some(own) {
                return Err(MessageError::Reveals(from));
            }
        }
        self.revealed.insert(from, reveal.shares.iter().copied().collect());
        Ok(())
    }

    /// The sum, once enough shares are there.
    ///
    /// # Errors
    /// [`MessageError::TooFew`] when they are not; [`MessageError::Dealer`] names a site whose shares do not
    /// give what its advert is bound to.
    pub fn sum(mut self) -> Result<Sum, MessageError> {
        let survivors = self.survivors();
        let needed = self.cohort.threshold();
        if survivors.len() < needed as usize {
            return Err(MessageError::TooFew { found: survivors.len(), needed });
        }
        let (digest, encoding) = (*self.cohort.digest(), self.cohort.encoding);
        for &dealer in &self.dealers {
            let secret = self.secret_of(dealer)?;
            if self.masked.contains_key(&dealer) {
                let bound = &self.adverts[&dealer].seed_commitment;
                if seed_commitment(&digest, dealer, &secret) != *bound {
                    return Err(MessageError::Dealer(dealer));
                }
                apply_mask(&mut self.sum, &secret, encoding, false);
                continue;
            }
            let masking = StaticSecret::from(*secret);
            if PublicKey::from(&masking).to_bytes() != self.adverts[&dealer].masking {
                return Err(MessageError::Dealer(dealer));
            }
            // Each surviving neighbour's half of the pair is in the sum, and the dropped one's is not.
            for &other in self.cohort.graph().neighbours(dealer) {
                if self.masked.contains_key(&other) {
                    let key = pair_key("mask", &digest, &masking, &self.adverts[&other].masking)
                        .ok_or(MessageError::Key(other))?;
                    apply_mask(&mut self.sum, &key, encoding, dealer < other);
                }
            }
        }
        let bits = u32::from(encoding.bits());
        let centred = |v: &u32| (ring(*v, encoding) << (32 - bits)).cast_signed() >> (32 - bits);
        Ok(Sum { values: self.sum.iter().map(centred).collect(), sites: survivors })
    }

    /// The secret that was revealed of a dealer.
    fn secret_of(&self, dealer: u16) -> Result<Zeroizing<[u8; 32]>, MessageError> {
        let needed = self.cohort.graph().shares();
        let shares: Vec<(u8, [u8; 32])> = self
            .revealed
            .iter()
            .filter_map(|(holder, shares)| Some((point(*holder), *shares.get(&dealer)?)))
            .take(needed as usize)
            .collect();
        if shares.len() < needed as usize {
            return Err(MessageError::TooFew { found: shares.len(), needed });
        }
        Ok(shamir::combine(&shares))
    }
}
