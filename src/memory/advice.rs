//! Advice on the time to live: an estimate of the share of stale serves, from the reloads that happen anyway.
//!
//! A reload at age `a` shows of one copy whether its source had changed within `a`, and not when: the change came
//! before `a`, or will come after it. From such answers the chance `F(a)` that a copy of age `a` is stale is estimated
//! by its maximum likelihood without a model, which for answers of this kind is the rising sequence nearest to their
//! shares (pool adjacent violators; Ayer, Brunk, Ewing, Reid, Silverman, "An Empirical Distribution Function for
//! Sampling with Incomplete Information", 1955). Between the ages that were seen the hazard is assumed constant. Reads
//! are assumed to fall evenly on a copy's life, so a time to live `t` serves the share `1/t` times the integral of `F`
//! from 0 to `t` stale.
//!
//! The manual's page on figures lists the assumptions.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ids::Seq;
use crate::metrics::Counter;
use crate::metrics::ages::AgeBuckets;

/// The number of reloads below which nothing is advised.
pub const RELOADS_MIN: u64 = 30;

/// The number of lives by which the spread of lives by jitter is approximated.
const LIVES: u32 = 16;

/// The reloads of one cache, counted by the age of the copy that they replaced.
#[derive(Debug, Default)]
pub struct ReloadCounts {
    unchanged: Counter,
    changed: Counter,
    buckets: AgeBuckets<ReloadBucket>,
}

/// The reloads of about one age whose copies were watched and served.
#[derive(Debug, Default)]
struct ReloadBucket {
    reloads: Counter,
    changed: Counter,
    /// Serves of their copies, and of those copies that had become stale.
    serves: Counter,
    serves_changed: Counter,
    age_us: Counter,
}

/// Advice on a cache's time to live from its reloads so far. Shares are of the reads that memory answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct TtlAdvice {
    /// The share of stale serves that was asked for.
    pub wanted_share: f64,
    /// The longest time to live that gives no greater share. `None` as long as fewer than 30 reloads have been
    /// compared.
    pub time_to_live: Option<Duration>,
    /// True if longer ones may give no greater share either: no older copy was seen.
    pub is_longest_seen: bool,
    /// The share that the cache's present time to live gives. `None` without one, and with too few reloads.
    pub share_now: Option<f64>,
    /// The number of reloads that this is based on: those of copies that were watched and served.
    pub reloads: u64,
    /// The number of them that found a change.
    pub changed: u64,
}

impl ReloadCounts {
    /// Counts a reload of a copy of this age, and the serves of the copy if they were counted.
    pub fn note(&self, age: Duration, serves: Option<u64>, changed: bool) {
        if changed { &self.changed } else { &self.unchanged }.add(1);
        // A copy that was never served says nothing about the share of stale serves.
        let Some(serves) = serves.filter(|serves| *serves > 0) else { return };
        let bucket = self.buckets.of(age);
        bucket.reloads.add(1);
        bucket.changed.add(u64::from(changed));
        bucket.serves.add(serves);
        bucket.serves_changed.add(if changed { serves } else { 0 });
        bucket.age_us.add(u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
    }

    /// Returns the number of reloads that found no change, and of those that found one.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.unchanged.value(), self.changed.value())
    }

    /// Estimates from them, for a cache whose entries lose up to the share `jitter` of their life.
    #[must_use]
    pub fn advise(&self, wanted_share: f64, time_to_live: Option<Duration>, jitter: f64) -> TtlAdvice {
        let seen: Vec<AgeSample> = self.buckets.iter().filter_map(AgeSample::of).collect();
        let (reloads, changed) = seen
            .iter()
            .fold((0, 0), |(reloads, changed), seen| (reloads + seen.reloads, changed + seen.changed));
        let nothing = TtlAdvice { wanted_share, reloads, changed, ..TtlAdvice::default() };
        // Fewer would make an estimate of a share out of chance.
        if reloads < RELOADS_MIN {
            return nothing;
        }
        let curve = Staleness::of(&seen, jitter);
        let (longest, is_longest_seen) = curve.longest(wanted_share);
        TtlAdvice {
            time_to_live: Some(Duration::try_from_secs_f64(longest).unwrap_or(Duration::MAX)),
            is_longest_seen,
            share_now: time_to_live.map(|life| curve.share(life.as_secs_f64())),
            ..nothing
        }
    }
}

/// A reading of a [`ReloadBucket`].
#[derive(Clone, Copy, Debug)]
struct AgeSample {
    age_s: f64,
    reloads: u64,
    changed: u64,
    serves: u64,
    serves_changed: u64,
}

impl AgeSample {
    fn of(bucket: &ReloadBucket) -> Option<AgeSample> {
        let (reloads, changed) = (bucket.reloads.value(), bucket.changed.value());
        let (serves, serves_changed) = (bucket.serves.value(), bucket.serves_changed.value());
        let age_s = bucket.age_us.value() as f64 / 1e6 / reloads as f64;
        // Ages without a reload have no mean.
        (reloads > 0).then_some(AgeSample { age_s, reloads, changed, serves, serves_changed })
    }
}

/// The chance of a copy to be stale by its age, as a cumulative hazard that is straight from corner to corner.
#[derive(Debug)]
struct Staleness {
    /// Age in seconds, and hazard. Both rise, from (0, 0).
    corners: Vec<(f64, f64)>,
    /// The largest share of a life that jitter cuts.
    jitter: f64,
}

/// The reloads of neighbouring ages.
struct PooledAges {
    reloads: u64,
    serves: u64,
    stale: u64,
    ages: usize,
}

impl PooledAges {
    /// True if a smaller share of it is stale.
    fn is_below(&self, other: &PooledAges) -> bool {
        // In whole numbers: rounded quotients could order two equal shares either way.
        u128::from(self.stale) * u128::from(other.serves) < u128::from(other.stale) * u128::from(self.serves)
    }

    fn with(self, other: &PooledAges) -> PooledAges {
        PooledAges {
            reloads: self.reloads + other.reloads,
            serves: self.serves + other.serves,
            stale: self.stale + other.stale,
            ages: self.ages + other.ages,
        }
    }

    /// Returns the share of stale serves. Half a reload with a change and half a one without are added, since what was
    /// never seen is not impossible.
    fn share(&self) -> f64 {
        let each = self.serves as f64 / self.reloads as f64;
        (self.stale as f64 + each / 2.0) / (self.serves as f64 + each)
    }
}

impl Staleness {
    fn of(seen: &[AgeSample], jitter: f64) -> Staleness {
        // Neighbours that fall instead of rising are pooled.
        let mut pools: Vec<PooledAges> = Vec::new();
        for one in seen {
            let mut pool =
                PooledAges { reloads: one.reloads, serves: one.serves, stale: one.serves_changed, ages: 1 };
            // Pooling may make the pool before it fall, too, so it goes on downwards.
            while let Some(below) = pools.pop_if(|below| !below.is_below(&pool)) {
                pool = pool.with(&below);
            }
            pools.push(pool);
        }
        let (mut corners, mut highest) = (vec![(0.0, 0.0)], 0.0_f64);
        let mut ages = seen.iter().map(|one| one.age_s);
        for pool in pools {
            // The half reloads that `share` adds could make a pool fall below the one before it.
            highest = highest.max(-(1.0 - pool.share()).ln());
            corners.extend(ages.by_ref().take(pool.ages).map(|age_s| (age_s, highest)));
        }
        Staleness { corners, jitter }
    }

    /// Returns the share of serves that are stale if copies live so long, less their jitter.
    fn share(&self, life_s: f64) -> f64 {
        let lives =
            (0..LIVES).map(|one| life_s * (1.0 - self.jitter * (f64::from(one) + 0.5) / f64::from(LIVES)));
        let (stale_s, all_s) = lives
            .fold((0.0, 0.0), |(stale_s, all_s), life_s| (stale_s + self.stale_s(life_s), all_s + life_s));
        // A life of zero serves nothing, stale or not.
        if all_s > 0.0 { (stale_s / all_s).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Returns for how many seconds a copy is stale, on average, if it lives so long.
    fn stale_s(&self, life_s: f64) -> f64 {
        let (mut stale_s, mut end) = (0.0, (0.0, 0.0));
        for pair in self.corners.windows(2) {
            let &[from, to] = pair else { continue };
            let until = to.0.min(life_s);
            // Also passes over two corners of one age, between which the slope would divide by zero.
            if until > from.0 {
                stale_s += stale_within(from.1, (to.1 - from.1) / (to.0 - from.0), until - from.0);
            }
            end = to;
        }
        // Beyond the oldest age seen the mean hazard so far is assumed to go on.
        if life_s > end.0 && end.0 > 0.0 {
            stale_s += stale_within(end.1, end.1 / end.0, life_s - end.0);
        }
        stale_s
    }

    /// Returns the longest life that gives no more than this share, and true if no longer one was seen.
    fn longest(&self, share: f64) -> (f64, bool) {
        let seen = self.corners.last().map_or(0.0, |corner| corner.0);
        // Beyond the oldest age seen nothing is known, so no longer life is advised.
        if self.share(seen) <= share {
            return (seen, true);
        }
        // The share rises with the life, so halving the interval finds it.
        let (mut gives_less, mut gives_more) = (0.0, seen);
        // 60 halvings are more than the digits of a double need.
        for _ in 0..60 {
            let middle = (gives_less + gives_more) / 2.0;
            if self.share(middle) <= share { gives_less = middle } else { gives_more = middle }
        }
        (gives_less, false)
    }
}

/// The integral of `1 - exp(-hazard)` over a time in which the hazard rises evenly.
fn stale_within(hazard: f64, per_s: f64, time_s: f64) -> f64 {
    let rise = per_s * time_s;
    // `(1 - exp(-rise)) / rise`, which is 1 where nothing rises.
    // Below this the quotient would lose its digits.
    let kept = if rise > 1e-9 { -(-rise).exp_m1() / rise } else { 1.0 - rise / 2.0 };
    time_s * (1.0 - (-hazard).exp() * kept)
}

/// One copy of so many has its serves counted, since that costs memory beside the entry and time at each hit.
const WATCHED_ONE_IN: u64 = 8;

/// A function that returns whether two values are equal, or `None` if it cannot tell.
pub type CompareValues<V> = Box<dyn Fn(&V, &V) -> Option<bool> + Send + Sync>;

/// A value to compare, with its version.
#[derive(Clone, Copy)]
pub(crate) struct VersionedRef<'a, V> {
    pub(crate) value: Option<&'a V>,
    /// Zero if unknown.
    pub(crate) version: Seq,
}

/// A copy that a load is about to replace.
pub(crate) struct ReplacedCopy<V> {
    age: Duration,
    serves: Option<u64>,
    changed: Changed<V>,
}

enum Changed<V> {
    Known(bool),
    /// To be compared with the loaded value when no lock is held any more.
    IfDifferentFrom(V),
}

/// The reloads of one cache, and which copies are watched.
pub(crate) struct ReloadWatch<V> {
    pub(crate) reloads: ReloadCounts,
    /// The number of copies that have come since the cache was opened.
    copies: AtomicU64,
    /// Compares values. Without it only versions and absences are compared.
    pub(crate) same: Option<CompareValues<V>>,
}

impl<V> Default for ReloadWatch<V> {
    fn default() -> Self {
        ReloadWatch { reloads: ReloadCounts::default(), copies: AtomicU64::new(0), same: None }
    }
}

impl<V: Clone> ReloadWatch<V> {
    /// True if the serves of a copy that comes now are to be counted.
    pub(crate) fn watches_next(&self) -> bool {
        // Relaxed: it does not matter which copy of eight is watched.
        self.copies.fetch_add(1, Ordering::Relaxed).is_multiple_of(WATCHED_ONE_IN)
    }

    /// Notes down a copy of this age that is about to be replaced, and its serves if they were counted. Runs under
    /// locks, so it clones the value instead of comparing it. `None` if nothing can be compared.
    pub(crate) fn replaced(
        &self,
        age: Duration,
        serves: Option<u64>,
        there: VersionedRef<'_, V>,
        loaded: VersionedRef<'_, V>,
    ) -> Option<ReplacedCopy<V>> {
        let have_versions = there.version > Seq::ZERO && loaded.version > Seq::ZERO;
        let changed = match (there.value, loaded.value) {
            // Versions decide without the user's code.
            _ if have_versions => Changed::Known(there.version != loaded.version),
            (None, None) => Changed::Known(false),
            // Cloned for later: the comparison encodes both values, and the fence's lock is held here.
            (Some(value), Some(_)) if self.same.is_some() => Changed::IfDifferentFrom(value.clone()),
            (Some(_), Some(_)) => return None,
            _ => Changed::Known(true),
        };
        Some(ReplacedCopy { age, serves, changed })
    }

    /// Counts the reload. If the user's code panics while values are compared, it does not count.
    pub(crate) fn note(&self, replaced: ReplacedCopy<V>, loaded: Option<&V>) {
        let changed = match (replaced.changed, loaded, &self.same) {
            (Changed::Known(changed), _, _) => Some(changed),
            (Changed::IfDifferentFrom(value), Some(loaded), Some(same)) => {
                // A panic of the user's `Serialize` costs this answer, not the load.
                catch_unwind(AssertUnwindSafe(|| same(&value, loaded))).ok().flatten().map(|same| !same)
            }
            _ => None,
        };
        if let Some(changed) = changed {
            self.reloads.note(replaced.age, replaced.serves, changed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// So many reloads at each of these ages, of which the share that `stale` says found a change.
    fn reloads(ages: impl Iterator<Item = f64>, stale: impl Fn(f64) -> f64) -> ReloadCounts {
        let reloads = ReloadCounts::default();
        for age in ages {
            let changed = (stale(age) * 1000.0).round() as u64;
            (0..1000).for_each(|one| reloads.note(seconds(age), Some(1), one < changed));
        }
        reloads
    }

    #[test]
    fn of_a_constant_hazard_the_share_and_the_life_are_exact() {
        let rate = 0.01;
        let reloads = reloads((1..=100).map(f64::from), |age| 1.0 - (-rate * age).exp());
        let true_share = |life: f64| 1.0 - (1.0 - (-rate * life).exp()) / (rate * life);
        for life in [2.0, 10.0, 37.0, 90.0] {
            let advice = reloads.advise(true_share(life), Some(seconds(life)), 0.0);
            let advised = advice.time_to_live.unwrap().as_secs_f64();
            assert!((advised / life - 1.0).abs() < 0.05, "{advised} instead of {life}");
            let now = advice.share_now.unwrap();
            assert!((now / true_share(life) - 1.0).abs() < 0.05, "{now} instead of {}", true_share(life));
            assert_eq!((advice.reloads, advice.is_longest_seen), (100_000, false));
        }
    }

    #[test]
    fn of_a_fixed_period_the_share_is_half_of_the_part_of_it() {
        let reloads = reloads((1..=100).map(f64::from), |age| (age / 100.0).min(1.0));
        let advice = reloads.advise(0.1, Some(seconds(50.0)), 0.0);
        let advised = advice.time_to_live.unwrap().as_secs_f64();
        assert!((advised / 20.0 - 1.0).abs() < 0.05, "{advised}");
        assert!((advice.share_now.unwrap() / 0.25 - 1.0).abs() < 0.05, "{:?}", advice.share_now);
    }

    #[test]
    fn what_falls_by_chance_is_pooled_and_the_share_never_falls() {
        let reloads = ReloadCounts::default();
        let answers = [(1.0, 9), (2.0, 1), (4.0, 5), (8.0, 3), (16.0, 9)];
        for (age, changed) in answers {
            (0..10).for_each(|one| reloads.note(seconds(age), Some(1), one < changed));
        }
        let mut before = 0.0;
        for life in 1..40 {
            let share = reloads.advise(0.5, Some(seconds(f64::from(life))), 0.0).share_now.unwrap();
            assert!(share >= before, "{share} after {before} at {life}");
            before = share;
        }
    }

    #[test]
    fn too_few_reloads_advise_nothing_and_nothing_seen_is_not_never() {
        let reloads = ReloadCounts::default();
        (1..RELOADS_MIN).for_each(|_| reloads.note(seconds(10.0), Some(1), false));
        assert_eq!(reloads.advise(0.1, Some(seconds(1.0)), 0.0).time_to_live, None);
        assert_eq!(reloads.advise(0.1, Some(seconds(1.0)), 0.0).share_now, None);
        reloads.note(seconds(10.0), Some(1), false);
        let advice = reloads.advise(0.1, Some(seconds(10.0)), 0.0);
        assert_eq!((advice.reloads, advice.changed, advice.is_longest_seen), (RELOADS_MIN, 0, true));
        assert!((advice.time_to_live.unwrap().as_secs_f64() - 10.0).abs() < 1e-6);
        assert!(advice.share_now.unwrap() > 0.0, "30 reloads without a change do not exclude one");
    }

    /// Of two kinds of keys in one cache, one is served a hundred times as often and changes a hundred times as often.
    #[test]
    fn a_reload_counts_as_often_as_its_copy_was_served() {
        let reloads = ReloadCounts::default();
        for one in 0..10_000_u32 {
            let age = 1.0 + f64::from(one % 100);
            let changes = |per_s: f64| f64::from(one % 97) / 97.0 < 1.0 - (-per_s * age).exp();
            reloads.note(seconds(age), Some(100), changes(0.01));
            reloads.note(seconds(age), Some(1), changes(0.0001));
            reloads.note(seconds(age), Some(0), true);
            reloads.note(seconds(age), None, true);
        }
        let advice = reloads.advise(0.1, Some(seconds(30.0)), 0.0);
        assert_eq!(advice.reloads, 20_000, "what was not watched or not served says nothing of serves");
        let share = 1.0 - (1.0 - (-0.3_f64).exp()) / 0.3;
        assert!((advice.share_now.unwrap() / share - 1.0).abs() < 0.1, "{advice:?} instead of {share}");
    }
}
