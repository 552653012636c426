//! The tables and the file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde_json::{Value as Json, json};

use crate::hearing;
use crate::lag::Lag;
use crate::load::{Ranks, VALUE_BYTES, spread};
use crate::publishing::{self, Figures};

/// All that was measured.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) rate: u64,
    pub(crate) writers: u64,
    pub(crate) seconds: u64,
    pub(crate) linger_ms: u64,
    pub(crate) rounds: u64,
    pub(crate) entries: u64,
    pub(crate) lags: Vec<Lag>,
    pub(crate) publishing: Vec<publishing::Line>,
    pub(crate) hearing: Vec<hearing::Line>,
}

/// A figure of a write, and its name in the file.
type Figure = (&'static str, fn(&Figures) -> f64);

const FIGURES: [Figure; 3] = [
    ("p50_ms", |figures| figures.p50_ms),
    ("p99_ms", |figures| figures.p99_ms),
    ("writes_per_s", |figures| figures.writes_per_s),
];

impl Lag {
    /// The ways that are told apart.
    fn ways(&self) -> [(&'static str, &Ranks); 4] {
        [
            ("commit to follower", &self.commit_to_follower),
            ("commit to store", &self.commit_to_store),
            ("store to follower", &self.store_to_follower),
            ("put", &self.put),
        ]
    }

    fn directives_per_event(&self) -> f64 {
        self.directives as f64 / self.events.max(1) as f64
    }
}

impl Report {
    pub(crate) fn print(&self) {
        self.print_lags();
        if !self.publishing.is_empty() {
            self.print_publishing();
            self.print_hearing();
        }
    }

    fn print_lags(&self) {
        let mut table = header("bus, way, p50 ms, p99 ms, p99.9 ms, max ms");
        for lag in &self.lags {
            for (way, ranks) in lag.ways() {
                let row = [lag.over.name().to_owned(), way.to_owned()];
                let figures = [ranks.p50_ms, ranks.p99_ms, ranks.p999_ms, ranks.max_ms];
                table.add_row(row.into_iter().chain(figures.map(|ms| format!("{ms:.2}"))));
            }
        }
        show(table, 2);
        let mut table = header("bus, writes, writes/s, events, directives/event, gaps, places lost");
        for lag in &self.lags {
            table.add_row([
                lag.over.name().to_owned(),
                lag.writes.to_string(),
                format!("{:.0}", lag.writes_per_s),
                lag.events.to_string(),
                format!("{:.1}", lag.directives_per_event()),
                lag.gaps.to_string(),
                lag.places_lost.to_string(),
            ]);
        }
        show(table, 1);
        println!(
            "{} writes a second for {} s, values of {VALUE_BYTES} bytes, {} async writers, Durability::Sync, batches \
             that linger {} ms.",
            self.rate, self.seconds, self.writers, self.linger_ms
        );
    }

    fn print_publishing(&self) {
        let columns = "writes, what, p50 ms, p99 ms, writes/s, p50 ratio, (spread), p99 ratio, (spread), writes/s \
                       ratio, (spread)";
        let mut table = header(columns);
        for line in &self.publishing {
            let mut row = vec![line.load.name().to_owned(), line.what.to_owned()];
            for (name, figure) in FIGURES {
                let figures: Vec<f64> = line.rounds.iter().map(figure).collect();
                let [median, ..] = spread(&figures);
                row.push(if name == "writes_per_s" {
                    format!("{median:.0}")
                } else {
                    format!("{median:.2}")
                });
            }
            let without = self.without(line);
            for (_, figure) in FIGURES {
                let ratios = without.map(|without| line.ratios(without, figure)).unwrap_or_default();
                let [median, low, high] = spread(&ratios);
                row.extend(match ratios.is_empty() {
                    true => [String::new(), String::new()],
                    false => [format!("{median:.2}"), format!("{low:.2} to {high:.2}")],
                });
            }
            table.add_row(row);
        }
        show(table, 2);
        println!(
            "Medians over {} rounds, and the lowest and highest; ratios of `without`, paired by round.",
            self.rounds
        );
    }

    fn print_hearing(&self) {
        let mut table = header("directives of keys, ns each, (spread), of which decoding");
        for line in &self.hearing {
            let ([median, low, high], [decode, ..]) = (spread(&line.all_ns), spread(&line.decode_ns));
            table.add_row([
                line.keys.name().to_owned(),
                format!("{median:.0}"),
                format!("{low:.0} to {high:.0}"),
                format!("{decode:.0}"),
            ]);
        }
        show(table, 1);
        println!("With {} entries in memory, and as many directives.", self.entries);
    }

    /// The line without a publisher that belongs to this one; nothing of itself.
    fn without(&self, line: &publishing::Line) -> Option<&publishing::Line> {
        let without = self.publishing.iter().find(|other| other.load == line.load)?;
        (without.what != line.what).then_some(without)
    }

    pub(crate) fn write_json(&self, target: &Path) -> Result<PathBuf> {
        let all = json!({
            "rate": self.rate,
            "writers": self.writers,
            "seconds": self.seconds,
            "linger_ms": self.linger_ms,
            "rounds": self.rounds,
            "entries": self.entries,
            "value_bytes": VALUE_BYTES,
            "lag": self.lags.iter().map(lag_json).collect::<Vec<_>>(),
            "publishing": self.publishing.iter().map(|line| self.publishing_json(line)).collect::<Vec<_>>(),
            "hearing": self.hearing.iter().map(hearing_json).collect::<Vec<_>>(),
        });
        let path = target.join("event_lag.json");
        let text = serde_json::to_string_pretty(&all)?;
        fs::write(&path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    fn publishing_json(&self, line: &publishing::Line) -> Json {
        let mut row = json!({ "writes": line.load.name(), "what": line.what, "rounds": line.rounds.len() });
        if let Json::Object(row) = &mut row {
            for (name, figure) in FIGURES {
                row.insert(name.to_owned(), spread_json(&line.rounds.iter().map(figure).collect::<Vec<_>>()));
                if let Some(without) = self.without(line) {
                    row.insert(format!("{name}_ratio"), spread_json(&line.ratios(without, figure)));
                }
            }
        }
        row
    }
}

fn lag_json(lag: &Lag) -> Json {
    let ranks = |ranks: &Ranks| {
        json!({
            "p50_ms": rounded(ranks.p50_ms),
            "p99_ms": rounded(ranks.p99_ms),
            "p999_ms": rounded(ranks.p999_ms),
            "max_ms": rounded(ranks.max_ms),
        })
    };
    json!({
        "bus": lag.over.name(),
        "writes": lag.writes,
        "writes_per_s": rounded(lag.writes_per_s),
        "commit_to_follower": ranks(&lag.commit_to_follower),
        "commit_to_store": ranks(&lag.commit_to_store),
        "store_to_follower": ranks(&lag.store_to_follower),
        "put": ranks(&lag.put),
        "events": lag.events,
        "directives": lag.directives,
        "directives_per_event": rounded(lag.directives_per_event()),
        "gaps": lag.gaps,
        "places_lost": lag.places_lost,
    })
}

fn hearing_json(line: &hearing::Line) -> Json {
    json!({
        "keys": line.keys.name(),
        "directive_ns": spread_json(&line.all_ns),
        "decode_ns": spread_json(&line.decode_ns),
    })
}

fn spread_json(figures: &[f64]) -> Json {
    let [median, low, high] = spread(figures).map(rounded);
    json!({ "median": median, "low": low, "high": high })
}

fn rounded(figure: f64) -> f64 {
    (figure * 1_000.0).round() / 1_000.0
}

fn header(columns: &str) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(columns.split(", "));
    table
}

fn show(mut table: Table, names: usize) {
    table.column_iter_mut().skip(names).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
}
