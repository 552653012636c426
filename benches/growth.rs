//! How cost grows: with writers, with the size of values, with what waits for the store, and with the keys in memory.
//!
//! The store forgets what it is given, or takes nothing where a backlog is to grow, so that what is measured is the
//! layer and its journal. Behind `Buffered` the calling task does all of a put but the drain. Bytes are counted at the
//! allocator, which costs a put some nanoseconds. "Without a disk" is over one in memory, for as long as the sum of a
//! round's puts took. "Read and checked" is what any recovery has to do at the least:
//! reading the same files, warm, and computing their CRC-32C.
//!
//! `cargo bench --bench growth` prints a table and writes the same figures to `target/forebay/growth.json`.

#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark's result")]

#[path = "growth/memory_disk.rs"]
mod memory_disk;

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use forebay::ids::{JournalId, Key};
use forebay::store::contract::{Batch, BoxFuture, Store, StoreError, Tenure, Versioned};
use forebay::testkit::flaky::FlakyStore;
use forebay::{Cache, Durability, Forebay, MemoryStore};
use peak_alloc::PeakAlloc;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::memory_disk::MemoryDisk;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const VALUE_BYTES: usize = 100;
/// How many calls one figure is the median of, at the most.
const CALLS_MAX: usize = 20_000;

/// How cost grows.
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
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Writers,
    Values,
    Backlog,
    Keys,
    NoDisk,
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            What::Writers => "writers",
            What::Values => "values",
            What::Backlog => "backlog",
            What::Keys => "keys",
            What::NoDisk => "no-disk",
        })
    }
}

impl What {
    const ALL: [What; 5] = [What::Writers, What::Values, What::Backlog, What::Keys, What::NoDisk];
}

/// What was measured at one point of a curve.
struct Row {
    curve: &'static str,
    at: u64,
    unit: &'static str,
    value: f64,
    value_unit: &'static str,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/forebay");
    fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
    let directory = tempfile::tempdir_in(&target).context("making a directory for the data")?;
    let measure = Measure {
        directory: directory.path().to_owned(),
        smoke: arguments.smoke,
        up_to: if arguments.smoke { 10_000 } else { arguments.up_to },
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
    rows: Vec<Row>,
}

impl Measure {
    fn all(mut self, what: &[What]) -> Result<Vec<Row>> {
        for what in what {
            match what {
                What::Writers => self.writers()?,
                What::Values => self.values()?,
                What::Backlog => self.backlog()?,
                What::Keys => self.keys()?,
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
                cache.put(&(number % 100), vec![1; bytes]).await.map(drop)
            })?;
            self.add("put behind buffered", (bytes as u64, "value bytes"), us, "us");
            runtime.block_on(bay.flush())?;
        }
        runtime.block_on(bay.close())?;
        Ok(())
    }

    /// What waits for a store that takes nothing, and what it costs to open a layer with that.
    fn backlog(&mut self) -> Result<()> {
        let runtime = one_thread()?;
        let durability = Durability::Buffered { sync_interval: Duration::from_millis(100) };
        let mut size = self.up_to.min(10_000);
        while size <= self.up_to {
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
                    cache.put(&number, vec![1; VALUE_BYTES]).await?;
                }
                anyhow::Ok(())
            })?;
            let us = median_us(&runtime, calls, async |number| {
                cache.put(&(first + number), vec![1; VALUE_BYTES]).await.map(drop)
            })?;
            let at = (size, "records");
            self.add("put at a backlog", at, us, "us");
            ensure!(bay.pending() == size, "{} records are pending instead of {size}", bay.pending());
            let us = median_us(&runtime, calls, async |number| {
                cache.get(&(number * 7_919 % size)).await.map(|value| drop(black_box(value)))
            })?;
            self.add("get from a backlog", at, us, "us");
            let memory = ALLOCATED.current_usage().saturating_sub(before);
            // A key is its namespace, a separator and eight bytes; a vector's length takes eight, a value's prefix two.
            let content = size * ("growth".len() + 1 + 8 + VALUE_BYTES + 8 + 2) as u64;
            let beside = (memory as f64 - content as f64) / size as f64;
            self.add("memory of a backlog", at, beside, "bytes a record, beside key and value");
            // As a crash would leave it, and nobody waits for the store.
            drop((cache, bay));
            self.recovery(&runtime, &name, at, &store)?;
            size *= 10;
        }
        Ok(())
    }

    fn recovery(
        &mut self,
        runtime: &Runtime,
        name: &str,
        at: (u64, &'static str),
        store: &FlakyStore<MemoryStore>,
    ) -> Result<()> {
        let journal = self.directory.join(name);
        let (bytes, checked) = read_and_check(&journal)?;
        let begun = Instant::now();
        let bay = self.open(runtime, name, Durability::Sync, store.clone())?;
        let opened = begun.elapsed();
        let cache: Cache<u64, Vec<u8>> = bay.cache("growth").capacity(1).open()?;
        let read = runtime.block_on(cache.get(&0))?;
        let first_read = begun.elapsed();
        ensure!(read.is_some() && bay.pending() == at.0, "the backlog is not there after the opening");
        let rate = |time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
        self.add("read and checked", at, rate(checked), "MB/s");
        self.add("opened", at, rate(opened), "MB/s");
        self.add("first read after", at, first_read.as_secs_f64() * 1e3, "ms");
        drop((cache, bay));
        fs::remove_dir_all(&journal).with_context(|| format!("removing {}", journal.display()))
    }

    fn keys(&mut self) -> Result<()> {
        let runtime = one_thread()?;
        let mut keys = 1_000;
        while keys <= self.up_to {
            let durability = Durability::Buffered { sync_interval: Duration::from_millis(100) };
            let bay = self.open(&runtime, "keys", durability, Forgetful::default())?;
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

impl Measure {
    /// The path of a put alone: the disk is memory, and the store forgets.
    fn no_disk(&mut self) -> Result<()> {
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
fn median_us(
    runtime: &Runtime,
    calls: usize,
    mut call: impl AsyncFnMut(u64) -> forebay::Result<()>,
) -> Result<f64> {
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

/// How many bytes a journal's segments have, and how long it takes to read and to check them.
fn read_and_check(journal: &Path) -> Result<(u64, Duration)> {
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, begun) = (0, Instant::now());
    for entry in fs::read_dir(journal)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "seg") {
            continue;
        }
        let mut file = File::open(&path)?;
        let mut crc = 0;
        loop {
            let read = file.read(&mut buffer)?;
            let Some(some) = buffer.get(..read).filter(|some| !some.is_empty()) else { break };
            crc = crc32c::crc32c_append(crc, some);
            bytes += read as u64;
        }
        black_box(crc);
    }
    Ok((bytes, begun.elapsed()))
}

fn one_thread() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().build()?)
}

/// A store that takes everything at once and keeps nothing.
#[derive(Default)]
struct Forgetful(Mutex<Tenure>);

impl Forgetful {
    fn change(&self, change: impl FnOnce(&mut Tenure)) -> Tenure {
        let mut tenure = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut tenure);
        *tenure
    }
}

impl Store for Forgetful {
    fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        Box::pin(async { Ok(self.change(|_| {})) })
    }

    fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        Box::pin(async move {
            Ok(self.change(|tenure| {
                tenure.epoch.0 += 1;
                tenure.journal = journal;
            }))
        })
    }

    fn load<'a>(&'a self, _key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async { Ok(None) })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async { Ok(vec![None; keys.len()]) })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async {
            self.change(|tenure| tenure.progress = batch.progress);
            Ok(())
        })
    }
}
