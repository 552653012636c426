//! What few entries have beside their value, kept apart so that the others stay small.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::entry::EntryOverrides;
use crate::memory::freshness::Freshness;
use crate::memory::scope::{Dependencies, Scopes};
use crate::memory::servable::EntryFacts;
use crate::seam::clock::Moment;

/// What an entry has beside the cache's rules.
#[derive(Debug)]
pub(crate) struct Extra {
    overrides: EntryOverrides,
    /// When it was used last.
    used: AtomicU64,
    /// How often it was served, if that is watched.
    serves: Option<AtomicU64>,
}

impl Extra {
    /// One for an entry that is used at the moment when it comes, if the entry needs one.
    pub(crate) fn of(
        overrides: EntryOverrides,
        freshness: &Freshness,
        used: Moment,
        watched: bool,
    ) -> Option<Arc<Extra>> {
        let EntryOverrides { time_to_live, time_to_idle, dependencies } = &overrides;
        let has_overrides = time_to_live.is_some() || time_to_idle.is_some() || dependencies.is_some();
        let (needed, serves) =
            (watched || has_overrides || freshness.time_to_idle.is_some(), watched.then(AtomicU64::default));
        needed.then(|| Arc::new(Extra { overrides, used: AtomicU64::new(used.nanos()), serves }))
    }

    /// A copy whose uses nobody counts.
    pub(crate) fn detached(&self) -> Arc<Extra> {
        let used = AtomicU64::new(self.used.load(Ordering::Relaxed));
        Arc::new(Extra { overrides: self.overrides.clone(), used, serves: None })
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
    pub(crate) fn dependencies(&self) -> Option<&Arc<Dependencies>> {
        self.overrides.dependencies.as_ref()
    }

    /// Adds what it says to the stamp of its entry.
    #[inline(never)]
    pub(crate) fn add_to(&self, facts: &mut EntryFacts, scopes: &Scopes) {
        facts.used = Moment::of_nanos(self.used.load(Ordering::Relaxed));
        facts.time_to_live = self.overrides.time_to_live;
        facts.time_to_idle = self.overrides.time_to_idle;
        if let Some(dependencies) = &self.overrides.dependencies {
            facts.derived = dependencies.is_derived();
            facts.group_floor = dependencies.group_floor(scopes);
            facts.tag_floor = dependencies.tag_floor(scopes);
            facts.outdated = dependencies.is_outdated(scopes, facts.generation);
        }
    }
}
