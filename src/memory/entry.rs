//! What memory holds of a key, and what goes in and comes out. Plain values.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;

use crate::ids::Seq;
use crate::memory::extra::Extra;
use crate::memory::fence::Mark;
use crate::memory::scope::{Scopes, Ties};
use crate::memory::servable::{Excuse, Generation, Stamp};
use crate::seam::clock::Moment;

/// What is in memory of a key.
#[derive(Clone, Debug)]
pub(crate) struct Entry<V> {
    /// `None` says that the key has no value.
    pub(crate) value: Option<V>,
    /// Who wrote it; zero if nobody knows.
    pub(crate) version: Seq,
    pub(crate) generation: Generation,
    pub(crate) since: Moment,
    pub(crate) weight: u32,
    /// How long its load took; nothing if it was written.
    pub(crate) took_us: u32,
    pub(crate) cut: u16,
    pub(crate) of_loader: bool,
    /// What few entries have, so that the others stay small.
    pub(crate) extra: Option<Arc<Extra>>,
}

/// What an entry is told to do instead of what its cache says, and what it hangs on beside it.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Its time to live.
    pub time_to_live: Option<Duration>,
    /// Its time to idle.
    pub time_to_idle: Option<Duration>,
    /// Its group, its tags, and what it was read from.
    pub ties: Option<Arc<Ties>>,
}

/// What a look at memory found that may be served.
#[derive(Clone, Debug)]
pub struct Held<V> {
    /// The value; `None` if the key is known to have none.
    pub value: Option<V>,
    /// Who wrote it; zero if nobody knows.
    pub version: Seq,
    /// How old it is. Only measured if that matters for the answer; else nothing.
    pub age: Duration,
    /// Why it is served though its time is up.
    pub excuse: Option<Excuse>,
    /// Whether it should be loaded again, while it is served.
    pub reload: bool,
    /// The age that it was allowed to have; none if nothing limited it.
    pub bound: Option<Duration>,
    /// What it hangs on beside its key and cache; told only to who looks closely.
    pub ties: Option<Arc<Ties>>,
}

/// Where a load starts: taken before anything is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Where the fences stood.
    pub mark: Mark,
    /// What a value that this load brings belongs to.
    pub generation: Generation,
    /// When that was.
    pub since: Moment,
    /// Whether it reads past memory.
    pub anew: bool,
}

/// What a load brought.
#[derive(Clone, Debug)]
pub struct Brought<'a, V> {
    /// The value; `None` if there is none.
    pub value: Option<&'a V>,
    /// Who wrote it; zero if nobody knows.
    pub version: Seq,
    /// Whether a reader's loader was asked.
    pub of_loader: bool,
    /// What it is told to do instead of what the cache says.
    pub own: Own,
}

/// What is in memory of a key, before anybody knows whether it may be served; and until when a follower had heard of
/// every change *before* that was looked up.
pub struct Unjudged<V>(pub(crate) Option<Entry<V>>, pub(crate) Moment);

#[derive(Clone)]
pub(crate) struct ByEntry;

impl<K, V> Weighter<K, Entry<V>> for ByEntry {
    fn weight(&self, _key: &K, entry: &Entry<V>) -> u64 {
        u64::from(entry.weight.max(1))
    }
}

impl<V> Entry<V> {
    /// How often it was served, if anybody knows. Where nothing is timed nobody counts, and each copy is as good as any
    /// other.
    pub(crate) fn serves(&self, timed: bool) -> Option<u64> {
        let watched = self.extra.as_ref().and_then(|extra| extra.serves());
        watched.or((!timed).then_some(1))
    }

    #[inline]
    pub(crate) fn stamp(&self, scopes: &Scopes) -> Stamp {
        let mut stamp = self.plain_stamp();
        if let Some(extra) = &self.extra {
            extra.add_to(&mut stamp, scopes);
        }
        stamp
    }

    /// The stamp of an entry that has nothing beside its value.
    #[inline]
    pub(crate) fn plain_stamp(&self) -> Stamp {
        Stamp {
            generation: self.generation,
            since: self.since,
            used: self.since,
            absent: self.value.is_none(),
            of_loader: self.of_loader,
            cut: self.cut,
            ..Stamp::default()
        }
    }

    pub(crate) fn without_value(&self) -> Entry<()> {
        let &Entry { version, generation, since, weight, took_us, cut, of_loader, .. } = self;
        let (value, extra) = (self.value.as_ref().map(|_| ()), self.extra.clone());
        Entry { value, version, generation, since, weight, took_us, cut, of_loader, extra }
    }

    pub(crate) fn ties(&self) -> Option<Arc<Ties>> {
        self.extra.as_ref().and_then(|extra| extra.ties().cloned())
    }
}
