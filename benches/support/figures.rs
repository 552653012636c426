//! The results of a benchmark of writes: the figures of one measurement, and a line of the table and of
//! the file, which says what came out of all rounds.
//!
//! Part of two crates, `write_latency` and the one in `benches/peers/`, so that their results have one form. Latencies
//! are microseconds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The columns of [`Summary::cells`].
pub(crate) const COLUMNS: [&str; 6] = ["p50 us", "(spread)", "p99 us", "p99.9 us", "writes/s", "(spread)"];

/// The quantiles that are kept, in thousandths: close together towards the ends, where a few writes make the curve.
const PER_MILLE: [u32; 35] = [
    10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 250, 300, 350, 400, 450, 500, 550, 600, 650, 700, 750, 800,
    850, 900, 930, 950, 960, 970, 980, 985, 990, 993, 995, 997, 999,
];

/// One measurement.
pub(crate) struct Taken {
    /// The latency of each write that counts.
    pub(crate) latencies_ns: Vec<u64>,
    /// Within what time they were made.
    pub(crate) took: Duration,
}

/// The figures of one measurement.
pub(crate) struct Figures {
    /// In the order of [`PER_MILLE`].
    quantiles_us: [f64; PER_MILLE.len()],
    writes_per_s: f64,
}

impl Taken {
    pub(crate) fn figures(mut self) -> Figures {
        self.latencies_ns.sort_unstable();
        let all = &self.latencies_ns;
        // The smallest latency that at least so many of a thousand writes did not exceed.
        let quantile_us = |per_mille: u32| {
            let rank = (all.len() * per_mille as usize).div_ceil(1000).max(1);
            all.get(rank - 1).map_or(f64::NAN, |&ns| ns as f64 / 1000.0)
        };
        Figures {
            quantiles_us: PER_MILLE.map(quantile_us),
            writes_per_s: all.len() as f64 / self.took.as_secs_f64(),
        }
    }
}

/// The figures over all rounds: medians, the lowest and the highest round, and each round's own figures, by which
/// ratios are paired.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) writes_per_s: f64,
    pub(crate) rounds: usize,
    pub(crate) p50_us_low: f64,
    pub(crate) p50_us_high: f64,
    pub(crate) writes_per_s_low: f64,
    pub(crate) writes_per_s_high: f64,
    pub(crate) each_p50_us: Vec<f64>,
    pub(crate) each_p99_us: Vec<f64>,
    pub(crate) each_writes_per_s: Vec<f64>,
    /// The distribution, without the mood of a single round: thousandths, and the median over the rounds of what so
    /// many of a thousand writes did not exceed.
    pub(crate) quantiles_us: Vec<(u32, f64)>,
}

impl Summary {
    pub(crate) fn of(rounds: &[Figures]) -> Summary {
        let quantile = |per_mille: u32| -> Vec<f64> {
            let place = PER_MILLE.iter().position(|kept| *kept == per_mille);
            let of = |round: &Figures| place.and_then(|place| round.quantiles_us.get(place)).copied();
            rounds.iter().map(|round| rounded(of(round).unwrap_or(f64::NAN))).collect()
        };
        let (p50, p99) = (quantile(500), quantile(990));
        let rate: Vec<f64> = rounds.iter().map(|round| rounded(round.writes_per_s)).collect();
        let (p50_spread, rate_spread) = (Spread::of(&p50), Spread::of(&rate));
        let median = |per_mille: u32| Spread::of(&quantile(per_mille)).median;
        Summary {
            p50_us: p50_spread.median,
            p99_us: Spread::of(&p99).median,
            p999_us: median(999),
            writes_per_s: rate_spread.median,
            rounds: rounds.len(),
            p50_us_low: p50_spread.low,
            p50_us_high: p50_spread.high,
            writes_per_s_low: rate_spread.low,
            writes_per_s_high: rate_spread.high,
            each_p50_us: p50,
            each_p99_us: p99,
            each_writes_per_s: rate,
            quantiles_us: PER_MILLE.into_iter().map(|per_mille| (per_mille, median(per_mille))).collect(),
        }
    }

    /// The cells of its row, under [`COLUMNS`].
    pub(crate) fn cells(&self) -> [String; 6] {
        [
            format!("{:.1}", self.p50_us),
            format!("{:.1} to {:.1}", self.p50_us_low, self.p50_us_high),
            format!("{:.1}", self.p99_us),
            format!("{:.1}", self.p999_us),
            format!("{:.0}", self.writes_per_s),
            format!("{:.0} to {:.0}", self.writes_per_s_low, self.writes_per_s_high),
        ]
    }
}

fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// The middle, the lowest and the highest of some figures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Not a number for no figures. Of an even number the higher of the two in the middle.
    pub(crate) fn of(figures: &[f64]) -> Spread {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |place: Option<&f64>| place.copied().unwrap_or(f64::NAN);
        Spread { median: at(sorted.get(sorted.len() / 2)), low: at(sorted.first()), high: at(sorted.last()) }
    }
}
