//! Reads with a bound on staleness, which caps everything that the cache would allow, and the proof that they return.

use std::time::Duration;

use forebay::testkit::ManualClock;
use forebay::{
    Cache, CacheBuilder, ErrorKind, Forebay, MissReason, ReadOptions, Seq, Source, StaleReason,
    StalenessBound, WritePolicy,
};

use crate::support::held_loads::HeldLoads;
use crate::support::{Layer, poll_once};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn at_most(age: Duration) -> ReadOptions {
    ReadOptions::new().max_staleness(age)
}

async fn bed() -> (ManualClock, HeldLoads, Forebay) {
    let (layer, clock) = (Layer::new(), ManualClock::new());
    let source = HeldLoads::new(&layer.store);
    let bay = layer.builder_on(source.clone()).clock(clock.clone()).open().await.unwrap();
    (clock, source, bay)
}

fn lenient(bay: &Forebay) -> CacheBuilder<u32, u64> {
    bay.cache("n")
        .time_to_live(seconds(10))
        .stale_while_revalidate(seconds(1000))
        .stale_if_error(seconds(1000))
        .negative_time_to_live(seconds(1000))
}

#[tokio::test]
async fn a_reads_tolerance_caps_what_the_cache_allows() {
    let (clock, source, bay) = bed().await;
    let cache = lenient(&bay).open().unwrap();
    source.write_outside(1, Some(1), 7);
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    assert_eq!(cache.get(&2).await.unwrap(), None);
    source.write_outside(1, Some(2), 8);
    source.write_outside(2, Some(2), 8);
    clock.advance(seconds(5));
    let entry = cache.get_entry_with(&1, &at_most(seconds(6))).await.unwrap();
    assert_eq!(
        (entry.value, entry.bound),
        (Some(1), StalenessBound::Within(seconds(6))),
        "it is fresh, and young enough"
    );
    assert_eq!(
        cache.get_with(&1, &at_most(seconds(5))).await.unwrap(),
        Some(2),
        "its time to live is not up"
    );
    assert_eq!(
        cache.get_many_with(&[1, 2], &at_most(seconds(5))).await.unwrap(),
        [Some(2), Some(2)],
        "an absence"
    );
    source.write_outside(1, Some(3), 9);
    clock.advance(seconds(20));
    assert_eq!(cache.get_with(&1, &at_most(seconds(20))).await.unwrap(), Some(3), "it could be revalidated");
    source.fail(true);
    clock.advance(seconds(20));
    let error = cache.get_with(&1, &at_most(seconds(20))).await.expect_err("nothing else is young enough");
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert_eq!(cache.get_with(&1, &at_most(seconds(21))).await.unwrap(), Some(3));
    assert_eq!(cache.stats().misses[MissReason::TooOld], 4);
}

#[tokio::test]
async fn no_tolerance_reads_the_store() {
    let (clock, source, bay) = bed().await;
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    source.write_outside(1, Some(1), 0);
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    source.write_outside(1, Some(2), 0);
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    source.hold();
    let options = at_most(Duration::ZERO);
    let mut one = Box::pin(cache.get_entry_with(&1, &options));
    let mut other = Box::pin(cache.get_entry_with(&1, &options));
    assert!(poll_once(&mut one).await.is_none());
    source.write_outside(1, Some(3), 0);
    clock.advance(seconds(1));
    assert!(poll_once(&mut other).await.is_none());
    assert_eq!(source.loads(), 3, "a load that began earlier is not joined");
    assert_eq!(cache.get(&1).await.unwrap(), Some(1), "others go on with what memory has");
    source.let_go();
    let entry = other.await.unwrap();
    assert_eq!((entry.value, entry.source, entry.bound), (Some(3), Source::Store, StalenessBound::Current));
    assert_eq!(one.await.unwrap().value, Some(2), "it began before");
    assert_eq!(cache.get(&1).await.unwrap(), Some(3), "memory keeps what the later load brought");
}

#[tokio::test]
async fn refresh_asks_the_store_while_others_have_what_memory_has() {
    let (_clock, source, bay) = bed().await;
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    source.write_outside(1, Some(1), 0);
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    source.write_outside(1, Some(2), 0);
    assert_eq!(cache.refresh(&1).await.unwrap(), Some(2));
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
    source.fail(true);
    cache.refresh(&1).await.expect_err("the source is down");
    assert_eq!(cache.get(&1).await.unwrap(), Some(2), "a failed refresh takes nothing away");
    source.fail(false);
    source.write_outside(1, None, 0);
    assert_eq!(cache.refresh(&1).await.unwrap(), None);
    source.fail(true);
    cache.get(&1).await.expect_err("what is gone is not served");
}

#[tokio::test]
async fn an_entry_is_its_own_proof() {
    let (clock, source, bay) = bed().await;
    let cache = lenient(&bay).open().unwrap();
    let receipt = cache.put(&1, 1).await.unwrap();
    clock.advance(seconds(2));
    let entry = cache.get_entry(&1).await.unwrap();
    assert_eq!((entry.version, entry.age, entry.source), (Some(receipt.seq()), seconds(2), Source::Memory));
    assert_eq!((entry.bound, entry.stale), (StalenessBound::Within(seconds(10)), None));
    bay.flush().await.unwrap();
    cache.evict(&1);
    let entry = cache.get_entry(&1).await.unwrap();
    assert_eq!((entry.version, entry.age), (Some(receipt.seq()), Duration::ZERO));
    assert_eq!((entry.source, entry.bound), (Source::Store, StalenessBound::Current));
    clock.advance(seconds(11));
    let entry = cache.get_entry(&1).await.unwrap();
    assert_eq!((entry.age, entry.stale), (seconds(11), Some(StaleReason::WhileRevalidating)));
    let load = |_| async { Ok::<_, String>(Some(5)) };
    let entry = cache.get_or_load_with(&3, &ReadOptions::new(), load).await.unwrap();
    assert_eq!((entry.value, entry.version, entry.source), (Some(5), None, Source::Loader));
    assert_eq!(cache.get_entry(&2).await.unwrap().version, None);
    let unlimited: Cache<u32, u64> = bay.cache("m").open().unwrap();
    unlimited.put(&1, 1).await.unwrap();
    assert_eq!(unlimited.get_entry(&1).await.unwrap().bound, StalenessBound::Unbounded);
    source.fail(true);
}

/// Whatever fails, what was invalidated or removed is not a fallback.
#[tokio::test]
async fn what_was_invalidated_or_removed_is_never_served_instead() {
    for change in
        ["invalidate", "invalidate_all", "invalidate_version", "remove", "remove through", "put around"]
    {
        for meanwhile in [false, true] {
            let (clock, source, bay) = bed().await;
            let cache = lenient(&bay).stale_while_revalidate(Duration::ZERO).open().unwrap();
            cache.put(&1, 1).await.unwrap();
            bay.flush().await.unwrap();
            clock.advance(seconds(20));
            source.fail(true);
            let mut before = None;
            if meanwhile {
                source.hold();
                let mut read = Box::pin(cache.get(&1));
                assert!(poll_once(&mut read).await.is_none());
                before = Some(read);
            } else {
                assert_eq!(cache.get(&1).await.unwrap(), Some(1), "{change}: as long as it stands");
                clock.advance(seconds(2));
            }
            match change {
                "invalidate" => cache.invalidate(&1),
                "invalidate_all" => cache.invalidate_all(),
                "invalidate_version" => assert!(cache.invalidate_version(&1, Seq::new(99))),
                "remove" => drop(cache.remove(&1).await.unwrap()),
                "remove through" => drop(cache.remove_with(&1, WritePolicy::Through).await.unwrap()),
                _ => drop(cache.put_with(&1, 2, WritePolicy::Around).await.unwrap()),
            }
            bay.flush().await.unwrap();
            source.let_go();
            if let Some(read) = before {
                let error = read.await.expect_err(change);
                assert_eq!(error.kind(), ErrorKind::Transient, "{change}");
            }
            let error = cache.get(&1).await.expect_err(change);
            assert_eq!(error.kind(), ErrorKind::Transient, "{change}");
            assert_eq!(cache.get_many(&[1]).await.expect_err(change).kind(), ErrorKind::Transient);
            let waits = ReadOptions::new().stale_instead_of_waiting(seconds(1000));
            cache.get_with(&1, &waits).await.expect_err(change);
        }
    }
}
