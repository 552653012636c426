//! The same calls without a runtime: the async core, driven by the calling thread.
//!
//! Needs no runtime and does not panic inside one, where it blocks the thread it is called on.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use crate::cache::batch::WriteBatch;
use crate::cache::derive::{BlockingLoadContext, LoadContext};
use crate::cache::entry::{Entry, Loaded, ReadOptions, WriteOptions};
use crate::cache::get::{at_once, beyond};
use crate::cache::group::BlockingGroup;
use crate::cache::receipt::Receipt;
use crate::cache::source::LoadError;
use crate::cache::typed::Cache;
use crate::cache::view::{CacheKey, CacheValue};
use crate::error::Result;
use crate::seam::clock::{Handle, block_on};

/// A [`Cache`] for callers without a runtime. Errors and costs are the same.
#[derive(Clone, Debug)]
pub struct BlockingCache<K, V> {
    cache: Cache<K, V>,
}

impl<K: CacheKey, V: CacheValue> BlockingCache<K, V> {
    pub(crate) fn new(cache: Cache<K, V>) -> Self {
        BlockingCache { cache }
    }

    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(Some(&self.cache.layer.runtime), future)
    }

    /// See [`Cache::get`].
    ///
    /// # Errors
    /// As there.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        // To drive a future costs more than a hit: a waker, and the runtime's context.
        match at_once(&self.cache, key) {
            Poll::Ready(answer) => answer,
            Poll::Pending => self.run(beyond(&self.cache, key)),
        }
    }

    /// See [`Cache::get_with`].
    ///
    /// # Errors
    /// As there.
    pub fn get_with(&self, key: &K, options: &ReadOptions) -> Result<Option<V>> {
        self.run(self.cache.get_with(key, options))
    }

    /// See [`Cache::get_entry`].
    ///
    /// # Errors
    /// As there.
    pub fn get_entry(&self, key: &K) -> Result<Entry<V>> {
        self.run(self.cache.get_entry(key))
    }

    /// See [`Cache::get_entry_with`].
    ///
    /// # Errors
    /// As there.
    pub fn get_entry_with(&self, key: &K, options: &ReadOptions) -> Result<Entry<V>> {
        self.run(self.cache.get_entry_with(key, options))
    }

    /// See [`Cache::get_many_with`].
    ///
    /// # Errors
    /// As there.
    pub fn get_many_with(&self, keys: &[K], options: &ReadOptions) -> Result<Vec<Option<V>>> {
        self.run(self.cache.get_many_with(keys, options))
    }

    /// See [`Cache::get_or_load`]. The loader runs on a thread of the layer's own, and may block it.
    ///
    /// # Errors
    /// As there.
    pub fn get_or_load<T, E>(
        &self,
        key: &K,
        load: impl FnOnce(K) -> Result<T, E> + Send + 'static,
    ) -> Result<Option<V>>
    where
        T: Into<Loaded<V>> + Send + 'static,
        E: LoadError,
    {
        self.get_or_load_with(key, &ReadOptions::new(), load).map(|entry| entry.value)
    }

    /// See [`Cache::get_or_load_with`]; the loader is as in [`BlockingCache::get_or_load`].
    ///
    /// # Errors
    /// As there.
    pub fn get_or_load_with<T, E>(
        &self,
        key: &K,
        options: &ReadOptions,
        load: impl FnOnce(K) -> Result<T, E> + Send + 'static,
    ) -> Result<Entry<V>>
    where
        T: Into<Loaded<V>> + Send + 'static,
        E: LoadError,
    {
        self.run(self.cache.get_or_load_with(key, options, aside(&self.cache.layer.runtime, load)))
    }

    /// See [`Cache::get_or_derive`]; the loader is as in [`BlockingCache::get_or_load`], and so is its context.
    ///
    /// # Errors
    /// As there.
    pub fn get_or_derive<T, E>(
        &self,
        key: &K,
        load: impl FnOnce(K, BlockingLoadContext) -> Result<T, E> + Send + 'static,
    ) -> Result<Option<V>>
    where
        T: Into<Loaded<V>> + Send + 'static,
        E: LoadError,
    {
        let runtime = self.cache.layer.runtime.clone();
        let derive = move |key: K, context: LoadContext| {
            aside(&runtime, move |key| load(key, context.blocking()))(key)
        };
        self.run(self.cache.get_or_derive(key, derive))
    }

    /// See [`Cache::group`].
    ///
    /// # Errors
    /// As there.
    pub fn group(&self, name: &str) -> Result<BlockingGroup> {
        Ok(self.cache.group(name)?.blocking())
    }

    /// See [`Cache::get_many_or_load`]; the loader is as in [`BlockingCache::get_or_load`].
    ///
    /// # Errors
    /// As there.
    pub fn get_many_or_load<T, E>(
        &self,
        keys: &[K],
        load: impl FnOnce(Vec<K>) -> Result<Vec<T>, E> + Send + 'static,
    ) -> Result<Vec<Option<V>>>
    where
        T: Into<Loaded<V>> + Send + 'static,
        E: LoadError,
    {
        self.run(self.cache.get_many_or_load(keys, aside(&self.cache.layer.runtime, load)))
    }

    /// See [`Cache::refresh`].
    ///
    /// # Errors
    /// As there.
    pub fn refresh(&self, key: &K) -> Result<Option<V>> {
        self.run(self.cache.refresh(key))
    }

    /// See [`Cache::get_many`].
    ///
    /// # Errors
    /// As there.
    pub fn get_many(&self, keys: &[K]) -> Result<Vec<Option<V>>> {
        self.run(self.cache.get_many(keys))
    }

    /// See [`Cache::contains`].
    ///
    /// # Errors
    /// As there.
    pub fn contains(&self, key: &K) -> Result<bool> {
        self.run(self.cache.contains(key))
    }

    /// See [`Cache::put`].
    ///
    /// # Errors
    /// As there.
    pub fn put(&self, key: &K, value: V) -> Result<Receipt> {
        self.run(self.cache.put(key, value))
    }

    /// See [`Cache::put_with`].
    ///
    /// # Errors
    /// As there.
    pub fn put_with(&self, key: &K, value: V, options: impl Into<WriteOptions>) -> Result<Receipt> {
        self.run(self.cache.put_with(key, value, options))
    }

    /// See [`Cache::remove`].
    ///
    /// # Errors
    /// As there.
    pub fn remove(&self, key: &K) -> Result<Receipt> {
        self.run(self.cache.remove(key))
    }

    /// See [`Cache::remove_with`].
    ///
    /// # Errors
    /// As there.
    pub fn remove_with(&self, key: &K, options: impl Into<WriteOptions>) -> Result<Receipt> {
        self.run(self.cache.remove_with(key, options))
    }

    /// Commits a batch; see [`WriteBatch::commit`].
    ///
    /// # Errors
    /// As there.
    pub fn commit(&self, batch: WriteBatch) -> Result<Receipt> {
        self.run(batch.commit())
    }

    /// The cache itself, whose calls that do not wait are the same for both.
    #[must_use]
    pub fn cache(&self) -> &Cache<K, V> {
        &self.cache
    }
}

type Aside<T> = Pin<Box<dyn Future<Output = Result<T, Box<dyn StdError + Send + Sync>>> + Send>>;

/// A loader that blocks, on a thread that may be blocked.
fn aside<A, T, E>(
    runtime: &Handle,
    load: impl FnOnce(A) -> Result<T, E> + Send + 'static,
) -> impl FnOnce(A) -> Aside<T> + Send + 'static
where
    A: Send + 'static,
    T: Send + 'static,
    E: LoadError,
{
    let runtime = runtime.clone();
    move |asked| {
        Box::pin(async move {
            let loaded = runtime.spawn_blocking(move || load(asked).map_err(Into::into)).await;
            loaded.unwrap_or_else(|_| Err("the loader panicked, or the layer closed".into()))
        })
    }
}
