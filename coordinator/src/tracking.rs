//! Tells an MLflow server of studies as they happen: a run for each, with its parameters, and its figures round by round.
//!
//! The log is the queue. What MLflow lacks is what the log says from some entry on, and how far MLflow has been told stands in the
//! run itself, so that nothing is kept here and nothing is lost: not while the server is away, nor when the coordinator ends in the
//! middle of it. Rounds never wait for it. Names of studies and sites, figures and counts go out; nothing of people.

mod mlflow;
mod study;
mod words;

pub use mlflow::Mlflow;

use crate::{clock, engine::Engine, store::StoreError};
use falaj_core::{audit::Entry, id::StudyId};
use reqwest::StatusCode;
use std::{collections::BTreeMap, time::Duration};
use study::{Standing, TOLD, Teller};
use tokio_util::sync::CancellationToken;

/// Whatever has come since is told together, so often at most.
const CADENCE: Duration = Duration::from_secs(1);
/// After a failure it is tried again this much later, then twice as much, and so on.
const PAUSE: Duration = Duration::from_secs(1);
/// It is tried again this much later at most.
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// After so many failures in one go it pauses.
const FAILURES_MAX: u32 = 8;
/// Entries that are read at once.
const PAGE: u32 = 500;

/// Why MLflow was not told.
#[derive(Debug, thiserror::Error)]
pub enum TrackingError {
    /// It gave no answer, or not in time.
    #[error("MLflow cannot be reached, or does not answer in time")]
    Away(#[source] reqwest::Error),
    /// It answered with an error.
    #[error("MLflow answered `{of}` with HTTP status {status}: {said}")]
    Refused {
        /// What was asked.
        of: &'static str,
        /// HTTP's word.
        status: StatusCode,
        /// MLflow's own, if it has one.
        code: String,
        /// What it says.
        said: String,
    },
    /// Its answer is none.
    #[error("MLflow's answer to `{0}` cannot be read: {1}")]
    Garbled(&'static str, String),
    /// What is needed lies in its bin.
    #[error("{0} was deleted in MLflow: restore it there, and it is gone on with")]
    Deleted(String),
    /// What is to be told cannot be read.
    #[error("the store cannot be read")]
    Store(#[from] StoreError),
    /// Nor can this.
    #[error("{0}")]
    Evaluation(String),
}

impl TrackingError {
    /// Whether it may be about one study alone, so that others are worth trying.
    fn is_of_one(&self) -> bool {
        match self {
            Self::Refused { status, .. } => ![
                StatusCode::UNAUTHORIZED,
                StatusCode::FORBIDDEN,
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
            ]
            .contains(status),
            Self::Garbled(..) | Self::Deleted(_) | Self::Evaluation(_) => true,
            Self::Away(_) | Self::Store(_) => false,
        }
    }
}

/// Tells MLflow.
pub struct Tracking {
    engine: Engine,
    mlflow: Mlflow,
    federation: String,
}

/// What is still to be told.
#[derive(Default)]
struct Due {
    /// Entries below this one were looked at.
    seen: u64,
    /// Studies that have something new, and the first entry that may be it.
    studies: BTreeMap<StudyId, u64>,
    /// How far MLflow knows those that run.
    standing: BTreeMap<StudyId, Standing>,
    /// The last one of which it could not be told.
    failed: Option<StudyId>,
}

impl Due {
    /// The studies to tell of, after the one that failed last: whatever is wrong with it, the others have their turn.
    fn in_turn(&self) -> Vec<StudyId> {
        let is_after = |id: &&StudyId| self.failed.as_ref().is_none_or(|failed| *id > failed);
        let after = self.studies.keys().filter(is_after);
        after.chain(self.studies.keys().filter(|id| !is_after(id))).cloned().collect()
    }
}

impl Tracking {
    /// Tells this server of an engine's studies; `federation` is its trust domain.
    #[must_use]
    pub const fn new(engine: Engine, mlflow: Mlflow, federation: String) -> Self {
        Self { engine, mlflow, federation }
    }

    /// Tells MLflow of everything until shutdown, what it has missed first.
    pub async fn run(self, shutdown: CancellationToken) {
        let parts = self.engine.parts();
        let mut heads = parts.writer.heads();
        let mut due = Due { seen: parts.writer.head().0, ..Due::default() };
        due.studies = self.engine.studies().iter().map(|s| (s.meta.study.id.clone(), 0)).collect();
        let mut failures = 0_u32;
        loop {
            let is_told = tokio::select! {
                () = shutdown.cancelled() => return,
                is_told = self.pass(&mut due) => is_told,
            };
            let pause = if is_told { CADENCE } else { pause(failures, clock::nonce()[0]) };
            failures = if is_told { 0 } else { failures.saturating_add(1) };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            if due.studies.is_empty() && due.seen >= parts.writer.head().0 {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    grown = heads.changed() => if grown.is_err() { return },
                }
            }
        }
    }

    /// Tells everything that is there to be told. Gives whether nothing is left.
    async fn pass(&self, due: &mut Due) -> bool {
        if let Err(e) = self.look(due).await {
            let error = format!("{:#}", anyhow::Error::from(e));
            tracing::error!(error, "the log cannot be followed for MLflow");
            return false;
        }
        self.behind(due);
        let teller =
            Teller { engine: &self.engine, mlflow: &self.mlflow, federation: &self.federation };
        let mut failed = 0;
        for id in due.in_turn() {
            // One that was submitted a moment ago is taken up in the next.
            let Ok(study) = self.engine.study(&id) else { continue };
            let runs = study.view().state == "running";
            let standing = due.standing.remove(&id);
            match teller.tell(&study, standing, due.seen).await {
                Ok(standing) => {
                    due.studies.remove(&id);
                    if runs && !standing.is_deleted() {
                        due.standing.insert(id, standing);
                    }
                    self.behind(due);
                }
                Err(e) => {
                    failed += 1;
                    let (is_of_one, behind) = (e.is_of_one(), self.behind(due));
                    let error = format!("{:#}", anyhow::Error::from(e));
                    tracing::error!(study = %id, behind, error, "MLflow is not told of a study");
                    due.failed = Some(id);
                    if failed >= FAILURES_MAX || !is_of_one {
                        return false;
                    }
                }
            }
        }
        failed == 0
    }

    /// Finds the studies of which the log says something new.
    async fn look(&self, due: &mut Due) -> Result<(), TrackingError> {
        let parts = self.engine.parts();
        let head = parts.writer.head().0;
        while due.seen < head {
            let page = parts.store.entries(due.seen, head, PAGE, None).await?;
            let Some((last, ..)) = page.last() else { break };
            let seen = last + 1;
            for (index, bytes, _) in page {
                let entry = Entry::parse(&bytes)
                    .map_err(|e| StoreError::Corrupt(format!("an entry that is none ({e})")))?;
                if TOLD.contains(&entry.kind)
                    && let Some(study) = entry.body().find("study")
                {
                    due.studies.entry(study).or_insert(index);
                }
            }
            due.seen = seen;
        }
        Ok(())
    }

    /// How many entries there are since the first that MLflow has not been told of.
    fn behind(&self, due: &Due) -> u64 {
        let parts = self.engine.parts();
        let first = due.studies.values().min();
        let behind = first.map_or(0, |first| parts.writer.head().0.saturating_sub(*first));
        parts.metrics.tracking_behind(behind);
        behind
    }
}

/// How long is waited after so many failures before; `chance` keeps coordinators that failed together apart.
fn pause(failures: u32, chance: u8) -> Duration {
    let most = PAUSE.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX);
    most / 2 + most / 2 * u32::from(chance) / u32::from(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_again_later_and_later_and_not_at_the_same_time_as_others() {
        assert_eq!(pause(0, 255), Duration::from_secs(1));
        assert_eq!(pause(0, 0), Duration::from_millis(500));
        assert_eq!(pause(3, 255), Duration::from_secs(8));
        for failures in [6, 7, 100, u32::MAX] {
            assert_eq!(pause(failures, 255), PAUSE_MAX);
            assert_eq!(pause(failures, 0), PAUSE_MAX / 2);
        }
    }

    #[test]
    fn what_is_wrong_with_one_study_does_not_keep_others_back() {
        let refused = |status| TrackingError::Refused {
            of: "runs/log-batch",
            status,
            code: String::new(),
            said: String::new(),
        };
        for (status, is_of_one) in [
            (StatusCode::BAD_REQUEST, true),
            (StatusCode::NOT_FOUND, true),
            (StatusCode::INTERNAL_SERVER_ERROR, true),
            (StatusCode::UNAUTHORIZED, false),
            (StatusCode::FORBIDDEN, false),
            (StatusCode::TOO_MANY_REQUESTS, false),
            (StatusCode::BAD_GATEWAY, false),
        ] {
            assert_eq!(refused(status).is_of_one(), is_of_one, "{status}");
        }
        let id = |name: &str| name.parse::<StudyId>().expect("a name");
        let studies = ["a", "b", "c"].map(|name| (id(name), 0)).into();
        let mut due = Due { studies, ..Due::default() };
        assert_eq!(due.in_turn(), ["a", "b", "c"].map(id));
        due.failed = Some(id("a"));
        assert_eq!(due.in_turn(), ["b", "c", "a"].map(id));
        due.studies.remove(&id("a"));
        due.failed = Some(id("c"));
        assert_eq!(due.in_turn(), ["b", "c"].map(id));
    }
}
