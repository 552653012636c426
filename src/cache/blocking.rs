//! The same calls without a runtime: the async core, driven by the calling thread.
//!
//! Needs no runtime and does not panic inside one, where it blocks the thread it is called on.

use crate::cache::batch::Batch;
use crate::cache::typed::{Cache, Receipt};
use crate::cache::view::{CacheKey, CacheValue};
use crate::error::Result;
use crate::options::WritePolicy;
use crate::seam::clock::block_on;

/// A [`Cache`] for callers without a runtime. Errors and costs are the same.
#[derive(Clone, Debug)]
pub struct BlockingCache<K, V> {
    cache: Cache<K, V>,
}

impl<K: CacheKey, V: CacheValue> BlockingCache<K, V> {
    pub(crate) fn new(cache: Cache<K, V>) -> Self {
        BlockingCache { cache }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(Some(&self.cache.layer.runtime), future)
    }

    /// See [`Cache::get`].
    ///
    /// # Errors
    /// As there.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        self.run(self.cache.get(key))
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
    pub fn put_with(&self, key: &K, value: V, policy: WritePolicy) -> Result<Receipt> {
        self.run(self.cache.put_with(key, value, policy))
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
    pub fn remove_with(&self, key: &K, policy: WritePolicy) -> Result<Receipt> {
        self.run(self.cache.remove_with(key, policy))
    }

    /// Commits a batch; see [`Batch::commit`].
    ///
    /// # Errors
    /// As there.
    pub fn commit(&self, batch: Batch) -> Result<Receipt> {
        self.run(batch.commit())
    }

    /// The cache itself, whose calls that do not wait are the same for both.
    #[must_use]
    pub fn cache(&self) -> &Cache<K, V> {
        &self.cache
    }
}
