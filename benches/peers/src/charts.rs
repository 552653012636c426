//! The report's pictures, as SVG: how long a put takes with each, how the latencies are distributed, and how many puts
//! fit into a second as writers become more.
//!
//! Each line and bar carries its name beside it; ours are blue, the bare calls black.

mod bars;
mod distribution;
mod ink;
mod lines;
mod scaling;

use anyhow::Result;

use crate::charts::bars::bars;
use crate::charts::distribution::distribution;
use crate::charts::scaling::scaling;
use crate::results::{Results, Row};
use crate::subject::{Class, Face};

pub(crate) struct Picture {
    pub(crate) title: String,
    pub(crate) says: String,
    pub(crate) svg: String,
}

/// All pictures that the rows suffice for.
///
/// # Errors
/// The charting library's.
pub(crate) fn pictures(results: &Results) -> Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    // Where several sizes were measured, the smallest has all of them.
    let Some(value_bytes) = results.rows.iter().map(|row| row.value_bytes).min() else { return Ok(pictures) };
    for class in Class::ALL {
        let rows: Vec<&Row> = results
            .rows
            .iter()
            .filter(|row| row.durability == class.name() && row.value_bytes == value_bytes)
            .collect();
        let threads: Vec<&Row> =
            rows.iter().filter(|row| row.face == Face::Threads.name()).copied().collect();
        for writers in few_and_many(&threads) {
            let mut of: Vec<&Row> = threads.iter().filter(|row| row.writers == writers).copied().collect();
            of.sort_by(|a, b| a.figures.p50_us.total_cmp(&b.figures.p50_us));
            let callers = if writers == 1 { "1 thread".to_owned() } else { format!("{writers} threads") };
            pictures.push(Picture {
                title: format!("How long a put takes: {callers}, {}", class.sentence()),
                says: format!(
                    "Values of {value_bytes} bytes. The dot and the figure are the median, the thick bar ends at p99, \
                     the thin one at p99.9. Further left is better."
                ),
                svg: bars(&of)?,
            });
            pictures.push(Picture {
                title: format!("How the latencies are distributed: {callers}, {}", class.sentence()),
                says: format!(
                    "Values of {value_bytes} bytes. Each point is the median of that quantile over the rounds. A flat \
                     line is a put that always takes as long; lower is better."
                ),
                svg: distribution(&of)?,
            });
        }
        if rows.iter().any(|row| Some(row.writers) != rows.first().map(|first| first.writers)) {
            pictures.push(Picture {
                title: format!("How many fit into a second: {}", class.sentence()),
                says: format!(
                    "Values of {value_bytes} bytes. Solid lines are OS threads, dashed ones async tasks; the bar at \
                     each point is the lowest and highest round. Higher is better."
                ),
                svg: scaling(&rows)?,
            });
        }
    }
    Ok(pictures)
}

/// One writer, and the most that all who were measured were measured with.
fn few_and_many(rows: &[&Row]) -> Vec<usize> {
    let with = |writers: usize| rows.iter().filter(move |row| row.writers == writers).count();
    let most = rows.iter().map(|row| with(row.writers)).max();
    let many = rows.iter().map(|row| row.writers).filter(|writers| Some(with(*writers)) == most).max();
    let mut both: Vec<usize> = [1].into_iter().filter(|one| with(*one) > 0).chain(many).collect();
    both.dedup();
    both
}
