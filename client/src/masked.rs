//! A site's part in masked rounds: what the coordinator asks for, stage by stage, and what is answered.
//!
//! One round per study is under way at most. Its secrets are in memory only: a site that restarts in the middle
//! of a round has lost them, declines that try, and the others go on without it.

use crate::local::Paid;
use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use falaj_certs::trust::TrustStore;
use falaj_core::{
    id::{Digest, SiteId},
    secagg::{
        Cohort, CohortError, Member, MessageError, Site,
        site::{Advertised, Confirmed, MaskedStage, Shared},
        wire::{Advert, Confirmation, Envelope},
    },
    sign::SignKey,
    study::{Mechanism, Study},
    task::TaskHeader,
    update::{PartialUpdate, SealedUpdate},
};
use rand_core::CryptoRng;
use std::sync::Arc;

/// Why a site takes no part, or no further part.
#[derive(Debug, thiserror::Error)]
pub enum MaskedError {
    /// The members are not those of the task, or not permitted.
    #[error("the cohort cannot be trusted: {0}")]
    Cohort(String),
    /// They cannot aggregate together.
    #[error(transparent)]
    Terms(#[from] CohortError),
    /// A message breaks the protocol.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The coordinator asks for what is not next.
    #[error("asked for `{0}` out of turn")]
    Turn(String),
    /// The secrets of this try were lost.
    #[error("this site restarted in the middle of the round")]
    Restarted,
}

/// How far a site is.
enum Stage {
    Advertised(Site<Advertised>),
    Shared(Site<Shared>),
    Masked(Site<MaskedStage>),
    Confirmed(Site<Confirmed>),
    Over,
}

/// A round under way.
pub struct MaskedRound {
    /// The task that began it.
    pub header: TaskHeader,
    /// The study.
    pub study: Study,
    /// What pays for it, until it is used.
    pub paid: Option<Paid>,
    cohort: Cohort,
    stage: Stage,
    /// The last answer, in case it was lost on its way.
    answered: Option<(String, Vec<Bytes>)>,
}

/// Who the members are, each checked against this site's own trust and the study.
fn members(
    study: &Study,
    certificates: &[Bytes],
    trust: &TrustStore,
) -> Result<Vec<Member>, MaskedError> {
    let wrong = |e: &dyn std::fmt::Display| MaskedError::Cohort(e.to_string());
    let member = |der: &Bytes| {
        let identity = trust.identify(&[der.as_ref().into()]).map_err(|e| wrong(&e))?;
        let site = SiteId::try_from(identity.spiffe).map_err(|e| wrong(&e))?;
        if !study.cohort.admits(&site) {
            return Err(wrong(&format!("the study does not admit {site}")));
        }
        let key = VerifyingKey::from_bytes(&identity.public_key).map_err(|e| wrong(&e))?;
        Ok(Member { site, key })
    };
    certificates.iter().map(member).collect()
}

/// The cohort of a task, as this site sees it itself.
///
/// # Errors
/// [`MaskedError`] when it is not the one that was signed, or nobody's privacy would be protected in it.
pub fn cohort(
    header: &TaskHeader,
    study: &Study,
    certificates: &[Bytes],
    trust: &TrustStore,
) -> Result<Cohort, MaskedError> {
    let wrong = |what: &str| MaskedError::Cohort(what.to_owned());
    let (attempt, digest) = header.masked.ok_or_else(|| wrong("the task names none"))?;
    let Mechanism::DistributedGaussian { colluders, .. } = study.privacy.mechanism else {
        return Err(wrong("the study has no masks"));
    };
    if certificates.len() > study.sites_max() as usize {
        return Err(wrong("it has more members than the study allows"));
    }
    let params = study.manifest().map_err(|e| wrong(&e.to_string()))?.params();
    let cohort = Cohort::new(
        (header.round.clone(), attempt),
        members(study, certificates, trust)?,
        (study.cohort.min_sites, colluders),
        study.encoding(),
        params,
    )?;
    if *cohort.digest() != digest {
        return Err(wrong("its members are not those that the task was signed for"));
    }
    Ok(cohort)
}

impl MaskedRound {
    /// Begins: makes keys and advertises them.
    ///
    /// # Errors
    /// [`MaskedError`] when this site is no member by its own key.
    pub fn begin(
        (header, study): (TaskHeader, Study),
        cohort: Cohort,
        signer: &Arc<dyn SignKey>,
        paid: Paid,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, MaskedError> {
        let index = cohort
            .index_of(&header.site)
            .ok_or_else(|| MaskedError::Cohort("this site is not in it".into()))?;
        let (site, advert) = Site::advertise(cohort.clone(), index, signer.clone(), rng)?;
        let answer = vec![advert.to_bytes(&cohort).into()];
        Ok(Self {
            header,
            study,
            paid: Some(paid),
            cohort,
            stage: Stage::Advertised(site),
            answered: Some(("keys".into(), answer)),
        })
    }

    /// Which cohort.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        self.cohort.digest()
    }

    /// How many members it has.
    #[must_use]
    pub fn members(&self) -> usize {
        self.cohort.members().len()
    }

    /// The last answer, if it was to this phase.
    #[must_use]
    pub fn again(&self, phase: &str) -> Option<Vec<Bytes>> {
        self.answered.as_ref().filter(|(to, _)| to == phase).map(|(_, answer)| answer.clone())
    }

    /// Answers what the coordinator asks for in one of the phases without an update. After an error the round is
    /// over for this site.
    ///
    /// # Errors
    /// [`MaskedError`].
    pub fn answer(
        &mut self,
        phase: &str,
        messages: &[Bytes],
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<Bytes>, MaskedError> {
        if let Some(answer) = self.again(phase) {
            return Ok(answer);
        }
        let cohort = &self.cohort;
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let answer: Vec<Bytes> = match (phase, stage) {
            ("shares", Stage::Advertised(site)) => {
                let parse = |m: &Bytes| Advert::parse(m, cohort);
                let adverts = messages.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
                let (site, envelopes) = site.share(&adverts, rng)?;
                self.stage = Stage::Shared(site);
                envelopes.iter().map(|e| e.to_bytes(cohort).into()).collect()
            }
            ("lists", Stage::Masked(site)) => {
                let [list] = messages else { return Err(MessageError::Kind.into()) };
                let (pairs, rest) = list.as_chunks::<2>();
                if !rest.is_empty() {
                    return Err(MessageError::Kind.into());
                }
                let survivors: Vec<u16> = pairs.iter().map(|p| u16::from_le_bytes(*p)).collect();
                let (site, confirmation) = site.confirm(&survivors)?;
                self.stage = Stage::Confirmed(site);
                vec![confirmation.to_bytes(cohort).into()]
            }
            ("reveals", Stage::Confirmed(site)) => {
                let parse = |m: &Bytes| Confirmation::parse(m, cohort);
                let confirmations = messages.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
                vec![site.reveal(&confirmations)?.to_bytes(cohort).into()]
            }
            (_, stage) => {
                // What was asked too early or too late may still be asked in its turn.
                self.stage = stage;
                return Err(MaskedError::Turn(phase.to_owned()));
            }
        };
        self.answered = Some((phase.to_owned(), answer.clone()));
        Ok(answer)
    }

    /// Whether an update is what comes next.
    #[must_use]
    pub const fn wants_update(&self) -> bool {
        matches!(self.stage, Stage::Shared(_))
    }

    /// Masks an update.
    ///
    /// # Errors
    /// [`MaskedError`]; the round is over for this site then.
    pub fn mask(
        &mut self,
        messages: &[Bytes],
        update: PartialUpdate,
    ) -> Result<SealedUpdate, MaskedError> {
        let Stage::Shared(site) = std::mem::replace(&mut self.stage, Stage::Over) else {
            return Err(MaskedError::Turn("update".into()));
        };
        let parse = |m: &Bytes| Envelope::parse(m, &self.cohort);
        let envelopes = messages.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let (site, sealed) = site.mask(&envelopes, update)?;
        self.stage = Stage::Masked(site);
        Ok(sealed)
    }
}
