//! Reads against changes, with the store's answer held back by hand: no old value stays, none is returned late.

use bytes::Bytes;
use forebay::{Cache, ErrorKind, Forebay, WritePolicy};

use crate::support::held_loads::HeldLoads;
use crate::support::{Layer, poll_once};

/// Changes of a key while an older load of it is on its way.
#[derive(Clone, Copy, Debug)]
enum Change {
    Put,
    PutThrough,
    Remove,
    InBatch,
    Invalidate,
    InvalidateAll,
}

const CHANGES: [Change; 6] = [
    Change::Put,
    Change::PutThrough,
    Change::Remove,
    Change::InBatch,
    Change::Invalidate,
    Change::InvalidateAll,
];

/// Makes the change. For an invalidation the store has been changed by somebody else before.
async fn make(change: Change, bay: &Forebay, cache: &Cache<u32, u64>) {
    match change {
        Change::Put => assert!(cache.put(&1, 2).await.is_ok()),
        Change::PutThrough => assert!(cache.put_with(&1, 2, WritePolicy::Through).await.is_ok()),
        Change::Remove => assert!(cache.remove(&1).await.is_ok()),
        Change::InBatch => {
            let mut batch = bay.batch();
            batch.put(cache, &1, 2).unwrap();
            assert!(batch.commit().await.is_ok());
        }
        Change::Invalidate => cache.invalidate(&1),
        Change::InvalidateAll => cache.invalidate_all(),
    }
}

async fn open(held: &HeldLoads, layer: &Layer) -> (Forebay, Cache<u32, u64>) {
    let bay = layer.builder_on(held.clone()).open().await.unwrap();
    let cache = bay.cache("n").open().unwrap();
    (bay, cache)
}

/// P6: an older load, of a present or an absent key, is not kept after a change, and a read that begins after the
/// change does not join it.
#[tokio::test]
async fn an_older_load_never_lands_after_a_change_and_is_never_joined() {
    for (change, present) in CHANGES.iter().flat_map(|change| [(*change, true), (*change, false)]) {
        let layer = Layer::new();
        let held = HeldLoads::new(&layer.store);
        let (bay, cache) = open(&held, &layer).await;
        if present {
            cache.put(&1, 1).await.unwrap();
            bay.flush().await.unwrap();
            cache.evict(&1);
        }
        held.hold();
        let mut older = Box::pin(cache.get(&1));
        assert!(poll_once(&mut older).await.is_none());
        let loads = held.loads();
        make(change, &bay, &cache).await;
        // A write is read from memory or from what is pending, so only after dropping both the store is asked.
        bay.flush().await.unwrap();
        cache.evict(&1);
        let mut newer = Box::pin(cache.get(&1));
        assert!(poll_once(&mut newer).await.is_none(), "{change:?}: it has to ask the store itself");
        assert_eq!(
            held.loads(),
            loads + 1,
            "{change:?}: a read that begins after the change joins no older load"
        );
        let now = match change {
            Change::Put | Change::PutThrough | Change::InBatch => Some(2),
            Change::Remove => None,
            Change::Invalidate | Change::InvalidateAll => present.then_some(1),
        };
        held.let_go();
        assert_eq!(older.await.unwrap(), present.then_some(1), "{change:?}: it began before the change");
        assert_eq!(cache.resident_count(), 0, "{change:?}: the older load was not kept");
        assert_eq!(newer.await.unwrap(), now, "{change:?}");
        assert_eq!(bay.stats().refused_fills, u64::from(present), "{change:?}");
    }
}

#[tokio::test]
async fn a_herd_of_readers_of_one_absent_key_makes_one_load() {
    let layer = Layer::new();
    let held = HeldLoads::new(&layer.store);
    let (bay, cache) = open(&held, &layer).await;
    held.hold();
    let mut readers: Vec<_> = (0..200).map(|_| Box::pin(cache.get(&1))).collect();
    for reader in &mut readers {
        assert!(poll_once(reader).await.is_none());
    }
    assert_eq!(held.loads(), 1);
    held.let_go();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), None);
    }
    assert_eq!((bay.stats().store_loads, bay.stats().joined_loads), (1, 199));
}

#[tokio::test]
async fn a_cancelled_or_panicking_load_releases_those_who_wait() {
    let layer = Layer::new();
    let held = HeldLoads::new(&layer.store);
    let (_bay, cache) = open(&held, &layer).await;
    held.hold();
    let mut leader = Box::pin(cache.get(&1));
    let mut waiter = Box::pin(cache.get(&1));
    assert!(poll_once(&mut leader).await.is_none() && poll_once(&mut waiter).await.is_none());
    drop(leader);
    held.let_go();
    assert_eq!(waiter.await.unwrap(), None, "the waiter goes on with the load");
    assert_eq!(held.loads(), 1);

    held.hold();
    let mut given_up = Box::pin(cache.get(&1));
    assert!(poll_once(&mut given_up).await.is_none());
    drop(given_up);
    let (mut one, mut other) = (Box::pin(cache.get(&1)), Box::pin(cache.get(&1)));
    assert!(poll_once(&mut one).await.is_none() && poll_once(&mut other).await.is_none());
    assert_eq!(held.loads(), 3, "a load that nobody waited for is gone, and the next two share one");
    held.panic(true);
    held.let_go();
    for reader in [one, other] {
        let error = reader.await.expect_err("the store panicked");
        assert_eq!(error.kind(), ErrorKind::LoadFailed, "{error}");
    }
    held.panic(false);
    assert_eq!(cache.get(&1).await.unwrap(), None);
}

/// Somebody read two keys with code of their own that polled one read until it was done and only then the other. The
/// other led a load, so a third reader, of the same key, waited for as long as the first one took, and for
/// ever where the first one waited for the third.
#[tokio::test]
async fn a_reader_that_is_not_polled_holds_up_nobody() {
    let layer = Layer::new();
    let held = HeldLoads::new(&layer.store);
    let (_bay, cache) = open(&held, &layer).await;
    held.hold();
    let mut first = Box::pin(cache.get(&1));
    assert!(poll_once(&mut first).await.is_none());
    let second = Box::pin(cache.get(&1));
    held.let_go();
    assert_eq!(second.await.unwrap(), None, "it drives the load itself");
    assert_eq!(held.loads(), 1);
    assert_eq!(first.await.unwrap(), None);
}

#[tokio::test]
async fn many_are_read_in_order_in_one_call_and_join_what_is_on_its_way() {
    let layer = Layer::new();
    let held = HeldLoads::new(&layer.store);
    let (bay, cache) = open(&held, &layer).await;
    for key in 0..10 {
        cache.put(&key, u64::from(key)).await.unwrap();
    }
    bay.flush().await.unwrap();
    cache.invalidate_all();
    held.hold();
    let mut single = Box::pin(cache.get(&3));
    assert!(poll_once(&mut single).await.is_none());
    let keys = [9, 3, 77, 9, 0];
    let mut many = Box::pin(cache.get_many(&keys));
    assert!(poll_once(&mut many).await.is_none());
    assert_eq!(held.loads(), 2, "one call for all that nobody loads yet");
    held.let_go();
    assert_eq!(many.await.unwrap(), [Some(9), Some(3), None, Some(9), Some(0)]);
    assert_eq!(single.await.unwrap(), Some(3));
}

/// A store showed a write-through before it was durable, a read loaded that, and the store rejected the write; when the
/// load came back nothing was under way any more, and the read returned, and kept, a value that had never come to be.
/// Found by the simulation, after 168,524 seeds.
#[tokio::test]
async fn a_load_that_met_a_write_through_which_did_not_come_to_be_is_made_again() {
    for many in [false, true] {
        let layer = Layer::new();
        let held = HeldLoads::new(&layer.store);
        let (_bay, cache) = open(&held, &layer).await;
        held.hold();
        held.write_outside(1, Some(7), 1);
        let mut read: std::pin::Pin<Box<dyn Future<Output = Option<u64>>>> = match many {
            true => Box::pin(async { cache.get_many(&[1, 2]).await.unwrap()[0] }),
            false => Box::pin(async { cache.get(&1).await.unwrap() }),
        };
        assert!(poll_once(&mut read).await.is_none());
        held.wait_for_loads(1).await;
        held.write_outside(1, None, 0);
        held.reject(true);
        let refused = cache.put_with(&1, 7, WritePolicy::Through).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Rejected);
        held.let_go();
        assert_eq!(read.await, None, "many: {many}");
        assert_eq!(cache.get(&1).await.unwrap(), None, "many: {many}");
    }
}

#[tokio::test]
async fn a_stored_value_of_another_type_is_an_error_that_names_the_namespace() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, String> = bay.cache("n").open().unwrap();
    cache.put(&1, "text".into()).await.unwrap();
    bay.close().await.unwrap();
    let bay = layer.open().await;
    let cache: Cache<u32, u8> = bay.cache("n").open().unwrap();
    let error = cache.get(&1).await.expect_err("not a number");
    assert_eq!(error.kind(), ErrorKind::Decode);
    assert!(format!("{error:#}").contains("namespace n"), "{error}");
}

/// A user may change from the one to the other: they are the same bytes.
#[tokio::test]
async fn values_written_as_numbers_of_a_byte_are_read_as_bytes_and_the_other_way_round() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let (numbers, bytes) = (vec![0_u8, 7, 255], Bytes::from_static(&[1, 0, 255]));
    bay.cache("a").open().unwrap().put(&1_u32, numbers.clone()).await.unwrap();
    bay.cache("b").open().unwrap().put(&1_u32, bytes.clone()).await.unwrap();
    bay.close().await.unwrap();
    let bay = layer.open().await;
    let cache: Cache<u32, Bytes> = bay.cache("a").open().unwrap();
    assert_eq!(cache.get(&1).await.unwrap().unwrap(), numbers);
    let cache: Cache<u32, Vec<u8>> = bay.cache("b").open().unwrap();
    assert_eq!(cache.get(&1).await.unwrap().unwrap(), bytes);
}
