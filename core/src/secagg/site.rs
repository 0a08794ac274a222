//! A site's side: five stages, each taken once.

use super::{
    Cohort, Secret, apply_mask, commitment, pack, pair_key, shamir, survivors_digest,
    wire::{Advert, Confirmation, Envelope, MessageError, Reveal, SEALED_SHARES, seed_commitment},
};
use crate::{
    note,
    sign::SignKey,
    update::{PartialUpdate, SealedUpdate},
};
use chacha20poly1305::{
    ChaCha20Poly1305,
    aead::{AeadInOut as _, KeyInit as _},
};
use rand_core::CryptoRng;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// What a site's signature on its keys says.
pub(super) const ADVERT_CONTEXT: &str = "falaj/secagg/advert/v1";
/// What a site's signature on the list of survivors says.
pub(super) const CONFIRM_CONTEXT: &str = "falaj/secagg/confirm/v1";

/// What every stage keeps.
struct Own {
    cohort: Cohort,
    index: u16,
    signer: Arc<dyn SignKey>,
    encryption: StaticSecret,
    masking: StaticSecret,
    seed: Zeroizing<[u8; 32]>,
}

/// Keys are advertised.
pub struct Advertised(());
/// Shares are sent; the neighbours' keys are known.
pub struct Shared {
    adverts: BTreeMap<u16, Advert>,
}
/// The masked update is sent; the neighbours' shares are held.
pub struct MaskedStage {
    held: BTreeMap<u16, [Zeroizing<[u8; 32]>; 2]>,
}
/// A list of survivors is confirmed.
pub struct Confirmed {
    held: BTreeMap<u16, [Zeroizing<[u8; 32]>; 2]>,
    survivors: Vec<u16>,
}

/// A site in one stage of a round. A stage consumes the one before, so that no site answers twice: it is
/// the second answer that would give its update away.
pub struct Site<Stage> {
    own: Own,
    stage: Stage,
}

impl Site<Advertised> {
    /// Makes keys for this round and advertises them. `rng` is the operating system's randomness, or a
    /// generator keyed by it.
    ///
    /// # Errors
    /// [`MessageError::Key`] when `signer` is not the key that the cohort knows the site by; [`MessageError::Unsigned`]
    /// when it cannot be used now.
    pub fn advertise(
        cohort: Cohort,
        index: u16,
        signer: impl SignKey + 'static,
        rng: &mut impl CryptoRng,
    ) -> Result<(Self, Advert), MessageError> {
        let known = cohort.members().get(usize::from(index)).ok_or(MessageError::Member(index))?;
        if known.key != signer.verifying_key() {
            return Err(MessageError::Key(index));
        }
        let mut fresh = || {
            let mut bytes = Zeroizing::new([0; 32]);
            rng.fill_bytes(&mut *bytes);
            bytes
        };
        let own = Own {
            index,
            signer: Arc::new(signer),
            encryption: StaticSecret::from(*fresh()),
            masking: StaticSecret::from(*fresh()),
            seed: fresh(),
            cohort,
        };
        let mut advert = Advert {
            from: index,
            encryption: PublicKey::from(&own.encryption).to_bytes(),
            masking: PublicKey::from(&own.masking).to_bytes(),
            seed_commitment: seed_commitment(own.cohort.digest(), index, &own.seed),
            signature: [0; 64],
        };
        let signed = advert.signed_bytes(&own.cohort);
        advert.signature = note::sign_context(&*own.signer, ADVERT_CONTEXT, &signed)
            .map_err(|_| MessageError::Unsigned)?;
        Ok((Self { own, stage: Advertised(()) }, advert))
    }

    /// Shares the secrets among the neighbours that advertised.
    ///
    /// # Errors
    /// [`MessageError`] when an advert is forged, or too few sites or neighbours advertised.
    pub fn share(
        self,
        adverts: &[Advert],
        rng: &mut impl CryptoRng,
    ) -> Result<(Site<Shared>, Vec<Envelope>), MessageError> {
        let Self { own, .. } = self;
        let cohort = &own.cohort;
        let mut known = Adverts::new();
        adverts.iter().try_for_each(|a| add_advert(&mut known, cohort, a))?;
        enough(known.len(), cohort.threshold())?;
        if !known.contains_key(&own.index) {
            return Err(MessageError::List);
        }
        let graph = cohort.graph();
        let neighbours = graph.neighbours(own.index);
        let holders: Vec<u16> =
            neighbours.iter().copied().filter(|v| known.contains_key(v)).collect();
        enough(holders.len(), graph.shares())?;
        let points: Vec<u8> = holders.iter().map(|&h| point(h)).collect();
        let mut dealt = Vec::with_capacity(2);
        for secret in [own.masking.to_bytes(), *own.seed] {
            let secret = Zeroizing::new(secret);
            let needed = graph.shares().saturating_sub(1) as usize;
            let mut coefficients = Zeroizing::new(vec![[0; 32]; needed]);
            coefficients.iter_mut().for_each(|c| rng.fill_bytes(c));
            dealt.push(shamir::deal(&secret, &points, &coefficients));
        }
        let mut envelopes = Vec::with_capacity(holders.len());
        for ((&to, masking), seed) in holders.iter().zip(&dealt[0]).zip(&dealt[1]) {
            let commit = |which, share| commitment(cohort.digest(), own.index, to, which, share);
            let commitments = [commit(Secret::MaskingKey, masking), commit(Secret::Seed, seed)];
            let mut plain = Zeroizing::new([0; 64]);
            plain[..32].copy_from_slice(&**masking);
            plain[32..].copy_from_slice(&**seed);
            let key =
                pair_key("envelope", cohort.digest(), &own.encryption, &known[&to].encryption)
                    .ok_or(MessageError::Key(to))?;
            let tag = ChaCha20Poly1305::new((&*key).into())
                .encrypt_inout_detached(
                    &nonce(own.index),
                    &associated(own.index, to),
                    (&mut plain[..]).into(),
                )
                .map_err(|_| MessageError::Key(to))?;
            let mut sealed = [0; SEALED_SHARES];
            sealed[..64].copy_from_slice(&*plain);
            sealed[64..].copy_from_slice(&tag);
            envelopes.push(Envelope { from: own.index, to, sealed, commitments });
        }
        Ok((Site { own, stage: Shared { adverts: known } }, envelopes))
    }
}

/// The authenticated nonce of an envelope: two sites share one key, so the direction tells them apart.
fn nonce(from: u16) -> chacha20poly1305::Nonce {
    let mut nonce = [0; 12];
    nonce[..2].copy_from_slice(&from.to_le_bytes());
    nonce.into()
}

fn associated(from: u16, to: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (from.to_le_bytes(), to.to_le_bytes());
    [a, b, c, d]
}

/// The point at which a member's share lies.
pub(super) fn point(member: u16) -> u8 {
    u8::try_from(member + 1).unwrap_or(u8::MAX)
}

pub(super) fn enough(found: usize, needed: u32) -> Result<(), MessageError> {
    if found >= needed as usize { Ok(()) } else { Err(MessageError::TooFew { found, needed }) }
}

/// Adverts by sender.
pub(super) type Adverts = BTreeMap<u16, Advert>;

/// Adds an advert: signed by its member, the first of it, and with keys that are nobody else's.
pub(super) fn add_advert(
    known: &mut Adverts,
    cohort: &Cohort,
    advert: &Advert,
) -> Result<(), MessageError> {
    let from = advert.from;
    let member = cohort.members().get(usize::from(from)).ok_or(MessageError::Member(from))?;
    let signed = advert.signed_bytes(cohort);
    if !note::verify_context(&member.key, ADVERT_CONTEXT, &signed, &advert.signature) {
        return Err(MessageError::Signature(from));
    }
    if known.contains_key(&from) {
        return Err(MessageError::Twice(from));
    }
    let keys = |a: &Advert| [a.encryption, a.masking];
    let [encryption, masking] = keys(advert);
    let taken = |key: &[u8; 32]| known.values().any(|a| keys(a).contains(key));
    if encryption == masking || taken(&encryption) || taken(&masking) {
        return Err(MessageError::Key(from));
    }
    known.insert(from, advert.clone());
    Ok(())
}

impl Site<Shared> {
    /// Opens the neighbours' shares and masks the update. Who of the neighbours sent an envelope is in the
    /// masks; all the others are not.
    ///
    /// # Errors
    /// [`MessageError`] when an envelope is forged, too few came, or the update is another cohort's.
    pub fn mask(
        self,
        envelopes: &[Envelope],
        update: PartialUpdate,
    ) -> Result<(Site<MaskedStage>, SealedUpdate), MessageError> {
        let Self { own, stage } = self;
        let cohort = &own.cohort;
        if update.encoding != cohort.encoding || update.values.len() != cohort.params {
            return Err(MessageError::Update);
        }
        let neighbours = cohort.graph().neighbours(own.index);
        let mut held = BTreeMap::new();
        for envelope in envelopes {
            let from = envelope.from;
            let Some(advert) = stage.adverts.get(&from) else {
                return Err(MessageError::Member(from));
            };
            if envelope.to != own.index || neighbours.binary_search(&from).is_err() {
                return Err(MessageError::Member(from));
            }
            let shares = open(&own, advert, envelope)?;
            if held.insert(from, shares).is_some() {
                return Err(MessageError::Twice(from));
            }
        }
        enough(held.len(), cohort.graph().shares())?;
        let mut values = update.values;
        apply_mask(&mut values, &own.seed, cohort.encoding, true);
        for from in held.keys() {
            let masking = &stage.adverts[from].masking;
            let key = pair_key("mask", cohort.digest(), &own.masking, masking)
                .ok_or(MessageError::Key(*from))?;
            apply_mask(&mut values, &key, cohort.encoding, own.index < *from);
        }
        let sealed = SealedUpdate {
            payload: pack(&values, cohort.encoding),
            encoding: cohort.encoding,
            params: cohort.params,
            saturated: update.saturated,
            mechanism: "distributed_gaussian",
            reservation: update.reservation,
            cohort: Some(*cohort.digest()),
        };
        Ok((Site { own, stage: MaskedStage { held } }, sealed))
    }
}

/// A neighbour's shares: decrypted, and those that it is bound to.
fn open(
    own: &Own,
    advert: &Advert,
    envelope: &Envelope,
) -> Result<[Zeroizing<[u8; 32]>; 2], MessageError> {
    let (digest, from) = (own.cohort.digest(), envelope.from);
    let key = pair_key("envelope", digest, &own.encryption, &advert.encryption)
        .ok_or(MessageError::Key(from))?;
    let mut plain = Zeroizing::new([0; 64]);
    plain.copy_from_slice(&envelope.sealed[..64]);
    let tag: [u8; 16] = std::array::from_fn(|i| envelope.sealed[64 + i]);
    ChaCha20Poly1305::new((&*key).into())
        .decrypt_inout_detached(
            &nonce(from),
            &associated(from, own.index),
            (&mut plain[..]).into(),
            &tag.into(),
        )
        .map_err(|_| MessageError::Shares(from))?;
    let mut shares = [Zeroizing::new([0; 32]), Zeroizing::new([0; 32])];
    shares[0].copy_from_slice(&plain[..32]);
    shares[1].copy_from_slice(&plain[32..]);
    for (which, (share, expected)) in
        [Secret::MaskingKey, Secret::Seed].into_iter().zip(shares.iter().zip(&envelope.commitments))
    {
        if commitment(digest, from, own.index, which, share) != *expected {
            return Err(MessageError::Shares(from));
        }
    }
    Ok(shares)
}

impl Site<MaskedStage> {
    /// Confirms the list of sites whose masked updates arrived, as the coordinator shows it.
    ///
    /// # Errors
    /// [`MessageError`] when the list is out of order, leaves this site out, or is below the threshold.
    pub fn confirm(
        self,
        survivors: &[u16],
    ) -> Result<(Site<Confirmed>, Confirmation), MessageError> {
        let Self { own, stage } = self;
        let cohort = &own.cohort;
        for pair in survivors.windows(2) {
            if pair[0] >= pair[1] {
                return Err(MessageError::Member(pair[1]));
            }
        }
        if let Some(last) = survivors.last().filter(|l| usize::from(**l) >= cohort.members().len())
        {
            return Err(MessageError::Member(*last));
        }
        enough(survivors.len(), cohort.threshold())?;
        if survivors.binary_search(&own.index).is_err() {
            return Err(MessageError::List);
        }
        let mut confirmation = Confirmation {
            from: own.index,
            survivors: survivors_digest(cohort.digest(), survivors),
            signature: [0; 64],
        };
        let signed = confirmation.signed_bytes(cohort);
        confirmation.signature = note::sign_context(&*own.signer, CONFIRM_CONTEXT, &signed)
            .map_err(|_| MessageError::Unsigned)?;
        let stage = Confirmed { held: stage.held, survivors: survivors.to_vec() };
        Ok((Site { own, stage }, confirmation))
    }
}

impl Site<Confirmed> {
    /// Reveals one share for each neighbour, once the threshold of sites has confirmed the same list.
    ///
    /// # Errors
    /// [`MessageError`] when a confirmation is forged, of another list, or too few came.
    pub fn reveal(self, confirmations: &[Confirmation]) -> Result<Reveal, MessageError> {
        let Self { own, stage } = self;
        let mut signers = BTreeSet::new();
        for c in confirmations {
            add_confirmation(&mut signers, &own.cohort, &stage.survivors, c)?;
        }
        enough(signers.len(), own.cohort.threshold())?;
        let shares = stage
            .held
            .iter()
            .map(|(about, [masking, seed])| {
                let survived = stage.survivors.binary_search(about).is_ok();
                (*about, if survived { **seed } else { **masking })
            })
            .collect();
        Ok(Reveal { from: own.index, shares })
    }
}

/// Adds a confirmation: of this list, signed by a member that is on it, and the first of that member.
pub(super) fn add_confirmation(
    signers: &mut BTreeSet<u16>,
    cohort: &Cohort,
    survivors: &[u16],
    confirmation: &Confirmation,
) -> Result<(), MessageError> {
    let from = confirmation.from;
    let member = cohort.members().get(usize::from(from)).ok_or(MessageError::Member(from))?;
    let digest = survivors_digest(cohort.digest(), survivors);
    if confirmation.survivors != digest || survivors.binary_search(&from).is_err() {
        return Err(MessageError::List);
    }
    let signed = confirmation.signed_bytes(cohort);
    if !note::verify_context(&member.key, CONFIRM_CONTEXT, &signed, &confirmation.signature) {
        return Err(MessageError::Signature(from));
    }
    if signers.insert(from) { Ok(()) } else { Err(MessageError::Twice(from)) }
}
