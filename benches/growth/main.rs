//! The growth of cost: with writers, with the size of values, with what waits for the store, with namespaces, and with
//! the keys in memory; and what the journal writes and keeps on the disk.
//!
//! The store forgets what it is given, or takes nothing where a backlog is to grow, so that what is measured is the
//! layer and its journal. Behind `Buffered` the calling task does all of a put but the drain. Bytes are counted at the
//! allocator, which costs a put some nanoseconds. "Without a disk" is over one in memory, for as long as the sum of a
//! round's puts took. "Read and checked" is what any recovery has to do at the least: reading the same files and
//! computing their CRC-32C, over all of it, or frame by frame over what has checksums, each header and each body. Both
//! take turns with the opening, and ratios are the medians of three. The files are in the page cache, but for what is
//! called cold, before which `dd` has the system forget them.
//! `--up-to 10000000`, or `--up-to 1300000 --backlog-value-bytes 4096` for 5 GiB, needs as much disk, and minutes.
//! Bytes written are what Linux counts for the process (`/proc/self/io`), in bytes handed over in writes; the disk
//! gets whole blocks.
//!
//! `cargo bench -p forebay-benches --bench growth` prints a table and writes the same figures to
//! `target/forebay/growth.json`.

#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark's result")]

mod disks;
mod forgetful;
mod looking;
mod memory_disk;
#[path = "../support/results.rs"]
mod results;

use std::fs;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use forebay::store::Store;
use forebay::testkit::flaky::FlakyStore;
use forebay::{Cache, Durability, Forebay, MemoryStore};
use peak_alloc::PeakAlloc;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::forgetful::Forgetful;
use crate::looking::{forget_cached, read_and_check, read_and_check_frames};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const VALUE_BYTES: usize = 100;
/// The largest number of calls that one figure is the median of.
const CALLS_MAX: usize = 20_000;
/// Openings of a backlog.
const RECOVERIES: usize = 3;
const MIB: f64 = (1 << 20) as f64;

/// Measures how cost grows.
#[derive(Parser, Debug)]
struct Arguments {
    /// Only see that it runs.
    #[arg(long)]
    smoke: bool,
    /// Measure only these (comma-separated).
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = What::ALL)]
    what: Vec<What>,
    /// The largest backlog, in records, and the largest number of keys.
    #[arg(long, default_value_t = 1_000_000)]
    up_to: u64,
    /// Bytes of a value of the backlog.
    #[arg(long, default_value_t = VALUE_BYTES)]
    backlog_value_bytes: usize,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Writers,
    Values,
    Backlog,
    Namespaces,
    Keys,
    Disk,
    NoDisk,
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            What::Writers => "writers",
            What::Values => "values",
            What::Backlog => "backlog",
            What::Namespaces => "namespaces",
            What::Keys => "keys",
            What::Disk => "disk",
            What::NoDisk => "no-disk",
        })
    }
}

impl What {
    const ALL: [What; 7] =
        [What::Writers, What::Values, What::Backlog, What::Namespaces, What::Keys, What::Disk, What::NoDisk];
}

/// The measurement at one point of a curve.
struct Row {
    curve: &'static str,
    at: u64,
    unit: &'static str,
    value: f64,
    value_unit: &'static str,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let target = results::directory()?;
    let directory = tempfile::tempdir_in(&target).context("making a directory for the data")?;
    let measure = Measure {
        directory: directory.path().to_owned(),
        smoke: arguments.smoke,
        up_to: if arguments.smoke { 10_000 } else { arguments.up_to },
        backlog_value_bytes: arguments.backlog_value_bytes,
        rows: Vec::new(),
    };
    let rows = measure.all(&arguments.what)?;
    let mut table = Table::new();
    table.set_header(["what", "at", "", "is", ""]);
    for row in &rows {
        table.add_row([
            row.curve,
            &row.at.to_string(),
            row.unit,
            &format!("{:.2}", row.value),
            row.value_unit,
        ]);
    }
    println!("{table}");
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({"what": row.curve, "at": row.at, "of": row.unit, "value": row.value, "unit": row.value_unit})
        })
        .collect();
    let path = target.join("growth.json");
    fs::write(&path, serde_json::to_string_pretty(&json!({ "rows": rows }))?)
        .with_context(|| format!("writing {}", path.display()))?;
    println!("The same figures: {}", path.display());
    Ok(())
}

struct Measure {
    directory: PathBuf,
    smoke: bool,
    up_to: u64,
    backlog_value_bytes: usize,
    rows: Vec<Row>,
}

impl Measure {
    fn all(mut self, what: &[What]) -> Result<Vec<Row>> {
        for what in what {
            match what {
                What::Writers => self.writers()?,
                What::Values => self.values()?,
                What::Backlog => self.backlog()?,
                What::Namespaces => self.namespaces()?,
                What::Keys => self.keys()?,
                What::Disk => self.disk()?,
                What::NoDisk => self.no_disk()?,
            }
        }
        Ok(self.rows)
    }

    fn add(
        &mut self,
        curve: &'static str,
        (at, unit): (u64, &'static str),
        value: f64,
        value_unit: &'static str,
    ) {
        self.rows.push(Row { curve, at, unit, value, value_unit });
    }

    fn open(
        &self,
        runtime: &Runtime,
        name: &str,
        durability: Durability,
        store: impl Store,
    ) -> Result<Forebay> {
        let builder = Forebay::builder(store)
            .journal(self.directory.join(name))
            .durability(durability)
            .queue_records_max(20_000_000)
            .queue_bytes_max(16 << 30);
        Ok(runtime.block_on(builder.open())?)
    }

    fn writers(&mut self) -> Result<()> {
        let time = Duration::from_millis(if self.smoke { 40 } else { 1_000 });
        let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
        for (curve, durability) in [
            ("writes behind sync", Durability::Sync),
            ("writes behind buffered", Durability::Buffered { sync_interval: Duration::from_millis(100) }),
        ] {
            let bay = self.open(&runtime, curve, durability, Forgetful::default())?;
            let cache: Cache<u64, Vec<u8>> = bay.cache("growth").capacity(100_000).open()?;
            for writers in [1, 4, 16, 64, 256, 1_024, 4_096] {
                let rate = runtime.block_on(written_in(&cache, writers, time))?;
                self.add(curve, (writers, "writers"), rate, "puts/s");
                runtime.block_on(bay.flush())?;
            }
            runtime.block_on(bay.close())?;
        }
        Ok(())
    }

    fn values(&mut self) -> Result<()> {
        let runtime = one_thread()?;
        let durability = Durability::Buffered { sync_interval: Duration::from_millis(100) };
        let bay = self.open(&runtime, "values", durability, Forgetful::default())?;
        let cache: Cache<u64, Vec<u8>> = bay.cache("growth").capacity(1_000).open()?;
        for bytes in [16, 256, 4 << 10, 64 << 10, 1 << 20] {
            let calls = CALLS_MAX.min((64 << 20) / bytes);
            let us = median_us(&runtime, calls, async |number| {
                Ok(cache.put(&(number % 100), vec![1; bytes]).await.map(drop)?)
            })?;
            self.add("put behind buffered", (bytes as u64, "value bytes"), us, "us");
            runtime.block_on(bay.flush())?;
        }
        runtime.block_on(bay.close())?;
        Ok(())
    }

    /// Measures a backlog for a store that takes nothing, and the opening of a layer with it.
    fn backlog(&mut self) -> Result<()> {
        let runtime = one_thread()?;
        let durability = Durability::Buffered { sync_interval: Duration::from_millis(100) };
        let value_bytes = self.backlog_value_bytes;
        let mut size = self.up_to.min(10_000);
        loop {
            let name = format!("backlog-{size}");
            let store = FlakyStore::new(MemoryStore::new());
            store.stall();
            let bay = self.open(&runtime, &name, durability, store.clone())?;
            // Nothing of this is resident: the backlog alone is in memory.
            let cache: Cache<u64, Vec<u8>> = bay.cache("growth").capacity(1).open()?;
            let before = ALLOCATED.current_usage();
            let calls = CALLS_MAX.min(usize::try_from(size)? / 2);
            let first = size - calls as u64;
            runtime.block_on(async {
                for number in 0..first {
                    cache.put(&number, vec![1; value_bytes]).await?;
                }
                anyhow::Ok(())
            })?;
            let us = median_us(&runtime, calls, async |number| {
                Ok(cache.put(&(first + number), vec![1; value_bytes]).await.map(drop)?)
            })?;
            let at = (size, "records");
            self.add("put at a backlog", at, us, "us");
            ensure!(bay.pending() == size, "{} records are pending instead of {size}", bay.pending());
            let us = median_us(&runtime, calls, async |number| {
                Ok(cache.get(&(number * 7_919 % size)).await.map(|value| drop(black_box(value)))?)
            })?;
            self.add("get from a backlog", at, us, "us");
            let memory = ALLOCATED.current_usage().saturating_sub(before);
            // A key is its namespace, a separator and eight bytes; a vector's length takes eight, a value's prefix two.
            let content = size * ("growth".len() + 1 + 8 + value_bytes + 8 + 2) as u64;
            let beside = (memory as f64 - content as f64) / size as f64;
            self.add("memory of a backlog", at, beside, "bytes a record, beside key and value");
            // As a crash would leave it, and nobody waits for the store.
            drop((cache, bay));
            self.recovery(&runtime, &name, at, &store)?;
            if size >= self.up_to {
                return Ok(());
            }
            size = (size * 10).min(self.up_to);
        }
    }

    fn recovery(
        &mut self,
        runtime: &Runtime,
        name: &str,
        at: (u64, &'static str),
        store: &FlakyStore<MemoryStore>,
    ) -> Result<()> {
        let journal = self.directory.join(name);
        let mut rounds = Vec::new();
        for _ in 0..RECOVERIES {
            let (bytes, checked) = read_and_check(&journal)?;
            let (_, frames_checked) = read_and_check_frames(&journal)?;
            let before = ALLOCATED.current_usage();
            ALLOCATED.reset_peak_usage();
            let begun = Instant::now();
            let bay = self.open(runtime, name, Durability::Sync, store.clone())?;
            let opened = begun.elapsed();
            let peak = ALLOCATED.peak_usage().saturating_sub(before);
            let cache: Cache<u64, Vec<u8>> = bay.cache("growth").capacity(1).open()?;
            let read = runtime.block_on(cache.get(&0))?;
            let first_read = begun.elapsed();
            // Nothing of it is drained by then: the store takes nothing.
            ensure!(read.is_some() && bay.pending() == at.0, "the backlog is not there after the opening");
            drop((cache, bay));
            forget_cached(&journal)?;
            let (_, checked_cold) = read_and_check(&journal)?;
            forget_cached(&journal)?;
            let begun = Instant::now();
            drop(self.open(runtime, name, Durability::Sync, store.clone())?);
            let opened_cold = begun.elapsed();
            let rate = |time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
            let of = |one: Duration, other: Duration| other.as_secs_f64() / one.as_secs_f64();
            rounds.push([
                rate(checked),
                rate(frames_checked),
                rate(opened),
                of(opened, checked),
                of(opened, frames_checked),
                rate(checked_cold),
                of(opened_cold, checked_cold),
                first_read.as_secs_f64() * 1e3,
                peak as f64,
            ]);
        }
        let median = |place: usize| {
            let mut sorted: Vec<f64> = rounds.iter().filter_map(|round| round.get(place).copied()).collect();
            sorted.sort_by(f64::total_cmp);
            sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
        };
        self.add("read and checked", at, median(0), "MB/s");
        self.add("read and checked frame by frame", at, median(1), "MB/s");
        self.add("opened", at, median(2), "MB/s");
        self.add("opened, of read and checked", at, median(3), "(at least 0.70 is wanted)");
        self.add("opened, of frame by frame", at, median(4), "");
        self.add("read and checked, cold", at, median(5), "MB/s");
        self.add("opened, of read and checked, cold", at, median(6), "");
        self.add("first read after", at, median(7), "ms");
        self.add("memory to open at the most", at, median(8) / 1e6, "MB");
        self.add("memory to open at the most, each", at, median(8) / at.0 as f64, "bytes a record");
        fs::remove_dir_all(&journal).with_context(|| format!("removing {}", journal.display()))
    }

    fn namespaces(&mut self) -> Result<()> {
        let runtime = one_thread()?;
        let durability = Durability::Buffered { sync_interval: Duration::from_millis(100) };
        let bay = self.open(&runtime, "namespaces", durability, Forgetful::default())?;
        let mut caches: Vec<Cache<u64, u64>> = Vec::new();
        for count in [1, 10, 100, 1_000, 10_000] {
            if self.smoke && count > 1_000 {
                break;
            }
            let (before, begun, had) = (ALLOCATED.current_usage(), Instant::now(), caches.len());
            while caches.len() < count {
                caches.push(bay.cache(&format!("growth/{}", caches.len())).capacity(16).open()?);
            }
            let made = (count - had) as f64;
            let (us, memory) = (begun.elapsed().as_secs_f64() * 1e6 / made, ALLOCATED.current_usage());
            let at = (count as u64, "namespaces");
            self.add("opening of a cache", at, us, "us");
            self.add("memory of a cache", at, memory.saturating_sub(before) as f64 / made, "bytes");
            let cache = |number: u64| caches.get(number as usize * 7_919 % count).context("it was opened");
            let us = median_us(&runtime, CALLS_MAX, async |number| {
                cache(number)?.put(&(number % 16), number).await?;
                Ok(())
            })?;
            self.add("put among namespaces", at, us, "us");
            let us = median_us(&runtime, CALLS_MAX, async |number| {
                black_box(cache(number)?.get(&(number % 16)).await?);
                Ok(())
            })?;
            self.add("get among namespaces", at, us, "us");
            runtime.block_on(bay.flush())?;
        }
        drop(caches);
        runtime.block_on(bay.close())?;
        Ok(())
    }

    fn keys(&mut self) -> Result<()> {
        let runtime = one_thread()?;
        let mut keys = 1_000;
        while keys <= self.up_to {
            let durability = Durability::Buffered { sync_interval: Duration::from_millis(100) };
            let bay = self.open(&runtime, &format!("keys-{keys}"), durability, Forgetful::default())?;
            let cache: Cache<u64, u64> = bay.cache("growth").capacity(usize::try_from(keys * 2)?).open()?;
            runtime.block_on(async {
                for key in 0..keys {
                    cache.put(&key, key).await?;
                }
                bay.flush().await
            })?;
            let calls = CALLS_MAX as u64;
            let begun = Instant::now();
            runtime.block_on(async {
                for number in 0..calls {
                    black_box(cache.get(&(number * 7_919 % keys)).await?);
                }
                anyhow::Ok(())
            })?;
            let ns = begun.elapsed().as_nanos() as f64 / calls as f64;
            self.add("hit", (keys, "keys"), ns, "ns");
            runtime.block_on(bay.close())?;
            keys *= 10;
        }
        Ok(())
    }
}

async fn written_in(cache: &Cache<u64, Vec<u8>>, writers: u64, time: Duration) -> Result<f64> {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let cache = cache.clone();
            tokio::spawn(async move {
                let mut written = 0_u64;
                while begun.elapsed() < time {
                    cache.put(&(writer * 100 + written % 100), vec![1; VALUE_BYTES]).await?;
                    written += 1;
                    // A buffered write never waits: without this, those who came first would keep the others out.
                    tokio::task::yield_now().await;
                }
                anyhow::Ok(written)
            })
        })
        .collect();
    let mut written = 0;
    for task in tasks {
        written += task.await??;
    }
    Ok(written as f64 / begun.elapsed().as_secs_f64())
}

/// The median time of a call, in microseconds.
fn median_us(runtime: &Runtime, calls: usize, mut call: impl AsyncFnMut(u64) -> Result<()>) -> Result<f64> {
    runtime.block_on(async {
        let mut taken = Vec::with_capacity(calls);
        for number in 0..calls as u64 {
            let begun = Instant::now();
            call(number).await?;
            taken.push(begun.elapsed());
        }
        taken.sort_unstable();
        let median = taken.get(taken.len() / 2).context("nothing was measured")?;
        Ok(median.as_secs_f64() * 1e6)
    })
}

fn one_thread() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().build()?)
}
