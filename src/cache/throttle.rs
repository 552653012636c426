//! Failed loads, remembered for a while, so that not every reader asks a failing source again.

use std::hash::Hash;
use std::time::Duration;

use quick_cache::sync::Cache;

use crate::error::{Error, ErrorKind};
use crate::safeguard::Safeguard;
use crate::seam::clock::Moment;

/// The number of keys whose failures are remembered; beyond that some are dropped, and their keys tried earlier.
pub(crate) const FAILURES_MAX: usize = 4096;

/// The failed loads of one cache.
pub(crate) struct Throttle<K> {
    interval: Duration,
    /// `None` for a cache that does not throttle.
    failures: Option<Cache<K, (Moment, Error)>>,
}

/// True if the source could not answer; false if the error is the answer (the value does not decode, say) or a refusal.
#[must_use]
pub(crate) fn is_source_failure(error: &Error) -> bool {
    use ErrorKind as E;
    matches!(error.kind(), E::Transient | E::StoreFailed | E::LoadFailed | E::Io)
}

impl<K: Hash + Eq + Clone> Throttle<K> {
    /// A throttle of this interval; zero remembers nothing.
    #[must_use]
    pub(crate) fn new(interval: Duration) -> Throttle<K> {
        Throttle { interval, failures: (!interval.is_zero()).then(|| Cache::new(FAILURES_MAX)) }
    }

    /// Returns the failure of the last load of `key`, if that is so short ago that no load may be tried.
    pub(crate) fn recent(&self, key: &K, now: Moment) -> Option<Error> {
        // A cache whose loads succeed pays for no hashing of the key.
        let (at, error) = self.failures.as_ref().filter(|failures| !failures.is_empty())?.get(key)?;
        let short_ago = now.since(at) < self.interval && Safeguard::LoadThrottle.holds();
        short_ago.then_some(error)
    }

    /// Notes the end of a load: remembers a failure of the source, and drops one that is over.
    pub(crate) fn note(&self, key: &K, failure: Option<&Error>, now: Moment) {
        let Some(failures) = &self.failures else { return };
        match failure.filter(|error| is_source_failure(error)) {
            Some(error) => failures.insert(key.clone(), (now, error.clone())),
            // The usual case: a load succeeded, and nothing has to be looked up.
            None if failures.is_empty() => {}
            None => drop(failures.remove(key)),
        }
    }
}

#[cfg(test)]
#[cfg(not(forebay_simulation))]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_remembered_for_the_interval_and_until_a_success() {
        let throttle = Throttle::new(Duration::from_secs(5));
        let at = |second| Moment::at(Duration::from_secs(second));
        let error = Error::new(ErrorKind::Transient, "down");
        throttle.note(&1, Some(&error), at(10));
        assert!(throttle.recent(&1, at(14)).is_some());
        assert!(throttle.recent(&2, at(14)).is_none());
        assert!(throttle.recent(&1, at(15)).is_none());
        throttle.note(&1, None, at(14));
        assert!(throttle.recent(&1, at(14)).is_none());
        throttle.note(&1, Some(&Error::new(ErrorKind::Decode, "not a number")), at(14));
        assert!(throttle.recent(&1, at(14)).is_none(), "the source did answer");
    }
}
