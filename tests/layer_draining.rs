//! How the drain of a whole layer gives way to its writers, and that it goes on all the same.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "these are tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay::Cache;
use support::{Hand, Layer};

/// Each apply is in the way of a few writes. Writers that go on are never waited for, though.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_constant_writes_the_flusher_lingers_longer_and_drains_all_the_same() {
    let linger = Duration::from_millis(20);
    let mut longest = Duration::ZERO;
    // A machine that is busy with other things may keep a writer from writing for as long as a linger.
    for _ in 0..20 {
        let layer = Layer::new();
        let hand = Hand::new(&layer.store);
        let builder = layer.builder_on(hand.clone()).batch_linger(linger).batch_records_max(1 << 20);
        let bay = builder.open().await.unwrap();
        let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, writing) = (Arc::clone(&stop), cache.clone());
        let begun = Instant::now();
        let writer = tokio::spawn(async move {
            for n in 0_u64.. {
                writing.put(&((n % 100) as u32), n).await.unwrap();
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        hand.wait_for_applies(1).await;
        longest = longest.max(begun.elapsed());
        hand.wait_for_applies(4).await;
        assert!(!writer.is_finished(), "what was drained was drained while it wrote");
        stop.store(true, Ordering::SeqCst);
        writer.await.unwrap();
        if longest >= linger * 3 {
            break;
        }
    }
    assert!(longest >= linger * 3, "the first apply came after {longest:?} at the latest");
}
