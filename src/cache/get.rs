//! A plain read, as a future or not: what memory has is returned without anything made for the rest.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::cache::typed::Cache;
use crate::cache::view::{CacheKey, CacheValue};
use crate::error::Result;
use crate::memory::servable::ReadConstraints;
use crate::store::contract::BoxFuture;

/// A read. By hand, because what an `async` block returns at once is moved through the block's own memory, and that is
/// a good part of what a hit costs.
pub(crate) struct Get<'a, K, V> {
    cache: &'a Cache<K, V>,
    key: &'a K,
    /// What is beyond memory; on the heap, so that the future of a hit stays small.
    beyond: Option<BoxFuture<'a, Result<Option<V>>>>,
}

impl<K: CacheKey, V: CacheValue> Future for Get<'_, K, V> {
    type Output = Result<Option<V>>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.beyond.is_none()
            && let Poll::Ready(answer) = at_once(self.cache, self.key)
        {
            return Poll::Ready(answer);
        }
        self.poll_beyond(context)
    }
}

impl<'a, K: CacheKey, V: CacheValue> Get<'a, K, V> {
    pub(crate) fn new(cache: &'a Cache<K, V>, key: &'a K) -> Get<'a, K, V> {
        Get { cache, key, beyond: None }
    }

    #[cold]
    fn poll_beyond(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<V>>> {
        let (cache, key) = (self.cache, self.key);
        self.beyond.get_or_insert_with(|| Box::pin(beyond(cache, key))).as_mut().poll(context)
    }
}

/// What memory answers, counted either way. Needs nobody to drive it.
#[inline(always)]
pub(crate) fn at_once<K: CacheKey, V: CacheValue>(cache: &Cache<K, V>, key: &K) -> Poll<Result<Option<V>>> {
    let Cache { layer, view } = cache;
    // Two ways out, so that the first one's value passes through no memory.
    match view.hit(layer, key) {
        Ok(value) => Poll::Ready(Ok(value)),
        Err(found) => match view.hit_if_judged(layer, key, found) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        },
    }
}

/// The rest of a read that memory did not answer.
pub(crate) async fn beyond<K: CacheKey, V: CacheValue>(cache: &Cache<K, V>, key: &K) -> Result<Option<V>> {
    let constraints = ReadConstraints::default();
    cache.view.read_beyond(&cache.layer, key, &constraints, None, None).await.map(|entry| entry.value)
}
