//! How a cache reads: memory, then what is pending, then the store, then the reader's loader; one load per key.
//!
//! Whether something in memory may be served is decided by `memory::servable` alone. Here is what follows from the
//! answer: a load, a load in the background, or, when a load fails, a second look at what may be served in its stead.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::cache::codec::{Decoded, check_tags};
use crate::cache::entry::{Entry, Loaded, MetBound, ReadOptions, Source};
use crate::cache::flights::{Departure, Flights, Turn};
use crate::cache::source::{Loader, ManyLoader, panicked};
use crate::cache::throttle::is_failing_source;
use crate::cache::view::{CacheKey, CacheValue, TypedView};
use crate::error::{Error, Result};
use crate::ids::{Key, Seq};
use crate::layer::layer::Layer;
use crate::memory::dependencies::{Dependencies, ReadSet};
use crate::memory::entry::{Candidate, EntryOverrides, LoadResult, LoadStart, MemoryHit};
use crate::memory::servable::{Generation, LoadProgress, ReadConstraints};
use crate::queue::lookup::{Answer, Reads};
use crate::safeguard::Safeguard;
use crate::seam::clock::Moment;
use crate::seam::span::Span;
use crate::store::contract::Versioned;

/// What a load brought to all who wait for it.
#[derive(Clone)]
pub(crate) struct Landed<V> {
    value: Option<V>,
    version: Seq,
    since: Moment,
    source: Source,
    generation: Generation,
    dependencies: Option<Arc<Dependencies>>,
}

pub(crate) type Outcome<V> = Result<Landed<V>>;

/// A key that a flight loads.
struct Led<K> {
    key: K,
    stored: Key,
    start: LoadStart,
}

impl<K: CacheKey, V: CacheValue> TypedView<K, V> {
    /// What memory has, counted, if no time limits it; else what there is to judge.
    #[inline]
    pub(crate) fn hit(&self, layer: &Layer, key: &K) -> Result<Option<V>, Candidate<V>> {
        layer.catch_up();
        let value = self.resident.get(key)?;
        self.metrics.memory_hits.increment();
        Ok(value)
    }

    /// What memory has, if it may be served, or why nothing may be; counted either way. Loads it again where that is
    /// due.
    #[cold]
    pub(crate) fn hit_if_judged(
        self: &Arc<Self>,
        layer: &Layer,
        key: &K,
        found: Candidate<V>,
    ) -> Option<Result<Option<V>>> {
        match self.resident.check(found, &ReadConstraints::default()) {
            Ok(held) => {
                self.count_hit(&held);
                if held.reload {
                    self.load_in_background(layer, key, None);
                }
                Some(Ok(held.value))
            }
            Err(reason) => {
                self.count_miss(reason);
                self.check_verifiable(reason, &ReadConstraints::default()).err().map(Err)
            }
        }
    }

    /// Reads with the proof. `loader` is made only if memory does not have the answer.
    pub(crate) async fn read(
        self: &Arc<Self>,
        layer: &Layer,
        key: &K,
        options: &ReadOptions,
        has_loader: bool,
        loader: impl FnOnce() -> Option<Loader<K, V>>,
    ) -> Result<Entry<V>> {
        let constraints = self.constraints(layer, options, has_loader).await?;
        layer.catch_up();
        match self.resident.lookup(key, &constraints) {
            Ok(held) => {
                self.count_hit(&held);
                if held.reload {
                    self.load_in_background(layer, key, loader());
                }
                Ok(entry_held(held, None))
            }
            Err(reason) => {
                self.count_miss(reason);
                self.check_verifiable(reason, &constraints)?;
                self.read_beyond(layer, key, &constraints, options.instead_of_waiting(), loader()).await
            }
        }
    }

    /// Reads what memory does not have: pending, then the store, then the loader, one load per key at a time.
    pub(crate) async fn read_beyond(
        self: &Arc<Self>,
        layer: &Layer,
        key: &K,
        constraints: &ReadConstraints,
        instead_of_waiting: Option<Duration>,
        loader: Option<Loader<K, V>>,
    ) -> Result<Entry<V>> {
        let stored = self.stored_key(key)?;
        let start = self.start(key, constraints);
        if let Some(pending) = layer.reads().peek(&stored)
            && (pending.is_some() || loader.is_none())
        {
            layer.metrics().pending_hits.add(1);
            let answer = Answer { value: pending, pending: true };
            let landed = self.keep_answer(layer.reads(), key, answer, &start);
            let landed = landed.map_err(|error| self.in_namespace(error))?;
            return Ok(self.entry_landed(landed, &start, constraints));
        }
        if let Some(error) = self.throttle.recent(key, start.since) {
            self.metrics.throttled_loads.add(1);
            return self.instead_of(layer, key, constraints, error);
        }
        let mut departure = self.flights(loader.as_ref()).departure();
        let suits = |other: &LoadStart| self.resident.may_join(other.since, start.since, constraints);
        let (join, left) = match departure.board(key, &start, suits) {
            Turn::Lead(join) => {
                self.depart(layer.reads(), departure, Led { key: key.clone(), stored, start }, loader);
                (join, None)
            }
            Turn::Join(join) => {
                drop(departure);
                if let Some(most) = instead_of_waiting {
                    let waiting = ReadConstraints {
                        progress: LoadProgress::InFlight(most),
                        measures_age: true,
                        ..*constraints
                    };
                    if let Ok(held) = self.resident.lookup(key, &waiting) {
                        self.count_hit(&held);
                        return Ok(entry_held(held, None));
                    }
                }
                self.count_join(layer);
                (join, Some((stored, loader)))
            }
        };
        match (join.await.unwrap_or_else(|| Err(panicked())), left) {
            // What it hangs on may have been invalidated before this reader came.
            (Ok(landed), Some((stored, loader))) if self.is_broken(&landed) => {
                let led = Led { key: key.clone(), stored, start: self.start(key, constraints) };
                Box::pin(self.read_alone(layer, led, constraints, loader)).await
            }
            (Ok(landed), _) => Ok(self.entry_landed(landed, &start, constraints)),
            (Err(error), _) => self.instead_of(layer, key, constraints, error),
        }
    }

    /// Loads a key without joining anybody.
    async fn read_alone(
        self: &Arc<Self>,
        layer: &Layer,
        led: Led<K>,
        constraints: &ReadConstraints,
        loader: Option<Loader<K, V>>,
    ) -> Result<Entry<V>> {
        let (key, start) = (led.key.clone(), led.start);
        let mut departure = self.flights(loader.as_ref()).departure();
        let (Turn::Lead(join) | Turn::Join(join)) = departure.board(&key, &start, |_| false);
        self.depart(layer.reads(), departure, led, loader);
        match join.await.unwrap_or_else(|| Err(panicked())) {
            Ok(landed) => Ok(self.entry_landed(landed, &start, constraints)),
            Err(error) => self.instead_of(layer, &key, constraints, error),
        }
    }

    fn is_broken(&self, landed: &Landed<V>) -> bool {
        let scopes = self.resident.fences().scopes();
        let broken = |dependencies: &Arc<Dependencies>| dependencies.have_changed(scopes, landed.generation);
        landed.dependencies.as_ref().is_some_and(broken) && Safeguard::JoinNoBrokenLoad.holds()
    }

    /// The values of several keys, in their order; what nobody loads yet in one call, of the store and of the loader.
    pub(crate) async fn read_many(
        self: &Arc<Self>,
        layer: &Layer,
        keys: &[K],
        options: &ReadOptions,
        loader: Option<ManyLoader<K, V>>,
    ) -> Result<Vec<Option<V>>> {
        let constraints = self.constraints(layer, options, loader.is_some()).await?;
        // Only the values are returned, so the clock is read only where it decides.
        let constraints = ReadConstraints { measures_age: false, ..constraints };
        let mut values = Vec::with_capacity(keys.len());
        let mut missing = Vec::new();
        layer.catch_up();
        // What can fail comes first: a flight that has been boarded has to depart.
        for (at, key) in keys.iter().enumerate() {
            match self.resident.lookup(key, &constraints) {
                Ok(held) => {
                    self.count_hit(&held);
                    if held.reload && loader.is_none() {
                        self.load_in_background(layer, key, None);
                    }
                    values.push(held.value);
                    continue;
                }
                Err(reason) => {
                    self.count_miss(reason);
                    self.check_verifiable(reason, &constraints)?;
                }
            }
            match self.throttle.recent(key, self.resident.ticker().now()) {
                Some(error) => {
                    self.metrics.throttled_loads.add(1);
                    values.push(self.instead_of(layer, key, &constraints, error)?.value);
                }
                None => {
                    missing.push((at, key, self.stored_key(key)?));
                    values.push(None);
                }
            }
        }
        if missing.is_empty() {
            return Ok(values);
        }
        let flights = if loader.is_some() { &self.loader_flights } else { &self.flights };
        let mut departure = flights.departure();
        // Which tags a load will bring is not known before it lands.
        let newest = self.resident.fences().scopes().newest();
        let (mut led, mut joins) = (Vec::new(), Vec::new());
        for (at, key, stored) in missing {
            let start = self.start(key, &constraints);
            let suits = |other: &LoadStart| {
                other.generation >= newest && self.resident.may_join(other.since, start.since, &constraints)
            };
            let join = match departure.board(key, &start, suits) {
                Turn::Lead(join) => {
                    led.push(Led { key: key.clone(), stored, start });
                    join
                }
                Turn::Join(join) => {
                    self.count_join(layer);
                    join
                }
            };
            joins.push((at, key, start, join));
        }
        if !led.is_empty() {
            self.metrics.loads.add(u64::try_from(led.len()).unwrap_or(u64::MAX));
            let (view, reads) = (Arc::clone(self), Arc::clone(layer.reads()));
            departure.depart(async move { view.load_many(&reads, led, loader).await });
        }
        for (at, key, start, join) in joins {
            let entry = match join.await.unwrap_or_else(|| Err(panicked())) {
                Ok(landed) => self.entry_landed(landed, &start, &constraints),
                Err(error) => self.instead_of(layer, key, &constraints, error)?,
            };
            if let Some(value) = values.get_mut(at) {
                *value = entry.value;
            }
        }
        Ok(values)
    }

    /// Loads a key while its readers have what memory has; does nothing if somebody loads it already.
    fn load_in_background(self: &Arc<Self>, layer: &Layer, key: &K, loader: Option<Loader<K, V>>) {
        // A key that is in memory was encoded when it came, so this one will be, too; if not, its readers are told
        // when its time is up.
        let Ok(stored) = self.stored_key(key) else { return };
        let start = self.resident.start(key);
        if self.throttle.recent(key, start.since).is_some() {
            return;
        }
        let mut departure = self.flights(loader.as_ref()).departure();
        if let Turn::Lead(join) = departure.board(key, &start, |_| true) {
            self.depart(layer.reads(), departure, Led { key: key.clone(), stored, start }, loader);
            self.metrics.background_loads.add(1);
            layer.tasks().spawn(async move { drop(join.await) });
        }
    }

    /// Where a load for this reader starts.
    fn start(&self, key: &K, constraints: &ReadConstraints) -> LoadStart {
        match constraints.max_staleness {
            // The value of now: what began earlier must not come after it.
            Some(most) if most.is_zero() => self.resident.start_past_memory(key),
            _ => self.resident.start(key),
        }
    }

    fn flights(&self, loader: Option<&Loader<K, V>>) -> &Arc<Flights<K, Outcome<V>>> {
        match loader {
            None => &self.flights,
            Some(loader) if loader.derives => &self.derived_flights,
            Some(_) => &self.loader_flights,
        }
    }

    fn depart(
        self: &Arc<Self>,
        reads: &Arc<Reads>,
        departure: Departure<K, Outcome<V>>,
        led: Led<K>,
        loader: Option<Loader<K, V>>,
    ) {
        self.metrics.loads.add(1);
        let (view, reads) = (Arc::clone(self), Arc::clone(reads));
        departure.depart(async move { vec![view.load(&reads, led, loader).await] });
    }

    async fn load(&self, reads: &Reads, led: Led<K>, loader: Option<Loader<K, V>>) -> Outcome<V> {
        let Led { key, stored, start } = led;
        let span = Span::load(self.namespace.as_str(), 1);
        let landed = async {
            let answer = reads.load(&stored).await?;
            match loader {
                Some(loader) if answer.value.is_none() => {
                    let loaded = (loader.load)(key.clone()).await?;
                    self.keep_loaded(reads, &key, loaded, &start)
                }
                _ => self.keep_answer(reads, &key, answer, &start),
            }
        };
        let outcome = span.around(caught(landed)).await.map_err(|error| self.in_namespace(error));
        self.ended(&key, &outcome);
        note_load(&span, std::slice::from_ref(&outcome));
        outcome
    }

    async fn load_many(
        &self,
        reads: &Reads,
        led: Vec<Led<K>>,
        loader: Option<ManyLoader<K, V>>,
    ) -> Vec<Outcome<V>> {
        let span = Span::load(self.namespace.as_str(), led.len());
        let stored: Vec<Key> = led.iter().map(|led| led.stored.clone()).collect();
        let found = caught(async {
            let answers = reads.load_many(&stored).await?;
            let Some(loader) = loader else { return Ok((answers, None)) };
            let lacking = led.iter().zip(&answers).filter(|(_, answer)| answer.value.is_none());
            let lacking: Vec<K> = lacking.map(|(led, _)| led.key.clone()).collect();
            // A failing loader fails what it was asked for, not what the store has.
            let loaded = if lacking.is_empty() { Ok(Vec::new()) } else { caught(loader(lacking)).await };
            Ok((answers, Some(loaded.map(Vec::into_iter))))
        });
        let (answers, mut loaded) = match span.around(found).await {
            Ok((answers, loaded)) => (answers.into_iter().map(Ok).collect(), loaded),
            Err(error) => (vec![Err(error); led.len()], None),
        };
        let landed =
            led.iter().zip::<Vec<Result<Answer>>>(answers).map(|(Led { key, start, .. }, answer)| {
                let outcome = answer.and_then(|answer| match &mut loaded {
                    Some(loaded) if answer.value.is_none() => {
                        let loaded = loaded.as_mut().map_err(|error| error.clone())?;
                        let loaded = loaded.next().unwrap_or_else(Loaded::absent);
                        self.keep_loaded(reads, key, loaded, start)
                    }
                    _ => self.keep_answer(reads, key, answer, start),
                });
                let outcome = outcome.map_err(|error| self.in_namespace(error));
                self.ended(key, &outcome);
                outcome
            });
        let landed: Vec<Outcome<V>> = landed.collect();
        note_load(&span, &landed);
        landed
    }

    /// Notes how a load ended.
    fn ended(&self, key: &K, outcome: &Outcome<V>) {
        self.metrics.failed_loads.add(u64::from(outcome.is_err()));
        self.throttle.note(key, outcome.as_ref().err(), self.resident.ticker().now());
    }

    /// Decodes what was found and keeps it in memory, if nothing has changed since the start.
    fn keep_answer(&self, reads: &Reads, key: &K, answer: Answer, start: &LoadStart) -> Outcome<V> {
        let source = if answer.pending { Source::Pending } else { Source::Store };
        let tied = |tags: &[&str]| EntryOverrides {
            dependencies: self.dependencies(key, tags, ReadSet::default()),
            ..EntryOverrides::default()
        };
        let (value, version, overrides) = match answer.value {
            Some(Versioned { value, version }) => {
                let Decoded { value, tags } = self.coder.decode(&value)?;
                (Some(value), version, tied(&tags))
            }
            None => (None, Seq::ZERO, tied(&[])),
        };
        let load_result = LoadResult { value: value.as_ref(), version, of_loader: false, overrides };
        self.keep(reads, key, &load_result, start);
        let (dependencies, generation) = (load_result.overrides.dependencies, start.generation);
        Ok(Landed { value, version, since: start.since, source, generation, dependencies })
    }

    fn keep_loaded(&self, reads: &Reads, key: &K, loaded: Loaded<V>, start: &LoadStart) -> Outcome<V> {
        let Loaded { value, overrides, tags, read } = loaded;
        check_tags(&tags)?;
        let overrides = EntryOverrides { dependencies: self.dependencies(key, &tags, read), ..overrides };
        let load_result =
            LoadResult { value: value.as_ref(), version: Seq::ZERO, of_loader: true, overrides };
        self.keep(reads, key, &load_result, start);
        let (dependencies, generation, source) =
            (load_result.overrides.dependencies, start.generation, Source::Loader);
        Ok(Landed { value, version: Seq::ZERO, since: start.since, source, generation, dependencies })
    }

    fn keep(&self, reads: &Reads, key: &K, load_result: &LoadResult<'_, V>, start: &LoadStart) {
        match self.resident.fill(key, load_result, start) {
            Ok(true) => {}
            // Nothing was to be kept.
            Ok(false) if load_result.value.is_none() && !self.remembers_absences() => {}
            Ok(false) => {
                reads.metrics().refused_fills.add(1);
                self.metrics.refused_fills.add(1);
            }
            Err(_) => self.memory_failed(),
        }
    }

    fn remembers_absences(&self) -> bool {
        self.resident.freshness().negative_time_to_live.is_some()
    }

    /// What may be served in the stead of a load that failed: what memory has *now*, since what was there before the
    /// load may have been invalidated meanwhile.
    fn instead_of(
        &self,
        layer: &Layer,
        key: &K,
        constraints: &ReadConstraints,
        error: Error,
    ) -> Result<Entry<V>> {
        if !is_failing_source(&error) {
            return Err(error);
        }
        layer.catch_up();
        match self.resident.lookup(
            key,
            &ReadConstraints { progress: LoadProgress::Failed, measures_age: true, ..*constraints },
        ) {
            Ok(held) => {
                self.count_hit(&held);
                Ok(entry_held(held, Some(error)))
            }
            Err(_) => Err(error),
        }
    }

    fn entry_landed(&self, landed: Landed<V>, start: &LoadStart, constraints: &ReadConstraints) -> Entry<V> {
        let Landed { value, version, since, source, generation: _, dependencies } = landed;
        match (&value, source) {
            (None, _) => self.metrics.not_found.add(1),
            (_, Source::Pending) => self.metrics.pending_hits.add(1),
            (_, Source::Loader) => self.metrics.loader_hits.add(1),
            _ => self.metrics.store_hits.add(1),
        }
        let bound = if source == Source::Pending || since >= start.since {
            MetBound::Current
        } else {
            MetBound::of(self.resident.time_to_live().into_iter().chain(constraints.max_staleness).min())
        };
        let age = self.resident.ticker().now().since(since);
        Entry { value, version: known(version), age, source, bound, stale: None, error: None, dependencies }
    }

    fn in_namespace(&self, error: Error) -> Error {
        let kind = error.kind();
        error.wrap(kind, format!("namespace {}", self.namespace))
    }
}

/// How many keys a load found, or of what kind its first failure was.
fn note_load<V>(span: &Span, outcomes: &[Outcome<V>]) {
    match outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
        Some(error) => span.failed(error.kind()),
        None => {
            let found = outcomes.iter().flatten().filter(|landed| landed.value.is_some()).count();
            span.note("found", u64::try_from(found).unwrap_or(u64::MAX));
        }
    }
}

/// Runs a load; a panic of it is a failure.
async fn caught<T>(load: impl Future<Output = Result<T>>) -> Result<T> {
    let mut load = pin!(load);
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(context)));
        polled.unwrap_or_else(|_panic| Poll::Ready(Err(panicked())))
    })
    .await
}

pub(super) fn entry_held<V>(held: MemoryHit<V>, error: Option<Error>) -> Entry<V> {
    let MemoryHit { value, version, age, stale, reload: _, bound, dependencies } = held;
    let (version, bound) = (known(version), MetBound::of(bound));
    // What is fresh stands in nobody's stead.
    let error = error.filter(|_| stale.is_some());
    Entry { value, version, age, source: Source::Memory, bound, stale, error, dependencies }
}

fn known(version: Seq) -> Option<Seq> {
    (version > Seq::ZERO).then_some(version)
}
