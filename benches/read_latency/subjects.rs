//! The subjects: a layer's cache, and the in-memory caches that people use, behind the same calls.
//!
//! All of them hold the same keys and values and give an owned value out. The calls of those that are not async are
//! ready at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use forebay::{Cache, Durability, Forebay, MemoryStore};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

/// The type of a value.
pub(crate) trait Value: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    const BYTES: usize;

    fn of(key: u64) -> Self;
}

impl Value for u64 {
    const BYTES: usize = 8;

    fn of(key: u64) -> Self {
        key
    }
}

impl Value for Vec<u8> {
    const BYTES: usize = 100;

    fn of(key: u64) -> Self {
        vec![key.to_le_bytes()[0]; Self::BYTES]
    }
}

/// A cache of `u64` to values.
#[allow(async_fn_in_trait, reason = "each is driven by the thread that calls it")]
pub(crate) trait Subject<V: Value>: Clone + Send + Sync + 'static {
    const NAME: &'static str;
    /// True if many tasks can wait for one load.
    const SHARES_LOADS: bool = true;

    /// An empty one with room for so many entries.
    fn open(capacity: usize) -> Result<Self>;
    async fn fill(&self, keys: &[u64]) -> Result<()>;
    async fn get(&self, key: &u64) -> Option<V>;
    /// Returns how many of these keys have a value.
    async fn get_many(&self, keys: &[u64]) -> usize;
    /// Loads an absent key when so many have `asked`.
    async fn get_or_load(&self, key: u64, asked: Arc<AtomicUsize>, herd: usize) -> Option<V>;
    async fn invalidate(&self, key: &u64);
    /// Makes every entry of one namespace unservable.
    fn bump(&self) -> Result<()>;
    /// Does the same to what is not there, so that the code and what it writes to are in the processor's caches.
    fn bump_nothing(&self) -> Result<()> {
        Ok(())
    }
}

/// A load that ends when the whole herd has asked.
async fn loaded<V: Value>(key: u64, asked: Arc<AtomicUsize>, herd: usize) -> V {
    while asked.load(Ordering::SeqCst) < herd {
        tokio::task::yield_now().await;
    }
    V::of(key)
}

/// A cache of a layer with a buffered journal in front of a store in memory.
#[derive(Clone)]
pub(crate) struct Ours<V> {
    cache: Cache<u64, V>,
    bay: Forebay,
    _journal: Arc<TempDir>,
}

impl<V: Value> Subject<V> for Ours<V> {
    const NAME: &'static str = "forebay";

    fn open(capacity: usize) -> Result<Self> {
        let journal = Arc::new(tempfile::tempdir()?);
        let durability = Durability::Buffered { sync_interval: Duration::from_millis(100) };
        let builder = Forebay::builder(MemoryStore::new()).journal(journal.path()).durability(durability);
        let bay = builder.open_blocking()?;
        Ok(Ours { cache: bay.cache("bench").capacity(capacity).open()?, bay, _journal: journal })
    }

    async fn fill(&self, keys: &[u64]) -> Result<()> {
        let load = |keys: Vec<u64>| async move {
            Ok::<Vec<_>, io::Error>(keys.into_iter().map(|key| Some(V::of(key))).collect())
        };
        for some in keys.chunks(1_000) {
            self.cache.get_many_or_load(some, load).await?;
        }
        Ok(())
    }

    async fn get(&self, key: &u64) -> Option<V> {
        self.cache.get(key).await.ok().flatten()
    }

    async fn get_many(&self, keys: &[u64]) -> usize {
        self.cache.get_many(keys).await.map_or(0, |values| values.iter().flatten().count())
    }

    async fn get_or_load(&self, key: u64, asked: Arc<AtomicUsize>, herd: usize) -> Option<V> {
        let load = move |key| async move { Ok::<_, io::Error>(Some(loaded::<V>(key, asked, herd).await)) };
        self.cache.get_or_load(&key, load).await.ok().flatten()
    }

    async fn invalidate(&self, key: &u64) {
        self.cache.invalidate(key);
    }

    /// Until the journal has the token.
    fn bump(&self) -> Result<()> {
        self.bay.blocking().invalidate_namespace("bench")?;
        Ok(())
    }

    fn bump_nothing(&self) -> Result<()> {
        self.bay.blocking().invalidate_namespace("other")?;
        Ok(())
    }
}

/// The engine that ours stands on, by itself.
#[derive(Clone)]
pub(crate) struct Quick<V>(Arc<quick_cache::sync::Cache<u64, V>>);

impl<V: Value> Subject<V> for Quick<V> {
    const NAME: &'static str = "quick_cache";

    fn open(capacity: usize) -> Result<Self> {
        Ok(Quick(Arc::new(quick_cache::sync::Cache::new(capacity))))
    }

    async fn fill(&self, keys: &[u64]) -> Result<()> {
        keys.iter().for_each(|key| self.0.insert(*key, V::of(*key)));
        Ok(())
    }

    async fn get(&self, key: &u64) -> Option<V> {
        self.0.get(key)
    }

    async fn get_many(&self, keys: &[u64]) -> usize {
        let values: Vec<Option<V>> = keys.iter().map(|key| self.0.get(key)).collect();
        values.iter().flatten().count()
    }

    async fn get_or_load(&self, key: u64, asked: Arc<AtomicUsize>, herd: usize) -> Option<V> {
        let load = async { Ok::<_, io::Error>(loaded::<V>(key, asked, herd).await) };
        self.0.get_or_insert_async(&key, load).await.ok()
    }

    async fn invalidate(&self, key: &u64) {
        drop(self.0.remove(key));
    }

    fn bump(&self) -> Result<()> {
        self.0.clear();
        Ok(())
    }
}

/// moka's cache for threads.
#[derive(Clone)]
pub(crate) struct MokaSync<V: Value>(moka::sync::Cache<u64, V>);

impl<V: Value> Subject<V> for MokaSync<V> {
    const NAME: &'static str = "moka-sync";
    // Who waits there blocks its thread.
    const SHARES_LOADS: bool = false;

    fn open(capacity: usize) -> Result<Self> {
        Ok(MokaSync(moka::sync::Cache::new(u64::try_from(capacity)?)))
    }

    async fn fill(&self, keys: &[u64]) -> Result<()> {
        keys.iter().for_each(|key| self.0.insert(*key, V::of(*key)));
        self.0.run_pending_tasks();
        Ok(())
    }

    async fn get(&self, key: &u64) -> Option<V> {
        self.0.get(key)
    }

    async fn get_many(&self, keys: &[u64]) -> usize {
        let values: Vec<Option<V>> = keys.iter().map(|key| self.0.get(key)).collect();
        values.iter().flatten().count()
    }

    async fn get_or_load(&self, key: u64, _asked: Arc<AtomicUsize>, _herd: usize) -> Option<V> {
        Some(self.0.get_with(key, || V::of(key)))
    }

    async fn invalidate(&self, key: &u64) {
        self.0.invalidate(key);
    }

    fn bump(&self) -> Result<()> {
        self.0.invalidate_all();
        Ok(())
    }
}

/// moka's cache for tasks.
#[derive(Clone)]
pub(crate) struct MokaFuture<V: Value>(moka::future::Cache<u64, V>);

impl<V: Value> Subject<V> for MokaFuture<V> {
    const NAME: &'static str = "moka-future";

    fn open(capacity: usize) -> Result<Self> {
        Ok(MokaFuture(moka::future::Cache::new(u64::try_from(capacity)?)))
    }

    async fn fill(&self, keys: &[u64]) -> Result<()> {
        for key in keys {
            self.0.insert(*key, V::of(*key)).await;
        }
        self.0.run_pending_tasks().await;
        Ok(())
    }

    async fn get(&self, key: &u64) -> Option<V> {
        self.0.get(key).await
    }

    async fn get_many(&self, keys: &[u64]) -> usize {
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            values.push(self.0.get(key).await);
        }
        values.iter().flatten().count()
    }

    async fn get_or_load(&self, key: u64, asked: Arc<AtomicUsize>, herd: usize) -> Option<V> {
        Some(self.0.get_with(key, loaded::<V>(key, asked, herd)).await)
    }

    async fn invalidate(&self, key: &u64) {
        self.0.invalidate(key).await;
    }

    fn bump(&self) -> Result<()> {
        self.0.invalidate_all();
        Ok(())
    }
}

/// foyer's in-memory cache. It gives a handle out; the value is cloned from that.
#[derive(Clone)]
pub(crate) struct Foyer<V: Value>(foyer_memory::Cache<u64, V>);

impl<V: Value> Subject<V> for Foyer<V> {
    const NAME: &'static str = "foyer-memory";

    fn open(capacity: usize) -> Result<Self> {
        Ok(Foyer(foyer_memory::CacheBuilder::new(capacity).build()))
    }

    async fn fill(&self, keys: &[u64]) -> Result<()> {
        keys.iter().for_each(|key| drop(self.0.insert(*key, V::of(*key))));
        Ok(())
    }

    async fn get(&self, key: &u64) -> Option<V> {
        self.0.get(key).map(|entry| entry.value().clone())
    }

    async fn get_many(&self, keys: &[u64]) -> usize {
        let found = |key: &u64| self.0.get(key).map(|entry| entry.value().clone());
        let values: Vec<Option<V>> = keys.iter().map(found).collect();
        values.iter().flatten().count()
    }

    async fn get_or_load(&self, key: u64, asked: Arc<AtomicUsize>, herd: usize) -> Option<V> {
        let load = move || async move { Ok::<_, io::Error>(loaded::<V>(key, asked, herd).await) };
        self.0.get_or_fetch(&key, load).await.ok().map(|entry| entry.value().clone())
    }

    async fn invalidate(&self, key: &u64) {
        drop(self.0.remove(key));
    }

    fn bump(&self) -> Result<()> {
        self.0.clear();
        Ok(())
    }
}

/// A thread's own runtime, which the calls of one thread run on.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| anyhow!("starting a runtime: {error}"))
}
