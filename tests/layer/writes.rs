//! Writes through a whole layer: order, acknowledgement, batches, barriers, backpressure, cancellation.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay::store::{Batch, BoxFuture, Claim, Standing, Store, StoreError, Versioned};
use forebay::{
    Backpressure, Cache, Durability, ErrorKind, Forebay, HealthState, Key, MemoryStore, OnRejected, Seq,
    WritePolicy,
};
use tokio::sync::watch;

use crate::support::{GatedStore, Layer, key_of, poll_once, stored};

#[tokio::test]
async fn what_was_put_is_read_and_reaches_the_store_in_order() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, String> = bay.cache("n").open().unwrap();
    let mut seqs = Vec::new();
    for n in 0..100_u32 {
        seqs.push(cache.put(&(n % 10), format!("v{n}")).await.unwrap().seq());
    }
    assert!(seqs.windows(2).all(|pair| pair[1] == pair[0].next()), "dense and in order: {seqs:?}");
    assert_eq!(cache.get(&3).await.unwrap().as_deref(), Some("v93"));
    assert_eq!(bay.flush().await.unwrap(), Seq::new(100));
    for key in 0..10_u32 {
        let value = stored::<u32, String>(&layer.store, "n", &key).await;
        assert_eq!(value, Some((format!("v{}", 90 + key), Seq::new(91 + u64::from(key)))));
    }
    let closed = bay.close().await.unwrap();
    assert_eq!((closed.queued, closed.reason.is_none()), (0, true));
}

#[tokio::test]
async fn removes_are_seen_at_once_and_reach_the_store() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    cache.put(&1, 10).await.unwrap();
    bay.flush().await.unwrap();
    cache.remove(&1).await.unwrap();
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert!(!cache.contains(&1).await.unwrap());
    bay.flush().await.unwrap();
    assert_eq!(stored::<u32, u64>(&layer.store, "n", &1).await, None);
    assert_eq!(cache.get(&1).await.unwrap(), None);
}

/// P4: after an acknowledgement every read returns that value, though it was evicted, is queued, or the process
/// restarted.
#[tokio::test]
async fn reads_see_acknowledged_writes_evicted_queued_or_restarted() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    for n in 0..50 {
        cache.put(&7, n).await.unwrap();
    }
    cache.remove(&8).await.unwrap();
    cache.put(&9, 9).await.unwrap();
    for key in [7, 8, 9] {
        cache.evict(&key);
    }
    assert_eq!(cache.get_many(&[7, 8, 9]).await.unwrap(), [Some(49), None, Some(9)]);
    drop((cache, bay));
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    assert_eq!(cache.get_many(&[7, 8, 9]).await.unwrap(), [Some(49), None, Some(9)]);
    assert_eq!(bay.pending(), 52);
    gated.release();
    bay.flush().await.unwrap();
    cache.invalidate_all();
    assert_eq!(cache.get_many(&[7, 8, 9]).await.unwrap(), [Some(49), None, Some(9)]);
}

/// An apply acknowledges (key, sequence number), never a key alone: when an old write's apply completes, a newer
/// pending one of the same key must stay readable (Hazelcast #15060).
#[tokio::test]
async fn completing_an_old_write_does_not_erase_a_newer_pending_one() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).batch_records_max(1).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    let old = cache.put(&1, 1).await.unwrap();
    gated.wait_for_applies(1).await;
    cache.put(&1, 2).await.unwrap();
    gated.release_one();
    bay.wait_applied(old.seq()).await.unwrap();
    cache.evict(&1);
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
    gated.release();
    bay.flush().await.unwrap();
    cache.evict(&1);
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
}

#[tokio::test]
async fn a_batch_is_one_frame_and_one_apply_over_several_caches() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    let bay = layer.builder_on(gated.clone()).batch_records_max(2).open().await.unwrap();
    let numbers: Cache<u32, u64> = bay.cache("numbers").open().unwrap();
    let names: Cache<String, String> = bay.cache("names").open().unwrap();
    let mut batch = bay.batch();
    for n in 0..10 {
        batch.put(&numbers, &n, u64::from(n)).unwrap();
        batch.put(&names, &n.to_string(), "name".into()).unwrap();
    }
    batch.remove(&numbers, &3).unwrap();
    let receipt = batch.commit().await.unwrap();
    assert_eq!(receipt.seq(), Seq::new(21));
    bay.flush().await.unwrap();
    let applied = gated.applied();
    assert_eq!(applied.len(), 1, "a batch is never split: {applied:?}");
    assert_eq!(numbers.get_many(&[2, 3]).await.unwrap(), [Some(2), None]);
    assert_eq!(stored::<String, String>(&layer.store, "names", &"9".into()).await.unwrap().0, "name");
    let other = Layer::new().open().await;
    let foreign: Cache<u32, u64> = other.cache("numbers").open().unwrap();
    let mut batch = bay.batch();
    assert_eq!(batch.put(&foreign, &1, 1).err().unwrap().kind(), ErrorKind::InvalidOption);
    assert_eq!(batch.commit().await.unwrap().seq(), Seq::new(21), "an empty batch changes nothing");
}

#[tokio::test]
async fn coalescing_sends_the_last_write_and_can_be_switched_off() {
    for coalesce in [true, false] {
        let layer = Layer::new();
        let gated = GatedStore::stalled(&layer.store);
        let bay = layer.builder_on(gated.clone()).open().await.unwrap();
        let cache: Cache<u32, u64> = bay.cache("n").coalesce(coalesce).open().unwrap();
        cache.put(&0, 0).await.unwrap();
        gated.wait_for_applies(1).await;
        for n in 1..=100 {
            cache.put(&1, n).await.unwrap();
        }
        gated.release();
        bay.flush().await.unwrap();
        let sent: usize = gated.applied().iter().map(|batch| batch.ops.len()).sum();
        assert_eq!(sent, if coalesce { 2 } else { 101 });
        assert_eq!(stored::<u32, u64>(&layer.store, "n", &1).await, Some((100, Seq::new(101))));
    }
}

#[tokio::test]
async fn write_through_is_acknowledged_by_the_store_and_takes_its_place_in_the_order() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    cache.put(&1, 1).await.unwrap();
    let through = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.put_with(&1, 2, WritePolicy::Through).await })
    };
    gated.wait_for_applies(1).await;
    assert_eq!(cache.get(&1).await.unwrap(), Some(1), "not confirmed, so not visible");
    gated.release();
    let receipt = through.await.unwrap().unwrap();
    assert_eq!(receipt.seq(), Seq::new(2));
    assert_eq!(bay.watermark(), Seq::new(2));
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
    cache.evict(&1);
    assert_eq!(cache.get(&1).await.unwrap(), Some(2));
}

/// P5: nobody sees a write-through that the store has not confirmed, though the store's own memory shows it and a power
/// cut can still take it back: not by a load that was under way when the write-through began, nor by one that began
/// later, of one key or of several.
#[tokio::test]
async fn a_load_waits_for_an_unconfirmed_write_through_of_its_key() {
    for (many, began_before) in [(false, false), (false, true), (true, false), (true, true)] {
        let layer = Layer::new();
        let gated = GatedStore::stalled_after_applying(&layer.store);
        let late = LateLoads { gated: gated.clone(), open: Arc::new(watch::Sender::new(!began_before)) };
        let bay = layer.builder_on(late.clone()).open().await.unwrap();
        let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
        let mut read: BoxFuture<'_, Option<u64>> = if many {
            Box::pin(async { cache.get_many(&[0, 1]).await.unwrap()[1] })
        } else {
            Box::pin(async { cache.get(&1).await.unwrap() })
        };
        if began_before {
            assert!(poll_once(&mut read).await.is_none(), "the store is asked and has not answered");
        }
        let through = {
            let cache = cache.clone();
            tokio::spawn(async move { cache.put_with(&1, 2, WritePolicy::Through).await })
        };
        gated.wait_for_applies(1).await;
        let shown = stored::<u32, u64>(&layer.store, "n", &1).await;
        assert_eq!(shown, Some((2, Seq::new(1))), "the store shows it already");
        late.open.send_replace(true);
        assert!(poll_once(&mut read).await.is_none(), "the value is not durable yet");
        gated.release();
        assert_eq!(read.await, Some(2));
        through.await.unwrap().unwrap();
    }
}

/// A store whose loads begin when they are allowed to.
#[derive(Clone)]
struct LateLoads {
    gated: GatedStore,
    open: Arc<watch::Sender<bool>>,
}

impl LateLoads {
    async fn wait(&self) {
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

impl Store for LateLoads {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        self.gated.standing()
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        self.gated.claim(claim)
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move {
            self.wait().await;
            self.gated.load(key).await
        })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async move {
            self.wait().await;
            self.gated.load_many(keys).await
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        self.gated.apply(batch)
    }
}

/// P4: a write-through that the store confirmed late made its value visible over that of a write-behind which had been
/// acknowledged meanwhile. Readers saw the older value until it was evicted, though the store had the newer one. Found
/// by the simulation.
#[tokio::test]
async fn a_late_write_through_does_not_hide_what_was_written_behind_meanwhile() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    let through = {
        let (bay, cache) = (bay.clone(), cache.clone());
        tokio::spawn(async move {
            let mut batch = bay.batch();
            batch.put(&cache, &1, 1).unwrap().put(&cache, &2, 1).unwrap().put(&cache, &3, 1).unwrap();
            batch.write_policy(WritePolicy::Through);
            batch.commit().await
        })
    };
    gated.wait_for_applies(1).await;
    cache.put(&1, 2).await.unwrap();
    cache.remove(&2).await.unwrap();
    gated.release();
    through.await.unwrap().unwrap();
    assert_eq!(cache.get_many(&[1, 2, 3]).await.unwrap(), [Some(2), None, Some(1)]);
    bay.flush().await.unwrap();
    assert_eq!(cache.get_many(&[1, 2, 3]).await.unwrap(), [Some(2), None, Some(1)]);
}

/// P5: a batch that wrote a key twice put both values into memory, one after the other, and a reader could meet the
/// first, which was never there. Found by the simulation.
#[tokio::test]
async fn of_several_writes_of_a_key_in_a_batch_only_the_last_reaches_memory() {
    let layer = Layer::new();
    let bay = layer.open().await;
    for policy in [WritePolicy::Behind, WritePolicy::Through] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let weighed = Arc::clone(&seen);
        let weigh = move |key: &u32, value: &u64| {
            weighed.lock().unwrap().push((*key, *value));
            1
        };
        let cache: Cache<u32, u64> =
            bay.cache(&format!("{policy:?}")).weight_capacity(10, weigh).write_policy(policy).open().unwrap();
        let mut batch = bay.batch();
        batch.put(&cache, &1, 1).unwrap().put(&cache, &2, 2).unwrap().put(&cache, &1, 3).unwrap();
        batch.put(&cache, &3, 4).unwrap().remove(&cache, &3).unwrap();
        batch.commit().await.unwrap();
        // An acknowledgement does not wait for memory; whoever looks at memory does.
        assert_eq!(cache.resident_count(), 2);
        assert_eq!(*seen.lock().unwrap(), [(2, 2), (1, 3)], "{policy:?}");
        assert_eq!(cache.get_many(&[1, 2, 3]).await.unwrap(), [Some(3), Some(2), None]);
    }
}

#[tokio::test]
async fn a_layer_without_a_journal_writes_through_and_refuses_to_write_behind() {
    let layer = Layer::new();
    let bay = Forebay::builder(layer.store.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    cache.put(&1, 1).await.unwrap();
    assert_eq!(stored::<u32, u64>(&layer.store, "n", &1).await, Some((1, Seq::new(1))));
    let refused = cache.put_with(&1, 2, WritePolicy::Behind).await.expect_err("nowhere to keep it");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let refused =
        bay.cache::<u32, u64>("m").write_policy(WritePolicy::Behind).open().expect_err("no journal");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    bay.close().await.unwrap();
    let bay = Forebay::builder(layer.store.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    assert_eq!(cache.put(&1, 3).await.unwrap().seq(), Seq::new(2), "numbers go on where the store stands");
}

#[tokio::test]
async fn a_rejected_write_through_leaves_nothing_anywhere() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    gated.reject(key_of("n", &1_u32));
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").write_policy(WritePolicy::Through).open().unwrap();
    let error = cache.put(&1, 1).await.expect_err("rejected");
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    assert_eq!(cache.get(&1).await.unwrap(), None);
    assert_eq!(stored::<u32, u64>(&layer.store, "n", &1).await, None);
    cache.put(&2, 2).await.expect("others are not held up");
    assert_eq!(bay.health().state, HealthState::Healthy);
}

#[tokio::test]
async fn a_doubtful_write_through_drops_the_key_from_memory() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    let open = |builder: forebay::Builder| async {
        let bay = builder.open().await.unwrap();
        let cache: Cache<u32, u64> = bay.cache("n").write_policy(WritePolicy::Through).open().unwrap();
        (bay, cache)
    };
    // With all the time that it needs: a busy machine once took longer for it than is allowed below.
    let (bay, cache) = open(layer.builder_on(gated.clone())).await;
    cache.put(&1, 1).await.unwrap();
    bay.close().await.unwrap();
    let hasty = layer.builder_on(gated.clone()).through_timeout(Duration::from_millis(20));
    let (_bay, cache) = open(hasty).await;
    assert_eq!(cache.get(&1).await.unwrap(), Some(1), "memory has it now");
    gated.stall();
    let error = cache.put(&1, 2).await.expect_err("the store does not answer");
    assert_eq!(error.kind(), ErrorKind::InDoubt, "{error}");
    let mut read = Box::pin(cache.get(&1));
    assert!(poll_once(&mut read).await.is_none(), "neither the old nor the new value is certain");
    gated.release();
    assert_eq!(read.await.unwrap(), Some(2), "it was handed over, so it happened");
}

/// The memory side may fail in any way; a write-through is in the store all the same.
#[tokio::test]
async fn a_failing_memory_never_fails_a_write() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let weigh = |_: &u32, value: &u64| if *value == 13 { panic!("a weigher's defect") } else { 1 };
    let cache: Cache<u32, u64> = bay.cache("n").weight_capacity(100, weigh).open().unwrap();
    for policy in [WritePolicy::Through, WritePolicy::Behind] {
        cache.put_with(&1, 1, policy).await.unwrap();
        cache.put_with(&1, 13, policy).await.expect("memory is not the write");
        assert_eq!(cache.get(&1).await.unwrap(), Some(13));
        bay.flush().await.unwrap();
        assert_eq!(stored::<u32, u64>(&layer.store, "n", &1).await.unwrap().0, 13);
    }
    assert!(bay.stats().memory_failures >= 2);
}

/// A write's fate does not hang on its future.
#[tokio::test]
async fn a_dropped_write_is_wholly_done_or_not_at_all() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    drop(cache.put(&1, 1));
    assert_eq!(bay.last_committed(), Seq::ZERO, "a future that was never polled does nothing");
    let gate = layer.disk.hold_syncs("");
    let mut put = Box::pin(cache.put(&1, 2));
    assert!(poll_once(&mut put).await.is_none());
    drop(put);
    assert_eq!(cache.get(&1).await.unwrap(), None, "not durable, so not visible");
    gate.open();
    let other = cache.put(&2, 2).await.unwrap();
    assert_eq!(other.seq(), Seq::new(2), "the dropped write took its place before it");
    assert_eq!(cache.get(&1).await.unwrap(), Some(2), "handed over, so done");
    bay.flush().await.unwrap();
    assert_eq!(stored::<u32, u64>(&layer.store, "n", &1).await, Some((2, Seq::new(1))));
}

#[tokio::test]
async fn flush_waits_for_what_was_acknowledged_before_it_and_not_for_an_idle_moment() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).batch_records_max(1).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    cache.put(&1, 1).await.unwrap();
    let flush = {
        let bay = bay.clone();
        tokio::spawn(async move { bay.flush().await })
    };
    gated.wait_for_applies(1).await;
    tokio::task::yield_now().await;
    cache.put(&2, 2).await.unwrap();
    gated.release_one();
    assert_eq!(flush.await.unwrap().unwrap(), Seq::new(1));
    assert_eq!(bay.pending(), 1, "the later write is still queued");
    gated.release();
}

/// After the store had rejected the newest write, a write-through, `flush` waited for ever, and `close` for its whole
/// deadline: the watermark passed the number of a refused write only with the next one. Found by the simulation.
#[tokio::test]
async fn a_flush_does_not_wait_for_a_write_that_was_refused() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    gated.reject(key_of("n", &1));
    let error = cache.put_with(&1, 1, WritePolicy::Through).await.expect_err("it is rejected");
    assert_eq!(error.kind(), ErrorKind::Rejected);
    let flushed = tokio::time::timeout(Duration::from_secs(10), bay.flush()).await;
    assert_eq!(flushed.expect("nothing is left to wait for").unwrap(), Seq::new(1));
    cache.put(&2, 2).await.unwrap();
    bay.flush().await.unwrap();
    assert_eq!(stored::<u32, u64>(&layer.store, "n", &2).await, Some((2, Seq::new(2))));
}

#[tokio::test]
async fn a_full_queue_pushes_back_as_configured() {
    let refuse = [Backpressure::Refuse, Backpressure::WaitFor(Duration::from_millis(5))];
    for backpressure in refuse {
        let layer = Layer::new();
        let gated = GatedStore::stalled(&layer.store);
        let builder = layer.builder_on(gated.clone()).queue_records_max(3).backpressure(backpressure);
        let bay = builder.open().await.unwrap();
        let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
        for n in 0..3 {
            cache.put(&n, 1).await.unwrap();
        }
        let error = cache.put(&3, 1).await.expect_err("full");
        assert_eq!(error.kind(), ErrorKind::QueueFull, "{error}");
        assert_eq!(cache.get(&3).await.unwrap(), None);
        gated.release();
        bay.flush().await.unwrap();
        cache.put(&3, 1).await.expect("there is room again");
    }
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).queue_records_max(3).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    for n in 0..3 {
        cache.put(&n, 1).await.unwrap();
    }
    let mut waiting = Box::pin(cache.put(&3, 1));
    assert!(poll_once(&mut waiting).await.is_none(), "what is in flight counts");
    gated.release();
    waiting.await.unwrap();
}

/// P10: a backlog larger than the memory budget drains in order and stays readable.
#[tokio::test]
async fn a_backlog_larger_than_memory_drains_in_order_and_stays_readable() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer
        .builder_on(gated.clone())
        .pending_memory_bytes_max(4 << 10)
        .batch_records_max(7)
        .open()
        .await
        .unwrap();
    let cache: Cache<u32, Vec<u8>> = bay.cache("n").capacity(1).coalesce(false).open().unwrap();
    let value = |n: u32| vec![n as u8; 200];
    for n in 0..2000 {
        if n % 10 == 5 {
            cache.remove(&(n % 300)).await.unwrap();
        } else {
            cache.put(&(n % 300), value(n)).await.unwrap();
        }
    }
    assert!(bay.stats().records_spilled > 1500, "{:?}", bay.stats());
    for key in 0..300 {
        let newest = (0..2000).rfind(|n| n % 300 == key).unwrap();
        let expected = (newest % 10 != 5).then(|| value(newest));
        assert_eq!(cache.get(&key).await.unwrap(), expected, "key {key}");
    }
    // Write-throughs have to find their place between what is in memory and what is on the disk.
    let through = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.put_with(&1, vec![1], WritePolicy::Through).await })
    };
    gated.release();
    through.await.unwrap().unwrap();
    bay.flush().await.unwrap();
    let seqs: Vec<u64> = gated.applied().iter().flat_map(|batch| &batch.ops).map(|op| op.seq.get()).collect();
    assert_eq!(seqs, (1..=2001).collect::<Vec<_>>(), "every update, in order, once");
    assert_eq!(bay.pending(), 0);
}

#[tokio::test]
async fn close_says_what_is_left_and_the_next_opening_drains_it() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    for n in 0..5 {
        cache.put(&n, 1).await.unwrap();
    }
    let closed = bay.close_within(Duration::from_millis(20)).await.unwrap();
    assert_eq!(closed.queued, 5);
    assert!(format!("{:#}", closed.reason.unwrap()).contains("20ms"));
    assert_eq!(cache.put(&9, 1).await.expect_err("closed").kind(), ErrorKind::Closed);
    assert_eq!(bay.flush().await.expect_err("closed").kind(), ErrorKind::Closed);
    let again = bay.close().await.unwrap();
    assert_eq!(again.queued, 5, "closing twice is fine");
    let bay = layer.open().await;
    bay.flush().await.unwrap();
    for n in 0..5_u32 {
        assert_eq!(stored::<u32, u64>(&layer.store, "n", &n).await.unwrap().0, 1);
    }
}

#[tokio::test]
async fn another_policy_after_a_reopening_abandons_nothing() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    cache.put(&1, 1).await.unwrap();
    drop((cache, bay));
    let error = Forebay::builder(layer.store.clone()).open().await.expect_err("the journal holds a record");
    assert_eq!(error.kind(), ErrorKind::WrongJournal, "{error}");
    let bay = layer.open().await;
    let cache: Cache<u32, u64> = bay.cache("n").write_policy(WritePolicy::Through).open().unwrap();
    cache.put(&2, 2).await.unwrap();
    assert_eq!(stored::<u32, u64>(&layer.store, "n", &1).await, Some((1, Seq::new(1))));
    bay.close().await.unwrap();
    let bay = Forebay::builder(layer.store.clone()).replace_journal(true).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    assert_eq!(cache.get_many(&[1, 2]).await.unwrap(), [Some(1), Some(2)]);
}

#[tokio::test]
async fn values_up_to_64_mib_and_a_clear_error_beyond() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, Vec<u8>> = bay.cache("n").open().unwrap();
    let largest = vec![7_u8; forebay::VALUE_BYTES_MAX - 8];
    cache.put(&1, largest.clone()).await.unwrap();
    cache.evict(&1);
    assert!(cache.get(&1).await.unwrap().is_some_and(|value| value == largest));
    let error = cache.put(&1, vec![7; forebay::VALUE_BYTES_MAX]).await.expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(format!("{error:#}").contains("67108864"), "{error}");
    bay.flush().await.unwrap();
    cache.evict(&1);
    assert!(cache.get(&1).await.unwrap().is_some_and(|value| value == largest), "nothing else was written");
}

#[tokio::test]
async fn a_namespace_is_open_once_and_its_handles_share_memory() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let one: Cache<u32, u64> = bay.cache("n").open().unwrap();
    let other: Cache<u32, u64> = bay.cache("n").open().unwrap();
    one.put(&1, 1).await.unwrap();
    assert_eq!((other.get(&1).await.unwrap(), other.resident_count()), (Some(1), 1));
    let error = bay.cache::<u32, String>("n").open().expect_err("other types");
    assert_eq!(error.kind(), ErrorKind::NamespaceInUse, "{error}");
    let error = bay.cache::<u32, u64>("n").capacity(5).open().expect_err("other options");
    assert!(format!("{error:#}").contains("5 entries"), "{error}");
    assert_eq!(bay.cache::<u32, u64>("../n").open().expect_err("a path").kind(), ErrorKind::InvalidName);
    assert_eq!(
        bay.cache::<u32, u64>("m").capacity(0).open().expect_err("none").kind(),
        ErrorKind::InvalidOption
    );
}

#[test]
fn the_blocking_face_needs_no_runtime() {
    let layer = Layer::new();
    let bay = layer.builder().open_blocking().unwrap();
    let cache = bay.cache::<u32, u64>("n").open().unwrap().blocking();
    cache.put(&1, 1).unwrap();
    cache.put_with(&2, 2, WritePolicy::Through).unwrap();
    assert_eq!(cache.get_many(&[1, 2, 3]).unwrap(), [Some(1), Some(2), None]);
    let mut batch = bay.batch();
    batch.put(cache.cache(), &3, 3).unwrap();
    bay.blocking().commit(batch).unwrap();
    bay.blocking().flush().unwrap();
    assert!(cache.contains(&3).unwrap());
    assert_eq!(bay.blocking().close().unwrap().queued, 0);
}

/// A blocking call inside a task once span for ever: the task's budget was used up, and waiting for it to be
/// renewed inside the task never ends.
#[tokio::test]
async fn the_blocking_face_works_inside_a_runtime() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache = bay.cache::<u32, u64>("n").open().unwrap().blocking();
    for n in 0..2000 {
        cache.put(&n, 1).unwrap();
    }
    bay.blocking().flush().unwrap();
    assert_eq!(cache.get(&1999).unwrap(), Some(1));
}

#[tokio::test]
async fn linger_collects_a_batch_and_nobody_waits_for_it() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    let hour = Duration::from_secs(60);
    let builder = layer.builder_on(gated.clone()).batch_linger(hour).batch_records_max(10);
    let bay = builder.open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    for n in 0..10 {
        cache.put(&n, 1).await.unwrap();
    }
    gated.wait_for_applies(1).await;
    cache.put(&1, 2).await.unwrap();
    bay.flush().await.unwrap();
    assert_eq!(gated.applied()[0].ops.len(), 10, "full, so not lingering");
    cache.put_with(&1, 3, WritePolicy::Through).await.unwrap();
    assert_eq!(gated.applied().len(), 3);
}

#[tokio::test]
async fn buffered_writes_behave_the_same() {
    let layer = Layer::new();
    let durability = Durability::Buffered { sync_interval: Duration::from_secs(3600) };
    let bay = layer.builder().durability(durability).open().await.unwrap();
    let cache: Arc<Cache<u32, u64>> = Arc::new(bay.cache("n").open().unwrap());
    let writers: Vec<_> = (0..8_u32)
        .map(|writer| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move {
                for n in 0..200_u64 {
                    cache.put(&writer, n).await.unwrap();
                    assert_eq!(cache.get(&writer).await.unwrap(), Some(n));
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(bay.last_committed(), Seq::new(1600));
    bay.flush().await.unwrap();
    for writer in 0..8 {
        assert_eq!(stored::<u32, u64>(&layer.store, "n", &writer).await.unwrap().0, 199);
    }
    let tenure = layer.store.standing().await.unwrap();
    assert_eq!((tenure.progress.applied, tenure.progress.journaled), (Seq::new(1600), Seq::new(1600)));
}

#[tokio::test]
async fn bad_options_are_errors_that_name_them() {
    let open = |builder: forebay::Builder| async {
        format!("{:#}", builder.open().await.expect_err("a bad option"))
    };
    let error = open(Layer::new().builder().queue_records_max(0)).await;
    assert!(error.contains("queue_records_max is 0; allowed are 1 to"), "{error}");
    let builder = Forebay::builder(MemoryStore::new()).on_rejected(OnRejected::Park);
    assert!(open(builder).await.contains("needs a journal"));
}
