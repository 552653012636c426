//! Counters of a layer, and the plain snapshot that a caller reads.
//!
//! Counters only grow. Reading them takes no lock, so a snapshot may be off by what happened meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// What has been added so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The live counters of a layer.
        #[derive(Debug, Default)]
        pub struct Metrics { $($(#[$doc])* pub $name: Counter,)* }

        /// The counters of a layer at one moment; all count from when the layer opened.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats { $($(#[$doc])* pub $name: u64,)* }

        impl Metrics {
            /// A snapshot.
            #[must_use]
            pub fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.value(),)* }
            }
        }
    };
}

stats! {
    /// Reads answered from memory.
    memory_hits,
    /// Reads answered from a pending record.
    pending_hits,
    /// Reads that asked the store.
    store_loads,
    /// Reads that waited for another read's load instead of asking the store again.
    joined_loads,
    /// Loaded values not kept, because a write or an invalidation came in between.
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
    /// Pending values that were left to the journal because the memory budget was used up.
    records_spilled,
    /// Values of pending records read back from the journal for a reader.
    journal_reads,
    /// Writes refused because the queue was full.
    writes_refused_full,
}
