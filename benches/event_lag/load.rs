//! The writers, and what is made of many durations.

use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use forebay::{Cache, Seq};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

pub(crate) const VALUE_BYTES: usize = 100;
/// Keys that the writes go through.
pub(crate) const KEYS: u64 = 100_000;
/// The longest duration that is told from longer ones.
const DURATION_MAX_NS: u64 = 3_600_000_000_000;

/// So many writes, so many a second, by so many writers in turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paced {
    pub(crate) rate: u64,
    pub(crate) writers: u64,
    pub(crate) writes: u64,
}

/// One write that was acknowledged.
pub(crate) struct Write {
    /// Its place among all writes that were due.
    pub(crate) number: u64,
    pub(crate) seq: Seq,
    pub(crate) committed: Instant,
    /// From when it was due if its writer was busy then, else from the call.
    pub(crate) took: Duration,
}

fn value(number: u64) -> Bytes {
    Bytes::from(vec![number.to_le_bytes()[0]; VALUE_BYTES])
}

impl Paced {
    /// Writes from `start` on. When a write is due the clock says, whole milliseconds apart, and not how long others
    /// took: a writer that is late writes at once.
    pub(crate) async fn write(self, cache: &Cache<u64, Bytes>, start: Instant) -> Result<Vec<Write>> {
        let mut writers = JoinSet::new();
        for first in 0..self.writers {
            let cache = cache.clone();
            let step = usize::try_from(self.writers)?;
            writers.spawn(async move {
                let mut done = Vec::new();
                for number in (first..self.writes).step_by(step) {
                    let due = start + Duration::from_millis(number * 1_000 / self.rate);
                    let is_late = Instant::now() >= due;
                    if !is_late {
                        tokio::time::sleep_until(due.into()).await;
                    }
                    let begun = if is_late { due } else { Instant::now() };
                    let seq = cache.put(&(number % KEYS), value(number)).await?.seq();
                    let committed = Instant::now();
                    done.push(Write { number, seq, committed, took: committed.duration_since(begun) });
                }
                anyhow::Ok(done)
            });
        }
        let mut all = Vec::new();
        while let Some(done) = writers.join_next().await {
            all.extend(done??);
        }
        all.sort_unstable_by_key(|write| write.seq);
        Ok(all)
    }
}

/// Lets so many writers write as fast as each is answered. Returns what each write took, and how many there were a
/// second.
pub(crate) async fn write_closed(
    cache: &Cache<u64, Bytes>,
    writers: u64,
    time: Duration,
) -> Result<(Vec<Duration>, f64)> {
    let start = Instant::now();
    let mut running = JoinSet::new();
    for first in 0..writers {
        let cache = cache.clone();
        let step = usize::try_from(writers)?;
        running.spawn(async move {
            let mut took = Vec::new();
            for number in (first..u64::MAX).step_by(step) {
                let begun = Instant::now();
                if begun.duration_since(start) >= time {
                    break;
                }
                let _receipt = cache.put(&(number % KEYS), value(number)).await?;
                took.push(begun.elapsed());
            }
            anyhow::Ok(took)
        });
    }
    let mut all = Vec::new();
    while let Some(took) = running.join_next().await {
        all.extend(took??);
    }
    let per_s = all.len() as f64 / start.elapsed().as_secs_f64();
    Ok((all, per_s))
}

/// Returns a percentile, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranks {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

impl Ranks {
    pub(crate) fn of(durations: impl IntoIterator<Item = Duration>) -> Result<Ranks> {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, DURATION_MAX_NS, 3)?;
        for duration in durations {
            histogram.record(u64::try_from(duration.as_nanos())?.max(1))?;
        }
        let ms = |ns: u64| ns as f64 / 1e6;
        let at = |quantile| ms(histogram.value_at_quantile(quantile));
        Ok(Ranks { p50_ms: at(0.5), p99_ms: at(0.99), p999_ms: at(0.999), max_ms: ms(histogram.max()) })
    }
}

/// Median, lowest and highest.
pub(crate) fn spread(figures: &[f64]) -> [f64; 3] {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
    [at(sorted.len() / 2), at(0), at(sorted.len().saturating_sub(1))]
}
