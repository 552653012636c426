//! The options of a cache's freshness: plain durations, checked where a cache is opened.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A cache's options of freshness, apart from the time to live, which can be changed while it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Freshness {
    /// The time to idle: an entry that is not used for so long is not served.
    pub time_to_idle: Option<Duration>,
    /// The time to live of an absence. Without one absences are not kept.
    pub negative_time_to_live: Option<Duration>,
    /// The largest share of an entry's life that is cut, in 1/65,536. A share is drawn for each entry.
    pub jitter: u16,
    /// XFetch's beta: how eagerly entries are loaded again before they expire.
    pub early_refresh: Option<f64>,
    /// The time after its life for which a value is served while it is loaded again in the background.
    pub stale_while_revalidate: Duration,
    /// The time after its life for which a value is served if loading it again fails.
    pub stale_if_error: Duration,
    /// The time after a failed load of a key before the next load is tried.
    pub load_throttle: Duration,
    /// The options of a layer that follows another process.
    pub following: Option<Following>,
}

impl Freshness {
    /// The freshness of a cache whose entries end by invalidation only.
    pub const UNTIMED: Freshness = Freshness {
        time_to_idle: None,
        negative_time_to_live: None,
        jitter: 0,
        early_refresh: None,
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        load_throttle: Duration::ZERO,
        following: None,
    };

    /// True if the time decides about a value, whatever its time to live.
    #[must_use]
    #[inline]
    pub fn times_values(&self) -> bool {
        self.following.is_some() || self.time_to_idle.is_some()
    }
}

impl Default for Freshness {
    fn default() -> Self {
        Freshness::UNTIMED
    }
}

/// The time for which a follower's entries count as current without a new proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Following {
    /// The longest time since the last proof.
    pub lag_max: Duration,
    /// The answer to a read afterwards.
    pub on_unverified: OnUnverified,
}

/// The answer to a read of an entry that a follower cannot prove to be current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUnverified {
    /// The store's value: the entry is loaded again.
    #[default]
    Revalidate,
    /// An error, [`ErrorKind::Unverified`](crate::error::ErrorKind::Unverified), without asking the store.
    Fail,
    /// The entry, with [`StaleReason::Unverified`](crate::memory::servable::StaleReason::Unverified) in its proof.
    Serve,
}

/// An optional duration that can be changed while others read it.
#[derive(Debug)]
pub struct LiveDuration(AtomicU64);

/// The number that stands for no duration.
const NONE: u64 = u64::MAX;

impl LiveDuration {
    /// Makes one with this value.
    #[must_use]
    pub fn new(value: Option<Duration>) -> LiveDuration {
        let live = LiveDuration(AtomicU64::new(NONE));
        live.set(value);
        live
    }

    /// Changes it.
    pub fn set(&self, value: Option<Duration>) {
        // One below the number that stands for none: 584 years are as good as for ever.
        let nanos = |value: Duration| u64::try_from(value.as_nanos()).unwrap_or(NONE).min(NONE - 1);
        // A reader who comes after this call sees the new value.
        self.0.store(value.map_or(NONE, nanos), Ordering::SeqCst);
    }

    /// Returns the value.
    #[must_use]
    #[inline]
    pub fn value(&self) -> Option<Duration> {
        // One word for value and absence: a reader never sees half of a change.
        let nanos = self.0.load(Ordering::SeqCst);
        (nanos != NONE).then(|| Duration::from_nanos(nanos))
    }
}
