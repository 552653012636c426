//! The same calls without a runtime: the async core, driven by the calling thread.
//!
//! Needs no runtime and does not panic inside one, where it blocks the thread it is called on.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use tokio::runtime::Handle;

use crate::cache::batch::Batch;
use crate::cache::typed::{Cache, Receipt};
use crate::cache::view::{CacheKey, CacheValue};
use crate::error::Result;
use crate::options::WritePolicy;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Drives a future on this thread. A store whose futures need tokio finds the layer's own runtime.
pub(crate) fn block_on<T>(runtime: Option<&Handle>, future: impl Future<Output = T>) -> T {
    // Inside a task of somebody's runtime the task's budget would run out and stay so: this future is not
    // part of that task's work.
    let mut future = pin!(tokio::task::unconstrained(future));
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        let polled = {
            let _entered = runtime.map(Handle::enter);
            future.as_mut().poll(&mut context)
        };
        match polled {
            Poll::Ready(output) => return output,
            // A wake-up that came first makes this return at once; a false one only polls again.
            Poll::Pending => thread::park(),
        }
    }
}

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
