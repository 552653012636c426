//! The values that one cache holds in memory, bounded by count or by weight.
//!
//! Eviction and sharding are quick_cache's; the fences and the generations are ours. Code of the user's types
//! (hashing, comparing, cloning, weighing) may panic here: then everything in memory becomes unservable, which
//! needs none of that code, and the write or load that brought the value goes on without memory.

use std::cell::Cell;
use std::hash::{BuildHasher, Hash};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use quick_cache::OptionsBuilder;
use quick_cache::sync::Cache;

use crate::error::{Error, ErrorKind};
use crate::ids::Seq;
use crate::memory::advice::TtlAdvice;
use crate::memory::entry::{
    ByEntry, Candidate, Entry, EntryMetadata, EntryOverrides, LoadResult, LoadStart, MemoryHit, SHARE_MAX,
};
use crate::memory::evictions::Evictions;
use crate::memory::extra::Extra;
use crate::memory::fence::{FenceMark, Fences};
use crate::memory::freshness::{Freshness, LiveDuration};
use crate::memory::metrics::EvictionCause;
use crate::memory::reloads::{CompareValues, ReloadWatch, VersionedRef};
use crate::memory::scope::{Dependencies, Scopes};
use crate::memory::servable::{
    CacheLimits, EntryFacts, LoadProgress, MissReason, ReadConstraints, Servable, StaleReason, invalidated,
    is_due_early, is_timed, life, servable,
};
use crate::metrics::{Counters, Counts};
use crate::safeguard::Safeguard;
use crate::seam::clock::{Moment, Ticker};
use crate::seam::random::{self, HashBuilder};

/// What a value costs, in the unit of the capacity; less than one counts as one.
pub type Weigher<K, V> = Box<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// How much a cache may hold.
pub enum Capacity<K, V> {
    /// So many entries.
    Entries(usize),
    /// So much weight, as the function weighs.
    Weight(u64, Weigher<K, V>),
}

/// The entries of one cache and its fences.
pub struct Resident<K, V> {
    pub(super) entries: Cache<K, Entry<V>, ByEntry, HashBuilder, Evictions<K, Entry<V>>>,
    pub(super) evictions: Arc<Counters<EvictionCause>>,
    watch: ReloadWatch<V>,
    pub(super) hasher: HashBuilder,
    pub(super) fences: Arc<Fences>,
    weigh: Option<Weigher<K, V>>,
    freshness: Freshness,
    time_to_live: LiveDuration,
    ticker: Ticker,
}

/// The values or code of the user's panicked; memory was emptied of everything it might have confused.
#[derive(Debug, PartialEq, Eq)]
pub struct MemoryFailed;

impl<K: Hash + Eq + Clone, V: Clone> Resident<K, V> {
    /// An empty memory.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if the bound is one that the engine cannot take.
    pub fn new(bound: Capacity<K, V>, freshness: Freshness, ticker: Ticker) -> Result<Self, Error> {
        // An estimate of the number of entries sizes the table; a weight says nothing of it, so a middling one.
        let (estimate, capacity, weigh) = match bound {
            Capacity::Entries(entries) => (entries, u64::try_from(entries).unwrap_or(u64::MAX), None),
            Capacity::Weight(weight, weigh) => {
                (usize::try_from(weight / 256).unwrap_or(usize::MAX).clamp(16, 1 << 20), weight, Some(weigh))
            }
        };
        let options = OptionsBuilder::new()
            .estimated_items_capacity(estimate)
            .weight_capacity(capacity)
            .build()
            .map_err(|error| Error::with_source(ErrorKind::InvalidOption, "capacity", error.to_string()))?;
        let hasher = HashBuilder::default();
        let counted = Arc::<Counters<EvictionCause>>::default();
        let lifecycle = Evictions::new(Arc::clone(&counted));
        let entries = Cache::with_options(options, ByEntry, hasher.clone(), lifecycle);
        let (fences, time_to_live) = (Arc::new(Fences::new(Arc::default())), LiveDuration::new(None));
        let watch = ReloadWatch::default();
        Ok(Resident {
            entries,
            evictions: counted,
            watch,
            hasher,
            fences,
            weigh,
            freshness,
            time_to_live,
            ticker,
        })
    }

    /// Compares what loads bring with what they replace, where versions do not tell.
    #[must_use]
    pub fn with_comparison(mut self, same: CompareValues<V>) -> Self {
        self.watch.same = Some(same);
        self
    }

    /// What the reloads so far say of a time to live that serves this share stale.
    #[must_use]
    pub fn advise(&self, wanted_share: f64) -> TtlAdvice {
        let jitter = f64::from(self.freshness.jitter) / 65_536.0;
        self.watch.reloads.advise(wanted_share, self.time_to_live(), jitter)
    }

    /// How many reloads found no change, and how many found one.
    #[must_use]
    pub fn reloads(&self) -> (u64, u64) {
        self.watch.reloads.counts()
    }

    /// The same memory, still empty, with its bulk invalidations in one order with those of others.
    #[must_use]
    pub fn with_scopes(self, scopes: Arc<Scopes>) -> Self {
        Resident { fences: Arc::new(Fences::new(scopes)), ..self }
    }

    /// What makes an older load lose, and what is derived from this memory's entries.
    #[must_use]
    pub fn fences(&self) -> &Arc<Fences> {
        &self.fences
    }

    /// How long a value is fresh, from now on and for what is in memory.
    pub fn set_time_to_live(&self, time_to_live: Option<Duration>) {
        self.time_to_live.set(time_to_live);
    }

    /// How long a value is fresh.
    #[must_use]
    pub fn time_to_live(&self) -> Option<Duration> {
        self.time_to_live.value()
    }

    /// What else the cache asks of its entries.
    #[must_use]
    pub fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// The clock that ages are read from.
    #[must_use]
    pub fn ticker(&self) -> &Ticker {
        &self.ticker
    }

    /// The value of a key for a reader who asks for nothing in particular, if no time limits it; else what there is, to
    /// be judged by [`Resident::check`]. Counts as a use.
    ///
    /// # Errors
    /// What is to be judged.
    #[inline]
    pub fn get(&self, key: &K) -> Result<Option<V>, Candidate<V>> {
        if self.freshness.times_values() || self.time_to_live.value().is_some() {
            return Err(self.find(key));
        }
        let found = self.entries.get(key);
        let is_plain = |entry: &Entry<V>| entry.value.is_some() && entry.extra.is_none();
        let is_served = found.as_ref().is_some_and(|entry| is_plain(entry) && self.is_served_plain(entry));
        // The value is taken out where it lies: moving the entry would cost as much as judging it.
        match found {
            Some(Entry { value, extra: None, .. }) if is_served => Ok(value),
            found => left_to_judge(found),
        }
    }

    /// What there is of a key. Counts as a use.
    fn find(&self, key: &K) -> Candidate<V> {
        let verified = self.verified();
        Candidate(self.entries.get(key), verified)
    }

    /// Whether an entry is served that has a value and nothing beside it, in a cache that times no values. Apart from
    /// [`Resident::check`], because what the compiler knows to be constant here is most of the decision.
    #[inline(always)]
    fn is_served_plain(&self, entry: &Entry<V>) -> bool {
        let limits = CacheLimits {
            time_to_live: None,
            freshness: &Freshness::UNTIMED,
            ..self.limits(Moment::default())
        };
        let facts = EntryFacts { absent: false, ..entry.untimed_facts() };
        !matches!(servable(&facts, &limits, facts.since, &ReadConstraints::default()), Servable::Miss(_))
    }

    /// What is in memory of a key and may be served to this reader. Counts as a use.
    ///
    /// # Errors
    /// Why it may not.
    pub fn lookup(&self, key: &K, constraints: &ReadConstraints) -> Result<MemoryHit<V>, MissReason> {
        self.check(self.find(key), constraints)
    }

    /// What was found, if it may be served to this reader. The clock is read if it matters.
    ///
    /// # Errors
    /// Why it may not be served.
    pub fn check(
        &self,
        found: Candidate<V>,
        constraints: &ReadConstraints,
    ) -> Result<MemoryHit<V>, MissReason> {
        let Candidate(Some(entry), verified) = found else { return Err(MissReason::Absent) };
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

    /// As [`Resident::lookup`], with the age measured in any case.
    ///
    /// # Errors
    /// Why it may not be served.
    pub fn look_closely(&self, key: &K, constraints: &ReadConstraints) -> Result<MemoryHit<V>, MissReason> {
        let Candidate(Some(entry), verified) = self.find(key) else { return Err(MissReason::Absent) };
        self.check_timed(entry, constraints, verified)
    }

    /// As [`Resident::look_closely`], without counting as a use.
    ///
    /// # Errors
    /// Why it may not be served.
    pub fn peek(&self, key: &K, constraints: &ReadConstraints) -> Result<MemoryHit<V>, MissReason> {
        let verified = self.verified();
        let Some(entry) = self.entries.peek(key) else { return Err(MissReason::Absent) };
        self.check_timed(entry.detached(), constraints, verified)
    }

    /// With the clock.
    fn check_timed(
        &self,
        entry: Entry<V>,
        constraints: &ReadConstraints,
        verified: Moment,
    ) -> Result<MemoryHit<V>, MissReason> {
        let (facts, limits) = (&self.facts(&entry), &self.limits(verified));
        let now = self.ticker.now();
        let (age, stale, reload) = match servable(facts, limits, now, constraints) {
            Servable::Fresh { age, left } => (age, None, left.is_some_and(|left| self.is_due(&entry, left))),
            Servable::Stale { age, because } => {
                (age, Some(because), because == StaleReason::WhileRevalidating)
            }
            Servable::Miss(reason) => return Err(reason),
        };
        if let Some(extra) = &entry.extra {
            extra.use_at(now);
        }
        let window = match (stale, constraints.progress) {
            (Some(StaleReason::WhileRevalidating), _) => self.freshness.stale_while_revalidate,
            (Some(StaleReason::LoadFailed), _) => self.freshness.stale_if_error,
            _ => Duration::ZERO,
        };
        let life = match (stale, constraints.progress) {
            (Some(StaleReason::InsteadOfWaiting), LoadProgress::InFlight(most)) => Some(most),
            _ => life(facts, limits).map(|life| life.saturating_add(window)),
        };
        let lag_max = self.freshness.following.map(|following| following.lag_max);
        let lag_max = lag_max.filter(|_| stale != Some(StaleReason::Unverified));
        let bound = life.into_iter().chain(constraints.max_staleness).chain(lag_max).min();
        let (version, dependencies) = (entry.version(), entry.dependencies());
        Ok(MemoryHit { value: entry.value, version, age, stale, reload, bound, dependencies })
    }

    fn is_due(&self, entry: &Entry<V>, left: Duration) -> bool {
        match self.freshness.early_refresh {
            Some(beta) if entry.value.is_some() => is_due_early(left, entry.took(), beta, drawn),
            _ => false,
        }
    }

    /// Until when a follower has heard of every change. To be asked before an entry is looked up and before any floor
    /// is: what drops entries and raises floors comes first, and the proof of it afterwards. An entry that was found
    /// before it was dropped must not be taken for current by a proof that came after that.
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

    /// Whether a reader who starts at `now` may have what a load brings that started at `since`, with the fences
    /// where they still stand.
    #[must_use]
    pub fn may_join(&self, since: Moment, now: Moment, constraints: &ReadConstraints) -> bool {
        let limits = self.limits(Moment::default());
        let generation = limits.floor.max(limits.namespace_floor);
        let facts = EntryFacts { generation, since, used: now, of_loader: true, ..EntryFacts::default() };
        matches!(servable(&facts, &limits, now, constraints), Servable::Fresh { .. })
    }

    /// Where a load of `key` starts. Taken before the load looks anywhere.
    pub fn start(&self, key: &K) -> LoadStart {
        // The time first: an age may come out too high, never too low.
        let since = self.ticker.now();
        let mark = self.fences.mark(self.hasher.hash_one(key));
        self.started(mark, since, false)
    }

    /// As [`Resident::start`], for a load that reads past memory: when it lands, those that began before it lose, and
    /// memory does not keep what it had.
    pub fn begin_load_past_memory(&self, key: &K) -> LoadStart {
        let since = self.ticker.now();
        let mark = self.fences.mark_anew(self.hasher.hash_one(key));
        self.started(mark, since, true)
    }

    fn started(&self, mark: FenceMark, since: Moment, anew: bool) -> LoadStart {
        // After the mark: what lands at that mark must not be below the floor that the mark has seen.
        let generation = self.fences.scopes().now();
        LoadStart { mark, generation, since, anew }
    }

    /// Takes a committed write that was handed over at `since`: `None` removes. Older loads of the key can no longer
    /// land.
    ///
    /// # Errors
    /// [`MemoryFailed`]; the write itself is none of this module's business and goes on.
    pub fn apply_write(
        &self,
        key: K,
        value: Option<V>,
        version: Seq,
        since: Moment,
        overrides: EntryOverrides,
    ) -> Result<(), MemoryFailed> {
        self.guarded(|| {
            let weight = value.as_ref().map_or(0, |value| self.weight(&key, value));
            let (share, extra) = (self.share(), self.extra(overrides, since));
            self.fences.change(self.hasher.hash_one(&key), || match value {
                None => {
                    self.evictions.add(EvictionCause::Removed, u64::from(self.entries.remove(&key).is_some()))
                }
                Some(value) => {
                    let generation = self.fences.scopes().now();
                    let (took_us, of_loader) = (0, false);
                    let about =
                        EntryMetadata { version, generation, since, weight, took_us, share, of_loader };
                    self.entries.insert(key, Entry::new(Some(value), &about, extra));
                }
            });
        })
    }

    /// Keeps what a load brought, unless its key was written or invalidated since the start, or memory has a newer
    /// version or a later load's; says whether it did. Of an absent key, what memory had is dropped, and the absence
    /// is kept if the cache remembers absences.
    ///
    /// # Errors
    /// [`MemoryFailed`]; the load's result is good all the same.
    pub fn fill(
        &self,
        key: &K,
        load_result: &LoadResult<'_, V>,
        start: &LoadStart,
    ) -> Result<bool, MemoryFailed> {
        let &LoadResult { value, version, of_loader, ref overrides } = load_result;
        let scopes = self.fences.scopes();
        let broken = |dependencies: &Arc<Dependencies>| dependencies.have_changed(scopes, start.generation);
        if overrides.dependencies.as_ref().is_some_and(broken) {
            return Ok(false);
        }
        let (kept, replaced) = self.guarded(|| {
            let weight = value.map_or(1, |value| self.weight(key, value));
            let took_us = match self.freshness.early_refresh {
                Some(_) => {
                    u32::try_from(self.ticker.now().since(start.since).as_micros()).unwrap_or(u32::MAX)
                }
                None => 0,
            };
            let since = match Safeguard::AgeFromLoadStart.holds() {
                true => start.since,
                false => self.ticker.now(),
            };
            let (generation, share) = (start.generation, self.share());
            let about = EntryMetadata { version, generation, since, weight, took_us, share, of_loader };
            let entry = Entry::new(value.cloned(), &about, self.extra(overrides.clone(), since));
            let keeps =
                value.is_some() || overrides.time_to_live.or(self.freshness.negative_time_to_live).is_some();
            let later =
                |since: Moment, there: Seq| since > start.since || there > version && version > Seq::ZERO;
            let (owned, lost, replaced) = (key.clone(), Cell::new(false), Cell::new(None));
            let kept = self.fences.fill(&start.mark, || {
                let compared = Cell::new(None);
                let there = self.inspect(key, |there| {
                    if there.of_loader() == of_loader && !later(there.since(), there.version()) {
                        compared.set(self.watch.replaced(
                            start.since.since(there.since()),
                            there.serves(self.time_to_live().is_some()),
                            VersionedRef { value: there.value.as_ref(), version: there.version() },
                            VersionedRef { value, version },
                        ));
                    }
                });
                let current = there.as_ref().filter(|there| self.is_current(there));
                replaced.set(compared.into_inner().filter(|_| current.is_some()));
                lost.set(current.is_some_and(|there| later(there.since(), there.version())));
                // That the store lacks a key says nothing about what a loader brought.
                let others = value.is_none() && !of_loader && current.is_some_and(|there| there.of_loader());
                if !lost.get() && !others && keeps {
                    self.entries.insert(owned, entry);
                } else if !lost.get() && !others && there.is_some() {
                    self.evictions.add(EvictionCause::Removed, u64::from(self.entries.remove(key).is_some()));
                }
            });
            if !kept && start.anew {
                // A key that shares the fence may be why, so that memory may still have what was read past.
                let gone = self.entries.remove_if(key, |there| there.since() <= start.since);
                self.evictions.add(EvictionCause::Removed, u64::from(gone.is_some()));
            }
            (kept && !lost.get(), replaced.into_inner().filter(|_| kept))
        })?;
        if let Some(replaced) = replaced {
            self.watch.note(replaced, value);
        }
        Ok(kept)
    }

    /// The number of entries that left memory, by cause.
    #[must_use]
    pub fn evictions(&self) -> Counts<EvictionCause> {
        self.evictions.value()
    }

    /// How many entries there are, unservable ones included.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// What there is of a key, without the value. To be called under its fence, so that nobody changes it meanwhile;
    /// whether it is servable is asked afterwards, not under the engine's own lock.
    /// `also` looks at the whole under that lock.
    pub(super) fn inspect(&self, key: &K, also: impl FnOnce(&Entry<V>)) -> Option<Entry<()>> {
        let (seen, also) = (Cell::new(None), Cell::new(Some(also)));
        self.entries.remove_if(key, |there| {
            if let Some(also) = also.take() {
                also(there);
            }
            seen.set(Some(there.without_value()));
            false
        });
        seen.into_inner()
    }

    fn facts<T>(&self, entry: &Entry<T>) -> EntryFacts {
        entry.facts(self.fences.scopes(), self.freshness.jitter)
    }

    /// Whether nothing has invalidated an entry.
    pub(super) fn is_current(&self, entry: &Entry<()>) -> bool {
        invalidated(&self.facts(entry), &self.limits(Moment::default())).is_none()
    }

    pub(super) fn weight(&self, key: &K, value: &V) -> u32 {
        self.weigh.as_ref().map_or(1, |weigh| weigh(key, value).max(1))
    }

    pub(super) fn extra(&self, overrides: EntryOverrides, used: Moment) -> Option<Arc<Extra>> {
        let watched = self.time_to_live().is_some() && self.watch.watches_next();
        Extra::of(overrides, &self.freshness, used, watched)
    }

    /// A new entry's share of the jitter.
    pub(super) fn share(&self) -> u16 {
        match self.freshness.jitter {
            0 => 0,
            _ => u16::try_from(drawn() % (u32::from(SHARE_MAX) + 1)).unwrap_or(SHARE_MAX),
        }
    }

    pub(super) fn guarded<R>(&self, change: impl FnOnce() -> R) -> Result<R, MemoryFailed> {
        catch_unwind(AssertUnwindSafe(change)).map_err(|_panic| {
            self.fences.change_all();
            MemoryFailed
        })
    }
}

/// Apart, so that what was found is moved only if it has to be.
#[cold]
#[inline(never)]
fn left_to_judge<V>(found: Option<Entry<V>>) -> Result<Option<V>, Candidate<V>> {
    Err(Candidate(found, Moment::default()))
}

/// Without randomness nothing is cut, and what might be loaded early is.
fn drawn() -> u32 {
    random::u32().unwrap_or(0)
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
        let anew = memory.begin_load_past_memory(&1);
        let (fence, mut others) = (anew.mark.stripe(), 2..);
        let other = others.find(|other| memory.start(other).mark.stripe() == fence).unwrap();
        write(&memory, other, Some("another".into()), 1);
        assert_eq!(fill(&memory, "new", 0, &anew), Ok(false));
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
