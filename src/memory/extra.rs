//! What few entries have beside their value, kept apart so that the others stay small.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::entry::Own;
use crate::memory::freshness::Freshness;
use crate::memory::scope::{Scopes, Ties};
use crate::memory::servable::Stamp;
use crate::seam::clock::Moment;

/// What an entry has beside the cache's rules.
#[derive(Debug)]
pub(crate) struct Extra {
    own: Own,
    /// When it was used last.
    used: AtomicU64,
    /// How often it was served, if that is watched.
    serves: Option<AtomicU64>,
}

impl Extra {
    /// One for an entry that is used at the moment when it comes, if the entry needs one.
    pub(crate) fn of(own: Own, freshness: &Freshness, used: Moment, watched: bool) -> Option<Arc<Extra>> {
        let Own { time_to_live, time_to_idle, ties } = &own;
        let has_own = time_to_live.is_some() || time_to_idle.is_some() || ties.is_some();
        let (needed, serves) =
            (watched || has_own || freshness.time_to_idle.is_some(), watched.then(AtomicU64::default));
        needed.then(|| Arc::new(Extra { own, used: AtomicU64::new(used.nanos()), serves }))
    }

    /// A copy whose uses nobody counts.
    pub(crate) fn detached(&self) -> Arc<Extra> {
        let used = AtomicU64::new(self.used.load(Ordering::Relaxed));
        Arc::new(Extra { own: self.own.clone(), used, serves: None })
    }

    /// Notes a use.
    pub(crate) fn use_at(&self, now: Moment) {
        self.used.store(now.nanos(), Ordering::Relaxed);
        if let Some(serves) = &self.serves {
            serves.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often it was served, if that is watched.
    pub(crate) fn serves(&self) -> Option<u64> {
        self.serves.as_ref().map(|serves| serves.load(Ordering::Relaxed))
    }

    /// What the entry hangs on.
    pub(crate) fn ties(&self) -> Option<&Arc<Ties>> {
        self.own.ties.as_ref()
    }

    /// Adds what it says to the stamp of its entry.
    #[inline(never)]
    pub(crate) fn add_to(&self, stamp: &mut Stamp, scopes: &Scopes) {
        stamp.used = Moment::of_nanos(self.used.load(Ordering::Relaxed));
        stamp.time_to_live = self.own.time_to_live;
        stamp.time_to_idle = self.own.time_to_idle;
        if let Some(ties) = &self.own.ties {
            stamp.derived = ties.is_derived();
            stamp.group_floor = ties.group_floor(scopes);
            stamp.tag_floor = ties.tag_floor(scopes);
            stamp.outdated = ties.is_outdated(scopes, stamp.generation);
        }
    }
}
