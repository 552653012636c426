//! A follower as the monitor sees it.

use crate::error::Result;
use crate::ids::{Key, Seq};
use crate::seam::future::BoxFuture;

/// One follower, in this process or reached in another one by whatever means. Users implement it.
pub trait Observer: Send + Sync + 'static {
    /// Returns the follower's name: 1 to 64 bytes, and different from those of the monitor's other observers.
    fn name(&self) -> &str;

    /// Returns what the follower would serve for the key at this moment, without loading anything, counting a read or
    /// keeping an entry alive.
    ///
    /// An error means that this is unknown, and counts as [`Reason::Unreachable`](crate::monitor::Reason::Unreachable).
    /// The future is dropped if it takes too long.
    fn observe<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Observation>>;
}

/// The answer of a follower about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The version of what it would serve; `None` if it serves nothing from memory, or does not know the version.
    pub version: Option<Seq>,
    /// The way in which it would answer.
    pub state: Served,
    /// The number up to which it has received every change, if it knows; of a layer that follows another process its
    /// [`watermark`](crate::Forebay::watermark).
    pub heard_until: Option<Seq>,
    /// A problem that it knows of.
    pub trouble: Option<Trouble>,
}

/// The way in which a follower would answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Served {
    /// From memory, as current.
    Fresh,
    /// From memory, to readers who accept an entry that is not known to be current.
    Unverified,
    /// By the store: it has nothing in memory that it would serve.
    Store,
    /// From memory, with the knowledge that there is no value.
    Absent,
}

/// A problem that a follower can know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// Events are missing before the last one that it received.
    Gap,
    /// A load of its was refused, because it was too old.
    RefusedFill,
}
