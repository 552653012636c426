//! Counting of a cache's reads.

use crate::cache::view::{CacheKey, CacheValue, TypedView};
use crate::layer::layer::Layer;
use crate::memory::entry::MemoryHit;
use crate::memory::servable::MissReason;

impl<K: CacheKey, V: CacheValue> TypedView<K, V> {
    pub(crate) fn count_hit(&self, held: &MemoryHit<V>) {
        self.metrics.memory_hits.increment();
        if let Some(reason) = held.stale {
            self.metrics.stale_ages.note(held.age);
            self.metrics.stale.add(reason, 1);
        }
    }

    pub(crate) fn count_miss(&self, reason: MissReason) {
        self.metrics.misses.add(reason, 1);
    }

    pub(crate) fn count_join(&self, layer: &Layer) {
        layer.metrics().joined_loads.add(1);
        self.metrics.joined_loads.add(1);
    }
}
