//! Plain values at the face: the entries and receipts that calls return, and the options of reads, writes and loaders.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::codec::check_tags;
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::memory::dependencies::{Dependencies, ReadSet};
use crate::memory::entry::EntryOverrides;
use crate::memory::freshness::OnUnverified;
use crate::memory::servable::{LoadProgress, ReadConstraints, StaleReason};
use crate::options::{WritePolicy, within_time};

/// The shortest and the longest time to live or to idle.
pub(crate) const LIFE_MIN: Duration = Duration::from_millis(1);
pub(crate) const LIFE_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// A read's answer with its proof: how current it is, and where it was found. An absent key has one, too.
///
/// ```
/// # use std::time::Duration;
/// # use forebay::{Cache, Forebay, MemoryStore, ReadOptions, Source, StalenessBound};
/// # let bay = Forebay::builder(MemoryStore::new()).open_blocking()?;
/// let prices: Cache<u64, u32> = bay.cache("prices").time_to_live(Duration::from_secs(60)).open()?;
/// let prices = prices.blocking();
/// let receipt = prices.put(&7, 3_490)?;
/// let entry = prices.get_entry(&7)?;
/// assert_eq!((entry.value, entry.version), (Some(3_490), Some(receipt.seq())));
/// assert_eq!((entry.source, entry.stale), (Source::Memory, None));
/// assert_eq!(entry.bound, StalenessBound::Within(Duration::from_secs(60)));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry<V> {
    /// The value; `None` if there is none.
    pub value: Option<V>,
    /// The sequence number of the write that the value is from; `None` for a loader's value and for an absent one.
    pub version: Option<Seq>,
    /// The time since the value was known to be current: since its write, or since its load began. In a layer that
    /// follows another process: since it had carried out every change of the owner's, if that was later.
    pub age: Duration,
    /// The place where this read found it.
    pub source: Source,
    /// The bound on staleness that it met.
    pub bound: StalenessBound,
    /// The reason why it is served although it is stale; `None` for a fresh one.
    pub stale: Option<StaleReason>,
    /// The failure of the load in whose stead a stale value is served.
    pub error: Option<Error>,
    /// The group, tags and read keys that it depends on.
    pub(crate) dependencies: Option<Arc<Dependencies>>,
}

/// The place where a read found its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The cache's memory.
    Memory,
    /// The queue: a write that is committed and not yet in the store.
    Pending,
    /// The layer's store.
    Store,
    /// The reader's loader, as neither the queue nor the store had a value.
    Loader,
}

/// The limit of how stale an answer could have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StalenessBound {
    /// Not stale at all: it was pending, or its load began after the read did.
    Current,
    /// Younger than this when it was taken: the tighter of the cache's and the reader's bound.
    Within(Duration),
    /// Of any age: neither the cache nor the reader limits it.
    Unbounded,
}

impl StalenessBound {
    pub(crate) fn of(bound: Option<Duration>) -> StalenessBound {
        bound.map_or(StalenessBound::Unbounded, StalenessBound::Within)
    }
}

/// The proof of an acknowledged write: its place in the layer's order.
///
/// It can be sent to a process that follows this one, which then reads the write's effect:
/// [`ReadOptions::at_least`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
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

/// The options of one read. By default those of its cache.
///
/// ```
/// # use std::time::Duration;
/// # use forebay::{Cache, Forebay, MemoryStore, ReadOptions};
/// # let bay = Forebay::builder(MemoryStore::new()).open_blocking()?;
/// let prices: Cache<u64, u32> = bay.cache("prices").open()?;
/// let prices = prices.blocking();
/// let receipt = prices.put(&7, 3_490)?;
/// let options = ReadOptions::new().at_least(receipt).max_staleness(Duration::from_secs(5));
/// assert_eq!(prices.get_with(&7, &options)?, Some(3_490));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    max_staleness: Option<Duration>,
    instead_of_waiting: Option<Duration>,
    on_unverified: Option<OnUnverified>,
    at_least: Option<Seq>,
}

impl ReadOptions {
    /// The cache's own options.
    #[must_use]
    pub fn new() -> ReadOptions {
        ReadOptions::default()
    }

    /// Accepts only values younger than this, whatever the cache allows. Zero reads the store.
    ///
    /// A pending write is newer than the store, and meets every bound. So does a load that began after the read did,
    /// however long it takes.
    #[must_use]
    pub fn max_staleness(mut self, age: Duration) -> ReadOptions {
        self.max_staleness = Some(age);
        self
    }

    /// Takes the value in memory, if it is younger than this, instead of waiting for another reader's load. A reader
    /// that finds no load under way begins one and waits for it.
    #[must_use]
    pub fn stale_instead_of_waiting(mut self, age: Duration) -> ReadOptions {
        self.instead_of_waiting = Some(age);
        self
    }

    /// Overrides what this read gets in a layer that [follows](crate::Follow) another process, where the layer cannot
    /// tell whether the entry is current.
    #[must_use]
    pub fn on_unverified(mut self, wanted: OnUnverified) -> ReadOptions {
        self.on_unverified = Some(wanted);
        self
    }

    /// Reads the effect of this write or of a later one, whichever process of the same store wrote it.
    ///
    /// Waits until the write is in the store, but no longer than [`through_timeout`](crate::Builder::through_timeout),
    /// and reads past memory until the layer has carried out every change up to it. In the process that wrote it every
    /// read sees the write anyway.
    #[must_use]
    pub fn at_least(mut self, receipt: Receipt) -> ReadOptions {
        self.at_least = Some(receipt.seq());
        self
    }

    pub(crate) fn constraints(&self, has_loader: bool) -> ReadConstraints {
        let (max_staleness, on_unverified) = (self.max_staleness, self.on_unverified);
        ReadConstraints {
            max_staleness,
            on_unverified,
            has_loader,
            // An `Entry` shows its age, so the clock is read even where it decides nothing.
            measures_age: true,
            progress: LoadProgress::NotStarted,
        }
    }

    pub(crate) fn least(&self) -> Option<Seq> {
        self.at_least
    }

    pub(crate) fn instead_of_waiting(&self) -> Option<Duration> {
        self.instead_of_waiting
    }
}

/// The options of one write. By default those of its cache. A [`WritePolicy`] converts into one.
///
/// ```
/// # use std::time::Duration;
/// # use forebay::{Cache, Forebay, MemoryStore, WriteOptions};
/// # let bay = Forebay::builder(MemoryStore::new()).open_blocking()?;
/// let offers: Cache<u64, u32> = bay.cache("offers").open()?;
/// let options = WriteOptions::new().time_to_live(Duration::from_secs(30)).tags(["spring"]);
/// offers.blocking().put_with(&7, 2_990, options)?;
/// bay.invalidate_tag("spring")?; // the next read asks the store
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    policy: Option<WritePolicy>,
    time_to_live: Option<Duration>,
    time_to_idle: Option<Duration>,
    tags: Vec<String>,
}

impl WriteOptions {
    /// The cache's own options.
    #[must_use]
    pub fn new() -> WriteOptions {
        WriteOptions::default()
    }

    /// Sets when the write is acknowledged, and whether its value stays in memory.
    #[must_use]
    pub fn policy(mut self, policy: WritePolicy) -> WriteOptions {
        self.policy = Some(policy);
        self
    }

    /// Overrides how long the value is fresh in memory. The store does not keep this: a value that is loaded again has
    /// the cache's time to live.
    #[must_use]
    pub fn time_to_live(mut self, time_to_live: Duration) -> WriteOptions {
        self.time_to_live = Some(time_to_live);
        self
    }

    /// Overrides how long the value stays in memory unused. Not kept by the store either.
    #[must_use]
    pub fn time_to_idle(mut self, time_to_idle: Duration) -> WriteOptions {
        self.time_to_idle = Some(time_to_idle);
        self
    }

    /// Sets the tags by which the value can be invalidated together with others, in this cache and elsewhere
    /// ([`Forebay::invalidate_tag`](crate::Forebay::invalidate_tag)): up to 16, of 1 to 255 bytes each. The store keeps
    /// them with the value.
    #[must_use]
    pub fn tags<T: Into<String>>(mut self, tags: impl IntoIterator<Item = T>) -> WriteOptions {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// Checks lives and tags.
    pub(crate) fn check(&self) -> Result<()> {
        for (option, life) in [("time_to_live", self.time_to_live), ("time_to_idle", self.time_to_idle)] {
            life.map_or(Ok(()), |life| within_time(option, life, LIFE_MIN, LIFE_MAX))?;
        }
        // Before anything is encoded: the stored form has one byte for the count and one for each length.
        check_tags(&self.tags).map(drop)
    }

    pub(crate) fn chosen_policy(&self) -> Option<WritePolicy> {
        self.policy
    }

    pub(crate) fn overrides(&self) -> EntryOverrides {
        EntryOverrides {
            time_to_live: self.time_to_live,
            time_to_idle: self.time_to_idle,
            dependencies: None,
        }
    }

    pub(crate) fn chosen_tags(&self) -> &[String] {
        &self.tags
    }
}

impl From<WritePolicy> for WriteOptions {
    fn from(policy: WritePolicy) -> WriteOptions {
        WriteOptions::new().policy(policy)
    }
}

/// A loader's answer: a value or its absence, with options of its own. An `Option` of a value converts into one.
#[derive(Clone, Debug)]
pub struct Loaded<V> {
    pub(crate) value: Option<V>,
    pub(crate) overrides: EntryOverrides,
    pub(crate) tags: Vec<String>,
    pub(crate) read: ReadSet,
}

impl<V> Loaded<V> {
    /// A value under the cache's options.
    #[must_use]
    pub fn new(value: V) -> Loaded<V> {
        Loaded::from(Some(value))
    }

    /// The answer that there is no value.
    #[must_use]
    pub fn absent() -> Loaded<V> {
        Loaded::from(None)
    }

    /// Overrides how long the answer is fresh in memory.
    #[must_use]
    pub fn time_to_live(mut self, time_to_live: Duration) -> Loaded<V> {
        self.overrides.time_to_live = Some(time_to_live);
        self
    }

    /// Overrides how long the answer stays in memory unused.
    #[must_use]
    pub fn time_to_idle(mut self, time_to_idle: Duration) -> Loaded<V> {
        self.overrides.time_to_idle = Some(time_to_idle);
        self
    }

    /// Sets the tags by which it can be invalidated together with others; see [`WriteOptions::tags`].
    #[must_use]
    pub fn tags<T: Into<String>>(mut self, tags: impl IntoIterator<Item = T>) -> Loaded<V> {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }
}

impl<V> From<Option<V>> for Loaded<V> {
    fn from(value: Option<V>) -> Loaded<V> {
        Loaded { value, overrides: EntryOverrides::default(), tags: Vec::new(), read: ReadSet::default() }
    }
}
