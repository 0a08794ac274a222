//! How somebody who is connected stands: still good, lost, or cut off.

use falaj_proto::problem::Problem;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};
use tokio_util::sync::CancellationToken;

/// How somebody who is connected stands.
#[derive(Default)]
pub struct Standing {
    /// What was in force when it was checked last, and until when that holds.
    good: Mutex<(u64, i64)>,
    state: Mutex<State>,
    cut: CancellationToken,
    over: AtomicBool,
}

#[derive(Default)]
enum State {
    #[default]
    Good,
    /// It is being logged that they may be here no longer.
    Lost,
    /// They are cut off, and every request is answered with this.
    Cut(Problem),
}

impl Standing {
    pub(super) fn is_good(&self, generation: u64, now: i64) -> bool {
        let (checked, until) = *self.good.lock().unwrap_or_else(PoisonError::into_inner);
        checked == generation && now < until
    }

    pub(super) fn renew(&self, generation: u64, until: i64) {
        *self.good.lock().unwrap_or_else(PoisonError::into_inner) = (generation, until);
    }

    /// They may be here no longer. Whether that is new.
    pub(super) fn lose(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let new = matches!(*state, State::Good);
        if new {
            *state = State::Lost;
        }
        new
    }

    pub(super) fn is_lost(&self) -> bool {
        !matches!(*self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Good)
    }

    pub(super) fn cut(&self, problem: Problem) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Cut(problem);
        self.cut.cancel();
    }

    /// Done once they are cut off.
    #[must_use]
    pub const fn end(&self) -> &CancellationToken {
        &self.cut
    }

    /// Whether the connection is broken.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The connection is broken.
    pub(crate) fn over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// With what every request is answered, once they are cut off.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Cut(problem) => Some(problem.clone()),
            State::Good | State::Lost => None,
        }
    }
}
