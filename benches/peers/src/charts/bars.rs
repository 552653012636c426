//! The latency of a put with each, as a bar from the median to the tail.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::charts::ink::{
    FINE_GRID, GRID, INK, WIDTH, colour, failed, letters, name, round_ends, stands_out, time,
};
use crate::figures::Summary;
use crate::results::Row;

const NAMES_WIDTH: u32 = 150;
const BAR_STEP: u32 = 30;

/// # Errors
/// The charting library's.
pub(crate) fn bars(rows: &[&Row]) -> Result<String> {
    let mut svg = String::new();
    {
        let height = BAR_STEP * u32::try_from(rows.len())? + 75;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let (names, plot) = root.split_horizontally(NAMES_WIDTH);
        let range = round_ends(rows.iter().flat_map(|row| [row.figures.p50_us, row.figures.p999_us]));
        let mut chart = ChartBuilder::on(&plot)
            .margin_top(8)
            .margin_right(70)
            .x_label_area_size(55)
            .build_cartesian_2d(range.log_scale(), 0.0..rows.len() as f64)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .light_line_style(FINE_GRID)
            .bold_line_style(GRID.stroke_width(2))
            .axis_style(INK)
            .x_desc("latency of a put (logarithmic)")
            .x_label_formatter(&time)
            .x_label_style(letters(14))
            .axis_desc_style(letters(15))
            .draw()
            .map_err(failed)?;
        for (index, row) in rows.iter().enumerate() {
            let y = (rows.len() - index) as f64 - 0.5;
            let colour = colour(&row.what);
            let bar = |from: f64, to: f64, half: f64, alpha: f64| {
                Rectangle::new([(from, y - half), (to, y + half)], colour.mix(alpha).filled())
            };
            let &Summary { p50_us, p99_us, p999_us, .. } = &row.figures;
            let thick = bar(p50_us, p99_us, 0.24, if stands_out(&row.what) { 0.85 } else { 0.5 });
            chart.draw_series([bar(p50_us, p999_us, 0.06, 0.8), thick]).map_err(failed)?;
            chart.draw_series([Circle::new((p50_us, y), 6, colour.filled())]).map_err(failed)?;
            let (_, pixel) = chart.backend_coord(&(p50_us, y));
            let (end, _) = chart.backend_coord(&(p999_us, y));
            let at = (i32::try_from(NAMES_WIDTH)? - 10, pixel);
            names.draw(&Text::new(row.what.clone(), at, name(&row.what, HPos::Right))).map_err(failed)?;
            let beside = letters(13).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(time(&p50_us), (end + 8, pixel), beside)).map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}
