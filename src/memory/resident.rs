//! The entries that one cache holds in memory, bounded by number or by weight.
//!
//! Eviction and sharding are quick_cache's; the fences and the generations are ours. Code of the user's types (hashing,
//! comparing, cloning, weighing) may panic here. Then everything in memory becomes unservable, which needs none of that
//! code, and the write or load that brought the value goes on without memory. No I/O happens here.

use std::cell::Cell;
use std::hash::{BuildHasher, Hash};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{Lifecycle, OptionsBuilder};

use crate::error::{Error, ErrorKind};
use crate::ids::Seq;
use crate::memory::advice::{CompareValues, ReloadWatch, TtlAdvice, VersionedRef};
use crate::memory::dependencies::Dependencies;
use crate::memory::entry::{
    Candidate, EntryExtra, EntryMetadata, EntryOverrides, LoadResult, LoadStart, MemoryEntry, MemoryHit,
    PackedWeight, SHARE_MAX,
};
use crate::memory::fence::{FenceMark, Fences};
use crate::memory::freshness::{Freshness, LiveDuration};
use crate::memory::metrics::EvictionCause;
use crate::memory::scope::Scopes;
use crate::memory::servable::{
    CacheLimits, EntryFacts, LoadProgress, MissReason, ReadConstraints, Servable, StaleReason, invalidated,
    is_due_early, is_timed, life, servable,
};
use crate::metrics::{Counters, Counts};
use crate::safeguard::Safeguard;
use crate::seam::clock::{Moment, Ticker};
use crate::seam::random::{self, HashBuilder};

/// A function that weighs an entry, in the unit of the capacity. Less than one counts as one.
pub type Weigher<K, V> = Box<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// The most that a cache may hold in memory.
pub enum Capacity<K, V> {
    /// So many entries.
    Entries(usize),
    /// So much weight, as the function weighs it.
    Weight(u64, Weigher<K, V>),
}

/// The entries of one cache, and its fences.
pub struct Resident<K, V> {
    entries: Cache<K, MemoryEntry<V>, PackedWeight, HashBuilder, CountedEvictions<K, MemoryEntry<V>>>,
    evictions: Arc<Counters<EvictionCause>>,
    watch: ReloadWatch<V>,
    hasher: HashBuilder,
    fences: Arc<Fences>,
    weigher: Option<Weigher<K, V>>,
    freshness: Freshness,
    time_to_live: LiveDuration,
    ticker: Ticker,
}

/// A panic of the user's values or code. Memory was emptied of everything that it might have confused.
#[derive(Debug, PartialEq, Eq)]
pub struct MemoryFailed;

impl<K: Hash + Eq + Clone, V: Clone> Resident<K, V> {
    /// Makes an empty memory.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if quick_cache cannot take the capacity.
    pub fn new(capacity: Capacity<K, V>, freshness: Freshness, ticker: Ticker) -> Result<Self, Error> {
        // An estimate of the number of entries sizes the table. A weight says nothing of it, so a middling one.
        let (estimate, capacity, weigher) = match capacity {
            Capacity::Entries(entries) => (entries, u64::try_from(entries).unwrap_or(u64::MAX), None),
            Capacity::Weight(weight, weigher) => {
                let estimate = usize::try_from(weight / 256).unwrap_or(usize::MAX).clamp(16, 1 << 20);
                (estimate, weight, Some(weigher))
            }
        };
        let options = OptionsBuilder::new()
            .estimated_items_capacity(estimate)
            .weight_capacity(capacity)
            .build()
            .map_err(|error| Error::with_source(ErrorKind::InvalidOption, "capacity", error.to_string()))?;
        let hasher = HashBuilder::default();
        let evictions = Arc::<Counters<EvictionCause>>::default();
        let lifecycle = CountedEvictions::new(Arc::clone(&evictions));
        let entries = Cache::with_options(options, PackedWeight, hasher.clone(), lifecycle);
        let (fences, time_to_live) = (Arc::new(Fences::new(Arc::default())), LiveDuration::new(None));
        let watch = ReloadWatch::default();
        Ok(Resident { entries, evictions, watch, hasher, fences, weigher, freshness, time_to_live, ticker })
    }

    /// Compares what loads bring with what they replace by `same` where versions do not tell.
    #[must_use]
    pub fn with_comparison(mut self, same: CompareValues<V>) -> Self {
        self.watch.same = Some(same);
        self
    }

    /// Puts this memory, still empty, into one order of bulk invalidations with others.
    #[must_use]
    pub fn with_scopes(self, scopes: Arc<Scopes>) -> Self {
        Resident { fences: Arc::new(Fences::new(scopes)), ..self }
    }

    /// Estimates from the reloads so far which time to live serves this share stale.
    #[must_use]
    pub fn advise(&self, wanted_share: f64) -> TtlAdvice {
        let jitter = f64::from(self.freshness.jitter) / 65_536.0;
        self.watch.reloads.advise(wanted_share, self.time_to_live(), jitter)
    }

    /// Returns the number of reloads that found no change, and of those that found one.
    #[must_use]
    pub fn reloads(&self) -> (u64, u64) {
        self.watch.reloads.counts()
    }

    /// Returns the fences of the cache.
    #[must_use]
    pub fn fences(&self) -> &Arc<Fences> {
        &self.fences
    }

    /// Changes the time to live, for the entries in memory, too.
    pub fn set_time_to_live(&self, time_to_live: Option<Duration>) {
        self.time_to_live.set(time_to_live);
    }

    /// Returns the time to live.
    #[must_use]
    pub fn time_to_live(&self) -> Option<Duration> {
        self.time_to_live.value()
    }

    /// Returns the cache's other options of freshness.
    #[must_use]
    pub fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// Returns the clock that ages are read from.
    #[must_use]
    pub fn ticker(&self) -> &Ticker {
        &self.ticker
    }

    /// Returns the number of entries that left memory, by cause.
    #[must_use]
    pub fn evictions(&self) -> Counts<EvictionCause> {
        self.evictions.value()
    }

    /// Returns the number of entries, unservable ones included.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Returns the value of a key for a read without constraints, if no time limits it: the path of most hits.
    /// Otherwise returns what was found, for [`Resident::check`]. Counts as a use.
    ///
    /// # Errors
    /// The candidate to check; also if there is no entry.
    #[inline]
    pub fn get(&self, key: &K) -> Result<Option<V>, Candidate<V>> {
        // Where a time matters the decision needs more than the constants of the fast path.
        if self.freshness.times_values() || self.time_to_live.value().is_some() {
            return Err(self.find(key));
        }
        let found = self.entries.get(key);
        let is_plain = |entry: &MemoryEntry<V>| entry.value.is_some() && entry.extra.is_none();
        let is_served = found.as_ref().is_some_and(|entry| is_plain(entry) && self.is_plain_servable(entry));
        // The value is taken out in place: moving the whole entry would cost as much as deciding about it.
        match found {
            Some(MemoryEntry { value, extra: None, .. }) if is_served => Ok(value),
            found => unchecked(found),
        }
    }

    /// Looks up what may be served to a reader with these constraints. Counts as a use.
    ///
    /// # Errors
    /// The reason why nothing may be served.
    pub fn lookup(&self, key: &K, constraints: &ReadConstraints) -> Result<MemoryHit<V>, MissReason> {
        self.check(self.find(key), constraints)
    }

    /// Decides whether a candidate may be served to a reader with these constraints. Reads the clock only if the answer
    /// depends on it.
    ///
    /// # Errors
    /// The reason why it may not be served.
    pub fn check(
        &self,
        found: Candidate<V>,
        constraints: &ReadConstraints,
    ) -> Result<MemoryHit<V>, MissReason> {
        let Candidate(Some(entry), verified) = found else { return Err(MissReason::Absent) };
        if constraints.measures_age {
            return self.check_timed(entry, constraints, verified);
        }
        let (facts, limits) = (self.facts(&entry), self.limits(verified));
        if is_timed(&facts, &limits, constraints) {
            return self.check_timed(entry, constraints, verified);
        }
        match servable(&facts, &limits, facts.since, constraints) {
            Servable::Miss(reason) => Err(reason),
            _ => Ok(MemoryHit {
                version: entry.version(),
                value: entry.value,
                age: Duration::ZERO,
                stale: None,
                reload: false,
                bound: None,
                dependencies: None,
            }),
        }
    }

    /// As [`Resident::lookup`], always with the age, and without counting as a use.
    ///
    /// # Errors
    /// The reason why nothing may be served.
    pub fn peek(&self, key: &K, constraints: &ReadConstraints) -> Result<MemoryHit<V>, MissReason> {
        // Before the look-up: see `verified`.
        let verified = self.verified();
        let Some(entry) = self.entries.peek(key) else { return Err(MissReason::Absent) };
        // Detached, because the decision notes a use in the entry's extra, and a peek is none.
        self.check_timed(entry.detached(), constraints, verified)
    }

    /// Finds the entry of a key, servable or not. Counts as a use.
    fn find(&self, key: &K) -> Candidate<V> {
        // Before the look-up: see `verified`.
        let verified = self.verified();
        Candidate(self.entries.get(key), verified)
    }

    /// True if an entry may be served that has a value and no extra, in a cache that times no values. Apart from
    /// [`Resident::check`], because the compiler can drop most of the decision for the constants that are known here.
    #[inline(always)]
    fn is_plain_servable(&self, entry: &MemoryEntry<V>) -> bool {
        let limits = CacheLimits {
            time_to_live: None,
            freshness: &Freshness::UNTIMED,
            ..self.limits(Moment::default())
        };
        let facts = EntryFacts { absent: false, ..entry.untimed_facts() };
        !matches!(servable(&facts, &limits, facts.since, &ReadConstraints::default()), Servable::Miss(_))
    }

    /// Decides by the clock.
    fn check_timed(
        &self,
        entry: MemoryEntry<V>,
        constraints: &ReadConstraints,
        verified: Moment,
    ) -> Result<MemoryHit<V>, MissReason> {
        let (facts, limits) = (&self.facts(&entry), &self.limits(verified));
        // One reading for the decision and the age, so that the two agree.
        let now = self.ticker.now();
        let (age, stale, reload) = match servable(facts, limits, now, constraints) {
            Servable::Fresh { age, left } => (age, None, left.is_some_and(|left| self.is_due(&entry, left))),
            Servable::Stale { age, because } => {
                (age, Some(because), because == StaleReason::WhileRevalidating)
            }
            Servable::Miss(reason) => return Err(reason),
        };
        // Only what is served counts as a use.
        if let Some(extra) = &entry.extra {
            extra.use_at(now);
        }
        let bound = self.bound_of(facts, limits, constraints, stale);
        let (version, dependencies) = (entry.version(), entry.dependencies());
        Ok(MemoryHit { value: entry.value, version, age, stale, reload, bound, dependencies })
    }

    /// Returns the age that an entry was allowed to have to be served, for this reason if it is stale.
    fn bound_of(
        &self,
        facts: &EntryFacts,
        limits: &CacheLimits<'_>,
        constraints: &ReadConstraints,
        stale: Option<StaleReason>,
    ) -> Option<Duration> {
        let life = life(facts, limits);
        let with_window = |window| life.map(|life| life.saturating_add(window));
        let life = match (stale, constraints.progress) {
            (Some(StaleReason::InsteadOfWaiting), LoadProgress::InFlight(most)) => Some(most),
            (Some(StaleReason::WhileRevalidating), _) => with_window(self.freshness.stale_while_revalidate),
            (Some(StaleReason::LoadFailed), _) => with_window(self.freshness.stale_if_error),
            _ => life,
        };
        let lag_max = self.freshness.following.map(|following| following.lag_max);
        // Served as unverified, it may lag as far as it likes.
        let lag_max = lag_max.filter(|_| stale != Some(StaleReason::Unverified));
        life.into_iter().chain(constraints.max_staleness).chain(lag_max).min()
    }

    fn is_due(&self, entry: &MemoryEntry<V>, left: Duration) -> bool {
        match self.freshness.early_refresh {
            Some(beta) if entry.value.is_some() => is_due_early(left, entry.took(), beta, random_u32),
            _ => false,
        }
    }

    /// Returns the moment until which a follower has received every change.
    ///
    /// To be read before the entry and before any floor. An event drops entries and raises floors first, and the proof
    /// that everything has been received comes afterwards. An entry that was found before it was dropped must not count
    /// as current by a proof that came after that.
    #[inline]
    fn verified(&self) -> Moment {
        match self.freshness.following {
            Some(_) if Safeguard::ProofBeforeLook.holds() => self.fences.scopes().verified(),
            _ => Moment::default(),
        }
    }

    #[inline]
    fn limits(&self, verified: Moment) -> CacheLimits<'_> {
        CacheLimits {
            floor: self.fences.floor(),
            namespace_floor: self.fences.namespace_floor(),
            time_to_live: self.time_to_live.value(),
            verified: match Safeguard::ProofBeforeLook.holds() {
                true => verified,
                false => self.fences.scopes().verified(),
            },
            freshness: &self.freshness,
        }
    }

    fn facts<T>(&self, entry: &MemoryEntry<T>) -> EntryFacts {
        entry.facts(self.fences.scopes(), self.freshness.jitter)
    }

    /// True if a reader who starts at `now` may join a load that started at `since`, with the fences where they still
    /// stand.
    #[must_use]
    pub fn may_join(&self, since: Moment, now: Moment, constraints: &ReadConstraints) -> bool {
        // No proof of a follower's is counted: the load's value is as old as its start.
        let limits = self.limits(Moment::default());
        // The fences have not moved since the load started, so its value would be of the present generation.
        let generation = limits.floor.max(limits.namespace_floor);
        let facts = EntryFacts { generation, since, used: now, of_loader: true, ..EntryFacts::default() };
        matches!(servable(&facts, &limits, now, constraints), Servable::Fresh { .. })
    }

    /// Starts a load of `key`. To be called before the load looks anywhere.
    pub fn start(&self, key: &K) -> LoadStart {
        // The time first: an age may come out too high, never too low.
        let since = self.ticker.now();
        let mark = self.fences.mark(self.hasher.hash_one(key));
        self.started(mark, since, false)
    }

    /// As [`Resident::start`], for a load that reads past memory. When it lands, the loads that began before it lose,
    /// and memory does not keep what it had.
    pub fn start_past_memory(&self, key: &K) -> LoadStart {
        let since = self.ticker.now();
        let mark = self.fences.mark_past_memory(self.hasher.hash_one(key));
        self.started(mark, since, true)
    }

    fn started(&self, mark: FenceMark, since: Moment, past_memory: bool) -> LoadStart {
        // After the mark: what lands at that mark must not be below the floor that the mark has seen.
        let generation = self.fences.scopes().now();
        LoadStart { mark, generation, since, past_memory }
    }

    /// Applies a committed write that was handed over at `since`; `None` removes the key. Older loads of the key can no
    /// longer land.
    ///
    /// # Errors
    /// [`MemoryFailed`]. The write itself does not depend on memory and goes on.
    pub fn apply_write(
        &self,
        key: K,
        value: Option<V>,
        version: Seq,
        since: Moment,
        overrides: EntryOverrides,
    ) -> Result<(), MemoryFailed> {
        self.guarded(|| {
            // The user's weigher runs outside of the fence's lock.
            let weight = value.as_ref().map_or(0, |value| self.weight(&key, value));
            let (share, extra) = (self.share(), self.extra(overrides, since));
            self.fences.change(self.hasher.hash_one(&key), || match value {
                None => self.remove(&key, EvictionCause::Removed),
                Some(value) => self.insert_written(key, value, version, since, weight, share, extra),
            });
        })
    }

    /// Applies a change of another process: the key has this value since this version. Replaces an entry only; a key
    /// that nobody reads here is not brought in. Loads under way lose.
    ///
    /// The change may come late, when a newer version or a removal is known already. A current entry of an older
    /// version proves that it does not; where memory holds no such entry, the key is dropped.
    ///
    /// # Errors
    /// As [`Resident::invalidate`].
    pub fn apply_remote_change(
        &self,
        key: &K,
        value: V,
        version: Seq,
        overrides: EntryOverrides,
    ) -> Result<(), MemoryFailed> {
        self.guarded(|| {
            let weight = self.weight(key, &value);
            // The event does not say when it was written: not before the moment until which everything is known.
            let since = self.fences.scopes().verified();
            let (share, extra) = (self.share(), self.extra(overrides, since));
            self.fences.change(self.hasher.hash_one(key), || {
                // A follower's memory holds what its own readers asked for. The fence has moved all the same.
                let Some(there) = self.inspect(key, |_| {}) else { return };
                // Neither an absence nor a loader's value has a version that could be compared.
                if !self.is_current(&there) || there.version() == Seq::ZERO {
                    self.remove(key, EvictionCause::Invalidated);
                } else if there.version() < version {
                    self.insert_written(key.clone(), value, version, since, weight, share, extra);
                }
            });
        })
    }

    /// Inserts a written value. To be called under the key's fence.
    #[allow(
        clippy::too_many_arguments,
        reason = "all but the key and the value were computed outside of the lock"
    )]
    #[inline]
    fn insert_written(
        &self,
        key: K,
        value: V,
        version: Seq,
        since: Moment,
        weight: u32,
        share: u16,
        extra: Option<Arc<EntryExtra>>,
    ) {
        // The tick of now: a write that takes effect after an invalidation is newer than it.
        let generation = self.fences.scopes().now();
        let (took_us, of_loader) = (0, false);
        let metadata = EntryMetadata { version, generation, since, weight, took_us, share, of_loader };
        self.entries.insert(key, MemoryEntry::new(Some(value), &metadata, extra));
    }

    /// Drops `key` from memory, and makes every load of it that is under way lose.
    ///
    /// # Errors
    /// [`MemoryFailed`]. Then the key is unservable as well, with all others.
    pub fn invalidate(&self, key: &K) -> Result<(), MemoryFailed> {
        self.guarded(|| {
            // The fence moves for absent keys, too: a load of the key may be under way.
            if !self.entries.contains_key(key) && !Safeguard::FenceForAbsentKeys.holds() {
                return;
            }
            self.fences.change(self.hasher.hash_one(key), || self.remove(key, EvictionCause::Invalidated));
        })
    }

    /// As [`Resident::invalidate`], but keeps an entry of this version or a newer one. Returns true if it kept none.
    /// Loads under way lose in any case: it is unknown which version they have read.
    ///
    /// # Errors
    /// As [`Resident::invalidate`].
    pub fn invalidate_version(&self, key: &K, version: Seq) -> Result<bool, MemoryFailed> {
        self.guarded(|| {
            self.fences.change(self.hasher.hash_one(key), || {
                // An entry that is unservable already proves nothing.
                let there = self.inspect(key, |_| {}).filter(|there| self.is_current(there));
                let proven =
                    there.is_some_and(|there| there.version() > Seq::ZERO && there.version() >= version);
                if !proven {
                    self.remove(key, EvictionCause::Invalidated);
                }
                !proven
            })
        })
    }

    /// Makes everything unservable, at a cost that does not depend on how much there is.
    pub fn invalidate_all(&self) {
        self.fences.change_all();
    }

    /// Drops `key` from memory only to make room: nothing has changed, so loads under way may land.
    pub fn evict(&self, key: &K) {
        self.remove(key, EvictionCause::Called);
    }

    fn remove(&self, key: &K, cause: EvictionCause) {
        self.evictions.add(cause, u64::from(self.entries.remove(key).is_some()));
    }

    /// Keeps the result of a load, unless its key was written or invalidated since the start, or memory has a newer
    /// version or the result of a later load. Returns true if it was kept. If the key is absent, the entry in memory is
    /// dropped, and the absence is kept if the cache remembers absences.
    ///
    /// # Errors
    /// [`MemoryFailed`]. The load's result is good all the same.
    pub fn fill(&self, key: &K, result: &LoadResult<'_, V>, start: &LoadStart) -> Result<bool, MemoryFailed> {
        let &LoadResult { value, version, of_loader, ref overrides } = result;
        let scopes = self.fences.scopes();
        let changed = |dependencies: &Arc<Dependencies>| dependencies.have_changed(scopes, start.generation);
        // A dependency that changed while the value was loaded: the fence of this key does not know of that.
        if overrides.dependencies.as_ref().is_some_and(changed) {
            return Ok(false);
        }
        let (kept, replaced) = self.guarded(|| {
            // Everything that runs the user's code comes before the fence's lock.
            let entry = self.loaded_entry(key, result, start);
            let keeps =
                value.is_some() || overrides.time_to_live.or(self.freshness.negative_time_to_live).is_some();
            let later =
                |since: Moment, there: Seq| since > start.since || there > version && version > Seq::ZERO;
            let (owned, lost, replaced) = (key.clone(), Cell::new(false), Cell::new(None));
            let kept = self.fences.fill(&start.mark, || {
                let compared = Cell::new(None);
                let there = self.inspect(key, |there| {
                    // A copy of another source, or a newer one, says nothing about how the source has changed.
                    if there.of_loader() == of_loader && !later(there.since(), there.version()) {
                        compared.set(self.watch.replaced(
                            start.since.since(there.since()),
                            there.serves(self.time_to_live().is_some()),
                            VersionedRef { value: there.value.as_ref(), version: there.version() },
                            VersionedRef { value, version },
                        ));
                    }
                });
                // What is unservable already must not keep a load out.
                let current = there.as_ref().filter(|there| self.is_current(there));
                replaced.set(compared.into_inner().filter(|_| current.is_some()));
                lost.set(current.is_some_and(|there| later(there.since(), there.version())));
                // That the store lacks a key says nothing about what a loader brought.
                let others = value.is_none() && !of_loader && current.is_some_and(|there| there.of_loader());
                if !lost.get() && !others && keeps {
                    self.entries.insert(owned, entry);
                } else if !lost.get() && !others && there.is_some() {
                    self.remove(key, EvictionCause::Removed);
                }
            });
            if !kept && start.past_memory {
                // Another key of the stripe may have moved the fence, so the entry that was read past may still be
                // there.
                let gone = self.entries.remove_if(key, |there| there.since() <= start.since);
                self.evictions.add(EvictionCause::Removed, u64::from(gone.is_some()));
            }
            (kept && !lost.get(), replaced.into_inner().filter(|_| kept))
        })?;
        // Outside of all locks, since it runs the user's comparison.
        if let Some(replaced) = replaced {
            self.watch.note(replaced, value);
        }
        Ok(kept)
    }

    fn loaded_entry(&self, key: &K, result: &LoadResult<'_, V>, start: &LoadStart) -> MemoryEntry<V> {
        let &LoadResult { value, version, of_loader, ref overrides } = result;
        // An absence takes a place in memory, too, and counts as the lightest value.
        let weight = value.map_or(1, |value| self.weight(key, value));
        // The clock is read only where the duration of a load matters.
        let took_us = match self.freshness.early_refresh {
            Some(_) => u32::try_from(self.ticker.now().since(start.since).as_micros()).unwrap_or(u32::MAX),
            None => 0,
        };
        let since = match Safeguard::AgeFromLoadStart.holds() {
            true => start.since,
            false => self.ticker.now(),
        };
        let (generation, share) = (start.generation, self.share());
        let metadata = EntryMetadata { version, generation, since, weight, took_us, share, of_loader };
        MemoryEntry::new(value.cloned(), &metadata, self.extra(overrides.clone(), since))
    }

    /// Returns the entry of a key, without the value. To be called under its fence, so that nobody changes it
    /// meanwhile. The decision about it is made afterwards, not under quick_cache's lock; `also` runs under that lock.
    fn inspect(&self, key: &K, also: impl FnOnce(&MemoryEntry<V>)) -> Option<MemoryEntry<()>> {
        let (seen, also) = (Cell::new(None), Cell::new(Some(also)));
        // quick_cache has no look-up by reference that counts as no use: this one removes nothing.
        self.entries.remove_if(key, |there| {
            if let Some(also) = also.take() {
                also(there);
            }
            seen.set(Some(there.without_value()));
            false
        });
        seen.into_inner()
    }

    /// True if nothing has invalidated an entry.
    fn is_current(&self, entry: &MemoryEntry<()>) -> bool {
        invalidated(&self.facts(entry), &self.limits(Moment::default())).is_none()
    }

    fn weight(&self, key: &K, value: &V) -> u32 {
        self.weigher.as_ref().map_or(1, |weigh| weigh(key, value).max(1))
    }

    fn extra(&self, overrides: EntryOverrides, used: Moment) -> Option<Arc<EntryExtra>> {
        // Without a time to live there is nothing to advise.
        let watched = self.time_to_live().is_some() && self.watch.watches_next();
        EntryExtra::of(overrides, &self.freshness, used, watched)
    }

    /// Draws a new entry's share of the jitter.
    fn share(&self) -> u16 {
        match self.freshness.jitter {
            0 => 0,
            _ => u16::try_from(random_u32() % (u32::from(SHARE_MAX) + 1)).unwrap_or(SHARE_MAX),
        }
    }

    /// Runs a change of memory. If it panics, everything becomes unservable.
    fn guarded<R>(&self, change: impl FnOnce() -> R) -> Result<R, MemoryFailed> {
        catch_unwind(AssertUnwindSafe(change)).map_err(|_panic| {
            // Raising a floor runs none of the user's code, so it cannot panic again.
            self.fences.change_all();
            MemoryFailed
        })
    }
}

/// Hands over what [`Resident::get`] may not serve at once. A function of its own, so that the entry is moved only
/// then.
#[cold]
#[inline(never)]
fn unchecked<V>(found: Option<MemoryEntry<V>>) -> Result<Option<V>, Candidate<V>> {
    // Without a proof: the fast path is only for caches that follow nobody.
    Err(Candidate(found, Moment::default()))
}

/// Draws a number. Without the system's randomness it is zero: no life is cut, and an early reload is due.
fn random_u32() -> u32 {
    random::u32().unwrap_or(0)
}

/// quick_cache's own lifecycle, plus a count of the entries that it evicts for room.
struct CountedEvictions<K, V> {
    engine: DefaultLifecycle<K, V>,
    counters: Arc<Counters<EvictionCause>>,
}

impl<K, V> CountedEvictions<K, V> {
    fn new(counters: Arc<Counters<EvictionCause>>) -> Self {
        CountedEvictions { engine: DefaultLifecycle::default(), counters }
    }
}

impl<K, V> Clone for CountedEvictions<K, V> {
    fn clone(&self) -> Self {
        CountedEvictions { engine: self.engine.clone(), counters: Arc::clone(&self.counters) }
    }
}

impl<K, V> Lifecycle<K, V> for CountedEvictions<K, V> {
    // Dropped when quick_cache's locks are not held any more.
    type RequestState = <DefaultLifecycle<K, V> as Lifecycle<K, V>>::RequestState;

    // Counted here, because `on_evict` is called for an entry that is merely replaced, too.
    fn before_evict(&self, state: &mut Self::RequestState, key: &K, value: &mut V) {
        self.counters.add(EvictionCause::Room, 1);
        self.engine.before_evict(state, key, value);
    }

    fn on_evict(&self, state: &mut Self::RequestState, key: K, value: V) {
        self.engine.on_evict(state, key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::freshness::{Following, OnUnverified};
    use crate::seam::clock::Clock;

    /// A clock that stands at an hour.
    struct HourClock;

    impl Clock for HourClock {
        fn now(&self) -> Duration {
            Duration::from_secs(3600)
        }
    }

    fn resident() -> Resident<u32, String> {
        of(Capacity::Entries(100))
    }

    fn of(bound: Capacity<u32, String>) -> Resident<u32, String> {
        Resident::new(bound, Freshness::default(), Ticker::default()).unwrap()
    }

    fn write(memory: &Resident<u32, String>, key: u32, value: Option<String>, seq: u64) {
        memory.apply_write(key, value, Seq(seq), Moment::default(), EntryOverrides::default()).unwrap();
    }

    fn fill(
        memory: &Resident<u32, String>,
        value: &str,
        seq: u64,
        start: &LoadStart,
    ) -> Result<bool, MemoryFailed> {
        let value = Some(value.to_owned());
        let load_result = LoadResult {
            value: value.as_ref(),
            version: Seq(seq),
            of_loader: false,
            overrides: EntryOverrides::default(),
        };
        memory.fill(&1, &load_result, start)
    }

    fn seen(memory: &Resident<u32, String>) -> Option<String> {
        memory.lookup(&1, &ReadConstraints::default()).ok().and_then(|held| held.value)
    }

    #[test]
    fn a_load_never_overwrites_what_was_written_after_it_began() {
        let memory = resident();
        let start = memory.start(&1);
        write(&memory, 1, Some("new".into()), 2);
        assert_eq!(fill(&memory, "old", 1, &start), Ok(false));
        assert_eq!(seen(&memory).unwrap(), "new");
    }

    #[test]
    fn a_load_of_an_absent_key_never_lands_after_its_removal_or_a_bulk_invalidation() {
        let memory = resident();
        let start = memory.start(&1);
        write(&memory, 1, None, 2);
        assert_eq!(fill(&memory, "old", 1, &start), Ok(false));
        let start = memory.start(&1);
        memory.invalidate_all();
        assert_eq!(fill(&memory, "old", 1, &start), Ok(false));
        let start = memory.start(&1);
        memory.invalidate(&1).unwrap();
        assert_eq!(fill(&memory, "old", 1, &start), Ok(false));
        assert_eq!(seen(&memory), None);
    }

    /// A reader of a follower had found an entry; then an event dropped it, and the store proved that everything had
    /// been heard; and the reader took the entry for as current as that proof.
    #[test]
    fn a_proof_counts_for_what_is_looked_up_after_it() {
        let lag_max = Duration::from_secs(1);
        let following = Some(Following { lag_max, on_unverified: OnUnverified::default() });
        let freshness = Freshness { following, ..Freshness::default() };
        // So old that only a proof makes it current.
        let ticker = Ticker::new(HourClock);
        let memory = Resident::new(Capacity::Entries(100), freshness, ticker.clone()).unwrap();
        write(&memory, 1, Some("old".into()), 1);
        let Err(found) = memory.get(&1) else { panic!("a follower's entries are checked") };
        memory.invalidate_version(&1, Seq(2)).unwrap();
        memory.fences().scopes().verify(ticker.now());
        assert_eq!(memory.check(found, &ReadConstraints::default()).err(), Some(MissReason::Unverified));
        write(&memory, 1, Some("new".into()), 2);
        assert!(memory.lookup(&1, &ReadConstraints::default()).is_ok());
    }

    #[test]
    fn a_bulk_invalidation_hides_what_was_there_and_nothing_later() {
        let memory = resident();
        write(&memory, 1, Some("a".into()), 1);
        memory.invalidate_all();
        assert_eq!(seen(&memory), None);
        write(&memory, 1, Some("b".into()), 2);
        assert_eq!(seen(&memory).unwrap(), "b");
    }

    #[test]
    fn a_panicking_weigher_empties_memory_instead_of_leaving_an_old_value() {
        let weigh: Weigher<u32, String> =
            Box::new(|_, value| if value == "bad" { panic!("weigher") } else { 1 });
        let memory = of(Capacity::Weight(100, weigh));
        write(&memory, 1, Some("old".into()), 1);
        let bad =
            memory.apply_write(1, Some("bad".into()), Seq(2), Moment::default(), EntryOverrides::default());
        assert_eq!(bad, Err(MemoryFailed));
        assert_eq!(seen(&memory), None);
        write(&memory, 1, Some("good".into()), 3);
        assert_eq!(seen(&memory).unwrap(), "good");
    }

    #[test]
    fn memory_is_bounded_by_count_and_by_weight() {
        let memory = resident();
        (0..10_000).for_each(|key| write(&memory, key, Some("v".into()), 1));
        assert!(memory.count() <= 100, "{}", memory.count());
        let weigh: Weigher<u32, String> = Box::new(|_, value| u32::try_from(value.len()).unwrap());
        let memory = of(Capacity::Weight(100_000, weigh));
        (0..10_000).for_each(|key| write(&memory, key, Some("v".repeat(1000)), 1));
        assert!(memory.count() <= 100, "{}", memory.count());
    }

    #[test]
    fn a_value_heavier_than_the_capacity_does_not_leave_the_old_one() {
        let weigh: Weigher<u32, String> = Box::new(|_, value| u32::try_from(value.len()).unwrap());
        let memory = of(Capacity::Weight(100, weigh));
        write(&memory, 1, Some("old".into()), 1);
        write(&memory, 1, Some("x".repeat(1000)), 2);
        assert!(seen(&memory).is_none_or(|value| value.len() == 1000));
    }

    #[test]
    fn a_load_that_began_earlier_or_found_an_older_version_does_not_replace_a_later_one() {
        let memory = resident();
        let (early, late) = (memory.start(&1), memory.start(&1));
        assert_eq!(fill(&memory, "late", 5, &late), Ok(true));
        assert_eq!(fill(&memory, "early", 5, &early), Ok(false), "the earlier look loses");
        assert_eq!(fill(&memory, "older", 4, &memory.start(&1)), Ok(false), "the older version loses");
        assert_eq!(fill(&memory, "newer", 6, &memory.start(&1)), Ok(true));
        memory.invalidate_all();
        assert_eq!(
            fill(&memory, "again", 4, &memory.start(&1)),
            Ok(true),
            "what is unservable is in nobody's way"
        );
    }

    #[test]
    fn a_load_past_memory_leaves_nothing_older_though_another_key_has_moved_its_fence() {
        let memory = resident();
        assert_eq!(fill(&memory, "old", 0, &memory.start(&1)), Ok(true));
        let past_memory = memory.start_past_memory(&1);
        let stripe = |start: &LoadStart| memory.fences().stripe_of(start.mark.hash());
        let other = (2..).find(|other| stripe(&memory.start(other)) == stripe(&past_memory)).unwrap();
        write(&memory, other, Some("another".into()), 1);
        assert_eq!(fill(&memory, "new", 0, &past_memory), Ok(false));
        assert_eq!(seen(&memory), None);
    }

    #[test]
    fn a_load_that_finds_nothing_drops_what_memory_had() {
        let memory = resident();
        write(&memory, 1, Some("old".into()), 1);
        let nothing = LoadResult {
            value: None,
            version: Seq::ZERO,
            of_loader: false,
            overrides: EntryOverrides::default(),
        };
        assert_eq!(memory.fill(&1, &nothing, &memory.start(&1)), Ok(true));
        assert_eq!(memory.lookup(&1, &ReadConstraints::default()).expect_err("gone"), MissReason::Absent);
    }

    #[test]
    fn a_version_is_invalidated_once_and_only_if_memory_cannot_prove_it() {
        let memory = resident();
        write(&memory, 1, Some("five".into()), 5);
        for version in [4, 5] {
            let start = memory.start(&1);
            assert_eq!(memory.invalidate_version(&1, Seq(version)), Ok(false));
            assert_eq!(seen(&memory), Some("five".into()));
            assert_ne!(start.mark, memory.start(&1).mark, "{version}: who comes later joins nobody");
            assert_eq!(fill(&memory, "who knows", 0, &start), Ok(false), "{version}: it began before");
        }
        let start = memory.start(&1);
        assert_eq!(memory.invalidate_version(&1, Seq(6)), Ok(true));
        assert_eq!(seen(&memory), None);
        assert_eq!(fill(&memory, "five", 5, &start), Ok(false), "it began before");
        assert_eq!(fill(&memory, "nobody knows which", 0, &memory.start(&1)), Ok(true));
        assert_eq!(memory.invalidate_version(&1, Seq(6)), Ok(true), "not proven to be that version");
        assert_eq!(seen(&memory), None);
    }
}
