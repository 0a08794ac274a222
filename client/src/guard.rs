//! The residency guard: the only way from records to what a trainer may see.

use crate::{
    config::Config,
    data::{self, Batch},
};
use falaj_core::study::Study;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Records that this site's policy admits to a study. Only [`ResidencyGuard::admit`] makes one for a
/// study; a trainer takes nothing else.
#[derive(Debug)]
pub struct LocalBatch(Batch);

impl LocalBatch {
    /// The records.
    #[must_use]
    pub const fn batch(&self) -> &Batch {
        &self.0
    }

    /// For training that no study asked for and whose model stays here. No update can leave without a
    /// reservation in the ledger, which such training has not.
    #[must_use]
    pub const fn for_this_site_only(batch: Batch) -> Self {
        Self(batch)
    }
}

/// Why records stay where they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// The study is not on the site's list.
    #[error(
        "this site's policy does not permit study `{0}`: add it to `policy.studies` if a steward agrees"
    )]
    Study(String),
    /// The mechanism is not permitted.
    #[error("this site's policy does not permit mechanism `{0}`: it permits {1}")]
    Mechanism(String, String),
    /// The site offers no such data set.
    #[error("this site offers no data set `{0}`")]
    Dataset(String),
    /// Records of one data set are in the other, too.
    #[error(
        "data sets `{0}` and `{1}` have a file in common, and the study keeps the second for evaluation: bind it to records that are not trained on"
    )]
    InCommon(String, String),
}

/// The files of a data set, wherever links to them lie; none where they cannot be listed, and nothing can be read.
fn real_files(path: &Path) -> BTreeSet<PathBuf> {
    let files = data::files(path).unwrap_or_default();
    files.into_iter().map(|file| fs::canonicalize(&file).unwrap_or(file)).collect()
}

/// Asks the site's own policy.
#[derive(Debug)]
pub struct ResidencyGuard<'a> {
    config: &'a Config,
}

impl<'a> ResidencyGuard<'a> {
    /// A guard under a site's configuration.
    #[must_use]
    pub const fn new(config: &'a Config) -> Self {
        Self { config }
    }

    /// Whether the site's policy permits the study at all.
    ///
    /// # Errors
    /// [`GuardError`], which says what is not permitted.
    pub fn permits(&self, study: &Study) -> Result<(), GuardError> {
        let policy = &self.config.policy;
        if !policy.studies.iter().any(|s| s == "*" || s == study.id.as_str()) {
            return Err(GuardError::Study(study.id.to_string()));
        }
        let mechanism = study.privacy.mechanism.as_str();
        if !policy.mechanisms.iter().any(|m| m == mechanism) {
            let permitted = policy.mechanisms.join(", ");
            return Err(GuardError::Mechanism(mechanism.to_owned(), permitted));
        }
        let (trained, kept) = (&study.data.dataset, study.evaluated_on());
        let find = |name: &str| {
            self.config.dataset(name).ok_or_else(|| GuardError::Dataset(name.to_owned()))
        };
        let (first, second) = (find(trained)?, find(kept)?);
        if kept != trained && !real_files(&first.path).is_disjoint(&real_files(&second.path)) {
            return Err(GuardError::InCommon(trained.clone(), kept.to_owned()));
        }
        Ok(())
    }

    /// Admits records to a study.
    ///
    /// # Errors
    /// As [`Self::permits`].
    pub fn admit(&self, batch: Batch, study: &Study) -> Result<LocalBatch, GuardError> {
        self.permits(study)?;
        Ok(LocalBatch(batch))
    }
}
