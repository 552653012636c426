//! What is counted, for the recorder of the `metrics` facade. Names and units are the manual's, on its page on
//! figures.
//!
//! Counters are told as totals, so that nothing is lost or told twice however often they are told, and no read or
//! write pays for it.

use ::metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::engine::health::Health;
use crate::engine::layer::Layer;
use crate::metrics::{CacheStats, Stats};

/// A counter of a cache: its name, a label that tells it from others of that name, and where it is found.
type OfCache = (&'static str, Option<(&'static str, &'static str)>, fn(&CacheStats) -> u64);

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

/// A counter of the layer.
type OfLayer = (&'static str, fn(&Stats) -> u64);

const OF_LAYER: &[OfLayer] = &[
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

type Gauge = (&'static str, Unit, fn(&Stats, &Health) -> f64);

const GAUGES: &[Gauge] = &[
    ("forebay_queue_records", Unit::Count, |stats, _| stats.queue.records as f64),
    ("forebay_queue_bytes", Unit::Bytes, |stats, _| stats.queue.bytes as f64),
    ("forebay_queue_oldest_age_seconds", Unit::Seconds, |stats, _| stats.queue.oldest_age.as_secs_f64()),
    ("forebay_journal_bytes", Unit::Bytes, |_, health| health.journal_bytes as f64),
    ("forebay_dead_letters", Unit::Count, |_, health| health.dead_letters as f64),
];

impl Layer {
    /// Tells the recorder that is installed what the layer and its caches have counted.
    pub(crate) fn record_metrics(&self) {
        for (namespace, stats) in self.views.stats() {
            record_cache(namespace.as_str(), &stats);
        }
        let (stats, health) = (self.stats(), self.health());
        for (name, pick) in OF_LAYER {
            describe_counter!(*name, Unit::Count, "see the manual's page on figures");
            counter!(*name).absolute(pick(&stats));
        }
        for (name, unit, pick) in GAUGES {
            describe_gauge!(*name, *unit, "see the manual's page on figures");
            gauge!(*name).set(pick(&stats, &health));
        }
    }
}

fn record_cache(namespace: &str, stats: &CacheStats) {
    for (name, label, pick) in OF_CACHE {
        describe_counter!(*name, Unit::Count, "see the manual's page on figures");
        let mut labels = vec![("namespace", namespace.to_owned())];
        labels.extend(label.map(|(label, value)| (label, value.to_owned())));
        counter!(*name, &labels).absolute(pick(stats));
    }
    describe_gauge!(STALE_AGE, Unit::Seconds, "see the manual's page on figures");
    let ages = &stats.stale_ages;
    for (quantile, age) in [("0.5", ages.p50), ("0.99", ages.p99), ("1", ages.longest)] {
        let labels = [("namespace", namespace.to_owned()), ("quantile", quantile.to_owned())];
        gauge!(STALE_AGE, &labels).set(age.as_secs_f64());
    }
}
