//! Groups: parts of a cache whose keys can be invalidated together.
//!
//! Which group a key is in follows from the key alone, by the function that the cache was opened with; so an entry is
//! in its group however it came into memory.

use std::fmt;

use crate::cache::blocking::BlockingCache;
use crate::cache::receipt::Receipt;
use crate::cache::typed::Cache;
use crate::cache::view::{CacheKey, CacheValue};
use crate::error::Result;
use crate::ids::Seq;

/// Says which group a key is in.
pub(crate) type GroupOf<K> = Box<dyn Fn(&K) -> Option<String> + Send + Sync>;

/// A group of a cache's keys.
#[derive(Clone)]
pub struct Group<K, V> {
    cache: Cache<K, V>,
    name: Box<str>,
}

impl<K, V> fmt::Debug for Group<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("cache", &self.cache).field("name", &self.name).finish()
    }
}

impl<K: CacheKey, V: CacheValue> Group<K, V> {
    pub(crate) fn new(cache: Cache<K, V>, name: &str) -> Group<K, V> {
        Group { cache, name: name.into() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes every entry of the group unservable in memory, at a cost that does not depend on how many there are, and
    /// notes that durably; what is pending is the truth and stays. See
    /// [`Forebay::invalidate_namespace`](crate::Forebay::invalidate_namespace), which does so for whole caches.
    ///
    /// # Errors and cancellation
    /// As there.
    pub async fn invalidate(&self) -> Result<Receipt> {
        let Cache { layer, view } = &self.cache;
        layer.invalidate_group(&view.namespace, &self.name).await.map(Receipt::new)
    }

    /// The sequence number of the last invalidation of the group, its namespace, or one that this lies below; zero if
    /// there was none.
    ///
    /// # Errors
    /// The store's. A token that cannot be read is never taken for one that is not there.
    pub async fn token(&self) -> Result<Seq> {
        let Cache { layer, view } = &self.cache;
        layer.group_token(&view.namespace, &self.name).await
    }

    /// The same calls without a runtime.
    #[must_use]
    pub fn blocking(&self) -> BlockingGroup<K, V> {
        BlockingGroup { group: self.clone(), cache: self.cache.blocking() }
    }
}

/// A [`Group`] for callers without a runtime.
#[derive(Clone, Debug)]
pub struct BlockingGroup<K, V> {
    group: Group<K, V>,
    cache: BlockingCache<K, V>,
}

impl<K: CacheKey, V: CacheValue> BlockingGroup<K, V> {
    /// See [`Group::invalidate`].
    ///
    /// # Errors
    /// As there.
    pub fn invalidate(&self) -> Result<Receipt> {
        self.cache.run(self.group.invalidate())
    }

    /// See [`Group::token`].
    ///
    /// # Errors
    /// As there.
    pub fn token(&self) -> Result<Seq> {
        self.cache.run(self.group.token())
    }
}
