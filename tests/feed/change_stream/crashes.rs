//! Power cuts, and write-throughs, of which the journal holds notices.

use super::*;

#[tokio::test]
async fn after_any_power_cut_every_applied_record_is_told_at_least_once_and_in_order() {
    let layer = Layer::new();
    // What the store holds at each operation of the disk is what it holds after the crash: it is durable by contract.
    let images = Arc::new(Mutex::new(Vec::new()));
    let acknowledged = Arc::new(Mutex::new(Seq::ZERO));
    let (seen, store, acked) = (Arc::clone(&images), layer.store.clone(), Arc::clone(&acknowledged));
    let watermark = move |store: &MemoryStore| store.history().last().map_or(Seq::ZERO, |last| last.applied);
    layer.disk.observe(move |_, _, disk| {
        let at = (disk, watermark(&store), *acked.lock().unwrap());
        seen.lock().unwrap().push(at);
    });
    let bay = open(&layer).await;
    let (behind, through) = (cache(&bay), bay.cache::<u32, Vec<u8>>("t").write_policy(WritePolicy::Through));
    let through = through.open().unwrap();
    let mut changes = bay.changes("index").await.unwrap();
    for key in 1..=6_u32 {
        behind.put(&key, vec![1]).await.unwrap();
        through.put(&key, vec![2]).await.unwrap();
        bay.flush().await.unwrap();
        let first = changes.next().await.unwrap().seq();
        assert_eq!(changes.next().await.unwrap().seq(), first.next());
        changes.acknowledge(first).await.unwrap();
        *acknowledged.lock().unwrap() = first;
    }
    layer.disk.unobserve();
    let images = std::mem::take(&mut *images.lock().unwrap());
    assert!(images.len() > 50, "{} images", images.len());
    for (image, applied, acknowledged) in images {
        for policy in [
            CrashPolicy::OnlySynced,
            CrashPolicy::NamesLost,
            CrashPolicy::Torn { seed: 7 },
            CrashPolicy::Everything,
        ] {
            // The store as it was: a fresh one that has come as far. Its data are not read here.
            let disk = image.crash(policy);
            let store = store_at(&layer.store, applied, &disk).await;
            let cut = Layer { disk, store };
            let bay = open(&cut).await;
            let mut changes = bay.changes("index").await.unwrap();
            let after = changes.told();
            assert!(after >= acknowledged, "an acknowledged place is gone");
            let all = drain(&bay, &mut changes).await;
            let numbers: Vec<u64> = all.iter().map(|(seq, _)| *seq).collect();
            let through_to = bay.watermark().get();
            assert!(through_to >= applied.get());
            assert_eq!(
                numbers,
                (after.get() + 1..=through_to).collect::<Vec<_>>(),
                "{policy:?} at {applied}: {all:?}"
            );
            for (seq, what) in all {
                let key = seq.div_ceil(2);
                assert_eq!(what, if seq % 2 == 1 { format!("{key}=1") } else { format!("{key}?") });
            }
            bay.close().await.unwrap();
        }
    }
}

/// A store that knows as much of its owner as `store` did at `applied`, for the journal that it is fed from.
async fn store_at(store: &MemoryStore, applied: Seq, disk: &SimDisk) -> MemoryStore {
    use forebay::store::{Batch, Claim, Standing, Store};
    let standing = store_beside(disk, store).standing().await.unwrap();
    let old = MemoryStore::new();
    if standing == Standing::default() {
        return old;
    }
    // The same tenure, as in a copy of the store.
    let claim = Claim { tenure: standing.tenure.id, ..Claim::new(standing.journal).unwrap() };
    let claimed = claim.of(&old).await.unwrap();
    if applied > Seq::ZERO {
        let history = store.history();
        let progress = history.iter().find(|progress| progress.applied == applied).copied();
        let journaled = progress.map_or(applied, |progress| progress.journaled);
        let batch = Batch { journaled, ..claimed.next_batch(applied, Vec::new()) };
        old.apply(&batch).await.unwrap();
    }
    old
}

#[tokio::test]
async fn write_throughs_are_told_as_invalidations_whatever_became_of_them() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    let bay = open_on(&layer, &gated).await;
    let cache = cache(&bay);
    let mut changes = bay.changes("index").await.unwrap();
    cache.put(&1, vec![10]).await.unwrap();
    cache.put_with(&2, vec![20], WritePolicy::Through).await.unwrap();
    cache.put_with(&3, vec![30], WritePolicy::Around).await.unwrap();
    cache.remove_with(&2, WritePolicy::Through).await.unwrap();
    gated.reject(key_of("n", &4_u32));
    let refused = cache.put_with(&4, vec![40], WritePolicy::Through).await.expect_err("not taken");
    assert_eq!(refused.kind(), ErrorKind::Rejected);
    cache.put(&5, vec![50]).await.unwrap();
    let list = [(1, "1=10"), (2, "2?"), (3, "3?"), (4, "2?"), (5, "4?"), (6, "5=50")];
    assert_eq!(drain(&bay, &mut changes).await, expected(&list));
    assert_eq!(layer.store.snapshot().len(), 3, "1, 3 and 5");

    // In doubt: the process dies after the store has applied it, and before it says so.
    let late = GatedStore::stalled_after_applying(&layer.store);
    changes.acknowledge(Seq::new(6)).await.unwrap();
    bay.close().await.unwrap();
    let bay = open_on(&layer, &late).await;
    let cache: Cache<u32, Vec<u8>> = bay.cache("n").open().unwrap();
    let mut doubtful = Box::pin(cache.put_with(&7, vec![70], WritePolicy::Through));
    assert!(poll_once(&mut doubtful).await.is_none());
    late.wait_for_applies(1).await;
    let cut = power_cut(&layer, &layer.store);
    let bay = open(&cut).await;
    let mut changes = bay.changes("index").await.unwrap();
    assert_eq!(drain(&bay, &mut changes).await, expected(&[(7, "7?")]));
    late.release();
}

#[tokio::test]
async fn a_write_through_that_never_came_to_be_is_passed_over_after_a_crash() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = open_on(&layer, &gated).await;
    let through = cache(&bay);
    through.put(&2, vec![5]).await.unwrap();
    let mut doubtful = Box::pin(through.put_with(&2, vec![20], WritePolicy::Through));
    assert!(poll_once(&mut doubtful).await.is_none());
    through.put(&3, vec![30]).await.unwrap();
    let cut = power_cut(&layer, &layer.store.copy());
    let bay = open(&cut).await;
    let mut changes = bay.changes(Seq::ZERO).await.unwrap();
    assert_eq!(drain(&bay, &mut changes).await, expected(&[(1, "2=5"), (2, "2?"), (3, "3=30")]));
    assert_eq!(cache(&bay).get(&2).await.unwrap(), Some(vec![5]), "a notice is no update");
    assert_eq!(cut.store.snapshot().len(), 2);
    gated.release();
}

#[tokio::test]
async fn a_notice_is_durable_before_the_store_changes_though_writes_are_buffered() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    let durability = Durability::Buffered { sync_interval: Duration::from_secs(3600) };
    let bay = telling(layer.builder_on(gated.clone())).durability(durability).open().await.unwrap();
    let cache = cache(&bay);
    cache.put_with(&1, vec![10], WritePolicy::Through).await.unwrap();
    gated.reject(key_of("n", &2_u32));
    cache.put_with(&2, vec![20], WritePolicy::Through).await.expect_err("not taken");
    bay.flush().await.unwrap();
    let cut = power_cut(&layer, &layer.store);
    let bay = open(&cut).await;
    let mut changes = bay.changes(Seq::ZERO).await.unwrap();
    assert_eq!(drain(&bay, &mut changes).await, expected(&[(1, "1?"), (2, "2?")]));
}

#[tokio::test]
async fn write_throughs_that_a_halt_refuses_are_passed_over() {
    let (layer, gated, bay, cache, mut changes) = stalled().await;
    cache.put(&1, vec![10]).await.unwrap();
    gated.wait_for_applies(1).await;
    gated.reject(key_of("n", &2_u32));
    cache.put(&2, vec![20]).await.unwrap();
    let mut through = Box::pin(cache.put_with(&3, vec![30], WritePolicy::Through));
    assert!(poll_once(&mut through).await.is_none());
    gated.release();
    assert_eq!(through.await.expect_err("the flusher stands").kind(), ErrorKind::Halted);
    gated.accept_all();
    bay.resume();
    // The stream waits for the flusher to go on, where a flush would say that it stands.
    for one in expected(&[(1, "1=10"), (2, "2=20"), (3, "3?")]) {
        assert_eq!(told(&changes.next().await.unwrap()), one);
    }
    assert_eq!(
        layer.store.history().last().unwrap().journaled,
        Seq::new(3),
        "so that the journal can be trimmed"
    );
}

#[tokio::test]
async fn write_throughs_keep_their_place_among_frames_that_memory_has_no_room_for() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let builder = telling(layer.builder_on(gated.clone())).pending_memory_bytes_max(0);
    let bay = builder.open().await.unwrap();
    let cache = cache(&bay);
    let mut changes = bay.changes(Seq::ZERO).await.unwrap();
    let mut through = Vec::new();
    for key in 0..8_u32 {
        cache.put(&key, vec![1]).await.unwrap();
        let writer = cache.clone();
        let mut write = Box::pin(async move { writer.put_with(&key, vec![2], WritePolicy::Through).await });
        assert!(poll_once(&mut write).await.is_none());
        through.push(write);
    }
    cache.put(&9, vec![3]).await.unwrap();
    gated.release();
    for write in through {
        write.await.unwrap();
    }
    let all = drain(&bay, &mut changes).await;
    let numbers: Vec<u64> = all.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(numbers, (1..=17).collect::<Vec<_>>());
    for key in 0..8 {
        assert_eq!(
            cache.get(&key).await.unwrap(),
            Some(vec![2]),
            "each write-through came after its key's first"
        );
        assert_eq!(crate::support::stored::<u32, Vec<u8>>(&layer.store, "n", &key).await.unwrap().0, [2]);
    }
}

#[tokio::test]
async fn a_layer_that_would_miss_some_refuses_and_what_it_did_meanwhile_is_told_as_lost() {
    let layer = Layer::new();
    let bay = open(&layer).await;
    let mut changes = bay.changes("index").await.unwrap();
    cache(&bay).put(&1, vec![10]).await.unwrap();
    assert_eq!(drain(&bay, &mut changes).await, expected(&[(1, "1=10")]));
    changes.acknowledge(Seq::new(1)).await.unwrap();
    bay.close().await.unwrap();

    let silent = layer.open().await;
    let refused = silent.changes("index").await.map(drop).expect_err("its write-throughs leave nothing");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    cache(&silent).put_with(&2, vec![20], WritePolicy::Through).await.unwrap();
    cache(&silent).put(&3, vec![30]).await.unwrap();
    cache(&silent).put_with(&4, vec![40], WritePolicy::Through).await.unwrap();
    silent.close().await.unwrap();

    let bay = open(&layer).await;
    let mut changes = bay.changes("index").await.unwrap();
    assert_eq!(
        drain(&bay, &mut changes).await,
        expected(&[(2, "lost after 1"), (3, "3=30"), (4, "lost after 3")])
    );
    cache(&bay).put(&5, vec![50]).await.unwrap();
    assert_eq!(drain(&bay, &mut changes).await, expected(&[(5, "5=50")]));

    let unjournaled = Forebay::builder(MemoryStore::new()).changes(true).open().await;
    assert_eq!(unjournaled.map(drop).expect_err("no journal").kind(), ErrorKind::InvalidOption);
}
