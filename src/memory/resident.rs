//! The values that one cache holds in memory, bounded by count or by weight.
//!
//! Eviction and sharding are quick_cache's; the fences and the generations are ours. Code of the user's types
//! (hashing, comparing, cloning, weighing) may panic here: then everything in memory becomes unservable, which
//! needs none of that code, and the write or load that brought the value goes on without memory.

use std::hash::{BuildHasher, Hash};
use std::panic::{AssertUnwindSafe, catch_unwind};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::error::{Error, ErrorKind};
use crate::ids::Seq;
use crate::memory::fence::{Fences, Mark};
use crate::memory::servable::{Generation, Servable, servable};
use crate::safeguard::Safeguard;
use crate::seam::random::HashBuilder;

/// What a value costs, in the unit of the capacity; less than one counts as one.
pub type Weigh<K, V> = Box<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// How much a cache may hold.
pub enum Bound<K, V> {
    /// So many entries.
    Entries(usize),
    /// So much weight, as the function weighs.
    Weight(u64, Weigh<K, V>),
}

/// A value in memory.
#[derive(Clone, Debug)]
pub struct Entry<V> {
    /// The value.
    pub value: V,
    /// Who wrote it.
    pub version: Seq,
    generation: Generation,
    weight: u32,
}

#[derive(Clone)]
struct ByEntry;

impl<K, V> Weighter<K, Entry<V>> for ByEntry {
    fn weight(&self, _key: &K, entry: &Entry<V>) -> u64 {
        u64::from(entry.weight.max(1))
    }
}

/// The entries of one cache and its fences.
pub struct Resident<K, V> {
    entries: Cache<K, Entry<V>, ByEntry, HashBuilder>,
    hasher: HashBuilder,
    fences: Fences,
    weigh: Option<Weigh<K, V>>,
}

/// The values or code of the user's panicked; memory was emptied of everything it might have confused.
#[derive(Debug, PartialEq, Eq)]
pub struct MemoryFailed;

impl<K: Hash + Eq + Clone, V: Clone> Resident<K, V> {
    /// An empty memory.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if the bound is one that the engine cannot take.
    pub fn new(bound: Bound<K, V>) -> Result<Self, Error> {
        // An estimate of the number of entries sizes the table; a weight says nothing of it, so a middling one.
        let (estimate, capacity, weigh) = match bound {
            Bound::Entries(entries) => (entries, u64::try_from(entries).unwrap_or(u64::MAX), None),
            Bound::Weight(weight, weigh) => {
                (usize::try_from(weight / 256).unwrap_or(usize::MAX).clamp(16, 1 << 20), weight, Some(weigh))
            }
        };
        let options = OptionsBuilder::new()
            .estimated_items_capacity(estimate)
            .weight_capacity(capacity)
            .build()
            .map_err(|error| Error::with_source(ErrorKind::InvalidOption, "capacity", error.to_string()))?;
        let hasher = HashBuilder::default();
        let entries = Cache::with_options(options, ByEntry, hasher.clone(), DefaultLifecycle::default());
        Ok(Resident { entries, hasher, fences: Fences::default(), weigh })
    }

    /// The value in memory, if there is one that may be served.
    pub fn get(&self, key: &K) -> Option<Entry<V>> {
        let entry = self.entries.get(key)?;
        match servable(entry.generation, self.fences.generation()) {
            Servable::Fresh => Some(entry),
            Servable::Miss(_) => None,
        }
    }

    /// Whether a read would be answered from memory. Does not count as a use.
    pub fn contains(&self, key: &K) -> bool {
        let floor = self.fences.generation();
        self.entries.peek(key).is_some_and(|entry| servable(entry.generation, floor) == Servable::Fresh)
    }

    /// Marks the fences before a load of `key`.
    pub fn mark(&self, key: &K) -> Mark {
        self.fences.mark(self.hasher.hash_one(key))
    }

    /// Takes a committed write: `None` removes. Older loads of the key can no longer land.
    ///
    /// # Errors
    /// [`MemoryFailed`]; the write itself is none of this module's business and goes on.
    pub fn written(&self, key: K, value: Option<V>, version: Seq) -> Result<(), MemoryFailed> {
        self.guarded(|| {
            let weight = value.as_ref().map_or(0, |value| self.weight(&key, value));
            self.fences.change(self.hasher.hash_one(&key), || match value {
                None => drop(self.entries.remove(&key)),
                Some(value) => {
                    let generation = self.fences.generation();
                    self.entries.insert(key, Entry { value, version, generation, weight });
                }
            });
        })
    }

    /// Keeps a loaded value, unless its key was written or invalidated since `mark`; says whether it did.
    ///
    /// # Errors
    /// [`MemoryFailed`]; the load's result is good all the same.
    pub fn fill(&self, key: &K, value: &V, version: Seq, mark: &Mark) -> Result<bool, MemoryFailed> {
        self.guarded(|| {
            let (key, value, weight) = (key.clone(), value.clone(), self.weight(key, value));
            self.fences.fill(mark, || {
                self.entries.insert(key, Entry { value, version, generation: mark.generation(), weight });
            })
        })
    }

    /// Drops `key` from memory, and makes every load of it that is under way lose.
    ///
    /// # Errors
    /// [`MemoryFailed`]; then the key, with all others, is unservable as well.
    pub fn invalidate(&self, key: &K) -> Result<(), MemoryFailed> {
        self.guarded(|| {
            if self.entries.peek(key).is_none() && !Safeguard::FenceForAbsentKeys.holds() {
                return;
            }
            self.fences.change(self.hasher.hash_one(key), || drop(self.entries.remove(key)));
        })
    }

    /// Drops everything, at a cost that does not depend on how much there is.
    pub fn invalidate_all(&self) {
        self.fences.change_all();
    }

    /// Drops `key` from memory only to make room: nothing has changed, so loads under way may land.
    pub fn evict(&self, key: &K) {
        drop(self.entries.remove(key));
    }

    /// How many entries there are, unservable ones included.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    fn weight(&self, key: &K, value: &V) -> u32 {
        self.weigh.as_ref().map_or(1, |weigh| weigh(key, value).max(1))
    }

    fn guarded<R>(&self, change: impl FnOnce() -> R) -> Result<R, MemoryFailed> {
        catch_unwind(AssertUnwindSafe(change)).map_err(|_panic| {
            self.fences.change_all();
            MemoryFailed
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident() -> Resident<u32, String> {
        Resident::new(Bound::Entries(100)).unwrap()
    }

    #[test]
    fn a_load_never_overwrites_what_was_written_after_it_began() {
        let memory = resident();
        let mark = memory.mark(&1);
        memory.written(1, Some("new".into()), Seq(2)).unwrap();
        assert_eq!(memory.fill(&1, &"old".into(), Seq(1), &mark), Ok(false));
        assert_eq!(memory.get(&1).unwrap().value, "new");
    }

    #[test]
    fn a_load_of_an_absent_key_never_lands_after_its_removal_or_a_bulk_invalidation() {
        let memory = resident();
        let mark = memory.mark(&1);
        memory.written(1, None, Seq(2)).unwrap();
        assert_eq!(memory.fill(&1, &"old".into(), Seq(1), &mark), Ok(false));
        let mark = memory.mark(&1);
        memory.invalidate_all();
        assert_eq!(memory.fill(&1, &"old".into(), Seq(1), &mark), Ok(false));
        let mark = memory.mark(&1);
        memory.invalidate(&1).unwrap();
        assert_eq!(memory.fill(&1, &"old".into(), Seq(1), &mark), Ok(false));
        assert!(memory.get(&1).is_none());
    }

    #[test]
    fn a_bulk_invalidation_hides_what_was_there_and_nothing_later() {
        let memory = resident();
        memory.written(1, Some("a".into()), Seq(1)).unwrap();
        memory.invalidate_all();
        assert!(memory.get(&1).is_none() && !memory.contains(&1));
        memory.written(1, Some("b".into()), Seq(2)).unwrap();
        assert_eq!(memory.get(&1).unwrap().value, "b");
    }

    #[test]
    fn a_panicking_weigher_empties_memory_instead_of_leaving_an_old_value() {
        let weigh: Weigh<u32, String> =
            Box::new(|_, value| if value == "bad" { panic!("weigher") } else { 1 });
        let memory = Resident::new(Bound::Weight(100, weigh)).unwrap();
        memory.written(1, Some("old".into()), Seq(1)).unwrap();
        assert_eq!(memory.written(1, Some("bad".into()), Seq(2)), Err(MemoryFailed));
        assert!(memory.get(&1).is_none());
        memory.written(1, Some("good".into()), Seq(3)).unwrap();
        assert_eq!(memory.get(&1).unwrap().value, "good");
    }

    #[test]
    fn memory_is_bounded_by_count_and_by_weight() {
        let memory = resident();
        (0..10_000).for_each(|key| memory.written(key, Some("v".into()), Seq(1)).unwrap());
        assert!(memory.count() <= 100, "{}", memory.count());
        let weigh: Weigh<u32, String> = Box::new(|_, value| u32::try_from(value.len()).unwrap());
        let memory = Resident::new(Bound::Weight(100_000, weigh)).unwrap();
        (0..10_000).for_each(|key| memory.written(key, Some("v".repeat(1000)), Seq(1)).unwrap());
        assert!(memory.count() <= 100, "{}", memory.count());
    }

    #[test]
    fn a_value_heavier_than_the_capacity_does_not_leave_the_old_one() {
        let weigh: Weigh<u32, String> = Box::new(|_, value| u32::try_from(value.len()).unwrap());
        let memory = Resident::new(Bound::Weight(100, weigh)).unwrap();
        memory.written(1, Some("old".into()), Seq(1)).unwrap();
        memory.written(1, Some("x".repeat(1000)), Seq(2)).unwrap();
        assert!(memory.get(&1).is_none_or(|entry| entry.version == Seq(2)));
    }
}
