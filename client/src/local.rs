//! What a site does with its records before and between rounds: bounds, counts, local training.

use crate::{
    config::{Config, DatasetConfig},
    data::{self, Batch, ColumnBounds, DataError, Part, Told},
    guard::{GuardError, LocalBatch, ResidencyGuard},
    holdout::{self, HoldoutError},
    journal::Journal,
    ledger::{Charge, Ledger, LedgerError, Limit},
    noise::{NoiseSource, OpenDp},
    streams::{self, StreamError, Turn},
    train::{Chance, Outcome, Plan, TrainError, Trainer, stream::Stream},
};
use falaj_core::{
    dp::{
        NoiseError, Reservation, Unit,
        rdp::{AccountantError, Epsilon, RdpCurve},
    },
    evaluation::HeldOut,
    manifest::ManifestError,
    study::{Bounds, FeatureKind, Mechanism, Study, Weights},
};

/// Why a site does not take part.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Its own policy forbids it.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// Its records break the schema.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Its budget is spent, or cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The study's settings have no guarantee.
    #[error(transparent)]
    Accountant(#[from] AccountantError),
    /// Noise could not be drawn.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The study's model cannot exist.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A stream of noise could not be kept.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The secret by which records are held out cannot be used.
    #[error("the secret by which records are held out cannot be used: {0}")]
    Holdout(#[from] HoldoutError),
    /// The study says nothing of evaluation.
    #[error("the study has no section `evaluation`")]
    Unevaluated,
    /// The ledger remembers something that it did not write.
    #[error("a released value in the ledger cannot be read: restore it from a backup")]
    Remembered,
}

impl LocalError {
    /// The word that the coordinator is told; details about records stay here.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Guard(_) => "policy",
            Self::Data(_) => "data",
            Self::Ledger(LedgerError::Spent { .. }) => "epsilon_spent",
            Self::Train(_) | Self::Manifest(_) => "trainer",
            _ => "internal",
        }
    }

    /// What the coordinator is told: a sentence without anything about records.
    #[must_use]
    pub fn disclosed(&self) -> String {
        match self {
            Self::Guard(e) => e.to_string(),
            Self::Data(_) => "the site's records do not fit the study's schema".into(),
            Self::Ledger(e @ LedgerError::Spent { .. }) => e.to_string(),
            Self::Train(e) => e.to_string(),
            Self::Manifest(e) => e.to_string(),
            _ => "the site cannot train at present".into(),
        }
    }
}

/// What is wrong with a study's delta for so many records, if it protects them and is above one over their number.
#[must_use]
pub fn delta_too_large(study: &Study, records: usize) -> Option<String> {
    let delta = study.privacy.delta;
    #[expect(clippy::cast_precision_loss, reason = "compared, not counted")]
    let least = 1.0 / records.max(1) as f64;
    (study.unit() == Unit::Record && delta > least).then(|| {
        format!(
            "the study's delta of {delta:e} is above one over the number of records, {least:.1e}: it permits to publish one of them whole"
        )
    })
}

/// What the ledger remembers an adaptive clip norm as.
const CLIP_NORM: &str = "clip norm";

/// A reservation that can be given back as long as nothing was made with it, and the round's place in a stream of
/// correlated noise, for which it was made.
#[derive(Debug)]
pub struct Paid {
    reservation: Reservation,
    turn: Option<Turn>,
}

impl Paid {
    /// Its number in the ledger.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.reservation.id()
    }

    /// For sealing. From here on it counts as spent.
    #[must_use]
    pub fn spend(self) -> Reservation {
        self.reservation
    }

    /// Gives it back to the ledger: nothing was trained with it.
    ///
    /// # Errors
    /// When the ledger fails; it counts as spent then.
    pub async fn give_back(self, ledger: &Ledger) -> Result<(), LedgerError> {
        ledger.give_back(self.reservation).await
    }
}

/// Reserves what one round of a study costs, before a record is read.
///
/// # Errors
/// [`LocalError::Guard`] when the site's policy forbids it, [`LocalError::Ledger`] when the budget is spent.
pub async fn reserve_round(
    config: &Config,
    ledger: &Ledger,
    study: &Study,
    round: u32,
) -> Result<Paid, LocalError> {
    ResidencyGuard::new(config).permits(study)?;
    let name = &study.data.dataset;
    let dataset = config.dataset(name).ok_or_else(|| GuardError::Dataset(name.clone()))?;
    let turn = streams::turn(&config.state.dir, ledger, study).await?;
    pay((dataset, ledger, study), round, turn).await
}

/// Reserves what a round costs in its turn.
async fn pay(
    (dataset, ledger, study): (&DatasetConfig, &Ledger, &Study),
    round: u32,
    turn: Option<Turn>,
) -> Result<Paid, LocalError> {
    let cost = study.cost_of_round_after(turn.as_ref().map_or(0, Turn::steps))?;
    let reservation = reserve(dataset, ledger, study, &format!("round {round}"), &cost).await?;
    Ok(Paid { reservation, turn })
}

/// Reserves what one evaluation of a study costs, before a held-out record is read.
///
/// # Errors
/// [`LocalError::Guard`] when the site's policy forbids it, [`LocalError::Ledger`] when the budget is spent.
pub async fn reserve_evaluation(
    config: &Config,
    ledger: &Ledger,
    study: &Study,
    round: u32,
) -> Result<Reservation, LocalError> {
    ResidencyGuard::new(config).permits(study)?;
    let e = study.evaluation.as_ref().ok_or(LocalError::Unevaluated)?;
    let dataset = evaluated_on(config, study)?;
    let purpose = format!("evaluation of round {round}");
    Ok(reserve(dataset, ledger, study, &purpose, &e.noise.cost()?).await?)
}

/// The data set that a study's candidates are evaluated on, which pays for it.
fn evaluated_on<'a>(config: &'a Config, study: &Study) -> Result<&'a DatasetConfig, GuardError> {
    let name = study.evaluated_on();
    config.dataset(name).ok_or_else(|| GuardError::Dataset(name.to_owned()))
}

/// Records that were held out of training, and what an evaluation wants to know of each.
#[derive(Debug)]
pub struct Held {
    /// The records.
    pub records: LocalBatch,
    /// What each has in columns that the model need not see.
    pub told: Told,
}

/// Reads the records that are held out, or kept for evaluation, after the site's policy has permitted the study. Their inputs are
/// scaled as those are that are trained on.
///
/// # Errors
/// [`LocalError`].
pub async fn held_out(
    config: &Config,
    (ledger, journal): (&Ledger, &Journal),
    study: &Study,
    noise: &mut (dyn NoiseSource + Send),
) -> Result<Held, LocalError> {
    let guard = ResidencyGuard::new(config);
    guard.permits(study)?;
    let e = study.evaluation.as_ref().ok_or(LocalError::Unevaluated)?;
    let name = &study.data.dataset;
    let dataset = config.dataset(name).ok_or_else(|| GuardError::Dataset(name.clone()))?;
    let bounds = bounds(dataset, ledger, study, noise).await?;
    let from = evaluated_on(config, study)?;
    let key = holdout::key(&config.state.dir, journal).await?;
    if matches!(e.held_out, HeldOut::Part(_)) {
        holdout::remember(journal, from).await?;
    }
    let part = Part {
        key: &key,
        dataset: &from.name,
        identity: &from.identity,
        share: match e.held_out {
            HeldOut::Part(part) => part,
            HeldOut::Dataset(_) => 1.0,
        },
        held_out: true,
        attributes: &e.attributes,
        watched: &e.drift,
    };
    let (batch, told) = data::load_part(&from.path, &study.data, &bounds, Some(&part))?;
    Ok(Held { records: guard.admit(batch, study)?, told })
}

/// The records that a study trains on: all of them, or all that are not held out.
async fn trained_on(
    (config, journal): (&Config, &Journal),
    dataset: &DatasetConfig,
    study: &Study,
    bounds: &ColumnBounds,
) -> Result<Batch, LocalError> {
    let Some(HeldOut::Part(share)) = study.evaluation.as_ref().map(|e| &e.held_out) else {
        return Ok(data::load(&dataset.path, &study.data, bounds)?);
    };
    let key = holdout::key(&config.state.dir, journal).await?;
    holdout::remember(journal, dataset).await?;
    let part = Part {
        key: &key,
        dataset: &dataset.name,
        identity: &dataset.identity,
        share: *share,
        held_out: false,
        attributes: &[],
        watched: &[],
    };
    Ok(data::load_part(&dataset.path, &study.data, bounds, Some(&part))?.0)
}

/// A study at this site: its records, what was disclosed about them, and the ledger that pays.
pub struct Site<'a> {
    config: &'a Config,
    dataset: &'a DatasetConfig,
    ledger: &'a Ledger,
    study: &'a Study,
    records: LocalBatch,
    disclosed: u32,
}

/// The numeric bounds of a study's columns at this site; estimates are paid for once and remembered.
async fn bounds(
    dataset: &DatasetConfig,
    ledger: &Ledger,
    study: &Study,
    noise: &mut (dyn NoiseSource + Send),
) -> Result<ColumnBounds, LocalError> {
    let mut bounds = data::declared_bounds(&study.data);
    for feature in &study.data.features {
        let FeatureKind::Numeric { bounds: Bounds::Estimated { epsilon }, .. } = feature.kind
        else {
            continue;
        };
        let name = format!("bounds:{}", feature.name);
        let known = ledger.released(&dataset.name, &study.id, &name).await?;
        let pair = if let Some(text) = known {
            let (min, max) = text.split_once(' ').ok_or(LocalError::Remembered)?;
            let parse = |s: &str| s.parse::<f64>().map_err(|_| LocalError::Remembered);
            (parse(min)?, parse(max)?)
        } else {
            reserve(dataset, ledger, study, &name, &RdpCurve::pure(epsilon)?).await?;
            let pair = data::estimate_bounds(&dataset.path, &feature.name, epsilon, noise)?;
            let text = format!("{:?} {:?}", pair.0, pair.1);
            ledger.release(&dataset.name, &study.id, &name, &text).await?;
            pair
        };
        bounds.insert(feature.name.clone(), pair);
    }
    Ok(bounds)
}

async fn reserve(
    dataset: &DatasetConfig,
    ledger: &Ledger,
    study: &Study,
    purpose: &str,
    cost: &RdpCurve,
) -> Result<Reservation, LedgerError> {
    // A study without noise has no delta of its own; its infinite cost meets the data set's limit.
    let delta = if study.privacy.delta > 0.0 { study.privacy.delta } else { dataset.delta };
    ledger
        .reserve(&Charge {
            dataset: &dataset.name,
            study: &study.id,
            purpose,
            cost,
            dataset_limit: Limit { epsilon: dataset.epsilon_limit, delta: dataset.delta },
            study_limit: Limit { epsilon: study.privacy.epsilon_limit, delta },
        })
        .await
}

async fn epsilon_of(
    dataset: &DatasetConfig,
    ledger: &Ledger,
    study: &Study,
) -> Result<Epsilon, LocalError> {
    let spent = ledger.spent(&dataset.name, Some(&study.id)).await?;
    let delta = study.privacy.delta;
    Ok(spent.epsilon(if delta > 0.0 { delta } else { dataset.delta })?)
}

/// Epsilon that a study has cost a record so far: of its data set, or of the one that is kept for evaluation.
///
/// # Errors
/// When the ledger fails, or the site has no such data set.
pub async fn epsilon(
    config: &Config,
    ledger: &Ledger,
    study: &Study,
) -> Result<Epsilon, LocalError> {
    let name = &study.data.dataset;
    let dataset = config.dataset(name).ok_or_else(|| GuardError::Dataset(name.clone()))?;
    let trained = epsilon_of(dataset, ledger, study).await?;
    let kept = epsilon_of(evaluated_on(config, study)?, ledger, study).await?;
    Ok(if kept.value() > trained.value() { kept } else { trained })
}

impl<'a> Site<'a> {
    /// Reads the records, after the site's policy has permitted the study, and discloses what the study
    /// needs to know of them, with noise, once.
    ///
    /// # Errors
    /// [`LocalError`].
    pub async fn open(
        config: &'a Config,
        (ledger, journal): (&'a Ledger, &Journal),
        study: &'a Study,
        noise: &mut (dyn NoiseSource + Send),
    ) -> Result<Self, LocalError> {
        let guard = ResidencyGuard::new(config);
        guard.permits(study)?;
        let name = &study.data.dataset;
        let dataset = config.dataset(name).ok_or_else(|| GuardError::Dataset(name.clone()))?;
        let bounds = bounds(dataset, ledger, study, noise).await?;
        let records = trained_on((config, journal), dataset, study, &bounds).await?;
        let records = guard.admit(records, study)?;
        let disclosed = disclosed(dataset, ledger, study, records.batch(), noise).await?;
        // Of the disclosed number: what is logged may be read by others than those who may read the records.
        if let Some(why) = delta_too_large(study, disclosed as usize) {
            tracing::warn!(study = %study.id, "{why}");
        }
        Ok(Self { config, dataset, ledger, study, records, disclosed })
    }

    /// The number of records as disclosed.
    #[must_use]
    pub const fn disclosed(&self) -> u32 {
        self.disclosed
    }

    /// What the update counts for.
    #[must_use]
    pub fn weight(&self) -> u32 {
        match self.study.cohort.weights {
            Weights::Examples => self.disclosed,
            Weights::Uniform => 1,
        }
    }

    /// Epsilon that the study has cost a record so far, as [`epsilon`] has it.
    ///
    /// # Errors
    /// When the ledger fails.
    pub async fn epsilon(&self) -> Result<Epsilon, LocalError> {
        epsilon(self.config, self.ledger, self.study).await
    }

    /// The trainer and the plan for one round. An adaptive clip norm and a stream of correlated noise go on from where
    /// the last round left them; a stream that is about other records by now begins anew, and `paid` becomes what that
    /// costs.
    ///
    /// # Errors
    /// [`LocalError::Train`] when this agent has no trainer for the model; when the ledger fails.
    pub async fn plan(
        &self,
        round: u32,
        paid: &mut Option<Paid>,
    ) -> Result<(Box<dyn Trainer>, Plan), LocalError> {
        let others = |turn: &mut Turn| turn.is_about_others(self.study, self.records.batch());
        if let Some(old) = paid.take_if(|paid| paid.turn.as_mut().is_some_and(others)) {
            tracing::warn!(study = %self.study.id, "its records or settings have changed: a new stream of noise begins, at its own cost");
            let Paid { reservation, turn } = old;
            self.ledger.give_back(reservation).await?;
            let anew = turn.map(Turn::anew);
            *paid = Some(pay((self.dataset, self.ledger, self.study), round, anew).await?);
        }
        let stream = paid.as_ref().and_then(|paid| paid.turn.as_ref()).map(Turn::stream);
        let mut plan = Plan::of(self.study, self.disclosed).of_round(round, stream);
        if plan.adaptive.is_some() {
            let known = self.ledger.released(&self.dataset.name, &self.study.id, CLIP_NORM).await?;
            if let (Some(text), Some((clip_norm, _))) = (known, &mut plan.dp) {
                *clip_norm = text.parse().map_err(|_| LocalError::Remembered)?;
            }
        }
        Ok((crate::train::choose(&self.config.train, &plan.model)?, plan))
    }

    /// The records, for the trainer.
    #[must_use]
    pub fn into_records(self) -> LocalBatch {
        self.records
    }
}

/// Remembers, durably, where a round left an adaptive clip norm or a stream of correlated noise. Nothing of the round
/// may leave the site before that.
///
/// # Errors
/// When they cannot be kept.
pub async fn remember(
    config: &Config,
    ledger: &Ledger,
    study: &Study,
    paid: &mut Paid,
    (records, clip_norm, stream): (&LocalBatch, Option<f64>, Option<Stream>),
) -> Result<(), LocalError> {
    if let Some(norm) = clip_norm {
        ledger.release(&study.data.dataset, &study.id, CLIP_NORM, &format!("{norm:?}")).await?;
    }
    if let (Some(turn), Some(stream)) = (paid.turn.take(), stream) {
        let moved = (turn, stream);
        streams::keep(&config.state.dir, ledger, study, moved, records.batch()).await?;
    }
    Ok(())
}

/// The noised number of records; paid for once and remembered. Where nothing that leaves the site depends on
/// it, it is the number itself, and costs nothing.
async fn disclosed(
    dataset: &DatasetConfig,
    ledger: &Ledger,
    study: &Study,
    records: &Batch,
    noise: &mut (dyn NoiseSource + Send),
) -> Result<u32, LocalError> {
    if !study.discloses_records() {
        return Ok(u32::try_from(records.rows()).unwrap_or(u32::MAX));
    }
    let known = ledger.released(&dataset.name, &study.id, "records").await?;
    if let Some(text) = known {
        return text.parse().map_err(|_| LocalError::Remembered);
    }
    let epsilon = study.privacy.weight_epsilon;
    reserve(dataset, ledger, study, "number of records", &RdpCurve::pure(epsilon)?).await?;
    let count = data::noised_count(records.rows(), epsilon, noise)?;
    ledger.release(&dataset.name, &study.id, "records", &count.to_string()).await?;
    Ok(count)
}

/// How a site trains on its own, without a coordinator.
#[derive(Clone, Copy, Debug)]
pub struct Alone {
    /// Rounds; the study's own number when absent.
    pub rounds: Option<u32>,
    /// Without noise and without spending the ledger. The model must not leave the site.
    pub no_privacy: bool,
}

/// What came of it.
pub struct Trained {
    /// The model's parameters.
    pub params: Vec<f32>,
    /// Rounds that the budget allowed.
    pub rounds: u32,
    /// Epsilon that the study has cost; none without privacy.
    pub epsilon: Option<Epsilon>,
}

/// Trains a study at this site alone: the same model, trainer, privacy and rounds, and nobody else.
///
/// # Errors
/// [`LocalError`], unless the budget ends the training after at least one round.
pub async fn train_alone(
    config: &Config,
    (ledger, journal): (&Ledger, &Journal),
    study: &Study,
    first: Vec<f32>,
    how: Alone,
    mut chance: Chance,
    mut progress: impl FnMut(u32, u32),
) -> Result<Trained, LocalError> {
    let mut study = study.clone();
    if how.no_privacy {
        study.privacy.mechanism = Mechanism::None;
    }
    let planned = how.rounds.unwrap_or(study.rounds.count);
    let mut params = first;
    let (mut done, mut epsilon) = (0, None);
    if how.no_privacy {
        let dataset = config.dataset(&study.data.dataset);
        let dataset = dataset.ok_or_else(|| GuardError::Dataset(study.data.dataset.clone()))?;
        let bounds = bounds(dataset, ledger, &study, &mut OpenDp).await?;
        let batch = trained_on((config, journal), dataset, &study, &bounds).await?;
        let plan = Plan::of(&study, u32::try_from(batch.rows()).unwrap_or(u32::MAX));
        let trainer = crate::train::choose(&config.train, &plan.model)?;
        let records = LocalBatch::for_this_site_only(batch);
        while done < planned {
            let plan = plan.clone().of_round(done + 1, None);
            trainer.run(&records, &plan, &params, &mut chance)?.update.apply_locally(&mut params);
            done += 1;
            progress(done, planned);
        }
        return Ok(Trained { params, rounds: done, epsilon });
    }
    let site = Site::open(config, (ledger, journal), &study, &mut OpenDp).await?;
    while done < planned {
        let reservation = match reserve_round(config, ledger, &study, done + 1).await {
            Ok(reservation) => reservation,
            Err(LocalError::Ledger(LedgerError::Spent { .. })) if done > 0 => break,
            Err(e) => return Err(e),
        };
        let mut paid = Some(reservation);
        let (trainer, plan) = site.plan(done + 1, &mut paid).await?;
        let Outcome { update, clip_norm, stream } =
            trainer.run(&site.records, &plan, &params, &mut chance)?;
        update.apply_locally(&mut params);
        if let Some(mut paid) = paid {
            let left = (&site.records, clip_norm, stream);
            remember(config, ledger, &study, &mut paid, left).await?;
            ledger.commit(paid.id()).await?;
        }
        done += 1;
        epsilon = Some(site.epsilon().await?);
        progress(done, planned);
    }
    Ok(Trained { params, rounds: done, epsilon })
}
