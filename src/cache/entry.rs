//! What reads return and what reads and writes can be asked for: plain values.

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

/// What a read found, with the proof of how current that is. Of a key without a value there is one, too.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry<V> {
    /// The value; `None` if there is none.
    pub value: Option<V>,
    /// Which write the value is from, in the layer's order; unknown of a loader's value and of an absent one.
    pub version: Option<Seq>,
    /// How long before the answer it was known to be current: since its write, or since its load began; of a layer that
    /// follows another process since that had heard of every change, if that was later.
    pub age: Duration,
    /// Where this read found it.
    pub source: Source,
    /// The bound that it met.
    pub bound: StalenessBound,
    /// If it is served though its time is up: why.
    pub stale: Option<StaleReason>,
    /// The failure in whose stead it is served.
    pub error: Option<Error>,
    /// What it hangs on beside its key and cache.
    pub(crate) dependencies: Option<Arc<Dependencies>>,
}

/// Where a read found its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// In the cache's memory.
    Memory,
    /// Among what is committed and not yet in the store.
    Pending,
    /// In the store.
    Store,
    /// At the loader's, where the store had nothing.
    Loader,
}

/// How stale an answer could have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StalenessBound {
    /// Not at all: it is pending, or its load began after the read did.
    Current,
    /// Younger than this when it was taken; the tightest of what the cache and the reader ask for.
    Within(Duration),
    /// Of any age: neither cache nor reader limits it.
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

/// What one read asks for. By default what its cache offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    max_staleness: Option<Duration>,
    instead_of_waiting: Option<Duration>,
    on_unverified: Option<OnUnverified>,
    at_least: Option<Seq>,
}

impl ReadOptions {
    /// As the cache offers it.
    #[must_use]
    pub fn new() -> ReadOptions {
        ReadOptions::default()
    }

    /// Serve nothing of this age or older, whatever else would allow it; zero reads the store. What is pending is
    /// newer than the store, and always current.
    ///
    /// A load that began after the read did meets every bound, however long it takes.
    #[must_use]
    pub fn max_staleness(mut self, age: Duration) -> ReadOptions {
        self.max_staleness = Some(age);
        self
    }

    /// Rather than wait for somebody else's load, take what memory has, if it is younger than this. Who would have to
    /// load by itself does so.
    #[must_use]
    pub fn stale_instead_of_waiting(mut self, age: Duration) -> ReadOptions {
        self.instead_of_waiting = Some(age);
        self
    }

    /// What to do about an entry of which a layer that [follows](crate::Follow) another process cannot tell whether it
    /// is current, instead of what that layer says.
    #[must_use]
    pub fn on_unverified(mut self, wanted: OnUnverified) -> ReadOptions {
        self.on_unverified = Some(wanted);
        self
    }

    /// Read the effect of this write, or of a later one of the same store, whichever process wrote it: waits until it
    /// is in the store, for [`through_timeout`](crate::Builder::through_timeout) at the longest, and reads past memory
    /// as long as the layer has not heard of everything up to it. In the process that wrote it every read does so.
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

/// What one write asks for. By default what its cache says. A [`WritePolicy`] alone will do, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    policy: Option<WritePolicy>,
    time_to_live: Option<Duration>,
    time_to_idle: Option<Duration>,
    tags: Vec<String>,
}

impl WriteOptions {
    /// As the cache says.
    #[must_use]
    pub fn new() -> WriteOptions {
        WriteOptions::default()
    }

    /// When the write is acknowledged, and whether its value stays in memory.
    #[must_use]
    pub fn policy(mut self, policy: WritePolicy) -> WriteOptions {
        self.policy = Some(policy);
        self
    }

    /// How long the value is fresh in memory, instead of as long as the cache says. The store does not keep this: a
    /// value that is loaded again is as fresh as any other.
    #[must_use]
    pub fn time_to_live(mut self, time_to_live: Duration) -> WriteOptions {
        self.time_to_live = Some(time_to_live);
        self
    }

    /// How long the value stays in memory unused, likewise.
    #[must_use]
    pub fn time_to_idle(mut self, time_to_idle: Duration) -> WriteOptions {
        self.time_to_idle = Some(time_to_idle);
        self
    }

    /// By which the value can be invalidated together with others, in this cache and elsewhere
    /// ([`Forebay::invalidate_tag`](crate::Forebay::invalidate_tag)). Up to 16, of 1 to 255 bytes each. The store keeps
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

/// What a loader brings; a plain `Option` of a value will do, too.
#[derive(Clone, Debug)]
pub struct Loaded<V> {
    pub(crate) value: Option<V>,
    pub(crate) overrides: EntryOverrides,
    pub(crate) tags: Vec<String>,
    pub(crate) read: ReadSet,
}

impl<V> Loaded<V> {
    /// This value.
    #[must_use]
    pub fn new(value: V) -> Loaded<V> {
        Loaded::from(Some(value))
    }

    /// That there is no value.
    #[must_use]
    pub fn absent() -> Loaded<V> {
        Loaded::from(None)
    }

    /// How long this is fresh in memory, instead of as long as the cache says.
    #[must_use]
    pub fn time_to_live(mut self, time_to_live: Duration) -> Loaded<V> {
        self.overrides.time_to_live = Some(time_to_live);
        self
    }

    /// How long it stays in memory unused, instead of as long as the cache says.
    #[must_use]
    pub fn time_to_idle(mut self, time_to_idle: Duration) -> Loaded<V> {
        self.overrides.time_to_idle = Some(time_to_idle);
        self
    }

    /// By which it can be invalidated together with others; see [`WriteOptions::tags`].
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
