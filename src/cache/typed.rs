//! The typed cache: one namespace of a layer, with keys and values of the user's types; async and blocking.
//!
//! This is the face: every call is documented here, and passes on to reading, writing or versions.

pub mod derive;

use std::fmt;
use std::future::Future;
use std::task::Poll;
use std::time::Duration;

use crate::cache::codec::{CacheKey, CacheValue, check_name};
use crate::cache::entry::{Entry, LIFE_MAX, LIFE_MIN, Loaded, ReadOptions, Receipt, WriteOptions};
use crate::cache::loader::{LoadError, loader, many_loader, on_blocking_thread};
use crate::cache::reading::{Get, OpenCache};
use crate::cache::typed::derive::{BlockingLoadContext, LoadContext, blocking_deriver, deriver};
use crate::cache::versions::{self, VersionReceipt};
use crate::cache::writing::{self, KeyWrite, check_unversioned};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::invalidation::{GROUP_BYTES_MAX, Invalidation};
use crate::memory::advice::TtlAdvice;
use crate::memory::metrics::CacheStats;
use crate::memory::views::View;
use crate::options::within_time;
use crate::seam::blocking::blocking_calls;
use crate::seam::clock::block_on;

const PUT_VERSION: &str = "a value comes with its version, by put_version";

/// A typed view of one namespace of a layer. Cheap to clone; all handles of a namespace share its memory.
///
/// Made by [`Forebay::cache`](crate::Forebay::cache). [`Cache::blocking`] has the same calls for callers without a
/// runtime.
///
/// ```
/// # use forebay::{Cache, Forebay, MemoryStore};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let bay = Forebay::builder(MemoryStore::new()).open().await?;
/// let users: Cache<u64, String> = bay.cache("users").open()?;
/// users.put(&7, "Ada".into()).await?;
/// assert_eq!(users.get(&7).await?.as_deref(), Some("Ada"));
/// users.remove(&7).await?;
/// assert_eq!(users.get(&7).await?, None);
/// # Ok::<(), forebay::Error>(()) }).unwrap();
/// ```
pub struct Cache<K, V> {
    pub(crate) open: OpenCache<K, V>,
}

impl<K, V> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Cache { open: self.open.clone() }
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("namespace", &self.open.view.namespace.as_str()).finish_non_exhaustive()
    }
}

impl<K: CacheKey, V: CacheValue> Cache<K, V> {
    /// Reads the value of `key`: from memory, from pending writes, or from the store. `None` if there is none.
    ///
    /// The value is never older than the last write that was acknowledged before the call. A hit costs no I/O and does
    /// not wait. Dropping the future changes nothing: other readers that share its load go on with it.
    ///
    /// # Errors
    /// The store's, unless the cache serves [stale values](crate::CacheBuilder::stale_if_error) in its stead;
    /// [`ErrorKind::Decode`] if the stored bytes are not a `V`; [`ErrorKind::InDoubt`] if the layer failed while a
    /// write-through of this key was under way; [`ErrorKind::LoadFailed`] if the load panicked;
    /// [`ErrorKind::Closed`].
    pub fn get<'a>(&'a self, key: &'a K) -> impl Future<Output = Result<Option<V>>> + Send + 'a {
        Get::new(&self.open, key)
    }

    /// Reads as [`Cache::get`], with this read's own bound on how stale the value may be.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use forebay::{Cache, Forebay, MemoryStore, ReadOptions};
    /// # let bay = Forebay::builder(MemoryStore::new()).open_blocking()?;
    /// # let cache: Cache<u64, u32> = bay.cache("prices").time_to_live(Duration::from_secs(60)).open()?;
    /// # let cache = cache.blocking();
    /// cache.put(&7, 3_490)?;
    /// let quick = ReadOptions::new().max_staleness(Duration::from_secs(5));
    /// assert_eq!(cache.get_with(&7, &quick)?, Some(3_490)); // not older than five seconds
    /// let exact = ReadOptions::new().max_staleness(Duration::ZERO);
    /// assert_eq!(cache.get_with(&7, &exact)?, Some(3_490)); // from the store
    /// # Ok::<(), forebay::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn get_with(&self, key: &K, options: &ReadOptions) -> Result<Option<V>> {
        self.get_entry_with(key, options).await.map(|entry| entry.value)
    }

    /// Reads as [`Cache::get`], and returns the proof with the value: its version, its age, where it was found, and the
    /// bound that it met. Costs one look at the clock more.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn get_entry(&self, key: &K) -> Result<Entry<V>> {
        self.get_entry_with(key, &ReadOptions::new()).await
    }

    /// Reads as [`Cache::get_with`], and returns the proof with the value.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn get_entry_with(&self, key: &K, options: &ReadOptions) -> Result<Entry<V>> {
        self.open.read(key, options, false, || None).await
    }

    /// Returns what memory would serve of `key` at this moment, with the proof; `None` if a read would have to load it.
    ///
    /// Loads nothing, waits for nothing, and counts neither as a read nor as a use.
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<Entry<V>> {
        self.open.peek(key)
    }

    /// Reads the values of several keys, in their order. Keys that are not in memory are loaded in one call.
    ///
    /// # Errors
    /// As [`Cache::get`]; one failure fails the whole call.
    pub async fn get_many(&self, keys: &[K]) -> Result<Vec<Option<V>>> {
        self.get_many_with(keys, &ReadOptions::new()).await
    }

    /// Reads as [`Cache::get_many`], with this call's own bound on how stale the values may be.
    ///
    /// # Errors
    /// As [`Cache::get_many`].
    pub async fn get_many_with(&self, keys: &[K], options: &ReadOptions) -> Result<Vec<Option<V>>> {
        self.open.read_many(keys, options, None).await
    }

    /// Reads from an outside source through the cache (cache-aside): the value of `key` from memory, from pending
    /// writes, from the layer's store, or else from `load`, which gets the key. `None` if none of them has one.
    ///
    /// A loaded value stays in memory, under the cache's freshness or its own ([`Loaded`]). It is *not* written to the
    /// layer's store: the source has it. So a key that was put into this cache is never loaded. All readers of an
    /// absent key share one run of one of their loaders. If the key is written or invalidated during the run, the
    /// loaded value is returned to those who waited for it and not kept. While a stale value is served, the loader may
    /// run in the background, until the layer closes.
    ///
    /// Dropping the future changes nothing for others: the load goes on as long as somebody waits for it. The loader
    /// must not block its thread. A loader that holds a handle of this layer keeps the layer open while it runs.
    ///
    /// ```
    /// # use forebay::{Cache, Forebay, MemoryStore};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// # let bay = Forebay::builder(MemoryStore::new()).open().await?;
    /// let users: Cache<u64, String> = bay.cache("users").open()?;
    /// let ask = |id: u64| async move { Ok::<_, std::io::Error>(Some(format!("user {id}"))) };
    /// assert_eq!(users.get_or_load(&7, ask).await?, Some("user 7".to_string()));
    /// assert_eq!(users.get(&7).await?, Some("user 7".to_string())); // memory has it
    /// # Ok::<(), forebay::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::LoadFailed`] if the loader failed or panicked, for everyone who waited for it; the loader's own
    /// error is its source. Else as [`Cache::get`].
    pub async fn get_or_load<T, E, F>(
        &self,
        key: &K,
        load: impl FnOnce(K) -> F + Send + 'static,
    ) -> Result<Option<V>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: LoadError,
    {
        self.get_or_load_with(key, &ReadOptions::new(), load).await.map(|entry| entry.value)
    }

    /// Reads as [`Cache::get_or_load`], with a bound on how stale the value may be, and returns the proof.
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub async fn get_or_load_with<T, E, F>(
        &self,
        key: &K,
        options: &ReadOptions,
        load: impl FnOnce(K) -> F + Send + 'static,
    ) -> Result<Entry<V>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: LoadError,
    {
        self.open.read(key, options, true, || Some(loader(load))).await
    }

    /// Reads as [`Cache::get_or_load`], with a loader that derives the value from other keys, which it reads through
    /// the context that it gets. The value is served only as long as none of those keys changes.
    ///
    /// If one of them changes while the loader runs, the value is returned to those who asked before, and not kept.
    ///
    /// ```
    /// # use forebay::{Cache, Forebay, MemoryStore};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// # let bay = Forebay::builder(MemoryStore::new()).open().await?;
    /// let prices: Cache<u64, u64> = bay.cache("prices").open()?;
    /// let totals: Cache<(u64, u64), u64> = bay.cache("totals").open()?;
    /// prices.put(&1, 30).await?;
    /// let total = || {
    ///     let prices = prices.clone();
    ///     totals.get_or_derive(&(1, 2), move |(one, other), context| async move {
    ///         let one = context.get(&prices, &one).await?.unwrap_or(0);
    ///         Ok::<_, forebay::Error>(Some(one + context.get(&prices, &other).await?.unwrap_or(0)))
    ///     })
    /// };
    /// assert_eq!(total().await?, Some(30));
    /// prices.put(&2, 4).await?; // it was read, though it was absent
    /// assert_eq!(total().await?, Some(34));
    /// # Ok::<(), forebay::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub async fn get_or_derive<T, E, F>(
        &self,
        key: &K,
        load: impl FnOnce(K, LoadContext) -> F + Send + 'static,
    ) -> Result<Option<V>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: LoadError,
    {
        self.get_or_derive_with(key, &ReadOptions::new(), load).await.map(|entry| entry.value)
    }

    /// Reads as [`Cache::get_or_derive`], with a bound on how stale the value may be, and returns the proof.
    ///
    /// The age is that of the derived value: the values it was made of may have been as old as their caches allow.
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub async fn get_or_derive_with<T, E, F>(
        &self,
        key: &K,
        options: &ReadOptions,
        load: impl FnOnce(K, LoadContext) -> F + Send + 'static,
    ) -> Result<Entry<V>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: LoadError,
    {
        let loader = || Some(deriver(LoadContext::new(&self.open.layer), load));
        self.open.read(key, options, true, loader).await
    }

    /// Reads as [`Cache::get_or_load`] for several keys, in their order.
    ///
    /// The loader gets, in one call, the keys that neither memory nor the store has and that nobody loads yet, and
    /// answers in their order. It is not called if there are none.
    ///
    /// # Errors
    /// As [`Cache::get_or_load`]; one failure fails the whole call, though what did load is kept.
    pub async fn get_many_or_load<T, E, F>(
        &self,
        keys: &[K],
        load: impl FnOnce(Vec<K>) -> F + Send + 'static,
    ) -> Result<Vec<Option<V>>>
    where
        F: Future<Output = Result<Vec<T>, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: LoadError,
    {
        self.open.read_many(keys, &ReadOptions::new(), Some(many_loader(load))).await
    }

    /// Loads `key` from the store again, and returns the value found. Other readers are served from memory until then.
    ///
    /// No load that began before the call is kept afterwards, and no read joins one. The store knows nothing of values
    /// that a loader brought: for those see [`Cache::get_or_load_with`] and [`ReadOptions::max_staleness`].
    ///
    /// # Errors
    /// As [`Cache::get`]; memory keeps what it has.
    pub async fn refresh(&self, key: &K) -> Result<Option<V>> {
        self.get_with(key, &ReadOptions::new().max_staleness(Duration::ZERO)).await
    }

    /// Returns true if `key` has a value; loads it if it is not in memory.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn contains(&self, key: &K) -> Result<bool> {
        Ok(self.get(key).await?.is_some())
    }

    /// Writes a value under the cache's policy, and returns its place in the layer's order.
    ///
    /// Dropping the future leaves the write wholly done or not done at all: once it was handed to the committer it
    /// happens, whether or not anybody waits for it.
    ///
    /// # Errors
    /// * [`ErrorKind::TooLarge`], [`ErrorKind::Encode`], [`ErrorKind::QueueFull`], [`ErrorKind::DiskFull`],
    ///   [`ErrorKind::Rejected`], [`ErrorKind::Parked`], [`ErrorKind::Halted`] (the last three of a write-through
    ///   only), and, of a cache with [rules](crate::CacheBuilder::on_change), theirs: nothing was written.
    /// * [`ErrorKind::InDoubt`], [`ErrorKind::Poisoned`]: the write may or may not take effect.
    /// * [`ErrorKind::Fenced`], [`ErrorKind::Closed`]: the layer takes no more writes.
    /// * [`ErrorKind::Unsupported`]: the cache keeps versions, so values come by [`Cache::put_version`].
    pub async fn put(&self, key: &K, value: V) -> Result<Receipt> {
        check_unversioned(&self.open, PUT_VERSION)?;
        // Without a rule the frame is built at the first poll, before anything is awaited, and needs no box.
        let begun =
            KeyWrite::new(&self.open, key, self.open.view.policy).begin(Some(value), &WriteOptions::new());
        writing::end(&self.open, key, begun).await
    }

    /// Writes a value under other options than the cache's: a [`WritePolicy`](crate::WritePolicy), or
    /// [`WriteOptions`].
    ///
    /// # Errors
    /// As [`Cache::put`]; [`ErrorKind::InvalidOption`]; of tags [`ErrorKind::InvalidName`], [`ErrorKind::TooLarge`].
    pub async fn put_with(&self, key: &K, value: V, options: impl Into<WriteOptions>) -> Result<Receipt> {
        check_unversioned(&self.open, PUT_VERSION)?;
        let options = options.into();
        // Nothing is encoded or written if a time or a tag is out of range.
        options.check()?;
        let policy = options.chosen_policy().unwrap_or(self.open.view.policy);
        let begun = KeyWrite::new(&self.open, key, policy).begin(Some(value), &options);
        writing::end(&self.open, key, begun).await
    }

    /// Removes a key under the cache's policy. The removal of an absent key is a write, too.
    ///
    /// In a cache that keeps versions all versions of the key are removed: the next one, whatever its number, is the
    /// first again.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub async fn remove(&self, key: &K) -> Result<Receipt> {
        self.remove_with(key, WriteOptions::new()).await
    }

    /// Removes a key under another policy than the cache's.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub async fn remove_with(&self, key: &K, options: impl Into<WriteOptions>) -> Result<Receipt> {
        let policy = options.into().chosen_policy().unwrap_or(self.open.view.policy);
        // The versions and their list have to go with the plain value, or the next version would be compared with
        // those from before the removal.
        if self.open.view.versions_kept.is_some() {
            return versions::remove(&self.open, key, policy).await;
        }
        // Only the policy counts: there is no value that tags or lives could belong to.
        let begun = KeyWrite::new(&self.open, key, policy).begin(None, &WriteOptions::from(policy));
        writing::end(&self.open, key, begun).await
    }

    /// Writes one version of a key's value, where `version` is a number of the source's own: higher is later.
    ///
    /// For caches with [`versions_kept`](crate::CacheBuilder::versions_kept). Versions may come in any order: a plain
    /// [`Cache::get`] returns the highest one that ever came and is kept. Putting a version again replaces its value,
    /// so a source may deliver it twice. The write has the cache's policy, is one atomic frame, and is acknowledged as
    /// [`Cache::put`] is. It costs a load of the key's list of versions, and writes the value once, or twice if it is
    /// the latest.
    ///
    /// Dropping the future leaves the write wholly done or not done at all. Writers of one key wait for each other.
    ///
    /// ```
    /// # use forebay::{Cache, Forebay, MemoryStore, VersionReceipt};
    /// # let bay = Forebay::builder(MemoryStore::new()).open_blocking()?;
    /// let prices: Cache<u64, u32> = bay.cache("prices").versions_kept(3).open()?;
    /// let prices = prices.blocking();
    /// prices.put_version(&7, 42, 3_490)?;
    /// let late = prices.put_version(&7, 41, 2_990)?;
    /// assert!(matches!(late, VersionReceipt::Behind(_)));
    /// assert_eq!(prices.get(&7)?, Some(3_490));
    /// assert_eq!(prices.get_version(&7, 41)?, Some(2_990));
    /// assert_eq!(prices.versions(&7)?, [41, 42]);
    /// # Ok::<(), forebay::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Cache::put`]; [`ErrorKind::Unsupported`] if the cache keeps no versions; [`ErrorKind::Decode`] if the list
    /// of versions is unreadable; [`ErrorKind::Transient`] if a write-through waited for another writer of the key for
    /// longer than [`through_timeout`](crate::Builder::through_timeout): nothing was written.
    pub async fn put_version(&self, key: &K, version: u64, value: V) -> Result<VersionReceipt> {
        versions::put(&self.open, key, version, value).await
    }

    /// Reads one version of a key's value; `None` if it never came or is not kept any more.
    ///
    /// Costs a load from pending writes or the store each time: memory keeps the latest version alone.
    ///
    /// # Errors
    /// As [`Cache::get`]; [`ErrorKind::Unsupported`] if the cache keeps no versions.
    pub async fn get_version(&self, key: &K, version: u64) -> Result<Option<V>> {
        versions::get(&self.open, key, version).await
    }

    /// Lists the versions of a key's value that are kept, ascending. Costs a load.
    ///
    /// # Errors
    /// As [`Cache::get_version`]; [`ErrorKind::Decode`] if the list is unreadable.
    pub async fn versions(&self, key: &K) -> Result<Vec<u64>> {
        versions::list(&self.open, key).await
    }

    /// Drops a key from memory to make room. Says nothing about its value: loads under way are kept.
    pub fn evict(&self, key: &K) {
        // Or an acknowledged write that is not in memory yet would bring the entry back after the call.
        self.open.layer.catch_up();
        self.open.view.resident.evict(key);
    }

    /// Drops a key from memory because its value in the store has changed.
    ///
    /// No load that began before the call is kept, and no read that begins after it joins one. Pending writes stay:
    /// they are newer than the store.
    pub fn invalidate(&self, key: &K) {
        // As for `evict`: the call means everything that was acknowledged before it.
        self.open.layer.catch_up();
        self.open.view.invalidate(key);
    }

    /// Invalidates a key because the store's value has this version now: drops what memory has if that is older or of
    /// an unknown version, and keeps it otherwise.
    ///
    /// Returns true if it dropped the entry, or would have if there had been one. Loads under way are not kept in
    /// either case, since nobody knows what they saw. The call may be repeated and may come late: it then checks what
    /// was loaded since.
    pub fn invalidate_version(&self, key: &K, version: Seq) -> bool {
        self.open.layer.catch_up();
        match self.open.view.resident.invalidate_version(key, version) {
            Ok(dropped) => dropped,
            // The user's hash or comparison panicked: all of memory is unservable then, this key included.
            Err(_) => {
                self.open.view.memory_failed();
                true
            }
        }
    }

    /// Invalidates every key as [`Cache::invalidate`] does, present or absent, at the cost of one.
    pub fn invalidate_all(&self) {
        // A write that entered memory later would have a generation above the floor, and stay.
        self.open.layer.catch_up();
        self.open.view.resident.invalidate_all();
    }

    /// Makes every entry of a group unservable in memory, and writes that down durably; see
    /// [`CacheBuilder::group_by`](crate::CacheBuilder::group_by). Costs the same however many entries there are.
    ///
    /// Pending writes are not touched: they are newer than the store.
    ///
    /// [`Forebay::invalidate_namespace`](crate::Forebay::invalidate_namespace) does so for whole caches.
    ///
    /// # Errors and cancellation
    /// As there; [`ErrorKind::Unsupported`] if the cache was opened without groups; [`ErrorKind::InvalidName`] if the
    /// group's name is empty or longer than 255 bytes.
    pub async fn invalidate_group(&self, group: &str) -> Result<Receipt> {
        self.check_group(group)?;
        let OpenCache { layer, view } = &self.open;
        // Durable before it is acknowledged (`Safeguard::TokenIsDurable`): other processes go by the token.
        layer.invalidate(Invalidation::group(&view.namespace, group)).await.map(Receipt::new)
    }

    /// Returns the sequence number of the last invalidation of a group, of its namespace, or of a namespace above it;
    /// zero if there was none.
    ///
    /// # Errors
    /// The store's: a token that cannot be read is an error, never taken for one that is not there. For a bad group as
    /// [`Cache::invalidate_group`].
    pub async fn group_token(&self, group: &str) -> Result<Seq> {
        self.check_group(group)?;
        let OpenCache { layer, view } = &self.open;
        layer.group_token(&view.namespace, group).await
    }

    fn check_group(&self, group: &str) -> Result<()> {
        let view = &self.open.view;
        // No key is in any group then: an invalidation would do nothing, silently.
        if view.group_of.is_none() {
            let context = format!("cache \"{}\" was opened without groups", view.namespace);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        check_name("a group's name", group, GROUP_BYTES_MAX)
    }

    /// Sets how long values are fresh; `None` means for as long as they are in memory.
    ///
    /// Takes effect at once for entries in memory too, except those whose write or loader chose a time to live of its
    /// own, and holds until the layer closes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] unless the time is between 1 ms and ten years.
    pub fn set_time_to_live(&self, time_to_live: Option<Duration>) -> Result<()> {
        time_to_live.map_or(Ok(()), |life| within_time("time_to_live", life, LIFE_MIN, LIFE_MAX))?;
        self.open.view.resident.set_time_to_live(time_to_live);
        Ok(())
    }

    /// The time for which values are fresh; `None` if it is not limited.
    #[must_use]
    pub fn time_to_live(&self) -> Option<Duration> {
        self.open.view.resident.time_to_live()
    }

    /// The counters of this cache's reads.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.open.view.stats()
    }

    /// Estimates the time to live under which the share `wanted` of the reads answered from memory is stale, and what
    /// the present one does, from the reloads so far.
    ///
    /// Each load that replaces a copy in memory shows how old the copy was and whether its source had changed, by
    /// version or else by comparing encoded values (up to 64 KiB each). Costs some thousand steps of arithmetic. The
    /// manual's [page on figures](crate::manual::figures) says what is assumed.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use forebay::{Cache, Forebay, MemoryStore};
    /// # let bay = Forebay::builder(MemoryStore::new()).open_blocking()?;
    /// let prices: Cache<u64, u32> = bay.cache("prices").time_to_live(Duration::from_secs(60)).open()?;
    /// let advice = prices.ttl_advice(0.01)?; // one serve in a hundred may be stale
    /// assert_eq!((advice.time_to_live, advice.reloads), (None, 0)); // nothing has been reloaded yet
    /// # Ok::<(), forebay::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] unless `wanted` is above 0 and below 1.
    pub fn ttl_advice(&self, wanted: f64) -> Result<TtlAdvice> {
        // NaN fails both comparisons, and is refused.
        if wanted > 0.0 && wanted < 1.0 {
            return Ok(self.open.view.resident.advise(wanted));
        }
        let context = format!("the wanted share of stale serves is {wanted}; allowed is above 0 and below 1");
        Err(Error::new(ErrorKind::InvalidOption, context))
    }

    /// The namespace's name.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.open.view.namespace.as_str()
    }

    /// The number of entries in memory, including those that may not be served any more.
    #[must_use]
    pub fn resident_count(&self) -> usize {
        self.open.layer.catch_up();
        self.open.view.resident.count()
    }

    /// The same calls for callers without a runtime.
    #[must_use]
    pub fn blocking(&self) -> BlockingCache<K, V> {
        BlockingCache { inner: self.clone() }
    }
}

/// A [`Cache`] for callers without a runtime: the same calls, errors and costs, on the calling thread.
///
/// Needs no runtime. Inside one it works, too, and blocks the thread that it is called on. Calls that do not wait are
/// on the cache itself: [`BlockingCache::cache`].
pub struct BlockingCache<K, V> {
    inner: Cache<K, V>,
}

impl<K, V> Clone for BlockingCache<K, V> {
    fn clone(&self) -> Self {
        BlockingCache { inner: self.inner.clone() }
    }
}

impl<K, V> fmt::Debug for BlockingCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BlockingCache").field(&self.inner).finish()
    }
}

impl<K: CacheKey, V: CacheValue> BlockingCache<K, V> {
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(Some(&self.inner.open.layer.runtime), future)
    }

    /// The cache itself, whose calls that do not wait are the same for both.
    #[must_use]
    pub fn cache(&self) -> &Cache<K, V> {
        &self.inner
    }

    /// Reads as [`Cache::get`], and blocks if memory does not have the answer.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        // Driving a future costs more than a hit does: a waker, and the runtime's context.
        match self.inner.open.get_in_memory(key) {
            Poll::Ready(answer) => answer,
            Poll::Pending => self.run(self.inner.open.get_beyond_memory(key)),
        }
    }

    blocking_calls! { Cache:
        fn get_with(key: &K, options: &ReadOptions) -> Result<Option<V>>;
        fn get_entry(key: &K) -> Result<Entry<V>>;
        fn get_entry_with(key: &K, options: &ReadOptions) -> Result<Entry<V>>;
        fn get_many(keys: &[K]) -> Result<Vec<Option<V>>>;
        fn get_many_with(keys: &[K], options: &ReadOptions) -> Result<Vec<Option<V>>>;
        fn refresh(key: &K) -> Result<Option<V>>;
        fn contains(key: &K) -> Result<bool>;
        fn put(key: &K, value: V) -> Result<Receipt>;
        fn put_with(key: &K, value: V, options: impl Into<WriteOptions>) -> Result<Receipt>;
        fn remove(key: &K) -> Result<Receipt>;
        fn remove_with(key: &K, options: impl Into<WriteOptions>) -> Result<Receipt>;
        fn put_version(key: &K, version: u64, value: V) -> Result<VersionReceipt>;
        fn get_version(key: &K, version: u64) -> Result<Option<V>>;
        fn versions(key: &K) -> Result<Vec<u64>>;
        fn invalidate_group(group: &str) -> Result<Receipt>;
        fn group_token(group: &str) -> Result<Seq>;
    }

    /// Reads as [`Cache::get_or_load`]. The loader runs on a thread of the layer's own, and may block it.
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
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

    /// Reads as [`Cache::get_or_load_with`]; the loader is as in [`BlockingCache::get_or_load`].
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
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
        // Not on this thread: the load is polled by whichever reader drives the flight, async ones included.
        let load = on_blocking_thread(&self.inner.open.layer.runtime, load);
        self.run(self.inner.get_or_load_with(key, options, load))
    }

    /// Reads as [`Cache::get_many_or_load`]; the loader is as in [`BlockingCache::get_or_load`].
    ///
    /// # Errors
    /// As [`Cache::get_many_or_load`].
    pub fn get_many_or_load<T, E>(
        &self,
        keys: &[K],
        load: impl FnOnce(Vec<K>) -> Result<Vec<T>, E> + Send + 'static,
    ) -> Result<Vec<Option<V>>>
    where
        T: Into<Loaded<V>> + Send + 'static,
        E: LoadError,
    {
        let load = on_blocking_thread(&self.inner.open.layer.runtime, load);
        self.run(self.inner.get_many_or_load(keys, load))
    }

    /// Reads as [`Cache::get_or_derive`]; the loader is as in [`BlockingCache::get_or_load`], and its context blocks,
    /// too.
    ///
    /// # Errors
    /// As [`Cache::get_or_derive`].
    pub fn get_or_derive<T, E>(
        &self,
        key: &K,
        load: impl FnOnce(K, BlockingLoadContext) -> Result<T, E> + Send + 'static,
    ) -> Result<Option<V>>
    where
        T: Into<Loaded<V>> + Send + 'static,
        E: LoadError,
    {
        self.get_or_derive_with(key, &ReadOptions::new(), load).map(|entry| entry.value)
    }

    /// Reads as [`Cache::get_or_derive_with`]; the loader is as in [`BlockingCache::get_or_derive`].
    ///
    /// # Errors
    /// As [`Cache::get_or_derive`].
    pub fn get_or_derive_with<T, E>(
        &self,
        key: &K,
        options: &ReadOptions,
        load: impl FnOnce(K, BlockingLoadContext) -> Result<T, E> + Send + 'static,
    ) -> Result<Entry<V>>
    where
        T: Into<Loaded<V>> + Send + 'static,
        E: LoadError,
    {
        let load = blocking_deriver(&self.inner.open.layer.runtime, load);
        self.run(self.inner.get_or_derive_with(key, options, load))
    }
}
