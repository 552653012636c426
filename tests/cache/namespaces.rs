//! Namespaces, groups and schema versions: invalidating many entries at once, durably, and values of another shape.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use forebay::disk::CrashPolicy;
use forebay::store::{Batch, Op, Standing, Store};
use forebay::{
    Bincode, Cache, CacheBuilder, Codec, ErrorKind, Forebay, Key, Loaded, MemoryStore, MissReason, Seq,
    Source, WritePolicy,
};
use serde::Serialize;
use tokio::sync::watch;

use crate::support::held_loads::HeldLoads;
use crate::support::{GatedStore, Layer, poll_once};

/// An outside source whose answer is taken at once and given when it is let go.
#[derive(Clone)]
struct Outside {
    value: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
    open: Arc<watch::Sender<bool>>,
}

impl Outside {
    fn new(value: u64) -> Outside {
        let value = Arc::new(AtomicU64::new(value));
        Outside { value, asked: Arc::default(), open: Arc::new(watch::Sender::new(true)) }
    }

    async fn get<K: forebay::CacheKey>(&self, cache: &Cache<K, u64>, key: &K) -> u64 {
        let source = self.clone();
        let load = move |_| async move {
            source.asked.fetch_add(1, SeqCst);
            let taken = source.value.load(SeqCst);
            source.open.subscribe().wait_for(|open| *open).await.unwrap();
            Ok::<_, String>(Loaded::new(taken).tags(["red", "green"]))
        };
        cache.get_or_load(key, load).await.unwrap().unwrap()
    }

    fn asked(&self) -> u64 {
        self.asked.load(SeqCst)
    }
}

type Tenants = Cache<(u32, u32), u64>;

fn by_tenant(builder: CacheBuilder<(u32, u32), u64>) -> CacheBuilder<(u32, u32), u64> {
    builder.group_by(|key| (key.0 > 0).then(|| format!("tenant-{}", key.0)))
}

#[tokio::test]
async fn a_namespace_is_invalidated_with_all_that_lies_below_it_and_nothing_beside_it() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let names = ["products", "products/eu", "products/eu/de", "products2", "other/products"];
    let caches: Vec<Cache<u32, u64>> = names.iter().map(|name| bay.cache(name).open().unwrap()).collect();
    let source = Outside::new(1);
    for cache in &caches {
        assert_eq!(source.get(cache, &1).await, 1);
    }
    for (invalidated, gone) in [("products", &[0, 1, 2][..]), ("products/eu", &[1, 2]), ("nobody", &[])] {
        let (next, asked) = (source.value.fetch_add(1, SeqCst) + 1, source.asked());
        let before: Vec<u64> =
            caches.iter().map(|cache| cache.stats().misses[MissReason::NamespaceInvalidated]).collect();
        bay.invalidate_namespace(invalidated).await.unwrap();
        for (at, cache) in caches.iter().enumerate() {
            let (seen, is_gone) = (source.get(cache, &1).await, gone.contains(&at));
            assert_eq!(seen == next, is_gone, "{invalidated}: {}", names[at]);
            let misses = cache.stats().misses[MissReason::NamespaceInvalidated] - before[at];
            assert_eq!(misses, u64::from(is_gone), "{invalidated}: {}", names[at]);
        }
        assert_eq!(source.asked() - asked, gone.len() as u64);
    }
    assert_eq!(bay.invalidate_namespace("a//b").await.unwrap_err().kind(), ErrorKind::InvalidName);
}

/// Pending and stored records are the truth: an invalidation drops only what is in memory.
#[tokio::test]
async fn what_was_written_is_read_again_from_where_it_is() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("products/eu").open().unwrap();
    cache.put(&1, 7).await.unwrap();
    bay.invalidate_namespace("products").await.unwrap();
    let entry = cache.get_entry(&1).await.unwrap();
    assert_eq!((entry.value, entry.source), (Some(7), Source::Pending));
    bay.invalidate_namespace("products").await.unwrap();
    gated.release();
    bay.flush().await.unwrap();
    assert_eq!(cache.get_entry(&1).await.unwrap().source, Source::Store);
    assert_eq!(cache.get_entry(&1).await.unwrap().source, Source::Memory, "and kept");
}

/// Invalidations that make all entries of `eu`'s tenant 1 with the tag red unservable.
const CHANGES: [&str; 6] =
    ["namespace", "namespace above", "group", "tag", "everything", "blocking namespace"];

async fn make(change: &str, bay: &Forebay, cache: &Tenants) {
    match change {
        "namespace" => drop(bay.invalidate_namespace("products/eu").await.unwrap()),
        "namespace above" => drop(bay.invalidate_namespace("products").await.unwrap()),
        "group" => drop(cache.invalidate_group("tenant-1").await.unwrap()),
        "tag" => bay.invalidate_tag("red").unwrap(),
        "everything" => cache.invalidate_all(),
        _ => drop(bay.blocking().invalidate_namespace("products").unwrap()),
    }
}

#[tokio::test]
async fn a_load_that_began_before_an_invalidation_is_neither_kept_nor_joined() {
    for change in CHANGES {
        for many in [false, true] {
            let layer = Layer::new();
            let bay = layer.open().await;
            let cache = by_tenant(bay.cache("products/eu")).open().unwrap();
            let (source, key) = (Outside::new(1), (1, 7));
            source.open.send_replace(false);
            let mut older = Box::pin(source.get(&cache, &key));
            assert!(poll_once(&mut older).await.is_none());
            make(change, &bay, &cache).await;
            source.value.store(2, SeqCst);
            let read = async {
                if !many {
                    return source.get(&cache, &key).await;
                }
                let taken = source.value.load(SeqCst);
                let load = move |_| async move { Ok::<_, String>(vec![Some(taken)]) };
                cache.get_many_or_load(&[key], load).await.unwrap()[0].unwrap()
            };
            let mut newer = Box::pin(read);
            let early = poll_once(&mut newer).await;
            source.open.send_replace(true);
            assert_eq!(older.await, 1, "{change}: it began before");
            let newer = match early {
                Some(newer) => newer,
                None => newer.await,
            };
            assert_eq!(newer, 2, "{change}, many: {many}: it takes no older load's value");
            assert_eq!(source.get(&cache, &key).await, 2, "{change}, many: {many}: nor is that kept");
            assert!(cache.stats().refused_fills >= 1, "{change}");
        }
    }
}

/// A key that counts how often anybody looks at one.
#[derive(Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
struct Watched(u32);

static LOOKS: AtomicU64 = AtomicU64::new(0);

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        LOOKS.fetch_add(1, SeqCst);
        self.0.hash(state);
    }
}

#[tokio::test]
async fn an_invalidation_looks_at_no_entry_and_keeps_nothing_of_its_own() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let builder: CacheBuilder<Watched, u64> = bay.cache("products/eu").capacity(20_000);
    let cache = builder.group_by(|key| Some(format!("group {}", key.0 % 10))).open().unwrap();
    let load = |keys: Vec<Watched>| async move {
        Ok::<_, String>(keys.iter().map(|_| Loaded::new(1).tags(["red"])).collect())
    };
    let keys: Vec<Watched> = (0..10_000).map(Watched).collect();
    cache.get_many_or_load(&keys, load).await.unwrap();
    let (resident, looks) = (cache.resident_count(), LOOKS.load(SeqCst));
    assert!(resident > 9_000, "{resident}");
    bay.invalidate_namespace("products").await.unwrap();
    cache.invalidate_group("group 7").await.unwrap();
    bay.invalidate_tag("red").unwrap();
    bay.flush().await.unwrap();
    assert_eq!((cache.resident_count(), LOOKS.load(SeqCst)), (resident, looks));
    for key in &keys[..100] {
        assert_eq!(cache.get(key).await.unwrap(), None);
    }
    let stored = layer.store.snapshot().len();
    for _ in 0..100 {
        bay.invalidate_namespace("products").await.unwrap();
    }
    bay.flush().await.unwrap();
    assert_eq!(layer.store.snapshot().len(), stored, "one token each, however often");
}

#[tokio::test]
async fn a_token_is_journaled_kept_in_the_store_and_true_after_a_restart() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    assert_eq!(bay.namespace_token("products/eu").await.unwrap(), Seq::ZERO, "never invalidated");
    let cache = by_tenant(bay.cache("products/eu")).open().unwrap();
    cache.put(&(1, 1), 7).await.unwrap();
    let above = bay.invalidate_namespace("products").await.unwrap().seq();
    let own = bay.invalidate_namespace("products/eu").await.unwrap().seq();
    let group = cache.invalidate_group("tenant-1").await.unwrap().seq();
    assert!(Seq::ZERO < above && above < own && own < group);
    // The store has nothing yet, and the power goes.
    let disk = layer.disk.crash(CrashPolicy::OnlySynced);
    drop((cache, bay));
    let layer = Layer { disk, store: layer.store.copy() };
    for restart in ["from the journal", "from the store"] {
        let bay = layer.open().await;
        let cache = by_tenant(bay.cache("products/eu")).open().unwrap();
        for (name, token) in
            [("products", above), ("products/eu", own), ("products/us", above), ("other", Seq::ZERO)]
        {
            assert_eq!(bay.namespace_token(name).await.unwrap(), token, "{restart}: {name}");
        }
        for (name, token) in [("tenant-1", group), ("tenant-2", own)] {
            assert_eq!(cache.group_token(name).await.unwrap(), token, "{restart}: {name}");
        }
        let entry = cache.get_entry(&(1, 1)).await.unwrap();
        assert!(entry.value == Some(7) && entry.source != Source::Memory, "{restart}");
        assert!(entry.version.unwrap() < bay.namespace_token("products").await.unwrap());
        bay.close().await.unwrap();
    }
}

#[tokio::test]
async fn without_a_journal_the_store_holds_the_token_before_the_call_returns() {
    let store = MemoryStore::new();
    let bay = Forebay::builder(store.clone()).open().await.unwrap();
    let token = bay.invalidate_namespace("products").await.unwrap().seq();
    assert!(store.snapshot().values().any(|stored| stored.version == token));
    assert_eq!(bay.blocking().namespace_token("products").unwrap(), token);
    let refused = bay.cache::<u32, u64>("!tokens").open().err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::InvalidName), "no cache can have the tokens' name");
}

/// A missing token is a miss: what cannot be read is an error, and memory has forgotten though the write failed.
#[tokio::test]
async fn a_token_that_cannot_be_read_or_written_is_never_taken_for_none() {
    let layer = Layer::new();
    let held = HeldLoads::new(&layer.store);
    let bay = layer
        .builder_on(held.clone())
        .queue_records_max(1)
        .through_timeout(std::time::Duration::from_secs(60));
    let bay = bay.backpressure(forebay::Backpressure::Refuse).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("products").open().unwrap();
    let source = Outside::new(1);
    bay.invalidate_namespace("products").await.unwrap();
    bay.flush().await.unwrap();
    held.fail(true);
    assert_eq!(bay.namespace_token("products").await.unwrap_err().kind(), ErrorKind::Transient);
    held.fail(false);
    let through = |value| {
        let cache = cache.clone();
        async move { cache.put_with(&2, value, WritePolicy::Through).await }
    };
    through(1).await.unwrap();
    assert_eq!(source.get(&cache, &1).await, 1);
    source.value.store(2, SeqCst);
    bay.close().await.unwrap();
    assert_eq!(bay.invalidate_namespace("products").await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(
        cache.get(&1).await.map_err(|error| error.kind()),
        Err(ErrorKind::Closed),
        "memory has forgotten"
    );
}

/// A token of a later release's format is an error, not a guess.
#[tokio::test]
async fn a_token_of_an_unknown_format_is_told() {
    let store = MemoryStore::new();
    let key = Key::from_bytes(b"!tokens\0\x01products".as_slice().into()).unwrap();
    let ops = vec![Op { seq: Seq::new(1), key, value: Some(b"\x02more".as_slice().into()) }];
    let batch = Batch { journaled: Seq::ZERO, ..Standing::default().next_batch(Seq::new(1), ops) };
    store.apply(&batch).await.unwrap();
    let bay = Forebay::builder(store).open().await.unwrap();
    let error = bay.namespace_token("products/eu").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownFormat, "{error}");
    assert_eq!(bay.namespace_token("other").await.unwrap(), Seq::ZERO);
    let token = bay.invalidate_namespace("products").await.unwrap().seq();
    assert_eq!(bay.namespace_token("products").await.unwrap(), token, "and can be replaced");
}

#[tokio::test]
async fn a_group_is_invalidated_however_its_entries_came() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache = by_tenant(bay.cache("n")).open().unwrap();
    cache.put(&(1, 1), 1).await.unwrap();
    cache.put(&(1, 2), 2).await.unwrap();
    cache.put(&(0, 3), 3).await.unwrap();
    // Two groups may share a floor, but not all of them one.
    for other in 2..10 {
        cache.put(&(other, 1), 4).await.unwrap();
    }
    bay.flush().await.unwrap();
    cache.evict(&(1, 2));
    cache.get(&(1, 2)).await.unwrap();
    let source = Outside::new(5);
    source.get(&cache, &(1, 4)).await;
    source.value.store(6, SeqCst);
    cache.invalidate_group("tenant-1").await.unwrap();
    for (key, at) in [((1, 1), Source::Store), ((1, 2), Source::Store), ((0, 3), Source::Memory)] {
        assert_eq!(cache.get_entry(&key).await.unwrap().source, at, "{key:?}");
    }
    assert_eq!(source.get(&cache, &(1, 4)).await, 6);
    assert_eq!(cache.stats().misses[MissReason::TagInvalidated], 3);
    let mut kept = 0;
    for other in 2..10 {
        kept += u32::from(cache.get_entry(&(other, 1)).await.unwrap().source == Source::Memory);
    }
    assert!(kept > 0, "other groups stay");
    let blocking = cache.blocking();
    let token = blocking.invalidate_group("tenant-2").unwrap().seq();
    assert_eq!(blocking.group_token("tenant-2").unwrap(), token);
    assert_ne!(cache.get_entry(&(2, 1)).await.unwrap().source, Source::Memory);
}

#[tokio::test]
async fn groups_have_to_be_declared_and_named() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let plain: Tenants = bay.cache("plain").open().unwrap();
    assert_eq!(plain.invalidate_group("tenant-1").await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(plain.group_token("tenant-1").await.unwrap_err().kind(), ErrorKind::Unsupported);
    let cache = by_tenant(bay.cache("n")).open().unwrap();
    for bad in [String::new(), "x".repeat(256)] {
        assert_eq!(cache.invalidate_group(&bad).await.unwrap_err().kind(), ErrorKind::InvalidName);
        assert_eq!(cache.group_token(&bad).await.unwrap_err().kind(), ErrorKind::InvalidName);
    }
    assert_eq!(bay.cache::<(u32, u32), u64>("n").open().unwrap_err().kind(), ErrorKind::NamespaceInUse);
}

type First = (u32, u32);
type Second = u64;

/// Its bytes are as many as those of the other schema: only the version tells them apart.
fn second(bay: &Forebay) -> CacheBuilder<u32, Second> {
    bay.cache("n").schema_version(2)
}

fn upgraded(bay: &Forebay) -> CacheBuilder<u32, Second> {
    second(bay).upgrade(|from, bytes| match from {
        1 => {
            let (tens, ones) = Bincode::decode::<First>(bytes)?;
            Ok(u64::from(tens * 10 + ones))
        }
        other => Err(format!("nobody knows schema {other}").into()),
    })
}

#[tokio::test]
async fn a_value_of_another_schema_is_upgraded_or_refused_never_garbage() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let old: Cache<u32, First> = bay.cache("n").open().unwrap();
    old.put(&1, (4, 2)).await.unwrap();
    drop((old, bay));
    for place in [Source::Pending, Source::Store] {
        let gated = GatedStore::stalled(&layer.store);
        let bay = layer.builder_on(gated.clone()).open().await.unwrap();
        if place == Source::Store {
            gated.release();
            bay.flush().await.unwrap();
        }
        let cache = second(&bay).open().unwrap();
        for _ in 0..2 {
            let error = cache.get(&1).await.expect_err("without an upgrade");
            assert!(
                error.kind() == ErrorKind::Decode && format!("{error:#}").contains("schema version 1"),
                "{error}"
            );
        }
        let many = cache.get_many(&[1]).await.expect_err("without an upgrade");
        assert_eq!(many.kind(), ErrorKind::Decode);
        drop((cache, bay));
        let bay = layer.builder_on(GatedStore::stalled(&layer.store)).open().await.unwrap();
        let cache = upgraded(&bay).open().unwrap();
        let entry = cache.get_entry(&1).await.unwrap();
        assert_eq!((entry.value, entry.source), (Some(42), place));
        assert_eq!(cache.get_many(&[1]).await.unwrap(), [Some(42)]);
    }
    let bay = layer.open().await;
    let cache = upgraded(&bay).open().unwrap();
    cache.put(&1, 43).await.unwrap();
    drop((cache, bay));
    let bay = layer.open().await;
    let old: Cache<u32, First> = bay.cache("n").open().unwrap();
    assert_eq!(
        old.get(&1).await.unwrap_err().kind(),
        ErrorKind::Decode,
        "a newer one is not guessed at either"
    );
    drop((old, bay));
    let bay = layer.open().await;
    let third: Cache<u32, Second> =
        bay.cache("n").schema_version(3).upgrade(|_, _| Err("no".into())).open().unwrap();
    let error = third.get(&1).await.expect_err("the upgrade refuses");
    assert!(error.kind() == ErrorKind::Decode && format!("{error:#}").contains("from"), "{error}");
    for bad in [0, 128] {
        let refused = bay.cache::<u32, u32>("bad").schema_version(bad).open().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidOption);
    }
}

#[tokio::test]
async fn another_schema_finds_nothing_of_the_old_one_in_memory() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let old: Cache<u32, First> = bay.cache("n").open().unwrap();
    let totals: Cache<u32, u64> = bay.cache("totals").open().unwrap();
    old.put(&1, (4, 2)).await.unwrap();
    bay.flush().await.unwrap();
    let from_old = old.clone();
    let load = move |key, context: forebay::LoadContext| async move {
        let (tens, _) = context.get(&from_old, &key).await?.unwrap();
        Ok::<_, forebay::Error>(Some(u64::from(tens)))
    };
    assert_eq!(totals.get_or_derive(&1, load).await.unwrap(), Some(4));
    let hits = bay.stats().memory_hits;
    assert!(hits > 0);
    assert_eq!(
        upgraded(&bay).open().unwrap_err().kind(),
        ErrorKind::NamespaceInUse,
        "somebody has the old one"
    );
    drop(old);
    let new = upgraded(&bay).open().unwrap();
    let entry = new.get_entry(&1).await.unwrap();
    assert_eq!((entry.value, entry.source), (Some(42), Source::Store));
    assert_eq!(new.get_entry(&1).await.unwrap().source, Source::Memory);
    assert!(bay.stats().memory_hits > hits, "what was counted stays counted");
    let from_new = new.clone();
    let load = move |key, context: forebay::LoadContext| async move { context.get(&from_new, &key).await };
    assert_eq!(
        totals.get_or_derive(&1, load).await.unwrap(),
        Some(42),
        "what was derived from the old is stale"
    );
}
