//! The change stream: everything that the store holds is told in order and at least once, or as a range that cannot be
//! told.

mod crashes;
mod cursors;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay::Invalidation;
use forebay::disk::{CrashPolicy, Disk, DiskOp, Fault, SimDisk};
use forebay::inspect;
use forebay::testkit::ManualClock;
use forebay::{
    Builder, Cache, Change, ChangeKind, ChangeOutcome, ChangeStream, Durability, ErrorKind, Forebay,
    JournalOptions, MemoryStore, OnRejected, Replacement, Seq, Stale, WritePolicy,
};

use crate::support::{GatedStore, Layer, failing, key_of, poll_once, store_beside};

const SEGMENT_BYTES: u64 = 64 << 10;

fn telling(builder: Builder) -> Builder {
    builder.changes(true)
}

async fn open(layer: &Layer) -> Forebay {
    telling(layer.builder()).open().await.unwrap()
}

async fn open_on(layer: &Layer, store: &GatedStore) -> Forebay {
    telling(layer.builder_on(store.clone())).open().await.unwrap()
}

/// A layer whose store applies nothing yet, with a cache and a stream of all changes.
async fn stalled() -> (Layer, GatedStore, Forebay, Cache<u32, Vec<u8>>, ChangeStream) {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = open_on(&layer, &gated).await;
    let (cache, changes) = (cache(&bay), bay.changes(Seq::ZERO).await.unwrap());
    (layer, gated, bay, cache, changes)
}

/// The layer as a power cut leaves it, over this store.
fn power_cut(layer: &Layer, store: &MemoryStore) -> Layer {
    Layer { disk: layer.disk.crash(CrashPolicy::OnlySynced), store: store.clone() }
}

fn cache(bay: &Forebay) -> Cache<u32, Vec<u8>> {
    bay.cache("n").open().unwrap()
}

/// Returns the number of a change and a short text for what happened.
fn told(outcome: &ChangeOutcome) -> (u64, String) {
    let what = match outcome {
        ChangeOutcome::PlaceLost { after, .. } => format!("lost after {after}"),
        ChangeOutcome::Change(Change {
            kind: ChangeKind::Invalidate(Invalidation::Namespace(name)), ..
        }) => {
            format!("all of {name}")
        }
        ChangeOutcome::Change(Change { kind: ChangeKind::Invalidate(Invalidation::Tag(tag)), .. }) => {
            format!("tagged {tag}")
        }
        ChangeOutcome::Change(Change { key, kind, .. }) => {
            let key = u32::from_le_bytes(key.key().try_into().unwrap());
            match kind {
                // A value is its codec, its schema, its length in eight bytes, and its content.
                ChangeKind::Put(value) => format!("{key}={}", value.last().unwrap()),
                ChangeKind::Remove => format!("{key} removed"),
                ChangeKind::PutVersion(version, value) => {
                    format!("{key}@{version}={}", value.last().unwrap())
                }
                ChangeKind::RemoveVersion(version) => format!("{key}@{version} removed"),
                ChangeKind::Invalidate(Invalidation::Key(_)) => format!("{key}?"),
                other => panic!("{other:?}"),
            }
        }
    };
    (outcome.seq().get(), what)
}

/// All that is applied and was not told yet.
async fn drain(bay: &Forebay, changes: &mut ChangeStream) -> Vec<(u64, String)> {
    bay.flush().await.unwrap();
    let mut all = Vec::new();
    while changes.lag().records > 0 {
        all.push(told(&changes.next().await.unwrap()));
    }
    all
}

fn expected(list: &[(u64, &str)]) -> Vec<(u64, String)> {
    list.iter().map(|(seq, what)| (*seq, (*what).to_owned())).collect()
}

fn segments(disk: &SimDisk) -> usize {
    let names = disk.list(Path::new("/journal")).unwrap();
    names.iter().filter(|name| name.ends_with(".seg") && !name.starts_with("spare")).count()
}

/// Fills so many segments with three records of key 1 each, and one more record: what is trimmed for the others is
/// trimmed before that one is applied.
async fn fill(bay: &Forebay, segments: u64) {
    let cache = cache(bay);
    for _ in 0..segments {
        for value in 0..3 {
            cache.put(&1, vec![value; (SEGMENT_BYTES / 4) as usize]).await.unwrap();
        }
        bay.flush().await.unwrap();
    }
    cache.put(&1, vec![3]).await.unwrap();
    bay.flush().await.unwrap();
}

#[tokio::test]
async fn puts_removes_batches_and_versions_are_told_in_order() {
    let layer = Layer::new();
    let bay = open(&layer).await;
    let mut changes = bay.changes(Seq::ZERO).await.unwrap();
    let (one, other) = (cache(&bay), bay.cache::<u32, Vec<u8>>("other").open().unwrap());
    let versions = bay.cache::<u32, Vec<u8>>("versions").versions_kept(1).open().unwrap();
    one.put(&1, vec![10]).await.unwrap();
    one.put(&1, vec![11]).await.unwrap();
    one.remove(&2).await.unwrap();
    let mut batch = bay.batch();
    batch.put(&one, &3, vec![30]).unwrap().put(&other, &4, vec![40]).unwrap();
    batch.commit().await.unwrap();
    versions.put_version(&5, 7, vec![70]).await.unwrap();
    versions.put_version(&5, 8, vec![80]).await.unwrap();
    let all = drain(&bay, &mut changes).await;
    let list = [
        (1, "1=10"),
        (2, "1=11"),
        (3, "2 removed"),
        (4, "3=30"),
        (5, "4=40"),
        (7, "5@7=70"),
        (8, "5=70"),
        (10, "5@8=80"),
        (11, "5@7 removed"),
        (12, "5=80"),
    ];
    assert_eq!(
        all,
        expected(&list),
        "coalesced in the store, told one by one; the list of versions is no change"
    );
    assert_eq!(changes.told(), Seq::new(12));
    let stats = bay.stats();
    assert_eq!((stats.changes_delivered, stats.places_lost), (10, 0));
    let mut later = bay.changes(Seq::new(4)).await.unwrap();
    assert_eq!(drain(&bay, &mut later).await, expected(&list[4..]), "from the middle of a batch");
}

/// An invalidation that others have to carry out is in the stream as such, and not as a record of the layer's own.
#[tokio::test]
async fn invalidations_of_namespaces_and_groups_are_told() {
    let layer = Layer::new();
    let bay = open(&layer).await;
    let mut changes = bay.changes(Seq::ZERO).await.unwrap();
    let odd = |key: &u32| (key % 2 == 1).then(|| "odd".to_owned());
    let grouped = bay.cache::<u32, Vec<u8>>("a/b").group_by(odd).open().unwrap();
    grouped.put(&1, vec![10]).await.unwrap();
    bay.invalidate_namespace("a").await.unwrap();
    grouped.invalidate_group("odd").await.unwrap();
    let rule = |_: &Replacement<'_, u32, Vec<u8>>, stale: &mut Stale| stale.namespace("a/b");
    let ruled = bay.cache::<u32, Vec<u8>>("ruled").on_change(rule).open().unwrap();
    ruled.put_with(&2, vec![20], WritePolicy::Through).await.unwrap();
    let list = [(1, "1=10"), (2, "all of a"), (3, "tagged a/b:odd"), (4, "all of a/b"), (5, "2?")];
    assert_eq!(drain(&bay, &mut changes).await, expected(&list));
}

#[tokio::test]
async fn nothing_is_told_before_the_store_holds_it() {
    let (_layer, gated, _bay, cache, mut changes) = stalled().await;
    cache.put(&1, vec![10]).await.unwrap();
    gated.wait_for_applies(1).await;
    cache.put(&2, vec![20]).await.unwrap();
    let mut next = Box::pin(changes.next());
    assert!(poll_once(&mut next).await.is_none());
    gated.release_one();
    assert_eq!(told(&next.await.unwrap()), (1, "1=10".to_owned()));
    gated.wait_for_applies(2).await;
    let mut next = Box::pin(changes.next());
    assert!(poll_once(&mut next).await.is_none(), "the second is committed, and not applied");
    gated.release();
    assert_eq!(told(&next.await.unwrap()), (2, "2=20".to_owned()));
}

#[tokio::test]
async fn a_dropped_next_loses_nothing() {
    let layer = Layer::new();
    let bay = open(&layer).await;
    let cache = cache(&bay);
    let mut changes = bay.changes(Seq::ZERO).await.unwrap();
    let mut told = 0;
    for round in 0..50_u8 {
        // Dropped while it waits for the store, and while it reads.
        assert!(poll_once(&mut Box::pin(changes.next())).await.is_none());
        for value in [round, round + 100] {
            cache.put(&1, vec![value]).await.unwrap();
            bay.flush().await.unwrap();
            if let Some(outcome) = poll_once(&mut Box::pin(changes.next())).await {
                told += 1;
                assert_eq!(outcome.unwrap().seq(), Seq::new(told));
            }
        }
        // One more, which is told at once if those before it are lost.
        cache.put(&1, vec![200]).await.unwrap();
        bay.flush().await.unwrap();
        while Seq::new(told) < bay.watermark() {
            told += 1;
            assert_eq!(changes.next().await.unwrap().seq(), Seq::new(told));
        }
    }
}

#[tokio::test]
async fn lag_is_in_records_bytes_and_seconds() {
    let layer = Layer::new();
    let (clock, gated) = (ManualClock::new(), GatedStore::new(&layer.store));
    let bay = telling(layer.builder_on(gated.clone())).clock(clock.clone()).open().await.unwrap();
    let cache = cache(&bay);
    let mut changes = bay.changes("index").await.unwrap();
    assert_eq!(changes.lag(), Default::default());
    // A frame is 56 bytes and its body, padded to 8. The body is 4 bytes, a record's head of 4, the key of "n", a zero
    // and 4 bytes, and the value of 2 bytes, 8 for its length, and its content.
    let frame = |content: u64| 56 + (4 + 4 + 6 + 10 + content).next_multiple_of(8);
    for content in [100, 1000, 7] {
        cache.put(&1, vec![1; content]).await.unwrap();
        bay.flush().await.unwrap();
        clock.advance(Duration::from_secs(10));
    }
    gated.stall();
    cache.put(&1, vec![1; 5000]).await.unwrap();
    gated.wait_for_applies(4).await;
    let figures = |changes: &ChangeStream| {
        let lag = changes.lag();
        (lag.records, lag.bytes, lag.age.as_secs())
    };
    assert_eq!(
        figures(&changes),
        (3, frame(100) + frame(1000) + frame(7), 30),
        "what is not applied is no lag"
    );
    changes.next().await.unwrap();
    assert_eq!(figures(&changes), (2, frame(1000) + frame(7), 20));
    changes.next().await.unwrap();
    clock.advance(Duration::from_secs(5));
    assert_eq!(figures(&changes), (1, frame(7), 15));
    changes.acknowledge(Seq::new(1)).await.unwrap();
    let cursor = &bay.cursors().unwrap()[0];
    assert_eq!((cursor.name.as_str(), cursor.acknowledged, cursor.open), ("index", Seq::new(1), true));
    assert_eq!((cursor.lag.records, cursor.lag.age.as_secs()), (2, 25), "what is not acknowledged");
    assert_eq!(cursor.lag.bytes, frame(1000) + frame(7), "of batches that this layer has applied");
    changes.next().await.unwrap();
    assert_eq!(changes.lag(), Default::default());
    gated.release();
    bay.flush().await.unwrap();
    assert_eq!(figures(&changes), (1, frame(5000), 0));
    drop(changes);
    bay.close().await.unwrap();

    let bay = telling(layer.builder()).clock(clock.clone()).open().await.unwrap();
    clock.advance(Duration::from_secs(3));
    let lag = bay.changes("index").await.unwrap().lag();
    assert_eq!((lag.records, lag.age.as_secs()), (3, 3), "since the layer opened");
    assert_eq!(lag.bytes, frame(100) + frame(1000) + frame(7) + frame(5000));
}

#[tokio::test]
async fn what_is_parked_is_an_invalidation_and_settling_it_is_a_lost_place() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    let builder = telling(layer.builder_on(gated.clone())).on_rejected(OnRejected::Park);
    let bay = builder.open().await.unwrap();
    let cache = cache(&bay);
    let mut changes = bay.changes("index").await.unwrap();
    gated.reject(key_of("n", &1_u32));
    let mut batch = bay.batch();
    batch.put(&cache, &1, vec![10]).unwrap().put(&cache, &2, vec![20]).unwrap();
    batch.commit().await.unwrap();
    cache.put(&3, vec![30]).await.unwrap();
    assert_eq!(drain(&bay, &mut changes).await, expected(&[(1, "1?"), (2, "2?"), (3, "3=30")]));
    gated.accept_all();
    bay.dead_letters().replay(&[key_of("n", &1_u32)]).await.unwrap();
    assert_eq!(
        drain(&bay, &mut changes).await,
        expected(&[(4, "lost after 3")]),
        "key 2 has changed as well"
    );
}

#[tokio::test]
async fn a_failing_store_delays_and_loses_nothing() {
    let layer = Layer::new();
    let (failing, _) = failing(&layer.store, 3);
    let bay = telling(layer.builder_on(failing)).open().await.unwrap();
    let mut changes = bay.changes(Seq::ZERO).await.unwrap();
    cache(&bay).put(&1, vec![10]).await.unwrap();
    assert_eq!(told(&changes.next().await.unwrap()), (1, "1=10".to_owned()));
}

#[test]
fn the_blocking_face_is_an_iterator() {
    let layer = Layer::new();
    let mut options = JournalOptions::default();
    options.segment_bytes = SEGMENT_BYTES;
    let bay = telling(layer.builder()).journal_options(options).open_blocking().unwrap();
    let mut changes = bay.blocking().changes("index").unwrap();
    let cache = cache(&bay);
    for key in 1..=3 {
        cache.blocking().put(&key, vec![1]).unwrap();
    }
    let seen: Vec<_> = changes.by_ref().take(3).map(|outcome| told(&outcome.unwrap())).collect();
    assert_eq!(seen, expected(&[(1, "1=1"), (2, "2=1"), (3, "3=1")]));
    changes.acknowledge(Seq::new(3)).unwrap();
    assert_eq!(changes.stream().lag().records, 0);
    bay.blocking().close().unwrap();
    assert_eq!(changes.next().unwrap().expect_err("ended").kind(), ErrorKind::Closed);
    assert!(changes.next().is_none());
    drop(changes);
    let bay = telling(layer.builder()).open_blocking().unwrap();
    assert!(bay.blocking().forget_cursor("index").unwrap());
}
