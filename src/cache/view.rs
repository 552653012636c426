//! What all handles of one namespace share: its memory, its loads under way, and its codec.

use std::any::Any;
use std::hash::Hash;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::codec::{Coder, with_scratch};
use crate::cache::reading::Outcome;
use crate::engine::commit::Effect;
use crate::engine::layer::View;
use crate::engine::loader::Flights;
use crate::engine::record::{Operation, push};
use crate::engine::throttle::Throttle;
use crate::error::Result;
use crate::ids::{Key, NamespaceName, Seq};
use crate::journal::frame::FrameBuilder;
use crate::memory::resident::{Own, Resident};
use crate::metrics::{CacheMetrics, Metrics};
use crate::options::WritePolicy;
use crate::seam::clock::Moment;

/// What a cache's keys have to be.
pub trait CacheKey: Serialize + Hash + Eq + Clone + Send + Sync + 'static {}
impl<K: Serialize + Hash + Eq + Clone + Send + Sync + 'static> CacheKey for K {}

/// What a cache's values have to be.
pub trait CacheValue: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {}
impl<V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> CacheValue for V {}

/// The shared part of a cache.
pub(crate) struct TypedView<K, V> {
    pub(crate) namespace: NamespaceName,
    pub(crate) policy: WritePolicy,
    pub(crate) coalesce: bool,
    /// What it was opened with, to compare with what somebody else asks for.
    pub(crate) described: String,
    pub(crate) coder: Coder<K, V>,
    pub(crate) resident: Resident<K, V>,
    /// Loads from the layer's store.
    pub(crate) flights: Arc<Flights<K, Outcome<V>>>,
    /// Loads from there and then from a loader. They are apart, because a reader without one cannot say what an absence
    /// means to a reader with one.
    pub(crate) loader_flights: Arc<Flights<K, Outcome<V>>>,
    pub(crate) throttle: Throttle<K>,
    pub(crate) metrics: CacheMetrics,
}

impl<K: CacheKey, V: CacheValue> View for TypedView<K, V> {
    fn invalidate_all(&self) {
        self.resident.invalidate_all();
    }

    fn memory_hits(&self) -> u64 {
        self.metrics.memory_hits.value()
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// A committed write's effect on the memory of its cache.
struct Written<K, V> {
    view: Arc<TypedView<K, V>>,
    metrics: Arc<Metrics>,
    key: K,
    value: Option<V>,
    since: Moment,
    own: Own,
}

impl<K: CacheKey, V: CacheValue> Effect for Written<K, V> {
    fn publish(self: Box<Self>, seq: Seq) {
        let Written { view, metrics, key, value, since, own } = *self;
        if view.resident.written(key, value, seq, since, own).is_err() {
            view.memory_failed(&metrics);
        }
    }
}

impl<K: CacheKey, V: CacheValue> TypedView<K, V> {
    /// The stored key.
    pub(crate) fn stored_key(&self, key: &K) -> Result<Key> {
        with_scratch(|encoded, _| {
            self.coder.key(key, encoded)?;
            Key::new(&self.namespace, encoded)
        })
    }

    /// Encodes a write (`None` removes) into `frame` and returns its effect on memory, where it stays unless it goes
    /// around.
    pub(crate) fn encode(
        self: &Arc<Self>,
        metrics: &Arc<Metrics>,
        frame: &mut FrameBuilder,
        key: &K,
        value: Option<V>,
        own: Own,
        around: bool,
    ) -> Result<Box<dyn Effect>> {
        with_scratch(|stored_key, encoded| {
            Key::write_prefix(&self.namespace, stored_key);
            self.coder.key(key, stored_key)?;
            crate::ids::check_key_length(stored_key.len())?;
            let operation = match &value {
                Some(value) => {
                    self.coder.value(value, encoded)?;
                    Operation::Put
                }
                None => Operation::Remove,
            };
            push(frame, operation, self.coalesce, stored_key, encoded)
        })?;
        let (view, metrics) = (Arc::clone(self), Arc::clone(metrics));
        // The time of the hand-over: an age may come out too high, never too low.
        let since = self.resident.ticker().now();
        let value = value.filter(|_| !around);
        Ok(Box::new(Written { view, metrics, key: key.clone(), value, since, own }))
    }

    /// Counts a value that memory could not take.
    pub(crate) fn memory_failed(&self, layer: &Metrics) {
        layer.memory_failures.add(1);
        self.metrics.memory_failures.add(1);
    }
}
