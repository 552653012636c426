//! The order between journal and store: what the store lacks stays in the journal, what it holds is trimmed, and a
//! journal and a store that do not belong together are refused.

use std::time::Duration;

use forebay::disk::CrashPolicy;
use forebay::store::{Batch, Op, Store};
use forebay::{Backpressure, Cache, Durability, ErrorKind, MemoryStore, Seq, SledStore};

use crate::support::{GatedStore, Layer, claimed, failing, key_of, stored};

/// P2: the store is never ahead of the durable journal. Under `Buffered` a power cut may take what the store
/// lacks, but a store that has what the journal lost could not tell it from a lost journal.
#[tokio::test]
async fn a_power_cut_under_buffered_leaves_the_journal_no_shorter_than_the_store() {
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
async fn a_batch_that_failed_is_not_passed_over() {
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
async fn what_the_store_lacks_is_never_trimmed() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).batch_records_max(1).open().await.unwrap();
    let cache: Cache<u32, Vec<u8>> = bay.cache("n").open().unwrap();
    // 400 KB in segments of 64 KiB.
    for n in 0..200 {
        cache.put(&n, vec![n as u8; 2000]).await.unwrap();
    }
    gated.release_one();
    // The second apply comes when the first is done with, trimming included.
    gated.wait_for_applies(2).await;
    let left = Layer { disk: layer.disk.crash(CrashPolicy::ProcessKilled), store: layer.store.clone() };
    let again = left.open().await;
    let cache: Cache<u32, Vec<u8>> = again.cache("n").open().unwrap();
    for n in 0..200 {
        assert_eq!(cache.get(&n).await.unwrap(), Some(vec![n as u8; 2000]), "{n}");
    }
}

/// P10: a journal whose records the store holds does not stay on the disk.
#[tokio::test]
async fn what_the_store_holds_is_trimmed_from_the_journal() {
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
async fn values_beyond_the_budget_are_in_the_journal_only() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let builder = layer.builder_on(gated).pending_memory_bytes_max(4 << 10);
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
async fn a_committed_record_leaves_the_queue_only_when_it_is_applied() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let builder = layer.builder_on(gated.clone()).queue_records_max(3).backpressure(Backpressure::Refuse);
    let bay = builder.open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    for n in 0..3 {
        cache.put(&n, 1).await.unwrap();
    }
    gated.wait_for_applies(1).await;
    assert_eq!(cache.put(&3, 1).await.expect_err("full").kind(), ErrorKind::QueueFull);
    gated.release();
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
async fn a_store_that_lost_what_the_journal_no_longer_holds_is_refused() {
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
async fn a_journal_that_ends_before_the_stores_watermark_is_refused() {
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
async fn a_longer_journal_of_another_store_is_refused() {
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
async fn an_update_below_the_watermark_never_overwrites_a_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    let sled = SledStore::open(folder.path().join("store")).unwrap();
    let stores: [Box<dyn Store>; 2] = [Box::new(MemoryStore::new()), Box::new(sled)];
    for store in stores {
        let standing = claimed(&*store).await;
        let op = |seq, key: u32| Op { seq: Seq::new(seq), key: key_of("n", &key), value: Some("v".into()) };
        for (number, ops, last) in [(1, vec![op(2, 1)], 2), (2, vec![op(1, 1), op(3, 3)], 3)] {
            let batch = Batch { number, ..standing.next_batch(Seq::new(last), ops) };
            store.apply(&batch).await.unwrap();
        }
        assert_eq!(store.load(&key_of("n", &1_u32)).await.unwrap().unwrap().version, Seq::new(2));
        assert_eq!(store.load(&key_of("n", &3_u32)).await.unwrap().unwrap().version, Seq::new(3));
    }
}

/// P2: what is committed while spilled frames are still being read back comes after them, once.
#[tokio::test]
async fn writes_between_two_spills_keep_their_place() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let builder = layer.builder_on(gated.clone()).pending_memory_bytes_max(2 << 10).batch_records_max(1);
    let bay = builder.open().await.unwrap();
    let cache: Cache<u32, Vec<u8>> = bay.cache("n").coalesce(false).open().unwrap();
    for n in 0..40 {
        cache.put(&n, vec![1; 200]).await.unwrap();
    }
    for applied in 1..=12 {
        gated.wait_for_applies(applied).await;
        gated.release_one();
        bay.wait_applied(Seq::new(applied)).await.unwrap();
    }
    // There is room in memory again, but what was spilled comes first.
    for n in 40..80 {
        cache.put(&n, vec![1; 200]).await.unwrap();
    }
    gated.release();
    bay.flush().await.unwrap();
    let seqs: Vec<u64> = gated.applied().iter().flat_map(|batch| &batch.ops).map(|op| op.seq.get()).collect();
    assert_eq!(seqs, (1..=80).collect::<Vec<_>>(), "every update, in order, once");
}
