//! Lines that carry their names at their right end, so that nobody has to match colours.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use crate::charts::ink::{WIDTH, colour, failed, name, stands_out};
use crate::results::Row;
use crate::subject::Face;

/// The width for the names, right of the chart.
const NAMES_WIDTH: u32 = 190;
/// The height below the chart.
const BELOW: u32 = 55;
const NAME_STEP: i32 = 17;

/// A chart with room for its lines' names.
pub(crate) fn with_room<'a, 'b, DB: DrawingBackend>(
    root: &'a DrawingArea<DB, Shift>,
) -> ChartBuilder<'a, 'b, DB> {
    let mut chart = ChartBuilder::on(root);
    chart.margin_top(12).margin_left(14).margin_right(NAMES_WIDTH);
    chart.x_label_area_size(BELOW).y_label_area_size(75);
    chart
}

pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) face: Face,
    /// From the left to the right.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Line {
    /// A line for each of them and face, of the points of each row.
    pub(crate) fn all<P: IntoIterator<Item = (f64, f64)>>(
        rows: &[&Row],
        points: impl Fn(&Row) -> P,
    ) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for face in Face::ALL {
            for row in rows.iter().filter(|row| row.face == face.name()) {
                match lines.iter_mut().find(|line| line.what == row.what && line.face == face) {
                    Some(line) => line.points.extend(points(row)),
                    None => {
                        let points = points(row).into_iter().collect();
                        lines.push(Line { what: row.what.clone(), face, points });
                    }
                }
            }
        }
        lines.iter_mut().for_each(|line| line.points.sort_by(|(a, _), (b, _)| a.total_cmp(b)));
        // What stands out is drawn over the rest.
        lines.sort_by_key(|line| stands_out(&line.what));
        lines
    }

    fn name(&self) -> String {
        match self.face {
            Face::Threads => self.what.clone(),
            Face::Tasks => format!("{}, tasks", self.what),
        }
    }

    /// # Errors
    /// The charting library's.
    pub(crate) fn draw<'a, X, Y>(
        &self,
        chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    ) -> Result<()>
    where
        X: Ranged<ValueType = f64>,
        Y: Ranged<ValueType = f64>,
    {
        let colour = colour(&self.what);
        let style =
            if stands_out(&self.what) { colour.stroke_width(3) } else { colour.mix(0.55).stroke_width(2) };
        let points = self.points.iter().copied();
        if self.face == Face::Tasks {
            chart.draw_series(DashedLineSeries::new(points, 8, 5, style)).map_err(failed)?;
        } else {
            chart.draw_series(LineSeries::new(points, style)).map_err(failed)?;
        }
        Ok(())
    }
}

/// Writes each line's name beside its end, into the room at the right.
///
/// # Errors
/// The charting library's.
pub(crate) fn name_ends<'a, X, Y>(
    root: &DrawingArea<SVGBackend<'a>, Shift>,
    chart: &ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    lines: &[Line],
) -> Result<()>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    let end = |line: &Line| line.points.last().map(|point| chart.backend_coord(point));
    let mut ends: Vec<(&Line, (i32, i32))> =
        lines.iter().filter_map(|line| Some((line, end(line)?))).collect();
    ends.sort_by_key(|(_, (_, y))| *y);
    let wanted: Vec<i32> = ends.iter().map(|(_, (_, y))| *y).collect();
    let (_, height) = root.dim_in_pixel();
    let bottom = i32::try_from(height - BELOW)? - NAME_STEP;
    let x = i32::try_from(WIDTH - NAMES_WIDTH)? + 34;
    for ((line, (end_x, end_y)), y) in ends.iter().zip(apart(&wanted, NAME_STEP, 14, bottom)) {
        let colour = colour(&line.what);
        let leader = vec![(*end_x + 5, *end_y), (x - 16, y), (x - 4, y)];
        root.draw(&PathElement::new(leader, colour.mix(0.35))).map_err(failed)?;
        root.draw(&Text::new(line.name(), (x, y), name(&line.what, HPos::Left))).map_err(failed)?;
    }
    Ok(())
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

    /// Names of lines that end in one place were drawn over each other.
    #[test]
    fn names_keep_their_distance_and_stay_inside() {
        assert_eq!(apart(&[50, 51, 52], 10, 0, 100), [50, 60, 70]);
        assert_eq!(apart(&[95, 96, 97], 10, 0, 100), [80, 90, 100]);
        assert_eq!(apart(&[0, 40, 90], 10, 5, 100), [5, 40, 90]);
    }
}
