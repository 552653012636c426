//! What a loader reads through, so that what it reads is remembered: values that are derived from others.
//!
//! Each read notes where the fences of its key stood before it. The value that the loader brings carries these notes,
//! and is served only as long as none of the fences has moved; so a change of what was read makes it unservable,
//! whether the change comes while the loader still runs or later.

use std::fmt;
use std::future::Future;
use std::ptr;
use std::sync::{Arc, PoisonError, Weak};

use crate::cache::blocking::BlockingCache;
use crate::cache::entry::{Entry, Loaded, ReadOptions};
use crate::cache::source::LoadError;
use crate::cache::typed::Cache;
use crate::cache::view::{CacheKey, CacheValue};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::layer::Layer;
use crate::memory::dependencies::ReadSet;
use crate::seam::sync::Mutex;

/// What a loader reads other keys through: each of them becomes a dependency of what it brings.
///
/// Clones note what they read in one place.
#[derive(Clone)]
pub struct LoadContext {
    /// Only to be compared: a load keeps no layer open.
    layer: Weak<Layer>,
    read: Arc<Mutex<ReadSet>>,
}

impl fmt::Debug for LoadContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadContext").finish_non_exhaustive()
    }
}

impl LoadContext {
    pub(crate) fn new(layer: &Arc<Layer>) -> LoadContext {
        LoadContext { layer: Arc::downgrade(layer), read: Arc::default() }
    }

    /// Reads as [`Cache::get`], and makes the key a dependency, whether it has a value or not.
    ///
    /// A value that the cache serves stale is returned, but nothing is kept that was made of it.
    ///
    /// # Errors
    /// As [`Cache::get`]; [`ErrorKind::InvalidOption`] if the cache belongs to another layer.
    pub async fn get<K: CacheKey, V: CacheValue>(&self, cache: &Cache<K, V>, key: &K) -> Result<Option<V>> {
        self.noted(cache, key, cache.get_entry(key)).await
    }

    /// Reads as [`Cache::get_or_derive`], and makes the key a dependency, with all that it was derived from.
    ///
    /// # Errors
    /// As [`Cache::get_or_derive`]; [`ErrorKind::InvalidOption`] if the cache belongs to another layer.
    pub async fn get_or_derive<K: CacheKey, V: CacheValue, T, E, F>(
        &self,
        cache: &Cache<K, V>,
        key: &K,
        load: impl FnOnce(K, LoadContext) -> F + Send + 'static,
    ) -> Result<Option<V>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: LoadError,
    {
        self.noted(cache, key, cache.get_or_derive_with(key, &ReadOptions::new(), load)).await
    }

    /// For loaders that block: the same without a runtime.
    #[must_use]
    pub fn blocking(&self) -> BlockingLoadContext {
        BlockingLoadContext { context: self.clone() }
    }

    async fn noted<K: CacheKey, V: CacheValue>(
        &self,
        cache: &Cache<K, V>,
        key: &K,
        read: impl Future<Output = Result<Entry<V>>>,
    ) -> Result<Option<V>> {
        if !ptr::eq(self.layer.as_ptr(), Arc::as_ptr(&cache.layer)) {
            let context = format!("cache \"{}\" and the load belong to different layers", cache.namespace());
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        // What is acknowledged moves its fences now, not between the mark and the read.
        cache.layer.catch_up();
        let resident = &cache.view.resident;
        let mark = resident.start(key).mark;
        let entry = read.await;
        let mut noted = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let dependencies = entry.as_ref().ok().and_then(|entry| entry.dependencies.as_deref());
        noted.add(resident.fences(), mark, dependencies);
        if entry.as_ref().is_ok_and(|entry| entry.stale.is_some()) {
            noted.spoil();
        }
        entry.map(|entry| entry.value)
    }

    /// What has been read.
    pub(crate) fn take(&self) -> ReadSet {
        std::mem::take(&mut self.read.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A [`LoadContext`] for loaders that block.
#[derive(Clone, Debug)]
pub struct BlockingLoadContext {
    context: LoadContext,
}

impl BlockingLoadContext {
    /// See [`LoadContext::get`].
    ///
    /// # Errors
    /// As there.
    pub fn get<K: CacheKey, V: CacheValue>(&self, cache: &BlockingCache<K, V>, key: &K) -> Result<Option<V>> {
        cache.run(self.context.get(cache.cache(), key))
    }
}
