//! Read sets: a derived value is stale when anything that its loader read changes, while it is made and later.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use forebay::testkit::ManualClock;
use forebay::{Cache, CacheBuilder, Error, Forebay, MemoryStore, MissReason, Seq, WritePolicy};
use tokio::sync::watch;

use crate::support::{GatedStore, Layer, poll_once};
use crate::tags_and_rules::tags;

/// A cache of sums, and the caches that it is derived from.
struct Sums {
    bay: Forebay,
    parts: Cache<(u32, u32), u64>,
    sums: Cache<u32, u64>,
    made: Arc<AtomicU64>,
    /// The loader waits here after it has read.
    open: Arc<watch::Sender<bool>>,
    gated: GatedStore,
    _layer: Layer,
}

impl Sums {
    async fn open() -> Sums {
        let layer = Layer::new();
        let gated = GatedStore::new(&layer.store);
        let bay = layer.builder_on(gated.clone()).open().await.unwrap();
        let builder: CacheBuilder<(u32, u32), u64> = bay.cache("parts/eu");
        let parts = builder.group_by(|key| Some(format!("group {}", key.0))).open().unwrap();
        let sums = bay.cache("sums").open().unwrap();
        let open = Arc::new(watch::Sender::new(true));
        Sums { bay, parts, sums, made: Arc::default(), open, gated, _layer: layer }
    }

    /// The sum of the parts 0 and 1 of `key`.
    async fn sum(&self, key: u32) -> u64 {
        let (parts, made, mut open) = (self.parts.clone(), Arc::clone(&self.made), self.open.subscribe());
        let load = move |key, context: forebay::LoadContext| async move {
            made.fetch_add(1, SeqCst);
            let one = context.get(&parts, &(key, 0)).await?.unwrap_or(0);
            let other = context.get(&parts, &(key, 1)).await?.unwrap_or(0);
            open.wait_for(|open| *open).await.map_err(|_| "the test is over")?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Some(one + other))
        };
        self.sums.get_or_derive(&key, load).await.unwrap().unwrap()
    }

    fn made(&self) -> u64 {
        self.made.load(SeqCst)
    }

    /// Part 1 of 7 changes, or is said to.
    async fn change(&self, how: &str) -> u64 {
        let Sums { bay, parts, .. } = self;
        let key = (7, 1);
        match how {
            "put" => drop(parts.put(&key, 20).await.unwrap()),
            "put through" => drop(parts.put_with(&key, 20, WritePolicy::Through).await.unwrap()),
            "put around" => drop(parts.put_with(&key, 20, WritePolicy::Around).await.unwrap()),
            "remove" => drop(parts.remove(&key).await.unwrap()),
            "batch" => {
                let mut batch = bay.batch();
                batch.put(parts, &key, 20).unwrap();
                batch.commit().await.unwrap();
            }
            "invalidate" => parts.invalidate(&key),
            "invalidate version" => assert!(parts.invalidate_version(&key, Seq::new(1000))),
            "everything" => parts.invalidate_all(),
            "namespace" => drop(bay.invalidate_namespace("parts").await.unwrap()),
            "group" => drop(parts.invalidate_group("group 7").await.unwrap()),
            _ => bay.invalidate_tag("red").unwrap(),
        }
        match how {
            "put" | "put through" | "put around" | "batch" => 21,
            "remove" => 1,
            _ => 3,
        }
    }
}

const CHANGES: [&str; 11] = [
    "put",
    "put through",
    "put around",
    "remove",
    "batch",
    "invalidate",
    "invalidate version",
    "everything",
    "namespace",
    "group",
    "tag",
];

#[tokio::test]
async fn a_derived_value_is_stale_when_what_it_was_read_from_changes() {
    for change in CHANGES {
        let sums = Sums::open().await;
        sums.parts.put(&(7, 0), 1).await.unwrap();
        sums.parts.put_with(&(7, 1), 2, tags(&["red"])).await.unwrap();
        assert_eq!((sums.sum(7).await, sums.sum(7).await, sums.made()), (3, 3, 1), "{change}");
        let expected = sums.change(change).await;
        assert_eq!((sums.sum(7).await, sums.made()), (expected, 2), "{change}");
        assert_eq!((sums.sum(7).await, sums.made()), (expected, 2), "{change}: and kept again");
        assert_eq!(sums.sums.stats().misses[MissReason::DependencyChanged], 1, "{change}");
        assert_eq!(sums.sums.get(&7).await.unwrap(), Some(expected), "{change}: a plain read, too");
    }
}

#[tokio::test]
async fn a_derived_value_is_not_kept_when_what_it_was_read_from_changes_before_it_is_there() {
    for change in CHANGES {
        let sums = Sums::open().await;
        sums.parts.put(&(7, 0), 1).await.unwrap();
        sums.parts.put_with(&(7, 1), 2, tags(&["red"])).await.unwrap();
        sums.open.send_replace(false);
        let mut older = Box::pin(sums.sum(7));
        assert!(poll_once(&mut older).await.is_none());
        let expected = sums.change(change).await;
        let mut newer = Box::pin(sums.sum(7));
        assert!(poll_once(&mut newer).await.is_none());
        sums.open.send_replace(true);
        assert_eq!(older.await, 3, "{change}: it began before");
        assert_eq!(newer.await, expected, "{change}: it came after the change");
        assert_eq!(sums.sum(7).await, expected, "{change}: nor is the older one kept");
        assert_eq!(sums.made(), 2, "{change}");
        assert!(sums.sums.stats().refused_fills >= 1, "{change}");
    }
}

/// A write-through that nobody has confirmed yet is seen by no read, and moves the fences when it is.
#[tokio::test]
async fn a_derived_value_outlives_no_write_through_of_what_it_was_read_from() {
    let sums = Sums::open().await;
    sums.parts.put(&(7, 1), 2).await.unwrap();
    sums.bay.flush().await.unwrap();
    sums.gated.stall();
    let mut write = Box::pin(sums.parts.put_with(&(7, 1), 20, WritePolicy::Through));
    assert!(poll_once(&mut write).await.is_none());
    assert_eq!(sums.sum(7).await, 2);
    sums.gated.release();
    write.await.unwrap();
    assert_eq!(sums.sum(7).await, 20);
}

#[tokio::test]
async fn absent_keys_are_dependencies_and_keys_that_were_not_read_are_not() {
    let sums = Sums::open().await;
    assert_eq!((sums.sum(7).await, sums.sum(7).await, sums.made()), (0, 0, 1));
    sums.parts.put(&(7, 1), 2).await.unwrap();
    assert_eq!((sums.sum(7).await, sums.made()), (2, 2));
    // Two keys may share a fence, but not all of them one.
    let mut kept = 0;
    for other in 100..108 {
        let made = sums.made();
        sums.parts.put(&(other, 1), 2).await.unwrap();
        sums.sum(7).await;
        kept += u32::from(sums.made() == made);
    }
    assert!(kept > 0);
}

#[tokio::test]
async fn what_is_derived_from_something_derived_depends_on_all_of_it() {
    let sums = Sums::open().await;
    sums.parts.put(&(1, 0), 1).await.unwrap();
    let totals: Cache<u32, u64> = sums.bay.cache("totals").open().unwrap();
    let total = || {
        let (inner, parts) = (sums.sums.clone(), sums.parts.clone());
        let load = move |_, context: forebay::LoadContext| async move {
            let load = move |key, context: forebay::LoadContext| async move {
                Ok::<_, Error>(Some(context.get(&parts, &(key, 0)).await?.unwrap_or(0) + 1))
            };
            let sum = context.get_or_derive(&inner, &1, load).await?.unwrap();
            Ok::<_, Error>(Some(sum * 10))
        };
        totals.get_or_derive(&0, load)
    };
    assert_eq!(total().await.unwrap(), Some(20));
    sums.parts.put(&(1, 0), 2).await.unwrap();
    assert_eq!(total().await.unwrap(), Some(30));
    sums.sums.invalidate(&1);
    assert_eq!(total().await.unwrap(), Some(30));
    assert_eq!(totals.stats().misses[MissReason::DependencyChanged], 2);
}

#[tokio::test]
async fn a_stale_read_is_not_built_upon_and_another_layer_is_not_read() {
    let (layer, clock) = (Layer::new(), ManualClock::new());
    let bay = layer.builder().clock(clock.clone()).open().await.unwrap();
    let parts: Cache<u32, u64> = bay
        .cache("parts")
        .time_to_live(Duration::from_secs(10))
        .stale_while_revalidate(Duration::from_secs(100))
        .open()
        .unwrap();
    let sums: Cache<u32, u64> = bay.cache("sums").open().unwrap();
    parts.put(&1, 1).await.unwrap();
    clock.advance(Duration::from_secs(20));
    let derive = |parts: &Cache<u32, u64>| {
        let parts = parts.clone();
        move |key, context: forebay::LoadContext| async move { context.get(&parts, &key).await }
    };
    assert_eq!(sums.get_or_derive(&1, derive(&parts)).await.unwrap(), Some(1));
    assert_eq!(sums.get(&1).await.unwrap(), None, "returned, and not kept");
    let elsewhere = Forebay::builder(MemoryStore::new()).open().await.unwrap();
    let others: Cache<u32, u64> = elsewhere.cache("parts").open().unwrap();
    let error = sums.get_or_derive(&1, derive(&others)).await.unwrap_err();
    assert!(format!("{error:#}").contains("different layers"), "{error}");
}

#[test]
fn the_blocking_face_has_the_same_calls() {
    let bay = Forebay::builder(MemoryStore::new()).open_blocking().unwrap();
    let parts: Cache<u32, u64> = bay.cache("parts").open().unwrap();
    let sums: Cache<u32, u64> = bay.cache("sums").open().unwrap();
    let (parts, sums) = (parts.blocking(), sums.blocking());
    let sum = || {
        let parts = parts.clone();
        sums.get_or_derive(&1, move |key, context| {
            context.get(&parts, &key).map(|part| Some(part.unwrap_or(0)))
        })
    };
    assert_eq!((sum().unwrap(), sum().unwrap()), (Some(0), Some(0)));
    parts.put_with(&1, 5, tags(&["red"])).unwrap();
    assert_eq!(sum().unwrap(), Some(5));
    bay.invalidate_tag("red").unwrap();
    assert_eq!(sums.get(&1).unwrap(), None);
}
