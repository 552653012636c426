//! Failed loads, remembered for a while so that a failing source is not asked by every reader.

use std::hash::Hash;
use std::time::Duration;

use quick_cache::sync::Cache;

use crate::error::{Error, ErrorKind};
use crate::safeguard::Safeguard;
use crate::seam::clock::Moment;

/// How many keys' failures are remembered; beyond that some are forgotten, and their keys tried earlier.
pub const FAILURES_MAX: usize = 4096;

/// The failed loads of one cache.
pub struct Throttle<K> {
    interval: Duration,
    /// Only of a cache that throttles.
    failures: Option<Cache<K, (Moment, Error)>>,
}

/// Whether an error says that the source could not answer, rather than that it must not, or what the answer is.
#[must_use]
pub fn is_source_failure(error: &Error) -> bool {
    use ErrorKind as E;
    matches!(error.kind(), E::Transient | E::StoreFailed | E::LoadFailed | E::Io)
}

impl<K: Hash + Eq + Clone> Throttle<K> {
    /// Without an interval nothing is remembered.
    #[must_use]
    pub fn new(interval: Duration) -> Throttle<K> {
        Throttle { interval, failures: (!interval.is_zero()).then(|| Cache::new(FAILURES_MAX)) }
    }

    /// How the load of `key` failed, if that is so short ago that it is not to be tried again.
    pub fn recent(&self, key: &K, now: Moment) -> Option<Error> {
        let (at, error) = self.failures.as_ref().filter(|failures| !failures.is_empty())?.get(key)?;
        let short_ago = now.since(at) < self.interval && Safeguard::LoadThrottle.holds();
        short_ago.then_some(error)
    }

    /// Notes how a load ended.
    pub fn note(&self, key: &K, failure: Option<&Error>, now: Moment) {
        let Some(failures) = &self.failures else { return };
        match failure.filter(|error| is_source_failure(error)) {
            Some(error) => failures.insert(key.clone(), (now, error.clone())),
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
