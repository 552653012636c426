//! Figures of a cache and its layer: advice on the time to live, counters, the `metrics` facade, and
//! spans.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay::testkit::ManualClock;
use forebay::{
    Cache, ErrorKind, EvictionCause, Follow, Forebay, LocalBus, MemoryStore, MissReason, Publish,
    ReadOptions, Seq, Source, StaleReason, WritePolicy,
};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};

use crate::support::child::alone;
use crate::support::held_loads::HeldLoads;
use crate::support::{GatedStore, Layer, failing};

const KEYS: usize = 100;

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// The generator of SplitMix64 (Steele, Lea, Flood 2014): the same traffic in every run.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.share()).ln() * mean
    }
}

/// The way in which the source changes.
#[derive(Clone, Copy)]
enum Process {
    /// At any moment alike, once in so many seconds on average.
    Exponential(f64),
    /// Every so many seconds.
    Period(f64),
}

/// An outside source of some keys, and traffic that reads them.
struct World {
    draw: Draw,
    clock: ManualClock,
    now_s: f64,
    process: Process,
    /// Of each key its value and when that changes.
    truth: Vec<(u64, f64)>,
}

impl World {
    fn new(process: Process) -> World {
        let mut draw = Draw(7);
        let first = |draw: &mut Draw| match process {
            Process::Exponential(mean) => draw.exponential(mean),
            Process::Period(period) => draw.share() * period,
        };
        let truth = (0..KEYS).map(|_| (1, first(&mut draw))).collect();
        World { draw, clock: ManualClock::new(), now_s: 0.0, process, truth }
    }

    /// The key that is read next, and its true value then. A key is read every five seconds on average.
    fn next_read(&mut self) -> (usize, u64) {
        let wait_s = self.draw.exponential(5.0 / KEYS as f64);
        self.clock.advance(seconds(wait_s));
        self.now_s += wait_s;
        let key = usize::try_from(self.draw.next() % KEYS as u64).unwrap();
        while self.truth[key].1 <= self.now_s {
            let after = match self.process {
                Process::Exponential(mean) => self.draw.exponential(mean),
                Process::Period(period) => period,
            };
            self.truth[key].0 += 1;
            self.truth[key].1 += after;
        }
        (key, self.truth[key].0)
    }

    /// The share of stale ones among what memory served in so many reads.
    async fn stale_share(&mut self, cache: &Cache<u32, u64>, reads: usize) -> f64 {
        let (mut served, mut stale) = (0_u64, 0_u64);
        for _ in 0..reads {
            let (key, truth) = self.next_read();
            let load = move |_| async move { Ok::<_, String>(Some(truth)) };
            let options = ReadOptions::new();
            let key = u32::try_from(key).unwrap();
            let entry = cache.get_or_load_with(&key, &options, load).await.unwrap();
            if entry.source == Source::Memory {
                served += 1;
                stale += u64::from(entry.value != Some(truth));
            }
        }
        stale as f64 / served as f64
    }
}

fn near(what: &str, found: f64, expected: f64, off: f64) {
    assert!((found - expected).abs() <= off, "{what}: {found} instead of {expected}, give or take {off}");
}

/// Changes at any moment alike (each key's values last 100 s on average), and a time to live of 30 s: what is told of
/// today is what is counted, and the advised time to live gives the wanted share.
#[tokio::test]
async fn the_advised_time_to_live_gives_the_wanted_share() {
    let mut world = World::new(Process::Exponential(100.0));
    let bay = Forebay::builder(MemoryStore::new()).clock(world.clock.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").time_to_live(seconds(30.0)).open().unwrap();
    let counted = world.stale_share(&cache, 800_000).await;
    let advice = cache.ttl_advice(0.1).unwrap();
    assert!(advice.reloads > 10_000 && advice.changed > 2_000, "{advice:?}");
    let all = cache.stats().reloads_unchanged + cache.stats().reloads_changed;
    assert!(all / advice.reloads >= 7, "one copy of eight is watched: {} of {all}", advice.reloads);
    near("today's share", advice.share_now.unwrap(), counted, 0.01);
    // 1 - (1 - exp(-x)) / x is a tenth where x, the time to live in lives of a value, is 0.2145.
    near("the advised time to live", advice.time_to_live.unwrap().as_secs_f64(), 21.45, 1.5);
    cache.set_time_to_live(advice.time_to_live).unwrap();
    near("the share that it gives", world.stale_share(&cache, 200_000).await, 0.1, 0.01);
}

/// Changes every 100 s, each key at another moment, and the layer's store, whose versions tell: half of the part of
/// the period that a copy lives is stale.
#[tokio::test]
async fn the_advice_holds_with_a_fixed_period_and_with_versions_of_a_store() {
    let mut world = World::new(Process::Period(100.0));
    let layer = Layer::new();
    let held = HeldLoads::new(&layer.store);
    let bay = layer.builder_on(held.clone()).clock(world.clock.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").time_to_live(seconds(30.0)).open().unwrap();
    for _ in 0..150_000 {
        let (key, truth) = world.next_read();
        held.write_outside(u32::try_from(key).unwrap(), Some(truth), truth);
        cache.get(&u32::try_from(key).unwrap()).await.unwrap().unwrap();
    }
    let advice = cache.ttl_advice(0.1).unwrap();
    near("today's share", advice.share_now.unwrap(), 0.15, 0.02);
    // 20 s would give a tenth. No copy was reloaded before 30 s, and below that the constant hazard is on the safe
    // side.
    let advised = advice.time_to_live.unwrap().as_secs_f64();
    assert!((16.5..=20.5).contains(&advised), "{advised}");
}

#[tokio::test]
async fn only_what_replaces_a_copy_in_memory_tells_anything() {
    let (layer, clock) = (Layer::new(), ManualClock::new());
    let held = HeldLoads::new(&layer.store);
    let bay = layer.builder_on(held.clone()).clock(clock.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    let counts = || (cache.stats().reloads_unchanged, cache.stats().reloads_changed);
    held.write_outside(1, Some(1), 1);
    cache.get(&1).await.unwrap();
    assert_eq!(counts(), (0, 0), "there was no copy");
    clock.advance(seconds(1.0));
    cache.refresh(&1).await.unwrap();
    assert_eq!(counts(), (1, 0));
    held.write_outside(1, Some(2), 2);
    clock.advance(seconds(1.0));
    cache.refresh(&1).await.unwrap();
    assert_eq!(counts(), (1, 1));
    for drop_it in [
        |cache: &Cache<u32, u64>| cache.invalidate(&1),
        |cache: &Cache<u32, u64>| cache.invalidate_all(),
        |cache: &Cache<u32, u64>| cache.evict(&1),
    ] {
        held.write_outside(1, Some(3), 3);
        drop_it(&cache);
        cache.get(&1).await.unwrap();
        assert_eq!(counts(), (1, 1), "whoever dropped the copy knew why");
    }
    for wrong in [0.0, 1.0, -1.0, f64::NAN] {
        assert_eq!(cache.ttl_advice(wrong).unwrap_err().kind(), ErrorKind::InvalidOption);
    }
    let advice = cache.ttl_advice(0.1).unwrap();
    assert_eq!((advice.time_to_live, advice.share_now, advice.reloads, advice.changed), (None, None, 2, 1));
}

#[tokio::test]
async fn stale_serves_are_counted_with_their_ages() {
    let (layer, clock) = (Layer::new(), ManualClock::new());
    let held = HeldLoads::new(&layer.store);
    let bay = layer.builder_on(held.clone()).clock(clock.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> =
        bay.cache("n").time_to_live(seconds(10.0)).stale_if_error(seconds(100.0)).open().unwrap();
    held.write_outside(1, Some(1), 1);
    cache.get(&1).await.unwrap();
    held.fail(true);
    for age in [20.0, 40.0] {
        clock.advance(seconds(20.0));
        assert_eq!(cache.get(&1).await.unwrap(), Some(1));
        assert_eq!(cache.stats().stale_ages.longest, seconds(age));
    }
    let stats = cache.stats();
    assert_eq!(
        (stats.stale[StaleReason::LoadFailed], stats.stale_ages.count, stats.misses[MissReason::Expired]),
        (2, 2, 2)
    );
    assert!(stats.stale_ages.p50 >= seconds(20.0) && stats.stale_ages.p50 <= seconds(22.5), "{stats:?}");
    assert_eq!(stats.stale_ages.p99, seconds(40.0));
}

#[tokio::test]
async fn what_leaves_memory_is_counted_by_cause() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, u64> = bay.cache("n").capacity(100).open().unwrap();
    for key in 0..1_000 {
        cache.put(&key, 1).await.unwrap();
    }
    let kept = cache.resident_count() as u64;
    assert_eq!(cache.stats().evictions[EvictionCause::Room], 1_000 - kept, "{kept} are still there");
    bay.flush().await.unwrap();
    let before = cache.stats().evictions;
    cache.put(&1, 1).await.unwrap();
    cache.put(&1, 2).await.unwrap();
    cache.evict(&1);
    cache.evict(&1);
    cache.put(&2, 1).await.unwrap();
    cache.invalidate(&2);
    cache.put(&3, 1).await.unwrap();
    cache.put_with(&3, 2, WritePolicy::Around).await.unwrap();
    cache.put(&4, 1).await.unwrap();
    cache.remove(&4).await.unwrap();
    cache.get(&4).await.unwrap();
    cache.put(&5, 1).await.unwrap();
    assert!(cache.invalidate_version(&5, Seq::new(u64::MAX)), "memory has an older one");
    let after = cache.stats().evictions;
    assert_eq!(after[EvictionCause::Called] - before[EvictionCause::Called], 1);
    assert_eq!(after[EvictionCause::Invalidated] - before[EvictionCause::Invalidated], 3);
    assert_eq!(after[EvictionCause::Removed] - before[EvictionCause::Removed], 1);
}

#[tokio::test]
async fn the_queue_is_reported_in_records_bytes_and_age() {
    let (layer, clock) = (Layer::new(), ManualClock::new());
    let gated = GatedStore::new(&layer.store);
    gated.stall();
    let bay = layer.builder_on(gated.clone()).clock(clock.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    assert_eq!(bay.stats().queue, forebay::QueueStats::default());
    cache.put(&1, 1).await.unwrap();
    clock.advance(seconds(7.0));
    cache.put(&2, 2).await.unwrap();
    let queue = bay.stats().queue;
    assert_eq!((queue.records, queue.bytes, queue.oldest_age), (2, bay.health().queued_bytes, seconds(7.0)));
    assert!(queue.bytes > 0);
    gated.release();
    bay.flush().await.unwrap();
    assert_eq!(bay.stats().queue, forebay::QueueStats::default());
    // What is found in the journal counts from the opening that found it.
    gated.stall();
    cache.put(&3, 3).await.unwrap();
    drop((cache, bay));
    let bay = layer.builder_on(gated.clone()).clock(clock.clone()).open().await.unwrap();
    clock.advance(seconds(3.0));
    assert_eq!((bay.stats().queue.records, bay.stats().queue.oldest_age), (1, seconds(3.0)));
    gated.release();
}

/// Keeps what it is told, by name and labels.
#[derive(Default)]
struct Told {
    figures: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    described: Mutex<BTreeMap<String, Option<Unit>>>,
}

impl Told {
    fn figure(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<String> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::clone(self.figures.lock().unwrap().entry(name).or_default())
    }

    fn value(&self, name: &str) -> u64 {
        self.figures.lock().unwrap().get(name).unwrap_or_else(|| panic!("{name} was not told")).load(SeqCst)
    }

    fn describe(&self, key: &KeyName, unit: Option<Unit>) {
        self.described.lock().unwrap().insert(key.as_str().to_owned(), unit);
    }
}

impl Recorder for Told {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&key, unit);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&key, unit);
    }

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.figure(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.figure(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test]
async fn the_metrics_facade_gets_all_of_it_with_units_and_the_manual_names_it() {
    let (layer, clock) = (Layer::new(), ManualClock::new());
    let gated = GatedStore::new(&layer.store);
    let bay = layer.builder_on(gated.clone()).clock(clock.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("products/eu").open().unwrap();
    let other: Cache<u32, u64> = bay.cache("users").open().unwrap();
    cache.put(&1, 1).await.unwrap();
    bay.flush().await.unwrap();
    for _ in 0..3 {
        cache.get(&1).await.unwrap();
    }
    cache.evict(&1);
    cache.get(&1).await.unwrap();
    other.get(&9).await.unwrap();
    gated.stall();
    cache.put(&2, 1).await.unwrap();
    clock.advance(seconds(2.5));
    let told = Told::default();
    metrics::with_local_recorder(&told, || bay.record_metrics());
    metrics::with_local_recorder(&told, || bay.record_metrics());
    let expected = [
        ("forebay_cache_hits_total{namespace=products/eu,source=memory}", 3),
        ("forebay_cache_hits_total{namespace=products/eu,source=store}", 1),
        ("forebay_cache_misses_total{namespace=products/eu,reason=absent}", 1),
        ("forebay_cache_not_found_total{namespace=users}", 1),
        ("forebay_cache_evictions_total{namespace=products/eu,cause=called}", 1),
        ("forebay_batches_applied_total{}", 1),
        ("forebay_records_applied_total{}", 1),
        ("forebay_queue_records{}", 1.0_f64.to_bits()),
        ("forebay_queue_oldest_age_seconds{}", 2.5_f64.to_bits()),
    ];
    for (name, value) in expected {
        assert_eq!(told.value(name), value, "{name}");
    }
    assert_eq!(told.value("forebay_queue_bytes{}"), (bay.health().queued_bytes as f64).to_bits());
    gated.release();
    let manual = include_str!("../../src/manual/figures.md");
    let described = told.described.lock().unwrap();
    for name in told.figures.lock().unwrap().keys().map(|figure| name_of(figure)) {
        assert!(described.get(&name).is_some_and(Option::is_some), "{name} has no unit");
        assert!(manual.contains(&format!("`{name}`")), "the manual does not name {name}");
    }
}

/// The export once listed six of the ten reasons by hand: the misses after an invalidation of a namespace were
/// exported as none.
#[tokio::test]
async fn every_reason_of_a_miss_a_stale_serve_or_an_eviction_is_exported_and_in_the_manual() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, u64> = bay.cache("products/eu").open().unwrap();
    for key in 0..20 {
        cache.put(&key, 1).await.unwrap();
    }
    bay.flush().await.unwrap();
    bay.invalidate_namespace("products").await.unwrap();
    for key in 0..20 {
        cache.get(&key).await.unwrap();
    }
    assert_eq!(cache.stats().misses[MissReason::NamespaceInvalidated], 20);
    let told = Told::default();
    metrics::with_local_recorder(&told, || bay.record_metrics());
    let figure = |name: &str, label: &str, value: &str| {
        told.value(&format!("{name}{{namespace=products/eu,{label}={value}}}"))
    };
    let manual = include_str!("../../src/manual/figures.md");
    for reason in MissReason::ALL {
        let expected = if *reason == MissReason::NamespaceInvalidated { 20 } else { 0 };
        assert_eq!(figure("forebay_cache_misses_total", "reason", reason.as_str()), expected, "{reason:?}");
    }
    for reason in StaleReason::ALL {
        assert_eq!(figure("forebay_cache_stale_total", "reason", reason.as_str()), 0, "{reason:?}");
    }
    // Twenty entries were replaced, which once counted as evictions for room.
    for cause in EvictionCause::ALL {
        assert_eq!(figure("forebay_cache_evictions_total", "cause", cause.as_str()), 0, "{cause:?}");
    }
    for label in (MissReason::ALL.iter().map(|reason| reason.as_str()))
        .chain(StaleReason::ALL.iter().map(|reason| reason.as_str()))
        .chain(EvictionCause::ALL.iter().map(|cause| cause.as_str()))
    {
        assert!(manual.contains(&format!("`{label}`")), "the manual does not list {label}");
    }
    assert!(told.figures.lock().unwrap().contains_key("forebay_changes_delivered_total{}"));
}

/// A rule that names a figure which nobody tells never fires.
#[tokio::test]
async fn lag_of_publishers_and_followers_is_exported_and_the_manuals_rules_name_what_is_exported() {
    let (layer, bus) = (Layer::new(), LocalBus::default());
    let owner = layer.builder().changes(true).open().await.unwrap();
    let cache: Cache<u32, u64> = owner.cache("n").open().unwrap();
    let publish = Publish::to("prices").heartbeat(Duration::from_millis(2));
    let publication = owner.publish(bus.clone(), publish).await.unwrap();
    let told = Told::default();
    let write = async |key| {
        let seq = cache.put(&key, 1).await.unwrap().seq();
        owner.flush().await.unwrap();
        seq
    };
    {
        let follow = Follow::new(bus, "prices").probe_interval(Duration::from_millis(2)).name("eu");
        let follower = Forebay::builder(layer.store.clone()).follow(follow).open().await.unwrap();
        let first = write(1).await;
        follower.wait_applied(first).await.unwrap();
        assert_eq!(publication.seen_by_all(&["eu"], first, Duration::from_secs(60)).await, []);
        // It may have come so far by asking the store; the next heartbeat is an event, too. Nothing else signals it.
        let heard = async {
            while follower.following().unwrap().events == 0 {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(Duration::from_secs(60), heard).await.expect("an event comes");
        metrics::with_local_recorder(&told, || follower.record_metrics());
        assert!(told.value("forebay_following_events_total{}") >= 1);
    }
    // It has gone; the owner goes on.
    let second = write(2).await;
    assert_eq!(publication.followers()[0].lag.records, 1);
    let followers = publication.seen_by_all(&["eu"], second, Duration::ZERO).await;
    metrics::with_local_recorder(&told, || owner.record_metrics());
    let follower = "{publisher=prices,follower=eu}";
    for (name, value) in [("records", 1.0_f64), ("bytes", followers[0].lag.bytes as f64)] {
        assert_eq!(told.value(&format!("forebay_follower_lag_{name}{follower}")), value.to_bits(), "{name}");
    }
    assert!(followers[0].lag.bytes > 0);
    let published = told.value("forebay_publisher_directives_total{publisher=prices}");
    assert!((1..=2).contains(&published), "{published}");

    let manual = include_str!("../../src/manual/figures.md");
    let names: BTreeSet<String> = told.figures.lock().unwrap().keys().map(|key| name_of(key)).collect();
    for name in &names {
        assert!(manual.contains(&format!("`{name}`")), "the manual does not name {name}");
        assert!(told.described.lock().unwrap().get(name).is_some_and(Option::is_some), "{name} has no unit");
    }
    let rules = manual.split("```yaml").nth(1).unwrap().split("```").next().unwrap();
    let is_of_a_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let used = rules.match_indices("forebay_").map(|(at, _)| &rules[at..]);
    let used: Vec<&str> = used.map(|from| from.split(|c| !is_of_a_name(c)).next().unwrap()).collect();
    assert!(used.len() >= 5, "{used:?}");
    for name in used {
        assert!(names.contains(name), "a rule names {name}, which nobody tells");
    }
}

fn name_of(figure: &str) -> String {
    figure.split('{').next().unwrap().to_owned()
}

/// Keeps the spans that end, with their fields, as one line each.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<BTreeMap<u64, String>>>);

struct Line<'a>(&'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!(" {field}={value:?}"));
    }
}

impl tracing::Subscriber for Spans {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_span() && metadata.name().starts_with("forebay.")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut line = span.metadata().name().to_owned();
        span.record(&mut Line(&mut line));
        let mut spans = self.0.lock().unwrap();
        let id = spans.len() as u64 + 1;
        spans.insert(id, line);
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        values.record(&mut Line(self.0.lock().unwrap().get_mut(&span.into_u64()).unwrap()));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The flusher's thread has no subscriber but the process's, so this test has a process of its own.
#[test]
fn loads_applies_and_recoveries_have_spans_without_keys_and_values() {
    alone(module_path!(), "loads_applies_and_recoveries_have_spans_without_keys_and_values", || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(watch_spans());
    });
}

async fn watch_spans() {
    let spans = Spans::default();
    tracing::subscriber::set_global_default(spans.clone()).unwrap();
    let layer = Layer::new();
    let (failing, _) = failing(&layer.store, 1);
    let bay = layer.builder_on(failing).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("spans").open().unwrap();
    cache.put(&77_777, 88_888).await.unwrap();
    bay.flush().await.unwrap();
    cache.evict(&77_777);
    assert_eq!(cache.get(&77_777).await.unwrap(), Some(88_888));
    assert_eq!(cache.get_many(&[77_778, 77_779]).await.unwrap(), [None, None]);
    let fails = |_| async { Err::<Option<u64>, _>("down") };
    cache.get_or_load(&77_780, fails).await.unwrap_err();
    let told: Vec<String> = spans.0.lock().unwrap().values().cloned().collect();
    let has = |line: &str| assert!(told.iter().any(|told| told == line), "{line} is not in {told:#?}");
    has("forebay.load namespace=\"spans\" keys=1 found=1");
    has("forebay.load namespace=\"spans\" keys=2 found=0");
    has("forebay.load namespace=\"spans\" keys=1 error=LoadFailed");
    assert!(told.iter().any(|line| line.starts_with("forebay.apply last=1 ops=1 retries=1")), "{told:#?}");
    assert!(told.iter().any(|line| line.starts_with("forebay.recovery epoch=1 pending=0")), "{told:#?}");
    assert!(!told.iter().any(|line| line.contains("777") || line.contains("888")), "{told:#?}");
}
