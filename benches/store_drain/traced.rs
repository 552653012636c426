//! The gain of coalescing on the writes of a block trace: updates per second into sled with the last update of each
//! key alone, beside all of them.
//!
//! Three take turns in every round, each with the whole trace, batch after batch, durable after each: `SledStore`,
//! which is given all updates and writes the last of each key; bare sled with the last of each key; and bare sled with
//! every update. The bare ones insert in the order of keys, as the store does, and differ in nothing else, so their
//! ratio is coalescing's own; which of them comes first changes from round to round. What it may come to is the number
//! of updates by that of keys, counted inside the batches.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::bare_sled::open_sled;
use crate::trace::{self, Kind};
use crate::{BATCHES, KEY_BYTES, Ours, Row, Spread, VALUE_BYTES, What, figure, header, show, spread};

/// One line of the table, with a measurement per round: updates per second.
pub(crate) struct Cell {
    size: usize,
    /// Updates by keys.
    allowed: f64,
    store: Vec<f64>,
    last: Vec<f64>,
    every: Vec<f64>,
}

/// Drains the trace's writes in `rounds` rounds, each with every size of batch; of a smoke test only the first of them.
pub(crate) fn measure(file: &Path, directory: &Path, rounds: u64, smoke: bool) -> Result<Vec<Cell>> {
    let limit = if smoke { 2_000 } else { usize::MAX };
    let blocks: Vec<u64> = trace::read(file, limit)?
        .iter()
        .filter(|operation| operation.kind == Kind::Write)
        .map(|operation| operation.block)
        .collect();
    ensure!(!blocks.is_empty(), "{}: holds no write", file.display());
    let mut store = Ours::open(What::Sled, &directory.join("traced"))?;
    let last = open_sled(&directory.join("traced-last"))?;
    let every = open_sled(&directory.join("traced-every"))?;
    let cell = |size| Cell {
        size,
        allowed: allowed(&blocks, size),
        store: Vec::new(),
        last: Vec::new(),
        every: Vec::new(),
    };
    let mut cells: Vec<Cell> = BATCHES.map(cell).into();
    let mut number = 0;
    for round in 0..rounds {
        for cell in &mut cells {
            let mut rows = || -> Vec<Row> { blocks.iter().map(|&block| row(block, &mut number)).collect() };
            cell.store.push(rate(&rows(), cell.size, |batch| store.apply(batch))?);
            // Whoever comes second has the work behind it that sled does later.
            for is_last in [round % 2 == 0, round % 2 == 1] {
                if is_last {
                    cell.last.push(rate(&rows(), cell.size, |batch| {
                        timed(|| insert(&last, &in_order_of_keys(last_of_each_key(batch))))
                    })?);
                } else {
                    cell.every.push(rate(&rows(), cell.size, |batch| {
                        timed(|| insert(&every, &in_order_of_keys(batch.iter().collect())))
                    })?);
                }
            }
        }
    }
    Ok(cells)
}

fn insert((db, file): &(sled::Db, File), rows: &[&Row]) -> Result<()> {
    for (key, value) in rows {
        db.insert(key, &value[..])?;
    }
    db.flush()?;
    Ok(file.sync_data()?)
}

/// An update like no other: sled writes nothing where a key has the value already.
fn row(block: u64, number: &mut u64) -> Row {
    *number += 1;
    let mut key = [0; KEY_BYTES];
    key[KEY_BYTES - 8..].copy_from_slice(&block.to_be_bytes());
    let mut value = number.to_le_bytes().to_vec();
    value.resize(VALUE_BYTES, 7);
    (key, Bytes::from(value))
}

fn last_of_each_key(batch: &[Row]) -> Vec<&Row> {
    let last: HashMap<&[u8; KEY_BYTES], &Row> = batch.iter().map(|row| (&row.0, row)).collect();
    last.into_values().collect()
}

/// The updates of a key stay in their own order.
fn in_order_of_keys(mut rows: Vec<&Row>) -> Vec<&Row> {
    rows.sort_by_key(|row| row.0);
    rows
}

fn allowed(blocks: &[u64], size: usize) -> f64 {
    let keys = |batch: &[u64]| batch.iter().collect::<HashSet<_>>().len();
    blocks.len() as f64 / blocks.chunks(size).map(keys).sum::<usize>() as f64
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

/// Updates per second.
fn rate(rows: &[Row], size: usize, mut apply: impl FnMut(&[Row]) -> Result<Duration>) -> Result<f64> {
    let took: Duration = rows.chunks(size).map(&mut apply).sum::<Result<Duration>>().context("draining")?;
    Ok(rows.len() as f64 / took.as_secs_f64())
}

impl Cell {
    /// By how much the last of each key is faster than every update: of the bare ones, and of the store.
    fn gains(&self) -> [Spread; 2] {
        [&self.last, &self.store]
            .map(|with| spread(with.iter().zip(&self.every).map(|(with, every)| with / every)))
    }
}

pub(crate) fn print(cells: &[Cell], rounds: u64) {
    let mut table = header(
        "trace, allowed, updates/s of every one, of the last, last/every, (spread), of SledStore, SledStore/every, \
         (spread)",
    );
    for cell in cells {
        let median = |figures: &[f64]| format!("{:.0}", spread(figures.iter().copied()).median);
        let [last, store] = cell.gains();
        table.add_row([
            format!("batches of {}", cell.size),
            format!("{:.2}", cell.allowed),
            median(&cell.every),
            median(&cell.last),
            format!("{:.2}", last.median),
            format!("{:.2} to {:.2}", last.low, last.high),
            median(&cell.store),
            format!("{:.2}", store.median),
            format!("{:.2} to {:.2}", store.low, store.high),
        ]);
    }
    show(table);
    println!(
        "The trace's writes, with values of {VALUE_BYTES} bytes; medians over {rounds} rounds, ratios paired."
    );
}

pub(crate) fn to_json(cells: &[Cell]) -> Vec<Value> {
    let line = |cell: &Cell| {
        let [last, store] = cell.gains();
        json!({
            "batch": cell.size,
            "allowed": (cell.allowed * 100.0).round() / 100.0,
            "every_updates_per_s": figure(&spread(cell.every.iter().copied())),
            "last_updates_per_s": figure(&spread(cell.last.iter().copied())),
            "store_updates_per_s": figure(&spread(cell.store.iter().copied())),
            "last_per_every": figure(&last),
            "store_per_every": figure(&store),
        })
    };
    cells.iter().map(line).collect()
}
