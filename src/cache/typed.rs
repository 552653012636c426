//! A typed cache: one namespace of a layer, with keys and values of the user's types.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::cache::batch::Batch;
use crate::cache::blocking::BlockingCache;
use crate::cache::codec::{Bincode, Codec, Coder};
use crate::cache::view::{CacheKey, CacheValue, TypedView};
use crate::engine::commit::Effects;
use crate::engine::layer::{Layer, View};
use crate::engine::loader::Flights;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{NamespaceName, Seq};
use crate::journal::frame::FrameBuilder;
use crate::memory::resident::{Bound, Resident};
use crate::options::WritePolicy;
use crate::safeguard::Safeguard;

/// How many entries a cache holds in memory unless it says otherwise.
const CAPACITY_DEFAULT: usize = 10_000;

/// The proof of an acknowledged write: its place in the layer's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Receipt {
    seq: Seq,
}

impl Receipt {
    pub(crate) fn new(seq: Seq) -> Receipt {
        Receipt { seq }
    }

    /// The write's sequence number; of an atomic batch, its last record's.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }
}

/// A typed view of one namespace of a layer. Cheap to clone; all handles of a namespace share its memory.
pub struct Cache<K, V> {
    pub(crate) layer: Arc<Layer>,
    pub(crate) view: Arc<TypedView<K, V>>,
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
    /// wait. Dropping the future changes nothing; who shares its load tries again. Keep polling it, though: others
    /// may be waiting for the load that this call leads.
    ///
    /// # Errors
    /// The store's; [`ErrorKind::Decode`] if what is stored is not a `V`; [`ErrorKind::InDoubt`] if the layer
    /// failed while a write-through of this key was under way; [`ErrorKind::Closed`].
    pub async fn get(&self, key: &K) -> Result<Option<V>> {
        match self.view.in_memory(&self.layer, key) {
            Some(value) => Ok(Some(value)),
            None => self.view.load(&self.layer, key).await,
        }
    }

    /// The values of several keys, in their order. What is not in memory is loaded in one call.
    ///
    /// # Errors
    /// As [`Cache::get`]; one failure fails all.
    pub async fn get_many(&self, keys: &[K]) -> Result<Vec<Option<V>>> {
        self.view.load_many(&self.layer, keys).await
    }

    /// Whether `key` has a value; loads it if it is not in memory.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn contains(&self, key: &K) -> Result<bool> {
        self.layer.catch_up();
        if self.view.resident.contains(key) {
            return Ok(true);
        }
        Ok(self.view.load(&self.layer, key).await?.is_some())
    }

    /// Writes a value under the cache's policy.
    ///
    /// Dropping the future leaves the write wholly done or not done at all: once it was handed to the
    /// committer it happens, though nobody waits any more.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::Encode`], [`ErrorKind::QueueFull`], [`ErrorKind::DiskFull`]: not
    /// written. [`ErrorKind::Rejected`], [`ErrorKind::Parked`], [`ErrorKind::Halted`] (write-through only): not
    /// written. [`ErrorKind::InDoubt`], [`ErrorKind::Poisoned`]: it may or may not take effect.
    /// [`ErrorKind::Fenced`], [`ErrorKind::Closed`]: the layer takes no more writes.
    pub async fn put(&self, key: &K, value: V) -> Result<Receipt> {
        self.write(key, Some(value), self.view.policy).await
    }

    /// Writes a value under another policy than the cache's.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub async fn put_with(&self, key: &K, value: V, policy: WritePolicy) -> Result<Receipt> {
        self.write(key, Some(value), policy).await
    }

    /// Removes a key under the cache's policy; an absent one, too, is a write.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub async fn remove(&self, key: &K) -> Result<Receipt> {
        self.write(key, None, self.view.policy).await
    }

    /// Removes a key under another policy than the cache's.
    ///
    /// # Errors
    /// As [`Cache::put`].
    pub async fn remove_with(&self, key: &K, policy: WritePolicy) -> Result<Receipt> {
        self.write(key, None, policy).await
    }

    async fn write(&self, key: &K, value: Option<V>, policy: WritePolicy) -> Result<Receipt> {
        let mut frame = FrameBuilder::new();
        let effect = self.view.encode(self.layer.metrics(), &mut frame, key, value)?;
        let written = self.layer.write(frame.finish(), policy, Effects::One(effect)).await;
        let doubtful = written.as_ref().is_err_and(|error| error.kind() == ErrorKind::InDoubt);
        if doubtful && Safeguard::DropWhatIsInDoubt.holds() {
            self.invalidate(key);
        }
        written.map(Receipt::new)
    }

    /// Drops a key from memory only to make room; nothing is said about its value.
    pub fn evict(&self, key: &K) {
        self.layer.catch_up();
        self.view.resident.evict(key);
    }

    /// Drops a key from memory because its value in the store has changed: no load that began before the call
    /// will be kept, and no read that begins after it joins one. What is pending is the truth and stays.
    pub fn invalidate(&self, key: &K) {
        self.layer.catch_up();
        // A failure has made all of memory unservable, the key included.
        if self.view.resident.invalidate(key).is_err() {
            self.layer.metrics().memory_failures.add(1);
        }
    }

    /// As [`Cache::invalidate`] for every key, present or absent, at the cost of one.
    pub fn invalidate_all(&self) {
        self.layer.catch_up();
        self.view.resident.invalidate_all();
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
        let effect = self.view.encode(self.layer.metrics(), batch.frame(), key, value)?;
        let invalidate = self.clone();
        let doubtful = key.clone();
        batch.added(effect, self.view.policy, Box::new(move || invalidate.invalidate(&doubtful)));
        Ok(())
    }
}

/// The options of a cache that is about to be opened.
#[must_use = "nothing is opened until `open` is called"]
pub struct CacheBuilder<K, V, C = Bincode> {
    layer: Arc<Layer>,
    name: String,
    bound: Bound<K, V>,
    policy: Option<WritePolicy>,
    coalesce: bool,
    codec: PhantomData<C>,
}

impl<K: CacheKey, V: CacheValue> CacheBuilder<K, V> {
    pub(crate) fn new(layer: Arc<Layer>, name: &str) -> Self {
        CacheBuilder {
            layer,
            name: name.into(),
            bound: Bound::Entries(CAPACITY_DEFAULT),
            policy: None,
            coalesce: true,
            codec: PhantomData,
        }
    }
}

impl<K: CacheKey, V: CacheValue, C: Codec> CacheBuilder<K, V, C> {
    /// How many entries may be in memory. Default: 10,000.
    pub fn capacity(mut self, entries: usize) -> Self {
        self.bound = Bound::Entries(entries);
        self
    }

    /// How much weight may be in memory, in the unit of `weigh`. A value that `weigh` panics on is not kept.
    pub fn weight_capacity(
        mut self,
        weight: u64,
        weigh: impl Fn(&K, &V) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.bound = Bound::Weight(weight, Box::new(weigh));
        self
    }

    /// When writes are acknowledged. Default: behind on a layer with a journal, through on one without.
    pub fn write_policy(mut self, policy: WritePolicy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Whether, of several writes of a key in one apply, only the last is sent to the store. Default: true.
    pub fn coalesce(mut self, coalesce: bool) -> Self {
        self.coalesce = coalesce;
        self
    }

    /// How keys and values become bytes. Default: [`Bincode`].
    pub fn codec<D: Codec>(self) -> CacheBuilder<K, V, D> {
        let CacheBuilder { layer, name, bound, policy, coalesce, codec: _ } = self;
        CacheBuilder { layer, name, bound, policy, coalesce, codec: PhantomData }
    }

    /// Opens the cache, or returns the open one.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::InvalidOption`]; [`ErrorKind::NamespaceInUse`] if the namespace
    /// is open with other types or options; [`ErrorKind::Unsupported`] for write-behind without a journal.
    pub fn open(self) -> Result<Cache<K, V>> {
        let namespace = NamespaceName::parse(&self.name)?;
        let has_journal = self.layer.has_journal();
        let default = if has_journal { WritePolicy::Behind } else { WritePolicy::Through };
        let policy = self.policy.unwrap_or(default);
        if policy == WritePolicy::Behind && !has_journal {
            let context = format!("cache \"{namespace}\": write-behind needs a layer with a journal");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let coder = Coder::of::<C>();
        let described = self.describe(policy, coder.id())?;
        let (bound, coalesce) = (self.bound, self.coalesce);
        let view = self.layer.views().open(&namespace, || {
            let view: TypedView<K, V> = TypedView {
                namespace: namespace.clone(),
                policy,
                coalesce,
                described: described.clone(),
                coder,
                resident: Resident::new(bound)?,
                flights: Flights::default(),
            };
            Ok(Arc::new(view) as Arc<dyn View>)
        })?;
        match view.into_any().downcast::<TypedView<K, V>>() {
            Ok(view) if view.described == described => Ok(Cache { layer: self.layer, view }),
            Ok(view) => Err(in_use(&namespace, &view.described, &described)),
            Err(_) => Err(in_use(&namespace, "other types", &described)),
        }
    }

    /// The options in words, so that two openings of a namespace can be compared and told apart.
    fn describe(&self, policy: WritePolicy, codec: u8) -> Result<String> {
        let bound = match &self.bound {
            Bound::Entries(0) | Bound::Weight(0, _) => {
                let context = format!("cache \"{}\": capacity is 0; it has to be at least 1", self.name);
                return Err(Error::new(ErrorKind::InvalidOption, context));
            }
            Bound::Entries(entries) => format!("{entries} entries"),
            Bound::Weight(weight, _) => format!("weight {weight}"),
        };
        let (key, value) = (type_name::<K>(), type_name::<V>());
        let coalesce = if self.coalesce { "coalescing" } else { "every update" };
        Ok(format!("{key} -> {value}, {bound}, {policy:?}, {coalesce}, codec {codec}"))
    }
}

fn in_use(namespace: &NamespaceName, open: &str, asked: &str) -> Error {
    let context = format!("cache \"{namespace}\" is open with {open}, and was asked for with {asked}");
    Error::new(ErrorKind::NamespaceInUse, context)
}
