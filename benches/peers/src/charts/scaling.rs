//! Puts per second over the number of writers.

use anyhow::Result;
use plotters::prelude::*;

use crate::charts::ink::{FINE_GRID, GRID, INK, WIDTH, colour, failed, letters, round_ends, short};
use crate::charts::lines::{Line, name_ends, with_room};
use crate::results::Row;

const HEIGHT: u32 = 620;

/// # Errors
/// The charting library's.
pub(crate) fn scaling(rows: &[&Row]) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let most = rows.iter().map(|row| row.writers).max().unwrap_or(1) as f64;
        let lowest_and_highest = |row: &&Row| [row.figures.writes_per_s_low, row.figures.writes_per_s_high];
        let range = round_ends(rows.iter().flat_map(lowest_and_highest));
        let mut chart = with_room(&root)
            .build_cartesian_2d((1.0..most).log_scale().base(4.0), range.log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(FINE_GRID)
            .bold_line_style(GRID.stroke_width(2))
            .axis_style(INK)
            .x_max_light_lines(0)
            .x_desc("writers (logarithmic)")
            .y_desc("writes per second (logarithmic)")
            .x_label_formatter(&|writers| format!("{writers}"))
            .y_label_formatter(&short)
            .label_style(letters(14))
            .axis_desc_style(letters(15))
            .draw()
            .map_err(failed)?;
        for row in rows {
            let at = row.writers as f64;
            let [low, high] = lowest_and_highest(row);
            let spread = PathElement::new(vec![(at, low), (at, high)], colour(&row.what));
            chart.draw_series([spread]).map_err(failed)?;
        }
        let lines = Line::all(rows, |row| [(row.writers as f64, row.figures.writes_per_s)]);
        for line in &lines {
            line.draw(&mut chart)?;
            let dots = line.points.iter().map(|at| Circle::new(*at, 4, colour(&line.what).filled()));
            chart.draw_series(dots).map_err(failed)?;
        }
        name_ends(&root, &chart, &lines)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}
