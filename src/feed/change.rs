//! The values that a change stream takes and returns: changes, start positions, lag. No logic.

use std::time::Duration;

use bytes::Bytes;

use crate::ids::{Key, Seq};
use crate::invalidation::Invalidation;

/// The start position of a change stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangesFrom {
    /// Right after this number. The stream's position is not stored, and the journal keeps nothing for it.
    After(Seq),
    /// The position of the durable cursor of this name. A new cursor stands before all changes.
    Cursor(String),
}

/// One change that the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// Its sequence number in the layer's order, and the version of the value.
    pub seq: Seq,
    /// The key. Printing it shows a bounded, escaped prefix.
    pub key: Key,
    /// The kind of change, with the new value if there is one.
    pub kind: ChangeKind,
}

/// The kind of a change of a key. Later versions may add kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeKind {
    /// The key has this value, as its cache encoded it.
    ///
    /// The bytes are a slice of a buffer of some hundred KiB: copy them if you keep them for long.
    Put(Bytes),
    /// The key was removed.
    Remove,
    /// One version of the key has this value; see [`Cache::put_version`](crate::Cache::put_version).
    ///
    /// If a plain read returns this version, a [`ChangeKind::Put`] follows.
    PutVersion(u64, Bytes),
    /// One version of the key is no longer kept.
    RemoveVersion(u64),
    /// Older values of the named keys are stale.
    ///
    /// Names the key of the change alone if the journal does not hold its value, because it was written through or
    /// parked. Otherwise it is a user's invalidation, and the key of the change is that of its token.
    Invalidate(Invalidation),
}

/// An item of a change stream: a change, or a range of numbers whose changes are lost. Handle both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeOutcome {
    /// A change.
    Change(Change),
    /// The changes of a range of numbers cannot be read any more. Treat every key as changed, then go on.
    PlaceLost {
        /// The last number before the range.
        after: Seq,
        /// The last number of the range. The stream goes on after it.
        until: Seq,
    },
}

impl ChangeOutcome {
    /// Returns the number to acknowledge once this item has been handled.
    #[must_use]
    pub fn seq(&self) -> Seq {
        match self {
            ChangeOutcome::Change(change) => change.seq,
            ChangeOutcome::PlaceLost { until, .. } => *until,
        }
    }
}

/// The lag of a subscriber of the change stream, a publisher or a follower behind the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ChangeLag {
    /// The count of sequence numbers that the store has passed and the subscriber has not.
    pub records: u64,
    /// The bytes that those records took in the journal, whether it still holds them or not.
    ///
    /// Counted in whole batches where the exact place is not known. Records that were applied before the layer opened
    /// are counted in whole segments that still exist.
    pub bytes: u64,
    /// The time since the first of those records was applied, or since the layer opened if that is shorter.
    pub age: Duration,
}

/// A named cursor of the change stream: its position and its lag.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct CursorStatus {
    /// Its name.
    pub name: String,
    /// The last acknowledged number. All before it are acknowledged, too.
    pub acknowledged: Seq,
    /// True if the cursor has a subscriber now.
    pub open: bool,
    /// The lag of the acknowledged position behind the store.
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
