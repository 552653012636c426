//! Lookup: memory, then pending writes, then the store, then the reader's loader; one load per key at a time.
//!
//! Only `memory::servable` decides if an entry in memory may be served. This file acts on the answer: it
//! serves, loads, loads in the background, or, when a load fails, looks for a stale entry to serve in its stead.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::cache::codec::{CacheKey, CacheValue};
use crate::cache::entry::{Entry, ReadOptions, Source, StalenessBound};
use crate::cache::flights::{FlightBuilder, Flights, Join};
use crate::cache::loader::{Loader, ManyLoader, load_panicked};
use crate::cache::throttle::is_source_failure;
use crate::cache::view::{KeyLoad, LoadDone, LoadOutcome, TypedView};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::layer::layer::Layer;
use crate::memory::entry::{Candidate, LoadStart, MemoryHit};
use crate::memory::freshness::OnUnverified;
use crate::memory::servable::{LoadProgress, MissReason, ReadConstraints};
use crate::queue::lookup::LookupAnswer;
use crate::seam::future::BoxFuture;

/// An open cache: the shared part of its namespace, and the layer that it belongs to.
pub(crate) struct OpenCache<K, V> {
    pub(crate) layer: Arc<Layer>,
    pub(crate) view: Arc<TypedView<K, V>>,
}

impl<K, V> Clone for OpenCache<K, V> {
    fn clone(&self) -> Self {
        OpenCache { layer: Arc::clone(&self.layer), view: Arc::clone(&self.view) }
    }
}

/// The future of a plain read.
///
/// Written by hand: an `async` block moves what it returns at once through its own memory, and that is a good part of
/// what a hit costs.
pub(crate) struct Get<'a, K, V> {
    cache: &'a OpenCache<K, V>,
    key: &'a K,
    /// The read of a key that memory does not have; on the heap, so that the future of a hit stays small.
    beyond_memory: Option<BoxFuture<'a, Result<Option<V>>>>,
}

impl<K: CacheKey, V: CacheValue> Future for Get<'_, K, V> {
    type Output = Result<Option<V>>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Memory is asked once: a second look would count the read twice.
        if self.beyond_memory.is_none()
            && let Poll::Ready(answer) = self.cache.get_in_memory(self.key)
        {
            return Poll::Ready(answer);
        }
        self.poll_beyond_memory(context)
    }
}

impl<'a, K: CacheKey, V: CacheValue> Get<'a, K, V> {
    pub(crate) fn new(cache: &'a OpenCache<K, V>, key: &'a K) -> Get<'a, K, V> {
        Get { cache, key, beyond_memory: None }
    }

    #[cold]
    fn poll_beyond_memory(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<V>>> {
        // Boxed only here, so that the future of a hit is small and allocates nothing.
        let (cache, key) = (self.cache, self.key);
        self.beyond_memory
            .get_or_insert_with(|| Box::pin(cache.get_beyond_memory(key)))
            .as_mut()
            .poll(context)
    }
}

impl<K: CacheKey, V: CacheValue> OpenCache<K, V> {
    /// Answers a plain read from memory, or returns `Pending`; counted either way. Needs nobody to drive it.
    #[inline(always)]
    pub(crate) fn get_in_memory(&self, key: &K) -> Poll<Result<Option<V>>> {
        // Two ways out, so that the value of the first one passes through no memory.
        match self.glance(key) {
            Ok(value) => Poll::Ready(Ok(value)),
            Err(found) => match self.get_judged(key, found) {
                Some(answer) => Poll::Ready(answer),
                None => Poll::Pending,
            },
        }
    }

    /// The rest of a plain read that memory did not answer.
    pub(crate) async fn get_beyond_memory(&self, key: &K) -> Result<Option<V>> {
        self.read_beyond_memory(key, &ReadConstraints::default(), None, None).await.map(|entry| entry.value)
    }

    /// Returns the value in memory if no time limits it, and counts the hit; else what is to be judged.
    #[inline]
    fn glance(&self, key: &K) -> Result<Option<V>, Candidate<V>> {
        // Writes that were acknowledged before this read may not be in memory yet (`Safeguard::MemoryCatchesUp`).
        self.layer.catch_up();
        let value = self.view.resident.get(key)?;
        self.view.metrics.memory_hits.increment();
        Ok(value)
    }

    /// Returns what was found if it may be served, and loads it again if that is due. `None` if the read has to go
    /// beyond memory. Counts a hit or a miss.
    #[cold]
    fn get_judged(&self, key: &K, found: Candidate<V>) -> Option<Result<Option<V>>> {
        match self.view.resident.check(found, &ReadConstraints::default()) {
            Ok(held) => {
                self.view.count_hit(&held);
                // This reader has its value. Waiting for the reload would give away what the stale window is for.
                if held.reload {
                    self.load_in_background(key, None);
                }
                Some(Ok(held.value))
            }
            Err(reason) => {
                self.view.count_miss(reason);
                // `None` sends the reader on to the store; only a follower that has to fail ends here.
                self.check_verifiable(reason, &ReadConstraints::default()).err().map(Err)
            }
        }
    }

    /// Reads with the proof. `loader` is made only if memory does not have the answer.
    pub(crate) async fn read(
        &self,
        key: &K,
        options: &ReadOptions,
        has_loader: bool,
        loader: impl FnOnce() -> Option<Loader<K, V>>,
    ) -> Result<Entry<V>> {
        // First, as it may wait for the write of a receipt: memory has to be looked at after that.
        let constraints = self.constraints(options, has_loader).await?;
        self.layer.catch_up();
        match self.view.resident.lookup(key, &constraints) {
            Ok(held) => {
                self.view.count_hit(&held);
                if held.reload {
                    // The loader is boxed only when it is needed: most hits need none.
                    self.load_in_background(key, loader());
                }
                Ok(entry_in_memory(held, None))
            }
            Err(reason) => {
                self.view.count_miss(reason);
                self.check_verifiable(reason, &constraints)?;
                self.read_beyond_memory(key, &constraints, options.instead_of_waiting(), loader()).await
            }
        }
    }

    /// Reads a key that memory does not have: pending writes, then the store, then the loader.
    async fn read_beyond_memory(
        &self,
        key: &K,
        constraints: &ReadConstraints,
        instead_of_waiting: Option<Duration>,
        loader: Option<Loader<K, V>>,
    ) -> Result<Entry<V>> {
        let OpenCache { layer, view } = self;
        // Before the fences: a key that cannot be encoded must not move one.
        let stored = view.stored_key(key)?;
        // The mark is taken before anything is looked at, so a change during the load wins (`Safeguard::FenceOnFill`).
        let start = self.start(key, constraints);
        // A pending value that is in memory needs no flight: nobody has to wait for it. A pending removal answers only
        // a reader without a loader; the key is absent then, and a loader has to be asked.
        if let Some(pending) = layer.reads().peek(&stored)
            && (pending.is_some() || loader.is_none())
        {
            layer.metrics().pending_hits.add(1);
            let answer = LookupAnswer { value: pending, pending: true };
            let done = view.keep_answer(layer.reads(), key, answer, &start);
            let done = done.map_err(|error| view.in_namespace(error))?;
            return Ok(self.entry_loaded(done, &start, constraints));
        }
        // Before a flight begins: a source that is down would get a load for every reader.
        if let Some(error) = view.throttle.recent(key, start.since) {
            view.metrics.throttled_loads.add(1);
            return self.stale_or(key, constraints, error);
        }
        let mut flight = self.flights(loader.as_ref()).builder();
        let suits = |other: &LoadStart| view.resident.may_join(other.since, start.since, constraints);
        let (waiter, retry) = match flight.join_or_add(key, &start, suits) {
            Join::Lead(waiter) => {
                self.start_load(flight, KeyLoad { key: key.clone(), stored, start }, loader);
                (waiter, None)
            }
            Join::Follow(waiter) => {
                // It has no keys, and this reader may wait for long.
                drop(flight);
                // Only for readers who join. If the one who leads took the old value, too, nobody would load.
                if let Some(most) = instead_of_waiting {
                    let waiting = ReadConstraints {
                        progress: LoadProgress::InFlight(most),
                        measures_age: true,
                        ..*constraints
                    };
                    if let Ok(held) = view.resident.lookup(key, &waiting) {
                        view.count_hit(&held);
                        return Ok(entry_in_memory(held, None));
                    }
                }
                self.count_join();
                (waiter, Some((stored, loader)))
            }
        };
        match (waiter.await.unwrap_or_else(|| Err(load_panicked())), retry) {
            // Tags and read keys of a value are known only when it is loaded. If one of them was invalidated before
            // this reader came, the load that it joined is too old for it.
            (Ok(done), Some((stored, loader))) if view.is_invalidated(&done) => {
                // With a new mark from after the invalidation: with the first one the value could not be kept.
                let load = KeyLoad { key: key.clone(), stored, start: self.start(key, constraints) };
                // Boxed, so that this rare way does not enlarge the future of every miss.
                Box::pin(self.read_alone(load, constraints, loader)).await
            }
            (Ok(done), _) => Ok(self.entry_loaded(done, &start, constraints)),
            (Err(error), _) => self.stale_or(key, constraints, error),
        }
    }

    /// Loads a key without joining a flight.
    async fn read_alone(
        &self,
        load: KeyLoad<K>,
        constraints: &ReadConstraints,
        loader: Option<Loader<K, V>>,
    ) -> Result<Entry<V>> {
        let (key, start) = (load.key.clone(), load.start);
        let mut flight = self.flights(loader.as_ref()).builder();
        // No flight suits, so this reader always leads and cannot join a broken load again.
        let (Join::Lead(waiter) | Join::Follow(waiter)) = flight.join_or_add(&key, &start, |_| false);
        self.start_load(flight, load, loader);
        match waiter.await.unwrap_or_else(|| Err(load_panicked())) {
            Ok(done) => Ok(self.entry_loaded(done, &start, constraints)),
            Err(error) => self.stale_or(&key, constraints, error),
        }
    }

    /// Reads several keys, in their order. Keys that nobody loads yet are loaded in one call of the store and one of
    /// the loader.
    pub(crate) async fn read_many(
        &self,
        keys: &[K],
        options: &ReadOptions,
        loader: Option<ManyLoader<K, V>>,
    ) -> Result<Vec<Option<V>>> {
        let OpenCache { layer, view } = self;
        let constraints = self.constraints(options, loader.is_some()).await?;
        // Only the values are returned, so the clock is read only where it decides.
        let constraints = ReadConstraints { measures_age: false, ..constraints };
        let mut values = Vec::with_capacity(keys.len());
        let mut missing = Vec::new();
        // Once for all keys: what was acknowledged before the call is in memory from here on.
        layer.catch_up();
        // All that can fail comes before a flight is joined or begun: a flight that has keys has to be started.
        for (at, key) in keys.iter().enumerate() {
            match view.resident.lookup(key, &constraints) {
                Ok(held) => {
                    view.count_hit(&held);
                    if held.reload && loader.is_none() {
                        self.load_in_background(key, None);
                    }
                    values.push(held.value);
                    continue;
                }
                Err(reason) => {
                    view.count_miss(reason);
                    self.check_verifiable(reason, &constraints)?;
                }
            }
            match view.throttle.recent(key, view.resident.ticker().now()) {
                Some(error) => {
                    view.metrics.throttled_loads.add(1);
                    // A throttled key fails the call, as the load that it stands for would.
                    values.push(self.stale_or(key, &constraints, error)?.value);
                }
                None => {
                    missing.push((at, key, view.stored_key(key)?));
                    values.push(None);
                }
            }
        }
        if missing.is_empty() {
            return Ok(values);
        }
        // A plain load ends with an absence where a loader would be asked, so loaders have flights of their own.
        let flights = if loader.is_some() { &view.loader_flights } else { &view.flights };
        let mut flight = flights.builder();
        // The tags of a value are known only when it is loaded, so a load is joined only if no tag or group at all was
        // invalidated since it began. A single read would check the tags afterwards and load again.
        let newest = view.resident.fences().scopes().newest();
        let (mut loads, mut waiters) = (Vec::new(), Vec::new());
        for (at, key, stored) in missing {
            let start = self.start(key, &constraints);
            let suits = |other: &LoadStart| {
                other.generation >= newest && view.resident.may_join(other.since, start.since, &constraints)
            };
            let waiter = match flight.join_or_add(key, &start, suits) {
                Join::Lead(waiter) => {
                    loads.push(KeyLoad { key: key.clone(), stored, start });
                    waiter
                }
                Join::Follow(waiter) => {
                    self.count_join();
                    waiter
                }
            };
            waiters.push((at, key, start, waiter));
        }
        if !loads.is_empty() {
            view.metrics.loads.add(u64::try_from(loads.len()).unwrap_or(u64::MAX));
            let (view, reads) = (Arc::clone(view), Arc::clone(layer.reads()));
            flight.start(async move { view.load_many(&reads, loads, loader).await });
        }
        // One after the other is enough: the keys that this call leads share one flight, which the first wait drives.
        for (at, key, start, waiter) in waiters {
            let entry = match waiter.await.unwrap_or_else(|| Err(load_panicked())) {
                Ok(done) => self.entry_loaded(done, &start, &constraints),
                Err(error) => self.stale_or(key, &constraints, error)?,
            };
            if let Some(value) = values.get_mut(at) {
                *value = entry.value;
            }
        }
        Ok(values)
    }

    /// Returns what memory would serve; neither counted nor a use.
    pub(crate) fn peek(&self, key: &K) -> Option<Entry<V>> {
        // As for a read: a write that was acknowledged before the call has to show.
        self.layer.catch_up();
        self.view.resident.peek(key, &ReadConstraints::default()).ok().map(|held| entry_in_memory(held, None))
    }

    /// Loads a key while its readers are served from memory; does nothing if it is being loaded already.
    fn load_in_background(&self, key: &K, loader: Option<Loader<K, V>>) {
        // The key was encoded when its entry came, so it encodes again; should it not, readers get the error when the
        // entry's time is up.
        let Ok(stored) = self.view.stored_key(key) else { return };
        let start = self.view.resident.start(key);
        // The reader has a value, so a source that has just failed is left alone.
        if self.view.throttle.recent(key, start.since).is_some() {
            return;
        }
        let mut flight = self.flights(loader.as_ref()).builder();
        // Any load under way will do, however old: the reader has its answer.
        if let Join::Lead(waiter) = flight.join_or_add(key, &start, |_| true) {
            self.start_load(flight, KeyLoad { key: key.clone(), stored, start }, loader);
            self.view.metrics.background_loads.add(1);
            // Flights are driven by their waiters, and this reader does not wait.
            self.layer.tasks().spawn(async move { drop(waiter.await) });
        }
    }

    /// Notes where the fences of a key stand before a load for this reader.
    fn start(&self, key: &K, constraints: &ReadConstraints) -> LoadStart {
        match constraints.max_staleness {
            // This reader wants the value of now, so no load that began earlier may replace what it finds.
            Some(most) if most.is_zero() => self.view.resident.start_past_memory(key),
            _ => self.view.resident.start(key),
        }
    }

    fn flights(&self, loader: Option<&Loader<K, V>>) -> &Arc<Flights<K, LoadOutcome<V>>> {
        match loader {
            None => &self.view.flights,
            // Apart from plain loaders: their values carry no read set that would show a change of a source.
            Some(loader) if loader.derives => &self.view.derived_flights,
            Some(_) => &self.view.loader_flights,
        }
    }

    fn start_load(
        &self,
        flight: FlightBuilder<K, LoadOutcome<V>>,
        load: KeyLoad<K>,
        loader: Option<Loader<K, V>>,
    ) {
        self.view.metrics.loads.add(1);
        let (view, reads) = (Arc::clone(&self.view), Arc::clone(self.layer.reads()));
        flight.start(async move { vec![view.load(&reads, load, loader).await] });
    }

    /// Translates a read's options, after waiting until the store has the write that the reader wants to see.
    async fn constraints(&self, options: &ReadOptions, has_loader: bool) -> Result<ReadConstraints> {
        let constraints = options.constraints(has_loader);
        let past_memory = match options.least() {
            // True if the store has the write and memory may still be behind it: then memory must not answer.
            Some(least) => self.layer.reach(least).await?,
            None => false,
        };
        let max_staleness = if past_memory { Some(Duration::ZERO) } else { constraints.max_staleness };
        Ok(ReadConstraints { max_staleness, ..constraints })
    }

    /// Fails a read that wants nothing unverified, if memory has the key and cannot tell whether it is current.
    fn check_verifiable(&self, reason: MissReason, constraints: &ReadConstraints) -> Result<()> {
        let Some(following) = self.view.resident.freshness().following else { return Ok(()) };
        let wanted = constraints.on_unverified.unwrap_or(following.on_unverified);
        if reason != MissReason::Unverified || wanted != OnUnverified::Fail {
            return Ok(());
        }
        let context = format!(
            "namespace {}: for {:?} or longer it could not be told whether this is current",
            self.view.namespace, following.lag_max
        );
        Err(Error::new(ErrorKind::Unverified, context))
    }

    /// Returns a stale entry in the stead of a load that failed, or else the failure.
    fn stale_or(&self, key: &K, constraints: &ReadConstraints, error: Error) -> Result<Entry<V>> {
        // "It must not be read" or "it does not decode" are answers: an older value would hide them.
        if !is_source_failure(&error) {
            return Err(error);
        }
        // What memory has now: the entry from before the load may have been invalidated while it ran.
        self.layer.catch_up();
        match self.view.resident.lookup(
            key,
            &ReadConstraints { progress: LoadProgress::Failed, measures_age: true, ..*constraints },
        ) {
            Ok(held) => {
                self.view.count_hit(&held);
                Ok(entry_in_memory(held, Some(error)))
            }
            // The load's failure tells the caller more than the reason why memory cannot help.
            Err(_) => Err(error),
        }
    }

    /// Makes a reader's entry of what its load, or one that it joined, brought.
    fn entry_loaded(&self, done: LoadDone<V>, start: &LoadStart, constraints: &ReadConstraints) -> Entry<V> {
        let metrics = &self.view.metrics;
        let LoadDone { value, version, since, source, generation: _, dependencies } = done;
        match (&value, source) {
            (None, _) => metrics.not_found.add(1),
            (_, Source::Pending) => metrics.pending_hits.add(1),
            (_, Source::Loader) => metrics.loader_hits.add(1),
            _ => metrics.store_hits.add(1),
        }
        // A pending write is newer than the store, and a load that began later saw all that the reader could expect.
        let bound = if source == Source::Pending || since >= start.since {
            StalenessBound::Current
        } else {
            // A joined load that began before the read did.
            StalenessBound::of(
                self.view.resident.time_to_live().into_iter().chain(constraints.max_staleness).min(),
            )
        };
        let age = self.view.resident.ticker().now().since(since);
        Entry { value, version: known(version), age, source, bound, stale: None, error: None, dependencies }
    }

    fn count_join(&self) {
        self.layer.metrics().joined_loads.add(1);
        self.view.metrics.joined_loads.add(1);
    }
}

fn entry_in_memory<V>(held: MemoryHit<V>, error: Option<Error>) -> Entry<V> {
    let MemoryHit { value, version, age, stale, reload: _, bound, dependencies } = held;
    let (version, bound) = (known(version), StalenessBound::of(bound));
    // A fresh entry, loaded by somebody else meanwhile, is not served in the stead of anything.
    let error = error.filter(|_| stale.is_some());
    Entry { value, version, age, source: Source::Memory, bound, stale, error, dependencies }
}

fn known(version: Seq) -> Option<Seq> {
    (version > Seq::ZERO).then_some(version)
}
