//! Sees, when a load replaces a copy in memory, whether the source had changed meanwhile: what advice rests on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ids::Seq;
use crate::memory::advice::ReloadCounts;

/// Of so many copies one has its serves counted: that takes a place of its own beside the entry, and time at each hit.
const WATCHED: u64 = 8;

/// Whether two values are the same, if that can be told.
pub type CompareValues<V> = Box<dyn Fn(&V, &V) -> Option<bool> + Send + Sync>;

/// One side of a comparison.
#[derive(Clone, Copy)]
pub(crate) struct VersionedRef<'a, V> {
    pub(crate) value: Option<&'a V>,
    /// Zero if nobody knows.
    pub(crate) version: Seq,
}

/// A copy that a load is about to replace.
pub(crate) struct ReplacedCopy<V> {
    age: Duration,
    serves: Option<u64>,
    changed: Changed<V>,
}

enum Changed<V> {
    Known(bool),
    /// To be compared with what the load brought, when no lock is held any more.
    From(V),
}

/// The reloads of one cache.
pub(crate) struct ReloadWatch<V> {
    pub(crate) reloads: ReloadCounts,
    /// How many copies have come since the cache was opened.
    copies: AtomicU64,
    /// Without it only versions and absences are compared.
    pub(crate) same: Option<CompareValues<V>>,
}

impl<V> Default for ReloadWatch<V> {
    fn default() -> Self {
        ReloadWatch { reloads: ReloadCounts::default(), copies: AtomicU64::new(0), same: None }
    }
}

impl<V: Clone> ReloadWatch<V> {
    /// Whether the serves of a copy that comes now are counted.
    pub(crate) fn watches_next(&self) -> bool {
        self.copies.fetch_add(1, Ordering::Relaxed).is_multiple_of(WATCHED)
    }

    /// What there is to tell of a copy of this age that is replaced, served so often if that was counted. Runs under
    /// locks.
    pub(crate) fn replaced(
        &self,
        age: Duration,
        serves: Option<u64>,
        there: VersionedRef<'_, V>,
        load_result: VersionedRef<'_, V>,
    ) -> Option<ReplacedCopy<V>> {
        let have_versions = there.version > Seq::ZERO && load_result.version > Seq::ZERO;
        let changed = match (there.value, load_result.value) {
            _ if have_versions => Changed::Known(there.version != load_result.version),
            (None, None) => Changed::Known(false),
            (Some(value), Some(_)) if self.same.is_some() => Changed::From(value.clone()),
            (Some(_), Some(_)) => return None,
            _ => Changed::Known(true),
        };
        Some(ReplacedCopy { age, serves, changed })
    }

    /// Tells it. Code of the user's that panics while values are compared has told nothing.
    pub(crate) fn note(&self, replaced: ReplacedCopy<V>, load_result: Option<&V>) {
        let changed = match (replaced.changed, load_result, &self.same) {
            (Changed::Known(changed), _, _) => Some(changed),
            (Changed::From(value), Some(load_result), Some(same)) => {
                catch_unwind(AssertUnwindSafe(|| same(&value, load_result))).ok().flatten().map(|same| !same)
            }
            _ => None,
        };
        if let Some(changed) = changed {
            self.reloads.note(replaced.age, replaced.serves, changed);
        }
    }
}
