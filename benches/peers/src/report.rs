//! The report for people: one HTML file that needs nothing beside itself, and its tables as Markdown.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::charts::pictures;
use crate::results::Results;
use crate::table::{self, Cells};

const STYLE: &str = "\
body { font: 16px/1.5 system-ui, sans-serif; color: #282c34; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.7em; } h2 { font-size: 1.2em; margin: 2.2em 0 .2em; }
svg { width: 100%; height: auto; } p { margin: .3em 0 .6em; color: #555; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { padding: .25em .6em; border-bottom: 1px solid #e1e4e8; text-align: left; }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.ours td:first-child { color: #0052cc; font-weight: 600; }
tr.missed td:last-child { color: #c41e3a; }
";

const READ: &str = "\
What is called synced survives a power cut, as far as the disk honours a sync. What is called not synced \
differs: some hand each put to the operating system before they return, so that it survives the end of the \
process; others keep it in the process. A table below tells what each was seen to call.";

/// Writes the report that the path's extension asks for.
///
/// # Errors
/// The file cannot be written; a picture cannot be drawn.
pub(crate) fn write(results: &Results, path: &Path) -> Result<()> {
    let text = match path.extension().and_then(|extension| extension.to_str()) {
        Some("md") => markdown(results)?,
        _ => html(results)?,
    };
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn html(results: &Results) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">")?;
    writeln!(out, "<title>Forebay and its peers</title>\n<style>{STYLE}</style></head><body>")?;
    writeln!(out, "<h1>Forebay and its peers: what a durable write costs</h1>")?;
    let machine = &results.machine;
    let (at, machine) = (escaped(&machine.at), escaped(&machine.sentence()));
    writeln!(out, "<p>{at}. {machine}. {}</p>\n<p>{READ}</p>", results.lengths())?;
    for picture in pictures(results)? {
        writeln!(out, "<h2>{}</h2>\n<p>{}</p>", escaped(&picture.title), escaped(&picture.says))?;
        writeln!(out, "{}", picture.svg)?;
    }
    for cells in table::all(results) {
        html_table(&mut out, &cells)?;
    }
    writeln!(out, "</body></html>")?;
    Ok(out)
}

fn html_table(out: &mut String, cells: &Cells) -> Result<()> {
    writeln!(out, "<h2>{}</h2>\n<table><thead><tr>", escaped(&cells.title))?;
    let class = |column: usize| if column < cells.words { "" } else { " class=\"figure\"" };
    for (column, name) in cells.header.iter().enumerate() {
        write!(out, "<th{}>{}</th>", class(column), escaped(name))?;
    }
    writeln!(out, "</tr></thead><tbody>")?;
    for row in &cells.rows {
        let first = row.first().map_or("", String::as_str);
        let missed = row.last().is_some_and(|last| last.starts_with("missed"));
        let of = match (missed, first.starts_with("forebay")) {
            (true, _) => " class=\"missed\"",
            (false, true) => " class=\"ours\"",
            (false, false) => "",
        };
        write!(out, "<tr{of}>")?;
        for (column, cell) in row.iter().enumerate() {
            write!(out, "<td{}>{}</td>", class(column), escaped(cell))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody></table>")?;
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn markdown(results: &Results) -> Result<String> {
    let mut out = format!("{}, {}. {}\n", results.machine.at, results.machine.sentence(), results.lengths());
    for cells in table::all(results) {
        writeln!(out, "\n### {}\n\n| {} |", cells.title, cells.header.join(" | "))?;
        let rule = |column: usize| if column < cells.words { " --- |" } else { " ---: |" };
        writeln!(out, "|{}", (0..cells.header.len()).map(rule).collect::<String>())?;
        for row in &cells.rows {
            writeln!(out, "| {} |", row.join(" | "))?;
        }
    }
    Ok(out)
}
