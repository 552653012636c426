//! The rate at which each embedded store takes batches, beside the bare database's own durable transaction of the same
//! batch.
//!
//! `cargo bench -p forebay-benches --bench store_drain`, with `-- --smoke` to see only that it runs.
//!
//! The stores take turns, ours and bare, in every round, each round in another order and each on a file system that was
//! synced before. Keys are random, so each batch touches pages all over the database. Medians over rounds, with the
//! lowest and the highest; the same figures go to `target/forebay/store_drain.json`. Afterwards: how long the opening
//! takes after a close and after a `kill -9`, and how much of the disk a byte takes.
//!
//! With `-- --trace <file>` (CSV with the header version,time,op,size,lbn) what coalescing is worth on the trace's
//! writes: see `store_drain/traced.rs`.

#![allow(clippy::print_stdout, reason = "a benchmark's result")]

mod bare;
#[path = "../support/bare_sled.rs"]
mod bare_sled;
#[path = "../support/fair.rs"]
mod fair;
#[path = "../support/results.rs"]
mod results;
#[path = "../../examples/replay_trace/trace.rs"]
#[allow(dead_code, reason = "what its tests use")]
mod trace;
mod traced;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use forebay::store::{Claim, FjallStore, Op, RedbOptions, Standing, Store, StoreError};
use forebay::{Key, NamespaceName, Seq, SledStore};
use serde_json::json;

use crate::bare::Bare;
use crate::fair::{sync_file_system, turns};

const KEY_BYTES: usize = 16;
const VALUE_BYTES: usize = 100;
const BATCHES: [usize; 3] = [100, 1_000, 4_096];

/// Rows per second into each embedded store, and into the database below it.
#[derive(Parser, Debug)]
struct Arguments {
    /// Only see that it runs: one short round.
    #[arg(long)]
    smoke: bool,
    /// The number of rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Rows that each measurement of a round writes, rounded up to whole batches.
    #[arg(long, default_value_t = 12_000, value_parser = clap::value_parser!(u64).range(1..))]
    rows: u64,
    /// Rows in each store beforehand.
    #[arg(long, default_value_t = 0)]
    preload: u64,
    /// Measure only these (comma-separated).
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = What::ALL)]
    what: Vec<What>,
    /// Also drain the writes of this block trace, with coalescing and without.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Passed by the benchmark to itself: opens this store, applies one batch and waits to be killed.
    #[arg(long, hide = true, requires = "path")]
    hold: Option<What>,
    #[arg(long, hide = true)]
    path: Option<PathBuf>,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Sled,
    Redb,
    /// redb with quick repair.
    RedbQuick,
    Fjall,
}

impl What {
    const ALL: [What; 4] = [What::Sled, What::Redb, What::RedbQuick, What::Fjall];

    fn name(self) -> &'static str {
        match self {
            What::Sled => "sled",
            What::Redb => "redb",
            What::RedbQuick => "redb-quick",
            What::Fjall => "fjall",
        }
    }

    fn open(self, path: &Path) -> Result<Box<dyn Store>> {
        Ok(match self {
            What::Sled => Box::new(SledStore::open(path)?),
            What::Redb => Box::new(RedbOptions::new().open(path)?),
            What::RedbQuick => Box::new(RedbOptions::new().quick_repair(true).open(path)?),
            What::Fjall => Box::new(FjallStore::open(path)?),
        })
    }
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let (Some(what), Some(path)) = (arguments.hold, &arguments.path) {
        return hold(what, path);
    }
    let (rounds, rows) = if arguments.smoke { (1, 2_000) } else { (arguments.rounds, arguments.rows) };
    let target = results::directory()?;
    let directory = tempfile::tempdir_in(&target).context("making a directory for the data")?;

    let mut random = Random(7);
    let mut pairs = Vec::new();
    for &what in &arguments.what {
        let path = directory.path().join(what.name());
        let bare = Bare::open(what, &directory.path().join(format!("bare-{what}")))?;
        pairs.push((Ours::open(what, &path)?, bare));
    }
    let mut preloaded = 0;
    while preloaded < arguments.preload {
        let rows = random.rows(4_096);
        preloaded += rows.len() as u64;
        for (ours, bare) in &mut pairs {
            ours.apply(&rows)?;
            bare.apply(&rows)?;
        }
    }
    let mut cells: Vec<Cell> = Vec::new();
    for size in BATCHES {
        for (ours, _) in &pairs {
            cells.push(Cell { what: ours.what, size, ours: Vec::new(), bare: Vec::new() });
        }
    }
    for round in 0..rounds {
        for turn in turns(cells.len(), round) {
            let cell = cells.get_mut(turn).context("there are as many turns as cells")?;
            let pair = pairs
                .iter_mut()
                .find(|(ours, _)| ours.what == cell.what)
                .context("every cell has a store")?;
            let count = usize::try_from(rows)?.div_ceil(cell.size);
            let batches: Vec<Vec<Row>> = (0..count).map(|_| random.rows(cell.size)).collect();
            // Whoever comes second has the disk as the first one left it.
            for is_ours in [round % 2 == 0, round % 2 == 1] {
                sync_file_system(directory.path())?;
                match is_ours {
                    true => cell.ours.push(measured(&batches, |rows| pair.0.apply(rows))?),
                    false => cell.bare.push(measured(&batches, |rows| pair.1.apply(rows))?),
                }
            }
        }
    }
    let mut keeps = Vec::new();
    for (ours, bare) in pairs {
        drop(bare);
        keeps.push(ours.keep(rounds)?);
    }

    let traced = match &arguments.trace {
        Some(file) => traced::measure(file, directory.path(), rounds, arguments.smoke)?,
        None => Vec::new(),
    };

    print_tables(&cells, &keeps, rounds);
    if !traced.is_empty() {
        traced::print(&traced, rounds);
    }
    let path = write_json(&target, &cells, &keeps, &traced, rounds)?;
    println!("The same figures: {}", path.display());
    Ok(())
}

type Row = ([u8; KEY_BYTES], Bytes);

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn rows(&mut self, count: usize) -> Vec<Row> {
        let mut row = || {
            let key = (u128::from(self.next()) << 64) | u128::from(self.next());
            let value: Vec<u8> =
                (0..VALUE_BYTES.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
            (key.to_le_bytes(), Bytes::from(value).slice(..VALUE_BYTES))
        };
        (0..count).map(|_| row()).collect()
    }
}

/// One measurement: how many rows a second, and the median of its batches.
#[derive(Clone, Copy)]
struct Figures {
    rows_per_s: f64,
    p50_us: f64,
}

fn measured(batches: &[Vec<Row>], mut apply: impl FnMut(&[Row]) -> Result<Duration>) -> Result<Figures> {
    let mut each = Vec::with_capacity(batches.len());
    for rows in batches {
        each.push(apply(rows)?);
    }
    let all: Duration = each.iter().sum();
    let rows: usize = batches.iter().map(Vec::len).sum();
    each.sort_unstable();
    let p50 = each.get(each.len() / 2).context("at least one batch")?;
    Ok(Figures { rows_per_s: rows as f64 / all.as_secs_f64(), p50_us: p50.as_secs_f64() * 1e6 })
}

/// A store of this crate.
struct Ours {
    what: What,
    path: PathBuf,
    store: Box<dyn Store>,
    runtime: tokio::runtime::Runtime,
    namespace: NamespaceName,
    standing: Standing,
    last: Seq,
}

impl Ours {
    fn open(what: What, path: &Path) -> Result<Ours> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let store = what.open(path)?;
        let claim = Claim::new(None)?;
        let standing = runtime.block_on(claim.of(&*store)).map_err(StoreError::into_error)?;
        let last = standing.progress.applied;
        let namespace = NamespaceName::parse("b")?;
        Ok(Ours { what, path: path.to_owned(), store, runtime, namespace, standing, last })
    }

    fn apply(&mut self, rows: &[Row]) -> Result<Duration> {
        let mut ops = Vec::with_capacity(rows.len());
        for (key, value) in rows {
            self.last = self.last.next();
            ops.push(Op { seq: self.last, key: Key::new(&self.namespace, key)?, value: Some(value.clone()) });
        }
        let batch = self.standing.next_batch(self.last, ops);
        let begun = Instant::now();
        self.runtime.block_on(self.store.apply(&batch)).map_err(StoreError::into_error)?;
        let took = begun.elapsed();
        self.standing = self.standing.after(&batch);
        Ok(took)
    }

    /// Closes the store, and looks at what is left.
    fn keep(self, rounds: u64) -> Result<Keep> {
        let Ours { what, path, store, last, .. } = self;
        drop(store);
        let stored = last.get() * (KEY_BYTES + VALUE_BYTES) as u64;
        let bytes_per_byte = allocated_bytes(&path)? as f64 / stored as f64;
        let (mut closed, mut killed) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            closed.push(opening_ms(what, &path)?);
            kill(what, &path)?;
            killed.push(opening_ms(what, &path)?);
        }
        Ok(Keep { what, rows: last.get(), bytes_per_byte, closed, killed })
    }
}

fn opening_ms(what: What, path: &Path) -> Result<f64> {
    let begun = Instant::now();
    let store = what.open(path)?;
    let took = begun.elapsed();
    drop(store);
    Ok(took.as_secs_f64() * 1e3)
}

/// Lets a process open the store and apply a batch, and kills it.
fn kill(what: What, path: &Path) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--hold", what.name(), "--path"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("its output is a pipe")?).read_line(&mut line)?;
    child.kill()?;
    child.wait()?;
    ensure!(line.trim() == "applied", "the child did not apply its batch");
    Ok(())
}

fn hold(what: What, path: &Path) -> Result<()> {
    let mut ours = Ours::open(what, path)?;
    let rows = Random(u64::from(std::process::id())).rows(1_000);
    ours.apply(&rows)?;
    println!("applied");
    std::io::stdout().flush()?;
    // Until it is killed; the end of the input would be the end of who should have done that.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    bail!("nobody killed this process")
}

/// The disk space of the files.
fn allocated_bytes(path: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            allocated_bytes(&entry.path())?
        } else {
            std::os::unix::fs::MetadataExt::blocks(&metadata) * 512
        };
    }
    Ok(bytes)
}

/// One line of the first table, with a measurement per round.
struct Cell {
    what: What,
    size: usize,
    ours: Vec<Figures>,
    bare: Vec<Figures>,
}

/// One line of the second.
struct Keep {
    what: What,
    rows: u64,
    bytes_per_byte: f64,
    closed: Vec<f64>,
    killed: Vec<f64>,
}

/// Lowest, median and highest.
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

fn spread(figures: impl Iterator<Item = f64>) -> Spread {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
    Spread { low: at(0), median: at(sorted.len() / 2), high: at(sorted.len().saturating_sub(1)) }
}

impl Cell {
    fn ratio(&self) -> Spread {
        spread(self.ours.iter().zip(&self.bare).map(|(ours, bare)| ours.rows_per_s / bare.rows_per_s))
    }

    fn rows_per_s(figures: &[Figures]) -> Spread {
        spread(figures.iter().map(|figures| figures.rows_per_s))
    }

    fn p50_us(figures: &[Figures]) -> Spread {
        spread(figures.iter().map(|figures| figures.p50_us))
    }
}

fn header(columns: &str) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(columns.split(", "));
    table
}

fn show(mut table: Table) {
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
}

fn print_tables(cells: &[Cell], keeps: &[Keep], rounds: u64) {
    let mut table =
        header("store, batch, rows/s, (spread), p50 us, bare rows/s, bare p50 us, ours/bare, (spread)");
    for cell in cells {
        let (ours, bare, ratio) = (Cell::rows_per_s(&cell.ours), Cell::rows_per_s(&cell.bare), cell.ratio());
        table.add_row([
            cell.what.name().to_owned(),
            cell.size.to_string(),
            format!("{:.0}", ours.median),
            format!("{:.0} to {:.0}", ours.low, ours.high),
            format!("{:.0}", Cell::p50_us(&cell.ours).median),
            format!("{:.0}", bare.median),
            format!("{:.0}", Cell::p50_us(&cell.bare).median),
            format!("{:.2}", ratio.median),
            format!("{:.2} to {:.2}", ratio.low, ratio.high),
        ]);
    }
    show(table);
    let mut table =
        header("store, rows, disk bytes per byte, opens in ms, (spread), after kill -9, (spread)");
    for keep in keeps {
        let (closed, killed) = (spread(keep.closed.iter().copied()), spread(keep.killed.iter().copied()));
        table.add_row([
            keep.what.name().to_owned(),
            keep.rows.to_string(),
            format!("{:.2}", keep.bytes_per_byte),
            format!("{:.1}", closed.median),
            format!("{:.1} to {:.1}", closed.low, closed.high),
            format!("{:.1}", killed.median),
            format!("{:.1} to {:.1}", killed.low, killed.high),
        ]);
    }
    show(table);
    println!(
        "Keys of {KEY_BYTES} random bytes, values of {VALUE_BYTES}; medians over {rounds} rounds, and the lowest and \
         highest round."
    );
}

fn figure(spread: &Spread) -> serde_json::Value {
    let rounded = |figure: f64| (figure * 100.0).round() / 100.0;
    json!({ "median": rounded(spread.median), "low": rounded(spread.low), "high": rounded(spread.high) })
}

fn write_json(
    target: &Path,
    cells: &[Cell],
    keeps: &[Keep],
    traced: &[traced::Cell],
    rounds: u64,
) -> Result<PathBuf> {
    let drain: Vec<_> = cells
        .iter()
        .map(|cell| {
            json!({
                "store": cell.what.name(),
                "batch": cell.size,
                "rows_per_s": figure(&Cell::rows_per_s(&cell.ours)),
                "p50_us": figure(&Cell::p50_us(&cell.ours)),
                "bare_rows_per_s": figure(&Cell::rows_per_s(&cell.bare)),
                "bare_p50_us": figure(&Cell::p50_us(&cell.bare)),
                "ours_per_bare": figure(&cell.ratio()),
            })
        })
        .collect();
    let kept: Vec<_> = keeps
        .iter()
        .map(|keep| {
            json!({
                "store": keep.what.name(),
                "rows": keep.rows,
                "disk_bytes_per_byte": (keep.bytes_per_byte * 100.0).round() / 100.0,
                "open_ms": figure(&spread(keep.closed.iter().copied())),
                "open_after_kill_ms": figure(&spread(keep.killed.iter().copied())),
            })
        })
        .collect();
    let path = target.join("store_drain.json");
    let traced = traced::to_json(traced);
    let all = json!({
        "rounds": rounds, "value_bytes": VALUE_BYTES, "drain": drain, "kept": kept, "traced": traced,
    });
    fs::write(&path, serde_json::to_string_pretty(&all)? + "\n")
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
