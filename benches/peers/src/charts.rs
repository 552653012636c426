//! The report's pictures, as SVG: how long a put takes with each, and how many fit into a second as writers
//! become more.
//!
//! Each line and bar carries its name beside it, so that nobody has to match colours; ours are blue, the bare
//! calls black.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::results::{Results, Row};
use crate::subject::{Class, Face};

const WIDTH: u32 = 1000;
const NAMES_WIDTH: u32 = 150;
const BAR_STEP: u32 = 30;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 44, 52);
const GRID: RGBColor = RGBColor(225, 228, 232);

/// The colour of one of them, the same in every picture.
fn colour(what: &str) -> RGBColor {
    match what {
        "forebay" => RGBColor(0, 82, 204),
        "forebay-journal" => RGBColor(76, 154, 255),
        "forebay-through" => RGBColor(0, 135, 153),
        "raw" => RGBColor(0, 0, 0),
        "raw-group" => RGBColor(110, 110, 110),
        "sled" => RGBColor(140, 86, 75),
        "redb" => RGBColor(196, 30, 58),
        "fjall" => RGBColor(230, 126, 34),
        "rocksdb" => RGBColor(39, 139, 60),
        "sqlite" => RGBColor(148, 103, 189),
        "raft-engine" => RGBColor(205, 155, 0),
        "okaywal" => RGBColor(219, 84, 160),
        "persistent-queue" => RGBColor(128, 128, 0),
        _ => RGBColor(90, 60, 50),
    }
}

fn is_ours(what: &str) -> bool {
    what.starts_with("forebay")
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

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
        for writers in [1, 64] {
            let mut bars: Vec<&Row> = rows
                .iter()
                .filter(|row| row.writers == writers && row.face == Face::Threads.name())
                .copied()
                .collect();
            bars.sort_by(|a, b| a.p50_us.total_cmp(&b.p50_us));
            if !bars.is_empty() {
                let plural = if writers == 1 { "" } else { "s" };
                pictures.push(Picture {
                    title: format!("How long a put takes: {writers} thread{plural}, {}", class.sentence()),
                    says: format!(
                        "Values of {value_bytes} bytes. The dot and the figure are the median, the thick bar ends at \
                         p99, the thin one at p99.9. Further left is better."
                    ),
                    svg: latencies(&bars)?,
                });
            }
        }
        let mut several: Vec<usize> = rows.iter().map(|row| row.writers).collect();
        several.sort_unstable();
        several.dedup();
        if several.len() > 1 {
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

/// The range of a logarithmic axis: whole powers of ten, and at least one of them.
fn decades(figures: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
    let low = figures.clone().fold(f64::INFINITY, f64::min).log10().floor();
    let high = figures.fold(f64::NEG_INFINITY, f64::max).log10().ceil();
    10_f64.powf(low)..10_f64.powf(high.max(low + 1.0))
}

fn short(figure: &f64) -> String {
    match *figure {
        figure if figure >= 1e6 => format!("{} M", figure / 1e6),
        figure if figure >= 1e3 => format!("{} k", figure / 1e3),
        figure => format!("{figure}"),
    }
}

fn text(size: u32, colour: RGBColor, at: HPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&colour).pos(Pos::new(at, VPos::Center))
}

fn latencies(rows: &[&Row]) -> Result<String> {
    let mut svg = String::new();
    {
        let height = BAR_STEP * u32::try_from(rows.len())? + 75;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let (names, plot) = root.split_horizontally(NAMES_WIDTH);
        let range = decades(rows.iter().flat_map(|row| [row.p50_us, row.p999_us]));
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
            .light_line_style(GRID)
            .bold_line_style(GRID.mix(1.0).stroke_width(2))
            .axis_style(INK)
            .x_desc("latency of a put in microseconds (logarithmic)")
            .x_label_formatter(&short)
            .x_label_style((FONT, 14).into_font().color(&INK))
            .axis_desc_style((FONT, 15).into_font().color(&INK))
            .draw()
            .map_err(failed)?;
        for (index, row) in rows.iter().enumerate() {
            let y = (rows.len() - index) as f64 - 0.5;
            let colour = colour(&row.what);
            let bar = |from: f64, to: f64, half: f64, alpha: f64| {
                Rectangle::new([(from, y - half), (to, y + half)], colour.mix(alpha).filled())
            };
            chart
                .draw_series([
                    bar(row.p50_us, row.p999_us, 0.06, 0.8),
                    bar(row.p50_us, row.p99_us, 0.24, if is_ours(&row.what) { 0.85 } else { 0.5 }),
                ])
                .map_err(failed)?;
            chart.draw_series([Circle::new((row.p50_us, y), 6, colour.filled())]).map_err(failed)?;
            let (_, pixel) = chart.backend_coord(&(row.p50_us, y));
            let (end, _) = chart.backend_coord(&(row.p999_us, y));
            let size = if is_ours(&row.what) { 16 } else { 15 };
            names
                .draw(&Text::new(
                    row.what.clone(),
                    (i32::try_from(NAMES_WIDTH)? - 10, pixel),
                    text(size, colour, HPos::Right),
                ))
                .map_err(failed)?;
            let median = format!("{:.1}", row.p50_us);
            root.draw(&Text::new(median, (end + 8, pixel), text(13, INK, HPos::Left))).map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// One line of the scaling picture.
struct Line<'a> {
    name: String,
    colour: RGBColor,
    width: u32,
    dashed: bool,
    rows: Vec<&'a Row>,
}

fn lines<'a>(rows: &[&'a Row]) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for face in Face::ALL {
        for row in rows.iter().filter(|row| row.face == face.name()) {
            let name = match face {
                Face::Threads => row.what.clone(),
                Face::Tasks => format!("{}, tasks", row.what),
            };
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.rows.push(row),
                None => lines.push(Line {
                    name,
                    colour: colour(&row.what),
                    width: if is_ours(&row.what) { 3 } else { 2 },
                    dashed: face == Face::Tasks,
                    rows: vec![row],
                }),
            }
        }
    }
    lines.iter_mut().for_each(|line| line.rows.sort_by_key(|row| row.writers));
    lines
}

fn scaling(rows: &[&Row]) -> Result<String> {
    const HEIGHT: u32 = 620;
    const LABELS_WIDTH: u32 = 190;
    const LABEL_STEP: i32 = 17;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let most = rows.iter().map(|row| row.writers).max().unwrap_or(1) as f64;
        let range = decades(rows.iter().flat_map(|row| [row.writes_per_s_low, row.writes_per_s_high]));
        let mut chart = ChartBuilder::on(&root)
            .margin_top(12)
            .margin_left(14)
            .margin_right(LABELS_WIDTH)
            .x_label_area_size(55)
            .y_label_area_size(75)
            .build_cartesian_2d((1.0..most).log_scale().base(4.0), range.log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(GRID)
            .bold_line_style(GRID.stroke_width(2))
            .axis_style(INK)
            .x_max_light_lines(0)
            .x_desc("writers (logarithmic)")
            .y_desc("writes per second (logarithmic)")
            .x_label_formatter(&|writers| format!("{writers}"))
            .y_label_formatter(&short)
            .label_style((FONT, 14).into_font().color(&INK))
            .axis_desc_style((FONT, 15).into_font().color(&INK))
            .draw()
            .map_err(failed)?;
        let lines = lines(rows);
        for line in &lines {
            let style = line.colour.stroke_width(line.width);
            let points = line.rows.iter().map(|row| (row.writers as f64, row.writes_per_s));
            if line.dashed {
                let dashed = DashedLineSeries::new(points.clone(), 8, 5, style);
                chart.draw_series(dashed).map_err(failed)?;
            } else {
                chart.draw_series(LineSeries::new(points.clone(), style)).map_err(failed)?;
            }
            chart.draw_series(points.map(|at| Circle::new(at, 4, line.colour.filled()))).map_err(failed)?;
            let spreads = line.rows.iter().map(|row| {
                let at = row.writers as f64;
                PathElement::new(vec![(at, row.writes_per_s_low), (at, row.writes_per_s_high)], line.colour)
            });
            chart.draw_series(spreads).map_err(failed)?;
        }
        let mut ends: Vec<(&Line, (i32, i32))> = lines
            .iter()
            .filter_map(|line| {
                let last = line.rows.last()?;
                Some((line, chart.backend_coord(&(last.writers as f64, last.writes_per_s))))
            })
            .collect();
        ends.sort_by_key(|(_, (_, y))| *y);
        let wanted: Vec<i32> = ends.iter().map(|(_, (_, y))| *y).collect();
        let bottom = i32::try_from(HEIGHT)? - 70;
        let x = i32::try_from(WIDTH - LABELS_WIDTH)? + 34;
        for ((line, (end_x, end_y)), y) in ends.iter().zip(apart(&wanted, LABEL_STEP, 14, bottom)) {
            let leader = vec![(*end_x + 5, *end_y), (x - 16, y), (x - 4, y)];
            root.draw(&PathElement::new(leader, line.colour.mix(0.35))).map_err(failed)?;
            root.draw(&Text::new(line.name.clone(), (x, y), text(14, line.colour, HPos::Left)))
                .map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Moves places, which ascend, so far that each has `step` to the next and none lies outside, as far as there is room.
fn apart(wanted: &[i32], step: i32, top: i32, bottom: i32) -> Vec<i32> {
    let mut places: Vec<i32> = Vec::with_capacity(wanted.len());
    for &place in wanted {
        let least = places.last().map_or(top, |last| last + step);
        places.push(place.max(least));
    }
    let mut most = bottom;
    for place in places.iter_mut().rev() {
        *place = (*place).min(most);
        most = *place - step;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Labels of lines that end in one place were drawn over each other.
    #[test]
    fn labels_keep_their_distance_and_stay_inside() {
        assert_eq!(apart(&[50, 51, 52], 10, 0, 100), [50, 60, 70]);
        assert_eq!(apart(&[95, 96, 97], 10, 0, 100), [80, 90, 100]);
        assert_eq!(apart(&[0, 40, 90], 10, 5, 100), [5, 40, 90]);
    }

    #[test]
    fn an_axis_begins_and_ends_with_a_power_of_ten() {
        assert_eq!(decades([23.0, 1_400.0].into_iter()), 10.0..10_000.0);
        assert_eq!(decades([100.0].into_iter()), 100.0..1000.0);
    }
}
