//! What all handles of one namespace share: its memory, its loads under way, and its codec.

use std::any::Any;
use std::hash::Hash;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::codec::{Coder, Decoded, with_scratch};
use crate::cache::entry::WriteOptions;
use crate::cache::flights::Flights;
use crate::cache::group::GroupOf;
use crate::cache::reading::Outcome;
use crate::cache::rules::Rule;
use crate::cache::throttle::Throttle;
use crate::error::Result;
use crate::ids::{Key, NamespaceName, Seq};
use crate::journal::frame::FrameBuilder;
use crate::memory::dependencies::{Dependencies, ReadSet};
use crate::memory::entry::EntryOverrides;
use crate::memory::metrics::{CacheMetrics, CacheStats};
use crate::memory::resident::Resident;
use crate::memory::servable::Generation;
use crate::memory::views::{AnyKey, View};
use crate::metrics::Metrics;
use crate::options::WritePolicy;
use crate::queue::record::{Operation, push};
use crate::queue::ticket::Effect;
use crate::seam::clock::Moment;

/// What a cache's keys have to be.
pub trait CacheKey: Serialize + DeserializeOwned + Hash + Eq + Clone + Send + Sync + 'static {}
impl<K: Serialize + DeserializeOwned + Hash + Eq + Clone + Send + Sync + 'static> CacheKey for K {}

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
    pub(crate) group_of: Option<GroupOf<K>>,
    pub(crate) rules: Vec<Rule<K, V>>,
    pub(crate) resident: Resident<K, V>,
    /// Loads from the layer's store.
    pub(crate) flights: Arc<Flights<K, Outcome<V>>>,
    /// Loads from there and then from a loader. They are apart, because a reader without one cannot say what an absence
    /// means to a reader with one.
    pub(crate) loader_flights: Arc<Flights<K, Outcome<V>>>,
    /// Loads by loaders that record what they read; apart, since who joins one has to look whether that has changed.
    pub(crate) derived_flights: Arc<Flights<K, Outcome<V>>>,
    pub(crate) throttle: Throttle<K>,
    /// How many versions of a key it keeps, if it keeps versions.
    pub(crate) versions_kept: Option<usize>,
    pub(crate) metrics: CacheMetrics,
    /// Here, so that a write need not carry them along.
    pub(crate) layer_metrics: Arc<Metrics>,
}

impl<K: CacheKey, V: CacheValue> View for TypedView<K, V> {
    fn invalidate_all(&self) {
        self.resident.invalidate_all();
    }

    fn invalidate_namespace(&self, floor: Generation) {
        self.resident.fences().change_namespace(floor);
    }

    fn invalidate_key(&self, key: &AnyKey) {
        match key.downcast_ref::<K>() {
            Some(key) => self.invalidate(key),
            None => self.resident.invalidate_all(),
        }
    }

    fn changed_elsewhere(&self, key: &[u8], version: Seq, value: Option<&[u8]>) {
        // A key of another type than the owner's: nobody can say which entry this is about.
        let Ok(key) = self.coder.decode_key(key) else { return self.resident.invalidate_all() };
        let decoded = value.and_then(|value| self.coder.decode(value).ok());
        let outcome = match decoded {
            Some(Decoded { value, tags }) => {
                let overrides = EntryOverrides {
                    dependencies: self.dependencies(&key, &tags, ReadSet::default()),
                    ..EntryOverrides::default()
                };
                self.resident.apply_remote_change(&key, value, version, overrides)
            }
            None if version == Seq::ZERO => self.resident.invalidate(&key),
            None => self.resident.invalidate_version(&key, version).map(drop),
        };
        if outcome.is_err() {
            self.memory_failed();
        }
    }

    fn has_key_type(&self, key: &AnyKey) -> bool {
        key.is::<K>()
    }

    fn schema_version(&self) -> u8 {
        self.coder.schema()
    }

    fn memory_hits(&self) -> u64 {
        self.metrics.memory_hits.value()
    }

    fn stats(&self) -> CacheStats {
        let (reloads_unchanged, reloads_changed) = self.resident.reloads();
        let evictions = self.resident.evictions();
        CacheStats { evictions, reloads_unchanged, reloads_changed, ..self.metrics.snapshot() }
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// A committed write's effect on the memory of its cache.
struct Written<K, V> {
    view: Arc<TypedView<K, V>>,
    key: K,
    value: Option<V>,
    since: Moment,
    overrides: EntryOverrides,
}

impl<K: CacheKey, V: CacheValue> Effect for Written<K, V> {
    fn publish(self: Box<Self>, seq: Seq) {
        let Written { view, key, value, since, overrides } = *self;
        if view.resident.apply_write(key, value, seq, since, overrides).is_err() {
            view.memory_failed();
        }
    }

    fn since(&self) -> Option<Moment> {
        Some(self.since)
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
        frame: &mut FrameBuilder,
        key: &K,
        value: Option<V>,
        options: &WriteOptions,
    ) -> Result<Box<dyn Effect>> {
        let tags = options.chosen_tags();
        let dependencies = self.dependencies(key, tags, ReadSet::default());
        with_scratch(|stored_key, encoded| {
            Key::write_prefix(&self.namespace, stored_key);
            self.coder.key(key, stored_key)?;
            crate::ids::check_key_length(stored_key.len())?;
            let operation = match &value {
                Some(value) => {
                    self.coder.value(value, tags, encoded)?;
                    Operation::Put
                }
                None => Operation::Remove,
            };
            push(frame, operation, self.coalesce, stored_key, encoded)
        })?;
        // The time of the hand-over: an age may come out too high, never too low.
        let since = self.resident.ticker().now();
        let value = value.filter(|_| options.chosen_policy().unwrap_or(self.policy) != WritePolicy::Around);
        let (view, key) = (Arc::clone(self), key.clone());
        let overrides = EntryOverrides { dependencies, ..options.overrides() };
        Ok(Box::new(Written { view, key, value, since, overrides }))
    }

    /// What an entry of `key` hangs on.
    pub(crate) fn dependencies(
        &self,
        key: &K,
        tags: &[impl AsRef<str>],
        read: ReadSet,
    ) -> Option<Arc<Dependencies>> {
        if self.group_of.is_none() && tags.is_empty() && read.is_empty() {
            return None;
        }
        let scopes = self.resident.fences().scopes();
        let group = self.group_of.as_ref().and_then(|group_of| group_of(key));
        let group = group.map(|group| scopes.group(self.namespace.as_str(), &group));
        let tags = tags.iter().map(|tag| scopes.tag(tag.as_ref())).collect();
        Dependencies::new(group, tags, read)
    }

    /// Drops a key from memory, and makes loads of it that are under way lose.
    pub(crate) fn invalidate(&self, key: &K) {
        // A failure has made all of memory unservable, the key included.
        if self.resident.invalidate(key).is_err() {
            self.memory_failed();
        }
    }

    /// Counts a value that memory could not take.
    pub(crate) fn memory_failed(&self) {
        self.layer_metrics.memory_failures.add(1);
        self.metrics.memory_failures.add(1);
    }
}
