//! The distribution of the latencies of each: a curve over the share of puts that took no longer.
//!
//! The axis of shares is that of odds (a logit), so that the tail has as much room as the middle: from 90 to 99 % is as
//! far as from 99 to 99.9 %, and from 1 to 10 % as far as from 90 to 99 %.

use std::ops::Range;

use anyhow::Result;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::charts::ink::{FINE_GRID, GRID, INK, WIDTH, failed, letters, round_ends, time};
use crate::charts::lines::{Line, name_ends, with_room};
use crate::results::Row;

const HEIGHT: u32 = 560;
/// The shares that the axis names, in thousandths.
const NAMED: [f64; 9] = [10.0, 50.0, 100.0, 250.0, 500.0, 750.0, 900.0, 990.0, 999.0];
/// Where the axis begins and ends.
const ENDS: Range<f64> = 10.0..999.0;

/// # Errors
/// The charting library's.
pub(crate) fn distribution(rows: &[&Row]) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let range =
            round_ends(rows.iter().flat_map(|row| row.figures.quantiles_us.iter().map(|(_, us)| *us)));
        let mut chart = with_room(&root).build_cartesian_2d(Shares, range.log_scale()).map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(FINE_GRID)
            .bold_line_style(GRID.stroke_width(2))
            .axis_style(INK)
            .x_max_light_lines(0)
            .x_desc("share of the puts that took no longer (by odds)")
            .y_desc("latency of a put (logarithmic)")
            .y_label_formatter(&time)
            .label_style(letters(14))
            .axis_desc_style(letters(15))
            .draw()
            .map_err(failed)?;
        let lines = Line::all(rows, |row| {
            row.figures
                .quantiles_us
                .iter()
                .map(|(per_mille, us)| (f64::from(*per_mille), *us))
                .collect::<Vec<_>>()
        });
        lines.iter().try_for_each(|line| line.draw(&mut chart))?;
        name_ends(&root, &chart, &lines)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// The axis of shares, in thousandths.
struct Shares;

impl Ranged for Shares {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn range(&self) -> Range<f64> {
        ENDS
    }

    fn map(&self, share: &f64, (left, right): (i32, i32)) -> i32 {
        let along = (odds(*share) - odds(ENDS.start)) / (odds(ENDS.end) - odds(ENDS.start));
        left + (along * f64::from(right - left)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { NAMED.to_vec() }
    }
}

impl ValueFormatter<f64> for Shares {
    fn format(share: &f64) -> String {
        format!("{} %", share / 10.0)
    }
}

/// The logarithm of the odds of a share in thousandths.
fn odds(share: f64) -> f64 {
    (share / (1000.0 - share)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_has_as_much_room_as_the_other_end() {
        let at = |share: f64| Shares.map(&share, (100, 1100));
        assert_eq!((at(ENDS.start), at(ENDS.end)), (100, 1100));
        assert!((at(100.0) - at(10.0) - (at(990.0) - at(900.0))).abs() <= 1, "both are a step of ten");
        let said: Vec<String> = NAMED.iter().map(Shares::format).collect();
        assert_eq!(said, ["1 %", "5 %", "10 %", "25 %", "50 %", "75 %", "90 %", "99 %", "99.9 %"]);
    }
}
