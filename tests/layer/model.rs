//! The layer against a model: random writes, failures, crashes and reopenings, and after every step the promises that
//! can be seen from outside: what is read, what the store holds at its watermark, and the numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use forebay::disk::CrashPolicy;
use forebay::store::Store;
use forebay::testkit::FlakyStore;
use forebay::testkit::flaky::Fault;
use forebay::{Bincode, Cache, Codec, Forebay, MemoryStore, Seq, WritePolicy};
use proptest::prelude::*;

use crate::support::Layer;
use crate::support::order::Order;

const NAMES: [&str; 2] = ["a", "b"];
const KEYS: u32 = 6;

/// A cache and a key in it.
type Place = (usize, u32);
type Content = BTreeMap<Place, u64>;

#[derive(Clone, Debug)]
enum Step {
    Write(Place, Option<u64>, bool),
    Batch(Vec<(Place, Option<u64>)>),
    Flush,
    Evict(Place),
    InvalidateAll,
    /// The next applies fail: before or after the store has applied.
    Fail(Vec<bool>),
    Close(Setting),
    Drop(Setting),
    Crash(u8, u64, Setting),
}

/// The options of a layer.
#[derive(Clone, Copy, Debug)]
struct Setting {
    pending_memory_bytes_max: u64,
    batch_records_max: usize,
    capacity: usize,
    coalesce: bool,
    lingers: bool,
}

fn place() -> impl Strategy<Value = Place> {
    (0..NAMES.len(), 0..KEYS)
}

fn change() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![4 => any::<u64>().prop_map(Some), 1 => Just(None)]
}

fn setting() -> impl Strategy<Value = Setting> {
    let memory = prop_oneof![Just(0), Just(300), Just(1 << 20)];
    let batch = prop_oneof![Just(1_usize), Just(3), Just(1000)];
    let capacity = prop_oneof![Just(1_usize), Just(3), Just(100)];
    (memory, batch, capacity, any::<bool>(), any::<bool>()).prop_map(
        |(pending_memory_bytes_max, batch_records_max, capacity, coalesce, lingers)| Setting {
            pending_memory_bytes_max,
            batch_records_max,
            capacity,
            coalesce,
            lingers,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (place(), change(), prop::bool::weighted(0.2)).prop_map(|(at, to, through)| Step::Write(at, to, through)),
        4 => prop::collection::vec((place(), change()), 1..6).prop_map(Step::Batch),
        2 => Just(Step::Flush),
        3 => place().prop_map(Step::Evict),
        1 => Just(Step::InvalidateAll),
        2 => prop::collection::vec(any::<bool>(), 1..4).prop_map(Step::Fail),
        1 => setting().prop_map(Step::Close),
        1 => setting().prop_map(Step::Drop),
        2 => (0..4_u8, any::<u64>(), setting()).prop_map(|(kind, seed, setting)| Step::Crash(kind, seed, setting)),
    ]
}

/// A layer under test, and what it has to show.
struct Subject {
    layer: Layer,
    flaky: FlakyStore<MemoryStore>,
    open: Option<(Forebay, [Cache<u32, u64>; 2])>,
    order: Order<Place, Seq, Option<u64>>,
    last: Seq,
    watermark: Seq,
}

impl Subject {
    async fn new(setting: Setting) -> Subject {
        let layer = Layer::new();
        let flaky = FlakyStore::new(layer.store.clone());
        let (order, last) = (Order::default(), Seq::ZERO);
        let mut subject = Subject { layer, flaky, open: None, order, last, watermark: Seq::ZERO };
        subject.reopen(setting).await;
        subject
    }

    async fn reopen(&mut self, setting: Setting) {
        self.open = None;
        let bay = self
            .layer
            .builder_on(self.flaky.clone())
            .pending_memory_bytes_max(setting.pending_memory_bytes_max)
            .batch_records_max(setting.batch_records_max)
            .batch_linger(Duration::from_millis(u64::from(setting.lingers)))
            .open()
            .await
            .unwrap();
        let caches = NAMES.map(|name| {
            bay.cache(name).capacity(setting.capacity).coalesce(setting.coalesce).open().unwrap()
        });
        self.open = Some((bay, caches));
    }

    fn bay(&self) -> &Forebay {
        &self.open.as_ref().unwrap().0
    }

    fn cache(&self, at: usize) -> &Cache<u32, u64> {
        &self.open.as_ref().unwrap().1[at]
    }

    /// Takes an acknowledged write into the order. Its records have numbers of their own.
    fn acknowledged(&mut self, changes: &[(Place, Option<u64>)], last: Seq) {
        for (at, to) in changes {
            self.last = self.last.next();
            self.order.insert(*at, self.last, *to);
        }
        assert_eq!(last, self.last, "numbers are dense and never used twice");
    }

    async fn take(&mut self, step: &Step) {
        match step {
            Step::Write(at, to, through) => {
                let policy = if *through { WritePolicy::Through } else { WritePolicy::Behind };
                let cache = self.cache(at.0);
                let receipt = match to {
                    Some(value) => cache.put_with(&at.1, *value, policy).await,
                    None => cache.remove_with(&at.1, policy).await,
                };
                self.acknowledged(&[(*at, *to)], receipt.unwrap().seq());
            }
            Step::Batch(changes) => {
                let mut batch = self.bay().batch();
                for (at, to) in changes {
                    let cache = self.cache(at.0);
                    match to {
                        Some(value) => batch.put(cache, &at.1, *value).map(drop).unwrap(),
                        None => batch.remove(cache, &at.1).map(drop).unwrap(),
                    }
                }
                let receipt = batch.commit().await.unwrap();
                self.acknowledged(changes, receipt.seq());
            }
            Step::Flush => {
                let reached = self.bay().flush().await.unwrap();
                assert_eq!(reached, self.last);
                assert!(self.bay().watermark() >= reached);
                assert_eq!(self.bay().pending(), 0);
            }
            Step::Evict(at) => self.cache(at.0).evict(&at.1),
            Step::InvalidateAll => (0..NAMES.len()).for_each(|at| self.cache(at).invalidate_all()),
            Step::Fail(faults) => self.flaky.script(
                faults
                    .iter()
                    .map(|after| Some(if *after { Fault::TransientAfter } else { Fault::TransientBefore })),
            ),
            Step::Close(setting) => {
                let closed = self.bay().close().await.unwrap();
                assert_eq!(closed.queued, 0);
                self.reopen(*setting).await;
            }
            Step::Drop(setting) => self.reopen(*setting).await,
            Step::Crash(kind, seed, setting) => {
                let policy = match kind {
                    0 => CrashPolicy::ProcessKilled,
                    1 => CrashPolicy::OnlySynced,
                    2 => CrashPolicy::Random { seed: *seed },
                    _ => CrashPolicy::Torn { seed: *seed },
                };
                let disk = self.layer.disk.crash(policy);
                self.open = None;
                self.layer.disk = disk;
                self.reopen(*setting).await;
            }
        }
    }

    /// P4: everything acknowledged is read. P2 and P3: the store holds exactly the history up to its watermark.
    async fn check(&mut self) {
        let now = self.order.content(self.last);
        for at in 0..NAMES.len() {
            let keys: Vec<u32> = (0..KEYS).collect();
            let expected: Vec<Option<u64>> = keys.iter().map(|key| now.get(&(at, *key)).copied()).collect();
            for (key, expected) in keys.iter().zip(&expected) {
                assert_eq!(self.cache(at).get(key).await.unwrap(), *expected, "get {at}/{key}");
            }
            assert_eq!(self.cache(at).get_many(&keys).await.unwrap(), expected, "get_many {at}");
        }
        let store = &self.layer.store;
        // The flusher works meanwhile: a look between two equal watermarks is a look at one moment.
        let (watermark, held) = loop {
            let before = store.standing().await.unwrap().progress.applied;
            let held = store.snapshot();
            if before == store.standing().await.unwrap().progress.applied {
                break (before, held);
            }
        };
        assert!(watermark >= self.watermark, "the watermark never goes back");
        self.watermark = watermark;
        let mut content = Content::new();
        for (key, versioned) in held {
            assert!(versioned.version <= watermark, "nothing beyond the watermark is in the store");
            let at = NAMES.iter().position(|name| *name == key.namespace()).unwrap();
            let value: u64 = decode(&versioned.value);
            content.insert((at, Bincode::decode(key.key()).unwrap()), value);
        }
        assert!(watermark <= self.last, "nothing was applied that was not written");
        assert_eq!(content, self.order.content(watermark), "the store equals the order up to {watermark}");
    }
}

fn decode(stored: &Bytes) -> u64 {
    Bincode::decode(&stored[2..]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_layer_equals_its_model(first in setting(), steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut subject = Subject::new(first).await;
            for step in &steps {
                subject.take(step).await;
                subject.check().await;
            }
        });
    }
}

/// 64, or what `PROPTEST_CASES` says.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}
