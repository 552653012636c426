//! What all handles of one namespace share: its memory, its loads under way, and its codec.

use std::any::Any;
use std::hash::Hash;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::codec::{Coder, with_scratch};
use crate::engine::commit::Effect;
use crate::engine::layer::{Layer, View};
use crate::engine::loader::{Flights, Turn};
use crate::engine::record::{Operation, push};
use crate::error::{Error, Result};
use crate::ids::{Key, NamespaceName, Seq};
use crate::journal::frame::FrameBuilder;
use crate::memory::fence::Mark;
use crate::memory::resident::Resident;
use crate::metrics::Metrics;
use crate::options::WritePolicy;
use crate::store::contract::Versioned;

/// What a cache's keys have to be.
pub trait CacheKey: Serialize + Hash + Eq + Clone + Send + Sync + 'static {}
impl<K: Serialize + Hash + Eq + Clone + Send + Sync + 'static> CacheKey for K {}

/// What a cache's values have to be.
pub trait CacheValue: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {}
impl<V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> CacheValue for V {}

/// What a load found: a value and who wrote it, or nothing.
type Loaded<V> = Option<(V, Seq)>;

/// The shared part of a cache.
pub(crate) struct TypedView<K, V> {
    pub(crate) namespace: NamespaceName,
    pub(crate) policy: WritePolicy,
    pub(crate) coalesce: bool,
    /// What it was opened with, to compare with what somebody else asks for.
    pub(crate) described: String,
    pub(crate) coder: Coder<K, V>,
    pub(crate) resident: Resident<K, V>,
    pub(crate) flights: Flights<K, Result<Loaded<V>>>,
}

impl<K: CacheKey, V: CacheValue> View for TypedView<K, V> {
    fn invalidate_all(&self) {
        self.resident.invalidate_all();
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
}

impl<K: CacheKey, V: CacheValue> Effect for Written<K, V> {
    fn publish(self: Box<Self>, seq: Seq) {
        let Written { view, metrics, key, value } = *self;
        if view.resident.written(key, value, seq).is_err() {
            metrics.memory_failures.add(1);
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

    /// Encodes a write (`None` removes) into `frame` and returns its effect.
    pub(crate) fn encode(
        self: &Arc<Self>,
        metrics: &Arc<Metrics>,
        frame: &mut FrameBuilder,
        key: &K,
        value: Option<V>,
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
        Ok(Box::new(Written { view, metrics, key: key.clone(), value }))
    }

    /// The value in memory.
    pub(crate) fn in_memory(&self, layer: &Layer, key: &K) -> Option<V> {
        layer.catch_up();
        let entry = self.resident.get(key)?;
        layer.metrics().memory_hits.add(1);
        Some(entry.value)
    }

    /// Looks beyond memory: pending, then the store, one load per key at a time.
    pub(crate) async fn load(&self, layer: &Layer, key: &K) -> Result<Option<V>> {
        let stored_key = self.stored_key(key)?;
        loop {
            let mark = self.resident.mark(key);
            if let Some(pending) = layer.peek(&stored_key) {
                layer.metrics().pending_hits.add(1);
                return self.keep(layer, key, pending, &mark).map(value_of);
            }
            match self.flights.board(key, &mark) {
                Turn::Join(join) => {
                    if let Some(outcome) = join.outcome().await {
                        layer.metrics().joined_loads.add(1);
                        return outcome.map(value_of);
                    }
                }
                Turn::Lead(lead) => {
                    let outcome = match layer.load(&stored_key).await {
                        Ok(found) => self.keep(layer, key, found, &mark),
                        Err(error) => Err(error),
                    };
                    lead.land(outcome.clone());
                    return outcome.map(value_of);
                }
            }
        }
    }

    /// Decodes what was found and keeps it in memory, if nothing has changed since the mark.
    fn keep(&self, layer: &Layer, key: &K, found: Option<Versioned>, mark: &Mark) -> Result<Loaded<V>> {
        let Some(Versioned { value, version }) = found else { return Ok(None) };
        let value = self.coder.decode(&value).map_err(|error| self.in_namespace(error))?;
        match self.resident.fill(key, &value, version, mark) {
            Ok(true) => {}
            Ok(false) => layer.metrics().refused_fills.add(1),
            Err(_) => layer.metrics().memory_failures.add(1),
        }
        Ok(Some((value, version)))
    }

    /// The values of several keys, in their order; what is in neither memory nor on its way, in one call.
    pub(crate) async fn load_many(&self, layer: &Layer, keys: &[K]) -> Result<Vec<Option<V>>> {
        let mut values: Vec<Option<V>> = keys.iter().map(|key| self.in_memory(layer, key)).collect();
        let mut led = Vec::new();
        let mut joined = Vec::new();
        for (at, key) in keys.iter().enumerate().filter(|(at, _)| matches!(values.get(*at), Some(None))) {
            let mark = self.resident.mark(key);
            match self.flights.board(key, &mark) {
                Turn::Lead(lead) => led.push((at, key, self.stored_key(key)?, mark, lead)),
                Turn::Join(join) => joined.push((at, key, join)),
            }
        }
        let stored: Vec<Key> = led.iter().map(|(_, _, stored, _, _)| stored.clone()).collect();
        // A failure abandons the flights; those who wait try for themselves.
        let found = layer.load_many(&stored).await?;
        for ((at, key, _, mark, lead), found) in led.into_iter().zip(found) {
            let outcome = self.keep(layer, key, found, &mark);
            lead.land(outcome.clone());
            set(&mut values, at, value_of(outcome?));
        }
        for (at, key, join) in joined {
            let value = match join.outcome().await {
                Some(outcome) => value_of(outcome?),
                None => self.load(layer, key).await?,
            };
            set(&mut values, at, value);
        }
        Ok(values)
    }

    fn in_namespace(&self, error: Error) -> Error {
        let kind = error.kind();
        error.wrap(kind, format!("namespace {}", self.namespace))
    }
}

fn value_of<V>(loaded: Loaded<V>) -> Option<V> {
    loaded.map(|(value, _)| value)
}

fn set<V>(values: &mut [Option<V>], at: usize, value: Option<V>) {
    if let Some(slot) = values.get_mut(at) {
        *slot = value;
    }
}
