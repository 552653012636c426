//! What a cache's reads count.

use crate::cache::view::{CacheKey, CacheValue, TypedView};
use crate::layer::layer::Layer;
use crate::memory::entry::Held;
use crate::memory::servable::{Excuse, MissReason};

impl<K: CacheKey, V: CacheValue> TypedView<K, V> {
    pub(crate) fn count_hit(&self, held: &Held<V>) {
        self.metrics.memory_hits.increment();
        if held.excuse.is_some() {
            self.metrics.stale_ages.note(held.age);
        }
        match held.excuse {
            None => {}
            Some(Excuse::WhileRevalidating) => self.metrics.stale_while_revalidating.add(1),
            Some(Excuse::InsteadOfWaiting) => self.metrics.stale_instead_of_waiting.add(1),
            Some(Excuse::LoadFailed) => self.metrics.stale_if_error.add(1),
            Some(Excuse::Unverified) => self.metrics.stale_unverified.add(1),
        }
    }

    pub(crate) fn count_miss(&self, reason: MissReason) {
        let counter = match reason {
            MissReason::Absent => &self.metrics.misses_absent,
            MissReason::Expired => &self.metrics.misses_expired,
            MissReason::Idle => &self.metrics.misses_idle,
            MissReason::Invalidated => &self.metrics.misses_invalidated,
            MissReason::BelowNamespace => &self.metrics.misses_below_namespace,
            MissReason::BelowGroup => &self.metrics.misses_below_group,
            MissReason::BelowTag => &self.metrics.misses_below_tag,
            MissReason::Outdated => &self.metrics.misses_outdated,
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
