//! The drain of a whole layer gives way to its writers, and goes on all the same: in simulated time, where
//! no wait ends before everything else has been done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use forebay::disk::{Disk, SimDisk};
use forebay::seam::simulated;
use forebay::store::{Batch, BoxFuture, Claim, Standing, Store, StoreError, Versioned};
use forebay::testkit::flaky::FlakyStore;
use forebay::{Builder, Cache, Forebay, Key, MemoryStore, WritePolicy};
use shuttle::future::block_on;

use crate::harness::order::in_orders;

const LINGER: Duration = Duration::from_millis(20);
const DELAY: Duration = Duration::from_millis(300);
/// The pause of a writer between two puts.
const PAUSE: Duration = Duration::from_millis(5);
/// The time within which something due is seen.
const SEEN: Duration = Duration::from_millis(10);
const ORDERS: u32 = 20;

/// A store whose applies others hear of, as of one with an outbox.
#[derive(Clone)]
struct Telling(MemoryStore);

impl Store for Telling {
    fn has_change_feed(&self) -> bool {
        true
    }

    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        self.0.standing()
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        self.0.claim(claim)
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        self.0.load(key)
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        self.0.load_many(keys)
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.apply(batch)
    }
}

/// Returns the time of each apply, as seen between the puts of one writer, which makes so many within a second and
/// does `also` after each.
fn applied_after(
    puts: u32,
    configure: impl FnOnce(Builder) -> Builder,
    also: impl Fn(u32, &Forebay, &FlakyStore<MemoryStore>),
) -> Vec<Duration> {
    applied_to(MemoryStore::new(), puts, configure, also)
}

fn applied_to<S: Store + Clone>(
    store: S,
    puts: u32,
    configure: impl FnOnce(Builder) -> Builder,
    also: impl Fn(u32, &Forebay, &FlakyStore<S>),
) -> Vec<Duration> {
    let store = FlakyStore::new(store);
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let builder = Forebay::builder(store.clone()).journal("/journal").disk(disk);
    let bay =
        configure(builder.batch_linger(LINGER).drain_delay_max(DELAY).batch_records_max(10)).open_blocking();
    let bay = bay.unwrap();
    let cache: Cache<u32, u32> = bay.cache("n").open().unwrap();
    let begun = simulated::elapsed();
    let mut seen = Vec::new();
    for number in 0..200 {
        if number < puts {
            block_on(cache.put(&number, number)).unwrap();
            also(number, &bay, &store);
        }
        block_on(simulated::sleep(PAUSE));
        let passed = simulated::elapsed() - begun;
        seen.extend((seen.len()..store.applies()).map(|_| passed));
    }
    bay.blocking().close().unwrap();
    seen
}

fn writes_go_on(configure: impl FnOnce(Builder) -> Builder) -> Vec<Duration> {
    applied_after(200, configure, |_, _, _| {})
}

fn in_each_order(name: &str, body: impl Fn() + Send + Sync + Clone + 'static) {
    let begun = AtomicU32::new(0);
    in_orders(name, None, move || begun.fetch_add(1, Ordering::SeqCst) < ORDERS, move |_| body());
}

fn first(seen: &[Duration]) -> Duration {
    *seen.first().expect("it is drained while it writes")
}

/// Writers that go on are given way to for the whole delay, though batches are full, and not for longer.
#[test]
fn the_drain_gives_way_to_writers_for_its_delay_and_then_drains_all_that_was_there() {
    in_each_order("a writer that goes on", || {
        let seen = writes_go_on(|builder| builder);
        assert!(first(&seen) > DELAY - LINGER && first(&seen) <= DELAY + SEEN, "{seen:?}");
        let mut begun = seen.clone();
        begun.dedup_by(|later, earlier| *later <= *earlier + SEEN);
        assert_eq!(begun.len(), 3, "a second has three such delays: {seen:?}");
        let apart = begun.windows(2).all(|pair| pair[1] - pair[0] <= DELAY + SEEN);
        assert!(apart, "nothing is older when it is applied: {seen:?}");
        let at_first = seen.iter().filter(|at| **at <= first(&seen) + SEEN).count();
        assert!(at_first >= 5, "some 60 records, in batches of ten, without a linger in between: {seen:?}");
    });
}

/// Records that came while a drain went on are no older than the delay, either, when the next one begins.
#[test]
fn the_delay_counts_from_what_is_oldest_however_long_a_drain_takes() {
    in_each_order("a store that stands for a while", || {
        let seen = applied_after(
            200,
            |builder| builder,
            |number, _, store| match number {
                50 => store.stall(),
                80 => store.release(),
                _ => {}
            },
        );
        let stood_until = 80 * PAUSE;
        assert!(first(&seen) >= stood_until && first(&seen) <= stood_until + SEEN, "{seen:?}");
        let next = seen.iter().find(|at| **at > stood_until + SEEN).expect("it is drained again");
        assert!(*next <= 2 * DELAY + 2 * SEEN, "{seen:?}");
    });
}

#[test]
fn the_drain_lingers_once_where_nothing_more_is_written() {
    in_each_order("one put", || {
        let seen = applied_after(1, |builder| builder, |_, _, _| {});
        assert!(seen.len() == 1 && first(&seen) <= LINGER + SEEN, "{seen:?}");
    });
    in_each_order("thirty puts and no more", || {
        let seen = applied_after(30, |builder| builder, |_, _, _| {});
        let last = seen.last().expect("it is drained");
        assert!(seen.len() == 3 && *last <= 30 * PAUSE + 2 * LINGER + SEEN, "{seen:?}");
    });
}

/// Each of these ends the delay, or leaves none.
#[test]
fn the_drain_gives_way_no_longer_than_it_may() {
    in_each_order("changes are told", || {
        let seen = writes_go_on(|builder| builder.changes(true).batch_records_max(1 << 20));
        assert!(seen.len() >= 30 && first(&seen) <= LINGER + SEEN, "{seen:?}");
    });
    in_each_order("the store tells others", || {
        let store = Telling(MemoryStore::new());
        let seen = applied_to(store, 200, |builder| builder.batch_records_max(1 << 20), |_, _, _| {});
        assert!(seen.len() >= 30 && first(&seen) <= LINGER + SEEN, "{seen:?}");
    });
    in_each_order("no delay", || {
        let seen = writes_go_on(|builder| builder.drain_delay_max(Duration::ZERO).batch_records_max(2));
        assert!(seen.len() >= 90 && first(&seen) <= SEEN + PAUSE, "full batches, so no linger: {seen:?}");
    });
    in_each_order("a quarter of the queue's records", || {
        let seen = writes_go_on(|builder| builder.queue_records_max(80));
        assert!(first(&seen) > LINGER + SEEN && first(&seen) <= 20 * PAUSE + SEEN, "{seen:?}");
    });
    in_each_order("a quarter of what may stay in memory", || {
        let seen = writes_go_on(|builder| builder.pending_memory_bytes_max(4 * 1500).batch_bytes_max(100));
        assert!(first(&seen) > LINGER + SEEN && first(&seen) < DELAY - 2 * LINGER, "{seen:?}");
    });
    in_each_order("nothing stays in memory, and a batch may be pending", || {
        let seen = writes_go_on(|builder| builder.pending_memory_bytes_max(0).batch_bytes_max(1500));
        assert!(first(&seen) > LINGER + SEEN && first(&seen) < DELAY - 2 * LINGER, "{seen:?}");
    });
    in_each_order("a queue of one record", || {
        let seen = writes_go_on(|builder| builder.queue_records_max(1));
        assert!(seen.len() >= 190, "nobody waits for room longer than for an apply: {seen:?}");
    });
    in_each_order("a short delay", || {
        let seen = writes_go_on(|builder| builder.drain_delay_max(LINGER / 2).batch_records_max(1 << 20));
        assert!(first(&seen) >= LINGER && first(&seen) <= LINGER + SEEN, "one linger: {seen:?}");
    });
}

/// Returns the times of applies, with `also` after the 21st put.
fn after_20_puts(also: impl Fn(&Forebay)) -> Vec<Duration> {
    let seen = applied_after(
        200,
        |builder| builder.batch_records_max(1 << 20),
        |number, bay, _| {
            if number == 20 {
                also(bay);
            }
        },
    );
    assert!(first(&seen) <= 20 * PAUSE + SEEN, "who waits is not made to wait: {seen:?}");
    seen
}

/// A caller that wrote through a moment ago may do so again, and would wait for all that was put off.
#[test]
fn after_a_write_through_nothing_is_put_off_for_as_long_as_the_delay() {
    let put_off = |seen: &[Duration]| {
        let gaps = seen.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.filter(|gap| *gap > DELAY - LINGER - SEEN).count()
    };
    in_each_order("a write-through after 20 puts", move || {
        let seen = after_20_puts(|bay| {
            let cache: Cache<u32, u32> =
                bay.cache("through").write_policy(WritePolicy::Through).open().unwrap();
            block_on(cache.put(&0, 0)).unwrap();
        });
        let soon = seen.iter().filter(|at| **at <= 20 * PAUSE + DELAY).count();
        assert!(
            soon >= 10 && put_off(&seen) >= 1,
            "every linger, for the delay, then it gives way: {seen:?}"
        );
    });
    in_each_order("a flush after 20 puts", move || {
        let seen = after_20_puts(|bay| {
            bay.blocking().flush().unwrap();
        });
        assert!(put_off(&seen) >= 2 && seen.len() <= 5, "{seen:?}");
    });
}
