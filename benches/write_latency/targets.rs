//! The ratios that have a target, paired by round.

use std::fmt::{self, Display};

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;

use crate::figures::{Spread, Summary};
use crate::{Row, What};

/// A ratio with a target.
pub(crate) struct Target {
    what: (What, usize),
    of: (What, usize),
    figure: Figure,
    wanted: Wanted,
}

#[derive(Clone, Copy)]
pub(crate) enum Figure {
    P50,
    P99,
    Rate,
}

#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    AtMost(f64),
    AtLeast(f64),
}

/// The cost of a drain shows with one that gives way to nobody, or in measurements that are longer than it gives way
/// (`--measure-ms 3000`).
pub(crate) const TARGETS: [Target; 8] = [
    target(Figure::P50, (What::Through, 1), (What::Sled, 1), Wanted::AtMost(1.1)),
    target(Figure::Rate, (What::Through, 64), (What::Sled, 64), Wanted::AtLeast(10.0)),
    target(Figure::P99, (What::BehindDrained, 1), (What::BehindUndrained, 1), Wanted::AtMost(1.5)),
    target(Figure::P99, (What::BehindDrained, 64), (What::BehindUndrained, 64), Wanted::AtMost(1.5)),
    target(Figure::P99, (What::BehindSync, 1), (What::BehindUndrained, 1), Wanted::AtMost(1.5)),
    target(Figure::P99, (What::BehindSync, 64), (What::BehindUndrained, 64), Wanted::AtMost(1.5)),
    target(Figure::P50, (What::BehindSync, 1), (What::Raw, 1), Wanted::AtMost(1.1)),
    target(Figure::Rate, (What::BehindSync, 64), (What::Raw, 1), Wanted::AtLeast(32.0)),
];

const fn target(figure: Figure, what: (What, usize), of: (What, usize), wanted: Wanted) -> Target {
    Target { what, of, figure, wanted }
}

/// A target's ratio: the median over the rounds, and the lowest and highest.
pub(crate) struct Ratio {
    pub(crate) name: String,
    pub(crate) wanted: Wanted,
    pub(crate) spread: Spread,
}

impl Target {
    /// Paired by round; nothing if one of the two was not measured.
    pub(crate) fn ratio(&self, rows: &[Row]) -> Option<Ratio> {
        let rounds = |(what, writers): (What, usize)| {
            let row = rows.iter().find(|row| row.what == what.name() && row.writers == writers);
            row.map(|row| self.figure.of(&row.figures))
        };
        let each: Vec<f64> = rounds(self.what)?.iter().zip(rounds(self.of)?).map(|(a, b)| a / b).collect();
        let name = format!(
            "{}: {} with {} of {} with {}",
            self.figure.name(),
            self.what.0,
            self.what.1,
            self.of.0,
            self.of.1
        );
        Some(Ratio { name, wanted: self.wanted, spread: Spread::of(&each) })
    }
}

impl Figure {
    fn of(self, figures: &Summary) -> &[f64] {
        match self {
            Figure::P50 => &figures.each_p50_us,
            Figure::P99 => &figures.each_p99_us,
            Figure::Rate => &figures.each_writes_per_s,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Figure::P50 => "p50",
            Figure::P99 => "p99",
            Figure::Rate => "writes/s",
        }
    }
}

impl Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::AtMost(bound) => write!(f, "at most {bound:.2}"),
            Wanted::AtLeast(bound) => write!(f, "at least {bound:.2}"),
        }
    }
}

impl Ratio {
    pub(crate) fn is_met(&self) -> bool {
        match self.wanted {
            Wanted::AtMost(bound) => self.spread.median <= bound,
            Wanted::AtLeast(bound) => self.spread.median >= bound,
        }
    }
}

pub(crate) fn print_ratios(ratios: &[Ratio]) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["ratio, paired by round", "wanted", "median", "(spread)", "met"]);
    for ratio in ratios {
        table.add_row([
            ratio.name.clone(),
            ratio.wanted.to_string(),
            format!("{:.2}", ratio.spread.median),
            format!("{:.2} to {:.2}", ratio.spread.low, ratio.spread.high),
            if ratio.is_met() { "yes" } else { "no" }.to_owned(),
        ]);
    }
    println!("{table}");
}
