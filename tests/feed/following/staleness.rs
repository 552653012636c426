//! A follower's proof that it is current, and reads that depend on it.

use std::time::Duration;

use forebay::testkit::{FlakyStore, ManualClock};
use forebay::{
    Cache, ErrorKind, Forebay, MemoryStore, MissReason, OnUnverified, ReadOptions, Source, StaleReason,
    StalenessBound,
};

use super::{Bed, before, changed, eventually};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A follower whose clock and whose view of the store are the test's.
async fn cut_off(
    bed: &Bed,
    wanted: OnUnverified,
) -> (ManualClock, FlakyStore<MemoryStore>, Forebay, Cache<u64, u64>) {
    let (clock, store) = (ManualClock::new(), FlakyStore::new(bed.layer.store.clone()));
    let follow = bed.follow().lag_max(seconds(10)).on_unverified(wanted);
    let builder = Forebay::builder(store.clone()).follow(follow).clock(clock.clone());
    let bay = builder.open().await.unwrap();
    let prices = bay.cache("prices").open().unwrap();
    bed.bus.subscribed().await;
    (clock, store, bay, prices)
}

/// Lets time pass in which nothing can be known.
async fn go_silent(clock: &ManualClock, store: &FlakyStore<MemoryStore>, bay: &Forebay, by: Duration) {
    store.fail_standing(true);
    eventually("the store does not answer", || bay.following().unwrap().error.is_some()).await;
    clock.advance(by);
}

#[tokio::test]
async fn silence_of_the_bus_is_no_staleness_as_long_as_the_store_proves_that_nothing_happened() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let (clock, _store, bay, prices) = cut_off(&bed, OnUnverified::Revalidate).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    for _ in 0..5 {
        clock.advance(seconds(9));
        eventually("the store is asked", || bay.following().unwrap().unverified_for < seconds(1)).await;
        let entry = prices.get_entry(&1).await.unwrap();
        assert_eq!((entry.source, entry.bound), (Source::Memory, StalenessBound::Within(seconds(10))));
        assert!(entry.age < seconds(9), "{:?}", entry.age);
    }
}

#[tokio::test]
async fn what_nobody_can_vouch_for_is_read_from_the_store() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let (clock, store, bay, prices) = cut_off(&bed, OnUnverified::Revalidate).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    go_silent(&clock, &store, &bay, seconds(9)).await;
    bed.write(1, 11).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10), "within the bound");
    clock.advance(seconds(1));
    assert_eq!(prices.get(&1).await.unwrap(), Some(11));
    assert_eq!(prices.stats().misses[MissReason::Unverified], 1);
}

#[tokio::test]
async fn a_reader_may_rather_have_an_error_or_the_old_value() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let (clock, store, bay, prices) = cut_off(&bed, OnUnverified::Fail).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    go_silent(&clock, &store, &bay, seconds(10)).await;
    bed.write(1, 11).await;
    assert_eq!(prices.get(&1).await.unwrap_err().kind(), ErrorKind::Unverified);
    assert_eq!(prices.get_many(&[1]).await.unwrap_err().kind(), ErrorKind::Unverified);
    let serve = ReadOptions::new().on_unverified(OnUnverified::Serve);
    let entry = prices.get_entry_with(&1, &serve).await.unwrap();
    assert_eq!((entry.value, entry.stale), (Some(10), Some(StaleReason::Unverified)));
    assert_eq!((entry.bound, prices.stats().stale[StaleReason::Unverified]), (StalenessBound::Unbounded, 1));
    // A bound of the reader's own holds all the same.
    let bounded = serve.max_staleness(seconds(5));
    assert_eq!(prices.get_with(&1, &bounded).await.unwrap(), Some(11));
}

#[tokio::test]
async fn a_readers_bound_holds_against_the_lag_of_the_events() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let (clock, _store, bay, prices) = cut_off(&bed, OnUnverified::Revalidate).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    clock.advance(seconds(3));
    eventually("the store is asked", || bay.following().unwrap().unverified_for < seconds(1)).await;
    let at_most = |age| ReadOptions::new().max_staleness(age);
    let entry = prices.get_entry_with(&1, &at_most(seconds(2))).await.unwrap();
    assert_eq!(entry.source, Source::Memory, "it is three seconds old, and known to be current");
    // The owner goes on, and nothing of it is heard.
    let seq = bed.write(2, 20).await;
    eventually("the lag is seen", || bay.following().unwrap().behind_records == 1).await;
    clock.advance(seconds(3));
    bed.write(1, 11).await;
    assert_eq!(prices.get_with(&1, &at_most(seconds(4))).await.unwrap(), Some(10));
    assert_eq!(prices.get_with(&1, &at_most(seconds(2))).await.unwrap(), Some(11));
    assert!(bay.watermark() < seq);
}

#[tokio::test]
async fn events_that_do_not_come_empty_memory_in_the_end() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let (clock, _store, bay, prices) = cut_off(&bed, OnUnverified::Serve).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    let seq = bed.write(1, 11).await;
    eventually("the lag is seen", || bay.following().unwrap().behind_records == 1).await;
    clock.advance(seconds(10));
    eventually("the place is given up", || bay.watermark() == seq).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(11));
    assert_eq!(bay.following().unwrap().places_lost, 1);
}

/// A loaded value is as old as its load, unless it was read from what the owner's events vouch for.
#[tokio::test]
async fn a_derived_value_is_as_current_as_what_it_was_read_from() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let (clock, _store, bay, prices) = cut_off(&bed, OnUnverified::Revalidate).await;
    let (derived, loaded) =
        (bay.cache::<u64, u64>("derived").open().unwrap(), bay.cache("loaded").open().unwrap());
    let read = async || {
        let (prices, options) = (prices.clone(), ReadOptions::new());
        let derive = derived.get_or_derive_with(&1, &options, move |key, context| async move {
            Ok::<_, forebay::Error>(context.get(&prices, &key).await?.map(|price| price + 1))
        });
        let load = |_| async { Ok::<_, std::io::Error>(Some(5_u64)) };
        let loaded = loaded.get_or_load_with(&1_u64, &options, load).await.unwrap();
        (derive.await.unwrap().source, loaded.source)
    };
    assert_eq!(read().await, (Source::Loader, Source::Loader));
    assert_eq!(read().await, (Source::Memory, Source::Memory));
    clock.advance(seconds(10));
    eventually("the store is asked", || bay.following().unwrap().unverified_for < seconds(1)).await;
    assert_eq!(read().await, (Source::Memory, Source::Loader));
}

#[tokio::test]
async fn a_receipt_of_another_process_is_seen_though_no_event_has_come() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let (bay, prices) = bed.follower().await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    let receipt = bed.prices.put(&1, 11).await.unwrap();
    // As it travels.
    let receipt: forebay::Receipt = serde_json::from_str(&serde_json::to_string(&receipt).unwrap()).unwrap();
    let options = ReadOptions::new().at_least(receipt);
    assert_eq!(prices.get_with(&1, &options).await.unwrap(), Some(11));
    assert!(bay.watermark() < receipt.seq(), "it was read past memory");
    assert_eq!(prices.get_many_with(&[1], &options).await.unwrap(), [Some(11)]);
    bed.tell(before(receipt.seq()), receipt.seq(), vec![changed(1, receipt.seq())]).await;
    prices.get(&1).await.unwrap();
    let entry = prices.get_entry_with(&1, &options).await.unwrap();
    assert_eq!((entry.value, entry.source), (Some(11), Source::Memory));
}

#[tokio::test]
async fn a_receipt_of_what_the_store_does_not_hold_yet_is_waited_for_and_not_for_ever() {
    let bed = Bed::new().await;
    let seq = bed.write(1, 10).await;
    let builder = Forebay::builder(bed.layer.store.clone()).follow(bed.follow());
    let bay = builder.through_timeout(Duration::from_millis(20)).open().await.unwrap();
    let prices: Cache<u64, u64> = bay.cache("prices").open().unwrap();
    let receipt: forebay::Receipt = serde_json::from_str(&format!("{{\"seq\":{}}}", seq.get() + 1)).unwrap();
    let options = ReadOptions::new().at_least(receipt);
    let error = prices.get_with(&1, &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(format!("{error:#}").contains(&format!("has not come to record {}", seq.get() + 1)), "{error}");
}

#[tokio::test]
async fn a_follower_writes_nothing() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let (bay, prices) = bed.follower().await;
    assert_eq!(prices.put(&1, 11).await.unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(prices.remove(&1).await.unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(bay.invalidate_namespace("prices").await.unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(bed.owner.health().epoch, bed.epoch());
    assert_eq!(
        bed.prices.put(&1, 12).await.map(|_| ()).map_err(|error| error.kind()),
        Ok(()),
        "it is not fenced"
    );
    bay.close().await.unwrap();
}
