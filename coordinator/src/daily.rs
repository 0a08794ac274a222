//! What is to be done once a day: looked at when the coordinator starts and when a day begins in UTC, and tried again
//! when it failed.

use falaj_core::time::Timestamp;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After a failure it is tried again this much later, then twice as much, and so on.
const PAUSE: Duration = Duration::from_secs(10);
/// It is tried again this much later at most, and so often is looked whether a day has begun.
const PAUSE_MAX: Duration = Duration::from_hours(1);
/// Failures of one day, at most: with these pauses, until the day is over.
const FAILURES_MAX: u32 = 32;
/// A day in milliseconds.
const DAY_MS: i64 = 86_400_000;

/// Does `work` until shutdown, by the clock `now`. It is told the time, and how long it will be until the next try should this
/// one fail; it gives whether nothing is left to be done today.
pub(crate) async fn daily<W: Future<Output = bool>>(
    now: impl Fn() -> Timestamp,
    mut work: impl FnMut(Timestamp, Duration) -> W,
    shutdown: CancellationToken,
) {
    let (mut day, mut failures) = (day_of(now()), 0);
    loop {
        let at = now();
        if day != day_of(at) {
            (day, failures) = (day_of(at), 0);
        }
        let mut pause = until_tomorrow(at);
        if failures < FAILURES_MAX {
            let again = PAUSE.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX);
            let done = tokio::select! {
                () = shutdown.cancelled() => return,
                done = work(at, again) => done,
            };
            if !done {
                failures += 1;
                pause = again;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The number of a day in UTC.
pub(crate) const fn day_of(time: Timestamp) -> i64 {
    time.as_millis().div_euclid(DAY_MS)
}

/// When to look whether a day has begun: then, or earlier, because clocks are set.
fn until_tomorrow(now: Timestamp) -> Duration {
    let left = DAY_MS - now.as_millis().rem_euclid(DAY_MS);
    Duration::from_millis(left.unsigned_abs()).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, timeout};

    /// A clock that begins at this many milliseconds of 1970 and goes as tokio's does.
    fn clock(start_ms: i64) -> impl Fn() -> Timestamp {
        let begun = Instant::now();
        move || {
            let passed = u64::try_from(begun.elapsed().as_millis()).expect("short");
            Timestamp::from_millis(start_ms).plus_ms(passed)
        }
    }

    /// When work was done in the first `span`, in milliseconds of 1970, if it never succeeds, or always.
    async fn tries(now: impl Fn() -> Timestamp, done: bool, span: Duration) -> Vec<i64> {
        let mut tries = Vec::new();
        let work = |at: Timestamp, _| {
            tries.push(at.as_millis());
            std::future::ready(done)
        };
        let ran = timeout(span, daily(now, work, CancellationToken::new())).await;
        assert!(ran.is_err(), "it ended by itself");
        tries
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_tried_again_later_and_later_until_the_day_is_over() {
        let tries = tries(clock(DAY_MS), false, Duration::from_hours(25)).await;
        let pauses: Vec<i64> = tries.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000).collect();
        assert_eq!(pauses[..10], [10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 3_600]);
        let next_day = tries.iter().position(|at| *at >= 2 * DAY_MS).expect("a second day");
        assert!(pauses[9..next_day].iter().all(|pause| *pause == 3_600), "{pauses:?}");
        assert_eq!(pauses[next_day..][..2], [10, 20], "a new day begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_is_looked_at_again_each_hour_and_when_a_day_begins() {
        let minute = 60_000;
        let tries = tries(clock(2 * DAY_MS - 90 * minute), true, Duration::from_hours(2)).await;
        let after: Vec<i64> = tries.iter().map(|at| (at - 2 * DAY_MS) / minute).collect();
        assert_eq!(after, [-90, -30, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_stands_still_does_not_make_a_day_endless() {
        let still = || Timestamp::from_millis(DAY_MS);
        let tries = tries(still, false, Duration::from_hours(24 * 30)).await;
        assert_eq!(tries.len(), 32);
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_ends_a_try_and_a_pause() {
        let shutdown = CancellationToken::new();
        let ending = shutdown.clone();
        let stuck = |_, _| {
            ending.cancel();
            std::future::pending()
        };
        daily(clock(0), stuck, shutdown).await;
        let shutdown = CancellationToken::new();
        let ending = shutdown.clone();
        let failing = |_, _| {
            ending.cancel();
            std::future::ready(false)
        };
        daily(clock(0), failing, shutdown).await;
    }
}
