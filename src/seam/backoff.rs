//! Delays between the attempts of a call that fails.
//!
//! Flusher, followers, publishers and buses all take their delays from here.

use std::time::Duration;

use crate::seam::random;

/// Limits the doublings, so that the delay cannot overflow.
const DOUBLINGS_MAX: u32 = 20;

/// The delays of a follower or a publisher before it calls a bus or a store again.
pub(crate) const RETRY: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(2));

/// Exponentially growing delays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
}

impl Backoff {
    /// Makes delays that start with `first` and double with each failure in a row, up to `max`.
    pub(crate) const fn new(first: Duration, max: Duration) -> Backoff {
        Backoff { first, max }
    }

    /// Returns the delay after so many failures in a row.
    pub(crate) fn delay(self, failures: u64) -> Duration {
        // Bounded, since the shift below would overflow; `max` caps the delay.
        let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX).min(DOUBLINGS_MAX);
        self.first.saturating_mul(1 << doublings).min(self.max)
    }

    /// Returns the longest delay.
    pub(crate) const fn max(self) -> Duration {
        self.max
    }

    /// Returns a random delay of at most [`Backoff::delay`], so that callers that failed together do not come back
    /// together.
    ///
    /// This is full jitter (Brooker, "Exponential Backoff And Jitter", 2015), except that no delay is below a tenth of
    /// the limit: draws close to zero in a row would be a storm of retries.
    pub(crate) fn jittered(self, failures: u64) -> Duration {
        // Without a source of randomness the delay is the longest one.
        let drawn = random::u32().unwrap_or(u32::MAX);
        // Spread, so that processes that failed together do not retry together; never at once.
        self.delay(failures).mul_f64(0.1 + 0.9 * f64::from(drawn) / f64::from(u32::MAX))
    }
}

/// Returns a delay that grows by `step` with each failure in a row, up to `max`.
#[cfg(feature = "nats")]
pub(crate) fn linear(step: Duration, max: Duration, failures: u64) -> Duration {
    step.saturating_mul(u32::try_from(failures).unwrap_or(u32::MAX)).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_cap_and_never_beyond() {
        let (first, cap) = (Duration::from_millis(10), Duration::from_secs(1));
        let backoff = Backoff::new(first, cap);
        for attempt in 1..200 {
            let ceiling = first.saturating_mul(1 << (attempt - 1).min(20) as u32).min(cap);
            assert_eq!(backoff.delay(attempt), ceiling);
            let wait = backoff.jittered(attempt);
            assert!(wait <= ceiling && wait >= ceiling / 10, "attempt {attempt}: {wait:?}");
        }
        assert_eq!((backoff.delay(0), backoff.delay(u64::MAX), backoff.max()), (first, cap, cap));
    }
}
