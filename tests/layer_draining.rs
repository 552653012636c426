//! How the drain of a whole layer gives way to its writers, and that it goes on all the same: in simulated time, where
//! no wait ends before everything else has been done.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

#[allow(dead_code, unreachable_pub, reason = "other tests use all of it")]
#[path = "support/budget.rs"]
mod budget;
#[path = "support/simulation/mod.rs"]
mod simulation;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use forebay::disk::contract::Disk;
use forebay::disk::simulated::SimDisk;
use forebay::seam::simulated;
use forebay::testkit::flaky::FlakyStore;
use forebay::{Cache, Forebay, MemoryStore};
use shuttle::future::block_on;
use simulation::order::in_orders;

const LINGER: Duration = Duration::from_millis(20);
/// How long a writer waits between two puts.
const PAUSE: Duration = Duration::from_millis(5);
const ORDERS: u32 = 20;

/// When each batch had been applied, as seen between the puts of one writer, which makes so many.
fn applied_after(puts: u32, tells_changes: bool) -> Vec<Duration> {
    let store = FlakyStore::new(MemoryStore::new());
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let builder = Forebay::builder(store.clone()).journal("/journal").disk(disk).changes(tells_changes);
    let bay = builder.batch_linger(LINGER).batch_records_max(1 << 20).open_blocking().unwrap();
    let cache: Cache<u32, u32> = bay.cache("n").open().unwrap();
    let begun = simulated::elapsed();
    let mut seen = Vec::new();
    for number in 0..200 {
        if number < puts {
            block_on(cache.put(&number, number)).unwrap();
        }
        block_on(simulated::sleep(PAUSE));
        let passed = simulated::elapsed() - begun;
        seen.extend((seen.len()..store.applies()).map(|_| passed));
    }
    bay.blocking().close().unwrap();
    seen
}

fn in_each_order(name: &str, body: impl Fn() + Send + Sync + Clone + 'static) {
    let begun = AtomicU32::new(0);
    in_orders(name, None, move || begun.fetch_add(1, Ordering::SeqCst) < ORDERS, move |_| body());
}

/// Each apply is in the way of a few writes. Writers that go on are never waited for, though.
#[test]
fn under_constant_writes_the_flusher_lingers_longer_and_drains_all_the_same() {
    in_each_order("a writer that goes on", || {
        let seen = applied_after(200, false);
        // Ten lingers would be 200 ms; 100 ms is the most, and a second has at least nine of them.
        let first = seen.first().expect("it is drained while it writes");
        assert!(*first > 4 * LINGER && *first <= 5 * LINGER + 2 * PAUSE, "{seen:?}");
        assert!((8..=12).contains(&seen.len()), "{seen:?}");
    });
}

#[test]
fn the_flusher_lingers_once_where_nothing_more_is_written_and_where_changes_are_told() {
    in_each_order("one put", || {
        let seen = applied_after(1, false);
        assert!(seen.len() == 1 && seen.iter().all(|at| *at <= LINGER + 2 * PAUSE), "{seen:?}");
    });
    in_each_order("a writer that goes on, and changes are told", || {
        let seen = applied_after(200, true);
        assert!(seen.len() >= 30 && seen.iter().take(1).all(|at| *at <= LINGER + 2 * PAUSE), "{seen:?}");
    });
}
