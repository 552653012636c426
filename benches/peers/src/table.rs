//! The tables: in the terminal, and the same cells for the reports.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use crate::calls::Calls;
use crate::figures::COLUMNS;
use crate::peers::registry::ENTRIES;
use crate::results::{Results, Row};
use crate::subject::{Class, Face};
use crate::targets::targets;

const TERMINAL_CHARS: u16 = 150;

/// A table without its looks.
pub(crate) struct Cells {
    pub(crate) title: String,
    pub(crate) header: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
    /// The number of columns with words; the others hold figures.
    pub(crate) words: usize,
}

/// A table for each durability, face and size of values, with a row for each of them and number of writers.
fn figures(results: &Results) -> Vec<Cells> {
    let mut sizes: Vec<usize> = results.rows.iter().map(|row| row.value_bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut tables = Vec::new();
    for value_bytes in sizes {
        for class in Class::ALL {
            for face in Face::ALL {
                let mut chosen: Vec<&Row> = results
                    .rows
                    .iter()
                    .filter(|row| {
                        row.value_bytes == value_bytes
                            && row.durability == class.name()
                            && row.face == face.name()
                    })
                    .collect();
                chosen.sort_by(|a, b| {
                    a.writers
                        .cmp(&b.writers)
                        .then_with(|| b.figures.writes_per_s.total_cmp(&a.figures.writes_per_s))
                });
                if !chosen.is_empty() {
                    let callers = match face {
                        Face::Threads => "OS threads",
                        Face::Tasks => "async tasks",
                    };
                    tables.push(Cells {
                        title: format!("{callers}, values of {value_bytes} bytes, {}", class.sentence()),
                        header: ["what", "writers"].into_iter().chain(COLUMNS).collect(),
                        rows: chosen.into_iter().map(cells_of).collect(),
                        words: 1,
                    });
                }
            }
        }
    }
    tables
}

fn cells_of(row: &Row) -> Vec<String> {
    [row.what.clone(), row.writers.to_string()].into_iter().chain(row.figures.cells()).collect()
}

/// Each of them in each durability that rows are of, with its settings.
fn opened(results: &Results) -> impl Iterator<Item = (&'static str, Class, &'static str)> {
    let each = Class::ALL.into_iter().flat_map(|class| {
        ENTRIES.iter().filter_map(move |entry| Some((entry.name, class, entry.settings(class)?)))
    });
    each.filter(|(name, class, _)| {
        results.rows.iter().any(|row| row.what == *name && row.durability == class.name())
    })
}

/// The settings of each peer, and the calls that it was seen to make.
fn calls(results: &Results) -> Cells {
    let row = |(name, class, settings): (&'static str, Class, &'static str)| {
        let calls = results.calls(name, class);
        let shared = calls.and_then(|calls| calls.puts_per_sync_of_64);
        vec![
            name.to_owned(),
            class.name().to_owned(),
            settings.to_owned(),
            calls.map_or_else(|| "not traced".to_owned(), Calls::sentence),
            shared.map_or_else(String::new, |puts| format!("{puts:.1}")),
        ]
    };
    Cells {
        title: "What each is opened with, and the system calls of one writer's put".to_owned(),
        header: vec![
            "what",
            "durability",
            "opened with",
            "calls per put (strace)",
            "puts per sync, 64 threads",
        ],
        rows: opened(results).map(row).collect(),
        words: 4,
    }
}

/// The write amplification: bytes written for each byte of keys and values.
fn amplification(results: &Results) -> Cells {
    let row = |(name, class, _): (&'static str, Class, &'static str)| {
        let Calls { amplification: one, amplification_of_64: many, .. } = results.calls(name, class)?;
        let figures = [one.written, many.written, one.in_pages, many.in_pages];
        let figures = figures.into_iter().map(|figure| format!("{figure:.2}"));
        Some([name.to_owned(), class.name().to_owned()].into_iter().chain(figures).collect())
    };
    Cells {
        title: "Bytes written for each byte of key and value".to_owned(),
        header: vec![
            "what",
            "durability",
            "1 thread",
            "64 threads",
            "in pages, 1 thread",
            "in pages, 64 threads",
        ],
        rows: opened(results).filter_map(row).collect(),
        words: 2,
    }
}

fn reached(results: &Results) -> Cells {
    Cells {
        title: "Targets: ratios within a round".to_owned(),
        header: vec!["ratio", "wanted", "median", "(spread)", "verdict"],
        rows: targets(results).iter().map(|target| target.columns().to_vec()).collect(),
        words: 2,
    }
}

pub(crate) fn all(results: &Results) -> Vec<Cells> {
    let mut tables = figures(results);
    tables.extend([amplification(results), calls(results), reached(results)]);
    tables.retain(|table| !table.rows.is_empty());
    tables
}

pub(crate) fn print(results: &Results) {
    for cells in all(results) {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        // The settings are sentences; they break so that the rest stays in sight.
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(TERMINAL_CHARS);
        table.set_header(&cells.header);
        table.add_rows(&cells.rows);
        table
            .column_iter_mut()
            .skip(cells.words)
            .for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        println!("{}\n{table}\n", cells.title);
    }
    println!("{}", results.lengths());
}
