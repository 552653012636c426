//! The figures: of one measurement, of all rounds, and as they lie in the file.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::calls::Calls;
use crate::load::Taken;
use crate::machine::Machine;
use crate::subject::{Class, Face};

/// What one measurement comes to.
#[derive(Clone, Copy)]
pub(crate) struct Figures {
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    writes_per_s: f64,
}

impl Taken {
    pub(crate) fn figures(mut self) -> Figures {
        self.latencies_ns.sort_unstable();
        let all = &self.latencies_ns;
        // The smallest latency that at least so many of a thousand puts did not exceed.
        let quantile_us = |per_mille: usize| {
            let rank = (all.len() * per_mille).div_ceil(1000).max(1);
            all.get(rank - 1).map_or(f64::NAN, |&ns| ns as f64 / 1000.0)
        };
        Figures {
            p50_us: quantile_us(500),
            p99_us: quantile_us(990),
            p999_us: quantile_us(999),
            writes_per_s: all.len() as f64 / self.took.as_secs_f64(),
        }
    }
}

/// A line of the table: the form that the benchmark `write_latency` writes, and what came out of each round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) durability: String,
    pub(crate) face: String,
    pub(crate) writers: usize,
    pub(crate) value_bytes: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) writes_per_s: f64,
    pub(crate) rounds: usize,
    pub(crate) p50_us_low: f64,
    pub(crate) p50_us_high: f64,
    pub(crate) writes_per_s_low: f64,
    pub(crate) writes_per_s_high: f64,
    pub(crate) each_p50_us: Vec<f64>,
    pub(crate) each_p99_us: Vec<f64>,
    pub(crate) each_writes_per_s: Vec<f64>,
}

/// Which row it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id<'a> {
    pub(crate) what: &'a str,
    pub(crate) class: Class,
    pub(crate) face: Face,
    pub(crate) writers: usize,
    pub(crate) value_bytes: usize,
}

impl Row {
    pub(crate) fn of(id: Id, rounds: &[Figures]) -> Row {
        let each = |figure: fn(&Figures) -> f64| -> Vec<f64> {
            rounds.iter().map(|round| (figure(round) * 100.0).round() / 100.0).collect()
        };
        let (p50, p99, rate) = (
            each(|figures| figures.p50_us),
            each(|figures| figures.p99_us),
            each(|figures| figures.writes_per_s),
        );
        let (p50_spread, rate_spread) = (Spread::of(&p50), Spread::of(&rate));
        Row {
            what: id.what.to_owned(),
            durability: id.class.name().to_owned(),
            face: id.face.name().to_owned(),
            writers: id.writers,
            value_bytes: id.value_bytes,
            p50_us: p50_spread.median,
            p99_us: Spread::of(&p99).median,
            p999_us: Spread::of(&each(|figures| figures.p999_us)).median,
            writes_per_s: rate_spread.median,
            rounds: rounds.len(),
            p50_us_low: p50_spread.low,
            p50_us_high: p50_spread.high,
            writes_per_s_low: rate_spread.low,
            writes_per_s_high: rate_spread.high,
            each_p50_us: p50,
            each_p99_us: p99,
            each_writes_per_s: rate,
        }
    }

    pub(crate) fn is(&self, id: Id) -> bool {
        self.what == id.what
            && self.durability == id.class.name()
            && self.face == id.face.name()
            && self.writers == id.writers
            && self.value_bytes == id.value_bytes
    }

    fn same(&self, other: &Row) -> bool {
        self.what == other.what
            && self.durability == other.durability
            && self.face == other.face
            && self.writers == other.writers
            && self.value_bytes == other.value_bytes
    }
}

/// The middle, the lowest and the highest of some figures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Not a number for no figures. Of an even number the higher of the two in the middle.
    pub(crate) fn of(figures: &[f64]) -> Spread {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |place: Option<&f64>| place.copied().unwrap_or(f64::NAN);
        Spread { median: at(sorted.get(sorted.len() / 2)), low: at(sorted.first()), high: at(sorted.last()) }
    }
}

/// All that the file holds.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
    pub(crate) calls: Vec<Calls>,
}

impl Results {
    /// # Errors
    /// The file cannot be read, or is not of this form.
    pub(crate) fn read(path: &Path) -> Result<Results> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not of this form", path.display()))
    }

    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }

    /// Takes the rows in that `newer` lacks.
    pub(crate) fn keep_from(&mut self, older: Results) {
        let rows = older.rows.into_iter().filter(|row| !self.rows.iter().any(|newer| newer.same(row)));
        let kept: Vec<Row> = rows.collect();
        self.rows.extend(kept);
        let calls = older.calls.into_iter().filter(|calls| !self.calls.iter().any(|newer| newer.same(calls)));
        let kept: Vec<Calls> = calls.collect();
        self.calls.extend(kept);
    }

    pub(crate) fn row(&self, id: Id) -> Option<&Row> {
        self.rows.iter().find(|row| row.is(id))
    }

    /// The system calls of one of them, if they were looked at.
    pub(crate) fn calls(&self, what: &str, class: Class) -> Option<&Calls> {
        self.calls.iter().find(|calls| calls.what == what && calls.durability == class.name())
    }
}
