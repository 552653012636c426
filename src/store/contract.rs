//! What the layer asks of a system of record.
//!
//! A store keeps, beside the data, the layer's [`Progress`], its epoch and its journal's identity, and it
//! changes them together with the data, in one transaction. That is what makes an apply take effect exactly
//! once however often it is repeated. The testkit tests an implementation.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

use crate::error::Error;
use crate::ids::{Epoch, JournalId, Key, Seq};

/// The future of a store's call.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How far a store has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The watermark: the last sequence number whose effect the store holds.
    pub applied: Seq,
    /// The last one at or below the watermark that went through the journal. It tells a journal that was lost
    /// from one that never held the newest writes because they were written through.
    pub journaled: Seq,
}

/// What a store knows of its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tenure {
    /// The newest epoch; zero if no layer ever claimed the store.
    pub epoch: Epoch,
    /// How far the store has come.
    pub progress: Progress,
    /// The journal that the newest owner feeds it from, if it has one.
    pub journal: Option<JournalId>,
}

/// Whether a store's owner lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnerStatus {
    /// The store cannot say: only one process can have it open, for example.
    Unknown,
    /// It has no owner, or the owner has said that it ends.
    Free,
    /// It has an owner, which has claimed the store or said that it lives as often as that.
    Owned(u64),
}

/// A stored value with the sequence number that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value, as the cache encoded it.
    pub value: Bytes,
    /// Who wrote it.
    pub version: Seq,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The record's sequence number, which becomes the value's version.
    pub seq: Seq,
    /// The key.
    pub key: Key,
    /// The new value; `None` removes the key.
    pub value: Option<Bytes>,
}

/// What one [`Store::apply`] makes true, all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The sender's epoch.
    pub epoch: Epoch,
    /// The changes in order; a key may occur more than once, and the last one wins. May be empty.
    pub ops: Vec<Op>,
    /// The progress once this batch is applied. Its watermark is at least the last op's sequence number.
    pub progress: Progress,
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// It may pass; whether the batch was applied is unknown. It is sent again, unchanged or longer.
    Transient(Error),
    /// The store refuses the record with this sequence number, for ever. Nothing of the batch was applied.
    Rejected {
        /// The record.
        seq: Seq,
        /// Why.
        error: Error,
    },
    /// A newer epoch has claimed the store. Nothing of the batch was applied.
    Fenced {
        /// The newest epoch.
        current: Epoch,
    },
    /// It will not pass; whether the batch was applied is unknown.
    Fatal(Error),
}

/// A system of record.
///
/// Only [`Store::apply`] may block the thread that polls it, and then the layer cannot be stopped before it is done: a
/// layer calls it from a thread of its own. It calls [`Store::load`] from its caller's.
pub trait Store: Send + Sync + 'static {
    /// Whether others hear of what an apply changes, such as those who read an outbox that it writes to. Then a layer
    /// puts no apply off for its writers' sake. Asked once, when a layer opens. A store in front of another passes it
    /// on.
    fn has_change_feed(&self) -> bool {
        false
    }

    /// What the store knows of its owner, changing nothing.
    fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>>;

    /// Starts a new epoch for an owner that feeds the store from `journal`, durably on return.
    ///
    /// Returns the tenure with the new epoch, the new journal, and the progress as it is. From the moment this
    /// takes effect every batch of an older epoch is refused, one that is being applied included: it either
    /// shows in the returned progress or never happens.
    fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>>;

    /// Notes that the owner of this epoch lives, or, if `ends`, that it has ended and the store is free. Neither has to
    /// survive a power cut. A store that only one process can have open need not do anything.
    ///
    /// An epoch older than the store's: [`StoreError::Fenced`].
    fn renew(&self, epoch: Epoch, ends: bool) -> BoxFuture<'_, Result<(), StoreError>> {
        let _ = (epoch, ends);
        Box::pin(async { Ok(()) })
    }

    /// Whether the store's owner lives. A claim counts as saying so.
    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        Box::pin(async { Ok(OwnerStatus::Unknown) })
    }

    /// Loads one value: of what was applied, or of a batch that is being applied. A power cut may still take
    /// the latter back; the layer in front knows what is not acknowledged yet and guards it.
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>>;

    /// Loads several values, in the order of `keys`.
    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>>;

    /// Makes the batch true: atomically, durably on return, and exactly once.
    ///
    /// - An epoch older than the store's: [`StoreError::Fenced`].
    /// - A watermark at or below the store's: `Ok`, and nothing changes.
    /// - Ops at or below the store's watermark are skipped (a longer batch that is sent after a doubtful one).
    ///
    /// Dropping the future leaves the batch applied wholly or not at all.
    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// A store that was chosen at run time.
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
    /// The same failure as the crate's own error.
    #[must_use]
    pub fn into_error(self) -> Error {
        use crate::error::ErrorKind;
        match self {
            StoreError::Transient(error) => {
                error.wrap(ErrorKind::Transient, "the store failed, which may pass")
            }
            StoreError::Rejected { seq, error } => {
                error.wrap(ErrorKind::Rejected, format!("the store rejected record {seq}"))
            }
            StoreError::Fenced { current } => Error::new(
                ErrorKind::Fenced,
                format!(
                    "a newer owner holds the store, in epoch {current}; this layer can no longer change it"
                ),
            ),
            StoreError::Fatal(error) => error.wrap(ErrorKind::StoreFailed, "the store failed"),
        }
    }
}
