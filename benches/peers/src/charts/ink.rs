//! The common parts of all pictures: colours, letters, the ranges of their axes.

use anyhow::anyhow;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(crate) const WIDTH: u32 = 1000;
pub(crate) const INK: RGBColor = RGBColor(40, 44, 52);
pub(crate) const GRID: RGBColor = RGBColor(218, 222, 228);
/// The lines of the grid between those that the axis names.
pub(crate) const FINE_GRID: RGBColor = RGBColor(240, 242, 245);
const FONT: &str = "sans-serif";

/// The colour of one of them, the same in every picture.
pub(crate) fn colour(what: &str) -> RGBColor {
    match what {
        "forebay" => RGBColor(0, 82, 204),
        "forebay-drained" => RGBColor(93, 63, 211),
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

/// True if the eye should find it at once: ours, and the bare calls, between which it has to lie.
pub(crate) fn stands_out(what: &str) -> bool {
    what.starts_with("forebay") || what.starts_with("raw")
}

pub(crate) fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

/// The range of a logarithmic axis: from one, two or five times a power of ten to another.
pub(crate) fn round_ends(figures: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
    let low = figures.clone().fold(f64::INFINITY, f64::min);
    let high = figures.fold(f64::NEG_INFINITY, f64::max);
    let steps = |around: f64| {
        let power = 10_f64.powf(around.log10().floor());
        [1.0, 2.0, 5.0, 10.0].map(|step| step * power)
    };
    let start = steps(low).into_iter().rfind(|step| *step <= low).unwrap_or(low);
    let end = steps(high).into_iter().find(|step| *step >= high).unwrap_or(high);
    start..end.max(start * 10.0)
}

/// A latency in microseconds, to three digits or so, and a round one as an axis says it.
pub(crate) fn time(us: &f64) -> String {
    let (figure, unit) = match *us {
        us if us >= 1e6 => (us / 1e6, "s"),
        us if us >= 1e3 => (us / 1e3, "ms"),
        us => (us, "us"),
    };
    let digits = if figure < 10.0 { 100.0 } else { 10.0 };
    format!("{} {unit}", (figure * digits).round() / digits)
}

pub(crate) fn short(figure: &f64) -> String {
    match *figure {
        figure if figure >= 1e6 => format!("{} M", figure / 1e6),
        figure if figure >= 1e3 => format!("{} k", figure / 1e3),
        figure => format!("{figure}"),
    }
}

pub(crate) fn letters(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}

/// The name of one of them, in its colour, and bold if it stands out.
pub(crate) fn name(what: &str, at: HPos) -> TextStyle<'static> {
    let style = if stands_out(what) { FontStyle::Bold } else { FontStyle::Normal };
    (FONT, 14, style).into_font().color(&colour(what)).pos(Pos::new(at, VPos::Center))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_with_a_round_figure_on_either_side() {
        assert_eq!(round_ends([23.0, 1_400.0].into_iter()), 20.0..2_000.0);
        assert_eq!(round_ends([50.0, 5_100.0].into_iter()), 50.0..10_000.0);
        assert_eq!(round_ends([100.0].into_iter()), 100.0..1000.0, "a range that is not empty");
    }

    #[test]
    fn a_time_is_said_in_the_unit_that_suits_it() {
        let said = [0.5, 10.0, 142.46, 999.9, 1_000.0, 6_321.2, 231_895.5, 2e6].map(|us| time(&us));
        assert_eq!(said, ["0.5 us", "10 us", "142.5 us", "999.9 us", "1 ms", "6.32 ms", "231.9 ms", "2 s"]);
    }
}
