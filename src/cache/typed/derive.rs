//! Derived values: what a loader reads other keys through, so that its value is served only while those are unchanged.
//!
//! Before each read the context notes where the fences of the key stand. The loaded value carries these notes, and is
//! served only as long as none of the fences has moved. So a change of a key that was read makes the derived value
//! unservable, whether the change comes while the loader still runs or later.

use std::fmt;
use std::future::Future;
use std::mem;
use std::ptr;
use std::sync::{Arc, PoisonError, Weak};

use crate::cache::codec::{CacheKey, CacheValue};
use crate::cache::entry::{Entry, Loaded, ReadOptions};
use crate::cache::loader::{BlockingLoad, LoadError, Loader, Loading, loader_failed, on_blocking_thread};
use crate::cache::reading::OpenCache;
use crate::cache::typed::{BlockingCache, Cache};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::layer::Layer;
use crate::memory::dependencies::ReadSet;
use crate::seam::clock::Handle;
use crate::seam::sync::Mutex;

/// The context through which a loader of [`Cache::get_or_derive`] reads other keys: each of them becomes a dependency
/// of the loaded value. Clones share their notes.
#[derive(Clone)]
pub struct LoadContext {
    /// Only to be compared: a load must not keep the layer open.
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
    /// A value that the cache serves stale is returned, but a value derived from it is not kept.
    ///
    /// # Errors
    /// As [`Cache::get`]; [`ErrorKind::InvalidOption`] if the cache belongs to another layer.
    pub async fn get<K: CacheKey, V: CacheValue>(&self, cache: &Cache<K, V>, key: &K) -> Result<Option<V>> {
        self.note(&cache.open, key, cache.get_entry(key)).await
    }

    /// Reads as [`Cache::get_or_derive`], and makes the key a dependency, with every key it was derived from.
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
        self.note(&cache.open, key, cache.get_or_derive_with(key, &ReadOptions::new(), load)).await
    }

    /// The same calls for loaders that block.
    #[must_use]
    pub fn blocking(&self) -> BlockingLoadContext {
        BlockingLoadContext { inner: self.clone() }
    }

    /// Runs a read, and notes its key as a dependency.
    async fn note<K: CacheKey, V: CacheValue>(
        &self,
        cache: &OpenCache<K, V>,
        key: &K,
        read: impl Future<Output = Result<Entry<V>>>,
    ) -> Result<Option<V>> {
        // Another layer orders its invalidations on its own: its fences could not be compared with this one's.
        if !ptr::eq(self.layer.as_ptr(), Arc::as_ptr(&cache.layer)) {
            let context =
                format!("cache \"{}\" and the load belong to different layers", cache.view.namespace);
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        // Acknowledged writes move their fences here, and not between the mark and the read, where they would make a
        // value that was read after them look outdated.
        cache.layer.catch_up();
        let resident = &cache.view.resident;
        // Before the read, so that a change between the two shows as a move of the fence.
        let mark = resident.start(key).mark;
        let entry = read.await;
        // Locked after the wait only: a loader may read several keys at once.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let dependencies = entry.as_ref().ok().and_then(|entry| entry.dependencies.as_deref());
        // A failed read is a dependency, too: the loader may answer without it.
        read.add(resident.fences(), mark, dependencies);
        if entry.as_ref().is_ok_and(|entry| entry.stale.is_some()) {
            read.spoil();
        }
        entry.map(|entry| entry.value)
    }

    /// Takes the notes of all reads so far.
    fn take(&self) -> ReadSet {
        mem::take(&mut self.read.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A [`LoadContext`] for loaders that block.
#[derive(Clone, Debug)]
pub struct BlockingLoadContext {
    inner: LoadContext,
}

impl BlockingLoadContext {
    /// Reads as [`LoadContext::get`], and blocks until that is done.
    ///
    /// # Errors
    /// As [`LoadContext::get`].
    pub fn get<K: CacheKey, V: CacheValue>(&self, cache: &BlockingCache<K, V>, key: &K) -> Result<Option<V>> {
        cache.run(self.inner.get(cache.cache(), key))
    }

    /// Reads as [`LoadContext::get_or_derive`], and blocks until that is done; the loader is as in
    /// [`BlockingCache::get_or_derive`].
    ///
    /// # Errors
    /// As [`LoadContext::get_or_derive`].
    pub fn get_or_derive<K: CacheKey, V: CacheValue, T, E>(
        &self,
        cache: &BlockingCache<K, V>,
        key: &K,
        load: impl FnOnce(K, BlockingLoadContext) -> Result<T, E> + Send + 'static,
    ) -> Result<Option<V>>
    where
        T: Into<Loaded<V>> + Send + 'static,
        E: LoadError,
    {
        let load = blocking_deriver(&cache.cache().open.layer.runtime, load);
        cache.run(self.inner.get_or_derive(cache.cache(), key, load))
    }
}

/// Boxes a loader that reads other keys through `context`.
pub(crate) fn deriver<K, V, T, E, F>(
    context: LoadContext,
    load: impl FnOnce(K, LoadContext) -> F + Send + 'static,
) -> Loader<K, V>
where
    K: Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Into<Loaded<V>>,
    E: LoadError,
{
    let load = Box::new(move |key| -> Loading<Loaded<V>> {
        Box::pin(async move {
            let loaded = load(key, context.clone()).await.map_err(loader_failed)?;
            // After the loader has ended: earlier notes would lack its last reads.
            Ok(Loaded { read: context.take(), ..loaded.into() })
        })
    });
    Loader { derives: true, load }
}

/// Makes an async loader with a context of one that blocks.
pub(crate) fn blocking_deriver<K, T, E>(
    runtime: &Handle,
    load: impl FnOnce(K, BlockingLoadContext) -> Result<T, E> + Send + 'static,
) -> impl FnOnce(K, LoadContext) -> BlockingLoad<T> + Send + 'static
where
    K: Send + 'static,
    T: Send + 'static,
    E: LoadError,
{
    let runtime = runtime.clone();
    move |key, context| on_blocking_thread(&runtime, move |key| load(key, context.blocking()))(key)
}
