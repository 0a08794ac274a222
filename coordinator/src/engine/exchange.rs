//! A masked round's messages: checked as they come, shown to those whom they concern, made again from the store.

use crate::store::{Store, row::ExchangeRow};
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use falaj_certs::identity::Identity;
use falaj_core::{
    id::{Digest, SiteId},
    round::{AnyRound, Phase},
    secagg::{
        Cohort, Collector, Member, MessageError, Sum,
        wire::{Advert, Confirmation, Envelope, Reveal},
    },
    study::{Mechanism, Study},
};
use std::collections::BTreeMap;

/// The name under which the certificates of a masked round's members are stored.
pub(super) const MEMBER: &str = "member";
/// Messages in one answer at most: one for each other member.
pub const MESSAGES_MAX: usize = falaj_core::secagg::MEMBERS_MAX;

/// One try of a masked round.
pub(super) struct Exchange {
    key: (u32, u32),
    collector: Collector,
    certificates: Vec<Bytes>,
    adverts: Vec<Bytes>,
    /// By addressee.
    envelopes: BTreeMap<u16, Vec<Bytes>>,
    confirmations: Vec<Bytes>,
}

/// Messages as they are stored: each after its length.
pub(super) fn pack(messages: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::new();
    for m in messages {
        out.extend_from_slice(&(m.len() as u64).to_le_bytes());
        out.extend_from_slice(m);
    }
    out
}

pub(super) fn unpack(bytes: &[u8]) -> Option<Vec<Bytes>> {
    let (mut rest, mut out) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<8>()?;
        let (message, after) =
            after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        out.push(Bytes::copy_from_slice(message));
        rest = after;
    }
    Some(out)
}

impl Exchange {
    /// What was stored of the round's try, read again. Masked updates are not in it yet.
    pub(super) async fn load(
        store: &Store,
        study: &Study,
        round: &AnyRound,
    ) -> anyhow::Result<Self> {
        let Mechanism::DistributedGaussian { colluders, .. } = study.privacy.mechanism else {
            anyhow::bail!("the study is not masked");
        };
        let spec = round.spec();
        let rows = store.exchanges(round.id(), spec.attempt).await?;
        let (members, answers): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|r| r.phase == MEMBER);
        let certificates: BTreeMap<SiteId, Vec<u8>> =
            members.into_iter().map(|r| (r.site, r.messages)).collect();
        let members = spec.members.iter().map(|site| {
            let der = certificates.get(site).context("a member without a certificate")?;
            let identity = Identity::parse(&der.as_slice().into())?;
            let key = VerifyingKey::from_bytes(&identity.public_key)?;
            anyhow::Ok(Member { site: site.clone(), key })
        });
        let members: Vec<Member> = members.collect::<anyhow::Result<_>>()?;
        let terms = (study.cohort.min_sites, colluders);
        let params = study.manifest()?.params();
        let attempt = (round.id().clone(), spec.attempt);
        let cohort = Cohort::new(attempt, members, terms, study.encoding(), params)?;
        let certificates = cohort
            .members()
            .iter()
            .filter_map(|m| certificates.get(&m.site))
            .map(|der| Bytes::copy_from_slice(der))
            .collect();
        let mut this = Self {
            key: (round.id().number, spec.attempt),
            collector: Collector::new(cohort),
            certificates,
            adverts: Vec::new(),
            envelopes: BTreeMap::new(),
            confirmations: Vec::new(),
        };
        // Only the first two phases stand before the masked updates; the others are taken after them.
        for phase in [Phase::Keys, Phase::Shares] {
            this.take_stored(&answers, phase)?;
        }
        Ok(this)
    }

    /// Takes in what was stored of a phase.
    fn take_stored(&mut self, rows: &[ExchangeRow], phase: Phase) -> anyhow::Result<()> {
        for row in rows.iter().filter(|r| r.phase == phase.as_str()) {
            let messages = unpack(&row.messages).context("stored messages cannot be read")?;
            self.take(phase, &row.site, &messages)?;
        }
        Ok(())
    }

    /// Takes in what was stored of the phases after the masked updates.
    pub(super) async fn take_rest(&mut self, store: &Store) -> anyhow::Result<()> {
        let round = self.cohort().round().clone();
        let rows = store.exchanges(&round, self.key.1).await?;
        for phase in [Phase::Lists, Phase::Reveals] {
            self.take_stored(&rows, phase)?;
        }
        Ok(())
    }

    /// Whether it is this round's try.
    pub(super) fn is_of(&self, round: &AnyRound) -> bool {
        self.key == (round.id().number, round.spec().attempt)
    }

    pub(super) const fn cohort(&self) -> &Cohort {
        self.collector.cohort()
    }

    pub(super) fn digest(&self) -> Digest {
        *self.cohort().digest()
    }

    pub(super) fn certificates(&self) -> Vec<Bytes> {
        self.certificates.clone()
    }

    /// Checks what a site sent in a phase, and takes it in.
    ///
    /// # Errors
    /// [`MessageError`]; nothing of it is taken then.
    pub(super) fn take(
        &mut self,
        phase: Phase,
        site: &SiteId,
        messages: &[Bytes],
    ) -> Result<(), MessageError> {
        let own = self.cohort().index_of(site).ok_or(MessageError::Member(u16::MAX))?;
        let sender = |from: u16| if from == own { Ok(()) } else { Err(MessageError::Member(from)) };
        let one = || match messages {
            [message] => Ok(message),
            _ => Err(MessageError::Kind),
        };
        match phase {
            Phase::Keys => {
                let advert = Advert::parse(one()?, self.cohort())?;
                sender(advert.from())?;
                self.collector.advertised(&advert)?;
                self.adverts.push(one()?.clone());
            }
            Phase::Shares => {
                let parse = |m: &Bytes| Envelope::parse(m, self.cohort());
                let envelopes = messages.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
                self.collector.dealt(own, &envelopes)?;
                for (envelope, bytes) in envelopes.iter().zip(messages) {
                    self.envelopes.entry(envelope.to()).or_default().push(bytes.clone());
                }
            }
            Phase::Lists => {
                let confirmation = Confirmation::parse(one()?, self.cohort())?;
                sender(confirmation.from())?;
                self.collector.confirmed(&confirmation)?;
                self.confirmations.push(one()?.clone());
            }
            Phase::Reveals => {
                let reveal = Reveal::parse(one()?, self.cohort())?;
                sender(reveal.from())?;
                self.collector.reveal(&reveal)?;
            }
            // These are no secrets of the masked sum's.
            Phase::Evaluation => return Err(MessageError::Kind),
        }
        Ok(())
    }

    /// Whether a site's masked update is in the sum.
    pub(super) fn has_masked(&self, site: &SiteId) -> bool {
        let index = self.cohort().index_of(site);
        index.is_some_and(|i| self.collector.survivors().contains(&i))
    }

    /// Takes in a masked update.
    pub(super) fn masked(&mut self, site: &SiteId, payload: &[u8]) -> Result<(), MessageError> {
        let index = self.cohort().index_of(site).ok_or(MessageError::Member(u16::MAX))?;
        self.collector.masked(index, payload)
    }

    /// What a site is asked for in a round's stage, and with what in hand: the phase's name and the others'
    /// messages.
    pub(super) fn question(
        &self,
        round: &AnyRound,
        site: &SiteId,
    ) -> Option<(&'static str, Vec<Bytes>)> {
        let own = self.cohort().index_of(site)?;
        Some(match round {
            AnyRound::Exchanging(r) => match r.stage.phase {
                Phase::Keys | Phase::Evaluation => return None,
                Phase::Shares => (Phase::Shares.as_str(), self.adverts.clone()),
                Phase::Lists => {
                    let survivors = self.collector.survivors();
                    let list = survivors.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>();
                    (Phase::Lists.as_str(), vec![list.into()])
                }
                Phase::Reveals => (Phase::Reveals.as_str(), self.confirmations.clone()),
            },
            AnyRound::Collecting(_) => {
                ("update", self.envelopes.get(&own).cloned().unwrap_or_default())
            }
            _ => return None,
        })
    }

    /// The sum of the updates that arrived, if it is one that honest sites can have made.
    pub(super) fn unmask(self, study: &Study) -> anyhow::Result<Sum> {
        let (params, bits) = (self.cohort().params() as u64, study.sealing.bits);
        let members = u32::try_from(self.cohort().members().len())?;
        let noise = study.distributed().context("the study is not masked")??;
        let sum = self.collector.sum()?;
        let sites = u32::try_from(sum.sites.len())?;
        ensure!(
            noise.is_plausible(&sum.values, sites, noise.room(members, params, bits)),
            "the sum is longer than updates within the agreed bound can make it: a site sent something else"
        );
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_messages_come_back_as_they_were_and_broken_ones_do_not() {
        let messages: Vec<Bytes> =
            vec![Bytes::from_static(b"one"), Bytes::new(), b"two"[..].into()];
        let packed = pack(&messages);
        assert_eq!(unpack(&packed), Some(messages));
        assert_eq!(unpack(&packed[..packed.len() - 1]), None);
        assert_eq!(unpack(&[]), Some(Vec::new()));
    }
}
