//! What the monitor asks of a follower.

use std::future::Future;
use std::pin::Pin;

use crate::error::Result;
use crate::ids::{Key, Seq};

/// The future of an observer's call.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One follower as the monitor sees it: in this process, or through whatever reaches another one.
pub trait Observer: Send + Sync + 'static {
    /// The follower's name: 1 to 64 bytes, and no other observer of the monitor has it.
    fn name(&self) -> &str;

    /// What the follower would serve for the key at this moment, without loading anything, counting a read or keeping
    /// an entry alive.
    ///
    /// An error says that nobody can tell, and counts as [`Reason::Unreachable`](crate::monitor::Reason::Unreachable).
    /// The future is dropped if it takes too long.
    fn observe<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Observation>>;
}

/// What a follower would serve for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The version of what it would serve; `None` if it serves nothing from memory, or does not know the version.
    pub version: Option<Seq>,
    /// How it would answer.
    pub state: Served,
    /// Up to where it has heard of every change, if it knows; of a layer that follows another process its
    /// [`watermark`](crate::Forebay::watermark).
    pub heard_until: Option<Seq>,
    /// What it knows to be wrong with what it has.
    pub trouble: Option<Trouble>,
}

/// How a follower would answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Served {
    /// From memory, as current.
    Fresh,
    /// From memory, to readers who take what cannot be known to be current.
    Unverified,
    /// By the store: it has nothing in memory that it would serve.
    Store,
    /// From memory, that there is no value.
    Absent,
}

/// What a follower can know to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// Events are missing before what it has heard.
    Gap,
    /// What it had loaded was refused, because it was too old.
    RefusedFill,
}
