//! Forebay's targets beside the bare calls and the best peer, and the measured ratios.
//!
//! Each is a ratio within one round; told are the median over the rounds, and the lowest and highest.

use crate::figures::Spread;
use crate::peers::registry::is_peer;
use crate::results::{Id, Results, Row};
use crate::subject::{Class, Face};

pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) bound: Bound,
    pub(crate) ratio: Spread,
}

#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    pub(crate) fn met(&self) -> bool {
        match self.bound {
            Bound::AtMost(bound) => self.ratio.median <= bound,
            Bound::AtLeast(bound) => self.ratio.median >= bound,
        }
    }

    /// The cells of its row.
    pub(crate) fn columns(&self) -> [String; 5] {
        let (bound, missing) = match self.bound {
            Bound::AtMost(bound) => (format!("at most {bound:.2}"), self.ratio.median / bound - 1.0),
            Bound::AtLeast(bound) => (format!("at least {bound:.2}"), 1.0 - self.ratio.median / bound),
        };
        let verdict =
            if self.met() { "met".to_owned() } else { format!("missed by {:.0} %", missing * 100.0) };
        let Spread { median, low, high } = self.ratio;
        [self.what.clone(), bound, format!("{median:.2}"), format!("{low:.2} to {high:.2}"), verdict]
    }
}

#[derive(Clone, Copy)]
enum Figure {
    P50,
    P99,
    Rate,
}

impl Figure {
    fn name(self) -> &'static str {
        match self {
            Figure::P50 => "p50",
            Figure::P99 => "p99",
            Figure::Rate => "writes/s",
        }
    }

    fn each(self, row: &Row) -> &[f64] {
        match self {
            Figure::P50 => &row.figures.each_p50_us,
            Figure::P99 => &row.figures.each_p99_us,
            Figure::Rate => &row.figures.each_writes_per_s,
        }
    }

    fn median(self, row: &Row) -> f64 {
        Spread::of(self.each(row)).median
    }
}

/// All targets that the rows can tell of.
pub(crate) fn targets(results: &Results) -> Vec<Target> {
    let mut sizes: Vec<usize> = results.rows.iter().map(|row| row.value_bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes.iter().flat_map(|&value_bytes| Finder { results, value_bytes }.all()).collect()
}

struct Finder<'a> {
    results: &'a Results,
    value_bytes: usize,
}

impl Finder<'_> {
    fn all(&self) -> Vec<Target> {
        let (sync, buffered) = (Class::Synced, Class::Unsynced);
        let (threads, tasks) = (Face::Threads, Face::Tasks);
        let mut found = Vec::new();
        for face in [tasks, threads] {
            let ours = self.row("forebay", sync, face, 1);
            let raw = self.row("raw", sync, threads, 1);
            found.push(self.target(ours, raw, Figure::P50, Bound::AtMost(1.10)));
            found.push(self.target(ours, raw, Figure::P99, Bound::AtMost(1.25)));
        }
        let ours = self.row("forebay", sync, threads, 1);
        found.push(self.target(ours, self.best(sync, Figure::P50, 1), Figure::P50, Bound::AtMost(1.0)));
        for writers in [16, 64, 256, 1024] {
            let ours = self.row("forebay", sync, tasks, writers);
            let ceiling = self.row("raw-group", sync, tasks, writers);
            found.push(self.target(ours, ceiling, Figure::Rate, Bound::AtLeast(0.85)));
        }
        for writers in [16, 64, 256] {
            let ours = self.row("forebay", sync, threads, writers);
            let best = self.best(sync, Figure::Rate, writers);
            found.push(self.target(ours, best, Figure::Rate, Bound::AtLeast(1.0)));
        }
        let bare = self.row("raw", buffered, threads, 1);
        let ours = self.row("forebay", buffered, threads, 1);
        found.push(self.target(ours, bare, Figure::P50, Bound::AtMost(1.5)));
        let four = self.row("forebay", buffered, threads, 4);
        found.push(self.target(
            four,
            self.row("raw", buffered, threads, 4),
            Figure::Rate,
            Bound::AtLeast(2.0),
        ));
        for writers in [1, 4, 16, 64, 256] {
            let ours = self.row("forebay", buffered, threads, writers);
            let best = self.best(buffered, Figure::Rate, writers);
            found.push(self.target(ours, best, Figure::Rate, Bound::AtLeast(1.0)));
            let handing = self.best_of(buffered, Figure::Rate, writers, |row| self.hands_over(row));
            if best.map(|row| &row.what) != handing.map(|row| &row.what) {
                found.push(self.target(ours, handing, Figure::Rate, Bound::AtLeast(1.0)));
            }
        }
        let through = self.row("forebay-through", sync, threads, 1);
        found.push(self.target(
            through,
            self.row("sled", sync, threads, 1),
            Figure::P50,
            Bound::AtMost(1.10),
        ));
        let through = self.row("forebay-through", sync, threads, 64);
        found.push(self.target(
            through,
            self.row("sled", sync, threads, 64),
            Figure::Rate,
            Bound::AtLeast(10.0),
        ));
        found.into_iter().flatten().collect()
    }

    fn row(&self, what: &str, class: Class, face: Face, writers: usize) -> Option<&Row> {
        self.results.row(Id { what, class, face, writers, value_bytes: self.value_bytes })
    }

    /// The peer whose median is the best. With threads: no peer has an async call that does more.
    fn best(&self, class: Class, figure: Figure, writers: usize) -> Option<&Row> {
        self.best_of(class, figure, writers, |_| true)
    }

    /// True if it was seen to write in each put, so that the put survives the end of the process.
    fn hands_over(&self, row: &Row) -> bool {
        let calls = self.results.calls.iter().find(|calls| {
            (calls.what.as_str(), calls.durability.as_str()) == (row.what.as_str(), row.durability.as_str())
        });
        calls.is_some_and(|calls| calls.writes_per_put() >= 0.99)
    }

    fn best_of(
        &self,
        class: Class,
        figure: Figure,
        writers: usize,
        also: impl Fn(&Row) -> bool,
    ) -> Option<&Row> {
        let rows = self.results.rows.iter().filter(|row| {
            row.durability == class.name()
                && row.face == Face::Threads.name()
                && (row.writers, row.value_bytes) == (writers, self.value_bytes)
                && is_peer(&row.what)
                && also(row)
        });
        let by = |a: &&Row, b: &&Row| figure.median(a).total_cmp(&figure.median(b));
        match figure {
            Figure::Rate => rows.max_by(by),
            Figure::P50 | Figure::P99 => rows.min_by(by),
        }
    }

    fn target(
        &self,
        ours: Option<&Row>,
        other: Option<&Row>,
        figure: Figure,
        bound: Bound,
    ) -> Option<Target> {
        let (ours, other) = (ours?, other?);
        let (mine, theirs) = (figure.each(ours), figure.each(other));
        let each: Vec<f64> = mine.iter().zip(theirs).map(|(mine, theirs)| mine / theirs).collect();
        let what = format!(
            "{}: {}, {}, of {}, {}; {} B, {}",
            figure.name(),
            ours.what,
            callers(ours),
            other.what,
            callers(other),
            ours.value_bytes,
            ours.durability
        );
        Some(Target { what, bound, ratio: Spread::of(&each) })
    }
}

fn callers(row: &Row) -> String {
    let one = if row.writers == 1 { row.face.trim_end_matches('s') } else { row.face.as_str() };
    format!("{} {one}", row.writers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(bound: Bound, each: &[f64]) -> Target {
        Target { what: "a ratio".to_owned(), bound, ratio: Spread::of(each) }
    }

    #[test]
    fn a_target_is_met_by_the_median_and_says_by_how_much_it_is_missed() {
        let slow = target(Bound::AtMost(1.10), &[1.0, 1.21, 3.0]);
        assert_eq!(slow.columns()[1..], ["at most 1.10", "1.21", "1.00 to 3.00", "missed by 10 %"]);
        assert!(target(Bound::AtMost(1.10), &[1.0, 1.1, 3.0]).met());
        let few = target(Bound::AtLeast(2.0), &[0.5, 1.0, 4.0]);
        assert_eq!(few.columns()[4], "missed by 50 %");
        assert!(target(Bound::AtLeast(2.0), &[0.5, 2.0, 4.0]).met());
    }
}
