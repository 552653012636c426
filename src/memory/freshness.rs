//! How long what a cache holds in memory may be served: plain durations, checked where a cache is opened.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The freshness that a cache asks for, apart from its time to live, which can be changed while it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Freshness {
    /// How long an unused entry stays.
    pub time_to_idle: Option<Duration>,
    /// How long an absent key is remembered as absent; not at all without one.
    pub negative_time_to_live: Option<Duration>,
    /// By up to what share an entry's life is cut, in 1/65,536; an own share is drawn for each entry.
    pub jitter: u16,
    /// XFetch's beta: how eagerly entries are loaded again before they expire.
    pub early_refresh: Option<f64>,
    /// For how long after its life a value is served while it is loaded again in the background.
    pub stale_while_revalidate: Duration,
    /// For how long after its life a value is served if loading it again fails.
    pub stale_if_error: Duration,
    /// How long after a failed load of a key the next one is tried.
    pub load_throttle: Duration,
    /// What holds in a layer that follows another process.
    pub following: Option<Following>,
}

impl Freshness {
    /// Nothing but what invalidates an entry ends it.
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

    /// Whether it hangs on the time if a value may be served, whatever its time to live.
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

/// How long what a follower holds counts as current, though nothing has proved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Following {
    /// How far the last proof may lie back.
    pub lag_max: Duration,
    /// What is done afterwards.
    pub on_unverified: OnUnverified,
}

/// What a read gets of an entry of which a follower cannot know whether it is current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUnverified {
    /// What the store has: the entry is loaded again.
    #[default]
    Revalidate,
    /// An error, [`ErrorKind::Unverified`](crate::error::ErrorKind::Unverified), without asking the store.
    Fail,
    /// The entry, with [`StaleReason::Unverified`](crate::memory::servable::Excuse::Unverified) in its proof.
    Serve,
}

/// A duration that can be changed while others read it; or none.
#[derive(Debug)]
pub struct LiveDuration(AtomicU64);

const NONE: u64 = u64::MAX;

impl LiveDuration {
    /// One with this value.
    #[must_use]
    pub fn new(value: Option<Duration>) -> LiveDuration {
        let live = LiveDuration(AtomicU64::new(NONE));
        live.set(value);
        live
    }

    /// Changes it.
    pub fn set(&self, value: Option<Duration>) {
        let nanos = |value: Duration| u64::try_from(value.as_nanos()).unwrap_or(NONE).min(NONE - 1);
        self.0.store(value.map_or(NONE, nanos), Ordering::SeqCst);
    }

    /// What it is.
    #[must_use]
    #[inline]
    pub fn value(&self) -> Option<Duration> {
        let nanos = self.0.load(Ordering::SeqCst);
        (nanos != NONE).then(|| Duration::from_nanos(nanos))
    }
}
