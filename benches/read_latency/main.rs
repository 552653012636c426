//! The latency of reads: hits, misses, many keys at once, a herd that loads one key, invalidations, and the bump of a
//! namespace, of a layer's cache and of the in-memory caches that people use.
//!
//! ```text
//! cargo bench -p forebay-benches --bench read_latency
//! cargo bench -p forebay-benches --bench read_latency -- --smoke
//! cargo bench -p forebay-benches --bench read_latency -- --trace ../shared/traces/cloudphysics_io.csv
//! ```
//!
//! All subjects hold the same keys and values and are asked in the same order of keys, by 1 and by 4 threads, in turn
//! within each round; the order of the subjects turns by one from round to round. A figure is the median over the
//! rounds with the lowest and the highest; a ratio pairs the figures of each round. What cannot be compared: a miss
//! of the layer asks its store, which lies in memory here, and a miss of the others asks nobody.
//!
//! The table goes to the terminal, and the same figures to `target/forebay/read_latency.json`. The crate is built
//! with its tests' features, of which a hit notices nothing: whether a safeguard is switched off is looked at only
//! where debug assertions are checked.

#![allow(clippy::print_stdout, reason = "a benchmark's result")]

mod measure;
mod orders;
#[path = "../support/results.rs"]
mod results;
mod subjects;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use measure::{HERD, Held, Measured, What, bump};
use orders::Order;
use serde_json::{Value as Json, json};
use subjects::{Foyer, MokaFuture, MokaSync, Ours, Quick, Subject, Value};

const THREADS: [usize; 2] = [1, 4];
const ALL: [What; 7] =
    [What::Hit, What::HitSmall, What::Miss, What::GetMany, What::Herd, What::Invalidate, What::Bump];

/// Read latency of a layer's cache beside other in-memory caches.
#[derive(Parser, Debug)]
struct Arguments {
    /// Only see that it runs: one short round with few keys.
    #[arg(long)]
    smoke: bool,
    /// The number of rounds.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// The duration of each measurement of a round, in milliseconds.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    measure_ms: u64,
    /// Measure only these numbers of threads (comma-separated).
    #[arg(long, value_delimiter = ',', default_values_t = THREADS)]
    threads: Vec<usize>,
    /// Measure only these (comma-separated).
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = ALL)]
    what: Vec<What>,
    /// The number of keys of the drawn order.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    keys: u64,
    /// The number of entries that a bump makes unservable.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    bump_entries: u64,
    /// A block trace (`version,time,op,size,lbn`) whose reads are a second order of keys.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One line of the table, with a figure for each round.
struct Line {
    what: What,
    order: &'static str,
    subject: &'static str,
    threads: usize,
    value_bytes: usize,
    call_ns: Vec<f64>,
    p99_ns: Vec<f64>,
    calls_per_s: Vec<f64>,
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.smoke {
        (arguments.rounds, arguments.measure_ms) = (1, 5);
        (arguments.keys, arguments.bump_entries) = (2_000, 20_000);
    }
    let mut orders = vec![orders::zipf(arguments.keys, if arguments.smoke { 20_000 } else { 1 << 20 })];
    match &arguments.trace {
        Some(path) if path.exists() => orders.push(orders::trace(path)?),
        Some(path) => println!("{} is not there: only the drawn order is measured.", path.display()),
        None => {}
    }
    let mut lines = Vec::new();
    for order in &orders {
        println!("{}: {} keys, {} reads", order.name, order.distinct, order.keys.len());
        measure_order::<Vec<u8>>(&arguments, order, |what| what != What::HitSmall, &mut lines)?;
        measure_order::<u64>(&arguments, order, |what| what == What::HitSmall, &mut lines)?;
    }
    if arguments.what.contains(&What::Bump) {
        measure_bumps(&arguments, &mut lines)?;
    }
    print_table(&lines, arguments.rounds);
    let ratios = ratios(&lines);
    ratios.iter().for_each(print_ratio);
    let path = write_json(&lines, &ratios)?;
    println!("The same figures: {}", path.display());
    Ok(())
}

/// All that is measured of values of one type, with the subjects in turn.
fn measure_order<V: Value>(
    arguments: &Arguments,
    order: &Order,
    concerns: impl Fn(What) -> bool,
    lines: &mut Vec<Line>,
) -> Result<()> {
    let subjects: Vec<Box<dyn Measured>> = vec![
        Held::<Ours<V>, V>::boxed(order.distinct)?,
        Held::<Quick<V>, V>::boxed(order.distinct)?,
        Held::<MokaSync<V>, V>::boxed(order.distinct)?,
        Held::<MokaFuture<V>, V>::boxed(order.distinct)?,
        Held::<Foyer<V>, V>::boxed(order.distinct)?,
    ];
    let first = lines.len();
    for round in 0..arguments.rounds {
        for &what in arguments.what.iter().filter(|what| concerns(**what)) {
            for &threads in &arguments.threads {
                for turn in 0..subjects.len() {
                    let at = (turn + usize::try_from(round)?) % subjects.len();
                    let Some(subject) = subjects.get(at) else { continue };
                    let time = Duration::from_millis(arguments.measure_ms);
                    let Some(mut taken) = subject.measure(what, order, threads, time)? else { continue };
                    let name = subject.name();
                    let line = line_of(lines, first, what, order.name, name, threads, V::BYTES);
                    taken.call_ns.sort_by(f64::total_cmp);
                    line.call_ns.push(rank(&taken.call_ns, 50));
                    line.p99_ns.push(rank(&taken.call_ns, 99));
                    line.calls_per_s.push(taken.calls_per_s);
                }
            }
        }
    }
    Ok(())
}

fn measure_bumps(arguments: &Arguments, lines: &mut Vec<Line>) -> Result<()> {
    type Bump = fn(u64) -> Result<f64>;
    let subjects: [(&'static str, Bump); 5] = [
        (<Ours<u64> as Subject<u64>>::NAME, bump::<Ours<u64>>),
        (<Quick<u64> as Subject<u64>>::NAME, bump::<Quick<u64>>),
        (<MokaSync<u64> as Subject<u64>>::NAME, bump::<MokaSync<u64>>),
        (<MokaFuture<u64> as Subject<u64>>::NAME, bump::<MokaFuture<u64>>),
        (<Foyer<u64> as Subject<u64>>::NAME, bump::<Foyer<u64>>),
    ];
    let first = lines.len();
    for _ in 0..arguments.rounds {
        for (subject, bump) in subjects {
            let took_ns = bump(arguments.bump_entries)?;
            let line = line_of(lines, first, What::Bump, "all", subject, 1, u64::BYTES);
            line.call_ns.push(took_ns);
            line.p99_ns.push(took_ns);
            line.calls_per_s.push(1e9 / took_ns);
        }
    }
    Ok(())
}

/// The line of this cell, begun if there is none yet.
fn line_of<'a>(
    lines: &'a mut Vec<Line>,
    first: usize,
    what: What,
    order: &'static str,
    subject: &'static str,
    threads: usize,
    value_bytes: usize,
) -> &'a mut Line {
    let is_it = |line: &Line| (line.what, line.subject, line.threads) == (what, subject, threads);
    let at = lines.iter().skip(first).position(is_it).map_or(lines.len(), |at| first + at);
    if at == lines.len() {
        let (call_ns, p99_ns, calls_per_s) = (Vec::new(), Vec::new(), Vec::new());
        lines.push(Line { what, order, subject, threads, value_bytes, call_ns, p99_ns, calls_per_s });
    }
    lines.get_mut(at).expect("it was there or has just been added")
}

/// The smallest that so many in a hundred do not exceed.
fn rank(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// Median, lowest and highest.
fn spread(figures: &[f64]) -> [f64; 3] {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    [rank(&sorted, 50), rank(&sorted, 0), rank(&sorted, 100)]
}

/// The ratios of the layer's figures to each other subject's, paired by round.
struct Ratio {
    what: What,
    order: &'static str,
    of: &'static str,
    threads: usize,
    each: Vec<f64>,
}

fn ratios(lines: &[Line]) -> Vec<Ratio> {
    let ours = <Ours<u64> as Subject<u64>>::NAME;
    let mut ratios = Vec::new();
    for line in lines.iter().filter(|line| line.subject == ours) {
        let cell = |other: &&Line| {
            (other.what, other.order, other.threads) == (line.what, line.order, line.threads)
                && other.subject != ours
        };
        for other in lines.iter().filter(cell) {
            let each = line.call_ns.iter().zip(&other.call_ns).map(|(ours, theirs)| ours / theirs).collect();
            let Line { what, order, threads, .. } = *line;
            ratios.push(Ratio { what, order, of: other.subject, threads, each });
        }
    }
    ratios
}

fn print_table(lines: &[Line], rounds: u64) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "what", "order", "subject", "threads", "bytes", "ns/call", "(spread)", "p99 ns", "calls/s",
    ]);
    for line in lines {
        let [median, low, high] = spread(&line.call_ns);
        table.add_row([
            line.what.name(),
            line.order.to_string(),
            line.subject.to_string(),
            line.threads.to_string(),
            line.value_bytes.to_string(),
            format!("{median:.1}"),
            format!("{low:.1} to {high:.1}"),
            format!("{:.1}", spread(&line.p99_ns)[0]),
            format!("{:.0}", spread(&line.calls_per_s)[0]),
        ]);
    }
    table.column_iter_mut().skip(3).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    println!(
        "Medians over {rounds} rounds, and the lowest and highest. A call of get-many is one key of 100; of a herd, \
         one of its {HERD} readers."
    );
}

fn print_ratio(ratio: &Ratio) {
    let [median, low, high] = spread(&ratio.each);
    let Ratio { what, order, of, threads, .. } = ratio;
    println!(
        "{} ({order}), {threads} threads: forebay takes {median:.2} of {of} ({low:.2} to {high:.2})",
        what.name()
    );
}

fn write_json(lines: &[Line], ratios: &[Ratio]) -> Result<PathBuf> {
    let rounded = |figure: f64| (figure * 100.0).round() / 100.0;
    let three = |figures: &[f64]| spread(figures).map(rounded);
    let rows: Vec<Json> = lines
        .iter()
        .map(|line| {
            let [call_ns, call_ns_low, call_ns_high] = three(&line.call_ns);
            let [calls_per_s, calls_per_s_low, calls_per_s_high] = three(&line.calls_per_s);
            json!({
                "what": line.what.name(),
                "order": line.order,
                "subject": line.subject,
                "threads": line.threads,
                "value_bytes": line.value_bytes,
                "call_ns": call_ns,
                "call_ns_low": call_ns_low,
                "call_ns_high": call_ns_high,
                "p99_ns": three(&line.p99_ns)[0],
                "calls_per_s": calls_per_s,
                "calls_per_s_low": calls_per_s_low,
                "calls_per_s_high": calls_per_s_high,
                "rounds": line.call_ns.len(),
            })
        })
        .collect();
    let ratios: Vec<Json> = ratios
        .iter()
        .map(|ratio| {
            let [median, low, high] = three(&ratio.each);
            json!({
                "what": ratio.what.name(),
                "order": ratio.order,
                "of": ratio.of,
                "threads": ratio.threads,
                "ratio": median,
                "ratio_low": low,
                "ratio_high": high,
            })
        })
        .collect();
    let target = results::directory()?;
    let path = target.join("read_latency.json");
    let text = serde_json::to_string_pretty(&json!({ "rows": rows, "ratios": ratios }))?;
    fs::write(&path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
