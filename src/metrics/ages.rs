//! A histogram of ages with logarithmic buckets. Its size is bounded, and it takes no memory before the first age.
//!
//! hdrhistogram instead would add two crates to the bare library's 44, needs a lock around each age, and
//! cannot hold the several counters that [`advice`](crate::memory::advice) keeps for each bucket. quick_cache has none.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::Counter;
#[cfg(any(test, feature = "metrics"))]
use crate::metrics::{Export, Figure, FigureValue};

/// The number of buckets for each doubling of an age, as a power of two. A bucket's width is at most an eighth of its
/// age.
const PER_DOUBLING_BITS: u32 = 3;

/// The range of the buckets: from a microsecond to 17 years. Younger and older ages are in the first and the last one.
const DOUBLINGS: u32 = 49;

/// The number of buckets.
pub const BUCKETS: usize = 1 + ((DOUBLINGS as usize) << PER_DOUBLING_BITS);

/// A `T` for each bucket of ages, allocated with the first age.
#[derive(Debug)]
pub struct AgeBuckets<T>(OnceLock<Box<[T]>>);

impl<T> Default for AgeBuckets<T> {
    fn default() -> Self {
        AgeBuckets(OnceLock::new())
    }
}

impl<T: Default> AgeBuckets<T> {
    /// Returns the bucket of an age.
    pub fn of(&self, age: Duration) -> &T {
        // A cache that serves nothing stale pays no memory for its ages.
        let buckets = self.0.get_or_init(|| (0..BUCKETS).map(|_| T::default()).collect());
        buckets.get(index_of(age)).expect("every index is below the number of buckets")
    }

    /// All buckets by rising age; none if there has been no age.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.get().into_iter().flatten()
    }
}

/// The position of an age's bucket.
fn index_of(age: Duration) -> usize {
    let micros = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
    // Zero has no logarithm.
    let Some(doubling) = micros.checked_ilog2() else { return 0 };
    // The bits that follow the leading one say which part of the doubling it is.
    let part = (u128::from(micros) << PER_DOUBLING_BITS >> doubling) - (1 << PER_DOUBLING_BITS);
    let index = 1 + (u128::from(doubling) << PER_DOUBLING_BITS) + part;
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// The age at which a bucket ends, in microseconds.
fn end_of(index: usize) -> u64 {
    let parts = 1_u128 << PER_DOUBLING_BITS;
    let (doubling, part) =
        (index.saturating_sub(1) >> PER_DOUBLING_BITS, index.saturating_sub(1) as u128 % parts);
    let end = if index == 0 { 1 } else { (parts + part + 1) << doubling >> PER_DOUBLING_BITS };
    u64::try_from(end).unwrap_or(u64::MAX)
}

/// The ages of values that were served stale.
#[derive(Debug, Default)]
pub struct StaleAges {
    buckets: AgeBuckets<Counter>,
    longest_us: AtomicU64,
}

/// A summary of ages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct AgeSummary {
    /// The number of ages.
    pub count: u64,
    /// The median; at most an eighth too long.
    pub p50: Duration,
    /// The 99th percentile; at most an eighth too long.
    pub p99: Duration,
    /// The longest age, exactly.
    pub longest: Duration,
}

/// As gauges, by quantile. Their number is that of the stale hits, which are counted by reason.
#[cfg(any(test, feature = "metrics"))]
impl Export for AgeSummary {
    fn export(&self, name: &'static str, label: &[&'static str], to: &mut Vec<Figure>) {
        let AgeSummary { count: _, p50, p99, longest } = *self;
        let key = label.first().copied().unwrap_or("quantile");
        let figure =
            |(quantile, age)| Figure { name, label: Some((key, quantile)), value: FigureValue::Time(age) };
        to.extend([("0.5", p50), ("0.99", p99), ("1", longest)].map(figure));
    }
}

impl StaleAges {
    /// Counts an age.
    pub fn note(&self, age: Duration) {
        self.buckets.of(age).add(1);
        // The buckets are too coarse for the longest age, which is exact.
        self.longest_us.fetch_max(u64::try_from(age.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Summarises the ages so far.
    #[must_use]
    pub fn value(&self) -> AgeSummary {
        let counts: Vec<u64> = self.buckets.iter().map(Counter::value).collect();
        // Summed from the buckets that were read, so that the ranks fit the count while others count on.
        let (count, longest_us) = (counts.iter().sum(), self.longest_us.load(Ordering::Relaxed));
        let percentile = |percent: u64| {
            // In 128 bits: a count times a hundred may not fit into 64.
            let (rank, mut seen) = ((u128::from(count) * u128::from(percent)).div_ceil(100), 0_u128);
            let reaches = |&(_, some): &(usize, &u64)| {
                seen += u128::from(*some);
                seen >= rank && rank > 0
            };
            let end = counts.iter().enumerate().find(reaches).map_or(0, |(index, _)| end_of(index));
            // The end of a bucket may lie above the longest age in it.
            Duration::from_micros(end.min(longest_us))
        };
        AgeSummary {
            count,
            p50: percentile(50),
            p99: percentile(99),
            longest: Duration::from_micros(longest_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_age_is_in_a_bucket_that_ends_at_most_an_eighth_above_it() {
        let mut before = 0;
        for shift in 0..DOUBLINGS {
            for part in [0, 1, 3, 4, 7] {
                let micros = (1_u64 << shift) + ((part << shift) >> PER_DOUBLING_BITS);
                let index = index_of(Duration::from_micros(micros));
                assert!(index >= before && index < BUCKETS, "{micros}: {index} after {before}");
                let end = end_of(index);
                assert!(
                    end >= micros && end <= micros + micros / 8 + 1,
                    "{micros} is in a bucket up to {end}"
                );
                before = index;
            }
        }
        assert_eq!((index_of(Duration::ZERO), index_of(Duration::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn ages_are_summed_up_by_rank() {
        let ages = StaleAges::default();
        assert_eq!(ages.value(), AgeSummary::default());
        (1..=100).for_each(|seconds| ages.note(Duration::from_secs(seconds)));
        let AgeSummary { count, p50, p99, longest } = ages.value();
        assert_eq!((count, longest), (100, Duration::from_secs(100)));
        assert!(p50 >= Duration::from_secs(50) && p50 <= Duration::from_secs(57), "{p50:?}");
        assert!(p99 >= Duration::from_secs(99) && p99 <= longest, "{p99:?}");
    }
}
