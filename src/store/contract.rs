//! The contract of a system of record: the trait [`Store`] and the types of its calls.
//!
//! Beside the data, a store keeps the layer's [`Progress`], its epoch and the identity of its journal, and changes them
//! together with the data in one transaction. This makes an apply take effect exactly once, however often it is
//! repeated. A store that cannot do this cannot be a system of record of a layer.
//!
//! `testkit::conformance` tests an implementation.

use std::fmt;

use bytes::Bytes;

use crate::error::{Error, ErrorKind};
use crate::ids::{Epoch, JournalId, Key, Seq};
pub use crate::seam::future::BoxFuture;

/// The sequence numbers up to which a store holds the effects of a layer's writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The watermark: the last sequence number whose effect the store holds.
    pub applied: Seq,
    /// The last sequence number at or below the watermark that went through the journal. Writes that were written
    /// through have none in the journal, so this distinguishes a journal that was lost from one that never held them.
    pub journaled: Seq,
}

/// The record that a store keeps of its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tenure {
    /// The newest epoch; zero if no layer has ever claimed the store.
    pub epoch: Epoch,
    /// The progress of all owners so far.
    pub progress: Progress,
    /// The journal from which the newest owner feeds the store, if it has one.
    pub journal: Option<JournalId>,
}

/// The answer of [`Store::owner_status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnerStatus {
    /// The store has no heartbeat, for example because only one process can have it open.
    Unknown,
    /// The store has no owner, or its last owner has ended properly.
    Free,
    /// The store has an owner. The number counts claims and heartbeats: as long as it grows, the owner is alive.
    Owned(u64),
}

/// A stored value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value, as the cache encoded it.
    pub value: Bytes,
    /// The sequence number of the write that stored it.
    pub version: Seq,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The sequence number of the record, which becomes the version of the value.
    pub seq: Seq,
    /// The key.
    pub key: Key,
    /// The new value; `None` removes the key.
    pub value: Option<Bytes>,
}

/// The changes of one [`Store::apply`], which take effect together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The epoch of the sender.
    pub epoch: Epoch,
    /// The changes, in the order of their numbers. A key may occur more than once, and its last change wins. May be
    /// empty.
    pub ops: Vec<Op>,
    /// The progress once this batch is applied. Its watermark is at least the number of the last change.
    pub progress: Progress,
}

/// The failure of a call of a store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The failure may pass by itself. It is unknown whether the batch was applied. The layer sends the batch again,
    /// unchanged or extended by later records.
    Transient(Error),
    /// The store refuses the record with this sequence number and will always refuse it. Nothing of the batch was
    /// applied.
    Rejected {
        /// The number of the refused record.
        seq: Seq,
        /// The reason.
        error: Error,
    },
    /// A newer epoch has claimed the store. Nothing of the batch was applied.
    Fenced {
        /// The newest epoch.
        current: Epoch,
    },
    /// The failure will not pass by itself. It is unknown whether the batch was applied.
    Fatal(Error),
}

/// A system of record: the durable data that a layer caches and writes to.
///
/// Implement it to put a layer in front of a database of your own; `testkit::conformance` tests it.
///
/// A layer calls [`Store::apply`] from a thread of its own, so this call alone may block the thread that polls it; the
/// layer cannot be stopped before it returns. All other calls are polled by the caller's threads and must not block.
pub trait Store: Send + Sync + 'static {
    /// Returns true if others are notified of the changes of an apply, such as readers of an outbox that the store
    /// fills.
    ///
    /// A layer then never delays an apply to collect more writes. It asks once, when it opens. A store that wraps
    /// another one returns the answer of that one.
    fn has_change_feed(&self) -> bool {
        false
    }

    /// Reads the record of the owner, without changing anything.
    fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>>;

    /// Starts a new epoch for an owner that feeds the store from `journal`. Durable on return.
    ///
    /// Returns the tenure with the new epoch, the new journal, and the progress, which a claim does not change.
    ///
    /// Once the claim has taken effect, the store refuses every batch of an older epoch, including one that is being
    /// applied at this moment: such a batch is either part of the returned progress or is never applied.
    fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>>;

    /// Records a heartbeat of the owner of this epoch or, if `ends`, that the owner has ended and the store is free.
    ///
    /// Neither has to survive a power cut. A store without heartbeat (see [`OwnerStatus::Unknown`]) does nothing.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the epoch is older than the store's.
    fn renew(&self, epoch: Epoch, ends: bool) -> BoxFuture<'_, Result<(), StoreError>> {
        let _ = (epoch, ends);
        Box::pin(async { Ok(()) })
    }

    /// Returns whether the store has an owner, and a number that grows as long as the owner is alive. A claim counts as
    /// a heartbeat.
    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        Box::pin(async { Ok(OwnerStatus::Unknown) })
    }

    /// Loads one value, or `None` if the key has none.
    ///
    /// The value may belong to a batch that is still being applied and that a power cut may take back: the layer guards
    /// what is not acknowledged yet.
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>>;

    /// Loads several values; the result has one element for each of `keys`, in their order.
    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>>;

    /// Applies a batch atomically and exactly once. Durable on return.
    ///
    /// - If the watermark of the batch is at or below the store's, returns `Ok` and changes nothing.
    /// - Skips changes at or below the store's watermark: after a failure with unknown outcome the layer sends the
    ///   batch again, possibly extended by later records.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the epoch is older than the store's. [`StoreError::Rejected`] names a record that the
    /// store will never accept; with the other errors the layer cannot know which record is to blame.
    ///
    /// # Cancellation
    /// After the future was dropped, the batch is applied as a whole or not at all.
    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// Forwards to a store that was chosen at run time.
impl<S: Store + ?Sized> Store for Box<S> {
    fn has_change_feed(&self) -> bool {
        (**self).has_change_feed()
    }

    fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        (**self).tenure()
    }

    fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        (**self).claim(journal)
    }

    fn renew(&self, epoch: Epoch, ends: bool) -> BoxFuture<'_, Result<(), StoreError>> {
        (**self).renew(epoch, ends)
    }

    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        (**self).owner_status()
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        (**self).load(key)
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        (**self).load_many(keys)
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        (**self).apply(batch)
    }
}

impl StoreError {
    /// Converts the failure into the error that the layer returns, with the store's own error as its source.
    #[must_use]
    pub fn into_error(self) -> Error {
        // The text is taken before the error moves, so that the caller sees the store's sentence above its cause.
        let context = self.to_string();
        match self {
            StoreError::Transient(error) => error.wrap(ErrorKind::Transient, context),
            StoreError::Rejected { error, .. } => error.wrap(ErrorKind::Rejected, context),
            StoreError::Fenced { .. } => Error::new(ErrorKind::Fenced, context),
            StoreError::Fatal(error) => error.wrap(ErrorKind::StoreFailed, context),
        }
    }
}

/// Writes the sentence of the failure without its cause, which is the [source](std::error::Error::source).
impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Transient(_) => f.write_str("the store failed, which may pass"),
            StoreError::Rejected { seq, .. } => write!(f, "the store rejected record {seq}"),
            StoreError::Fenced { current } => {
                write!(
                    f,
                    "a newer owner holds the store, in epoch {current}; this layer can no longer change it"
                )
            }
            StoreError::Fatal(_) => f.write_str("the store failed"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Transient(error) | StoreError::Rejected { error, .. } | StoreError::Fatal(error) => {
                Some(error)
            }
            StoreError::Fenced { .. } => None,
        }
    }
}
