//! Replays a block trace through each write policy: reads as `get`, writes as `put` of a value of that size.
//!
//! ```text
//! cargo run --release --example replay_trace -- trace.csv
//! ```
//!
//! One caller replays the trace in its order. Every read is compared with a plain map; at the end the layer
//! is flushed, closed and opened again, and every block of the trace is compared once more, those that were
//! never written included. Exit status: 0 if all was the same, 1 if something differed or failed, 2 if the
//! trace cannot be read.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's result and its errors")]

mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use forebay::{Cache, Durability, Forebay, SledStore, Stats, WritePolicy};
use hdrhistogram::Histogram;

use crate::trace::{Kind, Operation};

/// Blocks compared per call.
const COMPARED_AT_ONCE: usize = 512;
/// Entries that a cache holds in memory: fewer than the trace's blocks, so that reads come from the store
/// too.
const CAPACITY: usize = 10_000;
/// The first bytes of every value: the number of the operation that wrote it.
const STAMP_BYTES: usize = 8;

/// Replays a block trace through each write policy and checks the store against a plain map.
#[derive(Parser, Debug)]
struct Arguments {
    /// The trace: CSV with the header version,time,op,size,lbn.
    file: PathBuf,
    /// Values larger than this are cut to it, in bytes.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(8..=64 << 20))]
    value_bytes_max: u64,
    /// Replay only so many operations.
    #[arg(long)]
    limit: Option<usize>,
    /// The write policy of the replay.
    #[arg(long, value_enum, default_value_t = Choice::All)]
    policy: Choice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    All,
    Through,
    BehindSync,
    BehindBuffered,
}

impl Choice {
    fn runs(self) -> &'static [Choice] {
        match self {
            Choice::All => &[Choice::Through, Choice::BehindSync, Choice::BehindBuffered],
            Choice::Through => &[Choice::Through],
            Choice::BehindSync => &[Choice::BehindSync],
            Choice::BehindBuffered => &[Choice::BehindBuffered],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Choice::All => "all",
            Choice::Through => "through",
            Choice::BehindSync => "behind-sync",
            Choice::BehindBuffered => "behind-buffered",
        }
    }

    async fn open(self, directory: &Path) -> Result<(Forebay, Cache<u64, Vec<u8>>)> {
        let builder = Forebay::builder(SledStore::open(directory.join("store"))?);
        let (builder, policy) = match self {
            Choice::Through => (builder, WritePolicy::Through),
            Choice::BehindBuffered => {
                let durability = Durability::Buffered { sync_interval: Duration::from_millis(100) };
                (builder.journal(directory.join("journal")).durability(durability), WritePolicy::Behind)
            }
            Choice::BehindSync | Choice::All => {
                (builder.journal(directory.join("journal")), WritePolicy::Behind)
            }
        };
        let bay = builder.open().await?;
        let blocks = bay.cache("trace/blocks").capacity(CAPACITY).write_policy(policy).open()?;
        Ok((bay, blocks))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let operations = match trace::read(&arguments.file, arguments.limit.unwrap_or(usize::MAX)) {
        Ok(operations) => operations,
        Err(error) => {
            eprintln!("replay_trace: {error:#}");
            return ExitCode::from(2);
        }
    };
    let writes = operations.iter().filter(|operation| operation.kind == Kind::Write).count();
    println!("{} operations, {writes} of them writes", operations.len());

    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let header =
        "policy|read hits|writes/s|p50 us|p99 us|p99.9 us|records|sent to the store|saved|batches|store";
    table.set_header(header.split('|'));
    for policy in arguments.policy.runs() {
        match replay(*policy, &operations, &arguments).await {
            Ok(run) => {
                table.add_row(run.row(*policy));
            }
            Err(error) => {
                println!("{table}");
                eprintln!("replay_trace: {}: {error:#}", policy.name());
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{table}");
    println!("read hits: reads of a written block that memory or the queue answered.");
    println!(
        "saved: records that coalescing kept from the store, because a newer one of their block came in time."
    );
    ExitCode::SUCCESS
}

struct Run {
    reads: u64,
    latency_ns: Histogram<u64>,
    writing: Duration,
    stats: Stats,
    blocks: usize,
}

impl Run {
    fn row(&self, policy: Choice) -> Vec<String> {
        let micros = |quantile| format!("{:.1}", self.latency_ns.value_at_quantile(quantile) as f64 / 1000.0);
        let Stats { memory_hits, pending_hits, records_committed, ops_applied, batches_applied, .. } =
            self.stats;
        let share = |part: u64, whole: u64| format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64);
        vec![
            policy.name().into(),
            format!("{} of {} reads", memory_hits + pending_hits, self.reads),
            format!("{:.0}", self.latency_ns.len() as f64 / self.writing.as_secs_f64()),
            micros(0.5),
            micros(0.99),
            micros(0.999),
            records_committed.to_string(),
            ops_applied.to_string(),
            share(records_committed.saturating_sub(ops_applied), records_committed),
            batches_applied.to_string(),
            format!("same, {} blocks", self.blocks),
        ]
    }
}

async fn replay(policy: Choice, operations: &[Operation], arguments: &Arguments) -> Result<Run> {
    let directory = tempfile::tempdir().context("making a directory for the layer")?;
    let (bay, blocks) = policy.open(directory.path()).await?;
    let mut expected: BTreeMap<u64, Written> = BTreeMap::new();
    let mut latency_ns = Histogram::new(3)?;
    let mut writing = Duration::ZERO;
    let mut reads = 0;
    for (number, operation) in (0_u64..).zip(operations) {
        match operation.kind {
            Kind::Read => {
                let seen = blocks.get(&operation.block).await?;
                compare(operation.block, seen.as_deref(), expected.get(&operation.block))?;
                reads += 1;
            }
            Kind::Write => {
                let bytes_max = usize::try_from(arguments.value_bytes_max)?;
                let written = Written { number, bytes: operation.bytes.min(bytes_max) };
                let value = written.value();
                let started = Instant::now();
                let _receipt = blocks.put(&operation.block, value).await?;
                let took = started.elapsed();
                writing += took;
                latency_ns.record(u64::try_from(took.as_nanos())?.max(1))?;
                expected.insert(operation.block, written);
            }
        }
    }
    bay.flush().await?;
    let stats = bay.stats();
    let closed = bay.close().await?;
    ensure!(closed.queued == 0, "{} records are queued after a flush: {:?}", closed.queued, closed.reason);
    drop((bay, blocks));

    let (bay, blocks) = policy.open(directory.path()).await?;
    let touched: BTreeSet<u64> = operations.iter().map(|operation| operation.block).collect();
    let touched: Vec<u64> = touched.into_iter().collect();
    for some in touched.chunks(COMPARED_AT_ONCE) {
        let values = blocks.get_many(some).await?;
        ensure!(values.len() == some.len(), "{} values for {} blocks", values.len(), some.len());
        for (block, value) in some.iter().zip(values) {
            compare(*block, value.as_deref(), expected.get(block)).context("after the reopening")?;
        }
    }
    bay.close().await?;
    Ok(Run { reads, latency_ns, writing, stats, blocks: touched.len() })
}

/// The write that a block was last written by.
#[derive(Clone, Copy, Debug)]
struct Written {
    number: u64,
    bytes: usize,
}

impl Written {
    /// A value that follows from the write and is like no other: its number over and over, cut to size.
    fn value(self) -> Vec<u8> {
        // A multiplier that is odd keeps numbers apart and spreads them over all eight bytes.
        let stamp = self.number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        stamp.into_iter().cycle().take(self.bytes.max(STAMP_BYTES)).collect()
    }
}

fn compare(block: u64, seen: Option<&[u8]>, expected: Option<&Written>) -> Result<()> {
    let wanted = expected.map(|written| written.value());
    ensure!(
        seen == wanted.as_deref(),
        "block {block} has {:?} bytes that do not match the map, which expects {expected:?}",
        seen.map(<[u8]>::len)
    );
    Ok(())
}
