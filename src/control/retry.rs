//! How often, how long and how far apart a call is tried: the one place that decides it.
//!
//! Exponential back-off with full jitter: each pause is random between nothing and a
//! ceiling that doubles up to a cap, so that a fleet that powers on at once spreads out.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// The longest wish of a server (`Retry-After`) that is granted.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Pauses between attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// Pauses of at most `base`, twice that, four times that ... and never more than `cap`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self {
            base,
            cap,
            attempt: 0,
        }
    }

    /// The next pause. A server's own wish is a floor, to which the jitter is added.
    pub fn next(&mut self, wish: Option<Duration>) -> Duration {
        self.next_at(wish, rand::random_range(0.0..=1.0))
    }

    /// The next pause, `unit` (0 to 1) of the way up to its ceiling.
    fn next_at(&mut self, wish: Option<Duration>, unit: f64) -> Duration {
        let ceiling = self
            .base
            .saturating_mul(2_u32.saturating_pow(self.attempt))
            .min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        wish.unwrap_or_default().min(LONGEST_RETRY_AFTER) + ceiling.mul_f64(unit.clamp(0.0, 1.0))
    }

    /// Starts again at `base`, after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// The bounds of one call, all attempts together.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Ceiling of the first pause.
    pub base: Duration,
    /// Ceiling of every pause.
    pub cap: Duration,
    /// Deadline of one attempt.
    pub attempt: Duration,
    /// Deadline of the whole call. No attempt begins after it.
    pub budget: Duration,
}

/// What an error means for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The same call will fail again: report it.
    GiveUp,
    /// It may succeed later; the server may have said when (`Retry-After`).
    Retry(Option<Duration>),
}

/// Runs `attempt` until it succeeds, fails for good, or the budget is used up; then the last
/// error is returned. `attempt` is given its own deadline and has to keep it.
///
/// # Errors
/// The last attempt's error.
pub async fn run<T, E, F, Fut>(
    policy: Policy,
    what: &str,
    verdict: impl Fn(&E) -> Verdict,
    mut attempt: F,
) -> Result<T, E>
where
    E: fmt::Display,
    F: FnMut(Duration) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + policy.budget;
    // An attempt with next to no time would only hide the last real error behind its own.
    let least = policy.attempt.min(policy.budget) / 10;
    let mut backoff = Backoff::new(policy.base, policy.cap);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match attempt(left.min(policy.attempt)).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let Verdict::Retry(wish) = verdict(&error) else {
            return Err(error);
        };
        let pause = backoff.next(wish);
        if Instant::now() + pause + least >= deadline {
            return Err(error);
        }
        warn!("{what}: {error}; trying again in {pause:.1?}");
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_cap() {
        let mut backoff = Backoff::new(SECOND, 10 * SECOND);
        let ceilings: Vec<u64> = (0..6)
            .map(|_| backoff.next_at(None, 1.0).as_secs())
            .collect();
        assert_eq!(ceilings, [1, 2, 4, 8, 10, 10]);
        backoff.reset();
        assert_eq!(backoff.next_at(None, 1.0), SECOND);
        assert_eq!(backoff.next_at(None, 0.5), SECOND);
        assert_eq!(backoff.next_at(None, 0.0), Duration::ZERO);
    }

    #[test]
    fn the_hundredth_pause_does_not_overflow() {
        let mut backoff = Backoff::new(SECOND, 10 * SECOND);
        let last = (0..100).map(|_| backoff.next_at(None, 1.0)).last();
        assert_eq!(last, Some(10 * SECOND));
    }

    #[test]
    fn a_servers_wish_is_a_bounded_floor() {
        let mut backoff = Backoff::new(SECOND, 10 * SECOND);
        let cases = [
            (5, 0.0, 5 * SECOND),
            (5, 0.5, 6 * SECOND),
            (9999, 0.0, LONGEST_RETRY_AFTER),
        ];
        for (wish, unit, expected) in cases {
            let pause = backoff.next_at(Some(Duration::from_secs(wish)), unit);
            assert_eq!(pause, expected, "{wish} s, {unit}");
        }
    }

    #[test]
    fn jitter_stays_below_the_ceiling_and_spreads() {
        let pauses: Vec<Duration> = (0..200)
            .map(|_| Backoff::new(SECOND, SECOND).next(None))
            .collect();
        assert!(pauses.iter().all(|pause| *pause <= SECOND));
        assert!(pauses.iter().any(|pause| *pause < SECOND / 4));
        assert!(pauses.iter().any(|pause| *pause > SECOND * 3 / 4));
    }

    const POLICY: Policy = Policy {
        base: SECOND,
        cap: Duration::from_secs(4),
        attempt: Duration::from_secs(5),
        budget: Duration::from_secs(60),
    };

    #[tokio::test(start_paused = true)]
    async fn a_call_is_repeated_until_it_succeeds() {
        let calls = Cell::new(0);
        let answer = run(
            POLICY,
            "call",
            |_: &String| Verdict::Retry(None),
            |_| {
                calls.set(calls.get() + 1);
                let call = calls.get();
                async move {
                    if call < 4 {
                        Err(format!("attempt {call}"))
                    } else {
                        Ok(call)
                    }
                }
            },
        )
        .await;
        assert_eq!(answer, Ok(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hopeless_error_ends_it_at_once() {
        let calls = Cell::new(0);
        let answer: Result<(), _> = run(
            POLICY,
            "call",
            |_: &&str| Verdict::GiveUp,
            |_| {
                calls.set(calls.get() + 1);
                async { Err("no") }
            },
        )
        .await;
        assert_eq!((answer, calls.get()), (Err("no"), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_bounds_all_attempts_together() {
        let begin = Instant::now();
        let mut deadlines = Vec::new();
        let answer: Result<(), _> = run(
            POLICY,
            "call",
            |_: &&str| Verdict::Retry(None),
            |deadline| {
                deadlines.push(deadline);
                async move {
                    tokio::time::sleep(deadline).await;
                    Err("timed out")
                }
            },
        )
        .await;
        assert_eq!(answer, Err("timed out"));
        assert!(begin.elapsed() <= POLICY.budget, "{:?}", begin.elapsed());
        assert!(deadlines.len() >= 6, "{deadlines:?}");
        let (least, most) = (POLICY.attempt / 10, POLICY.attempt);
        assert!(
            deadlines
                .iter()
                .all(|deadline| (least..=most).contains(deadline))
        );
    }
}
