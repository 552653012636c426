//! Promises that nothing else was seen to notice when their code was broken on purpose.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay::disk::simulated::CrashPolicy;
use forebay::store::contract::{Batch, BoxFuture, Op, Progress, Store, StoreError, Tenure, Versioned};
use forebay::{
    Backpressure, Cache, Durability, ErrorKind, JournalId, Key, MemoryStore, Seq, SledStore, WritePolicy,
};
use support::{Hand, Layer, failing, key_of, poll_once, stored};
use tokio::sync::watch;

/// P5: a load that was under way when a write-through of its key began does not show what a power cut can still
/// take back; neither does one of several keys.
#[tokio::test]
async fn p5_a_load_that_meets_an_unconfirmed_write_through_waits_for_it() {
    for many in [false, true] {
        let layer = Layer::new();
        let hand = Hand::stalled_after_applying(&layer.store);
        let held = HeldLoads { hand: hand.clone(), open: Arc::new(watch::Sender::new(false)) };
        let bay = layer.builder_on(held.clone()).open().await.unwrap();
        let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
        let mut read: BoxFuture<'_, Option<u64>> = if many {
            Box::pin(async { cache.get_many(&[0, 1]).await.unwrap()[1] })
        } else {
            Box::pin(async { cache.get(&1).await.unwrap() })
        };
        assert!(poll_once(&mut read).await.is_none(), "the store is asked and has not answered");
        let through = {
            let cache = cache.clone();
            tokio::spawn(async move { cache.put_with(&1, 2, WritePolicy::Through).await })
        };
        hand.wait_for_applies(1).await;
        held.open.send_replace(true);
        assert!(poll_once(&mut read).await.is_none(), "the answer may not be durable");
        hand.release();
        assert_eq!(read.await, Some(2));
        through.await.unwrap().unwrap();
    }
}

/// A store that answers loads when it is allowed to.
#[derive(Clone)]
struct HeldLoads {
    hand: Hand,
    open: Arc<watch::Sender<bool>>,
}

impl HeldLoads {
    async fn wait(&self) {
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

impl Store for HeldLoads {
    fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        self.hand.tenure()
    }

    fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        self.hand.claim(journal)
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move {
            self.wait().await;
            self.hand.load(key).await
        })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async move {
            self.wait().await;
            self.hand.load_many(keys).await
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        self.hand.apply(batch)
    }
}

/// P4: a write-through that the store confirmed late made its value visible over that of a write-behind which had been
/// acknowledged meanwhile. Readers saw the older value until it was evicted, though the store had the newer one. Found
/// by the simulation.
#[tokio::test]
async fn p4_a_late_write_through_does_not_hide_what_was_written_behind_meanwhile() {
    let layer = Layer::new();
    let hand = Hand::stalled(&layer.store);
    let bay = layer.builder_on(hand.clone()).open().await.unwrap();
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
    hand.wait_for_applies(1).await;
    cache.put(&1, 2).await.unwrap();
    cache.remove(&2).await.unwrap();
    hand.release();
    through.await.unwrap().unwrap();
    assert_eq!(cache.get_many(&[1, 2, 3]).await.unwrap(), [Some(2), None, Some(1)]);
    bay.flush().await.unwrap();
    assert_eq!(cache.get_many(&[1, 2, 3]).await.unwrap(), [Some(2), None, Some(1)]);
}

/// P5: a batch that wrote a key twice put both values into memory, one after the other, and a reader could meet the
/// first, which was never there. Found by the simulation.
#[tokio::test]
async fn p5_of_several_writes_of_a_key_in_a_batch_only_the_last_reaches_memory() {
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

/// After the store had rejected the newest write, a write-through, `flush` waited for ever, and `close` for its whole
/// deadline: the watermark passed the number of a refused write only with the next one. Found by the simulation.
#[tokio::test]
async fn a_flush_does_not_wait_for_a_write_that_was_refused() {
    let layer = Layer::new();
    let hand = Hand::new(&layer.store);
    let bay = layer.builder_on(hand.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    hand.reject(key_of("n", &1));
    let error = cache.put_with(&1, 1, WritePolicy::Through).await.expect_err("it is rejected");
    assert_eq!(error.kind(), ErrorKind::Rejected);
    let flushed = tokio::time::timeout(Duration::from_secs(10), bay.flush()).await;
    assert_eq!(flushed.expect("nothing is left to wait for").unwrap(), Seq::new(1));
    cache.put(&2, 2).await.unwrap();
    bay.flush().await.unwrap();
    assert_eq!(stored::<u32, u64>(&layer.store, "n", &2).await, Some((2, Seq::new(2))));
}

/// P2: the store is never ahead of the durable journal. Under `Buffered` a power cut may take what the store
/// lacks, but a store that has what the journal lost could not tell it from a lost journal.
#[tokio::test]
async fn p2_a_power_cut_under_buffered_leaves_the_journal_no_shorter_than_the_store() {
    let layer = Layer::new();
    let durability = Durability::Buffered { sync_interval: Duration::from_secs(3600) };
    let bay = layer.builder().durability(durability).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    for n in 0..10 {
        cache.put(&n, 1).await.unwrap();
    }
    bay.flush().await.unwrap();
    let after = Layer { disk: layer.disk.crash(CrashPolicy::OnlySynced), store: layer.store.clone() };
    let bay = after.builder().durability(durability).open().await.expect("the journal reaches as far");
    assert_eq!(bay.pending(), 0);
}

/// P2: a batch that failed in a way that passes is sent again, never passed over.
#[tokio::test]
async fn p2_a_batch_that_failed_is_not_passed_over() {
    let layer = Layer::new();
    let bay = layer.builder_on(failing(&layer.store, 1).0).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    for n in 1..=3 {
        cache.put(&u32::try_from(n).unwrap(), n).await.unwrap();
        bay.flush().await.unwrap();
        assert_eq!(stored::<u32, u64>(&layer.store, "n", &1).await, Some((1, Seq::new(1))));
    }
}

/// P1: what the store lacks stays in the journal, however much of it there is behind what the store has taken.
#[tokio::test]
async fn p1_what_the_store_lacks_is_never_trimmed() {
    let layer = Layer::new();
    let hand = Hand::stalled(&layer.store);
    let bay = layer.builder_on(hand.clone()).batch_records_max(1).open().await.unwrap();
    let cache: Cache<u32, Vec<u8>> = bay.cache("n").open().unwrap();
    // 400 KB in segments of 64 KiB.
    for n in 0..200 {
        cache.put(&n, vec![n as u8; 2000]).await.unwrap();
    }
    hand.release_one();
    // The second apply comes when the first is done with, trimming included.
    hand.wait_for_applies(2).await;
    let left = Layer { disk: layer.disk.crash(CrashPolicy::ProcessKilled), store: layer.store.clone() };
    let again = left.open().await;
    let cache: Cache<u32, Vec<u8>> = again.cache("n").open().unwrap();
    for n in 0..200 {
        assert_eq!(cache.get(&n).await.unwrap(), Some(vec![n as u8; 2000]), "{n}");
    }
}

/// P10: a journal whose records the store holds does not stay on the disk.
#[tokio::test]
async fn p10_what_the_store_holds_is_trimmed_from_the_journal() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, Vec<u8>> = bay.cache("n").open().unwrap();
    for round in 0..40_u32 {
        for n in 0..20 {
            cache.put(&n, vec![round as u8; 2000]).await.unwrap();
        }
        bay.flush().await.unwrap();
    }
    // 1.6 MB went through segments of 64 KiB.
    let left = bay.health().journal_bytes;
    assert!(left <= 8 * (64 << 10), "{left} bytes of journal are left");
}

/// P10: values of records beyond the memory budget are read from the journal, not kept beside it.
#[tokio::test]
async fn p10_values_beyond_the_budget_are_in_the_journal_only() {
    let layer = Layer::new();
    let hand = Hand::stalled(&layer.store);
    let builder = layer.builder_on(hand).pending_memory_bytes_max(4 << 10);
    let bay = builder.open().await.unwrap();
    let cache: Cache<u32, Vec<u8>> = bay.cache("n").open().unwrap();
    for n in 0..100 {
        cache.put(&n, vec![n as u8; 1000]).await.unwrap();
    }
    (0..100).for_each(|n| cache.evict(&n));
    for n in 0..100 {
        assert_eq!(cache.get(&n).await.unwrap(), Some(vec![n as u8; 1000]));
    }
    let from_journal = bay.stats().journal_reads;
    assert!(from_journal >= 96, "4 KiB hold at most four of these values; {from_journal} were read back");
}

/// P10: a record has its place in the queue until the store holds it, though it was committed long before.
#[tokio::test]
async fn p10_a_committed_record_leaves_the_queue_only_when_it_is_applied() {
    let layer = Layer::new();
    let hand = Hand::stalled(&layer.store);
    let builder = layer.builder_on(hand.clone()).queue_records_max(3).backpressure(Backpressure::Refuse);
    let bay = builder.open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    for n in 0..3 {
        cache.put(&n, 1).await.unwrap();
    }
    hand.wait_for_applies(1).await;
    assert_eq!(cache.put(&3, 1).await.expect_err("full").kind(), ErrorKind::QueueFull);
    hand.release();
    // Whoever has waited for the store finds room, every time.
    for n in 0..200 {
        bay.flush().await.unwrap();
        for key in 0..3 {
            cache.put(&key, n).await.expect("the store holds all that was queued");
        }
    }
}

/// P11: a journal that has been trimmed up to what another store held does not fill an empty one.
#[tokio::test]
async fn p11_a_store_that_lost_what_the_journal_no_longer_holds_is_refused() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, Vec<u8>> = bay.cache("n").open().unwrap();
    for n in 0..200 {
        cache.put(&n, vec![1; 2000]).await.unwrap();
        bay.flush().await.unwrap();
    }
    bay.close().await.unwrap();
    let lost = Layer { disk: layer.disk.clone(), store: MemoryStore::new() };
    let error = lost.builder().open().await.expect_err("the records in between are in neither");
    assert_eq!(error.kind(), ErrorKind::WrongJournal, "{error}");
}

/// P11: a journal that ends before what the store was fed from it has lost its end.
#[tokio::test]
async fn p11_a_journal_that_ends_before_the_stores_watermark_is_refused() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    cache.put(&1, 1).await.unwrap();
    bay.flush().await.unwrap();
    let earlier = layer.disk.crash(CrashPolicy::OnlySynced);
    cache.put(&1, 2).await.unwrap();
    bay.flush().await.unwrap();
    let older = Layer { disk: earlier, store: layer.store.clone() };
    let error = older.builder().open().await.expect_err("an older copy of the journal");
    assert_eq!(error.kind(), ErrorKind::WrongJournal, "{error}");
}

/// P11: a journal of another store is refused though it is long enough to be this one's.
#[tokio::test]
async fn p11_a_longer_journal_of_another_store_is_refused() {
    let (layer, other) = (Layer::new(), Layer::new());
    for (layer, writes) in [(&layer, 1), (&other, 5)] {
        let bay = layer.open().await;
        let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
        for n in 0..writes {
            cache.put(&n, 1).await.unwrap();
        }
        bay.flush().await.unwrap();
        bay.close().await.unwrap();
    }
    let swapped = Layer { disk: other.disk.clone(), store: layer.store.clone() };
    let error = swapped.builder().open().await.expect_err("another store's journal");
    assert_eq!(error.kind(), ErrorKind::WrongJournal, "{error}");
}

/// P3: of a batch that reaches beyond the watermark, a store skips what is at or below it.
#[tokio::test]
async fn p3_an_update_below_the_watermark_never_overwrites_a_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    let sled = SledStore::open(folder.path().join("store")).unwrap();
    let stores: [Box<dyn Store>; 2] = [Box::new(MemoryStore::new()), Box::new(sled)];
    for store in stores {
        let epoch = store.claim(None).await.unwrap().epoch;
        let op = |seq, key: u32| Op { seq: Seq::new(seq), key: key_of("n", &key), value: Some("v".into()) };
        for (ops, last) in [(vec![op(2, 1)], 2), (vec![op(1, 1), op(3, 3)], 3)] {
            let progress = Progress { applied: Seq::new(last), journaled: Seq::new(last) };
            store.apply(&Batch { epoch, ops, progress }).await.unwrap();
        }
        assert_eq!(store.load(&key_of("n", &1_u32)).await.unwrap().unwrap().version, Seq::new(2));
        assert_eq!(store.load(&key_of("n", &3_u32)).await.unwrap().unwrap().version, Seq::new(3));
    }
}

/// P2: what is committed while spilled frames are still being read back comes after them, once.
#[tokio::test]
async fn p2_writes_between_two_spills_keep_their_place() {
    let layer = Layer::new();
    let hand = Hand::stalled(&layer.store);
    let builder = layer.builder_on(hand.clone()).pending_memory_bytes_max(2 << 10).batch_records_max(1);
    let bay = builder.open().await.unwrap();
    let cache: Cache<u32, Vec<u8>> = bay.cache("n").coalesce(false).open().unwrap();
    for n in 0..40 {
        cache.put(&n, vec![1; 200]).await.unwrap();
    }
    for applied in 1..=12 {
        hand.wait_for_applies(applied).await;
        hand.release_one();
        bay.wait_applied(Seq::new(applied)).await.unwrap();
    }
    // There is room in memory again, but what was spilled comes first.
    for n in 40..80 {
        cache.put(&n, vec![1; 200]).await.unwrap();
    }
    hand.release();
    bay.flush().await.unwrap();
    let seqs: Vec<u64> = hand.applied().iter().flat_map(|batch| &batch.ops).map(|op| op.seq.get()).collect();
    assert_eq!(seqs, (1..=80).collect::<Vec<_>>(), "every update, in order, once");
}
