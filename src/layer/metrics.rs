//! What is counted, for the recorder of the `metrics` facade. Names and units are the manual's, on its page on
//! figures.
//!
//! Counters are told as totals, so that nothing is lost or told twice however often they are told, and no read or
//! write pays for it.

use ::metrics::{Label, Unit, counter, describe_counter, describe_gauge, gauge};

use crate::feed::follow::FollowStatus;
use crate::feed::publisher::{FollowerStatus, PublishStatus};
use crate::layer::layer::Layer;
use crate::metrics::{CacheStats, Stats};
use crate::queue::health::Health;

/// A counter of a cache: its name, a label that tells it from others of that name, and where it is found.
type OfCache = (&'static str, Option<(&'static str, &'static str)>, fn(&CacheStats) -> u64);

const SEE: &str = "see the manual's page on figures";
const HITS: &str = "forebay_cache_hits_total";
const MISSES: &str = "forebay_cache_misses_total";
const STALE: &str = "forebay_cache_stale_total";
const RELOADS: &str = "forebay_cache_reloads_total";
const EVICTIONS: &str = "forebay_cache_evictions_total";
const STALE_AGE: &str = "forebay_cache_stale_age_seconds";

const OF_CACHE: &[OfCache] = &[
    (HITS, Some(("source", "memory")), |stats| stats.memory_hits),
    (HITS, Some(("source", "pending")), |stats| stats.pending_hits),
    (HITS, Some(("source", "store")), |stats| stats.store_hits),
    (HITS, Some(("source", "loader")), |stats| stats.loader_hits),
    ("forebay_cache_not_found_total", None, |stats| stats.not_found),
    (MISSES, Some(("reason", "absent")), |stats| stats.misses_absent),
    (MISSES, Some(("reason", "expired")), |stats| stats.misses_expired),
    (MISSES, Some(("reason", "idle")), |stats| stats.misses_idle),
    (MISSES, Some(("reason", "invalidated")), |stats| stats.misses_invalidated),
    (MISSES, Some(("reason", "too_old")), |stats| stats.misses_too_old),
    (MISSES, Some(("reason", "unverified")), |stats| stats.misses_unverified),
    (STALE, Some(("because", "revalidating")), |stats| stats.stale_while_revalidating),
    (STALE, Some(("because", "instead_of_waiting")), |stats| stats.stale_instead_of_waiting),
    (STALE, Some(("because", "load_failed")), |stats| stats.stale_if_error),
    (STALE, Some(("because", "unverified")), |stats| stats.stale_unverified),
    ("forebay_cache_loads_total", None, |stats| stats.loads),
    ("forebay_cache_background_loads_total", None, |stats| stats.background_loads),
    ("forebay_cache_failed_loads_total", None, |stats| stats.failed_loads),
    ("forebay_cache_throttled_loads_total", None, |stats| stats.throttled_loads),
    ("forebay_cache_joined_loads_total", None, |stats| stats.joined_loads),
    (RELOADS, Some(("found", "unchanged")), |stats| stats.reloads_unchanged),
    (RELOADS, Some(("found", "changed")), |stats| stats.reloads_changed),
    ("forebay_cache_refused_fills_total", None, |stats| stats.refused_fills),
    ("forebay_cache_memory_failures_total", None, |stats| stats.memory_failures),
    (EVICTIONS, Some(("cause", "room")), |stats| stats.evictions.room),
    (EVICTIONS, Some(("cause", "called")), |stats| stats.evictions.called),
    (EVICTIONS, Some(("cause", "invalidated")), |stats| stats.evictions.invalidated),
    (EVICTIONS, Some(("cause", "removed")), |stats| stats.evictions.removed),
];

/// What is counted of one thing, and what is measured of it: the name, the unit, and where it is found.
type Counts<T> = &'static [(&'static str, fn(&T) -> u64)];
type Gauges<T> = &'static [(&'static str, Unit, fn(&T) -> f64)];

const COUNTED_BY_A_LAYER: Counts<Stats> = &[
    ("forebay_store_loads_total", |stats| stats.store_loads),
    ("forebay_records_committed_total", |stats| stats.records_committed),
    ("forebay_records_applied_total", |stats| stats.records_applied),
    ("forebay_ops_applied_total", |stats| stats.ops_applied),
    ("forebay_batches_applied_total", |stats| stats.batches_applied),
    ("forebay_apply_retries_total", |stats| stats.apply_retries),
    ("forebay_records_rejected_total", |stats| stats.records_rejected),
    ("forebay_records_parked_total", |stats| stats.records_parked),
    ("forebay_records_spilled_total", |stats| stats.records_spilled),
    ("forebay_journal_reads_total", |stats| stats.journal_reads),
    ("forebay_writes_refused_full_total", |stats| stats.writes_refused_full),
];

const OF_A_LAYER: Gauges<(Stats, Health)> = &[
    ("forebay_queue_records", Unit::Count, |(stats, _)| stats.queue.records as f64),
    ("forebay_queue_bytes", Unit::Bytes, |(stats, _)| stats.queue.bytes as f64),
    ("forebay_queue_oldest_age_seconds", Unit::Seconds, |(stats, _)| stats.queue.oldest_age.as_secs_f64()),
    ("forebay_journal_bytes", Unit::Bytes, |(_, health)| health.journal_bytes as f64),
    ("forebay_dead_letters", Unit::Count, |(_, health)| health.dead_letters as f64),
];

const COUNTED_BY_PUBLISHERS: Counts<PublishStatus> = &[
    ("forebay_publisher_events_total", |status| status.events),
    ("forebay_publisher_directives_total", |status| status.directives),
    ("forebay_publisher_places_lost_total", |status| status.places_lost),
];

const OF_PUBLISHERS: Gauges<PublishStatus> = &[
    ("forebay_publisher_lag_records", Unit::Count, |status| status.lag.records as f64),
    ("forebay_publisher_lag_bytes", Unit::Bytes, |status| status.lag.bytes as f64),
    ("forebay_publisher_lag_seconds", Unit::Seconds, |status| status.lag.age.as_secs_f64()),
    ("forebay_publisher_failing", Unit::Count, |status| f64::from(u8::from(status.error.is_some()))),
];

/// Of a follower as its owner knows it.
const OF_FOLLOWERS: Gauges<FollowerStatus> = &[
    ("forebay_follower_lag_records", Unit::Count, |status| status.lag.records as f64),
    ("forebay_follower_lag_bytes", Unit::Bytes, |status| status.lag.bytes as f64),
    ("forebay_follower_lag_seconds", Unit::Seconds, |status| status.lag.age.as_secs_f64()),
    ("forebay_follower_silent_seconds", Unit::Seconds, |status| status.silent_for.as_secs_f64()),
];

const COUNTED_BY_A_FOLLOWER: Counts<FollowStatus> = &[
    ("forebay_following_events_total", |status| status.events),
    ("forebay_following_directives_total", |status| status.directives),
    ("forebay_following_directives_elsewhere_total", |status| status.directives_elsewhere),
    ("forebay_following_rules_failed_total", |status| status.rules_failed),
    ("forebay_following_refused_total", |status| status.refused),
    ("forebay_following_refused_owner_total", |status| status.refused_owner),
    ("forebay_following_gaps_total", |status| status.gaps),
    ("forebay_following_positions_lost_total", |status| status.positions_lost),
    ("forebay_following_places_lost_total", |status| status.places_lost),
];

/// Of a follower as it knows itself.
const OF_A_FOLLOWER: Gauges<FollowStatus> = &[
    ("forebay_following_lag_records", Unit::Count, |status| status.behind_records as f64),
    ("forebay_following_lag_bytes", Unit::Bytes, |status| status.behind_bytes as f64),
    ("forebay_following_lag_seconds", Unit::Seconds, |status| status.unverified_for.as_secs_f64()),
    ("forebay_following_failing", Unit::Count, |status| f64::from(u8::from(status.error.is_some()))),
];

impl Layer {
    /// Tells the recorder that is installed what the layer and its caches have counted.
    pub(crate) fn record_metrics(&self) {
        for (namespace, stats) in self.views.stats() {
            record_cache(namespace.as_str(), &stats);
        }
        let layer = (self.stats(), self.health());
        tell_counts(COUNTED_BY_A_LAYER, &layer.0, &[]);
        tell_gauges(OF_A_LAYER, &layer, &[]);
        for (status, followers) in self.publishers.list() {
            let publisher = Label::new("publisher", status.name.clone());
            tell_counts(COUNTED_BY_PUBLISHERS, &status, std::slice::from_ref(&publisher));
            tell_gauges(OF_PUBLISHERS, &status, std::slice::from_ref(&publisher));
            for follower in followers {
                let labels = [publisher.clone(), Label::new("follower", follower.name.clone())];
                tell_gauges(OF_FOLLOWERS, &follower, &labels);
            }
        }
        if let Some(follower) = &self.follower {
            let status = follower.status();
            tell_counts(COUNTED_BY_A_FOLLOWER, &status, &[]);
            tell_gauges(OF_A_FOLLOWER, &status, &[]);
        }
    }
}

fn tell_counts<T>(counts: Counts<T>, of: &T, labels: &[Label]) {
    for (name, pick) in counts {
        describe_counter!(*name, Unit::Count, SEE);
        counter!(*name, labels.to_vec()).absolute(pick(of));
    }
}

fn tell_gauges<T>(gauges: Gauges<T>, of: &T, labels: &[Label]) {
    for (name, unit, pick) in gauges {
        describe_gauge!(*name, *unit, SEE);
        gauge!(*name, labels.to_vec()).set(pick(of));
    }
}

fn record_cache(namespace: &str, stats: &CacheStats) {
    for (name, label, pick) in OF_CACHE {
        describe_counter!(*name, Unit::Count, SEE);
        let mut labels = vec![("namespace", namespace.to_owned())];
        labels.extend(label.map(|(label, value)| (label, value.to_owned())));
        counter!(*name, &labels).absolute(pick(stats));
    }
    describe_gauge!(STALE_AGE, Unit::Seconds, SEE);
    let ages = &stats.stale_ages;
    for (quantile, age) in [("0.5", ages.p50), ("0.99", ages.p99), ("1", ages.longest)] {
        let labels = [("namespace", namespace.to_owned()), ("quantile", quantile.to_owned())];
        gauge!(STALE_AGE, &labels).set(age.as_secs_f64());
    }
}
