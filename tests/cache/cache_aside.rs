//! Cache-aside: loaders with leases, writes around memory, and invalidations of single keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use forebay::testkit::ManualClock;
use forebay::{
    Cache, ErrorKind, Forebay, Loaded, MemoryStore, MissReason, ReadOptions, Seq, Source, StaleReason,
    WritePolicy,
};
use tokio::sync::watch;

use crate::support::held_loads::HeldLoads;
use crate::support::{GatedStore, Layer, poll_once, stored};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// An outside source whose answer is taken at once and given when it is let go.
#[derive(Clone)]
struct Outside {
    value: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
    open: Arc<watch::Sender<bool>>,
    fails: Arc<watch::Sender<bool>>,
}

impl Outside {
    fn new(value: u64) -> Outside {
        Outside {
            value: Arc::new(AtomicU64::new(value)),
            asked: Arc::default(),
            open: Arc::new(watch::Sender::new(true)),
            fails: Arc::new(watch::Sender::new(false)),
        }
    }

    fn load(
        &self,
    ) -> impl FnOnce(u32) -> forebay::store::BoxFuture<'static, Result<Option<u64>, String>> + Send + 'static
    {
        let source = self.clone();
        move |_| {
            Box::pin(async move {
                source.asked.fetch_add(1, SeqCst);
                let taken = source.value.load(SeqCst);
                source.open.subscribe().wait_for(|open| *open).await.unwrap();
                if *source.fails.borrow() { Err("down".to_owned()) } else { Ok((taken > 0).then_some(taken)) }
            })
        }
    }

    fn asked(&self) -> u64 {
        self.asked.load(SeqCst)
    }
}

async fn open() -> (Layer, HeldLoads, Forebay, Cache<u32, u64>) {
    let layer = Layer::new();
    let held = HeldLoads::new(&layer.store);
    let bay = layer.builder_on(held.clone()).open().await.unwrap();
    let cache = bay.cache("n").open().unwrap();
    (layer, held, bay, cache)
}

#[tokio::test]
async fn a_loader_is_asked_after_memory_pending_and_store() {
    let (layer, _held, bay, cache) = open().await;
    let source = Outside::new(7);
    cache.put(&1, 1).await.unwrap();
    assert_eq!(cache.get_or_load(&1, source.load()).await.unwrap(), Some(1), "memory");
    cache.evict(&1);
    assert_eq!(cache.get_or_load(&1, source.load()).await.unwrap(), Some(1), "pending or the store");
    bay.flush().await.unwrap();
    cache.evict(&1);
    assert_eq!(cache.get_or_load(&1, source.load()).await.unwrap(), Some(1), "the store");
    assert_eq!(source.asked(), 0);
    assert_eq!(cache.get(&2).await.unwrap(), None);
    assert_eq!(cache.get_or_load(&2, source.load()).await.unwrap(), Some(7));
    assert_eq!((cache.get(&2).await.unwrap(), source.asked()), (Some(7), 1), "memory has it");
    bay.flush().await.unwrap();
    assert_eq!(stored::<_, u64>(&layer.store, "n", &2).await, None, "the store does not");
    cache.remove(&1).await.unwrap();
    assert_eq!(cache.get_or_load(&1, source.load()).await.unwrap(), Some(7), "a pending removal is no value");
    assert_eq!(cache.stats().loader_hits, 2);
}

/// An absence that a read without a loader noted is no answer for one with a loader.
#[tokio::test]
async fn the_stores_absence_is_not_the_loaders() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, u64> = bay.cache("n").negative_time_to_live(seconds(3600)).open().unwrap();
    let source = Outside::new(7);
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert_eq!(cache.get_or_load(&1, source.load()).await.unwrap(), Some(7));
    assert_eq!(cache.refresh(&1).await.unwrap(), None, "the store has nothing");
    assert_eq!(
        cache.get_or_load(&1, source.load()).await.unwrap(),
        Some(7),
        "which is nothing to the loader's value"
    );
    assert_eq!(source.asked(), 1);
    source.value.store(0, SeqCst);
    assert_eq!(cache.get_or_load(&2, source.load()).await.unwrap(), None);
    assert_eq!(cache.get_or_load(&2, source.load()).await.unwrap(), None);
    assert_eq!((cache.get(&2).await.unwrap(), source.asked()), (None, 2));
}

#[tokio::test]
async fn a_herd_makes_one_load_and_a_cancelled_leader_changes_nothing() {
    let (_layer, _held, _bay, cache) = open().await;
    let source = Outside::new(7);
    source.open.send_replace(false);
    let mut readers: Vec<_> = (0..1000).map(|_| Box::pin(cache.get_or_load(&1, source.load()))).collect();
    for reader in &mut readers {
        assert!(poll_once(reader).await.is_none());
    }
    drop(readers.remove(0));
    source.open.send_replace(true);
    for reader in readers {
        assert_eq!(reader.await.unwrap(), Some(7));
    }
    assert_eq!((source.asked(), cache.stats().loads, cache.stats().joined_loads), (1, 1, 999));
}

#[tokio::test]
async fn a_panicking_loader_releases_its_waiters() {
    let (_layer, _held, _bay, cache) = open().await;
    let (gate, opened) = watch::channel(false);
    let panics = move |_| {
        let mut opened = opened.clone();
        async move {
            opened.wait_for(|open| *open).await.unwrap();
            if true {
                panic!("a loader's defect")
            }
            Ok::<_, String>(Some(1))
        }
    };
    let mut leader = Box::pin(cache.get_or_load(&1, panics));
    let mut waiter = Box::pin(cache.get_or_load(&1, Outside::new(1).load()));
    assert!(poll_once(&mut leader).await.is_none() && poll_once(&mut waiter).await.is_none());
    gate.send_replace(true);
    for error in [leader.await.expect_err("it panicked"), waiter.await.expect_err("it panicked")] {
        assert_eq!(error.kind(), ErrorKind::LoadFailed, "{error}");
    }
    assert_eq!(cache.stats().failed_loads, 1);
    assert_eq!(cache.get_or_load(&1, Outside::new(2).load()).await.unwrap(), Some(2));
}

/// Changes of a key while a loader is under way.
const CHANGES: [&str; 8] = [
    "put",
    "put through",
    "put around",
    "remove",
    "invalidate",
    "invalidate_all",
    "invalidate_version",
    "batch",
];

async fn make(change: &str, bay: &Forebay, cache: &Cache<u32, u64>) {
    match change {
        "put" => drop(cache.put(&1, 2).await.unwrap()),
        "put through" => drop(cache.put_with(&1, 2, WritePolicy::Through).await.unwrap()),
        "put around" => drop(cache.put_with(&1, 2, WritePolicy::Around).await.unwrap()),
        "remove" => drop(cache.remove(&1).await.unwrap()),
        "invalidate" => cache.invalidate(&1),
        "invalidate_all" => cache.invalidate_all(),
        "invalidate_version" => assert!(cache.invalidate_version(&1, Seq::new(9))),
        _ => {
            let mut batch = bay.batch();
            batch.put(cache, &1, 2).unwrap();
            batch.commit().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_loader_that_began_before_a_change_is_neither_kept_nor_joined() {
    for change in CHANGES {
        let (_layer, _held, bay, cache) = open().await;
        let source = Outside::new(1);
        source.open.send_replace(false);
        let mut older = Box::pin(cache.get_or_load(&1, source.load()));
        assert!(poll_once(&mut older).await.is_none());
        make(change, &bay, &cache).await;
        bay.flush().await.unwrap();
        cache.evict(&1);
        source.value.store(2, SeqCst);
        let mut newer = Box::pin(cache.get_or_load(&1, source.load()));
        let early = poll_once(&mut newer).await;
        source.open.send_replace(true);
        assert_eq!(older.await.unwrap(), Some(1), "{change}: it began before");
        let newer = match early {
            Some(newer) => newer,
            None => newer.await,
        };
        assert_eq!(newer.unwrap(), Some(2), "{change}: it joins no older load");
        assert_eq!(
            cache.get_or_load(&1, source.load()).await.unwrap(),
            Some(2),
            "{change}: nor is that kept"
        );
        assert_eq!(cache.stats().refused_fills, 1, "{change}");
    }
}

#[tokio::test]
async fn a_failing_loader_is_tried_once_per_interval_and_a_stale_value_serves() {
    let (layer, clock) = (Layer::new(), ManualClock::new());
    let bay = layer.builder().clock(clock.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay
        .cache("n")
        .time_to_live(seconds(10))
        .stale_if_error(seconds(100))
        .load_throttle(seconds(5))
        .open()
        .unwrap();
    let source = Outside::new(7);
    assert_eq!(cache.get_or_load(&1, source.load()).await.unwrap(), Some(7));
    clock.advance(seconds(10));
    source.fails.send_replace(true);
    for attempt in 1..=3 {
        for _ in 0..10 {
            let entry = cache.get_or_load_with(&1, &ReadOptions::new(), source.load()).await.unwrap();
            assert_eq!((entry.value, entry.stale), (Some(7), Some(StaleReason::LoadFailed)));
            let error = cache.get_or_load(&2, source.load()).await.expect_err("nothing to serve");
            assert_eq!(error.kind(), ErrorKind::LoadFailed);
            assert!(format!("{error:#}").contains("down"), "{error}");
        }
        assert_eq!(source.asked(), 1 + 2 * attempt);
        clock.advance(seconds(5));
    }
    source.fails.send_replace(false);
    source.value.store(8, SeqCst);
    assert_eq!(cache.get_or_load(&1, source.load()).await.unwrap(), Some(8));
}

#[tokio::test]
async fn a_waiter_may_take_a_stale_value_instead() {
    let (layer, clock) = (Layer::new(), ManualClock::new());
    let bay = layer.builder().clock(clock.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").time_to_live(seconds(10)).open().unwrap();
    let source = Outside::new(7);
    assert_eq!(cache.get_or_load(&1, source.load()).await.unwrap(), Some(7));
    clock.advance(seconds(20));
    source.value.store(8, SeqCst);
    source.open.send_replace(false);
    let takes = |age| ReadOptions::new().stale_instead_of_waiting(seconds(age));
    let (options, young, capped) = (takes(21), takes(20), takes(21).max_staleness(seconds(15)));
    let mut leader = Box::pin(cache.get_or_load_with(&1, &options, source.load()));
    assert!(poll_once(&mut leader).await.is_none(), "who loads by itself waits for its load");
    let entry = cache.get_or_load_with(&1, &takes(21), source.load()).await.unwrap();
    assert_eq!((entry.value, entry.stale), (Some(7), Some(StaleReason::InsteadOfWaiting)));
    let mut waiter = Box::pin(cache.get_or_load_with(&1, &young, source.load()));
    let mut strict = Box::pin(cache.get_or_load_with(&1, &capped, source.load()));
    assert!(poll_once(&mut waiter).await.is_none() && poll_once(&mut strict).await.is_none());
    source.open.send_replace(true);
    for reader in [leader, waiter, strict] {
        assert_eq!(reader.await.unwrap().value, Some(8));
    }
    assert_eq!(source.asked(), 2);
}

#[tokio::test]
async fn of_many_only_what_is_missing_is_loaded_in_one_call() {
    let (_layer, held, bay, cache) = open().await;
    cache.put(&1, 1).await.unwrap();
    cache.put(&2, 2).await.unwrap();
    bay.flush().await.unwrap();
    cache.evict(&2);
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let load = || {
        let asked = Arc::clone(&asked);
        move |keys: Vec<u32>| async move {
            let loaded = keys.iter().map(|key| (*key != 5).then_some(u64::from(*key) * 10)).collect();
            asked.lock().unwrap().push(keys);
            Ok::<Vec<Option<u64>>, String>(loaded)
        }
    };
    let all = cache.get_many_or_load(&[4, 1, 5, 2, 3, 4], load()).await.unwrap();
    assert_eq!(all, [Some(40), Some(1), None, Some(2), Some(30), Some(40)]);
    assert_eq!(*asked.lock().unwrap(), [[4, 5, 3]]);
    assert_eq!(held.loads(), 1, "one call to the store, too");
    assert_eq!(cache.get_many_or_load(&[1, 2, 3, 4], load()).await.unwrap().len(), 4);
    assert_eq!(asked.lock().unwrap().len(), 1, "nothing was missing");
    let short = |_| async { Ok::<Vec<Option<u64>>, String>(vec![]) };
    let error = cache.get_many_or_load(&[6], short).await.expect_err("it answered no key");
    assert_eq!(error.kind(), ErrorKind::LoadFailed);
    assert!(format!("{error:#}").contains("0 keys out of 1"), "{error}");
}

#[tokio::test]
async fn a_loader_may_say_how_long_its_value_lives() {
    let (layer, clock) = (Layer::new(), ManualClock::new());
    let bay = layer.builder().clock(clock.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").time_to_live(seconds(100)).open().unwrap();
    let brief = |value| move |_| async move { Ok::<_, String>(Loaded::new(value).time_to_live(seconds(5))) };
    assert_eq!(cache.get_or_load(&1, brief(1)).await.unwrap(), Some(1));
    let absent = |_| async { Ok::<_, String>(Loaded::absent().time_to_live(seconds(5))) };
    assert_eq!(cache.get_or_load(&2, absent).await.unwrap(), None);
    clock.advance(seconds(4));
    assert_eq!(cache.get_or_load(&1, brief(2)).await.unwrap(), Some(1));
    assert_eq!(cache.get_or_load(&2, brief(2)).await.unwrap(), None);
    clock.advance(seconds(1));
    assert_eq!(cache.get_or_load(&1, brief(2)).await.unwrap(), Some(2));
    assert_eq!(cache.get_or_load(&2, brief(2)).await.unwrap(), Some(2));
}

#[tokio::test]
async fn a_write_around_goes_to_the_store_and_leaves_memory() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").write_policy(WritePolicy::Around).open().unwrap();
    let first = cache.put(&1, 1).await.unwrap();
    assert_eq!(stored(&layer.store, "n", &1).await, Some((1_u64, first.seq())), "when it returns");
    assert_eq!(cache.resident_count(), 0);
    assert_eq!(cache.get_entry(&1).await.unwrap().source, Source::Store);
    assert_eq!(cache.resident_count(), 1);
    gated.stall();
    let mut write = Box::pin(cache.put(&1, 2));
    assert!(poll_once(&mut write).await.is_none());
    assert_eq!(cache.resident_count(), 0, "memory lets it go before the outcome is known");
    gated.wait_for_applies(2).await;
    let mut read = Box::pin(cache.get(&1));
    assert!(poll_once(&mut read).await.is_none(), "whoever reads now waits for the outcome");
    gated.release();
    write.await.unwrap();
    assert_eq!(read.await.unwrap(), Some(2));
    // Behind writes come first, in the one order.
    cache.put_with(&2, 1, WritePolicy::Behind).await.unwrap();
    let receipt = cache.put(&2, 2).await.unwrap();
    assert!(bay.watermark() >= receipt.seq());
    assert_eq!(cache.get(&2).await.unwrap(), Some(2));
    let mut batch = bay.batch();
    batch.put(&cache, &1, 3).unwrap();
    let receipt = batch.commit().await.unwrap();
    assert_eq!(
        stored(&layer.store, "n", &1).await,
        Some((3_u64, receipt.seq())),
        "a batch with it goes through"
    );
    assert_eq!(cache.get_entry(&1).await.unwrap().source, Source::Store);
}

/// While a write around memory waits for room in the queue, the old value is the store's, and readers may bring it back
/// into memory. It is gone when the store has the new one.
#[tokio::test]
async fn nothing_that_was_read_before_a_write_around_outlives_it() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    let bay = layer.builder_on(gated.clone()).queue_records_max(1).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    cache.put(&1, 1).await.unwrap();
    bay.flush().await.unwrap();
    gated.stall();
    cache.put(&2, 1).await.unwrap();
    let mut write = Box::pin(cache.put_with(&1, 2, WritePolicy::Around));
    assert!(poll_once(&mut write).await.is_none(), "the queue is full");
    assert_eq!(cache.get_entry(&1).await.unwrap().source, Source::Store);
    assert_eq!(cache.get_entry(&1).await.unwrap().source, Source::Memory, "the old value is back");
    gated.release();
    write.await.unwrap();
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
}

#[tokio::test]
async fn a_version_is_invalidated_only_if_memory_cannot_prove_it() {
    let (_layer, held, _bay, cache) = open().await;
    held.write_outside(1, Some(5), 5);
    assert_eq!(cache.get(&1).await.unwrap(), Some(5));
    for version in [4, 5, 5] {
        assert!(!cache.invalidate_version(&1, Seq::new(version)));
    }
    assert_eq!((cache.get(&1).await.unwrap(), held.loads()), (Some(5), 1));
    held.write_outside(1, Some(6), 6);
    assert!(cache.invalidate_version(&1, Seq::new(6)));
    assert_eq!((cache.get(&1).await.unwrap(), held.loads()), (Some(6), 2));
    assert!(!cache.invalidate_version(&1, Seq::new(6)), "the same again");
    assert_eq!((cache.get(&1).await.unwrap(), held.loads()), (Some(6), 2));
    let source = Outside::new(7);
    assert_eq!(cache.get_or_load(&2, source.load()).await.unwrap(), Some(7));
    assert!(cache.invalidate_version(&2, Seq::new(1)), "nobody knows which version this is");
    source.value.store(8, SeqCst);
    assert_eq!(cache.get_or_load(&2, source.load()).await.unwrap(), Some(8));
}

/// Somebody removes or changes a value in the store while it is being loaded, and refreshes. The refresh leaves nothing
/// in memory that could show that the load is older: it found nothing, or its value is evicted.
#[tokio::test]
async fn what_a_refresh_found_outlives_older_loads() {
    let (_layer, held, _bay, cache) = open().await;
    let source = Outside::new(0);
    for (key, now) in [(1, None), (2, Some(6))] {
        held.write_outside(key, Some(5), 5);
        held.hold();
        let mut older = Box::pin(cache.get(&key));
        let mut loader = Box::pin(cache.get_or_load(&key, source.load()));
        assert!(poll_once(&mut older).await.is_none() && poll_once(&mut loader).await.is_none());
        held.write_outside(key, now, 6);
        held.let_go();
        assert_eq!(cache.refresh(&key).await.unwrap(), now);
        cache.evict(&key);
        assert_eq!(cache.get(&key).await.unwrap(), now);
        cache.evict(&key);
        assert_eq!(cache.get_or_load(&key, source.load()).await.unwrap(), now, "it joins no older load");
        cache.evict(&key);
        assert_eq!((older.await.unwrap(), loader.await.unwrap()), (Some(5), Some(5)), "they began before");
        assert_eq!(cache.resident_count(), 0, "nor is kept what they brought");
    }
}

/// The notice of a version comes late: memory has it already. A load that began before the version did is still under
/// way, and memory soon makes room.
#[tokio::test]
async fn what_a_version_invalidates_includes_loads_under_way_though_memory_has_it() {
    let (_layer, held, _bay, cache) = open().await;
    let source = Outside::new(0);
    held.write_outside(1, Some(5), 5);
    held.hold();
    let mut older = Box::pin(cache.get_or_load(&1, source.load()));
    assert!(poll_once(&mut older).await.is_none());
    held.write_outside(1, Some(6), 6);
    held.let_go();
    assert_eq!(cache.get(&1).await.unwrap(), Some(6));
    assert!(!cache.invalidate_version(&1, Seq::new(6)), "memory has it");
    assert_eq!(cache.get_entry(&1).await.unwrap().source, Source::Memory);
    cache.evict(&1);
    assert_eq!(cache.get_or_load(&1, source.load()).await.unwrap(), Some(6), "it joins no older load");
    cache.evict(&1);
    assert_eq!(older.await.unwrap(), Some(5), "it began before");
    assert_eq!(cache.resident_count(), 0, "nor is kept what it brought");
}

#[test]
fn the_blocking_face_has_the_same_calls() {
    let clock = ManualClock::new();
    let bay = Forebay::builder(MemoryStore::new()).clock(clock.clone()).open_blocking().unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").time_to_live(seconds(10)).open().unwrap();
    let cache = cache.blocking();
    let here = std::thread::current().id();
    let load = move |key: u32| {
        assert_ne!(std::thread::current().id(), here, "it may block its own thread");
        Ok::<_, String>(Some(u64::from(key)))
    };
    assert_eq!(cache.get_or_load(&1, load).unwrap(), Some(1));
    let many = cache.get_many_or_load(&[1, 2], |keys| {
        Ok::<_, String>(keys.into_iter().map(|key| Some(u64::from(key) + 100)).collect())
    });
    assert_eq!(many.unwrap(), [Some(1), Some(102)]);
    let panics = |_| if true { panic!("a loader's defect") } else { Ok::<_, String>(Some(1)) };
    assert_eq!(cache.get_or_load(&3, panics).expect_err("it panicked").kind(), ErrorKind::LoadFailed);
    assert_eq!(cache.get_entry(&1).unwrap().source, Source::Memory);
    let exact = ReadOptions::new().max_staleness(Duration::ZERO);
    assert_eq!(cache.get_with(&1, &exact).unwrap(), None, "the store has nothing");
    cache.put(&4, 4).unwrap();
    assert_eq!(cache.refresh(&4).unwrap(), Some(4));
    assert_eq!(cache.get_many_with(&[4], &exact).unwrap(), [Some(4)]);
    assert_eq!(cache.get_entry_with(&4, &exact).unwrap().source, Source::Store);
    assert_eq!(cache.get_or_load_with(&4, &exact, load).unwrap().value, Some(4));
}

#[test]
fn a_blocking_read_is_counted_once_whether_memory_answers_or_not() {
    let bay = Forebay::builder(MemoryStore::new()).open_blocking().unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    let blocking = cache.blocking();
    blocking.put(&1, 10).unwrap();
    assert_eq!(blocking.get(&1).unwrap(), Some(10));
    let stats = cache.stats();
    assert_eq!((stats.memory_hits, stats.misses[MissReason::Absent], stats.store_hits), (1, 0, 0));
    cache.evict(&1);
    assert_eq!(blocking.get(&1).unwrap(), Some(10));
    assert_eq!(blocking.get(&2).unwrap(), None);
    let stats = cache.stats();
    assert_eq!((stats.memory_hits, stats.misses[MissReason::Absent], stats.store_hits), (1, 2, 1));
}
