//! Notes what the engine evicts to make room.

use std::sync::Arc;

use quick_cache::Lifecycle;
use quick_cache::sync::DefaultLifecycle;

use crate::memory::metrics::EvictionCause;
use crate::metrics::Counters;

/// The engine's own hooks, and a count.
pub(crate) struct Evictions<K, V> {
    engine: DefaultLifecycle<K, V>,
    counted: Arc<Counters<EvictionCause>>,
}

impl<K, V> Evictions<K, V> {
    pub(crate) fn new(counted: Arc<Counters<EvictionCause>>) -> Self {
        Evictions { engine: DefaultLifecycle::default(), counted }
    }
}

impl<K, V> Clone for Evictions<K, V> {
    fn clone(&self) -> Self {
        Evictions { engine: self.engine.clone(), counted: Arc::clone(&self.counted) }
    }
}

impl<K, V> Lifecycle<K, V> for Evictions<K, V> {
    // Dropped when the engine's locks are not held any more.
    type RequestState = <DefaultLifecycle<K, V> as Lifecycle<K, V>>::RequestState;

    fn on_evict(&self, state: &mut Self::RequestState, key: K, value: V) {
        self.counted.add(EvictionCause::Room, 1);
        self.engine.on_evict(state, key, value);
    }
}
