//! What a cache's reads count.

use crate::cache::view::{CacheKey, CacheValue, TypedView};
use crate::layer::layer::Layer;
use crate::memory::entry::MemoryHit;
use crate::memory::servable::{MissReason, StaleReason};

impl<K: CacheKey, V: CacheValue> TypedView<K, V> {
    pub(crate) fn count_hit(&self, held: &MemoryHit<V>) {
        self.metrics.memory_hits.increment();
        if held.stale.is_some() {
            self.metrics.stale_ages.note(held.age);
        }
        match held.stale {
            None => {}
            Some(StaleReason::WhileRevalidating) => self.metrics.stale_while_revalidating.add(1),
            Some(StaleReason::InsteadOfWaiting) => self.metrics.stale_instead_of_waiting.add(1),
            Some(StaleReason::LoadFailed) => self.metrics.stale_if_error.add(1),
            Some(StaleReason::Unverified) => self.metrics.stale_unverified.add(1),
        }
    }

    pub(crate) fn count_miss(&self, reason: MissReason) {
        let counter = match reason {
            MissReason::Absent => &self.metrics.misses_absent,
            MissReason::Expired => &self.metrics.misses_expired,
            MissReason::Idle => &self.metrics.misses_idle,
            MissReason::Invalidated => &self.metrics.misses_invalidated,
            MissReason::NamespaceInvalidated => &self.metrics.misses_below_namespace,
            MissReason::GroupInvalidated => &self.metrics.misses_below_group,
            MissReason::TagInvalidated => &self.metrics.misses_below_tag,
            MissReason::DependencyChanged => &self.metrics.misses_outdated,
            MissReason::TooOld => &self.metrics.misses_too_old,
            MissReason::Unverified => &self.metrics.misses_unverified,
        };
        counter.add(1);
    }

    pub(crate) fn count_join(&self, layer: &Layer) {
        layer.metrics().joined_loads.add(1);
        self.metrics.joined_loads.add(1);
    }
}
