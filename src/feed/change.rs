//! What a change stream tells and is asked: plain values.

use std::time::Duration;

use bytes::Bytes;

use crate::ids::{Key, Seq};
use crate::invalidation::Invalidation;

/// Where a change stream begins.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangesFrom {
    /// After this number. Nothing remembers how far the stream came, and nothing is kept for it.
    After(Seq),
    /// Where the durable cursor of this name stands; a new one stands before everything.
    Cursor(String),
}

/// One change that the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// Its place in the layer's order, and the version of the value.
    pub seq: Seq,
    /// The key. Printing it shows a bounded, escaped prefix.
    pub key: Key,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What happened to a key. New kinds may come.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeKind {
    /// It has this value, as its cache encoded it. (A slice of some hundred KiB: copy what is kept for long.)
    Put(Bytes),
    /// It was removed.
    Remove,
    /// One version of it has this value; see [`Cache::put_version`](crate::Cache::put_version). If a plain read returns
    /// it, a [`ChangeKind::Put`] follows.
    PutVersion(u64, Bytes),
    /// One version of it is no longer kept.
    RemoveVersion(u64),
    /// Something became stale. The key of the change alone, if the journal does not hold its value because it was
    /// written through or parked; else what was invalidated, and the key is the token's.
    Invalidate(Invalidation),
}

/// What a change stream tells. Both have to be dealt with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeOutcome {
    /// A change.
    Change(Change),
    /// What happened after the first and up to the second number cannot be told: take every key as changed, then go on.
    PlaceLost {
        /// What was told before it.
        after: Seq,
        /// Where the stream goes on.
        until: Seq,
    },
}

impl ChangeOutcome {
    /// Its number: who has dealt with it acknowledges this.
    #[must_use]
    pub fn seq(&self) -> Seq {
        match self {
            ChangeOutcome::Change(change) => change.seq,
            ChangeOutcome::PlaceLost { until, .. } => *until,
        }
    }
}

/// How far somebody is behind the store: a subscriber of the change stream, a publisher, or a follower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ChangeLag {
    /// Numbers of records that the store has passed and the subscriber has not.
    pub records: u64,
    /// What they took in the journal, in bytes, whether it still has them or not; in whole batches where the exact
    /// place is not known, and of what was applied before the layer opened in whole segments that are still there.
    pub bytes: u64,
    /// How long ago the first of them was applied; since the layer opened, if it was before that.
    pub age: Duration,
}

/// A named cursor and how far behind it is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct CursorStatus {
    /// Its name.
    pub name: String,
    /// What its subscriber has acknowledged: this number and all before it.
    pub acknowledged: Seq,
    /// Whether it has a subscriber now.
    pub open: bool,
    /// What is not acknowledged.
    pub lag: ChangeLag,
}

impl From<Seq> for ChangesFrom {
    fn from(after: Seq) -> ChangesFrom {
        ChangesFrom::After(after)
    }
}

impl From<&str> for ChangesFrom {
    fn from(cursor: &str) -> ChangesFrom {
        ChangesFrom::Cursor(cursor.to_owned())
    }
}
