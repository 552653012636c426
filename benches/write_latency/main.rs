//! The latency of writes and their rate, by write policy, beside the bare system calls.
//!
//! ```text
//! cargo bench -p forebay-benches --bench write_latency
//! cargo bench -p forebay-benches --bench write_latency -- --smoke
//! ```
//!
//! `raw` is what the disk itself takes for the same key and value: `pwrite` and `fdatasync` into a file that
//! was written once before, by as many threads as there are writers, each syncing for itself. `sled` is the bare
//! store's own durable put, by as many threads: insert, flush, and `fdatasync` of its file. The other rows
//! are async writers, each of which waits for its acknowledgement before it writes again, on a tokio runtime
//! with as many threads as there are writers, and not more than there are cores (a single writer has the thread
//! that waits for it). `through-blocking` is the layer of `through`, written to by threads through the blocking face,
//! as `sled` is. The drain of `behind-sync` gives way to its writers for a second, so a measurement that is shorter
//! does not have it; `behind-drained` is a layer whose drain gives way to nobody (`drain_delay_max` is zero), and
//! `behind-undrained` one whose store takes nothing while it is measured: what a drain adds to an acknowledgement is
//! what the former takes more than the latter.
//!
//! All of it happens in one run on one file system, interleaved round by round and each round in another order, because
//! a disk's mood changes from minute to minute; a figure is the median over the rounds, and the spread is the lowest
//! and highest round. Before each measurement the layers are drained and the file system is synced, so that none pays
//! for the one before it. The flusher of the layer that is measured does run meanwhile: that is what a user gets.
//!
//! The table goes to the terminal, and the same figures to `target/forebay/write_latency.json`, with each round's own
//! and the distribution (`quantiles_us`: thousandths, and what so many writes did not exceed). The ratios that have a
//! target are paired by round, and under `ratios`.

#![allow(clippy::print_stdout, reason = "a benchmark's result")]

mod bare;
#[path = "../support/bare_sled.rs"]
mod bare_sled;
#[path = "../support/fair.rs"]
mod fair;
#[path = "../support/figures.rs"]
mod figures;
#[path = "../support/raw_file.rs"]
mod raw_file;
#[path = "../support/results.rs"]
mod results;
mod targets;

use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use figures::{COLUMNS, Figures, Summary, Taken};
use forebay::testkit::flaky::FlakyStore;
use forebay::{BlockingCache, Builder, Cache, Durability, Forebay, MemoryStore, SledStore, WritePolicy};
use raw_file::RawFile;
use serde::Serialize;
use serde_json::json;

use crate::bare::{BareSled, Put, by_threads};
use crate::fair::{sync_file_system, turns};
use crate::targets::{Ratio, TARGETS, print_ratios};

const VALUE_BYTES: usize = 100;
const WRITERS: [usize; 5] = [1, 4, 16, 64, 256];
/// Keys that each writer goes through.
const KEYS_PER_WRITER: u64 = 1_000;

/// Write latency and throughput of each policy, beside the bare system calls.
#[derive(Parser, Debug)]
struct Arguments {
    /// Only see that it runs: one short round.
    #[arg(long)]
    smoke: bool,
    /// The number of rounds.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// The duration of each measurement of a round, in milliseconds.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    measure_ms: u64,
    /// Measure only these numbers of writers (comma-separated).
    #[arg(long, value_delimiter = ',', default_values_t = WRITERS)]
    writers: Vec<usize>,
    /// Measure only these (comma-separated).
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = What::ALL)]
    what: Vec<What>,
    /// Threads of the writers' runtime, if there is more than one writer [default: one per core, and not
    /// more than there are writers].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    threads: Option<u64>,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Raw,
    Sled,
    Through,
    ThroughBlocking,
    BehindSync,
    BehindDrained,
    BehindUndrained,
    BehindBuffered,
}

impl Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl What {
    const ALL: [What; 8] = [
        What::Raw,
        What::Sled,
        What::Through,
        What::ThroughBlocking,
        What::BehindSync,
        What::BehindDrained,
        What::BehindUndrained,
        What::BehindBuffered,
    ];

    fn name(self) -> &'static str {
        match self {
            What::Raw => "raw",
            What::Sled => "sled",
            What::Through => "through",
            What::ThroughBlocking => "through-blocking",
            What::BehindSync => "behind-sync",
            What::BehindDrained => "behind-drained",
            What::BehindUndrained => "behind-undrained",
            What::BehindBuffered => "behind-buffered",
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (rounds, measure) = match arguments.smoke {
        true => (1, Duration::from_millis(60)),
        false => (arguments.rounds, Duration::from_millis(arguments.measure_ms)),
    };
    let target = results::directory()?;
    let directory = tempfile::tempdir_in(&target).context("making a directory for the data")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let cores = thread::available_parallelism()?.get();
    let subjects = Subjects::open(&runtime, directory.path())?;

    let mut cells = Vec::new();
    for &writers in &arguments.writers {
        cells.extend(arguments.what.iter().map(|&what| Cell { what, writers, rounds: Vec::new() }));
    }
    for round in 0..rounds {
        for group in cells.chunks_mut(arguments.what.len()) {
            for turn in turns(group.len(), round) {
                let cell = group.get_mut(turn).context("there are as many turns as cells")?;
                let writers = match cell.writers {
                    // One task has no use for worker threads.
                    1 => tokio::runtime::Builder::new_current_thread().build()?,
                    writers => {
                        let threads = arguments.threads.map_or(Ok(writers.min(cores)), usize::try_from)?;
                        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).build()?
                    }
                };
                sync_file_system(directory.path())?;
                let taken = subjects.measure(&writers, cell.what, cell.writers, measure)?;
                let Cell { what, writers, .. } = cell;
                ensure!(!taken.latencies_ns.is_empty(), "{what} with {writers} writers wrote nothing");
                cell.rounds.push(taken.figures());
            }
        }
    }
    subjects.close(&runtime)?;

    let rows: Vec<Row> = cells.iter().map(Cell::row).collect();
    let ratios: Vec<Ratio> = TARGETS.iter().filter_map(|target| target.ratio(&rows)).collect();
    print_table(&rows, rounds);
    print_ratios(&ratios);
    let path = write_json(&target, &rows, &ratios)?;
    println!("The same figures: {}", path.display());
    Ok(())
}

/// The subjects, opened once and kept open over all rounds.
struct Subjects {
    raw: Arc<RawFile>,
    sled: Arc<BareSled>,
    through: Subject,
    through_blocking: Arc<Blocking>,
    behind_sync: Subject,
    behind_drained: Subject,
    behind_undrained: Subject,
    /// The store of the one before.
    stalled: FlakyStore<MemoryStore>,
    behind_buffered: Subject,
}

struct Subject {
    bay: Forebay,
    cache: Cache<u64, Bytes>,
}

impl Subjects {
    fn open(runtime: &tokio::runtime::Runtime, directory: &Path) -> Result<Subjects> {
        let buffered = Durability::Buffered { sync_interval: Duration::from_millis(100) };
        let over_sled = |name: &str| -> Result<Builder> {
            Ok(Forebay::builder(SledStore::open(directory.join(name).join("store"))?))
        };
        let open = |name: &str, durability, builder: Builder| {
            Subject::open(runtime, &directory.join(name), durability, builder)
        };
        let stalled = FlakyStore::new(MemoryStore::new());
        let through = open("through", None, over_sled("through")?)?;
        Ok(Subjects {
            raw: Arc::new(RawFile::create(&directory.join("raw"))?),
            sled: Arc::new(BareSled::open(&directory.join("sled"))?),
            through_blocking: Arc::new(Blocking(through.cache.blocking())),
            through,
            behind_sync: open("behind-sync", Some(Durability::Sync), over_sled("behind-sync")?)?,
            behind_drained: open(
                "behind-drained",
                Some(Durability::Sync),
                over_sled("behind-drained")?.drain_delay_max(Duration::ZERO),
            )?,
            behind_undrained: open("undrained", Some(Durability::Sync), Forebay::builder(stalled.clone()))?,
            stalled,
            behind_buffered: open("behind-buffered", Some(buffered), over_sled("behind-buffered")?)?,
        })
    }

    fn layers(&self) -> [&Subject; 5] {
        let Subjects { through, behind_sync, behind_drained, behind_undrained, behind_buffered, .. } = self;
        [through, behind_sync, behind_drained, behind_undrained, behind_buffered]
    }

    fn measure(
        &self,
        runtime: &tokio::runtime::Runtime,
        what: What,
        writers: usize,
        measure: Duration,
    ) -> Result<Taken> {
        let taken = match what {
            What::Raw => by_threads(&self.raw, writers, measure),
            What::Sled => by_threads(&self.sled, writers, measure),
            What::Through => runtime.block_on(self.through.measure(writers, measure)),
            What::ThroughBlocking => by_threads(&self.through_blocking, writers, measure),
            What::BehindSync => runtime.block_on(self.behind_sync.measure(writers, measure)),
            What::BehindDrained => runtime.block_on(self.behind_drained.measure(writers, measure)),
            What::BehindUndrained => {
                self.stalled.stall();
                let taken = runtime.block_on(self.behind_undrained.measure(writers, measure));
                self.stalled.release();
                taken
            }
            What::BehindBuffered => runtime.block_on(self.behind_buffered.measure(writers, measure)),
        }?;
        for layer in self.layers() {
            runtime.block_on(layer.bay.flush())?;
        }
        Ok(taken)
    }

    fn close(&self, runtime: &tokio::runtime::Runtime) -> Result<()> {
        for layer in self.layers() {
            let closed = runtime.block_on(layer.bay.close())?;
            ensure!(closed.queued == 0, "{} records are queued after a flush", closed.queued);
        }
        Ok(())
    }
}

impl Subject {
    /// Without a durability: a layer without a journal, whose writes go through.
    fn open(
        runtime: &tokio::runtime::Runtime,
        directory: &Path,
        behind: Option<Durability>,
        builder: Builder,
    ) -> Result<Subject> {
        let (builder, policy) = match behind {
            Some(durability) => {
                (builder.journal(directory.join("journal")).durability(durability), WritePolicy::Behind)
            }
            None => (builder, WritePolicy::Through),
        };
        let bay = runtime.block_on(builder.open())?;
        let cache = bay.cache("bench").capacity(100_000).write_policy(policy).open()?;
        Ok(Subject { bay, cache })
    }

    async fn measure(&self, writers: usize, measure: Duration) -> Result<Taken> {
        let started = Instant::now();
        let mut tasks = Vec::new();
        for writer in 0..writers {
            let cache = self.cache.clone();
            tasks.push(tokio::spawn(async move {
                let first_key = u64::try_from(writer)? * KEYS_PER_WRITER;
                let mut latencies_ns = Vec::new();
                for number in 0_u64.. {
                    if started.elapsed() >= measure {
                        break;
                    }
                    let value = Bytes::from(vec![number.to_le_bytes()[0]; VALUE_BYTES]);
                    let begun = Instant::now();
                    let _receipt = cache.put(&(first_key + number % KEYS_PER_WRITER), value).await?;
                    latencies_ns.push(nanoseconds(begun.elapsed()));
                    // A buffered write never waits, so without this a few writers would keep the rest from
                    // starting.
                    tokio::task::yield_now().await;
                }
                anyhow::Ok(latencies_ns)
            }));
        }
        let mut latencies_ns = Vec::new();
        for task in tasks {
            latencies_ns.extend(task.await??);
        }
        Ok(Taken { latencies_ns, took: started.elapsed() })
    }
}

/// A layer's writers that are threads and block, as those of the bare store.
struct Blocking(BlockingCache<u64, Bytes>);

impl Put for Blocking {
    fn put(&self, writer: usize, number: u64) -> Result<()> {
        let key = writer as u64 * KEYS_PER_WRITER + number % KEYS_PER_WRITER;
        let value = Bytes::from(vec![number.to_le_bytes()[0]; VALUE_BYTES]);
        self.0.put(&key, value)?;
        Ok(())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// One of the things measured with one number of writers, and what came out of each round.
struct Cell {
    what: What,
    writers: usize,
    rounds: Vec<Figures>,
}

/// One line of the table and of the file.
#[derive(Serialize)]
struct Row {
    what: &'static str,
    writers: usize,
    value_bytes: usize,
    #[serde(flatten)]
    figures: Summary,
}

impl Cell {
    fn row(&self) -> Row {
        let figures = Summary::of(&self.rounds);
        Row { what: self.what.name(), writers: self.writers, value_bytes: VALUE_BYTES, figures }
    }
}

fn print_table(rows: &[Row], rounds: u64) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["what", "writers"].into_iter().chain(COLUMNS));
    for row in rows {
        table.add_row([row.what.to_owned(), row.writers.to_string()].into_iter().chain(row.figures.cells()));
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    println!(
        "Values of {VALUE_BYTES} bytes; medians over {rounds} rounds, and the lowest and highest round."
    );
}

fn write_json(target: &Path, rows: &[Row], ratios: &[Ratio]) -> Result<PathBuf> {
    let rounded = |figure: f64| (figure * 100.0).round() / 100.0;
    let ratios: Vec<_> = ratios
        .iter()
        .map(|ratio| {
            json!({
                "ratio": ratio.name,
                "wanted": ratio.wanted.to_string(),
                "met": ratio.is_met(),
                "median": rounded(ratio.spread.median),
                "low": rounded(ratio.spread.low),
                "high": rounded(ratio.spread.high),
            })
        })
        .collect();
    let path = target.join("write_latency.json");
    let text = serde_json::to_string_pretty(&json!({ "rows": rows, "ratios": ratios }))?;
    fs::write(&path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
