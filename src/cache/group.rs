//! Groups: the parts of a cache whose keys can be invalidated together.
//!
//! A key's group is a function of the key alone, given when the cache was opened; so an entry is in its group however
//! it came into memory. A group is a tag that this function gives: the group `g` of the namespace `n` is the tag `n:g`.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::cache::entry::Receipt;
use crate::error::Result;
use crate::ids::{NamespaceName, Seq};
use crate::invalidation::Invalidation;
use crate::layer::layer::Layer;
use crate::seam::blocking::blocking_calls;
use crate::seam::clock::block_on;

/// Returns the group of a key, if it is in one.
pub(crate) type GroupOf<K> = Box<dyn Fn(&K) -> Option<String> + Send + Sync>;

/// A group of a cache's keys, by name. Made by [`Cache::group`](crate::Cache::group); cheap to clone.
#[derive(Clone)]
pub struct Group {
    layer: Arc<Layer>,
    namespace: NamespaceName,
    name: Box<str>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("cache", &self.namespace.as_str()).field("name", &self.name).finish()
    }
}

impl Group {
    pub(crate) fn new(layer: Arc<Layer>, namespace: NamespaceName, name: &str) -> Group {
        Group { layer, namespace, name: name.into() }
    }

    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes every entry of the group unservable in memory, and writes that down durably. Costs the same however many
    /// entries there are. Pending writes are not touched: they are newer than the store.
    ///
    /// [`Forebay::invalidate_namespace`](crate::Forebay::invalidate_namespace) does so for whole caches.
    ///
    /// # Errors and cancellation
    /// As there.
    pub async fn invalidate(&self) -> Result<Receipt> {
        // Durable before it is acknowledged (`Safeguard::TokenIsDurable`): other processes go by the token.
        self.layer.invalidate(Invalidation::group(&self.namespace, &self.name)).await.map(Receipt::new)
    }

    /// The sequence number of the last invalidation of the group, of its namespace, or of a namespace above it; zero if
    /// there was none.
    ///
    /// # Errors
    /// The store's. A token that cannot be read is an error, never taken for one that is not there.
    pub async fn token(&self) -> Result<Seq> {
        self.layer.group_token(&self.namespace, &self.name).await
    }

    /// The same calls for callers without a runtime.
    #[must_use]
    pub fn blocking(&self) -> BlockingGroup {
        BlockingGroup { inner: self.clone() }
    }
}

/// A [`Group`] for callers without a runtime.
#[derive(Clone, Debug)]
pub struct BlockingGroup {
    inner: Group,
}

impl BlockingGroup {
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(Some(&self.inner.layer.runtime), future)
    }

    /// The group itself.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.inner
    }

    blocking_calls! { Group:
        fn invalidate() -> Result<Receipt>;
        fn token() -> Result<Seq>;
    }
}
