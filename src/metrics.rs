//! Counters of a layer and of its caches, and the plain snapshot that a caller reads.
//!
//! Counters only grow. Reading them takes no lock, so a snapshot may be off by what happened meanwhile.

pub mod ages;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::ages::{AgeSummary, StaleAges};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        if n > 0 {
            self.0.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// What has been added so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A [`Counter`] that many threads add to at once: each to a cell of its own, which costs no atomic addition, for as
/// long as there are cells.
#[derive(Debug, Default)]
pub struct StripedCounter {
    /// Each is written by one thread only.
    owned: [PaddedCell; OWNED],
    /// All other threads'.
    shared: PaddedCell,
}

/// How many threads at a time have cells of their own; fewer than the bits of [`TAKEN`].
const OWNED: usize = 31;

/// On a cache line of its own, with its neighbour that is fetched along.
#[derive(Debug, Default)]
#[repr(align(128))]
struct PaddedCell(AtomicU64);

/// Which cells have a thread, by bits; a cell's number is the same in all counters.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// No cell has this number: the thread has not asked for one yet.
const UNASKED: usize = usize::MAX;

thread_local! {
    /// The number of this thread's cell, or one that no cell has. Without a destructor, so that it costs nothing to
    /// look at.
    static OWN: Cell<usize> = const { Cell::new(UNASKED) };
    static LEASE: CellLease = CellLease::begin();
}

/// A thread's right to its cells; it ends with the thread.
struct CellLease {
    number: usize,
}

impl CellLease {
    fn begin() -> CellLease {
        let lowest_free = |taken: u64| {
            let number = taken.trailing_ones();
            (number < OWNED as u32).then(|| taken | 1 << number)
        };
        // What the thread before counted is seen by this one: it released what this acquires.
        let before = TAKEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, lowest_free);
        let number = before.map_or(OWNED, |taken| taken.trailing_ones() as usize);
        OWN.set(number);
        CellLease { number }
    }
}

impl Drop for CellLease {
    fn drop(&mut self) {
        // What else counts while the thread ends, counts with all others.
        OWN.set(OWNED);
        if self.number < OWNED {
            TAKEN.fetch_and(!(1 << self.number), Ordering::Release);
        }
    }
}

impl StripedCounter {
    /// Adds one.
    #[inline]
    pub fn increment(&self) {
        match self.owned.get(OWN.get()) {
            // No other thread's addition can come between the two.
            Some(PaddedCell(own)) => {
                own.store(own.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed)
            }
            None => self.increment_elsewhere(),
        }
    }

    #[cold]
    fn increment_elsewhere(&self) {
        // A thread that is ending gets no cell any more.
        if OWN.get() == UNASKED && LEASE.try_with(|_| ()).is_ok() {
            return self.increment();
        }
        self.shared.0.fetch_add(1, Ordering::Relaxed);
    }

    /// What has been added so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.owned.iter().chain([&self.shared]).map(|PaddedCell(line)| line.load(Ordering::Relaxed)).sum()
    }
}

/// The entries that left memory.
#[derive(Debug, Default)]
pub struct EvictionMetrics {
    /// To make room for others.
    pub room: Counter,
    /// By a call of `evict`.
    pub called: Counter,
    /// By an invalidation of their key, or a write around memory.
    pub invalidated: Counter,
    /// Because the key was removed, or its load found no value.
    pub removed: Counter,
}

/// How many entries left a cache's memory, by cause. What `invalidate_all` hides leaves later, for room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EvictionStats {
    /// To make room for others.
    pub room: u64,
    /// By a call of `evict`.
    pub called: u64,
    /// By an invalidation of their key, or a write around memory.
    pub invalidated: u64,
    /// Because the key was removed, or its load found no value.
    pub removed: u64,
}

impl EvictionMetrics {
    /// What has been counted so far.
    #[must_use]
    pub fn value(&self) -> EvictionStats {
        EvictionStats {
            room: self.room.value(),
            called: self.called.value(),
            invalidated: self.invalidated.value(),
            removed: self.removed.value(),
        }
    }
}

/// How much waits for the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Records.
    pub records: u64,
    /// Their bytes in the journal.
    pub bytes: u64,
    /// How long ago the oldest of them was committed, or recovered by this opening: never too low, and too high by no
    /// more than a 32nd of the time in which the queue was filled, and by how long its writer waited for room and for
    /// the commit.
    pub oldest_age: Duration,
}

macro_rules! stats {
    (
        $(#[$live_doc:meta])* $live:ident { $($(#[$more_doc:meta])* $more:ident: $kind:ty => $value:ty,)* }
        { $($(#[$other_doc:meta])* $other:ident: $other_value:ty,)* }
        $(#[$still_doc:meta])* $still:ident
        $($(#[$doc:meta])* $name:ident,)*
    ) => {
        $(#[$live_doc])*
        #[derive(Debug, Default)]
        pub struct $live { $($(#[$more_doc])* pub $more: $kind,)* $($(#[$doc])* pub $name: Counter,)* }

        $(#[$still_doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $still {
            $($(#[$more_doc])* pub $more: $value,)*
            $($(#[$other_doc])* pub $other: $other_value,)*
            $($(#[$doc])* pub $name: u64,)*
        }

        impl $live {
            /// A snapshot, without what is counted elsewhere.
            #[must_use]
            pub fn snapshot(&self) -> $still {
                $still {
                    $($more: self.$more.value(),)*
                    $($other: <$other_value>::default(),)*
                    $($name: self.$name.value(),)*
                }
            }
        }
    };
}

stats! {
    /// The live counters of a cache.
    CacheMetrics {
        /// Reads answered from memory, with a value or with the knowledge that there is none.
        memory_hits: StripedCounter => u64,
        /// How old the values were that were served past their time to live, for whatever reason.
        stale_ages: StaleAges => AgeSummary,
    }
    {
        /// What left memory, by cause. An entry that was merely replaced did not.
        evictions: EvictionStats,
        /// Loads that found the source as the copy in memory had it.
        reloads_unchanged: u64,
        /// Loads that found the source changed: the copy in memory had become stale.
        reloads_changed: u64,
    }
    /// The counters of a cache at one moment; all count from when the cache was first opened, and count reads.
    CacheStats
    /// Reads answered from a pending record.
    pending_hits,
    /// Reads answered by the store with a value, their own load's or one that they joined.
    store_hits,
    /// Reads answered by a loader with a value, likewise.
    loader_hits,
    /// Reads that found neither.
    not_found,
    /// Reads that went beyond memory because there was nothing.
    misses_absent,
    /// ... because its time to live was up.
    misses_expired,
    /// ... because it had been idle for too long.
    misses_idle,
    /// ... because everything of its generation had been invalidated.
    misses_invalidated,
    /// ... because its namespace, or one above that, had been invalidated.
    misses_below_namespace,
    /// ... because its group had been invalidated.
    misses_below_group,
    /// ... because one of its tags had been invalidated.
    misses_below_tag,
    /// ... because something that it was derived from had changed.
    misses_outdated,
    /// ... because it was older than the reader accepted.
    misses_too_old,
    /// ... because the layer follows another process and could not tell whether it was current.
    misses_unverified,
    /// Hits in memory past their time to live, loaded again in the background.
    stale_while_revalidating,
    /// Hits in memory past their time to live, by choice of a reader who would have had to wait.
    stale_instead_of_waiting,
    /// Hits in memory past their time to live, because the load failed.
    stale_if_error,
    /// Hits in memory that the layer could not tell to be current, and was told to serve.
    stale_unverified,
    /// Loads begun, of single keys; those of a call for many count each.
    loads,
    /// Loads begun in the background: after a stale hit, or early.
    background_loads,
    /// Loads that failed.
    failed_loads,
    /// Reads that met a failure so short ago that no load was tried.
    throttled_loads,
    /// Reads that waited for another one's load.
    joined_loads,
    /// Loaded values not kept, because a write, an invalidation or a later load came in between.
    refused_fills,
    /// Values not kept, because the weigher or another part of the key's or value's code panicked.
    memory_failures,
}

stats! {
    /// The live counters of a layer.
    Metrics {}
    {
        /// What is committed and not yet in the store, at this moment.
        queue: QueueStats,
    }
    /// The counters of a layer at one moment; all count from when the layer opened.
    Stats
    /// Reads answered from memory. Counted by the caches.
    memory_hits,
    /// Reads answered from a pending record.
    pending_hits,
    /// Reads that asked the store.
    store_loads,
    /// Reads that waited for another read's load instead of asking the store again.
    joined_loads,
    /// Loaded values not kept, because a write, an invalidation or a later load came in between.
    refused_fills,
    /// Values not kept in memory, because the weigher or another part of the key's or value's code panicked.
    memory_failures,
    /// Records committed: acknowledged ones of write-behind, and accepted ones of write-through.
    records_committed,
    /// Records that the store has taken or, by rejecting them, ended.
    records_applied,
    /// Changes sent to the store in batches that it took; coalescing makes them fewer than the records.
    ops_applied,
    /// Batches that the store took.
    batches_applied,
    /// Attempts to apply a batch that failed and were, or will be, repeated.
    apply_retries,
    /// Records that the store rejected.
    records_rejected,
    /// Records put into the dead-letter list.
    records_parked,
    /// Changes told by change streams.
    changes_told,
    /// Ranges that change streams could not tell.
    places_lost,
    /// Pending values that were left to the journal because the memory budget was used up.
    records_spilled,
    /// Values of pending records read back from the journal for a reader.
    journal_reads,
    /// Writes refused because the queue was full.
    writes_refused_full,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::{Barrier, Mutex};
    use std::thread;

    /// Two threads that wrote one cell would lose each other's additions.
    #[test]
    fn no_two_threads_write_one_cell_while_more_come_and_go_than_there_are_cells() {
        const THREADS: usize = 2 * OWNED;
        let counter = StripedCounter::default();
        for _ in 0..3 {
            let all_count = Barrier::new(THREADS);
            let cells = Mutex::new(BTreeSet::new());
            thread::scope(|scope| {
                let count = || {
                    (0..100).for_each(|_| counter.increment());
                    let own = OWN.get();
                    let is_own = own >= OWNED || cells.lock().unwrap().insert(own);
                    all_count.wait();
                    assert!(is_own, "cell {own} has two threads");
                };
                // Joined one by one: a scope does not wait until a thread has given its cell back.
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(count)).collect();
                threads.into_iter().for_each(|thread| thread.join().unwrap());
            });
            // Other tests' threads may have some.
            assert!(!cells.into_inner().unwrap().is_empty(), "threads that have ended gave their cells back");
        }
        assert_eq!(counter.value(), 3 * THREADS as u64 * 100);
    }
}
