//! The lag of a follower behind the owner's commits over each bus, what a publisher adds to a write, and what a
//! directive costs a follower.
//!
//! ```text
//! cargo bench -p forebay-benches --bench event_lag
//! cargo bench -p forebay-benches --bench event_lag -- --bus redis,nats --seconds 20
//! cargo bench -p forebay-benches --bench event_lag -- --smoke
//! cargo bench -p forebay-benches --bench event_lag -- --count
//! ```
//!
//! *Lag*: one owner, whose journal is on the disk of the repository and synced for each acknowledgement, is written
//! to at an even rate by a clock, though writes take longer than they should. A write's commit is when its put
//! returned. Its store lies in memory, so that the bus and not a database is measured (`postgres-outbox` apart,
//! whose store is the database that tells). A follower with a client of its own waits for each step in which it has
//! heard everything up to some number; all writes up to there are heard at that moment. Events are published behind
//! the store, so the way to the store and on from there are told apart. Servers are started on loopback, one for
//! each bus, with their data in a temporary directory; Redis syncs each write. Owner, follower, writers and server
//! share the machine.
//!
//! *Cost of publishing*: the same writers, on a layer without a publisher, on another one without, which shows what
//! chance does, and on layers with one, in turn within each round. Ratios pair the figures of a round.
//!
//! *Cost of hearing*: from the moment when events of 1,024 directives are handed to a bus within the process until the
//! follower has carried out the last of them. Decoding alone is measured beside it.
//!
//! *Instructions of hearing* (`--count`, and then nothing else): how many a directive takes, counted under callgrind.
//!
//! Tables go to the terminal, and the same figures to `target/forebay/event_lag.json`.

#![allow(clippy::print_stdout, reason = "a benchmark's result")]

mod buses;
mod counting;
mod hearing;
mod lag;
mod load;
mod publishing;
mod report;
#[path = "../support/results.rs"]
mod results;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use buses::Over;
use load::Paced;
use report::Report;

/// Lag of events, and what they cost.
#[derive(Parser, Debug)]
struct Arguments {
    /// Only see that it runs: a second for each bus, and one short round of the rest.
    #[arg(long)]
    smoke: bool,
    /// Measure only these buses (comma-separated).
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Over::ALL)]
    bus: Vec<Over>,
    /// For how many seconds each bus is measured. What is written in a tenth of it beforehand does not count.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Writes per second.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// The number of async writers.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    writers: u64,
    /// For how long at the most the owner's flusher waits for a batch to fill, in milliseconds.
    #[arg(long, default_value_t = 10)]
    linger_ms: u64,
    /// Rounds in which the costs are measured; 0 leaves them out. Many short ones, because a disk's mood changes.
    #[arg(long, default_value_t = 21)]
    rounds: u64,
    /// The duration of each measurement of a publisher's cost, in milliseconds.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..))]
    measure_ms: u64,
    /// Entries in the memory of the last part's follower.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    entries: u64,
    /// Count the instructions of a directive under callgrind, which valgrind brings, and measure nothing.
    #[arg(long)]
    count: bool,
    /// Does a task, to be counted.
    #[arg(long, hide = true)]
    task: Option<counting::Task>,
    /// With so many events.
    #[arg(long, hide = true, default_value_t = 1)]
    events: u64,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.count {
        for (task, instructions) in counting::count()? {
            println!("{task}: {instructions} instructions for a directive");
        }
        return Ok(());
    }
    if arguments.smoke {
        (arguments.seconds, arguments.rounds, arguments.measure_ms) = (1, 1, 100);
        arguments.entries = arguments.entries.min(10_000);
    }
    if let Some(task) = arguments.task {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(counting::run(task, arguments.events));
    }
    let Arguments { rate, writers, seconds, linger_ms, rounds, entries, .. } = arguments;
    arguments.bus.iter().try_for_each(|over| over.check())?;
    let target = results::directory()?;
    let directory = tempfile::tempdir_in(&target).context("making a directory for the journals")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;

    let warm_up = (rate * seconds).div_ceil(10);
    let load = Paced { rate, writers, writes: warm_up + rate * seconds };
    let linger = Duration::from_millis(linger_ms);
    let mut report = Report { rate, writers, seconds, linger_ms, rounds, entries, ..Report::default() };
    for &over in &arguments.bus {
        let measured = runtime.block_on(lag::measure(over, load, warm_up, linger, directory.path()));
        report.lags.push(measured.with_context(|| format!("measuring the lag over {over}"))?);
    }
    if rounds > 0 {
        let time = Duration::from_millis(arguments.measure_ms);
        let load = Paced { rate, writers, writes: (rate * arguments.measure_ms).div_ceil(1_000) };
        let measured = publishing::measure(&arguments.bus, rounds, load, time, directory.path());
        report.publishing = runtime.block_on(measured).context("measuring what a publisher adds")?;
        report.hearing = runtime
            .block_on(hearing::measure(rounds, entries))
            .context("measuring what a directive costs")?;
        ensure!(!report.hearing.is_empty(), "nothing was measured");
    }
    report.print();
    let path = report.write_json(&target)?;
    println!("The same figures: {}", path.display());
    Ok(())
}
