//! The part of a cache that all handles of one namespace share: its memory, its loads under way, its codec, its
//! counters.
//!
//! Loads run here, on a view and what reads need of a layer: a load that outlives its reader must not keep the layer
//! open. What a load brings is kept in memory only if no write or invalidation moved the fences since it began.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use crate::cache::codec::{CacheKey, CacheValue, Coder, Decoded, check_tags, with_scratch};
use crate::cache::entry::{Loaded, Source, WriteOptions};
use crate::cache::flights::Flights;
use crate::cache::loader::{Loader, ManyLoader, load_panicked};
use crate::cache::rules::Rule;
use crate::cache::throttle::Throttle;
use crate::error::{Error, Result};
use crate::ids::{self, Key, NamespaceName, Seq};
use crate::invalidation::group_tag;
use crate::journal::frame::FrameBuilder;
use crate::memory::dependencies::{Dependencies, ReadSet};
use crate::memory::entry::{EntryOverrides, LoadResult, LoadStart, MemoryHit};
use crate::memory::metrics::{CacheMetrics, CacheStats};
use crate::memory::resident::Resident;
use crate::memory::servable::{Generation, MissReason};
use crate::memory::views::{AnyKey, View};
use crate::metrics::Metrics;
use crate::options::WritePolicy;
use crate::queue::lookup::{Lookup, LookupAnswer};
use crate::queue::record::{Operation, push};
use crate::queue::ticket::Effect;
use crate::safeguard::Safeguard;
use crate::seam::clock::Moment;
use crate::seam::span::Span;
use crate::store::contract::Versioned;

/// The end of a load, as everyone who waits for it gets it.
#[derive(Clone)]
pub(crate) struct LoadDone<V> {
    pub(crate) value: Option<V>,
    pub(crate) version: Seq,
    /// The start of the load: the value was current then.
    pub(crate) since: Moment,
    pub(crate) source: Source,
    pub(crate) generation: Generation,
    pub(crate) dependencies: Option<Arc<Dependencies>>,
}

pub(crate) type LoadOutcome<V> = Result<LoadDone<V>>;

/// A key that a flight loads, and where its load starts.
pub(crate) struct KeyLoad<K> {
    pub(crate) key: K,
    pub(crate) stored: Key,
    pub(crate) start: LoadStart,
}

/// Returns the group of a key, if it is in one. A function of the key alone, so an entry is in its group however it
/// came into memory. The group `g` of the namespace `n` is the tag `n:g`.
pub(crate) type GroupOf<K> = Box<dyn Fn(&K) -> Option<String> + Send + Sync>;

/// The shared part of a cache, by its key and value types.
pub(crate) struct TypedView<K, V> {
    pub(crate) namespace: NamespaceName,
    pub(crate) policy: WritePolicy,
    pub(crate) coalesce: bool,
    /// The options in words, to be compared with those of the next opening.
    pub(crate) described: String,
    pub(crate) coder: Coder<K, V>,
    pub(crate) group_of: Option<GroupOf<K>>,
    pub(crate) rules: Vec<Rule<K, V>>,
    pub(crate) resident: Resident<K, V>,
    /// Loads from the layer's store.
    pub(crate) flights: Arc<Flights<K, LoadOutcome<V>>>,
    /// Loads from there and then from a loader. Apart, since "absent in the store" ends a plain read and not this one.
    pub(crate) loader_flights: Arc<Flights<K, LoadOutcome<V>>>,
    /// Loads by loaders that record the keys they read. Apart, since a reader that joins one has to check those keys.
    pub(crate) derived_flights: Arc<Flights<K, LoadOutcome<V>>>,
    pub(crate) throttle: Throttle<K>,
    /// The number of versions of a key that it keeps; `None` if its values have no versions.
    pub(crate) versions_kept: Option<usize>,
    pub(crate) metrics: CacheMetrics,
    /// The layer's counters. Here, so that a write need not carry them along.
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
            // The entry that such a key means cannot be found. To drop too much costs reloads, too little a stale read.
            None => self.resident.invalidate_all(),
        }
    }

    fn changed_elsewhere(&self, key: &[u8], version: Seq, value: Option<&[u8]>) {
        // The owner's cache has keys of another type: nobody can say which entry changed.
        let Ok(key) = self.coder.decode_key(key) else { return self.resident.invalidate_all() };
        // A value that does not decode counts as unknown: the next read gets the store's error, not an older value.
        let decoded = value.and_then(|value| self.coder.decode(value).ok());
        let outcome = match decoded {
            Some(Decoded { value, tags }) => {
                let overrides = EntryOverrides {
                    dependencies: self.dependencies(&key, &tags, ReadSet::default()),
                    ..EntryOverrides::default()
                };
                self.resident.apply_remote_change(&key, value, version, overrides)
            }
            // Without a version nobody can say that what memory has is newer.
            None if version == Seq::ZERO => self.resident.invalidate(&key),
            // A copy that was loaded at this version or later may stay.
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

/// The effect of a write on the memory of its own cache.
struct CacheEffect<K, V> {
    view: Arc<TypedView<K, V>>,
    key: K,
    value: Option<V>,
    since: Moment,
    overrides: EntryOverrides,
}

impl<K: CacheKey, V: CacheValue> Effect for CacheEffect<K, V> {
    fn publish(self: Box<Self>, seq: Seq) {
        let CacheEffect { view, key, value, since, overrides } = *self;
        // The write has taken effect, so a panic of the user's code costs the entry and must not fail the write.
        if view.resident.apply_write(key, value, seq, since, overrides).is_err() {
            view.memory_failed();
        }
    }

    fn since(&self) -> Option<Moment> {
        Some(self.since)
    }
}

impl<K: CacheKey, V: CacheValue> TypedView<K, V> {
    /// Encodes a key as it is stored.
    pub(crate) fn stored_key(&self, key: &K) -> Result<Key> {
        with_scratch(|encoded, _| {
            self.coder.key(key, encoded)?;
            Key::new(&self.namespace, encoded)
        })
    }

    /// Encodes a write (`None` removes) into `frame`, and returns its effect on memory. A value that is written around
    /// memory is not kept there.
    pub(crate) fn encode(
        self: &Arc<Self>,
        frame: &mut FrameBuilder,
        key: &K,
        value: Option<V>,
        options: &WriteOptions,
    ) -> Result<Box<dyn Effect>> {
        let tags = options.chosen_tags();
        // Before the frame is touched: `group_of` is the user's, and must not leave half a record if it panics.
        let dependencies = self.dependencies(key, tags, ReadSet::default());
        with_scratch(|stored_key, encoded| {
            Key::write_prefix(&self.namespace, stored_key);
            self.coder.key(key, stored_key)?;
            // With the namespace in front: the limit is that of the whole stored key.
            ids::check_key_length(stored_key.len())?;
            let operation = match &value {
                Some(value) => {
                    self.coder.value(value, tags, encoded)?;
                    Operation::Put
                }
                None => Operation::Remove,
            };
            push(frame, operation, self.coalesce, stored_key, encoded)
        })?;
        // Before the write is handed over, so that an age comes out too high rather than too low.
        let since = self.resident.ticker().now();
        // Without its value the effect drops the key from memory.
        let value = value.filter(|_| options.chosen_policy().unwrap_or(self.policy) != WritePolicy::Around);
        let (view, key) = (Arc::clone(self), key.clone());
        let overrides = EntryOverrides { dependencies, ..options.overrides() };
        Ok(Box::new(CacheEffect { view, key, value, since, overrides }))
    }

    /// The group, tags and read keys that an entry of `key` depends on; `None` if there are none.
    pub(crate) fn dependencies(
        &self,
        key: &K,
        tags: &[impl AsRef<str>],
        read: ReadSet,
    ) -> Option<Arc<Dependencies>> {
        // The usual case, which hashes and allocates nothing.
        if self.group_of.is_none() && tags.is_empty() && read.is_empty() {
            return None;
        }
        let scopes = self.resident.fences().scopes();
        let group = self.group_of.as_ref().filter(|_| Safeguard::GroupTag.holds());
        let group = group.and_then(|group_of| group_of(key));
        let group = group.map(|group| scopes.tag(&group_tag(&self.namespace, &group)));
        let tags = tags.iter().map(|tag| scopes.tag(tag.as_ref()));
        Dependencies::new(group.into_iter().chain(tags).collect(), read)
    }

    /// Drops a key from memory, so that no load of it that is under way is kept.
    pub(crate) fn invalidate(&self, key: &K) {
        // The user's hash or comparison panicked: all of memory is unservable then, this key included.
        if self.resident.invalidate(key).is_err() {
            self.memory_failed();
        }
    }

    /// Counts a value that memory could not take, since code of the user's types panicked.
    pub(crate) fn memory_failed(&self) {
        self.layer_metrics.memory_failures.add(1);
        self.metrics.memory_failures.add(1);
    }

    /// Loads a key from what is pending, from the store, or from `loader` if those have nothing.
    pub(crate) async fn load(
        &self,
        reads: &Lookup,
        load: KeyLoad<K>,
        loader: Option<Loader<K, V>>,
    ) -> LoadOutcome<V> {
        let KeyLoad { key, stored, start } = load;
        let span = Span::load(self.namespace.as_str(), 1);
        let done = async {
            let answer = reads.load(&stored).await?;
            match loader {
                // The layer's own value wins over the loader's source: it was put here.
                Some(loader) if answer.value.is_none() => {
                    let loaded = (loader.load)(key.clone()).await?;
                    self.keep_loaded(reads, &key, loaded, &start)
                }
                _ => self.keep_answer(reads, &key, answer, &start),
            }
        };
        // A panic of a loader or of `Deserialize` becomes an outcome that every waiter and the throttle see.
        let result = span.around(catch_panic(done)).await.map_err(|error| self.in_namespace(error));
        self.note_end(&key, &result);
        note_in_span(&span, std::slice::from_ref(&result));
        result
    }

    /// Loads several keys likewise, with one call of the store and one of the loader. Results are in the keys' order.
    pub(crate) async fn load_many(
        &self,
        reads: &Lookup,
        loads: Vec<KeyLoad<K>>,
        loader: Option<ManyLoader<K, V>>,
    ) -> Vec<LoadOutcome<V>> {
        let span = Span::load(self.namespace.as_str(), loads.len());
        // One request for all keys; their typed forms stay behind for memory and the loader.
        let stored: Vec<Key> = loads.iter().map(|load| load.stored.clone()).collect();
        let found = catch_panic(async {
            let answers = reads.load_many(&stored).await?;
            let Some(loader) = loader else { return Ok((answers, None)) };
            let lacking = loads.iter().zip(&answers).filter(|(_, answer)| answer.value.is_none());
            let lacking: Vec<K> = lacking.map(|(load, _)| load.key.clone()).collect();
            // The loader's failure is kept apart from the store's: it fails the keys that the loader was asked for, and
            // the values that the store had are still returned and kept.
            let loaded = if lacking.is_empty() { Ok(Vec::new()) } else { catch_panic(loader(lacking)).await };
            Ok((answers, Some(loaded.map(Vec::into_iter))))
        });
        let (answers, mut loaded) = match span.around(found).await {
            Ok((answers, loaded)) => (answers.into_iter().map(Ok).collect(), loaded),
            // Each key has waiters of its own, who all need an outcome.
            Err(error) => (vec![Err(error); loads.len()], None),
        };
        let results = loads.iter().zip::<Vec<Result<LookupAnswer>>>(answers).map(
            |(KeyLoad { key, start, .. }, answer)| {
                let result = answer.and_then(|answer| match &mut loaded {
                    // The loader answers in the order of the keys that it was asked for, which is this one.
                    Some(loaded) if answer.value.is_none() => {
                        let loaded = loaded.as_mut().map_err(|error| error.clone())?;
                        // `many_loader` has compared the counts, so none is missing; an absence is harmless.
                        let loaded = loaded.next().unwrap_or_else(Loaded::absent);
                        self.keep_loaded(reads, key, loaded, start)
                    }
                    _ => self.keep_answer(reads, key, answer, start),
                });
                let result = result.map_err(|error| self.in_namespace(error));
                self.note_end(key, &result);
                result
            },
        );
        let results: Vec<LoadOutcome<V>> = results.collect();
        note_in_span(&span, &results);
        results
    }

    /// Counts a failed load, and remembers the failure for the throttle.
    fn note_end(&self, key: &K, result: &LoadOutcome<V>) {
        self.metrics.failed_loads.add(u64::from(result.is_err()));
        self.throttle.note(key, result.as_ref().err(), self.resident.ticker().now());
    }

    /// Decodes what was pending or in the store, and keeps it in memory unless something has changed since `start`.
    pub(crate) fn keep_answer(
        &self,
        reads: &Lookup,
        key: &K,
        answer: LookupAnswer,
        start: &LoadStart,
    ) -> LoadOutcome<V> {
        let source = if answer.pending { Source::Pending } else { Source::Store };
        let with_tags = |tags: &[&str]| EntryOverrides {
            dependencies: self.dependencies(key, tags, ReadSet::default()),
            ..EntryOverrides::default()
        };
        let (value, version, overrides) = match answer.value {
            Some(Versioned { value, version }) => {
                // Before memory: what does not decode is an error for its readers and never an entry.
                let Decoded { value, tags } = self.coder.decode(&value)?;
                (Some(value), version, with_tags(&tags))
            }
            None => (None, Seq::ZERO, with_tags(&[])),
        };
        let load_result = LoadResult { value: value.as_ref(), version, of_loader: false, overrides };
        // If memory refuses it, this load's readers still get the value: they began before the change that won.
        self.keep(reads, key, &load_result, start);
        let (dependencies, generation) = (load_result.overrides.dependencies, start.generation);
        Ok(LoadDone { value, version, since: start.since, source, generation, dependencies })
    }

    /// Keeps what a loader brought likewise.
    fn keep_loaded(&self, reads: &Lookup, key: &K, loaded: Loaded<V>, start: &LoadStart) -> LoadOutcome<V> {
        let Loaded { value, overrides, tags, read } = loaded;
        // A longer tag could never be invalidated: `invalidate_tag` refuses it.
        check_tags(&tags)?;
        let overrides = EntryOverrides { dependencies: self.dependencies(key, &tags, read), ..overrides };
        // Without a version: those of the loader's source cannot be compared with the layer's.
        let load_result =
            LoadResult { value: value.as_ref(), version: Seq::ZERO, of_loader: true, overrides };
        self.keep(reads, key, &load_result, start);
        let (dependencies, generation, source) =
            (load_result.overrides.dependencies, start.generation, Source::Loader);
        Ok(LoadDone { value, version: Seq::ZERO, since: start.since, source, generation, dependencies })
    }

    fn keep(&self, reads: &Lookup, key: &K, load_result: &LoadResult<'_, V>, start: &LoadStart) {
        let remembers_absence = self.resident.freshness().negative_time_to_live.is_some();
        match self.resident.fill(key, load_result, start) {
            Ok(true) => {}
            // An absent key is not kept by a cache that remembers no absences: that is not a lost race.
            Ok(false) if load_result.value.is_none() && !remembers_absence => {}
            Ok(false) => {
                reads.metrics().refused_fills.add(1);
                self.metrics.refused_fills.add(1);
            }
            // The user's code panicked while the entry was made; the loaded value is still the readers' answer.
            Err(_) => self.memory_failed(),
        }
    }

    /// True if something that the value depends on was invalidated since its load began.
    pub(crate) fn is_invalidated(&self, done: &LoadDone<V>) -> bool {
        let scopes = self.resident.fences().scopes();
        // Compared with the start of the load: what was invalidated while it ran counts, too.
        let broken = |dependencies: &Arc<Dependencies>| dependencies.have_changed(scopes, done.generation);
        done.dependencies.as_ref().is_some_and(broken) && Safeguard::JoinNoBrokenLoad.holds()
    }

    /// Adds the namespace to an error's context.
    pub(crate) fn in_namespace(&self, error: Error) -> Error {
        let kind = error.kind();
        error.wrap(kind, format!("namespace {}", self.namespace))
    }

    /// Counts a read that memory answered.
    pub(crate) fn count_hit(&self, held: &MemoryHit<V>) {
        self.metrics.memory_hits.increment();
        if let Some(reason) = held.stale {
            self.metrics.stale_ages.note(held.age);
            self.metrics.stale.add(reason, 1);
        }
    }

    /// Counts a read that memory could not answer.
    pub(crate) fn count_miss(&self, reason: MissReason) {
        self.metrics.misses.add(reason, 1);
    }
}

/// Notes in a span how many keys were found, or of what kind the first failure was.
fn note_in_span<V>(span: &Span, results: &[LoadOutcome<V>]) {
    match results.iter().find_map(|result| result.as_ref().err()) {
        Some(error) => span.failed(error.kind()),
        None => {
            let found = results.iter().flatten().filter(|done| done.value.is_some()).count();
            span.note("found", u64::try_from(found).unwrap_or(u64::MAX));
        }
    }
}

/// Runs a load; a panic of it becomes an error.
async fn catch_panic<T>(load: impl Future<Output = Result<T>>) -> Result<T> {
    let mut load = pin!(load);
    poll_fn(|context| {
        // Around each poll, which runs on the task of whichever waiter drives the flight: it must not unwind there.
        let polled = catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(context)));
        polled.unwrap_or_else(|_panic| Poll::Ready(Err(load_panicked())))
    })
    .await
}
