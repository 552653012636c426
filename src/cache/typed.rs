//! A typed cache: one namespace of a layer, with keys and values of the user's types.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::batch::Batch;
use crate::cache::blocking::BlockingCache;
use crate::cache::codec::check_tags;
use crate::cache::derive::LoadContext;
use crate::cache::entry::{Entry, Loaded, ReadOptions, WriteOptions};
use crate::cache::get::Get;
use crate::cache::opening::{LIFE_MAX, LIFE_MIN};
use crate::cache::receipt::Receipt;
use crate::cache::rules::{self, Changing, Derives};
use crate::cache::source::{LoadError, deriver, loader, many_loader};
use crate::cache::view::{CacheKey, CacheValue, TypedView};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::frame::FrameBuilder;
use crate::layer::layer::{Layer, Writing};
use crate::memory::advice::TtlAdvice;
use crate::memory::metrics::CacheStats;
use crate::memory::views::View;
use crate::options::{WritePolicy, within_time};
use crate::queue::key_locks::KeyGuard;
use crate::queue::ticket::Effects;
use crate::safeguard::Safeguard;
use crate::store::contract::BoxFuture;

const PUT_VERSION: &str = "a value comes with its version, by put_version";

/// A typed view of one namespace of a layer. Cheap to clone; all handles of a namespace share its memory.
pub struct Cache<K, V> {
    pub(crate) layer: Arc<Layer>,
    pub(crate) view: Arc<TypedView<K, V>>,
}

/// A write that was handed over, or that a cache's rules have to be told of before.
pub(crate) enum Begun<'a> {
    Now(Result<Writing>),
    Later(BoxFuture<'a, Result<Writing>>),
}

impl<K, V> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Cache { layer: Arc::clone(&self.layer), view: Arc::clone(&self.view) }
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("namespace", &self.view.namespace.as_str()).finish_non_exhaustive()
    }
}

impl<K: CacheKey, V: CacheValue> Cache<K, V> {
    /// The value of `key`: from memory, from what is pending, or from the store. `None` if there is none.
    ///
    /// Never older than the last write that was acknowledged before the call. A hit costs no I/O and does not
    /// wait. Dropping the future changes nothing: who shares its load goes on with it.
    ///
    /// # Errors
    /// The store's, unless the cache serves [stale values](crate::CacheBuilder::stale_if_error) in its stead;
    /// [`ErrorKind::Decode`] if what is stored is not a `V`; [`ErrorKind::InDoubt`] if the layer failed while a
    /// write-through of this key was under way; [`ErrorKind::LoadFailed`] if the load panicked;
    /// [`ErrorKind::Closed`].
    pub fn get<'a>(&'a self, key: &'a K) -> impl Future<Output = Result<Option<V>>> + Send + 'a {
        Get::new(self, key)
    }

    /// As [`Cache::get`], with a bound of its own on how stale the value may be.
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

    /// As [`Cache::get`], with the proof: version, age, where it was found, and the bound that it met.
    ///
    /// Costs a look at the clock more than [`Cache::get`].
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn get_entry(&self, key: &K) -> Result<Entry<V>> {
        self.get_entry_with(key, &ReadOptions::new()).await
    }

    /// As [`Cache::get_with`], with the proof.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn get_entry_with(&self, key: &K, options: &ReadOptions) -> Result<Entry<V>> {
        self.view.read(&self.layer, key, options, false, || None).await
    }

    /// What memory would serve of `key` at this moment, with the proof; `None` if a read would have to load it. Loads
    /// nothing, waits for nothing, and counts neither as a read nor as a use.
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<Entry<V>> {
        self.view.peek(&self.layer, key)
    }

    /// The values of several keys, in their order. What is not in memory is loaded in one call.
    ///
    /// # Errors
    /// As [`Cache::get`]; one failure fails all.
    pub async fn get_many(&self, keys: &[K]) -> Result<Vec<Option<V>>> {
        self.view.read_many(&self.layer, keys, &ReadOptions::new(), None).await
    }

    /// As [`Cache::get_many`], with a bound on how stale the values may be.
    ///
    /// # Errors
    /// As [`Cache::get_many`].
    pub async fn get_many_with(&self, keys: &[K], options: &ReadOptions) -> Result<Vec<Option<V>>> {
        self.view.read_many(&self.layer, keys, options, None).await
    }

    /// Cache-aside of an outside source: the value of `key` from memory, from what is pending, from the layer's store,
    /// or else from `loader`, which is given the key. `None` if none of them has one.
    ///
    /// What a loader brings stays in memory, under the cache's freshness or its own ([`Loaded`]), and is *not* written
    /// to the layer's store: the source has it. So a key that was put into this cache is never loaded. All readers of
    /// an absent key share one run of one of their loaders; a value whose key was written or invalidated since the
    /// run began is returned to who waited for it and not kept. While a stale value is served, the loader may run in
    /// the background, until the layer closes.
    ///
    /// Dropping the future changes nothing for others: the load goes on as long as somebody waits for it. The loader
    /// must not block its thread. One that holds a handle of this layer keeps the layer open while it runs.
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
    /// [`ErrorKind::LoadFailed`] if the loader failed or panicked, for all who waited for it; else as [`Cache::get`].
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

    /// As [`Cache::get_or_load`], with a bound on how stale the value may be, and with the proof.
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
        self.view.read(&self.layer, key, options, true, || Some(loader(load))).await
    }

    /// As [`Cache::get_or_load`], with a loader that reads other keys through the context that it is given: what it
    /// brings is served only as long as none of them changes. If one does while the loader runs, what it brings is
    /// returned to those who asked before, and not kept.
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

    /// As [`Cache::get_or_derive`], with a bound on how stale the value may be, and with the proof. Its age is its own:
    /// what it was made of may have been as old as its cache allows.
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
        let deriver = || Some(deriver(LoadContext::new(&self.layer), load));
        self.view.read(&self.layer, key, options, true, deriver).await
    }

    /// As [`Cache::get_or_load`] for several keys, in their order. The loader is given those that neither memory nor
    /// the store has and that nobody loads yet, if there are any, in one call, and answers in their order.
    ///
    /// # Errors
    /// As [`Cache::get_or_load`]; one failure fails all, though what did load is kept.
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
        self.view.read_many(&self.layer, keys, &ReadOptions::new(), Some(many_loader(load))).await
    }

    /// Loads `key` from the store again, and returns what it found; others have what memory has until then. Afterwards
    /// no load that began before the call is kept, and no read joins one. Of what a loader brought the store knows
    /// nothing: see [`Cache::get_or_load_with`] and [`ReadOptions::max_staleness`].
    ///
    /// # Errors
    /// As [`Cache::get`]; memory keeps what it has.
    pub async fn refresh(&self, key: &K) -> Result<Option<V>> {
        self.get_with(key, &ReadOptions::new().max_staleness(Duration::ZERO)).await
    }

    /// Whether `key` has a value; loads it if it is not in memory.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn contains(&self, key: &K) -> Result<bool> {
        Ok(self.get(key).await?.is_some())
    }

    /// Writes a value under the cache's policy.
    ///
    /// Dropping the future leaves the write wholly done or not done at all: once it was handed to the
    /// committer it happens, though nobody waits any more.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::Encode`], [`ErrorKind::QueueFull`], [`ErrorKind::DiskFull`]: not written.
    /// [`ErrorKind::Rejected`], [`ErrorKind::Parked`], [`ErrorKind::Halted`] (write-through only), and, of a cache
    /// with [rules](crate::CacheBuilder::on_change), theirs: not written. [`ErrorKind::InDoubt`],
    /// [`ErrorKind::Poisoned`]: it may or may not take effect. [`ErrorKind::Fenced`], [`ErrorKind::Closed`]: the layer
    /// takes no more writes. [`ErrorKind::Unsupported`]: the cache keeps versions, so values come by
    /// [`Cache::put_version`].
    pub async fn put(&self, key: &K, value: V) -> Result<Receipt> {
        self.check_unversioned(PUT_VERSION)?;
        let begun = self.begin_write(key, Some(value), &WriteOptions::new());
        self.end_write(key, begun).await
    }

    /// Writes a value under other options than the cache's: a [`WritePolicy`], or [`WriteOptions`].
    ///
    /// # Errors
    /// As [`Cache::put`]; [`ErrorKind::InvalidOption`]; of tags [`ErrorKind::InvalidName`], [`ErrorKind::TooLarge`].
    pub async fn put_with(&self, key: &K, value: V, options: impl Into<WriteOptions>) -> Result<Receipt> {
        self.check_unversioned(PUT_VERSION)?;
        let options = options.into();
        let overrides = options.overrides();
        for (option, life) in
            [("time_to_live", overrides.time_to_live), ("time_to_idle", overrides.time_to_idle)]
        {
            life.map_or(Ok(()), |life| within_time(option, life, LIFE_MIN, LIFE_MAX))?;
        }
        check_tags(options.chosen_tags())?;
        let begun = self.begin_write(key, Some(value), &options);
        self.end_write(key, begun).await
    }

    /// Removes a key under the cache's policy; an absent one, too, is a write. Of a cache that keeps versions, with all
    /// of its versions: what comes later, of whatever version, is the first again.
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
        let policy = options.into().chosen_policy().unwrap_or(self.view.policy);
        if self.view.versions_kept.is_some() {
            return self.remove_versions(key, policy).await;
        }
        let begun = self.begin_write(key, None, &WriteOptions::from(policy));
        self.end_write(key, begun).await
    }

    /// Hands a write over, or begins what comes before that. No future, as the value would move into it.
    fn begin_write<'a>(&'a self, key: &'a K, value: Option<V>, options: &WriteOptions) -> Begun<'a> {
        let policy = options.chosen_policy().unwrap_or(self.view.policy);
        match self.changing(key, value.as_ref()) {
            Ok(None) => {
                let mut frame = FrameBuilder::new();
                let effect = self.view.encode(&mut frame, key, value, options);
                let begin = |effect| self.begin_frame(key, frame, policy, Effects::One(effect), None);
                Begun::Now(effect.and_then(begin))
            }
            Ok(Some(change)) => {
                let options = options.clone();
                Begun::Later(Box::pin(async move {
                    let aftermath = rules::begin(&self.layer, &[change]).await?;
                    let mut frame = FrameBuilder::new();
                    // The tokens first, so that the receipt's number is the value's version.
                    let tokens = aftermath.push_tokens(&mut frame)?;
                    let effect = self.view.encode(&mut frame, key, value, &options)?;
                    let effects = rules::after_tokens(tokens, rules::followed(effect, aftermath));
                    self.begin_frame(key, frame, policy, effects, None)
                }))
            }
            Err(error) => Begun::Now(Err(error)),
        }
    }

    /// Begins to write a frame that is about one key.
    pub(crate) fn begin_frame(
        &self,
        key: &K,
        frame: FrameBuilder,
        policy: WritePolicy,
        mut effects: Effects,
        key_guard: Option<KeyGuard>,
    ) -> Result<Writing> {
        if policy == WritePolicy::Around {
            // Before, so that an outcome that stays unknown finds memory without the older value; and with the
            // effect, when the store has the new one.
            if Safeguard::AroundDropsBefore.holds() {
                self.invalidate(key);
            }
            if !Safeguard::AroundDropsAfter.holds() {
                effects = Effects::None;
            }
        }
        self.layer.begin_write(frame.finish(), policy, effects, key_guard)
    }

    /// Waits for what comes of a frame that is about one key.
    pub(crate) async fn end_write(&self, key: &K, begun: Begun<'_>) -> Result<Receipt> {
        let begun = match begun {
            Begun::Now(begun) => begun,
            Begun::Later(begun) => begun.await,
        };
        let written = match begun {
            Ok(writing) => self.layer.end_write(writing).await,
            Err(error) => Err(error),
        };
        let doubtful = written.as_ref().is_err_and(|error| error.kind() == ErrorKind::InDoubt);
        if doubtful && Safeguard::DropWhatIsInDoubt.holds() {
            self.invalidate(key);
        }
        written.map(Receipt::new)
    }

    /// What the cache's rules have to be told of a write, if there are any.
    fn changing(&self, key: &K, new: Option<&V>) -> Result<Option<Box<dyn Derives>>> {
        if self.view.rules.is_empty() {
            return Ok(None);
        }
        let (view, stored) = (Arc::clone(&self.view), self.view.stored_key(key)?);
        Ok(Some(Box::new(Changing { view, key: key.clone(), stored, new: new.cloned() })))
    }

    /// Changes how long values are fresh; `None` is for as long as they are there. Holds at once for what is in memory,
    /// except where a write or a loader chose for itself, and for as long as the layer is open.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`].
    pub fn set_time_to_live(&self, time_to_live: Option<Duration>) -> Result<()> {
        time_to_live.map_or(Ok(()), |life| within_time("time_to_live", life, LIFE_MIN, LIFE_MAX))?;
        self.view.resident.set_time_to_live(time_to_live);
        Ok(())
    }

    /// How long values are fresh.
    #[must_use]
    pub fn time_to_live(&self) -> Option<Duration> {
        self.view.resident.time_to_live()
    }

    /// What this cache's reads have counted.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.view.stats()
    }

    /// Which time to live would serve the share `wanted` of the reads that memory answers stale, as far as the
    /// reloads tell that have happened so far; and what today's does.
    ///
    /// Each load that replaces a copy in memory tells how old that was and whether its source had changed, by version
    /// or else by comparing encoded values (up to 64 KiB each). Costs some thousand steps of arithmetic. What it
    /// assumes is in the manual's [page on figures](crate::manual::figures).
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
        if wanted > 0.0 && wanted < 1.0 {
            return Ok(self.view.resident.advise(wanted));
        }
        let context = format!("the wanted share of stale serves is {wanted}; allowed is above 0 and below 1");
        Err(Error::new(ErrorKind::InvalidOption, context))
    }

    /// The namespace's name.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.view.namespace.as_str()
    }

    /// How many entries are in memory, ones that are no longer servable included.
    #[must_use]
    pub fn resident_count(&self) -> usize {
        self.layer.catch_up();
        self.view.resident.count()
    }

    /// The same calls without a runtime.
    #[must_use]
    pub fn blocking(&self) -> BlockingCache<K, V> {
        BlockingCache::new(self.clone())
    }

    /// Adds a write to a batch, after checking that both belong to one layer.
    pub(crate) fn add_to(&self, batch: &mut Batch, key: &K, value: Option<V>) -> Result<()> {
        if !Arc::ptr_eq(&self.layer, batch.layer()) {
            let context =
                format!("cache \"{}\" and the batch belong to different layers", self.view.namespace);
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        self.check_unversioned("a batch would have to look at the list of versions first")?;
        let (change, frame) = (self.changing(key, value.as_ref())?, batch.frame());
        let effect = self.view.encode(frame, key, value, &WriteOptions::new())?;
        batch.changes(change);
        let (invalidate, doubtful) = (self.clone(), key.clone());
        batch.added(effect, self.view.policy, Box::new(move || invalidate.invalidate(&doubtful)));
        Ok(())
    }
}
