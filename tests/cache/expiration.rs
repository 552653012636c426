//! Time-based expiration: each option of a cache's freshness, on a clock that moves only by hand.

use std::time::Duration;

use forebay::testkit::ManualClock;
use forebay::{
    Cache, CacheBuilder, ErrorKind, Forebay, MissReason, ReadOptions, Source, StaleReason, StalenessBound,
    WriteOptions,
};

use crate::support::held_loads::HeldLoads;
use crate::support::{GatedStore, Layer, poll_once};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A layer on a clock and a source that are moved by hand.
struct Bed {
    layer: Layer,
    clock: ManualClock,
    source: HeldLoads,
    bay: Forebay,
}

impl Bed {
    async fn new() -> Bed {
        let (layer, clock) = (Layer::new(), ManualClock::new());
        let source = HeldLoads::new(&layer.store);
        let bay = layer.builder_on(source.clone()).clock(clock.clone()).open().await.unwrap();
        Bed { layer, clock, source, bay }
    }

    fn cache(&self) -> CacheBuilder<u32, u64> {
        self.bay.cache("n")
    }

    /// Writes a value and waits until it is the store's.
    async fn put(&self, cache: &Cache<u32, u64>, value: u64) {
        cache.put(&1, value).await.unwrap();
        self.bay.flush().await.unwrap();
    }
}

/// Waits for the load of key 1 that runs in the background, by joining it, and returns what it brought.
async fn background_load(bed: &Bed, cache: &Cache<u32, u64>) -> Option<u64> {
    let loads = bed.source.loads();
    let young = ReadOptions::new().max_staleness(Duration::from_nanos(1));
    let mut joined = Box::pin(cache.get_with(&1, &young));
    assert!(poll_once(&mut joined).await.is_none());
    assert_eq!(bed.source.loads(), loads, "it joins");
    bed.source.let_go();
    joined.await.unwrap()
}

#[tokio::test]
async fn a_value_lives_for_its_time_to_live_and_not_longer() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_live(seconds(10)).open().unwrap();
    bed.put(&cache, 1).await;
    bed.source.write_outside(1, Some(2), 0);
    bed.clock.advance(seconds(10) - Duration::from_nanos(1));
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    bed.clock.advance(Duration::from_nanos(1));
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
    assert_eq!((cache.stats().misses[MissReason::Expired], cache.stats().memory_hits), (1, 1));
}

#[tokio::test]
async fn a_time_to_live_is_changed_at_once_for_what_is_in_memory() {
    let bed = Bed::new().await;
    let cache = bed.cache().open().unwrap();
    bed.put(&cache, 1).await;
    bed.source.write_outside(1, Some(2), 0);
    bed.clock.advance(seconds(100));
    assert_eq!(cache.get(&1).await.unwrap(), Some(1), "for as long as it is there");
    cache.set_time_to_live(Some(seconds(101))).unwrap();
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    cache.set_time_to_live(Some(seconds(100))).unwrap();
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
    let error = cache.set_time_to_live(Some(Duration::ZERO)).expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert_eq!(cache.time_to_live(), Some(seconds(100)));
}

#[tokio::test]
async fn an_entry_may_have_times_of_its_own() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_live(seconds(10)).open().unwrap();
    cache.put_with(&1, 1, WriteOptions::new().time_to_live(seconds(20))).await.unwrap();
    cache.put_with(&2, 1, WriteOptions::new().time_to_idle(seconds(5))).await.unwrap();
    bed.bay.flush().await.unwrap();
    bed.source.write_outside(1, Some(2), 0);
    bed.source.write_outside(2, Some(2), 0);
    bed.clock.advance(seconds(4));
    assert_eq!(cache.get(&2).await.unwrap(), Some(1));
    bed.clock.advance(seconds(4));
    assert_eq!(cache.get(&2).await.unwrap(), Some(1), "it was used in between");
    bed.clock.advance(seconds(5));
    assert_eq!(cache.get(&2).await.unwrap(), Some(2));
    bed.clock.advance(seconds(6));
    assert_eq!(cache.get(&1).await.unwrap(), Some(1), "19 s old, of its own 20");
    bed.clock.advance(seconds(1));
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
    let bad = WriteOptions::new().time_to_live(Duration::ZERO);
    assert_eq!(cache.put_with(&1, 1, bad).await.expect_err("too short").kind(), ErrorKind::InvalidOption);
}

#[tokio::test]
async fn an_entry_that_nobody_reads_becomes_idle() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_idle(seconds(10)).open().unwrap();
    bed.put(&cache, 1).await;
    bed.source.write_outside(1, Some(2), 0);
    for _ in 0..5 {
        bed.clock.advance(seconds(9));
        assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    }
    bed.clock.advance(seconds(10));
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
    assert_eq!(cache.stats().misses[MissReason::Idle], 1);
}

#[tokio::test]
async fn age_counts_from_the_start_of_the_load() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_live(seconds(10)).open().unwrap();
    bed.source.write_outside(1, Some(1), 0);
    bed.source.hold();
    let mut load = Box::pin(cache.get_entry(&1));
    assert!(poll_once(&mut load).await.is_none());
    bed.source.write_outside(1, Some(2), 0);
    bed.clock.advance(seconds(6));
    bed.source.let_go();
    let loaded = load.await.unwrap();
    assert_eq!((loaded.value, loaded.age, loaded.source), (Some(1), seconds(6), Source::Store));
    bed.clock.advance(seconds(3));
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    bed.clock.advance(seconds(1));
    assert_eq!(cache.get(&1).await.unwrap(), Some(2), "ten seconds after the load began");
}

/// A load that takes longer than the time to live is not joined by readers for whom it would be too old.
#[tokio::test]
async fn a_load_as_old_as_the_time_to_live_is_not_joined() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_live(seconds(10)).open().unwrap();
    bed.source.write_outside(1, Some(1), 0);
    bed.source.hold();
    let mut older = Box::pin(cache.get(&1));
    assert!(poll_once(&mut older).await.is_none());
    bed.source.write_outside(1, Some(2), 0);
    bed.clock.advance(seconds(9));
    let mut joined = Box::pin(cache.get(&1));
    assert!(poll_once(&mut joined).await.is_none());
    assert_eq!(bed.source.loads(), 1);
    bed.clock.advance(seconds(1));
    let mut newer = Box::pin(cache.get(&1));
    assert!(poll_once(&mut newer).await.is_none());
    assert_eq!(bed.source.loads(), 2);
    bed.source.let_go();
    assert_eq!(newer.await.unwrap(), Some(2));
    assert_eq!((older.await.unwrap(), joined.await.unwrap()), (Some(1), Some(1)));
    assert_eq!(
        cache.get(&1).await.unwrap(),
        Some(2),
        "the load that began earlier does not replace the later one"
    );
}

#[tokio::test]
async fn jitter_only_shortens_and_scatters() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_live(seconds(100)).time_to_live_jitter(0.5).open().unwrap();
    for key in 0..200 {
        cache.put(&key, 1).await.unwrap();
    }
    bed.bay.flush().await.unwrap();
    (0..200).for_each(|key| bed.source.write_outside(key, Some(2), 0));
    let fresh = async |cache: &Cache<u32, u64>| {
        let before = cache.stats().misses[MissReason::Expired];
        for key in 0..200 {
            cache.get(&key).await.unwrap();
        }
        200 - (cache.stats().misses[MissReason::Expired] - before)
    };
    bed.clock.advance(seconds(49));
    assert_eq!(fresh(&cache).await, 200, "at most half of it is cut");
    bed.clock.advance(seconds(26));
    let left = fresh(&cache).await;
    // Each is expired with probability one half; 200 of them leave these bounds once in 10^20 runs.
    assert!((30..170).contains(&left), "{left}");
    bed.clock.advance(seconds(25));
    let old = cache.stats().memory_hits;
    for key in 0..200 {
        assert_eq!(cache.get(&key).await.unwrap(), Some(2), "none outlives its time to live");
    }
    assert!(cache.stats().memory_hits - old < 200);
}

#[tokio::test]
async fn absences_are_remembered_for_their_own_time() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_live(seconds(100)).negative_time_to_live(seconds(5)).open().unwrap();
    assert_eq!(cache.get(&1).await.unwrap(), None);
    bed.source.write_outside(1, Some(1), 0);
    bed.clock.advance(seconds(5) - Duration::from_nanos(1));
    let entry = cache.get_entry(&1).await.unwrap();
    assert_eq!(
        (entry.value, entry.source, entry.bound),
        (None, Source::Memory, StalenessBound::Within(seconds(5)))
    );
    assert_eq!(bed.source.loads(), 1);
    bed.clock.advance(Duration::from_nanos(1));
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    cache.remove(&2).await.unwrap();
    assert_eq!(cache.get(&2).await.unwrap(), None);
    cache.put(&2, 7).await.unwrap();
    assert_eq!(cache.get(&2).await.unwrap(), Some(7), "a write ends an absence");
}

#[tokio::test]
async fn a_pending_write_never_expires() {
    let (layer, clock) = (Layer::new(), ManualClock::new());
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).clock(clock.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> =
        bay.cache("n").time_to_live(seconds(10)).time_to_idle(seconds(10)).open().unwrap();
    cache.put(&1, 1).await.unwrap();
    clock.advance(seconds(1000));
    let entry = cache.get_entry(&1).await.unwrap();
    assert_eq!((entry.value, entry.source, entry.bound), (Some(1), Source::Pending, StalenessBound::Current));
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    let exact = ReadOptions::new().max_staleness(Duration::ZERO);
    assert_eq!(cache.get_with(&1, &exact).await.unwrap(), Some(1), "it is newer than the store");
    assert_eq!(bay.stats().store_loads, 0);
    gated.release();
}

#[tokio::test]
async fn a_clock_that_is_set_back_does_no_harm() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_live(seconds(10)).open().unwrap();
    bed.put(&cache, 1).await;
    bed.source.write_outside(1, Some(2), 0);
    bed.clock.advance(seconds(6));
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    bed.clock.set_back(seconds(1000));
    assert_eq!(cache.get_entry(&1).await.unwrap().age, seconds(6), "it stands still");
    bed.clock.advance(seconds(4));
    assert_eq!(cache.get(&1).await.unwrap(), Some(2), "and then goes on");
}

#[tokio::test]
async fn a_stale_value_is_served_while_one_load_runs_in_the_background() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_live(seconds(10)).stale_while_revalidate(seconds(5)).open().unwrap();
    bed.put(&cache, 1).await;
    bed.source.write_outside(1, Some(2), 0);
    bed.clock.advance(seconds(14));
    bed.source.hold();
    for _ in 0..20 {
        let entry = cache.get_entry(&1).await.unwrap();
        assert_eq!((entry.value, entry.age), (Some(1), seconds(14)));
        assert_eq!(entry.stale, Some(StaleReason::WhileRevalidating));
        assert_eq!(entry.bound, StalenessBound::Within(seconds(15)));
    }
    bed.source.wait_for_loads(1).await;
    assert_eq!(
        (cache.stats().background_loads, cache.stats().stale[StaleReason::WhileRevalidating]),
        (1, 20)
    );
    assert_eq!(background_load(&bed, &cache).await, Some(2));
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
    assert_eq!(bed.source.loads(), 1);
    bed.source.write_outside(1, Some(3), 0);
    bed.clock.advance(seconds(15));
    assert_eq!(cache.get(&1).await.unwrap(), Some(3), "beyond the window it waits");
}

#[tokio::test]
async fn an_entry_is_loaded_early_before_its_end() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_live(seconds(1000)).early_refresh(1.0).open().unwrap();
    bed.source.write_outside(1, Some(1), 0);
    bed.source.hold();
    let mut load = Box::pin(cache.get(&1));
    assert!(poll_once(&mut load).await.is_none());
    bed.clock.advance(seconds(10));
    bed.source.let_go();
    load.await.unwrap();
    bed.source.write_outside(1, Some(2), 0);
    bed.clock.advance(seconds(700));
    // 290 s are left, and no draw of 32 bits reaches further than 22.2 times the 10 s that the load took.
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    assert_eq!(cache.stats().background_loads, 0);
    bed.clock.advance(seconds(290) - Duration::from_nanos(1));
    bed.source.hold();
    // A nanosecond is left: the odds that this read is not due are one in ten thousand million.
    assert_eq!(cache.get(&1).await.unwrap(), Some(1), "it is fresh still");
    assert_eq!(cache.stats().background_loads, 1);
    bed.source.wait_for_loads(2).await;
    assert_eq!(background_load(&bed, &cache).await, Some(2));
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
    assert_eq!((cache.stats().misses[MissReason::Expired], bed.source.loads()), (0, 2), "nobody met its end");
}

#[tokio::test]
async fn a_stale_value_is_served_if_its_load_fails_and_says_so() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_live(seconds(10)).stale_if_error(seconds(50)).open().unwrap();
    bed.put(&cache, 1).await;
    bed.clock.advance(seconds(12));
    bed.source.fail(true);
    let entry = cache.get_entry(&1).await.unwrap();
    assert_eq!((entry.value, entry.age), (Some(1), seconds(12)));
    assert_eq!(entry.stale, Some(StaleReason::LoadFailed));
    assert_eq!(entry.bound, StalenessBound::Within(seconds(60)));
    assert_eq!(entry.error.expect("the failure").kind(), ErrorKind::Transient);
    assert_eq!(cache.get_many(&[1]).await.unwrap(), [Some(1)]);
    bed.clock.advance(seconds(48));
    assert_eq!(cache.get(&1).await.expect_err("beyond the window").kind(), ErrorKind::Transient);
    bed.source.fail(false);
    bed.clock.advance(seconds(1));
    assert_eq!(cache.get_entry(&1).await.unwrap().error.map(|error| error.kind()), None);
}

#[tokio::test]
async fn a_failing_load_is_tried_once_per_interval() {
    let bed = Bed::new().await;
    let cache = bed
        .cache()
        .time_to_live(seconds(10))
        .stale_if_error(seconds(1000))
        .load_throttle(seconds(5))
        .open()
        .unwrap();
    bed.put(&cache, 1).await;
    bed.clock.advance(seconds(10));
    bed.source.fail(true);
    for attempt in 1..=4 {
        for _ in 0..25 {
            assert_eq!(cache.get(&1).await.unwrap(), Some(1));
            assert_eq!(cache.get(&2).await.expect_err("nothing to serve").kind(), ErrorKind::Transient);
        }
        assert_eq!(bed.source.loads(), 2 * attempt, "one for each key");
        assert_eq!(cache.get_many(&[1, 1]).await.unwrap(), [Some(1), Some(1)]);
        cache.refresh(&1).await.expect_err("it failed a moment ago");
        assert_eq!(bed.source.loads(), 2 * attempt);
        bed.clock.advance(seconds(5));
    }
    assert_eq!(cache.stats().failed_loads, 8);
    bed.source.fail(false);
    let entry = cache.get_entry(&1).await.unwrap();
    assert_eq!((entry.value, entry.source), (Some(1), Source::Store));
}

/// Background loads end with the layer, at whatever point they are, and hold nothing of it afterwards.
#[tokio::test]
async fn background_loads_end_with_the_layer() {
    let bed = Bed::new().await;
    let cache = bed.cache().time_to_live(seconds(10)).stale_while_revalidate(seconds(5)).open().unwrap();
    bed.put(&cache, 1).await;
    bed.clock.advance(seconds(12));
    bed.source.hold();
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    bed.source.wait_for_loads(1).await;
    let Bed { layer, source, bay, .. } = bed;
    assert_eq!(source.handles(), 2, "the layer has it");
    drop((cache, bay));
    assert_eq!(source.handles(), 1, "nobody has the store any more");
    drop(layer);
}
