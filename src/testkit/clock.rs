//! A clock that only the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::seam::clock::Clock;

/// A clock for tests. Clones are the same clock. It starts at one hour, so that it can be set back.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl Default for ManualClock {
    fn default() -> Self {
        ManualClock::new()
    }
}

impl ManualClock {
    /// Makes a clock that stands still.
    #[must_use]
    pub fn new() -> ManualClock {
        ManualClock(Arc::new(AtomicU64::new(nanos(Duration::from_secs(3600)))))
    }

    /// Advances the clock.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(nanos(by), Ordering::SeqCst);
    }

    /// Sets the clock back, at most to zero.
    pub fn set_back(&self, by: Duration) {
        let back = |now: u64| now.saturating_sub(nanos(by));
        // Never `Err`: `back` always has an answer.
        let _always = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| Some(back(now)));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
