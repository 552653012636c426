//! The bytes that the journal writes and keeps, and the cost of a put without a disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use forebay::testkit::flaky::FlakyStore;
use forebay::{Cache, Durability, Forebay, JournalOptions, MemoryStore};

use crate::forgetful::Forgetful;
use crate::looking::{bytes_in, bytes_written};
use crate::memory_disk::MemoryDisk;
use crate::{CALLS_MAX, MIB, Measure, VALUE_BYTES, one_thread, written_in};

/// The time that preparing a spare may take.
const SPARE_WITHIN: Duration = Duration::from_secs(60);
/// The default of `retain_applied_bytes`.
const RETAINED_BYTES: u64 = 64 << 20;
const PER_BYTE: &str = "bytes a byte of key and value";

impl Measure {
    /// Measures the journal's write amplification, and the disk space that it keeps after a burst.
    pub(crate) fn disk(&mut self) -> Result<()> {
        let time = Duration::from_millis(if self.smoke { 100 } else { 2_000 });
        let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
        for writers in [1, 64] {
            let name = format!("disk-{writers}");
            let bay = self.open(&runtime, &name, Durability::Sync, Forgetful::default())?;
            let cache: Cache<u64, Vec<u8>> = bay.cache("growth").capacity(100_000).open()?;
            runtime.block_on(written_in(&cache, writers, time / 4))?;
            runtime.block_on(bay.flush())?;
            // The spare that is prepared ahead is written with zeros once; later ones are used again.
            let begun = Instant::now();
            while bay.health().journal_bytes < 2 * JournalOptions::default().segment_bytes {
                ensure!(begun.elapsed() < SPARE_WITHIN, "no spare is prepared after {SPARE_WITHIN:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
            let written = bytes_written()?;
            let before = bay.last_committed();
            runtime.block_on(written_in(&cache, writers, time))?;
            let puts = bay.last_committed().get() - before.get();
            let acknowledged = (puts * (8 + VALUE_BYTES) as u64) as f64;
            let written = bytes_written()? - written;
            let at = (writers, "writers");
            self.add("written by the journal", at, written as f64 / acknowledged, PER_BYTE);
            runtime.block_on(bay.close())?;
        }
        let durability = Durability::Buffered { sync_interval: Duration::from_millis(100) };
        for burst_mb in [16, 64, 256] {
            if self.smoke && burst_mb > 64 {
                break;
            }
            let name = format!("burst-{burst_mb}");
            let store = FlakyStore::new(MemoryStore::new());
            store.stall();
            let bay = self.open(&runtime, &name, durability, store.clone())?;
            let cache: Cache<u64, Vec<u8>> = bay.cache("growth").capacity(1).open()?;
            runtime.block_on(async {
                for number in 0..burst_mb << 8 {
                    cache.put(&(number % 1_000), vec![1; 4 << 10]).await?;
                }
                anyhow::Ok(())
            })?;
            let at = (burst_mb, "MiB in a burst");
            self.add("journal at its height", at, bay.health().journal_bytes as f64 / MIB, "MiB");
            store.release();
            runtime.block_on(bay.flush())?;
            runtime.block_on(bay.close())?;
            let left = bytes_in(&self.directory.join(&name))?;
            self.add("journal once that is drained", at, left as f64 / MIB, "MiB");
            // What the store has applied stays for a while, for a store that goes back.
            let at_most = journal_at_rest_max() + RETAINED_BYTES + (1 << 20);
            ensure!(left < at_most, "{left} bytes are left of a burst");
        }
        Ok(())
    }

    /// The path of a put alone: the disk is memory, and the store forgets.
    pub(crate) fn no_disk(&mut self) -> Result<()> {
        let runtime = one_thread()?;
        let durability = Durability::Buffered { sync_interval: Duration::from_millis(100) };
        let opening = Forebay::builder(Forgetful::default())
            .journal("journal")
            .durability(durability)
            .disk(Arc::new(MemoryDisk::default()))
            .open();
        let bay = runtime.block_on(opening)?;
        let cache: Cache<u64, Vec<u8>> = bay.cache("growth").capacity(100_000).open()?;
        let calls = if self.smoke { 100 } else { CALLS_MAX as u64 };
        let mut taken = Vec::new();
        for _ in 0..15 {
            let begun = Instant::now();
            runtime.block_on(async {
                for number in 0..calls {
                    cache.put(&(number % 1_000), vec![1; VALUE_BYTES]).await?;
                }
                anyhow::Ok(())
            })?;
            taken.push(begun.elapsed());
            runtime.block_on(bay.flush())?;
        }
        taken.sort_unstable();
        for (of, at) in [("best of 15 rounds", 0), ("median of 15 rounds", 7)] {
            let ns = taken.get(at).context("nothing was measured")?.as_nanos() as f64 / calls as f64;
            self.add("put without a disk", (calls, of), ns, "ns");
        }
        runtime.block_on(bay.close())?;
        Ok(())
    }
}

/// The largest size of a journal when nothing is pending: the segment in use, and the spares.
fn journal_at_rest_max() -> u64 {
    let journal = JournalOptions::default();
    journal.segment_bytes * (1 + journal.spares_max as u64)
}
