//! The counters of a cache.

use crate::memory::servable::{MissReason, StaleReason};
use crate::metrics::ages::{AgeSummary, StaleAges};
use crate::metrics::{Counter, Counters, Counts, StripedCounter, labels, stats};

labels! {
    /// The reason why an entry left memory.
    pub enum EvictionCause {
        /// To make room for others.
        Room = "room",
        /// By a call of `evict`.
        Called = "called",
        /// By an invalidation of its key, or a write around memory.
        Invalidated = "invalidated",
        /// Its key was removed, or its load found no value.
        Removed = "removed",
    }
}

stats! {
    /// The live counters of a cache.
    live CacheMetrics;
    /// The counters of a cache at one moment. They count reads unless said otherwise, from when the cache was first
    /// opened.
    snapshot CacheStats;
    live {
        /// Reads answered from memory, with a value or with the knowledge that there is none.
        memory_hits: StripedCounter => u64, "forebay_cache_hits_total" ["source" "memory"];
        /// Reads answered from a pending record.
        pending_hits: Counter => u64, "forebay_cache_hits_total" ["source" "pending"];
        /// Reads answered by the store with a value, by their own load or by one that they joined.
        store_hits: Counter => u64, "forebay_cache_hits_total" ["source" "store"];
        /// Reads answered by a loader with a value, likewise.
        loader_hits: Counter => u64, "forebay_cache_hits_total" ["source" "loader"];
        /// Reads that found no value, neither in the store nor with a loader.
        not_found: Counter => u64, "forebay_cache_not_found_total";
        /// Reads that memory could not answer, by reason.
        misses: Counters<MissReason> => Counts<MissReason>, "forebay_cache_misses_total" ["reason"];
        /// Hits in memory past their time to live, by reason.
        stale: Counters<StaleReason> => Counts<StaleReason>, "forebay_cache_stale_total" ["reason"];
        /// The ages of the values that were served past their time to live.
        stale_ages: StaleAges => AgeSummary, "forebay_cache_stale_age_seconds" ["quantile"];
        /// Loads begun. A call for many keys counts one for each key.
        loads: Counter => u64, "forebay_cache_loads_total";
        /// Loads begun in the background: after a stale hit, or early.
        background_loads: Counter => u64, "forebay_cache_background_loads_total";
        /// Loads that failed.
        failed_loads: Counter => u64, "forebay_cache_failed_loads_total";
        /// Reads for which no load was tried, because the last one failed so short ago.
        throttled_loads: Counter => u64, "forebay_cache_throttled_loads_total";
        /// Reads that waited for another read's load.
        joined_loads: Counter => u64, "forebay_cache_joined_loads_total";
        /// Loaded values not kept, because a write, an invalidation or a later load came in between.
        refused_fills: Counter => u64, "forebay_cache_refused_fills_total";
        /// Values not kept, because the weigher or other code of the key's or value's type panicked.
        memory_failures: Counter => u64, "forebay_cache_memory_failures_total";
    }
    filled in {
        /// Loads that found the source as the copy in memory had it.
        reloads_unchanged: u64, "forebay_cache_reloads_total" ["found" "unchanged"];
        /// Loads that found the source changed: the copy in memory had become stale.
        reloads_changed: u64, "forebay_cache_reloads_total" ["found" "changed"];
        /// Entries that left memory, by cause. Replaced ones do not count. What `invalidate_all` hides leaves later,
        /// for room.
        evictions: Counts<EvictionCause>, "forebay_cache_evictions_total" ["cause"];
    }
}
