//! Ages counted on a logarithmic scale: what it takes is bounded, whatever the ages are, and nothing until one comes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::Counter;

/// Into how many buckets each doubling of an age is divided: a bucket is at most an eighth wide.
const PER_DOUBLING_BITS: u32 = 3;

/// From a microsecond to 17 years; what is younger or older is in the first or the last bucket.
const DOUBLINGS: u32 = 49;

/// How many buckets there are.
pub const BUCKETS: usize = 1 + ((DOUBLINGS as usize) << PER_DOUBLING_BITS);

/// Something for each bucket of ages.
#[derive(Debug)]
pub struct AgeBuckets<T>(OnceLock<Box<[T]>>);

impl<T> Default for AgeBuckets<T> {
    fn default() -> Self {
        AgeBuckets(OnceLock::new())
    }
}

impl<T: Default> AgeBuckets<T> {
    /// The bucket of this age.
    pub fn of(&self, age: Duration) -> &T {
        let buckets = self.0.get_or_init(|| (0..BUCKETS).map(|_| T::default()).collect());
        buckets.get(index_of(age)).expect("every index is below the number of buckets")
    }

    /// All buckets by age, or none if there has been no age.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.get().into_iter().flatten()
    }
}

fn index_of(age: Duration) -> usize {
    let micros = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
    let Some(doubling) = micros.checked_ilog2() else { return 0 };
    // What follows the leading bit.
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

/// The ages of what was served stale.
#[derive(Debug, Default)]
pub struct StaleAges {
    buckets: AgeBuckets<Counter>,
    longest_us: AtomicU64,
}

/// Ages in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgeSummary {
    /// How many there were.
    pub count: u64,
    /// What half of them did not exceed, up to an eighth too long.
    pub p50: Duration,
    /// What 99 in 100 did not exceed, likewise.
    pub p99: Duration,
    /// The longest one.
    pub longest: Duration,
}

impl StaleAges {
    /// Counts one.
    pub fn note(&self, age: Duration) {
        self.buckets.of(age).add(1);
        self.longest_us.fetch_max(u64::try_from(age.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What there has been so far.
    #[must_use]
    pub fn value(&self) -> AgeSummary {
        let counts: Vec<u64> = self.buckets.iter().map(Counter::value).collect();
        let (count, longest_us) = (counts.iter().sum(), self.longest_us.load(Ordering::Relaxed));
        let below = |percent: u64| {
            let (rank, mut seen) = ((u128::from(count) * u128::from(percent)).div_ceil(100), 0_u128);
            let reaches = |&(_, some): &(usize, &u64)| {
                seen += u128::from(*some);
                seen >= rank && rank > 0
            };
            let end = counts.iter().enumerate().find(reaches).map_or(0, |(index, _)| end_of(index));
            Duration::from_micros(end.min(longest_us))
        };
        AgeSummary { count, p50: below(50), p99: below(99), longest: Duration::from_micros(longest_us) }
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
